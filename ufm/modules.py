"""The base of the library's dataclasses that are pytrees, and instances without checks."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx

__all__ = ["Module", "assembled", "rebuilt"]

T = TypeVar("T")


class Module(eqx.Module):
    """An Equinox module whose attributes are looked up as plain Python's are.

    Equinox makes a pytree of every method that is looked up, which takes fifty microseconds: ten such calls are as long as a small solve's steps.
    Plain bound methods can be handed to `jax.jit` and the like just as well.
    """

    if not TYPE_CHECKING:
        __getattribute__ = object.__getattribute__


def assembled(kind: type[T], **fields: Any) -> T:
    """Return an instance with these fields, all of them given, without checks and conversions (which cost as much as a small solve)."""
    new = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(new, name, value)
    return new


def rebuilt(module: T, **changes: Any) -> T:
    """Return the module with some fields changed, without the checks that it has passed already."""
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}  # type: ignore[arg-type]
    return assembled(type(module), **fields | changes)
