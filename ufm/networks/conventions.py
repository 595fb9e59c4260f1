r"""The metrics of the `neural-collapse` package (R. Wu, github.com/rhubarbwu/neural-collapse) by their names, and where they are in `ufm`.

Its functions take class means M, (K, d), a vector m_G to centre them at, the pooled within-class covariance V_intra, (d, d), within-class variances
V, (K,), and the classifier's weights W, (K, d). So do these, in float64, whatever the arrays come from; `results` gives the table of its
documentation from `ClassMoments`. The facts are those of its documentation and of its code of 2024.

| neural-collapse | here | in `NeuralCollapse` |
|---|---|---|
| `MeanAccumulator(K, d).accumulate(X, Y)`, `.compute()` | `ClassMoments(K, d).update(X, Y)`, `.means` and `.means.mean(axis=0)` | |
| `VarNormAccumulator`, `CovarAccumulator` (a second pass) | `.within_trace`, `.within`, of the same pass | `nc1.within_variance` |
| `DecAccumulator` (a second pass) | `SecondPass(moments, W)` | `nc4` |
| `covariance_ratio(V_intra, M, m_G, "pinv")`, and `"svd"` | `covariance_ratio` | `nc1.pinv` |
| `covariance_ratio(V_intra, M, m_G, "quotient")` | `covariance_ratio` | `nc1.trace_ratio` |
| `variability_cdnv(V, M)` | `variability_cdnv` | `nc1.cdnv` |
| `mean_norms(M, m_G)` | `mean_norms` | `nc2_features.norms` |
| `interference_grid(M, m_G)` | `interference_grid` | `nc2_features.cosines`, times norms |
| `simplex_etf_error(M, m_G)` | `simplex_etf_error` | `nc2_features.etf_distance` |
| `kernel_stats(M, m_G)`, also with `log_kernel`, `riesz_kernel` | `kernel_stats` | |
| `self_duality_error(W, M, m_G)` | `self_duality_error` | `nc3.product_etf_distance` |
| `similarities(W, M, m_G, cos=True)` | `similarities` | `nc3.alignment` |
| `distance_norms(W, M, m_G)` | `distance_norms` | |
| `clf_ncc_agreement(dec_accum)` | `clf_ncc_agreement` | 1 - `nc4.mismatch` |
| `orthogonality_deviation(M, m_G_ood)` | `orthogonality_deviation` | |

What differs:

- Its accumulators compute in float32 by default, where NC1 by a pseudo-inverse can come out negative or off by orders of magnitude; sums of features
  far from the origin lose digits as well. Here all is float64, and NC1 has an explicit rank.
- Its `m_G` is the mean of the class means unless one asks for `weighted=True`: `centre="classes"` here, and `centre="samples"` with weights.
- Older versions divide the between-class covariance by d where newer ones divide by K, which makes "pinv" and "quotient" d/K times as large, and
  their `svd` leaves out the division by K.
- Its classifier for NC4 has no bias, so its agreement is that of `SecondPass(moments, W)`. With a bias in the network, give it to
  `SecondPass(moments, W, b)`, which tells what the network decides.
- It averages the agreement over samples; `weighted=False` over classes.
- Norms in its denominators have the machine epsilon added. Here they have not; a zero vector has cosine 0.

References:
    - Papyan, Han and Donoho (2020), PNAS: `covariance_ratio`, "pinv".
    - Tirer, Huang and Niles-Weed (2023), ICML: "quotient".
    - Galanti, György and Hutter (2022), ICLR: `variability_cdnv`.
    - Kothapalli (2023), TMLR: `simplex_etf_error` and `self_duality_error`.
    - Liu et al. (2023), ICLR (hyperspherical uniformity): `kernel_stats`.
    - Wu and Papyan (2024), NeurIPS (linguistic collapse): `similarities`, whose variance is uniform duality.
    - Ammar et al. (2024), ICLR: `orthogonality_deviation`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm import geometry
from ufm.metrics import NeuralCollapse, real_array
from ufm.networks.measure import ClassMoments

__all__ = [
    "KernelStats",
    "clf_ncc_agreement",
    "covariance_ratio",
    "dist_kernel",
    "distance_norms",
    "interference_grid",
    "kernel_grid",
    "kernel_stats",
    "log_kernel",
    "mean_norms",
    "orthogonality_deviation",
    "results",
    "riesz_kernel",
    "self_duality_error",
    "similarities",
    "simplex_etf_error",
    "variability_cdnv",
]

Metric = Literal["pinv", "svd", "quotient"]
Kernel = Callable[[Float[np.ndarray, "K d"]], Float[np.ndarray, "K K"]]


class KernelStats(NamedTuple):
    """Mean and variance (mean square of the deviation) of a kernel over the pairs of different classes."""

    mean: float
    variance: float


def _centred(M: ArrayLike, m_G: ArrayLike) -> Any:
    """Return the rows of M less m_G, which may be zero for "not at all"."""
    means = real_array("M", M, (None, None), "a matrix (K, d), one row for each class")
    if np.ndim(m_G) == 0 and not np.any(np.asarray(m_G)):
        return means
    d = means.shape[1]
    return means - real_array("m_G", m_G, (d,), f"a vector of {d} numbers, or 0 to leave the means as they are")


def _beside(W: ArrayLike, M: np.ndarray) -> Any:
    return real_array("W", W, M.shape, f"of the shape {M.shape} of the means")


def covariance_ratio(V_intra: ArrayLike, M: ArrayLike, m_G: ArrayLike = 0, metric: Metric = "pinv") -> float:
    r"""Return within-class over between-class covariance, V_inter = (M - m_G)^T (M - m_G) / K (NC1).

    - "pinv": tr(V_intra V_inter^+) / K, without singular values of M - m_G that are rounding error. It is `nc1.pinv`.
    - "svd": the same with the K - 1 largest, however small.
    - "quotient": tr V_intra / tr V_inter, which is `nc1.trace_ratio`.

    Args:
        V_intra: Pooled within-class covariance, the mean over all samples, (d, d).
        M: Class means, (K, d).
        m_G: What they are centred at, (d,), or 0.
        metric: Which.

    Raises:
        ValueError: Shapes do not fit, or `metric` is unknown.
    """
    rows = _centred(M, m_G)
    K, d = rows.shape
    V = real_array("V_intra", V_intra, (d, d), f"of shape ({d}, {d})")
    if metric not in get_args(Metric):
        raise ValueError(f"`metric` must be one of {get_args(Metric)}, got {metric!r}.")
    if metric == "quotient":
        return float(np.trace(V) / (np.sum(rows**2) / K))
    _, s, Vt = np.linalg.svd(rows, full_matrices=False)
    rounding = max(K, d) * np.finfo(float).eps * np.linalg.norm(np.asarray(M, np.float64))
    kept = s > rounding if metric == "pinv" else np.arange(len(s)) < K - 1
    coordinates = Vt[kept] / s[kept, None]
    return float(np.sum((coordinates @ V) * coordinates))


def variability_cdnv(V: ArrayLike, M: ArrayLike, dist_exp: float = 1.0) -> float:
    r"""Return the mean over pairs of (V_j + V_k) / (2 ||M_j - M_k||^{2 dist_exp}); with `dist_exp` 1, `nc1.cdnv`.

    Args:
        V: Within-class variances, the mean over the class of ||h - mu_k||^2, (K,).
        M: Class means, (K, d).
        dist_exp: The power of the squared distance; the package's own, 1 in the paper.
    """
    rows = _centred(M, 0)
    variances = real_array("V", V, (len(rows),), f"of shape ({len(rows)},), one number for each class")
    distances = np.stack([np.sum((rows - row) ** 2, axis=1) for row in rows])
    j, k = np.triu_indices(len(rows), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean((variances[j] + variances[k]) / 2.0 / distances[j, k] ** dist_exp))


def mean_norms(M: ArrayLike, m_G: ArrayLike = 0) -> Float[np.ndarray, " K"]:
    """Return ||M_k - m_G||, (K,); `nc2_features.norms`. The package's `post_funcs` are applied to what this returns."""
    return np.asarray(geometry.vector_norms(_centred(M, m_G)))


def interference_grid(M: ArrayLike, m_G: ArrayLike = 0) -> Float[np.ndarray, "K K"]:
    """Return the inner products of the centred means, (K, K). Their cosines are `nc2_features.cosines`."""
    return np.asarray(geometry.gram(_centred(M, m_G)))


def simplex_etf_error(M: ArrayLike, m_G: ArrayLike = 0) -> float:
    r"""Return ||G/||G|| - (I - J/K)/sqrt(K-1)||_F for the Gram matrix G of the centred means; `nc2_features.etf_distance`."""
    rows = geometry.normalise(_centred(M, m_G))
    return float(geometry.scale_free_etf_distance(geometry.gram(rows)))


def self_duality_error(W: ArrayLike, M: ArrayLike, m_G: ArrayLike = 0) -> float:
    r"""Return ||A/||A|| - (I - J/K)/sqrt(K-1)||_F for A = W (M - m_G)^T; `nc3.product_etf_distance`.

    It is zero only where W and M are both a simplex ETF and aligned: with other weights and means that are dual to each other
    (`nc3.squared_distance` zero) it is not.
    """
    rows = _centred(M, m_G)
    weights = _beside(W, rows)
    product = geometry.normalise(weights) @ geometry.normalise(rows).T
    return float(geometry.scale_free_etf_distance(product))


def similarities(W: ArrayLike, M: ArrayLike, m_G: ArrayLike = 0, cos: bool = False) -> Float[np.ndarray, " K"]:
    """Return w_k . (M_k - m_G), (K,); with `cos` their cosines, `nc3.alignment`. Their variance is the package's uniform duality."""
    rows = _centred(M, m_G)
    weights = _beside(W, rows)
    if cos:
        weights, rows = geometry.normalise_rows(weights), geometry.normalise_rows(rows)
    return np.sum(weights * rows, axis=1)


def distance_norms(W: ArrayLike, M: ArrayLike, m_G: ArrayLike = 0, norm: bool = True) -> Float[np.ndarray, " K"]:
    """Return ||w_k - (M_k - m_G)||, (K,), of unit vectors unless `norm` is False.

    `nc3.squared_distance` divides by the norm of the whole matrix, not of each row, and is the sum of squares.
    """
    rows = _centred(M, m_G)
    weights = _beside(W, rows)
    if norm:
        weights, rows = geometry.normalise_rows(weights), geometry.normalise_rows(rows)
    return np.asarray(geometry.vector_norms(weights - rows))


def dist_kernel(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """Return the distances ||u_j - u_k||, (K, K)."""
    return np.stack([geometry.vector_norms(rows - row) for row in rows])


def log_kernel(rows: Float[np.ndarray, "K d"], exponent: int = -1) -> Float[np.ndarray, "K K"]:
    """Return log(||u_j - u_k||^exponent), (K, K); infinite on the diagonal."""
    with np.errstate(divide="ignore"):
        return exponent * np.log(dist_kernel(rows))


def riesz_kernel(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """Return sign(s) ||u_j - u_k||^(-s) with s = d - 2, (K, K); infinite on the diagonal where s > 0, and 1 everywhere where d = 2."""
    s = rows.shape[1] - 2
    with np.errstate(divide="ignore"):
        return np.copysign(1.0, s) * dist_kernel(rows) ** float(-s)


def kernel_grid(M: ArrayLike, m_G: ArrayLike = 0, kernel: Kernel = dist_kernel) -> Float[np.ndarray, "K K"]:
    """Return a kernel between the centred means scaled to norm one, (K, K)."""
    return kernel(np.asarray(geometry.normalise_rows(_centred(M, m_G))))


def kernel_stats(M: ArrayLike, m_G: ArrayLike = 0, kernel: Kernel = dist_kernel) -> KernelStats:
    """Return mean and variance of a kernel over pairs of different classes: hyperspherical uniformity (generalised NC2).

    The variance is zero at a simplex ETF. The package's tables show it, for `dist_kernel` and `log_kernel`.

    Args:
        M: Class means, (K, d).
        m_G: What they are centred at, (d,), or 0.
        kernel: A function of unit vectors in rows: `dist_kernel`, `log_kernel`, `riesz_kernel`, or another.
    """
    grid = kernel_grid(M, m_G, kernel)
    values = grid[np.triu_indices(len(grid), 1)]
    mean = np.mean(values)
    with np.errstate(invalid="ignore"):
        return KernelStats(float(mean), float(np.mean((values - mean) ** 2)))


def clf_ncc_agreement(collapse: NeuralCollapse, weighted: bool = True) -> float:
    """Return the share of samples for which classifier and nearest class mean agree, 1 - `nc4.mismatch`.

    Args:
        collapse: A measurement with weights; without a bias, which the package does not know.
        weighted: Over samples; otherwise the mean over classes of the share in each.

    Raises:
        ValueError: NC4 was not measured.
    """
    if collapse.nc4 is None:
        raise ValueError("`collapse` must have NC4, got one without: measure in two passes, with `weights`.")
    nc4 = collapse.nc4
    return float(1.0 - (nc4.mismatch if weighted else np.mean(nc4.mismatch_per_class)))


def orthogonality_deviation(M: ArrayLike, m_G_ood: ArrayLike) -> float:
    """Return the mean of |cos(M_k, m_G_ood)|: how far class means are from orthogonal to the mean of other data (NC5).

    Args:
        M: Class means, (K, d), as they are.
        m_G_ood: The mean of features out of distribution, (d,).
    """
    rows = geometry.normalise_rows(_centred(M, 0))
    d = rows.shape[1]
    other = real_array("m_G_ood", m_G_ood, (d,), f"a vector of {d} numbers")
    return float(np.mean(np.abs(rows @ geometry.normalise_rows(other[None, :])[0])))


def results(
    moments: ClassMoments,
    weights: ArrayLike,
    collapse: NeuralCollapse | None = None,
    m_G_ood: ArrayLike | None = None,
) -> dict[str, Any]:
    """Return the package's table of results, under its names, of one layer and its classifier.

    Args:
        moments: The class moments, with a scatter matrix.
        weights: The classifier's rows, (K, d).
        collapse: A measurement in two passes, for "nc4_agree"; without it that is left out.
        m_G_ood: The mean of features out of distribution, (d,), for "nc5_ood_dev"; without it that is left out.

    Returns:
        nc1_pinv, nc1_svd, nc1_quot, nc1_cdnv, nc2_etf_err, nc2g_dist and nc2g_log (variances), nc3_dual_err, nc3u_uni_dual (the
        variance over classes, divided by K - 1), nc4_agree, nc5_ood_dev.
    """
    means = moments.means
    m_G = means.mean(axis=0)
    table = {
        "nc1_pinv": covariance_ratio(moments.within, means, m_G),
        "nc1_svd": covariance_ratio(moments.within, means, m_G, "svd"),
        "nc1_quot": covariance_ratio(moments.within, means, m_G, "quotient"),
        "nc1_cdnv": variability_cdnv(moments.within_trace, means),
        "nc2_etf_err": simplex_etf_error(means, m_G),
        "nc2g_dist": kernel_stats(means, m_G).variance,
        "nc2g_log": kernel_stats(means, m_G, log_kernel).variance,
        "nc3_dual_err": self_duality_error(weights, means, m_G),
        "nc3u_uni_dual": float(np.var(similarities(weights, means, m_G), ddof=1)),
    }
    if collapse is not None:
        table["nc4_agree"] = clf_ncc_agreement(collapse)
    if m_G_ood is not None:
        table["nc5_ood_dev"] = orthogonality_deviation(means, m_G_ood)
    return table
