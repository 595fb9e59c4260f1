"""The battery refutes wrong statements, repeats its problems, and agrees with a conic solver."""

import json
from pathlib import Path

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import ufm
from benchmarks import battery, exact
from benchmarks.battery import (
    CONIC_ACCURACY,
    CONIC_CLASSES,
    Job,
    Outcome,
    conic_minimum,
    drawn,
    outcomes_of,
    run,
    summary,
    violations,
)
from benchmarks.corners import LOSSES, Kind, code_of, kinds, problem_of
from ufm._support import double_precision
from ufm.problems import class_samples

COMPARED = 10
KIND = "ce.decay.none.signed.ordinary"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """One problem, solved and checked."""
    return outcomes_of(Job("one", "groups", True, ((KIND, 1),)))[0]


def test_true_statements_are_no_violations(outcome: Outcome) -> None:
    assert outcome.certified
    assert violations([outcome]) == []


@pytest.mark.parametrize("relative", [1e-12, 1e-6, np.inf])
def test_a_planted_bound_above_the_objective_is_a_violation(
    outcome: Outcome, relative: float
) -> None:
    planted = outcome._replace(
        lower_bound=outcome.objective * (1 + relative) if relative < 1 else 1e300
    )
    assert [one.what for one in violations([planted])] == ["bound"]


def test_a_planted_bound_above_the_point_of_the_other_resolution_is_a_violation(
    outcome: Outcome,
) -> None:
    # A point that is worse than its own bound is contradicted by a better one.
    worse = str(mpmath.mpf(outcome.exact) * 2)
    planted = outcome._replace(
        index=1,
        resolution="classes",
        objective=2 * outcome.objective,
        exact=worse,
        feasible=worse,
        lower_bound=1.5 * outcome.objective,
    )
    assert ("bound", "classes") in [
        (one.what, one.resolution) for one in violations([outcome, planted])
    ]


@pytest.mark.parametrize("relative", [1e-13, -1e-13, 1e-6])
def test_a_planted_objective_is_a_violation(outcome: Outcome, relative: float) -> None:
    planted = outcome._replace(objective=outcome.objective * (1 + relative))
    assert "objective" in [one.what for one in violations([planted])]
    assert "violation (objective)" in summary([planted])


def test_the_closed_form_contradicts_a_bound_above_it() -> None:
    member = ("mse.decay.none.signed.ordinary", 0)
    minimum = exact.closed_form(problem_of(Kind.named(member[0]), 0))
    bound = float(minimum) * (1 + 1e-14)
    planted = Outcome(
        *member,
        "classes",
        "batch",
        "max_steps",
        np.nan,
        bound,
        0.0,
        "",
        "",
        np.nan,
        False,
        True,
        0.0,
    )
    assert [one.what for one in violations([planted])] == ["bound"]


def test_features_below_zero_are_a_violation(outcome: Outcome) -> None:
    assert [one.what for one in violations([outcome._replace(infeasible=True)])] == ["infeasible"]


def test_converged_without_a_certificate_is_a_violation(outcome: Outcome) -> None:
    assert [one.what for one in violations([outcome._replace(relative_gap=1e-8)])] == ["status"]


def test_what_is_not_certified_is_listed_with_its_status(outcome: Outcome) -> None:
    others = (
        outcome._replace(status="stalled", relative_gap=1e-3),
        outcome._replace(status="stalled", index=7, relative_gap=2.0),
    )
    assert f"{KIND}:1,7 at groups: gap 1.0e-03 to 2.0e+00; stalled" in summary([*others])


@pytest.mark.parametrize(
    "name", ["ce", "ce.decay.none.signed", "ce.ball.penalised.signed.ordinary"]
)
def test_a_kind_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"LOSS\.REGULARIZER\.BIAS\.FEATURES\.NUMBERS"):
        Kind.named(name)


def test_problems_are_made_again_from_their_code() -> None:
    alike = [
        kind
        for kind in kinds()
        if kind.numbers == "ordinary" and kind.bias == "free" and kind.features == "signed"
    ]
    for kind in alike:
        problem = problem_of(kind, 2, seed=3)
        code = code_of(problem)
        again = eval(code, {"ufm": ufm})
        assert code_of(again) == code == code_of(problem_of(kind, 2, seed=3))
        assert code != code_of(problem_of(kind, 2, seed=4))


def test_a_store_of_another_seed_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    store.write_text(json.dumps({"seed": 1}) + "\n")
    with pytest.raises(ValueError, match="--fresh"):
        run([], 0, store, {"seed": 0}, 1)


def test_finished_jobs_are_read_from_the_store_and_a_line_cut_off_is_not(
    outcome: Outcome, tmp_path: Path
) -> None:
    store, jobs = tmp_path / "store.jsonl", [Job("one", "groups", True, ((KIND, 1),))]
    store.write_text(
        json.dumps({"seed": 0})
        + "\n"
        + json.dumps({"job": "one", "outcomes": [outcome]})
        + '\n{"job": "tw'
    )
    assert run(jobs, 0, store, {"seed": 0}, 1) == [outcome]


def test_the_exit_status_says_whether_there_is_a_violation(
    outcome: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = [Job("one", "groups", True, ((KIND, 1),))]
    monkeypatch.setattr(battery, "jobs_of", lambda quick: jobs)
    monkeypatch.setattr(battery, "commit", lambda: "this one")
    header = json.dumps({"seed": 0, "quick": False, "commit": "this one"})
    wrong = (
        outcome._replace(lower_bound=outcome.objective * (1 + 1e-9)),
        outcome._replace(objective=outcome.objective * (1 + 1e-9)),
        outcome._replace(infeasible=True),
        outcome._replace(relative_gap=1e-8),
    )
    for stated, expected in ((outcome, 0), *((one, 1) for one in wrong)):
        store = tmp_path / "store.jsonl"
        store.write_text(f"{header}\n{json.dumps({'job': 'one', 'outcomes': [stated]})}\n")
        assert battery.main(["--store", str(store), "--workers", "1"]) == expected
        printed = capsys.readouterr().out
        assert f"1 problems, 1 tries, {expected} violations" in printed
        assert ("\nviolation (" in printed) == bool(expected)


def test_exact_objectives_are_those_of_the_library() -> None:
    for loss in LOSSES:
        kind = Kind(loss, "decay", "penalised", "signed", "ordinary")
        problem = problem_of(kind, 2)
        rng, K, d = np.random.default_rng(0), problem.num_classes, problem.feature_dim
        point = ufm.Parameters(
            (rng.normal(size=(K, d)),),
            np.abs(rng.normal(size=(K, d))),
            rng.normal(size=K) if problem.use_bias else None,
        )
        plain = ufm.Problem(
            class_counts=np.asarray(problem.class_counts.per_class),
            feature_dim=d,
            loss=problem.loss.per_class(problem.class_counts),
            regularizer=ufm.WeightDecay(0.1, 0.2, 0.3),
            use_bias=problem.use_bias,
        )
        with double_precision():
            stated = float(plain.objective(point, class_samples(plain, jnp.float64)))
        value = exact.of_parameters(plain, point)
        assert abs(stated - float(value.stated)) <= value.rounding


def test_random_problems_agree_with_a_conic_solver() -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rng, compared, kinds = np.random.default_rng(10), 0, set()
    while compared < COMPARED:
        problem = drawn(rng)
        tau = float(
            np.sqrt(
                problem.regularizer.weights * problem.regularizer.features * problem.num_samples
            )
        )
        # Where hardly anything is regularised, six digits are more than a conic solver gives; where
        # nearly everything is, nothing is left.
        if problem.num_classes > CONIC_CLASSES or not 1e-3 < tau < 0.5:
            continue
        solution = ufm.solve(problem, key=compared).check()
        assert solution.objective == pytest.approx(conic_minimum(problem), rel=CONIC_ACCURACY)
        compared += 1
        kinds.add((type(problem.loss), problem.use_bias, problem.nonnegative_features))
    assert {kind[0] for kind in kinds} == {ufm.CrossEntropy, ufm.SquaredError}
    assert {kind[1] for kind in kinds} == {kind[2] for kind in kinds} == {False, True}
