from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from plain import K, N, a_problem, on_device, random_parameters
from tables import for_each

import ufm
from ufm.problems import Problem, Samples, class_samples, samples_of
from ufm.solving.methods import balanced_coordinates as coordinates
from ufm.solving.methods.balanced_coordinates import (
    Point,
    from_parameters,
    reference_norms,
    scales,
    to_parameters,
)

pytestmark = pytest.mark.usefixtures("float64")

PROBLEMS = {
    "one-layer": a_problem(),
    "bias": a_problem(use_bias=True),
    "relu": a_problem(
        hidden_dims=(5,),
        activation="relu",
        use_bias=True,
        regularizer=ufm.WeightDecay(weights=(0.02, 0.3), features=0.005),
    ),
    "deep": a_problem(
        hidden_dims=(5, 6), regularizer=ufm.WeightDecay(weights=(0.02, 3e-4, 7.0), features=1e-6)
    ),
    "non-negative": a_problem(nonnegative_features=True, use_bias=True),
    "balls": a_problem(regularizer=ufm.NormBall(weights=2.0, features=3.0), use_bias=True),
    "deep-balls": a_problem(
        hidden_dims=(5,), regularizer=ufm.NormBall(weights=(2.0, 0.1), features=3.0)
    ),
    "non-negative-balls": a_problem(
        nonnegative_features=True, regularizer=ufm.NormBall(weights=2.0, features=3.0)
    ),
}
DECAYS = {name: p for name, p in PROBLEMS.items() if isinstance(p.regularizer, ufm.WeightDecay)}
BALLS = {name: p for name, p in PROBLEMS.items() if isinstance(p.regularizer, ufm.NormBall)}

each_problem = for_each("problem", PROBLEMS.values())
each_decay = for_each("problem", DECAYS.values())
each_ball = for_each("problem", BALLS.values())
each_resolution = for_each("resolution", ["classes", "samples"])


def columns_at(problem: Problem, resolution: str) -> Samples:
    return samples_of(problem, rows_at(resolution))


def rows_at(resolution: str) -> int:
    return K if resolution == "classes" else N


def random_point(problem: Problem, resolution: str, slack: float = 0.5) -> Point:
    parameters = random_parameters(problem, rows_at(resolution), seed=3)
    ball = isinstance(problem.regularizer, ufm.NormBall)
    return on_device(
        Point(*parameters, slack=np.full(problem.num_layers + 1, slack) if ball else None)
    )


def feasible(problem: Problem, resolution: str) -> Any:
    """Parameters inside all the balls, with features of the right sign."""
    parameters = jax.tree.map(
        lambda block: 0.05 * block, random_parameters(problem, rows_at(resolution))
    )
    if problem.nonnegative_features:
        parameters = parameters._replace(features=np.abs(parameters.features))
    return on_device(parameters)


def factors(problem: Problem, point: Point) -> list[np.ndarray]:
    """V_1, ..., V_L and U."""
    features = np.asarray(point.features)
    return [
        *map(np.asarray, point.weights),
        features**2 if problem.nonnegative_features else features,
    ]


@each_problem
@each_resolution
def test_round_trip(problem: Problem, resolution: str) -> None:
    columns = columns_at(problem, resolution)
    parameters = feasible(problem, resolution)
    back = to_parameters(problem, columns, from_parameters(problem, columns, parameters))
    for block, expected in zip(jax.tree.leaves(back), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(block, expected, rtol=1e-13)


@each_decay
@each_resolution
def test_all_penalties_become_equal(problem: Problem, resolution: str) -> None:
    columns, point = columns_at(problem, resolution), random_point(problem, resolution)
    penalties = [*problem.regularizer.per_layer(problem.num_layers), problem.regularizer.features]
    mean = np.prod(penalties) ** (1 / len(penalties))
    squares = sum(np.sum(block**2) for block in factors(problem, point))
    parameters = to_parameters(problem, columns, point)._replace(bias=None)
    np.testing.assert_allclose(problem.penalty(parameters, columns), mean / 2 * squares, rtol=1e-13)


@each_decay
@each_resolution
def test_logits_are_those_of_the_balanced_factors(problem: Problem, resolution: str) -> None:
    columns, point = columns_at(problem, resolution), random_point(problem, resolution)
    parameters = to_parameters(problem, columns, point)
    *weights, features = factors(problem, point)
    balanced = ufm.Parameters(
        tuple(weights), features / np.sqrt(columns.counts)[:, None], parameters.bias
    )
    np.testing.assert_allclose(
        problem.logits(parameters), plain.logits(problem, balanced), rtol=1e-11
    )


@each_ball
@each_resolution
@for_each("slack", [0.0, 1e-3, 0.5, 100.0])
def test_norm_balls_are_met_everywhere(problem: Problem, resolution: str, slack: float) -> None:
    columns, point = columns_at(problem, resolution), random_point(problem, resolution, slack)
    norms = np.array(problem.norms(to_parameters(problem, columns, point), columns))
    assert np.all(norms <= 1 + 1e-14)
    squares = np.array([np.sum(block**2) for block in factors(problem, point)])
    np.testing.assert_allclose(norms, squares / (squares + slack**2), rtol=1e-13)


@each_ball
@each_resolution
def test_points_outside_go_to_the_nearest_point_of_the_balls(
    problem: Problem, resolution: str
) -> None:
    columns = columns_at(problem, resolution)
    inside = feasible(problem, resolution)
    outside = jax.tree.map(lambda block: 1e4 * block, inside)
    back = to_parameters(problem, columns, from_parameters(problem, columns, outside))
    np.testing.assert_allclose(np.array(problem.norms(back, columns)), 1, rtol=1e-14)
    for block, expected in zip(
        (*back.weights, back.features), (*inside.weights, inside.features), strict=True
    ):
        ratio = np.asarray(block) / np.asarray(expected)
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-13)


@for_each("name", ["non-negative", "non-negative-balls"])
def test_features_of_the_wrong_sign_become_zero(name: str) -> None:
    problem = PROBLEMS[name]
    columns = columns_at(problem, "classes")
    parameters = feasible(problem, "classes")
    signs = np.where(np.arange(12).reshape(3, 4) % 2, -1.0, 1.0)
    back = to_parameters(
        problem,
        columns,
        from_parameters(
            problem, columns, parameters._replace(features=parameters.features * signs)
        ),
    )
    np.testing.assert_allclose(
        back.features, np.where(signs > 0, parameters.features, 0), rtol=1e-13
    )


@each_ball
def test_the_centre_of_the_balls_has_coordinates(problem: Problem) -> None:
    columns = columns_at(problem, "classes")
    centre = jax.tree.map(jnp.zeros_like, on_device(random_parameters(problem)))
    point = from_parameters(problem, columns, centre)
    np.testing.assert_array_equal(point.slack, 1)
    for block in jax.tree.leaves(to_parameters(problem, columns, point)):
        np.testing.assert_array_equal(block, 0)


def test_minimisers_are_balanced_in_these_coordinates() -> None:
    # Squared error without bias in closed form: W_kk = sqrt(s_k) (lH/lW)^{1/4}, s_k = sqrt(n_k) - N
    # tau.
    problem = a_problem(loss=ufm.SquaredError(), feature_dim=K)
    lambda_w, lambda_h = float(problem.regularizer.weights), float(problem.regularizer.features)
    counts = np.asarray(problem.class_counts)
    kept = np.sqrt(counts) - N * np.sqrt(lambda_w * lambda_h)
    w = np.diag(np.sqrt(kept) * (lambda_h / lambda_w) ** 0.25)
    h = np.diag(np.sqrt(kept / counts) * (lambda_w / lambda_h) ** 0.25)
    columns = columns_at(problem, "classes")
    parameters = on_device(ufm.Parameters((w,), h))
    np.testing.assert_allclose(
        problem.objective(parameters, columns), plain.squared_error_minimum(problem), rtol=1e-13
    )
    point = from_parameters(problem, columns, parameters)
    np.testing.assert_allclose(point.weights[0], np.diag(np.sqrt(kept)), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(point.features, np.diag(np.sqrt(kept)), rtol=1e-13, atol=1e-15)


@each_decay
def test_reference_norms_are_those_of_the_unpenalised_squared_error(problem: Problem) -> None:
    # D^{1/2} Y has singular values sqrt(n_k); each of q balanced factors has n_k^{1/(2q)} of them.
    counts, num_factors = np.asarray(problem.class_counts), problem.num_layers + 1
    expected = np.linalg.norm(counts ** (1 / (2 * num_factors)))
    norms = reference_norms(problem, columns_at(problem, "classes"))
    features = norms.features**2 if problem.nonnegative_features else norms.features
    np.testing.assert_allclose([*norms.weights, features], expected, rtol=1e-14)


@each_ball
def test_norm_balls_have_no_scale_of_their_own(problem: Problem) -> None:
    norms = reference_norms(problem, columns_at(problem, "classes"))
    assert [float(norm) for norm in (*norms.weights, norms.features, norms.slack)] == [0] * (
        problem.num_layers + 2
    )


@pytest.mark.slow
@each_problem
def test_float32_stays_float32(problem: Problem) -> None:
    columns = class_samples(problem, jnp.float32)
    parameters = jax.tree.map(
        lambda block: jnp.asarray(block, jnp.float32), random_parameters(problem)
    )
    point = from_parameters(problem, columns, parameters)
    for tree in (
        point,
        to_parameters(problem, columns, point),
        scales(problem, columns),
        reference_norms(problem, columns),
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}


def test_extreme_penalties_do_not_overflow() -> None:
    problem = a_problem(
        hidden_dims=(5, 6),
        regularizer=ufm.WeightDecay(weights=(1e-200, 1e-200, 1e-200), features=1e200),
    )
    columns = columns_at(problem, "classes")
    assert all(
        np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(coordinates.scales(problem, columns))
    )


@pytest.mark.slow
@for_each("radius", [0.1, 1.0])
def test_a_large_bias_does_not_hold_up_the_solve_inside_norm_balls(radius: float) -> None:
    # Without shift invariance the bias goes to four at the minimiser: more than a hundred times the
    # norm of the balls' blocks, were it scaled as under weight decay, and Newton's method would
    # creep.
    problem = Problem(
        class_counts=ufm.ClassGroups((2.0, 334.0), (4, 4)),
        feature_dim=8,
        loss=ufm.CDT(0.4),
        regularizer=ufm.NormBall(radius, radius),
        use_bias=True,
    )
    solution = ufm.solve(problem, resolution="classes").check()
    assert np.max(np.abs(solution.bias)) > 4
    assert solution.steps < 60
