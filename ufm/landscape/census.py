"""Where descent ends: many random starts of one problem, with runs at the same point put together.

Agreement of runs. A run that converged with relative gradient r has an objective within r of the
minimum's, relative to it, in the convex neighbourhood of its minimum: f(x) - f* <= <g, x - x*>. So
the values of two such runs agree if they differ by at most the sum of their r, and rounding. If the
objective is off by a relative a, the point is off by about sqrt(a). So the geometry of two runs
agrees within 3 sqrt(a).

Geometry is compared by spectra. They do not change under symmetries of the model, or under
permutations of interchangeable classes (of equal counts and equal parameters of the loss). The
spectra are the singular values of the logits, with and without bias, those of the blocks between
sets of interchangeable classes, and the eigenvalues of the symmetric part of the blocks within a
set. Points differ if one of these differs. Points that agree in value and in all spectra are taken
for one point. A continuous family of minima is also one point, with one member to represent it: two
classes of a ReLU model that share a direction may share it in any proportion, at one value and one
spectrum.

Minima. Only points at which a run converged are called minima. Runs that stalled on a kink of a
ReLU or ran out of steps have no relative gradient to trust. Their objectives are taken to be
accurate to 1e-4. Such a run joins a minimum that it agrees with to that accuracy. The others are
put together among themselves, as points that are not settled. It is likely that a settled point is
a local minimum, since descent ended there from random starts, but it is not proved. A certificate
proves that a minimum is global.

The frequencies belong to the distribution of the starts: Gaussian factors (semi-orthogonal in
linear chains) of the typical size of minimisers.
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
from ufm._support import (
    Status,
    check_instance,
    checked_positive,
    checked_whole,
    chunks,
    counted,
    double_precision,
    has_converged,
    on_host,
    printed,
    table_lines,
)
from ufm.certificates import Certificate
from ufm.landscape.scale import objective_scale
from ufm.problems import (
    Parameters,
    Problem,
    check_dense,
    class_samples,
    constructions_for,
    narrowed,
    one_count_per_class,
    widened,
)
from ufm.solving import certify, chunk_size, solve_class_batch
from ufm.solving.methods import generator, num_unknowns

__all__ = ["Census", "CensusInterrupted", "EndPoint", "Runs", "census", "gathered"]

ROUNDING = 1e-12  # relative error of an objective: two orders of summation differ by less
UNSETTLED = 1e-4  # assumed relative accuracy of the objective of a run that has not converged
# Geometry agrees up to this times the root of the accuracy. It allows relative curvatures down to
# about a fifth.
SPREAD = 3.0
EXPLICIT = 1e-9  # accuracy of the objectives of constructions, whose one free scale is on a grid
BATCH = 512  # starts solved together: enough that padding of the last chunk costs little
ROWS = (20, 5)  # most rows of the table, for minima and for unsettled points


class CensusInterrupted(KeyboardInterrupt):
    """Ctrl-C during a census.

    Attributes:
        census: The census of the batches that were finished. All other runs have the status
            INTERRUPTED.
    """

    census: "Census"


@printed
class Runs(NamedTuple):
    """The run from every start, as NumPy arrays whose first axis is the R starts.

    Attributes:
        seeds: Seeds. `ufm.solve(problem, key=seed, restarts=1)` starts from the same point.
        status: Codes of `ufm.Status`.
        objective: Objectives; NaN if a run was not made.
        relative_gradient: Relative gradients; NaN if a run was not made.
        steps: Steps of the solver.
        logits: Logits with bias, shape (R, K, K).
        parameters: Parameters of the problem as given, with features of shape (R, K, d).
    """

    seeds: Int[np.ndarray, " R"]
    status: Int[np.ndarray, " R"]
    objective: Float[np.ndarray, " R"]
    relative_gradient: Float[np.ndarray, " R"]
    steps: Int[np.ndarray, " R"]
    logits: Float[np.ndarray, "R K K"]
    parameters: Parameters

    def __str__(self) -> str:
        codes, numbers = np.unique(self.status, return_counts=True)
        pairs = zip(codes, numbers, strict=True)
        ends = ", ".join(f"{number} {Status(int(code))}" for code, number in pairs)
        values = self.objective[np.isfinite(self.objective)]
        rows = [("runs", f"{len(self.seeds)}: {ends}"), ("steps", f"{int(np.sum(self.steps))}")]
        if values.size:
            rows += [("objective", f"from {np.min(values):.12g} to {np.max(values):.12g}")]
        return "\n".join(table_lines(rows))


def _ends(values: np.ndarray) -> str:
    """Return up to six descending numbers as text."""
    shown = ", ".join(f"{value:.6g}" for value in values[:6])
    return shown if values.size <= 6 else f"{shown}, ... {values[-1]:.6g}"


@printed
class EndPoint(NamedTuple):
    """A point at which runs ended, up to symmetries and permutations of interchangeable classes.

    The representative is the run of smallest relative gradient, or the lowest run if none
    converged.

    Attributes:
        name: Name of the construction that the point equals (`ufm.constructions`), "collapse at
            zero", or empty.
        settled: Whether runs converged there. Only then is it called a minimum.
        value: Objective of the representative.
        frequency: Number of runs that converged there.
        unsettled: Number of runs that ended nearby without having converged.
        rank: Rank of the logits without bias.
        singular_values: Singular values of the logits without bias, shape (K,).
        feature_cosines: Cosines between class means of the input of the last layer, shape (K, K);
            zero for a class without features.
        status: Status of the representative.
        relative_gradient: Relative gradient of the representative.
        parameters: Parameters of the representative.
        run: Index of the representative.
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

    def __str__(self) -> str:
        kind = "minimum" if self.settled else "not settled"
        name = f", {self.name}" if self.name else ""
        rows = [
            (kind, f"objective {self.value:.12g}, rank {self.rank}{name}"),
            ("runs", f"{self.frequency} converged, {self.unsettled} unsettled"),
            ("relative gradient", f"{self.relative_gradient:.3g}, {self.status}"),
            ("singular values", _ends(self.singular_values)),
        ]
        return "\n".join(table_lines(rows))


@printed
class Census(NamedTuple):
    """The runs of a census, and the points where they ended. Prints as a table.

    Attributes:
        problem: The problem.
        runs: Every run.
        rank: Rank of the logits without bias of every run, shape (R,); -1 without a finite
            objective.
        point: Index into `points` of every run, shape (R,); -1 without a finite objective.
        points: The points, settled or not, the lowest first.
        certificate: Certificate of the lowest minimum. None if the model has no bound, or there is
            no minimum.
        at_zero: The objective of zero logits.
        tol: Relative gradient that counts as converged.
        seconds: Wall time, compilation included.
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
        """The other points near which runs ended, without having converged."""
        return tuple(point for point in self.points if not point.settled)

    @property
    def converged(self) -> Bool[np.ndarray, " R"]:
        """Which runs converged, shape (R,)."""
        return _settled(self.runs, self.tol)

    @property
    def unseen(self) -> float:
        """Estimated probability that one more converged run ends at a minimum that is not here.

        It is the share of minima seen once. NaN without a converged run. Reference: Good (1953),
        Biometrika 40, 237-264.
        """
        total = sum(point.frequency for point in self.minima)
        return sum(point.frequency == 1 for point in self.minima) / total if total else float("nan")

    @property
    def excess(self) -> Float[np.ndarray, " P"]:
        """Height of every point above the lowest minimum, relative to it, shape (P,).

        NaN without a minimum.
        """
        if not self.minima:
            return np.full(len(self.points), np.nan)
        values, lowest = np.array([point.value for point in self.points]), self.minima[0].value
        return (values - lowest) / objective_scale(self.at_zero, lowest)

    def __str__(self) -> str:
        runs, minima = self.runs, self.minima
        statuses = [
            f"{int(np.sum(runs.status == status))} {status}"
            for status in Status
            if status in runs.status
        ]
        lines = [
            f"{counted(len(runs.seeds), 'start')}: {', '.join(statuses)}; {len(minima)} minima, "
            f"about {self.unseen:.2g} of runs would end elsewhere",
            "value              excess    runs  unsettled  rank  name",
        ]
        rows = list(zip(self.points, self.excess, strict=True))
        titles = (True, "", ROWS[0]), (False, "not settled, and not called minima:", ROWS[1])
        for settled, title, most in titles:
            part = [(point, excess) for point, excess in rows if point.settled == settled]
            lines += [title] if part and title else []
            lines += [
                f"{point.value:<17.12g}  {excess:<8.2g}  {point.frequency:4d}  "
                f"{point.unsettled:9d}  {point.rank:4d}  {point.name}".rstrip()
                for point, excess in part[:most]
            ]
            if len(part) > most:
                rest = sum(point.frequency + point.unsettled for point, _ in part[most:])
                lines.append(f"and {len(part) - most} more, of {rest} runs")
        lines.append(f"lowest minimum: {self.certificate or 'no lower bound'}")
        return "\n".join(lines)


@on_host
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
    """Minimise a problem from many random starts, and count where the runs end.

    Args:
        problem: A problem of any depth, regularizer and loss. It is solved at class resolution.
        starts: R, the number of starts. A shorter census with the same key has the first runs of a
            longer one.
        key: JAX PRNG key or integer seed of the starts; 0 if not given.
        max_steps: Most steps of each run; as in `ufm.solve` if not given.
        tol: Relative gradient that counts as converged.
        workers: Number of threads; the number of cores if not given.
        batch: Number of starts solved together, which is the most that Ctrl-C loses. 512 if not
            given, more on accelerators.

    Returns:
        Every run with its status, failed ones included, and the points at which they ended.

    Raises:
        ValueError: If an argument is not valid.
        CensusInterrupted: On Ctrl-C. It is a KeyboardInterrupt whose `census` holds what was
            finished.
    """
    began = time.perf_counter()
    check_instance("problem", problem, Problem)
    starts, tol = checked_whole("starts", starts), checked_positive("tol", tol)
    for name, value, least in (
        ("max_steps", max_steps, 0),
        ("workers", workers, 1),
        ("batch", batch, 1),
    ):
        if value is not None:
            checked_whole(name, value, least)
    check_dense(problem.num_classes)
    seeds = generator(key).integers(2**62, size=starts)
    with double_precision():
        narrow = narrowed(one_count_per_class(problem))
    if batch is None:
        batch = max(BATCH, chunk_size(num_unknowns(narrow, problem.num_classes)))
    parts: list[Runs] = []
    try:
        for chunk in chunks(starts, batch):
            parts.append(_solved(problem, narrow, seeds[chunk], max_steps, tol, workers))
        found = gathered(problem, _joined(parts), tol=tol, bound=certify)
    except KeyboardInterrupt as stop:
        done = sum(len(part.seeds) for part in parts)
        if done < starts:
            parts.append(_not_made(problem, seeds[done:]))
        failure = CensusInterrupted(
            "interrupted; the exception's `census` holds the runs that were finished"
        )
        failure.census = gathered(problem, _joined(parts), tol=tol)._replace(
            seconds=time.perf_counter() - began
        )
        raise failure from stop
    return found._replace(seconds=time.perf_counter() - began)


def gathered(
    problem: Problem,
    runs: Runs,
    *,
    tol: float = 1e-9,
    bound: Callable[[Problem, Parameters], Certificate | None] | None = None,
) -> Census:
    """Return the census of given runs.

    Args:
        problem: The problem of the runs.
        runs: The runs.
        tol: Relative gradient that counts as converged.
        bound: Function that certifies the lowest minimum; no certificate if None.
    """
    with double_precision():
        at_zero = float(problem.value_at_zero(class_samples(problem, jnp.float64)))
        known = _known(problem, at_zero)
    spectra = _Spectra(problem)
    settled = _settled(runs, tol)
    accuracy = np.where(settled, np.maximum(runs.relative_gradient, ROUNDING), UNSETTLED)
    finite = np.isfinite(runs.objective) & np.all(np.isfinite(runs.logits), axis=(1, 2))
    logits = np.where(finite[:, None, None], runs.logits, 0)
    products = logits
    if runs.parameters.bias is not None:
        products = products - np.where(finite[:, None], runs.parameters.bias, 0)[:, None, :]
    singular = np.linalg.svd(products, compute_uv=False)
    marks = spectra.marks(products, logits)
    size = np.maximum(np.max(np.abs(marks), axis=1), 1.0)
    rank = np.sum(singular > (SPREAD * np.sqrt(accuracy) * size)[:, None], axis=1)
    rank = np.where(finite, rank, -1)
    leaders, point = _clusters(runs, settled, finite, accuracy, marks, at_zero)

    points = []
    for index, lead in enumerate(leaders):
        here = point == index
        parameters = jax.tree.map(lambda block, lead=lead: block[lead], runs.parameters)
        with double_precision():
            features = np.asarray(problem.last_features(parameters))
        reached = runs.objective[lead], accuracy[lead], marks[lead]
        points.append(
            EndPoint(
                name=_name(reached, known, spectra, at_zero),
                settled=bool(settled[lead]),
                value=float(runs.objective[lead]),
                frequency=int(np.sum(here & settled)),
                unsettled=int(np.sum(here & ~settled)),
                rank=int(rank[lead]),
                singular_values=singular[lead],
                feature_cosines=np.asarray(geometry.cosines(features)),
                status=Status(int(runs.status[lead])),
                relative_gradient=float(runs.relative_gradient[lead]),
                parameters=parameters,
                run=lead,
            )
        )
    lowest = next((end for end in points if end.settled), None)
    certificate = None if bound is None or lowest is None else bound(problem, lowest.parameters)
    return Census(problem, runs, rank, point, tuple(points), certificate, at_zero, tol, 0.0)


def _clusters(
    runs: Runs,
    settled: np.ndarray,
    finite: np.ndarray,
    accuracy: np.ndarray,
    marks: np.ndarray,
    at_zero: float,
) -> tuple[list[int], np.ndarray]:
    """Return the representative run of every point, the lowest first, and the point of every run.

    The most accurate runs come first. Each one joins the nearest point that it agrees with, or
    represents a new one.
    """
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
            distances = np.max(np.abs(marks[at[places]] - marks[run]), axis=1, initial=0)
            point[run] = places[np.argmin(distances)]
        else:
            point[run] = len(leaders)
            leaders.append(int(run))
    by_value = sorted(range(len(leaders)), key=lambda index: float(runs.objective[leaders[index]]))
    place = np.full(len(leaders) + 1, -1)
    place[by_value] = np.arange(len(leaders))
    return [leaders[old] for old in by_value], place[point]


def _name(
    reached: tuple[Any, Any, Any],
    known: dict[str, tuple[float, np.ndarray]],
    spectra: "_Spectra",
    at_zero: float,
) -> str:
    """Return the name of the first known point that a run agrees with; empty if there is none."""
    for name, (value, logits) in known.items():
        marks = spectra.marks(logits[None], logits[None])
        if _alike(reached, (np.array([value]), np.array([EXPLICIT]), marks), at_zero)[0]:
            return name
    return ""


class _Spectra:
    """Spectra of logits that do not change under permutations of interchangeable classes."""

    def __init__(self, problem: Problem):
        K = problem.num_classes
        with double_precision():
            stated = one_count_per_class(problem)
        marks = [np.asarray(stated.class_counts.counts, np.float64)]
        marks += [
            np.asarray(leaf) for leaf in jax.tree.leaves(stated.loss) if np.shape(leaf) == (K,)
        ]
        _, sets = np.unique(np.stack(marks), axis=1, return_inverse=True)
        self.members = [
            np.flatnonzero(np.ravel(sets) == index) for index in range(int(np.max(sets)) + 1)
        ]

    def marks(
        self, products: Float[np.ndarray, "R K K"], logits: Float[np.ndarray, "R K K"]
    ) -> np.ndarray:
        """Return the spectra of products (logits without bias) and logits, shape (R, M)."""
        found = [np.linalg.svd(products, compute_uv=False)]
        for a, rows in enumerate(self.members):
            for b, columns in enumerate(self.members):
                block = logits[:, rows[:, None], columns[None, :]]
                found.append(np.linalg.svd(block, compute_uv=False))
                if a == b:
                    found.append(np.linalg.eigvalsh(0.5 * (block + np.swapaxes(block, 1, 2))))
        return np.concatenate(found, axis=1)


def _alike(run: tuple[Any, Any, Any], others: tuple[Any, Any, Any], at_zero: float) -> np.ndarray:
    """Return which others have a run's value and geometry; each is (objective, accuracy, marks)."""
    value, accuracy, marks = run
    values, accuracies, many = others
    same = np.abs(values - value) <= (accuracies + accuracy) * np.maximum(
        objective_scale(at_zero, value), np.abs(values)
    )
    size = np.maximum(
        np.maximum(np.max(np.abs(many), axis=1, initial=0), np.max(np.abs(marks))), 1.0
    )
    off = np.max(np.abs(many - marks), axis=1, initial=0)
    return same & (off <= SPREAD * np.sqrt(np.maximum(accuracies, accuracy)) * size)


def _known(problem: Problem, at_zero: float) -> dict[str, tuple[float, np.ndarray]]:
    """Return the (objective, logits) of the points that have names, by name."""
    K = problem.num_classes
    found = {"collapse at zero": (at_zero, np.zeros((K, K)))}
    for made in constructions_for(problem):
        if made.rank > 0:
            logits = np.asarray(problem.logits(jax.tree.map(jnp.asarray, made.parameters)))
            found[made.name] = made.objective, logits
    return found


def _settled(runs: Runs, tol: float) -> Bool[np.ndarray, " R"]:
    return (
        has_converged(runs.status) & (runs.relative_gradient <= tol) & np.isfinite(runs.objective)
    )


def _solved(
    problem: Problem,
    narrow: Problem,
    seeds: np.ndarray,
    max_steps: int | None,
    tol: float,
    workers: int | None,
) -> Runs:
    """Solve a batch of starts."""
    lanes = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], len(seeds), axis=0), narrow)
    found = solve_class_batch(
        lanes, tol=tol, keys=seeds, restarts=1, max_steps=max_steps, workers=workers
    )
    each = [
        widened(problem, jax.tree.map(lambda block, lane=lane: block[lane], found.parameters))
        for lane in range(len(seeds))
    ]
    parameters = jax.tree.map(lambda *blocks: np.stack(blocks), *each)
    return Runs(
        seeds,
        found.status,
        found.objective,
        found.relative_gradient,
        found.steps,
        found.logits,
        parameters,
    )


def _not_made(problem: Problem, seeds: np.ndarray) -> Runs:
    """Return runs that were interrupted before they began."""
    R, K, dims = len(seeds), problem.num_classes, problem.layer_dims
    weights: Any = tuple(np.full((R, out, into), np.nan) for into, out in itertools.pairwise(dims))
    features: Any = np.full((R, K, dims[0]), np.nan)
    bias: Any = np.full((R, K), np.nan) if problem.use_bias else None
    parameters = Parameters(weights, features, bias)
    nothing, never = np.full(R, np.nan), np.zeros(R, np.int32)
    return Runs(
        seeds,
        never + Status.INTERRUPTED,
        nothing,
        nothing,
        never,
        np.full((R, K, K), np.nan),
        parameters,
    )


def _joined(parts: Sequence[Runs]) -> Runs:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
