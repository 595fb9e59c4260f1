"""`compare`: a solution and a prediction, quantity by quantity, to the solution's accuracy."""

import html
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from ufm._support import (
    ArgumentError,
    as_dict,
    by_name,
    double_precision,
    html_table,
    on_host,
    printed,
    table_lines,
    to_numpy,
)
from ufm.certificates import Certificate
from ufm.comparison.accuracy import Quantities, accuracy, class_level, quantities
from ufm.comparison.group_accuracy import group_accuracy
from ufm.geometry import quiet
from ufm.metrics import logit_rows
from ufm.problems import (
    Blocks,
    GroupProblem,
    Problem,
    check_dense,
    grouped,
    times_of,
)
from ufm.solving import Solution, choose_resolution, solve
from ufm.theory import NoPrediction, Prediction, theorems

__all__ = ["Comparison", "Row", "compare", "rank_row"]

AGREES: Final = "agrees"
DIFFERS: Final = "differs"
UNDECIDED: Final = "undecided"
MEASURED: Final = "measured"
# What is said of one quantity, within the accuracy of the solution. It is no `Status`: a converged
# solve can differ from a prediction.
RowVerdict = Literal["agrees", "differs", "undecided", "measured"]
NO_THEOREM = "no theorem"
AT_MOST = "objective, at most"
UNRESOLVED = 5e-3  # a tolerance above this cannot tell a constant from one that is 1 % off
EPSILON = float(np.finfo(np.float64).eps)
VANISHING = 1e-100


class Row(NamedTuple):
    """One quantity.

    Attributes:
        quantity: Its name.
        predicted: The number, or the Frobenius norm of the array.
        found: The same of the solution.
        error: Relative error.
        tolerance: Relative tolerance.
        verdict: "agrees" (error within the tolerance), "differs", "undecided" if the tolerance is
            so large that agreement would mean nothing, or "measured" where nothing is predicted.
            Predicted number and error are then NaN.
    """

    quantity: str
    predicted: float
    found: float
    error: float
    tolerance: float
    verdict: RowVerdict

    @property
    def passed(self) -> bool:
        """Whether the quantity agrees."""
        return self.verdict == AGREES


@printed
class Comparison(NamedTuple):
    """A solution compared with a theorem.

    Attributes:
        theorem: The name of the theorem. Where none covers the problem it is "no theorem", and all
            but the optimality gap is "measured": nothing is confirmed.
        basis: Where the tolerances come from.
        rows: One row per quantity.
    """

    theorem: str
    basis: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every row agrees with a theorem."""
        return all(row.passed for row in self.rows)

    @property
    def _verdict(self) -> str:
        if self.theorem == NO_THEOREM:
            return "nothing predicted, nothing confirmed"
        return "all agree" if self.passed else "not confirmed"

    @property
    def objective_error(self) -> float:
        """Relative error of the objective."""
        return next(row.error for row in self.rows if row.quantity in ("objective", AT_MOST))

    @property
    def geometry_error(self) -> float:
        """The largest relative error of anything but the objective and the optimality gap."""
        others = ("objective", AT_MOST, "optimality gap")
        return max((row.error for row in self.rows if row.quantity not in others), default=0.0)

    def __getitem__(self, quantity: Any) -> Any:
        """Return the row of a quantity by its name (or a field by its index, as tuples do)."""
        return by_name(self, "quantity", quantity, {row.quantity: row for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        rows = [as_dict(row) | {"passed": row.passed} for row in self.rows]
        return {"theorem": self.theorem, "basis": self.basis, "passed": self.passed, "rows": rows}

    def _cells(self) -> list[tuple[str, ...]]:
        head: tuple[str, ...] = ("quantity", "predicted", "found", "error", "tolerance", "verdict")
        return [head] + [
            (
                r.quantity,
                f"{r.predicted:.10g}",
                f"{r.found:.10g}",
                f"{r.error:.1e}",
                f"{r.tolerance:.1e}",
                r.verdict,
            )
            for r in self.rows
        ]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.theorem}: {self._verdict} (tolerances from {self.basis})",
                *table_lines(self._cells()),
            ]
        )

    def _repr_html_(self) -> str:
        return (
            f"<p>{html.escape(self.theorem)}: <b>{self._verdict}</b> "
            f"(tolerances from {html.escape(self.basis)})</p>" + html_table(self._cells())
        )


@on_host
@quiet
def compare(solution: Solution | Problem, prediction: Prediction | None = None) -> Comparison:
    """Hold a solution against a prediction.

    Everything compared is invariant under rotations of feature space. Errors are relative, in the
    Frobenius norm. The tolerance of a quantity is the furthest it can be from its value at the
    minimiser when the objective is within the certified gap of the optimal value
    (`ufm.comparison.accuracy`), never a guess. Where no certificate exists for the model, the
    Newton decrement takes the place of the gap. Where one exists, a row asks that it hold.

    Where classes are interchangeable, the cost does not depend on their number: a solution over
    groups is compared with the prediction block by block, also with one of
    `ufm.theorems.predict_groups`.

    Args:
        solution: From `solve`; or a problem, which is solved.
        prediction: From `predict`, for the same problem; if not given, that of the first theorem
            of the atlas that covers the problem.

    Returns:
        One row for each quantity that the theorem determines. For an upper bound it is the
        objective only, which agrees if it is not above the bound. Where no theorem covers the
        problem, one row for each quantity measured.

    Raises:
        ValueError: If the prediction is for another number of classes or layers, or a batch of
            them.
    """
    if isinstance(solution, Problem):
        solution = solve(solution)
    if prediction is None:
        try:
            prediction = _prediction_for(solution)
        except NoPrediction:
            return _without_prediction(solution)
    _check_shapes(solution.problem, prediction)
    measured = _measured(solution)
    delta, basis, judged = _accuracy_of(solution, measured.decrement)
    rows = [] if judged is None else [_gap_row(judged)]
    rows += _rows(prediction, solution.objective, measured, delta)
    return Comparison(prediction.theorem, basis, tuple(rows))


def _prediction_for(solution: Solution) -> Prediction:
    """Return the prediction of the first theorem that covers the problem, by groups if solved so.

    Raises:
        NoPrediction: If none does.
    """
    if solution.resolution == "groups" and solution.problem.feature_cone.rotates:
        return theorems.predict_groups(solution.problem, solution.groups)
    return theorems.predict(solution.problem)


def _without_prediction(solution: Solution) -> Comparison:
    """Return what was measured of a solution, and how accurate each quantity is."""
    measured = _measured(solution)
    delta, basis, judged = _accuracy_of(solution, measured.decrement)
    rows = [] if judged is None else [_gap_row(judged)]
    found: Any = measured.values
    numbers = [("objective", abs(solution.objective), delta)]
    for label, name in (
        ("logits", "logits"),
        ("weight gram", "weight_gram"),
        ("feature gram", "feature_gram"),
        ("layer norms (squared)", "layer_norms"),
        *([("bias", "bias")] if solution.problem.use_bias else []),
    ):
        norm = float(np.linalg.norm(_flat(getattr(found, name))))
        numbers.append((label, norm, np.sqrt(delta) * float(getattr(measured.spread, name))))
    rows += [
        Row(label, np.nan, value, np.nan, spread / value if value > 0 else np.nan, MEASURED)
        for label, value, spread in numbers
    ]
    return Comparison(NO_THEOREM, basis, tuple(rows))


def _flat(matrix: Any) -> np.ndarray:
    """Return the entries of an array, or numbers of the same norm."""
    return np.asarray(matrix.flattened() if isinstance(matrix, Blocks) else np.ravel(matrix))


def _rows(
    prediction: Prediction, objective: float, measured: "_Measured", delta: float
) -> list[Row]:
    """Return the rows of everything that a theorem determines.

    Args:
        prediction: What it says.
        objective: Found.
        measured: What was found, and how far each quantity can move for a unit of objective.
        delta: How far above the minimum the objective can be.
    """
    predicted_value = float(prediction.objective)
    if prediction.bound == "upper":
        return [_at_most_row(predicted_value, objective, delta)]
    rows = [_row("objective", predicted_value, objective, delta)]
    reach = np.sqrt(delta)
    spread: Any = Quantities(*(reach * float(v) if v > 0 else 0.0 for v in measured.spread))  # type: ignore[arg-type]
    found, groups = measured.values, measured.groups
    for name in ("logits", "weight_gram", "feature_gram"):
        predicted = getattr(prediction, name)
        if predicted is not None:
            pair = getattr(found, name), getattr(spread, name)
            rows.append(_matrix_row(name.replace("_", " "), predicted, *pair, groups))
    for name, gram in (("weight norms", "weight_gram"), ("feature norms", "feature_gram")):
        predicted = getattr(prediction, gram)
        if predicted is not None:
            pair = getattr(found, gram), getattr(spread, gram)
            rows.append(_norms_row(name, predicted, *pair, groups))
    rows.append(
        _row("layer norms (squared)", prediction.layer_norms, found.layer_norms, spread.layer_norms)
    )
    rows.extend(_alignment_row(prediction, found, spread, groups))
    rows.extend(_margin_row(prediction, found, spread))
    if prediction.bias is not None:
        rows.append(_row("bias", prediction.bias, found.bias, spread.bias))
    rows.extend(_spectrum_rows(prediction, found, spread))
    return rows


def _accuracy_of(solution: Solution, decrement: float) -> tuple[float, str, Certificate | None]:
    """Return how far above the minimum a solution can be, why, and the certificate to judge."""
    certificate = solution.certificate
    rounding = 64 * EPSILON * abs(solution.objective)
    if certificate is not None and (certificate.holds or certificate.tight):
        return max(certificate.gap, 0.0) + rounding, "the certified gap", certificate
    # The gap is the bound's, not the solution's: the price of the dimension, or the looseness of a
    # bracket.
    why = (
        "no certificate exists for this model"
        if certificate is None
        else "the certificate is not tight"
    )
    return float(decrement) + rounding, f"the Newton decrement: {why}", None


def _norms_row(name: str, predicted: Any, found: Any, spread: float, groups: Any) -> Row:
    """Return the row of the norms of vectors, from their Gram matrices."""
    norms, others = (np.sqrt(np.maximum(_diagonal(gram, groups), 0)) for gram in (predicted, found))
    # d||w|| = d||w||^2 / (2 ||w||), and the square root of the tolerance for a vector that
    # vanishes.
    smallest, vanishing = float(np.min(norms)), np.sqrt(np.sqrt(norms.size) * spread)
    of_norms = spread / smallest if smallest > 0 else vanishing
    return _row(name, norms, others, min(of_norms, vanishing))


def _spectrum_rows(prediction: Prediction, found: Any, spread: Any) -> tuple[Row, Row]:
    """Return the rows of singular values and rank."""
    singular = _singular_values(found.weighted_logits)
    reach = spread.weighted_logits
    if prediction.logits is None:
        # The logits move freely within the family of minimisers; their spectrum only as much as
        # their norm does, mode by mode.
        norm = max(float(np.linalg.norm(singular)), EPSILON)
        reach = np.sqrt(singular.size) * spread.logits_norm / (2 * norm)
    values = _row("singular values", prediction.singular_values, singular, reach)
    return values, rank_row(prediction, singular, reach)


class _Measured(NamedTuple):
    """What is compared: values, and how far each can move.

    K x K matrices are `Blocks` if groups are given.
    """

    values: Any
    spread: Quantities
    decrement: float
    groups: np.ndarray | None


def _measured(solution: Solution) -> _Measured:
    """Return what is compared of a solution, over groups if classes are interchangeable."""
    problem = solution.problem
    if solution.resolution == "groups" and problem.feature_cone.rotates:
        data, groups = grouped(problem)
        reach = group_accuracy(data, solution.blocks.logits, solution.group_bias)
        return _Measured(_group_values(solution, data), reach.spread, reach.decrement, groups)
    check_dense(max(problem.num_rows, problem.num_outputs))
    parameters = class_level(problem, solution.parameters)
    certificate = solution.certificate
    if certificate is not None and certificate.holds and _by_groups(problem):
        # A certified point is within its gap of the minimiser, which is symmetric: this reaches as
        # far as the point's average does.
        data, groups = grouped(problem)
        with double_precision():
            values = to_numpy(quantities(problem, parameters))
        logits = Blocks.average(np.asarray(values.logits - values.bias[None, :]), groups)
        bias: Any = (
            None
            if parameters.bias is None
            else np.bincount(groups, values.bias) / np.bincount(groups)
        )
        reach = group_accuracy(data, logits, bias)
        return _Measured(values, reach.spread, reach.decrement, None)
    explicit = accuracy(problem, parameters)
    return _Measured(explicit.values, explicit.spread, explicit.decrement, None)


def _by_groups(problem: Problem) -> bool:
    """Whether a problem has a minimiser over groups, few enough for that to be less work."""
    return problem.feature_cone.rotates and choose_resolution(problem) == "groups"


def _group_values(solution: Solution, data: GroupProblem) -> Quantities:
    """Return the quantities of a solution over groups; vectors over classes are explicit."""
    plain = solution.blocks.logits
    sizes, counts = np.asarray(data.sizes), np.asarray(data.counts)
    bias = np.zeros_like(sizes) if solution.group_bias is None else np.asarray(solution.group_bias)
    roots = np.sqrt(sizes)
    logits = Blocks(plain.within, plain.between + roots[:, None] * (roots * bias)[None, :], sizes)  # type: ignore[arg-type]
    weighted = plain.scaled_rows(np.sqrt(counts))
    weights, features = solution.blocks.weight_gram, solution.blocks.feature_gram
    norms = [
        np.sum(sizes * np.asarray(weights.own)),
        np.sum(sizes * counts * np.asarray(features.own)),
    ]
    return Quantities(
        logits,  # type: ignore[arg-type]
        weighted,  # type: ignore[arg-type]
        weights,  # type: ignore[arg-type]
        features,  # type: ignore[arg-type]
        bias[solution.groups],
        np.array(norms),  # type: ignore[arg-type]
        np.array([np.sum(weighted.flattened() ** 2)]),  # type: ignore[arg-type]
    )


def _diagonal(matrix: Any, groups: np.ndarray | None) -> np.ndarray:
    """Return the diagonal, (K,)."""
    return np.asarray(matrix.own)[groups] if isinstance(matrix, Blocks) else np.diagonal(matrix)


def _singular_values(matrix: Any) -> np.ndarray:
    """Return the singular values, (min(R, K),), in descending order."""
    if not isinstance(matrix, Blocks):
        return np.linalg.svd(matrix, compute_uv=False)
    values, times = matrix.singular_values()
    return np.repeat(values, np.asarray(times).round().astype(int))


def _matrix_row(
    quantity: str, predicted: Any, found: Any, spread: float, groups: np.ndarray | None
) -> Row:
    """Return the row of a K x K matrix.

    Blocks are compared by their numbers, which have the matrix's norm.
    """
    if not isinstance(found, Blocks):
        return _row(quantity, predicted, found, spread)
    num_entries = float(np.sum(found.sizes)) ** 2
    if isinstance(predicted, Blocks):
        return _row(quantity, predicted.flattened(), found.flattened(), spread, num_entries)
    near = Blocks.average(predicted, groups)  # type: ignore[arg-type]
    rest = np.linalg.norm(
        predicted - near.dense(groups)
    )  # what of the prediction tells classes of a group apart
    ours, theirs = (np.append(one.flattened(), part) for one, part in ((found, 0.0), (near, rest)))
    return _row(quantity, theirs, ours, spread, num_entries)


def _check_shapes(problem: Problem, prediction: Prediction) -> None:
    R, K = problem.num_rows, problem.num_outputs
    shapes = {
        "objective": (),
        "singular_values": (min(R, K),),
        "layer_norms": (problem.num_layers + 1,),
        "logits": (R, K),
        "weight_gram": (K, K),
        "feature_gram": (R, R),
        "bias": (K,),
        "rank": (),
    }
    words = f"rows, {K} outputs" if problem.row_words != "class" else "classes"
    for name, shape in shapes.items():
        value = getattr(prediction, name)
        if isinstance(value, Blocks) and sum(np.asarray(value.sizes)) == K:
            continue
        if value is not None and np.shape(value) != shape:
            raise ArgumentError(
                f"prediction.{name}",
                f"has shape {np.shape(value)}, not {shape} as for the solution's {R} "
                f"{words} and {problem.num_layers} layers; predict the same problem",
            )


def _row(
    quantity: str, predicted: Any, found: Any, spread: float, num_entries: float | None = None
) -> Row:
    predicted, found = np.asarray(predicted, np.float64), np.asarray(found, np.float64)
    norm = float(np.linalg.norm(predicted))
    # A prediction of exactly zero has no scale of its own; entries of size one do instead.
    size = max(predicted.size, 1) if num_entries is None else num_entries
    scale = norm if norm > 0 else float(np.sqrt(size))
    error = float(np.linalg.norm(found - predicted)) / scale
    # Evaluating an array of m entries rounds it by about sqrt(m) units in the last place.
    tolerance = float(spread) / scale + 64 * EPSILON * np.sqrt(size)
    shown = (
        (float(predicted), float(found))
        if predicted.ndim == 0
        else (norm, float(np.linalg.norm(found)))
    )
    return Row(quantity, *shown, error, tolerance, _verdict(error, tolerance))


def _at_most_row(bound: float, found: float, spread: float) -> Row:
    """Return the row of an objective that must not lie above a bound.

    The error is by how much it does.
    """
    row = _row(AT_MOST, bound, found, spread)
    return row._replace(error=0.0, verdict=AGREES) if found <= bound else row


def _verdict(error: float, tolerance: float) -> RowVerdict:
    if not np.isfinite(error):
        return DIFFERS
    if error > tolerance:
        return DIFFERS
    return AGREES if tolerance <= UNRESOLVED else UNDECIDED


def _gap_row(certificate: Certificate) -> Row:
    gap = float(certificate.relative_gap)
    return Row(
        "optimality gap",
        0.0,
        gap,
        gap,
        certificate.tolerance,
        AGREES if certificate.holds else DIFFERS,
    )


def _alignment_row(
    prediction: Prediction, found: Any, spread: Any, groups: np.ndarray | None
) -> list[Row]:
    """Return the row of cos(w_k, mu_k) over the classes where the theorem determines it."""
    predicted = _alignment(prediction, groups)
    if predicted is None:
        return []
    known = np.isfinite(predicted)
    if not np.any(known):
        return []
    weight_norms, feature_norms = (
        np.sqrt(np.maximum(_diagonal(gram, groups), 0))[known]
        for gram in (found.weight_gram, found.feature_gram)
    )
    lengths = np.maximum(weight_norms * feature_norms, np.finfo(float).tiny)
    cosines = (_diagonal(found.logits, groups) - found.bias)[known] / lengths
    smallest_weight, smallest_feature = float(np.min(weight_norms)), float(np.min(feature_norms))
    if min(smallest_weight, smallest_feature) < VANISHING:
        moved = np.inf  # a vector of length zero has no direction
    else:
        # The cosine z / (|w| |h|) moves with the logit and with both norms.
        moved = (
            spread.logits / float(np.min(lengths))
            + spread.weight_gram / (2 * smallest_weight**2)
            + spread.feature_gram / (2 * smallest_feature**2)
        )
    return [_row("alignment cos(w, mu)", predicted[known], cosines, moved)]


def _alignment(prediction: Prediction, groups: np.ndarray | None) -> np.ndarray | None:
    """Return `prediction.alignment`, of blocks too."""
    matrices = prediction.logits, prediction.weight_gram, prediction.feature_gram
    if not any(isinstance(matrix, Blocks) for matrix in matrices):
        return prediction.alignment  # type: ignore[return-value]
    if any(matrix is None for matrix in matrices):
        return None
    own, weights, features = (_diagonal(matrix, groups) for matrix in matrices)
    lengths = np.sqrt(np.maximum(weights, 0)) * np.sqrt(np.maximum(features, 0))
    own = own if prediction.bias is None else own - np.asarray(prediction.bias)
    return np.where(lengths > 0, own / np.where(lengths > 0, lengths, 1), np.nan)


def _margin_row(prediction: Prediction, found: Any, spread: Any) -> list[Row]:
    """Return the row of the margin, the logit of the own class less that of another.

    It is the same for all pairs of classes if a theorem names one.
    """
    margin = prediction.constants.get("margin")
    if margin is None:
        return []
    K = len(found.bias)
    if isinstance(found.logits, Blocks):
        # One gap for each pair of groups, as often as there are such pairs.
        own, others = logit_rows(found.logits, None)
        pairs = found.logits.sizes[:, None] * np.maximum(times_of(found.logits.sizes), 0)
        gaps = np.where(pairs > 0, own[:, None] - np.where(pairs > 0, others, 0), 0)
        mean = float(np.sum(pairs * gaps)) / (K * (K - 1))
        gaps, predicted = np.sqrt(pairs) * gaps, np.sqrt(pairs) * np.asarray(margin)
    else:
        gaps = np.diagonal(found.logits)[:, None] - found.logits
        predicted = np.asarray(margin) * (1 - np.eye(K))
        mean = float(np.sum(gaps)) / (K * (K - 1))
    row = _row("margin", predicted, gaps, np.sqrt(2 * K) * spread.logits, K**2)
    return [row._replace(predicted=float(margin), found=mean)]


def rank_row(prediction: Prediction, singular: np.ndarray, spread: float) -> Row:
    """Return the row of the rank: the number of singular values above accuracy and rounding."""
    assert prediction.rank is not None
    assert prediction.singular_values is not None
    # As in `_row`: where nothing is predicted to be left, singular values of one are the scale.
    # Deep models leave tiny ones of full rank there.
    top = float(np.max(prediction.singular_values))
    cutoff = spread + 64 * EPSILON * singular.size * max(
        float(singular[0]), top if top > 0 else 1.0
    )
    predicted, found = int(prediction.rank), int(np.sum(singular > cutoff))
    nonzero = np.asarray(prediction.singular_values)[:predicted]
    resolved = np.isfinite(cutoff) and (nonzero.size == 0 or float(np.min(nonzero)) > 2 * cutoff)
    verdict: RowVerdict = (AGREES if predicted == found else DIFFERS) if resolved else UNDECIDED
    return Row("rank", predicted, found, float(abs(predicted - found)), 0.0, verdict)
