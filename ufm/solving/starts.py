"""The number of initial points of a problem, and the sets in which they are tried."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._support import double_precision
from ufm.certificates import (
    has_convex_form,
    has_one_minimum,
    has_singular_value_form,
    has_tight_bound,
)
from ufm.problems import Problem, samples_of
from ufm.solving.escapes import exchanged
from ufm.solving.methods import (
    LBFGS,
    has_kinks,
    made_once,
    most_starts,
    num_unknowns,
    search_scales,
    start_scales,
)
from ufm.solving.programs import unknowns_at

__all__ = ["default_restarts", "exchanged_starts", "scales_of", "start_sets"]

DEFAULT_RESTARTS = 8  # of deep models
MAX_SETS = 5  # sets of so many, for deep models whose optimal value is known
SET = 21  # starts that are solved together where one alone was not certified


def default_restarts(problem: Problem, *, plain: bool = True, rows: int | None = None) -> int:
    """Return how many random initial points a problem gets at most, if the caller does not say.

    Args:
        problem: The problem, with its widths as they are solved.
        plain: Whether the caller leaves the choice of methods to the solver.
        rows: Number of feature rows; one per class if not given.
    """
    if not has_convex_form(problem):
        return DEFAULT_RESTARTS * (MAX_SETS if plain and has_singular_value_form(problem) else 1)
    if not plain or has_one_minimum(problem):
        return 1
    return most_starts(num_unknowns(problem, rows or problem.num_rows))


def exchanged_starts(problem: Problem, parameters: Any) -> Float[np.ndarray, "pairs n"]:
    """Return points of balanced coordinates in which two classes have changed places.

    Args:
        problem: A problem of one layer, with one count per class.
        parameters: The point: weights, features by class, and bias.
    """
    samples = samples_of(problem, problem.num_rows)
    with double_precision():
        x = unknowns_at(problem, samples, made_once(LBFGS), parameters, jnp.float64)
    return exchanged(problem, np.asarray(x))


def scales_of(problem: Problem, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Return the sizes of random initial points, from the `first` of all on."""
    if has_convex_form(problem):
        return search_scales(first, count)
    return start_scales(count, has_kinks(problem))


def start_sets(problem: Problem, restarts: int) -> list[int]:
    """Return how many random initial points are solved together, set after set.

    The sets are tried until the best point is certified. One layer with a bound that is tight: one
    alone, which is often enough, then sets of equal sizes. Deep models whose optimal value is
    known: sets of 8. Others: all.
    """
    if has_singular_value_form(problem):
        together, alone = DEFAULT_RESTARTS, 0
    elif has_convex_form(problem) and has_tight_bound(problem):
        together, alone = SET, 1
    else:
        return [restarts]
    left = restarts - alone
    sets = -(-left // together)
    return [1] * alone + [left // sets + (index < left % sets) for index in range(sets)]
