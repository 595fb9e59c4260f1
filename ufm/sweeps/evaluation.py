"""From points to quantities.

The points of one structure are solved together, over groups or over classes. What is left is
solved one by one.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from ufm._support import Status, devices, double_precision, has_converged
from ufm.certificates import (
    has_convex_form,
    has_singular_value_form,
    has_tight_bound,
    longest_sum,
    relative_scale,
    rounding_of,
    singular_value_bound,
)
from ufm.problems import (
    Family,
    Problem,
    check_group_form,
    class_samples,
    family_of,
    has_structures,
    narrowed,
    variable_of,
)
from ufm.solving import (
    ClassMinima,
    SolveInterrupted,
    choose_resolution,
    default_restarts,
    exchanged_starts,
    solve,
    solve_batch,
    solve_class_batch,
    start_sets,
    structured_starts,
)
from ufm.solving.methods import generator
from ufm.sweeps.points import Points
from ufm.sweeps.predictions import LARGEST, predictions
from ufm.sweeps.quantities import (
    FILL,
    PREDICTED,
    QUANTITIES,
    of_class_minima,
    of_group_minima,
    of_solution,
)

__all__ = ["Settings", "blank", "evaluate", "resolution_for"]

SHORTEST_LINE = 12  # points along which starts are interpolated
SQUARED_ROUNDING = 1e-28  # of a squared error in float64
MAX_EXCHANGES = 10  # rounds in which two classes are exchanged
LOWER = 1e-9  # relative difference of objectives of different minima
MOST_UNKNOWNS = 8000  # of problems that are solved together


class Settings(NamedTuple):
    """How points are solved, and which quantities are kept.

    Attributes:
        tol: As in `ufm.sweep`, and so are the next four.
        resolution: "auto", "groups" or "classes".
        restarts: Starts of every solve; the default of `ufm.solve` if None.
        max_steps: Most steps of every solve; the default of `ufm.solve` if None.
        quantities: The names of the quantities to keep.
        num_groups: The largest number of groups in the sweep.
        key: Seed of the starts.
        threads: Threads for the chunks of a batch; the number of cores if None.
    """

    tol: float
    resolution: Literal["auto", "groups", "classes"]
    restarts: int | None
    max_steps: int | None
    quantities: tuple[str, ...]
    num_groups: int
    key: int = 0
    threads: int | None = None


def evaluate(
    points: Points, flat: Int[np.ndarray, " n"], settings: Settings
) -> dict[str, np.ndarray]:
    """Return the quantities of some of the points by name, (n, ...) each.

    Every point has a row, also if its solve failed.
    """
    found = {name: blank(name, (len(flat),), settings.num_groups) for name in settings.quantities}
    for problem, members, numbers in points.by_structure(flat):
        seeds = np.broadcast_to(numbers.pop("seed", settings.key), members.shape)
        family = family_of(problem, numbers, len(members))
        rows = _evaluated(family, seeds, lines_of({**numbers, "seed": seeds}), settings)
        groups = len(family.sizes)
        for name in settings.quantities:
            where: Any = (members, *(slice(0, groups) for _ in QUANTITIES[name].dims))
            found[name][where] = rows[name]
    return found


def blank(name: str, shape: tuple[int, ...], num_groups: int) -> np.ndarray:
    """Return the array of a quantity with nothing computed yet."""
    quantity = QUANTITIES[name]
    return np.full(
        (*shape, *(num_groups for _ in quantity.dims)), FILL[quantity.dtype], quantity.dtype
    )


def resolution_for(problem: Problem, num_groups: int, wanted: str) -> str:
    """Return how points are solved: together over "groups" or "classes", or "one by one".

    Raises:
        ValueError: If the resolution that was asked for does not exist.
    """
    if wanted == "groups":
        check_group_form(problem, "resolution", "'groups' is for", "use 'auto' or 'classes'")
    if wanted == "auto" and choose_resolution(problem, num_groups, together=True) == "groups":
        wanted = "groups"
    if wanted == "groups" and problem.feature_cone.rotates:
        return "groups"
    widths = narrowed(problem).layer_dims
    unknowns = problem.num_rows * widths[0] + sum(a * b for a, b in itertools.pairwise(widths))
    return "classes" if unknowns <= MOST_UNKNOWNS and wanted != "groups" else "one by one"


def _evaluated(
    family: Family, seeds: np.ndarray, lines: np.ndarray | None, settings: Settings
) -> dict[str, np.ndarray]:
    problem, groups = family.problem, len(family.sizes)
    how = resolution_for(problem, groups, settings.resolution)
    # Programs with decompositions must not run at the same time (see `ufm.solving.class_batch`);
    # two groups have none.
    written_out = how == "groups" and groups <= 2 and problem.loss.shift_invariant
    together = written_out and settings.threads != 1 and devices() == 1
    rows = {name: blank(name, (family.length,), groups) for name in QUANTITIES}
    with ThreadPoolExecutor(1) as pool:
        predicted = pool.submit(_predicted, family, settings) if together else None
        if how == "groups":
            rows |= _solved_over_groups(family, settings)
        elif how == "classes":
            rows |= _solved_over_classes(family, seeds, lines, settings)
        again = (
            np.arange(family.length)
            if how == "one by one"
            else np.flatnonzero(_worth_more(problem, rows, settings))
        )
        rows |= _predicted(family, settings) if predicted is None else predicted.result()
    for lane in again:
        one = _solved_alone(family, int(lane), int(seeds[lane]), settings)
        if one["certified"][0] or not one["objective"][0] > rows["objective"][lane]:
            for name, values in one.items():
                rows[name][lane] = values[0]
    return rows


def _solved_over_groups(family: Family, settings: Settings) -> dict[str, np.ndarray]:
    problems = family.over_groups()
    minima = solve_batch(problems, workers=settings.threads, max_steps=settings.max_steps)
    return of_group_minima(problems, minima, settings.tol)


def _solved_over_classes(
    family: Family, seeds: np.ndarray, lines: np.ndarray | None, settings: Settings
) -> dict[str, np.ndarray]:
    problem, narrow = family.problem, narrowed(family.over_classes())
    near, restarts = None, settings.restarts
    if restarts is None:
        lanes = (
            jax.tree.map(lambda leaf, lane=lane: leaf[lane], narrow)
            for lane in range(family.length)
        )
        if has_structures(problem) or not has_tight_bound(problem):
            each = zip(lanes, seeds, strict=True)
            near = np.stack(
                [structured_starts(lane, generator(int(seed)), solve) for lane, seed in each]
            )
        # What the first set of starts does not certify is solved again by itself.
        restarts = start_sets(narrow, default_restarts(narrow))[0]
    found = solve_class_batch(
        narrow,
        tol=settings.tol,
        keys=seeds,
        restarts=restarts,
        lines=lines,
        near=near if near is not None and near.size else None,
        max_steps=settings.max_steps,
        workers=settings.threads,
    )
    if near is not None and near.size and has_convex_form(problem):
        found = _exchanged(narrow, found, restarts + near.shape[1], settings)
    if has_singular_value_form(problem):
        bounds = np.array([singular_value_bound(family.at(lane)) for lane in range(family.length)])
        largest = np.max(np.abs(found.logits), axis=(1, 2))
        with double_precision():
            at_zero = float(problem.value_at_zero(class_samples(problem, np.float64)))
        rounding = rounding_of(found.objective, at_zero, largest, longest_sum(problem), False)
        status = np.where(found.objective - bounds < -rounding, Status.CONTRADICTION, found.status)
        found = found._replace(
            lower_bound=bounds, scale=relative_scale(bounds, at_zero), status=status
        )
    return of_class_minima(narrow, found, family.members, len(family.sizes), settings.tol)


def _exchanged(problems: Problem, found: ClassMinima, most: int, settings: Settings) -> ClassMinima:
    """Return the minima that exchanges of two classes lead to, as `solve` tries them.

    Args:
        problems: With a batch axis.
        found: Their minima so far.
        most: Pairs of classes up to which they are exchanged.
        settings: Of the sweep.
    """
    length = len(found.objective)
    for _ in range(MAX_EXCHANGES):
        both = problems, found.parameters
        lanes = (jax.tree.map(lambda leaf, k=k: leaf[k], both) for k in range(length))
        near = np.stack([exchanged_starts(*lane) for lane in lanes])
        if not 0 < near.shape[1] <= most:
            return found
        other = solve_class_batch(
            problems,
            tol=settings.tol,
            restarts=0,
            near=near,
            max_steps=settings.max_steps,
            workers=settings.threads,
        )
        lower = other.objective < found.objective - LOWER * np.abs(found.objective)
        if not np.any(lower):
            return found
        steps = found.steps + other.steps

        def chosen(old: np.ndarray, new: np.ndarray, lower: np.ndarray = lower) -> np.ndarray:
            return np.where(lower.reshape(-1, *(1,) * (np.ndim(old) - 1)), new, old)

        found = jax.tree.map(chosen, found, other)._replace(steps=steps)
    return found


def lines_of(numbers: dict[str, np.ndarray]) -> Int[np.ndarray, "lines length"] | None:
    """Return rows of points that differ in one positive number only, in its order.

    It is the number with the most values. None if no number has enough values, or the points are
    not a grid.
    """
    columns = {name: values for name, values in numbers.items() if np.ndim(values) == 1}
    if len(columns) < len(numbers):
        return None
    counts = {
        name: len(np.unique(values))
        for name, values in columns.items()
        if (variable := variable_of(name)) is not None and not variable.counted
    }
    name = max(counts, key=lambda name: counts[name], default="")
    if counts.get(name, 0) < SHORTEST_LINE:
        return None
    others = [values for other, values in columns.items() if other != name]
    _, line = np.unique(np.stack(others), axis=1, return_inverse=True)
    order = np.lexsort((columns[name], np.ravel(line)))
    shape = (int(np.max(line)) + 1, counts[name])
    if order.size != shape[0] * shape[1]:
        return None
    rows = order.reshape(shape)
    same = columns[name][rows] == columns[name][rows[0]]
    return (
        rows
        if np.all(same) and np.all(np.ravel(line)[rows] == np.arange(shape[0])[:, None])
        else None
    )


def _predicted(family: Family, settings: Settings) -> dict[str, np.ndarray]:
    wanted = tuple(name for name in PREDICTED if name in settings.quantities)
    if not wanted or family.problem.num_classes > LARGEST or not family.has_whole_classes:
        return {}
    member = family.members[:, :, None] == np.arange(len(family.sizes))
    return predictions(family.over_classes(), member.astype(float), wanted)


def _worth_more(problem: Problem, rows: dict[str, np.ndarray], settings: Settings) -> np.ndarray:
    """Return which points to solve again, one by one: uncertified ones that could be certified.

    Where the bound is not tight, those that did not converge. Models without a bound went through
    the same starts and methods as they would alone.
    """
    if settings.max_steps is not None or not (
        has_convex_form(problem) or has_singular_value_form(problem)
    ):
        return np.zeros(len(rows["status"]), bool)
    tight = problem.num_layers > 1 or has_tight_bound(problem)
    # What a batch leaves at the floor of its scale may have digits still, other than the rounding
    # of a squared error.
    left = (rows["status"] == Status.FLOOR) & (rows["objective"] > SQUARED_ROUNDING)
    # Another solve mends no bound that is none.
    some = ~rows["certified"] & (rows["status"] != Status.CONTRADICTION)
    return (some & (tight | ~has_converged(rows["status"]))) | left


def _solved_alone(
    family: Family, lane: int, seed: int, settings: Settings
) -> dict[str, np.ndarray]:
    """Return the quantities of one point from `solve`; only a status if it has no answer."""
    if np.any(family.sizes[:, lane] != np.round(family.sizes[:, lane])):
        return _nothing(Status.NOT_CERTIFIED)
    options: dict[str, Any] = {"resolution": settings.resolution, "key": seed, "tol": settings.tol}
    if settings.resolution != "groups":
        options |= {"restarts": settings.restarts, "max_steps": settings.max_steps}
    one = family.at(lane)
    members = np.repeat(np.arange(one.class_counts.num_groups), one.class_counts.sizes)
    try:
        solution = solve(one, **options)
        with double_precision():
            return of_solution(solution, members, settings.tol)
    except SolveInterrupted:
        raise KeyboardInterrupt from None
    except ValueError:  # what `solve` refuses: it needs more dimensions, or more memory
        return _nothing(Status.NOT_CERTIFIED)
    except (FloatingPointError, np.linalg.LinAlgError):
        return _nothing(Status.NON_FINITE)


def _nothing(status: Status) -> dict[str, np.ndarray]:
    found = {
        "objective": np.nan,
        "lower_bound": np.nan,
        "relative_gap": np.nan,
        "certified": False,
        "status": status,
    }
    return {name: np.array([value]) for name, value in found.items()}
