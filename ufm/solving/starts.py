"""The number of initial points of a problem, and the sets in which they are tried."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._support import double_precision, rebuilt
from ufm.certificates import (
    has_convex_form,
    has_one_minimum,
    has_singular_value_form,
    has_tight_bound,
    needed_dimension,
)
from ufm.problems import Problem, has_structures, samples_of, starts_of, truncations
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

__all__ = ["default_restarts", "exchanged_starts", "scales_of", "start_sets", "structured_starts"]

DEFAULT_RESTARTS = 8  # of deep models
MAX_SETS = 5  # sets of so many, for deep models whose optimal value is known
# Size of the perturbation of structured starts, which may be saddle points, relative to the
# unknowns' root mean square.
PERTURBATION = 1e-3
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


def structured_starts(
    problem: Problem, generator: np.random.Generator, solve: Callable[..., Any]
) -> Float[np.ndarray, "starts n"]:
    """Return initial points near known points of low objective, in balanced coordinates.

    The shape is (0, 0) where none are known.

    Deep models: `ufm.constructions`. One layer whose dimension is too small for the convex
    minimiser: truncations of that minimiser.

    Args:
        problem: The problem, with one count per class.
        generator: The generator of the perturbations.
        solve: `ufm.solve`, for the minimiser with more dimensions.
    """
    if has_structures(problem):
        return starts_of(problem, generator)
    if not has_convex_form(problem) or problem.feature_dim >= needed_dimension(problem):
        return np.zeros((0, 0))
    enough = rebuilt(problem, feature_dim=needed_dimension(problem))
    wide = solve(enough, resolution="classes", key=0)
    samples = samples_of(problem, problem.num_rows)
    with double_precision():
        points = [
            np.asarray(unknowns_at(problem, samples, made_once(LBFGS), point, jnp.float64))
            for point in truncations(problem, wide.parameters)
        ]
    (draws,) = generator.spawn(1)
    return np.stack(
        [x + PERTURBATION * np.sqrt(np.mean(x**2)) * draws.standard_normal(x.shape) for x in points]
    )


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
