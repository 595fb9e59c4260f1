r"""The dual norm of few rows with non-negative features, exactly, face by face of the orthant.

The norm squared is the maximum of <h, B h> over unit vectors h >= 0, B = G G^T. Let h > 0 on a set
S of rows, and zero elsewhere, attain it. Then h is an eigenvector of the submatrix B_SS, and its
eigenvalue is the maximum (Kaplan 2000, for copositive matrices). So the norm is at most t if no
B_SS has a positive vector in the space of its eigenvalues above t^2. There are 2^R - 1 sets.

Rounding. A computed space is as near to the true one as the rounding of B over the distance of
eigenvalues allows. Its vectors must have entries below zero by more than that. Eigenvalues that may
be above t^2 are counted to those that are.
"""

import itertools

import numpy as np

__all__ = ["MOST_FACED", "norm_is_at_most"]

MOST_FACED = 14  # rows up to which all 16,383 faces are looked at, a fifth of a second
EPSILON = float(np.finfo(np.float64).eps)


def norm_is_at_most(dual: np.ndarray, limit: float) -> bool:
    """Return whether max ||G^T h|| over unit vectors h >= 0 is proved to be at most a limit.

    Args:
        dual: (R, K), the rows G, at most `MOST_FACED` of them.
        limit: Positive.
    """
    scaled = np.asarray(dual, np.float64) / limit
    if not np.all(np.isfinite(scaled)):
        return False
    B = scaled @ scaled.T
    R = len(B)
    # What an entry of B may be off by, and so an eigenvalue, relative to the limit.
    rounding = 4 * (R + scaled.shape[1] + 16) * EPSILON * float(np.trace(B))
    for size in range(1, R + 1):
        index = np.array(list(itertools.combinations(range(R), size)))
        values, vectors = np.linalg.eigh(B[index[:, :, None], index[:, None, :]])
        above = np.sum(values > 1 - rounding, axis=1)
        for number in np.unique(above[above > 0]):
            faces = above == number
            spaces = vectors[faces][:, :, size - number :]
            kept = values[faces][:, size - number]
            lost = values[faces][:, size - number - 1] if number < size else np.full(len(kept), -1)
            error = 2 * rounding / np.maximum(kept - lost, EPSILON)
            if number == 1:
                rows = spaces[:, :, 0]
                below = np.minimum(np.max(rows, axis=1), np.max(-rows, axis=1))
                if not np.all(below > error):
                    return False
            elif not all(map(_has_no_positive_vector, spaces, error)):
                return False
    return True


def _has_no_positive_vector(space: np.ndarray, error: float) -> bool:
    """Return whether all unit vectors of a space have an entry below minus an error.

    Args:
        space: (n, p), its orthonormal basis.
        error: How far the true space may be off.
    """
    from scipy.optimize import linprog  # loaded where it is used: `import ufm` is light

    n, p = space.shape
    # Largest least entry t of V c, over c with one entry of size one and the others no larger.
    for place, sign in itertools.product(range(p), (1.0, -1.0)):
        bounds = [(sign, sign) if k == place else (-1.0, 1.0) for k in range(p)]
        found = linprog(
            np.append(np.zeros(p), -1.0),
            A_ub=np.column_stack([-space, np.ones(n)]),
            b_ub=np.zeros(n),
            bounds=[*bounds, (None, None)],
        )
        if not (found.success and -float(found.fun or 0.0) < -np.sqrt(p) * error - 1e-9):
            return False
    return True
