"""Features split into class means and residuals, from which every metric follows."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import printed
from ufm.geometry import AnyArray, float_arrays, quiet

__all__ = [
    "ClassStatistics",
    "class_statistics",
    "class_sums",
    "indicator",
]


@printed
class ClassStatistics(NamedTuple):
    """Features split into class means and residuals, h_i = mu_{y_i} + r_i.

    The residuals stand for the within-class covariance, which at (d, d) can be far larger than they
    are.

    Attributes:
        counts: Class weights n_k, (K,): numbers of samples, unless these are weighted.
        means: Class means mu_k, (K, d). A class without samples has NaN.
        residuals: h_i - mu_{y_i}, (N, d).
        labels: The classes y_i, (N,).
        sample_weights: The weights a_i, (N,).
    """

    counts: Float[Array, " K"]
    means: Float[Array, "K d"]
    residuals: Float[Array, "N d"]
    labels: Int[Array, " N"]
    sample_weights: Float[Array, " N"]

    @property
    def shares(self) -> Float[Array, " K"]:
        """The share of each class in all samples, n_k / N, (K,)."""
        return self.counts / self.counts.sum()

    @property
    def global_mean(self) -> Float[Array, " d"]:
        """The mean of all samples mu_G, (d,): class means weighted by n_k / N."""
        return self.shares @ self.means

    @property
    def within_trace(self) -> Float[Array, " K"]:
        """The within-class variances, (K,): the mean over the class of ||h - mu_k||^2."""
        return self.class_means((self.residuals**2).sum(axis=1))

    @property
    def within(self) -> Float[Array, "d d"]:
        """The within-class covariance S_W, (d, d), the mean over all N samples."""
        share = self.sample_weights / self.sample_weights.sum()
        return self.residuals.T @ (self.residuals * share[:, None])

    def class_means(self, values: Float[Array, " N"]) -> Float[Array, " K"]:
        """Return the mean over each class of one value for each sample."""
        return (
            class_sums(self.sample_weights * values, self.labels, self.counts.shape[0])
            / self.counts
        )


def indicator(places: np.ndarray, values: np.ndarray | None, num_rows: int) -> Any:
    """Return the sparse matrix that sums rows by place, (num_rows, n), times `values`."""
    from scipy import sparse  # here, because scipy is slow to import

    ones = np.ones(len(places)) if values is None else values
    return sparse.csc_array(
        (ones, places, np.arange(len(places) + 1)), shape=(num_rows, len(places))
    )


def class_sums(rows: Any, labels: Any, num_classes: int) -> Any:
    """Return the sum of the rows of each class, (K, ...)."""
    if isinstance(rows, jax.Array):
        return jax.ops.segment_sum(rows, labels, num_classes)
    if rows.ndim == 1:
        return np.bincount(labels, rows, num_classes)
    return indicator(labels, None, num_classes) @ rows


@quiet
def class_statistics(
    features: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    num_classes: int,
    sample_weights: Float[AnyArray, " N"] | None = None,
) -> ClassStatistics:
    r"""Return the class means of features, and what is left of every sample.

    $$n_k = \sum_{y_i=k} a_i, \quad \mu_k = \frac{1}{n_k} \sum_{y_i=k} a_i h_i, \quad
    r_i = h_i - \mu_{y_i}$$

    Pure: for `jit`, `num_classes` is static. The means take two passes, which leaves them accurate
    to rounding however many samples there are and however far from the origin.

    Args:
        features: h_i in rows, (N, d). At class level, class means, with `sample_weights` the class
            sizes.
        labels: Classes y_i in 0, ..., K - 1, (N,). They are not checked here.
        num_classes: K.
        sample_weights: a_i, (N,), not negative; 1 by default.

    Returns:
        The statistics. A class of zero total weight has no mean: NaN there, and in every aggregate
        over classes.
    """
    a = np.ones(features.shape[:1]) if sample_weights is None else sample_weights
    xp, H, a = float_arrays(features, a)
    y = xp.asarray(labels)
    n = class_sums(a, y, num_classes)

    def class_means(rows: Any) -> Any:
        return class_sums(a[:, None] * rows, y, num_classes) / n[:, None]

    rough = class_means(H)
    rest = H - rough[y]
    correction = class_means(rest)
    return ClassStatistics(n, rough + correction, rest - correction[y], y, a)
