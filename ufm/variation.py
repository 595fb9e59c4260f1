"""Families of problems over groups: one problem with some of its numbers varied, in the words that a sweep uses.

The words are the field's own, "imbalance_ratio" (majority over minority, the majority's count fixed), "weight_decay" (sqrt(lambda_W lambda_H), both
penalties times one factor), "num_minority" (classes of the minority, K fixed), "minority_count", "majority_count", and paths of the problem:
"regularizer.weights", "regularizer.features", "regularizer.bias", "loss.gamma" and the like.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ufm.groups import GroupProblem, grouped, over_groups
from ufm.presolve import rebuilt
from ufm.problem import Problem
from ufm.regularizers import NormBall

__all__ = ["WORDS", "minority_of", "varied"]

WORDS = {
    "imbalance_ratio": "majority over minority, the majority's count fixed",
    "weight_decay": "sqrt(lambda_W lambda_H), both penalties times one factor",
    "num_minority": "minority classes, the number of all classes fixed",
    "minority_count": "samples per minority class",
    "majority_count": "samples per majority class",
    "regularizer.weights": "lambda_W, or E_W",
    "regularizer.features": "lambda_H, or E_H",
    "regularizer.bias": "lambda_b",
}


def minority_of(counts: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """Return the groups of the majority (largest count) and of the minority (smallest count), by their index."""
    del sizes
    return int(np.argmax(counts)), int(np.argmin(counts))


def varied(problem: Problem, over: Mapping[str, Any]) -> GroupProblem:
    """Return a problem over its groups with some numbers varied together: a batch, its axis last.

    Args:
        problem: of one layer, with a convex loss and room for the convex minimiser.
        over: values, (B,) arrays of one length or numbers, by word.

    Raises:
        ValueError: for a word that the problem does not have, or values that are not positive and finite.
    """
    data, _ = grouped(problem)
    columns = {word: np.atleast_1d(np.asarray(values, np.float64)) for word, values in over.items()}
    length = max((column.size for column in columns.values()), default=1)
    for word, column in columns.items():
        if column.ndim != 1 or column.size not in (1, length):
            raise ValueError(
                f"`over[{word!r}]` must be a flat sequence of {length} numbers or one, got shape {column.shape}."
            )
        if not np.all(np.isfinite(column)) or (
            np.any(column <= 0) and not word.startswith("loss.") and word != "regularizer.bias"
        ):
            raise ValueError(f"`over[{word!r}]` must be positive and finite, got {column.min():g} to {column.max():g}.")
    columns = {word: np.broadcast_to(column, (length,)) for word, column in columns.items()}
    counts = np.repeat(np.asarray(data.counts, np.float64)[:, None], length, axis=1)
    sizes = np.repeat(np.asarray(data.sizes, np.float64)[:, None], length, axis=1)
    loss, regularizer = _by_group(problem), problem.regularizer
    for word, column in columns.items():
        if word in ("imbalance_ratio", "num_minority", "minority_count", "majority_count"):
            majority, minority = _two(word, data)
            if word == "majority_count":
                counts[majority] = column
            elif word == "minority_count":
                counts[minority] = column
            elif word == "num_minority":
                total = sizes[majority] + sizes[minority]
                if np.any(column >= total):
                    raise ValueError(
                        f"`over['num_minority']` must be below the number of classes, {total[0]:g}, got {column.max():g}."
                    )
                sizes[majority], sizes[minority] = total - column, column
    if "imbalance_ratio" in columns:  # of the majority's count as varied
        majority, minority = _two("imbalance_ratio", data)
        counts[minority] = counts[majority] / columns["imbalance_ratio"]
    fields: dict[str, Any] = {}
    for word, column in columns.items():
        head, _, name = word.partition(".")
        if word == "weight_decay":
            if isinstance(regularizer, NormBall):
                raise ValueError(
                    "`over['weight_decay']` needs the regularizer WeightDecay; vary 'regularizer.features' of a NormBall."
                )
            factor = column / np.sqrt(float(data.weights) * float(data.features))
            fields |= {"weights": float(data.weights) * factor[None], "features": float(data.features) * factor}
        elif head == "regularizer" and hasattr(regularizer, name):
            fields[name] = column[None] if name == "weights" else column
        elif head == "loss" and _has_number(loss, name):
            loss = rebuilt(loss, **{name: column})
        elif word not in WORDS:
            raise ValueError(
                f"`over` has no {word!r} for this problem; it knows {', '.join(WORDS)}, and 'loss.NAME' of a loss's number."
            )
    if fields:
        full = {
            "weights": np.broadcast_to(regularizer.per_layer(1)[:, None], (1, length)),
            "features": regularizer.features,
        }
        regularizer = rebuilt(regularizer, **{**full, **fields})
    return over_groups(
        counts, sizes, loss, regularizer, use_bias=problem.use_bias, nonnegative_features=problem.nonnegative_features
    )


def _two(word: str, data: GroupProblem) -> tuple[int, int]:
    if data.num_groups != 2:
        raise ValueError(f"`over[{word!r}]` needs a step imbalance of two class sizes, got {data.num_groups} groups.")
    return minority_of(np.asarray(data.counts), np.asarray(data.sizes))


def _by_group(problem: Problem) -> Any:
    """Return the loss with parameters that are stated per class or per group as (G, 1) arrays."""
    _, groups = grouped(problem)
    first = np.array([np.argmax(groups == group) for group in range(int(groups.max()) + 1)])
    classes = problem.class_counts
    return jax.tree.map(
        lambda leaf: np.asarray(classes.expand(leaf, "loss"))[first][:, None] if np.ndim(leaf) == 1 else leaf,
        problem.loss,
    )


def _has_number(loss: Any, name: str) -> bool:
    value: Any = getattr(loss, name, None)
    return isinstance(value, np.ndarray) and value.ndim == 0
