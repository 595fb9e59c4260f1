"""Models with one logit: their scalar equations, limits, and the problems that are refused."""

import numpy as np
from tables import for_each

import ufm

WITH, WITHOUT = (ufm.theorems[f"two-classes-one-logit{bias}"] for bias in ("-free-bias", ""))
ORDINAL = ufm.theorems["ordinal-levels"]
THRESHOLDS = [-1.5, 1.0]


def two(counts=(9.0, 3.0), decay=0.02, rows=((1.0,), (0.0,)), weights=None, **options):
    return ufm.Problem(
        targets=ufm.Targets(np.array(rows), counts, weights),
        feature_dim=2,
        loss=ufm.BinaryCrossEntropy(),
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
        **options,
    )


def levels(decay=0.02, **options):
    return ufm.Problem(
        class_counts=(8.0, 4.0, 2.0),
        feature_dim=2,
        loss=ufm.Ordinal(THRESHOLDS),
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
        **options,
    )


class TestTwoClasses:
    def test_imbalance_has_no_effect_without_a_bias(self):
        found = [WITHOUT.predict(two(counts)) for counts in ((6.0, 6.0), (11.0, 1.0))]
        np.testing.assert_allclose(found[0].objective, found[1].objective, rtol=1e-15)
        np.testing.assert_allclose(found[0].logits, found[1].logits, rtol=1e-14)
        assert found[0].logits[0, 0] == -found[0].logits[1, 0]

    def test_a_free_bias_gives_the_probabilities_and_features_of_mean_zero(self):
        found = WITH.predict(two(use_bias=True))
        wrong = 1 / (1 + np.exp(np.array([1, -1]) * found.logits[:, 0]))
        tau, N = 0.02, 12
        np.testing.assert_allclose(
            wrong, [tau * np.sqrt(N * 3 / 9), tau * np.sqrt(N * 9 / 3)], rtol=1e-13
        )
        np.testing.assert_allclose((9, 3) @ (found.logits - found.bias), 0, atol=1e-13)

    @for_each("use_bias", [False, True])
    def test_cross_entropy_of_two_balanced_classes_is_the_same_model(self, use_bias):
        theorem = WITH if use_bias else WITHOUT
        ours = theorem.predict(two((6.0, 6.0), use_bias=use_bias))
        other = ufm.Problem(
            class_counts=(6.0, 6.0),
            feature_dim=2,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(weights=0.02 * 2**0.5, features=0.02 * 2**0.5),
            use_bias=use_bias,
        )
        prediction = ufm.predict(other)
        np.testing.assert_allclose(ours.objective, prediction.objective, rtol=1e-14)
        np.testing.assert_allclose(ours.logits[0, 0], prediction.constants["margin"], rtol=1e-13)

    @for_each("use_bias", [False, True])
    def test_collapse_is_where_it_is_said_to_be(self, use_bias):
        theorem = WITH if use_bias else WITHOUT
        base = theorem.predict(two(use_bias=use_bias)).constants
        at = 0.02 * float(base["threshold"]) / float(base["c"])
        below, above = (
            theorem.predict(two(decay=factor * at, use_bias=use_bias)) for factor in (0.999, 1.001)
        )
        assert not below.collapsed
        assert above.collapsed
        if use_bias:
            np.testing.assert_allclose(above.bias, np.log(9 / 3), rtol=1e-14)

    @for_each(
        ("changed", "words"),
        [
            ({"rows": ((1.0,), (0.5,))}, "two target rows of one label"),
            ({"rows": ((1.0,), (1.0,))}, "two target rows of one label"),
            ({"rows": ((1.0, 0.0), (0.0, 1.0))}, "two target rows of one label"),
            ({"weights": (1.0, 1.0)}, "in proportion to the counts"),
            ({"use_bias": True}, "no bias"),
        ],
    )
    def test_what_is_refused(self, changed, words):
        assert WITHOUT.applies(two())
        assert words in str(WITHOUT.applies(two(**changed)))


class TestLevels:
    @for_each("decay", [1e-6, 1e-3, 0.1])
    def test_the_scores_solve_their_equations(self, decay):
        found = ORDINAL.predict(levels(decay))
        z, n = found.logits[:, 0], np.array([8.0, 4.0, 2.0])
        kappa = np.sqrt(n @ z**2)
        ends = np.array([-np.inf, *THRESHOLDS, np.inf])

        def sigma(x):
            return 1 / (1 + np.exp(-x))

        slopes = sigma(z - ends[1:]) - sigma(ends[:-1] - z)
        price = 14 * decay / kappa
        np.testing.assert_allclose(slopes, -price * z, atol=1e-9 * max(price, 1e-3))

    def test_without_decay_an_interior_level_goes_to_the_middle_of_its_thresholds(self):
        middle = [
            float(ORDINAL.predict(levels(decay)).logits[1, 0]) for decay in (1e-2, 1e-4, 1e-6)
        ]
        distances = np.abs(np.array(middle) + 0.25)
        assert np.all(np.diff(distances) < 0)
        assert distances[-1] < 1e-4

    def test_two_levels_are_two_classes(self):
        one = ufm.Problem(
            class_counts=(3.0, 9.0),
            feature_dim=2,
            loss=ufm.Ordinal([0.0]),
            regularizer=ufm.WeightDecay(weights=0.02, features=0.02),
        )
        expected = WITHOUT.predict(two())
        found = ORDINAL.predict(one)
        np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-13)
        np.testing.assert_allclose(found.logits[::-1], expected.logits, rtol=1e-10)

    def test_collapse_is_where_it_is_said_to_be(self):
        at = float(ORDINAL.predict(levels()).constants["threshold"]) / 14
        assert not ORDINAL.predict(levels(0.999 * at)).collapsed
        assert ORDINAL.predict(levels(1.001 * at)).collapsed

    def test_what_is_refused(self):
        assert ORDINAL.applies(levels())
        assert "no bias" in str(ORDINAL.applies(levels(use_bias=True)))
        assert "one-hot classes" in str(ORDINAL.applies(two()))
