"""Hinge losses: the check by duality, and that it can say no."""

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.imbalance.hard_margin import hinge_check


def problem(loss, counts, decay):
    return ufm.Problem(
        class_counts=counts,
        feature_dim=len(counts),
        loss=loss,
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
    )


@for_each("loss", [ufm.WestonWatkins(), ufm.CrammerSinger()])
def test_the_minimum_is_at_hard_margins(loss):
    check = hinge_check(problem(loss, (8.0, 4.0, 2.0), 0.02))
    assert check.holds
    assert check.expected == "hard margins"
    roots = np.sqrt(np.diag([8.0, 4.0, 2.0]))
    norm = np.linalg.norm(roots @ (np.eye(3) - 1 / 3), "nuc")
    np.testing.assert_allclose(check.lower_bound, 0.02 * norm, rtol=1e-12)


@for_each(
    ("loss", "value"),
    [
        (ufm.WestonWatkins(), lambda t: 3 * min(t, 1)),
        (ufm.CrammerSinger(), lambda t: min(3 * t, 1)),
    ],
)
@for_each("decay", [0.1, 0.2, 0.6])
def test_balanced_classes_are_at_one_or_the_other(loss, value, decay):
    check = hinge_check(problem(loss, (5.0,) * 4, decay))
    assert check.holds
    expected = value(decay * np.sqrt(5.0))
    np.testing.assert_allclose(check.lower_bound, expected, rtol=1e-12)
    np.testing.assert_allclose(min(check.at_solution, check.at_zero), expected, rtol=1e-12)


def test_it_says_no_between_the_two():
    check = hinge_check(problem(ufm.WestonWatkins(), (50.0, 5.0, 1.0), 0.1))
    assert not check.holds
    assert check.lower_bound < min(check.at_solution, check.at_zero)
    assert "DOES NOT HOLD" in str(check)


@pytest.mark.slow
def test_the_certified_solution_is_the_expected_one():
    check = hinge_check(problem(ufm.WestonWatkins(), (8.0, 4.0, 2.0), 0.02), solved=True)
    assert check.holds
    assert check.distance < 1e-7
    assert not check._replace(distance=1e-3).holds
    assert not check._replace(distance=np.inf).holds


def test_bad_input():
    targets = ufm.Problem(
        targets=ufm.Targets(np.eye(2)),
        feature_dim=2,
        loss=ufm.WestonWatkins(),
        regularizer=ufm.WeightDecay(weights=1.0, features=1.0),
    )
    with pytest.raises(ufm.ArgumentError, match="classes and one layer"):
        hinge_check(targets)
