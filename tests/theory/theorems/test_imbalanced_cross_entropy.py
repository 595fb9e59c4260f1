"""Cross-entropy with unequal classes: optimality conditions, solves and published tables."""

import dataclasses
import functools
import itertools
import math

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.optimize
from tables import for_each, slow

import ufm
from ufm._support import double_precision
from ufm.theory import predict, theorems

TWO = theorems["cross-entropy-two-groups"]
COLLAPSE = theorems["cross-entropy-complete-collapse"]
NONNEGATIVE = theorems["cross-entropy-nonnegative"]
PEELED = theorems["layer-peeled-two-groups"]


def problem(counts=(60.0, 60.0, 10.0, 10.0), decay=1e-2, *, bias=None, ball=None, **changes):
    classes = counts if isinstance(counts, ufm.ClassGroups) else ufm.ClassGroups(counts)
    regularizer = ufm.WeightDecay(weights=2 * decay, features=decay / 2, bias=bias or 0.0)
    settings = {
        "class_counts": classes,
        "feature_dim": classes.num_classes,
        "loss": ufm.CrossEntropy(),
        "regularizer": regularizer
        if ball is None
        else ufm.NormBall(weights=ball[0], features=ball[1]),
        "use_bias": bias is not None,
    }
    return ufm.Problem(**{**settings, **changes})


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def losses(logits):
    off = ~np.eye(len(logits), dtype=bool)
    return np.log1p(np.sum(np.where(off, np.exp(logits - np.diag(logits)[:, None]), 0), axis=1))


def duality_gap(setting, prediction):
    """Objective less dual value, and how far a bias is from stationary.

    The objective g(Z + 1 b') + gauge is convex; G, its gradient in Z, is brought into the dual ball
    by scaling, which for cross-entropy keeps y + u a probability vector.
    """
    n = np.asarray(setting.class_counts.per_class)
    N, K = n.sum(), len(n)
    p = softmax(prediction.logits)
    G = (n / N)[:, None] * (p - np.eye(K))
    own = prediction.logits if prediction.bias is None else prediction.logits - prediction.bias
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1)
    value = n / N @ losses(prediction.logits)
    if isinstance(setting.regularizer, ufm.NormBall):
        bound = K * math.sqrt(float(setting.regularizer.weights * setting.regularizer.features))
        np.testing.assert_allclose(np.linalg.svd(own, compute_uv=False).sum(), bound, rtol=1e-10)
        lower = value - np.sum(G * own) - bound * np.linalg.norm(G, 2)
        penalty = 0.0
    else:
        tau = math.sqrt(float(setting.regularizer.weights * setting.regularizer.features))
        root_n = np.sqrt(n)[:, None]
        gauge = np.linalg.svd(root_n * own, compute_uv=False).sum()
        excess = np.linalg.norm(G / root_n, 2) / tau - 1
        assert excess < 1e-9, excess
        penalty = float(setting.regularizer.bias)
        value += tau * gauge + (
            0 if prediction.bias is None else penalty / 2 * np.sum(prediction.bias**2)
        )
        lower = n / N @ entropy - (
            0 if prediction.bias is None else penalty / 2 * np.sum(prediction.bias**2)
        )
    slope = (
        0.0 if prediction.bias is None else np.abs(G.sum(axis=0) + penalty * prediction.bias).max()
    )
    np.testing.assert_allclose(prediction.objective, value, rtol=1e-12)
    return value - lower, slope


def random_two_groups(seed):
    rng = np.random.default_rng(seed)
    sizes = tuple(int(k) for k in rng.integers(1, 6, size=2))
    counts = 10 ** rng.uniform(0, 6, size=2)
    total = np.dot(sizes, counts)
    ntau = 10 ** rng.uniform(-4, 0.3) * np.sqrt(counts.min() if seed % 2 else counts.max())
    bias = (None, 0.0, float(10 ** rng.uniform(-4, 2)))[seed % 3]
    return problem(ufm.ClassGroups(counts, sizes=sizes), ntau / total, bias=bias)


class TestTwoGroups:
    @pytest.mark.slow
    @for_each("seed", range(60))
    def test_the_optimality_conditions_hold(self, seed):
        setting = random_two_groups(seed)
        gap, slope = duality_gap(setting, TWO.predict(setting))
        assert gap < 1e-12
        assert slope < 1e-12

    def test_it_answers_wherever_two_sizes_are_stated(self):
        grouped = predict(problem(ufm.ClassGroups((60.0, 10.0), sizes=(2, 3)), bias=0.0))
        assert grouped.theorem == TWO.name
        for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
            stated = predict(problem(np.repeat([60.0, 10.0], (2, 3))[list(order)], bias=0.0))
            assert stated.theorem == TWO.name
            for name in ("logits", "weight_gram", "feature_gram"):
                np.testing.assert_allclose(
                    getattr(stated, name), getattr(grouped, name)[np.ix_(order, order)], atol=1e-12
                )
            np.testing.assert_allclose(stated.bias, grouped.bias[list(order)], atol=1e-13)
            for name, value in grouped.constants.items():
                np.testing.assert_allclose(stated.constants[name], value, rtol=1e-12)

    def test_smaller_classes_may_be_stated_first(self):
        first = predict(problem(ufm.ClassGroups((10.0, 60.0), sizes=(3, 2))))
        last = predict(problem(ufm.ClassGroups((60.0, 10.0), sizes=(2, 3))))
        for name, value in last.constants.items():
            np.testing.assert_allclose(first.constants[name], value, rtol=1e-12)
        np.testing.assert_allclose(first.objective, last.objective, rtol=1e-14)

    @for_each("bias", [None, 0.0, 0.1])
    def test_equal_counts_are_the_balanced_theorem(self, bias):
        for decay in (1e-3, 5e-2):
            balanced = problem(ufm.ClassGroups((20.0, 20.0), sizes=(2, 3)), decay, bias=bias)
            formula, etf = TWO.formula(balanced), theorems["cross-entropy-etf"].predict(balanced)
            for name in ("objective", "logits", "weight_gram", "feature_gram", "layer_norms"):
                np.testing.assert_allclose(
                    getattr(formula, name), getattr(etf, name), atol=1e-12, err_msg=name
                )
            assert formula.rank == etf.rank

    @pytest.mark.nightly
    def test_a_sweep_over_the_ratio_passes_through_balance(self):
        def at(ratio):
            return problem(ufm.ClassGroups.step(4, 50.0, imbalance_ratio=ratio), 2e-3)

        ratios = np.array([1.0, 2.0, 30.0, 1e6])
        with double_precision():
            batch = jax.jit(jax.vmap(lambda ratio: TWO.formula(at(ratio)).objective))(ratios)
        np.testing.assert_allclose(
            batch, [predict(at(ratio)).objective for ratio in ratios], rtol=1e-12
        )

    def test_limits_of_the_bias_penalty(self):
        free, none = predict(problem(bias=0.0)), predict(problem())
        nearly = predict(problem(bias=1e-13))
        np.testing.assert_allclose(nearly.logits, free.logits, atol=1e-9)
        stiff = predict(problem(bias=1e12))
        np.testing.assert_allclose(stiff.logits, none.logits, atol=1e-9)
        assert free.objective < predict(problem(bias=0.1)).objective < none.objective

    @for_each("bias", [None, 0.0, 0.05])
    @for_each(("group", "count"), [("minority", 10.0), ("majority", 60.0)])
    def test_a_group_coincides_from_its_threshold_on(self, group, count, bias):
        for factor in (1 - 1e-4, 1 - 1e-12, 1 + 1e-12, 1 + 1e-4):
            setting = problem(decay=factor * math.sqrt(count) / 140, bias=bias)
            prediction = TWO.predict(setting)
            members = slice(2, 4) if group == "minority" else slice(0, 2)
            gram = prediction.weight_gram[members, members]
            apart = gram[0, 0] - gram[0, 1]
            np.testing.assert_allclose(prediction.constants[f"{group}_ratio"], factor, rtol=1e-13)
            assert (prediction.constants[f"{group}_margin"] > 0) == (factor < 1)
            assert (apart > 1e-15) == (factor < 1)
            gap, _ = duality_gap(setting, prediction)
            assert gap < 1e-13

    @for_each("bias", [None, 0.05])
    def test_the_contrast_vanishes_at_its_own_threshold(self, bias):
        def ratio(log_decay):
            return float(
                TWO.predict(
                    problem((8.0, 8.0, 2.0, 2.0, 2.0), math.exp(log_decay), bias=bias)
                ).constants[name]
            )

        name = "contrast_ratio"
        edge = scipy.optimize.brentq(
            lambda x: ratio(x) - 1, math.log(0.05), math.log(0.12), xtol=1e-15
        )
        for factor in (1 - 1e-4, 1 + 1e-4):
            setting = problem((8.0, 8.0, 2.0, 2.0, 2.0), factor * math.exp(edge), bias=bias)
            prediction = TWO.predict(setting)
            assert prediction.rank == (2 if factor < 1 else 1)
            assert (np.abs(prediction.feature_gram[2:, 2:]).max() > 0) == (factor < 1)
            assert duality_gap(setting, prediction)[0] < 1e-13

    @for_each(
        ("changes", "statement"),
        [
            ({"counts": (9.0, 9.0, 4.0, 1.0)}, "two different class counts"),
            ({"counts": (9.0, 9.0, 9.0)}, "two different class counts"),
            ({"feature_dim": 2}, "d >= K - 1"),
            ({"loss": ufm.CDT(0.5)}, "the loss CrossEntropy"),
            ({"nonnegative_features": True}, "features of any sign"),
            ({"hidden_dims": (4,)}, "L = 1"),
            ({"ball": (1.0, 5.0)}, "the regularizer WeightDecay"),
        ],
    )
    def test_it_says_no_elsewhere(self, changes, statement):
        assert [c.statement for c in TWO.applies(problem(**changes)).failing] == [statement]

    def test_the_condition_can_be_traced_and_explains_itself(self):
        condition = TWO.applies(problem((9.0, 4.0, 1.0))).failing[0]
        assert condition.found == "3 different counts"
        holds = jax.jit(lambda c: TWO.conditions(problem(ufm.ClassGroups(c)))[4].holds)
        with double_precision():
            assert holds(np.array([9.0, 1.0, 1.0]))
            assert not holds(np.array([9.0, 4.0, 1.0]))


class TestCompleteCollapse:
    @for_each("bias", [None, 0.0, 0.03, 4.0])
    @for_each("counts", [(50.0, 20.0, 4.0, 1.0), (7.0, 7.0, 2.0)])
    def test_it_holds_from_its_threshold_on_and_not_before(self, counts, bias):
        ratio = float(COLLAPSE.formula(problem(counts, 1.0, bias=bias)).constants["collapse_ratio"])
        above, below = (
            problem(counts, factor / ratio, bias=bias) for factor in (1 + 1e-4, 1 - 1e-4)
        )
        prediction = COLLAPSE.predict(above)
        assert prediction.collapsed
        gap, slope = duality_gap(above, prediction)
        assert max(gap, slope) < 1e-13
        assert not COLLAPSE.applies(below)
        assert "0.9999" in str(COLLAPSE.applies(below))
        # There the gradient at the constant logits has a direction of descent.
        with pytest.raises(AssertionError, match=r"-?\d"):
            duality_gap(below, COLLAPSE.formula(below))

    def test_the_free_bias_is_the_logarithm_of_the_shares(self):
        prediction = COLLAPSE.predict(problem((50.0, 20.0, 4.0), 0.5, bias=0.0))
        pi = np.array([50.0, 20.0, 4.0]) / 74
        np.testing.assert_allclose(prediction.objective, -pi @ np.log(pi), rtol=1e-14)
        np.testing.assert_allclose(prediction.bias, np.log(pi) - np.log(pi).mean(), atol=1e-14)

    def test_the_published_grid(self):
        # K = 10, k_A = k_B = 5, 500 and 100 samples, penalty tau: the two thresholds of the groups.
        for size, name in (
            (10 / 3000, "minority_ratio"),
            (math.sqrt(500) / 3000, "majority_ratio"),
        ):
            setting = problem(ufm.ClassGroups((500.0, 100.0), sizes=(5, 5)), size)
            np.testing.assert_allclose(TWO.predict(setting).constants[name], 1, rtol=1e-13)

    @for_each("bias", [None, 0.0, 0.2])
    def test_it_agrees_with_two_groups_where_both_apply(self, bias):
        setting = problem((7.0, 7.0, 2.0), 0.4, bias=bias)
        one, other = COLLAPSE.predict(setting), TWO.predict(setting)
        assert predict(setting).theorem == TWO.name
        np.testing.assert_allclose(one.objective, other.objective, rtol=1e-13)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-12)


class TestNonnegative:
    @for_each("counts", [(50.0, 20.0, 4.0, 1.0), (5.0, 5.0, 5.0)])
    @for_each("decay", [1e-3, 1.5e-2, 5e-2, 1.0])
    def test_the_factors_attain_the_objective(self, counts, decay):
        setting = problem(counts, decay, nonnegative_features=True)
        prediction = NONNEGATIVE.predict(setting)
        lengths = np.sqrt(np.diag(prediction.feature_gram))
        assert np.all(prediction.feature_gram[~np.eye(len(counts), dtype=bool)] == 0)
        H = np.diag(lengths)
        alive = lengths > 0
        W = np.where(alive, prediction.logits.T / np.where(alive, lengths, 1), 0)
        n = np.asarray(counts)
        np.testing.assert_allclose(W @ W.T, prediction.weight_gram, atol=1e-12)
        np.testing.assert_allclose(
            prediction.layer_norms, [np.sum(W**2), n @ np.sum(H**2, axis=1)], rtol=1e-12
        )
        data = n / n.sum() @ losses(H @ W.T)
        np.testing.assert_allclose(
            prediction.objective, data + prediction.layer_norms @ [decay, decay / 4], rtol=1e-12
        )
        values = np.linalg.svd(np.sqrt(n)[:, None] * prediction.logits, compute_uv=False)
        np.testing.assert_allclose(prediction.singular_values, values, atol=1e-13)
        assert prediction.rank == np.linalg.matrix_rank(prediction.logits, tol=1e-9)

    def test_a_class_vanishes_at_its_threshold(self):
        small = 140**2 * 1e-4 * 3 / 2
        for factor, alive in ((1 - 1e-4, False), (1 + 1e-4, True)):
            last = factor * small
            prediction = NONNEGATIVE.predict(
                problem((100.0, 40 - last, last), nonnegative_features=True)
            )
            assert (prediction.feature_norms[2] > 0) == alive
            np.testing.assert_allclose(prediction.constants["smallest_count"], small, rtol=1e-12)

    @for_each(
        ("changes", "statement"),
        [
            ({}, "non-negative features"),
            ({"nonnegative_features": True, "feature_dim": 3}, "all widths >= K"),
            ({"nonnegative_features": True, "bias": 0.0}, "no bias"),
            ({"nonnegative_features": True, "ball": (1.0, 5.0)}, "the regularizer WeightDecay"),
        ],
    )
    def test_it_says_no_elsewhere(self, changes, statement):
        assert [c.statement for c in NONNEGATIVE.applies(problem(**changes)).failing] == [statement]


def peeled(ratio, majority=5, features=5.0, use_bias=False):
    classes = ufm.ClassGroups((float(ratio), 1.0), sizes=(majority, 10 - majority))
    return problem(classes, ball=(1.0, features), use_bias=use_bias)


class TestLayerPeeled:
    @for_each("ratio", [1.5, slow(40.0), 1e6])
    @for_each("features", [slow(1e-3), 0.3, slow(5.0), 60.0])
    @for_each("use_bias", [slow(False), True])
    def test_the_optimality_conditions_hold(self, ratio, features, use_bias):
        setting = peeled(ratio, 3, features, use_bias)
        gap, slope = duality_gap(setting, PEELED.predict(setting))
        assert abs(gap) < 1e-12
        assert slope < 1e-14

    @pytest.mark.parametrize(
        ("features", "majority", "published"),
        [
            pytest.param(5.0, 3, 245.50, marks=pytest.mark.nightly),
            pytest.param(5.0, 5, 12.192447, marks=pytest.mark.slow),
            pytest.param(5.0, 7, 4.0005, marks=pytest.mark.slow),
            pytest.param(10.0, 3, 6350.8, marks=pytest.mark.nightly),
            pytest.param(10.0, 5, 81.102, marks=pytest.mark.nightly),
            pytest.param(10.0, 7, 13.666, marks=pytest.mark.slow),
        ],
    )
    def test_the_ratio_of_minority_collapse(self, features, majority, published):
        def minority(ratio):
            return float(
                PEELED.predict(peeled(ratio, majority, features)).constants["minority_ratio"]
            )

        found = scipy.optimize.brentq(
            lambda x: minority(math.exp(x)) - 1, math.log(2), math.log(2e4), xtol=1e-14
        )
        np.testing.assert_allclose(
            math.exp(found), published, rtol=1e-7 if published == 12.192447 else 2e-5
        )
        for factor, merged in ((1 - 1e-4, False), (1 + 1e-4, True)):
            gram = PEELED.predict(peeled(factor * math.exp(found), majority, features)).weight_gram
            assert (gram[-1, -1] - gram[-1, -2] <= 1e-12) == merged

    def test_the_published_cosines(self):
        for ratio, cosine in ((1.0, -1 / 9), (30.0, 1.0), (500.0, 1.0)):
            gram = PEELED.formula(peeled(ratio)).weight_gram
            np.testing.assert_allclose(gram[-1, -2] / gram[-1, -1], cosine, atol=1e-12)

    @for_each("bias", [None, 0.0])
    def test_at_the_norms_of_weight_decay_the_loss_is_lower(self, bias):
        # Another minimiser: the constraint averages the features over classes, the penalty over
        # samples.
        decayed = TWO.predict(problem(bias=bias))
        loss = decayed.objective - decayed.layer_norms @ [1e-2, 0.25e-2]
        ball = (decayed.layer_norms[0] / 4, np.trace(decayed.feature_gram) / 4)
        assert (
            PEELED.predict(problem(ball=ball, use_bias=bias is not None)).objective < 0.999 * loss
        )

    def test_enormous_bounds_do_not_underflow(self):
        prediction = PEELED.predict(peeled(10.0, features=1e8))
        values = np.linalg.svd(prediction.logits, compute_uv=False)
        np.testing.assert_allclose(values.sum(), 1e5, rtol=1e-12)
        assert prediction.objective == 0

    @for_each(
        ("changes", "statement"),
        [
            ({"counts": (9.0, 4.0, 1.0)}, "two different class counts"),
            ({"counts": (9.0, 9.0)}, "two different class counts"),
            ({"feature_dim": 2}, "d >= K - 1"),
            ({"nonnegative_features": True}, "features of any sign"),
            ({"loss": ufm.LabelSmoothing(0.1)}, "the loss CrossEntropy"),
        ],
    )
    def test_it_says_no_elsewhere(self, changes, statement):
        assert [
            c.statement for c in PEELED.applies(problem(ball=(1.0, 5.0), **changes)).failing
        ] == [statement]


EDGE = math.sqrt(10.0) / 140  # minority collapse of the default problem
SOLVED = {
    "two groups below the threshold": (TWO, problem(decay=EDGE * (1 - 1e-4))),
    "two groups above the threshold": (TWO, problem(decay=EDGE * (1 + 1e-4))),
    "two groups, a penalised bias": (TWO, problem(decay=EDGE / 2, bias=0.02)),
    "two groups, a ratio of a million": (TWO, problem((1e6, 1e6, 1.0, 1.0), 1e-7, bias=0.0)),
    "collapse above the threshold": (COLLAPSE, problem((50.0, 20.0, 4.0), 0.09, bias=0.03)),
    "non-negative, one class dead": (
        NONNEGATIVE,
        problem((50.0, 20.0, 4.0), 3e-2, nonnegative_features=True),
    ),
    "layer-peeled, minority collapse": (PEELED, problem(ball=(1.0, 1.0))),
}


@functools.cache
def solved(name):
    theorem, setting = SOLVED[name]
    return ufm.solve(setting, restarts=1, resolution="classes"), theorem.predict(setting)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow if name.startswith(("non-negative", "layer-peeled")) else (),
        )
        for name in SOLVED
    ],
)
def test_certified_solves_agree(name):
    solution, prediction = solved(name)
    assert solution.certificate.holds
    comparison = ufm.compare(solution, prediction)
    assert comparison["objective"].passed, str(comparison)
    # Just at a threshold no solution can be told from the merged one: undecided, but never
    # different.
    assert not [row for row in comparison.rows if row.verdict == "differs"], str(comparison)
    if "threshold" not in name and "million" not in name:
        assert comparison.passed, str(comparison)


@for_each("name", ["two groups, a penalised bias", slow("non-negative, one class dead")])
@for_each("field", ["objective", "logits", "weight_gram", "feature_gram", "singular_values"])
def test_a_wrong_prediction_is_caught(name, field):
    solution, prediction = solved(name)
    wrong = eqx.tree_at(
        lambda tree: getattr(tree, field), prediction, 1.001 * getattr(prediction, field)
    )
    assert not ufm.compare(solution, wrong).passed


def test_the_prediction_of_another_threshold_is_caught():
    solution, _ = solved("two groups, a penalised bias")
    nearby = dataclasses.replace(
        solution.problem,
        regularizer=ufm.WeightDecay(weights=EDGE, features=EDGE / 4 * 1.01, bias=0.02),
    )
    assert not ufm.compare(solution, TWO.predict(nearby)).passed


# The semidefinite relaxation of the layer-peeled model (Fang et al., PNAS 2021): its value is that
# of the model itself.


@for_each("ratio", [1.0, 5.0, 40.0])
def test_the_semidefinite_relaxation_has_the_value_of_the_layer_peeled_model(ratio: float) -> None:
    cp = pytest.importorskip("cvxpy")
    K, bounds = 4, (1.0, 2.0)
    counts = np.array([ratio, ratio, 1.0, 1.0])
    problem = ufm.Problem(
        class_counts=counts,
        feature_dim=2 * K,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(weights=bounds[0], features=bounds[1]),
    )
    gram = cp.Variable((2 * K, 2 * K), PSD=True)
    logits = gram[:K, K:]
    losses = [cp.log_sum_exp(logits[k, :]) - logits[k, k] for k in range(K)]
    limits = [cp.trace(gram[:K, :K]) <= K * bounds[1], cp.trace(gram[K:, K:]) <= K * bounds[0]]
    relaxed = cp.Problem(
        cp.Minimize(cp.sum(cp.multiply(counts / counts.sum(), cp.hstack(losses)))), limits
    )
    relaxed.solve(solver=cp.CLARABEL)
    predicted = ufm.predict(problem)
    assert predicted.objective == pytest.approx(relaxed.value, rel=1e-6)
    # Where minority classifiers coincide in the model, they do in the relaxation.
    weights = gram.value[K:, K:]
    cosine = weights[2, 3] / np.sqrt(weights[2, 2] * weights[3, 3])
    assert predicted.weight_gram is not None
    expected = predicted.weight_gram[2, 3] / predicted.weight_gram[2, 2]
    assert cosine == pytest.approx(expected, abs=2e-3)
