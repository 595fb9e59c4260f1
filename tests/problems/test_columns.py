import jax.numpy as jnp
import numpy as np
import plain
import pytest
from tables import for_each

from ufm.problems import ClassGroups, class_columns, class_means, columns_of, labels, lifted
from ufm.problems.columns import sample_columns, whole_counts

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = ClassGroups((3, 1), sizes=(2, 1))
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])


def test_classes_are_columns_weighted_by_their_counts() -> None:
    columns = class_columns(CLASSES, jnp.float64)
    np.testing.assert_array_equal(columns.targets, np.eye(3))
    np.testing.assert_array_equal(columns.counts, [3, 3, 1])
    np.testing.assert_array_equal(columns.class_counts, [3, 3, 1])


def test_samples_are_columns_of_count_one() -> None:
    columns = sample_columns(CLASSES, jnp.asarray(LABELS), jnp.float64)
    np.testing.assert_array_equal(columns.targets, np.eye(3)[LABELS])
    np.testing.assert_array_equal(columns.counts, np.ones(7))
    np.testing.assert_array_equal(columns.class_counts, [3, 3, 3, 3, 3, 3, 1])


@for_each("dtype", [jnp.float32, jnp.float64])
def test_columns_have_the_dtype_asked_for(dtype: jnp.dtype) -> None:
    for columns in (
        columns_of(CLASSES, None, dtype),
        columns_of(CLASSES, jnp.asarray(LABELS), dtype),
    ):
        assert {block.dtype for block in columns} == {jnp.dtype(dtype)}
    assert columns_of(CLASSES, None, dtype).counts.shape == (3,)
    assert columns_of(CLASSES, jnp.asarray(LABELS), dtype).counts.shape == (7,)


def test_labels_are_in_the_order_of_the_classes() -> None:
    np.testing.assert_array_equal(labels(CLASSES), LABELS)
    assert labels(CLASSES).dtype == whole_counts(CLASSES).dtype == np.int64


def test_class_means_of_samples_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(7)
    rows = np.random.default_rng(1).normal(size=(7, 4))
    means = class_means(CLASSES, jnp.asarray(rows[order]), jnp.asarray(LABELS[order]))
    np.testing.assert_allclose(
        means, [rows[k == LABELS].mean(axis=0) for k in range(3)], rtol=1e-14
    )
    np.testing.assert_array_equal(class_means(CLASSES, jnp.asarray(rows[:3]), None), rows[:3])


def test_lifted_rows_repeat_their_class_and_average_back_to_it() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4))
    samples = lifted(rows, CLASSES)
    np.testing.assert_array_equal(samples, rows[LABELS])
    np.testing.assert_array_equal(lifted(samples, CLASSES), samples)
    means = class_means(CLASSES, jnp.asarray(samples), jnp.asarray(LABELS))
    np.testing.assert_allclose(means, rows, rtol=1e-15)


def test_real_counts_have_no_samples() -> None:
    classes = ClassGroups((3, 2.5))
    for call in (whole_counts, labels, lambda c: lifted(np.zeros((2, 4)), c)):
        message = (
            "`resolution` 'samples' needs whole `class_counts`, got 2.5; use resolution='classes'"
        )
        with pytest.raises(ValueError, match=message):
            call(classes)


def test_no_other_point_of_samples_beats_the_class_means() -> None:
    # The step behind the equality of resolutions: by convexity, class means are better than what
    # they average.
    problem = plain.a_problem()
    sample_labels = labels(problem.class_counts)
    parameters = plain.random_parameters(problem, rows=plain.N)
    means = np.stack([parameters.features[sample_labels == k].mean(axis=0) for k in range(plain.K)])
    collapsed = parameters._replace(features=lifted(means, problem.class_counts))
    formula = plain.CASES[0].formula
    assert plain.objective(problem, formula, collapsed, sample_labels) < plain.objective(
        problem, formula, parameters, sample_labels
    )
