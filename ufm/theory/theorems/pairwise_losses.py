r"""Balanced losses of pairs of logits with one layer: a simplex ETF with an explicit margin.

    (1/N) sum_i sum_{c != y} phi(z_c - z_y) + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 (+
    (lambda_b/2) ||b||^2),

K classes of n samples, phi convex and increasing, t = sqrt(lambda_W lambda_H) sqrt(n), d >= K - 1.
By Jensen's inequality a row costs at least K - 1 times phi at minus its mean margin. So, as for
cross-entropy (`ufm.theory.theorems.cross_entropy`), the class logits are M P with the M >= 0 that
minimises

    (K - 1) (phi(-M) + t M),    phi'(-M) = t.

All is zero from t = phi'(0) on. The losses do not see a common shift, and a bias is zero. For the
hinge, whose bias is free where all is zero, see `ufm.theory.theorems.hinge`.
"""

import functools
from collections.abc import Callable
from typing import Any

from ufm.problems import (
    ClassGroups,
    Exponential,
    Loss,
    PairwiseLogistic,
    Problem,
    SquaredHinge,
)
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import letters
from ufm.theory.theorem import Example, Prediction, Theorem
from ufm.theory.theorems.cross_entropy import etf_conditions, etf_prediction

__all__ = ["THEOREMS"]


def _logistic(xp: Any, t: Any, K: int) -> tuple[Any, Any]:
    margin = xp.log1p(xp.maximum(1 / t - 2, 0))
    return margin, (K - 1) * xp.log1p(xp.exp(-margin))


def _exponential(xp: Any, t: Any, K: int) -> tuple[Any, Any]:
    margin = xp.log1p(xp.maximum(1 / t - 1, 0))
    return margin, (K - 1) * xp.exp(-margin)


def _squared_hinge(xp: Any, t: Any, K: int) -> tuple[Any, Any]:
    margin = xp.maximum(1 - t, 0)
    return margin, (K - 1) * 0.5 * (1 - margin) ** 2


# From t and K to the margin M and the loss of a row.
Closed = Callable[[Any, Any, int], tuple[Any, Any]]


def _formula(name: str, closed: Closed, slope: float, problem: Problem) -> Prediction:
    """Return the ETF; `slope` is phi'(0)."""
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    t = numbers.decay * xp.sqrt(numbers.mean_count)
    margin, loss = closed(xp, t, K)
    constants = {"c": t, "threshold": slope * xp.ones_like(t)}
    return etf_prediction(name, problem, numbers, margin, loss, constants)


def _examples(loss: Loss) -> tuple[Example, ...]:
    four, ten = ClassGroups.balanced(4, 50), ClassGroups.balanced(10, 100)
    return (
        Example("K=4, n=50, d=6, 5e-3, 1e-3", example_problem(loss, four, 5e-3, 1e-3, 6)),
        Example("K=10, n=100, free bias, d=9", example_problem(loss, ten, 5e-3, 5e-3, 9, bias=0.0)),
        Example("penalised bias 1e-2, d=9", example_problem(loss, ten, 5e-3, 5e-3, 9, bias=1e-2)),
        Example("collapsed: 0.2", example_problem(loss, four, 0.2, 0.2, 6)),
    )


def _theorem(
    loss: Loss, words: str, of_row: str, margin: str, slope: float, closed: Closed
) -> Theorem:
    name = f"{loss.name}-etf"
    return Theorem(
        name=name,
        title=f"balanced {words}: a simplex ETF",
        reference="derived here; the argument is that of arXiv:2105.02375 for cross-entropy",
        statement=(
            f"(1/N) sum_i {of_row} + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], K classes of "
            "n samples, d >= K - 1, t = sqrt(n lW lH): class logits M (I - J/K) with M = "
            f"{margin}, W and the class means simplex ETFs, b = 0; everything is zero from t = "
            f"{slope:g} on."
        ),
        conditions=functools.partial(etf_conditions, type(loss)),
        formula=functools.partial(_formula, name, closed, slope),
        make_examples=functools.partial(_examples, loss),
        by_groups=True,
    )


THEOREMS = (
    _theorem(
        PairwiseLogistic(),
        "pairwise logistic loss",
        "sum_(c != y) log(1 + exp(z_c - z_y))",
        "log(1/t - 1)_+",
        0.5,
        _logistic,
    ),
    _theorem(
        Exponential(),
        "exponential loss",
        "sum_(c != y) exp(z_c - z_y)",
        "log(1/t)_+",
        1.0,
        _exponential,
    ),
    _theorem(
        SquaredHinge(),
        "squared hinge loss",
        "sum_(c != y) (1/2)(1 + z_c - z_y)_+^2",
        "(1 - t)_+",
        1.0,
        _squared_hinge,
    ),
)
