"""Output of all commands: JSON, files, pictures, and the packages that these need."""

import contextlib
import importlib
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from ufm._support import plain

__all__ = [
    "MATPLOTLIB",
    "PATIENCE",
    "check_output",
    "check_picture",
    "draw",
    "need",
    "print_json",
    "write_file",
]

MATPLOTLIB = ("plot", "matplotlib")
PATIENCE = 2.0  # seconds that an interrupted command has to end by itself


def print_json(data: Any) -> None:
    """Print results as JSON. JSON has no infinity and no NaN, so those become null."""
    print(json.dumps(_finite(plain(data)), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def need(what: str, extra: str, *modules: str) -> None:
    """Raise ValueError if one of the modules is not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(
                f'{what} needs {module}, which is not installed: pip install "ufm[{extra}]"'
            ) from None


def draw(option: str, ax: Any, path: str) -> None:
    """Write the figure of some axes to a file; the ending of its name says the format."""
    from matplotlib import pyplot as plt

    figure = ax.get_figure(root=True)
    ending = os.path.splitext(path)[1][1:].lower()
    write_file(
        option, path, lambda file: figure.savefig(file, format=ending, bbox_inches="tight", dpi=200)
    )
    plt.close(figure)


def check_picture(option: str, path: str) -> None:
    """Check, before the work, that a picture can be drawn."""
    need(option, *MATPLOTLIB)
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    check_output(
        option,
        path,
        ["png", "pdf", "svg", *(name for name in formats if name not in ("png", "pdf", "svg"))],
    )


def check_output(option: str, path: str, endings: Sequence[str]) -> None:
    """Check, before the work, that a file of one of these formats can be written."""
    ending = os.path.splitext(path)[1]
    if ending[1:].lower() not in endings:
        rest = f" (or {', '.join(endings[1:])})" if len(endings) > 1 else ""
        raise ValueError(
            f"{option} {path!r}: the ending says the format, and must be {endings[0]}{rest}; "
            f"name it {path.removesuffix(ending) or option.lstrip('-')}.{endings[0]}"
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: there is no folder {folder}; create it first")
    if os.path.isdir(path):
        raise ValueError(f"{option} {path}: this is a folder; name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: the folder {folder} cannot be written to; name another")


def write_file(option: str, path: str, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    target = os.path.realpath(path)
    partial = f"{target}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, target)
    except OSError as error:
        raise ValueError(
            f"{option} {path}: cannot be written ({error.strerror or error}); name another file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
