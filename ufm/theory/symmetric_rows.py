r"""Cross-entropy with symmetric target rows: one scalar equation for a simplex ETF.

    (1/N) sum_r n_r [ s_r logsumexp(z_r) - <y_r, z_r> ] + (lambda_W/2) ||W||^2 + (lambda_H/2) sum_r
    om_r ||h_r||^2 (+ (lambda_b/2) ||b||^2),    s_r = 1^T y_r >= 0 the mass of a row.

With tau = sqrt(lambda_W lambda_H) the penalty of Z is tau ||Om^{1/2} Z||_*. Logits are optimal
where n_r (y_r - s_r softmax(z_r)) / N = tau om_r^{1/2} Lambda_r, Lambda the polar factor of
Om^{1/2} Z. Suppose that sum_r om_r z_r z_r^T = kappa^2 P, P = I - J/K. Then Lambda_r = om_r^{1/2}
z_r / kappa, and every row solves a problem of its own,

    y_r - s_r softmax(z_r) = mu (om_r / n_r) z_r,    mu = N tau / kappa,

where mu is the root of  mu^2 sum_r om_r ||z_r||^2 = (K - 1) (N tau)^2. The left-hand side rises
with mu. So mu is found without the assumption, which is then checked at the logits: that the second
moments are those of a simplex ETF is what proves them optimal. Symmetry of the targets under all
permutations of labels, or under a group that takes any pair of labels to any other, suffices.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from ufm._support import array_module
from ufm.problems import Problem, fits_dense
from ufm.theory.optimal_factors import float_type
from ufm.theory.roots import root
from ufm.theory.theorem import Prediction

__all__ = [
    "SymmetricRows",
    "etf_moments",
    "etf_rows_prediction",
    "nonuniformity",
    "soft_row_logits",
    "symmetric_rows",
    "wright_omega",
]

OMEGA_STEPS = 4  # of order four, from within a third


def wright_omega(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the w > 0 with w + log w = t, elementwise.

    Reference: Lawrence, Corless, Jeffrey (ACM TOMS 38:3, 2012), whose iteration this is.
    """
    xp = array_module(t)
    t = xp.maximum(t, 0.9 * xp.log(xp.finfo(t.dtype).tiny))  # so that w does not underflow
    small = xp.exp(xp.minimum(t, 1))
    large = xp.maximum(t, 1)
    w = xp.where(t < 1, small / (1 + small), large - xp.log(large) * (large / (1 + large)))
    for _ in range(OMEGA_STEPS):
        r = t - w - xp.log(w)
        common = (1 + w) * (1 + w + 2 * r / 3)
        w = w * (1 + r / (1 + w) * (common - r / 2) / (common - r))
    return w


def soft_row_logits(
    targets: Float[Array, "R K"], masses: Float[Array, " R"], curvatures: Float[Array, " R"]
) -> Float[Array, "R K"]:
    r"""Return z_r = argmin s_r logsumexp(z) - <y_r, z> + (m_r/2) ||z||^2, row by row.

    Stationary: s_r softmax(z) + m_r z = y_r. With L = logsumexp(z), every entry has z_c + (s/m)
    e^{z_c - L} = y_c / m, so (s/m) e^{z_c - L} is the omega function of log(s/m) + y_c/m - L, and L
    is where these sum to s/m. It lies in log K + [0, max y / m], as the mean of z is zero.

    Args:
        targets: y >= 0.
        masses: s, the sums of the rows; a row of mass zero has logits of zero.
        curvatures: m > 0.
    """
    xp = array_module((targets, masses, curvatures))
    K = targets.shape[1]
    some = masses > 0
    mass = xp.where(some, masses, 1)
    ratio = mass / curvatures
    scaled = targets / curvatures[:, None]

    def excess(level: Any, parameters: Any) -> Any:
        scaled, ratio = parameters
        terms = wright_omega(xp.log(ratio)[:, None] + scaled - level[:, None])
        return xp.sum(terms, axis=1) / ratio - 1

    low = xp.log(xp.asarray(float(K), scaled.dtype)) + 0 * ratio
    # Wide enough for the sign to be beyond rounding at both ends.
    level = root(excess, low - 0.1, low + xp.max(scaled, axis=1) + 0.1, (scaled, ratio))
    omega = wright_omega(xp.log(ratio)[:, None] + scaled - level[:, None])
    # Two forms of the same: of small logits and of large ones.
    near, far = scaled - omega, level[:, None] - xp.log(ratio)[:, None] + xp.log(omega)
    logits = xp.where(ratio[:, None] < 1, near, far)
    # Rounding moves a row along the ones, where the curvature alone holds it.
    logits = logits - xp.mean(logits, axis=1, keepdims=True)
    return xp.where(some[:, None], logits, 0)


class SymmetricRows(NamedTuple):
    """The logits of the rows, if they are those of a simplex ETF.

    Attributes:
        logits: z_r, (R, K).
        slopes: y_r - s_r softmax(z_r), (R, K).
        kappa: The singular value of Om^{1/2} Z, (); zero where all is zero.
        collapse_ratio: N tau over what the collapse to zero needs, ().
        objective: The minimum, ().
    """

    logits: Float[Array, "R K"]
    slopes: Float[Array, "R K"]
    kappa: Float[Array, ""]
    collapse_ratio: Float[Array, ""]
    objective: Float[Array, ""]


def symmetric_rows(problem: Problem) -> SymmetricRows:
    """Return the solution of the scalar equation for a problem with cross-entropy and one layer."""
    xp = array_module(problem)
    dtype = float_type(xp)
    K = problem.num_outputs
    targets = problem.target_rows(dtype, xp)
    counts, weights = (
        xp.asarray(values, dtype) for values in (problem.row_counts, problem.row_weights)
    )
    total, masses = xp.sum(counts), xp.sum(targets, axis=1)
    tau = xp.sqrt(xp.prod(xp.asarray(problem.regularizer.decays(1), dtype)))
    level = total * tau * xp.sqrt(xp.asarray(K - 1.0, dtype))  # of the norm of all slopes

    def rows_at(log_mu: Any, parameters: Any) -> Any:
        targets, masses, ratios = parameters[:3]
        return soft_row_logits(targets, masses, xp.exp(log_mu) * ratios)

    def excess(log_mu: Any, parameters: Any) -> Any:
        weights, level = parameters[3:]
        squares = xp.sum(weights * xp.sum(rows_at(log_mu, parameters) ** 2, axis=1))
        return log_mu + 0.5 * xp.log(squares + xp.finfo(dtype).tiny) - xp.log(level)

    at_zero = targets - masses[:, None] / K
    largest = xp.sqrt(xp.sum(counts**2 / weights * xp.sum(at_zero**2, axis=1)))
    collapse_ratio = level / xp.where(largest > 0, largest, 1)
    alive = (collapse_ratio < 1) & (largest > 0)
    # The penalty is at most the loss of zero logits, which bounds kappa.
    loss_at_zero = counts @ masses / total * xp.log(xp.asarray(float(K), dtype))
    low = xp.log(total * tau**2 * (K - 1) / xp.where(loss_at_zero > 0, loss_at_zero, 1))
    high = xp.log(xp.max(masses * counts / weights) + 1) + 40 + 0 * low
    safe_level = xp.where(alive, level, 0.5 * xp.where(largest > 0, largest, 1))
    parameters = (targets, masses, weights / counts, weights, safe_level)
    log_mu = root(excess, xp.minimum(low, high - 1), high, parameters)
    logits = xp.where(alive, rows_at(log_mu, parameters), 0)
    kappa = xp.where(alive, total * tau * xp.exp(-log_mu), 0)
    highest = xp.max(logits, axis=1, keepdims=True)
    odds = xp.exp(logits - highest)
    sums = xp.sum(odds, axis=1)
    losses = masses * (highest[:, 0] + xp.log(sums)) - xp.sum(targets * logits, axis=1)
    return SymmetricRows(
        logits,
        targets - masses[:, None] * odds / sums[:, None],
        kappa,
        collapse_ratio,
        counts @ losses / total + tau * (K - 1) * kappa,
    )


def nonuniformity(vectors: Float[Array, "R K"], weights: Float[Array, " R"]) -> Float[Array, ""]:
    """Return how far sum_r weights_r v_r v_r^T is from a multiple of P, relative to its norm."""
    xp = array_module((vectors, weights))
    K = vectors.shape[1]
    moments = (vectors * weights[:, None]).T @ vectors
    level = xp.trace(moments) / (K - 1)
    projection = xp.eye(K, dtype=moments.dtype) - 1 / K
    size = xp.sqrt(xp.sum(moments**2))
    return xp.sqrt(xp.sum((moments - level * projection) ** 2)) / xp.where(size > 0, size, 1)


def etf_moments(problem: Problem, slopes: Float[Array, "R K"]) -> Float[Array, ""]:
    """Return how far row slopes are from those of a simplex ETF: zero proves the logits optimal.

    The slopes of the loss have second moments that are multiples of P, with the weights n_r^2 /
    om_r of the dual; so have the logits with the weights n_r, of which singular values are made.
    With a bias, also how far the mean slope is from zero, in which the bias is zero.
    """
    xp = array_module((problem, slopes))
    counts, weights = (xp.asarray(v) for v in (problem.row_counts, problem.row_weights))
    errors = [
        nonuniformity(slopes, counts**2 / weights),
        nonuniformity(slopes, counts**3 / weights**2),
    ]
    if problem.use_bias:
        size = xp.sum(counts[:, None] * xp.abs(slopes))
        errors.append(xp.sum(xp.abs(counts @ slopes)) / xp.where(size > 0, size, 1))
    return xp.max(xp.stack(errors))


def etf_rows_prediction(
    name: str,
    problem: Problem,
    logits: Float[Array, "R K"],
    kappa: Float[Array, ""],
    objective: Float[Array, ""],
    constants: dict[str, Array],
    bias: Any = 0.0,
) -> Prediction:
    r"""Return the prediction of row logits Z with Z^T Om Z = kappa^2 P, and the same bias for all.

        W W^T = sqrt(lambda_H / lambda_W) kappa P,    H H^T = sqrt(lambda_W / lambda_H) Z Z^T /
        kappa.

    The singular values are those of D^{1/2} Z, whose second moments are a multiple of P as well.
    """
    xp = array_module((problem, logits))
    (R, K), dtype = logits.shape, logits.dtype
    counts = xp.asarray(problem.row_counts, dtype)
    weights, features = xp.asarray(problem.regularizer.decays(1), dtype)
    balance = xp.sqrt(features / weights)
    safe = xp.where(kappa > 0, kappa, 1)
    squares = xp.sum(counts * xp.sum(logits**2, axis=1))
    # A root of zero has no slope.
    value = xp.where(kappa > 0, xp.sqrt(xp.where(kappa > 0, squares, 1) / (K - 1)), 0)
    values = value * (xp.arange(min(R, K)) < K - 1).astype(dtype)
    biases = xp.ones((K,), dtype) * bias
    return Prediction(
        theorem=name,
        objective=objective,
        logits=logits + biases[None, :] if problem.use_bias else logits,
        weight_gram=balance * kappa * (xp.eye(K, dtype=dtype) - 1 / K),
        feature_gram=logits @ logits.T / (balance * safe) if fits_dense(R) else None,
        bias=biases if problem.use_bias else None,
        layer_norms=xp.stack([balance * kappa * (K - 1), squares / (balance * safe)]),
        singular_values=values,
        rank=xp.sum(values > 0, dtype="int32"),
        collapsed=kappa == 0,
        constants=constants,
    )
