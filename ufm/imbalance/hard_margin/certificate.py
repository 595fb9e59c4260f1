r"""Lower bounds for the hard-margin problem: Lagrangian duality, at the cost of G groups.

Multipliers lambda_yc >= 0 of the margins make the matrix Lambda, with -delta_c lambda_yc in row y
off the diagonal and delta_y sum_c lambda_yc on it, and

    ||D^{1/2} Z||_* >= theta <Lambda, Z> >= theta sum_yc lambda_yc gamma_y,
    theta = 1 / ||D^{-1/2} Lambda||,

for every Z that has the margins. The bound holds for any non-negative numbers; it is lowered, and
the norm raised, by 4 (G + 16) machine epsilons.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.imbalance.hard_margin.problem import GroupMargins
from ufm.problems import Blocks, identity, rows_of

__all__ = [
    "MarginEvidence",
    "margin_evidence",
    "polar_multipliers",
    "scaled_to_margins",
    "smallest_margin",
]

# Share by which a candidate's margins may fall short. Its value is that of the candidate scaled up.
SHORT = 1e-9
ROUNDING = 1e-12  # value and bound are moved apart by their rounding already
ZERO = 1e-12  # singular value relative to the largest that counts as zero


class MarginEvidence(NamedTuple):
    """What a certificate of the hard-margin problem is made of.

    Attributes:
        value: Cost of the candidate, (); infinite where it does not have the margins.
        lower_bound: The lower bound, ().
        smallest_margin: The smallest over constraints, as a multiple of the margin asked for, ().
        norm: Norm of D^{-1/2} Lambda for the multipliers as given, ().
        relative_gap: Value less lower bound, over the lower bound, (); infinite where that is zero.
    """

    value: Float[Array, ""]
    lower_bound: Float[Array, ""]
    smallest_margin: Float[Array, ""]
    norm: Float[Array, ""]
    relative_gap: Float[Array, ""]

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
    lower = jnp.where(jnp.isfinite(lower) & (norm > 0), lower, 0)
    gap = jnp.where(lower > 0, (value - lower) / jnp.where(lower > 0, lower, 1), jnp.inf)
    return MarginEvidence(value, lower, smallest, norm, gap)


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
