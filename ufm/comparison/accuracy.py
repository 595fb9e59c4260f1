r"""How far a quantity can be from its value at the minimiser, given how far the objective can be.

The points near a minimiser x* whose objective is within delta form the ellipsoid (1/2) <p, H p> <=
delta (p = x - x*, H the Hessian in balanced coordinates). Over it, a quantity q moves by at most

    max ||J p|| = sqrt(2 delta lambda_max(J H^+ J^T)),        J = dq/dx.

Flat directions of H, the rotations of feature space, do not change the quantities: J^T maps into
the range of H. A small H is diagonalised, and the eigenvalue is exact. Otherwise it is found by
power iteration, each step one solve with H by conjugate gradients. If H is not positive
semi-definite, or a quantity moves along a flat direction, the answer is infinity.

The delta of a certified solution is its gap. Without a certificate it is a local estimate: the
Newton decrement (1/2) <g, H^+ g>, which the quadratic model could still gain, plus the rounding of
the objective. If inputs of ReLUs are zero, only the manifold on which they stay zero is considered.
The objective is smooth along it (`ufm.solving.relu.smooth_pieces`), and grows linearly in the other
directions.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm._support import compiled, double_precision, to_numpy
from ufm.geometry import quiet
from ufm.problems import (
    Parameters,
    Problem,
    class_samples,
    one_count_per_class,
    samples_of,
    without_unused,
)
from ufm.solving.methods import Space, balanced_space, has_kinks
from ufm.solving.relu import hessian_along, smooth_piece_at, tangent_basis

__all__ = ["Quantities", "accuracy", "class_level", "quantities", "reached"]

POWER_ITERATIONS = 4
SAFETY = 2.0  # the power iteration approaches the eigenvalue from below; exact ones are doubled too
MAX_PRODUCTS = 400
FLAT = 1e-14  # curvature up to which a direction is flat, in balanced coordinates
UNSOLVED = 1e-3  # share of a quantity's slope that may lie along flat directions, or be left over
MOST_ON_KINKS = 2000  # unknowns: their Hessian is formed
# Unknowns up to which Hessian and Jacobian are formed: one small program instead of three.
DENSE = 500
NOISE = 1e3 * float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)


class Quantities(NamedTuple):
    """What theorems predict, at parameters with one feature for each of R target rows.

    All of it is invariant under rotations of feature space.

    Attributes:
        logits: Those of every row, bias included, shape (R, K).
        weighted_logits: The logits less the bias, row r times sqrt(n_r), shape (R, K).
        weight_gram: Gram matrix of the last layer's rows, shape (K, K).
        feature_gram: Gram matrix of the row means that the last layer multiplies, shape (R, R).
        bias: Shape (K,), zeros without one.
        layer_norms: Squared norms of the factors, shape (L + 1,).
        logits_norm: Squared Frobenius norm of the weighted logits, shape (1,). It is unique even if
            these are not: a cut in rank among equal modes leaves a family of minimisers.
    """

    logits: Float[Array, "R K"]
    weighted_logits: Float[Array, "R K"]
    weight_gram: Float[Array, "K K"]
    feature_gram: Float[Array, "R R"]
    bias: Float[Array, " K"]
    layer_norms: Float[Array, " q"]
    logits_norm: Float[Array, " 1"]


def class_level(problem: Problem, parameters: Parameters) -> Parameters:
    """Return parameters with one feature row per class; rows of samples are averaged."""
    if np.shape(parameters.features)[0] == problem.num_rows:
        return parameters
    with double_precision():
        samples = samples_of(problem, len(parameters.features))
        means = samples.means(parameters.features, problem.num_rows)
        return parameters._replace(features=to_numpy(means))


def quantities(problem: Problem, parameters: Parameters) -> Quantities:
    """Return the quantities at class-level parameters. Pure."""
    dtype = parameters.features.dtype
    counts = jnp.asarray(problem.row_counts, dtype)
    last = problem.last_features(parameters)
    product = last @ parameters.weights[-1].T
    bias = jnp.zeros((problem.num_outputs,), dtype) if parameters.bias is None else parameters.bias
    if problem.loss.shift_invariant and parameters.bias is not None:
        bias = bias - jnp.mean(bias)  # the part that the objective does not determine
    norms = [jnp.sum(matrix**2) for matrix in parameters.weights]
    norms.append(jnp.sum(counts * jnp.sum(parameters.features**2, axis=1)))
    weighted = jnp.sqrt(counts)[:, None] * product
    return Quantities(
        logits=product + bias[None, :],
        weighted_logits=weighted,
        weight_gram=parameters.weights[-1] @ parameters.weights[-1].T,
        feature_gram=last @ last.T,
        bias=bias,
        layer_norms=jnp.stack(norms),
        logits_norm=jnp.sum(weighted**2)[None],
    )


class Accuracy(NamedTuple):
    """The quantities, and how far they can be from those of the minimiser.

    Attributes:
        values: The quantities.
        decrement: The Newton decrement.
        spread: For each quantity, max ||J p|| over <p, H p> <= 1 (Frobenius norm).
    """

    values: Quantities
    decrement: float
    spread: Quantities


class Model(NamedTuple):
    """Coordinates near a point of a problem, and the functions of them. All are pure.

    Attributes:
        start: From the problem and the point to its coordinates x, (n,).
        objective: From the problem and x to the objective and its gradient.
        quantities: From the problem and x to all quantities, flat, (m,).
    """

    start: Callable[[Any, Any], Array]
    objective: Callable[[Any, Array], tuple[Array, Array]]
    quantities: Callable[[Any, Array], Array]


@quiet
def accuracy(problem: Problem, parameters: Parameters) -> Accuracy:
    """Return the quantities near a minimiser, and how far each can move there."""
    problem, parameters = without_unused(one_count_per_class(problem), parameters)
    with double_precision():
        on_kinks = _on_kinks(problem, parameters)
        formed = _num_unknowns(problem) <= DENSE or on_kinks is not None
        x, value, gradient, flat, maps = measured(_OVER_CLASSES, problem, parameters, formed)
        if on_kinks is not None:
            tangent, gradient, hessian = on_kinks
            maps = hessian, tangent @ (tangent.T @ maps[1])
        shapes = [block.shape for block in jax.eval_shape(lambda: quantities(problem, parameters))]
        sizes = [math.prod(shape) for shape in shapes]
        decrement, spread = reached(sizes, x, value, gradient, flat, maps, POWER_ITERATIONS)
    blocks = np.split(flat, np.cumsum(sizes)[:-1])
    shaped: list[Any] = [block.reshape(shape) for block, shape in zip(blocks, shapes, strict=True)]
    values = Quantities(*shaped)
    return Accuracy(values, decrement, Quantities(*spread))


def measured(
    model: Model, problem: Any, given: Any, dense: bool
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, tuple[Any, ...]]:
    """Return x, the objective, its gradient, the quantities, and the maps that `reached` takes.

    Args:
        model: The functions of the problem.
        problem: The problem.
        given: The point, as `model.start` takes it.
        dense: Whether the maps are matrices.
    """
    x, value, gradient, flat, matrices = to_numpy(_at(model, problem, given, dense))
    maps = matrices or (
        lambda v: np.asarray(_products(model, problem, x, v)),
        lambda v: np.asarray(_pushed(model, problem, x, v)),
        lambda r: np.asarray(_pulled(model, problem, x, r)),
    )
    return x, float(value), gradient, flat, maps


def reached(
    sizes: list[int],
    x: np.ndarray,
    value: float,
    gradient: np.ndarray,
    flat: np.ndarray,
    maps: tuple[Any, ...],
    iterations: int,
) -> tuple[float, np.ndarray]:
    """Return the Newton decrement, and max ||J p|| over <p, H p> <= 1 for each quantity.

    Args:
        sizes: How many entries of `flat` each quantity has.
        x: The point, (n,).
        value: The objective there.
        gradient: (n,).
        flat: All quantities there, (m,).
        maps: The Hessian (n, n) and the transposed Jacobian (n, m). Or, where these are too large,
            functions that take rows v to v H, v J^T and, for the last, rows r of (m,) to r J.
        iterations: Steps of power iteration, where there are functions.
    """
    blocks = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
    # The unit of all floors is the rounding of a gradient, also where the exact one is zero. The
    # quotients are squared later, so their divisor must not be too small.
    length = max(float(np.linalg.norm(x)), np.sqrt(TINY))
    noise = NOISE * np.array([np.linalg.norm(flat[block]) for block in blocks]) / length
    floor = NOISE * abs(value) / length
    if callable(maps[0]):
        found = _by_iteration(maps, gradient, floor, blocks, noise, iterations)
    else:
        hessian, jacobian = maps
        found = _by_modes(hessian, jacobian, gradient, floor, blocks, noise)
    decrement, eigenvalues = found
    return decrement, SAFETY * np.sqrt(2 * eigenvalues)


def _by_modes(
    hessian: np.ndarray,
    jacobian: np.ndarray,
    gradient: np.ndarray,
    floor: float,
    blocks: list[slice],
    noise: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Return the Newton decrement and the largest eigenvalues of J H^+ J^T, by those of H."""
    if not np.all(np.isfinite(hessian)):
        return np.inf, np.full(len(blocks), np.inf)
    curvatures, modes = np.linalg.eigh(hessian)
    curved = curvatures > FLAT
    scales = np.where(curved, 1 / np.sqrt(np.where(curved, curvatures, 1)), 0)

    def largest(rows: np.ndarray, noise: float) -> float:
        """Return the largest eigenvalue of rows H^+ rows^T; infinity along flat directions."""
        if not np.all(np.isfinite(rows)):
            return np.inf
        parts = rows @ modes
        parts = np.where(np.linalg.norm(parts, axis=0) > noise, parts, 0)
        if np.linalg.norm(parts * ~curved, 2) > UNSOLVED * np.linalg.norm(parts, 2):
            return np.inf
        return float(np.linalg.norm(parts * scales, 2)) ** 2

    eigenvalues = [
        largest(jacobian[:, block].T, bound) for block, bound in zip(blocks, noise, strict=True)
    ]
    return 0.5 * largest(gradient[None, :], floor), np.array(eigenvalues)


def _by_iteration(
    maps: tuple[Any, ...],
    gradient: np.ndarray,
    floor: float,
    blocks: list[slice],
    noise: np.ndarray,
    iterations: int,
) -> tuple[float, np.ndarray]:
    """Return estimates of the same from below, of all quantities together."""
    product, pushed, pulled = maps
    generator = np.random.default_rng(0)
    support = np.zeros((len(blocks), blocks[-1].stop), bool)
    for row, block in enumerate(blocks):
        support[row, block] = True
    probes = np.where(support, generator.standard_normal(support.shape), 0)
    for _ in range(iterations):
        probes = probes / np.maximum(np.linalg.norm(probes, axis=1, keepdims=True), TINY)
        solved, unsolved = _conjugate_gradients(product, pulled(probes), noise)
        probes = np.where(support, pushed(solved), 0)
        eigenvalues = np.where(unsolved, np.inf, np.linalg.norm(probes, axis=1))
    # As many rows as above, so that the products are not compiled again.
    batch = np.concatenate([gradient[None, :], np.zeros((len(blocks) - 1, gradient.size))])
    step, unsolved = _conjugate_gradients(
        product, batch, np.append(floor, np.ones(len(blocks) - 1))
    )
    decrement = np.inf if unsolved[0] else 0.5 * float(gradient @ step[0])
    return decrement, eigenvalues


def _on_kinks(
    problem: Problem, parameters: Parameters
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return a basis of the directions that stay on kinks, and gradient and Hessian along them.

    On a kink the input of a ReLU is zero. None if no input is.
    """
    if (
        not has_kinks(problem)
        or not problem.feature_cone.rotates
        or _num_unknowns(problem) > MOST_ON_KINKS
    ):
        return None
    local = smooth_piece_at(problem, parameters)
    if not local.num_kinks:
        return None
    basis = tangent_basis(local)
    return (
        basis.T,
        basis.T @ (basis @ local.gradient),
        basis.T @ hessian_along(local, basis) @ basis,
    )


def _num_unknowns(problem: Problem) -> int:
    dims = (problem.num_rows, *problem.layer_dims)
    return (
        sum(rows * columns for rows, columns in itertools.pairwise(dims))
        + problem.num_rows
        + problem.num_outputs
    )


def _start(problem: Problem, parameters: Parameters) -> Array:
    return _space(problem).flatten(parameters)


def _slope(problem: Problem, x: Array) -> tuple[Array, Array]:
    return _space(problem).objective(x)


def _quantities(problem: Problem, x: Array) -> Array:
    return ravel_pytree(quantities(problem, _space(problem).parameters(x)))[0]


def _space(problem: Problem) -> Space:
    return balanced_space(problem, class_samples(problem, jnp.float64))


_OVER_CLASSES = Model(_start, _slope, _quantities)


@functools.partial(compiled, once=True)
def _at(
    model: Model, problem: Any, given: Any, dense: bool
) -> tuple[Array, Array, Array, Array, Any]:
    """Return x, the objective and its gradient, and the quantities.

    If `dense`, the Hessian and the transposed Jacobian too.
    """
    x = model.start(problem, given)
    value, gradient = model.objective(problem, x)
    flat = model.quantities(problem, x)
    if not dense:
        return x, value, gradient, flat, None

    def derivatives(direction: Array) -> tuple[Array, Array]:
        return jax.jvp(
            lambda y: (model.objective(problem, y)[1], model.quantities(problem, y)),
            (x,),
            (direction,),
        )[1]

    return x, value, gradient, flat, jax.vmap(derivatives)(jnp.eye(x.size))


@compiled
def _products(model: Model, problem: Any, x: Any, vectors: Any) -> Array:
    """Return H v for every row v."""
    return jax.vmap(
        lambda vector: jax.jvp(lambda y: model.objective(problem, y)[1], (x,), (vector,))[1]
    )(vectors)


@compiled
def _pushed(model: Model, problem: Any, x: Any, vectors: Any) -> Array:
    """Return J v for every row v."""
    return jax.vmap(jax.linearize(lambda y: model.quantities(problem, y), x)[1])(vectors)


@compiled
def _pulled(model: Model, problem: Any, x: Any, rows: Any) -> Array:
    """Return J^T r for every row r."""
    transpose = jax.vjp(lambda y: model.quantities(problem, y), x)[1]
    return jax.vmap(lambda row: transpose(row)[0])(rows)


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], right: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve H p = r for every row, to a relative residual of `UNSOLVED`, or `noise`.

    Also return which rows could not be solved: the curvature met is not positive, or the residual
    does not come down.
    """
    p, r, d = np.zeros_like(right), right.copy(), right.copy()
    residual = np.sum(r**2, axis=1)
    goal = np.maximum(UNSOLVED**2 * residual, noise**2)
    bad = ~np.isfinite(residual)
    for _ in range(MAX_PRODUCTS):
        active = (residual > goal) & ~bad
        if not np.any(active):
            break
        hd = product(d)
        curvature = np.sum(d * hd, axis=1)
        bad |= active & ~(curvature > FLAT * np.sum(d * d, axis=1))
        active &= ~bad
        alpha = np.where(active, residual / np.where(active, curvature, 1), 0)[:, None]
        p, r = p + alpha * d, r - alpha * hd
        updated = np.where(active, np.sum(r**2, axis=1), residual)
        beta = np.where(active, updated / np.maximum(residual, TINY), 0)[:, None]
        d = np.where(active[:, None], r + beta * d, d)
        residual = updated
    return p, bad | (residual > goal)
