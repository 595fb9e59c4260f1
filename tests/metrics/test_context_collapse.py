"""Collapse by context at a symmetric minimum, by slow formulas, and where it must fail."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from tables import for_each
from target_optima import pick_all_labels_optimum

import ufm
from ufm._support import ArgumentError
from ufm.metrics import (
    context_collapse,
    context_collapse_from,
    context_statistics,
    entropy_floor,
)


def language(noise: float = 0.0, twice: bool = False) -> tuple[dict[str, Any], float]:
    """All pairs of 5 tokens, each followed by both alike, at the minimum; and its coefficient."""
    found = pick_all_labels_optimum(5, (2,), 0.01, dim=6)
    optimum = found.optimum
    contexts, tokens = np.nonzero(optimum.targets)
    if twice:  # two contexts for every pair
        contexts, tokens = np.concatenate([contexts, contexts + 10]), np.tile(tokens, 2)
    H = optimum.features[contexts % 10]
    H = H + noise * np.random.default_rng(0).normal(size=(20, 6))[contexts]
    given = {"features": H, "tokens": tokens, "contexts": contexts, "weights": optimum.weights}
    return given, found.coefficients[2]


def test_a_symmetric_language_at_its_minimum() -> None:
    given, a = language(twice=True)
    result = context_collapse(**given)
    assert (result.num_contexts, result.num_rows, result.num_supports) == (20, 10, 10)
    np.testing.assert_allclose(result.entropy_floor, np.log(2))
    np.testing.assert_allclose(result.cross_entropy, np.log(2 + 3 * np.exp(-a)))
    np.testing.assert_allclose(result.excess, np.log(1 + 1.5 * np.exp(-a)))
    np.testing.assert_allclose([result.margin, result.mean_margin], a)
    assert result.log_odds_error < 1e-12
    assert result.context_variability == 0
    assert result.row_variability < 1e-25
    assert result.support_variability < 1e-25


def test_unequal_features_of_equal_contexts_are_seen() -> None:
    given, a = language(noise=0.1, twice=True)
    result = context_collapse(**given)
    assert result.row_variability > 1e-3
    assert result.support_variability > 1e-3
    assert result.log_odds_error > 1e-2
    assert result.margin < a < 2 * result.mean_margin
    assert context_collapse(**language(noise=0.1)[0]).row_variability is None
    rough = given["features"] + 0.1 * np.random.default_rng(1).normal(size=(40, 6))
    assert context_collapse(**given | {"features": rough}).context_variability > 1e-3


def test_equal_supports_collapse_orthogonally_to_their_weights_only() -> None:
    rng = np.random.default_rng(3)
    W = rng.normal(size=(5, 6))
    base = rng.normal(size=(2, 6))
    tokens = np.array([0, 1, 0, 0, 1, 2, 3, 4, 2, 3, 3, 4])
    contexts = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    means = np.stack(
        [
            base[0],
            base[0] + 0.7 * (W[0] - W[1]),
            base[1],
            base[1] + 0.5 * (W[2] - W[3]) - 0.4 * (W[3] - W[4]),
        ]
    )
    result = context_collapse(means[contexts], tokens, contexts, W)
    assert (result.num_rows, result.num_supports) == (4, 2)
    assert result.row_variability is None
    assert result.support_variability > 0.05
    assert result.support_variability_outside < 1e-25
    along = means.copy()
    along[1] += 0.5 * (W[0] + W[1])  # no difference of weights
    kept = context_collapse(along[contexts], tokens, contexts, W)
    assert kept.support_variability_outside > 1e-2
    means[1] += 0.5 * rng.normal(size=6)
    moved = context_collapse(means[contexts], tokens, contexts, W)
    assert moved.support_variability_outside > 1e-3


@for_each("seed", range(3))
def test_the_numbers_are_those_of_slow_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    N, V, C, d = 200, 7, 12, 4
    contexts, H = rng.integers(C, size=N), rng.normal(size=(N, d))
    tokens = (contexts + rng.integers(4, size=N)) % V
    W, b = rng.normal(size=(V, d)), rng.normal(size=V)
    result = context_collapse(H, tokens, contexts * 10, W, b)
    rows = np.zeros((C, V))
    np.add.at(rows, (contexts, tokens), 1.0)
    n, p = rows.sum(axis=1), rows / rows.sum(axis=1, keepdims=True)
    mean = np.array([H[contexts == j].mean(axis=0) for j in range(C)])
    Z = mean @ W.T + b
    loss = errors = 0.0
    margins = []
    for j in range(C):
        inside = np.flatnonzero(p[j])
        loss += n[j] / N * (logsumexp(Z[j]) - p[j] @ Z[j])
        off = Z[j, inside] - np.log(p[j, inside])
        errors += n[j] / N * np.mean((off - off.mean()) ** 2)
        margins.append(Z[j, inside].min() - np.delete(Z[j], inside).max())
    within = sum(np.sum((h - mean[j]) ** 2) for h, j in zip(H, contexts, strict=True))
    between = n @ np.sum((mean - H.mean(axis=0)) ** 2, axis=1)
    expected = {
        "entropy_floor": entropy_floor(p, n),
        "cross_entropy": loss,
        "excess": loss - entropy_floor(p, n),
        "log_odds_error": np.sqrt(errors),
        "margin": min(margins),
        "mean_margin": n @ np.array(margins) / N,
        "context_variability": within / between,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-10, err_msg=name)
    assert result.num_supports < C
    assert result.excess > 0.1


def test_no_logits_are_below_the_floor() -> None:
    given, _ = language()
    above = [
        context_collapse(**given | {"weights": scale * given["weights"]}).excess
        for scale in (0.0, 1.0, 10.0, 100.0)
    ]
    assert above == sorted(above, reverse=True)
    np.testing.assert_allclose(above[0], np.log(5) - np.log(2))
    assert 0 <= above[-1] < 1e-9


@pytest.mark.slow
def test_solved_problems_tend_to_the_log_odds_and_collapse_outside_the_support_first() -> None:
    rows = np.array([[0.9, 0.1, 0, 0, 0], [0.3, 0.7, 0, 0, 0], [0, 0, 0.5, 0.5, 0]])
    rows = np.concatenate([rows, [[0.3, 0, 0.4, 0, 0.3]]])
    contexts, tokens = np.nonzero(rows)
    measured = []
    for decay in (1e-2, 1e-4, 1e-6):
        problem = ufm.Problem(
            targets=ufm.Targets.contexts(rows, np.ones(4)),
            feature_dim=5,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(weights=decay, features=decay),
        )
        found = ufm.solve(problem)
        H, W = np.asarray(found.parameters.features), np.asarray(found.parameters.weights[-1])
        result = context_collapse(
            H[contexts], tokens, contexts, W, sample_weights=rows[contexts, tokens]
        )
        np.testing.assert_allclose(result.entropy_floor, entropy_floor(rows))
        squares = np.sum(H**2) + np.sum(W**2)
        np.testing.assert_allclose(result.cross_entropy + decay / 2 * squares, found.objective)
        assert result.support_variability_outside < 0.2 * result.support_variability
        measured.append(result)
    for name, rate in (("log_odds_error", 100), ("excess", 50), ("support_variability", 1.5)):
        first, second, third = (getattr(result, name) for result in measured)
        assert first > rate * second > 0, name
        assert second > rate * third > 0, name
    margins = [result.margin for result in measured]
    assert np.diff(margins).min() > 3  # log(100) = 4.6 and less


def test_many_tokens_are_worked_on_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = language(noise=0.1, twice=True)
    whole = context_collapse(**given)
    monkeypatch.setattr("ufm.metrics.pairs.PAIRS", 11)
    parts = context_collapse(**given)
    for name, value in whole.to_dict().items():
        np.testing.assert_allclose(getattr(parts, name), value, err_msg=name)


def test_sample_weights_are_repetitions_and_nothing_weighs_nothing() -> None:
    rng = np.random.default_rng(5)
    contexts, tokens, H = (
        rng.integers(6, size=50),
        rng.integers(4, size=50),
        rng.normal(size=(50, 3)),
    )
    a, W = rng.integers(0, 3, size=50), rng.normal(size=(4, 3))
    weighted = context_collapse(H, tokens, contexts, W, sample_weights=a)
    many = np.repeat(np.arange(50), a)
    whole = context_collapse(H[many], tokens[many], contexts[many], W)
    for name, value in whole.to_dict().items():
        np.testing.assert_allclose(getattr(weighted, name), value, err_msg=name)


def test_it_prints_and_leaves_out_what_was_not_measured() -> None:
    given, _ = language()
    given.pop("weights")
    result = context_collapse(**given)
    assert result.cross_entropy is result.excess is result.margin is None
    assert "excess" not in json.loads(json.dumps(result.to_dict()))
    assert "entropy_floor" in repr(result)
    statistics = context_statistics(given["features"], given["tokens"], given["contexts"], 5)
    assert "pair_counts" in str(statistics)
    assert context_collapse_from(statistics).to_dict() == result.to_dict()
    targets = ufm.Targets.contexts(statistics.rows, statistics.counts)
    np.testing.assert_allclose(entropy_floor(targets.rows, targets.counts), result.entropy_floor)
    full = context_collapse([[1.0], [2.0], [0.0]], [0, 1, 1], [0, 0, 1], np.ones((2, 1)))
    assert full.margin == 0.0  # only the second context has a token outside
    both = context_collapse(np.ones((4, 1)), [0, 1, 0, 1], [0, 0, 1, 1], np.ones((2, 1)))
    assert both.margin is both.mean_margin is None


@for_each(
    ("change", "named"),
    [
        ({"tokens": np.arange(6.0)}, "tokens"),
        ({"tokens": np.arange(5)}, "tokens"),
        ({"tokens": np.arange(6), "weights": np.ones((5, 4))}, "tokens"),
        ({"tokens": -np.arange(6)}, "tokens"),
        ({"contexts": -np.arange(6)}, "contexts"),
        ({"contexts": np.full(6, "a")}, "contexts"),
        ({"contexts": np.zeros(6, int)}, "contexts"),
        ({"features": np.ones(6)}, "features"),
        ({"weights": np.ones((6, 3))}, "weights"),
        ({"bias": np.ones(3)}, "bias"),
        ({"weights": np.ones((6, 4)), "bias": np.ones(2)}, "bias"),
        ({"sample_weights": np.zeros(6)}, "sample_weights"),
        ({"features": np.full((6, 4), 1e140)}, "features"),
        ({"rtol": 2.0}, "rtol"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], named: str) -> None:
    good = {
        "features": np.random.default_rng(0).normal(size=(6, 4)),
        "tokens": np.arange(6),
        "contexts": np.arange(6) % 3,
    }
    with pytest.raises(ArgumentError, match=f"^`{named}`"):
        context_collapse(**good | change)
