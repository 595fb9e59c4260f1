import dataclasses

import jax
import numpy as np
import pytest
from landscape_models import linear, plain_objective, random_point, simplex_minimiser
from tables import for_each

import ufm
from ufm._support import double_precision
from ufm.landscape import dead_units, revive
from ufm.landscape.dead_units import unit_growth
from ufm.problems import Parameters, Problem, class_samples
from ufm.solving.relu import smooth_piece_at

RELU = Problem(
    class_counts=(4.0, 3.0, 2.0),
    feature_dim=2,
    loss=ufm.CrossEntropy(),
    regularizer=ufm.WeightDecay(weights=(0.003, 0.002), features=0.002),
    hidden_dims=(5,),
    activation="relu",
)


def with_dead_units(problem: Problem, seed: int, dead: tuple[int, ...] = (1, 3)) -> Parameters:
    """A random point whose units `dead` have negative inputs for every class."""
    point = random_point(problem, seed, 0.7)
    H, W = np.abs(point.features), point.weights[0].copy()
    W[list(dead)] = -np.abs(W[list(dead)])
    return Parameters((W, *point.weights[1:]), H, point.bias)


def test_dead_units_are_found_and_located() -> None:
    point = with_dead_units(RELU, 0)
    dead = dead_units(RELU, point)
    expected = np.all(point.features @ point.weights[0].T <= 0, axis=0)
    np.testing.assert_array_equal(dead.units[0], expected)
    assert {1, 3} <= set(np.flatnonzero(dead.units[0]))
    assert not np.any(dead.removed[0])
    assert not np.any(dead.classes)
    assert dead.number == np.sum(expected)
    W, V = (matrix.copy() for matrix in point.weights)
    W[1], V[:, 1] = 0, 0
    features = point.features.copy()
    features[2] = 0
    removed = dead_units(RELU, Parameters((W, V), features, None))
    assert removed.removed[0][1]
    assert not removed.removed[0][3]
    np.testing.assert_array_equal(removed.classes[1], [False, False, True])
    assert "units dead" in str(removed)


def test_coordinates_and_classes_of_non_negative_features_can_be_dead() -> None:
    problem = linear(nonnegative_features=True)
    features = np.abs(random_point(problem).features)
    features[:, 2], features[1] = 0, 0
    dead = dead_units(problem, Parameters(random_point(problem).weights, features, None))
    np.testing.assert_array_equal(np.flatnonzero(dead.coordinates), [2])
    np.testing.assert_array_equal(dead.classes, [[False, True, False, False]])
    # Signed linear features have none, wherever they are zero.
    assert dead_units(linear(), simplex_minimiser()).number == 0


@for_each("seed", range(3))
def test_the_growth_of_a_unit_is_the_best_of_all_directions(seed: int) -> None:
    """Against a fine grid of directions in the plane, and a bound that no direction exceeds."""
    point = random_point(RELU, seed)
    with double_precision():
        local = smooth_piece_at(RELU, point)
        growth = unit_growth(local, 0)
    angles = np.linspace(0, 2 * np.pi, 20_001)
    outputs = np.maximum(point.features @ np.stack([np.cos(angles), np.sin(angles)]), 0)
    gains = np.linalg.norm(local.signals[1].T @ outputs, axis=0)
    assert growth.gain == pytest.approx(np.max(gains), rel=1e-6)
    assert growth.gain >= np.max(gains) * (1 - 1e-12)
    assert growth.bound >= growth.gain
    assert growth.allowed == pytest.approx(np.sqrt(0.003 * 0.002))


@pytest.mark.nightly
@for_each("seed", range(4))
def test_revival_inside_norm_balls_stays_inside_and_never_raises_the_objective(seed: int) -> None:
    balls = dataclasses.replace(RELU, regularizer=ufm.NormBall(weights=(1.0, 1.5), features=2.0))
    point = with_dead_units(balls, seed)
    W, V = (block / np.sqrt(np.mean(np.sum(block**2, axis=1))) for block in point.weights)
    H = point.features * np.sqrt(2 / np.mean(np.sum(point.features**2, axis=1)))
    revival = revive(balls, Parameters((W, np.sqrt(1.5) * V), H, None))
    assert {(1, 1), (1, 3)} <= set(revival.zeroed)
    assert revival.decrease >= 0
    with double_precision():
        assert (
            max(balls.norms(revival.parameters, class_samples(balls, np.dtype(np.float64))))
            <= 1 + 1e-9
        )


@for_each("seed", range(6))
def test_revival_never_raises_the_objective_and_leaves_other_units_alone(seed: int) -> None:
    point = with_dead_units(RELU, seed)
    revival = revive(RELU, point, key=seed)
    assert revival.before == pytest.approx(plain_objective(RELU, point), rel=1e-13)
    assert revival.after == pytest.approx(plain_objective(RELU, revival.parameters), rel=1e-13)
    assert revival.decrease > 0
    assert set(revival.revived) <= set(revival.zeroed)
    assert {(1, 1), (1, 3)} <= set(revival.zeroed)
    alive = ~dead_units(RELU, point).units[0]
    np.testing.assert_array_equal(revival.parameters.weights[0][alive], point.weights[0][alive])
    np.testing.assert_array_equal(revival.parameters.features, point.features)


def test_a_unit_comes_back_where_it_lowers_the_objective() -> None:
    """Only one unit is left, which cannot tell three classes apart."""
    W, V = np.zeros((5, 2)), np.zeros((3, 5))
    W[0], V[:, 0] = (1.0, 0.2), (1.0, -0.5, -0.5)
    H = np.array([[1.0, 0.1], [-0.5, 1.0], [-0.5, -1.0]])
    revival = revive(RELU, Parameters((W, V), H, None))
    assert len(revival.zeroed) == 4
    assert len(revival.revived) >= 2
    assert revival.decrease > 0.05


def test_nothing_is_revived_at_the_origin_or_without_dead_units() -> None:
    origin = jax.tree.map(np.zeros_like, random_point(RELU))
    revival = revive(RELU, origin)
    assert revival.revived == ()
    assert revival.decrease == 0
    linear_revival = revive(linear(), simplex_minimiser())
    assert (linear_revival.zeroed, linear_revival.decrease) == ((), 0.0)


def test_a_dead_coordinate_of_the_features_comes_back() -> None:
    problem = linear(nonnegative_features=True)
    H = np.zeros((4, 6))
    H[:3, :3] = 0.6 * np.eye(3)
    W = np.zeros((4, 6))
    W[:, :3] = 1.5 * (np.eye(4)[:, :3] - 0.25)
    revival = revive(problem, Parameters((W,), H, None))
    assert revival.zeroed == ((0, 3), (0, 4), (0, 5))
    assert (0, 3) in revival.revived
    assert np.min(revival.parameters.features) >= 0
    assert revival.parameters.features[3, 3] > 0
    assert revival.decrease > 0.01
