"""Minima of many problems of one shape at class resolution: compiled chunks of a few lanes each, out of which finished lanes are taken.

A chunk of lanes moves in lockstep, and each step costs as much as its slowest line search. So
chunks are small enough for the caches, run for a few steps at a time, and are put together anew
from the lanes that are still going: a hard problem holds up at most a chunk of its like.

Where problems lie on lines along which a number varies, every eighth is solved first, and the
others start from what interpolates their neighbours, at half the distance each time: with equal
seeds the factors vary as smoothly as the problem, and a cubic through four of them is close (a
third of the steps, `benchmarks/`). No rounding depends on the number of threads.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import (
    Status,
    accelerators,
    compiled,
    devices,
    divisible,
    double_precision,
    judged,
    lowest,
    on_host,
    shard,
    to_numpy,
    within_steps,
)
from ufm.certificates import (
    BoundInputs,
    bound_inputs,
    has_convex_form,
    loss_doubt,
    relative_scale,
    rounding_of,
)
from ufm.problems import Parameters, Problem, class_means, is_library_loss, samples_of
from ufm.solving.methods import (
    LBFGS,
    SMOOTHINGS,
    Iterate,
    Method,
    NewtonCG,
    Stage,
    Start,
    advance,
    can_be_aligned,
    default_schedule,
    default_steps,
    first_iterate,
    generator,
    has_kinks,
    num_unknowns,
    parameters_of,
    relative_to_objective,
    search_scales,
    start_scales,
    unknowns_of,
)
from ufm.solving.relu import Polished, polish

__all__ = ["ClassMinima", "answer_at", "chunk_size", "solve_class_batch", "unknowns_at"]

CHUNK = 64  # lanes of a chunk, on a CPU
CHUNK_ON_ACCELERATOR = 4096  # of each: enough that a step is more than the start of its kernels
ROUND = 16  # steps until lanes are taken out
FIRST_SPACING = 8  # of the problems of a line that are solved from their own starts
MEMORY = 3e6  # numbers in the iterates of a chunk: a few caches' worth
MEMORY_ON_ACCELERATOR = 3e8
CONVEX_STEPS = 1000  # what needs more is better off with other methods


class ClassMinima(NamedTuple):
    """Minima of a batch of B problems, NumPy arrays with the batch axis first; the restart with the lowest objective of each.

    parameters: of the problems as they were given. logits: (B, K, K), bias included.
    class_features: (B, K, D), what the last layer multiplies. objective: (B,). lower_bound, scale:
    (B,), certified and what relative gaps are measured against; NaN where the model has no bound.
    relative_gradient: (B,), that the methods stop by; inside norm balls relative to at least 1e-4
    of the objective at zero, and the status is FLOOR where that decided. status, steps: (B,), steps
    of all restarts together.
    """

    parameters: Parameters
    logits: Float[np.ndarray, "B K K"]
    class_features: Float[np.ndarray, "B K D"]
    objective: Float[np.ndarray, " B"]
    lower_bound: Float[np.ndarray, " B"]
    scale: Float[np.ndarray, " B"]
    relative_gradient: Float[np.ndarray, " B"]
    status: Int[np.ndarray, " B"]
    steps: Int[np.ndarray, " B"]

    @property
    def relative_gap(self) -> Float[np.ndarray, " B"]:
        """The certified relative gap; NaN without a bound."""
        return (self.objective - self.lower_bound) / self.scale


@on_host
def solve_class_batch(
    problems: Problem,
    *,
    tol: float = 1e-9,
    keys: Any = 0,
    restarts: int = 1,
    near: Float[np.ndarray, "B S n"] | None = None,
    lines: Int[np.ndarray, "lines length"] | None = None,
    max_steps: int | None = None,
    workers: int | None = None,
) -> ClassMinima:
    """Return the minima of a batch of problems.

    Args:
        problems: leaves with one batch axis, first, of length B; one count per class.
        tol: relative gradient to stop at; certified gaps are about a third of it.
        keys: seeds of the initial points, one for all or (B,); the same as those of `solve`.
        restarts: random initial points per problem.
        near: further initial points of every problem, in balanced coordinates
            (`ufm.constructions.starts_of`).
        lines: problems in the order of a number that varies, evenly spaced, all of them once and
            with one seed per line; used where the problems are convex in the logits.
        max_steps: of each restart; 1000 for problems that are convex in the logits, 6000 where
            there are kinks, else 3000.
        workers: threads; the number of cores if not given. One where there are several devices,
            which a chunk is divided over.
    """
    length = len(problems.class_counts.counts)
    convex, kinks = has_convex_form(problems), has_kinks(problems)
    limit = (
        within_steps(max_steps)
        if max_steps is not None
        else CONVEX_STEPS
        if convex
        else default_steps(problems)
    )
    size = num_unknowns(problems, problems.num_classes)
    stages = (
        [Stage(LBFGS(), 0.3 * tol, 1.0)]
        if convex
        else default_schedule(problems, problems.num_classes, tol)
    )
    aligned = convex and can_be_aligned(problems)
    scales = search_scales(0, restarts) if convex else start_scales(restarts, kinks)
    starts = _starts(keys, length, scales, size, near)
    restarts = len(starts.scale) // length
    lanes = np.arange(length * restarts)
    of_problem = lanes // restarts
    with double_precision(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        run = _Lanes(problems, of_problem, chunk_size(size), pool)
        spent = np.zeros(len(lanes), np.int32)
        # The program for the answers compiles while the first steps do.
        ahead = run.compile_answers(stages[-1].method, size, pool)
        if convex and lines is not None and restarts == 1:
            iterates = _along(lines, run, stages[0], starts, aligned, limit)
        else:
            iterates = run.begin(stages[0].method, starts, aligned)
        for index, stage in enumerate(stages):
            if index:
                iterates = run.switch(stage.method, iterates)
            last = np.minimum(
                spent + np.ceil(stage.shares(lanes % restarts) * limit), limit
            ).astype(np.int32)
            iterates = run.finish(stage.method, iterates, last, stage.tol)
            spent = np.asarray(iterates.step)
        if not convex and not kinks and np.any(iterates.relative_gradient > tol):
            # L-BFGS stalls where the problem is badly scaled: Newton's method goes on.
            other = NewtonCG()
            iterates = run.finish(
                other, run.switch(other, iterates), np.full(len(lanes), limit), tol
            )
        best = np.arange(length) * restarts + lowest(np.reshape(iterates.value, (length, restarts)))
        ahead.result()
        answers = run.answers(stages[-1].method, iterates, best)
        if kinks:
            iterates = _followed(problems, answers[0], iterates, best, tol, pool)
            answers = run.answers(stages[-1].method, iterates, best)
        parameters, objective, logits, class_features, evidence = answers
    residual = np.asarray(iterates.relative_gradient)[best]
    status = judged(np.asarray(iterates.status)[best], residual, tol)
    relative = relative_to_objective(problems, residual, np.asarray(objective), evidence.at_zero)
    status[(status == Status.CONVERGED) & (relative > tol)] = Status.FLOOR
    bound = evidence.bound
    lower = np.full(length, np.nan) if bound is None else np.asarray(bound.lower_bound)
    if convex:
        status[_refuted(problems, objective, lower, evidence)] = Status.CONTRADICTION
    return ClassMinima(
        parameters,
        logits,
        class_features,
        objective,
        lower,
        relative_scale(lower, evidence.at_zero, problems.loss.infimum),
        residual,
        status,
        np.asarray(iterates.step).reshape(length, restarts).sum(axis=1),
    )


def _refuted(
    problems: Problem, objective: np.ndarray, lower: np.ndarray, evidence: BoundInputs
) -> np.ndarray:
    """Return where a bound is none: it lies above the objective by more than rounding, or the loss is not what it says."""
    largest = np.max(np.abs(evidence.logits), axis=(1, 2))
    rounding = rounding_of(
        objective,
        evidence.at_zero,
        largest,
        problems.num_classes,
        problems.regularizer.bounded,
    )
    refuted = objective - lower < -rounding
    if not is_library_loss(problems.loss):
        lanes = (
            jax.tree.map(lambda leaf, lane=lane: leaf[lane], problems)
            for lane in range(len(refuted))
        )
        refuted |= np.array([bool(loss_doubt(lane)) for lane in lanes])
    return refuted


def _followed(
    problems: Problem,
    parameters: Parameters,
    iterates: Iterate,
    best: np.ndarray,
    tol: float,
    pool: ThreadPoolExecutor,
) -> Iterate:
    """Return the iterates with the best of every problem taken onto the kinks of its minimum."""

    def one(index: int) -> tuple[np.ndarray, Polished]:
        problem, point = (
            jax.tree.map(lambda leaf: leaf[index], tree) for tree in (problems, parameters)
        )
        with double_precision():
            found = polish(problem, point, SMOOTHINGS[-1], tol)
            return np.asarray(
                unknowns_at(problem, None, LBFGS(), found.parameters, jnp.float64)
            ), found

    for lane, (x, found) in zip(best, pool.map(one, range(len(best))), strict=True):
        iterates.x[lane], iterates.value[lane] = x, found.objective
        iterates.relative_gradient[lane], iterates.status[lane] = (
            found.relative_gradient,
            Status.STALLED,
        )
    return iterates


def chunk_size(size: int) -> int:
    """Return how many problems of so many unknowns are solved together."""
    most, memory = (
        (CHUNK_ON_ACCELERATOR, MEMORY_ON_ACCELERATOR) if accelerators() else (CHUNK, MEMORY)
    )
    room = max(int(memory / (20 * size)), 1)
    return divisible(min(most, 1 << (room.bit_length() - 1)) * max(accelerators(), 1))


def _along(
    lines: np.ndarray, run: "_Lanes", stage: Stage, starts: Start, aligned: bool, limit: int
) -> Iterate:
    """Return all lanes at their ends: every eighth of a line from its own start, then the ones between from those beside them."""
    length = lines.shape[1]
    found: Any = None
    solved = np.zeros(length, bool)
    for spacing in (
        FIRST_SPACING,
        *(FIRST_SPACING >> level for level in range(1, FIRST_SPACING.bit_length())),
    ):
        places = np.flatnonzero(
            ~solved & ((np.arange(length) % spacing == 0) | (np.arange(length) == length - 1))
        )
        if places.size == 0:
            continue
        lanes = lines[:, places].ravel()
        begun = jax.tree.map(lambda leaf, lanes=lanes: leaf[lanes], starts)
        if found is not None:
            begun = _between(lines, places, np.flatnonzero(solved), found, begun)
        some = run.of_some(lanes)
        ended = some.finish(
            stage.method,
            some.begin(stage.method, begun, aligned),
            np.full(len(lanes), limit, np.int32),
            stage.tol,
        )
        if found is None:
            found = jax.tree.map(
                lambda leaf: np.zeros((lines.size, *leaf.shape[1:]), leaf.dtype), ended
            )
        for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(ended), strict=True):
            whole[lanes] = part
        solved[places] = True
    return found


def _between(
    lines: np.ndarray, places: np.ndarray, known: np.ndarray, found: Iterate, starts: Start
) -> Start:
    """Return the starts with the values at `places` of a polynomial through the four nearest known ones, where these have converged."""
    numbers = starts.numbers.reshape(len(lines), len(places), -1).copy()
    scale = starts.scale.reshape(len(lines), len(places)).copy()
    for index, place in enumerate(places):
        near = np.sort(known[np.argsort(np.abs(known - place), kind="stable")[:4]])
        weights = np.array([np.prod([(place - b) / (a - b) for b in near if b != a]) for a in near])
        values = np.einsum("k,lkn->ln", weights, found.x[lines[:, near]])
        good = np.all(found.status[lines[:, near]] == Status.CONVERGED, axis=1) & np.all(
            np.isfinite(values), axis=1
        )
        numbers[good, index] = values[good]
        scale[good, index] = 0
    return starts._replace(numbers=numbers.reshape(starts.numbers.shape), scale=scale.ravel())


class _Lanes:
    """The host's side of a batch: which lanes are going, and in which chunks they go on."""

    def __init__(
        self, problems: Problem, of_problem: np.ndarray, lanes: int, pool: ThreadPoolExecutor
    ):
        self.problems, self.of_problem, self.chunk, self.pool = problems, of_problem, lanes, pool
        # Problems of similar penalties need similarly many steps.
        last = jax.tree.map(np.transpose, problems.regularizer)  # the batch axis
        prices = np.ones(len(problems.class_counts.counts))
        if last.has_gauge:
            prices = prices * last.gauge_price(problems.num_classes, problems.hidden_dims)
        self.difficulty = prices[of_problem]

    def of_some(self, lanes: np.ndarray) -> "_Lanes":
        """Return the host's side of some of the lanes."""
        return _Lanes(self.problems, self.of_problem[lanes], self.chunk, self.pool)

    def begin(self, method: Any, starts: Start, aligned: bool) -> Iterate:
        """Return all lanes at their starts."""

        def run(lanes: np.ndarray) -> Iterate:
            part = self._problems(lanes), jax.tree.map(lambda leaf: leaf[lanes], starts)
            problems, begun = shard(part, 0, decompositions=True)
            return _begun(problems, method, begun, aligned)

        # Copies: what becomes of the lanes is written into them.
        return jax.tree.map(np.array, self._in_chunks(run, np.arange(len(self.of_problem))))

    def switch(self, method: Any, iterates: Iterate) -> Iterate:
        """Return all lanes where they are, at the beginning of another method."""
        starts = Start(iterates.x, np.zeros(len(iterates.x)), iterates.step, iterates.evaluations)
        return self.begin(method, starts, False)

    def finish(self, method: Any, iterates: Iterate, last: np.ndarray, tol: float) -> Iterate:
        """Run all lanes until they end or have made `last` steps."""
        while True:
            going = np.flatnonzero((iterates.status == Status.RUNNING) & (iterates.step < last))
            if going.size == 0:
                return iterates
            going = going[np.argsort(self.difficulty[going], kind="stable")]
            moved = self._in_chunks(
                functools.partial(self._advance, method, iterates, last, tol), going, True
            )
            for old, new in zip(jax.tree.leaves(iterates), jax.tree.leaves(moved), strict=True):
                old[going] = new

    def _advance(
        self, method: Any, iterates: Iterate, last: np.ndarray, tol: float, lanes: np.ndarray
    ) -> Iterate:
        until = np.minimum(np.asarray(iterates.step)[lanes] + ROUND, last[lanes]).astype(np.int32)
        part = self._problems(lanes), jax.tree.map(lambda leaf: leaf[lanes], iterates), until
        problems, moving, until = shard(part, 0)
        return _advanced(problems, method, moving, until, np.asarray(tol))

    def answers(self, method: Any, iterates: Iterate, lanes: np.ndarray) -> Any:
        """Return parameters, objective, logits, class features and evidence of lanes."""

        def run(lanes: np.ndarray) -> Any:
            problems, x = shard((self._problems(lanes), iterates.x[lanes]), 0, decompositions=True)
            return _answers(problems, method, x)

        return self._in_chunks(run, lanes)

    def compile_answers(self, method: Any, size: int, pool: ThreadPoolExecutor) -> "Future[Any]":
        """Compile the program for the answers in another thread, by running it at zero, unless that was done or would use several devices."""
        shapes = tuple(np.shape(leaf)[1:] for leaf in jax.tree.leaves(self.problems))
        signature = jax.tree.structure((self.problems, method)), shapes, self.chunk
        done: Future[Any] = Future()
        done.set_result(None)
        if signature in _compiled or devices() > 1:
            return done
        _compiled.add(signature)

        def compile_them() -> None:
            with double_precision():
                _answers(
                    self._problems(np.zeros(self.chunk, int)), method, np.zeros((self.chunk, size))
                )

        return pool.submit(compile_them)

    def _problems(self, lanes: np.ndarray) -> Problem:
        index = self.of_problem[lanes]
        return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[index]), self.problems)

    def _in_chunks(
        self, run: Callable[[np.ndarray], Any], lanes: np.ndarray, side_by_side: bool = False
    ) -> Any:
        """Return what `run` makes of lanes, in chunks of one size, the last one filled up.

        Only programs without decompositions run side by side: XLA's share a pool, and wait for each
        other, possibly for ever. So may programs on several devices.
        """
        chunks = -(-len(lanes) // self.chunk)
        filled = np.concatenate([lanes, np.repeat(lanes[-1:], chunks * self.chunk - len(lanes))])

        def one(index: int) -> Any:
            with double_precision():
                return to_numpy(
                    jax.block_until_ready(
                        run(filled[index * self.chunk : (index + 1) * self.chunk])
                    )
                )

        over = self.pool.map if side_by_side and devices() == 1 else map
        parts = [one(0), *over(one, range(1, chunks))]  # the first one compiles
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(lanes)], *parts)


def _starts(
    keys: Any, length: int, scales: np.ndarray, size: int, near: np.ndarray | None
) -> Start:
    """Return the starts of all lanes, problem by problem: random ones of the given sizes, equal for equal seeds, then those that are given."""
    seeds = np.broadcast_to(keys, (length,))
    distinct, index = np.unique(seeds, return_inverse=True)
    numbers = np.stack(
        [generator(int(seed)).standard_normal((len(scales), size)) for seed in distinct]
    )[index]
    scales = np.broadcast_to(scales, (length, len(scales)))
    if near is not None:
        numbers = np.concatenate([numbers, near], axis=1)
        scales = np.concatenate([scales, np.zeros(near.shape[:2])], axis=1)
    zero = np.zeros(scales.size, np.int32)
    return Start(numbers.reshape(-1, size), scales.ravel(), zero, zero)


def answer_at(
    problem: Problem,
    labels: Int[Array, " N"] | None,
    method: Method,
    x: Float[Array, " n"],
) -> tuple[Parameters, Array, Array, Array, BoundInputs]:
    """Return parameters, objective, class-level logits, class features of the last layer and evidence at a method's unknowns. Pure."""
    parameters = parameters_of(problem, labels, method, x.astype(jnp.float64))
    if problem.use_bias and problem.loss.shift_invariant:
        assert parameters.bias is not None
        parameters = parameters._replace(bias=parameters.bias - jnp.mean(parameters.bias))
    value = problem.objective(parameters, samples_of(problem, labels, jnp.float64))
    logits = class_means(problem.class_counts, problem.logits(parameters), labels)
    class_features = class_means(problem.class_counts, problem.last_features(parameters), labels)
    return parameters, value, logits, class_features, bound_inputs(problem, parameters, labels)


_compiled: set[Any] = set()


unknowns_at = functools.partial(compiled, once=True)(unknowns_of)


@functools.partial(compiled, once=True)
def _begun(problems: Problem, method: Any, starts: Start, aligned: bool) -> Iterate:
    def one(problem: Problem, start: Start) -> Iterate:
        return first_iterate(problem, None, method, start, None, aligned)

    return jax.vmap(one)(problems, starts)


@compiled
def _advanced(
    problems: Problem, method: Any, iterates: Iterate, until: Array, tol: Array
) -> Iterate:
    def one(problem: Problem, iterate: Iterate, until: Array) -> Iterate:
        return advance(problem, None, method, iterate, until, tol, 0)

    return jax.vmap(one)(problems, iterates, until)


@functools.partial(compiled, once=True)
def _answers(problems: Problem, method: Any, x: Array) -> Any:
    return jax.vmap(lambda problem, x: answer_at(problem, None, method, x))(problems, x)
