r"""NC1 to NC4 of any features, class by class.

K classes, d features, N samples of weights a_i (1 by default), n_k the weight of class k and N =
sum n_k. Features h_i and weights w_k are rows, logits are W h + b. Class means mu_k, their mean mu
= (1/K) sum_k mu_k, the mean of all samples mu_G = (1/N) sum_k n_k mu_k. Scatter matrices, (d, d):

$$S_W = \frac{1}{N} \sum_i a_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^T, \qquad
S_B = \frac{1}{K} \sum_k (\mu_k - c)(\mu_k - c)^T.$$

The centre c differs between papers as soon as classes differ in size: `centre="classes"` is mu, as
in Papyan, Han and Donoho (2020) and everything that only looks at class means; `centre="samples"`
is mu_G, as in the line of Zhu et al. (2021). Balanced classes have mu = mu_G.

`class_statistics` and `collapse_metrics` are pure: with JAX arrays they can be compiled into an
optimisation loop, vmapped and differentiated, in the dtype of the features; with NumPy arrays they
compute with NumPy in float64. `neural_collapse` is their front end for the host: it takes any
array, checks it, and computes in float64 under every JAX setting.

An aggregate hides the collapse of one rare class: every group of metrics has values for each class.

References:
    - Papyan, Han and Donoho (2020), Prevalence of neural collapse during the terminal phase of deep
      learning training, PNAS.
    - Zhu et al. (2021), A geometric analysis of neural collapse with unconstrained features,
        NeurIPS.
    - Hong and Ling (2024), Neural collapse for unconstrained feature model under cross-entropy loss
      with imbalanced data, JMLR.
    - Galanti, György and Hutter (2022), On the role of neural collapse in transfer learning, ICLR
        (CDNV).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ufm import geometry
from ufm._support import ArgumentError
from ufm.geometry import AnyArray, float_arrays, quiet
from ufm.metrics.checked_input import Absent, check_present, checked_rtol, class_labels, real_array
from ufm.metrics.class_statistics import ClassStatistics, class_statistics
from ufm.metrics.definitions import (
    Centre,
    FrameGeometry,
    NearestMean,
    NeuralCollapse,
    SelfDuality,
    VariabilityCollapse,
)
from ufm.metrics.pairs import cdnv_of, over_pairs, ratio
from ufm.metrics.yardstick import WithinClasses, Yardstick, magnitude, within_classes, yardstick

__all__ = [
    "absent_left_out",
    "collapse_from",
    "collapse_metrics",
    "neural_collapse",
]


def _product_distance(xp: Any, left: Any, right: Any, centred: bool) -> Any:
    r"""Return ||A/||A|| - T/||T||||_F for A = X Y^T and T = I - J/K, or T = I.

    A is not formed where K is large.
    A and the mean direction live in the span of X, Y and 1, of m dimensions. With an orthonormal
    basis of it, the distance is that of two (m, m) matrices, and all of T outside it.

    Args:
        xp: The array module.
        left: X, (K, d).
        right: Y, (K, d).
        centred: Whether T is I - J/K.
    """
    K = len(left)
    distance = geometry.etf_distance if centred else geometry.orthogonal_frame_distance
    spanning = [left, np.ones((K, 1))] if left is right else [left, right, np.ones((K, 1))]
    size = sum(one.shape[1] for one in spanning)
    if xp is jnp or size >= K:
        return distance(left @ right.T)
    basis = np.linalg.qr(np.concatenate(spanning, axis=1))[0]
    product = geometry.normalise((basis.T @ left) @ (basis.T @ right).T)
    mean = np.sum(basis, axis=0) / K**0.5
    rank = K - 1 if centred else K
    target = (np.eye(size) - (mean[:, None] * mean[None, :] if centred else 0.0)) / rank**0.5
    return np.sqrt(np.sum((product - target) ** 2) + (K - size) / rank)


def _general_orthogonal_distance(xp: Any, vectors: Any) -> Any:
    """Return ||G - diag G||_F / ||diag G||_F for the Gram matrix G."""
    if xp is jnp:
        return geometry.general_orthogonal_frame_distance(geometry.gram(vectors))
    sums, _ = over_pairs(xp, len(vectors), lambda j, k: (vectors[j] @ vectors[k].T) ** 2)
    squares = np.sum(vectors**2, axis=1)
    size = np.sqrt(np.sum(squares**2))
    return np.sqrt(np.sum(sums)) / (1.0 if size == 0 else size)


def _variability(xp: Any, yard: Yardstick, within: WithinClasses) -> VariabilityCollapse:
    """Return NC1."""
    K, shares, variances = len(yard.means), yard.counts / xp.sum(yard.counts), within.variance
    floor = yard.floor**2

    def unless_equal(spread: Any, between: Any, floor: Any) -> Any:
        """Return the spread relative to the means; infinity (or 0) if these are all equal."""
        return xp.where(between <= floor, ratio(xp, variances, between, floor), spread)

    per_class = unless_equal(within.spread, yard.between, floor)
    pinv = shares @ per_class
    weighted = shares @ unless_equal(
        within.weighted_spread, yard.weighted_between, yard.weighted_floor**2
    )
    size = geometry.frobenius_norm(yard.means)
    unit = xp.where(size == 0, 1.0, size)
    cdnv_sums, _ = over_pairs(xp, K, lambda j, k: cdnv_of(xp, yard.points, variances, floor, j, k))
    cdnv_per_class = cdnv_sums / (K - 1)
    return VariabilityCollapse(
        pinv=pinv,
        pinv_per_class=per_class if within.by_class else None,
        pinv_unnormalised=K * pinv,
        pinv_weighted=weighted / K,
        trace_ratio=ratio(xp, shares @ variances, yard.between / K, floor / K),
        cdnv=xp.mean(cdnv_per_class),
        cdnv_per_class=cdnv_per_class,
        within_variance=variances * yard.scale**2,
        pair_means=yard.means / unit,
        pair_variances=variances / unit**2,
        pair_floor=floor / unit**2,
    )


def _frame_geometry(xp: Any, vectors: Any, uncentred: Any, scale: Any) -> FrameGeometry:
    """Return NC2 of vectors, and of the same before they were centred, both divided by `scale`."""
    K = len(vectors)
    unit = geometry.normalise(vectors)
    unit_uncentred = unit if uncentred is vectors else geometry.normalise(uncentred)
    norms = geometry.vector_norms(vectors)
    mean_norm = xp.mean(norms)
    deviation = geometry.frobenius_norm((norms - mean_norm)[None, :]) / K**0.5
    directions = geometry.normalise_rows(vectors)
    angles, largest = over_pairs(
        xp, K, lambda j, k: xp.abs(directions[j] @ directions[k].T + 1.0 / (K - 1))
    )
    return FrameGeometry(
        etf_distance=_product_distance(xp, unit, unit, centred=True),
        orthogonal_distance=_product_distance(xp, unit_uncentred, unit_uncentred, centred=False),
        general_orthogonal_distance=_general_orthogonal_distance(xp, unit_uncentred),
        norm_variation=deviation / xp.where(mean_norm == 0, 1.0, mean_norm),
        equiangularity=xp.sum(angles) / (K * (K - 1)),
        norms=norms * scale,
        uncentred_norms=geometry.vector_norms(uncentred) * scale,
        cosine_deviation=largest,
        directions=directions,
    )


def _self_duality(xp: Any, W: Any, means: Any, centred: Any) -> SelfDuality:
    """Return NC3."""
    unit_W, unit_means, unit_centred = (geometry.normalise(rows) for rows in (W, means, centred))
    w, mu, mu_centred = (geometry.normalise_rows(rows) for rows in (W, means, centred))
    return SelfDuality(
        product_etf_distance=_product_distance(xp, unit_W, unit_centred, centred=True),
        product_orthogonal_distance=_product_distance(xp, unit_W, unit_means, centred=False),
        squared_distance=xp.sum((unit_W - unit_centred) ** 2),
        squared_distance_uncentred=xp.sum((unit_W - unit_means) ** 2),
        alignment=xp.sum(w * mu_centred, axis=1),
        alignment_uncentred=xp.sum(w * mu, axis=1),
    )


def _nearest_mean(xp: Any, n: Any, within: WithinClasses) -> NearestMean:
    """Return NC4: counts over counts, so that no share is above one."""
    wrong, correct = xp.minimum(within.mismatch, n), xp.minimum(within.correct, n)
    return NearestMean(
        mismatch=xp.sum(wrong) / xp.sum(n),
        mismatch_per_class=wrong / n,
        accuracy=xp.sum(correct) / xp.sum(n),
        accuracy_per_class=correct / n,
    )


@quiet
def collapse_from(yard: Yardstick, within: WithinClasses) -> NeuralCollapse:
    """Return NC1 to NC4 from the class means and the measures within classes."""
    xp, n, M, W = float_arrays(yard.counts, yard.means, yard.weights)
    nc1, nc2 = _variability(xp, yard, within), _frame_geometry(xp, yard.centred, M, yard.scale)
    if not yard.classifies:
        return NeuralCollapse(n, nc1, nc2, None, None, None, yard.centre)
    scale_W = magnitude(xp, W)
    unit_W = W / scale_W
    return NeuralCollapse(
        class_counts=n,
        nc1=nc1,
        nc2_features=nc2,
        nc2_weights=_frame_geometry(xp, unit_W, unit_W, scale_W),
        nc3=_self_duality(xp, unit_W, M, yard.centred),
        nc4=_nearest_mean(xp, n, within) if within.by_class else None,
        centre=yard.centre,
    )


@quiet
def collapse_metrics(
    statistics: ClassStatistics,
    weights: Float[AnyArray, "R d"] | None = None,
    bias: Float[AnyArray, " R"] | None = None,
    *,
    centre: Centre = "classes",
    rtol: float | None = None,
    classes: Int[AnyArray, " K"] | None = None,
) -> NeuralCollapse:
    r"""Return NC1 to NC4 of class statistics and a linear classifier.

    Pure, in the dtype of the statistics, and differentiable except NC4, which is piecewise
    constant. The conventions are with `VariabilityCollapse`, `FrameGeometry`, `SelfDuality` and
    `NearestMean`.

    NC1 never forms S_B or its inverse. With A a (K - 1, d) matrix of the same scatter as the
    centred means, its pseudo-inverse from a thin SVD, and residuals r_i,

    $$\mathrm{tr}(S_W S_B^+) = \frac{K}{N} \sum_i a_i \|r_i A^+\|^2,$$

    a sum of squares, so that it is never negative, with the explicit rank min(K - 1, d).

    Args:
        statistics: From `class_statistics`.
        weights: The classifier's rows, (R, d): of several layers, the last. R is K without
            `classes`. None leaves out NC3, NC4 and NC2 of weights.
        bias: The classifier's bias, (R,); zero by default. Only NC4 depends on it.
        centre: What means are centred at: "classes", the mean of the class means, or "samples", the
            mean of all samples.
        rtol: Singular values of the centred means (and distances of two means) up to `rtol` times
            the Frobenius norm of the uncentred means are rounding error, and count as zero. max(K,
            d) times the machine epsilon of the dtype by default.
        classes: The row of the classifier of each class, (K,), where it has more rows than there
            are classes. It decides among all its rows.

    Returns:
        The metrics, as arrays.

    Raises:
        ValueError: A shape does not fit, a bias comes without weights, or `centre` is unknown.
    """
    n, M, R, y, a = statistics
    given = {
        name: array for name, array in (("weights", weights), ("bias", bias)) if array is not None
    }
    xp, n, M, R, a, *arrays = float_arrays(n, M, R, a, *given.values())
    given = dict(zip(given, arrays, strict=True))
    yard = yardstick(
        n, M, **given, centre=centre, rtol=rtol, reach=magnitude(xp, R), classes=classes
    )
    return collapse_from(yard, within_classes(yard, R, y, a))


def absent_left_out(
    result: NeuralCollapse, present: np.ndarray, num_classes: int
) -> NeuralCollapse:
    """Return the measurement with the labels of the classes present, where others are absent."""
    if len(present) == num_classes:
        return result
    return dataclasses.replace(result, classes=present, num_labels=num_classes)


def neural_collapse(
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    num_classes: int | None = None,
    *,
    sample_weights: ArrayLike | None = None,
    centre: Centre = "classes",
    rtol: float | None = None,
    absent: Absent = "refuse",
) -> NeuralCollapse:
    """Return NC1 to NC4 of features, and of a classifier, with their values for each class.

    All arrays that NumPy or DLPack can read are accepted: NumPy, JAX, PyTorch on the CPU (including
    bfloat16 and tensors that require gradients). The computation is in float64 under every JAX
    setting, and the result is NumPy float64. Features stored in float32 are not rounded further,
    but a collapse below their own precision cannot be seen.

    Args:
        features: Last-layer features in rows, (N, d). Class means, (K, d), with `sample_weights`
            the class sizes, measure a class-level solution.
        labels: Class indices 0, ..., K - 1, integers, (N,).
        weights: The classifier's rows, (K, d): of several layers, the last. Without them NC3, NC4
            and NC2 of weights are None.
        bias: The classifier's bias, (K,); zero by default.
        num_classes: K; by default the number of rows of `weights`, or else the highest label plus
            one.
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
        centre: What means are centred at: "classes", the mean of the class means, or "samples", the
            mean of all samples.
        rtol: What counts as rounding error, relative to the Frobenius norm of the means; see
            `collapse_metrics`.
        absent: What to do with classes that have no samples, and so no mean: "refuse" them, or
            "leave out". Then everything is about the other classes (`classes` of the result has
            their labels, and `absent` those left out), except that the classifier still decides
            among all its rows.

    Returns:
        The metrics. They print as a table.

    Raises:
        ValueError: An array of the wrong shape, not of real numbers, or not finite; labels that are
            no integers, out of range, or of fewer than two classes; a class without samples; a bias
            without weights.

    >>> result = neural_collapse([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], [0, 0, 1])
    >>> result.nc2_features.cosines.round(12)
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    H = real_array(
        "features",
        features,
        (None, None),
        "a matrix (N, d), one row for each sample, of which there is at least one",
    )
    N, d = H.shape
    W = b = a = None
    if weights is not None:
        W = real_array(
            "weights", weights, (None, d), f"the last layer's matrix, (K, {d}) for these features"
        )
        num_classes = len(W) if num_classes is None else num_classes
    y = class_labels(labels, N, num_classes)
    K = int(y.max()) + 1 if num_classes is None else int(num_classes)
    present = np.unique(y)
    check_present("labels", present, K, absent)
    if W is not None and len(W) != K:
        raise ArgumentError(
            "weights", f"must have one row for each of {K} classes, got shape {W.shape}"
        )
    if bias is not None:
        b = real_array("bias", bias, (K,), f"of shape ({K},), one number for each class")
    if sample_weights is not None:
        a = real_array(
            "sample_weights", sample_weights, (N,), f"of shape ({N},), one number for each sample"
        )
        sums = np.bincount(np.searchsorted(present, y), a)
        if np.any(a < 0) or np.any(sums == 0):
            raise ArgumentError(
                "sample_weights",
                "must not be negative and must have a positive sum in each class, got "
                f"{a.min():g} as the least weight and {sums.min():g} as the least sum",
            )
    checked_rtol(rtol, d)
    classes = None
    if len(present) < K:
        y = np.searchsorted(present, y)
        classes = None if W is None else present
    result = collapse_metrics(
        class_statistics(H, y, len(present), a), W, b, centre=centre, rtol=rtol, classes=classes
    )
    result = jax.tree.map(lambda leaf: leaf[()], result)  # arrays without axes become numbers
    return absent_left_out(result, present, K)
