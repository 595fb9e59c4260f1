"""Problems in every corner, solved at both resolutions, certified, and checked in fifty digits.

    python -m benchmarks.battery [--quick] [--seed 0] [--store FILE] [--fresh]
    python -m benchmarks.battery --only weighted-cdt.ball.free.signed.extreme:3

`benchmarks.corners` defines the problems. Class resolution solves all problems of one static
structure in one batch. Group resolution solves signed features in batches, and non-negative
features one by one (the first few of each kind). What a batch leaves uncertified goes to
`ufm.solve`, as in a sweep, and counts with what that returns.

Every returned point is evaluated in fifty digits (`benchmarks.exact`). Violations are
    objective: the stated objective is further from the exact one than the rounding that `exact`
        states;
    bound: a lower bound lies above the exact objective of any feasible point that is known for the
        problem, that of the other resolution and the closed form included, without any allowance;
    infeasible: features below zero where they must not be;
    status: converged, and not certified.

Finished jobs are kept in the store, so that an interrupted run goes on where it stopped. The exit
status is 1 where there is a violation. `--conic` compares random problems with a conic solver
instead.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ufm
from benchmarks import exact, machine
from benchmarks.corners import LOSSES, NUMBERS, SIZES, Kind, code_of, kinds, problem_of
from benchmarks.table import markdown
from ufm._support import Status
from ufm.problems import Parameters, Problem, grouped, one_count_per_class
from ufm.solving import solve_batch, solve_class_batch

__all__ = [
    "Outcome",
    "Violation",
    "commit",
    "conic_minimum",
    "drawn",
    "main",
    "outcomes_of",
    "summary",
    "violations",
]

TARGET = 1e-9
# Problems of each kind, with signed and with non-negative features, and how many of the latter
# group resolution solves.
SIGNED = {"ordinary": 18, "extreme": 8, "threshold": 16, "many": 8}
NONNEGATIVE = {"ordinary": 18, "extreme": 4, "threshold": 16}
ONE_BY_ONE = {"ordinary": 4, "extreme": 2, "threshold": 4}
QUICK_LOSSES = ("ce", "mse", "weighted-cdt")
QUICK_STRUCTURES = (("decay", "signed"), ("ball", "signed"), ("decay", "nonnegative"))
QUICK_SHARE = 3
QUICK_GROUPS = 2

CONIC_CLASSES = 4  # up to which the conic form of non-negative features is exact
CONIC_LIMIT = 100
CONIC_ACCURACY = 1e-6


class Outcome(NamedTuple):
    """What became of one problem at one resolution.

    Attributes:
        kind: name of its kind, and `index` its number.
        resolution: "classes" or "groups".
        route: "batch" or "solve", what gave the answer.
        status: in words, or the exception that was raised.
        objective: as stated, and `lower_bound` likewise; NaN where there is none.
        relative_gap: as stated.
        exact: the objective of the point in fifty digits, as text; empty where it is not finite.
        feasible: the same of the nearest point inside the norm balls.
        rounding: how far the stated objective may be off.
        infeasible: whether a constraint on signs is not met.
        has_bound: whether the model has a bound.
        seconds: of this solve; of a batch, its share.
    """

    kind: str
    index: int
    resolution: str
    route: str
    status: str
    objective: float
    lower_bound: float
    relative_gap: float
    exact: str
    feasible: str
    rounding: float
    infeasible: bool
    has_bound: bool
    seconds: float

    @property
    def certified(self) -> bool:
        """Whether the gap is closed to 1e-9."""
        return bool(np.isfinite(self.objective) and self.relative_gap <= TARGET)

    @property
    def name(self) -> str:
        """KIND:INDEX, which makes the problem again."""
        return f"{self.kind}:{self.index}"


class Violation(NamedTuple):
    """A statement that is not true.

    Attributes:
        name: of the problem, and `resolution` of the solve.
        what: the kind of violation.
        excess: by how much, relative to the exact value.
        text: the numbers.
    """

    name: str
    resolution: str
    what: str
    excess: float
    text: str


class Job(NamedTuple):
    """Problems that share a compiled program. `members` are pairs of a kind's name and an index."""

    name: str
    resolution: str
    together: bool
    members: tuple[tuple[str, int], ...]


# What is solved


def jobs_of(quick: bool) -> list[Job]:
    """Return all jobs, by what is static: of the problem, or of its form over groups."""
    members: dict[tuple[str, str, bool], list[tuple[str, int]]] = collections.defaultdict(list)
    for kind in kinds():
        if quick and not (
            kind.loss in QUICK_LOSSES and (kind.regularizer, kind.features) in QUICK_STRUCTURES
        ):
            continue
        share = QUICK_SHARE if quick else 1
        one_by_one = kind.features == "nonnegative"
        for index in range((NONNEGATIVE if one_by_one else SIGNED)[kind.numbers] // share):
            bias = "plain" if kind.bias == "none" else "bias"
            structure = f"{kind.regularizer}.{bias}.{kind.features}"
            if kind.numbers != "many":
                members[f"classes.{kind.loss}.{structure}", "classes", True].append(
                    (str(kind), index)
                )
            if "focal" in kind.loss or (one_by_one and index >= ONE_BY_ONE[kind.numbers] // share):
                continue
            if quick and len(SIZES[index % len(SIZES)]) != QUICK_GROUPS:
                continue
            form = "squared" if "mse" in kind.loss else "columns" if "cdt" in kind.loss else "plain"
            groups = len(SIZES[index % len(SIZES)])
            members[f"groups.{form}.{structure}.{groups}", "groups", not one_by_one].append(
                (str(kind), index)
            )
    return [Job(*key, tuple(value)) for key, value in members.items()]


def outcomes_of(job: Job, seed: int = 0) -> list[Outcome]:
    """Solve a job's problems, and check the points in fifty digits."""
    problems = [problem_of(Kind.named(kind), index, seed) for kind, index in job.members]
    found: list[Outcome | None] = [None] * len(problems)
    if job.together:
        solve_together = _classes_together if job.resolution == "classes" else _groups_together
        found = list(solve_together(job, problems))
    for place, (member, problem) in enumerate(zip(job.members, problems, strict=True)):
        first = found[place]
        if first is None or (not first.certified and first.has_bound):
            found[place] = _alone(job.resolution, member, problem)
    return [one for one in found if one is not None]


def _classes_together(job: Job, problems: list[Problem]) -> Iterator[Outcome]:
    began = time.perf_counter()
    plain = [one_count_per_class(problem) for problem in problems]
    batch = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *plain)
    restarts = 1 if plain[0].loss.convex else 4
    minima = solve_class_batch(batch, tol=TARGET, restarts=restarts, workers=1)
    seconds = (time.perf_counter() - began) / len(problems)
    for lane, (member, problem) in enumerate(zip(job.members, plain, strict=True)):
        parameters = jax.tree.map(lambda leaf, lane=lane: leaf[lane], minima.parameters)
        bound, gap = float(minima.lower_bound[lane]), float(minima.relative_gap[lane])
        status, objective = str(Status(int(minima.status[lane]))), float(minima.objective[lane])  # type: ignore[call-arg]
        checked = _checked(objective, lambda p=problem, x=parameters: exact.of_parameters(p, x))
        below = _below_zero(problem, parameters)
        stated = (status, objective, bound, gap)
        yield Outcome(
            *member, "classes", "batch", *stated, *checked, below, problem.loss.convex, seconds
        )


def _groups_together(job: Job, problems: list[Problem]) -> Iterator[Outcome]:
    began = time.perf_counter()
    data = [grouped(problem)[0] for problem in problems]
    batch = jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves], axis=-1), *data
    )
    minima = solve_batch(batch, workers=1)
    seconds = (time.perf_counter() - began) / len(problems)
    for lane, (member, problem) in enumerate(zip(job.members, problems, strict=True)):
        bias = None if minima.bias is None else minima.bias[..., lane]
        blocks = minima.logits.within[..., lane], minima.logits.between[..., lane], bias
        bound, gap = float(minima.lower_bound[lane]), float(minima.relative_gap[lane])
        status, objective = str(Status(int(minima.status[lane]))), float(minima.objective[lane])  # type: ignore[call-arg]
        checked = _checked(objective, lambda p=problem, x=blocks: exact.of_blocks(p, *x))
        yield Outcome(
            *member,
            "groups",
            "batch",
            status,
            objective,
            bound,
            gap,
            *checked,
            False,
            True,
            seconds,
        )


def _alone(resolution: str, member: tuple[str, int], problem: Problem) -> Outcome:
    began, nothing = time.perf_counter(), (np.nan, np.nan, np.nan)
    try:
        solution = ufm.solve(problem, resolution=resolution, key=member[1], tol=TARGET)  # type: ignore[arg-type]
    except Exception as error:  # whatever comes out of a solve is an outcome
        text, seconds = f"{type(error).__name__}: {str(error)[:120]}", time.perf_counter() - began
        return Outcome(
            *member, resolution, "solve", text, *nothing, "", "", np.nan, False, True, seconds
        )
    seconds, certificate = time.perf_counter() - began, solution.certificate
    bound, gap = (
        (np.nan, np.nan)
        if certificate is None
        else (certificate.lower_bound, certificate.relative_gap)
    )
    below = False
    if resolution == "groups" and not problem.nonnegative_features:
        logits = solution.blocks.logits
        checked = _checked(
            solution.objective,
            lambda: exact.of_blocks(problem, logits.within, logits.between, solution.group_bias),
        )
    else:
        parameters = solution.parameters
        checked = _checked(
            solution.objective,
            lambda: exact.of_parameters(one_count_per_class(problem), parameters),
        )
        below = _below_zero(problem, parameters)
    stated = (str(solution.status), solution.objective, bound, gap)
    return Outcome(
        *member, resolution, "solve", *stated, *checked, below, certificate is not None, seconds
    )


def _checked(objective: float, evaluate: Any) -> tuple[str, str, float]:
    """Return the exact objective, that of the nearest feasible point, and the rounding allowed.

    A point that is not finite has none of them.
    """
    if not np.isfinite(objective):
        return "", "", np.nan
    value = evaluate()
    if not exact.MP.isfinite(value.stated):
        return "", "", np.nan
    return exact.MP.nstr(value.stated, 45), exact.MP.nstr(value.feasible, 45), value.rounding


def _below_zero(problem: Problem, parameters: Parameters) -> bool:
    return problem.nonnegative_features and bool(np.any(np.asarray(parameters.features) < 0))


# What is true of it


def violations(outcomes: Iterable[Outcome], seed: int = 0) -> list[Violation]:
    """Return all statements that the exact values contradict."""
    found = []
    for name, several in _by_problem(outcomes).items():
        known = [
            exact.MP.mpf(one.feasible) for one in several if one.feasible and not one.infeasible
        ]
        kind, index = name.rsplit(":", 1)
        minimum = exact.closed_form(problem_of(Kind.named(kind), int(index), seed))
        if minimum is not None:
            known.append(minimum)
        lowest = min(known) if known else None
        for one in several:
            found += _false_statements(one, lowest)
    return sorted(found, key=lambda violation: -violation.excess)


def _by_problem(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    several: dict[str, list[Outcome]] = collections.defaultdict(list)
    for one in outcomes:
        several[one.name].append(one)
    return several


def _false_statements(one: Outcome, lowest: Any) -> Iterator[Violation]:
    MP = exact.MP
    if one.has_bound and not one.certified and one.status == str(Status.CONVERGED):
        yield Violation(
            one.name,
            one.resolution,
            "status",
            np.inf,
            f"converged, with a gap of {one.relative_gap:.2g}",
        )
    if one.infeasible:
        yield Violation(one.name, one.resolution, "infeasible", np.inf, "features below zero")
    if one.exact:
        value = MP.mpf(one.exact)
        error = abs(MP.mpf(one.objective) - value)
        if not error <= one.rounding:
            excess = float(error / abs(value)) if value else np.inf
            text = (
                f"stated {one.objective!r}, exact {one.exact[:24]}, "
                f"off by {float(error):.2g}, allowed {one.rounding:.2g}"
            )
            yield Violation(one.name, one.resolution, "objective", excess, text)
    if lowest is not None and np.isfinite(one.lower_bound) and MP.mpf(one.lower_bound) > lowest:
        excess = float((MP.mpf(one.lower_bound) - lowest) / abs(lowest)) if lowest else np.inf
        text = f"bound {one.lower_bound!r} above {MP.nstr(lowest, 20)}"
        yield Violation(one.name, one.resolution, "bound", excess, text)


def summary(outcomes: list[Outcome], seed: int = 0) -> str:
    """Return the table, the violations, and every outcome that is not certified."""
    false = violations(outcomes, seed)
    wrong = collections.Counter((one.name, one.resolution) for one in false)
    header = [
        "numbers",
        "what",
        "tries",
        "certified",
        "of those with a bound",
        "worst gap certified",
        "open",
        "violations",
    ]
    rows = []
    for numbers in (*NUMBERS, "all"):
        chosen = [one for one in outcomes if numbers in ("all", one.kind.rsplit(".", 1)[1])]
        rows += [
            _row(numbers, what, members, wrong)
            for what, members in _parts(chosen, numbers != "all")
            if members
        ]
    lines = [markdown(header, rows), ""]
    lines.append(
        f"{len(_by_problem(outcomes))} problems, {len(outcomes)} tries, {len(false)} violations"
    )
    lines += [f"violation ({one.what}) {one.name} at {one.resolution}: {one.text}" for one in false]
    left = [one for one in outcomes if one.has_bound and not one.certified]
    lines.append(
        f"\nnot certified to {TARGET:g}: {len(left)}, "
        "by kind with their indices, relative gap and status"
    )
    return "\n".join([*lines, *_listed(left)])


def _listed(left: list[Outcome]) -> Iterator[str]:
    """Yield a line for every kind, resolution and status: which problems, how far open, and why."""
    groups: dict[tuple[int, str, str, str], list[Outcome]] = collections.defaultdict(list)
    for one in left:
        groups[
            NUMBERS.index(one.kind.rsplit(".", 1)[1]), one.kind, one.resolution, one.status
        ].append(one)
    for (_, kind, resolution, status), members in sorted(groups.items()):
        gaps = sorted({f"{one.relative_gap:.1e}" for one in members}, key=float)
        indices = ",".join(str(one.index) for one in sorted(members, key=lambda one: one.index))
        gap = " to ".join(gaps[:1] + gaps[1:][-1:])
        yield f"{kind}:{indices} at {resolution}: gap {gap}; {status}"


def _parts(outcomes: list[Outcome], by_model: bool) -> Iterator[tuple[str, list[Outcome]]]:
    """Yield the outcomes by model, by loss, and all together."""
    if by_model:
        models = itertools.product(
            ("classes", "groups"), ("signed", "nonnegative"), ("decay", "ball")
        )
        for resolution, features, regularizer in models:
            part = [
                one
                for one in outcomes
                if one.resolution == resolution
                and one.kind.split(".")[1] == regularizer
                and one.kind.split(".")[3] == features
            ]
            yield f"{resolution}, {features}, {regularizer}", part
    else:
        for loss in LOSSES:
            yield loss, [one for one in outcomes if one.kind.split(".")[0] == loss]
    yield "all", outcomes


def _row(numbers: str, what: str, members: list[Outcome], wrong: Any) -> list[str]:
    bounded = [one for one in members if one.has_bound]
    certified = [one for one in bounded if one.certified]
    worst = max((one.relative_gap for one in certified), default=np.nan)
    share = f"{100 * len(certified) / len(bounded):.2f} %" if bounded else ""
    counts = (len(members), len(certified))
    bad = sum(wrong[one.name, one.resolution] for one in members)
    return [
        numbers,
        what,
        *map(str, counts),
        share,
        f"{worst:.1e}",
        str(len(bounded) - len(certified)),
        str(bad),
    ]


# Running it


def run(
    jobs: list[Job], seed: int, store: Path | None, header: dict[str, Any], workers: int
) -> list[Outcome]:
    """Run the jobs that the store does not have yet, largest first, in processes of their own."""
    finished = _read(store, header)
    outcomes = [one for several in finished.values() for one in several]
    left = sorted(
        (job for job in jobs if job.name not in finished),
        key=lambda job: (job.together, -len(job.members)),
    )
    began, total = time.perf_counter(), sum(len(job.members) for job in jobs)
    if store is not None and not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(header) + "\n")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(outcomes_of, job, seed): job for job in left}
        try:
            for future in as_completed(futures):
                done, before = future.result(), len(outcomes)
                outcomes += done
                _append(store, futures[future].name, done)
                _progress(len(outcomes), before, total, time.perf_counter() - began)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _progress(done: int, before: int, total: int, seconds: float) -> None:
    """Show progress: a terminal has one line rewritten, others get a line for every twentieth."""
    terminal = sys.stderr.isatty()
    if terminal or done * 20 // total > before * 20 // total:
        end = "\r" if terminal and done < total else "\n"
        print(f"{done} of {total} tries, {seconds:.0f} s", end=end, file=sys.stderr, flush=True)


def _append(store: Path | None, job: str, outcomes: list[Outcome]) -> None:
    if store is not None:
        with store.open("a") as file:
            file.write(json.dumps({"job": job, "outcomes": outcomes}) + "\n")


def _read(store: Path | None, header: dict[str, Any]) -> dict[str, list[Outcome]]:
    """Return the finished jobs of a store; a last line that was cut off is left out.

    Raises:
        ValueError: if the store is of another seed, form or commit.
    """
    if store is None or not store.exists():
        return {}
    lines = store.read_text().splitlines()
    found = json.loads(lines[0])
    if found != header:
        raise ValueError(
            f"`--store` {store} holds {found}, not {header}; "
            "add --fresh to begin anew, or name another file."
        )
    finished = {}
    for line in lines[1:]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        finished[record["job"]] = [Outcome(*fields) for fields in record["outcomes"]]
    return finished


def commit() -> str:
    """Return the commit of the package, and whether there are changes since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "../ufm", ".")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")


def show(name: str, seed: int) -> int:
    """Make one problem again, solve it at both resolutions, and print everything about it."""
    kind, _, index = name.rpartition(":")
    problem, member = problem_of(Kind.named(kind), int(index), seed), (kind, int(index))
    print(f"{name}, seed {seed}:\n{code_of(problem)}")
    outcomes = []
    for resolution in ("classes", "groups"):
        together = resolution == "classes" or not problem.nonnegative_features
        if (resolution == "groups" and "focal" in kind) or (
            resolution == "classes" and kind.endswith("many")
        ):
            continue
        outcomes += outcomes_of(Job(name, resolution, together, (member,)), seed)
    for one in outcomes:
        print(json.dumps(one._asdict(), indent=1))
    false = violations(outcomes, seed)
    print(
        "\n".join(f"violation ({one.what}) at {one.resolution}: {one.text}" for one in false)
        or "no violation"
    )
    return int(bool(false))


# A conic solver, which knows nothing of dual certificates


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
        regularizer=ufm.WeightDecay(
            weights, features, bias=10 ** rng.uniform(-8, 0) if bias == "penalised" else 0.0
        ),
        use_bias=bias != "none",
        nonnegative_features=nonnegative,
    )


def conic_minimum(problem: ufm.Problem) -> float | None:
    """Return the optimal value from Clarabel, or None where Clarabel does not call it solved.

    The nuclear norm is the least half trace of a psd matrix [[X, M], [M^T, V]] with M = D^{1/2} Z;
    for non-negative features X is entrywise non-negative besides, which is exact for up to four
    classes.
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


def compare_with_conic(seed: int) -> int:
    """Print how far random small problems are from the conic solver's optimal values."""
    rng, apart = np.random.default_rng(seed), []
    while len(apart) < CONIC_LIMIT:
        problem = drawn(rng)
        small = problem.num_classes <= (
            CONIC_CLASSES if problem.nonnegative_features else 2 * CONIC_CLASSES
        )
        value = conic_minimum(problem) if small else None
        if value is not None and value > 1e-3:
            apart.append((ufm.solve(problem).objective - value) / value)
    above, within = max(apart), sum(abs(one) <= CONIC_ACCURACY for one in apart)
    print(
        f"{len(apart)} problems: ours above by at most {above:.1e}, "
        f"{within} within {CONIC_ACCURACY:g}"
    )
    return int(above > CONIC_ACCURACY)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.battery", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="some 300 problems of a few structures"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--store", type=Path, help="where finished jobs are kept; in build/ if not given"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what the store holds")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; one per core if not given",
    )
    parser.add_argument(
        "--only", metavar="KIND:INDEX", help="make one problem again, and print everything about it"
    )
    parser.add_argument(
        "--conic", action="store_true", help="compare with CVXPY and Clarabel instead"
    )
    options = parser.parse_args(arguments)
    if options.only:
        return show(options.only, options.seed)
    if options.conic:
        return compare_with_conic(options.seed)
    header = {"seed": options.seed, "quick": options.quick, "commit": commit()}
    store = (
        options.store
        or Path("build") / f"battery-{options.seed}{'-quick' if options.quick else ''}.jsonl"
    )
    if options.fresh:
        store.unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        outcomes = run(jobs_of(options.quick), options.seed, store, header, options.workers)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {store}", file=sys.stderr)
        return 130
    print(
        f"{machine.description()}\nseed {options.seed}, commit {header['commit']}\n\n"
        f"{summary(outcomes, options.seed)}"
    )
    print(f"\n{time.perf_counter() - began:.0f} s, compilation included")
    return int(bool(violations(outcomes, options.seed)))


if __name__ == "__main__":
    sys.exit(main())
