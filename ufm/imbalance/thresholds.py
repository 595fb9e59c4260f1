r"""Thresholds of collapse, as one number of a model varies.

There are three kinds of collapse, which are never mixed:

    classifiers coincide       w_k = w_k' and mu_k = mu_k' for all classes k, k' of a group
    features vanish            mu_k = 0 for all classes of a group (then classifiers coincide too)
    everything vanishes        Z = 0 except for a bias

If the condition has a closed form (`ufm.imbalance.conditions`), the threshold is its root to the
last digits. Otherwise it is found from certified solves. A mode of the logits that is zero at the
minimum has a dual ratio below one. The ratio is a smooth function of the varied number up to the
threshold, where it is one; beyond the threshold the mode is alive and the ratio stays at one. So:

1. Solve on a grid, in batches of one size, and find where modes become zero.
2. Fit the logarithm of the ratio where the mode is clearly zero, and continue it to one. There the
error of the ratio is that of a dual point. At the threshold itself it would be the root of it.
3. Enclose the result by solves on both sides.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.polynomial import Chebyshev

from ufm._support import (
    ArgumentError,
    Status,
    chunks,
    compiled,
    double_precision,
    on_host,
    to_numpy,
)
from ufm.imbalance.conditions import (
    CROSS_ENTROPY,
    LAYER_PEELED,
    Explicit,
    coincide,
    vanish,
    vanish_all,
)
from ufm.imbalance.target_thresholds import target_thresholds
from ufm.imbalance.threshold import ALL, COINCIDE, VANISH, Threshold, ThresholdStatus
from ufm.problems import (
    GroupProblem,
    OneParameterFamily,
    Problem,
    one_parameter_family,
)
from ufm.solving import GroupMinimum, certified
from ufm.theory import root

__all__ = [
    "BATCH",
    "collapse_thresholds",
    "minority_collapse_threshold",
    "solved_with_ratios",
]

BATCH = 64  # problems in one compiled call; every call is filled up to it
GRID = 129  # points along the family
PATH_GAP = 1e-13  # relative gap at which the interior-point path ends
LARGEST_GAP = 1e-8  # relative gap up to which a solve counts
BELOW = 1e-5  # how far below one the dual ratio of a zero mode must be
LIVE_LOGIT = 1e-3  # absolute logit above which a mode is not zero, at any ratio
# The window in which the dual ratio is fitted, by its distances from the threshold in units of the
# coordinate, and the powers of four by which it is moved. Rounding weighs less further away, and
# curvature less close by.
WINDOW = (5e-3, 4e-2)
WINDOW_POWERS = (0, 0.5, 1, -1, -2, -3, -4)
LADDER = 10.0 ** np.linspace(-3.0, -9.0, BATCH // 2)  # distances of the enclosing solves
DEGREES = (7, 5)  # of the fits; the difference of their roots is the error


@on_host
def minority_collapse_threshold(
    problem: Problem, vary: str = "imbalance_ratio", *, bounds: Any = None, tol: float = 1e-8
) -> Threshold:
    r"""Return where the minority collapses as a number of the problem varies.

    The collapse is that of the classifiers of the smallest group of at least two classes. For
    non-negative features it is that of the group's features, whose classifiers coincide from there
    on. Of several thresholds it is the one next to the end of the range with more collapse (many
    samples per majority class, strong penalties, small balls); `collapse_thresholds` gives all of
    them.

    Args:
        problem: One layer, a convex loss, and groups of classes of different sizes.
        vary: A name in `ufm.problems.SEARCHED`, such as "imbalance_ratio" (n_max / n_min at fixed
            n_max) or "weight_decay" (sqrt(lambda_W lambda_H), both penalties times one factor), or
            "loss.<parameter>" for a scalar parameter of the loss.
        bounds: The range of values, lowest and highest. None, or None in place of one of them, is a
            wide range around the problem's own value.
        tol: Relative error allowed.

    Returns:
        The threshold. If there is none in the range, its value is None, and `reason` says why.

    Raises:
        ValueError: If the problem is of another kind, or an argument does not fit it.
    """
    with _in_batches():
        search = _Search(one_parameter_family(problem, vary, bounds), _checked_tol(tol))
        kind = VANISH if problem.nonnegative_features else COINCIDE
        group = search.family.stated.minority
        if group is None:
            why = "no group has two classes or more"
            return search.nothing(_Subject(f"minority {kind}", "", ""), "none", why)
        found = search.thresholds(kind, group)
        return _chosen(search.family, found) if isinstance(found, list) else found


@on_host
def collapse_thresholds(
    problem: Problem, vary: str = "imbalance_ratio", *, bounds: Any = None, tol: float = 1e-8
) -> tuple[Threshold, ...]:
    """Return every collapse along a family, in the order of its values.

    They are those of every group's classifiers and features, and of everything. For `targets` they
    are those of outputs that the targets treat alike, and of everything
    (`ufm.imbalance.target_thresholds`), as a penalty varies; what has no closed form is in the list
    with the status "unknown".

    Args:
        problem: As for `minority_collapse_threshold`; or one layer, `targets` and a convex loss.
        vary: As there; "weight_decay", "regularizer.weights" or "regularizer.features" for
            `targets`.
        bounds: As there.
        tol: As there.

    Returns:
        The thresholds in the range; an empty tuple if no collapse begins or ends.

    Raises:
        ValueError: As there.
    """
    if isinstance(problem, Problem) and not problem.one_hot:
        _checked_tol(tol)
        return target_thresholds(problem, vary, bounds)
    with _in_batches():
        search = _Search(one_parameter_family(problem, vary, bounds), _checked_tol(tol))
        found: list[Threshold] = []
        for group, size in enumerate(search.family.stated.sizes):
            for kind in (COINCIDE, VANISH):
                if size > 1 or kind == VANISH:
                    found += _listed(search.thresholds(kind, group))
        found += _listed(search.thresholds(ALL, None))
    return tuple(sorted(found, key=lambda threshold: threshold.value or 0.0))


@contextlib.contextmanager
def _in_batches() -> Iterator[None]:
    """Compute in double precision, and let arrays (B,) broadcast against arrays (G, B)."""
    with double_precision(), jax.numpy_rank_promotion("allow"):
        yield


def _listed(found: "list[Threshold] | Threshold") -> list[Threshold]:
    return found if isinstance(found, list) else []


def _checked_tol(tol: Any) -> float:
    if not (isinstance(tol, (int, float)) and 0 < tol < 1):
        raise ArgumentError("tol", "must be between 0 and 1", tol)
    return float(tol)


def _chosen(family: OneParameterFamily, found: list[Threshold]) -> Threshold:
    """Return the threshold next to a collapsed end of the range; the end of more collapse first."""
    last = found[-1] if found[-1].side != "below" else None
    first = found[0] if found[0].side != "above" else None
    ordered = (first, last) if family.search.upward is False else (last, first)
    return next((threshold for threshold in ordered if threshold is not None), found[0])


class _Evaluated(NamedTuple):
    """Certified solves along a family.

    Attributes:
        ratios: Dual ratios of the modes within each group, and of those between groups, shape
            (G + 1, B).
        zero: Whether they may be zero, shape (G + 1, B).
        gaps: Certified relative gaps, shape (B,).
        barrier: The part of the gaps that the barrier may have left, shape (B,). A path that has
            converged ended at `PATH_GAP`, and the rest is the rounding of the bound.
        known: Whether the gaps are small, shape (B,).
    """

    ratios: np.ndarray
    zero: np.ndarray
    gaps: np.ndarray
    barrier: np.ndarray
    known: np.ndarray


def _measured(problem: GroupProblem, weight_exponent: Any) -> tuple[GroupMinimum, Array, Array]:
    minimum = certified(problem, jnp.asarray(PATH_GAP), weight_exponent)
    evidence, logits = minimum.evidence, minimum.logits
    ratios = jnp.concatenate([evidence.within, evidence.between[None]])
    # Where a norm ball is not filled its dual rows vanish, and their ratios mean nothing: the
    # logits tell.
    sizes = jnp.concatenate(
        [jnp.abs(logits.within), jnp.max(jnp.abs(logits.between), axis=(0, 1))[None]]
    )
    alone = jnp.concatenate([problem.sizes <= 1, jnp.zeros((1, *ratios.shape[1:]), bool)])
    return minimum, ratios, alone | (sizes < LIVE_LOGIT)


solved_with_ratios = compiled(_measured)


class _Subject(NamedTuple):
    """What a threshold is of: the collapse, its condition, and who found it."""

    name: str
    condition: str
    reference: str


class _Search:
    """All that is known along one family. The grid is solved once, for all kinds of collapse."""

    def __init__(self, family: OneParameterFamily, tol: float):
        self.family, self.tol = family, tol
        self.logarithmic = family.search.logarithmic
        low, high = (float(family.coordinate(bound)) for bound in family.bounds)
        self.grid = np.linspace(low, high, GRID)
        self.problems = family.at(self.grid)
        self.evaluations, self.worst = 0, 0.0
        self.others = 0  # solves made for other thresholds than the one at hand
        self._grid: _Evaluated | None = None

    def thresholds(self, kind: str, group: int | None) -> list[Threshold] | Threshold:
        """Return the thresholds of a kind in order, or one without a value that says why."""
        name = kind if group is None else f"{self._name(group)} {kind}"
        explicit = self._explicit(kind, group)
        if explicit is not None:
            subject = _Subject(name, explicit.text, explicit.reference)
            return self._exact(subject, explicit.function)
        ball = self.problems.gauge.bounded
        source = LAYER_PEELED if ball else CROSS_ENTROPY
        subject = _Subject(
            name, self._condition(kind), f"{source}; the finite threshold is derived here"
        )
        if self.family.stated.problem.nonnegative_features:
            why = (
                "non-negative features with a bias, or with logits of classes scaled or shifted "
                "differently: no condition is known"
            )
            return self.nothing(subject, "unknown", why)
        if ball and kind == ALL:
            why = "the norm balls are never left empty: the gradient at zero is not zero"
            return self.nothing(subject, "none", why)
        return self._continued(subject, self._modes(kind, group))

    def nothing(self, subject: _Subject, status: ThresholdStatus, reason: str) -> Threshold:
        """Return a threshold without a value."""
        return self._threshold(subject, exact=False, status=status, reason=reason)

    def _name(self, group: int) -> str:
        stated = self.family.stated
        if group == stated.minority:
            return "minority"
        is_majority = group == stated.majority and stated.minority is not None
        return "majority" if is_majority else f"group {group + 1}"

    def _explicit(self, kind: str, group: int | None) -> Explicit | None:
        if group is None:
            return vanish_all(self.problems)
        if self.family.stated.problem.nonnegative_features or kind == VANISH:
            # With non-negative features classifiers coincide where the features vanish.
            return vanish(self.problems, group)
        return coincide(self.problems, group)

    def _condition(self, kind: str) -> str:
        ball = self.problems.gauge.bounded
        multiplier, dual = ("nu", "nu") if ball else ("N sqrt(lW lH)", "sqrt(lW lH)")
        within = f"{'n_g / N' if ball else 'sqrt(n_g)'} <= {multiplier}"
        between = f"dual norm of the modes between groups <= {dual}"
        return {
            COINCIDE: within,
            VANISH: f"{within} and {between}",
            ALL: "dual norm of all modes <= sqrt(lW lH)",
        }[kind]

    def _modes(self, kind: str, group: int | None) -> list[int]:
        G = len(self.family.stated.sizes)
        if group is None:
            return list(range(G + 1))
        return [group] if kind == COINCIDE else [group, G]

    def _threshold(
        self,
        subject: _Subject,
        *,
        exact: bool,
        at: float | None = None,
        side: str | None = None,
        bracket: tuple[float, float] | None = None,
        error: float | None = None,
        status: ThresholdStatus = "found",
        reason: str = "",
    ) -> Threshold:
        variable = self.family.variable
        value = None if at is None else float(self.family.value(at))
        whole = factor = None
        if value is not None and variable.counted:
            nearest = round(value)
            outer = math.ceil(value) if side == "above" else math.floor(value)
            whole = nearest if abs(value - nearest) <= 1e-9 * nearest else outer
        if value is not None and variable.common_factor:
            factor = value / self.family.search.given
        return Threshold(
            status=status,
            value=value,
            kind=subject.name,
            vary=variable.name,
            side=side,
            condition=subject.condition,
            exact=exact,
            bracket=bracket if value is None or not exact else (value, value),
            error=None if error is None else float(error),
            evaluations=0 if exact else self.evaluations - self.others,
            relative_gap=0.0 if exact else self.worst,
            first_integer=whole,
            factor=factor,
            reference=subject.reference,
            reason=reason,
        )

    def _throughout(self, collapsed: bool, unknown: int = 0) -> str:
        low, high = self.family.bounds
        lost = f"; {unknown} of {GRID} solves are not certified" if unknown else ""
        state = "collapsed" if collapsed else "not collapsed"
        return f"{state} throughout {low:.6g} to {high:.6g}{lost}"

    # In closed form

    def _exact(
        self, subject: _Subject, function: Callable[[GroupProblem], np.ndarray]
    ) -> list[Threshold] | Threshold:
        values = function(self.problems)
        found = []
        for index in np.flatnonzero((values[:-1] >= 0) != (values[1:] >= 0)):
            ends = self.grid[index], self.grid[index + 1]
            at = float(root(lambda u, _: function(self.family.at(u))[0], *ends, ()))
            side = "above" if values[index + 1] >= 0 else "below"
            error = 4 * np.finfo(float).eps
            found.append(self._threshold(subject, exact=True, at=at, side=side, error=error))
        if found:
            return found
        reason = self._throughout(bool(values[0] >= 0))
        return self._threshold(subject, exact=True, status="none", reason=reason)

    # From certified solves

    def evaluate(self, coordinates: np.ndarray) -> _Evaluated:
        """Solve the problems at coordinates (B,), in batches of one size."""
        parts = []
        for chunk in chunks(len(coordinates), BATCH):
            part = coordinates[chunk]
            filled = np.concatenate([part, np.full(BATCH - len(part), part[-1])])
            problems = self.family.at(filled)
            minimum, ratios, zero = to_numpy(solved_with_ratios(problems, np.asarray(0.0)))
            if np.any(self._unknown(minimum)):
                again, ratios_again, zero_again = to_numpy(
                    solved_with_ratios(problems, np.asarray(1.0))
                )
                better = self._unknown(minimum) & ~self._unknown(again)
                minimum = jax.tree.map(
                    lambda old, new, better=better: np.where(better, new, old), minimum, again
                )
                ratios, zero = (
                    np.where(better, ratios_again, ratios),
                    np.where(better, zero_again, zero),
                )
            gaps = _gaps(minimum)
            barrier = np.where(minimum.status == Status.CONVERGED, np.minimum(gaps, PATH_GAP), gaps)
            solved = _Evaluated(ratios, zero, gaps, barrier, ~self._unknown(minimum))
            parts.append(_Evaluated(*(column[..., : len(part)] for column in solved)))
            self.evaluations += len(part)
            self.worst = max(
                self.worst, float(np.max(parts[-1].gaps[parts[-1].known], initial=0.0))
            )
        return _Evaluated(
            *(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True))
        )

    def _unknown(self, minimum: GroupMinimum) -> np.ndarray:
        """Return whether a solve failed: its gap decides, not how it stopped."""
        lost = np.isin(minimum.status, (Status.NON_FINITE, Status.CONTRADICTION))
        return ~(_gaps(minimum) <= LARGEST_GAP) | lost

    def _continued(self, subject: _Subject, modes: list[int]) -> list[Threshold] | Threshold:
        if self._grid is None:
            self._grid = self.evaluate(self.grid)
        known = self._grid.known
        if len(modes) == 1:  # a single class has no other to coincide with
            known = known & (np.asarray(self.problems.sizes)[modes[0]] > 1)
        collapsed = _collapsed(self._grid, modes)[known]
        places = self.grid[known]
        flips = np.flatnonzero(collapsed[:-1] != collapsed[1:])
        if flips.size == 0:
            if not known.any():
                return self.nothing(subject, "unknown", "no solve is certified")
            reason = self._throughout(bool(collapsed[0]), int(np.sum(~known)))
            return self.nothing(subject, "none", reason)
        found = []
        for flip in flips:
            pair = float(places[flip]), float(places[flip + 1])
            dead, alive = pair if collapsed[flip] else pair[::-1]
            found.append(self._between(subject, modes, dead, alive))
        return found

    def _between(self, subject: _Subject, modes: list[int], dead: float, alive: float) -> Threshold:
        """Return the threshold between a place that is collapsed and one that is not."""
        self.others = self.evaluations - len(self.grid)
        for _ in range(2):
            places = np.linspace(dead, alive, BATCH)
            solved = self.evaluate(places)
            collapsed = _collapsed(solved, modes) & solved.known
            last = int(np.argmin(collapsed)) - 1  # the last one before the first that is not
            if last < 0:
                why = "solves near the threshold are not certified"
                return self.nothing(subject, "unresolved", why)
            dead, alive = float(places[last]), float(places[last + 1])
        sign = np.sign(dead - alive)
        best, error, steep = self._best_root(modes, dead, alive)
        near, far = self._enclosed(modes, best, sign, steep, error)
        if not (error <= self._allowed(best) and near is not None):
            ends = sorted((float(self.family.value(dead)), float(self.family.value(alive))))
            reason = f"not resolved to {self.tol:g}: between {ends[0]:.10g} and {ends[1]:.10g}"
            if np.isfinite(error):
                about, relative = float(self.family.value(best)), self._relative(error, best)
                reason += f", and about {about:.10g} (relative error {relative:.2g})"
            reason += "" if near is not None else "; solves beside it do not confirm it"
            return self.nothing(subject, "unresolved", reason)
        ends = sorted((float(self.family.value(near)), float(self.family.value(far))))
        return self._threshold(
            subject,
            exact=False,
            at=best,
            side="above" if sign > 0 else "below",
            bracket=(ends[0], ends[1]),
            error=self._relative(error, best),
        )

    def _best_root(self, modes: list[int], dead: float, alive: float) -> tuple[float, float, float]:
        """Return the root of the window with the least error, its error, and how steep it is."""
        sign = np.sign(dead - alive)
        best, error, steep = dead, np.inf, 0.0
        for power in WINDOW_POWERS:
            scale = sign * 4.0**power
            near, far = (distance * scale for distance in WINDOW)
            place, uncertain, slope = self._extrapolated(modes, dead, near, far)
            # A window across another collapse, where the ratio has a kink, gives a root away from
            # the threshold that the solves show.
            outside = max(min(dead, alive) - place, place - max(dead, alive), 0.0)
            if uncertain < error and outside * slope <= 3 * BELOW:
                best, error, steep = place, uncertain, slope
            if error <= 0.5 * self._allowed(best):
                break
        return best, error, steep

    def _relative(self, error: float, place: float) -> float:
        """Return the relative error of the value that an error of the coordinate makes."""
        return error if self.logarithmic else error / max(abs(place), 1e-300)

    def _allowed(self, place: float) -> float:
        return self.tol if self.logarithmic else self.tol * abs(place)

    def _extrapolated(
        self, modes: list[int], dead: float, near: float, far: float
    ) -> tuple[float, float, float]:
        """Return where the dual ratio reaches one, the error of that, and how steep it is there.

        The ratio is fitted from `near` to `far` beyond `dead`.
        """
        low, high = sorted((dead + near, dead + far))
        limits = [
            self.family.coordinate(limit) if limit > 0 or not self.logarithmic else -np.inf
            for limit in self.family.search.limits
        ]
        low, high = max(low, limits[0]), min(high, limits[1])
        if not low < high:
            return dead, np.inf, 0.0
        nodes = 0.5 * (low + high) + 0.5 * (high - low) * np.cos(
            np.pi * (np.arange(BATCH) + 0.5) / BATCH
        )
        solved = self.evaluate(nodes)
        if not np.all(_collapsed(solved, modes) & solved.known):
            return dead, np.inf, 0.0
        closest = int(np.argmin(np.abs(nodes - dead)))
        mode = modes[int(np.argmax(solved.ratios[modes, closest]))]
        logs = np.log(solved.ratios[mode])
        curves = [Chebyshev.fit(nodes, logs, degree, domain=[low, high]) for degree in DEGREES]
        place, other = (_nearest_root(curve, dead, near) for curve in curves)
        # The barrier leaves the mode a size of the order of the gap over one less the ratio.
        error = abs(place - other) + 30 * float(np.max(solved.barrier)) / abs(near)
        return place, error, abs(float(curves[0].deriv()(place)))

    def _enclosed(
        self, modes: list[int], place: float, sign: float, slope: float, error: float
    ) -> tuple[float | None, float]:
        """Return the places closest to the root that are collapsed, and not.

        Beside the root the dual ratio is one on one side, and on the other it falls with the slope
        that was found. The first place is None if solves do not confirm that. Places within twice
        the error of the root are left out, because they may lie on its other side.
        """
        apart = 2 * error < LADDER
        places = np.concatenate([place + sign * LADDER, place - sign * LADDER])
        solved = self.evaluate(places)
        falls = -np.log(np.max(solved.ratios[modes], axis=0)) / (
            slope * np.concatenate([LADDER, LADDER])
        )
        zero = np.all(solved.zero[modes], axis=0) | (falls < 0.5)
        # Closer to the root the barrier alone keeps the ratio below one, on both sides: falls
        # exceed 1.5 there, and tell nothing.
        told = solved.known & zero & (falls > 0.5) & (falls < 1.5)
        inside = told[: LADDER.size] & apart
        outside = (solved.known & ((np.abs(falls) < 0.1) | ~zero))[LADDER.size :] & apart
        if not (inside[0] and outside[0]):
            return None, place
        steps = [
            int(np.argmin(side)) - 1 if not side.all() else LADDER.size - 1
            for side in (inside, outside)
        ]
        return float(places[steps[0]]), float(places[LADDER.size + steps[1]])


def _gaps(minimum: GroupMinimum) -> np.ndarray:
    return np.asarray(minimum.relative_gap)


def _collapsed(solved: _Evaluated, modes: list[int]) -> np.ndarray:
    """Return whether all of the modes are zero, (B,)."""
    return np.all(solved.zero[modes] & (solved.ratios[modes] < 1 - BELOW), axis=0)


def _nearest_root(curve: Chebyshev, start: float, near: float) -> float:
    """Return the root of a curve closest to `start`, by Newton's method; infinity without one."""
    slope, place = curve.deriv(), start
    for _ in range(50):
        step = float(curve(place) / slope(place))
        if not abs(step) <= abs(near):
            return math.inf if not math.isfinite(step) else place
        place -= step
        if abs(step) <= 1e-15 * max(abs(place), 1e-3):
            break
    return place
