"""What theorems about next-token models are about, and what they refuse."""

import numpy as np
from tables import for_each

import ufm

ROWS = np.array([[0.9, 0.1, 0], [0.3, 0.7, 0], [0.5, 0, 0.5], [0, 0.4, 0.6]])


def problem(rows=ROWS, **changed):
    options = {
        "feature_dim": 3,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=1e-2, features=1e-2),
    }
    return ufm.Problem(targets=ufm.Targets(rows), **{**options, **changed})


@for_each(
    ("changed", "words"),
    [
        ({"loss": ufm.SquaredError()}, "the loss CrossEntropy"),
        ({"regularizer": ufm.NormBall(weights=1.0, features=1.0)}, "WeightDecay"),
        ({"use_bias": True}, "no bias"),
        ({"feature_dim": 1}, "d >= min"),
        ({"nonnegative_features": True}, "any sign"),
        ({"rows": 2 * ROWS}, "distributions"),
        ({"rows": np.array([[0.5, 0.5]])}, "not complete"),
    ],
)
def test_conditions_of_the_rates(changed, words):
    theorem = ufm.theorems["next-token-rates"]
    assert theorem.applies(problem())
    assert words in str(theorem.applies(problem(**changed)))


def test_conditions_of_the_others():
    collapse = ufm.theorems["next-token-collapse"]
    assert "two equal target rows" in str(collapse.applies(problem()))
    assert collapse.applies(problem(ROWS[[0, 0, 2]]))
    proxy = ufm.theorems["next-token-centred-supports"]
    assert proxy.applies(problem())
    assert all(
        theorem.applies(example.problem)
        for theorem in (collapse, proxy)
        for example in theorem.examples
    )
