"""The compiled loop that every method runs in.

The loop alone decides when a descent ends, from the value and the gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ufm._support import Status
from ufm.problems import Parameters, Problem, Samples
from ufm.solving.methods.method import Method, Step
from ufm.solving.methods.recording import Records, recorded
from ufm.solving.methods.search_spaces import Space
from ufm.solving.methods.starts import Start, has_aligned_start

__all__ = [
    "Iterate",
    "advance",
    "descended",
    "first_iterate",
    "iterate_at",
    "parameters_of",
    "unknowns_of",
]


class Iterate(NamedTuple):
    """A descent in progress: all arrays, so that it can be batched, stopped and continued.

    Attributes:
        x: The unknowns in the space of the method, shape (n,).
        value: The objective of the space there.
        gradient: Its gradient, shape (n,).
        relative_gradient: The stopping measure.
        memory: What the method keeps.
        step: Number of steps made.
        evaluations: Number of gradients and Hessian-vector products.
        status: Code of `Status`.
        records: The trajectory so far, or None.
    """

    x: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    relative_gradient: Float[Array, ""]
    memory: Any
    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]
    records: Records | None


def first_iterate(
    problem: Problem,
    samples: Samples,
    method: Method,
    start: Start,
    records: Records | None,
    aligned: bool | None = None,
) -> Iterate:
    """Return the iterate at a start, and add it to the records if it is the first of a solve.

    Random numbers become a point through `Space.random_point`.

    Args:
        problem: The problem.
        samples: Its rows.
        method: The method.
        start: Where it begins.
        records: The trajectory so far, or None.
        aligned: Whether to start close to the minimiser if `can_be_aligned` knows such a start; if
            not given, in large problems.
    """
    numbers, scale = jnp.asarray(start.numbers), jnp.asarray(start.scale)
    samples = samples.astype(numbers.dtype)
    space = method.search_space(problem, samples)
    if aligned is None:
        aligned = has_aligned_start(problem, numbers.size)
    at_rows = len(samples.counts) == problem.num_rows
    point = space.random_point(numbers, scale, aligned and at_rows)
    x = space.project(jnp.where(scale > 0, ravel_pytree(point)[0], numbers))
    iterate = iterate_at(space, method, x)
    iterate = iterate._replace(
        step=jnp.asarray(start.step),
        evaluations=jnp.asarray(start.evaluations) + 1,
        records=records,
    )
    if records is None:
        return iterate
    shown = iterate._replace(value=method.plain_value(problem, iterate.value))
    return iterate._replace(
        records=recorded(problem, samples, space.parameters(x), shown, records.filled == 0)
    )


def iterate_at(space: Space, method: Method, x: Float[Array, " n"]) -> Iterate:
    """Return the iterate of a method at unknowns of a space, before its first step."""
    value, gradient = space.objective(x)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    return Iterate(
        x=x,
        value=value,
        gradient=gradient,
        relative_gradient=space.relative_gradient(x, value, gradient),
        memory=method.init(space, x, value, gradient),
        step=jnp.zeros((), jnp.int32),
        evaluations=jnp.ones((), jnp.int32),
        status=jnp.where(finite, Status.RUNNING, Status.NON_FINITE).astype(jnp.int32),
        records=None,
    )


def unknowns_of(
    problem: Problem,
    samples: Samples,
    method: Method,
    parameters: Parameters,
    dtype: Any,
) -> Float[Array, " n"]:
    """Return the unknowns at the parameters, or nearest to them if they violate a constraint.

    The inverse of `parameters_of`.
    """
    samples = samples.astype(dtype)
    space = method.search_space(problem, samples)
    return space.project(
        space.flatten(jax.tree.map(lambda block: jnp.asarray(block, dtype), parameters))
    )


def parameters_of(
    problem: Problem, samples: Samples, method: Method, x: Float[Array, " n"]
) -> Parameters:
    """Return the parameters at the unknowns x."""
    samples = samples.astype(x.dtype)
    return method.search_space(problem, samples).parameters(x)


def advance(
    problem: Problem,
    samples: Samples,
    method: Method,
    iterate: Iterate,
    until: Int[Array, ""],
    tol: Float[Array, ""],
    record_every: int,
) -> Iterate:
    """Run until the descent ends or `until` steps have been made.

    The state is recorded every `record_every` steps; 0 records nothing.
    """
    samples = samples.astype(iterate.x.dtype)
    space = method.search_space(problem, samples)
    if not record_every:
        return descended(space, method, iterate, until, tol)

    def block(iterate: Iterate) -> Iterate:
        boundary = (iterate.step // record_every + 1) * record_every
        iterate = descended(space, method, iterate, jnp.minimum(until, boundary), tol)
        due = (iterate.step % record_every == 0) | (iterate.status != Status.RUNNING)
        shown = iterate._replace(value=method.plain_value(problem, iterate.value))
        return iterate._replace(
            records=recorded(problem, samples, space.parameters(iterate.x), shown, due)
        )

    return jax.lax.while_loop(lambda state: _is_going(state, until), block, iterate)


def descended(
    space: Space,
    method: Method,
    iterate: Iterate,
    until: Int[Array, ""] | int,
    tol: Float[Array, ""],
) -> Iterate:
    """Return the iterate where the descent ends, or after `until` steps; nothing is recorded."""
    # The records stay out of the loop's carry, which would otherwise be copied at every step.
    records, iterate = iterate.records, iterate._replace(records=None)

    def body(old: Iterate) -> Iterate:
        new = Step(*method.step(space, old.x, old.value, old.gradient, old.memory))
        residual = space.relative_gradient(new.x, new.value, new.gradient)
        ended = (residual <= tol) & (new.status != Status.NON_FINITE)
        return Iterate(
            new.x,
            new.value,
            new.gradient,
            residual,
            new.memory,
            old.step + 1,
            old.evaluations + new.evaluations,
            jnp.where(ended, Status.CONVERGED, new.status).astype(jnp.int32),
            None,
        )

    iterate = jax.lax.while_loop(lambda state: _is_going(state, until), body, iterate)
    return iterate._replace(records=records)


def _is_going(iterate: Iterate, until: Int[Array, ""] | int) -> Array:
    return (iterate.status == Status.RUNNING) & (iterate.step < until)
