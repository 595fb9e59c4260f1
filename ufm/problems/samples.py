"""Samples: the rows of a problem, each a target with its weights in the loss and in the penalty.

At fixed weights the objective separates over samples, and all samples of one class face the same
problem. So the optimal value over N features equals that over K rows, one per class with the weight
of its n_k samples, for any loss, depth and activation. One-hot classes are two constructors:
`class_samples` (R = K rows) and `labelled_samples` (R = N rows).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError, array_module
from ufm.problems.class_sizes import ClassGroups

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

    @property
    def classes(self) -> Int[Array, " R"]:
        """(R,), the class of each row, for one-hot targets."""
        return array_module(self.targets).argmax(self.targets, axis=1)

    def class_means(self, rows: Float[Array, "R c"]) -> Float[Array, "K c"]:
        """Return the mean row of every class."""
        shares = self.counts / self.class_counts
        return jax.ops.segment_sum(
            shares[:, None] * rows, self.classes, num_segments=self.targets.shape[1]
        )

    def astype(self, dtype: Any) -> "Samples":
        """Return the same samples in another precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)


def class_samples(problem: "Problem", dtype: type | np.dtype) -> Samples:
    """Return one row per class; in float32 where the process has no float64."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    counts = jnp.asarray(problem.class_counts.per_class, dtype)
    return _samples(problem, jnp.eye(problem.num_classes, dtype=dtype), counts, counts)


def labelled_samples(
    problem: "Problem", labels: Int[Array, " N"], dtype: type | np.dtype
) -> Samples:
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


def samples_of(problem: "Problem", rows: int) -> Samples:
    """Return the samples of so many feature rows, as float64 NumPy arrays.

    Args:
        problem: The problem.
        rows: K for one row per class, N for one per sample in the order of the classes.
    """
    counts: Any = np.asarray(problem.class_counts, np.float64)
    targets: Any = np.eye(problem.num_classes)
    if rows == problem.num_classes:
        return _samples(problem, targets, counts, counts)
    of_rows = labels(problem.class_counts)
    return _samples(problem, targets[of_rows], np.ones(of_rows.shape), counts[of_rows])  # type: ignore[arg-type]


def num_rows(problem: "Problem", resolution: str) -> int:
    """Return how many feature rows a problem has at the resolution "classes" or "samples".

    Raises:
        ArgumentError: If class counts are not whole at sample resolution.
    """
    if resolution == "samples":
        return int(np.sum(whole_counts(problem.class_counts)))
    return problem.num_classes


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


def lifted(rows: Float[Array, "n c"], classes: ClassGroups) -> Float[np.ndarray, "N c"]:
    """Return one row per sample: every sample of a class gets its class's row.

    Rows per sample come back as they are.
    """
    if rows.shape[0] == classes.num_classes:
        return np.repeat(np.asarray(rows), whole_counts(classes), axis=0)
    return np.asarray(rows)
