r"""Deep models whose minimum lies below deep neural collapse: upper bounds with witnesses.

Deep neural collapse is a point of every wide enough deep model: with the best common scale its
value is one scalar problem. Where another explicit point of the same model lies below, no deep
neural collapse is a global minimiser, at any scale; what the minimum is remains open. In the
logits' scale x, with q = L + 1 factors, Lambda the geometric mean of the penalties and n samples in
every class,

    min_x  loss(x) + (q/2) Lambda n^{1/q} G x^{2/q}.

Squared error, ReLU: loss (1/2) (1 - x)^2; see `ufm.constructions` for the G of the graph.
Cross-entropy, linear layers, singular values of the logits x s_i, G = sum_i s_i^{2/q}
(`ufm.theory.optimal_factors`):

    collapse    loss = log(1 + (K-1) e^{-x}),                G = K - 1,
    pairs       loss = log(1 + e^{-2x} + (K-2) e^{-x}),      G = (K/2) 2^{2/q},

for even K. An odd class has a direction of its own, the loss of collapse, and adds 1 to G of
(K-1)/2 pairs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ufm._support import is_concrete
from ufm.problems import (
    ClassGroups,
    Construction,
    CrossEntropy,
    Loss,
    Problem,
    SquaredError,
    class_pairs,
    deep_neural_collapse,
    graph_size,
    squared_error_value,
    strongly_regular,
    zoomed,
)
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import Letters, centred_frame, letters, predicted
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]

GRID, ROUNDS = 400, 7
SHALLOWEST, LARGEST = 1e-6, 1e4  # scales of the logits among which the best is sought


def _relu_low_rank_conditions(problem: Problem) -> tuple[Condition, ...]:
    K, L = problem.num_classes, problem.num_layers
    return (
        needs.loss_is(problem, SquaredError),
        needs.weight_decay(problem),
        needs.relu(problem),
        needs.no_bias(problem),
        needs.signed_features(problem),
        needs.wide(problem),
        needs.balanced(problem),
        _sizes(
            "(L = 3, K >= 10) or (L >= 4, K >= 6)",
            (L == 3 and K >= 10) or (L >= 4 and K >= 6),
            problem,
        ),
        _collapse_beats_zero(problem, squared_error_value, 0.5),
    )


def _cross_entropy_low_rank_conditions(problem: Problem) -> tuple[Condition, ...]:
    K, L = problem.num_classes, problem.num_layers
    return (
        *_cross_entropy(problem),
        needs.linear(problem),
        needs.wide(problem),
        _sizes(
            "(K >= 4, L >= 3) or (K >= 6, L = 2)",
            (K >= 4 and L >= 3) or (K >= 6 and L == 2),
            problem,
        ),
        _collapse_beats_zero(problem, _linear_collapse, np.log(K)),
    )


def _relu_cross_entropy_low_rank_conditions(problem: Problem) -> tuple[Condition, ...]:
    K, L = problem.num_classes, problem.num_layers
    return (
        *_cross_entropy(problem),
        needs.relu(problem),
        needs.wide(problem),
        _sizes(
            "(K >= 10, L >= 5) or (K >= 16, L = 4)",
            (K >= 10 and L >= 5) or (K >= 16 and L == 4),
            problem,
        ),
        _collapse_beats_zero(problem, _of(deep_neural_collapse), np.log(K)),
    )


def _etf_conditions(problem: Problem) -> tuple[Condition, ...]:
    found = "a bias" if problem.use_bias else "no bias"
    return (
        *_cross_entropy(problem),
        needs.linear(problem),
        Condition("a bias", problem.use_bias, found),
        needs.num_layers(problem, at_least=2),
        needs.wide(problem),
    )


def _cross_entropy(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.loss_is(problem, CrossEntropy),
        needs.weight_decay(problem),
        needs.signed_features(problem),
        needs.balanced(problem),
    )


def _sizes(statement: str, holds: bool, problem: Problem) -> Condition:
    return Condition(statement, holds, f"K = {problem.num_classes}, L = {problem.num_layers}")


def _collapse_beats_zero(
    problem: Problem, value: Callable[[Problem], float], at_zero: float
) -> Condition:
    """The penalties leave something of deep neural collapse.

    Otherwise it is zero, and zero may be the minimum.
    """
    statement = "penalties at which deep neural collapse beats zero"
    if not (needs.weight_decay(problem).holds and is_concrete(problem)):
        return Condition(statement, False, "another model")
    if problem.num_layers < 2 or min(problem.layer_dims) < problem.num_classes:
        return Condition(statement, False, "a model without it")
    found = value(problem)
    return Condition(
        statement, found < at_zero * (1 - 1e-9), f"value {found:.6g}, at zero {at_zero:.6g}"
    )


def _of(make: Callable[[Problem], Construction]) -> Callable[[Problem], float]:
    return lambda problem: make(problem).objective


def _squared_error_graph(problem: Problem) -> float:
    return squared_error_value(problem, graph_size(problem.num_classes))


def _linear_collapse(problem: Problem) -> float:
    K = problem.num_classes
    return _least(problem, lambda x: np.log1p((K - 1) * np.exp(-x)), K - 1)[0]


def _linear_pairs(problem: Problem) -> float:
    K, q = problem.num_classes, problem.num_layers + 1
    pairs, odd = K // 2, K % 2

    def loss(x: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        paired = np.log1p(np.exp(-2 * x) + (K - 2) * np.exp(-x))
        return (2 * pairs * paired + odd * np.log1p((K - 1) * np.exp(-x))) / K

    return _least(problem, loss, pairs * 2 ** (2 / q) + odd)[0]


def _least(problem: Problem, loss: Callable[[Any], Any], gauge: float) -> tuple[Any, Any]:
    """Return the least of loss(x) + (q/2) Lambda n^{1/q} G x^{2/q} over x >= 0, and the x."""
    numbers = _letters(problem)
    q = numbers.num_factors
    price = 0.5 * q * float(numbers.decay) * float(numbers.mean_count) ** (1 / q) * gauge
    place, least = zoomed(
        lambda grid: loss(np.exp(grid)) + price * np.exp(2 * grid / q),
        np.log(SHALLOWEST),
        np.log(LARGEST),
        GRID,
        ROUNDS,
    )
    zero = loss(np.zeros(1))[0]
    return (np.float64(least), np.exp(place)) if least < zero else (zero, np.zeros(())[()])


def _letters(problem: Problem) -> Letters:
    return letters(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), problem))


def _at_most(
    name: str,
    value: Callable[[Problem], float],
    collapse: Callable[[Problem], float],
    problem: Problem,
) -> Prediction:
    bound: Any = np.asarray(value(problem))
    constants: Any = {"collapse": np.asarray(collapse(problem))}
    return Prediction(
        theorem=name,
        objective=bound,
        logits=None,
        weight_gram=None,
        feature_gram=None,
        bias=None,
        layer_norms=None,
        singular_values=None,
        rank=None,
        collapsed=None,
        constants=constants,
        bound="upper",
    )


def _etf_formula(problem: Problem) -> Prediction:
    numbers = _letters(problem)
    K = numbers.num_classes
    objective, margin = _least(problem, lambda x: np.log1p((K - 1) * np.exp(-x)), K - 1)
    value: Any = np.sqrt(numbers.mean_count) * margin
    values: Any = np.append(np.full(K - 1, value), 0.0)
    bias: Any = np.zeros(K) if problem.use_bias else None
    return predicted(
        "deep-cross-entropy-etf",
        numbers,
        objective=objective,
        values=values,
        frame=centred_frame(numbers, value),
        bias=bias,
        constants={"margin": margin},
    )


def _square(
    num_classes: int, depth: int, decay: float, *, loss: Loss, samples: float = 1.0, **options: Any
) -> Problem:
    """Return a problem with as many dimensions in every layer as classes."""
    classes, dims = ClassGroups.balanced(num_classes, samples), (num_classes,) * depth
    return example_problem(loss, classes, decay, decay, dims, **options)


def _relu_low_rank_examples() -> tuple[Example, ...]:
    relu = functools.partial(_square, loss=SquaredError(), activation="relu")
    return (
        Example("K=10, L=3, 4e-3", relu(10, 3, 4e-3)),
        Example("K=10, L=4, 4e-3", relu(10, 4, 4e-3)),
        Example("K=6, L=4, 4e-3", relu(6, 4, 4e-3)),
        Example("K=10, L=5, n=50, 5e-4", relu(10, 5, 5e-4, samples=50.0)),
    )


def _cross_entropy_low_rank_examples() -> tuple[Example, ...]:
    linear = functools.partial(_square, loss=CrossEntropy())
    return (
        Example("K=6, L=2, 1e-3", linear(6, 2, 1e-3)),
        Example("K=6, L=3, 1e-3", linear(6, 3, 1e-3)),
        Example("K=7, L=2, 1e-3", linear(7, 2, 1e-3)),
        Example("K=10, L=3, n=50, 1e-4", linear(10, 3, 1e-4, samples=50.0)),
    )


def _relu_cross_entropy_low_rank_examples() -> tuple[Example, ...]:
    relu = functools.partial(_square, loss=CrossEntropy(), activation="relu")
    return (
        Example("K=10, L=5, 1e-3", relu(10, 5, 1e-3)),
        Example("K=16, L=4, 1e-3", relu(16, 4, 1e-3)),
        Example("K=10, L=5, n=50, 1e-4", relu(10, 5, 1e-4, samples=50.0)),
    )


def _etf_examples() -> tuple[Example, ...]:
    biased = functools.partial(_square, loss=CrossEntropy(), bias=0.0)
    return (
        Example("K=6, L=2, 1e-3", biased(6, 2, 1e-3)),
        Example("K=6, L=3, 1e-3", biased(6, 3, 1e-3)),
        Example("K=10, L=3, n=50, 1e-4", biased(10, 3, 1e-4, samples=50.0)),
    )


deep_relu_low_rank = Theorem(
    name="deep-relu-low-rank",
    title=(
        "balanced squared error, ReLU between many layers: a point of low rank lies below deep "
        "neural collapse"
    ),
    reference=(
        "Sukenik, Mondelli & Lampert (NeurIPS 2024), arXiv:2405.14468; the witness is reconstructed"
    ),
    statement=(
        "(1/2N)||relu(...relu(H W1')...) WL' - Y||^2 + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2, "
        "widths >= K, (L = 3, K >= 10) or (L >= 4, K >= 6): no deep neural collapse, orthogonal "
        "class means after every ReLU, is a global minimiser. The minimum is at most the value of "
        "the graph on r vertices, r (r - 1) / 2 <= K, whose first layers have rank r less than K."
    ),
    conditions=_relu_low_rank_conditions,
    formula=functools.partial(
        _at_most, "deep-relu-low-rank", _squared_error_graph, squared_error_value
    ),
    make_examples=_relu_low_rank_examples,
    bound="upper",
    witness=strongly_regular,
)

deep_cross_entropy_low_rank = Theorem(
    name="deep-cross-entropy-low-rank",
    title=(
        "balanced cross-entropy, several linear layers: pairs of classes lie below deep neural "
        "collapse"
    ),
    reference="Garrod & Keating (NeurIPS 2025), arXiv:2410.23169",
    statement=(
        "(1/N) sum CE(H W1'...WL') + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2, widths >= K, (K >= 4, "
        "L >= 3) or (K >= 6, L = 2): no deep neural collapse, logits alpha (I - J/K), is a global "
        "minimiser. The minimum is at most the value of logits x diag([[1,-1],[-1,1]], ...), of "
        "rank about K/2."
    ),
    conditions=_cross_entropy_low_rank_conditions,
    formula=functools.partial(
        _at_most, "deep-cross-entropy-low-rank", _linear_pairs, _linear_collapse
    ),
    make_examples=_cross_entropy_low_rank_examples,
    bound="upper",
    witness=class_pairs,
)

deep_relu_cross_entropy_low_rank = Theorem(
    name="deep-relu-cross-entropy-low-rank",
    title=(
        "balanced cross-entropy, ReLU between many layers: a point of low rank lies below deep "
        "neural collapse"
    ),
    reference=(
        "Garrod & Keating (NeurIPS 2025), arXiv:2410.23169; the witness here is the graph of "
        "arXiv:2405.14468"
    ),
    statement=(
        "(1/N) sum CE(relu(...relu(H W1')...) WL') + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2, widths "
        ">= K, (K >= 10, L >= 5) or (K >= 16, L = 4), and an assumption of the paper on what deep "
        "neural collapse is: it is not a global minimiser. Here it has orthogonal class means "
        "after every ReLU and centred last weights, and the graph on r vertices lies below it."
    ),
    conditions=_relu_cross_entropy_low_rank_conditions,
    formula=functools.partial(
        _at_most,
        "deep-relu-cross-entropy-low-rank",
        _of(strongly_regular),
        _of(deep_neural_collapse),
    ),
    make_examples=_relu_cross_entropy_low_rank_examples,
    bound="upper",
    witness=strongly_regular,
)

deep_cross_entropy_etf = Theorem(
    name="deep-cross-entropy-etf",
    title="balanced cross-entropy, several linear layers, a bias: a simplex ETF at every layer",
    reference="Dang et al. (ICML 2023), arXiv:2301.00437, Theorem A.1",
    statement=(
        "(1/N) sum CE(H W1'...WL' + 1b') + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2 (+ "
        "(lb/2)||b||^2): claimed is that logits alpha (I - J/K) are the global minimiser at every "
        "depth."
    ),
    conditions=_etf_conditions,
    formula=_etf_formula,
    make_examples=_etf_examples,
    witness=class_pairs,
    dispute=(
        "contradicted by Garrod & Keating (NeurIPS 2025), arXiv:2410.23169, App. B.3, for (K >= "
        "4, L >= 3) and (K >= 6, L = 2), and by the explicit points found here, pairs of classes, "
        "whose value lies below the one claimed. For K <= 3, and K = 4 at L = 2, nothing lower is "
        "known."
    ),
)

THEOREMS = (
    deep_relu_low_rank,
    deep_cross_entropy_low_rank,
    deep_relu_cross_entropy_low_rank,
    deep_cross_entropy_etf,
)
