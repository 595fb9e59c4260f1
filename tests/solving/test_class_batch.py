"""Many problems of one shape at once, against one at a time."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from plain import a_problem

import ufm
import ufm.solving.class_batch as batches
from ufm._support import Status
from ufm.problems import family_of, narrowed
from ufm.solving import solve_class_batch
from ufm.sweeps.evaluation import lines_of

problem_of = functools.partial(
    a_problem,
    class_counts=(90, 40, 12, 5),
    feature_dim=4,
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-5),
)


def lane_of(problems: ufm.Problem, lane: int) -> ufm.Problem:
    return jax.tree.map(lambda leaf: leaf[lane], problems)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"use_bias": True}, marks=pytest.mark.slow),
        pytest.param(
            {
                "loss": ufm.SquaredError(),
                "use_bias": True,
                "regularizer": ufm.WeightDecay(weights=1e-3, features=1e-5, bias=1e-2),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param({"nonnegative_features": True}, marks=pytest.mark.slow),
        pytest.param(
            {"regularizer": ufm.NormBall(weights=1.0, features=4.0)}, marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "bias", "penalised", "non-negative", "ball"],
)
def test_a_batch_is_its_problems(changes: dict[str, Any]) -> None:
    problem = problem_of(**changes)
    name = "regularizer.features"
    values = float(problem.regularizer.features) * np.geomspace(0.1, 20, 5)
    problems = family_of(problem, {name: values}).over_classes()
    minima = solve_class_batch(narrowed(problems))
    # Inside norm balls gradients are relative to at least 1e-4 of the objective at zero, and the
    # status says where that decided.
    floor = (
        1e-4 * np.log(problem.num_classes) if isinstance(problem.regularizer, ufm.NormBall) else 0.0
    )
    expected = np.where(minima.objective < floor, Status.FLOOR, Status.CONVERGED)
    assert minima.status.tolist() == expected.tolist()
    assert np.sum(expected == Status.FLOOR) == (floor > 0)
    certified = minima.relative_gap < 1e-9
    # Non-negative features have spurious minima, which the bound gives away.
    assert np.all(certified) or problem.nonnegative_features
    for lane in np.flatnonzero(certified):
        alone = ufm.solve(lane_of(problems, lane), tol=1e-11)
        assert minima.objective[lane] == pytest.approx(alone.objective, rel=1e-9)
        assert minima.lower_bound[lane] <= alone.objective * (1 + 1e-12)
        np.testing.assert_allclose(minima.logits[lane], alone.logits, atol=1e-3)
        parameters = jax.tree.map(lambda block, lane=lane: block[lane], minima.parameters)
        assert ufm.certify(
            narrowed(lane_of(problems, lane)), parameters
        ).objective == pytest.approx(minima.objective[lane], rel=1e-12)


def test_the_number_of_threads_and_of_lanes_does_not_change_a_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems = narrowed(
        family_of(problem_of(), {"weight_decay": np.geomspace(1e-6, 1e-2, 200)}).over_classes()
    )
    one, two = (solve_class_batch(problems, workers=workers) for workers in (1, 2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.ptp(one.steps) > 10  # so that lanes leave at different times


@pytest.mark.slow
def test_one_compilation_per_shape() -> None:
    traces = 0

    def counted(record: Any) -> bool:
        nonlocal traces
        traces += (
            "Finished XLA compilation" in record.getMessage() and "advanced" in record.getMessage()
        )
        return False

    import logging

    logger = logging.getLogger("jax._src.dispatch")
    logger.addFilter(counted)
    try:
        with jax.log_compiles():
            shape = problem_of(class_counts=(90, 40, 12, 5, 3, 2, 1), feature_dim=7)
            for decays, ratios in ((3, 5.0), (100, 50.0), (70, 500.0)):
                over = {
                    "weight_decay": np.geomspace(1e-5, 1e-2, decays),
                    "imbalance_ratio": [ratios],
                }
                solve_class_batch(narrowed(family_of(shape, over).over_classes()))
            assert traces == 1
            solve_class_batch(
                narrowed(
                    family_of(
                        problem_of(class_counts=(9, 8, 7)), {"weight_decay": [1e-3]}
                    ).over_classes()
                )
            )
            assert traces == 2
    finally:
        logger.removeFilter(counted)


def test_lanes_that_are_out_of_steps_say_so_and_hold_up_nobody() -> None:
    problems = narrowed(
        family_of(problem_of(), {"weight_decay": np.geomspace(1e-6, 1e-2, 70)}).over_classes()
    )
    full = solve_class_batch(problems)
    few = int(np.median(full.steps))
    cut = solve_class_batch(problems, max_steps=few)
    assert set(cut.status.tolist()) == {Status.CONVERGED, Status.MAX_STEPS}
    assert cut.steps.max() == few
    done = cut.status == Status.CONVERGED
    assert np.all(done[full.steps <= few])
    np.testing.assert_allclose(cut.objective[done], full.objective[done], rtol=1e-8)
    assert np.all(cut.lower_bound <= full.objective * (1 + 1e-12))


def test_problems_on_lines_start_from_their_neighbours() -> None:
    decays, ratios = np.geomspace(1e-5, 1e-2, 21), np.array([2.0, 20.0, 200.0])
    over = {"weight_decay": np.repeat(decays, 3), "imbalance_ratio": np.tile(ratios, 21)}
    problems = narrowed(family_of(problem_of(), over).over_classes())
    lines = lines_of({"seed": np.zeros(63), **over})
    assert lines is not None
    assert lines.tolist() == [[3 * i + j for i in range(21)] for j in range(3)]
    alone, along = solve_class_batch(problems), solve_class_batch(problems, lines=lines)
    assert along.status.tolist() == [Status.CONVERGED] * 63
    assert np.all(along.relative_gap < 1e-9)
    np.testing.assert_allclose(along.objective, alone.objective, rtol=1e-9)
    np.testing.assert_allclose(along.logits, alone.logits, atol=1e-3)
    assert along.steps.sum() < 0.7 * alone.steps.sum()
    # A problem that breaks down takes nobody with it.
    broken = jax.tree.map(np.array, problems)
    broken.class_counts.counts[24, 0] = np.nan
    beside = solve_class_batch(broken, lines=lines)
    assert np.flatnonzero(beside.status != Status.CONVERGED).tolist() == [24]


def test_what_is_not_a_grid_has_no_lines() -> None:
    column = np.geomspace(1, 2, 16)
    assert lines_of({"seed": np.zeros(16), "weight_decay": column}).tolist() == [list(range(16))]
    assert lines_of({"seed": np.zeros(16), "weight_decay": column[::-1]}).tolist() == [
        list(range(15, -1, -1))
    ]
    assert lines_of({"seed": np.zeros(5), "weight_decay": column[:5]}) is None
    assert lines_of({"seed": np.arange(16), "weight_decay": column}) is None
    assert (
        lines_of({"seed": np.zeros(16), "weight_decay": column, "imbalance_ratio": column + 1})
        is None
    )
    assert lines_of({"seed": np.zeros(16), "class_counts": np.ones((16, 3))}) is None
    repeated = np.concatenate([column[:15], column[:1]])
    assert lines_of({"seed": np.zeros(16), "weight_decay": repeated}) is None


def test_a_lane_that_breaks_down_leaves_the_others_alone() -> None:
    problems = narrowed(
        family_of(problem_of(), {"weight_decay": [1e-4, 1e-3, 1e-2]}).over_classes()
    )
    broken = jax.tree.map(np.array, problems)
    broken.class_counts.counts[1, 0] = np.nan
    one, other = solve_class_batch(problems), solve_class_batch(broken)
    assert other.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    np.testing.assert_array_equal(one.objective[[0, 2]], other.objective[[0, 2]])


@pytest.mark.slow
def test_restarts_find_the_lowest_of_several_minima() -> None:
    problem = problem_of(
        class_counts=(10, 10, 10),
        feature_dim=4,
        loss=ufm.SquaredError(),
        hidden_dims=(4,),
        activation="relu",
        use_bias=False,
    )
    problems = narrowed(family_of(problem, {"weight_decay": [3e-3, 1e-2]}).over_classes())
    minima = solve_class_batch(problems, restarts=4, keys=[3, 5])
    for lane, key in enumerate((3, 5)):
        alone = ufm.solve(lane_of(problems, lane), key=key, restarts=4)
        assert minima.status[lane] == Status.CONVERGED
        assert minima.objective[lane] == pytest.approx(alone.objective, rel=1e-6)
    assert np.isnan(minima.lower_bound).all()


def test_large_problems_are_solved_in_smaller_pieces() -> None:
    assert batches.chunk_size(200) == batches.CHUNK
    assert 1 <= batches.chunk_size(10**5) < batches.chunk_size(5000) < batches.CHUNK
    assert batches.chunk_size(10**9) == 1
