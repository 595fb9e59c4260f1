"""The base of the library's dataclasses that are pytrees, and instances without checks."""

import dataclasses
import inspect
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx
import jax
import numpy as np

__all__ = ["Final", "Module", "assembled", "brief", "rebuilt", "written"]

MOST_SHOWN = 100  # entries of an array that `written` prints
ARRAYS = (np.ndarray, np.generic, jax.Array)

T = TypeVar("T")


class Module(eqx.Module):
    """An Equinox module whose attributes are looked up as plain Python's are.

    Equinox makes a pytree of every method that is looked up, which takes fifty microseconds. Ten
    such calls take as long as the steps of a small solve. `jax.jit` and similar functions accept
    plain bound methods, too.
    """

    if not TYPE_CHECKING:
        __getattribute__ = object.__getattribute__

    def __repr__(self) -> str:
        return written(self)


class Final(Module):
    """A module whose direct subclasses are final: no instance of a class further down can be made.

    Solvers, certificates and theorems know the formulas of such a class. They would apply them to
    an instance of a subclass as well, even if it overrides them.
    """

    def __check_init__(self) -> None:
        """Raise ValueError for an instance of a subclass of a final class."""
        found = type(self)
        if Final not in found.__bases__:
            kind = next(base.__name__ for base in found.__mro__ if Final in base.__bases__)
            raise ValueError(
                f"`{found.__name__}` is a subclass of ufm's {kind}, which is final: what is known "
                f"of {kind} need not be true of it. Write a function that returns a {kind}, or a "
                "subclass of ufm.losses.Loss for another loss."
            )


def assembled(kind: type[T], **fields: Any) -> T:
    """Return an instance with these fields, all of them given, without checks and conversions.

    Those cost as much as a small solve.
    """
    new = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(new, name, value)
    return new


def rebuilt(module: T, **changes: Any) -> T:
    """Return the module with some fields changed, without the checks that it has passed already."""
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}  # type: ignore[arg-type]
    return assembled(type(module), **fields | changes)


def written(module: Any, without: Collection[str] = ()) -> str:
    """Return the call that makes a module: its fields by name, without those at their default.

    Numbers are plain Python numbers. Traced arrays, and arrays of more than 100 entries, are shown
    by type and shape; a text with one of them cannot be evaluated.

    Args:
        module: An instance of a dataclass. It may lack fields, as an invalid one does while it is
            made.
        without: Names of fields to leave out.
    """
    return f"{type(module).__name__}({', '.join(_given(module, _text, without))})"


def brief(module: Any) -> str:
    """Return the name of a module's class with its numbers in six digits, for tables and axes.

    Arrays are "...", and a class without numbers has no parentheses.
    """
    given = _given(module, _digits)
    return type(module).__name__ + (f"({', '.join(given)})" if given else "")


def _given(module: Any, text: Callable[[Any], str], without: Collection[str] = ()) -> list[str]:
    """Return the fields that do not have their default value, each with its text."""
    parameters = inspect.signature(type(module)).parameters
    texts = {
        field.name: text(getattr(module, field.name))
        for field in dataclasses.fields(module)
        if field.name not in without and hasattr(module, field.name)
    }
    return [
        f"{name}={found}"
        for name, found in texts.items()
        if name not in parameters or found != text(parameters[name].default)
    ]


def _digits(value: Any) -> str:
    if isinstance(value, eqx.Module):
        return brief(value)
    if isinstance(value, ARRAYS) and not isinstance(value, jax.core.Tracer):
        return f"{float(value):g}" if np.ndim(value) == 0 else "..."
    return repr(value)


def _text(value: Any) -> str:
    if isinstance(value, jax.core.Tracer) or (
        isinstance(value, ARRAYS) and value.size > MOST_SHOWN
    ):
        return eqx.tree_pformat(value)
    if isinstance(value, ARRAYS):
        plain = np.asarray(value).tolist()
        return repr(tuple(plain) if isinstance(plain, list) else plain)
    return repr(value)
