from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from random_groups import LOSSES, data_of, random_blocks, random_problem
from tables import for_each, slow_but

import ufm
from ufm.problems import (
    Problem,
    class_samples,
    grouped,
    has_group_form,
    mean_loss,
    one_count_per_class,
    over_groups,
    probabilities,
    rows_of,
    slopes,
    times_of,
)
from ufm.problems.group_losses import losses_of
from ufm.problems.losses.library import loss_by_group

pytestmark = pytest.mark.usefixtures("float64")

each_loss = for_each("loss", LOSSES)
SIZES = [(3, 2), (4,), (1, 2, 1)]
SIZE_OF = {name: SIZES[index % 3] for index, name in enumerate(LOSSES)}


def a_problem(counts: Any, sizes: Any = None, loss: Any = None, **changes: Any) -> Problem:
    classes = ufm.ClassGroups(counts, sizes)
    fields = {
        "class_counts": classes,
        "feature_dim": classes.num_classes,
        "loss": loss or ufm.CrossEntropy(),
    }
    return Problem(**(fields | {"regularizer": ufm.WeightDecay(0.01, 0.02)} | changes))


# Which classes are of one group


@for_each(
    ("counts", "sizes", "expected"),
    [
        ((5, 5, 3), None, ([5, 3], [2, 1], [0, 0, 1])),
        ((5, 3, 5), None, ([5, 3], [2, 1], [0, 1, 0])),
        ((3, 5, 5), (2, 1, 1), ([3, 5], [2, 2], [0, 0, 1, 1])),
        ((5, 3, 5), (2, 3, 1), ([5, 3], [3, 3], [0, 0, 1, 1, 1, 0])),
        ((2, 1), (1, 1), ([2, 1], [1, 1], [0, 1])),
        ((7,), (4,), ([7], [4], [0, 0, 0, 0])),
        ((4, 3, 2, 1), None, ([4, 3, 2, 1], [1, 1, 1, 1], [0, 1, 2, 3])),
    ],
)
def test_classes_of_equal_counts_are_one_group_however_stated(
    counts: Any, sizes: Any, expected: Any
) -> None:
    data, groups = grouped(a_problem(counts, sizes))
    np.testing.assert_array_equal(data.counts, expected[0])
    np.testing.assert_array_equal(data.sizes, expected[1])
    np.testing.assert_array_equal(groups, expected[2])
    assert float(data.num_samples) == np.sum(np.asarray(ufm.ClassGroups(counts, sizes)))


@for_each(
    ("offsets", "counts", "sizes", "groups"),
    [
        ((0.5, 0.5, 1.0), (5, 5, 5), None, [0, 0, 1]),
        ((0.5, 1.0), (5, 5), (2, 2), [0, 0, 1, 1]),
        ((0.5, 0.5), (5, 3), (2, 2), [0, 0, 1, 1]),
        ((0.5, 0.5), (5, 5), (2, 2), [0, 0, 0, 0]),
        # Class by class, within a stated group.
        ((0.5, 1.0, 0.5, 1.0), (5,), (4,), [0, 1, 0, 1]),
        ((0.5, 1.0, 0.5, 0.5), (5, 3), (2, 2), [0, 1, 2, 2]),
    ],
)
def test_parameters_of_the_loss_split_and_join_groups(
    offsets: Any, counts: Any, sizes: Any, groups: Any
) -> None:
    problem = a_problem(counts, sizes, ufm.LogitAdjusted(offsets=offsets))
    data, found = grouped(problem)
    np.testing.assert_array_equal(found, groups)
    per_class = np.asarray(problem.class_counts.expand(np.asarray(offsets), "offsets"))
    np.testing.assert_allclose(np.asarray(data.loss.offsets)[found], per_class)
    np.testing.assert_allclose(data.counts[found], np.asarray(problem.class_counts))
    np.testing.assert_array_equal(data.sizes, np.bincount(groups))


def test_parameters_stated_both_by_group_and_by_class() -> None:
    loss = ufm.ClassWeighted(weights=(1.0, 2.0), loss=ufm.CDT(multipliers=(1.0, 0.5, 0.5, 0.5)))
    data, groups = grouped(a_problem((5, 3), (2, 2), loss))
    np.testing.assert_array_equal(groups, [0, 1, 2, 2])
    np.testing.assert_array_equal(data.loss.weights, [1, 1, 2])
    np.testing.assert_array_equal(data.loss.scales, [1, 0.5, 0.5])
    np.testing.assert_array_equal(data.counts, [5, 5, 3])
    np.testing.assert_array_equal(data.sizes, [1, 1, 2])


@each_loss
def test_stating_a_problem_class_by_class_changes_nothing(loss: str) -> None:
    problem = random_problem(np.random.default_rng(0), loss, SIZE_OF[loss], bias="penalised")
    first, groups = grouped(problem)
    second, same = grouped(one_count_per_class(problem))
    np.testing.assert_array_equal(groups, same)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-15)


@for_each(
    "changes",
    [
        {"loss": ufm.Focal(2.0)},
        {"hidden_dims": (4,)},
        {"feature_dim": 2},
        {"feature_dim": 3, "loss": ufm.SquaredError()},
        {"feature_dim": 3, "loss": ufm.CDT(0.3)},
        {"feature_dim": 3, "nonnegative_features": True},
    ],
)
def test_what_is_not_exact_is_refused(changes: dict[str, Any]) -> None:
    problem = a_problem((5, 3), (2, 2), **changes)
    assert not has_group_form(problem)
    with pytest.raises(
        ValueError,
        match=r"`resolution` 'groups' is for one-hot classes, .* use resolution='classes'",
    ):
        grouped(problem)


def test_one_dimension_less_will_do_where_shifts_of_the_logits_do_not_matter() -> None:
    assert has_group_form(a_problem((5, 3), (2, 2), feature_dim=3))
    assert has_group_form(a_problem((5, 3), (2, 2), ufm.LDT(0.3), feature_dim=3))
    assert has_group_form(a_problem((5, 3), (2, 2), ufm.SquaredError(), feature_dim=4))
    assert has_group_form(a_problem((5, 3), (2, 2), feature_dim=4, nonnegative_features=True))


def test_a_loss_that_is_not_convex_has_no_form_over_groups() -> None:
    with pytest.raises(
        ValueError,
        match=r"`loss` must be one of CrossEntropy, .* itself to be solved over groups, got Focal",
    ):
        loss_by_group(ufm.Focal(2.0), np.ones(2), np.ones(2))


# The loss


@for_each("loss", slow_but(LOSSES, keep={12}))
@pytest.mark.parametrize(
    "sizes", [SIZES[0], *(pytest.param(s, marks=pytest.mark.nightly) for s in SIZES[1:])], ids=str
)
def test_losses_slopes_and_data_term_are_those_of_the_classes(
    loss: str, sizes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    problem = random_problem(rng, loss, sizes)
    data, columns = data_of(problem), class_samples(problem, jnp.float64)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    members = np.repeat(np.arange(len(sizes)), sizes)
    for scale in (1e-3, 1.0, 30.0):
        blocks, bias = random_blocks(rng, sizes, scale), scale * rng.normal(size=len(sizes))
        logits = jnp.asarray(blocks.dense() + bias[members][None, :])
        rows = rows_of(blocks, bias)
        values = problem.loss(logits, columns.targets, problem.class_counts)
        np.testing.assert_allclose(
            losses_of(data.loss, rows, data.sizes), np.asarray(values)[first], rtol=1e-11
        )
        gradient = np.asarray(
            jax.grad(lambda z: jnp.sum(problem.loss(z, columns.targets, problem.class_counts)))(
                logits
            )
        )
        slope = slopes(data.loss, rows, data.sizes)
        size = np.max(np.abs(gradient))
        np.testing.assert_allclose(slope.own, gradient[first, first], rtol=1e-10, atol=1e-15 * size)
        for g, row in enumerate(first):
            for h, column in enumerate(first):
                if g != h or sizes[g] > 1:
                    entry = gradient[row, column + (g == h)]
                    assert float(slope.others[g, h]) == pytest.approx(
                        entry, rel=1e-10, abs=1e-15 * size
                    )
        assert float(mean_loss(data, rows)) == pytest.approx(
            float(problem.data_term(logits, columns)), rel=1e-11
        )


@for_each("loss", ["cross-entropy", "weighted-cdt", "label-smoothing", "weighted-squared"])
def test_slopes_are_the_gradient_of_the_loss(loss: str) -> None:
    rng = np.random.default_rng(2)
    data = data_of(random_problem(rng, loss, (3, 2)))
    rows = rows_of(random_blocks(rng, (3, 2)), rng.normal(size=2))
    times = np.asarray(times_of(data.sizes))
    slope = slopes(data.loss, rows, data.sizes)
    own = plain.gradient(
        lambda x: float(jnp.sum(losses_of(data.loss, rows._replace(own=x), data.sizes))), rows.own
    )
    others = plain.gradient(
        lambda x: float(jnp.sum(losses_of(data.loss, rows._replace(others=x), data.sizes))),
        rows.others,
    )
    np.testing.assert_allclose(slope.own, own, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(times * slope.others, others, rtol=1e-8, atol=1e-9)


def test_a_small_loss_keeps_its_digits() -> None:
    data = data_of(a_problem((5, 3), (2, 2)))
    rows = rows_of(random_blocks(np.random.default_rng(3), (2, 2)))._replace(own=np.full(2, 60.0))
    terms = np.sum(np.asarray(times_of(data.sizes)) * np.exp(np.asarray(rows.others) - 60), axis=1)
    np.testing.assert_allclose(losses_of(data.loss, rows, data.sizes), terms, rtol=1e-13, atol=0)
    p = probabilities(data.loss, rows, data.sizes)
    np.testing.assert_allclose(p.summed(times_of(data.sizes)), 1.0, rtol=1e-14)
    np.testing.assert_allclose(slopes(data.loss, rows, data.sizes).own, -terms, rtol=1e-13, atol=0)


@each_loss
def test_counts_and_sizes_may_be_batches(loss: str) -> None:
    rng = np.random.default_rng(4)
    counts, sizes = 10 ** rng.uniform(0, 2, (2, 3)), np.array([[3.0, 1.0, 5.0], [2.0, 4.0, 1.0]])
    stated = LOSSES[loss](rng, 2)
    spread = jax.tree.map(
        lambda leaf: np.repeat(leaf[:, None], 3, 1) if np.ndim(leaf) == 1 else leaf, stated
    )
    batch = over_groups(counts, sizes, spread, ufm.WeightDecay(0.01, 0.02), use_bias=True)
    for index in range(3):
        one = over_groups(
            counts[:, index], sizes[:, index], stated, ufm.WeightDecay(0.01, 0.02), use_bias=True
        )
        assert float(batch.num_samples[index]) == pytest.approx(float(one.num_samples))
        for name in ("weights", "temperatures", "scales", "offsets"):
            np.testing.assert_allclose(
                getattr(batch.loss, name)[:, index], getattr(one.loss, name), rtol=1e-14
            )
