"""Every verdict, at points built by hand.

What lies above something known must be told so, and nothing is called a failure.
"""

import dataclasses
import importlib
import json
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import double_precision
from ufm.certificates import Certificate
from ufm.problems import class_pairs, deep_neural_collapse, samples_of, strongly_regular
from ufm.theory.atlas import Atlas

module = importlib.import_module(
    "ufm.comparison.verdict"
)  # the package's attribute of that name is the function
verdict = ufm.verdict


def deep(L: int, K: int, loss: Any, activation: str, **changes: Any) -> ufm.Problem:
    fields: dict[str, Any] = {
        "class_counts": (1.0,) * K,
        "feature_dim": K,
        "loss": loss,
        "regularizer": ufm.WeightDecay(weights=1e-3, features=1e-3),
        "hidden_dims": (K,) * (L - 1),
        "activation": activation,
    }
    return ufm.Problem(**{**fields, **changes})


PAIRS = deep(2, 6, ufm.CrossEntropy(), "linear")
GRAPH = deep(3, 6, ufm.SquaredError(), "relu")


def bound(lower: float | None, tight: bool = False) -> Any:
    """What stands in for `certify`: no bound, or one that was made without solving anything."""

    def certify(problem: ufm.Problem, parameters: Any) -> Certificate | None:
        with double_precision():
            samples = samples_of(problem, len(parameters.features))
            value = float(problem.objective(parameters, samples))
        return (
            None
            if lower is None
            else Certificate(value, lower, lower, 1e-9, np.nan, "a bracket", tight)
        )

    return certify


@pytest.fixture(autouse=True)
def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "certify", bound(None))


def scaled(parameters: ufm.Parameters, factor: float) -> ufm.Parameters:
    return ufm.Parameters(
        tuple(factor * matrix for matrix in parameters.weights),
        factor * parameters.features,
        parameters.bias,
    )


@pytest.mark.slow
def test_pairs_beat_neural_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "certify", bound(0.02))
    found = verdict(PAIRS, class_pairs(PAIRS).parameters)
    assert found.kind == "below collapse"
    assert found.words == (
        "beats neural collapse by 6.1 %, and nothing lower is known (the minimum is certified to "
        "lie at most 32.4 % lower)"
    )
    assert found.advantage == pytest.approx(1 - 0.0295685 / 0.0314901, abs=1e-5)
    assert found.collapse == pytest.approx(0.0314901, abs=1e-7)
    assert [known.name for known in found.known] == ["pairs", "deep neural collapse"]
    assert found.lower_bound == 0.02
    lines = str(found).splitlines()
    assert lines[0] == f"verdict: {found.words}"
    assert [line.split("  ")[1] for line in lines[1:]].count("this point") == 1
    assert "lower bound" in lines[-1]
    assert "32.4 % below this point" in lines[-1]


def test_neural_collapse_with_something_below_is_not_the_minimum() -> None:
    found = verdict(PAIRS, deep_neural_collapse(PAIRS).parameters)
    assert found.kind == "not optimal"
    assert (
        found.words
        == "is neural collapse; lies 6.5 % above the best construction known (pairs): not the "
        "global minimum"
    )
    assert found.geometry_error < 1e-6
    assert found.tolerance < 1e-10


@pytest.mark.slow
def test_neural_collapse_with_nothing_known_below() -> None:
    """Three layers, six classes: the graph lies above."""
    found = verdict(GRAPH, deep_neural_collapse(GRAPH).parameters)
    assert (found.kind, found.zero) == ("collapse", False)
    assert found.words == "is neural collapse, and nothing lower is known (no lower bound is known)"
    assert found.best is not None
    assert found.best.name == "deep neural collapse"


def test_the_same_value_in_another_geometry_is_not_called_collapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A permutation of the rows of the logits is no symmetry of the problem.

    The theorem of neural collapse is made to predict one.
    """
    theorem = ufm.theorems["deep-linear-general-orthogonal-frame"]

    def permuted(problem: ufm.Problem) -> Any:
        prediction = theorem.formula(problem)
        return dataclasses.replace(prediction, logits=prediction.logits[::-1])

    atlas = Atlas((dataclasses.replace(theorem, formula=permuted),))
    monkeypatch.setattr(module, "theorems", atlas)
    found = verdict(GRAPH, deep_neural_collapse(GRAPH).parameters)
    assert found.words.startswith(
        "has the value of neural collapse, in another geometry, and nothing lower"
    )


def test_what_lies_above_neural_collapse_says_by_how_much() -> None:
    found = verdict(GRAPH, strongly_regular(GRAPH).parameters)
    # No stationary point: its own accuracy is not known, and neither is what descent would make of
    # it.
    assert (found.kind, found.tolerance) == ("open", np.inf)
    assert found.words.endswith(
        " % above neural collapse, the best construction known: the point has not converged"
    )
    assert -found.advantage == pytest.approx(found.objective / found.collapse - 1)


def test_zero_is_called_zero() -> None:
    zero = scaled(deep_neural_collapse(GRAPH).parameters, 0.0)
    found = verdict(GRAPH, zero)
    assert (found.kind, found.zero) == ("not optimal", True)
    assert found.objective == pytest.approx(0.5, rel=1e-15)
    assert found.words.startswith("everything has collapsed to zero; lies at ")
    assert found.words.endswith(
        " times the best construction known (deep neural collapse): not the global minimum"
    )
    strong = dataclasses.replace(GRAPH, regularizer=ufm.WeightDecay(weights=1.0, features=1.0))
    collapsed = verdict(strong, zero)
    assert collapsed.kind == "collapse"
    assert collapsed.words.startswith(
        "everything has collapsed to zero, and nothing lower is known"
    )


@for_each("factor", [0.9, 1.1, 1e3])
def test_points_that_are_no_minima_are_never_called_optimal(factor: float) -> None:
    found = verdict(GRAPH, scaled(deep_neural_collapse(GRAPH).parameters, factor))
    assert found.kind in ("open", "not optimal")
    assert "failed" not in str(found)
    assert found.objective > found.collapse


def test_a_point_that_has_diverged_is_judged_without_a_warning() -> None:
    found = verdict(GRAPH, scaled(deep_neural_collapse(GRAPH).parameters, 1e150))
    assert found.kind in ("open", "not optimal")
    assert "failed" not in str(found)


def test_a_certificate_that_holds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = class_pairs(PAIRS).parameters
    value = class_pairs(PAIRS).objective
    monkeypatch.setattr(module, "certify", bound(value * (1 - 1e-11), tight=True))
    found = verdict(PAIRS, parameters)
    assert found.kind == "optimal"
    assert found.words == "beats neural collapse by 6.1 % (optimal: certified gap 1.0e-11)"
    monkeypatch.setattr(module, "certify", bound(value * (1 - 1e-6), tight=True))
    assert verdict(PAIRS, parameters).kind == "below collapse"


def test_a_certificate_cannot_make_up_for_a_lower_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a bound wrong, the known point below would say so."""
    collapse = deep_neural_collapse(PAIRS)
    monkeypatch.setattr(module, "certify", bound(collapse.objective * (1 - 1e-11), tight=True))
    assert verdict(PAIRS, collapse.parameters).kind == "not optimal"


def test_without_a_form_of_collapse_the_constructions_are_left() -> None:
    imbalanced = dataclasses.replace(
        PAIRS, class_counts=ufm.ClassGroups((5.0, 3.0, 2.0, 2.0, 1.0, 1.0))
    )
    found = verdict(imbalanced, class_pairs(imbalanced).parameters)
    assert found.collapse is None
    assert np.isnan(found.advantage)
    assert found.kind in ("lowest known", "open", "not optimal")
    assert "neural collapse by" not in found.words
    assert {known.name for known in found.known} == {
        "pairs",
        "orthogonal class means of equal norms, no bias",
    }


@pytest.mark.slow
def test_the_reference_for_imbalanced_squared_error_is_the_general_frame() -> None:
    linear = deep(2, 3, ufm.SquaredError(), "linear", class_counts=(5.0, 3.0, 1.0))
    theorem = ufm.theorems["deep-linear-general-orthogonal-frame"]
    for problem in (linear, dataclasses.replace(linear, activation="relu")):
        plain = deep_neural_collapse(problem)
        collapse = verdict(problem, plain.parameters).collapse
        assert collapse == float(theorem.predict(linear).objective)
        assert collapse < plain.objective
    biased = dataclasses.replace(linear, use_bias=True)
    parameters = plain.parameters._replace(bias=np.zeros(3))
    assert verdict(biased, parameters).collapse == float(ufm.predict(biased).objective)
    rectified = dataclasses.replace(biased, activation="relu")
    assert verdict(rectified, parameters).collapse is None


@pytest.mark.slow
def test_a_solution_is_certified_and_samples_are_taken_together() -> None:
    problem = deep(2, 3, ufm.SquaredError(), "linear", class_counts=(4, 3, 2))
    solution = ufm.solve(problem)
    found = verdict(solution)
    assert (found.kind, found.theorem) == ("optimal", "deep-linear-general-orthogonal-frame")
    assert found.words.startswith("is neural collapse (optimal: certified gap ")
    assert found.lower_bound == solution.certificate.lower_bound
    lifted = verdict(problem, solution.parameters._replace(features=solution.sample_features))
    assert lifted.objective == pytest.approx(found.objective, rel=1e-14)
    assert lifted.words == "is neural collapse (optimal: by deep-linear-general-orthogonal-frame)"
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["known"][0]["name"] == found.known[0].name
    with pytest.raises(ValueError, match="leave them out"):
        verdict(solution, solution.parameters)
    for wrong in (problem, "a solution"):
        with pytest.raises(ValueError, match="must be a Solution, or a Problem"):
            verdict(wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_solver_beats_neural_collapse_by_more_than_the_graph() -> None:
    problem = deep(
        4, 10, ufm.SquaredError(), "relu", regularizer=ufm.WeightDecay(weights=4e-3, features=4e-3)
    )
    found = verdict(ufm.solve(problem))
    assert found.kind == "below collapse"
    assert found.advantage > 0.181
    assert found.words.startswith("beats neural collapse by 18.")
