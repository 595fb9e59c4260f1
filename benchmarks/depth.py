"""What finds low minima of deep ReLU models: ways to choose starts and to descend from them.

A census of shallow minima follows.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m benchmarks.depth \
        [--quick] [--only search,solve,census] [--json out.json]

Squared error, one sample per class, all penalties 0.004, no bias. Every way has 16 starts, in one
vmapped batch of one compiled program per shape, compiled beforehand. All descend by L-BFGS with
every smoothing of the library (`ufm.solving.methods.schedule.SMOOTHINGS`), at every start, except
the plain one, whose ReLUs are as they are. What ends near the reference, and what is lowest, is
then taken onto the kinks of its minimum (`ufm.solving.relu.newton_on_kinks`), as in `ufm.solve`, so
that the values compared are not those of the smoothing. The reference is the lowest value that our
notes gave before ReLUs were smoothed; a start counts where it ends at most 1e-5 above it,
relatively.

Times are of this process (wall) and of all its threads (CPU); they contain the solves that a way
needs before its own problem, and not the step onto the kinks, which has a column of its own.
"""

import argparse
import functools
import itertools
import json
import os
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import ufm
from benchmarks import machine
from benchmarks.table import markdown, seconds
from ufm._support import as_leaf, compiled, double_precision, to_numpy
from ufm.problems import (
    Parameters,
    Problem,
    class_samples,
    constructions_for,
    deep_neural_collapse,
    narrowed,
    one_count_per_class,
    starts_of,
)
from ufm.solving.methods import (
    LBFGS,
    SMOOTHINGS,
    Iterate,
    Start,
    advance,
    default_steps,
    first_iterate,
    num_unknowns,
    parameters_of,
    start_scales,
)
from ufm.solving.relu import polish

__all__ = ["Found", "Search", "Setting", "deepened", "main"]

PENALTY = 4e-3
STARTS = 16
TOL = 1e-9
SMOOTHED = 3e-4  # relative gradient at which a descent with smoothing ends
CLOSE = 1e-5  # above the reference, relatively, that counts
NEAR = 1e-3  # the same, of what is taken onto the kinks
ALIKE = 1e-4  # relative difference of starts of which only one is
MOST_FOLLOWED = 6
NOISES = (0.3, 1.0)
PENALTY_STEPS = 5
ESCAPES = (0.5, 1.0, 2.0, 4.0)  # of the step that classification gives
ESCAPE_NOISE = 0.1
KEYS = 5
CENSUS_STARTS = 1000
CENSUS_PENALTY = 5e-3


class Setting(NamedTuple):
    """K classes, L layers, width of the hidden ones, and the reference (NaN without one)."""

    num_classes: int
    num_layers: int
    width: int
    reference: float

    def problem(self, penalty: float = PENALTY, fewer: int = 0) -> Problem:
        """Return the model, of fewer layers where that is asked for."""
        return ufm.Problem(
            class_counts=(1,) * self.num_classes,
            feature_dim=self.num_classes,
            hidden_dims=(self.width,) * (self.num_layers - 1 - fewer),
            activation="relu",
            loss=ufm.SquaredError(),
            regularizer=ufm.WeightDecay(weights=penalty, features=penalty),
            use_bias=False,
        )


SETTINGS = (
    Setting(6, 4, 6, 0.0557973),
    Setting(6, 4, 12, 0.0557973),
    Setting(10, 4, 10, 0.0809113),
    Setting(10, 3, 10, 0.0728939),
)
QUICK = (Setting(6, 3, 6, np.nan),)


class Found(NamedTuple):
    """What one way found: setting, way, starts, the lowest objective and its relative gradient.

    hits: how many starts are at or below the reference.

    lowest_hits: how many are at the lowest objective that any way found. steps: per start. wall,
    cpu: seconds per start. following: CPU seconds to take onto their kinks those that were, in all.
    """

    setting: str
    way: str
    starts: int
    lowest: float
    relative_gradient: float
    hits: int
    lowest_hits: int
    steps: float
    wall: float
    cpu: float
    following: float


class Spent:
    """Wall and CPU seconds, and steps of all starts."""

    def __init__(self) -> None:
        self.steps, self.wall, self.cpu = 0, 0.0, 0.0
        self._began = (0.0, 0.0)

    def __enter__(self) -> "Spent":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]


class Search:
    """The ways of one setting."""

    def __init__(self, setting: Setting, starts: int = STARTS, seed: int = 0):
        self.setting, self.starts = setting, starts
        self.problem = self._at()
        self.generator = np.random.default_rng(seed)
        self.numbers = self.generator.standard_normal((starts, self._size(self.problem)))
        self.scales = start_scales(starts, kinks=True)
        self.ended: list[np.ndarray] = []  # objectives of the starts, way by way

    def _at(self, penalty: float = PENALTY, fewer: int = 0) -> Problem:
        with double_precision():
            return narrowed(one_count_per_class(self.setting.problem(penalty, fewer)))

    def _size(self, problem: Problem) -> int:
        return num_unknowns(problem, problem.num_classes)

    def rows(self) -> list[Found]:
        """Return what every way found."""
        self._compile()
        made = constructions_for(self.problem)
        around = starts_of(
            self.problem, self.generator, sum(((noise,) * self.starts for noise in NOISES), ())
        )
        blocks = np.split(around[: len(made) * len(NOISES) * self.starts], len(made) * len(NOISES))
        rows = [
            self._descended("random, plain ReLUs", self.numbers, self.scales, (0.0,)),
            self._descended("random", self.numbers, self.scales),
        ]
        for (construction, noise), points in zip(
            itertools.product(made, NOISES), blocks, strict=True
        ):
            rows.append(self._descended(f"around {construction.name}, noise {noise:g}", points))
        rows += self._escaping()
        codes = [starts_of(self.problem, self.generator, ()) for _ in range(-(-self.starts // 8))]
        rows.append(self._descended("codes", np.concatenate(codes)[: self.starts]))
        rows += [self._penalties(0.1), self._penalties(3.0), self._deeper()]
        lowest = min(row.lowest for row in rows if row.starts)
        return [
            row._replace(lowest_hits=self._at_most(ended, lowest))
            for row, ended in zip(rows, self.ended, strict=True)
        ]

    def _compile(self) -> None:
        for fewer in (0, 1):
            problem = self._at(fewer=fewer)
            numbers = np.zeros((self.starts, self._size(problem)))
            self._down(problem, numbers, self.scales, SMOOTHINGS[:1], Spent(), 0)
            to_numpy(_parameters(problem, numbers))

    def _descended(
        self, way: str, numbers: Any, scales: Any = 0.0, smoothings: tuple[float, ...] = SMOOTHINGS
    ) -> Found:
        spent = Spent()
        return self._found(way, self._down(self.problem, numbers, scales, smoothings, spent), spent)

    def _escaping(self) -> list[Found]:
        """Return what is found along the way down from deep neural collapse, where there is one."""
        spent = Spent()
        with spent:
            # The scale of a construction is found on a grid, to half of all digits.
            collapse = deep_neural_collapse(self.problem).parameters
            point = ufm.landscape.classify(self.problem, collapse, tol=1e-6)
        escape = point.escape
        if escape is None:
            self.ended.append(np.zeros(0))
            none = f"no way down from deep neural collapse: {point.kind}"
            return [
                Found(
                    str(self.setting[:3]),
                    none,
                    0,
                    np.nan,
                    np.nan,
                    0,
                    0,
                    np.nan,
                    np.nan,
                    np.nan,
                    np.nan,
                )
            ]
        points = []
        for size, sign in itertools.product(ESCAPES, (1, -1)):
            for noise in (0.0, ESCAPE_NOISE):
                moved = _flat(collapse) + sign * size * _flat(escape.step)
                points.append(
                    moved
                    + noise
                    * np.sqrt(np.mean(moved**2))
                    * self.generator.standard_normal(moved.size)
                )
        way = f"from deep neural collapse along {escape.reason}"
        return [
            self._found(
                way,
                self._down(self.problem, np.stack(points)[: self.starts], 0.0, SMOOTHINGS, spent),
                spent,
            )
        ]

    def _penalties(self, factor: float) -> Found:
        """Return what is found by following minima from another penalty in geometric steps."""
        spent = Spent()
        first, *rest = np.geomspace(factor, 1, PENALTY_STEPS + 1) * PENALTY
        x = self._down(self._at(float(first)), self.numbers, self.scales, SMOOTHINGS, spent).x
        for penalty in rest:
            # All penalties are equal, so the balanced coordinates are those of the parameters, at
            # any of them.
            iterate = self._down(self._at(float(penalty)), x, 0.0, SMOOTHINGS[-2:], spent)
            x = iterate.x
        return self._found(f"penalty from {factor:g} times, {PENALTY_STEPS} steps", iterate, spent)

    def _deeper(self) -> Found:
        """Return what is found from minima of a model with a layer less."""
        spent = Spent()
        shallow = self._at(fewer=1)
        numbers = self.generator.standard_normal((self.starts, self._size(shallow)))
        ended = self._down(shallow, numbers, self.scales, SMOOTHINGS, spent)
        with spent:
            parameters = to_numpy(_parameters(shallow, ended.x))
            points = [
                _flat(deepened(jax.tree.map(lambda leaf, i=i: leaf[i], parameters)))
                for i in range(self.starts)
            ]
        iterate = self._down(self.problem, np.stack(points), 0.0, SMOOTHINGS, spent)
        return self._found("from the minima of a layer less", iterate, spent)

    def _down(
        self,
        problem: Problem,
        numbers: Any,
        scales: Any,
        smoothings: tuple[float, ...],
        spent: Spent,
        most: int | None = None,
    ) -> Iterate:
        """Return where all starts end, one smoothing after the other.

        Each smoothing has the steps that the library gives a stage.
        """
        limit = default_steps(problem) if most is None else most
        share = limit if len(smoothings) == 1 else int(0.4 * limit)
        zero = np.zeros(len(numbers), np.int32)
        start = Start(np.asarray(numbers), np.broadcast_to(scales, len(numbers)) + 0.0, zero, zero)
        before = spent.steps
        with double_precision(), spent:
            for smoothing in smoothings:
                method = LBFGS(smoothing=as_leaf(smoothing))
                tol = TOL if smoothing == 0 else 1e-3 if smoothing != SMOOTHINGS[-1] else SMOOTHED
                until = np.minimum(start.step + share, limit).astype(np.int32)
                iterate = to_numpy(
                    jax.block_until_ready(_descent(problem, method, start, until, np.asarray(tol)))
                )
                start = Start(iterate.x, np.zeros(len(numbers)), iterate.step, iterate.evaluations)
            spent.steps = before + int(np.sum(iterate.step))
        return iterate

    def _found(self, way: str, iterate: Iterate, spent: Spent) -> Found:
        """Return what was found, the lowest and what is near the reference taken onto its kinks."""
        with double_precision():
            parameters = to_numpy(_parameters(self.problem, iterate.x))
            values = np.array(_values(self.problem, iterate.x))
        values[~np.isfinite(values)] = np.inf
        reference, took, lowest = self.setting.reference, time.process_time(), (np.inf, np.nan)
        ended, followed = values.copy(), 0
        left = np.ones(len(values), bool)
        for lane in np.argsort(values, kind="stable"):
            wanted = not followed or values[lane] <= reference * (1 + NEAR)
            if (
                not left[lane]
                or not wanted
                or followed == MOST_FOLLOWED
                or not np.isfinite(values[lane])
            ):
                continue
            followed += 1
            with double_precision():
                point = polish(
                    self.problem,
                    jax.tree.map(lambda leaf, lane=lane: leaf[lane], parameters),
                    SMOOTHINGS[-1],
                    TOL,
                )
            # Others like it are taken to end there, too, unless it went nowhere: then the next one
            # is tried.
            alike = left & (np.abs(values - values[lane]) <= ALIKE * abs(values[lane]))
            alike = alike if point.relative_gradient <= TOL else np.arange(len(values)) == lane
            ended[alike], left[alike] = np.minimum(values[alike], point.objective), False
            lowest = min(lowest, (point.objective, point.relative_gradient))
        self.ended.append(ended)
        return Found(
            str(self.setting[:3]),
            way,
            len(values),
            lowest[0],
            lowest[1],
            self._at_most(ended, reference),
            0,
            spent.steps / len(values),
            spent.wall / len(values),
            spent.cpu / len(values),
            time.process_time() - took,
        )

    @staticmethod
    def _at_most(values: np.ndarray, reference: float) -> int:
        return int(np.sum(values <= reference * (1 + CLOSE)))


def deepened(parameters: Parameters) -> Parameters:
    """Return the same logits with one more layer, after the first hidden one.

    The new layer passes on what is active there. All factors have one norm.
    """
    first, *rest = (np.asarray(matrix) for matrix in parameters.weights)
    passing = np.diag((np.linalg.norm(first, axis=1) > 0).astype(np.float64))
    blocks = [first, passing, *rest, np.asarray(parameters.features)]
    norms = np.array([np.linalg.norm(block) for block in blocks])
    if not np.all(norms > 0):
        return Parameters(tuple(0 * block for block in blocks[:-1]), 0 * blocks[-1], None)
    common = np.exp(np.mean(np.log(norms)))
    *weights, features = (
        block * (common / norm) for block, norm in zip(blocks, norms, strict=True)
    )
    return Parameters(tuple(weights), features, None)


def _flat(parameters: Parameters) -> np.ndarray:
    return np.concatenate([np.ravel(block) for block in (*parameters.weights, parameters.features)])


@compiled
def _descent(problem: Problem, method: LBFGS, starts: Start, until: Array, tol: Array) -> Iterate:
    def one(start: Start, until: Array) -> Iterate:
        samples = class_samples(problem, jnp.float64)
        begun = first_iterate(problem, samples, method, start, None)
        return advance(problem, samples, method, begun, until, tol, 0)

    return jax.vmap(one)(starts, until)


@functools.partial(compiled, once=True)
def _parameters(problem: Problem, x: Float[Array, "R n"]) -> Parameters:
    samples = class_samples(problem, jnp.float64)
    return jax.vmap(lambda x: parameters_of(problem, samples, LBFGS(), x))(jnp.asarray(x))


@functools.partial(compiled, once=True)
def _values(problem: Problem, x: Float[Array, "R n"]) -> Float[Array, " R"]:
    columns = class_samples(problem, jnp.float64)
    return jax.vmap(
        lambda x: problem.objective(parameters_of(problem, columns, LBFGS(), x), columns)
    )(jnp.asarray(x))


def solves(setting: Setting, keys: int) -> list[list[str]]:
    """Return rows of `ufm.solve` with its defaults for several keys.

    The first call compiles, and is made twice.
    """
    problem, rows = setting.problem(), []
    for key in (0, *range(keys)):
        spent = Spent()
        with spent:
            solution = ufm.solve(problem, key=key)
        rows.append(
            [
                str(setting[:3]),
                f"{key}, first call" if not rows else str(key),
                f"{solution.objective:.10g}",
                str(solution.status),
                f"{solution.relative_gradient:.0e}",
                str(len(solution.minima)),
                f"{solution.restarts.steps.mean():.0f}",
                seconds(spent.wall),
                seconds(spent.cpu),
            ]
        )
    return rows


def censuses(starts: int) -> list[list[str]]:
    """Return rows of censuses of two-layer ReLU models."""
    rows = []
    for K, loss in itertools.product((4, 6), (ufm.SquaredError(), ufm.CrossEntropy())):
        problem = ufm.Problem(
            class_counts=(1,) * K,
            feature_dim=K,
            hidden_dims=(K,),
            activation="relu",
            loss=loss,
            regularizer=ufm.WeightDecay(weights=CENSUS_PENALTY, features=CENSUS_PENALTY),
            use_bias=False,
        )
        spent = Spent()
        with spent:
            found = ufm.landscape.census(problem, starts)
        lowest = found.minima[0].value if found.minima else np.nan
        rows.append(
            [
                f"K = {K}, {type(loss).__name__}",
                f"{len(found.runs.seeds):,}",
                f"{int(np.sum(found.converged)):,}",
                str(len(found.minima)),
                str(sum(point.frequency == 1 for point in found.minima)),
                str(len(found.unsettled)),
                f"{lowest:.10g}",
                str(found.minima[0].frequency if found.minima else 0),
                f"{np.mean(found.runs.steps):.0f}",
                seconds(spent.wall),
                seconds(spent.cpu),
            ]
        )
    return rows


def _cells(row: Found) -> list[str]:
    if not row.starts:
        return [row.setting, row.way, *[""] * 8]
    return [
        row.setting,
        row.way,
        f"{row.lowest:.9f}",
        f"{row.relative_gradient:.0e}",
        f"{row.hits} of {row.starts}",
        f"{row.lowest_hits} of {row.starts}",
        f"{row.steps:.0f}",
        seconds(row.wall),
        seconds(row.cpu),
        seconds(row.following),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.depth", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short, to see that everything works"
    )
    parser.add_argument(
        "--starts", type=int, default=STARTS, help="of every way of searching; 16 if not given"
    )
    parser.add_argument(
        "--only", default="solve,search,census", help="comma-separated parts: solve, search, census"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON, too")
    options = parser.parse_args(arguments)
    parts = set(options.only.split(","))
    if not parts <= {"solve", "search", "census"}:
        parser.error(f"--only takes solve, search and census, got {options.only}")
    settings, starts = (QUICK, 4) if options.quick else (SETTINGS, options.starts)
    data: dict[str, Any] = {"machine": machine.description()}
    print(data["machine"] + "\n", flush=True)
    began = Spent()
    with began:
        if "solve" in parts:  # first, so that their first calls compile
            rows = [
                row for setting in settings for row in solves(setting, 2 if options.quick else KEYS)
            ]
            head = [
                "(K, L, width)",
                "key",
                "objective",
                "status",
                "relative gradient",
                "minima",
                "steps per start",
                "wall",
                "CPU",
            ]
            data["solve"] = [head, *rows]
            print(markdown(head, rows) + "\n", flush=True)
        if "search" in parts:
            found = [row for setting in settings for row in Search(setting, starts).rows()]
            head = [
                "(K, L, width)",
                "way",
                "lowest",
                "relative gradient",
                "at or below the reference",
                "at the lowest of all",
                "steps per start",
                "wall per start",
                "CPU per start",
                "onto kinks, CPU",
            ]
            cells = [_cells(row) for row in found]
            data["search"] = [row._asdict() for row in found]
            print(markdown(head, cells) + "\n", flush=True)
        if "census" in parts:
            head = [
                "two layers",
                "starts",
                "converged",
                "minima",
                "seen once",
                "not settled",
                "lowest",
                "starts there",
                "steps per start",
                "wall",
                "CPU",
            ]
            rows = censuses(50 if options.quick else CENSUS_STARTS)
            data["census"] = [head, *rows]
            print(markdown(head, rows) + "\n", flush=True)
    print(
        f"{began.wall:.0f} s, {began.cpu:.0f} s of CPU, compilation included; "
        f"load average {os.getloadavg()[0]:.2g} at the end"
    )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
