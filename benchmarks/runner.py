"""Run methods in processes of their own, and stop those that do not stop themselves."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.measurement import Measurement
from benchmarks.problems import Setting, setting
from benchmarks.rivals import RIVALS

__all__ = ["ROOT", "environment", "run"]

ROOT = Path(__file__).resolve().parent.parent
GRACE = 60.0  # for imports, building and a last iteration, beyond the method's own time limit
FEW = 200


def run(method: str, name: str, optimum: float, limit: float) -> list[Measurement]:
    """Return the rows of one method on one problem.

    A failure is a row that says so, never an exception.

    The limit is for the rivals: `ufm` is what they are compared with, and always runs to the end.
    """
    rival = RIVALS[method]
    if rival.missing:
        return _rows(method, optimum, "not installed", f"needs {', '.join(rival.missing)}")
    command = [sys.executable, "-m", "benchmarks.worker", method, name, repr(optimum), repr(limit)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=errors,
            cwd=ROOT,
            env=environment(setting(name)),
            start_new_session=True,
        )
        try:
            stopped = _wait(process, output, np.inf if method == "ufm" else limit + GRACE)
        finally:
            _stop(process)
        lines, complaints = _lines(output), _lines(errors)
    rows = (
        [Measurement.from_json(data) for data in json.loads(lines[-1])]
        if lines
        else _rows(method, optimum)
    )
    if stopped:
        for row in rows:
            row.timed_out = not row.done
    elif process.returncode != 0:
        reason = complaints[-1].strip() if complaints else f"exit status {process.returncode}"
        for row in rows:
            row.trouble, row.note = ("", row.note) if row.done else ("failed", reason[:100])
    return rows


def environment(one: Setting) -> dict[str, str]:
    """Return the environment of a measuring process.

    Nothing compiled is kept between processes; and NumPy's linear algebra stays on one thread while
    matrices are small, where more of them only wait for each other.
    """
    variables = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    if one.num_classes < FEW:
        variables["OPENBLAS_NUM_THREADS"] = "1"
    return variables


def _rows(method: str, optimum: float, trouble: str = "", note: str = "") -> list[Measurement]:
    return [
        Measurement(label, optimum, trouble=trouble, note=note) for label in RIVALS[method].labels
    ]


def _wait(process: subprocess.Popen, output: IO[bytes], patience: float) -> bool:
    """Wait for the end, or for `patience` seconds without news; return whether news stopped."""
    size, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        now = os.fstat(output.fileno()).st_size
        if now > size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > patience:
            return True
    return False


def _stop(process: subprocess.Popen) -> None:
    """End the process, with those that it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lines(stream: IO[bytes]) -> list[str]:
    stream.seek(0)
    text = stream.read().decode(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()
