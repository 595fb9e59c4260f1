r"""The hard-margin problem: the cheapest weights and features with given margins.

    min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2
    subject to    delta_y z_y - delta_c z_c >= gamma_y,  c != y,

z = W h_i for every sample i of class y. With room for it (d >= K - 1) this is the least nuclear
norm of D^{1/2} Z over class logits Z, one class per row, under the same constraints, D = diag(n_k):
in its balanced factors a matrix costs its nuclear norm, and equal features serve all samples of a
class. A multiple of v = 1 / delta added to a row of Z changes no margin, and the projection off v
raises no singular value, so Z v = 0 may be asked for. Then margins determine logits: with u_yc =
delta_c z_yc and the weights w_c = delta_c^{-2} / sum delta^{-2},

    u_yy = sum_{c != y} w_c m_yc,    u_yc = u_yy - m_yc,
    at the margins m_yc = delta_y z_yy - delta_c z_yc.

Classes of the same count, multiplier and margin are interchangeable. Averaging over their
permutations keeps a minimiser feasible and does not raise its norm: there is a minimiser whose
logits are `Blocks`, and G groups have G^2 margins.

Targets that are not one class each have a support S_r per row r, the entries that are not zero. In
the limit of vanishing weight decay their cross-entropy asks for

    delta_z z_z = delta_z' z_z',  z, z' in S_r,    delta_z z_z - delta_c z_c >= gamma_r,  c off S_r,

at the cost ||Om^{1/2} Z||_*, Om = diag(om_r) the weights of the features. A class is the row whose
support is itself, with om = n_k. At given weights the rows of one support and margin solve the same
problem: they are one row, with the sum of their om.
"""

from collections.abc import Sequence
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from ufm._support import (
    ArgumentError,
    Final,
    Module,
    as_leaf,
    check_instance,
    check_numbers,
    is_concrete,
    is_numeric,
)
from ufm.problems import Blocks, ClassGroups, Targets, distinct_columns, identity, times_of

__all__ = [
    "GroupMargins",
    "HardMargin",
    "RowMargins",
    "logits_of",
    "margin_groups",
    "margin_rows",
    "row_logits",
]


@final
class HardMargin(Final):
    r"""The hard-margin problem (UF-SVM).

        min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2    subject to
        delta_y z_y - delta_c z_c >= gamma_y    for every sample of class y and every c != y,

    with z = W h_i. With targets, z_y stands for every entry of the row's support, which is to have
    equal delta z, and c for every entry off it (NTP-SVM, where rows are contexts, counted once).

    Its value and geometry are those of any feature dimension d >= K - 1, with multipliers and
    margins too. Separable cross-entropy goes to it as weight decay vanishes, `CDT` with the
    multipliers delta, `LDT` with the margins 1 / delta.

    Args:
        class_counts: Samples per class, a sequence of numbers or a `ClassGroups`.
        multipliers: delta, positive: one number for all, one per group or one per class; 1 if not
            given.
        margins: gamma, positive, likewise, or one per target row; 1 if not given.
        targets: `Targets` of numbers that are not negative, instead of `class_counts`. Their
            feature weights, the counts if not given, are the weights of ||h_r||^2. Of the targets
            only the supports matter.

    Raises:
        ValueError: Naming the argument, the value received and the remedy.

    Reference: Thrampoulidis, Kini, Vakilian, Behnia (NeurIPS 2022), arXiv:2208.05512; Behnia, Kini,
    Vakilian, Thrampoulidis (AISTATS 2023), arXiv:2303.07608, with multipliers; Zhao, Behnia,
    Vakilian, Thrampoulidis (2024), arXiv:2408.15417, with targets.
    """

    class_counts: ClassGroups | None
    multipliers: Float[Array, "..."]
    margins: Float[Array, "..."]
    targets: Targets | None

    def __init__(
        self,
        class_counts: ClassGroups | Sequence[float] | Real[np.ndarray, " K"] | None = None,
        multipliers: Any = None,
        margins: Any = None,
        *,
        targets: Targets | None = None,
    ):
        if (class_counts is None) == (targets is None):
            raise ArgumentError(
                "class_counts", "or `targets` must be given, one of the two", class_counts
            )
        if targets is not None:
            check_instance("targets", targets, Targets, "ufm.Targets(rows, ...)")
        if class_counts is None or isinstance(class_counts, ClassGroups):
            self.class_counts = class_counts
        else:
            self.class_counts = ClassGroups(class_counts)
        self.multipliers = as_leaf(1.0 if multipliers is None else multipliers)
        self.margins = as_leaf(1.0 if margins is None else margins)
        self.targets = targets

    def __check_init__(self) -> None:
        for name, values in (("multipliers", self.multipliers), ("margins", self.margins)):
            if not is_concrete(values):
                continue
            if not is_numeric(values):
                raise ArgumentError(
                    name, "must be numbers, one for all, one per group or one per class", values
                )
            self._check_shape(name, np.shape(values))
            check_numbers(
                name, values, several=True, positive=True, remedy=f"leave `{name}` out for 1"
            )
        if self.targets is not None and is_concrete(self.targets):
            _check_supports(self.targets)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.class_counts is not None:
            self.class_counts.expand(np.empty(shape), name)
            return
        assert self.targets is not None
        one = {"multipliers": "output", "margins": "target row"}[name]
        number = {"multipliers": self.num_classes, "margins": self.num_rows}[name]
        if shape not in ((), (number,)):
            raise ArgumentError(name, f"must be one number, or one per {one} ({number})", shape)

    @property
    def num_classes(self) -> int:
        """K, of classes, labels or tokens."""
        if self.targets is not None:
            return self.targets.num_outputs
        assert self.class_counts is not None
        return self.class_counts.num_classes

    @property
    def num_rows(self) -> int:
        """R, of target rows; K of classes."""
        return self.num_classes if self.targets is None else self.targets.num_rows

    @property
    def row_weights(self) -> Float[np.ndarray, " R"]:
        """om: what ||h_r||^2 is multiplied by, for classes their samples."""
        one: Any = self.targets
        if self.class_counts is not None:
            stated: Any = self.class_counts.per_class
        else:
            stated = one.counts if one.feature_weights is None else one.feature_weights
        return np.asarray(stated, np.float64)


def _check_supports(targets: Targets) -> None:
    rows = np.asarray(targets.rows)
    if not np.all(rows >= 0):
        raise ArgumentError("targets", "must have rows without negative entries", float(rows.min()))
    empty = np.flatnonzero(np.all(rows == 0, axis=1))
    if empty.size:
        raise ArgumentError(
            "targets", f"must have an entry above zero in every row; row {empty[0]} has none"
        )
    if np.all(rows > 0):
        raise ArgumentError(
            "targets",
            "must have a row with a zero entry: without one there is no margin, and the solution "
            "is zero",
        )


class GroupMargins(Module):
    """The hard-margin problem over G groups of interchangeable classes.

    Leaves have shape (G,), and may be traced.

    Attributes:
        counts: Samples per class.
        sizes: Classes per group.
        multipliers: delta.
        margins: gamma.
    """

    counts: Float[Array, " G"]
    sizes: Float[Array, " G"]
    multipliers: Float[Array, " G"]
    margins: Float[Array, " G"]

    @property
    def num_groups(self) -> int:
        """G."""
        return self.counts.shape[0]

    @property
    def times(self) -> Float[Array, "G G"]:
        """How many classes of group h a class of group g is to be told from."""
        return times_of(self.sizes)


class RowMargins(Module):
    """The hard-margin problem over R rows, each with a support among K entries.

    Leaves may be traced.

    Attributes:
        weights: om, (R,).
        supports: Whether an entry is in the row's support, (R, K).
        multipliers: delta, (K,).
        margins: gamma, (R,).
    """

    weights: Float[Array, " R"]
    supports: Bool[Array, "R K"]
    multipliers: Float[Array, " K"]
    margins: Float[Array, " R"]


def row_logits(problem: RowMargins, margins: Float[Array, "R K"]) -> Float[Array, "R K"]:
    """Return the logits with Z v = 0 and given margins of each row off its support.

    Linear in the margins. Those in the support have no effect.
    """
    delta = problem.multipliers[None, :]
    weights = delta**-2 / jnp.sum(delta**-2)
    margins = jnp.where(problem.supports, 0, margins)
    own = jnp.sum(weights * margins, axis=1, keepdims=True)
    return (own - margins) / delta


def margin_rows(problem: HardMargin) -> tuple[RowMargins, np.ndarray]:
    """Return the problem over its distinct rows, and the distinct row of every row, (R,).

    Distinct rows are in the order in which they first occur. Classes are the rows of their own.
    """
    if not is_concrete(problem):
        raise ArgumentError(
            "problem", "must consist of numbers here, not traced values; trace `RowMargins` instead"
        )
    classes, targets = problem.class_counts, problem.targets
    delta: Any = problem.multipliers
    gamma: Any = problem.margins
    if classes is not None:
        delta, gamma = classes.expand(delta, "multipliers"), classes.expand(gamma, "margins")
        targets = Targets.one_hot(classes)
    assert targets is not None
    supports: Any = np.asarray(targets.rows) > 0
    delta = np.broadcast_to(np.asarray(delta, np.float64), (problem.num_classes,))
    gamma = np.broadcast_to(np.asarray(gamma, np.float64), (problem.num_rows,))
    keys = np.concatenate([supports.T, gamma[None, :]])
    first, index = distinct_columns(keys)
    summed: Any = np.bincount(index, weights=problem.row_weights)
    return RowMargins(summed, supports[first], delta, gamma[first]), index


def logits_of(problem: GroupMargins, margins: Float[Array, "G G"]) -> Blocks:
    """Return the logits with Z v = 0 and given margins of group g against group h.

    Linear in the margins. Within a group of one class there is no margin, and the entry has no
    effect.
    """
    sizes, delta = problem.sizes, problem.multipliers
    weights = delta**-2 / jnp.sum(sizes * delta**-2)
    eye, same = identity(margins) > 0, jnp.diagonal(margins)
    across = jnp.where(eye, 0, (sizes * weights)[None, :] * margins)
    rest = jnp.sum(jnp.where(eye, 0, (sizes * weights)[None, :]), axis=1)
    own = jnp.sum(across, axis=1) + (sizes - 1) * weights * same
    # What the group's own block does to its unit vector, K_g u_yy - (K_g - 1) m_yy, without the
    # part that cancels.
    alone = sizes * jnp.sum(across, axis=1) - (sizes - 1) * same * rest
    pairs = jnp.sqrt(sizes[:, None] * sizes[None, :])
    between = jnp.where(
        eye, (alone / delta)[:, None], pairs * (own[:, None] - margins) / delta[None, :]
    )
    return Blocks(jnp.where(sizes > 1, same / delta, 0), between, sizes)


def margin_groups(problem: HardMargin) -> tuple[GroupMargins, np.ndarray]:
    """Return the problem over its groups, and the group of every class, (K,) integers.

    Groups are in the order of their first classes.
    """
    classes = problem.class_counts
    assert classes is not None
    if not is_concrete(problem):
        raise ArgumentError(
            "problem",
            "must consist of numbers here, not traced values; trace `GroupMargins` instead",
        )
    columns: list[Any] = [classes.counts, problem.multipliers, problem.margins]
    per_class = classes.num_classes != classes.num_groups and any(
        np.shape(values) == (classes.num_classes,) for values in columns
    )
    if per_class:
        columns, sizes = (
            [np.asarray(classes.expand(values, "class_counts")) for values in columns],
            None,
        )
    else:
        columns = [np.broadcast_to(values, (classes.num_groups,)) for values in columns]
        sizes = np.asarray(classes.sizes, np.float64)
    keys = np.stack(columns)
    first, index = distinct_columns(keys)
    counts, multipliers, margins = keys[:, first]
    found: Any = np.bincount(index, weights=sizes).astype(np.float64)
    form = GroupMargins(counts, found, multipliers, margins)
    return form, index if per_class else np.repeat(index, classes.sizes)
