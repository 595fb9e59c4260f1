r"""The objective around one point, as a smooth function of free coordinates where possible.

Coordinates. They are balanced (`ufm.solving.methods.balanced_coordinates`): every block is scaled
so that all penalties are equal, and norm balls are met through slack numbers. Non-negative features
are *not* given by their roots here, because entries at zero need the sign of their multipliers.

Kinks. Where the input p of a ReLU is zero the objective is not differentiable, and minimisers often
lie there. Replace relu(p) by s p, with a slope s in [0, 1] for every such entry, and with the slope
0 or 1 of the ReLU for all others. The result is a smooth function f_s that equals the objective
wherever those inputs stay zero. With c the derivative of f_s by the output of the unit,

    grad f_s = grad f_0 + sum_i s_i c_i grad p_i,

so the point is stationary in Clarke's sense if slopes in [0, 1] make this zero. The slopes are
found by bounded linear least squares, which is exact for kinks of one layer and repeated if kinks
of several layers multiply.

Suppose that moreover c_i > 0 and 0 < s_i < 1 for all i. Then the objective grows at least linearly
in every direction in which an input leaves zero (c relu(q) >= c s q; deep layers first). The
curvature of f_s on the tangent space of {p_i = 0} decides the rest, since f_s is the Lagrangian of
the objective restricted to that manifold (partly smooth functions: Lewis, SIAM J. Optim. 13, 2002;
VU-theory: Lemarechal, Oustry & Sagastizabal, Trans. AMS 352, 2000). At slopes 0 or 1 the objective
is still at least f_s, and the curvature of f_s decides in all directions. A kink with c_i < 0 is
concave: the objective falls on leaving it.

Units whose incoming and outgoing weights are all zero (dead units, under weight decay) have all
their inputs at the kink and c = 0. They are left out, with slope 0, and judged separately
(`ufm.landscape.dead_units`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ufm._support import ArgumentError, check_instance, chunks, compiled, rebuilt, to_numpy
from ufm.problems import (
    Parameters,
    Problem,
    Samples,
    checked_parameters,
    one_count_per_class,
    samples_of,
)
from ufm.solving.methods import Space, balanced_space, typical_norm

__all__ = [
    "ZERO_SHARE",
    "SmoothPiece",
    "better_slopes",
    "correction",
    "feasible",
    "hessian_along",
    "idle",
    "kink_gradients",
    "kink_signals",
    "moved",
    "normal_basis",
    "objective_at",
    "on_piece",
    "parameter_step",
    "products",
    "pushed",
    "radial",
    "read",
    "smooth_piece_at",
    "tangent_basis",
    "with_slopes",
]

# Share of the largest number of its kind up to which a number counts as zero.
ZERO_SHARE = 1e-6
CHUNK = 256  # directions at a time
SLOPE_STEPS = 20  # rounds that move the slopes at kinks, at most
FEASIBLE = 1e-9  # share by which a squared norm may exceed its bound
TRACES = 1e-9  # share of the typical norm up to which a block is set to zero
SLACK = 1e-12  # share of the squared radius up to which a squared slack is set to zero


class SmoothPiece(NamedTuple):
    """The smooth piece at a point.

    Letters: m coordinates, n feature rows, d_l units of hidden layer l. All arrays are NumPy.

    Attributes:
        problem: The problem with one count per class.
        samples: The feature rows.
        parameters: The point.
        x: Its coordinates, shape (m,).
        value: The objective there.
        gradient: The gradient of f_s, shape (m,).
        relative_gradient: The stopping measure of the solvers (the sum over blocks of ||gradient||
            max(||block||, typical norm) / objective), without the components of the gradient that
            the constraints cancel.
        slopes: The slopes s, shape (n, d_l) per hidden layer.
        inputs: The inputs p, shape (n, d_l) per hidden layer.
        signals: Derivatives of f_s by p, shape (n, d_l) per layer, the logits last.
        kinks: Masks of the inputs at zero, without those of zero units, shape (n, d_l).
        held: Masks of the kinks that hold the point to first order, where 0 < s < 1 and c > 0.
        zero_units: Masks of the zero units, shape (d_l,).
        at_bound: Mask of the entries of non-negative features that are zero, shape (m,).
    """

    problem: Problem
    samples: Samples
    parameters: Parameters
    x: Float[np.ndarray, " m"]
    value: float
    gradient: Float[np.ndarray, " m"]
    relative_gradient: float
    slopes: tuple[Float[np.ndarray, "n width"], ...]
    inputs: tuple[Float[np.ndarray, "n width"], ...]
    signals: tuple[Float[np.ndarray, "n width"], ...]
    kinks: tuple[Bool[np.ndarray, "n width"], ...]
    held: tuple[Bool[np.ndarray, "n width"], ...]
    zero_units: tuple[Bool[np.ndarray, " width"], ...]
    at_bound: Bool[np.ndarray, " m"]

    @property
    def num_kinks(self) -> int:
        """How many inputs of ReLUs are at zero, less those of zero units."""
        return int(sum(np.sum(mask) for mask in self.kinks))

    def outputs_signal(self, layer: int) -> Float[np.ndarray, "n width"]:
        """Return c, the derivatives of f_s by the outputs of a hidden layer."""
        return self.signals[layer + 1] @ self.parameters.weights[layer + 1]

    def at_kinks(self, blocks: Any) -> np.ndarray:
        """Return the entries at kinks of one array per hidden layer, flat."""
        parts = [block[mask] for block, mask in zip(blocks, self.kinks, strict=True)]
        return np.concatenate([np.zeros(0), *parts])

    def spread(self, entries: np.ndarray, blocks: Any) -> tuple[np.ndarray, ...]:
        """Return copies of one array per hidden layer with other entries at kinks.

        The converse of `at_kinks`.
        """
        found: list[np.ndarray] = []
        begin = 0
        for block, mask in zip(blocks, self.kinks, strict=True):
            count = int(np.sum(mask))
            copy = block.copy()
            copy[mask] = entries[begin : begin + count]
            found, begin = [*found, copy], begin + count
        return tuple(found)


def read(problem: Problem, parameters: Any) -> tuple[Problem, Parameters, Samples]:
    """Check a problem and a point, and return them in the form that pieces have.

    Returns:
        The problem with one count per class; the parameters as float64 arrays; and the
        feature rows.

    Raises:
        ValueError: If `problem` is not a problem, shapes do not fit it, or parameters violate its
            constraints.
    """
    check_instance("problem", problem, Problem)
    given = checked_parameters(
        problem, parameters, "parameters", (problem.num_rows, float(problem.num_samples))
    )
    rows = given.features.shape[0]
    samples = samples_of(problem, rows)
    if not problem.feature_cone.contains(given.features):
        raise ArgumentError(
            "parameters.features",
            f"must not be negative in this problem, got {np.min(given.features):g}; clip them "
            "at zero",
        )
    problem = one_count_per_class(problem)
    if problem.regularizer.bounded:
        largest = float(np.max(_norms(problem, samples, given)))
        if largest > 1 + FEASIBLE:
            raise ArgumentError(
                "parameters",
                f"must lie inside the {problem.regularizer.words}, got a squared norm of "
                f"{largest:g} times its bound; scale the block down",
            )
    return problem, given, samples


def smooth_piece_at(problem: Problem, parameters: Any, *, near: float = ZERO_SHARE) -> SmoothPiece:
    """Return the smooth piece of the objective at a point; call it in double precision.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`; features one row per class or
            per sample.
        near: Inputs of ReLUs, weights of units and entries of non-negative features below this
            share of the largest of their layer count as zero.

    Raises:
        ValueError: As `read`.
    """
    problem, given, samples = read(problem, parameters)
    x = np.array(_flatten(problem, samples, given))
    if problem.regularizer.has_slack:
        # A squared slack at rounding level is zero.
        slack = x[-(problem.num_layers + 1) :]
        slack[slack**2 <= SLACK] = 0
    given, x = _without_traces(problem, given, x)
    inputs = [np.asarray(block) for block in _true_inputs(problem, given)]
    relu = problem.activation == "relu"
    slopes: list[np.ndarray] = []
    kinks: list[np.ndarray] = []
    zero_units: list[np.ndarray] = []
    for layer, p in enumerate(inputs):
        width = p.shape[1]
        if not relu:
            slopes, kinks = [*slopes, np.ones_like(p)], [*kinks, np.zeros(p.shape, bool)]
            zero_units.append(np.zeros(width, bool))
            continue
        incoming = np.linalg.norm(given.weights[layer], axis=1)
        outgoing = np.linalg.norm(given.weights[layer + 1], axis=0)
        zero = (incoming <= near * np.max(incoming)) & (outgoing <= near * np.max(outgoing))
        mask = (np.abs(p) <= near * np.max(np.abs(p))) & ~zero[None, :]
        slopes.append(np.where(mask, 0.5, np.where(zero[None, :], 0.0, (p > 0).astype(np.float64))))
        kinks.append(mask)
        zero_units.append(zero)
    at_bound = np.zeros(x.size, bool)
    marks = problem.feature_cone.at_bound(given.features, near * np.max(given.features))
    at_bound[_features_slice(given)] = marks.ravel()
    fields = (problem, samples, given, x)
    found = _evaluated(fields, tuple(slopes), tuple(kinks), tuple(zero_units), at_bound)
    if found.num_kinks and np.all(np.isfinite(found.gradient)):
        for _ in range(SLOPE_STEPS):
            moved_slopes = better_slopes(found)
            if moved_slopes is None:
                break
            found = _evaluated(fields, moved_slopes, found.kinks, found.zero_units, at_bound)
    return found


def with_slopes(piece: SmoothPiece, slopes: tuple[np.ndarray, ...]) -> SmoothPiece:
    """Return the same point on the piece with other slopes."""
    fields = (piece.problem, piece.samples, piece.parameters, piece.x)
    return _evaluated(fields, slopes, piece.kinks, piece.zero_units, piece.at_bound)


def on_piece(
    piece: SmoothPiece,
    x: Float[np.ndarray, " m"],
    slopes: tuple[np.ndarray, ...],
    kinks: tuple[np.ndarray, ...],
) -> SmoothPiece:
    """Return the piece with given slopes and kinks at other coordinates."""
    given = to_numpy(_parameters(piece.problem, piece.samples, x))
    fields = (piece.problem, piece.samples, given, x)
    return _evaluated(fields, slopes, kinks, piece.zero_units, piece.at_bound)


def feasible(
    piece: SmoothPiece, x: Float[np.ndarray, " m"]
) -> tuple[SmoothPiece, Float[np.ndarray, " m"]]:
    """Return the piece and feasible coordinates.

    Negative entries of non-negative features are set to zero; the piece has those at zero marked.
    """
    kind, features = piece.problem.feature_cone, _features_slice(piece.parameters)
    x, at_bound = x.copy(), piece.at_bound.copy()
    x[features] = kind.project(x[features])
    at_bound[features] = kind.at_bound(x[features])
    return piece._replace(at_bound=at_bound), x


def kink_signals(piece: SmoothPiece) -> tuple[Float[np.ndarray, " number"], float]:
    """Return c at the kinks, and the size up to which it counts as zero."""
    outputs = [piece.outputs_signal(layer) for layer in range(len(piece.kinks))]
    largest = max((float(np.max(np.abs(block))) for block in outputs), default=0.0)
    return piece.at_kinks(outputs), ZERO_SHARE * largest


def products(
    piece: SmoothPiece, directions: Float[np.ndarray, "j m"], chunk: int | None = None
) -> Float[np.ndarray, "j m"]:
    """Return Hessian-vector products of f_s, one per row, `chunk` at a time."""
    arguments = (piece.problem, piece.samples, piece.x, piece.slopes)
    chunk = min(CHUNK, piece.x.size) if chunk is None else chunk
    return _in_chunks(lambda rows: np.asarray(_products(*arguments, rows)), directions, chunk)


def pushed(piece: SmoothPiece, directions: Float[np.ndarray, "j m"]) -> Parameters:
    """Return directions of the coordinates as changes of the parameters, along a first axis."""
    return to_numpy(_pushed(piece.problem, piece.samples, piece.x, directions))


def hessian_along(piece: SmoothPiece, basis: Float[np.ndarray, "j m"]) -> Float[np.ndarray, "j j"]:
    """Return the Hessian of f_s along the rows of a basis, from one product each."""
    matrix = products(piece, basis) @ basis.T
    return 0.5 * (matrix + matrix.T)


def idle(piece: SmoothPiece) -> Bool[np.ndarray, " m"]:
    """Return which coordinates are weights of zero units, in which f_s is the penalty alone."""
    marks = [np.zeros(matrix.shape, bool) for matrix in piece.parameters.weights]
    for layer, mask in enumerate(piece.zero_units):
        marks[layer][mask, :] = True
        marks[layer + 1][:, mask] = True
    flat = np.concatenate([block.ravel() for block in marks])
    return np.concatenate([flat, np.zeros(piece.x.size - flat.size, bool)])


def kink_gradients(piece: SmoothPiece, masks: Any = None) -> Float[np.ndarray, "j m"]:
    """Return the gradients of the inputs at the kinks that hold the point, one row each.

    With `masks`, those of the inputs in them.
    """
    masks = piece.held if masks is None else masks
    places = np.flatnonzero(np.concatenate([np.zeros(0, bool), *(mask.ravel() for mask in masks)]))
    total = sum(mask.size for mask in masks)
    if not places.size:
        return np.zeros((0, piece.x.size))
    seeds = np.zeros((places.size, total))
    seeds[np.arange(places.size), places] = 1
    arguments = (piece.problem, piece.samples, piece.x, piece.slopes)
    return _in_chunks(lambda rows: np.asarray(_pulled(*arguments, rows)), seeds, 64)


def radial(piece: SmoothPiece) -> Float[np.ndarray, "q m"]:
    """Return the directions along which the parameters do not change, one row per slack number.

    Along each of them a block and its slack number grow by the same factor.
    """
    if not piece.problem.regularizer.has_slack:
        return np.zeros((0, piece.x.size))
    sizes = [matrix.size for matrix in piece.parameters.weights] + [piece.parameters.features.size]
    ends = np.cumsum(sizes)
    rows = np.zeros((len(sizes), piece.x.size))
    for index, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        rows[index, end - size : end] = piece.x[end - size : end]
        slack = piece.x.size - len(sizes) + index
        rows[index, slack] = piece.x[slack]
    return rows


def tangent_basis(
    piece: SmoothPiece, without: np.ndarray | None = None
) -> Float[np.ndarray, "j m"]:
    """Return an orthonormal basis, in rows, of the directions in which the point is not held.

    Leave out the coordinates of the mask `without`.
    """
    normal = normal_basis(piece)
    free = ~piece.at_bound if without is None else ~(piece.at_bound | without)
    basis = np.eye(piece.x.size)[free]
    if not len(normal):
        return basis
    inner = normal[:, free]
    inner = inner[np.linalg.norm(inner, axis=1) > 0.5]
    if not len(inner):
        return basis
    complement = np.linalg.svd(inner, full_matrices=True)[2][len(inner) :]
    whole = np.zeros((len(complement), piece.x.size))
    whole[:, free] = complement
    return whole


def normal_basis(piece: SmoothPiece) -> np.ndarray:
    """Return an orthonormal basis of the directions in which the point is held.

    Zero features come first, then kinks and scales of norm balls.
    """
    bound = np.eye(piece.x.size)[piece.at_bound]
    rows = np.concatenate([kink_gradients(piece), radial(piece)])
    rows[:, piece.at_bound] = 0
    if not len(rows) or not np.all(np.isfinite(rows)):
        return bound
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    return np.concatenate(
        [bound, right[values > ZERO_SHARE * values[0]] if values[0] > 0 else rows[:0]]
    )


def parameter_step(piece: SmoothPiece, x: Float[np.ndarray, " m"]) -> Parameters:
    """Return the change of the parameters that leads to the coordinates x.

    Non-negative features are clipped at zero.
    """
    there = to_numpy(_parameters(piece.problem, piece.samples, x))
    there = there._replace(features=piece.problem.feature_cone.project(there.features))
    return jax.tree.map(lambda a, b: np.asarray(a - b), there, piece.parameters)


def moved(parameters: Parameters, step: Parameters, length: float = 1.0) -> Parameters:
    """Return the parameters `length` steps further."""
    return jax.tree.map(lambda a, b: a + length * b, parameters, step)


def objective_at(piece: SmoothPiece, parameters: Parameters) -> float:
    """Return the objective itself (with its kinks) at other parameters with the same rows."""
    return float(_objective(piece.problem, piece.samples, parameters))


def correction(
    piece: SmoothPiece, x: Float[np.ndarray, " m"], normal: Float[np.ndarray, "j m"]
) -> Float[np.ndarray, " m"]:
    """Return x moved back to where the inputs at the kinks that hold the point are zero.

    Newton's method along `normal`, their gradients at the point.
    """
    if not len(normal):
        return x
    mask = np.concatenate([block.ravel() for block in piece.held])
    inverse = np.linalg.pinv(normal, rcond=ZERO_SHARE)
    for _ in range(4):
        inputs = np.asarray(_flat_inputs(piece.problem, piece.samples, x, piece.slopes))[mask]
        x = x - inverse @ inputs
    return x


def better_slopes(piece: SmoothPiece) -> tuple[np.ndarray, ...] | None:
    """Return slopes at the kinks that make the gradient of f_s smaller; None if there are none.

    Of the slopes that make it least, they are the nearest to one half, if these lie within [0, 1].
    """
    signal, _ = kink_signals(piece)
    current = piece.at_kinks(piece.slopes)
    free = ~(piece.at_bound & (piece.gradient > 0))
    columns = (kink_gradients(piece, piece.kinks) * signal[:, None])[:, free].T
    gradient = piece.gradient[free]
    # The change of least norm from one half. If it leaves [0, 1], bounded least squares instead.
    target = columns @ (current - 0.5) - gradient
    best = 0.5 + np.linalg.lstsq(columns, target, rcond=1e-12)[0]
    if np.any((best < 0) | (best > 1)):
        from scipy.optimize import lsq_linear  # here, because scipy is slow to import

        offset = columns @ current - gradient
        best = lsq_linear(columns, offset, bounds=(0, 1), method="bvls", tol=1e-14).x
    best = np.clip(best, 0, 1)
    after = np.linalg.norm(gradient + columns @ (best - current))
    if not after < 0.99 * np.linalg.norm(gradient) or np.allclose(
        best, current, rtol=0, atol=1e-15
    ):
        return None
    return piece.spread(best, piece.slopes)


def _evaluated(
    fields: Any, slopes: Any, kinks: Any, zero_units: Any, at_bound: np.ndarray
) -> SmoothPiece:
    problem, samples, given, x = fields
    value, gradient, signals, inputs = to_numpy(_evaluate(problem, samples, x, slopes))
    outward = np.where(at_bound, np.minimum(gradient, 0), gradient)
    measure = float(_measure(problem, samples, x, value, outward))
    found = SmoothPiece(
        problem=problem,
        samples=samples,
        parameters=given,
        x=x,
        value=float(value),
        gradient=gradient,
        relative_gradient=measure if np.isfinite(measure) else np.inf,
        slopes=slopes,
        inputs=inputs,
        signals=signals,
        kinks=kinks,
        held=kinks,
        zero_units=zero_units,
        at_bound=at_bound,
    )
    signal, floor = kink_signals(found)
    inside = np.abs(found.at_kinks(slopes) - 0.5) < 0.5 - ZERO_SHARE
    return found._replace(held=found.spread(inside & (signal > floor), kinks))


def _without_traces(
    problem: Problem, given: Parameters, x: np.ndarray
) -> tuple[Parameters, np.ndarray]:
    """Set blocks to exact zero when their norm is at most 1e-9 of the typical norm."""
    typical = float(typical_norm(problem, samples_of(problem, problem.num_rows)))
    blocks: list[Any] = [*given.weights, given.features]
    x, begin = x.copy(), 0
    for index, block in enumerate(blocks):
        part = slice(begin, begin + block.size)
        if np.linalg.norm(x[part]) <= TRACES * typical:
            x[part], blocks[index] = 0, np.zeros_like(block)
        begin = part.stop
    *weights, features = blocks
    return Parameters(tuple(weights), features, given.bias), x


def _features_slice(given: Parameters) -> slice:
    begin = sum(matrix.size for matrix in given.weights)
    return slice(begin, begin + given.features.size)


def _in_chunks(
    function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, size: int
) -> np.ndarray:
    """Return the function of all rows, `size` at a time, so that it compiles for one shape."""
    parts = []
    for chunk in chunks(len(rows), size):
        part = rows[chunk]
        padded = np.concatenate([part, np.zeros((size - len(part), rows.shape[1]))])
        parts.append(function(padded)[: len(part)])
    return np.concatenate(parts) if parts else np.zeros((0, rows.shape[1]))


# The compiled pieces.


def _space(problem: Problem, samples: Samples) -> Space:
    # As for signed features: the coordinates are the features themselves, not their roots.
    return balanced_space(rebuilt(problem, nonnegative_features=False), samples)


def _piece(
    problem: Problem, samples: Samples, x: Array, slopes: Any, offsets: Any = None
) -> tuple[Array, list[Array]]:
    """Return f_s, the inputs shifted by the offsets, and the inputs of all hidden layers."""
    space = _space(problem, samples)
    parameters = space.parameters(x)
    hidden, inputs = parameters.features, []
    for layer, matrix in enumerate(parameters.weights):
        p = hidden @ matrix.T
        p = p if offsets is None else p + offsets[layer]
        if layer < len(slopes):
            inputs.append(p)
            hidden = slopes[layer] * p
    logits = p if parameters.bias is None else p + parameters.bias[None, :]
    return problem.data_term(logits, samples) + problem.penalty(parameters, samples), inputs


@compiled
def _evaluate(problem, samples, x, slopes):  # type: ignore[no-untyped-def]
    rows = len(samples.counts)
    offsets = [jnp.zeros((rows, width)) for width in problem.layer_dims[1:]]

    def value(x, offsets):  # type: ignore[no-untyped-def]
        return _piece(problem, samples, x, slopes, offsets)

    (objective, inputs), (gradient, signals) = jax.value_and_grad(
        value, argnums=(0, 1), has_aux=True
    )(x, offsets)
    return objective, gradient, tuple(signals), tuple(inputs)


@functools.partial(compiled, once=True)
def _measure(problem, samples, x, value, gradient):  # type: ignore[no-untyped-def]
    return _space(problem, samples).relative_gradient(x, value, gradient)


@functools.partial(compiled, once=True)
def _flatten(problem, samples, parameters):  # type: ignore[no-untyped-def]
    return _space(problem, samples).flatten(parameters)


@functools.partial(compiled, once=True)
def _parameters(problem, samples, x):  # type: ignore[no-untyped-def]
    return _space(problem, samples).parameters(x)


@functools.partial(compiled, once=True)
def _norms(problem, samples, parameters):  # type: ignore[no-untyped-def]
    return problem.norms(parameters, samples)


@functools.partial(compiled, once=True)
def _pushed(problem, samples, x, directions):  # type: ignore[no-untyped-def]
    return jax.vmap(jax.linearize(_space(problem, samples).parameters, x)[1])(directions)


@functools.partial(compiled, once=True)
def _objective(problem, samples, parameters):  # type: ignore[no-untyped-def]
    return problem.objective(parameters, samples)


@compiled
def _products(problem, samples, x, slopes, directions):  # type: ignore[no-untyped-def]
    slope = jax.grad(lambda y: _piece(problem, samples, y, slopes)[0])
    return jax.vmap(jax.linearize(slope, x)[1])(directions)


@functools.partial(compiled, once=True)
def _flat_inputs(problem, samples, x, slopes):  # type: ignore[no-untyped-def]
    return ravel_pytree(_piece(problem, samples, x, slopes)[1])[0]


@functools.partial(compiled, once=True)
def _pulled(problem, samples, x, slopes, seeds):  # type: ignore[no-untyped-def]
    transpose = jax.vjp(lambda y: ravel_pytree(_piece(problem, samples, y, slopes)[1])[0], x)[1]
    return jax.vmap(lambda seed: transpose(seed)[0])(seeds)


def _true_inputs(problem: Problem, given: Parameters) -> list[np.ndarray]:
    hidden: Any = given.features
    inputs: list[Any] = []
    for matrix in given.weights[:-1]:
        inputs.append(hidden @ matrix.T)
        hidden = np.maximum(inputs[-1], 0) if problem.activation == "relu" else inputs[-1]
    return inputs
