r"""Group resolution: a problem over G groups of interchangeable classes, of any size, at the cost of G.

Where a problem is convex in its logits (one layer, a convex loss, d large enough), averaging a
minimiser over the permutations of classes of the same count and the same loss parameters gives a
minimiser. Its logits are `Blocks`, so the problem has G + G^2 unknowns, and every softmax needs G +
1 exponentials with multiplicities.

Everything here is a leaf of a pytree, group sizes included: one compiled program serves all counts,
sizes and penalties of G groups, and a batch of problems is a batched pytree. Letters: K_g classes
of n_g samples in group g, N = sum_g K_g n_g, s_g = n_g / N the share of a class.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import ArgumentError, Module
from ufm.problems.block_matrices import Blocks, identity
from ufm.problems.losses import (
    CDT,
    LDT,
    ClassWeighted,
    CrossEntropy,
    LabelSmoothing,
    LogitAdjusted,
    Loss,
    SquaredError,
)
from ufm.problems.problem import Problem
from ufm.problems.regularizers import NormBall, WeightDecay

__all__ = [
    "GroupLoss",
    "GroupProblem",
    "Rows",
    "check_group_form",
    "grouped",
    "has_group_form",
    "interchangeable",
    "loss_by_group",
    "mean_loss",
    "over_groups",
    "probabilities",
    "rows_of",
    "slopes",
    "times_of",
]


class GroupLoss(Module):
    r"""A convex loss over groups, in a form that covers all of the library's.

        l(z, y) = w_y [ logsumexp(t_y (delta z + iota)) - <q_y, t_y (delta z + iota)> ],   q_y = (1 - alpha) e_y + alpha / K,

    or w_y / 2 ||z - e_y||^2. All numbers are per group but alpha.

    weights: (G,) w. temperatures: (G,) t, of the row's own class. scales: (G,) delta. offsets: (G,)
    iota. smoothing: () alpha. kind: "cross-entropy" or "squared-error".
    """

    weights: Float[Array, " G"]
    temperatures: Float[Array, " G"]
    scales: Float[Array, " G"]
    offsets: Float[Array, " G"]
    smoothing: Float[Array, ""]
    kind: str = eqx.field(static=True)
    shift_invariant: bool = eqx.field(static=True)


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
        xp = _xp(self.counts)
        return xp.ones_like(self.counts) if self.norm_ball else xp.sqrt(self.counts)

    @property
    def price(self) -> Float[Array, ""]:
        """The price of the gauge, tau = sqrt(lambda_W lambda_H), or its bound T = K sqrt(E_W E_H)."""
        geometric = jnp.sqrt(self.weights) * jnp.sqrt(self.features)
        return self.num_classes * geometric if self.norm_ball else geometric


class Rows(NamedTuple):
    """Rows of a class of each group over all classes, columns of equal entries written once.

    own: (G,), the row's own class. others: (G, G), the other classes of each group, of which there
    are `times`.
    """

    own: Float[Array, " G"]
    others: Float[Array, "G G"]

    def summed(self, times: Float[Array, "G G"]) -> Float[Array, " G"]:
        """Return the sum over all K entries."""
        return self.own + jnp.sum(times * self.others, axis=1)


def times_of(sizes: Float[Array, " G"]) -> Float[Array, "G G"]:
    """Return how many classes of group h there are besides a class of group g."""
    return sizes[None, :] - identity(sizes[None, :] * sizes[:, None])


def rows_of(blocks: Blocks, bias: Float[Array, " G"] | None = None) -> Rows:
    """Return the rows of logits that are blocks, with a bias per group added."""
    own, others = blocks.own, blocks.across
    return Rows(own, others) if bias is None else Rows(own + bias, others + bias[None, :])


def _scores(loss: GroupLoss, logits: Rows) -> Rows:
    """Return t_y (delta z + iota)."""
    return Rows(
        loss.temperatures * (loss.scales * logits.own + loss.offsets),
        loss.temperatures[:, None] * (loss.scales[None, :] * logits.others + loss.offsets[None, :]),
    )


def _targets(loss: GroupLoss, sizes: Float[Array, " G"]) -> tuple[Array, Array]:
    """Return q of the own class and of any other."""
    share = loss.smoothing / jnp.sum(sizes, axis=0)
    return 1 - loss.smoothing + share, share


def losses_of(loss: GroupLoss, logits: Rows, sizes: Float[Array, " G"]) -> Float[Array, " G"]:
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


def probabilities(loss: GroupLoss, logits: Rows, sizes: Float[Array, " G"]) -> Rows:
    """Return softmax of the scores."""
    times, scores = times_of(sizes), _scores(loss, logits)
    differences = scores.others - scores.own[:, None]
    present = times > 0
    largest = jnp.maximum(jnp.max(jnp.where(present, differences, -jnp.inf), axis=1), 0)
    own = jnp.exp(-largest)
    others = jnp.where(present, jnp.exp(differences - largest[:, None]), 0)
    total = own + jnp.sum(times * others, axis=1)
    return Rows(own / total, others / total[:, None])


def slopes(loss: GroupLoss, logits: Rows, sizes: Float[Array, " G"]) -> Rows:
    """Return the gradient of the loss of a row of each group, per entry; zero for the other classes of a group that has none."""
    times = times_of(sizes)
    if loss.kind == "squared-error":
        others = jnp.where(times > 0, loss.weights[:, None] * logits.others, 0)
        return Rows(loss.weights * (logits.own - 1), others)
    p, (_, other) = probabilities(loss, logits, sizes), _targets(loss, sizes)
    factors = loss.weights * loss.temperatures
    # p_own - q_own as minus the sum of the others' differences: no digits are lost where p_own is
    # close to one.
    difference = jnp.where(times > 0, p.others - other, 0)
    own = -jnp.sum(times * difference, axis=1)
    return Rows(factors * loss.scales * own, factors[:, None] * loss.scales[None, :] * difference)


def mean_loss(problem: GroupProblem, logits: Rows) -> Float[Array, ""]:
    """Return the data term, the mean over all samples."""
    return jnp.sum(
        problem.sizes * problem.shares * losses_of(problem.loss, logits, problem.sizes), axis=0
    )


def loss_by_group(loss: Loss, counts: Any, sizes: Any) -> GroupLoss:
    """Return a loss over groups, its parameters being one number for all or one per group.

    Args:
        loss: a convex loss of the library. A subclass of one is another loss, of unknown form.
        counts: (G,), samples per class.
        sizes: (G,), classes per group.

    Raises:
        ValueError: for a loss whose form over groups is not known.
    """
    form = _FORMS.get(type(loss))
    if form is None:
        known = ", ".join(kind.__name__ for kind in _FORMS)
        raise ArgumentError(
            "loss",
            f"must be one of {known} itself to be solved over groups, got "
            f"{type(loss).__name__}; use resolution='classes'",
        )
    return form(loss, counts, sizes)


def _xp(*values: Any) -> Any:
    return (
        jnp
        if any(isinstance(leaf, jax.Array) for value in values for leaf in jax.tree.leaves(value))
        else np
    )


def _form(
    counts: Any, kind: str = "cross-entropy", shift_invariant: bool = True, **numbers: Any
) -> GroupLoss:
    xp = _xp(counts, numbers)
    one, zero = xp.ones_like(counts), xp.zeros_like(counts)
    per_group = {"weights": one, "temperatures": one, "scales": one, "offsets": zero}
    per_group.update({name: value * one for name, value in numbers.items() if name in per_group})
    smoothing = numbers.get("smoothing", np.zeros(()))
    return GroupLoss(**per_group, smoothing=smoothing, kind=kind, shift_invariant=shift_invariant)


def _cross_entropy(loss: CrossEntropy, counts: Any, sizes: Any) -> GroupLoss:
    return _form(counts)


def _squared_error(loss: SquaredError, counts: Any, sizes: Any) -> GroupLoss:
    return _form(counts, kind="squared-error", shift_invariant=False)


def _label_smoothing(loss: LabelSmoothing, counts: Any, sizes: Any) -> GroupLoss:
    return _form(counts, smoothing=loss.alpha)


def _logit_adjusted(loss: LogitAdjusted, counts: Any, sizes: Any) -> GroupLoss:
    xp = _xp(loss, counts, sizes)
    priors = counts / xp.sum(counts * sizes, axis=0)
    return _form(
        counts, offsets=loss.strength * xp.log(priors) if loss.offsets is None else loss.offsets
    )


def _cdt(loss: CDT, counts: Any, sizes: Any) -> GroupLoss:
    scales = (
        (counts / counts.max(axis=0)) ** loss.exponent
        if loss.multipliers is None
        else loss.multipliers
    )
    return _form(counts, scales=scales, shift_invariant=False)


def _ldt(loss: LDT, counts: Any, sizes: Any) -> GroupLoss:
    scales = (
        (counts / counts.max(axis=0)) ** loss.exponent
        if loss.multipliers is None
        else loss.multipliers
    )
    return _form(counts, temperatures=scales)


def _class_weighted(loss: ClassWeighted, counts: Any, sizes: Any) -> GroupLoss:
    inner = loss_by_group(loss.loss, counts, sizes)
    xp = _xp(loss, counts, sizes)
    weights = loss.weights
    if weights is None:
        weights = (
            xp.sum(counts * sizes, axis=0) / (xp.sum(sizes, axis=0) * counts)
        ) ** loss.exponent
    return eqx.tree_at(lambda form: form.weights, inner, inner.weights * weights)


# By exact type: what is true of a loss need not be true of a subclass.
_FORMS: dict[type[Loss], Callable[[Any, Any, Any], GroupLoss]] = {
    CrossEntropy: _cross_entropy,
    SquaredError: _squared_error,
    LabelSmoothing: _label_smoothing,
    LogitAdjusted: _logit_adjusted,
    CDT: _cdt,
    LDT: _ldt,
    ClassWeighted: _class_weighted,
}


def has_group_form(problem: Problem) -> bool:
    """Whether group resolution is exact: one layer, a convex loss, and room for the convex minimiser."""
    rank = problem.num_classes - 1 if problem.loss.shift_invariant else problem.num_classes
    room = problem.num_classes if problem.nonnegative_features else rank
    return problem.num_layers == 1 and _has_form(problem.loss) and problem.feature_dim >= room


def check_group_form(problem: Problem, subject: str, remedy: str = "") -> None:
    """Raise ValueError where group resolution is not exact; `subject` begins the message, and `remedy` ends it."""
    if not has_group_form(problem):
        raise ValueError(
            f"{subject} one layer, a convex loss of the library's own (not a subclass) and a feature "
            "dimension that holds the minimiser (d >= K - 1, or K where the loss sees a shift of all "
            "logits or the features are non-negative); "
            f"got {problem.num_layers} layers, {type(problem.loss).__name__}, d = {problem.feature_dim}, K = {problem.num_classes}.{remedy}"
        )


def _has_form(loss: Loss) -> bool:
    """Whether the loss is convex and one whose form over groups is known."""
    if type(loss) is ClassWeighted:
        return _has_form(loss.loss)
    return loss.convex and type(loss) in _FORMS


def grouped(problem: Problem) -> tuple[GroupProblem, Float[np.ndarray, " K"]]:
    """Return a problem over its groups, and the group of every class, (K,) integers.

    Classes are of one group where their counts and the loss's parameters are equal. Groups are in
    the order of their first classes.

    Raises:
        ValueError: where group resolution is not exact (`has_group_form`).
    """
    check_group_form(problem, "resolution 'groups' is for", " Use resolution='classes'.")
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
