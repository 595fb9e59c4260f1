r"""The layer-peeled model: cross-entropy under norm constraints instead of penalties.

    min (1/N) sum_i CE(z_i, y_i),    Z = H W^T,
    (1/K) ||W||^2 <= E_W,    (1/K) sum_k (1/n_k) sum_{i in k} ||h_i||^2 <= E_H.

Over the class means the two constraints bound the nuclear norm of the class logits by T = K
sqrt(E_W E_H), exactly, and a balanced convex loss is least where all K - 1 directions share it: Z =
M P with P = I - J/K and M = T / (K - 1).
"""

import functools
from typing import Any

from ufm._support import array_module
from ufm.problems import ClassGroups, CrossEntropy, NormBall, Problem
from ufm.theory import conditions as needs
from ufm.theory import matrices
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import float_type
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.loss_is(problem, CrossEntropy),
        needs.norm_ball(problem),
        needs.num_layers(problem, exactly=1),
        needs.signed_features(problem),
        needs.balanced(problem),
        needs.centred_dims(problem),
    )


def _formula(problem: Problem) -> Prediction:
    r"""Return the simplex ETF that meets both constraints with equality.

        M = K sqrt(E_W E_H) / (K - 1),    Z = M P,    objective = log(1 + (K - 1) e^{-M}),
        W W^T = sqrt(E_W / E_H) M P,    F F^T = sqrt(E_H / E_W) M P,
        ||W||^2 = K E_W,    sum_i ||h_i||^2 = N E_H.

    A bias is zero, fixed by mean(b) = 0.
    """
    regularizer: Any = problem.regularizer
    K, xp = problem.num_classes, array_module(problem)
    dtype = float_type(xp)
    samples = xp.sum(xp.asarray(problem.class_counts.per_class, dtype))
    weights = xp.asarray(regularizer.per_layer(1)[0], dtype)
    features = xp.asarray(regularizer.features, dtype)
    margin = K / (K - 1) * xp.sqrt(weights * features)
    centring = matrices.identity_matrix(xp, K, dtype) - matrices.mean_matrix(xp, K, dtype)
    value = xp.sqrt(samples / K) * margin
    return Prediction(
        theorem="layer-peeled-etf",
        objective=xp.log1p((K - 1) * xp.exp(-margin)),
        logits=margin * centring,
        weight_gram=xp.sqrt(weights / features) * margin * centring,
        feature_gram=xp.sqrt(features / weights) * margin * centring,
        bias=xp.zeros((K,), dtype) if problem.use_bias else None,
        layer_norms=xp.stack([K * weights, samples * features]),
        singular_values=value * (xp.arange(K) < K - 1).astype(dtype),
        rank=xp.asarray(K - 1, xp.int32),
        collapsed=xp.asarray(False),
        constants={"margin": margin},
    )


def _examples() -> tuple[Example, ...]:
    classes = ClassGroups.balanced(10, 100)
    ball = functools.partial(example_problem, CrossEntropy(), classes, 1.0, kind=NormBall)
    return (
        Example("K=10, E_H=5, E_W=1, d=20", ball(5.0, 20)),
        Example("K=10, E_H=10, E_W=1, d=20", ball(10.0, 20)),
        Example("free bias, d=9", ball(5.0, 9, bias=0.0)),
    )


balanced_layer_peeled = Theorem(
    name="layer-peeled-etf",
    title="the balanced layer-peeled model: a simplex ETF",
    reference="Fang, He, Long & Su (PNAS 2021), arXiv:2101.12699",
    statement=(
        "(1/N) sum CE subject to (1/K) sum_k ||w_k||^2 <= E_W and (1/K) sum_k (1/n_k) sum_i "
        "||h_ki||^2 <= E_H, equal class counts, d >= K - 1: h_ki / sqrt(E_H) = w_k / sqrt(E_W), a "
        "simplex ETF, with the margin K sqrt(E_W E_H) / (K - 1)."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
    by_groups=True,
)

THEOREMS = (balanced_layer_peeled,)
