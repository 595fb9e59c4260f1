"""The search of `solve`: which starts it takes, when it ends, and what it says of the end."""

import jax
import numpy as np
import pytest
from random_searches import nonnegative_problem, small_dimension_problem

import ufm
from ufm._support import Status
from ufm.problems import Loss, Problem, one_count_per_class
from ufm.solving import solve_class_batch

LINE = Problem(
    class_counts=(11.0, 80.0, 2.0),
    feature_dim=1,
    loss=ufm.CrossEntropy(),
    regularizer=ufm.WeightDecay(0.0789403, 9.26854e-6),
    use_bias=True,
)


def four_classes(
    loss: Loss = ufm.CrossEntropy(),  # noqa: B008
    count: float = 10.0,
    **penalties: float,
) -> Problem:
    return Problem(
        class_counts=(count,) * 4,
        feature_dim=4,
        loss=loss,
        regularizer=ufm.WeightDecay(**(penalties or {"weights": 1e-2, "features": 1e-3})),
        use_bias=True,
        nonnegative_features=True,
    )


def test_starts_are_tried_until_one_is_certified() -> None:
    for key in (0, 2):
        solution = ufm.solve(four_classes(), key=key).check()
        assert solution.objective == pytest.approx(0.188578941, abs=1e-9)
        assert 1 < solution.restarts.status.size < 64


def test_a_search_of_one_start_says_that_it_is_not_certified() -> None:
    solution = ufm.solve(four_classes(), key=0, restarts=1)
    assert solution.restarts.status.size == 1
    assert solution.status is Status.NOT_CERTIFIED
    assert solution.objective == pytest.approx(0.206586, abs=1e-6)
    assert [minimum.objective for minimum in solution.minima] == pytest.approx(
        [solution.objective], rel=1e-15
    )
    with pytest.raises(ufm.SolveError, match="raise `restarts`"):
        solution.check()


@pytest.mark.nightly
def test_squared_error_with_nonnegative_features_and_extreme_penalties_is_certified() -> None:
    problem = four_classes(
        ufm.SquaredError(), 1.0, weights=0.152309, features=1.568253e-8, bias=0.21188
    )
    for key in range(3):
        assert ufm.solve(problem, key=key).check().objective == pytest.approx(
            0.000195451192, abs=1e-12
        )


@pytest.mark.nightly
def test_random_problems_with_nonnegative_features_are_certified() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        problem = nonnegative_problem(rng)
        solution = ufm.solve(problem, resolution="classes")
        assert solution.certificate.holds, (problem, str(solution.certificate))
        solution.check()


@pytest.mark.nightly
def test_the_verdict_does_not_depend_on_how_many_starts_there_were() -> None:
    # 0.0604656 is a local minimum, from where every direction leads up.
    default, several = ufm.solve(LINE), ufm.solve(LINE, restarts=4)
    local = ufm.solve(LINE, restarts=1)
    assert default.check().objective <= 0.0447893626
    assert default.objective <= several.objective
    for solution in (default, several, local):
        assert solution.status is Status.CONVERGED
        assert not solution.certificate.tight
        assert solution.minima[0].objective == solution.objective
    batch = solve_class_batch(_stacked(LINE), restarts=64)
    assert batch.objective[0] == pytest.approx(default.objective, rel=1e-9)


def _stacked(problem: Problem) -> Problem:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], one_count_per_class(problem))


@pytest.mark.nightly
def test_small_dimensions_are_not_above_a_search_of_many_starts() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        problem = small_dimension_problem(rng)
        found = ufm.solve(problem).objective
        assert found <= ufm.solve(problem, restarts=64, key=1).objective * (1 + 1e-9), problem


@pytest.mark.nightly
def test_many_classes_in_more_groups_than_pay_are_solved_over_groups() -> None:
    counts = ufm.ClassGroups([3.0 * (index + 1) for index in range(17)], (1500,) * 17)
    problem = Problem(
        class_counts=counts,
        feature_dim=counts.num_classes,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-4, 1e-6),
    )
    solution = ufm.solve(problem).check()
    assert solution.resolution == "groups"
