"""Linguistic collapse at a simplex ETF, by slow loops over pairs, and where directions coincide."""

import json
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import ArgumentError
from ufm.metrics import linguistic_collapse, neural_collapse


@for_each("K", [3, 5, 9])
def test_a_simplex_etf_has_the_closed_form_and_no_variation(K: int) -> None:
    means = 3.0 * np.asarray(ufm.geometry.simplex_etf(K, K + 1))
    result = linguistic_collapse(neural_collapse(means, np.arange(K), means))
    np.testing.assert_allclose(result.gnc2, -0.5 * np.log(2 * K / (K - 1)), rtol=1e-13)
    np.testing.assert_allclose(result.interference, -1 / (K - 1), rtol=1e-12)
    np.testing.assert_allclose(result.nc3, 1.0)
    for name in ("gnc2_variation", "interference_deviation", "unc3", "log_norm_variation"):
        assert getattr(result, name) < 1e-13, name
    assert result.cdnv == result.cdnv_squared == 0
    assert result.agreement == 1


def by_loops(H: np.ndarray, y: np.ndarray, W: np.ndarray, K: int) -> dict[str, float]:
    mu = [H[y == k].mean(axis=0) for k in range(K)]
    v = [np.mean(np.sum((H[y == k] - mu[k]) ** 2, axis=1)) for k in range(K)]
    m = [one - np.mean(mu, axis=0) for one in mu]
    u = [one / np.linalg.norm(one) for one in m]
    pairs = [(j, k) for j in range(K) for k in range(K) if j != k]
    first, second, kernel, cosine = [], [], [], []
    for j, k in pairs:
        distance = np.linalg.norm(mu[j] - mu[k])
        first.append((v[j] + v[k]) / (2 * distance**2))
        second.append((v[j] + v[k]) / (2 * distance**4))
        kernel.append(np.log(1 / np.linalg.norm(u[j] - u[k])))
        cosine.append(u[j] @ u[k])
    logs = [np.log(np.linalg.norm(one)) for one in m]
    own = [W[k] @ u[k] / np.linalg.norm(W[k]) for k in range(K)]
    nearest = [int(np.argmin([np.linalg.norm(h - one) for one in mu])) for h in H]
    return {
        "cdnv": np.mean(first),
        "cdnv_squared": np.mean(second),
        "log_norm_variation": np.std(logs) / abs(np.mean(logs)),
        "log_norm_deviation": np.std(logs),
        "interference": np.mean(cosine),
        "interference_deviation": np.std(cosine),
        "gnc2": np.mean(kernel),
        "gnc2_variation": np.std(kernel) / abs(np.mean(kernel)),
        "gnc2_deviation": np.std(kernel),
        "nc3": np.mean(own),
        "unc3": np.std(own) / abs(np.mean(own)),
        "agreement": np.mean(np.array(nearest) == np.argmax(H @ W.T, axis=1)),
    }


@for_each("scale", [1.0, 1e-3])
def test_the_numbers_are_those_of_loops(scale: float) -> None:
    rng = np.random.default_rng(1)
    K = 6
    y = np.repeat(np.arange(K), [9, 4, 3, 2, 2, 2])
    means = rng.normal(size=(K, 4))
    H = scale * (means[y] + 0.4 * rng.normal(size=(len(y), 4)) + 0.5)
    W = means + 0.5 * rng.normal(size=(K, 4))
    result = linguistic_collapse(neural_collapse(H, y, W))
    for name, value in by_loops(H, y, W, K).items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-9, err_msg=name)
        assert abs(value) > 1e-3


def test_the_second_exponent_has_a_unit_and_the_first_has_none() -> None:
    rng = np.random.default_rng(0)
    H, y = rng.normal(size=(30, 5)), np.arange(30) % 3
    one, ten = (linguistic_collapse(neural_collapse(size * H, y)) for size in (1.0, 10.0))
    np.testing.assert_allclose(ten.cdnv, one.cdnv)
    np.testing.assert_allclose(ten.cdnv_squared, one.cdnv_squared / 100)
    np.testing.assert_allclose(ten.log_norm_deviation, one.log_norm_deviation)
    assert abs(ten.log_norm_variation - one.log_norm_variation) > 0.01


def test_what_coincides_is_infinite_and_not_nan() -> None:
    H = np.array([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [1.0, 0.1], [2.0, 0.1], [-3.0, 0.1]])
    y = np.array([0, 1, 2, 0, 1, 2])
    result = linguistic_collapse(neural_collapse(H, y))
    assert np.isinf([result.gnc2, result.gnc2_variation, result.gnc2_deviation]).all()
    same = linguistic_collapse(neural_collapse(np.concatenate([H[:2], H[:2]]), [0, 0, 1, 1]))
    assert np.isinf([same.cdnv, same.cdnv_squared, same.log_norm_variation]).all()
    assert not any(np.isnan(value) for value in same.to_dict().values())


def test_it_prints_and_leaves_out_what_was_not_measured() -> None:
    means = np.asarray(ufm.geometry.simplex_etf(4, 4))
    result = linguistic_collapse(neural_collapse(means, np.arange(4)))
    assert result.nc3 is result.unc3 is result.agreement is None
    assert set(json.loads(json.dumps(result.to_dict()))) == {
        *set(result.CONVENTIONS) - {"nc3", "unc3", "agreement"},
        "num_classes",
    }
    assert "gnc2_variation" in repr(result)


@for_each("given", [None, np.eye(3)])
def test_only_a_measurement_is_taken(given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^`collapse`"):
        linguistic_collapse(given)
