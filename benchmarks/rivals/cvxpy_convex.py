"""CVXPY on the convex form in the class-level logits Z: nuclear norm and exponential cones.

The problem is built and solved anew at each of a ladder of solver tolerances, short solves up to
three times; a target's time is that of the fastest run whose Z, evaluated in NumPy float64 with the
singular values of D^{1/2} Z, is within it. Two rows: the whole call, building the cone program
included, and what the solver says it took itself.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import cvxpy as cp
import numpy as np

from benchmarks.measurement import Measurement
from benchmarks.objective import convex
from benchmarks.problems import Setting

__all__ = ["measure", "objective_at", "program"]

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9, 1e-11)
NAMES = {"CLARABEL": "Clarabel", "SCS": "SCS"}
REPEATS = 3
SHORT = 1.0


def program(setting: Setting) -> tuple[cp.Problem, cp.Variable]:
    """Return the convex form and its variable Z, (K, K), row k the logits of class k.

    The nuclear norm is that of D^{1/2} Z over the largest entry of D^{1/2}, times that entry:
    without this scaling Clarabel gets stuck before the first digit on long tails.
    """
    counts = np.asarray(setting.counts, np.float64)
    shares = counts / setting.num_samples
    logits = cp.Variable((setting.num_classes, setting.num_classes))
    if setting.loss == "ce":
        data = shares @ (cp.log_sum_exp(logits, axis=1) - cp.diag(logits))
    else:
        error = cp.multiply(np.sqrt(shares)[:, None], logits - np.eye(setting.num_classes))
        data = 0.5 * cp.sum_squares(error)
    largest = np.sqrt(np.max(counts))
    scaled = cp.multiply(np.sqrt(counts)[:, None] / largest, logits)
    return cp.Problem(cp.Minimize(data + setting.tau * largest * cp.normNuc(scaled))), logits


def measure(
    setting: Setting, variant: str, optimum: float, limit: float
) -> Iterator[list[Measurement]]:
    """Solve at tighter and tighter tolerances, up to all targets or a run's time limit."""
    name = f"CVXPY + {NAMES[variant]}"
    total, solver = Measurement(name, optimum), Measurement(f"{name}, solver only", optimum)
    for tolerance in TOLERANCES:
        for _ in range(REPEATS):
            build, logits = program(setting)
            began = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an inaccurate solution is judged by its gap
                    build.solve(solver=variant, **_options(variant, tolerance, limit))
            except cp.SolverError as error:
                # The solver gives up at this accuracy: what it reached at looser ones stands.
                if not np.isfinite(total.gap):
                    total.trouble, total.note = solver.trouble, solver.note = (
                        "failed",
                        str(error).splitlines()[0],
                    )
                yield [total, solver]
                return
            elapsed = time.perf_counter() - began
            if logits.value is not None and np.all(np.isfinite(logits.value)):
                value = convex(setting, logits.value)
                total.report(elapsed, value)
                solver.report(_solver_seconds(build.solver_stats), value)
            if elapsed > SHORT:
                break
        total.note = solver.note = f"{build.status} at solver tolerance {tolerance:.0e}"
        total.timed_out = elapsed >= limit and not total.done
        solver.timed_out = total.timed_out
        yield [total, solver]
        if total.timed_out or total.done:
            return


def objective_at(
    setting: Setting, variant: str, weights: np.ndarray, features: np.ndarray
) -> float:
    """Return CVXPY's own value of the convex form at the logits of class-level parameters."""
    build, logits = program(setting)
    logits.value = features @ weights.T
    return float(build.objective.value)


def _options(variant: str, tolerance: float, limit: float) -> dict[str, Any]:
    if variant == "CLARABEL":
        return {
            "tol_gap_abs": tolerance,
            "tol_gap_rel": tolerance,
            "tol_feas": tolerance,
            "time_limit": limit,
        }
    return {
        "eps_abs": tolerance,
        "eps_rel": tolerance,
        "max_iters": 10**8,
        "time_limit_secs": limit,
    }


def _solver_seconds(stats: Any) -> float:
    return (stats.setup_time or 0.0) + (stats.solve_time or 0.0)
