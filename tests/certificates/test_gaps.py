"""A lower bound above the objective is a contradiction, and no certificate."""

from typing import Any

import jax
import numpy as np
import plain
import pytest
from tables import for_each

import ufm
from ufm._support import Status, double_precision, to_numpy
from ufm.certificates import Certificate, GroupEvidence, relative_scale, rounding_of
from ufm.imbalance.hard_margin.certificate import MarginEvidence
from ufm.problems import grouped
from ufm.solving import SolveError, group_batch
from ufm.sweeps.quantities import of_group_minima


class TooLow(ufm.CrossEntropy):
    """Cross-entropy whose conjugate is too low by five, and lower bounds so much too high."""

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        return super().conjugate(dual, targets, classes) - 5


class TooHigh(ufm.CrossEntropy):
    """Cross-entropy whose conjugate is too high by 1e-12, which could be rounding."""

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        return super().conjugate(dual, targets, classes) + 1e-12


class NegativeEntropy(ufm.CrossEntropy):
    """Something that is not convex, and says that it is, so that its bounds lie anywhere."""

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return ufm.Focal(2.0)(logits, targets, classes)


def a_certificate(
    objective: float, lower: float, rounding: float = 1e-13, doubt: str = ""
) -> Certificate:
    return Certificate(
        objective,
        lower,
        float(relative_scale(lower, 1.6)),
        1e-9,
        1.0,
        "a bound",
        True,
        rounding,
        doubt,
    )


def test_a_bound_above_the_objective_never_holds() -> None:
    wrong = a_certificate(0.124, 4.999)
    assert wrong.relative_gap == pytest.approx(-0.975, abs=1e-3)
    assert wrong.contradicted
    assert not wrong.holds
    assert "contradicts itself" in str(wrong)
    rounded = a_certificate(1.0, 1.0 + 5e-14)
    assert rounded.holds
    assert not rounded.contradicted
    assert not a_certificate(1.0, 1.0 + 5e-13).holds
    doubted = a_certificate(1.0, 1.0, doubt="a doubt")
    assert not doubted.holds
    assert "a doubt" in str(doubted)
    for objective, lower in (
        (np.nan, 1.0),
        (1.0, np.nan),
        (np.inf, 1.0),
        (-np.inf, 1.0),
        (1.0, np.inf),
        (np.inf, np.inf),
    ):
        assert not a_certificate(objective, lower).holds


@for_each(
    ("gap", "holds"),
    [(1e-10, True), (-1e-14, True), (-1e-11, False), (-0.5, False), (np.nan, False)],
)
def test_so_it_is_for_hard_margins(gap: float, holds: bool) -> None:
    evidence: Any = MarginEvidence(
        *(np.asarray(number) for number in (1.0, 1.0 - gap, 1.0, 1.0, gap, 0.0))
    )
    assert evidence.holds() is holds
    assert evidence.contradicted == (gap < -1e-12)


def test_gaps_have_a_positive_scale_whatever_the_sign_of_the_loss() -> None:
    assert relative_scale(0.5, 2.0) == 0.5
    assert relative_scale(1e-9, 2.0) == 2e-6
    # The squared error less five: all that counts is above its infimum.
    assert relative_scale(-4.5, -4.0, -5.0) == 0.5
    for lower, at_zero, infimum in (
        (-4.9, -2.7, 0.0),
        (-4.9, -2.7, -np.inf),
        (0.0, 0.0, 0.0),
        (-np.inf, -1.0, 0.0),
    ):
        assert relative_scale(lower, at_zero, infimum) > 0
    np.testing.assert_array_equal(
        relative_scale(np.array([0.5, -1.0]), np.array([2.0, 2.0])), [0.5, 2e-6]
    )


def test_rounding_is_far_below_what_counts_and_above_epsilon() -> None:
    for ball in (False, True):
        assert 1e-15 < rounding_of(0.1, 1.6, 20.0, 10, ball) < 1e-9
    assert rounding_of(1e5, 1e5, 20.0, 10, False) > 1e-11  # in the unit of the loss


def a_problem(loss: Any, **changes: Any) -> ufm.Problem:
    decay = ufm.WeightDecay(weights=1e-3, features=1e-4)
    return ufm.Problem(
        **(
            {
                "class_counts": (50.0, 20.0, 7.0),
                "feature_dim": 4,
                "loss": loss,
                "regularizer": decay,
            }
            | changes
        )
    )


def test_a_solve_with_a_wrong_conjugate_ends_in_a_contradiction() -> None:
    problem = a_problem(TooLow())
    solution = ufm.solve(problem)
    certificate = solution.certificate
    assert certificate is not None
    assert certificate.lower_bound == pytest.approx(solution.objective + 5, rel=1e-8)
    assert solution.status == Status.CONTRADICTION
    assert not solution.status.ok
    assert not certificate.holds
    with pytest.raises(SolveError, match=r"ufm\.losses\.check_loss") as refused:
        solution.check()
    for text in (str(refused.value), solution.status.message, str(solution)):
        assert "conjugate" in text  # what may be wrong
        assert "convexity" in text
    anywhere = ufm.certify(problem, plain.random_parameters(problem))
    assert anywhere is not None
    assert not anywhere.holds
    assert "bound, equality" in str(anywhere)


@pytest.mark.nightly
@for_each("kind", [TooLow, NegativeEntropy])
@for_each(
    "changes",
    [
        {},
        {"regularizer": ufm.NormBall(1.0, 1.0)},
        {"use_bias": True},
        {"nonnegative_features": True},
        {"hidden_dims": (4,)},
        {"hidden_dims": (4,), "regularizer": ufm.NormBall(1.0, 1.0)},
    ],
)
def test_no_model_certifies_a_wrong_loss(changes: dict[str, Any], kind: Any) -> None:
    problem = a_problem(kind(), **changes)
    solution = ufm.solve(problem)
    assert solution.status == Status.CONTRADICTION
    assert solution.certificate is not None
    assert not solution.certificate.holds
    if "hidden_dims" not in changes:
        swept = ufm.sweep(problem, over={"regularizer.weights": [1e-3, 2e-3]})
        assert swept["certified"].values.tolist() == [False, False]
        assert swept["status"].values.tolist() == [Status.CONTRADICTION] * 2


@pytest.mark.nightly
def test_what_rounding_could_explain_is_no_contradiction() -> None:
    solution = ufm.solve(a_problem(TooHigh()))
    assert solution.status == Status.CONVERGED
    assert solution.certificate is not None
    assert solution.certificate.holds


@pytest.mark.nightly
def test_a_batch_over_groups_marks_a_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = group_batch.group_evidence

    def too_high(*arguments: Any) -> GroupEvidence:
        evidence = genuine(*arguments)
        return evidence._replace(lower_bound=evidence.lower_bound + 5)

    data, _ = grouped(a_problem(ufm.CrossEntropy(), class_counts=(50.0, 50.0, 7.0, 7.0)))
    monkeypatch.setattr(group_batch, "group_evidence", too_high)
    with double_precision():
        minimum = to_numpy(jax.jit(lambda problem: group_batch.certified(problem))(data))
    assert minimum.status == Status.CONTRADICTION
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[..., None], (data, minimum))
    rows = of_group_minima(*batch, tol=1e-9)
    assert rows["certified"].tolist() == [False]
    assert rows["status"].tolist() == [Status.CONTRADICTION]
