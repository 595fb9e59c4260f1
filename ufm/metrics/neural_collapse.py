r"""Neural collapse, measured: NC1 to NC4 on any features, in the conventions of the papers, class by class.

K classes, d features, N samples of weights a_i (1 by default), n_k the weight of class k and N = sum n_k.
Features h_i and weights w_k are rows, logits are W h + b. Class means mu_k, their mean mu = (1/K) sum_k mu_k,
the mean of all samples mu_G = (1/N) sum_k n_k mu_k. Scatter matrices, (d, d):

$$S_W = \frac{1}{N} \sum_i a_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^T, \qquad
S_B = \frac{1}{K} \sum_k (\mu_k - c)(\mu_k - c)^T.$$

The centre c differs between papers as soon as classes differ in size: `centre="classes"` is mu, as in Papyan,
Han and Donoho (2020) and everything that only looks at class means; `centre="samples"` is mu_G, as in the
line of Zhu et al. (2021). Balanced classes have mu = mu_G.

`class_statistics` and `collapse_metrics` are pure: with JAX arrays they can be compiled into an optimisation
loop, vmapped and differentiated, in the dtype of the features; with NumPy arrays they compute with NumPy in
float64. `neural_collapse` is the convenience over them for the host: it takes any array, checks it, and
computes in float64 whatever the process's JAX setting.

An aggregate hides the collapse of one rare class: every group of metrics has values for each class.

References:
    - Papyan, Han and Donoho (2020), Prevalence of neural collapse during the terminal phase of deep learning
      training, PNAS.
    - Zhu et al. (2021), A geometric analysis of neural collapse with unconstrained features, NeurIPS.
    - Hong and Ling (2024), Neural collapse for unconstrained feature model under cross-entropy loss with
      imbalanced data, JMLR.
    - Galanti, György and Hutter (2022), On the role of neural collapse in transfer learning, ICLR (CDNV).
"""

import dataclasses
import html
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike
from scipy import sparse

from ufm import geometry
from ufm._support import Module, double_precision, html_table, is_concrete, table_lines
from ufm.geometry import AnyArray, float_arrays, quiet

__all__ = [
    "Absent",
    "ClassStatistics",
    "FeatureSet",
    "FrameGeometry",
    "NearestMean",
    "NeuralCollapse",
    "SelfDuality",
    "VariabilityCollapse",
    "WithinClasses",
    "Yardstick",
    "absent_left_out",
    "assembled",
    "check_present",
    "class_labels",
    "class_slices",
    "class_statistics",
    "collapse_metrics",
    "host_array",
    "load_features",
    "neural_collapse",
    "real_array",
    "sample_measures",
    "stored_arrays",
    "within_classes",
    "yardstick",
]

Centre = Literal["classes", "samples"]
Absent = Literal["refuse", "leave out"]
PAIRS = 2**18  # pairs of classes, or of samples and classes, whose numbers are in memory at a time


class ClassStatistics(NamedTuple):
    """Features split into class means and residuals, h_i = mu_{y_i} + r_i, from which every metric follows.

    The residuals stand for the within-class covariance, which at (d, d) can be far larger than they are.

    Attributes:
        counts: Class weights n_k, (K,): numbers of samples, unless these are weighted.
        means: Class means mu_k, (K, d). A class without samples has NaN.
        residuals: h_i - mu_{y_i}, (N, d).
        labels: The classes y_i, (N,).
        sample_weights: The weights a_i, (N,).
    """

    counts: Float[Array, " K"]
    means: Float[Array, "K d"]
    residuals: Float[Array, "N d"]
    labels: Int[Array, " N"]
    sample_weights: Float[Array, " N"]

    @property
    def shares(self) -> Float[Array, " K"]:
        """The share of each class in all samples, n_k / N, (K,)."""
        return self.counts / self.counts.sum()

    @property
    def global_mean(self) -> Float[Array, " d"]:
        """The mean of all samples mu_G, (d,): class means weighted by n_k / N."""
        return self.shares @ self.means

    @property
    def within_trace(self) -> Float[Array, " K"]:
        """The within-class variances, (K,): the mean over the class of ||h - mu_k||^2."""
        return self.class_means((self.residuals**2).sum(axis=1))

    @property
    def within(self) -> Float[Array, "d d"]:
        """The within-class covariance S_W, (d, d), the mean over all N samples."""
        share = self.sample_weights / self.sample_weights.sum()
        return self.residuals.T @ (self.residuals * share[:, None])

    def class_means(self, values: Float[Array, " N"]) -> Float[Array, " K"]:
        """Return the mean over each class of one value for each sample."""
        return _class_sums(self.sample_weights * values, self.labels, self.counts.shape[0]) / self.counts


def indicator(places: np.ndarray, values: np.ndarray | None, num_rows: int) -> Any:
    """Return the sparse matrix that sums rows by place, (num_rows, n), times `values`."""
    ones = np.ones(len(places)) if values is None else values
    return sparse.csc_array((ones, places, np.arange(len(places) + 1)), shape=(num_rows, len(places)))


def _class_sums(rows: Any, labels: Any, num_classes: int) -> Any:
    """Return the sum of the rows of each class, (K, ...)."""
    if isinstance(rows, jax.Array):
        return jax.ops.segment_sum(rows, labels, num_classes)
    if rows.ndim == 1:
        return np.bincount(labels, rows, num_classes)
    return indicator(labels, None, num_classes) @ rows


class VariabilityCollapse(NamedTuple):
    r"""NC1: samples collapse to the mean of their class.

    Where all class means are equal S_B is zero, and its pseudo-inverse would make total collapse look
    perfect: a ratio to a zero S_B (or to the zero distance of two means) is infinite, or 0 where the
    variability is zero as well. The pseudo-inverse leaves out directions in which the means do not differ.

    Attributes:
        pinv: tr(S_W S_B^+) / K, as most code has it.
        pinv_per_class: tr(S_k S_B^+) / K with S_k the covariance within class k, (K,). Weighted by n_k / N
            they sum to `pinv`. None where only moments of all classes together are known.
        pinv_unnormalised: tr(S_W S_B^+), as Papyan, Han and Donoho (2020) have it.
        pinv_weighted: tr(S_W S_B^+) / K with S_B weighted by class size, S_B = (1/N) sum_k n_k (mu_k -
            mu_G)(mu_k - mu_G)^T, as in Hong and Ling (2024). The centre is mu_G always.
        trace_ratio: tr S_W / tr S_B.
        cdnv: Class-distance normalised variance, the mean of `cdnv_pairs` over pairs of different classes.
        cdnv_per_class: Its mean over the pairs of each class, (K,).
        within_variance: The within-class variances v_k, (K,): the mean over the class of ||h - mu_k||^2.
        pair_means: What `cdnv_pairs` is made of: the class means over their Frobenius norm, (K, d).
        pair_variances: The within-class variances in that unit of length, (K,).
        pair_floor: The squared distance up to which two means are equal, in that unit, ().
    """

    pinv: Float[Array, ""]
    pinv_per_class: Float[Array, " K"] | None
    pinv_unnormalised: Float[Array, ""]
    pinv_weighted: Float[Array, ""]
    trace_ratio: Float[Array, ""]
    cdnv: Float[Array, ""]
    cdnv_per_class: Float[Array, " K"]
    within_variance: Float[Array, " K"]
    pair_means: Float[Array, "K d"]
    pair_variances: Float[Array, " K"]
    pair_floor: Float[Array, ""]

    @property
    def cdnv_pairs(self) -> Float[Array, "K K"]:
        """(v_j + v_k) / (2 ||mu_j - mu_k||^2) with v the within-class variances, (K, K); zero on the diagonal.

        It is formed when it is asked for, in 8 K^2 bytes; `cdnv_rows` gives some of its rows.
        """
        if self.pair_means.ndim == 2:
            return self.cdnv_rows(slice(None))
        xp = jnp if isinstance(self.pair_means, jax.Array) else np  # a batch of measurements
        lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], self).cdnv_pairs for i in range(len(self.pair_means))]
        return xp.stack(lanes)

    @quiet
    def cdnv_rows(self, rows: slice) -> Float[Array, "J K"]:
        """Return some rows of `cdnv_pairs`."""
        xp, M, v, floor = float_arrays(self.pair_means, self.pair_variances, self.pair_floor)
        pairs = _cdnv(xp, _points(xp, M), v, floor, rows)
        same = np.arange(len(v))[rows, None] == np.arange(len(v))[None, :]
        return xp.where(same, 0.0, pairs)


class FrameGeometry(NamedTuple):
    r"""NC2: K vectors form a simplex equiangular tight frame, or an orthogonal frame.

    Class means are centred, except in the metrics called uncentred or orthogonal. Weights are taken as they
    are everywhere, as in all published code: at a minimiser where they should be centred, they are.

    Attributes:
        etf_distance: ||G/||G|| - (I - J/K)/sqrt(K-1)||_F for the Gram matrix G, as in the line of Zhu et al.
            (2021).
        orthogonal_distance: ||G/||G|| - I/sqrt(K)||_F for the uncentred Gram matrix G.
        general_orthogonal_distance: ||G - diag G||_F / ||diag G||_F for the uncentred Gram matrix G: an
            orthogonal frame of any norms.
        norm_variation: Coefficient of variation of the norms, standard deviation over mean, as in Papyan, Han
            and Donoho (2020); the deviation has 1/K under the root (code that calls `torch.std` has 1/(K-1),
            a factor sqrt(K/(K-1)) more).
        equiangularity: Mean over pairs of |cos + 1/(K-1)|, as in Papyan, Han and Donoho (2020). A zero vector
            has cosine 0 with all others.
        norms: Norm of each vector, (K,).
        uncentred_norms: Norm of each vector before centring, (K,): zero for a class whose features are all
            zero.
        cosine_deviation: Largest |cos + 1/(K-1)| of each vector with another, (K,).
        directions: The vectors divided by their norms, (K, d); zero for a zero vector.
    """

    etf_distance: Float[Array, ""]
    orthogonal_distance: Float[Array, ""]
    general_orthogonal_distance: Float[Array, ""]
    norm_variation: Float[Array, ""]
    equiangularity: Float[Array, ""]
    norms: Float[Array, " K"]
    uncentred_norms: Float[Array, " K"]
    cosine_deviation: Float[Array, " K"]
    directions: Float[Array, "K d"]

    @property
    def cosines(self) -> Float[Array, "K K"]:
        """Cosines, (K, K); 0 for a zero vector, on the diagonal too. Formed when asked for, in 8 K^2 bytes."""
        return self.directions @ self.directions.swapaxes(-1, -2)


class SelfDuality(NamedTuple):
    r"""NC3: the classifier's weights are the class means, up to one scale. M has centred means in its rows.

    Attributes:
        product_etf_distance: ||A/||A|| - (I - J/K)/sqrt(K-1)||_F for A = W M^T, as in the line of Zhu et al.
            (2021).
        product_orthogonal_distance: ||A/||A|| - I/sqrt(K)||_F for A = W M^T with uncentred means.
        squared_distance: ||W/||W|| - M/||M||||_F^2, as in Papyan, Han and Donoho (2020).
        squared_distance_uncentred: The same with uncentred means.
        alignment: cos(w_k, mu_k - c) of each class, (K,).
        alignment_uncentred: cos(w_k, mu_k) of each class, (K,).
    """

    product_etf_distance: Float[Array, ""]
    product_orthogonal_distance: Float[Array, ""]
    squared_distance: Float[Array, ""]
    squared_distance_uncentred: Float[Array, ""]
    alignment: Float[Array, " K"]
    alignment_uncentred: Float[Array, " K"]


class NearestMean(NamedTuple):
    """NC4: the classifier decides as the nearest class mean does. Ties go to the lowest index in both.

    Attributes:
        mismatch: Share of samples for which the classifier's class is not that of the nearest mean.
        mismatch_per_class: The same within each class, (K,).
        accuracy: Share of samples that the classifier puts into their own class.
        accuracy_per_class: The same within each class, (K,).
    """

    mismatch: Float[Array, ""]
    mismatch_per_class: Float[Array, " K"]
    accuracy: Float[Array, ""]
    accuracy_per_class: Float[Array, " K"]


_SUMMARY = (
    ("NC1", "nc1_pinv", "tr(S_W S_B^+) / K"),
    ("NC1", "nc1_pinv_unnormalised", "tr(S_W S_B^+)"),
    ("NC1", "nc1_pinv_weighted", "tr(S_W S_B^+) / K, S_B weighted by class size"),
    ("NC1", "nc1_trace_ratio", "tr S_W / tr S_B"),
    ("NC1", "nc1_cdnv", "mean of (v_j + v_k) / (2 |mu_j - mu_k|^2)"),
    ("NC2", "nc2_features_etf_distance", "|G/|G| - (I - J/K)/sqrt(K-1)|, G of centred means"),
    ("NC2", "nc2_features_orthogonal_distance", "|G/|G| - I/sqrt(K)|, G of uncentred means"),
    ("NC2", "nc2_features_general_orthogonal_distance", "|G - diag G| / |diag G|, G of uncentred means"),
    ("NC2", "nc2_features_norm_variation", "std / mean of the norms of centred means"),
    ("NC2", "nc2_features_equiangularity", "mean |cos + 1/(K-1)| of centred means"),
    ("NC2", "nc2_weights_etf_distance", "|G/|G| - (I - J/K)/sqrt(K-1)|, G = W W^T"),
    ("NC2", "nc2_weights_orthogonal_distance", "|G/|G| - I/sqrt(K)|, G = W W^T"),
    ("NC2", "nc2_weights_general_orthogonal_distance", "|G - diag G| / |diag G|, G = W W^T"),
    ("NC2", "nc2_weights_norm_variation", "std / mean of the norms of W"),
    ("NC2", "nc2_weights_equiangularity", "mean |cos + 1/(K-1)| of W"),
    ("NC3", "nc3_product_etf_distance", "|A/|A| - (I - J/K)/sqrt(K-1)|, A = W M^T, centred M"),
    ("NC3", "nc3_product_orthogonal_distance", "|A/|A| - I/sqrt(K)|, A = W M^T, uncentred M"),
    ("NC3", "nc3_squared_distance", "|W/|W| - M/|M||^2, centred M"),
    ("NC3", "nc3_squared_distance_uncentred", "|W/|W| - M/|M||^2, uncentred M"),
    ("NC4", "nc4_mismatch", "share where classifier and nearest mean differ"),
    ("NC4", "nc4_accuracy", "share that the classifier has right"),
)
_PER_CLASS = (
    ("count", "class_counts"),
    ("variance", "nc1_within_variance"),
    ("NC1", "nc1_pinv_per_class"),
    ("cdnv", "nc1_cdnv_per_class"),
    ("|mean|", "nc2_features_norms"),
    ("cos dev.", "nc2_features_cosine_deviation"),
    ("|w|", "nc2_weights_norms"),
    ("w cos dev.", "nc2_weights_cosine_deviation"),
    ("cos(w,mean)", "nc3_alignment"),
    ("mismatch", "nc4_mismatch_per_class"),
    ("accuracy", "nc4_accuracy_per_class"),
)
_ROWS_SHOWN = 20


class NeuralCollapse(Module):
    """NC1 to NC4, in groups; prints as a table that names the conventions.

    Attributes:
        class_counts: Class weights n_k, (K,).
        nc1: Variability of samples about their class means.
        nc2_features: Geometry of the class means.
        nc2_weights: Geometry of the classifier's weights; None without weights, as are the two below.
        nc3: Alignment of weights and means.
        nc4: Decisions of the classifier and of the nearest mean.
        centre: What means are centred at: "classes" for the mean of class means, "samples" for the mean of
            all samples.
        classes: The labels of the classes that were measured, in their order, (K,); None where they are
            0, ..., K - 1.
        num_labels: How many classes there are with those that have no samples and were left out; None where
            there are none of these.
    """

    class_counts: Float[Array, " K"]
    nc1: VariabilityCollapse
    nc2_features: FrameGeometry
    nc2_weights: FrameGeometry | None
    nc3: SelfDuality | None
    nc4: NearestMean | None
    centre: Centre = eqx.field(static=True)
    classes: Int[AnyArray, " K"] | None = None
    num_labels: int | None = eqx.field(static=True, default=None)

    @property
    def absent(self) -> Int[np.ndarray, " A"]:
        """The labels of the classes that have no samples and were left out."""
        return np.delete(np.arange(self.num_labels or 0), [] if self.classes is None else self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the scalars and the values per class as plain Python, under flat names such as "nc1_pinv".

        Groups that were not measured are missing, and so are the matrices, which stay attributes. Where
        classes were left out, "classes" has the labels of the others, and "num_labels" counts all. An
        infinite value is `float("inf")`, which Python's `json` writes as Infinity.
        """
        flat: dict[str, Any] = {"centre": self.centre, "class_counts": np.asarray(self.class_counts).tolist()}
        if self.classes is not None and self.num_labels is not None:
            flat |= {"classes": self.classes.tolist(), "num_labels": self.num_labels}
        for group in ("nc1", "nc2_features", "nc2_weights", "nc3", "nc4"):
            values = getattr(self, group)
            for name, value in () if values is None else values._asdict().items():
                if value is not None and value.ndim < 2 and not name.startswith("pair_"):
                    flat[f"{group}_{name}"] = np.asarray(value).tolist()
        return flat

    def tables(self) -> tuple[str, list[list[str]], list[list[str]]]:
        """Return a title, the table of scalars and the table per class, header rows first."""
        flat = self.to_dict()
        K = len(flat["class_counts"])
        where = "mean of class means" if self.centre == "classes" else "mean of all samples"
        title = f"Neural collapse of {K} classes, {sum(flat['class_counts']):g} samples, centred at the {where}"
        missing = flat.get("num_labels", K) - K
        if missing:
            title += f"; without {missing} classes that have no samples: {_first_missing(flat['classes'], K + missing)}"
        names = flat.get("classes", range(K))
        summary = [["", "name", "value", "convention"]]
        summary += [[nc, key, f"{flat[key]:.4g}", formula] for nc, key, formula in _SUMMARY if key in flat]
        columns = [(head, flat[key]) for head, key in _PER_CLASS if key in flat]
        half = _ROWS_SHOWN // 2
        shown = [*range(K)] if K <= _ROWS_SHOWN else [*range(half), None, *range(K - half, K)]
        classes = [["class", *(head for head, _ in columns)]]
        for k in shown:
            classes.append(
                ["..."] * (len(columns) + 1) if k is None else [str(names[k]), *(f"{c[k]:.4g}" for _, c in columns)]
            )
        return title, summary, classes

    def _is_one_measurement(self) -> bool:
        """Return False for a traced or batched result, which has no table."""
        return is_concrete(self) and np.ndim(self.class_counts) == 1

    def __str__(self) -> str:
        if not self._is_one_measurement():
            return repr(self)
        title, summary, classes = self.tables()
        return "\n".join([title, "", *table_lines(summary), "", *table_lines(classes, str.rjust)])

    def _repr_html_(self) -> str:
        if not self._is_one_measurement():
            return f"<pre>{html.escape(repr(self))}</pre>"
        title, *tables = self.tables()
        return f"<p>{html.escape(title)}</p>" + "".join(map(html_table, tables))


@quiet
def class_statistics(
    features: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    num_classes: int,
    sample_weights: Float[AnyArray, " N"] | None = None,
) -> ClassStatistics:
    r"""Return the class means of features, and what is left of every sample.

    $$n_k = \sum_{y_i=k} a_i, \quad \mu_k = \frac{1}{n_k} \sum_{y_i=k} a_i h_i, \quad r_i = h_i - \mu_{y_i}$$

    Pure: for `jit`, `num_classes` is static. The means take two passes, which leaves them accurate to
    rounding however many samples there are and however far from the origin.

    Args:
        features: h_i in rows, (N, d). At class level, class means, with `sample_weights` the class sizes.
        labels: Classes y_i in 0, ..., K - 1, (N,). They are not checked here.
        num_classes: K.
        sample_weights: a_i, (N,), not negative; 1 by default.

    Returns:
        The statistics. A class of zero total weight has no mean: NaN there, and in every aggregate over
        classes.
    """
    a = np.ones(features.shape[:1]) if sample_weights is None else sample_weights
    xp, H, a = float_arrays(features, a)
    y = xp.asarray(labels)
    n = _class_sums(a, y, num_classes)

    def class_means(rows: Any) -> Any:
        return _class_sums(a[:, None] * rows, y, num_classes) / n[:, None]

    rough = class_means(H)
    rest = H - rough[y]
    correction = class_means(rest)
    return ClassStatistics(n, rough + correction, rest - correction[y], y, a)


def _truncated_inverse(xp: Any, matrix: Any, cutoff: Any, turned: bool = True) -> Any:
    """Return the pseudo-inverse, from the thin SVD, without the singular values up to `cutoff`.

    Without the last factor, the orthonormal rows U^T, where it is not to be `turned` by them.
    """
    if xp is np and not np.all(np.isfinite(matrix)):
        return np.full(matrix.T.shape, np.nan)  # as JAX has it, where NumPy raises an error
    U, s, Vt = xp.linalg.svd(matrix, full_matrices=False)
    kept = s > cutoff
    inverse = Vt.T * xp.where(kept, 1.0 / xp.where(kept, s, 1.0), 0.0)[None, :]
    return inverse @ U.T if turned else inverse


@jax.custom_jvp
def _pseudo_inverse(matrix: Float[Array, "m d"], cutoff: Float[Array, ""]) -> Float[Array, "d m"]:
    """Return the truncated inverse with the derivative at constant rank (Golub and Pereyra 1973).

    It is finite also where singular values coincide, as they all do at a simplex ETF.
    """
    return _truncated_inverse(jnp, matrix, cutoff)


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    A, cutoff = primals
    P, dA = _pseudo_inverse(A, cutoff), tangents[0]
    left = P @ (P.T @ dA.T)  # grouped so that nothing is (d, d)
    right = dA.T @ (P.T @ P)
    return P, left - left @ (A @ P) + right - P @ (A @ right) - P @ (dA @ P)


def _coordinates(xp: Any, rows: Any, null: Any, cutoff: Any) -> Any:
    """Return P, (d, m) with m < K, with |r P|^2 = r (rows^T rows)^+ r^T, where `null` @ rows = 0.

    The K rows have rank K - 1 at most. A Householder reflection that takes `null` to the first axis makes the
    first row zero; the K - 1 others, A, have the same scatter and an explicit rank, min(K - 1, d). P is A^+, up to a factor
    that leaves lengths alone.
    """
    u = null / xp.sqrt(xp.sum(null**2))
    A = rows[1:] - (u[1:] / (1.0 + u[0]))[:, None] * rows[:1]
    return _pseudo_inverse(A, cutoff) if xp is jnp else _truncated_inverse(np, A, cutoff, turned=False)


class Points(NamedTuple):
    """Class means as `_squared_distances` takes them.

    Attributes:
        means: mu_k less a common offset, (K, d).
        squares: Their squared norms, (K,).
    """

    means: Float[Array, "K d"]
    squares: Float[Array, " K"]


def _points(xp: Any, means: Any) -> Points:
    """Return class means less their mean, over classes that have one, so that products keep the digits of differences."""
    if xp is np:
        known = np.isfinite(means).all(axis=1)
        means = means - np.sum(means[known], axis=0) / max(np.sum(known), 1)
    return Points(means, xp.sum(means**2, axis=1))


def _squared_distances(xp: Any, points: Points, rows: Any = slice(None), columns: Any = slice(None)) -> Any:
    """Return ||mu_j - mu_k||^2 for some rows j and columns k of means.

    They are taken from differences where means are nearly equal, so that they keep their digits.
    """
    left, right = points.means[rows], points.means[columns]
    if xp is jnp:
        return jnp.sum((left[:, None, :] - right[None, :, :]) ** 2, axis=2)  # one loop when it is compiled
    distances = (-2.0 * left) @ right.T
    both = points.squares[rows, None] + points.squares[None, columns]
    distances += both
    both *= 1e-3
    near_j, near_k = np.nonzero(distances < both)
    step = max(PAIRS // left.shape[1], 1)
    for start in range(0, len(near_j), step):
        j, k = near_j[start : start + step], near_k[start : start + step]
        distances[j, k] = np.sum((left[j] - right[k]) ** 2, axis=1)
    return distances


def class_slices(num_classes: int) -> Iterator[slice]:
    """Yield the rows of a (K, K) matrix in slices of PAIRS numbers at most (or one row)."""
    rows = max(PAIRS // num_classes, 1)
    for start in range(0, num_classes, rows):
        yield slice(start, min(start + rows, num_classes))


def _over_pairs(xp: Any, num_classes: int, values: Callable[[slice, slice], Any]) -> tuple[Any, Any]:
    """Return the sum and the largest over all other classes k of values(j, k) for each class j, (K,) each.

    Args:
        xp: The array module; NumPy has only some rows of the pairs in memory at a time.
        num_classes: K.
        values: Returns the values, which are symmetric and not negative, of some rows and columns.
    """
    if xp is jnp:
        pairs = jnp.where(np.eye(num_classes, dtype=bool), 0.0, values(slice(None), slice(None)))
        return jnp.sum(pairs, axis=1), jnp.max(pairs, axis=1)
    sums, largest = np.zeros(num_classes), np.zeros(num_classes)
    for rows in class_slices(num_classes):
        rest = slice(rows.stop, num_classes)
        pairs = values(rows, slice(rows.start, num_classes))
        np.fill_diagonal(pairs, 0.0)
        sums[rows] += np.sum(pairs, axis=1)
        largest[rows] = np.maximum(largest[rows], np.max(pairs, axis=1))
        below = pairs[:, len(pairs) :]  # the same pairs, seen from the classes after these
        sums[rest] += np.sum(below, axis=0)
        largest[rest] = np.maximum(largest[rest], np.max(below, axis=0, initial=0.0))
    return sums, largest


def _product_distance(xp: Any, left: Any, right: Any, centred: bool) -> Any:
    r"""Return ||A/||A|| - T/||T||||_F for A = X Y^T and T = I - J/K, or T = I, without forming A where K is large.

    A and the mean direction live in the span of X, Y and 1, of m dimensions. With an orthonormal basis of it, the
    distance is that of two (m, m) matrices, and all of T outside it.

    Args:
        xp: The array module.
        left: X, (K, d).
        right: Y, (K, d).
        centred: Whether T is I - J/K.
    """
    K = len(left)
    distance = geometry.scale_free_etf_distance if centred else geometry.scale_free_orthogonal_frame_distance
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
    sums, _ = _over_pairs(xp, len(vectors), lambda j, k: (vectors[j] @ vectors[k].T) ** 2)
    squares = np.sum(vectors**2, axis=1)
    size = np.sqrt(np.sum(squares**2))
    return np.sqrt(np.sum(sums)) / (1.0 if size == 0 else size)


def _ratio(xp: Any, within: Any, between: Any, floor: Any) -> Any:
    """Return within / between; infinity where `between` is rounding error (up to `floor`), 0 if both are."""
    nothing = between <= floor
    against_nothing = xp.where(within <= floor, 0.0, xp.inf)
    return xp.where(nothing, against_nothing, within / xp.where(nothing, 1.0, between))


def _cdnv(xp: Any, points: Points, variances: Any, floor: Any, rows: slice, columns: slice = slice(None)) -> Any:
    """Return (v_j + v_k) / (2 ||mu_j - mu_k||^2) for some rows j and columns k; of no meaning for j = k."""
    pairs = (variances[rows, None] + variances[None, columns]) / 2.0
    return _ratio(xp, pairs, _squared_distances(xp, points, rows, columns), floor)


def _variability(xp: Any, yard: "Yardstick", within: "WithinClasses") -> VariabilityCollapse:
    """Return NC1."""
    K, shares, variances = len(yard.means), yard.counts / xp.sum(yard.counts), within.variance
    floor = yard.floor**2

    def unless_equal(spread: Any, between: Any, floor: Any) -> Any:
        """Return the spread relative to the means, or infinity (or 0) where all of these are equal."""
        return xp.where(between <= floor, _ratio(xp, variances, between, floor), spread)

    per_class = unless_equal(within.spread, yard.between, floor)
    pinv = shares @ per_class
    weighted = shares @ unless_equal(within.weighted_spread, yard.weighted_between, yard.weighted_floor**2)
    size = geometry.frobenius_norm(yard.means)
    unit = xp.where(size == 0, 1.0, size)
    cdnv_sums, _ = _over_pairs(xp, K, lambda j, k: _cdnv(xp, yard.points, variances, floor, j, k))
    cdnv_per_class = cdnv_sums / (K - 1)
    return VariabilityCollapse(
        pinv=pinv,
        pinv_per_class=per_class if within.by_class else None,
        pinv_unnormalised=K * pinv,
        pinv_weighted=weighted / K,
        trace_ratio=_ratio(xp, shares @ variances, yard.between / K, floor / K),
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
    angles, largest = _over_pairs(xp, K, lambda j, k: xp.abs(directions[j] @ directions[k].T + 1.0 / (K - 1)))
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


def _nearest_mean(xp: Any, n: Any, within: "WithinClasses") -> NearestMean:
    """Return NC4: counts over counts, so that no share is above one."""
    wrong, correct = xp.minimum(within.mismatch, n), xp.minimum(within.correct, n)
    return NearestMean(
        mismatch=xp.sum(wrong) / xp.sum(n),
        mismatch_per_class=wrong / n,
        accuracy=xp.sum(correct) / xp.sum(n),
        accuracy_per_class=correct / n,
    )


def _magnitude(xp: Any, *arrays: Any) -> Any:
    """Return the largest absolute value, or 1 where that is zero; a constant for differentiation."""
    largest = xp.max(xp.stack([xp.max(xp.abs(array)) for array in arrays]))
    magnitude = xp.where(largest == 0, 1.0, largest)
    return jax.lax.stop_gradient(magnitude) if xp is jnp else magnitude


class Yardstick(NamedTuple):
    """What samples are measured against: all that class means and a classifier settle by themselves.

    Lengths are in units of `scale`, but for the weights and logits. Metrics follow from a yardstick and
    `WithinClasses`, wherever that comes from: all residuals at once, batches of them, or moments.

    Attributes:
        counts: n_k, (K,).
        means: mu_k, (K, d).
        centred: mu_k - c, (K, d).
        points: The means as distances between them are taken from them.
        coordinates: P with tr(S_k S_B^+) / K the mean over class k of |r P|^2, (d, m) with m < K.
        weighted_coordinates: The same with S_B weighted by class size, without the / K, (d, m).
        between: The sum of ||mu_k - c||^2.
        weighted_between: The sum of n_k/N ||mu_k - mu_G||^2.
        floor: Length up to which a difference of means is rounding error.
        weighted_floor: The same for differences weighted by the root of n_k/N.
        weights: The classifier's rows, (K, d); zero without a classifier.
        head: All rows of the classifier, (R, d): `weights`, and those of classes without samples.
        head_bias: Their bias, (R,).
        classes: The row of `head` of each class, (K,); None where they are 0, ..., K - 1.
        scale: The unit of length.
        classifies: Whether there is a classifier.
        centre: Which c.
    """

    counts: Float[Array, " K"]
    means: Float[Array, "K d"]
    centred: Float[Array, "K d"]
    points: Points
    coordinates: Float[Array, "d m"]
    weighted_coordinates: Float[Array, "d m"]
    between: Float[Array, ""]
    weighted_between: Float[Array, ""]
    floor: Float[Array, ""]
    weighted_floor: Float[Array, ""]
    weights: Float[Array, "K d"]
    head: Float[Array, "R d"]
    head_bias: Float[Array, " R"]
    classes: Int[AnyArray, " K"] | None
    scale: Float[Array, ""]
    classifies: bool
    centre: Centre


class WithinClasses(NamedTuple):
    """Means over each class of what `yardstick` makes of its samples, and numbers of samples, (K,) each; over one sample each, (N,), as well.

    Attributes:
        variance: ||r||^2.
        spread: |r P|^2, tr(S_k S_B^+) / K.
        weighted_spread: The same with S_B weighted by class size, without the / K.
        mismatch: Number of samples (or their weight) whose class by the classifier is not that of the nearest mean.
        correct: Number of samples (or their weight) that the classifier puts into their own class.
        by_class: False where both spreads are means over all classes, repeated, and the two numbers are unknown.
    """

    variance: Float[Array, " K"]
    spread: Float[Array, " K"]
    weighted_spread: Float[Array, " K"]
    mismatch: Float[Array, " K"]
    correct: Float[Array, " K"]
    by_class: bool


@quiet
def yardstick(
    counts: Float[AnyArray, " K"],
    means: Float[AnyArray, "K d"],
    weights: Float[AnyArray, "K d"] | None = None,
    bias: Float[AnyArray, " K"] | None = None,
    *,
    centre: Centre = "classes",
    rtol: float | None = None,
    reach: Any = 0.0,
    classes: Int[AnyArray, " K"] | None = None,
) -> Yardstick:
    """Return what samples of these class means are measured against.

    Args:
        counts: n_k, (K,).
        means: mu_k, (K, d).
        weights: As for `collapse_metrics`, and so are the next three.
        bias: The classifier's bias.
        centre: What means are centred at.
        rtol: What counts as rounding error.
        reach: A length that residuals have, (); only the unit of length depends on it.
        classes: The row of the classifier of each class, (K,), where it has more rows than there are classes.

    Raises:
        ValueError: As `collapse_metrics`.
    """
    if weights is None and bias is not None:
        raise ValueError("`bias` needs `weights`: pass the classifier's matrix of shape (K, d) as well.")
    if centre not in get_args(Centre):
        raise ValueError(f"`centre` must be one of {get_args(Centre)}, got {centre!r}.")
    K, d = means.shape
    if K < 2:
        raise ValueError(f"`statistics` must have at least 2 classes to compare, got {K}.")
    W = np.zeros((K, d)) if weights is None else weights
    b = np.zeros(len(W)) if bias is None else bias
    R = K if classes is None else len(W)
    if W.shape != (R, d) or b.shape != (R,):
        raise ValueError(f"`weights`, `bias` must have shapes {(R, d)}, {(R,)}, got {W.shape}, {b.shape}.")
    xp, n, M, W, b, reach = float_arrays(counts, means, W, b, reach)
    rtol = max(K, d) * float(xp.finfo(M.dtype).eps) if rtol is None else rtol

    # Nearly every metric is free of scale. One scale for all keeps the squares of very small or very large
    # features within the range of the dtype.
    scale = _magnitude(xp, M, reach)
    M, shares = M / scale, n / xp.sum(n)
    by_class, mean = centre == "classes", shares @ M
    centred = M - (xp.mean(M, axis=0) if by_class else mean)[None, :]
    floor = rtol * xp.sqrt(xp.sum(M**2))
    root = xp.sqrt(shares)[:, None]
    weighted = root * (M - mean[None, :])
    weighted_floor = rtol * xp.sqrt(xp.sum((root * M) ** 2))
    return Yardstick(
        counts=n,
        means=M,
        centred=centred,
        points=_points(xp, M),
        coordinates=_coordinates(xp, centred, xp.ones_like(n) if by_class else n, floor),
        weighted_coordinates=_coordinates(xp, weighted, root[:, 0], weighted_floor),
        between=xp.sum(centred**2),
        weighted_between=xp.sum(weighted**2),
        floor=floor,
        weighted_floor=weighted_floor,
        weights=W if classes is None or weights is None else W[classes],
        head=W,
        head_bias=b,
        classes=classes,
        scale=scale,
        classifies=weights is not None,
        centre=centre,
    )


@quiet
def sample_measures(
    yard: Yardstick, residuals: Float[AnyArray, "N d"], labels: Int[AnyArray, " N"]
) -> tuple[WithinClasses, Float[Array, "N R"]]:
    """Return what every metric takes of each sample, (N,) each, and the logits; without a classifier these are zero.

    With a classifier it takes memory for a few numbers per sample and class.

    Args:
        yard: From `yardstick`.
        residuals: h_i - mu_{y_i} in rows, (N, d).
        labels: The classes y_i, (N,).
    """
    xp, R = float_arrays(residuals)
    logits = xp.zeros((len(R), 1), R.dtype)
    if yard.classifies:
        logits = (yard.means[labels] * yard.scale + R) @ yard.head.T + yard.head_bias[None, :]
    R = R / yard.scale
    wrong = correct = xp.zeros(len(R), R.dtype)
    if yard.classifies:
        inner = R @ yard.centred.T
        own = xp.take_along_axis(inner, labels[:, None], axis=1)
        # ||h_i - mu_k||^2 - ||h_i - mu_{y_i}||^2: relative to the own mean, so that a common offset does no harm
        present, places = (slice(None), labels) if xp is jnp else np.unique(labels, return_inverse=True)
        excess = 2.0 * (own - inner)
        excess += _squared_distances(xp, yard.points, present)[places]
        nearest, right = xp.argmin(excess, axis=1), labels
        if yard.classes is not None:
            nearest, right = yard.classes[nearest], yard.classes[labels]
        predicted = xp.argmax(logits, axis=1)
        wrong, correct = (predicted != nearest).astype(R.dtype), (predicted == right).astype(R.dtype)
    samples = WithinClasses(
        variance=xp.sum(R**2, axis=1),
        spread=xp.sum((R @ yard.coordinates) ** 2, axis=1),
        weighted_spread=xp.sum((R @ yard.weighted_coordinates) ** 2, axis=1),
        mismatch=wrong,
        correct=correct,
        by_class=True,
    )
    return samples, logits


@quiet
def within_classes(
    yard: Yardstick,
    residuals: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    sample_weights: Float[AnyArray, " N"],
) -> WithinClasses:
    """Return the means and the numbers over each class of what `sample_measures` gives; NumPy takes some samples at a time.

    Args:
        yard: From `yardstick`.
        residuals: h_i - mu_{y_i} in rows, (N, d).
        labels: The classes y_i, (N,).
        sample_weights: a_i, (N,).
    """
    xp, R, a = float_arrays(residuals, sample_weights)
    K, rows = len(yard.means), len(R)
    if xp is np:
        rows = max(PAIRS // max(R.shape[1], len(yard.head)), 16)
    sums = xp.zeros((K, 5), R.dtype)
    for start in range(0, len(R), max(rows, 1)):
        part = slice(start, start + rows)
        values = xp.stack(sample_measures(yard, R[part], labels[part])[0][:-1], axis=1)
        sums = sums + _class_sums(a[part, None] * values, labels[part], K)
    return WithinClasses._make([*(sums[:, :3] / yard.counts[:, None]).T, *sums[:, 3:].T, True])


@quiet
def assembled(yard: Yardstick, within: WithinClasses) -> NeuralCollapse:
    """Return NC1 to NC4 from what the class means say and what the samples about them say, (K,) each."""
    xp, n, M, W = float_arrays(yard.counts, yard.means, yard.weights)
    nc1, nc2 = _variability(xp, yard, within), _frame_geometry(xp, yard.centred, M, yard.scale)
    if not yard.classifies:
        return NeuralCollapse(n, nc1, nc2, None, None, None, yard.centre)
    scale_W = _magnitude(xp, W)
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
    weights: Float[AnyArray, "K d"] | None = None,
    bias: Float[AnyArray, " K"] | None = None,
    *,
    centre: Centre = "classes",
    rtol: float | None = None,
    classes: Int[AnyArray, " K"] | None = None,
) -> NeuralCollapse:
    r"""Return NC1 to NC4 of class statistics and a linear classifier.

    Pure, in the dtype of the statistics, and differentiable but for NC4, which is piecewise constant. The
    conventions are with `VariabilityCollapse`, `FrameGeometry`, `SelfDuality` and `NearestMean`.

    NC1 never forms S_B or its inverse. With A a (K - 1, d) matrix of the same scatter as the centred means,
    its pseudo-inverse from a thin SVD, and residuals r_i,

    $$\mathrm{tr}(S_W S_B^+) = \frac{K}{N} \sum_i a_i \|r_i A^+\|^2,$$

    a sum of squares, so that it is never negative, with the explicit rank min(K - 1, d).

    Args:
        statistics: From `class_statistics`.
        weights: The classifier's rows w_k, (K, d): of several layers, the last. None leaves out NC3, NC4 and
            NC2 of weights.
        bias: The classifier's bias, (K,); zero by default. Only NC4 depends on it.
        centre: What means are centred at: "classes", the mean of the class means, or "samples", the mean of
            all samples.
        rtol: Singular values of the centred means (and distances of two means) up to `rtol` times the
            Frobenius norm of the uncentred means are rounding error, and count as zero. max(K, d) times the
            machine epsilon of the dtype by default.
        classes: The row of the classifier of each class, (K,), where it has more rows than there are classes.
            It decides among all its rows.

    Returns:
        The metrics, as arrays.

    Raises:
        ValueError: A shape does not fit, a bias comes without weights, or `centre` is unknown.
    """
    n, M, R, y, a = statistics
    given = {name: array for name, array in (("weights", weights), ("bias", bias)) if array is not None}
    xp, n, M, R, a, *arrays = float_arrays(n, M, R, a, *given.values())
    given = dict(zip(given, arrays, strict=True))
    yard = yardstick(n, M, **given, centre=centre, rtol=rtol, reach=_magnitude(xp, R), classes=classes)
    return assembled(yard, within_classes(yard, R, y, a))


def host_array(
    name: str, value: Any, remedy: str = "convert it, for instance with `np.asarray(..., dtype=np.float64)`"
) -> np.ndarray:
    """Convert anything that NumPy or DLPack understands; refuse what does not hold real numbers, with a remedy."""
    geometry.check_not_masked(name, *(value if isinstance(value, list | tuple) else [value]))
    if hasattr(value, "detach"):
        value = value.detach()  # a tensor that records gradients gives its values only then
    try:
        array = np.asarray(value)
    except Exception as error:
        array, reason = None, str(error)
    foreign = not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__")
    if foreign and (array is None or array.dtype == object):
        try:
            with double_precision():  # JAX knows types that NumPy lacks, such as bfloat16
                array = np.asarray(jnp.from_dlpack(value))
        except Exception as error:
            array, reason = None, str(error)
    if array is None:
        kind = type(value).__name__
        reason = reason.partition("\n")[0]
        raise ValueError(f"`{name}` must be an array in the memory of the host, got {kind}: {reason}")
    if not (jnp.issubdtype(array.dtype, np.floating) or array.dtype.kind in "iub"):
        raise ValueError(f"`{name}` must hold real numbers, got dtype {array.dtype}; {remedy}.")
    return array


def real_array(name: str, value: Any, shape: tuple[int | None, ...], meaning: str) -> np.ndarray:
    """Convert to a finite float64 array of a given shape, in which None stands for any size but zero."""
    array = host_array(name, value)
    fits = array.ndim == len(shape) and all(
        size == expected or (expected is None and size > 0) for size, expected in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"`{name}` must be {meaning}, got shape {array.shape}.")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        bad = np.argwhere(~np.isfinite(array))
        place = tuple(bad[0].tolist())
        of_samples = name in ("features", "sample_weights")
        remedy = "leave such samples out" if of_samples else "what has diverged cannot be measured"
        raise ValueError(
            f"`{name}` must be finite, got {array[place]} at index {place}, one of {len(bad)} such values; {remedy}."
        )
    return array


def _reshaped(labels: np.ndarray, num_samples: int) -> str:
    """Return the remedy for labels of another shape, if one is known."""
    if labels.ndim == 2 and labels.shape == (num_samples, 1):
        return "; drop the second axis with `labels.squeeze(1)`"
    if labels.ndim == 2 and len(labels) == num_samples:
        return "; one-hot labels are converted with `labels.argmax(axis=1)`"
    if labels.ndim > 1 and labels.size == num_samples:
        return "; where every position is a sample, flatten them with `labels.reshape(-1)`"
    return ""


def class_labels(labels: Any, num_samples: int, num_classes: int | None) -> np.ndarray:
    """Return integer labels in 0, ..., K - 1, one for each sample; without K, not negative."""
    y = host_array("labels", labels, "number classes by name with `np.unique(labels, return_inverse=True)[1]`")
    if y.ndim == 1 and y.dtype.kind not in "iu":
        parts = y[y != np.floor(y)] if y.dtype.kind == "f" else y[:0]
        remedy = "convert indices with `labels.astype(int)`"
        if parts.size:
            remedy = f"{parts.ravel()[0]} is no index of a class"
        raise ValueError(f"`labels` must be integers, got dtype {y.dtype}; {remedy}.")
    if y.shape != (num_samples,):
        raise ValueError(
            f"`labels` must have shape ({num_samples},), one class index for each row of `features`, got "
            f"shape {y.shape}{_reshaped(y, num_samples)}."
        )
    if not isinstance(num_classes, int | np.integer | None):
        raise ValueError(f"`num_classes` must be an integer, got {num_classes!r}.")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (num_classes is not None and len(y) and high >= num_classes):
        row = int(np.argmin(y) if low < 0 else np.argmax(y))
        many = (
            "not be negative" if num_classes is None else f"be in 0, ..., {num_classes - 1} for {num_classes} classes"
        )
        raise ValueError(
            f"`labels` must {many}, got {y[row]} at index {row}; leave such samples out (`ufm.networks` does with `ignore_index`), "
            "or correct `num_classes`."
        )
    return y.astype(np.int64, copy=False)


def _first_missing(present: Any, num_classes: int, most: int = 10) -> str:
    """Return the first classes that are not among those present, as text."""
    first = np.setdiff1d(np.arange(min(num_classes, len(present) + most)), present)[:most]
    return ", ".join(map(str, first)) + (", ..." if num_classes - len(present) > len(first) else "")


def check_present(name: str, present: np.ndarray, num_classes: int, absent: Absent = "refuse") -> None:
    """Refuse fewer than two classes, and, unless they are left out, classes without samples.

    Args:
        name: The argument that error messages name.
        present: The classes that have samples, ascending.
        num_classes: K.
        absent: Whether to refuse classes without samples, or to leave them out.

    Raises:
        ValueError: There are fewer than two classes to compare, or classes without samples that are refused.
    """
    if absent not in get_args(Absent):
        raise ValueError(f"`absent` must be one of {get_args(Absent)}, got {absent!r}.")
    fewest = len(present) if absent == "leave out" else num_classes
    if fewest < 2:
        raise ValueError(f"`{name}` must hold at least 2 classes to compare, got {fewest}.")
    if len(present) < num_classes and absent == "refuse":
        raise ValueError(
            f"`{name}` must have a sample of each of the {num_classes} classes, got none of class "
            f"{_first_missing(present, num_classes)}; a class without samples has no mean, so leave it out: with "
            "`absent='leave out'`, or by numbering the others 0, 1, ..."
        )


def absent_left_out(result: NeuralCollapse, present: np.ndarray, num_classes: int) -> NeuralCollapse:
    """Return a measurement of the classes that are present, which says so where others are absent."""
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

    Arrays are whatever NumPy or DLPack understands: NumPy, JAX, PyTorch on the CPU (tensors that require
    gradients and bfloat16 included). The computation is in float64 whatever the process's setting, and the
    result is NumPy float64. Features stored in float32 are not rounded further, but a collapse below their
    own precision cannot be seen.

    Args:
        features: Last-layer features in rows, (N, d). Class means, (K, d), with `sample_weights` the class
            sizes, measure a class-level solution.
        labels: Class indices 0, ..., K - 1, integers, (N,).
        weights: The classifier's rows, (K, d): of several layers, the last. Without them NC3, NC4 and NC2 of
            weights are None.
        bias: The classifier's bias, (K,); zero by default.
        num_classes: K; by default the number of rows of `weights`, or else the highest label plus one.
        sample_weights: The weight of each sample in all means, (N,), not negative; 1 by default.
        centre: What means are centred at: "classes", the mean of the class means, or "samples", the mean of
            all samples.
        rtol: What counts as rounding error, relative to the Frobenius norm of the means; see
            `collapse_metrics`.
        absent: What to do with classes that have no samples, and so no mean: "refuse" them, or "leave out".
            Then everything is about the other classes (`classes` of the result has their labels, and
            `absent` those left out), but for the classifier's decisions, which it takes among all its rows.

    Returns:
        The metrics. They print as a table.

    Raises:
        ValueError: An array of the wrong shape, not of real numbers, or not finite; labels that are no
            integers, out of range, or of fewer than two classes; a class without samples; a bias without
            weights.

    >>> result = neural_collapse([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], [0, 0, 1])
    >>> result.nc2_features.cosines.round(12)
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    H = real_array(
        "features", features, (None, None), "a matrix (N, d), one row for each sample, of which there is at least one"
    )
    N, d = H.shape
    W = b = a = None
    if weights is not None:
        W = real_array("weights", weights, (None, d), f"the last layer's matrix, (K, {d}) for these features")
        num_classes = len(W) if num_classes is None else num_classes
    y = class_labels(labels, N, num_classes)
    K = int(y.max()) + 1 if num_classes is None else int(num_classes)
    present = np.unique(y)
    check_present("labels", present, K, absent)
    if W is not None and len(W) != K:
        raise ValueError(f"`weights` must have one row for each of {K} classes, got shape {W.shape}.")
    if bias is not None:
        b = real_array("bias", bias, (K,), f"of shape ({K},), one number for each class")
    if sample_weights is not None:
        a = real_array("sample_weights", sample_weights, (N,), f"of shape ({N},), one number for each sample")
        sums = np.bincount(np.searchsorted(present, y), a)
        if np.any(a < 0) or np.any(sums == 0):
            raise ValueError(
                "`sample_weights` must not be negative and must have a positive sum in each class, got "
                f"{a.min():g} as the least weight and {sums.min():g} as the least sum."
            )
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"`rtol` must be in [0, 1), got {rtol}.")
    classes = None
    if len(present) < K:
        y = np.searchsorted(present, y)
        classes = None if W is None else present
    result = collapse_metrics(class_statistics(H, y, len(present), a), W, b, centre=centre, rtol=rtol, classes=classes)
    result = jax.tree.map(lambda leaf: leaf[()], result)  # arrays without axes become numbers
    return absent_left_out(result, present, K)


class FeatureSet(NamedTuple):
    """What `neural_collapse` measures, in the order of its arguments.

    Attributes:
        features: (N, d).
        labels: (N,).
        weights: (K, d), or None.
        bias: (K,), or None.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    bias: np.ndarray | None


def stored_arrays(
    path: str | os.PathLike[str], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray | None]:
    """Return arrays of an .npz file by their keys; None for an optional one that is not there.

    Nothing in the file is ever unpickled, so that a file from elsewhere cannot run code. Other keys are ignored.

    Raises:
        ValueError: There is no such file, it is damaged or no .npz file, a key is missing, or an array holds
            objects.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise ValueError(f"`path` must be an .npz file, got {name!r}, where there is no file.")
    if not zipfile.is_zipfile(name):
        sample = ", ".join(f"{key}=..." for key in required)
        raise ValueError(
            f"`path` must be an .npz file, got {name!r}, which is something else or truncated; write it with "
            f"`numpy.savez(path, {sample})`."
        )
    try:
        with np.load(name, allow_pickle=False) as file:
            found = sorted(file.keys())
            arrays = {key: file[key] if key in found else None for key in required + optional}
    except Exception as error:  # a damaged file can fail in NumPy, in zipfile or in any decompressor
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"`path` must be a readable .npz file, got {name!r}: {reason}") from error
    if any(arrays[key] is None for key in required):
        keys = " and ".join(map(repr, required))
        raise ValueError(f"`path` must have the keys {keys}, got {found} in {name!r}.")
    for key, array in arrays.items():
        if array is not None and not isinstance(array, np.ndarray):
            raise ValueError(f"`path` must hold arrays, got {type(array).__name__} as {key!r} in {name!r}.")
    return arrays


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Return the arrays of an .npz file with the keys features, labels and, optionally, weights and bias.

    Measure with `neural_collapse(*load_features(path))`, which checks what the arrays hold.

    Args:
        path: A file written by `numpy.savez` or `numpy.savez_compressed`. Nothing in it is ever unpickled.

    Returns:
        The arrays, as they were stored.

    Raises:
        ValueError: As `stored_arrays`.
    """
    return FeatureSet(**stored_arrays(path, ("features", "labels"), ("weights", "bias")))  # type: ignore[arg-type]
