"""Regularizers, one file each: penalties added to the loss, or constraints on the unknowns."""

from ufm.problems.regularizers.base import Gauge, Regularizer
from ufm.problems.regularizers.norm_ball import NormBall
from ufm.problems.regularizers.weight_decay import WeightDecay

__all__ = ["Gauge", "NormBall", "Regularizer", "WeightDecay"]
