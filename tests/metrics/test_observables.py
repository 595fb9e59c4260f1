"""Measures of blocks against those of the matrices they stand for, one at a time and in batches."""

from typing import Any

import jax
import numpy as np
from random_groups import random_blocks, random_problem
from tables import for_each

from ufm.metrics import observables as geometry
from ufm.problems import Blocks, grouped

SIZES = [(3, 2), (1, 4), (2, 1, 3)]
each_size = for_each("sizes", SIZES)
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def stacked(parts: list) -> object:
    return jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf, float) for leaf in leaves], axis=-1), *parts
    )


@each_size
@for_each("ball", [False, True])
def test_the_geometry_is_that_of_balanced_factors(sizes: tuple[int, ...], ball: bool) -> None:
    rng = np.random.default_rng(0)
    stated = [random_problem(rng, sizes=sizes, ball=ball) for _ in range(3)]
    problems = [grouped(problem)[0] for problem in stated]
    logits = [random_blocks(rng, sizes) for _ in range(3)]
    batch = geometry.geometry_of(stacked(problems), stacked(logits))
    for index, (problem, blocks) in enumerate(zip(problems, logits, strict=True)):
        one = geometry.geometry_of(problem, blocks)
        jax.tree.map(
            lambda many, single, i=index: np.testing.assert_allclose(many[..., i], single, **TIGHT),
            batch,
            one,
        )
        roots = np.repeat(np.ones(len(sizes)) if ball else np.sqrt(problem.counts), sizes)
        left, values, right = np.linalg.svd(roots[:, None] * blocks.dense())
        regularizer: Any = stated[index].regularizer
        ratio = float(regularizer.weights) / float(regularizer.features)
        scale = np.sqrt(ratio if ball else 1 / ratio)
        features = (left * values) @ left.T / np.outer(roots, roots) / scale
        np.testing.assert_allclose(
            one.weight_gram.dense(), scale * (right.T * values) @ right, **TIGHT
        )
        np.testing.assert_allclose(one.feature_gram.dense(), features, **TIGHT)
        assert one.rank == np.sum(values > 1e-9 * values[0])


def test_the_rank_is_of_what_is_not_small_beside_the_floor() -> None:
    problem, _ = grouped(random_problem(np.random.default_rng(1), sizes=(3, 2), ball=True))
    small = Blocks(np.array([1e-10, 0.0]), np.diag([1e-10, 0.0]), np.array([3.0, 2.0]))
    assert geometry.geometry_of(problem, small).rank == 3
    assert geometry.geometry_of(problem, small, floor=1.0).rank == 0
    nothing = Blocks(0 * small.within, 0 * small.between, small.sizes)
    assert geometry.geometry_of(problem, nothing).rank == 0
    vanished = geometry.ClassGeometry(nothing, nothing, nothing, 0)
    assert np.all(np.isnan([*geometry.frame_distances(vanished).values()]))


@each_size
def test_measures_are_those_of_the_matrix(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    parts = [random_blocks(rng, sizes) for _ in range(3)]
    parts = [part @ part.transposed for part in parts]
    bias = rng.normal(size=(len(sizes), 3))
    batch = stacked(parts)
    K = sum(sizes)
    centre = np.eye(K) - 1 / K
    for index, part in enumerate(parts):
        matrix = part.dense()
        middle = centre @ matrix @ centre
        np.testing.assert_allclose(geometry.trace(batch)[index], np.trace(matrix), **TIGHT)
        np.testing.assert_allclose(geometry.norm(batch)[index], np.linalg.norm(matrix), **TIGHT)
        np.testing.assert_allclose(
            geometry.projected_trace(batch)[index], np.trace(middle), **TIGHT
        )
        np.testing.assert_allclose(geometry.centred(part).dense(), middle, **TIGHT)
        np.testing.assert_allclose(
            geometry.centred(batch).between[..., index], geometry.centred(part).between, **TIGHT
        )
        found = geometry.frame_distances(geometry.ClassGeometry(batch, batch, batch, 0))
        etf, frame = centre / np.sqrt(K - 1), np.eye(K) / np.sqrt(K)
        for name, gram, target in (
            ("nc2_weights", matrix, etf),
            ("nc2_features", middle, etf),
            ("nc2_weights_frame", matrix, frame),
            ("nc2_features_frame", matrix, frame),
        ):
            distance = np.linalg.norm(gram / np.linalg.norm(gram) - target)
            np.testing.assert_allclose(found[name][index], distance, **TIGHT)
        np.testing.assert_allclose(
            geometry.norms(batch)[:, index], np.sqrt(np.diag(matrix))[np.cumsum(sizes) - 1], **TIGHT
        )
        for name, value in zip(("within", "across"), batch.cosines(), strict=True):
            np.testing.assert_allclose(value[..., index], part.cosines()[name == "across"], **TIGHT)
        rows = matrix + np.repeat(bias[:, index], sizes)
        others = np.max(np.where(np.eye(K, dtype=bool), -np.inf, rows), axis=1)
        margins = geometry.margins(batch, bias)[:, index]
        np.testing.assert_allclose(margins, (np.diag(rows) - others)[np.cumsum(sizes) - 1], **TIGHT)
