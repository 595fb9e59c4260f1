r"""Families of problems: some numbers of a problem varied, everything else fixed, as batches over groups of classes.

What can be varied, by name, with the values that it takes:

    imbalance_ratio       R = n_max / n_min of the majority and the minority, the majority's count fixed; where every class has its own size,
                          n_max / n_min of the whole tail, whose logarithms are stretched
    weight_decay          sqrt(lambda_W lambda_H), both penalties times one factor (the geometric mean of all penalties of a deep model)
    num_minority          the number of minority classes, K fixed: what they gain the majority loses; a real number
    minority_count, majority_count         n_min, n_max
    regularizer.weights, regularizer.features          lambda_W, lambda_H, or E_W, E_H of the norm balls
    loss.<parameter>      a scalar parameter of the loss, such as loss.alpha, loss.exponent, loss.strength

The minority is the smallest group of at least two classes (of any number where the features are
non-negative, and single classes can vanish), the majority the largest other group. Which is which
is decided at the problem as it is given, and kept along the path.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from ufm._support import ArgumentError, rebuilt
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.from_words import did_you_mean
from ufm.problems.groups import GroupProblem, check_group_form, interchangeable, over_groups
from ufm.problems.losses import Loss
from ufm.problems.problem import Problem
from ufm.problems.regularizers import NormBall, WeightDecay

__all__ = [
    "NAMES",
    "Family",
    "Path",
    "check_column",
    "family_of",
    "groups_of",
    "minority_of",
    "path_of",
    "tail_of",
    "varied",
]

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

    counts, sizes, loss, regularizer: at the given problem. minority, majority: indices of groups;
    minority is None where there is none. given: the value that the problem itself has. bounds: the
    range to search. limits: what the number must stay between. logarithmic: whether the number is
    varied on a logarithmic scale. upward: whether more of it is more of a collapse, None where that
    depends.
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
        return varied(
            self.problem,
            {self.vary: np.atleast_1d(self.value(np.asarray(coordinates, np.float64)))},
        )


def minority_of(problem: Problem) -> tuple[int, int | None]:
    """Return the groups of the majority and of the minority, by their index; None where no group can be one."""
    counts, sizes, _, _ = _groups(problem)
    minority, majority = _small_and_large(counts, sizes, problem.nonnegative_features)
    return majority, minority


class Family(NamedTuple):
    """Problems that differ in numbers only: the fields of B of them over the groups of classes, batch axes last.

    problem: what they have in common. counts, sizes: (G, B). loss: its numbers (B,) or (G, B).
    regularizer: its numbers (B,), those of the layers (L, B). groups: (K,), the group of every
    class as the problem was stated.
    """

    problem: Problem
    counts: Float[np.ndarray, "G B"]
    sizes: Float[np.ndarray, "G B"]
    loss: Loss
    regularizer: WeightDecay | NormBall
    groups: Int[np.ndarray, " K"]

    @property
    def length(self) -> int:
        """B."""
        return self.counts.shape[1]

    @property
    def has_whole_classes(self) -> bool:
        """Whether every group of every problem is a whole number of classes."""
        return bool(np.all(self.sizes == np.round(self.sizes)))

    @property
    def members(self) -> Int[np.ndarray, "B K"]:
        """The group of every class of every problem, for whole numbers of classes; group after group where the sizes of groups vary."""
        if np.all(self.sizes == np.bincount(self.groups, minlength=len(self.sizes))[:, None]):
            return np.broadcast_to(self.groups, (self.length, self.groups.size))
        return np.stack(
            [np.repeat(np.arange(len(column)), column.astype(int)) for column in self.sizes.T]
        )

    def over_groups(self) -> GroupProblem:
        """Return the problems over their groups: a batch, its axis last."""
        flags = {
            "use_bias": self.problem.use_bias,
            "nonnegative_features": self.problem.nonnegative_features,
        }
        return over_groups(self.counts, self.sizes, self.loss, self.regularizer, **flags)

    def over_classes(self) -> Problem:
        """Return the problems with one count per class: a batch, the first axis of all leaves.

        Raises:
            ValueError: for parts of classes.
        """
        if not self.has_whole_classes:
            raise ArgumentError(
                "over['num_minority']",
                "must be whole numbers where classes are solved one by one; use "
                "resolution='groups' for real ones",
            )
        lanes, members = np.arange(self.length)[:, None], self.members
        classes = self.problem.class_counts
        return rebuilt(
            self.problem,
            class_counts=rebuilt(
                classes, counts=self.counts.T[lanes, members], sizes=(1,) * classes.num_classes
            ),
            loss=jax.tree.map(
                lambda leaf: leaf.T[lanes, members] if leaf.ndim == 2 else leaf, self.loss
            ),
            regularizer=jax.tree.map(np.transpose, self.regularizer),
        )

    def at(self, index: int) -> Problem:
        """Return one of the problems, of whole numbers of classes, group after group."""
        fields = (self.counts, self.sizes, self.loss, self.regularizer)
        counts, sizes, loss, regularizer = jax.tree.map(lambda leaf: leaf[..., index], fields)
        groups = ClassGroups(counts, tuple(int(size) for size in sizes))
        return rebuilt(self.problem, class_counts=groups, loss=loss, regularizer=regularizer)


def varied(problem: Problem, over: Mapping[str, Any]) -> GroupProblem:
    """Return a problem over its groups with some numbers varied together: a batch, its axis last.

    Args:
        problem: of one layer, with a convex loss and room for the convex minimiser.
        over: values, (B,) arrays of one length or numbers, by the names of this module's list.

    Raises:
        ValueError: for a name that the problem does not have, or values that it cannot take.
    """
    check_problem(problem)
    return family_of(problem, over).over_groups()


def family_of(problem: Problem, over: Mapping[str, Any], length: int = 1) -> Family:
    """Return a problem with some numbers varied together.

    Args:
        problem: any problem.
        over: values, (B,) arrays of one length or numbers, by the names of this module's list, and
            `class_counts`, (B, K).
        length: B, where `over` has no arrays.

    Raises:
        ValueError: for a name that the problem does not have, or values that it cannot take.
    """
    columns = {name: np.atleast_1d(np.asarray(values, np.float64)) for name, values in over.items()}
    length = max((len(column) for column in columns.values()), default=length)
    for name, column in columns.items():
        check_column(problem, name, column, length)
    stated_counts, stated_sizes, loss, groups = _groups(problem)
    if "class_counts" in columns:
        # Classes of equal counts are told apart here: they need not have equal ones everywhere.
        stated_counts, stated_sizes, groups = (
            np.asarray(problem.class_counts),
            np.ones(problem.num_classes),
            np.arange(problem.num_classes),
        )
        loss = problem.loss.per_class(problem.class_counts)
    minority, majority = _small_and_large(stated_counts, stated_sizes, problem.nonnegative_features)
    counts, sizes = (
        np.repeat(part[:, None], length, axis=1) for part in (stated_counts, stated_sizes)
    )
    if "class_counts" in columns:
        counts = np.array(
            np.broadcast_to(columns.pop("class_counts"), (length, problem.num_classes)).T
        )
    layers = np.asarray(problem.regularizer.per_layer(problem.num_layers), np.float64)
    features = float(problem.regularizer.features)

    def repeated(leaf: Any) -> np.ndarray:
        return np.repeat(np.asarray(leaf, np.float64)[..., None], length, axis=-1)

    loss = jax.tree.map(repeated, loss)
    regularizer: Any = jax.tree.map(repeated, rebuilt(problem.regularizer, weights=layers))
    # The majority's count first: a ratio is relative to it.
    for name in sorted(columns, key=lambda name: name == "imbalance_ratio"):
        column = np.broadcast_to(columns[name], (length,))
        owner, *path = name.split(".")
        if name == "imbalance_ratio" and tail_of(problem):
            top, bottom = stated_counts.max(), stated_counts.min()
            position = np.log(stated_counts / top) / np.log(bottom / top)
            counts = counts.max(axis=0) * column ** -position[:, None]
        elif name in BY_COUNT and (minority is None or len(stated_counts) < 2):
            raise ValueError(
                f"{name!r} can only be varied with two groups of classes, the smaller one of at least two classes."
            )
        elif name == "imbalance_ratio":
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
            # Their geometric mean, sqrt(lambda_W lambda_H) for one layer.
            factor = column / np.exp(
                (np.sum(np.log(layers)) + np.log(features)) / (len(layers) + 1)
            )
            regularizer = rebuilt(
                regularizer, weights=layers[:, None] * factor, features=features * factor
            )
        elif owner == "regularizer" and len(path) == 1 and hasattr(regularizer, path[0]):
            per_layer = np.broadcast_to(column, (len(layers), length))
            regularizer = rebuilt(
                regularizer, **{path[0]: per_layer if path[0] == "weights" else column}
            )
        elif owner == "loss":
            _loss_parameter(problem.loss, name)
            loss = eqx.tree_at(functools.partial(_leaf, names=path), loss, column)
        else:
            raise ValueError(
                f"cannot vary {name!r}: the numbers are {', '.join(NAMES)}, regularizer.bias and loss.<parameter>."
            )
    return Family(problem, counts, sizes, loss, regularizer, groups)


def check_column(problem: Problem, name: str, column: np.ndarray, length: int) -> None:
    """Raise ValueError where values of one number are not a column of `length` numbers that it can take."""
    if name == "class_counts":
        if column.shape not in ((1, problem.num_classes), (length, problem.num_classes)):
            raise ArgumentError(
                "over['class_counts']",
                f"must be rows of {problem.num_classes} counts, one per class; got shape "
                f"{column.shape}",
            )
    elif column.ndim != 1 or column.size not in (1, length):
        raise ArgumentError(
            f"over[{name!r}]",
            f"must be a flat sequence of {length} numbers or one, got shape {column.shape}",
        )
    free = name.startswith("loss.") or name == "regularizer.bias"
    if not np.all(np.isfinite(column)) or (np.any(column <= 0) and not free):
        raise ArgumentError(
            f"over[{name!r}]",
            f"must be positive and finite, got {column.min():g} to {column.max():g}",
        )


def groups_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and sizes of the groups of classes, which are varied as one: (G,) each."""
    counts, sizes, _, _ = _groups(problem)
    return counts, sizes


def tail_of(problem: Problem) -> bool:
    """Whether the classes are a tail: three sizes or more, each of one class, which a ratio stretches on the logarithmic scale."""
    counts, sizes, _, _ = _groups(problem)
    return len(counts) > 2 and bool(np.all(sizes == 1)) and bool(counts.max() > counts.min())


def path_of(problem: Problem, vary: str, bounds: Any = None) -> Path:
    """Return the path of problems on which one number is varied.

    Args:
        problem: of one layer, with a convex loss and a feature dimension that holds the minimiser.
        vary: what to vary, by a name of this module's list.
        bounds: the range of values, two increasing numbers; None, or None in place of one of them,
            for a wide range.

    Raises:
        ValueError: where the problem is of another kind, or the arguments do not fit it.
    """
    check_problem(problem)
    counts, sizes, loss, _ = _groups(problem)
    regularizer = problem.regularizer
    minority, majority = _small_and_large(counts, sizes, problem.nonnegative_features)
    ball = isinstance(regularizer, NormBall)
    weights, features = float(regularizer.per_layer(1)[0]), float(regularizer.features)
    limits, logarithmic = (0.0, math.inf), True
    upward: bool | None = None
    given: Any
    wide: tuple[Any, Any]
    if not isinstance(vary, str):
        raise ArgumentError("vary", "must be the name of a number, such as 'imbalance_ratio'", vary)
    if vary in BY_COUNT and (minority is None or len(counts) < 2):
        raise ArgumentError(
            "vary",
            f"= {vary!r} needs two groups of classes, the smaller one of at least two "
            "classes; got "
            f"{', '.join((f'{size:g} x {count:g}' for size, count in zip(sizes, counts, strict=True)))}",
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
            raise ArgumentError(
                "vary",
                "= 'weight_decay' needs weight decay; vary 'regularizer.weights' of a norm ball",
            )
        given, upward = float(np.sqrt(weights) * np.sqrt(features)), True
        wide = (given * 1e-6, given * 1e6)
    elif vary in ("regularizer.weights", "regularizer.features"):
        given, upward = weights if vary.endswith("weights") else features, not ball
        # A ball of a hundred times the size has margins of the same order, and losses beyond the
        # floating-point range.
        wide = (given * 1e-4, given * 1e2) if ball else (given * 1e-8, given * 1e8)
    elif isinstance(vary, str) and vary.startswith("loss."):
        name = vary.split(".")[-1]
        given, logarithmic = _loss_parameter(loss, vary), False
        wide = LOSS_RANGES.get(name, LOSS_RANGE)
        limits = (wide[0], 1.0) if name in LOSS_RANGES else (0.0, math.inf)
    else:
        names = ", ".join(NAMES)
        raise ArgumentError(
            "vary",
            f"must be one of {names} or loss.<parameter>, got "
            f"{vary!r}{did_you_mean(str(vary), NAMES)}",
        )
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


def check_problem(problem: Any) -> None:
    """Raise ValueError for what is no problem, or one for which group resolution is not exact."""
    if not isinstance(problem, Problem):
        raise ArgumentError("problem", "must be a ufm.Problem", problem)
    check_group_form(problem, "`problem` must have")


def _groups(problem: Problem) -> tuple[np.ndarray, np.ndarray, Loss, np.ndarray]:
    """Return the groups of interchangeable classes, or the stated ones where all classes are interchangeable: they need not stay so.

    Counts, sizes, the loss by group, and the group of every class.
    """
    counts, sizes, loss, groups = interchangeable(problem)
    classes = problem.class_counts
    per_group = all(
        np.shape(leaf) in ((), (classes.num_groups,)) for leaf in jax.tree.leaves(problem.loss)
    )
    if len(counts) == 1 < classes.num_groups < classes.num_classes and per_group:
        stated = np.repeat(np.arange(classes.num_groups), classes.sizes)
        return np.asarray(classes.counts), np.asarray(classes.sizes, float), problem.loss, stated
    return np.asarray(counts, float), np.asarray(sizes, float), loss, np.asarray(groups)


def _small_and_large(
    counts: np.ndarray, sizes: np.ndarray, singles: bool
) -> tuple[int | None, int]:
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
        raise ArgumentError(
            "vary",
            f"= {vary!r} must name a scalar parameter of the loss, which {loss!r} does not have",
        )
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
        low, high = (
            float(default if bound is None else bound)
            for bound, default in zip(bounds, wide, strict=True)
        )
    except (TypeError, ValueError):
        raise ArgumentError("bounds", "must be two increasing numbers", bounds) from None
    inside = (
        limits[0] <= low < high <= limits[1] and np.isfinite(high) and (low > 0 or not positive)
    )
    if not inside or (np.isfinite(limits[1]) and high == limits[1]):
        raise ArgumentError(
            "bounds",
            f"must be two finite increasing numbers between {limits[0]:g} and {limits[1]:g} "
            "(exclusive)",
            bounds,
        )
    return low, high
