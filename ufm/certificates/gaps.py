"""What a gap is measured against, and how far below zero rounding may take it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["relative_scale", "rounding_of"]

SAFETY = 8.0  # of the machine epsilons per class
# Share by which norm balls may be exceeded, with what that is worth to the objective.
INFEASIBLE = 4e-12


def relative_scale(lower: Any, at_zero: Any, infimum: float = 0.0) -> Any:
    """Return what a gap is measured against.

    It is the lower bound, but at least 1e-6 of the objective at zero, both above the infimum of the
    loss.

    It is never the candidate's own value, which could be anything, and is always positive.

    Args:
        lower: lower bound, () or a batch.
        at_zero: the objective of zero logits.
        infimum: of the loss; ignored where it is not finite.
    """
    xp = jnp if isinstance(lower, jax.Array) or isinstance(at_zero, jax.Array) else np
    floor = infimum if np.isfinite(infimum) else 0.0
    return xp.maximum(
        xp.maximum(lower - floor, 1e-6 * (at_zero - floor)), np.finfo(np.float64).tiny
    )


def rounding_of(objective: Any, at_zero: Any, largest: Any, size: int, bounded: bool) -> Any:
    """Return by how much rounding may take an objective below its lower bound.

    More than that is a contradiction.

    Bounds are already lowered by their own rounding. The rounding of the objective is some epsilons
    of itself and of the terms of the loss, which cancel. These are as large as the largest logit
    times the loss at zero.

    Args:
        objective: of the candidate.
        at_zero: the objective of zero logits.
        largest: the largest logit in size.
        size: classes, or groups of classes.
        bounded: whether a candidate may exceed bounds on its norms by a part in 10^12.
    """
    part = SAFETY * (size + 16) * np.finfo(np.float64).eps + (INFEASIBLE if bounded else 0.0)
    return part * (abs(objective) + abs(at_zero) * (1 + largest))
