"""The numbers of NC1 to NC4, each with its formula and its paper, and their tables."""

import html
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Module, html_table, is_concrete, printed, table_lines
from ufm.geometry import AnyArray, float_arrays, quiet
from ufm.metrics.checked_input import first_missing
from ufm.metrics.pairs import cdnv_of, centred_means

__all__ = [
    "CONVENTIONS",
    "Centre",
    "FrameGeometry",
    "NearestMean",
    "NeuralCollapse",
    "SelfDuality",
    "VariabilityCollapse",
]


Centre = Literal["classes", "samples"]


@printed
class VariabilityCollapse(NamedTuple):
    r"""NC1: samples collapse to the mean of their class.

    Where all class means are equal S_B is zero, and its pseudo-inverse would make total collapse
    look perfect: a ratio to a zero S_B (or to the zero distance of two means) is infinite, or 0
    where the variability is zero as well. The pseudo-inverse leaves out directions in which the
    means do not differ.

    Attributes:
        pinv: tr(S_W S_B^+) / K, as most code has it.
        pinv_per_class: tr(S_k S_B^+) / K with S_k the covariance within class k, (K,). Weighted by
            n_k / N they sum to `pinv`. None where only moments of all classes together are known.
        pinv_unnormalised: tr(S_W S_B^+), as Papyan, Han and Donoho (2020) have it.
        pinv_weighted: tr(S_W S_B^+) / K with S_B weighted by class size, S_B = (1/N) sum_k n_k
            (mu_k - mu_G)(mu_k - mu_G)^T, as in Hong and Ling (2024). The centre is mu_G always.
        trace_ratio: tr S_W / tr S_B.
        cdnv: Class-distance normalised variance, the mean of `cdnv_pairs` over pairs of different
            classes.
        cdnv_per_class: Its mean over the pairs of each class, (K,).
        within_variance: The within-class variances v_k, (K,): the mean over the class of ||h -
            mu_k||^2.
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
        """(v_j + v_k) / (2 ||mu_j - mu_k||^2) with v the within-class variances, (K, K).

        The diagonal is zero. The matrix is formed when it is asked for, in 8 K^2 bytes; `cdnv_rows`
        gives some of its rows.
        """
        if self.pair_means.ndim == 2:
            return self.cdnv_rows(slice(None))
        xp = jnp if isinstance(self.pair_means, jax.Array) else np  # a batch of measurements
        lanes = [
            jax.tree.map(lambda leaf, i=i: leaf[i], self).cdnv_pairs
            for i in range(len(self.pair_means))
        ]
        return xp.stack(lanes)

    @quiet
    def cdnv_rows(self, rows: slice) -> Float[Array, "J K"]:
        """Return some rows of `cdnv_pairs`."""
        xp, M, v, floor = float_arrays(self.pair_means, self.pair_variances, self.pair_floor)
        pairs = cdnv_of(xp, centred_means(xp, M), v, floor, rows)
        same = np.arange(len(v))[rows, None] == np.arange(len(v))[None, :]
        return xp.where(same, 0.0, pairs)


@printed
class FrameGeometry(NamedTuple):
    r"""NC2: K vectors form a simplex equiangular tight frame, or an orthogonal frame.

    Class means are centred, except in the metrics called uncentred or orthogonal. Weights are taken
    as they are everywhere, as in all published code: at a minimiser where they should be centred,
    they are.

    Attributes:
        etf_distance: ||G/||G|| - (I - J/K)/sqrt(K-1)||_F for the Gram matrix G, as in the line of
            Zhu et al. (2021).
        orthogonal_distance: ||G/||G|| - I/sqrt(K)||_F for the uncentred Gram matrix G.
        general_orthogonal_distance: ||G - diag G||_F / ||diag G||_F for the uncentred Gram matrix
            G: an orthogonal frame of any norms.
        norm_variation: Coefficient of variation of the norms, standard deviation over mean, as in
            Papyan, Han and Donoho (2020); the deviation has 1/K under the root (code that calls
            `torch.std` has 1/(K-1), a factor sqrt(K/(K-1)) more).
        equiangularity: Mean over pairs of |cos + 1/(K-1)|, as in Papyan, Han and Donoho (2020). A
            zero vector has cosine 0 with all others.
        norms: Norm of each vector, (K,).
        uncentred_norms: Norm of each vector before centring, (K,): zero for a class whose features
            are all zero.
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
        """Cosines, (K, K); 0 for a zero vector, on the diagonal too.

        The matrix is formed when it is asked for, in 8 K^2 bytes.
        """
        return self.directions @ self.directions.swapaxes(-1, -2)


@printed
class SelfDuality(NamedTuple):
    r"""NC3: the classifier's weights are the class means, up to one scale.

    M has centred means in its rows.

    Attributes:
        product_etf_distance: ||A/||A|| - (I - J/K)/sqrt(K-1)||_F for A = W M^T, as in the line of
            Zhu et al. (2021).
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


@printed
class NearestMean(NamedTuple):
    """NC4: the classifier decides as the nearest class mean does.

    Ties go to the lowest index in both.

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


# The formula of every scalar of `NeuralCollapse.to_dict()`, in the order of its table.
CONVENTIONS = {
    "nc1_pinv": "tr(S_W S_B^+) / K",
    "nc1_pinv_unnormalised": "tr(S_W S_B^+)",
    "nc1_pinv_weighted": "tr(S_W S_B^+) / K, S_B weighted by class size",
    "nc1_trace_ratio": "tr S_W / tr S_B",
    "nc1_cdnv": "mean of (v_j + v_k) / (2 |mu_j - mu_k|^2)",
    "nc2_features_etf_distance": "|G/|G| - (I - J/K)/sqrt(K-1)|, G of centred means",
    "nc2_features_orthogonal_distance": "|G/|G| - I/sqrt(K)|, G of uncentred means",
    "nc2_features_general_orthogonal_distance": "|G - diag G| / |diag G|, G of uncentred means",
    "nc2_features_norm_variation": "std / mean of the norms of centred means",
    "nc2_features_equiangularity": "mean |cos + 1/(K-1)| of centred means",
    "nc2_weights_etf_distance": "|G/|G| - (I - J/K)/sqrt(K-1)|, G = W W^T",
    "nc2_weights_orthogonal_distance": "|G/|G| - I/sqrt(K)|, G = W W^T",
    "nc2_weights_general_orthogonal_distance": "|G - diag G| / |diag G|, G = W W^T",
    "nc2_weights_norm_variation": "std / mean of the norms of W",
    "nc2_weights_equiangularity": "mean |cos + 1/(K-1)| of W",
    "nc3_product_etf_distance": "|A/|A| - (I - J/K)/sqrt(K-1)|, A = W M^T, centred M",
    "nc3_product_orthogonal_distance": "|A/|A| - I/sqrt(K)|, A = W M^T, uncentred M",
    "nc3_squared_distance": "|W/|W| - M/|M||^2, centred M",
    "nc3_squared_distance_uncentred": "|W/|W| - M/|M||^2, uncentred M",
    "nc4_mismatch": "share where classifier and nearest mean differ",
    "nc4_accuracy": "share that the classifier has right",
}
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


@printed
class NeuralCollapse(Module):
    """NC1 to NC4, in groups; prints as a table that names the conventions.

    Attributes:
        class_counts: Class weights n_k, (K,).
        nc1: Variability of samples about their class means.
        nc2_features: Geometry of the class means.
        nc2_weights: Geometry of the classifier's weights; None without weights, as are the two
            below.
        nc3: Alignment of weights and means.
        nc4: Decisions of the classifier and of the nearest mean.
        centre: What means are centred at: "classes" for the mean of class means, "samples" for the
            mean of all samples.
        classes: The labels of the classes that were measured, in their order, (K,); None where they
            are 0, ..., K - 1.
        num_labels: How many classes there are with those that have no samples and were left out;
            None where there are none of these.
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
        return np.delete(
            np.arange(self.num_labels or 0), [] if self.classes is None else self.classes
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the scalars and the values per class as plain Python.

        Names are flat, such as "nc1_pinv". Groups that were not measured are missing, and so are
        the matrices, which stay attributes. Where classes were left out, "classes" has the labels
        of the others, and "num_labels" counts all. An infinite value is `float("inf")`, which
        Python's `json` writes as Infinity.
        """
        flat: dict[str, Any] = {
            "centre": self.centre,
            "class_counts": np.asarray(self.class_counts).tolist(),
        }
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
        samples = f"{sum(flat['class_counts']):g} samples"
        title = f"Neural collapse of {K} classes, {samples}, centred at the {where}"
        missing = flat.get("num_labels", K) - K
        if missing:
            left_out = first_missing(flat["classes"], K + missing)
            title += f"; without {missing} classes that have no samples: {left_out}"
        names = flat.get("classes", range(K))
        summary = [["", "name", "value", "convention"]]
        summary += [
            [key[:3].upper(), key, f"{flat[key]:.4g}", formula]
            for key, formula in CONVENTIONS.items()
            if key in flat
        ]
        columns = [(head, flat[key]) for head, key in _PER_CLASS if key in flat]
        half = _ROWS_SHOWN // 2
        shown = [*range(K)] if K <= _ROWS_SHOWN else [*range(half), None, *range(K - half, K)]
        classes = [["class", *(head for head, _ in columns)]]
        for k in shown:
            classes.append(
                ["..."] * (len(columns) + 1)
                if k is None
                else [str(names[k]), *(f"{c[k]:.4g}" for _, c in columns)]
            )
        return title, summary, classes

    def _is_one_measurement(self) -> bool:
        """Return False for a traced or batched result, which has no table."""
        return is_concrete(self) and np.ndim(self.class_counts) == 1

    def __str__(self) -> str:
        if not self._is_one_measurement():
            return eqx.tree_pformat(self)
        title, summary, classes = self.tables()
        return "\n".join([title, "", *table_lines(summary), "", *table_lines(classes, str.rjust)])

    def _repr_html_(self) -> str:
        if not self._is_one_measurement():
            return f"<pre>{html.escape(str(self))}</pre>"
        title, *tables = self.tables()
        return f"<p>{html.escape(title)}</p>" + "".join(map(html_table, tables))
