"""Losses of one number per logit: Huber's, and that of counts."""

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array

from ufm._support import Number, as_leaf, check_numbers
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.rows import check_nonnegative
from ufm.problems.losses.separate import beyond_linear, mean_less_by_column

__all__ = ["Huber", "Poisson"]


class Huber(Loss):
    r"""Huber's loss, summed over logits: x^2 / 2 up to |x| = delta and straight beyond, x = z - y.

    Target rows are any numbers. The conjugate is sum_c u_c^2 / 2 + u_c y_c, |u_c| <= delta.

    PyTorch: `nn.HuberLoss(delta=delta)` also takes the mean over the K outputs, so it is this loss
    over K. `nn.SmoothL1Loss(beta=delta)` is this loss over K delta. Their penalties are K, or K
    delta, times as large here.

    Args:
        delta: Where the loss becomes straight, positive.

    Reference: Huber (1964), "Robust estimation of a location parameter".
    """

    delta: Number = eqx.field(converter=as_leaf)

    name = "huber"
    convex = True
    parameters = (LossParameter("delta", "Huber delta", 0.0, searched=(1e-3, 5.0)),)

    def __check_init__(self) -> None:
        """Raise ValueError if delta is not positive."""
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

        The constant logits of least mean loss have no closed form. The result consists of the
        gradients there only if all residuals are small.
        """
        less = mean_less_by_column(targets, shares)
        half = 0.5 * jnp.asarray(self.delta, less.dtype)
        return less * jnp.minimum(1, half / jnp.maximum(jnp.max(jnp.abs(less)), half))


class Poisson(Loss):
    r"""Poisson's loss of counts y >= 0: l(z, y) = sum_c e^{z_c} - y_c z_c + y_c log y_c - y_c.

    It is half the deviance: the negative log-likelihood above its least value, which is zero at z =
    log y. The conjugate is sum_c q_c log q_c - q_c + y_c - y_c log y_c of q = y + u >= 0. The loss
    overflows where a logit exceeds 709.

    PyTorch: `nn.PoissonNLLLoss()` leaves out y log y - y, which changes no minimiser. It also takes
    the mean over the K outputs, so it is this loss over K, plus a constant of the targets. Its
    penalties are K times as large here.
    """

    name = "poisson"
    convex = True

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row, a sum of y (e^d - 1 - d) with d = z - log y."""
        some, logs = self._logs(targets)
        terms = targets * beyond_linear(jnp.where(some, logits - logs, 0))
        return jnp.sum(jnp.where(some, terms, jnp.exp(jnp.where(some, 0, logits))), axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row, a sum of y ((1 + r) log(1 + r) - r) + u log y.

        Here r = u / y. Outside the domain it is plus infinity.
        """
        some, logs = self._logs(targets)
        ratio = jnp.maximum(dual / jnp.where(some, targets, 1), -1)
        terms = targets * xlog1py(1 + ratio, ratio) - dual + dual * logs
        terms = jnp.where(some, terms, xlogy(dual, jnp.maximum(dual, 0)) - dual)
        return jnp.sum(jnp.where(targets + dual >= 0, terms, jnp.inf), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        some, logs = self._logs(targets)
        ratio = jnp.maximum(dual / jnp.where(some, targets, 1), -1)
        near = jnp.where(ratio > -1, jnp.log1p(jnp.where(ratio > -1, ratio, 0)), 0)
        slope = jnp.where(some, jnp.abs(near), jnp.abs(jnp.log(jnp.where(dual > 0, dual, 1))))
        return jnp.sum(jnp.abs(dual) * (2 + slope + jnp.abs(logs)) + targets * slope, axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the rates y + u."""
        return targets + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return mean_less_by_column(targets, shares)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError if a count is negative."""
        check_nonnegative(targets)

    def _logs(self, targets: Array) -> tuple[Array, Array]:
        """Return which counts are not zero, and the logarithms of these; zero for the others."""
        some = targets > 0
        return some, jnp.log(jnp.where(some, targets, 1))
