"""Seeded one-layer problems in every corner: losses and nestings of losses, regularizers, biases.

A problem is made from its kind, its index and a seed alone, so any of them can be made again.

Numbers:
    ordinary: counts 1 to 1000. Weight decay 1e-8 to 1, and half of it within four decades below the
        price at which everything collapses; radii of norm balls 1e-2 to 1e2. Parameters of losses
        as they are used.
    extreme: counts 1e-6 to 1e12, penalties and radii 1e-12 to 1e3, parameters of losses far outside
        their use.
    threshold: ordinary, but with the penalty (or the radius) at 1 +- 1e-3 ... 1e-12 times a value
        at which classes collapse, for the collapses that have a closed form.
    many: ordinary, but up to 10,000 classes a group.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import ufm
from ufm.imbalance import conditions as collapse
from ufm.problems import Loss, Problem, grouped

__all__ = ["BIASES", "LOSSES", "NUMBERS", "SIZES", "Kind", "code_of", "kinds", "problem_of"]

SIZES = ((5,), (3, 2), (2, 2, 1), (1, 4))
NUMBERS = ("ordinary", "extreme", "threshold", "many")
BIASES = ("none", "free", "penalised")
LOSSES = (
    "ce",
    "mse",
    "smoothing",
    "focal",
    "adjusted",
    "cdt",
    "ldt",
    "weighted",
    "weighted-mse",
    "weighted-smoothing",
    "weighted-focal",
    "weighted-adjusted",
    "weighted-cdt",
    "weighted-ldt",
    "weighted-weighted",
)


class Kind(NamedTuple):
    """What is common to problems of one kind; `str` is its name."""

    loss: str
    regularizer: str
    bias: str
    features: str
    numbers: str

    def __str__(self) -> str:
        return ".".join(self)

    @classmethod
    def named(cls, name: str) -> "Kind":
        """Return the kind of a name.

        Raises:
            ValueError: if there is no such kind.
        """
        parts = name.split(".")
        if len(parts) == len(cls._fields) and (kind := cls(*parts)) in set(kinds()):
            return kind
        example = "ce.decay.free.signed.ordinary"
        raise ValueError(
            f"`kind` must be LOSS.REGULARIZER.BIAS.FEATURES.NUMBERS such as {example}, "
            f"got {name!r}."
        )


class _Ranges(NamedTuple):
    """Exponents of ten, or bounds, that numbers are drawn between."""

    counts: tuple[float, float]
    decay: tuple[float, float]
    below_collapse: tuple[float, float]
    radii: tuple[float, float]
    alpha: Callable[[np.random.Generator], float]
    gamma: Callable[[np.random.Generator], float]
    strength: tuple[float, float]
    exponent: tuple[float, float]
    positive: tuple[float, float]
    offsets: float


ORDINARY = _Ranges(
    counts=(0, 3),
    decay=(-8, 0),
    below_collapse=(-4, 0),
    radii=(-2, 2),
    alpha=lambda rng: rng.uniform(1e-3, 0.5),
    gamma=lambda rng: rng.uniform(0, 3),
    strength=(-1, 2),
    exponent=(0, 0.5),
    positive=(-1, 1),
    offsets=5,
)
EXTREME = _Ranges(
    counts=(-6, 12),
    decay=(-12, 3),
    below_collapse=(-12, 0.5),
    radii=(-12, 3),
    alpha=lambda rng: 10 ** rng.uniform(-12, -0.05),
    gamma=lambda rng: 10 ** rng.uniform(-3, 1),
    strength=(-5, 5),
    exponent=(-2, 2),
    positive=(-3, 3),
    offsets=100,
)


def kinds() -> Iterator[Kind]:
    """Yield every kind that has problems."""
    for numbers in NUMBERS:
        for loss in LOSSES:
            for features in ("signed", "nonnegative"):
                for regularizer, biases in (("decay", BIASES), ("ball", BIASES[:2])):
                    for bias in biases:
                        kind = Kind(loss, regularizer, bias, features, numbers)
                        if _exists(kind):
                            yield kind


def _exists(kind: Kind) -> bool:
    if kind.numbers == "many":
        return "focal" not in kind.loss and kind.features == "signed"
    return kind.numbers != "threshold" or ("focal" not in kind.loss and bool(_collapses(kind)))


def _collapses(kind: Kind) -> list[str]:
    """Return which collapses have a closed form for problems of a kind."""
    squared = "mse" in kind.loss
    # Where all columns have one scale and one offset, classes with h >= 0 do not see one another.
    alike = kind.bias == "none" and (
        squared or not any(part in kind.loss for part in ("adjusted", "cdt"))
    )
    if kind.features == "nonnegative":
        return ["vanish"] if alike else []
    if kind.regularizer == "ball":
        return ["vanish"] if squared and kind.bias == "none" else []
    constant = (
        kind.bias == "none"
        or squared
        or (kind.bias == "free" and kind.loss != "cdt" and "-cdt" not in kind.loss)
    )
    return ["coincide", "all"] if constant and "ldt" not in kind.loss else ["coincide"]


def problem_of(kind: Kind, index: int, seed: int = 0) -> Problem:
    """Return a problem, stated by groups."""
    rng = np.random.default_rng([seed, zlib.crc32(str(kind).encode()), index])
    ranges = EXTREME if kind.numbers == "extreme" else ORDINARY
    sizes = SIZES[index % len(SIZES)]
    if kind.numbers == "many":
        sizes = tuple(int(size) for size in np.ceil(10 ** rng.uniform(0.4, 4, len(sizes))))
    counts, whole = np.zeros(len(sizes)), ranges is ORDINARY and rng.integers(2) == 1
    # Groups of equal counts would be one group.
    while len(set(counts)) < len(counts) or not np.all(counts):
        counts = 10 ** rng.uniform(*ranges.counts, len(sizes))
        counts = np.maximum(np.round(counts), 1) if whole else counts
    loss = _loss(kind.loss, rng, ranges, len(sizes))
    if kind.regularizer == "ball":
        regularizer: Any = ufm.NormBall(*10 ** rng.uniform(*ranges.radii, 2))
    else:
        regularizer = _decay(kind, rng, ranges, counts, sizes)
    K = sum(sizes)
    problem = Problem(
        class_counts=ufm.ClassGroups(counts, sizes),
        feature_dim=2 * K if kind.features == "nonnegative" else K,
        loss=loss,
        regularizer=regularizer,
        use_bias=kind.bias != "none",
        nonnegative_features=kind.features == "nonnegative",
    )
    return _at_threshold(kind, problem, rng) if kind.numbers == "threshold" else problem


def code_of(problem: Problem) -> str:
    """Return the Python expression that makes a problem of one layer again, to the last digit."""

    def shown(value: Any) -> str:
        if isinstance(value, Loss | ufm.WeightDecay | ufm.NormBall):
            named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            given = ", ".join(
                f"{name}={shown(one)}" for name, one in named.items() if one is not None
            )
            return f"ufm.{type(value).__name__}({given})"
        return repr(np.asarray(value).tolist())

    counts, sizes = problem.class_counts.counts, problem.class_counts.sizes
    extras = [
        f"{name}=True" for name in ("use_bias", "nonnegative_features") if getattr(problem, name)
    ]
    arguments = [
        f"class_counts=ufm.ClassGroups({shown(counts)}, {sizes})",
        f"feature_dim={problem.feature_dim}",
        f"loss={shown(problem.loss)}",
        f"regularizer={shown(problem.regularizer)}",
        *extras,
    ]
    return f"ufm.Problem({', '.join(arguments)})"


def _decay(
    kind: Kind, rng: np.random.Generator, ranges: _Ranges, counts: np.ndarray, sizes: Any
) -> ufm.WeightDecay:
    weights, features = 10 ** rng.uniform(*ranges.decay, 2)
    if rng.integers(2):
        # tau = sqrt(max n) / N is where the last class collapses.
        collapse = np.sqrt(counts.max()) / (counts @ np.asarray(sizes))
        tau = collapse * 10 ** rng.uniform(*ranges.below_collapse)
        features = np.clip(tau**2 / weights, 10 ** ranges.decay[0] if ranges is EXTREME else 0, 1e3)
    bias = 10 ** rng.uniform(*ranges.decay) if kind.bias == "penalised" else 0.0
    return ufm.WeightDecay(weights, features, bias=bias)


def _loss(name: str, rng: np.random.Generator, ranges: _Ranges, groups: int) -> Loss:
    def positive() -> np.ndarray:
        return 10 ** rng.uniform(*ranges.positive, groups)

    def exponent() -> float:
        return rng.uniform(*ranges.exponent)

    match name:
        case "ce":
            return ufm.CrossEntropy()
        case "mse":
            return ufm.SquaredError()
        case "smoothing":
            return ufm.LabelSmoothing(ranges.alpha(rng))
        case "focal":
            return ufm.Focal(ranges.gamma(rng))
        case "adjusted":
            return ufm.LogitAdjusted(rng.uniform(*ranges.strength))
        case "cdt":
            return ufm.CDT(exponent())
        case "ldt":
            return ufm.LDT(exponent())
        case "weighted":
            return ufm.ClassWeighted(2 * exponent())
        case "weighted-mse":
            return ufm.ClassWeighted(weights=positive(), loss=ufm.SquaredError())
        case "weighted-smoothing":
            return ufm.ClassWeighted(exponent(), loss=ufm.LabelSmoothing(ranges.alpha(rng)))
        case "weighted-focal":
            return ufm.ClassWeighted(exponent(), loss=ufm.Focal(ranges.gamma(rng)))
        case "weighted-adjusted":
            offsets = ranges.offsets * rng.normal(size=groups)
            return ufm.ClassWeighted(weights=positive(), loss=ufm.LogitAdjusted(offsets=offsets))
        case "weighted-cdt":
            return ufm.ClassWeighted(exponent(), loss=ufm.CDT(multipliers=positive()))
        case "weighted-ldt":
            return ufm.ClassWeighted(weights=positive(), loss=ufm.LDT(multipliers=positive()))
        case "weighted-weighted":
            return ufm.ClassWeighted(exponent(), loss=ufm.ClassWeighted(weights=positive()))
    raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}.")


def _at_threshold(kind: Kind, problem: Problem, rng: np.random.Generator) -> Problem:
    """Return the problem with its regulariser moved next to a collapse."""
    data, _ = grouped(problem)
    choices = _collapses(kind)
    which = choices[int(rng.integers(len(choices)))]
    several = np.flatnonzero(np.asarray(data.sizes) > 1)
    group = int(several[rng.integers(len(several))])
    condition = {
        "coincide": lambda: collapse.coincide(data, group),
        "vanish": lambda: collapse.vanish(data, group),
        "all": lambda: collapse.vanish_all(data),
    }[which]()
    if condition is None:
        raise ValueError(f"{kind}: no closed form for `{which}`.")
    level = float(np.squeeze(condition.function(data)))
    factor = 1 + (-1) ** int(rng.integers(2)) * 10.0 ** -int(rng.integers(3, 13))
    regularizer: Any = problem.regularizer
    if kind.regularizer == "ball":
        # The level is the gauge at the collapse over the price, less one. The price is the root of
        # the product of the radii.
        radius = float(regularizer.weights) * ((1 + level) * factor) ** 2
        if not 0 < radius < np.inf:
            return problem
        moved: Any = ufm.NormBall(radius, float(regularizer.features))
    else:
        features = float(regularizer.features) * (factor * np.exp(-level)) ** 2
        moved = ufm.WeightDecay(float(regularizer.weights), features, bias=float(regularizer.bias))
    return Problem(
        class_counts=problem.class_counts,
        feature_dim=problem.feature_dim,
        loss=problem.loss,
        regularizer=moved,
        use_bias=problem.use_bias,
        nonnegative_features=problem.nonnegative_features,
    )
