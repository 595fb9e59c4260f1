"""The differences of two states, quantity by quantity, each with its unit and level.

Classes of equal size are interchangeable in the model, but not in the world. So every error is
given twice: class by class, and of the averages over classes of one group (for a matrix, averages
over pairs of classes of two groups, and over single classes).
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from ufm._support import printed
from ufm.metrics import NeuralCollapse
from ufm.networks.effective.state import TRACES, State
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
# Names of rows, their keys in `NeuralCollapse.to_dict()`, and whether they need samples.
_COLLAPSE = (
    ("NC1 tr(S_W S_B^+)/K", "nc1_pinv", True),
    ("NC2 means to ETF", "nc2_features_etf_distance", False),
    ("NC2 means to frame", "nc2_features_orthogonal_distance", False),
    ("NC2 weights to ETF", "nc2_weights_etf_distance", False),
    ("NC3 |W/|W| - M/|M||^2", "nc3_squared_distance", False),
    ("NC4 mismatch", "nc4_mismatch", True),
)


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
    measured: State, predicted: State, groups: np.ndarray, with_samples: bool
) -> list[Difference]:
    """Return the differences of two states.

    Args:
        measured: The state of the network.
        predicted: The state of the minimiser.
        groups: The group of each class, (K,).
        with_samples: Whether NC1 and NC4 are those of samples, and so are compared.
    """
    m, p = measured, predicted
    average = averages_over(groups)
    objective = p.loss.total

    def of(name: str) -> tuple[Any, Any]:
        return getattr(m, name), getattr(p, name)

    found = [_row("objective", m.loss.total, objective, None, objective, "the whole minimum")]
    terms = [
        ("data term", m.loss.data, p.loss.data),
        ("data term at class means", m.loss.data_at_means, p.loss.data_at_means),
    ]
    names = (
        ["weight penalty"]
        if m.loss.weights.size == 1
        else [f"penalty of layer {i + 1}" for i in range(m.loss.weights.size)]
    )
    terms += list(zip(names, m.loss.weights, p.loss.weights, strict=True))
    terms += [
        ("feature penalty", m.loss.features, p.loss.features),
        ("bias penalty", m.loss.bias, p.loss.bias),
    ]
    found += [_row(name, a, b, None, objective, "the whole minimum") for name, a, b in terms]
    for name in ("mean_norms", "weight_norms", "mean_gram", "weight_gram"):
        found.append(_row(name.replace("_", " "), *of(name), average))
    for name in ("mean_cosines", "centred_cosines", "weight_cosines", "alignment"):
        text = "centred mean cosines" if name == "centred_cosines" else name.replace("_", " ")
        shown_as = "mean" if name == "alignment" else "mean j != k"
        found.append(_row(text, *of(name), average, 1.0, "1 (root mean square)", shown_as))
    found.append(_row("logits", *of("logits"), average))
    found.append(_row("margins", *of("margins"), average, shown_as="mean"))
    scale = float(np.sqrt(np.mean(p.logits**2)))
    found.append(_row("bias", *of("bias"), average, scale, "root mean square of the logits"))
    for name in ("mean_spectrum", "weight_spectrum"):
        found.append(_row(name.replace("_", " "), *of(name), None))
    return found + _collapse_rows(m.collapse, p.collapse, with_samples)


def _collapse_rows(m: NeuralCollapse, p: NeuralCollapse, with_samples: bool) -> list[Difference]:
    measured, predicted = m.to_dict(), p.to_dict()
    return [
        _row(name, measured[key], predicted[key], None, 1.0, "1 (difference)")
        for name, key, of_samples in _COLLAPSE
        if key in measured and key in predicted and (with_samples or not of_samples)
    ]


def _row(
    quantity: str,
    measured: Any,
    predicted: Any,
    average: Callable[[np.ndarray], np.ndarray] | None,
    scale: float | None = None,
    relative_to: str = "the predicted norm",
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
