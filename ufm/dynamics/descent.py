"""Gradient descent and heavy ball, step by step as papers run them.

A path of descent is recorded like a path of gradient flow.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ufm._support import Status, checked_whole, compiled, double_precision, on_host
from ufm.dynamics.arguments import (
    checked_problem,
    checked_schedule,
    checked_stop,
    samples_at,
    start_of,
)
from ufm.dynamics.flow_metric import with_penalties
from ufm.dynamics.trajectory import Reached, Recorder, Trajectory
from ufm.problems import Problem, one_count_per_class
from ufm.solving.methods import (
    GradientDescent,
    Start,
    advance,
    first_iterate,
    parameters_of,
    unknowns_of,
)

__all__ = ["descent"]


@on_host
def descent(
    problem: Problem,
    *,
    learning_rate: float,
    steps: int | Sequence[int],
    momentum: float = 0.0,
    initial: Any = None,
    key: Any = None,
    scale: float = 0.1,
    penalty_factor: float = 1.0,
    resolution: Literal["classes", "samples"] = "classes",
    tol: float = 0.0,
    keep: int = 64,
) -> Trajectory:
    """Follow gradient descent, or heavy ball, of all N samples from an initial point.

        v <- momentum v - gradient,    parameters <- parameters + learning_rate v,

    with the gradient in h_k divided by n_k at class resolution. So both resolutions have the same
    path wherever the samples of each class start together. Method and loop are those of
    `ufm.solve(method=ufm.GradientDescent(...))`. As the learning rate goes to zero, the path is
    that of `gradient_flow` at time learning_rate / (1 - momentum) times the steps.

    Args:
        problem: A problem with weight decay. Non-negative features are projected after every step.
        learning_rate: The learning rate, positive.
        steps: Increasing numbers of steps to record at; the start is always recorded. One number is
            the last of up to 60 on a logarithmic scale.
        momentum: 0 <= momentum < 1.
        initial: Parameters to start from, as for `gradient_flow`.
        key: JAX PRNG key or integer seed of the Gaussian start; 0 if not given.
        scale: Standard deviation of the Gaussian start.
        penalty_factor: Factor of all penalties of the problem.
        resolution: "classes" or "samples".
        tol: Gradient norm at which to stop, checked at recorded steps; 0 never stops early.
        keep: Number of points to keep, as for `gradient_flow`.

    Returns:
        The trajectory, without the points after a gradient that is not finite. Its `status` says
        how descent ended.

    Raises:
        ValueError: If an argument is not valid.
        DynamicsInterrupted: On Ctrl-C. It is a KeyboardInterrupt whose `trajectory` holds what was
            recorded.
    """
    began = time.perf_counter()
    factor: Any = checked_problem(problem, penalty_factor, nonnegative=True)
    schedule = checked_schedule("steps", steps, whole=True)
    samples = samples_at(problem, resolution)
    tol, keep = checked_stop(tol), checked_whole("keep", keep, 2)
    method = GradientDescent(learning_rate, momentum=momentum)
    pace = float(learning_rate) / (1 - float(momentum))
    parameters = start_of(problem, initial, resolution, scale, key)
    with double_precision():
        recorder = Recorder(problem, samples, resolution, factor, schedule, keep)
        scaled = one_count_per_class(with_penalties(problem, factor))
        iterate = None

        def advance(target: float) -> Reached:
            nonlocal iterate
            until = np.int32(target)
            if iterate is None:
                iterate, point = _begun(scaled, samples, method, parameters)
            else:
                iterate, point = _went_on(scaled, samples, method, iterate, until)
            lost = int(iterate.status) == Status.NON_FINITE
            # A gradient that is not finite leaves no point to record, except at the start.
            recorded = int(iterate.step) == until and not (lost and until)
            status = Status.NON_FINITE if lost else Status.RUNNING
            return Reached(pace * int(until), int(until), point if recorded else None, status)

        return recorder.followed("descent", advance, tol, 0.0, 0.0, began)


@compiled
def _begun(problem, samples, method, parameters):  # type: ignore[no-untyped-def]
    zero = jnp.zeros((), jnp.int32)
    x = unknowns_of(problem, samples, method, parameters, jnp.float64)
    iterate = first_iterate(
        problem, samples, method, Start(x, jnp.zeros((), x.dtype), zero, zero), None
    )
    return iterate, parameters_of(problem, samples, method, iterate.x)


@compiled
def _went_on(problem, samples, method, iterate, until):  # type: ignore[no-untyped-def]
    # This must end at `until`, so the tolerance of the solver's own stopping measure is out of
    # reach. Without penalties that measure is not even defined.
    iterate = advance(problem, samples, method, iterate, until, jnp.full((), -1.0), 0)
    return iterate, parameters_of(problem, samples, method, iterate.x)
