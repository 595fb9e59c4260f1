r"""Neural collapse where a sample has several tags: tag sets, and sums over their tags.

A sample's target is a set S of tags, a multi-hot row; its multiplicity is m = |S|. h_S is the mean
feature of the samples with tag set S, n_S their number, w_k the weights of tag k.

At the minimum of the unconstrained features model with pick-all-labels cross-entropy, tag sets
evenly spread within each multiplicity, samples collapse to h_S, the means of single tags and the
weights are simplex ETFs, and h_S = C_m sum_{k in S} h_{k} with one coefficient for each
multiplicity (Li et al. 2024): the scaled average, m C_m times the average of the tags' means.
`ScaledAverages` has the least-squares C_m and what is left.

What to look out for:

- C_m is that of the sum. Of the average it is m C_m (`ScaledAverages.averages`).
- The authors' code divides multi-hot targets by m before `CrossEntropyLoss`, so that every sample
  has mass 1. The geometry is the same, with other C_m and other norms.
- With binary cross-entropy, features have one more direction, common to all sets, that counts their
  tags. `centre="multiplicity"` fits a constant for each multiplicity beside C_m. With the other
  centres the residual is of order one at the minimum of that loss, and so is NC2 of the weights,
  which are not centred there: they share that direction.
- With imbalanced tags the feature of a set is not in the span of its tags' means. The residual is
  positive at the minimum: a few percent for frequencies 10 : 5 : 2 : 1.
- Sets of no tag or of all tags carry nothing: their feature is zero at the minimum, and no
  coefficient is fitted to them.

References:
    - Li, Li, Wang and Qu (2024), Neural collapse in multi-label learning with pick-all-label loss,
      ICML.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, check_one_of, chunks, printed
from ufm.geometry import normalise_rows
from ufm.metrics.checked_input import (
    check_size,
    checked_rtol,
    head_of,
    host_array,
    real_array,
    weight_array,
)
from ufm.metrics.class_statistics import class_statistics
from ufm.metrics.definitions import FrameGeometry, SelfDuality
from ufm.metrics.explained import Explained
from ufm.metrics.neural_collapse import neural_collapse
from ufm.metrics.pairs import cdnv_of, centred_means, over_pairs, ratio, rows_at_a_time

__all__ = [
    "MultiLabelCollapse",
    "ScaledAverages",
    "TagCentre",
    "TagStatistics",
    "multi_hot",
    "multi_label_collapse",
    "multi_label_collapse_from",
    "tag_statistics",
]

TagCentre = Literal["classes", "samples", "multiplicity"]


@printed
class TagStatistics(NamedTuple):
    """Features by tag set.

    Attributes:
        tag_sets: The tag sets that occur, as multi-hot rows, (S, K).
        counts: n_S, the number of samples with each, or their weight, (S,).
        means: h_S, (S, d).
        variances: The mean of |h - h_S|^2 over the samples with each, (S,).
    """

    tag_sets: Bool[np.ndarray, "S K"]
    counts: Float[np.ndarray, " S"]
    means: Float[np.ndarray, "S d"]
    variances: Float[np.ndarray, " S"]


def multi_hot(tags: Any, num_samples: int, num_tags: int | None = None) -> Bool[np.ndarray, "N K"]:
    """Return tags as a matrix of truth values, (N, K).

    Raises:
        ValueError: The array is no matrix with a row for each sample, or holds anything but 0 and
            1.
    """
    Y = host_array("tags", tags)
    wanted = "K" if num_tags is None else num_tags
    if Y.ndim != 2 or len(Y) != num_samples or Y.shape[1] != (num_tags or Y.shape[1]):
        remedy = "; class indices become rows with `np.eye(K)[labels]`" if Y.ndim == 1 else ""
        raise ArgumentError(
            "tags",
            f"must be multi-hot rows ({num_samples}, {wanted}), got shape {Y.shape}{remedy}",
        )
    if Y.shape[1] < 2:
        raise ArgumentError("tags", f"must be of at least 2 tags, got {Y.shape[1]}")
    held = Y.astype(np.float64)
    bad = np.argwhere((held != 0) & (held != 1))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ArgumentError(
            "tags",
            f"must be 0 or 1, got {held[place]:g} at index {place}; soft tags have no sets",
        )
    return held > 0


def tag_statistics(
    features: Float[np.ndarray, "N d"],
    tags: Bool[np.ndarray, "N K"],
    sample_weights: Float[np.ndarray, " N"] | None = None,
) -> TagStatistics:
    """Return the mean and the variance of the features of each tag set.

    Args:
        features: In rows, (N, d).
        tags: Multi-hot rows, (N, K).
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
    """
    H, Y = np.asarray(features, np.float64), np.asarray(tags, bool)
    a = np.ones(len(H)) if sample_weights is None else np.asarray(sample_weights, np.float64)
    H, Y, a = H[a > 0], Y[a > 0], a[a > 0]
    rows, places = np.unique(Y, axis=0, return_inverse=True)
    found = class_statistics(H, places.reshape(-1), len(rows), a)
    counts, means, variances = map(np.asarray, (found.counts, found.means, found.within_trace))
    return TagStatistics(rows, counts, means, variances)


@printed
class ScaledAverages(NamedTuple):
    """How near the means of tag sets are to multiples of the sums over their tags.

    For every multiplicity m, h_S - c is fitted by C_m t_S, with t_S the sum over the tags of S, by
    least squares over the samples.

    Attributes:
        multiplicities: The multiplicities that were fitted, (M,).
        counts: How many samples each fit is about, (M,): those of tag sets whose tags all have a t.
        sums: C_m, (M,).
        residuals: The root of sum n_S |h_S - c - C_m t_S|^2 / sum n_S |h_S - c|^2, (M,), in [0, 1].
        cosines: The mean cosine of h_S - c and t_S, (M,).
        residual: The same as `residuals` over all multiplicities together.
    """

    multiplicities: Int[np.ndarray, " M"]
    counts: Float[np.ndarray, " M"]
    sums: Float[np.ndarray, " M"]
    residuals: Float[np.ndarray, " M"]
    cosines: Float[np.ndarray, " M"]
    residual: float

    @property
    def averages(self) -> Float[np.ndarray, " M"]:
        """The coefficients of the averages over the tags, m C_m, (M,)."""
        return self.multiplicities * self.sums


@printed
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class MultiLabelCollapse(Explained):
    """Collapse of tag sets; prints as a table with formulas.

    Attributes:
        num_samples: N, or the sum of the sample weights.
        num_tags: K.
        num_sets: How many tag sets occur.
        centre: What features are centred at.
        multiplicities: The multiplicities that occur, (M,).
        counts: How many samples each has, (M,).
        nc1_trace_ratio: Variance within tag sets over that of their means.
        nc1_per_multiplicity: The part of it that each multiplicity has, (M,).
        nc1_cdnv: Class-distance normalised variance, over pairs of tag sets.
        nc2_features: Geometry of the means of single tags; None where fewer than two occur alone.
        nc2_weights: Geometry of the weights; None without weights.
        nc3: Weights against the means of single tags; None where either is missing.
        of_means: Scaled averages of the means of single tags; None where nothing can be fitted.
        of_weights: Scaled averages of the weights; None without weights.
        tags_on_top: Share of samples whose tags have the largest logits at the mean of their set;
            ties are mistakes. None without weights.
    """

    CONVENTIONS: ClassVar[dict[str, str]] = {
        "nc1_trace_ratio": "sum n_S v_S / sum n_S |h_S - mean|^2",
        "nc1_cdnv": "mean of (v_S + v_T) / (2 |h_S - h_T|^2) over pairs of tag sets",
        "nc2_features_etf_distance": "|G/|G| - (I - J/K)/sqrt(K-1)|, G of centred single-tag means",
        "nc2_weights_etf_distance": "|G/|G| - (I - J/K)/sqrt(K-1)|, G = W W^T",
        "nc3_squared_distance": "|W/|W| - M/|M||^2, M of centred single-tag means",
        "residual_of_means": "relative residual of h_S = C_m sum of the tags' means, m > 1",
        "residual_of_weights": "relative residual of h_S = C_m sum of the tags' weights",
        "tags_on_top": "share of samples whose m largest logits, at h_S, are their tags",
    }

    num_samples: float
    num_tags: int
    num_sets: int
    centre: TagCentre
    multiplicities: Int[np.ndarray, " M"]
    counts: Float[np.ndarray, " M"]
    nc1_trace_ratio: float
    nc1_per_multiplicity: Float[np.ndarray, " M"]
    nc1_cdnv: float
    nc2_features: FrameGeometry | None
    nc2_weights: FrameGeometry | None
    nc3: SelfDuality | None
    of_means: ScaledAverages | None
    of_weights: ScaledAverages | None
    tags_on_top: float | None

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return (
            f"Multi-label collapse of {self.num_tags} tags, {self.num_sets} tag sets, "
            f"{self.num_samples:g} samples, centre: {self.centre}"
        )

    @property
    def nc2_features_etf_distance(self) -> float | None:
        """Distance of the centred means of single tags from a simplex ETF."""
        return None if self.nc2_features is None else float(self.nc2_features.etf_distance)

    @property
    def nc2_weights_etf_distance(self) -> float | None:
        """Distance of the weights from a simplex ETF."""
        return None if self.nc2_weights is None else float(self.nc2_weights.etf_distance)

    @property
    def nc3_squared_distance(self) -> float | None:
        """Squared distance of weights and centred means of single tags, both normalised."""
        return None if self.nc3 is None else float(self.nc3.squared_distance)

    @property
    def residual_of_means(self) -> float | None:
        """Residual of the scaled averages of means."""
        return None if self.of_means is None else self.of_means.residual

    @property
    def residual_of_weights(self) -> float | None:
        """Residual of the scaled averages of weights."""
        return None if self.of_weights is None else self.of_weights.residual

    def tables(self) -> list[list[list[str]]]:
        """Return the table of scalars and the table per multiplicity, header rows first."""
        head, columns = ["tags", "samples", "NC1"], [self.counts, self.nc1_per_multiplicity]
        for name, fit in (("means", self.of_means), ("weights", self.of_weights)):
            if fit is not None:
                head += [f"C_m of {name}", "residual", "cosine"]
                columns += [_placed(self.multiplicities, fit, part) for part in fit[2:5]]
        rows = [
            [str(m), *("" if np.isnan(column[i]) else f"{column[i]:.4g}" for column in columns)]
            for i, m in enumerate(self.multiplicities)
        ]
        return [*super().tables(), [head, *rows]]


def _placed(multiplicities: np.ndarray, fit: ScaledAverages, values: np.ndarray) -> np.ndarray:
    """Return values of a fit in the rows of their multiplicities, and NaN in the others."""
    column = np.full(len(multiplicities), np.nan)
    column[np.searchsorted(multiplicities, fit.multiplicities)] = values
    return column


def _centres(
    statistics: TagStatistics, single: np.ndarray, centre: TagCentre
) -> Float[np.ndarray, " d"]:
    """Return what features are centred at."""
    means, n = statistics.means, statistics.counts
    if centre == "samples":
        return n @ means / n.sum()
    return np.mean(means[single] if np.any(single) else means, axis=0)


def _scaled_averages(
    statistics: TagStatistics,
    features: np.ndarray,
    of_tags: np.ndarray,
    known: np.ndarray,
    least: int,
    constant: bool,
) -> ScaledAverages | None:
    """Fit features of tag sets by sums over their tags.

    Args:
        statistics: The tag sets and their counts.
        features: h_S - c, (S, d).
        of_tags: t_k, (K, d).
        known: The tags that have a t_k, (K,).
        least: The least multiplicity to fit.
        constant: Whether to fit a constant for each multiplicity.
    """
    sets, n = statistics.tag_sets, statistics.counts
    sizes = sets.sum(axis=1)
    covered = ~np.any(sets & ~known, axis=1) & (sizes >= least) & (sizes < sets.shape[1])
    rows: list[tuple[float, ...]] = []
    lost = whole = 0.0
    for m in np.unique(sizes[covered]):
        chosen = np.flatnonzero(covered & (sizes == m))
        if constant and len(chosen) < 2:
            continue
        weight = n[chosen]
        h = features[chosen]
        t = sets[chosen].astype(np.float64) @ np.where(known[:, None], of_tags, 0.0)
        if constant:
            h, t = (rows_ - weight @ rows_ / weight.sum() for rows_ in (h, t))
        norm, size = weight @ np.sum(t**2, axis=1), weight @ np.sum(h**2, axis=1)
        slope = weight @ np.sum(h * t, axis=1) / norm if norm > 0 else 0.0
        left = weight @ np.sum((h - slope * t) ** 2, axis=1)
        cosine = weight @ np.sum(normalise_rows(h) * normalise_rows(t), axis=1) / weight.sum()
        relative = np.sqrt(left / size) if size > 0 else 0.0
        rows.append((m, weight.sum(), slope, relative, cosine))
        lost, whole = lost + left, whole + size
    if not rows:
        return None
    of_m, counts, slopes, residuals, cosines = map(np.array, zip(*rows, strict=True))
    total = float(np.sqrt(lost / whole)) if whole > 0 else 0.0
    return ScaledAverages(of_m.astype(int), counts, slopes, residuals, cosines, total)


def _tags_on_top(statistics: TagStatistics, W: np.ndarray, b: np.ndarray) -> float:
    """Return the share of samples whose tags have the largest logits at the mean of their set."""
    right = 0.0
    for part in chunks(len(statistics.counts), rows_at_a_time(len(W))):
        logits, sets = statistics.means[part] @ W.T + b, statistics.tag_sets[part]
        least = np.min(np.where(sets, logits, np.inf), axis=1)
        most = np.max(np.where(sets, -np.inf, logits), axis=1)
        right += float(statistics.counts[part] @ (least > most))
    return right / float(statistics.counts.sum())


def _variability(
    statistics: TagStatistics, sizes: np.ndarray, rtol: float
) -> tuple[float, np.ndarray, float]:
    """Return NC1: the ratio of traces, its parts by multiplicity, and the mean over pairs."""
    n, means, v = statistics.counts, statistics.means, statistics.variances
    N, mean = n.sum(), n @ means / n.sum()
    between = n @ np.sum((means - mean) ** 2, axis=1) / N
    floor = rtol**2 * (n @ np.sum(means**2, axis=1) / N)
    parts = np.array([n[sizes == m] @ v[sizes == m] / N for m in np.unique(sizes)])
    points = centred_means(np, means)
    far = rtol**2 * np.sum(means**2)
    S = len(n)
    sums, _ = over_pairs(np, S, lambda j, k: cdnv_of(np, points, v, far, j, k))
    cdnv = float(np.sum(sums)) / (S * (S - 1))
    return float(ratio(np, parts.sum(), between, floor)), ratio(np, parts, between, floor), cdnv


def _of_weights(
    statistics: TagStatistics, centred: np.ndarray, W: np.ndarray, b: np.ndarray, constant: bool
) -> dict[str, Any]:
    """Return the numbers that need the head alone."""
    of_tags, every = W - W.mean(axis=0), np.ones(len(W), bool)
    return {
        "nc2_weights": neural_collapse(W, np.arange(len(W)), W).nc2_weights,
        "of_weights": _scaled_averages(statistics, centred, of_tags, every, 1, constant),
        "tags_on_top": _tags_on_top(statistics, W, b),
    }


def multi_label_collapse_from(
    statistics: TagStatistics,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    centre: TagCentre = "classes",
    rtol: float | None = None,
) -> MultiLabelCollapse:
    """Return the collapse of tag sets from their statistics and a linear head.

    Arguments and errors as `multi_label_collapse`.
    """
    check_one_of("centre", centre, get_args(TagCentre))
    sets, n, means, _ = statistics
    (S, K), d = sets.shape, means.shape[1]
    if S < 2:
        raise ArgumentError("tags", f"must hold at least 2 tag sets to compare, got {S}")
    head = head_of(weights, bias, (K, d), "tag")
    rtol = checked_rtol(rtol, max(S, d))
    sizes = sets.sum(axis=1)
    single = sizes == 1
    alone = np.argmax(sets[single], axis=1)
    tag_means = np.zeros((K, d))
    tag_means[alone] = means[single]
    known = np.isin(np.arange(K), alone)
    c = _centres(statistics, single, centre)
    constant = centre == "multiplicity"
    W = None
    found: dict[str, Any] = dict.fromkeys(("nc2_weights", "of_weights", "tags_on_top"))
    if head is not None:
        W, b = head
        found = _of_weights(statistics, means - c, W, b, constant)
    nc2 = nc3 = None
    if len(alone) > 1:
        alike = neural_collapse(means[single], alone, W, num_classes=K, absent="leave out")
        nc2, nc3 = alike.nc2_features, alike.nc3
    trace_ratio, parts, cdnv = _variability(statistics, sizes, rtol)
    occurring = np.unique(sizes)
    return MultiLabelCollapse(
        num_samples=float(n.sum()),
        num_tags=K,
        num_sets=S,
        centre=centre,
        multiplicities=occurring,
        counts=np.array([n[sizes == m].sum() for m in occurring]),
        nc1_trace_ratio=trace_ratio,
        nc1_per_multiplicity=parts,
        nc1_cdnv=cdnv,
        nc2_features=nc2,
        nc3=nc3,
        of_means=_scaled_averages(statistics, means - c, tag_means - c, known, 2, constant),
        **found,
    )


def multi_label_collapse(
    features: ArrayLike,
    tags: ArrayLike,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    sample_weights: ArrayLike | None = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
) -> MultiLabelCollapse:
    """Return the collapse of features to the means of tag sets, and of these to sums over tags.

    Arrays are whatever NumPy or DLPack understands. The computation is in float64. Pairs of tag
    sets are worked on in tiles; memory is that of the means of all tag sets.

    Args:
        features: Last-layer features in rows, (N, d).
        tags: Multi-hot rows, (N, K), of 0 and 1.
        weights: The head's rows, (K, d). Without them what needs them is None.
        bias: The head's bias, (K,); zero by default. Only `tags_on_top` depends on it.
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
        centre: What features are centred at for scaled averages: "classes", the mean of the means
            of single tags (of all tag sets where no tag occurs alone); "samples", the mean of all
            samples; "multiplicity", a constant fitted to each multiplicity. Weights are centred at
            their mean always.
        rtol: What counts as rounding error of a distance, relative to the size of the means; max(S,
            d) times the machine epsilon by default.

    Returns:
        The numbers, which print as a table with their formulas.

    Raises:
        ValueError: An array of the wrong shape, not of real numbers, or not finite; tags that are
            not 0 or 1; fewer than two tag sets; a bias without weights.

    >>> H = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [0.5, 0.5]]
    >>> found = multi_label_collapse(H, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    >>> found.of_means.sums.tolist(), found.residual_of_means
    ([0.5], 0.0)
    """
    H = real_array("features", features, (None, None), "a matrix (N, d), one row for each sample")
    check_size("features", H)
    Y = multi_hot(tags, len(H))
    a = weight_array("sample_weights", sample_weights, len(H), "sample")
    return multi_label_collapse_from(
        tag_statistics(H, Y, a), weights, bias, centre=centre, rtol=rtol
    )
