"""Solves of targets with symmetries: time and certified gap over orbits of rows.

    python -m benchmarks.symmetry [--labels K ...] [--repeats 5]

Multi-label targets with all single labels and all pairs, 10 samples for each, K (K + 1) / 2 rows;
a hierarchy of K soft labels in blocks of five; circulant targets of K rows. Cross-entropy, N tau =
K / 5. Every problem is solved once to compile, and the least and the largest time of the next
solves count. They include the search for symmetries and its proof. The tags are also solved from
one row of each orbit, without the list of all.
"""

import argparse
import sys
import time
from typing import NamedTuple

import numpy as np

import ufm
from benchmarks import machine
from benchmarks.table import markdown, seconds
from ufm.problems import LabelClass
from ufm.solving import solve_representatives

__all__ = ["Timing", "main", "measured", "measured_unlisted", "problem_of"]

LABELS = (10, 50, 100)
UNLISTED = 1000


class Timing(NamedTuple):
    """A problem: its name, rows, orbits, the first, least and largest time, steps and the gap."""

    name: str
    rows: int
    orbits: int
    first: float
    least: float
    largest: float
    steps: int
    gap: float


def problem_of(name: str, num_labels: int) -> ufm.Problem:
    """Return a problem of a kind, "tags", "hierarchy" or "rotations"."""
    K = num_labels
    if name == "tags":
        targets = ufm.Targets.multi_label(K, {1: 10 * K, 2: 5 * K * (K - 1)})
    elif name == "hierarchy":
        targets = ufm.Targets.hierarchy(K // 5, 5, 0.6, 0.05)
    else:
        shares = 2.0 ** -np.minimum(np.arange(K), 30)
        targets = ufm.Targets(np.stack([np.roll(shares, shift) for shift in range(K)]))
    price = K / 5 / float(targets.num_samples)
    return ufm.Problem(
        targets=targets,
        feature_dim=K,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(price, price),
    )


def measured(name: str, num_labels: int, repeats: int) -> Timing:
    """Solve a problem several times."""
    problem, times = problem_of(name, num_labels), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        solution = ufm.solve(problem, resolution="groups")
        times.append(time.perf_counter() - began)
    certificate = solution.check().certificate
    assert certificate is not None
    orbits = solution.point.orbits.num_orbits  # type: ignore[union-attr]
    warm = min(times[1:]), max(times[1:])
    size = problem.num_rows, orbits
    return Timing(
        f"{name}, K = {num_labels}",
        *size,
        times[0],
        *warm,
        solution.steps,
        certificate.relative_gap,
    )


def measured_unlisted(num_labels: int, repeats: int) -> Timing:
    """Solve the problem of tags several times from one single label and one pair."""
    K, rows, times = num_labels, np.zeros((2, num_labels)), []
    rows[0, 0] = rows[1, 0] = rows[1, 1] = 1
    counts = np.array([10.0 * K, 5.0 * K * (K - 1)])
    price = K / 5 / float(np.sum(counts))
    problem = ufm.Problem(
        targets=ufm.Targets(rows, counts),
        feature_dim=K,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(price, price),
    )
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = solve_representatives(problem, [LabelClass(np.arange(K))])
        times.append(time.perf_counter() - began)
    warm = min(times[1:]), max(times[1:])
    number = int(np.sum(found.sizes))
    gap = found.certificate.relative_gap
    return Timing(f"unlisted tags, K = {K}", number, 2, times[0], *warm, found.steps, gap)


def main(arguments: list[str] | None = None) -> int:
    """Print a table of timings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    print(f"{machine.description()}\n")
    found = [
        measured(name, K, options.repeats)
        for name in ("tags", "hierarchy", "rotations")
        for K in options.labels
    ]
    found += [measured_unlisted(K, options.repeats) for K in (*options.labels, UNLISTED)]
    rows = [
        [
            one.name,
            f"{one.rows}",
            f"{one.orbits}",
            seconds(one.first),
            f"{seconds(one.least)} to {seconds(one.largest)}",
            f"{one.steps}",
            f"{one.gap:.1e}",
        ]
        for one in found
    ]
    print(markdown(["targets", "rows", "orbits", "first", "warm", "steps", "gap"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
