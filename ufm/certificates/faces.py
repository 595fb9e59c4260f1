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

MOST_FACED = 16  # rows up to which all 65,535 faces are looked at, a third of a second
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
            if not _are_free_of_positive_vectors(
                values[faces], vectors[faces], int(number), rounding
            ):
                return False
    return True


def _are_free_of_positive_vectors(
    values: np.ndarray, vectors: np.ndarray, number: int, rounding: float
) -> bool:
    """Return whether no eigenvector of the largest eigenvalues of any face is positive.

    Eigenvectors of eigenvalues that are apart are looked at one by one, others together.

    Args:
        values: (F, n), the eigenvalues of every face, ascending.
        vectors: (F, n, n), their eigenvectors in columns.
        number: How many of them count.
        rounding: Of the eigenvalues.
    """
    n = values.shape[1]
    ends = np.full((len(values), 1), np.inf)
    gaps = np.diff(values, axis=1, prepend=-ends, append=ends)
    apart = np.minimum(gaps[:, :-1], gaps[:, 1:])[:, n - number :]
    error = 2 * rounding / np.maximum(apart, EPSILON)
    some = vectors[:, :, n - number :]
    mixed = np.minimum(np.max(some, axis=1), np.max(-some, axis=1)) > error
    for face in np.flatnonzero(~np.all(mixed, axis=1)):
        together = 2 * rounding / max(float(gaps[face, n - number]), EPSILON)
        if not _has_no_positive_vector(some[face], together):
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
