"""Solves over orbits of target rows: the cost is that of the orbits, not of rows and labels."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm._support import (
    ArgumentError,
    Status,
    compiled,
    double_precision,
    is_concrete,
    rebuilt,
    to_numpy,
)
from ufm.certificates import (
    Certificate,
    OrbitEvidence,
    has_one_minimum,
    loss_doubt,
    orbit_evidence,
    relative_scale,
    rounding_of,
)
from ufm.problems import (
    LabelClass,
    OrbitProblem,
    Problem,
    RowOrbits,
    Targets,
    find_row_orbits,
    is_symmetric,
    merged,
    one_count_per_class,
    orbit_problem,
    orbit_rows,
    orbits_of,
    orbits_under,
)
from ufm.solving.methods import OrbitPathEnd, follow_orbit_path, num_orbit_unknowns
from ufm.solving.orbit_point import OrbitPoint
from ufm.solving.solution import Solution, decided_status, solution_of_point

__all__ = [
    "OrbitMinimum",
    "Reduction",
    "orbit_reduction",
    "orbits_pay",
    "reduced_under",
    "solve_orbits",
    "solve_representatives",
]

MOST_UNKNOWNS = 400  # a Newton step takes their cube
FEWER = 4  # times fewer unknowns than logits that are worth the reduction
FEWEST_LOGITS = 100  # below which class resolution takes milliseconds, too
PATH_SHARE = 1e-3  # relative gap at which the path is left, over the tolerance
MOST_LOGITS = 10**6  # that are solved row by row where the method over orbits fails


class Reduction(NamedTuple):
    """A problem over orbits of its target rows.

    Attributes:
        problem: The problem as it was stated.
        distinct: The same without equal rows, with one count per class.
        origins: (R,), the distinct row of each stated row; None where all differ.
        orbits: The orbits of the distinct rows.
        data: The problem over them.
    """

    problem: Problem
    distinct: Problem
    origins: Int[np.ndarray, " R"] | None
    orbits: RowOrbits
    data: OrbitProblem


def orbit_reduction(problem: Problem) -> Reduction | None:
    """Return a problem over orbits of its target rows.

    It is exact for one layer, a convex loss that treats the rows of an orbit alike, signed
    features, a regularizer with a gauge, and a feature dimension that holds the minimiser: a
    minimiser can then be averaged over the symmetries. None for other problems, for losses with
    kinks, which Newton's method does not minimise, and where no symmetry is found or too many
    unknowns are left.
    """
    if problem.targets is None or not is_concrete(problem) or not has_one_minimum(problem):
        return None
    if problem.loss.softened(np.zeros((1, problem.num_outputs)), 1.0) is not None:
        return None
    distinct, origins = merged(one_count_per_class(problem))
    orbits = find_row_orbits(distinct)
    if orbits is None:
        return None
    data = orbit_problem(distinct, orbits)
    if num_orbit_unknowns(data) > MOST_UNKNOWNS:
        return None
    return Reduction(problem, distinct, origins, orbits, data)


def orbits_pay(reduction: Reduction) -> bool:
    """Return whether a reduction is less work than class resolution."""
    logits = reduction.distinct.num_rows * reduction.distinct.num_outputs
    return logits >= max(FEWEST_LOGITS, FEWER * num_orbit_unknowns(reduction.data))


def reduced_under(problem: Problem, classes: Sequence[LabelClass]) -> Reduction:
    """Return a problem over the orbits of its target rows under a stated group.

    Args:
        problem: The problem.
        classes: The group, as for `ufm.problems.orbits_under`.

    Raises:
        ArgumentError: If the problem is none for which orbits are exact, or the group is none of
            its symmetries.
    """
    if problem.targets is None or not has_one_minimum(problem):
        raise _not_exact(problem)
    distinct, origins = merged(one_count_per_class(problem))
    assert distinct.targets is not None
    orbits = orbits_under(distinct.targets, classes)
    if not is_symmetric(distinct, orbits):
        raise _asymmetric()
    return Reduction(problem, distinct, origins, orbits, orbit_problem(distinct, orbits))


def solve_orbits(
    reduction: Reduction,
    tol: float = 1e-9,
    started: float | None = None,
    by_classes: Callable[[], Solution] | None = None,
) -> Solution:
    """Minimise and certify a problem over orbits of its target rows.

    Args:
        reduction: The problem.
        tol: Relative gap to certify to.
        started: Time at the start of the solve, from `time.perf_counter`.
        by_classes: Solves the problem row by row. It is called where the method over orbits does
            not certify its point, as it may not for losses with kinks, and the better of the two is
            returned.
    """
    started = time.perf_counter() if started is None else started
    end, evidence = _minimised(reduction, tol)
    certificate = _certificate(reduction, evidence, tol)
    if not certificate.holds and by_classes is not None:
        logits = reduction.distinct.num_rows * reduction.distinct.num_outputs
        if logits <= MOST_LOGITS:
            other = by_classes()
            known = other.certificate
            if known is not None and not known.relative_gap > certificate.relative_gap:
                return other
    return solution_of_point(
        problem=reduction.problem,
        resolution="orbits",
        point=_point(reduction, end),
        certificate=certificate,
        objective=float(evidence.objective),
        residual=certificate.relative_gap,
        status=end.status,
        steps=int(end.steps),
        started=started,
        price=end.price,
    )


class OrbitMinimum(NamedTuple):
    """A minimiser of targets whose rows are not listed.

    Attributes:
        objective: The value, penalties included.
        certificate: A lower bound for it.
        representatives: (T, K), the row of each orbit that the logits are of, labels in place.
        logits: (T, K), bias included.
        bias: (K,), or None.
        sizes: (T,), rows of each orbit.
        status: How the solve ended.
        steps: Newton steps.
    """

    objective: float
    certificate: Certificate
    representatives: Float[np.ndarray, "T K"]
    logits: Float[np.ndarray, "T K"]
    bias: Float[np.ndarray, " K"] | None
    sizes: Float[np.ndarray, " T"]
    status: Status
    steps: int


def solve_representatives(
    problem: Problem, classes: Sequence[LabelClass], tol: float = 1e-9
) -> OrbitMinimum:
    """Minimise and certify a problem whose targets are all images of a few rows.

    Neither time nor memory depends on the number of rows, such as the half million of all pairs of
    a thousand labels. The loss is tried on random images.

    Args:
        problem: The problem, each of whose target rows stands for its orbit. The counts are the
            samples of whole orbits, and so are feature weights, if stated. The feature dimension
            must hold the minimiser of all rows.
        classes: The group, as for `ufm.problems.orbits_under`.
        tol: Relative gap to certify to.

    Raises:
        ArgumentError: If the problem is none for which orbits are exact, or two rows are of one
            orbit, or the loss does not treat the rows of an orbit alike.
    """
    stated = one_count_per_class(problem)
    K = problem.num_outputs
    if problem.targets is None or not (has_one_minimum(problem) and problem.feature_dim >= K):
        raise _not_exact(problem)
    orbits = orbits_of(np.asarray(problem.targets.rows), classes)
    counts = np.asarray(problem.targets.counts)
    weights: Any = problem.targets.feature_weights
    if weights is None and problem.regularizer.bounded:
        weights = orbits.sizes  # the mean over all rows
    sums = counts @ orbits.representatives
    for one in orbits.classes:
        sums[one.labels] = np.mean(sums[one.labels])
    # A row of each orbit has the weight of all: its factor in the gauge has the root of their
    # number already.
    stated = rebuilt(
        stated,
        targets=Targets(orbits.representatives, counts, weights),
        class_counts=rebuilt(stated.class_counts, counts=sums),
    )
    if not is_symmetric(stated, orbits):
        raise _asymmetric()
    data = orbit_problem(stated, orbits._replace(sizes=np.ones(len(counts))))
    reduction = Reduction(problem, stated, None, orbits, data)
    end, evidence = _minimised(reduction, tol)
    certificate = _certificate(reduction, evidence, tol)
    with double_precision():
        logits = np.asarray(_rows(data, end.x, end.bias))
    return OrbitMinimum(
        objective=float(evidence.objective),
        certificate=certificate,
        representatives=orbits.representatives,
        logits=logits,
        bias=None if end.bias is None else end.bias[np.asarray(data.label_classes)],
        sizes=np.asarray(orbits.sizes, np.float64),
        status=decided_status(end.status, certificate),
        steps=end.steps,
    )


def _minimised(reduction: Reduction, tol: float) -> tuple[OrbitPathEnd, OrbitEvidence]:
    with double_precision():
        end = follow_orbit_path(reduction.data, min(PATH_SHARE * tol, 1e-12))
        bias = None if end.bias is None else _centred(reduction, end.bias)
        return end._replace(bias=bias), to_numpy(_evidence(reduction.data, end.x, bias))


def _not_exact(problem: Problem) -> ArgumentError:
    return ArgumentError(
        "problem",
        "must have targets, one layer, a convex loss, signed features, a regularizer with a gauge "
        "and a feature dimension that holds the minimiser",
        problem.feature_dim,
        "use resolution='classes'",
    )


def _asymmetric() -> ArgumentError:
    return ArgumentError(
        "classes", "must leave the loss alone, which has other values at the rows of an orbit"
    )


def _centred(reduction: Reduction, bias: np.ndarray) -> np.ndarray:
    """Return the bias with mean zero, if it is free and the loss does not see a shift."""
    data = reduction.data
    if data.bias > 0 or not data.loss.shift_invariant:
        return bias
    return bias - np.sum(data.class_sizes * bias) / np.sum(data.class_sizes)


def _certificate(reduction: Reduction, evidence: OrbitEvidence, tol: float) -> Certificate:
    problem, infimum = reduction.problem, reduction.problem.loss.infimum
    objective, lower = float(evidence.objective), float(evidence.lower_bound)
    at_zero = float(evidence.at_zero)
    size = max(reduction.data.targets.shape)
    return Certificate(
        objective=objective,
        lower_bound=lower,
        scale=float(relative_scale(lower, at_zero, infimum)),
        tolerance=float(tol),
        dual_ratio=float(evidence.ratio),
        method=f"dual bound over orbits, nuclear norm, {problem.regularizer.words}",
        tight=True,
        rounding=float(
            rounding_of(
                objective, at_zero, float(evidence.largest), size, problem.regularizer.bounded
            )
        ),
        doubt=loss_doubt(problem),
        infimum=float(infimum) if np.isfinite(infimum) else 0.0,
    )


def _point(reduction: Reduction, end: OrbitPathEnd) -> OrbitPoint:
    data, gauge = reduction.data, reduction.distinct.gauge
    with double_precision():
        rows: Any = np.asarray(_rows(data, end.x, None))
    # Norm balls bound means over K rows of the weights and R rows of the features.
    ratio = reduction.distinct.num_outputs / reduction.distinct.num_rows
    split = float(gauge.split) * (float(np.sqrt(ratio)) if gauge.bounded else 1.0)
    return OrbitPoint(
        orbits=reduction.orbits,
        origins=reduction.origins,
        gauge_rows=np.asarray(gauge.rows, np.float64),
        split=split,
        feature_dim=reduction.problem.feature_dim,
        representatives=rows,
        bias=None if end.bias is None else end.bias[np.asarray(data.label_classes)],
    )


_evidence = compiled(orbit_evidence)
_rows = compiled(orbit_rows, once=True)
