"""Targets: rows, multiplicities and feature weights, and the kinds of them."""

from typing import Any

import numpy as np
import pytest
from tables import for_each, slow

import ufm
from ufm.problems import Problem, Targets, merged


def a_problem(targets: Targets, **changes: Any) -> Problem:
    """A problem of some targets; `changes` replaces its arguments."""
    arguments: dict[str, Any] = {
        "feature_dim": 5,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(0.01, 0.01),
    }
    return Problem(targets=targets, **arguments | changes)


@for_each("changes", [{}, slow({"regularizer": ufm.NormBall(2.0, 3.0), "use_bias": True})])
def test_one_hot_rows_are_the_problem_of_their_classes(changes: dict[str, Any]) -> None:
    counts = (5, 3, 2)
    of_rows = a_problem(Targets.one_hot(counts), **changes)
    arguments = {"feature_dim": 5, "loss": ufm.CrossEntropy()}
    arguments |= {"regularizer": ufm.WeightDecay(0.01, 0.01)} | changes
    of_classes = Problem(class_counts=counts, **arguments)
    np.testing.assert_array_equal(of_rows.row_weights, of_classes.row_weights)
    np.testing.assert_array_equal(of_rows.gauge.rows, of_classes.gauge.rows)
    assert of_rows.gauge.price == of_classes.gauge.price
    found, expected = ufm.solve(of_rows), ufm.solve(of_classes)
    assert found.objective == pytest.approx(expected.objective, rel=1e-12)
    assert found.check().certificate.holds
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
    np.testing.assert_allclose(found.margins, expected.margins, atol=1e-6)


def test_tag_sets_of_every_multiplicity() -> None:
    targets = Targets.multi_label(4, {1: 8, 2: 12, 3: 4})
    assert targets.rows.shape == (4 + 6 + 4, 4)
    np.testing.assert_array_equal(targets.rows.sum(axis=1), [1] * 4 + [2] * 6 + [3] * 4)
    np.testing.assert_array_equal(targets.counts, [2] * 10 + [1] * 4)
    given = Targets.multi_label(3, tag_sets=[(0,), (1, 2), ()], counts=(4, 2, 1))
    np.testing.assert_array_equal(given.rows, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(given.label_counts, [4, 2, 2])


def test_contexts_are_penalised_once_each() -> None:
    targets = Targets.contexts([[3, 1, 0], [0, 2, 6]])
    np.testing.assert_array_equal(targets.rows, [[0.75, 0.25, 0], [0, 0.25, 0.75]])
    np.testing.assert_array_equal(targets.counts, [4, 8])
    np.testing.assert_array_equal(targets.feature_weights, [1, 1])
    assert a_problem(targets).num_samples == 12


def test_mixed_rows_are_between_two_classes() -> None:
    targets = Targets.mixup(3, 2.0, {0.75: 0.5})
    np.testing.assert_array_equal(targets.rows[:3], np.eye(3))
    assert targets.rows.shape == (3 + 6, 3)
    np.testing.assert_array_equal(np.sort(targets.rows[3:], axis=1), [[0, 0.25, 0.75]] * 6)
    np.testing.assert_array_equal(targets.label_counts, [3, 3, 3])
    assert Targets.mixup(3, 0, {0.5: 1.0}).num_rows == 6


def test_a_hierarchy_has_siblings() -> None:
    rows = Targets.hierarchy(2, 3, 0.6, 0.1, 4.0).rows
    np.testing.assert_allclose(rows[0], [0.6, 0.1, 0.1, 0.2 / 3, 0.2 / 3, 0.2 / 3], rtol=1e-15)
    np.testing.assert_allclose(rows, rows.T)
    np.testing.assert_allclose(rows.sum(axis=1), 1)


@pytest.mark.slow
def test_noise_mixes_the_labels_of_a_class() -> None:
    targets = Targets.noisy(0.2, (6, 4, 2))
    np.testing.assert_allclose(targets.rows[1], [0.1, 0.8, 0.1])
    np.testing.assert_array_equal(targets.counts, [6, 4, 2])
    # Repeated inputs with evenly drawn noise are label smoothing with alpha = eta K / (K - 1).
    decay = ufm.WeightDecay(0.01, 0.01)
    smooth = Problem(
        class_counts=(6, 4, 2), feature_dim=5, loss=ufm.LabelSmoothing(0.3), regularizer=decay
    )
    noisy = a_problem(targets)
    assert ufm.solve(noisy).objective == pytest.approx(ufm.solve(smooth).objective, rel=1e-9)


def test_responses_of_one_output_are_a_column() -> None:
    assert Targets.regression([1.0, -2.0, 0.5]).rows.shape == (3, 1)
    problem = a_problem(Targets.regression([1.0, -2.0, 0.5]), loss=ufm.SquaredError())
    assert (problem.num_rows, problem.num_outputs) == (3, 1)


# Rows that are one


def test_rows_merge_only_with_equal_targets_and_ratios() -> None:
    rows = [[0.6, 0.4, 0], [0, 0, 1], [0.6, 0.4, 0], [0.6, 0.4, -0.0]]
    whole, index = Targets(rows, (1, 2, 6, 3)).merged()
    np.testing.assert_array_equal(index, [0, 1, 0, 0])
    np.testing.assert_array_equal(whole.rows, rows[:2])
    np.testing.assert_array_equal(whole.counts, [10, 2])
    split, index = Targets(rows, (1, 2, 6, 3), (1, 1, 1, 0.5)).merged()
    np.testing.assert_array_equal(index, [0, 1, 2, 2])
    np.testing.assert_array_equal(split.feature_weights, [1, 1, 1.5])


@pytest.mark.parametrize("weights", [None, (1.0, 1.0, 1.0)], ids=["counts", "once"])
def test_features_of_equal_targets_differ_where_their_weights_do(weights: Any) -> None:
    targets = Targets([[0.6, 0.4, 0], [0.6, 0.4, 0], [0, 0.1, 0.9]], (1, 6, 3), weights)
    features = ufm.solve(a_problem(targets)).check().features
    apart = np.linalg.norm(features[0] - features[1]) / np.linalg.norm(features[0])
    if weights is None:
        assert apart == 0
    else:
        assert apart > 0.1


@for_each("regularizer", [ufm.WeightDecay(0.01, 0.02), slow(ufm.NormBall(1.0, 2.0))])
def test_merging_leaves_the_minimum_alone(regularizer: Any) -> None:
    rows = np.array([[0.6, 0.4, 0], [0, 0.1, 0.9], [0.6, 0.4, 0]])
    stated = a_problem(Targets(rows, (2, 3, 2)), regularizer=regularizer)
    fewer, origins = merged(stated)
    np.testing.assert_array_equal(origins, [0, 1, 0])
    assert fewer.num_rows == 2
    solution = ufm.solve(stated)
    assert solution.logits.shape == (3, 3)
    assert ufm.certify(stated, solution).holds
    assert ufm.certify(stated, solution).objective == pytest.approx(solution.objective, rel=1e-13)


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Targets([1.0, 2.0]), r"`rows` must be a matrix .* rows\[:, None\]"),
        (lambda: Targets([[1.0, np.nan]]), "`rows` must be finite"),
        (lambda: Targets("ab"), "`rows` must be an array of real numbers"),
        (lambda: Targets(np.eye(2), (1, 2, 3)), r"`counts` must be one number per row, \(2,\)"),
        (lambda: Targets(np.eye(2), (1, 0)), "`counts` must be positive and finite, got 0.0"),
        (lambda: Targets(np.eye(2), None, (1, -1)), "`feature_weights` must be positive"),
        (lambda: Targets.multi_label(3), "`samples` or `tag_sets` must be given"),
        (lambda: Targets.multi_label(3, {4: 1}), "`samples` must have multiplicities of at most 3"),
        (lambda: Targets.multi_label(3, tag_sets=[(3,)]), "`tag_sets` must have labels from 0 to"),
        (lambda: Targets.contexts([[1, -1]]), "`rows` must be a matrix of numbers that are not"),
        (lambda: Targets.hierarchy(2, 2, 0.9, 0.2), "`own` plus the siblings must be at most one"),
        (lambda: Targets.noisy([[1, 0], [0.5, 0.4]], (1, 1)), "`noise` must have rows that sum"),
        (lambda: Targets.mixup(3, 0, {}), "`mixed` must name samples"),
        (lambda: a_problem(np.eye(2)), "`targets` must be ufm.Targets"),
        (lambda: a_problem(Targets(np.eye(2)), class_counts=(1, 1)), "`class_counts` or `targets`"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=message):
        make()


def test_numbers_per_class_need_labels_that_occur() -> None:
    targets = Targets([[1.0, 0.0], [0.7, 0.3]])
    assert a_problem(targets, loss=ufm.LogitAdjusted(0.5)).num_outputs == 2
    with pytest.raises(ValueError, match="class counts"):
        a_problem(Targets([[1.0, 0.0], [1.0, 0.0]]), loss=ufm.LogitAdjusted(0.5))


def test_rows_without_symmetries_have_no_groups() -> None:
    problem = a_problem(Targets([[1.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.2, 0.3, 0.5]]))
    with pytest.raises(ufm.ArgumentError, match="one-hot classes"):
        ufm.solve(problem, resolution="groups")
