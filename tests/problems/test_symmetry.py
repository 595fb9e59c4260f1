"""Symmetries of target rows: what is found, what is proved, and what is refused."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm import Targets
from ufm.problems import LabelClass, orbits_under
from ufm.problems.symmetry import find_orbits, random_moves

CYCLE = np.array([0.5, 0.2, 0.1, 0.15, 0.05])
CIRCULANT = np.stack([np.roll(CYCLE, shift) for shift in range(5)])
MIXED_TAGS = [
    tags for tags in itertools.combinations(range(6), 3) if sum(t < 3 for t in tags) in (1, 2)
]


def distinct(targets: Targets) -> Targets:
    return targets.merged()[0]


def shuffled(targets: Targets, seed: int = 0) -> Targets:
    """Return the targets with rows and labels in a random order."""
    random = np.random.default_rng(seed)
    order = random.permutation(targets.num_rows)
    rows = np.asarray(targets.rows)[order][:, random.permutation(targets.num_outputs)]
    return Targets(rows, np.asarray(targets.counts)[order], targets.feature_weights)


@for_each(
    ("targets", "classes", "sizes"),
    [
        (Targets.one_hot(ufm.ClassGroups((100, 10), (3, 4))), [(3, 1), (4, 1)], [3, 4]),
        (Targets.multi_label(6, {1: 6, 2: 30}), [(6, 1)], [6, 15]),
        (Targets.mixup(4, 10.0, {0.3: 2.0, 0.5: 1.0}), [(4, 1)], [4, 6, 12]),
        (Targets.multi_label(6, tag_sets=MIXED_TAGS), [(6, 2)], [18]),
        (Targets.hierarchy(3, 2, 0.6, 0.1), [(6, 3)], [6]),
        # A row of its own takes one label out.
        (
            Targets.multi_label(5, tag_sets=[*itertools.combinations(range(5), 2), (0,)]),
            [(1, 1), (4, 1)],
            [1, 4, 6],
        ),
    ],
)
def test_classes_of_labels_and_orbits_of_rows(
    targets: Targets, classes: list[tuple[int, int]], sizes: list[int]
) -> None:
    for stated in (targets, shuffled(targets)):
        merged = distinct(stated)
        found = find_orbits(merged)
        assert found is not None
        assert sorted((one.labels.size, one.blocks) for one in found.classes) == classes
        assert sorted(found.sizes) == sizes
        assert np.array_equal(found.expanded(found.representatives), np.asarray(merged.rows))
        labels = np.tile(np.arange(merged.num_outputs), (merged.num_rows, 1))
        assert np.array_equal(np.sort(found.moves, axis=1), labels)


def test_rotations_are_found_in_the_order_of_the_labels() -> None:
    pair = Targets(np.concatenate([CIRCULANT, CIRCULANT[:, ::-1]]), np.repeat([3.0, 1.0], 5))
    found = find_orbits(pair)
    assert found is not None
    assert found.classes[0].cyclic
    assert list(found.sizes) == [5, 5]
    assert np.array_equal(found.expanded(found.representatives), np.asarray(pair.rows))
    # Rows of a smaller period have smaller orbits.
    evens = Targets(np.array([[1.0, 0, 1, 0, 1, 0], [0, 1.0, 0, 1, 0, 1]]))
    assert list(orbits_under(evens, [LabelClass(np.arange(6), cyclic=True)]).sizes) == [2]


def changed_count(targets: Targets) -> Targets:
    counts = np.array(targets.counts)
    counts[0] *= 1 + 1e-15
    return Targets(targets.rows, counts)


def changed_weight(targets: Targets) -> Targets:
    weights = np.array(targets.counts)
    weights[0] *= 2
    return Targets(targets.rows, targets.counts, weights)


def changed_entry(targets: Targets) -> Targets:
    rows = np.array(targets.rows)
    rows[0, 0] += 1e-15
    return Targets(rows, targets.counts)


def without_a_row(targets: Targets) -> Targets:
    return Targets(np.asarray(targets.rows)[1:], np.asarray(targets.counts)[1:])


def with_a_row(targets: Targets) -> Targets:
    row = np.arange(1.0, targets.num_outputs + 1)[None, :]
    return Targets(np.concatenate([targets.rows, row]), np.append(targets.counts, 1.0))


@for_each("broken", [changed_count, changed_weight, changed_entry, without_a_row, with_a_row])
def test_one_row_breaks_a_symmetry(broken: Callable[[Targets], Targets]) -> None:
    for targets, group in (
        (Targets.multi_label(5, {1: 5, 2: 10}), LabelClass(np.arange(5))),
        (Targets.hierarchy(3, 2, 0.6, 0.1), LabelClass(np.arange(6), blocks=3)),
        (Targets(CIRCULANT), LabelClass(np.arange(5), cyclic=True)),
    ):
        orbits_under(targets, [group])
        with pytest.raises(ufm.ArgumentError, match="leave the targets alone"):
            orbits_under(broken(targets), [group])
        found = find_orbits(broken(targets))
        whole = targets.num_outputs
        assert found is None or all(one.labels.size < whole for one in found.classes)


def test_a_row_with_all_labels_apart_leaves_nothing_to_reduce() -> None:
    assert find_orbits(with_a_row(Targets.multi_label(5, {1: 5, 2: 10}))) is None
    assert find_orbits(Targets(np.random.default_rng(0).normal(size=(40, 7)))) is None


def test_numbers_of_the_labels_count() -> None:
    targets = Targets.multi_label(5, {1: 5, 2: 10})
    found = find_orbits(targets, np.array([[1.0], [1.0], [1.0], [2.0], [2.0]]))
    assert found is not None
    assert sorted(one.labels.size for one in found.classes) == [2, 3]


@for_each(
    ("classes", "message"),
    [
        ([LabelClass(np.array([0, 1])), LabelClass(np.array([1, 2]))], "none twice"),
        ([LabelClass(np.array([0, 7]))], "from 0 to 4"),
        ([LabelClass(np.arange(5), blocks=2)], "blocks of equal size"),
    ],
)
def test_what_is_no_group(classes: list[LabelClass], message: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=message):
        orbits_under(Targets.multi_label(5, {1: 5}), classes)


def test_random_elements_are_permutations_that_keep_blocks() -> None:
    classes = [
        LabelClass(np.array([4, 5, 0, 1]), blocks=2),
        LabelClass(np.array([2, 3, 6]), cyclic=True),
    ]
    moves = random_moves(classes, 50, np.random.default_rng(0))
    assert np.array_equal(np.sort(moves, axis=1), np.tile(np.arange(7), (50, 1)))
    assert np.all((np.isin(moves[:, 4], (4, 5))) == (np.isin(moves[:, 5], (4, 5))))
    assert len(np.unique(moves[:, [4, 5, 0, 1]], axis=0)) == 8
    assert len(np.unique(moves[:, [2, 3, 6]], axis=0)) == 3
