"""Losses on target rows of any kind: values, gradients and conjugates against 50 digits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mpf
from plain import TEACHER
from tables import for_each, slow, slow_but

import ufm
from ufm.problems import ClassGroups, Loss

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = ClassGroups((5.0, 3.0, 2.0))
EPSILON = np.finfo(float).eps

# Mass one, a label that is nearly certain, tag sets of mass two and three, a weight, no label.
SOFT = np.array(
    [[0.7, 0.2, 0.1], [1 - 2e-9, 1e-9, 1e-9], [1, 0, 1], [1, 1, 1], [0, 2.5, 0], 3 * [0]]
)
SHARES_OF_LABELS = np.array([[1, 0, 0], [1, 0, 1], [0.3, 0.9, 1e-12], [0, 0, 0], [1, 1, 1]])
WEIGHED = np.array([[1, 0, 0], [0, 2.5, 0], [0, 0, 1e-3], [0, 0, 0]])
REAL = np.array([[0.3, -2.0, 5.0], [0.0, 0.0, 1e-9]])
NUMBERS = np.array([[0, 1, 7], [3, 0, 2.5], [1e-9, 40, 1]])
SIZES = (1e-3, 1.0, 8.0, 60.0)  # of the logits


def entropy(z: Any, y: Any) -> Any:
    log_sum = mpmath.log(mpmath.fsum(map(mpmath.exp, z)))
    return mpmath.fsum(q * (log_sum - x) for x, q in zip(z, y, strict=True) if q)


def smoothed(z: Any, y: Any) -> Any:
    mass = mpmath.fsum(y)
    return entropy(z, [(1 - mpf(0.2)) * q + mpf(0.2) * mass / len(y) for q in y])


def with_margins(z: Any, y: Any) -> Any:
    top = max(y) or 1
    margins = [mpf(m) for m in (0.5, 0.25, 1.0)]
    return entropy([x - m * q / top for x, m, q in zip(z, margins, y, strict=True)], y)


def weighted(z: Any, y: Any) -> Any:
    mass = mpmath.fsum(y)
    weights = (mpf(0.5), mpf(1), mpf(3))
    total = mpmath.fsum(w * q for w, q in zip(weights, y, strict=True))
    return total / mass * entropy(z, y) if mass else mpf(0)


def distilled(z: Any, y: Any) -> Any:
    w, T = mpf(0.4), mpf(3)
    q = [mpmath.fsum(y[j] * mpf(TEACHER[j, k]) for j in range(3)) for k in range(3)]
    mass = mpmath.fsum(q)
    own = mpmath.fsum(p * mpmath.log(p / mass) for p in q if p)
    return (1 - w) * entropy(z, y) + w * T**2 * (entropy([x / T for x in z], q) + own)


def binary(z: Any, y: Any) -> Any:
    return mpmath.fsum(
        q * mpmath.log1p(mpmath.exp(-x)) + (1 - q) * mpmath.log1p(mpmath.exp(x))
        for x, q in zip(z, y, strict=True)
    )


def pairs(phi: Callable[[Any], Any], join: Callable[[Any], Any] = mpmath.fsum) -> Any:
    def formula(z: Any, y: Any) -> Any:
        own = max(range(len(y)), key=lambda c: y[c])
        return y[own] * join([phi(z[c] - z[own]) for c in range(len(z)) if c != own])

    return formula


def hinge(x: Any) -> Any:
    return max(mpf(0), 1 + x)


def huber(z: Any, y: Any) -> Any:
    sizes = [abs(x - q) for x, q in zip(z, y, strict=True)]
    return mpmath.fsum(s**2 / 2 if s <= 0.75 else mpf(0.75) * (s - mpf(0.375)) for s in sizes)


def poisson(z: Any, y: Any) -> Any:
    least = mpmath.fsum(q * mpmath.log(q) - q for q in y if q)
    return mpmath.fsum(mpmath.exp(x) - q * x for x, q in zip(z, y, strict=True)) + least


def squares(z: Any, y: Any) -> Any:
    return mpmath.fsum((x - q) ** 2 for x, q in zip(z, y, strict=True)) / 2


def ordinal(z: Any, y: Any) -> Any:
    ends = [mpf("-inf"), mpf(-0.5), mpf(1), mpf("inf")]

    def below(end: Any) -> Any:
        return 1 / (1 + mpmath.exp(z[0] - end)) if abs(end) < mpf("inf") else mpf(end > 0)

    with mpmath.extradps(200):  # the differences cancel
        levels = [below(ends[k + 1]) - below(ends[k]) for k in range(3)]
        return mpmath.fsum(-q * mpmath.log(p) for p, q in zip(levels, y, strict=True) if q)


class Exact(NamedTuple):
    """A loss, its formula in 50 digits, and target rows that it takes."""

    loss: Loss
    formula: Callable[[Any, Any], Any]
    rows: np.ndarray


EXACT = [
    Exact(ufm.CrossEntropy(), entropy, SOFT),
    Exact(ufm.LabelSmoothing(0.2), smoothed, SOFT),
    Exact(ufm.LDAM(margins=(0.5, 0.25, 1.0)), with_margins, SOFT),
    Exact(ufm.ClassWeighted(weights=(0.5, 1.0, 3.0)), weighted, SOFT),
    Exact(ufm.Distillation(0.4, temperature=3.0, teacher=TEACHER), distilled, SOFT),
    Exact(ufm.BinaryCrossEntropy(), binary, SHARES_OF_LABELS),
    Exact(ufm.PairwiseLogistic(), pairs(lambda x: mpmath.log1p(mpmath.exp(x))), WEIGHED),
    Exact(ufm.Exponential(), pairs(mpmath.exp), WEIGHED),
    Exact(ufm.SquaredHinge(), pairs(lambda x: hinge(x) ** 2 / 2), WEIGHED),
    Exact(ufm.WestonWatkins(), pairs(hinge), WEIGHED),
    Exact(ufm.CrammerSinger(), pairs(hinge, max), WEIGHED),
    Exact(ufm.Huber(0.75), huber, REAL),
    Exact(ufm.Poisson(), poisson, NUMBERS),
    Exact(ufm.SquaredError(), squares, REAL),
    Exact(ufm.Ordinal((-0.5, 1.0)), ordinal, SOFT),
]
# By default: cross-entropy, binary cross-entropy, Poisson, ordinal levels.
each_loss = for_each("case", slow_but(EXACT, keep={0, 5, 12, 14}))


def points(case: Exact) -> tuple[Any, Any]:
    """Return logits of several sizes for every row, with the label ahead in two of them."""
    draws = np.random.default_rng(3)
    rows = np.tile(case.rows, (len(SIZES), 1))
    outputs = case.loss.num_outputs(rows.shape[1])
    logits = draws.normal(size=(len(rows), outputs)) * np.repeat(SIZES, len(case.rows))[:, None]
    ahead = np.arange(len(rows)) // len(case.rows) % 2
    logits = logits + 30.0 * ahead[:, None] * rows[:, :outputs] / np.max(np.abs(case.rows))
    return jnp.asarray(logits), jnp.asarray(rows, logits.dtype)


def gradients(loss: Loss, logits: Any, rows: Any) -> Any:
    return jax.grad(lambda z: jnp.sum(loss(z, rows, CLASSES)))(logits)


def exact(row: Any) -> list[Any]:
    return [mpf(float(x)) for x in row]


@each_loss
def test_values_and_gradients_have_the_digits_of_the_formula(case: Exact) -> None:
    logits, rows = points(case)
    values = np.asarray(case.loss(logits, rows, CLASSES))
    slopes = np.asarray(gradients(case.loss, logits, rows))
    # A temperature or a margin is rounded before the exponential: an epsilon of every logit. More
    # digits than fifty, for the differences of exponential losses.
    with mpmath.workdps(150):
        for z, y, value, slope in zip(logits, rows, values, slopes, strict=True):
            at, target = exact(z), exact(y)
            expected = case.formula(at, target)
            rounded = mpmath.fsum(abs(x * mpf(float(u))) for x, u in zip(at, slope, strict=True))
            assert abs(value - expected) <= 8 * EPSILON * (abs(expected) + rounded), (z, y)
            for c in range(len(at)):
                side = mpmath.diff(
                    lambda x, c=c, at=at, target=target: case.formula(
                        [*at[:c], x, *at[c + 1 :]], target
                    ),
                    at[c],
                )
                # The terms of a gradient are at most the mass, or of its own size.
                allowed = 40 * EPSILON * (1 + abs(at[c])) * max(1, abs(side), max(map(abs, target)))
                assert abs(slope[c] - side) <= allowed, (z, y, c)


@each_loss
def test_the_conjugate_meets_the_formula_at_gradients_and_lies_above_it_elsewhere(
    case: Exact,
) -> None:
    logits, rows = points(case)
    dual = gradients(case.loss, logits, rows)
    shares = jnp.ones(len(rows)) / len(rows)
    inner = case.loss.constant_dual(rows, shares, CLASSES)
    # At a gradient, at a mixture of two of the same row, and well inside.
    other = jnp.roll(dual, len(case.rows), axis=0)
    for u, meets in (
        (dual, True),
        (0.3 * dual + 0.7 * other, False),
        (0.5 * (dual + inner), False),
    ):
        value = np.asarray(case.loss.conjugate(u, rows, CLASSES))
        size = np.asarray(case.loss.conjugate_size(u, rows, CLASSES))
        with mpmath.workdps(50):
            for z, y, slope, conjugate, scale in zip(logits, rows, u, value, size, strict=True):
                if not np.isfinite(conjugate):  # rounding has left the domain
                    continue
                product = [a * b for a, b in zip(exact(slope), exact(z), strict=True)]
                slack = case.formula(exact(z), exact(y)) + mpf(conjugate) - mpmath.fsum(product)
                rounded = 16 * EPSILON * (scale + mpmath.fsum(map(abs, product)))
                assert slack >= -rounded, (z, y)
                assert not meets or slack <= rounded, (z, y, slack)
        assert np.mean(np.isfinite(value)) > 0.5


@each_loss
def test_constant_duals_of_all_rows_have_mean_zero_and_lie_in_the_domain(case: Exact) -> None:
    rows = jnp.asarray(case.rows, float)
    shares = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(len(rows))))
    dual = case.loss.constant_dual(rows, shares, CLASSES)
    np.testing.assert_allclose(shares @ dual, 0, atol=4 * EPSILON * float(jnp.max(jnp.abs(rows))))
    assert np.all(case.loss.domain(dual, rows, CLASSES) >= -EPSILON)


@for_each(
    ("loss", "row", "words"),
    [
        (ufm.CrossEntropy(), [0.5, -0.1, 0.6], "must be non-negative and finite"),
        (ufm.Focal(1.0), [1.0, 1.0, 0.0], "must be distributions"),
        (
            ufm.BinaryCrossEntropy(),
            [1.0, 1.5, 0.0],
            r"must be in \[0, 1\].* at 1, got 1.5",
        ),
        (ufm.PairwiseLogistic(), [1.0, 1.0, 0.0], "must be one label to a row"),
        (ufm.CrammerSinger(), [0.0, -1.0, 0.0], "must be one label to a row"),
        (ufm.Poisson(), [1.0, -1.0, 0.0], "must be non-negative"),
        (ufm.Distillation(0.5), [1.0, -1.0, 0.0], "must be non-negative"),
        (
            ufm.ClassWeighted(weights=1.0, loss=ufm.Huber(1.0)),
            [1.0, -1.0, 0.0],
            "must be non-negative",
        ),
        (ufm.Ordinal((0.0, 1.0)), [1.0, -1.0, 0.0], "must be non-negative"),
    ],
)
def test_rows_that_a_loss_is_not_for_are_refused(loss: Loss, row: list[float], words: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=f"`targets` {words}"):
        ufm.Problem(
            targets=ufm.Targets([row]),
            feature_dim=2,
            loss=loss,
            regularizer=ufm.WeightDecay(1e-2, 1e-2),
        )


@for_each("loss", [ufm.PairwiseLogistic(), slow(ufm.WestonWatkins()), slow(ufm.CrammerSinger())])
def test_a_row_of_two_labels_has_no_value(loss: Loss) -> None:
    two = jnp.asarray([[1.0, 1.0, 0.0]])
    assert np.all(np.isnan(loss(two, two, CLASSES)))
