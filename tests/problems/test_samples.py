import jax.numpy as jnp
import numpy as np
import plain
import pytest

import ufm
from ufm.problems import (
    ClassGroups,
    class_samples,
    labelled_samples,
    labels,
    lifted,
    num_rows,
    samples_of,
)
from ufm.problems.samples import whole_counts

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = ClassGroups((3, 1), sizes=(2, 1))
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])
DECAY = plain.a_problem(class_counts=CLASSES)
BALL = plain.a_problem(class_counts=CLASSES, regularizer=ufm.NormBall(2.0, 3.0))


def test_a_class_is_one_row_with_the_weight_of_its_samples() -> None:
    samples = class_samples(DECAY, jnp.float64)
    np.testing.assert_array_equal(samples.targets, np.eye(3))
    np.testing.assert_array_equal(samples.counts, [3, 3, 1])
    np.testing.assert_array_equal(samples.feature_weights, [3, 3, 1])
    np.testing.assert_array_equal(samples.shares, np.ones(3))
    np.testing.assert_array_equal(class_samples(BALL, jnp.float64).feature_weights, [1 / 3] * 3)


def test_a_sample_is_one_row() -> None:
    samples = labelled_samples(DECAY, jnp.asarray(LABELS), jnp.float64)
    np.testing.assert_array_equal(samples.targets, np.eye(3)[LABELS])
    np.testing.assert_array_equal(samples.counts, np.ones(7))
    np.testing.assert_array_equal(samples.feature_weights, np.ones(7))
    np.testing.assert_array_equal(samples.shares, [1 / 3] * 6 + [1])
    np.testing.assert_array_equal(samples.origins, LABELS)
    weights = labelled_samples(BALL, jnp.asarray(LABELS), jnp.float64).feature_weights
    np.testing.assert_allclose(weights, [1 / 9] * 6 + [1 / 3], rtol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_samples_have_the_dtype_asked_for(dtype: jnp.dtype) -> None:
    of_samples = labelled_samples(DECAY, jnp.asarray(LABELS), dtype)
    for samples, rows in ((class_samples(DECAY, dtype), 3), (of_samples, 7)):
        numbers = samples._replace(origins=samples.counts)
        assert {block.dtype for block in numbers} == {jnp.dtype(dtype)}
        assert jnp.issubdtype(samples.astype(dtype).origins.dtype, jnp.integer)
        assert samples.counts.shape == (rows,)


def test_the_number_of_rows_tells_the_resolution() -> None:
    for name, expected in (
        ("classes", class_samples(BALL, jnp.float64)),
        ("samples", labelled_samples(BALL, jnp.asarray(LABELS), jnp.float64)),
    ):
        samples = samples_of(BALL, num_rows(BALL, name))
        for block, other in zip(samples, expected, strict=True):
            assert isinstance(block, np.ndarray)
            np.testing.assert_array_equal(block, other)


def test_labels_are_in_the_order_of_the_classes() -> None:
    np.testing.assert_array_equal(labels(CLASSES), LABELS)
    assert labels(CLASSES).dtype == whole_counts(CLASSES).dtype == np.int64


def test_class_means_of_samples_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(7)
    rows = np.random.default_rng(1).normal(size=(7, 4))
    means = labelled_samples(DECAY, jnp.asarray(LABELS[order]), jnp.float64).means(rows[order], 3)
    np.testing.assert_allclose(
        means, [rows[k == LABELS].mean(axis=0) for k in range(3)], rtol=1e-14
    )
    np.testing.assert_array_equal(class_samples(DECAY, jnp.float64).means(rows[:3], 3), rows[:3])


def test_lifted_rows_repeat_their_class_and_average_back_to_it() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4))
    samples = lifted(rows, CLASSES)
    np.testing.assert_array_equal(samples, rows[LABELS])
    np.testing.assert_array_equal(lifted(samples, CLASSES), samples)
    means = samples_of(DECAY, 7).means(samples, 3)
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
