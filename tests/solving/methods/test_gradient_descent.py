from typing import Any

import jax
import numpy as np
import optax
import plain
import pytest
from plain import CASES, K, N, a_problem, random_parameters
from tables import for_each, slow

import ufm
from ufm.problems import Parameters, labels

COUNTS = (5, 3, 2)
LABELS = np.repeat(np.arange(K), COUNTS)
STEPS, EVERY = 1200, 400


def problem_of_samples(**changes: Any) -> ufm.Problem:
    """Strong feature decay, so that the differences between the samples of a class die out soon."""
    return a_problem(**({"regularizer": ufm.WeightDecay(weights=0.004, features=0.05)} | changes))


def slopes(problem: ufm.Problem, point: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the mean cross-entropy with weight decay, by hand."""
    (W,), H = point.weights, point.features
    Z = H @ W.T
    P = np.exp(Z - Z.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    G = (P - np.eye(K)[LABELS]) / N
    penalty = problem.regularizer
    return G.T @ H + float(penalty.weights) * W, G @ W + float(penalty.features) * H


def by_hand(
    problem: ufm.Problem, point: Parameters, rate: float, momentum: float, steps: int
) -> list[Parameters]:
    """Heavy-ball descent v <- momentum v + gradient, x <- x - rate v, all iterates."""
    (W,), H = point.weights, point.features
    v_W, v_H, path = 0.0, 0.0, [point]
    for _ in range(steps):
        g_W, g_H = slopes(problem, path[-1])
        v_W, v_H = momentum * v_W + g_W, momentum * v_H + g_H
        W, H = W - rate * v_W, H - rate * v_H
        path.append(Parameters((W,), H))
    return path


def described(problem: ufm.Problem, rate: float, seed: int = 0) -> tuple[Parameters, ufm.Solution]:
    start = random_parameters(problem, rows=N, seed=seed, scale=0.3)
    solution = ufm.solve(
        problem,
        method=ufm.GradientDescent(rate),
        resolution="samples",
        initial=start,
        max_steps=STEPS,
        record_every=EVERY,
    )
    return start, solution


def test_follows_the_papers_iteration_and_records_it() -> None:
    problem, rate = problem_of_samples(), 0.1
    start, solution = described(problem, rate)
    path = by_hand(problem, start, rate, 0.0, STEPS)
    np.testing.assert_allclose(solution.weights[0], path[-1].weights[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(solution.features, path[-1].features, rtol=1e-9, atol=1e-12)
    trajectory = solution.trajectory
    assert trajectory is not None
    np.testing.assert_array_equal(trajectory.step, [0, 400, 800, 1200])
    for row, step in enumerate(trajectory.step):
        point = path[step]
        expected = plain.objective(problem, CASES[0].formula, point, LABELS)
        assert trajectory.objective[row] == pytest.approx(expected, rel=1e-12)
        measured = ufm.metrics.neural_collapse(point.features, LABELS, point.weights[0])
        assert trajectory.nc1[row] == pytest.approx(measured.nc1.pinv, rel=1e-6, abs=1e-14)
        assert trajectory.nc2_features[row] == pytest.approx(
            measured.nc2_features.etf_distance, rel=1e-8
        )
        assert trajectory.nc2_weights_frame[row] == pytest.approx(
            measured.nc2_weights.orthogonal_distance, rel=1e-8
        )
        assert trajectory.nc3[row] == pytest.approx(measured.nc3.squared_distance, rel=1e-8)
        assert trajectory.nc4[row] == measured.nc4.mismatch
    assert trajectory.gradient_norm[-1] == solution.relative_gradient
    assert trajectory.objective[-1] == pytest.approx(solution.objective, rel=1e-14)


def test_neural_collapse_happens_along_the_way() -> None:
    _, solution = described(problem_of_samples(), rate=0.6, seed=1)
    trajectory = solution.trajectory
    assert trajectory is not None
    assert trajectory.nc1[0] > 0.01
    assert trajectory.nc1[-1] < 1e-10
    assert np.all(np.diff(trajectory.objective) < 0)
    assert np.all(np.diff(trajectory.step) > 0)
    for k in range(K):
        rows = solution.features[labels(solution.problem.class_counts) == k]
        np.testing.assert_allclose(rows, np.broadcast_to(rows.mean(axis=0), rows.shape), atol=1e-6)


@pytest.mark.slow
def test_momentum_is_the_heavy_ball() -> None:
    problem, steps = problem_of_samples(), 200
    start = random_parameters(problem, rows=N, scale=0.3)
    solution = ufm.solve(
        problem,
        method=ufm.GradientDescent(0.05, momentum=0.8),
        resolution="samples",
        initial=start,
        max_steps=steps,
    )
    end = by_hand(problem, start, 0.05, 0.8, steps)[-1]
    np.testing.assert_allclose(solution.weights[0], end.weights[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(solution.features, end.features, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (ufm.GradientDescent(0.3, momentum=0.8), {}),
        pytest.param(
            ufm.GradientDescent(optimizer=optax.adam(0.01)),
            {"nonnegative_features": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ufm.GradientDescent(0.5),
            {"regularizer": ufm.NormBall(weights=1.0, features=0.5)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["momentum", "adam", "ball"],
)
def test_a_class_moves_as_its_samples_do(method: Any, changes: dict[str, Any]) -> None:
    problem = problem_of_samples(use_bias=True, **changes)
    start = random_parameters(problem, rows=K, scale=0.3)
    if problem.nonnegative_features:
        start = start._replace(features=np.abs(start.features))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes step counts
        classes, samples = (
            ufm.solve(
                problem,
                method=method,
                resolution=resolution,
                initial=start._replace(features=start.features[rows]),
                max_steps=60,
                record_every=20,
            )
            for resolution, rows in (("classes", np.arange(K)), ("samples", LABELS))
        )
    assert classes.steps == samples.steps == 60
    np.testing.assert_allclose(classes.weights[0], samples.weights[0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(classes.sample_features, samples.features, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(classes.bias, samples.bias, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(
        classes.trajectory.objective, samples.trajectory.objective, rtol=1e-12
    )


def test_any_optax_optimiser_with_a_schedule() -> None:
    problem = a_problem(loss=ufm.SquaredError())
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 3000))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes step counts
        solution = ufm.solve(
            problem, method=ufm.GradientDescent(optimizer=optimizer), max_steps=3000
        )
    assert solution.objective == pytest.approx(plain.squared_error_minimum(problem), rel=1e-9)
    assert solution.steps > 100


def test_nonnegative_features_are_exactly_so() -> None:
    problem = a_problem(nonnegative_features=True, loss=ufm.SquaredError(), feature_dim=6)
    solution = ufm.solve(problem, method=ufm.GradientDescent(0.5, momentum=0.9), max_steps=20_000)
    assert np.all(solution.features >= 0)
    assert np.any(solution.features == 0)
    # One-hot targets are orthogonal: the bound costs nothing.
    assert solution.objective == pytest.approx(plain.squared_error_minimum(problem), rel=1e-8)


@for_each("dtype", ["float64", slow("float32")])
def test_norm_balls_are_met(dtype: Any) -> None:
    problem = a_problem(class_counts=(4, 4, 4), regularizer=ufm.NormBall(weights=1.0, features=2.0))
    solution = ufm.solve(problem, method=ufm.GradientDescent(0.5), max_steps=5000, dtype=dtype)
    rounding = 1e-12 if dtype == "float64" else 1e-6
    assert np.mean(np.sum(solution.weights[0] ** 2, axis=1)) <= 1 + rounding
    assert np.mean(np.sum(solution.features**2, axis=1)) <= 2 * (1 + rounding)
    # Fang et al. (2021): a simplex ETF with margin K sqrt(E_W E_H) / (K - 1).
    margin = K * np.sqrt(2.0) / (K - 1)
    assert solution.objective == pytest.approx(
        np.log1p((K - 1) * np.exp(-margin)), rel=max(rounding, 1e-9)
    )
    assert solution.objective.__class__ is float
    assert solution.features.dtype == np.float64


BAD = [
    ({"learning_rate": 0}, "`learning_rate` must be a positive finite number"),
    ({"learning_rate": -1}, "`learning_rate` must be a positive finite number"),
    ({"learning_rate": np.nan}, "`learning_rate` must be a positive finite number"),
    ({"learning_rate": np.inf}, "`learning_rate` must be a positive finite number"),
    ({"learning_rate": (0.1, 0.2)}, "`learning_rate` must be a positive finite number"),
    (
        {"learning_rate": 0.1, "momentum": 1.0},
        "`momentum` must be a finite number >= 0 and below 1",
    ),
    ({"learning_rate": 0.1, "momentum": -0.1}, "`momentum` must be"),
    ({"init_scale": 0}, "`init_scale` must be a positive finite number"),
    ({"optimizer": "adam"}, "`optimizer` must be an optax gradient transformation, got 'adam'"),
    (
        {"optimizer": optax.sgd(0.1), "learning_rate": 0.1},
        "give either `optimizer` or `learning_rate`",
    ),
    ({"optimizer": optax.sgd(0.1), "momentum": 0.1}, "give either `optimizer` or `learning_rate`"),
]


@for_each(("arguments", "message"), BAD)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ufm.GradientDescent(**arguments)
