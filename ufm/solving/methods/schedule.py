"""Which methods a solve goes through by default, and from which starts: the same for one problem and for many at a time."""

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

MOST_RELATIVE = 1e8  # relative gradient from where rounding of the unknowns hides what the logarithm of the objective does
HANDOVER = 1e-4  # relative gradient at which the default method passes from L-BFGS to Newton
SMOOTHINGS = (0.3, 0.05, 5e-3, 5e-4)  # of ReLUs, one after the other
SMOOTHED = (
    1e-3,
    3e-4,
)  # relative gradients at which stages with smoothing end, and the last one of them
SMALL = 2000  # unknowns
OUT_OF_CACHE = 500_000  # unknowns above which the pairs of L-BFGS do not fit in a CPU's cache
SHORT = 4  # pairs of that memory; it takes a few per cent more steps than six, each of a tenth less (`benchmarks/`)
STEPS = 3000
STEPS_WITH_KINKS = 6000
SEARCH_STEPS = 1000  # of L-BFGS from each of many starts of a one-layer problem; what is low then is followed to the end
AIM = 1e-3  # how far below the tolerance the finish aims: a Newton step more, which usually makes the certificate close


class Stage(NamedTuple):
    """A method, the relative gradient at which it ends, the share of all steps that it may use, and which starts take part: one of `every`."""

    method: Method
    tol: float
    share: float
    every: int = 1

    def shares(self, starts: Int[np.ndarray, " lanes"]) -> Float[np.ndarray, " lanes"]:
        """Return the share of all steps that each start may use, given its index among those of its problem."""
        return np.where(starts % self.every == 0, self.share, 0.0)


def has_kinks(problem: Problem) -> bool:
    """Whether the objective is not smooth where a hidden unit switches."""
    return problem.activation == "relu" and problem.num_layers > 1


def default_steps(problem: Problem) -> int:
    """Return how many steps a start of a problem that is not convex in its logits may take by default."""
    return STEPS_WITH_KINKS if has_kinks(problem) else STEPS


def default_schedule(
    problem: Problem,
    num_columns: int,
    tol: float,
    floor: float = 0.0,
    aligned: bool = True,
    given: bool = False,
) -> list[Stage]:
    """Return the default methods.

    Newton-CG alone is the fastest for small smooth problems, to compile and to run. In large ones,
    or from a start close to the minimiser, conjugate gradients need more products than L-BFGS,
    which goes nearly all the way. ReLUs are smoothed, less and less; what is left to do is a matter
    of which inputs are zero (`ufm.solving.relu.newton_on_kinks`).

    Args:
        problem: with its widths as they are solved.
        num_columns: rows of the features.
        tol: relative gradient asked for.
        floor: relative gradient that the precision allows.
        aligned: whether an aligned start may be used.
        given: whether the start is a point that the user gave, to be left no further than needed.
    """
    finish = max(AIM * tol, floor)
    if has_kinks(problem):
        # The smoothing is a number: all stages run the same machine code. The last one makes no
        # steps.
        parts = SMOOTHINGS[-1:] if given else SMOOTHINGS
        # The more the landscape is smoothed at first, the fewer minima are left, which are often,
        # and not always, the lower ones.
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
    size = num_unknowns(problem, num_columns)
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
    """Return the method, by default with its defaults, made once: its checks take longer than a small solve's steps."""
    return method(**settings)


def relative_to_objective(
    problem: Problem, residuals: np.ndarray, values: np.ndarray, at_zero: np.ndarray | float
) -> Float[np.ndarray, " lanes"]:
    """Return gradients relative to the objective itself, from those that the methods stop by, which have a floor inside norm balls.

    Args:
        problem: with a regularizer.
        residuals: relative gradients where solves ended.
        values: of the objective there.
        at_zero: the objective of zero logits.
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
    """Return which solves ended at the floor where the logarithm of the objective still has digits.

    Rounding of the unknowns moves that logarithm by the relative gradient times an epsilon: near a
    zero of a squared error by as much as one.

    Args:
        residuals: relative gradients that the methods stop by.
        relative: the same relative to the objective.
        tol: relative gradient asked for.
    """
    return (relative > tol) & (relative > residuals) & (relative < MOST_RELATIVE)
