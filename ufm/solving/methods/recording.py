"""The trajectory of a solve, recorded inside the compiled loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ufm.metrics import class_statistics, collapse_metrics
from ufm.problems import Columns, Parameters, Problem

__all__ = ["Collapse", "Records", "collapse", "empty_records", "recorded"]


class Collapse(NamedTuple):
    """How collapsed a point is, one number for each measure, in the conventions of `ufm.metrics`.

    nc1: tr(S_W S_B^+) / K. nc2_features, nc2_weights: distance to the simplex ETF, means centred.
    nc2_features_frame, nc2_weights_frame: distance to the orthogonal frame, uncentred. nc3:
    ||W/||W|| - M/||M|| ||^2, means centred. nc4: share of samples (weighted by their counts) whose
    prediction is not that of the nearest class mean.
    """

    nc1: Float[Array, ""]
    nc2_features: Float[Array, ""]
    nc2_weights: Float[Array, ""]
    nc2_features_frame: Float[Array, ""]
    nc2_weights_frame: Float[Array, ""]
    nc3: Float[Array, ""]
    nc4: Float[Array, ""]


class Records(NamedTuple):
    """What was recorded: the first `filled` entries of every array are filled.

    step, objective, gradient_norm (relative, as in the stopping rule): (T,). nc1 to nc4: as in
    `Collapse`, (T,).
    """

    filled: Int[Array, ""]
    step: Int[Array, " T"]
    objective: Float[Array, " T"]
    gradient_norm: Float[Array, " T"]
    nc1: Float[Array, " T"]
    nc2_features: Float[Array, " T"]
    nc2_weights: Float[Array, " T"]
    nc2_features_frame: Float[Array, " T"]
    nc2_weights_frame: Float[Array, " T"]
    nc3: Float[Array, " T"]
    nc4: Float[Array, " T"]


def empty_records(capacity: int, dtype: Any) -> Records:
    """Return records with room for `capacity` entries, as NumPy arrays."""
    blank = np.full((capacity,), np.nan, dtype)
    return Records(np.zeros((), np.int32), np.zeros((capacity,), np.int32), *(blank,) * 9)  # type: ignore[arg-type]


def collapse(problem: Problem, columns: Columns, parameters: Parameters) -> Collapse:
    """Return how collapsed the last layer and what it multiplies are at `parameters`."""
    statistics = class_statistics(
        problem.last_features(parameters),
        jnp.argmax(columns.targets, axis=1),
        problem.num_classes,
        sample_weights=columns.counts,
    )
    metrics = collapse_metrics(statistics, parameters.weights[-1], parameters.bias)
    frames, classifier = metrics.nc2_features, metrics.nc2_weights
    nc3, nc4 = metrics.nc3, metrics.nc4
    assert classifier is not None  # weights were given
    assert nc3 is not None
    assert nc4 is not None
    return Collapse(
        metrics.nc1.pinv,
        frames.etf_distance,
        classifier.etf_distance,
        frames.orthogonal_distance,
        classifier.orthogonal_distance,
        nc3.squared_distance,
        nc4.mismatch,
    )


def recorded(
    problem: Problem, columns: Columns, parameters: Parameters, iterate: Any, due: Bool[Array, ""]
) -> Records:
    """Return the records of `iterate` with its present state, at `parameters`, appended where it is `due`."""
    records = iterate.records
    measures = collapse(problem, columns, parameters)
    entry = Records(
        records.filled + 1, iterate.step, iterate.value, iterate.relative_gradient, *measures
    )
    index = records.filled
    written = jax.tree.map(
        lambda column, new: jnp.where(due, column.at[index].set(new, mode="drop"), column),
        records[1:],
        entry[1:],
    )
    return Records(jnp.where(due, entry.filled, records.filled), *written)
