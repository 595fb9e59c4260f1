"""Processes of the command line that are interrupted at any moment.

They end at once, with one line and status 130, and leave nothing half-written.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

DECAYS = ["--weight-decay", "5e-3", "--feature-decay", "1e-4"]
TOY = ["--counts", "4x50,4x5", *DECAYS]
DEEP = ["--counts", "4x50", "--hidden", "6,6", "--activation", "relu", *DECAYS]
CONFIG = """
[problem]
class_counts = "3x20,3x4"
weight_decay = 5e-3
feature_decay = 5e-4
hidden = [6]
activation = "relu"
[over]
imbalance_ratio = {low = 1, high = 10, points = 40}
[sweep]
batch = 1
"""
# Arguments, and about how long the command runs on an idle core, in seconds, where nothing is
# compiled beforehand.
COMMANDS = {
    "solve": ([*DEEP, "--save", "answer.npz"], 20.0),
    "threshold": ([*TOY, "--all"], 4.0),
    "phase": (
        [
            *TOY,
            "--x",
            "imbalance_ratio:1:50:20",
            "--y",
            "weight_decay:1e-4:1e-2:20",
            "--plot",
            "phase.png",
        ],
        8.0,
    ),
    "mitigate": ([*TOY, "--plot", "curves.png"], 8.0),
    "verify": ([], 10.0),
    "sweep": (["sweep.toml", "--out", "store.zarr"], 20.0),
    "plot": (["done.zarr", "--out", "done.png"], 3.0),
    "measure": (["features.npz", "--weight-decay", "5e-4", "--report", "page"], 6.0),
}
SLACK = 3.0  # seconds that a busy machine may add to the two or ten that the command allows itself


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal. Tests that run in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    found = tmp_path_factory.mktemp("interrupted")
    (found / "sweep.toml").write_text(CONFIG)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    means = rng.normal(size=(3, 4))
    np.savez(
        found / "features.npz",
        features=means[labels] + 0.1 * rng.normal(size=(60, 4)),
        labels=labels,
        weights=means,
    )
    return found


def run_python(arguments: list[str], folder: Path | None = None) -> "subprocess.Popen[str]":
    cold = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "XLA_FLAGS": "",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **cold},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    return run_python(["-m", "ufm", *arguments], folder)


def check_interrupted(
    process: "subprocess.Popen[str]", allowed: float, done: bool = False
) -> tuple[str, str]:
    """Press Ctrl-C, check how the process ends, and return what it has printed.

    With `done`, its work may be over when Ctrl-C comes, and only its end still take time.
    """
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    seconds = time.monotonic() - began
    if done and process.returncode in (0, 1) and err == "":
        assert seconds < 1.0 + SLACK
        return out, err
    assert process.returncode == 130, (process.returncode, err)
    assert err.startswith("ufm: interrupted")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert seconds < allowed + SLACK
    return out, err


def check_nothing_is_half_written(folder: Path) -> None:
    assert not list(folder.glob("*.partial"))
    for path in folder.glob("answer.npz"):
        with np.load(path) as saved:
            assert all(np.all(np.isfinite(saved[name])) for name in saved.files)
    for path in folder.glob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB\x60\x82")
    for path in folder.glob("page/*"):
        assert path.name == "index.html"
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def interrupted(command: str, delay: float, folder: Path) -> int | None:
    """Interrupt a command after some time; the exit status of one that was done before."""
    arguments, _ = COMMANDS[command]
    if command == "sweep":
        arguments = [*arguments, "--resume"]
    process = started([command, *arguments], folder)
    importing(process)
    time.sleep(delay)
    if process.poll() is not None:
        _, err = process.communicate()
        assert process.returncode in (0, 1), err
        return process.returncode
    check_interrupted(process, 10.0 if command == "solve" else 2.0, done=True)
    check_nothing_is_half_written(folder)
    return None if process.returncode == 130 else process.returncode


def importing(process: "subprocess.Popen[str]") -> None:
    """Wait until the package is being imported: Python's own start is not the command's."""
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        time.sleep(0.5)
    while maps.exists() and process.poll() is None and "_multiarray_umath" not in maps.read_text():
        time.sleep(0.001)


def test_an_import_is_interrupted(folder: Path) -> None:
    process = started(["solve", *DEEP], folder)
    importing(process)
    out, err = check_interrupted(process, 1.0)
    assert (out, err) == ("", "ufm: interrupted\n")


@pytest.mark.parametrize("command", ["solve", pytest.param("sweep", marks=pytest.mark.slow)])
def test_work_is_interrupted(command: str, folder: Path) -> None:
    process = started([command, *COMMANDS[command][0]], folder)
    importing(process)
    time.sleep(random.uniform(0.0, 4.0))
    check_interrupted(process, 10.0 if command == "solve" else 2.0)
    check_nothing_is_half_written(folder)


@pytest.fixture
def prepared(command: str, folder: Path) -> Path:
    """The folder, with the store that `ufm plot` reads."""
    if command == "plot" and not (folder / "done.zarr").exists():
        small = (
            CONFIG.replace("points = 40", "points = 2")
            .replace("batch = 1", "")
            .replace("relu", "linear")
        )
        (folder / "small.toml").write_text(small)
        made = started(["sweep", "small.toml", "--out", "done.zarr", "--resume"], folder)
        _, err = made.communicate(timeout=300)
        assert made.returncode in (0, 1), err
    return folder


# Runs the command, and appends what the process is at to a file whenever that changes: a thread
# looks at where the others are. A file waits for a moment between its last byte and its name.
WATCHED = """
import os, sys, threading, time
marks = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.argv = ["ufm", *sys.argv[2:]]
WRITERS = {"cli/output.py": "write_file", "plots/report.py": "write_page",
           "sweeps/store.py": "write"}
def kind_of(code):
    name, file = code.co_name, code.co_filename.replace(os.sep, "/")
    if any(file.endswith(end) and name == writer for end, writer in WRITERS.items()):
        return "writing"
    if file.endswith("jax/_src/compiler.py") and "compile" in name:
        return "compiling"
    if "importlib" in file and "jax" in sys.modules:
        return "importing"
    if file.endswith("ufm/cli/main.py") and name == "_main":
        return "running"
def phase():
    found, own = set(), threading.get_ident()
    for thread, frame in sys._current_frames().items():
        while thread != own and frame is not None:
            found.add(kind_of(frame.f_code))
            frame = frame.f_back
    return next((one for one in ("writing", "compiling", "importing", "running") if one in found),
                "starting")
def look():
    last = None
    while True:
        now = phase()
        if now != last:
            os.write(marks, f"{now}\\n".encode())
        last = now
        time.sleep(0.002)
threading.Thread(target=look, daemon=True).start()
replace = os.replace
def late(old, new):
    if str(old).endswith(f".{os.getpid()}.partial"):
        time.sleep(0.3)
    replace(old, new)
os.replace = late
from ufm.cli import main
sys.exit(main())
"""
PHASES = ("importing", "compiling", "running", "writing")
WRITES = set(COMMANDS) - {"threshold", "verify"}  # these only print


def aimed(command: str, phase: str, delay: float, folder: Path) -> bool:
    """Interrupt a command once it is in a phase; whether it came to that."""
    arguments, _ = COMMANDS[command]
    arguments = [*arguments, "--resume"] if command == "sweep" else arguments
    marks = folder / f"{command}-{phase}.txt"
    process = run_python(["-c", WATCHED, str(marks), command, *arguments], folder)
    while process.poll() is None and not (
        marks.exists() and marks.read_text().endswith(f"{phase}\n")
    ):
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    check_nothing_is_half_written(folder)
    if process.returncode in (0, 1):  # done before, or while the last line was printed
        assert phase == "writing" or f"{phase}\n" not in marks.read_text(), (out, err)
        return f"{phase}\n" in marks.read_text()
    assert (process.returncode, err.count("\n")) == (130, 1), err
    assert err.startswith("ufm: interrupted")
    assert time.monotonic() - began < (10.0 if command == "solve" else 2.0) + SLACK
    return True


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_interrupted_in_every_phase(command: str, prepared: Path) -> None:
    rng = random.Random(command)
    phases = PHASES if command in WRITES else PHASES[:-1]
    reached = {phase: aimed(command, phase, rng.uniform(0, 0.05), prepared) for phase in phases}
    assert reached["importing"]
    assert reached["running"]
    assert reached.get("writing", True)
    # Drawing a store, and measuring, compile little or nothing.
    assert reached["compiling"] or command in ("plot", "measure")


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_interrupted_at_ten_moments(command: str, prepared: Path) -> None:
    folder = prepared
    rng = random.Random(command)
    done = [interrupted(command, rng.uniform(0.0, COMMANDS[command][1]), folder) for _ in range(10)]
    assert done.count(None) >= 3  # else nothing was interrupted


@pytest.mark.nightly
def test_the_point_reached_is_kept(folder: Path) -> None:
    """Descent that would take hours prints where it is, and saves it."""
    path = folder / "reached.npz"
    slow = [
        "--method",
        "gd",
        "--learning-rate",
        "1e-6",
        "--max-steps",
        "100000000",
        "--save",
        str(path),
    ]
    process = started(["solve", *TOY, *slow], folder)
    time.sleep(15)
    out, err = check_interrupted(process, 10.0)
    assert out.startswith("objective ")
    assert err == f"ufm: interrupted; {path} holds the point reached\n"
    assert np.load(path)["features"].shape == (8, 8)


@pytest.mark.nightly
def test_a_sweep_goes_on_where_it_was_interrupted(folder: Path) -> None:
    store = folder / "kept.zarr"
    process = started(["sweep", "sweep.toml", "--out", str(store)], folder)
    marks = store / "progress" / "done" / "c"
    while len(list(marks.rglob("*"))) < 3:
        time.sleep(0.1)
        assert process.poll() is None
    _, err = check_interrupted(process, 2.0)
    assert f"{store} holds" in err
    again = started(["sweep", "sweep.toml", "--out", str(store), "--resume"], folder)
    out, err = again.communicate(timeout=300)
    assert again.returncode in (0, 1), err
    assert "of them solved before" in out


SCRIPT = """
import sys, time
from ufm import interruption
interruption.watch()
if sys.argv[1] == "lost":  # in a destructor, as in other callbacks, an exception is ignored
    class Slow:
        def __del__(self):
            time.sleep(60)
interruption.expect(float(sys.argv[2]), "interrupted in vain")
print("ready", flush=True)
try:
    if sys.argv[1] == "deaf":
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    if sys.argv[1] == "lost":
        one = Slow()
        del one
    time.sleep(60)
except KeyboardInterrupt:
    interruption.end("" if sys.argv[1] == "silent" else "interrupted in time")
"""


# The module needs nothing of the package, whose import takes long.
ALONE = """
import sys, types
package = sys.modules["ufm"] = types.ModuleType("ufm")
package.__path__ = [sys.argv.pop(1)]
"""


def waiting(kind: str, patience: float) -> "subprocess.Popen[str]":
    package = Path(__file__).parents[2] / "ufm"
    process = run_python(["-c", ALONE + SCRIPT, str(package), kind, str(patience)])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process


@pytest.mark.parametrize(
    ("kind", "patience", "line"),
    [
        ("heard", 5.0, "in time"),
        ("silent", 5.0, "in vain"),
        ("lost", 5.0, "in time"),
        ("deaf", 1.0, "in vain"),
        ("heard", 0.0, "in vain"),
    ],
)
def test_the_process_ends_in_any_case(kind: str, patience: float, line: str) -> None:
    _, err = check_interrupted(waiting(kind, patience), patience if kind == "deaf" else 0.5)
    assert err == f"ufm: interrupted {line}\n"


def test_a_second_time_ends_at_once() -> None:
    process = waiting("deaf", 50.0)
    timer = threading.Timer(0.3, process.send_signal, [signal.SIGINT])
    timer.start()
    check_interrupted(process, 0.5)
    timer.join()
