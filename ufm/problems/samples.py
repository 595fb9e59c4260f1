"""Samples: the rows of a problem, each a target with its weights in the loss and in the penalty.

At fixed weights the objective separates over samples, and all samples of one target row face the
same problem. So the optimal value over N features equals that over R rows, each with the weight of
its samples, for any loss, depth and activation: `class_samples` has the R rows, and
`labelled_samples` all N. One-hot classes are K rows.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError

if TYPE_CHECKING:
    from ufm.problems.problem import Problem

__all__ = [
    "Samples",
    "class_samples",
    "labelled_samples",
    "labels",
    "lifted",
    "num_rows",
    "samples_of",
    "whole_counts",
]

MOST_SAMPLES = 10**8


class Samples(NamedTuple):
    """The rows that an objective sums over: the rows of a problem, or all samples one by one.

    Attributes:
        targets: (n, K), the target of each row.
        counts: (n,), how many samples the row stands for: N times its weight in the loss.
        feature_weights: (n,), what ||h||^2 of the row is multiplied by in the penalty or the bound
            of the features.
        origins: (n,), the index of the problem's row that each belongs to.
        shares: (n,), which share of that row's samples it has.
    """

    targets: Float[Array, "n K"]
    counts: Float[Array, " n"]
    feature_weights: Float[Array, " n"]
    origins: Int[Array, " n"]
    shares: Float[Array, " n"]

    def means(self, values: Float[Array, "n c"], num_rows: int) -> Float[Array, "R c"]:
        """Return the mean over the samples of each of the problem's R rows."""
        if values.shape[0] == num_rows:
            return values
        return jax.ops.segment_sum(
            self.shares[:, None] * values, self.origins, num_segments=num_rows
        )

    def astype(self, dtype: Any) -> "Samples":
        """Return the same samples in another precision."""
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, None if leaf is self.origins else dtype), self
        )


def class_samples(problem: "Problem", dtype: type | np.dtype) -> Samples:
    """Return the problem's own rows: one per class, or one per row of its targets.

    They are in float32 where the process has no float64.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    counts = jnp.asarray(problem.row_counts, dtype)
    weights = jnp.asarray(problem.row_weights, dtype)
    origins = jnp.arange(problem.num_rows)
    return Samples(problem.target_rows(dtype), counts, weights, origins, jnp.ones_like(counts))


def labelled_samples(
    problem: "Problem", origins: Int[Array, " N"], dtype: type | np.dtype
) -> Samples:
    """Return one row per sample; `origins` gives the class, or target row, of each.

    Precision as in `class_samples`.
    """
    rows = class_samples(problem, dtype)
    shares = 1 / rows.counts[origins]
    weights = rows.feature_weights[origins] / rows.counts[origins]
    targets = rows.targets[origins]
    return Samples(targets, jnp.ones_like(shares), weights, origins, shares)


def samples_of(problem: "Problem", rows: int) -> Samples:
    """Return the samples of so many feature rows, as NumPy arrays in float64.

    Args:
        problem: The problem.
        rows: R for one per class or target row, N for one per sample in the order of these.
    """
    targets, origins = problem.target_rows(np.float64, np), np.arange(problem.num_rows)
    counts: Any = np.asarray(problem.row_counts, np.float64)
    weights: Any = np.asarray(problem.row_weights, np.float64)
    if rows == problem.num_rows:
        return Samples(targets, counts, weights, origins, np.ones(rows))  # type: ignore[arg-type]
    origins = labels(counts)
    shares: Any = 1 / counts[origins]
    weights = weights[origins] / counts[origins]
    return Samples(targets[origins], np.ones(rows), weights, origins, shares)  # type: ignore[arg-type]


def num_rows(problem: "Problem", resolution: str) -> int:
    """Return how many feature rows a problem has at the resolution "classes" or "samples".

    Raises:
        ArgumentError: If class counts are not whole at sample resolution.
    """
    if resolution == "samples":
        return int(np.sum(whole_counts(problem.row_counts)))
    return problem.num_rows


def whole_counts(counts: Any) -> np.ndarray:
    """Return n_k as integers.

    Raises:
        ValueError: if a count is not a whole number (real counts have no samples to resolve), or
            there are too many samples.
    """
    counts = np.asarray(counts)
    if not np.all(counts == np.round(counts)):
        first = float(counts[counts != np.round(counts)][0])
        raise ArgumentError(
            "resolution",
            "'samples' needs whole `class_counts`",
            first,
            "use resolution='classes' for real counts",
        )
    if not np.sum(counts) <= MOST_SAMPLES:
        raise ArgumentError(
            "resolution",
            f"'samples' has one row per sample, at most {MOST_SAMPLES:g}, and `class_counts` "
            f"add up to {np.sum(counts):g}. Use resolution='classes', which is exact",
        )
    return np.round(counts).astype(np.int64)


def labels(counts: Any) -> np.ndarray:
    """Return the class, or target row, of every sample in their order, (N,) integers.

    Args:
        counts: Samples per row, whole numbers: (R,), or a `ClassGroups`.
    """
    counts = whole_counts(counts)
    return np.repeat(np.arange(counts.size), counts)


def lifted(rows: Float[Array, "n c"], counts: Any) -> Float[np.ndarray, "N c"]:
    """Return one row per sample: every sample gets the row of its class or target.

    Rows per sample come back as they are.

    Args:
        rows: One row per class or target, or per sample.
        counts: Samples per class or target, as in `labels`.
    """
    if rows.shape[0] == len(counts):
        return np.repeat(np.asarray(rows), whole_counts(counts), axis=0)
    return np.asarray(rows)
