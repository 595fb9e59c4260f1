"""Ordered levels: the cumulative-link loss of one logit with fixed thresholds."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm._support import ArgumentError, as_leaf, check_numbers, is_concrete
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss
from ufm.problems.losses.rows import check_nonnegative
from ufm.problems.losses.separate import size_of_two_way_entropy, softplus, two_way_entropy

__all__ = ["Ordinal"]

HALVINGS = 60  # of the range of the logit of a dual


class Ordinal(Loss):
    r"""Cumulative-link loss of Q ordered levels, with one logit and fixed thresholds b.

    Level q has the probability sigma(b_q - z) - sigma(b_{q-1} - z), b_0 = -inf and b_Q = inf, and
    the loss is minus its logarithm,

        phi_q(z) = log(1 + e^{z - b_q}) + log(1 + e^{b_{q-1} - z}) - log(1 - e^{b_{q-1} - b_q}).

    A target row has Q non-negative numbers: one-hot for a level, or weights of several levels. A
    row has one logit. So the loss is a sum of logistic losses m_j log(1 + e^{z - b_j}) - c_j (z -
    b_j), with c_j the target of level j + 1 and m_j the sum of the targets of levels j and j + 1.
    With h(t, m) = t log(t / m) + (m - t) log(1 - t / m) the conjugate is the least sum of h(t_j,
    m_j) + b_j (t_j - c_j) over all t with the sum u + sum_j c_j. Any such t bounds it from above.
    The best one is found by halving the range of z.

    Two levels with the threshold zero are logistic regression of one logit, `nn.SoftMarginLoss` on
    labels -1 and 1. PyTorch has no loss for more levels.

    Args:
        thresholds: (Q - 1,), increasing.

    Reference: McCullagh (1980), "Regression models for ordinal data"; Ma, Obuchi, Tanaka (NeurIPS
    2025, arXiv 2506.05801) on its neural collapse.
    """

    thresholds: Any = eqx.field(converter=as_leaf)

    convex = True

    def __check_init__(self) -> None:
        """Raise ValueError unless the thresholds are increasing numbers."""
        check_numbers("thresholds", self.thresholds, several=True)
        if np.ndim(self.thresholds) != 1 or not np.size(self.thresholds):
            raise ArgumentError(
                "thresholds", "must be (Q - 1,) increasing numbers", self.thresholds
            )
        if is_concrete(self.thresholds) and not np.all(np.diff(self.thresholds) > 0):
            raise ArgumentError("thresholds", "must increase strictly", self.thresholds)

    def num_outputs(self, width: int) -> int:
        """Return one: a level has one logit."""
        return 1

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError unless there is one threshold between every two neighbouring levels."""
        self._check_levels(classes.num_classes)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError if a target is negative, or rows have another number of levels."""
        check_nonnegative(targets)
        self._check_levels(targets.shape[1])

    def _check_levels(self, levels: int) -> None:
        if np.size(self.thresholds) != levels - 1:
            raise ArgumentError(
                "thresholds",
                f"must be {levels - 1} numbers between {levels} levels, got "
                f"{np.size(self.thresholds)}",
            )

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the loss of every row, as a sum of terms that are never negative."""
        x = logits - self._thresholds(targets)
        terms = targets[:, :-1] * softplus(x) + targets[:, 1:] * softplus(-x)
        return jnp.sum(terms, axis=1) + self._least(targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row; plus infinity outside its domain."""
        b, part, rest, above = self._parts(dual, targets)
        values = two_way_entropy(part, rest, part + rest) + b * above
        inside = jnp.all(self.domain(dual, targets, classes) >= 0, axis=1)
        return jnp.where(inside, jnp.sum(values, axis=1) - self._least(targets), jnp.inf)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of its terms, row by row."""
        b, part, rest, above = self._parts(dual, targets)
        size = jnp.abs(dual)
        sizes = size_of_two_way_entropy(part, rest, part + size, rest + size)
        sizes = sizes + jnp.abs(b) * (jnp.abs(above) + size)
        return jnp.sum(sizes, axis=1) + self._least(targets)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the distances of u from its least and its largest value, (n, 2)."""
        below = jnp.sum(targets[:, 1:], axis=1, keepdims=True)
        above = jnp.sum(targets[:, :-1], axis=1, keepdims=True)
        return jnp.concatenate([below + dual, above - dual], axis=1)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the dual whose sum of slopes is one share of its range in all rows.

        The constant logit of least mean loss has no closed form. The result is another dual, not
        the gradients there.
        """
        low, high = jnp.split(self.domain(jnp.zeros_like(targets[:, :1]), targets, classes), 2, 1)
        lows, highs = jnp.sum(shares[:, None] * low), jnp.sum(shares[:, None] * high)
        total = jnp.where(lows + highs > 0, lows + highs, 1)
        return (high * lows - low * highs) / total

    def _thresholds(self, targets: Array) -> Array:
        return jnp.asarray(self.thresholds, targets.dtype)[None, :]

    def _least(self, targets: Array) -> Array:
        """Return the part of the loss besides the logistic losses, from inner levels."""
        gaps = jnp.diff(self._thresholds(targets), axis=1)
        return jnp.sum(targets[:, 1:-1] * -jnp.log(-jnp.expm1(-gaps)), axis=1)

    def _parts(self, dual: Array, targets: Array) -> tuple[Array, Array, Array, Array]:
        """Return b, and of every threshold t, m - t and t - c at the best split of a dual."""
        b = self._thresholds(targets)
        lower, upper = targets[:, :-1], targets[:, 1:]
        whole = lower + upper
        part, rest = jnp.split(self.domain(dual, targets, None), 2, axis=1)  # type: ignore[arg-type]
        part, rest = jnp.maximum(part, 0), jnp.maximum(rest, 0)
        tiny = jnp.finfo(b.dtype).tiny
        odds = jnp.log(jnp.maximum(part, tiny)) - jnp.log(jnp.maximum(rest, tiny))

        def halved(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            at = jnp.sum(whole * jax.nn.sigmoid(middle - b), axis=1, keepdims=True)
            left = jnp.sum(whole * jax.nn.sigmoid(b - middle), axis=1, keepdims=True)
            # The smaller of the two sums decides, because it has all its digits.
            low = jnp.where(part < rest, at < part, left > rest)
            return jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)

        ends = odds + jnp.min(b), odds + jnp.max(b)
        low, high = jax.lax.fori_loop(0, HALVINGS, halved, ends)
        z = 0.5 * (low + high)
        t, s = whole * jax.nn.sigmoid(z - b), whole * jax.nn.sigmoid(b - z)
        # The part whose sum is too large gives the excess to the other: both sums become exact.
        at, left = jnp.sum(t, axis=1, keepdims=True), jnp.sum(s, axis=1, keepdims=True)
        kept = jnp.minimum(1, part / jnp.where(at > 0, at, 1))
        stay = jnp.minimum(1, rest / jnp.where(left > 0, left, 1))
        t, s = kept * t + (1 - stay) * s, stay * s + (1 - kept) * t
        return b, t, s, jnp.where(t < s, t - upper, lower - s)
