"""What `benchmarks.baseline` times, by public names alone, so that other commits run it too.

Run as `python benchmarks/tasks.py` in a process whose `ufm` is the one to be measured: prints JSON,
for every task the seconds of its first call, of its fastest warm call, and the numbers it returned.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BEGAN = time.perf_counter()
import ufm  # noqa: E402

IMPORTED = time.perf_counter() - BEGAN
REPEATS_FOR = 0.5  # seconds
MOST_REPEATS = 30

Task = Callable[[], list[float]]


def _problem(counts: Any, dim: int, **fields: Any) -> ufm.Problem:
    fields = {
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=5e-3, features=1e-4),
        **fields,
    }
    return ufm.Problem(class_counts=counts, feature_dim=dim, **fields)


def _solved(problem: ufm.Problem, **options: Any) -> Task:
    def task() -> list[float]:
        solution = ufm.solve(problem, **options)
        bound = np.nan if solution.certificate is None else solution.certificate.lower_bound
        return [float(solution.objective), float(bound)]

    return task


def _swept(resolution: str, points: int) -> Task:
    base = _problem((100,) * 5 + (5,) * 5, 12)
    decays = np.geomspace(1e-4, 1e-2, points)

    def task() -> list[float]:
        dataset = ufm.sweep(
            base, over={"weight_decay": decays}, resolution=resolution, progress=False
        )
        objective = np.asarray(dataset["objective"])
        return [float(objective[0]), float(objective[-1]), float(np.sum(objective))]

    return task


def _measured() -> list[float]:
    random = np.random.default_rng(0)
    labels = np.arange(20_000) % 10
    features = np.eye(10, 64)[labels] + 0.1 * random.standard_normal((20_000, 64))
    found = ufm.metrics.neural_collapse(features, labels)
    return [float(found.nc1.pinv)]


def _predicted() -> list[float]:
    problem = _problem((20,) * 10, 10)
    return [float(ufm.predict(problem).objective)]


STEP = (500,) * 5 + (5,) * 5
TAIL = tuple(np.round(np.geomspace(1280, 5, 60)))
SMALL = ufm.WeightDecay(weights=1e-2, features=1e-3)
TASKS: dict[str, Task] = {
    "solve, K = 10, cross-entropy": _solved(_problem(STEP, 10), resolution="classes"),
    "solve, K = 10, bias, norm balls": _solved(
        _problem(STEP, 10, use_bias=True, regularizer=ufm.NormBall(weights=2.0, features=1.0)),
        resolution="classes",
    ),
    "solve, K = 6, h >= 0": _solved(
        _problem((20, 20, 20, 5, 5, 5), 6, nonnegative_features=True, regularizer=SMALL),
        resolution="classes",
    ),
    "solve, K = 60, long tail": _solved(_problem(TAIL, 60), resolution="classes"),
    "solve, two groups of 500": _solved(
        _problem((500,) * 500 + (5,) * 500, 1000), resolution="groups"
    ),
    "solve, two ReLU layers, K = 4": _solved(
        _problem((1,) * 4, 4, hidden_dims=(4,), activation="relu", regularizer=SMALL)
    ),
    "solve, two linear layers, squared error": _solved(
        _problem((30, 20, 10, 5), 5, hidden_dims=(5,), loss=ufm.SquaredError(), regularizer=SMALL)
    ),
    "sweep, 200 points at classes": _swept("classes", 200),
    "sweep, 5000 points at groups": _swept("groups", 5000),
    "metrics, 20,000 x 64": _measured,
    "predict, K = 10": _predicted,
}


def main(names: list[str]) -> None:
    results: dict[str, Any] = {"import": {"first": IMPORTED, "warm": IMPORTED, "values": []}}
    for name in names or TASKS:
        began = time.perf_counter()
        values = TASKS[name]()
        first = time.perf_counter() - began
        warm, spent = np.inf, 0.0
        for _ in range(MOST_REPEATS):
            began = time.perf_counter()
            TASKS[name]()
            elapsed = time.perf_counter() - began
            warm, spent = min(warm, elapsed), spent + elapsed
            if spent > REPEATS_FOR:
                break
        results[name] = {"first": first, "warm": warm, "values": values}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
