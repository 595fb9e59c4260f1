"""Hard margins against the closed form, a conic solver and the limit of cross-entropy."""

import math

import jax
import numpy as np
import pytest
from tables import for_each, slow

import ufm
from ufm._support import Status, double_precision
from ufm.imbalance.hard_margin.problem import logits_of, margin_groups
from ufm.imbalance.hard_margin.solve import (
    approach_to_seli,
    certified_margins,
    certify_hard_margin,
    compare_with_seli,
)
from ufm.problems import Blocks
from ufm.theory import seli

FOUR = ufm.HardMargin((10.0, 10.0, 1.0, 1.0))


def drawn(rng, K, modified=True):
    counts = 10 ** rng.uniform(0, 4, K)
    if not modified:
        return ufm.HardMargin(counts)
    return ufm.HardMargin(
        counts, multipliers=10 ** rng.uniform(-0.7, 0.7, K), margins=10 ** rng.uniform(-0.7, 0.7, K)
    )


def feasible(problem, logits):
    """The logits scaled up until they have the margins, or None."""
    delta = problem.class_counts.expand(problem.multipliers, "")
    margins = (np.diag(logits) * delta)[:, None] - logits * delta[None, :]
    margins = margins / problem.class_counts.expand(problem.margins, "")[:, None]
    smallest = margins[~np.eye(len(logits), dtype=bool)].min()
    return logits / smallest if smallest > 0 else None


def cost(problem, logits):
    return np.linalg.norm(np.sqrt(np.asarray(problem.class_counts))[:, None] * logits, "nuc")


class TestSolution:
    @for_each("modified", [False, True])
    @for_each("K", [slow(2), 3, 7, slow(12)])
    def test_it_is_certified_and_the_closed_form(self, K, modified):
        rng = np.random.default_rng([K, modified])
        for _ in range(5):
            solution = ufm.solve_hard_margin(drawn(rng, K, modified))
            assert solution.status is Status.CONVERGED
            assert solution.holds(1e-11)
            assert solution.relative_gap >= 0
            errors = compare_with_seli(solution)
            assert errors.value < 1e-11
            assert max(errors) < 1e-7

    @pytest.mark.nightly
    @for_each("K", range(2, 13))
    def test_many_draws(self, K):
        rng = np.random.default_rng(K)
        for index in range(40):
            solution = ufm.solve_hard_margin(drawn(rng, K, index % 2 == 0))
            assert solution.holds(1e-11)
            assert max(compare_with_seli(solution)) < 1e-7

    @for_each(
        ("sizes", "counts"),
        [
            ((2, 3), (20.0, 2.0)),
            ((500_000, 500_000), (100.0, 1.0)),
            ((999_999, 1), (1.0, 50.0)),
            ((1, 999_999), (1e4, 1.0)),
        ],
    )
    def test_steps_of_any_size(self, sizes, counts):
        (kA, kB), (nA, nB) = sizes, counts
        solution = ufm.solve_hard_margin(ufm.HardMargin(ufm.ClassGroups(counts, sizes=sizes)))
        assert solution.holds(1e-11)
        spread = math.sqrt((kB * nA + kA * nB) / (kA + kB))
        np.testing.assert_allclose(
            solution.value, (kA - 1) * nA**0.5 + (kB - 1) * nB**0.5 + spread, rtol=1e-11
        )
        with np.errstate(all="raise"):
            np.testing.assert_allclose(solution.blocks.logits.own, 1 - 1 / (kA + kB), rtol=1e-9)
        if kA + kB > 20_000:
            with pytest.raises(ValueError, match="the block answers"):
                _ = solution.logits

    def test_a_balanced_problem_is_one_group(self):
        solution = ufm.solve_hard_margin(
            ufm.HardMargin(ufm.ClassGroups.balanced(10**6, 4.0), multipliers=3.0, margins=6.0)
        )
        assert solution.blocks.logits.between.shape == (1, 1)
        np.testing.assert_allclose(solution.value, 2 * 2 * (10**6 - 1), rtol=1e-11)

    def test_strong_duality_and_what_the_answers_mean(self):
        problem = drawn(np.random.default_rng(5), 7)
        solution = ufm.solve_hard_margin(problem)
        K, delta, gamma = 7, problem.multipliers, problem.margins
        logits, multipliers = solution.logits, solution.multipliers
        margins = (delta * np.diag(logits))[:, None] - delta[None, :] * logits
        np.testing.assert_allclose(
            margins[~np.eye(K, dtype=bool)], np.repeat(gamma, K - 1), rtol=1e-9
        )
        assert np.all(np.diag(multipliers) == 0)
        np.testing.assert_allclose(gamma @ multipliers.sum(axis=1), solution.value, rtol=1e-11)
        slope = np.diag(delta * multipliers.sum(axis=1)) - multipliers * delta[None, :]
        scaled = slope / np.sqrt(np.asarray(problem.class_counts))[:, None]
        np.testing.assert_allclose(np.linalg.norm(scaled, 2), 1, rtol=1e-11)
        np.testing.assert_allclose(
            scaled, seli(problem.class_counts, multipliers=delta, margins=gamma).dual, atol=1e-9
        )
        assert np.array_equal(solution.support, ~np.eye(K, dtype=bool))
        np.testing.assert_allclose(solution.smallest_margin, 1, atol=1e-12)
        # The Gram matrices are those of balanced factors.
        np.testing.assert_allclose(np.trace(solution.weight_gram), solution.value, rtol=1e-11)
        np.testing.assert_allclose(
            np.asarray(problem.class_counts) @ np.diag(solution.feature_gram),
            solution.value,
            rtol=1e-11,
        )

    def test_groups_are_found_in_any_order(self):
        grouped = ufm.solve_hard_margin(
            ufm.HardMargin(ufm.ClassGroups((9.0, 4.0, 9.0), sizes=(2, 1, 1)), margins=(1, 2, 1))
        )
        single = ufm.solve_hard_margin(ufm.HardMargin((4.0, 9.0, 9.0, 9.0), margins=(2, 1, 1, 1)))
        assert list(grouped.groups) == [0, 0, 1, 0]
        assert np.array_equal(grouped.support, [[True, True], [True, False]])
        order = [2, 0, 1, 3]
        np.testing.assert_allclose(single.logits, grouped.logits[np.ix_(order, order)], atol=1e-11)
        split = ufm.solve_hard_margin(
            ufm.HardMargin(ufm.ClassGroups((9.0, 4.0), sizes=(2, 2)), multipliers=(1, 1, 2, 1))
        )
        assert list(split.groups) == [0, 0, 1, 2]
        assert max(compare_with_seli(split)) < 1e-9

    def test_scales(self):
        base = ufm.solve_hard_margin(drawn(np.random.default_rng(0), 3))
        problem = base.problem
        scaled = ufm.HardMargin(
            9 * problem.class_counts.counts, problem.multipliers * 1e5, problem.margins * 1e-3
        )
        np.testing.assert_allclose(
            ufm.solve_hard_margin(scaled).value, base.value * 3e-8, rtol=1e-11
        )

    def test_too_few_steps_are_told(self):
        solution = ufm.solve_hard_margin(FOUR, max_steps=3)
        assert solution.status is Status.MAX_STEPS
        assert not solution.holds()
        assert solution.lower_bound <= seli((10.0, 10.0, 1.0, 1.0)).value <= solution.value

    @pytest.mark.nightly
    def test_thirty_two_groups(self):
        solution = ufm.solve_hard_margin(drawn(np.random.default_rng(1), 32))
        assert solution.holds(1e-11)
        assert max(compare_with_seli(solution)) < 1e-9

    @pytest.mark.nightly
    @pytest.mark.usefixtures("float64")
    def test_the_core_can_be_mapped(self):
        rng = np.random.default_rng(3)
        problems = [drawn(rng, 3) for _ in range(4)]
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves), *(margin_groups(problem)[0] for problem in problems)
        )
        found = jax.jit(jax.vmap(certified_margins))(stacked)[1]
        assert np.all(found.relative_gap <= 1e-11)
        single = [ufm.solve_hard_margin(problem).value for problem in problems]
        np.testing.assert_allclose(found.value, single, rtol=1e-12)

    def test_the_precision_of_the_process_does_not_matter(self, process_x64):
        solution = ufm.solve_hard_margin(FOUR)
        assert solution.holds(1e-11)
        assert {leaf.dtype for leaf in jax.tree.leaves(solution.blocks)} == {np.dtype(np.float64)}


@for_each("seed", range(3))
def test_a_conic_solver_agrees(seed):
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rng = np.random.default_rng(seed)
    K = (3, 4, 5)[seed]
    counts, delta, gamma = (
        10 ** rng.uniform(0, 2, K),
        2 ** rng.uniform(-1, 1, K),
        2 ** rng.uniform(-1, 1, K),
    )
    # W and class means, M = D^{1/2} Z: the least half trace of a psd matrix [[X, M], [M^T, V]].
    lift = cp.Variable((2 * K, 2 * K), PSD=True)
    logits = np.diag(counts**-0.5) @ lift[:K, K:]
    constraints = [
        delta[y] * logits[y, y] - delta[c] * logits[y, c] >= gamma[y]
        for y in range(K)
        for c in range(K)
        if c != y
    ]
    program = cp.Problem(cp.Minimize(cp.trace(lift) / 2), constraints)
    program.solve(solver="CLARABEL")
    solution = ufm.solve_hard_margin(ufm.HardMargin(counts, delta, gamma))
    np.testing.assert_allclose(program.value, solution.value, rtol=1e-6)
    np.testing.assert_allclose(
        logits.value, solution.logits, atol=1e-3 * np.abs(solution.logits).max()
    )


def test_factors_reach_the_value_at_one_dimension_less_than_classes():
    problem = drawn(np.random.default_rng(8), 3)
    solution = ufm.solve_hard_margin(problem)
    roots = np.sqrt(np.asarray(problem.class_counts))
    U, S, Vt = np.linalg.svd(roots[:, None] * solution.logits)
    W, M = (Vt.T * np.sqrt(S))[:, :2], (U * np.sqrt(S))[:, :2] / roots[:, None]
    np.testing.assert_allclose(M @ W.T, solution.logits, atol=1e-9)
    half = np.sum(W**2) / 2 + np.sum((roots[:, None] * M) ** 2) / 2
    np.testing.assert_allclose(half, solution.value, rtol=1e-9)


class TestCertificate:
    def test_the_closed_form_is_certified_without_a_solve(self):
        problem = drawn(np.random.default_rng(2), 40)
        exact = seli(problem.class_counts, multipliers=problem.multipliers, margins=problem.margins)
        assert certify_hard_margin(problem, exact.logits).holds(1e-10)

    def test_feasible_and_not_optimal(self):
        problem, rng = drawn(np.random.default_rng(4), 5), np.random.default_rng(0)
        solution = ufm.solve_hard_margin(problem)
        for size in (1e-3, 1e-2, 0.1):
            candidate = feasible(
                problem,
                solution.logits + size * rng.normal(size=(5, 5)) * np.abs(solution.logits).min(),
            )
            evidence = certify_hard_margin(problem, candidate)
            assert evidence.lower_bound <= solution.value
            np.testing.assert_allclose(evidence.value, cost(problem, candidate), rtol=1e-10)
            assert not evidence.holds()
            # Its own bound is no better than that of the solution's multipliers.
            assert certify_hard_margin(problem, candidate, solution.multipliers).relative_gap > 1e-6

    @for_each(
        ("how", "spoilt"),
        [
            ("too small", lambda z: 0.999 * z),
            ("reversed", lambda z: -z),
            ("other margins", lambda z: z.T + np.eye(4)[::-1]),
            ("zero", lambda z: 0 * z),
            ("huge", lambda z: 1e200 * z),
            ("nan", lambda z: z * np.nan),
            ("infinite", lambda z: np.where(np.eye(4) > 0, np.inf, z)),
            ("shifted", lambda z: z + 0.01 * np.ones((4, 4))),
        ],
    )
    def test_no(self, how, spoilt):
        solution = ufm.solve_hard_margin(FOUR)
        logits = spoilt(solution.logits)
        for multipliers in (None, solution.multipliers):
            assert not certify_hard_margin(FOUR, logits, multipliers).holds(1e-6)

    def test_solutions_of_other_problems(self):
        for other in (
            ufm.HardMargin((10.0, 10.0, 1.0, 1.0), margins=(1, 1, 1, 0.9)),
            ufm.HardMargin((10.0, 10.0, 1.0, 1.0), multipliers=(1, 1, 1, 1.1)),
        ):
            assert not certify_hard_margin(FOUR, ufm.solve_hard_margin(other).logits).holds(1e-6)

    def test_any_multipliers_give_a_bound(self):
        rng = np.random.default_rng(6)
        problem = drawn(rng, 4)
        best = ufm.solve_hard_margin(problem)
        for scale in (1e-100, 1.0, 1e100):
            for _ in range(10):
                evidence = certify_hard_margin(
                    problem, best.logits, scale * rng.normal(size=(4, 4))
                )
                assert 0 <= evidence.lower_bound <= best.value
        for bad in (np.nan, np.inf, -1.0, 0.0):
            evidence = certify_hard_margin(problem, best.logits, np.full((4, 4), bad))
            assert evidence.lower_bound == 0
            assert not evidence.holds(1e9)

    def test_blocks_and_matrices_agree(self):
        solution = ufm.solve_hard_margin(FOUR)
        blocks = certify_hard_margin(FOUR, solution.blocks.logits)
        dense = certify_hard_margin(FOUR, solution.logits)
        np.testing.assert_allclose(
            [blocks.value, blocks.lower_bound], [dense.value, dense.lower_bound], rtol=1e-12
        )
        with pytest.raises(
            ValueError, match="`logits` must be over the 2 groups of the problem, got 1"
        ):
            certify_hard_margin(FOUR, Blocks(np.ones(1), np.ones((1, 1)), np.full(1, 4.0)))
        with pytest.raises(ValueError, match=r"`logits` must be of shape \(4, 4\), got \(2, 2\)"):
            certify_hard_margin(FOUR, np.ones((2, 2)))


def test_margins_determine_logits():
    rng = np.random.default_rng(1)
    problem = ufm.HardMargin(
        ufm.ClassGroups((5.0, 2.0, 3.0), sizes=(3, 1, 2)), multipliers=(1.0, 0.5, 3.0)
    )
    form, groups = margin_groups(problem)
    wanted = rng.normal(size=(3, 3))
    with double_precision():
        logits = logits_of(form, wanted).dense(groups)
    delta = problem.class_counts.expand(problem.multipliers, "")
    found = (delta * np.diag(logits))[:, None] - delta[None, :] * logits
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(found[off], wanted[np.ix_(groups, groups)][off], atol=1e-14)
    np.testing.assert_allclose(logits @ (1 / delta), 0, atol=1e-14)


@pytest.fixture
def rank_promotion():
    """Problems with batch axes mix leaves with and without the axes of one problem."""
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


@pytest.mark.usefixtures("rank_promotion")
class TestApproach:
    @pytest.mark.nightly
    def test_the_published_trend(self):
        found = approach_to_seli((10.0, 10.0, 1.0, 1.0), (1e-2, 1e-3, 1e-4, 1e-6))
        np.testing.assert_allclose(found.cosine[:3], [0.9951, 0.9971, 0.9981], atol=5e-5)
        assert np.all(found.status == Status.CONVERGED)
        assert np.all(np.abs(found.relative_gap) < 1e-10)
        # Towards the limit, with an error of order 1 / log.
        short = 1 - found.scaled_angle / found.limit
        assert np.all(short > 0)
        assert np.all(np.diff(short) < 0)
        np.testing.assert_allclose(short[-1] * -np.log(1e-6), short[-2] * -np.log(1e-4), rtol=0.2)

    @pytest.mark.nightly
    def test_the_limit_is_that_of_the_corrected_margins(self):
        counts, ntau = (30.0, 30.0, 30.0, 2.0, 2.0), 1e-300
        total = sum(counts)
        problem = ufm.Problem(
            class_counts=counts,
            feature_dim=5,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(weights=ntau / total, features=ntau / total),
        )
        limit = approach_to_seli(counts, 1e-2).limit
        np.testing.assert_allclose(
            ufm.theory.seli_angle(problem) * -math.log(ntau), limit, rtol=0.01
        )

    @pytest.mark.slow
    def test_a_million_classes(self):
        found = approach_to_seli(ufm.ClassGroups((100.0, 1.0), sizes=(500_000, 500_000)), 1e-3)
        assert found.cosine[0] > 0.99
        assert abs(found.relative_gap[0]) < 1e-9

    @for_each("decays", [0.0, -1.0, 1.0, np.nan, 1e-12, [[0.01]]])
    def test_decays_out_of_range_are_refused(self, decays):
        with pytest.raises(ValueError, match="`decays` must be N tau"):
            approach_to_seli((2.0, 1.0), decays)


class TestInput:
    @for_each(
        ("arguments", "message"),
        [
            ({"margins": 0.0}, "`margins` must be positive and finite, got 0.0"),
            (
                {"multipliers": (1.0, -1.0, 1.0)},
                "`multipliers` must be positive and finite, got -1.0",
            ),
            ({"margins": np.inf}, "`margins` must be positive and finite, got inf"),
            (
                {"margins": (1.0, 2.0)},
                r"`margins` must be one number, one per group \(3\) or one per class \(3\); got "
                r"shape \(2,\)",
            ),
            ({"margins": "one"}, "`margins` must be numbers, .* got 'one'"),
            ({"class_counts": (3.0, 0.0)}, "`class_counts` must be positive and finite"),
            ({"class_counts": "abc"}, "`class_counts` must be a sequence of numbers"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ufm.HardMargin(**{"class_counts": (3.0, 2.0, 1.0), **arguments})

    def test_what_is_not_a_problem_is_refused(self):
        with pytest.raises(ValueError, match=r"`problem` must be a ufm\.HardMargin"):
            ufm.solve_hard_margin((3.0, 1.0))

    def test_too_many_groups_are_refused(self):
        with pytest.raises(ValueError, match="at most 64 are allowed"):
            ufm.solve_hard_margin(ufm.HardMargin(np.arange(1.0, 100.0)))
