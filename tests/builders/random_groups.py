"""Random one-layer problems over groups of interchangeable classes.

They have every convex loss, with its parameters stated group by group.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ufm
from ufm._support import rebuilt, to_numpy
from ufm.problems import Blocks, GroupProblem, Loss, Problem, grouped


def positive(rng: np.random.Generator, groups: int) -> np.ndarray:
    return 10 ** rng.uniform(-0.5, 0.5, groups)


LOSSES: dict[str, Callable[[np.random.Generator, int], Loss]] = {
    "cross-entropy": lambda rng, G: ufm.CrossEntropy(),
    "squared-error": lambda rng, G: ufm.SquaredError(),
    "label-smoothing": lambda rng, G: ufm.LabelSmoothing(10 ** rng.uniform(-12, -0.5)),
    "logit-adjusted": lambda rng, G: ufm.LogitAdjusted(rng.uniform(0, 1.5)),
    "logit-offsets": lambda rng, G: ufm.LogitAdjusted(offsets=rng.normal(size=G)),
    "cdt": lambda rng, G: ufm.CDT(rng.uniform(0, 0.4)),
    "cdt-multipliers": lambda rng, G: ufm.CDT(multipliers=positive(rng, G)),
    "ldt": lambda rng, G: ufm.LDT(rng.uniform(0, 0.4)),
    "ldt-multipliers": lambda rng, G: ufm.LDT(multipliers=positive(rng, G)),
    "weighted": lambda rng, G: ufm.ClassWeighted(rng.uniform(0, 1)),
    "weighted-squared": lambda rng, G: ufm.ClassWeighted(
        weights=positive(rng, G), loss=ufm.SquaredError()
    ),
    "weighted-smoothing": lambda rng, G: ufm.ClassWeighted(
        weights=positive(rng, G), loss=ufm.LabelSmoothing(0.1)
    ),
    "weighted-cdt": lambda rng, G: ufm.ClassWeighted(
        weights=positive(rng, G), loss=ufm.CDT(multipliers=positive(rng, G))
    ),
    "weighted-ldt": lambda rng, G: ufm.ClassWeighted(weights=positive(rng, G), loss=ufm.LDT(0.3)),
}


def random_problem(
    rng: np.random.Generator,
    loss: str = "cross-entropy",
    sizes: tuple[int, ...] = (3, 2),
    *,
    bias: str = "none",
    ball: bool = False,
    nonnegative: bool = False,
    dimension: int | None = None,
) -> Problem:
    """Return a problem whose minimiser is rarely zero; `bias` is "none", "free" or "penalised"."""
    K, G = sum(sizes), len(sizes)
    counts = np.round(10 ** rng.uniform(0, 2.5, G), 2) + np.arange(G) / 128
    total = float(counts @ np.asarray(sizes, float))
    if ball:
        regularizer: Any = ufm.NormBall(10 ** rng.uniform(-1, 1), 10 ** rng.uniform(-1, 1))
    else:
        tau, split = (
            10 ** rng.uniform(-3, 0) * np.sqrt(counts.max()) / total,
            10 ** rng.uniform(-1, 1),
        )
        decay = 10 ** rng.uniform(-3, 0) if bias == "penalised" else 0.0
        regularizer = ufm.WeightDecay(tau * split, tau / split, bias=decay)
    return Problem(
        class_counts=ufm.ClassGroups(counts, sizes),
        feature_dim=dimension or (4 * K if nonnegative else K),
        loss=LOSSES[loss](rng, G),
        regularizer=regularizer,
        use_bias=bias != "none",
        nonnegative_features=nonnegative,
    )


def any_loss(rng: np.random.Generator, groups: int, nestings: int = 2) -> Loss:
    """Return any of the losses that have a form over groups, weighted up to so many times.

    Its parameters have any sign and size.
    """
    kind = int(rng.integers(0, 9 if nestings else 7))
    if kind < 2:
        return (ufm.CrossEntropy(), ufm.SquaredError())[kind]
    if kind == 2:
        return ufm.LabelSmoothing(rng.choice([0.01, 0.1, 0.5, 0.9, rng.uniform(0, 0.999)]))
    if kind == 3:
        return ufm.LogitAdjusted(rng.uniform(-2, 2))
    if kind == 4:
        return ufm.LogitAdjusted(offsets=3 * rng.normal(size=groups))
    spread = 10 ** rng.uniform(-1, 1, groups)
    if kind < 7:
        scaled = (ufm.CDT, ufm.LDT)[kind - 5]
        return scaled(rng.uniform(-0.5, 1)) if rng.uniform() < 0.6 else scaled(multipliers=spread)
    inner = any_loss(rng, groups, nestings - 1)
    if rng.uniform() < 0.5:
        return ufm.ClassWeighted(rng.uniform(-1, 1.5), loss=inner)
    return ufm.ClassWeighted(weights=spread, loss=inner)


def any_problem(
    rng: np.random.Generator, most_groups: int = 6, nonnegative: bool = False
) -> Problem:
    """Return any problem with a form over groups.

    Counts are from 1 to 5000; penalties and bounds extend over many decades.
    """
    G = int(rng.integers(1, most_groups + 1))
    sizes = rng.integers(1, 6, G)
    if sizes.sum() < 2:
        sizes[0] = int(rng.integers(2, 8))
    K = int(sizes.sum())
    counts = np.zeros(0)
    while len(set(counts)) < G:
        counts = np.round(10 ** rng.uniform(0, np.log10(5000), G))
    bias, ball = ("none", "free", "penalised")[rng.integers(0, 3)], rng.uniform() < 0.5
    if ball:
        regularizer: Any = ufm.NormBall(*10 ** rng.uniform(-3, 3, 2))
    else:
        tau, split = (
            10 ** rng.uniform(-5, 0.5) * np.sqrt(counts.max()) / (counts @ sizes),
            10 ** rng.uniform(-3, 3),
        )
        how = rng.uniform()
        decays = (
            (tau * split, tau / split)
            if how < 0.5
            else 10 ** rng.uniform(-20 if how > 0.8 else -6, 1, 2)
        )
        regularizer = ufm.WeightDecay(
            *decays, bias=10 ** rng.uniform(-6, 1) if bias == "penalised" else 0.0
        )
    return Problem(
        class_counts=ufm.ClassGroups(counts, tuple(int(size) for size in sizes)),
        feature_dim=60 * K if nonnegative else K,
        loss=any_loss(rng, G),
        regularizer=regularizer,
        use_bias=bias != "none",
        nonnegative_features=nonnegative,
    )


def data_of(problem: Problem) -> GroupProblem:
    return to_numpy(grouped(problem)[0])


def with_price(data: GroupProblem, price: Any) -> GroupProblem:
    """Return the problem with another price of its gauge, or another bound."""
    return rebuilt(data, gauge=rebuilt(data.gauge, price=price))


def random_blocks(rng: np.random.Generator, sizes: Any, scale: float = 1.0) -> Blocks:
    """Return blocks of a random matrix, aligned with the classes half of the time."""
    sizes = np.asarray(sizes, float)
    G, aligned = sizes.size, rng.uniform(0, 3) * (rng.uniform() < 0.5)
    within = np.where(sizes > 1, scale * rng.normal(size=G) + aligned, 0)
    return Blocks(within, scale * rng.normal(size=(G, G)) + aligned * np.eye(G), sizes)


def batched(problems: list[GroupProblem]) -> GroupProblem:
    """Return one batch of problems, the batch axis last on every leaf."""
    return jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves], axis=-1), *problems
    )


def one_of(batch: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[..., index], batch)
