r"""Lower bounds on the optimal value of one-layer problems, from any point at all.

With D = diag(n_k), class-level logits Z (row k of class k, without the bias) and the gauge ||.||_* (the nuclear norm, or for non-negative
features the gauge of the atoms w h^T with h >= 0 and ||w|| = ||h|| = 1), a one-layer problem with weight decay is bounded below by

    min_{Z, b}  sum_k pi_k l_k(z_k + b) + tau ||D^{1/2} Z||_* + (lambda_b / 2) ||b||^2,     pi_k = n_k / N,  tau = sqrt(lambda_W lambda_H),

with equality where the feature dimension holds the minimiser. For any dual rows u_k in the domain of the conjugates l_k*,

    value >= -sum_k pi_k l_k*(u_k) - ||sum_k pi_k u_k||^2 / (2 lambda_b)     if  ||D^{1/2} U||^o <= N tau   (dual norm),

and a free bias (lambda_b = 0) needs sum_k pi_k u_k = 0. For the norm balls the penalty becomes ||Z||_* <= T = K sqrt(E_W E_H), and
value >= -sum_k pi_k l_k*(u_k) - T ||diag(pi) U||^o for any U. A candidate provides U = gradient of the losses at its logits, which is
scaled into feasibility by theta = min(1, N tau / ||D^{1/2} U||^o); the domains are convex and contain zero, so this is always possible. For
signed features a second candidate has the singular values of D^{1/2} U cut at N tau instead, and what is then left of the excess is scaled: near an
optimum this is the better one by far, since all the modes that are barely too large need not be small for the others' sake.

Dual norm. Spectral norm for signed features. For h >= 0, max_{h >= 0, ||h|| = 1} ||U^T D^{1/2} h|| is bounded by sqrt(lambda_max(B + S)) with
B = D^{1/2} U U^T D^{1/2} and any entrywise non-negative symmetric S; S = max(-B, 0) off the diagonal is exact at most optima.

Rounding. Every bound is lowered by (K + 16) machine epsilons of the sum of the magnitudes of its terms and every dual norm raised by as many
relative epsilons, which covers the rounding of the sums, of the eigenvalues, and of the row sums of U. Where a mean is subtracted for a free
bias, digits cancel: the bound is lowered by a further sqrt(epsilon) of the magnitude of the mean, which vanishes where the bias is optimal. Where
singular values are cut, it is lowered by the epsilons of what was cut.

Reference for duality: any text on convex analysis; Hong & Ling (2023, arXiv 2309.09725) for the nuclear-norm form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.problem import Problem
from ufm.regularizers import NormBall
from ufm.resolutions import class_columns

__all__ = ["DualBound", "dual_bound", "has_convex_form"]


class DualBound(NamedTuple):
    """A lower bound and what it came from.

    lower_bound: (). ratio: dual norm of the candidate's gradient over what is allowed; at most one where the candidate is optimal.
    dual: (K, K), the rows whose dual norm was taken, D^{1/2} U or diag(pi) U. allowed: (), what that norm may be.
    """

    lower_bound: Float[Array, ""]
    ratio: Float[Array, ""]
    dual: Float[Array, "K K"]
    allowed: Float[Array, ""]


def has_convex_form(problem: Problem) -> bool:
    """Whether the problem is convex in the logits, up to its feature dimension: one layer and a convex loss."""
    return problem.num_layers == 1 and problem.loss.convex


def dual_bound(problem: Problem, logits: Float[Array, "K K"], norm: Float[Array, ""] | None = None) -> DualBound:
    """Return the lower bound that class-level logits (bias included) provide. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: a problem with a convex form (`has_convex_form`).
        logits: (K, K), row k the logits of class k; any values.
        norm: (), an upper bound on the dual norm at these logits that was proved elsewhere, instead of the cheap one.
    """
    dtype = logits.dtype
    columns = class_columns(problem.class_counts, dtype)
    shares = columns.counts / jnp.sum(columns.counts)
    classes, targets = problem.class_counts, columns.targets
    epsilon = (problem.num_classes + 16) * jnp.finfo(dtype).eps

    dual = jax.grad(lambda rows: jnp.sum(problem.loss(rows, targets, classes)))(logits)
    cancelled = jnp.zeros((), dtype)
    if problem.use_bias:
        decay = jnp.asarray(0.0 if isinstance(problem.regularizer, NormBall) else problem.regularizer.bias, dtype)
        mean = jnp.sum(shares[:, None] * dual, axis=0)
        cancelled = jnp.where(decay > 0, 0, jnp.sqrt(jnp.finfo(dtype).eps) * jnp.sum(jnp.abs(mean)))
        dual = jnp.where(decay > 0, dual, dual - mean[None, :])
    dual = _within_domain(problem, dual, shares, targets)
    conjugate = problem.loss.conjugate

    def terms(scaled: Array) -> Array:
        return shares * conjugate(scaled, targets, classes)

    if isinstance(problem.regularizer, NormBall):
        # The penalty has no scale: the constraint ||Z||_* <= T is priced by the dual norm of diag(pi) U.
        weighted = shares[:, None] * dual
        norm = (_dual_norm(weighted, problem.nonnegative_features) if norm is None else norm) * (1 + epsilon)
        regularizer = problem.regularizer
        radius = problem.num_classes * jnp.sqrt(
            jnp.asarray(regularizer.per_layer(1)[0], dtype) * jnp.asarray(regularizer.features, dtype)
        )
        values = terms(dual)
        lower = -jnp.sum(values) - radius * norm
        slack = epsilon * (jnp.sum(jnp.abs(values)) + radius * norm) + cancelled
        # At an optimum -<W H^T, G> = T ||G||: the ratio compares the price with what the candidate realises.
        realised = -jnp.sum(weighted * logits)
        allowed = jnp.maximum(realised, jnp.finfo(dtype).tiny) / radius
        return DualBound(_finite(lower - slack), norm / allowed, weighted, allowed)

    tau = jnp.sqrt(
        jnp.asarray(problem.regularizer.per_layer(1)[0], dtype) * jnp.asarray(problem.regularizer.features, dtype)
    )
    allowed = jnp.asarray(problem.num_samples, dtype) * tau * (1 - epsilon)
    root = jnp.sqrt(columns.counts)[:, None]

    def bound(dual: Array, norm: Array, rounding: Array) -> Array:
        theta = jnp.minimum(1.0, allowed / jnp.maximum(norm, jnp.finfo(dtype).tiny))
        values = terms(theta * dual)
        lower = -jnp.sum(values)
        slack = epsilon * jnp.sum(jnp.abs(values)) + theta * cancelled + rounding
        if problem.use_bias:
            mean = theta * jnp.sum(shares[:, None] * dual, axis=0)
            price = jnp.sum(mean**2) / (2 * jnp.where(decay > 0, decay, 1))
            lower = lower - jnp.where(decay > 0, price, 0)
            slack = slack + epsilon * jnp.where(decay > 0, price, 0)
        return _finite(lower - slack)

    weighted = root * dual
    if norm is not None or problem.nonnegative_features:
        norm = (_dual_norm(weighted, problem.nonnegative_features) if norm is None else norm) * (1 + epsilon)
        return DualBound(bound(dual, norm, jnp.zeros((), dtype)), norm / allowed, weighted, allowed)
    gram = weighted @ weighted.T
    squares, vectors = jnp.linalg.eigh(gram)
    values = jnp.sqrt(jnp.maximum(squares, 0))
    norm = values[-1] * (1 + epsilon)
    # The same with the singular values cut at what is allowed, which costs little where the logits have little of the modes that are cut.
    # Modes are kept whole: rows that sum to zero still do, and a mean of zero stays one.
    cut = jnp.maximum(1 - allowed * (1 - epsilon) / jnp.maximum(values, jnp.finfo(dtype).tiny), 0)
    change = vectors @ (cut[:, None] * (vectors.T @ weighted))
    clipped = (weighted - change) / root
    clipped = _within_domain(problem, clipped, shares, targets)
    clipped_norm = _dual_norm(root * clipped, False) * (1 + epsilon)
    if problem.use_bias:
        # Where a bias is free, what rounding has put into the mean again is paid for as above.
        mean = jnp.sum(shares[:, None] * clipped, axis=0)
        cancelled = cancelled + jnp.where(decay > 0, 0, jnp.sqrt(jnp.finfo(dtype).eps) * jnp.sum(jnp.abs(mean)))
    # What was subtracted is rounded by epsilons of its size, in every row; the conjugates have slopes of the size of logits.
    slopes = 50 + jnp.max(jnp.abs(logits))
    rounding = problem.num_classes * epsilon * slopes * jnp.linalg.norm(change) * jnp.sum(shares[:, None] / root)
    plain = bound(dual, norm, jnp.zeros((), dtype))
    lower = jnp.fmax(plain, bound(clipped, clipped_norm, rounding))
    return DualBound(lower, norm / allowed, weighted, allowed)


def _within_domain(problem: Problem, dual: Array, shares: Array, targets: Array) -> Array:
    """Return dual rows inside the domain of the conjugates, with the same weighted mean where that is zero.

    Subtracting the mean may leave the domain (probabilities below zero) by at most its own size, and rounding by its. The dual rows of the
    best constant logits have mean zero and lie inside: the smallest share of them that suffices, rounding included, is mixed in.
    """
    loss, classes = problem.loss, problem.class_counts
    inner = loss.constant_dual(targets, shares, classes)
    outside = loss.domain(dual, targets, classes)
    inside = loss.domain(inner, targets, classes)
    rounding = 8 * jnp.finfo(dual.dtype).eps * (jnp.abs(outside) + loss.domain(jnp.zeros_like(dual), targets, classes))
    needed = jnp.where(outside < rounding, (rounding - outside) / jnp.maximum(inside - outside, 1e-300), 0)
    share = jnp.where(jnp.any(outside < 0), jnp.minimum(jnp.max(needed), 1), 0)
    return (1 - share) * dual + share * inner


def _dual_norm(weighted: Array, nonnegative: bool) -> Array:
    """Return a bound on the dual norm: exact for signed features, the cheap one (see above) for h >= 0."""
    gram = weighted @ weighted.T
    if nonnegative:
        gram = gram + jnp.maximum(-gram * (1 - jnp.eye(gram.shape[0], dtype=gram.dtype)), 0)
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))


def _finite(value: Array) -> Array:
    """Return the value, or minus infinity (a bound that is always valid) in place of NaN."""
    return jnp.where(jnp.isnan(value), -jnp.inf, value)
