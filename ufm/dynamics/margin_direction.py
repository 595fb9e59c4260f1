"""The direction of the flow without penalties: weights and features grow for ever.

Setting: cross-entropy, one linear layer without bias. The logits are homogeneous of degree two in
theta = (W, U), U = sqrt(c) H. Hence (derived; Lyu & Li (ICLR 2020), arXiv:1906.05890, for networks)

    d ||theta||^2 / dt = (4 / N) sum_i sum_c p_ic (z_iy - z_ic).

All terms are positive once all margins are. A direction in which theta and -gradient agree
(`Trajectory.alignment` is one) is a Karush-Kuhn-Tucker (KKT) point of

    min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2    subject to    z_y - z_c >= 1.

Proof: with the margin gamma = min (z_y - z_c), theta / sqrt(gamma) is feasible. -gradient is a
combination of the constraints' gradients with non-negative multipliers. A multiplier vanishes,
relative to the largest, if its margin stays above gamma by more than a constant.

Ji, Lu, Zhang, Deng & Su (ICLR 2022), arXiv:2110.02796, prove that the flow of this model converges
to such a direction, and that the global minimum there is neural collapse for balanced classes
(recalled, not read). For any counts that minimum is known exactly: `ufm.theory.seli`. A KKT point
need not be the global minimum. So the claim that the flow goes to the minimum is measured here, not
proved.

Rates. From a balanced aligned simplex ETF (`ufm.dynamics.exact_modes`, exact),
m = log t + log log t + O(1) and loss ~ (K - 1) sqrt(n) / (2 t m). So the loss falls as
1 / (t log t), a logarithm faster than 1 / t, and ||theta||^2 grows as log t. Directions converge
slowly. The conserved balance W^T W - U^T U stays as large as it was at the start, while ||theta||
grows only as the root of log t. Measured with class sizes (3, 2, 2) and d = 4: from entries of size
one the angle to the limit is still 0.124 at t = 1e12, where the normalised margin is 0.93 of its
largest value; from entries of size 0.01 the angle is 0.006.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import checked_condition, holds_text, on_host, printed, table_lines
from ufm.dynamics.trajectory import Trajectory
from ufm.imbalance.hard_margin import HardMargin, solve_hard_margin
from ufm.problems import CrossEntropy, lifted

__all__ = ["DirectionCheck", "direction_check", "largest_margin_logits"]

LATE = 0.5  # share of the times with positive margins, from the end, that the verdict uses
SETTLED = 0.1  # relative change over the late times of a quantity that tends to a constant
# Least exponent of an angle that falls to zero. The growth of the norm allows an exponent of 0.5.
POWER = 0.25
TIMES = 5  # fewest times of a verdict


@printed
class DirectionCheck(NamedTuple):
    """The direction of a flow without penalties, at the kept times with all margins positive.

    Arrays have shape (M,).

    Attributes:
        times: The times.
        margin: Smallest z_y - z_c.
        norm_squared: ||theta||^2.
        normalised_margin: margin / norm_squared.
        limit: Upper bound of the normalised margin: 1 / (2 value) of the hard-margin problem.
        angle: Angle in radians between the logits (rows times sqrt(c)) and those of the hard-margin
            problem.
        stationarity: Sine of the angle between theta and the direction in which it moves; zero at a
            KKT point.
        loss_rate: Loss times time times margin, which tends to a constant.
        rounding: Relative error of all of these.
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

    def __str__(self) -> str:
        if not self.times.size:
            return f"direction to the largest margin: {holds_text(self.holds)}, no positive margins"
        rows = [
            (
                "direction to the largest margin",
                f"{holds_text(self.holds)} at {self.times.size} times",
            ),
            ("last time", f"{self.times[-1]:.6g}"),
            ("normalised margin", f"{self.normalised_margin[-1]:.6g} of at most {self.limit:.6g}"),
            (
                "angle",
                f"{self.angle[0]:.4g} to {self.angle[-1]:.4g} rad, exponent {self.power:.3g}",
            ),
            ("stationarity", f"{self.stationarity[0]:.3g} to {self.stationarity[-1]:.3g}"),
        ]
        return "\n".join(table_lines(rows))

    @property
    def late(self) -> slice:
        """The times that the verdict uses."""
        return slice(int(LATE * self.times.size), None)

    @property
    def power(self) -> float:
        """The exponent q of angle ~ margin^-q over the late times."""
        angle, margin = np.maximum(self.angle[self.late], self.rounding), self.margin[self.late]
        return float(-np.polyfit(np.log(margin), np.log(angle), 1)[0]) if margin.size > 1 else 0.0

    @property
    def separates(self) -> bool:
        """Whether the late normalised margin never falls, and none exceeds the limit."""
        room = 1 + self.rounding
        grows = np.all(np.diff(self.normalised_margin[self.late]) >= -self.rounding * self.limit)
        return bool(
            self.times.size >= TIMES
            and grows
            and np.all(self.normalised_margin <= self.limit * room)
        )

    @property
    def stationary(self) -> bool:
        """Whether the path approaches a KKT point: stationarity falls, the loss has its rate.

        The normalised margin must behave as in `separates`, too.
        """
        rate = self.loss_rate[self.late]
        falls = np.all(np.diff(self.stationarity[self.late]) <= self.rounding)
        return bool(self.separates and falls and np.ptp(rate) <= SETTLED * rate[-1])

    @property
    def holds(self) -> bool:
        """Whether the angle to the hard-margin solution also falls as a power of the margin.

        False with NaN. An angle that falls as a power of the margin goes to zero. An angle that
        tends to another limit has exponent zero. That the angle reaches zero is beyond any finite
        time.
        """
        return bool(
            self.stationary
            and np.all(np.diff(self.angle[self.late]) <= self.rounding)
            and self.power >= POWER
        )


@on_host
def direction_check(trajectory: Trajectory) -> DirectionCheck:
    """Measure how a flow without penalties turns towards maximal margins.

    Args:
        trajectory: A path of cross-entropy with one linear layer, no bias, d >= K - 1 and
            penalty_factor = 0.

    Raises:
        ValueError: If the model is another one, or the path has penalties.
    """
    problem = trajectory.problem
    needs = {
        "cross-entropy": type(problem.loss) is CrossEntropy,
        "one layer": problem.num_layers == 1,
        "no bias": not problem.use_bias,
        "features of any sign": problem.feature_cone.rotates,
        "feature_dim >= num_classes - 1": problem.feature_dim >= problem.num_classes - 1,
        "no penalties (penalty_factor=0)": trajectory.penalty_factor == 0,
    }
    checked_condition(needs, "trajectory", "the direction of its flow")
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
    """Return the logits of the hard-margin problem, and its minimal value.

    The logits have rows multiplied by sqrt(c), and norm one. `ufm.solve_hard_margin` finds them.

    Args:
        trajectory: A path, whose class counts and resolution are used.
    """
    solution = solve_hard_margin(HardMargin(trajectory.problem.class_counts))
    logits: Any = np.asarray(solution.logits)
    if trajectory.resolution == "samples":
        logits = np.asarray(lifted(logits, trajectory.problem.class_counts))
    target = np.sqrt(trajectory.counts)[:, None] * logits
    return target / np.linalg.norm(target), solution.value
