"""A thousand classes: time to a certified gap, and the loop beside its matrix products alone."""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks.problems import Setting, setting
from benchmarks.rivals.library import certified_gap, certified_solve
from benchmarks.runner import ROOT, environment
from benchmarks.table import markdown, seconds
from ufm._support import double_precision
from ufm.solving.methods.schedule import SHORT

__all__ = ["report", "report_in_fresh_process"]

TARGET = 1e-8
PRODUCTS = 3  # of K x d x K per gradient: the logits, and their residual times each factor
REPEATS = 7
LOOSEST = 1e-3  # where the search for the tolerance that certifies the target begins


def report(one: Setting) -> dict[str, Any]:
    """Return the numbers: the whole solve, its L-BFGS loop, and the products that both need.

    The loop's time per evaluation is the difference between a long and a short L-BFGS solve over
    the difference of their evaluations, which leaves the start and the certificate out of it.
    Products are timed before and after it.
    """
    problem = one.problem()
    tol, whole, solution = certified_solve(problem, TARGET, LOOSEST)
    method = ufm.LBFGS(memory=SHORT)
    ufm.solve(problem, method=method, max_steps=1)
    product = [_product_seconds(one.num_classes, one.dim)]
    short_seconds, short = _timed(problem, method=method, max_steps=10, tol=1e-4)
    long_seconds, long = _timed(problem, method=method, tol=1e-4)
    product = statistics.mean([*product, _product_seconds(one.num_classes, one.dim)])
    evaluation = (long_seconds - short_seconds) / (long.evaluations - short.evaluations)
    return {
        "problem": one.name,
        "tol": tol,
        "relative_gap": certified_gap(solution),
        "product_seconds": product,
        "gflops": 2e-9 * one.num_classes**2 * one.dim / product,
        "solve": {
            "seconds": whole,
            "evaluations": solution.evaluations,
            "limit": PRODUCTS * product * solution.evaluations,
        },
        "loop": {
            "seconds": evaluation * long.evaluations,
            "evaluations": long.evaluations,
            "limit": PRODUCTS * product * long.evaluations,
        },
    }


def to_markdown(numbers: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    rows = []
    for name, key in (
        (f"whole solve, certified gap {numbers['relative_gap']:.0e}", "solve"),
        ("L-BFGS loop alone, to a relative gradient of 1e-4", "loop"),
    ):
        part = numbers[key]
        rows.append(
            [
                name,
                seconds(part["seconds"]),
                str(part["evaluations"]),
                seconds(part["limit"]),
                f"{part['seconds'] / part['limit']:.3g}",
            ]
        )
    header = ["ufm, warm", "time", "evaluations", f"their {PRODUCTS} products each", "ratio"]
    one = setting(numbers["problem"])
    product = (
        f"one {one.num_classes} x {one.dim} x {one.num_classes} product in float64 takes "
        f"{seconds(numbers['product_seconds'])} ({numbers['gflops']:.3g} Gflop/s)"
    )
    return f"**{one.name}**: {one.about}; {product}\n\n{markdown(header, rows)}"


def report_in_fresh_process(name: str) -> dict[str, Any]:
    """Return `report` of a problem, made in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large", name]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(setting(name)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


def _timed(problem: ufm.Problem, **options: Any) -> tuple[float, ufm.Solution]:
    began = time.perf_counter()
    solution = ufm.solve(problem, **options)
    return time.perf_counter() - began, solution


def _product_seconds(num_classes: int, dim: int) -> float:
    """Return the time of one product, a third of the three that a gradient is made of."""
    rng = np.random.default_rng(0)

    @jax.jit
    def products(
        weights: jax.Array, features: jax.Array, residual: jax.Array
    ) -> tuple[jax.Array, ...]:
        return features @ weights.T, residual @ weights, residual.T @ features

    with double_precision():
        weights, features = (jnp.asarray(rng.standard_normal((num_classes, dim))) for _ in range(2))
        residual = jnp.asarray(rng.standard_normal((num_classes, num_classes)))
        jax.block_until_ready(products(weights, features, residual))
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            jax.block_until_ready(products(weights, features, residual))
            times.append(time.perf_counter() - began)
    return statistics.median(times) / PRODUCTS


if __name__ == "__main__":
    print(json.dumps(report(setting(sys.argv[1]))))
