"""Ways out of a point that is stationary but not certified.

They are for one-layer problems in balanced coordinates. A violated dual constraint is an atom w h^T
along which the objective falls. It is added in a dimension of feature space that the point does not
use. Newton's method is slow near roots of non-negative features that are nearly zero, because the
objective is quartic in them. Such roots are set to zero.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ufm.certificates import Atom, DualBound, has_tight_bound, violating_atom
from ufm.problems import FeatureCone, Problem, Samples
from ufm.solving.methods import LBFGS, Method, NewtonCG, made_once

__all__ = ["concentrate", "exchanged", "freed_column", "ways_out"]

# Shares of the largest root of a feature below which roots are set to zero. Each is tried where the
# one before did not help.
SMALL_ROOTS = (1e-4, 1e-2, 5e-2, 0.15)
LONG_MEMORY = 30  # pairs of L-BFGS if the Hessian is nearly singular
VIOLATED = 1e-12  # share by which the gain of an atom must exceed the bound of the dual constraint


def ways_out(
    problem: Problem,
    samples: Samples,
    x: np.ndarray,
    bound: DualBound,
    objective: Callable[[np.ndarray], float],
) -> Iterator[tuple[np.ndarray, Method]]:
    """Yield points from which to go on, and the methods to go on with.

    Args:
        problem: A problem of one layer.
        samples: Its rows.
        x: The stationary point in balanced coordinates, flat.
        bound: The dual bound at the point.
        objective: From balanced coordinates to the objective.
    """
    rows = len(samples.counts)
    for threshold in SMALL_ROOTS:
        if (point := with_small_entries_zeroed(problem, x, rows, threshold)) is not None:
            yield point, made_once(NewtonCG)
    atom = violating_atom(np.asarray(bound.dual), problem.feature_cone.nonnegative)
    if atom.gain > float(bound.allowed) * (1 + VIOLATED):
        point = with_atom(problem, samples, x, atom, objective)
        if point is not None:
            yield point, made_once(NewtonCG)
    if has_tight_bound(problem):
        # Where the Hessian is nearly singular and decreases are lost in rounding, L-BFGS can still
        # follow gradients.
        yield x, made_once(LBFGS, memory=LONG_MEMORY)


def exchanged(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Return the points in which two classes have changed places, shape (pairs, n).

    Where the dimension is too small for the convex minimiser, minima differ by which classes are
    neighbours. Two classes at a time lead from one such minimum to the next. There is no point
    where the rows of the features are not as many as the logits.

    Args:
        problem: A problem of one layer.
        x: The point in balanced coordinates, flat, with a feature row per class.
    """
    K, d = problem.num_outputs, problem.feature_dim
    if problem.num_rows != K:
        return np.zeros((0, x.size))
    part, bias = features_slice(problem, K), slice(2 * K * d, 2 * K * d + K)
    points = []
    for pair in itertools.combinations(range(K), 2):
        order, point = np.arange(K), x.copy()
        order[list(pair)] = pair[::-1]
        point[: K * d] = x[: K * d].reshape(K, d)[order].ravel()
        point[part] = x[part].reshape(K, d)[order].ravel()
        if problem.use_bias:
            point[bias] = x[bias][order]
        points.append(point)
    return np.stack(points)


def with_small_entries_zeroed(
    problem: Problem, x: np.ndarray, rows: int, threshold: float
) -> np.ndarray | None:
    """Return the point with small roots of features set to zero, or None if there are none.

    Args:
        problem: A problem of one layer.
        x: Balanced coordinates, flat.
        rows: Number of feature rows.
        threshold: Roots below this share of the largest are small.
    """
    if problem.feature_cone.rotates:
        return None
    x = x.copy()
    part = features_slice(problem, rows)
    small = (np.abs(x[part]) < threshold * np.max(np.abs(x[part]))) & (x[part] != 0)
    if not np.any(small):
        return None
    x[part] = np.where(small, 0, x[part])
    return x


def with_atom(
    problem: Problem,
    samples: Samples,
    x: np.ndarray,
    atom: Atom,
    objective: Callable[[np.ndarray], float],
) -> np.ndarray | None:
    """Return the point with the atom appended in a spare dimension.

    Its size is the one that lowers the objective most. None where no dimension is spare, or no size
    lowers the objective.

    Args:
        problem: A problem of one layer.
        samples: Its rows.
        x: Balanced coordinates, flat.
        atom: The atom of the violated constraint.
        objective: From balanced coordinates to the objective.
    """
    K, d = problem.num_outputs, problem.feature_dim
    rows = len(samples.counts)
    part = features_slice(problem, rows)
    x, present = x.astype(np.float64), objective(x)
    weights, features = x[: K * d].reshape(K, d).copy(), x[part].reshape(rows, d).copy()
    direction = spare_dimension(weights, features, problem.feature_cone)
    if direction is None:
        return None
    # The coordinates of the samples of one row share its entry.
    h = np.asarray(atom.features[samples.origins] * np.sqrt(samples.shares))
    best, best_value = None, present
    length = float(np.linalg.norm(weights)) or 1.0
    for size in length * np.geomspace(1, 1e-6, 13):
        # Both factors grow alike, so that the product grows by size^2 and stays balanced.
        appended = problem.feature_cone.to_coordinates(size * h)
        x[: K * d] = (weights + size * np.outer(atom.weights, direction)).ravel()
        x[part] = (features + np.outer(appended, direction)).ravel()
        value = objective(x)
        if value < best_value:
            best, best_value = x.copy(), value
    return best


def features_slice(problem: Problem, rows: int) -> slice:
    """Return where the features lie in the unknowns of a one-layer problem: after the weights."""
    begin = problem.num_outputs * problem.feature_dim
    return slice(begin, begin + rows * problem.feature_dim)


def spare_dimension(
    weights: np.ndarray, features: np.ndarray, cone: FeatureCone
) -> np.ndarray | None:
    """Return a unit vector of feature space that weights and features do not use, or None.

    Weights and features are changed in place.

    Signed features have one where the rank of the factors is below d. With non-negative features a
    zero column is used. If there is none, merging two parallel columns frees one, w h^T + w' h'^T =
    (w + c w') h^T for h' = c h, after concentrating them if need be.
    """
    if cone.rotates:
        values, vectors = np.linalg.eigh(weights.T @ weights + features.T @ features)
        if values[0] > 1e-9 * values[-1]:
            return None
        spare = vectors[:, 0]
        # What little lies along it is rounding, or a mode that is on its way to zero.
        weights -= np.outer(weights @ spare, spare)
        features -= np.outer(features @ spare, spare)
        return spare
    column = freed_column(weights, features)
    if column is None:
        concentrate(weights, features)
        column = freed_column(weights, features)
    if column is None:
        return None
    weights[:, column] = features[:, column] = 0
    return np.eye(features.shape[1])[column]


def freed_column(weights: np.ndarray, features: np.ndarray) -> int | None:
    """Return a column that is zero, or that was merged into a parallel one (in place), or None."""
    size = np.sqrt(np.sum(weights**2, axis=0) + np.sum(features**4, axis=0))
    column = int(np.argmin(size))
    if size[column] <= 1e-5 * np.max(size):
        return column
    H = features**2
    norms = np.maximum(np.linalg.norm(H, axis=0), np.finfo(float).tiny)
    cosines = (H / norms).T @ (H / norms) - 2 * np.eye(H.shape[1])
    keep, column = divmod(int(np.argmax(cosines)), cosines.shape[1])
    if cosines[keep, column] < 1 - 1e-9:
        return None
    merged = weights[:, keep] * norms[keep] + weights[:, column] * norms[column]
    strength = np.sqrt(np.linalg.norm(merged)) / norms[keep]
    weights[:, keep] = merged / (strength * norms[keep])
    features[:, keep] *= np.sqrt(strength)
    return column


def concentrate(weights: np.ndarray, features: np.ndarray) -> None:
    """Rotate pairs of columns of features and weights alike until the smaller one loses an entry.

    In place.

    Products and norms stay what they are, and features, given by their roots, stay non-negative:
    the columns g and h become c g + s h and c h - s g with s / c = min_k h_k / g_k. Where atoms can
    be exchanged for others at no cost, a minimum found by descent has them spread over all
    dimensions, and this brings them together.
    """
    H = features**2
    for first in np.argsort(-np.linalg.norm(H, axis=0)):
        for second in range(H.shape[1]):
            there = H[:, first] > 1e-12 * np.max(H)
            lengths = np.linalg.norm(H, axis=0)
            if second == first or lengths[second] > lengths[first] or not np.any(there):
                continue
            tangent = np.min(H[there, second] / H[there, first])
            cosine = 1 / np.hypot(1, tangent)
            for block in (weights, H):
                g, h = block[:, first].copy(), block[:, second].copy()
                block[:, first], block[:, second] = (
                    cosine * (g + tangent * h),
                    cosine * (h - tangent * g),
                )
            np.maximum(H, 0, out=H)
    features[:] = np.sqrt(H)
