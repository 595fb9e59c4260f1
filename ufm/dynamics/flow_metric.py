"""The metric of the flows in this package.

Papers train all N samples by gradient descent, h_i' = -dF/dh_i. Equal samples of a class stay
equal, and the gradient dF/dh_k of the objective over classes is n_k dF/dh_i. So the same flow at
class resolution is

    W_l' = -dF/dW_l,    h_k' = -(1/n_k) dF/dh_k,    b' = -dF/db,

the gradient flow of the metric ||dW||^2 + sum_k n_k ||dh_k||^2 + ||db||^2.

Flow coordinates replace the features by u_i = sqrt(c_i) h_i, with c_i the count of feature row i:
n_k for a class, 1 for a sample. In flow coordinates the flow is the plain gradient flow, and that
is what is integrated. Norms, angles and gradient norms are measured in flow coordinates everywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm._support import rebuilt
from ufm.problems import Parameters, Problem, Samples

__all__ = ["from_flow_coordinates", "to_flow_coordinates", "with_penalties"]


def from_flow_coordinates(point: Parameters, samples: Samples) -> Parameters:
    """Return parameters with features H = U / sqrt(counts).

    Args:
        point: Flow coordinates, with U of shape (rows, d) in the place of the features.
        samples: The rows, with their counts.
    """
    return point._replace(features=point.features / jnp.sqrt(samples.counts)[:, None])


def to_flow_coordinates(parameters: Parameters, samples: Samples) -> Parameters:
    """Return flow coordinates, with U = sqrt(counts) H in the place of the features.

    Args:
        parameters: Parameters with features H of shape (rows, d).
        samples: The rows, with their counts.
    """
    return parameters._replace(features=parameters.features * jnp.sqrt(samples.counts)[:, None])


def with_penalties(problem: Problem, factor: Float[Array, ""]) -> Problem:
    """Return the problem with all penalties multiplied by a factor.

    A factor of zero is allowed here, unlike zero penalties in a stated `Problem`.

    Args:
        problem: A problem with weight decay.
        factor: The factor, not negative.
    """
    penalties = jax.tree.map(lambda leaf: jnp.asarray(leaf) * factor, problem.regularizer)
    return rebuilt(problem, regularizer=penalties)
