"""Roots of monotone functions of one variable, elementwise, in NumPy or JAX, with derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import array_module

__all__ = ["root"]

# Bisection alone halves an interval of ordinary numbers to its rounding within about 60 steps.
MOST_STEPS = 120


def root(
    function: Callable[[Any, Any], Any],
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    parameters: Any,
) -> Float[Array, "..."]:
    r"""Return the x in [low, high] where function(x, parameters) changes sign.

    The function is continuous, and elementwise in x.

    Chandrupatla's method: bisection, or inverse quadratic interpolation where three points promise
    that it is safe. Where the function does not change sign, the result is some point of the
    interval. The root's derivatives with respect to the parameters are those of the implicit
    function theorem, in forward and reverse mode.

    Args:
        function: Finite everywhere in the interval. It must not close over anything traced.
        low: The lower end of the interval.
        high: The upper end, of the same shape.
        parameters: A pytree of numbers or arrays.
    """
    if array_module((low, high, parameters)) is np:
        return _search(np, lambda x: function(x, parameters), low, high)
    return _traced_root(function, jnp.asarray(low), jnp.asarray(high), parameters)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _traced_root(
    function: Callable[[Any, Any], Any], low: Array, high: Array, parameters: Any
) -> Array:
    return _search(jnp, lambda x: function(x, parameters), low, high)


@_traced_root.defjvp
def _root_jvp(
    function: Callable[[Any, Any], Any],
    primals: tuple[Any, Any, Any],
    tangents: tuple[Any, Any, Any],
) -> tuple[Array, Array]:
    parameters = primals[2]
    x = _traced_root(function, *primals)
    _, slope = jax.jvp(lambda y: function(y, parameters), (x,), (jnp.ones_like(x),))
    _, change = jax.jvp(lambda p: function(x, p), (parameters,), (tangents[2],))
    return x, -change / jnp.where(slope != 0, slope, 1)


def _search(xp: Any, function: Callable[[Any], Any], low: Any, high: Any) -> Any:
    """Return the root.

    The state is the newest point a, the other end b of the bracket, the point c before, and the
    place t of the next point between a and b.
    """
    low, high = xp.asarray(low), xp.asarray(high)
    epsilon = xp.finfo(low.dtype).eps

    def start() -> tuple[Any, ...]:
        if xp is jnp:  # traced once for both ends
            at_low, at_high = jax.vmap(function)(jnp.stack([low, high]))
        else:
            at_low, at_high = function(low), function(high)
        return low, at_low, high, at_high, high, at_high, xp.full_like(low, 0.5), 0

    def tolerance(state: tuple[Any, ...]) -> Any:
        a, fa, b, fb, *_ = state
        best = xp.where(xp.abs(fa) < xp.abs(fb), a, b)
        return 0.5 * epsilon * xp.abs(best) + epsilon**2

    def going(state: tuple[Any, ...]) -> Any:
        a, fa, b, fb, *_, steps = state
        done = (xp.abs(b - a) <= 2 * tolerance(state)) | (fa == 0) | (fb == 0)
        return (steps < MOST_STEPS) & ~xp.all(done)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        a, fa, b, fb, c, fc, t, steps = state
        x = a + t * (b - a)
        fx = function(x)
        same = xp.sign(fx) == xp.sign(fa)
        c, fc = xp.where(same, a, b), xp.where(same, fa, fb)
        b, fb = xp.where(same, b, a), xp.where(same, fb, fa)
        a, fa = x, fx
        xi = _ratio(xp, a - b, c - b)
        phi = _ratio(xp, fa - fb, fc - fb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        first = _ratio(xp, fa, fb - fa) * _ratio(xp, fc, fb - fc)
        second = _ratio(xp, c - a, b - a) * _ratio(xp, fa, fc - fa) * _ratio(xp, fb, fc - fb)
        least = xp.minimum(_ratio(xp, tolerance((a, fa, b, fb)), xp.abs(b - a)), 0.5)
        # An end of the bracket that is the root stays where it is.
        t = xp.clip(xp.where(safe, first + second, 0.5), least, 1 - least)
        t = xp.where(fa == 0, 0, xp.where(fb == 0, 1, t))
        return a, fa, b, fb, c, fc, t, steps + 1

    state = start()
    if xp is jnp:
        state = jax.lax.while_loop(going, step, state)
    else:
        while going(state):
            state = step(state)
    a, fa, b, fb, *_ = state
    return xp.where(xp.abs(fa) < xp.abs(fb), a, b)


def _ratio(xp: Any, numerator: Any, denominator: Any) -> Any:
    """Return the quotient, zero where the denominator vanishes."""
    nonzero = denominator != 0
    return xp.where(nonzero, numerator / xp.where(nonzero, denominator, 1), 0)
