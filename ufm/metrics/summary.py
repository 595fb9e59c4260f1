"""Collapse in seven numbers: what is recorded along a solve or a flow, and kept of a sweep."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm._support import printed
from ufm.metrics.class_statistics import class_statistics
from ufm.metrics.definitions import CONVENTIONS
from ufm.metrics.neural_collapse import collapse_metrics
from ufm.problems import Parameters, Problem, Samples

__all__ = ["MEASURES", "CollapseSummary", "Measure", "collapse_summary"]


class Measure(NamedTuple):
    """One of the seven numbers.

    Attributes:
        label: What it is called in a picture.
        key: Its name in `NeuralCollapse.to_dict()`.
    """

    label: str
    key: str

    @property
    def formula(self) -> str:
        """The formula, in the convention of the literature."""
        return CONVENTIONS[self.key]


MEASURES = {
    "nc1": Measure("NC1, within-class variability", "nc1_pinv"),
    "nc2_features": Measure("NC2, features to ETF", "nc2_features_etf_distance"),
    "nc2_weights": Measure("NC2, weights to ETF", "nc2_weights_etf_distance"),
    "nc2_features_frame": Measure(
        "NC2, features to orthogonal frame", "nc2_features_orthogonal_distance"
    ),
    "nc2_weights_frame": Measure(
        "NC2, weights to orthogonal frame", "nc2_weights_orthogonal_distance"
    ),
    "nc3": Measure("NC3, weights to features", "nc3_squared_distance"),
    "nc4": Measure("NC4, decisions unlike nearest mean", "nc4_mismatch"),
}


@printed
class CollapseSummary(NamedTuple):
    """How collapsed a point is. `MEASURES` has the label and the formula of each field.

    Attributes:
        nc1: Within-class variability.
        nc2_features: Distance of the centred class means from a simplex ETF.
        nc2_weights: Distance of the weights from a simplex ETF.
        nc2_features_frame: Distance of the class means from an orthogonal frame.
        nc2_weights_frame: Distance of the weights from an orthogonal frame.
        nc3: Squared distance between normalised weights and centred class means.
        nc4: Share of samples (weighted by their counts) whose decision is not that of the nearest
            class mean.
    """

    nc1: Float[Array, ""]
    nc2_features: Float[Array, ""]
    nc2_weights: Float[Array, ""]
    nc2_features_frame: Float[Array, ""]
    nc2_weights_frame: Float[Array, ""]
    nc3: Float[Array, ""]
    nc4: Float[Array, ""]


def collapse_summary(problem: Problem, samples: Samples, parameters: Parameters) -> CollapseSummary:
    """Return how collapsed the last layer and what it multiplies are. The function is pure.

    The class of a row is the label of its largest target.
    """
    statistics = class_statistics(
        problem.last_features(parameters),
        jnp.argmax(samples.targets, axis=1),
        problem.num_classes,
        sample_weights=samples.counts,
    )
    metrics: Any = collapse_metrics(statistics, parameters.weights[-1], parameters.bias)
    return CollapseSummary(
        metrics.nc1.pinv,
        metrics.nc2_features.etf_distance,
        metrics.nc2_weights.etf_distance,
        metrics.nc2_features.orthogonal_distance,
        metrics.nc2_weights.orthogonal_distance,
        metrics.nc3.squared_distance,
        metrics.nc4.mismatch,
    )
