r"""Laws that every gradient flow obeys, held against a recorded path. Each check can say no.

Energy. dF/dt = -||gradient||^2, so the objective never increases.

Conservation. Write U = sqrt(c) H (`ufm.dynamics.flow_metric`) and G_l for what the loss sends back to layer l; then W_1' = -G_1^T U - lambda_1
W_1 and U' = -G_1 W_1 - lambda_H U, so for

    Q_1 = W_1^T W_1 - U^T U,    Q_{l+1} = W_{l+1}^T W_{l+1} - W_l W_l^T,

the loss drops out, Q_l' = -2 lambda Q_l with equal penalties lambda on all factors, and Q_l(t) = exp(-2 lambda t) Q_l(0): conserved where there are
none. Between layers with a ReLU this holds for the diagonal alone (each unit's weights in and out); Q_1 has no activation in it. Samples and
classes: U^T U = sum_k n_k h_k h_k^T. (Arora, Cohen & Hazan (ICML 2018), arXiv:1802.06509, and Du, Hu & Lee (NeurIPS 2018), arXiv:1806.00900, have
it for networks without penalties; recalled. The decay is derived here.)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.dynamics.trajectory import Trajectory
from ufm.problem import Parameters
from ufm.regularizers import WeightDecay

__all__ = ["ConservationCheck", "EnergyCheck", "balance_matrices", "conservation_check", "energy_check"]

ROUNDING = 64 * np.finfo(np.float64).eps


class EnergyCheck(NamedTuple):
    """How the objective moves between recorded times, (T - 1,) arrays.

    rise: later less earlier objective. tolerance: what errors of the integrator and of rounding explain.
    """

    rise: Float[np.ndarray, " T"]
    tolerance: Float[np.ndarray, " T"]

    @property
    def holds(self) -> bool:
        """Whether no rise is above its tolerance, and there is at least one; False with NaN."""
        return bool(self.rise.size and np.all(self.rise <= self.tolerance))


def energy_check(trajectory: Trajectory) -> EnergyCheck:
    """Check that the objective never increases between recorded times.

    A step of the integrator may be wrong by atol + rtol times the norm of the point, in the direction of the gradient at worst; descent has no such
    excuse.
    """
    rise = np.diff(trajectory.objective)
    slip = trajectory.atol * np.sqrt(_size(trajectory)) + trajectory.rtol * trajectory.norm
    steps = np.diff(trajectory.steps)
    steepest = np.maximum(trajectory.gradient_norm[:-1], trajectory.gradient_norm[1:])
    tolerance = (steps if trajectory.kind == "flow" else 0) * steepest * np.maximum(slip[:-1], slip[1:])
    return EnergyCheck(rise, tolerance + ROUNDING * np.abs(trajectory.objective[0]))


class ConservationCheck(NamedTuple):
    """How far the balance of neighbouring factors is from its law, at the kept times.

    times: (M,). found, expected: (M, L) norms of Q_l (of their diagonals between ReLU layers). error: (M, L) norms of the difference of the
    matrices. tolerance: (M, L) what the integrator's errors explain.
    """

    times: Float[np.ndarray, " M"]
    found: Float[np.ndarray, "M L"]
    expected: Float[np.ndarray, "M L"]
    error: Float[np.ndarray, "M L"]
    tolerance: Float[np.ndarray, "M L"]

    @property
    def holds(self) -> bool:
        """Whether no error is above its tolerance, and there is a time after the first; False with NaN."""
        return bool(self.times.size > 1 and np.all(self.error <= self.tolerance))


def conservation_check(trajectory: Trajectory) -> ConservationCheck:
    """Check that Q_l(t) = exp(-2 lambda t) Q_l(0) for every pair of neighbouring factors.

    Raises:
        ValueError: where penalties of weights and features differ, so that there is no such law.
    """
    problem, decay = trajectory.problem, trajectory.problem.regularizer
    assert isinstance(decay, WeightDecay)
    penalties = trajectory.penalty_factor * np.append(decay.per_layer(problem.num_layers), decay.features)
    if not np.allclose(penalties, penalties[0], rtol=1e-12, atol=0):
        raise ValueError(
            f"`trajectory` must have equal penalties on weights and features for this law (or none, by penalty_factor=0), got {penalties.tolist()}."
        )
    if problem.nonnegative_features:
        raise ValueError("`trajectory` must have features of any sign: projected ones have no such law.")
    matrices = [balance_matrices(trajectory, trajectory.point(i)) for i in range(trajectory.kept.size)]
    rectified = problem.activation == "relu"
    matrices = [
        [np.diag(np.diagonal(Q)) if rectified and layer else Q for layer, Q in enumerate(row)] for row in matrices
    ]
    times = trajectory.kept_times
    factors = np.exp(-2 * penalties[0] * times)
    expected = [[factor * Q for Q in matrices[0]] for factor in factors]
    error = [
        [np.linalg.norm(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(matrices, expected, strict=True)
    ]
    # Every step may be wrong by this much, in factors of norm at most the largest so far.
    norm = np.maximum.accumulate(trajectory.norm)[trajectory.kept]
    slip = trajectory.atol * np.sqrt(_size(trajectory)) + trajectory.rtol * norm
    steps = trajectory.steps[trajectory.kept] if trajectory.kind == "flow" else 0 * trajectory.kept
    tolerance = 2 * steps * slip * norm + ROUNDING * norm**2
    return ConservationCheck(
        times,
        np.array([[np.linalg.norm(Q) for Q in row] for row in matrices]),
        np.array([[np.linalg.norm(Q) for Q in row] for row in expected]),
        np.array(error),
        np.repeat(tolerance[:, None], problem.num_layers, axis=1),
    )


def balance_matrices(trajectory: Trajectory, point: Parameters) -> list[Float[np.ndarray, "m m"]]:
    """Return Q_1, ..., Q_L at a point of the trajectory."""
    U = np.sqrt(trajectory.counts)[:, None] * np.asarray(point.features)
    weights = [np.asarray(matrix) for matrix in point.weights]
    before = [U.T @ U, *(matrix @ matrix.T for matrix in weights[:-1])]
    return [matrix.T @ matrix - gram for matrix, gram in zip(weights, before, strict=True)]


def _size(trajectory: Trajectory) -> int:
    last = trajectory.final
    return sum(np.size(block) for block in (*last.weights, last.features))
