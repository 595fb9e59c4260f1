r"""Where a model collapses as one of its numbers varies: minority collapse, features that vanish, complete collapse.

Three kinds of collapse, which are never mixed:

    classifiers coincide       w_k = w_k' and mu_k = mu_k' for all classes k, k' of a group
    features vanish            mu_k = 0 for all classes of a group (their classifiers then coincide too)
    everything vanishes        Z = 0 but for a bias

Where the condition has a closed form (`ufm.imbalance.conditions`), the threshold is its root to the
last digits. Elsewhere it is found from certified solves. A mode of the logits that is zero at the
minimum has a dual ratio below one, which is a smooth function along the path up to the threshold,
where it is one; past it the mode is alive and the ratio stays at one. So the collapsed side is
found on a grid, in batches of one size, and the ratio is continued from there to one: it is known
to the accuracy of a dual point at distances where the mode is clearly zero, but at the threshold
itself only to the root of it. Solves on both sides then enclose the result.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.polynomial import Chebyshev

from ufm._support import ArgumentError, Status, compiled, double_precision, on_host, to_numpy
from ufm.imbalance.conditions import (
    CROSS_ENTROPY,
    LAYER_PEELED,
    Explicit,
    coincide,
    vanish,
    vanish_all,
)
from ufm.problems import (
    GroupProblem,
    OneParameterFamily,
    Problem,
    one_parameter_family,
    variable_of,
)
from ufm.solving import GroupMinimum, certified
from ufm.theory import root

__all__ = ["Threshold", "collapse_thresholds", "minority_collapse_threshold"]

BATCH = 64  # problems in one compiled call: every call is filled up to it
GRID = 129  # points along the path
GAP = 1e-13
LARGEST_GAP = 1e-8  # of a solve that counts
BELOW = 1e-5  # how far below one a dual ratio is to be for its mode to be taken for zero
TINY = 1e-3  # logits above which a mode is not zero, whatever the ratio
NEAR, WIDE = 5e-3, 4e-2  # where the dual ratio is continued from, in units of the coordinate
WINDOWS = (
    0,
    0.5,
    1,
    -1,
    -2,
    -3,
    -4,
)  # powers of four of the distances: further away rounding weighs less, closer by curvature does
LADDER = 10.0 ** np.linspace(-3.0, -9.0, BATCH // 2)
DEGREES = (7, 5)

COINCIDE, VANISH, ALL = "classifiers coincide", "features vanish", "everything vanishes"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The value of a number of a problem at which a collapse begins.

    status: "found"; "none" where the range has no threshold; "unresolved" where solves show one but
    do not pin it down to the tolerance;
        "unknown" where no condition for this collapse is known, or no solve is certified.
    value: the threshold, None where there is none in the range; `reason` then says why.
    kind: what collapses, such as "minority classifiers coincide".
    vary: which number varies.
    side: "above" or "below", where along the path the collapse is (the threshold included).
    condition: the condition of the collapse, in words.
    exact: whether it is the root of a condition in closed form, not of certified solves.
    bracket: values that are on the two sides of the threshold for certain; for an exact one the
    threshold itself, twice. error: estimated relative error of the value. evaluations: certified
    solves, and `relative_gap` the largest certified gap among them (zero without any).
    first_integer: for a number of classes, the first whole number that is collapsed. factor: for
    weight decay, what both penalties are to be multiplied by. reference: who found the condition.
    reason: empty, or why there is no value.
    """

    status: str
    value: float | None
    kind: str
    vary: str
    side: str | None
    condition: str
    exact: bool
    bracket: tuple[float, float] | None
    error: float | None
    evaluations: int
    relative_gap: float
    first_integer: int | None
    factor: float | None
    reference: str
    reason: str

    @property
    def found(self) -> bool:
        """Whether there is a threshold in the range."""
        return self.status == "found"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain values."""
        fields = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.kind}: no threshold in {self.vary} ({self.reason})"
        how = (
            "exact"
            if self.exact
            else f"{self.evaluations} certified solves, gaps <= {self.relative_gap:.0e}"
        )
        sign = ">=" if self.side == "above" else "<="
        variable = variable_of(self.vary)
        name = variable.short if variable is not None else self.vary
        extra = (
            f", {self.first_integer} as a whole number" if self.first_integer is not None else ""
        )
        extra += (
            f", {self.factor:.10g} times the penalties given" if self.factor is not None else ""
        )
        return f"{self.kind} at {name} {sign} {self.value:.10g}{extra} ({how}; {self.condition})"


@on_host
def minority_collapse_threshold(
    problem: Problem, vary: str = "imbalance_ratio", *, bounds: Any = None, tol: float = 1e-8
) -> Threshold:
    r"""Return where the minority collapses as a number of the problem varies.

    The collapse is that of the classifiers of the smallest group of at least two classes; for
    non-negative features that of its features, whose classifiers coincide from there on. Of several
    thresholds it is the one that the far end of the range lies beyond (many samples per majority
    class, strong penalties, small balls); `collapse_thresholds` gives all of them.

    Args:
        problem: of one layer, with a convex loss, and groups of classes of different sizes.
        vary: "imbalance_ratio" (n_max / n_min at fixed n_max), "weight_decay" (sqrt(lambda_W
            lambda_H), both penalties times one factor), "num_minority" (K fixed), "minority_count",
            "majority_count", "regularizer.weights", "regularizer.features", or "loss.<parameter>"
            for a scalar parameter of the loss.
        bounds: the range of values searched, lowest and highest; a wide one around the problem's
            own value where it, or one of the two, is None.
        tol: relative error allowed.

    Returns:
        The threshold. Where there is none in the range its value is None, and `reason` says why.

    Raises:
        ValueError: where the problem is of another kind, or an argument does not fit it.
    """
    with _in_batches():
        search = _Search(one_parameter_family(problem, vary, bounds), _checked_tol(tol))
        kind = VANISH if problem.nonnegative_features else COINCIDE
        group = search.path.stated.minority
        if group is None:
            return search.nothing(
                f"minority {kind}", "", "", "none", "no group has two classes or more"
            )
        found = search.thresholds(kind, group)
        if not isinstance(found, list):
            return found
        return _chosen(search.path, found)


@on_host
def collapse_thresholds(
    problem: Problem, vary: str = "imbalance_ratio", *, bounds: Any = None, tol: float = 1e-8
) -> tuple[Threshold, ...]:
    """Return every collapse along a path, in the order of its values: of every group's classifiers and features, and of everything.

    Args:
        problem: as for `minority_collapse_threshold`.
        vary: as there.
        bounds: as there.
        tol: as there.

    Returns:
        The thresholds in the range; an empty tuple where nothing begins or ends to collapse.

    Raises:
        ValueError: as there.
    """
    with _in_batches():
        search = _Search(one_parameter_family(problem, vary, bounds), _checked_tol(tol))
        found: list[Threshold] = []
        for group, size in enumerate(search.path.stated.sizes):
            for kind in (COINCIDE, VANISH):
                if size > 1 or kind == VANISH:
                    found += _listed(search.thresholds(kind, group))
        found += _listed(search.thresholds(ALL, None))
    return tuple(sorted(found, key=lambda threshold: threshold.value or 0.0))


@contextlib.contextmanager
def _in_batches() -> Iterator[None]:
    """Compute in double precision, with numbers (B,) that meet numbers (G, B) of a batch, whatever the process allows."""
    with double_precision(), jax.numpy_rank_promotion("allow"):
        yield


def _listed(found: "list[Threshold] | Threshold") -> list[Threshold]:
    return found if isinstance(found, list) else []


def _checked_tol(tol: Any) -> float:
    if not (isinstance(tol, (int, float)) and 0 < tol < 1):
        raise ArgumentError("tol", "must be between 0 and 1", tol)
    return float(tol)


def _chosen(path: OneParameterFamily, found: list[Threshold]) -> Threshold:
    """Return the threshold that an end of the range lies beyond: the end of more collapse, if it does."""
    last = found[-1] if found[-1].side != "below" else None
    first = found[0] if found[0].side != "above" else None
    ordered = (first, last) if path.search.upward is False else (last, first)
    return next((threshold for threshold in ordered if threshold is not None), found[0])


class _Evaluated(NamedTuple):
    """Certified solves along a path.

    ratios: (G + 1, B) dual ratios of the modes within each group, and of those between groups.
    zero: (G + 1, B) whether they may be zero. gaps: (B,) certified relative gaps. barrier: (B,) the
    part that the barrier may have left of them: a path that has converged ended at GAP, and the
    rest is the rounding of the bound. known: (B,) whether the gaps are small.
    """

    ratios: np.ndarray
    zero: np.ndarray
    gaps: np.ndarray
    barrier: np.ndarray
    known: np.ndarray


def _measured(problem: GroupProblem, weight_exponent: Any) -> tuple[GroupMinimum, Array, Array]:
    minimum = certified(problem, jnp.asarray(GAP), weight_exponent)
    evidence, logits = minimum.evidence, minimum.logits
    ratios = jnp.concatenate([evidence.within, evidence.between[None]])
    # Where a norm ball is not filled its dual rows vanish, and their ratios mean nothing: the
    # logits tell.
    sizes = jnp.concatenate(
        [jnp.abs(logits.within), jnp.max(jnp.abs(logits.between), axis=(0, 1))[None]]
    )
    alone = jnp.concatenate([problem.sizes <= 1, jnp.zeros((1, *ratios.shape[1:]), bool)])
    return minimum, ratios, alone | (sizes < TINY)


_solved = compiled(_measured)


class _Search:
    """All that is known along one path: the grid is solved once, for all kinds of collapse."""

    def __init__(self, path: OneParameterFamily, tol: float):
        self.path, self.tol = path, tol
        low, high = (float(path.coordinate(bound)) for bound in path.bounds)
        self.low, self.high = low, high
        self.grid = np.linspace(low, high, GRID)
        self.family = path.at(self.grid)
        self.evaluations, self.worst = 0, 0.0
        self.others = 0  # solves made for other thresholds than the one at hand
        self._grid: _Evaluated | None = None

    def thresholds(self, kind: str, group: int | None) -> list[Threshold] | Threshold:
        """Return the thresholds of a kind in order, or one without a value that says why there is none."""
        name = kind if group is None else f"{self._name(group)} {kind}"
        explicit = self._explicit(kind, group)
        if explicit is not None:
            return self._exact(name, explicit)
        nonnegative, ball = self.path.stated.problem.nonnegative_features, self.family.gauge.bounded
        condition = self._condition(kind)
        reference = (
            f"{LAYER_PEELED if ball else CROSS_ENTROPY}; the finite threshold is derived here"
        )
        if nonnegative:
            why = "non-negative features with a bias, or with logits of classes scaled or shifted differently: no condition is known"
            return self.nothing(name, condition, reference, "unknown", why)
        if ball and kind == ALL:
            why = "the norm balls are never left empty: the gradient at zero is not zero"
            return self.nothing(name, condition, reference, "none", why)
        return self._continued(name, condition, reference, self._modes(kind, group))

    def nothing(
        self, name: str, condition: str, reference: str, status: str, reason: str
    ) -> Threshold:
        """Return a threshold without a value."""
        return self._threshold(
            name, condition, reference, exact=False, status=status, reason=reason
        )

    def _name(self, group: int) -> str:
        path = self.path
        if group == path.stated.minority:
            return "minority"
        return (
            "majority"
            if group == path.stated.majority and path.stated.minority is not None
            else f"group {group + 1}"
        )

    def _explicit(self, kind: str, group: int | None) -> Explicit | None:
        if group is None:
            return vanish_all(self.family)
        if self.path.stated.problem.nonnegative_features or kind == VANISH:
            # With non-negative features classifiers coincide where the features vanish.
            return vanish(self.family, group)
        return coincide(self.family, group)

    def _condition(self, kind: str) -> str:
        bounded = self.family.gauge.bounded
        multiplier, dual = ("nu", "nu") if bounded else ("N sqrt(lW lH)", "sqrt(lW lH)")
        share = "n_g / N" if bounded else "sqrt(n_g)"
        within = f"{share} <= {multiplier}"
        between = f"dual norm of the modes between groups <= {dual}"
        return {
            COINCIDE: within,
            VANISH: f"{within} and {between}",
            ALL: "dual norm of all modes <= sqrt(lW lH)",
        }[kind]

    def _modes(self, kind: str, group: int | None) -> list[int]:
        G = len(self.path.stated.sizes)
        if group is None:
            return list(range(G + 1))
        return [group] if kind == COINCIDE else [group, G]

    def _threshold(
        self,
        name: str,
        condition: str,
        reference: str,
        *,
        exact: bool,
        at: float | None = None,
        side: str | None = None,
        bracket: tuple[float, float] | None = None,
        error: float | None = None,
        status: str = "found",
        reason: str = "",
    ) -> Threshold:
        path = self.path
        value = None if at is None else float(path.value(at))
        whole = None
        if value is not None and path.variable.counted:
            nearest = round(value)
            at_whole = abs(value - nearest) <= 1e-9 * nearest
            whole = (
                nearest if at_whole else math.ceil(value) if side == "above" else math.floor(value)
            )
        return Threshold(
            status=status,
            value=value,
            kind=name,
            vary=path.variable.name,
            side=side,
            condition=condition,
            exact=exact,
            bracket=bracket if value is None or not exact else (value, value),
            error=error,
            evaluations=0 if exact else self.evaluations - self.others,
            relative_gap=0.0 if exact else self.worst,
            first_integer=whole,
            factor=value / path.search.given
            if value is not None and path.variable.common_factor
            else None,
            reference=reference,
            reason=reason,
        )

    def _throughout(self, collapsed: bool, unknown: int = 0) -> str:
        low, high = self.path.bounds
        lost = f"; {unknown} of {GRID} solves are not certified" if unknown else ""
        return f"{'collapsed' if collapsed else 'not collapsed'} throughout {low:.6g} to {high:.6g}{lost}"

    # In closed form

    def _exact(self, name: str, explicit: Explicit) -> list[Threshold] | Threshold:
        values = explicit.function(self.family)
        found = []
        for index in np.flatnonzero((values[:-1] >= 0) != (values[1:] >= 0)):
            ends = self.grid[index], self.grid[index + 1]
            at = float(root(lambda u, _: explicit.function(self.path.at(u))[0], *ends, ()))
            side = "above" if values[index + 1] >= 0 else "below"
            found.append(
                self._threshold(
                    name,
                    explicit.text,
                    explicit.reference,
                    exact=True,
                    at=at,
                    side=side,
                    error=4 * np.finfo(float).eps,
                )
            )
        if found:
            return found
        reason = self._throughout(bool(values[0] >= 0))
        return self._threshold(
            name, explicit.text, explicit.reference, exact=True, status="none", reason=reason
        )

    # From certified solves

    def evaluate(self, coordinates: np.ndarray) -> _Evaluated:
        """Solve the problems at coordinates (B,), in batches of one size."""
        parts = []
        for start in range(0, len(coordinates), BATCH):
            part = coordinates[start : start + BATCH]
            filled = np.concatenate([part, np.full(BATCH - len(part), part[-1])])
            problems = self.path.at(filled)
            minimum, ratios, zero = to_numpy(_solved(problems, np.asarray(0.0)))
            if np.any(self._unknown(minimum)):
                again, ratios_again, zero_again = to_numpy(_solved(problems, np.asarray(1.0)))
                better = self._unknown(minimum) & ~self._unknown(again)
                minimum = jax.tree.map(
                    lambda old, new, better=better: np.where(better, new, old), minimum, again
                )
                ratios, zero = (
                    np.where(better, ratios_again, ratios),
                    np.where(better, zero_again, zero),
                )
            gaps = _gaps(minimum)
            barrier = np.where(minimum.status == Status.CONVERGED, np.minimum(gaps, GAP), gaps)
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

    def _continued(
        self, name: str, condition: str, reference: str, modes: list[int]
    ) -> list[Threshold] | Threshold:
        if self._grid is None:
            self._grid = self.evaluate(self.grid)
        known = self._grid.known
        if len(modes) == 1:  # a single class has no other to coincide with
            known = known & (np.asarray(self.family.sizes)[modes[0]] > 1)
        collapsed = _collapsed(self._grid, modes)[known]
        places = self.grid[known]
        flips = np.flatnonzero(collapsed[:-1] != collapsed[1:])
        if flips.size == 0:
            if not known.any():
                return self.nothing(name, condition, reference, "unknown", "no solve is certified")
            reason = self._throughout(bool(collapsed[0]), int(np.sum(~known)))
            return self.nothing(name, condition, reference, "none", reason)
        found = []
        for flip in flips:
            dead, alive = (
                (places[flip], places[flip + 1])
                if collapsed[flip]
                else (places[flip + 1], places[flip])
            )
            found.append(self._root(name, condition, reference, modes, float(dead), float(alive)))
        return found

    def _root(
        self, name: str, condition: str, reference: str, modes: list[int], dead: float, alive: float
    ) -> Threshold:
        assert self._grid is not None
        self.others = self.evaluations - len(self.grid)
        for _ in range(2):
            places = np.linspace(dead, alive, BATCH)
            solved = self.evaluate(places)
            collapsed = _collapsed(solved, modes) & solved.known
            last = (
                int(np.argmin(collapsed)) - 1
            )  # the last collapsed one before the first that is not
            if last < 0:
                return self.nothing(
                    name,
                    condition,
                    reference,
                    "unresolved",
                    "solves near the threshold are not certified",
                )
            dead, alive = float(places[last]), float(places[last + 1])
        sign = np.sign(dead - alive)
        best, error, steep = dead, np.inf, 0.0
        for power in WINDOWS:
            scale = sign * 4.0**power
            root, uncertain, slope = self._extrapolated(modes, dead, NEAR * scale, WIDE * scale)
            # A window across another collapse, where the ratio has a kink, leads elsewhere than to
            # where solves have it.
            outside = max(min(dead, alive) - root, root - max(dead, alive), 0.0)
            if uncertain < error and outside * slope <= 3 * BELOW:
                best, error, steep = root, uncertain, slope
            if error <= 0.5 * self._allowed(best):
                break
        near, far = self._enclosed(modes, best, sign, steep)
        if not (error <= self._allowed(best) and near is not None):
            ends = sorted((float(self.path.value(dead)), float(self.path.value(alive))))
            reason = f"not resolved to {self.tol:g}: between {ends[0]:.10g} and {ends[1]:.10g}"
            if np.isfinite(error):
                reason += f", and about {float(self.path.value(best)):.10g} (relative error {self._relative(error, best):.2g})"
            reason += "" if near is not None else "; solves beside it do not confirm it"
            return self.nothing(name, condition, reference, "unresolved", reason)
        ends = sorted((float(self.path.value(near)), float(self.path.value(far))))
        return self._threshold(
            name,
            condition,
            reference,
            exact=False,
            at=best,
            side="above" if sign > 0 else "below",
            bracket=(ends[0], ends[1]),
            error=self._relative(error, best),
        )

    def _relative(self, error: float, root: float) -> float:
        """Return the relative error of the value, of an error of the coordinate."""
        return error if self.path.search.logarithmic else error / max(abs(root), 1e-300)

    def _allowed(self, root: float) -> float:
        return self.tol if self.path.search.logarithmic else self.tol * abs(root)

    def _extrapolated(
        self, modes: list[int], dead: float, near: float, far: float
    ) -> tuple[float, float, float]:
        """Return where the dual ratio reaches one, continued from `near` to `far` beyond `dead`; how sure that is; and how steep."""
        low, high = sorted((dead + near, dead + far))
        limits = [
            self.path.coordinate(limit)
            if limit > 0 or not self.path.search.logarithmic
            else -np.inf
            for limit in self.path.search.limits
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
        root, other = (_first_root(curve, dead, near) for curve in curves)
        # The barrier keeps a mode of the order of the gap over one less the ratio alive.
        return (
            root,
            abs(root - other) + 30 * float(np.max(solved.barrier)) / abs(near),
            abs(float(curves[0].deriv()(root))),
        )

    def _enclosed(
        self, modes: list[int], root: float, sign: float, slope: float
    ) -> tuple[float | None, float]:
        """Return the places closest to the root that are collapsed, and not; None if solves do not confirm them.

        Beside the root the dual ratio is one on one side, and on the other it falls with the slope
        that was found.
        """
        places = np.concatenate([root + sign * LADDER, root - sign * LADDER])
        solved = self.evaluate(places)
        falls = -np.log(np.max(solved.ratios[modes], axis=0)) / (
            slope * np.concatenate([LADDER, LADDER])
        )
        zero = np.all(solved.zero[modes], axis=0) | (falls < 0.5)
        inside = (solved.known & zero & (falls > 0.5))[: LADDER.size]
        outside = (solved.known & ((np.abs(falls) < 0.1) | ~zero))[LADDER.size :]
        if not (inside[0] and outside[0]):
            return None, root
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


def _first_root(curve: Chebyshev, start: float, near: float) -> float:
    """Return the root of a curve closest to `start`, by Newton's method."""
    slope, place = curve.deriv(), start
    for _ in range(50):
        step = float(curve(place) / slope(place))
        if not abs(step) <= abs(near):
            return math.inf if not math.isfinite(step) else place
        place -= step
        if abs(step) <= 1e-15 * max(abs(place), 1e-3):
            break
    return place
