"""Points per second of `ufm.sweep`, beside a loop of `ufm.solve` over the same points.

Also in fresh processes, and on one and two workers.

    python -m benchmarks.sweeps [--quick] [--json out.json]

Three sweeps: weight decay x imbalance ratio over two groups of classes, written into a store and
read from it again; the same over ten classes of different counts, at class resolution; and restarts
of a ReLU model of two layers from many seeds. Sweep and loop are alternated in one process. The
first run of a sweep compiles; of the others the best counts. The loop runs over a random sample of
the points, is warm (the same sample was solved before), and its best run counts, too. A fresh
process is timed from outside: interpreter, imports, compilation, the sweep, writing the store and
reading it again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ufm
from benchmarks import machine
from benchmarks.table import markdown, seconds

__all__ = ["Comparison", "Plan", "Scaling", "fresh", "main", "plan", "run_in_worker"]

REPEATS = 3
TOL = 1e-9
NAMES = ("groups", "classes", "relu")


class Plan(NamedTuple):
    """A sweep: a description, the arguments of `ufm.sweep`, the problem at a point, the options.

    sample: how many points the loop solves. stored: whether the sweep is kept in a store.
    """

    about: str
    problem: ufm.Problem
    over: dict[str, np.ndarray]
    at: Callable[..., ufm.Problem]
    together: dict[str, Any]
    alone: dict[str, Any]
    sample: int
    stored: bool = False

    def run(self, **options: Any) -> Any:
        """Return the sweep's Dataset."""
        return ufm.sweep(
            self.problem, self.over, tol=TOL, progress=False, **self.together, **options
        )

    def points(self, count: int) -> list[dict[str, float]]:
        """Return some random points."""
        grid = np.meshgrid(*self.over.values(), indexing="ij")
        chosen = np.random.default_rng(0).choice(
            grid[0].size, min(count, grid[0].size), replace=False
        )
        columns = [axis.ravel()[chosen] for axis in grid]
        return [dict(zip(self.over, values, strict=True)) for values in zip(*columns, strict=True)]


class Comparison(NamedTuple):
    """A sweep and the loop: points, the sweep's first and best seconds, and points per second.

    The rates are those of sweep, loop, and a fresh process.

    worst_gap: the largest certified relative gap; NaN where the model has no bound. uncertified,
    unconverged: points. difference: of the sweep's objective from the loop's, relative, the largest
    over the sample. load: average of the machine before it.
    """

    name: str
    about: str
    points: int
    first: float
    best: float
    per_second: float
    loop_per_second: float
    worst_gap: float
    uncertified: int
    unconverged: int
    difference: float
    fresh: float
    load: float


class Scaling(NamedTuple):
    """A sweep on a local cluster: workers, best time, points per second, and over one worker's."""

    workers: int
    points: int
    seconds: float
    per_second: float
    speedup: float


def plan(name: str, quick: bool = False) -> Plan:
    """Return one of the sweeps."""
    entropy, squared = ufm.CrossEntropy(), ufm.SquaredError()

    def wide(counts: ufm.ClassGroups, decay: float) -> ufm.Problem:
        penalties = ufm.WeightDecay(weights=decay, features=decay)
        return ufm.Problem(class_counts=counts, feature_dim=10, loss=entropy, regularizer=penalties)

    def step(weight_decay: float, imbalance_ratio: float) -> ufm.Problem:
        return wide(ufm.ClassGroups.step(10, 500, imbalance_ratio=imbalance_ratio), weight_decay)

    def tail(weight_decay: float, imbalance_ratio: float) -> ufm.Problem:
        return wide(
            ufm.ClassGroups.long_tail(10, 500, imbalance_ratio=imbalance_ratio), weight_decay
        )

    def relu(weight_decay: float, seed: float) -> ufm.Problem:
        penalties = ufm.WeightDecay(weights=weight_decay, features=weight_decay)
        return ufm.Problem(
            class_counts=(10,) * 4,
            feature_dim=6,
            hidden_dims=(6,),
            activation="relu",
            loss=squared,
            regularizer=penalties,
            nonnegative_features=False,
        )

    if name == "groups":
        side = 30 if quick else 300
        over = {
            "weight_decay": np.geomspace(1e-6, 1e-2, side),
            "imbalance_ratio": np.geomspace(1, 1000, side),
        }
        options = {"resolution": "groups"}
        return Plan(
            "two groups, 5 + 5 classes, CE",
            step(1e-3, 10.0),
            over,
            step,
            options,
            options,
            200,
            True,
        )
    if name == "classes":
        side = 10 if quick else 100
        over = {
            "weight_decay": np.geomspace(1e-6, 1e-3, side),
            "imbalance_ratio": np.geomspace(2, 1000, side),
        }
        options = {"resolution": "classes"}
        return Plan(
            "10 classes, all counts different, CE",
            tail(1e-3, 10.0),
            over,
            tail,
            options,
            options,
            100,
        )
    over = {
        "weight_decay": np.geomspace(1e-4, 1e-2, 2 if quick else 8),
        "seed": np.arange(2 if quick else 16),
    }
    restarts = {"restarts": 4}
    return Plan(
        "4 classes, 2 layers, ReLU, MSE, 4 restarts",
        relu(1e-3, 0),
        over,
        relu,
        restarts,
        restarts,
        8,
    )


def fresh(name: str, folder: str, quick: bool = False) -> None:
    """Run a sweep into a store and read it again, in this process.

    Prints how many points are certified and the largest gap.
    """
    plan(name, quick).run(store=folder)
    points = ufm.open_sweep(folder).load()
    print(
        json.dumps(
            {"certified": int(points.certified.sum()), "gap": float(points.relative_gap.max())}
        ),
        flush=True,
    )


def run_in_worker(name: str, quick: bool, batch: int) -> None:
    """Compile what the batches of a sweep need, by running one."""
    one = plan(name, quick)
    rows, column = len(one.over["weight_decay"]), len(one.over["imbalance_ratio"])
    part = {
        **one.over,
        "weight_decay": one.over["weight_decay"][: max(min(batch // column, rows), 1)],
    }
    one._replace(over=part).run(batch=batch)


def compared(name: str, quick: bool, repeats: int) -> Comparison:
    """Return how a sweep and the loop did."""
    one, load = plan(name, quick), os.getloadavg()[0]
    chosen = one.points(one.sample if not quick else 4)
    size = int(np.prod([len(values) for values in one.over.values()]))
    times, loops = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        points = _swept(one)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        objectives = [_alone(one, point).objective for point in chosen]
        loops.append(time.perf_counter() - began)
    found = np.array([float(points.objective.sel(point)) for point in chosen])
    axes = " x ".join(f"{len(values)} {axis}" for axis, values in one.over.items())
    return Comparison(
        name,
        f"{one.about}; {axes}".replace("_", " "),
        size,
        times[0],
        min(times[1:]),
        size / min(times[1:]),
        len(chosen) / min(loops[1:]),
        float(points.relative_gap.max()),
        int((~points.certified).sum()),
        int((points.status != ufm.Status.CONVERGED).sum()),
        float(np.max(np.abs(found - objectives) / np.abs(objectives))),
        min(_fresh(name, quick) for _ in range(min(repeats, 2))),
        load,
    )


def _swept(one: Plan) -> Any:
    if not one.stored:
        return one.run()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "sweep.zarr"
        one.run(store=store)
        return ufm.open_sweep(store).load()


def _alone(one: Plan, point: dict[str, float]) -> Any:
    options = {**one.alone, "key": int(point["seed"])} if "seed" in point else one.alone
    return ufm.solve(one.at(**point), tol=TOL, **options)


def _fresh(name: str, quick: bool) -> float:
    """Return the seconds of a sweep in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "sweep.zarr")
        code = f"from benchmarks.sweeps import fresh; fresh({name!r}, {path!r}, {quick})"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def scaled(name: str, quick: bool, repeats: int) -> list[Scaling]:
    """Return a sweep's rates on one and on two workers of one thread each.

    Each runs in a process of its own, and they alternate.
    """
    from distributed import Client, LocalCluster

    one = plan(name, quick)
    size = int(np.prod([len(values) for values in one.over.values()]))
    batch, best = size // 20, {1: np.inf, 2: np.inf}
    for _ in range(min(repeats, 2)):
        for workers in best:
            with (
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
                ) as cluster,
                Client(cluster) as client,
            ):
                client.run(run_in_worker, name, quick, batch)
                for _ in range(2):
                    began = time.perf_counter()
                    one.run(client=client, batch=batch)
                    best[workers] = min(best[workers], time.perf_counter() - began)
    return [
        Scaling(workers, size, took, size / took, best[1] / took) for workers, took in best.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print both tables; the exit status is 1 where a solve fails or its bound does not certify."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweeps", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short, to see that everything works"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON, too")
    options = parser.parse_args(arguments)
    repeats = 1 if options.quick else REPEATS
    print(machine.description() + "\n")
    rows = [compared(name, options.quick, repeats) for name in NAMES]
    head = [
        "sweep",
        "points",
        "first run",
        "best run",
        "points / s",
        "loop, points / s",
        "ratio",
        "largest gap",
        "not certified",
        "not converged",
        "differs from the loop by",
        "fresh process",
        "load before",
    ]
    cells = [
        [
            row.about,
            f"{row.points:,}",
            seconds(row.first),
            seconds(row.best),
            f"{row.per_second:,.4g}",
            f"{row.loop_per_second:,.4g}",
            f"{row.per_second / row.loop_per_second:.3g}",
            "no bound" if np.isnan(row.worst_gap) else f"{row.worst_gap:.1e}",
            "no bound" if np.isnan(row.worst_gap) else str(row.uncertified),
            str(row.unconverged),
            f"{row.difference:.1e}",
            seconds(row.fresh),
            f"{row.load:.1f}",
        ]
        for row in rows
    ]
    print(markdown(head, cells) + "\n", flush=True)
    scaling = scaled("classes", options.quick, repeats)
    cells = [
        [
            str(row.workers),
            f"{row.points:,}",
            seconds(row.seconds),
            f"{row.per_second:,.4g}",
            f"{row.speedup:.2f}",
        ]
        for row in scaling
    ]
    print(markdown(["workers", "points", "best run", "points / s", "over one worker"], cells))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump([row._asdict() for row in (*rows, *scaling)], stream, indent=1)
    bad = any(row.unconverged or (row.uncertified and not np.isnan(row.worst_gap)) for row in rows)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
