import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import pytest
from command_line import (
    BALLS,
    DECAYS,
    FOUR,
    FRAME,
    Capture,
    Solves,
    a_solution,
    refuses,
    status,
    strict_json,
)
from tables import for_each, slow

import ufm
from ufm.certificates import Certificate
from ufm.problems import Problem


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


def test_options_of_the_solver_that_are_refused(capsys: Capture) -> None:
    descent = (*FOUR, "--method", "gd")
    parts = ("solve", "--counts", "2x2.5", *DECAYS, "--resolution", "samples")
    refuses(
        {
            (*FOUR, "--method", "sgd"): "sgd",
            (*FOUR, "--weight-decays", "1"): "--weight-decays",
            (*FOUR, "--learning-rate", "0.1"): "error: --learning-rate goes with --method gd",
            (*FOUR, "--momentum", "0.9"): "error: --momentum goes with --method gd",
            (*FOUR, "--method", "lbfgs", "--momentum", "0"): "error: --momentum goes with",
            (*descent, "--learning-rate", "0"): "error: --learning-rate: `learning_rate` must be",
            (*descent, "--momentum", "1"): "error: --momentum: `momentum` must be",
            (*FOUR, "--tol", "0"): "error: --tol: `tol` must be",
            (*FOUR, "--tol", "nan"): "error: --tol: `tol` must be",
            (*FOUR, "--max-steps", "-1"): "error: --max-steps: `max_steps` must be",
            (*FOUR, "--restarts", "0"): "error: --restarts: `restarts` must be",
            (*FOUR, "--seed", "-1"): "error: --seed: `key` must be",
            parts: "error: --resolution: `resolution`",
        },
        capsys,
    )


def test_gradient_descent_has_its_default_rate(solves: Solves) -> None:
    solves.of("--counts", "4x50", *DECAYS, "--method", "gd")
    method = solves.settings["method"]
    assert (float(method.learning_rate), method.momentum) == (0.1, None)


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
        pytest.param(["--loss", "ce", *BALLS], "layer-peeled-etf", marks=pytest.mark.nightly),
        pytest.param(
            ["--loss", "label-smoothing", "--loss-parameter", "0.1", *DECAYS],
            "label-smoothing-etf",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["--loss", "mse", "--feature-dim", "20", "--hidden", "20", "--restarts", "1", *DECAYS],
            "extended-linear-orthogonal-frame",
            marks=pytest.mark.slow,
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
    taken, known = tmp_path / "solution.npz", a_solution()

    def solved(problem: Problem, **settings: Any) -> ufm.Solution:
        taken.mkdir()
        return known

    monkeypatch.setattr(ufm, "solve", solved)
    assert status([*FOUR, "--loss", "mse", "--save", str(taken)]) == 2
    out, err = capsys.readouterr()
    assert "objective" in out
    assert "--save" in err
    assert list(tmp_path.iterdir()) == [taken]
    assert err.startswith("ufm: error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_many_equal_classes_are_compared_at_the_cost_of_the_solve(capsys: Capture) -> None:
    began = time.perf_counter()
    decays = ["--weight-decay", "1e-6", "--feature-decay", "1e-6"]
    assert status(["solve", "--counts", "3000x500", *decays]) == 0
    out, err = capsys.readouterr()
    assert "3000 in 1 group (3000 x 500)" in out
    assert "cross-entropy-etf: all agree" in out
    assert err == ""
    assert time.perf_counter() - began < 30  # hours, class by class


@for_each(
    "options",
    [["--loss", "ce"], slow(["--loss", "mse", "--bias"]), slow(["--loss", "mse", "--json"])],
)
def test_a_descent_that_diverges_prints_no_warning(options: list[str], capsys: Capture) -> None:
    # Warnings are errors here, and those of the command itself would be on stderr.
    descent = ["--method", "gd", "--learning-rate", "1e9", "--max-steps", "400"]
    assert status([*FOUR, *options, *descent]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "lower the learning rate" in out
    assert "Warning" not in out
    assert ".py" not in out
    if "--json" in options:
        assert strict_json(out)["status"] == "non_finite"


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


def test_a_folder_that_does_not_exist_is_named_before_the_solve(capsys: Capture) -> None:
    assert status([*FOUR, "--save", "/no/such/folder/answer.npz"]) == 2
    captured = capsys.readouterr()
    assert "--save /no/such/folder/answer.npz" in captured.err
    assert captured.out == ""


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


@pytest.mark.slow
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
    assert status(["solve", *problem, "--save", str(path)]) == 0
    printed = capsys.readouterr()
    assert "samples each" in printed.out
    assert "cross-entropy-two-groups" in printed.out
    assert "has numbers per group, not matrices" in printed.err
    assert np.load(path)["weight_cosines"].shape == (2, 2)
    assert status(["solve", *problem, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["sizes"] == [500_000, 500_000]
    rows = {row["quantity"]: row for row in found["comparison"]["rows"]}
    assert rows["logits"]["passed"]


@pytest.mark.slow
def test_what_no_formula_in_blocks_covers_is_printed_all_the_same(capsys: Capture) -> None:
    problem = ["--counts", "500000x990,500000x10", "--feature-dim", "1000000"]
    decays = ["--weight-decay", "1e-9", "--feature-decay", "1e-9"]
    assert status(["solve", *problem, *decays, "--loss", "mse", "--bias", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["comparison"] is None


def test_solve_tells_of_target_rows(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "found.npz"
    tags = ["--targets", "multi-label:num_labels=3,samples=30,6", "--loss", "bce", "--bias"]
    assert status(["solve", *tags, *DECAYS, "--save", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(place for place, line in enumerate(lines) if line.startswith("target"))
    assert lines[header].split() == ["target", "samples", "|h|", "margin"]
    rows = [line.split() for line in lines[header + 1 : header + 7]]
    assert [row[:4] for row in rows[2:4]] == [["0", "0", "1", "10"], ["1", "1", "0", "2"]]
    problem = Problem(
        targets=ufm.Targets.multi_label(3, {1: 30, 2: 6}),
        feature_dim=3,
        loss=ufm.BinaryCrossEntropy(),
        regularizer=ufm.WeightDecay(5e-3, 1e-4),
        use_bias=True,
    )
    solution = ufm.solve(problem)
    lengths = np.linalg.norm(solution.class_features, axis=1)
    shown = np.array([[float(cell) for cell in row[4:]] for row in rows])
    np.testing.assert_allclose(shown, np.stack([lengths, solution.margins], 1), rtol=1e-6)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["target_rows"], problem.targets.rows)
        assert arrays["features"].shape == (6, 3)
        assert "labels" not in arrays.files


@pytest.mark.slow
def test_solve_tells_what_is_typical_of_many_target_rows(capsys: Capture) -> None:
    contexts = ["--targets", "random-contexts:num_tokens=4,num_contexts=14,support=2"]
    assert status(["solve", *contexts, *DECAYS]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(place for place, line in enumerate(lines) if line.startswith("of all"))
    assert [line.split()[0] for line in lines[header + 1 : header + 4]] == [
        *("samples", "|h|", "margin")
    ]
    assert status(["solve", *contexts, *DECAYS, "--json"]) == 0
    found = strict_json(capsys.readouterr().out)["targets"]
    assert (found["rows"], found["outputs"], found["samples"]) == (14, 4, 14.0)
    assert found["least_margin"] == pytest.approx(float(lines[header + 3].split()[1]), rel=1e-6)
