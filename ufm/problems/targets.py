"""Targets: what each row of the features is fitted to, how often it occurs, what its feature costs.

A row r has a target y_r of K numbers, a multiplicity n_r (its share of the loss is n_r / N, N the
sum of all), and a weight om_r of ||h_r||^2 in the penalty. One-hot rows are the classes of
`class_counts`; other rows are soft labels, tag sets, next-token distributions or responses of a
regression.

The weights om decide which model it is. With om_r = n_r the feature of every sample is penalised,
which is the library's default. In next-token models every distinct context has one feature, which
is penalised once however often it occurs: om_r = 1.
"""

import itertools
from collections.abc import Sequence
from math import comb
from typing import Any, final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import (
    SMALLEST,
    ArgumentError,
    Final,
    array_module,
    as_leaf,
    check_numbers,
    checked_whole,
    is_concrete,
    is_numeric,
)
from ufm.problems.class_sizes import ClassGroups

__all__ = ["Targets"]

MOST_ROWS = 10**8
MOST_SETS = 10**6  # tag sets that are listed


@final
class Targets(Final):
    """Target rows with their multiplicities and the weights of their features.

    All are leaves of the pytree, real numbers, and multiplicities need not be whole.

    Args:
        rows: (R, K), the target of each row.
        counts: (R,), how many samples each row stands for, positive; one each if not given. The
            loss is the mean over all samples.
        feature_weights: (R,), what ||h_r||^2 is multiplied by, positive. If not given, weight decay
            takes the counts, as every sample has a feature, and norm balls take the mean over the
            rows. Norm balls divide what is given by its sum.

    Raises:
        ValueError: If an array has another shape, or entries that are not finite or not positive.
    """

    rows: Float[Array, "R K"] = eqx.field(converter=as_leaf)
    counts: Float[Array, " R"] = eqx.field(converter=as_leaf)
    feature_weights: Float[Array, " R"] | None

    def __init__(self, rows: Any, counts: Any = None, feature_weights: Any = None):
        self.rows = _array("rows", rows)
        if np.ndim(self.rows) != 2 or 0 in np.shape(self.rows):
            raise ArgumentError(
                "rows",
                "must be a matrix with one row per target and one column per output, got an array "
                f"of shape {np.shape(self.rows)}",
                remedy="give one number per row as a column, rows[:, None]",
            )
        number = np.shape(self.rows)[0]
        self.counts = np.ones(number) if counts is None else _array("counts", counts)  # type: ignore[assignment]
        self.feature_weights = (
            None if feature_weights is None else _array("feature_weights", feature_weights)
        )

    def __check_init__(self) -> None:
        if is_concrete(self.rows) and not np.all(np.isfinite(self.rows)):
            raise ArgumentError("rows", "must be finite, got NaN or infinite entries")
        given = {"counts": self.counts, "feature_weights": self.feature_weights}
        for name, values in given.items():
            if values is None:
                continue
            if np.shape(values) != (self.num_rows,):
                raise ArgumentError(
                    name,
                    f"must be one number per row, ({self.num_rows},), got shape {np.shape(values)}",
                )
            if is_concrete(values):
                bad = np.asarray(values)[~(np.isfinite(values) & (np.asarray(values) >= SMALLEST))]
                if bad.size:
                    raise ArgumentError(
                        name,
                        "must be positive and finite",
                        float(bad[0]),
                        "leave out rows that do not occur",
                    )

    # Kinds of targets

    @classmethod
    def one_hot(cls, class_counts: Any) -> "Targets":
        """Return the rows e_1, ..., e_K, row k as often as class k occurs.

        Args:
            class_counts: (K,), samples per class, or a `ClassGroups`.
        """
        classes = _classes(class_counts)
        return cls(np.eye(classes.num_classes), classes.per_class)

    @classmethod
    def multi_label(
        cls,
        num_labels: int,
        samples: dict[int, float] | None = None,
        *,
        tag_sets: Sequence[Sequence[int]] | None = None,
        counts: Any = None,
    ) -> "Targets":
        """Return multi-hot rows: one for every tag set, with a one for each of its labels.

        Args:
            num_labels: K.
            samples: How many samples there are of each multiplicity m, spread evenly over all sets
                of m labels.
            tag_sets: The sets of labels 0, ..., K - 1 themselves, instead.
            counts: Samples per tag set; one each if not given.

        Example:
            >>> Targets.multi_label(3, {1: 30, 2: 12}).rows.shape
            (6, 3)
        """
        K = checked_whole("num_labels", num_labels)
        if (samples is None) == (tag_sets is None):
            raise ArgumentError("samples", "or `tag_sets` must be given, one of the two", samples)
        if samples is not None:
            if not isinstance(samples, dict) or not samples:
                raise ArgumentError(
                    "samples", "must be a dict from multiplicity to samples", samples
                )
            sizes = [checked_whole("samples", m) for m in samples]
            if max(sizes) > K or sum(comb(K, m) for m in sizes) > MOST_SETS:
                raise ArgumentError(
                    "samples",
                    f"must have multiplicities of at most {K}, and at most {MOST_SETS:g} tag sets",
                    max(sizes),
                    "give the `tag_sets` that occur",
                )
            tag_sets = [tags for m in sizes for tags in itertools.combinations(range(K), m)]
            counts = np.repeat(
                [samples[m] / comb(K, m) for m in samples], [comb(K, m) for m in sizes]
            )
        rows = np.zeros((len(tag_sets or ()), K))
        for row, tags in zip(rows, tag_sets or (), strict=True):
            index = np.asarray(list(tags), np.int64)
            if index.size and not (index.min() >= 0 and index.max() < K):
                raise ArgumentError("tag_sets", f"must have labels from 0 to {K - 1}", tags)
            row[index] = 1
        return cls(rows, counts)

    @classmethod
    def contexts(cls, rows: Any, counts: Any = None) -> "Targets":
        """Return the next-token distributions of distinct contexts, each with one feature.

        Every feature is penalised once, however often its context occurs.

        Args:
            rows: (R, V), how often each token follows each context, or its probability. Rows are
                divided by their sums.
            counts: (R,), how often each context occurs; the sums of `rows` if not given.

        Reference: Zhao, Behnia, Vakilian, Thrampoulidis (2024, arXiv 2408.15417).
        """
        rows = np.asarray(_array("rows", rows), np.float64)
        if rows.ndim != 2 or not np.all(rows >= 0) or not np.all(rows.sum(axis=-1) > 0):
            raise ArgumentError(
                "rows", "must be a matrix of numbers that are not negative, with no row of zeros"
            )
        sums = rows.sum(axis=1)
        return cls(rows / sums[:, None], sums if counts is None else counts, np.ones(len(rows)))

    @classmethod
    def regression(cls, responses: Any, counts: Any = None) -> "Targets":
        """Return one row per sample of a regression, (N, n), or (N,) for one output."""
        rows = _array("responses", responses)
        return cls(rows[:, None] if np.ndim(rows) == 1 else rows, counts)

    @classmethod
    def mixup(cls, num_classes: int, count: float, mixed: dict[float, float]) -> "Targets":
        """Return the rows e_k, and lam e_i + (1 - lam) e_j for every ordered pair of classes.

        Args:
            num_classes: K.
            count: Unmixed samples per class; 0 leaves these rows out.
            mixed: How many samples each ordered pair has, by lam. For lam drawn from a distribution
                take the nodes and weights of a quadrature.
        """
        K = checked_whole("num_classes", num_classes, 2)
        check_numbers("count", count, lower=0.0)
        pairs = list(itertools.permutations(range(K), 2))
        rows, counts = ([np.eye(K)], [np.full(K, count)]) if count > 0 else ([], [])
        for lam, number in mixed.items():
            check_numbers("mixed", lam, lower=0.0, below=1.0)
            block = np.zeros((len(pairs), K))
            for row, (i, j) in zip(block, pairs, strict=True):
                row[i], row[j] = lam, 1 - lam
            rows.append(block)
            counts.append(np.full(len(pairs), number))
        if not rows:
            raise ArgumentError("mixed", "must name samples where `count` is 0", mixed)
        return cls(np.concatenate(rows), np.concatenate(counts))

    @classmethod
    def hierarchy(
        cls, num_super: int, num_sub: int, own: float, sibling: float, count: float = 1.0
    ) -> "Targets":
        """Return soft labels of a balanced hierarchy, K = num_super * num_sub rows.

        Args:
            num_super: Super-classes a.
            num_sub: Classes b of each.
            own: Target of the own class.
            sibling: Target of each other class of the same super-class. The rest of the mass one is
                spread evenly over all other classes.
            count: Samples per class.
        """
        a, b = checked_whole("num_super", num_super, 2), checked_whole("num_sub", num_sub)
        rest = 1 - own - (b - 1) * sibling
        if min(own, sibling) < 0 or rest < -1e-15:
            raise ArgumentError(
                "own", "plus the siblings must be at most one, and none negative", own
            )
        other = max(rest, 0.0) / ((a - 1) * b)
        same = np.kron(np.eye(a), np.ones((b, b)))
        rows = other + (sibling - other) * same + (own - sibling) * np.eye(a * b)
        return cls(rows, np.full(a * b, count))

    @classmethod
    def noisy(cls, noise: Any, class_counts: Any) -> "Targets":
        """Return rows of label noise: inputs of class k carry label c with probability noise[k, c].

        One input that is seen with several labels has their mean as its target. Samples that can be
        fitted one by one are not of this kind: they are one-hot rows of the noisy class.

        Args:
            noise: (K, K), rows sum to one, or one number, the rate at which a label is replaced by
                one of the others, drawn evenly.
            class_counts: (K,), samples per class.
        """
        classes = _classes(class_counts)
        K = classes.num_classes
        matrix = np.asarray(_array("noise", noise), np.float64)
        if matrix.ndim == 0:
            matrix = (1 - matrix) * np.eye(K) + matrix / (K - 1) * (1 - np.eye(K))
        if matrix.shape != (K, K) or not np.all(matrix >= 0):
            raise ArgumentError(
                "noise", f"must be one rate or a matrix of shape ({K}, {K}), not negative"
            )
        if not np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-9):
            raise ArgumentError("noise", "must have rows that sum to one")
        return cls(matrix, classes.per_class)

    # What they are made of

    @property
    def num_rows(self) -> int:
        """R."""
        return int(np.shape(self.rows)[-2])

    @property
    def num_outputs(self) -> int:
        """K, the width of a row."""
        return int(np.shape(self.rows)[-1])

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N, the sum of the counts."""
        return array_module(self.counts).sum(self.counts)

    @property
    def label_counts(self) -> Float[Array, " K"]:
        """(K,), the sum of each label's targets over all samples."""
        return self.counts @ self.rows

    def merged(self) -> tuple["Targets", Int[np.ndarray, " R"]]:
        """Return targets whose equal rows are one, and the index of the one that took each in.

        At fixed weights every row solves a problem of its own, which the ratio of its two weights
        decides. So rows merge if their targets and these ratios are equal, and only then.
        """
        weights = self.counts if self.feature_weights is None else self.feature_weights
        keys = np.column_stack([self.rows, np.asarray(weights) / np.asarray(self.counts)])
        # Bytes compare faster than rows of numbers do; -0.0 is made 0.0 first.
        keys = np.ascontiguousarray(keys + 0.0)
        _, first, index = np.unique(
            keys.view([("", np.void, keys.strides[0])]), return_index=True, return_inverse=True
        )
        index = np.ravel(index)
        if first.size == self.num_rows:
            return self, np.arange(self.num_rows)
        order = np.argsort(first)  # rows stay in the order of their first occurrence
        position = np.empty_like(order)
        position[order] = np.arange(order.size)
        index, first = position[index], first[order]

        def summed(values: Any) -> Any:
            return np.bincount(index, weights=np.asarray(values), minlength=first.size)

        stated = None if self.feature_weights is None else summed(self.feature_weights)
        return Targets(np.asarray(self.rows)[first], summed(self.counts), stated), index


def _classes(class_counts: Any) -> ClassGroups:
    return class_counts if isinstance(class_counts, ClassGroups) else ClassGroups(class_counts)


def _array(name: str, values: Any) -> Any:
    converted = as_leaf(values)
    if is_concrete(values) and not is_numeric(converted):
        raise ArgumentError(name, "must be an array of real numbers", values)
    return converted
