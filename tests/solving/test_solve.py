"""The search of `solve`: which starts it takes, when it ends, and what it says of the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_searches import nonnegative_problem, small_dimension_problem
from tables import for_each

import ufm
from ufm._support import Status, double_precision, rebuilt
from ufm.problems import Loss, Problem, one_count_per_class, samples_of
from ufm.solving import solve_class_batch, structured_starts
from ufm.solving.methods import balanced_space

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


@pytest.mark.slow
def test_starts_are_tried_until_one_is_certified() -> None:
    sizes = []
    for key in range(6):
        solution = ufm.solve(four_classes(), key=key).check()
        assert solution.objective == pytest.approx(0.188578941, abs=1e-9)
        assert solution.certificate.holds
        sizes.append(solution.restarts.status.size)
    assert sizes.count(1) < 6  # half of the first starts end at 0.206586
    assert max(sizes) < 64


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
    for _ in range(40):
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


@pytest.mark.slow
def test_a_dimension_too_small_for_the_convex_minimiser_is_searched() -> None:
    # One start ends at 0.0604656; 0.04479 is the lowest that is known.
    solution = ufm.solve(LINE).check()
    assert solution.objective == pytest.approx(0.04478936249, rel=1e-9)
    # And the truncations; then exchanges of two classes, which lead no lower.
    assert solution.restarts.status.size == 2 * (64 + 3)
    assert np.count_nonzero(solution.restarts.objective < 0.06) > 1


@pytest.mark.slow
@for_each(("use_bias", "lowest"), [(False, 0.1176633214457), (True, 0.1176494271718)])
def test_exchanges_of_two_classes_lead_every_search_to_one_minimum(
    use_bias: bool, lowest: float
) -> None:
    # 64 starts end at one of several minima within 2e-4; the lowest of 256 starts is the one here.
    problem = Problem(
        class_counts=(51.0, 97.0, 80.0, 76.0, 76.0, 34.0, 98.0),
        feature_dim=2,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(0.0242822775395, 7.79821134885e-07, 0.0180409354218),
        use_bias=use_bias,
    )
    for key in range(4):
        assert ufm.solve(problem, key=key).objective == pytest.approx(lowest, rel=1e-9)
    alone = ufm.solve(problem, key=0, restarts=64)
    assert alone.objective > lowest * (1 + 1e-5)
    swept = ufm.sweep(problem, over={"regularizer.weights": [0.0242822775395, 0.05]})
    assert swept["objective"].values[0] == pytest.approx(lowest, rel=1e-9)


@pytest.mark.slow
def test_a_sweep_searches_small_dimensions_as_a_solve_does() -> None:
    swept = ufm.sweep(LINE, over={"regularizer.weights": [0.0789403, 0.2]})
    for decay, objective in zip((0.0789403, 0.2), swept["objective"].values, strict=True):
        problem = rebuilt(LINE, regularizer=ufm.WeightDecay(decay, 9.26854e-6))
        assert objective == pytest.approx(ufm.solve(problem).objective, rel=1e-9)


def test_structured_starts_are_near_truncations_of_the_convex_minimiser() -> None:
    problem = one_count_per_class(LINE)
    starts = structured_starts(problem, np.random.default_rng(0), ufm.solve)
    assert starts.shape == (3, 3 + 3 + 3)  # weights, features and bias of d = 1
    convex = ufm.solve(rebuilt(problem, feature_dim=3)).check()
    roots = np.sqrt(np.asarray(LINE.class_counts))[:, None]
    left, values, right = np.linalg.svd(roots * (convex.logits - convex.bias))
    samples = samples_of(problem, 3)
    with double_precision():
        space = balanced_space(problem, samples)
        points = [space.parameters(jnp.asarray(x)) for x in starts]
    found = [roots * np.asarray(x.features @ x.weights[0].T) for x in points]
    for mode, matrix in enumerate(found):
        expected = values[mode] * np.outer(left[:, mode], right[mode])
        size = np.linalg.norm(convex.logits)
        np.testing.assert_allclose(matrix, expected, atol=0.02 * size)
        np.testing.assert_allclose(points[mode].bias, convex.bias, atol=0.05)


@pytest.mark.nightly
def test_small_dimensions_are_not_above_a_search_of_many_starts() -> None:
    rng = np.random.default_rng(1)
    for _ in range(42):
        problem = small_dimension_problem(rng)
        found = ufm.solve(problem).objective
        other = ufm.solve(problem, method=ufm.LBFGS(), restarts=16, key=1).objective
        assert found <= other * (1 + 1e-9), problem


@pytest.mark.slow
def test_many_classes_in_more_groups_than_pay_are_solved_over_groups() -> None:
    counts = ufm.ClassGroups([3.0 * (index + 1) for index in range(17)], (3000,) * 17)
    problem = Problem(
        class_counts=counts,
        feature_dim=counts.num_classes,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-4, 1e-6),
    )
    solution = ufm.solve(problem).check()
    assert solution.resolution == "groups"
