"""The library's own losses: by name, by exact type, and over groups."""

from collections.abc import Iterator, Sequence
from typing import Any

from ufm._support import ArgumentError
from ufm.problems.group_losses import GroupLoss
from ufm.problems.losses.binary import BinaryCrossEntropy
from ufm.problems.losses.class_dependent import CDT, LDAM, LDT, ClassWeighted, LogitAdjusted
from ufm.problems.losses.cross_entropy import CrossEntropy, Focal, LabelSmoothing
from ufm.problems.losses.distillation import Distillation
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.ordinal import Ordinal
from ufm.problems.losses.pairwise import (
    CrammerSinger,
    Exponential,
    PairwiseLogistic,
    SoftenedHinge,
    SquaredHinge,
    WestonWatkins,
)
from ufm.problems.losses.regression import Huber, Poisson
from ufm.problems.losses.squared_error import SquaredError

__all__ = [
    "LIBRARY",
    "has_form_over_groups",
    "is_library_loss",
    "loss_by_group",
    "parameter_of",
    "parts_of",
]

# In the order in which command lines list them.
LIBRARY: dict[str, type[Loss]] = {
    kind.name: kind
    for kind in (
        CrossEntropy,
        SquaredError,
        LabelSmoothing,
        Focal,
        LogitAdjusted,
        CDT,
        LDT,
        ClassWeighted,
        LDAM,
        Distillation,
        BinaryCrossEntropy,
        PairwiseLogistic,
        Exponential,
        SquaredHinge,
        WestonWatkins,
        CrammerSinger,
        Huber,
        Poisson,
    )
}


def parts_of(loss: Loss) -> Iterator[Loss]:
    """Yield a loss, and the losses inside it."""
    yield loss
    for part in vars(loss).values():
        if isinstance(part, Loss):
            yield from parts_of(part)


def parameter_of(loss: Loss, path: Sequence[str]) -> LossParameter:
    """Return what a loss states about one of its numbers, such as ("gamma",) or ("loss", "gamma").

    A number that the loss states nothing about may have any value.
    """
    for name in path[:-1]:
        loss = getattr(loss, name)
    known = {parameter.name: parameter for parameter in loss.parameters}
    return known.get(path[-1], LossParameter(path[-1], path[-1]))


def is_library_loss(loss: Loss) -> bool:
    """Return whether a loss, and every loss inside it, is exactly of a type of the library.

    Only these have a known form over groups, theorems and a conjugate known to be right. Subclasses
    do not.
    """
    known = {*LIBRARY.values(), Ordinal, SoftenedHinge}
    return all(type(part) in known for part in parts_of(loss))


def has_form_over_groups(loss: Loss) -> bool:
    """Return whether a loss is convex and the library knows its form over groups."""
    return loss.convex and all(_has_own_form(part) for part in parts_of(loss))


def _has_own_form(part: Loss) -> bool:
    kind = type(part)
    return kind in LIBRARY.values() and kind.over_groups is not Loss.over_groups


def loss_by_group(loss: Loss, counts: Any, sizes: Any) -> GroupLoss:
    """Return a loss over groups, its parameters being one number for all or one per group.

    Args:
        loss: A convex loss of the library. Subclasses have an unknown form, and are refused.
        counts: (G, ...), samples per class.
        sizes: (G, ...), classes per group.

    Raises:
        ValueError: If the form of the loss over groups is not known.
    """
    form = loss.over_groups(counts, sizes) if has_form_over_groups(loss) else None
    if form is None:
        forms = (k for k in LIBRARY.values() if k.over_groups is not Loss.over_groups)
        known = ", ".join(kind.__name__ for kind in forms)
        other = next((part for part in parts_of(loss) if not _has_own_form(part)), loss)
        raise ArgumentError(
            "loss",
            f"must be one of {known} itself to be solved over groups, got {type(other).__name__}",
            remedy="use resolution='classes'",
        )
    return form
