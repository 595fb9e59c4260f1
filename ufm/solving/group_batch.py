"""Certified minima of problems over groups: one at a time, or a hundred thousand in a second.

`certified` is the pure core: it can be passed to `jit` and `vmap`. `solve_batch` is the host's
side: a batch of problems in compiled chunks of one size on all cores, or on all devices.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import (
    Status,
    accelerators,
    broadcasting,
    compiled,
    devices,
    divisible,
    double_precision,
    on_host,
    shard,
    to_numpy,
    within_steps,
)
from ufm.certificates import (
    GroupEvidence,
    group_evidence,
    group_objective,
    group_rounding,
    multiplier,
    nuclear_norm,
)
from ufm.problems import Blocks, GroupProblem
from ufm.solving.methods import PATH_STEPS, PathEnd, follow_path, most_steps

__all__ = ["GroupMinimum", "certified", "solve_batch"]

CHUNK = 1024  # problems in one compiled call
NUMBERS = 2e6  # in the Hessians of a chunk
FEW = (16, 128)  # sizes of small chunks: every size is a program of its own
# An accelerator has some 10^5 threads, and a step of few problems takes as long as one of many,
# because launching the kernels dominates. Larger chunks would make easy problems wait for hard
# ones, and no batch of a sweep would fill them.
CHUNK_ON_ACCELERATOR = 32_768
NUMBERS_ON_ACCELERATOR = 1e8  # under a gigabyte
FEW_ON_ACCELERATOR = (2048, 16_384)
PATH_GAP = 1e-11  # relative duality gap at which the path is left
# Gap above which a problem is solved again, even where the path has converged: a gap larger than
# the barrier's says that the point is off the path.
OPEN = 1e-9
WEIGHT_EXPONENT = 0.0  # of the first attempt; failures are tried again with it, then with 1
FEW_STEPS = 16  # of the first attempt, at most; a dozen is usual for two groups
# Slope of the barrier below which a mode is taken for zero, unless that raises the objective.
INACTIVE = 0.9999
LARGEST_STRETCH = 1e-3  # share by which logits are scaled up to the sphere of a ball, at most


class GroupMinimum(NamedTuple):
    """A certified minimum over groups; fields may have batch axes, all last.

    Attributes:
        logits: Blocks of the logits without the bias, at the minimum.
        bias: The bias of every group, (G,), or None.
        evidence: Objective, lower bound and dual ratios.
        price: The price tau, or the multiplier of the norm ball, shape (); NaN for non-negative
            features in balls.
        steps: Steps made, ().
        status: How the solve ended, ().
        escapes: With non-negative features, how often orbits were added; None for signed ones.
        orbits: With non-negative features, the orbits of the minimiser; None for signed ones.
    """

    logits: Blocks
    bias: Float[Array, "G *batch"] | None
    evidence: GroupEvidence
    price: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    status: Int[Array, "*batch"]
    escapes: int | None = None
    orbits: Any = None

    @property
    def objective(self) -> Float[Array, "*batch"]:
        """The objective."""
        return self.evidence.objective

    @property
    def lower_bound(self) -> Float[Array, "*batch"]:
        """The certified lower bound."""
        return self.evidence.lower_bound

    @property
    def relative_gap(self) -> Float[Array, "*batch"]:
        """The certified relative gap."""
        return self.evidence.relative_gap


@broadcasting
def certified(
    problem: GroupProblem,
    tol: Any = PATH_GAP,
    weight_exponent: Any = WEIGHT_EXPONENT,
    max_steps: Any = PATH_STEPS,
) -> GroupMinimum:
    """Minimise a problem over groups with signed features, and certify it.

    Pure: it can be jit-compiled and vmapped.

    Args:
        problem: Its leaves may be traced, and have batch axes last.
        tol: Relative duality gap at which to leave the path.
        weight_exponent: As in `ufm.solving.methods.interior_point.follow_path`.
        max_steps: Newton steps at most.
    """
    path = follow_path(problem, tol, max_steps, weight_exponent)
    # On the path the dual point is feasible, but modes that vanish at the minimum are not yet zero.
    # So the bound is taken at the point on the path, and the candidate is that point without these
    # modes.
    logits = _without_vanishing_modes(problem, path)
    gauge = nuclear_norm(problem, logits)
    if problem.gauge.bounded:
        # A point close to the sphere is scaled onto it. Squared error may have its minimum inside.
        stretch = jnp.where(gauge > 0, problem.gauge.price / jnp.where(gauge > 0, gauge, 1), 1)
        stretch = jnp.where(stretch < 1 + LARGEST_STRETCH, stretch, 1)
        logits = logits * stretch
        gauge = gauge * stretch
    loose = nuclear_norm(problem, path.logits)
    tidy, plain = (
        group_objective(problem, point, path.bias, cost)
        for point, cost in ((logits, gauge), (path.logits, loose))
    )
    # The comparison allows for rounding, so that a collapsed model is exactly zero.
    better = tidy <= plain * (1 + 64 * jnp.finfo(plain.dtype).eps)
    logits = jax.tree.map(lambda a, b: jnp.where(better, a, b), logits, path.logits)
    gauge = jnp.where(better, gauge, loose)
    evidence = group_evidence(problem, logits, path.bias, gauge, (path.logits, path.bias))
    above = evidence.lower_bound - evidence.objective > group_rounding(
        problem, logits, path.bias, evidence
    )
    status = jnp.where(above, Status.CONTRADICTION, path.status)
    # The barrier's own multiplier has an error of first order in the distance from the path.
    price = multiplier(problem, path.logits, path.bias) if problem.gauge.bounded else path.price
    return GroupMinimum(logits, path.bias, evidence, price, path.steps, status)


def _without_vanishing_modes(problem: GroupProblem, path: PathEnd) -> Blocks:
    """Return the logits without the modes that the path takes to zero."""
    weighted = path.logits.scaled_rows(problem.gauge.rows)

    def kept(values: Array, kappa: Array) -> Array:
        return values > INACTIVE * (kappa + jnp.sqrt(kappa**2 + values**2))

    within = jnp.where(kept(jnp.abs(weighted.within), path.kappa), path.logits.within, 0)
    matrix, kappa = weighted.between, path.kappa * path.weight
    if problem.loss.shift_invariant and problem.num_groups <= 2:
        between = jnp.where(
            kept(jnp.sqrt(jnp.sum(matrix**2, axis=(0, 1))), kappa), path.logits.between, 0
        )
    else:
        left, values, right = jnp.linalg.svd(jnp.moveaxis(matrix, (0, 1), (-2, -1)))
        lost = jnp.where(kept(values, kappa[..., None]), 0, values)
        cut = jnp.moveaxis((left * lost[..., None, :]) @ right, (-2, -1), (0, 1))
        # Exactly zero if no mode is left, without a rest of rounding.
        some = jnp.any(kept(values, kappa[..., None]), axis=-1)
        between = jnp.where(some, path.logits.between - cut / problem.gauge.rows[:, None], 0)
    return Blocks(within, between, path.logits.sizes)


certified_chunk = compiled(certified)


@on_host
def solve_batch(
    problems: GroupProblem,
    *,
    tol: float = PATH_GAP,
    chunk: int | None = None,
    workers: int | None = None,
    max_steps: int | None = None,
) -> GroupMinimum:
    """Return the certified minima of a batch of problems over the same number of groups.

    Problems are solved in chunks, first with few steps and the fast weight of the barrier. Those
    that need more are collected and solved again, so that hard ones do not hold up the others.

    Args:
        problems: Leaves with one batch axis, last, of length B; leaves without it are shared by all
            problems.
        tol: Relative duality gap at which to leave the path.
        chunk: Problems solved together, at most; 1024 if not given, and more on accelerators; fewer
            where there are many groups. The last chunk is filled up.
        max_steps: Newton steps of a problem at most.
        workers: Number of threads for one or two groups and a loss that does not see shifts; the
            number of cores if not given. Otherwise there is one thread. With several devices there
            is one, too, and each chunk is divided over the devices.

    Returns:
        The minima, NumPy arrays with the batch axis last. A numerical failure is in `status`,
        problem by problem.
    """
    length = max(
        (np.shape(leaf)[-1] for leaf, rank in _ranked(problems) if np.ndim(leaf) > rank), default=1
    )
    problems = _with_batch_axes(problems, length)
    limit = most_steps(problems) if max_steps is None else within_steps(max_steps)
    large = CHUNK_ON_ACCELERATOR * accelerators()
    # One program for all passes: filling up a chunk costs less than compiling another program.
    chunk = group_chunk_size(problems.num_groups, chunk or large or CHUNK, length)
    with ThreadPoolExecutor(_workers(problems, workers)) as pool:
        minima = _in_chunks(
            pool, problems, length, tol, chunk, WEIGHT_EXPONENT, min(FEW_STEPS, limit)
        )
        for weight_exponent in (WEIGHT_EXPONENT, 1.0):
            gaps = np.abs(minima.relative_gap)
            left = np.flatnonzero((minima.status != Status.CONVERGED) | ~(gaps <= OPEN))
            if left.size:
                chosen = jax.tree.map(lambda leaf, left=left: leaf[..., left], problems)
                again = _in_chunks(pool, chosen, left.size, tol, chunk, weight_exponent, limit)
                better = ~(np.abs(again.relative_gap) >= gaps[left])
                found = jax.tree.map(lambda new, better=better: new[..., better], again)
                minima = jax.tree.map(
                    lambda old, new, where=left[better]: _replaced(old, new, where), minima, found
                )
    return minima


def group_chunk_size(groups: int, chunk: int, length: int) -> int:
    """Return how many problems to solve together.

    Their Hessians must fit into memory. There are few sizes, as each needs a program of its own.
    """
    numbers, sizes = (
        (NUMBERS_ON_ACCELERATOR * accelerators(), FEW_ON_ACCELERATOR)
        if accelerators()
        else (NUMBERS, FEW)
    )
    room = max(int(numbers / (groups * (groups + 1)) ** 2), 1)
    few = next((few for few in sizes if length <= few), chunk)
    return divisible(min(chunk, few, 1 << (room.bit_length() - 1)))


def _workers(problems: GroupProblem, workers: int | None) -> int:
    """Return the number of threads.

    Only programs without matrix decompositions run in parallel, and only on one device. XLA's
    decompositions share a thread pool, and wait for each other.
    """
    return 1 if _decomposes(problems) or devices() > 1 else workers or os.cpu_count() or 1


def _decomposes(problems: GroupProblem) -> bool:
    """Whether the compiled program decomposes matrices; those of two groups are written out."""
    return not (problems.loss.shift_invariant and problems.num_groups <= 2)


def _in_chunks(
    pool: ThreadPoolExecutor,
    problems: GroupProblem,
    length: int,
    tol: float,
    chunk: int,
    weight_exponent: float,
    steps: int,
) -> GroupMinimum:
    chunks = -(-length // chunk)
    filled = jax.tree.map(
        lambda leaf: np.concatenate(
            [leaf, np.repeat(leaf[..., -1:], chunks * chunk - length, axis=-1)], axis=-1
        ),
        problems,
    )

    def run(index: int) -> GroupMinimum:
        with double_precision():
            part = jax.tree.map(lambda leaf: leaf[..., index * chunk : (index + 1) * chunk], filled)
            part = shard(part, -1, decompositions=_decomposes(problems))
            return to_numpy(
                certified_chunk(
                    part, np.asarray(tol), np.asarray(weight_exponent), np.asarray(steps, np.int32)
                )
            )

    parts = [run(0), *pool.map(run, range(1, chunks))]  # the first one compiles
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., :length], *parts)


def _replaced(old: np.ndarray, new: np.ndarray, where: np.ndarray) -> np.ndarray:
    old[..., where] = new
    return old


def _ranked(problems: GroupProblem) -> list[tuple[Any, int]]:
    """Return the leaves with the number of axes that they have in one problem."""
    ranks = jax.tree.map(lambda _: 0, problems)
    loss = eqx.tree_at(
        lambda loss: (loss.weights, loss.temperatures, loss.scales, loss.offsets),
        ranks.loss,
        (1,) * 4,
    )
    ranks = eqx.tree_at(lambda p: (p.counts, p.sizes, p.gauge.rows, p.loss), ranks, (1, 1, 1, loss))
    return list(zip(jax.tree.leaves(problems), jax.tree.leaves(ranks), strict=True))


def _with_batch_axes(problems: GroupProblem, length: int) -> GroupProblem:
    """Return the problems with the batch axis on every leaf."""
    leaves = [
        np.asarray(leaf, np.float64)
        if np.ndim(leaf) > rank
        else np.broadcast_to(np.asarray(leaf, np.float64)[..., None], (*np.shape(leaf), length))
        for leaf, rank in _ranked(problems)
    ]
    return jax.tree.unflatten(jax.tree.structure(problems), leaves)
