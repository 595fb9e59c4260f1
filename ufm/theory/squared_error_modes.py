r"""Squared error, mode by mode: which singular values of the targets survive weight decay.

Linear layers see the targets only through a matrix T = U diag(sigma) V^T with rows weighted by
sqrt(n_k), and the fit is ||M - T||^2 / (2N). Both the fit (von Neumann's trace inequality) and the
penalty (factors.py) are least where M has the singular vectors of T, and there they separate: a
mode keeps the share y = 1 - e of its sigma that minimises

    (sigma^2 / 2N) [ (1 - y)^2 + q beta y^{2/q} ],
    beta = N Lambda sigma^{-2L/(L+1)},    q = L + 1,

so e is the smallest root of  e (1 - e)^{(L-1)/(L+1)} = beta  where beta < (1/L)
((L-1)/L)^{(L-1)/(L+1)}, and y = 0 from there on. At the threshold both are optimal and y jumps from
(L-1)/L to zero; with one layer e = beta, and there is no jump. A width below the number of modes
keeps those with the largest sigma.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ufm.problems import Problem, fits_dense
from ufm.theory.optimal_factors import (
    Frame,
    Letters,
    centred_frame,
    feature_share,
    left_open,
    letters,
    orthogonal_frame,
    power,
    predicted,
    weight_share,
)
from ufm.theory.roots import root
from ufm.theory.theorem import Prediction

__all__ = [
    "Modes",
    "Spectrum",
    "deviations_frame",
    "free_bias_prediction",
    "modes",
    "no_bias_prediction",
    "over_power",
    "penalised_bias_prediction",
    "shrinkage",
    "smallest_square",
    "spectrum",
    "threshold",
]

TIED = 1e-9  # relative difference below which two squared singular values count as equal


class Modes(NamedTuple):
    """The modes of the minimiser.

    Attributes:
        values: The singular value of every mode in the optimal logits, (r,).
        costs: The part of every mode in the objective, (r,).
        determined: False if the cut in rank falls among equal modes, so that any of them may be
            kept, ().
    """

    values: Float[Array, " r"]
    costs: Float[Array, " r"]
    determined: bool | Bool[Array, ""]


def threshold(num_layers: int) -> float:
    """Return the beta from which a mode vanishes."""
    L = num_layers
    return ((L - 1) / L) ** ((L - 1) / (L + 1)) / L


def smallest_square(numbers: Letters) -> Float[Array, ""]:
    """Return the sigma^2 that a mode must exceed to survive: (N Lambda / threshold)^{(L+1)/L}."""
    L = numbers.num_layers
    return (numbers.total * numbers.decay / threshold(L)) ** ((L + 1) / L)


def shrinkage(beta: Array, num_layers: int) -> Array:
    """Return e, the smaller root of e (1 - e)^{(L-1)/(L+1)} = beta, elementwise.

    The left-hand side rises from e = 0 to e = (L+1) / (2L), where it is `spinodal(L)`.

    Args:
        beta: At least 0 and at most `spinodal(num_layers)`.
        num_layers: L.
    """
    exponent = (num_layers - 1) / (num_layers + 1)
    top = 0 * beta + (num_layers + 1) / (2 * num_layers)
    return root(lambda e, beta: e * (1 - e) ** exponent - beta, beta, top, beta)


def modes(numbers: Letters, squares: Float[Array, " r"], rank: int) -> Modes:
    """Return the optimal modes for sigma^2 = `squares`; at most `rank` of them may be kept."""
    xp, L, q = numbers.xp, numbers.num_layers, numbers.num_factors
    kept = xp.argsort(xp.argsort(-squares)) < rank
    usable = kept & (squares > 0)
    beta = numbers.total * numbers.decay / xp.where(usable, squares, 1) ** (L / (L + 1))
    alive = usable & (beta < threshold(L))
    e = xp.where(alive, shrinkage(xp.where(alive, beta, 0), L), 1)
    determined: bool | Bool[Array, ""] = True
    if rank < squares.shape[0]:
        descending = xp.sort(squares)[::-1]
        tied = descending[rank - 1] - descending[rank] <= TIED * descending[rank - 1]
        determined = ~(tied & (xp.sum(alive, dtype=np.int32) == rank))
    return Modes(
        values=power(numbers, squares, 0.5) * (1 - e),
        costs=squares / (2 * numbers.total) * e * (1 + (q - 1) * (1 - e)),
        determined=determined,
    )


class Spectrum(NamedTuple):
    """A symmetric matrix by its eigenvalues.

    Its functions have the right first derivatives, also at ties.

    Attributes:
        eigenvalues: Ascending, (K,).
        vectors: Orthonormal columns, constant, (K, K).
        change: Zero, with the derivative of the matrix in the basis of the vectors, (K, K); None if
            nothing is traced.
    """

    eigenvalues: Float[Array, " K"]
    vectors: Float[Array, "K K"]
    change: Float[Array, "K K"] | None

    def function(self, f: Callable[[Array], Array]) -> Float[Array, "K K"]:
        """Return f of the matrix, f applied to each eigenvalue.

        Between two eigenvectors the derivative is the divided difference of f at their eigenvalues
        (Daleckii and Krein).
        """
        x = self.eigenvalues
        if self.change is None:
            return (self.vectors * f(x)[None, :]) @ self.vectors.T
        values, slopes = jax.jvp(f, (x,), (jnp.ones_like(x),))
        gaps = x[:, None] - x[None, :]
        close = jnp.abs(gaps) <= 1e-7 * jnp.maximum(jnp.abs(x)[:, None], jnp.abs(x)[None, :])
        differences = (values[:, None] - values[None, :]) / jnp.where(close, 1, gaps)
        differences = jnp.where(close, 0.5 * (slopes[:, None] + slopes[None, :]), differences)
        between = jax.lax.stop_gradient(differences) * (
            self.change - jnp.diag(jnp.diag(self.change))
        )
        return self.vectors @ (jnp.diag(values) + between) @ self.vectors.T


def spectrum(matrix: Float[Array, "K K"]) -> Spectrum:
    """Return the spectrum of a symmetric matrix."""
    if not isinstance(matrix, jax.Array):
        return Spectrum(*np.linalg.eigh(matrix), None)
    constant = jax.lax.stop_gradient(matrix)
    eigenvalues, vectors = jnp.linalg.eigh(constant)
    change = vectors.T @ (matrix - constant) @ vectors
    return Spectrum(eigenvalues + jnp.diag(change), vectors, change)


def deviations_frame(
    numbers: Letters,
    deviations: Float[Array, "R K"],
    outputs: Spectrum,
    values: Callable[[Array], Array],
) -> Frame:
    r"""Return the frame that is left of target rows E, less what a bias takes of them.

    With T = D^{1/2} E and C = T^T T, modes with singular values s(x) at the eigenvalue x = sigma^2
    of C give

        Z - 1 b^T = E g(C),  g = s / sqrt(x),     W_L W_L^T = (Lambda / lambda_L) s^{2/q}(C),
        F F^T = (lambda_L / Lambda) E (s^{2-2/q} / x)(C) E^T.

    Args:
        numbers: The problem.
        deviations: E.
        outputs: The spectrum of C.
        values: s, as a function of all eigenvalues.
    """
    features = outputs.function(
        lambda x: over_power(numbers, feature_share(numbers, values(x)), x, 1.0)
    )
    return Frame(
        outputs.function(lambda x: weight_share(numbers, values(x))),
        deviations @ features @ deviations.T if fits_dense(deviations.shape[0]) else None,
        deviations @ outputs.function(lambda x: over_power(numbers, values(x), x, 0.5)),
    )


def over_power(numbers: Letters, numerator: Array, x: Array, exponent: float) -> Array:
    """Return numerator / x^exponent, zero where the numerator is zero."""
    alive = numerator > 0
    return numbers.xp.where(alive, numerator / numbers.xp.where(alive, x, 1) ** exponent, 0)


def no_bias_prediction(name: str, problem: Problem) -> Prediction:
    r"""Return the prediction without a bias: modes are the classes, sigma_k = sqrt(n_k).

    M = diag(s), so that with the share y_k that class k keeps

        z_kk = y_k,    W_L W_L^T = (Lambda / lambda_L) diag(s_k^{2/q}),
        F F^T = (lambda_L / Lambda) diag(s_k^{2-2/q} / n_k),

    s_k = sqrt(n_k) y_k; for one layer ||w_k||^2 = (sqrt(n_k lambda_H / lambda_W) - N lambda_H)_+.
    The objective is the sum of the modes' costs. The constant `smallest_count` is the class count
    up to which a class vanishes. The frame can be turned into the non-negative orthant, so the
    constraint h >= 0 changes nothing.
    """
    numbers = letters(problem)
    classes = modes(numbers, numbers.counts, min(numbers.width, numbers.num_classes))
    return predicted(
        name,
        numbers,
        objective=numbers.xp.sum(classes.costs),
        values=classes.values,
        frame=left_open(numbers, orthogonal_frame(numbers, classes.values), classes.determined),
        bias=None,
        constants={"smallest_count": smallest_square(numbers)},
    )


def free_bias_prediction(name: str, problem: Problem) -> Prediction:
    r"""Return the prediction with a free bias, b = n / N: modes of the targets less b.

    The rows less b are E = I - 1 b^T (see `deviations_frame`), and C = D - n n^T / N, whose null
    vector 1 is not one of them: rank K - 1. The constant `smallest_mode` is the eigenvalue of C up
    to which a mode vanishes.
    """
    numbers = letters(problem)
    rank = min(numbers.width, numbers.num_classes - 1)
    n = numbers.counts
    bias = n / numbers.total
    deviations = numbers.xp.eye(numbers.num_classes, dtype=n.dtype) - bias[None, :]
    targets = spectrum(numbers.xp.diag(n) - n[:, None] * bias[None, :])

    def values(squares: Array) -> Array:
        return modes(numbers, squares, rank).values

    kept = modes(numbers, targets.eigenvalues, rank)
    return predicted(
        name,
        numbers,
        objective=numbers.xp.sum(kept.costs),
        values=kept.values,
        frame=left_open(
            numbers, deviations_frame(numbers, deviations, targets, values), kept.determined
        ),
        bias=bias,
        constants={"smallest_mode": smallest_square(numbers)},
    )


def penalised_bias_prediction(name: str, problem: Problem) -> Prediction:
    r"""Return the prediction with a penalised bias, for balanced classes.

    The common mode 1 counts less than the others.

    With the best bias put in, b = (mean target - mean logit) / (1 + lambda_b), and theta = lambda_b
    / (1 + lambda_b), the fit is ||A (M - sqrt(n) I)||^2 / (2N), where A multiplies the mode 1 by
    sqrt(theta). In X = A M, von Neumann pairs the singular values of X with those of sqrt(n) A, and
    Gel'fand and Naimark bound those of A^{-1} X from below,

        sum_i s_i(A^{-1} X)^{2/q} >= sum_i (x_i / a_i)^{2/q},

    a_i and x_i both in descending order. Both bounds pair the mode 1 with the least x_i, and both
    are attained where X has the vectors of A: modes separate, the K - 1 others as without a bias.
    The mode 1 keeps the y that minimises

        theta (n / 2N) [ (1 - y)^2 + q (beta / theta) y^{2/q} ],

    never more than the others, and is the first to go where a width is below K.
    """
    numbers = letters(problem)
    xp, K, L = numbers.xp, numbers.num_classes, numbers.num_layers
    theta = numbers.bias / (1 + numbers.bias)
    # A count of n theta^{(L+1)/L} has beta / theta.
    less = theta ** ((L + 1) / L)
    squares = numbers.mean_count * xp.append(xp.ones_like(numbers.counts)[:-1], less)
    rank = min(numbers.width, K)
    kept = modes(numbers, squares, rank)
    shares = xp.where(squares > 0, kept.values / xp.sqrt(xp.where(squares > 0, squares, 1)), 0)
    values = xp.sqrt(numbers.mean_count) * shares
    rest = 1 - shares[-1]
    common = theta * numbers.mean_count * rest * (1 + L * shares[-1]) / (2 * numbers.total)
    return predicted(
        name,
        numbers,
        objective=xp.sum(kept.costs[:-1]) + common,
        values=values,
        frame=left_open(
            numbers, centred_frame(numbers, xp.max(values[:-1]), values[-1]), kept.determined
        ),
        bias=xp.full((K,), 1 / K, theta.dtype) * rest / (1 + numbers.bias),
        constants={"theta": theta, "smallest_count": smallest_square(numbers)},
    )
