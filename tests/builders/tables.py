"""Tests over tables: one test that checks every row and names the rows that fail."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def for_each(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[Any], Any]:
    """Run a test on every row of a table.

    Written like `pytest.mark.parametrize`, which makes a test of every row: for rows that state
    one fact. All rows are run, whichever fail or skip, with the same fixtures.

    Args:
        names: The arguments of the test that a row gives: one name or a tuple of names.
        rows: For one name its values, else tuples of values.
    """
    rows = list(rows)
    table = [(row,) if isinstance(names, str) else tuple(row) for row in rows]
    columns = (names,) if isinstance(names, str) else names
    if not table or any(isinstance(row, type(pytest.param())) for row in rows):
        raise ValueError(f"a table of {columns} needs rows, and none with marks of its own")

    def over_rows(test: Any) -> Any:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
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

        rest = [value for name, value in signature.parameters.items() if name not in columns]
        run.__signature__ = signature.replace(parameters=rest)  # what pytest looks for fixtures in
        return run

    return over_rows


def _shown(row: dict[str, Any]) -> str:
    texts = {name: " ".join(repr(value).split()) for name, value in row.items()}
    return ", ".join(f"{name}={text[:120]}" for name, text in texts.items())
