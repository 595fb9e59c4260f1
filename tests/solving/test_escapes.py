import functools

import numpy as np
import pytest
from random_problems import Kind, random_problem
from tables import for_each

import ufm
from ufm import certify
from ufm._support import Status
from ufm.problems import Parameters, Problem
from ufm.solving.escapes import concentrate, exchanged, freed_column

COUNTS = (200.0, 120.0, 70.0, 30.0, 10.0)
SPURIOUS = 1.13000113  # the fourth class is dead: its features are all zero
GLOBAL = 1.1281173963


def relu_features(dimension: int = 8) -> Problem:
    return Problem(
        class_counts=COUNTS,
        feature_dim=dimension,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
        nonnegative_features=True,
    )


@functools.cache
def spurious() -> ufm.Solution:
    """Return the first end of plain descent that is not the global minimum."""
    for key in range(12):
        solution = ufm.solve(relu_features(), method=ufm.LBFGS(), key=key)
        if solution.objective > GLOBAL + 1e-6:
            return solution
    raise AssertionError("no start ended in the spurious minimum")


# Non-negative features


def test_plain_descent_ends_in_a_spurious_minimum_and_the_certificate_tells() -> None:
    solution = spurious()
    assert solution.objective == pytest.approx(SPURIOUS, abs=1e-8)
    assert solution.status is Status.NOT_CERTIFIED
    assert solution.restarts.status[0] == Status.CONVERGED
    assert solution.escapes == 0
    assert np.max(np.abs(solution.features[3])) < 1e-4
    assert not solution.certificate.holds
    assert solution.certificate.lower_bound <= GLOBAL
    assert solution.certificate.dual_ratio == pytest.approx(1.139, abs=1e-3)
    with pytest.raises(ufm.SolveError, match="not certified"):
        solution.check()


@for_each("key", range(6))
def test_every_start_ends_in_the_certified_global_minimum(key: int) -> None:
    solution = ufm.solve(relu_features(), key=key).check()
    assert solution.objective == pytest.approx(GLOBAL, abs=1e-9)
    assert solution.certificate.relative_gap <= 1e-9
    assert np.min(solution.features) >= 0


def test_the_spurious_minimum_is_left() -> None:
    solution = ufm.solve(relu_features(), initial=spurious()).check()
    assert solution.objective == pytest.approx(GLOBAL, abs=1e-9)
    assert solution.escapes >= 1


@pytest.mark.slow
def test_where_the_dimension_is_too_small_the_bound_is_said_to_be_open() -> None:
    # Three dimensions hold three classes, and nothing is spare for the fourth: no bound can tell
    # whether another point is lower.
    solution = ufm.solve(relu_features(dimension=3)).check()
    assert solution.status is Status.CONVERGED
    assert not solution.certificate.holds
    assert not solution.certificate.tight
    assert solution.objective == pytest.approx(SPURIOUS, abs=1e-8)
    assert solution.certificate.lower_bound <= GLOBAL


def plane(decay: float, key: int) -> ufm.Solution:
    """Three equal classes, one of which descent from some starts leaves dead.

    The atoms of the other two are then spread over all dimensions.
    """
    problem = Problem(
        class_counts=(1.0, 1.0, 1.0),
        feature_dim=6,
        loss=ufm.LogitAdjusted(0.7),
        regularizer=ufm.WeightDecay(decay, decay),
        use_bias=True,
        nonnegative_features=True,
    )
    return ufm.solve(problem, resolution="classes", key=key)


@pytest.mark.slow
@for_each("decay", [1e-3, 1e-2])
def test_a_dead_class_is_left_where_atoms_are_spread_over_all_dimensions(decay: float) -> None:
    solutions = [plane(decay, key).check() for key in range(3)]
    for solution in solutions:
        assert solution.objective == pytest.approx(solutions[1].objective, rel=1e-9)


def test_concentrating_columns_keeps_products_and_norms_and_frees_columns() -> None:
    rng = np.random.default_rng(0)
    weights, roots = rng.normal(size=(5, 6)), rng.uniform(0.1, 1, size=(5, 6))
    # Features of two classes: two columns hold what six do, and a third is left of the rotations.
    roots[2:] = 0
    H, product = roots**2, weights @ (roots**2).T
    assert freed_column(weights.copy(), roots.copy()) is None
    new_weights, new_roots = weights.copy(), roots.copy()
    concentrate(new_weights, new_roots)
    np.testing.assert_allclose(new_weights @ (new_roots**2).T, product, atol=1e-14)
    assert np.sum(new_roots**4) == pytest.approx(np.sum(H**2), rel=1e-14)
    assert np.sum(new_weights**2) == pytest.approx(np.sum(weights**2), rel=1e-14)
    assert np.linalg.matrix_rank(new_roots**2) <= 2
    assert freed_column(new_weights, new_roots) is not None


# Linear features

SMALL_COUNTS = np.array([5.0, 3.0, 2.0])
DECAY = 0.02


def separable() -> tuple[Problem, np.ndarray]:
    """Squared error without bias, and the singular values of its minimiser, one per class."""
    problem = Problem(
        class_counts=SMALL_COUNTS,
        feature_dim=3,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(DECAY, DECAY),
    )
    return problem, np.sqrt(SMALL_COUNTS) - DECAY * SMALL_COUNTS.sum()


@pytest.mark.slow
@for_each("zeroed", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_saddles_where_modes_are_exactly_zero_are_left(zeroed: tuple[int, ...]) -> None:
    problem, values = separable()
    minimiser = Parameters((np.diag(np.sqrt(values)),), np.diag(np.sqrt(values / SMALL_COUNTS)))
    best = certify(problem, minimiser)
    assert best.holds
    values = np.where(np.isin(np.arange(3), zeroed), 0, values)
    saddle = Parameters((np.diag(np.sqrt(values)),), np.diag(np.sqrt(values / SMALL_COUNTS)))
    assert not certify(problem, saddle).holds
    solution = ufm.solve(problem, initial=saddle).check()
    assert solution.objective == pytest.approx(best.objective, rel=1e-12)
    assert solution.escapes >= 1


# The battery


@pytest.mark.nightly
def test_random_problems_are_certified() -> None:
    rng = np.random.default_rng(10)
    certified, remaining, total = 0, [], 200
    for index in range(total):
        K, code = (2, 3, 5, 8)[index % 4], int(rng.integers(8))
        kind = Kind(
            "squared-error" if code & 4 else "cross-entropy", bool(code & 2), bool(code & 1)
        )
        solution = ufm.solve(random_problem(kind, rng, K), key=index)
        if solution.certificate.relative_gap <= 1e-9:
            certified += 1
            assert solution.certificate.holds
        else:
            assert not solution.certificate.holds
            with pytest.raises(ufm.SolveError):
                solution.check()
            remaining.append(
                (index, K, code, str(solution.status), solution.certificate.relative_gap)
            )
    print(f"{certified} of {total} certified; remaining (index, K, code, status, gap): {remaining}")
    assert certified >= 0.99 * total, remaining


def test_slack_numbers_stay_where_they_are_when_classes_change_places() -> None:
    problem = Problem(
        class_counts=(7.0, 5.0, 2.0, 1.0),
        feature_dim=2,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(1.0, 2.0),
        use_bias=True,
    )
    x = np.arange(8 + 8 + 4 + 2.0)
    points = exchanged(problem, x)
    assert points.shape == (6, x.size)
    np.testing.assert_array_equal(np.sort(points, axis=1), np.tile(x, (6, 1)))
    np.testing.assert_array_equal(points[:, -2:], np.tile(x[-2:], (6, 1)))
    weights, features, bias = np.split(points[1][:-2], [8, 16])  # the first and the third class
    np.testing.assert_array_equal(weights.reshape(4, 2)[:, 0], [4, 2, 0, 6])
    np.testing.assert_array_equal(features.reshape(4, 2)[:, 1], [13, 11, 9, 15])
    np.testing.assert_array_equal(bias, [18, 17, 16, 19])
