r"""Gradient flow, integrated with steps adapted to a tolerance.

Two integrators, measured on cross-entropy with ten classes of 500 and 50, d = 10, weight decay 5e-3 and 1e-5, tolerance 1e-9: the explicit one of
Tsitouras (order 5) takes 1300 steps to time 1e5 and then 12000 for every 1e6, as its steps are bounded by the largest curvature; the implicit
one (Kvaerno, order 5) takes 560 in all, at 7 ms for 200 unknowns. The flow without penalties is not stiff: its curvature falls as its time
grows. So "explicit" is the default, and "implicit" is for late times under weight decay, with up to about a thousand unknowns, whose
Jacobian it factorises.

With ReLUs between layers the gradient jumps where a unit's input is zero. A path that crosses such a kink is followed; one that slides along it, as
many do on their way to minima, which lie on kinks, is not: the steps shrink to almost nothing, and `max_steps` ends it. Gradient descent goes on
there.
"""

import functools
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ufm.compilation import compiled
from ufm.dynamics.arguments import checked_problem, checked_schedule, labels_of, start_of
from ufm.dynamics.flow_metric import from_flow_coordinates, to_flow_coordinates, with_penalties
from ufm.dynamics.trajectory import Recorder, Trajectory, interrupted_at
from ufm.precision import checked_positive, checked_whole, double_precision
from ufm.presolve import canonical
from ufm.problem import Parameters, Problem
from ufm.resolutions import columns_of
from ufm.status import Status

__all__ = ["gradient_flow", "integrated"]

CHUNK = 2000  # steps between two looks at the keyboard
STUCK = 1e-5  # of the way to the next recorded time, which a chunk of steps must make


def gradient_flow(
    problem: Problem,
    *,
    times: float | Sequence[float],
    initial: Any = None,
    key: Any = None,
    scale: float = 0.1,
    penalty_factor: float = 1.0,
    resolution: Literal["classes", "samples"] = "classes",
    solver: Literal["explicit", "implicit"] = "explicit",
    rtol: float = 1e-9,
    atol: float = 1e-12,
    tol: float = 0.0,
    max_steps: int = 1_000_000,
    keep: int = 64,
) -> Trajectory:
    r"""Follow the gradient flow of a problem from an initial point: the flow of all N samples, at either resolution.

        W_l' = -dF/dW_l,    h_i' = -(1/c_i) dF/dh_i,    b' = -dF/db,

    c_i the count of column i: 1 for a sample, n_k for a class, with which the two resolutions have the same path wherever the samples of each
    class start together. This is the limit of gradient descent on samples with rate r, at time r times the steps.

    Args:
        problem: with weight decay and features of any sign.
        times: increasing times to record at, from the start at 0 on; or the last time alone, with 60 on a logarithmic scale.
        initial: parameters to start from (weights, features, bias); features of one row per class, or one per sample at that resolution.
        key: a JAX PRNG key, or an integer seed, for Gaussian entries; 0 if not given.
        scale: their standard deviation.
        penalty_factor: what the problem's penalties are multiplied with; 0 for the flow of the loss alone.
        resolution: "classes" or "samples".
        solver: "explicit", or "implicit" for late times under weight decay.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, for each of the numbers W, sqrt(c) h and b.
        tol: end as soon as a recorded gradient norm is at most this; 0 follows the flow to the last time.
        max_steps: of the integrator, in all.
        keep: how many points to keep, spread evenly over the recorded times, with the first and the last; at least 2. Measures are kept of all.

    Returns:
        The trajectory; how it ended is in its `status`.

    Raises:
        ValueError: for bad arguments.
        ImportError: without diffrax.
        DynamicsInterrupted: on Ctrl-C; a KeyboardInterrupt whose `trajectory` holds what was recorded.
    """
    began = time.perf_counter()
    diffrax_or_remedy()
    factor = checked_problem(problem, penalty_factor, nonnegative=False)
    schedule, labels = checked_schedule("times", times), labels_of(problem, resolution)
    if solver not in ("explicit", "implicit"):
        raise ValueError(f"`solver` must be 'explicit' or 'implicit', got {solver!r}.")
    rtol, atol = checked_positive("rtol", rtol), checked_positive("atol", atol)
    tolerance = tol if tol == 0 else checked_positive("tol", tol)
    left, keep = checked_whole("max_steps", max_steps), checked_whole("keep", keep, 2)
    parameters = start_of(problem, initial, resolution, scale, key)
    with double_precision():
        columns = columns_of(problem.class_counts, jax.tree.map(jnp.asarray, labels), jnp.float64)
        recorder = Recorder(problem, labels, factor, schedule, keep)
        status, steps, interrupted = Status.RUNNING, 0, None
        point = to_flow_coordinates(jax.tree.map(jnp.asarray, parameters), columns)
        now: Any = np.float64(0)
        try:
            for target in schedule:
                arguments = canonical(problem), labels, np.asarray(factor)
                while now < target and status == Status.RUNNING:
                    before = float(now)
                    point, now, made, okay = integrated(
                        _downhill, solver, min(CHUNK, left), arguments, point, now, target, rtol, atol
                    )
                    steps, left = steps + int(made), left - int(made)
                    if not bool(okay) or (now < target and now - before <= STUCK * (target - before)):
                        status = Status.INTEGRATION_FAILED
                    elif left <= 0 and now < target:
                        status = Status.MAX_STEPS
                measure = recorder.add(float(now), steps, from_flow_coordinates(point, columns))
                if not (np.isfinite(measure.objective) and np.isfinite(measure.gradient_norm)):
                    status = Status.NON_FINITE
                elif status == Status.RUNNING and measure.gradient_norm <= tolerance:
                    status = Status.CONVERGED
                if status != Status.RUNNING:
                    break
            else:
                status = Status.FINISHED
        except KeyboardInterrupt as stop:
            interrupted, status = stop, Status.INTERRUPTED
            if not recorder.times:
                raise
        trajectory = recorder.trajectory("flow", status, rtol, atol, time.perf_counter() - began)
    if interrupted is not None:
        raise interrupted_at(trajectory) from interrupted
    return trajectory


def _downhill(t: Any, point: Parameters, arguments: Any) -> Parameters:
    problem, labels, factor = arguments
    columns = columns_of(problem.class_counts, labels, jnp.float64)
    scaled = with_penalties(problem, factor)
    slope = jax.grad(lambda p: scaled.objective(from_flow_coordinates(p, columns), columns))(point)
    return jax.tree.map(jnp.negative, slope)


def integrated(
    field: Any,
    solver: str,
    most: int,
    arguments: Any,
    point: Any,
    start: Any,
    end: Any,
    rtol: Any,
    atol: Any,
    shortest: float | None = None,
) -> Any:
    """Integrate point' = field(t, point, arguments) to `end`, or for `most` steps at most, in steps not below `shortest`, whatever their error.

    Returns:
        The point, its time, the number of steps, and whether nothing failed (running out of steps is no failure).
    """
    numbers = tuple(np.asarray(number, np.float64) for number in (start, end, rtol, atol))
    return _integrated(field, solver, most, arguments, point, *numbers, shortest)


@compiled
def _integrated(field, solver, most, arguments, point, start, end, rtol, atol, shortest):  # type: ignore[no-untyped-def]
    diffrax = diffrax_or_remedy()
    method = diffrax.Tsit5() if solver == "explicit" else diffrax.Kvaerno5()
    reached = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        start,
        end,
        None,
        point,
        arguments,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=shortest),
        # Flows are never differentiated. The default number of checkpoints is zero, an error, for
        # one or two steps.
        adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=1),
        max_steps=most,
        throw=False,
    )
    out_of_steps = reached.result == diffrax.RESULTS.max_steps_reached
    arrived = reached.result == diffrax.RESULTS.successful
    now = jnp.where(arrived, end, reached.ts[0])
    return jax.tree.map(lambda block: block[0], reached.ys), now, reached.stats["num_steps"], arrived | out_of_steps


@functools.cache
def diffrax_or_remedy() -> ModuleType:
    """Return the module diffrax.

    Raises:
        ImportError: naming the extra to install.
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "gradient flows need diffrax, the extra `dynamics`: pip install 'ufm[dynamics]'. `ufm.dynamics.descent` does without."
        ) from error
    return diffrax
