"""The trajectory of a solve, recorded inside the compiled loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ufm.geometry import AnyArray
from ufm.metrics import collapse_summary
from ufm.problems import Parameters, Problem, Samples

__all__ = ["Records", "SolveRecord", "empty_records", "recorded"]


class SolveRecord(NamedTuple):
    """A recorded solve: arrays of shape (T,), one entry per recorded step.

    The first and the last step are included. The fields from `nc1` on are those of
    `ufm.metrics.CollapseSummary`.

    Attributes:
        step: Number of the step.
        objective: The objective there.
        gradient_norm: Relative gradient, as in the stopping rule.
        nc1: Within-class variability.
        nc2_features: Distance of the centred class means from a simplex ETF.
        nc2_weights: Distance of the weights from a simplex ETF.
        nc2_features_frame: Distance of the class means from an orthogonal frame.
        nc2_weights_frame: Distance of the weights from an orthogonal frame.
        nc3: Squared distance between normalised weights and centred class means.
        nc4: Share of decisions unlike those of the nearest class mean.
    """

    step: Int[AnyArray, " T"]
    objective: Float[AnyArray, " T"]
    gradient_norm: Float[AnyArray, " T"]
    nc1: Float[AnyArray, " T"]
    nc2_features: Float[AnyArray, " T"]
    nc2_weights: Float[AnyArray, " T"]
    nc2_features_frame: Float[AnyArray, " T"]
    nc2_weights_frame: Float[AnyArray, " T"]
    nc3: Float[AnyArray, " T"]
    nc4: Float[AnyArray, " T"]


class Records(NamedTuple):
    """What was recorded so far.

    Attributes:
        filled: How many entries are filled, ().
        columns: The record, with room for more entries; NaN where nothing is recorded yet.
    """

    filled: Int[Array, ""]
    columns: SolveRecord

    def trajectory(self) -> SolveRecord:
        """Return the filled entries as NumPy arrays."""
        return SolveRecord(*(np.asarray(column)[: int(self.filled)] for column in self.columns))


def empty_records(capacity: int, dtype: Any) -> Records:
    """Return records with room for `capacity` entries, as NumPy arrays."""
    blank = np.full((capacity,), np.nan, dtype)
    steps = np.zeros((capacity,), np.int32)
    measures = (blank,) * (len(SolveRecord._fields) - 1)
    return Records(np.zeros((), np.int32), SolveRecord(steps, *measures))  # type: ignore[arg-type]


def recorded(
    problem: Problem, samples: Samples, parameters: Parameters, iterate: Any, due: Bool[Array, ""]
) -> Records:
    """Return the records of an iterate, with its state appended where that is due.

    Args:
        problem: The problem.
        samples: Its rows.
        parameters: The point of the iterate.
        iterate: The iterate.
        due: Whether the state is recorded, ().
    """
    records = iterate.records
    measures = collapse_summary(problem, samples, parameters)
    entry = SolveRecord(iterate.step, iterate.value, iterate.relative_gradient, *measures)
    index = records.filled
    written = jax.tree.map(
        lambda column, new: jnp.where(due, column.at[index].set(new, mode="drop"), column),
        records.columns,
        entry,
    )
    return Records(jnp.where(due, records.filled + 1, records.filled), written)
