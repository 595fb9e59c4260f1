"""Collapse of tag sets at the exact minimum, by slow formulas, and where it must fail."""

import json
from typing import Any

import numpy as np
import pytest
from tables import for_each
from target_optima import pick_all_labels_optimum, tag_sets

import ufm
from ufm._support import ArgumentError
from ufm.metrics import multi_label_collapse, multi_label_collapse_from, tag_statistics

K = 5


def repeated(copies: int = 2, noise: float = 0.0, seed: int = 0, **options: Any) -> Any:
    """The minimum for all singles, pairs and triples, with samples that differ by noise."""
    found = pick_all_labels_optimum(K, (1, 2, 3), 0.005, dim=7)
    optimum = found.optimum
    H, Y = np.repeat(optimum.features, copies, axis=0), np.repeat(optimum.targets, copies, axis=0)
    H = H + noise * np.random.default_rng(seed).normal(size=H.shape)
    return multi_label_collapse(H, Y, optimum.weights, optimum.bias, **options), found.coefficients


@for_each("centre", ["classes", "samples", "multiplicity"])
def test_the_minimum_of_pick_all_labels_collapses_in_every_number(centre: str) -> None:
    result, a = repeated(centre=centre)
    assert result.num_sets == 25
    assert result.counts.tolist() == [10.0, 20.0, 20.0]
    assert result.nc1_trace_ratio < 1e-25
    assert result.nc1_cdnv < 1e-25
    assert max(result.nc2_features_etf_distance, result.nc2_weights_etf_distance) < 1e-12
    assert result.nc3_squared_distance < 1e-24
    assert max(result.residual_of_means, result.residual_of_weights) < 1e-12
    assert result.of_means.multiplicities.tolist() == [2, 3]
    np.testing.assert_allclose(result.of_means.sums, [a[2] / a[1], a[3] / a[1]])
    np.testing.assert_allclose(result.of_means.averages, [2 * a[2] / a[1], 3 * a[3] / a[1]])
    ratios = result.of_weights.sums / result.of_weights.sums[0]
    np.testing.assert_allclose(ratios, [1.0, a[2] / a[1], a[3] / a[1]])
    np.testing.assert_allclose(result.of_weights.cosines, 1.0)
    assert result.tags_on_top == 1


def test_the_numbers_are_those_of_slow_formulas() -> None:
    rng = np.random.default_rng(2)
    rows = np.concatenate([tag_sets(4, 1), tag_sets(4, 2)[:5]])
    places = np.concatenate([np.arange(9), rng.integers(9, size=30)])
    H, Y, W = rng.normal(size=(39, 3)) + rows[places][:, :3], rows[places], rng.normal(size=(4, 3))
    result = multi_label_collapse(H, Y, W)
    mean = {s: H[places == s].mean(axis=0) for s in range(9)}
    centre = np.mean([mean[k] for k in range(4)], axis=0)
    within = sum(np.sum((h - mean[s]) ** 2) for h, s in zip(H, places, strict=True))
    between = sum(np.sum((mean[s] - H.mean(axis=0)) ** 2) for s in places)
    np.testing.assert_allclose(result.nc1_trace_ratio, within / between)
    np.testing.assert_allclose(result.nc1_per_multiplicity.sum(), within / between)
    v = [np.mean(np.sum((H[places == s] - mean[s]) ** 2, axis=1)) for s in range(9)]
    pairs = [
        (v[s] + v[t]) / (2 * np.sum((mean[s] - mean[t]) ** 2))
        for s in range(9)
        for t in range(9)
        if s != t
    ]
    np.testing.assert_allclose(result.nc1_cdnv, np.mean(pairs))
    chosen = [s for s in places if s >= 4]
    h = np.array([mean[s] - centre for s in chosen])
    t = np.array([sum(mean[k] - centre for k in range(4) if rows[s, k]) for s in chosen])
    slope, left, *_ = np.linalg.lstsq(t.reshape(-1, 1), h.reshape(-1), rcond=None)
    np.testing.assert_allclose(result.of_means.sums, slope)
    np.testing.assert_allclose(result.of_means.residuals, np.sqrt(left / np.sum(h**2)))
    cosines = np.sum(h * t, axis=1) / np.linalg.norm(h, axis=1) / np.linalg.norm(t, axis=1)
    np.testing.assert_allclose(result.of_means.cosines, cosines.mean())
    assert 0.1 < result.residual_of_means < 1
    on_top = 0
    for s in places:
        order = np.argsort(-(W @ mean[s]))[: int(rows[s].sum())]
        on_top += set(order) == set(np.flatnonzero(rows[s]))
    np.testing.assert_allclose(result.tags_on_top, on_top / 39)
    assert 0 < on_top < 39


def test_noise_and_a_wrong_direction_are_seen() -> None:
    clean, _ = repeated()
    noisy, _ = repeated(noise=0.1)
    assert noisy.nc1_trace_ratio > 1e-3
    assert noisy.nc1_cdnv > 1e-3
    assert noisy.residual_of_means > 1e-2
    assert clean.residual_of_means < 1e-12
    optimum = pick_all_labels_optimum(K, (1, 2), 0.005, dim=7).optimum
    turned = optimum.features.copy()
    turned[K] = turned[K + 1]  # the pair {0, 1} where {0, 2} is
    result = multi_label_collapse(turned, optimum.targets)
    assert result.residual_of_means > 0.1
    assert result.nc2_features_etf_distance < 1e-12


def test_a_direction_that_counts_tags_needs_a_constant_for_each_multiplicity() -> None:
    optimum = pick_all_labels_optimum(K, (1, 2, 3), 0.005, dim=7).optimum
    counting = np.linalg.qr(optimum.weights.T, mode="complete")[0][:, -1]
    H = optimum.features + optimum.targets.sum(axis=1, keepdims=True) * counting + 3.0
    assert multi_label_collapse(H, optimum.targets).residual_of_means > 0.1
    fitted = multi_label_collapse(H, optimum.targets, optimum.weights, centre="multiplicity")
    assert max(fitted.residual_of_means, fitted.residual_of_weights) < 1e-12


def test_what_fits_nothing_is_left_out() -> None:
    optimum = pick_all_labels_optimum(4, (1, 2), 0.01, dim=5).optimum
    shifted = optimum.weights + 3.0  # softmax does not see what all weights have in common
    assert multi_label_collapse(optimum.features, optimum.targets, shifted).residual_of_weights < (
        1e-12
    )
    H = np.concatenate([optimum.features[:5], np.ones((1, 5))])
    Y = np.concatenate([optimum.targets[:5], np.ones((1, 4))])
    one_pair = multi_label_collapse(H, Y)
    assert one_pair.of_means.multiplicities.tolist() == [2]  # all tags together say nothing
    assert one_pair.residual_of_means < 1e-12
    assert multi_label_collapse(H, Y, centre="multiplicity").of_means is None


def test_sample_weights_are_repetitions() -> None:
    optimum = pick_all_labels_optimum(4, (1, 2), 0.01, dim=5).optimum
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(10), 2)
    H, Y = optimum.features[places], optimum.targets[places]
    H = H + 0.1 * rng.normal(size=H.shape)
    a = rng.integers(0, 4, size=20)
    a[::2] += 1
    weighted = multi_label_collapse(H, Y, optimum.weights, sample_weights=a)
    whole = multi_label_collapse(np.repeat(H, a, axis=0), np.repeat(Y, a, axis=0), optimum.weights)
    for name in whole.CONVENTIONS:
        np.testing.assert_allclose(getattr(weighted, name), getattr(whole, name), err_msg=name)


def test_tags_that_never_occur_alone_have_no_mean_to_be_summed() -> None:
    optimum = pick_all_labels_optimum(4, (1, 2), 0.01, dim=5).optimum
    kept = np.arange(1, 10)  # without the single tag 0
    result = multi_label_collapse(optimum.features[kept], optimum.targets[kept], optimum.weights)
    assert result.of_means.counts.tolist() == [3.0]  # the pairs without tag 0
    assert result.of_weights.counts.tolist() == [3.0, 6.0]
    pairs = multi_label_collapse(optimum.features[4:], optimum.targets[4:], optimum.weights)
    assert pairs.of_means is pairs.nc2_features is pairs.nc3 is None
    assert pairs.residual_of_means is None
    assert pairs.residual_of_weights < 1e-12
    full = multi_label_collapse(np.eye(4)[:2], [[0, 0, 0], [1, 1, 1]])
    assert full.of_means is full.of_weights is None


@pytest.mark.slow
def test_a_solved_problem_has_the_coefficients_of_the_closed_form() -> None:
    targets, decay = ufm.Targets.multi_label(5, {1: 5, 2: 10, 3: 10}), 0.005
    problem = ufm.Problem(
        targets=targets,
        feature_dim=7,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(weights=decay, features=decay),
    )
    found = ufm.solve(problem).parameters
    result = multi_label_collapse(found.features, targets.rows, found.weights[-1])
    a = pick_all_labels_optimum(5, (1, 2, 3), decay, dim=7).coefficients
    assert max(result.residual_of_means, result.residual_of_weights) < 1e-6
    np.testing.assert_allclose(result.of_means.sums, [a[2] / a[1], a[3] / a[1]], rtol=1e-6)


@pytest.mark.slow
def test_binary_cross_entropy_counts_tags_and_imbalance_leaves_the_span() -> None:
    def solved(targets: ufm.Targets, loss: ufm.Loss, **options: Any) -> Any:
        decay = ufm.WeightDecay(weights=0.01, features=0.01)
        problem = ufm.Problem(targets=targets, feature_dim=7, loss=loss, regularizer=decay)
        found = ufm.solve(problem).parameters
        given = (found.features, targets.rows, found.weights[-1])
        return multi_label_collapse(*given, sample_weights=targets.counts, **options)

    even = ufm.Targets.multi_label(4, {1: 4, 2: 6})
    counting = solved(even, ufm.BinaryCrossEntropy(), centre="multiplicity")
    assert max(counting.residual_of_means, counting.residual_of_weights) < 1e-6
    assert counting.nc2_weights_etf_distance > 0.1
    assert solved(even, ufm.BinaryCrossEntropy()).residual_of_means > 0.1
    uneven = ufm.Targets(even.rows, np.array([10, 5, 2, 1] + [1] * 6, float))
    assert solved(uneven, ufm.CrossEntropy()).residual_of_means > 0.01


def test_it_prints_by_multiplicity_and_exports_no_matrix() -> None:
    result, _ = repeated()
    text, flat = str(result), json.loads(json.dumps(result.to_dict()))
    assert repr(result) == text
    assert "residual_of_means" in text
    assert "C_m of means" in text
    assert flat["of_means"]["multiplicities"] == [2, 3]
    assert "directions" not in flat["nc2_features"]
    bare = multi_label_collapse(np.eye(3), np.eye(3))
    assert "C_m" not in str(bare)
    assert "nc2_weights" not in bare.to_dict()


def test_the_statistics_suffice() -> None:
    optimum = pick_all_labels_optimum(4, (1, 2), 0.01, dim=5).optimum
    statistics = tag_statistics(optimum.features, optimum.targets > 0)
    assert "tag_sets" in str(statistics)
    assert (
        multi_label_collapse_from(statistics).to_dict()
        == multi_label_collapse(optimum.features, optimum.targets).to_dict()
    )


@for_each(
    ("change", "named"),
    [
        ({"tags": np.arange(6)}, "tags"),
        ({"tags": np.ones((5, 3))}, "tags"),
        ({"tags": np.full((6, 3), 0.5)}, "tags"),
        ({"tags": np.ones((6, 3))}, "tags"),
        ({"tags": np.ones((6, 1))}, "tags"),
        ({"features": np.ones(6)}, "features"),
        ({"weights": np.ones((2, 4))}, "weights"),
        ({"bias": np.ones(3)}, "bias"),
        ({"weights": np.ones((3, 4)), "bias": np.ones(2)}, "bias"),
        ({"sample_weights": np.zeros(6)}, "sample_weights"),
        ({"features": np.full((6, 4), 1e140)}, "features"),
        ({"centre": "origin"}, "centre"),
        ({"rtol": -1.0}, "rtol"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], named: str) -> None:
    rng = np.random.default_rng(0)
    good = {
        "features": rng.normal(size=(6, 4)),
        "tags": np.concatenate([tag_sets(3, 1), tag_sets(3, 2)]),
    }
    with pytest.raises(ArgumentError, match=f"^`{named}`"):
        multi_label_collapse(**good | change)
