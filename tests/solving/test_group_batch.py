import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_groups import any_problem, batched, data_of, one_of, random_problem, with_price
from tables import for_each, slow_but

import ufm
from ufm._support import Status
from ufm.problems import GroupProblem, Loss, Problem
from ufm.solving import GroupMinimum, certified, solve_batch

SIZES = (3, 2)


@functools.cache
def problems(count: int) -> list[GroupProblem]:
    rng = np.random.default_rng(0)
    return [data_of(random_problem(rng, "cross-entropy", SIZES)) for _ in range(count)]


def solved(batch: GroupProblem, **settings: Any) -> GroupMinimum:
    # Pieces of one size: one program serves all tests.
    return solve_batch(batch, **({"chunk": 8} | settings))


def test_every_row_comes_back_certified_and_in_order() -> None:
    data = problems(21)
    batch = solved(batched(data))
    assert batch.objective.shape == batch.status.shape == (21,)
    assert batch.logits.between.shape == (2, 2, 21)
    assert np.all(batch.status == Status.CONVERGED)
    assert np.all(batch.relative_gap <= 1e-10)
    order = np.random.default_rng(1).permutation(21)
    shuffled = solved(batched([data[index] for index in order]))
    np.testing.assert_allclose(shuffled.objective, batch.objective[order], rtol=1e-10)
    np.testing.assert_allclose(shuffled.logits.between, batch.logits.between[..., order], atol=1e-5)
    assert all(
        isinstance(leaf, np.ndarray) and leaf.shape[-1] == 21 for leaf in jax.tree.leaves(batch)
    )


@for_each("length", [1, 7, 8, 9])
def test_lengths_need_not_fill_the_chunks(length: int) -> None:
    batch = solved(batched(problems(21)[:length]))
    everything = solved(batched(problems(21)))
    assert batch.status.shape == (length,)
    np.testing.assert_allclose(batch.objective, everything.objective[:length], rtol=1e-10)


def test_leaves_without_a_batch_axis_are_shared() -> None:
    one = problems(21)[0]
    prices = one.gauge.price * np.geomspace(0.1, 10, 9) ** 0.5
    shared = solved(with_price(one, prices))
    spelt = solved(batched([with_price(one, value) for value in prices]))
    assert shared.objective.shape == (9,)
    np.testing.assert_allclose(shared.objective, spelt.objective, rtol=1e-12)
    assert np.all(np.diff(shared.objective) > 0)


def test_one_problem_without_any_axis_is_a_batch_of_one() -> None:
    batch = solved(problems(21)[3])
    assert batch.objective.shape == (1,)
    assert batch.objective[0] == pytest.approx(
        solved(batched(problems(21))).objective[3], rel=1e-10
    )


@for_each("bad", [np.nan, np.inf, -1.0, 0.0])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_bad_row_is_a_status_and_leaves_the_others_alone(bad: float) -> None:
    data = problems(21)
    spoilt = list(data)
    spoilt[4] = with_price(data[4], np.asarray(bad))
    batch, good = solved(batched(spoilt)), solved(batched(data))
    rest = np.arange(21) != 4
    assert np.all(batch.status[rest] == Status.CONVERGED)
    np.testing.assert_allclose(batch.objective[rest], good.objective[rest], rtol=1e-10)
    assert batch.objective.shape == (21,)
    if bad != 0:
        assert batch.status[4] != Status.CONVERGED or not batch.relative_gap[4] <= 1e-9


@pytest.mark.nightly
def test_hard_problems_are_collected_and_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ufm.solving.group_batch.FEW_STEPS", 6)
    data = problems(21)
    few = solved(batched(data))
    assert np.all(few.status == Status.CONVERGED)
    assert np.all(few.steps > 0)
    none = solved(batched(data), max_steps=5)
    assert np.any(none.status == Status.MAX_STEPS)
    assert none.objective.shape == (21,)
    # What is not finished is not certified either, and its bound is a bound.
    assert np.all(none.lower_bound <= few.objective * (1 + 1e-12))


def test_threads_do_not_change_the_answer() -> None:
    one, many = (solved(batched(problems(21)), workers=workers) for workers in (1, 4))
    for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.nightly
def test_certified_can_be_mapped(float64: None) -> None:
    data = batched(problems(21)[:4])
    mapped = jax.jit(jax.vmap(lambda p: certified(p, jnp.asarray(1e-11)), in_axes=-1, out_axes=-1))(
        data
    )
    together = solved(data)
    np.testing.assert_allclose(mapped.objective, together.objective, rtol=1e-10)
    np.testing.assert_allclose(
        one_of(mapped, 2).logits.within, one_of(together, 2).logits.within, atol=1e-5
    )


@pytest.mark.nightly
@for_each("loss", ["logit-adjusted", "weighted-cdt", "squared-error", "label-smoothing"])
@for_each("ball", [False, True])
@for_each("sizes", [(4,), (3, 2), (1, 2, 3), (500_000, 500_000)])
def test_wide_batches_are_certified(loss: str, ball: bool, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    for bias in ("none", "free"):
        made = [random_problem(rng, loss, sizes, bias=bias, ball=ball) for _ in range(64)]
        batch = solve_batch(batched([data_of(problem) for problem in made]), chunk=64)
        # Squared error inside large balls can vanish: gaps are then measured against what is above
        # rounding.
        gap = (batch.objective - batch.lower_bound) / np.maximum(
            batch.lower_bound, 1e-4 * batch.evidence.at_zero
        )
        assert np.mean(gap <= 1e-9) > 0.98, gap


# Hard problems: by what the path can go astray on, each kind of one structure, so that one program
# solves it


def stated(loss: Loss, counts: Any, sizes: Any, regularizer: Any, bias: bool = False) -> Problem:
    return Problem(
        class_counts=ufm.ClassGroups(counts, sizes),
        feature_dim=sum(sizes),
        loss=loss,
        regularizer=regularizer,
        use_bias=bias,
    )


def adjusted(offsets: Any, counts: Any, sizes: Any, *bounds: float) -> Problem:
    loss = (
        ufm.LogitAdjusted(offsets) if np.ndim(offsets) == 0 else ufm.LogitAdjusted(offsets=offsets)
    )
    return stated(loss, counts, sizes, ufm.NormBall(*bounds), bias=True)


def smoothed(alpha: float, counts: Any, sizes: Any, *decays: float) -> Problem:
    return stated(ufm.LabelSmoothing(alpha), counts, sizes, ufm.WeightDecay(*decays))


def tempered(exponent: float, counts: Any, *bounds: float) -> Problem:
    return stated(ufm.CDT(exponent), counts, (1, 1), ufm.NormBall(*bounds))


HARD = {
    # The scores are far apart before there are logits, and the loss is all but linear.
    "offsets": [
        adjusted(-1, (7, 1187), (4, 3), 1.32, 0.174),
        adjusted(-1.441, (1, 59), (5, 4), 0.0558, 0.016),
        adjusted(-1.207, (3445, 2), (4, 4), 0.502, 0.0987),
        adjusted((-0.462, 3.803), (236, 54), (2, 2), 0.159, 0.00577),
        adjusted((2.878, -1.594), (2, 284), (5, 2), 0.00237, 140),
        adjusted((0, 40), (3, 9), (2, 2), 1, 1),
    ],
    # Margins stay finite however small the penalty.
    "smoothing": [
        smoothed(0.5, (1, 4150), (4, 1), 0.34, 2.6e-20),
        smoothed(0.9, (4254, 175), (5, 2), 1.25e-7, 1.59e-6),
        smoothed(0.5, (105, 564), (5, 1), 2.08e-9, 1.76e-8),
        smoothed(1e-6, (105, 564), (5, 1), 1e-20, 1e-12),
        smoothed(0.999, (3, 564), (2, 2), 1e-8, 1e-12),
    ],
    # Single classes and no shift: equal margins take all that a ball has room for.
    "single": [
        tempered(0.2, (548, 708), 5.32, 0.0174),
        tempered(-0.257, (302, 8), 0.0239, 0.0139),
        tempered(-0.383, (101, 76), 34.5, 0.724),
        tempered(0.0, (5, 7), 1e-5, 1e-4),
    ],
}
KNOWN = {
    "offsets": (0.368896, 5e-7),
    "smoothing": (1.227529, 5e-7),
    "single": (0.43856, 5e-6),
}  # of the first of each, as rounded


@for_each("kind", slow_but(HARD, keep={0}))
def test_hard_problems_are_certified(kind: str) -> None:
    batch = solve_batch(batched([data_of(problem) for problem in HARD[kind]]), chunk=8)
    assert np.all(batch.relative_gap <= 1e-9), batch.relative_gap
    assert np.all(batch.steps < 100)
    value, rounded = KNOWN[kind]
    assert batch.objective[0] == pytest.approx(value, abs=rounded)


@pytest.mark.nightly
@for_each("kind", HARD)
def test_hard_problems_are_what_class_resolution_has(kind: str) -> None:
    for problem in HARD[kind]:
        groups, classes = (
            ufm.solve(problem, resolution=resolution) for resolution in ("groups", "classes")
        )
        assert groups.certificate.lower_bound <= classes.objective
        assert classes.certificate.lower_bound <= groups.objective
        if classes.certificate.holds:
            assert groups.objective == pytest.approx(classes.objective, rel=1e-8, abs=1e-12)


@pytest.mark.nightly
def test_any_problem_is_solved() -> None:
    kinds: dict[Any, list[GroupProblem]] = {}
    for index in range(3000):
        data = data_of(any_problem(np.random.default_rng([3, index]), most_groups=3))
        kinds.setdefault((jax.tree.structure(data), data.num_groups), []).append(data)
    for data in kinds.values():
        assert np.all(solve_batch(batched(data), chunk=64).relative_gap <= 1e-9)


@pytest.mark.slow
def test_the_price_of_a_ball_is_how_fast_the_minimum_falls_with_its_radius() -> None:
    data = data_of(HARD["single"][0])
    steps = np.array([1 - 1e-4, 1, 1 + 1e-4])
    batch = solve_batch(with_price(data, data.gauge.price * steps), chunk=8)
    fall = (batch.objective[0] - batch.objective[2]) / (2e-4 * data.gauge.price)
    assert batch.price[1] == pytest.approx(fall, rel=1e-6)
