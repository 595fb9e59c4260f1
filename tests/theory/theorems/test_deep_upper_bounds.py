"""Upper bounds below deep neural collapse, and a disputed claim, against explicit matrices.

Witnesses must not always win.
"""

import dataclasses

import numpy as np
import pytest
from numpy_models import Model
from tables import for_each

import ufm
from ufm.problems import class_pairs, deep_neural_collapse, strongly_regular
from ufm.theory import NoPrediction, predict, theorems

RELU, PAIRS, GRAPH = (
    theorems[f"deep-{name}low-rank"] for name in ("relu-", "cross-entropy-", "relu-cross-entropy-")
)
CLAIM = theorems["deep-cross-entropy-etf"]


def deep(K, L, decay, loss, activation, n=1.0, width=None, **options):
    width = width or K
    return ufm.Problem(
        class_counts=(n,) * K,
        feature_dim=width,
        loss=loss,
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
        hidden_dims=(width,) * (L - 1),
        activation=activation,
        **options,
    )


CE, MSE = ufm.CrossEntropy(), ufm.SquaredError()


def value(problem, parameters):
    """The objective in plain NumPy."""
    return Model(problem).objective(parameters.weights, parameters.features, parameters.bias)


def test_their_status_is_marked_and_none_of_them_predicts():
    assert [theorem.status for theorem in (RELU, PAIRS, GRAPH, CLAIM)] == ["upper bound"] * 3 + [
        "disputed"
    ]
    assert not any(theorem in theorems.predictive for theorem in (RELU, PAIRS, GRAPH, CLAIM))
    assert "[disputed]" in str(CLAIM)
    assert "Disputed: contradicted by Garrod & Keating" in str(CLAIM)
    assert "[upper bound]" in str(theorems)
    for theorem in (RELU, PAIRS, GRAPH, CLAIM):
        assert theorem.witness is not None
        for example in theorem.examples:
            assert theorem.applies(example.problem)
            with pytest.raises(NoPrediction, match="to give the minimiser"):
                predict(example.problem)


@for_each("theorem", [RELU, PAIRS, GRAPH])
def test_closed_forms_are_the_values_of_the_matrices(theorem):
    for example in theorem.examples:
        prediction, problem = theorem.predict(example.problem), example.problem
        assert prediction.bound == "upper"
        assert prediction.logits is prediction.rank is prediction.layer_norms is None
        collapse = float(prediction.constants["collapse"])
        assert prediction.objective < collapse
        for construction, closed in (
            (theorem.witness(problem), float(prediction.objective)),
            (deep_neural_collapse(problem), collapse),
        ):
            assert construction.objective == pytest.approx(closed, rel=1e-12)
            assert value(problem, construction.parameters) == pytest.approx(closed, rel=1e-12)
        assert f"objective <= {float(prediction.objective):.12g}; collapse = {collapse:.6g}" in str(
            prediction
        )


@for_each(("K", "L", "pairs", "etf"), [(6, 2, 0.0295685, 0.0314901), (6, 3, 0.0253313, 0.0299575)])
def test_known_values(K, L, pairs, etf):
    prediction = PAIRS.predict(deep(K, L, 1e-3, CE, "linear"))
    assert float(prediction.objective) == pytest.approx(pairs, abs=1e-7)
    assert float(prediction.constants["collapse"]) == pytest.approx(etf, abs=1e-7)


def test_the_theorems_hold_wherever_they_apply():
    """All witnesses lie below over four decades of penalties, up to where collapse is zero.

    The published sizes are not exceeded.
    """
    for theorem, loss, activation, sizes in (
        (RELU, MSE, "relu", [(10, 3), (11, 3), (14, 3), (6, 4), (9, 4), (7, 6)]),
        (PAIRS, CE, "linear", [(4, 3), (5, 3), (6, 2), (7, 2), (9, 2), (50, 8)]),
    ):
        for K, L in sizes:
            applied = 0
            for decay in np.geomspace(1e-5, 0.3, 12):
                problem = deep(K, L, decay, loss, activation)
                if theorem.applies(problem):
                    prediction = theorem.predict(problem)
                    assert prediction.objective < prediction.constants["collapse"] * (1 - 1e-9)
                    applied += 1
            assert 4 < applied < 12
    for theorem, loss, activation, K, L in ((RELU, MSE, "relu", 9, 3), (PAIRS, CE, "linear", 5, 2)):
        outside = deep(K, L, 1e-3, loss, activation)
        assert not theorem.applies(outside)
        lower = theorem.formula(outside)
        assert (
            lower.objective > lower.constants["collapse"]
        )  # the witness of this library is no counterexample there


def test_the_disputed_claim_has_the_value_of_collapse_and_its_matrices():
    problem = deep(6, 2, 1e-3, CE, "linear", use_bias=True)
    claim = CLAIM.predict(problem)
    collapse = deep_neural_collapse(problem)
    assert float(claim.objective) == pytest.approx(collapse.objective, rel=1e-12)
    assert (claim.rank, claim.bound) == (5, "exact")
    weights, features, _ = collapse.parameters
    np.testing.assert_allclose(claim.weight_gram, weights[-1] @ weights[-1].T, atol=1e-6)
    norms = [np.sum(W**2) for W in weights] + [np.sum(features**2)]
    np.testing.assert_allclose(claim.layer_norms, norms, rtol=1e-6)
    assert class_pairs(problem).objective < float(claim.objective) * 0.95
    for refused in (deep(6, 2, 1e-3, CE, "linear"), deep(6, 2, 1e-3, CE, "relu", use_bias=True)):
        assert not CLAIM.applies(refused)


def test_with_three_classes_nothing_contradicts_the_claim():
    problem = deep(3, 2, 1e-3, CE, "linear", use_bias=True)
    claim = CLAIM.predict(problem)
    assert class_pairs(problem).objective > float(claim.objective)
    lowest, *_ = Model(dataclasses.replace(problem, use_bias=False)).minimise(starts=5, scale=1.0)
    assert lowest == pytest.approx(float(claim.objective), rel=1e-9)


@pytest.mark.nightly
def test_many_starts_of_an_independent_descent_find_pairs_too():
    problem = deep(6, 2, 1e-3, CE, "linear")
    lowest, *_ = Model(problem).minimise(starts=6, scale=1.0)
    assert lowest < float(PAIRS.predict(problem).constants["collapse"]) - 1e-3


def test_the_graph_lies_below_collapse_for_cross_entropy_too():
    for K, L in ((10, 5), (16, 4), (10, 4)):
        problem = deep(K, L, 1e-3, CE, "relu")
        assert strongly_regular(problem).objective < 0.85 * deep_neural_collapse(problem).objective
        assert bool(GRAPH.applies(problem)) == ((K, L) != (10, 4))


@pytest.mark.nightly
@for_each("theorem", [RELU, PAIRS])
def test_the_solver_does_not_lie_above(theorem):
    problem = theorem.examples[0].problem
    comparison = ufm.compare(ufm.solve(problem), theorem.predict(problem))
    assert comparison.passed, str(comparison)
