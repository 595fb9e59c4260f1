r"""Neural collapse measured in passes over mini-batches, in bounded memory.

The result is as exact as from all features at once.

K classes, d features, N samples of weights a_i; features are rows. One pass gives the counts n_k,
the class means mu_k, the variance within each class and the scatter within all of them,

$$q_k = \sum_{y_i=k} a_i \|h_i - \mu_k\|^2, \qquad
S = \sum_i a_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^T,$$

in memory K d + d^2 and some for the batch, never K d^2 or K^2: what depends on pairs of classes is
worked on some classes at a time. A second pass, once the means are known, gives what depends on
single samples: NC1 of each class and NC4. Both merge, in any order, across workers and machines.

Batches are joined by the update of Chan, Golub and LeVeque (1983): what a batch has about its own
class means, and for each class n n' / (n + n') times the square of the step between the old mean
and that of the batch. In S both are one product: the steps are rows below the residuals. Means are
pairs of float64, the second being what the first cannot hold, so that residuals keep their digits
where features collapse to 1e-8 of their distance from the origin.

Features of any precision are accumulated in float64. The formulas of the metrics are those of
`ufm.metrics`.

References:
    - Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The American
      Statistician.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import blas

from ufm import metrics
from ufm._support import ArgumentError, check_instance, checked_whole, chunks
from ufm.metrics import Absent, Centre, NeuralCollapse, WithinClasses

__all__ = [
    "LARGEST",
    "Batch",
    "ClassMoments",
    "as_numbers",
    "checked",
    "load_arrays",
    "offsets",
    "save_arrays",
]

SLICE = 2**20  # numbers in float64 that are worked on at a time
LARGEST = 1e130  # squares and their sums stay within float64


class Batch(NamedTuple):
    """A checked batch.

    Attributes:
        features: The features in their own dtype, (n, d).
        labels: Class indices, (n,).
        sample_weights: Weights, (n,); None if all are one.
    """

    features: np.ndarray
    labels: np.ndarray
    sample_weights: np.ndarray | None

    def slices(self, columns: int, least: int = 512) -> Iterator["Batch"]:
        """Split into slices of at least `least` rows that are small in float64."""
        a = self.sample_weights
        for part in chunks(len(self.labels), max(SLICE // columns, least)):
            yield Batch(self.features[part], self.labels[part], None if a is None else a[part])


def _refuse_row(X: np.ndarray, start: int) -> None:
    """Refuse features that are not finite or too large, naming the row."""
    with np.errstate(all="ignore"):
        bad = np.argwhere(~(np.abs(X.astype(np.float64)) <= LARGEST))
    if len(bad):
        row, column = bad[0].tolist()
        value = float(X[row, column])
        remedy = (
            "leave such samples out"
            if not np.isfinite(value)
            else "divide all features by a constant"
        )
        raise ArgumentError(
            "features",
            f"must be finite and at most {LARGEST:g} in size, got {value:g} in row "
            f"{start + row}, column {column}; {remedy}",
        )


def checked(features: Any, labels: Any, sample_weights: Any, num_classes: int, dim: int) -> Batch:
    """Return a batch whose every number is fit to be added."""
    X = metrics.host_array("features", features)
    if X.ndim != 2 or X.shape[1] != dim:
        remedy = "; flatten or pool other axes first" if X.ndim > 2 else ""
        raise ArgumentError(
            "features",
            f"must be a matrix (N, {dim}), one row for each sample, got shape {X.shape}{remedy}",
        )
    y = metrics.class_labels(labels, len(X), num_classes)
    a = None
    if sample_weights is not None and len(X):
        a = metrics.real_array(
            "sample_weights", sample_weights, (len(X),), f"of shape ({len(X)},), one number each"
        )
        if np.any(a < 0):
            raise ArgumentError(
                "sample_weights", f"must not be negative, got {a.min():g} at index {np.argmin(a)}"
            )
    if X.dtype.kind not in "iub":
        for rows in chunks(len(X), max(SLICE // dim, 512)):
            part = X[rows]
            with np.errstate(invalid="ignore"):
                low, high = part.min(), part.max()  # either is NaN where there is one
            if not (float(low) >= -LARGEST and float(high) <= LARGEST):
                _refuse_row(part, rows.start)
    if a is not None and np.any(a == 0):
        X, y, a = X[a > 0], y[a > 0], a[a > 0]
    return Batch(X, y, a)


def _two_sum(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of two numbers rounded, and what the rounding lost, exactly (Knuth)."""
    total = high + low
    part = total - high
    return total, (high - (total - part)) + (low - part)


def offsets(X: np.ndarray, origins: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Write X less the origin of each row into `out`, rounded once."""
    np.take(origins, places, axis=0, out=out, mode="clip")
    np.subtract(
        X if X.dtype.kind in "iub" or X.dtype in (np.float32, np.float64) else X.astype(np.float64),
        out,
        out=out,
    )


def as_numbers(result: NeuralCollapse) -> NeuralCollapse:
    """Return the same with arrays without axes as numbers."""
    return jax.tree.map(lambda leaf: leaf[()], result)


def save_arrays(path: str | os.PathLike[str], kind: str, arrays: dict[str, Any]) -> None:
    """Write an .npz file beside `path` and move it there.

    An interruption leaves what was there before.
    """
    name = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(name))
    if not os.path.isdir(folder):
        raise ArgumentError("path", "must be in a folder that exists", name)
    handle, temporary = tempfile.mkstemp(suffix=".npz", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, kind=np.array(kind), **arrays)
        os.replace(temporary, name)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def load_arrays(
    path: str | os.PathLike[str], kind: str, keys: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    """Return the arrays of a file that `save_arrays` wrote."""
    arrays = metrics.stored_arrays(path, ("kind", *keys), optional)
    if str(arrays["kind"]) != kind:
        raise ArgumentError(
            "path",
            f"must be a file of {kind}.save, got one of {arrays['kind']} in {os.fspath(path)!r}",
        )
    return arrays


class ClassMoments:
    """The moments of features class by class, gathered in one pass.

    An accumulator: `update` changes it.

    >>> moments = ClassMoments(num_classes=2, dim=2)
    >>> moments.update([[1.0, 0.1], [1.0, -0.1]], [0, 0])
    >>> moments.update([[-1.0, 0.0]], [1])
    >>> moments.measure().nc1.trace_ratio.round(12)
    np.float64(0.006666666667)

    Args:
        num_classes: K, at least 2.
        dim: d.
        scatter: Whether to gather the scatter matrix, (d, d). Without it one pass gives no
            metrics, but the means for a `SecondPass` in a fraction of the time and memory.

    Raises:
        ValueError: A number is not whole, or too small.
    """

    def __init__(self, num_classes: int, dim: int, *, scatter: bool = True):
        K, d = checked_whole("num_classes", num_classes, 2), checked_whole("dim", dim)
        self._counts = np.zeros(K)
        self._means = np.zeros((K, d))
        self._means_low = np.zeros((K, d))  # what float64 cannot hold of the means
        self._squares = np.zeros(K)
        self._scatter = np.zeros((d, d), order="F") if scatter else None  # the lower triangle

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self._counts)

    @property
    def dim(self) -> int:
        """d, the number of features."""
        return self._means.shape[1]

    @property
    def counts(self) -> Float[np.ndarray, " K"]:
        """Class weights n_k, (K,): numbers of samples, unless these are weighted."""
        return self._counts.copy()

    @property
    def means(self) -> Float[np.ndarray, "K d"]:
        """Class means, (K, d); NaN for a class without samples."""
        return np.where(self._counts[:, None] > 0, self._means, np.nan)

    @property
    def shares(self) -> Float[np.ndarray, " K"]:
        """The share of each class in all samples, n_k / N, (K,)."""
        return self._counts / max(self._counts.sum(), np.finfo(float).tiny)

    @property
    def global_mean(self) -> Float[np.ndarray, " d"]:
        """The mean of all samples, (d,): class means weighted by n_k / N."""
        return self.shares @ self._means

    @property
    def within_trace(self) -> Float[np.ndarray, " K"]:
        """The within-class variances, (K,): the mean of ||h - mu_k||^2; NaN without samples."""
        some = self._counts > 0
        return np.where(some, self._squares / np.where(some, self._counts, 1.0), np.nan)

    @property
    def within(self) -> Float[np.ndarray, "d d"]:
        """The within-class covariance, (d, d), the mean over all N samples.

        Raises:
            ValueError: The accumulator was made without a scatter matrix.
        """
        if self._scatter is None:
            raise ArgumentError(
                "scatter", "must be True to have the within-class covariance, got False"
            )
        lower = np.tril(self._scatter)
        return (lower + np.tril(lower, -1).T) / max(self._counts.sum(), np.finfo(float).tiny)

    def update(
        self, features: ArrayLike, labels: ArrayLike, sample_weights: ArrayLike | None = None
    ) -> None:
        """Add a batch. It is checked first: after an error nothing has changed.

        All arrays that NumPy or DLPack can read are accepted: NumPy (memory maps too), JAX, PyTorch
        on the CPU. They are not copied. A large batch is processed in slices. Large batches are
        better: each sample costs d^2 operations, and so does each class in a batch.

        Args:
            features: (n, d), of any real dtype, in rows.
            labels: Class indices 0, ..., K - 1, integers, (n,).
            sample_weights: The weight of each sample, (n,), not negative; 1 by default.

        Raises:
            ValueError: An array of the wrong shape or kind; features that are not finite, or beyond
                1e130 in size; labels that are no integers or out of range; a negative weight.
        """
        batch = checked(features, labels, sample_weights, self.num_classes, self.dim)
        # every class in a slice is a row more, so few classes should have but one sample in it
        for part in batch.slices(self.dim, max(512, min(4 * self.num_classes, 4096))):
            self._add(part)

    def _add(self, batch: Batch) -> None:
        """Add a slice of a batch."""
        present, first, places = np.unique(batch.labels, return_index=True, return_inverse=True)
        size, num_present, a = len(places), len(present), batch.sample_weights
        new = self._counts[present] == 0
        origins = self._means[present]
        origins[new] = batch.features[
            first[new]
        ]  # the mean of a new class is measured from its first sample

        rows = np.empty((size + num_present, self.dim))
        residuals, steps = rows[:size], rows[size:]
        offsets(batch.features, origins, places, residuals)
        sums = metrics.indicator(places, a, num_present)
        n, added = self._counts[present], sums.sum(axis=1)
        total = n + added
        batch_means = (sums @ residuals) / added[:, None]  # less the origins
        residuals -= batch_means[places]
        if a is not None:
            residuals *= np.sqrt(a)[:, None]
        step = batch_means - self._means_low[present]
        np.multiply(step, np.sqrt(n * added / total)[:, None], out=steps)

        squares = np.einsum("ij,ij->i", rows, rows)
        self._squares[present] += np.bincount(places, squares[:size], num_present) + squares[size:]
        low = self._means_low[present] + step * (added / total)[:, None]
        self._means[present], self._means_low[present] = _two_sum(origins, low)
        self._counts[present] = total
        self._add_scatter(rows)

    def _add_scatter(self, rows: np.ndarray) -> None:
        """Add rows^T rows."""
        if self._scatter is not None:
            self._scatter = blas.dsyrk(
                1.0, rows.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1
            )

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Return the moments of the samples of both accumulators. Neither changes.

        Raises:
            ValueError: `other` is something else, has another number of classes or features, or
                only one of them has a scatter matrix.
        """
        check_instance("other", other, ClassMoments, "a ClassMoments")
        for name in ("num_classes", "dim"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ArgumentError(
                    "other",
                    f"must have {name}={mine}, as this accumulator has, got {theirs}; make "
                    "all accumulators with the same numbers",
                )
        if (self._scatter is None) != (other._scatter is None):
            raise ArgumentError(
                "other", f"must have scatter={self._scatter is not None}, as this accumulator has"
            )
        merged = ClassMoments(self.num_classes, self.dim, scatter=False)
        n, added = self._counts, other._counts
        total = n + added
        share = (added / np.where(total == 0, 1.0, total))[:, None]
        step = (other._means - self._means) + (other._means_low - self._means_low)
        step[(n == 0) | (added == 0)] = 0.0
        moved = _two_sum(self._means, self._means_low + step * share)
        only_other = (n == 0)[:, None]
        merged._means = np.where(only_other, other._means, moved[0])
        merged._means_low = np.where(only_other, other._means_low, moved[1])
        rows = step * np.sqrt(n * share[:, 0])[:, None]
        merged._counts = total
        merged._squares = self._squares + other._squares + np.einsum("ij,ij->i", rows, rows)
        if self._scatter is not None and other._scatter is not None:
            merged._scatter = self._scatter + other._scatter
            merged._add_scatter(rows)
        return merged

    def widened(self, num_classes: int) -> "ClassMoments":
        """Return the same moments with room for more classes."""
        return self.renumbered(np.arange(self.num_classes), num_classes)

    def renumbered(self, numbers: np.ndarray, num_classes: int) -> "ClassMoments":
        """Return the moments of the first classes with other numbers, and room for more.

        Args:
            numbers: The new number of each of these classes, without repetition. The classes after
                them must have no samples.
            num_classes: How many classes there are then.
        """
        other = ClassMoments(num_classes, self.dim, scatter=False)
        for name in ("_counts", "_means", "_means_low", "_squares"):
            getattr(other, name)[numbers] = getattr(self, name)[: len(numbers)]
        other._scatter = self._scatter
        return other

    def yardstick(
        self,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        centre: Centre = "classes",
        rtol: float | None = None,
        absent: Absent = "refuse",
    ) -> metrics.Yardstick:
        """Return what samples are measured against; see `ufm.metrics.yardstick`.

        Arguments and errors as `measure`.
        """
        K, d = self.num_classes, self.dim
        present = np.flatnonzero(self._counts)
        metrics.check_present("labels", present, K, absent)
        metrics.checked_rtol(rtol, d)
        W, b = metrics.head_of(weights, bias, (K, d), "class") or (None, None)
        reach = np.sqrt(np.max(self.within_trace[present]))
        size = max(reach, np.abs(self._means).max())
        if 0 < size < 1 / LARGEST:
            raise ArgumentError(
                "features",
                f"must be of a size whose square float64 can hold, got {size:g}; scale them up",
            )
        n, M = self._counts[present], self._means[present]
        classes = None if len(present) == K else present
        return metrics.yardstick(n, M, W, b, centre=centre, rtol=rtol, reach=reach, classes=classes)

    def measure(
        self,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        centre: Centre = "classes",
        rtol: float | None = None,
        absent: Absent = "refuse",
    ) -> NeuralCollapse:
        """Return the metrics NC1 to NC4 as far as one pass gives them.

        NC4, and NC1 of single classes by pseudo-inverse, need a second pass.

        They are None (`nc1.pinv_per_class` and `nc4`); a `SecondPass` has them. NC1 by
        pseudo-inverse has the rounding errors of the direction of largest variance within classes;
        where that is 1e6 times the variance along the class means, six digits fewer are right, and
        a `SecondPass` has all of them.

        Args:
            weights: The classifier's rows, (K, d); None leaves out NC3 and NC2 of weights.
            bias: The classifier's bias, (K,); nothing here depends on it.
            centre: What means are centred at, "classes" or "samples"; see
                `ufm.metrics.neural_collapse`.
            rtol: What counts as rounding error; see `ufm.metrics.collapse_metrics`.
            absent: Whether to refuse classes without samples; see `ufm.metrics.neural_collapse`.

        Raises:
            ValueError: A class has no samples and is not left out; the classifier does not fit;
                there is no scatter matrix.
        """
        yard = self.yardstick(weights, bias, centre=centre, rtol=rtol, absent=absent)
        covariance = self.within / yard.scale**2
        spreads = [
            np.sum(P * (covariance @ P)) for P in (yard.coordinates, yard.weighted_coordinates)
        ]
        present = np.flatnonzero(self._counts)
        spread, weighted_spread = (np.full(len(present), value) for value in spreads)
        unknown = np.full(len(present), np.nan)
        within = [
            self.within_trace[present] / yard.scale**2,
            spread,
            weighted_spread,
            unknown,
            unknown,
            False,
        ]
        result = as_numbers(metrics.collapse_from(yard, WithinClasses._make(within)))
        return metrics.absent_left_out(result, present, self.num_classes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into an .npz file, which is there as a whole or not at all."""
        save_arrays(path, "ClassMoments", self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state, by the names under which it is stored."""
        arrays = {
            "counts": self._counts,
            "means": self._means,
            "means_low": self._means_low,
            "squares": self._squares,
        }
        return arrays if self._scatter is None else arrays | {"scatter": np.tril(self._scatter)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ClassMoments":
        """Return the accumulator that `save` wrote; nothing in the file is unpickled.

        Raises:
            ValueError: There is no such file, it is damaged, or it holds something else.
        """
        return cls.restored(
            load_arrays(
                path, "ClassMoments", ("counts", "means", "means_low", "squares"), ("scatter",)
            ),
            path,
        )

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray | None], path: Any) -> "ClassMoments":
        """Return an accumulator with the state of the arrays."""
        means = arrays["means"]
        K, d = means.shape if means is not None and means.ndim == 2 else (0, 0)
        shapes = {
            "counts": (K,),
            "means": (K, d),
            "means_low": (K, d),
            "squares": (K,),
            "scatter": (d, d),
        }
        for name, shape in shapes.items():
            array = arrays.get(name)
            fits = array is None or (
                array.shape == shape and array.dtype == np.float64 and np.isfinite(array).all()
            )
            if not fits or 0 in shape:
                raise ArgumentError(
                    "path",
                    f"must hold what `save` wrote, got a bad {name!r} in {os.fspath(path)!r}",
                )
        moments = cls(K, d, scatter=False)
        for name in ("counts", "means", "means_low", "squares"):
            setattr(moments, f"_{name}", arrays[name])
        scatter = arrays.get("scatter")
        moments._scatter = None if scatter is None else np.asfortranarray(scatter)
        return moments

    def __repr__(self) -> str:
        seen = int(np.count_nonzero(self._counts))
        return (
            f"ClassMoments(num_classes={self.num_classes}, dim={self.dim}, "
            f"scatter={self._scatter is not None}): "
            f"{self._counts.sum():g} samples of {seen} classes"
        )
