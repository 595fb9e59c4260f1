"""Sweeps in a TOML file, whose tables stand for the arguments of `ufm.sweep`.

    [problem]                         # the words of `ufm solve`
    class_counts = "5x500,5x5"        # or a list of numbers
    # targets = "tags.npz"            # instead: a file, or a constructor with its numbers, such as
                                      # {name = "noisy", noise = 0.1, class_counts = "4x50"}
    feature_dim = 10                  # the number of classes if not given
    loss = "ce"                       # or {name = "focal", parameter = 2.0}, or "module:name"
    weight_decay = 5e-3               # or one number per layer; or weight_ball and feature_ball
    feature_decay = 1e-5              # also: bias, bias_decay, hidden, activation,
                                      # nonnegative_features

    [over]                            # names of `ufm.sweep`; at least one
    # log-spaced where low > 0, or scale = "linear"
    weight_decay = {low = 1e-6, high = 1e-2, points = 300}
    imbalance_ratio = [1, 10, 100]
    # loss = ["ce", {name = "focal", parameter = 2.0}]

    [sweep]                           # optional: how, quantities, resolution, tol, restarts,
                                      # max_steps, batch
    tol = 1e-9

Keys of [over] with a dot may be written as they are: `regularizer.weights = [...]`, `loss.alpha =
[...]`. A number of the targets' constructor is varied as `targets.noise = [...]`; `targets = [...]`
lists files and constructors.
"""

import functools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm._support import ArgumentError, did_you_mean
from ufm.problems import (
    ARGUMENTS,
    BALLS,
    LOSSES,
    PATH,
    WORDS,
    Problem,
    Targets,
    is_path,
    loss_of,
    parse_counts,
    problem_of,
    recipe_of,
    targets_of,
    variable_of,
)
from ufm.sweeps.points import points_of
from ufm.sweeps.quantities import QUANTITIES

__all__ = ["Config", "example", "examples", "read_config"]

TABLES = ("problem", "over", "sweep")
RANGE = "{low = 1e-6, high = 1e-2, points = 100}"
TARGETS_IN_WORDS = (
    'a file such as "tags.npz", or a table such as {name = "noisy", noise = 0.1, '
    'class_counts = "4x50"}'
)
LOSS = 'a name such as "ce", or a table such as {name = "focal", parameter = 2.0}'


class Config(NamedTuple):
    """A sweep as a file states it: `ufm.sweep(config.problem, config.over, **config.settings)`.

    Attributes:
        problem: The problem.
        over: The values to sweep, by name.
        settings: All other arguments of `ufm.sweep`.
    """

    problem: Problem
    over: dict[str, Any]
    settings: dict[str, Any]


def examples() -> tuple[str, ...]:
    """Return the names of the sweeps that come with the package."""
    folder = files("ufm.sweeps").joinpath("examples")
    return tuple(
        sorted(
            entry.name.removesuffix(".toml")
            for entry in folder.iterdir()
            if entry.name.endswith(".toml")
        )
    )


def example(name: str) -> str:
    """Return the text of a sweep that comes with the package.

    Raises:
        ValueError: For a name that there is not.
    """
    if name not in examples():
        raise ValueError(
            f"there is no example {name!r}; the examples are {', '.join(examples())}"
            f"{did_you_mean(name, examples())}"
        )
    return files("ufm.sweeps").joinpath("examples", f"{name}.toml").read_text(encoding="utf-8")


def read_config(source: str | os.PathLike[str]) -> Config:
    """Return the sweep of a TOML file.

    Args:
        source: The file's path, or the name of an example.

    Raises:
        ValueError: For a file that is not there or not TOML, and for tables, keys and values that
            are not possible; each names its table and key.
    """
    path = Path(source)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not TOML, which is text in UTF-8: {error}") from None
    elif str(source) in examples():
        text = example(str(source))
    else:
        raise ValueError(
            f"{source}: there is no such file, and no example of that name "
            f"({', '.join(examples())}){did_you_mean(str(source), examples())}"
        )
    try:
        return _config(tomllib.loads(text), path.parent)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"{source} is not TOML: {' '.join(str(error).split())}; mend that line"
        ) from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _config(tables: Mapping[str, Any], folder: Path) -> Config:
    for name, table in tables.items():
        if name not in TABLES:
            known = ", ".join(f"[{table}]" for table in TABLES)
            raise ValueError(
                f"[{name}] is not known; the tables are {known}{did_you_mean(name, TABLES)}"
            )
        if not isinstance(table, dict):
            raise ValueError(
                f"{name} must be a table, got {_shown(table)}; begin it with a line [{name}]"
            )
    for name in TABLES[:2]:
        if not tables.get(name):
            lines = ('class_counts = "5x500,5x5"', f"weight_decay = {RANGE}")
            raise ValueError(
                f"[{name}] is missing or empty; give it, with lines such as {lines[name == 'over']}"
            )
    problem = _problem(tables["problem"], folder)
    settings = _settings(tables.get("sweep", {}))
    over = _over(tables["over"], tables["problem"].get("targets"), folder)
    try:
        points_of(problem, over, settings.get("how", "grid"))
    except ValueError as error:
        message = re.sub(r"`over\[(['\"])(.*?)\1\]`", r"[over] \2", str(error)).replace(
            "`over`", "[over]"
        )
        raise ValueError(message if message.startswith("[") else f"[over] {message}") from None
    return Config(problem, over, settings)


def _problem(table: Mapping[str, Any], folder: Path) -> Problem:
    words: dict[str, Any] = {}
    for key, value in table.items():
        if key not in WORDS or key == "loss_parameter":
            known = ", ".join(word for word in WORDS if word != "loss_parameter")
            raise ValueError(
                f"[problem] {key} is not known, got {_shown(value)}; the keys are {known}"
                f"{did_you_mean(key, WORDS)}"
            )
        kind, wanted = {
            "class_counts": (_counts, 'a text such as "5x500,5x5", or a list of numbers'),
            "feature_dim": (_whole, "a whole number"),
            "targets": (_targets_like, TARGETS_IN_WORDS),
            "loss": (_loss_like, LOSS),
            "weight_decay": (_layers, "a number, or a list of one per layer"),
            "weight_ball": (_layers, "a number, or a list of one per layer"),
            "bias": (_truth, "true or false"),
            "nonnegative_features": (_truth, "true or false"),
            "hidden": (_widths, "a list of whole numbers, such as [64, 64]"),
            "activation": (_text, '"linear" or "relu"'),
        }.get(key, (_number, "a number"))
        _check(kind(value), f"[problem] {key}", wanted, value)
        if key == "targets":
            words[key] = _targets("[problem] targets", functools.partial(targets_of, value, folder))
        else:
            words[key] = _loss("[problem] loss", value) if key == "loss" else value
    try:
        return problem_of(words)
    except ValueError as error:
        names = ARGUMENTS | (BALLS if "weight_ball" in words else {})
        word = names.get(error.argument) if isinstance(error, ArgumentError) else None
        raise ValueError(f"[problem] {word}: {error}" if word else f"[problem] {error}") from None


def _over(table: Mapping[str, Any], stated: Any, folder: Path) -> dict[str, Any]:
    """Return values by name. TOML reads dotted keys, such as loss.alpha, as tables.

    Args:
        table: The table [over].
        stated: The words of the targets in [problem]; None without.
        folder: Where the paths of files of targets begin.
    """
    over: dict[str, Any] = {}
    for key, value in table.items():
        if key.partition(".")[0] == "targets":
            over |= _over_targets(key, value, stated, folder)
        elif (
            key in ("regularizer", "loss")
            and isinstance(value, dict)
            and not {"name", "low"} & set(value)
        ):
            over |= {
                f"{key}.{name}": _values(f"{key}.{name}", entry) for name, entry in value.items()
            }
        else:
            over[key] = _values(key, value)
    return over


def _over_targets(key: str, value: Any, stated: Any, folder: Path) -> dict[str, Any]:
    """Return axes of targets: those of a list, or of a constructor by its numbers."""
    if key != "targets":
        return {key: _targets_along(key, value, stated)}
    where = f"[over] {key}"
    if isinstance(value, dict) and value:
        return {
            f"{key}.{name}": _targets_along(f"{key}.{name}", entry, stated)
            for name, entry in value.items()
        }
    _check(
        isinstance(value, list) and len(value) > 0 and all(map(_targets_like, value)),
        where,
        f"a list, each entry {TARGETS_IN_WORDS}, or varied by a number of the constructor, such as "
        "targets.noise = [0.1, 0.2]",
        value,
    )
    made = {}
    for entry in value:
        label = entry if isinstance(entry, str) else _shown(entry)
        made[label] = _targets(where, functools.partial(targets_of, entry, folder))
    return {key: made}


def _targets_along(key: str, value: Any, stated: Any) -> dict[float, Targets]:
    """Return the targets of the constructor in [problem] by one of its numbers."""
    where, name = f"[over] {key}", key.partition(".")[2]
    if not _is_recipe(stated):
        raise ValueError(
            f"{where} varies a number of a constructor, and [problem] targets is "
            f"{'missing' if stated is None else _shown(stated)}; give a table there, such as "
            '{name = "noisy", noise = 0.1, class_counts = "4x50"}'
        )
    recipe = _targets(where, lambda: recipe_of(stated))
    whole = _targets(where, lambda: recipe.takes_whole(name))
    if isinstance(value, dict):
        value = _spaced(where, value, whole).tolist()
    _check(
        isinstance(value, list) and len(value) > 0 and all(map(_number, value)),
        where,
        f"a list of numbers, or a range such as {RANGE}",
        value,
    )
    _check(len(set(value)) == len(value), where, "a list with every value once", value)
    return {
        number: _targets(where, functools.partial(recipe, **{name: number})) for number in value
    }


def _targets(where: str, make: Callable[[], Any]) -> Any:
    """Return what is made of words; errors begin with their place in the file."""
    try:
        return make()
    except ArgumentError as error:
        raise ValueError(f"{where} {error.claim}") from None


def _values(key: str, value: Any) -> Any:
    """Return the values of one axis, from a list or a range."""
    where = f"[over] {key}"
    variable = variable_of(key)
    whole = variable is not None and variable.whole
    countable = whole or variable is None or not variable.structural
    if isinstance(value, dict) and countable and key != "class_counts":
        return _spaced(where, value, whole)
    wanted = f"a list of values{f', or a range such as {RANGE}' if countable else ''}"
    _check(isinstance(value, list) and len(value) > 0, where, wanted, value)
    if key == "loss":
        for entry in value:
            _check(_loss_like(entry), where, f"a list, each entry {LOSS}", entry)
        return [_loss(where, entry) for entry in value]
    if key == "class_counts":
        for entry in value:
            _check(
                _counts(entry),
                where,
                'a list, each entry a text such as "5x500,5x5" or a list of numbers',
                entry,
            )
        try:
            return [parse_counts(row).per_class if isinstance(row, str) else row for row in value]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if countable:
        for entry in value:
            _check(_number(entry), where, "a list of numbers", entry)
    return value


def _spaced(where: str, table: Mapping[str, Any], whole: bool) -> Any:
    """Return the values of a range, ends included; whole numbers are rounded and kept once."""
    for key in table:
        _check(
            key in ("low", "high", "points", "scale"),
            where,
            f"a range such as {RANGE}, without {key!r}",
            table,
        )
    missing = [key for key in ("low", "high", "points") if key not in table]
    if missing:
        raise ValueError(
            f"{where} lacks {missing[0]}, got {_shown(table)}; give a range such as {RANGE}"
        )
    low, high, points = table["low"], table["high"], table["points"]
    scale = table.get("scale", "log" if _number(low) and low > 0 else "linear")
    _check(
        _number(low) and _number(high) and low < high,
        where,
        "a range whose low is below its high",
        table,
    )
    _check(
        _whole(points) and points >= 2, where, "a range of at least 2 points, a whole number", table
    )
    _check(scale in ("log", "linear"), where, 'a range whose scale is "log" or "linear"', table)
    _check(
        scale == "linear" or low > 0,
        where,
        'a range whose low is positive, or whose scale is "linear"',
        table,
    )
    values = np.geomspace(low, high, points) if scale == "log" else np.linspace(low, high, points)
    return np.unique(np.round(values).astype(int)) if whole else values


def _settings(table: Mapping[str, Any]) -> dict[str, Any]:
    def one_of(*choices: str) -> tuple[Any, str]:
        return lambda value: value in choices, " or ".join(f'"{choice}"' for choice in choices)

    at_least_one = (lambda value: _whole(value) and value >= 1, "a whole number of at least 1")
    known = {
        "how": one_of("grid", "zip"),
        "quantities": (
            lambda value: (
                isinstance(value, list)
                and all(_text(name) and name in QUANTITIES for name in value)
            ),
            f"a list of names among {', '.join(QUANTITIES)}",
        ),
        "resolution": one_of("auto", "groups", "classes"),
        "tol": (lambda value: _number(value) and value > 0, "a positive number"),
        "restarts": at_least_one,
        "max_steps": at_least_one,
        "batch": at_least_one,
    }
    for key, value in table.items():
        if key not in known:
            raise ValueError(
                f"[sweep] {key} is not known, got {_shown(value)}; the keys are "
                f"{', '.join(known)}{did_you_mean(key, known)}"
            )
        possible, wanted = known[key]
        _check(possible(value), f"[sweep] {key}", wanted, value)
    return dict(table)


def _loss(where: str, value: Any) -> Any:
    name, parameter = (
        (value, None) if isinstance(value, str) else (value["name"], value.get("parameter"))
    )
    known = f"one of {', '.join(LOSSES)}, or {PATH}"
    _check(name in LOSSES or is_path(name), where, known, value)
    try:
        return loss_of(name, parameter, lambda word: word.removeprefix("loss_"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; give {LOSS}") from None


def _check(possible: bool, where: str, wanted: str, value: Any) -> None:
    if not possible:
        raise ValueError(f"{where} must be {wanted}; got {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a value as TOML has it, near enough."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_shown(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_shown(entry) for entry in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _counts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(map(_number, value))
    )


def _layers(value: Any) -> bool:
    return _number(value) or (
        isinstance(value, list) and len(value) > 0 and all(map(_number, value))
    )


def _widths(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _targets_like(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and _text(value.get("name")))


def _is_recipe(value: Any) -> bool:
    """Return whether words of targets name a constructor, not a file."""
    return isinstance(value, dict) or (
        isinstance(value, str) and not value.lower().endswith((".npz", ".csv"))
    )


def _loss_like(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            "name" in value
            and set(value) <= {"name", "parameter"}
            and _number(value.get("parameter", 0.0))
        )
    return isinstance(value, str)
