r"""Group resolution: a problem over G groups of interchangeable classes, of any size, at the cost of G.

Where a problem is convex in its logits (one layer, a convex loss, d large enough), averaging a
minimiser over the permutations of classes of the same count and the same loss parameters gives a
minimiser. Its logits are `Blocks`, so the problem has G + G^2 unknowns, and every softmax needs G +
1 exponentials with multiplicities.

Everything here is a leaf of a pytree, group sizes included: one compiled program serves all counts,
sizes and penalties of G groups, and a batch of problems is a batched pytree. Letters: K_g classes
of n_g samples in group g, N = sum_g K_g n_g, s_g = n_g / N the share of a class.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import ArgumentError, Module, array_module
from ufm.problems.group_losses import GroupLoss, Rows, losses_of
from ufm.problems.losses import Loss, has_form_over_groups, loss_by_group
from ufm.problems.problem import Problem
from ufm.problems.regularizers import NormBall, WeightDecay

__all__ = [
    "GroupProblem",
    "check_group_form",
    "grouped",
    "has_group_form",
    "interchangeable",
    "mean_loss",
    "over_groups",
]


class GroupProblem(Module):
    """A one-layer problem over groups; all numbers are leaves.

    counts: (G,) samples per class. sizes: (G,) classes per group. weights, features, bias: () the
    penalties lambda of weight decay, or E_W, E_H and 0 for the norm balls. norm_ball, use_bias,
    nonnegative_features: which model.

    Leaves may have batch axes, all the same and all last, such as counts (G, B) and weights (B,).
    """

    counts: Float[Array, " G"]
    sizes: Float[Array, " G"]
    loss: GroupLoss
    weights: Float[Array, ""]
    features: Float[Array, ""]
    bias: Float[Array, ""]
    norm_ball: bool = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)
    nonnegative_features: bool = eqx.field(static=True)

    @property
    def num_groups(self) -> int:
        """G."""
        return self.counts.shape[0]

    @property
    def num_classes(self) -> Float[Array, ""]:
        """K, as a float."""
        return jnp.sum(self.sizes, axis=0)

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N."""
        return jnp.sum(self.counts * self.sizes, axis=0)

    @property
    def shares(self) -> Float[Array, " G"]:
        """s_g = n_g / N of one class."""
        return self.counts / self.num_samples

    @property
    def roots(self) -> Float[Array, " G"]:
        """What the rows of the logits are multiplied by inside the nuclear norm: sqrt(n_g), or one for the norm balls."""
        xp = array_module(self.counts)
        return xp.ones_like(self.counts) if self.norm_ball else xp.sqrt(self.counts)

    @property
    def price(self) -> Float[Array, ""]:
        """The price of the gauge, tau = sqrt(lambda_W lambda_H), or its bound T = K sqrt(E_W E_H)."""
        geometric = jnp.sqrt(self.weights) * jnp.sqrt(self.features)
        return self.num_classes * geometric if self.norm_ball else geometric


def mean_loss(problem: GroupProblem, logits: Rows) -> Float[Array, ""]:
    """Return the data term, the mean over all samples."""
    return jnp.sum(
        problem.sizes * problem.shares * losses_of(problem.loss, logits, problem.sizes), axis=0
    )


def has_group_form(problem: Problem) -> bool:
    """Whether group resolution is exact: one layer, a convex loss, and room for the convex minimiser."""
    rank = problem.num_classes - 1 if problem.loss.shift_invariant else problem.num_classes
    room = problem.num_classes if problem.nonnegative_features else rank
    return (
        problem.num_layers == 1
        and has_form_over_groups(problem.loss)
        and problem.feature_dim >= room
    )


def check_group_form(
    problem: Problem, argument: str = "problem", claim: str = "must have", remedy: str = ""
) -> None:
    """Raise ArgumentError if group resolution is not exact.

    Args:
        problem: The problem.
        argument: The argument that asks for groups.
        claim: What the message says of it, before what a problem must have.
        remedy: The end of the message.
    """
    if not has_group_form(problem):
        raise ArgumentError(
            argument,
            f"{claim} one layer, a convex loss of the library's own (not a subclass) and a feature "
            "dimension that holds the minimiser (d >= K - 1, or K where the loss sees a shift of "
            f"all logits or the features are non-negative), got {problem.num_layers} layers, "
            f"{type(problem.loss).__name__}, d = {problem.feature_dim}, K = {problem.num_classes}",
            remedy=remedy,
        )


def grouped(problem: Problem) -> tuple[GroupProblem, Float[np.ndarray, " K"]]:
    """Return a problem over its groups, and the group of every class, (K,) integers.

    Classes are of one group where their counts and the loss's parameters are equal. Groups are in
    the order of their first classes.

    Raises:
        ValueError: where group resolution is not exact (`has_group_form`).
    """
    check_group_form(problem, "resolution", "'groups' is for", "use resolution='classes'")
    counts, sizes, loss, groups = interchangeable(problem)
    return over_groups(
        counts,
        sizes,
        loss,
        problem.regularizer,
        use_bias=problem.use_bias,
        nonnegative_features=problem.nonnegative_features,
    ), groups


def interchangeable(
    problem: Problem,
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"], Loss, Float[np.ndarray, " K"]]:
    """Return counts and sizes of the groups of interchangeable classes, the loss by group, and the group of every class, (K,) integers.

    Classes are of one group where their counts and the loss's parameters are equal. Groups are in
    the order of their first classes.
    """
    classes = problem.class_counts
    stated = np.repeat(np.arange(classes.num_groups), classes.sizes)
    parameters = [leaf for leaf in jax.tree.leaves(problem.loss) if np.ndim(leaf) == 1]
    per_class = [
        leaf for leaf in parameters if len(leaf) == classes.num_classes != classes.num_groups
    ]
    if per_class:  # parameters stated class by class may split the stated groups
        keys = np.stack(
            [
                np.asarray(classes),
                *(np.asarray(classes.expand(leaf, "loss")) for leaf in parameters),
            ]
        )
        first, index = _distinct(keys)
        groups, representatives = index, first
        counts, sizes = np.asarray(classes)[first], np.bincount(index).astype(float)
    else:
        keys = np.stack([classes.counts, *(np.asarray(leaf) for leaf in parameters)])
        first, index = _distinct(keys)
        groups, representatives = index[stated], first
        counts = np.asarray(classes.counts)[first]
        sizes = np.bincount(index, weights=np.asarray(classes.sizes, float))
    length = keys.shape[1]
    loss = jax.tree.map(
        lambda leaf: (
            (np.asarray(classes.expand(leaf, "loss")) if len(leaf) != length else leaf)[
                representatives
            ]
            if np.ndim(leaf) == 1
            else leaf
        ),
        problem.loss,
    )
    return counts, sizes, loss, groups


def over_groups(
    counts: Any,
    sizes: Any,
    loss: Loss,
    regularizer: WeightDecay | NormBall,
    *,
    use_bias: bool = False,
    nonnegative_features: bool = False,
) -> GroupProblem:
    """Return the problem of G groups. All arguments may be traced; nothing is checked.

    Args:
        counts: (G,), samples per class of each group.
        sizes: (G,), classes per group.
        loss: its parameters one number for all or one per group.
        regularizer: weight decay or norm balls, of one layer.
        use_bias: whether there is a bias.
        nonnegative_features: whether h >= 0.
    """
    ball = isinstance(regularizer, NormBall)
    return GroupProblem(
        counts=counts,
        sizes=sizes,
        loss=loss_by_group(loss, counts, sizes),
        weights=regularizer.per_layer(1)[0],
        features=regularizer.features,
        bias=np.zeros(()) if isinstance(regularizer, NormBall) else regularizer.bias,  # type: ignore[arg-type]
        norm_ball=ball,
        use_bias=use_bias,
        nonnegative_features=nonnegative_features,
    )


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first index of every distinct column, in order, and the number of its column for each index."""
    _, first, index = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    return first[order], position[np.ravel(index)]
