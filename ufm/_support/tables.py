"""Tables of texts, the head first: as lines with columns of equal width, and as HTML."""

import html
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ufm._support.plain import field_names

__all__ = ["counted", "holds_text", "html_table", "printed", "table_lines"]

FEW = 8  # entries of an array, or of a sequence, that are shown

T = TypeVar("T")


def table_lines(
    cells: Sequence[Sequence[str]],
    justify: Callable[[str, int], str] = str.ljust,
    widths: Sequence[int] | None = None,
) -> list[str]:
    """Return a line per row.

    Args:
        cells: The texts, row by row.
        justify: What brings a text to the width of its column.
        widths: The widths of the columns, where not all rows are known; those of the texts if not
            given.
    """
    widths = widths or [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(justify, row, widths)).rstrip() for row in cells]


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as "1 group" or "2 groups"."""
    return f"{number:.15g} {noun}{'' if number == 1 else 's'}"


def html_table(cells: Sequence[Sequence[str]]) -> str:
    """Return the table as HTML, its texts escaped."""
    tags = ["th"] + ["td"] * (len(cells) - 1)
    rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(tags, cells, strict=True)
    )
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def holds_text(holds: bool) -> str:
    """Return the verdict of a check in words."""
    return "holds" if holds else "DOES NOT HOLD"


def printed(kind: type[T]) -> type[T]:
    """Decorate a class of results: its text is also its `repr`, and its HTML in a notebook.

    Args:
        kind: A NamedTuple or dataclass. If it has no `__str__` of its own, its text is a line per
            field, with arrays by shape and range.
    """

    def as_html(result: T) -> str:
        return f"<pre>{html.escape(str(result))}</pre>"

    if kind.__str__ is object.__str__:
        kind.__str__ = fields_text  # type: ignore[method-assign]
    kind.__repr__ = kind.__str__  # type: ignore[method-assign]
    if not hasattr(kind, "_repr_html_"):
        kind._repr_html_ = as_html  # type: ignore[attr-defined]
    return kind


def fields_text(result: Any) -> str:
    """Return the name of a result's class, and a line per field with its value in short."""
    rows = [(f"  {name}", shown(getattr(result, name))) for name in field_names(result)]
    return "\n".join([type(result).__name__, *table_lines(rows)])


def shown(value: Any) -> str:
    """Return a value in short: six digits of numbers, the shape and range of large arrays."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer):
        if value.size > FEW or value.dtype.kind not in "biuf":
            known = np.asarray(value)[np.isfinite(value)] if value.dtype.kind == "f" else ()
            ends = f", {np.min(known):.6g} to {np.max(known):.6g}" if np.size(known) else ""
            return f"{value.dtype} of shape {value.shape}{ends}"
        return np.array2string(np.asarray(value), precision=6, separator=", ").replace("\n", "")
    if isinstance(value, dict):
        return shown(tuple(value))
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        few = ", ".join(map(shown, value[:FEW])) + (", ..." if len(value) > FEW else "")
        return f"({few})"
    text = str(value)
    return text if "\n" not in text else type(value).__name__
