r"""Where descent ends: many random starts of one problem, every run kept, and the runs that ended at the same point put together.

What is put together. A run that converged with relative gradient r has, in the convex neighbourhood of its minimum, an objective within r of the
minimum's, relative to it: f(x) - f* <= <g, x - x*>. So the values of two such runs agree where they differ by at most the sum of their r, and
rounding. A point whose objective is off by a relative a is off by about sqrt(a) itself: the geometry of two runs agrees within 3 sqrt(a). What is
compared are spectra, which neither a symmetry of the model nor a permutation of interchangeable classes (of equal counts and equal parameters of
the loss) changes: the singular values of the logits, with and without bias, and of their blocks between sets of interchangeable classes, and the
eigenvalues of the symmetric part of the blocks within a set. Where one of these differs the points do; points that agree in value and in all of
these are taken for one. Minima may come in continuous families: two classes of a ReLU model that share one direction may share it in any
proportion, at one value and one spectrum; such a family is one point here, with one member to represent it.

What is called a minimum. Only points at which a run converged. Runs that stalled on a kink of a ReLU or ran out of steps have no relative gradient
that could be trusted; they are taken to be accurate to 1e-4 in the objective, joined to a minimum that they agree with so far, and otherwise put
together among themselves, as points that are not settled. That a settled point is a local minimum is likely, as descent ended there from
random starts, but not proved; that it is global is what a certificate says.

The frequencies belong to the distribution of the starts: Gaussian factors (semi-orthogonal in linear chains) of the typical size of minimisers.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ufm import geometry
from ufm.blocks import check_dense
from ufm.certificates import Certificate
from ufm.class_batch import lanes_for, solve_class_batch
from ufm.constructions import constructions
from ufm.pipeline import certify
from ufm.precision import checked_positive, checked_whole, double_precision
from ufm.presolve import canonical, padded, reduced
from ufm.problem import Parameters, Problem
from ufm.resolutions import class_columns
from ufm.solvers import LBFGS, num_unknowns
from ufm.solvers.stages import generator
from ufm.status import Status

__all__ = ["Census", "CensusInterrupted", "EndPoint", "Runs", "census", "gathered"]

ROUNDING = 1e-12  # relative, of an objective: what two orders of summation may differ by
UNSETTLED = 1e-4  # relative accuracy of the objective that a run is credited with which has not converged
SPREAD = 3.0  # how much further than sqrt(accuracy) the geometry may be off: relative curvatures down to about a fifth
EXPLICIT = 1e-9  # accuracy of the objectives of constructions, whose one free scale is found on a grid
SMALLEST = 1e-4  # of the objective at zero, what relative numbers are measured against where objectives vanish
BATCH = 512  # pieces enough that few lanes are filled up
ROWS = (20, 5)  # of the table, of minima and of what is not settled


class CensusInterrupted(KeyboardInterrupt):
    """Ctrl-C during a census; `census` holds the runs of the batches that were finished, the others have the status INTERRUPTED."""

    census: "Census"


class Runs(NamedTuple):
    """What became of every start: NumPy arrays, first axis the R starts.

    seeds: with which `ufm.solve(problem, key=seed, restarts=1)` starts from the same point. status: codes of `ufm.Status`. objective,
    relative_gradient: NaN where a run was not made. steps: of the solver. logits: (R, K, K), bias included.
    parameters: of the problem as it was given, features (R, K, d).
    """

    seeds: Int[np.ndarray, " R"]
    status: Int[np.ndarray, " R"]
    objective: Float[np.ndarray, " R"]
    relative_gradient: Float[np.ndarray, " R"]
    steps: Int[np.ndarray, " R"]
    logits: Float[np.ndarray, "R K K"]
    parameters: Parameters


class EndPoint(NamedTuple):
    """A point at which runs ended, up to symmetries and permutations of interchangeable classes.

    name: of the construction that it equals (`ufm.constructions`), "collapse at zero", or empty. settled: whether runs converged there; only then
    is it called a minimum. value: the objective of the representative: the run of the smallest relative gradient, the lowest one where
    none has converged. frequency: how many runs converged there. unsettled: how many ended near it without having converged. rank: of the
    logits without bias. singular_values: (K,), of the logits without bias. feature_cosines: (K, K), between class means of what the last
    layer multiplies; zero for a class without features. status, relative_gradient, parameters, run: of the representative, and its index.
    """

    name: str
    settled: bool
    value: float
    frequency: int
    unsettled: int
    rank: int
    singular_values: Float[np.ndarray, " K"]
    feature_cosines: Float[np.ndarray, "K K"]
    status: Status
    relative_gradient: float
    parameters: Parameters
    run: int


class Census(NamedTuple):
    """The runs of a census, and where they ended. Prints as a table.

    problem: what was minimised. runs: every run. rank, point: (R,), rank of the logits without bias, and index into `points`; both -1
    for runs without a finite objective. points: settled or not, the lowest first. certificate: of the lowest
    minimum, None where the model has no bound or there is no minimum. at_zero: the objective of zero logits. tol: the relative gradient that
    counts as converged. seconds: wall time, compilation included.
    """

    problem: Problem
    runs: Runs
    rank: Int[np.ndarray, " R"]
    point: Int[np.ndarray, " R"]
    points: tuple[EndPoint, ...]
    certificate: Certificate | None
    at_zero: float
    tol: float
    seconds: float

    @property
    def minima(self) -> tuple[EndPoint, ...]:
        """The points at which runs converged, the lowest first."""
        return tuple(point for point in self.points if point.settled)

    @property
    def unsettled(self) -> tuple[EndPoint, ...]:
        """The other points near which runs ended, none of which converged."""
        return tuple(point for point in self.points if not point.settled)

    @property
    def converged(self) -> Bool[np.ndarray, " R"]:
        """Which runs converged."""
        return _settled(self.runs, self.tol)

    @property
    def unseen(self) -> float:
        """About how likely one more converged run is to end at a minimum that is not here: the share of minima seen once.

        NaN without a converged run. Reference: Good (1953), Biometrika 40, 237-264.
        """
        total = sum(point.frequency for point in self.minima)
        return sum(point.frequency == 1 for point in self.minima) / total if total else float("nan")

    @property
    def excess(self) -> Float[np.ndarray, " P"]:
        """How far every point is above the lowest minimum, relative to it; NaN without a minimum."""
        if not self.minima:
            return np.full(len(self.points), np.nan)
        values, lowest = np.array([point.value for point in self.points]), self.minima[0].value
        return (values - lowest) / _scale(lowest, self.at_zero)

    def __str__(self) -> str:
        runs, minima = self.runs, self.minima
        statuses = [f"{int(np.sum(runs.status == status))} {status}" for status in Status if status in runs.status]
        lines = [
            f"{len(runs.seeds)} starts: {', '.join(statuses)}; {len(minima)} minima, about {self.unseen:.2g} of runs would end elsewhere",
            "value              excess    runs  unsettled  rank  name",
        ]
        rows = list(zip(self.points, self.excess, strict=True))
        for settled, title, most in ((True, "", ROWS[0]), (False, "not settled, and not called minima:", ROWS[1])):
            part = [(point, excess) for point, excess in rows if point.settled == settled]
            lines += [title] if part and title else []
            lines += [
                f"{point.value:<17.12g}  {excess:<8.2g}  {point.frequency:4d}  {point.unsettled:9d}  {point.rank:4d}  {point.name}".rstrip()
                for point, excess in part[:most]
            ]
            if len(part) > most:
                rest = sum(point.frequency + point.unsettled for point, _ in part[most:])
                lines.append(f"and {len(part) - most} more, of {rest} runs")
        lines.append(f"lowest minimum: {self.certificate or 'no lower bound'}")
        return "\n".join(lines)


def census(
    problem: Problem,
    starts: int = 1000,
    *,
    key: Any = None,
    max_steps: int | None = None,
    tol: float = 1e-9,
    workers: int | None = None,
    batch: int | None = None,
) -> Census:
    """Minimise a problem from many random starts, and say where the runs ended and how often.

    Args:
        problem: of any depth, regularizer and loss; solved at class resolution.
        starts: R, how many. The first runs of a longer census with the same key are those of a shorter one.
        key: a JAX PRNG key, or an integer seed, for the starts; 0 if not given.
        max_steps: of each run; as in `ufm.solve` if not given.
        tol: relative gradient that counts as converged.
        workers: threads; the number of cores if not given.
        batch: starts that are solved together, and at most lost on Ctrl-C; if not given 512, more on accelerators.

    Returns:
        Every run with its status, also the failed ones, and the points at which they ended.

    Raises:
        ValueError: for bad arguments.
        CensusInterrupted: on Ctrl-C; a KeyboardInterrupt whose `census` holds what was finished.
    """
    began = time.perf_counter()
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a ufm.Problem, got {type(problem).__name__}.")
    starts, tol = checked_whole("starts", starts), checked_positive("tol", tol)
    for name, value, least in (("max_steps", max_steps, 0), ("workers", workers, 1), ("batch", batch, 1)):
        if value is not None:
            checked_whole(name, value, least)
    check_dense(problem.num_classes)
    seeds = generator(key).integers(2**62, size=starts)
    with double_precision():
        narrow = reduced(canonical(problem))
    if batch is None:
        batch = max(BATCH, lanes_for(num_unknowns(narrow, problem.num_classes, LBFGS())))
    parts: list[Runs] = []
    try:
        for first in range(0, starts, batch):
            parts.append(_solved(problem, narrow, seeds[first : first + batch], max_steps, tol, workers))
        found = gathered(problem, _joined(parts), tol=tol, bound=certify)
    except KeyboardInterrupt as stop:
        done = sum(len(part.seeds) for part in parts)
        if done < starts:
            parts.append(_not_made(problem, seeds[done:]))
        failure = CensusInterrupted("interrupted; the exception's `census` holds the runs that were finished")
        failure.census = gathered(problem, _joined(parts), tol=tol)._replace(seconds=time.perf_counter() - began)
        raise failure from stop
    return found._replace(seconds=time.perf_counter() - began)


def gathered(
    problem: Problem,
    runs: Runs,
    *,
    tol: float = 1e-9,
    bound: Callable[[Problem, Parameters], Certificate | None] | None = None,
) -> Census:
    """Return the census that runs make.

    Args:
        problem: of the runs.
        runs: the runs.
        tol: relative gradient that counts as converged.
        bound: certifies the lowest minimum; without it there is no certificate.
    """
    with double_precision():
        columns = class_columns(problem.class_counts, jnp.float64)
        at_zero = float(problem.value_at_zero(columns))
        known = _known(problem, at_zero)
    spectra = _Spectra(problem)
    settled = _settled(runs, tol)
    accuracy = np.where(settled, np.maximum(runs.relative_gradient, ROUNDING), UNSETTLED)
    finite = np.isfinite(runs.objective) & np.all(np.isfinite(runs.logits), axis=(1, 2))
    products = np.where(finite[:, None, None], runs.logits, 0)
    if runs.parameters.bias is not None:
        products = products - np.where(finite[:, None], runs.parameters.bias, 0)[:, None, :]
    singular = np.linalg.svd(products, compute_uv=False)
    marks = spectra.marks(products, np.where(finite[:, None, None], runs.logits, 0))
    size = np.maximum(np.max(np.abs(marks), axis=1), 1.0)
    rank = np.sum(singular > (SPREAD * np.sqrt(accuracy) * size)[:, None], axis=1)
    rank = np.where(finite, rank, -1)

    # The most accurate runs first: each one is where another one was, or is new.
    order = np.lexsort((runs.objective, np.where(settled, runs.relative_gradient, 0), ~settled))
    leaders: list[int] = []
    point = np.full(len(runs.seeds), -1)
    for run in order[finite[order]]:
        at = np.array(leaders, int)
        near = _alike(
            (runs.objective[run], accuracy[run], marks[run]),
            (runs.objective[at], accuracy[at], marks[at]),
            at_zero,
        )
        if np.any(near):
            places = np.flatnonzero(near)
            nearest = np.argmin(np.max(np.abs(marks[at[places]] - marks[run]), axis=1, initial=0))
            point[run] = places[nearest]
        else:
            point[run] = len(leaders)
            leaders.append(int(run))
    by_value = sorted(range(len(leaders)), key=lambda index: float(runs.objective[leaders[index]]))
    place = np.full(len(leaders) + 1, -1)
    place[by_value] = np.arange(len(leaders))
    point = place[point]

    points = []
    for index, lead in enumerate(leaders[old] for old in by_value):
        here = point == index
        parameters = jax.tree.map(lambda block, lead=lead: block[lead], runs.parameters)
        with double_precision():
            features = np.asarray(problem.last_features(parameters))
        reached = runs.objective[lead], accuracy[lead], marks[lead]
        names = [
            name
            for name, (value, logits) in known.items()
            if _alike(
                reached,
                (np.array([value]), np.array([EXPLICIT]), spectra.marks(logits[None], logits[None])),
                at_zero,
            )[0]
        ]
        points.append(
            EndPoint(
                name=names[0] if names else "",
                settled=bool(settled[lead]),
                value=float(runs.objective[lead]),
                frequency=int(np.sum(here & settled)),
                unsettled=int(np.sum(here & ~settled)),
                rank=int(rank[lead]),
                singular_values=singular[lead],
                feature_cosines=np.asarray(geometry.cosines(features)),
                status=Status(int(runs.status[lead])),  # type: ignore[call-arg]
                relative_gradient=float(runs.relative_gradient[lead]),
                parameters=parameters,
                run=lead,
            )
        )
    lowest = next((end for end in points if end.settled), None)
    certificate = None if bound is None or lowest is None else bound(problem, lowest.parameters)
    return Census(problem, runs, rank, point, tuple(points), certificate, at_zero, tol, 0.0)


class _Spectra:
    """Numbers of logits that permutations of interchangeable classes leave alone."""

    def __init__(self, problem: Problem):
        K = problem.num_classes
        with double_precision():
            stated = canonical(problem)
        marks = [np.asarray(stated.class_counts.counts, np.float64)]
        marks += [np.asarray(leaf) for leaf in jax.tree.leaves(stated.loss) if np.shape(leaf) == (K,)]
        _, sets = np.unique(np.stack(marks), axis=1, return_inverse=True)
        self.members = [np.flatnonzero(np.ravel(sets) == index) for index in range(int(np.max(sets)) + 1)]

    def marks(self, products: Float[np.ndarray, "R K K"], logits: Float[np.ndarray, "R K K"]) -> np.ndarray:
        """Return (R, M) spectra of products (logits without bias) and logits."""
        found = [np.linalg.svd(products, compute_uv=False)]
        for a, rows in enumerate(self.members):
            for b, columns in enumerate(self.members):
                block = logits[:, rows[:, None], columns[None, :]]
                found.append(np.linalg.svd(block, compute_uv=False))
                if a == b:
                    found.append(np.linalg.eigvalsh(0.5 * (block + np.swapaxes(block, 1, 2))))
        return np.concatenate(found, axis=1)


def _alike(run: tuple[Any, Any, Any], others: tuple[Any, Any, Any], at_zero: float) -> np.ndarray:
    """Return which others have the run's value and geometry; each is (objective, accuracy, marks)."""
    value, accuracy, marks = run
    values, accuracies, many = others
    same = np.abs(values - value) <= (accuracies + accuracy) * np.maximum(_scale(value, at_zero), np.abs(values))
    size = np.maximum(np.maximum(np.max(np.abs(many), axis=1, initial=0), np.max(np.abs(marks))), 1.0)
    off = np.max(np.abs(many - marks), axis=1, initial=0)
    return same & (off <= SPREAD * np.sqrt(np.maximum(accuracies, accuracy)) * size)


def _known(problem: Problem, at_zero: float) -> dict[str, tuple[float, np.ndarray]]:
    """Return name to (objective, logits) of the points that have names."""
    K = problem.num_classes
    found = {"collapse at zero": (at_zero, np.zeros((K, K)))}
    for made in constructions(problem):
        if made.rank > 0:
            logits = np.asarray(problem.logits(jax.tree.map(jnp.asarray, made.parameters)))
            found[made.name] = made.objective, logits
    return found


def _scale(value: float, at_zero: float) -> float:
    return max(abs(value), SMALLEST * abs(at_zero))


def _settled(runs: Runs, tol: float) -> Bool[np.ndarray, " R"]:
    return (runs.status == Status.CONVERGED) & (runs.relative_gradient <= tol) & np.isfinite(runs.objective)


def _solved(
    problem: Problem, narrow: Problem, seeds: np.ndarray, max_steps: int | None, tol: float, workers: int | None
) -> Runs:
    lanes = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], len(seeds), axis=0), narrow)
    found = solve_class_batch(lanes, tol=tol, keys=seeds, restarts=1, max_steps=max_steps, workers=workers)
    each = [
        padded(problem, jax.tree.map(lambda block, lane=lane: block[lane], found.parameters))
        for lane in range(len(seeds))
    ]
    parameters = jax.tree.map(lambda *blocks: np.stack(blocks), *each)
    return Runs(seeds, found.status, found.objective, found.relative_gradient, found.steps, found.logits, parameters)


def _not_made(problem: Problem, seeds: np.ndarray) -> Runs:
    R, K, dims = len(seeds), problem.num_classes, problem.layer_dims
    weights: Any = tuple(np.full((R, out, into), np.nan) for into, out in itertools.pairwise(dims))
    features: Any = np.full((R, K, dims[0]), np.nan)
    bias: Any = np.full((R, K), np.nan) if problem.use_bias else None
    parameters = Parameters(weights, features, bias)
    nothing, never = np.full(R, np.nan), np.zeros(R, np.int32)
    return Runs(seeds, never + Status.INTERRUPTED, nothing, nothing, never, np.full((R, K, K), np.nan), parameters)


def _joined(parts: Sequence[Runs]) -> Runs:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
