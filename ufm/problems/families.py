r"""The variables of a problem, and families of problems that differ in them.

`VARIABLES` is the registry. Sweeps, thresholds, phase diagrams, mitigations, pictures and the
command line read it; a new axis is one entry.

Numbers are varied within one batch of problems over groups of classes. Two of them speak of a
minority and a majority. The minority is the smallest group of at least two classes (of any number
where the features are non-negative, and single classes can vanish), the majority the largest other
group. Which is which is decided at the problem as it is given, and kept along the family. Structure
is what compiled code depends on: every value makes another problem.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from ufm._support import (
    ArgumentError,
    check_instance,
    check_numbers,
    did_you_mean,
    is_whole,
    rebuilt,
)
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.groups import GroupProblem, check_group_form, interchangeable, over_groups
from ufm.problems.losses import Loss
from ufm.problems.losses.library import parameter_of
from ufm.problems.problem import ACTIVATIONS, Problem
from ufm.problems.targets import Targets

__all__ = [
    "SEARCHED",
    "VARIABLES",
    "Family",
    "OneParameterFamily",
    "Variable",
    "check_classes",
    "check_column",
    "family_of",
    "groups_of",
    "minority_of",
    "one_parameter_family",
    "price_search",
    "problem_with",
    "variable_of",
    "varied",
]

OF_CLASS_COUNTS = (
    "class_counts",
    "imbalance_ratio",
    "num_minority",
    "minority_count",
    "majority_count",
)
PRICES = ("weight_decay", "regularizer.weights", "regularizer.features")
FAR = 1e8  # factor of the widest range of counts that is searched


class Groups(NamedTuple):
    """The groups of interchangeable classes of a problem, which are varied as one.

    Attributes:
        problem: The problem.
        counts: Samples per class, shape (G,).
        sizes: Number of classes, shape (G,).
        loss: The loss, its parameters per group.
        groups: The group of every class, shape (K,).
        minority: Index of the smallest group of several classes; None if there is none.
        majority: Index of the largest other group.
    """

    problem: Problem
    counts: np.ndarray
    sizes: np.ndarray
    loss: Loss
    groups: np.ndarray
    minority: int | None
    majority: int

    @property
    def is_tail(self) -> bool:
        """Whether there are three class sizes or more, each of one class.

        A ratio stretches such a tail on the logarithmic scale.
        """
        single = len(self.counts) > 2 and bool(np.all(self.sizes == 1))
        return single and bool(self.counts.max() > self.counts.min())

    def two(self, argument: str, value: str = "") -> tuple[int, int]:
        """Return the indices of the majority and the minority.

        Args:
            argument: The argument that asks for them.
            value: Its value, where the argument's name does not say what is varied.

        Raises:
            ArgumentError: If there are no two such groups.
        """
        if self.minority is None or len(self.counts) < 2:
            rows = zip(self.sizes, self.counts, strict=True)
            raise ArgumentError(
                argument,
                f"{value and f'= {value!r} '}needs two groups of classes, the smaller one of at "
                "least two classes; got "
                f"{', '.join(f'{size:g} x {count:g}' for size, count in rows)}",
            )
        return self.majority, self.minority


class Search(NamedTuple):
    """How a number is searched for a threshold.

    Attributes:
        given: The value that the problem itself has.
        wide: The range to search if none is given.
        upward: Whether more of it is more of a collapse; None where that depends.
        limits: What the number must stay between.
        logarithmic: Whether it is varied on a logarithmic scale.
    """

    given: float
    wide: tuple[float, float]
    upward: bool | None = None
    limits: tuple[float, float] = (0.0, math.inf)
    logarithmic: bool = True


@final
@dataclasses.dataclass(frozen=True)
class Variable:
    """Something of a problem that can be varied.

    Attributes:
        name: Its name in `over` of a sweep, `vary` of a threshold and the axes of phase diagrams.
        label: What it is, in words.
        symbol: Its formula, in the letters of the atlas; empty if the label says it all.
        tex: The formula in pictures, where a picture needs it.
        set_number: Puts a column of B values into a family; None for structure.
        search: How it is searched for a threshold, from the groups of a problem; None if it is not.
        set_field: Puts one value into the fields of a problem; None for numbers.
        admits: Whether one value of a structure is possible.
        wanted: What the values of a structure must be, in words.
        positive: Whether a number must be positive.
        sweep_from: Least value in a sweep.
        whole: Whether values are whole numbers.
        counted: Whether it counts things: a threshold in it has a first whole number, and starts
            are not interpolated along it.
        common_factor: Whether it multiplies several numbers by one factor.
        same_numbers: Other variables that set the same numbers.
        hardness: How the difficulty of a solve grows with the logarithm of the value, relative to
            that with the inverse of a penalty.
    """

    name: str
    label: str
    symbol: str = ""
    tex: str = ""
    set_number: Callable[["Family", np.ndarray], "Family"] | None = None
    search: Callable[[Groups], Search] | None = None
    set_field: Callable[[dict[str, Any], Any], None] | None = None
    admits: Callable[[Any], bool] = bool
    wanted: str = ""
    positive: bool = True
    sweep_from: float = -math.inf
    whole: bool = False
    counted: bool = False
    common_factor: bool = False
    same_numbers: tuple[str, ...] = ()
    hardness: float = 0.0

    @property
    def structural(self) -> bool:
        """Whether it changes the structure of the problem, not only its numbers."""
        return self.set_field is not None

    @property
    def short(self) -> str:
        """The name, or the formula of a common factor, which its name does not tell."""
        return self.symbol if self.common_factor else self.name

    @property
    def picture_label(self) -> str:
        """The label in pictures."""
        return f"{self.label} ${self.tex}$" if self.tex else self.label

    @property
    def meaning(self) -> str:
        """The label, with the formula in parentheses."""
        return f"{self.label} ({self.symbol})" if self.symbol else self.label


# Numbers: how a column of values is put into a batch, and how a threshold is searched.


def _set_ratio(family: "Family", column: np.ndarray) -> "Family":
    stated = family.stated
    if stated.is_tail:
        top, bottom = stated.counts.max(), stated.counts.min()
        position = np.log(stated.counts / top) / np.log(bottom / top)
        counts = family.counts.max(axis=0) * column ** -position[:, None]
        return family._replace(counts=counts)
    majority, minority = stated.two("over['imbalance_ratio']")
    return _with_counts(family, minority, family.counts[majority] / column)


def _set_count(which: int, family: "Family", column: np.ndarray) -> "Family":
    """Set the count of the majority (`which` = 0) or of the minority (1)."""
    name = ("majority_count", "minority_count")[which]
    return _with_counts(family, family.stated.two(f"over['{name}']")[which], column)


def _with_counts(family: "Family", group: int, column: np.ndarray) -> "Family":
    counts = np.array(family.counts)
    counts[group] = column
    return family._replace(counts=counts)


def _set_num_minority(family: "Family", column: np.ndarray) -> "Family":
    majority, minority = family.stated.two("over['num_minority']")
    sizes = np.array(family.sizes)
    together = sizes[majority] + sizes[minority]
    if np.any(column >= together):
        raise ArgumentError(
            "over['num_minority']",
            f"must stay below {together[0]:g}, the classes of both groups; got {column.max():g}",
        )
    sizes[majority], sizes[minority] = together - column, column
    return family._replace(sizes=sizes)


def _set_weight_decay(family: "Family", column: np.ndarray) -> "Family":
    regularizer = family.regularizer
    if not regularizer.halves_squares:
        raise ArgumentError(
            "over['weight_decay']",
            "needs the regularizer WeightDecay; vary 'regularizer.features' of a norm ball",
        )
    mean = regularizer.gauge_price(family.problem.num_classes, family.problem.hidden_dims)
    weights, features = (
        part * (column / mean) for part in (regularizer.weights, regularizer.features)
    )
    return family._replace(regularizer=rebuilt(regularizer, weights=weights, features=features))


def _set_of_regularizer(name: str, family: "Family", column: np.ndarray) -> "Family":
    field = name.removeprefix("regularizer.")
    number = getattr(family.regularizer, field, None)
    if not isinstance(number, np.ndarray):
        raise _unknown(name)
    check_numbers(f"over[{name!r}]", column, several=True, lower=0.0)
    values = np.broadcast_to(column, number.shape)
    return family._replace(regularizer=rebuilt(family.regularizer, **{field: values}))


def _set_of_loss(name: str, family: "Family", column: np.ndarray) -> "Family":
    _loss_parameter(family.problem.loss, name)
    leaf = functools.partial(_leaf, names=name.split(".")[1:])
    return family._replace(loss=eqx.tree_at(leaf, family.loss, column))


def _ratio_search(stated: Groups) -> Search:
    majority, minority = stated.two("vary", "imbalance_ratio")
    return Search(stated.counts[majority] / stated.counts[minority], (1.0, FAR), True)


def _minority_count_search(stated: Groups) -> Search:
    majority, minority = stated.two("vary", "minority_count")
    most = stated.counts[majority]
    return Search(stated.counts[minority], (most / FAR, most), False)


def _majority_count_search(stated: Groups) -> Search:
    majority, minority = stated.two("vary", "majority_count")
    least = stated.counts[minority]
    return Search(stated.counts[majority], (least, least * FAR), True)


def _num_minority_search(stated: Groups) -> Search:
    majority, minority = stated.two("vary", "num_minority")
    together = stated.sizes[minority] + stated.sizes[majority]
    wide = min(2.0, together / 2), together - 1
    return Search(stated.sizes[minority], wide, False, (1.0, together))


def _weight_decay_search(stated: Groups) -> Search:
    if not stated.problem.regularizer.halves_squares:
        raise ArgumentError(
            "vary",
            "= 'weight_decay' needs weight decay; vary 'regularizer.weights' of a norm ball",
        )
    given = float(stated.problem.gauge.price)
    return Search(given, (given * 1e-6, given * 1e6), True)


def _regularizer_search(name: str, stated: Groups) -> Search:
    regularizer = stated.problem.regularizer
    ball = regularizer.bounded
    given = float(np.ravel(getattr(regularizer, name.removeprefix("regularizer.")))[0])
    # A ball of a hundred times the size has margins of the same order, and losses beyond the
    # floating-point range.
    wide = (given * 1e-4, given * 1e2) if ball else (given * 1e-8, given * 1e8)
    return Search(given, wide, not ball)


def _loss_search(name: str, stated: Groups) -> Search:
    given = _loss_parameter(stated.loss, name)
    parameter = parameter_of(stated.loss, name.split(".")[1:])
    limits = (0.0, parameter.below)
    return Search(given, parameter.searched, limits=limits, logarithmic=False)


# Structure: how a value is put into the fields of a problem.


def _put(name: str) -> Callable[[dict[str, Any], Any], None]:
    return lambda fields, value: fields.update({name: value})


def _set_num_classes(fields: dict[str, Any], num_classes: int) -> None:
    classes = fields["class_counts"].num_classes
    fields["class_counts"] = _with_classes(fields["problem"], num_classes)
    fields["feature_dim"] = max(fields["feature_dim"] + num_classes - classes, 1)


def _set_depth(fields: dict[str, Any], depth: int) -> None:
    widest = max(fields["feature_dim"], fields["class_counts"].num_classes)
    width = fields["hidden_dims"][0] if fields["hidden_dims"] else widest
    fields["hidden_dims"] = (width,) * (depth - 1)
    weights = np.asarray(getattr(fields["regularizer"], "weights", 0.0))
    if weights.ndim == 1:
        if np.ptp(weights) > 0:
            raise ArgumentError(
                "over['depth']",
                "needs one penalty for all layers, got `regularizer.weights` = "
                f"{weights.tolist()}; give one number",
            )
        fields["regularizer"] = rebuilt(fields["regularizer"], weights=weights[0])


def _with_classes(problem: Problem, num_classes: int) -> ClassGroups:
    """Return the class sizes with every group's share kept, or the shape of a tail."""
    stated = _groups(problem)
    counts, sizes = stated.counts, stated.sizes
    if stated.is_tail:
        # The same curve through as many classes.
        places = np.linspace(0, 1, num_classes)
        return ClassGroups(
            np.exp(np.interp(places, np.linspace(0, 1, len(counts)), np.log(counts)))
        )
    new = sizes * (num_classes / sizes.sum())
    if not np.allclose(new, np.round(new), rtol=0, atol=1e-9) or np.any(np.round(new) < 1):
        raise ArgumentError(
            "over['num_classes']",
            f"must leave every group of classes a whole number of them: {num_classes} classes "
            f"in the shares of {', '.join(f'{size:g}' for size in sizes)} would be "
            f"{', '.join(f'{size:g}' for size in new)}",
        )
    return ClassGroups(counts, tuple(int(size) for size in np.round(new)))


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _of_regularizer(name: str, label: str, symbol: str) -> Variable:
    return Variable(
        name,
        label,
        symbol,
        set_number=functools.partial(_set_of_regularizer, name),
        search=functools.partial(_regularizer_search, name),
        hardness=-1.0,
    )


# In the order of messages, which for structure is also the order in which values are put in.
VARIABLES = (
    Variable("imbalance_ratio", "imbalance ratio", "n_max / n_min", set_number=_set_ratio,
             search=_ratio_search, sweep_from=1.0, same_numbers=("minority_count",)),
    Variable("weight_decay", "weight decay", "sqrt(lW lH)", r"\sqrt{\lambda_W \lambda_H}",
             set_number=_set_weight_decay, search=_weight_decay_search, common_factor=True,
             same_numbers=("regularizer.weights", "regularizer.features"), hardness=-1.0),
    Variable("num_minority", "number of minority classes", set_number=_set_num_minority,
             search=_num_minority_search, counted=True),
    Variable("minority_count", "minority count", "n_min", search=_minority_count_search,
             set_number=functools.partial(_set_count, 1)),
    Variable("majority_count", "majority count", "n_max", search=_majority_count_search,
             set_number=functools.partial(_set_count, 0)),
    _of_regularizer("regularizer.weights", "penalty or bound of the weights", "lW or E_W"),
    _of_regularizer("regularizer.features", "penalty or bound of the features", "lH or E_H"),
    Variable("regularizer.bias", "penalty of the bias", "lb", positive=False,
             set_number=functools.partial(_set_of_regularizer, "regularizer.bias")),
    # Stands for every scalar parameter of the loss, such as loss.alpha: see `variable_of`.
    Variable("loss.<parameter>", "scalar parameter of the loss", positive=False),
    Variable("class_counts", "row of class_counts",
             same_numbers=(*OF_CLASS_COUNTS[1:], "num_classes")),
    Variable("loss", "loss", set_field=_put("loss"), admits=lambda value: isinstance(value, Loss),
             wanted="losses such as ufm.CrossEntropy()"),
    Variable("targets", "targets", set_field=_put("targets"), wanted="ufm.Targets",
             admits=lambda value: isinstance(value, Targets),
             same_numbers=(*OF_CLASS_COUNTS, "num_classes")),
    # Stands for targets along a number that makes them, such as targets.noise: see `variable_of`.
    Variable("targets.<number>", "targets by a number that makes them, such as a rate of noise"),
    Variable("num_classes", "number of classes", "K", set_field=_set_num_classes, whole=True,
             admits=lambda value: is_whole(value, 2), wanted="whole numbers of at least 2",
             hardness=10.0),
    Variable("feature_dim", "feature dimension", "d", set_field=_put("feature_dim"), whole=True,
             admits=lambda value: is_whole(value, 1), wanted="whole numbers of at least 1"),
    Variable("depth", "depth", "L", set_field=_set_depth, whole=True,
             admits=lambda value: is_whole(value, 1), wanted="whole numbers of at least 1",
             hardness=10.0),
    Variable("use_bias", "use bias", set_field=_put("use_bias"), admits=_is_flag,
             wanted="True or False"),
    Variable("activation", "activation", set_field=_put("activation"),
             admits=lambda value: isinstance(value, str) and value in ACTIVATIONS,
             wanted=f"among {', '.join(ACTIVATIONS)}"),
    Variable("nonnegative_features", "nonnegative features", admits=_is_flag,
             set_field=_put("nonnegative_features"), wanted="True or False"),
    Variable("seed", "seed of the initial points", whole=True, counted=True),
)  # fmt: skip
SEARCHED = tuple(variable.name for variable in VARIABLES if variable.search is not None)


def variable_of(name: str) -> Variable | None:
    """Return the variable of a name, such as "weight_decay" or "loss.alpha"; None if unknown.

    What follows "targets." is what an axis of targets is called, such as "targets.noise".
    """
    if name.startswith("loss.") and name != "loss.<parameter>":
        return Variable(
            name,
            f"loss's {name.removeprefix('loss.')}".replace("_", " "),
            positive=False,
            set_number=functools.partial(_set_of_loss, name),
            search=functools.partial(_loss_search, name),
        )
    found = {variable.name: variable for variable in VARIABLES}
    if name.startswith("targets.") and name not in found:
        called = name.removeprefix("targets.").replace("_", " ")
        return dataclasses.replace(found["targets"], name=name, label=f"targets' {called}")
    return found.get(name)


class Family(NamedTuple):
    """Problems that differ in numbers only, over the groups of classes; batch axes last.

    Attributes:
        problem: What they have in common.
        counts: Samples per class, shape (G, B).
        sizes: Number of classes, shape (G, B).
        loss: The loss, its numbers of shape (B,) or (G, B).
        regularizer: The regularizer, its numbers of shape (B,), those of the layers (L, B).
        stated: The groups of the problem as it is given.
    """

    problem: Problem
    counts: Float[np.ndarray, "G B"]
    sizes: Float[np.ndarray, "G B"]
    loss: Any
    regularizer: Any
    stated: Groups

    @property
    def groups(self) -> Int[np.ndarray, " K"]:
        """The group of every class as the problem was stated."""
        return self.stated.groups

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
        """The group of every class of every problem, for whole numbers of classes.

        Group after group where the sizes of groups vary.
        """
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
            ValueError: If a group is a part of a class.
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
            targets=jax.tree.map(
                lambda leaf: np.broadcast_to(leaf, (self.length, *np.shape(leaf))),
                self.problem.targets,
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
        problem: One layer, a convex loss, and room for the convex minimiser.
        over: Values by names of `VARIABLES`: arrays of shape (B,) of one length, or numbers.

    Raises:
        ValueError: If the problem does not have a number, or it cannot take a value.
    """
    _check_problem(problem)
    return family_of(problem, over).over_groups()


def family_of(problem: Problem, over: Mapping[str, Any], length: int = 1) -> Family:
    """Return a problem with some numbers varied together.

    Args:
        problem: Any problem.
        over: Values by names of `VARIABLES`: arrays of shape (B,) of one length, or numbers;
            `class_counts` of shape (B, K).
        length: B, if `over` has no arrays.

    Raises:
        ValueError: If the problem does not have a number, or it cannot take a value.
    """
    columns = {name: np.atleast_1d(np.asarray(values, np.float64)) for name, values in over.items()}
    for name in () if problem.one_hot else columns:
        if name in OF_CLASS_COUNTS:
            raise ArgumentError(
                "over",
                f"cannot vary {name!r} of a problem with `targets`, which have counts of their own",
                remedy="vary `targets`",
            )
    length = max((len(column) for column in columns.values()), default=length)
    for name, column in columns.items():
        check_column(problem, name, column, length)
    stated = _groups(problem)
    rows = columns.pop("class_counts", None)
    if rows is not None:
        # Classes of equal counts are told apart here: they need not have equal ones everywhere.
        K, loss = problem.num_classes, problem.loss.per_class(problem.class_counts)
        stated = _with_minority(
            Groups(
                problem, np.asarray(problem.class_counts), np.ones(K), loss, np.arange(K), None, 0
            )
        )
    counts, sizes = (
        np.repeat(part[:, None], length, axis=1) for part in (stated.counts, stated.sizes)
    )
    if rows is not None:
        counts = np.array(np.broadcast_to(rows, (length, problem.num_classes)).T)

    def repeated(leaf: Any) -> np.ndarray:
        return np.repeat(np.asarray(leaf, np.float64)[..., None], length, axis=-1)

    regularizer = jax.tree.map(repeated, problem.regularizer.stated_per_layer(problem.num_layers))
    loss = jax.tree.map(repeated, stated.loss)
    family = Family(problem, counts, sizes, loss, regularizer, stated)
    # The majority's count first: a ratio is relative to it.
    for name in sorted(columns, key=lambda name: name == "imbalance_ratio"):
        variable = variable_of(name)
        if variable is None or variable.set_number is None:
            raise _unknown(name)
        family = variable.set_number(family, np.broadcast_to(columns[name], (length,)))
    return family


def check_column(problem: Problem, name: str, column: np.ndarray, length: int) -> None:
    """Check that values of one number are a column of `length` numbers that it can take.

    Raises:
        ValueError: If they are not.
    """
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
    variable = variable_of(name)
    positive = variable is None or variable.positive
    if not np.all(np.isfinite(column)) or (np.any(column <= 0) and positive):
        raise ArgumentError(
            f"over[{name!r}]",
            f"must be positive and finite, got {column.min():g} to {column.max():g}",
        )


def problem_with(problem: Problem, values: Mapping[str, Any]) -> Problem:
    """Return the problem with another structure.

    Args:
        problem: The problem.
        values: Values by names of the structural entries of `VARIABLES`.

    Raises:
        ValueError: If the problem cannot take a value.
    """
    values = {"targets" if _of_targets(name) else name: value for name, value in values.items()}
    if "num_classes" in values and not problem.one_hot:
        raise ArgumentError(
            "over",
            "cannot vary 'num_classes' of a problem with `targets`, whose rows have a width",
            remedy="vary `targets`",
        )
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    fields["problem"] = problem
    for variable in VARIABLES:
        if variable.set_field is not None and variable.name in values:
            value = values[variable.name]
            variable.set_field(fields, int(value) if variable.whole else value)
    del fields["problem"]
    if fields["targets"] is not None:
        del fields["class_counts"]  # they follow from the targets
    return Problem(**fields)


def check_classes(problem: Problem) -> None:
    """Raise ArgumentError for a problem of targets, where a question is about classes."""
    if not problem.one_hot:
        raise ArgumentError(
            "problem",
            "has `targets`, whose rows are no classes: they have no minority, no majority and no "
            "groups of classes",
            remedy="use ufm.sweep, or ufm.collapse_thresholds for where they collapse",
        )


def groups_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and sizes of the groups of classes, which are varied as one: (G,) each."""
    stated = _groups(problem)
    return stated.counts, stated.sizes


def minority_of(problem: Problem) -> tuple[int, int | None]:
    """Return the indices of the majority's and the minority's group; None if there is none."""
    stated = _groups(problem)
    return stated.majority, stated.minority


class OneParameterFamily(NamedTuple):
    """A family of problems over groups, one per value of the varied number.

    Attributes:
        stated: The groups of the problem as it is given.
        variable: What is varied.
        search: How it is searched.
        bounds: The range to search.
    """

    stated: Groups
    variable: Variable
    search: Search
    bounds: tuple[float, float]

    def coordinate(self, value: Any) -> Any:
        """Return the coordinate: the logarithm of the value, or the value itself."""
        return np.log(value) if self.search.logarithmic else value

    def value(self, coordinate: Any) -> Any:
        """Return the value at a coordinate."""
        return np.exp(coordinate) if self.search.logarithmic else coordinate

    def at(self, coordinates: Any) -> GroupProblem:
        """Return the problems at coordinates of shape (B,), batch axis last."""
        values = np.atleast_1d(self.value(np.asarray(coordinates, np.float64)))
        return varied(self.stated.problem, {self.variable.name: values})


def one_parameter_family(problem: Problem, vary: str, bounds: Any = None) -> OneParameterFamily:
    """Return the family of problems in which one number is varied.

    Args:
        problem: One layer, a convex loss, and a feature dimension that holds the minimiser.
        vary: What to vary, by a name in `SEARCHED`, or loss.<parameter>.
        bounds: The range of values, two increasing numbers; None, or None in place of one of them,
            for a wide range.

    Raises:
        ValueError: If the problem is of another kind, or the arguments do not fit it.
    """
    _check_problem(problem)
    if not isinstance(vary, str):
        raise ArgumentError("vary", "must be the name of a number, such as 'imbalance_ratio'", vary)
    variable = variable_of(vary)
    if variable is None or variable.search is None:
        raise ArgumentError(
            "vary",
            f"must be one of {', '.join(SEARCHED)} or loss.<parameter>, got "
            f"{vary!r}{did_you_mean(vary, SEARCHED)}",
        )
    stated = _groups(problem)
    search = variable.search(stated)
    return OneParameterFamily(stated, variable, search, _checked_bounds(bounds, search))


def price_search(
    problem: Problem, vary: str, bounds: Any = None
) -> tuple[Variable, Search, tuple[float, float]]:
    """Return a variable that changes nothing but the price of the logits, and how to search it.

    Any problem of one layer has it, whatever its targets are.

    Args:
        problem: One layer.
        vary: A name in `PRICES`.
        bounds: As for `one_parameter_family`.

    Raises:
        ValueError: If the arguments do not fit the problem.
    """
    variable = variable_of(vary) if isinstance(vary, str) and vary in PRICES else None
    if variable is None or variable.search is None:
        raise ArgumentError("vary", f"must be {', '.join(PRICES)} for a problem of `targets`", vary)
    search = variable.search(_groups(problem))
    return variable, search, _checked_bounds(bounds, search)


def _check_problem(problem: Any) -> None:
    """Raise ValueError unless it is a `Problem` for which group resolution is exact."""
    check_instance("problem", problem, Problem)
    check_classes(problem)
    check_group_form(problem)


def _groups(problem: Problem) -> Groups:
    """Return the groups of interchangeable classes.

    Where all classes are interchangeable these are the groups as stated: they need not stay so.
    """
    classes = problem.class_counts
    if not problem.one_hot:  # labels whose targets have equal sums are not interchangeable for that
        loss, members = problem.loss.per_class(classes), np.arange(problem.num_classes)
        ones = np.ones(problem.num_classes)
        return Groups(problem, np.asarray(classes.counts), ones, loss, members, None, 0)
    fields: Any = interchangeable(problem)
    per_group = all(
        np.shape(leaf) in ((), (classes.num_groups,)) for leaf in jax.tree.leaves(problem.loss)
    )
    if len(fields[0]) == 1 < classes.num_groups < classes.num_classes and per_group:
        groups = np.repeat(np.arange(classes.num_groups), classes.sizes)
        fields = classes.counts, classes.sizes, problem.loss, groups
    counts, sizes, loss, groups = fields
    counts, sizes = np.asarray(counts, float), np.asarray(sizes, float)
    return _with_minority(Groups(problem, counts, sizes, loss, np.asarray(groups), None, 0))


def _with_minority(stated: Groups) -> Groups:
    """Return the groups with the minority and the majority found.

    They are the last of the smallest groups of several classes, and the first of the largest
    others.
    """
    counts = stated.counts
    several = np.flatnonzero((stated.sizes > 1) | stated.problem.nonnegative_features)
    minority = None if several.size == 0 else int(several[::-1][np.argmin(counts[several[::-1]])])
    if minority is not None and counts[minority] == counts.max() > counts.min():
        minority = None  # the smaller ones are single classes
    others = np.delete(np.arange(len(counts)), [] if minority is None else [minority])
    majority = int(others[np.argmax(counts[others])]) if others.size else 0
    return stated._replace(minority=minority, majority=majority)


def _of_targets(name: str) -> bool:
    return name.startswith("targets.")


def _loss_parameter(loss: Loss, name: str) -> float:
    try:
        value = _leaf(loss, name.split(".")[1:])
    except AttributeError:
        value = None
    number = isinstance(value, (np.ndarray, np.generic, int, float)) and not _is_flag(value)
    if not number or np.shape(value) != ():
        raise ArgumentError(
            "vary",
            f"= {name!r} must name a scalar parameter of the loss, which {loss!r} does not have",
        )
    return float(value)


def _leaf(tree: Any, names: Sequence[str]) -> Any:
    for name in names:
        tree = getattr(tree, name)
    return tree


def _unknown(name: str) -> ArgumentError:
    known = f"{', '.join(SEARCHED)}, regularizer.bias and loss.<parameter>"
    return ArgumentError("over", f"cannot vary {name!r}; it can vary {known}")


def _checked_bounds(bounds: Any, search: Search) -> tuple[float, float]:
    wide, (least, most) = search.wide, search.limits
    if bounds is None:
        return float(wide[0]), float(wide[1])
    try:
        low, high = (
            float(default if bound is None else bound)
            for bound, default in zip(bounds, wide, strict=True)
        )
    except (TypeError, ValueError):
        raise ArgumentError("bounds", "must be two increasing numbers", bounds) from None
    positive = low > 0 or not search.logarithmic
    if not (least <= low < high <= most and math.isfinite(high) and positive) or high == most:
        raise ArgumentError(
            "bounds",
            f"must be two finite increasing numbers between {least:g} and {most:g} (exclusive)",
            bounds,
        )
    return low, high
