"""The compiled programs of class and sample resolution, which single solves and batches share.

Sizes, types of methods and the precision are static, everything else is traced: another penalty,
count, learning rate or tolerance runs the same machine code. Arrays of descents have an axis of
lanes, first: a lane is one start of one problem. A single lane is not vmapped, because branches and
loops of a vmapped program cost more.
"""

import functools
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ufm._support import compiled, double_precision
from ufm.certificates import BoundInputs, bound_inputs
from ufm.problems import Parameters, Problem, Samples, class_samples
from ufm.solving.methods import (
    Iterate,
    Method,
    Records,
    Start,
    advance,
    first_iterate,
    parameters_of,
    unknowns_of,
)

__all__ = [
    "Answer",
    "HostAnswer",
    "HostIterate",
    "advanced",
    "answer",
    "answers",
    "begun",
    "compile_ahead",
    "each_advanced",
    "first_iterates",
    "objective_at",
    "penalty",
    "unknowns_at",
]

# On the host: an `Iterate` and an `Answer` whose leaves are NumPy arrays.
HostIterate = Any
HostAnswer = Any

_ahead: set[Hashable] = set()


class Answer(NamedTuple):
    """What is known at a point.

    Attributes:
        parameters: The point, with a centred bias where the loss does not see its mean.
        objective: The objective.
        logits: Mean logits of every class or target row, bias included, shape (R, K).
        class_features: Their means of what the last layer multiplies, shape (R, D).
        inputs: What the certificate is computed from.
    """

    parameters: Parameters
    objective: Float[Array, ""]
    logits: Float[Array, "R K"]
    class_features: Float[Array, "R D"]
    inputs: BoundInputs


@compiled
def begun(
    problem: Problem,
    samples: Samples,
    method: Method,
    starts: Start,
    records: Records | None,
    until: Int[Array, " lanes"],
    tol: Float[Array, ""],
    record_every: int,
) -> Iterate:
    """Return the lanes of a problem after their first steps."""

    def one(start: Start, records: Records | None, until: Array) -> Iterate:
        iterate = first_iterate(problem, samples, method, start, records)
        return advance(problem, samples, method, iterate, until, tol, record_every)

    return _in_lanes(one, starts, records, until)


@functools.partial(compiled, once=True)
def first_iterates(problems: Problem, method: Method, starts: Start, aligned: bool) -> Iterate:
    """Return lanes, each of a problem of its own, at their starts."""

    def one(problem: Problem, start: Start) -> Iterate:
        samples = class_samples(problem, start.numbers.dtype)
        return first_iterate(problem, samples, method, start, None, aligned)

    return _in_lanes(one, problems, starts)


@compiled
def advanced(
    problem: Problem,
    samples: Samples,
    method: Method,
    iterates: Iterate,
    until: Int[Array, " lanes"],
    tol: Float[Array, ""],
    record_every: int,
) -> Iterate:
    """Return the lanes of a problem after more steps."""

    def one(iterate: Iterate, until: Array) -> Iterate:
        return advance(problem, samples, method, iterate, until, tol, record_every)

    return _in_lanes(one, iterates, until)


@compiled
def each_advanced(
    problems: Problem,
    method: Method,
    iterates: Iterate,
    until: Int[Array, " lanes"],
    tol: Float[Array, ""],
) -> Iterate:
    """Return lanes, each of a problem of its own, after more steps."""

    def one(problem: Problem, iterate: Iterate, until: Array) -> Iterate:
        samples = class_samples(problem, iterate.x.dtype)
        return advance(problem, samples, method, iterate, until, tol, 0)

    return _in_lanes(one, problems, iterates, until)


def _in_lanes(one: Callable[..., Any], *lanes: Any) -> Any:
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(one)(*lanes)
    alone = one(*jax.tree.map(lambda leaf: leaf[0], lanes))
    return jax.tree.map(lambda leaf: leaf[None], alone)


def _answer_at(problem: Problem, samples: Samples, method: Method, x: Float[Array, " n"]) -> Answer:
    parameters = parameters_of(problem, samples, method, x.astype(jnp.float64))
    if problem.use_bias and problem.loss.shift_invariant:
        assert parameters.bias is not None
        parameters = parameters._replace(bias=parameters.bias - jnp.mean(parameters.bias))
    value = problem.objective(parameters, samples)
    logits = samples.means(problem.logits(parameters), problem.num_rows)
    class_features = samples.means(problem.last_features(parameters), problem.num_rows)
    inputs = bound_inputs(problem, samples, parameters)
    return Answer(parameters, value, logits, class_features, inputs)


answer = compiled(_answer_at)


@functools.partial(compiled, once=True)
def answers(problems: Problem, method: Method, x: Float[Array, "lanes n"]) -> Answer:
    """Return the answers of lanes, each of a problem of its own."""

    def one(problem: Problem, x: Array) -> Answer:
        return _answer_at(problem, class_samples(problem, jnp.float64), method, x)

    return jax.vmap(one)(problems, x)


unknowns_at = functools.partial(compiled, once=True)(unknowns_of)


@functools.partial(compiled, once=True)
def penalty(problem: Problem, parameters: Parameters) -> Float[Array, ""]:
    """Return the penalty at parameters of class resolution."""
    return problem.penalty(parameters, class_samples(problem, jnp.float64))


@functools.partial(compiled, once=True)
def objective_at(
    problem: Problem, samples: Samples, method: Method, x: Float[Array, " n"]
) -> Float[Array, ""]:
    """Return the objective at the unknowns of a method."""
    parameters = parameters_of(problem, samples, method, x)
    return problem.objective(parameters, samples.astype(x.dtype))


def compile_ahead(signature: Hashable, run: Callable[[], Any]) -> "Future[Any]":
    """Run a program on placeholders in a second thread, which leaves it in the caches of `jit`.

    Args:
        signature: Identifies the program. Each program is run ahead only once.
        run: Runs the program.
    """
    done: Future[Any] = Future()
    done.set_result(None)
    if signature in _ahead:
        return done
    _ahead.add(signature)

    def in_double_precision() -> None:
        with double_precision():
            run()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(in_double_precision)
    pool.shutdown(wait=False)
    return future
