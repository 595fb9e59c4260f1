"""Random problems of any targets: how many are certified, and is every statement true.

`python -m benchmarks.targets` draws problems of every loss, of copies made by `from_function`, of
three kinds of bias, signed and non-negative features, and both regularizers. It solves them one by
one, and evaluates every point in fifty digits. A certified lower bound above the objective of any
point of the same problem is a violation. Problems of one job share shapes and programs.
"""

import argparse
import collections
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks.exact import MP
from benchmarks.table import markdown
from ufm.problems import Problem, Targets

__all__ = ["Outcome", "jobs", "main", "outcomes", "problem_of", "summary", "violations"]

TARGET = 1e-9
SHAPES = ((1, 3), (2, 2), (3, 6), (6, 4), (12, 3), (20, 8), (40, 5), (60, 10), (200, 4), (30, 30))
MEMBERS = 5  # problems of a job
MOST_ROWS = 12  # of problems with non-negative features
BIASES = ("none", "penalised", "free")
EPSILON = float(np.finfo(float).eps)


# Copies of losses as functions of one row


def cross_entropy(z: Any, y: Any) -> Any:
    """Return the cross-entropy of a row of any mass."""
    return jnp.sum(y) * jax.nn.logsumexp(z) - jnp.sum(y * z)


def binary_cross_entropy(z: Any, y: Any) -> Any:
    """Return the binary cross-entropy, summed over labels."""
    return jnp.sum(y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z))


def squared_error(z: Any, y: Any) -> Any:
    """Return half of the squared distance."""
    return 0.5 * jnp.sum((z - y) ** 2)


def squared_hinge(z: Any, y: Any) -> Any:
    """Return half of the squared hinges of the differences to the own class."""
    return 0.5 * jnp.sum((1 - y) * jax.nn.relu(1 + z - jnp.sum(y * z)) ** 2)


def entropy(y: Any) -> Any:
    """Return the infimum of the cross-entropy of a row, s log s - sum_c y_c log y_c."""
    mass = jnp.sum(y)
    terms = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0)
    return mass * jnp.log(jnp.where(mass > 0, mass, 1)) - jnp.sum(terms)


def two_way_entropy(y: Any) -> Any:
    """Return the infimum of the binary cross-entropy of a row."""
    on = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0)
    off = jnp.where(y < 1, (1 - y) * jnp.log(jnp.where(y < 1, 1 - y, 1)), 0)
    return -jnp.sum(on + off)


class Kind(NamedTuple):
    """A loss with the rows that it is tried on.

    Attributes:
        loss: Makes it from the random generator and the number of outputs.
        rows: What its targets are: "soft", "tags", "labels", "numbers", "counts" or "levels".
        exact: Its value in fifty digits, from lists of logits and targets and the loss.
    """

    loss: Callable[[np.random.Generator, int], Any]
    rows: str
    exact: Callable[[list[Any], list[Any], Any], Any]


def _number(value: Any) -> Any:
    return MP.mpf(float(value))


def _logsumexp(z: list[Any]) -> Any:
    top = max(z)
    return top + MP.log(MP.fsum(MP.exp(x - top) for x in z))


def _exact_cross_entropy(z: list[Any], y: list[Any], loss: Any) -> Any:
    return MP.fsum(y) * _logsumexp(z) - MP.fdot(y, z)


def _exact_smoothed(z: list[Any], y: list[Any], loss: Any) -> Any:
    alpha, mass = _number(loss.alpha), MP.fsum(y)
    return _exact_cross_entropy(z, [(1 - alpha) * t + alpha * mass / len(y) for t in y], loss)


def _softplus(x: Any) -> Any:
    return max(x, MP.zero) + MP.log1p(MP.exp(-abs(x)))


def _exact_binary(z: list[Any], y: list[Any], loss: Any) -> Any:
    return MP.fsum(t * _softplus(-x) + (1 - t) * _softplus(x) for x, t in zip(z, y, strict=True))


def _exact_squared(z: list[Any], y: list[Any], loss: Any) -> Any:
    return MP.fsum((x - t) ** 2 for x, t in zip(z, y, strict=True)) / 2


def _exact_huber(z: list[Any], y: list[Any], loss: Any) -> Any:
    delta = _number(loss.delta)
    sizes = [abs(x - t) for x, t in zip(z, y, strict=True)]
    return MP.fsum(s * s / 2 if s <= delta else delta * (s - delta / 2) for s in sizes)


def _exact_poisson(z: list[Any], y: list[Any], loss: Any) -> Any:
    # Less its infimum, as half of the deviance is.
    least = MP.fsum(t - t * MP.log(t) for t in y if t > 0)
    return MP.fsum(MP.exp(x) - t * x for x, t in zip(z, y, strict=True)) - least


def _pairs(of_pair: Callable[[Any], Any]) -> Callable[[list[Any], list[Any], Any], Any]:
    def value(z: list[Any], y: list[Any], loss: Any) -> Any:
        own = max(range(len(y)), key=y.__getitem__)
        return y[own] * MP.fsum(of_pair(x - z[own]) for c, x in enumerate(z) if c != own)

    return value


def _exact_crammer_singer(z: list[Any], y: list[Any], loss: Any) -> Any:
    own = max(range(len(y)), key=y.__getitem__)
    others = [x - z[own] for c, x in enumerate(z) if c != own]
    return y[own] * max(MP.zero, 1 + max(others))


def _exact_margins(z: list[Any], y: list[Any], loss: Any) -> Any:
    top = max(y)
    lowered = [x - _number(m) * t / top for x, t, m in zip(z, y, loss.margins, strict=True)]
    return _exact_cross_entropy(lowered, y, loss)


def _exact_adjusted(z: list[Any], y: list[Any], loss: Any) -> Any:
    return _exact_cross_entropy(
        [x + _number(o) for x, o in zip(z, loss.offsets, strict=True)], y, loss
    )


def _exact_distillation(z: list[Any], y: list[Any], loss: Any) -> Any:
    weight, T = _number(loss.weight), _number(loss.temperature)
    cooled = _exact_cross_entropy([x / T for x in z], y, loss)
    entropy_of_row = MP.fsum(t * MP.log(t) for t in y if t > 0) - MP.fsum(y) * MP.log(MP.fsum(y))
    relative = cooled + entropy_of_row
    return (1 - weight) * _exact_cross_entropy(z, y, loss) + weight * T**2 * relative


def _exact_ordinal(z: list[Any], y: list[Any], loss: Any) -> Any:
    edges = [MP.ninf, *(_number(b) for b in loss.thresholds), MP.inf]
    total = MP.zero
    for level, weight in enumerate(y):
        if weight:
            low, high = edges[level], edges[level + 1]
            above = MP.one if high == MP.inf else 1 / (1 + MP.exp(z[0] - high))
            below = MP.zero if low == MP.ninf else 1 / (1 + MP.exp(z[0] - low))
            total -= weight * MP.log(above - below)
    return total


def _levels(rng: np.random.Generator, levels: int) -> Any:
    return ufm.losses.Ordinal(np.sort(rng.normal(size=levels - 1)) + np.arange(levels - 1.0))


_from = ufm.losses.from_function
COPIES = {
    "copy of ce": _from(cross_entropy, infimum=entropy),
    "copy of bce": _from(binary_cross_entropy, infimum=two_way_entropy),
    "copy of mse": _from(squared_error),
    "copy of squared hinge": _from(squared_hinge),
}
_squared_hinge = _pairs(lambda x: max(1 + x, MP.zero) ** 2 / 2)
KINDS = {
    "ce": Kind(lambda rng, K: ufm.CrossEntropy(), "soft", _exact_cross_entropy),
    "ce of tags": Kind(lambda rng, K: ufm.CrossEntropy(), "tags", _exact_cross_entropy),
    "label smoothing": Kind(
        lambda rng, K: ufm.LabelSmoothing(rng.uniform(0, 0.5)), "labels", _exact_smoothed
    ),
    "mse": Kind(lambda rng, K: ufm.SquaredError(), "numbers", _exact_squared),
    "bce": Kind(lambda rng, K: ufm.losses.BinaryCrossEntropy(), "tags", _exact_binary),
    "pairwise logistic": Kind(
        lambda rng, K: ufm.losses.PairwiseLogistic(), "labels", _pairs(_softplus)
    ),
    "exponential": Kind(lambda rng, K: ufm.losses.Exponential(), "labels", _pairs(MP.exp)),
    "squared hinge": Kind(lambda rng, K: ufm.losses.SquaredHinge(), "labels", _squared_hinge),
    "weston-watkins": Kind(
        lambda rng, K: ufm.losses.WestonWatkins(),
        "labels",
        _pairs(lambda x: max(1 + x, MP.zero)),
    ),
    "crammer-singer": Kind(
        lambda rng, K: ufm.losses.CrammerSinger(), "labels", _exact_crammer_singer
    ),
    "huber": Kind(
        lambda rng, K: ufm.losses.Huber(10 ** rng.uniform(-1, 0.5)), "numbers", _exact_huber
    ),
    "poisson": Kind(lambda rng, K: ufm.losses.Poisson(), "counts", _exact_poisson),
    "ldam": Kind(
        lambda rng, K: ufm.losses.LDAM(margins=rng.uniform(0, 1, K)), "soft", _exact_margins
    ),
    "logit-adjusted": Kind(
        lambda rng, K: ufm.LogitAdjusted(offsets=rng.normal(size=K)), "soft", _exact_adjusted
    ),
    "distillation": Kind(
        lambda rng, K: ufm.losses.Distillation(
            rng.uniform(0.1, 0.9), temperature=rng.uniform(1, 5)
        ),
        "soft",
        _exact_distillation,
    ),
    "ordinal": Kind(_levels, "levels", _exact_ordinal),
    "copy of ce": Kind(lambda rng, K: COPIES["copy of ce"], "soft", _exact_cross_entropy),
    "copy of bce": Kind(lambda rng, K: COPIES["copy of bce"], "tags", _exact_binary),
    "copy of mse": Kind(lambda rng, K: COPIES["copy of mse"], "numbers", _exact_squared),
    "copy of squared hinge": Kind(
        lambda rng, K: COPIES["copy of squared hinge"], "labels", _squared_hinge
    ),
}
KINKED = ("weston-watkins", "crammer-singer")  # whose minimisers lie on kinks of the loss


class Job(NamedTuple):
    """Problems that share shapes and programs."""

    kind: str
    bias: str
    ball: bool
    nonnegative: bool
    shape: tuple[int, int]

    def __str__(self) -> str:
        regularizer = "ball" if self.ball else "decay"
        features = "nonnegative" if self.nonnegative else "signed"
        R, K = self.shape
        return f"{self.kind}.{regularizer}.{self.bias}.{features}.{R}x{K}"


class Outcome(NamedTuple):
    """What became of one problem.

    Attributes:
        job: The text of its job.
        index: Which problem of it.
        status: Of the solve.
        objective: As it was returned.
        lower_bound: As it was returned.
        relative_gap: As it was returned.
        holds: Whether the certificate does.
        exact: The objective in fifty digits, at the nearest feasible point.
        rounding: By how much float64 may be off.
        seconds: Of the solve.
    """

    job: str
    index: int
    status: str
    objective: float
    lower_bound: float
    relative_gap: float
    holds: bool
    exact: str
    rounding: float
    seconds: float


def jobs(number: int, seed: int = 0) -> list[Job]:
    """Return jobs drawn such that every loss, bias, regularizer and cone is met equally often."""
    corners = list(itertools.product(KINDS, BIASES, (False, True), (False, True)))
    # The penalised bias is one of weight decay only.
    corners = [c for c in corners if not (c[1] == "penalised" and c[2])]
    rng = np.random.default_rng(seed)
    order = [corners[i] for i in rng.permutation(len(corners))]
    drawn = []
    for index in range(number):
        kind, bias, ball, nonnegative = order[index % len(order)]
        # Where no bound is tight, as for many rows of non-negative features, a solve takes minutes.
        shapes = [s for s in SHAPES if s[0] <= MOST_ROWS] if nonnegative else SHAPES
        drawn.append(Job(kind, bias, ball, nonnegative, shapes[rng.integers(len(shapes))]))
    return drawn


def _rows(rng: np.random.Generator, kind: str, R: int, K: int) -> np.ndarray:
    if kind == "soft":
        return rng.dirichlet(np.full(K, 10 ** rng.uniform(-0.7, 0.5)), R)
    if kind == "tags":
        rows = (rng.uniform(size=(R, K)) < rng.uniform(0.2, 0.6)).astype(float)
        rows[np.arange(R), rng.integers(K, size=R)] = 1
        return rows
    if kind == "counts":
        return rng.poisson(3.0, (R, K)).astype(float)
    if kind == "numbers":
        return rng.normal(size=(R, K)) @ rng.normal(size=(K, K)) / np.sqrt(K) + rng.normal(size=K)
    return np.eye(K)[rng.integers(K, size=R)]


def problem_of(job: Job, index: int, seed: int = 0) -> Problem:
    """Return one problem of a job."""
    (R, K), kind = job.shape, KINDS[job.kind]
    rng = np.random.default_rng([seed, index, *str(job).encode()])
    rows = _rows(rng, kind.rows, R, K)
    counts = np.round(10 ** rng.uniform(0, 2, R))
    weights = (None, np.ones(R), counts * 10 ** rng.uniform(-0.5, 0.5, R))[index % 3]
    loss = kind.loss(rng, K)
    size = 10 ** rng.uniform(-4, -0.5)
    om = counts if weights is None else weights
    ratio = 10 ** rng.uniform(-1, 1)
    bias = 10 ** rng.uniform(-3, 0) if job.bias == "penalised" else 0.0
    # The price of the logits is a share of the one at which everything collapses.
    price = size * np.sqrt(counts.max() / counts.sum() / om.max() * counts.max())
    regularizer: Any = ufm.WeightDecay(price * ratio, price / ratio, bias)
    if job.ball:
        regularizer = ufm.NormBall(10 ** rng.uniform(-1, 1), 10 ** rng.uniform(-1, 1))
    return Problem(
        targets=Targets(rows, counts, weights),
        feature_dim=max(R, K) if job.nonnegative else min(R, K) + 1,
        loss=loss,
        regularizer=regularizer,
        use_bias=job.bias != "none",
        nonnegative_features=job.nonnegative,
    )


def exact_objective(problem: Problem, parameters: Any, kind: Kind) -> tuple[Any, float]:
    """Return the objective of a point in fifty digits, and the rounding of one in float64.

    Points outside the norm balls by rounding are taken to the nearest feasible ones.
    """
    targets = problem.targets
    assert targets is not None

    def exact(matrix: Any) -> list[list[Any]]:
        return [[_number(x) for x in row] for row in np.asarray(matrix)]

    W, H = exact(parameters.weights[0]), exact(parameters.features)
    counts = [_number(n) for n in targets.counts]
    stated = targets.feature_weights
    om = [_number(x) for x in (targets.counts if stated is None else stated)]
    bias = [MP.zero] * len(W) if parameters.bias is None else list(exact([parameters.bias])[0])
    squares = [MP.fsum(x * x for x in row) for row in H]
    of_weights = MP.fsum(x * x for row in W for x in row)
    factor, penalty, regularizer = MP.one, MP.zero, problem.regularizer
    if isinstance(regularizer, ufm.NormBall):
        shares = [MP.one / len(H)] * len(H) if stated is None else [x / MP.fsum(om) for x in om]
        over = [of_weights / len(W) / _number(regularizer.weights)]
        over.append(MP.fdot(shares, squares) / _number(regularizer.features))
        factor = MP.fprod(1 / MP.sqrt(max(MP.one, ratio)) for ratio in over)
    else:
        assert isinstance(regularizer, ufm.WeightDecay)
        penalty = _number(regularizer.weights) * of_weights
        penalty += _number(regularizer.features) * MP.fdot(om, squares)
        penalty = (penalty + _number(regularizer.bias) * MP.fdot(bias, bias)) / 2
    total, size = MP.zero, 0.0
    rows = exact(targets.rows)
    for h, y, n in zip(H, rows, counts, strict=True):
        z = [factor * MP.fdot(w, h) + b for w, b in zip(W, bias, strict=True)]
        value = kind.exact(z, y, problem.loss)
        total += n * value
        largest = max(map(abs, z)) + max(map(abs, y)) + 1
        size += float(n) * (float(abs(value)) + len(z) * float(largest))
    N = MP.fsum(counts)
    rounding = (len(H) + len(W) + 16) * EPSILON * (size / float(N) + float(penalty))
    return total / N + penalty, rounding


def outcomes(job: Job, seed: int = 0) -> Iterator[Outcome]:
    """Solve the problems of a job, and evaluate the points in fifty digits."""
    for index in range(MEMBERS):
        problem, began = problem_of(job, index, seed), time.perf_counter()
        try:
            solution = ufm.solve(problem, tol=TARGET, key=index)
        except Exception as error:  # whatever comes out of a solve is an outcome
            text = f"{type(error).__name__}: {str(error)[:120]}"
            nothing = (np.nan,) * 3
            seconds = time.perf_counter() - began
            yield Outcome(str(job), index, text, *nothing, False, "", np.nan, seconds)
            continue
        seconds, certificate = time.perf_counter() - began, solution.certificate
        assert certificate is not None
        value, rounding = exact_objective(problem, solution.parameters, KINDS[job.kind])
        stated = (solution.objective, certificate.lower_bound, certificate.relative_gap)
        digits = MP.nstr(value, 45)
        status = solution.status.name
        yield Outcome(
            str(job), index, status, *stated, certificate.holds, digits, rounding, seconds
        )


def violations(found: Iterable[Outcome]) -> list[str]:
    """Return what the exact values contradict.

    A lower bound must not lie above the exact objective of any point of the problem, and the
    objective must be that of the point, to rounding.
    """
    wrong = []
    for one in found:
        name = f"{one.job}:{one.index}"
        if not one.exact:
            continue
        value = MP.mpf(one.exact)
        if _number(one.lower_bound) > value:
            excess = float((_number(one.lower_bound) - value) / abs(value))
            wrong.append(f"{name}: the bound exceeds the exact objective by {excess:.2g} of it")
        if abs(_number(one.objective) - value) > one.rounding:
            wrong.append(f"{name}: the objective is off by {float(one.objective - value):.2g}")
    return wrong


def summary(found: list[Outcome]) -> str:
    """Return the table of certified problems, by loss and by features."""
    parts: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for one in found:
        kind, _, _, features, _ = one.job.split(".")
        parts[features, kind].append(one)
        parts[features, "all"].append(one)
        if kind not in KINKED:
            parts[features, "all but the hinges"].append(one)
    rows = []
    for (features, kind), members in sorted(parts.items()):
        certified = sum(one.holds for one in members)
        gaps = [one.relative_gap for one in members if not one.holds]
        worst = f"{max(gaps):.1e}" if gaps else "-"
        seconds = f"{np.median([one.seconds for one in members]):.2g}"
        share = f"{100 * certified / len(members):.1f} %"
        rows.append([features, kind, str(len(members)), share, worst, seconds])
    header = ["features", "loss", "problems", "certified to 1e-9", "worst gap left", "median s"]
    return markdown(header, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the battery; the exit status is 1 where a statement is false."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="of five problems each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="keep outcomes here, and go on from it")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    kept: list[Outcome] = []
    if options.store and options.store.exists():
        kept = [Outcome(**json.loads(line)) for line in options.store.read_text().splitlines()]
    drawn = jobs(options.jobs, options.seed)
    if options.part:
        for place in range(*options.part):
            for one in outcomes(drawn[place], options.seed):
                print(json.dumps(one._asdict()), flush=True)
        return 0
    done = len(kept) // MEMBERS
    kept = kept[: done * MEMBERS]  # a job that was interrupted is begun again
    while done < len(drawn):
        # A process keeps every program that it has compiled: a fresh one after a few jobs.
        part = [str(done), str(min(done + 10, len(drawn)))]
        command = [sys.executable, "-m", "benchmarks.targets", "--seed", str(options.seed)]
        command += ["--jobs", str(options.jobs), "--part", *part]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                kept.append(Outcome(**json.loads(line)))
                if options.store and len(kept) % MEMBERS == 0:
                    lines = [json.dumps(one._asdict()) + "\n" for one in kept]
                    options.store.write_text("".join(lines))
        if process.returncode:
            return process.returncode
        done = int(part[1])
        print(f"{done} of {len(drawn)} jobs", file=sys.stderr, flush=True)
    print(summary(kept))
    for one in kept:
        if not one.holds:
            print(f"- {one.job}:{one.index} gap {one.relative_gap:.1e}, {one.status}")
    wrong = violations(kept)
    print(f"\n{len(kept)} problems, {len(wrong)} violations", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
