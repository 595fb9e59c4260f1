r"""Cross-entropy with as many target rows as labels, symmetric: soft-thresholded probabilities.

    (1/N) sum_k n CE(z_k, y_k) + (lambda_W/2) ||W||^2 + (lambda_H/2) n sum_k ||h_k||^2 (+
    (lambda_b/2) ||b||^2),

K rows of n samples whose matrix Y is symmetric with sums of one: label smoothing, cyclic soft
labels, hierarchies. With

    c = K sqrt(n lambda_W lambda_H),    P = I - J/K,

logits Z are optimal where softmax(Z) = Y - c Lambda, Lambda in the subdifferential of the nuclear
norm at Z. Where Z is symmetric and positive on the vectors of sum zero, Lambda = P. Where a mode of
Z vanishes, its part of Lambda is in [-1, 1].
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm._support import ArgumentError, is_concrete, printed
from ufm.problems import CrossEntropy, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.optimal_factors import (
    Frame,
    Letters,
    feature_share,
    letters,
    predicted,
    weight_share,
)
from ufm.theory.squared_error_modes import spectrum
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS", "HierarchyThresholds", "hierarchy_thresholds"]

EQUAL = 1e-12  # differences of probabilities up to which they count as equal
NEGATIVE = 1e-11  # of eigenvalues of logits, below which they count as such


def _square(problem: Problem) -> tuple[Condition, ...]:
    R, K = problem.num_rows, problem.num_outputs
    return (
        needs.target_rows(problem),
        needs.several_labels(problem),
        *needs.one_layer(problem, CrossEntropy),
        needs.signed_features(problem),
        needs.balanced(problem),
        needs.proportional_weights(problem),
        needs.centred_dims(problem),
        Condition("as many rows as labels", R == K, f"R = {R}, K = {K}"),
    )


def _ratio(numbers: Letters) -> Array:
    """Return c = K sqrt(n) tau."""
    return numbers.num_classes * numbers.xp.sqrt(numbers.mean_count) * numbers.decay


def _prediction(
    name: str, problem: Problem, probabilities: Array, constants: dict[str, Any]
) -> Prediction:
    """Return the prediction of symmetric logits P log(softmax) with these probabilities."""
    numbers = letters(problem)
    xp, K, n = numbers.xp, numbers.num_classes, numbers.mean_count
    targets = problem.target_rows(n.dtype, xp)
    logs = xp.log(probabilities)
    logits = logs - xp.mean(logs, axis=1, keepdims=True)
    found = spectrum(0.5 * (logits + logits.T) * xp.sqrt(n))

    def alive(values: Any) -> Any:
        # The vector of ones has the eigenvalue zero, and so have modes that vanish.
        floor = NEGATIVE * (xp.max(xp.abs(found.eigenvalues)) + xp.sqrt(n))
        return xp.where(values > floor, values, 0)

    values = alive(found.eigenvalues)
    kept = found.function(alive) / xp.sqrt(n)  # exactly zero where nothing is left
    entropies = -xp.sum(xp.where(targets > 0, targets * logs, 0)) / K
    return predicted(
        name,
        numbers,
        objective=entropies + numbers.decay * xp.sum(values),
        values=values,
        frame=Frame(
            found.function(lambda x: weight_share(numbers, alive(x))),
            found.function(lambda x: feature_share(numbers, alive(x))) / n,
            kept,
        ),
        bias=xp.zeros((K,), n.dtype) if problem.use_bias else None,
        constants=constants,
    )


# Any symmetric matrix of targets


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    square = _square(problem)
    if any(condition.holds is False for condition in square):
        return square
    numbers = letters(problem)
    xp = numbers.xp
    targets = problem.target_rows(numbers.counts.dtype, xp)
    uneven = xp.maximum(
        xp.max(xp.abs(targets - targets.T)), xp.max(xp.abs(xp.sum(targets, axis=1) - 1))
    )
    off = f"off by {needs.number(uneven)}"
    symmetric = Condition("a symmetric matrix of targets with sums of one", uneven <= EQUAL, off)
    probabilities = _thresholded(numbers, targets)
    least = xp.min(probabilities)
    logs = xp.log(xp.where(probabilities > 0, probabilities, 1))
    spread = xp.max(xp.abs(xp.mean(logs, axis=1) - xp.mean(logs)))
    centred = logs - xp.mean(logs, axis=1, keepdims=True)
    lowest = xp.linalg.eigvalsh(0.5 * (centred + centred.T))[0]
    size = xp.max(xp.abs(logs))
    return (
        *square,
        symmetric,
        Condition("Y - c P > 0", least > 0, f"a least entry of {needs.number(least)}"),
        Condition(
            "equal row sums of log(Y - c P)",
            spread <= NEGATIVE * (1 + size),
            f"differences of {needs.number(spread)}",
        ),
        Condition(
            "P log(Y - c P) P with no negative eigenvalue",
            lowest >= -NEGATIVE * (1 + size),
            f"a lowest of {needs.number(lowest)}",
        ),
    )


def _thresholded(numbers: Letters, targets: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Return Y - c P, or J/K where c is at least ||Y - J/K||_2."""
    xp, K, c = numbers.xp, numbers.num_classes, _ratio(numbers)
    left = targets - c * (xp.eye(K, dtype=targets.dtype) - 1 / K)
    return xp.where(c < _largest(numbers, targets), left, 1 / K)


def _largest(numbers: Letters, targets: Float[Array, "K K"]) -> Float[Array, ""]:
    """Return ||Y - J/K||_2, (), from which on Z = 0."""
    xp = numbers.xp
    centred = targets - 1 / numbers.num_classes
    return xp.max(xp.abs(xp.linalg.eigvalsh(0.5 * (centred + centred.T))))


def _formula(problem: Problem) -> Prediction:
    r"""Return softmax(Z) = Y - c P, Z = P log(Y - c P); zero where c is at least `all`.

        objective = (1/K) sum_k CE(z_k, y_k) + tau sqrt(n) tr Z.

    W W^T and H H^T are multiples of Z.
    """
    numbers = letters(problem)
    targets = problem.target_rows(numbers.counts.dtype, numbers.xp)
    return _prediction(
        "doubly-stochastic-targets",
        problem,
        _thresholded(numbers, targets),
        {"c": _ratio(numbers), "all": _largest(numbers, targets)},
    )


# Hierarchies


class _Hierarchy(NamedTuple):
    """A balanced hierarchy of labels.

    Attributes:
        own: y of the own class.
        sibling: y of every other class of the same super-class.
        other: y of every class of another super-class.
        num_super: a.
        num_sub: b, at least 2.
        same: Whether two labels have the same super-class, (K, K).
    """

    own: float
    sibling: float
    other: float
    num_super: int
    num_sub: int
    same: np.ndarray


def _hierarchy(rows: np.ndarray) -> _Hierarchy | str:
    """Return the hierarchy of a matrix of targets, or what is against one."""
    K = len(rows)
    if rows.shape != (K, K) or K < 4:
        return f"{rows.shape[0]} rows of {rows.shape[1]} labels"
    values, times = np.unique(np.round(np.delete(rows[0], 0), 12), return_counts=True)
    if len(values) != 2:
        return f"{len(values)} different targets besides the own one"
    # Of a >= 2 super-classes, the classes of others are more than the siblings.
    common = int(np.argmax(times))
    b = int(times[1 - common]) + 1
    other, sibling = (
        float(rows[0, 1:][np.argmin(np.abs(rows[0, 1:] - v))])
        for v in (values[common], values[1 - common])
    )
    same = np.abs(rows - other) > np.abs(rows - sibling)
    same |= np.eye(K, dtype=bool)
    expected = np.where(same, sibling, other)
    np.fill_diagonal(expected, rows[0, 0])
    blocks = same.astype(float)
    if K % b or np.any(blocks @ blocks != b * blocks) or np.max(np.abs(rows - expected)) > EQUAL:
        return "no blocks of equal size"
    return _Hierarchy(float(rows[0, 0]), sibling, other, K // b, b, same)


def _hierarchy_conditions(problem: Problem) -> tuple[Condition, ...]:
    square = _square(problem)
    if any(condition.holds is False for condition in square):
        return square
    rows = np.asarray(problem.target_rows(np.float64, np)) if _stated(problem) else None
    found = "traced rows" if rows is None else _hierarchy(rows)
    statement = "rows of a balanced hierarchy: own, sibling and other target, of sum one"
    if isinstance(found, str):
        return (*square, Condition(statement, False, found))
    total = found.own + (found.num_sub - 1) * found.sibling
    total += (found.num_super - 1) * found.num_sub * found.other
    targets = f"{found.own:.6g}, {found.sibling:.6g}, {found.other:.6g}"
    ordered = found.own >= found.sibling >= found.other >= 0
    return (
        *square,
        Condition(statement, abs(total - 1) <= EQUAL, f"a sum of {total:.12g}"),
        Condition("own >= sibling >= other >= 0", ordered, targets),
    )


def _stated(problem: Problem) -> bool:
    return problem.targets is not None and is_concrete(problem.targets.rows)


def _hierarchy_formula(problem: Problem) -> Prediction:
    r"""Return the probabilities on both sides of both thresholds.

    While c is below the constant `siblings`, y_own - y_sib,

        p_own = y_own - c (1 - 1/K),    p_sib = y_sib + c/K,    p_oth = y_oth + c/K.

    From there on siblings coincide,

        p_own = p_sib = (y_own + (b-1) y_sib)/b - c (1 - 1/a)/b,    p_oth = y_oth + c/(a b),

    until c reaches the constant `all`, y_own + (b-1) y_sib - b y_oth, where all classes do. The
    modes of Z are log(p_own/p_sib) of multiplicity a (b-1) and log p_own + (b-1) log p_sib - b log
    p_oth of multiplicity a - 1.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    found = _hierarchy(np.asarray(problem.target_rows(np.float64, np)))
    assert isinstance(found, _Hierarchy)
    a, b, c = found.num_super, found.num_sub, _ratio(numbers)
    fine, coarse = _levels(found)
    apart, alive = c < fine, c < coarse
    mean = (found.own + (b - 1) * found.sibling) / b - c * (1 - 1 / a) / b
    merged = xp.where(alive, mean, 1 / K)
    own = xp.where(apart, found.own - c * (1 - 1 / K), merged)
    sibling = xp.where(apart, found.sibling + c / K, merged)
    other = xp.where(alive, found.other + c / K, 1 / K)
    same = xp.asarray(found.same.astype(float), c.dtype)
    eye = xp.eye(K, dtype=c.dtype)
    probabilities = other + (sibling - other) * same + (own - sibling) * eye
    return _prediction(
        "hierarchical-collapse",
        problem,
        probabilities,
        {"c": c, "siblings": fine + 0 * c, "all": coarse + 0 * c},
    )


def _levels(found: _Hierarchy) -> tuple[float, float]:
    """Return the values of c at which siblings, and all classes, coincide."""
    b = found.num_sub
    fine = found.own - found.sibling
    return fine, found.own + (b - 1) * found.sibling - b * found.other


@printed
class HierarchyThresholds(NamedTuple):
    """Where the classes of a hierarchy coincide, in c and in tau = sqrt(lambda_W lambda_H).

    Attributes:
        c: c = K sqrt(n) tau of the problem.
        siblings: The c from which the classes of one super-class coincide.
        all: The c from which all classes do.
        siblings_decay: The tau of `siblings`.
        all_decay: The tau of `all`.
    """

    c: float
    siblings: float
    all: float
    siblings_decay: float
    all_decay: float

    def __str__(self) -> str:
        state = "apart" if self.c < self.siblings else "siblings coincide"
        state = "all coincide" if self.c >= self.all else state
        return (
            f"c = {self.c:.6g} ({state}); siblings coincide from c = {self.siblings:.6g} (tau = "
            f"{self.siblings_decay:.6g}), all from {self.all:.6g} (tau = {self.all_decay:.6g})"
        )


def hierarchy_thresholds(problem: Problem) -> HierarchyThresholds:
    """Return where siblings, and all classes, of a balanced hierarchy coincide.

    Args:
        problem: As the theorem "hierarchical-collapse" has it, such as with the targets of
            `Targets.hierarchy`.

    Raises:
        ValueError: For any other problem, with the conditions that do not hold.
    """
    failing = [str(one) for one in _hierarchy_conditions(problem) if not one.holds]
    if failing:
        raise ArgumentError("problem", f"must be of a hierarchy: {'; '.join(failing)}")
    numbers = letters(problem)
    found = _hierarchy(np.asarray(problem.target_rows(np.float64, np)))
    assert isinstance(found, _Hierarchy)
    fine, coarse = _levels(found)
    c = float(_ratio(numbers))
    per_c = float(numbers.decay) / c
    return HierarchyThresholds(c, fine, coarse, fine * per_c, coarse * per_c)


# Examples


def _problem(targets: Targets, decay: float, dim: int, bias: float | None = None) -> Problem:
    return Problem(
        targets=targets,
        feature_dim=dim,
        loss=CrossEntropy(),
        regularizer=WeightDecay(2 * decay, decay / 2, bias or 0.0),
        use_bias=bias is not None,
    )


def _cyclic(row: tuple[float, ...], count: float) -> Targets:
    rows = np.array([np.roll(row, k) for k in range(len(row))])
    return Targets(rows, np.full(len(row), count))


def _examples() -> tuple[Example, ...]:
    cyclic = _cyclic((0.6, 0.15, 0.05, 0.05, 0.15), 10.0)
    smooth = Targets.noisy(0.2, (10.0,) * 4)
    return (
        Example("label noise of 0.2, K=4", _problem(smooth, 5e-3, 4, bias=0.1)),
        Example("cyclic soft labels, K=5", _problem(cyclic, 2e-3, 5)),
        Example("free bias, d=4", _problem(cyclic, 2e-3, 4, bias=0.0)),
        Example("collapsed: cyclic, 5e-2", _problem(cyclic, 5e-2, 5)),
    )


def _hierarchy_examples() -> tuple[Example, ...]:
    six = Targets.hierarchy(3, 2, 0.7, 0.2, count=10.0)
    threes = Targets.hierarchy(2, 3, 0.6, 0.15, count=5.0)
    return (
        Example("3 x 2, .7/.2/.1: all apart, c = .19", _problem(six, 1e-2, 6)),
        Example("siblings coincide, c = .66", _problem(six, 3.5e-2, 6)),
        Example("2 x 3, free bias, d=5", _problem(threes, 1e-2, 5, 0.0)),
        Example("collapsed: c = 1.9", _problem(six, 1e-1, 6)),
    )


doubly_stochastic = Theorem(
    name="doubly-stochastic-targets",
    title="cross-entropy, a symmetric matrix of soft targets: thresholded probabilities",
    reference="derived here; for label smoothing Zhou et al. (NeurIPS 2022), arXiv:2210.02192",
    statement=(
        "(1/K) sum_k CE(z_k, y_k) + (lW/2)||W||^2 + (lH/2) n sum ||h_k||^2 [+ (lb/2)||b||^2], K "
        "rows of n samples, Y symmetric of row sums one, d >= K - 1, c = K sqrt(n lW lH): "
        "softmax(Z) = Y - c P, Z = P log(Y - c P) P, if Y - c P > 0, log(Y - c P) has equal row "
        "sums and Z no negative eigenvalue; b = 0, W W' = sqrt(n lH/lW) Z, H H' = sqrt(lW/(n lH)) "
        "Z, and the minimum is (1/K) sum CE + sqrt(n lW lH) tr Z. All is zero from c = ||Y - "
        "J/K||_2 on. A mode can vanish before its eigenvalue of Y does: then this does not hold."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
    any_targets=True,
)

hierarchical_collapse = Theorem(
    name="hierarchical-collapse",
    title="cross-entropy with hierarchical labels: siblings merge first, then all classes",
    reference="derived here, after label smoothing of Zhou et al. (NeurIPS 2022), arXiv:2210.02192",
    statement=(
        "K = a b classes of n samples, targets y_own >= y_sib >= y_oth within super-classes of b "
        "classes, d >= K - 1, c = K sqrt(n lW lH): for c < y_own - y_sib the probabilities are "
        "y_own - c(1-1/K), y_sib + c/K, y_oth + c/K; from there on siblings coincide exactly, p = "
        "(y_own + (b-1) y_sib)/b - c(1-1/a)/b and p_oth = y_oth + c/(ab); from c = y_own + (b-1) "
        "y_sib - b y_oth on everything is zero. Z = P log p, b = 0, W W' = sqrt(n lH/lW) Z."
    ),
    conditions=_hierarchy_conditions,
    formula=_hierarchy_formula,
    make_examples=_hierarchy_examples,
    any_targets=True,
)

THEOREMS = (hierarchical_collapse, doubly_stochastic)
