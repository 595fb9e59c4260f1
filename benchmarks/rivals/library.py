"""`ufm.solve` itself: a whole call with its certificate, warm, and first in a fresh process."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import ufm
from benchmarks.measurement import TARGETS, Measurement
from benchmarks.problems import Setting
from ufm._support import double_precision
from ufm.problems import class_samples

__all__ = ["Warm", "certified_gap", "certified_solve", "measure", "objective_at"]

DECADES = tuple(10.0**-power for power in range(2, 12))
KEYS = 5
SECONDS = 5.0
SHORT = 0.2  # seconds; runs below it are repeated


class Warm(NamedTuple):
    """The loosest decade of `tol` that certifies a target, and what solves at it take, warm.

    seconds: median over the initial points, of the fastest of each where runs are short. solution:
    the one with the widest certificate.
    """

    tol: float
    seconds: float
    solution: ufm.Solution


def certified_gap(solution: ufm.Solution) -> float:
    """Return the relative gap that the solution's own certificate proves; infinite without one."""
    return float("inf") if solution.certificate is None else solution.certificate.relative_gap


def certified_solve(problem: ufm.Problem, target: float, loosest: float = DECADES[0]) -> Warm:
    """Return the warm time of a solve that certifies `target` from each of several initial points.

    Raises:
        RuntimeError: if no tolerance does.
    """
    for tol in DECADES[DECADES.index(loosest) :]:
        widest = ufm.solve(problem, tol=tol)
        seconds: list[float] = []
        while certified_gap(widest) <= target:
            took, solution = _timed(problem, tol, key=len(seconds))
            seconds.append(took)
            widest = max(widest, solution, key=certified_gap)
            if len(seconds) == KEYS or sum(seconds) > SECONDS:
                break
        if certified_gap(widest) <= target:
            return Warm(tol, statistics.median(seconds), widest)
    raise RuntimeError(f"no tolerance certifies a gap of {target:g}: {widest.certificate}")


def measure(
    setting: Setting, variant: str, optimum: float, limit: float
) -> Iterator[list[Measurement]]:
    """Time whole calls of `ufm.solve` whose own certificate proves the target.

    That is more than the rivals are asked for, whose gaps are computed for them. Warm is the median
    over a few initial points, all of which must arrive; the first call is made in a process of its
    own.
    """
    problem = setting.problem()
    warm, first = Measurement("ufm, warm", optimum), Measurement("ufm, first call", optimum)
    tolerances: list[str] = []
    loosest = DECADES[0]
    for target in TARGETS:
        found = certified_solve(problem, target, loosest)
        loosest = found.tol
        warm.reach(found.seconds, certified_gap(found.solution))
        tolerances.append(f"{found.tol:.0e}")
        warm.note = f"certified; tol {', '.join(tolerances)}"
        yield [warm, first]
        call = _fresh_process(setting, found.tol)
        first.reach(call["solve"], call["gap"])
        first.note = f"import {call['import']:.2g} s besides"
        yield [warm, first]


def objective_at(
    setting: Setting, variant: str, weights: np.ndarray, features: np.ndarray
) -> float:
    """Return the library's objective at class-level parameters."""
    problem = setting.problem()
    with double_precision():
        columns = class_samples(problem, np.dtype(np.float64))
        return float(problem.objective(ufm.Parameters((weights,), features, None), columns))


def _timed(problem: ufm.Problem, tol: float, key: int) -> tuple[float, ufm.Solution]:
    """Return the solution from one initial point and its seconds.

    Short runs are repeated, and the fastest counts, as for the rivals.
    """
    fastest, spent = float("inf"), 0.0
    while spent < SHORT:
        began = time.perf_counter()
        solution = ufm.solve(problem, tol=tol, key=key)
        took = time.perf_counter() - began
        fastest, spent = min(fastest, took), spent + took
    return fastest, solution


def _fresh_process(setting: Setting, tol: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_call", setting.name, repr(tol)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
