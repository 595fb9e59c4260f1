r"""Mitigations of minority collapse: which restores the simplex ETF, and from which strength on.

Each has a strength s >= 0; zero is the problem as it stands. n_max is the largest class count.

- oversampling: samples of class k are repeated (n_max / n_k)^s times (Fang et al., PNAS 2021: s = 1
  restores the balanced problem).
- class weights: the loss of class k is multiplied by (N / (K n_k))^s.
- feature decay: the feature penalty of class k is multiplied by (n_max / n_k)^s (s = 1: features
  averaged per class, not summed over samples).
- logit adjustment: z + s log(n_k / N) (Menon et al., ICLR 2021).
- CDT: logits of class k multiplied by (n_k / n_max)^s (Ye et al., 2020).
- LDT: all logits of a sample of class k multiplied by (n_k / n_max)^s, a margin of (n_max / n_k)^s
  (Behnia et al., AISTATS 2023; s = 1/2 restores the ETF of the classifiers as the penalties
  vanish).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ufm._support import (
    ArgumentError,
    by_name,
    check_one_of,
    on_host,
    printed,
    rebuilt,
    table_lines,
)
from ufm.imbalance.conditions import level
from ufm.metrics import frame_distances, geometry_of, margins, norms
from ufm.problems import (
    CDT,
    LDT,
    ClassWeighted,
    CrossEntropy,
    GroupProblem,
    LogitAdjusted,
    Problem,
    check_classes,
    family_of,
    minority_of,
    varied,
)
from ufm.solving import solve_batch

__all__ = ["MITIGATIONS", "Mitigated", "Mitigations", "mitigations"]

MITIGATIONS = ("oversampling", "class weights", "feature decay", "logit adjustment", "CDT", "LDT")
# The mitigations that are a loss, and the parameter of the loss that is the strength.
LOSSES: dict[str, tuple[Any, str]] = {
    "class weights": (ClassWeighted, "loss.exponent"),
    "logit adjustment": (LogitAdjusted, "loss.strength"),
    "CDT": (CDT, "loss.exponent"),
    "LDT": (LDT, "loss.exponent"),
}
STRENGTHS = np.linspace(0, 2, 81)
REFINED = 20  # strengths between two of the grid where something begins


class Mitigated(NamedTuple):
    """One mitigation over its strengths. Arrays have shape (S,).

    Attributes:
        name: Which one.
        strength: s.
        cosine: Cosine between two minority classifiers.
        norm_ratio: ||w|| of the majority over the minority.
        etf_distance: Distance of the normalised Gram matrix of the weights to the ETF's.
        minority_margin: Own logit less the largest other.
        collapsed: Whether minority classifiers coincide (their modes' dual ratio is below one).
        relative_gap: Certified relative gap.
    """

    name: str
    strength: Float[np.ndarray, " S"]
    cosine: Float[np.ndarray, " S"]
    norm_ratio: Float[np.ndarray, " S"]
    etf_distance: Float[np.ndarray, " S"]
    minority_margin: Float[np.ndarray, " S"]
    collapsed: np.ndarray
    relative_gap: Float[np.ndarray, " S"]

    @property
    def best(self) -> int:
        """Index of the strength without collapse at which the weights are closest to the ETF."""
        out = self.collapsed | np.isnan(self.etf_distance)
        return int(np.argmin(np.where(out, np.inf, self.etf_distance)))

    @property
    def leaves_collapse_at(self) -> float | None:
        """The smallest strength of the grid without collapse; None if there is none."""
        free = np.flatnonzero(~self.collapsed)
        return float(self.strength[free[0]]) if free.size else None

    def restores_from(self, tolerance: float = 0.01) -> float | None:
        """Return the smallest strength with the weights within `tolerance` of the ETF, or None."""
        close = np.flatnonzero((self.etf_distance <= tolerance) & ~self.collapsed)
        return float(self.strength[close[0]]) if close.size else None

    def to_dict(self, tolerance: float = 0.01) -> dict[str, Any]:
        """Return where collapse ends, where the ETF is restored, and what is closest to it."""
        index = self.best
        return {
            "name": self.name,
            "leaves_collapse_at": self.leaves_collapse_at,
            "restores_from": self.restores_from(tolerance),
            "closest_at": float(self.strength[index]),
            "etf_distance": float(self.etf_distance[index]),
            "cosine": float(self.cosine[index]),
            "norm_ratio": float(self.norm_ratio[index]),
            "minority_margin": float(self.minority_margin[index]),
            "largest_relative_gap": float(self.relative_gap.max()),
        }


@printed
class Mitigations(NamedTuple):
    """The mitigations of one problem. Prints as a table."""

    rows: tuple[Mitigated, ...]
    tolerance: float

    def __getitem__(self, name: Any) -> Any:
        """Return a mitigation by its name (or a field by its index, as tuples do)."""
        return by_name(self, "name", name, {row.name: row for row in self.rows})

    def __str__(self) -> str:
        head = (
            "mitigation",
            "no collapse from",
            "ETF from",
            "closest at",
            "distance",
            "cosine",
            "norm ratio",
            "margin",
        )
        cells = [head]
        for row in self.rows:
            index = row.best
            cells.append(
                (
                    row.name,
                    _number(row.leaves_collapse_at),
                    _number(row.restores_from(self.tolerance)),
                    f"{row.strength[index]:.3g}",
                    f"{row.etf_distance[index]:.2g}",
                    f"{row.cosine[index]:.4f}",
                    f"{row.norm_ratio[index]:.4g}",
                    f"{row.minority_margin[index]:.4g}",
                )
            )
        first = self.rows[0]
        state = "coincide" if first.collapsed[0] else f"have cosine {first.cosine[0]:.4f}"
        note = (
            f"ETF from: the first strength with weights within {self.tolerance:g} of the simplex "
            "ETF; stronger may be too much"
        )
        return "\n".join(
            [f"without mitigation, minority classifiers {state}", *table_lines(cells), note]
        )


@on_host
def mitigations(
    problem: Problem,
    names: Sequence[str] = MITIGATIONS,
    strengths: Sequence[float] | np.ndarray = STRENGTHS,
    tolerance: float = 0.01,
) -> Mitigations:
    """Compare mitigations of minority collapse by certified minima at every strength.

    Args:
        problem: Cross-entropy, one layer, signed features, two class sizes.
        names: Names in `MITIGATIONS`.
        strengths: s, ascending, zero first.
        tolerance: Distance to the ETF's normalised Gram matrix that counts as restored.

    Raises:
        ValueError: If the loss is another one, a name is unknown, or strengths are negative or not
            finite.
    """
    values = _checked_strengths(problem, names, strengths)
    if varied(problem, {}).gauge.bounded:
        if "feature decay" in names and names is not MITIGATIONS:
            raise ArgumentError(
                "names",
                "has 'feature decay', but the regularizer NormBall averages features per "
                "class already",
            )
        names = [name for name in names if name != "feature decay"]
    rows = []
    for name in names:
        row = _solved(problem, name, values)
        # Where something begins between two strengths, solve at strengths in between.
        begins = {row.leaves_collapse_at, row.restores_from(tolerance)} - {None, float(values[0])}
        between = [
            np.linspace(values[values < begin].max(), begin, REFINED)[1:-1]
            for begin in begins
            if begin is not None
        ]
        if between:
            row = _solved(problem, name, np.unique(np.concatenate([values, *between])))
        rows.append(row)
    return Mitigations(tuple(rows), tolerance)


def _checked_strengths(problem: Problem, names: Sequence[str], strengths: Any) -> np.ndarray:
    """Return the strengths, with all arguments checked."""
    check_classes(problem)
    if type(problem.loss) is not CrossEntropy or problem.nonnegative_features:
        raise ArgumentError(
            "problem",
            "must have the loss CrossEntropy and signed features, which mitigations replace "
            f"or change; got {type(problem.loss).__name__}, "
            f"nonnegative_features={problem.nonnegative_features}",
        )
    for name in names:
        check_one_of("names", name, MITIGATIONS)
    values = np.asarray(strengths, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ArgumentError("strengths", "must be finite numbers >= 0", strengths)
    num_groups = varied(problem, {}).num_groups
    if num_groups != 2:
        raise ArgumentError("problem", f"must have two class sizes, got {num_groups}")
    if minority_of(problem)[1] is None:
        raise ArgumentError("problem", "must have a minority of at least two classes")
    return values


def _solved(problem: Problem, name: str, strengths: np.ndarray) -> Mitigated:
    majority, minority = minority_of(problem)
    problems = _mitigated(problem, name, strengths)
    minima: Any = solve_batch(problems)
    geometry = geometry_of(problems, minima.logits)
    lengths = norms(geometry.weight_gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = lengths[majority] / lengths[minority]
    return Mitigated(
        name,
        strengths,
        geometry.weight_gram.cosines()[0][minority],
        ratio,
        frame_distances(geometry)["nc2_weights"],
        margins(minima.logits, minima.bias)[minority],
        level(problems, minima.price)[minority] >= 0,
        minima.relative_gap,
    )


def _mitigated(problem: Problem, name: str, strengths: np.ndarray) -> GroupProblem:
    """Return the batch of problems with a mitigation at each strength."""
    if name in LOSSES:
        kind, parameter = LOSSES[name]
        return varied(rebuilt(problem, loss=kind(0.0)), {parameter: strengths})
    family = family_of(problem, {}, strengths.size)
    boost = (family.counts.max(axis=0) / family.counts) ** strengths
    boosted = family._replace(counts=family.counts * boost)
    if name == "oversampling":
        return boosted.over_groups()
    # Penalties lambda_H c_k sum ||h||^2 are those of counts n_k c_k, with the loss of class k
    # weighted back.
    totals = [np.sum(one.counts * one.sizes, axis=0) for one in (boosted, family)]
    weights = totals[0] / totals[1] / boost
    return eqx.tree_at(lambda batch: batch.loss.weights, boosted.over_groups(), weights)


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.3g}"
