import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

from ufm.problems import ClassGroups

pytestmark = pytest.mark.usefixtures("float64")


def test_one_class_per_count_unless_sizes_are_given() -> None:
    classes = ClassGroups((7, 4, 1))
    assert (classes.num_classes, classes.num_groups, classes.sizes) == (3, 3, (1, 1, 1))
    np.testing.assert_array_equal(classes.per_class, [7, 4, 1])
    grouped = ClassGroups(counts=(500, 5), sizes=(2, 3))
    assert (grouped.num_classes, grouped.num_groups) == (5, 2)
    np.testing.assert_array_equal(grouped.per_class, [500, 500, 5, 5, 5])
    assert grouped.num_samples == 1015
    assert (
        classes.per_class.dtype
        == grouped.per_class.dtype
        == grouped.num_samples.dtype
        == np.float64
    )


@for_each("counts", [[7, 4], (7.0, 4.0), np.array([7, 4]), np.float32([7, 4]), (np.int64(7), 4)])
def test_counts_of_any_number_type(counts: Any) -> None:
    classes = ClassGroups(counts)
    assert isinstance(classes.counts, np.ndarray)
    assert classes.counts.dtype == np.float64
    np.testing.assert_array_equal(classes.counts, [7, 4])


def test_counts_from_a_jax_array_keep_no_reference_to_the_precision_of_the_process() -> None:
    assert ClassGroups(jnp.asarray([7.0, 4.0], jnp.float32)).counts.dtype == np.float64


def test_balanced() -> None:
    classes = ClassGroups.balanced(4, 25)
    np.testing.assert_array_equal(classes, [25] * 4)
    assert classes.num_groups == 1


def test_step_counts_are_real_and_their_ratio_exact() -> None:
    classes = ClassGroups.step(5, 100, imbalance_ratio=7)
    np.testing.assert_allclose(classes, [100] * 3 + [100 / 7] * 2, rtol=1e-15)
    few = ClassGroups.step(5, 100, imbalance_ratio=7, num_minority=1)
    assert few.sizes == (4, 1)


def test_long_tail_is_geometric() -> None:
    counts = np.asarray(ClassGroups.long_tail(5, 1000, imbalance_ratio=16))
    np.testing.assert_allclose(counts, [1000, 500, 250, 125, 62.5], rtol=1e-14)


def test_ratio_one_is_balanced() -> None:
    for classes in (
        ClassGroups.step(4, 9, imbalance_ratio=1),
        ClassGroups.long_tail(4, 9, imbalance_ratio=1),
    ):
        np.testing.assert_array_equal(classes, ClassGroups.balanced(4, 9))


def test_length_iteration_and_array() -> None:
    classes = ClassGroups((7, 4), sizes=(2, 1))
    assert len(classes) == 3
    assert [float(count) for count in classes] == [7, 7, 4]
    array = np.asarray(classes)
    array[0] = 0  # a copy: nothing in the library can be changed from outside
    assert np.asarray(classes)[0] == 7
    assert np.asarray(classes, np.float32).dtype == np.float32


def test_expand_takes_one_number_one_per_group_or_one_per_class() -> None:
    classes = ClassGroups((7, 4), sizes=(2, 1))
    np.testing.assert_array_equal(classes.expand(np.float64(3.0), "x"), [3, 3, 3])
    np.testing.assert_array_equal(classes.expand(np.array([3.0, 1.0]), "x"), [3, 3, 1])
    np.testing.assert_array_equal(classes.expand(np.array([3.0, 2.0, 1.0]), "x"), [3, 2, 1])
    with pytest.raises(
        ValueError, match=r"`x` must be .* per group \(2\) or one per class \(3\); got shape \(4,\)"
    ):
        classes.expand(np.zeros(4), "x")


def test_constructors_are_traceable_in_counts_and_ratio() -> None:
    ratios = np.array([1.0, 3.0, 10.0])

    def counts(ratio: Any) -> tuple[Any, ...]:
        return (
            ClassGroups.step(4, 50.0, imbalance_ratio=ratio).per_class,
            ClassGroups.long_tail(4, 50.0, imbalance_ratio=ratio).per_class,
            ClassGroups.balanced(4, ratio).per_class,
            ClassGroups.step(4, 50, imbalance_ratio=ratio).num_samples,
        )

    batched = jax.jit(jax.vmap(counts))(ratios)
    for index, ratio in enumerate(ratios):
        for column, expected in zip(batched, counts(float(ratio)), strict=True):
            np.testing.assert_allclose(column[index], expected, rtol=1e-14)


def test_counts_are_leaves_and_sizes_are_static() -> None:
    classes = ClassGroups((7, 4), sizes=(2, 1))
    assert len(jax.tree.leaves(classes)) == 1
    assert jax.tree.structure(classes) == jax.tree.structure(ClassGroups((1, 2), sizes=(2, 1)))
    assert jax.tree.structure(classes) != jax.tree.structure(ClassGroups((1, 2), sizes=(1, 2)))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, copy.copy(classes))
    np.testing.assert_array_equal(doubled, [14, 14, 8])


BAD = [
    (
        {"counts": (5, 0)},
        "`class_counts` must be positive and finite, got 0.0; leave an empty class out",
    ),
    ({"counts": (5, -1)}, "`class_counts` must be positive and finite, got -1.0"),
    ({"counts": (5, np.nan)}, "`class_counts` must be positive and finite, got nan"),
    ({"counts": (np.inf, 5)}, "`class_counts` must be positive and finite, got inf"),
    ({"counts": ()}, "`class_counts` must describe at least 2 classes, got 0"),
    ({"counts": (5,)}, "`class_counts` must describe at least 2 classes, got 1"),
    ({"counts": 5}, "`class_counts` must describe at least 2 classes, got 1"),
    (
        {"counts": ((5, 3), (2, 1))},
        r"`counts` must be a flat sequence of numbers, got .* shape \(2, 2\)",
    ),
    (
        {"counts": (5, 3), "sizes": (1, 1, 1)},
        "`sizes` must name one .* per count: got 3 sizes for 2 counts",
    ),
    ({"counts": (5, 3), "sizes": 2}, "`sizes` must be a sequence of whole numbers, got 2"),
    ({"counts": (5, 3), "sizes": (0, 2)}, "`sizes` must be a whole number of at least 1, got 0"),
    (
        {"counts": (5, 3), "sizes": (1.5, 2)},
        "`sizes` must be a whole number of at least 1, got 1.5",
    ),
    (
        {"counts": (5, 3), "sizes": (np.inf, 2)},
        "`sizes` must be a whole number of at least 1, got inf",
    ),
    (
        {"counts": (5, 3), "sizes": (np.nan, 2)},
        "`sizes` must be a whole number of at least 1, got nan",
    ),
    (
        {"counts": (5, 3), "sizes": ("2", 2)},
        "`sizes` must be a whole number of at least 1, got '2'",
    ),
    (
        {"counts": (5, 3), "sizes": (True, 2)},
        "`sizes` must be a whole number of at least 1, got True",
    ),
]


@for_each(("arguments", "message"), BAD)
def test_bad_counts_and_sizes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassGroups(**arguments)


@for_each("counts", ["abc", ("a", "b"), ((1, 2), 3)])
def test_counts_that_are_no_numbers_are_a_value_error(counts: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        ClassGroups(counts)


@for_each("ratio", [0, -2, np.nan, np.inf, "2", (1, 2)])
@for_each("constructor", [ClassGroups.step, ClassGroups.long_tail])
def test_bad_ratios_are_named(constructor: Any, ratio: Any) -> None:
    with pytest.raises(ValueError, match="`imbalance_ratio` must be a positive finite number, got"):
        constructor(4, 10, imbalance_ratio=ratio)


@for_each("num_classes", [0, -1, 2.5, np.nan, "4"])
def test_bad_numbers_of_classes_are_named(num_classes: Any) -> None:
    for construct in (
        lambda: ClassGroups.balanced(num_classes, 10),
        lambda: ClassGroups.step(num_classes, 10, imbalance_ratio=2),
        lambda: ClassGroups.long_tail(num_classes, 10, imbalance_ratio=2),
    ):
        with pytest.raises(
            ValueError, match="`num_classes` must be a whole number of at least 1, got"
        ):
            construct()


def test_one_class_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        ClassGroups.balanced(1, 10)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        ClassGroups.long_tail(1, 10, imbalance_ratio=2)


@for_each("num_minority", [0, 4, 5, -1, 1.5])
def test_a_step_has_classes_of_both_kinds(num_minority: Any) -> None:
    with pytest.raises(ValueError, match=f"`num_minority` must be .* got {num_minority}"):
        ClassGroups.step(4, 10, imbalance_ratio=2, num_minority=num_minority)


@for_each("count", [0, -1, np.nan, np.inf])
def test_constructors_check_the_counts_they_make(count: float) -> None:
    with pytest.raises(ValueError, match="`class_counts` must be positive and finite"):
        ClassGroups.balanced(3, count)
    with pytest.raises(ValueError, match="`count` must be a positive finite number"):
        ClassGroups.step(3, count, imbalance_ratio=2)


def test_text_is_not_counts() -> None:
    with pytest.raises(
        ValueError, match=r"`class_counts` must be a sequence of numbers .* got the text '3,3'"
    ):
        ClassGroups("3,3")
