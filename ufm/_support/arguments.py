"""Checks of arguments: one kind of error, and the checks that several rooms make."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from ufm._support.precision import LARGEST, SMALLEST, is_concrete, real_numbers

__all__ = [
    "ArgumentError",
    "by_name",
    "check_finite",
    "check_instance",
    "check_numbers",
    "check_one_of",
    "checked_condition",
    "checked_key",
    "checked_nonnegative",
    "checked_positive",
    "checked_whole",
    "did_you_mean",
    "is_whole",
]

T = TypeVar("T")

NOT_SHOWN = ...  # in place of a value that the message states in other words, or not at all


class ArgumentError(ValueError):
    """An argument that a function does not take.

    Attributes:
        argument: The name of the argument, such as "tol" or "regularizer.weights".
        requirement: What it has to be, or what is wrong with it.
        value: What was given; None where the message does not show it.
        remedy: What to do instead, or a guess in parentheses; "" where the requirement says it.
    """

    def __init__(
        self, argument: str, requirement: str, value: Any = NOT_SHOWN, remedy: str = ""
    ) -> None:
        shown = value.item() if isinstance(value, np.generic) else value
        self._claim = requirement + ("" if value is NOT_SHOWN else f", got {shown!r}")
        end = remedy if remedy.startswith(" (") else remedy and f"; {remedy}"
        super().__init__(f"`{argument}` {self._claim}{end}.")
        self.argument, self.requirement, self.remedy = argument, requirement, remedy
        self.value = None if value is NOT_SHOWN else value

    @property
    def claim(self) -> str:
        """The message after the name of the argument."""
        return str(self).removeprefix(f"`{self.argument}` ")

    def __reduce__(self) -> tuple[Any, ...]:
        # The value goes into the text, because not everything can be pickled.
        return type(self), (self.argument, self._claim, NOT_SHOWN, self.remedy)


def check_numbers(
    name: str,
    value: Any,
    *,
    several: bool = False,
    positive: bool = False,
    lower: float = -np.inf,
    below: float = np.inf,
    remedy: str = "",
) -> None:
    """Raise `ArgumentError` if a value is not finite real numbers in a range; traced values pass.

    Args:
        name: What the caller calls the value.
        value: A number, or an array of numbers if `several`.
        several: Whether more than one number is allowed, in any shape.
        positive: Whether the numbers must be positive, and not subnormal.
        lower: The least number allowed.
        below: What the numbers must stay below.
        remedy: The end of the message.
    """
    if not is_concrete(value):
        return
    numbers, least = real_numbers(value), SMALLEST if positive else lower
    if numbers is not None and (several or numbers.ndim == 0):
        entries = np.ravel(numbers).astype(np.float64)
        # NaN compares false, so NaN is refused.
        good = (np.abs(entries) <= LARGEST) & (entries >= least) & (entries < below)
        if np.all(good):
            return
        value = float(entries[~good][0])
    if several and positive:
        kind = "positive and finite"
    else:
        kind = f"{'' if several else 'a '}{'positive ' if positive else ''}finite number"
        kind += "s" if several else ""
    bounds = [f">= {lower:g}"] * (lower > -np.inf) + [f"below {below:g}"] * (below < np.inf)
    words = f" {' and '.join(bounds)}" if bounds else ""
    if positive and isinstance(value, float) and 0 < value < below:
        words += f", from {SMALLEST:.3g} to {LARGEST:g}"
    raise ArgumentError(name, f"must be {kind}{words}", value, remedy)


def checked_positive(name: str, value: Any, remedy: str = "") -> float:
    """Return one positive finite number.

    Raises:
        ArgumentError: If it is anything else, or traced.
    """
    check_numbers(name, _concrete(value), positive=True, remedy=remedy)
    return float(value)


def checked_nonnegative(name: str, value: Any, remedy: str = "") -> float:
    """Return one finite number that is not negative.

    Raises:
        ArgumentError: If it is anything else, or traced.
    """
    check_numbers(name, _concrete(value), lower=0.0, remedy=remedy)
    return float(value)


def _concrete(value: Any) -> Any:
    """Return a value, or a text, which no check of numbers accepts, in place of a traced one."""
    return value if is_concrete(value) else str(value)


def check_one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `ArgumentError` if a value is none of some names; it guesses a misspelt one."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ArgumentError(name, f"must be one of {', '.join(known)}", value, near)


def check_instance(name: str, value: Any, kind: type, words: str = "") -> None:
    """Raise `ArgumentError` unless a value is an instance of a class.

    Args:
        name: What the caller calls the value.
        value: The value.
        kind: The class.
        words: What the message asks for; "a ufm." and the name of the class if not given.
    """
    if not isinstance(value, kind):
        wanted = words or f"a ufm.{kind.__name__}"
        raise ArgumentError(name, f"must be {wanted}, got {type(value).__name__}")


def check_finite(name: str, tree: Any, remedy: str = "") -> None:
    """Raise `ArgumentError` if an array of a pytree has NaN or infinite entries."""
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree)):
        raise ArgumentError(name, "must be finite, got NaN or infinite entries", remedy=remedy)


def checked_condition(needs: Mapping[str, Any], argument: str, purpose: str) -> None:
    """Check the conditions of a theorem.

    Args:
        needs: Every condition in words, and whether it is met.
        argument: Name of the argument that must meet them.
        purpose: What they are conditions of.

    Raises:
        ValueError: If one is not met. The message names all that are not.
    """
    missing = [need for need, met in needs.items() if not met]
    if missing:
        raise ArgumentError(argument, f"must have {', '.join(missing)} for {purpose}")


def checked_key(name: str, value: Any, table: Mapping[str, T]) -> T:
    """Return the entry of a table that has a name.

    Raises:
        ArgumentError: If the value is no name in the table.
    """
    check_one_of(name, value, table)
    return table[value]


def by_name(result: tuple[Any, ...], argument: str, index: Any, named: Mapping[str, T]) -> Any:
    """Return what `result[index]` is: a named part, or a field by its index, as tuples do.

    Args:
        result: The result, a NamedTuple.
        argument: What messages call the name.
        index: A name, or an index.
        named: The parts by name.

    Raises:
        ArgumentError: If there is no part of that name.
    """
    if isinstance(index, str):
        return checked_key(argument, index, named)
    return tuple.__getitem__(result, index)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the known name most like a misspelt one; "" if none is."""
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def is_whole(value: Any, lower: int) -> bool:
    """Return whether a value is one whole number of at least `lower`.

    It is False, not an error, for NaN, infinity, text and traced values.
    """
    if not is_concrete(value) or isinstance(value, (bool, np.bool_)):
        return False
    number = real_numbers(value)
    if number is None or number.ndim:
        return False
    return bool(
        number.dtype.kind in "iuf"
        and np.isfinite(number)
        and number == np.floor(number)
        and number >= lower
    )


def checked_whole(name: str, value: Any, lower: int = 1, upper: int | None = None) -> int:
    """Return one whole number of at least `lower`, and at most `upper` if that is given.

    Raises:
        ArgumentError: If it is anything else.
    """
    if not is_whole(value, lower):
        raise ArgumentError(name, f"must be a whole number of at least {lower}", value)
    if upper is not None and value > upper:
        raise ArgumentError(name, f"must be at most {upper}", value)
    return int(value)
