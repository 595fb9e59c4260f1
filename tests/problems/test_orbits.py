"""Problems over orbits of rows: adapted bases, norms by blocks, and losses that are symmetric."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm import Targets
from ufm.problems import (
    LabelClass,
    RowOrbits,
    block_norms,
    coordinates_of,
    find_row_orbits,
    is_symmetric,
    one_count_per_class,
    orbit_problem,
    orbit_rows,
    orbits_under,
)

pytestmark = pytest.mark.usefixtures("float64")

CYCLE = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
CIRCULANT = np.stack([np.roll(CYCLE, shift) for shift in range(6)])
HALVES = [tags for tags in itertools.combinations(range(7), 3) if sum(t < 4 for t in tags) == 2]
# Three labels out of two of three pairs.
SHARED = [
    tags for tags in itertools.combinations(range(6), 3) if len({tag // 2 for tag in tags}) == 2
]
GROUPS = [LabelClass(np.arange(4)), LabelClass(np.arange(4, 7))]
PERIODIC = np.array([[1.0, 2, 3, 1, 2, 3], [2.0, 3, 1, 2, 3, 1], [3.0, 1, 2, 3, 1, 2]])


def a_problem(targets: Targets, **changes: Any) -> ufm.Problem:
    fields: dict[str, Any] = {
        "targets": targets,
        "feature_dim": targets.num_outputs,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(2e-2, 3e-2),
    }
    return one_count_per_class(ufm.Problem(**(fields | changes)))


def reduced(targets: Targets, classes: list[LabelClass]) -> tuple[RowOrbits, Any]:
    orbits = orbits_under(targets, classes)
    return orbits, orbit_problem(a_problem(targets), orbits)


TABLE = [
    (Targets.multi_label(5, {1: 5, 2: 30}), [LabelClass(np.arange(5))]),
    (Targets.mixup(4, 2.0, {0.3: 2.0}), [LabelClass(np.arange(4))]),
    (Targets.multi_label(7, tag_sets=[*HALVES, (4,), (5,), (6,)]), GROUPS),
    (Targets.hierarchy(3, 2, 0.6, 0.1), [LabelClass(np.arange(6), blocks=3)]),
    (
        Targets.multi_label(6, tag_sets=SHARED),
        [LabelClass(np.arange(6), blocks=3)],
    ),
    (Targets(CIRCULANT), [LabelClass(np.arange(6), cyclic=True)]),
    (Targets(np.concatenate([CIRCULANT, PERIODIC])), [LabelClass(np.arange(6), cyclic=True)]),
]


@for_each(("targets", "classes"), TABLE)
def test_norms_by_blocks_are_those_of_all_rows(targets: Targets, classes: list[LabelClass]) -> None:
    orbits, data = reduced(targets, classes)
    x = np.random.default_rng(0).normal(size=data.present.shape) * data.present
    rows = np.asarray(orbit_rows(data, jnp.asarray(x), None))
    whole = np.sqrt(np.asarray(targets.counts))[:, None] * orbits.expanded(rows)
    values = np.linalg.svd(whole, compute_uv=False)
    norms = block_norms(data, data.rows[:, None] * x)
    between = np.linalg.svd(np.asarray(norms.matrix), compute_uv=False)
    nuclear = np.sum(data.dims * np.asarray(norms.vectors)) + np.sum(between)
    assert nuclear == pytest.approx(np.sum(values), rel=1e-12)
    assert max(np.max(norms.vectors), np.max(between)) == pytest.approx(values[0], rel=1e-12)
    squares = np.sum(data.dims * np.asarray(norms.vectors) ** 2) + np.sum(between**2)
    assert squares == pytest.approx(np.sum(whole**2), rel=1e-12)


@for_each(("targets", "classes"), TABLE)
def test_the_basis_is_orthonormal_and_spans_what_the_stabilisers_leave(
    targets: Targets, classes: list[LabelClass]
) -> None:
    orbits, data = reduced(targets, classes)
    x = np.random.default_rng(1).normal(size=data.present.shape) * data.present
    rows = orbit_rows(data, jnp.asarray(x), None)
    assert np.allclose(coordinates_of(data, rows), x, rtol=0, atol=1e-13)
    assert np.array_equal(np.sum(data.present, axis=1), np.max(data.places, axis=1) + 1)
    # The representatives themselves are such rows.
    own = jnp.asarray(orbits.representatives)
    assert np.allclose(orbit_rows(data, coordinates_of(data, own), None), own, atol=1e-13)


def test_unknowns_are_counted_by_hand() -> None:
    counts = [int(np.sum(reduced(*row)[1].present)) for row in TABLE]
    # Distinct entries of each representative, within each class or block.
    assert counts[:4] == [4, 5, 4 + 3, 3]
    assert counts[5:] == [6, 6 + 3]


def test_a_loss_is_tried_on_the_rows() -> None:
    targets = Targets.multi_label(5, {1: 5, 2: 10})
    orbits = orbits_under(targets, [LabelClass(np.arange(5))])

    def lopsided(z: Any, y: Any) -> Any:
        return jnp.sum((1 + 1e-9 * jnp.arange(5.0)) * (z - y) ** 2)

    def by_order(z: Any, y: Any) -> Any:
        return jnp.sum((z - y) ** 2) + z[0] * 1e-9

    def even(z: Any, y: Any) -> Any:
        return jnp.sum((z - y) ** 2)

    for loss, symmetric in (
        (ufm.CrossEntropy(), True),
        (ufm.BinaryCrossEntropy(), True),
        (ufm.LabelSmoothing(0.1), True),
        (ufm.losses.from_function(even), True),
        (ufm.losses.from_function(lopsided), False),
        (ufm.losses.from_function(by_order), False),
    ):
        assert is_symmetric(a_problem(targets, loss=loss), orbits) == symmetric


def test_parameters_per_class_split_the_labels() -> None:
    targets = Targets.multi_label(6, {1: 6})
    weighted = ufm.ClassWeighted(weights=(1.0, 1.0, 1.0, 2.0, 2.0, 2.0))
    found = find_row_orbits(a_problem(targets, loss=weighted))
    assert found is not None
    assert sorted(one.labels.size for one in found.classes) == [3, 3]


def test_problems_of_classes_have_no_orbits_of_rows() -> None:
    problem = one_count_per_class(
        ufm.Problem(
            class_counts=(3, 3, 3),
            feature_dim=3,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(1e-2, 1e-2),
        )
    )
    assert find_row_orbits(problem) is None
    scattered = Targets(np.random.default_rng(0).random(size=(9, 3)))
    assert find_row_orbits(a_problem(scattered)) is None
