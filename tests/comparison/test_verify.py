import dataclasses
import functools
import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
import pytest
from tables import for_each, slow_but

import ufm
from ufm.comparison import Comparison, verify
from ufm.comparison.verify import GEOMETRY_TOLERANCE, OBJECTIVE_TOLERANCE, Check, check
from ufm.problems import Problem
from ufm.theory import SELI, Prediction, Theorem, seli
from ufm.theory.atlas import Atlas
from ufm.theory.theorems import hard_margin

module = importlib.import_module(
    "ufm.comparison.verify"
)  # the package's attribute of that name is the function
comparison_module = importlib.import_module("ufm.comparison.compare")

FRAME = ufm.theorems["squared-error-orthogonal-frame"]
GENERAL = ufm.theorems["squared-error-general-orthogonal-frame"]
ROWS = {
    "objective": "objective",
    "logits": "logits",
    "weight_gram": "weight gram",
    "feature_gram": "feature gram",
    "bias": "bias",
    "layer_norms": "layer norms (squared)",
    "singular_values": "singular values",
    "rank": "rank",
}


FOUR = {"class_counts": ufm.ClassGroups.balanced(4, 50), "feature_dim": 4}
DECAY = ufm.WeightDecay(weights=5e-3, features=1e-4)
# Theorems whose published settings have ten classes: four show the same, and share their compiled
# code with other tests.
SMALLER = {
    "label-smoothing-etf": Problem(**FOUR, loss=ufm.LabelSmoothing(0.1), regularizer=DECAY),
    "focal-etf": Problem(**FOUR, loss=ufm.Focal(2.0), regularizer=DECAY),
    "cross-entropy-two-groups": Problem(
        class_counts=(100, 100, 20, 20), feature_dim=4, loss=ufm.CrossEntropy(), regularizer=DECAY
    ),
    "layer-peeled-etf": Problem(
        **FOUR, loss=ufm.CrossEntropy(), regularizer=ufm.NormBall(weights=1.0, features=5.0)
    ),
}

SEVERAL_MINIMA = ("deep-relu-two-classes",)  # one random point may end in zero


@functools.cache
def solved(name: str) -> tuple[ufm.Solution, Prediction]:
    """A setting of a theorem, solved from one random point, and the theorem's prediction."""
    theorem = ufm.theorems[name]
    problem = SMALLER[name] if name in SMALLER else theorem.examples[0].problem
    return ufm.solve(problem, restarts=None if name in SEVERAL_MINIMA else 1), theorem.predict(
        problem
    )


def altered(prediction: Prediction, field: str, where: Any = ...) -> Prediction:
    """The prediction with one field (or its entries `where`) 1 % off.

    Zeros are off by 1 % of the largest entry, or of one.
    """
    value = np.array(getattr(prediction, field), np.float64)
    scale = float(np.max(np.abs(value))) or 1.0
    part = value[where]
    value[where] = np.where(np.abs(part) > 1e-9 * scale, 1.01 * part, part + 0.01 * scale)
    return eqx.tree_at(lambda tree: getattr(tree, field), prediction, value)


def alterations(prediction: Prediction) -> Iterator[tuple[str, Prediction]]:
    """Every single change of 1 % (of one, for the rank) that a prediction is to be caught with."""
    for field in (
        "objective",
        "logits",
        "weight_gram",
        "feature_gram",
        "bias",
        "layer_norms",
        "singular_values",
    ):
        value = getattr(prediction, field)
        if value is None:
            continue
        yield field, altered(prediction, field)
        if np.ndim(value) == 1:
            for index in range(len(value)):
                yield f"{field}[{index}]", altered(prediction, field, index)
        if np.ndim(value) == 2:
            for entry in ((0, 0), (0, 1), (-1, -2)):
                yield f"{field}[{entry}]", altered(prediction, field, entry)
    for rank in {int(prediction.rank) + 1, max(int(prediction.rank) - 1, 0)} - {
        int(prediction.rank)
    }:
        yield "rank", eqx.tree_at(lambda tree: tree.rank, prediction, np.asarray(rank))


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy is the solution's: one evaluation serves all alterations of a prediction."""
    known: dict[int, Any] = {}
    measure = comparison_module.accuracy

    def remembered(problem: Any, parameters: Any) -> Any:
        key = id(parameters.weights)
        if key not in known:  # the weights are kept, so that no others get their id
            known[key] = parameters.weights, measure(problem, parameters)
        return known[key][1]

    monkeypatch.setattr(comparison_module, "accuracy", remembered)


# One of each kind; the others are slow only because there are many, and `ufm verify` confirms them
# all.
QUICK: dict[str, Any] = {
    "cross-entropy-etf": (),
    "cross-entropy-nonnegative": pytest.mark.slow,
    "squared-error-general-orthogonal-frame": pytest.mark.slow,
    "deep-linear-free-bias": pytest.mark.slow,
}
EACH = [
    pytest.param(theorem.name, marks=QUICK.get(theorem.name, pytest.mark.nightly))
    for theorem in ufm.theorems.predictive
]


@pytest.mark.parametrize("name", EACH)
def test_every_theorem_is_confirmed_and_every_constant_is_checked(
    name: str, measured_once: None
) -> None:
    solution, prediction = solved(name)
    comparison = ufm.compare(solution, prediction)
    assert comparison.passed, str(comparison)
    assert comparison.objective_error <= OBJECTIVE_TOLERANCE
    assert comparison.geometry_error <= GEOMETRY_TOLERANCE
    count = 0
    for label, wrong in alterations(prediction):
        found = ufm.compare(solution, wrong)
        field = label.partition("[")[0]
        assert not found.passed, label
        # A rank that counts a singular value of zero is beyond any accuracy: undecided, which
        # confirms nothing either.
        verdicts = {"differs", "undecided"} if field == "rank" else {"differs"}
        assert found[ROWS[field]].verdict in verdicts, f"{label}: {found[ROWS[field]]}"
        count += 1
    assert count >= 10


@for_each("name", ["squared-error-orthogonal-frame", "squared-error-etf"])
def test_a_collapsed_prediction_is_checked_in_every_field(name: str, measured_once: None) -> None:
    theorem = ufm.theorems[name]
    (problem,) = (
        example.problem for example in theorem.examples if example.label.startswith("collapsed")
    )
    prediction = theorem.predict(problem)
    assert prediction.collapsed
    solution = ufm.solve(problem)
    assert ufm.compare(solution, prediction).passed
    for label, wrong in alterations(prediction):
        assert not ufm.compare(solution, wrong).passed, label


def test_check_reports_what_it_found() -> None:
    example = FRAME.examples[0]
    outcome = check(FRAME, example.label, example.problem)
    assert outcome.passed
    assert outcome.reason == ""
    assert (outcome.theorem, outcome.reference, outcome.setting) == (
        FRAME.name,
        FRAME.reference,
        example.label,
    )
    assert outcome.predicted == pytest.approx(outcome.found, rel=1e-9)
    assert outcome.relative_gap is not None
    assert outcome.relative_gap <= 1e-9
    assert outcome.seconds > 0


@for_each(
    ("field", "row"),
    [("objective", "objective"), ("layer_norms", "layer norms"), ("logits", "logits")],
)
def test_check_says_no_to_a_wrong_prediction(field: str, row: str) -> None:
    example = FRAME.examples[0]
    outcome = check(
        FRAME,
        example.label,
        example.problem,
        prediction=altered(FRAME.predict(example.problem), field),
    )
    assert not outcome.passed
    assert outcome.reason.startswith(row)
    assert "differs" in outcome.reason


def test_check_wants_nine_and_six_digits_as_well_as_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loose(solution: Any, prediction: Any, objective: float, geometry: float) -> Comparison:
        known = ufm.compare(solution, prediction)
        errors = {"objective": objective, "logits": geometry}
        rows = tuple(row._replace(error=errors.get(row.quantity, 0.0)) for row in known.rows)
        return known._replace(rows=rows)

    example = FRAME.examples[0]
    for objective, geometry, reason in (
        (1e-8, 0.0, "objective is off"),
        (0.0, 1e-5, "geometry is off"),
    ):
        monkeypatch.setattr(
            module, "compare", functools.partial(loose, objective=objective, geometry=geometry)
        )
        outcome = check(FRAME, example.label, example.problem)
        assert not outcome.passed
        assert outcome.reason.startswith(reason)
    for value in (np.nan, np.inf):
        monkeypatch.setattr(
            module, "compare", functools.partial(loose, objective=value, geometry=0.0)
        )
        assert not check(FRAME, example.label, example.problem).passed


def test_check_reports_the_worst_initial_point(monkeypatch: pytest.MonkeyPatch) -> None:
    example = FRAME.examples[0]
    good = ufm.solve(example.problem)
    early = ufm.solve(example.problem, max_steps=1)
    monkeypatch.setattr(module, "solve", lambda problem, key: early if key == 1 else good)
    outcome = check(FRAME, example.label, example.problem)
    assert not outcome.passed
    assert outcome.found == early.objective
    assert outcome.reason.startswith("optimality gap")


def shortened(theorem: Theorem, count: int) -> Theorem:
    examples = theorem.examples[:count]
    return dataclasses.replace(theorem, make_examples=lambda: examples)


def broken(theorem: Theorem, field: str) -> Theorem:
    return dataclasses.replace(
        theorem, formula=lambda problem: altered(theorem.formula(problem), field)
    )


@pytest.fixture
def small_atlas(monkeypatch: pytest.MonkeyPatch) -> Atlas:
    atlas = Atlas((shortened(FRAME, 3), shortened(GENERAL, 1)))
    monkeypatch.setattr(module, "theorems", atlas)
    return atlas


def test_verify_returns_one_check_per_setting_and_announces_each(small_atlas: Atlas) -> None:
    announced: list[Check] = []
    checks = verify(done=announced.append)
    assert announced == checks
    expected = [
        (theorem.name, example.label) for theorem in small_atlas for example in theorem.examples
    ]
    assert [(outcome.theorem, outcome.setting) for outcome in checks] == expected
    assert all(outcome.passed for outcome in checks)
    assert all(outcome.objective_error <= 1e-9 for outcome in checks)
    assert all(outcome.geometry_error <= 1e-6 for outcome in checks)


def test_verify_takes_names_in_the_order_given(small_atlas: Atlas) -> None:
    checks = verify([GENERAL.name], workers=1)
    assert [outcome.theorem for outcome in checks] == [GENERAL.name]


@pytest.mark.parametrize("field", ["objective", "weight_gram", "singular_values"])
def test_verify_fails_where_the_formula_is_wrong(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "theorems", Atlas((shortened(broken(FRAME, field), 1), shortened(GENERAL, 1)))
    )
    wrong, right = verify()
    assert not wrong.passed
    assert right.passed
    assert wrong.reason.startswith(ROWS[field])


def test_verify_refuses_an_unknown_name_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no-such-theorem") as refusal:
        verify(only=["no-such-theorem"])
    assert all(name in str(refusal.value) for name in ufm.theorems.names)


def outcome_of(theorem: Theorem, setting: str, **changes: Any) -> Check:
    fields = Check(
        theorem.name, theorem.reference, setting, 1.0, 1.0, 1e-12, True, 0.0, 0.0, True, "", 0.0
    )
    return fields._replace(**changes)


def test_checks_are_announced_in_order_whatever_ends_first(
    small_atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def slow_at_first(theorem: Theorem, setting: str, problem: Any) -> Check:
        time.sleep(0.2 if setting == FRAME.examples[0].label else 0.0)
        ended.append(setting)
        return outcome_of(theorem, setting)

    monkeypatch.setattr(module, "check", slow_at_first)
    announced: list[Check] = []
    checks = verify(done=announced.append, workers=2)
    settings = [example.label for theorem in small_atlas for example in theorem.examples]
    assert (
        [outcome.setting for outcome in announced]
        == [outcome.setting for outcome in checks]
        == settings
    )
    assert ended[-1] == settings[0]


def test_an_interrupted_verify_starts_no_further_checks(
    small_atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def slow(theorem: Theorem, setting: str, problem: Any) -> Check:
        begun.append(setting)
        time.sleep(0.1)
        return outcome_of(theorem, setting)

    def interrupt(outcome: Check) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check", slow)
    with pytest.raises(KeyboardInterrupt):
        verify(done=interrupt, workers=1)
    assert len(begun) <= 2


def test_a_check_becomes_a_plain_dictionary() -> None:
    outcome = outcome_of(
        FRAME, "a setting", predicted=np.float64(0.5), passed=np.bool_(False), relative_gap=None
    )
    plain = outcome.to_dict()
    assert list(plain) == list(Check._fields)
    assert type(plain["predicted"]) is float
    assert plain["passed"] is False
    assert json.loads(json.dumps(plain)) == plain


# Upper bounds and disputed claims

BOUND, CLAIM = ufm.theorems["deep-cross-entropy-low-rank"], ufm.theorems["deep-cross-entropy-etf"]


@pytest.fixture
def nothing_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was solved")

    monkeypatch.setattr(module, "solve", refuse)


def test_an_upper_bound_is_confirmed_by_its_witness(nothing_solved: None) -> None:
    example = BOUND.examples[0]
    outcome = check(BOUND, example.label, example.problem)
    assert (outcome.passed, outcome.verdict, outcome.relative_gap) == (True, "ok", None)
    assert outcome.predicted == pytest.approx(0.0295685, abs=1e-7)
    assert outcome.found == pytest.approx(outcome.predicted, rel=1e-12)


def test_an_upper_bound_off_by_little_or_above_collapse_fails(nothing_solved: None) -> None:
    example = BOUND.examples[0]
    right = BOUND.predict(example.problem)
    wrong = eqx.tree_at(lambda tree: tree.objective, right, right.objective * (1 + 1e-8))
    outcome = check(BOUND, example.label, example.problem, prediction=wrong)
    assert (outcome.passed, outcome.verdict) == (False, "FAILED")
    assert outcome.reason.startswith("objective is off by 1.0e-08")
    lower = dataclasses.replace(right, constants={"collapse": right.objective * (1 + 1e-10)})
    outcome = check(BOUND, example.label, example.problem, prediction=lower)
    assert outcome.verdict == "FAILED"
    assert "does not lie below deep neural collapse" in outcome.reason


def test_a_disputed_claim_is_neither_confirmed_nor_failed(nothing_solved: None) -> None:
    example = CLAIM.examples[0]
    outcome = check(CLAIM, example.label, example.problem)
    assert (outcome.passed, outcome.verdict, outcome.reason) == (True, "disputed", "")
    assert (outcome.predicted, outcome.found) == pytest.approx((0.0314901, 0.0295685), abs=1e-7)


def test_a_dispute_without_a_counterexample_fails(
    nothing_solved: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K = 3, where pairs lie above the simplex ETF: the claim is not contradicted."""
    problem = dataclasses.replace(
        CLAIM.examples[0].problem, class_counts=ufm.ClassGroups((1.0,) * 3)
    )
    outcome = check(CLAIM, "three classes", problem)
    assert (outcome.passed, outcome.verdict) == (False, "FAILED")
    assert outcome.found > outcome.predicted
    assert "does not lie below the claimed minimum" in outcome.reason
    for value in (np.nan, np.inf):
        claim = eqx.tree_at(lambda tree: tree.objective, CLAIM.predict(problem), np.asarray(-value))
        assert not check(CLAIM, "not a number", problem, prediction=claim).passed


def test_compare_with_an_upper_bound() -> None:
    solution, prediction = solved(FRAME.name)
    bound = dataclasses.replace(BOUND.predict(BOUND.examples[0].problem), theorem="a bound")
    for factor, passed in ((1.5, True), (1 + 1e-12, True), (1 - 1e-6, False)):
        changed = eqx.tree_at(
            lambda tree: tree.objective, bound, np.asarray(factor * solution.objective)
        )
        comparison = ufm.compare(solution, changed)
        row = comparison["objective, at most"]
        assert (comparison.passed, row.passed) == (passed, passed)
        assert (
            comparison.objective_error
            == row.error
            == (0.0 if factor > 1 else pytest.approx(1e-6, rel=1e-3))
        )
        assert comparison.geometry_error == 0
    assert prediction.bound == "exact"


# Theorems about the landscape, dynamics and hard margins


class Evidence(NamedTuple):
    """A check of another room."""

    holds: Any

    def __str__(self) -> str:
        return "a point\nthat is none"


def of_evidence(evidence: Any) -> Theorem:
    return dataclasses.replace(ufm.theorems["flow-energy"], evidence=evidence)


@for_each(
    ("holds", "verdict", "reason"),
    [
        (True, "ok", ""),
        (False, "FAILED", "a point that is none"),
        (np.bool_(False), "FAILED", "a point that is none"),
    ],
)
def test_evidence_confirms_a_theorem_or_not(holds: Any, verdict: str, reason: str) -> None:
    theorem = of_evidence(lambda dynamics, problem: Evidence(holds))
    outcome = check(theorem, "a setting", theorem.examples[0].problem)
    assert (outcome.verdict, outcome.reason) == (verdict, reason)
    assert outcome.predicted is outcome.found is outcome.geometry_error is None
    assert json.loads(json.dumps(outcome.to_dict())) == outcome.to_dict()


def test_evidence_is_made_of_the_room_that_the_theorem_is_about() -> None:
    theorem = of_evidence(lambda room, problem: Evidence(room is ufm.dynamics))
    assert check(theorem, "a setting", theorem.examples[0].problem).passed


@for_each("name", slow_but((one.name for one in hard_margin.THEOREMS), keep={0}))
@for_each(
    "field", slow_but([None, "logits", "value", "weight_gram", "feature_gram", "dual"], keep={0, 1})
)
def test_only_the_right_closed_form_of_hard_margins_is_confirmed(
    name: str, field: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(*args: Any, **options: Any) -> SELI:
        exact = seli(*args, **options)
        if field is None:
            return exact
        values = np.asarray(getattr(exact, field))
        change = 1e-4 * np.arange(1.0, 1 + values.size).reshape(values.shape)
        return exact._replace(**{field: values + change})

    file = importlib.import_module("ufm.theory.theorems.hard_margin")
    monkeypatch.setattr(file, "seli", altered)
    theorem = ufm.theorems[name]
    for example in theorem.examples:
        outcome = check(theorem, example.label, example.problem)
        assert outcome.verdict == ("ok" if field is None else "FAILED")
        assert outcome.passed or outcome.reason.startswith("closed form: DOES NOT HOLD")


def test_a_missing_extra_is_named_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    theorem = ufm.theorems["flow-energy"]
    outcome = check(theorem, "a setting", theorem.examples[0].problem)
    assert (outcome.verdict, outcome.passed) == ("not run", False)
    assert outcome.reason == "needs the extra `dynamics`"


def test_a_quick_verify_has_one_setting_a_theorem(small_atlas: Atlas) -> None:
    assert [outcome.setting for outcome in verify(quick=True)] == [
        theorem.examples[0].label for theorem in small_atlas
    ]


@pytest.mark.slow
def test_a_flow_and_a_landscape_are_confirmed() -> None:
    for name in ("flow-logistic-modes", "deep-origin-local-minimum"):
        theorem = ufm.theorems[name]
        outcome = check(theorem, "a setting", theorem.examples[0].problem)
        assert outcome.passed, outcome.reason


@pytest.mark.nightly
def test_the_whole_atlas_is_confirmed() -> None:
    checks = verify()
    assert len(checks) == sum(len(theorem.examples) for theorem in ufm.theorems)
    assert [(outcome.setting, outcome.reason) for outcome in checks if not outcome.passed] == []
