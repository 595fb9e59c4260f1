"""Observables of a classifier: Gram matrices, norms, cosines, margins, ranks, distances.

The K x K matrices are `Blocks`, a few numbers per group of interchangeable classes. For explicit
matrices every class is a group of its own, so one set of functions serves both. All is NumPy, with
batch axes last or none.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import printed
from ufm.geometry import AnyArray
from ufm.problems import VANISHING, Blocks, GroupProblem, diagonal, identity

__all__ = [
    "ClassGeometry",
    "centred",
    "centred_bias",
    "factor_grams",
    "frame_distances",
    "geometry_of",
    "geometry_of_matrices",
    "logit_rows",
    "margins",
    "norm",
    "norms",
    "projected_trace",
    "rank_from",
    "support_margins",
    "trace",
]


@printed
class ClassGeometry(NamedTuple):
    """The geometry of a classifier; fields may have batch axes, all last.

    Attributes:
        logits: Logits without the bias, a K x K matrix as `Blocks`.
        weight_gram: W W^T, likewise.
        feature_gram: Inner products of the class means, likewise.
        rank: Rank of the logits, ().
    """

    logits: Blocks
    weight_gram: Blocks
    feature_gram: Blocks
    rank: Any


def geometry_of(problem: GroupProblem, logits: Blocks, floor: Any = 0.0) -> ClassGeometry:
    """Return the geometry of balanced factors of logits.

    Args:
        problem: A problem over groups, with signed features; its leaves may have batch axes last.
        logits: Blocks of its minimum, without the bias.
        floor: Singular values of the weighted logits up to 1e-9 of this, or of the largest, count
            as zero, ().
    """
    rows, columns, values = logits.scaled_rows(np.asarray(problem.gauge.rows)).moduli()  # type: ignore[arg-type]
    within, sizes = np.asarray(rows.within), np.asarray(logits.sizes)
    largest = np.maximum(np.max(np.where(sizes > 1, within, 0), axis=0), values[0])
    tiny = VANISHING * np.maximum(largest, floor)
    rank = np.sum((sizes - 1) * (within > tiny), axis=0) + np.sum(values > tiny, axis=0)
    return ClassGeometry(logits, *factor_grams(problem, columns, rows), rank)


def geometry_of_matrices(
    weights: Float[AnyArray, "*batch K D"],
    class_features: Float[AnyArray, "*batch K D"],
    logits: Float[AnyArray, "*batch K K"],
    roots: Float[np.ndarray, "*batch K"],
) -> ClassGeometry:
    """Return the geometry of explicit matrices; their batch axis, at most one, is first.

    Args:
        weights: W of the last layer.
        class_features: The class means that it multiplies.
        logits: The mean logits, without the bias.
        roots: What the rows of the logits are multiplied by before their rank is taken. Logits have
            sizes of order one, so singular values up to 1e-9 of the largest root count as zero.
    """
    values = np.linalg.svd(roots[..., None] * logits, compute_uv=False)
    weight_gram, feature_gram = (
        rows @ np.swapaxes(rows, -1, -2) for rows in (weights, class_features)
    )
    return ClassGeometry(
        Blocks.single(logits),
        Blocks.single(weight_gram),
        Blocks.single(feature_gram),
        rank_from(values, np.max(roots, axis=-1)),
    )


def rank_from(values: Float[np.ndarray, "*batch r"], floor: Any) -> Any:
    """Return how many singular values exceed 1e-9 of the largest, and of `floor`, (*batch,)."""
    tiny = VANISHING * np.maximum(np.max(values, axis=-1), floor)
    return np.sum(values > tiny[..., None], axis=-1)


def factor_grams(problem: GroupProblem, weights: Blocks, features: Blocks) -> tuple[Blocks, Blocks]:
    """Return the Gram matrices of a problem's weights and class means.

    Args:
        problem: The problem over groups.
        weights: Gram matrix of the columns' balanced factor of the weighted logits.
        features: Gram matrix of the rows' balanced factor.
    """
    scale, roots = problem.gauge.split, problem.gauge.rows
    return (
        weights * scale,
        Blocks(
            features.within / (scale * roots**2),
            features.between / (scale * roots[:, None] * roots[None, :]),
            features.sizes,
        ),
    )


def centred_bias(problem: GroupProblem, sizes: Any, bias: Any) -> Any:
    """Return the bias (G,), or None; its mean over classes is zero where the loss ignores it."""
    if bias is None or not problem.loss.shift_invariant:
        return bias
    return bias - np.sum(sizes * bias, axis=0) / np.sum(sizes, axis=0)


def logit_rows(
    logits: Blocks, bias: Any
) -> tuple[Float[np.ndarray, "G *#batch"], Float[np.ndarray, "G G *#batch"]]:
    """Return the logits of a class of each group: its own, and that of another class of each group.

    The latter is minus infinity where there is no other class.
    """
    own, others = np.asarray(logits.own), np.asarray(logits.across)
    if bias is not None:
        own, others = own + bias, others + np.asarray(bias)[None]
    present = np.asarray(logits.sizes)[None] > identity(others)  # type: ignore[arg-type]
    return own, np.where(present, others, -np.inf)


def margins(
    logits: Blocks | Float[np.ndarray, "K K"], bias: Any = None
) -> Float[np.ndarray, "G *#batch"]:
    """Return the own logit less the largest other one of a class of each group, (G,).

    Args:
        logits: The mean logits, in blocks or as a matrix (then G = K).
        bias: The bias of every group, which is added to them, (G,), or None.
    """
    blocks = logits if isinstance(logits, Blocks) else Blocks.single(logits)
    own, others = logit_rows(blocks, bias)
    return own - np.max(others, axis=1)


def support_margins(
    logits: Float[np.ndarray, "R K"], targets: Float[np.ndarray, "R K"]
) -> Float[np.ndarray, " R"]:
    """Return the margin of every row: its least logit in its target's support, less the rest.

    The rest is the largest logit of the other outputs.
    """
    inside = targets > 0
    least = np.min(np.where(inside, logits, np.inf), axis=1)
    return least - np.max(np.where(inside, -np.inf, logits), axis=1)


def norms(gram: Blocks) -> Float[np.ndarray, "G *#batch"]:
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


def _mean_direction(matrix: Blocks) -> Float[np.ndarray, "G *#batch"]:
    sizes = np.asarray(matrix.sizes)
    return np.sqrt(sizes / np.sum(sizes, axis=0))


def frame_distances(geometry: ClassGeometry) -> dict[str, Any]:
    """Return NC2 and NC3 of `ufm.metrics.MEASURES` by name, () each.

    They are distances of unit vectors, taken from their inner products. NaN where a matrix is zero.
    """

    def distance(inner: Any, norms: Any) -> Any:
        return np.sqrt(np.maximum(2 - 2 * inner / norms, 0))

    weights, features, logits = geometry.weight_gram, geometry.feature_gram, geometry.logits
    middle, K = centred(features), np.sum(features.sizes, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        logits_from_etf = projected_trace(logits) / np.sqrt(trace(weights) * trace(middle))
        return {
            "nc2_weights": distance(projected_trace(weights), norm(weights) * np.sqrt(K - 1)),
            "nc2_features": distance(trace(middle), norm(middle) * np.sqrt(K - 1)),
            "nc2_weights_frame": distance(trace(weights), norm(weights) * np.sqrt(K)),
            "nc2_features_frame": distance(trace(features), norm(features) * np.sqrt(K)),
            "nc3": 2 - 2 * logits_from_etf,
        }
