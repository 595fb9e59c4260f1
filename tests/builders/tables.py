"""Tests over tables: one test that checks every row and names the rows that fail."""

import functools
import inspect
from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest

SLOW = "slow rows"


def slow(*values: Any) -> Any:
    """Return a row that is run by `pytest -m slow` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(rows: Iterable[Any], *, keep: Container[int]) -> list[Any]:
    """Return rows of one value each that are all slow but those whose places are in `keep`."""
    return [row if place in keep else slow(row) for place, row in enumerate(rows)]


def for_each(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[Any], Any]:
    """Run a test on every row of a table.

    Written like `pytest.mark.parametrize`, which makes a test of every row: for rows that state
    one fact. All rows are run, whichever fail or skip, with the same fixtures. Rows made by `slow`
    are a second test, which is marked so.

    Args:
        names: The arguments of the test that a row gives: one name or a tuple of names.
        rows: For one name its values, else tuples of values; or what `slow` makes of them.
    """
    columns = (names,) if isinstance(names, str) else names
    parts: dict[str, list[tuple[Any, ...]]] = {"": [], SLOW: []}
    for row in rows:
        if isinstance(row, type(pytest.param())):
            if [mark.name for mark in row.marks] != ["slow"]:
                raise ValueError(f"a row of {columns} has no marks of its own but `slow`")
            parts[SLOW].append(row.values)
        else:
            parts[""].append((row,) if isinstance(names, str) else tuple(row))
    if not parts[""]:
        raise ValueError(f"a table of {columns} needs rows that are not slow")
    part = f"{'_and_'.join(columns)}_part"

    def over_rows(test: Any) -> Any:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
            table = parts[fixtures.pop(part, "")]
            _run(test, columns, table, args, fixtures)

        rest = [value for name, value in signature.parameters.items() if name not in columns]
        if parts[SLOW]:
            rest.append(inspect.Parameter(part, inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=rest)  # what pytest looks for fixtures in
        if not parts[SLOW]:
            return run
        return pytest.mark.parametrize(part, ["", slow(SLOW)], ids=["rows", "slow"])(run)

    return over_rows


def _run(
    test: Any,
    columns: tuple[str, ...],
    table: list[tuple[Any, ...]],
    args: tuple[Any, ...],
    fixtures: dict[str, Any],
) -> None:
    failures: list[BaseException] = []
    skipped: list[BaseException] = []
    for number, values in enumerate(table):
        row = dict(zip(columns, values, strict=True))
        try:
            test(*args, **fixtures, **row)
        except pytest.skip.Exception as skip:
            skipped.append(skip)
        except (Exception, pytest.fail.Exception) as failure:
            failure.add_note(f"in row {number}: {_shown(row)}")
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if len(skipped) == len(table):
        raise skipped[0]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(table)} rows fail", failures)


def _shown(row: dict[str, Any]) -> str:
    texts = {name: " ".join(repr(value).split()) for name, value in row.items()}
    return ", ".join(f"{name}={text[:120]}" for name, text in texts.items())
