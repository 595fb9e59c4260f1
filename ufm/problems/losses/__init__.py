"""Losses on logits, each for target rows and with its convex conjugate."""

from ufm.problems.loss_checks import LossCheck, LossReport, check_loss
from ufm.problems.losses.class_dependent import CDT, LDT, ClassWeighted, LogitAdjusted
from ufm.problems.losses.cross_entropy import CrossEntropy, Focal, LabelSmoothing
from ufm.problems.losses.library import LIBRARY
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.squared_error import SquaredError

__all__ = [
    "CDT",
    "LDT",
    "LIBRARY",
    "ClassWeighted",
    "CrossEntropy",
    "Focal",
    "LabelSmoothing",
    "LogitAdjusted",
    "Loss",
    "LossCheck",
    "LossParameter",
    "LossReport",
    "SquaredError",
    "check_loss",
]
