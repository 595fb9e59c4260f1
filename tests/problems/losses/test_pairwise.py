"""Losses of pairs: the closed forms of balanced classes, with margins M = z_own - z_other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from balanced import solved
from tables import for_each

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
