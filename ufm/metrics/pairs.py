"""Numbers for pairs of classes, without a (K, K) matrix where K is large."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import chunks

__all__ = [
    "CentredMeans",
    "cdnv_of",
    "centred_means",
    "class_slices",
    "over_pairs",
    "ratio",
    "rows_at_a_time",
    "squared_distances",
]


PAIRS = 2**18  # pairs of classes, or of samples and classes, whose numbers are in memory at a time


def rows_at_a_time(row_length: int, least: int = 1) -> int:
    """Return how many rows of a given length have PAIRS numbers at most, and at least `least`."""
    return max(PAIRS // row_length, least)


def class_slices(num_classes: int) -> Iterator[slice]:
    """Return the rows of a (K, K) matrix in slices of PAIRS numbers at most (or one row)."""
    return chunks(num_classes, rows_at_a_time(num_classes))


class CentredMeans(NamedTuple):
    """Class means as `_squared_distances` takes them.

    Attributes:
        means: mu_k less a common offset, (K, d).
        squares: Their squared norms, (K,).
    """

    means: Float[Array, "K d"]
    squares: Float[Array, " K"]


def centred_means(xp: Any, means: Any) -> CentredMeans:
    """Return class means less their mean, taken over the classes that have one.

    Without a common offset, products keep the digits of differences.
    """
    if xp is np:
        known = np.isfinite(means).all(axis=1)
        means = means - np.sum(means[known], axis=0) / max(np.sum(known), 1)
    return CentredMeans(means, xp.sum(means**2, axis=1))


def squared_distances(
    xp: Any, points: CentredMeans, rows: Any = slice(None), columns: Any = slice(None)
) -> Any:
    """Return ||mu_j - mu_k||^2 for some rows j and columns k of means.

    They are taken from differences where means are nearly equal, so that they keep their digits.
    """
    left, right = points.means[rows], points.means[columns]
    if xp is jnp:
        return jnp.sum(
            (left[:, None, :] - right[None, :, :]) ** 2, axis=2
        )  # one loop when it is compiled
    distances = (-2.0 * left) @ right.T
    both = points.squares[rows, None] + points.squares[None, columns]
    distances += both
    both *= 1e-3
    near_j, near_k = np.nonzero(distances < both)
    for chunk in chunks(len(near_j), rows_at_a_time(left.shape[1])):
        j, k = near_j[chunk], near_k[chunk]
        distances[j, k] = np.sum((left[j] - right[k]) ** 2, axis=1)
    return distances


def ratio(xp: Any, within: Any, between: Any, floor: Any) -> Any:
    """Return within / between; where `between` is at most `floor`, infinity, or 0 if both are."""
    nothing = between <= floor
    against_nothing = xp.where(within <= floor, 0.0, xp.inf)
    return xp.where(nothing, against_nothing, within / xp.where(nothing, 1.0, between))


def cdnv_of(
    xp: Any,
    points: CentredMeans,
    variances: Any,
    floor: Any,
    rows: slice,
    columns: slice = slice(None),
) -> Any:
    """Return (v_j + v_k) / (2 ||mu_j - mu_k||^2) for some rows j and columns k.

    The entries with j = k have no meaning.
    """
    pairs = (variances[rows, None] + variances[None, columns]) / 2.0
    return ratio(xp, pairs, squared_distances(xp, points, rows, columns), floor)


def over_pairs(xp: Any, num_classes: int, values: Callable[[slice, slice], Any]) -> tuple[Any, Any]:
    """Return the sum and the largest of values(j, k) over k other than j, for each j, (K,) each.

    Args:
        xp: The array module; NumPy has only some rows of the pairs in memory at a time.
        num_classes: K.
        values: Returns the values, which are symmetric and not negative, of some rows and columns.
    """
    if xp is jnp:
        pairs = jnp.where(np.eye(num_classes, dtype=bool), 0.0, values(slice(None), slice(None)))
        return jnp.sum(pairs, axis=1), jnp.max(pairs, axis=1)
    sums, largest = np.zeros(num_classes), np.zeros(num_classes)
    for rows in class_slices(num_classes):
        rest = slice(rows.stop, num_classes)
        pairs = values(rows, slice(rows.start, num_classes))
        np.fill_diagonal(pairs, 0.0)
        sums[rows] += np.sum(pairs, axis=1)
        largest[rows] = np.maximum(largest[rows], np.max(pairs, axis=1))
        below = pairs[:, len(pairs) :]  # the same pairs, seen from the classes after these
        sums[rest] += np.sum(below, axis=0)
        largest[rest] = np.maximum(largest[rest], np.max(below, axis=0, initial=0.0))
    return sums, largest
