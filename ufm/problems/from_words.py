"""Problems in words: from names and numbers, as a command line or a file states them.

The words are `class_counts` or `targets`, `feature_dim`, `loss`, `loss_parameter`, `weight_decay`
and `feature_decay`, or `weight_ball` and `feature_ball`, `bias`, `bias_decay`, `hidden`,
`activation` and `nonnegative_features`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ufm._support import ArgumentError, did_you_mean
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses import LIBRARY, Loss, from_function
from ufm.problems.problem import Problem
from ufm.problems.regularizers import NormBall, WeightDecay
from ufm.problems.target_words import parse_counts, targets_of
from ufm.problems.targets import Targets

__all__ = [
    "ARGUMENTS",
    "BALLS",
    "LOSSES",
    "PATH",
    "WORDS",
    "is_path",
    "loss_of",
    "problem_of",
]

# Every word, with its default.
WORDS: dict[str, Any] = {
    "class_counts": None,
    "targets": None,
    "feature_dim": None,
    "loss": "ce",
    "loss_parameter": None,
    "weight_decay": None,
    "feature_decay": None,
    "bias_decay": 0.0,
    "weight_ball": None,
    "feature_ball": None,
    "bias": False,
    "hidden": (),
    "activation": "linear",
    "nonnegative_features": False,
}
LOSSES = tuple(LIBRARY)
PATH = "module:name for one of your own"

# The words that give the library's arguments, as its errors name them.
ARGUMENTS = {
    **dict.fromkeys(("class_counts", "counts", "sizes"), "class_counts"),
    "targets": "targets",
    "feature_dim": "feature_dim",
    "hidden_dims": "hidden",
    "regularizer.weights": "weight_decay",
    "regularizer.features": "feature_decay",
    "regularizer.bias": "bias_decay",
    **{
        parameter.name: "loss_parameter"
        for kind in LIBRARY.values()
        for parameter in kind.parameters
    },
}
BALLS = {"regularizer.weights": "weight_ball", "regularizer.features": "feature_ball"}


def problem_of(words: Mapping[str, Any], name: Callable[[str], str] = str) -> Problem:
    """Return the problem that words describe.

    Args:
        words: Values by the names in `WORDS`, absent or None where not given. `class_counts` is a
            text, or numbers; `targets` are words of `target_words`, or `Targets`; `loss` a name,
            or a loss; `weight_decay` and `weight_ball` one number, or one per layer.
        name: What to call a word in messages, such as `--weight-decay`.

    Raises:
        ValueError: If words contradict each other or are missing, or `Problem` refuses a value.
    """
    given = WORDS | {word: value for word, value in words.items() if value is not None}
    decays, balls = ("weight_decay", "feature_decay"), ("weight_ball", "feature_ball")
    with_decays = any(given[word] is not None for word in decays)
    if with_decays == any(given[word] is not None for word in balls):
        raise ValueError(
            f"give {name(decays[0])} and {name(decays[1])}, "
            f"or {name(balls[0])} and {name(balls[1])}"
        )
    rows = _rows_of(given, name)
    for word in decays if with_decays else balls:
        if given[word] is None:
            raise ValueError(f"{name(word)} is missing")
    if not with_decays and given["bias_decay"]:
        raise ValueError(
            f"{name('bias_decay')} goes with {name(decays[0])}; "
            "the layer-peeled model's bias is free"
        )
    if given["bias_decay"] and not given["bias"]:
        raise ValueError(f"{name('bias_decay')} needs {name('bias')}")
    if given["activation"] == "relu" and not given["hidden"]:
        raise ValueError(
            f"{name('activation')} relu acts between layers and needs {name('hidden')}; "
            f"add it, or {name('nonnegative_features')} instead"
        )
    weights, features = (given[word] for word in (decays if with_decays else balls))
    if isinstance(weights, (tuple, list)) and len(weights) == 1:
        weights = weights[0]
    regularizer: Any = (
        WeightDecay(weights=weights, features=features, bias=given["bias_decay"])
        if with_decays
        else NormBall(weights=weights, features=features)
    )
    loss = given["loss"]
    (stated,) = rows.values()
    width = stated.num_outputs if isinstance(stated, Targets) else stated.num_classes
    return Problem(
        **rows,
        feature_dim=width if given["feature_dim"] is None else given["feature_dim"],
        loss=loss_of(loss, given["loss_parameter"], name) if isinstance(loss, str) else loss,
        regularizer=regularizer,
        use_bias=given["bias"],
        hidden_dims=tuple(given["hidden"]),
        activation=given["activation"],
        nonnegative_features=given["nonnegative_features"],
    )


def _rows_of(given: Mapping[str, Any], name: Callable[[str], str]) -> dict[str, Any]:
    """Return the class counts or the targets, by the name of the argument."""
    counts, targets = given["class_counts"], given["targets"]
    if counts is not None and targets is not None:
        raise ValueError(
            f"{name('class_counts')} and {name('targets')} both state the samples; give one of them"
        )
    if targets is not None:
        return {"targets": targets_of(targets)}
    if counts is None:
        raise ValueError(
            f"{name('class_counts')} is missing; give it, such as 5x500,5x5, or "
            f"{name('targets')} for rows that are not one-hot"
        )
    return {
        "class_counts": parse_counts(counts) if isinstance(counts, str) else ClassGroups(counts)
    }


def loss_of(loss: str, parameter: float | None = None, name: Callable[[str], str] = str) -> Loss:
    """Return the loss of a name in `LOSSES`, or of your own as `module:name`.

    What `module:name` names is a loss, a class of losses, which gets the parameter if there is one,
    or a function f(logits_row, target_row), of which `losses.from_function` makes a convex loss
    that is never negative. The module is looked for in the working directory, too.

    Args:
        loss: The name.
        parameter: The number of a loss that has one, such as a smoothing or an exponent.
        name: What to call a word in messages.

    Raises:
        ValueError: If there is no loss of that name, or the parameter is missing, not taken, or
            refused by the loss.
    """
    if is_path(loss):
        return _own_loss(loss, parameter, name)
    if loss not in LIBRARY:
        raise ValueError(
            f"{name('loss')} must be one of {', '.join(LOSSES)}, or {PATH}; got {loss!r}"
            f"{did_you_mean(loss, LOSSES)}"
        )
    kind: Any = LIBRARY[loss]
    if kind.parameters and parameter is None:
        raise ValueError(f"{name('loss')} {loss} needs a {name('loss_parameter')}")
    if parameter is not None and not kind.parameters:
        raise ValueError(
            f"{name('loss')} {loss} takes no {name('loss_parameter')}, got {parameter}"
        )
    return kind() if parameter is None else kind(parameter)


def is_path(loss: str) -> bool:
    """Return whether a word names a loss of your own, as `module:name`."""
    module, colon, attribute = loss.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def _own_loss(path: str, parameter: float | None, name: Callable[[str], str]) -> Loss:
    found = _imported(path, name("loss"))
    if isinstance(found, type) and issubclass(found, Loss):
        try:
            return found() if parameter is None else found(parameter)
        except TypeError as error:
            given = "without" if parameter is None else "with one"
            raise ValueError(
                f"{name('loss')} {path} cannot be made {given} {name('loss_parameter')}: {error}"
            ) from None
    if parameter is not None:
        raise ValueError(
            f"{name('loss')} {path} takes no {name('loss_parameter')}, got {parameter}"
        )
    if isinstance(found, Loss):
        return found
    if not callable(found):
        raise ValueError(
            f"{name('loss')} {path} must be a ufm.Loss, or a function of a row of logits and a "
            f"target row; got {found!r}"
        )
    try:
        return from_function(found)
    except ArgumentError as error:
        raise ValueError(f"{name('loss')} {path}: {error}") from None


def _imported(path: str, argument: str) -> Any:
    """Return what a path names; the working directory is where the module is looked for first."""
    module, _, attribute = path.partition(":")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(
            f"{argument} {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove("")
    return found
