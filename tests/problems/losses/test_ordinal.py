"""Ordered levels: the equations of their minimiser, and two levels of any imbalance."""

import numpy as np
import pytest
from tables import for_each

import ufm

THRESHOLDS = np.array([-1.0, 0.5, 1.5])
COUNTS = np.array([5.0, 3.0, 4.0, 2.0])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def solved(loss: ufm.Loss, counts: np.ndarray, decay: float, **changes: bool) -> ufm.Solution:
    problem = ufm.Problem(
        class_counts=counts,
        feature_dim=2,
        loss=loss,
        regularizer=ufm.WeightDecay(decay, decay),
        **changes,
    )
    solution = ufm.solve(problem)
    assert solution.certificate is not None
    assert solution.certificate.holds
    assert solution.weights[0].shape == (1, 2)
    return solution


@pytest.mark.slow
def test_levels_have_the_logits_of_their_stationarity() -> None:
    decay = 0.01
    solution = solved(ufm.Ordinal(THRESHOLDS), COUNTS, decay)
    z = np.ravel(solution.features @ solution.weights[0].T)
    ends = np.concatenate([[-np.inf], THRESHOLDS, [np.inf]])
    slopes = 1 - sigmoid(ends[1:] - z) - sigmoid(ends[:-1] - z)
    kappa = np.sqrt(np.sum(COUNTS * z**2))
    np.testing.assert_allclose(slopes, -np.sum(COUNTS) * decay / kappa * z, atol=1e-6)
    levels = np.log(sigmoid(ends[1:] - z) - sigmoid(ends[:-1] - z))
    value = -COUNTS @ levels / np.sum(COUNTS) + decay * kappa
    assert solution.objective == pytest.approx(value, abs=1e-10)


@pytest.mark.slow
def test_two_levels_without_a_bias_do_not_see_their_imbalance() -> None:
    # One logit with the threshold zero: z = +-a, a = log(1 / (tau sqrt N) - 1).
    decay = 0.05
    price = decay * np.sqrt(10)
    a = np.log(1 / price - 1)
    for counts in ([5.0, 5.0], [9.0, 1.0]):
        solution = solved(ufm.Ordinal((0.0,)), np.array(counts), decay)
        assert solution.objective == pytest.approx(np.log1p(np.exp(-a)) + price * a, abs=1e-10)


@pytest.mark.slow
def test_two_levels_with_a_free_bias_follow_their_imbalance() -> None:
    decay, below, above = 0.05, 3.0, 7.0
    up = decay * np.sqrt(10 * below / above)
    down = decay * np.sqrt(10 * above / below)
    z = -np.log((1 - down) / down), np.log((1 - up) / up)
    b = z[1] - (z[1] - z[0]) * below / 10
    kappa = np.sqrt(below * (z[0] - b) ** 2 + above * (z[1] - b) ** 2)
    loss = (below * np.log1p(np.exp(z[0])) + above * np.log1p(np.exp(-z[1]))) / 10
    solution = solved(ufm.Ordinal((0.0,)), np.array([below, above]), decay, use_bias=True)
    assert solution.objective == pytest.approx(loss + decay * kappa, abs=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_least_loss_of_a_level_between_two_thresholds() -> None:
    loss, rows, classes = ufm.Ordinal(THRESHOLDS), np.eye(4), ufm.ClassGroups(COUNTS)
    gaps = np.diff(THRESHOLDS)
    expected = [0, *-np.log(np.tanh(gaps / 4)), 0]
    least = -np.asarray(loss.conjugate(np.zeros((4, 1)), rows, classes))
    np.testing.assert_allclose(least, expected, rtol=1e-14)
    middles = np.array([-50, *(THRESHOLDS[:-1] + gaps / 2), 50])[:, None]
    np.testing.assert_allclose(loss(middles, rows, classes), expected, rtol=1e-14, atol=1e-20)


@pytest.mark.slow
def test_a_right_loss_of_one_logit_passes_the_check() -> None:
    report = ufm.losses.check_loss(ufm.Ordinal(THRESHOLDS), COUNTS)
    assert report, str(report)


@for_each(
    ("thresholds", "words"),
    [
        ((1.0, 0.0), "must increase strictly"),
        ((), "must be"),
        (np.nan, "must be finite"),
        ((0.0, 0.0), "must increase strictly"),
    ],
)
def test_bad_thresholds_are_named(thresholds: object, words: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=f"`thresholds` {words}"):
        ufm.Ordinal(thresholds)


def test_thresholds_that_do_not_fit_the_levels_are_named() -> None:
    with pytest.raises(ufm.ArgumentError, match="`thresholds` must be 3 numbers between 4 levels"):
        solved(ufm.Ordinal((0.0, 1.0)), COUNTS, 0.1)
