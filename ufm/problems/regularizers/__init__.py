"""Regularizers, one file each: what is added to the loss, or what the unknowns must satisfy."""

from ufm.problems.regularizers.base import Gauge, Regularizer
from ufm.problems.regularizers.norm_ball import NormBall
from ufm.problems.regularizers.weight_decay import WeightDecay

__all__ = ["Gauge", "NormBall", "Regularizer", "WeightDecay"]
