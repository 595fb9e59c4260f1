"""`ufm sweep` and `ufm plot`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Capture, refused, status, strict_json
from tables import for_each

import ufm
from ufm.problems import VARIABLES, Problem


def test_sweep_lists_and_shows_its_examples(capsys: Capture) -> None:
    assert status(["sweep", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("phase\n", "line\n", "losses\n", "noise\n", "sparsity\n"))
    assert all(variable.meaning in out for variable in VARIABLES)
    assert status(["sweep", "--show", "phase"]) == 0
    assert "[over]\nweight_decay = {" in capsys.readouterr().out
    assert "phases" in refused(["sweep", "--show", "phases"], capsys)


def test_sweep_lists_its_examples_as_json(capsys: Capture) -> None:
    assert status(["sweep", "--list", "--json"]) == 0
    listed = strict_json(capsys.readouterr().out)
    names = ["line", "losses", "noise", "phase", "sparsity"]
    assert [entry["name"] for entry in listed["examples"]] == names
    assert all(entry["title"] for entry in listed["examples"])
    assert [entry["name"] for entry in listed["axes"]] == [axis.name for axis in VARIABLES]


def test_sweep_keeps_a_store_and_says_what_is_in_it(
    swept: tuple[str, str], capsys: Capture, tmp_path: Path
) -> None:
    config, store = swept
    assert status(["sweep", config, "--out", store, "--resume"]) == 0  # nothing is left to do
    rows = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["points                 3, 3 of them solved", "before"]
    table = {name.strip(): value for name, value in rows[1:]}
    names = "certified, not certified, largest certified gap, seconds, points per second, store"
    assert list(table) == names.split(", ")
    assert (table["certified"], table["not certified"], table["store"]) == ("3", "0", store)
    assert status(["sweep", config, "--out", store, "--resume", "--json"]) == 0
    summary = strict_json(capsys.readouterr().out)
    assert (summary["points"], summary["solved_before"], summary["not_certified"]) == (3, 3, {})
    dataset = ufm.open_sweep(store)
    assert dict(dataset.sizes) == {"imbalance_ratio": 3, "loss": 1, "group": 2, "other_group": 2}
    assert summary["largest_certified_gap"] == dataset.relative_gap.values.max()


def test_sweep_says_how_points_ended_that_are_not_certified(
    swept: tuple[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = ufm.open_sweep(swept[1]).load()
    found["certified"][:2] = False
    found["status"][0], found["lower_bound"][1] = ufm.Status.MAX_STEPS, np.nan
    settings: dict[str, Any] = {}
    monkeypatch.setattr(
        ufm, "sweep", lambda problem, over, **given: settings.update(given) or found
    )
    arguments = ["sweep", swept[0], "--out", str(tmp_path / "new.zarr"), "--batch", "2"]
    assert status(arguments) == 1
    out = capsys.readouterr().out
    assert "converged, no bound    1\nnot certified          1\n  max_steps            1\n" in out
    assert settings == {
        "quantities": ["weight_cosine", "rank"],
        "batch": 2,
        "store": arguments[3],
        "resume": False,
        "client": None,
        "progress": sys.stderr.isatty(),
    }
    found["lower_bound"][0], found["status"][0] = np.nan, ufm.Status.CONVERGED
    assert status(arguments) == 0


@for_each(("cause", "code"), [(KeyboardInterrupt(), 130), (OSError("no space left"), 1)])
def test_a_sweep_that_stops_says_how_to_go_on(
    cause: BaseException,
    code: int,
    swept: tuple[str, str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(problem: Problem, over: Any, **settings: Any) -> None:
        stop = ufm.SweepInterrupted(
            "interrupted; 1 of 3 points are done, and go on with `ufm sweep --resume`"
        )
        stop.dataset = None
        raise stop from cause

    monkeypatch.setattr(ufm, "sweep", interrupted)
    assert status(["sweep", swept[0], "--out", "new.zarr"]) == code
    assert capsys.readouterr() == (
        "", "ufm: interrupted; 1 of 3 points are done, and go on with `ufm sweep --resume`\n"
    )  # fmt: skip


@pytest.mark.slow
def test_sweep_mends_a_damaged_store(
    swept: tuple[str, str], capsys: Capture, tmp_path: Path
) -> None:
    config, store = swept
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(store, damaged)
    next(path for path in (damaged / "objective" / "c").rglob("*") if path.is_file()).unlink()
    assert status(["sweep", config, "--out", str(damaged), "--resume"]) == 0
    assert "certified" in capsys.readouterr().out
    assert ufm.open_sweep(damaged).objective.equals(ufm.open_sweep(store).objective)


def test_sweep_refuses(swept: tuple[str, str], capsys: Capture, tmp_path: Path) -> None:
    config, store = swept
    new = str(tmp_path / "new.zarr")
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("high = 10", "high = 20"))
    impossible = tmp_path / "impossible.toml"
    impossible.write_text(
        TINY.replace("[sweep]", '[sweep]\nresolution = "groups"').replace('"ce"', FOCAL)
    )
    for arguments, named in (
        ([], "CONFIG is missing"),
        ([config], "--out is missing"),
        (
            ["phases", "--out", new],
            "phases: there is no such file, and no example of that name (line, losses, noise, "
            "phase, sparsity)",
        ),
        ([config, "--out", store], f"--out {store} exists already; add --resume"),
        ([str(other), "--out", store, "--resume"], f"--out: `store` {store} is of another sweep"),
        ([config, "--out", str(tmp_path), "--resume"], "--out: "),
        ([config, "--out", new, "--batch", "0"], "--batch: `batch` must be"),
        ([str(impossible), "--out", new], "[sweep] resolution: "),
        (
            [config, "--out", new, "--scheduler", "tcp:nowhere"],
            "--scheduler tcp:nowhere: no scheduler answers there",
        ),
    ):
        assert f"error: {named}" in refused(["sweep", *arguments], capsys)
    assert not Path(new).exists()


FOCAL = '{name = "focal", parameter = 2.0}'


def test_plot_draws_a_store(swept: tuple[str, str], capsys: Capture, tmp_path: Path) -> None:
    picture = Path(swept[1]).with_suffix(".png")
    assert status(["plot", swept[1] + "/"]) == 0
    assert capsys.readouterr() == (f"{picture}\n", "")
    assert picture.stat().st_size > 1000
    other = tmp_path / "rank.svg"
    arguments = [
        "plot",
        swept[1],
        "--quantity",
        "rank",
        "--select",
        "loss=crossentropy",
        "--out",
        str(other),
    ]
    assert status(arguments) == 0
    assert "</svg>" in other.read_text()


def test_plot_selects_the_nearest_point(
    swept: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ufm import plots

    drawn = []

    def draw(dataset: Any, quantity: str | None) -> None:
        drawn.append(dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "sweep", draw)
    assert status(["plot", swept[1], "--select", "imbalance_ratio=4", "loss=CrossEntropy"]) == 130
    assert float(drawn[0].imbalance_ratio) == pytest.approx(10**0.5)
    assert drawn[0].status.dims == ()


@for_each(
    ("arguments", "named"),
    [
        (["--quantity", "colour"], "--quantity: `quantity` must be one of"),
        (
            ["--select", "weight_decay=1"],
            "--select must be AXIS=VALUE, with AXIS among imbalance_ratio, loss",
        ),
        (["--select", "loss"], "--select must be AXIS=VALUE"),
        (
            ["--select", "imbalance_ratio=ten"],
            "--select imbalance_ratio needs a number, from 1 to 10; got 'ten'",
        ),
        (["--select", "loss=mse"], "--select loss must be one of CrossEntropy; got 'mse'"),
        (["--select", "imbalance_ratio=1"], "--select: `dataset` is a single point"),
        (["--out", "/no/such/folder/a.png"], "--out /no/such/folder/a.png: there is no folder"),
    ],
)
def test_plot_refuses(
    arguments: list[str], named: str, swept: tuple[str, str], capsys: Capture
) -> None:
    assert f"error: {named}" in refused(["plot", swept[1], *arguments], capsys)


def test_plot_refuses_what_is_no_store(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert refused(["plot", str(path)], capsys).startswith("ufm: error: STORE: `store` ")
