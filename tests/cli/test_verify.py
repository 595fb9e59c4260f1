import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
from command_line import FRAME, Capture, refused, status, strict_json
from tables import for_each

import ufm
from ufm.comparison.verify import Check
from ufm.problems import Problem, deep_neural_collapse
from ufm.theory import Theorem
from ufm.theory.atlas import Atlas

# The package's attribute of that name is the function.
verify_module = importlib.import_module("ufm.comparison.verify")


def shortened(theorem: Theorem, count: int) -> Theorem:
    examples = theorem.examples[:count]
    return dataclasses.replace(theorem, make_examples=lambda: examples)


def use_atlas(monkeypatch: pytest.MonkeyPatch, *members: Theorem) -> None:
    atlas = Atlas(members)
    monkeypatch.setattr(verify_module, "theorems", atlas)
    monkeypatch.setattr("ufm.theory.theorems", atlas)


def test_verify_list_names_every_theorem_and_setting(capsys: Capture) -> None:
    assert status(["verify", "--list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for theorem in ufm.theorems:
        mark = "" if theorem.predictive else f" [{theorem.status}]"
        assert f"{theorem.name}{mark}\n" in out
        assert theorem.reference in out
        assert all(example.label in out for example in theorem.examples)


def test_verify_list_as_json(capsys: Capture) -> None:
    assert status(["verify", "--list", "--json"]) == 0
    listed = strict_json(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(ufm.theorems.names)
    assert [len(entry["settings"]) for entry in listed] == [
        len(theorem.examples) for theorem in ufm.theorems
    ]


def test_verify_list_of_some(capsys: Capture) -> None:
    assert status(["verify", "--list", "--only", FRAME.name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(FRAME.name)
    assert not any(name in out for name in ufm.theorems.names if name != FRAME.name)


def test_verify_prints_a_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    use_atlas(monkeypatch, shortened(FRAME, 2), shortened(ufm.theorems["squared-error-etf"], 1))
    assert status(["verify", "--only", FRAME.name]) == 0
    out, err = capsys.readouterr()
    head, *rows, blank, summary = out.splitlines()
    for column in (
        "theorem",
        "reference",
        "setting",
        "predicted",
        "found",
        "error",
        "geometry",
        "verdict",
        "time",
    ):
        assert column in head
    assert len(rows) == 2
    assert blank == ""
    assert all(
        " ok " in row and row.startswith(FRAME.name) and FRAME.reference in row for row in rows
    )
    assert summary.startswith("2 of 2 confirmed in ")
    assert err == ""


def test_verify_as_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    use_atlas(monkeypatch, shortened(FRAME, 1))
    assert status(["verify", "--json"]) == 0
    (entry,) = strict_json(capsys.readouterr().out)
    assert set(entry) == set(Check._fields)
    assert entry["passed"] is True
    assert entry["predicted"] == pytest.approx(entry["found"], rel=1e-9)


@pytest.mark.slow
def test_verify_shows_a_disputed_claim(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = ufm.theorems["deep-cross-entropy-etf"]
    use_atlas(monkeypatch, shortened(claim, 1))
    assert status(["verify"]) == 0
    out = capsys.readouterr().out
    assert " disputed " in out
    assert "0 of 1 confirmed, 1 disputed in" in out
    assert f"disputed: {claim.name}, contradicted by Garrod & Keating" in out
    assert "FAILED" not in out
    use_atlas(monkeypatch, dataclasses.replace(shortened(claim, 1), witness=deep_neural_collapse))
    assert status(["verify"]) == 1
    assert "does not lie below the claimed minimum" in capsys.readouterr().out


@for_each(
    ("field", "style"),
    [("objective", []), ("feature_gram", []), ("objective", ["--json"])],
)
def test_verify_fails_where_a_theorem_is_one_per_cent_off(
    field: str, style: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(problem: Problem) -> Any:
        prediction = FRAME.formula(problem)
        return dataclasses.replace(prediction, **{field: 1.01 * getattr(prediction, field)})

    use_atlas(monkeypatch, dataclasses.replace(shortened(FRAME, 1), formula=wrong))
    assert status(["verify", *style]) == 1
    out = capsys.readouterr().out
    if style:
        assert [entry["passed"] for entry in strict_json(out)] == [False]
    else:
        assert "0 of 1 confirmed" in out
        assert (
            f"FAILED {FRAME.name} at {FRAME.examples[0].label}: {field.replace('_', ' ')} differs"
            in out
        )


def test_verify_json_has_no_infinity(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    use_atlas(monkeypatch, shortened(FRAME, 1))
    outcome = Check(
        "a", "b", "c", 1.0, np.inf, -np.inf, True, np.nan, np.inf, False, "not finite", 0.0
    )
    monkeypatch.setattr(verify_module, "check", lambda *arguments: outcome)
    assert status(["verify", "--json"]) == 1
    (entry,) = strict_json(capsys.readouterr().out)
    assert entry["found"] is entry["relative_gap"] is entry["objective_error"] is None
    assert entry["predicted"] == 1.0


@for_each("more", [[], ["--list"], ["--json"]])
def test_verify_refuses_an_unknown_theorem(more: list[str], capsys: Capture) -> None:
    line = refused(["verify", *more, "--only", FRAME.name, "no-such-theorem"], capsys)
    assert "no-such-theorem" in line
    assert FRAME.name in line


def test_ctrl_c_during_verify(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_module, "check", interrupt)
    assert status(["verify"]) == 130
    assert capsys.readouterr().err == "ufm: interrupted\n"
