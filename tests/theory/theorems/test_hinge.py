"""Hinge losses at the SELI geometry: where the theorem applies, and where it does not."""

import numpy as np
from tables import for_each

import ufm

THEOREM = ufm.theorems["hinge-seli"]


def problem(loss=None, counts=(8.0, 4.0, 2.0), decay=0.02, **options):
    return ufm.Problem(
        class_counts=counts,
        feature_dim=2,
        loss=ufm.WestonWatkins() if loss is None else loss,
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
        **options,
    )


@for_each("loss", [ufm.WestonWatkins(), ufm.CrammerSinger()])
def test_it_applies_up_to_the_largest_slope(loss):
    counts = np.array([8.0, 4.0, 2.0])
    centring = np.eye(3) - 1 / 3
    values, vectors = np.linalg.eigh(centring @ np.diag(counts) @ centring)
    matrix = (vectors[:, 1:] / np.sqrt(values[1:])) @ vectors[:, 1:].T
    pairs = isinstance(loss, ufm.WestonWatkins)
    largest = -(matrix - np.diag(np.diag(matrix))).min() if pairs else np.diag(matrix).max()
    at = 1 / (counts.sum() * largest)
    assert THEOREM.applies(problem(loss, decay=0.999 * at))
    assert "slopes below one" in str(THEOREM.applies(problem(loss, decay=1.001 * at)))


@for_each(
    ("changed", "words"),
    [
        ({"loss": ufm.SquaredHinge()}, "WestonWatkins or CrammerSinger"),
        ({"use_bias": True}, "no bias"),
        ({"counts": (4.0,) * 4}, "d >= K - 1"),
        ({"nonnegative_features": True}, "any sign"),
    ],
)
def test_what_is_refused(changed, words):
    assert THEOREM.applies(problem())
    assert words in str(THEOREM.applies(problem(**changed)))
