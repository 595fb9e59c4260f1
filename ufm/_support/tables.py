"""Tables of texts, the head first: as lines with columns of equal width, and as HTML."""

import html
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["counted", "holds_text", "html_table", "printed", "table_lines"]

T = TypeVar("T")


def table_lines(
    cells: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Return a line per row, its cells brought to the width of their column by `justify`."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
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
        kind: A class with `__str__`, a few lines that show the numbers of a result.
    """

    def as_html(result: T) -> str:
        return f"<pre>{html.escape(str(result))}</pre>"

    kind.__repr__ = kind.__str__  # type: ignore[method-assign]
    kind._repr_html_ = as_html  # type: ignore[attr-defined]
    return kind
