r"""Neural regression collapse: features, weights and real targets at a linear head.

Features h_i, (N, d), and targets y_i, (N, n), in rows; weights W, (n, d). Sigma is the covariance
of the targets, S that of the features.

Two papers give the same names to different numbers. `nrc1` to `nrc3` are those of Andriopoulos et
al. (2024), `deep_nrc1` to `deep_nrc4` those of Rangamani and Unal (2026). All of them follow from
first and second moments, so that one pass over the samples is enough.

What the minimum of the unconstrained features model has (squared error, weight decay, a free bias):
`nrc1` and `nrc2` are 0. `nrc3_soft` is 0 at gamma = c = lambda_H lambda_W, in the convention
|WH + b - Y|^2 / (2N) + lambda_H |H|^2 / (2N) + lambda_W |W|^2 / 2. `nrc3` is 0 only while every
mode is alive, that is for c < lambda_min(Sigma): with a dead mode it is positive at the global
minimum, however good the training. `deep_nrc1` is 0 and `deep_nrc3` is 1. `deep_nrc2` is below 1
unless the targets are white, because the spectrum of S is that of Sigma^{1/2}, soft-thresholded,
and not that of Sigma. `deep_nrc4` is 0 while every mode is alive.

What published code does otherwise:

- The principal components behind NRC1 are those of centred features, and the features that are
  projected on them are not centred. So it is here; where features share a large offset, NRC1 is
  large for that reason. `deep_nrc1` centres both.
- NRC1 and NRC2 have versions with and without each feature divided by its norm. Here it is divided.
- NRC3 is the squared distance in the paper, `nrc3**2` here.
- The range of gamma ends at the least eigenvalue of Sigma. The authors' code takes the first that
  `numpy.linalg.eig` returns, which is in no order. One package searches gamma in [0, 1] whatever
  the scale of the targets, and takes the Cholesky factor of Sigma, not divided by N, for its root.
- Sigma is about the mean of the targets where the model has a free bias, and about the origin where
  it has none: `about`. The authors' code has the second unless told to centre.
- The linear prediction of Deep NRC4 has no constant term in the authors' code, and leaves out
  singular values up to 1e-3 of the largest. Here it has one (with `about="mean"`), and leaves out
  rounding error only.
- The kernel alignment of Deep NRC2 takes the first n columns of the features in the authors' code,
  an arbitrary choice of coordinates. Here it takes all.
- The mean of Deep NRC3 is over n cosines always in the authors' code, of which those beyond the
  rank of W or S are arbitrary. Here these are zero.

References:
    - Andriopoulos, Dong, Guo, Zhao and Ross (2024), The prevalence of neural collapse in neural
      multivariate regression, NeurIPS.
    - Rangamani and Unal (2026), Deep neural regression collapse, CPAL.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm import geometry
from ufm._support import ArgumentError, check_one_of, checked_whole, printed
from ufm.geometry import quiet
from ufm.metrics.checked_input import (
    check_size,
    checked_rtol,
    head_of,
    host_array,
    real_array,
    weight_array,
)
from ufm.metrics.covariance_fit import covariance_fit
from ufm.metrics.explained import Explained

__all__ = [
    "MomentsAbout",
    "RegressionCollapse",
    "RegressionStatistics",
    "regression_collapse",
    "regression_collapse_from",
    "regression_statistics",
]

MomentsAbout = Literal["mean", "origin"]
NEED_WEIGHTS = (
    "nrc2",
    "nrc3",
    "nrc3_gamma",
    "nrc3_soft",
    "nrc3_soft_gamma",
    "nrc3_soft_modes",
    "deep_nrc3",
    "model_error",
)


@printed
class RegressionStatistics(NamedTuple):
    """The moments of features and targets that regression collapse follows from.

    Attributes:
        weight: The sum of the sample weights, N where all are 1.
        feature_mean: The mean of h_i, (d,).
        target_mean: The mean of y_i, (n,).
        covariance: The covariance of (h_i, y_i) about their means, divided by N, (d + n, d + n).
        directions: The mean of u_i u_i^T with u_i = h_i / |h_i|, not centred, (d, d). A zero
            feature has u_i = 0.
    """

    weight: float
    feature_mean: Float[np.ndarray, " d"]
    target_mean: Float[np.ndarray, " n"]
    covariance: Float[np.ndarray, "m m"]
    directions: Float[np.ndarray, "d d"]

    def moments(self, about: MomentsAbout) -> Float[np.ndarray, "m m"]:
        """Return the second moments of (h_i, y_i) about their means or about the origin."""
        if about == "mean":
            return self.covariance
        mean = np.concatenate([self.feature_mean, self.target_mean])
        return self.covariance + mean[:, None] * mean[None, :]


def regression_statistics(
    features: Float[np.ndarray, "N d"],
    targets: Float[np.ndarray, "N n"],
    sample_weights: Float[np.ndarray, " N"] | None = None,
) -> RegressionStatistics:
    """Return the moments of features and targets.

    Args:
        features: h_i in rows, (N, d).
        targets: y_i in rows, (N, n).
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
    """
    H, Y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    a = np.ones(len(H)) if sample_weights is None else np.asarray(sample_weights, np.float64)
    share = a / a.sum()
    joint = np.concatenate([H, Y], axis=1)
    mean = share @ joint
    rest = joint - mean
    correction = share @ rest
    rest -= correction
    mean += correction
    units = geometry.normalise_rows(H) * np.sqrt(share)[:, None]
    d = H.shape[1]
    return RegressionStatistics(
        weight=float(a.sum()),
        feature_mean=mean[:d],
        target_mean=mean[d:],
        covariance=rest.T @ (rest * share[:, None]),
        directions=units.T @ units,
    )


@printed
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class RegressionCollapse(Explained):
    """Regression collapse; prints as a table with formulas.

    Attributes:
        num_samples: N, or the sum of the sample weights.
        num_features: d.
        num_outputs: n.
        num_directions: How many principal components are compared, n or fewer.
        about: Whether moments are about the mean or the origin.
        nrc1: Share of the features outside their first principal components.
        nrc2: Share of the features outside the rows of W; None without weights, as are the numbers
            below but for `deep_nrc1`, `deep_nrc2` and `deep_nrc4`.
        nrc3: Distance of W W^T from Sigma^{1/2} - sqrt(gamma) I, at the best gamma.
        nrc3_gamma: That gamma, in units of Sigma.
        nrc3_soft: Distance of W W^T from the positive part of it, at the best gamma.
        nrc3_soft_gamma: That gamma.
        nrc3_soft_modes: How many modes are alive in that positive part.
        deep_nrc1: Share of the variance of features outside the principal components.
        deep_nrc2: Centred kernel alignment of features and targets, 1 for equal geometry.
        deep_nrc3: Mean cosine of the angles between the features' subspace and that of W, 1 for
            equal subspaces.
        deep_nrc4: Squared error of the best linear prediction from the features, relative to the
            variance of the targets.
        model_error: The same for the head itself, W h + b; infinite beyond float64.
        feature_variances: Eigenvalues of S in falling order, (d,).
        target_variances: Eigenvalues of Sigma in falling order, (n,).
    """

    CONVENTIONS: ClassVar[dict[str, str]] = {
        "nrc1": "mean |(I - P) h/|h||^2, P on the top principal components",
        "nrc2": "mean |(I - P) h/|h||^2, P on the rows of W",
        "nrc3": "|A/|A| - T/|T||, A = W W^T, T = Sigma^(1/2) - sqrt(gamma) I, gamma <= lambda_min",
        "nrc3_gamma": "the gamma of nrc3; lambda_H lambda_W where all modes are alive",
        "nrc3_soft": "the same with T = [Sigma^(1/2) - sqrt(gamma) I]_+",
        "nrc3_soft_gamma": "the gamma of nrc3_soft; lambda_H lambda_W",
        "nrc3_soft_modes": "the rank of that T",
        "deep_nrc1": "1 - tr(P S) / tr S, P on the top principal components",
        "deep_nrc2": "|C|^2 / (|S| |Sigma|), C = cov(h, y)",
        "deep_nrc3": "mean cosine between the subspaces of S and W",
        "deep_nrc4": "squared error of the best linear prediction / tr Sigma",
        "model_error": "squared error of W h + b / tr Sigma",
    }

    num_samples: float
    num_features: int
    num_outputs: int
    num_directions: int
    about: MomentsAbout
    nrc1: float
    nrc2: float | None
    nrc3: float | None
    nrc3_gamma: float | None
    nrc3_soft: float | None
    nrc3_soft_gamma: float | None
    nrc3_soft_modes: int | None
    deep_nrc1: float
    deep_nrc2: float
    deep_nrc3: float | None
    deep_nrc4: float
    model_error: float | None
    feature_variances: Float[np.ndarray, " d"]
    target_variances: Float[np.ndarray, " n"]

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return (
            f"Regression collapse of {self.num_features} features and {self.num_outputs} outputs, "
            f"{self.num_samples:g} samples, moments about the {self.about}"
        )


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, in falling order and not negative, and eigenvectors in columns."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _outside(directions: np.ndarray, basis: np.ndarray) -> float:
    """Return the share of unit vectors, given by their second moment, outside a basis (d, k)."""
    d, k = basis.shape
    complement = np.linalg.qr(basis, mode="complete")[0][:, k:] if k < d else np.zeros((d, 0))
    return float(max(np.trace(complement.T @ directions @ complement), 0.0))


def _row_basis(weights: np.ndarray, rtol: float) -> np.ndarray:
    """Return an orthonormal basis of the rows, (d, rank), in the order of singular values.

    Their squares are compared, as the variances of features are.
    """
    _, values, rows = np.linalg.svd(weights, full_matrices=False)
    return rows[values**2 > rtol * values[0] ** 2].T if values[0] > 0 else rows[:0].T


def _alignment(left: np.ndarray, right: np.ndarray) -> float:
    """Return the mean cosine of the principal angles of two subspaces.

    Where they differ in dimension, the missing cosines are zero. Two empty subspaces are equal.
    """
    largest = max(left.shape[1], right.shape[1])
    if min(left.shape[1], right.shape[1]) == 0:
        return 1.0 if largest == 0 else 0.0
    cosines = np.linalg.svd(left.T @ right, compute_uv=False)
    return float(np.sum(np.minimum(cosines, 1.0)) / largest)


def _linear_error(joint: np.ndarray, dim: int, rtol: float) -> float:
    """Return the error of the best linear prediction from the joint moments."""
    values, vectors = _spectrum(joint[:dim, :dim])
    kept = values > rtol * values[0]
    best = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ joint[:dim, dim:])
    return _error_of(joint, best.T)


def _error_of(joint: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean of |W h - y|^2 from the joint moments, as a sum of squares."""
    values, vectors = _spectrum(joint)
    residual = np.concatenate([weights, -np.eye(len(weights))], axis=1)
    return float(np.sum((residual @ vectors) ** 2 * values))


def _of_weights(
    statistics: RegressionStatistics,
    W: np.ndarray,
    b: np.ndarray,
    units: tuple[float, float],
    Sigma: np.ndarray,
    principal: np.ndarray,
    num_directions: int,
    rtol: float,
) -> dict[str, Any]:
    """Return the numbers that need the head.

    Args:
        statistics: The moments.
        W: The head.
        b: Its bias.
        units: Of features and targets.
        Sigma: The second moments of the targets in their unit.
        principal: Principal components of the features, no more than their rank.
        num_directions: How many rows of W are compared with them.
        rtol: What counts as rounding error.
    """
    (n, d), (length, height) = W.shape, units
    spectrum, vectors = _spectrum(Sigma)
    unit = W / (np.abs(W).max() or 1.0)
    rows = _row_basis(unit, rtol)
    plain = covariance_fit(unit @ unit.T, spectrum, vectors, soft=False)
    soft = covariance_fit(unit @ unit.T, spectrum, vectors, soft=True, modes=min(n, d))
    scale = np.repeat([length, height], [d, n])
    head = W * (length / height)
    offset = head @ (statistics.feature_mean / length) + (b - statistics.target_mean) / height
    error = _error_of(statistics.covariance / (scale[:, None] * scale), head) + offset @ offset
    return {
        "nrc2": _outside(statistics.directions, rows),
        "nrc3": plain.distance,
        "nrc3_gamma": plain.gamma * height**2,
        "nrc3_soft": soft.distance,
        "nrc3_soft_gamma": soft.gamma * height**2,
        "nrc3_soft_modes": soft.alive,
        "deep_nrc3": _alignment(principal, rows[:, :num_directions]),
        "model_error": float(error) if np.isfinite(error) else float("inf"),
    }


@quiet
def regression_collapse_from(
    statistics: RegressionStatistics,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    about: MomentsAbout | None = None,
    num_directions: int | None = None,
    rtol: float | None = None,
) -> RegressionCollapse:
    """Return regression collapse of moments and a linear head.

    Arguments and errors as `regression_collapse`.
    """
    d, n = len(statistics.feature_mean), len(statistics.target_mean)
    if about is None:
        about = "origin" if weights is not None and bias is None else "mean"
    check_one_of("about", about, get_args(MomentsAbout))
    k = n if num_directions is None else checked_whole("num_directions", num_directions, 1, n)
    k = min(k, d)
    rtol = checked_rtol(rtol, max(d, n))
    head = head_of(weights, bias, (n, d), "output")
    moments = statistics.moments(about)
    length, height = np.sqrt(np.trace(moments[:d, :d])), np.sqrt(np.trace(moments[d:, d:]))
    if not height > rtol * np.sqrt(statistics.target_mean @ statistics.target_mean):
        raise ArgumentError(
            "targets", "must vary, got targets that are all equal: nothing can collapse to them"
        )
    length = length if length > 0 else 1.0
    scale = np.repeat([length, height], [d, n])
    joint = moments / (scale[:, None] * scale)  # of trace 1 in features and in targets
    S, C, Sigma = joint[:d, :d], joint[:d, d:], joint[d:, d:]
    variances, components = _spectrum(S)
    norms = float(geometry.frobenius_norm(S) * geometry.frobenius_norm(Sigma))
    rank = int(np.sum(variances > rtol * variances[0]))
    found: dict[str, Any] = dict.fromkeys(NEED_WEIGHTS)
    if head is not None:
        principal = components[:, : min(k, rank)]
        found = _of_weights(statistics, *head, (length, height), Sigma, principal, k, rtol)
    return RegressionCollapse(
        num_samples=statistics.weight,
        num_features=d,
        num_outputs=n,
        num_directions=k,
        about=about,
        nrc1=_outside(statistics.directions, components[:, :k]),
        deep_nrc1=float(variances[k:].sum()),
        deep_nrc2=float(np.sum(C**2)) / norms if norms > 0 else 0.0,
        deep_nrc4=_linear_error(joint, d, rtol),
        feature_variances=variances * length**2,
        target_variances=_spectrum(Sigma)[0] * height**2,
        **found,
    )


def regression_collapse(
    features: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    sample_weights: ArrayLike | None = None,
    about: MomentsAbout | None = None,
    num_directions: int | None = None,
    rtol: float | None = None,
) -> RegressionCollapse:
    """Return regression collapse of features, real targets, and a linear head.

    Arrays are whatever NumPy or DLPack understands. The computation is in float64. Squares are
    accurate to rounding relative to the features and targets as a whole, so that exact collapse
    shows as 1e-16 in the squared numbers.

    Args:
        features: Last-layer features in rows, (N, d).
        targets: Real targets in rows, (N, n), or (N,) for one output.
        weights: The head's rows, (n, d). Without them what needs them is None.
        bias: The head's bias, (n,); zero by default. Only `model_error` depends on it.
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
        about: What moments are about: "mean" suits a head with a free bias, "origin" one without.
            By default "origin" for weights without a bias, and "mean" otherwise.
        num_directions: How many principal components are compared, at most n; n by default. Where
            the targets have a lower rank, theirs.
        rtol: What counts as rounding error of a variance, or of the square of a singular value of
            W, relative to the largest; max(d, n) times the machine epsilon by default.

    Returns:
        The numbers, which print as a table with their formulas.

    Raises:
        ValueError: An array of the wrong shape, not of real numbers, or not finite; targets that
            do not vary; a bias without weights.

    >>> result = regression_collapse([[2.0, 0.0], [-2.0, 0.0]], [1.0, -1.0], [[0.4, 0.0]])
    >>> round(result.nrc1, 12), round(result.model_error, 12)
    (0.0, 0.04)
    """
    H = real_array("features", features, (None, None), "a matrix (N, d), one row for each sample")
    check_size("features", H)
    Y = host_array("targets", targets)
    Y = real_array(
        "targets",
        Y[:, None] if Y.ndim == 1 else Y,
        (len(H), None),
        f"real numbers (N, n), one row for each of {len(H)} samples",
    )
    check_size("targets", Y)
    a = weight_array("sample_weights", sample_weights, len(H), "sample")
    return regression_collapse_from(
        regression_statistics(H, Y, a),
        weights,
        bias,
        about=about,
        num_directions=num_directions,
        rtol=rtol,
    )
