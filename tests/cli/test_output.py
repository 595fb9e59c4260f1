"""Outputs that cannot be written, and packages that are not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import (
    AXES,
    BALLS,
    FOUR,
    FRAME,
    PEELED,
    PHASE,
    Capture,
    features,
    refused,
    refuses,
    saved,
)
from tables import for_each, slow

import ufm

DRIVER = """
import json, os, sys, warnings
warnings.simplefilter("ignore")  # of JAX, on forks: nothing has been computed before them
from ufm import cli
for arguments, target in json.loads(sys.argv[1]):
    message, said = os.pipe()
    child = os.fork()
    if child == 0:
        read, write = os.pipe()
        os.close(read)
        os.dup2(os.open(target, os.O_WRONLY) if target else write, 1)
        os.dup2(said, 2)
        os.close(said)
        sys.argv = ["ufm", *arguments]
        sys.exit(cli.main())
    os.close(said)
    err = os.fdopen(message).read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err]), flush=True)
"""


def outcomes(cases: list[tuple[list[str], str]], unbuffered: bool = False) -> list[tuple[int, str]]:
    """Exit status and stderr of command lines whose output goes to a file or an unread pipe."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *(["-u"] if unbuffered else []), "-c", DRIVER, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
    )
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(cases), done.stderr
    return found


FULL = "ufm: error: standard output: No space left on device; write the output elsewhere\n"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@needs_full
@for_each(
    "lines",
    [
        [["--help"], ["verify", "--list"]],
        slow([["threshold", "--counts", "5x500,5x5", *BALLS]] * 2),
    ],
)
def test_outputs_that_nobody_reads_or_that_are_full(lines: list[list[str]]) -> None:
    # Commands that compile nothing. Each case is a process of its own.
    cases = [*zip(lines, ["", "/dev/full"], strict=True)]
    assert outcomes(cases) == [(141, ""), (2, FULL)]


@pytest.mark.nightly
@needs_full
@pytest.mark.parametrize("unbuffered", [False, True])
def test_outputs_of_all_commands(unbuffered: bool, tmp_path: Path, swept: tuple[str, str]) -> None:
    lines = [
        ["--help"],
        ["solve", "--help"],
        [*FOUR, "--json"],
        ["threshold", "--counts", "5x500,5x5", *BALLS],
        ["phase", *PEELED, *AXES],
        ["mitigate", *PEELED],
        ["verify", "--only", FRAME.name],
        ["sweep", swept[0], "--out", swept[1], "--resume"],
        ["plot", swept[1], "--out", str(tmp_path / "a.png")],
        ["measure", saved(tmp_path / "features.npz", **features())],
    ]
    assert outcomes([(line, "") for line in lines], unbuffered) == [(141, "")] * len(lines)
    assert outcomes([(line, "/dev/full") for line in lines], unbuffered) == [(2, FULL)] * len(lines)


def test_outputs_are_checked_before_the_work(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("solve", "phase_diagram", "mitigations", "open_sweep"):
        monkeypatch.setattr(ufm, name, None)  # what would do the work
    refuses(
        {
            (*FOUR, "--save", ""): "--save '': the ending says the format",
            (
                *FOUR,
                "--save",
                "x.txt",
            ): "--save 'x.txt': the ending says the format, and must be npz; name it x.npz",
            (*FOUR, "--save", "x"): "name it x.npz",
            (*FOUR, "--save", "/dev/full"): "must be npz",
            (
                *FOUR,
                "--save",
                "/no/such/a.npz",
            ): "--save /no/such/a.npz: there is no folder /no/such",
            (*PHASE, "--save", "x.csv"): "must be npz",
            (
                *PHASE,
                "--plot",
                "/no/such/a.png",
            ): "--plot /no/such/a.png: there is no folder /no/such",
            (*PHASE, "--plot", "x.docx"): "must be png (or pdf, svg,",
            (*PHASE, "--plot", "x"): "name it x.png",
            ("mitigate", *PEELED, "--plot", "x.txt"): "name it x.png",
            ("plot", "there.zarr", "--out", "x.npz"): "name it x.png",
        },
        capsys,
    )


@for_each(
    ("arguments", "module", "extra"),
    [
        ([*PHASE, "--plot", "x.png"], "matplotlib", "plot"),
        (["mitigate", *PEELED, "--plot", "x.png"], "matplotlib", "plot"),
        (["measure", "x", "--report", "p"], "matplotlib", "plot"),
        (["sweep", "CONFIG", "--out", "new.zarr"], "xarray", "sweep"),
        (["sweep", "CONFIG", "--out", "new.zarr"], "zarr", "sweep"),
        (
            ["sweep", "CONFIG", "--out", "new.zarr", "--scheduler", "tcp://127.0.0.1:1"],
            "distributed",
            "cluster",
        ),
        (["plot", "STORE"], "zarr", "sweep"),
        (["plot", "STORE"], "matplotlib", "plot"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra_before_the_work(
    arguments: list[str],
    module: str,
    extra: str,
    swept: tuple[str, str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"CONFIG": swept[0], "STORE": swept[1]}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        line = refused([files.get(argument, argument) for argument in arguments], capsys)
    assert f'needs {module}, which is not installed: pip install "ufm[{extra}]"' in line
