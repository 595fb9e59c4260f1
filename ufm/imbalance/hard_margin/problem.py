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
"""

from collections.abc import Sequence
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ufm._support import (
    ArgumentError,
    Final,
    Module,
    as_leaf,
    check_numbers,
    is_concrete,
    is_numeric,
)
from ufm.problems import Blocks, ClassGroups, distinct_columns, identity, times_of

__all__ = ["GroupMargins", "HardMargin", "logits_of", "margin_groups"]


@final
class HardMargin(Final):
    r"""The hard-margin problem (UF-SVM).

        min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2    subject to
        delta_y z_y - delta_c z_c >= gamma_y    for every sample of class y and every c != y,

    with z = W h_i.

    Its value and geometry are those of any feature dimension d >= K - 1, with multipliers and
    margins too. Separable cross-entropy goes to it as weight decay vanishes, `CDT` with the
    multipliers delta, `LDT` with the margins 1 / delta.

    Args:
        class_counts: Samples per class, a sequence of numbers or a `ClassGroups`.
        multipliers: delta, positive: one number for all, one per group or one per class; 1 if not
            given.
        margins: gamma, positive, likewise; 1 if not given.

    Raises:
        ValueError: Naming the argument, the value received and the remedy.

    Reference: Thrampoulidis, Kini, Vakilian, Behnia (NeurIPS 2022), arXiv:2208.05512; Behnia, Kini,
    Vakilian, Thrampoulidis (AISTATS 2023), arXiv:2303.07608, with multipliers.
    """

    class_counts: ClassGroups
    multipliers: Float[Array, "..."]
    margins: Float[Array, "..."]

    def __init__(
        self,
        class_counts: ClassGroups | Sequence[float] | Real[np.ndarray, " K"],
        multipliers: Any = None,
        margins: Any = None,
    ):
        self.class_counts = (
            class_counts if isinstance(class_counts, ClassGroups) else ClassGroups(class_counts)
        )
        self.multipliers = as_leaf(1.0 if multipliers is None else multipliers)
        self.margins = as_leaf(1.0 if margins is None else margins)

    def __check_init__(self) -> None:
        for name, values in (("multipliers", self.multipliers), ("margins", self.margins)):
            if not is_concrete(values):
                continue
            if not is_numeric(values):
                raise ArgumentError(
                    name, "must be numbers, one for all, one per group or one per class", values
                )
            self.class_counts.expand(values, name)
            check_numbers(
                name, values, several=True, positive=True, remedy=f"leave `{name}` out for 1"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_counts.num_classes


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
