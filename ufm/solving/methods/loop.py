"""The compiled loop that every method runs in: termination decided in one place, once, from value and gradient."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ufm._support import Status
from ufm.problems import Columns, NormBall, Parameters, Problem, SquaredError, columns_of
from ufm.solving.methods.balanced_coordinates import reference_norms
from ufm.solving.methods.gradient_descent import GradientDescent
from ufm.solving.methods.lbfgs import LBFGS
from ufm.solving.methods.newton import NewtonCG
from ufm.solving.methods.recording import Records, recorded
from ufm.solving.methods.search_spaces import Space, balanced_space, infimum_of, parameter_space

__all__ = [
    "Iterate",
    "Start",
    "advance",
    "can_be_aligned",
    "first_iterate",
    "num_unknowns",
    "parameters_of",
    "unknowns_of",
]

Method = LBFGS | NewtonCG | GradientDescent

LARGE = 500  # unknowns above which the starts of convex problems are aligned with the classes
SMALLEST_MARGIN = 0.3  # that an aligned start gives a class
NOISE = 0.05


class Iterate(NamedTuple):
    """A solve in progress: all arrays, so that it can be batched, stopped and continued.

    x: (n,) the unknowns in the method's space. value, gradient: of the objective there.
    relative_gradient: (). memory: the method's own. step, evaluations, status: () integers.
    records: the trajectory so far.
    """

    x: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    relative_gradient: Float[Array, ""]
    memory: Any
    step: Int[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]
    records: Records | None


class Start(NamedTuple):
    """Where a method begins, and what was spent before.

    numbers: (n,) standard normal numbers, as many as `num_unknowns` says; or, where scale is 0, the
    unknowns themselves. scale: () size of a random point, relative to the typical one. step,
    evaluations: () integers.
    """

    numbers: Float[Array, " n"] | Float[np.ndarray, " n"]
    scale: Float[Array, ""] | Float[np.ndarray, ""]
    step: Int[Array, ""] | Int[np.ndarray, ""]
    evaluations: Int[Array, ""] | Int[np.ndarray, ""]


def space_of(problem: Problem, columns: Columns, method: Method) -> Space:
    """Return the space that the method moves in."""
    if isinstance(method, GradientDescent):
        return parameter_space(problem, columns)
    smoothing = method.smoothing if isinstance(method, LBFGS) else None
    return balanced_space(problem, columns, smoothing, method.logarithmic)


def first_iterate(
    problem: Problem,
    labels: Int[Array, " N"] | None,
    method: Method,
    start: Start,
    records: Records | None,
    aligned: bool | None = None,
) -> Iterate:
    """Return the iterate at a start, with its records added to if it is the first of a solve.

    From random numbers, gradient descent starts from Gaussian entries of the method's `init_scale`
    and a zero bias. The other methods start from Gaussian entries in balanced coordinates, each
    block with the typical norm of the problem's minimisers, so that the point is neither in the
    basin of the origin (a local minimum of deep models) nor far out.
    """
    numbers, scale = jnp.asarray(start.numbers), jnp.asarray(start.scale)
    columns = columns_of(problem.class_counts, labels, numbers.dtype)
    space = space_of(problem, columns, method)
    if aligned is None:
        aligned = has_aligned_start(problem, numbers.size)
    aligned = aligned and labels is None and not isinstance(method, GradientDescent)
    if isinstance(method, GradientDescent):
        point = space.unravel(numbers * scale * jnp.asarray(method.init_scale, numbers.dtype))
        point = point._replace(bias=None if point.bias is None else jnp.zeros_like(point.bias))
    else:
        point = _typical(problem, columns, space.unravel(numbers), scale, aligned)
    if problem.nonnegative_features and isinstance(method, GradientDescent):
        point = point._replace(features=jnp.abs(point.features))
    x = space.project(jnp.where(scale > 0, ravel_pytree(point)[0], numbers))
    return _iterate_at(problem, columns, space, method, x, start, records)


def has_aligned_start(problem: Problem, num_unknowns: int) -> bool:
    """Whether solves of so many unknowns start close to the minimiser: large problems that can."""
    return num_unknowns > LARGE and can_be_aligned(problem)


def can_be_aligned(problem: Problem) -> bool:
    """Whether a start close to the minimiser is known: problems that are convex up to their factors.

    Any start leads to the same minimum there, so the nearest is the best.
    """
    return (
        problem.num_layers == 1
        and problem.loss.convex
        and problem.feature_dim >= problem.num_classes
        and not problem.nonnegative_features
        and not isinstance(problem.regularizer, NormBall)
    )


def num_unknowns(problem: Problem, num_columns: int, method: Method) -> int:
    """Return the length of the vector that the method moves, for features of `num_columns` rows."""
    dims = problem.layer_dims
    size = num_columns * dims[0] + sum(rows * columns for columns, rows in itertools.pairwise(dims))
    size += problem.num_classes if problem.use_bias else 0
    slack = isinstance(problem.regularizer, NormBall) and not isinstance(method, GradientDescent)
    return size + (problem.num_layers + 1 if slack else 0)


def unknowns_of(
    problem: Problem,
    labels: Int[Array, " N"] | None,
    method: Method,
    parameters: Parameters,
    dtype: Any,
) -> Float[Array, " n"]:
    """Return the unknowns at (or, if they violate a constraint, nearest to) the parameters: the inverse of `parameters_of`."""
    columns = columns_of(problem.class_counts, labels, dtype)
    space = space_of(problem, columns, method)
    return space.project(
        space.flatten(jax.tree.map(lambda block: jnp.asarray(block, dtype), parameters))
    )


def parameters_of(
    problem: Problem, labels: Int[Array, " N"] | None, method: Method, x: Float[Array, " n"]
) -> Parameters:
    """Return the parameters at the unknowns x."""
    columns = columns_of(problem.class_counts, labels, x.dtype)
    return space_of(problem, columns, method).parameters(x)


def advance(
    problem: Problem,
    labels: Int[Array, " N"] | None,
    method: Method,
    iterate: Iterate,
    until: Int[Array, ""],
    tol: Float[Array, ""],
    record_every: int,
) -> Iterate:
    """Run until the solve ends or `until` steps have been made; `record_every` steps (0: never) add to the records."""
    columns = columns_of(problem.class_counts, labels, iterate.x.dtype)
    space = space_of(problem, columns, method)

    def going(iterate: Iterate, until: Array) -> Array:
        return (iterate.status == Status.RUNNING) & (iterate.step < until)

    def steps(iterate: Iterate, until: Array) -> Iterate:
        # The records stay out of the inner loop's carry, which would otherwise be copied at every
        # step.
        records, iterate = iterate.records, iterate._replace(records=None)
        body = lambda state: _step(space, method, state, tol)  # noqa: E731
        iterate = jax.lax.while_loop(lambda state: going(state, until), body, iterate)
        return iterate._replace(records=records)

    if not record_every:
        return steps(iterate, until)

    def block(iterate: Iterate) -> Iterate:
        boundary = (iterate.step // record_every + 1) * record_every
        iterate = steps(iterate, jnp.minimum(until, boundary))
        due = (iterate.step % record_every == 0) | (iterate.status != Status.RUNNING)
        shown = _in_plain_terms(problem, method, iterate)
        return iterate._replace(
            records=recorded(problem, columns, space.parameters(iterate.x), shown, due)
        )

    return jax.lax.while_loop(lambda state: going(state, until), block, iterate)


def _step(space: Space, method: Method, iterate: Iterate, tol: Array) -> Iterate:
    old = iterate
    lost = jnp.bool_(False)
    if not isinstance(method, GradientDescent):
        x, value, gradient, memory, stalled, trials = method.step(
            space.objective, old.x, old.value, old.gradient, old.memory
        )
        residual = space.relative_gradient(x, value, gradient)
    else:
        transformation = method.transformation(old.x.dtype)
        point, slope = space.unravel(old.x), space.unravel(old.gradient)
        updates, memory = transformation.update(
            slope,
            old.memory,
            point,
            value=old.value,
            grad=slope,
            value_fn=lambda p: space.objective(ravel_pytree(p)[0])[0],
        )
        moved = jax.tree.map(lambda block, update: block + update, point, updates)
        x = space.project(ravel_pytree(moved)[0])
        value, gradient = space.objective(x)
        trials, stalled = jnp.int32(1), jnp.bool_(False)
        lost = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)))
        x, value, gradient = (
            jnp.where(lost, before, after)
            for before, after in ((old.x, x), (old.value, value), (old.gradient, gradient))
        )
        residual = jnp.where(
            lost, old.relative_gradient, space.relative_gradient(x, value, gradient)
        )
    status = jnp.where(
        lost,
        Status.NON_FINITE,
        jnp.where(
            residual <= tol, Status.CONVERGED, jnp.where(stalled, Status.STALLED, Status.RUNNING)
        ),
    )
    return Iterate(
        x,
        value,
        gradient,
        residual,
        memory,
        old.step + 1,
        old.evaluations + trials,
        status.astype(jnp.int32),
        None,
    )


def _iterate_at(
    problem: Problem,
    columns: Columns,
    space: Space,
    method: Method,
    x: Array,
    start: Start,
    records: Records | None,
) -> Iterate:
    value, gradient = space.objective(x)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    if not isinstance(method, GradientDescent):
        memory: Any = method.init(x, value, gradient)
    else:
        memory = method.transformation(x.dtype).init(space.unravel(x))
    iterate = Iterate(
        x=x,
        value=value,
        gradient=gradient,
        relative_gradient=space.relative_gradient(x, value, gradient),
        memory=memory,
        step=jnp.asarray(start.step),
        evaluations=jnp.asarray(start.evaluations) + 1,
        status=jnp.where(finite, Status.RUNNING, Status.NON_FINITE).astype(jnp.int32),
        records=records,
    )
    if records is None:
        return iterate
    shown = _in_plain_terms(problem, method, iterate)
    return iterate._replace(
        records=recorded(problem, columns, space.parameters(x), shown, records.filled == 0)
    )


def _in_plain_terms(problem: Problem, method: Method, iterate: Iterate) -> Iterate:
    """Return the iterate with the objective itself, where the method moves in its logarithm."""
    if isinstance(method, GradientDescent) or not method.logarithmic:
        return iterate
    return iterate._replace(value=jnp.exp(iterate.value) + infimum_of(problem))


def _typical(problem: Problem, columns: Columns, point: Any, scale: Array, aligned: bool) -> Any:
    norms = reference_norms(problem, columns)

    def sized(block: Array, norm: Array) -> Array:
        norm = jnp.where(norm > 0, scale * norm, 1.0)
        return block * (norm / jnp.sqrt(1.0 * block.size))

    blocks = (*point.weights, point.features)
    if (
        problem.num_layers > 1
        and problem.activation == "linear"
        and not problem.nonnegative_features
    ):
        # A product of Gaussian matrices has small singular values, which start in the basin of the
        # origin; semi-orthogonal factors give all modes the same chance.
        blocks = tuple(
            jnp.sqrt(1.0 * max(block.shape)) * _semi_orthogonal(block) for block in blocks
        )
    *weights, features = (
        sized(block, norm)
        for block, norm in zip(blocks, (*norms.weights, norms.features), strict=True)
    )
    if aligned:
        # One layer: every class has its own direction of feature space, in weights and features
        # alike, plus the noise.
        K = problem.num_classes
        frame = jnp.eye(K, features.shape[1], dtype=features.dtype) - 1.0 / K
        strength = (
            scale * jnp.sqrt(_margins(problem, columns))[:, None] * columns.counts[:, None] ** 0.25
        )
        weights = [NOISE * weights[0] + strength * frame]
        features = NOISE * features + strength * frame
    bias = None if point.bias is None else jnp.zeros_like(point.bias)
    slack = None if point.slack is None else jnp.full_like(point.slack, 0.5)
    return point._replace(weights=tuple(weights), features=features, bias=bias, slack=slack)


def _margins(problem: Problem, columns: Columns) -> Array:
    """Return about how far the logit of each class stands out at the minimiser, (K,).

    Squared error: exact without a bias. Otherwise the closed form for cross-entropy with
    non-negative features (Dang et al., ICML 2024), where classes do not interact.
    """
    K, dtype = problem.num_classes, columns.counts.dtype
    decay = problem.regularizer.per_layer(1)[0] * problem.regularizer.features
    threshold = jnp.sum(columns.counts) * jnp.sqrt(jnp.asarray(decay, dtype) / columns.counts)
    if type(problem.loss) is SquaredError:
        return jnp.maximum(1 - threshold, SMALLEST_MARGIN)
    odds = jnp.maximum(jnp.sqrt(K / (K - 1)) / threshold - 1, jnp.finfo(dtype).tiny)
    return jnp.maximum(jnp.log((K - 1) * odds), SMALLEST_MARGIN)


def _semi_orthogonal(block: Array) -> Array:
    tall = block if block.shape[0] >= block.shape[1] else block.T
    q, r = jnp.linalg.qr(tall)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None, :].astype(block.dtype)
    return q if q.shape == block.shape else q.T
