r"""Coordinates in which every block of unknowns has the same penalty, and the norm balls are met by construction.

Weight decay. With q factors and Lambda = (prod of all q penalties)^{1/q}, the scales s_l =
sqrt(Lambda / lambda_l) multiply to one, so W_l = s_l V_l and sqrt(c_i) h_i = s_H u_i (c_i the count
of column i) leave the logits alone (the ReLU is positively homogeneous) and turn all penalties into
the single (Lambda/2)(sum_l ||V_l||^2 + ||U||^2). This is where every critical point is balanced,
and what a quasi-Newton method wants to see.

Norm balls. A block bounded by ||W|| <= r is W = r V / sqrt(||V||^2 + s^2) with one slack number s:
the map covers the ball, interior (s != 0) and boundary (s = 0), and is smooth, so a solver for
unconstrained problems meets the constraint to rounding at every iterate.

Non-negative features. u = x^2, entry by entry: smooth, with no bound left. A zero entry is a
stationary point of the square; where its multiplier has the right sign the curvature there is
positive, where it has not it is negative, and a second-order method leaves.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.problems import Columns, NormBall, Parameters, Problem

__all__ = [
    "Point",
    "from_parameters",
    "reference_norms",
    "scales",
    "to_parameters",
    "typical_inputs",
]


class Point(NamedTuple):
    """Balanced coordinates of `Parameters`.

    weights: (V_1, ..., V_L), as W.
    features: (n, d), the rows u_i, or their square roots x_i where features are non-negative.
    bias: (K,) or None.
    slack: (L + 1,), one number per norm ball (layers, then features); None under weight decay.
    """

    weights: tuple[Float[Array, "out in"], ...]
    features: Float[Array, "n d"]
    bias: Float[Array, " K"] | None
    slack: Float[Array, " q"] | None


def scales(problem: Problem, columns: Columns) -> Parameters:
    """Return the factors between parameters and coordinates, each broadcastable to its block.

    For the norm balls these are the radii, still to be divided by the norm of the block.
    """
    dtype = columns.counts.dtype
    penalties = jnp.asarray(problem.regularizer.per_layer(problem.num_layers), dtype)
    features = jnp.asarray(problem.regularizer.features, dtype)
    if isinstance(problem.regularizer, NormBall):
        rows = jnp.asarray(problem.layer_dims[1:], dtype)
        radii = jnp.sqrt(rows * penalties)
        per_row = jnp.sqrt(problem.num_classes * features * columns.class_counts / columns.counts)
    else:
        num_factors = problem.num_layers + 1
        log_mean = (jnp.sum(jnp.log(penalties)) + jnp.log(features)) / num_factors
        radii = jnp.exp(0.5 * (log_mean - jnp.log(penalties)))
        per_row = jnp.exp(0.5 * (log_mean - jnp.log(features))) / jnp.sqrt(columns.counts)
    if not problem.use_bias:
        return Parameters(tuple(radii), per_row[:, None], None)
    # The bias enters logits weighted by 1, a factor by the singular values n^{1/4}: this evens out
    # their curvatures. The blocks of the norm balls have norms of one, and a bias with entries of
    # order one has one of sqrt(K): were its coordinates much larger than theirs, steps in the bias
    # would change the norms that the map divides by, until the blocks all but vanish.
    mean_count = jnp.asarray(problem.num_samples, dtype) / problem.num_classes
    even = mean_count**0.25 / jnp.sqrt(mean_count * problem.num_classes)
    bias = (
        jnp.full_like(even, np.sqrt(problem.num_classes))
        if isinstance(problem.regularizer, NormBall)
        else even
    )
    return Parameters(tuple(radii), per_row[:, None], bias)


def to_parameters(problem: Problem, columns: Columns, point: Point) -> Parameters:
    """Return the parameters at `point`."""
    scale = scales(problem, columns)
    bias = None if point.bias is None or scale.bias is None else point.bias * scale.bias
    blocks = (*point.weights, point.features**2 if problem.nonnegative_features else point.features)
    factors: tuple[Array, ...] = (*scale.weights, scale.features)
    if point.slack is not None:
        norms = [
            jnp.sqrt(jnp.sum(block**2) + point.slack[i] ** 2) for i, block in enumerate(blocks)
        ]
        factors = tuple(factor / norm for factor, norm in zip(factors, norms, strict=True))
    *weights, features = (block * factor for block, factor in zip(blocks, factors, strict=True))
    return Parameters(tuple(weights), features, bias)


def from_parameters(problem: Problem, columns: Columns, parameters: Parameters) -> Point:
    """Return the coordinates of `parameters` (of the nearest point of the norm balls, if they lie outside)."""
    scale = scales(problem, columns)
    blocks = [w / s for w, s in zip(parameters.weights, scale.weights, strict=True)]
    features = parameters.features / scale.features
    blocks.append(jnp.maximum(features, 0) if problem.nonnegative_features else features)
    slack = None
    if isinstance(problem.regularizer, NormBall):
        slack = jnp.stack([jnp.sqrt(jnp.maximum(1 - jnp.sum(block**2), 0)) for block in blocks])
    bias = None if parameters.bias is None or scale.bias is None else parameters.bias / scale.bias
    features = jnp.sqrt(blocks[-1]) if problem.nonnegative_features else blocks[-1]
    return Point(tuple(blocks[:-1]), features, bias, slack)


def reference_norms(problem: Problem, columns: Columns) -> Point:
    """Return a norm per block that is typical of the problem's minimisers, from the problem alone.

    Squared error without penalties has logits Y, whose columns have norms sqrt(n_k); split evenly
    over q factors a block has squared norm sum_k n_k^{1/q}. Zero for the norm balls, whose
    coordinates have no scale of their own.
    """
    counts = jnp.asarray(problem.class_counts.per_class, columns.counts.dtype)
    block = jnp.sqrt(jnp.sum(counts ** (1 / (problem.num_layers + 1))))
    slack = None
    if isinstance(problem.regularizer, NormBall):
        block, slack = jnp.zeros_like(block), jnp.zeros_like(block)
    unit = scales(problem, columns).bias
    bias = None if unit is None else 1 / unit
    features = jnp.sqrt(block) if problem.nonnegative_features else block
    return Point((block,) * problem.num_layers, features, bias, slack)


def typical_inputs(problem: Problem, columns: Columns) -> tuple[Float[Array, "n 1"], ...]:
    """Return about how large the inputs of each hidden layer are at the problem's minimisers, one number per column.

    Squared error without penalties has logits Y: classes that are orthogonal at every layer, and an
    entry sqrt(n_k) per class in the balanced logits, of which each of the q factors has its share
    n_k^{1/2q}. The norm balls have factors of norm one, shared by K classes.
    """
    scale = scales(problem, columns)
    if isinstance(problem.regularizer, NormBall):
        share = jnp.full_like(columns.counts, problem.num_classes**-0.5)
    else:
        share = columns.class_counts ** (0.5 / (problem.num_layers + 1))
    size, found = (
        scale.features * (share * jnp.sqrt(columns.counts / columns.class_counts))[:, None],
        [],
    )
    for factor in scale.weights[:-1]:
        size = size * factor * share[:, None]
        found.append(size)
    return tuple(found)
