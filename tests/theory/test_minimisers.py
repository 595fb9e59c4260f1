"""Predictions against explicit matrices that attain them and minimisation in plain NumPy."""

import dataclasses

import numpy as np
from numpy_models import Model, realisation
from tables import for_each, slow

import ufm
from ufm.theory import predict, theorems


def rows_problem(targets, decay, dims, loss=None, bias=None, **options):
    """A problem with target rows."""
    return dataclasses.replace(
        problem((1.0, 1.0), decay, dims, loss, bias, **options), class_counts=None, targets=targets
    )


def problem(
    counts, decay, dims, loss=None, bias=None, activation="linear", ball=False, nonnegative=False
):
    weights, features = decay
    decay = ufm.WeightDecay(weights=weights, features=features, bias=bias or 0.0)
    regularizer = ufm.NormBall(weights=weights, features=features) if ball else decay
    return ufm.Problem(
        class_counts=counts,
        feature_dim=dims[0],
        loss=ufm.SquaredError() if loss is None else loss,
        regularizer=regularizer,
        use_bias=bias is not None,
        hidden_dims=dims[1:],
        activation=activation,
        nonnegative_features=nonnegative,
    )


BALANCED, IMBALANCED, STEP = (5.0, 5.0, 5.0), (8.0, 2.5, 1.0), (6.0, 6.0, 2.0, 2.0)
TWO = (5.0, 5.0)
CE, SMOOTH, FOCAL = ufm.CrossEntropy(), ufm.LabelSmoothing(0.2), ufm.Focal(2.0)
DEEP = ((0.03, 0.01), 0.02)

SETTINGS = {
    "squared-error-orthogonal-frame": [
        problem(BALANCED, (0.05, 0.02), (4,)),
        problem(BALANCED, (0.05, 0.02), (2,)),
        problem(BALANCED, (0.05, 0.02), (4,), nonnegative=True),
        problem(BALANCED, (0.2, 0.2), (4,)),
        problem(BALANCED, (0.2, 0.2), (2,)),
    ],
    "squared-error-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), bias=0.0),
        problem(BALANCED, (0.05, 0.02), (2,), bias=0.0),
        problem(BALANCED, (0.05, 0.02), (1,), bias=0.0),
        problem(BALANCED, (0.2, 0.2), (4,), bias=0.0),
    ],
    "squared-error-penalised-bias": [
        problem(BALANCED, (0.02, 0.01), (4,), bias=0.4),
        problem(BALANCED, (0.02, 0.01), (4,), bias=0.05),
        problem(BALANCED, (0.02, 0.01), (2,), bias=3.0),
        problem(BALANCED, (0.02, 0.01), (1,), bias=0.4),
        problem(BALANCED, (0.2, 0.2), (4,), bias=0.4),
    ],
    "extended-linear-orthogonal-frame": [
        problem(BALANCED, DEEP, (4, 4)),
        problem(BALANCED, DEEP, (4, 2)),
        problem(BALANCED, (0.1, 0.1), (4, 4)),
    ],
    "extended-relu-orthogonal-frame": [
        problem(BALANCED, DEEP, (4, 5), activation="relu"),
        problem(BALANCED, (0.1, 0.1), (4, 5), activation="relu"),
    ],
    "squared-error-general-orthogonal-frame": [
        problem(IMBALANCED, (0.02, 0.01), (4,)),
        problem(IMBALANCED, (0.2, 0.1), (4,)),
        problem(IMBALANCED, (0.02, 0.01), (2,)),
        problem(IMBALANCED, (0.02, 0.01), (4,), nonnegative=True),
        problem(IMBALANCED, (0.5, 0.2), (4,)),
    ],
    "squared-error-free-bias": [
        problem(IMBALANCED, (0.02, 0.01), (4,), bias=0.0),
        problem(IMBALANCED, (0.2, 0.1), (4,), bias=0.0),
        problem(IMBALANCED, (0.02, 0.01), (1,), bias=0.0),
        problem(STEP, (0.02, 0.01), (4,), bias=0.0),
        problem(STEP, (0.02, 0.01), (2,), bias=0.0),
    ],
    "deep-linear-general-orthogonal-frame": [
        problem(IMBALANCED, DEEP, (4, 4)),
        problem(IMBALANCED, ((0.03, 0.02, 0.01), 0.02), (4, 4, 4)),
        problem(IMBALANCED, ((0.03, 0.02, 0.01), 0.02), (4, 4, 2)),
        problem(IMBALANCED, (0.1, 0.1), (4, 4, 4)),
    ],
    "deep-linear-free-bias": [
        problem(IMBALANCED, DEEP, (4, 4), bias=0.0),
        problem(IMBALANCED, ((0.03, 0.02, 0.01), 0.02), (4, 4, 4), bias=0.0),
        problem(BALANCED, DEEP, (4, 4), bias=0.0),
        problem(BALANCED, (0.1, 0.1), (4, 4), bias=0.0),
    ],
    "deep-linear-penalised-bias": [
        problem(BALANCED, DEEP, (4, 4), bias=3.0),
        problem(BALANCED, DEEP, (4, 4), bias=0.4),
        problem(BALANCED, ((0.03, 0.02, 0.01), 0.02), (4, 4, 2), bias=3.0),
        problem(BALANCED, (0.1, 0.1), (4, 4), bias=0.4),
    ],
    "deep-relu-two-classes": [
        problem(TWO, DEEP, (3, 4), activation="relu"),
        problem(TWO, ((0.03, 0.02, 0.01), 0.02), (3, 4, 3), activation="relu"),
        problem(TWO, (0.2, 0.2), (3, 4, 3), activation="relu"),
    ],
    "cross-entropy-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), CE),
        problem(BALANCED, (0.05, 0.02), (2,), CE, bias=0.0),
        problem(BALANCED, (0.05, 0.02), (4,), CE, bias=0.1),
        problem(BALANCED, (0.2, 0.2), (4,), CE),
    ],
    "label-smoothing-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), SMOOTH),
        problem(BALANCED, (0.05, 0.02), (2,), SMOOTH, bias=0.0),
        problem(BALANCED, (0.15, 0.15), (4,), SMOOTH),
    ],
    "focal-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), FOCAL),
        problem(BALANCED, (0.05, 0.02), (2,), FOCAL, bias=0.0),
        problem(BALANCED, (0.05, 0.02), (4,), FOCAL, bias=0.1),
        problem(BALANCED, (0.3, 0.2), (4,), FOCAL),
    ],
    "cross-entropy-two-groups": [
        problem(STEP, (0.05, 0.02), (4,), CE),
        problem(STEP, (0.05, 0.02), (3,), CE, bias=0.0),
        problem(STEP, (0.05, 0.02), (4,), CE, bias=0.1),
        problem((8.0, 1.0, 1.0), (0.15, 0.1), (4,), CE),
        problem((2.0, 8.0), (0.02, 0.01), (2,), CE, bias=0.0),
    ],
    "cross-entropy-complete-collapse": [
        problem(IMBALANCED, (0.3, 0.3), (4,), CE),
        problem(IMBALANCED, (0.3, 0.3), (4,), CE, bias=0.0),
        problem(IMBALANCED, (0.3, 0.3), (4,), CE, bias=0.1),
    ],
    "cross-entropy-nonnegative": [
        problem(IMBALANCED, (0.02, 0.01), (4,), CE, nonnegative=True),
        problem(IMBALANCED, (0.1, 0.1), (4,), CE, nonnegative=True),
        problem(BALANCED, (0.05, 0.02), (3,), CE, nonnegative=True),
    ],
    "layer-peeled-two-groups": [
        problem(STEP, (1.0, 2.0), (4,), CE, ball=True),
        problem(STEP, (0.5, 1.5), (3,), CE, bias=0.0, ball=True),
    ],
    "layer-peeled-etf": [
        problem(BALANCED, (1.0, 5.0), (4,), CE, ball=True),
        problem(BALANCED, (0.5, 1.5), (2,), CE, bias=0.0, ball=True),
    ],
}
ROWS = ufm.Targets.regression(np.random.default_rng(3).normal(size=(7, 3)) * [2.0, 1.0, 0.4])
WIDE = ufm.Targets(np.random.default_rng(4).normal(size=(3, 5)), (1.0, 2.0, 1.5), (2.0, 4.0, 3.0))
TAGS, PAIRS = ufm.Targets.multi_label(4, {1: 8, 2: 6}), ufm.Targets.multi_label(4, {2: 12})
SETTINGS |= {
    "regression-collapse": [
        rows_problem(ROWS, (0.05, 0.02), (4,), bias=0.0),
        rows_problem(ROWS, (0.4, 0.1), (3,), bias=0.0),
    ],
    "squared-error-target-rows": [
        rows_problem(ROWS, (0.05, 0.02), (4,)),
        rows_problem(ROWS, (0.05, 0.02), (1,), bias=0.0),
        rows_problem(WIDE, (0.05, 0.02), (4,), bias=0.0),
        rows_problem(WIDE, (0.05, 0.02), (2,)),
        rows_problem(TAGS, (0.05, 0.02), (5,)),
    ],
    "squared-error-target-rows-penalised-bias": [
        rows_problem(PAIRS, (0.05, 0.02), (5,), bias=0.5),
        rows_problem(PAIRS, (0.05, 0.02), (5,), bias=0.01),
    ],
    "deep-linear-target-rows": [
        rows_problem(ROWS, (0.05, 0.02), (4, 4), bias=0.0),
        rows_problem(WIDE, (0.05, 0.02), (4, 4)),
    ],
}
HIERARCHY = ufm.Targets.hierarchy(2, 2, 0.6, 0.2, count=3.0)
CYCLIC = ufm.Targets([np.roll([0.6, 0.15, 0.05, 0.05, 0.15], k) for k in range(5)])
TRIPLES = ufm.Targets.multi_label(4, {1: 8, 3: 4})
BCE = ufm.BinaryCrossEntropy()
SOFT = ufm.Targets([[0.8, 0.2, 0.1], [0.1, 0.6, 0.3]], (3.0, 2.0), (1.0, 1.0))
MIXED = ufm.Targets.mixup(3, 4, {0.7: 1.0})
SETTINGS |= {
    "cross-entropy-symmetric-targets": [
        rows_problem(MIXED, (0.02, 0.01), (4,), CE),
        rows_problem(MIXED, (0.02, 0.01), (2,), CE, bias=0.0),
        rows_problem(MIXED, (0.3, 0.3), (4,), CE),
    ],
    "pick-all-labels": [
        rows_problem(TRIPLES, (0.03, 0.02), (5,), CE),
        rows_problem(TRIPLES, (0.03, 0.02), (3,), CE, bias=0.1),
    ],
    "pick-all-labels-nonnegative": [rows_problem(TAGS, (0.03, 0.02), (4,), CE, nonnegative=True)],
    "hierarchical-collapse": [
        rows_problem(HIERARCHY, (0.02, 0.01), (4,), CE),
        rows_problem(HIERARCHY, (0.08, 0.06), (3,), CE, bias=0.0),
    ],
    "binary-cross-entropy-balanced": [
        problem(BALANCED, (0.05, 0.02), (3,), BCE, bias=0.0),
        problem(BALANCED, (0.05, 0.02), (4,), BCE),
        problem(BALANCED, (0.05, 0.08), (4,), BCE),
        problem(BALANCED, (0.05, 0.02), (4,), BCE, bias=0.05),
        problem(BALANCED, (0.05, 0.02), (4,), BCE, bias=3.0),
        problem((4.0,) * 6, (0.12, 0.1), (6,), BCE),
    ],
    "binary-cross-entropy-tags": [
        rows_problem(PAIRS, (0.02, 0.02), (4,), BCE, bias=0.0),
        rows_problem(PAIRS, (0.5, 0.4), (4,), BCE, bias=0.0),
    ],
    "cross-entropy-rows-complete-collapse": [
        rows_problem(SOFT, (0.4, 0.4), (3,), CE, bias=0.0),
        rows_problem(SOFT, (0.4, 0.4), (3,), CE),
    ],
    "binary-cross-entropy-rows-complete-collapse": [
        rows_problem(SOFT, (0.4, 0.4), (3,), BCE, bias=0.0),
        rows_problem(SOFT, (0.4, 0.4), (3,), BCE),
    ],
    "doubly-stochastic-targets": [rows_problem(CYCLIC, (0.01, 0.01), (5,), CE)],
}
LOGISTIC, EXPONENTIAL, HINGE = ufm.PairwiseLogistic(), ufm.Exponential(), ufm.SquaredHinge()
LABEL, BINARY = ufm.Targets([[0.0], [1.0]], (3.0, 9.0)), ufm.BinaryCrossEntropy()
LEVELS = ufm.Ordinal([-1.0, 0.5])
SETTINGS |= {
    "pairwise-logistic-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), LOGISTIC),
        problem(BALANCED, (0.05, 0.02), (2,), LOGISTIC, bias=0.0),
    ],
    "exponential-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), EXPONENTIAL),
        problem(BALANCED, (0.05, 0.02), (2,), EXPONENTIAL, bias=0.1),
    ],
    "squared-hinge-etf": [
        problem(BALANCED, (0.05, 0.02), (4,), HINGE),
        problem(BALANCED, (0.05, 0.02), (2,), HINGE, bias=0.0),
    ],
    "two-classes-one-logit": [
        rows_problem(LABEL, (0.05, 0.02), (2,), BINARY),
        rows_problem(LABEL, (0.3, 0.2), (2,), BINARY),
    ],
    "two-classes-one-logit-free-bias": [rows_problem(LABEL, (0.05, 0.02), (2,), BINARY, bias=0.0)],
    "ordinal-levels": [
        problem(IMBALANCED, (0.05, 0.02), (2,), LEVELS),
        problem(BALANCED, (0.01, 0.01), (1,), LEVELS),
    ],
}
CASES = [(name, setting) for name, settings in SETTINGS.items() for setting in settings]
EXAMPLES = [
    (theorem.name, example.problem)
    for theorem in theorems.predictive
    for example in theorem.examples
]


def test_every_theorem_has_settings():
    assert set(SETTINGS) == {theorem.name for theorem in theorems.predictive}


def logits_of(setting, prediction):
    """The predicted logits without bias; one choice of modes where the theorem leaves them open."""
    model = Model(setting)
    if prediction.logits is not None:
        return prediction.logits - (0.0 if prediction.bias is None else prediction.bias)
    values = prediction.singular_values
    if not setting.use_bias:
        return np.diag(values / np.sqrt(np.sort(model.counts)[::-1]))
    pi = model.counts / model.counts.sum()
    targets = np.sqrt(model.counts)[:, None] * (model.targets - pi @ model.targets)
    U, _, Vt = np.linalg.svd(targets, full_matrices=False)
    return (U * values) @ Vt / np.sqrt(model.counts)[:, None]


@for_each(("name", "setting"), [*CASES, *(slow(*example) for example in EXAMPLES)])
def test_explicit_matrices_attain_the_prediction(name, setting):
    prediction = predict(setting)
    assert prediction.theorem == name
    model = Model(setting)
    logits = logits_of(setting, prediction)
    weights, H, b = realisation(setting, prediction, logits)
    at_zero = model.objective([0 * W for W in weights], 0 * H, None if b is None else 0 * b)

    chain, Z = model.activations(weights, H)
    objective = model.objective(weights, H, b)
    norms = [np.sum(W**2) for W in weights] + [model.counts @ np.sum(H**2, axis=1)]
    singular_values = np.linalg.svd(np.sqrt(model.counts)[:, None] * Z, compute_uv=False)
    np.testing.assert_allclose(Z, logits, atol=1e-11 * max(np.abs(logits).max(), 1e-3))
    assert abs(objective - prediction.objective) <= 1e-12 * at_zero
    np.testing.assert_allclose(prediction.layer_norms, norms, rtol=1e-11)
    scale = max(singular_values[0], 1e-3)
    np.testing.assert_allclose(prediction.singular_values, singular_values, atol=1e-11 * scale)
    assert prediction.rank == np.sum(prediction.singular_values > 0)
    assert prediction.collapsed == (prediction.rank == 0)
    if prediction.weight_gram is None:
        return
    for found, gram in (
        (weights[-1], prediction.weight_gram),
        (chain[-1], prediction.feature_gram),
    ):
        np.testing.assert_allclose(
            gram, found @ found.T, atol=1e-11 * max(np.abs(gram).max(), 1e-12)
        )
    lengths = np.linalg.norm(weights[-1], axis=1), np.linalg.norm(chain[-1], axis=1)
    np.testing.assert_allclose(prediction.weight_norms, lengths[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(prediction.feature_norms, lengths[1], rtol=1e-9, atol=1e-12)
    if model.R != model.K:
        assert prediction.alignment is None
        return
    alive = (prediction.weight_norms > 0) & (prediction.feature_norms > 0)
    cosines = np.diag(weights[-1] @ chain[-1].T)[alive] / (lengths[0] * lengths[1])[alive]
    np.testing.assert_allclose(prediction.alignment[alive], cosines, atol=1e-9)
    assert np.all(np.isnan(prediction.alignment[~alive]))


@for_each(
    ("name", "setting"),
    [case if place % 4 == 0 else slow(*case) for place, case in enumerate(CASES)],
)
def test_minimisation_arrives_at_the_prediction_and_not_below(name, setting):
    prediction = predict(setting)
    model = Model(setting)
    deep = setting.num_layers > 1
    value, weights, H, b = model.minimise(starts=6 if deep else 2, scale=1.0 if deep else 0.7)
    assert value >= prediction.objective - 1e-10
    assert value <= prediction.objective + 1e-8

    # The value is flat to second order: an error of e leaves one of about sqrt(e) in the geometry.
    chain, Z = model.activations(weights, H)
    norms = [np.sum(W**2) for W in weights] + [model.counts @ np.sum(H**2, axis=1)]
    np.testing.assert_allclose(prediction.layer_norms, norms, atol=2e-3 * max(*norms, 0.1))
    if b is not None:
        gauge = (
            0.0 if isinstance(setting.loss, ufm.SquaredError | ufm.BinaryCrossEntropy) else b.mean()
        )
        np.testing.assert_allclose(b - gauge, prediction.bias, atol=1e-3)
    if prediction.weight_gram is None:
        return
    for found, gram in (
        (weights[-1], prediction.weight_gram),
        (chain[-1], prediction.feature_gram),
    ):
        np.testing.assert_allclose(gram, found @ found.T, atol=2e-3 * max(gram.max(), 0.1))
    found = Z if b is None else Z + b - gauge
    np.testing.assert_allclose(prediction.logits, found, atol=2e-3)


def test_gradients_of_the_reference_models_are_right():
    for settings in SETTINGS.values():
        model = Model(settings[0])
        theta = np.random.default_rng(1).normal(size=model.size())
        _, gradient = model.value_and_gradient(theta)
        direction = np.random.default_rng(2).normal(size=model.size())
        step = 1e-6
        slope = (
            model.value_and_gradient(theta + step * direction)[0]
            - model.value_and_gradient(theta - step * direction)[0]
        ) / (2 * step)
        assert abs(slope - gradient @ direction) < 1e-6 * max(1, abs(slope))
