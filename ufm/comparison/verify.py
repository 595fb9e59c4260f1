"""`verify`: every theorem against the solver, at the settings of its paper, from several random initial points.

A theorem that says what the minimum is not needs no solver: its witness, built as matrices and put
into the objective, is to have the value predicted and to lie below the value that it refutes. So
does the witness against a disputed claim.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm._support import double_precision, on_host
from ufm.certificates import has_convex_form
from ufm.comparison.compare import Comparison, compare
from ufm.problems import class_columns
from ufm.solving import Solution, solve
from ufm.theory import Prediction, Theorem, theorems

__all__ = ["Check", "check", "verify"]

OBJECTIVE_TOLERANCE = 1e-9
GEOMETRY_TOLERANCE = 1e-6
KEYS = (0, 1, 2)


class Check(NamedTuple):
    """A theorem at one setting.

    predicted, found: objectives. relative_gap: certified, None where no certificate exists. tight:
    whether its bound can be expected to meet the optimal value (not for d < K, nor for the bracket
    of deep models). objective_error, geometry_error: relative, the worst over the initial points.
    passed: everything agrees within the solver's accuracy, the objective to 1e-9 and the geometry
    to 1e-6. reason: what did not, empty if it passed. disputed: the claim is one that is
    contradicted. Then `found` is the value of the point that contradicts it, `predicted` the
    claimed minimum, and the check has passed where the one lies below the other.
    """

    theorem: str
    reference: str
    setting: str
    predicted: float
    found: float
    relative_gap: float | None
    tight: bool
    objective_error: float
    geometry_error: float
    passed: bool
    reason: str
    seconds: float
    disputed: bool = False

    @property
    def verdict(self) -> str:
        """One word: "ok", "disputed" (as it is said to be), or "FAILED"."""
        if not self.passed:
            return "FAILED"
        return "disputed" if self.disputed else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self._asdict().items()
        }


@on_host
def verify(
    only: Sequence[str] | None = None,
    *,
    done: Callable[[Check], None] | None = None,
    workers: int = 2,
) -> list[Check]:
    """Solve every theorem at its settings, compare, and return one check per theorem and setting.

    Args:
        only: names of theorems; all of them if not given.
        done: called with each check as soon as its turn has come, in order.
        workers: settings worked on side by side (most of the time is compilation).

    Raises:
        ValueError: for a name that the atlas does not have.
    """
    chosen = list(theorems) if only is None else [theorems[name] for name in only]
    tasks = [
        (theorem, example.label, example.problem)
        for theorem in chosen
        for example in theorem.examples
    ]
    checks = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for result in pool.map(lambda task: check(task[0], task[1], task[2]), tasks):
            checks.append(result)
            if done is not None:
                done(result)
    return checks


def check(
    theorem: Theorem, setting: str, problem: Any, prediction: Prediction | None = None
) -> Check:
    """Hold one theorem against the solver at one problem.

    A problem with a certificate is solved from every one of `KEYS`, each certified by itself, and
    the worst is reported. Without a certificate many initial points are needed to find the global
    minimum, and the best of one batch is compared. Upper bounds and disputed claims are checked by
    their witness; nothing is solved.

    Args:
        theorem: from the atlas.
        setting: what to call the problem.
        problem: covered by the theorem.
        prediction: to hold against the solver instead of the theorem's own.
    """
    began = time.perf_counter()
    prediction = theorem.predict(problem) if prediction is None else prediction
    if theorem.witness is not None:
        return _check_witness(theorem, setting, problem, prediction, began)
    outcomes = [(solution, compare(solution, prediction)) for solution in _solutions(problem)]
    reasons = [reason for _, comparison in outcomes if (reason := _objection(comparison))]
    solution, comparison = max(
        outcomes, key=lambda pair: (bool(_objection(pair[1])), _severity(pair[1]))
    )
    return Check(
        theorem=theorem.name,
        reference=theorem.reference,
        setting=setting,
        predicted=float(prediction.objective),
        found=solution.objective,
        relative_gap=None if solution.certificate is None else solution.certificate.relative_gap,
        tight=solution.certificate is not None and solution.certificate.tight,
        objective_error=comparison.objective_error,
        geometry_error=comparison.geometry_error,
        passed=not reasons,
        reason=reasons[0] if reasons else "",
        seconds=time.perf_counter() - began,
    )


def _check_witness(
    theorem: Theorem, setting: str, problem: Any, prediction: Prediction, began: float
) -> Check:
    """Put the witness of an upper bound, or against a disputed claim, into the objective, and hold it below what it refutes."""
    assert theorem.witness is not None
    parameters = theorem.witness(problem).parameters
    with double_precision():
        found = float(
            problem.objective(parameters, class_columns(problem.class_counts, jnp.float64))
        )
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
    return Check(
        theorem=theorem.name,
        reference=theorem.reference,
        setting=setting,
        predicted=predicted,
        found=found,
        relative_gap=None,
        tight=False,
        objective_error=error,
        geometry_error=0.0,
        passed=not reason,
        reason=reason,
        seconds=time.perf_counter() - began,
        disputed=bool(theorem.dispute),
    )


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
            return f"{row.quantity} {row.verdict}: error {row.error:.1e}, tolerance {row.tolerance:.1e}"
    if not comparison.objective_error <= OBJECTIVE_TOLERANCE:
        return f"objective is off by {comparison.objective_error:.1e}, more than {OBJECTIVE_TOLERANCE:g}"
    if not comparison.geometry_error <= GEOMETRY_TOLERANCE:
        return (
            f"geometry is off by {comparison.geometry_error:.1e}, more than {GEOMETRY_TOLERANCE:g}"
        )
    return ""
