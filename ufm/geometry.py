r"""Simplex equiangular tight frames, orthogonal frames, and how far a set of vectors is from them.

K vectors in dimension d are the rows of a (K, d) matrix V, and their Gram matrix is G = V V^T, (K,
K). Everything here is measured on G, so that a rotation of the d coordinates changes nothing.

Three rules say what comes back:

- The constructors (`simplex_etf`, `orthogonal_frame`, `centering_matrix`) run on the host and
  return NumPy float64.
- All other functions are pure and can be passed to `jit`, `vmap` and `grad`: with a JAX array,
  traced or not, among their arguments they compute with JAX, in its dtype.
- Without one (NumPy arrays, lists, numbers) they compute with NumPy in float64, under every
  JAX setting. So results computed from a float64 result stay float64.

Two kinds of numbers say how far a Gram matrix is from another:

- An error (`gram_error`, `etf_error`, `orthogonal_frame_error`) is relative to a target of a given
  scale: ||G - T|| / ||T||.
- A distance (`shape_distance`, `etf_distance`, `orthogonal_frame_distance`,
  `general_orthogonal_frame_distance`) does not see the scale of G.

Zero vectors and zero matrices are valid and have documented values, and the gradient of a norm at
zero is zero. NaN stays NaN.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, check_numbers, in_double_precision

__all__ = [
    "centering_matrix",
    "centred_basis",
    "cosines",
    "etf_distance",
    "etf_error",
    "frobenius_norm",
    "general_orthogonal_frame_distance",
    "gram",
    "gram_error",
    "normalise",
    "normalise_rows",
    "numerical_rank",
    "orthogonal_frame",
    "orthogonal_frame_distance",
    "orthogonal_frame_error",
    "orthogonal_frame_gram",
    "shape_distance",
    "simplex_etf",
    "simplex_etf_gram",
    "stable_rank",
    "vector_norms",
]

AnyArray = Array | np.ndarray

quiet = np.errstate(
    all="ignore"
)  # NaN and infinity pass through NumPy as through JAX, without a warning


def check_not_masked(name: str, *values: Any) -> None:
    """Refuse masked arrays that hide a value, which NumPy would read as if it were not hidden."""
    hidden = sum(
        int(np.ma.count_masked(value)) for value in values if isinstance(value, np.ma.MaskedArray)
    )
    if hidden:
        raise ArgumentError(
            name,
            f"must not be masked, got a masked array with {hidden} values hidden; leave them "
            "out, or fill them in with `.filled(...)`",
        )


def float_arrays(*values: Any) -> tuple[Any, ...]:
    """Return a namespace, and arrays for it.

    They are JAX's, in the dtype of the first JAX array, or NumPy's, in float64.
    """
    check_not_masked("array", *values)
    for value in values:
        if isinstance(value, jax.Array):
            floating = jnp.issubdtype(value.dtype, jnp.floating)
            dtype = value.dtype if floating else jnp.result_type(float)
            return jnp, *(jnp.asarray(other, dtype) for other in values)
    return np, *(np.asarray(value, np.float64) for value in values)


def _count(name: str, value: int, minimum: int) -> int:
    """Return `value` as an integer of at least `minimum`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ArgumentError(name, "must be an integer", value) from None
    if count < minimum:
        raise ArgumentError(name, f"must be at least {minimum}, got {count}")
    return count


def _isometry(key: PRNGKeyArray, dim: int, rank: int) -> Float[np.ndarray, "dim rank"]:
    """Return orthonormal columns, drawn from the Haar measure of the Stiefel manifold."""
    Q, R = np.linalg.qr(np.asarray(jax.random.normal(key, (dim, rank), jnp.float64)))
    return Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)


def centred_basis(num_vectors: int) -> Float[np.ndarray, "K K-1"]:
    """Return orthonormal columns that span the vectors of mean zero: Q Q^T = I - J/K."""
    j = np.arange(1.0, num_vectors)
    upper = np.triu(np.ones((num_vectors, num_vectors - 1)))
    subdiagonal = np.eye(num_vectors, num_vectors - 1, -1) * j
    return (upper - subdiagonal) / np.sqrt(j * (j + 1))


def centering_matrix(num_vectors: int) -> Float[np.ndarray, "K K"]:
    """Return the projection I - J/K, which subtracts from K rows their mean.

    J is the all-ones matrix.

    Raises:
        ValueError: `num_vectors` is not a positive integer.
    """
    K = _count("num_vectors", num_vectors, 1)
    return np.eye(K) - 1.0 / K


@in_double_precision
def simplex_etf(
    num_vectors: int, dim: int | None = None, scale: float = 1.0, key: PRNGKeyArray | None = None
) -> Float[np.ndarray, "K dim"]:
    r"""Return a simplex equiangular tight frame.

    Its K vectors of norm `scale` are as far apart as they can be:

    $$V V^T = s^2 \frac{K}{K-1} \left(I - \tfrac{1}{K} J\right), \qquad
    \cos(v_j, v_k) = -\frac{1}{K-1}$$

    Args:
        num_vectors: K, at least 2.
        dim: The dimension, at least K - 1; K by default, where the matrix is sqrt(K/(K-1)) (I -
            J/K). Dimensions beyond K are zero unless `key` is given.
        scale: The norm s of every vector.
        key: Draws a rotation uniformly at random; without it the frame is always the same.

    Returns:
        The vectors, in rows; NumPy float64.

    Raises:
        ValueError: Fewer than two vectors, too small a dimension, or a negative or non-finite
            scale.

    Reference:
        Papyan, Han and Donoho (2020), Prevalence of neural collapse during the terminal phase of
        deep learning training, PNAS, whose simplex ETF has vectors of unit norm (`scale=1`).

    >>> simplex_etf(2, dim=1)
    array([[ 1.],
           [-1.]])
    """
    K = _count("num_vectors", num_vectors, 2)
    d = K if dim is None else _count("dim", dim, 1)
    if d < K - 1:
        raise ArgumentError(
            "dim",
            f"must be at least num_vectors - 1 = {K - 1} to hold a simplex of {K} vectors, "
            f"got {d}; take more dimensions or fewer vectors",
        )
    check_numbers("scale", scale, several=True, lower=0.0)
    norm = float(scale) * np.sqrt(K / (K - 1))
    if key is not None:
        return norm * centred_basis(K) @ _isometry(key, d, K - 1).T
    frame = np.zeros((K, d))
    frame[:, : min(d, K)] = centred_basis(K) if d == K - 1 else centering_matrix(K)
    return norm * frame


@in_double_precision
def orthogonal_frame(
    num_vectors: int,
    dim: int | None = None,
    norms: ArrayLike = 1.0,
    key: PRNGKeyArray | None = None,
) -> Float[np.ndarray, "K dim"]:
    r"""Return an orthogonal frame: K mutually orthogonal vectors of the given norms.

    $$V V^T = \mathrm{diag}(r_1^2, \ldots, r_K^2).$$

    Equal norms give the orthogonal frame (OF) of a balanced problem, unequal ones the general
    orthogonal frame (GOF) of an imbalanced one.

    Args:
        num_vectors: K, at least 1.
        dim: The dimension, at least the number of non-zero norms; K by default.
        norms: One norm for all vectors, or K of them. Zero is allowed and needs no dimension.
        key: Draws a rotation uniformly at random; without it the non-zero vectors lie along the
            first axes, in order.

    Returns:
        The vectors, in rows; NumPy float64.

    Raises:
        ValueError: No vector, too small a dimension, norms of another shape, or a negative or
            non-finite norm.

    Reference:
        Tirer and Bruna (2022), Extended unconstrained features model for exploring deep neural
        collapse, ICML (OF); Dang et al. (2023), Neural collapse in deep linear networks, ICML
        (GOF).

    >>> orthogonal_frame(3, dim=2, norms=[2.0, 0.0, 1.0])
    array([[2., 0.],
           [0., 0.],
           [0., 1.]])
    """
    K = _count("num_vectors", num_vectors, 1)
    r = np.asarray(norms, np.float64)
    if r.shape not in ((), (K,)):
        raise ArgumentError(
            "norms",
            f"must be one number or of shape ({K},), one for each vector, got shape {r.shape}",
        )
    check_numbers("norms", r, several=True, lower=0.0)
    r = np.broadcast_to(r, (K,))
    (nonzero,) = np.nonzero(r)
    rank = len(nonzero)
    d = K if dim is None else _count("dim", dim, 1)
    if d < rank:
        raise ArgumentError(
            "dim",
            f"must be at least {rank} to hold as many orthogonal vectors of non-zero norm, "
            f"got {d}; take more dimensions or fewer vectors",
        )
    frame = np.zeros((K, d))
    frame[nonzero, :rank] = np.diag(r[nonzero])
    if key is not None:
        frame = frame[:, :rank] @ _isometry(key, d, rank).T
    return frame


def simplex_etf_gram(
    num_vectors: int, scale: float | Float[AnyArray, ""] = 1.0
) -> Float[Array, "K K"]:
    r"""Return the Gram matrix of a simplex equiangular tight frame of vectors of norm `scale`.

    $$G = s^2 \frac{K}{K-1} \left(I - \tfrac{1}{K} J\right)$$

    The diagonal is s^2 and every other entry -s^2/(K-1). Papers that write the frame as a multiple
    of the projection, V V^T = m (I - J/K), have s = sqrt(m (K-1)/K).

    Args:
        num_vectors: K, at least 2.
        scale: The norm s of every vector.

    Returns:
        The matrix, (K, K).

    Raises:
        ValueError: Fewer than two vectors, or a negative or non-finite scale.
    """
    K = _count("num_vectors", num_vectors, 2)
    check_numbers("scale", scale, several=True, lower=0.0)
    xp, s = float_arrays(scale)
    return s**2 * (K / (K - 1)) * (xp.eye(K, dtype=s.dtype) - 1.0 / K)


def orthogonal_frame_gram(norms: Sequence[float] | Real[AnyArray, " K"]) -> Float[Array, "K K"]:
    """Return the Gram matrix diag(r_1^2, ..., r_K^2) of an orthogonal frame.

    Args:
        norms: The norms r_k, (K,); zero is allowed.

    Returns:
        The matrix, (K, K).

    Raises:
        ValueError: `norms` is not one-dimensional, or one is negative or not finite.
    """
    xp, r = float_arrays(norms)
    if r.ndim != 1:
        raise ArgumentError(
            "norms", f"must be of shape (K,), one for each vector, got shape {r.shape}"
        )
    check_numbers("norms", r, several=True, lower=0.0)
    return xp.diag(r**2)


def _norm(xp: Any, array: Any, axis: int | None = None) -> Any:
    """Return the 2-norm over an axis (or all) with the axis kept; its gradient at zero is zero."""
    square = xp.sum(array**2, axis=axis, keepdims=True)
    return xp.where(square == 0, 0.0, xp.sqrt(xp.where(square == 0, 1.0, square)))  # NaN stays NaN


def _direction(xp: Any, array: Any, axis: int | None = None) -> Any:
    """Return the array divided by its 2-norm over an axis (or all); zero where it is zero."""
    norm = _norm(xp, array, axis)
    return array / xp.where(norm == 0, 1.0, norm)


def _singular_values(xp: Any, matrix: Any) -> Any:
    """Return the singular values in falling order; NaN for a matrix that is not finite."""
    if xp is np and not np.all(np.isfinite(matrix)):
        return np.full(min(matrix.shape), np.nan)
    return xp.linalg.svd(matrix, compute_uv=False)


@quiet
def vector_norms(vectors: Float[AnyArray, "K d"]) -> Float[Array, " K"]:
    """Return the 2-norm of every row; the gradient at a zero row is zero."""
    xp, V = float_arrays(vectors)
    return _norm(xp, V, axis=1)[:, 0]


@quiet
def frobenius_norm(matrix: Float[AnyArray, "m n"]) -> Float[Array, ""]:
    """Return the Frobenius norm; its gradient at a zero matrix is zero."""
    xp, A = float_arrays(matrix)
    return _norm(xp, A)[0, 0]


@quiet
def normalise(matrix: Float[AnyArray, "m n"]) -> Float[Array, "m n"]:
    """Return the matrix divided by its Frobenius norm; a zero matrix stays zero."""
    xp, A = float_arrays(matrix)
    return _direction(xp, A)


@quiet
def normalise_rows(vectors: Float[AnyArray, "K d"]) -> Float[Array, "K d"]:
    """Return every row divided by its 2-norm; a zero row stays zero."""
    xp, V = float_arrays(vectors)
    return _direction(xp, V, axis=1)


@quiet
def gram(vectors: Float[AnyArray, "K d"]) -> Float[Array, "K K"]:
    """Return the Gram matrix V V^T of the rows of V."""
    _, V = float_arrays(vectors)
    return V @ V.T


def cosines(vectors: Float[AnyArray, "K d"]) -> Float[Array, "K K"]:
    """Return the cosines of the angles between rows.

    A zero vector has no direction: its row and its column are 0, the diagonal included, and never
    NaN. Elsewhere the diagonal is 1 up to rounding.
    """
    return gram(normalise_rows(vectors))


@quiet
def gram_error(
    gram_matrix: Float[AnyArray, "K K"], target: Float[AnyArray, "K K"]
) -> Float[Array, ""]:
    r"""Return the relative error of a Gram matrix against a target, scale included.

    $$\|G - T\|_F / \|T\|_F$$

    Args:
        gram_matrix: The matrix G found, (K, K).
        target: The matrix T predicted, (K, K).

    Returns:
        The error. For a zero target: 0 where G is zero as well, else infinity.
    """
    xp, G, T = float_arrays(gram_matrix, target)
    error, size = _norm(xp, G - T)[0, 0], _norm(xp, T)[0, 0]
    against_zero = xp.where(error == 0, 0.0, xp.inf)
    return xp.where(size == 0, against_zero, error / xp.where(size == 0, 1.0, size))


@quiet
def shape_distance(
    gram_matrix: Float[AnyArray, "K K"], target: Float[AnyArray, "K K"]
) -> Float[Array, ""]:
    r"""Return the distance of two Gram matrices, each divided by its Frobenius norm.

    $$\left\| \frac{G}{\|G\|_F} - \frac{T}{\|T\|_F} \right\|_F$$

    It lies in [0, sqrt 2] for positive semidefinite matrices. With c the cosine of G and T in the
    Frobenius inner product it is sqrt(2 - 2c); the best fit over the scale alone, min_s ||G - s T||
    / ||G||, is sqrt(1 - c^2).

    Args:
        gram_matrix: The matrix G found, (K, K).
        target: The matrix T predicted, (K, K).

    Returns:
        The distance. A zero matrix stays zero when it is normalised: its distance to any other
        matrix is 1.
    """
    xp, G, T = float_arrays(gram_matrix, target)
    return _norm(xp, _direction(xp, G) - _direction(xp, T))[0, 0]


def etf_error(
    gram_matrix: Float[AnyArray, "K K"], scale: float | Float[AnyArray, ""]
) -> Float[Array, ""]:
    r"""Return the relative error against a simplex ETF of vectors of norm `scale`.

    $$\|G - T\|_F / \|T\|_F, \qquad T = s^2 \tfrac{K}{K-1} (I - J/K)$$

    Args:
        gram_matrix: The Gram matrix G of K vectors, (K, K), for instance `gram(vectors)`.
        scale: The norm s that every vector should have.
    """
    _, G, s = float_arrays(gram_matrix, scale)
    return gram_error(G, simplex_etf_gram(G.shape[0], s))


@quiet
def etf_distance(gram_matrix: Float[AnyArray, "K K"]) -> Float[Array, ""]:
    r"""Return the distance of a Gram matrix from a simplex ETF of any scale.

    $$\left\| \frac{G}{\|G\|_F} - \frac{I - J/K}{\sqrt{K-1}} \right\|_F$$

    Args:
        gram_matrix: A Gram matrix of K vectors, or any product that should be a multiple of I -
            J/K.

    Returns:
        The distance; 1 for a zero matrix.

    Reference:
        The NC2 and NC3 metrics of Zhu et al. (2021), A geometric analysis of neural collapse with
        unconstrained features, NeurIPS.
    """
    K = np.shape(gram_matrix)[0]
    xp, G, unit = float_arrays(gram_matrix, centering_matrix(K) / max(K - 1, 1) ** 0.5)
    return _norm(xp, _direction(xp, G) - unit)[0, 0]


def orthogonal_frame_error(
    gram_matrix: Float[AnyArray, "K K"],
    norms: float | Sequence[float] | Real[AnyArray, ""] | Real[AnyArray, " K"],
) -> Float[Array, ""]:
    r"""Return the relative error against an orthogonal frame of given norms.

    $$\|G - T\|_F / \|T\|_F, \qquad T = \mathrm{diag}(r_1^2, \ldots, r_K^2)$$

    Args:
        gram_matrix: The Gram matrix G of K vectors, (K, K).
        norms: The norm that every vector should have, or K of them (the general orthogonal frame).
    """
    xp, G, r = float_arrays(gram_matrix, norms)
    return gram_error(G, orthogonal_frame_gram(xp.broadcast_to(r, G.shape[:1])))


@quiet
def orthogonal_frame_distance(gram_matrix: Float[AnyArray, "K K"]) -> Float[Array, ""]:
    r"""Return the distance of a Gram matrix from an orthogonal frame of equal norms, of any scale.

    $$\left\| \frac{G}{\|G\|_F} - \frac{I}{\sqrt{K}} \right\|_F$$

    Args:
        gram_matrix: A Gram matrix of K vectors, or any product that should be a multiple of the
            identity.

    Returns:
        The distance; 1 for a zero matrix.
    """
    K = np.shape(gram_matrix)[0]
    xp, G, unit = float_arrays(gram_matrix, np.eye(K) / K**0.5)
    return _norm(xp, _direction(xp, G) - unit)[0, 0]


def general_orthogonal_frame_distance(gram_matrix: Float[AnyArray, "K K"]) -> Float[Array, ""]:
    r"""Return the distance of a Gram matrix from an orthogonal frame of any norms.

    $$\|G - \mathrm{diag}(G)\|_F / \|\mathrm{diag}(G)\|_F$$

    Args:
        gram_matrix: The Gram matrix G of K vectors, (K, K).

    Returns:
        The mass off the diagonal relative to that on it: 0 for orthogonal vectors of any
        norms (zero included), and sqrt(K - 1) for equal vectors.
    """
    xp, G = float_arrays(gram_matrix)
    return gram_error(G, xp.diag(xp.diagonal(G)))


def numerical_rank(matrix: Float[AnyArray, "m n"], rtol: float | None = None) -> Int[Array, ""]:
    """Return the number of singular values above `rtol` times the largest.

    Args:
        matrix: Any matrix, (m, n).
        rtol: The relative tolerance; max(m, n) times the machine epsilon of the matrix's dtype by
            default. The singular values of a Gram matrix are the squares of those of its vectors.

    Returns:
        The rank; 0 for a zero matrix, and for one that is not finite.
    """
    xp, A = float_arrays(matrix)
    values = _singular_values(xp, A)
    relative = max(A.shape) * float(xp.finfo(A.dtype).eps) if rtol is None else rtol
    return xp.sum(values > xp.asarray(relative, A.dtype) * values[0])


@quiet
def stable_rank(matrix: Float[AnyArray, "m n"]) -> Float[Array, ""]:
    r"""Return the stable rank $\|A\|_F^2 / \|A\|_2^2$, between 1 and the rank; 0 for a zero matrix.

    A simplex ETF of K vectors has K - 1 and an orthogonal frame of equal norms K, for the vectors
    and for the Gram matrix alike.
    """
    xp, A = float_arrays(matrix)
    values = _singular_values(xp, _direction(xp, A))
    return xp.sum(values**2) / xp.where(values[0] == 0, 1.0, values[0]) ** 2
