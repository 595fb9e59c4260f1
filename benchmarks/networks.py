"""Neural collapse of a million samples from mini-batches: time, peak memory and digits.

Beside it: the matrix products alone, and float32 code as published.

    python -m benchmarks.networks [--quick] [--only N] [--json out.json]

The features are float32, collapsed: a simplex ETF far from the origin and a little noise. They lie
in a file, from which batches are read. Every row is a process of its own; its times are those of
the measurement, reading included, on the clock and of the processor, and its memory is the peak of
the whole process (interpreter, JAX and libraries too, which is the first row). Below the
processor's time is that of the matrix products alone: their number of operations (symmetric ones
counted half) over the rate of a product in float64, measured in the same process right after. The
reference for the errors is plain NumPy in float64, in two passes, with the rank of the
between-class covariance given.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.table import markdown, seconds

__all__ = ["METHODS", "Row", "Setting", "main", "measured", "write_features"]


class Setting(NamedTuple):
    """What is measured: N samples of K classes with d features, in batches of `batch`."""

    samples: int
    dim: int
    classes: int
    batch: int

    @property
    def about(self) -> str:
        """Return a title."""
        return f"N={self.samples:,}, d={self.dim}, K={self.classes}, batches of {self.batch}"


class Row(NamedTuple):
    """One method in one setting.

    seconds, cpu: of the measurement, on the clock and of the processor. peak: memory of the
    process, MiB. flops: in matrix products. rate: of a product, per second of the processor. nc1,
    ratio: what was found, tr(S_W S_B^+)/K and tr S_W / tr S_B; NaN where the method has none. load:
    average of the machine.
    """

    setting: Setting
    method: str
    seconds: float
    cpu: float
    peak: float
    flops: float
    rate: float
    nc1: float
    ratio: float
    load: float


SETTINGS = (
    Setting(1_000_000, 512, 100, 4096),
    Setting(1_000_000, 512, 100, 256),
    Setting(50_000, 2048, 1000, 4096),
)
QUICK = (Setting(20_000, 64, 10, 1000),)
NOISE, OFFSET, SCALE = 0.02, 20.0, 3.0


def class_means(setting: Setting) -> np.ndarray:
    """Return a simplex ETF far from the origin, (K, d); in random directions."""
    K, d = setting.classes, setting.dim
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(d, K)))[0].T
    frame = (directions - directions.mean(axis=0)) * np.sqrt(K / (K - 1))
    return OFFSET + SCALE * frame


def labels_of(setting: Setting) -> np.ndarray:
    """Return labels in random order; shares fall with k, the last a tenth of the first."""
    sizes = np.linspace(1.0, 0.1, setting.classes)
    labels = np.repeat(
        np.arange(setting.classes), np.maximum(sizes / sizes.sum() * setting.samples, 2).astype(int)
    )
    labels = np.concatenate([labels, np.zeros(setting.samples - len(labels), int)])
    return np.random.default_rng(0).permutation(labels)


def write_features(setting: Setting, path: Path) -> None:
    """Write the features, float32, in rows."""
    means, labels = class_means(setting).astype(np.float32), labels_of(setting)
    rng = np.random.default_rng(2)
    with path.open("wb") as file:
        for start in range(0, setting.samples, 4096):
            rows = means[labels[start : start + 4096]]
            rows += np.float32(NOISE) * rng.standard_normal(rows.shape, dtype=np.float32)
            rows.tofile(file)


def batches_of(
    setting: Setting, path: Path
) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Return a function that starts reading the batches."""
    labels = labels_of(setting)

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with path.open("rb") as file:
            for start in range(0, setting.samples, setting.batch):
                y = labels[start : start + setting.batch]
                yield (
                    np.fromfile(file, np.float32, len(y) * setting.dim).reshape(
                        len(y), setting.dim
                    ),
                    y,
                )

    return read


def reading(setting: Setting, path: Path) -> tuple[float, float, float]:
    """Only read."""
    for _ in batches_of(setting, path)():
        pass
    return 0.0, np.nan, np.nan


def one_pass(setting: Setting, path: Path) -> tuple[float, float, float]:
    """`networks.measure` with one pass, with the classifier."""
    from ufm import networks

    weights = class_means(setting)
    result = networks.measure(batches_of(setting, path), weights=weights, passes=1).collapse
    return setting.samples * setting.dim**2, float(result.nc1.pinv), float(result.nc1.trace_ratio)


def two_passes(setting: Setting, path: Path) -> tuple[float, float, float]:
    """`networks.measure` with two, everything that there is, with the classifier."""
    from ufm import networks

    result = networks.measure(batches_of(setting, path), weights=class_means(setting)).collapse
    flops = 4 * 2.0 * setting.samples * setting.dim * setting.classes
    return flops, float(result.nc1.pinv), float(result.nc1.trace_ratio)


def float32(setting: Setting, path: Path) -> tuple[float, float, float]:
    """Two passes as in published code: float32 throughout, a pseudo-inverse of unknown rank."""
    K, d = setting.classes, setting.dim
    sums, counts = np.zeros((K, d), np.float32), np.zeros(K, np.float32)
    read = batches_of(setting, path)
    for X, y in read():
        member = (np.arange(K)[:, None] == y).astype(np.float32)
        sums += member @ X
        counts += member.sum(axis=1)
    means = sums / counts[:, None]
    within = np.zeros((d, d), np.float32)
    for X, y in read():
        rest = X - means[y]
        within += rest.T @ rest
    within /= counts.sum()
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / K
    nc1 = np.trace(within @ np.linalg.pinv(between)) / K
    return (
        setting.samples * d**2 + 2.0 * setting.samples * d * K,
        float(nc1),
        float(np.trace(within) / np.trace(between)),
    )


def reference(setting: Setting, path: Path) -> tuple[float, float, float]:
    """The same formulas in float64, with rank K - 1."""
    K, d = setting.classes, setting.dim
    sums, read = np.zeros((K, d)), batches_of(setting, path)
    counts = np.bincount(labels_of(setting), minlength=K).astype(float)
    for X, y in read():
        sums += (np.arange(K)[:, None] == y).astype(float) @ X
    means = sums / counts[:, None]
    within = np.zeros((d, d))
    for X, y in read():
        rest = X - means[y]
        within += rest.T @ rest
    within /= counts.sum()
    centred = means - means.mean(axis=0)
    _, s, Vt = np.linalg.svd(centred, full_matrices=False)
    coordinates = Vt[: K - 1] / s[: K - 1, None]
    nc1 = np.sum((coordinates @ within) * coordinates)
    ratio = np.trace(within) / (np.sum(centred**2) / K)
    return setting.samples * d**2 + 2.0 * setting.samples * d * K, float(nc1), float(ratio)


METHODS: dict[str, Callable[[Setting, Path], tuple[float, float, float]]] = {
    "reading": reading,
    "one pass": one_pass,
    "two passes": two_passes,
    "float32": float32,
    "reference": reference,
}


def product_rate(setting: Setting) -> float:
    """Return the rate of a float64 matrix product of a batch's size, in operations per second.

    Processor time counts, and the best of several.
    """
    A = np.ones((min(setting.batch, 4096), setting.dim))
    B = np.ones((setting.dim, max(setting.dim, setting.classes)))
    best = np.inf
    for _ in range(8):
        began = time.process_time()
        A @ B
        best = min(best, time.process_time() - began)
    return 2.0 * A.size * B.shape[1] / best


def here(setting: Setting, method: str, path: Path) -> Row:
    """Measure in this very process."""
    import os

    import ufm  # noqa: F401  what every process has in memory, whatever it runs

    began, used = time.perf_counter(), time.process_time()
    flops, nc1, ratio = METHODS[method](setting, path)
    took, used = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 if sys.platform == "darwin" else 1024
    )
    return Row(
        setting,
        method,
        took,
        used,
        peak,
        flops,
        product_rate(setting),
        nc1,
        ratio,
        os.getloadavg()[0],
    )


def measured(setting: Setting, method: str, path: Path) -> Row:
    """Measure in a process of its own."""
    code = (
        "import json, pathlib; from benchmarks.networks import Setting, here; "
        f"print(json.dumps(here(Setting{tuple(setting)!r}, {method!r}, "
        f"pathlib.Path({str(path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    row = Row(*json.loads(done.stdout.splitlines()[-1]))
    return row._replace(setting=setting)


def table(rows: list[Row]) -> str:
    """Return one setting's rows as a table."""
    truth = next(row for row in rows if row.method == "reference")

    def error(value: float, exact: float) -> str:
        return "" if np.isnan(value) else f"{abs(value - exact) / abs(exact):.1e}"

    head = [
        "method",
        "clock",
        "processor",
        "products alone",
        "operations in them",
        "peak memory",
        "NC1, tr(S_W S_B^+)/K",
        "relative error",
        "error of tr S_W / tr S_B",
        "load",
    ]
    cells = [
        [
            row.method,
            seconds(row.seconds),
            seconds(row.cpu),
            f"{seconds(row.flops / row.rate)} at {row.rate / 1e9:.3g} GFLOP/s" if row.flops else "",
            f"{row.flops:.2g}",
            f"{row.peak:,.0f} MiB",
            "" if np.isnan(row.nc1) else f"{row.nc1:.6g}",
            error(row.nc1, truth.nc1),
            error(row.ratio, truth.ratio),
            f"{row.load:.1f}",
        ]
        for row in rows
    ]
    return markdown(head, cells)


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each setting; the exit status is 1 where NC1 lacks three right digits."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short, to see that everything works"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the N-th setting, from 0")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON, too")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else SETTINGS
    print(machine.description() + "\n")
    everything: list[Any] = []
    bad = False
    for setting in settings if options.only is None else settings[options.only : options.only + 1]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.f32"
            write_features(setting, path)
            rows = [measured(setting, method, path) for method in METHODS]
        print(f"{setting.about}:\n\n{table(rows)}\n", flush=True)
        everything += rows
        truth = rows[-1].nc1
        bad |= any(
            abs(row.nc1 - truth) > 5e-4 * truth
            for row in rows
            if row.method in ("one pass", "two passes")
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump([row._asdict() for row in everything], stream, indent=1)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
