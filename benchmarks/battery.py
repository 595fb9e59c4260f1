"""Random one-layer problems: how many are certified, and do they agree with a conic solver?

    python -m benchmarks.battery [--problems 1000] [--seed 0] [--json out.json]

K from 2 to 20, counts from 1 to 1000 (log-uniform), each penalty over eight decades, cross-entropy and squared error, no bias, a free and
a penalised one, signed and non-negative features, d = K (2 K for non-negative features). Half of the problems are drawn so that
tau is within four decades of where everything collapses, since most of what eight decades give is either that or hardly regularised.
"""

import argparse
import collections
import json
import sys
import time
from typing import Any, NamedTuple

import numpy as np

import ufm
from benchmarks import machine
from benchmarks.table import markdown

__all__ = ["Outcome", "conic_minimum", "drawn", "main"]

TARGET = 1e-9
CONIC_CLASSES = 4  # up to which the conic form of non-negative features is exact
CONIC_LIMIT = 100
CONIC_ACCURACY = 1e-6


class Outcome(NamedTuple):
    """One problem: its number, K, loss, bias, signed or not; status, certified relative gap, escapes, seconds; and the conic minimum."""

    index: int
    num_classes: int
    loss: str
    bias: str
    features: str
    status: str
    relative_gap: float
    holds: bool
    escapes: int
    seconds: float
    objective: float
    conic: float | None


def drawn(rng: np.random.Generator) -> ufm.Problem:
    """Return a random problem."""
    K, nonnegative = int(rng.integers(2, 21)), bool(rng.integers(2))
    counts = 10 ** rng.uniform(0, 3, K)
    weights, features = 10 ** rng.uniform(-8, 0, 2)
    if rng.integers(2):
        # sqrt(weights features) N / sqrt(max n) is one where the last class collapses.
        collapse = float(np.sqrt(counts.max()) / counts.sum())
        features = (collapse * 10 ** rng.uniform(-4, 0)) ** 2 / weights
    bias = ("none", "free", "penalised")[int(rng.integers(3))]
    return ufm.Problem(
        class_counts=counts,
        feature_dim=2 * K if nonnegative else K,
        loss=(ufm.CrossEntropy(), ufm.SquaredError())[int(rng.integers(2))],
        regularizer=ufm.WeightDecay(weights, features, bias=10 ** rng.uniform(-8, 0) if bias == "penalised" else 0.0),
        use_bias=bias != "none",
        nonnegative_features=nonnegative,
    )


def conic_minimum(problem: ufm.Problem) -> float | None:
    """Return the optimal value from Clarabel, or None where it does not solve the problem to its own satisfaction.

    The nuclear norm is the least half trace of a psd matrix [[X, M], [M^T, V]] with M = D^{1/2} Z; for non-negative features X is
    entrywise non-negative besides, which is exact for up to four classes.
    """
    import cvxpy as cp

    counts, K = np.asarray(problem.class_counts), problem.num_classes
    regularizer: Any = problem.regularizer
    shares, tau = counts / counts.sum(), float(np.sqrt(regularizer.weights * regularizer.features))
    scale = np.sqrt(counts.max())
    lift = cp.Variable((2 * K, 2 * K), PSD=True)
    logits = np.diag(scale * counts**-0.5) @ lift[:K, K:]
    penalty = scale * tau / 2 * cp.trace(lift)
    if problem.use_bias:
        bias = cp.Variable(K)
        logits = logits + np.ones((K, 1)) @ cp.reshape(bias, (1, K), order="C")
        penalty += float(regularizer.bias) / 2 * cp.sum_squares(bias)
    if isinstance(problem.loss, ufm.SquaredError):
        losses = cp.sum_squares(cp.multiply(np.sqrt(shares)[:, None], logits - np.eye(K))) / 2
    else:
        losses = shares @ (cp.log_sum_exp(logits, axis=1) - cp.diag(logits))
    constraints = [lift[:K, :K] >= 0] if problem.nonnegative_features else []
    program = cp.Problem(cp.Minimize(losses + penalty), constraints)
    try:
        program.solve(solver="CLARABEL")
    except cp.error.SolverError:
        return None
    return float(program.value) if program.status == "optimal" else None


def run(problems: int, seed: int) -> list[Outcome]:
    """Draw, solve and certify so many problems; compare the first small ones with the conic solver."""
    rng, outcomes, compared = np.random.default_rng(seed), [], 0
    for index in range(problems):
        problem = drawn(rng)
        began = time.perf_counter()
        solution = ufm.solve(problem, key=index)
        elapsed = time.perf_counter() - began
        certificate = solution.certificate
        assert certificate is not None
        conic = None
        small = problem.num_classes <= (CONIC_CLASSES if problem.nonnegative_features else 2 * CONIC_CLASSES)
        if small and compared < CONIC_LIMIT and certificate.lower_bound > 1e-3:
            conic = conic_minimum(problem)
            compared += 1
        outcomes.append(
            Outcome(
                index,
                problem.num_classes,
                "ce" if isinstance(problem.loss, ufm.CrossEntropy) else "mse",
                "none" if not problem.use_bias else "penalised" if float(problem.regularizer.bias) else "free",  # type: ignore[union-attr]
                "non-negative" if problem.nonnegative_features else "signed",
                str(solution.status),
                certificate.relative_gap,
                certificate.holds,
                solution.escapes,
                elapsed,
                solution.objective,
                conic,
            )
        )
        if (index + 1) % 50 == 0:
            print(f"{index + 1} of {problems}", file=sys.stderr, flush=True)
    return outcomes


def summary(outcomes: list[Outcome]) -> str:
    """Return the table and what remains."""
    groups: dict[tuple[str, str, str], list[Outcome]] = collections.defaultdict(list)
    for one in outcomes:
        groups[one.loss, one.bias, one.features].append(one)
    groups["all", "", ""] = outcomes
    rows = []
    for key, members in groups.items():
        gaps = np.array([one.relative_gap for one in members])
        rows.append(
            [
                *key,
                str(len(members)),
                str(int(np.sum(gaps <= TARGET))),
                f"{np.median(gaps):.0e}",
                f"{np.max(gaps):.0e}",
                str(sum(one.escapes > 0 for one in members)),
                f"{np.median([one.seconds for one in members]) * 1e3:.0f} ms",
            ]
        )
    header = ["loss", "bias", "features", "problems", f"gap <= {TARGET:g}", "median", "worst", "escaped", "median time"]
    lines = [markdown(header, rows)]
    wrong = [one for one in outcomes if one.holds != (one.relative_gap <= TARGET)]
    lines.append(f"\nwrong `holds`: {len(wrong)}")
    for one in outcomes:
        if not one.relative_gap <= TARGET:
            lines.append(f"not certified, and reported so ({one.status}): {one}")
    compared = [one for one in outcomes if one.conic is not None]
    if compared:
        apart = [abs(one.objective - one.conic) / abs(one.conic) for one in compared if one.conic is not None]
        below = [(one.objective - one.conic) / abs(one.conic) for one in compared if one.conic is not None]
        lines.append(
            f"CVXPY + Clarabel solved {len(compared)} of those it was given: largest relative difference {max(apart):.1e} "
            f"(ours above by at most {max(below):.1e}), {sum(gap <= CONIC_ACCURACY for gap in apart)} within {CONIC_ACCURACY:g}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.battery", description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write every outcome to this file")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    outcomes = run(options.problems, options.seed)
    print(
        f"{machine.description()}\n\n{summary(outcomes)}\n\n{time.perf_counter() - began:.0f} s, compilation included"
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump([one._asdict() for one in outcomes], file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
