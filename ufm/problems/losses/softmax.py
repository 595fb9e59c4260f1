"""Cross-entropy and negative entropy of rows of any mass, to full relative accuracy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array

from ufm.problems.losses.separate import beyond_linear

__all__ = [
    "cross_entropy",
    "entropy_of",
    "entropy_size",
    "mass_of",
    "mean_less",
    "negative_entropy",
    "relative_entropy",
    "size_of_entropy",
]


@jax.custom_jvp
def cross_entropy(logits: Array, targets: Array) -> Array:
    """Return s logsumexp(z) - <y, z> per row, s the sum of the target row y >= 0, its mass.

    It has full relative accuracy, also where it is tiny. A row of mass zero has the loss zero.
    """
    return jnp.sum(_weighed(targets, _losses(logits, _odds(logits, targets))), axis=1)


@cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    logits, targets = primals
    odds = _odds(logits, targets)
    losses = _losses(logits, odds)
    tangent = jnp.sum(_gradient(targets, odds) * tangents[0], axis=1)
    tangent = tangent + jnp.sum(_weighed(tangents[1], losses), axis=1)
    return jnp.sum(_weighed(targets, losses), axis=1), tangent


def _weighed(targets: Array, losses: Array) -> Array:
    """Return y times the losses; zero for a target of zero, even if the loss is infinite."""
    return jnp.where(targets == 0, 0, targets * losses)


class _Odds(NamedTuple):
    """The common parts of the cross-entropy and its gradient, row by row.

    Attributes:
        highest: (n, 1), the largest logit.
        label: (n, 1), the logit of the largest target.
        others: (n, K), the exponentials of the logits less the highest; zero at the largest target.
        own: (n, 1), the exponential at the largest target.
        total: (n, 1), the sum of the others.
        largest: (n, K), whether an entry is that of the largest target.
    """

    highest: Array
    label: Array
    others: Array
    own: Array
    total: Array
    largest: Array


def _odds(logits: Array, targets: Array) -> _Odds:
    index = jnp.argmax(targets, axis=1)[:, None]
    largest = index == jnp.arange(logits.shape[1])[None, :]
    # The highest logit cancels, also in derivatives.
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    others = jnp.where(largest, 0, jnp.exp(logits - highest))
    label = jnp.take_along_axis(logits, index, axis=1)
    own = jnp.exp(label - highest)
    return _Odds(highest, label, others, own, jnp.sum(others, axis=1, keepdims=True), largest)


def _losses(logits: Array, odds: _Odds) -> Array:
    """Return logsumexp(z) - z_c of every class, as a sum of two parts that are never negative.

    The losses of a row are weighted sums of these, in which no terms cancel.
    """
    # If the largest target has the largest logit, its exponential is one, and the sum of the others
    # holds all digits of a tiny loss. Otherwise the loss is not tiny, and needs none of them.
    beyond = jnp.log1p(odds.total + (odds.own - 1))
    return (odds.highest - logits) + beyond


def _gradient(targets: Array, odds: _Odds) -> Array:
    """Return s softmax(z) - y; the entry of the largest target is minus the sum of the others.

    No digits are lost where its probability is close to one.
    """
    scale = mass_of(targets) / (odds.total + odds.own)
    rest = scale * odds.total - jnp.sum(jnp.where(odds.largest, 0, targets), axis=1, keepdims=True)
    return jnp.where(odds.largest, -rest, scale * odds.others - targets)


def mass_of(targets: Array) -> Array:
    """Return the sum of every row, (n, 1)."""
    return jnp.sum(targets, axis=1, keepdims=True)


@jax.custom_jvp
def relative_entropy(logits: Array, targets: Array) -> Array:
    """Return sum_c q_c log(q_c / p_c) per row, p = s softmax(z) and s the mass of the row q >= 0.

    It is summed as q (e^d - 1 - d) with d = log(p / q). These terms are never negative, and keep
    their digits near p = q, where they are squares.
    """
    losses, mass = _losses(logits, _odds(logits, targets)), mass_of(targets)
    some = targets > 0
    d = jnp.where(some, jnp.log(mass / jnp.where(some, targets, mass + 1)) - losses, 0)
    terms = jnp.where(some, targets * beyond_linear(d), mass * jnp.exp(-losses))
    return jnp.sum(terms, axis=1)


@relative_entropy.defjvp
def _relative_entropy_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Differentiate by the logits only; the targets are constants."""
    logits, targets = primals
    slope = _gradient(targets, _odds(logits, targets))
    return relative_entropy(logits, targets), jnp.sum(slope * tangents[0], axis=1)


def negative_entropy(targets: Array, dual: Array) -> Array:
    """Return sum_c q_c log(q_c / s) per row, q = y + u and s the mass, to full relative accuracy.

    The rows of u sum to zero. A row of mass zero has the dual zero only.
    """
    return entropy_of(targets + dual, mass_of(targets))


def entropy_size(targets: Array, dual: Array) -> Array:
    """Return the rounding error of `negative_entropy` in machine epsilons, per row."""
    return size_of_entropy(targets + dual, targets + jnp.abs(dual), mass_of(targets))


def entropy_of(parts: Array, mass: Array) -> Array:
    """Return sum_c q_c log(q_c / s) per row, for parts q (n, K) of a mass s (n, 1).

    The largest part is s less the sum of the others. Its logarithm is computed from that sum. A
    negative part lies outside the domain of the conjugate, whose value there is plus infinity,
    never NaN.
    """
    largest, lacking, mass = _largest(parts, mass)
    share = jnp.minimum(lacking / mass, 1 - jnp.finfo(parts.dtype).epsneg)
    own = (mass - lacking) * jnp.log1p(-share)
    values = jnp.where(largest, own, xlogy(parts, jnp.maximum(parts, 0) / mass))
    return jnp.sum(jnp.where(parts >= 0, values, jnp.inf), axis=1)


def size_of_entropy(parts: Array, made_of: Array, mass: Array) -> Array:
    """Return the rounding error of `entropy_of` in machine epsilons, per row.

    It is the sum of the sizes of its terms and of their arguments (`made_of`, (n, K)). The rounding
    of the mass is multiplied by the logarithm of the largest share.
    """
    largest, lacking, mass = _largest(parts, mass)
    terms = made_of * (1 + jnp.abs(jnp.log(jnp.where(parts > 0, parts / mass, 1))))
    share = jnp.minimum(jnp.abs(lacking) / mass, 1 - jnp.finfo(parts.dtype).epsneg)
    own = jnp.abs(lacking) - mass * jnp.log1p(-share)
    return jnp.sum(jnp.where(largest, own, terms), axis=1)


def _largest(parts: Array, mass: Array) -> tuple[Array, Array, Array]:
    """Return which part of a row is the largest, the sum of the others, and the mass.

    A mass of zero is replaced by one, at which q = 0 has the value zero.
    """
    largest = jnp.argmax(parts, axis=1)[:, None] == jnp.arange(parts.shape[1])[None, :]
    lacking = jnp.sum(jnp.where(largest, 0, parts), axis=1, keepdims=True)
    return largest, lacking, jnp.where(mass > 0, mass, 1)


def mean_less(targets: Array, shares: Array) -> Array:
    """Return the mean target at every row's mass less the targets: its rows sum to zero.

    These are s softmax(b) - y at the constant logits b of least mean loss. The entry of the largest
    target is minus the sum of the others, so no digits are lost if one class has nearly all of the
    shares.
    """
    mass = mass_of(targets)
    total = jnp.sum(shares[:, None] * mass)
    mean = jnp.sum(shares[:, None] * targets, axis=0) / jnp.where(total > 0, total, 1)
    largest = jnp.argmax(targets, axis=1)[:, None] == jnp.arange(targets.shape[1])[None, :]
    others = jnp.where(largest, 0, mass * mean[None, :] - targets)
    return jnp.where(largest, -jnp.sum(others, axis=1, keepdims=True), others)
