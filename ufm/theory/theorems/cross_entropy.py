r"""Balanced cross-entropy and its relatives with one layer: a simplex ETF with an explicit margin.

    (1/N) sum_i loss(z_i, y_i) + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 (+ (lambda_b/2)
    ||b||^2), Z = H W^T + 1 b^T.

K classes of n samples each, tau = sqrt(lambda_W lambda_H), P = I - J/K, d >= K - 1. In all of them
the class logits are M P, for a margin M = z_y - z_c >= 0 that minimises a scalar function

    psi(M) = phi(M) + mu (K - 1) M,    mu = tau sqrt(n),

where phi(M) is the loss of a row whose wrong logits all lie M below the right one. That is

because the loss is at least phi of the mean margin of its row, and tau ||D^{1/2} Z||_* is at least
mu (K - 1) times the mean over classes of the absolute mean margin. At M > 0 weights and class means
are simplex ETFs with the singular value sqrt(n) M; at M = 0 all is zero. A bias is zero: with
penalty because it costs, without because the loss does not see a common shift, which is fixed by
mean(b) = 0.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from ufm.problems import ClassGroups, CrossEntropy, LabelSmoothing, Loss, Problem
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import Letters, centred_frame, letters, predicted
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS", "etf_conditions", "etf_prediction"]


def etf_conditions(kind: type[Loss], problem: Problem) -> tuple[Condition, ...]:
    """Return the conditions of a balanced ETF theorem for a loss of the given kind."""
    return (
        *needs.one_layer(problem, kind),
        needs.signed_features(problem),
        needs.balanced(problem),
        needs.centred_dims(problem),
    )


def etf_prediction(
    name: str,
    problem: Problem,
    numbers: Letters,
    margin: Float[Array, ""],
    data_term: Float[Array, ""],
    constants: dict[str, Array],
) -> Prediction:
    """Return the simplex ETF with class logits M P, M = `margin`.

    It has K - 1 singular values sqrt(n) M.
    """
    xp, K = numbers.xp, numbers.num_classes
    value = xp.sqrt(numbers.mean_count) * margin
    nonzero = (xp.arange(K) < K - 1).astype(value.dtype)
    return predicted(
        name,
        numbers,
        objective=data_term + numbers.decay * (K - 1) * value,
        values=value * nonzero,
        frame=centred_frame(numbers, value),
        bias=xp.zeros((K,), value.dtype) if problem.use_bias else None,
        constants={"margin": margin, **constants},
    )


def _smoothed_formula(
    name: str, smoothing: Callable[[Problem], Any], problem: Problem
) -> Prediction:
    r"""Return the ETF of the cross-entropy against (1 - alpha) y + alpha / K.

    phi(M) = log(1 + (K - 1) e^{-M}) + alpha (K - 1) M / K, so smoothing acts as an addition to mu,
    and

        M = log(1 / (mu + alpha / K) - (K - 1))_+,    objective = phi(M) + mu (K - 1) M,

    which is zero from c = K mu + alpha = 1 on.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    mu = numbers.decay * xp.sqrt(numbers.mean_count)
    alpha = xp.asarray(smoothing(problem), mu.dtype)
    slope = mu + alpha / K
    margin = xp.log1p(xp.maximum(1 / slope - K, 0))
    c = K * slope
    data_term = xp.log1p((K - 1) * xp.exp(-margin)) + alpha * (K - 1) / K * margin
    return etf_prediction(
        name, problem, numbers, margin, data_term, {"c": c, "threshold": xp.ones_like(c)}
    )


def _cross_entropy_examples() -> tuple[Example, ...]:
    loss, four, ten = CrossEntropy(), ClassGroups.balanced(4, 50), ClassGroups.balanced(10, 500)
    return (
        Example("K=4, n=50, d=20, 5e-3, 1e-5", example_problem(loss, four, 5e-3, 1e-5, 20)),
        Example("K=10, n=500, d=64, 5e-4", example_problem(loss, ten, 5e-4, 5e-4, 64)),
        Example("free bias, d=9", example_problem(loss, ten, 5e-4, 5e-4, 9, bias=0.0)),
        Example("penalised bias 1e-2, d=9", example_problem(loss, ten, 5e-4, 5e-4, 9, bias=1e-2)),
        Example("collapsed: 5e-3", example_problem(loss, ten, 5e-3, 5e-3, 64)),
    )


def _label_smoothing_examples() -> tuple[Example, ...]:
    def problem(alpha: Any, decay: Any, bias: Any = None) -> Problem:
        return example_problem(
            LabelSmoothing(alpha), ClassGroups.balanced(10, 500), decay, decay, 64, bias
        )

    return (
        Example("alpha=0.1, K=10, n=500, d=64, 5e-4", problem(0.1, 5e-4)),
        Example("alpha=0.1, free bias", problem(0.1, 5e-4, bias=0.0)),
        Example("collapsed: alpha=0.9, 1e-3", problem(0.9, 1e-3)),
    )


balanced_cross_entropy = Theorem(
    name="cross-entropy-etf",
    title="balanced cross-entropy, with or without a bias: a simplex ETF",
    reference=(
        "Zhu et al. (NeurIPS 2021), arXiv:2105.02375; the closed form of the margin is derived here"
    ),
    statement=(
        "(1/N) sum CE + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], K classes of n samples, "
        "d >= K - 1: class logits M (I - J/K) with M = log(1/sqrt(n lW lH) - (K-1))_+, W and the "
        "class means simplex ETFs, b = 0; everything is zero from c = K sqrt(n lW lH) = 1 on."
    ),
    conditions=functools.partial(etf_conditions, CrossEntropy),
    formula=functools.partial(_smoothed_formula, "cross-entropy-etf", lambda problem: 0.0),
    make_examples=_cross_entropy_examples,
    by_groups=True,
)

balanced_label_smoothing = Theorem(
    name="label-smoothing-etf",
    title="balanced label smoothing: a simplex ETF",
    reference=(
        "Zhou et al. (NeurIPS 2022), arXiv:2210.02192; the closed form of the margin is derived "
        "here"
    ),
    statement=(
        "(1/N) sum CE against (1-alpha) y + alpha/K, + (lW/2)||W||^2 + (lH/2)||H||^2 [+ "
        "(lb/2)||b||^2], K classes of n samples, d >= K - 1: class logits M (I - J/K) with M = "
        "log(1/(sqrt(n lW lH) + alpha/K) - (K-1))_+, b = 0; everything is zero from c = K sqrt(n "
        "lW lH) + alpha = 1 on."
    ),
    conditions=functools.partial(etf_conditions, LabelSmoothing),
    formula=functools.partial(
        _smoothed_formula,
        "label-smoothing-etf",
        lambda problem: problem.loss.alpha,  # type: ignore[attr-defined]
    ),
    make_examples=_label_smoothing_examples,
    by_groups=True,
)

THEOREMS = (
    balanced_cross_entropy,
    balanced_label_smoothing,
)
