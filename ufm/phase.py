"""Phase diagrams: two numbers of a problem varied over a grid, every point a certified minimum."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.blocks import VANISHING
from ufm.collapse import level
from ufm.group_batch import solve_batch
from ufm.groups import GroupProblem
from ufm.paths import minority_of, varied
from ufm.problem import Problem

__all__ = ["PhaseDiagram", "phase_diagram"]


class PhaseDiagram(NamedTuple):
    """Certified minima over a grid; arrays are (Y, X), row y and column x.

    x_name, y_name: what was varied. x, y: its values.
    cosine: between two minority classifiers; one where they coincide, NaN where they vanish. minority_ratio: dual norm of the modes
    within the minority over the allowed one: these modes vanish, and minority classifiers coincide, where it is below one.
    majority_ratio: the same for the majority. between_ratio: the same for the modes between groups. minority_level, majority_level: log of the
    price of the gauge over the one at which the group's classifiers come to coincide: smooth, and zero on the threshold. rank: of the logits.
    minority_margin, majority_margin: own logit less the largest other. objective, relative_gap, status: of every solve. seconds: of
    solving, compilation included.
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


def phase_diagram(problem: Problem, x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]]) -> PhaseDiagram:
    """Solve a problem of two class sizes over a grid of two of its numbers.

    Args:
        problem: of one layer, signed features, a convex loss, two class sizes.
        x: the name of the horizontal axis's number and its values, such as ("imbalance_ratio", np.geomspace(1, 1e3, 100)); names as in `ufm.paths`.
        y: the same for the vertical axis.

    Raises:
        ValueError: for names or values that do not fit the problem.
    """
    if problem.nonnegative_features:
        raise ValueError(
            "`problem` has non-negative features, which are solved one by one; use `ufm.solve(..., resolution='groups')`."
        )
    if x[0] == y[0]:
        raise ValueError(f"`x` and `y` must vary different numbers, got {x[0]!r} twice.")
    across, down = np.asarray(x[1], np.float64), np.asarray(y[1], np.float64)
    grid_x, grid_y = np.meshgrid(across, down)
    problems = varied(problem, {x[0]: grid_x.ravel(), y[0]: grid_y.ravel()})
    began = time.perf_counter()
    minima = solve_batch(problems)
    seconds = time.perf_counter() - began
    majority, minority = minority_of(problem)
    if minority is None:
        raise ValueError("`problem` must have a minority of at least two classes.")
    measured = measures(problems, minima)
    levels = level(problems, minima.price)
    shape = grid_x.shape
    columns = {
        "cosine": measured["cosine"][minority],
        "minority_ratio": minima.evidence.within[minority],
        "majority_ratio": minima.evidence.within[majority],
        "between_ratio": minima.evidence.between,
        "minority_level": levels[minority],
        "majority_level": levels[majority],
        "rank": measured["rank"],
        "minority_margin": measured["margin"][minority],
        "majority_margin": measured["margin"][majority],
        "objective": minima.objective,
        "relative_gap": minima.relative_gap,
        "status": minima.status,
    }
    arrays: dict[str, Any] = {name: np.asarray(column).reshape(shape) for name, column in columns.items()}
    return PhaseDiagram(x[0], y[0], across, down, seconds=seconds, **arrays)


def measures(problems: GroupProblem, minima: Any) -> dict[str, np.ndarray]:
    """Return what a batch of minima looks like, batch axis last.

    cosine: (G, B) between two classifiers of each group (NaN where they vanish, or the group has one class). rank: (B,) of the logits.
    margin: (G, B) own logit less the largest other. weight_norm: (G, B), relative to the root mean square of all classes'.
    etf_distance: (B,) ||W W^T / ||W W^T|| - P / ||P|||| in the Frobenius norm, P the simplex ETF's Gram matrix.
    """
    logits, length = minima.logits, np.shape(minima.objective)[0]
    sizes = np.broadcast_to(np.asarray(problems.sizes), np.shape(logits.within))
    counts = np.broadcast_to(np.asarray(problems.counts), np.shape(logits.within))
    roots = np.ones_like(counts) if problems.norm_ball else np.sqrt(counts)
    G = sizes.shape[0]
    within = np.abs(logits.within * roots)
    _, values, right = np.linalg.svd(np.moveaxis(logits.between * roots[:, None], -1, 0))
    between = np.swapaxes(right, 1, 2) * values[:, None, :] @ right
    own = within * (1 - 1 / sizes) + np.stack([between[:, g, g] for g in range(G)]) / sizes
    same = (np.stack([between[:, g, g] for g in range(G)]) - within) / sizes
    several = sizes > 1
    largest = np.maximum(np.max(np.where(several, within, 0), axis=0), values[:, 0])
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(several & (own > VANISHING * largest), same / own, np.nan)
        squares = np.sum((sizes - 1) * within**2, axis=0) + np.sum(between**2, axis=(1, 2))
        unit = np.sqrt(sizes / sizes.sum(axis=0)).T
        inner = np.sum((sizes - 1) * within, axis=0) + np.trace(between, axis1=1, axis2=2)
        inner = inner - np.einsum("bg,bgh,bh->b", unit, between, unit)
        distance = np.sqrt(np.maximum(2 - 2 * inner / np.sqrt(squares * (sizes.sum(axis=0) - 1)), 0))
        norms = np.sqrt(own / (np.sum(sizes * own, axis=0) / sizes.sum(axis=0)))
    bias = np.zeros((G, length)) if minima.bias is None else minima.bias
    logit_own, others = logits.own + bias, np.asarray(logits.across) + bias[None]
    present = sizes[None] > np.eye(G)[:, :, None]
    margin = logit_own - np.max(np.where(present, others, -np.inf), axis=1)
    tiny = VANISHING * np.maximum(largest, np.finfo(float).tiny)
    rank = np.sum((sizes - 1) * (within > tiny), axis=0) + np.sum(values > tiny[:, None], axis=1)
    return {
        "cosine": np.clip(cosine, -1, 1),
        "rank": np.where(largest > 0, rank, 0),
        "margin": margin,
        "weight_norm": norms,
        "etf_distance": distance,
    }
