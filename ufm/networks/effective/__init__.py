"""The model that a trained network is close to, and the comparison of the two."""

from ufm.networks.effective.balance import Balance, EffectiveModel, effective_model
from ufm.networks.effective.comparison import (
    ModelComparison,
    ModelComparisons,
    compare_with_model,
    compare_with_models,
)
from ufm.networks.effective.report_text import LEGEND, Agreement
from ufm.networks.effective.rows import LEVELS, Difference
from ufm.networks.effective.state import LossTerms, State
from ufm.networks.effective.trained_network import Inputs, OnSamples, TrainedNetwork

__all__ = [
    "LEGEND",
    "LEVELS",
    "Agreement",
    "Balance",
    "Difference",
    "EffectiveModel",
    "Inputs",
    "LossTerms",
    "ModelComparison",
    "ModelComparisons",
    "OnSamples",
    "State",
    "TrainedNetwork",
    "compare_with_model",
    "compare_with_models",
    "effective_model",
]
