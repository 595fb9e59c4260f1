"""What is recorded along a path of gradient flow or gradient descent."""

import os
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ufm.blocks import check_dense
from ufm.compilation import compiled
from ufm.dynamics.arguments import stacked
from ufm.dynamics.flow_metric import to_flow_coordinates, with_penalties
from ufm.modules import Module
from ufm.precision import to_numpy
from ufm.presolve import canonical
from ufm.problem import Parameters, Problem
from ufm.resolutions import columns_of, labels
from ufm.solvers import collapse
from ufm.status import Status

__all__ = [
    "DynamicsInterrupted",
    "Observation",
    "Recorder",
    "Trajectory",
    "interrupted_at",
    "load_trajectory",
    "observed",
]

FORMAT = "ufm trajectory 1"


class DynamicsInterrupted(KeyboardInterrupt):
    """Ctrl-C along a path; `trajectory` holds what was recorded."""

    trajectory: "Trajectory"


def interrupted_at(trajectory: "Trajectory") -> DynamicsInterrupted:
    """Return the exception that carries what was recorded."""
    failure = DynamicsInterrupted("interrupted; the exception's `trajectory` holds what was recorded")
    failure.trajectory = trajectory
    return failure


class Observation(NamedTuple):
    """What is measured at a point. U are the features times the square roots of the counts, norms those of weights and U.

    objective, data_term: (). gradient_norm: () of the objective, in the metric of the flow. norm: () sqrt(sum_l ||W_l||^2 + ||U||^2).
    alignment: () cosine between (W, U) and the direction in which the flow moves it. nc1 to nc4: () each, as in `ufm.solvers.Collapse`.
    margins: (K,) smallest z_y - z_c of each class. weight_singular_values: per layer. feature_singular_values: of U. logit_singular_values: of
    the logits without bias, rows times the square roots of the counts. balance: (L,) ||W_1^T W_1 - U^T U||_F, then ||W_{l+1}^T W_{l+1} - W_l
    W_l^T||_F.
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


def observed(
    problem: Problem, labels: Int[Array, " N"] | None, factor: Float[Array, ""], parameters: Parameters
) -> Observation:
    """Measure a point of the problem whose penalties are multiplied by `factor`. Pure."""
    dtype = parameters.features.dtype
    columns, scaled = columns_of(problem.class_counts, labels, dtype), with_penalties(problem, factor)
    value, slope = jax.value_and_grad(scaled.objective)(parameters, columns)
    slope = slope._replace(features=slope.features / jnp.sqrt(columns.counts)[:, None])
    point = to_flow_coordinates(parameters, columns)
    flat, down = (ravel_pytree(block._replace(bias=None))[0] for block in (point, slope))
    norm, steepness = jnp.linalg.norm(flat), jnp.linalg.norm(down)
    scale = norm * steepness

    logits = problem.logits(parameters)
    own = jnp.sum(columns.targets * logits, axis=1)
    others = jnp.max(jnp.where(columns.targets > 0.5, -jnp.inf, logits), axis=1)
    margins = own - others
    if labels is not None:
        margins = jax.ops.segment_min(margins, labels, num_segments=problem.num_classes)
    plain = logits if parameters.bias is None else logits - parameters.bias[None, :]

    def singular_values(matrix: Array) -> Array:
        return jnp.linalg.svd(matrix, compute_uv=False)

    inner = (point.features.T @ point.features, *(matrix @ matrix.T for matrix in parameters.weights[:-1]))
    outer = tuple(matrix.T @ matrix for matrix in parameters.weights)
    return Observation(
        value,
        problem.data_term(logits, columns),
        jnp.linalg.norm(ravel_pytree(slope)[0]),
        norm,
        -jnp.sum(flat * down) / jnp.where(scale > 0, scale, 1),
        *collapse(problem, columns, parameters),
        margins=margins,
        weight_singular_values=tuple(singular_values(matrix) for matrix in parameters.weights),
        feature_singular_values=singular_values(point.features),
        logit_singular_values=singular_values(plain * jnp.sqrt(columns.counts)[:, None]),
        balance=jnp.stack([jnp.linalg.norm(after - before) for after, before in zip(outer, inner, strict=True)]),
    )


class Trajectory(Module):
    """A path of gradient flow or gradient descent, at T recorded times; all arrays are NumPy float64, all measures have the axis of times first.

    problem: what the path is of. kind: "flow" or "descent". resolution: "classes" or "samples". penalty_factor: what the problem's penalties
    were multiplied with. times: (T,), the first is 0; for descent with rate r and momentum m, r / (1 - m) times the steps.
    steps: (T,) that were made until then, of descent or of the integrator. rtol, atol: of the integrator, per step; 0 for descent.
    status: how the path ended. seconds: wall time, compilation included. measures: see `Observation`; each is an attribute here, too.
    kept: (M,) indices of the times whose points are kept. points: `Parameters` with M first, features of K or N rows.
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
        """The class of every sample, (N,); None at class resolution."""
        return labels(self.problem.class_counts) if self.resolution == "samples" else None

    @property
    def counts(self) -> Float[np.ndarray, " n"]:
        """How many samples each row of the features stands for."""
        counts = np.asarray(self.problem.class_counts, np.float64)
        return counts if self.resolution == "classes" else np.ones(round(float(np.sum(counts))))

    @property
    def kept_times(self) -> Float[np.ndarray, " M"]:
        """The times whose points are kept."""
        return self.times[self.kept]

    @property
    def final(self) -> Parameters:
        """The last point."""
        return self.point(-1)

    def point(self, index: int) -> Parameters:
        """Return the kept point at `kept_times[index]`."""
        return jax.tree.map(lambda block: block[index], self.points)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trajectory to a NumPy archive (`.npz`, nothing pickled); `load_trajectory` reads it, given the problem again."""
        arrays: dict[str, Any] = {"format": FORMAT, "problem": _described(self.problem)}
        arrays |= {f"problem{i}": leaf for i, leaf in enumerate(_numbers(self.problem))}
        for name in ("kind", "resolution", "penalty_factor", "times", "steps", "rtol", "atol", "seconds", "kept"):
            arrays[name] = getattr(self, name)
        arrays["status"] = int(self.status)
        arrays |= _flattened("measures", self.measures) | _flattened("points", self.points)
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    def __str__(self) -> str:
        made = "steps of descent" if self.kind == "descent" else "steps of the integrator"
        recorded = f"{self.times.size} times recorded, {self.kept.size} points kept, at {self.resolution} resolution"
        return "\n".join(
            [
                f"{self.kind:13} to time {self.times[-1]:.6g}, {recorded}",
                f"status        {self.status.message}",
                f"objective     {self.objective[0]:.10g} to {self.objective[-1]:.10g}, gradient {self.gradient_norm[-1]:.3g}",
                f"work          {self.steps[-1]} {made}, {self.seconds:.3g} s",
            ]
        )


def load_trajectory(path: str | os.PathLike[str], problem: Problem) -> Trajectory:
    """Return a trajectory from a file that `Trajectory.save` wrote.

    Args:
        path: of the file.
        problem: the one that the trajectory is of; files hold its numbers, to tell it from others, but not its parts.

    Raises:
        ValueError: where the file is not one, or the problem another.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"`path` must be a file written by `Trajectory.save`, got {path!s}: {error}") from None
    if str(arrays.get("format")) != FORMAT:
        raise ValueError(f"`path` must be a file written by `Trajectory.save`, got {path!s}.")
    found = [arrays.get(f"problem{i}") for i in range(len(_numbers(problem)))]
    same = str(arrays["problem"]) == _described(problem) and all(
        one is not None and np.array_equal(one, other) for one, other in zip(found, _numbers(problem), strict=True)
    )
    if not same:
        raise ValueError(
            f"`problem` must be the one that {path!s} was recorded for ({arrays['problem']}), got another: {_described(problem)}."
        )
    layers = range(problem.num_layers)
    fields = {name: arrays[f"measures.{name}"] for name in Observation._fields if name != "weight_singular_values"}
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
        status=Status(int(arrays["status"])),  # type: ignore[call-arg]
        measures=Observation(**fields, weight_singular_values=values),
        points=Parameters(
            tuple(arrays[f"points.weights.{layer}"] for layer in layers),
            arrays["points.features"],
            arrays.get("points.bias"),
        ),
    )


class Recorder:
    """Measures points as they are reached, and makes the trajectory; an accumulator of the host's side."""

    def __init__(self, problem: Problem, labels: np.ndarray | None, factor: float, schedule: np.ndarray, keep: int):
        check_dense(problem.num_classes)
        self._problem, self._labels, self._factor = problem, labels, np.asarray(factor)
        self._schedule = schedule
        self._planned = set(np.round(np.linspace(0, schedule.size - 1, min(keep, schedule.size))).astype(int).tolist())
        self._measures: list[Observation] = []
        self._steps: list[int] = []
        self._points: dict[int, Parameters] = {}
        self.times: list[float] = []

    def add(self, time: float, steps: int, parameters: Any) -> Observation:
        """Record a point."""
        index = len(self.times)
        measure = to_numpy(_observed(canonical(self._problem), self._labels, self._factor, parameters))
        self.times.append(time)
        self._steps.append(steps)
        self._measures.append(measure)
        # The last point is kept whatever the plan says: until the next one comes.
        if index and (index - 1) not in self._planned:
            del self._points[index - 1]
        self._points[index] = to_numpy(parameters)
        return measure

    def trajectory(self, kind: str, status: Status, rtol: float, atol: float, seconds: float) -> Trajectory:
        """Return all that was recorded."""
        return Trajectory(
            problem=self._problem,
            kind=kind,
            resolution="classes" if self._labels is None else "samples",
            penalty_factor=float(self._factor),
            times=np.asarray(self.times),
            steps=np.asarray(self._steps, np.int64),
            rtol=rtol,
            atol=atol,
            status=status,
            seconds=seconds,
            measures=jax.tree.map(lambda *values: np.stack(values), *self._measures),
            kept=np.asarray(sorted(self._points), np.int64),
            points=stacked([self._points[index] for index in sorted(self._points)]),
        )


_observed = compiled(observed, once=True)


def _numbers(problem: Problem) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(canonical(problem))]


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
