"""Features and targets beyond one-hot in one pass over mini-batches, in bounded memory.

Accumulators of what the metrics follow from: joint second moments for regression, (d + n)^2
numbers; the mean of every tag set for multi-label; the mean of every context, and how often each
token followed it, for next-token prediction. They merge, in any order, across workers. All is
float64, by the updates of `ClassMoments`.
"""

import os
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike
from scipy.linalg import blas

from ufm import geometry, metrics
from ufm._support import ArgumentError, check_instance, checked_whole, chunks
from ufm.metrics import (
    ContextCollapse,
    ContextStatistics,
    MultiLabelCollapse,
    RegressionCollapse,
    RegressionStatistics,
    TagCentre,
    TagStatistics,
)
from ufm.networks.measure.class_moments import (
    LARGEST,
    ClassMoments,
    checked,
    load_arrays,
    save_arrays,
)

__all__ = ["ContextMoments", "RegressionMoments", "TagMoments"]

SLICE = 2**20  # numbers in float64 that are worked on at a time
TOKEN_BITS = 32  # of a key that holds a context and a token
STORED = ("counts", "means", "means_low", "squares")  # what class moments are stored as

Path = str | os.PathLike[str]


def _checked_rows(
    features: Any, sample_weights: Any, dim: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features as they came and weights, both checked."""
    X = metrics.host_array("features", features)
    checked(X, np.zeros(len(X) if X.ndim else 0, int), sample_weights, 2, dim)
    a = None if sample_weights is None else metrics.host_array("sample_weights", sample_weights)
    return X, None if a is None else a.astype(np.float64)


def _check_same(mine: Any, other: Any, names: tuple[str, ...]) -> None:
    """Refuse to merge accumulators of different kinds or sizes."""
    check_instance("other", other, type(mine), f"a {type(mine).__name__}")
    for name in names:
        if getattr(mine, name) != getattr(other, name):
            raise ArgumentError(
                "other",
                f"must have {name}={getattr(mine, name)}, as this accumulator has, got "
                f"{getattr(other, name)}; make all accumulators with the same numbers",
            )


def _check_stored(path: Path, name: str, fits: Any) -> None:
    """Refuse a file of which an array is not what was saved."""
    if not fits:
        raise ArgumentError(
            "path", f"must hold what `save` wrote, got a bad {name!r} in {os.fspath(path)!r}"
        )


def _stored_size(arrays: dict[str, Any], name: str, least: int, path: Path) -> int:
    """Return a whole number of a file."""
    given = arrays[name]
    _check_stored(path, name, given.shape == () and given.dtype.kind in "iu" and given >= least)
    return int(given)


class RegressionMoments:
    """First and second moments of features and real targets, gathered in one pass.

    An accumulator: `update` changes it.

    >>> moments = RegressionMoments(dim=2, num_outputs=1)
    >>> moments.update([[2.0, 0.0], [-2.0, 0.0]], [[1.0], [-1.0]])
    >>> moments.measure([[0.4, 0.0]]).model_error.__round__(12)
    0.04

    Args:
        dim: d.
        num_outputs: n.

    Raises:
        ValueError: A number is not whole, or too small.
    """

    def __init__(self, dim: int, num_outputs: int):
        self.dim = checked_whole("dim", dim)
        self.num_outputs = checked_whole("num_outputs", num_outputs)
        # all samples are in one class, whose scatter is that of features and targets together
        self._joint = ClassMoments(2, self.dim + self.num_outputs)
        self._directions = np.zeros((self.dim, self.dim), order="F")  # the lower triangle

    def update(
        self, features: ArrayLike, targets: ArrayLike, sample_weights: ArrayLike | None = None
    ) -> None:
        """Add a batch. It is checked first: after an error nothing has changed.

        Args:
            features: (N, d), of any real dtype, in rows.
            targets: Real targets (N, n), or (N,) for one output.
            sample_weights: The weight of each sample, (N,), not negative; 1 by default.

        Raises:
            ValueError: An array of the wrong shape or kind; numbers that are not finite, or beyond
                1e130 in size; a negative weight.
        """
        X, a = _checked_rows(features, sample_weights, self.dim)
        Y = metrics.host_array("targets", targets)
        Y = Y[:, None] if Y.ndim == 1 else Y
        n = self.num_outputs
        if len(X) == 0 and Y.shape == (0, n):
            return
        Y = metrics.real_array("targets", Y, (len(X), n), f"real numbers ({len(X)}, {n})")
        if np.abs(Y).max() > LARGEST:
            raise ArgumentError("targets", f"must be at most {LARGEST:g} in size, scale them down")
        for part in chunks(len(X), max(SLICE // (self.dim + n), 512)):
            H = X[part].astype(np.float64)
            weight = None if a is None else a[part]
            joint = np.concatenate([H, Y[part]], axis=1)
            self._joint.update(joint, np.zeros(len(H), int), weight)
            units = geometry.normalise_rows(H)
            if weight is not None:
                units = units * np.sqrt(weight)[:, None]
            self._directions = blas.dsyrk(
                1.0, units.T, beta=1.0, c=self._directions, lower=1, overwrite_c=1
            )

    @property
    def statistics(self) -> RegressionStatistics:
        """The moments, as `ufm.metrics.regression_collapse_from` takes them.

        Raises:
            ValueError: There are no samples yet.
        """
        weight = float(self._joint.counts[0])
        if weight == 0:
            raise ArgumentError("batches", "must hold at least one sample, got none")
        mean, d = self._joint.means[0], self.dim
        lower = np.tril(self._directions) / weight
        return RegressionStatistics(
            weight=weight,
            feature_mean=mean[:d],
            target_mean=mean[d:],
            covariance=self._joint.within,
            directions=lower + np.tril(lower, -1).T,
        )

    def measure(
        self, weights: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
    ) -> RegressionCollapse:
        """Return regression collapse of all samples.

        Args:
            weights: The head's rows, (n, d); None leaves out what needs them.
            bias: The head's bias, (n,); zero by default.
            options: `about`, `num_directions` and `rtol` of `ufm.metrics.regression_collapse`.

        Raises:
            ValueError: As `ufm.metrics.regression_collapse`.
        """
        return metrics.regression_collapse_from(self.statistics, weights, bias, **options)

    def merge(self, other: "RegressionMoments") -> "RegressionMoments":
        """Return the moments of the samples of both accumulators. Neither changes.

        Raises:
            ValueError: `other` is something else, or has other sizes.
        """
        _check_same(self, other, ("dim", "num_outputs"))
        merged = RegressionMoments(self.dim, self.num_outputs)
        merged._joint = self._joint.merge(other._joint)
        merged._directions = np.asfortranarray(self._directions + other._directions)
        return merged

    def save(self, path: Path) -> None:
        """Write everything into an .npz file, which is there as a whole or not at all."""
        own = {"num_outputs": np.array(self.num_outputs), "directions": np.tril(self._directions)}
        save_arrays(path, "RegressionMoments", self._joint.arrays() | own)

    @classmethod
    def load(cls, path: Path) -> "RegressionMoments":
        """Return the accumulator that `save` wrote; nothing in the file is unpickled.

        Raises:
            ValueError: There is no such file, it is damaged, or it holds something else.
        """
        keys = (*STORED, "scatter", "num_outputs", "directions")
        arrays = load_arrays(path, "RegressionMoments", keys, ())
        joint = ClassMoments.restored(arrays, path)
        n, directions = _stored_size(arrays, "num_outputs", 1, path), arrays["directions"]
        d = joint.dim - n
        _check_stored(path, "counts", joint.num_classes == 2 and joint.counts[1] == 0)
        _check_stored(path, "num_outputs", d > 0)
        fits = directions.shape == (d, d) and directions.dtype == np.float64
        _check_stored(path, "directions", fits and np.isfinite(directions).all())
        moments = cls(d, n)
        moments._joint, moments._directions = joint, np.asfortranarray(directions)
        return moments

    def __repr__(self) -> str:
        return (
            f"RegressionMoments(dim={self.dim}, num_outputs={self.num_outputs}): "
            f"{self._joint.counts[0]:g} samples"
        )


class _Keyed:
    """Class moments of classes that are numbered as they are met."""

    def __init__(self, dim: int):
        self.dim = checked_whole("dim", dim)
        self.numbers: dict[Any, int] = {}
        self.moments = ClassMoments(2, self.dim, scatter=False)

    def numbered(self, keys: list[Any]) -> np.ndarray:
        """Return the number of each key, new ones included."""
        found = [self.numbers.setdefault(key, len(self.numbers)) for key in keys]
        if len(self.numbers) > self.moments.num_classes:
            self.moments = self.moments.widened(2 * len(self.numbers))
        return np.array(found, int)

    def merged(self, other: "_Keyed") -> tuple["_Keyed", np.ndarray]:
        """Return both together, and the new number of each key of the other."""
        both = _Keyed(self.dim)
        both.numbers = dict(self.numbers)
        theirs = np.array(
            [both.numbers.setdefault(key, len(both.numbers)) for key in other.numbers], int
        )
        K = max(len(both.numbers), 2)
        kept = [
            one.moments.renumbered(numbers, K)
            for one, numbers in ((self, np.arange(len(self.numbers))), (other, theirs))
        ]
        both.moments = kept[0].merge(kept[1])
        return both, theirs

    @classmethod
    def restored(cls, arrays: dict[str, Any], keys: list[Any], name: str, path: Path) -> "_Keyed":
        """Return the state of a file, whose array of that name holds these keys."""
        moments = ClassMoments.restored(arrays, path)
        keyed = cls(moments.dim)
        keyed.numbers = {key: number for number, key in enumerate(keys)}
        keyed.moments = moments
        met, S = moments.counts > 0, len(keys)
        fits = len(keyed.numbers) == S <= moments.num_classes
        _check_stored(path, name, fits and np.all(met[:S]) and not np.any(met[S:]))
        return keyed

    def of_those_met(self, values: np.ndarray) -> np.ndarray:
        """Return the values of the classes that have a number."""
        return values[: len(self.numbers)]


class TagMoments:
    """The mean and the variance of the features of each tag set, gathered in one pass.

    An accumulator: `update` changes it. Memory is that of a mean for each tag set that occurs.

    Args:
        num_tags: K, at least 2.
        dim: d.

    Raises:
        ValueError: A number is not whole, or too small.
    """

    def __init__(self, num_tags: int, dim: int):
        self.num_tags = checked_whole("num_tags", num_tags, 2)
        self._sets = _Keyed(dim)

    @property
    def dim(self) -> int:
        """d, the number of features."""
        return self._sets.dim

    def update(
        self, features: ArrayLike, tags: ArrayLike, sample_weights: ArrayLike | None = None
    ) -> None:
        """Add a batch. It is checked first: after an error nothing has changed.

        Args:
            features: (N, d), of any real dtype, in rows.
            tags: Multi-hot rows, (N, K), of 0 and 1.
            sample_weights: The weight of each sample, (N,), not negative; 1 by default.

        Raises:
            ValueError: An array of the wrong shape or kind; features that are not finite, or beyond
                1e130 in size; a negative weight.
        """
        X, a = _checked_rows(features, sample_weights, self.dim)
        Y = metrics.multi_hot(tags, len(X), self.num_tags)
        if a is not None:
            X, Y, a = X[a > 0], Y[a > 0], a[a > 0]
        if not len(X):
            return
        packed, places = np.unique(np.packbits(Y, axis=1), axis=0, return_inverse=True)
        numbers = self._sets.numbered([row.tobytes() for row in packed])
        self._sets.moments.update(X, numbers[places.reshape(-1)], a)

    @property
    def statistics(self) -> TagStatistics:
        """The moments, as `ufm.metrics.multi_label_collapse_from` takes them.

        Raises:
            ValueError: There are no samples yet.
        """
        if not self._sets.numbers:
            raise ArgumentError("batches", "must hold at least one sample, got none")
        packed = np.array([np.frombuffer(key, np.uint8) for key in self._sets.numbers])
        rows = np.unpackbits(packed, axis=1, count=self.num_tags).astype(bool)
        moments, order = self._sets.moments, np.lexsort(rows.T[::-1])
        counts, means, variances = (
            self._sets.of_those_met(values)[order]
            for values in (moments.counts, moments.means, moments.within_trace)
        )
        return TagStatistics(rows[order], counts, means, variances)

    def measure(
        self,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        centre: TagCentre = "classes",
        rtol: float | None = None,
    ) -> MultiLabelCollapse:
        """Return the collapse of tag sets over all samples.

        Arguments and errors as `ufm.metrics.multi_label_collapse`.
        """
        return metrics.multi_label_collapse_from(
            self.statistics, weights, bias, centre=centre, rtol=rtol
        )

    def merge(self, other: "TagMoments") -> "TagMoments":
        """Return the moments of the samples of both accumulators. Neither changes.

        Raises:
            ValueError: `other` is something else, or has other sizes.
        """
        _check_same(self, other, ("num_tags", "dim"))
        merged = TagMoments(self.num_tags, self.dim)
        merged._sets, _ = self._sets.merged(other._sets)
        return merged

    def save(self, path: Path) -> None:
        """Write everything into an .npz file, which is there as a whole or not at all."""
        packed = np.frombuffer(b"".join(self._sets.numbers), np.uint8)
        own = {
            "num_tags": np.array(self.num_tags),
            "tag_sets": packed.reshape(len(self._sets.numbers), -(-self.num_tags // 8)),
        }
        save_arrays(path, "TagMoments", self._sets.moments.arrays() | own)

    @classmethod
    def load(cls, path: Path) -> "TagMoments":
        """Return the accumulator that `save` wrote; nothing in the file is unpickled.

        Raises:
            ValueError: There is no such file, it is damaged, or it holds something else.
        """
        arrays = load_arrays(path, "TagMoments", (*STORED, "num_tags", "tag_sets"), ())
        K, packed = _stored_size(arrays, "num_tags", 2, path), arrays["tag_sets"]
        fits = packed.ndim == 2 and packed.dtype == np.uint8 and packed.shape[1] == -(-K // 8)
        _check_stored(path, "tag_sets", fits and not np.unpackbits(packed, axis=1)[:, K:].any())
        keys = [row.tobytes() for row in packed]
        sets = _Keyed.restored(arrays, keys, "tag_sets", path)
        moments = cls(K, sets.dim)
        moments._sets = sets
        return moments

    def __repr__(self) -> str:
        return (
            f"TagMoments(num_tags={self.num_tags}, dim={self.dim}): "
            f"{self._sets.moments.counts.sum():g} samples of {len(self._sets.numbers)} tag sets"
        )


class ContextMoments:
    """The mean feature of each context and the tokens that follow it, gathered in one pass.

    An accumulator: `update` changes it. Memory is that of a mean for each context, and of two
    numbers for each pair of a context and a token that occurs.

    Args:
        dim: d.

    Raises:
        ValueError: The number is not whole, or too small.
    """

    def __init__(self, dim: int):
        self._contexts = _Keyed(dim)
        self._pairs = np.zeros(0, np.int64), np.zeros(0)  # keys in order, and how often
        self._new: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def dim(self) -> int:
        """d, the number of features."""
        return self._contexts.dim

    def update(
        self,
        features: ArrayLike,
        tokens: ArrayLike,
        contexts: ArrayLike,
        sample_weights: ArrayLike | None = None,
    ) -> None:
        """Add a batch. It is checked first: after an error nothing has changed.

        Args:
            features: (N, d), of any real dtype, in rows.
            tokens: The token that follows each, integers 0, ..., V - 1, (N,).
            contexts: The context of each, integers that are not negative, (N,).
            sample_weights: The weight of each sample, (N,), not negative; 1 by default.

        Raises:
            ValueError: An array of the wrong shape or kind; features that are not finite, or beyond
                1e130 in size; a negative weight.
        """
        X, a = _checked_rows(features, sample_weights, self.dim)
        z = metrics.whole_numbers("tokens", tokens, len(X), 2 ** (TOKEN_BITS - 1))
        j = metrics.whole_numbers("contexts", contexts, len(X))
        a = np.ones(len(X)) if a is None else a
        X, z, j, a = X[a > 0], z[a > 0], j[a > 0], a[a > 0]
        if not len(X):
            return
        present, places = np.unique(j, return_inverse=True)
        numbers = self._contexts.numbered(present.tolist())[places]
        self._contexts.moments.update(X, numbers, a)
        self._new.append(_summed((numbers << TOKEN_BITS) | z, a))
        if sum(len(keys) for keys, _ in self._new) > max(len(self._pairs[0]), SLICE):
            self._gather()

    def _gather(self) -> None:
        """Join the pairs of new batches with those before."""
        keys, counts = zip(self._pairs, *self._new, strict=True)
        self._pairs, self._new = _summed(np.concatenate(keys), np.concatenate(counts)), []

    def statistics(self, num_tokens: int | None = None) -> ContextStatistics:
        """Return what `ufm.metrics.context_collapse_from` takes.

        Args:
            num_tokens: V; by default the highest token that occurs plus one.

        Raises:
            ValueError: There are no samples yet, or a token is beyond V.
        """
        if not self._contexts.numbers:
            raise ArgumentError("batches", "must hold at least one sample, got none")
        self._gather()
        keys, seen = self._pairs
        pairs = np.stack([keys >> TOKEN_BITS, keys & (2**TOKEN_BITS - 1)], axis=1)
        most = int(pairs[:, 1].max())
        if num_tokens is not None and most >= num_tokens:
            raise ArgumentError("tokens", f"must be in 0, ..., {num_tokens - 1}, got {most}")
        moments = self._contexts.moments
        counts, means, variances = (
            self._contexts.of_those_met(values)
            for values in (moments.counts, moments.means, moments.within_trace)
        )
        V = most + 1 if num_tokens is None else num_tokens
        return ContextStatistics(counts, means, variances, pairs, seen, V)

    def measure(
        self,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        num_tokens: int | None = None,
        rtol: float | None = None,
    ) -> ContextCollapse:
        """Return the collapse of contexts over all samples.

        Arguments and errors as `ufm.metrics.context_collapse`.
        """
        if weights is not None and num_tokens is None:
            num_tokens = len(metrics.host_array("weights", weights))
        return metrics.context_collapse_from(self.statistics(num_tokens), weights, bias, rtol=rtol)

    def merge(self, other: "ContextMoments") -> "ContextMoments":
        """Return the moments of the samples of both accumulators. Neither changes.

        Raises:
            ValueError: `other` is something else, or has another number of features.
        """
        _check_same(self, other, ("dim",))
        merged = ContextMoments(self.dim)
        merged._contexts, numbers = self._contexts.merged(other._contexts)
        merged._new = [self._pairs, *self._new]
        for keys, counts in (other._pairs, *other._new):
            tokens = keys & (2**TOKEN_BITS - 1)
            merged._new.append(((numbers[keys >> TOKEN_BITS] << TOKEN_BITS) | tokens, counts))
        return merged

    def save(self, path: Path) -> None:
        """Write everything into an .npz file, which is there as a whole or not at all."""
        self._gather()
        keys, counts = self._pairs
        own = {
            "contexts": np.array([*self._contexts.numbers], np.int64),
            "pairs": keys,
            "pair_counts": counts,
        }
        save_arrays(path, "ContextMoments", self._contexts.moments.arrays() | own)

    @classmethod
    def load(cls, path: Path) -> "ContextMoments":
        """Return the accumulator that `save` wrote; nothing in the file is unpickled.

        Raises:
            ValueError: There is no such file, it is damaged, or it holds something else.
        """
        arrays = load_arrays(
            path, "ContextMoments", (*STORED, "contexts", "pairs", "pair_counts"), ()
        )
        ids, keys, counts = (arrays[name] for name in ("contexts", "pairs", "pair_counts"))
        for name in ("contexts", "pairs"):
            fits = arrays[name].ndim == 1 and arrays[name].dtype == np.int64
            _check_stored(path, name, fits and np.all(arrays[name] >= 0))
        contexts = _Keyed.restored(arrays, ids.tolist(), "contexts", path)
        owners = keys >> TOKEN_BITS
        _check_stored(path, "pairs", np.all(np.diff(keys) > 0) and np.all(owners < len(ids)))
        fits = counts.shape == keys.shape and counts.dtype == np.float64 and np.all(counts > 0)
        _check_stored(path, "pair_counts", fits)
        sums = np.bincount(owners, counts, len(ids))
        whole = contexts.of_those_met(contexts.moments.counts)
        _check_stored(path, "pair_counts", np.allclose(sums, whole, rtol=1e-9, atol=0))
        moments = cls(contexts.dim)
        moments._contexts, moments._pairs = contexts, (keys, counts)
        return moments

    def __repr__(self) -> str:
        return (
            f"ContextMoments(dim={self.dim}): {self._contexts.moments.counts.sum():g} samples of "
            f"{len(self._contexts.numbers)} contexts"
        )


def _summed(
    keys: Int[np.ndarray, " N"], counts: np.ndarray
) -> tuple[Int[np.ndarray, " P"], np.ndarray]:
    """Return the different keys, ascending, and the sum of the counts of each."""
    found, places = np.unique(keys, return_inverse=True)
    return found, np.bincount(places, counts, len(found)).astype(np.float64)  # also of none
