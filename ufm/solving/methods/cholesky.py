"""Factorisation of positive definite matrices of a few hundred rows, without LAPACK's threads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["inverse_factor"]

LEAF = 48  # most rows that LAPACK factorises at once; no measurement of it is recorded


def inverse_factor(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """Return the inverse of the Cholesky factor, by recursive halving.

    Matrix products replace one large factorisation. On busy cores LAPACK's threads wait for one
    another, a hundred times longer than a factorisation of this size takes.
    """
    size = matrix.shape[-1]
    if size <= LEAF:
        factor = jnp.linalg.cholesky(matrix)
        identity = jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), matrix.shape)
        return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    half = size // 2
    first = inverse_factor(matrix[..., :half, :half])
    below = matrix[..., half:, :half] @ first.mT
    second = inverse_factor(matrix[..., half:, half:] - below @ below.mT)
    corner = -second @ (below @ first)
    zero = jnp.zeros((*matrix.shape[:-2], half, size - half), matrix.dtype)
    return jnp.concatenate(
        [jnp.concatenate([first, zero], axis=-1), jnp.concatenate([corner, second], axis=-1)],
        axis=-2,
    )
