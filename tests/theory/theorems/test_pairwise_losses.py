"""Pairwise losses: margins where they are known, and the problems that are refused."""

import numpy as np
from tables import for_each

import ufm

LOGISTIC = ufm.PairwiseLogistic()


def problem(loss, counts=(5.0,) * 4, decay=0.05, **options):
    return ufm.Problem(
        class_counts=counts,
        feature_dim=3,
        loss=loss,
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
        **options,
    )


@for_each(
    ("loss", "slope"),
    [
        (LOGISTIC, lambda x: 1 / (1 + np.exp(-x))),
        (ufm.Exponential(), np.exp),
        (ufm.SquaredHinge(), lambda x: max(0, 1 + x)),
    ],
)
def test_the_margin_is_where_the_slope_is_the_price(loss, slope):
    prediction = ufm.predict(problem(loss))
    t = 0.05 * np.sqrt(5.0)
    margin = float(prediction.constants["margin"])
    np.testing.assert_allclose(slope(-margin), t, rtol=1e-13)
    np.testing.assert_allclose(prediction.logits, margin * (np.eye(4) - 1 / 4), atol=1e-14)
    threshold = float(prediction.constants["threshold"])
    np.testing.assert_allclose(slope(0), threshold, rtol=1e-15)
    for factor, collapsed in ((0.999, False), (1.001, True)):
        found = ufm.predict(problem(loss, decay=factor * threshold / np.sqrt(5.0)))
        assert bool(found.collapsed) == collapsed


@for_each(
    ("changed", "words"),
    [
        ({"counts": (5.0, 5.0, 5.0, 4.0)}, "equal class counts"),
        ({"loss": ufm.WestonWatkins()}, "the loss PairwiseLogistic"),
        ({"nonnegative_features": True}, "any sign"),
        ({"hidden_dims": (4,)}, "L = 1"),
        ({"counts": (5.0,) * 5}, "d >= K - 1"),
    ],
)
def test_what_is_refused(changed, words):
    theorem = ufm.theorems["pairwise-logistic-etf"]
    assert theorem.applies(problem(LOGISTIC))
    assert words in str(theorem.applies(problem(**{"loss": LOGISTIC, **changed})))
