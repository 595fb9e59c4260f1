"""Bring one point as close to another as the symmetries of the model allow.

The symmetries are those of `ufm.landscape.symmetries`: the regularizer is taken to depend on the
Frobenius norms of the blocks alone.
"""

from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from ufm.problems import Problem

__all__ = ["Align", "aligned"]

Align = Literal["symmetries", "rotations", "none"]

ROUNDS = 100  # most passes over all spaces; the overlap rises in every pass and stops much earlier
UNUSED = 1e-9  # relative norm up to which neither factor uses a direction


def aligned(problem: Problem, one: Any, other: Any, align: Align) -> tuple[Any, bool]:
    """Return the other point as close to the one as symmetries bring it.

    Args:
        problem: The problem.
        one: A point in balanced coordinates.
        other: Another point.
        align: "symmetries" for all of them, "rotations" for those that are joined to the identity,
            or "none".

    Returns:
        The point, and whether the symmetries used are joined to the identity.
    """
    if align == "none":
        return other, True
    if one.bias is not None and problem.loss.shift_invariant and problem.regularizer.has_free_bias:
        other = other._replace(bias=other.bias + np.mean(one.bias) - np.mean(other.bias))
    permuted = [not problem.feature_cone.rotates]
    permuted += [problem.activation == "relu"] * (problem.num_layers - 1)
    turns = _best_turns(one, other, problem.layer_dims[:-1], permuted, align)
    joined = True
    for space, turn in enumerate(turns):
        if permuted[space]:
            joined &= bool(np.array_equal(turn, np.eye(len(turn))))
        elif np.linalg.det(turn) < 0:
            # A reflection equals a rotation if some direction is not used: reflect that one, too.
            both = np.concatenate([_before(other, space), other.weights[space]])
            _, values, directions = np.linalg.svd(both, full_matrices=True)
            values = np.append(values, np.zeros(len(turn) - len(values)))
            free = bool(values[-1] <= UNUSED * values[0])
            joined &= free
            if free:
                turns[space] = turn - 2 * np.outer(turn @ directions[-1], directions[-1])
    return _turned(other, turns), joined


def _best_turns(
    one: Any, other: Any, dims: tuple[int, ...], permuted: list[bool], align: Align
) -> list[Any]:
    """Return the turn of every space, by alternating maximisation of the overlap.

    The maximisation starts from the identity, and from a first guess in either order of the spaces.
    The largest overlap wins.
    """
    layers = len(dims)
    best: Any = None
    for order in ([], list(range(layers)), list(range(layers))[::-1]):
        turns: list[Any] = [np.eye(dim) for dim in dims]
        known = [not order] * layers
        for space in order:  # a first guess from the spaces that are known already
            known[space] = True
            correlation = _correlation(one, other, turns, space, known)
            turns[space] = _best_turn(correlation, permuted[space], align)
        last = -np.inf
        for _ in range(ROUNDS):
            for space in range(layers):
                correlation = _correlation(one, other, turns, space, [True] * layers)
                turns[space] = _best_turn(correlation, permuted[space], align)
            turned = _turned(other, turns)
            overlap = float(np.sum(one.features * turned.features))
            pairs = zip(one.weights, turned.weights, strict=True)
            overlap += sum(float(np.sum(a * b)) for a, b in pairs)
            if not overlap > last + 1e-12 * abs(last):
                break
            last = overlap
        if best is None or overlap > best[0]:
            best = overlap, turns
    return list(best[1])


def _before(point: Any, space: int) -> np.ndarray:
    """Return the factor that leads into a space, its coordinates in columns."""
    return point.features if space == 0 else point.weights[space - 1].T


def _turned(point: Any, turns: list[np.ndarray]) -> Any:
    """Return the point with every space turned: H Q_0', Q_1 V_1 Q_0', ..., V_L Q_{L-1}'."""
    weights = [matrix @ turn.T for matrix, turn in zip(point.weights, turns, strict=True)]
    weights = [
        turn @ matrix for turn, matrix in zip(turns[1:], weights[:-1], strict=True)
    ] + weights[-1:]
    return point._replace(weights=tuple(weights), features=point.features @ turns[0].T)


def _correlation(
    one: Any, other: Any, turns: list[np.ndarray], space: int, known: list[bool]
) -> np.ndarray:
    """Return the matrix M with <M, Q> the overlap of two points, as a function of a turn Q.

    Only neighbours of the space that are known count.
    """
    last = space == len(turns) - 1
    M = np.zeros((len(turns[space]),) * 2)
    if space == 0 or known[space - 1]:
        before = _before(other, space)
        M += _before(one, space).T @ (before if space == 0 else turns[space - 1] @ before)
    if last or known[space + 1]:
        after = other.weights[space]
        M += one.weights[space].T @ (after if last else turns[space + 1] @ after)
    return M


def _best_turn(M: np.ndarray, permuted: bool, align: Align) -> np.ndarray:
    """Return the permutation or the orthogonal matrix Q with the largest <M, Q>.

    If only rotations are wanted, it is a proper rotation, or the identity in place of a
    permutation.
    """
    if permuted:
        turn = np.eye(len(M))
        return turn if align == "rotations" else turn[linear_sum_assignment(M, maximize=True)[1]]
    left, _, right = np.linalg.svd(M)
    if align == "rotations" and np.linalg.det(left) * np.linalg.det(right) < 0:
        left[:, -1] = -left[:, -1]
    return left @ right
