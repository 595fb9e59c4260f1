"""The K x K matrices that formulas are made of, explicit or as `Blocks` over groups.

Formulas are written once. Inside `by_groups`, the functions here return `Blocks`, which add,
multiply by numbers and have their rows scaled just as well, so that a formula takes G^2 numbers for
any number of classes. Vectors over classes stay explicit, (K,).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm.problems import Blocks

__all__ = [
    "by_groups",
    "diagonal_matrix",
    "diagonal_of",
    "identity_matrix",
    "mean_matrix",
    "outer",
    "scaled",
    "shifted",
    "where",
    "zero_matrix",
]


class _Groups(NamedTuple):
    """groups: (K,), the group of every class. first: (G,), a class of each. sizes: (G,)."""

    groups: np.ndarray
    first: np.ndarray
    sizes: np.ndarray


_current: ContextVar[_Groups | None] = ContextVar("groups of the matrices", default=None)


@contextmanager
def by_groups(groups: np.ndarray) -> Iterator[None]:
    """Make matrices `Blocks` over these groups inside the context; (K,) integers 0, ..., G - 1."""
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    token = _current.set(_Groups(groups, first, sizes.astype(np.float64)))
    try:
        yield
    finally:
        _current.reset(token)


def diagonal_matrix(xp: Any, values: Float[Array, " K"]) -> Any:
    """Return diag(values)."""
    current = _current.get()
    if current is None:
        return xp.diag(values)
    v = values[current.first]
    return Blocks(np.where(current.sizes > 1, v, 0.0), np.diag(v), current.sizes)  # type: ignore[arg-type]


def outer(xp: Any, left: Float[Array, " K"], right: Float[Array, " K"]) -> Any:
    """Return left right^T."""
    current = _current.get()
    if current is None:
        return left[:, None] * right[None, :]
    roots = np.sqrt(current.sizes)
    a, b = (one[current.first] * roots for one in (left, right))
    return Blocks(np.zeros_like(roots), a[:, None] * b[None, :], current.sizes)  # type: ignore[arg-type]


def identity_matrix(xp: Any, num_classes: int, dtype: Any) -> Any:
    """Return I."""
    return diagonal_matrix(xp, xp.ones((num_classes,), dtype))


def zero_matrix(xp: Any, num_classes: int, dtype: Any) -> Any:
    """Return a matrix of zeros."""
    return diagonal_matrix(xp, xp.zeros((num_classes,), dtype))


def mean_matrix(xp: Any, num_classes: int, dtype: Any) -> Any:
    """Return J/K."""
    ones = xp.ones((num_classes,), dtype)
    return outer(xp, ones / num_classes, ones)


def shifted(xp: Any, matrix: Any, values: Float[Array, " K"]) -> Any:
    """Return the matrix + 1 values^T."""
    if not isinstance(matrix, Blocks):
        return matrix + values[None, :]
    return matrix + outer(xp, xp.ones_like(values), values)


def scaled(matrix: Any, rows: Float[Array, " K"], both: bool = False) -> Any:
    """Return the matrix with row k multiplied by `rows[k]`, and column k as well if `both`."""
    if not isinstance(matrix, Blocks):
        return matrix * (rows[:, None] * rows[None, :] if both else rows[:, None])
    current = _current.get()
    assert current is not None
    factors = rows[current.first]
    found = matrix.scaled_rows(factors)
    return found.transposed.scaled_rows(factors).transposed if both else found


def diagonal_of(xp: Any, matrix: Any) -> Float[Array, " K"]:
    """Return the diagonal, (K,)."""
    if not isinstance(matrix, Blocks):
        return xp.diagonal(matrix)
    current = _current.get()
    assert current is not None
    return np.asarray(matrix.own)[current.groups]


def where(xp: Any, condition: Any, matrix: Any) -> Any:
    """Return the matrix, or NaN throughout where the condition does not hold."""
    if not isinstance(matrix, Blocks):
        return xp.where(condition, matrix, xp.nan)
    return matrix if condition else matrix * np.float64(np.nan)  # type: ignore[operator]
