"""The base of the library's dataclasses that are pytrees, and instances without checks."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx

__all__ = ["Final", "Module", "assembled", "rebuilt"]

T = TypeVar("T")


class Module(eqx.Module):
    """An Equinox module whose attributes are looked up as plain Python's are.

    Equinox makes a pytree of every method that is looked up, which takes fifty microseconds: ten such calls are as long as a small solve's steps.
    Plain bound methods can be handed to `jax.jit` and the like just as well.
    """

    if not TYPE_CHECKING:
        __getattribute__ = object.__getattribute__


class Final(Module):
    """A module whose direct subclasses are final: no instance of a class further down can be made.

    Solvers, certificates and theorems know the formulas of such a class, and would take an instance of
    a subclass, whatever it overrides, for one of the class itself.
    """

    def __check_init__(self) -> None:
        """Raise ValueError for an instance of a subclass of a final class."""
        found = type(self)
        if Final not in found.__bases__:
            kind = next(base.__name__ for base in found.__mro__ if Final in base.__bases__)
            raise ValueError(
                f"`{found.__name__}` is a subclass of ufm's {kind}, which is final: what is known of {kind} need not be "
                f"true of it. Write a function that returns a {kind}, or a subclass of ufm.losses.Loss for another loss."
            )


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
