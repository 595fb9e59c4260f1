"""Lower bounds of deep models, which are never above an objective value.

They are exact from singular values, and a bracket otherwise.
"""

import importlib
from typing import Any

import mpmath
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.certificates import OneLayerBound, has_singular_value_form, one_layer, singular_value_bound
from ufm.certificates.deep import bracket, mode_bound
from ufm.problems import Parameters, Problem


def deep(**changes: Any) -> Problem:
    fields: dict[str, Any] = {
        "class_counts": (5.0, 3.0, 2.0),
        "feature_dim": 4,
        "hidden_dims": (4,),
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(2e-2, 5e-3),
    }
    return Problem(**{**fields, **changes})


def random_parameters(problem: Problem, rng: np.random.Generator, size: float) -> Parameters:
    dims, K = problem.layer_dims, problem.num_classes
    weights = tuple(
        size * rng.normal(size=shape) for shape in zip(dims[1:], dims[:-1], strict=True)
    )
    features = size * rng.normal(size=(K, dims[0]))
    if problem.nonnegative_features:
        features = np.abs(features)
    return Parameters(weights, features, size * rng.normal(size=K) if problem.use_bias else None)


# One mode


@pytest.mark.nightly
def test_a_mode_in_fifty_digits() -> None:
    rng = np.random.default_rng(0)
    with mpmath.workdps(50):
        for _ in range(100):
            target, samples, q = (
                10 ** rng.uniform(-1, 2),
                10 ** rng.uniform(0, 4),
                int(rng.integers(3, 8)),
            )
            power = mpmath.mpf(2) / q
            # Around the threshold, where the two minima trade places, and far from it.
            penalty = 10 ** rng.uniform(-6, 1.5) * target ** float(2 - power) / samples
            bound, _ = mode_bound(target, samples, penalty, 2 / q)

            def value(
                s: Any, t: float = target, N: float = samples, c: float = penalty, p: Any = power
            ) -> Any:
                return (t - s) ** 2 / (2 * mpmath.mpf(N)) + c * mpmath.mpf(s) ** p

            grid = [value(mpmath.mpf(target) * k / 400) for k in range(401)]
            best = min(range(401), key=lambda k: grid[k])
            lowest = grid[best]
            if best > 0:
                low, high = (mpmath.mpf(target) * (best + step) / 400 for step in (-1, 1))
                for _ in range(120):
                    left, right = low + (high - low) / 3, high - (high - low) / 3
                    low, high = (low, right) if value(left) < value(right) else (left, high)
                lowest = min(lowest, value(low))
            assert mpmath.mpf(bound) <= lowest
            assert mpmath.mpf(bound) >= lowest * (1 - mpmath.mpf(10) ** -12)


# Singular values


def test_which_problems_have_the_form() -> None:
    assert has_singular_value_form(deep())
    assert has_singular_value_form(deep(use_bias=True))
    assert has_singular_value_form(deep(nonnegative_features=True))
    for changes in (
        {"hidden_dims": ()},
        {"activation": "relu"},
        {"loss": ufm.CrossEntropy()},
        {"loss": ufm.ClassWeighted(1.0, loss=ufm.SquaredError())},
        {"regularizer": ufm.NormBall(1.0, 1.0)},
        {"use_bias": True, "regularizer": ufm.WeightDecay(2e-2, 5e-3, bias=1e-3)},
        {"use_bias": True, "nonnegative_features": True},
    ):
        assert not has_singular_value_form(deep(**changes))


@pytest.mark.nightly
def test_no_point_lies_below_and_the_solver_meets_it() -> None:
    rng = np.random.default_rng(1)
    for use_bias in (False, True):
        for counts in ((5.0, 3.0, 2.0), (700.0, 20.0, 1.5)):
            problem = deep(class_counts=counts, use_bias=use_bias)
            solution = ufm.solve(problem).check()
            assert solution.certificate.tight
            assert solution.certificate.holds
            assert "singular values" in solution.certificate.method
            bound = singular_value_bound(problem)
            assert solution.certificate.lower_bound == pytest.approx(bound, rel=1e-12)
            for size in 10 ** rng.uniform(-2, 1, 20):
                certificate = ufm.certify(problem, random_parameters(problem, rng, size))
                assert certificate.lower_bound <= certificate.objective
                assert not certificate.holds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "penalty"), [(4, 0.05), pytest.param(2, 2.0, marks=pytest.mark.nightly)]
)
def test_a_penalised_bias_of_balanced_classes_has_the_form(width: int, penalty: float) -> None:
    rng = np.random.default_rng(2)
    regularizer = ufm.WeightDecay(2e-2, 5e-3, bias=penalty)
    problem = deep(
        class_counts=(4.0,) * 3, use_bias=True, hidden_dims=(width,), regularizer=regularizer
    )
    assert has_singular_value_form(problem)
    assert not has_singular_value_form(deep(use_bias=True, regularizer=regularizer))
    solution = ufm.solve(problem).check()
    assert "singular values" in solution.certificate.method
    assert solution.certificate.holds
    for size in 10 ** rng.uniform(-2, 1, 10):
        certificate = ufm.certify(problem, random_parameters(problem, rng, size))
        assert certificate.lower_bound <= certificate.objective
        assert not certificate.holds


def test_minima_that_are_not_global_are_refused() -> None:
    problem = deep()
    minimum = ufm.solve(problem)
    zero = Parameters(
        tuple(np.zeros_like(matrix) for matrix in minimum.weights),
        np.zeros_like(minimum.features),
        minimum.bias,
    )
    refused = ufm.certify(problem, zero)  # a local minimum, as at every depth
    assert not refused.holds
    assert refused.gap > 0.01
    with pytest.raises(ufm.SolveError, match="certified"):
        ufm.solve(problem, initial=zero).check()
    # Above the threshold it is the global one.
    strong = deep(regularizer=ufm.WeightDecay(0.5, 0.5))
    assert ufm.certify(strong, zero).holds


def test_narrow_layers_keep_the_largest_modes() -> None:
    narrow = ufm.solve(deep(hidden_dims=(2,))).check()
    wide = ufm.solve(deep()).check()
    assert narrow.objective > wide.objective + 1e-3
    assert narrow.certificate.relative_gap < 1e-12


@pytest.mark.nightly
def test_random_problems_are_all_certified() -> None:
    rng = np.random.default_rng(2)
    for index in range(60):
        K, num_layers, use_bias = (
            (2, 3, 5)[index % 3],
            (2, 3, 4)[index // 3 % 3],
            bool(index // 9 % 2),
        )
        counts, q = 10 ** rng.uniform(0, 3, K), num_layers + 1
        # Penalties from far below the threshold of the largest class to above it, unequal.
        strength = 10 ** rng.uniform(-4, 0.3) * counts.max() / (num_layers * counts.sum())
        decays = np.exp(rng.normal(size=q))
        decays *= (strength**num_layers / counts.sum() / np.prod(decays)) ** (1 / q)
        problem = Problem(
            class_counts=counts,
            feature_dim=K,
            hidden_dims=(K,) * (num_layers - 1),
            loss=ufm.SquaredError(),
            use_bias=use_bias,
            regularizer=ufm.WeightDecay(decays[:-1], decays[-1]),
        )
        assert ufm.solve(problem, key=index).check().certificate.holds


def test_another_batch_of_starts_where_the_first_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    # All starts of a batch in the basin of the origin: no batch finds the minimum, and the solve
    # says so.
    monkeypatch.setattr(
        importlib.import_module("ufm.solving.starts"),
        "start_scales",
        lambda restarts, kinks: np.full(restarts, 1e-4),
    )
    solution = ufm.solve(deep())
    assert solution.restarts.objective.shape == (40,)
    assert not solution.certificate.holds
    with pytest.raises(ufm.SolveError, match="certified"):
        solution.check()


# The bracket


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": ufm.CrossEntropy(), "use_bias": True},
        pytest.param({"activation": "relu"}, marks=pytest.mark.nightly),
        pytest.param(
            {
                "activation": "relu",
                "loss": ufm.CrossEntropy(),
                "regularizer": ufm.NormBall(1.0, 2.0),
            },
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"loss": ufm.LabelSmoothing(0.1), "hidden_dims": (4, 4)}, marks=pytest.mark.nightly
        ),
        pytest.param(
            {"use_bias": True, "regularizer": ufm.WeightDecay(2e-2, 5e-3, bias=0.1)},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"activation": "relu", "nonnegative_features": True}, marks=pytest.mark.nightly
        ),
    ],
    ids=["cross-entropy", "relu", "ball", "smoothing", "penalised-bias", "nonnegative"],
)
def test_no_point_lies_below_the_bracket(changes: dict[str, Any]) -> None:
    problem, rng = deep(**changes), np.random.default_rng(3)
    solution = ufm.solve(problem)
    certificate = solution.certificate
    assert "bracket" in certificate.method
    assert not certificate.tight
    assert 0 < certificate.lower_bound <= certificate.objective
    solution.check()  # a gap that stays open does not count against the candidate
    for size in 10 ** rng.uniform(-1, 0.5, 5):
        candidate = random_parameters(problem, rng, size)
        other = ufm.certify(problem, candidate)
        assert other.lower_bound <= solution.objective
        assert not other.holds


@pytest.mark.nightly
@for_each("activation", ["linear", "relu"])
@for_each("loss", [ufm.CrossEntropy(), ufm.SquaredError()])
def test_two_classes_with_a_bias_are_certified_at_any_depth(activation: str, loss: Any) -> None:
    problem = deep(
        class_counts=(5.0, 1.0),
        hidden_dims=(4, 4),
        loss=loss,
        activation=activation,
        regularizer=ufm.WeightDecay(1e-3, 1e-3),
        use_bias=True,
    )
    certificate = ufm.solve(problem).check().certificate
    if activation == "relu" and isinstance(loss, ufm.SquaredError):
        assert certificate.lower_bound <= certificate.objective
    else:
        assert certificate.holds


@pytest.mark.nightly
def test_the_collapse_is_certified() -> None:
    problem = deep(activation="relu", use_bias=True, regularizer=ufm.WeightDecay(0.3, 0.3))
    solution = ufm.solve(problem).check()
    assert solution.certificate.holds
    assert np.linalg.norm(solution.class_features) < 1e-6


def test_ten_classes_and_four_layers() -> None:
    # The depths and penalties of Sukenik et al. (NeurIPS 2024), whose best known value is 0.0809.
    problem = deep(
        class_counts=(1.0,) * 10,
        feature_dim=10,
        hidden_dims=(10,) * 3,
        activation="relu",
        regularizer=ufm.WeightDecay(4e-3, 4e-3),
    )
    zero = Parameters((np.zeros((10, 10)),) * 4, np.zeros((10, 10)))
    assert 0.0245 < ufm.certify(problem, zero).lower_bound < 0.0255


@pytest.mark.slow
def test_the_bracket_is_never_below_the_infimum_of_the_loss() -> None:
    problem = Problem(
        class_counts=(3, 2),
        feature_dim=2,
        hidden_dims=(2,),
        loss=ufm.LabelSmoothing(0.2),
        regularizer=ufm.WeightDecay(0.1, 0.1),
    )
    infimum = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    found = bracket(problem, 1.0, lambda _: OneLayerBound(-np.inf, 0.0, np.nan), 1e-9)
    assert found == pytest.approx(infimum, rel=1e-13)


def test_the_relaxation_has_the_gauge_of_the_last_layer() -> None:
    assert one_layer(deep(activation="relu"), 0.1).nonnegative_features
    assert not one_layer(deep(nonnegative_features=True), 0.1).nonnegative_features
    tau = one_layer(deep(), 0.1).regularizer
    assert float(np.sqrt(tau.weights * tau.features)) == pytest.approx(0.1)
