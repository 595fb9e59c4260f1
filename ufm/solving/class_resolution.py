"""The search at class and sample resolution: from which points descents start, and where they end.

A search moves lanes, one for every initial point; a solve from one point has one lane. Its
functions are generators that yield all lanes after each part of the work. The last lanes yielded
are the result. After an interruption they are the lanes reached by then. Lanes are NumPy arrays,
and nothing is changed in place.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm._support import Status, lowest, to_numpy
from ufm.certificates import has_convex_form, has_singular_value_form, has_tight_bound
from ufm.problems import Parameters, Problem, Samples
from ufm.solving.escapes import exchanged, ways_out
from ufm.solving.methods import (
    AIM,
    HANDOVER,
    LBFGS,
    SEARCH_STEPS,
    SMOOTHINGS,
    Method,
    NewtonCG,
    Records,
    Stage,
    Start,
    can_go_on,
    default_schedule,
    empty_records,
    has_kinks,
    infimum_of,
    made_once,
    num_unknowns,
    relative_to_objective,
)
from ufm.solving.programs import (
    HostIterate,
    advanced,
    answer,
    begun,
    compile_ahead,
    objective_at,
    unknowns_at,
)
from ufm.solving.relu import Polished, polish
from ufm.solving.settings import SolveSettings
from ufm.solving.starts import scales_of, start_sets

__all__ = ["Lanes", "onto_kinks", "put_on_kinks", "relative_to_values", "search"]

FIRST_CHUNK = 1000  # steps until the clock is looked at
SECONDS_PER_CHUNK = 0.5
MAX_ESCAPES = 20
MAX_EXCHANGES = 10  # sets of starts in which two classes are exchanged
LOWER = 1e-9  # relative difference of objectives of different minima
NEWTON_STEPS = 200  # from a way out: Newton's method gets there in a few steps, or not at all
ROUNDS = 5  # with the logarithm of the objective
ALIKE = 1e-4  # relative difference of objectives of starts that are near the same minimum
MOST_FOLLOWED = 8  # starts that are followed to their minima


class Lanes(NamedTuple):
    """Where the R initial points of a search have come to.

    Attributes:
        iterates: The descents, without the memory of the methods, leaves of shape (R, ...).
        follows: Index of the start that was followed to a minimum in place of each, shape (R,); -1
            where there is none.
        escapes: Number of stationary points that were left because they were not certified.
    """

    iterates: HostIterate
    follows: np.ndarray
    escapes: int = 0

    @property
    def best(self) -> int:
        """Index of the lowest finite objective."""
        return int(lowest(np.asarray(self.iterates.value)))

    def lane(self, index: int) -> HostIterate:
        """Return one descent, with an axis of one lane."""
        return jax.tree.map(lambda leaf: leaf[index : index + 1], self.iterates)

    def put(self, index: int, one: HostIterate) -> "Lanes":
        """Return the lanes with one descent replaced."""

        def replaced(all_lanes: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([all_lanes[:index], new, all_lanes[index + 1 :]])

        return self._replace(iterates=jax.tree.map(replaced, self.iterates, one))


def search(settings: SolveSettings, near: np.ndarray) -> Iterator[Lanes]:
    """Yield the lanes of one set of initial points after the other, until one is certified.

    Args:
        settings: The arguments of the solve.
        near: Initial points near constructions of low objective, shape (starts, n). They join the
            first set of several points.
    """
    sets, first = start_sets(settings.problem, settings.restarts), 0
    lanes: Any = None
    most = sets[-1] + len(near) if len(near) and has_convex_form(settings.problem) else 0
    if settings.method is not None or settings.initial is not None:
        sets = [settings.restarts]
    for count in sets:
        several = count > 1 or settings.restarts == 1
        start = _start(settings, first, count, near if several else near[:0])
        near, first, earlier = near[:0] if several else near, first + count, lanes
        for lanes in _from_set(settings, start, earlier):
            yield lanes
        if _is_certified(settings, lanes):
            return
    yield from _exchanged(settings, lanes, first, most)


def _exchanged(settings: SolveSettings, lanes: Lanes, first: int, most: int) -> Iterator[Lanes]:
    """Yield the lanes of sets of starts in which two classes of the best point are exchanged.

    They end where a set leads no lower. Random starts fill the sets, so that all have one size.

    Args:
        settings: The arguments of the solve.
        lanes: All lanes.
        first: Number of random starts so far.
        most: Size of a set; there is none where the pairs of classes are more.
    """
    for _ in range(MAX_EXCHANGES):
        value = float(lanes.iterates.value[lanes.best])
        points = exchanged(settings.problem, lanes.iterates.x[lanes.best]) if most else ()
        if not 0 < len(points) <= most:
            return
        start = _start(settings, first, most - len(points), np.asarray(points))
        first += most - len(points)
        earlier = lanes
        for lanes in _from_set(settings, start, earlier):
            yield lanes
        if not lanes.iterates.value[lanes.best] < value - LOWER * abs(value):
            return


def _is_certified(settings: SolveSettings, lanes: Lanes) -> bool:
    """Whether the certificate of the best point ends the search, in models where it can."""
    if not (has_convex_form(settings.problem) or has_singular_value_form(settings.problem)):
        return False
    certificate = settings.certificate(lanes.iterates.x[lanes.best])
    # More starts do not help where the bound contradicts the objective or the loss is in doubt.
    return certificate is not None and (certificate.holds or not certificate.believable)


def _start(settings: SolveSettings, first: int, count: int, near: np.ndarray) -> Start:
    """Return a set of initial points: random ones, from the `first` of all on, and those `near`."""
    problem, method, dtype = settings.problem, settings.coordinates, settings.dtype
    if settings.initial is not None:
        x = unknowns_at(problem, settings.samples, method, settings.initial, dtype)
        numbers, scale = np.asarray(x)[None], np.zeros(1, dtype)
    else:
        size = num_unknowns(problem, settings.rows, balanced=method.balanced)
        numbers = settings.draws.standard_normal((count, size))
        scale = scales_of(problem, first, count)
        if len(near):
            numbers = np.concatenate([numbers, near])
            scale = np.append(scale, np.zeros(len(near)))
    zero = np.zeros(len(scale), np.int32)
    return Start(numbers.astype(dtype), scale.astype(dtype), zero, zero)


def _from_set(settings: SolveSettings, start: Start, earlier: Lanes | None) -> Iterator[Lanes]:
    """Yield all lanes while those of one set of initial points go to their minima."""
    tol, kinks = settings.tol, has_kinks(settings.problem)
    ours, convex = settings.method is None, has_convex_form(settings.problem)
    is_search = ours and convex and len(start.scale) > 1
    stages = _schedule(settings, is_search)
    answered = _answer_ahead(settings, start.numbers)
    for now in _descents(settings, stages, start):
        yield _joined(earlier, now)
    answered.result()
    if ours and kinks:
        yield _polished(settings, _joined(earlier, now))
    if ours and (kinks or tol >= HANDOVER):
        return
    method, end = stages[-1].method, now
    if ours and not is_search and np.any(end.relative_gradient > tol):
        # L-BFGS stalls where the problem is badly scaled: Newton's method goes on.
        method = made_once(NewtonCG)
        for now in _resumed(settings, Stage(method, AIM * tol, 1.0), end):
            yield _joined(earlier, now)
    lanes = _joined(earlier, _beyond_floor(settings, method, now))
    yield lanes
    if is_search:
        yield from _followed(settings, lanes)
    elif ours and convex:
        last = len(lanes.follows) - 1
        yield from _escaped(settings, lanes, last, method is made_once(NewtonCG))


def _schedule(settings: SolveSettings, is_search: bool) -> list[Stage]:
    if settings.method is not None:
        return [Stage(settings.method, settings.tol, 1.0)]
    if is_search:
        share = SEARCH_STEPS / max(settings.max_steps, SEARCH_STEPS)
        return [Stage(made_once(LBFGS), max(0.1 * settings.tol, settings.floor), share)]
    return default_schedule(
        settings.problem,
        settings.rows,
        settings.tol,
        settings.floor,
        aligned=settings.resolution == "classes",
        given=settings.initial is not None,
    )


def _joined(earlier: Lanes | None, new: HostIterate) -> Lanes:
    """Return the lanes of earlier sets with new ones."""
    if earlier is None:
        return Lanes(new, np.full(len(new.step), -1))
    iterates = jax.tree.map(lambda *parts: np.concatenate(parts), earlier.iterates, new)
    return earlier._replace(iterates=iterates, follows=np.full(len(iterates.step), -1))


def _answer_ahead(settings: SolveSettings, numbers: Any) -> Any:
    """Compile the program of answers while the first descent compiles and runs."""
    arguments = settings.problem, settings.samples, settings.coordinates, np.zeros_like(numbers[0])
    leaves, structure = jax.tree.flatten(arguments)
    signature = structure, tuple(np.shape(leaf) for leaf in leaves), settings.dtype
    return compile_ahead(signature, lambda: answer(*arguments))


def _blank_records(settings: SolveSettings, lanes: int) -> Records | None:
    if not settings.record_every:
        return None
    blank = empty_records(settings.max_steps // settings.record_every + 4, settings.dtype)
    return jax.tree.map(lambda column: np.broadcast_to(column, (lanes, *column.shape)), blank)


def _descents(settings: SolveSettings, stages: list[Stage], start: Start) -> Iterator[HostIterate]:
    """Yield the descents of one stage after the other."""
    now = yield from _run(settings, stages[0], start, _blank_records(settings, len(start.scale)))
    for stage in stages[1:]:
        now = yield from _resumed(settings, stage, now)


def _run(
    settings: SolveSettings, stage: Stage, start: Start, records: Records | None
) -> Generator[HostIterate, None, HostIterate]:
    """Yield the descents of a stage after every chunk of steps, and return them where they end.

    The first chunk starts and moves in one program.
    """
    problem, samples, method = settings.problem, settings.samples, stage.method
    tol, every = np.asarray(stage.tol, settings.dtype), settings.record_every
    # A stage may use its share of the steps, and every lane at most what it has left.
    allowed = np.ceil(stage.shares(np.arange(start.step.size)) * settings.max_steps)
    last = np.minimum(start.step + allowed, settings.max_steps).astype(np.int32)
    chunk, until, now = FIRST_CHUNK, start.step, None
    while True:
        until = np.minimum(until + chunk, last).astype(np.int32)
        began = time.perf_counter()
        if now is None:
            now = begun(problem, samples, method, start, records, until, tol, every)
        else:
            now = advanced(problem, samples, method, now, until, tol, every)
            jax.block_until_ready(now)
            # The first chunk's time includes its compilation.
            pace = SECONDS_PER_CHUNK / max(time.perf_counter() - began, 1e-3)
            chunk = int(np.clip(chunk * pace, max(chunk // 8, 1), 8 * chunk))
        shown: HostIterate = to_numpy(now._replace(memory=None))
        yield shown
        _report(settings, method, shown)  # after the yield, because Ctrl-C may come from here
        if not np.any((shown.status == Status.RUNNING) & (shown.step < last)):
            return shown


def _resumed(
    settings: SolveSettings, stage: Stage, iterates: HostIterate
) -> Generator[HostIterate, None, HostIterate]:
    """Yield the descents of a stage from the points reached, with their counts and records.

    Every point that is finite is tried anew.
    """
    scale = np.zeros(len(iterates.step), settings.dtype)
    start = Start(iterates.x, scale, iterates.step, iterates.evaluations)
    return _run(settings, stage, start, iterates.records)


def _ended(settings: SolveSettings, stage: Stage, iterates: HostIterate) -> HostIterate:
    """Return the descents at the end of a stage."""
    return deque(_resumed(settings, stage, iterates), maxlen=1)[0]


def _report(settings: SolveSettings, method: Method, iterates: HostIterate) -> None:
    if settings.progress is None:
        return
    values = np.asarray(iterates.value, np.float64)
    values = np.asarray(method.plain_value(settings.problem, values))
    best = int(lowest(values))
    residual = float(iterates.relative_gradient[best])
    settings.progress(int(np.max(iterates.step)), float(values[best]), residual)


def _polished(settings: SolveSettings, lanes: Lanes) -> Lanes:
    """Return the lanes with the lowest ones taken onto the kinks of their minima.

    Among starts with the same objective, the first that arrives stands for all.
    """
    iterates = jax.tree.map(np.array, lanes.iterates)
    values, status = lanes.iterates.value, iterates.status
    status[status != Status.NON_FINITE] = Status.DUPLICATE
    follows, followed = np.full(values.shape, -1), 0
    for lane in np.argsort(values, kind="stable"):
        if not np.isfinite(values[lane]) or follows[lane] >= 0:
            continue
        if followed == MOST_FOLLOWED:
            break
        followed += 1
        alike = (follows < 0) & (np.abs(values - values[lane]) <= ALIKE * abs(values[lane]))
        point = settings.answer(iterates.x[lane]).parameters
        arrived = onto_kinks(settings.problem, settings.samples, point, settings.tol)
        put_on_kinks(iterates, lane, *arrived)
        # Where one start does not arrive, the next one like it may.
        follows[alike if iterates.relative_gradient[lane] <= settings.tol else lane] = lane
    return lanes._replace(iterates=iterates, follows=follows)


def onto_kinks(
    problem: Problem, samples: Samples, parameters: Parameters, tol: float
) -> tuple[np.ndarray, Polished]:
    """Return the minimum near the end of a smoothed descent, in balanced coordinates, too."""
    found = polish(problem, parameters, SMOOTHINGS[-1], tol)
    x = unknowns_at(problem, samples, made_once(LBFGS), found.parameters, jnp.float64)
    return np.asarray(x), found


def put_on_kinks(
    iterates: HostIterate, lane: int | np.integer, x: np.ndarray, found: Polished
) -> None:
    """Write a minimum that lies on kinks into a lane, in place."""
    iterates.x[lane], iterates.value[lane] = x, found.objective
    iterates.relative_gradient[lane] = found.relative_gradient
    iterates.status[lane] = Status.STALLED


def _followed(settings: SolveSettings, lanes: Lanes) -> Iterator[Lanes]:
    """Yield the lanes while the lowest are followed to their minima, one after the other.

    Newton's method goes on where a lane has not converged, and the best one takes the ways out.
    """
    done: set[int] = set()
    while len(done) < MOST_FOLLOWED:
        values, residuals = lanes.iterates.value, lanes.iterates.relative_gradient
        value = float(values[lanes.best])
        is_open = (residuals > settings.tol) & (values <= value + ALIKE * abs(value))
        is_open[lanes.best] = True
        order = np.argsort(values, kind="stable")
        left = [int(lane) for lane in order if is_open[lane] and lane not in done]
        if not left:
            return
        lane = left[0]
        done.add(lane)
        unfinished = bool(residuals[lane] > settings.tol)
        if unfinished:
            stage = Stage(made_once(NewtonCG), AIM * settings.tol, 0.3)
            for one in _resumed(settings, stage, lanes.lane(lane)):
                lanes = lanes.put(lane, one)
                yield lanes
        if lanes.best == lane:
            lanes = yield from _escaped(settings, lanes, lane, unfinished)


def _escaped(
    settings: SolveSettings, lanes: Lanes, lane: int, newton: bool
) -> Generator[Lanes, None, Lanes]:
    """Yield the lanes while one of them leaves points that are not certified, and return them.

    Args:
        settings: The arguments of the solve.
        lanes: All lanes.
        lane: Index of the lane that moves.
        newton: Whether the lane's point is where Newton's method ended.
    """
    tol, best = settings.tol, lanes.lane(lane)
    # Where the bound is not tight, the gap stays open, and gains in the last digits are no
    # progress.
    least = 1e-15 if has_tight_bound(settings.problem) else tol
    share = min(0.3, NEWTON_STEPS / max(settings.max_steps, 1))
    for _ in range(MAX_ESCAPES):
        gap = _gap(settings, best)
        if gap <= tol:
            return lanes
        if not newton:
            newton = True
            best = _ended(settings, Stage(made_once(NewtonCG), AIM * tol, 0.3), best)
            lanes = lanes.put(lane, best)
            yield lanes
            continue
        before = best
        for x, method in _ways_out(settings, before):
            few = share if method is made_once(NewtonCG) else 0.3
            moved = before._replace(x=np.asarray(x, settings.dtype)[None])
            moved = _ended(settings, Stage(method, AIM * tol, few), moved)
            lower = float(moved.value[0]) < float(before.value[0]) * (1 - least)
            if lower or _gap(settings, moved) < 0.5 * gap:
                best, lanes = moved, lanes._replace(escapes=lanes.escapes + 1)
                break
            best = before._replace(step=moved.step, evaluations=moved.evaluations)
        else:
            lanes = lanes.put(lane, best)
            yield lanes
            return lanes
        lanes = lanes.put(lane, best)
        yield lanes
    return lanes


def _ways_out(settings: SolveSettings, one: HostIterate) -> Iterator[tuple[np.ndarray, Method]]:
    problem, samples, x = settings.problem, settings.samples, one.x[0]

    def objective(point: np.ndarray) -> float:
        point = np.asarray(point, settings.dtype)
        return float(objective_at(problem, samples, settings.coordinates, point))

    return ways_out(problem, samples, x, settings.answer(x).inputs.bound, objective)


def _gap(settings: SolveSettings, one: HostIterate) -> float:
    certificate = settings.certificate(one.x[0])
    gap = np.inf if certificate is None else certificate.relative_gap
    return gap if np.isfinite(gap) else np.inf


def relative_to_values(settings: SolveSettings, lanes: Lanes) -> np.ndarray:
    """Return relative gradients without the floor that they have inside norm balls."""
    residuals = np.asarray(lanes.iterates.relative_gradient, np.float64)
    if not settings.problem.regularizer.bounded:
        return residuals
    at_zero = float(settings.answer(lanes.iterates.x[lanes.best]).inputs.at_zero)
    values = np.asarray(lanes.iterates.value, np.float64)
    return relative_to_objective(settings.problem, residuals, values, at_zero)


def _beyond_floor(settings: SolveSettings, method: Method, before: HostIterate) -> HostIterate:
    """Return the descents, continued on the logarithm of the objective where it has digits left.

    These are descents inside norm balls that ended at the floor of the scale.
    """
    problem, tol = settings.problem, settings.tol
    if not problem.regularizer.bounded or has_kinks(problem) or settings.floor > 0:
        return before
    logarithm = method.in_logarithm()
    if logarithm is None:
        return before
    residuals, relative = (
        before.relative_gradient,
        relative_to_values(settings, _joined(None, before)),
    )
    lanes = can_go_on(residuals, relative, tol)
    if not np.any(lanes):
        return before
    reached = before
    for _ in range(ROUNDS):
        # Coordinates of a ball have an arbitrary scale. Those of the parameters reset it to one.
        points = [settings.answer(x).parameters for x in reached.x]
        again = [unknowns_at(problem, settings.samples, method, p, settings.dtype) for p in points]
        reached = reached._replace(x=np.stack([np.asarray(x) for x in again]))
        reached = _ended(settings, Stage(logarithm, AIM * tol, 1.0), reached)
        if np.all(reached.relative_gradient[lanes] <= tol):
            break
    # Zero steps: this evaluates the objective, and the gradient relative to the floor.
    after = _ended(settings, Stage(method, tol, 0.0), reached)
    better = lanes & np.isfinite(reached.relative_gradient) & (after.value <= before.value)
    # All lanes keep residuals relative to the floor, solved by the logarithm or not.
    infimum = infimum_of(problem)
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN for a lane at the infimum itself
        share = (after.value - infimum) / (before.value - infimum)
        floored = reached.relative_gradient * (residuals / relative) * share
    after = after._replace(relative_gradient=floored, status=reached.status)

    def chosen(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    kept = jax.tree.map(chosen, before._replace(records=None), after._replace(records=None))
    return kept._replace(records=after.records)
