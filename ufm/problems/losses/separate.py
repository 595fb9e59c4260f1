"""Functions of one number that losses share, to full relative accuracy; and means of rows."""

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array

__all__ = [
    "beyond_linear",
    "mean_less_by_column",
    "size_of_two_way_entropy",
    "softplus",
    "two_way_entropy",
]


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """Return log(1 + e^x) to full relative accuracy, of any size, with the sigmoid as its slope."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softplus(primals[0]), jax.nn.sigmoid(primals[0]) * tangents[0]


def two_way_entropy(part: Array, rest: Array, whole: Array) -> Array:
    """Return a log(a / m) + b log(b / m), for a part a and the rest b of a whole m = a + b >= 0.

    It is the conjugate of m softplus at a. The logarithm of the larger part is computed from the
    smaller, so no digits are lost. Outside a, b >= 0 it is plus infinity, never NaN. A whole of
    zero has the value zero at a = b = 0.
    """
    less, more, whole = jnp.minimum(part, rest), jnp.maximum(part, rest), _or_one(whole)
    share = jnp.maximum(less, 0) / whole
    value = xlogy(less, share) + more * jnp.log1p(-jnp.minimum(share, 0.5))
    return jnp.where(less >= 0, value, jnp.inf)


def size_of_two_way_entropy(
    part: Array, rest: Array, part_made_of: Array, rest_made_of: Array
) -> Array:
    """Return the rounding error of `two_way_entropy` in machine epsilons.

    Args:
        part: a.
        rest: b.
        part_made_of: Sum of the magnitudes of the numbers that add up to a.
        rest_made_of: The same for b.
    """
    less = jnp.minimum(part, rest)
    made_of = jnp.where(part < rest, part_made_of, rest_made_of)
    share = jnp.where(less > 0, less, 1) / _or_one(part + rest)
    return made_of * (2 + jnp.abs(jnp.log(share)))


def beyond_linear(d: Array) -> Array:
    """Return e^d - 1 - d, by its series where the terms cancel."""
    series = d * d / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6 * (1 + d / 7)))))
    return jnp.where(jnp.abs(d) < 0.01, series, jnp.expm1(d) - d)


def mean_less_by_column(targets: Array, shares: Array) -> Array:
    """Return the mean target row less the targets, for any rows.

    Differences from the row of the largest share are averaged, so no digits are lost if one row has
    nearly all of the shares.
    """
    first = targets[jnp.argmax(shares)][None, :]
    mean = jnp.sum(shares[:, None] * (targets - first), axis=0) / jnp.sum(shares)
    return mean[None, :] + (first - targets)


def _or_one(whole: Array) -> Array:
    return jnp.where(whole > 0, whole, 1)
