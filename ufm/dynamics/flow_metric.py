r"""The metric of all flows here, and where they start.

Papers train all N samples by gradient descent, h_i' = -dF/dh_i. Samples of a class that are equal stay equal, and dF/dh_k of the objective over
classes is n_k dF/dh_i: at class resolution the same flow is

    W_l' = -dF/dW_l,    h_k' = -(1/n_k) dF/dh_k,    b' = -dF/db,

the gradient flow of the metric ||dW||^2 + sum_k n_k ||dh_k||^2 + ||db||^2. In u_i = sqrt(c_i) h_i, c_i the count of column i (n_k for a
class, 1 for a sample), it is the plain gradient flow, and that is what is integrated; norms, angles and gradients are meant in these
coordinates everywhere.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.problem import Parameters, Problem
from ufm.regularizers import WeightDecay
from ufm.resolutions import Columns

__all__ = ["from_flow_coordinates", "to_flow_coordinates", "with_penalties"]


def from_flow_coordinates(point: Parameters, columns: Columns) -> Parameters:
    """Return the parameters whose features are U / sqrt(counts)."""
    return point._replace(features=point.features / jnp.sqrt(columns.counts)[:, None])


def to_flow_coordinates(parameters: Parameters, columns: Columns) -> Parameters:
    """Return the parameters with U = sqrt(counts) H in the place of the features."""
    return parameters._replace(features=parameters.features * jnp.sqrt(columns.counts)[:, None])


def with_penalties(problem: Problem, factor: Float[Array, ""]) -> Problem:
    """Return the problem with all penalties times `factor`, zero included, which a `Problem` as it is stated does not allow."""
    decay = problem.regularizer
    assert isinstance(decay, WeightDecay)
    leaves = lambda p: (p.regularizer.weights, p.regularizer.features, p.regularizer.bias)  # noqa: E731
    return eqx.tree_at(leaves, problem, tuple(jnp.asarray(leaf) * factor for leaf in leaves(problem)))
