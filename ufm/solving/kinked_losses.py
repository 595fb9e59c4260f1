"""Losses with kinks, by the method of multipliers: smooth problems, each around the last duals.

Every problem has the loss with its kinks rounded off around the duals of the minimiser before. The
objective of a minimiser is that of the loss with its kinks, and the bound comes from the duals and
the conjugate of that loss. So the certificate speaks of the problem as it was stated, whatever was
rounded off.

The gap falls by a factor a round, which is smaller the less is rounded off: where it is not small,
less is rounded off in the next round.

Reference: Rockafellar (1976), "Augmented Lagrangians and applications of the proximal point
algorithm in convex programming".
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ufm._support import Status, certified_status, compiled, double_precision, rebuilt, to_numpy
from ufm.certificates import (
    BoundInputs,
    Certificate,
    bound_inputs,
    certificate_from,
    dual_bound,
    has_convex_form,
)
from ufm.problems import Parameters, Problem, Samples, is_library_loss, samples_of
from ufm.solving.solution import Solution

__all__ = ["has_kinked_loss", "solve_kinked"]

ROUNDS = 40
IDLE = 4  # rounds without a smaller gap after which no more are tried
WIDTH = 1.0  # the margins of hinge losses are one
NARROWER = 0.2  # where a round leaves more than this share of the gap
NARROWEST = 1e-4


def has_kinked_loss(problem: Problem) -> bool:
    """Return whether a problem is solved by the method of multipliers.

    It is for one layer and a loss of the library that has kinks.
    """
    center = np.zeros((1, problem.num_outputs))
    return (
        has_convex_form(problem)
        and is_library_loss(problem.loss)
        and problem.loss.softened(center, WIDTH) is not None
    )


def solve_kinked(
    problem: Problem,
    tol: float,
    started: float,
    solve_smooth: Callable[[Problem, Parameters | None], Solution],
) -> Solution:
    """Return the point of the smallest gap among the minimisers of the smooth problems.

    Args:
        problem: A problem with a kinked loss.
        tol: Relative gap to reach.
        started: Time at the start of the solve, from `time.perf_counter`.
        solve_smooth: Solves a problem from a point, or from random ones.
    """
    center, initial, width = np.zeros((1, problem.num_outputs)), None, np.asarray(WIDTH)
    before = np.inf
    best: tuple[Solution, Certificate] | None = None
    steps, evaluations, idle = 0, 0, 0
    for _ in range(ROUNDS):
        smooth = _with(problem, center, width, exact=False)
        found = solve_smooth(smooth, initial)
        steps, evaluations = steps + found.steps, evaluations + found.evaluations
        certificate = _certificate(problem, found.parameters, (center, width), tol)
        smaller = best is None or certificate.gap < best[1].gap
        if smaller:
            best = found, certificate
        idle = 0 if smaller else idle + 1
        if certificate.holds or idle == IDLE:
            break
        if certificate.gap > NARROWER * before:
            width = np.maximum(NARROWER * width, NARROWEST)
        before, initial = certificate.gap, found.parameters
        with double_precision():
            rows = jnp.asarray(problem.target_rows(np.float64, np))
            center = np.asarray(smooth.loss.duals(jnp.asarray(found.logits), rows))
    assert best is not None
    found, certificate = best
    status = certified_status(found.status, certificate.holds, certificate.tight)
    if not certificate.believable:
        status = Status.CONTRADICTION
    value = certificate.objective
    lanes = found.restarts
    lowest = np.where(np.arange(len(lanes.objective)) == lanes.best, value, lanes.objective)
    minima = (found.minima[0]._replace(objective=value),) if found.minima else ()
    return rebuilt(
        found,
        problem=problem,
        objective=value,
        status=status,
        steps=steps,
        evaluations=evaluations,
        certificate=certificate,
        restarts=lanes._replace(objective=lowest),
        minima=minima,
        seconds=time.perf_counter() - started,
    )


def _with(problem: Problem, center: np.ndarray, width: np.ndarray, exact: bool) -> Any:
    """Return the problem with its loss rounded off around duals."""
    return rebuilt(problem, loss=problem.loss.softened(center, width, exact=exact))


def _certificate(
    problem: Problem, parameters: Parameters, softened: tuple[np.ndarray, np.ndarray], tol: float
) -> Certificate:
    """Return the certificate of a point, its bound from the duals of the rounded-off loss.

    With the conjugate of the loss itself that bound holds for the problem as it was stated.
    """
    exact = _with(problem, *softened, exact=True)
    with double_precision():
        samples = samples_of(problem, problem.num_rows)
        inputs = to_numpy(_inputs(problem, exact, samples, parameters))
        certificate = certificate_from(exact, inputs, tol)
    assert certificate is not None
    return certificate


@functools.partial(compiled, once=True)
def _inputs(
    problem: Problem, exact: Problem, samples: Samples, parameters: Parameters
) -> BoundInputs:
    """Return what the certificate is computed from."""
    inputs = bound_inputs(problem, samples, parameters)
    return inputs._replace(bound=dual_bound(exact, inputs.logits))
