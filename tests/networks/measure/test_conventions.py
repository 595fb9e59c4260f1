from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ufm import geometry, networks
from ufm.metrics import neural_collapse
from ufm.networks import conventions

K, D = 5, 7


@pytest.fixture(scope="module")
def network() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), (30, 20, 20, 10, 5))
    means = 0.5 + rng.normal(size=(K, D))
    features = means[labels] + 0.4 * rng.normal(size=(len(labels), D))
    weights = means + 0.3 * rng.normal(size=(K, D))
    moments = networks.ClassMoments(K, D)
    moments.update(features, labels)
    collapse = neural_collapse(features, labels, weights)
    m_G = moments.means.mean(axis=0)
    return {
        "X": features,
        "Y": labels,
        "W": weights,
        "M": moments.means,
        "m_G": m_G,
        "moments": moments,
        "found": collapse,
    }


def test_every_metric_is_its_formula(network: dict[str, Any]) -> None:
    X, y, W, M, m_G = (network[name] for name in ("X", "Y", "W", "M", "m_G"))
    C, pairs = M - m_G, [(j, k) for j in range(K) for k in range(j)]
    V_intra = sum(np.outer(x - M[k], x - M[k]) for x, k in zip(X, y, strict=True)) / len(X)
    V_inter = C.T @ C / K
    V = np.array([np.mean(np.sum((X[y == k] - M[k]) ** 2, axis=1)) for k in range(K)])
    ideal = (np.eye(K) - 1 / K) / np.sqrt(K - 1)

    def structure(A: np.ndarray) -> float:
        return float(np.linalg.norm(A / np.linalg.norm(A) - ideal))

    unit = C / np.linalg.norm(C, axis=1, keepdims=True)
    unit_W = W / np.linalg.norm(W, axis=1, keepdims=True)
    distances = np.array([np.linalg.norm(unit[j] - unit[k]) for j, k in pairs])
    pinv = np.linalg.pinv(V_inter, rcond=1e-10)
    expected: list[tuple[Any, Any]] = [
        (conventions.covariance_ratio(V_intra, M, m_G), np.trace(V_intra @ pinv) / K),
        (conventions.covariance_ratio(V_intra, C), np.trace(V_intra @ pinv) / K),
        (conventions.covariance_ratio(V_intra, M, m_G, "svd"), np.trace(V_intra @ pinv) / K),
        (conventions.covariance_ratio(V_intra, M, m_G, "quotient"), np.trace(V_intra) / np.trace(V_inter)),
        (conventions.covariance_ratio(V_intra, M), np.trace(V_intra @ np.linalg.pinv(M.T @ M / K, rcond=1e-10)) / K),
        (
            conventions.variability_cdnv(V, M),
            np.mean([(V[j] + V[k]) / 2 / np.sum((M[j] - M[k]) ** 2) for j, k in pairs]),
        ),
        (
            conventions.variability_cdnv(V, M, dist_exp=2),
            np.mean([(V[j] + V[k]) / 2 / np.sum((M[j] - M[k]) ** 2) ** 2 for j, k in pairs]),
        ),
        (conventions.mean_norms(M, m_G), np.linalg.norm(C, axis=1)),
        (conventions.interference_grid(M, m_G), C @ C.T),
        (conventions.simplex_etf_error(M, m_G), structure(C @ C.T)),
        (conventions.self_duality_error(W, M, m_G), structure(W @ C.T)),
        (conventions.similarities(W, M, m_G), np.sum(W * C, axis=1)),
        (conventions.similarities(W, M, m_G, cos=True), np.sum(unit_W * unit, axis=1)),
        (conventions.distance_norms(W, M, m_G), np.linalg.norm(unit_W - unit, axis=1)),
        (conventions.distance_norms(W, M, m_G, norm=False), np.linalg.norm(W - C, axis=1)),
        (conventions.kernel_stats(M, m_G), (distances.mean(), distances.var())),
        (
            conventions.kernel_stats(M, m_G, conventions.log_kernel),
            (np.log(1 / distances).mean(), np.log(1 / distances).var()),
        ),
        (
            conventions.kernel_stats(M, m_G, conventions.riesz_kernel),
            ((distances ** (2.0 - D)).mean(), (distances ** (2.0 - D)).var()),
        ),
        (
            conventions.orthogonality_deviation(M, np.arange(D)),
            np.mean(np.abs(M @ np.arange(D)) / np.linalg.norm(M, axis=1) / np.linalg.norm(np.arange(D))),
        ),
    ]
    for number, (found, formula) in enumerate(expected):
        np.testing.assert_allclose(found, formula, rtol=1e-9, err_msg=str(number))


def test_the_table_says_where_each_is(network: dict[str, Any]) -> None:
    found, M, m_G, W = (network[name] for name in ("found", "M", "m_G", "W"))
    moments = network["moments"]
    table = conventions.results(moments, W, found, m_G_ood=np.ones(D))
    pairs = {
        "nc1_pinv": found.nc1.pinv,
        "nc1_svd": found.nc1.pinv,
        "nc1_quot": found.nc1.trace_ratio,
        "nc1_cdnv": found.nc1.cdnv,
        "nc2_etf_err": found.nc2_features.etf_distance,
        "nc3_dual_err": found.nc3.product_etf_distance,
        "nc4_agree": 1 - found.nc4.mismatch,
    }
    for name, value in pairs.items():
        np.testing.assert_allclose(table[name], value, rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(conventions.mean_norms(M, m_G), found.nc2_features.norms)
    np.testing.assert_allclose(conventions.similarities(W, M, m_G, cos=True), found.nc3.alignment)
    np.testing.assert_allclose(table["nc3u_uni_dual"], np.var(np.sum(W * (M - m_G), axis=1), ddof=1))
    by_class = conventions.clf_ncc_agreement(found, weighted=False)
    np.testing.assert_allclose(by_class, 1 - found.nc4.mismatch_per_class.mean())
    assert "nc4_agree" not in conventions.results(moments, W)


def test_the_package_itself_gave_this_number() -> None:
    """Three blobs of thirty points in five dimensions; by the package at its commit c05a0b8, "pinv", in float64."""
    rng = np.random.default_rng(0)
    centres = 3.0 * np.eye(3, 5)
    features = np.concatenate([centre + 0.15 * rng.standard_normal((30, 5)) for centre in centres])
    labels = np.repeat(np.arange(3), 30)
    np.testing.assert_allclose(neural_collapse(features, labels).nc1.pinv, 0.00409094387203806, rtol=1e-12)
    moments = networks.ClassMoments(3, 5)
    moments.update(features, labels)
    for metric in ("pinv", "svd"):
        found = conventions.covariance_ratio(moments.within, moments.means, moments.means.mean(axis=0), metric)
        np.testing.assert_allclose(found, 0.00409094387203806, rtol=1e-12)


def test_a_simplex_etf_has_uniform_kernels() -> None:
    M = geometry.simplex_etf(K, D, scale=3.0)
    for kernel in (conventions.dist_kernel, conventions.log_kernel, conventions.riesz_kernel):
        assert conventions.kernel_stats(M, kernel=kernel).variance < 1e-28
    np.testing.assert_allclose(conventions.simplex_etf_error(M), 0.0, atol=1e-14)
    np.testing.assert_allclose(conventions.self_duality_error(0.2 * M, M), 0.0, atol=1e-14)
    np.testing.assert_allclose(conventions.kernel_stats(M).mean, np.sqrt(2 * K / (K - 1)))
    np.testing.assert_array_equal(conventions.riesz_kernel(M[:, :2]), np.ones((K, K)))
    assert (np.diagonal(conventions.riesz_kernel(M)) == np.inf).all()
    assert conventions.riesz_kernel(M[:, :1])[0, 1] == -abs(M[0, 0] - M[1, 0])


def test_float32_pseudo_inverses_go_wrong_where_this_does_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 50)
    X = ((geometry.simplex_etf(10, 64, scale=3.0) + 20.0)[labels] + 0.02 * rng.normal(size=(500, 64))).astype(
        np.float32
    )
    moments = networks.ClassMoments(10, 64)
    moments.update(X, labels)
    m_G = moments.means.mean(axis=0)
    found = conventions.covariance_ratio(moments.within, moments.means, m_G)
    np.testing.assert_allclose(found, neural_collapse(X, labels).nc1.pinv, rtol=1e-10)
    C = (moments.means - m_G).astype(np.float32)
    naive = np.trace(moments.within.astype(np.float32) @ np.linalg.pinv(C.T @ C / 10)) / 10
    assert not np.isclose(naive, found, rtol=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conventions.covariance_ratio(np.eye(3), np.eye(2)), r"`V_intra` must be of shape \(2, 2\)"),
        (
            lambda: conventions.covariance_ratio(np.eye(2), np.eye(2), metric="trace"),
            "`metric` must be one of .* got 'trace'",
        ),
        (lambda: conventions.simplex_etf_error(np.eye(2), np.ones(3)), "`m_G` must be a vector of 2 numbers, or 0"),
        (lambda: conventions.simplex_etf_error(np.ones(2)), r"`M` must be a matrix \(K, d\)"),
        (lambda: conventions.similarities(np.eye(3), np.eye(2)), r"`W` must be of the shape \(2, 2\) of the means"),
        (lambda: conventions.variability_cdnv(np.ones(3), np.eye(2)), r"`V` must be of shape \(2,\)"),
        (lambda: conventions.mean_norms([[np.nan, 1.0]]), "`M` must be finite"),
        (lambda: conventions.orthogonality_deviation(np.eye(2), np.ones(3)), "`m_G_ood` must be a vector of 2"),
        (lambda: conventions.clf_ncc_agreement(neural_collapse(np.eye(2), [0, 1])), "`collapse` must have NC4"),
    ],
)
def test_misuse_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
