r"""Lower bounds on the optimal value of one-layer problems, from any point at all.

With logits Z (row k of class, or target row, k, without the bias), the regularizer's price tau and
rows r of the gauge (`ufm.problems.Gauge`: r_k = sqrt(n_k) and tau = sqrt(lambda_W lambda_H) for
weight decay) and the gauge ||.||_* (the nuclear norm, or for non-negative features the gauge of the
atoms w h^T with h >= 0 and ||w|| = ||h|| = 1), a one-layer problem is bounded below by

    min_{Z, b}  sum_k pi_k l_k(z_k + b) + tau ||diag(r) Z||_* + (lambda_b / 2) ||b||^2,

pi_k = n_k / N, with equality where the feature dimension holds the minimiser. For any dual rows u_k
in the domain of the conjugates l_k*, with G = diag(pi / r) U and the dual norm ||.||^o,

    value >= -sum_k pi_k l_k*(u_k) - ||sum_k pi_k u_k||^2 / (2 lambda_b)     if  ||G||^o <= tau,

and a free bias (lambda_b = 0) needs sum_k pi_k u_k = 0. For a bounded gauge, ||diag(r) Z||_* <= T
(r_k = 1 and T = K sqrt(E_W E_H) for the norm balls), value >= -sum_k pi_k l_k*(u_k) - T ||G||^o for
any U.

A candidate provides U = gradient of the losses at its logits, which is scaled into feasibility by
theta = min(1, tau / ||G||^o); the domains are convex and contain zero, so this is always possible.
For signed features a second candidate has the singular values of G cut at tau instead, and those of
the modes that the logits use raised to it (`levelled`): optimality says that they are equal to it
there. A candidate with an error of epsilon then loses epsilon^2, as its objective does; the scaled
one loses epsilon. To first order the dual is -<Z, U>, so a mode of Z whose multiplier is too small
loses in proportion. A turn of the modes by epsilon has an effect of second order, since they are at
their maximum. With a bounded gauge the level is -<diag(r) Z, G> / T, which has an error of second
order as well.

Dual norm. Spectral norm for signed features. For h >= 0, max_{h >= 0, ||h|| = 1} ||G^T h|| is
bounded by sqrt(lambda_max(B + S)) with B = G G^T and any entrywise non-negative symmetric S;
S = max(-B, 0) off the diagonal is exact at most optima of one-hot classes. Where it is not, the
norm of up to 16 rows is proved exactly (`ufm.certificates.faces`), and that of more is bounded by
the doubly non-negative relaxation (`ufm.certificates.atoms`).

The dual zero is always allowed, and worth the mean of the losses' infima: zero for most, an entropy
for label smoothing. No bound is less.

Rounding. Every bound is lowered by (max(R, K) + 16) machine epsilons of the sum of the magnitudes
of its terms, those inside the conjugates included (`Loss.conjugate_size`), and every dual norm
raised by as many relative epsilons, which covers the rounding of the sums, of the eigenvalues, and
of the row sums of U. Where a mean is subtracted for a free bias, digits cancel: the bound is
lowered by a further sqrt(epsilon) of the magnitude of the mean, which vanishes where the bias is
optimal. Where singular values are changed, it is lowered by the epsilons of the change.

A loss that states no conjugate has the bound of `ufm.certificates.chord` instead.

Reference for duality: any text on convex analysis; Hong & Ling (2023, arXiv 2309.09725) for the
nuclear-norm form.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.problems import Problem, class_samples

__all__ = [
    "DualBound",
    "dual_bound",
    "dual_norm",
    "finite",
    "has_convex_form",
    "has_one_minimum",
    "has_tight_bound",
    "largest_rank",
    "levelled",
    "longest_sum",
    "mean_infimum",
    "needed_dimension",
    "smaller_gram",
    "unit_of",
]


class DualBound(NamedTuple):
    """A lower bound and what it came from.

    Attributes:
        lower_bound: The bound, ().
        ratio: Dual norm of the candidate's gradient over what is allowed, (); at most one where the
            candidate is optimal.
        dual: The rows G whose dual norm was taken, (R, K).
        allowed: What that norm may be, ().
    """

    lower_bound: Float[Array, ""]
    ratio: Float[Array, ""]
    dual: Float[Array, "R K"]
    allowed: Float[Array, ""]


def has_convex_form(problem: Problem) -> bool:
    """Whether the problem is convex in the logits, up to its feature dimension.

    It is for one layer, a convex loss and a regularizer with a gauge.
    """
    return problem.num_layers == 1 and problem.loss.convex and problem.regularizer.has_gauge


def mean_infimum(problem: Problem, dtype: Any = jnp.float64) -> Float[Array, ""]:
    """Return the mean of the rows' infima, lowered by its rounding: no mean loss is less.

    The loss must be convex. The infima are -l_k*(0), or what a loss without a conjugate states.
    """
    samples, classes = class_samples(problem, dtype), problem.class_counts
    # Written so that the compiler does not take it for a constant, and evaluates the conjugate.
    zero = 0 * samples.counts[:, None] * jnp.ones((1, problem.num_outputs), dtype)
    shares = samples.counts / jnp.sum(samples.counts)
    epsilon = (longest_sum(problem) + 16) * jnp.finfo(dtype).eps
    if not problem.loss.has_conjugate:
        infima = problem.loss.infima(samples.targets, classes)
        terms = jnp.where(shares > 0, shares * infima, 0)
        return finite(jnp.sum(terms) - jnp.nan_to_num(epsilon * jnp.sum(jnp.abs(terms))))
    size = jnp.sum(shares * problem.loss.conjugate_size(zero, samples.targets, classes))
    return finite(
        -jnp.sum(shares * problem.loss.conjugate(zero, samples.targets, classes)) - epsilon * size
    )


def longest_sum(problem: Problem) -> int:
    """Return the number of terms of the longest sums, over rows or over outputs."""
    return max(problem.num_rows, problem.num_outputs)


def largest_rank(problem: Problem) -> int:
    """Return the largest rank of the logits of a one-layer minimiser with signed features.

    It is that of R x K matrices. One column is lost where the loss does not see a shift of the
    logits (the gradient has rows of sum zero), and one row where a bias is free (its columns have
    weighted means of zero).
    """
    free = problem.use_bias and problem.regularizer.has_free_bias
    return min(problem.num_rows - free, problem.num_outputs - problem.loss.shift_invariant)


def has_one_minimum(problem: Problem) -> bool:
    """Whether every local minimum is global: a convex form, signed features and a tight bound.

    A stationary point of full rank has a gradient whose singular values are all equal to the
    allowed one, so its certificate holds; at a point of lower rank a violated constraint is a
    direction of descent.
    """
    return has_convex_form(problem) and problem.feature_cone.rotates and has_tight_bound(problem)


def needed_dimension(problem: Problem) -> int:
    """Return the feature dimension that holds the minimiser that the dual bound is about."""
    return problem.feature_cone.needed_dimension(problem.num_rows, largest_rank(problem))


def has_tight_bound(problem: Problem) -> bool:
    """Whether the dimension holds the minimiser that the dual bound is about.

    It is proved for signed features, and observed for non-negative ones.
    """
    return problem.feature_dim >= needed_dimension(problem)


# The bound, its scaling and what rounding takes from both share most of their numbers: kept whole.
def dual_bound(
    problem: Problem, logits: Float[Array, "R K"], norm: Float[Array, ""] | None = None
) -> DualBound:
    """Return the lower bound that logits (bias included) of every row provide.

    Pure: it can be jit-compiled and vmapped.

    It is never below the mean of the losses' infima.

    Args:
        problem: a problem with a convex form (`has_convex_form`), whose loss states a conjugate.
        logits: (R, K), row r the logits of class or target row r; any values.
        norm: (), an upper bound on the dual norm at these logits that was proved elsewhere, instead
            of the cheap one.
    """
    dtype = logits.dtype
    samples = class_samples(problem, dtype)
    shares = samples.counts / jnp.sum(samples.counts)
    classes, targets = problem.class_counts, samples.targets
    epsilon = (longest_sum(problem) + 16) * jnp.finfo(dtype).eps

    dual = jax.grad(lambda rows: jnp.sum(problem.loss(rows, targets, classes)))(logits)
    cancelled = jnp.zeros((), dtype)
    if problem.use_bias:
        decay = jnp.asarray(problem.regularizer.bias_penalty, dtype)
        mean = jnp.sum(shares[:, None] * dual, axis=0)
        cancelled = jnp.where(decay > 0, 0, jnp.sqrt(jnp.finfo(dtype).eps) * jnp.sum(jnp.abs(mean)))
        less = _room(problem, targets, shares)[:, None] * mean[None, :]
        dual = jnp.where(decay > 0, dual, dual - less)
    dual = _within_domain(problem, dual, shares, targets)
    conjugate = problem.loss.conjugate
    gauge = problem.gauge
    price, rows = jnp.asarray(gauge.price, dtype), jnp.asarray(gauge.rows, dtype)[:, None]
    factor = shares[:, None] / rows

    def value(dual: Array) -> tuple[Array, Array]:
        """Return the value of the dual without its norm, and the magnitude of its terms."""
        values = shares * conjugate(dual, targets, classes)
        sizes = shares * problem.loss.conjugate_size(dual, targets, classes)
        price = jnp.zeros((), dtype)
        if problem.use_bias:
            mean = jnp.sum(shares[:, None] * dual, axis=0)
            price = jnp.where(decay > 0, jnp.sum(mean**2) / (2 * jnp.where(decay > 0, decay, 1)), 0)
        return -jnp.sum(values) - price, jnp.sum(sizes) + price

    def bound(dual: Array, norm: Array, cancelled: Array, rounding: Array) -> Array:
        if gauge.bounded:  # ||diag(r) Z||_* <= T costs T times the dual norm
            lower, magnitude = value(dual)
            cost = price * norm
            return finite(lower - cost - epsilon * (magnitude + cost) - cancelled - rounding)
        theta = jnp.minimum(1.0, allowed / jnp.maximum(norm, jnp.finfo(dtype).tiny))
        lower, magnitude = value(theta * dual)
        return finite(lower - epsilon * magnitude - theta * cancelled - rounding)

    weighted = factor * dual
    paired = rows * logits
    if gauge.bounded:
        # At an optimum -<W H^T, G> = T ||G||: the norm is compared with what the candidate attains.
        allowed = jnp.maximum(-jnp.sum(weighted * paired), jnp.finfo(dtype).tiny) / price
    else:
        allowed = price * (1 - epsilon)
    nothing = jnp.zeros((), dtype)
    trivial = mean_infimum(problem, dtype)
    if norm is not None or not problem.feature_cone.rotates:
        norm = (dual_norm(problem, weighted) if norm is None else norm) * (1 + epsilon)
        return DualBound(
            jnp.fmax(bound(dual, norm, cancelled, nothing), trivial),
            norm / allowed,
            weighted,
            allowed,
        )

    unit = unit_of(weighted)
    squares, vectors = jnp.linalg.eigh(smaller_gram(weighted / unit))
    norm = unit * jnp.sqrt(jnp.maximum(squares[-1], 0)) * (1 + epsilon)
    plain = bound(dual, norm, cancelled, nothing)
    cut, raised = levelled(
        weighted, unit * jnp.sqrt(jnp.maximum(squares, 0)), vectors, allowed * (1 - epsilon), paired
    )
    cut, raised = _within_domain(problem, cut / factor, shares, targets), raised / factor
    # Go from the cut rows towards the raised ones as far as the domain allows, if that is better.
    inside = problem.loss.domain(cut, targets, classes)
    falling = inside - problem.loss.domain(raised, targets, classes)
    reach = jnp.min(jnp.where(falling > 0, inside / jnp.where(falling > 0, falling, 1), jnp.inf))
    further = _within_domain(
        problem, cut + jnp.minimum(1, (1 - 1e-9) * reach) * (raised - cut), shares, targets
    )
    # NaN compares false, so NaN candidates are never selected.
    level = jnp.where(value(further)[0] > value(cut)[0], further, cut)
    level_norm = dual_norm(problem, factor * level) * (1 + epsilon)
    if problem.use_bias:
        # Where a bias is free, what rounding has put into the mean again is paid for as above.
        mean = jnp.sum(shares[:, None] * level, axis=0)
        cancelled = cancelled + jnp.where(
            decay > 0, 0, jnp.sqrt(jnp.finfo(dtype).eps) * jnp.sum(jnp.abs(mean))
        )
    # The rounding of a change is some epsilons of the change, in every row. The slopes of the
    # conjugates are of the size of the logits.
    slopes = 50 + jnp.max(jnp.abs(logits))
    change = jnp.linalg.norm(weighted - factor * level)
    rounding = problem.num_outputs * epsilon * slopes * change * jnp.sum(shares[:, None] / factor)
    lower = jnp.fmax(plain, bound(level, level_norm, cancelled, rounding))
    return DualBound(jnp.fmax(lower, trivial), norm / allowed, weighted, allowed)


def levelled(
    weighted: Array, values: Array, vectors: Array, level: Array, paired: Array
) -> tuple[Array, Array]:
    """Return a matrix with singular values cut at a level, and also with those in use raised to it.

    Modes are kept whole, so rows that sum to zero still do, and a weighted mean of zero stays zero.
    A mode is in use if the logits have it. Raising its singular value raises the dual, to first
    order in proportion to its share of the logits. Modes far below the level, compared with their
    share, are left unchanged: raising them costs more (second order) than it gains.

    Args:
        weighted: (R, K), the rows of the dual times their factors.
        values: (m,), the singular values of weighted, m = min(R, K).
        vectors: (m, m), the eigenvectors of `smaller_gram` in columns.
        level: (), positive.
        paired: (R, K), minus the derivative of the dual's value along `weighted`.
    """
    if weighted.shape[0] > weighted.shape[1]:
        cut, raised = levelled(weighted.T, values, vectors, level, paired.T)
        return cut.T, raised.T
    near = values >= 0.5 * level
    safe = jnp.where(near, values, level)
    gains = jnp.where(near, -jnp.sum(vectors * ((paired @ weighted.T) @ vectors), axis=0) / safe, 0)
    in_use = near & ((1 - values / level) * jnp.max(gains) < gains)
    change = 1 - level / safe
    modes = vectors.T @ weighted
    cut = weighted - vectors @ (jnp.maximum(change, 0)[:, None] * modes)
    return cut, cut - vectors @ (jnp.where(in_use, jnp.minimum(change, 0), 0)[:, None] * modes)


def _within_domain(problem: Problem, dual: Array, shares: Array, targets: Array) -> Array:
    """Return dual rows inside the domain of the conjugates; a weighted mean of zero stays zero.

    Subtracting the mean may leave the domain (probabilities below zero) by at most the size of the
    mean, and rounding by at most its own size. The dual rows of the best constant logits have mean
    zero and lie inside: the smallest share of them that suffices, rounding included, is mixed in.
    A row without a loss (of mass zero) has one dual only, which it gets whatever rounding says.
    """
    loss, classes = problem.loss, problem.class_counts
    inner = loss.constant_dual(targets, shares, classes)
    inside = loss.domain(inner, targets, classes)
    dual = jnp.where(jnp.sum(inside, axis=1, keepdims=True) > 0, dual, inner)
    outside = loss.domain(dual, targets, classes)
    rounding = (
        8
        * jnp.finfo(dual.dtype).eps
        * (jnp.abs(outside) + loss.domain(jnp.zeros_like(dual), targets, classes))
    )
    needed = jnp.where(
        outside < rounding, (rounding - outside) / jnp.maximum(inside - outside, 1e-300), 0
    )
    share = jnp.where(jnp.any(outside < 0), jnp.minimum(jnp.max(needed), 1), 0)
    return (1 - share) * dual + share * inner


def _room(problem: Problem, targets: Array, shares: Array) -> Array:
    """Return what every row takes of a mean that is subtracted: its room in the domain.

    The weighted mean is one. Probabilities of rows of any mass have their mass as room.
    """
    inner = problem.loss.constant_dual(targets, shares, problem.class_counts)
    room = jnp.sum(problem.loss.domain(inner, targets, problem.class_counts), axis=1)
    total = jnp.sum(shares * room)
    return jnp.where(total > 0, room / jnp.where(total > 0, total, 1), 1)


def dual_norm(problem: Problem, weighted: Array) -> Array:
    """Return a bound on the dual norm: exact for signed features, the cheap one for h >= 0."""
    unit = unit_of(weighted)
    scaled = weighted / unit
    cone = problem.feature_cone
    gram = smaller_gram(scaled) if cone.rotates else cone.relaxed(scaled @ scaled.T)
    return unit * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))


def smaller_gram(matrix: Array) -> Array:
    """Return A A^T or A^T A, which have the same eigenvalues but for zeros: the smaller one."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def unit_of(matrix: Array) -> Array:
    """Return the largest entry: squares relative to it neither underflow nor overflow."""
    largest = jnp.max(jnp.abs(matrix))
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def finite(value: Array) -> Array:
    """Return the value, or minus infinity (a bound that is always valid) in place of NaN."""
    return jnp.where(jnp.isnan(value), -jnp.inf, value)
