from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ill_conditioned, iterated

import ufm
from ufm._support import Status
from ufm.solving.methods import LBFGS, free_space

pytestmark = pytest.mark.usefixtures("float64")


def two_loop(pairs: list[tuple[np.ndarray, np.ndarray]], gradient: np.ndarray) -> np.ndarray:
    """The textbook recursion for H q (Nocedal & Wright, Algorithm 7.4)."""
    q, coefficients = gradient.copy(), []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (s @ y)
        coefficients.append(alpha)
        q = q - alpha * y
    s, y = pairs[-1]
    r = (s @ y) / (y @ y) * q
    for (s, y), alpha in zip(pairs, reversed(coefficients), strict=True):
        r = r + s * (alpha - (y @ r) / (s @ y))
    return r


@pytest.mark.slow
def test_directions_are_those_of_the_two_loop_recursion() -> None:
    # More steps than the memory holds, so that the ring goes round more than twice.
    f, _ = ill_conditioned(8)
    path = iterated(LBFGS(memory=4), f, np.ones(8), 11)
    assert len(path) == 12
    for end in range(1, len(path)):
        pairs = [
            (path[i + 1][0] - path[i][0], path[i + 1][1] - path[i][1])
            for i in range(max(0, end - 4), end)
        ]
        expected = -two_loop(pairs, path[end][1])
        np.testing.assert_allclose(path[end][2].direction, expected, rtol=1e-6)


def test_minimises_an_ill_conditioned_quadratic_to_rounding() -> None:
    f, centre = ill_conditioned(8)
    path = iterated(LBFGS(), f, np.ones(8), 300)
    np.testing.assert_allclose(path[-1][0], centre, atol=1e-9)
    assert np.linalg.norm(path[-1][1]) < 1e-8


def test_minimises_rosenbrock() -> None:
    def rosenbrock(x: Any) -> Any:
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    path = iterated(LBFGS(), rosenbrock, np.array([-1.2, 1.0]), 80)
    np.testing.assert_allclose(path[-1][0], [1, 1], atol=1e-8)


def test_the_objective_never_rises_and_a_nan_is_only_too_far() -> None:
    # NaN for x <= 0, where the first steps land.
    def barrier(x: Any) -> Any:
        return jnp.sum(x - 1e-3 * jnp.log(x))

    path = iterated(LBFGS(), barrier, np.array([5.0, 0.3]), 60)
    values = [float(np.sum(x - 1e-3 * np.log(x))) for x, _, _ in path]
    assert np.all(np.diff(values) <= 1e-15)
    np.testing.assert_allclose(path[-1][0], 1e-3, rtol=1e-6)


@pytest.mark.slow
def test_a_failed_step_empties_the_memory_once_and_then_stalls() -> None:
    method = LBFGS(memory=4)
    f, _ = ill_conditioned(8)
    space = free_space(jax.value_and_grad(f))
    x, gradient, memory = iterated(method, f, np.ones(8), 6)[-1]
    nowhere = free_space(jax.value_and_grad(lambda y: jnp.where(jnp.all(y == x), f(y), jnp.nan)))
    value = space.objective(jnp.asarray(x))[0]
    failing = jax.jit(lambda memory: method.step(nowhere, x, value, gradient, memory))
    kept, same, unchanged, emptied, status, trials = failing(memory)
    assert status == Status.RUNNING
    assert int(trials) == method.max_trials + 1  # the last one back where it began
    assert float(same) == float(value)
    np.testing.assert_array_equal(kept, x)
    np.testing.assert_array_equal(unchanged, gradient)
    assert failing(emptied).status == Status.STALLED
    # Down the gradient first, and then by the pairs made since alone.
    cosine = (
        -emptied.direction
        @ gradient
        / (np.linalg.norm(emptied.direction) * np.linalg.norm(gradient))
    )
    assert cosine == pytest.approx(1)
    step = jax.jit(
        lambda x, value, gradient, memory: method.step(space, x, value, gradient, memory)
    )
    memory, value, slope = emptied, *space.objective(jnp.asarray(x))
    points, slopes = [jnp.asarray(x)], [slope]
    for number in (1, 2):
        point, value, slope, memory, _, _ = step(points[-1], value, slopes[-1], memory)
        points.append(point)
        slopes.append(slope)
        pairs = [
            (np.asarray(points[i + 1] - points[i]), np.asarray(slopes[i + 1] - slopes[i]))
            for i in range(number)
        ]
        np.testing.assert_allclose(memory.direction, -two_loop(pairs, np.asarray(slope)), rtol=1e-9)


def test_nothing_is_divided_by_a_gradient_of_zero() -> None:
    path = iterated(LBFGS(), lambda x: jnp.sum(x**2), np.zeros(3), 2)
    np.testing.assert_array_equal(path[-1][0], 0)
    assert np.all(np.isfinite(path[-1][2].direction))


@pytest.mark.slow
def test_norm_balls_and_signs_hold_exactly() -> None:
    problem = ufm.Problem(
        class_counts=(5, 3, 2),
        feature_dim=4,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(weights=1.0, features=2.0),
        nonnegative_features=True,
    )
    solution = ufm.solve(problem, method=ufm.LBFGS(), max_steps=300)
    assert np.all(solution.features >= 0)
    assert np.mean(np.sum(solution.weights[0] ** 2, axis=1)) <= 1 + 1e-12
    assert np.mean(np.sum(solution.features**2, axis=1)) <= 2 * (1 + 1e-12)
    assert solution.certificate is not None
    assert solution.certificate.lower_bound <= solution.objective
