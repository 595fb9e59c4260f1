"""Losses made by `from_function` against the library's own, which state their conjugates.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m benchmarks.own_losses [--classes 4,10,30]

The same function, written as a user writes it, is solved at class resolution beside the library's.
Times are of a whole `ufm.solve` after a first one that compiles: the fastest of several, the two
taking turns. Below the ratio of the times are the difference of the objectives and both relative
gaps, which both have to be at most 1e-9.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks import machine
from benchmarks.table import markdown

RUNS = 7


def cross_entropy(z: Any, y: Any) -> Any:
    return jax.nn.logsumexp(z) - jnp.sum(y * z)


def squared_error(z: Any, y: Any) -> Any:
    return 0.5 * jnp.sum((z - y) ** 2)


def binary(z: Any, y: Any) -> Any:
    return jnp.sum(jax.nn.softplus(z) - y * z)


def squared_hinge(z: Any, y: Any) -> Any:
    return 0.5 * jnp.sum((1 - y) * jnp.maximum(0, 1 + z - jnp.sum(y * z)) ** 2)


PAIRS: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "cross-entropy": (cross_entropy, ufm.CrossEntropy()),
    "squared error": (squared_error, ufm.SquaredError()),
    "binary cross-entropy": (binary, ufm.losses.BinaryCrossEntropy()),
    "squared hinge": (squared_hinge, ufm.losses.SquaredHinge()),
}


def problem(loss: Any, num_classes: int, use_bias: bool) -> ufm.Problem:
    """Return a problem of so many classes of 100 samples down to 10."""
    return ufm.Problem(
        class_counts=np.linspace(100, 10, num_classes),
        feature_dim=num_classes,
        loss=loss,
        regularizer=ufm.WeightDecay(weights=5e-3, features=1e-3 / num_classes),
        use_bias=use_bias,
    )


def solved(given: ufm.Problem) -> tuple[float, ufm.Solution]:
    """Return the seconds of a solve, and its solution."""
    begun = time.perf_counter()
    solution = ufm.solve(given, resolution="classes")
    return time.perf_counter() - begun, solution


def row(name: str, num_classes: int, use_bias: bool) -> list[str]:
    """Return a row of the table."""
    function, library = PAIRS[name]
    losses = (ufm.losses.from_function(function), library)
    pair = [problem(loss, num_classes, use_bias) for loss in losses]
    for given in pair:
        solved(given)
    runs = [[solved(given) for given in pair] for _ in range(RUNS)]
    own, known = runs[-1][0][1], runs[-1][1][1]
    times = [min(run[side][0] for run in runs) for side in (0, 1)]
    assert own.certificate is not None
    assert known.certificate is not None
    return [
        name,
        str(num_classes),
        "free" if use_bias else "none",
        f"{1e3 * times[0]:.1f} ms",
        f"{times[0] / times[1]:.2f}",
        f"{abs(own.objective - known.objective) / known.objective:.1e}",
        f"{own.certificate.relative_gap:.1e}",
        f"{known.certificate.relative_gap:.1e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", default="4,10,30")
    counts = [int(part) for part in parser.parse_args().classes.split(",")]
    head = ["loss", "K", "bias", "own", "times the library's", "objective", "gap", "library's gap"]
    rows = [row(name, K, bias) for K in counts for name in PAIRS for bias in (False, True)]
    print(markdown(head, rows))
    print(machine.description())


if __name__ == "__main__":
    main()
