r"""How far a quantity can be from its value at the minimiser, given how far the objective can be.

Around a minimiser x* the points whose objective is within delta form the ellipsoid (1/2) <p, H p> <= delta (p = x - x*, H the
Hessian in balanced coordinates). Over it, a quantity q moves by at most

    max ||J p|| = sqrt(2 delta lambda_max(J H^+ J^T)),        J = dq/dx.

Flat directions of H, the rotations of feature space, leave the quantities alone: J^T maps into the range of H. The
eigenvalue is found by power iteration, each step one solve with H by conjugate gradients; where H is not positive
semi-definite on the way, or a quantity moves along a flat direction, the answer is infinity.

The delta of a certified solution is its gap. Where no certificate exists it is the Newton decrement (1/2) <g, H^+ g>, what the
quadratic model could still gain, plus the rounding of the objective: a local estimate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm import coordinates
from ufm.precision import in_double_precision
from ufm.problem import Parameters, Problem
from ufm.resolutions import class_columns
from ufm.solvers.spaces import balanced_space

__all__ = ["Quantities", "accuracy", "quantities"]

POWER_ITERATIONS = 4
SAFETY = 2.0  # the power iteration approaches the eigenvalue from below
MAX_PRODUCTS = 400
NOISE = 1e3 * float(np.finfo(np.float64).eps)


class Quantities(NamedTuple):
    """What theorems predict, at class-level parameters; all invariant under rotations of feature space.

    logits: (K, K), row k of class k, bias included. weighted_logits: (K, K), less the bias, row k times sqrt(n_k). weight_gram: (K, K),
    of the last layer. feature_gram: (K, K), of what it multiplies. bias: (K,), zeros without one. layer_norms: (L + 1,), squared.
    logits_norm: (1,), the Frobenius norm of the weighted logits squared, which is determined where they are not (a cut in rank among
    equal modes leaves a family of minimisers).
    """

    logits: Float[Array, "K K"]
    weighted_logits: Float[Array, "K K"]
    weight_gram: Float[Array, "K K"]
    feature_gram: Float[Array, "K K"]
    bias: Float[Array, " K"]
    layer_norms: Float[Array, " q"]
    logits_norm: Float[Array, " 1"]


def quantities(problem: Problem, parameters: Parameters) -> Quantities:
    """Return the quantities at class-level parameters. Pure."""
    dtype = parameters.features.dtype
    counts = jnp.asarray(problem.class_counts.per_class, dtype)
    last = problem.last_features(parameters)
    product = last @ parameters.weights[-1].T
    bias = jnp.zeros((problem.num_classes,), dtype) if parameters.bias is None else parameters.bias
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
    """values: the quantities. decrement: the Newton decrement. spread: per quantity, max ||J p|| over <p, H p> <= 1 (Frobenius norm)."""

    values: Quantities
    decrement: Float[Array, ""]
    spread: Quantities


@in_double_precision
def accuracy(problem: Problem, parameters: Parameters) -> Accuracy:
    """Return the quantities at class-level parameters near a minimiser, and how far each can move there."""
    generator = np.random.default_rng(0)
    K, L = problem.num_classes, problem.num_layers
    sizes = (K * K, K * K, K * K, K * K, K, L + 1, 1)
    probes = np.zeros((len(sizes), sum(sizes)))
    for row, (size, end) in enumerate(zip(sizes, np.cumsum(sizes), strict=True)):
        probes[row, end - size : end] = generator.standard_normal(size)
    values, decrement, spreads = _measured(problem, parameters, probes)
    return Accuracy(values, decrement, Quantities(*spreads))


@eqx.filter_jit
def _measured(problem: Problem, parameters: Parameters, probes: Array) -> tuple[Quantities, Array, Array]:
    columns = class_columns(problem.class_counts, jnp.float64)
    space = balanced_space(problem, columns)
    x = space.flatten(parameters)
    gradient = space.objective(x)[1]
    free = ~(space.bounded & (x <= 0))
    gradient = jnp.where(free, gradient, 0)

    def flat_quantities(y: Array) -> Array:
        return ravel_pytree(quantities(problem, coordinates.to_parameters(problem, columns, space.unravel(y))))[0]

    def product(vectors: Float[Array, "m n"]) -> Float[Array, "m n"]:
        def one(vector: Array) -> Array:
            return jax.jvp(lambda y: space.objective(y)[1], (x,), (jnp.where(free, vector, 0),))[1]

        return jnp.where(free[None, :], jax.vmap(one)(vectors), 0)

    image, transpose = jax.vjp(flat_quantities, x)
    support = probes != 0

    def pulled(rows: Array) -> Array:
        return jnp.where(free[None, :], jax.vmap(lambda row: transpose(row)[0])(rows), 0)

    def pushed(rows: Array) -> Array:
        return jnp.where(support, jax.vmap(lambda row: jax.jvp(flat_quantities, (x,), (row,))[1])(rows), 0)

    # What a rounded evaluation of a gradient leaves behind, also where the exact one is zero: the unit of all floors below.
    size = jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)
    present = jnp.where(support, flat_quantities(x)[None, :], 0)
    noise = NOISE * jnp.linalg.norm(present, axis=1) / size

    def power(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        probe, _ = carry
        probe = probe / jnp.maximum(jnp.linalg.norm(probe, axis=1, keepdims=True), 1e-300)
        pulled_back = pulled(probe)
        solved, bad = _conjugate_gradients(product, pulled_back, noise)
        result = pushed(solved)
        eigenvalue = jnp.linalg.norm(result, axis=1)
        return result, jnp.where(bad, jnp.inf, eigenvalue)

    _, eigenvalues = jax.lax.fori_loop(0, POWER_ITERATIONS, power, (probes, jnp.zeros(probes.shape[0])))
    step, bad = _conjugate_gradients(product, gradient[None, :], NOISE * jnp.abs(space.objective(x)[0])[None] / size)
    decrement = jnp.where(bad[0], jnp.inf, 0.5 * jnp.vdot(gradient, step[0]))
    values = quantities(problem, coordinates.to_parameters(problem, columns, space.unravel(x)))
    return values, decrement, SAFETY * jnp.sqrt(2 * eigenvalues)


def _conjugate_gradients(
    product: Callable[[Array], Array], right: Float[Array, "m n"], noise: Float[Array, " m"]
) -> tuple[Float[Array, "m n"], Any]:
    """Solve H p = r for every row, to a residual of 1e-3 or `noise`; also return which rows could not be solved.

    That is where the curvature met is not positive, or the residual does not come down.
    """
    tiny = jnp.finfo(right.dtype).tiny
    squared = jnp.sum(right**2, axis=1)
    goal = jnp.maximum(1e-6 * squared, noise**2)

    def going(carry: tuple) -> Array:
        _, _, _, residual, bad, count = carry
        return jnp.any((residual > goal) & ~bad) & (count < MAX_PRODUCTS)

    def body(carry: tuple) -> tuple:
        p, r, d, residual, bad, count = carry
        hd = product(d)
        curvature = jnp.sum(d * hd, axis=1)
        active = (residual > goal) & ~bad
        bad = bad | (active & (curvature <= 1e-14 * jnp.sum(d * d, axis=1)))
        active = active & ~bad
        alpha = jnp.where(active, residual / jnp.where(active, curvature, 1), 0)[:, None]
        p, r = p + alpha * d, r - alpha * hd
        updated = jnp.where(active, jnp.sum(r**2, axis=1), residual)
        beta = jnp.where(active, updated / jnp.maximum(residual, tiny), 0)[:, None]
        d = jnp.where(active[:, None], r + beta * d, d)
        return p, r, d, updated, bad, count + 1

    start = (jnp.zeros_like(right), right, right, squared, jnp.zeros(right.shape[0], bool), jnp.int32(0))
    p, _, _, residual, bad, _ = jax.lax.while_loop(going, body, start)
    return p, bad | (residual > goal)
