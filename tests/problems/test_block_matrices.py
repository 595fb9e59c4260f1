import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_groups import random_blocks
from tables import for_each

from ufm.problems import Blocks, check_dense, diagonal, identity

pytestmark = pytest.mark.usefixtures("float64")

ALL_SIZES = [(3, 2), (4,), (1, 1), (1, 3, 2), (5, 1, 1, 2)]
each_size = for_each("sizes", ALL_SIZES)


def explicit(blocks: Blocks) -> np.ndarray:
    """The matrix from what it does to the groups' unit vectors and to vectors of mean zero."""
    sizes = np.asarray(blocks.sizes).astype(int)
    members = np.repeat(np.arange(sizes.size), sizes)
    units = (members[:, None] == np.arange(sizes.size)) / np.sqrt(sizes)
    centred = np.diag(np.asarray(blocks.within)[members])
    same = (members[:, None] == members) / sizes[members]
    return units @ np.asarray(blocks.between) @ units.T + centred @ (np.eye(members.size) - same)


@each_size
def test_dense_is_the_definition(sizes: tuple[int, ...]) -> None:
    blocks = random_blocks(np.random.default_rng(0), sizes)
    np.testing.assert_allclose(blocks.dense(), explicit(blocks), atol=1e-14)


@each_size
def test_entries_are_those_of_the_dense_matrix(sizes: tuple[int, ...]) -> None:
    blocks = random_blocks(np.random.default_rng(1), sizes)
    matrix, starts = explicit(blocks), np.concatenate([[0], np.cumsum(sizes)[:-1]])
    np.testing.assert_allclose(blocks.own, matrix[starts, starts], atol=1e-14)
    for g, first in enumerate(starts):
        if sizes[g] > 1:
            assert blocks.same[g] == pytest.approx(matrix[first, first + 1], abs=1e-14)
            assert blocks.across[g, g] == blocks.same[g]
        for h, second in enumerate(starts):
            if g != h:
                assert blocks.across[g, h] == pytest.approx(matrix[first, second], abs=1e-14)


@each_size
def test_products_transposes_and_scaled_rows_are_those_of_the_dense_matrices(
    sizes: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(2)
    a, b = random_blocks(rng, sizes), random_blocks(rng, sizes)
    factors = rng.uniform(0.5, 2, len(sizes))
    np.testing.assert_allclose((a @ b).dense(), a.dense() @ b.dense(), atol=1e-13)
    np.testing.assert_allclose(a.transposed.dense(), a.dense().T, atol=1e-14)
    np.testing.assert_allclose((a @ a.transposed).dense(), a.dense() @ a.dense().T, atol=1e-13)
    rows = np.repeat(factors, sizes)[:, None]
    np.testing.assert_allclose(a.scaled_rows(factors).dense(), rows * a.dense(), atol=1e-14)


@each_size
def test_singular_values_come_with_their_multiplicities(sizes: tuple[int, ...]) -> None:
    blocks = random_blocks(np.random.default_rng(3), sizes)
    values, times = blocks.singular_values()
    assert np.sum(times) == sum(sizes)
    expected = np.linalg.svd(blocks.dense(), compute_uv=False)
    np.testing.assert_allclose(np.repeat(values, times.astype(int)), expected, atol=1e-13)


@each_size
def test_the_rank_is_that_of_the_dense_matrix(sizes: tuple[int, ...]) -> None:
    blocks = random_blocks(np.random.default_rng(4), sizes)
    assert blocks.rank() == np.linalg.matrix_rank(blocks.dense(), rtol=1e-9)
    centre = np.sqrt(np.asarray(sizes) / sum(sizes))
    less = Blocks(
        blocks.within, blocks.between - np.outer(blocks.between @ centre, centre), blocks.sizes
    )
    assert less.rank() == np.linalg.matrix_rank(less.dense(), rtol=1e-9)
    dead = Blocks(np.zeros(len(sizes)), less.between, blocks.sizes)
    assert dead.rank() == len(sizes) - 1
    assert Blocks(0 * blocks.within, 0 * blocks.between, blocks.sizes).rank() == 0


@each_size
def test_cosines_are_those_of_the_vectors(sizes: tuple[int, ...]) -> None:
    factor = random_blocks(np.random.default_rng(5), sizes)
    gram = factor @ factor.transposed
    vectors = factor.dense()
    expected = (vectors @ vectors.T) / np.outer(
        np.linalg.norm(vectors, axis=1), np.linalg.norm(vectors, axis=1)
    )
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    within, across = gram.cosines()
    for g, first in enumerate(starts):
        assert np.isnan(within[g]) == (sizes[g] == 1)
        if sizes[g] > 1:
            assert within[g] == across[g, g] == pytest.approx(expected[first, first + 1], abs=1e-12)
        for h, second in enumerate(starts):
            if g != h:
                assert across[g, h] == pytest.approx(expected[first, second], abs=1e-12)


def test_cosines_of_vectors_that_vanish_are_nan() -> None:
    gram = Blocks(np.array([0.0, 1.0]), np.diag([0.0, 2.0]), np.array([3.0, 2.0]))
    within, across = gram.cosines()
    assert np.isnan(within[0])
    assert np.isfinite(within[1])
    assert np.isnan(across[0, 1])
    assert np.isnan(across[1, 0])


def test_groups_in_any_order_permute_the_dense_matrix() -> None:
    blocks = random_blocks(np.random.default_rng(6), (3, 2))
    groups = np.array([1, 0, 0, 1, 0])
    order = np.argsort(groups, kind="stable")
    np.testing.assert_array_equal(blocks.dense(groups)[np.ix_(order, order)], blocks.dense())


def test_batches_have_their_axes_last() -> None:
    rng = np.random.default_rng(7)
    parts = [random_blocks(rng, (3, 2)) for _ in range(4)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *parts)
    for index, part in enumerate(parts):
        np.testing.assert_allclose(batch.own[:, index], part.own, rtol=1e-14)
        np.testing.assert_allclose(batch.across[..., index], part.across, rtol=1e-14)
        np.testing.assert_allclose(diagonal(batch.between)[:, index], np.diagonal(part.between))
    assert identity(batch.between).shape == (2, 2, 1)
    np.testing.assert_array_equal(batch.transposed.between[..., 1], parts[1].between.T)


def test_a_million_classes_are_never_a_dense_matrix() -> None:
    blocks = random_blocks(np.random.default_rng(8), (400_000, 600_000))
    gram = blocks @ blocks.transposed
    values, times = gram.singular_values()
    assert np.sum(times) == 1_000_000
    assert np.all(np.isfinite(values))
    assert gram.rank() in (2, 1_000_000, 400_001, 600_001)
    assert np.all(np.abs(gram.cosines()[1]) <= 1)
    with pytest.raises(
        ValueError,
        match="1000000 classes would take 8e\\+03 GB; "
        "use resolution='groups' and the block answers",
    ):
        blocks.dense()
    check_dense(20_000)


def test_averages_parts_and_sums_of_blocks() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([1, 0, 1, 2, 1, 0, 1])
    sizes = np.array([2.0, 4.0, 1.0])
    blocks = Blocks(np.array([0.5, -1.0, 0.0]), rng.normal(size=(3, 3)), sizes)
    dense = blocks.dense(groups)
    back = Blocks.average(dense, groups)
    np.testing.assert_allclose(back.between, blocks.between, atol=1e-14)
    np.testing.assert_allclose(back.within, blocks.within, atol=1e-14)
    np.testing.assert_allclose(
        np.linalg.norm(blocks.flattened()), np.linalg.norm(dense), rtol=1e-14
    )
    noisy = dense + rng.normal(size=dense.shape)
    rest = noisy - Blocks.average(noisy, groups).dense(groups)
    np.testing.assert_allclose(np.sum(rest * dense), 0.0, atol=1e-12)  # it is the nearest one
    owners, parts = np.array([0, 0, 1, 1, 1, 2]), np.array([1.0, 1, 1, 1, 2, 1])
    in_order = blocks.dense()
    np.testing.assert_allclose(blocks.refined(owners, parts).dense(), in_order, atol=1e-14)
    other = Blocks(np.ones(3), np.eye(3), sizes)
    np.testing.assert_allclose(
        (np.float64(2) * blocks - other + blocks).dense(), 3 * in_order - np.eye(7), atol=1e-14
    )
