r"""From the optimal logits to the optimal factors: the scale of weights and features.

Write M = D^{1/2} (Z - 1 b^T) for the class logits (one class per row) without their bias, D =
diag(n_k), and M = U diag(s) V^T. Among all factorisations of M into L weight matrices and the
features, the penalties are least where all q = L + 1 factors carry the same share of them,

    lambda_l sigma_i(W_l)^2 = lambda_H sigma_i(D^{1/2} H)^2 = Lambda s_i^{2/q},
    Lambda = (lambda_1 ... lambda_L lambda_H)^{1/q},

and adjacent singular spaces agree. So their sum is (q/2) Lambda sum_i s_i^{2/q}, and with F the
features of the last layer

    ||W_l||^2 = (Lambda / lambda_l) sum_i s_i^{2/q},
    sum_i ||h_i||^2 = (Lambda / lambda_H) sum_i s_i^{2/q},
    W_L W_L^T = (Lambda / lambda_L) V diag(s^{2/q}) V^T,
    F F^T = (lambda_L / Lambda) D^{-1/2} U diag(s^{2-2/q}) U^T D^{-1/2}.

With one layer, Lambda = sqrt(lambda_W lambda_H) and the sum is the nuclear norm of M. Any M of rank
at most the smallest width can be factored so.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ufm._support import array_module
from ufm.problems import Problem
from ufm.theory import matrices
from ufm.theory.theorem import Prediction

__all__ = [
    "Frame",
    "Letters",
    "centred_frame",
    "feature_share",
    "float_type",
    "left_open",
    "letters",
    "orthogonal_frame",
    "power",
    "predicted",
    "weight_share",
]


class Letters(NamedTuple):
    """A problem under weight decay in the letters of the formulas.

    One-hot classes are R = K target rows. Feature weights that are a multiple of the counts, om_r =
    rho n_r, are those of the counts with rho lambda_H.

    Attributes:
        xp: The module to compute with, NumPy or JAX's.
        num_classes: K.
        num_rows: R.
        num_layers: L.
        width: The smallest of all widths but K, which is the rank that logits can have.
        counts: n_r, (R,).
        total: N.
        mean_count: n = N / R, which is every n_r of balanced rows.
        weights: lambda_1, ..., lambda_L, (L,).
        features: rho lambda_H, rho the sum of the feature weights over that of the counts.
        bias: lambda_b.
        decay: Lambda.
    """

    xp: Any
    num_classes: int
    num_rows: int
    num_layers: int
    width: int
    counts: Float[Array, " R"]
    total: Float[Array, ""]
    mean_count: Float[Array, ""]
    weights: Float[Array, " L"]
    features: Float[Array, ""]
    bias: Float[Array, ""]
    decay: Float[Array, ""]

    @property
    def num_factors(self) -> int:
        """The number of factors, L + 1."""
        return self.num_layers + 1


class Frame(NamedTuple):
    """The matrices of a minimiser.

    Attributes:
        weight_gram: W_L W_L^T, (K, K).
        feature_gram: F F^T, (R, R); None where R is too large for the matrix.
        logits: The logits of the rows without bias, (R, K).
    """

    weight_gram: Float[Array, "K K"]
    feature_gram: Any
    logits: Float[Array, "R K"]


def letters(problem: Problem) -> Letters:
    """Return the numbers of a problem under weight decay."""
    regularizer = problem.regularizer
    xp = array_module(problem)
    dtype = float_type(xp)
    counts = xp.asarray(problem.row_counts, dtype)
    decays = xp.asarray(regularizer.decays(problem.num_layers), dtype)
    total = xp.sum(counts)
    features = decays[-1] * (xp.sum(xp.asarray(problem.row_weights, dtype)) / total)
    return Letters(
        xp=xp,
        num_classes=problem.num_classes,
        num_rows=problem.num_rows,
        num_layers=problem.num_layers,
        width=min(problem.layer_dims[:-1]),
        counts=counts,
        total=total,
        mean_count=total / problem.num_rows,
        weights=decays[:-1],
        features=features,
        bias=xp.asarray(regularizer.bias_penalty, dtype),
        decay=xp.prod(xp.append(decays[:-1], features) ** (1 / (problem.num_layers + 1))),
    )


def float_type(xp: Any) -> Any:
    """Return the type of formulas: float64 in NumPy, the process's precision in JAX."""
    return np.float64 if xp is np else jnp.result_type(float)


def power(numbers: Letters, base: Array, exponent: float) -> Array:
    """Return base^exponent for base >= 0 and exponent > 0; its gradient is zero at base zero."""
    xp = numbers.xp
    positive = base > 0
    return xp.where(positive, xp.where(positive, base, 1) ** exponent, 0)


def weight_share(numbers: Letters, values: Array) -> Array:
    """Return sigma_i(W_L)^2 = (Lambda / lambda_L) s_i^{2/q}."""
    return numbers.decay / numbers.weights[-1] * power(numbers, values, 2 / numbers.num_factors)


def feature_share(numbers: Letters, values: Array) -> Array:
    """Return sigma_i(D^{1/2} F)^2 = (lambda_L / Lambda) s_i^{2 - 2/q}."""
    return numbers.weights[-1] / numbers.decay * power(numbers, values, 2 - 2 / numbers.num_factors)


def orthogonal_frame(numbers: Letters, values: Float[Array, " K"]) -> Frame:
    """Return the frame of M = diag(s): orthogonal classes, the k-th with the singular value s_k."""
    xp = numbers.xp
    return Frame(
        matrices.diagonal_matrix(xp, weight_share(numbers, values)),
        matrices.diagonal_matrix(xp, feature_share(numbers, values) / numbers.counts),
        matrices.diagonal_matrix(xp, values / xp.sqrt(numbers.counts)),
    )


def centred_frame(numbers: Letters, value: Float[Array, ""], mean_value: Any = 0.0) -> Frame:
    """Return the balanced frame of M = s (I - J/K) + s_1 J/K, s = `value`, s_1 = `mean_value`.

    A simplex ETF for s_1 = 0, an orthogonal frame for s_1 = s.
    """
    xp, K, n = numbers.xp, numbers.num_classes, numbers.mean_count
    mean_value = xp.ones_like(value) * mean_value
    mean = matrices.mean_matrix(xp, K, n.dtype)
    centring = matrices.identity_matrix(xp, K, n.dtype) - mean

    def spectral(share: Array, mean_share: Array) -> Array:
        return share * centring + mean_share * mean

    return Frame(
        spectral(weight_share(numbers, value), weight_share(numbers, mean_value)),
        spectral(feature_share(numbers, value) / n, feature_share(numbers, mean_value) / n),
        spectral(value / xp.sqrt(n), mean_value / xp.sqrt(n)),
    )


def left_open(numbers: Letters, frame: Frame, determined: bool | Bool[Array, ""]) -> Frame:
    """Return `frame`, or NaN throughout where it is not `determined`."""

    def known(matrix: Any) -> Any:
        return None if matrix is None else matrices.where(numbers.xp, determined, matrix)

    return Frame(*map(known, frame))


def predicted(
    theorem: str,
    numbers: Letters,
    *,
    objective: Float[Array, ""],
    values: Float[Array, " r"],
    frame: Frame,
    bias: Float[Array, " K"] | None,
    constants: dict[str, Float[Array, ""]],
) -> Prediction:
    """Return the prediction of a frame with the given singular values, in any order."""
    xp = numbers.xp
    shares = numbers.decay / xp.append(numbers.weights, numbers.features)
    return Prediction(
        theorem=theorem,
        objective=objective,
        logits=frame.logits if bias is None else matrices.shifted(xp, frame.logits, bias),
        weight_gram=frame.weight_gram,
        feature_gram=frame.feature_gram,
        bias=bias,
        layer_norms=shares * xp.sum(power(numbers, values, 2 / numbers.num_factors)),
        singular_values=xp.sort(values)[::-1],
        rank=xp.sum(values > 0, dtype=np.int32),
        collapsed=xp.all(values == 0),
        constants=constants,
    )
