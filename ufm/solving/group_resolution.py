"""Solves over groups of interchangeable classes, at a cost that does not depend on their number."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ufm._support import ArgumentError, Status, compiled, double_precision, to_numpy
from ufm.certificates import (
    Certificate,
    GroupEvidence,
    group_evidence,
    group_rounding,
    multiplier,
    nuclear_norm,
)
from ufm.metrics import centred_bias
from ufm.problems import DENSE_LIMIT, Blocks, GroupProblem, Problem, grouped
from ufm.solving.block_point import block_point
from ufm.solving.group_batch import GroupMinimum, certified
from ufm.solving.methods import most_steps
from ufm.solving.nonnegative_groups import copies_of, minimise_over_orbits
from ufm.solving.solution import Solution, solution_of_point

__all__ = ["MOST_GROUPS_SOLVED", "solve_groups"]

MOST_GROUPS_SOLVED = 40  # the number of unknowns grows as its square
OPEN = 1e-9  # relative gap up to which class resolution, which is no more accurate, is not tried
MOST_CLASSES = 300  # that are solved class by class where the method of groups fails: a few seconds
PATH_SHARE = 1e-3  # relative gap at which the path is left, over the tolerance


def solve_groups(
    problem: Problem,
    tol: float = 1e-9,
    started: float | None = None,
    by_classes: Callable[[], Any] | None = None,
) -> Solution:
    """Minimise and certify a problem at group resolution.

    Args:
        problem: A problem of one layer, with a convex loss and a feature dimension that holds the
            convex minimiser.
        tol: Relative gap to certify to.
        started: Time at the start of the solve, from `time.perf_counter`.
        by_classes: Solves the problem at class resolution. It is called where the method of groups
            fails for signed features and at most 300 classes. The solution then holds the mean of
            its logits over permutations within groups, which is no worse.

    Raises:
        ValueError: If group resolution is not exact, there are more than 40 groups, or the
            minimiser with non-negative features that was found needs more dimensions.
    """
    started = time.perf_counter() if started is None else started
    data, groups = grouped(problem)
    if data.num_groups > MOST_GROUPS_SOLVED:
        raise ValueError(
            f"resolution 'groups' solves up to {MOST_GROUPS_SOLVED} groups of classes with equal "
            f"counts, got {data.num_groups}; use resolution='classes' (at most {DENSE_LIMIT} "
            "classes), or give classes of nearly equal counts the same one."
        )
    if not problem.feature_cone.rotates:
        found = _by_orbits(data, tol, problem.feature_dim)
    else:
        found = _by_path(data, groups, tol, by_classes)
    bias = centred_bias(data, np.asarray(data.sizes), found.bias)
    certificate = _certificate(problem, data, tol, found._replace(bias=bias))
    return solution_of_point(
        problem,
        "groups",
        block_point(problem, data, groups, found.logits, bias, found.orbits),
        certificate,
        objective=float(found.objective),
        residual=float(found.relative_gap),
        status=Status(int(found.status)),
        steps=int(found.steps),
        started=started,
        price=float(found.price),
        escapes=found.escapes or 0,
        dual_ratios=np.asarray(found.evidence.within),
    )


def _by_orbits(data: GroupProblem, tol: float, feature_dim: int) -> GroupMinimum:
    """Minimise with non-negative features.

    Raises:
        ValueError: If the minimiser that was found needs more dimensions.
    """
    found = minimise_over_orbits(data, tol, feature_dim)
    needed = sum(copies_of(np.asarray(data.sizes), found.orbits))
    if needed > feature_dim:
        raise ArgumentError(
            "feature_dim",
            f"= {feature_dim} is too small for the minimiser found at resolution 'groups', "
            f"which has {needed} non-negative atoms; raise it, or use resolution='classes'",
        )
    return found


def _by_path(
    data: GroupProblem, groups: np.ndarray, tol: float, by_classes: Callable[[], Any] | None
) -> GroupMinimum:
    """Minimise with signed features; the other arguments are those of `solve_groups`."""
    with double_precision():
        for weight_exponent in (0.0, 0.5, 1.0):
            aim = np.asarray(min(PATH_SHARE * tol, 1e-12))
            limit = np.asarray(most_steps(data), np.int32)
            minimum = to_numpy(_certified(data, aim, np.asarray(weight_exponent), limit))
            if minimum.status == Status.CONVERGED:
                break
    failed = not float(minimum.relative_gap) <= max(tol, OPEN)
    if failed and by_classes is not None and groups.size <= MOST_CLASSES:
        solution = by_classes()
        logits, bias, evidence, price = _averaged(data, groups, solution)
        if not float(evidence.relative_gap) >= float(minimum.relative_gap):
            reached: Any = price, minimum.steps + solution.steps, solution.status
            return GroupMinimum(logits, bias, evidence, *reached)
    return minimum


def _certificate(
    problem: Problem, data: GroupProblem, tol: float, found: GroupMinimum
) -> Certificate:
    """Return the certificate of what was found."""
    gauge, words = problem.feature_cone.gauge_words, problem.regularizer.words
    evidence = found.evidence
    return Certificate(
        objective=float(evidence.objective),
        lower_bound=float(evidence.lower_bound),
        scale=float(evidence.scale),
        tolerance=float(tol),
        dual_ratio=float(evidence.ratio),
        method=f"dual bound over groups, {gauge}, {words}",
        tight=True,
        rounding=float(group_rounding(data, found.logits, found.bias, evidence)),
    )


_certified = compiled(certified)


def _averaged(
    data: GroupProblem, groups: np.ndarray, solution: Solution
) -> tuple[Blocks, Any, GroupEvidence, float]:
    """Average a solution at class resolution over permutations within groups.

    Returns:
        Logits as blocks, the bias, evidence and price.
    """
    bias = None if solution.bias is None else np.asarray(solution.bias)
    mean = None if bias is None else np.bincount(groups, bias) / np.bincount(groups)
    average = Blocks.average(np.asarray(solution.point.plain_logits), groups)
    with double_precision():
        logits, evidence, price = to_numpy(_evidence(data, average, mean))
    return logits, mean, evidence, float(price)


@functools.partial(compiled, once=True)
def _evidence(data: GroupProblem, logits: Blocks, bias: Any) -> tuple[Blocks, GroupEvidence, Any]:
    gauge, price = nuclear_norm(data, logits), data.gauge.price
    if data.gauge.bounded:
        shrink = jnp.minimum(
            1, data.gauge.price / jnp.maximum(gauge, jnp.finfo(gauge.dtype).tiny)
        )  # by what rounding has added
        logits, gauge = logits * shrink, gauge * shrink
        price = multiplier(data, logits, bias)
    return logits, group_evidence(data, logits, bias, gauge), price
