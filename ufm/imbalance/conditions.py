r"""Conditions for groups of classes to collapse, in closed form if known.

Let r_g = sqrt(n_g) and nu = N tau under weight decay, tau = sqrt(lambda_W lambda_H). Inside norm
balls let r_g = n_g / N and nu the multiplier of ||Z||_* <= T = K sqrt(E_W E_H). With
s_g = w_g t_g delta_g (1 - alpha), the loss's class weight, temperatures and smoothing,
the gradient at coinciding classes of a group is -s_g on the difference of two of them, for any
other logits. Hence, for signed features,

    the classifiers (and class means) of group g coincide    <=>    s_g r_g <= nu,

and its class means vanish if the modes between groups vanish as well, whose dual norm is then at
most nu. For squared error without a bias the problem separates into one per class, and both happen
together. With h >= 0 and cross-entropy without a bias and with one temperature for all columns, the
problem separates, too (Dang et al., ICML 2024), and the class means vanish where

    s_g r_g sqrt((K - 1) / K) <= nu.

All functions take batches of problems, axes last, and return numbers (B,) that are non-negative
exactly where the classes collapse.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm._support import compiled, in_double_precision, on_host
from ufm.certificates import dual_blocks
from ufm.problems import Blocks, GroupProblem

__all__ = ["Explicit", "coincide", "level", "strengths", "vanish", "vanish_all"]

CROSS_ENTROPY = "Hong & Ling (JMLR 2024), arXiv:2309.09725"
LAYER_PEELED = "Fang, He, Long & Su (PNAS 2021), arXiv:2101.12699"
NONNEGATIVE = "Dang et al. (ICML 2024), arXiv:2401.02058"
SQUARED_ERROR = "Dang et al. (ICML 2023), arXiv:2301.00437"


_dual_blocks = compiled(dual_blocks, once=True)


class Explicit(NamedTuple):
    """A condition in closed form.

    Attributes:
        function: Returns numbers, (B,), of a batch of problems; non-negative where it holds.
        text: The condition.
        reference: Who found it.
    """

    function: Callable[[GroupProblem], np.ndarray]
    text: str
    reference: str


def strengths(problem: GroupProblem) -> np.ndarray:
    """Return s_g, (G, ...)."""
    loss = problem.loss
    if loss.kind == "squared-error":
        return np.asarray(loss.weights)
    return np.asarray(loss.weights * loss.temperatures * loss.scales * (1 - loss.smoothing))


@on_host
def level(problem: GroupProblem, price: Any) -> np.ndarray:
    """Return the log of the price of the gauge over the price at which classifiers coincide.

    Args:
        problem: A problem over groups, signed features.
        price: () tau, or the multiplier of the norm ball.

    Returns:
        One number for each group, (G, ...).
    """
    samples = np.sum(problem.counts * problem.sizes, axis=0)
    reach = strengths(problem) * problem.counts / problem.gauge.rows
    return np.log(price * samples / reach)


def coincide(problem: GroupProblem, group: int) -> Explicit | None:
    """Return the condition for the classifiers of a group to coincide with signed features.

    Args:
        problem: One of the family, for its kind.
        group: The group.

    Returns:
        The condition; None if it has no closed form.
    """
    if not problem.gauge.bounded:
        s = _symbol(problem)
        reference = SQUARED_ERROR if problem.loss.kind == "squared-error" else CROSS_ENTROPY

        def function(batch: GroupProblem) -> np.ndarray:
            return level(batch, batch.gauge.price)[group]

        text = f"{s}sqrt(n_g) <= N sqrt(lW lH)"
        return Explicit(function, text, f"{reference}; the exact threshold is derived here")
    return (
        vanish(problem, group)
        if _separate(problem) and problem.loss.kind == "squared-error"
        else None
    )


def vanish(problem: GroupProblem, group: int) -> Explicit | None:
    """Return the condition for the class means of a group to vanish; None without closed form."""
    if not _separate(problem):
        return None
    s, squared = _symbol(problem), problem.loss.kind == "squared-error"
    root = "" if squared else " sqrt((K-1)/K)"
    reference = SQUARED_ERROR if squared else NONNEGATIVE

    def limit(batch: GroupProblem) -> np.ndarray:
        return strengths(batch) * _shrink(batch)

    if not problem.gauge.bounded:

        def function(batch: GroupProblem) -> np.ndarray:
            return level(batch, batch.gauge.price)[group] - np.log(_shrink(batch))

        return Explicit(function, f"{s}sqrt(n_g){root} <= N sqrt(lW lH)", reference)

    def gauge_there(batch: GroupProblem) -> np.ndarray:
        """Return the nuclear norm at the multiplier at which the group vanishes, over its bound."""
        shares = np.asarray(batch.shares)
        ratios = limit(batch)[group] * shares[group] / (limit(batch) * shares)
        alive = ratios < 1
        if squared:
            margins = 1 - ratios
        else:
            K, alpha = np.asarray(batch.num_classes), batch.loss.smoothing
            # The probability of each other class.
            share = np.where(alive, ratios, 1) * (1 - alpha) / K + alpha / K
            margins = np.log1p(1 / share - K) / (batch.loss.temperatures * batch.loss.scales)
        total = np.sum(np.where(alive, batch.sizes * margins, 0), axis=0) * _shrink(batch)
        return total / np.asarray(batch.gauge.price) - 1

    gauge = "sum_k (1 - (w n)_g / (w n)_k)_+" if squared else "sqrt((K-1)/K) sum_k M_k"
    return Explicit(
        gauge_there,
        f"{s}n_g / N{root} <= nu, the multiplier of the norm ball; it is so where {gauge} at "
        "equality >= K sqrt(E_W E_H)",
        f"{reference}; in the norm balls of {LAYER_PEELED} derived here",
    )


def vanish_all(problem: GroupProblem) -> Explicit | None:
    """Return the condition for all weights and features to vanish; None without closed form."""
    if problem.gauge.bounded:
        return None
    squared, reference = problem.loss.kind == "squared-error", CROSS_ENTROPY
    if problem.nonnegative_features:
        if not _separate(problem):
            return None
        reference = SQUARED_ERROR if squared else NONNEGATIVE

        def each(batch: GroupProblem) -> np.ndarray:
            return np.min(level(batch, batch.gauge.price), axis=0) - np.log(_shrink(batch))

        root = "" if squared else " sqrt((K-1)/K)"
        return Explicit(
            each, f"max_g {_symbol(problem)}sqrt(n_g){root} <= N sqrt(lW lH)", reference
        )
    if problem.use_bias and not _has_constant_bias(problem):
        return None

    def function(batch: GroupProblem) -> np.ndarray:
        return np.log(batch.gauge.price / _norm_at_zero(batch))

    at = "at zero logits" if not problem.use_bias else "at the best constant logits"
    return Explicit(
        function,
        f"N ||gradient D^(-1/2)||_2 {at} <= N sqrt(lW lH)",
        SQUARED_ERROR if squared else reference,
    )


def _separate(problem: GroupProblem) -> bool:
    """Whether the problem separates into one per class."""
    if problem.use_bias:
        return False
    loss = problem.loss
    if loss.kind == "squared-error":
        return True
    one_column = np.all(loss.scales == np.asarray(loss.scales)[:1]) and np.all(
        loss.offsets == np.asarray(loss.offsets)[:1]
    )
    return problem.nonnegative_features and bool(one_column)


def _has_constant_bias(problem: GroupProblem) -> bool:
    """Whether the best bias alone has a closed form."""
    loss = problem.loss
    if loss.kind == "squared-error":
        return True
    return bool(
        np.all(problem.bias == 0) and np.all(loss.scales == 1) and np.all(loss.temperatures == 1)
    )


def _constant_bias(problem: GroupProblem) -> np.ndarray | None:
    """Return the bias that is best alone, (G, B)."""
    if not problem.use_bias:
        return None
    loss = problem.loss
    flows = np.asarray(loss.weights * problem.shares)
    total = np.sum(np.asarray(problem.sizes) * flows, axis=0)
    if loss.kind == "squared-error":
        return flows / (total + problem.bias)
    priors = (1 - loss.smoothing) * flows / total + loss.smoothing / np.asarray(problem.num_classes)
    bias = np.log(priors) - loss.offsets
    return bias - np.sum(problem.sizes * bias, axis=0) / np.sum(problem.sizes, axis=0)


@in_double_precision
def _norm_at_zero(problem: GroupProblem) -> np.ndarray:
    """Return the spectral norm of the weighted gradient where only the best bias is left, (B,)."""
    zero = jnp.zeros(problem.counts.shape)
    logits = Blocks(
        zero, jnp.zeros((problem.num_groups, *problem.counts.shape)), jnp.asarray(problem.sizes)
    )
    bias = _constant_bias(problem)
    dual, _ = _dual_blocks(problem, logits, None if bias is None else jnp.asarray(bias))
    within = np.where(np.asarray(problem.sizes) > 1, np.abs(dual.within), 0)
    between = np.linalg.svd(
        np.moveaxis(np.asarray(dual.between), (0, 1), (-2, -1)), compute_uv=False
    )[..., 0]
    return np.maximum(np.max(within, axis=0), between)


def _shrink(problem: GroupProblem) -> np.ndarray:
    """Return sqrt((K - 1) / K) if the loss does not see the mean of the logits, otherwise one."""
    if problem.loss.kind == "squared-error":
        return np.ones(problem.counts.shape[1:])
    K = np.asarray(problem.num_classes)
    return np.sqrt((K - 1) / K)


def _symbol(problem: GroupProblem) -> str:
    """Return s_g as a factor in words, nothing where it is one."""
    loss = problem.loss
    names = (
        ("w_g", loss.weights, 1),
        ("t_g", loss.temperatures, 1),
        ("d_g", loss.scales, 1),
        ("(1-alpha)", loss.smoothing, 0),
    )
    return "".join(
        f"{name} " for name, value, trivial in names if np.any(np.asarray(value) != trivial)
    )
