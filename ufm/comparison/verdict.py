"""`verdict`: which known construction a point of a deep model is, and whether it is optimal.

It is compared with deep neural collapse, every lower point known, and the lower bound.

The minimum of most deep models is unknown. A point can still be ranked. Its value is compared with
that of deep neural collapse, of the explicit points of `ufm.constructions`, of a theorem that
covers the problem, and with the certificate's lower bound. A value below neural collapse is no
failure, and neural collapse proves nothing. Only a value above a known one shows that a point is
not the global minimum.

Deep neural collapse is the best of its kind: a general orthogonal frame for squared error without a
bias (for linear layers with one, the rest of the frame). For balanced classes and losses that are
invariant under shifts it is the construction with orthogonal class means, centred in the last
layer. Otherwise its value is not known in closed form, and nothing is said about it.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm._support import ArgumentError, as_dict, double_precision, on_host, printed, table_lines
from ufm.certificates import Certificate
from ufm.comparison.accuracy import accuracy, class_level
from ufm.geometry import quiet
from ufm.problems import (
    Parameters,
    Problem,
    SquaredError,
    checked_parameters,
    class_samples,
    constructions_for,
    deep_neural_collapse,
    samples_of,
)
from ufm.solving import Solution, certify
from ufm.theory import NoPrediction, Prediction, theorems

__all__ = ["Known", "Verdict", "verdict"]

KNOWN = 1e-12  # relative accuracy of the values that a solution is compared with
NOT_CLOSE = 1e-4  # relative Newton decrement above which a point is not close to a minimum
MANY = 10.0  # from this ratio on, no per cent
SCALE = 1e-6  # relative accuracy of the scales at which they are taken, the root of it
FRAMES = (
    "deep-linear-general-orthogonal-frame",
    "deep-linear-free-bias",
    "deep-linear-penalised-bias",
)
SHALLOW = (
    "squared-error-general-orthogonal-frame",
    "squared-error-free-bias",
    "squared-error-penalised-bias",
)


# Where a point lies among the values that are known. It is no `Status`: a solve can converge to any
# of these.
PointKind = Literal["optimal", "below collapse", "collapse", "lowest known", "not optimal", "open"]


class Known(NamedTuple):
    """A value that is attained: of a construction, or the minimum according to a theorem."""

    name: str
    objective: float


@printed
class Verdict(NamedTuple):
    """Where a point lies.

    Attributes:
        kind: One of
            "optimal": the certificate holds, or a theorem gives this value as the minimum;
            "below collapse": below deep neural collapse, and nothing lower is known;
            "collapse": the value of deep neural collapse, and nothing lower is known;
            "lowest known": nothing lower is known, and no neural collapse to compare with;
            "not optimal": something lower is known, by more than the point's accuracy;
            "open": something lower is known, and the point has not converged well enough to tell
            the two apart.
        objective: The point's objective.
        tolerance: How far below it the minimum nearby can be: the certified gap if the certificate
            holds, otherwise the Newton decrement; infinite if the point is not close to a minimum.
        collapse: Value of deep neural collapse; None if it is not known, or layers are too narrow
            for it.
        known: All values that are attained, the lowest first; collapse among them.
        lower_bound: Lower bound of the minimum; None if no bound exists.
        relative_gap: Relative gap of the certificate.
        zero: Whether everything but the bias is zero.
        geometry_error: Relative distance of the logits (less their mean where the loss does not see
            it) to those of neural collapse; NaN without one.
        theorem: The theorem that covers the problem, or None.
        words: The verdict in a sentence.
    """

    kind: PointKind
    objective: float
    tolerance: float
    collapse: float | None
    known: tuple[Known, ...]
    lower_bound: float | None
    relative_gap: float | None
    zero: bool
    geometry_error: float
    theorem: str | None
    words: str

    @property
    def best(self) -> Known | None:
        """The lowest value known, the point's own aside."""
        return self.known[0] if self.known else None

    @property
    def advantage(self) -> float:
        """Share by which the point lies below neural collapse; NaN where that is not known."""
        return np.nan if self.collapse is None else 1 - self.objective / self.collapse

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return as_dict(self)

    def __str__(self) -> str:
        rows = [("this point", self.objective), *self.known]
        if self.lower_bound is not None:
            rows.append(("lower bound", self.lower_bound))
        rows = sorted(rows, key=lambda row: -row[1])
        cells = [
            (f"  {name}", f"{value:.12g}  {_relation(value, self.objective)}")
            for name, value in rows
        ]
        return "\n".join([f"verdict: {self.words}", *table_lines(cells)])


@on_host
@quiet
def verdict(solution: Solution | Problem, parameters: Any = None) -> Verdict:
    """Name the construction that a solution of a deep model is, and judge whether it is optimal.

    Args:
        solution: From `solve`; or a problem, with `parameters`. The tolerances follow from the
            point's own accuracy.
        parameters: For a problem, anything with `weights`, `features` and `bias`; features have
            shape (K, d) or (N, d). A certificate is made for them, for which problems of one layer
            may be solved.

    Raises:
        ValueError: If it is neither a solution nor a problem with parameters of its shapes.
    """
    problem, found, objective, certificate = _point(solution, parameters)
    point = class_level(problem, found)
    measured = accuracy(problem, point)
    holds = certificate is not None and certificate.holds
    decrement = float(measured.decrement)
    tolerance = decrement if 0 <= decrement <= NOT_CLOSE * abs(objective) else np.inf
    if holds and certificate is not None:
        tolerance = max(certificate.gap, 0.0)
    tolerance += KNOWN * abs(objective)
    collapse, prediction = _collapse(problem), _prediction(problem)
    known = _attained(problem, collapse, prediction)
    error, same = np.nan, False
    if collapse is not None:
        error = _geometry_error(problem, np.asarray(measured.values.logits), collapse.logits)
        size = max(float(np.linalg.norm(collapse.logits)), KNOWN)
        same = bool(error <= float(measured.spread.logits) * np.sqrt(tolerance) / size + SCALE)
    outcome = Verdict(
        kind=_kind(objective, tolerance, collapse, known, holds, prediction),
        objective=objective,
        tolerance=tolerance,
        collapse=None if collapse is None else collapse.objective,
        known=tuple(known),
        lower_bound=None if certificate is None else certificate.lower_bound,
        relative_gap=None if certificate is None else float(certificate.relative_gap),
        zero=_is_zero(problem, point, objective, tolerance),
        geometry_error=error,
        theorem=None if prediction is None else prediction.theorem,
        words="",
    )
    return outcome._replace(words=_words(outcome, holds, same))


def _point(solution: Any, parameters: Any) -> tuple[Problem, Parameters, float, Certificate | None]:
    """Return the problem, the point, its objective and its certificate."""
    if isinstance(solution, Solution):
        if parameters is not None:
            raise ArgumentError(
                "parameters", "go with a problem; a solution has its own, so leave them out"
            )
        found, objective = solution.parameters, solution.objective
        return solution.problem, found, objective, solution.certificate
    if not isinstance(solution, Problem) or parameters is None:
        raise ArgumentError(
            "solution",
            f"must be a Solution, or a Problem with `parameters`; got {type(solution).__name__}",
        )
    rows = solution.num_classes, float(solution.num_samples)
    found = checked_parameters(solution, parameters, "parameters", rows)
    return solution, found, _objective(solution, found), certify(solution, found)


def _attained(
    problem: Problem, collapse: "_Collapse | None", prediction: Prediction | None
) -> list[Known]:
    """Return all values that are known to be attained, the lowest first."""
    known = [Known(one.name, one.objective) for one in constructions_for(problem)]
    plain = [one for one in known if one.name == "deep neural collapse"]
    known = [one for one in known if one not in plain]
    if collapse is not None:
        known.append(Known(collapse.name, collapse.objective))
    else:  # attained, but not the best of its kind
        name = "orthogonal class means of equal norms, no bias"
        known.extend(one._replace(name=name) for one in plain)
    if prediction is not None:
        known.append(Known(f"minimum by {prediction.theorem}", float(prediction.objective)))
    return sorted(known, key=lambda one: one.objective)


class _Collapse(NamedTuple):
    name: str
    objective: float
    logits: np.ndarray


def _collapse(problem: Problem) -> _Collapse | None:
    """Return deep neural collapse where its best value is known."""
    linear = dataclasses.replace(problem, activation="linear")
    if type(problem.loss) is SquaredError and min(problem.layer_dims) >= problem.num_classes:
        # Orthogonal frames can be turned into the non-negative orthant, where a ReLU changes
        # nothing; centred ones cannot.
        names = [FRAMES[0], SHALLOW[0]] if problem.activation == "relu" else [*FRAMES, *SHALLOW]
        for name in names:
            if theorems[name].applies(linear):
                prediction = theorems[name].predict(linear)
                assert prediction.logits is not None
                return _Collapse(
                    "deep neural collapse",
                    float(prediction.objective),
                    np.asarray(prediction.logits),
                )
        return None
    counts = np.asarray(problem.class_counts)
    if not (problem.loss.shift_invariant and np.all(counts == counts[0])):
        return None
    try:
        construction = deep_neural_collapse(problem)
    except ValueError:
        return None
    return _Collapse(
        construction.name, construction.objective, _logits(problem, construction.parameters)
    )


def _prediction(problem: Problem) -> Prediction | None:
    try:
        return theorems.predict(problem)
    except NoPrediction:
        return None


def _kind(
    objective: float,
    tolerance: float,
    collapse: _Collapse | None,
    known: list[Known],
    holds: bool,
    prediction: Prediction | None,
) -> PointKind:
    lowest = known[0].objective if known else np.inf
    if not objective <= lowest * (1 + KNOWN) + (tolerance if np.isfinite(tolerance) else 0.0):
        return "not optimal" if np.isfinite(tolerance) else "open"
    if holds or (prediction is not None and np.isfinite(tolerance)):
        return "optimal"
    if collapse is None:
        return "lowest known"
    return "below collapse" if objective < collapse.objective * (1 - KNOWN) else "collapse"


def _words(found: Verdict, holds: bool, same: bool) -> str:
    """Return the sentence: what the point is, and whether it can be the minimum."""
    what, best = _what(found, same), found.best
    if found.kind in ("not optimal", "open") and best is not None:
        ending = (
            "not the global minimum"
            if found.kind == "not optimal"
            else "the point has not converged"
        )
        if found.collapse == best.objective and not found.zero:
            return f"{what}, the best construction known: {ending}"
        distance = _above(found.objective, best.objective)
        above = f"lies {distance} the best construction known ({best.name})"
        return f"{what}; {above}: {ending}" if what else f"{above}: {ending}"
    if found.kind == "optimal":
        proof = f"certified gap {found.relative_gap:.1e}" if holds else f"by {found.theorem}"
        return f"{what} (optimal: {proof})" if what else f"optimal: {proof}"
    room = "no lower bound is known"
    if found.lower_bound is not None:
        share = _percent(1 - found.lower_bound / found.objective)
        room = f"the minimum is certified to lie at most {share} lower"
    caution = "" if np.isfinite(found.tolerance) else "; the point has not converged"
    return f"{what + ', and ' if what else ''}nothing lower is known ({room}){caution}"


def _what(found: Verdict, same: bool) -> str:
    if found.zero:
        return "everything has collapsed to zero"
    if found.collapse is None:
        return ""
    if found.objective < found.collapse * (1 - KNOWN):
        return f"beats neural collapse by {_percent(found.advantage)}"
    if found.objective <= found.collapse * (1 + KNOWN) + (
        found.tolerance if np.isfinite(found.tolerance) else 0.0
    ):
        return (
            "is neural collapse"
            if same
            else "has the value of neural collapse, in another geometry"
        )
    return f"lies {_above(found.objective, found.collapse)} neural collapse"


def _above(value: float, other: float) -> str:
    ratio = value / other
    return f"{_percent(ratio - 1)} above" if ratio < MANY else f"at {ratio:.3g} times"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _relation(value: float, objective: float) -> str:
    if abs(value - objective) <= KNOWN * abs(objective):
        return ""
    if value < objective:
        return f"{_percent(1 - value / objective)} below this point"
    return f"{_above(value, objective)} this point"


def _objective(problem: Problem, parameters: Parameters) -> float:
    samples = samples_of(problem, len(parameters.features))
    with double_precision():
        return float(problem.objective(parameters, samples))


def _logits(problem: Problem, parameters: Parameters) -> np.ndarray:
    with double_precision():
        return np.asarray(problem.logits(parameters))


def _is_zero(problem: Problem, parameters: Parameters, objective: float, tolerance: float) -> bool:
    """Return whether all logits but the bias are zero, to the point's accuracy."""
    K = problem.num_classes
    bias = np.zeros((1, K)) if parameters.bias is None else np.asarray(parameters.bias)[None, :]
    with double_precision():
        samples = class_samples(problem, jnp.float64)
        left = float(problem.data_term(jnp.asarray(np.repeat(bias, K, axis=0)), samples))
    product = _logits(problem, parameters) - bias
    small = float(np.linalg.norm(product)) <= SCALE
    return (
        small
        and abs(objective - left) <= (tolerance if np.isfinite(tolerance) else 0.0) + SCALE * left
    )


def _geometry_error(problem: Problem, found: np.ndarray, collapsed: np.ndarray) -> float:
    if problem.loss.shift_invariant:
        found, collapsed = (
            matrix - np.mean(matrix, axis=1, keepdims=True) for matrix in (found, collapsed)
        )
    return float(np.linalg.norm(found - collapsed) / max(float(np.linalg.norm(collapsed)), KNOWN))
