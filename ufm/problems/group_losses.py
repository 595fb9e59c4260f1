r"""Losses over groups of interchangeable classes: one form for all of the library's convex losses.

Logits are blocks, so a row has one number for its own class and one for the other classes of every
group. Letters: K classes in G groups, K_g of them in group g. Leaves may have batch axes, last.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Module, array_module
from ufm.problems.block_matrices import Blocks, identity

__all__ = [
    "GroupLoss",
    "Rows",
    "group_loss",
    "losses_of",
    "probabilities",
    "rows_of",
    "slopes",
    "times_of",
]


class GroupLoss(Module):
    r"""A convex loss over groups, in a form that covers all of the library's.

        l(z, y) = w_y [ logsumexp(t_y (delta z + iota)) - <q_y, t_y (delta z + iota)> ],
        q_y = (1 - alpha) e_y + alpha / K,

    or w_y / 2 ||z - e_y||^2. All numbers are per group but alpha.

    Attributes:
        weights: (G,), w.
        temperatures: (G,), t, of the row's own class.
        scales: (G,), delta.
        offsets: (G,), iota.
        smoothing: (), alpha.
        kind: "cross-entropy" or "squared-error".
        shift_invariant: Whether a constant added to all logits of a row changes nothing.
    """

    weights: Float[Array, "G *#batch"]
    temperatures: Float[Array, "G *#batch"]
    scales: Float[Array, "G *#batch"]
    offsets: Float[Array, "G *#batch"]
    smoothing: Float[Array, "*#batch"]
    kind: str = eqx.field(static=True)
    shift_invariant: bool = eqx.field(static=True)


def group_loss(
    counts: Any,
    *,
    weights: Any = 1.0,
    temperatures: Any = 1.0,
    scales: Any = 1.0,
    offsets: Any = 0.0,
    smoothing: Any = None,
    kind: str = "cross-entropy",
    shift_invariant: bool = True,
) -> GroupLoss:
    """Return a loss over groups, its numbers one for all or one per group.

    Args:
        counts: (G, ...), samples per class, for the shape.
        weights: w.
        temperatures: t.
        scales: delta.
        offsets: iota.
        smoothing: alpha, one number; zero if not given.
        kind: "cross-entropy" or "squared-error".
        shift_invariant: Whether a constant added to all logits of a row changes nothing.
    """
    one = array_module((counts, weights, temperatures, scales, offsets)).ones_like(counts)
    return GroupLoss(
        weights=weights * one,
        temperatures=temperatures * one,
        scales=scales * one,
        offsets=offsets * one,
        smoothing=np.zeros(()) if smoothing is None else smoothing,  # type: ignore[arg-type]
        kind=kind,
        shift_invariant=shift_invariant,
    )


class Rows(NamedTuple):
    """Rows of a class of each group over all classes, columns of equal entries written once.

    Attributes:
        own: (G,), the row's own class.
        others: (G, G), the other classes of each group, of which there are `times`.
    """

    own: Float[Array, "G *#batch"]
    others: Float[Array, "G G *#batch"]

    def summed(self, times: Float[Array, "G G *#batch"]) -> Float[Array, "G *#batch"]:
        """Return the sum over all K entries."""
        return self.own + jnp.sum(times * self.others, axis=1)


def times_of(sizes: Float[Array, "G *#batch"]) -> Float[Array, "G G *#batch"]:
    """Return how many classes of group h there are besides a class of group g."""
    return sizes[None, :] - identity(sizes[None, :] * sizes[:, None])


def rows_of(blocks: Blocks, bias: Float[Array, "G *#batch"] | None = None) -> Rows:
    """Return the rows of logits that are blocks, with a bias per group added."""
    own, others = blocks.own, blocks.across
    return Rows(own, others) if bias is None else Rows(own + bias, others + bias[None, :])


def _scores(loss: GroupLoss, logits: Rows) -> Rows:
    """Return t_y (delta z + iota)."""
    return Rows(
        loss.temperatures * (loss.scales * logits.own + loss.offsets),
        loss.temperatures[:, None] * (loss.scales[None, :] * logits.others + loss.offsets[None, :]),
    )


def _targets(loss: GroupLoss, sizes: Float[Array, "G *#batch"]) -> tuple[Array, Array]:
    """Return q of the own class and of any other."""
    share = loss.smoothing / jnp.sum(sizes, axis=0)
    return 1 - loss.smoothing + share, share


def losses_of(
    loss: GroupLoss, logits: Rows, sizes: Float[Array, "G *#batch"]
) -> Float[Array, "G *#batch"]:
    """Return the loss of a row of each group."""
    times = times_of(sizes)
    if loss.kind == "squared-error":
        return (
            0.5 * loss.weights * ((logits.own - 1) ** 2 + jnp.sum(times * logits.others**2, axis=1))
        )
    scores, (_, other) = _scores(loss, logits), _targets(loss, sizes)
    # Relative to the own class: log(1 + sum of exp(differences)) keeps its digits where the loss is
    # small.
    differences = scores.others - scores.own[:, None]
    present = times > 0
    largest = jax.lax.stop_gradient(
        jnp.maximum(jnp.max(jnp.where(present, differences, -jnp.inf), axis=1), 0)
    )
    terms = jnp.where(present, times * jnp.exp(differences - largest[:, None]), 0)
    total = jnp.where(
        largest > 0,
        largest + jnp.log(jnp.exp(-largest) + jnp.sum(terms, axis=1)),
        jnp.log1p(jnp.sum(terms, axis=1)),
    )
    return loss.weights * (
        total - other * jnp.sum(jnp.where(present, times * differences, 0), axis=1)
    )


def probabilities(loss: GroupLoss, logits: Rows, sizes: Float[Array, "G *#batch"]) -> Rows:
    """Return softmax of the scores."""
    times, scores = times_of(sizes), _scores(loss, logits)
    differences = scores.others - scores.own[:, None]
    present = times > 0
    largest = jnp.maximum(jnp.max(jnp.where(present, differences, -jnp.inf), axis=1), 0)
    own = jnp.exp(-largest)
    others = jnp.where(present, jnp.exp(differences - largest[:, None]), 0)
    total = own + jnp.sum(times * others, axis=1)
    return Rows(own / total, others / total[:, None])


def slopes(loss: GroupLoss, logits: Rows, sizes: Float[Array, "G *#batch"]) -> Rows:
    """Return the gradient of the loss of a row of each group, per entry.

    It is zero for the other classes of a group that has none.
    """
    times = times_of(sizes)
    if loss.kind == "squared-error":
        others = jnp.where(times > 0, loss.weights[:, None] * logits.others, 0)
        return Rows(loss.weights * (logits.own - 1), others)
    p, (_, other) = probabilities(loss, logits, sizes), _targets(loss, sizes)
    factors = loss.weights * loss.temperatures
    # p_own - q_own is minus the sum of the others' differences: no digits are lost where p_own is
    # close to one.
    difference = jnp.where(times > 0, p.others - other, 0)
    own = -jnp.sum(times * difference, axis=1)
    return Rows(factors * loss.scales * own, factors[:, None] * loss.scales[None, :] * difference)
