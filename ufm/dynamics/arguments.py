"""Arguments of the flows: starts, recording schedules and admissible problems."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ufm.problem import Parameters, Problem, checked_parameters
from ufm.regularizers import WeightDecay
from ufm.resolutions import labels, lifted
from ufm.solvers.stages import generator

__all__ = ["checked_problem", "checked_schedule", "gaussian_start", "labels_of", "stacked", "start_of"]


def labels_of(problem: Problem, resolution: str) -> np.ndarray | None:
    """Return the class of every sample, None at class resolution.

    Raises:
        ValueError: for any other resolution, or counts that are not whole.
    """
    if resolution not in ("classes", "samples"):
        raise ValueError(f"`resolution` must be 'classes' or 'samples', got {resolution!r}.")
    return labels(problem.class_counts) if resolution == "samples" else None


def gaussian_start(
    problem: Problem, *, scale: float = 0.1, key: Any = None, resolution: Literal["classes", "samples"] = "classes"
) -> Parameters:
    """Return parameters with independent Gaussian entries and a zero bias, as papers start from.

    Args:
        problem: for the shapes.
        scale: standard deviation of the entries of weights and features.
        key: a JAX PRNG key, or an integer seed; 0 if not given.
        resolution: one row of features per class, or one per sample.
    """
    if not (isinstance(scale, (int, float, np.number)) and np.isfinite(scale) and scale > 0):
        raise ValueError(f"`scale` must be a positive finite number, got {scale!r}.")
    draws, dims, rows = generator(key), problem.layer_dims, labels_of(problem, resolution)
    weights = tuple(scale * draws.standard_normal((out, into)) for into, out in itertools.pairwise(dims))
    features = scale * draws.standard_normal((problem.num_classes if rows is None else rows.size, dims[0]))
    return Parameters(weights, features, np.zeros(problem.num_classes) if problem.use_bias else None)  # type: ignore[arg-type]


def start_of(problem: Problem, initial: Any, resolution: Any, scale: Any, key: Any) -> Parameters:
    """Return where to start: `initial`, one row per class lifted to samples where these are followed, or Gaussian entries.

    Raises:
        ValueError: where `initial` does not fit or is not finite, or comes together with a key.
    """
    if initial is None:
        return gaussian_start(problem, scale=scale, key=key, resolution=resolution)
    if key is not None:
        raise ValueError("`initial` leaves nothing to draw: give either `initial` or `key`, got both.")
    rows = labels_of(problem, resolution)
    allowed = (problem.num_classes,) if rows is None else (rows.size, problem.num_classes)
    given = checked_parameters(problem, initial, "initial", allowed)
    blocks = (*given.weights, given.features, *(() if given.bias is None else (given.bias,)))
    if not all(np.all(np.isfinite(block)) for block in blocks):
        raise ValueError("`initial` must be finite, got NaN or infinite entries.")
    return given if rows is None else given._replace(features=lifted(given.features, problem.class_counts))  # type: ignore[arg-type]


def checked_schedule(name: str, schedule: Any, whole: bool = False) -> np.ndarray:
    """Return increasing positive numbers to record at, with zero in front.

    One number is the last of 60 that are spaced logarithmically over six decades.

    Raises:
        ValueError: for anything that is not increasing, positive and finite (and whole, where asked for).
    """
    given = np.asarray(schedule)
    if given.dtype.kind not in "iuf" or given.ndim > 1 or given.size == 0:
        raise ValueError(f"`{name}` must be one positive number or an increasing sequence of them, got {schedule!r}.")
    points = np.atleast_1d(given).astype(np.float64)
    if given.ndim == 0 and np.isfinite(points[0]) and points[0] > 0:
        points = np.geomspace(1e-6 * points[0], points[0], 60)
        points = np.unique(np.round(points)[np.round(points) > 0]) if whole and given == np.floor(given) else points
    points = points[1:] if points[0] == 0 else points
    good = points.size and np.all(np.isfinite(points)) and points[0] > 0 and np.all(np.diff(points) > 0)
    if not good or (whole and not np.all(points == np.floor(points))):
        kind = "whole positive numbers" if whole else "positive finite numbers"
        raise ValueError(f"`{name}` must be increasing {kind}, got {schedule!r}.")
    return np.concatenate([[0.0], points])


def checked_problem(problem: Any, penalty_factor: Any, nonnegative: bool) -> float:
    """Return the factor of the penalties of a problem whose gradient flow is defined.

    Raises:
        ValueError: for other problems.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a ufm.Problem, got {type(problem).__name__}.")
    if not isinstance(problem.regularizer, WeightDecay):
        raise ValueError(
            "`problem` must have ufm.WeightDecay as its regularizer: with norm balls a flow runs into the constraints. "
            "For the flow without penalties give any weight decay, and penalty_factor=0."
        )
    if problem.nonnegative_features and not nonnegative:
        raise ValueError(
            "`problem` must have features of any sign: h >= 0 is a constraint, at which a gradient flow is not defined; use `ufm.dynamics.descent`."
        )
    factor = penalty_factor
    if not (isinstance(factor, (int, float, np.number)) and np.isfinite(factor) and factor >= 0):
        raise ValueError(f"`penalty_factor` must be a finite number >= 0, got {factor!r}.")
    return float(factor)


def stacked(points: Sequence[Parameters]) -> Parameters:
    """Return parameters along a new first axis."""
    weights = tuple(np.stack(layer) for layer in zip(*(point.weights for point in points), strict=True))
    features = np.stack([point.features for point in points])
    bias = None if points[0].bias is None else np.stack([np.asarray(point.bias) for point in points])
    return Parameters(weights, features, bias)  # type: ignore[arg-type]
