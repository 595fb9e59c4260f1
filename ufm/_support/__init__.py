"""Small tools that every room uses: arguments, precision, pytrees, compilation, devices, tables."""

from ufm._support.arguments import (
    ArgumentError,
    check_numbers,
    check_one_of,
    checked_key,
    checked_nonnegative,
    checked_positive,
    checked_whole,
    did_you_mean,
    is_whole,
)
from ufm._support.chunks import chunks
from ufm._support.compilation import compiled
from ufm._support.devices import accelerators, devices, divisible, shard
from ufm._support.modules import Final, Module, assembled, brief, rebuilt, written
from ufm._support.plain import as_dict, field_names, plain
from ufm._support.precision import (
    LARGEST,
    SMALLEST,
    Number,
    array_module,
    as_leaf,
    broadcasting,
    double_precision,
    in_double_precision,
    is_concrete,
    is_numeric,
    on_host,
    to_numpy,
    within_steps,
)
from ufm._support.status import Status, certified_status, has_converged, judged, lowest
from ufm._support.tables import counted, holds_text, html_table, printed, shown, table_lines
from ufm._support.version import __version__

__all__ = [
    "LARGEST",
    "SMALLEST",
    "ArgumentError",
    "Final",
    "Module",
    "Number",
    "Status",
    "__version__",
    "accelerators",
    "array_module",
    "as_dict",
    "as_leaf",
    "assembled",
    "brief",
    "broadcasting",
    "certified_status",
    "check_numbers",
    "check_one_of",
    "checked_key",
    "checked_nonnegative",
    "checked_positive",
    "checked_whole",
    "chunks",
    "compiled",
    "counted",
    "devices",
    "did_you_mean",
    "divisible",
    "double_precision",
    "field_names",
    "has_converged",
    "holds_text",
    "html_table",
    "in_double_precision",
    "is_concrete",
    "is_numeric",
    "is_whole",
    "judged",
    "lowest",
    "on_host",
    "plain",
    "printed",
    "rebuilt",
    "shard",
    "shown",
    "table_lines",
    "to_numpy",
    "within_steps",
    "written",
]
