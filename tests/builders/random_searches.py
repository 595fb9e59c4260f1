"""Random problems whose objective has several minima, for tests of the search."""

import numpy as np

import ufm
from ufm.problems import Problem


def nonnegative_problem(rng: np.random.Generator) -> Problem:
    """Return a problem with non-negative features, d = K and a bias, mostly balanced.

    Its penalties are from weak to strong.
    """
    K = int(rng.integers(3, 9))
    balanced = rng.random() < 0.7
    counts = (
        [round(10 ** rng.uniform(0, 1.5))] * K
        if balanced
        else [round(10 ** rng.uniform(0, 2)) for _ in range(K)]
    )
    loss = [ufm.CrossEntropy(), ufm.SquaredError()][int(rng.integers(0, 2))]
    strength, split = 10 ** rng.uniform(-3.5, -0.7), 10 ** rng.uniform(-2, 4)
    tau = strength / (K * np.sqrt(sum(counts) / K))
    bias = 0.0 if rng.random() < 0.5 else 10 ** rng.uniform(-3, 0)
    return Problem(
        class_counts=counts,
        feature_dim=K,
        loss=loss,
        regularizer=ufm.WeightDecay(tau * split, tau / split, bias),
        use_bias=True,
        nonnegative_features=True,
    )


def small_dimension_problem(rng: np.random.Generator) -> Problem:
    """Return a problem with signed features and d of 1 to K - 2.

    It has one of several losses, either regularizer and any bias.
    """
    K = int(rng.integers(3, 9))
    counts = (
        [int(rng.integers(1, 101)) for _ in range(K)]
        if rng.random() < 0.7
        else [int(rng.integers(1, 101))] * K
    )
    loss = [ufm.CrossEntropy(), ufm.SquaredError(), ufm.LabelSmoothing(0.1)][
        int(rng.integers(0, 3))
    ]
    bias, strength, split = (
        int(rng.integers(0, 3)),
        10 ** rng.uniform(-3, -0.3),
        10 ** rng.uniform(-3, 3),
    )
    tau = strength / (K * np.sqrt(sum(counts) / K))
    decay = ufm.WeightDecay(
        tau * split, tau / split, 0.0 if bias == 1 else 10 ** rng.uniform(-3, 0)
    )
    ball = ufm.NormBall(10 ** rng.uniform(-0.5, 1), 10 ** rng.uniform(-0.5, 1))
    return Problem(
        class_counts=counts,
        feature_dim=int(rng.integers(1, K - 1)),
        loss=loss,
        regularizer=ball if rng.random() < 0.25 else decay,
        use_bias=bias > 0,
    )
