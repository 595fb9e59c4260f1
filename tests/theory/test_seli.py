"""The geometry of maximal margins: published numbers, its dual, the limit of solves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.theory import corrected_margins, seli, seli_angle, theorems

TWO = theorems["cross-entropy-two-groups"]
COUNTS = (10.0, 10.0, 1.0, 1.0)


def problem(counts=COUNTS, ntau=1e-3, **changes):
    total = float(np.sum(np.asarray(ufm.ClassGroups(counts).per_class)))
    settings = {
        "class_counts": counts,
        "feature_dim": len(counts),
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=2 * ntau / total, features=ntau / 2 / total),
    }
    return ufm.Problem(**{**settings, **changes})


def margins(logits):
    return np.diag(logits)[:, None] - logits


class TestSELI:
    def test_the_published_step(self):
        found = seli(ufm.ClassGroups((20.0, 2.0), sizes=(2, 3)))
        gram = found.weight_gram
        np.testing.assert_allclose(np.diag(gram), [3.309381] * 2 + [1.419837] * 3, atol=5e-7)
        np.testing.assert_allclose(
            [gram[0, 1], gram[2, 3], gram[0, 2]], [-1.162755, 0.005623, -0.715542], atol=5e-7
        )
        np.testing.assert_allclose(
            np.diag(found.feature_gram), [0.195656] * 2 + [0.508672] * 3, atol=5e-7
        )

    @for_each(
        ("kA", "kB", "nA", "nB"),
        [(2, 3, 20.0, 2.0), (5, 5, 7.0, 1.0), (1, 4, 1e6, 3.0), (3, 1, 2.0, 9.0)],
    )
    def test_steps_in_closed_form(self, kA, kB, nA, nB):
        found, K = seli(ufm.ClassGroups((nA, nB), sizes=(kA, kB))), kA + kB
        a, b, s = math.sqrt(nA), math.sqrt(nB), math.sqrt((kB * nA + kA * nB) / K)
        values = sorted([a] * (kA - 1) + [b] * (kB - 1) + [s, 0.0], reverse=True)
        np.testing.assert_allclose(found.singular_values, values, rtol=1e-12)
        np.testing.assert_allclose(found.value, (kA - 1) * a + (kB - 1) * b + s, rtol=1e-13)

        def blocks(x, y, z):
            """Return x, y within the groups about their means and z across."""
            A, B = np.arange(K) < kA, np.arange(K) >= kA
            within = x * (np.diag(A * 1.0) - np.outer(A, A) / kA) + y * (
                np.diag(B * 1.0) - np.outer(B, B) / kB
            )
            v = A / kA - B / kB
            return within + z * np.outer(v, v) * kA * kB / K

        np.testing.assert_allclose(found.weight_gram, blocks(a, b, s), atol=1e-10 * a)
        np.testing.assert_allclose(found.feature_gram, blocks(1 / a, 1 / b, 1 / s), atol=1e-12)
        np.testing.assert_allclose(found.logits, np.eye(K) - 1 / K, atol=1e-15)

    @for_each("ratio", [1.0, 7.0, 100.0, 1e8])
    @for_each("K", [4, 10])
    def test_the_published_ratios_and_angles(self, K, ratio):
        gram = seli(ufm.ClassGroups((ratio, 1.0), sizes=(K // 2, K // 2))).weight_gram
        s = math.sqrt((ratio + 1) / 2)
        norms = ((K - 2) * math.sqrt(ratio) + s) / (K - 2 + s)
        np.testing.assert_allclose(gram[0, 0] / gram[-1, -1], norms, rtol=1e-10)
        np.testing.assert_allclose(gram[-1, -2] / gram[-1, -1], (s - 2) / (K - 2 + s), atol=1e-10)
        majority = (s - 2 * math.sqrt(ratio)) / ((K - 2) * math.sqrt(ratio) + s)
        np.testing.assert_allclose(gram[0, 1] / gram[0, 0], majority, atol=1e-10)
        if ratio == 7:  # minority classifiers are orthogonal
            assert abs(gram[-1, -2]) < 1e-13

    def test_balanced_classes_make_an_etf(self):
        found = seli((5.0, 5.0, 5.0))
        np.testing.assert_allclose(
            found.weight_gram, math.sqrt(5) * (np.eye(3) - 1 / 3), atol=1e-14
        )
        np.testing.assert_allclose(
            found.feature_gram, (np.eye(3) - 1 / 3) / math.sqrt(5), atol=1e-14
        )

    @for_each("seed", range(20))
    def test_strong_duality_for_any_counts_multipliers_and_margins(self, seed):
        rng = np.random.default_rng(seed)
        K = int(rng.integers(2, 8))
        n, d, g = 10 ** (rng.uniform(-2, 2, (3, K)) * np.array([[1], [0.3], [0.3]]))
        found = seli(n, multipliers=d, margins=g)
        Z, off = found.logits, ~np.eye(K, dtype=bool)
        # Feasible, with all constraints tight.
        slack = d * np.diag(Z) - g
        np.testing.assert_allclose(
            (slack[:, None] - Z * d[None, :])[off], 0, atol=1e-12 * np.max(g)
        )
        # The multipliers of the constraints d_y z_y - d_c z_c >= g_y, from the polar factor.
        rows = np.sqrt(n)[:, None] * found.dual
        multipliers = np.where(off, -rows / d[None, :], 0)
        assert found.strict
        assert np.all(multipliers[off] > 0)
        np.testing.assert_allclose(np.diag(rows), d * multipliers.sum(axis=1), rtol=1e-9)
        assert np.linalg.norm(found.dual, 2) <= 1 + 1e-12
        np.testing.assert_allclose(multipliers.sum(axis=1) @ g, found.value, rtol=1e-9)
        # W and H of these Gram matrices attain it.
        np.testing.assert_allclose(np.trace(found.weight_gram), found.value, rtol=1e-12)
        np.testing.assert_allclose(n @ np.diag(found.feature_gram), found.value, rtol=1e-9)

    def test_multipliers_in_the_published_form(self):
        d = np.array([1.0, 0.7, 0.4])
        found = seli((9.0, 3.0, 1.0), multipliers=d)
        expected = (np.eye(3) - np.outer(np.ones(3), d**-2.0) / np.sum(d**-2.0)) / d[:, None]
        np.testing.assert_allclose(found.logits.T, expected, atol=1e-14)

    def test_margins_that_make_the_classifiers_an_etf(self):
        n = np.array([100.0, 9.0, 4.0, 1.0])
        gram = seli(n, margins=1 / np.sqrt(n)).weight_gram
        np.testing.assert_allclose(gram, np.eye(4) - 1 / 4, atol=1e-14)

    def test_parameters_per_group_and_for_all(self):
        groups = ufm.ClassGroups((20.0, 2.0), sizes=(2, 3))
        one, other = (
            seli(groups, multipliers=(1.0, 0.5)),
            seli(groups, multipliers=(1.0, 1.0, 0.5, 0.5, 0.5)),
        )
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_allclose(seli(groups, margins=2.0).logits, 2 * seli(groups).logits)

    @for_each(
        ("arguments", "message"),
        [
            (
                {"multipliers": (1.0, 0.0, 1.0)},
                "`multipliers` must be positive and finite, got 0.0",
            ),
            ({"margins": (1.0, np.nan, 1.0)}, "`margins` must be positive and finite, got nan"),
            ({"margins": (1.0, 1.0)}, "`margins` must be one number"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            seli((3.0, 2.0, 1.0), **arguments)

    def test_traced_counts_are_refused(self):
        with pytest.raises(ValueError, match="must be numbers here"):
            jax.jit(lambda n: jnp.asarray(seli(ufm.ClassGroups(n)).value))(np.ones(3))


class TestVanishingDecay:
    def test_certified_margins_tend_to_the_corrected_ones(self):
        errors, plain = [], []
        for ntau in (1e-3, 1e-4, 1e-5, 1e-6):
            solution = ufm.solve(problem(ntau=ntau), restarts=1, resolution="classes")
            assert solution.certificate.holds
            found, corrected = margins(solution.logits), corrected_margins(problem(ntau=ntau))
            errors.append(np.abs(found - corrected).max())
            plain.append(np.abs(found - math.log(1 / ntau) * (1 - np.eye(4))).max())
        assert np.all(np.diff(errors) < 0)
        np.testing.assert_allclose(errors * np.log([1e3, 1e4, 1e5, 1e6]), 1.2, atol=0.2)
        assert errors[-1] < 0.1 < plain[-1] / 5  # without the correction the error does not go away

    @for_each("counts", [COUNTS, (50.0, 1.0, 1.0), (9.0, 9.0, 9.0, 2.0)])
    def test_the_error_and_the_angle_are_of_order_one_over_the_logarithm(self, counts):
        roots = np.sqrt(counts)[:, None]
        target = roots * seli(counts).logits
        errors, ratios, angles = [], [], []
        logs = np.array([1e1, 3e1, 1e2, 3e2]) * math.log(10)
        for log in logs:
            limit = problem(counts, math.exp(-log))
            logits = TWO.predict(limit).logits
            errors.append(np.abs(margins(logits) - corrected_margins(limit)).max())
            logits = roots * logits
            cosine = np.sum(logits * target) / np.linalg.norm(logits) / np.linalg.norm(target)
            across = logits / np.linalg.norm(logits) - cosine * target / np.linalg.norm(target)
            angles.append(math.atan2(np.linalg.norm(across), cosine))
            ratios.append(angles[-1] / seli_angle(limit))
        for sequence in (errors, angles):
            products = np.array(sequence) * logs
            np.testing.assert_allclose(products[1:], products[-1], rtol=0.1)
        np.testing.assert_allclose(ratios[-1], 1, rtol=5e-3)
        assert np.all(np.diff(np.abs(np.array(ratios) - 1)) < 0)

    def test_balanced_margins_are_exact_to_first_order(self):
        setting = problem((6.0, 6.0, 6.0), 1e-8)
        exact = theorems["cross-entropy-etf"].predict(setting).constants["margin"]
        np.testing.assert_allclose(
            corrected_margins(setting)[~np.eye(3, dtype=bool)], exact, rtol=1e-8
        )
        np.testing.assert_allclose(seli_angle(setting), 0, atol=1e-12)

    @pytest.mark.slow
    def test_adjusted_logits_have_the_same_margins(self):
        offsets = np.array([0.5, 0.0, -0.5, 2.0])
        errors = []
        for ntau in (1e-4, 1e-8):
            adjusted = problem(ntau=ntau, loss=ufm.LogitAdjusted(offsets=offsets))
            solution = ufm.solve(adjusted, restarts=1, resolution="classes")
            errors.append(np.abs(margins(solution.logits) - corrected_margins(adjusted)).max())
            shift = corrected_margins(problem(ntau=ntau)) - corrected_margins(adjusted)
            np.testing.assert_allclose(shift, offsets[:, None] - offsets[None, :], atol=1e-12)
        assert errors[1] < 0.7 * errors[0]

    @for_each("function", [corrected_margins, seli_angle])
    @for_each(
        ("changes", "message"),
        [
            ({"use_bias": True}, "no bias"),
            ({"loss": ufm.SquaredError()}, "the loss CrossEntropy or LogitAdjusted"),
            ({"feature_dim": 2}, "d >= K - 1"),
            ({"nonnegative_features": True}, "features of any sign"),
            ({"hidden_dims": (4,)}, "one layer"),
            (
                {"regularizer": ufm.NormBall(weights=1.0, features=1.0)},
                "the regularizer WeightDecay",
            ),
        ],
    )
    def test_other_problems_are_refused(self, function, changes, message):
        with pytest.raises(ValueError, match=f"`problem` must have {message}"):
            function(problem(**changes))

    def test_what_is_not_a_problem_is_refused(self):
        with pytest.raises(ValueError, match=r"`problem` must be a ufm\.Problem"):
            corrected_margins((3.0, 1.0))
