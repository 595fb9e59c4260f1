"""Losses of pairs: the closed forms of balanced classes, with margins M = z_own - z_other."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from balanced import solved
from tables import for_each, slow

import ufm
from ufm.problems import Loss


def value(loss_at: Callable[[float], float], margin: float, price: float, K: int = 4) -> float:
    """Return K - 1 pairs at one margin, and the nuclear norm of M times the centring."""
    return (K - 1) * (loss_at(margin) + price * margin)


MARGINS: list[tuple[Loss, Callable[[float], float], Callable[[float], float]]] = [
    (
        ufm.PairwiseLogistic(),
        lambda t: float(np.log(1 / t - 1)),
        lambda M: float(np.log1p(np.exp(-M))),
    ),
    (ufm.Exponential(), lambda t: float(np.log(1 / t)), lambda M: float(np.exp(-M))),
    (ufm.SquaredHinge(), lambda t: 1 - t, lambda M: (1 - M) ** 2 / 2),
]


@pytest.mark.slow
@for_each(("loss", "margin", "loss_at"), MARGINS)
def test_balanced_classes_have_the_margin_of_their_price(
    loss: Any, margin: Callable[[float], float], loss_at: Callable[[float], float]
) -> None:
    for t, bias in ((0.03, False), (0.3, True)):
        expected = value(loss_at, margin(t), t)
        assert solved(loss, t, use_bias=bias) == pytest.approx(expected, abs=1e-10)


@pytest.mark.slow
@for_each(("loss", "collapsed"), [(ufm.PairwiseLogistic(), 0.5), (ufm.Exponential(), 1.0)])
def test_balanced_classes_collapse_at_the_slope_of_a_pair_at_zero(
    loss: Any, collapsed: float
) -> None:
    at_zero = 3 * {0.5: np.log(2), 1.0: 1.0}[collapsed]
    assert solved(loss, 1.01 * collapsed) == pytest.approx(at_zero, abs=1e-10)
    assert solved(loss, 0.95 * collapsed) < at_zero - 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_nearest_duals_of_hinge_losses() -> None:
    draws = np.random.default_rng(0)
    rows = np.repeat([[0, 2.0, 0, 0], [1.0, 0, 0, 0]], 6, axis=0)
    points = draws.normal(size=rows.shape) * 2
    points[0], points[6] = -1, 0.1
    for loss, total in ((ufm.WestonWatkins(), np.inf), (ufm.CrammerSinger(), 1.0)):
        found = np.asarray(loss.nearest(jnp.asarray(points), jnp.asarray(rows)))
        for point, row, nearest in zip(points, rows, found, strict=True):
            others = row == 0
            mass = np.sum(row)
            sums = {"type": "ineq", "fun": lambda t, most=total * mass: most - np.sum(t)}
            best = scipy.optimize.minimize(
                lambda t, point=point, others=others: np.sum((t - point[others]) ** 2),
                np.zeros(3),
                bounds=[(0, mass)] * 3,
                constraints=[sums] if total < np.inf else [],
                tol=1e-12,
            )
            np.testing.assert_allclose(nearest[others], best.x, atol=1e-6)
            assert np.all(nearest[~others] == 0)


@pytest.mark.usefixtures("float64")
@for_each("loss", [ufm.WestonWatkins(), slow(ufm.CrammerSinger())])
def test_a_softened_hinge_is_below_the_hinge_and_has_the_conjugate_it_says(loss: Any) -> None:
    center = np.array([[0.3, 0.2, 0.1]])
    for width in (1.0, 0.01):
        soft = loss.softened(center, width)
        report = ufm.losses.check_loss(soft)
        assert report, str(report)
    rows, classes = jnp.eye(3), ufm.ClassGroups((1.0, 1.0, 1.0))
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    exact = loss.softened(center, 1.0, exact=True)
    assert np.all(exact(logits, rows, classes) <= loss(logits, rows, classes))
    dual = exact.duals(logits, rows)
    np.testing.assert_array_equal(
        exact.conjugate(dual, rows, classes), loss.conjugate(dual, rows, classes)
    )
