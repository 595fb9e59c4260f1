"""Neural collapse of trained networks, streamed over batches."""

from ufm.networks.measure.by_group import GroupCollapse, by_group
from ufm.networks.measure.class_moments import ClassMoments
from ufm.networks.measure.collect import Collected, collect, last_linear, measure_model
from ufm.networks.measure.last_layer import LastLayer
from ufm.networks.measure.measurement import Measurement, measure, measure_layers
from ufm.networks.measure.second_pass import SecondPass

__all__ = [
    "ClassMoments",
    "Collected",
    "GroupCollapse",
    "LastLayer",
    "Measurement",
    "SecondPass",
    "by_group",
    "collect",
    "last_linear",
    "measure",
    "measure_layers",
    "measure_model",
]
