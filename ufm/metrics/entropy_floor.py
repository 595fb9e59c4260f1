"""The least cross-entropy that any logits have: the mean entropy of the targets."""

import numpy as np
from numpy.typing import ArrayLike

from ufm._support import ArgumentError
from ufm.metrics.checked_input import real_array, weight_array

__all__ = ["entropy_floor"]


def entropy_floor(rows: ArrayLike, counts: ArrayLike | None = None) -> float:
    r"""Return sum_r pi_r s_r H(y_r / s_r), the infimum of the mean cross-entropy over all logits.

    Here s_r is the mass of row r, 1 for probabilities and the number of tags m for pick-all-labels,
    whose floor is therefore m log m; the loss is s_r logsumexp(z) - <y_r, z>, pi_r = counts / sum,
    and H is the entropy in nats. Code that divides multi-hot targets by their number of tags has
    the floor log m. The binary cross-entropy of 0/1 targets has the floor 0.

    Args:
        rows: Targets y_r, (R, K), not negative.
        counts: How often each row occurs, (R,), not negative; 1 by default.

    Raises:
        ValueError: Rows of the wrong shape, or negative; counts that do not fit.

    >>> round(entropy_floor([[0.5, 0.5], [1.0, 0.0]], [1, 3]), 6)
    0.173287
    """
    Y = real_array("rows", rows, (None, None), "a matrix (R, K), one target in each row")
    if np.any(Y < 0):
        raise ArgumentError("rows", f"must not be negative, got {Y.min():g}")
    n = weight_array("counts", counts, len(Y), "row")
    mass = Y.sum(axis=1, keepdims=True)
    shares = Y / np.where(mass == 0, 1.0, mass)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return float(-(n / n.sum()) @ np.sum(Y * logs, axis=1)) + 0.0
