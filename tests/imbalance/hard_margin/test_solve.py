"""Hard margins of targets: certified, the class problem where rows are one-hot, and refusals."""

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import Status
from ufm.imbalance.hard_margin.solve import certify_hard_margin, closed_form_check, proxy_check
from ufm.theory import support_proxy

UNEQUAL = ((0, 1), (0, 1), (0, 1), (0, 2), (3,))


def contexts(num_tokens, supports):
    rows = np.zeros((len(supports), num_tokens))
    for row, support in zip(rows, supports, strict=True):
        row[list(support)] = 1
    return ufm.Targets.contexts(rows)


def drawn(seed, num_rows, num_tokens, size):
    rng = np.random.default_rng(seed)
    supports = [rng.choice(num_tokens, size, replace=False) for _ in range(num_rows)]
    return contexts(num_tokens, supports)


FALSE = ufm.HardMargin(targets=contexts(4, UNEQUAL))


class TestTargets:
    @for_each(
        ("targets", "rank"),
        [
            (drawn(0, 10, 10, 3), None),
            (contexts(4, UNEQUAL), 3),
            (contexts(5, ((0, 1, 4), (0, 3, 4), (1, 2, 3))), 3),
        ],
    )
    def test_the_dual_and_the_logits_certify_each_other_in_numpy(self, targets, rank):
        solution = ufm.solve_hard_margin(ufm.HardMargin(targets=targets))
        assert solution.status is Status.CONVERGED
        assert solution.holds(1e-10)
        inside, logits = np.asarray(targets.rows) > 0, solution.logits
        own = np.where(inside, logits, -np.inf).max(axis=1, keepdims=True)
        np.testing.assert_allclose(np.where(inside, logits - own, 0), 0, atol=1e-12)
        assert np.min(np.where(inside, np.inf, own - logits)) >= 1 - 1e-12
        np.testing.assert_allclose(np.linalg.norm(logits, "nuc"), solution.value, rtol=1e-12)
        # Lambda: minus the multipliers off the supports, in them their sum, shared.
        found = solution.multipliers
        off = np.where(inside, 0, found)
        share = off.sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True)
        dual = np.where(inside, found + share, -found)
        assert np.min(off) >= 0
        np.testing.assert_allclose(np.where(inside, found, 0).sum(axis=1), 0, atol=1e-10)
        np.testing.assert_allclose(dual.sum(axis=1), 0, atol=1e-10)
        assert np.linalg.norm(dual, 2) <= 1 + 1e-10
        np.testing.assert_allclose(off.sum(), solution.value, rtol=1e-10)
        np.testing.assert_allclose(np.trace(solution.weight_gram), solution.value, rtol=1e-10)
        np.testing.assert_allclose(np.trace(solution.feature_gram), solution.value, rtol=1e-10)
        assert solution.support.shape == inside.shape
        assert not np.any(solution.support & inside)
        if rank is not None:
            singular = np.linalg.svd(logits, compute_uv=False)
            assert np.sum(singular > 1e-7) == rank

    @pytest.mark.slow
    def test_draws_are_certified_and_the_test_of_centred_supports_agrees(self):
        rng = np.random.default_rng(7)
        verdicts = set()
        for index in range(24):
            sizes = rng.integers(1, 6, 8)
            rows = np.array([rng.permutation(np.arange(6) < size) for size in sizes], float)
            weights = 10 ** rng.uniform(-2, 2, 8) if index % 2 else np.ones(8)
            targets = ufm.Targets(rows, feature_weights=weights)
            modified = {"multipliers": 10 ** rng.uniform(-0.5, 0.5, 6)} if index % 3 else {}
            solution = ufm.solve_hard_margin(ufm.HardMargin(targets=targets, **modified))
            assert solution.status is Status.CONVERGED
            assert solution.holds(1e-10)
            if not modified:
                check = proxy_check(solution.problem)
                assert check.holds or not (check.proxy.exact or check.proxy.decided)
                verdicts.add(bool(check.proxy.exact))
        assert False in verdicts

    def test_one_hot_rows_are_the_classes(self):
        rng = np.random.default_rng(3)
        counts, delta, gamma = (10 ** rng.uniform(-0.5, 0.5, 4) for _ in range(3))
        ours = ufm.solve_hard_margin(
            ufm.HardMargin(targets=ufm.Targets.one_hot(counts), multipliers=delta, margins=gamma)
        )
        classes = ufm.solve_hard_margin(ufm.HardMargin(counts, delta, gamma))
        np.testing.assert_allclose(ours.value, classes.value, rtol=1e-11)
        for name in ("logits", "weight_gram", "feature_gram", "multipliers"):
            np.testing.assert_allclose(getattr(ours, name), getattr(classes, name), atol=1e-8)
        assert np.array_equal(ours.support, classes.support)
        with pytest.raises(ValueError, match="no blocks"):
            _ = ours.blocks

    def test_rows_of_one_support_are_one_row(self):
        whole = ufm.solve_hard_margin(FALSE)
        rows = np.asarray(FALSE.targets.rows)[2:]
        merged = ufm.solve_hard_margin(
            ufm.HardMargin(targets=ufm.Targets(rows, feature_weights=(3.0, 1.0, 1.0)))
        )
        assert list(whole.groups) == [0, 0, 0, 1, 2]
        np.testing.assert_allclose(whole.value, merged.value, rtol=1e-12)
        np.testing.assert_allclose(whole.multipliers[:3].sum(axis=0), merged.multipliers[0])

    @for_each(
        ("arguments", "words"),
        [
            ({}, "one of the two"),
            ({"class_counts": (1, 1), "targets": ufm.Targets.one_hot((1, 1))}, "one of the two"),
            ({"targets": np.eye(3)}, "must be ufm.Targets"),
            ({"targets": ufm.Targets([[1.0, -1.0], [0.0, 1.0]])}, "without negative entries"),
            ({"targets": ufm.Targets([[0.0, 0.0], [0.0, 1.0]])}, "row 0 has none"),
            ({"targets": ufm.Targets([[0.5, 0.5]])}, "no margin"),
            ({"targets": ufm.Targets(np.eye(3)), "margins": (1, 1)}, "one per target row"),
            ({"targets": ufm.Targets(np.eye(3)), "multipliers": (1, 1)}, "one per output"),
        ],
    )
    def test_bad_input(self, arguments, words):
        with pytest.raises(ufm.ArgumentError, match=words):
            ufm.HardMargin(**arguments)

    def test_too_many_entries(self):
        with pytest.raises(ufm.ArgumentError, match="at most 4096"):
            ufm.solve_hard_margin(ufm.HardMargin(targets=ufm.Targets(np.eye(70))))


class TestEvidence:
    def test_it_refuses_what_is_no_solution(self):
        solution = ufm.solve_hard_margin(FALSE)
        assert certify_hard_margin(FALSE, solution.logits, solution.multipliers).holds(1e-10)
        proxy = support_proxy(FALSE.targets)
        evidence = certify_hard_margin(FALSE, proxy.logits)
        np.testing.assert_allclose(evidence.value, 3.366300080, atol=1e-9)
        assert evidence.relative_gap > 1e-3
        assert not evidence.holds()
        unequal = solution.logits + 1e-6 * np.eye(5, 4)
        for logits in (0.9 * solution.logits, unequal, np.full((5, 4), np.nan)):
            evidence = certify_hard_margin(FALSE, logits, solution.multipliers)
            assert evidence.value == np.inf
            assert not evidence.holds(1)
        with pytest.raises(ufm.ArgumentError, match="must be of shape"):
            certify_hard_margin(FALSE, np.eye(4))

    def test_no_multipliers_give_a_bound_above_the_value(self):
        rng = np.random.default_rng(0)
        solution = ufm.solve_hard_margin(FALSE)
        bounds = []
        for _ in range(50):
            change = rng.normal(size=(5, 4)) * 10 ** rng.uniform(-6, 1)
            evidence = certify_hard_margin(FALSE, solution.logits, solution.multipliers + change)
            bounds.append(float(evidence.lower_bound))
        assert max(bounds) <= solution.value
        assert min(bounds) < 0.9 * solution.value


class TestProxy:
    def test_the_false_one_is_refused(self):
        check = proxy_check(FALSE)
        assert check.holds
        assert not check.proxy.exact
        np.testing.assert_allclose(check.value, 3.312539389, atol=1e-9)
        np.testing.assert_allclose(check.proxy.value, 3.366300080, atol=1e-9)
        assert not check.form.holds
        assert "is not the solution" in str(check)
        claimed = check._replace(proxy=check.proxy._replace(exact=np.True_))
        assert not claimed.holds
        assert not check._replace(value=3.4).holds

    def test_a_true_one_is_the_solution(self):
        problem = ufm.HardMargin(targets=contexts(4, ((0,), (0, 1), (0, 1, 2))))
        check = proxy_check(problem)
        assert check.holds
        assert check.form.holds
        denied = check._replace(proxy=check.proxy._replace(exact=np.False_))
        assert not denied.holds
        wrong = check.proxy._replace(logits=check.proxy.logits * 1.01)
        assert not closed_form_check(problem, wrong).holds

    def test_it_is_about_margins_of_one(self):
        with pytest.raises(ufm.ArgumentError, match="margins of one"):
            proxy_check(ufm.HardMargin(targets=FALSE.targets, margins=2.0))
        with pytest.raises(ufm.ArgumentError, match="must have `targets`"):
            proxy_check(ufm.HardMargin((1, 1)))
