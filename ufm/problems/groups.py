r"""Group resolution: problems over G groups of interchangeable classes, at the cost of G.

If a problem is convex in its logits (one layer, a convex loss, d large enough), the average of a
minimiser over the permutations of classes with equal counts and loss parameters is a minimiser. Its
logits are `Blocks`, so the problem has G + G^2 unknowns, and every softmax needs G + 1 exponentials
with multiplicities.

All numbers are leaves of a pytree, group sizes included. So one compiled program serves all counts,
sizes and penalties of G groups, and a batch of problems is a batched pytree. Letters: K_g classes
of n_g samples in group g, N = sum_g K_g n_g, s_g = n_g / N the share of a class.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError, Module, array_module
from ufm.problems.feature_cones import FeatureCone
from ufm.problems.group_losses import GroupLoss, Rows, losses_of
from ufm.problems.losses import Loss
from ufm.problems.losses.library import has_form_over_groups, loss_by_group
from ufm.problems.problem import Problem
from ufm.problems.regularizers import Gauge, Regularizer

__all__ = [
    "GroupProblem",
    "check_group_form",
    "distinct_columns",
    "grouped",
    "has_group_form",
    "interchangeable",
    "mean_loss",
    "over_groups",
]


class GroupProblem(Module):
    """A one-layer problem over groups; all numbers are leaves.

    Leaves may have batch axes, all the same and all last, such as counts (G, B) and prices (B,).

    Attributes:
        counts: (G,), samples per class.
        sizes: (G,), classes per group.
        loss: The loss over groups.
        gauge: The price of the logits.
        bias: (), the penalty lambda_b, 0 where the bias is free.
        use_bias: Whether there is a bias.
        nonnegative_features: Whether h >= 0.
    """

    counts: Float[Array, "G *#batch"]
    sizes: Float[Array, "G *#batch"]
    loss: GroupLoss
    gauge: Gauge
    bias: Float[Array, "*#batch"]
    use_bias: bool = eqx.field(static=True)
    nonnegative_features: bool = eqx.field(static=True)

    @property
    def feature_cone(self) -> FeatureCone:
        """The cone that the features lie in."""
        return FeatureCone(self.nonnegative_features)

    @property
    def num_groups(self) -> int:
        """G."""
        return self.counts.shape[0]

    @property
    def num_classes(self) -> Float[Array, "*batch"]:
        """K, as a float."""
        return jnp.sum(self.sizes, axis=0)

    @property
    def num_samples(self) -> Float[Array, "*batch"]:
        """N."""
        return jnp.sum(self.counts * self.sizes, axis=0)

    @property
    def shares(self) -> Float[Array, "G *#batch"]:
        """s_g = n_g / N of one class."""
        return self.counts / self.num_samples

    @property
    def dual_rows(self) -> Float[Array, "G *#batch"]:
        """The factors of the rows of the losses' gradients inside the dual norm.

        The gradient of the mean loss by Z is s_g times the gradient of a row's loss; that by
        diag(rows) Z is divided by the gauge's rows.
        """
        return self.shares / self.gauge.rows


def mean_loss(problem: GroupProblem, logits: Rows) -> Float[Array, "*batch"]:
    """Return the data term, the mean over all samples."""
    return jnp.sum(
        problem.sizes * problem.shares * losses_of(problem.loss, logits, problem.sizes), axis=0
    )


def has_group_form(problem: Problem) -> bool:
    """Whether group resolution is exact.

    It is for one-hot classes, one layer, a regularizer with a gauge, a convex loss whose form over
    groups is known, and a dimension that holds the convex minimiser.
    """
    rank = problem.num_classes - 1 if problem.loss.shift_invariant else problem.num_classes
    room = problem.feature_cone.needed_dimension(problem.num_classes, rank)
    form = problem.regularizer.has_gauge and has_form_over_groups(problem.loss)
    return problem.one_hot and problem.num_layers == 1 and form and problem.feature_dim >= room


def check_group_form(
    problem: Problem, argument: str = "problem", claim: str = "must have", remedy: str = ""
) -> None:
    """Raise ArgumentError if group resolution is not exact.

    Args:
        problem: The problem.
        argument: The argument that asks for groups.
        claim: What the message says of the argument, before the conditions on a problem.
        remedy: The end of the message.
    """
    if not has_group_form(problem):
        raise ArgumentError(
            argument,
            f"{claim} one-hot classes, one layer, a convex loss of the library's own (not a "
            "subclass) and a feature dimension that holds the minimiser (d >= K - 1, or K "
            "where the loss is not shift-invariant or the features are non-negative), got "
            f"{problem.num_layers} layers, "
            f"{problem.loss.title}, d = {problem.feature_dim}, K = {problem.num_classes}",
            remedy=remedy,
        )


def grouped(problem: Problem) -> tuple[GroupProblem, Int[np.ndarray, " K"]]:
    """Return a problem over its groups, and the group of every class, (K,) integers.

    Classes are in one group if their counts and the loss's parameters are equal. Groups are in
    the order of their first classes.

    Raises:
        ValueError: If group resolution is not exact (`has_group_form`).
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
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"], Loss, Int[np.ndarray, " K"]]:
    """Return the groups of interchangeable classes.

    Classes are in one group if their counts and the loss's parameters are equal. Groups are in
    the order of their first classes.

    Returns:
        Counts and sizes, the loss by group, and the group of every class, (K,) integers.
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
        first, index = distinct_columns(keys)
        groups, representatives = index, first
        counts, sizes = np.asarray(classes)[first], np.bincount(index).astype(float)
    else:
        keys = np.stack([classes.counts, *(np.asarray(leaf) for leaf in parameters)])
        first, index = distinct_columns(keys)
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
    regularizer: Regularizer,
    *,
    use_bias: bool = False,
    nonnegative_features: bool = False,
) -> GroupProblem:
    """Return the problem of G groups. All arguments may be traced; nothing is checked.

    Args:
        counts: (G,), samples per class of each group.
        sizes: (G,), classes per group.
        loss: The loss. Each of its parameters is one number for all, or one per group.
        regularizer: The regularizer of one layer, with a gauge.
        use_bias: Whether there is a bias.
        nonnegative_features: Whether h >= 0.
    """
    return GroupProblem(
        counts=counts,
        sizes=sizes,
        loss=loss_by_group(loss, counts, sizes),
        gauge=regularizer.gauge(counts, array_module(sizes).sum(sizes, axis=0)),
        bias=np.zeros(()) + regularizer.bias_penalty,
        use_bias=use_bias,
        nonnegative_features=nonnegative_features,
    )


def distinct_columns(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first index of every distinct column, in order, and each index's column."""
    _, first, index = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    return first[order], position[np.ravel(index)]
