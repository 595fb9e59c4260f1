"""Search spaces: the objective as a function of one flat vector.

A space also has the constraints and the stopping measure.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm.problems import Parameters, Problem, Samples
from ufm.solving.methods import balanced_coordinates as coordinates
from ufm.solving.methods.starts import typical_point

__all__ = [
    "FLOOR",
    "Space",
    "balanced_space",
    "free_space",
    "from_logarithm",
    "infimum_of",
    "num_unknowns",
    "parameter_space",
]

# Inside norm balls gradients are relative to at least this share of the objective at zero. No
# measurement of it is recorded.
FLOOR = 1e-4


class Space(NamedTuple):
    """A minimisation problem over flat vectors x.

    Attributes:
        objective: From x to value and gradient.
        unravel: From x to the pytree that it is made of.
        parameters: From x to `Parameters`.
        flatten: From `Parameters` to x.
        project: From x to the nearest feasible x.
        relative_gradient: From x, value and gradient to the stopping measure: the sum over blocks
            of ||gradient|| max(||block||, typical norm) over the objective, in balanced
            coordinates, without the components of the gradient that the constraints cancel.
        random_point: From standard normal numbers, a size relative to the typical one, and whether
            to start close to the minimiser of a problem that `can_be_aligned`, to a pytree.
        copies: How many samples each row of the features stands for, shape (n, 1).
    """

    objective: Callable[[Array], tuple[Array, Array]]
    unravel: Callable[[Array], Any]
    parameters: Callable[[Array], Parameters]
    flatten: Callable[[Parameters], Array]
    project: Callable[[Array], Array]
    relative_gradient: Callable[[Array, Array, Array], Float[Array, ""]]
    random_point: Callable[[Array, Array, bool], Any]
    copies: Float[Array, "n 1"] | float = 1.0


def num_unknowns(problem: Problem, num_rows: int, *, balanced: bool = True) -> int:
    """Return the length of x, for features of `num_rows` rows, in balanced coordinates or not."""
    dims = problem.layer_dims
    size = num_rows * dims[0] + sum(out * into for into, out in itertools.pairwise(dims))
    size += problem.num_outputs if problem.use_bias else 0
    slack = balanced and problem.regularizer.has_slack
    return size + (problem.num_layers + 1 if slack else 0)


def free_space(objective: Callable[[Array], tuple[Array, Array]]) -> Space:
    """Return the space of an unconstrained function, given from x to value and gradient.

    The stopping measure is ||gradient|| ||x|| / |value|.
    """

    def same(x: Any) -> Any:
        return x

    def relative_gradient(x: Array, value: Array, gradient: Array) -> Array:
        return jnp.linalg.norm(gradient) * jnp.linalg.norm(x) / jnp.abs(value)

    def random_point(numbers: Array, scale: Array, aligned: bool) -> Array:
        return scale * numbers

    return Space(objective, same, same, same, same, relative_gradient, random_point)


def balanced_space(
    problem: Problem,
    samples: Samples,
    smoothing: Float[Array, ""] | None = None,
    logarithmic: bool = False,
) -> Space:
    """Return the space of balanced coordinates.

    All penalties are equal, and constraints are met by construction.

    With `smoothing`, the ReLUs are rounded off where their inputs are below that share of their
    typical size. With `logarithmic`, the space has the logarithm of the objective. The gradient of
    a logarithm is already relative, so its stopping measure is not divided by a scale.
    """
    template = _template(problem, samples)
    _, unravel = ravel_pytree(template)
    floor = coordinates.reference_norms(problem, samples)
    scale_of = (lambda _: 1.0) if logarithmic else _objective_scale(problem, samples)

    def parameters(x: Array) -> Parameters:
        return coordinates.to_parameters(problem, samples, unravel(x))

    widths = None
    if smoothing is not None:
        part = jnp.asarray(smoothing, samples.counts.dtype)
        widths = tuple(part * size for size in coordinates.typical_inputs(problem, samples))

    def value(x: Array) -> Array:
        plain = problem.objective(parameters(x), samples, widths)
        if not logarithmic:
            return plain
        plain = plain - infimum_of(problem)
        # The objective is divided by its own value first. Second derivatives of the logarithm
        # divide by the square of the objective, which underflows if the objective is tiny.
        unit = jax.lax.stop_gradient(1 / plain)
        return jnp.log(plain * unit) - jnp.log(unit)

    def relative_gradient(x: Array, value: Array, gradient: Array) -> Array:
        return _sum_of_products(lengths(x), lengths(gradient), floor) / scale_of(value)

    def lengths(x: Array) -> Any:
        blocks, structure = jax.tree.flatten(template)
        if len({block.size for block in blocks}) > 1:
            return _lengths(unravel(x))
        # Blocks of equal size are the rows of one matrix, so none is copied out of the vector.
        return jax.tree.unflatten(structure, jnp.linalg.norm(x.reshape(len(blocks), -1), axis=1))

    def random_point(numbers: Array, scale: Array, aligned: bool) -> coordinates.Point:
        return typical_point(problem, samples, unravel(numbers), scale, aligned)

    return Space(
        objective=jax.value_and_grad(value),
        unravel=unravel,
        parameters=parameters,
        flatten=lambda p: ravel_pytree(coordinates.from_parameters(problem, samples, p))[0],
        project=lambda x: x,
        relative_gradient=relative_gradient,
        random_point=random_point,
        copies=samples.counts[:, None],
    )


def parameter_space(
    problem: Problem, samples: Samples, init_scale: Float[Array, ""] | float = 0.1
) -> Space:
    """Return the space of the parameters themselves; the constraints are met by projection.

    Random points have Gaussian weights and features of standard deviation `init_scale`, and a zero
    bias. Non-negative features are the absolute values.
    """
    template = _template(problem, samples)
    start = Parameters(template.weights, template.features, template.bias)
    _, unravel = ravel_pytree(start)
    floor = coordinates.reference_norms(problem, samples)
    scale_of = _objective_scale(problem, samples)
    bounded = _bounded(problem, start)

    def value(x: Array) -> Array:
        return problem.objective(unravel(x), samples)

    def project(x: Array) -> Array:
        point = unravel(jnp.where(bounded, jnp.maximum(x, 0), x))
        return ravel_pytree(problem.regularizer.project(point, samples))[0]

    def relative_gradient(x: Array, value: Array, gradient: Array) -> Array:
        gradient = jnp.where(bounded & (x <= 0), jnp.minimum(gradient, 0), gradient)
        scale = coordinates.scales(problem, samples)
        scale = Parameters(scale.weights, scale.features, scale.bias)
        point = jax.tree.map(lambda a, s: a / s, unravel(x), scale)
        slope = jax.tree.map(lambda a, s: a * s, unravel(gradient), scale)
        blocks = (*point.weights, point.features)
        *along, last = problem.regularizer.tangent(blocks, (*slope.weights, slope.features))
        slope = Parameters(tuple(along), last, slope.bias)
        floors = Parameters(floor.weights, floor.features, floor.bias)
        return _sum_of_products(_lengths(point), _lengths(slope), floors) / scale_of(value)

    def random_point(numbers: Array, scale: Array, aligned: bool) -> Parameters:
        point = unravel(numbers * scale * jnp.asarray(init_scale, numbers.dtype))
        features = problem.feature_cone.reflected(point.features)
        bias = None if point.bias is None else jnp.zeros_like(point.bias)
        return Parameters(point.weights, features, bias)

    return Space(
        objective=jax.value_and_grad(value),
        unravel=unravel,
        parameters=unravel,
        flatten=lambda p: ravel_pytree(p)[0],
        project=project,
        relative_gradient=relative_gradient,
        random_point=random_point,
        copies=samples.counts[:, None],
    )


def _template(problem: Problem, samples: Samples) -> coordinates.Point:
    dtype, dims = samples.counts.dtype, problem.layer_dims
    weights = tuple(jnp.zeros((out, into), dtype) for into, out in itertools.pairwise(dims))
    features = jnp.zeros((samples.counts.shape[0], problem.feature_dim), dtype)
    bias = jnp.zeros((problem.num_outputs,), dtype) if problem.use_bias else None
    slack = jnp.zeros((problem.num_layers + 1,), dtype) if problem.regularizer.has_slack else None
    return coordinates.Point(weights, features, bias, slack)


def _bounded(problem: Problem, template: Any) -> Array:
    marks = jax.tree.map(lambda block: jnp.zeros_like(block, dtype=bool), template)
    return ravel_pytree(marks._replace(features=problem.feature_cone.at_bound(template.features)))[
        0
    ]


def _lengths(point: Any) -> Any:
    return jax.tree.map(jnp.linalg.norm, point)


def _sum_of_products(lengths: Any, slopes: Any, floors: Any) -> Array:
    products = jax.tree.map(
        lambda length, slope, floor: slope * jnp.maximum(length, jnp.max(floor)),
        lengths,
        slopes,
        floors,
    )
    return sum(jax.tree.leaves(products))  # type: ignore[return-value]


def _objective_scale(problem: Problem, samples: Samples) -> Callable[[Array], Array]:
    # An objective without a penalty can reach zero, such as the squared error inside norm balls.
    # Near zero, gradients are relative to a share of the value at the origin instead.
    infimum = infimum_of(problem)
    if not problem.regularizer.bounded:
        return lambda value: jnp.abs(value - infimum)
    at_zero = problem.value_at_zero(samples) - infimum
    return lambda value: jnp.maximum(jnp.abs(value - infimum), FLOOR * at_zero)


def infimum_of(problem: Problem) -> float:
    """Return the infimum of the loss, from which objectives are measured; 0 if it has none."""
    return float(problem.loss.infimum) if np.isfinite(problem.loss.infimum) else 0.0


def from_logarithm(problem: Problem, value: Any) -> Any:
    """Return the objective, given the logarithm that a logarithmic space has in its place."""
    return jnp.exp(value) + infimum_of(problem)
