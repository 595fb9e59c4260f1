"""Records of paths of gradient flow and gradient descent."""

import os
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ufm._support import (
    ArgumentError,
    Module,
    Status,
    compiled,
    on_host,
    printed,
    table_lines,
    to_numpy,
)
from ufm.dynamics.arguments import stacked
from ufm.dynamics.flow_metric import to_flow_coordinates, with_penalties
from ufm.metrics import collapse_summary
from ufm.problems import Parameters, Problem, Samples, check_dense, labels, one_count_per_class

__all__ = [
    "DynamicsInterrupted",
    "Observation",
    "Reached",
    "Recorder",
    "Trajectory",
    "load_trajectory",
    "observed",
]

FORMAT = "ufm trajectory 1"


class DynamicsInterrupted(KeyboardInterrupt):
    """Ctrl-C along a path.

    Attributes:
        trajectory: What was recorded until then.
    """

    trajectory: "Trajectory"


class Reached(NamedTuple):
    """Where a path is, on the way to a time to record at.

    Attributes:
        time: The time reached.
        steps: Number of steps made until then.
        point: The parameters; None if there is nothing to record.
        status: RUNNING if the path goes on from here, otherwise how it ended.
    """

    time: float
    steps: int
    point: Parameters | None
    status: Status


@printed
class Observation(NamedTuple):
    """Measures of a point, or of T points with the axis of times first.

    U stands for the features times the square roots of their counts. Norms are Frobenius norms.

    Attributes:
        objective: The objective, penalties times their factor included.
        data_term: The loss alone, a mean over all samples.
        gradient_norm: Norm of the gradient of the objective in flow coordinates.
        norm: sqrt(sum_l ||W_l||^2 + ||U||^2).
        alignment: Cosine between (W, U) and minus the gradient, the direction of the flow.
        nc1: Within-class variability, as in `ufm.metrics.CollapseSummary`; so are the next six.
        nc2_features: Distance of the features from a simplex ETF.
        nc2_weights: Distance of the weights from a simplex ETF.
        nc2_features_frame: Distance of the features from an orthogonal frame.
        nc2_weights_frame: Distance of the weights from an orthogonal frame.
        nc3: Distance between weights and features.
        nc4: Share of decisions unlike those of the nearest class mean.
        margins: Smallest z_y - z_c of each class, shape (K,).
        weight_singular_values: Singular values of each layer's weights.
        feature_singular_values: Singular values of U.
        logit_singular_values: Singular values of the logits without bias, rows times the square
            roots of the counts.
        balance: ||W_1^T W_1 - U^T U||, then ||W_{l+1}^T W_{l+1} - W_l W_l^T||, shape (L,).
    """

    objective: Float[Array, " *T"]
    data_term: Float[Array, " *T"]
    gradient_norm: Float[Array, " *T"]
    norm: Float[Array, " *T"]
    alignment: Float[Array, " *T"]
    nc1: Float[Array, " *T"]
    nc2_features: Float[Array, " *T"]
    nc2_weights: Float[Array, " *T"]
    nc2_features_frame: Float[Array, " *T"]
    nc2_weights_frame: Float[Array, " *T"]
    nc3: Float[Array, " *T"]
    nc4: Float[Array, " *T"]
    margins: Float[Array, "*T K"]
    weight_singular_values: tuple[Float[Array, "*T r"], ...]
    feature_singular_values: Float[Array, "*T r"]
    logit_singular_values: Float[Array, "*T r"]
    balance: Float[Array, "*T L"]

    def __str__(self) -> str:
        scalars = Observation._fields[: Observation._fields.index("margins")]
        rows = [(name, _range_text(getattr(self, name))) for name in scalars]
        rows += [("margins", f"smallest {_range_text(np.min(np.asarray(self.margins), axis=-1))}")]
        rows += [("balance", f"first layer {_range_text(np.asarray(self.balance)[..., 0])}")]
        return "\n".join(table_lines(rows))


def _range_text(values: Any) -> str:
    """Return one number, or the first and the last of several, as text."""
    entries = np.ravel(np.asarray(values))
    if entries.size == 0:
        return "none"
    first, last = f"{entries[0]:.6g}", f"{entries[-1]:.6g}"
    return first if entries.size == 1 else f"{first} to {last}"


def observed(
    problem: Problem,
    samples: Samples,
    factor: Float[Array, ""],
    parameters: Parameters,
) -> Observation:
    """Measure a point. The function is pure.

    Args:
        problem: The problem.
        samples: Its rows.
        factor: Factor of all penalties of the problem.
        parameters: The point.
    """
    scaled = with_penalties(problem, factor)
    value, slope = jax.value_and_grad(scaled.objective)(parameters, samples)
    slope = slope._replace(features=slope.features / jnp.sqrt(samples.counts)[:, None])
    point = to_flow_coordinates(parameters, samples)
    flat, down = (ravel_pytree(block._replace(bias=None))[0] for block in (point, slope))
    norm, steepness = jnp.linalg.norm(flat), jnp.linalg.norm(down)
    scale = norm * steepness

    logits = problem.logits(parameters)
    own = jnp.sum(samples.targets * logits, axis=1)
    others = jnp.max(jnp.where(samples.targets > 0.5, -jnp.inf, logits), axis=1)
    margins = jax.ops.segment_min(own - others, samples.origins, num_segments=problem.num_rows)
    plain = logits if parameters.bias is None else logits - parameters.bias[None, :]

    inner = (
        point.features.T @ point.features,
        *(matrix @ matrix.T for matrix in parameters.weights[:-1]),
    )
    outer = tuple(matrix.T @ matrix for matrix in parameters.weights)
    return Observation(
        value,
        problem.data_term(logits, samples),
        jnp.linalg.norm(ravel_pytree(slope)[0]),
        norm,
        -jnp.sum(flat * down) / jnp.where(scale > 0, scale, 1),
        *collapse_summary(problem, samples, parameters),
        margins=margins,
        weight_singular_values=tuple(jnp.linalg.svdvals(matrix) for matrix in parameters.weights),
        feature_singular_values=jnp.linalg.svdvals(point.features),
        logit_singular_values=jnp.linalg.svdvals(plain * jnp.sqrt(samples.counts)[:, None]),
        balance=jnp.stack(
            [jnp.linalg.norm(after - before) for after, before in zip(outer, inner, strict=True)]
        ),
    )


@printed
class Trajectory(Module):
    """A path of gradient flow or gradient descent, recorded at T times.

    All arrays are NumPy arrays of float64 (indices and steps are whole numbers).

    Attributes:
        problem: The problem.
        kind: "flow" or "descent".
        resolution: "classes" or "samples".
        penalty_factor: Factor of all penalties of the problem.
        times: The recorded times, shape (T,), from 0 on. Descent with learning rate r and momentum
            m is at time r / (1 - m) times its steps.
        steps: Steps made until each time, shape (T,), of descent or of the integrator.
        rtol: Relative tolerance of one step of the integrator; 0 for descent.
        atol: Absolute tolerance of one step of the integrator; 0 for descent.
        status: How the path ended.
        seconds: Wall time, compilation included.
        measures: The measures at all times. Each field of the `Observation` is also an attribute of
            the trajectory.
        kept: Indices of the times whose points are kept, shape (M,).
        points: The kept points: parameters with a first axis of length M, and K or N rows of
            features.
    """

    problem: Problem
    kind: str
    resolution: str
    penalty_factor: float
    times: Float[np.ndarray, " T"]
    steps: Int[np.ndarray, " T"]
    rtol: float
    atol: float
    status: Status
    seconds: float
    measures: Observation
    kept: Int[np.ndarray, " M"]
    points: Parameters

    def __getattr__(self, name: str) -> Any:
        if name in Observation._fields:
            return getattr(self.measures, name)
        raise AttributeError(f"a Trajectory has no attribute {name!r}")

    @property
    def labels(self) -> np.ndarray | None:
        """The class of every sample, shape (N,); None at class resolution."""
        return labels(self.problem.class_counts) if self.resolution == "samples" else None

    @property
    def counts(self) -> Float[np.ndarray, " n"]:
        """The number of samples that each row of the features stands for."""
        counts = np.asarray(self.problem.class_counts, np.float64)
        return counts if self.resolution == "classes" else np.ones(round(float(np.sum(counts))))

    @property
    def kept_times(self) -> Float[np.ndarray, " M"]:
        """The times whose points are kept, shape (M,)."""
        return self.times[self.kept]

    @property
    def final(self) -> Parameters:
        """The last point."""
        return self.point(-1)

    def point(self, index: int) -> Parameters:
        """Return the kept point at `kept_times[index]`."""
        return jax.tree.map(lambda block: block[index], self.points)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trajectory to a NumPy archive (`.npz`), with nothing pickled.

        `load_trajectory` reads it, given the problem.

        Args:
            path: Where to write.
        """
        arrays: dict[str, Any] = {"format": FORMAT, "problem": _described(self.problem)}
        arrays |= {f"problem{i}": leaf for i, leaf in enumerate(_numbers(self.problem))}
        for name in (
            "kind",
            "resolution",
            "penalty_factor",
            "times",
            "steps",
            "rtol",
            "atol",
            "seconds",
            "kept",
        ):
            arrays[name] = getattr(self, name)
        arrays["status"] = int(self.status)
        arrays |= _flattened("measures", self.measures) | _flattened("points", self.points)
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    def __str__(self) -> str:
        made = "steps of descent" if self.kind == "descent" else "steps of the integrator"
        values, slope = self.objective, self.gradient_norm
        recorded = (
            f"{self.times.size} times recorded, {self.kept.size} points kept, "
            f"at {self.resolution} resolution"
        )
        return "\n".join(
            [
                f"{self.kind:13} to time {self.times[-1]:.6g}, {recorded}",
                f"status        {self.status.message}",
                f"objective     {values[0]:.10g} to {values[-1]:.10g}, gradient {slope[-1]:.3g}",
                f"work          {self.steps[-1]} {made}, {self.seconds:.3g} s",
            ]
        )


@on_host
def load_trajectory(path: str | os.PathLike[str], problem: Problem) -> Trajectory:
    """Return a trajectory from a file that `Trajectory.save` wrote.

    Args:
        path: The file.
        problem: The problem of the trajectory. A file holds the numbers of its problem, to tell it
            from others, but not its parts.

    Raises:
        ValueError: If the file is not one of `Trajectory.save`, or the problem is another one.
        FileNotFoundError: If there is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ArgumentError(
            "path", f"must be a file written by `Trajectory.save`, got {path!s}: {error}"
        ) from None
    if str(arrays.get("format")) != FORMAT:
        raise ArgumentError("path", f"must be a file written by `Trajectory.save`, got {path!s}")
    found = [arrays.get(f"problem{i}") for i in range(len(_numbers(problem)))]
    same = str(arrays["problem"]) == _described(problem) and all(
        one is not None and np.array_equal(one, other)
        for one, other in zip(found, _numbers(problem), strict=True)
    )
    if not same:
        raise ArgumentError(
            "problem",
            f"must be the one that {path!s} was recorded for ({arrays['problem']}), got "
            f"another: {_described(problem)}",
        )
    layers = range(problem.num_layers)
    fields = {
        name: arrays[f"measures.{name}"]
        for name in Observation._fields
        if name != "weight_singular_values"
    }
    values = tuple(arrays[f"measures.weight_singular_values.{layer}"] for layer in layers)
    return Trajectory(
        problem=problem,
        kind=str(arrays["kind"]),
        resolution=str(arrays["resolution"]),
        penalty_factor=float(arrays["penalty_factor"]),
        times=arrays["times"],
        steps=arrays["steps"],
        rtol=float(arrays["rtol"]),
        atol=float(arrays["atol"]),
        seconds=float(arrays["seconds"]),
        kept=arrays["kept"],
        status=Status(int(arrays["status"])),
        measures=Observation(**fields, weight_singular_values=values),
        points=Parameters(
            tuple(arrays[f"points.weights.{layer}"] for layer in layers),
            arrays["points.features"],
            arrays.get("points.bias"),
        ),
    )


_observed = compiled(observed, once=True)


class Recorder:
    """Records a path at the times of a schedule, and makes the trajectory.

    It belongs to the host side: it accumulates results between compiled calls.
    """

    def __init__(
        self,
        problem: Problem,
        samples: Samples,
        resolution: str,
        factor: float,
        schedule: np.ndarray,
        keep: int,
    ):
        """State what is recorded.

        Args:
            problem: The problem.
            samples: Its rows.
            resolution: "classes" or "samples".
            factor: Factor of all penalties of the problem.
            schedule: The times or steps to record at, from 0 on.
            keep: Number of points to keep.
        """
        check_dense(problem.num_classes)
        self._problem, self._samples, self._factor = problem, samples, np.asarray(factor)
        self._resolution = resolution
        self._schedule = schedule
        self._planned = set(
            np.round(np.linspace(0, schedule.size - 1, min(keep, schedule.size)))
            .astype(int)
            .tolist()
        )
        self._measures: list[Observation] = []
        self._steps: list[int] = []
        self._points: dict[int, Parameters] = {}
        self._times: list[float] = []

    def _add(self, reached: Reached, point: Parameters) -> Observation:
        index = len(self._times)
        measure = to_numpy(
            _observed(one_count_per_class(self._problem), self._samples, self._factor, point)
        )
        self._times.append(reached.time)
        self._steps.append(reached.steps)
        self._measures.append(measure)
        # The newest point is always kept. The one before it goes, unless the plan keeps it.
        if index and (index - 1) not in self._planned:
            del self._points[index - 1]
        self._points[index] = to_numpy(point)
        return measure

    def followed(
        self,
        kind: str,
        advance: Callable[[float], Reached],
        tol: float,
        rtol: float,
        atol: float,
        began: float,
    ) -> Trajectory:
        """Follow a path through all times of the schedule, and return what was recorded.

        Args:
            kind: "flow" or "descent".
            advance: Takes the path to the next entry of the schedule.
            tol: Gradient norm at which to stop.
            rtol: Relative tolerance of the integrator, for the record.
            atol: Absolute tolerance of the integrator, for the record.
            began: `time.perf_counter()` at the start of the call.

        Raises:
            DynamicsInterrupted: On Ctrl-C, once something is recorded.
        """
        status, interrupt = Status.RUNNING, None
        try:
            for target in self._schedule:
                reached = advance(target)
                status = reached.status
                if reached.point is not None:
                    measure = self._add(reached, reached.point)
                    if not (np.isfinite(measure.objective) and np.isfinite(measure.gradient_norm)):
                        status = Status.NON_FINITE
                    elif status == Status.RUNNING and measure.gradient_norm <= tol:
                        status = Status.CONVERGED
                if status != Status.RUNNING:
                    break
            else:
                status = Status.FINISHED
        except KeyboardInterrupt as stop:
            if not self._times:
                raise
            interrupt, status = stop, Status.INTERRUPTED
        trajectory = self._trajectory(kind, status, rtol, atol, time.perf_counter() - began)
        if interrupt is not None:
            failure = DynamicsInterrupted(
                "interrupted; the exception's `trajectory` holds what was recorded"
            )
            failure.trajectory = trajectory
            raise failure from interrupt
        return trajectory

    def _trajectory(
        self, kind: str, status: Status, rtol: float, atol: float, seconds: float
    ) -> Trajectory:
        return Trajectory(
            problem=self._problem,
            kind=kind,
            resolution=self._resolution,
            penalty_factor=float(self._factor),
            times=np.asarray(self._times),
            steps=np.asarray(self._steps, np.int64),
            rtol=rtol,
            atol=atol,
            status=status,
            seconds=seconds,
            measures=jax.tree.map(lambda *values: np.stack(values), *self._measures),
            kept=np.asarray(sorted(self._points), np.int64),
            points=stacked([self._points[index] for index in sorted(self._points)]),
        )


def _numbers(problem: Problem) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(one_count_per_class(problem))]


def _described(problem: Problem) -> str:
    parts = [f"K = {problem.num_classes}", f"widths {problem.layer_dims}", problem.activation]
    parts += [type(problem.loss).__name__, type(problem.regularizer).__name__]
    parts += ["with bias"] * problem.use_bias + ["features >= 0"] * problem.nonnegative_features
    return ", ".join(parts)


def _flattened(prefix: str, values: Any) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in values._asdict().items():
        if isinstance(value, tuple):
            flat |= {f"{prefix}.{name}.{index}": entry for index, entry in enumerate(value)}
        elif value is not None:
            flat[f"{prefix}.{name}"] = value
    return flat
