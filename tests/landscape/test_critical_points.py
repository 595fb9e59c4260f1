import functools

import jax
import numpy as np
import pytest
import scipy.optimize
from landscape_models import (
    D,
    K,
    linear,
    plain_objective,
    random_point,
    rotated,
    shifted,
    simplex_minimiser,
    squared_error_point,
)
from tables import for_each

import ufm
from ufm.landscape import CriticalPoint, classify, symmetry_dimension
from ufm.problems import Parameters, Problem

SQUARED_ERROR = linear(loss=ufm.SquaredError())


def stiefel(rank: int, dimension: int) -> int:
    """Dimension of the frames of a rank: rotations less those that leave a frame alone."""
    return rank * (rank - 1) // 2 + rank * (dimension - rank)


def zeros(problem: Problem) -> Parameters:
    return jax.tree.map(np.zeros_like, random_point(problem))


def check_escape(problem: Problem, parameters: Parameters, point: CriticalPoint) -> None:
    """The way out leads down, by what it says, on the plain objective."""
    assert point.escape is not None
    lower = plain_objective(problem, shifted(parameters, point.escape.step))
    decrease = plain_objective(problem, parameters) - lower
    assert decrease == pytest.approx(max(point.escape.decreases), rel=1e-6, abs=1e-15)
    assert decrease > 0


# Linear layers


@for_each("seed", range(2))
def test_the_simplex_is_a_global_minimum_flat_along_rotations_only(seed: int) -> None:
    parameters = rotated(simplex_minimiser(), seed)
    point = classify(linear(), parameters)
    assert point.kind == "global minimum"
    assert point.is_minimum
    assert (
        point.num_flat
        == point.symmetry_dimension
        == stiefel(K - 1, D)
        == symmetry_dimension(linear(), parameters)
    )
    assert point.relative_gradient < 1e-12
    assert point.gap > 1e6
    assert (point.escape, point.kinks, point.reasons, point.num_held) == (None, None, (), 0)
    assert "global minimum" in str(point)


@for_each("modes", [(), (0,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_subsets_of_modes_are_saddles_with_a_way_out(modes: tuple[int, ...]) -> None:
    parameters = squared_error_point(modes)
    point = classify(SQUARED_ERROR, parameters)
    assert point.symmetry_dimension == stiefel(len(modes), D)
    if len(modes) == K:
        assert point.kind == "global minimum"
        assert point.num_flat == point.symmetry_dimension
        return
    assert point.kind == "strict saddle"
    assert not point.is_minimum
    # Every missing mode can come in along any of the D - r unused dimensions.
    assert point.num_negative == (K - len(modes)) * (D - len(modes))
    assert point.lowest < 0
    check_escape(SQUARED_ERROR, parameters, point)
    # To second order both ways out are alike.
    assert min(point.escape.decreases) == pytest.approx(max(point.escape.decreases), rel=1e-6)


@pytest.mark.nightly
def test_without_a_spare_dimension_the_missing_mode_is_still_a_saddle() -> None:
    """With d = r, the value of rank r is a minimum that no certificate can tell from others."""
    parameters = squared_error_point((0, 1, 2))
    smaller = linear(loss=ufm.SquaredError(), feature_dim=3)
    cut = Parameters((parameters.weights[0][:, :3],), parameters.features[:, :3], None)
    point = classify(smaller, cut)
    assert point.kind != "strict saddle"
    assert point.kind != "global minimum"
    # Balanced classes are exchanged at no cost: flat beyond the rotations, but level.
    assert point.num_flat == stiefel(3, 3) + 3
    assert point.kind == "local minimum"
    assert point.valley


@for_each("size", [1e-2, 1e-5])
def test_a_perturbed_point_is_not_critical_and_the_answer_says_how_far(size: float) -> None:
    parameters = shifted(simplex_minimiser(), random_point(linear(), 5), size)
    point = classify(linear(), parameters)
    assert point.kind == "not critical"
    assert size / 100 < point.relative_gradient < 100 * size
    assert "relative gradient" in point.reasons[0]
    assert classify(linear(), parameters, tol=100 * size).kind != "not critical"


def test_a_minimum_of_another_problem_is_not_critical_here() -> None:
    assert (
        classify(linear(loss=ufm.LabelSmoothing(0.1)), simplex_minimiser()).kind == "not critical"
    )
    assert classify(SQUARED_ERROR, simplex_minimiser()).kind == "not critical"


def test_not_a_number_is_never_critical() -> None:
    parameters = random_point(linear())
    parameters.weights[0][0, 0] = np.nan
    assert classify(linear(), parameters).kind == "not critical"


@pytest.mark.nightly
def test_a_free_bias_of_a_loss_that_does_not_see_it_is_one_more_symmetry() -> None:
    free, penalised = (
        linear(use_bias=True, regularizer=ufm.WeightDecay(0.02, 0.004, rate)) for rate in (0.0, 0.1)
    )
    parameters = simplex_minimiser()._replace(bias=np.full(K, 0.7))
    point = classify(free, parameters)
    assert point.kind == "global minimum"
    assert point.num_flat == point.symmetry_dimension == stiefel(K - 1, D) + 1
    assert classify(penalised, parameters).kind == "not critical"
    centred = classify(penalised, parameters._replace(bias=np.zeros(K)))
    assert centred.num_flat == centred.symmetry_dimension == stiefel(K - 1, D)


@pytest.mark.nightly
def test_features_of_samples_have_the_same_kinds() -> None:
    """The rotations are the same; within a class the features are determined."""
    problem, parameters = linear(), simplex_minimiser()
    lifted = parameters._replace(features=np.repeat(parameters.features, 5, axis=0))
    point = classify(problem, lifted)
    assert point.kind == "global minimum"
    assert point.num_flat == point.symmetry_dimension == stiefel(K - 1, D)


@pytest.mark.nightly
def test_norm_balls_are_met_through_slack() -> None:
    problem = linear(regularizer=ufm.NormBall(weights=1.0, features=2.0))
    W, H = simplex_minimiser().weights[0], simplex_minimiser().features
    W, H = (
        block / np.sqrt(np.mean(np.sum(block**2, axis=1)) / bound)
        for block, bound in ((W, 1.0), (H, 2.0))
    )
    point = classify(problem, Parameters((W,), H, None))
    assert point.kind == "global minimum"
    assert point.num_flat == point.symmetry_dimension == stiefel(K - 1, D)
    assert point.num_held == 2  # the scales that the coordinates do not see
    origin = classify(problem, zeros(problem))
    assert origin.kind == "strict saddle"
    assert classify(problem, Parameters((0.9 * W,), H, None)).kind == "not critical"


@pytest.mark.nightly
def test_a_deep_linear_origin_is_a_local_minimum_and_its_certificate_says_not_global() -> None:
    problem = linear(
        hidden_dims=(3,), loss=ufm.SquaredError(), regularizer=ufm.WeightDecay(0.004, 0.004)
    )
    point = classify(problem, zeros(problem))
    assert point.kind == "local minimum"
    assert point.lowest > 0
    assert point.certificate is not None
    assert not point.certificate.holds


def test_bad_input_is_named() -> None:
    parameters = simplex_minimiser()
    with pytest.raises(ValueError, match="`tol` must be a positive finite number"):
        classify(linear(), parameters, tol=0.0)
    other = classify(linear(), zeros(linear())).certificate
    with pytest.raises(ValueError, match="`certificate` is for a point with objective"):
        classify(linear(), parameters, certificate=other)


# Non-negative features

COUNTS = (200.0, 120.0, 70.0, 30.0, 10.0)
SPURIOUS, GLOBAL = 1.1300011273, 1.1281173963


def dead_class_problem() -> Problem:
    return Problem(
        class_counts=COUNTS,
        feature_dim=4,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
        nonnegative_features=True,
    )


def alive(counts: tuple[float, ...], classes: int, dimension: int) -> Parameters:
    """The closed form with only the first `classes` classes alive, one coordinate each.

    Dang et al. (2024).
    """
    count, n, N = len(counts), np.array(counts), sum(counts)
    q = N * 1e-2 * np.sqrt((count - 1) / (count * n))
    M = np.where(np.arange(count) < classes, np.log(np.maximum((count - 1) * (1 / q - 1), 1)), 0)
    lengths = np.sqrt(np.sqrt((count - 1) / (count * n)) * M)
    H = np.diag(lengths)[:, :dimension]
    scaled = np.sqrt(n)[:, None] * H
    W = np.sqrt(count / (count - 1)) * (scaled - scaled.sum(axis=0) / count)
    return Parameters((np.pad(W, ((0, 0), (0, max(0, dimension - count)))),), H, None)


@functools.cache
def spread_over_all_coordinates() -> Parameters:
    """Two dead classes; the first class has two coordinates, so that none is left."""
    point = alive(COUNTS, 3, 4)
    turn = np.eye(4)
    turn[np.ix_((0, 3), (0, 3))] = [[0.8, 0.6], [-0.6, 0.8]]
    return Parameters((point.weights[0] @ turn,), point.features @ turn, None)


def test_the_dead_class_is_a_local_minimum_and_not_the_global_one() -> None:
    point = classify(dead_class_problem(), spread_over_all_coordinates())
    assert point.objective == pytest.approx(SPURIOUS, abs=1e-9)
    assert point.kind == "local minimum"
    # The two coordinates with the same support can be turned: a valley, of which this is one point.
    assert point.num_flat == point.symmetry_dimension == 1
    assert point.certificate is not None
    assert not point.certificate.holds


def test_the_valley_of_the_dead_class_ends_at_a_saddle() -> None:
    """With the first class in one coordinate, the fourth can come in through the other."""
    parameters = alive(COUNTS, 3, 4)
    point = classify(dead_class_problem(), parameters)
    assert point.objective == pytest.approx(SPURIOUS, abs=1e-9)
    assert point.kind == "strict saddle"
    check_escape(dead_class_problem(), parameters, point)
    stepped = shifted(parameters, point.escape.step)
    assert np.min(stepped.features) >= 0
    assert stepped.features[3, 3] > 0


def test_with_every_class_in_that_deserves_it_the_point_is_global() -> None:
    """Only in d >= K does the certificate close; a fifth coordinate is zero, and cannot come in."""
    problem = dead_class_problem()
    point = classify(problem, alive(COUNTS, 4, 4))
    assert point.objective == pytest.approx(GLOBAL, abs=1e-9)
    assert point.kind == "global minimum"
    assert point.num_flat == point.symmetry_dimension == 0


# ReLU layers


LAYERS, FEATURES = 0.004, 0.001


def one_dimension(units: int, loss: ufm.losses.Loss, counts: tuple[float, ...]) -> Problem:
    return Problem(
        class_counts=counts,
        feature_dim=1,
        loss=loss,
        regularizer=ufm.WeightDecay(LAYERS, FEATURES),
        hidden_dims=(units,),
        activation="relu",
    )


def one_unit(
    counts: tuple[float, ...], offsets: tuple[float, ...]
) -> tuple[float, float, np.ndarray]:
    """Feature and weights of a unit that serves the first class alone, at a stationary point.

    With delta = softmax(z + offsets) - e_0 and pi the share of the class: lambda v = -pi p delta,
    lambda w = t h and lambda_H n h = t w with t = -pi <delta, v>; so t^2 = lambda lambda_H n, and z
    = p v = -a delta with a = pi p^2 / lambda.
    """
    share = counts[0] / sum(counts)

    def delta(z: np.ndarray) -> np.ndarray:
        p = np.exp(z + np.array(offsets) - np.max(z + np.array(offsets)))
        return p / p.sum() - np.eye(len(z))[0]

    def logits(a: float) -> np.ndarray:
        start = np.array([2.0, -1.0, -1.0])
        return scipy.optimize.root(lambda z: z + a * delta(z), start, tol=1e-15).x

    def slope(a: float) -> float:
        p, d = np.sqrt(a * LAYERS / share), delta(logits(a))
        return share**2 / LAYERS * p * (d @ d) - np.sqrt(LAYERS * FEATURES * counts[0])

    a = scipy.optimize.brentq(slope, 20.0, 1e4, xtol=1e-13, rtol=1e-15)
    p = np.sqrt(a * LAYERS / share)
    ratio = np.sqrt(LAYERS / (FEATURES * counts[0]))  # h / w
    return np.sqrt(p * ratio), np.sqrt(p / ratio), logits(a) / p


@functools.cache
def two_sides(units: int = 2) -> tuple[Problem, Parameters]:
    """Two classes on either side of one dimension, one unit each.

    The third class is at zero, where both units have their kinks.
    """
    problem = one_dimension(units, ufm.LogitAdjusted(offsets=(0.0, 0.0, 0.0)), (5.0, 5.0, 2.0))
    h, w, v = one_unit((5.0, 5.0, 2.0), (0.0, 0.0, 0.0))
    W, V = np.zeros((units, 1)), np.zeros((3, units))
    W[:2, 0], V[:, 0], V[:, 1] = (w, -w), v, v[[1, 0, 2]]
    return problem, Parameters((W, V), np.array([[h], [-h], [0.0]]), None)


@pytest.mark.slow
def test_a_minimum_on_kinks_has_slopes_inside() -> None:
    problem, parameters = two_sides()
    assert parameters.features[2] == 0
    point = classify(problem, parameters)
    assert point.kind == "local minimum"
    assert point.kinks is not None
    assert point.kinks.number == 2
    assert (point.kinks.concave, point.kinks.weak) == (0, 0)
    # Both units pull at the third class from opposite sides, alike.
    np.testing.assert_allclose(point.kinks.slopes, 0.5, atol=1e-6)
    assert point.num_held == 1
    assert point.num_flat == 0
    draws = np.random.default_rng(0)
    value = plain_objective(problem, parameters)
    for size in (1e-2, 1e-4):
        for _ in range(200):
            step = jax.tree.map(
                lambda block, size=size: size * draws.normal(size=block.shape), parameters
            )
            assert plain_objective(problem, shifted(parameters, step)) > value


def test_off_the_kink_the_point_is_not_critical() -> None:
    problem, parameters = two_sides()
    features = parameters.features.copy()
    features[2] = 1e-3
    point = classify(problem, parameters._replace(features=features))
    assert point.kind == "not critical"
    # Taken for a kink it would be close to critical, but not to the tolerance.
    assert (
        classify(problem, parameters._replace(features=features), near=1e-1).kind == "not critical"
    )


def test_a_concave_kink_is_left() -> None:
    """The third class would gain from the second logit, which the unit of the first class lowers.

    A ReLU at zero does not see it.
    """
    counts, offsets = (5.0, 3.0, 2.0), (0.0, 3.0, 0.0)
    problem = one_dimension(2, ufm.LogitAdjusted(offsets=offsets), counts)
    h, w, v = one_unit(counts, offsets)
    parameters = Parameters(
        (np.array([[w], [0]]), np.stack([v, 0 * v], 1)), np.array([[h], [0.0], [0.0]]), None
    )
    point = classify(problem, parameters)
    assert point.kinks is not None
    assert (point.kinks.number, point.kinks.concave, point.kinks.zero_units) == (2, 1, 1)
    np.testing.assert_array_equal(point.kinks.slopes, 0)
    assert point.kind == "strict saddle"
    assert "concave" in point.escape.reason
    stepped = shifted(parameters, point.escape.step)
    assert stepped.features[2] > 0
    assert classify(problem, stepped).objective < point.objective


@pytest.mark.nightly
def test_units_with_zero_weights_are_judged() -> None:
    """Copies of other units cost nothing, which second order does not decide.

    Where the second class has no unit, one is missed.
    """
    problem, parameters = two_sides(3)
    point = classify(problem, parameters)
    assert point.kinks.zero_units == 1
    assert point.kind == "degenerate"
    assert "copies" in point.reasons[0]
    W, V, H = (block.copy() for block in (*parameters.weights, parameters.features))
    W[1], V[:, 1], H[1] = 0, 0, 0
    missed = classify(problem, Parameters((W, V), H, None))
    assert missed.kinks.zero_units == 2
    assert classify(problem, zeros(problem)).kind == "local minimum"


@pytest.mark.nightly
@for_each(
    ("counts", "kind"),
    [((5.0, 4.0, 2.0), "local minimum"), ((3.0, 5.0, 4.0), "strict saddle")],
)
def test_kinks_without_a_signal_are_judged_piece_by_piece(
    counts: tuple[float, ...], kind: str
) -> None:
    """Squared error: to first order, other units leave the third class at zero as it is.

    To second order it can move over to the side of another one and turn that unit towards its own
    logit, at that one's cost: worth it where it is the larger class.
    """
    problem = one_dimension(2, ufm.SquaredError(), counts)
    N = sum(counts)
    W, V, H = np.zeros((2, 1)), np.zeros((3, 2)), np.zeros((3, 1))
    for unit, sign in ((0, 1), (1, -1)):
        n = counts[unit]

        def slope(z: float, n: float = n) -> float:
            # lambda v = (n / N) (1 - z) p with z = p v; the slope (n / N) (1 - z) v equals
            # sqrt(lambda lambda_H n) at equal penalties.
            v = np.sqrt(z * (n / N) * (1 - z) / LAYERS)
            return (n / N) * (1 - z) * v - np.sqrt(LAYERS * FEATURES * n)

        z = scipy.optimize.brentq(slope, 0.7, 1 - 1e-9, xtol=1e-16, rtol=1e-15)
        v = np.sqrt(z * (n / N) * (1 - z) / LAYERS)
        p, ratio = z / v, np.sqrt(LAYERS / (FEATURES * n))
        H[unit], W[unit], V[unit, unit] = sign * np.sqrt(p * ratio), sign * np.sqrt(p / ratio), v
    parameters = Parameters((W, V), H, None)
    point = classify(problem, parameters)
    assert point.relative_gradient < 1e-12
    assert (point.kinks.number, point.kinks.weak) == (2, 2)
    assert point.kind == kind
    if kind == "strict saddle":
        check_escape(problem, parameters, point)
        return
    draws, value = np.random.default_rng(0), plain_objective(problem, parameters)
    for size in (1e-1, 1e-2, 1e-4):
        for _ in range(200):
            step = jax.tree.map(
                lambda block, size=size: size * draws.normal(size=block.shape), parameters
            )
            assert plain_objective(problem, shifted(parameters, step)) > value
