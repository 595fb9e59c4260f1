"""Trained networks: from their features to what the models predict for them.

`TrainedNetwork` is a network as the models see it, from arrays or from moments; `effective_model` is its unconstrained features model, with the
feature decay that the balance of its layers implies; `held_against_model` holds the network against that model's certified minimiser.
"""

from ufm.networks.agreement import (
    Agreement,
    HeldAgainstModel,
    HeldAgainstModels,
    LossTerms,
    Row,
    State,
    held_against_model,
    held_against_models,
)
from ufm.networks.model import Balance, EffectiveModel, Inputs, OnSamples, TrainedNetwork, effective_model

__all__ = [
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
