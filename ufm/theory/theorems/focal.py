r"""The balanced focal loss with one layer: a simplex ETF whose margin solves a scalar problem.

The model and the argument are those of cross_entropy.py, with phi(M) = -(1 - p)^gamma log p and p =
1 / (1 + (K - 1) e^{-M}): the loss of a row falls with the right class's probability, which for a
given mean margin is largest where the wrong logits are equal, so the loss is at least phi of the
mean margin. Nothing in that needs convexity.
"""

import math
from typing import Any

from jaxtyping import Array, Float

from ufm._support import array_module
from ufm.problems import ClassGroups, Focal, Problem
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import letters
from ufm.theory.roots import root
from ufm.theory.theorem import Condition, Example, Prediction, Theorem
from ufm.theory.theorems.cross_entropy import etf_conditions, etf_prediction

__all__ = ["THEOREMS", "focal_margin"]


def _formula(problem: Problem) -> Prediction:
    r"""Return the ETF of the focal loss.

    M is the global minimiser over M >= 0 of phi(M) + (K - 1) mu M, mu = sqrt(n lambda_W lambda_H),
    from `focal_margin`. The constant `slope_at_zero` is -phi'(0) / (K - 1), the mu from which on M
    = 0 is a local minimum; M may be positive beyond it.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    mu = numbers.decay * xp.sqrt(numbers.mean_count)
    gamma = xp.asarray(problem.loss.gamma, mu.dtype)  # type: ignore[attr-defined]
    margin = focal_margin(mu, gamma, K)
    start = math.log(K - 1) + 0 * mu
    return etf_prediction(
        "focal-etf",
        problem,
        numbers,
        margin,
        _loss(start - margin, gamma),
        {"mu": mu, "slope_at_zero": xp.exp(_log_slope(start, gamma)) / (K - 1)},
    )


def focal_margin(
    mu: Float[Array, ""], gamma: Float[Array, ""], num_classes: int
) -> Float[Array, ""]:
    r"""Return the M >= 0 at which phi(M) + mu (K - 1) M is globally least.

    phi(M) is the focal loss at margin M. With a = log(K - 1) - M, the loss is
    phi = sigmoid(a)^gamma softplus(a), and its slope

        -phi'(M) = r(a) = sigmoid(a)^gamma [ sigmoid(a) + gamma sigmoid(-a) softplus(a) ]

    first rises and then falls in a (it only rises for gamma = 0). The one local minimum with M > 0
    is therefore the smaller root of r(a) = (K - 1) mu. log r lies below its asymptote
    (gamma + 1) a + log(gamma + 1), so the smaller root lies between that of the asymptote and the
    peak of r. Where -phi'(0) < (K - 1) mu, M = 0 is a local minimum too, and the values decide.
    """
    xp, K = array_module((mu, gamma)), num_classes
    start = math.log(K - 1) + 0 * mu
    log_target = xp.log((K - 1) * mu)
    below = xp.minimum((log_target - xp.log1p(gamma)) / (gamma + 1), start)
    peak = root(_log_slope_derivative, below, start, gamma)
    # Without a peak in between, r rises all the way.
    peak = xp.where(_log_slope_derivative(start, gamma) >= 0, start, peak)
    place = root(_log_excess, below, peak, (gamma, log_target))
    margin = xp.maximum(start - xp.where(_log_slope(peak, gamma) < log_target, start, place), 0)
    cost = _loss(start - margin, gamma) + mu * (K - 1) * margin
    descends = _log_slope(start, gamma) > log_target
    return xp.where(descends | (cost < _loss(start, gamma)), margin, 0)


def _log_excess(a: Array, parameters: tuple[Array, Array]) -> Array:
    gamma, log_target = parameters
    return _log_slope(a, gamma) - log_target


def _log_sigmoid(a: Array) -> Array:
    return -array_module(a).logaddexp(0 * a, -a)


def _softplus(a: Array) -> Array:
    return array_module(a).logaddexp(0 * a, a)


def _ratio(a: Array) -> Array:
    """Return sigmoid(-a) softplus(a) / sigmoid(a), which tends to 1 as a goes to minus infinity."""
    return _softplus(a) * array_module(a).exp(-a)


def _loss(a: Array, gamma: Array) -> Array:
    return array_module(a).exp(gamma * _log_sigmoid(a)) * _softplus(a)


def _log_slope(a: Array, gamma: Array) -> Array:
    """Return log r(a)."""
    return (gamma + 1) * _log_sigmoid(a) + array_module(a).log1p(gamma * _ratio(a))


def _log_slope_derivative(a: Array, gamma: Array) -> Array:
    sigmoid_of_minus = array_module(a).exp(_log_sigmoid(-a))
    ratio = _ratio(a)
    return (gamma + 1) * sigmoid_of_minus + gamma * (sigmoid_of_minus - ratio) / (1 + gamma * ratio)


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    return (*etf_conditions(Focal, problem), _no_escape_by_bias(problem))


def _no_escape_by_bias(problem: Problem) -> Condition:
    r"""The bound that proves the ETF optimal holds with a bias too.

    The loss is not convex, so averaging over permutations proves nothing. With a bias the mean
    margins of the classes have signs, and the argument needs a penalty of slope at most one and at
    most -phi' all over M <= 0, where -phi' >= min(1, -phi'(0)): so -phi'(0) <= 1 or (K - 1) mu <=
    1. Beyond that nothing lower is known, and nothing is claimed.
    """
    statement = "no bias, or -phi'(0) <= 1 or (K-1) sqrt(n lW lH) <= 1"
    if not problem.use_bias:
        return Condition(statement, True, "no bias")
    loss = problem.loss
    if not (type(loss) is Focal and needs.weight_decay(problem).holds):
        return Condition(statement, False, "another model")
    K = problem.num_classes
    gamma: Any = loss.gamma
    slope = (1 - 1 / K) ** gamma * (1 - 1 / K + gamma * math.log(K) / K)
    decay = problem.regularizer.decays(problem.num_layers)[-2:].prod()
    scaled = (K - 1) * (problem.num_samples / K * decay) ** 0.5
    found = f"-phi'(0) = {needs.number(slope)}, (K-1) sqrt(n lW lH) = {needs.number(scaled)}"
    return Condition(statement, (slope <= 1) | (scaled <= 1), found)


def _examples() -> tuple[Example, ...]:
    def problem(gamma: Any, decay: Any, bias: Any = None) -> Problem:
        return example_problem(Focal(gamma), ClassGroups.balanced(10, 500), decay, decay, 64, bias)

    return (
        Example("gamma=1, K=10, n=500, d=64, 5e-4", problem(1.0, 5e-4)),
        Example("gamma=2, K=10, n=500, d=64, 5e-4", problem(2.0, 5e-4)),
        Example("gamma=3, K=10, n=500, d=64, 5e-4", problem(3.0, 5e-4)),
        Example("gamma=2, free bias", problem(2.0, 5e-4, bias=0.0)),
        Example("collapsed: gamma=2, 6e-3", problem(2.0, 6e-3)),
    )


balanced_focal = Theorem(
    name="focal-etf",
    title="balanced focal loss: a simplex ETF",
    reference=(
        "Zhou et al. (NeurIPS 2022), arXiv:2210.02192; margin and condition on a bias are derived "
        "here"
    ),
    statement=(
        "-(1/N) sum (1-p_y)^gamma log p_y + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], K "
        "classes of n samples, d >= K - 1: class logits M (I - J/K), M >= 0 the global minimiser "
        "of phi(M) + (K-1) sqrt(n lW lH) M, phi the loss at margin M; b = 0. phi is not convex: "
        "for large K, M jumps to zero."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
)

THEOREMS = (balanced_focal,)
