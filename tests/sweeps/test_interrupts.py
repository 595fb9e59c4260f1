"""Sweeps that are killed, interrupted or out of room keep what is right, and can go on."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardships import BATCH, BOXES, KILLS, made_up, marks, slow_put, sweep

import ufm
from ufm.sweeps import run as running

local = pytest.importorskip("zarr.storage._local")
HARDSHIPS = Path(__file__).parents[1] / "builders" / "hardships.py"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a script, whatever the test runner has made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pressed(monkeypatch: pytest.MonkeyPatch, box: int, times: int) -> None:
    """Press Ctrl-C while a box is evaluated, the first one being 1."""
    evaluate, count = running.evaluate, iter(range(1, 1000))

    def evaluated(*args: Any) -> Any:
        found = evaluate(*args)
        if next(count) == box:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(running, "evaluate", evaluated)


def script(task: str, where: Path, *arguments: str, before: tuple[str, ...] = ()) -> Any:
    """What the script of hardships prints."""
    command = [*before, sys.executable, "-W", "error", str(HARDSHIPS), task, str(where), *arguments]
    # Threads of linear algebra would not survive a fork.
    alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **alone})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_kills(store: Path, seen: Any, whole: Any) -> None:
    assert seen["complete"] == 1  # the last one: twenty were killed on the way
    assert seen["written_again"] == 0
    assert seen["marks"] == sorted(seen["marks"])
    assert len(set(seen["marks"])) > 5
    assert len(seen["marks"]) == KILLS + 1
    assert seen["marks"][-1] == BOXES
    assert seen["half_written"] > 0
    assert list(store.parent.glob(".*")) == list(store.rglob("*.partial")) == []
    assert ufm.open_sweep(store).identical(whole)


@pytest.mark.slow
def test_killed_twenty_times_a_sweep_ends_as_if_nothing_had_happened(
    boxes: list[int], tmp_path: Path
) -> None:
    seen = script("kill", tmp_path / "store", "made-up")
    check_kills(tmp_path / "store", seen, sweep())


@pytest.mark.slow
def test_killed_twenty_times_while_it_solves(tmp_path: Path) -> None:
    seen = script("kill", tmp_path / "store", "solved")
    check_kills(tmp_path / "store", seen, sweep())


def test_after_ctrl_c_the_batch_in_work_is_kept(
    interruptible: None, boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, handler = tmp_path / "store", signal.getsignal(signal.SIGINT)
    pressed(monkeypatch, 3, 1)
    with pytest.raises(ufm.SweepInterrupted, match=r"interrupted; 120 of 1600 points") as stop:
        sweep(store=store)
    assert str(store) in str(stop.value)
    assert "resume=True" in str(stop.value)
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(boxes) == len(marks(store)) == 3
    assert int(np.sum(stop.value.dataset.status == 1)) == 3 * BATCH
    assert sweep(store=store, resume=True).identical(sweep())
    assert len(boxes) == 2 * BOXES


@pytest.mark.parametrize("kept", [True, False], ids=["store", "memory"])
def test_after_another_ctrl_c_it_stops_at_once(
    interruptible: None,
    boxes: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    whole = sweep()
    pressed(monkeypatch, 3, 2)
    with pytest.raises(ufm.SweepInterrupted, match="80 of 1600 points") as stop:
        sweep(store=tmp_path / "store" if kept else None)
    assert signal.getsignal(signal.SIGINT) is handler
    found = stop.value.dataset.load()
    done = found.status == 1
    assert int(done.sum()) == 2 * BATCH
    assert set(np.unique(found.status)) == {-1, 1}
    assert found.where(done).equals(whole.where(done))
    assert found.objective.where(~done).isnull().all()


def test_without_a_store_the_exception_has_the_points(
    interruptible: None, boxes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed(monkeypatch, 5, 1)
    with pytest.raises(
        ufm.SweepInterrupted, match="200 of 1600 points are done, and the exception's `dataset`"
    ) as stop:
        sweep()
    assert int(np.sum(stop.value.dataset.status == 1)) == 5 * BATCH
    assert stop.value.dataset.sizes["weight_decay"] == 40


def test_ctrl_c_at_the_last_batch_is_not_swallowed(
    interruptible: None, boxes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed(monkeypatch, BOXES, 1)
    with pytest.raises(ufm.SweepInterrupted, match="1600 of 1600 points"):
        sweep()


def test_where_ctrl_c_is_ignored_it_stays_ignored(
    interruptible: None, boxes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pressed(monkeypatch, 3, 2)
    assert np.all(sweep().status == 1)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.slow
def test_in_another_thread_signals_are_left_alone(
    interruptible: None, boxes: list[int], tmp_path: Path
) -> None:
    found: list[Any] = []
    handlers = []

    def look(done: int, total: int) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(
        target=lambda: found.append(sweep(store=tmp_path / "store", progress=look))
    )
    thread.start()
    thread.join()
    assert found[0].identical(sweep())
    assert set(handlers) == {signal.default_int_handler}


@pytest.mark.slow
def test_a_disk_that_fills_up(boxes: list[int], tmp_path: Path) -> None:
    inside = ("unshare", "--map-root-user", "--mount")
    mount = f"mount -t tmpfs -o size=512k tmpfs '{tmp_path}'"
    try:
        possible = subprocess.run([*inside, "sh", "-c", mount], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("mounting a small disk needs unshare(1) and the right to use it")
    seen = script("fill", tmp_path, before=inside)
    assert "the disk is full" in seen["message"]
    assert str(tmp_path / "store") in seen["message"]
    assert "resume=True" in seen["message"]
    assert 0 < seen["marks"] < BOXES
    assert seen["done"] == BATCH * seen["marks"]
    assert seen["right"]
    assert seen["empty"]
    assert seen["partial"] == 0
    assert seen["completed"]
    assert seen["written_again"] == 0


def full_at(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path], bool]) -> None:
    """Let the disk be full, half-way through a file."""

    def put(path: Path, value: Any, exclusive: bool = False) -> int:
        if not fails(path):
            return slow_put(path, value, exclusive)
        path.parent.mkdir(parents=True, exist_ok=True)
        with local._atomic_write(path, "wb", exclusive) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_put", put)


@pytest.mark.parametrize(
    "where",
    [
        "objective/c/20/0",
        *(
            pytest.param(box, marks=pytest.mark.slow)
            for box in ("margin/c/20/0/0", "status/c/20/0", "progress/done/c/20/0/0")
        ),
    ],
)
def test_a_box_that_could_not_be_written_has_no_mark(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store, whole = tmp_path / "store", sweep()
    full_at(monkeypatch, lambda path: path.match(where))
    with pytest.raises(ufm.SweepInterrupted, match="the disk is full") as stop:
        sweep(store=store)
    monkeypatch.undo()
    monkeypatch.setattr(running, "evaluate", made_up)
    before = marks(store)
    assert 0 < len(before) < BOXES
    files = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    assert [name for name in files if name.endswith(".partial") or "/c/20/" in name] == []
    found = stop.value.dataset.load()
    done = found.status == 1
    assert int(done.sum()) == BATCH * len(before)
    assert found.where(done).equals(whole.where(done))
    assert all(
        found[name].where(~done).isnull().all() for name in ("objective", "margin", "weight_cosine")
    )
    assert sweep(store=store, resume=True).load().identical(whole)
    assert before.items() <= marks(store).items()


@pytest.mark.parametrize("where", ["zarr.json", "weight_decay/c/0", "progress/done/zarr.json"])
def test_a_store_that_could_not_be_created_is_not_there(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full_at(monkeypatch, lambda path: path.match(where))
    with pytest.raises(OSError, match="No space left"):
        sweep(store=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
    assert boxes == []


@pytest.mark.slow
def test_what_a_process_that_died_has_begun_to_create_is_cleared(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / f".other.{'0' * 32}.unfinished"
    other.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *args, **options: None)
        full_at(patched, lambda path: path.match("margin/zarr.json"))
        with pytest.raises(OSError, match="No space left"):
            sweep(store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep(store=tmp_path / "store", resume=True).identical(sweep())
    assert set(tmp_path.iterdir()) == {other, tmp_path / "store"}


def test_a_store_that_is_taken_away_is_not_made_anew(boxes: list[int], tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(FileNotFoundError, match="no longer there"):
        sweep(store=store, progress=lambda done, total: store.rename(tmp_path / "elsewhere"))
    assert not store.exists()
    assert len(marks(tmp_path / "elsewhere")) == 1
