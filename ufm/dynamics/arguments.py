"""Arguments of the flows: starts, recording schedules and admissible problems."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ufm._support import (
    ArgumentError,
    check_finite,
    check_instance,
    check_one_of,
    checked_nonnegative,
    checked_positive,
    on_host,
)
from ufm.problems import (
    Parameters,
    Problem,
    Samples,
    checked_parameters,
    lifted,
    num_rows,
    samples_of,
)
from ufm.solving.methods import generator

__all__ = [
    "checked_problem",
    "checked_schedule",
    "checked_stop",
    "gaussian_start",
    "samples_at",
    "stacked",
    "start_of",
]


def samples_at(problem: Problem, resolution: str) -> Samples:
    """Return the rows of a resolution.

    Args:
        problem: The problem.
        resolution: "classes" or "samples".

    Raises:
        ValueError: If the resolution is another one, or counts are not whole at sample resolution.
    """
    check_one_of("resolution", resolution, ("classes", "samples"))
    return samples_of(problem, num_rows(problem, resolution))


@on_host
def gaussian_start(
    problem: Problem,
    *,
    scale: float = 0.1,
    key: Any = None,
    resolution: Literal["classes", "samples"] = "classes",
) -> Parameters:
    """Return parameters with independent Gaussian entries and zero bias, the usual start in papers.

    Args:
        problem: The problem, for the shapes.
        scale: Standard deviation of the entries of weights and features.
        key: JAX PRNG key or integer seed; 0 if not given.
        resolution: "classes" for one row of features per class, "samples" for one per sample.

    Raises:
        ValueError: If `scale` is not a positive finite number, or the resolution is another one.
    """
    scale = checked_positive("scale", scale)
    draws, dims = generator(key), problem.layer_dims
    rows = len(samples_at(problem, resolution).counts)
    shapes = [(out, into) for into, out in itertools.pairwise(dims)]
    weights: Any = tuple(scale * draws.standard_normal(shape) for shape in shapes)
    features: Any = scale * draws.standard_normal((rows, dims[0]))
    bias: Any = np.zeros(problem.num_outputs) if problem.use_bias else None
    return Parameters(weights, features, bias)


def start_of(problem: Problem, initial: Any, resolution: Any, scale: Any, key: Any) -> Parameters:
    """Return the point to start from: `initial` if given, a Gaussian start otherwise.

    At sample resolution an `initial` with one row per class is repeated for its samples.

    Args:
        problem: The problem.
        initial: Parameters, or None.
        resolution: "classes" or "samples".
        scale: Standard deviation of a Gaussian start.
        key: JAX PRNG key or integer seed of a Gaussian start.

    Raises:
        ValueError: If `initial` does not fit, is not finite, or is given together with a key.
    """
    if initial is None:
        return gaussian_start(problem, scale=scale, key=key, resolution=resolution)
    if key is not None:
        raise ArgumentError(
            "initial", "leaves nothing to draw: give either `initial` or `key`, got both"
        )
    rows = len(samples_at(problem, resolution).counts)
    given = checked_parameters(problem, initial, "initial", (rows, problem.num_classes))
    check_finite("initial", given)
    if resolution == "classes":
        return given
    features: Any = lifted(given.features, problem.class_counts)
    return given._replace(features=features)


def checked_schedule(name: str, schedule: Any, whole: bool = False) -> np.ndarray:
    """Return the numbers to record at, increasing, with zero in front.

    One number is the last of 60 on a logarithmic scale over six decades.

    Args:
        name: Name of the argument, for messages.
        schedule: One positive number, or an increasing sequence of positive numbers.
        whole: Whether the numbers must be whole.

    Raises:
        ValueError: If the numbers are not increasing, positive, finite, or whole where required.
    """
    given = np.asarray(schedule)
    if given.dtype.kind not in "iuf" or given.ndim > 1 or given.size == 0:
        raise ArgumentError(
            name, "must be one positive number or an increasing sequence of them", schedule
        )
    points = np.atleast_1d(given).astype(np.float64)
    if given.ndim == 0 and np.isfinite(points[0]) and points[0] > 0:
        points = np.geomspace(1e-6 * points[0], points[0], 60)
        points = (
            np.unique(np.round(points)[np.round(points) > 0])
            if whole and given == np.floor(given)
            else points
        )
    points = points[1:] if points[0] == 0 else points
    good = (
        points.size
        and np.all(np.isfinite(points))
        and points[0] > 0
        and np.all(np.diff(points) > 0)
    )
    if not good or (whole and not np.all(points == np.floor(points))):
        kind = "whole positive numbers" if whole else "positive finite numbers"
        raise ArgumentError(name, f"must be increasing {kind}", schedule)
    return np.concatenate([[0.0], points])


def checked_problem(problem: Any, penalty_factor: Any, nonnegative: bool) -> float:
    """Return the factor of the penalties, for a problem whose gradient flow is defined.

    Args:
        problem: The problem.
        penalty_factor: The factor, a finite number >= 0.
        nonnegative: Whether non-negative features are allowed.

    Raises:
        ValueError: If the gradient flow of the problem is not defined, or the factor is not valid.
    """
    check_instance("problem", problem, Problem)
    if not problem.regularizer.halves_squares:
        raise ArgumentError(
            "problem",
            "must have ufm.WeightDecay as its regularizer: with norm balls a flow runs into "
            "the constraints. For the flow without penalties give any weight decay, and "
            "penalty_factor=0",
        )
    if problem.nonnegative_features and not nonnegative:
        raise ArgumentError(
            "problem",
            "must have features of any sign: a gradient flow is not defined at the "
            "constraint h >= 0; use `ufm.dynamics.descent`",
        )
    return checked_nonnegative("penalty_factor", penalty_factor)


def checked_stop(tol: Any) -> float:
    """Return the gradient norm at which to stop: zero, which never stops, or a positive number.

    Args:
        tol: The gradient norm.

    Raises:
        ValueError: If `tol` is negative or not a finite number.
    """
    return 0.0 if isinstance(tol, (int, float)) and tol == 0 else checked_positive("tol", tol)


def stacked(points: Sequence[Parameters]) -> Parameters:
    """Return parameters stacked along a new first axis.

    Args:
        points: At least one point; all of them have the same shapes.
    """
    weights = tuple(
        np.stack(layer) for layer in zip(*(point.weights for point in points), strict=True)
    )
    features = np.stack([point.features for point in points])
    bias = (
        None if points[0].bias is None else np.stack([np.asarray(point.bias) for point in points])
    )
    return Parameters(weights, features, bias)  # type: ignore[arg-type]
