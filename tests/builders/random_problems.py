"""Random one-layer problems of three classes, with every loss that has a conjugate.

Counts are from 1 to 1000, penalties extend over eight decades.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from ufm.problems import Loss, Parameters, Problem

K = 3
BIASES = ("no bias", "free bias", "penalised bias")


def positive(rng: np.random.Generator) -> np.ndarray:
    return 10 ** rng.uniform(-1, 1, K)


LOSSES: dict[str, Callable[[np.random.Generator], Loss]] = {
    "cross-entropy": lambda rng: ufm.CrossEntropy(),
    "squared-error": lambda rng: ufm.SquaredError(),
    "label-smoothing": lambda rng: ufm.LabelSmoothing(10 ** rng.uniform(-14, -0.3)),
    "logit-adjusted": lambda rng: ufm.LogitAdjusted(rng.uniform(0, 2)),
    "logit-offsets": lambda rng: ufm.LogitAdjusted(offsets=5 * rng.normal(size=K)),
    "cdt": lambda rng: ufm.CDT(rng.uniform(0, 0.5)),
    "weighted": lambda rng: ufm.ClassWeighted(rng.uniform(0, 1)),
    "weighted-cdt": lambda rng: ufm.ClassWeighted(
        weights=positive(rng), loss=ufm.CDT(multipliers=positive(rng))
    ),
    "weighted-squared": lambda rng: ufm.ClassWeighted(
        weights=positive(rng), loss=ufm.SquaredError()
    ),
    "ldt": lambda rng: ufm.LDT(rng.uniform(0, 0.5)),
    "weighted-smoothing": lambda rng: ufm.ClassWeighted(
        1.0,
        loss=ufm.ClassWeighted(
            weights=positive(rng), loss=ufm.LabelSmoothing(10 ** rng.uniform(-14, -0.3))
        ),
    ),
}


class Kind(NamedTuple):
    """What is static about a problem."""

    loss: str
    use_bias: bool = False
    nonnegative: bool = False
    ball: bool = False

    def __str__(self) -> str:
        parts = (
            self.loss,
            "bias" if self.use_bias else "",
            "nonnegative" if self.nonnegative else "",
            "ball" if self.ball else "",
        )
        return "-".join(part for part in parts if part)


ALL_KINDS = [
    Kind(loss, use_bias, nonnegative, ball)
    for loss in LOSSES
    for use_bias in (False, True)
    for nonnegative in (False, True)
    for ball in (False, True)
]
# What the default tests try: every loss, every combination of the rest, and both losses of the
# theory twice.
FEW_KINDS = [
    Kind(loss, bool(code & 1), bool(code & 2), bool(code & 4)) for code, loss in enumerate(LOSSES)
]
FEW_KINDS += [Kind("cross-entropy", True, True), Kind("squared-error", False, True, True)]
# What they solve: fewer, since each is compiled.
SOLVED_KINDS = [
    Kind("cross-entropy"),
    Kind("squared-error", use_bias=True),
    Kind("cross-entropy", use_bias=True, nonnegative=True),
    Kind("weighted-cdt", use_bias=True, ball=True),
]


def random_problem(kind: Kind, rng: np.random.Generator, num_classes: int = K) -> Problem:
    """Return a problem; half of the biases under weight decay are free.

    Some of the losses are of three classes only.
    """
    regularizer: Any
    if kind.ball:
        regularizer = ufm.NormBall(*10 ** rng.uniform(-2, 2, 2))
    else:
        decay = 10 ** rng.uniform(-8, 0) if kind.use_bias and rng.uniform() < 0.5 else 0.0
        regularizer = ufm.WeightDecay(*10 ** rng.uniform(-8, 0, 2), bias=decay)
    return Problem(
        class_counts=10 ** rng.uniform(0, 3, num_classes),
        feature_dim=2 * num_classes if kind.nonnegative else num_classes,
        loss=LOSSES[kind.loss](rng),
        regularizer=regularizer,
        use_bias=kind.use_bias,
        nonnegative_features=kind.nonnegative,
    )


def easy_problem(kind: Kind) -> Problem:
    """Return a problem whose minimiser is neither zero nor far away."""
    regularizer: Any = (
        ufm.NormBall(0.5, 0.5) if kind.ball else ufm.WeightDecay(1e-2, 2e-3, bias=1e-2)
    )
    return Problem(
        class_counts=(50.0, 20.0, 7.5),
        feature_dim=2 * K if kind.nonnegative else K,
        loss=LOSSES[kind.loss](np.random.default_rng(0)),
        regularizer=regularizer,
        use_bias=kind.use_bias,
        nonnegative_features=kind.nonnegative,
    )


def random_logits(rng: np.random.Generator) -> np.ndarray:
    """Return logits of any magnitude, half of them with the labels' on top."""
    aligned = rng.uniform(0, 20) * np.eye(K) if rng.uniform() < 0.5 else 0
    return 10 ** rng.uniform(-3, 3) * rng.normal(size=(K, K)) + aligned


def random_feasible(problem: Problem, rng: np.random.Generator) -> Parameters:
    """Return a point that meets all constraints.

    It is noise of any size, half of the time around an aligned point.
    """
    d, size = problem.feature_dim, 10 ** rng.uniform(-3, 1.5)
    weights, features = size * rng.normal(size=(K, d)), size * rng.normal(size=(K, d))
    if rng.uniform() < 0.5:
        weights, features = (
            0.1 * weights + rng.uniform(0, 3) * np.eye(K, d),
            0.1 * features + np.eye(K, d),
        )
    if problem.nonnegative_features:
        features = np.abs(features)
    if isinstance(problem.regularizer, ufm.NormBall):
        weights *= min(1, np.sqrt(K * problem.regularizer.weights) / np.linalg.norm(weights)) * (
            1 - 1e-15
        )
        features *= min(1, np.sqrt(K * problem.regularizer.features) / np.linalg.norm(features)) * (
            1 - 1e-15
        )
    return Parameters((weights,), features, size * rng.normal(size=K) if problem.use_bias else None)


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float64) for leaf in leaves]), *trees
    )


@functools.cache
def solved(kind: Kind) -> ufm.Solution:
    """Return the certified solution of the easy problem."""
    return ufm.solve(easy_problem(kind))
