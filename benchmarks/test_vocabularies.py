"""The benchmark of large vocabularies refuses what it is there to find, by its exit status."""

from typing import Any

import pytest

from benchmarks import vocabularies
from benchmarks.vocabularies import here, main, most_memory

K, DIM = 40, 8


def status(monkeypatch: pytest.MonkeyPatch, **planted: Any) -> int:
    """The exit status, with measurements in this process, and something else in one of them."""

    def measured(method: str, *setting: Any) -> dict[str, Any]:
        row = here(method, *setting)
        return row | (planted if method.startswith("2 passes") else {})

    monkeypatch.setattr(vocabularies, "measured", measured)
    return main(["--classes", str(K), "--dim", str(DIM)])


def test_small_vocabularies_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(monkeypatch) == 0
    out = capsys.readouterr().out
    assert out.count("| 40 ") == 3
    assert "K=40:" not in out


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"cdnv": 1.0}, "K=40: CDNV 1.0 is not"),
        ({"cdnv": float("nan")}, "K=40: CDNV nan is not"),
        ({"left_out": 0}, "K=40: 0 classes are left out"),
        ({"arrays": 1.01 * most_memory(K, DIM)}, "K=40: arrays take 65 MiB"),
    ],
)
def test_what_is_wrong_is_printed_and_the_exit_status_is_one(
    planted: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status(monkeypatch, **planted) == 1
    assert words in capsys.readouterr().out


def test_a_matrix_over_pairs_of_classes_is_more_memory_than_is_promised() -> None:
    for num_classes in (8000, 21841, 50000):
        assert most_memory(num_classes, 32) < 8 * num_classes**2 / 2**20 / 2
