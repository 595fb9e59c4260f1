"""Neural collapse by groups of classes, such as majority and minority, or frequent and rare."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, as_dict, counted, printed, table_lines
from ufm.metrics import (
    FrameGeometry,
    NeuralCollapse,
    VariabilityCollapse,
    class_slices,
    host_array,
    indicator,
)
from ufm.problems import ClassGroups

__all__ = ["GroupCollapse", "by_group"]


@printed
class GroupCollapse(NamedTuple):
    """What `NeuralCollapse` says of each group of classes.

    A mean over no pair of classes, or of nothing measured, is NaN.

    Samples count in shares, accuracies and variances; classes count alike in all means of norms,
    cosines and distances.

    Attributes:
        num_classes: Classes of each group, (G,).
        counts: Samples of each group, (G,).
        within_variance: Mean over the group's samples of ||h - mu_k||^2, (G,).
        trace_ratio: `within_variance` over tr S_B of all classes, (G,); weighted by counts they sum
            to `nc1.trace_ratio`.
        pinv: tr(S_g S_B^+) / K with S_g the mean covariance within the group's classes, (G,); NaN
            after one pass.
        cdnv: Mean of `nc1.cdnv_pairs` over pairs of different classes of two groups, (G, G).
        mean_norms: Mean norm of the centred class means, (G,).
        uncentred_mean_norms: The same before centring, (G,).
        mean_cosines: Mean cosine of centred class means of two groups, (G, G); on the diagonal of
            two different classes of the group.
        weight_norms: Mean norm of the classifier's rows, (G,).
        weight_cosines: As `mean_cosines`, of the classifier's rows, (G, G).
        alignment: Mean of cos(w_k, mu_k - c), (G,).
        mismatch: Share of the group's samples for which classifier and nearest mean differ, (G,).
        accuracy: Share of the group's samples that the classifier has right, (G,).
    """

    num_classes: Float[np.ndarray, " G"]
    counts: Float[np.ndarray, " G"]
    within_variance: Float[np.ndarray, " G"]
    trace_ratio: Float[np.ndarray, " G"]
    pinv: Float[np.ndarray, " G"]
    cdnv: Float[np.ndarray, "G G"]
    mean_norms: Float[np.ndarray, " G"]
    uncentred_mean_norms: Float[np.ndarray, " G"]
    mean_cosines: Float[np.ndarray, "G G"]
    weight_norms: Float[np.ndarray, " G"]
    weight_cosines: Float[np.ndarray, "G G"]
    alignment: Float[np.ndarray, " G"]
    mismatch: Float[np.ndarray, " G"]
    accuracy: Float[np.ndarray, " G"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python lists."""
        return as_dict(self)

    def __str__(self) -> str:
        G = len(self.counts)
        rows = []
        for name, value in self._asdict().items():
            cells = [" ".join(f"{number:.4g}" for number in row) for row in np.atleast_2d(value)]
            rows.append((name, " | ".join(cells)))
        return "\n".join([f"{counted(G, 'group')} of classes", *table_lines(rows)])


def group_indices(groups: ClassGroups | Sequence[int] | ArrayLike, num_classes: int) -> np.ndarray:
    """Return the group 0, ..., G - 1 of each class, (K,).

    Raises:
        ValueError: The groups do not fit the classes, or a group has none.
    """
    if isinstance(groups, ClassGroups):
        of_class = np.repeat(np.arange(groups.num_groups), groups.sizes)
    else:
        of_class = host_array("groups", groups)
    if of_class.dtype.kind not in "iu" or of_class.shape != (num_classes,):
        raise ArgumentError(
            "groups",
            f"must be a ClassGroups of {num_classes} classes, or {num_classes} integers, the "
            f"group of each class; got shape {of_class.shape} of {of_class.dtype}",
        )
    present = np.unique(of_class)
    if not np.array_equal(present, np.arange(len(present))):
        raise ArgumentError(
            "groups",
            f"must be numbered 0, 1, ... with a class in each, got {present.tolist()[:10]}",
        )
    return of_class.astype(np.int64)


def _mean(sums: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return sums over totals; NaN where a total is zero."""
    return np.where(total > 0, sums / np.where(total > 0, total, 1.0), np.nan)


class _Means:
    """Means over the classes, samples and pairs of classes of each group; NaN of None."""

    def __init__(self, member: Any, counts: np.ndarray):
        """State the groups.

        Args:
            member: Whether a class is of a group, a sparse matrix, (G, K).
            counts: n_k, (K,).
        """
        self.member, self.counts = member, counts
        self.sizes, self.samples = member @ np.ones(len(counts)), member @ counts
        self.pairs = np.outer(self.sizes, self.sizes) - np.diag(self.sizes)

    def by_classes(self, values: Any) -> np.ndarray:
        """Return the mean over the classes of each group, (G,)."""
        nothing = np.full(len(self.sizes), np.nan)
        return nothing if values is None else _mean(self.member @ np.asarray(values), self.sizes)

    def by_samples(self, values: Any) -> np.ndarray:
        """Return the mean over the samples of each group, (G,), of means over classes."""
        if values is None:
            return self.by_classes(None)
        return _mean(self.member @ (self.counts * np.asarray(values)), self.samples)

    def of_counts(self, shares: Any) -> np.ndarray:
        """Return shares of a group's samples, (G,), as counts over counts where these are whole."""
        if shares is None:
            return self.by_classes(None)
        n, numbers = self.counts, self.counts * np.asarray(shares)
        whole = np.where(n == np.rint(n), np.rint(numbers), numbers)
        return _mean(self.member @ whole, self.samples)

    def cosines(self, frame: FrameGeometry | None) -> np.ndarray:
        """Return the mean cosine over pairs of groups, (G, G), from sums of the directions."""
        if frame is None:
            return np.full((len(self.sizes),) * 2, np.nan)
        directions = np.asarray(frame.directions)
        sums = self.member @ directions
        own = np.diag(self.member @ np.sum(directions**2, axis=1))
        return _mean(sums @ sums.T - own, self.pairs)

    def cdnv(self, nc1: VariabilityCollapse) -> np.ndarray:
        """Return the mean of `nc1.cdnv_pairs` over pairs of groups, (G, G)."""
        G, K = self.member.shape
        sums, infinite = np.zeros((G, G)), np.zeros((G, G), bool)
        for rows in class_slices(K):
            values = nc1.cdnv_rows(rows)
            apart = np.isinf(values)  # an infinity times a zero of `member` would be NaN
            own = self.member[:, rows]
            sums += own @ (self.member @ np.where(apart, 0.0, values).T).T
            infinite |= own @ (self.member @ apart.T.astype(np.float64)).T > 0
        return _mean(np.where(infinite, np.inf, sums), self.pairs)


def by_group(
    collapse: NeuralCollapse, groups: ClassGroups | Sequence[int] | ArrayLike
) -> GroupCollapse:
    """Return what a measurement says of groups of classes.

    Args:
        collapse: From `ufm.metrics.neural_collapse`, `measure`, `ClassMoments` or `SecondPass`.
        groups: The group of each class, integers 0, ..., G - 1, (K,); or a `ClassGroups`, of which
            each is a group. Where classes without samples were left out of the measurement, groups
            are those of all classes, and what is said of them is about the classes that were
            measured.

    Raises:
        ValueError: The groups do not fit the classes, or a group has none.

    >>> from ufm.metrics import neural_collapse
    >>> result = neural_collapse([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], [0, 1, 2])
    >>> by_group(result, [0, 1, 1]).mean_norms.round(12)
    array([2.        , 1.41421356])
    """
    n = np.asarray(collapse.class_counts)
    of_class = group_indices(groups, len(n) if collapse.num_labels is None else collapse.num_labels)
    G = int(of_class.max()) + 1
    if collapse.classes is not None:
        of_class = of_class[collapse.classes]
    over = _Means(indicator(of_class, None, G), n)
    nc1, means, weights, nc3, nc4 = (
        collapse.nc1,
        collapse.nc2_features,
        collapse.nc2_weights,
        collapse.nc3,
        collapse.nc4,
    )
    variance = over.by_samples(nc1.within_variance)
    between = np.mean(np.asarray(means.norms) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance / between
    return GroupCollapse(
        num_classes=over.sizes,
        counts=over.samples,
        within_variance=variance,
        trace_ratio=ratio,
        pinv=over.by_samples(nc1.pinv_per_class),
        cdnv=over.cdnv(nc1),
        mean_norms=over.by_classes(means.norms),
        uncentred_mean_norms=over.by_classes(means.uncentred_norms),
        mean_cosines=over.cosines(means),
        weight_norms=over.by_classes(None if weights is None else weights.norms),
        weight_cosines=over.cosines(weights),
        alignment=over.by_classes(None if nc3 is None else nc3.alignment),
        mismatch=over.of_counts(None if nc4 is None else nc4.mismatch_per_class),
        accuracy=over.of_counts(None if nc4 is None else nc4.accuracy_per_class),
    )
