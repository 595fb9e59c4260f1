"""Results as plain Python: what JSON, files and tables take."""

import dataclasses
from typing import Any

import jax
import numpy as np

__all__ = ["as_dict", "field_names", "plain"]


def field_names(result: Any) -> tuple[str, ...]:
    """Return the names of the fields of a NamedTuple or dataclass."""
    if hasattr(result, "_fields"):
        return tuple(result._fields)
    return tuple(field.name for field in dataclasses.fields(result))


def as_dict(result: Any) -> dict[str, Any]:
    """Return the fields of a NamedTuple or dataclass by name, as plain Python."""
    return {name: plain(getattr(result, name)) for name in field_names(result)}


def plain(value: Any) -> Any:
    """Return a value as plain Python.

    Arrays and tuples become lists, NumPy numbers become Python's, and results become dictionaries:
    by their own `to_dict` if they have one, else of their fields.
    """
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "_fields") or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    ):
        return as_dict(value)
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
