"""What a solve returns: the minimiser, its certificate, and how it was reached."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm._support import Module, Status, counted
from ufm.certificates import Certificate
from ufm.problems import VANISHING, Parameters, Problem, labels, lifted

__all__ = ["Minimum", "Restarts", "Solution", "SolveError", "SolveInterrupted", "Trajectory"]


class SolveError(RuntimeError):
    """Raised by `Solution.check()` where the solve did not end well."""


class SolveInterrupted(KeyboardInterrupt):
    """Ctrl-C during a solve; `solution` holds what was reached."""

    solution: "Solution"


class Restarts(NamedTuple):
    """What became of every initial point: (R,) arrays, in the order of the keys.

    `best` is the index of the one returned.
    """

    objective: np.ndarray
    relative_gradient: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    best: int


class Minimum(NamedTuple):
    """A value that initial points converged to: the lowest of those points, and how many ended at or near it.

    objective, relative_gradient, parameters, logits (K, K; class means without the bias): of that
    point. starts: how many.
    """

    objective: float
    relative_gradient: float
    starts: int
    parameters: Parameters
    logits: np.ndarray

    @property
    def rank(self) -> int:
        """Of the logits; singular values below 1e-9 of the largest entry, or of one, count as none."""
        return int(
            np.linalg.matrix_rank(
                self.logits, tol=VANISHING * max(float(np.max(np.abs(self.logits))), 1.0)
            )
        )


class Trajectory(NamedTuple):
    """A recorded solve: (T,) arrays, one entry per recorded step (the first and the last included).

    Fields as in `ufm.solving.methods.Records`: step, objective, gradient_norm (relative, as in the
    stopping rule) and the metrics nc1 to nc4 in the conventions of `ufm.metrics`.
    """

    step: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    nc1: np.ndarray
    nc2_features: np.ndarray
    nc2_weights: np.ndarray
    nc2_features_frame: np.ndarray
    nc2_weights_frame: np.ndarray
    nc3: np.ndarray
    nc4: np.ndarray


class Solution(Module):
    """A minimiser, with what is known about it. All arrays are NumPy.

    problem: what was solved. resolution: "classes" or "samples".
    objective: () value. weights: (W_1, ..., W_L), each (out, in). features: (K, d) at class
    resolution, (N, d) at sample resolution. bias: (K,) or None. logits: (K, K), row k the mean
    logits of class k (bias included). class_features: (K, D), class means of what the last layer
    multiplies. status: how the solve ended. steps: made by the solver. evaluations: gradients and
    Hessian-vector products. escapes: stationary points that were left because their certificate
    failed. relative_gradient: the stopping measure reached. certificate: None where no bound exists
    for the model. restarts: every initial point's outcome. minima: the distinct values among those
    that converged, the lowest first; `ufm.landscape.census` tells geometries apart, too.
    trajectory: None unless asked for. seconds: wall time, compilation included.
    """

    problem: Problem
    resolution: str
    objective: float
    weights: tuple[Float[Array, "out in"], ...]
    features: Float[Array, "n d"]
    bias: Float[Array, " K"] | None
    logits: Float[Array, "K K"]
    class_features: Float[Array, "K D"]
    status: Status
    steps: int
    evaluations: int
    escapes: int
    relative_gradient: float
    certificate: Certificate | None
    restarts: Restarts
    minima: tuple[Minimum, ...]
    trajectory: Trajectory | None
    seconds: float

    @property
    def parameters(self) -> Parameters:
        """The unknowns: weights, features and bias."""
        return Parameters(self.weights, self.features, self.bias)

    @property
    def labels(self) -> np.ndarray:
        """The class of every sample, (N,), for whole class counts."""
        return labels(self.problem.class_counts)

    @property
    def sample_features(self) -> np.ndarray:
        """(N, d) features of every sample; at class resolution every sample has its class's."""
        return np.asarray(lifted(self.features, self.problem.class_counts))

    def check(self) -> "Solution":
        """Return the solution itself.

        Raises:
            SolveError: where the solve did not converge, or a certificate whose bound is tight does
                not hold.
        """
        if not self.status.ok:
            raise SolveError(
                f"{self.status.message} (relative gradient {self.relative_gradient:.2g})"
            )
        if self.certificate is not None and self.certificate.tight and not self.certificate.holds:
            raise SolveError(f"global optimality is not certified: {self.certificate}")
        return self

    def __str__(self) -> str:
        counts = np.asarray(self.problem.class_counts)
        lines = [
            f"objective     {self.objective:.15g}",
            f"status        {self.status.message}",
            f"certificate   {self.certificate or 'none: no lower bound is known for this model'}",
            f"problem       K = {counts.size}, N = {counts.sum():g}, d = {self.problem.feature_dim}, "
            f"{type(self.problem.loss).__name__}, {type(self.problem.regularizer).__name__}",
            f"work          {counted(self.steps, 'step')}, {counted(self.evaluations, 'evaluation')}, {self.seconds:.3g} s at "
            f"{self.resolution} resolution",
        ]
        if len(self.minima) > 1:
            found = ", ".join(
                f"{minimum.objective:.9g} ({minimum.starts})" for minimum in self.minima
            )
            lines.append(
                f"minima        {found} from {counted(self.restarts.status.size, 'start')}"
            )
        return "\n".join(lines)
