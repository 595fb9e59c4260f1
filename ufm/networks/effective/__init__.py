"""The model that a trained network is close to, and the comparison of the two."""

from ufm.networks.effective.comparison import (
    LEGEND,
    LEVELS,
    Agreement,
    HeldAgainstModel,
    HeldAgainstModels,
    LossTerms,
    Row,
    State,
    held_against_model,
    held_against_models,
)
from ufm.networks.effective.trained_network import (
    Balance,
    EffectiveModel,
    Inputs,
    OnSamples,
    TrainedNetwork,
    effective_model,
)

__all__ = [
    "LEGEND",
    "LEVELS",
    "Agreement",
    "Balance",
    "EffectiveModel",
    "HeldAgainstModel",
    "HeldAgainstModels",
    "Inputs",
    "LossTerms",
    "OnSamples",
    "Row",
    "State",
    "TrainedNetwork",
    "effective_model",
    "held_against_model",
    "held_against_models",
]
