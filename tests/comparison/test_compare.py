import dataclasses
import functools
import importlib
import json
import time
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from tables import for_each, slow_but

import ufm
from ufm._support import Status
from ufm.certificates import Certificate
from ufm.comparison import AGREES, DIFFERS, UNDECIDED, Comparison, compare
from ufm.comparison.compare import UNRESOLVED, Row, rank_row
from ufm.problems import Parameters, Problem
from ufm.theory import Prediction

K = 4


def a_problem(**changes: Any) -> Problem:
    fields = {
        "class_counts": ufm.ClassGroups.balanced(K, 50),
        "feature_dim": K,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=5e-3, features=1e-4),
    }
    return Problem(**(fields | changes))


PROBLEMS = {
    "cross-entropy": a_problem(loss=ufm.CrossEntropy()),
    "squared-error": a_problem(),
    "unequal": a_problem(class_counts=(80.0, 60.0, 40.0, 20.0)),
    "free bias": a_problem(use_bias=True),
    "penalised bias": a_problem(use_bias=True, regularizer=ufm.WeightDecay(5e-3, 1e-4, bias=1e-2)),
    "layer-peeled": a_problem(
        loss=ufm.CrossEntropy(), regularizer=ufm.NormBall(weights=1.0, features=5.0)
    ),
}
NARROW = a_problem(feature_dim=2, class_counts=(80.0, 60.0, 40.0, 20.0))


@functools.cache
def solved(name: str) -> ufm.Solution:
    return ufm.solve(PROBLEMS[name])


@functools.cache
def solved_narrow() -> ufm.Solution:
    return ufm.solve(NARROW)


@functools.cache
def spurious() -> ufm.Solution:
    """A local minimum where L-BFGS often ends: the last two classes have no features."""
    problem = Problem(
        class_counts=(200, 120, 70, 30, 10),
        feature_dim=5,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
        nonnegative_features=True,
    )
    for key in range(20):
        solution = ufm.solve(problem, method=ufm.LBFGS(), key=key)
        if abs(solution.objective - 1.13000113) < 1e-8:
            return solution
    raise AssertionError("no initial point led to the local minimum")


def prediction_from(solution: ufm.Solution) -> Prediction:
    """What a theorem would have to say for the solution to be right in every number."""
    logits, W, H = solution.logits, solution.weights[-1], solution.class_features
    counts = np.asarray(solution.problem.class_counts)
    bias = solution.bias
    weighted = np.sqrt(counts)[:, None] * (logits if bias is None else logits - bias)
    singular = np.linalg.svd(weighted, compute_uv=False)
    features = counts @ np.sum(solution.features**2, axis=1)
    return Prediction(
        theorem="the solution itself",
        objective=np.asarray(solution.objective),
        logits=logits,
        weight_gram=W @ W.T,
        feature_gram=H @ H.T,
        bias=bias,
        layer_norms=np.array([*(np.sum(matrix**2) for matrix in solution.weights), features]),
        singular_values=singular,
        rank=np.asarray(np.sum(singular > 1e-6 * singular[0])),
        collapsed=np.asarray(False),
        constants={},
    )


def changed(prediction: Prediction, **fields: Any) -> Prediction:
    return dataclasses.replace(prediction, **fields)


def moved(solution: ufm.Solution, parameters: Parameters) -> ufm.Solution:
    """The solution at another point, certified by that point's gap to the old objective."""
    problem = solution.problem
    certificate = ufm.certify(problem, parameters)
    assert certificate is not None
    gap = Certificate(
        certificate.objective,
        solution.objective,
        solution.objective,
        1.0,
        1.0,
        "the minimum, known here",
        True,
    )
    logits = parameters.features @ parameters.weights[0].T + (
        0 if parameters.bias is None else parameters.bias
    )
    return eqx.tree_at(
        lambda s: (
            s.objective,
            s.weights,
            s.features,
            s.bias,
            s.logits,
            s.class_features,
            s.certificate,
        ),
        solution,
        (
            certificate.objective,
            parameters.weights,
            parameters.features,
            parameters.bias,
            logits,
            parameters.features,
            gap,
        ),
        is_leaf=lambda leaf: leaf is None or isinstance(leaf, Certificate),
    )


def on_spheres(problem: Problem, parameters: Parameters) -> Parameters:
    """The nearest point on the spheres of a balanced layer-peeled problem; else the point."""
    if not isinstance(problem.regularizer, ufm.NormBall):
        return parameters
    (W,), H = parameters.weights, parameters.features
    radii = np.sqrt(K * problem.regularizer.weights), np.sqrt(K * problem.regularizer.features)
    return Parameters(
        (W * radii[0] / np.linalg.norm(W),), H * radii[1] / np.linalg.norm(H), parameters.bias
    )


def raised(solution: ufm.Solution, delta: float, direction: Any) -> ufm.Solution:
    """The solution moved along a direction until the objective has risen by `delta`."""
    problem = solution.problem
    size = 1e-3
    for _ in range(40):
        step = jax.tree.map(lambda change, size=size: size * change, direction)
        point = jax.tree.map(np.add, solution.parameters, step)
        candidate = moved(solution, on_spheres(problem, point))
        rise = candidate.objective - solution.objective
        if 0.8 * delta <= rise <= delta:
            return candidate
        size *= np.sqrt(0.9 * delta / rise) if rise > 0 else 10.0
    raise AssertionError("the objective does not rise along the direction")


def directions(solution: ufm.Solution) -> list[Any]:
    """Random directions of all blocks and of one, in units of the block, and growth of one."""
    rng = np.random.default_rng(0)

    def noise(block: np.ndarray) -> np.ndarray:
        return rng.normal(size=block.shape) * max(float(np.linalg.norm(block)), 0.1)

    parameters = solution.parameters
    still = jax.tree.map(np.zeros_like, parameters)
    found = [jax.tree.map(noise, parameters) for _ in range(6)]
    found += [
        still._replace(weights=jax.tree.map(noise, parameters.weights)),
        still._replace(features=noise(parameters.features)),
    ]
    if not isinstance(solution.problem.regularizer, ufm.NormBall):
        found.append(still._replace(features=parameters.features))
    return found


# Agreement.


@for_each("name", slow_but(PROBLEMS, keep={0, 3, 5}))
def test_a_converged_solution_agrees_with_its_theorem(name: str) -> None:
    comparison = compare(solved(name), ufm.predict(PROBLEMS[name]))
    assert comparison.passed, str(comparison)
    assert {row.verdict for row in comparison.rows} == {AGREES}
    assert comparison.basis == "the certified gap"
    assert comparison.objective_error == comparison["objective"].error <= 1e-9
    assert comparison.geometry_error <= 1e-6
    assert max(row.tolerance for row in comparison.rows) <= 1e-4
    names = {
        "optimality gap",
        "objective",
        "logits",
        "weight gram",
        "feature gram",
        "weight norms",
        "feature norms",
    }
    names |= {"layer norms (squared)", "alignment cos(w, mu)", "singular values", "rank"}
    names |= {"margin"} if "margin" in ufm.predict(PROBLEMS[name]).constants else set()
    assert {row.quantity for row in comparison.rows} == names | (
        {"bias"} if "bias" in name else set()
    )


@pytest.mark.slow
@for_each("name", ["cross-entropy", "penalised bias", "layer-peeled"])
@for_each("relative_delta", [1e-6, 1e-9])
def test_the_tolerance_bounds_the_error_within_the_gap(name: str, relative_delta: float) -> None:
    """Within delta of the minimum, quantities are within their tolerances."""
    solution, prediction = solved(name), ufm.predict(PROBLEMS[name])
    delta = relative_delta * solution.objective
    for direction in directions(solution):
        comparison = compare(raised(solution, delta, direction), prediction)
        for row in comparison.rows:
            assert row.error <= row.tolerance or row.quantity in ("optimality gap", "rank"), (
                f"{row}"
            )
        assert comparison["objective"].error == pytest.approx(0.9 * relative_delta, rel=0.2)
        assert comparison["rank"].verdict != DIFFERS


def test_the_tolerance_is_not_larger_than_it_need_be() -> None:
    """Growth of the features alone moves their Gram matrix by a good part of its tolerance."""
    solution, prediction = solved("squared-error"), ufm.predict(PROBLEMS["squared-error"])
    still = jax.tree.map(np.zeros_like, solution.parameters)
    grown = raised(solution, 1e-8 * solution.objective, still._replace(features=solution.features))
    row = compare(grown, prediction)["feature gram"]
    assert row.tolerance / 20 <= row.error <= row.tolerance


@for_each("name", ["cross-entropy", "penalised bias", "layer-peeled"])
def test_rotations_of_feature_space_change_nothing(name: str) -> None:
    solution, prediction = solved(name), ufm.predict(PROBLEMS[name])
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(K, K)))[0]
    turned = eqx.tree_at(
        lambda s: (s.weights, s.features, s.class_features),
        solution,
        (
            (solution.weights[0] @ rotation,),
            solution.features @ rotation,
            solution.class_features @ rotation,
        ),
    )
    for before, after in zip(
        compare(solution, prediction).rows, compare(turned, prediction).rows, strict=True
    ):
        assert after.verdict == before.verdict
        assert after.found == pytest.approx(before.found, rel=1e-13, abs=1e-13)
        assert after.error == pytest.approx(before.error, rel=1e-6, abs=1e-13)
        assert after.tolerance == pytest.approx(before.tolerance, rel=1e-6)


def test_sample_resolution_is_compared_by_class_means() -> None:
    solution, prediction = solved("unequal"), ufm.predict(PROBLEMS["unequal"])
    samples = eqx.tree_at(
        lambda s: (s.features, s.resolution), solution, (solution.sample_features, "samples")
    )
    for before, after in zip(
        compare(solution, prediction).rows, compare(samples, prediction).rows, strict=True
    ):
        assert after.verdict == before.verdict
        assert after.error == pytest.approx(before.error, rel=1e-6, abs=1e-12)


# Disagreement.


@for_each(
    "other",
    [
        a_problem(regularizer=ufm.WeightDecay(5.05e-3, 1e-4)),
        a_problem(regularizer=ufm.WeightDecay(1e-3, 5e-4)),
        a_problem(class_counts=(51.0, 50.0, 50.0, 49.0)),
        a_problem(loss=ufm.CrossEntropy()),
        a_problem(use_bias=True),
        a_problem(feature_dim=2),
    ],
)
def test_a_prediction_for_another_problem_differs(other: Problem) -> None:
    comparison = compare(solved("squared-error"), ufm.predict(other))
    assert not comparison.passed
    assert DIFFERS in {row.verdict for row in comparison.rows}
    assert "not confirmed" in str(comparison)


@for_each(
    "other",
    [
        a_problem(class_counts=ufm.ClassGroups.balanced(5, 50), feature_dim=5),
        a_problem(hidden_dims=(4,)),
    ],
)
def test_a_prediction_for_another_size_is_refused(other: Problem) -> None:
    with pytest.raises(ValueError, match="predict the same problem"):
        compare(solved("squared-error"), ufm.predict(other))


@for_each(
    ("field", "shape"),
    [
        ("logits", (3, 3)),
        ("logits", ()),
        ("weight_gram", (K,)),
        ("feature_gram", (1, K)),
        ("objective", (2,)),
    ],
)
def test_a_prediction_of_the_wrong_shape_is_refused(field: str, shape: tuple[int, ...]) -> None:
    wrong = changed(ufm.predict(PROBLEMS["squared-error"]), **{field: np.ones(shape)})
    with pytest.raises(ValueError, match=field):
        compare(solved("squared-error"), wrong)


def test_a_bias_of_the_wrong_shape_is_refused() -> None:
    wrong = changed(ufm.predict(PROBLEMS["free bias"]), bias=np.full(1, 0.25))
    with pytest.raises(ValueError, match="bias"):
        compare(solved("free bias"), wrong)


@for_each("value", [np.nan, np.inf])
@for_each("field", ["objective", "logits", "layer_norms", "singular_values"])
def test_numbers_that_are_not_finite_differ(field: str, value: float) -> None:
    prediction = ufm.predict(PROBLEMS["squared-error"])
    wrong = changed(prediction, **{field: np.full(np.shape(getattr(prediction, field)), value)})
    assert not compare(solved("squared-error"), wrong).passed


def test_a_spurious_minimum_is_not_passed_against_anything() -> None:
    solution = spurious()
    assert solution.status is Status.NOT_CERTIFIED
    assert solution.certificate is not None
    assert not solution.certificate.holds
    signed = dataclasses.replace(
        solution.problem, nonnegative_features=False, loss=ufm.SquaredError()
    )
    for prediction in (prediction_from(solution), ufm.predict(signed)):
        comparison = compare(solution, prediction)
        assert not comparison.passed
        assert comparison["optimality gap"].verdict == DIFFERS
    covered = compare(solution, ufm.predict(solution.problem))
    assert covered.theorem == "cross-entropy-nonnegative"
    assert not covered.passed
    assert covered["optimality gap"].verdict == DIFFERS


def test_the_solution_itself_agrees_only_with_a_certificate() -> None:
    solution = solved("unequal")
    assert compare(solution, prediction_from(solution)).passed
    early = ufm.solve(PROBLEMS["unequal"], max_steps=2)
    assert not compare(early, prediction_from(early)).passed


def test_gradient_descent_stopped_early_is_not_passed() -> None:
    problem = PROBLEMS["cross-entropy"]
    solution = ufm.solve(problem, method=ufm.GradientDescent(0.1, momentum=0.9), max_steps=500)
    assert not solution.status.ok
    for prediction in (ufm.predict(problem), prediction_from(solution)):
        comparison = compare(solution, prediction)
        assert not comparison.passed
        assert comparison["optimality gap"].verdict == DIFFERS


def test_a_gap_too_wide_to_tell_one_per_cent_is_undecided() -> None:
    solution, prediction = solved("squared-error"), ufm.predict(PROBLEMS["squared-error"])
    wide = Certificate(
        solution.objective, 0.9 * solution.objective, solution.objective, 1.0, 1.0, "loose", True
    )
    comparison = compare(
        eqx.tree_at(
            lambda s: s.certificate, solution, wide, is_leaf=lambda x: isinstance(x, Certificate)
        ),
        prediction,
    )
    assert not comparison.passed
    assert {row.verdict for row in comparison.rows} >= {UNDECIDED}
    assert all(
        row.tolerance > UNRESOLVED
        for row in comparison.rows
        if row.verdict == UNDECIDED and row.quantity != "rank"
    )
    assert comparison["objective"].tolerance == pytest.approx(0.1)
    assert comparison["objective"].verdict == UNDECIDED


@for_each("bound", [-np.inf, np.nan])
def test_a_certificate_without_a_bound_decides_nothing(bound: float) -> None:
    solution, prediction = solved("squared-error"), ufm.predict(PROBLEMS["squared-error"])
    void = Certificate(solution.objective, bound, solution.objective, 1e-9, 1.0, "void", True)
    comparison = compare(
        eqx.tree_at(
            lambda s: s.certificate, solution, void, is_leaf=lambda x: isinstance(x, Certificate)
        ),
        prediction,
    )
    assert not any(row.passed for row in comparison.rows)


def test_a_solution_at_the_origin_is_compared_without_a_warning() -> None:
    problem = PROBLEMS["cross-entropy"]
    origin = Parameters((np.zeros((K, K)),), np.zeros((K, K)), None)
    comparison = compare(
        ufm.solve(problem, initial=origin, method=ufm.NewtonCG(), max_steps=0), ufm.predict(problem)
    )
    assert not comparison.passed
    assert comparison["rank"].found == 0


# Without a certificate.


@pytest.mark.nightly
def test_fewer_dimensions_than_classes_use_the_newton_decrement() -> None:
    solution, prediction = solved_narrow(), ufm.predict(NARROW)
    assert solution.certificate is not None
    assert not solution.certificate.holds
    comparison = compare(solution, prediction)
    assert comparison.passed, str(comparison)
    assert "Newton decrement" in comparison.basis
    assert "not tight" in comparison.basis
    assert "optimality gap" not in {row.quantity for row in comparison.rows}
    assert comparison["rank"].found == 2
    uncertified = eqx.tree_at(
        lambda s: s.certificate, solution, None, is_leaf=lambda x: isinstance(x, Certificate)
    )
    again = compare(uncertified, prediction)
    assert again.rows == comparison.rows
    assert "no certificate exists" in again.basis


@pytest.mark.slow
def test_fewer_dimensions_than_classes_stopped_early_are_not_passed() -> None:
    prediction = ufm.predict(NARROW)
    for steps in (1, 3):
        comparison = compare(
            ufm.solve(NARROW, restarts=solved_narrow().restarts.objective.size, max_steps=steps),
            prediction,
        )
        assert not comparison.passed


def test_a_wrong_prediction_differs_by_the_newton_decrement_too() -> None:
    prediction = ufm.predict(NARROW)
    for field in ("objective", "weight_gram", "layer_norms"):
        wrong = changed(prediction, **{field: 1.01 * getattr(prediction, field)})
        assert not compare(solved_narrow(), wrong).passed


# What the result is.


def test_rows_by_name_and_by_index() -> None:
    comparison = compare(solved("squared-error"), ufm.predict(PROBLEMS["squared-error"]))
    assert comparison["rank"] is comparison.rows[-1]
    assert comparison[0] == comparison.theorem
    with pytest.raises(ValueError, match=r"`quantity` must be one of .*weight gram.*'weights'"):
        comparison["weights"]


def test_undetermined_quantities_have_no_row() -> None:
    prediction = ufm.predict(PROBLEMS["squared-error"])
    comparison = compare(
        solved("squared-error"),
        changed(prediction, logits=None, weight_gram=None, feature_gram=None),
    )
    assert comparison.passed
    names = {"optimality gap", "objective", "layer norms (squared)", "singular values", "rank"}
    assert {row.quantity for row in comparison.rows} == names


MADE_UP = Comparison(
    "a <theorem>",
    "the certified gap",
    (
        Row("objective", 1.0, 1.0, 0.0, 1e-9, AGREES),
        Row("weight <gram>", 2.0, 3.0, 0.5, 1e-6, DIFFERS),
        Row("bias", 0.0, 0.0, 0.0, np.inf, UNDECIDED),
    ),
)


def test_only_agreement_of_every_row_passes() -> None:
    assert not MADE_UP.passed
    assert [row.passed for row in MADE_UP.rows] == [True, False, False]
    assert MADE_UP._replace(rows=MADE_UP.rows[:1]).passed
    assert not MADE_UP._replace(rows=MADE_UP.rows[::2]).passed
    assert MADE_UP.geometry_error == 0.5


def test_text_and_html_show_every_row() -> None:
    lines = str(MADE_UP).splitlines()
    assert len(lines) == 2 + len(MADE_UP.rows)
    assert lines[0] == "a <theorem>: not confirmed (tolerances from the certified gap)"
    for row, line in zip(MADE_UP.rows, lines[2:], strict=True):
        assert line.startswith(row.quantity)
        assert line.endswith(row.verdict)
    html = MADE_UP._repr_html_()
    assert html.count("<tr>") == 1 + len(MADE_UP.rows)
    assert html.count("<td>") == 6 * len(MADE_UP.rows)
    assert "weight &lt;gram&gt;" in html
    assert "a &lt;theorem&gt;" in html
    good = compare(solved("squared-error"), ufm.predict(PROBLEMS["squared-error"]))
    assert "all agree" in str(good)
    assert "all agree" in good._repr_html_()


def test_a_comparison_becomes_a_plain_dictionary() -> None:
    comparison = compare(solved("penalised bias"), ufm.predict(PROBLEMS["penalised bias"]))
    plain = comparison.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["passed"] is True
    assert [row["quantity"] for row in plain["rows"]] == [row.quantity for row in comparison.rows]
    assert all(row["passed"] is True for row in plain["rows"])


def test_what_a_deep_collapse_leaves_behind_has_no_rank() -> None:
    problem = Problem(
        class_counts=(6.0,) * 4,
        feature_dim=5,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=0.2, features=0.2),
        hidden_dims=(5,),
    )
    prediction = ufm.predict(problem)
    assert prediction.collapsed
    for left, verdict in ((1e-25, "agrees"), (1e-3, "differs")):
        row = rank_row(prediction, np.full(4, left), 0.0)
        assert (row.predicted, row.verdict) == (0, verdict)


@pytest.mark.slow
def test_a_descent_that_diverges_is_compared_without_a_warning() -> None:
    problem = ufm.Problem(
        class_counts=(50.0,) * 4,
        feature_dim=4,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(5e-3, 1e-4),
    )
    solution = ufm.solve(problem, method=ufm.GradientDescent(1e3), max_steps=200)
    assert not solution.status.ok
    comparison = compare(solution, ufm.predict(problem))
    assert not comparison.passed
    assert "differs" in str(comparison)


# Over groups


def in_groups(counts: ufm.ClassGroups, **changes: Any) -> ufm.Problem:
    arguments: dict[str, Any] = {
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=5e-3, features=5e-4),
    }
    return ufm.Problem(class_counts=counts, feature_dim=counts.num_classes, **(arguments | changes))


@pytest.mark.slow
def test_groups_are_compared_as_classes_are() -> None:
    problem = in_groups(ufm.ClassGroups((100, 20), sizes=(4, 3)))
    solution = ufm.solve(problem, resolution="groups")
    blocks, matrices = ufm.theorems.predict_groups(problem, solution.groups), ufm.predict(problem)
    by_class = ufm.compare(solution.lift(), matrices)
    assert by_class.passed
    for prediction in (blocks, matrices):
        by_group = ufm.compare(solution, prediction)
        assert [row.quantity for row in by_group.rows] == [row.quantity for row in by_class.rows]
        for ours, theirs in zip(by_group.rows, by_class.rows, strict=True):
            assert ours.verdict == theirs.verdict, ours.quantity
            np.testing.assert_allclose(ours[1:3], theirs[1:3], rtol=1e-9, err_msg=ours.quantity)
            np.testing.assert_allclose(
                ours.error, theirs.error, rtol=0.1, atol=1e-14, err_msg=ours.quantity
            )
            np.testing.assert_allclose(
                ours.tolerance, theirs.tolerance, rtol=1e-6, err_msg=ours.quantity
            )


def test_what_differs_within_a_group_is_seen_over_groups() -> None:
    problem = in_groups(ufm.ClassGroups((100, 20), sizes=(4, 3)))
    solution, prediction = ufm.solve(problem, resolution="groups"), ufm.predict(problem)
    assert prediction.logits is not None
    logits = np.array(prediction.logits)
    logits[0, 1] += 1e-2  # gone in the average over the group
    logits[1, 0] -= 1e-2
    changed = dataclasses.replace(prediction, logits=logits)
    assert ufm.compare(solution, changed)["logits"].verdict == "differs"
    blocks = ufm.theorems.predict_groups(problem, solution.groups)
    scaled = dataclasses.replace(blocks, weight_gram=1.001 * blocks.weight_gram)
    assert ufm.compare(solution, scaled)["weight gram"].verdict == "differs"


@pytest.mark.slow
def test_a_million_classes_are_compared_in_blocks() -> None:
    counts = ufm.ClassGroups((990,), sizes=(1_000_000,))
    problem = in_groups(counts, regularizer=ufm.WeightDecay(weights=1e-9, features=1e-9))
    solution = ufm.solve(problem)
    comparison = ufm.compare(solution, ufm.theorems.predict_groups(problem, solution.groups))
    assert comparison["weight gram"].passed
    assert comparison["margin"].error < 1e-10
    wrong = ufm.theorems.predict_groups(in_groups(counts), solution.groups)
    assert not ufm.compare(solution, wrong).passed


@for_each("counts", [ufm.ClassGroups.balanced(1000, 500), ufm.ClassGroups((500, 50), (500, 500))])
def test_a_thousand_classes_are_compared_in_seconds(counts: ufm.ClassGroups) -> None:
    problem = in_groups(counts, regularizer=ufm.WeightDecay(weights=1e-6, features=1e-6))
    began = time.perf_counter()
    assert ufm.compare(ufm.solve(problem), ufm.predict(problem)).passed
    assert time.perf_counter() - began < 20  # 165 s, class by class
    other = in_groups(counts, regularizer=ufm.WeightDecay(weights=1.01e-6, features=1e-6))
    assert not ufm.compare(ufm.solve(problem), ufm.predict(other)).passed


def test_explicit_factors_of_many_classes_are_compared_by_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = in_groups(
        ufm.ClassGroups.balanced(60, 500), regularizer=ufm.WeightDecay(weights=1e-4, features=1e-5)
    )
    solution = ufm.solve(problem, resolution="groups").lift()
    module = importlib.import_module("ufm.comparison.compare")
    monkeypatch.setattr(
        module, "accuracy", None
    )  # not class by class, which takes minutes for a thousand
    comparison = ufm.compare(solution, ufm.predict(problem))
    assert comparison.passed


def test_without_a_theorem_what_was_measured_is_shown_and_nothing_is_confirmed() -> None:
    rows = np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 5.0, 1.0], [2.0, 2.0, 2.0]])
    fields = {"class_counts": None, "targets": ufm.Targets.contexts(rows), "feature_dim": 3}
    decay = ufm.WeightDecay(weights=0.1, features=0.1)
    problem = a_problem(**fields, loss=ufm.CrossEntropy(), regularizer=decay)
    found = compare(problem)
    assert not found.passed
    assert found.theorem == "no theorem"
    assert "nothing confirmed" in str(found)
    assert {row.verdict for row in found.rows} == {"agrees", "measured"}
    solution = ufm.solve(problem)
    assert found["objective"].found == pytest.approx(solution.objective, rel=1e-12)
    assert found["logits"].found == pytest.approx(np.linalg.norm(solution.logits), rel=1e-6)
    assert 0 < found["weight gram"].tolerance < 1e-4
    assert np.isnan(found["logits"].predicted)
    assert np.isnan(found.objective_error)


def test_a_solution_alone_is_compared_with_the_theorem_that_covers_it() -> None:
    solution = solved("unequal")
    assert str(compare(solution)) == str(compare(solution, ufm.predict(solution.problem)))
