"""What tests of the command line share: runs, refusals, and small problems in options."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ufm
from ufm.cli import main
from ufm.problems import Problem

FRAME = ufm.theorems["squared-error-orthogonal-frame"]
DECAYS = ["--weight-decay", "5e-3", "--feature-decay", "1e-4"]
BALLS = ["--weight-ball", "1", "--feature-ball", "5"]
FOUR = ["solve", "--counts", "4x50", *DECAYS]
PEELED = ["--counts", "5x500,5x5", "--feature-dim", "20", *BALLS]
AXES = ["--x", "imbalance_ratio:1:100:6", "--y", "regularizer.features:2:10:4"]
PHASE = ["phase", *PEELED, *AXES]
TINY = """
[problem]
class_counts = "2x20,2x4"
weight_decay = 5e-3
feature_decay = 5e-4
[over]
imbalance_ratio = {low = 1, high = 10, points = 3}
loss = ["ce"]
[sweep]
quantities = ["weight_cosine", "rank"]
"""

Capture = pytest.CaptureFixture[str]


def status(arguments: list[str]) -> int:
    """The exit status, of argparse's own exits too."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else -1


def refused(arguments: list[str], capsys: Capture) -> str:
    """The one line on stderr that goes with exit status 2."""
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ufm")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "error: " in err
    assert "Traceback" not in err
    return err


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def refuses(table: dict[tuple[str, ...], str], capsys: Capture) -> None:
    """Check that every command line is refused in one line, which has the text beside it.

    A text that begins with "error: " is how the line begins.
    """
    for arguments, text in table.items():
        line = refused(list(arguments), capsys)
        assert text in line, arguments


@functools.cache
def a_solution() -> ufm.Solution:
    problem = Problem(
        class_counts=(50.0,) * 4,
        feature_dim=4,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(5e-3, 1e-4),
    )
    return ufm.solve(problem)


def features(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 5)
    means = rng.normal(size=(3, 4))
    arrays = {"features": means[labels] + 0.1 * rng.normal(size=(15, 4)), "labels": labels}
    return arrays | {"weights": means, "bias": np.zeros(3)} | changes


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


class Solves:
    """Stands in for `ufm.solve`: remembers what was asked for, and stops there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.problem: Any = None
        self.settings: dict[str, Any] = {}
        monkeypatch.setattr(ufm, "solve", self)

    def __call__(self, problem: Problem, **settings: Any) -> Any:
        self.problem, self.settings = problem, settings
        raise KeyboardInterrupt

    def of(self, *arguments: str) -> Problem:
        assert status(["solve", *arguments]) == 130
        return self.problem
