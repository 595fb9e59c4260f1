"""Measures of neural collapse on any arrays: NC1 to NC4, class statistics, layers, observables."""

from ufm.metrics.checked_input import (
    Absent,
    check_present,
    checked_rtol,
    class_labels,
    host_array,
    real_array,
)
from ufm.metrics.class_statistics import ClassStatistics, class_statistics, indicator
from ufm.metrics.context_collapse import (
    ContextCollapse,
    ContextStatistics,
    context_collapse,
    context_collapse_from,
    context_statistics,
    whole_numbers,
)
from ufm.metrics.definitions import (
    Centre,
    FrameGeometry,
    NearestMean,
    NeuralCollapse,
    SelfDuality,
    VariabilityCollapse,
)
from ufm.metrics.entropy_floor import entropy_floor
from ufm.metrics.files import FeatureSet, load_features, stored_arrays
from ufm.metrics.layerwise import Layer, Layerwise, Weights, layerwise
from ufm.metrics.linguistic_collapse import LinguisticCollapse, linguistic_collapse
from ufm.metrics.multi_label_collapse import (
    MultiLabelCollapse,
    ScaledAverages,
    TagCentre,
    TagStatistics,
    multi_hot,
    multi_label_collapse,
    multi_label_collapse_from,
    tag_statistics,
)
from ufm.metrics.neural_collapse import (
    absent_left_out,
    collapse_from,
    collapse_metrics,
    neural_collapse,
)
from ufm.metrics.observables import (
    ClassGeometry,
    centred_bias,
    factor_grams,
    frame_distances,
    geometry_of,
    geometry_of_matrices,
    logit_rows,
    margins,
    norms,
    rank_from,
)
from ufm.metrics.pairs import class_slices
from ufm.metrics.regression_collapse import (
    RegressionCollapse,
    RegressionStatistics,
    regression_collapse,
    regression_collapse_from,
    regression_statistics,
)
from ufm.metrics.summary import MEASURES, CollapseSummary, Measure, collapse_summary
from ufm.metrics.yardstick import WithinClasses, Yardstick, sample_measures, yardstick

__all__ = [
    "MEASURES",
    "Absent",
    "Centre",
    "ClassGeometry",
    "ClassStatistics",
    "CollapseSummary",
    "ContextCollapse",
    "ContextStatistics",
    "FeatureSet",
    "FrameGeometry",
    "Layer",
    "Layerwise",
    "LinguisticCollapse",
    "Measure",
    "MultiLabelCollapse",
    "NearestMean",
    "NeuralCollapse",
    "RegressionCollapse",
    "RegressionStatistics",
    "ScaledAverages",
    "SelfDuality",
    "TagCentre",
    "TagStatistics",
    "VariabilityCollapse",
    "Weights",
    "WithinClasses",
    "Yardstick",
    "absent_left_out",
    "centred_bias",
    "check_present",
    "checked_rtol",
    "class_labels",
    "class_slices",
    "class_statistics",
    "collapse_from",
    "collapse_metrics",
    "collapse_summary",
    "context_collapse",
    "context_collapse_from",
    "context_statistics",
    "entropy_floor",
    "factor_grams",
    "frame_distances",
    "geometry_of",
    "geometry_of_matrices",
    "host_array",
    "indicator",
    "layerwise",
    "linguistic_collapse",
    "load_features",
    "logit_rows",
    "margins",
    "multi_hot",
    "multi_label_collapse",
    "multi_label_collapse_from",
    "neural_collapse",
    "norms",
    "rank_from",
    "real_array",
    "regression_collapse",
    "regression_collapse_from",
    "regression_statistics",
    "sample_measures",
    "stored_arrays",
    "tag_statistics",
    "whole_numbers",
    "yardstick",
]
