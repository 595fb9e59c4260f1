"""Functions to minimise without a model, and the path that a method takes on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm._support import Status
from ufm.solving.methods import free_space

Path = list[tuple[np.ndarray, np.ndarray, Any]]


def iterated(method: Any, f: Callable[[Any], Any], x: Any, steps: int) -> Path:
    """Points, gradients and memories of so many steps, fewer if the method stalls.

    A refused step changes the memory only.
    """
    space = free_space(jax.value_and_grad(f))
    x = jnp.asarray(x)
    value, gradient = space.objective(x)
    memory = method.init(space, x, value, gradient)
    step = jax.jit(
        lambda x, value, gradient, memory: method.step(space, x, value, gradient, memory)
    )
    path = [(np.asarray(x), np.asarray(gradient), memory)]
    for _ in range(steps):
        x, value, gradient, memory, status, _ = step(x, value, gradient, memory)
        if status == Status.STALLED:
            break
        path.append((np.asarray(x), np.asarray(gradient), memory))
    return path


def ill_conditioned(dim: int) -> tuple[Callable[[Any], Any], np.ndarray]:
    """A quadratic with curvatures from 1 to 1000 in random directions, and its minimiser."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    A, centre = Q * np.geomspace(1, 1000, dim) @ Q.T, rng.normal(size=dim)
    return lambda x: 0.5 * (x - centre) @ jnp.asarray(A) @ (x - centre), centre
