r"""Gradient flow, integrated with step sizes adapted to a tolerance.

Two integrators are available. Measured on cross-entropy with ten classes of 500 and 50 samples,
d = 10, weight decay 5e-3 and 1e-5, tolerance 1e-9:

- "explicit" (Tsitouras, order 5) takes 1300 steps to time 1e5, and then 12000 for every 1e6. The
  largest curvature bounds its steps.
- "implicit" (Kvaerno, order 5) takes 560 steps in all, at 7 ms a step for 200 unknowns. It
  factorises the Jacobian of all unknowns at once.

The flow without penalties is not stiff: its curvature falls as time grows. So "explicit" is the
default. "implicit" is for late times under weight decay, with up to about a thousand unknowns.

With ReLUs between layers the gradient jumps where the input of a unit is zero. The integrator
follows a path that crosses such a kink. It cannot follow a path that slides along one, as many do
on their way to minima, which lie on kinks: the steps shrink to almost nothing, and the run ends
with `Status.INTEGRATION_FAILED` or `Status.MAX_STEPS`. Gradient descent goes on there.
"""

import functools
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ufm._support import (
    Status,
    check_one_of,
    checked_positive,
    checked_whole,
    compiled,
    double_precision,
    on_host,
)
from ufm.dynamics.arguments import (
    checked_problem,
    checked_schedule,
    checked_stop,
    samples_at,
    start_of,
)
from ufm.dynamics.flow_metric import from_flow_coordinates, to_flow_coordinates, with_penalties
from ufm.dynamics.trajectory import Reached, Recorder, Trajectory
from ufm.problems import Parameters, Problem, one_count_per_class

__all__ = ["Integration", "diffrax_or_remedy", "gradient_flow"]

CHUNK = 2000  # steps in one compiled call; Ctrl-C is seen between calls
# A chunk that covers at most this share of the way to the next recorded time has failed: at that
# pace the way would take 100 000 chunks.
STUCK = 1e-5


@on_host
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
    r"""Follow the gradient flow of all N samples from an initial point, at either resolution.

        W_l' = -dF/dW_l,    h_i' = -(1/c_i) dF/dh_i,    b' = -dF/db,

    with c_i the count of feature row i: 1 for a sample, n_k for a class. The two resolutions have
    the same path wherever the samples of each class start together. The flow is the limit of
    gradient descent on samples: step s at learning rate r is time r s.

    Args:
        problem: A problem with weight decay and features of any sign.
        times: Increasing times to record at; the start at time 0 is always recorded. One number
            is the last of 60 times on a logarithmic scale.
        initial: Parameters to start from (weights, features, bias). Features have one row per
            class, or one per sample at sample resolution.
        key: JAX PRNG key or integer seed of the Gaussian start; 0 if not given.
        scale: Standard deviation of the Gaussian start.
        penalty_factor: Factor of all penalties of the problem; 0 is the flow of the loss alone.
        resolution: "classes" or "samples".
        solver: "explicit", or "implicit" for late times under weight decay.
        rtol: Relative tolerance of one step.
        atol: Absolute tolerance of one step, for each entry of W, sqrt(c) h and b.
        tol: Gradient norm at which to stop, checked at recorded times; 0 never stops early.
        max_steps: Total number of steps of the integrator.
        keep: Number of points to keep, at least 2: evenly spread over the recorded times, with
            the first and the last. Measures are kept at all times.

    Returns:
        The trajectory. Its `status` says how the flow ended.

    Raises:
        ValueError: If an argument is not valid.
        ImportError: If diffrax is not installed.
        DynamicsInterrupted: On Ctrl-C. It is a KeyboardInterrupt whose `trajectory` holds what was
            recorded.
    """
    began = time.perf_counter()
    diffrax_or_remedy()
    factor = checked_problem(problem, penalty_factor, nonnegative=False)
    schedule, samples = checked_schedule("times", times), samples_at(problem, resolution)
    check_one_of("solver", solver, ("explicit", "implicit"))
    rtol, atol = checked_positive("rtol", rtol), checked_positive("atol", atol)
    tol, keep = checked_stop(tol), checked_whole("keep", keep, 2)
    max_steps = checked_whole("max_steps", max_steps)
    parameters = start_of(problem, initial, resolution, scale, key)
    with double_precision():
        recorder = Recorder(problem, samples, resolution, factor, schedule, keep)
        arguments = one_count_per_class(problem), samples, np.asarray(factor)
        start = to_flow_coordinates(jax.tree.map(jnp.asarray, parameters), samples)
        path = Integration(_downhill, solver, arguments, start, max_steps, rtol, atol)

        def advance(target: float) -> Reached:
            status = path.advance(target)
            point = from_flow_coordinates(path.point, samples)
            return Reached(float(path.now), path.steps, point, status)

        return recorder.followed("flow", advance, tol, rtol, atol, began)


def _downhill(t: Any, point: Parameters, arguments: Any) -> Parameters:
    """Return the velocity of the flow, in the coordinates of its metric."""
    problem, samples, factor = arguments
    scaled = with_penalties(problem, factor)
    slope = jax.grad(lambda p: scaled.objective(from_flow_coordinates(p, samples), samples))(point)
    return jax.tree.map(jnp.negative, slope)


class Integration:
    """An initial value problem point' = field(t, point, arguments), integrated from time 0 on.

    Attributes:
        point: Where the path is.
        now: The time there.
        steps: Number of steps made.
        left: Number of steps left. A caller may set it anew before a call of `advance`.
    """

    def __init__(
        self,
        field: Any,
        solver: str,
        arguments: Any,
        point: Any,
        max_steps: int,
        rtol: float,
        atol: float,
        min_step: float | None = None,
    ):
        """State the problem.

        Args:
            field: The velocity. Compiled code is kept under this object.
            solver: "explicit" or "implicit".
            arguments: Handed to the field.
            point: Where to start.
            max_steps: Number of steps to make at most.
            rtol: Relative tolerance of one step.
            atol: Absolute tolerance of one step.
            min_step: Smallest step size, accepted with any error; no limit if None.
        """
        self.point, self.now, self.steps, self.left = point, np.float64(0), 0, max_steps
        self._field, self._solver, self._arguments = field, solver, arguments
        self._tolerances = np.asarray(rtol, np.float64), np.asarray(atol, np.float64)
        self._min_step = min_step

    def advance(self, target: float) -> Status:
        """Integrate to a time.

        Args:
            target: The time.

        Returns:
            RUNNING if the time was reached; MAX_STEPS or INTEGRATION_FAILED otherwise.
        """
        while self.now < target:
            if self.left <= 0:
                return Status.MAX_STEPS
            before = self.now
            ends = np.asarray(before, np.float64), np.asarray(target, np.float64)
            self.point, now, made, okay = _integrated(
                self._field,
                self._solver,
                min(CHUNK, self.left),
                self._arguments,
                self.point,
                *ends,
                *self._tolerances,
                self._min_step,
            )
            self.now = np.float64(now)
            self.steps, self.left = self.steps + int(made), self.left - int(made)
            slow = self.now < target and self.now - before <= STUCK * (target - before)
            if not bool(okay) or slow:
                return Status.INTEGRATION_FAILED
        return Status.RUNNING


@compiled
def _integrated(  # type: ignore[no-untyped-def]
    field, solver, most, arguments, point, start, end, rtol, atol, min_step
):
    """Return the point, its time, the number of steps, and whether nothing failed."""
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
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=min_step),
        # Flows are never differentiated. The default number of checkpoints is zero, an error, for
        # one or two steps.
        adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=1),
        max_steps=most,
        throw=False,
    )
    # Running out of steps is no failure of the integrator.
    out_of_steps = reached.result == diffrax.RESULTS.max_steps_reached
    arrived = reached.result == diffrax.RESULTS.successful
    now = jnp.where(arrived, end, reached.ts[0])
    point = jax.tree.map(lambda block: block[0], reached.ys)
    return point, now, reached.stats["num_steps"], arrived | out_of_steps


@functools.cache
def diffrax_or_remedy() -> ModuleType:
    """Return the module diffrax.

    Raises:
        ImportError: If diffrax is not installed. The message names the extra to install.
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "gradient flows need diffrax, the extra `dynamics`: pip install 'ufm[dynamics]'. "
            "`ufm.dynamics.descent` does without."
        ) from error
    return diffrax
