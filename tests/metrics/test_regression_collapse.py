"""Regression collapse at the exact minimum, by slow formulas, and where it must be seen to fail."""

import json
from typing import Any

import numpy as np
import pytest
from tables import for_each
from target_optima import regression_optimum

import ufm
from ufm._support import ArgumentError
from ufm.metrics import regression_collapse, regression_collapse_from, regression_statistics


def correlated(num: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.array([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.4]])
    return rng.normal(size=(num, 3)) @ mixing + np.array([5.0, -1.0, 0.0])


def measured(found: Any) -> Any:
    return regression_collapse(found.features, found.targets, found.weights, found.bias)


def test_all_modes_alive_is_collapse_in_every_number() -> None:
    c = 0.01
    result = measured(regression_optimum(correlated(), np.sqrt(c), dim=7))
    assert result.target_variances[-1] > c
    assert max(result.nrc1, result.nrc2, result.deep_nrc1, result.deep_nrc4) < 1e-14
    assert max(result.nrc3, result.nrc3_soft) < 1e-12
    np.testing.assert_allclose([result.nrc3_gamma, result.nrc3_soft_gamma], c, rtol=1e-10)
    assert result.nrc3_soft_modes == 3
    np.testing.assert_allclose(result.deep_nrc3, 1.0)
    # the residual is n c, and the features have the spectrum of Sigma^(1/2), soft-thresholded
    total = result.target_variances.sum()
    np.testing.assert_allclose(result.model_error, 3 * c / total)
    roots = np.sqrt(result.target_variances)
    np.testing.assert_allclose(result.feature_variances[:3], roots - np.sqrt(c))
    cka = ((roots - np.sqrt(c)) @ roots**2) / (
        np.linalg.norm(roots - np.sqrt(c)) * np.linalg.norm(roots**2)
    )
    np.testing.assert_allclose(result.deep_nrc2, cka)
    assert cka < 0.99


def test_a_dead_mode_fails_nrc3_at_the_minimum_but_not_its_positive_part() -> None:
    c = 0.36
    result = measured(regression_optimum(correlated(), np.sqrt(c), dim=7))
    assert np.sum(result.target_variances > c) == 2
    assert max(result.nrc1, result.nrc2) < 1e-14
    assert result.nrc3_soft < 1e-12
    np.testing.assert_allclose(result.nrc3_soft_gamma, c, rtol=1e-10)
    assert result.nrc3_soft_modes == 2
    assert result.nrc3 > 0.01
    np.testing.assert_allclose(result.deep_nrc3, 1.0)
    assert result.deep_nrc4 > 0.01  # the dead mode cannot be predicted


def test_fewer_features_than_outputs_keep_the_largest_modes() -> None:
    result = measured(regression_optimum(correlated(), 0.1, dim=2))
    assert result.nrc3_soft < 1e-12
    np.testing.assert_allclose(result.nrc3_soft_gamma, 0.01, rtol=1e-9)
    assert result.nrc3 > 0.01


def test_total_collapse_is_the_minimum_at_a_large_penalty() -> None:
    result = measured(regression_optimum(correlated(), 10.0, dim=4))
    assert result.nrc3_soft == 0
    assert result.nrc3_soft_modes == 0
    assert result.nrc1 == result.nrc2 == result.deep_nrc1 == result.deep_nrc2 == 0
    np.testing.assert_allclose([result.deep_nrc4, result.model_error], 1.0)


def test_without_a_bias_moments_are_about_the_origin() -> None:
    found = regression_optimum(correlated(), 0.1, dim=6, bias=False)
    given = (found.features, found.targets, found.weights)
    about_origin = regression_collapse(*given)
    assert about_origin.about == "origin"
    assert max(about_origin.nrc1, about_origin.nrc2) < 1e-14
    assert about_origin.nrc3 < 1e-12
    np.testing.assert_allclose(about_origin.nrc3_gamma, 0.01, rtol=1e-8)
    assert regression_collapse(*given, about="mean").nrc3 > 0.01
    assert regression_collapse(*given[:2]).about == "mean"


@for_each("seed", range(3))
def test_the_numbers_are_those_of_slow_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    N, d, n = 40, 6, 3
    H, Y = rng.normal(size=(N, d)) + 0.5, correlated(N, seed)
    W, b, a = rng.normal(size=(n, d)), rng.normal(size=n), rng.integers(1, 4, size=N)
    result = regression_collapse(H, Y, W, b, sample_weights=a)
    H, Y = np.repeat(H, a, axis=0), np.repeat(Y, a, axis=0)  # weights are repetitions
    centred, targets = H - H.mean(axis=0), Y - Y.mean(axis=0)
    top = np.linalg.svd(centred, full_matrices=False)[2][:n]
    nrc1 = nrc2 = 0.0
    for h in H:
        unit = h / np.linalg.norm(h)
        nrc1 += np.sum((unit - top.T @ (top @ unit)) ** 2) / len(H)
        nrc2 += np.sum((unit - W.T @ np.linalg.solve(W @ W.T, W @ unit)) ** 2) / len(H)
    share = 1 - np.sum((centred @ top.T) ** 2) / np.sum(centred**2)
    cka = np.sum((centred.T @ targets) ** 2) / (
        np.linalg.norm(centred @ centred.T) * np.linalg.norm(targets @ targets.T)
    )
    rows = np.linalg.svd(W, full_matrices=False)[2]
    fitted = centred @ np.linalg.lstsq(centred, targets, rcond=None)[0]
    expected = {
        "nrc1": nrc1,
        "nrc2": nrc2,
        "deep_nrc1": share,
        "deep_nrc2": cka,
        "deep_nrc3": np.linalg.svd(top @ rows.T)[1].mean(),
        "deep_nrc4": np.sum((fitted - targets) ** 2) / np.sum(targets**2),
        "model_error": np.sum((H @ W.T + b - Y) ** 2) / np.sum(targets**2),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-11, err_msg=name)
        assert value > 1e-3


def test_scale_and_offset_are_of_no_account() -> None:
    found = regression_optimum(correlated(), 0.1, dim=5)
    noisy = found.features + 0.1 * np.random.default_rng(1).normal(size=found.features.shape)
    one = regression_collapse(noisy, found.targets, found.weights, found.bias)
    two = regression_collapse(1e6 * noisy, found.targets, 1e-6 * found.weights, found.bias)
    for name, value in one.to_dict().items():
        if name in one.CONVENTIONS:
            np.testing.assert_allclose(
                getattr(two, name), value, rtol=1e-9, atol=1e-13, err_msg=name
            )
    far = regression_collapse(noisy + 1e3, found.targets, found.weights, found.bias)
    np.testing.assert_allclose(far.deep_nrc1, one.deep_nrc1, rtol=1e-9)
    assert far.nrc1 > 0.3  # as published: what is projected is not centred


def test_sizes_far_apart_are_no_matter_and_nothing_is_nan() -> None:
    found = regression_optimum(correlated(), 0.6, dim=5)
    one = measured(found)
    far = regression_collapse(
        1e100 * found.features, 1e-100 * found.targets, 1e-200 * found.weights, 1e-100 * found.bias
    )
    for name in ("nrc1", "nrc3", "nrc3_soft", "deep_nrc2", "deep_nrc3", "model_error"):
        np.testing.assert_allclose(getattr(far, name), getattr(one, name), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(far.nrc3_soft_gamma, 1e-200 * one.nrc3_soft_gamma)
    np.testing.assert_allclose(far.feature_variances[0], 1e200 * one.feature_variances[0])
    huge = regression_collapse(
        1e100 * found.features, 1e-100 * found.targets, 1e200 * found.weights, found.bias
    )
    assert huge.model_error == np.inf


def test_directions_of_low_rank_targets_can_be_fewer() -> None:
    rng = np.random.default_rng(3)
    Y = rng.normal(size=(60, 1)) * np.array([1.0, 2.0])
    H = np.concatenate([Y[:, :1], 0.5 * rng.normal(size=(60, 1)), np.zeros((60, 1))], axis=1)
    assert regression_collapse(H, Y).deep_nrc1 < 1e-14
    assert regression_collapse(H, Y, num_directions=1).deep_nrc1 > 0.05
    W = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    first = np.linalg.eigh(np.cov(H.T))[1][0, -1]
    found = regression_collapse(H, Y, W, np.zeros(2), num_directions=1)
    np.testing.assert_allclose(found.deep_nrc3, abs(first))


def test_directions_without_variance_predict_nothing() -> None:
    y = correlated(50)[:, :1]
    H = np.concatenate([y, y / 3, y / 7], axis=1)
    wanted = np.concatenate([y, np.random.default_rng(0).normal(size=(50, 1))], axis=1)
    found = regression_collapse(H, wanted, rtol=1e-12)
    centred = wanted - wanted.mean(axis=0)
    fitted = np.linalg.lstsq(centred[:, :1], centred, rcond=None)[0]
    left = np.sum((centred[:, :1] @ fitted - centred) ** 2) / np.sum(centred**2)
    np.testing.assert_allclose(found.deep_nrc4, left, rtol=1e-9)
    noisy = H + 1e-8 * np.random.default_rng(1).normal(size=H.shape)
    np.testing.assert_allclose(regression_collapse(noisy, wanted, rtol=1e-12).deep_nrc4, left)
    assert regression_collapse(noisy, wanted, rtol=0.0).deep_nrc4 < left - 1e-4


def test_one_output_may_be_a_vector_and_a_head_may_be_missing() -> None:
    H, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9.0)
    result = regression_collapse(H, y)
    assert result.num_outputs == 1
    assert result.nrc2 is result.nrc3 is result.deep_nrc3 is result.model_error is None
    text, flat = str(result), json.loads(json.dumps(result.to_dict()))
    assert repr(result) == text
    assert "nrc1" in flat
    assert "nrc3" not in flat
    assert "deep_nrc4" in text
    assert "nrc2 " not in text.replace("deep_nrc2", "")
    assert "<table>" in result._repr_html_()
    whole = regression_collapse(H, y, np.ones((1, 4)))
    assert set(whole.CONVENTIONS) <= set(whole.to_dict())


@pytest.mark.slow
@for_each("use_bias", [True, False])
def test_solved_problems_have_the_gamma_of_their_penalties(use_bias: bool) -> None:
    Y, N, decay = correlated(30), 30, 0.6
    problem = ufm.Problem(
        targets=ufm.Targets.regression(Y),
        feature_dim=5,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=decay, features=decay / N),
        use_bias=use_bias,
    )
    found = ufm.solve(problem).parameters
    result = regression_collapse(found.features, Y, found.weights[-1], found.bias)
    assert max(result.nrc1, result.nrc2) < 1e-10
    assert result.nrc3_soft < 1e-6
    assert result.nrc3 > 0.01  # one mode is dead
    assert result.nrc3_soft_modes == 2
    np.testing.assert_allclose(result.nrc3_soft_gamma, decay**2, rtol=1e-6)
    np.testing.assert_allclose(result.deep_nrc3, 1.0)


def test_the_statistics_print_and_suffice() -> None:
    H, Y = np.random.default_rng(0).normal(size=(9, 4)), correlated(9)
    statistics = regression_statistics(H, Y)
    assert "target_mean" in str(statistics)
    assert regression_collapse_from(statistics).to_dict() == regression_collapse(H, Y).to_dict()


@for_each(
    ("change", "named"),
    [
        ({"targets": np.ones((9, 2))}, "targets"),
        ({"targets": np.ones((8, 2))}, "targets"),
        ({"targets": np.full((9, 2), np.nan)}, "targets"),
        ({"features": np.ones(9)}, "features"),
        ({"weights": np.ones((3, 4))}, "weights"),
        ({"bias": np.ones(2)}, "bias"),
        ({"weights": np.ones((2, 4)), "bias": np.ones(3)}, "bias"),
        ({"sample_weights": np.zeros(9)}, "sample_weights"),
        ({"sample_weights": -np.ones(9)}, "sample_weights"),
        ({"features": np.full((9, 4), 1e-140)}, "features"),
        ({"targets": np.arange(9.0) * 1e140}, "targets"),
        ({"about": "nothing"}, "about"),
        ({"num_directions": 3}, "num_directions"),
        ({"rtol": 1.0}, "rtol"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], named: str) -> None:
    rng = np.random.default_rng(0)
    good = {"features": rng.normal(size=(9, 4)), "targets": rng.normal(size=(9, 2))}
    with pytest.raises(ArgumentError, match=f"^`{named}`"):
        regression_collapse(**good | change)
