"""Explicit matrices of a solution over groups against its blocks."""

from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.problems import Problem


def test_blocks_are_the_lift_s_matrices() -> None:
    problem = Problem(
        class_counts=ufm.ClassGroups.step(6, 50.0, imbalance_ratio=10.0),
        feature_dim=6,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(5e-3, 5e-3),
        use_bias=True,
    )
    solution = ufm.solve(problem, resolution="groups").check()
    W, H = solution.weights[0], solution.features
    np.testing.assert_allclose(
        solution.blocks.weight_gram.dense(solution.groups), W @ W.T, atol=1e-12
    )
    np.testing.assert_allclose(
        solution.blocks.feature_gram.dense(solution.groups), H @ H.T, atol=1e-12
    )
    np.testing.assert_allclose(solution.blocks.logits.dense(solution.groups), H @ W.T, atol=1e-12)
    np.testing.assert_allclose(solution.logits, H @ W.T + solution.bias[None, :], atol=1e-12)
    np.testing.assert_allclose(
        solution.weight_norms[solution.groups], np.linalg.norm(W, axis=1), atol=1e-12
    )
    np.testing.assert_allclose(
        solution.feature_norms[solution.groups], np.linalg.norm(H, axis=1), atol=1e-12
    )
    assert solution.weight_cosines[0, 1] == pytest.approx(
        W[0] @ W[3] / np.linalg.norm(W[0]) / np.linalg.norm(W[3]), abs=1e-11
    )
    others = solution.logits - 1e9 * np.eye(6)
    margins = np.diag(solution.logits) - np.max(others, axis=1)
    np.testing.assert_allclose(solution.margins[solution.groups], margins, atol=1e-11)
    assert solution.rank == np.linalg.matrix_rank(H @ W.T, rtol=1e-9)
    assert abs(np.sum(solution.bias)) < 1e-10
    assert "2 groups" in str(solution)


@pytest.mark.slow
@for_each("ball", [False, True])
def test_lifts_of_groups_in_any_order_are_balanced_and_feasible(ball: bool) -> None:
    counts = (30.0, 5.0, 30.0, 5.0, 5.0)
    regularizer: Any = ufm.NormBall(2.0, 0.5) if ball else ufm.WeightDecay(1e-2, 1e-3)
    problem = Problem(
        class_counts=counts, feature_dim=7, loss=ufm.CrossEntropy(), regularizer=regularizer
    )
    solution = ufm.solve(problem, resolution="groups").check()
    np.testing.assert_array_equal(solution.groups, [0, 1, 0, 1, 1])
    W, H = solution.weights[0], solution.features
    assert W.shape == H.shape == (5, 7)
    if ball:
        assert np.sum(W**2) / 5 <= 2.0 * (1 + 1e-10)
        assert np.sum(H**2) / 5 <= 0.5 * (1 + 1e-10)
    else:
        balanced = 1e-2 * W.T @ W - 1e-3 * (H.T * np.array(counts)) @ H
        assert np.max(np.abs(balanced)) < 1e-10
    certificate = ufm.certify(problem, solution)
    assert certificate is not None
    assert certificate.holds
