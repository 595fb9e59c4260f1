r"""`layerwise`: neural collapse at every layer of a deep model, from the features to the logits.

Rows are what a layer puts out: the features, after every hidden layer what comes before and after a
ReLU (with linear layers these are one), and the logits without their bias. At each of them NC1 and
NC2 are those of `ufm.metrics`, and ranks are of the uncentred class means. Where a weight matrix W
multiplies the row's vectors:

NC3. With M the class means in rows, W^T W and M^T M are both (d, d) for any number of units. Their
cosine tr(W^T W M^T M) / (||W^T W|| ||M^T M||) is one exactly where they are proportional. For
the last layer NC3 and NC4 of `ufm.metrics` are there too.

Adjacent layers. W_{l+1} reads with its right singular vectors what W_l writes with its left ones.
The cosine of W_{l+1}^T W_{l+1} and W_l W_l^T weighs the vectors by their singular values; the
principal angles between the spans of the K leading ones (fewer where a rank is lower) do not. For
the first layer the features take the place of W_l.

Balance. At every stationary point of weight decay, lambda_{l+1} W_{l+1}^T W_{l+1} = lambda_l W_l
W_l^T between linear layers; for the first layer the right-hand side is lambda_H sum_i h_i h_i^T.
Across a ReLU, and for features h >= 0, only the scale of every single unit is free: the equation
holds on the diagonal. Under norm balls the multipliers are not known: both sides are taken relative
to their traces, and samples count by the reciprocal of their class's size, as they do in the ball.

References: Rangamani et al. (ICML 2023) and Sukenik, Mondelli and Lampert (NeurIPS 2023) for
collapse at intermediate layers; the cosine of NC3 for any number of units is a choice made here.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm import geometry
from ufm._support import (
    as_dict,
    by_name,
    check_finite,
    on_host,
    printed,
    table_lines,
)
from ufm.metrics.class_statistics import class_statistics
from ufm.metrics.definitions import NeuralCollapse
from ufm.metrics.neural_collapse import neural_collapse
from ufm.problems import Parameters, Problem, checked_parameters, labels

__all__ = ["Layer", "Layerwise", "Weights", "layerwise"]

RANK_TOLERANCE = 1e-9  # singular values up to this share of the largest count as zero


@printed
class Weights(NamedTuple):
    """The matrix W that multiplies the vectors of a layer.

    M has the class means in rows. V is the matrix before W; for the first layer it has the features
    in columns.

    Attributes:
        rank: Number of singular values above 1e-9 of the largest.
        stable_rank: ||W||_F^2 / ||W||_2^2.
        norm: ||W||_F.
        alignment: NC3, the cosine between W^T W and M^T M; NaN for zero matrices.
        alignment_centred: The same with centred means.
        adjacent_alignment: The cosine between W^T W and V V^T; NaN for zero matrices.
        adjacent_cosines: Cosines of the principal angles between the K leading right singular
            vectors of W and left ones of V, descending. There are fewer where a rank is below K.
        balance: Norm of the difference of both sides of the balance, over the larger norm; zero
            where both vanish.
        balanced_by: "matrix" where the whole equation holds at critical points; "units" where only
            its diagonal does, and is compared.
    """

    rank: int
    stable_rank: float
    norm: float
    alignment: float
    alignment_centred: float
    adjacent_alignment: float
    adjacent_cosines: Float[np.ndarray, " r"]
    balance: float
    balanced_by: Literal["matrix", "units"]


@printed
class Layer(NamedTuple):
    """The vectors that a layer puts out, one row of the table.

    Attributes:
        name: Such as "features", "layer 2 before ReLU", "layer 2", "logits".
        dimension: Of the vectors.
        collapse: NC1 and NC2; before the last layer's weights NC3 and NC4 too. NC1 is zero at class
            resolution.
        rank: Rank of the uncentred class means, (K, d); singular values up to 1e-9 of the largest
            count as zero.
        stable_rank: Stable rank of the uncentred class means.
        weights: What multiplies the vectors; None before a ReLU and for the logits.
    """

    name: str
    dimension: int
    collapse: NeuralCollapse
    rank: int
    stable_rank: float
    weights: Weights | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; those of the weights under names `weights_...`."""
        scalars = {
            "name": self.name,
            "dimension": self.dimension,
            "rank": self.rank,
            "stable_rank": self.stable_rank,
        }
        after = {} if self.weights is None else as_dict(self.weights)
        weights = {f"weights_{name}": value for name, value in after.items()}
        return scalars | self.collapse.to_dict() | weights


@printed
class Layerwise(NamedTuple):
    """Neural collapse at every layer; prints as a table."""

    layers: tuple[Layer, ...]

    def __getitem__(self, layer: Any) -> Any:
        """Return a layer by its name (or the field by its index, as tuples do)."""
        return by_name(self, "layer", layer, {found.name: found for found in self.layers})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return {"layers": [layer.to_dict() for layer in self.layers]}

    def __str__(self) -> str:
        head = [
            "layer",
            "dim",
            "rank",
            "stable",
            "NC1",
            "norms",
            "to ETF",
            "to frame",
            "| W rank",
            "stable",
            "NC3",
        ]
        head += ["adjacent", "balance"]
        rows = [head, *(_cells(layer) for layer in self.layers)]
        width = max(len(name) for name, *_ in rows)
        lines = table_lines([[name.ljust(width), *rest] for name, *rest in rows], str.rjust)
        by_units = any(
            layer.weights is not None and layer.weights.balanced_by == "units"
            for layer in self.layers
        )
        note = ["balance with *: of single units, across a ReLU"] if by_units else []
        return "\n".join([*lines, *note])


def _cells(layer: Layer) -> list[str]:
    nc2, W = layer.collapse.nc2_features, layer.weights
    cells = [layer.name, f"{layer.dimension}", f"{layer.rank}", f"{layer.stable_rank:.3g}"]
    measures = (
        layer.collapse.nc1.pinv,
        nc2.norm_variation,
        nc2.etf_distance,
        nc2.orthogonal_distance,
    )
    cells += [f"{float(value):.2g}" for value in measures]
    if W is None:
        return cells + ["|"] + [""] * 4
    mark = "*" if W.balanced_by == "units" else ""
    after = [
        f"{W.stable_rank:.3g}",
        f"{W.alignment:.4g}",
        f"{W.adjacent_alignment:.4g}",
        f"{W.balance:.1e}{mark}",
    ]
    return [*cells, f"| {W.rank}", *after]


@on_host
def layerwise(problem: Problem, parameters: Any) -> Layerwise:
    """Measure neural collapse at every layer of a model.

    Args:
        problem: A problem of any depth.
        parameters: Anything with `weights`, `features` and `bias`, such as a `Solution` or
            `Parameters`. Features are (K, d), one row per class, or (N, d), one row per sample in
            the order of the classes: only these have within-class variability.

    Returns:
        One `Layer` for every vector on the way from the features to the logits.

    Raises:
        ValueError: If the shapes are not the problem's, or numbers are not finite.
    """
    K = problem.num_classes
    found = checked_parameters(problem, parameters, "parameters", (K, float(problem.num_samples)))
    check_finite(
        "parameters", (found.weights, found.features), "leave out points that did not converge"
    )
    by_class = found.features.shape[0] == K
    y = np.arange(K) if by_class else labels(problem.class_counts)
    samples = np.asarray(problem.class_counts, np.float64) if by_class else np.ones(y.size)
    relu = problem.activation == "relu"
    rows, layers = np.asarray(found.features), []
    for index, matrix in enumerate(map(np.asarray, found.weights)):
        weights = _weights(problem, found, index, rows, y, samples)
        last = index == problem.num_layers - 1
        name = f"layer {index}" if index else "features"
        layers.append(
            _layer(name, rows, y, samples, weights, (matrix, found.bias) if last else (None, None))
        )
        rows = rows @ matrix.T
        if relu and not last:
            layers.append(
                _layer(f"layer {index + 1} before ReLU", rows, y, samples, None, (None, None))
            )
            rows = np.maximum(rows, 0)
    return Layerwise((*layers, _layer("logits", rows, y, samples, None, (None, None))))


def _layer(
    name: str, rows: Any, y: Any, samples: Any, weights: Weights | None, classifier: tuple[Any, Any]
) -> Layer:
    means = _means(rows, y, samples)
    return Layer(
        name=name,
        dimension=rows.shape[1],
        collapse=neural_collapse(rows, y, *classifier, sample_weights=samples),
        rank=int(geometry.numerical_rank(means, RANK_TOLERANCE)),
        stable_rank=float(geometry.stable_rank(means)),
        weights=weights,
    )


def _means(rows: Any, y: Any, samples: Any) -> Any:
    return class_statistics(rows, y, int(y.max()) + 1, samples).means


def _weights(
    problem: Problem, found: Parameters, index: int, rows: Any, y: Any, samples: Any
) -> Weights:
    W = np.asarray(found.weights[index])
    read = W.T @ W
    # What is written, as columns: the sum over rows of h h^T, in the weights of the regularizer,
    # for the features, and W_l W_l^T after them.
    counts = np.bincount(y, samples)
    by_class = np.asarray(problem.row_weights)[y] * samples / counts[y]
    before = (
        (np.sqrt(by_class)[:, None] * rows).T
        if index == 0
        else np.asarray(found.weights[index - 1])
    )
    written = before @ before.T
    units = not problem.feature_cone.rotates if index == 0 else problem.activation == "relu"
    if problem.regularizer.halves_squares:
        decays = np.roll(problem.regularizer.decays(problem.num_layers), 1)  # features first
        left, right = decays[index + 1] * read, decays[index] * written
    else:
        left, right = (side / max(np.trace(side), np.finfo(float).tiny) for side in (read, written))
    if units:
        left, right = np.diagonal(left), np.diagonal(right)
    larger = max(np.linalg.norm(left), np.linalg.norm(right))
    means = _means(rows, y, samples)
    return Weights(
        rank=int(geometry.numerical_rank(W, RANK_TOLERANCE)),
        stable_rank=float(geometry.stable_rank(W)),
        norm=float(np.linalg.norm(W)),
        alignment=_cosine(read, means.T @ means),
        alignment_centred=_cosine(read, (centred := means - means.mean(axis=0)).T @ centred),
        adjacent_alignment=_cosine(read, written),
        adjacent_cosines=_principal_cosines(W.T, before, problem.num_classes),
        balance=float(np.linalg.norm(left - right) / larger) if larger > 0 else 0.0,
        balanced_by="units" if units else "matrix",
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / lengths) if lengths > 0 else np.nan


def _principal_cosines(a: np.ndarray, b: np.ndarray, most: int) -> np.ndarray:
    """Return the cosines of the principal angles between two ranges, descending.

    The ranges are spanned by at most `most` leading left singular vectors.
    """
    spans = []
    for matrix in (a, b):
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        spans.append(left[:, values > RANK_TOLERANCE * values[0]][:, :most])
    if not all(span.shape[1] for span in spans):
        return np.zeros(0)
    return np.linalg.svd(spans[0].T @ spans[1], compute_uv=False)
