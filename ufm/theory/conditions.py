"""The hypotheses that theorems share, each checked against a problem."""

import functools
from typing import Any

import numpy as np

from ufm._support import is_concrete
from ufm.problems import Loss, NormBall, Problem, Regularizer, WeightDecay
from ufm.theory.theorem import Condition

__all__ = [
    "balanced",
    "centred_dims",
    "equal_penalties",
    "free_bias",
    "linear",
    "loss_is",
    "more_dims_than_classes",
    "no_bias",
    "no_penalised_bias",
    "nonnegative_features",
    "norm_ball",
    "num_layers",
    "number",
    "one_layer",
    "penalised_bias",
    "proportional_weights",
    "regularizer_is",
    "relu",
    "several_labels",
    "signed_features",
    "target_rows",
    "weight_decay",
    "wide",
]

BALANCED = 1e-12  # relative spread of the counts below which they count as equal


def number(value: Any) -> str:
    """Return `value` as text, or the word "traced"."""
    return f"{float(np.asarray(value)):.6g}" if is_concrete(value) else "traced"


def loss_is(problem: Problem, kind: type[Loss]) -> Condition:
    """The loss is of the given kind itself: a subclass is another loss."""
    found = type(problem.loss).__name__
    return Condition(f"the loss {kind.__name__}", type(problem.loss) is kind, found)


def regularizer_is(kind: type[Regularizer], problem: Problem) -> Condition:
    """The regularizer is of the given kind itself."""
    found = type(problem.regularizer)
    return Condition(f"the regularizer {kind.__name__}", found is kind, found.__name__)


weight_decay = functools.partial(regularizer_is, WeightDecay)
norm_ball = functools.partial(regularizer_is, NormBall)


def balanced(problem: Problem) -> Condition:
    """All classes, or target rows, have the same count."""
    counts = problem.row_counts
    smallest, largest = counts.min(), counts.max()
    found = f"counts from {number(smallest)} to {number(largest)}"
    return Condition("equal class counts", largest - smallest <= BALANCED * largest, found)


def target_rows(problem: Problem) -> Condition:
    """The targets are stated as rows; for classes there are theorems with fewer conditions."""
    return Condition("targets given as rows", problem.targets is not None, "class counts")


def proportional_weights(problem: Problem) -> Condition:
    """The features' weights are a multiple of the counts, so that every sample weighs the same."""
    ratios = problem.row_weights / problem.row_counts
    smallest, largest = ratios.min(), ratios.max()
    found = f"weights from {number(smallest)} to {number(largest)} times the counts"
    statement = "feature weights in proportion to the counts"
    return Condition(statement, largest - smallest <= BALANCED * largest, found)


def no_bias(problem: Problem) -> Condition:
    """The model has no bias."""
    return Condition("no bias", not problem.use_bias, _bias(problem))


def free_bias(problem: Problem) -> Condition:
    """The model has a bias without penalty."""
    return Condition(
        "a bias without penalty",
        problem.use_bias and problem.regularizer.bias_penalty == 0,
        _bias(problem),
    )


def penalised_bias(problem: Problem) -> Condition:
    """The model has a bias with a penalty."""
    return Condition(
        "a bias with a penalty",
        problem.use_bias and problem.regularizer.bias_penalty > 0,
        _bias(problem),
    )


def no_penalised_bias(problem: Problem) -> Condition:
    """The model has no bias, or one without penalty."""
    return Condition(
        "no bias, or one without penalty",
        not problem.use_bias or problem.regularizer.bias_penalty == 0,
        _bias(problem),
    )


def several_labels(problem: Problem) -> Condition:
    """There is more than one logit."""
    return Condition("K >= 2", problem.num_outputs >= 2, f"K = {problem.num_outputs}")


def num_layers(problem: Problem, exactly: int | None = None, at_least: int = 1) -> Condition:
    """The number of weight matrices is as given."""
    depth = problem.num_layers
    if exactly is not None:
        return Condition(f"L = {exactly}", depth == exactly, f"L = {depth}")
    return Condition(f"L >= {at_least}", depth >= at_least, f"L = {depth}")


def one_layer(problem: Problem, kind: type[Loss]) -> tuple[Condition, ...]:
    """One layer with weight decay and a loss of the given kind."""
    return loss_is(problem, kind), weight_decay(problem), num_layers(problem, exactly=1)


def linear(problem: Problem) -> Condition:
    """No activation between layers."""
    return Condition(
        "linear layers", problem.activation == "linear", f"activation {problem.activation!r}"
    )


def relu(problem: Problem) -> Condition:
    """A ReLU between layers."""
    return Condition(
        "ReLU between layers", problem.activation == "relu", f"activation {problem.activation!r}"
    )


def signed_features(problem: Problem) -> Condition:
    """The features are not constrained to be non-negative."""
    found = problem.feature_cone.words
    return Condition("features of any sign", not problem.feature_cone.nonnegative, found)


def nonnegative_features(problem: Problem) -> Condition:
    """The features are constrained to be non-negative."""
    found = problem.feature_cone.words
    return Condition("non-negative features", problem.feature_cone.nonnegative, found)


def centred_dims(problem: Problem) -> Condition:
    """There is room for the simplex ETF."""
    found = f"d = {problem.feature_dim}, K = {problem.num_classes}"
    return Condition("d >= K - 1", problem.feature_dim >= problem.num_classes - 1, found)


def wide(problem: Problem) -> Condition:
    """Every layer has room for an orthogonal frame."""
    dims = problem.layer_dims[:-1]
    found = f"widths {', '.join(map(str, dims))}, K = {problem.num_classes}"
    return Condition("all widths >= K", min(dims) >= problem.num_classes, found)


def more_dims_than_classes(problem: Problem) -> Condition:
    """There is a feature dimension to spare."""
    found = f"d = {problem.feature_dim}, K = {problem.num_classes}"
    return Condition("d > K", problem.feature_dim > problem.num_classes, found)


def equal_penalties(problem: Problem) -> Condition:
    """Weights and features have the same penalty."""
    statement = "equal penalties on weights and features"
    if not weight_decay(problem).holds:
        return Condition(statement, False, "another regularizer")
    *layers, features = problem.regularizer.decays(problem.num_layers)
    found = f"{', '.join(map(number, layers))} and {number(features)}"
    return Condition(
        statement, bool(np.all(np.isclose(layers, features, rtol=1e-12, atol=0))), found
    )


def _bias(problem: Problem) -> str:
    penalty = number(problem.regularizer.bias_penalty)
    return f"a bias with penalty {penalty}" if problem.use_bias else "no bias"
