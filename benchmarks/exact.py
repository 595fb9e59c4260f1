r"""Objectives of one-layer points in fifty digits, with the rounding that float64 may add to them.

The formulas are transcribed from the mathematics and share no code with the library. A point is a
matrix of logits over groups of interchangeable classes; classes that stand alone are groups of one.
Letters: n_g samples in each of the K_g classes of group g, N = sum_g K_g n_g, z logits.

The rounding of an objective is `count` machine epsilons of

    |value| + sum_k (n_k / N) sum_c |dl_k / dz_kc| m_kc,

where m_kc is the sum of the magnitudes of the terms of z_kc. No evaluation in float64 from the same
numbers can promise less, up to `count`, the length of its sums.
"""

from typing import Any, NamedTuple

import mpmath
import numpy as np

import ufm
from ufm.problems import Loss, Parameters, Problem

__all__ = ["MP", "Exact", "closed_form", "of_blocks", "of_parameters"]

MP = mpmath.mp.clone()
MP.dps = 50
EPSILON = float(np.finfo(float).eps)

Vector = list[Any]
Rows = list[Vector]


class Exact(NamedTuple):
    """An objective in fifty digits.

    Attributes:
        stated: the objective at the point as it was returned.
        feasible: the objective at the nearest point inside the norm balls; `stated` elsewhere.
        rounding: how far a float64 evaluation of `stated` may be off.
    """

    stated: Any
    feasible: Any
    rounding: float


class _Logits(NamedTuple):
    """Logits of a class of each group, (G,) and (G, G), and the magnitudes of their terms."""

    own: Vector
    others: Rows
    own_size: Vector
    others_size: Rows


class _Classes(NamedTuple):
    counts: Vector
    sizes: list[int]

    @property
    def samples(self) -> Any:
        return MP.fdot(self.counts, self.sizes)

    def times(self, g: int) -> list[int]:
        """Return how many classes of every group there are besides a class of group g."""
        return [size - (h == g) for h, size in enumerate(self.sizes)]


def of_parameters(problem: Problem, parameters: Parameters) -> Exact:
    """Return the objective of explicit weights, features and bias, one feature row per class."""
    classes = _classes(problem, [1] * problem.num_classes)
    W, H = _rows(parameters.weights[0]), _rows(parameters.features)
    bias = _bias(parameters.bias, len(W))
    squares_w = MP.fsum(a * a for row in W for a in row)
    squares_h = [MP.fsum(a * a for a in row) for row in H]
    plain = [[MP.fdot(w, h) for w in W] for h in H]
    size = [[MP.fdot(map(abs, w), map(abs, h)) for w in W] for h in H]
    count = len(W) + len(W[0]) + 16

    def at(factor: Any) -> tuple[Any, Any, Any]:
        return _data_term(problem.loss, classes, _with_bias(plain, size, bias, factor))

    regularizer = problem.regularizer
    if isinstance(regularizer, ufm.NormBall):
        K = len(W)
        over = [squares_w / (K * _number(regularizer.weights))]
        over.append(MP.fsum(squares_h) / (K * _number(regularizer.features)))
        factor = MP.fprod(1 / MP.sqrt(max(MP.one, ratio)) for ratio in over)
        return _exact(at, MP.zero, count, factor)
    penalty = _number(regularizer.weights) / 2 * squares_w
    penalty += _number(regularizer.features) / 2 * MP.fdot(classes.counts, squares_h)
    penalty += _number(regularizer.bias) / 2 * MP.fdot(bias, bias)
    return _exact(at, penalty, count)


def of_blocks(problem: Problem, within: Any, between: Any, bias: Any) -> Exact:
    """Return the objective of logits given as blocks over groups, at the price of their gauge.

    Args:
        problem: one layer, signed features, stated by groups.
        within: (G,), what the logits without bias do to vectors of mean zero of each group.
        between: (G, G), the logits without bias in the basis of the groups' unit vectors.
        bias: (G,) or None.
    """
    sizes = list(problem.class_counts.sizes)
    classes = _classes(problem, sizes)
    G = len(sizes)
    a = [x if size > 1 else MP.zero for x, size in zip(_vector(within), sizes, strict=True)]
    C = _rows(between)
    roots = [MP.sqrt(size) for size in sizes]
    shift = _bias(bias, G)

    def entries(a: Vector, C: Rows, sign: int) -> tuple[Vector, Rows]:
        own = [a[g] * (1 - MP.one / sizes[g]) + C[g][g] / sizes[g] for g in range(G)]
        others = [[C[g][h] / (roots[g] * roots[h]) for h in range(G)] for g in range(G)]
        for g in range(G):
            others[g][g] = (C[g][g] - sign * a[g]) / sizes[g]
        return own, others

    own, others = entries(a, C, 1)
    own_size, others_size = entries([abs(x) for x in a], [[abs(x) for x in row] for row in C], -1)

    def at(factor: Any) -> tuple[Any, Any, Any]:
        logits = _Logits(
            [factor * x + b for x, b in zip(own, shift, strict=True)],
            [[factor * x + b for x, b in zip(row, shift, strict=True)] for row in others],
            [factor * x + abs(b) for x, b in zip(own_size, shift, strict=True)],
            [[factor * x + abs(b) for x, b in zip(row, shift, strict=True)] for row in others_size],
        )
        return _data_term(problem.loss, classes, logits)

    regularizer = problem.regularizer
    ball = isinstance(regularizer, ufm.NormBall)
    factors = [MP.one if ball else MP.sqrt(n) for n in classes.counts]
    weighted = MP.matrix([[factors[g] * C[g][h] for h in range(G)] for g in range(G)])
    gauge = MP.fsum((sizes[g] - 1) * factors[g] * abs(a[g]) for g in range(G))
    gauge += MP.fsum(MP.svd_r(weighted, compute_uv=False))
    price = MP.sqrt(_number(regularizer.weights) * _number(regularizer.features))
    count = 4 * (G + 16)
    if isinstance(regularizer, ufm.NormBall):
        bound = sum(sizes) * price
        return _exact(at, MP.zero, count, min(MP.one, bound / gauge) if gauge > 0 else MP.one)
    penalty = price * gauge
    penalty += (
        _number(regularizer.bias)
        / 2
        * MP.fsum(k * b * b for k, b in zip(sizes, shift, strict=True))
    )
    return _exact(at, penalty, count)


def closed_form(problem: Problem) -> Any:
    """Return the optimal value where it has a closed form, else None.

    Squared error without bias under weight decay, w_k the weight of a class: the sum over classes
    of w_k s_k (1 - z)^2 / 2 + tau sqrt(n_k) z at z = max(0, 1 - N tau / (w_k sqrt(n_k))).
    Cross-entropy of classes of one size with signed features: log(1 + (K-1) e^-M) + tau sqrt(n)
    (K-1) M at M = max(0, log(1 / (tau sqrt(n)) - (K-1))).
    """
    regularizer, loss = problem.regularizer, problem.loss
    if isinstance(regularizer, ufm.NormBall):
        return None
    sizes = list(problem.class_counts.sizes)
    classes = _classes(problem, sizes)
    price, N = (
        MP.sqrt(_number(regularizer.weights) * _number(regularizer.features)),
        classes.samples,
    )
    inner = loss.loss if type(loss) is ufm.ClassWeighted else loss
    if type(inner) is ufm.SquaredError and not problem.use_bias:
        total = MP.zero
        for g, n in enumerate(classes.counts):
            weight = _class_weight(loss, classes, g) if loss is not inner else MP.one
            z = max(MP.zero, 1 - N * price / (weight * MP.sqrt(n)))
            total += sizes[g] * (weight * n / N * (1 - z) ** 2 / 2 + price * MP.sqrt(n) * z)
        return total
    if (
        type(loss) is ufm.CrossEntropy
        and len(set(classes.counts)) == 1
        and not problem.nonnegative_features
    ):
        K, slope = sum(sizes), price * MP.sqrt(classes.counts[0])
        inside = 1 / slope - (K - 1)
        margin = MP.log(inside) if inside > 1 else MP.zero
        return MP.log1p((K - 1) * MP.exp(-margin)) + slope * (K - 1) * margin
    return None


def _exact(at: Any, penalty: Any, count: int, factor: Any = None) -> Exact:
    value, first, second = at(MP.one)
    stated = value + penalty
    rounding = count * EPSILON * float(abs(stated) + first) + (count * EPSILON) ** 2 * float(second)
    feasible = stated if factor is None or factor == 1 else at(factor)[0] + penalty
    return Exact(stated, feasible, rounding)


def _data_term(loss: Loss, classes: _Classes, logits: _Logits) -> tuple[Any, Any, Any]:
    """Return the mean loss, and its sensitivities to rounding of first and second order."""
    total = [MP.zero] * 3
    for g, (n, size) in enumerate(zip(classes.counts, classes.sizes, strict=True)):
        parts = _row_loss(
            loss,
            classes,
            g,
            logits.own[g],
            logits.others[g],
            logits.own_size[g],
            logits.others_size[g],
        )
        share = size * n / classes.samples
        total = [a + share * b for a, b in zip(total, parts, strict=True)]
    return total[0], total[1], total[2]


def _row_loss(
    loss: Loss, classes: _Classes, g: int, own: Any, others: Vector, m: Any, ms: Vector
) -> tuple[Any, Any, Any]:
    """Return a row's loss in group g, and its first- and second-order sensitivity to rounding."""
    counts, sizes, times = classes.counts, classes.sizes, classes.times(g)
    kind = type(loss)
    if kind is ufm.ClassWeighted:
        weight = _class_weight(loss, classes, g)
        value, first, second = _row_loss(loss.loss, classes, g, own, others, m, ms)
        return weight * value, weight * first, weight * second
    if kind is ufm.SquaredError:
        value = (
            (own - 1) ** 2 + MP.fsum(t * o * o for t, o in zip(times, others, strict=True))
        ) / 2
        first = abs(own - 1) * (m + 1) + MP.fsum(
            t * abs(o) * b for t, o, b in zip(times, others, ms, strict=True)
        )
        return (
            value,
            first,
            (m + 1) ** 2 + MP.fsum(t * b * b for t, b in zip(times, ms, strict=True)),
        )
    if kind is ufm.LogitAdjusted:
        if loss.offsets is not None:
            iota = _vector(loss.offsets)
        else:
            iota = [_number(loss.strength) * MP.log(n / classes.samples) for n in counts]
        shifted = [o + i for o, i in zip(others, iota, strict=True)]
        sizes_of = [a + abs(i) for a, i in zip(ms, iota, strict=True)]
        return _row_loss(
            ufm.CrossEntropy(), classes, g, own + iota[g], shifted, m + abs(iota[g]), sizes_of
        )
    if kind is ufm.CDT or kind is ufm.LDT:
        if loss.multipliers is not None:
            delta = _vector(loss.multipliers)
        else:
            delta = [(n / max(counts)) ** _number(loss.exponent) for n in counts]
        columns = delta if kind is ufm.CDT else [delta[g]] * len(counts)
        scaled, sizes_of = (
            [d * o for d, o in zip(columns, row, strict=True)] for row in (others, ms)
        )
        return _row_loss(
            ufm.CrossEntropy(), classes, g, delta[g] * own, scaled, delta[g] * m, sizes_of
        )
    differences = [o - own for o in others]
    total = MP.fsum(t * MP.exp(x) for t, x in zip(times, differences, strict=True) if t)
    plain = MP.log1p(total)
    p = [MP.exp(x) / (1 + total) for x in differences]
    if kind is ufm.Focal:
        gamma, lacking = _number(loss.gamma), total / (1 + total)
        slope = lacking**gamma + gamma * lacking ** (gamma - 1) / (1 + total) * plain
        first = slope * MP.fsum(t * a * (b + m) for t, a, b in zip(times, p, ms, strict=True))
        return lacking**gamma * plain, first, MP.zero
    if kind not in (ufm.CrossEntropy, ufm.LabelSmoothing):
        raise NotImplementedError(kind.__name__)
    other = _number(loss.alpha) / sum(sizes) if kind is ufm.LabelSmoothing else MP.zero
    value = plain - other * MP.fdot(times, differences)
    slopes = [a - other for a in p]
    first = abs(MP.fdot(times, slopes)) * m
    first += MP.fsum(t * abs(a) * b for t, a, b in zip(times, slopes, ms, strict=True))
    return value, first, MP.zero


def _class_weight(loss: Any, classes: _Classes, g: int) -> Any:
    if loss.weights is not None:
        return _vector(loss.weights)[g]
    K, n = sum(classes.sizes), classes.counts[g]
    return (classes.samples / (K * n)) ** _number(loss.exponent)


def _classes(problem: Problem, sizes: list[int]) -> _Classes:
    """Return the counts of the groups, or of all classes where these stand alone."""
    groups = problem.class_counts
    counts = groups.counts if len(sizes) == groups.num_groups else groups.per_class
    return _Classes(_vector(counts), sizes)


def _with_bias(plain: Rows, size: Rows, bias: Vector, factor: Any) -> _Logits:
    z = [[factor * x + b for x, b in zip(row, bias, strict=True)] for row in plain]
    m = [[factor * x + abs(b) for x, b in zip(row, bias, strict=True)] for row in size]
    K = range(len(z))
    return _Logits([z[k][k] for k in K], z, [m[k][k] for k in K], m)


def _number(value: Any) -> Any:
    return MP.mpf(np.asarray(value).item())


def _vector(values: Any) -> Vector:
    return [_number(value) for value in np.ravel(np.asarray(values))]


def _rows(matrix: Any) -> Rows:
    return [_vector(row) for row in np.asarray(matrix)]


def _bias(bias: Any, length: int) -> Vector:
    return [MP.zero] * length if bias is None else _vector(bias)
