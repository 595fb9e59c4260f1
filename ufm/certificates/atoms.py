r"""Where a dual constraint is violated: the atom that leads out, and a tighter bound without one.

For B = G G^T (class level, G = D^{1/2} U) the dual norm squared is max <h, B h> over unit vectors
h, and over h >= 0 for non-negative features. The maximiser h and w = -G^T h / ||G^T h|| form the
atom w h^T along which the objective falls to first order. For h >= 0 the maximum is NP-hard in
general: monotone projected power iteration from many starts bounds it from below, and the doubly
non-negative relaxation max <B, X> over X psd, X >= 0, tr X = 1 from above (exact for K <= 4). Its
dual, min over S >= 0 of lambda_max(B + S), turns any S that the iteration reaches into a rigorous
bound. Where B is left alone by permutations within groups of classes, so is the best X: the
relaxation over groups costs what one over G classes does, and has the same value.
"""

from typing import NamedTuple

import numpy as np

from ufm.problems import Blocks

__all__ = ["Atom", "relaxed_norm", "violating_atom"]

POWER_STEPS = 300
MAX_STARTS = 64
PATIENCE = 1000


class Atom(NamedTuple):
    """An atom w h^T: weights (K,) w and features (R,) h, unit vectors, and its gain ||G^T h||."""

    weights: np.ndarray
    features: np.ndarray
    gain: float


def violating_atom(dual: np.ndarray, nonnegative: bool) -> Atom:
    """Return the atom of largest gain found.

    It is the top singular pair, or the best of many starts for h >= 0.

    Args:
        dual: (R, K), the weighted dual rows G.
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
    dual: np.ndarray | Blocks, target: float = 0.0, steps: int = 20_000, rtol: float = 1e-13
) -> float:
    """Return a rigorous upper bound on max ||G^T h|| over unit h >= 0.

    The doubly non-negative relaxation, max <B, X> over X psd with trace one, Y >= 0, X = Y, is
    solved by the alternating direction method. The multiplier of Y >= 0 is an S >= 0, and
    sqrt(lambda_max(B + S)) is a bound for any such S. The best on the way is returned, raised by
    the rounding of the eigenvalue.

    Args:
        dual: the weighted dual rows G, (R, K), or as blocks over groups of classes.
        target: a norm that suffices. The iteration ends once the bound reaches it, or stops coming
            closer to it.
        steps: iterations at most.
        rtol: relative residual at which to stop.
    """
    if not isinstance(dual, Blocks):
        dual = Blocks.single(dual)
    sizes, between = np.asarray(dual.sizes), np.asarray(dual.between)
    within = np.where(sizes > 1, dual.within, 0)
    size, G = float(np.max(np.abs(np.append(between, within)))), len(sizes)
    if size == 0:
        return 0.0
    if not np.isfinite(size):
        return np.inf
    # Scaled before it is squared, which could overflow, or underflow to a bound of zero.
    between, within = between / size, within / size
    B = np.append(between @ between.T, within**2)
    scale = float(np.max(B))
    B = B / scale
    space = _Invariant(sizes)
    rho = 1.0
    X = Y = np.append(np.eye(G), sizes > 1) / np.sum(sizes)
    M = np.zeros_like(B)
    best = space.largest_eigenvalue(B + space.nonnegative(-B))
    goal, previous = (target / size) ** 2 / scale, np.inf
    for step in range(steps):
        X = space.semidefinite(Y - M + B / rho)
        new_Y = space.nonnegative(X + M)
        primal, dual_residual = space.length(X - new_Y), space.length(new_Y - Y)
        M, Y = M + X - new_Y, new_Y
        if step % 10 == 0:
            best = min(best, space.largest_eigenvalue(B + space.nonnegative(-rho * M)))
        if max(primal, dual_residual) < rtol or best <= goal * (1 - 4 * G * np.finfo(float).eps):
            break
        if step % PATIENCE == PATIENCE - 1:
            if goal > 0 and best - goal > 0.7 * (previous - goal):
                break
            previous = best
    return float(size * np.sqrt(max(best, 0.0) * scale) * (1 + (G + 16) * np.finfo(float).eps))


class _Invariant:
    """Symmetric matrices that permutations within groups leave unchanged.

    They are vectors: the G x G numbers between groups, then those within (`Blocks`).
    """

    def __init__(self, sizes: np.ndarray):
        self.sizes, self.times, self.G = sizes, sizes - 1, len(sizes)
        self.counted = np.append(np.ones(self.G), self.times) > 0  # of the eigenvalues

    def _parts(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return matrix[: -self.G].reshape(self.G, self.G), matrix[-self.G :]

    def length(self, matrix: np.ndarray) -> float:
        """Return the Frobenius norm."""
        between, within = self._parts(matrix)
        return float(np.sqrt(np.sum(between**2) + np.sum(self.times * within**2)))

    def largest_eigenvalue(self, matrix: np.ndarray) -> float:
        """Return the largest eigenvalue."""
        between, within = self._parts(matrix)
        values = np.linalg.eigvalsh((between + between.T) / 2)
        return float(np.max(np.append(values[-1], within[self.times > 0])))

    def semidefinite(self, matrix: np.ndarray) -> np.ndarray:
        """Return the nearest psd matrix with trace one."""
        between, within = self._parts(matrix)
        values, vectors = np.linalg.eigh(between)
        values = np.append(values, within)
        times = np.append(np.ones(self.G), self.times)
        excess = _excess(values[self.counted], times[self.counted])
        values = np.where(self.counted, np.maximum(values - excess, 0), 0)
        return np.append((vectors * values[: self.G]) @ vectors.T, values[self.G :])

    def nonnegative(self, matrix: np.ndarray) -> np.ndarray:
        """Return the nearest matrix whose entries are not negative."""
        between, within = self._parts(matrix)
        diagonal = np.diagonal(between)
        own = np.maximum((diagonal + self.times * within) / self.sizes, 0)
        same = np.maximum((diagonal - within) / self.sizes, 0)
        entries = np.maximum(between, 0)
        np.fill_diagonal(entries, own + self.times * same)
        return np.append(entries, np.where(self.times > 0, own - same, 0))


def _excess(values: np.ndarray, times: np.ndarray) -> float:
    """Return what to subtract from values, so that their positive parts sum to one.

    Each value counts `times` times.
    """
    order = np.argsort(-values)
    ordered, times = values[order], times[order]
    excess = (np.cumsum(times * ordered) - 1) / np.cumsum(times)
    return float(excess[np.flatnonzero(ordered > excess)[-1]])
