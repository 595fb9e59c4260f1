from collections.abc import Callable
from typing import Any

import equinox as eqx
import fifty_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_problems import SOLVED_KINDS, K, Kind, easy_problem, solved
from tables import for_each, slow_but

import ufm
from ufm import certify
from ufm._support import double_precision, rebuilt
from ufm.certificates import Certificate, dual_bound
from ufm.problems import ClassGroups, Parameters, Problem, lifted

PLAIN, GAUGE, BALLS = (
    Kind("cross-entropy"),
    Kind("cross-entropy", use_bias=True, nonnegative=True),
    SOLVED_KINDS[-1],
)

each_solved = for_each("kind", slow_but(SOLVED_KINDS, keep={0, 3}))


def changed(problem: Problem, **changes: Any) -> Problem:
    names = (
        "class_counts",
        "feature_dim",
        "loss",
        "regularizer",
        "use_bias",
        "hidden_dims",
        "nonnegative_features",
    )
    return Problem(**({name: getattr(problem, name) for name in names} | changes))


def scaled(parameters: Parameters, factor: float) -> Parameters:
    return jax.tree.map(lambda leaf: factor * leaf, parameters)


def refused(problem: Problem, parameters: Any) -> Certificate:
    certificate = certify(problem, parameters)
    assert certificate is not None
    assert not certificate.holds
    assert not np.isnan(certificate.lower_bound)
    assert np.isfinite(certificate.scale)
    assert certificate.scale > 0
    return certificate


# What it accepts


@each_solved
def test_it_is_tight_at_the_minimiser(kind: Kind) -> None:
    solution = solved(kind)
    certificate = certify(solution.problem, solution)
    assert certificate.holds
    assert certificate.relative_gap <= 1e-9
    assert certificate.dual_ratio == pytest.approx(1, abs=1e-6)
    assert certificate.objective == pytest.approx(solution.objective, rel=1e-14)
    assert certificate.scale == pytest.approx(certificate.lower_bound)
    assert certificate.method.endswith("norm balls" if kind.ball else "weight decay")
    assert ("non-negative gauge" if kind.nonnegative else "nuclear norm") in certificate.method


@each_solved
def test_its_numbers_are_the_objective_and_the_dual_bound(kind: Kind) -> None:
    solution = solved(kind)
    parameters = fifty_digits.within_balls(solution.problem, scaled(solution.parameters, 0.99))
    certificate = certify(solution.problem, parameters)
    exact = fifty_digits.objective(solution.problem, parameters)
    assert certificate.objective == pytest.approx(float(exact), rel=1e-13)
    assert fifty_digits.number(certificate.lower_bound) <= exact
    if kind == PLAIN:
        with double_precision():
            logits = solution.problem.logits(jax.tree.map(jnp.asarray, parameters))
            bound = eqx.filter_jit(dual_bound)(solution.problem, logits)
        assert certificate.lower_bound == pytest.approx(float(bound.lower_bound), rel=1e-13)
        assert certificate.dual_ratio == pytest.approx(float(bound.ratio), rel=1e-13)


def test_tolerance_decides_what_holds() -> None:
    solution = solved(PLAIN)
    near = scaled(solution.parameters, 1 + 1e-4)
    gap = certify(solution.problem, near).relative_gap
    assert 1e-9 < gap < 1e-2
    assert not certify(solution.problem, near, tolerance=0.9 * gap).holds
    assert certify(solution.problem, near, tolerance=1.1 * gap).holds


def test_features_of_samples_are_certified_as_those_of_their_classes() -> None:
    problem = changed(easy_problem(PLAIN), class_counts=ClassGroups((20.0, 8.0, 3.0)))
    rng = np.random.default_rng(0)
    weights, features = (rng.normal(size=(K, K)),), rng.normal(size=(K, K))
    by_class = certify(problem, Parameters(weights, features))
    samples = lifted(features, problem.class_counts)
    by_sample = certify(problem, Parameters(weights, samples))
    for one, other in zip(by_class, by_sample, strict=True):
        assert one == other if isinstance(one, str) else one == pytest.approx(other, rel=1e-12)
    # Noise of mean zero within the classes raises the objective, and leaves the bound.
    noise = np.array([1.0, -1.0, *np.zeros(29)])[:, None] * rng.normal(size=(1, K))
    scattered = certify(problem, Parameters(weights, samples + noise))
    assert scattered.lower_bound == pytest.approx(by_class.lower_bound, rel=1e-12)
    assert scattered.objective > by_class.objective


@each_solved
def test_single_precision_candidates_are_certified_to_single_precision(kind: Kind) -> None:
    solution = solved(kind)
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), solution.parameters)
    if kind.ball:
        single = jax.tree.map(lambda leaf: leaf * np.float32(1 - 1e-6), single)
    certificate = certify(solution.problem, single)
    assert -1e-12 < certificate.relative_gap < 1e-4
    assert certificate.lower_bound <= solution.objective * (1 + 1e-14)
    assert certify(solution.problem, single, tolerance=1e-3).holds


# What it refuses


@each_solved
def test_perturbed_and_scaled_candidates_are_refused(kind: Kind) -> None:
    solution, rng = solved(kind), np.random.default_rng(1)
    best = solution.objective
    for size in (1e-3, 1e-1, 10.0):
        noisy = jax.tree.map(
            lambda leaf, size=size: leaf + size * rng.uniform(size=leaf.shape), solution.parameters
        )
        assert refused(solution.problem, noisy).lower_bound <= best * (1 + 1e-14)
    for factor in (0.0, 0.5, 0.99, 1.01, 1e3, 1e10, 1e60, 1e100, 1e200, 1e300):
        assert refused(
            solution.problem, scaled(solution.parameters, factor)
        ).lower_bound <= best * (1 + 1e-14)


@for_each("bad", [np.nan, np.inf, -np.inf])
@each_solved
def test_candidates_that_are_not_finite_are_refused(kind: Kind, bad: float) -> None:
    solution = solved(kind)
    weights, features = solution.weights[0].copy(), solution.features.copy()
    weights[1, 0] = bad
    assert (
        refused(
            solution.problem, Parameters((weights,), solution.features, solution.bias)
        ).objective
        == np.inf
    )
    features[0, 1] = bad
    assert (
        refused(solution.problem, Parameters(solution.weights, features, solution.bias)).objective
        == np.inf
    )
    everything = jax.tree.map(lambda leaf: np.full_like(leaf, bad), solution.parameters)
    certificate = refused(solution.problem, everything)
    assert (certificate.objective, certificate.relative_gap) == (np.inf, np.inf)


def test_a_negative_feature_is_infeasible_in_the_non_negative_model() -> None:
    solution = solved(GAUGE)
    features = solution.features.copy()
    features[np.unravel_index(np.argmin(features), features.shape)] = -1e-300
    assert (
        refused(solution.problem, Parameters(solution.weights, features, solution.bias)).objective
        == np.inf
    )


@for_each("block", ["weights", "features"])
def test_outside_the_norm_balls_is_infeasible(block: str) -> None:
    solution = solved(BALLS)
    weights, features, bias = solution.parameters
    outside = Parameters((weights[0] * (1 + 1e-9),), features, bias)
    if block == "features":
        outside = Parameters(weights, features * (1 + 1e-9), bias)
    assert refused(solution.problem, outside).objective == np.inf


WRONG: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "penalty": lambda problem: {"regularizer": ufm.WeightDecay(1.01e-2, 2e-3, bias=1e-2)},
    "counts": lambda problem: {"class_counts": ClassGroups((50.0, 20.0, 8.0))},
    "order of counts": lambda problem: {"class_counts": ClassGroups((20.0, 50.0, 7.5))},
    "loss": lambda problem: {"loss": ufm.LabelSmoothing(0.01)},
    "regularizer": lambda problem: {"regularizer": ufm.NormBall(100.0, 100.0)},
    "sign of features": lambda problem: {"nonnegative_features": True},
}


@for_each("change", WRONG)
def test_the_solution_of_another_problem_is_refused(change: str) -> None:
    solution = solved(PLAIN)
    refused(changed(solution.problem, **WRONG[change](solution.problem)), solution)


def test_the_scale_does_not_grow_with_the_candidate() -> None:
    solution = solved(PLAIN)
    scales = [
        certify(solution.problem, scaled(solution.parameters, 10.0**e)).scale
        for e in range(0, 150, 15)
    ]
    assert max(scales) <= solution.objective * (1 + 1e-14)
    assert min(scales) > 0


def test_an_infinite_objective_never_holds() -> None:
    for lower, scale in (
        (1.0, 1.0),
        (np.inf, np.inf),
        (-np.inf, 1.0),
        (1.0, np.inf),
        (np.nan, np.nan),
    ):
        for objective in (np.inf, np.nan):
            assert not Certificate(objective, lower, scale, np.inf, 1.0, "", True).holds
    assert not Certificate(1.0, np.nan, np.nan, 1e-9, 1.0, "", True).holds
    assert not Certificate(1.0, -np.inf, 1.0, 1e-9, 1.0, "", True).holds
    assert Certificate(1.0, 1.0, 1.0, 1e-9, 1.0, "", True).holds


# Fewer dimensions than the minimiser needs


@for_each("nonnegative", [False, True])
@for_each("dimension", [1, 2])
def test_below_the_rank_the_gap_is_the_price_of_the_dimension(
    dimension: int, nonnegative: bool
) -> None:
    # Squared error without bias separates over classes: with d dimensions the d largest are kept,
    # each as if alone.
    counts = np.array([50.0, 20.0, 7.5])
    decay, total = 5e-3, counts.sum()
    kept = np.sqrt(counts) - total * decay
    assert np.all(kept > 0)
    problem = Problem(
        class_counts=counts,
        feature_dim=dimension,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(decay, decay),
        nonnegative_features=nonnegative,
    )
    roots = np.diag(np.sqrt(kept))[:, :dimension]
    certificate = refused(problem, Parameters((roots,), roots / np.sqrt(counts)[:, None]))
    full = float(fifty_digits.squared_error_minimum(problem))
    values = counts / (2 * total) - ((np.sqrt(counts) - kept) ** 2 / (2 * total) + decay * kept)
    price = float(np.sum(values[dimension:]))
    assert certificate.objective == pytest.approx(full + price, rel=1e-12)
    assert certificate.lower_bound <= full
    assert certificate.gap >= price * (1 - 1e-12)
    assert certificate.dual_ratio > 1


# Misuse, and what has no certificate


@for_each(
    ("parameters", "name"),
    [
        (Parameters((np.ones((K, K + 1)),), np.ones((K, K))), "weights"),
        (Parameters((np.ones((K, K)),) * 2, np.ones((K, K))), "weights"),
        (Parameters((np.ones((K, K)),), np.ones((K, K + 1))), "features"),
        (Parameters((np.ones((K, K)),), np.ones((K + 1, K))), "features"),
        (Parameters((np.ones((K, K)),), np.ones(K)), "features"),
        (Parameters((np.ones((K, K)),), np.ones((K, K)), np.ones(K)), "bias"),
    ],
)
def test_shapes_that_are_not_the_problems_are_named(parameters: Parameters, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        certify(easy_problem(PLAIN), parameters)


def test_a_missing_bias_is_named() -> None:
    with pytest.raises(ValueError, match="`bias` must"):
        certify(solved(GAUGE).problem, solved(GAUGE).parameters._replace(bias=None))


@for_each("hidden_dims", [(), (K,)])
def test_losses_that_are_not_convex_have_no_certificate(hidden_dims: tuple[int, ...]) -> None:
    problem = changed(easy_problem(PLAIN), loss=ufm.Focal(2.0), hidden_dims=hidden_dims)
    matrices = (np.ones((K, K)),) * problem.num_layers
    assert certify(problem, Parameters(matrices, np.ones((K, K)))) is None


def test_it_reads_as_a_statement() -> None:
    certificate = Certificate(1.25, 1.0, 1.0, 1e-9, 1.5, "dual bound", True)
    assert certificate.gap == certificate.relative_gap == 0.25
    assert (
        str(certificate)
        == "optimal value in [1, 1.25], relative gap 0.25: does not hold at 1e-09 (dual bound)"
    )
    assert "gap 0: holds at 1e-09" in str(certificate._replace(objective=1.0))
    assert "0.25: open (the bound need not be tight) at 1e-09" in str(
        certificate._replace(tight=False)
    )


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [pytest.param("classes", marks=pytest.mark.slow), "groups"])
def test_no_bound_is_below_the_infimum_of_the_loss(resolution: Any) -> None:
    # Squared error reaches zero inside these balls: what is left of the objective, and of the
    # bound, is rounding.
    problem = Problem(
        class_counts=[6, 10, 1, 27, 437, 507, 237, 4, 10, 2],
        feature_dim=10,
        loss=ufm.SquaredError(),
        regularizer=ufm.NormBall(36.5887, 0.63248),
        use_bias=True,
    )
    certificate = ufm.solve(problem, resolution=resolution).certificate
    assert certificate.lower_bound == 0
    assert certificate.holds
    # Label smoothing: the entropy of its targets, from any candidate.
    smoothed = rebuilt(
        problem, loss=ufm.LabelSmoothing(0.1), regularizer=ufm.WeightDecay(1e-3, 1e-3)
    )
    infimum = -(0.91 * np.log(0.91) + 9 * 0.01 * np.log(0.01))
    bad = Parameters((np.full((10, 10), 1e3),), np.full((10, 10), -1e3), np.zeros(10))
    assert ufm.certify(smoothed, bad).lower_bound >= infimum * (1 - 1e-13)
