"""Targets in words: from a file, or from the name of a constructor and its numbers.

Command lines and config files state targets as the path of a file, `tags.npz` or `tags.csv`, or as
`NAME:KEY=VALUE,...`, such as `noisy:noise=0.1,class_counts=4x50`. Config files have a table for the
latter, {name = "noisy", noise = 0.1, class_counts = "4x50"}. `RECIPES` has the names.
"""

import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ufm._support import ArgumentError, check_numbers, checked_whole, did_you_mean
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.targets import Targets

__all__ = [
    "RECIPES",
    "TARGETS",
    "Recipe",
    "parse_counts",
    "recipe_of",
    "targets_from_file",
    "targets_of",
]

ENDINGS = (".npz", ".csv")
FIELDS = ("rows", "counts", "feature_weights")
# Names of columns that are no outputs, and the fields that they give.
COLUMNS = {"count": 1, "counts": 1, "feature_weight": 2, "feature_weights": 2}
TARGETS = (
    'a file such as "tags.npz" or "tags.csv", or a constructor with its numbers, such as '
    '"noisy:noise=0.1,class_counts=4x50"'
)
LEAST_TEMPERATURE = 1e-12


def parse_counts(text: str) -> ClassGroups:
    """Return the class groups of a text such as "5x500,5x5" (classes x samples) or "200,100,50".

    Raises:
        ValueError: If the text cannot be read, or the counts are not possible.
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
            raise ArgumentError(
                "counts",
                "must look like 5x500,5x5 (classes x samples each) or 200,100,50; cannot "
                f"read {part!r} in {text!r}",
            ) from None
    return ClassGroups(counts=counts, sizes=sizes)


def targets_of(value: Any, folder: str | os.PathLike[str] = "") -> Targets:
    """Return the targets that words state.

    Args:
        value: `Targets`; the path of a file; the text "NAME:KEY=VALUE,..."; or the same as a
            mapping, which has a `name`.
        folder: Where relative paths begin.

    Raises:
        ValueError: If there is no such file or name, or numbers are missing or not possible.
    """
    if isinstance(value, Targets):
        return value
    if isinstance(value, Mapping):
        return recipe_of(value)()
    text = str(value)
    if text.lower().endswith(ENDINGS):
        return targets_from_file(os.path.join(folder, text))
    return recipe_of(_parsed(text))()


class Recipe(NamedTuple):
    """A constructor of targets with the numbers that were given.

    Attributes:
        name: The name of the constructor.
        numbers: The numbers, by keyword.
    """

    name: str
    numbers: dict[str, Any]

    def takes_whole(self, key: str) -> bool:
        """Return whether a number is a whole one.

        Raises:
            ValueError: If the constructor takes no such number.
        """
        return self._parameter(key).annotation is int

    def __call__(self, **replaced: Any) -> Targets:
        """Return the targets, with some of the numbers replaced.

        Raises:
            ValueError: Where a number is missing, unknown or not possible.
        """
        numbers = self.numbers | replaced
        for key, value in numbers.items():
            self._parameter(key)
            if not (_numeric(value) or (key == "class_counts" and isinstance(value, str))):
                raise ArgumentError(
                    "targets",
                    f"{self.name} must have a number, or a list of numbers, as {key}",
                    value,
                )
        known = inspect.signature(RECIPES[self.name]).parameters.items()
        empty = inspect.Parameter.empty
        missing = [key for key, one in known if key not in numbers and one.default is empty]
        if missing:
            raise ArgumentError("targets", f"{self.name} needs {', '.join(missing)}")
        try:
            return RECIPES[self.name](**numbers)
        except ArgumentError as error:
            claim = str(error).rstrip(".")
            raise ArgumentError("targets", f"{self.name}: {claim}") from None
        except TypeError:  # a list where one number is wanted
            raise ArgumentError(
                "targets", f"{self.name} cannot be made of these numbers", numbers
            ) from None

    def _parameter(self, key: str) -> inspect.Parameter:
        known = inspect.signature(RECIPES[self.name]).parameters
        if key not in known:
            raise ArgumentError(
                "targets",
                f"{self.name} takes no {key!r}; it takes {', '.join(known)}"
                f"{did_you_mean(key, known)}",
            )
        return known[key]


def recipe_of(words: Any) -> Recipe:
    """Return the constructor that words name, with its numbers.

    Args:
        words: The constructor's `name` and numbers, as a mapping or as "NAME:KEY=VALUE,...".

    Raises:
        ValueError: If there is no such constructor.
    """
    given = dict(words) if isinstance(words, Mapping) else _parsed(str(words))
    name = str(given.pop("name", ""))
    if name not in RECIPES:
        raise ArgumentError(
            "targets",
            f"must be {TARGETS}; the constructors are {', '.join(RECIPES)}; got "
            f"{name!r}{did_you_mean(name, RECIPES)}",
        )
    return Recipe(name, given)


def targets_from_file(path: str | os.PathLike[str]) -> Targets:
    """Return the targets of a file.

    An .npz file has the array `rows`, (R, K), and may have `counts` and `feature_weights`, (R,). A
    .csv file has one row per target. Its first line may name the columns; those that are called
    count and feature_weight are these two, and all others are outputs.

    Raises:
        ValueError: If the file cannot be read, or is not of this form.
    """
    text = os.fspath(path)
    if not text.lower().endswith(ENDINGS):
        raise ArgumentError("targets", f"{text}: the ending must be {' or '.join(ENDINGS)}")
    if not os.path.isfile(text):
        raise ArgumentError("targets", f"{text}: there is no such file")
    try:
        fields = _of_npz(text) if text.lower().endswith(".npz") else _of_csv(text)
        return Targets(**fields)
    except ArgumentError as error:
        raise ArgumentError("targets", f"{text}: {str(error).rstrip('.')}") from None
    except Exception as error:  # whatever is wrong with a damaged archive or text
        raise ArgumentError(
            "targets", f"{text}: cannot be read: {' '.join(str(error).split())}"
        ) from None


def _of_npz(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            if name not in FIELDS:
                raise ArgumentError(
                    name,
                    f"is no array of targets; they are {', '.join(FIELDS)}"
                    f"{did_you_mean(name, FIELDS)}",
                )
        if "rows" not in arrays.files:
            raise ArgumentError("rows", "is missing; it has one row per target")
        return {name: arrays[name] for name in arrays.files}


def _of_csv(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8-sig") as file:
        names = [cell.strip().strip('"') for cell in file.readline().split(",")]
    headed = not all(map(_is_number, names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a file without rows, which is refused below
        table = np.loadtxt(
            path,
            delimiter=",",
            skiprows=int(headed),
            ndmin=2,
            comments=None,
            quotechar='"',
            encoding="utf-8-sig",
        )
    if table.size == 0:
        raise ArgumentError("rows", "are missing; give one line per target")
    if headed and len(names) != table.shape[1]:
        raise ArgumentError(
            "rows", f"have {table.shape[1]} columns, and the first line names {len(names)}"
        )
    roles = [COLUMNS.get(name.lower(), 0) if headed else 0 for name in names]
    fields: dict[str, Any] = {"rows": table[:, np.equal(roles, 0)]}
    for role in (1, 2):
        found = np.flatnonzero(np.equal(roles, role))
        if found.size > 1:
            raise ArgumentError(FIELDS[role], "are named by two columns; leave one of them out")
        if found.size:
            fields[FIELDS[role]] = table[:, found[0]]
    return fields


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parsed(text: str) -> dict[str, Any]:
    """Return the name and the numbers of a text such as "noisy:noise=0.1,class_counts=2x5,3"."""
    name, _, rest = text.partition(":")
    words: dict[str, Any] = {"name": name}
    for part in re.split(r",(?=\s*\w+=)", rest) if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key == "name":
            raise ArgumentError("targets", f"must be {TARGETS}; cannot read {part!r} in {text!r}")
        cells = value.split(",")
        if key == "class_counts" or not all(map(_is_number, cells)):
            words[key] = value
        else:
            numbers = [_plain(cell) for cell in cells]
            words[key] = numbers if len(numbers) > 1 else numbers[0]
    return words


def _plain(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_numeric, value))
    return (
        isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


# The constructors. A keyword is what words call it; one without a default is needed.


def _one_hot(class_counts: Any) -> Targets:
    return Targets.one_hot(_classes(class_counts))


def _noisy(noise: Any, class_counts: Any) -> Targets:
    return Targets.noisy(noise, _classes(class_counts))


def _multi_label(num_labels: int, samples: Any) -> Targets:
    """Take how many samples have one label, two labels, and so on."""
    each = [samples] if np.ndim(samples) == 0 else samples
    return Targets.multi_label(num_labels, {m: n for m, n in enumerate(each, start=1) if n > 0})


def _mixup(num_classes: int, lam: Any, mixed: Any, count: float = 1.0) -> Targets:
    """Take the mixing weights, and how many samples each ordered pair has at each of them."""
    weights, numbers = np.atleast_1d(lam).tolist(), np.atleast_1d(mixed).tolist()
    if len(numbers) == 1:
        numbers = numbers * len(weights)
    if len(numbers) != len(weights):
        raise ArgumentError("mixed", f"must be one number, or {len(weights)}, one per lam", mixed)
    return Targets.mixup(num_classes, count, dict(zip(weights, numbers, strict=True)))


def _teacher(
    temperature: float,
    num_classes: int = 0,
    margin: float | None = None,
    logits: Any = None,
    counts: Any = None,
) -> Targets:
    """Take softmax(logits / temperature), of logits that are given or `margin` on the own class."""
    check_numbers("temperature", temperature, positive=True)
    if (margin is None) == (logits is None):
        raise ArgumentError("margin", "or `logits` must be given, one of the two", margin)
    if logits is None:
        check_numbers("margin", margin)
        logits = float(margin or 0.0) * np.eye(checked_whole("num_classes", num_classes, 2))
    scaled = np.asarray(logits, np.float64) / max(temperature, LEAST_TEMPERATURE)
    if scaled.ndim != 2:
        raise ArgumentError("logits", "must be a matrix with one row per target", logits)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    rows = exponentials / exponentials.sum(axis=1, keepdims=True)
    number = np.ndim(counts) == 0 and counts is not None
    return Targets(rows, np.full(len(rows), counts) if number else counts)


def _random_contexts(
    num_tokens: int, num_contexts: int, support: int, seed: int = 0, counts: Any = None
) -> Targets:
    """Take contexts after which `support` tokens occur, drawn at random.

    The tokens and their weights are drawn in one order for each context, so that a larger support
    contains a smaller one of the same seed.
    """
    V, R = checked_whole("num_tokens", num_tokens), checked_whole("num_contexts", num_contexts)
    size = checked_whole("support", support, 1, V)
    rng = np.random.default_rng(checked_whole("seed", seed, 0))
    order = np.argsort(rng.random((R, V)), axis=1)[:, :size]
    weights = rng.exponential(size=(R, V))[:, :size]
    rows = np.zeros((R, V))
    np.put_along_axis(rows, order, weights, axis=1)
    number = 1.0 if counts is None else counts
    return Targets.contexts(rows, np.full(R, number) if np.ndim(number) == 0 else number)


def _classes(class_counts: Any) -> ClassGroups:
    if isinstance(class_counts, str):
        return parse_counts(class_counts)
    return ClassGroups(class_counts)


RECIPES: dict[str, Callable[..., Targets]] = {
    "one-hot": _one_hot,
    "multi-label": _multi_label,
    "contexts": Targets.contexts,
    "random-contexts": _random_contexts,
    "regression": Targets.regression,
    "mixup": _mixup,
    "hierarchy": Targets.hierarchy,
    "noisy": _noisy,
    "teacher": _teacher,
}
