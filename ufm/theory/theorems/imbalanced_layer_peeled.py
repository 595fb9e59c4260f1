r"""The layer-peeled model with two class sizes: minority collapse at a finite imbalance ratio.

    min (1/N) sum_i CE(z_i, y_i),    Z = H W^T (+ 1 b^T),
    (1/K) ||W||^2 <= E_W,    (1/K) sum_k (1/n_k) sum_{i in k} ||h_i||^2 <= E_H.

Over the class means the constraints bound the nuclear norm of the class logits (without bias) by T
= K sqrt(E_W E_H), exactly; a class counts once in it, however many samples it has. With the
multiplier mu of that bound the minimiser is that of `two_groups` with lambda = mu and r_g = 1, so
the classes of a group of n samples coincide where mu >= n / N.
"""

import functools
from typing import Any

import numpy as np

from ufm._support import array_module
from ufm.problems import ClassGroups, CrossEntropy, NormBall, Problem
from ufm.theory import conditions as needs
from ufm.theory import matrices
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import float_type
from ufm.theory.roots import root
from ufm.theory.theorem import Condition, Example, Prediction, Theorem
from ufm.theory.two_groups import basis, first_of, split, two_groups, two_sizes

__all__ = ["THEOREMS"]


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.loss_is(problem, CrossEntropy),
        needs.norm_ball(problem),
        needs.num_layers(problem, exactly=1),
        needs.signed_features(problem),
        two_sizes(problem),
        needs.centred_dims(problem),
    )


def _formula(problem: Problem) -> Prediction:
    r"""Return the minimiser for k_A classes of n_A samples and k_B of n_B.

    With a_g, nu, v, c and P_g of `two_groups` and X = sum_g a_g P_g, whose nuclear norm and nu make
    T,

        Z - 1 b^T = X + nu c v^T,
        W W^T = (K E_W / T) (X + nu v v^T),    F F^T = (K E_H / T) (X + nu c c^T).

    The constants `minority_ratio` = mu N / n_B and `majority_ratio` = mu N / n_A, mu =
    `multiplier`, are at least one exactly where the classes of the group coincide, `contrast_ratio`
    where nothing tells the groups apart but a bias; `minority_margin` and `majority_margin` are the
    margins between two classes of one group.
    """
    regularizer: Any = problem.regularizer
    K, xp, groups = problem.num_classes, array_module(problem), split(problem)
    dtype = float_type(xp)
    weights = xp.asarray(regularizer.per_layer(1)[0], dtype)
    features = xp.asarray(regularizer.features, dtype)
    bound = K * xp.sqrt(weights * features)
    ones = xp.ones_like(groups.sizes)
    bias = 0 * bound if problem.use_bias else None

    def equation(log_multiplier: Any, parameters: Any) -> Any:
        groups, bound, ones, bias = parameters
        return two_groups(groups, ones, log_multiplier, bias).gauge / bound - 1

    # A margin is at least log(1 / mu) less a constant, and none is larger than the bound.
    lowest = -(bound + 20 + 4 * xp.max(xp.abs(xp.log(groups.sizes * groups.shares))))
    log_multiplier = root(equation, lowest, 0 * lowest, (groups, bound, ones, bias))
    multiplier = xp.exp(log_multiplier)
    found = two_groups(groups, ones, log_multiplier, bias)
    parts = basis(groups, found.direction, found.margins)
    within = parts.within
    feature_gram = K * features / bound * (within + found.contrast * parts.features)
    weight_gram = K * weights / bound * (within + found.contrast * parts.classifiers)
    logits = within + found.contrast * parts.between
    first = first_of(groups.members)
    roots = xp.sqrt(groups.counts)
    lengths = (roots * found.margins)[:, None] * groups.members
    across = found.contrast * xp.sqrt(groups.counts @ found.direction**2)
    values = xp.sum(xp.where(first, 0, lengths), axis=0) + xp.where(first[0], across, 0)
    counts = groups.counts @ groups.members
    gap = None if bias is None else _centred(xp, found.gap, groups)
    minority = xp.argmin(groups.counts)
    ratios = multiplier / groups.shares
    return Prediction(
        theorem="layer-peeled-two-groups",
        objective=found.data_term,
        logits=logits if gap is None else matrices.shifted(xp, logits, gap),
        weight_gram=weight_gram,
        feature_gram=feature_gram,
        bias=gap,
        layer_norms=xp.stack([K * weights, counts @ matrices.diagonal_of(xp, feature_gram)]),
        singular_values=xp.sort(values)[::-1],
        rank=xp.sum(values > 0, dtype=np.int32),
        collapsed=xp.all(values == 0),
        constants={
            "multiplier": multiplier,
            "minority_ratio": ratios[minority],
            "majority_ratio": ratios[1 - minority],
            "contrast_ratio": found.contrast_ratio,
            "minority_margin": found.margins[minority],
            "majority_margin": found.margins[1 - minority],
        },
    )


def _centred(xp: Any, gap: Any, groups: Any) -> Any:
    signs = xp.asarray([1.0, -1.0], groups.sizes.dtype)
    return gap * (signs * groups.sizes[::-1] / xp.sum(groups.sizes)) @ groups.members


def _examples() -> tuple[Example, ...]:
    def ball(counts: Any, features: float, dims: int, bias: Any = None) -> Problem:
        return example_problem(CrossEntropy(), counts, 1.0, features, dims, bias, kind=NormBall)

    step = functools.partial(ClassGroups.step, 10, 1000)
    return (
        Example(
            "2x100 + 2x25, E_H=5, E_W=1, d=4", ball(ClassGroups((100, 25), sizes=(2, 2)), 5.0, 4)
        ),
        Example("K=10, K_A=5, R=10, E_H=5, E_W=1, d=20", ball(step(imbalance_ratio=10), 5.0, 20)),
        Example("minority collapse: R=100", ball(step(imbalance_ratio=100), 5.0, 20)),
        Example(
            "K_A=3, R=10, E_H=10, d=9", ball(step(imbalance_ratio=10, num_minority=7), 10.0, 9)
        ),
        Example("free bias, R=10", ball(step(imbalance_ratio=10), 5.0, 20, bias=0.0)),
    )


two_size_layer_peeled = Theorem(
    name="layer-peeled-two-groups",
    title="the layer-peeled model with two class sizes: minority collapse at a finite ratio",
    reference=(
        "Fang, He, Long & Su (PNAS 2021), arXiv:2101.12699; the finite threshold and the scales "
        "are derived here"
    ),
    statement=(
        "(1/N) sum CE subject to (1/K) sum_k ||w_k||^2 <= E_W and (1/K) sum_k (1/n_k) sum_i "
        "||h_ki||^2 <= E_H, k_A classes of n_A samples and k_B of n_B, d >= K - 1: the "
        "classifiers of a group coincide exactly where mu >= n_g / N, mu the multiplier of "
        "||Z||_* <= K sqrt(E_W E_H); the minority's do from a finite n_A / n_B on."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
    by_groups=True,
)

THEOREMS = (two_size_layer_peeled,)
