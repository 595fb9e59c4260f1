r"""Lower bounds at group resolution.

They are the dual bound of `ufm.certificates.dual` for logits that are blocks, at the cost of G
groups.

Dual rows U that are blocks have the dual norm max( max_g r_g |alpha_g|, ||diag(r) E|| ), where
alpha_g is their action within group g, and E that between groups. For h >= 0 the Gram matrix B =
D^{1/2} U U' D^{1/2} consists of blocks too, and so does B + max(-B, 0) off the diagonal, whose
largest eigenvalue bounds it. Where this bound is too large, the doubly non-negative relaxation of
`ufm.certificates.atoms` is solved over groups (`tightened`). The dual zero is worth the mean of the
losses' infima, and no bound is less.

All sums run over groups, with multiplicities. Bounds are lowered, and norms raised, by 4 (G + 16)
machine epsilons of the magnitude of their terms.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import broadcasting, compiled, to_numpy
from ufm.certificates.atoms import relaxed_norm
from ufm.certificates.gaps import relative_scale, rounding_of
from ufm.problems import (
    Blocks,
    GroupLoss,
    GroupProblem,
    Rows,
    diagonal,
    identity,
    mean_loss,
    probabilities,
    rows_of,
    slopes,
    times_of,
)

__all__ = [
    "GroupEvidence",
    "dual_blocks",
    "group_evidence",
    "group_objective",
    "group_rounding",
    "multiplier",
    "nuclear_norm",
    "tightened",
]

# Share of a gap: the relaxation, which takes long, is tried where less may be left.
WORTHWHILE = 1e-3


class GroupEvidence(NamedTuple):
    """What a certificate at group resolution is made of.

    Attributes:
        objective: The objective, (*batch); infinite where the point is not feasible.
        lower_bound: The lower bound, ().
        at_zero: The objective of zero logits, ().
        ratio: Dual norm over the allowed one, ().
        within: The same for the modes within each group, (G,); zero for groups of one class, and
            below one only where these modes vanish.
        between: The same for the modes between groups, ().
    """

    objective: Float[Array, "*batch"]
    lower_bound: Float[Array, "*batch"]
    at_zero: Float[Array, "*batch"]
    ratio: Float[Array, "*batch"]
    within: Float[Array, "G *batch"]
    between: Float[Array, "*batch"]

    @property
    def scale(self) -> Float[Array, "*batch"]:
        """What gaps are relative to: the lower bound, at least 1e-6 of the objective at zero."""
        return relative_scale(self.lower_bound, self.at_zero)

    @property
    def relative_gap(self) -> Float[Array, "*batch"]:
        """Objective less lower bound, over the scale."""
        return (self.objective - self.lower_bound) / self.scale


@broadcasting
def nuclear_norm(problem: GroupProblem, logits: Blocks) -> Float[Array, "*batch"]:
    """Return ||diag(r) Z||_* of logits without bias."""
    weighted = logits.scaled_rows(problem.gauge.rows)
    within = jnp.sum((problem.sizes - 1) * jnp.abs(weighted.within), axis=0)
    return within + jnp.sum(_singular_values(weighted.between), axis=0)


@broadcasting
def group_objective(
    problem: GroupProblem,
    logits: Blocks,
    bias: Float[Array, "G *batch"] | None,
    gauge: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Return the objective of a candidate, as for `group_evidence`.

    It is infinite where the candidate is not feasible, or not a number.
    """
    objective = mean_loss(problem, rows_of(logits, bias))
    if problem.gauge.bounded:
        objective = jnp.where(gauge <= problem.gauge.price * (1 + 1e-12), objective, jnp.inf)
    else:
        objective = objective + problem.gauge.price * gauge
        if bias is not None:
            objective = objective + 0.5 * problem.bias * jnp.sum(problem.sizes * bias**2, axis=0)
    return jnp.where(jnp.isfinite(objective), objective, jnp.inf)


@broadcasting
def group_evidence(
    problem: GroupProblem,
    logits: Blocks,
    bias: Float[Array, "G *batch"] | None,
    gauge: Float[Array, "*batch"],
    witness: tuple[Blocks, Float[Array, "G *batch"] | None] | None = None,
    norm: Float[Array, "*batch"] | None = None,
) -> GroupEvidence:
    """Return the evidence about a candidate. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: over groups.
        logits: blocks of Z, without bias.
        bias: (G,) or None.
        gauge: () what the candidate's factors cost: ||W|| ||H|| in balanced coordinates, at least
            the gauge of its logits.
        witness: logits and bias whose gradient gives the dual point, if not the candidate's own;
            any point gives a valid bound.
        norm: () an upper bound on the dual norm of `dual_blocks` that was proved elsewhere, instead
            of the cheap one for non-negative features.
    """
    bounded = logits if witness is None else witness[0]
    shift = bias if witness is None else witness[1]
    lower, ratio, within, between = _lower_bound(problem, rows_of(bounded, shift), norm)
    objective = group_objective(problem, logits, bias, gauge)
    zero = jnp.zeros_like(problem.counts)
    at_zero = mean_loss(problem, Rows(zero, jnp.zeros_like(times_of(problem.sizes))))
    return GroupEvidence(objective, lower, at_zero, ratio, within, between)


def group_rounding(
    problem: GroupProblem,
    logits: Blocks,
    bias: Float[Array, "G *batch"] | None,
    evidence: GroupEvidence,
) -> Float[Array, "*batch"]:
    """Return by how much rounding may take the objective of the evidence below its lower bound."""
    rows = rows_of(logits, bias)
    xp = np if isinstance(evidence.objective, np.ndarray) else jnp
    largest = xp.maximum(xp.max(xp.abs(rows.own), axis=0), xp.max(xp.abs(rows.others), axis=(0, 1)))
    return rounding_of(
        evidence.objective, evidence.at_zero, largest, problem.num_groups, problem.gauge.bounded
    )


def _lower_bound(
    problem: GroupProblem, logits: Rows, proved: Array | None
) -> tuple[Array, Array, Array, Array]:
    sizes, shares = problem.sizes, problem.shares
    dtype, free = sizes.dtype, problem.bias <= 0
    loss, epsilon = problem.loss, _epsilon(problem)
    dual, cancelled = _feasible_dual(problem, logits)

    def value_of(dual: Rows) -> tuple[Array, Array]:
        terms, magnitudes = _conjugate(loss, dual, sizes)
        return -jnp.sum(sizes * shares * terms, axis=0), epsilon * jnp.sum(
            sizes * shares * magnitudes, axis=0
        )

    within, between = _norms(problem, dual)
    norm = jnp.maximum(jnp.max(within, axis=0), between) if proved is None else proved
    norm = norm * (1 + epsilon)
    if problem.gauge.bounded:
        value, slack = value_of(dual)
        lower = value - problem.gauge.price * norm
        slack = slack + epsilon * problem.gauge.price * norm + cancelled
        ratio_scale = norm
    else:
        allowed = problem.gauge.price * (1 - epsilon)
        theta = jnp.minimum(1.0, allowed / jnp.maximum(norm, jnp.finfo(dtype).tiny))
        dual = Rows(theta * dual.own, theta * dual.others)
        lower, slack = value_of(dual)
        slack = slack + theta * cancelled
        if problem.use_bias:
            mean = _mean(problem, dual)
            price = jnp.where(
                free, 0, jnp.sum(sizes * mean**2, axis=0) / (2 * jnp.where(free, 1, problem.bias))
            )
            lower, slack = lower - price, slack + epsilon * price
        ratio_scale = allowed
    trivial, rounding = value_of(Rows(jnp.zeros_like(dual.own), jnp.zeros_like(dual.others)))
    lower = jnp.fmax(lower - slack, trivial - rounding)
    return (
        jnp.where(jnp.isnan(lower), -jnp.inf, lower),
        norm / ratio_scale,
        within / ratio_scale,
        between / ratio_scale,
    )


def _epsilon(problem: GroupProblem) -> float:
    """Return the relative rounding of sums over groups."""
    return 4 * (problem.num_groups + 16) * float(jnp.finfo(problem.sizes.dtype).eps)


def _feasible_dual(problem: GroupProblem, logits: Rows) -> tuple[Rows, Array]:
    """Return dual rows in the domain, and what rounding leaves of their mean costs.

    The mean is zero where a bias is free.
    """
    sizes, loss, shares = problem.sizes, problem.loss, problem.shares
    dtype = sizes.dtype
    dual, cancelled = slopes(loss, logits, sizes), jnp.zeros(sizes.shape[1:], dtype)
    if problem.use_bias:
        free, mean = problem.bias <= 0, _mean(problem, dual)
        # What rounding leaves of the mean is paid for at the slopes of the conjugates, averaged
        # over the rows.
        total = jnp.sum(
            sizes * _mean(problem, Rows(jnp.abs(dual.own), jnp.abs(dual.others))), axis=0
        )
        left = jnp.sum(sizes * shares * _steepest(loss, logits, sizes), axis=0) * total
        left = _epsilon(problem) * left
        cancelled = jnp.sqrt(jnp.finfo(dtype).eps) * jnp.sum(sizes * jnp.abs(mean), axis=0)
        cancelled = jnp.where(free, cancelled + left, 0)
        mean = jnp.where(free, mean, 0)
        dual = Rows(dual.own - mean, dual.others - mean[None, :])
    return _within_domain(problem, dual), cancelled


def _steepest(loss: GroupLoss, logits: Rows, sizes: Array) -> Array:
    """Return the largest slope of the conjugate of a row of each group.

    It is of the size of the row's logits less their log-sum-exp.
    """
    present = times_of(sizes) > 0
    if loss.kind == "squared-error":
        return 1 + jnp.maximum(
            jnp.abs(logits.own), jnp.max(jnp.where(present, jnp.abs(logits.others), 0), axis=1)
        )
    p, tiny = probabilities(loss, logits, sizes), jnp.finfo(sizes.dtype).tiny
    own = (1 - jnp.log(jnp.maximum(p.own, tiny))) / (loss.temperatures * loss.scales)
    factors = loss.temperatures[:, None] * loss.scales[None, :]
    others = jnp.where(present, (1 - jnp.log(jnp.maximum(p.others, tiny))) / factors, 0)
    return jnp.maximum(own, jnp.max(others, axis=1))


def _mean(problem: GroupProblem, dual: Rows) -> Array:
    """Return the mean over all samples of dual rows, by output class: (G,)."""
    others = jnp.sum(
        times_of(problem.sizes) * (problem.shares[:, None] * dual.others).swapaxes(0, 1), axis=1
    )
    return problem.shares * dual.own + others


def _conjugate(loss: GroupLoss, dual: Rows, sizes: Array) -> tuple[Array, Array]:
    """Return the conjugate of a row of each group, and what its rounding is relative to.

    The latter is the sum of the magnitudes of its terms and of what went into them.
    """
    times = times_of(sizes)
    if loss.kind == "squared-error":
        squares = dual.own**2 + jnp.sum(times * dual.others**2, axis=1)
        return squares / (2 * loss.weights) + dual.own, squares / (2 * loss.weights) + jnp.abs(
            dual.own
        )
    p, present = _domain(loss, dual, sizes), times > 0
    # Where the own probability is the larger part, it is one less the sum of the others, which is
    # what its logarithm is taken from.
    lacking = jnp.sum(jnp.where(present, times * p.others, 0), axis=1)
    anchored = lacking < 0.5
    near = (1 - lacking) * jnp.log1p(-jnp.where(anchored, lacking, 0))
    own = jnp.where(anchored, near, _xlogx(p.own))
    entropy = own + jnp.sum(jnp.where(present, times * _xlogx(p.others), 0), axis=1)
    factors = loss.weights * loss.temperatures
    target = loss.smoothing / jnp.sum(sizes, axis=0)
    parts = Rows(
        1 + jnp.abs(dual.own) / (factors * loss.scales),
        target + jnp.abs(dual.others) / (factors[:, None] * loss.scales[None, :]),
    )
    size = jnp.where(anchored, 2 * jnp.abs(lacking), parts.own * (1 + _logarithm(p.own)))
    size = size + jnp.sum(
        jnp.where(present, times * parts.others * (1 + _logarithm(p.others)), 0), axis=1
    )
    offsets = loss.offsets / loss.scales
    shifted = dual.own * offsets + jnp.sum(times * dual.others * offsets[None, :], axis=1)
    shifts = jnp.abs(dual.own * offsets) + jnp.sum(
        times * jnp.abs(dual.others * offsets[None, :]), axis=1
    )
    return loss.weights * entropy - shifted, loss.weights * size + shifts


def _logarithm(value: Array) -> Array:
    """Return |log v|, or zero where v is not positive."""
    return jnp.abs(jnp.log(jnp.where(value > 0, value, 1)))


def _domain(loss: GroupLoss, dual: Rows, sizes: Array) -> Rows:
    """Return the probabilities q + u / (w t delta): in [0, 1] just where u is in the domain."""
    factors = loss.weights * loss.temperatures
    other = loss.smoothing / jnp.sum(sizes, axis=0)
    return Rows(
        1 - loss.smoothing + other + dual.own / (factors * loss.scales),
        other + dual.others / (factors[:, None] * loss.scales[None, :]),
    )


def _within_domain(problem: GroupProblem, dual: Rows) -> Rows:
    """Return dual rows inside the domain.

    As little as needed is mixed in of rows that are inside and have mean zero.
    """
    loss, sizes = problem.loss, problem.sizes
    if loss.kind == "squared-error":
        return dual
    factors, present = loss.weights * loss.temperatures, times_of(sizes) > 0
    other = loss.smoothing / jnp.sum(sizes, axis=0)
    priors = problem.shares * factors / jnp.sum(sizes * problem.shares * factors, axis=0)
    common = (1 - loss.smoothing) * priors
    # The own entry as minus the sum of the others: no digits are lost where a class has nearly all
    # of the shares.
    lacking = jnp.sum(jnp.where(present, times_of(sizes) * common[None, :], 0), axis=1)
    inner = Rows(
        -factors * loss.scales * lacking, factors[:, None] * loss.scales[None, :] * common[None, :]
    )
    outside, inside = _domain(loss, dual, sizes), _domain(loss, inner, sizes)
    needed, anywhere = jnp.zeros(sizes.shape[1:]), jnp.zeros(sizes.shape[1:], bool)
    for out, safe, at_zero, there in (
        (outside.own, inside.own, 1 - loss.smoothing + other, jnp.ones_like(sizes, dtype=bool)),
        (outside.others, inside.others, other, present),
    ):
        rounding = 8 * jnp.finfo(sizes.dtype).eps * (jnp.abs(out) + at_zero)
        share = jnp.where(
            there & (out < rounding), (rounding - out) / jnp.maximum(safe - out, 1e-300), 0
        )
        over = tuple(range(out.ndim - sizes.ndim + 1))
        needed = jnp.maximum(needed, jnp.max(share, axis=over))
        anywhere = anywhere | jnp.any(there & (out < 0), axis=over)
    share = jnp.where(anywhere, jnp.minimum(needed, 1), 0)
    return Rows(
        (1 - share) * dual.own + share * inner.own, (1 - share) * dual.others + share * inner.others
    )


def _norms(problem: GroupProblem, dual: Rows) -> tuple[Array, Array]:
    """Return the dual norm of the weighted rows: within each group (G,), and between groups ()."""
    sizes, weights = problem.sizes, problem.dual_rows
    several = sizes > 1
    pairs = jnp.sqrt(sizes[:, None] * sizes[None, :])
    eye = identity(pairs)
    if problem.feature_cone.rotates:
        within = jnp.where(several, weights * jnp.abs(dual.own - diagonal(dual.others)), 0)
        between = _between(dual, sizes)
        return within, jnp.max(_singular_values(weights[:, None] * between), axis=0)
    # Relative to the largest entry: squares neither underflow nor overflow.
    largest = jnp.maximum(
        jnp.max(jnp.abs(dual.own), axis=0), jnp.max(jnp.abs(dual.others), axis=(0, 1))
    )
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    own, across = _gram(Rows(dual.own / unit, dual.others / unit), sizes)
    off = jnp.maximum(across * weights[:, None] * weights[None, :], 0)
    alone, paired = weights**2 * own, diagonal(off)
    matrix = pairs * off * (1 - eye) + eye * (alone + (sizes - 1) * paired)[:, None]
    within = jnp.where(several, jnp.sqrt(jnp.maximum(alone - paired, 0)), 0)
    largest = jnp.linalg.eigvalsh(jnp.moveaxis(matrix, (0, 1), (-2, -1)))[..., -1]
    return unit * within, unit * jnp.sqrt(jnp.maximum(largest, 0))


def _between(dual: Rows, sizes: Array) -> Array:
    """Return what the rows do between the groups, (G, G).

    No difference of entries is taken, which would cost digits in groups of one class.
    """
    pairs = jnp.sqrt(sizes[:, None] * sizes[None, :])
    alone = dual.own + (sizes - 1) * diagonal(dual.others)
    return jnp.where(identity(pairs) > 0, alone[:, None], pairs * dual.others)


def _gram(dual: Rows, sizes: Array) -> tuple[Array, Array]:
    """Return <u_k, u_l> of the rows of classes.

    First of one class of each group, (G,), then of two classes of groups g and h, (G, G).
    """
    same = diagonal(dual.others)
    squares = jnp.sum(times_of(sizes) * dual.others**2, axis=1)
    own = dual.own**2 + squares
    pair = 2 * dual.own * same + squares - same**2
    inner = jnp.sum((sizes[None, :] * dual.others)[:, None] * dual.others[None, :], axis=2)
    # In `inner` every column counts as another class: mend the two that are the rows' own.
    excess = dual.own - same
    across = inner + excess[:, None] * dual.others.swapaxes(0, 1) + excess[None, :] * dual.others
    return own, jnp.where(identity(across) > 0, pair[:, None], across)


@broadcasting
def dual_blocks(problem: GroupProblem, logits: Blocks, bias: Array | None) -> tuple[Blocks, Array]:
    """Return the weighted dual rows at a candidate as blocks, and the entries of their Gram matrix.

    The entries are (G, G + 1): those of two classes, then those of one class. The lower bound takes
    the norm of these rows.
    """
    sizes = problem.sizes
    dual, _ = _feasible_dual(problem, rows_of(logits, bias))
    weights = problem.dual_rows
    excess = dual.own - diagonal(dual.others)
    between = weights[:, None] * _between(dual, sizes)
    own, across = _gram(dual, sizes)
    gram = jnp.concatenate(
        [across * weights[:, None] * weights[None, :], (weights**2 * own)[:, None]], axis=1
    )
    return Blocks(weights * excess, between, sizes), gram


def tightened(
    problem: GroupProblem,
    logits: Blocks,
    bias: Any,
    gauge: Any,
    evidence: GroupEvidence,
    dual: Blocks,
    gain: float,
    tolerance: float,
) -> GroupEvidence:
    """Return the evidence with the dual norm of the doubly non-negative relaxation, if that helps.

    Args:
        problem: concrete, with non-negative features.
        logits: blocks of Z, without bias.
        bias: (G,) or None.
        gauge: () what the candidate's factors cost.
        evidence: with the cheap norm.
        dual: the rows of `dual_blocks`.
        gain: of an atom; the norm is at least this. Nothing is tried where even a norm this small
            would leave open more than the tolerance and more than a thousandth of the gap.
        tolerance: relative gap to close.
    """
    target = float(problem.gauge.price)
    if problem.gauge.bounded:
        weighted = logits.scaled_rows(problem.gauge.rows)
        target = -float(np.asarray(dual.flattened()) @ np.asarray(weighted.flattened())) / target

    def with_norm(norm: float) -> GroupEvidence:
        return to_numpy(_with_norm(problem, logits, bias, gauge, None, np.asarray(norm)))

    worthwhile = max(tolerance, WORTHWHILE * float(evidence.relative_gap))
    if not (np.isfinite(gain) and float(with_norm(gain).relative_gap) <= worthwhile):
        return evidence
    found = with_norm(relaxed_norm(dual, target=target))
    return found if float(found.relative_gap) < float(evidence.relative_gap) else evidence


_with_norm = compiled(group_evidence, once=True)


@broadcasting
def multiplier(problem: GroupProblem, logits: Blocks, bias: Array | None) -> Array:
    """Return the dual norm of the gradient at a candidate, ().

    At a minimum on the norm ball it is how fast the minimum falls with the ball's radius.
    """
    dual = slopes(problem.loss, rows_of(logits, bias), problem.sizes)
    within, between = _norms(problem, dual)
    return jnp.maximum(jnp.max(within, axis=0), between)


def _singular_values(matrix: Array) -> Array:
    """Return the singular values of the first two axes, (G, ...)."""
    if matrix.shape[0] == 1:
        return jnp.abs(matrix[0])
    if matrix.shape[0] == 2:
        # Half the sum and the difference of the lengths of the rotation's and the reflection's
        # part.
        a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
        plus, minus = jnp.hypot(a + d, b - c), jnp.hypot(a - d, b + c)
        return jnp.stack([plus + minus, jnp.abs(plus - minus)]) / 2
    values = jnp.linalg.svd(jnp.moveaxis(matrix, (0, 1), (-2, -1)), compute_uv=False)
    return jnp.moveaxis(values, -1, 0)


def _xlogx(value: Array) -> Array:
    positive = value > 0
    return jnp.where(
        positive, value * jnp.log(jnp.where(positive, value, 1)), jnp.where(value == 0, 0, jnp.nan)
    )
