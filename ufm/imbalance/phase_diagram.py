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
    """Certified minima over a grid; arrays are (Y, X), row y and column x.

    x_name, y_name: what was varied. x, y: its values.
    cosine: between two minority classifiers; one where they coincide, NaN where they vanish.
    minority_ratio: dual norm of the modes within the minority over the allowed one: these modes
    vanish, and minority classifiers coincide, where it is below one. majority_ratio: the same for
    the majority. between_ratio: the same for the modes between groups. minority_level,
    majority_level: log of the price of the gauge over the one at which the group's classifiers come
    to coincide: smooth, and zero on the threshold. rank: of the logits. minority_margin,
    majority_margin: own logit less the largest other. objective, relative_gap, status: of every
    solve. seconds: of solving, compilation included.
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
        problem: of one layer, signed features, a convex loss, two class sizes.
        x: the name of the horizontal axis's number and its values, such as ("imbalance_ratio",
            np.geomspace(1, 1e3, 100)); names as in
        `ufm.problems.families`.
        y: the same for the vertical axis.

    Raises:
        ValueError: for names or values that do not fit the problem.
    """
    if problem.nonnegative_features:
        raise ArgumentError(
            "problem",
            "has non-negative features, which are solved one by one; use `ufm.solve(..., "
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
