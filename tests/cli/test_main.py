import dataclasses
import functools
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import pytest

import ufm
from ufm.certificates import Certificate
from ufm.cli import main
from ufm.comparison.verify import Check
from ufm.problems import VARIABLES, Problem, deep_neural_collapse, parse_counts
from ufm.theory import Theorem
from ufm.theory.atlas import Atlas

verify_module = importlib.import_module(
    "ufm.comparison.verify"
)  # the package's attribute of that name is the function
FRAME = ufm.theorems["squared-error-orthogonal-frame"]

DECAYS = ["--weight-decay", "5e-3", "--feature-decay", "1e-4"]
BALLS = ["--weight-ball", "1", "--feature-ball", "5"]
FOUR = ["solve", "--counts", "4x50", *DECAYS]

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


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> Solves:
    return Solves(monkeypatch)


@functools.cache
def a_solution() -> ufm.Solution:
    problem = Problem(
        class_counts=(50.0,) * 4,
        feature_dim=4,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(5e-3, 1e-4),
    )
    return ufm.solve(problem)


# ufm verify


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


@pytest.mark.parametrize("field", ["objective", "feature_gram"])
@pytest.mark.parametrize("style", [[], ["--json"]], ids=["table", "json"])
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


@pytest.mark.parametrize("more", [[], ["--list"], ["--json"]])
def test_verify_refuses_an_unknown_theorem(more: list[str], capsys: Capture) -> None:
    line = refused(["verify", *more, "--only", FRAME.name, "no-such-theorem"], capsys)
    assert "no-such-theorem" in line
    assert FRAME.name in line


# ufm solve: options


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("5x500,5x5", [500] * 5 + [5] * 5),
        ("200,100,50", [200, 100, 50]),
        ("2X3,7", [3, 3, 7]),
        (" 2x3 , 7 ", [3, 3, 7]),
        ("2x2.5,1e2", [2.5, 2.5, 100]),
    ],
)
def test_counts_that_can_be_read(text: str, counts: list[float]) -> None:
    np.testing.assert_array_equal(np.asarray(parse_counts(text)), counts)


BAD_COUNTS = {
    "empty": "",
    "text": "many",
    "no classes": "x5",
    "no count": "5x",
    "trailing comma": "5x500,",
    "two separators": "2x3x4",
    "part of a class": "2.5x10",
    "zero classes": "0x5,3x5",
    "negative classes": "-2x5",
    "zero count": "2x5,0",
    "negative count": "5x500,5x-5",
    "not a number": "2xnan",
    "infinite": "2xinf",
    "overflow": "2x1e999",
    "one class": "500",
    "one class in a group": "1x500",
}


@pytest.mark.parametrize("text", BAD_COUNTS.values(), ids=BAD_COUNTS.keys())
def test_counts_that_cannot_be_read(text: str, capsys: Capture) -> None:
    with pytest.raises(ValueError, match=r"counts|sizes"):
        parse_counts(text)
    refused(["solve", f"--counts={text}", *DECAYS], capsys)


def test_the_options_of_a_problem(solves: Solves) -> None:
    problem = solves.of(
        "--counts", "5x500,5x5", "--loss", "ce", "--weight-decay", "5e-3", "--feature-decay", "1e-5"
    )
    np.testing.assert_array_equal(np.asarray(problem.class_counts), [500] * 5 + [5] * 5)
    assert problem.feature_dim == 10
    assert isinstance(problem.loss, ufm.CrossEntropy)
    assert isinstance(problem.regularizer, ufm.WeightDecay)
    assert (float(problem.regularizer.weights), float(problem.regularizer.features)) == (5e-3, 1e-5)
    assert not problem.use_bias
    assert problem.hidden_dims == ()
    assert not problem.nonnegative_features


def test_options_of_layers_bias_and_features(solves: Solves) -> None:
    problem = solves.of(
        *(
            "--counts",
            "4x50",
            "--feature-dim",
            "7",
            "--hidden",
            "6,5",
            "--activation",
            "relu",
            "--loss",
            "mse",
        ),
        *(
            "--weight-decay",
            "1e-3,2e-3,3e-3",
            "--feature-decay",
            "1e-4",
            "--bias",
            "--bias-decay",
            "1e-2",
        ),
    )
    assert problem.layer_dims == (7, 6, 5, 4)
    assert problem.activation == "relu"
    assert isinstance(problem.loss, ufm.SquaredError)
    assert isinstance(problem.regularizer, ufm.WeightDecay)
    np.testing.assert_array_equal(problem.regularizer.weights, [1e-3, 2e-3, 3e-3])
    assert float(problem.regularizer.bias) == 1e-2
    assert problem.use_bias
    assert solves.of("--counts", "4x50", *DECAYS, "--nonnegative-features").nonnegative_features


def test_options_of_the_layer_peeled_model(solves: Solves) -> None:
    problem = solves.of("--counts", "4x50", *BALLS)
    assert isinstance(problem.regularizer, ufm.NormBall)
    assert (float(problem.regularizer.weights), float(problem.regularizer.features)) == (1.0, 5.0)


@pytest.mark.parametrize(
    ("name", "kind", "attribute"),
    [
        ("label-smoothing", ufm.LabelSmoothing, "alpha"),
        ("focal", ufm.Focal, "gamma"),
        ("logit-adjusted", ufm.LogitAdjusted, None),
        ("cdt", ufm.CDT, None),
        ("class-weighted", ufm.ClassWeighted, None),
    ],
)
def test_losses_with_a_parameter(
    name: str, kind: type, attribute: str | None, solves: Solves
) -> None:
    loss = solves.of(
        "--counts", "4x50,2x5", *DECAYS, "--loss", name, "--loss-parameter", "0.25"
    ).loss
    assert isinstance(loss, kind)
    if attribute is not None:
        assert float(getattr(loss, attribute)) == 0.25


def test_options_of_the_solver(solves: Solves) -> None:
    solves.of(
        *(
            "--counts",
            "4x50",
            *DECAYS,
            "--resolution",
            "samples",
            "--method",
            "gd",
            "--learning-rate",
            "0.2",
        ),
        *(
            "--momentum",
            "0.9",
            "--tol",
            "1e-6",
            "--max-steps",
            "70",
            "--restarts",
            "3",
            "--seed",
            "5",
        ),
    )
    settings = solves.settings
    method = settings.pop("method")
    assert isinstance(method, ufm.GradientDescent)
    assert (float(method.learning_rate), float(method.momentum)) == (0.2, 0.9)
    settings.pop("progress")
    assert settings == {
        "resolution": "samples",
        "key": 5,
        "tol": 1e-6,
        "max_steps": 70,
        "restarts": 3,
    }
    for name, kind in (("lbfgs", ufm.LBFGS), ("newton", ufm.NewtonCG)):
        solves.of("--counts", "4x50", *DECAYS, "--method", name)
        assert isinstance(solves.settings["method"], kind)
    solves.of("--counts", "4x50", *DECAYS)
    assert solves.settings["method"] is None


BAD_OPTIONS = {
    "no counts": (["solve", *DECAYS], "--counts"),
    "no penalties": (["solve", "--counts", "4x50"], "--weight-decay"),
    "no feature decay": (
        ["solve", "--counts", "4x50", "--weight-decay", "1e-3"],
        "--feature-decay is missing",
    ),
    "no weight decay": (
        ["solve", "--counts", "4x50", "--feature-decay", "1e-3"],
        "--weight-decay is missing",
    ),
    "no feature ball": (
        ["solve", "--counts", "4x50", "--weight-ball", "1"],
        "--feature-ball is missing",
    ),
    "no weight ball": (
        ["solve", "--counts", "4x50", "--feature-ball", "1"],
        "--weight-ball is missing",
    ),
    "decays and balls": ([*FOUR, *BALLS], "--weight-ball"),
    "bias decay with balls": (
        ["solve", "--counts", "4x50", *BALLS, "--bias", "--bias-decay", "1"],
        "--bias-decay",
    ),
    "bias decay without bias": ([*FOUR, "--bias-decay", "1e-2"], "--bias"),
    "unknown loss": ([*FOUR, "--loss", "hinge"], "hinge"),
    "no loss parameter": ([*FOUR, "--loss", "focal"], "--loss-parameter"),
    "needless loss parameter": (
        [*FOUR, "--loss", "ce", "--loss-parameter", "1"],
        "--loss-parameter",
    ),
    "smoothing of one": ([*FOUR, "--loss", "label-smoothing", "--loss-parameter", "1"], "alpha"),
    "negative gamma": ([*FOUR, "--loss", "focal", "--loss-parameter", "-1"], "gamma"),
    "gamma is no number": ([*FOUR, "--loss", "focal", "--loss-parameter", "two"], "two"),
    "text for a number": ([*FOUR, "--feature-decay", "abc"], "abc"),
    "no dimension": ([*FOUR, "--feature-dim", "0"], "feature_dim"),
    "negative dimension": ([*FOUR, "--feature-dim", "-3"], "feature_dim"),
    "part of a dimension": ([*FOUR, "--feature-dim", "2.5"], "2.5"),
    "no hidden width": ([*FOUR, "--hidden", "0"], "hidden_dims"),
    "text for widths": ([*FOUR, "--hidden", "5,wide"], "5,wide"),
    "one decay too many": ([*FOUR, "--weight-decay", "1e-3,1e-3"], "per layer"),
    "one decay too few": ([*FOUR, "--hidden", "5,5", "--weight-decay", "1e-3,1e-3"], "per layer"),
    "one ball too many": (
        ["solve", "--counts", "4x50", "--weight-ball", "1,1", "--feature-ball", "5"],
        "per layer",
    ),
    "unknown activation": ([*FOUR, "--activation", "tanh"], "tanh"),
    "unknown method": ([*FOUR, "--method", "sgd"], "sgd"),
    "unknown option": ([*FOUR, "--weight-decays", "1"], "--weight-decays"),
    "zero rate": ([*FOUR, "--method", "gd", "--learning-rate", "0"], "learning_rate"),
    "momentum of one": ([*FOUR, "--method", "gd", "--momentum", "1"], "momentum"),
    "zero tolerance": ([*FOUR, "--tol", "0"], "tol"),
    "tolerance is NaN": ([*FOUR, "--tol", "nan"], "tol"),
    "negative steps": ([*FOUR, "--max-steps", "-1"], "max_steps"),
    "no restarts": ([*FOUR, "--restarts", "0"], "restarts"),
    "negative seed": ([*FOUR, "--seed", "-1"], "key"),
    "parts of samples": (
        ["solve", "--counts", "2x2.5", *DECAYS, "--resolution", "samples"],
        "resolution",
    ),
    "no command": ([], "COMMAND"),
    "unknown command": (["minimise"], "minimise"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_one_line(arguments: list[str], named: str, capsys: Capture) -> None:
    assert named in refused(arguments, capsys)


WITHOUT_EFFECT = {
    "learning rate": ([*FOUR, "--learning-rate", "0.1"], "--learning-rate", "--method gd"),
    "momentum": ([*FOUR, "--momentum", "0.9"], "--momentum", "--method gd"),
    "momentum of L-BFGS": (
        [*FOUR, "--method", "lbfgs", "--momentum", "0"],
        "--momentum",
        "--method gd",
    ),
    "activation": ([*FOUR, "--activation", "relu"], "--activation relu", "--hidden"),
}


@pytest.mark.parametrize(
    ("arguments", "option", "remedy"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT.keys()
)
def test_options_without_effect_are_refused(
    arguments: list[str], option: str, remedy: str, capsys: Capture
) -> None:
    line = refused(arguments, capsys)
    assert line.startswith(f"ufm: error: {option} ")
    assert remedy in line


def test_gradient_descent_has_its_default_rate(solves: Solves) -> None:
    solves.of("--counts", "4x50", *DECAYS, "--method", "gd")
    method = solves.settings["method"]
    assert (float(method.learning_rate), method.momentum) == (0.1, None)


TYPED = {
    "text for counts": (["solve", "--counts", "many", *DECAYS], "--counts"),
    "zero classes": (["solve", "--counts", "0x5,3x5", *DECAYS], "--counts"),
    "one class": (["solve", "--counts", "500", *DECAYS], "--counts"),
    "zero count": (["solve", "--counts", "2x5,0", *DECAYS], "--counts"),
    "dimension": ([*FOUR, "--feature-dim", "0"], "--feature-dim"),
    "width": ([*FOUR, "--hidden", "0"], "--hidden"),
    "weight decay": ([*FOUR, "--weight-decay", "0"], "--weight-decay"),
    "feature decay": ([*FOUR, "--feature-decay", "nan"], "--feature-decay"),
    "bias decay": ([*FOUR, "--bias", "--bias-decay", "-1"], "--bias-decay"),
    "weight ball": (
        ["solve", "--counts", "4x50", "--weight-ball", "1,1", "--feature-ball", "5"],
        "--weight-ball",
    ),
    "feature ball": (
        ["solve", "--counts", "4x50", "--weight-ball", "1", "--feature-ball", "0"],
        "--feature-ball",
    ),
    "smoothing": (
        [*FOUR, "--loss", "label-smoothing", "--loss-parameter", "1"],
        "--loss-parameter",
    ),
    "gamma": ([*FOUR, "--loss", "focal", "--loss-parameter", "-1"], "--loss-parameter"),
    "adjustment": (
        [*FOUR, "--loss", "logit-adjusted", "--loss-parameter", "nan"],
        "--loss-parameter",
    ),
    "temperature": ([*FOUR, "--loss", "cdt", "--loss-parameter", "inf"], "--loss-parameter"),
    "class weights": (
        [*FOUR, "--loss", "class-weighted", "--loss-parameter", "nan"],
        "--loss-parameter",
    ),
    "rate": ([*FOUR, "--method", "gd", "--learning-rate", "0"], "--learning-rate"),
    "momentum": ([*FOUR, "--method", "gd", "--momentum", "1"], "--momentum"),
    "tolerance": ([*FOUR, "--tol", "0"], "--tol"),
    "steps": ([*FOUR, "--max-steps", "-1"], "--max-steps"),
    "restarts": ([*FOUR, "--restarts", "0"], "--restarts"),
    "seed": ([*FOUR, "--seed", "-1"], "--seed"),
    "resolution": (
        ["solve", "--counts", "2x2.5", *DECAYS, "--resolution", "samples"],
        "--resolution",
    ),
    "theorem": (["verify", "--only", "no-such-theorem"], "--only"),
}


@pytest.mark.parametrize(("arguments", "option"), TYPED.values(), ids=TYPED.keys())
def test_errors_begin_with_the_option_that_was_typed(
    arguments: list[str], option: str, capsys: Capture
) -> None:
    assert refused(arguments, capsys).startswith(f"ufm: error: {option}: ")


BAD_NUMBERS = ["-1e-3", "nan", "inf", "-inf", "abc", "1e999", ""]


@pytest.mark.parametrize(
    "option", ["--weight-decay", "--feature-decay", "--weight-ball", "--feature-ball"]
)
@pytest.mark.parametrize("value", ["0", *BAD_NUMBERS])
def test_penalties_that_are_not_positive_and_finite(
    option: str, value: str, capsys: Capture
) -> None:
    others = BALLS if "ball" in option else DECAYS
    line = refused(["solve", "--counts", "4x50", *others, f"{option}={value}"], capsys)
    assert "_numbers" not in line


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_penalties_of_the_bias_that_are_not_finite(value: str, capsys: Capture) -> None:
    refused([*FOUR, "--bias", f"--bias-decay={value}"], capsys)


# ufm solve: answers


def test_a_step_imbalance_is_solved_and_certified(capsys: Capture) -> None:
    arguments = "solve --counts 5x500,5x5 --loss ce --weight-decay 5e-3 --feature-decay 1e-5"
    assert status(arguments.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "converged" in out
    assert "holds" in out
    assert "K = 10, N = 2525, d = 10" in out
    assert "cross-entropy-two-groups: all agree" in out


def test_a_problem_without_a_theorem_is_solved_and_certified(capsys: Capture) -> None:
    assert (
        status(
            [
                "solve",
                "--counts",
                "50,20,10",
                "--loss",
                "ce",
                "--weight-decay",
                "5e-3",
                "--feature-decay",
                "1e-4",
            ]
        )
        == 0
    )
    assert "no theorem" in capsys.readouterr().out


def test_solve_compares_with_theory(capsys: Capture) -> None:
    assert status([*FOUR, "--loss", "mse"]) == 0
    out = capsys.readouterr().out
    assert f"{FRAME.name}: all agree" in out
    assert "weight gram" in out


@pytest.mark.parametrize(
    ("options", "theorem"),
    [
        (["--loss", "mse", "--bias", *DECAYS], "squared-error-etf"),
        pytest.param(["--loss", "ce", *BALLS], "layer-peeled-etf", marks=pytest.mark.slow),
        pytest.param(
            ["--loss", "label-smoothing", "--loss-parameter", "0.1", *DECAYS],
            "label-smoothing-etf",
            marks=pytest.mark.slow,
        ),
        (
            ["--loss", "mse", "--feature-dim", "20", "--hidden", "20", "--restarts", "1", *DECAYS],
            "extended-linear-orthogonal-frame",
        ),
    ],
    ids=["bias", "layer-peeled", "label smoothing", "hidden"],
)
def test_solve_as_json(options: list[str], theorem: str, capsys: Capture) -> None:
    assert status(["solve", "--counts", "4x50", *options, "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    assert answer["status"] == "converged"
    assert answer["comparison"]["theorem"] == theorem
    assert answer["comparison"]["passed"] is True
    assert answer["certificate"]["holds"] is True
    assert answer["certificate"]["tight"] is True
    assert answer["certificate"]["lower_bound"] <= answer["objective"]
    if "--hidden" not in options:
        assert answer["verdict"] is None
        return
    assert answer["verdict"]["kind"] == "optimal"
    assert status(["solve", "--counts", "4x50", *options]) == 0
    assert "\nverdict: is neural collapse (optimal: certified gap " in capsys.readouterr().out


def test_solve_that_is_not_certified_fails(capsys: Capture) -> None:
    assert status([*FOUR, "--loss", "mse", "--max-steps", "1"]) == 1
    out = capsys.readouterr().out
    assert "does not hold" in out
    assert "not confirmed" in out
    assert status([*FOUR, "--loss", "mse", "--max-steps", "1", "--json"]) == 1
    assert strict_json(capsys.readouterr().out)["certificate"]["holds"] is False


def test_solve_json_has_no_infinity(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    known = a_solution()
    void = Certificate(known.objective, -np.inf, known.objective, 1e-9, np.nan, "void", True)
    found = eqx.tree_at(
        lambda s: s.certificate, known, void, is_leaf=lambda leaf: isinstance(leaf, Certificate)
    )
    monkeypatch.setattr(ufm, "solve", lambda problem, **settings: found)
    assert status([*FOUR, "--loss", "mse", "--json"]) == 1
    answer = strict_json(capsys.readouterr().out)
    assert answer["certificate"]["lower_bound"] is None
    assert answer["certificate"]["gap"] is None
    assert answer["objective"] == known.objective


def test_saved_solutions_hold_plain_arrays(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = a_solution()
    monkeypatch.setattr(ufm, "solve", lambda problem, **settings: known)
    path = tmp_path / "solution.npz"
    assert status([*FOUR, "--loss", "mse", "--save", str(path)]) == 0
    with np.load(path, allow_pickle=False) as saved:
        assert set(saved.files) == {
            "features", "labels", "weights", "unconstrained_features", "weights_1", "logits"
        }  # fmt: skip
        np.testing.assert_array_equal(saved["weights_1"], known.weights[0])
        np.testing.assert_array_equal(saved["features"], known.class_features)
        np.testing.assert_array_equal(saved["unconstrained_features"], known.features)
        np.testing.assert_array_equal(saved["logits"], known.logits)
    with_bias = eqx.tree_at(lambda s: s.bias, known, np.ones(4), is_leaf=lambda leaf: leaf is None)
    monkeypatch.setattr(ufm, "solve", lambda problem, **settings: with_bias)
    assert status([*FOUR, "--loss", "mse", "--save", str(path)]) == 0
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["bias"], np.ones(4))


def test_a_path_that_cannot_be_written_does_not_cost_the_answer(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "solution.npz"

    def solved(problem: Problem, **settings: Any) -> ufm.Solution:
        taken.mkdir()
        return a_solution()

    monkeypatch.setattr(ufm, "solve", solved)
    assert status([*FOUR, "--loss", "mse", "--save", str(taken)]) == 2
    out, err = capsys.readouterr()
    assert "objective" in out
    assert "--save" in err
    assert list(tmp_path.iterdir()) == [taken]
    assert err.startswith("ufm: error: ")
    assert err.count("\n") == 1


# ufm measure


def features(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 5)
    means = rng.normal(size=(3, 4))
    arrays = {"features": means[labels] + 0.1 * rng.normal(size=(15, 4)), "labels": labels}
    return arrays | {"weights": means, "bias": np.zeros(3)} | changes


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_measure_prints_tables(tmp_path: Path, capsys: Capture) -> None:
    assert status(["measure", saved(tmp_path / "good.npz", **features())]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "3 classes, 15 samples" in out
    assert all(name in out for name in ("nc1", "nc2", "nc3", "nc4"))


def test_measure_as_json_is_what_the_library_measures(tmp_path: Path, capsys: Capture) -> None:
    arrays = features()
    assert status(["measure", saved(tmp_path / "good.npz", **arrays), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    expected = ufm.metrics.neural_collapse(**arrays).to_dict()
    assert answer == json.loads(json.dumps(expected))
    del arrays["weights"], arrays["bias"]
    assert status(["measure", saved(tmp_path / "bare.npz", **arrays), "--json"]) == 0
    assert not any(name.startswith("nc4") for name in strict_json(capsys.readouterr().out))


def test_measure_json_has_no_infinity(tmp_path: Path, capsys: Capture) -> None:
    """Class means that coincide make NC1 infinite."""
    arrays = features()
    arrays["features"] = np.tile(np.random.default_rng(1).normal(size=(5, 4)), (3, 1))
    expected = ufm.metrics.neural_collapse(**arrays).to_dict()
    infinite = [
        name for name, value in expected.items() if name != "centre" and np.any(np.isinf(value))
    ]
    assert infinite
    assert status(["measure", saved(tmp_path / "equal.npz", **arrays), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    assert all(answer[name] is None or None in answer[name] for name in infinite)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("key", ["features", "labels", "weights", "bias"])
def test_measure_never_unpickles_an_array(key: str, tmp_path: Path, capsys: Capture) -> None:
    mark = tmp_path / "unpickled"
    objects = np.empty(15, object)
    objects[:] = [Payload(mark) for _ in objects]
    refused(["measure", saved(tmp_path / "objects.npz", **features(**{key: objects}))], capsys)
    assert not mark.exists()


def test_measure_never_unpickles_a_file(tmp_path: Path, capsys: Capture) -> None:
    mark, path = tmp_path / "unpickled", tmp_path / "pickle.npz"
    path.write_bytes(pickle.dumps(Payload(mark)))
    refused(["measure", str(path)], capsys)
    assert not mark.exists()
    with open(path, "rb") as file:  # it would have worked
        pickle.load(file).close()
    assert mark.exists()


@pytest.mark.parametrize(
    "missing", [("features",), ("labels",), ("features", "labels")], ids=" and ".join
)
def test_measure_refuses_missing_keys(
    missing: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    arrays = {key: value for key, value in features().items() if key not in missing}
    line = refused(["measure", saved(tmp_path / "partial.npz", **arrays), "--json"], capsys)
    assert "'features' and 'labels'" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.zeros(15, int)},
        {"labels": np.arange(3)},
        {"labels": np.array(list("abcdefghijklmno"))},
        {"features": np.full((15, 4), np.nan)},
        {"features": np.zeros(15)},
        {"weights": np.zeros((2, 4))},
        {"bias": np.zeros(4)},
    ],
    ids=[
        "one class",
        "too few labels",
        "text labels",
        "NaN",
        "flat",
        "weights of two classes",
        "bias of four classes",
    ],
)
def test_measure_refuses_arrays_that_do_not_fit(
    changes: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    refused(["measure", saved(tmp_path / "unfit.npz", **features(**changes))], capsys)


def test_measure_refuses_what_is_no_file_of_arrays(tmp_path: Path, capsys: Capture) -> None:
    good = Path(saved(tmp_path / "good.npz", **features())).read_bytes()
    (tmp_path / "text.npz").write_text("features and labels")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "flipped.npz").write_bytes(
        good[:200] + bytes(byte ^ 255 for byte in good[200:300]) + good[300:]
    )
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in (
        "missing.npz",
        "text.npz",
        "empty.npz",
        "cut.npz",
        "flipped.npz",
        "array.npy",
        ".",
    ):
        line = refused(["measure", str(tmp_path / name)], capsys)
        assert line.startswith(f"ufm: error: FILE.npz {tmp_path / name}: must ")
        assert "`path`" not in line


def test_measure_names_its_file(tmp_path: Path, capsys: Capture) -> None:
    missing, unfit = (
        str(tmp_path / "missing.npz"),
        saved(tmp_path / "unfit.npz", **features(labels=np.arange(3))),
    )
    for file in (missing, unfit):
        assert refused(["measure", file], capsys).startswith(f"ufm: error: FILE.npz {file}: ")


def network(**changes: Any) -> dict[str, Any]:
    """What `features` has, with classes of two sizes, features of either sign and a classifier that is not trained."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (50, 50, 20, 20))
    means = rng.normal(size=(4, 6))
    arrays = {"features": means[labels] + 0.1 * rng.normal(size=(140, 6)), "labels": labels}
    return arrays | {"weights": means, "bias": np.zeros(4)} | changes


def test_measure_holds_a_network_against_its_model(tmp_path: Path, capsys: Capture) -> None:
    file = saved(tmp_path / "net.npz", **network())
    arguments = [
        "measure",
        file,
        "--weight-decay",
        "5e-3",
        "--bias-decay",
        "1e-2",
        "--groups",
        "0,0,0,1",
    ]
    assert status(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(
        piece in out for piece in ("nc1_pinv", "verdict: the model", "feature decay", "weight gram")
    )
    assert status([*arguments, "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    arrays = network()
    trained = ufm.networks.TrainedNetwork.from_features(
        **arrays, weight_decay=5e-3, bias_decay=1e-2
    )
    expected = ufm.networks.compare_with_model(trained, groups=(0, 0, 0, 1)).to_dict()
    assert answer["model"]["rows"] == json.loads(json.dumps(expected["rows"]))
    assert answer["model"]["groups"] == [0, 0, 0, 1]
    assert answer["nc1_pinv"] == ufm.metrics.neural_collapse(**arrays).to_dict()["nc1_pinv"]


def test_measure_takes_its_settings_from_the_file_unless_they_are_given(
    tmp_path: Path, capsys: Capture
) -> None:
    features = np.abs(network()["features"])
    settings = {
        "weight_decay": 5e-3,
        "bias_decay": 0.0,
        "loss": "ce",
        "groups": [0, 1, 2, 3],
        "nonnegative": False,
    }
    file = saved(tmp_path / "net.npz", **network(**settings, features=features))
    assert status(["measure", file, "--json"]) == 0
    model = strict_json(capsys.readouterr().out)["model"]
    assert (model["weight_decay"], model["bias_decay"], model["groups"]) == (
        [5e-3],
        0.0,
        [0, 1, 2, 3],
    )
    assert model["model"] == "one layer"
    assert (
        status(["measure", file, "--weight-decay", "1e-3", "--feature-decay", "1e-4", "--json"])
        == 0
    )
    model = strict_json(capsys.readouterr().out)["model"]
    assert (model["weight_decay"], model["feature_decay"]) == ([1e-3], 1e-4)


@pytest.mark.slow
def test_measure_takes_any_loss_and_sign(tmp_path: Path, capsys: Capture) -> None:
    settings = {"weight_decay": 5e-3, "loss": "label-smoothing", "loss_parameter": 0.1}
    file = saved(
        tmp_path / "net.npz", **network(**settings, features=np.abs(network()["features"]))
    )
    for options, name in (
        ([], "one layer, h >= 0"),
        (["--no-nonnegative"], "one layer"),
        (["--loss", "ce", "--loss-parameter", "1"], ""),
    ):
        if name:
            assert status(["measure", file, *options, "--json"]) == 0
            assert strict_json(capsys.readouterr().out)["model"]["model"] == name
        else:
            assert "--loss ce takes no --loss-parameter" in refused(
                ["measure", file, *options], capsys
            )


def test_measure_writes_a_page(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    bare = {name: value for name, value in network().items() if name in ("features", "labels")}
    folder = tmp_path / "page"
    file = saved(tmp_path / "bare.npz", **bare)
    assert status(["measure", file, "--report", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"wrote {folder / 'index.html'}")
    page = (folder / "index.html").read_text(encoding="utf-8")
    for piece in (
        "nc1_pinv",
        "What is missing: the matrix of the last layer",
        "as --weight-decay or as the key",
    ):
        assert piece in page
    assert "<h1>bare.npz: neural collapse of a trained network</h1>" in page
    file = saved(tmp_path / "decay.npz", **bare, weight_decay=1e-3)
    assert status(["measure", file, "--report", str(folder), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    assert answer["report"] == str(folder / "index.html")
    assert "the array `weights` in the file" in answer["missing"]
    assert "--weight-decay" not in answer["missing"]
    assert "model" not in answer


@pytest.mark.slow
def test_measure_writes_the_page_of_a_model(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    file = saved(tmp_path / "net.npz", **network())
    assert status(["measure", file, "--weight-decay", "5e-3", "--report", str(tmp_path)]) == 0
    assert "verdict" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Measured and predicted" in page
    assert "What is missing" not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--weight-decay", "-1"],
            "--weight-decay: `weight_decay` must be positive and finite, got -1.0",
        ),
        (["--weight-decay", "nan"], "--weight-decay: `weight_decay` must be positive"),
        (
            ["--weight-decay", "1e-3", "--bias-decay", "-1"],
            "--bias-decay: `bias_decay` must be a finite number >= 0",
        ),
        (
            ["--weight-decay", "1e-3", "--feature-decay", "0"],
            "--feature-decay: `feature_decay` must be a positive finite",
        ),
        (
            ["--weight-decay", "1e-3", "--groups", "0,1"],
            "--groups: `groups` must be one number per class (4)",
        ),
        (["--weight-decay", "1e-3", "--loss", "focal"], "--loss focal needs a --loss-parameter"),
        (
            ["--weight-decay", "1e-3", "--loss", "ce", "--loss-parameter", "1"],
            "--loss ce takes no --loss-parameter",
        ),
        (
            ["--weight-decay", "1e-3", "--loss", "focal", "--loss-parameter", "-1"],
            "--loss-parameter: `gamma` must be",
        ),
        (
            ["--bias-decay", "1e-3"],
            "--bias-decay: `bias_decay` goes with a weight decay, which is missing",
        ),
        (["--feature-decay", "1e-3"], "--feature-decay: `feature_decay` goes with a weight decay"),
        (
            ["--groups", "0,1"],
            "--groups: `groups` goes with a weight decay, which is missing; give --weight-decay",
        ),
        (["--loss", "mse"], "--loss: `loss` goes with a weight decay"),
        (
            ["--loss-parameter", "0.1"],
            "--loss-parameter: `loss_parameter` goes with a weight decay",
        ),
        (["--no-nonnegative"], "--nonnegative: `nonnegative` goes with a weight decay"),
    ],
)
def test_measure_names_the_option(
    options: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert message in refused(
        ["measure", saved(tmp_path / "net.npz", **network()), *options], capsys
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": -1.0}, "`weight_decay` must be positive and finite, got -1.0"),
        ({"weight_decay": [1e-3, 1e-3]}, "`weight_decay` must be one number"),
        ({"weight_decay": "much"}, "`weight_decay` must be one number"),
        ({"weight_decay": 1e-3, "groups": [1, 2]}, "`groups` must be one number per class"),
        (
            {"weight_decay": 1e-3, "weights": np.zeros((4, 6))},
            "`feature_decay` cannot be estimated",
        ),
        ({"bias_decay": 1e-3}, "`bias_decay` goes with a weight decay"),
        ({"weight_decay": 1e-3, "loss": "huber"}, "`loss` must be one of ce, mse"),
        ({"weight_decay": 1e-3, "loss": "focal", "loss_parameter": -1.0}, "`gamma` must be"),
    ],
)
def test_measure_names_the_key_of_the_file(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    line = refused(["measure", saved(tmp_path / "net.npz", **network(**changes))], capsys)
    assert message in line
    if "feature_decay" not in message:
        assert "FILE.npz" in line


def test_measure_refuses_a_comparison_that_was_asked_for_and_cannot_be_made(
    tmp_path: Path, capsys: Capture
) -> None:
    arrays = network()
    del arrays["weights"], arrays["bias"]
    line = refused(
        ["measure", saved(tmp_path / "net.npz", **arrays), "--weight-decay", "5e-3"], capsys
    )
    assert "--weight-decay needs the matrix of the last layer, as the array `weights`" in line


def test_measure_lists_the_keys_that_it_did_not_read(tmp_path: Path, capsys: Capture) -> None:
    assert (
        status(
            ["measure", saved(tmp_path / "net.npz", **features(wd=5e-3, setting="{}")), "--json"]
        )
        == 0
    )
    out, err = capsys.readouterr()
    strict_json(out)
    assert err.splitlines()[0].endswith("net.npz that were not read: setting, wd")
    assert "weights, bias, weight_decay" in err.splitlines()[1]
    assert status(["measure", saved(tmp_path / "groups.npz", **features(groups=[0, 1]))]) == 0
    assert (
        capsys.readouterr().err
        == "ufm: note: of no use without a weight decay: groups; give --weight-decay\n"
    )


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "--report '': name a folder"),
        ("afile", "afile: this folder cannot be made (there is a file of this name); name another"),
        ("afile/sub", "afile/sub: this folder cannot be made (Not a directory); name another"),
    ],
)
def test_measure_says_why_there_is_no_page(
    folder: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "afile").write_text("text")
    path = str(tmp_path / folder) if folder else ""
    line = refused(
        ["measure", saved(tmp_path / "good.npz", **features()), "--report", path], capsys
    )
    assert line.startswith("ufm: error: --report ")
    assert message in line


# ufm threshold

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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--from", "3", "--to", "2"], "--from and --to: "),
        (["--from", "nan"], "--from and --to: "),
        (["--vary", "imbalance"], "--vary: "),
        (["--vary", "loss.alpha"], "--vary: "),
        (["--tol", "0"], "--tol: "),
        (["--hidden", "10"], "layers"),
        (["--loss", "focal", "--loss-parameter", "2"], "Focal"),
        (["--to", "many"], "--to"),
    ],
)
def test_threshold_refuses(arguments: list[str], option: str, capsys: Capture) -> None:
    assert option in refused([*STEP, *arguments], capsys)


# Interruption, and the command itself


def test_ctrl_c_during_a_solve_prints_what_was_reached(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(problem: Problem, **settings: Any) -> None:
        stop = ufm.SolveInterrupted("interrupted")
        stop.solution = a_solution()
        raise stop

    monkeypatch.setattr(ufm, "solve", interrupted)
    assert status(FOUR) == 130
    out, err = capsys.readouterr()
    assert f"{a_solution().objective:.15g}" in out
    assert err == "ufm: interrupted\n"
    assert status([*FOUR, "--json"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{a_solution().objective:.15g}" in err


def test_ctrl_c_before_there_is_anything(solves: Solves, capsys: Capture) -> None:
    assert status(FOUR) == 130
    assert capsys.readouterr() == ("", "ufm: interrupted\n")


def test_ctrl_c_during_verify(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_module, "check", interrupt)
    assert status(["verify"]) == 130
    assert capsys.readouterr().err == "ufm: interrupted\n"


@pytest.mark.parametrize(
    "command",
    [[], ["verify"], ["solve"], ["threshold"], ["sweep"], ["plot"], ["measure"]],
    ids=["ufm", "verify", "solve", "threshold", "sweep", "plot", "measure"],
)
def test_help(command: list[str], capsys: Capture) -> None:
    assert status([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: ufm", *command]))
    assert err == ""


def test_python_dash_m() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "ufm", "--help"], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0
    assert all(command in answer.stdout for command in ("verify", "solve", "threshold", "measure"))
    assert answer.stderr == ""


def test_a_folder_that_does_not_exist_is_named_before_the_solve(capsys: Capture) -> None:
    assert status([*FOUR, "--save", "/no/such/folder/answer.npz"]) == 2
    captured = capsys.readouterr()
    assert "--save /no/such/folder/answer.npz" in captured.err
    assert captured.out == ""


# ufm phase and ufm mitigate

PEELED = [
    "--counts",
    "5x500,5x5",
    "--feature-dim",
    "20",
    "--weight-ball",
    "1",
    "--feature-ball",
    "5",
]
AXES = ["--x", "imbalance_ratio:1:100:6", "--y", "regularizer.features:2:10:4"]


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


@pytest.mark.parametrize(
    "axis",
    [
        "imbalance_ratio",
        "imbalance_ratio:1",
        "imbalance_ratio:5:1",
        "imbalance_ratio:a:b",
        "imbalance_ratio:1:2:1",
        "imbalance_ratio:1:2:100000000000",
    ],
)
def test_phase_axes_that_cannot_be_read(axis: str, capsys: Capture) -> None:
    refused(["phase", *PEELED, "--x", axis, "--y", "regularizer.features:2:10:4"], capsys)


def test_phase_numbers_that_the_problem_does_not_have(capsys: Capture) -> None:
    line = refused(
        ["phase", *PEELED, "--x", "weight_decay:1e-3:1e-2:4", "--y", "regularizer.features:2:10:4"],
        capsys,
    )
    assert "weight_decay" in line


@pytest.mark.slow
def test_mitigate_prints_which_restore_the_etf(tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "mitigations.png"
    assert status(["mitigate", *PEELED, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "without mitigation, minority classifiers coincide"
    assert "oversampling" in out
    assert "never" in out
    assert picture.stat().st_size > 1000


def test_mitigate_refuses_another_loss(capsys: Capture) -> None:
    assert "CrossEntropy" in refused(["mitigate", *PEELED, "--loss", "mse"], capsys)


# ufm sweep and ufm plot

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


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small file, and the store that it gives."""
    folder = tmp_path_factory.mktemp("sweep")
    config, store = folder / "tiny.toml", folder / "tiny.zarr"
    config.write_text(TINY)
    assert status(["sweep", str(config), "--out", str(store), "--json"]) == 0
    return str(config), str(store)


def test_sweep_lists_and_shows_its_examples(capsys: Capture) -> None:
    assert status(["sweep", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("phase\n", "line\n", "losses\n"))
    assert all(variable.meaning in out for variable in VARIABLES)
    assert status(["sweep", "--show", "phase"]) == 0
    assert "[over]\nweight_decay = {" in capsys.readouterr().out
    assert "phases" in refused(["sweep", "--show", "phases"], capsys)


def test_sweep_keeps_a_store_and_says_what_is_in_it(
    swept: tuple[str, str], capsys: Capture, tmp_path: Path
) -> None:
    config, store = swept
    assert status(["sweep", config, "--out", store, "--resume"]) == 0  # nothing is left to do
    rows = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["points                 3, 3 of them solved", "before"]
    table = {name.strip(): value for name, value in rows[1:]}
    assert list(table) == [
        "certified", "not certified", "largest certified gap", "seconds", "points per second", "store"
    ]  # fmt: skip
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
        "quantities": ["weight_cosine", "rank"], "batch": 2, "store": arguments[3], "resume": False, "client": None,
        "progress": sys.stderr.isatty(),
    }  # fmt: skip
    found["lower_bound"][0], found["status"][0] = np.nan, ufm.Status.CONVERGED
    assert status(arguments) == 0


@pytest.mark.parametrize(
    ("cause", "code"), [(KeyboardInterrupt(), 130), (OSError("no space left"), 1)]
)
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
            "phases: there is no such file, and no example of that name (line, losses, phase)",
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


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("sweep", "xarray", "sweep"),
        ("sweep", "zarr", "sweep"),
        ("sweep", "distributed", "cluster"),
        ("plot", "zarr", "sweep"),
        ("plot", "matplotlib", "plot"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    command: str,
    module: str,
    extra: str,
    swept: tuple[str, str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    rest = (
        [swept[0], "--out", "new.zarr", "--scheduler", "tcp://127.0.0.1:1"]
        if command == "sweep"
        else [swept[1]]
    )
    line = refused([command, *rest], capsys)
    assert f'needs {module}, which is not installed: pip install "ufm[{extra}]"' in line


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


@pytest.mark.parametrize(
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


# The process: outputs that cannot be written, what is not installed, and how options are read

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
    """Exit status and stderr of command lines whose output goes to a file, or to a pipe that nobody reads."""
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
def test_outputs_that_nobody_reads_or_that_are_full() -> None:
    lines = [["--help"], ["verify", "--list"], ["sweep", "--show", "phase"]]
    full = [*lines, [*FOUR, "--loss", "mse"]]
    assert outcomes([(line, "") for line in lines] + [(line, "/dev/full") for line in full]) == [
        *[(141, "")] * len(lines),
        *[(2, FULL)] * len(full),
    ]


@pytest.mark.slow
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


PHASE = ["phase", *PEELED, *AXES]
BAD_OUTPUTS = {
    "nothing": ([*FOUR, "--save", ""], "--save '': the ending says the format"),
    "text": (
        [*FOUR, "--save", "x.txt"],
        "--save 'x.txt': the ending says the format, and must be npz; name it x.npz",
    ),
    "no ending": ([*FOUR, "--save", "x"], "name it x.npz"),
    "device": ([*FOUR, "--save", "/dev/full"], "must be npz"),
    "no folder": (
        [*FOUR, "--save", "/no/such/a.npz"],
        "--save /no/such/a.npz: there is no folder /no/such",
    ),
    "phase, text": ([*PHASE, "--save", "x.csv"], "must be npz"),
    "phase, folder": (
        [*PHASE, "--plot", "/no/such/a.png"],
        "--plot /no/such/a.png: there is no folder /no/such",
    ),
    "phase, picture": ([*PHASE, "--plot", "x.docx"], "must be png (or pdf, svg,"),
    "phase, no picture": ([*PHASE, "--plot", "x"], "name it x.png"),
    "mitigate, picture": (["mitigate", *PEELED, "--plot", "x.txt"], "name it x.png"),
    "plot, picture": (["plot", "there.zarr", "--out", "x.npz"], "name it x.png"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS.keys())
def test_outputs_are_checked_before_the_work(
    arguments: list[str], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("solve", "phase_diagram", "mitigations", "open_sweep"):
        monkeypatch.setattr(ufm, name, None)  # what would do the work
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [*PHASE, "--plot", "x.png"],
        ["mitigate", *PEELED, "--plot", "x.png"],
        ["measure", "x", "--report", "p"],
    ],
)
def test_pictures_need_matplotlib_before_the_work(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(arguments, capsys)
    assert 'needs matplotlib, which is not installed: pip install "ufm[plot]"' in line


IGNORED = {
    "quantity": (
        [*PHASE, "--quantity", "rank"],
        "--quantity says what to draw, and goes with --plot",
    ),
    "list and a file": (
        ["sweep", "--list", "phase"],
        "--list solves nothing and does not go with CONFIG",
    ),
    "list and a store": (["sweep", "--list", "--out", "a.zarr"], "does not go with --out"),
    "two lists": (["sweep", "--list", "--show", "phase"], "does not go with --show"),
    "show as JSON": (
        ["sweep", "--show", "phase", "--json"],
        "--show solves nothing and does not go with --json",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), IGNORED.values(), ids=IGNORED.keys())
def test_options_that_would_be_ignored_are_refused(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert message in refused(arguments, capsys)


def test_sweep_lists_its_examples_as_json(capsys: Capture) -> None:
    assert status(["sweep", "--list", "--json"]) == 0
    listed = strict_json(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["examples"]] == ["line", "losses", "phase"]
    assert all(entry["title"] for entry in listed["examples"])
    assert [entry["name"] for entry in listed["axes"]] == [axis.name for axis in VARIABLES]


MISSPELT = {
    "command": (["slove"], "got 'slove' (did you mean solve?)"),
    "option": (
        [*FOUR, "--wieght-decay", "1"],
        "no option --wieght-decay (did you mean --weight-decay?)",
    ),
    "option with a value": ([*FOUR, "--losss=mse"], "no option --losss=mse (did you mean --loss?)"),
    "needed option": (["solve", "--cuonts", "4x50", *DECAYS], "(did you mean --counts?)"),
    "loss": ([*FOUR, "--loss", "focla"], "got 'focla' (did you mean focal?)"),
    "method": ([*FOUR, "--method", "lbgfs"], "(did you mean lbfgs?)"),
    "quantity": ([*PHASE, "--plot", "x.png", "--quantity", "cosin"], "(did you mean cosine?)"),
    "number": (
        ["threshold", "--counts", "5x500,5x5", *BALLS, "--vary", "inbalance_ratio"],
        "mean imbalance_ratio?",
    ),
    "theorem": (["verify", "--only", FRAME.name[:-1]], f"(did you mean {FRAME.name}?)"),
    "example": (["sweep", "--show", "lines"], "(did you mean line?)"),
}


@pytest.mark.parametrize(("arguments", "message"), MISSPELT.values(), ids=MISSPELT.keys())
def test_what_is_misspelt_is_guessed(arguments: list[str], message: str, capsys: Capture) -> None:
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize("value", ["-1e-3", "-.5", "-2,-1e-3", "-inf", "-1E+4"])
def test_negative_numbers_are_values(value: str, capsys: Capture) -> None:
    assert refused(
        ["solve", "--counts", "4x50", "--weight-decay", value, "--feature-decay", "1"], capsys
    ).startswith("ufm: error: --weight-decay: ")


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


@pytest.mark.parametrize("columns", ["1", "20"])
def test_narrow_terminals(columns: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in (
        [],
        ["solve"],
        ["threshold"],
        ["phase"],
        ["sweep"],
        ["plot"],
        ["mitigate"],
        ["measure"],
        ["verify"],
    ):
        assert status([*command, "--help"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupted_solve_saves_the_point_reached(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = a_solution()

    def interrupted(problem: Problem, **settings: Any) -> None:
        stop = ufm.SolveInterrupted("interrupted")
        stop.solution = reached
        raise stop

    monkeypatch.setattr(ufm, "solve", interrupted)
    path = tmp_path / "reached.npz"
    assert status([*FOUR, "--save", str(path)]) == 130
    out, err = capsys.readouterr()
    assert out.startswith("objective ")
    assert err == f"ufm: interrupted; {path} holds the point reached\n"
    with np.load(path) as found:
        np.testing.assert_array_equal(found["features"], reached.class_features)


def test_what_is_too_large_for_the_memory_is_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(problem: Problem, **settings: Any) -> None:
        np.zeros((10**12, 10**3))

    monkeypatch.setattr(ufm, "solve", too_large)
    assert "error: there is not enough memory: Unable to allocate" in refused(FOUR, capsys)


def test_solve_says_what_groups_give_of_a_million_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.npz"
    problem = [
        "--counts",
        "500000x990,500000x10",
        "--feature-dim",
        "1000000",
        "--weight-decay",
        "1e-9",
        "--feature-decay",
        "1e-9",
    ]
    assert main(["solve", *problem, "--save", str(path)]) == 0
    printed = capsys.readouterr()
    assert "samples each" in printed.out
    assert "cross-entropy-two-groups" in printed.out
    assert "has numbers per group, not matrices" in printed.err
    assert np.load(path)["weight_cosines"].shape == (2, 2)
    assert main(["solve", *problem, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["sizes"] == [500_000, 500_000]
    rows = {row["quantity"]: row for row in found["comparison"]["rows"]}
    assert rows["logits"]["passed"]
    # what no formula in blocks covers is said, and what was solved is printed all the same
    assert main(["solve", *problem, "--loss", "mse", "--bias", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["comparison"] is None
