"""The default sequence of methods of a solve, for one problem or a batch of them."""

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

# SHORT was measured (`benchmarks/`). Descent with SMOOTHINGS was compared with plain descent
# (`benchmarks.depth`), but not with other values. No measurement of the other numbers is recorded.
# Relative gradient above which rounding of the unknowns hides the logarithm of the objective.
MOST_RELATIVE = 1e8
HANDOVER = 1e-4  # least tolerance at which the default schedule ends the solve
SMOOTHINGS = (0.3, 0.05, 5e-3, 5e-4)  # of the ReLUs, stage by stage
SMOOTHED = (1e-3, 3e-4)  # relative gradient at which a smoothed stage ends; the last stage's
SMALL = 2000  # most unknowns that Newton-CG alone solves
OUT_OF_CACHE = 500_000  # unknowns from which the pairs of L-BFGS do not fit in a CPU's cache
# Pairs of L-BFGS then. It makes a few per cent more steps than with six, each a tenth faster.
SHORT = 4
STEPS = 3000  # default number of steps from a start
STEPS_WITH_KINKS = 6000  # the same for ReLU chains
# Steps of L-BFGS from each of many starts of a one-layer problem. The lowest are continued.
SEARCH_STEPS = 1000
# The finish aims this far below the tolerance. It takes one more Newton step, which usually closes
# the gap.
AIM = 1e-3


class Stage(NamedTuple):
    """A part of a schedule.

    Attributes:
        method: The method.
        tol: The relative gradient at which it ends.
        share: The share of all steps that it may use.
        every: One start out of this many takes part.
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
    """Return the default stages.

    Small smooth problems use Newton-CG alone, which is the fastest to compile and to run. Large
    problems, and starts close to the minimiser, use L-BFGS, because conjugate gradients need more
    products there. ReLU chains use L-BFGS with less and less smoothing. Afterwards
    `ufm.solving.relu.newton_on_kinks` finds out which inputs are zero.

    Args:
        problem: The problem, with its widths as they are solved.
        num_rows: Rows of the features.
        tol: Relative gradient asked for.
        floor: Relative gradient that the precision allows.
        aligned: Whether an aligned start may be used.
        given: Whether the start is a point of the user's, from which the stages should not lead
            further away than needed.
    """
    finish = max(AIM * tol, floor)
    if has_kinks(problem):
        # The smoothing is a traced number, so all stages run one program. The last one makes no
        # steps.
        parts = SMOOTHINGS[-1:] if given else SMOOTHINGS
        # Strong smoothing leaves fewer minima. Often, but not always, these are the lower ones. So
        # every other start skips the stage.
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
    """Return a method, one object for all calls with the same settings.

    The checks of its arguments take longer than the steps of a small solve.
    """
    return method(**settings)


def relative_to_objective(
    problem: Problem, residuals: np.ndarray, values: np.ndarray, at_zero: np.ndarray | float
) -> Float[np.ndarray, " lanes"]:
    """Return gradients relative to the objective itself.

    Args:
        problem: The problem.
        residuals: Relative gradients where solves ended. Inside norm balls they are relative to no
            less than `FLOOR` times the objective at zero.
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
    """Return which solves ended at the floor, but can go on in the logarithm of the objective.

    Rounding of the unknowns changes that logarithm by about the relative gradient times machine
    epsilon. Near a zero of a squared error the change can be as large as one.

    Args:
        residuals: Relative gradients that the methods stop by.
        relative: The same relative to the objective.
        tol: Relative gradient asked for.
    """
    return (relative > tol) & (relative > residuals) & (relative < MOST_RELATIVE)
