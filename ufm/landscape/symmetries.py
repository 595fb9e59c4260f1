"""The continuous symmetries of the objective at a point, and the dimension of its orbit.

A symmetry is a motion along which the objective is constant for every loss and all data. The
regularizer is taken to depend on the Frobenius norms of the blocks alone, as weight decay and norm
balls do. With another one, such as the sum of absolute entries, the dimensions are too large.

- Rotations of a linear space between two factors, with features (or outputs of a linear hidden
  layer) H in rows and the weights W that multiply them: H -> H R, W -> W R.
- Behind a ReLU, and for non-negative features, rotations among units that are positive in the same
  rows and at a kink in the same rows. They are symmetries as long as no sign changes. These are the
  symmetries of the activation cell, valleys of equal loss in layers wider than necessary.
- A constant added to a bias without penalty, for losses that are invariant under shifts.
- Inside both norm balls of two neighbouring factors, all invertible maps, H -> H A, W -> W A^{-T}.
  Behind a ReLU these are positive scales of units. The last weights may be shifted by 1 a^T inside
  their ball, for losses that are invariant under shifts.

The dimension of the orbit is the rank of the generators' tangent vectors at the point. Generators
that do not move the point do not count. For one linear space whose factors have joint rank r in d
dimensions it is r (r - 1) / 2 + r (d - r), the dimension of the Stiefel manifold of r-frames.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm._support import compiled, double_precision, on_host, printed, to_numpy
from ufm.problems import Parameters, Problem
from ufm.solving.methods import balanced_coordinates as coordinates
from ufm.solving.relu import ZERO_SHARE, SmoothPiece, smooth_piece_at

__all__ = ["Orbit", "orbit", "symmetry_dimension"]

INSIDE = 1e-6  # squared slack, relative to a radius, from which a block is inside its ball


@printed
class Orbit(NamedTuple):
    """The orbit of a point under the continuous symmetries.

    Attributes:
        dimension: Its dimension.
        reach: Length of the shortest tangent vector per unit generator, in balanced coordinates;
            infinite without any.
    """

    dimension: int
    reach: float

    def __str__(self) -> str:
        return f"orbit of dimension {self.dimension}, shortest tangent vector {self.reach:.3g}"


@on_host
def symmetry_dimension(problem: Problem, parameters: Any) -> int:
    """Return the dimension of the orbit of a point under the continuous symmetries.

    Ranks are numerical: singular values below 1e-6 of the largest count as zero.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    with double_precision():
        return orbit(smooth_piece_at(problem, parameters)).dimension


def orbit(local: SmoothPiece) -> Orbit:
    """Return the dimension of the orbit of a point, and the length of its tangent vectors.

    Args:
        local: The smooth piece at the point.
    """
    problem = local.problem
    if not all(np.all(np.isfinite(block)) for block in jax.tree.leaves(local.parameters)):
        return Orbit(0, np.inf)
    blocks, pulled = _normalised(local), _pull_back(local)
    inside = _inside(local)
    vectors, apart = [], 0
    reaches: list[float] = []
    for space in range(problem.num_layers):
        before, after = problem.layer_dims[space], inside[space] and inside[space + 1]
        factor = np.concatenate([_columns(blocks, space, side) for side in (0, 1)])
        linear = problem.activation == "linear" or space == 0
        if linear and not (space == 0 and not problem.feature_cone.rotates):
            used, lengths = _used(factor)
            r = used.shape[1]
            generators: Iterator[np.ndarray] = _rotations(used)
            if after:
                generators = (
                    np.outer(a, b) for a, b in itertools.product(np.eye(before), np.eye(before))
                )
            elif 0 < r < before:
                # Turning a used direction into an unused one always moves the point: no motion of
                # another space undoes it.
                apart, reaches = apart + r * (before - r), [*reaches, float(lengths[-1])]
        else:
            generators = _exchanges(*_supports(local, space), after)
        vectors += [
            pulled(_tangent(local.parameters, space, generator)) for generator in generators
        ]
    vectors += [pulled(change) for change in _shifts(local, inside)]
    if not vectors:
        return Orbit(apart, min(reaches, default=np.inf))
    values = np.linalg.svd(np.array(vectors), compute_uv=False)
    kept = (
        values[values > ZERO_SHARE * max(values[0], np.finfo(float).tiny)]
        if values[0] > 0
        else values[:0]
    )
    return Orbit(apart + kept.size, float(min([*reaches, *kept], default=np.inf)))


def _normalised(local: SmoothPiece) -> list[np.ndarray]:
    """Return features (rows, d) and weights (out, in) in balanced coordinates."""
    weights = local.parameters.weights
    sizes = [*(matrix.size for matrix in weights), local.parameters.features.size]
    parts = np.split(local.x, np.cumsum(sizes))[: len(sizes)]
    shapes = [*(matrix.shape for matrix in weights), local.parameters.features.shape]
    *matrices, features = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return [features, *matrices]


def _columns(blocks: list[np.ndarray], space: int, side: int) -> np.ndarray:
    """Return the factor before (side 0) or behind a space, its dimensions as columns."""
    if side:
        return blocks[space + 1]
    return blocks[0] if space == 0 else blocks[space].T


def _used(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis (d, r) of the dimensions in use, and their singular values."""
    _, values, right = np.linalg.svd(factor, full_matrices=False)
    kept = values > ZERO_SHARE * values[0] if values[0] > 0 else np.zeros(values.size, bool)
    return right[kept].T, values[kept]


def _rotations(basis: np.ndarray) -> Iterator[np.ndarray]:
    """Return the generators of rotations within the span of a basis."""
    for a, b in itertools.combinations(basis.T, 2):
        yield (np.outer(a, b) - np.outer(b, a)) / np.sqrt(2)


def _supports(local: SmoothPiece, space: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a pattern per unit, shape (.., d), and which units are positive anywhere, shape (d,).

    Two units can be rotated into one another only if their patterns agree.
    """
    if space == 0:
        H = local.parameters.features
        there = ZERO_SHARE * np.max(H) < H
        return there, np.any(there, axis=0)
    kinks = local.kinks[space - 1]
    there = (local.slopes[space - 1] == 1) & ~kinks
    return np.concatenate([there, kinks]), np.any(there, axis=0)


def _exchanges(patterns: np.ndarray, free: np.ndarray, inside: bool) -> Iterator[np.ndarray]:
    """Return the generators of maps among units with equal patterns, which keep all signs."""
    d = free.size
    for i, j in itertools.combinations(np.flatnonzero(free), 2):
        if np.array_equal(patterns[:, i], patterns[:, j]):
            unit = np.zeros((d, d))
            unit[i, j], unit[j, i] = 1 / np.sqrt(2), -1 / np.sqrt(2)
            yield unit
            if inside:
                yield np.abs(unit)
    if inside:
        yield from (np.diag(unit) for unit in np.eye(d)[free])


def _tangent(given: Parameters, space: int, generator: np.ndarray) -> Parameters:
    """Return the tangent of a generator A of a space.

    Features (or inputs) move by exp(t A), and weights by exp(-t A^T).
    """
    change = jax.tree.map(np.zeros_like, given)
    weights = list(change.weights)
    weights[space] = -given.weights[space] @ generator.T
    if space == 0:
        change = change._replace(features=given.features @ generator)
    else:
        weights[space - 1] = generator.T @ given.weights[space - 1]
    return change._replace(weights=tuple(weights))


def _shifts(local: SmoothPiece, inside: list[bool]) -> list[Parameters]:
    """Return the tangents of shifts of the logits."""
    problem, given = local.problem, local.parameters
    if not problem.loss.shift_invariant:
        return []
    zero, found = jax.tree.map(np.zeros_like, given), []
    if given.bias is not None and problem.regularizer.has_free_bias:
        found.append(zero._replace(bias=np.ones_like(given.bias)))
    if inside[-1]:
        last = given.weights[-1]
        for unit in np.eye(last.shape[1]):
            shifted = (*zero.weights[:-1], np.tile(unit, (last.shape[0], 1)))
            found.append(zero._replace(weights=shifted))
    return found


def _inside(local: SmoothPiece) -> list[bool]:
    """Return whether features and every layer lie strictly inside their norm ball.

    Under weight decay none does.
    """
    layers = local.problem.num_layers
    if not local.problem.regularizer.has_slack:
        return [False] * (layers + 1)
    slack = local.x[-(layers + 1) :] ** 2 > INSIDE
    return [bool(slack[-1]), *map(bool, slack[:-1])]


def _pull_back(local: SmoothPiece) -> Callable[[Parameters], np.ndarray]:
    """Return the map from changes of the parameters to changes of the coordinates.

    The coordinates of norm balls lie on unit spheres.
    """
    problem = local.problem
    scale: Any = to_numpy(_scales(problem, local.samples))
    blocks = _normalised(local)

    def pulled(change: Parameters) -> np.ndarray:
        parts = [dW / s for dW, s in zip(change.weights, scale.weights, strict=True)]
        parts.append(change.features / scale.features)
        tail = [] if change.bias is None else [np.ravel(change.bias / scale.bias)]
        if problem.regularizer.has_slack:
            slack = local.x[-len(parts) :]
            drift = [
                -np.sum(block * part)
                for block, part in zip([*blocks[1:], blocks[0]], parts, strict=True)
            ]
            tail.append(
                np.where(slack**2 > INSIDE, np.array(drift) / np.where(slack == 0, 1, slack), 0.0)
            )
        return np.concatenate([*(np.ravel(part) for part in parts), *tail])

    return pulled


@functools.partial(compiled, once=True)
def _scales(problem, samples):  # type: ignore[no-untyped-def]
    """Return the scales of balanced coordinates."""
    return coordinates.scales(problem, samples)
