"""One-layer models at class resolution and their duals, in fifty digits, from their definitions.

Letters: s_k = n_k / N shares, Z logits, U dual rows, l_k* conjugates. Every loss here is either w_k
CE(delta_k z + iota; y_k) with targets y_k or w_k / 2 ||z - y_k||^2; its conjugate at u is w_k
(sum_c q_c log q_c - <r, iota>), q = y_k + r, r = u / (w_k delta_k), where q is a probability
vector, or w_k (||r||^2 / 2 + <r, y_k>), r = u / w_k.
"""

import itertools
from typing import Any, NamedTuple

import mpmath
import numpy as np

import ufm
from ufm.problems import Loss, Parameters, Problem

MP = mpmath.mp.clone()
MP.dps = 50

Vector = list[Any]
Rows = list[Vector]


class Form(NamedTuple):
    """A loss in exact numbers: squared error or cross-entropy.

    Weights w, multipliers delta (a row per class), offsets iota and targets y.
    """

    squared: bool
    weights: Vector
    multipliers: Rows
    offsets: Vector
    targets: Rows


def number(value: Any) -> Any:
    return MP.mpf(float(value))


def vector(values: Any) -> Vector:
    return [number(value) for value in np.ravel(values)]


def rows_of(matrix: Any) -> Rows:
    return [vector(row) for row in np.asarray(matrix)]


def counts_of(problem: Problem) -> Vector:
    return vector(np.asarray(problem.class_counts))


def shares_of(problem: Problem) -> Vector:
    counts = counts_of(problem)
    return [count / MP.fsum(counts) for count in counts]


def form_of(loss: Loss, counts: Vector) -> Form:
    K = len(counts)
    ones, zeros = [MP.one] * K, [MP.zero] * K
    targets = [[MP.mpf(int(j == k)) for j in range(K)] for k in range(K)]
    plain = Form(False, ones, [ones] * K, zeros, targets)
    match loss:
        case ufm.CrossEntropy():
            return plain
        case ufm.SquaredError():
            return plain._replace(squared=True)
        case ufm.LabelSmoothing():
            alpha = number(loss.alpha)
            return plain._replace(
                targets=[[(1 - alpha) * y + alpha / K for y in row] for row in targets]
            )
        case ufm.LogitAdjusted(strength=None):
            return plain._replace(offsets=vector(loss.offsets))
        case ufm.LogitAdjusted():
            return plain._replace(
                offsets=[number(loss.strength) * MP.log(n / MP.fsum(counts)) for n in counts]
            )
        case ufm.CDT(exponent=None):
            return plain._replace(multipliers=[vector(loss.multipliers)] * K)
        case ufm.CDT():
            return plain._replace(
                multipliers=[[(n / max(counts)) ** number(loss.exponent) for n in counts]] * K
            )
        case ufm.LDT(exponent=None):
            return plain._replace(multipliers=[[d] * K for d in vector(loss.multipliers)])
        case ufm.LDT():
            return plain._replace(
                multipliers=[[(n / max(counts)) ** number(loss.exponent)] * K for n in counts]
            )
        case ufm.ClassWeighted():
            inner = form_of(loss.loss, counts)
            if loss.exponent is None:
                own = vector(loss.weights)
            else:
                own = [(MP.fsum(counts) / (K * n)) ** number(loss.exponent) for n in counts]
            return inner._replace(weights=[a * b for a, b in zip(inner.weights, own, strict=True)])
    raise NotImplementedError(type(loss).__name__)


def losses_of(problem: Problem, logits: Rows) -> Vector:
    """Return the loss of every class's row."""
    form = form_of(problem.loss, counts_of(problem))
    values = []
    for k, z in enumerate(logits):
        y = form.targets[k]
        if form.squared:
            value = MP.fsum((a - b) ** 2 for a, b in zip(z, y, strict=True)) / 2
        else:
            x = [d * a + i for d, a, i in zip(form.multipliers[k], z, form.offsets, strict=True)]
            # Relative to the own logit: a loss of 1e-65 has all of its fifty digits.
            others = MP.log1p(MP.fsum(MP.exp(a - x[k]) for c, a in enumerate(x) if c != k))
            value = others - MP.fsum(
                b * (a - x[k]) for c, (a, b) in enumerate(zip(x, y, strict=True)) if c != k
            )
        values.append(form.weights[k] * value)
    return values


def objective(problem: Problem, parameters: Parameters) -> Any:
    """Return the objective of class-level parameters, whose floats are taken as exact numbers."""
    weights, features = rows_of(parameters.weights[0]), rows_of(parameters.features)
    bias = [MP.zero] * problem.num_classes if parameters.bias is None else vector(parameters.bias)
    logits = [[MP.fdot(w, h) + b for w, b in zip(weights, bias, strict=True)] for h in features]
    value = MP.fdot(shares_of(problem), losses_of(problem, logits))
    if isinstance(problem.regularizer, ufm.NormBall):
        return value
    squares = [MP.fsum(a * a for a in h) for h in features]
    value += (
        number(problem.regularizer.weights) / 2 * MP.fsum(a * a for row in weights for a in row)
    )
    value += number(problem.regularizer.features) / 2 * MP.fdot(counts_of(problem), squares)
    return value + number(problem.regularizer.bias) / 2 * MP.fsum(b * b for b in bias)


def within_balls(problem: Problem, parameters: Parameters) -> Parameters:
    """Return the parameters, shrunk by a few roundings where they leave the norm balls."""
    if not isinstance(problem.regularizer, ufm.NormBall):
        return parameters
    K, eps = problem.num_classes, np.finfo(float).eps

    def shrunk(block: Any, radius: Any) -> np.ndarray:
        block = np.asarray(block, float)
        squared = MP.fsum(a * a for row in rows_of(block) for a in row) / K
        factor = (
            min(1.0, float(MP.sqrt(number(radius) / squared)) * (1 - 2 * eps))
            if squared > 0
            else 1.0
        )
        return block * factor if squared > number(radius) else block

    weights = shrunk(parameters.weights[0], problem.regularizer.weights)
    return Parameters(
        (weights,), shrunk(parameters.features, problem.regularizer.features), parameters.bias
    )


# The dual.


def gradient_rows(problem: Problem, logits: Rows) -> Rows:
    """Return the exact gradients of the losses."""
    form = form_of(problem.loss, counts_of(problem))
    result = []
    for k, z in enumerate(logits):
        y, w = form.targets[k], form.weights[k]
        if form.squared:
            result.append([w * (a - b) for a, b in zip(z, y, strict=True)])
            continue
        x = [d * a + i for d, a, i in zip(form.multipliers[k], z, form.offsets, strict=True)]
        top = max(x)
        powers = [MP.exp(a - top) for a in x]
        total = MP.fsum(powers)
        result.append(
            [
                w * d * (p / total - b)
                for d, p, b in zip(form.multipliers[k], powers, y, strict=True)
            ]
        )
    return result


def feasible_rows(problem: Problem, rows: Rows) -> Rows:
    """Return the nearest rows that meet, exactly, what the dual asks of them before the norm.

    Cross-entropy: every q sums to one, by the entry of the label where it is large, else by
    normalisation. Free bias: the mean is subtracted, and as much of the dual rows of the best
    constant logits mixed in as brings negative probabilities back to zero.
    """
    form, shares, K = form_of(problem.loss, counts_of(problem)), shares_of(problem), len(rows)
    if not form.squared:
        rows = [_summing_to_zero(form, k, row) for k, row in enumerate(rows)]
    if not has_free_bias(problem):
        return rows
    mean = [MP.fdot(shares, [row[c] for row in rows]) for c in range(K)]
    rows = [[a - m for a, m in zip(row, mean, strict=True)] for row in rows]
    if form.squared:
        return rows
    masses = [
        [s * w * d[c] for s, w, d in zip(shares, form.weights, form.multipliers, strict=True)]
        for c in range(K)
    ]
    best = [MP.fdot(masses[c], [y[c] for y in form.targets]) / MP.fsum(masses[c]) for c in range(K)]
    inner = [
        [w * d * (q - y) for d, q, y in zip(multipliers, best, target, strict=True)]
        for w, multipliers, target in zip(form.weights, form.multipliers, form.targets, strict=True)
    ]
    share = MP.zero
    for k in range(K):
        for outside, inside in zip(probabilities(form, k, rows[k]), best, strict=True):
            share = max(share, -outside / (inside - outside)) if outside < 0 else share
    return [
        [(1 - share) * a + share * b for a, b in zip(row, center, strict=True)]
        for row, center in zip(rows, inner, strict=True)
    ]


def has_free_bias(problem: Problem) -> bool:
    ball = isinstance(problem.regularizer, ufm.NormBall)
    return problem.use_bias and (ball or float(problem.regularizer.bias) == 0)


def _summing_to_zero(form: Form, k: int, row: Vector) -> Vector:
    q = probabilities(form, k, row)
    if q[k] > 0.5 and min(q) >= 0:
        others = MP.fsum(
            u / d for c, (u, d) in enumerate(zip(row, form.multipliers[k], strict=True)) if c != k
        )
        return [
            -d * others if c == k else u
            for c, (u, d) in enumerate(zip(row, form.multipliers[k], strict=True))
        ]
    q = [max(a, MP.zero) for a in q]
    total = MP.fsum(q)
    parts = zip(form.multipliers[k], q, form.targets[k], strict=True)
    return [form.weights[k] * d * (a / total - y) for d, a, y in parts]


def probabilities(form: Form, k: int, row: Vector) -> Vector:
    parts = zip(form.targets[k], row, form.multipliers[k], strict=True)
    return [y + u / (form.weights[k] * d) for y, u, d in parts]


def conjugates(problem: Problem, rows: Rows) -> Vector:
    form = form_of(problem.loss, counts_of(problem))
    values = []
    for k, row in enumerate(rows):
        w, targets = form.weights[k], form.targets[k]
        r = [u / (w * d) for u, d in zip(row, form.multipliers[k], strict=True)]
        if form.squared:
            values.append(w * (MP.fdot(r, r) / 2 + MP.fdot(r, targets)))
            continue
        entropy = MP.fsum(_times_log(y, a) for y, a in zip(targets, r, strict=True))
        values.append(w * (entropy - MP.fdot(r, form.offsets)))
    return values


def _times_log(target: Any, change: Any) -> Any:
    """Return q log q of q = target + change.

    All digits are kept, also where the change is below the last digit of the target.
    """
    q = target + change
    assert q > -(MP.mpf(10) ** -45)
    if 2 * target > 1 and abs(change) < target / 2:
        return q * (MP.log(target) + MP.log1p(change / target))
    return q * MP.log(q) if q > 0 else MP.zero


def dual_norm(rows: Rows, nonnegative: bool) -> Any:
    """Return max ||G^T h|| over unit vectors h, or over those with h >= 0.

    A maximiser with support A is an eigenvector of the block of G G^T at A with positive entries,
    so all blocks are tried.
    """
    K = len(rows)
    gram = MP.matrix(K, K)
    for i, j in itertools.product(range(K), repeat=2):
        gram[i, j] = MP.fdot(rows[i], rows[j])
    if not nonnegative:
        return MP.sqrt(max(max(MP.eigsy(gram, eigvals_only=True)), MP.zero))
    best = max(gram[k, k] for k in range(K))
    for size in range(2, K + 1):
        for support in itertools.combinations(range(K), size):
            block = MP.matrix(size, size)
            for i, j in itertools.product(range(size), repeat=2):
                block[i, j] = gram[support[i], support[j]]
            values, vectors = MP.eigsy(block)
            for column in range(size):
                entries = [vectors[i, column] for i in range(size)]
                if min(entries) >= 0 or max(entries) <= 0:
                    best = max(best, values[column])
    return MP.sqrt(best)


def dual_value(problem: Problem, rows: Rows) -> Any:
    """Return the lower bound that dual rows provide, after they are made feasible."""
    rows = feasible_rows(problem, rows)
    regularizer, shares = problem.regularizer, shares_of(problem)
    if isinstance(regularizer, ufm.NormBall):
        radius = len(rows) * MP.sqrt(number(regularizer.weights) * number(regularizer.features))
        weighted = [[s * u for u in row] for s, row in zip(shares, rows, strict=True)]
        return -MP.fdot(shares, conjugates(problem, rows)) - radius * dual_norm(
            weighted, problem.nonnegative_features
        )
    theta = largest_scale(problem, rows)
    rows = [[theta * u for u in row] for row in rows]
    value = -MP.fdot(shares, conjugates(problem, rows))
    if problem.use_bias and not has_free_bias(problem):
        mean = [MP.fdot(shares, [row[c] for row in rows]) for c in range(len(rows))]
        value -= MP.fdot(mean, mean) / (2 * number(regularizer.bias))
    return value


def largest_scale(problem: Problem, rows: Rows) -> Any:
    """Return theta = min(1, N tau / ||D^{1/2} U||)."""
    counts, regularizer = counts_of(problem), problem.regularizer
    tau = MP.sqrt(number(regularizer.weights) * number(regularizer.features))
    weighted = [[MP.sqrt(n) * u for u in row] for n, row in zip(counts, rows, strict=True)]
    norm = dual_norm(weighted, problem.nonnegative_features)
    return min(MP.one, MP.fsum(counts) * tau / norm) if norm > 0 else MP.one


# Optimal values in closed form.


def squared_error_minimum(problem: Problem) -> Any:
    """Return sum_k (sqrt(n_k) - s_k)^2 / (2 N) + tau s_k, where s_k = max(0, sqrt(n_k) - N tau)."""
    counts = counts_of(problem)
    total = MP.fsum(counts)
    tau = MP.sqrt(number(problem.regularizer.weights) * number(problem.regularizer.features))
    kept = [max(MP.zero, MP.sqrt(n) - total * tau) for n in counts]
    return MP.fsum(
        (MP.sqrt(n) - s) ** 2 / (2 * total) + tau * s for n, s in zip(counts, kept, strict=True)
    )


def cross_entropy_minimum(problem: Problem) -> Any:
    """Return the minimum of cross-entropy for classes of one size.

    It is log(1 + (K-1) e^-M) + tau sqrt(n) (K-1) M at the margin
    M = max(0, log(1 / (tau sqrt n) - (K-1))).
    """
    K, count = problem.num_classes, counts_of(problem)[0]
    price = MP.sqrt(
        number(problem.regularizer.weights) * number(problem.regularizer.features) * count
    )
    inside = 1 / price - (K - 1)
    margin = MP.log(inside) if inside > 1 else MP.zero
    return MP.log1p((K - 1) * MP.exp(-margin)) + price * (K - 1) * margin
