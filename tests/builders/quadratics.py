"""Functions to minimise without a model, and the path that a method takes on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Path = list[tuple[np.ndarray, np.ndarray, Any]]


def iterated(method: Any, f: Callable[[Any], Any], x: Any, steps: int) -> Path:
    """Points, gradients and memories of so many steps, fewer if the method stalls; a refused step changes the memory only."""
    objective = jax.value_and_grad(f)
    x = jnp.asarray(x)
    value, gradient = objective(x)
    memory = method.init(x, value, gradient)
    step = jax.jit(
        lambda x, value, gradient, memory: method.step(objective, x, value, gradient, memory)
    )
    path = [(np.asarray(x), np.asarray(gradient), memory)]
    for _ in range(steps):
        x, value, gradient, memory, stalled, _ = step(x, value, gradient, memory)
        if stalled:
            break
        path.append((np.asarray(x), np.asarray(gradient), memory))
    return path


def ill_conditioned(dim: int) -> tuple[Callable[[Any], Any], np.ndarray]:
    """A quadratic with curvatures from 1 to 1000 in random directions, and its minimiser."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    A, centre = Q * np.geomspace(1, 1000, dim) @ Q.T, rng.normal(size=dim)
    return lambda x: 0.5 * (x - centre) @ jnp.asarray(A) @ (x - centre), centre
