"""Checks of the target rows that a loss accepts."""

import numpy as np
from jaxtyping import Array

from ufm._support import ArgumentError, is_concrete

__all__ = ["check_nonnegative", "check_rows"]


def check_rows(targets: Array, good: Array, words: str) -> None:
    """Raise ValueError if a target is not good, unless traced.

    Args:
        targets: Target rows, (n, K).
        good: Whether an entry, (n, K), or a row, (n, 1), is acceptable.
        words: What the entries must be.
    """
    if not is_concrete(targets, good):
        return
    rows = np.asarray(targets)
    finite = np.isfinite(rows) & np.asarray(good)
    if not np.all(finite):
        row, column = np.argwhere(~finite)[0]
        raise ArgumentError(
            "targets", f"must be {words}; row {row} has at {column}", float(rows[row, column])
        )


def check_nonnegative(targets: Array) -> None:
    """Raise ValueError if a target is negative or not finite, unless traced."""
    check_rows(targets, targets >= 0, "non-negative and finite for this loss")
