"""The numbers of the `neural-collapse` package from ours, as `ufm.networks` documents them."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from ufm import geometry, networks
from ufm.metrics import NeuralCollapse, neural_collapse

K, D = 5, 7
PAIRS = np.triu_indices(K, 1)


class Example(NamedTuple):
    """Five classes of unequal size: samples, class means M, weights W, and their measures."""

    X: np.ndarray
    y: np.ndarray
    W: np.ndarray
    M: np.ndarray
    moments: networks.ClassMoments
    found: NeuralCollapse


@pytest.fixture(scope="module")
def example() -> Example:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), (30, 20, 20, 10, 5))
    means = 0.5 + rng.normal(size=(K, D))
    features = means[labels] + 0.4 * rng.normal(size=(len(labels), D))
    weights = means + 0.3 * rng.normal(size=(K, D))
    moments = networks.ClassMoments(K, D)
    moments.update(features, labels)
    found = neural_collapse(features, labels, weights)
    return Example(features, labels, weights, moments.means, moments, found)


def kernel_grids(collapse: NeuralCollapse, dim: int) -> dict[str, np.ndarray]:
    """Return the grids of the three kernels as the table has them."""
    with np.errstate(divide="ignore"):
        r = np.sqrt(np.maximum(2 - 2 * collapse.nc2_features.cosines, 0.0))
        return {"dist": r, "log": -np.log(r), "riesz": np.sign(dim - 2) * r ** (2.0 - dim)}


def test_the_table_is_the_formulas_of_the_package(example: Example) -> None:
    X, y, W, M, moments, found = example
    C = M - M.mean(axis=0)
    V_intra = sum(np.outer(x - M[k], x - M[k]) for x, k in zip(X, y, strict=True)) / len(X)
    V_inter = C.T @ C / K
    V = np.array([np.mean(np.sum((X[y == k] - M[k]) ** 2, axis=1)) for k in range(K)])
    cdnv = [(V[j] + V[k]) / 2 / np.sum((M[j] - M[k]) ** 2) for j, k in zip(*PAIRS, strict=True)]
    ideal = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    unit, unit_W = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (C, W))
    distances = np.array([np.linalg.norm(unit[j] - unit[k]) for j, k in zip(*PAIRS, strict=True)])
    decided = np.argmax(X @ W.T, axis=1)
    nearest = np.argmin(np.sum((X[:, None] - M) ** 2, axis=2), axis=1)
    agrees = np.array([np.mean((decided == nearest)[y == k]) for k in range(K)])
    ood = np.arange(D, dtype=float)

    def structure(A: np.ndarray) -> float:
        return float(np.linalg.norm(A / np.linalg.norm(A) - ideal))

    norms, grids = found.nc2_features.norms, kernel_grids(found, D)
    assert found.nc2_weights is not None
    assert found.nc3 is not None
    assert found.nc4 is not None
    similarities = found.nc3.alignment * found.nc2_weights.norms * norms
    table: dict[str, tuple[Any, Any]] = {
        "within": (moments.within, V_intra),
        "within_trace": (moments.within_trace, V),
        "within_variance": (found.nc1.within_variance, V),
        "covariance_ratio, pinv": (
            found.nc1.pinv,
            np.trace(V_intra @ np.linalg.pinv(V_inter, rcond=1e-10)) / K,
        ),
        "covariance_ratio, quotient": (
            found.nc1.trace_ratio,
            np.trace(V_intra) / np.trace(V_inter),
        ),
        "variability_cdnv": (found.nc1.cdnv, np.mean(cdnv)),
        "mean_norms": (norms, np.linalg.norm(C, axis=1)),
        "interference_grid": (found.nc2_features.cosines * np.outer(norms, norms), C @ C.T),
        "simplex_etf_error": (found.nc2_features.etf_distance, structure(C @ C.T)),
        "dist_kernel": (grids["dist"][PAIRS], distances),
        "log_kernel": (grids["log"][PAIRS], np.log(1 / distances)),
        "riesz_kernel": (grids["riesz"][PAIRS], distances ** (2.0 - D)),
        "self_duality_error": (found.nc3.product_etf_distance, structure(W @ C.T)),
        "similarities": (similarities, np.sum(W * C, axis=1)),
        "similarities, cos": (found.nc3.alignment, np.sum(unit_W * unit, axis=1)),
        "uniform duality": (np.var(similarities, ddof=1), np.var(np.sum(W * C, axis=1), ddof=1)),
        "distance_norms": (
            np.sqrt(2 - 2 * found.nc3.alignment),
            np.linalg.norm(unit_W - unit, axis=1),
        ),
        "distance_norms, norm=False": (
            np.sqrt(found.nc2_weights.norms**2 + norms**2 - 2 * similarities),
            np.linalg.norm(W - C, axis=1),
        ),
        "clf_ncc_agreement": (1 - found.nc4.mismatch, np.mean(decided == nearest)),
        "clf_ncc_agreement, by class": (1 - found.nc4.mismatch_per_class.mean(), agrees.mean()),
        "orthogonality_deviation": (
            np.mean(np.abs(geometry.normalise_rows(moments.means) @ ood)) / np.linalg.norm(ood),
            np.mean(np.abs(M @ ood) / np.linalg.norm(M, axis=1) / np.linalg.norm(ood)),
        ),
    }
    for name, (ours, theirs) in table.items():
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=name)
    second = networks.SecondPass(moments, W)
    second.update(X, y)
    assert second.measure().nc4 is not None
    np.testing.assert_allclose(second.measure().nc4.mismatch, 1 - np.mean(decided == nearest))


def test_the_package_itself_gave_this_number() -> None:
    """Three blobs of thirty points; by the package's commit c05a0b8, "pinv", in float64."""
    rng = np.random.default_rng(0)
    centres = 3.0 * np.eye(3, 5)
    features = np.concatenate([centre + 0.15 * rng.standard_normal((30, 5)) for centre in centres])
    labels = np.repeat(np.arange(3), 30)
    moments = networks.ClassMoments(3, 5)
    moments.update(features, labels)
    for found in (neural_collapse(features, labels), moments.measure()):
        np.testing.assert_allclose(found.nc1.pinv, 0.00409094387203806, rtol=1e-12)


def test_a_simplex_etf_has_uniform_kernels() -> None:
    M = geometry.simplex_etf(K, D, scale=3.0)
    found = neural_collapse(M, np.arange(K), 0.2 * M)
    grids = kernel_grids(found, D)
    for name, grid in grids.items():
        assert np.var(grid[PAIRS]) < 1e-28, name
    np.testing.assert_allclose(grids["dist"][PAIRS].mean(), np.sqrt(2 * K / (K - 1)))
    assert found.nc3 is not None
    for distance in (found.nc2_features.etf_distance, found.nc3.product_etf_distance):
        np.testing.assert_allclose(distance, 0.0, atol=1e-14)


def test_float32_pseudo_inverses_go_wrong_where_this_does_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 50)
    means = geometry.simplex_etf(10, 64, scale=3.0) + 20.0
    X = (means[labels] + 0.02 * rng.normal(size=(500, 64))).astype(np.float32)
    moments = networks.ClassMoments(10, 64)
    moments.update(X, labels)
    found = moments.measure().nc1.pinv
    np.testing.assert_allclose(found, neural_collapse(X, labels).nc1.pinv, rtol=1e-10)
    C = (moments.means - moments.means.mean(axis=0)).astype(np.float32)
    naive = np.trace(moments.within.astype(np.float32) @ np.linalg.pinv(C.T @ C / 10)) / 10
    assert not np.isclose(naive, found, rtol=1.0)
