"""A tree against itself: the same numbers, and a ratio for every task."""

import pytest

from benchmarks.baseline import main


def test_a_tree_is_measured_against_a_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["HEAD", "predict, K = 10", "--rounds", "1"]) == 0
    header, _, *rows = capsys.readouterr().out.strip().splitlines()[-4:]
    assert "now / before" in header
    assert [row.split("|")[1].strip() for row in rows] == ["import", "predict, K = 10"]
    assert rows[-1].split("|")[-2].strip() == "0.0e+00"
