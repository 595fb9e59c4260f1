import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

from ufm import geometry
from ufm._support import double_precision
from ufm.metrics import NeuralCollapse, class_statistics, collapse_metrics, neural_collapse
from ufm.networks import ClassMoments, SecondPass, by_group


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def process_precision(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield request.param
    jax.config.update("jax_enable_x64", before)


class Data:
    """Noisy class means and a classifier: 4 unequal classes, 6 dimensions, far from the origin."""

    def __init__(
        self,
        counts: tuple[int, ...] = (9, 4, 3, 2),
        dim: int = 6,
        noise: float = 0.5,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        self.counts, self.K = np.array(counts, float), len(counts)
        self.labels = rng.permutation(np.repeat(np.arange(self.K), counts))
        means = 1.0 + rng.normal(size=(self.K, dim))
        self.features = means[self.labels] + noise * rng.normal(size=(len(self.labels), dim))
        self.weights, self.bias = (
            means + 0.3 * rng.normal(size=means.shape),
            0.5 * rng.normal(size=self.K),
        )

    def measure(self, **changes: Any) -> NeuralCollapse:
        arguments = {
            name: getattr(self, name) for name in ("features", "labels", "weights", "bias")
        }
        return neural_collapse(**(arguments | changes))


def reference(data: Data, centre: str = "classes") -> dict[str, Any]:
    """Every metric straight from its definition, with (d, d) matrices."""
    H, y, W, b, K = data.features, data.labels, data.weights, data.bias, data.K
    M = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    C = M - (M.mean(axis=0) if centre == "classes" else H.mean(axis=0))
    R = H - M[y]
    v = np.array([np.mean(np.sum(R[y == k] ** 2, axis=1)) for k in range(K)])
    weighted = M - H.mean(axis=0)
    S_W, S_B = R.T @ R / len(H), C.T @ C / K
    S_B_weighted = weighted.T @ np.diag(data.counts / len(H)) @ weighted
    pinv = np.linalg.pinv(S_B, rcond=1e-10)
    P, off = np.eye(K) - 1 / K, ~np.eye(K, dtype=bool)
    pairs = np.zeros((K, K))
    for j in range(K):
        for k in range(K):
            if j != k:
                pairs[j, k] = (v[j] + v[k]) / (2 * np.sum((M[j] - M[k]) ** 2))
    nearest = np.argmin(np.sum((H[:, None] - M[None]) ** 2, axis=2), axis=1)
    predicted = np.argmax(H @ W.T + b, axis=1)

    def unit(A: np.ndarray) -> np.ndarray:
        return A / np.linalg.norm(A)

    def by_class(values: np.ndarray) -> np.ndarray:
        return np.array([np.mean(values[y == k]) for k in range(K)])

    def frame(name: str, V: np.ndarray, uncentred: np.ndarray) -> dict[str, Any]:
        G, U = V @ V.T, uncentred @ uncentred.T
        norms = np.linalg.norm(V, axis=1)
        cosines = G / np.outer(norms, norms)
        deviation = np.abs(cosines + 1 / (K - 1))
        return {
            f"{name}_etf_distance": np.linalg.norm(unit(G) - P / np.sqrt(K - 1)),
            f"{name}_orthogonal_distance": np.linalg.norm(unit(U) - np.eye(K) / np.sqrt(K)),
            f"{name}_general_orthogonal_distance": np.linalg.norm(U[off])
            / np.linalg.norm(np.diag(U)),
            f"{name}_norm_variation": np.std(norms) / np.mean(norms),
            f"{name}_equiangularity": np.mean(deviation[off]),
            f"{name}_norms": norms,
            f"{name}_uncentred_norms": np.linalg.norm(uncentred, axis=1),
            f"{name}_cosine_deviation": np.max(np.where(off, deviation, 0), axis=1),
        }

    def row_cosines(A: np.ndarray) -> np.ndarray:
        return np.sum(W * A, axis=1) / np.linalg.norm(W, axis=1) / np.linalg.norm(A, axis=1)

    return {
        "centre": centre,
        "class_counts": data.counts,
        "nc1_pinv": np.trace(S_W @ pinv) / K,
        "nc1_pinv_per_class": [
            np.trace(R[y == k].T @ R[y == k] @ pinv) / np.sum(y == k) / K for k in range(K)
        ],
        "nc1_pinv_unnormalised": np.trace(S_W @ pinv),
        "nc1_pinv_weighted": np.trace(S_W @ np.linalg.pinv(S_B_weighted, rcond=1e-10)) / K,
        "nc1_trace_ratio": np.trace(S_W) / np.trace(S_B),
        "nc1_cdnv": np.mean(pairs[off]),
        "nc1_cdnv_per_class": pairs.sum(axis=1) / (K - 1),
        "nc1_within_variance": v,
        **frame("nc2_features", C, M),
        **frame("nc2_weights", W, W),
        "nc3_product_etf_distance": np.linalg.norm(unit(W @ C.T) - P / np.sqrt(K - 1)),
        "nc3_product_orthogonal_distance": np.linalg.norm(unit(W @ M.T) - np.eye(K) / np.sqrt(K)),
        "nc3_squared_distance": np.linalg.norm(unit(W) - unit(C)) ** 2,
        "nc3_squared_distance_uncentred": np.linalg.norm(unit(W) - unit(M)) ** 2,
        "nc3_alignment": row_cosines(C),
        "nc3_alignment_uncentred": row_cosines(M),
        "nc4_mismatch": np.mean(predicted != nearest),
        "nc4_mismatch_per_class": by_class(predicted != nearest),
        "nc4_accuracy": np.mean(predicted == y),
        "nc4_accuracy_per_class": by_class(predicted == y),
    }


def assert_same(
    found: NeuralCollapse, expected: dict[str, Any], tolerance: float = 1e-10, but: str = "-"
) -> None:
    found_dict = found.to_dict()
    assert found_dict.keys() == expected.keys()
    for name, value in expected.items():
        if name == "centre":
            assert found_dict[name] == value
        elif but not in name:
            np.testing.assert_allclose(
                found_dict[name], value, rtol=tolerance, atol=tolerance, err_msg=name
            )


def unequal(found: NeuralCollapse, expected: dict[str, Any]) -> set[str]:
    values = found.to_dict().items()
    return {
        name
        for name, value in values
        if name != "centre" and not np.allclose(value, expected[name], 1e-9)
    }


@jax.jit
def compiled(
    features: jax.Array, labels: jax.Array, weights: jax.Array, bias: jax.Array
) -> NeuralCollapse:
    return collapse_metrics(class_statistics(features, labels, weights.shape[0]), weights, bias)


# References


@pytest.mark.usefixtures("process_precision")
@for_each("centre", ["classes", "samples"])
@for_each("data", [Data(), Data(dim=2), Data(dim=1), Data(counts=(3, 5)), Data(dim=40, noise=2.0)])
def test_every_metric_agrees_with_its_definition(data: Data, centre: str) -> None:
    found = data.measure(centre=centre)
    assert_same(found, reference(data, centre))
    assert all(
        isinstance(leaf, np.ndarray | np.float64) and leaf.dtype == np.float64
        for leaf in jax.tree.leaves(found)
    )


def test_scatter_matrices_add_up_to_the_total() -> None:
    data = Data()
    statistics = class_statistics(data.features, data.labels, data.K)
    between = (statistics.means - statistics.global_mean) * np.sqrt(statistics.shares)[:, None]
    total = np.cov(data.features.T, bias=True)
    np.testing.assert_allclose(statistics.within + between.T @ between, total, atol=1e-13)
    np.testing.assert_allclose(
        statistics.shares @ statistics.within_trace, np.trace(statistics.within)
    )
    np.testing.assert_allclose(statistics.global_mean, data.features.mean(axis=0))
    np.testing.assert_array_equal(statistics.counts, data.counts)


# Limits


@for_each("dim", [4, 5, 30])
def test_a_collapsed_simplex_etf_is_recognised(dim: int) -> None:
    means = geometry.simplex_etf(5, dim, scale=3.0, key=jax.random.key(0))
    labels = np.repeat(np.arange(5), 3)
    result = neural_collapse(
        7.0 + means[labels], labels, 0.2 * means, -0.2 * means @ np.full(dim, 7.0)
    )
    flat = result.to_dict()
    zero = """nc1_pinv nc1_pinv_weighted nc1_trace_ratio nc1_cdnv nc1_within_variance
        nc2_weights_etf_distance
        nc2_features_etf_distance nc2_features_equiangularity nc2_features_norm_variation
        nc2_features_cosine_deviation nc3_product_etf_distance nc3_squared_distance nc4_mismatch"""
    for name in zero.split():
        np.testing.assert_allclose(flat[name], 0.0, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(flat["nc2_features_norms"], 3.0, rtol=1e-13)
    np.testing.assert_allclose(flat["nc3_alignment"], 1.0, rtol=1e-13)
    assert flat["nc4_accuracy"] == 1.0
    assert flat["nc2_features_orthogonal_distance"] > 0.1


def test_a_collapsed_orthogonal_frame_is_recognised() -> None:
    result = neural_collapse(2.0 * np.eye(4), np.arange(4), np.eye(4))
    for value in (result.nc2_features.orthogonal_distance, result.nc2_weights.orthogonal_distance):
        np.testing.assert_allclose(value, 0.0, atol=1e-15)
    np.testing.assert_allclose(result.nc3.product_orthogonal_distance, 0.0, atol=1e-15)
    np.testing.assert_allclose(result.nc3.squared_distance_uncentred, 0.0, atol=1e-15)
    np.testing.assert_allclose(
        result.nc2_features.etf_distance, 0.0, atol=1e-15
    )  # centred, it is an ETF
    assert result.nc2_weights.etf_distance > 0.1
    unequal_norms = neural_collapse(np.diag([1.0, 2.0, 3.0, 0.0]), np.arange(4))
    assert unequal_norms.nc2_features.general_orthogonal_distance == 0.0
    assert unequal_norms.nc2_features.orthogonal_distance > 0.1
    np.testing.assert_array_equal(unequal_norms.nc2_features.uncentred_norms, [1.0, 2.0, 3.0, 0.0])


def test_total_collapse_of_the_means_is_no_neural_collapse() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    spread = np.array([1.0, -1.0] * 3)[:, None] * np.ones((6, 3)) + 4.0
    result = neural_collapse(spread, labels, np.zeros((3, 3)))
    for value in (
        result.nc1.pinv,
        result.nc1.pinv_weighted,
        result.nc1.trace_ratio,
        result.nc1.cdnv,
    ):
        assert value == np.inf
    point = neural_collapse(np.full((6, 3), 0.1), labels, np.zeros((3, 3)))
    for value in (point.nc1.pinv, point.nc1.pinv_weighted, point.nc1.trace_ratio, point.nc1.cdnv):
        assert value == 0.0
    for nc2 in (result.nc2_features, result.nc2_weights):
        assert nc2.etf_distance == pytest.approx(1.0)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves((result, point)))


def test_minority_collapse_shows_in_the_classes_where_an_aggregate_hides_it() -> None:
    rng = np.random.default_rng(0)
    means = geometry.simplex_etf(6, 8)
    means[5] = means[4]  # two rare classes share their mean
    labels = np.repeat(np.arange(6), [1000, 1000, 1000, 1000, 10, 10])
    noise = np.where(labels >= 4, 0.5, 0.01)[:, None] * rng.normal(size=(len(labels), 8))
    for k in range(6):
        noise[labels == k] -= noise[labels == k].mean(axis=0)
    result = neural_collapse(means[labels] + noise, labels, means)
    assert result.nc1.pinv < 5e-3
    assert result.nc1.pinv_per_class[:4].max() < 1e-3
    assert result.nc1.pinv_per_class[4:].min() > 0.2
    assert result.nc1.within_variance[4:].min() > 1e3 * result.nc1.within_variance[:4].max()
    assert result.nc1.cdnv_pairs[4, 5] == np.inf
    assert np.isfinite(result.nc1.cdnv_per_class[:4]).all()
    np.testing.assert_allclose(result.nc2_features.cosines[4, 5], 1.0)
    np.testing.assert_allclose(result.nc2_features.cosine_deviation[4:], 1.2)
    np.testing.assert_allclose(
        result.nc4.accuracy_per_class[4] + result.nc4.accuracy_per_class[5], 1.0, atol=0.6
    )


# Identities


def test_rotation_scale_and_permutation_of_classes_change_nothing_else() -> None:
    data = Data()
    before = data.measure().to_dict()
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert (
        unequal(data.measure(features=data.features @ Q, weights=data.weights @ Q), before) == set()
    )
    scaled = data.measure(
        features=2.0 * data.features, weights=3.0 * data.weights, bias=6.0 * data.bias
    )
    in_units = {"nc1_within_variance", "nc2_features_norms", "nc2_features_uncentred_norms"}
    in_units |= {"nc2_weights_norms", "nc2_weights_uncentred_norms"}
    assert unequal(scaled, before) == in_units
    order = np.array([2, 0, 3, 1])
    renamed = data.measure(
        labels=np.argsort(order)[data.labels], weights=data.weights[order], bias=data.bias[order]
    )
    permuted = {key: np.asarray(v)[order] if np.ndim(v) else v for key, v in before.items()}
    assert_same(renamed, permuted)


def test_a_common_offset_moves_only_what_is_uncentred() -> None:
    data = Data(noise=0.2)
    before, offset = data.measure().to_dict(), np.full(6, 1e6)
    moved = data.measure(features=data.features + offset, bias=data.bias - data.weights @ offset)
    allowed = ("orthogonal_distance", "uncentred")
    for name, value in moved.to_dict().items():
        if name != "centre" and not any(word in name for word in allowed):
            np.testing.assert_allclose(value, before[name], rtol=1e-7, atol=1e-7, err_msg=name)


def test_sample_weights_stand_for_repeated_samples() -> None:
    data = Data()
    times = np.random.default_rng(2).integers(1, 4, size=len(data.labels))
    repeated = data.measure(
        features=np.repeat(data.features, times, axis=0), labels=np.repeat(data.labels, times)
    )
    assert_same(data.measure(sample_weights=times), repeated.to_dict())


def test_class_level_rows_with_counts_have_no_variability() -> None:
    data = Data()
    means = np.stack([data.features[data.labels == k].mean(axis=0) for k in range(data.K)])
    arguments = {
        "features": means,
        "labels": np.arange(4),
        "weights": data.weights,
        "bias": data.bias,
    }
    result = neural_collapse(**arguments, sample_weights=data.counts, centre="samples")
    assert result.nc1.pinv == result.nc1.trace_ratio == result.nc1.cdnv == 0.0
    expected = reference(data, "samples")
    for name, value in result.to_dict().items():
        if name.startswith(("nc2", "nc3", "class")):
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, err_msg=name)


# Numerical traps


def test_nc1_of_float32_features_where_a_float32_pseudo_inverse_fails() -> None:
    rng = np.random.default_rng(0)
    K, d, n = 10, 64, 50
    labels = np.repeat(np.arange(K), n)
    features = (geometry.simplex_etf(K, d, scale=3.0) + 20.0)[labels] + 0.02 * rng.normal(
        size=(K * n, d)
    )
    features = features.astype(np.float32)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(K)])
    within, between = features - means[labels], means - means.mean(axis=0)
    S_W, S_B = within.T @ within / len(features), between.T @ between / K
    naive = np.trace(S_W @ np.linalg.pinv(S_B)) / K
    exact = neural_collapse(features.astype(np.float64), labels).nc1.pinv
    assert not np.isclose(
        naive, exact, rtol=1.0
    )  # the trap is set: negative or many times too large
    found = neural_collapse(features, labels).nc1.pinv
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    np.testing.assert_allclose(exact, 0.02**2 * (K - 1) ** 2 / (9.0 * K), rtol=0.1)
    narrow = jax.jit(
        lambda H: collapse_metrics(class_statistics(H, jnp.asarray(labels), K)).nc1.pinv
    )
    in_float32 = narrow(jnp.asarray(features))
    assert in_float32.dtype == jnp.float32
    np.testing.assert_allclose(in_float32, exact, rtol=1e-3)


@for_each("size", [1e-150, 1e150])
def test_magnitudes_whose_squares_leave_the_dtype_are_fine(size: float) -> None:
    data = Data(noise=1e-3)
    found = data.measure(features=size * data.features, bias=size * data.bias).to_dict()
    for name, value in data.measure().to_dict().items():
        if name not in (
            "centre",
            "nc1_within_variance",
            "nc2_features_norms",
            "nc2_features_uncentred_norms",
        ):
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_many_dimensions_need_no_matrix_of_their_square() -> None:
    data = Data(dim=50_000)
    assert np.isfinite(data.measure().nc1.pinv)


# NC4


@for_each(
    ("weights", "bias", "mismatch", "accuracy"),
    [
        (np.eye(3), None, [0, 0, 0], [1, 1, 1]),
        (np.eye(3)[[1, 0, 2]], None, [1, 1, 0], [0, 0, 1]),
        (np.eye(3), [0.0, 0.0, 9.0], [1, 1, 0], [0, 0, 1]),
        (np.zeros((3, 3)), None, [0, 1, 1], [1, 0, 0]),  # ties go to class 0
    ],
)
def test_nearest_mean_mismatch(
    weights: np.ndarray, bias: Any, mismatch: list[int], accuracy: list[int]
) -> None:
    labels = np.array([0, 1, 1, 1, 2])
    result = neural_collapse(np.eye(3)[labels], labels, weights, bias)
    np.testing.assert_array_equal(result.nc4.mismatch_per_class, mismatch)
    np.testing.assert_array_equal(result.nc4.accuracy_per_class, accuracy)
    np.testing.assert_allclose(result.nc4.mismatch, np.mean(np.array(mismatch)[labels]))
    np.testing.assert_allclose(result.nc4.accuracy, np.mean(np.array(accuracy)[labels]))


@for_each("right", [0, 7, 1000])
def test_shares_of_samples_are_whole_numbers_over_whole_numbers(right: int) -> None:
    # Every class but the first few is decided against the nearest mean; two samples each, and three
    # of the last.
    K = 1000
    means = np.random.default_rng(8).normal(size=(K, 64))
    labels = np.append(np.repeat(np.arange(K), 2), K - 1)
    weights = np.where(np.arange(K)[:, None] < right, 1e3, -1.0) * (
        means / np.linalg.norm(means, axis=1, keepdims=True)
    )
    result = neural_collapse(means[labels], labels, weights=weights)
    wrong = np.sum(labels >= right) if right else labels.size
    assert result.nc4.accuracy == (labels.size - wrong) / labels.size
    assert result.nc4.mismatch == wrong / labels.size
    moments = ClassMoments(K, 64)
    moments.update(means[labels], labels)
    second = SecondPass(moments, weights)
    second.update(means[labels], labels)
    both = second.measure()
    assert (both.nc4.mismatch, both.nc4.accuracy) == (result.nc4.mismatch, result.nc4.accuracy)
    grouped = by_group(both, np.arange(K) % 3)
    of_group = np.bincount(labels % 3, labels >= right) / np.bincount(labels % 3)
    np.testing.assert_array_equal(grouped.mismatch, of_group)


def test_decisions_against_every_nearest_mean_are_a_share_of_exactly_one() -> None:
    K = 1000
    means = np.random.default_rng(8).normal(size=(K, 32))
    labels = np.repeat(np.arange(K), 2)
    moments = ClassMoments(K, 32)
    moments.update(means[labels], labels)
    second = SecondPass(moments, -means)
    second.update(means[labels], labels)
    for found in (neural_collapse(means[labels], labels, weights=-means), second.measure()):
        assert found.nc4.mismatch == 1.0
        assert 1 - found.nc4.mismatch == 0.0  # the agreement
        assert found.nc4.accuracy == 0.0
        np.testing.assert_array_equal(found.nc4.mismatch_per_class, 1.0)
        np.testing.assert_array_equal(by_group(found, np.arange(K) % 7).mismatch, 1.0)


# The pure core


def test_the_core_compiles_batches_scans_and_keeps_the_dtype() -> None:
    data = Data()
    lanes = np.stack(
        [data.features, 2.0 * data.features + 1.0, data.features**2, 1e-25 * data.features]
    )
    batches = jnp.asarray(lanes.reshape(2, 2, *data.features.shape), jnp.float32)
    weights = 1e-25 * data.weights  # whose squares vanish in float32, as those of the last lane do
    classifier = jnp.asarray(weights, jnp.float32), jnp.zeros(4, jnp.float32)

    @jax.jit
    def trajectory(batches: jax.Array) -> NeuralCollapse:
        batched = jax.vmap(
            lambda features: compiled(features, jnp.asarray(data.labels), *classifier)
        )
        return jax.lax.scan(lambda carry, batch: (carry, batched(batch)), None, batches)[1]

    found = trajectory(batches)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    for index, features in enumerate(lanes):
        expected = data.measure(features=features, weights=weights, bias=None)
        for group in ("nc1", "nc2_features", "nc2_weights", "nc3", *(["nc4"] if index < 3 else [])):
            for field, value in getattr(expected, group)._asdict().items():
                lane = getattr(getattr(found, group), field)[divmod(index, 2)]
                np.testing.assert_allclose(
                    lane, value, rtol=1e-3, atol=1e-4, err_msg=f"{group}.{field}"
                )
    assert str(found) == repr(found)
    assert found._repr_html_().startswith("<pre>")


def test_numpy_and_jax_compute_the_same() -> None:
    data = Data(dim=40, noise=2.0)
    with double_precision():
        arrays = [
            jnp.asarray(array) for array in (data.features, data.labels, data.weights, data.bias)
        ]
        found = jax.tree.map(np.asarray, compiled(*arrays))
    assert_same(found, data.measure().to_dict())
    statistics = class_statistics(data.features, data.labels, data.K)
    for name in (*statistics._fields, "shares", "global_mean", "within_trace", "within"):
        assert isinstance(getattr(statistics, name), np.ndarray), name
    mixed = jax.jit(lambda W: collapse_metrics(statistics, W).nc1.pinv)(
        jnp.asarray(data.weights, jnp.float32)
    )
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, found.nc1.pinv, rtol=1e-4)


def sines(features: Any, labels: Any, weights: Any) -> list[Any]:
    """One smooth number for each group of metrics."""
    result = collapse_metrics(class_statistics(features, labels, 4), weights)
    xp = jnp if isinstance(features, jax.Array) else np
    return [
        sum(xp.sum(xp.sin(leaf)) for leaf in group)
        for group in (result.nc1, result.nc3, result.nc2_features)
    ]


@jax.jit
def gradient(
    features: jax.Array, labels: jax.Array, weights: jax.Array, chosen: jax.Array
) -> jax.Array:
    return jax.grad(lambda features: jnp.stack(sines(features, labels, weights)) @ chosen)(features)


@pytest.mark.slow
@for_each("at_the_frame", [False, True])
def test_gradients_match_finite_differences(at_the_frame: bool) -> None:
    data, step = Data(), 1e-6
    H, along = data.features, np.random.default_rng(3).normal(size=data.features.shape)
    if (
        at_the_frame
    ):  # equal singular values, where the derivative of a singular value decomposition fails
        means = np.stack([H[data.labels == k].mean(axis=0) for k in range(4)])
        H = H + (geometry.simplex_etf(4, 6) - means)[data.labels]
    ends = [np.array(sines(H + sign * step * along, data.labels, data.weights)) for sign in (1, -1)]
    for chosen in np.eye(3):
        with double_precision():
            arrays = [jnp.asarray(array) for array in (H, data.labels, data.weights, chosen)]
            found = np.asarray(gradient(*arrays))
        assert np.isfinite(found).all()
        if not (at_the_frame and chosen[2]):  # where NC2 has its kinks
            difference = (ends[0] - ends[1]) @ chosen / (2 * step)
            np.testing.assert_allclose(np.sum(found * along), difference, rtol=1e-6, atol=1e-7)


def test_a_class_without_samples_is_nan_in_the_core() -> None:
    labels = np.array([0, 1, 1])
    result = collapse_metrics(class_statistics(np.eye(3), labels, 3))
    assert np.isnan(result.nc1.within_variance[2])
    assert np.isnan(result.nc2_features.etf_distance)
    nc1 = jax.jit(lambda H: collapse_metrics(class_statistics(H, labels, 3)).nc1.pinv)(jnp.eye(3))
    assert np.isnan(result.nc1.pinv)
    assert np.isnan(nc1)


@for_each(
    ("call", "message"),
    [
        (
            lambda s: collapse_metrics(s, jnp.eye(2)),
            r"`weights`, `bias` must have shapes \(3, 3\), \(3,\)",
        ),
        (lambda s: collapse_metrics(s, bias=jnp.ones(3)), "`bias` needs `weights`"),
        (lambda s: collapse_metrics(s, centre="origin"), "`centre` must be one of .* got 'origin'"),
        (
            lambda s: collapse_metrics(class_statistics(np.eye(2), np.zeros(2, int), 1)),
            "at least 2 classes .* got 1",
        ),
    ],
)
def test_the_core_refuses_misuse(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(class_statistics(np.eye(3), np.arange(3), 3))


# The host side


def test_the_process_keeps_its_setting(process_precision: bool) -> None:
    Data().measure()
    assert jax.config.jax_enable_x64 is process_precision


def test_arrays_of_other_kinds_are_understood() -> None:
    data = Data()
    kinds: list[tuple[Any, Any]] = [
        (data.features.tolist(), data.labels.tolist()),
        (data.features.astype(np.float32), data.labels.astype(np.uint8)),
        (jnp.asarray(data.features, jnp.float32), jnp.asarray(data.labels)),
        (jnp.asarray(data.features, jnp.bfloat16), data.labels.astype(np.int16)),
    ]
    for features, labels in kinds:
        result = neural_collapse(features, labels)
        stored = np.asarray(features).astype(np.float64)
        assert_same(result, neural_collapse(stored, data.labels).to_dict())
        assert result.nc1.pinv.dtype == np.float64


@pytest.mark.filterwarnings("ignore")
def test_torch_tensors_are_understood() -> None:
    torch = pytest.importorskip("torch")
    data = Data()
    labels = torch.tensor(data.labels)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        features = torch.tensor(data.features, dtype=dtype, requires_grad=True)
        weights = torch.tensor(data.weights, dtype=dtype, requires_grad=True)
        stored = [tensor.detach().to(torch.float64).numpy() for tensor in (features, weights)]
        expected = neural_collapse(stored[0], data.labels, stored[1]).to_dict()
        assert_same(neural_collapse(features, labels, weights), expected)
        assert features.requires_grad


@for_each(
    ("changes", "message"),
    [
        ({"features": np.ones(18)}, r"`features` must be a matrix \(N, d\).* got shape \(18,\)"),
        ({"features": np.ones((0, 6))}, r"`features` must be a matrix .* got shape \(0, 6\)"),
        (
            {"features": np.full((18, 6), np.nan)},
            r"`features` must be finite, got nan at index \(0, 0\), one of 108 such values; leave "
            r"such samples out",
        ),
        (
            {"features": np.full((18, 6), 1j)},
            "`features` must hold real numbers, got dtype complex128",
        ),
        (
            {"features": np.full((18, 6), None)},
            "`features` must hold real numbers, got dtype object",
        ),
        ({"features": "features.npy"}, "`features` must hold real numbers"),
        ({"features": [[1.0], [1.0, 2.0]]}, "`features` must be an array"),
        ({"labels": np.zeros(17, int)}, r"`labels` must have shape \(18,\).* got shape \(17,\)"),
        ({"labels": np.zeros((18, 4), int)}, r"`labels.argmax\(axis=1\)`"),
        ({"labels": np.zeros((18, 4))}, r"`labels.argmax\(axis=1\)`"),
        (
            {"labels": np.zeros(18)},
            r"`labels` must be integers, got dtype float64; .*astype\(int\)",
        ),
        (
            {"labels": np.full(18, 0.5)},
            "`labels` must be integers, got dtype float64; 0.5 is no index of a class",
        ),
        (
            {"labels": np.full(18, "cat")},
            r"`labels` must hold real numbers, .* `np.unique\(labels, return_inverse",
        ),
        (
            {"features": np.zeros((0, 6))},
            "one row for each sample, of which there is at least one, got shape",
        ),
        ({"labels": np.arange(18) - 1}, r"`labels` must be in 0, ..., 3 for 4 classes, got -1"),
        ({"labels": np.arange(18)}, r"`labels` must be in 0, ..., 3 for 4 classes, got 17"),
        ({"num_classes": 4.0}, "`num_classes` must be an integer, got 4.0"),
        ({"num_classes": 3}, r"`labels` must be in 0, ..., 2 for 3 classes, got 3"),
        ({"num_classes": 6, "weights": None, "bias": None}, "got none of class 4, 5;"),
        (
            {"labels": np.arange(18) * 10**9, "weights": None, "bias": None},
            "got none of class 1, 2, .*, 10, ...;",
        ),
        (
            {"labels": np.zeros(18, int), "weights": None, "bias": None},
            "at least 2 classes to compare, got 1",
        ),
        (
            {"weights": np.ones((4, 5))},
            r"`weights` must be the last layer's matrix, \(K, 6\) .* got shape \(4, 5\)",
        ),
        (
            {"weights": (np.ones((4, 6)),)},
            r"`weights` must be the last layer's matrix.* got shape \(1, 4, 6\)",
        ),
        (
            {"weights": np.ones((3, 6)), "num_classes": 4},
            r"`weights` must have one row for each of 4 classes",
        ),
        (
            {"weights": np.full((4, 6), np.inf)},
            "`weights` must be finite, got inf .*; what has diverged cannot",
        ),
        ({"weights": None}, "`bias` needs `weights`"),
        ({"bias": np.ones(3)}, r"`bias` must be of shape \(4,\).* got shape \(3,\)"),
        (
            {"sample_weights": np.ones(4)},
            r"`sample_weights` must be of shape \(18,\).* got shape \(4,\)",
        ),
        ({"sample_weights": -np.ones(18)}, "`sample_weights` must not be negative .* got -1"),
        (
            {"sample_weights": np.zeros(18)},
            "`sample_weights` must .* positive sum in each class, got 0",
        ),
        ({"centre": "means"}, "`centre` must be one of .* got 'means'"),
        ({"rtol": -1.0}, r"`rtol` must be a finite number >= 0 and below 1, got -1.0"),
    ],
)
def test_invalid_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Data().measure(**changes)


def test_results_print_and_export() -> None:
    data = Data(counts=(2,) * 30)
    result = data.measure()
    text, markup = str(result), result._repr_html_()
    assert "tr(S_W S_B^+) / K" in text
    assert "30 classes, 60 samples, centred at the mean of class means" in text
    assert sum(line.split()[0].isdigit() for line in text.splitlines() if line.strip()) == 20
    assert markup.count("<table>") == markup.count("</table>") == 2
    assert "<td>nc1_pinv</td>" in markup
    flat = json.loads(json.dumps(result.to_dict()))
    assert flat["nc1_pinv"] == result.nc1.pinv
    assert flat["nc3_alignment"] == result.nc3.alignment.tolist()
    without = data.measure(weights=None, bias=None)
    assert without.nc2_weights is without.nc3 is without.nc4 is None
    assert not any(name.startswith(("nc2_weights", "nc3", "nc4")) for name in without.to_dict())
    assert "nc3" not in str(without)


# Many classes


def test_tiles_give_what_whole_matrices_give(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(counts=(3, 1, 2, 4, 1, 2, 2, 1, 5, 1, 1, 2), dim=3)
    first, fourth = (data.features[data.labels == k].mean(axis=0) for k in (0, 3))
    data.features[data.labels == 3] += first - fourth  # two classes of one mean
    whole = data.measure(rtol=1e-12)
    monkeypatch.setattr("ufm.metrics.pairs.PAIRS", 30)
    tiled = data.measure(rtol=1e-12)
    assert whole.nc1.cdnv == np.inf
    for name, value in whole.to_dict().items():
        if name != "centre":
            np.testing.assert_allclose(
                tiled.to_dict()[name], value, rtol=1e-12, atol=1e-15, err_msg=name
            )
    np.testing.assert_array_equal(tiled.nc1.cdnv_rows(slice(3, 5)), tiled.nc1.cdnv_pairs[3:5])
    # d is far below K, so that distances to frames come from the span of the vectors: here from the
    # definition
    M = class_statistics(data.features, data.labels, data.K).means
    C = M - M.mean(axis=0)
    for found, A, T in (
        (whole.nc2_features.etf_distance, C @ C.T, np.eye(12) - 1 / 12),
        (whole.nc2_features.orthogonal_distance, M @ M.T, np.eye(12)),
        (whole.nc3.product_etf_distance, data.weights @ C.T, np.eye(12) - 1 / 12),
    ):
        np.testing.assert_allclose(
            found, np.linalg.norm(A / np.linalg.norm(A) - T / np.linalg.norm(T)), rtol=1e-12
        )


def test_memory_is_not_that_of_pairs_of_classes() -> None:
    K, d = 3000, 4
    rng = np.random.default_rng(0)
    features, labels, weights = (
        rng.normal(size=(2 * K, d)),
        np.tile(np.arange(K), 2),
        rng.normal(size=(K, d)),
    )
    tracemalloc.start()
    result = neural_collapse(features, labels, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * K**2 / 4  # a quarter of one (K, K) matrix
    assert result.nc2_features.cosines.shape == (K, K)


def test_classes_without_samples_are_left_out_and_named() -> None:
    data = Data(counts=(6, 5, 4, 3))
    present = np.array([1, 2, 4, 7])
    weights, bias = np.zeros((9, 6)), np.full(9, -50.0)
    weights[present], bias[present] = data.weights, data.bias
    found = neural_collapse(data.features, present[data.labels], weights, bias, absent="leave out")
    expected = data.measure()
    np.testing.assert_array_equal(found.classes, present)
    np.testing.assert_array_equal(found.absent, [0, 3, 5, 6, 8])
    assert expected.classes is None
    assert expected.absent.size == 0
    for name, value in expected.to_dict().items():
        if name != "centre":
            np.testing.assert_allclose(
                found.to_dict()[name], value, rtol=1e-12, atol=1e-14, err_msg=name
            )
    assert "without 5 classes that have no samples: 0, 3, 5, 6, 8\n" in str(found)
    assert str(found).splitlines()[-1].split()[0] == "7"
    # the classifier decides among all its rows, those of absent classes too
    bias[3] = 1e6
    elsewhere = neural_collapse(
        data.features, present[data.labels], weights, bias, absent="leave out"
    ).nc4
    assert elsewhere is not None
    assert elsewhere.accuracy == 0.0
    assert elsewhere.mismatch == 1.0
    with pytest.raises(
        ValueError, match=r"got none of class 0, 3, 5, 6, 8; .* `absent='leave out'`"
    ):
        neural_collapse(data.features, present[data.labels], weights, bias)
    with pytest.raises(ValueError, match=r"`absent` must be one of .*, got 'skip'"):
        neural_collapse(data.features, present[data.labels], weights, bias, absent="skip")  # type: ignore[arg-type]


def test_masked_arrays_are_refused_unless_nothing_is_hidden() -> None:
    data = Data()
    hidden = np.ma.masked_array(data.features, mask=np.zeros_like(data.features, bool))
    np.testing.assert_array_equal(data.measure(features=hidden).nc1.pinv, data.measure().nc1.pinv)
    hidden.mask[2, 1] = True
    labels = np.ma.masked_equal(data.labels, 3)
    for changes, name in (
        ({"features": hidden}, "features"),
        ({"features": list(hidden)}, "features"),
        ({"labels": labels}, "labels"),
    ):
        with pytest.raises(
            ValueError, match=f"`{name}` must not be masked, got a masked array with"
        ):
            data.measure(**changes)
    with pytest.raises(ValueError, match=r"`array` must not be masked.* 1 values hidden"):
        class_statistics(hidden, data.labels, 4)


@pytest.mark.slow
def test_labels_in_a_column_are_told_to_drop_an_axis() -> None:
    data = Data()
    with pytest.raises(ValueError, match=r"drop the second axis with `labels.squeeze\(1\)`"):
        data.measure(labels=data.labels[:, None])
    with pytest.raises(
        ValueError, match=r"one-hot labels are converted with `labels.argmax\(axis=1\)`"
    ):
        data.measure(labels=np.eye(4, dtype=int)[data.labels])
