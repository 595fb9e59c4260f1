"""Samples: the rows of a problem, each a target with its weights in the loss and in the penalty.

At fixed weights the objective separates over samples, and all samples of one class face the same
problem. So the optimal value over N features equals that over K rows, one per class with the weight
of its n_k samples, for any loss, depth and activation. One-hot classes are two constructors:
`class_samples` (R = K rows) and `labelled_samples` (R = N rows).
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError
from ufm.problems.class_sizes import ClassGroups

if TYPE_CHECKING:
    from ufm.problems.problem import Problem

__all__ = [
    "Resolution",
    "Samples",
    "class_means",
    "class_samples",
    "labelled_samples",
    "labels",
    "lifted",
    "samples_of",
    "whole_counts",
]

MOST_SAMPLES = 10**8

Resolution = Literal["samples", "classes"]


class Samples(NamedTuple):
    """The rows that an objective sums over.

    Attributes:
        targets: (R, K), the target of each row.
        counts: (R,), how many samples the row stands for: N times its weight in the loss.
        feature_weights: (R,), what ||h_r||^2 is multiplied by in the penalty or the bound of the
            features.
    """

    targets: Float[Array, "R K"]
    counts: Float[Array, " R"]
    feature_weights: Float[Array, " R"]

    @property
    def class_counts(self) -> Float[Array, " R"]:
        """(R,), how many samples have the target of each row, for one-hot targets."""
        return self.targets @ (self.targets.T @ self.counts)


def class_samples(problem: "Problem", dtype: jnp.dtype) -> Samples:
    """Return one row per class; in float32 where the process has no float64."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    counts = jnp.asarray(problem.class_counts.per_class, dtype)
    return _samples(problem, jnp.eye(problem.num_classes, dtype=dtype), counts, counts)


def labelled_samples(problem: "Problem", labels: Int[Array, " N"], dtype: jnp.dtype) -> Samples:
    """Return one row per sample; `labels` gives each sample's class.

    Precision as in `class_samples`.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    targets = (labels[:, None] == jnp.arange(problem.num_classes)[None, :]).astype(dtype)
    counts = jnp.asarray(problem.class_counts.per_class, dtype)
    return _samples(problem, targets, jnp.ones(labels.shape, dtype), counts[labels])


def _samples(problem: "Problem", targets: Array, counts: Array, class_counts: Array) -> Samples:
    weights = problem.regularizer.feature_weights(counts, class_counts, problem.num_classes)
    return Samples(targets, counts, weights)


def samples_of(problem: "Problem", labels: Int[Array, " N"] | None, dtype: jnp.dtype) -> Samples:
    """Return one row per class (labels None) or per sample."""
    if labels is None:
        return class_samples(problem, dtype)
    return labelled_samples(problem, labels, dtype)


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
