"""Binary cross-entropy: biases, thresholds, opposite means, and what is refused."""

import equinox as eqx
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import predict, theorems

BALANCED = theorems["binary-cross-entropy-balanced"]
TAGS = theorems["binary-cross-entropy-tags"]


def problem(counts, c, bias=None, dim=None, **changes):
    """Balanced classes with a given c = K sqrt(n) tau."""
    K = len(counts)
    tau = c / (K * np.sqrt(counts[0]))
    settings = {
        "class_counts": counts,
        "feature_dim": K if dim is None else dim,
        "loss": ufm.BinaryCrossEntropy(),
        "regularizer": ufm.WeightDecay(2 * tau, tau / 2, bias or 0.0),
        "use_bias": bias is not None,
    }
    return ufm.Problem(**(settings | changes))


def tags(targets, tau, dim=6, bias=0.0, **changes):
    regularizer = ufm.WeightDecay(2 * tau, tau / 2, bias or 0.0)
    settings = {"class_counts": None, "targets": targets, "regularizer": regularizer}
    return problem((5.0,) * 3, 0.1, bias, dim, **(settings | changes))


def failing(theorem, setting):
    return [condition.statement for condition in theorem.applies(setting).failing]


@for_each(
    ("K", "c", "carried"),
    [
        (2, 0.5, False),
        (3, 0.99 * 3 * (2 - np.sqrt(2)) / 4, True),
        (3, 1.01 * 3 * (2 - np.sqrt(2)) / 4, False),
        (4, 0.99, True),
        (4, 1.01, False),
        (8, 2.9, True),
        (8, 3.1, False),
    ],
)
def test_features_carry_a_bias_up_to_a_threshold(K, c, carried):
    setting = problem((5.0,) * K, c)
    prediction = predict(setting)
    assert (prediction.constants["common"] < 0) == carried
    outcome = check(BALANCED, "no bias", setting)
    assert outcome.passed, outcome.reason
    assert prediction.collapsed == (c >= max(1, K / 2 - 1))


def test_means_of_weights_and_features_are_opposite_without_a_bias():
    solution = ufm.solve(problem((5.0,) * 4, 0.3)).check()
    weights, features = solution.weights[-1].mean(axis=0), solution.features.mean(axis=0)
    cosine = weights @ features / (np.linalg.norm(weights) * np.linalg.norm(features))
    assert cosine == pytest.approx(-1, abs=1e-6)
    assert np.all(predict(solution.problem).alignment < 0.999)


def test_a_bias_that_costs_less_and_less_takes_all_of_the_mean():
    setting = (5.0,) * 4
    free, none = predict(problem(setting, 0.3, 0.0)), predict(problem(setting, 0.3))
    cheap, dear = predict(problem(setting, 0.3, 1e-10)), predict(problem(setting, 0.3, 1e10))
    np.testing.assert_allclose(cheap.logits, free.logits, atol=1e-8)
    np.testing.assert_allclose(dear.logits, none.logits, atol=1e-8)
    values = [predict(problem(setting, 0.3, bias)).objective for bias in (0.0, 1e-3, 1e-1, 10.0)]
    assert np.all(np.diff([*values, none.objective]) > 0)


@for_each("factor", [0.99, 1.01])
def test_pairs_collapse_to_the_frequency_of_labels(factor):
    N, K, m = 24.0, 4, 2
    tau = factor / np.sqrt(N * K * (K - 1) / (m * (K - m)))
    prediction = predict(tags(ufm.Targets.multi_label(K, {m: N}), tau))
    assert prediction.theorem == TAGS.name
    assert prediction.collapsed == (factor > 1)
    np.testing.assert_allclose(prediction.constants["c"], factor)
    if factor > 1:
        np.testing.assert_allclose(prediction.bias, np.log(m / (K - m)), atol=1e-14)


def test_one_label_each_is_the_balanced_theorem():
    counts = (5.0,) * 4
    classes = problem(counts, 0.3, 0.0)
    decays = classes.regularizer.decays(1)
    rows = tags(ufm.Targets.one_hot(counts), np.sqrt(decays.prod()), dim=4)
    found, expected = predict(rows), predict(classes)
    for field in ("objective", "logits", "weight_gram", "feature_gram", "bias"):
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), atol=1e-12, err_msg=field
        )


CYCLE = ufm.Targets.multi_label(4, tag_sets=((0, 1), (1, 2), (2, 3), (3, 0)))
BOTH = ufm.Targets.multi_label(4, {1: 8, 2: 12})
DESIGN = "labels and pairs of labels equally often (a 2-design)"


@for_each(
    ("theorem", "setting", "statement"),
    [
        (BALANCED, problem((5.0, 5.0, 5.001), 0.3), "equal class counts"),
        (BALANCED, problem((5.0,) * 4, 0.3, dim=3), "d >= K, or K - 1 with a free bias"),
        (BALANCED, problem((5.0,) * 4, 0.3, 1e-9, dim=3), "d >= K, or K - 1 with a free bias"),
        (BALANCED, problem((5.0,) * 4, 0.3, nonnegative_features=True), "features of any sign"),
        (TAGS, tags(CYCLE, 0.01), DESIGN),
        (TAGS, tags(BOTH, 0.01), "tag sets with m labels each, 0 < m < K"),
        (
            TAGS,
            tags(ufm.Targets.multi_label(4, {2: 12}), 0.01, bias=1e-9),
            "a bias without penalty",
        ),
    ],
)
def test_what_is_not_covered_is_refused(theorem, setting, statement):
    assert statement in failing(theorem, setting)


@pytest.mark.parametrize("theorem", [BALANCED, TAGS], ids=lambda theorem: theorem.name)
def test_a_wrong_constant_is_found(theorem):
    setting = theorem.examples[0].problem
    prediction = theorem.predict(setting)
    for field in ("objective", "weight_gram", "bias"):
        wrong = eqx.tree_at(
            lambda tree, field=field: getattr(tree, field),
            prediction,
            getattr(prediction, field) * (1 + 1e-5),
        )
        assert not check(theorem, "wrong", setting, wrong).passed, field
