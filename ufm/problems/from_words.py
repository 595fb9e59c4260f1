"""Problems in words: from names and numbers, as a command line or a file states them, to a `Problem`.

The words are `class_counts`, `feature_dim`, `loss`, `loss_parameter`, `weight_decay` and
`feature_decay`, or `weight_ball` and `feature_ball`, `bias`, `bias_decay`, `hidden`, `activation`
and `nonnegative_features`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses import (
    CDT,
    LDT,
    ClassWeighted,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjusted,
    Loss,
    SquaredError,
)
from ufm.problems.problem import Problem
from ufm.problems.regularizers import NormBall, WeightDecay

__all__ = [
    "ARGUMENTS",
    "BALLS",
    "LOSSES",
    "WORDS",
    "did_you_mean",
    "loss_of",
    "parse_counts",
    "problem_of",
]

# Every word, with what it is where it is not given.
WORDS: dict[str, Any] = {
    "class_counts": None,
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
PLAIN: dict[str, Any] = {"ce": CrossEntropy, "mse": SquaredError}
WITH_PARAMETER: dict[str, Any] = {
    "label-smoothing": LabelSmoothing,
    "focal": Focal,
    "logit-adjusted": LogitAdjusted,
    "cdt": CDT,
    "ldt": LDT,
    "class-weighted": ClassWeighted,
}
LOSSES = (*PLAIN, *WITH_PARAMETER)

# The words that give the library's arguments, by which its messages begin.
ARGUMENTS = {
    **dict.fromkeys(("class_counts", "counts", "sizes"), "class_counts"),
    "feature_dim": "feature_dim",
    "hidden_dims": "hidden",
    "regularizer.weights": "weight_decay",
    "regularizer.features": "feature_decay",
    "regularizer.bias": "bias_decay",
    **dict.fromkeys(("alpha", "gamma", "strength", "exponent"), "loss_parameter"),
}
BALLS = {"regularizer.weights": "weight_ball", "regularizer.features": "feature_ball"}


def problem_of(words: Mapping[str, Any], name: Callable[[str], str] = str) -> Problem:
    """Return the problem that words describe.

    Args:
        words: values by the names in `WORDS`, absent or None where not given; `class_counts` a
            text, or numbers; `loss` a name, or a loss; `weight_decay` and `weight_ball` one number,
            or one per layer.
        name: what to call a word in messages, such as `--weight-decay`.

    Raises:
        ValueError: for words that contradict each other or are missing, and whatever `Problem`
            refuses.
    """
    given = WORDS | {word: value for word, value in words.items() if value is not None}
    decays, balls = ("weight_decay", "feature_decay"), ("weight_ball", "feature_ball")
    with_decays = any(given[word] is not None for word in decays)
    if with_decays == any(given[word] is not None for word in balls):
        raise ValueError(
            f"give {name(decays[0])} and {name(decays[1])}, or {name(balls[0])} and {name(balls[1])}"
        )
    if given["class_counts"] is None:
        raise ValueError(f"{name('class_counts')} is missing; give it, such as 5x500,5x5")
    for word in decays if with_decays else balls:
        if given[word] is None:
            raise ValueError(f"{name(word)} is missing")
    if not with_decays and given["bias_decay"]:
        raise ValueError(
            f"{name('bias_decay')} goes with {name(decays[0])}; the layer-peeled model's bias is free"
        )
    if given["bias_decay"] and not given["bias"]:
        raise ValueError(f"{name('bias_decay')} needs {name('bias')}")
    if given["activation"] == "relu" and not given["hidden"]:
        raise ValueError(
            f"{name('activation')} relu acts between layers and needs {name('hidden')}; add it, or {name('nonnegative_features')} instead"
        )
    weights, features = (given[word] for word in (decays if with_decays else balls))
    if isinstance(weights, (tuple, list)) and len(weights) == 1:
        weights = weights[0]
    regularizer: Any = (
        WeightDecay(weights=weights, features=features, bias=given["bias_decay"])
        if with_decays
        else NormBall(weights=weights, features=features)
    )
    counts, loss = given["class_counts"], given["loss"]
    groups = parse_counts(counts) if isinstance(counts, str) else ClassGroups(counts)
    return Problem(
        class_counts=groups,
        feature_dim=groups.num_classes if given["feature_dim"] is None else given["feature_dim"],
        loss=loss_of(loss, given["loss_parameter"], name) if isinstance(loss, str) else loss,
        regularizer=regularizer,
        use_bias=given["bias"],
        hidden_dims=tuple(given["hidden"]),
        activation=given["activation"],
        nonnegative_features=given["nonnegative_features"],
    )


def parse_counts(text: str) -> ClassGroups:
    """Return the class groups of a text such as "5x500,5x5" (classes x samples) or "200,100,50".

    Raises:
        ValueError: for a text that cannot be read, or counts that are not possible.
    """
    counts, sizes = [], []
    for part in text.split(","):
        size, separator, count = part.lower().partition("x")
        if not separator:
            size, count = "1", part
        try:
            sizes.append(int(size))
            counts.append(float(count))
        except ValueError:
            raise ValueError(
                f"`counts` must look like 5x500,5x5 (classes x samples each) or 200,100,50; cannot read {part!r} in {text!r}"
            ) from None
    return ClassGroups(counts=counts, sizes=sizes)


def loss_of(loss: str, parameter: float | None = None, name: Callable[[str], str] = str) -> Loss:
    """Return the loss of a name in `LOSSES` and its parameter: smoothing, focal gamma, adjustment strength or exponent.

    Raises:
        ValueError: for a name that there is not, a parameter that is missing or that the loss does
            not take, or that it refuses.
    """
    if loss not in LOSSES:
        raise ValueError(
            f"{name('loss')} must be one of {', '.join(LOSSES)}; got {loss!r}{did_you_mean(loss, LOSSES)}"
        )
    if loss in PLAIN:
        if parameter is not None:
            raise ValueError(
                f"{name('loss')} {loss} takes no {name('loss_parameter')}, got {parameter}"
            )
        return PLAIN[loss]()
    if parameter is None:
        raise ValueError(f"{name('loss')} {loss} needs a {name('loss_parameter')}")
    return WITH_PARAMETER[loss](parameter)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the known name that is most like a misspelt one, or nothing where none is."""
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""
