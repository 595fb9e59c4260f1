"""Squared error with target rows: the published regression, special cases, what is refused."""

import dataclasses

import equinox as eqx
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import predict, theorems

COLLAPSE = theorems["regression-collapse"]
MODES = theorems["squared-error-target-rows"]
PENALISED = theorems["squared-error-target-rows-penalised-bias"]
DEEP = theorems["deep-linear-target-rows"]
RESPONSES = np.random.default_rng(0).normal(size=(20, 3)) @ np.diag([2.0, 1.0, 0.5]) + 1.0


def problem(targets, weights=0.02, features=0.01, bias=None, **changes):
    settings = {
        "targets": targets,
        "feature_dim": 6,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights, features, bias or 0.0),
        "use_bias": bias is not None,
    }
    return ufm.Problem(**(settings | changes))


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@for_each("share", [0.3, 0.9, 4.0])
def test_regression_is_the_published_formula_with_its_normalisation(share):
    """`share` is c over the smallest eigenvalue of the covariance."""
    M, n = RESPONSES.shape
    covariance = np.cov(RESPONSES.T, bias=True)
    c = share * np.linalg.eigvalsh(covariance)[0]
    weights = 0.3
    published = c / weights  # lambda_H'
    setting = problem(ufm.Targets.regression(RESPONSES), weights, published / M, bias=0.0)
    prediction = predict(setting)
    assert prediction.theorem == COLLAPSE.name
    constants = prediction.constants
    np.testing.assert_allclose(constants["c"], c, rtol=1e-13)
    np.testing.assert_allclose(constants["smallest_eigenvalue"], c / share, rtol=1e-12)
    residual = prediction.logits - RESPONSES
    error = np.sum(residual**2) / M
    np.testing.assert_allclose(constants["training_error"], error, rtol=1e-12)
    if share < 1:
        outer = published * (root(covariance) / np.sqrt(c) - np.eye(n))
        np.testing.assert_allclose(prediction.weight_gram, outer, atol=1e-13)
        np.testing.assert_allclose(error, n * c, rtol=1e-12)
        value = np.sqrt(c) * np.trace(root(covariance)) - n * c / 2
        np.testing.assert_allclose(prediction.objective, value, rtol=1e-13)
    else:
        assert prediction.rank < n
        assert error < n * c


def test_one_hot_rows_have_the_modes_of_classes():
    counts = (9.0, 4.0, 2.0, 2.0)
    for bias, dims, name in (
        (None, (6,), "squared-error-general-orthogonal-frame"),
        (0.0, (6,), "squared-error-free-bias"),
        (0.0, (2,), "squared-error-free-bias"),
        (None, (6, 6), "deep-linear-general-orthogonal-frame"),
        (0.0, (6, 6), "deep-linear-free-bias"),
    ):
        changes = {"feature_dim": dims[0], "hidden_dims": dims[1:]}
        rows = problem(ufm.Targets.one_hot(counts), bias=bias, **changes)
        theorem = MODES if len(dims) == 1 else DEEP
        found = theorem.predict(rows)
        classes = dataclasses.replace(rows, targets=None, class_counts=counts)
        expected = theorems[name].predict(classes)
        for field in ("objective", "logits", "weight_gram", "feature_gram", "singular_values"):
            np.testing.assert_allclose(
                getattr(found, field), getattr(expected, field), atol=1e-12, err_msg=field
            )


def test_tags_have_two_singular_values():
    """All sets of m of K tags: one value for the differences, one for the number of tags."""
    K, samples = 5, {1: 30.0, 2: 12.0, 4: 8.0}
    N = sum(samples.values())
    mean = sum(number * m for m, number in samples.items()) / N
    within = sum(number * m * (K - m) for m, number in samples.items()) / (K * (K - 1))
    count = sum(number * (m - mean) ** 2 for m, number in samples.items()) / K
    tau = 1e-2
    prediction = predict(problem(ufm.Targets.multi_label(K, samples), tau, tau, bias=0.0))
    expected = np.sort([*np.sqrt([within] * (K - 1)), np.sqrt(count)])[::-1] - N * tau
    np.testing.assert_allclose(prediction.singular_values, np.maximum(expected, 0), atol=1e-12)


def test_a_million_samples_have_a_prediction_without_their_gram_matrix():
    rows = np.random.default_rng(1).normal(size=(30_000, 2))
    prediction = predict(problem(ufm.Targets.regression(rows), 0.1, 1e-6, bias=0.0))
    assert prediction.feature_gram is None
    assert prediction.feature_norms is None
    assert prediction.logits.shape == (30_000, 2)
    assert prediction.rank == 2


WEIGHTS = np.linspace(1, 1.0001, 20)
REFUSED = [
    (COLLAPSE, problem(ufm.Targets(RESPONSES, WEIGHTS), bias=0.0), "equal class counts"),
    (COLLAPSE, problem(ufm.Targets(RESPONSES), bias=0.0, feature_dim=2), "d >= n"),
    (COLLAPSE, problem(ufm.Targets(RESPONSES)), "a bias without penalty"),
    (
        MODES,
        problem(ufm.Targets(RESPONSES, feature_weights=WEIGHTS)),
        "feature weights in proportion to the counts",
    ),
    (MODES, problem(ufm.Targets(RESPONSES), bias=1e-6), "no bias, or one without penalty"),
    (MODES, problem(ufm.Targets(RESPONSES), nonnegative_features=True), "features of any sign"),
    (MODES, problem(ufm.Targets(RESPONSES), hidden_dims=(6,)), "L = 1"),
    (DEEP, problem(ufm.Targets(RESPONSES), hidden_dims=(6,), activation="relu"), "linear layers"),
    (
        PENALISED,
        problem(ufm.Targets(RESPONSES), bias=0.5),
        "targets less their mean orthogonal to it",
    ),
    (
        PENALISED,
        problem(ufm.Targets.multi_label(4, {1: 12, 2: 1e-6}), bias=0.5),
        "targets less their mean orthogonal to it",
    ),
    (
        PENALISED,
        problem(ufm.Targets.multi_label(4, {2: 12}), bias=0.5, feature_dim=3),
        "d >= min(R, K)",
    ),
    (
        DEEP,
        ufm.Problem(
            class_counts=(3.0, 2.0),
            feature_dim=3,
            loss=ufm.SquaredError(),
            regularizer=ufm.WeightDecay(0.1, 0.1),
            hidden_dims=(3,),
        ),
        "targets given as rows",
    ),
]


@for_each(("theorem", "setting", "statement"), REFUSED)
def test_what_a_theorem_does_not_cover_is_refused(theorem, setting, statement):
    assert [condition.statement for condition in theorem.applies(setting).failing] == [statement]


@pytest.mark.slow
def test_unproportional_weights_have_another_minimum():
    """The condition is needed: the formula would be wrong by much more than the solver is."""
    weights = np.linspace(0.5, 1.5, 20)
    setting = problem(ufm.Targets(RESPONSES, feature_weights=weights), 0.2, 0.1)
    assert abs(float(MODES.formula(setting).objective) - ufm.solve(setting).objective) > 1e-5


@pytest.mark.parametrize(
    "theorem",
    [COLLAPSE, pytest.param(PENALISED, marks=pytest.mark.slow)],
    ids=lambda theorem: theorem.name,
)
def test_a_wrong_constant_is_found(theorem):
    example = theorem.examples[0]
    prediction = theorem.predict(example.problem)
    assert check(theorem, example.label, example.problem).passed
    for field in ("objective", "weight_gram", "bias"):
        wrong = eqx.tree_at(
            lambda tree, field=field: getattr(tree, field),
            prediction,
            getattr(prediction, field) * (1 + 1e-5),
        )
        assert not check(theorem, example.label, example.problem, wrong).passed, field
