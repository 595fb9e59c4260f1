"""Laws that every gradient flow obeys, compared with a recorded path. Each check can say no.

Energy. dF/dt = -||gradient||^2, so the objective never increases.

Conservation. Write U = sqrt(c) H (`ufm.dynamics.flow_metric`), and G_l for the gradient of the
data term with respect to the output of layer l. Then W_1' = -G_1^T U - lambda_1 W_1 and
U' = -G_1 W_1 - lambda_H U. So the loss drops out of the motion of

    Q_1 = W_1^T W_1 - U^T U,    Q_{l+1} = W_{l+1}^T W_{l+1} - W_l W_l^T.

With equal penalties lambda on all factors, Q_l' = -2 lambda Q_l, and
Q_l(t) = exp(-2 lambda t) Q_l(0). Without penalties Q_l is conserved. Between layers with a ReLU
this holds for the diagonal alone (the weights in and out of each unit). Q_1 contains no activation.
Samples and classes agree: U^T U = sum_k n_k h_k h_k^T.

Arora, Cohen & Hazan (ICML 2018), arXiv:1802.06509, and Du, Hu & Lee (NeurIPS 2018),
arXiv:1806.00900, have the law for networks without penalties; recalled. The decay is derived here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, holds_text, on_host, printed, table_lines
from ufm.dynamics.trajectory import Trajectory
from ufm.problems import Parameters

__all__ = [
    "ConservationCheck",
    "EnergyCheck",
    "balance_matrices",
    "conservation_check",
    "energy_check",
]

ROUNDING = 64 * np.finfo(np.float64).eps  # relative, of sums over all entries


@printed
class EnergyCheck(NamedTuple):
    """How the objective moves between recorded times.

    Attributes:
        rise: Later minus earlier objective, shape (T - 1,).
        tolerance: What errors of the integrator and rounding explain, shape (T - 1,).
    """

    rise: Float[np.ndarray, " T"]
    tolerance: Float[np.ndarray, " T"]

    @property
    def holds(self) -> bool:
        """Whether there is an interval, and no rise exceeds its tolerance; False with NaN."""
        return bool(self.rise.size and np.all(self.rise <= self.tolerance))

    def __str__(self) -> str:
        rows = [("energy never rises", f"{holds_text(self.holds)} in {self.rise.size} intervals")]
        if self.rise.size:
            worst = int(np.argmax(self.rise - self.tolerance))
            found = f"{self.rise[worst]:.3g}, tolerance {self.tolerance[worst]:.3g}"
            rows.append(("closest to failing", f"a rise of {found}, interval {worst}"))
        return "\n".join(table_lines(rows))


@on_host
def energy_check(trajectory: Trajectory) -> EnergyCheck:
    """Check that the objective never increases between recorded times.

    A step of the integrator may be wrong by atol + rtol times the norm of the point, at worst in
    the direction of the gradient. Descent has only rounding as its tolerance.

    Args:
        trajectory: The path.
    """
    rise = np.diff(trajectory.objective)
    slip = trajectory.atol * np.sqrt(_size(trajectory)) + trajectory.rtol * trajectory.norm
    steps = np.diff(trajectory.steps)
    steepest = np.maximum(trajectory.gradient_norm[:-1], trajectory.gradient_norm[1:])
    tolerance = (
        (steps if trajectory.kind == "flow" else 0) * steepest * np.maximum(slip[:-1], slip[1:])
    )
    return EnergyCheck(rise, tolerance + ROUNDING * np.abs(trajectory.objective[0]))


@printed
class ConservationCheck(NamedTuple):
    """How far the balance of neighbouring factors is from its law, at the kept times.

    Attributes:
        times: Kept times, shape (M,).
        found: Norms of Q_l, shape (M, L); of their diagonals between ReLU layers.
        expected: Norms of exp(-2 lambda t) Q_l(0), shape (M, L).
        error: Norms of the difference of the matrices, shape (M, L).
        tolerance: What errors of the integrator explain, shape (M, L).
    """

    times: Float[np.ndarray, " M"]
    found: Float[np.ndarray, "M L"]
    expected: Float[np.ndarray, "M L"]
    error: Float[np.ndarray, "M L"]
    tolerance: Float[np.ndarray, "M L"]

    @property
    def holds(self) -> bool:
        """Whether there is a later time, and all errors are within tolerance; False with NaN."""
        return bool(self.times.size > 1 and np.all(self.error <= self.tolerance))

    def __str__(self) -> str:
        head = ("pair of factors", "norm at the start", "norm at the end", "expected", "error")
        rows: list[tuple[str, ...]] = [(*head, "tolerance")]
        for layer in range(self.found.shape[1]):
            numbers = self.found[0, layer], self.found[-1, layer], self.expected[-1, layer]
            errors = np.max(self.error[:, layer]), self.tolerance[-1, layer]
            texts = (f"{number:.6g}" for number in numbers)
            rows.append((str(layer + 1), *texts, *(f"{number:.3g}" for number in errors)))
        verdict = f"balance of factors: {holds_text(self.holds)} at {self.times.size} times"
        return "\n".join([verdict, *table_lines(rows)])


@on_host
def conservation_check(trajectory: Trajectory) -> ConservationCheck:
    """Check that Q_l(t) = exp(-2 lambda t) Q_l(0) for every pair of neighbouring factors.

    Args:
        trajectory: A path with equal penalties on weights and features, or none.

    Raises:
        ValueError: If penalties differ or features are non-negative, so that there is no such law.
    """
    problem = trajectory.problem
    penalties = trajectory.penalty_factor * problem.regularizer.decays(problem.num_layers)
    if not np.allclose(penalties, penalties[0], rtol=1e-12, atol=0):
        raise ArgumentError(
            "trajectory",
            "must have equal penalties on weights and features for this law (or none, by "
            f"penalty_factor=0), got {penalties.tolist()}",
        )
    if not problem.feature_cone.rotates:
        raise ArgumentError(
            "trajectory", "must have features of any sign: projected ones have no such law"
        )
    matrices = [
        balance_matrices(trajectory, trajectory.point(i)) for i in range(trajectory.kept.size)
    ]
    rectified = problem.activation == "relu"
    matrices = [
        [np.diag(np.diagonal(Q)) if rectified and layer else Q for layer, Q in enumerate(row)]
        for row in matrices
    ]
    times = trajectory.kept_times
    factors = np.exp(-2 * penalties[0] * times)
    expected = [[factor * Q for Q in matrices[0]] for factor in factors]
    error = [
        [np.linalg.norm(a - b) for a, b in zip(*rows, strict=True)]
        for rows in zip(matrices, expected, strict=True)
    ]
    # Every step may be wrong by `slip`, in factors whose norm is at most the largest so far.
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
    """Return Q_1, ..., Q_L at a point of the trajectory.

    Args:
        trajectory: The path.
        point: A point of it.
    """
    U = np.sqrt(trajectory.counts)[:, None] * np.asarray(point.features)
    weights = [np.asarray(matrix) for matrix in point.weights]
    before = [U.T @ U, *(matrix @ matrix.T for matrix in weights[:-1])]
    return [matrix.T @ matrix - gram for matrix, gram in zip(weights, before, strict=True)]


def _size(trajectory: Trajectory) -> int:
    """Return the number of entries of weights and features."""
    last = trajectory.final
    return sum(np.size(block) for block in (*last.weights, last.features))
