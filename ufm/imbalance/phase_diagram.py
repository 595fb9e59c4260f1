"""Phase diagrams: two numbers of a problem varied over a grid, every point a certified minimum."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm._support import ArgumentError, on_host, printed
from ufm.imbalance.conditions import level
from ufm.metrics import geometry_of, margins
from ufm.problems import Problem, minority_of, varied
from ufm.solving import solve_batch

__all__ = ["PhaseDiagram", "phase_diagram"]


@printed
class PhaseDiagram(NamedTuple):
    """Certified minima over a grid. Arrays have shape (Y, X), row y and column x.

    Attributes:
        x_name: What varies along x.
        y_name: What varies along y.
        x: Its values, shape (X,).
        y: Its values, shape (Y,).
        cosine: Cosine between two minority classifiers; one where they coincide, NaN where they
            vanish.
        minority_ratio: Dual norm of the modes within the minority over the allowed one. Where it is
            below one these modes vanish, and minority classifiers coincide.
        majority_ratio: The same for the majority.
        between_ratio: The same for the modes between groups.
        minority_level: Logarithm of the price of the gauge over the one at which the minority's
            classifiers come to coincide: smooth, and zero on the threshold.
        majority_level: The same for the majority.
        rank: Rank of the logits.
        minority_margin: Own logit less the largest other.
        majority_margin: The same for the majority.
        objective: Objective of every solve.
        relative_gap: Certified relative gap of every solve.
        status: Status of every solve.
        seconds: Duration of solving, compilation included.
    """

    x_name: str
    y_name: str
    x: Float[np.ndarray, " X"]
    y: Float[np.ndarray, " Y"]
    cosine: Float[np.ndarray, "Y X"]
    minority_ratio: Float[np.ndarray, "Y X"]
    majority_ratio: Float[np.ndarray, "Y X"]
    between_ratio: Float[np.ndarray, "Y X"]
    minority_level: Float[np.ndarray, "Y X"]
    majority_level: Float[np.ndarray, "Y X"]
    rank: Float[np.ndarray, "Y X"]
    minority_margin: Float[np.ndarray, "Y X"]
    majority_margin: Float[np.ndarray, "Y X"]
    objective: Float[np.ndarray, "Y X"]
    relative_gap: Float[np.ndarray, "Y X"]
    status: Int[np.ndarray, "Y X"]
    seconds: float


@on_host
def phase_diagram(
    problem: Problem, x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]]
) -> PhaseDiagram:
    """Solve a problem of two class sizes over a grid of two of its numbers.

    Args:
        problem: One layer, signed features, a convex loss, two class sizes.
        x: What varies along x, by a name of `ufm.problems.VARIABLES`, and its values, such as
            ("imbalance_ratio", np.geomspace(1, 1e3, 100)).
        y: The same for y.

    Raises:
        ValueError: If names or values do not fit the problem.
    """
    if problem.nonnegative_features:
        raise ArgumentError(
            "problem",
            "has non-negative features, whose points are solved one by one; use `ufm.solve(..., "
            "resolution='groups')`",
        )
    if x[0] == y[0]:
        raise ArgumentError("x", f"and `y` must vary different numbers, got {x[0]!r} twice")
    across, down = np.asarray(x[1], np.float64), np.asarray(y[1], np.float64)
    grid_x, grid_y = np.meshgrid(across, down)
    problems = varied(problem, {x[0]: grid_x.ravel(), y[0]: grid_y.ravel()})
    began = time.perf_counter()
    minima = solve_batch(problems)
    seconds = time.perf_counter() - began
    majority, minority = minority_of(problem)
    if minority is None:
        raise ArgumentError("problem", "must have a minority of at least two classes")
    geometry = geometry_of(problems, minima.logits)
    cosines, margin = geometry.weight_gram.cosines()[0], margins(minima.logits, minima.bias)
    levels = level(problems, minima.price)
    shape = grid_x.shape
    columns = {
        "cosine": cosines[minority],
        "minority_ratio": minima.evidence.within[minority],
        "majority_ratio": minima.evidence.within[majority],
        "between_ratio": minima.evidence.between,
        "minority_level": levels[minority],
        "majority_level": levels[majority],
        "rank": geometry.rank,
        "minority_margin": margin[minority],
        "majority_margin": margin[majority],
        "objective": minima.objective,
        "relative_gap": minima.relative_gap,
        "status": minima.status,
    }
    arrays: dict[str, Any] = {
        name: np.asarray(column).reshape(shape) for name, column in columns.items()
    }
    return PhaseDiagram(x[0], y[0], across, down, seconds=seconds, **arrays)
