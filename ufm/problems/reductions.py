"""Exact reductions before a solve: one form of a problem, and no dimension that is not used.

Target rows that solve the same problem are one row (`Targets.merged`). Those of squared error are
K + 1 rows with the same mean and covariance (`compressed`).

The logits of a linear chain have rank at most min(R, K). So have the factors of its minimisers,
because balanced factors share their row spaces. Larger widths therefore add coordinates that are
zero at every minimiser, up to rotation. With a ReLU after the first layer only H W_1^T matters,
whose rank is at most min(R, d_1). Non-negative features cannot be rotated, and keep their
dimensions.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm._support import is_concrete, rebuilt
from ufm.geometry import centred_basis
from ufm.problems.losses import SquaredError
from ufm.problems.parameters import Parameters
from ufm.problems.problem import Problem
from ufm.problems.targets import Targets

__all__ = [
    "FewerRows",
    "compressed",
    "fewer_rows",
    "merged",
    "narrowed",
    "one_count_per_class",
    "widened",
    "without_unused",
    "zero_padded",
]


def one_count_per_class(problem: Problem) -> Problem:
    """Return the same problem with one count per class and one penalty per layer.

    Problems that differ only in their statement or their values then share compiled code.
    """
    counts = problem.class_counts.per_class
    counts = np.array(counts) if is_concrete(counts) else counts  # type: ignore[assignment]
    return rebuilt(
        problem,
        class_counts=rebuilt(problem.class_counts, counts=counts, sizes=(1,) * problem.num_classes),
        regularizer=problem.regularizer.stated_per_layer(problem.num_layers),
        loss=problem.loss.per_class(problem.class_counts),
    )


def fewer_rows(problem: Problem) -> "FewerRows":
    """Return the problem with as few target rows as are needed.

    The rows of squared error are compressed, those of other losses merged where they are equal.
    """
    small = compressed(problem)
    if small.lift is not None:
        return small
    whole, index = merged(problem)
    return FewerRows(whole, None if index is None else lambda rows: rows[index])


class FewerRows(NamedTuple):
    """A problem with fewer target rows, of the same optimal value.

    Attributes:
        problem: The problem.
        lift: From features of its rows, or a linear function of them, to those of the stated rows.
            None where the rows are the stated ones.
        errors: By how much rounding may take the optimal value of the stated problem below that of
            this one: e f + d sqrt(2 f) + d^2 for numbers e and d and the value f.
    """

    problem: Problem
    lift: Callable[[np.ndarray], np.ndarray] | None = None
    errors: tuple[float, float] = (0.0, 0.0)

    def loss_of(self, value: float) -> float:
        """Return by how much rounding may take the optimal value below that of `problem`."""
        relative, absolute = self.errors
        return relative * value + absolute * math.sqrt(2 * max(value, 0.0)) + absolute**2


def compressed(problem: Problem) -> FewerRows:
    """Return a problem of squared error with at most K + 1 rows.

    With D the diagonal matrix of the counts, and features that are penalised as often as they
    occur, the objective depends on D^{1/2} Y and D^{1/2} H only, up to a rotation of all rows. With
    a bias it must leave D^{1/2} 1 alone. The new rows have equal counts N / (K + 1), the same mean,
    and the same covariance of their targets.

    Other problems, and those with no more rows than that, are left as they are.
    """
    R, K = problem.num_rows, problem.num_outputs
    rotates = type(problem.loss) is SquaredError and problem.activation == "linear"
    if not rotates or not problem.feature_cone.rotates or R <= K + 1:
        return FewerRows(problem)
    counts, weights = np.asarray(problem.row_counts), np.asarray(problem.row_weights)
    ratios = weights / counts
    if not np.all(np.abs(ratios - ratios[0]) <= 1e-15 * ratios[0]):
        return FewerRows(problem)
    N, targets = float(np.sum(counts)), np.asarray(problem.target_rows(np.float64, np))
    mean, root = counts @ targets / N, np.sqrt(counts)[:, None]
    centred = root * (targets - mean)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    # Of modes of zero, nothing but this makes the vectors orthogonal to the counts' roots.
    columns, triangle = np.linalg.qr(np.column_stack([root / math.sqrt(N), left]))
    columns *= np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
    left = columns[:, 1:]
    basis, size = centred_basis(K + 1), math.sqrt(N / (K + 1))
    rows = mean + basis @ (values[:, None] * right) / size
    new = np.full(K + 1, N / (K + 1))
    smaller = rebuilt(problem, targets=Targets(rows, new, ratios[0] * new))

    def lift(rows: Float[np.ndarray, "r c"]) -> Float[np.ndarray, "R c"]:
        return np.mean(rows, axis=0) + left @ (size * (basis.T @ rows)) / root

    # How far the columns of the rotation are from orthonormal, and what is left of the targets.
    defect = float(np.linalg.norm(columns.T @ columns - np.eye(K + 1)))
    epsilon = 16 * K * float(np.finfo(np.float64).eps)
    left_over = float(np.linalg.norm(centred - (left * values) @ right))
    absolute = (left_over + epsilon * float(np.linalg.norm(centred))) / math.sqrt(N)
    return FewerRows(smaller, lift, (4 * (defect + epsilon), absolute))


def merged(problem: Problem) -> tuple[Problem, Int[np.ndarray, " R"] | None]:
    """Return the problem with equal target rows as one, and the index of each row's new row.

    The index is None where all rows differ, as those of `class_counts` do.
    """
    if problem.targets is None:
        return problem, None
    stated = problem.targets
    if stated.feature_weights is None:
        # What the regularizer makes of none is stated, since it may depend on the number of rows.
        stated = rebuilt(stated, feature_weights=np.asarray(problem.row_weights))
    targets, origins = stated.merged()
    if targets is stated:
        return problem, None
    return rebuilt(problem, targets=targets), origins


def narrowed(problem: Problem) -> Problem:
    """Return the problem with its widths cut to the rank that its minimisers can have."""
    dims = problem.hidden_dims
    K = min(problem.num_outputs, problem.num_rows)
    if problem.nonnegative_features:
        return problem
    if problem.activation == "relu" and dims:
        return _narrowed(problem, min(problem.feature_dim, K, dims[0]), dims) or problem
    # Deep chains keep one dimension more. Descent conserves the signs of the determinants of square
    # factors, so without it half of all starts would have to lose a mode on the way.
    rank = min(problem.feature_dim, *dims, K + 1 if dims else K)
    return _narrowed(problem, rank, (rank,) * len(dims)) or problem


def widened(problem: Problem, parameters: Parameters) -> Parameters:
    """Return parameters of a narrowed problem as those of `problem`, with zeros added."""
    dims = problem.layer_dims
    weights = tuple(
        zero_padded(matrix, (dims[layer + 1], dims[layer]))
        for layer, matrix in enumerate(parameters.weights)
    )
    features = zero_padded(parameters.features, (parameters.features.shape[0], dims[0]))
    return Parameters(weights, features, parameters.bias)


def without_unused(problem: Problem, parameters: Parameters) -> tuple[Problem, Parameters]:
    """Return problem and parameters without the coordinates that are zero in both factors.

    The converse of `widened`.
    """
    if problem.nonnegative_features or problem.activation == "relu":
        used = [np.any(parameters.features, axis=0) | np.any(parameters.weights[0], axis=0)]
        used += [np.ones(width, bool) for width in problem.hidden_dims]
    else:
        factors = [parameters.features, *parameters.weights]
        used = [
            np.any(before, axis=0 if index == 0 else 1) | np.any(after, axis=0)
            for index, (before, after) in enumerate(itertools.pairwise(factors))
        ]
    floor = problem.width
    kept = [
        np.flatnonzero(mask) if mask.sum() >= floor else np.arange(max(floor, 1)) for mask in used
    ]
    kept = [
        np.arange(mask.size) if np.any(np.delete(mask, indices)) else indices
        for mask, indices in zip(used, kept, strict=True)
    ]
    features = parameters.features[:, kept[0]]
    outputs = [*kept[1:], np.arange(problem.num_outputs)]
    weights = tuple(
        matrix[np.ix_(rows, columns)]
        for matrix, rows, columns in zip(parameters.weights, outputs, kept, strict=True)
    )
    smaller = _narrowed(problem, kept[0].size, tuple(indices.size for indices in kept[1:]))
    if smaller is None:
        return problem, parameters
    return smaller, Parameters(weights, features, parameters.bias)


def zero_padded(matrix: Any, shape: tuple[int, int]) -> Any:
    """Return the matrix with zeros below and to the right, or its upper left part."""
    if matrix.shape == tuple(shape):
        return matrix
    padded = np.zeros(shape, matrix.dtype)
    rows, columns = np.minimum(shape, matrix.shape)
    padded[:rows, :columns] = matrix[:rows, :columns]
    return padded


def _narrowed(problem: Problem, feature_dim: int, hidden_dims: tuple[int, ...]) -> Problem | None:
    """Return the problem with other widths; None where the regularizer does not allow it."""
    regularizer = problem.regularizer.narrowed(problem.hidden_dims, hidden_dims)
    if regularizer is None:
        return None
    return rebuilt(
        problem, feature_dim=feature_dim, hidden_dims=hidden_dims, regularizer=regularizer
    )
