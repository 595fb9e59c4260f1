"""What minimisers over groups look like: Gram matrices of their factors, and what is measured on these. NumPy, batch axes last or none."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.problems import VANISHING, Blocks, GroupProblem, diagonal, identity

__all__ = [
    "GroupGeometry",
    "centred",
    "centred_bias",
    "etf_distance",
    "geometry_of",
    "logit_rows",
    "margins",
    "norm",
    "norms",
    "projected_trace",
    "split",
    "split_scale",
    "trace",
    "unit_distance",
]


class GroupGeometry(NamedTuple):
    """Minimisers over groups; fields may have batch axes, all last.

    logits, weight_gram, feature_gram: K x K matrices as `Blocks`, logits without the bias, W W^T,
    and inner products of class means. rank: () of the logits.
    """

    logits: Blocks
    weight_gram: Blocks
    feature_gram: Blocks
    rank: Any


def geometry_of(problem: GroupProblem, logits: Blocks, floor: Any = 0.0) -> GroupGeometry:
    """Return the geometry of balanced factors of logits.

    Args:
        problem: over groups, with signed features; its leaves may have batch axes last.
        logits: blocks of its minimum, without the bias.
        floor: () singular values of the weighted logits that are 1e-9 of this, or of the largest,
            are taken for zero.
    """
    rows, columns, values = logits.scaled_rows(np.asarray(problem.roots)).moduli()  # type: ignore[arg-type]
    within, sizes = np.asarray(rows.within), np.asarray(logits.sizes)
    largest = np.maximum(np.max(np.where(sizes > 1, within, 0), axis=0), values[0])
    tiny = VANISHING * np.maximum(largest, floor)
    rank = np.sum((sizes - 1) * (within > tiny), axis=0) + np.sum(values > tiny, axis=0)
    return GroupGeometry(logits, *split(problem, columns, rows), rank)


def split_scale(problem: GroupProblem) -> Any:
    """Return what W W^T is multiplied by, relative to balanced factors, ()."""
    weights, features = np.asarray(problem.weights), np.asarray(problem.features)
    return np.sqrt(weights / features if problem.norm_ball else features / weights)


def split(problem: GroupProblem, weights: Blocks, features: Blocks) -> tuple[Blocks, Blocks]:
    """Return the Gram matrices of a problem's weights and class means from those of balanced factors of its weighted logits."""
    scale, roots = split_scale(problem), np.asarray(problem.roots)
    return (
        Blocks(scale * weights.within, scale * weights.between, weights.sizes),
        Blocks(
            features.within / (scale * roots**2),
            features.between / (scale * roots[:, None] * roots[None, :]),
            features.sizes,
        ),
    )


def centred_bias(problem: GroupProblem, sizes: Any, bias: Any) -> Any:
    """Return the bias (G,) or None; with its mean over classes taken out where the loss does not see it."""
    if bias is None or not problem.loss.shift_invariant:
        return bias
    return bias - np.sum(sizes * bias, axis=0) / np.sum(sizes, axis=0)


def logit_rows(
    logits: Blocks, bias: Any
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, "G G"]]:
    """Return the own logit of a class of each group, and those of the other classes of each group; minus infinity where there are none."""
    own, others = np.asarray(logits.own), np.asarray(logits.across)
    if bias is not None:
        own, others = own + bias, others + np.asarray(bias)[None]
    present = np.asarray(logits.sizes)[None] > identity(others)  # type: ignore[arg-type]
    return own, np.where(present, others, -np.inf)


def margins(logits: Blocks, bias: Any = None) -> Float[np.ndarray, " G"]:
    """Return the own logit less the largest other one, bias included, of a class of each group, (G,)."""
    own, others = logit_rows(logits, bias)
    return own - np.max(others, axis=1)


def norms(gram: Blocks) -> Float[np.ndarray, " G"]:
    """Return the norm of a vector of each group, (G,), from their Gram matrix."""
    return np.sqrt(np.maximum(gram.own, 0))


def trace(matrix: Blocks) -> Any:
    """Return the trace, ()."""
    return np.sum((matrix.sizes - 1) * matrix.within, axis=0) + np.sum(
        diagonal(matrix.between), axis=0
    )


def norm(matrix: Blocks) -> Any:
    """Return the Frobenius norm, ()."""
    squares = np.sum((matrix.sizes - 1) * matrix.within**2, axis=0)
    return np.sqrt(squares + np.sum(np.asarray(matrix.between) ** 2, axis=(0, 1)))


def centred(matrix: Blocks) -> Blocks:
    """Return P M P, with the means over classes taken out of rows and columns."""
    unit, between = _mean_direction(matrix), np.asarray(matrix.between)
    between = between - unit[:, None] * np.sum(unit[:, None] * between, axis=0)[None, :]
    between = between - np.sum(between * unit[None, :], axis=1)[:, None] * unit[None, :]
    return Blocks(matrix.within, between, matrix.sizes)


def projected_trace(matrix: Blocks) -> Any:
    """Return the trace of P M P, ()."""
    unit = _mean_direction(matrix)
    return trace(matrix) - np.sum(unit[:, None] * unit[None, :] * matrix.between, axis=(0, 1))


def _mean_direction(matrix: Blocks) -> Float[np.ndarray, " G"]:
    sizes = np.asarray(matrix.sizes)
    return np.sqrt(sizes / np.sum(sizes, axis=0))


def etf_distance(gram: Blocks) -> Any:
    """Return ||G/||G|| - P/||P|||| in the Frobenius norm, (), P the simplex ETF's Gram matrix; NaN where G is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return unit_distance(
            projected_trace(gram) / (norm(gram) * np.sqrt(np.sum(gram.sizes, axis=0) - 1))
        )


def unit_distance(inner: Any) -> Any:
    """Return the distance of two unit vectors from their inner product."""
    return np.sqrt(np.maximum(2 - 2 * inner, 0))
