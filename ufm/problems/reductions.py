"""Exact reductions before a solve: one form of a problem, and no dimension that is not used.

Target rows that solve the same problem are one row (`Targets.merged`).

The logits of a linear chain have rank at most min(R, K). So have the factors of its minimisers,
because balanced factors share their row spaces. Larger widths therefore add coordinates that are
zero at every minimiser, up to rotation. With a ReLU after the first layer only H W_1^T matters,
whose rank is at most min(R, d_1). Non-negative features cannot be rotated, and keep their
dimensions.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Int

from ufm._support import is_concrete, rebuilt
from ufm.problems.parameters import Parameters
from ufm.problems.problem import Problem

__all__ = ["merged", "narrowed", "one_count_per_class", "widened", "without_unused", "zero_padded"]


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
