"""Results whose numbers come with their formulas, as tables and as plain Python."""

import html
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ufm._support import field_names, html_table, plain, table_lines

__all__ = ["Explained"]


def _numbers(result: Any) -> dict[str, Any]:
    """Return the fields of a result that are no matrices, and those of results within it."""
    found = {}
    for name in field_names(result):
        value = getattr(result, name)
        if value is None or (isinstance(value, np.ndarray) and value.ndim > 1):
            continue
        found[name] = _numbers(value) if hasattr(value, "_fields") else plain(value)
    return found


class Explained:
    """A result that prints each of its numbers with a formula.

    Subclasses are dataclasses. A field that was not measured is None.

    Attributes:
        CONVENTIONS: The formula of each number, by the name of its field.
    """

    CONVENTIONS: ClassVar[Mapping[str, str]] = {}

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and vectors as plain Python; matrices stay attributes.

        Results within this one are dictionaries. What was not measured is missing.
        """
        return _numbers(self)

    def tables(self) -> list[list[list[str]]]:
        """Return the tables of the result, header rows first."""
        known = {name: getattr(self, name) for name in self.CONVENTIONS}
        rows = [
            [name, f"{value:.4g}", self.CONVENTIONS[name]]
            for name, value in known.items()
            if value is not None
        ]
        return [[["name", "value", "convention"], *rows]]

    def __str__(self) -> str:
        parts = ["\n".join(table_lines(table)) for table in self.tables()]
        return "\n\n".join([self.title, *parts])

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.title)}</p>" + "".join(map(html_table, self.tables()))
