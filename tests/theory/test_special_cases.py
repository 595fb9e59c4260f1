"""Limits, identities, and both sides of every threshold, in closed form."""

import dataclasses
import math

import numpy as np
import pytest
from numpy_models import Model
from tables import for_each, slow, slow_but

import ufm
from ufm.theory import predict, theorems


def problem(**changes):
    settings = {
        "class_counts": ufm.ClassGroups.balanced(4, 6.0),
        "feature_dim": 5,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=0.03, features=0.02),
    }
    return ufm.Problem(**{**settings, **changes})


def decay(weights=0.03, features=0.02, bias=0.0):
    return ufm.WeightDecay(weights=weights, features=features, bias=bias)


def assert_same(one, other, tolerance=1e-12):
    for name in (
        "objective",
        "logits",
        "weight_gram",
        "feature_gram",
        "layer_norms",
        "singular_values",
    ):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, err_msg=name)
    assert one.rank == other.rank


class TestSpecialCases:
    @for_each("feature_dim", [5, 2])
    @for_each("weights", [0.03, 2.0])
    def test_the_general_orthogonal_frame_contains_the_balanced_one(self, feature_dim, weights):
        balanced = problem(feature_dim=feature_dim, regularizer=decay(weights))
        general = theorems["squared-error-general-orthogonal-frame"]
        assert_same(
            general.predict(balanced), theorems["squared-error-orthogonal-frame"].predict(balanced)
        )

    @for_each("feature_dim", [5, 3, 2])
    @for_each("weights", [0.03, 2.0])
    def test_the_general_free_bias_contains_the_balanced_etf(self, feature_dim, weights):
        balanced = problem(feature_dim=feature_dim, use_bias=True, regularizer=decay(weights))
        general = theorems["squared-error-free-bias"].predict(balanced)
        assert_same(general, theorems["squared-error-etf"].predict(balanced), 1e-11)
        np.testing.assert_allclose(general.bias, 0.25)

    def test_the_deep_formulas_at_one_layer_are_the_shallow_ones(self):
        shallow = problem(class_counts=(9.0, 4.0, 1.0))
        deep = theorems["deep-linear-general-orthogonal-frame"]
        assert_same(
            deep.formula(shallow),
            theorems["squared-error-general-orthogonal-frame"].predict(shallow),
        )
        biased = problem(class_counts=(9.0, 4.0, 1.0), use_bias=True)
        deep = theorems["deep-linear-free-bias"]
        assert_same(deep.formula(biased), theorems["squared-error-free-bias"].predict(biased))
        deep, shallow = (
            theorems["deep-linear-penalised-bias"],
            theorems["squared-error-penalised-bias"],
        )
        for feature_dim, penalty in ((5, 2.0), (5, 0.1), (3, 2.0)):
            biased = problem(
                feature_dim=feature_dim, use_bias=True, regularizer=decay(bias=penalty)
            )
            assert_same(deep.formula(biased), shallow.predict(biased))
            np.testing.assert_allclose(deep.formula(biased).bias, shallow.predict(biased).bias)

    def test_the_deep_penalised_bias_lies_between_a_free_one_and_none(self):
        formula = theorems["deep-linear-penalised-bias"].formula
        free = predict(problem(hidden_dims=(6,), use_bias=True))
        none = predict(problem(hidden_dims=(6,)))
        weak, strong = (
            formula(problem(hidden_dims=(6,), use_bias=True, regularizer=decay(bias=penalty)))
            for penalty in (1e-13, 1e14)
        )
        assert_same(weak, free)
        assert_same(strong, none)
        np.testing.assert_allclose(weak.bias, free.bias)
        np.testing.assert_allclose(strong.bias, 0, atol=1e-14)
        values = [
            predict(problem(hidden_dims=(6,), use_bias=True, regularizer=decay(bias=b))).objective
            for b in (0.1, 1, 9)
        ]
        assert free.objective < values[0] < values[1] < values[2] < none.objective

    @for_each("depth", [2, 3, 5])
    def test_two_classes_with_a_relu_are_the_linear_model(self, depth):
        linear = problem(class_counts=(6.0, 6.0), hidden_dims=(6,) * (depth - 1))
        relu = dataclasses.replace(linear, activation="relu")
        assert predict(relu).theorem == "deep-relu-two-classes"
        assert_same(predict(relu), predict(linear))
        if depth == 2:
            assert_same(predict(relu), theorems["extended-relu-orthogonal-frame"].predict(relu))

    def test_the_shallow_general_frame_in_the_paper_s_form(self):
        counts = np.array([9.0, 4.0, 1.0])
        prediction = predict(problem(class_counts=counts, regularizer=decay(0.05, 0.03)))
        N, lW, lH = counts.sum(), 0.05, 0.03
        squares = np.maximum(np.sqrt(counts * lH / lW) - N * lH, 0)
        np.testing.assert_allclose(prediction.weight_gram, np.diag(squares), atol=1e-14)
        means = np.where(squares > 0, np.sqrt(squares) / (squares + N * lH), 0)
        np.testing.assert_allclose(prediction.feature_norms, means)

    def test_two_linear_layers_are_the_deep_theorem_at_depth_two(self):
        two = problem(hidden_dims=(6,), regularizer=decay((0.03, 0.01)))
        deep = theorems["deep-linear-general-orthogonal-frame"].predict(two)
        assert_same(deep, theorems["extended-linear-orthogonal-frame"].predict(two))

    def test_relu_predicts_the_linear_model_after_the_activation(self):
        linear = problem(hidden_dims=(6,))
        assert_same(predict(dataclasses.replace(linear, activation="relu")), predict(linear))

    def test_the_deep_free_bias_is_balanced_without_the_common_mode(self):
        free = predict(problem(hidden_dims=(6,), use_bias=True))
        none = predict(problem(hidden_dims=(6,)))
        np.testing.assert_allclose(free.singular_values[:3], none.singular_values[:3])
        np.testing.assert_allclose(free.objective, none.objective * 3 / 4)
        assert free.rank == 3

    def test_a_vanishing_bias_penalty_is_a_free_bias(self):
        free = predict(problem(use_bias=True))
        penalised = predict(problem(use_bias=True, regularizer=decay(bias=1e-13)))
        assert_same(penalised, free)
        np.testing.assert_allclose(penalised.bias, free.bias)
        formula = theorems["squared-error-penalised-bias"].formula
        assert_same(formula(problem(use_bias=True)), free)

    @for_each("feature_dim", [5, 4])
    def test_an_infinite_bias_penalty_is_no_bias(self, feature_dim):
        none = predict(problem(feature_dim=feature_dim))
        penalised = predict(
            problem(feature_dim=feature_dim, use_bias=True, regularizer=decay(bias=1e14))
        )
        assert_same(penalised, none)
        np.testing.assert_allclose(penalised.bias, 0, atol=1e-14)

    def test_an_unused_feature_dimension_gives_up_the_common_mode_first(self):
        penalised = predict(problem(feature_dim=3, use_bias=True, regularizer=decay(bias=50.0)))
        free = predict(problem(feature_dim=3, use_bias=True))
        np.testing.assert_allclose(penalised.weight_gram, free.weight_gram)
        assert penalised.rank == 3

    @for_each("loss", [ufm.LabelSmoothing(0.0), ufm.Focal(0.0)])
    @for_each("weights", [0.03, 2.0])
    def test_no_smoothing_and_no_focus_is_cross_entropy(self, loss, weights):
        plain = predict(problem(loss=ufm.CrossEntropy(), regularizer=decay(weights)))
        assert_same(predict(problem(loss=loss, regularizer=decay(weights))), plain)

    def test_the_margin_of_cross_entropy(self):
        prediction = predict(problem(loss=ufm.CrossEntropy()))
        margin = math.log(1 / math.sqrt(6 * 0.03 * 0.02) - 3)
        np.testing.assert_allclose(prediction.constants["margin"], margin)
        np.testing.assert_allclose(
            np.diag(prediction.logits) - prediction.logits[:, 0], [0, *[margin] * 3]
        )
        np.testing.assert_allclose(prediction.alignment, 1)

    def test_the_layer_peeled_model_at_the_norms_of_weight_decay_is_weight_decay(self):
        decayed = predict(problem(loss=ufm.CrossEntropy()))
        ball = ufm.NormBall(
            weights=decayed.layer_norms[0] / 4, features=decayed.layer_norms[1] / 24
        )
        peeled = predict(problem(loss=ufm.CrossEntropy(), regularizer=ball))
        np.testing.assert_allclose(peeled.logits, decayed.logits)
        np.testing.assert_allclose(peeled.weight_gram, decayed.weight_gram)
        np.testing.assert_allclose(peeled.feature_gram, decayed.feature_gram)

    def test_the_published_layer_peeled_margin(self):
        prediction = theorems["layer-peeled-etf"].predict(
            theorems["layer-peeled-etf"].examples[0].problem
        )
        np.testing.assert_allclose(prediction.constants["margin"], 10 / 9 * math.sqrt(5))
        np.testing.assert_allclose(prediction.weight_norms, 1)
        np.testing.assert_allclose(prediction.feature_norms, math.sqrt(5))


@for_each("theorem", slow_but(theorems.predictive, keep=range(0, 100, 3)))
def test_only_the_product_of_the_penalties_fixes_the_logits(theorem):
    for example in theorem.examples:
        old = example.problem
        scale = np.float64(4.0)
        regularizer = dataclasses.replace(
            old.regularizer,
            weights=old.regularizer.weights * scale ** (1 / old.num_layers),
            features=old.regularizer.features / scale,
        )
        one, other = (
            theorem.predict(old),
            theorem.predict(dataclasses.replace(old, regularizer=regularizer)),
        )
        np.testing.assert_allclose(one.objective, other.objective, rtol=1e-12)
        np.testing.assert_allclose(one.singular_values, other.singular_values, atol=1e-12)
        if one.logits is not None:
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-12)


# Levels are ordered: another order of them is another problem.
@for_each("theorem", [one for one in theorems.predictive if one.name != "ordinal-levels"])
def test_permuting_the_classes_permutes_the_prediction(theorem):
    old = theorem.examples[0].problem
    order = np.random.default_rng(0).permutation(old.num_classes)
    rows = order
    if old.one_hot:
        counts = ufm.ClassGroups(old.class_counts.per_class[order])
        new = dataclasses.replace(old, class_counts=counts)
    else:  # rows of classes go with them, others stay where they are
        rows = order if old.num_rows == old.num_classes else np.arange(old.num_rows)
        weights = old.targets.feature_weights
        targets = ufm.Targets(
            old.targets.rows[np.ix_(rows, order)],
            old.targets.counts[rows],
            None if weights is None else weights[rows],
        )
        new = dataclasses.replace(old, class_counts=None, targets=targets)
    one, other = theorem.predict(old), theorem.predict(new)
    outputs = order if old.num_outputs > 1 else np.zeros(1, int)
    if one.logits is not None:
        np.testing.assert_allclose(one.logits[np.ix_(rows, outputs)], other.logits, atol=1e-12)
    if one.weight_gram is not None:
        gram = one.weight_gram[np.ix_(outputs, outputs)]
        np.testing.assert_allclose(gram, other.weight_gram, atol=1e-12)
    if one.feature_gram is not None:
        gram = one.feature_gram[np.ix_(rows, rows)]
        np.testing.assert_allclose(gram, other.feature_gram, atol=1e-10)


class TestThresholds:
    """The prediction just below, at and just above the penalty from which everything is zero."""

    @for_each(
        ("changes", "jump"),
        [
            ({}, 0.0),
            slow({"use_bias": True}, 0.0),
            slow({"use_bias": True, "regularizer": decay(bias=0.2)}, 0.0),
            ({"class_counts": (7.0, 5.0, 2.0)}, 0.0),
            slow({"class_counts": (7.0, 5.0, 2.0), "use_bias": True}, 0.0),
            ({"loss": ufm.CrossEntropy()}, 0.0),
            slow({"loss": ufm.LabelSmoothing(0.3)}, 0.0),
            slow({"loss": ufm.Focal(1.5)}, 0.0),
            slow({"hidden_dims": (6,)}, 1 / 2),
            ({"hidden_dims": (6, 6)}, 2 / 3),
            slow({"hidden_dims": (6, 6), "use_bias": True}, 2 / 3),
            slow({"hidden_dims": (6, 6), "use_bias": True, "regularizer": decay(bias=0.2)}, 2 / 3),
            ({"hidden_dims": (6, 6), "activation": "relu", "class_counts": (5.0, 5.0)}, 2 / 3),
            slow(
                {"hidden_dims": (6, 6, 6), "activation": "relu", "class_counts": (5.0, 5.0)}, 3 / 4
            ),
        ],
    )
    def test_collapse(self, changes, jump):
        base = problem(**changes)

        def at(scale):
            regularizer = dataclasses.replace(
                base.regularizer,
                weights=base.regularizer.weights * scale,
                features=base.regularizer.features * scale,
            )
            return predict(dataclasses.replace(base, regularizer=regularizer))

        low, high = 1e-3, 1e3
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if at(middle).collapsed else (middle, high)
        below, above = at(low), at(high)
        assert above.rank == 0
        assert not below.collapsed
        np.testing.assert_allclose(below.objective, above.objective, rtol=1e-12)
        at_zero = Model(base).objective(
            [np.zeros(shape) for shape in Model(base).shapes],
            np.zeros((base.num_classes, base.feature_dim)),
            above.bias,
        )
        np.testing.assert_allclose(above.objective, at_zero, rtol=1e-13)
        bias = 0 if below.bias is None else below.bias[None, :]
        largest = np.linalg.svd(below.logits - bias, compute_uv=False)[0]
        np.testing.assert_allclose(largest, jump * np.linalg.norm(jump_shape(base), 2), atol=1e-5)
        constants = above.constants
        if "threshold" in constants:
            np.testing.assert_allclose(constants["c"], constants["threshold"])

    def test_a_class_vanishes_at_its_smallest_count(self):
        for dims in ((), (6,)):
            counts = np.array([9.0, 4.0, 1.0])
            smallest = predict(problem(class_counts=counts, hidden_dims=dims)).constants[
                "smallest_count"
            ]
            # At fixed N Lambda the threshold stays, so move the last class through it.
            for factor, rank in ((0.999, 2), (1.001, 3)):
                last = smallest * factor
                rest = counts.sum() - last
                prediction = predict(
                    problem(class_counts=(rest * 0.6, rest * 0.4, last), hidden_dims=dims)
                )
                assert prediction.rank == rank

    def test_the_published_two_layer_threshold(self):
        # K^3 n lH l1 l2 < 1/16
        for factor, collapsed in ((0.999, False), (1.001, True)):
            last = factor / 16 / (4**3 * 6 * 0.2 * 0.5)
            two = problem(hidden_dims=(6,), regularizer=decay((0.5, last), 0.2))
            assert predict(two).collapsed == collapsed

    def test_the_penalised_bias_gives_an_etf_exactly_up_to_theta_equals_c(self):
        c = predict(problem()).constants["c"]
        for factor, rank in ((0.999, 3), (1.001, 4)):
            theta = factor * c
            penalised = problem(use_bias=True, regularizer=decay(bias=theta / (1 - theta)))
            assert predict(penalised).rank == rank

    def test_the_focal_margin_jumps_where_the_loss_is_concave_at_zero(self):
        def focal(mu, classes=30, gamma=3.0):
            counts = ufm.ClassGroups.balanced(classes, 1.0)
            return problem(
                class_counts=counts,
                feature_dim=classes,
                loss=ufm.Focal(gamma),
                regularizer=decay(mu, mu),
            )

        slope = predict(focal(1e-3)).constants["slope_at_zero"]
        beyond = predict(focal(1.002 * slope))
        assert beyond.constants["margin"] > 0.5
        assert predict(focal(1.1 * slope)).collapsed


def jump_shape(base):
    """The logits without bias at full size, which a jump scales."""
    K = base.num_classes
    counts = np.asarray(base.class_counts.per_class)
    return np.eye(K) - (counts / counts.sum() if base.use_bias else 0)


class TestTruncation:
    def test_a_cut_among_equal_modes_leaves_the_geometry_open(self):
        tied = predict(problem(class_counts=(9.0, 4.0, 4.0), feature_dim=2))
        assert tied.logits is None
        assert tied.weight_gram is None
        assert tied.feature_gram is None
        assert tied.weight_norms is None
        assert tied.alignment is None
        assert tied.rank == 2
        clear = predict(problem(class_counts=(9.0, 4.0, 3.999), feature_dim=2))
        np.testing.assert_allclose(tied.objective, clear.objective, rtol=1e-3)
        assert clear.logits[2, 2] == 0
        assert "not determined" in str(tied)

    def test_a_cut_among_vanished_modes_leaves_nothing_open(self):
        dropped = predict(problem(class_counts=(90.0, 0.1, 0.1), feature_dim=2))
        assert dropped.rank == 1
        assert dropped.weight_gram is not None

    def test_the_free_bias_keeps_the_largest_modes(self):
        step = problem(class_counts=(6.0, 6.0, 6.0, 2.0, 2.0, 2.0), use_bias=True)
        values = [math.sqrt(6)] * 2 + [math.sqrt(6 * 6 * 2 / 24)] + [math.sqrt(2)] * 2
        for feature_dim in (1, 2, 3, 4, 5):
            prediction = predict(dataclasses.replace(step, feature_dim=feature_dim))
            expected = np.array(values[:feature_dim]) - 24 * math.sqrt(0.03 * 0.02)
            np.testing.assert_allclose(prediction.singular_values[:feature_dim], expected)
            assert (prediction.logits is None) == (feature_dim in (1, 4))


@pytest.mark.nightly
def test_near_its_threshold_a_relu_does_better_than_the_orthogonal_frame():
    # Why the theorem refuses this problem: low rank before the ReLU, full rank after it, and a
    # lower value.
    decays = (0.95 / 16 / 6**3) ** (1 / 3)
    six = problem(
        class_counts=(1.0,) * 6,
        feature_dim=6,
        hidden_dims=(12,),
        regularizer=decay(decays, decays),
        activation="relu",
    )
    theorem = theorems["extended-relu-orthogonal-frame"]
    assert not theorem.applies(six)
    value, weights, H, _ = Model(six).minimise(starts=6, scale=0.8)
    assert value < theorem.formula(six).objective - 1e-3
    before = np.linalg.svd(H @ weights[0].T, compute_uv=False)
    after = np.linalg.svd(np.maximum(H @ weights[0].T, 0), compute_uv=False)
    assert before.sum() < after.sum()


@pytest.mark.nightly
@for_each("factor", [0.9, 0.99, 1.02])
@for_each("activation", ["linear", "relu"])
def test_two_layers_from_many_starts(activation, factor):
    K = 4 if activation == "linear" else 3
    last = factor / 16 / (K**3 * 6 * 0.1 * 0.3)
    two = problem(
        class_counts=(6.0,) * K,
        hidden_dims=(6,),
        feature_dim=6,
        regularizer=decay((0.3, last), 0.1),
        activation=activation,
    )
    prediction = predict(two)
    assert prediction.collapsed == (factor > 1)
    value, *_ = Model(two).minimise(starts=20, scale=1.0)
    assert value >= prediction.objective - 1e-10
    if (
        prediction.collapsed
    ):  # large starts may all end in the local minimum that the frame has become
        value = min(value, Model(two).minimise(starts=1, scale=1e-2)[0])
    np.testing.assert_allclose(value, prediction.objective, atol=1e-8)


@pytest.mark.nightly
@for_each(
    ("factor", "gamma", "use_bias"),
    [(0.9, 3.0, False), (1.002, 3.0, False), (1.1, 3.0, False), (0.8, 2.0, True)],
)
def test_focal_with_many_classes(factor, gamma, use_bias):
    K = 30
    slope = predict(focal_problem(K, gamma, 1e-3, use_bias)).constants["slope_at_zero"]
    many = focal_problem(K, gamma, factor * slope, use_bias)
    prediction = predict(many)
    value, *_ = Model(many).minimise(starts=3)
    np.testing.assert_allclose(value, prediction.objective, rtol=1e-10)


def focal_problem(K, gamma, mu, use_bias):
    return ufm.Problem(
        class_counts=ufm.ClassGroups.balanced(K, 1.0),
        feature_dim=K,
        loss=ufm.Focal(gamma),
        regularizer=decay(mu, mu),
        use_bias=use_bias,
    )
