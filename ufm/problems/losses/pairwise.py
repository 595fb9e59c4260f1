r"""Losses of the differences between the logits of the other classes and that of the own class.

Letters: x_c = z_c - z_y for c != y, y the own class of the row, and s its mass: target rows are s
times one-hot rows. In a dual u, the entry u_y is minus the sum of the others, so formulas name only
the others.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array

from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss
from ufm.problems.losses.rows import check_rows
from ufm.problems.losses.separate import size_of_two_way_entropy, softplus, two_way_entropy
from ufm.problems.losses.softmax import mass_of

__all__ = [
    "CrammerSinger",
    "Exponential",
    "PairwiseLogistic",
    "SoftenedHinge",
    "SquaredHinge",
    "WestonWatkins",
]


class _OwnClass(Loss):
    """A loss for target rows of one class each, of any mass."""

    convex = True
    shift_invariant = True

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a row has a negative target, or more than one label."""
        labels = jnp.sum(targets != 0, axis=1, keepdims=True)
        words = "one label to a row, with a weight >= 0, for this loss"
        check_rows(targets, (targets >= 0) & (labels <= 1), words)

    def differences(self, logits: Array, targets: Array) -> Array:
        """Return z_c - z_y; zero at the own class, and in rows without one."""
        own, mass = _own(targets), mass_of(targets)
        label = jnp.sum(jnp.where(own, logits, 0), axis=1, keepdims=True)
        return jnp.where(own | (mass == 0), 0, logits - label)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return s times the flow of every pair; the exchange between two classes cancels."""
        own, mass = _own(targets), mass_of(targets)
        of_class = jnp.sum(shares[:, None] * targets, axis=0)[None, :]
        of_class = of_class / jnp.where(jnp.sum(of_class) > 0, jnp.sum(of_class), 1)
        of_row = jnp.sum(jnp.where(own, of_class, 0), axis=1, keepdims=True)
        there = (of_class > 0) & (of_row > 0)
        flow = self.flow(jnp.where(there, of_class, 1), jnp.where(there, of_row, 1))
        others = jnp.where(there & ~own, mass * flow, 0)
        return jnp.where(own, -jnp.sum(others, axis=1, keepdims=True), others)

    @abc.abstractmethod
    def flow(self, other: Array, own: Array) -> Array:
        """Return the dual of a pair, with p the share of the other class and q of the own.

        q flow(p, q) must be symmetric in p and q.
        """


class _Pairwise(_OwnClass):
    """The sum over the other classes of phi(x_c), where phi has slopes from zero to `steepest`."""

    steepest: ClassVar[float] = np.inf

    @abc.abstractmethod
    def of_pair(self, x: Array) -> Array:
        """Return phi(x)."""

    @abc.abstractmethod
    def conjugate_of_pair(self, slope: Array) -> Array:
        """Return phi*(t), for slopes t from zero to the steepest."""

    @abc.abstractmethod
    def size_of_pair(self, slope: Array) -> Array:
        """Return the sum of the magnitudes of the terms of phi*(t)."""

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row; not a number where a row has more than one label."""
        values = jnp.where(_own(targets), 0, self.of_pair(self.differences(logits, targets)))
        return _weight(targets) * jnp.sum(values, axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return sum_c s phi*(u_c / s), row by row; plus infinity outside its domain."""
        slopes, whole, inside = self._slopes(dual, targets, classes)
        values = jnp.where(_own(targets), 0, whole * self.conjugate_of_pair(slopes))
        return jnp.sum(jnp.where(inside, values, jnp.inf), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        slopes, whole, _ = self._slopes(dual, targets, classes)
        sizes = jnp.where(_own(targets), 0, whole * self.size_of_pair(slopes))
        return jnp.sum(sizes, axis=1) + jnp.sum(jnp.abs(dual), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return u_c, and s times the steepest slope less u_c; s itself at the own class.

        A row of mass zero has the dual zero only.
        """
        own, mass = _own(targets), mass_of(targets)
        below = jnp.where(own, mass, dual)
        if np.isfinite(self.steepest):
            above = self.steepest * mass - dual
        else:
            above = jnp.where(mass > 0, jnp.ones_like(dual), -dual)
        return jnp.concatenate([below, jnp.where(own, mass, above)], axis=1)

    def _slopes(
        self, dual: Array, targets: Array, classes: ClassGroups
    ) -> tuple[Array, Array, Array]:
        """Return u / s clipped to the slopes of phi, s (one for zero), and what is inside."""
        numbers = self.domain(dual, targets, classes)
        below, above = jnp.split(numbers, 2, axis=1)
        whole = _or_one(mass_of(targets))
        slopes = jnp.clip(jnp.where(_own(targets), 0, dual) / whole, 0, self.steepest)
        return slopes, whole, (below >= 0) & (above >= 0)


class PairwiseLogistic(_Pairwise):
    r"""Logistic loss of every pair: l(z, y) = sum_{c != y} log(1 + e^{z_c - z_y}).

    With h(t) = t log t + (1 - t) log(1 - t) the conjugate is sum_{c != y} h(u_c), 0 <= u_c <= 1. A
    target row is one label times a weight.

    PyTorch has no such loss. `nn.SoftMarginLoss` on z_y - z_c takes the mean over the pairs, and
    equals this loss over K - 1.
    """

    name = "pairwise-logistic"
    steepest = 1.0

    def of_pair(self, x: Array) -> Array:
        """Return log(1 + e^x)."""
        return softplus(x)

    def conjugate_of_pair(self, slope: Array) -> Array:
        """Return h(t)."""
        return two_way_entropy(slope, 1 - slope, jnp.ones_like(slope))

    def size_of_pair(self, slope: Array) -> Array:
        """Return the sum of the magnitudes of its terms."""
        return size_of_two_way_entropy(slope, 1 - slope, slope, 1 + slope)

    def flow(self, other: Array, own: Array) -> Array:
        """Return the slope at the constant logits log p: p / (p + q)."""
        return other / (other + own)


class Exponential(_Pairwise):
    r"""Exponential loss of every pair: l(z, y) = sum_{c != y} e^{z_c - z_y}.

    The conjugate is sum_{c != y} u_c log u_c - u_c, u_c >= 0. The loss overflows where a difference
    exceeds 709. A target row is one label times a weight. PyTorch has no such
    loss.

    Reference: Mukherjee, Schapire (JMLR 2013) on multiclass boosting.
    """

    name = "exponential"

    def of_pair(self, x: Array) -> Array:
        """Return e^x."""
        return jnp.exp(x)

    def conjugate_of_pair(self, slope: Array) -> Array:
        """Return t log t - t."""
        return xlogy(slope, slope) - slope

    def size_of_pair(self, slope: Array) -> Array:
        """Return the sum of the magnitudes of its terms."""
        return slope * (2 + jnp.abs(jnp.log(_or_one(slope))))

    def flow(self, other: Array, own: Array) -> Array:
        """Return the slope at the constant logits (1/2) log p: sqrt(p / q)."""
        return jnp.sqrt(other / own)


class SquaredHinge(_Pairwise):
    r"""Squared hinge loss of every pair: l(z, y) = 1/2 sum_{c != y} max(0, 1 + z_c - z_y)^2.

    The conjugate is sum_{c != y} u_c^2 / 2 - u_c, u_c >= 0. A target row is one label times a
    weight.

    PyTorch: `nn.MultiMarginLoss(p=2)` is this loss times 2 / K. Its penalties are K / 2 times as
    large here.
    """

    name = "squared-hinge"

    def of_pair(self, x: Array) -> Array:
        """Return max(0, 1 + x)^2 / 2."""
        return 0.5 * jnp.maximum(0, 1 + x) ** 2

    def conjugate_of_pair(self, slope: Array) -> Array:
        """Return t^2 / 2 - t."""
        return slope * (0.5 * slope - 1)

    def size_of_pair(self, slope: Array) -> Array:
        """Return the sum of the magnitudes of both terms."""
        return slope * (0.5 * slope + 1)

    def flow(self, other: Array, own: Array) -> Array:
        """Return the slope 2 p / (p + q): at most two."""
        return 2 * other / (other + own)


class _Hinge(_OwnClass):
    """A loss sup <t, 1 + x> over a set of duals t of the other classes: not smooth."""

    @abc.abstractmethod
    def nearest(self, points: Array, targets: Array) -> Array:
        """Return the nearest duals of the other classes, zero at the own class."""

    def softened(self, center: Array, width: Array, *, exact: bool = False) -> Loss:
        """Return the loss with its kinks rounded off around given duals."""
        return SoftenedHinge(self, center, width, exact)


class WestonWatkins(_Hinge, _Pairwise):
    r"""Hinge loss of every pair: l(z, y) = sum_{c != y} max(0, 1 + z_c - z_y).

    It is not smooth. The conjugate is -sum_{c != y} u_c, 0 <= u_c <= 1. A target row is one label
    times a weight.

    PyTorch: `nn.MultiMarginLoss()` is this loss over K. Its penalties are K times as large here.

    Reference: Weston, Watkins (ESANN 1999).
    """

    name = "weston-watkins"
    steepest = 1.0

    def of_pair(self, x: Array) -> Array:
        """Return max(0, 1 + x)."""
        return jnp.maximum(0, 1 + x)

    def conjugate_of_pair(self, slope: Array) -> Array:
        """Return -t."""
        return -slope

    def size_of_pair(self, slope: Array) -> Array:
        """Return its magnitude."""
        return slope

    def flow(self, other: Array, own: Array) -> Array:
        """Return the slope p / (p + q)."""
        return other / (other + own)

    def nearest(self, points: Array, targets: Array) -> Array:
        """Return the points between zero and the mass."""
        mass = mass_of(targets)
        return jnp.where(_own(targets), 0, jnp.clip(points, 0, mass))


class CrammerSinger(_Hinge):
    r"""Hinge loss of the largest rival: l(z, y) = max(0, 1 + max_{c != y} z_c - z_y).

    It is not smooth. The conjugate is -sum_{c != y} u_c, for u_c >= 0 with a sum of at most one. A
    target row is one label times a weight. PyTorch has no such loss.

    Reference: Crammer, Singer (JMLR 2001).
    """

    name = "crammer-singer"

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row; not a number where a row has more than one label."""
        rivals = jnp.where(_own(targets), -1, self.differences(logits, targets))
        return _weight(targets) * jnp.maximum(0, 1 + jnp.max(rivals, axis=1))

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return minus the sum of u_c, row by row; plus infinity outside the domain."""
        inside = jnp.all(self.domain(dual, targets, classes) >= 0, axis=1)
        total = jnp.sum(jnp.where(_own(targets), 0, dual), axis=1)
        return jnp.where(inside, -total, jnp.inf)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return u_c, and s less their sum at the own class."""
        own, mass = _own(targets), mass_of(targets)
        rest = mass - jnp.sum(jnp.where(own, 0, dual), axis=1, keepdims=True)
        return jnp.where(own, rest, dual)

    def flow(self, other: Array, own: Array) -> Array:
        """Return p; the sum over all others is less than one."""
        return other * jnp.ones_like(own)

    def nearest(self, points: Array, targets: Array) -> Array:
        """Return the nearest points of the simplex: all less one number, and none below zero.

        The number is zero if they add up to less than the mass.
        """
        own, mass = _own(targets), mass_of(targets)
        sorted_points = -jnp.sort(jnp.where(own, jnp.inf, -points), axis=1)
        ranks = jnp.arange(1, points.shape[1] + 1, dtype=points.dtype)[None, :]
        # The own class comes last, with minus infinity.
        finite = jnp.where(jnp.isfinite(sorted_points), sorted_points, 0)
        less = (jnp.cumsum(finite, axis=1) - mass) / ranks
        last = jnp.sum(sorted_points > less, axis=1, keepdims=True)
        level = jnp.take_along_axis(less, jnp.maximum(last - 1, 0), axis=1)
        return jnp.where(own, 0, jnp.maximum(points - jnp.maximum(level, 0), 0))


class SoftenedHinge(_OwnClass):
    r"""A hinge loss with its kinks rounded off: sup_t <t, 1 + x> - (width / 2) ||t - center||^2.

    It is at most the hinge loss, and its gradient lies in the same domain. With the duals of its
    minimiser as the next center (the method of multipliers) the minimisers approach that of the
    hinge loss, at any width: the objective's kinks are met exactly in the limit. Every row has its
    own center, so the rows must be those of the problem, in their order.

    Args:
        loss: `WestonWatkins()` or `CrammerSinger()`.
        center: (R, K), a dual of the other classes for every row; or (1, K) for all.
        width: By how much a difference of logits moves while a dual moves by one.
        exact: Whether the conjugate is that of the hinge loss itself. Then the gradients are duals
            that go with the logits, and bounds from them are bounds for the hinge loss.

    Reference: Rockafellar (1976), "Augmented Lagrangians and applications of the proximal point
    algorithm in convex programming".
    """

    loss: Any
    center: Any
    width: Any
    exact: bool = eqx.field(static=True)

    @property
    def infimum(self) -> float:  # type: ignore[override]
        """Zero, that of the hinge loss, for its bounds; none is known of what is rounded off."""
        return 0.0 if self.exact else -np.inf

    def duals(self, logits: Array, targets: Array) -> Array:
        """Return t, (n, K), zero at the own class."""
        x = self.loss.differences(logits, targets)
        points = jnp.asarray(self.center, x.dtype) + (1 + x) / self.width
        return self.loss.nearest(points, targets)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row."""
        x, t = self.loss.differences(logits, targets), self.duals(logits, targets)
        # The derivative by t vanishes, or points out of the domain.
        t = jax.lax.stop_gradient(t) if self.exact else t
        return jnp.sum(t * (1 + x), axis=1) - self._rounding_off(t, targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of the hinge loss, and of what is rounded off unless exact."""
        value = self.loss.conjugate(dual, targets, classes)
        return value if self.exact else value + self._rounding_off(dual, targets)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        size = self.loss.conjugate_size(dual, targets, classes)
        return size if self.exact else size + self._rounding_off(dual, targets)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return that of the hinge loss."""
        return self.loss.domain(dual, targets, classes)

    def flow(self, other: Array, own: Array) -> Array:
        """Return that of the hinge loss."""
        return self.loss.flow(other, own)

    def _rounding_off(self, dual: Array, targets: Array) -> Array:
        off = jnp.where(_own(targets), 0, dual - jnp.asarray(self.center, dual.dtype))
        return 0.5 * self.width * jnp.sum(off**2, axis=1)


def _own(targets: Array) -> Array:
    """Return whether an entry is that of the row's own class."""
    index = jnp.argmax(targets, axis=1)[:, None]
    return index == jnp.arange(targets.shape[1])[None, :]


def _weight(targets: Array) -> Array:
    """Return the mass of every row, not a number for rows that have more than one label."""
    one = jnp.sum(targets != 0, axis=1) <= 1
    return jnp.where(one, jnp.sum(targets, axis=1), jnp.nan)


def _or_one(values: Array) -> Array:
    return jnp.where(values > 0, values, 1)
