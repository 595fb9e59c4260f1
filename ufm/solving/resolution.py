"""At which resolution a problem is solved."""

from typing import Literal

from ufm._support import is_concrete
from ufm.problems import Problem, fits_dense, has_group_form, interchangeable
from ufm.solving.group_resolution import MOST_GROUPS_SOLVED

__all__ = ["choose_resolution"]

FEWEST_CLASSES = 50  # from which group resolution may be less work
MOST_GROUPS = 16  # up to which it is less work
MOST_GROUPS_TOGETHER = 6  # solved in a batch with Newton's method, at G^6 a step
FEWEST_CLASSES_PER_GROUP = 50  # from which batches of more groups pay, too


def choose_resolution(
    problem: Problem,
    num_groups: int | None = None,
    *,
    together: bool = False,
    nonnegative: bool = False,
) -> Literal["classes", "groups"]:
    """Return the resolution at which a problem is less work.

    Groups are chosen where they are exact, and much less work or matrices over classes do not fit.

    Args:
        problem: The problem.
        num_groups: Number of groups of interchangeable classes; found from the problem if not
            given.
        together: Whether many problems of one shape are solved in one batch. Over groups that pays
            for few classes, too.
        nonnegative: Whether to choose groups for non-negative features also where matrices over
            classes fit. The minimiser found over groups may need more dimensions than there are.
    """
    K, large = problem.num_classes, not fits_dense(problem.num_classes)
    if not (has_group_form(problem) and is_concrete(problem)):
        return "classes"
    if not (problem.feature_cone.rotates or nonnegative or large):
        return "classes"
    if not together and K < FEWEST_CLASSES:
        return "classes"
    groups = len(interchangeable(problem)[1]) if num_groups is None else num_groups
    if together and problem.feature_cone.rotates:
        pays = groups <= MOST_GROUPS_TOGETHER or FEWEST_CLASSES_PER_GROUP * groups < K
    else:
        pays = groups <= (MOST_GROUPS_SOLVED if large else min(MOST_GROUPS, K // 8))
    return "groups" if pays else "classes"
