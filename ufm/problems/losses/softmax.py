"""Cross-entropy and negative entropy of rows, to full relative accuracy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array

__all__ = ["cross_entropy", "entropy_size", "mean_less", "negative_entropy"]


@jax.custom_jvp
def cross_entropy(logits: Array, targets: Array) -> Array:
    """Return logsumexp(z) - <y, z> per row, for targets that sum to one.

    It has full relative accuracy, also where it is tiny.
    """
    return _value(logits, targets, _odds(logits, targets))


@cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    logits, targets = primals
    odds = _odds(logits, targets)
    tangent = jnp.sum(_gradient(targets, odds) * tangents[0], axis=1) - jnp.sum(
        logits * tangents[1], axis=1
    )
    return _value(logits, targets, odds), tangent


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
    highest = jax.lax.stop_gradient(
        jnp.max(logits, axis=1, keepdims=True)
    )  # it cancels, also in derivatives
    others = jnp.where(largest, 0, jnp.exp(logits - highest))
    label = jnp.take_along_axis(logits, index, axis=1)
    own = jnp.exp(label - highest)
    return _Odds(highest, label, others, own, jnp.sum(others, axis=1, keepdims=True), largest)


def _value(logits: Array, targets: Array, odds: _Odds) -> Array:
    """Return (logsumexp(z) - z_y) - sum over c != y of q_c (z_c - z_y), y the largest target.

    The first part is never negative, and the second removes at most the share 1 - q_y of it. So the
    difference keeps its digits.
    """
    # If the largest target has the largest logit, its exponential is one, and the sum of the others
    # holds all digits of a tiny loss.
    beyond = jnp.log1p(odds.total + (odds.own - 1))
    # A target of zero has no weight, even if a difference of logits overflows.
    weighted = jnp.where(odds.largest | (targets == 0), 0, targets * (logits - odds.label))
    return jnp.squeeze(odds.highest - odds.label + beyond, 1) - jnp.sum(weighted, axis=1)


def _gradient(targets: Array, odds: _Odds) -> Array:
    """Return softmax(z) - y; the entry of the largest target is minus the sum of the others.

    No digits are lost where its probability is close to one.
    """
    scale = 1 / (odds.total + odds.own)
    rest = scale * odds.total - jnp.sum(jnp.where(odds.largest, 0, targets), axis=1, keepdims=True)
    return jnp.where(odds.largest, -rest, scale * odds.others - targets)


def negative_entropy(targets: Array, dual: Array) -> Array:
    """Return sum_c q_c log q_c per row, q = y + u, to full relative accuracy.

    The rows of u sum to zero, so the largest probability is one less the sum of the others. Its
    logarithm is computed from that sum. A negative entry lies outside the domain of the conjugate,
    whose value there is plus infinity, never NaN.
    """
    q, largest, lacking = _probabilities(targets, dual)
    own = (1 - lacking) * jnp.log1p(-jnp.minimum(lacking, 1 - jnp.finfo(q.dtype).epsneg))
    values = jnp.where(largest, own[:, None], xlogy(q, jnp.maximum(q, 0)))
    return jnp.sum(jnp.where(q >= 0, values, jnp.inf), axis=1)


def entropy_size(targets: Array, dual: Array) -> Array:
    """Return the rounding error of `negative_entropy` in machine epsilons, per row.

    It is the sum of the sizes of its terms and of their arguments.
    """
    q, largest, lacking = _probabilities(targets, dual)
    terms = (targets + jnp.abs(dual)) * (1 + jnp.abs(jnp.log(jnp.where(q > 0, q, 1))))
    return jnp.sum(jnp.where(largest, 0, terms), axis=1) + 2 * jnp.abs(lacking)


def _probabilities(targets: Array, dual: Array) -> tuple[Array, Array, Array]:
    """Return q = y + u, which entry of a row is the largest, and the sum of the others."""
    q = targets + dual
    largest = jnp.argmax(q, axis=1)[:, None] == jnp.arange(q.shape[1])[None, :]
    return q, largest, jnp.sum(jnp.where(largest, 0, q), axis=1)


def mean_less(targets: Array, shares: Array) -> Array:
    """Return the mean target less the targets, for rows of equal sum.

    The entry of the largest target is minus the sum of the others. So no digits are lost if one
    class has nearly all of the shares, and the rows sum to zero.
    """
    mean = jnp.sum(shares[:, None] * targets, axis=0) / jnp.sum(shares)
    largest = jnp.argmax(targets, axis=1)[:, None] == jnp.arange(targets.shape[1])[None, :]
    others = jnp.where(largest, 0, mean[None, :] - targets)
    return jnp.where(largest, -jnp.sum(others, axis=1, keepdims=True), others)
