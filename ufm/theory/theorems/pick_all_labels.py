r"""Pick-all-labels: cross-entropy with tag sets, every label of a sample counted.

    (1/N) sum_S n_S [ s_S logsumexp(z_S) - (s_S/m) <1_S, z_S> ] + (lambda_W/2) ||W||^2 +
    (lambda_H/2) sum_S n_S ||h_S||^2 (+ (lambda_b/2) ||b||^2),

m = |S| the multiplicity of a tag set S of K labels. The loss of Li et al. has the mass s = m. Their
code divides rows by m, which is s = 1; and it penalises lambda ||h||^2 of a batch of B samples, so
that lambda_H = 2 lambda B / N here. Feature weights may be rho n_S: lambda_H is then rho lambda_H.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm._support import is_concrete
from ufm.problems import CrossEntropy, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.optimal_factors import Letters, letters
from ufm.theory.roots import root
from ufm.theory.symmetric_rows import etf_moments, etf_rows_prediction
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]

EQUAL = 1e-12  # relative difference up to which the entries of a row count as equal
SYMMETRIC = 1e-10  # relative error of second moments


class _Tags(NamedTuple):
    """Target rows as tag sets.

    Attributes:
        labels: 1_S, (R, K).
        sizes: m, (R,).
        values: s / m, the entry of each label that is present, (R,).
    """

    labels: Float[Array, "R K"]
    sizes: Float[Array, " R"]
    values: Float[Array, " R"]


def _tags(numbers: Letters, problem: Problem) -> _Tags:
    xp = numbers.xp
    rows = problem.target_rows(numbers.counts.dtype, xp)
    values = xp.max(rows, axis=1)
    labels = (rows > 0).astype(rows.dtype)
    return _Tags(labels, xp.sum(labels, axis=1), values)


def _one_value(problem: Problem) -> Condition:
    """Every row is a multiple of a row of ones and zeros."""
    statement = "rows of zeros and one positive number"
    if not needs.target_rows(problem).holds:
        return Condition(statement, False, "class counts")
    numbers = letters(problem)
    xp = numbers.xp
    rows, tags = problem.target_rows(numbers.counts.dtype, xp), _tags(numbers, problem)
    entries = xp.where(tags.values > 0, tags.values, 1)[:, None]
    off = xp.max(xp.abs(rows / entries - tags.labels))
    return Condition(statement, off <= EQUAL, f"differences of {needs.number(off)}")


def _common(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.target_rows(problem),
        needs.several_labels(problem),
        *needs.one_layer(problem, CrossEntropy),
        needs.proportional_weights(problem),
    )


# Features of any sign


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    common = (*_common(problem), needs.signed_features(problem), needs.centred_dims(problem))
    fits = all(condition.holds is not False for condition in common)
    if not fits or (is_concrete(problem) and not all(c.holds for c in common)):
        return common
    one_value = _one_value(problem)
    if is_concrete(problem) and not one_value.holds:
        return (*common, one_value)
    return (*common, one_value, _designs(problem))


def _designs(problem: Problem) -> Condition:
    """The tag sets are 2-designs, for each multiplicity or in the sum that the solution makes."""
    statement = "tag sets with sum n_S a_m^2 P 1_S 1_S' P a multiple of P (2-designs have it)"
    numbers = letters(problem)
    slopes = _solved(numbers, _tags(numbers, problem)).slopes
    error = etf_moments(problem, slopes)
    return Condition(statement, error <= SYMMETRIC, f"off by {needs.number(error)}")


class _Solved(NamedTuple):
    """Coefficients a of every row, rho, and the slopes of the loss, (R, K)."""

    coefficients: Float[Array, " R"]
    rho: Float[Array, ""]
    slopes: Float[Array, "R K"]
    collapse_ratio: Float[Array, ""]


def _coefficients(xp: Any, rho: Any, sizes: Any, values: Any, K: int) -> Any:
    """Return the root a of a (m e^a + K - m) = (s/m) rho, for every row."""

    def excess(a: Any, parameters: Any) -> Any:
        sizes, right = parameters
        return a * (sizes * xp.exp(a) + K - sizes) / right - 1

    right = values * rho
    return root(excess, 0 * right, xp.log1p(right / sizes), (sizes, right))


def _solved(numbers: Letters, tags: _Tags) -> _Solved:
    """Return the root of  sum theta_m (s/m)^2 / (m e^{a_m} + K - m)^2 = (N tau / K)^2.

    theta_m = N_m m (K - m) / (K (K - 1)) is summed row by row.
    """
    xp, K = numbers.xp, numbers.num_classes
    level = numbers.total * numbers.decay
    some = (tags.sizes > 0) & (tags.sizes < K)  # others carry nothing
    sizes, values = xp.where(some, tags.sizes, 1), xp.where(some, tags.values, 1)
    theta = xp.where(some, numbers.counts * sizes * (K - sizes) / (K * (K - 1)), 0)

    def spread(log_rho: Any, parameters: Any) -> Any:
        sizes, values, theta = parameters[:3]
        a = _coefficients(xp, xp.exp(log_rho), sizes, values, K)
        return xp.sum(theta * (K * values / (sizes * xp.exp(a) + K - sizes)) ** 2)

    def excess(log_rho: Any, parameters: Any) -> Any:
        return spread(log_rho, parameters) / parameters[3] ** 2 - 1

    largest = xp.sum(theta * values**2)
    alive = (level**2 < largest) & (largest > 0)
    safe = xp.where(alive, level, 0.5 * xp.sqrt(xp.where(largest > 0, largest, 1)))
    # The penalty tau (K - 1) kappa, kappa = rho N tau / K, is at most the loss of zero logits.
    loss = numbers.counts @ (tags.values * tags.sizes) / numbers.total
    high = xp.log(K * xp.log(float(K)) * (loss + 1) * numbers.total / (safe**2 * (K - 1)) + 1)
    log_rho = root(excess, high * 0 - 40, high, (sizes, values, theta, safe))
    rho = xp.where(alive, xp.exp(log_rho), 0)
    a = xp.where(some & alive, _coefficients(xp, xp.where(alive, rho, 1), sizes, values, K), 0)
    scale = xp.where(some, K * values / (sizes * xp.exp(a) + K - sizes), 0)
    centred = tags.labels - tags.sizes[:, None] / K
    ratio = level / xp.sqrt(xp.where(largest > 0, largest, 1))
    return _Solved(a, rho, scale[:, None] * centred, ratio)


def _formula(problem: Problem) -> Prediction:
    r"""Return z_S = a_m P 1_S with a_m (m e^{a_m} + K - m) = (s/m) rho.

        kappa = rho N tau / K,    W W^T = sqrt(lambda_H / lambda_W) kappa P,
        h_S = sqrt(lambda_W / lambda_H) (a_m / kappa) sum_{k in S} w_k,
        objective = (1/N) sum_S n_S s_S log(m + (K - m) e^{-a_m}) + tau (K - 1) kappa.

    So a feature is a_m / a_1 times the sum of those of its labels alone. The constants
    `coefficient_m` are a_m; `collapse_ratio` is N tau over what the collapse of all needs.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    tags = _tags(numbers, problem)
    found = _solved(numbers, tags)
    a, m = found.coefficients, tags.sizes
    logits = a[:, None] * (tags.labels - m[:, None] / K)
    kappa = found.rho * numbers.total * numbers.decay / K
    losses = m * tags.values * xp.log(xp.where(m > 0, m + (K - m) * xp.exp(-a), 1))
    return etf_rows_prediction(
        "pick-all-labels",
        problem,
        logits,
        kappa * xp.sqrt(numbers.features / problem.regularizer.decays(1)[-1]),  # Om instead of D
        numbers.counts @ losses / numbers.total + numbers.decay * (K - 1) * kappa,
        {
            **_by_size("coefficient", problem, a),
            "rho": found.rho,
            "collapse_ratio": found.collapse_ratio,
        },
    )


def _by_size(name: str, problem: Problem, values: Any) -> dict[str, Any]:
    """Return a number for each multiplicity, from one per row; none where rows are traced."""
    targets = problem.targets
    if targets is None or not is_concrete(targets.rows):
        return {}
    sizes = np.sum(np.asarray(targets.rows) > 0, axis=1)
    places = {int(size): int(np.argmax(sizes == size)) for size in np.unique(sizes)}
    return {f"{name}_{size}": values[place] for size, place in places.items()}


# Non-negative features


# K and the multiplicities at which direct minimisation finds nothing lower, and the doubly
# non-negative relaxation certifies the formula.
NONNEGATIVE = {(4, (1, 2)), (5, (1, 2)), (4, (2,))}


def _nonnegative_conditions(problem: Problem) -> tuple[Condition, ...]:
    common = (
        *_common(problem),
        needs.nonnegative_features(problem),
        needs.no_bias(problem),
        Condition(
            "d >= K",
            problem.feature_dim >= problem.num_outputs,
            f"d = {problem.feature_dim}, K = {problem.num_outputs}",
        ),
    )
    if not all(condition.holds is not False for condition in common):
        return common
    return (*common, _tested_sets(problem))


def _tested_sets(problem: Problem) -> Condition:
    """All sets of m labels, equally often: for the multiplicities that were tested."""
    statement = (
        "all tag sets of a multiplicity equally often and of mass m, multiplicities 2 of K = 4, or "
        "1 and 2 of K = 4, 5"
    )
    if problem.targets is None or not is_concrete(problem.targets):
        return Condition(statement, False, "traced rows")
    rows, K = np.asarray(problem.target_rows(np.float64, np)), problem.num_outputs
    counts = np.asarray(problem.row_counts, np.float64)
    sizes = rows.sum(axis=1)
    found = tuple(sorted({int(size) for size in sizes}))
    whole = bool(np.all((rows == 0) | (rows == 1)))
    expected = Targets.multi_label(K, dict.fromkeys(found, 1.0)) if whole and found[0] > 0 else None
    same = False
    if expected is not None and len(rows) == expected.num_rows:
        order, other = (np.lexsort(each.T) for each in (rows, np.asarray(expected.rows)))
        same = np.array_equal(rows[order], np.asarray(expected.rows)[other])
        for size in found:
            of_size = counts[sizes == size]
            same = same and float(np.ptp(of_size)) <= EQUAL * float(np.max(of_size))
    words = f"K = {K}, multiplicities {found}" + ("" if same else ", not all sets equally often")
    return Condition(statement, same and (K, found) in NONNEGATIVE, words)


def _nonnegative_formula(problem: Problem) -> Prediction:
    r"""Return h_S = eta_m 1_S in a basis of K coordinates, and W a multiple of P.

    z_S = a_m P 1_S,    a_m (m e^{a_m} + K - m) = (K - m) r / (N tau sqrt(K - 1)),
    r^2 = sum_m N_m m a_m^2,
    objective = (1/N) sum_m N_m m log(m + (K - m) e^{-a_m}) + tau sqrt(K - 1) r,
    W W^T = w P with w = sqrt(lambda_H / (lambda_W (K - 1))) r,    <h_S, h_T> = a_S a_T |S and
    T| / w.
    """
    numbers = letters(problem)
    xp, K, n = numbers.xp, numbers.num_classes, numbers.counts
    tags = _tags(numbers, problem)
    sizes = tags.sizes
    level = numbers.total * numbers.decay * xp.sqrt(xp.asarray(K - 1.0, n.dtype))

    def shares(log_r: Any, parameters: Any) -> Any:
        sizes, _, level = parameters
        r = xp.exp(log_r)
        return _coefficients(xp, r / level, sizes, K - sizes, K) / r

    def excess(log_r: Any, parameters: Any) -> Any:
        sizes, counts, _ = parameters
        return xp.sum(counts * sizes * shares(log_r, parameters) ** 2) - 1

    largest = xp.sqrt(xp.sum(n * sizes * (K - sizes) ** 2)) / K
    alive = level < largest
    safe = xp.where(alive, level, 0.5 * largest)
    loss = n @ sizes / numbers.total * xp.log(float(K))
    high = xp.log((loss + 1) * numbers.total / safe)  # tau sqrt(K - 1) r is at most the loss
    log_r = root(excess, 0 * high - 40, high, (sizes, n, safe))
    r = xp.where(alive, xp.exp(log_r), 0)
    a = xp.where(alive, shares(log_r, (sizes, n, safe)) * xp.exp(log_r), 0)
    balance = xp.sqrt(numbers.features / numbers.weights[-1])
    weight = balance * r / xp.sqrt(xp.asarray(K - 1.0, n.dtype))
    logits = a[:, None] * (tags.labels - sizes[:, None] / K)
    scaled = xp.sqrt(n)[:, None] * logits
    squares = xp.sum(scaled**2)
    value = xp.where(alive, xp.sqrt(xp.where(alive, squares, 1) / (K - 1)), 0)
    values = value * (xp.arange(min(logits.shape)) < K - 1).astype(n.dtype)
    losses = n @ (sizes * xp.log(sizes + (K - sizes) * xp.exp(-a))) / numbers.total
    overlaps = tags.labels @ tags.labels.T
    return Prediction(
        theorem="pick-all-labels-nonnegative",
        objective=losses + level / numbers.total * r,
        logits=logits,
        weight_gram=weight * (xp.eye(K, dtype=n.dtype) - 1 / K),
        feature_gram=a[:, None] * a[None, :] * overlaps / xp.where(alive, weight, 1),
        bias=None,
        layer_norms=xp.stack(
            [weight * (K - 1), xp.sum(n * sizes * a**2) / xp.where(alive, weight, 1)]
        ),
        singular_values=values,
        rank=xp.sum(values > 0, dtype="int32"),
        collapsed=~alive,
        constants={**_by_size("coefficient", problem, a), "collapse_ratio": level / largest},
    )


# Examples


def _problem(
    targets: Targets, decay: float, dim: int, bias: float | None = None, **options: Any
) -> Problem:
    return Problem(
        targets=targets,
        feature_dim=dim,
        loss=CrossEntropy(),
        regularizer=WeightDecay(2 * decay, decay / 2, bias or 0.0),
        use_bias=bias is not None,
        **options,
    )


FANO = ((0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5))


def _examples() -> tuple[Example, ...]:
    both, lines = Targets.multi_label(4, {1: 40, 2: 24}), Targets.multi_label(7, tag_sets=FANO)
    shares = Targets(both.rows / np.sum(both.rows, axis=1, keepdims=True), both.counts)
    return (
        Example("K=4, m=1 (40) and 2 (24), d=6", _problem(both, 5e-3, 6)),
        Example("free bias, d=3", _problem(both, 5e-3, 3, bias=0.0)),
        Example("lines of the Fano plane, K=7", _problem(lines, 2e-2, 7)),
        Example("rows divided by m", _problem(shares, 5e-3, 6, bias=0.1)),
        Example("collapsed: 0.5", _problem(both, 0.5, 6)),
    )


def _nonnegative_examples() -> tuple[Example, ...]:
    four, five = (Targets.multi_label(K, {1: 10.0 * K, 2: 12.0}) for K in (4, 5))
    pairs = Targets.multi_label(4, {2: 24})

    def problem(targets: Targets, decay: float, dim: int) -> Problem:
        return _problem(targets, decay, dim, nonnegative_features=True)

    return (
        Example("K=4, m=1, 2", problem(four, 1e-2, 4)),
        Example("K=5, m=1, 2", problem(five, 1e-2, 5)),
        Example("K=4, pairs", problem(pairs, 1e-2, 4)),
        Example("collapsed: 0.5", problem(four, 0.5, 4)),
    )


pick_all_labels = Theorem(
    name="pick-all-labels",
    title="pick-all-labels: an ETF, and features that are scaled sums of those of their labels",
    reference="Li, Li, Wang & Qu (ICML 2024), arXiv:2310.15903; the closed form is derived here",
    statement=(
        "(1/N) sum n_S [s lse(z_S) - (s/m) <1_S, z_S>] + (lW/2)||W||^2 + (lH/2) sum n_S "
        "||h_S||^2 [+ (lb/2)||b||^2], m = |S|, mass s = m (or any per row), d >= K - 1, tag sets a "
        "2-design in each multiplicity, N_m samples: z_S = a_m P 1_S with a_m (m e^(a_m) + K - m) "
        "= (s/m) rho, rho the root of sum_m theta_m (s/m)^2/(m e^(a_m) + K - m)^2 = (N tau/K)^2, "
        "theta_m = N_m m(K-m)/(K(K-1)); W W' = sqrt(lH/lW) kappa P, kappa = rho N tau/K; h_S = "
        "(a_m/a_1) sum_(k in S) h_k; b = 0. All vanishes at once, from N tau = sqrt(sum theta_m "
        "(s/m)^2) on. Feature weights rho_0 n_S count as rho_0 lH."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
    any_targets=True,
)

pick_all_labels_nonnegative = Theorem(
    name="pick-all-labels-nonnegative",
    title="pick-all-labels, non-negative features: a coordinate for every label",
    reference=(
        "derived here, after Li, Li, Wang & Qu (ICML 2024), arXiv:2310.15903; the range of "
        "validity is numerical, found here"
    ),
    statement=(
        "Pick-all-labels with h >= 0, no bias, d >= K, all sets of m labels equally often: h_S is "
        "a multiple of 1_S in K coordinates, W W' a multiple of P, z_S = a_m P 1_S with a_m (m "
        "e^(a_m) + K - m) = (K - m) r/(N tau sqrt(K-1)), r^2 = sum N_m m a_m^2. That is the "
        "minimum for multiplicity 2 of K = 4 and for 1 and 2 of K = 4 and 5; it is not for m > "
        "K/2, for 1 and 2 of K = 3, or for 1, 2, 3 of K = 4, where coordinates of absent labels "
        "are cheaper."
    ),
    conditions=_nonnegative_conditions,
    formula=_nonnegative_formula,
    make_examples=_nonnegative_examples,
    any_targets=True,
)

THEOREMS = (pick_all_labels, pick_all_labels_nonnegative)
