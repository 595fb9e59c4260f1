"""Trained networks: how collapsed they are, and what the models predict for them.

`measure` takes batches of features, of any number of samples, to NC1-NC4; `ClassMoments` and `SecondPass` are the two passes, for workers that merge;
`collect` runs a PyTorch or Flax module for the features, and `measure_model` measures it; `conventions` has the metrics of the `neural-collapse`
package by their names.
`TrainedNetwork` is a network as the models see it, from arrays or from moments; `effective_model` is its unconstrained features model, with the
feature decay that the balance of its layers implies; `compare_with_model` holds the network against that model's certified minimiser.
"""

from ufm.networks import conventions
from ufm.networks.effective import (
    Agreement,
    Balance,
    EffectiveModel,
    Inputs,
    LossTerms,
    ModelComparison,
    ModelComparisons,
    OnSamples,
    Row,
    State,
    TrainedNetwork,
    compare_with_model,
    compare_with_models,
    effective_model,
)
from ufm.networks.measure.by_group import GroupCollapse, by_group
from ufm.networks.measure.class_moments import ClassMoments
from ufm.networks.measure.collect import Collected, collect, last_linear, measure_model
from ufm.networks.measure.last_layer import LastLayer
from ufm.networks.measure.measurement import Measurement, measure, measure_layers
from ufm.networks.measure.second_pass import SecondPass

__all__ = [
    "Agreement",
    "Balance",
    "ClassMoments",
    "Collected",
    "EffectiveModel",
    "GroupCollapse",
    "Inputs",
    "LastLayer",
    "LossTerms",
    "Measurement",
    "ModelComparison",
    "ModelComparisons",
    "OnSamples",
    "Row",
    "SecondPass",
    "State",
    "TrainedNetwork",
    "by_group",
    "collect",
    "compare_with_model",
    "compare_with_models",
    "conventions",
    "effective_model",
    "last_linear",
    "measure",
    "measure_layers",
    "measure_model",
]
