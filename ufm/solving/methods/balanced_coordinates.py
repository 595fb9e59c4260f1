r"""Coordinates in which all blocks have the same penalty, and norm balls are met by construction.

Weight decay. With q factors and Lambda = (prod of all q penalties)^{1/q}, the scales s_l =
sqrt(Lambda / lambda_l) multiply to one. So W_l = s_l V_l and sqrt(c_i) h_i = s_H u_i (c_i the count
of row i) leave the logits unchanged, because the ReLU is positively homogeneous. All penalties
become the single (Lambda/2)(sum_l ||V_l||^2 + ||U||^2). Every critical point is balanced in these
coordinates: all blocks have the same norm. That suits quasi-Newton methods.

Norm balls. A block bounded by ||W|| <= r is W = r V / sqrt(||V||^2 + s^2) with one slack number s.
The map covers the interior of the ball (s != 0) and its boundary (s = 0), and it is smooth. So a
method for unconstrained problems meets the constraint to rounding at every iterate.

Non-negative features. They are squares, u = x^2, entry by entry. The map is smooth and leaves no
bound. Every entry x = 0 is a stationary point of the square. The curvature there is positive if the
multiplier of the entry has the right sign. Otherwise it is negative, and a second-order method
moves away.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.problems import Parameters, Problem, Samples

__all__ = [
    "Point",
    "from_parameters",
    "reference_norms",
    "scales",
    "to_parameters",
    "typical_inputs",
    "typical_norm",
]


class Point(NamedTuple):
    """Balanced coordinates of `Parameters`.

    Attributes:
        weights: The matrices V_1, ..., V_L, of the shapes of the W_l.
        features: The rows u_i, or their roots x_i where features are non-negative, shape (n, d).
        bias: Shape (K,), or None.
        slack: One number per block (layers, then features), shape (L + 1,); None without slacks.
    """

    weights: tuple[Float[Array, "out in"], ...]
    features: Float[Array, "n d"]
    bias: Float[Array, " K"] | None
    slack: Float[Array, " q"] | None


def scales(problem: Problem, samples: Samples) -> Parameters:
    """Return the factors between parameters and coordinates, each broadcastable to its block.

    With slack numbers these are the radii. The caller still divides by the norm of the block.
    """
    dtype = samples.counts.dtype
    sizes = jnp.asarray(problem.regularizer.block_sizes(problem.layer_dims[1:]), dtype)
    per_row = sizes[-1] / jnp.sqrt(samples.feature_weights)
    if not problem.use_bias:
        return Parameters(tuple(sizes[:-1]), per_row[:, None], None)
    # Weight decay: the bias enters the logits with weight 1, and a factor with singular values
    # n^{1/4}. This scale makes their curvatures similar.
    # Norm balls: a block has norm one, and a bias with entries of order one has norm sqrt(K). If
    # its coordinates were much larger than those of the blocks, steps in the bias would change the
    # norms that the map divides by, and shrink the blocks towards zero.
    mean_count = jnp.asarray(problem.num_samples, dtype) / problem.num_outputs
    even = mean_count**0.25 / jnp.sqrt(mean_count * problem.num_outputs)
    root = np.sqrt(problem.num_outputs)
    bias = jnp.full_like(even, root) if problem.regularizer.bounded else even
    return Parameters(tuple(sizes[:-1]), per_row[:, None], bias)


def to_parameters(problem: Problem, samples: Samples, point: Point) -> Parameters:
    """Return the parameters at `point`."""
    scale = scales(problem, samples)
    bias = None if point.bias is None or scale.bias is None else point.bias * scale.bias
    features = problem.feature_cone.from_coordinates(point.features)
    blocks = problem.regularizer.contained((*point.weights, features), point.slack)
    factors = (*scale.weights, scale.features)
    *weights, features = (block * factor for block, factor in zip(blocks, factors, strict=True))
    return Parameters(tuple(weights), features, bias)


def from_parameters(problem: Problem, samples: Samples, parameters: Parameters) -> Point:
    """Return the coordinates of `parameters`, or of the nearest feasible point."""
    scale = scales(problem, samples)
    weights = tuple(w / s for w, s in zip(parameters.weights, scale.weights, strict=True))
    features = problem.feature_cone.project(parameters.features / scale.features)
    slack = problem.regularizer.slack((*weights, features))
    bias = None if parameters.bias is None or scale.bias is None else parameters.bias / scale.bias
    return Point(weights, problem.feature_cone.to_coordinates(features), bias, slack)


def reference_norms(problem: Problem, samples: Samples) -> Point:
    """Return a typical norm of every block at the problem's minimisers, from the problem alone.

    It is zero for bounded unknowns, whose coordinates have no scale of their own.
    """
    regularizer, block = problem.regularizer, typical_norm(problem, samples)
    block = jnp.zeros_like(block) if regularizer.bounded else block
    unit = scales(problem, samples).bias
    return Point(
        (block,) * problem.num_layers,
        problem.feature_cone.to_coordinates(block),
        None if unit is None else 1 / unit,
        jnp.zeros_like(block) if regularizer.has_slack else None,
    )


def typical_norm(problem: Problem, samples: Samples) -> Float[Array, ""]:
    """Return about the norm of every block at the problem's minimisers, in balanced coordinates."""
    # The sum of each output's squared targets: n_k for one-hot classes.
    sums = jnp.sum(samples.counts[:, None] * samples.targets**2, axis=0)
    num_factors = problem.num_layers + 1
    shares = problem.regularizer.typical_shares(sums, num_factors, problem.num_outputs)
    return jnp.sqrt(jnp.sum(shares**2))


def typical_inputs(problem: Problem, samples: Samples) -> tuple[Float[Array, "n 1"], ...]:
    """Return an estimate of the size of each hidden layer's inputs at the problem's minimisers.

    It assumes that classes are orthogonal at every layer, with one entry each in every balanced
    factor (`Regularizer.typical_shares`).

    Returns:
        One array per hidden layer, one number per row.
    """
    scale = scales(problem, samples)
    sums = samples.counts / samples.shares * jnp.sum(samples.targets**2, axis=1)
    share = problem.regularizer.typical_shares(sums, problem.num_layers + 1, problem.num_outputs)
    size = scale.features * (share * jnp.sqrt(samples.shares))[:, None]
    found = []
    for factor in scale.weights[:-1]:
        size = size * factor * share[:, None]
        found.append(size)
    return tuple(found)
