"""Cross-entropy, and its variants with one number for all classes: label smoothing, focal loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ufm._support import Number, as_leaf
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.group_losses import GroupLoss, group_loss
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.rows import check_nonnegative, check_rows
from ufm.problems.losses.softmax import (
    cross_entropy,
    entropy_size,
    mass_of,
    mean_less,
    negative_entropy,
)

__all__ = ["CrossEntropy", "Focal", "LabelSmoothing", "OfCrossEntropy"]


class OfCrossEntropy(Loss):
    r"""Cross-entropy of scaled and shifted logits, l(z, y) = CE(s z + o, q).

    Target rows are non-negative, of any mass m = sum_c y_c, and CE(z, q) = m logsumexp(z) - <q, z>:
    mass one is a distribution, a row of ones and zeros is pick-all-labels, and a row of mass zero
    has no loss. The scales s are positive. With the negative entropy E(p) = sum_c p_c log(p_c / m),
    the conjugate is E(q + u / s) - <u / s, o>.
    """

    convex = True
    shift_invariant = True

    def soft_targets(self, targets: Array) -> Array:
        """Return q, (n, K)."""
        return targets

    def scales(self, targets: Array, classes: ClassGroups) -> Array | None:
        """Return s, one number per class (1, K) or per row (n, 1); None for one."""
        return None

    def shifts(self, targets: Array, classes: ClassGroups) -> Array | None:
        """Return o, one number per class (1, K) or per entry (n, K); None for zero."""
        return None

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of every row."""
        scales, shifts = self.scales(targets, classes), self.shifts(targets, classes)
        scaled = logits if scales is None else logits * scales
        moved = scaled if shifts is None else scaled + shifts
        return cross_entropy(moved, self.soft_targets(targets))

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return E(q + u / s) - <u / s, o>, row by row."""
        slopes, shifts = self._slopes(dual, targets, classes), self.shifts(targets, classes)
        entropy = negative_entropy(self.soft_targets(targets), slopes)
        return entropy if shifts is None else entropy - jnp.sum(slopes * shifts, axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the terms of both parts, row by row."""
        slopes, shifts = self._slopes(dual, targets, classes), self.shifts(targets, classes)
        size = entropy_size(self.soft_targets(targets), slopes)
        return size if shifts is None else size + jnp.sum(jnp.abs(slopes * shifts), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities q + u / s."""
        return self.soft_targets(targets) + self._slopes(dual, targets, classes)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return s times the mean target, at every row's mass, less the targets."""
        scales = self.scales(targets, classes)
        less = mean_less(targets, shares)
        return less if scales is None else scales * less

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a target is negative."""
        check_nonnegative(targets)

    def _slopes(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        scales = self.scales(targets, classes)
        return dual if scales is None else dual / scales


class CrossEntropy(OfCrossEntropy):
    r"""Cross-entropy: l(z, y) = m logsumexp(z) - <y, z>, m = sum_c y_c the mass of the target row.

    The conjugate is the negative entropy sum_c q_c log(q_c / m) of q = y + u >= 0, of mass m. With
    the labels of a sample as a row of ones and zeros it is the pick-all-labels loss, one
    cross-entropy per label (Li, Li, Wang, Qu, ICML 2024). Their code divides the row by its mass:
    give such rows for their numbers.

    PyTorch: `nn.CrossEntropyLoss()`, with class indices or with these rows as probabilities. The
    mean is over samples, as here, so penalties need no conversion.
    """

    name = "ce"

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the plain form."""
        return group_loss(counts)


class LabelSmoothing(OfCrossEntropy):
    r"""Cross-entropy against smoothed targets (1 - alpha) y + alpha m / K, m = sum_c y_c.

    PyTorch: `nn.CrossEntropyLoss(label_smoothing=alpha)`.

    Args:
        alpha: The share of the target spread evenly over all K classes, 0 <= alpha < 1.
    """

    alpha: Number = eqx.field(converter=as_leaf)

    name = "label-smoothing"
    parameters = (LossParameter("alpha", "smoothing", 0.0, 1.0, searched=(0.0, 0.999)),)

    def soft_targets(self, targets: Array) -> Array:
        """Return the smoothed targets."""
        alpha = jnp.asarray(self.alpha, targets.dtype)
        return (1 - alpha) * targets + alpha * mass_of(targets) / targets.shape[1]

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean smoothed target at every row's mass less the smoothed targets.

        The share alpha / K of every class cancels, which leaves the factor 1 - alpha. Computed from
        the smoothed targets, the difference would lose the digits of small shares.
        """
        return (1 - jnp.asarray(self.alpha, targets.dtype)) * mean_less(targets, shares)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the form with smoothed targets."""
        return group_loss(counts, smoothing=self.alpha)


class Focal(Loss):
    r"""Focal loss: l(z, y) = -(1 - p_y)^gamma log p_y, the cross-entropy at gamma = 0.

    Not convex for gamma > 0.

    Args:
        gamma: The focusing parameter, gamma >= 0.

    Reference: Lin, Goyal, Girshick, He, Dollar (ICCV 2017).
    """

    gamma: Number = eqx.field(converter=as_leaf)

    name = "focal"
    shift_invariant = True
    parameters = (LossParameter("gamma", "focal gamma", 0.0),)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the focal loss of every row."""
        gamma = jnp.asarray(self.gamma, logits.dtype)
        # 1 - p_y as the sum of the other probabilities, so that no digits are lost near p_y = 1.
        others = jnp.sum((1 - targets) * jax.nn.softmax(logits, axis=1), axis=1)
        # The derivatives of a power are not finite at zero, which the sum reaches if exponentials
        # underflow. The power is then computed from the logarithm of the sum.
        smallest = jnp.sqrt(jnp.finfo(logits.dtype).tiny).astype(logits.dtype)
        logarithm = jax.nn.logsumexp(logits, axis=1, b=1 - targets) - jax.nn.logsumexp(
            logits, axis=1
        )
        power = jnp.where(
            others > smallest, jnp.maximum(others, smallest) ** gamma, jnp.exp(gamma * logarithm)
        )
        return power * cross_entropy(logits, targets)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a row is no distribution over classes."""
        mass = jnp.sum(targets, axis=1, keepdims=True)
        good = (targets >= 0) & (jnp.abs(mass - 1) <= 1e-9)
        check_rows(targets, good, "distributions over classes, of mass one, for this loss")
