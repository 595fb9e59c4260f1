"""How many initial points there are, and in which sets."""

import ufm
from ufm._support import rebuilt
from ufm.problems import Problem
from ufm.solving import default_restarts, start_sets


def test_how_many_starts_there_are_by_default() -> None:
    signed = Problem(
        class_counts=(10.0,) * 4,
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-3),
    )
    assert default_restarts(signed) == 1
    assert start_sets(signed, 1) == [1]
    narrow = rebuilt(signed, feature_dim=2)
    assert start_sets(narrow, default_restarts(narrow)) == [64]
    assert default_restarts(rebuilt(narrow, loss=ufm.SquaredError(), feature_dim=3)) == 64
    # A free bias takes a direction away, a penalised one does not.
    free = rebuilt(signed, loss=ufm.SquaredError(), use_bias=True)
    assert default_restarts(free) == 1
    assert default_restarts(rebuilt(free, regularizer=ufm.WeightDecay(1e-2, 1e-3, 0.1))) == 64
    nonnegative = rebuilt(signed, feature_dim=4, use_bias=True, nonnegative_features=True)
    assert start_sets(nonnegative, default_restarts(nonnegative)) == [1, 21, 21, 21]
    assert start_sets(nonnegative, 4) == [1, 3]
    large = rebuilt(nonnegative, class_counts=ufm.ClassGroups.balanced(100, 10.0), feature_dim=100)
    assert default_restarts(large) == 8
