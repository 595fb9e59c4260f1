"""`verify`: every theorem of the atlas, checked at the settings of its paper.

- A theorem that says what the minimiser is: the problem is solved from several random initial
  points, and every quantity that the theorem determines is compared.
- An upper bound, or a disputed claim: nothing is solved. The witness, built as matrices, must have
  the predicted value and lie below the value that it refutes.
- A theorem about the landscape, dynamics or hard margins: its evidence is a check of that room.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from ufm._support import as_dict, double_precision, on_host
from ufm.certificates import has_convex_form
from ufm.comparison.compare import Comparison, compare
from ufm.imbalance import hard_margin
from ufm.problems import class_samples
from ufm.solving import Solution, solve
from ufm.theory import Prediction, Theorem, theorems

__all__ = ["Check", "check", "verify"]

OBJECTIVE_TOLERANCE = 1e-9
GEOMETRY_TOLERANCE = 1e-6
KEYS = (0, 1, 2)
# What is said of a theorem at one setting. It is no `Status`: several solves, or none, are behind
# it.
CheckVerdict = Literal["ok", "disputed", "not run", "FAILED"]


class Check(NamedTuple):
    """A theorem at one setting. Fields that a kind of theorem does not have are None.

    Attributes:
        theorem: Its name.
        reference: Its reference.
        setting: The setting.
        predicted: The predicted objective; of a disputed claim, the claimed minimum.
        found: The objective found; of the witness, if there is one.
        relative_gap: Certified; None if no certificate exists.
        tight: Whether the bound can be expected to meet the optimal value (not for d < K, nor for
            the bracket of deep models).
        objective_error: Relative, the worst over the initial points.
        geometry_error: Relative, the worst over the initial points.
        passed: Whether everything agrees within the solver's accuracy, the objective to 1e-9 and
            the geometry to 1e-6; whether the witness lies below what it refutes; whether the
            evidence holds.
        reason: What did not; empty if it passed.
        seconds: Duration.
        disputed: Whether the claim is one that is contradicted.
        missing: What is not installed, so that the check was not run; otherwise empty.
    """

    theorem: str
    reference: str
    setting: str
    predicted: float | None
    found: float | None
    relative_gap: float | None
    tight: bool
    objective_error: float | None
    geometry_error: float | None
    passed: bool
    reason: str
    seconds: float
    disputed: bool = False
    missing: str = ""

    @property
    def verdict(self) -> CheckVerdict:
        """What is said of the theorem; "disputed" if the claim is refuted, as it is said to be."""
        if self.missing:
            return "not run"
        if not self.passed:
            return "FAILED"
        return "disputed" if self.disputed else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return as_dict(self)


@on_host
def verify(
    only: Sequence[str] | None = None,
    *,
    quick: bool = False,
    done: Callable[[Check], None] | None = None,
    workers: int = 2,
) -> list[Check]:
    """Check every theorem at its settings, and return one check per theorem and setting.

    Args:
        only: Names of theorems; all of them if not given.
        quick: Whether to check the first setting of every theorem only.
        done: Called with each check as soon as its turn has come, in order.
        workers: Settings worked on side by side (most of the time is compilation).

    Raises:
        ValueError: If the atlas does not have a name.
    """
    chosen = list(theorems) if only is None else [theorems[name] for name in only]
    tasks = [
        (theorem, example.label, example.problem)
        for theorem in chosen
        for example in theorem.examples[: 1 if quick else None]
    ]
    checks = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for result in pool.map(lambda task: check(*task), tasks):
            checks.append(result)
            if done is not None:
                done(result)
    return checks


def check(
    theorem: Theorem, setting: str, problem: Any, prediction: Prediction | None = None
) -> Check:
    """Check one theorem at one setting.

    A problem with a certificate is solved from every one of `KEYS`, each certified by itself, and
    the worst is reported. Without a certificate many initial points are needed to find the global
    minimum, and the best of one batch is compared.

    Args:
        theorem: From the atlas.
        setting: What to call the problem.
        problem: Covered by the theorem.
        prediction: To compare instead of the theorem's own.
    """
    began = time.perf_counter()
    if theorem.evidence is not None:
        fields = _of_evidence(theorem, problem)
    else:
        prediction = theorem.predict(problem) if prediction is None else prediction
        kind = _of_solver if theorem.witness is None else _of_witness
        fields = kind(theorem, problem, prediction)
    seconds = time.perf_counter() - began
    return Check(theorem.name, theorem.reference, setting, **fields, seconds=seconds)


def _of_solver(theorem: Theorem, problem: Any, prediction: Prediction) -> dict[str, Any]:
    outcomes = [(solution, compare(solution, prediction)) for solution in _solutions(problem)]
    reasons = [reason for _, comparison in outcomes if (reason := _objection(comparison))]
    solution, comparison = max(
        outcomes, key=lambda pair: (bool(_objection(pair[1])), _severity(pair[1]))
    )
    certificate = solution.certificate
    return {
        "predicted": float(prediction.objective),
        "found": solution.objective,
        "relative_gap": None if certificate is None else certificate.relative_gap,
        "tight": certificate is not None and certificate.tight,
        "objective_error": comparison.objective_error,
        "geometry_error": comparison.geometry_error,
        "passed": not reasons,
        "reason": reasons[0] if reasons else "",
    }


def _of_witness(theorem: Theorem, problem: Any, prediction: Prediction) -> dict[str, Any]:
    """Compare a witness with what is predicted of it, and with what it refutes."""
    assert theorem.witness is not None
    parameters = theorem.witness(problem).parameters
    with double_precision():
        found = float(problem.objective(parameters, class_samples(problem, jnp.float64)))
    predicted = float(prediction.objective)
    error = abs(found - predicted) / abs(predicted)
    if theorem.dispute:
        refuted, what, reason = predicted, "the claimed minimum", ""
    else:
        refuted, what = float(prediction.constants["collapse"]), "deep neural collapse"
        off = f"objective is off by {error:.1e}, more than {OBJECTIVE_TOLERANCE:g}"
        reason = "" if error <= OBJECTIVE_TOLERANCE else off
    if not found < refuted * (1 - OBJECTIVE_TOLERANCE):
        reason = f"the witness, {found:.9g}, does not lie below {what}, {refuted:.9g}"
    return {
        "predicted": predicted,
        "found": found,
        "relative_gap": None,
        "tight": False,
        "objective_error": error,
        "geometry_error": 0.0,
        "passed": not reason,
        "reason": reason,
        "disputed": bool(theorem.dispute),
    }


def _of_evidence(theorem: Theorem, problem: Any) -> dict[str, Any]:
    """Make the evidence of a theorem from the functions of the room that it is about."""
    assert theorem.evidence is not None
    room: Any = hard_margin
    if theorem.about != "hard margins":  # the other rooms are slow to import
        room = importlib.import_module(f"ufm.{theorem.about}")
    fields = dict.fromkeys(
        ("predicted", "found", "relative_gap", "objective_error", "geometry_error")
    )
    try:
        found = theorem.evidence(room, problem)
    except ImportError:
        if theorem.about != "dynamics":
            raise
        missing = "the extra `dynamics`"
        return {
            **fields,
            "tight": False,
            "passed": False,
            "reason": f"needs {missing}",
            "missing": missing,
        }
    passed = bool(found.holds)
    reason = "" if passed else " ".join(str(found).split())
    return {**fields, "tight": False, "passed": passed, "reason": reason}


def _solutions(problem: Any) -> Iterator[Solution]:
    for key in KEYS if has_convex_form(problem) else KEYS[:1]:
        yield solve(problem, key=key)


def _severity(comparison: Comparison) -> float:
    return max(
        comparison.objective_error / OBJECTIVE_TOLERANCE,
        comparison.geometry_error / GEOMETRY_TOLERANCE,
    )


def _objection(comparison: Comparison) -> str:
    """Return why the comparison does not confirm the theorem, or nothing."""
    for row in comparison.rows:
        if not row.passed:
            error = f"error {row.error:.1e}, tolerance {row.tolerance:.1e}"
            return f"{row.quantity} {row.verdict}: {error}"
    if not comparison.objective_error <= OBJECTIVE_TOLERANCE:
        error = f"{comparison.objective_error:.1e}"
        return f"objective is off by {error}, more than {OBJECTIVE_TOLERANCE:g}"
    if not comparison.geometry_error <= GEOMETRY_TOLERANCE:
        return (
            f"geometry is off by {comparison.geometry_error:.1e}, more than {GEOMETRY_TOLERANCE:g}"
        )
    return ""
