"""Tables of texts, the head first: as lines with columns of equal width, and as HTML."""

import html
from collections.abc import Callable, Sequence

__all__ = ["html_table", "table_lines"]


def table_lines(cells: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Return a line per row, its cells brought to the width of their column by `justify`."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(justify, row, widths)).rstrip() for row in cells]


def html_table(cells: Sequence[Sequence[str]]) -> str:
    """Return the table as HTML, its texts escaped."""
    tags = ["th"] + ["td"] * (len(cells) - 1)
    rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in zip(tags, cells, strict=True)
    )
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
