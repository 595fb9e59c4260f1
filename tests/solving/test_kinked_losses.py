"""Hinge losses: certified minimisers, which reach their margins exactly, and honest failures."""

from typing import Any

import numpy as np
import pytest
from balanced import solved
from tables import for_each

import ufm
from ufm.solving.kinked_losses import has_kinked_loss, solve_kinked

COUNTS = np.array([8.0, 5.0, 3.0, 2.0])
CENTRING = np.eye(4) - 0.25
each_hinge = for_each("loss", [ufm.WestonWatkins(), ufm.CrammerSinger()])


def a_problem(loss: ufm.Loss, decay: float = 0.004, **changes: Any) -> ufm.Problem:
    fields: dict[str, Any] = {
        "class_counts": COUNTS,
        "feature_dim": 4,
        "loss": loss,
        "regularizer": ufm.WeightDecay(decay, decay),
    }
    return ufm.Problem(**(fields | changes))


@pytest.mark.slow
@each_hinge
def test_unequal_classes_reach_unit_margins_exactly(loss: Any) -> None:
    # Z = P Y, as N tau max |M_cy| <= 1 with M the pseudoinverse square root of P D P.
    solution = ufm.solve(a_problem(loss))
    value = 0.004 * np.linalg.norm(CENTRING * np.sqrt(COUNTS), "nuc")
    assert solution.certificate is not None
    assert solution.certificate.holds
    assert solution.objective == pytest.approx(value, abs=1e-9 * value)
    np.testing.assert_allclose(solution.logits, CENTRING, atol=1e-6)
    assert ufm.certify(solution.problem, solution.parameters).objective == solution.objective


@pytest.mark.slow
@for_each(
    ("loss", "collapsed", "at_zero"),
    [(ufm.WestonWatkins(), 1.0, 3.0), (ufm.CrammerSinger(), 1 / 3, 1.0)],
)
def test_balanced_classes_have_unit_margins_or_none(
    loss: Any, collapsed: float, at_zero: float
) -> None:
    for t in (0.5 * collapsed, 1.2 * collapsed):
        assert solved(loss, t) == pytest.approx(min(3 * t, at_zero), abs=1e-10)


@pytest.mark.slow
@each_hinge
def test_biases_cones_balls_and_rows_are_certified(loss: Any) -> None:
    rows = ufm.Targets(np.array([[1, 0, 0], [0, 2.5, 0], [0, 0, 1], [0, 0, 1.0], [0, 0, 0]]))
    for changes in (
        {"use_bias": True},
        {"use_bias": True, "regularizer": ufm.WeightDecay(0.05, 0.05, bias=0.02)},
        {"nonnegative_features": True},
        {"regularizer": ufm.NormBall(0.5, 0.5)},
        {"class_counts": None, "targets": rows},
    ):
        solution = ufm.solve(a_problem(loss, **changes))
        assert solution.certificate is not None
        assert solution.certificate.holds, changes


@pytest.mark.slow
def test_too_few_dimensions_are_not_certified() -> None:
    solution = ufm.solve(a_problem(ufm.WestonWatkins(), feature_dim=1), resolution="classes")
    assert solution.certificate is not None
    assert not solution.certificate.holds
    assert not solution.certificate.tight
    assert solution.certificate.lower_bound < solution.objective


def test_which_problems_have_kinks() -> None:
    assert has_kinked_loss(a_problem(ufm.WestonWatkins()))
    own = type("Own", (ufm.CrammerSinger,), {})
    for loss in (ufm.SquaredHinge(), ufm.CrossEntropy(), own()):
        assert not has_kinked_loss(a_problem(loss))
    assert not has_kinked_loss(a_problem(ufm.CrammerSinger(), hidden_dims=(4,)))


@pytest.mark.slow
def test_a_point_that_is_not_optimal_is_not_certified() -> None:
    problem = a_problem(ufm.WestonWatkins())
    solution = ufm.solve(problem)
    off = solution.parameters._replace(features=1.01 * solution.parameters.features)

    def stuck(other: ufm.Problem, point: Any) -> ufm.Solution:
        found = ufm.solve(other, resolution="classes", initial=off, max_steps=0)
        return found

    found = solve_kinked(problem, 1e-9, 0.0, stuck)
    assert found.certificate is not None
    assert not found.certificate.holds
    assert not found.status.ok
    assert found.certificate.lower_bound <= solution.objective <= found.objective
