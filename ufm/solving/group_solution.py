"""A solution over groups of interchangeable classes: block answers for any number of classes, explicit matrices on demand."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Status, compiled, counted, double_precision, to_numpy
from ufm.certificates import (
    Certificate,
    GroupEvidence,
    group_evidence,
    group_rounding,
    multiplier,
    nuclear_norm,
)
from ufm.metrics import centred_bias, geometry_of, logit_rows, margins, norms, split, split_scale
from ufm.problems import (
    DENSE_LIMIT,
    Blocks,
    GroupProblem,
    Parameters,
    Problem,
    check_dense,
    grouped,
    labels,
    lifted,
)
from ufm.solving.group_batch import certified
from ufm.solving.methods import most_steps
from ufm.solving.nonnegative_groups import (
    Orbits,
    coordinates,
    copies_of,
    entries,
    minimise_over_orbits,
)
from ufm.solving.solution import Minimum, Restarts, Solution, SolveError, Trajectory

__all__ = ["MOST_GROUPS_SOLVED", "GroupSolution", "grouping_pays", "solve_groups"]

FEWEST_CLASSES = 50
MOST_GROUPS = 16
MOST_GROUPS_SOLVED = 40  # the number of unknowns grows as its square
OPEN = 1e-9  # relative gap up to which class resolution, which is no more accurate, is not tried
MOST_CLASSES = 300  # that are solved class by class where the method of groups fails: a few seconds
GAP = 1e-3  # of the tolerance: where the path ends


class GroupSolution:
    """A minimiser at group resolution.

    What `Solution` holds as arrays (weights, features, logits, ...) is formed when asked for.

    problem: what was solved. groups: (K,) the group of every class. data: the problem over its
    groups, `data.counts` and `data.sizes` (G,). blocks: K x K matrices as `Blocks`, a few numbers
    per group: `logits` (bias not included), `weight_gram` = W W^T and `feature_gram`, of the class
    means. group_bias: (G,) or None. objective, status, steps, evaluations, escapes, certificate,
    seconds: as in `Solution`. price: tau under weight decay, the multiplier of the norm ball's
    gauge otherwise. dual_ratios: (G,) dual norm of the modes within each group over the allowed
    one: below one only where they vanish, so that the classes of the group have one classifier.
    """

    resolution = "groups"
    restarts: Restarts
    trajectory: Trajectory | None = None

    def __init__(
        self,
        problem: Problem,
        data: GroupProblem,
        groups: np.ndarray,
        logits: Blocks,
        bias: Any,
        evidence: GroupEvidence,
        *,
        certificate: Certificate,
        price: float,
        status: Status,
        steps: int,
        escapes: int,
        seconds: float,
        orbits: Orbits | None = None,
    ):
        self.problem, self.data, self.groups, self.group_bias = problem, data, groups, bias
        self.objective = float(evidence.objective)
        self.certificate, self.price, self.status = certificate, price, status
        self.steps = self.evaluations = steps
        self.escapes, self.seconds = escapes, seconds
        self.dual_ratios = np.asarray(evidence.within)
        self.relative_gradient = max(float(evidence.relative_gap), 0.0)
        self._orbits = orbits
        self.blocks = _grams(data, logits, orbits)
        self.restarts = Restarts(
            np.array([self.objective]),
            np.array([self.relative_gradient]),
            np.array([status]),
            np.array([steps]),
            0,
        )

    @property
    def weight_norms(self) -> Float[np.ndarray, " G"]:
        """||w_k|| of a class of each group, (G,)."""
        return norms(self.blocks["weight_gram"])

    @property
    def feature_norms(self) -> Float[np.ndarray, " G"]:
        """||mu_k|| of a class of each group, (G,)."""
        return norms(self.blocks["feature_gram"])

    @property
    def weight_cosines(self) -> Float[np.ndarray, "G G"]:
        """Cosines between the classifiers of two classes of groups g and h (on the diagonal: of two classes of one group); NaN where they vanish."""
        return self.blocks["weight_gram"].cosines()[1]

    @property
    def feature_cosines(self) -> Float[np.ndarray, "G G"]:
        """Cosines between class means, as `weight_cosines`."""
        return self.blocks["feature_gram"].cosines()[1]

    @property
    def margins(self) -> Float[np.ndarray, " G"]:
        """Own logit less the largest other one, bias included, of a class of each group, (G,)."""
        return margins(self.blocks["logits"], self.group_bias)

    @property
    def rank(self) -> int:
        """Rank of the logits without bias: singular values above 1e-9 of the largest."""
        return self.blocks["logits"].scaled_rows(self.data.roots).rank()

    def by_group(self) -> dict[str, np.ndarray]:
        """Return what there is of each group, (G,), and of each pair of groups, (G, G), as NumPy arrays by name.

        counts, sizes: samples per class, classes. weight_norms, feature_norms, margins,
        weight_cosines, feature_cosines: as the attributes. logits_own, logits_others: the logit of
        the own class, and that of another class of each group, bias included; minus infinity where
        there is none. bias: where the model has one.
        """
        own, others = logit_rows(self.blocks["logits"], self.group_bias)
        found = {
            "counts": self.data.counts,
            "sizes": self.data.sizes,
            "weight_norms": self.weight_norms,
            "feature_norms": self.feature_norms,
            "margins": self.margins,
            "weight_cosines": self.weight_cosines,
            "feature_cosines": self.feature_cosines,
            "logits_own": own,
            "logits_others": others,
        }
        bias = {} if self.group_bias is None else {"bias": self.group_bias}
        return {name: np.asarray(value, np.float64) for name, value in (found | bias).items()}

    @functools.cached_property
    def parameters(self) -> Parameters:
        """Explicit weights (K, d), features (K, d) and bias (K,): a lift of the blocks, one of many that differ by rotations.

        Raises:
            ValueError: where K is too large for explicit matrices.
        """
        check_dense(self.problem.num_classes)
        build = _lifted_orbits if self._orbits is not None else _lifted_modes
        weights, features = build(self)
        bias = None if self.group_bias is None else self.group_bias[self.groups]
        return Parameters((weights,), features, bias)  # type: ignore[arg-type]

    @property
    def weights(self) -> tuple[Float[Array, "K d"], ...]:
        """Explicit weights."""
        return self.parameters.weights

    @property
    def features(self) -> Float[Array, "K d"]:
        """Explicit features, one row per class."""
        return self.parameters.features

    @property
    def class_features(self) -> Float[Array, "K d"]:
        """The same as `features`: all samples of a class have its row."""
        return self.parameters.features

    @property
    def bias(self) -> Float[Array, " K"] | None:
        """The bias of every class."""
        return None if self.group_bias is None else self.group_bias[self.groups]

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """Explicit logits, bias included."""
        logits = self.blocks["logits"].dense(self.groups)
        return logits if self.group_bias is None else logits + self.group_bias[self.groups][None, :]

    @property
    def labels(self) -> np.ndarray:
        """The class of every sample, (N,), for whole class counts."""
        return labels(self.problem.class_counts)

    @property
    def sample_features(self) -> np.ndarray:
        """(N, d) features of every sample."""
        return np.asarray(lifted(self.features, self.problem.class_counts))

    def lift(self) -> Solution:
        """Return the same solution with explicit matrices."""
        plain = self.blocks["logits"].dense(self.groups)
        return Solution(
            problem=self.problem,
            resolution="groups",
            objective=self.objective,
            weights=self.weights,
            features=self.features,
            bias=self.bias,
            logits=self.logits,  # type: ignore[arg-type]
            class_features=self.class_features,
            status=self.status,
            steps=self.steps,
            evaluations=self.evaluations,
            escapes=self.escapes,
            relative_gradient=self.relative_gradient,
            certificate=self.certificate,
            restarts=self.restarts,
            minima=(Minimum(self.objective, self.relative_gradient, 1, self.parameters, plain),)
            if self.status.ok
            else (),
            trajectory=None,
            seconds=self.seconds,
        )

    def check(self) -> "GroupSolution":
        """Return the solution itself.

        Raises:
            SolveError: where the solve did not converge or the certificate does not hold.
        """
        if not self.status.ok or not self.certificate.holds:
            raise SolveError(f"{self.status.message} ({self.certificate})")
        return self

    def __str__(self) -> str:
        counts, sizes = np.asarray(self.data.counts), np.asarray(self.data.sizes)
        groups = " + ".join(
            f"{size:g} x {count:g}" for size, count in list(zip(sizes, counts, strict=True))[:6]
        )
        groups += " + ..." if len(sizes) > 6 else ""
        return "\n".join(
            [
                f"objective     {self.objective:.15g}",
                f"status        {self.status.message}",
                f"certificate   {self.certificate}",
                f"problem       K = {sizes.sum():g} in {counted(len(sizes), 'group')} ({groups}), N = {np.sum(sizes * counts):g}, "
                f"d = {self.problem.feature_dim}, {type(self.problem.loss).__name__}, {type(self.problem.regularizer).__name__}",
                f"work          {counted(self.steps, 'Newton step')}, {self.seconds:.3g} s at group resolution",
            ]
        )


def grouping_pays(problem: Problem, num_groups: int) -> bool:
    """Whether group resolution is much less work than class resolution: many classes in few groups."""
    return problem.num_classes >= FEWEST_CLASSES and num_groups <= min(
        MOST_GROUPS, problem.num_classes // 8
    )


def solve_groups(
    problem: Problem,
    tol: float = 1e-9,
    started: float | None = None,
    by_classes: Callable[[], Any] | None = None,
) -> GroupSolution:
    """Minimise and certify a problem at group resolution.

    Args:
        problem: of one layer, with a convex loss and a feature dimension that holds the convex
            minimiser.
        tol: relative gap to certify to.
        started: when the clock began, of `time.perf_counter`.
        by_classes: solves the problem at class resolution. It is called where the method of groups
            fails for signed features and at most 300 classes: the mean of its logits over
            permutations within groups is no worse, and is what the solution then holds.

    Raises:
        ValueError: where group resolution is not exact, for more than 40 groups, or
            the minimiser with non-negative features that was found needs more dimensions.
    """
    started = time.perf_counter() if started is None else started
    data, groups = grouped(problem)
    if data.num_groups > MOST_GROUPS_SOLVED:
        raise ValueError(
            f"resolution 'groups' solves up to {MOST_GROUPS_SOLVED} groups of classes with equal counts, got {data.num_groups}; use "
            f"resolution='classes' (at most {DENSE_LIMIT} classes), or give classes of nearly equal counts the same one."
        )
    orbits, escapes = None, 0
    if problem.nonnegative_features:
        found = minimise_over_orbits(data, tol, problem.feature_dim)
        orbits, logits, bias, evidence = found.orbits, found.logits, found.bias, found.evidence
        steps, escapes, status, price = found.steps, found.escapes, found.status, np.nan
        if not data.norm_ball:
            price = float(np.sqrt(float(data.weights) * float(data.features)))
        needed = sum(copies_of(np.asarray(data.sizes), orbits))
        if needed > problem.feature_dim:
            raise ValueError(
                f"`feature_dim` = {problem.feature_dim} is too small for the minimiser found at resolution 'groups', which has {needed} "
                "non-negative atoms; raise it, or use resolution='classes'."
            )
    else:
        with double_precision():
            for weight_exponent in (0.0, 0.5, 1.0):
                aim, limit = (
                    np.asarray(min(GAP * tol, 1e-12)),
                    np.asarray(most_steps(data), np.int32),
                )
                minimum = to_numpy(_certified(data, aim, np.asarray(weight_exponent), limit))
                if minimum.status == Status.CONVERGED:
                    break
        logits, bias, evidence = minimum.logits, minimum.bias, minimum.evidence
        steps, status, price = int(minimum.steps), Status(int(minimum.status)), float(minimum.price)  # type: ignore[call-arg]
        failed = not float(evidence.relative_gap) <= max(tol, OPEN)
        if failed and by_classes is not None and problem.num_classes <= MOST_CLASSES:
            solution = by_classes()
            averaged = _averaged(data, groups, solution)
            if not float(averaged[2].relative_gap) >= float(evidence.relative_gap):
                logits, bias, evidence, price = averaged
                steps, status = steps + solution.steps, solution.status
    bias = centred_bias(data, np.asarray(data.sizes), bias)
    kind = "dual bound over groups, " + (
        "non-negative gauge" if problem.nonnegative_features else "nuclear norm"
    )
    certificate = Certificate(
        objective=float(evidence.objective),
        lower_bound=float(evidence.lower_bound),
        scale=float(evidence.scale),
        tolerance=float(tol),
        dual_ratio=float(evidence.ratio),
        method=f"{kind}, {'norm balls' if data.norm_ball else 'weight decay'}",
        tight=True,
        rounding=float(group_rounding(data, logits, bias, evidence)),
    )
    if not certificate.believable:
        status = Status.CONTRADICTION
    elif status != Status.CONVERGED and certificate.holds:
        status = Status.CONVERGED
    elif status == Status.CONVERGED and not certificate.holds:
        status = Status.NOT_CERTIFIED
    if status == Status.CONVERGED and certificate.at_floor:
        status = Status.FLOOR
    return GroupSolution(
        problem,
        data,
        groups,
        logits,
        bias,
        evidence,
        certificate=certificate,
        price=price,
        status=status,
        steps=steps,
        escapes=escapes,
        seconds=time.perf_counter() - started,
        orbits=orbits,
    )


_certified = compiled(certified)


def _averaged(
    data: GroupProblem, groups: np.ndarray, solution: Solution
) -> tuple[Blocks, Any, GroupEvidence, float]:
    """Return a solution at class resolution averaged over permutations within groups: logits as blocks, bias, evidence and price."""
    bias = None if solution.bias is None else np.asarray(solution.bias)
    plain = np.asarray(solution.logits) - (0 if bias is None else bias)
    sizes: Any = np.asarray(data.sizes)
    members = (groups[:, None] == np.arange(sizes.size)).astype(float)
    between: Any = members.T @ plain @ members / np.sqrt(np.outer(sizes, sizes))
    within: Any = (members.T @ np.diagonal(plain) - np.diagonal(between)) / np.maximum(sizes - 1, 1)
    mean = None if bias is None else members.T @ bias / sizes
    with double_precision():
        logits, evidence, price = to_numpy(_evidence(data, Blocks(within, between, sizes), mean))
    return logits, mean, evidence, float(price)


@functools.partial(compiled, once=True)
def _evidence(data: GroupProblem, logits: Blocks, bias: Any) -> tuple[Blocks, GroupEvidence, Any]:
    gauge, price = nuclear_norm(data, logits), data.price
    if data.norm_ball:
        shrink = jnp.minimum(
            1, data.price / jnp.maximum(gauge, jnp.finfo(gauge.dtype).tiny)
        )  # by what rounding has added
        logits, gauge = (
            Blocks(logits.within * shrink, logits.between * shrink, logits.sizes),
            gauge * shrink,
        )
        price = multiplier(data, logits, bias)
    return logits, group_evidence(data, logits, bias, gauge), price


def _grams(data: GroupProblem, logits: Blocks, orbits: Orbits | None) -> dict[str, Blocks]:
    """Return the logits and both Gram matrices as blocks."""
    sizes: Any = np.asarray(data.sizes)
    logits = Blocks(logits.within, logits.between, sizes)
    if orbits is None:
        geometry = geometry_of(data, logits)
        return {
            "logits": logits,
            "weight_gram": geometry.weight_gram,
            "feature_gram": geometry.feature_gram,
        }
    s, t, u, v = _orbit_parts(data, orbits)
    others = np.maximum(sizes - 1, 1)
    weights, features = (
        Blocks(np.sum(within**2, axis=1) / others, between @ between.T, sizes)
        for within, between in ((v, u), (t, s))
    )
    weights, features = split(data, weights, features)
    return {"logits": logits, "weight_gram": weights, "feature_gram": features}


def _centred_basis(size: int) -> np.ndarray:
    """Return an orthonormal basis of the vectors of mean zero, (size, size - 1): Helmert's."""
    basis = np.zeros((size, size - 1))
    for column in range(size - 1):
        basis[: column + 1, column] = 1.0
        basis[column + 1, column] = -(column + 1.0)
    return basis / np.sqrt(np.arange(1, size) * np.arange(2, size + 1))


def _lifted_modes(solution: GroupSolution) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and features (K, d) of balanced factors: the singular modes of the weighted logits."""
    data, groups, logits = solution.data, solution.groups, solution.blocks["logits"]
    roots, scale = data.roots, np.sqrt(split_scale(data))
    K, d = groups.size, solution.problem.feature_dim
    weights, features = np.zeros((K, d)), np.zeros((K, d))
    weighted = logits.scaled_rows(roots)
    left, values, right = np.linalg.svd(np.asarray(weighted.between))
    order = np.argsort(-values)
    column = 0
    unit = 1 / np.sqrt(np.asarray(data.sizes))
    for mode in order[values[order] > 0][:d]:
        amplitude = np.sqrt(values[mode])
        weights[:, column] = scale * amplitude * (right[mode] * unit)[groups]
        features[:, column] = amplitude / scale * (left[:, mode] * unit / roots)[groups]
        column += 1
    for group, strength in enumerate(np.asarray(weighted.within)):
        members = np.flatnonzero(groups == group)
        room = min(members.size - 1, d - column)
        if strength == 0 or room <= 0:
            continue
        basis = np.sqrt(abs(strength)) * _centred_basis(members.size)[:, :room]
        weights[members, column : column + room] = np.sign(strength) * scale * basis
        features[members, column : column + room] = basis / (scale * roots[group])
        column += room
    return weights, features


def _orbit_parts(data: GroupProblem, orbits: Any) -> tuple[np.ndarray, ...]:
    """Return s, t, u, v of the orbits, scaled into the norm ball if there is one."""
    sizes = np.asarray(data.sizes)
    s, t = coordinates(sizes, *entries(sizes, orbits.own, orbits.other))
    u, v = orbits.between, np.where(sizes[:, None] > 1, orbits.within, 0)
    if not data.norm_ball:
        return s, t, u, v
    # Inside the ball both factors have the same norm, so that each meets its own bound.
    features, weights = np.sum(s**2 + t**2), np.sum(u**2 + v**2)
    total = 0.5 * (features + weights) + float(orbits.slack) ** 2
    radius = float(np.sum(data.sizes) * np.sqrt(float(data.weights) * float(data.features)))
    factor = radius * np.sqrt(features * weights) / total
    grow = [np.sqrt(factor / norm) if norm > 0 else 0.0 for norm in (features, weights)]
    return s * grow[0], t * grow[0], u * grow[1], v * grow[1]


def _lifted_orbits(solution: GroupSolution) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and features (K, d): every orbit's atoms, one dimension each."""
    data, groups, orbits = solution.data, solution.groups, solution._orbits
    assert orbits is not None
    s, t, u, v = _orbit_parts(data, orbits)
    roots, scale = data.roots, np.sqrt(split_scale(data))
    sizes = np.asarray(data.sizes).round().astype(int)
    members = [np.flatnonzero(groups == group) for group in range(sizes.size)]
    K, d = groups.size, solution.problem.feature_dim
    weights, features = np.zeros((K, d)), np.zeros((K, d))
    column = 0
    for orbit, copies in enumerate(copies_of(np.asarray(data.sizes), orbits)):
        if not copies:
            continue
        marked = [
            g for g in range(sizes.size) if sizes[g] > 1 and (t[g, orbit] != 0 or v[g, orbit] != 0)
        ]
        for choice in np.ndindex(*(sizes[g] for g in marked)):
            h, w = (part[:, orbit] / np.sqrt(sizes) for part in (s, u))
            rows_h, rows_w = h[groups], w[groups]
            for g, index in zip(marked, choice, strict=True):
                # The distinguished class less the mean, normalised.
                direction = np.full(sizes[g], -1 / sizes[g])
                direction[index] += 1
                direction /= np.sqrt((sizes[g] - 1) / sizes[g])
                rows_h[members[g]] += t[g, orbit] * direction
                rows_w[members[g]] += v[g, orbit] * direction
            weights[:, column] = scale * rows_w / np.sqrt(copies)
            features[:, column] = np.maximum(rows_h, 0) / (scale * roots[groups] * np.sqrt(copies))
            column += 1
    return weights, features
