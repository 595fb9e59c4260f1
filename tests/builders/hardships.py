"""A made-up evaluation, and a script of sweeps that are killed or whose disk is too small.

    python hardships.py kill STORE made-up|solved
    python hardships.py fill FOLDER

The script imports everything, starts no thread, and lets forked processes sweep: each of them is as
fresh as a process can be.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr.storage._local as local

import ufm
from ufm.sweeps import run as running
from ufm.sweeps.evaluation import Settings, blank
from ufm.sweeps.points import Points
from ufm.sweeps.store import Store

PROBLEM = ufm.Problem(
    class_counts=ufm.ClassGroups.step(4, 100, imbalance_ratio=10),
    feature_dim=4,
    loss=ufm.CrossEntropy(),
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-5),
)
OVER = {"weight_decay": np.geomspace(1e-5, 1e-2, 40), "imbalance_ratio": np.geomspace(1, 100, 40)}
BATCH, BOXES, KILLS, EARLY = 40, 40, 20, 4
QUANTITIES = ("margin", "weight_cosine", "accuracy")
SECONDS = {
    "made-up": 0.1,
    "solved": 0.08,
}  # at most, from the sign of life that is waited for to the kill


def made_up(points: Points, flat: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """Stands for `evaluate`: numbers that follow from a point's own, at once."""
    columns = [column for name, column in points.columns(flat).items() if name != "loss"]
    mixed = sum(
        (k + 1) * np.sin(1e3 * np.asarray(column, float)) for k, column in enumerate(columns)
    )
    found = {}
    for name in settings.quantities:
        empty = blank(name, (len(flat),), settings.num_groups)
        if name == "theorem":
            found[name] = np.array(ufm.theorems.names, object)[np.abs(10 * mixed).astype(int) % 3]
            continue
        values = np.multiply.outer(mixed, 1.0 + np.arange(empty[0].size)).reshape(empty.shape)
        found[name] = (
            100 * values
            if empty.dtype.kind == "i"
            else values > 0
            if empty.dtype == bool
            else values
        ).astype(empty.dtype)
    return found | {"status": np.ones(len(flat), np.int8)}


def sweep(**options: Any) -> Any:
    """The sweep of this module: 40 boxes of 40 points."""
    return ufm.sweep(PROBLEM, OVER, **({"batch": BATCH, "quantities": QUANTITIES} | options))


def marks(store: Path) -> dict[str, int]:
    """The marks of a store, with the times when they were written."""
    found = (store / "progress" / "done" / "c").glob("*/*/*")
    return {str(mark): mark.stat().st_mtime_ns for mark in found if mark.suffix != ".partial"}


def slow_put(path: Path, value: Any, exclusive: bool = False) -> int:
    """Stands for zarr's own: a file is half written for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    view = memoryview(value.as_buffer_like())
    with local._atomic_write(path, "wb", exclusive) as file:
        file.write(view[: len(view) // 2])
        file.flush()
        time.sleep(0.006)
        file.write(view[len(view) // 2 :])
    return len(view)


def swept(store: Path, how: str, early: bool, ready: int) -> None:
    """Sweep or go on, and tell by a pipe when it is time to be killed.

    That is from the beginning on, or from the first box on.
    """

    def write(self: Store, box: int, found: Any) -> None:
        os.write(ready, b".")
        original(self, box, found)

    original, Store.write = Store.write, write  # type: ignore[method-assign]
    local._put = slow_put
    if how == "made-up":
        running.evaluate = made_up
    if early:
        os.write(ready, b".")
    sweep(store=store, resume=True)


def forked(store: Path, how: str, early: bool) -> tuple[int, int]:
    """Return the process that sweeps, and the pipe by which it tells that it does."""
    assert len(os.listdir("/proc/self/task")) == 1
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            swept(store, how, early, writing)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return process, reading


def kill(store: Path, how: str) -> None:
    """Kill the sweep twenty times, then let it end; print what was seen."""
    chance = random.Random(0)
    before: dict[str, int] = {}
    seen: dict[str, Any] = {
        "marks": [],
        "half_written": 0,
        "unfinished": 0,
        "written_again": 0,
        "complete": 0,
    }
    for life in range(KILLS + 1):
        process, pipe = forked(store, how, life < EARLY)
        # Every other life or so gets through a box, however slow the machine is.
        for _ in range(1 if life < EARLY else chance.randint(1, 2)):
            os.read(pipe, 1)
        if life < KILLS:
            time.sleep(chance.uniform(0, SECONDS[how]))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(pipe)
        seen["complete"] += status == 0
        assert status in (0, signal.SIGKILL)
        seen["half_written"] += any(store.rglob("*.partial"))
        seen["unfinished"] += any(store.parent.glob(".*.unfinished"))
        after = marks(store)
        seen["written_again"] += sum(after.get(mark) != when for mark, when in before.items())
        seen["marks"].append(len(after))
        before = after
    print(json.dumps(seen))


def fill(folder: Path) -> None:
    """Sweep on a disk of half a megabyte, make room, and go on; print what was seen."""
    running.evaluate = made_up
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
    store, whole = folder / "store", sweep()
    try:
        sweep(store=store)
    except ufm.SweepInterrupted as stop:
        found, message = stop.dataset.load(), str(stop)
    done = found.status == 1
    seen = {
        "message": message,
        "done": int(done.sum()),
        "marks": len(marks(store)),
        "right": found.where(done).equals(whole.where(done)),
        "empty": bool(found.objective.where(~done).isnull().all()),
        "partial": len(list(store.rglob("*.partial"))),
    }
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    before = marks(store)
    seen["completed"] = sweep(store=store, resume=True).load().identical(whole)
    seen["written_again"] = sum(marks(store)[mark] != when for mark, when in before.items())
    print(json.dumps(seen))


if __name__ == "__main__":
    task, where, *rest = sys.argv[1:]
    if task == "kill":
        kill(Path(where), rest[0])
    else:
        fill(Path(where))
