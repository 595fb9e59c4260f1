r"""The distance of a Gram matrix of weights from the shape that regression collapse gives it.

At the minimum of the unconstrained features model of regression W W^T is a multiple of
[Sigma^{1/2} - sqrt(c) I]_+, with Sigma the covariance of the targets and c = lambda_H lambda_W
(Andriopoulos et al. 2024, who assume that all modes are alive). The distance is the least over the
unknown c, which is found in closed form.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.geometry import frobenius_norm

__all__ = ["CovarianceFit", "covariance_fit"]

TIED = 1e-10  # eigenvalues this close, relative to the largest, have no directions of their own


class CovarianceFit(NamedTuple):
    """The nearest matrix of the family, and how far it is.

    Attributes:
        distance: Frobenius distance of the two matrices, each divided by its norm; in [0, 2].
        gamma: The constant c of the nearest one, in units of Sigma.
        alive: The number of modes that the nearest one has.
    """

    distance: float
    gamma: float
    alive: int


def _own_directions(
    gram: np.ndarray, spectrum: np.ndarray, vectors: np.ndarray, modes: int
) -> np.ndarray:
    """Return eigenvectors of Sigma, turned where the last of the modes is tied with the next.

    There any mix of the tied directions is a minimum of the model, so that the one that suits the
    Gram matrix is taken.
    """
    if modes == len(spectrum):
        return vectors
    tied = np.abs(spectrum - spectrum[modes - 1]) <= TIED * spectrum[0]
    mixed = vectors[:, tied]
    turns = np.linalg.eigh(mixed.T @ gram @ mixed)[1][:, ::-1]
    turned = vectors.copy()
    turned[:, tied] = mixed @ turns
    return turned


def _candidates(
    parts: np.ndarray, roots: np.ndarray, last: int, soft: bool
) -> Float[np.ndarray, " C"]:
    """Return shifts among which the nearest one is.

    Where k modes are alive, the cosine is (a - g b) / sqrt(q - 2 g p + k g^2) as a function of the
    shift g, with one stationary point. The ends of every such range are candidates too.
    """
    found = [0.0]
    for k in range(1 if soft else last, last + 1):
        low = roots[k] if k < last else 0.0
        high = roots[k - 1]
        a, b = parts[:k] @ roots[:k], parts[:k].sum()
        p, q = roots[:k].sum(), roots[:k] @ roots[:k]
        slope = b * p - k * a
        if slope != 0:
            found.append(float(np.clip((b * q - a * p) / slope, low, high)))
        found += [low] if soft else [low, high]
    return np.array(found)


def covariance_fit(
    gram: Float[np.ndarray, "n n"],
    spectrum: Float[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n n"],
    *,
    soft: bool,
    modes: int | None = None,
) -> CovarianceFit:
    r"""Return the nearest of the matrices Sigma^{1/2} - sqrt(gamma) I, or their positive parts.

    Args:
        gram: W W^T, (n, n).
        spectrum: Eigenvalues of Sigma, not negative, in falling order, (n,).
        vectors: Its eigenvectors, in columns, (n, n).
        soft: Whether to take the positive part, which leaves modes out whose eigenvalue is below
            gamma; then gamma is in [0, lambda_max), else in [0, lambda_min].
        modes: The number of modes that there is room for, min(n, d); the smallest are left out.
            Only for the positive part. All n by default.

    Returns:
        The distance, the gamma of the nearest one, and its number of modes. A Gram matrix that is
        zero has distance 0 from the positive part at gamma = lambda_max, and 1 from the others.
    """
    n = len(spectrum)
    last = n if modes is None or not soft else min(modes, n)
    roots = np.sqrt(spectrum)
    size = float(frobenius_norm(gram))
    if size == 0:
        return CovarianceFit(0.0, float(spectrum[0]), 0) if soft else CovarianceFit(1.0, 0.0, n)
    own = _own_directions(gram, spectrum, vectors, last)
    turned = own.T @ gram @ own / size
    parts = np.diagonal(turned)
    best = CovarianceFit(np.inf, 0.0, n)
    for shift in _candidates(parts, roots, last, soft):
        shape = roots - shift
        if soft:
            shape = np.where(np.arange(n) < last, np.maximum(shape, 0.0), 0.0)
        length = np.sqrt(shape @ shape)
        if length <= np.finfo(float).eps * roots[0]:
            continue
        distance = float(frobenius_norm(turned - np.diag(shape / length)))
        if distance < best.distance:
            best = CovarianceFit(distance, float(shift**2), int(np.sum(shape > TIED * roots[0])))
    return best
