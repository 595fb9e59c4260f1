"""The differences of two states, quantity by quantity, each with its unit and level.

Classes of equal size are interchangeable in the model, but not in the world. So every error is
given twice: class by class, and of the averages over classes of one group (for a matrix, averages
over pairs of classes of two groups, and over single classes). For other targets only what is by
label is averaged, if groups of labels are given.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from ufm._support import printed
from ufm.networks.effective.state import TRACES, State
from ufm.networks.effective.target_rows import TargetKind
from ufm.problems import Blocks

__all__ = [
    "LEVELS",
    "WORST",
    "Difference",
    "Level",
    "averages_over",
    "differences_of",
    "level_of",
]


# How far a network is from its model, by the size of the error. It is no `Status`, and unlike the
# verdict of a comparison with a theorem it does not depend on the accuracy of a solve.
Level = Literal["agrees", "close", "rough", "differs"]
LEVELS: tuple[tuple[Level, float], ...] = (("agrees", 0.01), ("close", 0.1), ("rough", 0.3))
WORST: Final = "differs"
PREDICTED = None, "the predicted norm"  # the unit where no other is said


@printed
class Difference(NamedTuple):
    """One quantity, measured and predicted, and how the two differ.

    Attributes:
        quantity: Its name.
        measured: Its number for the network.
        predicted: Its number for the minimiser.
        error: The root mean square of the differences, class by class, over the unit.
        group_error: The same of averages over the classes of each group; `error` for a number.
        relative_to: What the unit is; "1 (...)" for differences as they are.
        level: The level of the error.
        shown_as: What the two numbers are of an array: "mean", "mean j != k" over pairs of
            different classes, or "rms", the root of the mean square; "" for a number.
    """

    quantity: str
    measured: float
    predicted: float
    error: float
    group_error: float
    relative_to: str
    level: Level
    shown_as: str = ""


def differences_of(
    measured: State,
    predicted: State,
    groups: np.ndarray,
    with_samples: bool,
    kind: TargetKind,
) -> list[Difference]:
    """Return the differences of two states.

    Args:
        measured: The state of the network.
        predicted: The state of the minimiser.
        groups: The group of each class or label, (K,).
        with_samples: Whether metrics that need samples are of them, and so are compared.
        kind: What targets are.
    """
    m, p = measured, predicted
    of_labels = averages_over(groups)
    of_rows = of_labels if kind.rows_are_labels else None
    named = kind.named_rows

    def row(
        name: str,
        average: Any,
        unit: tuple[float | None, str] = PREDICTED,
        text: str = "",
        shown_as: str = "rms",
    ) -> Difference:
        values = getattr(m, name), getattr(p, name)
        return _row(text or name.replace("_", " "), *values, average, *unit, shown_as)

    found = _loss_rows(m, p)
    found += [row("mean_norms", of_rows)] if named else []
    found.append(row("weight_norms", of_labels))
    found += [row("mean_gram", of_rows), row("weight_gram", of_labels)]
    unit, pairs = (1.0, "1 (root mean square)"), "mean j != k"
    if named:
        found.append(row("mean_cosines", of_rows, unit, shown_as=pairs))
        text = "centred mean cosines"
        found.append(row("centred_cosines", of_rows, unit, text=text, shown_as=pairs))
    if len(m.weight_norms) > 1:
        found.append(row("weight_cosines", of_labels, unit, shown_as=pairs))
    found += [row("alignment", of_rows, unit, shown_as="mean")] if named else []
    found.append(row("logits", of_rows, _unit_of_logits(p, kind)))
    found += [row("margins", of_rows, shown_as="mean")] if p.margins.size else []
    scale = float(np.sqrt(np.mean(p.logits**2)))
    found.append(row("bias", of_labels, (scale, "root mean square of the logits")))
    found += [row(name, None) for name in ("mean_spectrum", "weight_spectrum")]
    return found + _collapse_rows(m.collapse, p.collapse, with_samples, kind)


def _loss_rows(m: State, p: State) -> list[Difference]:
    """Return the rows of the objective and its parts."""
    objective, layers = p.loss.total, m.loss.weights.size
    terms = [
        ("objective", m.loss.total, objective),
        ("data term", m.loss.data, p.loss.data),
        ("data term at class means", m.loss.data_at_means, p.loss.data_at_means),
    ]
    names = (
        ["weight penalty"] if layers == 1 else [f"penalty of layer {i + 1}" for i in range(layers)]
    )
    terms += list(zip(names, m.loss.weights, p.loss.weights, strict=True))
    terms += [
        ("feature penalty", m.loss.features, p.loss.features),
        ("bias penalty", m.loss.bias, p.loss.bias),
    ]
    return [_row(name, a, b, None, objective, "the whole minimum") for name, a, b in terms]


def _unit_of_logits(p: State, kind: TargetKind) -> tuple[float | None, str]:
    """Return the unit of logits: those of a regression count by their spread about their mean."""
    if kind.named_rows:
        return PREDICTED
    spread = _size(p.logits - p.logits.mean(axis=0))
    return (spread, "the predicted spread") if spread > 0 else PREDICTED


def _collapse_rows(m: Any, p: Any, with_samples: bool, kind: TargetKind) -> list[Difference]:
    measured, predicted = kind.numbers(m), kind.numbers(p)
    return [
        _row(one.quantity, measured[one.key], predicted[one.key], None, 1.0, "1 (difference)")
        for one in kind.metrics
        if one.key in measured and one.key in predicted and (with_samples or not one.of_samples)
    ]


def _row(
    quantity: str,
    measured: Any,
    predicted: Any,
    average: Callable[[np.ndarray], np.ndarray] | None,
    scale: float | None,
    relative_to: str,
    shown_as: str = "rms",
) -> Difference:
    """Return the row of a quantity.

    The root mean square error is divided by `scale`. Without it, by that of the prediction, or of
    the measurement where the prediction is zero.
    """
    a, b = (
        np.atleast_1d(np.asarray(measured, np.float64)),
        np.atleast_1d(np.asarray(predicted, np.float64)),
    )

    def error(a: np.ndarray, b: np.ndarray) -> float:
        difference, unit = _size(a - b), scale
        if unit is None:
            unit = _size(b) if _size(b) > 0 else _size(a)
        return difference / unit if unit > 0 else (0.0 if difference == 0 else np.inf)

    single = error(a, b)
    shown_as = "" if np.ndim(measured) == 0 else shown_as
    shown = _SHOWN[shown_as](a), _SHOWN[shown_as](b)
    grouped = single if average is None else error(average(a), average(b))
    return Difference(quantity, *shown, single, grouped, relative_to, level_of(single), shown_as)


def _size(array: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(array**2)))


def _mean_of_pairs(matrix: np.ndarray) -> float:
    """Return the mean of the cosines off the diagonal; zero where only rounding is left of it."""
    mean = float(np.mean(matrix[~np.eye(len(matrix), dtype=bool)]))
    return mean if abs(mean) > TRACES else 0.0


_SHOWN: dict[str, Callable[[np.ndarray], float]] = {
    "": lambda array: float(array[0]),
    "rms": _size,
    "mean": lambda array: float(np.mean(array)),
    "mean j != k": _mean_of_pairs,
}


def level_of(error: float) -> Level:
    """Return the level of an error; NaN is above all bounds."""
    return next((level for level, bound in LEVELS if error <= bound), WORST)


def averages_over(groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the average over permutations of classes within their groups.

    It takes vectors and matrices over classes.
    """
    sizes = np.bincount(groups)

    def average(values: np.ndarray) -> np.ndarray:
        if values.ndim == 1:
            return (np.bincount(groups, values) / sizes)[groups]
        return Blocks.average(values, groups).dense(groups)

    return average
