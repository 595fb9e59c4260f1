"""Explicit points of deep models: matrices against closed forms, and both against the objective."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import double_precision
from ufm.problems import (
    class_pairs,
    class_samples,
    constructions_for,
    deep_neural_collapse,
    graph_size,
    squared_error_value,
    strongly_regular,
)


def deep(
    K: int,
    L: int,
    decay: Any = 4e-3,
    *,
    loss: Any = None,
    activation: str = "relu",
    width: int = 0,
    n: float = 1.0,
    **options: Any,
) -> Any:
    width = width or K
    return ufm.Problem(
        class_counts=(n,) * K,
        feature_dim=width,
        loss=loss or ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=decay, features=np.max(decay)),
        hidden_dims=(width,) * (L - 1),
        activation=activation,
        **options,
    )


@jax.jit
def compiled_objective(problem: ufm.Problem, parameters: ufm.Parameters) -> Any:
    return problem.objective(parameters, class_samples(problem, jnp.float64))


def objective(problem: ufm.Problem, parameters: ufm.Parameters) -> float:
    with double_precision():
        return float(compiled_objective(problem, parameters))


@for_each(
    ("K", "L", "n", "width"),
    [
        (6, 3, 1.0, 0),
        (6, 4, 50.0, 30),
        (10, 3, 50.0, 30),
        (10, 4, 1.0, 0),
        (10, 5, 50.0, 30),
        (12, 4, 50.0, 30),
        (15, 3, 1.0, 0),
        (21, 4, 50.0, 30),
    ],
)
def test_matrices_have_the_value_of_the_closed_form(K: int, L: int, n: float, width: int) -> None:
    problem = deep(K, L, 4e-3 / n ** (1 / (L + 1)), n=n, width=width)
    for construction, vertices in (
        (deep_neural_collapse(problem), None),
        (strongly_regular(problem), graph_size(K)),
    ):
        closed = squared_error_value(problem, vertices)
        assert construction.objective == pytest.approx(closed, rel=1e-12)
        assert objective(problem, construction.parameters) == pytest.approx(closed, rel=1e-12)


def test_unequal_penalties_count_by_their_geometric_mean() -> None:
    equal, unequal = deep(10, 4, 4e-3), deep(10, 4, (8e-3, 4e-3, 4e-3, 1e-3))
    assert unequal.regularizer.features == 8e-3
    for make, vertices in ((deep_neural_collapse, None), (strongly_regular, 5)):
        assert objective(unequal, make(unequal).parameters) == pytest.approx(
            squared_error_value(unequal, vertices), rel=1e-12
        )
        # (8, 4, 4, 1, 8) have the geometric mean of (4, 4, 4, 4, 4).
        assert make(equal).objective == pytest.approx(make(unequal).objective, rel=1e-12)


@for_each(
    ("K", "L", "decay", "collapse", "graph"),
    [
        (6, 4, 4e-3, 0.0597077, 0.0575250),
        (10, 3, 4e-3, 0.0791833, 0.0731797),
        (10, 4, 4e-3, 0.0991799, 0.0811361),
        (10, 5, 1e-3, 0.0299497, 0.0225511),
    ],
)
def test_published_settings(K: int, L: int, decay: float, collapse: float, graph: float) -> None:
    problem = deep(K, L, decay)
    assert squared_error_value(problem) == pytest.approx(collapse, abs=6e-8)
    assert squared_error_value(problem, graph_size(K)) == pytest.approx(graph, abs=1.1e-7)


@for_each("L", [3, 4, 5])
def test_the_graph_beats_collapse_from_the_published_number_of_classes_on(L: int) -> None:
    """Collapse is not optimal for K >= 10 at L = 3, K >= 6 at L >= 4 (Sukenik et al.)."""
    first = 10 if L == 3 else 6
    for r in range(4, 9):
        problem = deep(r * (r - 1) // 2, L, 1e-3)
        assert (squared_error_value(problem, r) < squared_error_value(problem)) == (
            problem.num_classes >= first
        )


RATIOS = {
    3: {6: 1.0561, 10: 0.9234, 15: 0.9268, 21: 0.9381, 28: 0.9476},
    4: {6: 0.9633, 10: 0.8168, 15: 0.7835, 21: 0.7628},
    5: {6: 0.9060, 10: 0.7527, 15: 0.7004},
}


@for_each(
    ("L", "K", "ratio"), [(L, K, ratio) for L, row in RATIOS.items() for K, ratio in row.items()]
)
def test_the_price_of_the_graph_over_that_of_collapse(L: int, K: int, ratio: float) -> None:
    """G of logits x I is ||W_l||^2 x^{-2/q}, the same for all factors.

    The crossover is where its ratio to K passes one.
    """
    problem = deep(K, L, 1e-4)
    prices = []
    for construction in (strongly_regular(problem), deep_neural_collapse(problem)):
        weights, features, _ = construction.parameters
        hidden = features
        for matrix in weights[:-1]:
            hidden = np.maximum(hidden @ matrix.T, 0)
        logits = hidden @ weights[-1].T
        scale = logits[0, 0]
        np.testing.assert_allclose(logits, scale * np.eye(K), atol=1e-12)
        squares = np.array([np.sum(factor**2) for factor in (*weights, features)])
        np.testing.assert_allclose(squares, squares[0], rtol=1e-12)
        prices.append(squares[0] * scale ** (-2 / (L + 1)))
    assert prices[1] == pytest.approx(K, rel=1e-12)
    assert prices[0] / prices[1] == pytest.approx(ratio, abs=5.1e-5)
    assert (prices[0] < prices[1]) == (
        squared_error_value(problem, graph_size(K)) < squared_error_value(problem)
    )


@for_each("num_classes", [4, 5, 7])
def test_pairs_share_every_direction_evenly_among_the_factors(num_classes: int) -> None:
    """An odd class has a singular value of its own.

    Both parts of the cost are those of the Schatten quasi-norm.
    """
    problem = deep(num_classes, 3, 1e-3, loss=ufm.CrossEntropy(), activation="linear")
    construction = class_pairs(problem)
    weights, features, _ = construction.parameters
    logits = features @ np.linalg.multi_dot([matrix.T for matrix in weights])
    values = np.linalg.svd(logits, compute_uv=False)
    for factor in (*weights, features):
        found = np.linalg.svd(factor, compute_uv=False)
        np.testing.assert_allclose(found**4, values[: found.size], atol=1e-12 * values[0])


def test_collapse_of_one_class_too_many_penalties_is_zero() -> None:
    problem = deep(6, 4, 0.5)
    assert squared_error_value(problem) == 0.5
    construction = deep_neural_collapse(problem)
    assert construction.objective == pytest.approx(0.5, rel=1e-14)
    assert construction.rank == 0
    assert not np.any(construction.parameters.features)


@for_each(
    ("K", "L", "value"),
    [(4, 3, 0.0165952), (6, 2, 0.0295685), (8, 2, 0.0398059), (6, 3, 0.0253313)],
)
def test_pairs_lie_below_collapse_for_cross_entropy(K: int, L: int, value: float) -> None:
    """The values of linear models at penalties of 1e-3, by descent from many starts.

    The claim is by Garrod & Keating.
    """
    problem = deep(K, L, 1e-3, loss=ufm.CrossEntropy(), activation="linear")
    pairs, collapse = constructions_for(problem)
    assert (pairs.name, pairs.rank, collapse.rank) == ("pairs", K // 2, K - 1)
    assert pairs.objective == pytest.approx(value, abs=1e-7)
    assert objective(problem, pairs.parameters) == pytest.approx(pairs.objective, rel=1e-12)
    assert pairs.objective < collapse.objective


def test_the_scale_is_the_best_for_any_class_sizes_and_a_bias() -> None:
    problem = ufm.Problem(
        class_counts=(50, 20, 10, 5, 4, 2),
        feature_dim=9,
        loss=ufm.LabelSmoothing(0.1),
        regularizer=ufm.WeightDecay(weights=1e-3, features=1e-4, bias=1e-2),
        hidden_dims=(8, 7, 6),
        activation="relu",
        use_bias=True,
    )
    for construction in constructions_for(problem):
        parameters = construction.parameters
        assert objective(problem, parameters) == pytest.approx(construction.objective, rel=1e-12)
        for factor in (0.99, 1.01):
            moved = parameters._replace(
                weights=tuple(factor * matrix for matrix in parameters.weights),
                features=factor * parameters.features,
            )
            assert objective(problem, moved) > construction.objective


@for_each(
    ("make", "problem", "message"),
    [
        (deep_neural_collapse, deep(6, 3, width=5), "widths of at least K = 6"),
        (strongly_regular, deep(6, 2), "ReLU between at least 3 layers"),
        (strongly_regular, deep(5, 4), "at least 6 classes"),
        (strongly_regular, deep(6, 4, activation="linear"), "ReLU between"),
        (strongly_regular, deep(6, 4, width=5), "widths of at least 4, the last one 6"),
        (class_pairs, deep(6, 4, loss=ufm.CrossEntropy()), "linear layers"),
        (class_pairs, deep(6, 4, activation="linear"), "is invariant under shifts"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, problem: ufm.Problem, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(problem)


def test_norm_balls_have_no_constructions() -> None:
    problem = ufm.Problem(
        class_counts=(1,) * 6,
        feature_dim=6,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(weights=1.0, features=1.0),
        hidden_dims=(6,),
    )
    assert constructions_for(problem) == ()


def test_graph_size() -> None:
    for r, extra in itertools.product(range(4, 10), (0, 1)):
        assert graph_size(r * (r - 1) // 2 + extra) == r
        assert graph_size(r * (r - 1) // 2 - 1) == r - 1


@pytest.mark.slow
def test_the_solver_finds_the_pairs() -> None:
    solution = ufm.solve(deep(6, 2, 1e-3, loss=ufm.CrossEntropy(), activation="linear"))
    assert solution.objective <= 0.0295685 * (1 + 1e-5)
