r"""Where a dual constraint is violated: the atom that leads out, and a tighter bound where none is found.

For B = G G^T (class level, G = D^{1/2} U) the dual norm squared is max <h, B h> over unit vectors
h, and over h >= 0 for non-negative features. The maximiser h and w = -G^T h / ||G^T h|| form the
atom w h^T along which the objective falls to first order. For h >= 0 the maximum is NP-hard in
general: monotone projected power iteration from many starts bounds it from below, and the doubly
non-negative relaxation max <B, X> over X psd, X >= 0, tr X = 1 from above (exact for K <= 4). Its
dual, min over S >= 0 of lambda_max(B + S), turns any S that the iteration reaches into a rigorous
bound.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Atom", "relaxed_norm", "violating_atom"]

POWER_STEPS = 300
MAX_STARTS = 64
PATIENCE = 1000


class Atom(NamedTuple):
    """An atom w h^T: weights (K,) w and features (K,) h, unit vectors, and its gain ||G^T h||."""

    weights: np.ndarray
    features: np.ndarray
    gain: float


def violating_atom(dual: np.ndarray, nonnegative: bool) -> Atom:
    """Return the atom of largest gain found: the top singular pair, or the best of many starts for h >= 0.

    Args:
        dual: (K, K), the weighted dual rows G.
        nonnegative: whether h >= 0 is required.
    """
    if not nonnegative:
        left, values, right = np.linalg.svd(dual)
        return Atom(-right[0], left[:, 0], float(values[0]))
    size = float(np.max(np.abs(dual))) or 1.0
    dual = dual / size
    B = dual @ dual.T
    eigenvectors = np.linalg.eigh(B)[1][:, -8:]
    largest = np.argsort(np.diagonal(B))[::-1][:MAX_STARTS]
    starts = [
        np.eye(B.shape[0])[:, largest],
        np.maximum(eigenvectors, 0),
        np.maximum(-eigenvectors, 0),
    ]
    H = np.concatenate([*starts, np.ones((B.shape[0], 1))], axis=1)
    for _ in range(POWER_STEPS):
        # B is positive semi-definite, so each step raises <h, B h>.
        H = np.maximum(B @ H, 0)
        H /= np.maximum(np.linalg.norm(H, axis=0), np.finfo(float).tiny)
    gains = np.linalg.norm(dual.T @ H, axis=0)
    h = H[:, int(np.argmax(gains))]
    image = dual.T @ h
    gain = float(np.linalg.norm(image))
    return Atom(-image / max(gain, np.finfo(float).tiny), h, gain * size)


def relaxed_norm(
    dual: np.ndarray, target: float = 0.0, steps: int = 20_000, rtol: float = 1e-13
) -> float:
    """Return a rigorous upper bound on max ||G^T h|| over unit h >= 0, from the doubly non-negative relaxation.

    Alternating direction method on max <B, X>, X psd with trace one, Y >= 0, X = Y. The multiplier
    of Y >= 0 is an S >= 0, and sqrt(lambda_max(B + S)) is a bound for any such S; the best on the
    way is returned, raised by the rounding of the eigenvalue.

    Args:
        dual: (K, K), the weighted dual rows G.
        target: a norm that would do. The iteration ends once it is reached, or when the way to it
            is no longer getting shorter.
        steps: iterations at most.
        rtol: relative residual at which to stop.
    """
    size, K = float(np.max(np.abs(dual))), dual.shape[0]
    if size == 0:
        return 0.0
    if not np.isfinite(size):
        return np.inf
    # Scaled before it is squared, which could overflow, or underflow to a bound of zero.
    dual = dual / size
    B = dual @ dual.T
    scale = float(np.max(B))
    B = B / scale
    rho = 1.0
    X = Y = np.eye(K) / K
    M = np.zeros((K, K))
    best = float(np.linalg.eigvalsh(B + np.maximum(-B * (1 - np.eye(K)), 0))[-1])
    goal, previous = (target / size) ** 2 / scale, np.inf
    for step in range(steps):
        values, vectors = np.linalg.eigh(Y - M + B / rho)
        X = (vectors * _onto_simplex(values)) @ vectors.T
        new_Y = np.maximum(X + M, 0)
        primal, dual_residual = np.linalg.norm(X - new_Y), np.linalg.norm(new_Y - Y)
        M, Y = M + X - new_Y, new_Y
        if step % 10 == 0:
            S = np.maximum(-rho * M, 0)
            best = min(best, float(np.linalg.eigvalsh(B + (S + S.T) / 2)[-1]))
        if max(primal, dual_residual) < rtol or best <= goal * (1 - 4 * K * np.finfo(float).eps):
            break
        if step % PATIENCE == PATIENCE - 1:
            if goal > 0 and best - goal > 0.7 * (previous - goal):
                break
            previous = best
    return float(size * np.sqrt(max(best, 0.0) * scale) * (1 + (K + 16) * np.finfo(float).eps))


def _onto_simplex(values: np.ndarray) -> np.ndarray:
    """Return the nearest point with non-negative entries that sum to one."""
    ordered = np.sort(values)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, values.size + 1)
    last = int(np.flatnonzero(ordered > excess)[-1])
    return np.maximum(values - excess[last], 0)
