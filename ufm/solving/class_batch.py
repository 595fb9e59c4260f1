"""Minima of many problems of one shape at class resolution, solved in small vmapped chunks.

A lane is one start of one problem. The lanes of a chunk move in lockstep, and each step costs as
much as the slowest line search among them. So chunks are small enough for the caches and run for a
few steps at a time. Then converged lanes are dropped and the rest repacked: a hard problem delays
at most one chunk of similar problems.

Where problems lie on lines along which a number varies, every eighth is solved first. The others
start from interpolated neighbours, at half the spacing each time. With equal seeds the factors vary
as smoothly as the problem, so a cubic through four of them is close to the minimum (a third of the
steps, `benchmarks/`). No rounding depends on the number of threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm._support import (
    Status,
    accelerators,
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
    has_convex_form,
    longest_sum,
    loss_doubt,
    relative_scale,
    rounding_of,
)
from ufm.problems import Parameters, Problem, is_library_loss, samples_of
from ufm.solving.class_resolution import onto_kinks, put_on_kinks
from ufm.solving.methods import (
    LBFGS,
    Method,
    NewtonCG,
    Stage,
    Start,
    can_be_aligned,
    default_schedule,
    default_steps,
    generator,
    has_kinks,
    made_once,
    num_unknowns,
    relative_to_objective,
)
from ufm.solving.programs import (
    HostAnswer,
    HostIterate,
    answers,
    compile_ahead,
    each_advanced,
    first_iterates,
)
from ufm.solving.starts import scales_of

__all__ = ["ClassMinima", "chunk_size", "solve_class_batch"]

CHUNK = 64  # lanes of a chunk, on a CPU
CHUNK_ON_ACCELERATOR = 4096  # of each: a step then takes longer than launching its kernels
ROUND = 16  # steps until converged lanes are dropped
FIRST_SPACING = 8  # of the problems of a line that are solved from their own starts
MEMORY = 3e6  # numbers in the iterates of a chunk: a few caches' worth
MEMORY_ON_ACCELERATOR = 3e8
CONVEX_STEPS = 1000  # problems that need more are solved faster by other methods


class ClassMinima(NamedTuple):
    """Minima of a batch of B problems, NumPy arrays with the batch axis first.

    Each problem has the minimum of its start with the lowest objective.

    Attributes:
        parameters: Parameters of the problems as they were given.
        logits: Bias included, shape (B, K, K).
        class_features: What the last layer multiplies, shape (B, K, D).
        objective: Shape (B,).
        lower_bound: Certified, shape (B,); NaN where the model has no bound.
        scale: What relative gaps are measured against, shape (B,); NaN like the bound.
        relative_gradient: What the methods stop by, shape (B,). Inside norm balls it is relative to
            at least 1e-4 of the objective at zero; the status is FLOOR where this floor decided.
        status: How the solves ended, shape (B,).
        steps: Steps from all starts together, shape (B,).
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
        problems: Leaves with one batch axis, first, of length B; one count per class.
        tol: Relative gradient to stop at; certified gaps are about a third of it.
        keys: Seeds of the initial points, one for all or (B,); the same as those of `solve`.
        restarts: Random initial points per problem.
        near: Further initial points of every problem, in balanced coordinates
            (`ufm.constructions.starts_of`).
        lines: Indices of problems, a line per row, in the order of the number that varies. Its
            values are evenly spaced, every problem occurs once, and a line has one seed. Used where
            the problems are convex in the logits.
        max_steps: Most steps of each restart; 1000 for problems that are convex in the logits, 6000
            where there are kinks, else 3000.
        workers: Number of threads; the number of cores if not given. With several devices there is
            one thread, and each chunk is divided over the devices.
    """
    length, convex = len(problems.class_counts.counts), has_convex_form(problems)
    if max_steps is None:
        limit = CONVEX_STEPS if convex else default_steps(problems)
    else:
        limit = within_steps(max_steps)
    size = num_unknowns(problems, problems.num_rows)
    starts = _starts(keys, length, restarts, problems, near)
    restarts = len(starts.scale) // length
    of_problem = np.arange(length * restarts) // restarts
    with double_precision(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        batch = _Batch(problems, of_problem, restarts, chunk_size(size), pool)
        answered = _answers_ahead(batch, size)
        iterates = _descended(batch, starts, lines, limit, tol)
        best = np.arange(length) * restarts + lowest(np.reshape(iterates.value, (length, restarts)))
        answered.result()
        found = _answers(batch, iterates, best)
        if has_kinks(problems):
            _polish(batch, found.parameters, iterates, best, tol)
            found = _answers(batch, iterates, best)
    return _minima(problems, iterates, best, found, tol)


def _minima(
    problems: Problem, iterates: HostIterate, best: np.ndarray, found: HostAnswer, tol: float
) -> ClassMinima:
    """Return the minima that were found, with a status for every problem."""
    length, objective, inputs = len(best), np.asarray(found.objective), found.inputs
    residual = iterates.relative_gradient[best]
    status = judged(iterates.status[best], residual, tol)
    relative = relative_to_objective(problems, residual, objective, inputs.at_zero)
    status[(status == Status.CONVERGED) & (relative > tol)] = Status.FLOOR
    lower = np.full(length, np.nan)
    if inputs.bound is not None:
        lower = np.asarray(inputs.bound.lower_bound)
        status[_refuted(problems, found, lower)] = Status.CONTRADICTION
    return ClassMinima(
        found.parameters,
        found.logits,
        found.class_features,
        objective,
        lower,
        relative_scale(lower, inputs.at_zero, problems.loss.infimum),
        residual,
        status,
        iterates.step.reshape(length, -1).sum(axis=1),
    )


def _refuted(problems: Problem, found: HostAnswer, lower: np.ndarray) -> np.ndarray:
    """Return where a bound is refuted.

    The bound lies above the objective by more than rounding, or the loss fails its checks.
    """
    objective, inputs = found.objective, found.inputs
    largest = np.max(np.abs(inputs.logits), axis=(1, 2))
    bounded = problems.regularizer.bounded
    rounding = rounding_of(objective, inputs.at_zero, largest, longest_sum(problems), bounded)
    refuted = objective - lower < -rounding
    if not is_library_loss(problems.loss):
        lanes = (
            jax.tree.map(lambda leaf, lane=lane: leaf[lane], problems)
            for lane in range(len(refuted))
        )
        refuted |= np.array([bool(loss_doubt(lane)) for lane in lanes])
    return refuted


def chunk_size(size: int) -> int:
    """Return how many problems of so many unknowns are solved together."""
    most, memory = (
        (CHUNK_ON_ACCELERATOR, MEMORY_ON_ACCELERATOR) if accelerators() else (CHUNK, MEMORY)
    )
    room = max(int(memory / (20 * size)), 1)
    return divisible(min(most, 1 << (room.bit_length() - 1)) * max(accelerators(), 1))


class _Batch(NamedTuple):
    """The lanes of a batch.

    Attributes:
        problems: With a batch axis.
        of_problem: Index of the problem of every lane.
        restarts: Number of lanes of each problem.
        chunk: Number of lanes that are moved together.
        pool: Threads that chunks run on.
    """

    problems: Problem
    of_problem: Int[np.ndarray, " lanes"]
    restarts: int
    chunk: int
    pool: ThreadPoolExecutor

    def problems_of(self, lanes: np.ndarray) -> Problem:
        """Return the problems of some lanes, with an axis of lanes."""
        index = self.of_problem[lanes]
        return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[index]), self.problems)

    def difficulty(self) -> Float[np.ndarray, " lanes"]:
        """Return a sort key. Lanes with similar keys have similar penalties and steps."""
        problems = self.problems
        last = jax.tree.map(np.transpose, problems.regularizer)  # the batch axis
        prices = np.ones(len(problems.class_counts.counts))
        if last.has_gauge:
            prices = prices * last.gauge_price(problems.num_classes, problems.hidden_dims)
        return prices[self.of_problem]


def _descended(
    batch: _Batch, starts: Start, lines: np.ndarray | None, limit: int, tol: float
) -> HostIterate:
    """Return all lanes where the stages of their schedule have taken them."""
    problems = batch.problems
    convex = has_convex_form(problems)
    stages = default_schedule(problems, problems.num_rows, tol)
    if convex:
        stages = [Stage(made_once(LBFGS), 0.3 * tol, 1.0)]
    aligned = convex and can_be_aligned(problems)
    if convex and lines is not None and batch.restarts == 1:
        return _along(lines, batch, stages[0], starts, aligned, limit)
    iterates = _begun(batch, stages[0].method, starts, aligned)
    lanes = np.arange(len(batch.of_problem))
    spent = np.zeros(len(lanes), np.int32)
    for index, stage in enumerate(stages):
        if index:
            iterates = _resumed(batch, stage.method, iterates)
        allowed = spent + np.ceil(stage.shares(lanes % batch.restarts) * limit)
        last = np.minimum(allowed, limit).astype(np.int32)
        iterates = _finished(batch, stage.method, iterates, last, stage.tol)
        spent = iterates.step
    if not convex and not has_kinks(problems) and np.any(iterates.relative_gradient > tol):
        # L-BFGS stalls where the problem is badly scaled: Newton's method goes on.
        newton = made_once(NewtonCG)
        iterates = _resumed(batch, newton, iterates)
        iterates = _finished(batch, newton, iterates, np.full(len(lanes), limit), tol)
    return iterates


def _polish(
    batch: _Batch, parameters: Parameters, iterates: HostIterate, best: np.ndarray, tol: float
) -> None:
    """Take the best lane of every problem onto the kinks of its minimum, in place."""

    def one(index: int) -> Any:
        trees = batch.problems, parameters
        problem, point = jax.tree.map(lambda leaf: leaf[index], trees)
        with double_precision():
            return onto_kinks(problem, samples_of(problem, problem.num_rows), point, tol)

    for lane, found in zip(best, batch.pool.map(one, range(len(best))), strict=True):
        put_on_kinks(iterates, lane, *found)


def _along(
    lines: np.ndarray, batch: _Batch, stage: Stage, starts: Start, aligned: bool, limit: int
) -> HostIterate:
    """Return all lanes where they end, line by line.

    Every eighth problem has its own start. The others start from interpolated neighbours.
    """
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
        some = batch._replace(of_problem=batch.of_problem[lanes])
        ended = _begun(some, stage.method, begun, aligned)
        last = np.full(len(lanes), limit, np.int32)
        ended = _finished(some, stage.method, ended, last, stage.tol)
        if found is None:
            found = jax.tree.map(
                lambda leaf: np.zeros((lines.size, *leaf.shape[1:]), leaf.dtype), ended
            )
        for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(ended), strict=True):
            whole[lanes] = part
        solved[places] = True
    return found


def _between(
    lines: np.ndarray, places: np.ndarray, known: np.ndarray, found: HostIterate, starts: Start
) -> Start:
    """Return starts that are interpolated at `places` of every line.

    The polynomial goes through the four nearest known minima. Where one of these has not converged,
    the start stays as it is.
    """
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


def _begun(batch: _Batch, method: Method, starts: Start, aligned: bool) -> HostIterate:
    """Return all lanes at their starts, in arrays that may be written to."""

    def run(lanes: np.ndarray) -> HostIterate:
        part = batch.problems_of(lanes), jax.tree.map(lambda leaf: leaf[lanes], starts)
        problems, begun = shard(part, 0, decompositions=True)
        return first_iterates(problems, method, begun, aligned)

    return jax.tree.map(np.array, _in_chunks(batch, run, np.arange(len(batch.of_problem))))


def _resumed(batch: _Batch, method: Method, iterates: HostIterate) -> HostIterate:
    """Return all lanes where they are, at the beginning of another method."""
    starts = Start(iterates.x, np.zeros(len(iterates.x)), iterates.step, iterates.evaluations)
    return _begun(batch, method, starts, False)


def _finished(
    batch: _Batch, method: Method, iterates: HostIterate, last: np.ndarray, tol: float
) -> HostIterate:
    """Run all lanes until they end or have made `last` steps; in place."""
    difficulty = batch.difficulty()

    def run(lanes: np.ndarray) -> HostIterate:
        until = np.minimum(iterates.step[lanes] + ROUND, last[lanes]).astype(np.int32)
        some = jax.tree.map(lambda leaf: leaf[lanes], iterates)
        problems, moving, until = shard((batch.problems_of(lanes), some, until), 0)
        return each_advanced(problems, method, moving, until, np.asarray(tol))

    while True:
        going = np.flatnonzero((iterates.status == Status.RUNNING) & (iterates.step < last))
        if going.size == 0:
            return iterates
        going = going[np.argsort(difficulty[going], kind="stable")]
        moved = _in_chunks(batch, run, going, side_by_side=True)
        for old, new in zip(jax.tree.leaves(iterates), jax.tree.leaves(moved), strict=True):
            old[going] = new


def _answers(batch: _Batch, iterates: HostIterate, lanes: np.ndarray) -> HostAnswer:
    """Return the answers at lanes."""

    def run(lanes: np.ndarray) -> HostAnswer:
        part = batch.problems_of(lanes), iterates.x[lanes]
        problems, x = shard(part, 0, decompositions=True)
        return answers(problems, made_once(LBFGS), x)

    return _in_chunks(batch, run, lanes)


def _answers_ahead(batch: _Batch, size: int) -> "Future[Any]":
    """Compile the program of the answers while the first steps are made; for one device only."""
    shapes = tuple(np.shape(leaf)[1:] for leaf in jax.tree.leaves(batch.problems))
    signature = jax.tree.structure(batch.problems), shapes, batch.chunk, size

    def run() -> None:
        if devices() == 1:
            problems = batch.problems_of(np.zeros(batch.chunk, int))
            answers(problems, made_once(LBFGS), np.zeros((batch.chunk, size)))

    return compile_ahead(signature, run)


def _in_chunks(
    batch: _Batch,
    run: Callable[[np.ndarray], Any],
    lanes: np.ndarray,
    *,
    side_by_side: bool = False,
) -> Any:
    """Return what `run` makes of lanes, in chunks of one size, the last one filled up.

    Only programs without matrix decompositions run in parallel. XLA's decompositions share a thread
    pool, and in parallel they may wait for each other for ever. So may programs on several devices.
    """
    chunks = -(-len(lanes) // batch.chunk)
    filled = np.concatenate([lanes, np.repeat(lanes[-1:], chunks * batch.chunk - len(lanes))])

    def one(index: int) -> Any:
        with double_precision():
            part = filled[index * batch.chunk : (index + 1) * batch.chunk]
            return to_numpy(jax.block_until_ready(run(part)))

    over = batch.pool.map if side_by_side and devices() == 1 else map
    parts = [one(0), *over(one, range(1, chunks))]  # the first one compiles
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(lanes)], *parts)


def _starts(
    keys: Any, length: int, restarts: int, problems: Problem, near: np.ndarray | None
) -> Start:
    """Return the starts of all lanes, problem by problem: random ones, then those that are given.

    Random ones are equal for equal seeds.
    """
    size = num_unknowns(problems, problems.num_rows)
    scales = scales_of(problems, 0, restarts)
    distinct, index = np.unique(np.broadcast_to(keys, (length,)), return_inverse=True)
    draws = [generator(int(seed)).standard_normal((restarts, size)) for seed in distinct]
    numbers = np.stack(draws)[index]
    scales = np.broadcast_to(scales, (length, restarts))
    if near is not None:
        numbers = np.concatenate([numbers, near], axis=1)
        scales = np.concatenate([scales, np.zeros(near.shape[:2])], axis=1)
    zero = np.zeros(scales.size, np.int32)
    return Start(numbers.reshape(-1, size), scales.ravel(), zero, zero)
