r"""Families of problems: some numbers of a problem varied, everything else fixed, as batches over groups of classes.

What can be varied, by name, with the values that it takes:

    imbalance_ratio       R = n_max / n_min of the majority and the minority, the majority's count fixed
    weight_decay          sqrt(lambda_W lambda_H), both penalties times one factor
    num_minority          the number of minority classes, K fixed: what they gain the majority loses; a real number
    minority_count, majority_count         n_min, n_max
    regularizer.weights, regularizer.features          lambda_W, lambda_H, or E_W, E_H of the norm balls
    loss.<parameter>      a scalar parameter of the loss, such as loss.alpha, loss.exponent, loss.strength

The minority is the smallest group of at least two classes (of any number where the features are non-negative, and single classes can
vanish), the majority the largest other group. Which is which is decided at the problem as it is given, and kept along the path.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ufm.groups import GroupProblem, has_group_form, interchangeable, over_groups
from ufm.losses import Loss
from ufm.presolve import rebuilt
from ufm.problem import Problem
from ufm.regularizers import NormBall, WeightDecay

__all__ = ["Path", "minority_of", "path_of", "varied"]

NAMES = (
    "imbalance_ratio",
    "weight_decay",
    "num_minority",
    "minority_count",
    "majority_count",
    "regularizer.weights",
    "regularizer.features",
)
BY_COUNT = ("imbalance_ratio", "num_minority", "minority_count", "majority_count")
FAR = 1e8
LOSS_RANGES = {"alpha": (0.0, 0.999)}  # of the parameters that are not simply non-negative
LOSS_RANGE = (0.0, 5.0)


class Path(NamedTuple):
    """A family of problems over groups, one per value of the varied number.

    counts, sizes, loss, regularizer: at the given problem. minority, majority: indices of groups; minority is None where there is none.
    given: the value that the problem itself has. bounds: the range to search. limits: what the number must stay between.
    logarithmic: whether the number is varied on a logarithmic scale. upward: whether more of it is more of a collapse, None where that depends.
    """

    problem: Problem
    vary: str
    counts: np.ndarray
    sizes: np.ndarray
    loss: Loss
    regularizer: WeightDecay | NormBall
    minority: int | None
    majority: int
    given: float
    bounds: tuple[float, float]
    limits: tuple[float, float]
    logarithmic: bool
    upward: bool | None

    def coordinate(self, value: Any) -> Any:
        """Return the coordinate, the logarithm of the value or the value itself."""
        return np.log(value) if self.logarithmic else value

    def value(self, coordinate: Any) -> Any:
        """Return the value at a coordinate."""
        return np.exp(coordinate) if self.logarithmic else coordinate

    def at(self, coordinates: Any) -> GroupProblem:
        """Return the problems at coordinates (B,), batch axis last."""
        return varied(self.problem, {self.vary: np.atleast_1d(self.value(np.asarray(coordinates, np.float64)))})


def minority_of(problem: Problem) -> tuple[int, int | None]:
    """Return the groups of the majority and of the minority, by their index; None where no group can be one."""
    counts, sizes, _ = _groups(problem)
    minority, majority = _small_and_large(counts, sizes, problem.nonnegative_features)
    return majority, minority


def varied(problem: Problem, over: Mapping[str, Any]) -> GroupProblem:
    """Return a problem over its groups with some numbers varied together: a batch, its axis last.

    Args:
        problem: of one layer, with a convex loss and room for the convex minimiser.
        over: values, (B,) arrays of one length or numbers, by the names of this module's list.

    Raises:
        ValueError: for a name that the problem does not have, or values that it cannot take.
    """
    check_group_form(problem)
    columns = {name: np.atleast_1d(np.asarray(values, np.float64)) for name, values in over.items()}
    length = max((column.size for column in columns.values()), default=1)
    for name, column in columns.items():
        if column.ndim != 1 or column.size not in (1, length):
            raise ValueError(
                f"`over[{name!r}]` must be a flat sequence of {length} numbers or one, got shape {column.shape}."
            )
        free = name.startswith("loss.") or name == "regularizer.bias"
        if not np.all(np.isfinite(column)) or (np.any(column <= 0) and not free):
            raise ValueError(f"`over[{name!r}]` must be positive and finite, got {column.min():g} to {column.max():g}.")
    stated_counts, stated_sizes, loss = _groups(problem)
    minority, majority = _small_and_large(stated_counts, stated_sizes, problem.nonnegative_features)
    counts, sizes = (np.repeat(part[:, None], length, axis=1) for part in (stated_counts, stated_sizes))
    loss = jax.tree.map(lambda leaf: np.asarray(leaf)[:, None] if np.ndim(leaf) == 1 else leaf, loss)
    regularizer: Any = problem.regularizer
    fields = {"weights": float(regularizer.per_layer(1)[0]), "features": float(regularizer.features)}
    # The majority's count first: a ratio is relative to it.
    for name in sorted(columns, key=lambda name: name == "imbalance_ratio"):
        column = np.broadcast_to(columns[name], (length,))
        owner, *path = name.split(".")
        if name in BY_COUNT and (minority is None or len(stated_counts) < 2):
            raise ValueError(
                f"{name!r} can only be varied with two groups of classes, the smaller one of at least two classes."
            )
        if name == "imbalance_ratio":
            counts[minority] = counts[majority] / column
        elif name in ("minority_count", "majority_count"):
            counts[minority if name == "minority_count" else majority] = column
        elif name == "num_minority":
            together = sizes[majority] + sizes[minority]
            if np.any(column >= together):
                raise ValueError(
                    f"'num_minority' must stay below {together[0]:g}, the classes of both groups; got {column.max():g}."
                )
            sizes[majority], sizes[minority] = together - column, column
        elif name == "weight_decay":
            if isinstance(regularizer, NormBall):
                raise ValueError(
                    "'weight_decay' needs the regularizer WeightDecay; vary 'regularizer.features' of a norm ball."
                )
            factor = column / (np.sqrt(fields["weights"]) * np.sqrt(fields["features"]))
            weights, features = fields["weights"] * factor, fields["features"] * factor
            regularizer = rebuilt(regularizer, weights=weights[None], features=features)
        elif owner == "regularizer" and len(path) == 1 and hasattr(regularizer, path[0]):
            regularizer = rebuilt(regularizer, **{path[0]: column[None] if path[0] == "weights" else column})
        elif owner == "loss":
            _loss_parameter(problem.loss, name)
            loss = eqx.tree_at(functools.partial(_leaf, names=path), loss, column)
        else:
            raise ValueError(
                f"cannot vary {name!r}: the numbers are {', '.join(NAMES)}, regularizer.bias and loss.<parameter>."
            )
    return over_groups(
        counts, sizes, loss, regularizer, use_bias=problem.use_bias, nonnegative_features=problem.nonnegative_features
    )


def path_of(problem: Problem, vary: str, bounds: Any = None) -> Path:
    """Return the path of problems on which one number is varied.

    Args:
        problem: of one layer, with a convex loss and a feature dimension that holds the minimiser.
        vary: what to vary, by a name of this module's list.
        bounds: the range of values, two increasing numbers; None, or None in place of one of them, for a wide range.

    Raises:
        ValueError: where the problem is of another kind, or the arguments do not fit it.
    """
    check_group_form(problem)
    counts, sizes, loss = _groups(problem)
    regularizer = problem.regularizer
    minority, majority = _small_and_large(counts, sizes, problem.nonnegative_features)
    ball = isinstance(regularizer, NormBall)
    weights, features = float(regularizer.per_layer(1)[0]), float(regularizer.features)
    limits, logarithmic = (0.0, math.inf), True
    upward: bool | None = None
    given: Any
    wide: tuple[Any, Any]
    if vary in BY_COUNT and (minority is None or len(counts) < 2):
        raise ValueError(
            f"`vary` = {vary!r} needs two groups of classes, the smaller one of at least two classes; got "
            f"{', '.join(f'{size:g} x {count:g}' for size, count in zip(sizes, counts, strict=True))}."
        )
    if vary == "imbalance_ratio":
        given, wide, upward = counts[majority] / counts[minority], (1.0, FAR), True
    elif vary == "minority_count":
        given, wide, upward = counts[minority], (counts[majority] / FAR, counts[majority]), False
    elif vary == "majority_count":
        given, wide, upward = counts[majority], (counts[minority], counts[minority] * FAR), True
    elif vary == "num_minority":
        together = sizes[minority] + sizes[majority]
        given, wide, upward = sizes[minority], (min(2.0, together / 2), together - 1), False
        limits = (1.0, together)
    elif vary == "weight_decay":
        if ball:
            raise ValueError("`vary` = 'weight_decay' needs weight decay; vary 'regularizer.weights' of a norm ball.")
        given, upward = float(np.sqrt(weights) * np.sqrt(features)), True
        wide = (given * 1e-6, given * 1e6)
    elif vary in ("regularizer.weights", "regularizer.features"):
        given, upward = weights if vary.endswith("weights") else features, not ball
        # A ball of a hundred times the size has margins of the same order, and losses beyond the floating-point range.
        wide = (given * 1e-4, given * 1e2) if ball else (given * 1e-8, given * 1e8)
    elif isinstance(vary, str) and vary.startswith("loss."):
        name = vary.split(".")[-1]
        given, logarithmic = _loss_parameter(loss, vary), False
        wide = LOSS_RANGES.get(name, LOSS_RANGE)
        limits = (wide[0], 1.0) if name in LOSS_RANGES else (0.0, math.inf)
    else:
        raise ValueError(f"`vary` must be one of {', '.join(NAMES)} or loss.<parameter>, got {vary!r}.")
    return Path(
        problem,
        vary,
        counts,
        sizes,
        loss,
        regularizer,
        minority,
        majority,
        float(given),
        _checked_bounds(bounds, (float(wide[0]), float(wide[1])), limits, logarithmic),
        limits,
        logarithmic,
        upward,
    )


def check_group_form(problem: Any) -> None:
    """Raise ValueError where group resolution is not exact."""
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a ufm.Problem, got {problem!r}.")
    if not has_group_form(problem):
        raise ValueError(
            "`problem` must have one layer, a convex loss and a feature dimension that holds the minimiser (d >= K - 1, or K where the loss "
            f"sees a shift of all logits or the features are non-negative); got {problem.num_layers} layers, {type(problem.loss).__name__}, "
            f"d = {problem.feature_dim}, K = {problem.num_classes}."
        )


def _groups(problem: Problem) -> tuple[np.ndarray, np.ndarray, Loss]:
    """Return the groups of interchangeable classes, or the stated ones where all classes are interchangeable: they need not stay so."""
    counts, sizes, loss, _ = interchangeable(problem)
    classes = problem.class_counts
    per_group = all(np.shape(leaf) in ((), (classes.num_groups,)) for leaf in jax.tree.leaves(problem.loss))
    if len(counts) == 1 < classes.num_groups < classes.num_classes and per_group:
        return np.asarray(classes.counts), np.asarray(classes.sizes, float), problem.loss
    return np.asarray(counts, float), np.asarray(sizes, float), loss


def _small_and_large(counts: np.ndarray, sizes: np.ndarray, singles: bool) -> tuple[int | None, int]:
    """Return the last of the smallest groups of several classes, and the first of the largest others."""
    several = np.flatnonzero((sizes > 1) | singles)
    minority = None if several.size == 0 else int(several[::-1][np.argmin(counts[several[::-1]])])
    if minority is not None and counts[minority] == counts.max() > counts.min():
        minority = None  # the smaller ones are single classes
    others = np.delete(np.arange(len(counts)), [] if minority is None else [minority])
    return minority, int(others[np.argmax(counts[others])]) if others.size else 0


def _loss_parameter(loss: Loss, vary: str) -> float:
    try:
        value = _leaf(loss, vary.split(".")[1:])
    except AttributeError:
        value = None
    if not isinstance(value, (np.ndarray, np.generic)) or np.shape(value) != ():
        raise ValueError(f"`vary` = {vary!r} must name a scalar parameter of the loss, which {loss!r} does not have.")
    return float(value)


def _leaf(tree: Any, names: Sequence[str]) -> Any:
    for name in names:
        tree = getattr(tree, name)
    return tree


def _checked_bounds(
    bounds: Any, wide: tuple[float, float], limits: tuple[float, float], positive: bool
) -> tuple[float, float]:
    if bounds is None:
        return wide
    try:
        low, high = (float(default if bound is None else bound) for bound, default in zip(bounds, wide, strict=True))
    except (TypeError, ValueError):
        raise ValueError(f"`bounds` must be two increasing numbers, got {bounds!r}.") from None
    inside = limits[0] <= low < high <= limits[1] and np.isfinite(high) and (low > 0 or not positive)
    if not inside or (np.isfinite(limits[1]) and high == limits[1]):
        raise ValueError(
            f"`bounds` must be two finite increasing numbers between {limits[0]:g} and {limits[1]:g} (exclusive), got {bounds!r}."
        )
    return low, high
