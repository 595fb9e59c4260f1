"""Yardsticks that samples are measured against, and the measures of every sample.

The class means and a classifier make a `Yardstick`. Single samples, batches of them, or moments
over each class are measured against it.
"""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError, check_one_of, chunks, printed
from ufm.geometry import AnyArray, float_arrays, quiet
from ufm.metrics.class_statistics import class_sums
from ufm.metrics.definitions import Centre
from ufm.metrics.pairs import CentredMeans, centred_means, rows_at_a_time, squared_distances

__all__ = [
    "WithinClasses",
    "Yardstick",
    "magnitude",
    "sample_measures",
    "within_classes",
    "yardstick",
]


@printed
class Yardstick(NamedTuple):
    """What samples are measured against: everything that class means and a classifier determine.

    Lengths are in units of `scale`, except those of weights and logits. Metrics follow from a
    yardstick and `WithinClasses`. The latter may come from all residuals at once, from batches of
    them, or from moments.

    Attributes:
        counts: n_k, (K,).
        means: mu_k, (K, d).
        centred: mu_k - c, (K, d).
        points: The means as distances between them are taken from them.
        coordinates: P with tr(S_k S_B^+) / K the mean over class k of |r P|^2, (d, m) with m < K.
        weighted_coordinates: The same with S_B weighted by class size, without the / K, (d, m).
        between: The sum of ||mu_k - c||^2.
        weighted_between: The sum of n_k/N ||mu_k - mu_G||^2.
        floor: Length up to which a difference of means is rounding error.
        weighted_floor: The same for differences weighted by the root of n_k/N.
        weights: The classifier's rows, (K, d); zero without a classifier.
        head: All rows of the classifier, (R, d): `weights`, and those of classes without samples.
        head_bias: Their bias, (R,).
        classes: The row of `head` of each class, (K,); None where they are 0, ..., K - 1.
        scale: The unit of length.
        classifies: Whether there is a classifier.
        centre: Which c.
    """

    counts: Float[Array, " K"]
    means: Float[Array, "K d"]
    centred: Float[Array, "K d"]
    points: CentredMeans
    coordinates: Float[Array, "d m"]
    weighted_coordinates: Float[Array, "d m"]
    between: Float[Array, ""]
    weighted_between: Float[Array, ""]
    floor: Float[Array, ""]
    weighted_floor: Float[Array, ""]
    weights: Float[Array, "K d"]
    head: Float[Array, "R d"]
    head_bias: Float[Array, " R"]
    classes: Int[AnyArray, " K"] | None
    scale: Float[Array, ""]
    classifies: bool
    centre: Centre


@printed
class WithinClasses(NamedTuple):
    """What `sample_measures` finds, by class: means and numbers of samples, (K,) each.

    `sample_measures` has the same fields for single samples, (N,) each.

    Attributes:
        variance: ||r||^2.
        spread: |r P|^2, tr(S_k S_B^+) / K.
        weighted_spread: The same with S_B weighted by class size, without the / K.
        mismatch: Number of samples (or their weight) whose class by the classifier is not that of
            the nearest mean.
        correct: Number of samples (or their weight) that the classifier puts into their own class.
        by_class: False where both spreads are means over all classes, repeated, and the two numbers
            are unknown.
    """

    variance: Float[Array, " K"]
    spread: Float[Array, " K"]
    weighted_spread: Float[Array, " K"]
    mismatch: Float[Array, " K"]
    correct: Float[Array, " K"]
    by_class: bool


def _truncated_inverse(xp: Any, matrix: Any, cutoff: Any, turned: bool = True) -> Any:
    """Return the pseudo-inverse, from the thin SVD, without the singular values up to `cutoff`.

    Without the last factor, the orthonormal rows U^T, where it is not to be `turned` by them.
    """
    if xp is np and not np.all(np.isfinite(matrix)):
        return np.full(matrix.T.shape, np.nan)  # as JAX has it, where NumPy raises an error
    U, s, Vt = xp.linalg.svd(matrix, full_matrices=False)
    kept = s > cutoff
    inverse = Vt.T * xp.where(kept, 1.0 / xp.where(kept, s, 1.0), 0.0)[None, :]
    return inverse @ U.T if turned else inverse


@jax.custom_jvp
def _pseudo_inverse(matrix: Float[Array, "m d"], cutoff: Float[Array, ""]) -> Float[Array, "d m"]:
    """Return the truncated inverse with the derivative at constant rank (Golub and Pereyra 1973).

    It is finite also where singular values coincide, as they all do at a simplex ETF.
    """
    return _truncated_inverse(jnp, matrix, cutoff)


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    A, cutoff = primals
    P, dA = _pseudo_inverse(A, cutoff), tangents[0]
    left = P @ (P.T @ dA.T)  # grouped so that nothing is (d, d)
    right = dA.T @ (P.T @ P)
    return P, left - left @ (A @ P) + right - P @ (A @ right) - P @ (dA @ P)


def spread_coordinates(xp: Any, rows: Any, null: Any, cutoff: Any) -> Any:
    """Return P, (d, m) with m < K, with |r P|^2 = r (rows^T rows)^+ r^T, where `null` @ rows = 0.

    The K rows have rank K - 1 at most. A Householder reflection that takes `null` to the first axis
    makes the first row zero. The K - 1 others, A, have the same scatter and an explicit rank, min(K
    - 1, d). P is A^+, up to a factor that leaves lengths alone.
    """
    u = null / xp.sqrt(xp.sum(null**2))
    A = rows[1:] - (u[1:] / (1.0 + u[0]))[:, None] * rows[:1]
    return (
        _pseudo_inverse(A, cutoff) if xp is jnp else _truncated_inverse(np, A, cutoff, turned=False)
    )


def magnitude(xp: Any, *arrays: Any) -> Any:
    """Return the largest absolute value, or 1 where it is zero; a constant for derivatives."""
    largest = xp.max(xp.stack([xp.max(xp.abs(array)) for array in arrays]))
    magnitude = xp.where(largest == 0, 1.0, largest)
    return jax.lax.stop_gradient(magnitude) if xp is jnp else magnitude


@quiet
def yardstick(
    counts: Float[AnyArray, " K"],
    means: Float[AnyArray, "K d"],
    weights: Float[AnyArray, "R d"] | None = None,
    bias: Float[AnyArray, " R"] | None = None,
    *,
    centre: Centre = "classes",
    rtol: float | None = None,
    reach: Any = 0.0,
    classes: Int[AnyArray, " K"] | None = None,
) -> Yardstick:
    """Return what samples of these class means are measured against.

    Args:
        counts: n_k, (K,).
        means: mu_k, (K, d).
        weights: As for `collapse_metrics`, and so are the next three.
        bias: The classifier's bias.
        centre: What means are centred at.
        rtol: What counts as rounding error.
        reach: A length that residuals have, (); only the unit of length depends on it.
        classes: The row of the classifier of each class, (K,), where it has more rows than there
            are classes.

    Raises:
        ValueError: As `collapse_metrics`.
    """
    if weights is None and bias is not None:
        raise ArgumentError(
            "bias", "needs `weights`: pass the classifier's matrix of shape (K, d) as well"
        )
    check_one_of("centre", centre, get_args(Centre))
    K, d = means.shape
    if K < 2:
        raise ArgumentError("statistics", f"must have at least 2 classes to compare, got {K}")
    W = np.zeros((K, d)) if weights is None else weights
    b = np.zeros(len(W)) if bias is None else bias
    R = K if classes is None else len(W)
    if W.shape != (R, d) or b.shape != (R,):
        raise ArgumentError(
            "weights`, `bias", f"must have shapes {(R, d)}, {(R,)}, got {W.shape}, {b.shape}"
        )
    xp, n, M, W, b, reach = float_arrays(counts, means, W, b, reach)
    rtol = max(K, d) * float(xp.finfo(M.dtype).eps) if rtol is None else rtol

    # Nearly every metric is free of scale. One scale for all keeps the squares of very small or
    # very large features within the range of the dtype.
    scale = magnitude(xp, M, reach)
    M, shares = M / scale, n / xp.sum(n)
    by_class, mean = centre == "classes", shares @ M
    centred = M - (xp.mean(M, axis=0) if by_class else mean)[None, :]
    floor = rtol * xp.sqrt(xp.sum(M**2))
    root = xp.sqrt(shares)[:, None]
    weighted = root * (M - mean[None, :])
    weighted_floor = rtol * xp.sqrt(xp.sum((root * M) ** 2))
    return Yardstick(
        counts=n,
        means=M,
        centred=centred,
        points=centred_means(xp, M),
        coordinates=spread_coordinates(xp, centred, xp.ones_like(n) if by_class else n, floor),
        weighted_coordinates=spread_coordinates(xp, weighted, root[:, 0], weighted_floor),
        between=xp.sum(centred**2),
        weighted_between=xp.sum(weighted**2),
        floor=floor,
        weighted_floor=weighted_floor,
        weights=W if classes is None or weights is None else W[classes],
        head=W,
        head_bias=b,
        classes=classes,
        scale=scale,
        classifies=weights is not None,
        centre=centre,
    )


@quiet
def sample_measures(
    yard: Yardstick, residuals: Float[AnyArray, "N d"], labels: Int[AnyArray, " N"]
) -> tuple[WithinClasses, Float[Array, "N R"]]:
    """Return what every metric takes of each sample, (N,) each, and the logits.

    Without a classifier the logits are zero. With one, memory is needed for a few numbers per
    sample and class.

    Args:
        yard: From `yardstick`.
        residuals: h_i - mu_{y_i} in rows, (N, d).
        labels: The classes y_i, (N,).
    """
    xp, R = float_arrays(residuals)
    logits = xp.zeros((len(R), 1), R.dtype)
    if yard.classifies:
        logits = (yard.means[labels] * yard.scale + R) @ yard.head.T + yard.head_bias[None, :]
    R = R / yard.scale
    wrong = correct = xp.zeros(len(R), R.dtype)
    if yard.classifies:
        inner = R @ yard.centred.T
        own = xp.take_along_axis(inner, labels[:, None], axis=1)
        # ||h_i - mu_k||^2 - ||h_i - mu_{y_i}||^2, relative to the own mean: a common offset does no
        # harm.
        present, places = (
            (slice(None), labels) if xp is jnp else np.unique(labels, return_inverse=True)
        )
        excess = 2.0 * (own - inner)
        excess += squared_distances(xp, yard.points, present)[places]
        nearest, right = xp.argmin(excess, axis=1), labels
        if yard.classes is not None:
            nearest, right = yard.classes[nearest], yard.classes[labels]
        predicted = xp.argmax(logits, axis=1)
        wrong, correct = (
            (predicted != nearest).astype(R.dtype),
            (predicted == right).astype(R.dtype),
        )
    samples = WithinClasses(
        variance=xp.sum(R**2, axis=1),
        spread=xp.sum((R @ yard.coordinates) ** 2, axis=1),
        weighted_spread=xp.sum((R @ yard.weighted_coordinates) ** 2, axis=1),
        mismatch=wrong,
        correct=correct,
        by_class=True,
    )
    return samples, logits


@quiet
def within_classes(
    yard: Yardstick,
    residuals: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    sample_weights: Float[AnyArray, " N"],
) -> WithinClasses:
    """Return the means and the numbers over each class of what `sample_measures` gives.

    NumPy takes some samples at a time.

    Args:
        yard: From `yardstick`.
        residuals: h_i - mu_{y_i} in rows, (N, d).
        labels: The classes y_i, (N,).
        sample_weights: a_i, (N,).
    """
    xp, R, a = float_arrays(residuals, sample_weights)
    K, rows = len(yard.means), len(R)
    if xp is np:
        rows = rows_at_a_time(max(R.shape[1], len(yard.head)), least=16)
    sums = xp.zeros((K, 5), R.dtype)
    for part in chunks(len(R), rows):
        values = xp.stack(sample_measures(yard, R[part], labels[part])[0][:-1], axis=1)
        sums = sums + class_sums(a[part, None] * values, labels[part], K)
    return WithinClasses._make([*(sums[:, :3] / yard.counts[:, None]).T, *sums[:, 3:].T, True])
