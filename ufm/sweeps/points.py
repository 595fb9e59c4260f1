"""The points of a sweep, on a grid or in a list.

Each point is a problem with some of its numbers or its structure replaced. The names are those of
`ufm.problems.VARIABLES`. `seed` changes the initial points, and nothing else.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from ufm._support import ArgumentError, check_instance, check_numbers, check_one_of, is_whole
from ufm.problems import (
    VARIABLES,
    Loss,
    Problem,
    Targets,
    Variable,
    check_column,
    family_of,
    is_library_loss,
    parameter_of,
    parts_of,
    problem_with,
    variable_of,
)

__all__ = ["Axis", "Points", "points_of"]


class Axis(NamedTuple):
    """An axis of a sweep: the name of a variable, and its values in order.

    Attributes:
        name: The name of the variable.
        values: The values.
        labels: What values that are targets are called: numbers or texts; None for others.
    """

    name: str
    values: Any
    labels: Any = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def variable(self) -> Variable:
        """What is varied."""
        return _known(self.name)

    @property
    def structural(self) -> bool:
        """Whether it changes the structure of the problem."""
        return self.variable.structural

    @property
    def coordinate(self) -> np.ndarray:
        """Labels of the values: numbers, names of losses and activations, or the row number."""
        if self.labels is not None:
            return np.asarray(self.labels)
        if self.name == "class_counts":
            return np.arange(len(self))
        if self.name == "loss":
            return np.array([loss.label for loss in self.values])
        return np.asarray(self.values)


class Points(NamedTuple):
    """The points of a sweep in row-major order of the axes; along one dimension if zipped.

    Attributes:
        problem: The problem with the values that are not varied.
        axes: The varied numbers and structures.
        zipped: Whether the axes vary together.
    """

    problem: Problem
    axes: tuple[Axis, ...]
    zipped: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each dimension."""
        lengths = tuple(len(axis) for axis in self.axes)
        return lengths[:1] if self.zipped else lengths

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return ("point",) if self.zipped else tuple(axis.name for axis in self.axes)

    @property
    def size(self) -> int:
        """How many points there are."""
        return int(np.prod(self.shape))

    def columns(self, flat: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Return the values of every axis at points, by their position in row-major order."""
        where = [flat] * len(self.axes) if self.zipped else np.unravel_index(flat, self.shape)
        return {
            axis.name: [axis.values[i] for i in index] if axis.structural else axis.values[index]
            for axis, index in zip(self.axes, where, strict=True)
        }

    def part(self, flat: Int[np.ndarray, " n"]) -> "Points":
        """Return some of the points, as a list."""
        columns = self.columns(flat)
        return Points(
            self.problem, tuple(Axis(axis.name, columns[axis.name]) for axis in self.axes), True
        )

    def by_structure(
        self, flat: Int[np.ndarray, " n"]
    ) -> list[tuple[Problem, np.ndarray, dict[str, np.ndarray]]]:
        """Return the points by structure: problem, indices of its points, and their numbers."""
        columns = self.columns(flat)
        structural = [axis for axis in self.axes if axis.structural]
        numbers = {axis.name: columns[axis.name] for axis in self.axes if not axis.structural}
        if not structural:
            return [(self.problem, np.arange(len(flat)), numbers)]
        # Losses are told apart by their place on the axis.
        where = [flat] * len(self.axes) if self.zipped else np.unravel_index(flat, self.shape)
        keys = np.stack(
            [index for axis, index in zip(self.axes, where, strict=True) if axis.structural]
        )
        _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        found = []
        for kind, representative in enumerate(first):
            members = np.flatnonzero(np.ravel(inverse) == kind)
            problem = problem_with(
                self.problem, {axis.name: columns[axis.name][representative] for axis in structural}
            )
            found.append(
                (problem, members, {name: values[members] for name, values in numbers.items()})
            )
        return found

    def structures(self) -> list[Problem]:
        """Return every problem that differs from the others in more than numbers."""
        structural = [axis for axis in self.axes if axis.structural]
        rows = [axis.values for axis in structural]
        combinations = (
            zip(*rows, strict=True) if self.zipped and structural else itertools.product(*rows)
        )
        seen: dict[Any, Problem] = {}
        for values in combinations:
            key = tuple(_text(value) for value in values)
            if key not in seen:
                names = [axis.name for axis in structural]
                seen[key] = problem_with(self.problem, dict(zip(names, values, strict=True)))
        return list(seen.values())

    def fingerprint(self) -> str:
        """Return a digest of the problem and of all values, by which a store is recognised."""
        digest = hashlib.sha256()
        for tree in (self.problem, self.zipped, *self.axes):
            digest.update(_text(tree).encode())
        return digest.hexdigest()


def points_of(problem: Problem, over: Mapping[str, Any], how: str = "grid") -> Points:
    """Return the points of a sweep.

    Args:
        problem: The problem. What is not varied stays as it is here.
        over: Values by name.
        how: "grid", every combination; "zip", the first values of all together, then the second,
            and so on.

    Raises:
        ValueError: Naming what cannot be varied, or a value that is not possible.
    """
    check_instance("problem", problem, Problem)
    if not isinstance(over, Mapping) or not over:
        raise ArgumentError(
            "over",
            "must be a dictionary of names and values, such as {'weight_decay': [1e-4, 1e-3]}",
            over,
        )
    check_one_of("how", how, ("grid", "zip"))
    axes = tuple(_axis(problem, str(name), values) for name, values in over.items())
    lengths = {axis.name: len(axis) for axis in axes}
    if how == "zip" and len(set(lengths.values())) > 1:
        raise ArgumentError(
            "over", f"must have as many values for every name with how='zip', got {lengths}"
        )
    _check_apart(axes)
    for axis in axes if how == "grid" else ():
        if (
            not axis.structural
            and axis.name != "class_counts"
            and len(np.unique(axis.values)) < len(axis)
        ):
            raise ArgumentError(
                f"over[{axis.name!r}]",
                f"must have every value once, got {np.asarray(axis.values).tolist()}",
            )
    points = Points(problem, axes, how == "zip")
    numbers = {
        axis.name: axis.values for axis in axes if not axis.structural and axis.name != "seed"
    }
    for structure in points.structures():
        for name, values in numbers.items():
            # Whatever is wrong with a number is said before anything is solved.
            family_of(structure, {name: values})
            if name.startswith("loss."):
                _check_loss_parameter(structure.loss, name, values)
    return points


def _axis(problem: Problem, name: str, values: Any) -> Axis:
    argument = f"over[{name!r}]"
    if isinstance(values, Mapping) and name.partition(".")[0] == "targets":
        return _axis_of_targets(name, values)
    if isinstance(values, (str, bytes)) or not isinstance(
        values, (Sequence, np.ndarray, jax.Array)
    ):
        raise ArgumentError(argument, "must be a sequence of values", values)
    if isinstance(values, (np.ndarray, jax.Array)) and values.ndim == 0:
        raise ArgumentError(argument, f"must be a sequence of values, got one number, {values}")
    if len(values) == 0:
        raise ArgumentError(argument, "must have at least one value, got none")
    variable = variable_of(name)
    if variable is not None and variable.structural:
        found = tuple(_structural(variable, value) for value in values)
        named = tuple(map(str, range(len(found)))) if isinstance(found[0], Targets) else None
        return Axis(name, found, named)
    if name == "seed":
        if not all(is_whole(value, 0) for value in values):
            raise ArgumentError(argument, "must be whole numbers of at least 0", values)
        return Axis(name, np.asarray(values, np.int64))
    if name == "class_counts":
        values = [np.asarray(row, np.float64) for row in values]
        if any(np.shape(row) != (problem.num_classes,) for row in values):
            raise ArgumentError(
                argument, f"must be rows of {problem.num_classes} counts, one per class"
            )
    try:
        column = np.asarray(values)
    except ValueError:  # rows of different lengths
        column = np.array("ragged")
    if column.dtype.kind not in "iuf":
        raise ArgumentError(argument, "must be numbers", values)
    column = column.astype(np.float64)
    variable = _known(name)
    check_column(problem, name, column, len(column))
    if np.any(column < variable.sweep_from):
        raise ArgumentError(
            argument,
            f"must be at least {variable.sweep_from:g}, {variable.symbol}, got {column.min():g}; "
            "state the groups the other way round instead",
        )
    return Axis(name, column)


def _axis_of_targets(name: str, values: Mapping[Any, Any]) -> Axis:
    """Return an axis of targets by what they are called: all of them numbers, or all texts."""
    variable, labels = _known(name), tuple(values)
    if not labels:
        raise ArgumentError(f"over[{name!r}]", "must have at least one value, got none")
    texts = all(isinstance(label, str) for label in labels)
    if not texts:
        try:
            check_numbers("label", np.array(labels), several=True)
        except ValueError:
            raise ArgumentError(
                f"over[{name!r}]", "must have numbers, or texts, as keys", list(labels)
            ) from None
        labels = tuple(map(float, labels))
    return Axis(name, tuple(_structural(variable, value) for value in values.values()), labels)


def _check_loss_parameter(loss: Loss, name: str, values: np.ndarray) -> None:
    """Raise ValueError where a value is outside the range that the loss states.

    A search for a threshold may evaluate the limit of the range. A sweep solves every point, so all
    its values must be ones that the loss accepts.
    """
    parameter = parameter_of(loss, name.split(".")[1:])
    check_numbers(
        f"over[{name!r}]", values, several=True, lower=parameter.lower, below=parameter.below
    )


def _known(name: str) -> Variable:
    variable = variable_of(name)
    if variable is None:
        known = ", ".join(variable.name for variable in VARIABLES)
        raise ArgumentError("over", f"cannot vary {name!r}; it can vary {known}")
    return variable


def _structural(variable: Variable, value: Any) -> Any:
    if not variable.admits(value):
        raise ArgumentError(f"over[{variable.name!r}]", f"must be {variable.wanted}", value)
    return value.item() if isinstance(value, np.generic) else value


def _check_apart(axes: tuple[Axis, ...]) -> None:
    """Raise ValueError where two axes would set the same numbers."""
    names = {axis.name for axis in axes}
    both = [axis.name for axis in axes if axis.name.partition(".")[0] == "targets"]
    if len(both) > 1:
        raise ArgumentError(
            "over", f"sets the targets by {both[0]!r} and {both[1]!r}; leave one of them out"
        )
    for axis in axes:
        clash = [other for other in axis.variable.same_numbers if other in names]
        if clash:
            raise ArgumentError(
                "over",
                f"sets the same numbers by {axis.name!r} and {clash[0]!r}; leave one of them out",
            )
    if "loss" in names and any(name.startswith("loss.") for name in names):
        raise ArgumentError(
            "over",
            "sets the loss's numbers by 'loss' and 'loss.<parameter>'; leave one of them out",
        )


def _text(tree: Any) -> str:
    """Return a text that tells trees apart, to the last bit of their numbers."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [
        leaf.tobytes().hex() + str(np.shape(leaf)) if isinstance(leaf, np.ndarray) else repr(leaf)
        for leaf in leaves
    ]
    return f"{structure} {' '.join([*parts, *_foreign_losses(tree)])}"


def _foreign_losses(tree: Any) -> list[str]:
    """Return the full names of losses that are not the library's.

    A structure's text has their short names, which may be the same.
    """
    losses = [
        leaf
        for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Loss))
        if isinstance(leaf, Loss)
    ]
    foreign = [
        type(part) for loss in losses for part in parts_of(loss) if not is_library_loss(part)
    ]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in foreign]
