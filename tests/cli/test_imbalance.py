"""`ufm threshold`, `ufm phase` and `ufm mitigate`."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    AXES,
    BALLS,
    DECAYS,
    PEELED,
    Capture,
    refused,
    refuses,
    status,
    strict_json,
)

import ufm

STEP = ["threshold", "--counts", "5x500,5x100", "--weight-decay", "3e-3", "--feature-decay", "3e-3"]


def test_threshold_prints_a_table(capsys: Capture) -> None:
    assert status(["threshold", "--counts", "5x500,5x5", *BALLS]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "collapse",
        "from",
        "imbalance_ratio",
        "relative",
        "error",
        "from",
        "condition",
    ]
    assert row.startswith("minority classifiers coincide  12.192447")
    assert "certified" not in head
    assert row.endswith("n_g / N <= nu")


@pytest.mark.nightly
def test_threshold_of_everything(capsys: Capture) -> None:
    assert status([*STEP, "--vary", "weight_decay", "--loss", "mse", "--all"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "sqrt(lW lH)" in head
    assert rows[0].startswith("minority classifiers coincide  0.0033333333333")
    assert (
        sum("everything vanishes" in row for row in rows) == 2
    )  # the table's line, and that of the factor
    assert any(row.startswith("everything vanishes: 2.484519") for row in rows)


def test_threshold_as_json(capsys: Capture) -> None:
    assert status([*STEP, "--vary", "num_minority", "--json"]) == 0
    entry = strict_json(capsys.readouterr().out)
    assert set(entry) == {field.name for field in dataclasses.fields(ufm.Threshold)}
    assert entry["value"] == pytest.approx(25 / 6, rel=1e-13)
    assert (entry["first_integer"], entry["exact"]) == (4, True)
    assert status([*STEP, "--loss", "mse", "--json", "--all"]) == 0
    listed = strict_json(capsys.readouterr().out)
    assert [entry["kind"] for entry in listed] == [
        "minority classifiers coincide",
        "minority features vanish",
    ]


def test_threshold_that_is_not_in_the_range(capsys: Capture) -> None:
    assert status([*STEP, "--to", "3"]) == 1
    assert "not collapsed throughout 1 to 3" in capsys.readouterr().out
    assert status([*STEP, "--loss", "mse", "--to", "3", "--all"]) == 1
    assert "nothing begins or ends to collapse" in capsys.readouterr().out
    assert status([*STEP, "--from", "3", "--to", "9"]) == 0
    assert "6.7405326" in capsys.readouterr().out


def test_threshold_refuses(capsys: Capture) -> None:
    refuses(
        {
            (*STEP, "--from", "3", "--to", "2"): "error: --from and --to: ",
            (*STEP, "--from", "nan"): "error: --from and --to: ",
            (*STEP, "--vary", "imbalance"): "error: --vary: ",
            (*STEP, "--vary", "loss.alpha"): "error: --vary: ",
            (*STEP, "--tol", "0"): "error: --tol: ",
            (*STEP, "--hidden", "10"): "layers",
            (*STEP, "--loss", "focal", "--loss-parameter", "2"): "Focal",
            (*STEP, "--to", "many"): "--to",
        },
        capsys,
    )


def test_phase_certifies_every_point_and_writes_what_it_found(
    tmp_path: Path, capsys: Capture
) -> None:
    picture, arrays = tmp_path / "phase.png", tmp_path / "phase.npz"
    assert status(["phase", *PEELED, *AXES, "--plot", str(picture), "--save", str(arrays)]) == 0
    assert "24 of 24 points certified" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
    with np.load(arrays) as saved:
        assert saved["cosine"].shape == (4, 6)
        # Past the threshold, and only there, minority classifiers coincide (and have no direction
        # where they vanish).
        assert np.array_equal(saved["minority_level"] >= 0, ~(saved["cosine"] < 1 - 1e-9))


def test_phase_refuses_axes(capsys: Capture) -> None:
    vertical = ("--y", "regularizer.features:2:10:4")
    ranges = ("", ":1", ":5:1", ":a:b", ":1:2:1", ":1:2:100000000000")
    refuses(
        {
            **{
                ("phase", *PEELED, "--x", f"imbalance_ratio{rest}", *vertical): "NAME:LOW:HIGH"
                for rest in ranges
            },
            ("phase", *PEELED, "--x", "weight_decay:1e-3:1e-2:4", *vertical): "weight_decay",
            ("mitigate", *PEELED, "--loss", "mse"): "CrossEntropy",
        },
        capsys,
    )


@pytest.mark.nightly
def test_mitigate_prints_which_restore_the_etf(tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "mitigations.png"
    assert status(["mitigate", *PEELED, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "without mitigation, minority classifiers coincide"
    assert "oversampling" in out
    assert "never" in out
    assert picture.stat().st_size > 1000


def test_threshold_of_targets(capsys: Capture) -> None:
    tree = ["threshold", "--targets", "hierarchy:num_super=2,num_sub=2,own=0.7,sibling=0.2,count=5"]
    assert status([*tree, *DECAYS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["collapse", "from", "sqrt(lW"]
    assert lines[1].startswith("classifiers of outputs (0 1), (2 3) coincide")
    assert f"{np.sqrt(5) * 0.5 / 20:.12g}" in lines[1]
    assert lines[2].startswith("everything vanishes")
    assert status([*tree, *DECAYS, "--json"]) == 0
    assert [one["status"] for one in strict_json(capsys.readouterr().out)] == ["found", "found"]
    line = refused([*tree, *DECAYS, "--vary", "imbalance_ratio"], capsys)
    assert "error: --vary: `vary` must be weight_decay" in line
