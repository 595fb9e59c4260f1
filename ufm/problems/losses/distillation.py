"""Distillation: a label's cross-entropy and the relative entropy of a teacher, at a temperature."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import ArgumentError, Number, as_leaf, check_numbers, is_concrete
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.rows import check_nonnegative
from ufm.problems.losses.separate import softplus
from ufm.problems.losses.softmax import (
    cross_entropy,
    entropy_of,
    mass_of,
    mean_less,
    relative_entropy,
    size_of_entropy,
)

__all__ = ["Distillation"]

HALVINGS = 60  # of the range of the multiplier of the split
NEWTON_STEPS = 12  # for a share at a multiplier; the function has slopes between one and T


class Distillation(Loss):
    r"""Distillation: l(z) = (1 - w) CE(z, y) + w T^2 KL(q || softmax(z / T)).

    A target row is y, of K numbers. The teacher's row is q = y @ teacher, its probabilities at the
    temperature T; without a teacher it is y itself. A row of 2 K numbers is y and then q.

    The conjugate is the least of l_1*(u_1) + l_2*(u_2) over all splits u = u_1 + u_2 of the two
    parts. Any split bounds it from above, as certificates need. The best split is found by halving
    the range of its multiplier, and an error of the split has an effect of second order. With a =
    (1 - w) y + u_1 and b = w T q + u_2 the conjugate is sum_c a log(a / A) + T b log(b / B) - w T^2
    q log(q / s), with A, B and s the masses of a, b and q.

    PyTorch: `(1 - w) * F.cross_entropy(z, y) + w * T**2 * F.kl_div(F.log_softmax(z / T, 1), q,
    reduction="batchmean")`.

    Args:
        weight: w, the share of the teacher, from zero to one.
        temperature: T, positive; 4 if not given.
        teacher: (K, K), the teacher's probabilities for samples of every class; or None.

    Reference: Hinton, Vinyals, Dean (2015), "Distilling the knowledge in a neural network".
    """

    weight: Number = eqx.field(converter=as_leaf)
    temperature: Number = eqx.field(converter=as_leaf, default=4.0, kw_only=True)
    teacher: Any = eqx.field(converter=as_leaf, default=None, kw_only=True)

    name = "distillation"
    convex = True
    shift_invariant = True
    parameters = (LossParameter("weight", "weight of the teacher", 0.0, searched=(0.0, 1.0)),)

    def __check_init__(self) -> None:
        """Raise ValueError if a number is out of range, or the teacher is not a matrix."""
        check_numbers("weight", self.weight, lower=0.0, below=np.nextafter(1.0, 2.0))
        check_numbers("temperature", self.temperature, positive=True)
        if self.teacher is not None:
            check_numbers("teacher", self.teacher, several=True, lower=0.0)
            if np.ndim(self.teacher) != 2:
                raise ArgumentError(
                    "teacher", f"must be (K, K), a row per class, got shape {self.teacher.shape}"
                )

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError unless the teacher has one row of probabilities per class."""
        if self.teacher is None:
            return
        K = classes.num_classes
        if np.shape(self.teacher) != (K, K):
            raise ArgumentError(
                "teacher",
                f"must be ({K}, {K}), a row per class, got shape {np.shape(self.teacher)}",
            )
        if is_concrete(self.teacher):
            sums = np.sum(np.asarray(self.teacher), axis=1)
            if not np.all(np.abs(sums - 1) <= 1e-9):
                raise ArgumentError(
                    "teacher",
                    "must have rows of probabilities, with the sum one; got a sum of "
                    f"{sums[np.argmax(np.abs(sums - 1))]:.12g}",
                )

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a target is negative."""
        check_nonnegative(targets)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row, as a sum of two terms that are never negative."""
        y, q = self._rows(targets, logits.shape[1])
        w, T = self._numbers(logits.dtype)
        taught = T**2 * relative_entropy(logits / T, q)
        return (1 - w) * cross_entropy(logits, y) + w * taught

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row, at most second-order rounding above it."""
        (_, q), (_, T), split = self._split(dual, targets)
        value = entropy_of(split.own, split.own_mass) + T * entropy_of(split.rest, split.rest_mass)
        value = value - split.factor * entropy_of(q, mass_of(q))
        return jnp.where(jnp.all(split.both >= 0, axis=1), value, jnp.inf)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the terms of all parts, row by row."""
        (y, q), (w, T), split = self._split(dual, targets)
        made_of = jnp.abs(dual) + (1 - w) * y + w * T * q
        size = size_of_entropy(split.own, made_of, split.own_mass)
        size = size + T * size_of_entropy(split.rest, made_of, split.rest_mass)
        return size + split.factor * size_of_entropy(q, q, mass_of(q))

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of both parts' numbers, (1 - w) y + w T q + u."""
        y, q = self._rows(targets, dual.shape[1])
        w, T = self._numbers(dual.dtype)
        return (1 - w) * y + w * T * q + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the sum of both parts' duals at their own best constant logits."""
        y, q = self._rows(targets, self._width(targets))
        w, T = self._numbers(targets.dtype)
        return (1 - w) * mean_less(y, shares) + w * T * mean_less(q, shares)

    def _numbers(self, dtype: Any) -> tuple[Array, Array]:
        return jnp.asarray(self.weight, dtype), jnp.asarray(self.temperature, dtype)

    def _width(self, targets: Array) -> int:
        """Return K if the teacher tells it, otherwise the width of the rows."""
        return targets.shape[1] if self.teacher is None else int(np.shape(self.teacher)[0])

    def _rows(self, targets: Array, width: int) -> tuple[Array, Array]:
        """Return the label's row and the teacher's."""
        y, q = targets[:, :width], targets[:, width:]
        if q.shape[1]:
            return y, q
        return y, y if self.teacher is None else y @ jnp.asarray(self.teacher, y.dtype)

    def _split(
        self, dual: Array, targets: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array], "_Split"]:
        """Return the rows, the numbers, and the best split of a dual."""
        y, q = self._rows(targets, dual.shape[1])
        w, T = self._numbers(dual.dtype)
        masses = (1 - w) * mass_of(y), w * T * mass_of(q)
        both = (1 - w) * y + w * T * q + dual
        own, rest = _best_split(both, *masses, T)
        return (y, q), (w, T), _Split(both, own, rest, *masses, w * T**2)


class _Split(NamedTuple):
    """The numbers of a dual (n, K), in two parts of given masses (n, 1), and w T^2."""

    both: Array
    own: Array
    rest: Array
    own_mass: Array
    rest_mass: Array
    factor: Array


def _best_split(
    both: Float[Array, "n K"], own_mass: Array, rest_mass: Array, temperature: Array
) -> tuple[Array, Array]:
    """Return non-negative parts a + b = r of the masses A and B with least a log a + T b log b.

    At the minimum log a - T log b is one number for all entries of a row. With the share f of a in
    r, log f - T log(1 - f) is that number plus (T - 1) log r. The sum of f r increases in it.
    """
    T, some = temperature, both > 0
    scale = (T - 1) * jnp.log(jnp.where(some, both, 1))
    total = jnp.where(own_mass + rest_mass > 0, own_mass + rest_mass, 1)
    even = jnp.clip(own_mass / total, 1e-300, 1 - jnp.finfo(both.dtype).eps)
    level = jnp.log(even) - T * jnp.log1p(-even)

    def share(multiplier: Array) -> Array:
        """Return f, by Newton's method for its log-odds."""
        wanted = multiplier + scale
        odds = jnp.where(wanted > 0, wanted / T, wanted)
        for _ in range(NEWTON_STEPS):
            value = T * softplus(odds) - softplus(-odds) - wanted
            odds = odds - value / (T * jax.nn.sigmoid(odds) + jax.nn.sigmoid(-odds))
        return jax.nn.sigmoid(odds)

    def halved(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        mass = jnp.sum(jnp.where(some, share(middle) * both, 0), axis=1, keepdims=True)
        return jnp.where(mass < own_mass, middle, ends[0]), jnp.where(
            mass < own_mass, ends[1], middle
        )

    # At one end of the range no share is above the even one, and at the other end none is below.
    low = jnp.min(jnp.where(some, level - scale, jnp.inf), axis=1, keepdims=True)
    high = jnp.max(jnp.where(some, level - scale, -jnp.inf), axis=1, keepdims=True)
    ends = jnp.where(low <= high, low, level), jnp.where(low <= high, high, level)
    low, high = jax.lax.fori_loop(0, HALVINGS, halved, ends)
    shares = share(0.5 * (low + high))
    own, rest = (jnp.where(some, part * both, 0) for part in (shares, 1 - shares))
    # The part whose mass is too large gives the excess to the other, so that both masses are exact.
    of_own, of_rest = (jnp.sum(part, axis=1, keepdims=True) for part in (own, rest))
    kept = jnp.minimum(1, own_mass / jnp.where(of_own > 0, of_own, 1))
    left = jnp.minimum(1, rest_mass / jnp.where(of_rest > 0, of_rest, 1))
    return kept * own + (1 - left) * rest, left * rest + (1 - kept) * own
