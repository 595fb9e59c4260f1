"""Resolutions of one problem: all N samples, or the K classes weighted by their counts.

At fixed weights the objective separates over samples, and all samples of one class face the same
problem; so the optimal value over N features equals that over K class columns, each weighted by its
n_k, for any loss, depth and activation. A column is a target row with a count: n_k at class
resolution, one at sample resolution.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError
from ufm.problems.class_sizes import ClassGroups

__all__ = [
    "Columns",
    "Resolution",
    "class_columns",
    "class_means",
    "columns_of",
    "labels",
    "lifted",
    "sample_columns",
    "whole_counts",
]

MOST_SAMPLES = 10**8

Resolution = Literal["samples", "classes"]


class Columns(NamedTuple):
    """The data of an objective.

    targets: (n, K), one row per column of the problem (a sample or a class).
    counts: (n,), how many samples the column stands for.
    class_counts: (n,), how many samples its class has.
    """

    targets: Float[Array, "n K"]
    counts: Float[Array, " n"]
    class_counts: Float[Array, " n"]


def class_columns(classes: ClassGroups, dtype: jnp.dtype) -> Columns:
    """Return one column per class, weighted by its count; in float32 where the process has no float64."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    counts = jnp.asarray(classes.per_class, dtype)
    return Columns(jnp.eye(classes.num_classes, dtype=dtype), counts, counts)


def sample_columns(classes: ClassGroups, labels: Int[Array, " N"], dtype: jnp.dtype) -> Columns:
    """Return one column per sample; `labels` gives each sample's class.

    Precision as in `class_columns`.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    targets = (labels[:, None] == jnp.arange(classes.num_classes)[None, :]).astype(dtype)
    counts = jnp.asarray(classes.per_class, dtype)
    return Columns(targets, jnp.ones(labels.shape, dtype), counts[labels])


def columns_of(classes: ClassGroups, labels: Int[Array, " N"] | None, dtype: jnp.dtype) -> Columns:
    """Return the columns of class resolution (labels None) or of sample resolution."""
    return (
        class_columns(classes, dtype) if labels is None else sample_columns(classes, labels, dtype)
    )


def whole_counts(classes: ClassGroups) -> np.ndarray:
    """Return n_k as integers.

    Raises:
        ValueError: if a count is not a whole number (real counts have no samples to resolve), or
            there are too many samples.
    """
    counts = np.asarray(classes)
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


def labels(classes: ClassGroups) -> np.ndarray:
    """Return the class of every sample, (N,) integers, classes in order."""
    counts = whole_counts(classes)
    return np.repeat(np.arange(counts.size), counts)


def class_means(
    classes: ClassGroups, rows: Float[Array, "n c"], labels: Int[Array, " N"] | np.ndarray | None
) -> Float[Array, "K c"]:
    """Return the mean row of every class, from one row per class (labels None) or one per sample."""
    if labels is None:
        return rows
    sums = jax.ops.segment_sum(rows, labels, num_segments=classes.num_classes)
    return sums / jnp.asarray(classes.per_class, rows.dtype)[:, None]


def lifted(rows: Float[Array, "n c"], classes: ClassGroups) -> Float[np.ndarray, "N c"]:
    """Return one row per sample: every sample of a class gets its class's row.

    Rows per sample come back as they are.
    """
    if rows.shape[0] == classes.num_classes:
        return np.repeat(np.asarray(rows), whole_counts(classes), axis=0)
    return np.asarray(rows)
