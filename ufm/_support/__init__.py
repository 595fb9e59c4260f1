"""Small tools that every room uses: precision, pytrees, compilation, devices, status codes, tables."""

from ufm._support.compilation import compiled
from ufm._support.devices import accelerators, devices, divisible, spread
from ufm._support.modules import Final, Module, assembled, rebuilt, written
from ufm._support.precision import (
    LARGEST,
    SMALLEST,
    as_leaf,
    broadcasting,
    check_host,
    checked_positive,
    checked_whole,
    double_precision,
    in_double_precision,
    is_concrete,
    is_numeric,
    is_whole,
    real_numbers,
    to_numpy,
    within_steps,
)
from ufm._support.status import Status, certified_status, judged, lowest
from ufm._support.tables import counted, holds_text, html_table, printed, table_lines
from ufm._support.version import __version__

__all__ = [
    "LARGEST",
    "SMALLEST",
    "Final",
    "Module",
    "Status",
    "__version__",
    "accelerators",
    "as_leaf",
    "assembled",
    "broadcasting",
    "certified_status",
    "check_host",
    "checked_positive",
    "checked_whole",
    "compiled",
    "counted",
    "devices",
    "divisible",
    "double_precision",
    "holds_text",
    "html_table",
    "in_double_precision",
    "is_concrete",
    "is_numeric",
    "is_whole",
    "judged",
    "lowest",
    "printed",
    "real_numbers",
    "rebuilt",
    "spread",
    "table_lines",
    "to_numpy",
    "within_steps",
    "written",
]
