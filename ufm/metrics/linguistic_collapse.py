r"""Collapse of language models, whose classes are the tokens that follow.

The numbers of Wu and Papyan (2024) for many, unequal classes in few dimensions, where a simplex
ETF has no room: uniformity in place of equiangularity. mu_k are class means, m_k = mu_k - c the
centred ones, u_k = m_k / |m_k|, v_k the mean squared deviation within class k.

Here a class is one next token, and its features are those of all contexts that it followed. What
the theory of next-token prediction says is about contexts: see `ufm.metrics.context_collapse`.

What published code does otherwise:

- The class-distance normalised variance of Galanti et al. is (v_j + v_k) / (2 |mu_j - mu_k|^2). The
  code of linguistic collapse can take the squared distance to a further power (`dist_exp=2` gives
  |mu_j - mu_k|^4), with which the number has a unit, one over a squared length: only ratios of two
  such numbers of equally scaled features mean anything. Both are here.
- The coefficient of variation of log |m_k| depends on the unit of length, for the mean of the logs
  does. `log_norm_deviation`, the standard deviation itself, does not.
- The coefficient of variation of the logarithmic kernel is unbounded where its mean crosses zero,
  that is for a mean distance near 1. `gnc2_deviation` is not.
- Their mean and deviation of the interference are over the whole matrix of cosines, with its
  diagonal of ones; here they are over pairs of different classes. Their deviations over pairs have
  the number of pairs less one under the root.
- The centre c is the mean of all samples in some versions, and that of class means in others:
  `centre` of the `NeuralCollapse`.

At a simplex ETF of K classes, distances are sqrt(2 K / (K - 1)), so that GNC2 is
-(1/2) log(2 K / (K - 1)) and every variation is 0.

References:
    - Wu and Papyan (2024), Linguistic collapse: neural collapse in (large) language models,
      NeurIPS.
    - Liu et al. (2023), Generalizing and decoupling neural collapse via hyperspherical uniformity
      gap, ICLR (GNC2, with the kernel of hyperspherical energy).
    - Galanti, György and Hutter (2022), On the role of neural collapse in transfer learning, ICLR.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ufm._support import ArgumentError, printed
from ufm.metrics.definitions import NeuralCollapse
from ufm.metrics.explained import Explained
from ufm.metrics.pairs import (
    CentredMeans,
    centred_means,
    over_pairs,
    ratio,
    squared_distances,
)

__all__ = ["LinguisticCollapse", "linguistic_collapse"]


@printed
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LinguisticCollapse(Explained):
    """Collapse of many classes; prints as a table with formulas.

    Deviations are standard deviations with 1/M under the root; a variation is a deviation over the
    absolute value of the mean. Two classes with one mean make `cdnv_squared` infinite, and two
    means in one direction make the numbers of GNC2 infinite.

    Attributes:
        num_classes: K, without those that have no samples.
        cdnv: Class-distance normalised variance.
        cdnv_squared: The same with the squared distance squared once more.
        log_norm_variation: Variation of the logarithms of the norms; infinite for a zero mean.
        log_norm_deviation: Their deviation.
        interference: Mean cosine over pairs of means.
        interference_deviation: Its deviation.
        gnc2: Mean of the logarithmic kernel over pairs of directions.
        gnc2_variation: Its variation.
        gnc2_deviation: Its deviation.
        nc3: Mean cosine of weights and means; None without weights, as are the next two.
        unc3: Variation of that cosine.
        agreement: Share of samples for which the classifier decides as the nearest mean does; None
            also where single samples were not seen.
    """

    CONVENTIONS: ClassVar[dict[str, str]] = {
        "cdnv": "mean of (v_j + v_k) / (2 |mu_j - mu_k|^2)",
        "cdnv_squared": "mean of (v_j + v_k) / (2 |mu_j - mu_k|^4), in 1/length^2",
        "log_norm_variation": "std / |mean| of log |m_k|; depends on the unit of length",
        "log_norm_deviation": "std of log |m_k|",
        "interference": "mean of <u_j, u_k>, -1/(K-1) at an ETF",
        "interference_deviation": "its std over pairs",
        "gnc2": "mean of -log |u_j - u_k|, -(1/2) log(2K/(K-1)) at an ETF",
        "gnc2_variation": "its std / |mean| over pairs",
        "gnc2_deviation": "its std over pairs",
        "nc3": "mean cos(w_k, m_k)",
        "unc3": "std / |mean| of cos(w_k, m_k)",
        "agreement": "share where classifier and nearest mean agree",
    }

    num_classes: int
    cdnv: float
    cdnv_squared: float
    log_norm_variation: float
    log_norm_deviation: float
    interference: float
    interference_deviation: float
    gnc2: float
    gnc2_variation: float
    gnc2_deviation: float
    nc3: float | None
    unc3: float | None
    agreement: float | None

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return f"Linguistic collapse of {self.num_classes} classes"


def _variation(deviation: float, mean: float) -> float:
    """Return deviation / |mean|, with 0 / 0 = 0 and infinity for what has no finite mean."""
    if not np.isfinite(mean):
        return float("inf")
    if mean == 0:
        return 0.0 if deviation == 0 else float("inf")
    return deviation / abs(mean)


def _over_all_pairs(
    num_classes: int, values: Callable[[slice, slice], np.ndarray]
) -> tuple[float, float]:
    """Return the mean and the standard deviation of values over pairs of different classes."""
    count = num_classes * (num_classes - 1)
    mean = float(np.sum(over_pairs(np, num_classes, values)[0]) / count)
    if not np.isfinite(mean):
        return mean, float("inf")
    squares, _ = over_pairs(np, num_classes, lambda j, k: (values(j, k) - mean) ** 2)
    return mean, float(np.sqrt(np.sum(squares) / count))


def _kernel(points: CentredMeans) -> Callable[[slice, slice], np.ndarray]:
    """Return -log |u_j - u_k|, infinite for two equal directions, as a function of slices."""
    floor = (8 * float(np.finfo(float).eps)) ** 2

    def values(rows: slice, columns: slice) -> np.ndarray:
        squares = squared_distances(np, points, rows, columns)
        same = squares <= floor
        return np.where(same, np.inf, -0.5 * np.log(np.where(same, 1.0, squares)))

    return values


def _log_norms(norms: np.ndarray) -> tuple[float, float]:
    """Return the variation and the deviation of the logarithms of norms."""
    if np.any(norms == 0):
        return float("inf"), float("inf")
    logs = np.log(norms)
    deviation = float(np.std(logs))
    return _variation(deviation, float(np.mean(logs))), deviation


def linguistic_collapse(collapse: NeuralCollapse) -> LinguisticCollapse:
    """Return the numbers of linguistic collapse from a measurement of NC1 to NC4.

    Pairs of classes are worked on in tiles, in memory of K d.

    Args:
        collapse: From `neural_collapse`, or from batches: `measure(...).collapse`. Leave out the
            classes without samples there, with `absent="leave out"`.

    Raises:
        ValueError: The argument is something else, or a batch of measurements.

    >>> from ufm.metrics import neural_collapse
    >>> triangle = [[2.0, 0.0], [-1.0, 3**0.5], [-1.0, -(3**0.5)]]
    >>> found = linguistic_collapse(neural_collapse(triangle, [0, 1, 2]))
    >>> round(found.gnc2, 6), abs(round(found.gnc2_variation, 12))
    (-0.549306, 0.0)
    """
    if not isinstance(collapse, NeuralCollapse) or np.ndim(collapse.class_counts) != 1:
        raise ArgumentError(
            "collapse",
            f"must be one NeuralCollapse, got {type(collapse).__name__}; measure first, with "
            "`neural_collapse` or `ufm.networks.measure`",
        )
    nc1, nc2 = collapse.nc1, collapse.nc2_features
    K = len(collapse.class_counts)
    norms, directions = np.asarray(nc2.norms), np.asarray(nc2.directions)
    unit = float(np.sqrt(np.sum(np.asarray(nc2.uncentred_norms) ** 2)))
    means = centred_means(np, np.asarray(nc1.pair_means))
    variances, floor = np.asarray(nc1.pair_variances), float(nc1.pair_floor)

    def cdnv_squared(rows: slice, columns: slice) -> np.ndarray:
        squares = squared_distances(np, means, rows, columns)
        pairs = (variances[rows, None] + variances[None, columns]) / 2.0
        apart = squares > floor
        return ratio(np, pairs, squares, floor) / np.where(apart, squares, 1.0)

    sums, _ = over_pairs(np, K, cdnv_squared)
    squared = float(np.sum(sums)) / (K * (K - 1)) / (unit**2 if unit > 0 else 1.0)
    kernel, kernel_deviation = _over_all_pairs(K, _kernel(centred_means(np, directions)))
    cosine, cosine_deviation = _over_all_pairs(K, lambda j, k: directions[j] @ directions[k].T)
    log_norm_variation, log_norm_deviation = _log_norms(norms)
    nc3 = unc3 = None
    if collapse.nc3 is not None:
        alignment = np.asarray(collapse.nc3.alignment)
        nc3 = float(np.mean(alignment))
        unc3 = _variation(float(np.std(alignment)), nc3)
    return LinguisticCollapse(
        num_classes=K,
        cdnv=float(nc1.cdnv),
        cdnv_squared=squared,
        log_norm_variation=log_norm_variation,
        log_norm_deviation=log_norm_deviation,
        interference=cosine,
        interference_deviation=cosine_deviation,
        gnc2=kernel,
        gnc2_variation=_variation(kernel_deviation, kernel),
        gnc2_deviation=kernel_deviation,
        nc3=nc3,
        unc3=unc3,
        agreement=None if collapse.nc4 is None else 1.0 - float(collapse.nc4.mismatch),
    )
