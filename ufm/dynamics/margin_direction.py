r"""Where the flow without penalties goes: cross-entropy, one linear layer without bias, weights and features that grow for ever.

The logits are homogeneous of degree two in theta = (W, U), U = sqrt(c) H, so (derived; Lyu & Li (ICLR 2020), arXiv:1906.05890, for networks)

    d ||theta||^2 / dt = (4 / N) sum_i sum_c p_ic (z_iy - z_ic),

all of whose terms are positive once all margins are. A direction in which theta and -gradient agree (`Trajectory.alignment` one) is a
Karush-Kuhn-Tucker point of

    min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2    subject to    z_y - z_c >= 1 :

with margins gamma = min (z_y - z_c), theta / sqrt(gamma) is feasible, and -gradient is a combination of the constraints' gradients with
non-negative weights that vanish, relative to the largest, wherever a margin stays above gamma by more than a constant. Ji, Lu, Zhang, Deng & Su
(ICLR 2022), arXiv:2110.02796, prove that the flow of this model converges to such a direction, and that the global minimum there is neural
collapse for balanced classes (recalled, not read). For any counts that minimum is known exactly: `ufm.theory.seli`. A KKT point need not be it,
so the claim that the flow goes there is measured, not proved.

Rates. Balanced, from an aligned simplex ETF (`ufm.dynamics.exact_modes`, exact): m = log t + log log t + O(1) and loss ~ (K - 1) sqrt(n) /
(2 t m), so the loss falls as 1 / (t log t), a logarithm faster than 1 / t, and ||theta||^2 grows as log t.
Directions close slowly: what never moves (the
conserved balance W^T W - U^T U sees to it) stays as large as the start was while ||theta|| grows as the root of log t. From entries of size one,
class sizes (3, 2, 2) and d = 4 are still 0.124 from the limit at t = 1e12, where 0.93 of the largest normalised margin is reached; from entries
of 0.01, 0.006 (measured).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.dynamics.trajectory import Trajectory
from ufm.hard_margin import HardMargin, solve_hard_margin
from ufm.losses import CrossEntropy
from ufm.resolutions import lifted

__all__ = ["DirectionCheck", "direction_check", "largest_margin_logits"]

LATE = 0.5  # of the recorded times with positive margins, the last of which are looked at
SETTLED = 0.1  # relative change over them of what tends to a constant

POWER = 0.25  # of the margin, with which an angle that goes to zero falls at least; half is what the growth of the norm allows for


class DirectionCheck(NamedTuple):
    """The direction of a flow without penalties at those kept times at which all margins are positive; (M,) arrays.

    times. margin: smallest z_y - z_c. norm_squared: ||theta||^2. normalised_margin: margin / norm_squared; limit: what it is at most, 1 / (2
    value) of the hard-margin problem. angle: in radians between the logits (rows times sqrt(c)) and those of the hard-margin problem.
    stationarity: the sine of the angle between theta and the direction in which it moves, zero at a KKT point. loss_rate: loss times t times
    margin, which tends to a constant. rounding: relative, of all of them.
    """

    times: Float[np.ndarray, " M"]
    margin: Float[np.ndarray, " M"]
    norm_squared: Float[np.ndarray, " M"]
    normalised_margin: Float[np.ndarray, " M"]
    limit: float
    angle: Float[np.ndarray, " M"]
    stationarity: Float[np.ndarray, " M"]
    loss_rate: Float[np.ndarray, " M"]
    rounding: float

    @property
    def late(self) -> slice:
        """The times that the verdict looks at."""
        return slice(int(LATE * self.times.size), None)

    @property
    def power(self) -> float:
        """The q of angle ~ margin^-q over those times."""
        angle, margin = np.maximum(self.angle[self.late], self.rounding), self.margin[self.late]
        return float(-np.polyfit(np.log(margin), np.log(angle), 1)[0]) if margin.size > 1 else 0.0

    @property
    def separates(self) -> bool:
        """Whether all margins are positive at the end, and the normalised margin never falls, nor exceeds its limit."""
        room = 1 + self.rounding
        grows = np.all(np.diff(self.normalised_margin[self.late]) >= -self.rounding * self.limit)
        return bool(self.times.size > 4 and grows and np.all(self.normalised_margin <= self.limit * room))

    @property
    def stationary(self) -> bool:
        """Whether the path is on its way to a KKT point: what is missing to stationarity falls, and the loss has its rate."""
        rate = self.loss_rate[self.late]
        falls = np.all(np.diff(self.stationarity[self.late]) <= self.rounding)
        return bool(self.separates and falls and np.ptp(rate) <= SETTLED * rate[-1])

    @property
    def holds(self) -> bool:
        """Whether, besides, the angle to the hard-margin solution falls as a power of the margin would; False with NaN.

        A power goes to zero where a fall to another angle has none; that the angle gets there is beyond any finite time.
        """
        return bool(self.stationary and np.all(np.diff(self.angle[self.late]) <= self.rounding) and self.power >= POWER)


def direction_check(trajectory: Trajectory) -> DirectionCheck:
    """Return how a flow without penalties turns towards maximal margins.

    Raises:
        ValueError: for other models, or a path with penalties.
    """
    problem = trajectory.problem
    needs = {
        "cross-entropy": type(problem.loss) is CrossEntropy,
        "one layer": problem.num_layers == 1,
        "no bias": not problem.use_bias,
        "features of any sign": not problem.nonnegative_features,
        "feature_dim >= num_classes - 1": problem.feature_dim >= problem.num_classes - 1,
        "no penalties (penalty_factor=0)": trajectory.penalty_factor == 0,
    }
    missing = [need for need, holds in needs.items() if not holds]
    if missing:
        raise ValueError(f"`trajectory` must have {', '.join(missing)} for the direction of its flow.")
    target, value = largest_margin_logits(trajectory)
    kept = trajectory.kept
    margin = np.min(trajectory.margins[kept], axis=1)
    chosen = margin > 0
    kept, margin = kept[chosen], margin[chosen]
    weights, features = trajectory.points.weights[0][chosen], trajectory.points.features[chosen]
    roots = np.sqrt(trajectory.counts)[:, None]
    logits = roots * np.einsum("mnd,mkd->mnk", features, weights)
    along = np.einsum("mnk,nk->m", logits, target)
    across = np.linalg.norm(logits - along[:, None, None] * target, axis=(1, 2))
    squared = trajectory.norm[kept] ** 2
    slip = trajectory.rtol * trajectory.steps[-1] + 64 * np.finfo(np.float64).eps
    return DirectionCheck(
        trajectory.times[kept],
        margin,
        squared,
        margin / squared,
        1 / (2 * value),
        np.arctan2(across, along),
        np.sqrt(np.maximum(1 - trajectory.alignment[kept] ** 2, 0)),
        trajectory.data_term[kept] * trajectory.times[kept] * margin,
        float(slip),
    )


def largest_margin_logits(trajectory: Trajectory) -> tuple[Float[np.ndarray, "n K"], float]:
    """Return the logits of the hard-margin problem, rows times sqrt(c) and of norm one, and its minimal value, from `ufm.solve_hard_margin`."""
    solution = solve_hard_margin(HardMargin(trajectory.problem.class_counts))
    logits: Any = np.asarray(solution.logits)
    if trajectory.resolution == "samples":
        logits = np.asarray(lifted(logits, trajectory.problem.class_counts))
    target = np.sqrt(trajectory.counts)[:, None] * logits
    return target / np.linalg.norm(target), solution.value
