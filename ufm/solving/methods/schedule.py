"""The methods that a solve goes through by default, for one problem as for many at a time."""

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm._support import as_leaf
from ufm.problems import Problem
from ufm.solving.methods.lbfgs import LBFGS
from ufm.solving.methods.method import Method
from ufm.solving.methods.newton import NewtonCG
from ufm.solving.methods.search_spaces import FLOOR, infimum_of, num_unknowns
from ufm.solving.methods.starts import has_aligned_start

__all__ = [
    "AIM",
    "HANDOVER",
    "SEARCH_STEPS",
    "SMOOTHINGS",
    "Stage",
    "can_go_on",
    "default_schedule",
    "default_steps",
    "has_kinks",
    "made_once",
    "relative_to_objective",
]

# Relative gradient from which rounding of the unknowns hides the logarithm of the objective.
MOST_RELATIVE = 1e8
HANDOVER = 1e-4  # tolerance from which on nothing follows the default schedule
SMOOTHINGS = (0.3, 0.05, 5e-3, 5e-4)  # of ReLUs, one after the other
SMOOTHED = (1e-3, 3e-4)  # relative gradients at which smoothed stages end, and the last of them
SMALL = 2000  # unknowns
OUT_OF_CACHE = 500_000  # unknowns above which the pairs of L-BFGS do not fit in a CPU's cache
# Pairs of L-BFGS then: a few per cent more steps than with six, each a tenth faster
# (`benchmarks/`).
SHORT = 4
STEPS = 3000
STEPS_WITH_KINKS = 6000
# Of L-BFGS from each of many starts of a one-layer problem. What is low then is followed further.
SEARCH_STEPS = 1000
# The finish aims that far below the tolerance: one more Newton step, which usually closes the gap.
AIM = 1e-3


class Stage(NamedTuple):
    """A part of a schedule.

    Attributes:
        method: The method.
        tol: The relative gradient at which it ends.
        share: The share of all steps that it may use.
        every: Which starts take part: one out of so many.
    """

    method: Method
    tol: float
    share: float
    every: int = 1

    def shares(self, starts: Int[np.ndarray, " lanes"]) -> Float[np.ndarray, " lanes"]:
        """Return the share of all steps of each start, given its index within its problem."""
        return np.where(starts % self.every == 0, self.share, 0.0)


def has_kinks(problem: Problem) -> bool:
    """Whether the objective is not smooth where a hidden unit switches."""
    return problem.activation == "relu" and problem.num_layers > 1


def default_steps(problem: Problem) -> int:
    """Return the default number of steps from a start of a problem not convex in its logits."""
    return STEPS_WITH_KINKS if has_kinks(problem) else STEPS


def default_schedule(
    problem: Problem,
    num_rows: int,
    tol: float,
    floor: float = 0.0,
    aligned: bool = True,
    given: bool = False,
) -> list[Stage]:
    """Return the default methods.

    Small smooth problems: Newton-CG alone, which is the fastest to compile and to run. Large ones,
    or starts close to the minimiser: L-BFGS, because conjugate gradients need more products there.
    Chains of ReLUs: L-BFGS with less and less smoothing. Then `ufm.solving.relu.newton_on_kinks`
    finds out which inputs are zero.

    Args:
        problem: The problem, with its widths as they are solved.
        num_rows: Rows of the features.
        tol: Relative gradient asked for.
        floor: Relative gradient that the precision allows.
        aligned: Whether an aligned start may be used.
        given: Whether the start is a point that the user gave, to be left no further than needed.
    """
    finish = max(AIM * tol, floor)
    if has_kinks(problem):
        # The smoothing is a traced number, so all stages run one program. The last one makes no
        # steps.
        parts = SMOOTHINGS[-1:] if given else SMOOTHINGS
        # Strong smoothing leaves fewer minima, which are often, but not always, the lower ones. So
        # every other start goes without it.
        smooth = [
            Stage(
                LBFGS(smoothing=as_leaf(part)),
                SMOOTHED[part == parts[-1]],
                0.4,
                2 if part == SMOOTHINGS[0] else 1,
            )
            for part in parts
        ]
        return [*smooth, Stage(LBFGS(smoothing=as_leaf(0.0)), max(tol, floor), 0.0)]
    size = num_unknowns(problem, num_rows)
    if size <= SMALL and not (aligned and has_aligned_start(problem, size)):
        return [Stage(made_once(NewtonCG), finish, 1.0)]
    return [
        Stage(
            made_once(LBFGS) if size < OUT_OF_CACHE else made_once(LBFGS, memory=SHORT),
            max(0.1 * tol, floor),
            0.7,
        )
    ]


@functools.cache
def made_once(method: type[LBFGS] | type[NewtonCG], **settings: Any) -> LBFGS | NewtonCG:
    """Return a method that is made on the first call only.

    The checks of its arguments take longer than the steps of a small solve.
    """
    return method(**settings)


def relative_to_objective(
    problem: Problem, residuals: np.ndarray, values: np.ndarray, at_zero: np.ndarray | float
) -> Float[np.ndarray, " lanes"]:
    """Return gradients relative to the objective itself.

    Args:
        problem: The problem.
        residuals: Relative gradients where solves ended, which have a floor inside norm balls.
        values: The objective there.
        at_zero: The objective of zero logits.
    """
    if not problem.regularizer.bounded:
        return residuals
    infimum = infimum_of(problem)
    values, floor = values - infimum, FLOOR * (np.asarray(at_zero) - infimum)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(
            (values < floor) & (residuals > 0), residuals * (floor / values), residuals
        )
    return relative


def can_go_on(
    residuals: np.ndarray, relative: np.ndarray, tol: float
) -> Bool[np.ndarray, " lanes"]:
    """Return which solves ended at the floor although the logarithm of the objective has digits.

    Rounding of the unknowns moves that logarithm by the relative gradient times an epsilon: near a
    zero of a squared error by as much as one.

    Args:
        residuals: Relative gradients that the methods stop by.
        relative: The same relative to the objective.
        tol: Relative gradient asked for.
    """
    return (relative > tol) & (relative > residuals) & (relative < MOST_RELATIVE)
