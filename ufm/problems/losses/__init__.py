"""Losses on logits, each for target rows and with its convex conjugate."""

from ufm.problems.loss_checks import LossCheck, LossReport, check_loss
from ufm.problems.losses.binary import BinaryCrossEntropy
from ufm.problems.losses.class_dependent import CDT, LDAM, LDT, ClassWeighted, LogitAdjusted
from ufm.problems.losses.cross_entropy import CrossEntropy, Focal, LabelSmoothing
from ufm.problems.losses.distillation import Distillation
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
]
