"""A minimiser over orbits of target rows; explicit matrices on demand."""

import functools

import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Module
from ufm.metrics import ClassGeometry, geometry_of_matrices, support_margins
from ufm.problems import Parameters, Problem, RowOrbits, check_dense

__all__ = ["OrbitPoint"]


class OrbitPoint(Module):
    """A point over orbits of target rows. Matrices of R rows are formed when they are asked for.

    Attributes:
        orbits: The orbits of the distinct rows of the targets.
        origins: (R,), the distinct row of each target row; None where all differ.
        gauge_rows: r of each distinct row.
        split: ||W|| over ||diag(r) H|| at balanced factors.
        feature_dim: d.
        representatives: (T, K), the logits of one row of each orbit, without bias.
        bias: (K,), or None.
    """

    orbits: RowOrbits
    origins: Int[np.ndarray, " R"] | None
    gauge_rows: Float[np.ndarray, " r"]
    split: float
    feature_dim: int
    representatives: Float[np.ndarray, "T K"]
    bias: Float[np.ndarray, " K"] | None

    @property
    def group_bias(self) -> Float[np.ndarray, " K"] | None:
        """The bias of every label."""
        return self.bias

    @functools.cached_property
    def parameters(self) -> Parameters:
        """Balanced weights (K, d), features (R, d) and bias: singular modes of weighted logits.

        Raises:
            ValueError: If there are too many numbers for explicit matrices.
        """
        logits = self.orbits.expanded(self.representatives)
        check_dense(max(logits.shape[1], int(np.sqrt(logits.size))))
        left, values, right = np.linalg.svd(self.gauge_rows[:, None] * logits, full_matrices=False)
        rank = min(self.feature_dim, len(values))
        weights = np.zeros((logits.shape[1], self.feature_dim))
        features = np.zeros((len(logits), self.feature_dim))
        roots, scale = np.sqrt(values[:rank]), np.sqrt(self.split)
        weights[:, :rank] = scale * right[:rank].T * roots
        features[:, :rank] = left[:, :rank] * roots / (scale * self.gauge_rows[:, None])
        return Parameters((weights,), self._stated(features), self.bias)  # type: ignore[arg-type]

    @functools.cached_property
    def plain_logits(self) -> Float[np.ndarray, "R K"]:
        """The logits of every row, without the bias."""
        return self._stated(self.orbits.expanded(self.representatives))

    @property
    def logits(self) -> Float[np.ndarray, "R K"]:
        """The logits of every row, bias included."""
        return self.plain_logits if self.bias is None else self.plain_logits + self.bias

    @property
    def class_features(self) -> Float[Array, "R d"]:
        """The features of every row."""
        return self.parameters.features

    @property
    def groups(self) -> Int[np.ndarray, " R"]:
        """Every target row stands for itself."""
        count = len(self.orbits.orbit_of) if self.origins is None else len(self.origins)
        return np.arange(count)

    def margins(self, problem: Problem) -> Float[np.ndarray, " R"]:
        """Return the margin of every row."""
        return support_margins(self.logits, np.asarray(problem.target_rows(np.float64, np)))

    def blocks(self, problem: Problem) -> ClassGeometry:
        """Return logits and Gram matrices as blocks of one row each."""
        check_dense(max(self.plain_logits.shape))
        return geometry_of_matrices(
            self.parameters.weights[-1],
            self.class_features,
            self.plain_logits,
            np.asarray(problem.gauge_rows),
        )

    def _stated(self, rows: np.ndarray) -> np.ndarray:
        """Return one row per stated target row from one per distinct row."""
        return rows if self.origins is None else rows[self.origins]
