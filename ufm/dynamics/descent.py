"""Gradient descent and heavy ball, step by step as the papers run them, with what the gradient flow records."""

import functools
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from ufm.compilation import compiled
from ufm.dynamics.arguments import checked_problem, checked_schedule, labels_of, start_of
from ufm.dynamics.flow_metric import with_penalties
from ufm.dynamics.trajectory import Recorder, Trajectory, interrupted_at
from ufm.precision import checked_positive, checked_whole, double_precision
from ufm.presolve import canonical
from ufm.problem import Parameters, Problem
from ufm.solvers import GradientDescent, Start, advance, first_iterate, parameters_of, unknowns_of
from ufm.status import Status

__all__ = ["descent"]


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
    r"""Follow gradient descent, or heavy ball, from an initial point: that of all N samples, at either resolution.

        v <- momentum v - gradient,    parameters <- parameters + learning_rate v,

    with the gradient in h_k divided by n_k at class resolution, so that both resolutions have the same path wherever the samples of each class
    start together (`ufm.solve(method=ufm.GradientDescent(...), resolution="classes")` takes the gradient as it is). It is the solver's own
    loop. As the rate goes to zero the path is that of `gradient_flow` at time learning_rate / (1 - momentum) times the steps.

    Args:
        problem: with weight decay; non-negative features are projected after every step.
        learning_rate: positive.
        steps: increasing numbers of steps to record at, from the start on; or the last alone, with up to 60 on a logarithmic scale.
        momentum: 0 <= momentum < 1.
        initial: where to start, as for `gradient_flow`; so are the others.
        key: of the random start.
        scale: of the random start.
        penalty_factor: what the problem's penalties are multiplied with.
        resolution: "classes" or "samples".
        tol: gradient norm at which to end.
        keep: how many points to keep.

    Returns:
        The trajectory, without the points after a gradient that is not finite; how it ended is in its `status`.

    Raises:
        ValueError: for bad arguments.
        DynamicsInterrupted: on Ctrl-C; a KeyboardInterrupt whose `trajectory` holds what was recorded.
    """
    began = time.perf_counter()
    factor: Any = checked_problem(problem, penalty_factor, nonnegative=True)
    schedule, labels = checked_schedule("steps", steps, whole=True), labels_of(problem, resolution)
    tolerance, keep = tol if tol == 0 else checked_positive("tol", tol), checked_whole("keep", keep, 2)
    method = GradientDescent(learning_rate, momentum=momentum)
    if labels is None:
        counts = tuple(np.asarray(problem.class_counts).tolist())
        method = GradientDescent(optimizer=_by_sample(counts, float(learning_rate), float(momentum)))
    pace = float(learning_rate) / (1 - float(momentum))
    parameters = start_of(problem, initial, resolution, scale, key)
    with double_precision():
        recorder = Recorder(problem, labels, factor, schedule, keep)
        status, interrupted, iterate = Status.RUNNING, None, None
        scaled = canonical(with_penalties(problem, factor))
        try:
            for target in schedule.astype(np.int32):
                iterate, parameters = (
                    _begun(scaled, labels, method, parameters)
                    if iterate is None
                    else _went_on(scaled, labels, method, iterate, target)
                )
                lost = int(iterate.status) == Status.NON_FINITE
                measure = None
                if int(iterate.step) == target and not (lost and target):
                    measure = recorder.add(pace * int(target), int(target), parameters)
                if lost or (measure is not None and not np.isfinite(measure.objective)):
                    status = Status.NON_FINITE
                elif measure is not None and measure.gradient_norm <= tolerance:
                    status = Status.CONVERGED
                if status != Status.RUNNING:
                    break
            else:
                status = Status.FINISHED
        except KeyboardInterrupt as stop:
            interrupted, status = stop, Status.INTERRUPTED
            if not recorder.times:
                raise
        trajectory = recorder.trajectory("descent", status, 0.0, 0.0, time.perf_counter() - began)
    if interrupted is not None:
        raise interrupted_at(trajectory) from interrupted
    return trajectory


@functools.cache
def _by_sample(counts: tuple[float, ...], rate: float, momentum: float) -> optax.GradientTransformation:
    """Return heavy ball on class features as samples would have it; one object per setting, as it is what compiled code is kept under."""

    def divided(slope: Parameters, state: Any, point: Any = None) -> tuple[Parameters, Any]:
        features = slope.features / jnp.asarray(counts, slope.features.dtype)[:, None]
        return slope._replace(features=features), state

    return optax.chain(
        optax.GradientTransformation(lambda point: optax.EmptyState(), divided), optax.sgd(rate, momentum or None)
    )


@compiled
def _begun(problem, labels, method, parameters):  # type: ignore[no-untyped-def]
    zero = jnp.zeros((), jnp.int32)
    x = unknowns_of(problem, labels, method, parameters, jnp.float64)
    iterate = first_iterate(problem, labels, method, Start(x, jnp.zeros((), x.dtype), zero, zero), None)
    return iterate, parameters_of(problem, labels, method, iterate.x)


@compiled
def _went_on(problem, labels, method, iterate, until):  # type: ignore[no-untyped-def]
    # The tolerance of the solver's own stopping measure is out of reach, and without penalties that measure is not defined: this ends at `until`.
    iterate = advance(problem, labels, method, iterate, until, jnp.full((), -1.0), 0)
    return iterate, parameters_of(problem, labels, method, iterate.x)
