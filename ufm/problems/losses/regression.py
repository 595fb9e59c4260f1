"""Losses of one number per logit: Huber's, and that of counts."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array

from ufm._support import Number, as_leaf, check_numbers
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.rows import check_nonnegative
from ufm.problems.losses.separate import mean_less_by_column

__all__ = ["Huber", "Poisson"]


class Huber(Loss):
    r"""Huber's loss, summed over logits: x^2 / 2 up to |x| = delta and straight beyond, x = z - y.

    Target rows are any numbers. The conjugate is sum_c u_c^2 / 2 + u_c y_c, |u_c| <= delta.

    PyTorch: `nn.HuberLoss(delta=delta)` takes the mean over the K outputs, too, and is this loss
    over K; `nn.SmoothL1Loss(beta=delta)` is it over K delta. Their penalties are K, or K delta,
    times as large here.

    Args:
        delta: Where the loss becomes straight, positive.

    Reference: Huber (1964), "Robust estimation of a location parameter".
    """

    delta: Number = eqx.field(converter=as_leaf)

    name = "huber"
    convex = True
    parameters = (LossParameter("delta", "Huber delta", 0.0, searched=(1e-3, 5.0)),)

    def __check_init__(self) -> None:
        """Raise ValueError where delta is not positive."""
        check_numbers("delta", self.delta, positive=True)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row."""
        size, delta = jnp.abs(logits - targets), jnp.asarray(self.delta, logits.dtype)
        bent = jnp.minimum(size, delta)
        return jnp.sum(bent * (size - 0.5 * bent), axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row; plus infinity outside its domain."""
        values = dual * (0.5 * dual + targets)
        inside = jnp.abs(dual) <= jnp.asarray(self.delta, dual.dtype)
        return jnp.sum(jnp.where(inside, values, jnp.inf), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of both terms, row by row."""
        return jnp.sum(jnp.abs(dual) * (0.5 * jnp.abs(dual) + jnp.abs(targets)), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return delta + u and delta - u."""
        delta = jnp.asarray(self.delta, dual.dtype)
        return jnp.concatenate([delta + dual, delta - dual], axis=1)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets, or the part of it that half of delta allows.

        The constant logits of least mean loss have no closed form, and these are the gradients
        there only where all residuals are small.
        """
        less = mean_less_by_column(targets, shares)
        half = 0.5 * jnp.asarray(self.delta, less.dtype)
        return less * jnp.minimum(1, half / jnp.maximum(jnp.max(jnp.abs(less)), half))


class Poisson(Loss):
    r"""Poisson's negative log-likelihood of counts y >= 0: l(z, y) = sum_c e^{z_c} - y_c z_c.

    The conjugate is sum_c q_c log q_c - q_c of q = y + u >= 0. The loss is negative where counts
    are large; the least of a row is sum_c y_c - y_c log y_c. It overflows where a logit exceeds
    709.

    PyTorch: `nn.PoissonNLLLoss()` takes the mean over the K outputs, too, and is this loss over K.
    Its penalties are K times as large here.
    """

    name = "poisson"
    convex = True
    infimum = -np.inf

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row."""
        return jnp.sum(jnp.exp(logits) - targets * logits, axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row; plus infinity outside its domain."""
        q = targets + dual
        return jnp.sum(jnp.where(q >= 0, xlogy(q, jnp.maximum(q, 0)) - q, jnp.inf), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        q, made_of = targets + dual, targets + jnp.abs(dual)
        return jnp.sum(made_of * (2 + jnp.abs(jnp.log(jnp.where(q > 0, q, 1)))), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the rates y + u."""
        return targets + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return mean_less_by_column(targets, shares)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a count is negative."""
        check_nonnegative(targets)
