"""The command itself: help, misspelt and ignored options, errors that begin with what was typed."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from command_line import BALLS, DECAYS, FOUR, FRAME, PHASE, Capture, refused, refuses, status
from tables import for_each

import ufm
from ufm.problems import Problem

COMMANDS = ("verify", "solve", "threshold", "phase", "mitigate", "sweep", "plot", "measure")


@for_each("columns", ["1", "20", "80"])
def test_help(columns: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ((), *((name,) for name in COMMANDS)):
        assert status([*command, "--help"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        if columns == "80":
            assert out.startswith(" ".join(["usage: ufm", *command]))


def test_no_command(capsys: Capture) -> None:
    refuses({(): "COMMAND", ("minimise",): "minimise"}, capsys)


def test_python_dash_m() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "ufm", "--help"], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0
    assert all(command in answer.stdout for command in ("verify", "solve", "threshold", "measure"))
    assert answer.stderr == ""


def test_options_that_would_be_ignored_are_refused(capsys: Capture) -> None:
    refuses(
        {
            (*PHASE, "--quantity", "rank"): "--quantity says what to draw, and goes with --plot",
            ("sweep", "--list", "phase"): "--list solves nothing and does not go with CONFIG",
            ("sweep", "--list", "--out", "a.zarr"): "does not go with --out",
            ("sweep", "--list", "--show", "phase"): "does not go with --show",
            (
                "sweep",
                "--show",
                "phase",
                "--json",
            ): "--show solves nothing and does not go with --json",
        },
        capsys,
    )


def test_what_is_misspelt_is_guessed(capsys: Capture) -> None:
    refuses(
        {
            ("slove",): "got 'slove' (did you mean solve?)",
            (
                *FOUR,
                "--wieght-decay",
                "1",
            ): "no option --wieght-decay (did you mean --weight-decay?)",
            (*FOUR, "--losss=mse"): "no option --losss=mse (did you mean --loss?)",
            ("solve", "--cuonts", "4x50", *DECAYS): "(did you mean --counts?)",
            (*FOUR, "--loss", "focla"): "got 'focla' (did you mean focal?)",
            (*FOUR, "--method", "lbgfs"): "(did you mean lbfgs?)",
            (*PHASE, "--plot", "x.png", "--quantity", "cosin"): "(did you mean cosine?)",
            (
                "threshold",
                "--counts",
                "5x500,5x5",
                *BALLS,
                "--vary",
                "inbalance_ratio",
            ): "mean imbalance_ratio?",
            ("verify", "--only", FRAME.name[:-1]): f"(did you mean {FRAME.name}?)",
            ("sweep", "--show", "lines"): "(did you mean line?)",
        },
        capsys,
    )


def test_the_version_and_the_statuses(capsys: Capture) -> None:
    assert status(["--version"]) == 0
    assert capsys.readouterr().out == f"ufm {ufm.__version__}\n"
    assert status(["--help"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.partition("exit status:\n")[2].splitlines()] == [
        "0",
        "1",
        "2",
        "130",
        "141",
    ]


def test_what_is_too_large_for_the_memory_is_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(problem: Problem, **settings: Any) -> None:
        np.zeros((10**12, 10**3))

    monkeypatch.setattr(ufm, "solve", too_large)
    assert "error: there is not enough memory: Unable to allocate" in refused(FOUR, capsys)
