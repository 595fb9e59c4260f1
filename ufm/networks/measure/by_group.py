"""Neural collapse by groups of classes, such as majority and minority, or frequent and rare."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, counted
from ufm.metrics import NeuralCollapse, class_slices, host_array, indicator
from ufm.problems import ClassGroups

__all__ = ["GroupCollapse", "by_group"]


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
        return {name: value.tolist() for name, value in self._asdict().items()}

    def __str__(self) -> str:
        G = len(self.counts)
        lines = [f"{counted(G, 'group')} of classes"]
        for name, value in self._asdict().items():
            cells = [" ".join(f"{number:.4g}" for number in row) for row in np.atleast_2d(value)]
            lines.append(f"{name:<22}{' | '.join(cells)}")
        return "\n".join(lines)


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
    member = indicator(of_class, None, G)
    sizes, samples = member @ np.ones(len(n)), member @ n

    def mean(sums: np.ndarray, total: np.ndarray) -> np.ndarray:
        return np.where(total > 0, sums / np.where(total > 0, total, 1.0), np.nan)

    def over_classes(values: Any) -> np.ndarray:
        return np.full(G, np.nan) if values is None else mean(member @ np.asarray(values), sizes)

    def over_samples(values: Any) -> np.ndarray:
        return (
            np.full(G, np.nan)
            if values is None
            else mean(member @ (n * np.asarray(values)), samples)
        )

    def of_counts(shares: Any) -> np.ndarray:
        """Return shares of a group's samples from its classes' shares: counts over counts."""
        if shares is None:
            return np.full(G, np.nan)
        numbers = n * np.asarray(shares)
        return mean(member @ np.where(n == np.rint(n), np.rint(numbers), numbers), samples)

    pairs = np.outer(sizes, sizes) - np.diag(sizes)

    def mean_cosines(frame: Any) -> np.ndarray:
        """Return the mean of u_j .

        u_k over pairs of groups, from the sums of the directions u of each group.
        """
        if frame is None:
            return np.full((G, G), np.nan)
        directions = np.asarray(frame.directions)
        sums = member @ directions
        return mean(sums @ sums.T - np.diag(member @ np.sum(directions**2, axis=1)), pairs)

    def mean_cdnv() -> np.ndarray:
        sums, infinite = np.zeros((G, G)), np.zeros((G, G), bool)
        for rows in class_slices(len(n)):
            values = collapse.nc1.cdnv_rows(rows)
            apart = np.isinf(values)  # an infinity times a zero of `member` would be NaN
            own = member[:, rows]
            sums += own @ (member @ np.where(apart, 0.0, values).T).T
            infinite |= own @ (member @ apart.T.astype(np.float64)).T > 0
        return mean(np.where(infinite, np.inf, sums), pairs)

    nc1, means, weights, nc3, nc4 = (
        collapse.nc1,
        collapse.nc2_features,
        collapse.nc2_weights,
        collapse.nc3,
        collapse.nc4,
    )
    variance = over_samples(nc1.within_variance)
    between = np.mean(np.asarray(means.norms) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance / between
    return GroupCollapse(
        num_classes=sizes,
        counts=samples,
        within_variance=variance,
        trace_ratio=ratio,
        pinv=over_samples(nc1.pinv_per_class),
        cdnv=mean_cdnv(),
        mean_norms=over_classes(means.norms),
        uncentred_mean_norms=over_classes(means.uncentred_norms),
        mean_cosines=mean_cosines(means),
        weight_norms=over_classes(None if weights is None else weights.norms),
        weight_cosines=mean_cosines(weights),
        alignment=over_classes(None if nc3 is None else nc3.alignment),
        mismatch=of_counts(None if nc4 is None else nc4.mismatch_per_class),
        accuracy=of_counts(None if nc4 is None else nc4.accuracy_per_class),
    )
