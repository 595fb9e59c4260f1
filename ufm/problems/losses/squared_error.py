"""Squared error."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ufm.problems.class_sizes import ClassGroups
from ufm.problems.group_losses import GroupLoss, group_loss
from ufm.problems.losses.loss import Loss
from ufm.problems.losses.separate import mean_less_by_column

__all__ = ["SquaredError"]


class SquaredError(Loss):
    r"""Squared error, with one half: l(z, y) = 1/2 ||z - y||^2.

    Target rows are any numbers. Its conjugate is 1/2 ||u||^2 + <u, y>.

    PyTorch: `nn.MSELoss()` takes the mean over the K outputs, too, and is this loss times 2 / K.
    Its penalties are K / 2 times as large here.
    """

    name = "mse"
    convex = True

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return half the squared distance of every row of logits to its target."""
        return 0.5 * jnp.sum((logits - targets) ** 2, axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row."""
        return jnp.sum(dual * (0.5 * dual + targets), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of both terms, row by row."""
        return jnp.sum(jnp.abs(dual) * (0.5 * jnp.abs(dual) + jnp.abs(targets)), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return ones: the domain is the whole space."""
        return jnp.ones_like(dual)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return mean_less_by_column(targets, shares)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the form of squared error."""
        return group_loss(counts, kind="squared-error", shift_invariant=False)
