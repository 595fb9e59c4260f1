"""Symmetric targets: known special cases, weights of features, and what is refused."""

import itertools

import equinox as eqx
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import predict, theorems

SYMMETRIC = theorems["cross-entropy-symmetric-targets"]
AT_SOLUTION = "the same at the solution, t_r = y_r - s_r softmax(z_r)"
OF_TARGETS = "sum n_r^2/om_r t_r t_r' a multiple of P, t_r = y_r - s_r/K"


def problem(targets, decay=2e-3, dim=6, bias=None, **changes):
    settings = {
        "targets": targets,
        "feature_dim": dim,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(2 * decay, decay / 2, bias or 0.0),
        "use_bias": bias is not None,
    }
    return ufm.Problem(**(settings | changes))


def failing(setting):
    return [condition.statement for condition in SYMMETRIC.applies(setting).failing]


FIELDS = ("objective", "logits", "weight_gram", "feature_gram", "layer_norms", "singular_values")


@for_each(("alpha", "decay"), [(0.0, 1e-2), (0.3, 1e-2), (0.3, 0.9), (0.9, 3e-2)])
def test_smoothed_rows_are_label_smoothing(alpha, decay):
    counts = ufm.ClassGroups.balanced(5, 8.0)
    rows = problem(ufm.Targets((1 - alpha) * np.eye(5) + alpha / 5, np.full(5, 8.0)), decay)
    smoothing = ufm.Problem(
        class_counts=counts,
        feature_dim=6,
        loss=ufm.LabelSmoothing(alpha),
        regularizer=rows.regularizer,
    )
    found, expected = SYMMETRIC.predict(rows), predict(smoothing)
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), atol=1e-11, err_msg=field
        )
    np.testing.assert_allclose(found.constants["collapse_ratio"] >= 1, found.collapsed)


def test_tags_are_pick_all_labels():
    setting = problem(ufm.Targets.multi_label(5, {1: 20, 3: 30, 5: 4}), 1e-2)
    found, expected = SYMMETRIC.predict(setting), predict(setting)
    assert expected.theorem == "pick-all-labels"
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), rtol=1e-11, atol=1e-11, err_msg=field
        )


def test_mixup_has_amplified_combinations():
    """Fisher et al.: the logits of lam e_i + (1 - lam) e_j are P (al e_i + be e_j)."""
    K, lam = 4, 0.7
    setting = problem(ufm.Targets.mixup(K, 10, {lam: 2.0}), 2e-3)
    logits = np.asarray(predict(setting).logits)
    pure = logits[0, 0] - logits[0, 1]
    first, second = logits[K, 0] - logits[K, 2], logits[K, 1] - logits[K, 2]
    assert logits[K, 2] == pytest.approx(logits[K, 3], abs=1e-12)
    assert first / lam > pure
    assert second / (1 - lam) > pure


@for_each("bias", [None, 0.0])
def test_features_that_count_once_are_weighed_once(bias):
    """Counts and feature weights of two orbits differ in their ratio."""
    rows, counts, weights = [], [], []
    for profile, count in (((0.8, 0.2), 5.0), ((0.5, 0.5), 1.0), ((1.0, 0.0), 3.0)):
        for i, j in itertools.permutations(range(4), 2):
            row = np.zeros(4)
            row[[i, j]] += profile
            rows.append(row)
            counts.append(count)
            weights.append(1.0)
    setting = problem(ufm.Targets(rows, counts, weights), 2e-2, bias=bias)
    outcome = check(SYMMETRIC, "three orbits", setting)
    assert outcome.passed, outcome.reason
    assert outcome.relative_gap < 1e-12


@pytest.mark.parametrize("field", ["objective", "weight_gram", "logits"])
def test_a_wrong_constant_is_found(field):
    setting = SYMMETRIC.examples[2].problem
    prediction = SYMMETRIC.predict(setting)
    wrong = eqx.tree_at(
        lambda tree: getattr(tree, field), prediction, getattr(prediction, field) * (1 + 1e-5)
    )
    assert not check(SYMMETRIC, "wrong", setting, wrong).passed


MIXED = ufm.Targets.mixup(4, 10, {0.7: 2.0})
NUDGED = ufm.Targets(MIXED.rows, np.append(np.asarray(MIXED.counts)[:-1], 2.0 + 1e-6))


@for_each(
    ("setting", "statement"),
    [
        (problem(NUDGED), OF_TARGETS),
        (problem(MIXED, dim=2), "d >= K - 1"),
        (problem(MIXED, nonnegative_features=True), "features of any sign"),
        (problem(MIXED, loss=ufm.LabelSmoothing(0.1)), "the loss CrossEntropy"),
        (problem(ufm.Targets(np.eye(3), (3.0, 2.0, 2.0))), OF_TARGETS),
    ],
)
def test_what_is_not_covered_is_refused(setting, statement):
    assert statement in failing(setting)


def test_moments_are_asked_for_at_the_solution_as_well():
    """Counts can make the targets' moments symmetric, and not what is left of the targets."""
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0.0], [0.5, 0.25, 0.25]])

    def moments(counts):
        left = rows - 1 / 3
        matrix = (left * counts[:, None]).T @ left
        return matrix - np.trace(matrix) / 2 * (np.eye(3) - 1 / 3)

    basis = np.array([moments(row).ravel() for row in np.eye(5)]).T
    null = scipy_null(basis)
    counts = null @ np.linalg.lstsq(null, np.full(5, 4.0), rcond=None)[0]
    assert np.all(counts > 0)
    assert failing(problem(ufm.Targets(rows, counts), 1e-2)) == [AT_SOLUTION]


def scipy_null(matrix):
    _, values, right = np.linalg.svd(matrix)
    rank = int(np.sum(values > 1e-12 * values[0]))
    return right[rank:].T


def test_a_bias_needs_slopes_of_mean_zero():
    """Rows of mass that favour a label are symmetric without a bias only."""
    rows = np.eye(3)[[0, 1, 2]] * 1.0
    setting = problem(ufm.Targets(rows, (4.0, 4.0, 4.0)), bias=0.0)
    assert not failing(setting)
    opposite = ufm.Targets(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    assert not failing(problem(opposite, dim=3))
    assert failing(problem(opposite, dim=3, bias=0.0)) == [OF_TARGETS]
    assert check(SYMMETRIC, "two labels", problem(opposite, 5e-2, dim=3)).passed
