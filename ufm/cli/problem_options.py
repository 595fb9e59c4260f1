"""The options that describe a problem, and what turns their text into values."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from ufm._support import did_you_mean
from ufm.problems import ARGUMENTS, LIBRARY, LOSSES, PATH, RECIPES, WORDS, is_path, problem_of
from ufm.problems import BALLS as BALL_WORDS

__all__ = [
    "AXIS",
    "BALLS",
    "OPTIONS",
    "OPTION_OF",
    "add_loss_options",
    "add_problem_options",
    "grid",
    "one_of",
    "read_problem",
    "whole_numbers",
]

# The options that give the arguments of the library, by their names.
OPTION_OF = {word: "--" + word.replace("_", "-") for word in WORDS} | {"class_counts": "--counts"}
OPTIONS = {argument: OPTION_OF[word] for argument, word in ARGUMENTS.items()} | {
    "learning_rate": "--learning-rate",
    "momentum": "--momentum",
    "resolution": "--resolution",
    "tol": "--tol",
    "max_steps": "--max-steps",
    "restarts": "--restarts",
    "key": "--seed",
    "name": "--only",
    "vary": "--vary",
    "bounds": "--from and --to",
}
BALLS = {argument: OPTION_OF[word] for argument, word in BALL_WORDS.items()}
MOST_POINTS = 1_000_000  # points of an axis
AXIS = "imbalance_ratio:1:1000:100"


def add_problem_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a problem."""
    add = parser.add_argument
    add(
        "--counts",
        default=None,
        metavar="COUNTS",
        help="class sizes, such as 5x500,5x5 (5 classes of 500, 5 of 5) or 200,100,50",
    )
    add(
        "--targets",
        default=None,
        metavar="FILE",
        help="target rows instead of --counts: an .npz of rows, counts and feature_weights, a .csv "
        "with a row per target, or NAME:KEY=VALUE,... with NAME among "
        f"{', '.join(RECIPES)}, such as noisy:noise=0.1,class_counts=4x50",
    )
    add(
        "--feature-dim",
        type=int,
        default=None,
        metavar="d",
        help="number of classes or outputs if not given",
    )
    add_loss_options(parser, "ce", "")
    _add_penalties(parser)
    add("--bias", action="store_true", help="the last layer has a bias")
    add("--hidden", type=whole_numbers, default=(), metavar="d1,d2", help="hidden layer widths")
    add(
        "--activation",
        default="linear",
        help="between the layers of --hidden",
        **one_of("linear", "relu"),
    )
    add("--nonnegative-features", action="store_true", help="features h >= 0")


def _add_penalties(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--weight-decay",
        type=numbers,
        default=None,
        metavar="L",
        help="penalty of the weights (halved); one per layer with commas",
    )
    add(
        "--feature-decay",
        type=float,
        default=None,
        metavar="L",
        help="penalty of the features (halved, summed over samples)",
    )
    add("--bias-decay", type=float, default=0.0, metavar="L", help="penalty of the bias, 0: free")
    add(
        "--weight-ball",
        type=numbers,
        default=None,
        metavar="E",
        help="E_W of the layer-peeled model, instead of weight decay",
    )
    add(
        "--feature-ball",
        type=float,
        default=None,
        metavar="E",
        help="E_H of the layer-peeled model",
    )


def add_loss_options(parser: argparse.ArgumentParser, default: str | None, whose: str) -> None:
    """Add the options that describe a loss; `whose` begins the help."""
    parser.add_argument(
        "--loss",
        default=default,
        help=f"{whose}ce if not given; {PATH}: a function of logits and target row, or a ufm.Loss",
        **one_of(*LOSSES, also=is_path, words=PATH),
    )
    meanings = [one.meaning for kind in LIBRARY.values() for one in kind.parameters]
    parser.add_argument(
        "--loss-parameter",
        type=float,
        default=None,
        metavar="X",
        help=", ".join(dict.fromkeys(meanings)),
    )


def read_problem(options: argparse.Namespace) -> Any:
    """Return the problem that the options describe."""
    words = {word: getattr(options, word) for word in WORDS if word != "class_counts"}
    return problem_of(words | {"class_counts": options.counts}, OPTION_OF.__getitem__)


def one_of(
    *names: str, also: Callable[[str], bool] | None = None, words: str = ""
) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option that is one of some names.

    Args:
        names: The names.
        also: What else is taken, such as a path.
        words: What messages call that.
    """
    known = ", ".join(names) + (f", or {words}" if words else "")

    def chosen(text: str) -> str:
        if text not in names and not (also is not None and also(text)):
            near = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"must be one of {known}; got {text!r}{near}")
        return text

    return {"type": chosen, "metavar": f"{{{','.join(names)}}}"}


def numbers(text: str) -> tuple[float, ...]:
    return _parsed(float, text, "one number, or several with commas")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a text such as 64,32."""
    return _parsed(int, text, "whole numbers with commas")


def _parsed(kind: Callable[[str], Any], text: str, wanted: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def grid(text: str) -> tuple[str, Any]:
    """Return the name and the values of an axis such as imbalance_ratio:1:1000:100."""
    import numpy as np

    name, *numbers = text.split(":")
    wanted = f"NAME:LOW:HIGH or NAME:LOW:HIGH:POINTS, such as {AXIS}"
    try:
        low, high, points = (
            float(numbers[0]),
            float(numbers[1]),
            int(numbers[2]) if len(numbers) > 2 else 100,
        )
    except (IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    possible = (
        math.isfinite(low) and math.isfinite(high) and low < high and 2 <= points <= MOST_POINTS
    )
    if len(numbers) > 3 or not possible:
        raise argparse.ArgumentTypeError(
            f"expected {wanted}, with LOW below HIGH and 2 to {MOST_POINTS} points, got {text!r}"
        )
    return name, np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
