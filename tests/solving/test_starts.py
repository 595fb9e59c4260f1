"""How many initial points there are, and in which sets."""

import jax
import jax.numpy as jnp
import numpy as np
from plain import a_problem, random_parameters

import ufm
from ufm._support import double_precision, rebuilt
from ufm.problems import Problem, one_count_per_class, samples_of
from ufm.solving import default_restarts, exchanged_starts, start_sets
from ufm.solving.methods import balanced_space


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


def test_two_classes_change_places() -> None:
    problem = one_count_per_class(a_problem(use_bias=True, nonnegative_features=True))
    point = random_parameters(problem)
    point = point._replace(features=np.abs(point.features))
    starts = exchanged_starts(problem, point)
    samples = samples_of(problem, 3)
    with double_precision():
        space = balanced_space(problem, samples)
        before = space.flatten(jax.tree.map(jnp.asarray, point))
    K, d = 3, problem.feature_dim
    assert starts.shape == (3, before.size)
    for order, start in zip(([1, 0, 2], [2, 1, 0], [0, 2, 1]), starts, strict=True):
        for begin, rows in ((0, (K, d)), (K * d, (K, d)), (2 * K * d, (K, 1))):
            block = slice(begin, begin + rows[0] * rows[1])
            expected = np.asarray(before)[block].reshape(rows)[order]
            np.testing.assert_allclose(start[block].reshape(rows), expected, rtol=1e-13)
