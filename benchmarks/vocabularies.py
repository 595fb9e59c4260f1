"""Neural collapse over large vocabularies: time and peak memory of one pass and of two.

Whole arrays are measured too. Memory is bounded per class.

    python -m benchmarks.vocabularies [--classes K ...] [--dim D] [--per-class N]

Features are collapsed, a unit vector for each class and a little noise, in batches of 4096 that are
made on the way; the classifier is the class means. A tenth of the classes has no samples and is
left out. Every row is a process of its own; `arrays` is what NumPy allocated at most (tracemalloc,
which leaves out interpreter and libraries), `peak` the largest resident size of the process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.table import markdown, seconds

__all__ = ["here", "main", "measured", "most_memory", "objections"]

BATCH = 4096
CLASSES = (8000, 21841, 50000)


def _batches(
    num_classes: int, dim: int, per_class: int
) -> tuple[np.ndarray, Callable[[], Iterator[Any]]]:
    """Return class means and a function that starts a pass; class 10 k has no samples."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(num_classes, dim))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    seen = np.flatnonzero(np.arange(num_classes) % 10 != 0)
    labels = np.random.default_rng(1).permutation(np.repeat(seen, per_class))

    def read() -> Iterator[Any]:
        noise = np.random.default_rng(2)
        for start in range(0, len(labels), BATCH):
            y = labels[start : start + BATCH]
            yield (means[y] + 0.01 * noise.normal(size=(len(y), dim))).astype(np.float32), y

    return means, read


def here(method: str, num_classes: int, dim: int, per_class: int) -> dict[str, Any]:
    """Measure in this process, twice; with tracemalloc, which is slow, only where asked for."""
    from ufm import metrics, networks

    means, read = _batches(num_classes, dim, per_class)
    tracing = method.endswith("traced")
    if tracing:
        tracemalloc.start()
    began, used = time.perf_counter(), time.process_time()
    if method.startswith("whole arrays"):
        batches = list(read())
        features, labels = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        result = metrics.neural_collapse(features, labels, means, absent="leave out")
    else:
        result = networks.measure(
            read, weights=means, passes=int(method[0]), absent="leave out"
        ).collapse
    took, used = time.perf_counter() - began, time.process_time() - used
    return {
        "seconds": took,
        "cpu": used,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 if sys.platform == "darwin" else 1024),
        "arrays": tracemalloc.get_traced_memory()[1] / 2**20 if tracing else np.nan,
        "cdnv": float(result.nc1.cdnv),
        "left_out": len(result.absent),
    }


def most_memory(num_classes: int, dim: int) -> float:
    """Return the MiB that arrays may take: of the order of K d + d^2, and of a few tiles."""
    return 64 + 8 * (20 * num_classes * dim + dim**2) / 2**20


def objections(num_classes: int, dim: int, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the measurements of one setting, a line each."""
    first, found = rows[0]["cdnv"], []
    for row in rows:
        if not np.isclose(row["cdnv"], first, rtol=1e-9, atol=0):
            found.append(f"CDNV {row['cdnv']!r} is not {first!r}")
        if row["left_out"] != -(-num_classes // 10):
            found.append(f"{row['left_out']} classes are left out")
        if not row["arrays"] <= most_memory(num_classes, dim):
            found.append(f"arrays take {row['arrays']:,.0f} MiB")
    return [f"K={num_classes}: {line}" for line in found]


def measured(*setting: Any) -> dict[str, Any]:
    """Return what `here` gives in a process of its own."""
    code = (
        "import json; from benchmarks.vocabularies import here; "
        f"print(json.dumps(here(*{setting!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Print a table.

    The exit status is 1 where methods disagree, take more memory than is promised, or do not leave
    the classes without samples out.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vocabularies", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, metavar="K")
    parser.add_argument("--dim", type=int, default=32, metavar="D")
    parser.add_argument("--per-class", type=int, default=2, metavar="N")
    options = parser.parse_args(arguments)
    print(machine.description() + "\n")
    cells, wrong = [], []
    for K in options.classes:
        found = []
        for method in ("1 pass", "2 passes", "whole arrays"):
            row = measured(method, K, options.dim, options.per_class)
            arrays = measured(f"{method}, traced", K, options.dim, options.per_class)["arrays"]
            sizes = [
                f"{row['peak']:,.0f} MiB",
                f"{arrays:,.0f} MiB",
                f"{8 * K**2 / 2**20:,.0f} MiB",
            ]
            cells.append(
                [
                    f"{K:,}",
                    method,
                    seconds(row["seconds"]),
                    seconds(row["cpu"]),
                    *sizes,
                    f"{row['cdnv']:.9g}",
                    str(row["left_out"]),
                ]
            )
            print(*cells[-1], file=sys.stderr, flush=True)
            found.append(row | {"arrays": arrays})
        wrong += objections(K, options.dim, found)
    print(f"d={options.dim}, {options.per_class} samples per class:\n")
    head = [
        "K",
        "method",
        "clock",
        "processor",
        "peak",
        "arrays",
        "one K x K matrix",
        "CDNV",
        "classes left out",
    ]
    print(markdown(head, cells))
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
