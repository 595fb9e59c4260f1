r"""Lower bounds for the hard-margin problem: Lagrangian duality, at the cost of G groups.

Multipliers lambda_yc >= 0 of the margins make the matrix Lambda, with -delta_c lambda_yc in row y
off the diagonal and delta_y sum_c lambda_yc on it, and

    ||D^{1/2} Z||_* >= theta <Lambda, Z> >= theta sum_yc lambda_yc gamma_y,
    theta = 1 / ||D^{-1/2} Lambda||,

for every Z that has the margins. The bound holds for any non-negative numbers; it is lowered, and
the norm raised, by 4 (G + 16) machine epsilons.

Over rows with supports, Lambda has delta_z a_rz in the support of row r, with numbers a_rz of any
sign and the sum of the row's lambda: the support's entries are equal, and share it as they like.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.imbalance.hard_margin.problem import GroupMargins, RowMargins, row_logits
from ufm.problems import Blocks, identity, rows_of

__all__ = [
    "MarginEvidence",
    "margin_evidence",
    "polar_multipliers",
    "polished_dual",
    "row_dual",
    "row_evidence",
    "row_margins",
    "scaled_to_margins",
    "smallest_margin",
]

# Share by which a candidate's margins may fall short. Its value is that of the candidate scaled up.
SHORT = 1e-9
ROUNDING = 1e-12  # value and bound are moved apart by their rounding already
LOOSE = 1e-5  # relative excess over the margin asked for, from which a multiplier is zero
DEAD = 1e-7  # singular value relative to the largest up to which a mode counts as not used
MOST_FREE = 2000  # numbers of a subgradient on unused modes up to which they are corrected
ZERO = 1e-12  # singular value relative to the largest that counts as zero


class MarginEvidence(NamedTuple):
    """What a certificate of the hard-margin problem is made of.

    Attributes:
        value: Cost of the candidate, (); infinite where it does not have the margins.
        lower_bound: The lower bound, ().
        smallest_margin: The smallest over constraints, as a multiple of the margin asked for, ().
        norm: Norm of D^{-1/2} Lambda for the multipliers as given, ().
        relative_gap: Value less lower bound, over the lower bound, (); infinite where that is zero.
        spread: The largest distance of a logit in a support from their mean, as a multiple of the
            margin asked for, (); zero for classes. The value is that of equal ones.
    """

    value: Float[Array, ""]
    lower_bound: Float[Array, ""]
    smallest_margin: Float[Array, ""]
    norm: Float[Array, ""]
    relative_gap: Float[Array, ""]
    spread: Float[Array, ""]

    def holds(self, tolerance: float = 1e-9) -> bool:
        """Whether the candidate has the margins and is optimal to a relative `tolerance`.

        False for NaN and infinity.
        """
        return bool(self.relative_gap <= tolerance) and not self.contradicted

    @property
    def contradicted(self) -> bool:
        """Whether the lower bound lies above the value by more than rounding."""
        return bool(self.relative_gap < -ROUNDING)


def margin_evidence(
    problem: GroupMargins, logits: Blocks, multipliers: Float[Array, "G G"]
) -> MarginEvidence:
    """Return the evidence about a candidate. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: Over groups.
        logits: Blocks of Z.
        multipliers: Of a class of group g against one of group h; negative ones count as zero.
    """
    sizes, delta, roots = problem.sizes, problem.multipliers, jnp.sqrt(problem.counts)
    epsilon = 4 * (problem.num_groups + 16) * jnp.finfo(sizes.dtype).eps
    smallest = smallest_margin(problem, logits)
    weighted = logits.scaled_rows(roots)
    cost = jnp.sum((sizes - 1) * jnp.abs(weighted.within)) + jnp.sum(
        jnp.linalg.svdvals(weighted.between)
    )
    feasible = jnp.isfinite(cost) & (smallest >= 1 - SHORT)
    value = jnp.where(
        feasible, cost * (1 + epsilon) / jnp.minimum(jnp.where(feasible, smallest, 1), 1), jnp.inf
    )

    times = problem.times
    multipliers = jnp.where(times > 0, jnp.maximum(multipliers, 0), 0)
    rows = jnp.sum(times * multipliers, axis=1)
    own, others = delta * rows, -delta[None, :] * multipliers
    excess = own - jnp.diagonal(others)
    pairs = jnp.sqrt(sizes[:, None] * sizes[None, :])
    between = (pairs * others + identity(pairs) * excess[:, None]) / roots[:, None]
    within = jnp.where(sizes > 1, excess / roots, 0)
    norm = jnp.maximum(jnp.max(within), jnp.max(jnp.linalg.svdvals(between))) * (1 + epsilon)
    lower = jnp.sum(sizes * rows * problem.margins) * (1 - epsilon) / norm
    return _evidence(value, lower, smallest, norm, jnp.zeros_like(norm))


def _evidence(
    value: Array, lower: Array, smallest: Array, norm: Array, spread: Array
) -> MarginEvidence:
    """Return the evidence, with the bound zero where the multipliers give none."""
    lower = jnp.where(jnp.isfinite(lower) & (norm > 0), lower, 0)
    gap = jnp.where(lower > 0, (value - lower) / jnp.where(lower > 0, lower, 1), jnp.inf)
    return MarginEvidence(value, lower, smallest, norm, gap, spread)


def row_evidence(
    problem: RowMargins, logits: Float[Array, "R K"], dual: Float[Array, "R K"]
) -> MarginEvidence:
    """Return the evidence about a candidate over rows. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: Over rows.
        logits: Z.
        dual: Any numbers; the closer to a subgradient of the norm by Z, the higher the bound.
    """
    R, K = problem.supports.shape
    delta, roots = problem.multipliers, jnp.sqrt(problem.weights)
    epsilon = 4 * (max(R, K) + 16) * jnp.finfo(delta.dtype).eps
    margins, spread, smallest = row_margins(problem, logits)
    equal = row_logits(problem, margins)
    cost = jnp.sum(jnp.linalg.svdvals(roots[:, None] * equal))
    feasible = jnp.isfinite(cost) & (smallest >= 1 - SHORT) & (spread <= SHORT)
    value = jnp.where(
        feasible, cost * (1 + epsilon) / jnp.minimum(jnp.where(feasible, smallest, 1), 1), jnp.inf
    )
    slope, multipliers = row_dual(problem, dual)
    norm = jnp.max(jnp.linalg.svdvals(slope / roots[:, None])) * (1 + epsilon)
    lower = jnp.sum(multipliers * problem.margins[:, None]) * (1 - epsilon) / norm
    return _evidence(value, lower, smallest, norm, spread)


def row_margins(
    problem: RowMargins, logits: Float[Array, "R K"]
) -> tuple[Float[Array, "R K"], Float[Array, ""], Float[Array, ""]]:
    """Return what the mean of each support is above its row's entries, zero in the support.

    Also return the largest distance in a support from its mean, and the smallest margin, both over
    the margin asked for and with the rounding against the candidate.
    """
    inside, asked = problem.supports, problem.margins[:, None]
    scaled = problem.multipliers[None, :] * logits
    number = jnp.sum(inside, axis=1, keepdims=True, dtype=scaled.dtype)
    mean = jnp.sum(jnp.where(inside, scaled, 0), axis=1, keepdims=True) / number
    rounding = 8 * jnp.finfo(scaled.dtype).eps * (jnp.abs(mean) + jnp.abs(scaled))
    margins = mean - scaled
    spread = jnp.max(jnp.where(inside, jnp.abs(margins), 0) / asked)
    smallest = jnp.min(jnp.where(inside, jnp.inf, (margins - rounding) / asked))
    return jnp.where(inside, 0, margins), spread, smallest


def row_dual(
    problem: RowMargins, dual: Float[Array, "R K"]
) -> tuple[Float[Array, "R K"], Float[Array, "R K"]]:
    """Return the matrix Lambda that is nearest to any numbers, and its multipliers of margins."""
    inside, delta = problem.supports, problem.multipliers[None, :]
    scaled = dual / delta
    multipliers = jnp.where(inside, 0, jnp.maximum(-scaled, 0))
    own = jnp.where(inside, scaled, 0)
    missing = jnp.sum(multipliers - own, axis=1, keepdims=True)
    number = jnp.sum(inside, axis=1, keepdims=True, dtype=scaled.dtype)
    return delta * jnp.where(inside, own + missing / number, -multipliers), multipliers


def smallest_margin(problem: GroupMargins, logits: Blocks) -> Float[Array, ""]:
    """Return the smallest margin over the one asked for, less rounding; NaN if one is NaN."""
    sizes, delta, rows = problem.sizes, problem.multipliers, rows_of(logits)
    own, others = delta[:, None] * rows.own[:, None], delta[None, :] * rows.others
    parts = jnp.abs(logits.within) + jnp.abs(jnp.diagonal(logits.between)) / sizes
    size = (
        delta[:, None] * parts[:, None]
        + jnp.abs(others)
        + identity(others) * (delta * jnp.abs(logits.within) / sizes)[:, None]
    )
    margins = (own - others - 8 * jnp.finfo(sizes.dtype).eps * size) / problem.margins[:, None]
    return jnp.min(jnp.where(problem.times > 0, margins, jnp.inf))


def polar_multipliers(problem: GroupMargins, logits: Blocks) -> Float[Array, "G G"]:
    """Return the multipliers of the polar factor of D^{1/2} Z; zero where they would be negative.

    The polar factor is a subgradient of the nuclear norm.
    """
    sizes, delta, roots = problem.sizes, problem.multipliers, jnp.sqrt(problem.counts)
    unit = jnp.sqrt(sizes) / delta
    unit = unit / jnp.linalg.norm(unit)
    weighted = logits.scaled_rows(roots)
    left, values, right = jnp.linalg.svd(
        weighted.between - (weighted.between @ unit)[:, None] * unit[None, :]
    )
    polar = jnp.where((values > ZERO * values[0])[None, :], left, 0) @ right
    slope = Blocks(jnp.where(sizes > 1, jnp.sign(weighted.within), 0), polar, sizes).scaled_rows(
        roots
    )
    return jnp.where(problem.times > 0, jnp.maximum(-slope.across / delta[None, :], 0), 0)


def scaled_to_margins(problem: GroupMargins, logits: Blocks) -> Blocks:
    """Return the logits scaled to meet their smallest margin; unchanged if it is not positive."""
    smallest = smallest_margin(problem, logits)
    return logits * (1 / jnp.where(smallest > 0, smallest, 1))


def polished_dual(problem: RowMargins, logits: Any, dual: Any) -> np.ndarray:
    """Return a subgradient of the norm near `dual` that has no multiplier where no margin is tight.

    On the modes that the logits use, a subgradient is the polar factor; on the others it is free,
    up to norm one. There the path leaves it with the rounding of the logits over the smoothing, and
    it is corrected by the least change. It may be none: then its bound is low.

    Args:
        problem: Over rows.
        logits: (R, K), with the margins.
        dual: (R, K), the gradient that the path ends with.
    """
    roots, delta = np.sqrt(np.asarray(problem.weights))[:, None], np.asarray(problem.multipliers)
    logits, dual = np.asarray(logits), np.asarray(dual)
    scaled = delta * logits
    inside, asked = np.asarray(problem.supports), np.asarray(problem.margins)[:, None]
    own = np.sum(np.where(inside, scaled, 0), axis=1, keepdims=True)
    margins = own / np.sum(inside, axis=1, keepdims=True) - scaled
    loose = ~inside & (margins > (1 + LOOSE) * asked)
    # Off 1 / delta, where logits have nothing.
    basis = np.linalg.svd((1 / delta)[:, None])[0][:, 1:]
    left, values, right = np.linalg.svd(roots * logits @ basis)
    alive = int(np.sum(values > DEAD * values[0]))
    right = right @ basis.T
    free, others = left[:, alive:], right[alive:]
    polar = left[:, :alive] @ right[:alive]
    inner = free.T @ (dual / roots) @ others.T
    found = polar + free @ inner @ others
    if loose.any() and inner.size and inner.size <= MOST_FREE:
        rows, columns = np.nonzero(loose)
        system = (free[rows][:, :, None] * others.T[columns][:, None, :]).reshape(len(rows), -1)
        change = np.linalg.lstsq(system, -found[loose], rcond=1e-10)[0]
        found = found + free @ change.reshape(inner.shape) @ others
    return roots * found
