r"""Complete collapse with target rows of any kind: from which penalties on only a bias is left.

At logits that are all b, the best alone, the slopes of the loss are the rows of G, (R, K). Zero
weights and features are optimal where

    ||diag(n / sqrt(om)) G||_2 <= N tau,    tau = sqrt(lambda_W lambda_H),

n_r samples of row r and om_r the weight of its feature. Cross-entropy with rows y of mass s has G =
s p^T - Y, p = softmax(b); with a free bias p is the mean target over the mean mass. Binary
cross-entropy has G = 1 p^T - Y, p = sigma(b), with a free bias the mean target.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm._support import array_module
from ufm.problems import BinaryCrossEntropy, CrossEntropy, Loss, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.optimal_factors import float_type
from ufm.theory.symmetric_rows import etf_rows_prediction
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]


class _Constant(NamedTuple):
    """The best constant logits: bias (K,), the mean loss there, and the slopes (R, K)."""

    bias: Float[Array, " K"]
    objective: Float[Array, ""]
    slopes: Float[Array, "R K"]


def _numbers(problem: Problem) -> tuple[Any, Any, Any, Any]:
    """Return the module to compute with, target rows, counts and feature weights."""
    xp = array_module(problem)
    dtype = float_type(xp)
    counts, weights = (xp.asarray(v, dtype) for v in (problem.row_counts, problem.row_weights))
    return xp, problem.target_rows(dtype, xp), counts, weights


def _mean(xp: Any, rows: Any, counts: Any) -> Any:
    return counts @ rows / xp.sum(counts)


def _cross_entropy(problem: Problem) -> _Constant:
    xp, rows, counts, _ = _numbers(problem)
    masses, mean = xp.sum(rows, axis=1), _mean(xp, rows, counts)
    mass = xp.sum(mean)
    if problem.use_bias:
        shares = xp.where(mean > 0, mean / mass, 1)
        logs = xp.log(shares)
    else:
        shares = xp.ones_like(mean) / rows.shape[1]
        logs = xp.log(shares)
    return _Constant(logs - xp.mean(logs), -(mean @ logs), masses[:, None] * shares[None, :] - rows)


def _binary(problem: Problem) -> _Constant:
    xp, rows, counts, _ = _numbers(problem)
    mean = _mean(xp, rows, counts)
    p = xp.where((mean > 0) & (mean < 1), mean, 0.5)
    if not problem.use_bias:
        p = xp.full_like(mean, 0.5)
    on, off = xp.log(p), xp.log1p(-p)
    return _Constant(on - off, -(mean @ on) - (1 - mean) @ off, p[None, :] - rows)


def _ratio(problem: Problem, slopes: Float[Array, "R K"]) -> Float[Array, ""]:
    """Return N tau over the spectral norm of the weighted slopes."""
    xp, _, counts, weights = _numbers(problem)
    weighted = (counts / xp.sqrt(weights))[:, None] * slopes
    smaller = weighted @ weighted.T if slopes.shape[0] < slopes.shape[1] else weighted.T @ weighted
    norm = xp.sqrt(xp.maximum(xp.linalg.eigvalsh(smaller)[-1], 0))
    tau = xp.sqrt(xp.prod(xp.asarray(problem.regularizer.decays(1), smaller.dtype)))
    return xp.sum(counts) * tau / xp.where(norm > 0, norm, 1e-300)


def _conditions(
    kind: type[Loss], constant: Callable[[Problem], _Constant], problem: Problem
) -> tuple[Condition, ...]:
    common = (
        needs.target_rows(problem),
        needs.several_labels(problem),
        *needs.one_layer(problem, kind),
        needs.signed_features(problem),
        needs.no_penalised_bias(problem),
    )
    if any(condition.holds is False for condition in common):
        return common
    xp, rows, counts, _ = _numbers(problem)
    mean = _mean(xp, rows, counts)
    inside = xp.min(mean) > 0
    if kind is BinaryCrossEntropy:
        inside = inside & (xp.max(mean) < 1)
    ratio = _ratio(problem, constant(problem).slopes)
    return (
        *common,
        Condition(
            "a finite best bias",
            inside if problem.use_bias else True,
            f"mean targets from {needs.number(xp.min(mean))} to {needs.number(xp.max(mean))}",
        ),
        Condition(
            "N sqrt(lW lH) >= ||diag(n / sqrt(om)) G||_2, G the slopes at the best bias",
            ratio >= 1,
            f"a ratio of {needs.number(ratio)}",
        ),
    )


def _formula(name: str, constant: Callable[[Problem], _Constant], problem: Problem) -> Prediction:
    """Return zero weights and features, and the bias that is best alone."""
    found = constant(problem)
    zero = 0 * found.objective
    return etf_rows_prediction(
        name,
        problem,
        0 * found.slopes,
        zero,
        found.objective,
        {"collapse_ratio": _ratio(problem, found.slopes)},
        found.bias,
    )


def _examples(loss: Loss) -> tuple[Example, ...]:
    rows = np.array([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]])
    noisy = Targets(rows, (8.0, 4.0, 2.0, 1.0))
    once = Targets(rows, (8.0, 4.0, 2.0, 1.0), np.ones(4))
    tags = Targets.multi_label(4, tag_sets=((0,), (1, 2), (1, 3), (0, 1, 2)), counts=(5, 3, 2, 4))

    def problem(targets: Targets, decay: float, bias: bool) -> Problem:
        regularizer = WeightDecay(2 * decay, decay / 2)
        return Problem(
            targets=targets, feature_dim=4, loss=loss, regularizer=regularizer, use_bias=bias
        )

    return (
        Example("soft rows, free bias, 0.2", problem(noisy, 0.2, True)),
        Example("no bias, 0.4", problem(noisy, 0.4, False)),
        Example("features once, 0.5", problem(once, 0.5, True)),
        Example("tags, 0.4", problem(tags, 0.4, True)),
    )


def _theorem(
    name: str, title: str, kind: type[Loss], constant: Callable[[Problem], _Constant], slopes: str
) -> Theorem:
    return Theorem(
        name=name,
        title=title,
        reference="derived here; for one-hot classes Hong & Ling (JMLR 2024), arXiv:2309.09725",
        statement=(
            "(1/N) sum n_r l(z_r; y_r) + (lW/2)||W||^2 + (lH/2) sum om_r ||h_r||^2, no bias or a "
            "free one: weights and features are zero if and only if N sqrt(lW lH) >= ||diag(n / "
            f"sqrt(om)) G||_2, {slopes}."
        ),
        conditions=functools.partial(_conditions, kind, constant),
        formula=functools.partial(_formula, name, constant),
        make_examples=lambda: _examples(kind()),
        any_targets=True,
    )


THEOREMS = (
    _theorem(
        "cross-entropy-rows-complete-collapse",
        "cross-entropy, targets of any kind: strong penalties leave a bias only",
        CrossEntropy,
        _cross_entropy,
        "G = s p' - Y, s the row sums, p = mean y / mean s with a bias and 1/K without; b = log p",
    ),
    _theorem(
        "binary-cross-entropy-rows-complete-collapse",
        "binary cross-entropy, targets of any kind: strong penalties leave a bias only",
        BinaryCrossEntropy,
        _binary,
        "G = 1 p' - Y, p = mean y with a bias and 1/2 without; b = log(p/(1-p))",
    ),
)
