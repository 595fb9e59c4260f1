"""Binary cross-entropy: a logistic loss for every logit."""

import jax.numpy as jnp
from jaxtyping import Array

from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss
from ufm.problems.losses.rows import check_rows
from ufm.problems.losses.separate import (
    mean_less_by_column,
    size_of_two_way_entropy,
    softplus,
    two_way_entropy,
)

__all__ = ["BinaryCrossEntropy"]


class BinaryCrossEntropy(Loss):
    r"""Binary cross-entropy, summed over logits: l(z, y) = sum_c log(1 + e^{z_c}) - y_c z_c.

    Target rows have entries in [0, 1]: the labels that a sample has, or their probabilities. With
    h(q) = q log q + (1 - q) log(1 - q) the conjugate is sum_c h(y_c + u_c).

    PyTorch: `nn.BCEWithLogitsLoss()` also takes the mean over the K logits, so it is this loss over
    K. Its penalties on weights, features and bias are K times as large here.

    Reference: Li, Xiao, Shen (ICML 2025, arXiv 2505.05813) on its neural collapse.
    """

    name = "bce"
    convex = True

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row, as a sum of terms that are never negative."""
        off = (1 - targets) * softplus(logits)
        return jnp.sum(targets * softplus(-logits) + off, axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return sum_c h(y_c + u_c), row by row."""
        on, off = targets + dual, (1 - targets) - dual
        return jnp.sum(two_way_entropy(on, off, jnp.ones_like(on)), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        on, off, size = targets + dual, (1 - targets) - dual, jnp.abs(dual)
        return jnp.sum(size_of_two_way_entropy(on, off, targets + size, 1 - targets + size), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities y + u of the labels, and those of their absence."""
        return jnp.concatenate([targets + dual, (1 - targets) - dual], axis=1)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return mean_less_by_column(targets, shares)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError if a target is not a probability."""
        check_rows(
            targets, (targets >= 0) & (targets <= 1), "in [0, 1], how present every label is"
        )
