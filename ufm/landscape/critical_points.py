"""Kinds of points: a global or local minimum, a strict saddle, degenerate, or not critical.

First order. The relative gradient (sum over blocks of ||gradient|| max(||block||, typical norm) /
objective, in balanced coordinates) must be at most `tol`. Entries of non-negative features that are
zero may have a gradient that keeps them there. Inputs of ReLUs at zero may have any slope in [0, 1]
(`ufm.solving.relu.smooth_pieces`).

Second order, in balanced coordinates, along the directions in which the point is not held. F is the
Hessian there.

- A strict saddle has an eigenvalue of F that is negative beyond rounding, a concave kink, a ReLU
  unit with zero weights that lowers the objective by coming back, or a feature entry at zero
  without a multiplier that does so. Each of these counts only if the objective was evaluated along
  the way out and found lower.
- A local minimum has no negative eigenvalue, and as many zero eigenvalues as there are continuous
  symmetries that move the point (`ufm.landscape.symmetries`). All its kinks are convex (a few may
  have no signal, if no slopes there give negative curvature). All its zero units raise the
  objective however they come back. With B the entries of non-negative features at zero without a
  multiplier, the Schur complement H_BB - H_BF F^+ H_FB is strictly copositive.
- If more directions are flat, random flat directions are followed, and the point is corrected back.
  If the objective is level there and as many directions are flat, the point lies in a valley of
  local minima. This is evidence, not proof: the walks are few and short.
- A global minimum has a certificate that holds to `tol`. Flat directions do not matter.
- Any other point is degenerate, and the reasons are listed.

Rounding. An eigenvalue counts as zero up to 10 (eps sqrt(m) ||H|| + ||g|| / r). The first term is
the rounding of the Hessian and its eigenvalues. The second is the curvature that a small gradient g
gives to the flat direction of a symmetry, with r the length of the shortest tangent vector. There
must be a gap: if the smallest other eigenvalue is not ten times larger, the point is degenerate.
"""

import itertools
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, checked_positive, double_precision, on_host, printed
from ufm.certificates import Certificate, certificate_of, relaxed_norm, violating_atom
from ufm.landscape.dead_units import Growth, unit_growth, with_grown_unit
from ufm.landscape.spectrum import DENSE
from ufm.landscape.symmetries import Orbit, orbit
from ufm.problems import Parameters, Problem
from ufm.solving.relu import (
    ZERO_SHARE,
    SmoothPiece,
    correction,
    hessian_along,
    idle,
    kink_gradients,
    kink_signals,
    moved,
    objective_at,
    parameter_step,
    products,
    smooth_piece_at,
    tangent_basis,
    with_slopes,
)

__all__ = ["CriticalKind", "CriticalPoint", "Escape", "Kinks", "classify"]

# What a point is. It is no `Status`: a solve converges to minima and saddles alike.
CriticalKind = Literal[
    "global minimum", "local minimum", "strict saddle", "degenerate", "not critical"
]
EPSILON = float(np.finfo(np.float64).eps)
SAFETY = 10.0  # times the estimated noise of an eigenvalue, below which it counts as zero
CLEAR_GAP = 10.0  # least ratio of the smallest other eigenvalue to the threshold
LENGTHS = np.geomspace(0.3, 1e-6, 21)  # of steps along a way out, relative to the point's norm
WEAK_KINKS = 5  # number of kinks up to which all 2^number pieces are tried
PIECES_UNKNOWNS = 600  # unknowns up to which pieces are tried at all
PIECE_STARTS, PIECE_STEPS = 8, 4  # random pieces, and steps from each to a better one
WALKS = 3  # random flat directions that are followed
WALK_LENGTHS = (1e-3, 3e-4, 1e-4)  # relative to the point's norm
CORRECTIONS = 6  # Newton steps back to where the gradient vanishes
LEVEL = 1e-12  # relative difference up to which two objectives are level
ROUNDED = 64 * EPSILON  # relative decrease of the objective beyond which it is one


@printed
class Escape(NamedTuple):
    """A way down, evaluated.

    Attributes:
        step: Added to the parameters, it lowers the objective.
        decreases: Decrease of the objective along the direction, and along the opposite one (each
            at its best length; zero if it does not fall, or does not exist).
        reason: What the direction follows.
    """

    step: Parameters
    decreases: tuple[float, float]
    reason: str

    def __str__(self) -> str:
        there, back = self.decreases
        return (
            f"the objective falls by {there:.6g}, or {back:.6g} the other way, along {self.reason}"
        )


@printed
class Kinks(NamedTuple):
    """ReLU inputs at zero, except those of units with zero weights.

    Attributes:
        number: How many there are.
        slopes: Slopes in [0, 1] at which the gradient is smallest, shape (number,).
        margin: Least distance of a slope from 0 and 1.
        concave: Number of kinks at which the objective falls on leaving, unless other kinks hold
            them.
        weak: Number of kinks that do not matter to first order.
        zero_units: Number of units with zero weights in all hidden layers.
    """

    number: int
    slopes: Float[np.ndarray, " number"]
    margin: float
    concave: int
    weak: int
    zero_units: int

    def __str__(self) -> str:
        return (
            f"{self.number} inputs of ReLUs at zero, slopes within {self.margin:.2g} of 0 or 1; "
            f"{self.zero_units} units with zero weights"
        )


@printed
class CriticalPoint(NamedTuple):
    """The result of `classify`.

    Attributes:
        kind: The kind of the point.
        objective: The objective.
        relative_gradient: The relative gradient.
        lowest: Lowest eigenvalue of the Hessian in balanced coordinates, along the directions in
            which the point is not held; NaN if not computed.
        highest: Highest eigenvalue; NaN if not computed.
        threshold: Absolute value up to which an eigenvalue counts as zero.
        num_flat: Number of zero eigenvalues.
        gap: Absolute value of the smallest other eigenvalue over the threshold; infinite without
            any.
        num_negative: Number of eigenvalues below minus the threshold.
        symmetry_dimension: Dimension of the orbit under continuous symmetries.
        num_held: Number of dimensions held by constraints and kinks.
        escape: A way down, for strict saddles.
        certificate: The certificate; None if there is no bound for the model.
        kinks: The kinks; None without ReLU layers.
        valley: Whether directions that are flat beyond the symmetries were followed and found
            level, with as many flat directions elsewhere.
        reasons: What a degenerate point leaves open, or why the point is not critical.
    """

    kind: CriticalKind
    objective: float
    relative_gradient: float
    lowest: float
    highest: float
    threshold: float
    num_flat: int
    gap: float
    num_negative: int
    symmetry_dimension: int
    num_held: int
    escape: Escape | None
    certificate: Certificate | None
    kinks: Kinks | None
    valley: bool
    reasons: tuple[str, ...]

    @property
    def is_minimum(self) -> bool:
        """Whether the point is a global or local minimum."""
        return self.kind in ("global minimum", "local minimum")

    def __str__(self) -> str:
        lines = [
            f"{self.kind}, objective {self.objective:.12g}, "
            f"relative gradient {self.relative_gradient:.2g}",
            f"eigenvalues in [{self.lowest:.4g}, {self.highest:.4g}]: "
            f"{self.num_negative} negative, {self.num_flat} zero "
            f"(up to {self.threshold:.2g}), symmetries account for {self.symmetry_dimension}; "
            f"{self.num_held} dimensions held",
        ]
        if self.kinks is not None:
            lines.append(str(self.kinks))
        if self.escape is not None:
            fall = max(self.escape.decreases)
            lines.append(f"the objective falls by {fall:.3g} along {self.escape.reason}")
        if self.certificate is not None:
            lines.append(f"certificate: {self.certificate}")
        if self.valley:
            lines.append(
                "directions that are flat beyond the symmetries were followed, and are level: a "
                "valley of minima"
            )
        return "\n".join([*lines, *self.reasons])


@on_host
def classify(
    problem: Problem,
    parameters: Any,
    *,
    tol: float = 1e-8,
    near: float = ZERO_SHARE,
    certificate: Certificate | None = None,
) -> CriticalPoint:
    """Return the kind of a point.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`, such as a `Solution`. Features
            have one row per class or per sample.
        tol: Relative gradient up to which a point counts as critical, and relative gap up to which
            a certificate counts.
        near: Inputs of ReLUs, weights of units and entries of non-negative features below this
            share of the largest of their layer count as zero. A point that is only near a kink must
            be moved onto it to be critical to `tol`.
        certificate: A certificate made for this point. If not given it is made here, except the
            bracket of deep models, which needs solves (`ufm.certify` makes it).

    Raises:
        ValueError: If shapes do not fit, parameters violate the constraints, a tolerance is not
            positive, or the certificate is for another point.
    """
    tol, near = checked_positive("tol", tol), checked_positive("near", near)
    with double_precision():
        local = smooth_piece_at(problem, parameters, near=near)
        value = objective_at(local, local.parameters)
        if certificate is None:
            certificate = certificate_of(problem, local.parameters, tolerance=tol)
        elif not abs(certificate.objective - value) <= 1e-9 * abs(value):
            raise ArgumentError(
                "certificate",
                f"is for a point with objective {certificate.objective!r}, this one has "
                f"{value!r}; leave it out",
            )
        found = _Finding(local, value, certificate, tol, near)
        return found.point()


class _Finding:
    """One call of `classify`."""

    def __init__(
        self,
        local: SmoothPiece,
        value: float,
        certificate: Certificate | None,
        tol: float,
        near: float,
    ):
        self.local, self.value, self.certificate, self.tol, self.near = (
            local,
            value,
            certificate,
            tol,
            near,
        )
        self.orbit: Orbit = orbit(local)
        self.kinks: Kinks | None = None
        self.lowest = self.highest = self.threshold = np.nan
        self.num_flat = self.num_negative = self.num_held = 0
        self.gap = np.inf
        self.reasons: list[str] = []
        self.flat_reasons: list[str] = []
        self.valley = False
        self.normal = kink_gradients(local)
        self.signal, self.concave, self.weak = np.zeros(0), np.zeros(0, bool), np.zeros(0, bool)
        if local.problem.activation == "relu" and local.problem.hidden_dims:
            self._read_kinks()

    flat: np.ndarray
    curved: np.ndarray
    curvatures: np.ndarray

    def _read_kinks(self) -> None:
        """Read the signals of kinks, and count them."""
        local = self.local
        self.signal, floor = kink_signals(local)
        slopes = local.at_kinks(local.slopes)
        # Smaller signals come from rounding, or from a gradient that is not quite zero.
        self.concave, self.weak = self.signal < -floor, np.abs(self.signal) <= floor
        weighing = slopes[~self.weak]
        margin = float(np.min(np.minimum(weighing, 1 - weighing))) if weighing.size else 0.5
        zero_units = int(sum(np.sum(mask) for mask in local.zero_units))
        self.kinks = Kinks(
            slopes.size,
            slopes,
            margin,
            int(np.sum(self.concave)),
            int(np.sum(self.weak)),
            zero_units,
        )

    def point(self) -> CriticalPoint:
        """Return the answer."""
        if not self.local.relative_gradient <= self.tol:
            self.reasons = [
                f"the relative gradient is {self.local.relative_gradient:.3g}, above {self.tol:g}"
            ]
            return self._answer("not critical", None)
        escape = self._spectrum() or self._leaving_kinks() or self._growing_units()
        if escape is not None:
            self.reasons = []
            return self._answer("strict saddle", escape)
        if (
            self.certificate is not None
            and self.certificate.holds
            and self.certificate.relative_gap <= self.tol
        ):
            return self._answer("global minimum", None)
        if self.flat_reasons and self.reasons == self.flat_reasons and self._follow():
            return self._answer("local minimum", None)
        return self._answer("degenerate" if self.reasons else "local minimum", None)

    def _answer(self, kind: CriticalKind, escape: Escape | None) -> CriticalPoint:
        return CriticalPoint(
            kind=kind,
            objective=self.value,
            relative_gradient=self.local.relative_gradient,
            lowest=self.lowest,
            highest=self.highest,
            threshold=self.threshold,
            num_flat=self.num_flat,
            gap=self.gap,
            num_negative=self.num_negative,
            symmetry_dimension=self.orbit.dimension,
            num_held=self.num_held,
            escape=escape,
            certificate=self.certificate,
            kinks=self.kinks,
            valley=self.valley,
            reasons=tuple(self.reasons),
        )

    def _spectrum(self) -> Escape | None:
        """Judge the eigenvalues of the Hessian; return a way down if there is one."""
        local = self.local
        # The eigenvalues of the weights of zero units are their penalties: no need to diagonalise.
        apart = idle(local)
        size = local.x.size - int(np.sum(apart))
        if size > DENSE:
            self.reasons.append(f"{size} unknowns: zero eigenvalues are counted up to {DENSE}")
            return None
        basis = tangent_basis(local, apart)
        self.num_held = size - len(basis)
        reduced = hessian_along(local, basis)
        values, vectors = np.linalg.eigh(reduced)
        vectors = vectors.T @ basis
        penalties = products(local, apart[None, :].astype(np.float64))[0][apart]
        free = np.where(local.at_bound, np.minimum(local.gradient, 0), local.gradient)
        largest = float(np.hypot(np.linalg.norm(reduced), np.linalg.norm(penalties)))
        noise = (
            EPSILON * np.sqrt(local.x.size) * max(largest, EPSILON)
            + float(np.linalg.norm(free)) / self.orbit.reach
        )
        self.threshold = float(SAFETY * noise)
        every = np.sort(np.concatenate([values, penalties]))
        self.lowest, self.highest = (
            (float(every[0]), float(every[-1])) if every.size else (np.inf, np.inf)
        )
        self.num_flat, self.num_negative = (
            int(np.sum(np.abs(every) <= self.threshold)),
            int(np.sum(every < -self.threshold)),
        )
        flat = np.abs(values) <= self.threshold
        self.gap = float(
            np.min(np.abs(every[np.abs(every) > self.threshold]), initial=np.inf) / self.threshold
        )
        if self.num_negative:
            escape = self._along(vectors[0], "an eigenvector of negative curvature")
            if escape is not None:
                return escape
            halfway = (
                " with slopes of one half at kinks without a signal" if np.any(self.weak) else ""
            )
            self.reasons.append(
                f"an eigenvalue of {self.lowest:.3g} is negative{halfway}, but no lower value was "
                "found along its eigenvector"
            )
        if self.num_flat != self.orbit.dimension:
            self.flat_reasons = [
                f"{self.num_flat} eigenvalues are zero, and symmetries account for "
                f"{self.orbit.dimension} of them"
            ]
            self.reasons += self.flat_reasons
        if self.gap < CLEAR_GAP:
            self.reasons.append(
                f"no gap: the smallest other eigenvalue is {self.gap:.2g} times the threshold"
            )
        self.flat, self.curved, self.curvatures = vectors[flat], vectors[~flat], values[~flat]
        return self._entries_at_bound(vectors[~flat], values[~flat])

    def _entries_at_bound(self, vectors: np.ndarray, values: np.ndarray) -> Escape | None:
        """Judge feature entries at zero that no multiplier keeps there.

        The Hessian must be copositive along them.
        """
        local = self.local
        multipliers = local.gradient[local.at_bound]
        if not multipliers.size:
            return None
        floor = max(
            ZERO_SHARE * float(np.max(np.abs(multipliers))),
            self.tol * float(np.linalg.norm(local.x)) * abs(self.highest),
        )
        weak = np.flatnonzero(local.at_bound)[multipliers <= floor]
        if not weak.size:
            return None
        rows = products(local, np.eye(local.x.size)[weak])
        coupling = vectors @ rows.T
        schur = rows[:, weak] - coupling.T @ (coupling / values[:, None])
        schur = 0.5 * (schur + schur.T)
        shift = max(float(np.linalg.eigvalsh(schur)[-1]), 0.0) + self.threshold
        lower, upright = np.linalg.eigh(shift * np.eye(weak.size) - schur)
        root = upright * np.sqrt(np.maximum(lower, 0))
        # The largest <h, (shift - S) h> over unit h >= 0 exceeds the shift if and only if S is not
        # copositive.
        atom = violating_atom(root, True)
        if atom.gain**2 > shift + self.threshold:
            direction = np.zeros(local.x.size)
            direction[weak] = atom.features
            direction -= vectors.T @ ((coupling @ atom.features) / values)
            escape = self._along(direction, "entries of the features that are zero", one_sided=True)
            if escape is not None:
                return escape
        cheap = relaxed_norm(root, target=np.sqrt(max(shift - 2 * self.threshold, 0.0)), steps=2000)
        if not cheap**2 < shift - self.threshold:
            self.reasons.append(
                f"{weak.size} entries of the features are zero without a multiplier, and second "
                "order does not decide"
            )
        return None

    def _follow(self) -> bool:
        """Return whether flat directions lead to points that are as high and as flat as this one.

        Each walk follows a random flat direction, and comes back to where the gradient vanishes.
        """
        local, draws = self.local, np.random.default_rng(0)
        if self.num_flat < self.orbit.dimension or self.gap < CLEAR_GAP:
            return False
        for _ in range(WALKS):
            direction = draws.standard_normal(self.num_flat) @ self.flat
            direction *= np.linalg.norm(local.x) / np.linalg.norm(direction)
            # A walk that ends behind a kink says nothing: a shorter one may not.
            outcomes = (self._level_at(length * direction) for length in WALK_LENGTHS)
            if not next((outcome for outcome in outcomes if outcome is not None), False):
                return False
        self.valley, self.reasons = True, []
        return True

    def _level_at(self, step: np.ndarray) -> bool | None:
        """Return whether the critical point next to a flat step is as high and as flat as this one.

        None if no critical point is found there.
        """
        local = self.local
        there, x = local, local.x + step
        for _ in range(CORRECTIONS):
            parameters = moved(
                local.parameters, parameter_step(local, correction(local, x, self.normal))
            )
            there = smooth_piece_at(local.problem, parameters, near=self.near)
            x = there.x - self.curved.T @ ((self.curved @ there.gradient) / self.curvatures)
        same_cell = there.num_kinks == local.num_kinks and all(
            np.array_equal(a, b) for a, b in zip(there.slopes, local.slopes, strict=True)
        )
        if not same_cell or not there.relative_gradient <= max(self.tol, LEVEL):
            return None
        if not abs(objective_at(local, there.parameters) - self.value) <= LEVEL * abs(self.value):
            return False
        values = np.linalg.eigvalsh(hessian_along(there, tangent_basis(there, idle(there))))
        # The point is corrected to the tolerance of the gradient, not to rounding. So flat
        # eigenvalues may exceed the threshold, but stay far below the curvatures.
        flat = np.abs(values) <= np.sqrt(self.threshold * np.min(np.abs(self.curvatures)))
        return int(np.sum(flat)) == self.num_flat

    def _leaving_kinks(self) -> Escape | None:
        """Judge concave kinks and kinks without a signal."""
        kinks = self.kinks
        if kinks is None or not kinks.number:
            return None
        if kinks.concave:
            inverse = np.linalg.pinv(kink_gradients(self.local, self.local.kinks), rcond=ZERO_SHARE)
            order = np.flatnonzero(self.concave)[np.argsort(self.signal[self.concave])]
            for index in order[:20]:
                for sign in (1.0, -1.0):
                    escape = self._along(
                        sign * inverse[:, index], "a concave kink", kept=False, one_sided=True
                    )
                    if escape is not None:
                        return escape
            self.reasons.append(
                f"{kinks.concave} kinks are concave, held by others or not: first order does not "
                "decide"
            )
        return self._weak_kinks() if kinks.weak else None

    def _weak_kinks(self) -> Escape | None:
        """Judge kinks whose signal is zero, piece by piece.

        If they are few, all pieces are tried. Otherwise the search starts from random pieces, and
        moves to those that a direction of negative curvature leads to.
        """
        local, count = self.local, int(np.sum(self.weak))
        every, draws = count <= WEAK_KINKS, np.random.default_rng(0)
        basis, as_flat, tried = tangent_basis(local, idle(local)), True, 0
        if len(basis) > PIECES_UNKNOWNS:
            self.reasons.append(
                f"{count} kinks do not matter to first order, and were not tried to second"
            )
            return None
        inputs = kink_gradients(local, local.kinks)[self.weak] @ basis.T
        if every:
            patterns = np.array(list(itertools.product((0.0, 1.0), repeat=count)))
        else:
            patterns = draws.integers(0, 2, (PIECE_STARTS, count)).astype(np.float64)
        for pattern in patterns:
            for _ in range(1 if every else PIECE_STEPS):
                values, vectors = np.linalg.eigh(self._piece_hessian(pattern, basis))
                tried += 1
                below = values < -self.threshold
                as_flat &= int(np.sum(values <= self.threshold)) == self.num_flat
                if not np.any(below):
                    break
                mixtures = (
                    draws.standard_normal((int(np.sum(below)), PIECE_STARTS))
                    / values[below][:, None]
                )
                directions = vectors[:, below] @ np.concatenate([mixtures, -mixtures], axis=1)
                signs = inputs @ directions > 0
                # Take the direction whose own piece is most like the one it was found on.
                own = int(np.argmin(np.sum(signs != (pattern > 0)[:, None], axis=0)))
                escape = self._along(directions[:, own] @ basis, "negative curvature between kinks")
                if escape is not None:
                    return escape
                pattern = signs[:, own].astype(np.float64)
        if not (every and as_flat):
            self.reasons.append(
                f"{count} kinks do not matter to first order; no way down was found on {tried} of "
                "the pieces between them"
            )
        return None

    def _piece_hessian(self, pattern: np.ndarray, basis: np.ndarray) -> np.ndarray:
        """Return the Hessian with other slopes at the kinks without a signal."""
        entries = self.local.at_kinks(self.local.slopes)
        entries[self.weak] = pattern
        piece = with_slopes(self.local, self.local.spread(entries, self.local.slopes))
        return hessian_along(piece, basis)

    def _growing_units(self) -> Escape | None:
        """Judge units with zero weights."""
        local = self.local
        for layer, mask in enumerate(local.zero_units):
            if not np.any(mask):
                continue
            growth: Growth = unit_growth(local, layer)
            if growth.falls:
                place = (layer + 1, int(np.flatnonzero(mask)[0]))
                grown, reached = with_grown_unit(local, place, growth, self.value)
                if grown is not None:
                    step = moved(grown, local.parameters, -1.0)
                    return Escape(
                        step, (self.value - reached, 0.0), "a unit with zero weights coming back"
                    )
            units = f"{int(np.sum(mask))} units of hidden layer {layer + 1} have zero weights"
            if growth.level:
                self.reasons.append(
                    f"{units}: as copies of one that is there they cost nothing to second order"
                )
            elif not growth.rises:
                self.reasons.append(
                    f"{units}, and whether the objective falls on their coming back is not known "
                    f"(gain in [{growth.gain:.4g}, {growth.bound:.4g}], "
                    f"allowed {growth.allowed:.4g})"
                )
        return None

    def _along(
        self, direction: np.ndarray, reason: str, kept: bool = True, one_sided: bool = False
    ) -> Escape | None:
        """Return the best point found along a direction of the coordinates, both ways.

        Args:
            direction: The direction.
            reason: What it follows.
            kept: Whether to stay on the kinks.
            one_sided: Whether to leave out the opposite direction.

        Returns:
            The way down; None if no point is lower.
        """
        local = self.local
        counts, factors = np.asarray(local.problem.class_counts), local.problem.num_layers + 1
        typical = float(
            np.sqrt(np.sum(counts ** (1 / factors)))
        )  # as `ufm.solving.methods.balanced_coordinates.reference_norms`
        length = max(float(np.linalg.norm(local.x)), typical) / max(
            float(np.linalg.norm(direction)), 1e-300
        )
        best: Any = None
        decreases = [0.0, 0.0]
        for side, sign in enumerate((1.0,) if one_sided else (1.0, -1.0)):
            for size in LENGTHS:
                x = local.x + sign * size * length * direction
                x = correction(local, x, self.normal) if kept else x
                step = parameter_step(local, x)
                decrease = self.value - objective_at(local, moved(local.parameters, step))
                if decrease > max(decreases[side], ROUNDED * abs(self.value)):
                    decreases[side] = decrease
                    if decrease >= max(decreases):
                        best = step
        return None if best is None else Escape(best, (decreases[0], decreases[1]), reason)
