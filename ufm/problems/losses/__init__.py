"""Losses on logits, for target rows of any kind: the library's own, and yours.

A loss of your own is a function of one row (`from_function`), or a subclass of `Loss`. A convex one
is solved and certified as the library's are. `check_loss` holds a loss against what it claims.
"""

from ufm.problems.loss_checks import LossCheck, LossReport, check_loss
from ufm.problems.losses.binary import BinaryCrossEntropy
from ufm.problems.losses.class_dependent import CDT, LDAM, LDT, ClassWeighted, LogitAdjusted
from ufm.problems.losses.cross_entropy import CrossEntropy, Focal, LabelSmoothing
from ufm.problems.losses.distillation import Distillation
from ufm.problems.losses.from_function import FunctionLoss, from_function
from ufm.problems.losses.library import LIBRARY
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.ordinal import Ordinal
from ufm.problems.losses.pairwise import (
    CrammerSinger,
    Exponential,
    PairwiseLogistic,
    SquaredHinge,
    WestonWatkins,
)
from ufm.problems.losses.regression import Huber, Poisson
from ufm.problems.losses.squared_error import SquaredError

__all__ = [
    "CDT",
    "LDAM",
    "LDT",
    "LIBRARY",
    "BinaryCrossEntropy",
    "ClassWeighted",
    "CrammerSinger",
    "CrossEntropy",
    "Distillation",
    "Exponential",
    "Focal",
    "FunctionLoss",
    "Huber",
    "LabelSmoothing",
    "LogitAdjusted",
    "Loss",
    "LossCheck",
    "LossParameter",
    "LossReport",
    "Ordinal",
    "PairwiseLogistic",
    "Poisson",
    "SquaredError",
    "SquaredHinge",
    "WestonWatkins",
    "check_loss",
    "from_function",
]
