"""Dead units: hidden units that no class activates, and how to bring them back.

A ReLU unit whose input is not positive for any row passes no gradient to its incoming weights.
Weight decay drives its incoming and outgoing weights to zero. No gradient method brings it back.
From zero, with incoming weights t w and outgoing weights t v, the objective changes by

    t^2 ( <v, sum_i delta_i relu(<h_i, w>)> + (a_w ||w||^2 + a_v ||v||^2) / 2 ) + O(t^4),

with h_i the inputs of the layer, delta_i the derivative of the objective with respect to the input
of the next layer, and a_w and a_v the penalties (the multipliers for norm balls). The objective
falls exactly if

    max_{||w|| = 1} ||sum_i delta_i relu(<h_i, w>)||  exceeds  sqrt(a_w a_v).

Power iteration bounds the maximum from below. From above it is bounded by the maximum over all
activation patterns of up to 12 rows. Given a pattern S, the maximum is at most a singular value. A
linear program rules out patterns that no w has. For coordinates of non-negative features that are
zero in all rows, h >= 0 takes the place of relu(...).
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linprog

from ufm._support import double_precision, on_host, printed, table_lines, to_numpy
from ufm.certificates import relaxed_norm, violating_atom
from ufm.problems import Parameters, Problem
from ufm.solving.methods import generator
from ufm.solving.relu import ZERO_SHARE, SmoothPiece, objective_at, smooth_piece_at

__all__ = [
    "DeadUnits",
    "Growth",
    "Revival",
    "dead_units",
    "effective_penalties",
    "revive",
    "unit_growth",
    "with_grown_unit",
]

PATTERN_ROWS = 12  # rows up to which all 2^n activation patterns are tried
POWER_STEPS = 60  # of the power iteration for the gain
MAX_PROGRAMS = 200  # linear programs that rule out patterns
RANDOM_STARTS = 64  # of the power iteration, beside those from rows, pseudo-inverse and patterns
SIZES = 25  # of a unit that comes back, on a logarithmic grid over six decades
ROUNDING = 16 * float(np.finfo(np.float64).eps)  # relative error of an objective


@printed
class DeadUnits(NamedTuple):
    """Units that are never active.

    Attributes:
        units: Masks per hidden layer, shapes (d_l,): units whose input is at most zero (or below
            1e-6 of the layer's largest) for every row. Linear layers have none.
        removed: Masks per hidden layer, shapes (d_l,): dead units with zero incoming and outgoing
            weights.
        coordinates: Mask of the coordinates of non-negative features that are zero in all rows,
            shape (d,).
        classes: Mask of the classes whose features (first row) or outputs of a hidden layer
            (further rows) are all zero, shape (1 + hidden layers, K). Only non-negative features
            and ReLU layers have any.
    """

    units: tuple[Bool[np.ndarray, " width"], ...]
    removed: tuple[Bool[np.ndarray, " width"], ...]
    coordinates: Bool[np.ndarray, " d"]
    classes: Bool[np.ndarray, "layers K"]

    @property
    def number(self) -> int:
        """Number of dead units of all hidden layers and dead coordinates of the features."""
        return int(sum(np.sum(mask) for mask in self.units) + np.sum(self.coordinates))

    def __str__(self) -> str:
        lines = [
            f"hidden layer {layer + 1}: {int(np.sum(mask))} of {mask.size} units dead, "
            f"{int(np.sum(gone))} of them with zero weights"
            for layer, (mask, gone) in enumerate(zip(self.units, self.removed, strict=True))
        ]
        if np.any(self.coordinates):
            zero = np.flatnonzero(self.coordinates).tolist()
            lines.append(f"features: coordinates {zero} zero in all rows")
        for level, dead in enumerate(self.classes):
            if np.any(dead):
                place = "features" if level == 0 else f"outputs of hidden layer {level}"
                lines.append(f"{place}: all zero for classes {np.flatnonzero(dead).tolist()}")
        return "\n".join(lines) or "no hidden layers, and no dead classes"


@printed
class Growth(NamedTuple):
    """What a unit with zero weights would bring.

    Attributes:
        gain: Largest ||sum_i delta_i relu(<h_i, w>)|| found over unit w.
        bound: Upper bound of the gain.
        allowed: sqrt(a_w a_v), the gain above which the objective falls.
        incoming: w, the unit vector of the gain, shape (d_{l-1},). For features, it is the column h
            with one entry per row.
        outgoing: v, the unit vector of the gain, shape (d_{l+1},).
    """

    gain: float
    bound: float
    allowed: float
    incoming: Float[np.ndarray, " in"]
    outgoing: Float[np.ndarray, " out"]

    def __str__(self) -> str:
        effect = "falls" if self.falls else "rises" if self.rises else "stays level"
        effect = effect if self.falls or self.rises or self.level else "is not known to rise"
        gain = f"gain in [{self.gain:.6g}, {self.bound:.6g}], allowed {self.allowed:.6g}"
        return f"a zero unit that comes back: the objective {effect}; {gain}"

    @property
    def falls(self) -> bool:
        """Whether the objective falls, to second order, if a unit comes back."""
        return bool(self.gain > self.allowed * (1 + ZERO_SHARE))

    @property
    def level(self) -> bool:
        """Whether a unit that comes back can at best leave the objective level, to second order.

        At a critical point a copy of a present unit always can.
        """
        return bool(
            abs(self.gain - self.allowed) <= ZERO_SHARE * self.allowed
            and self.bound <= self.allowed * (1 + ZERO_SHARE)
        )

    @property
    def rises(self) -> bool:
        """Whether the objective rises however a unit comes back; False if not known."""
        return bool(self.bound < self.allowed * (1 - ZERO_SHARE))


@printed
class Revival(NamedTuple):
    """The result of `revive`.

    Attributes:
        parameters: Parameters in which every dead unit is zeroed or revived.
        before: The objective before.
        after: The objective after.
        zeroed: (layer, unit) pairs. Layers are counted from one; layer 0 holds coordinates of the
            features.
        revived: (layer, unit) pairs. A revived unit is also in `zeroed`.
    """

    parameters: Parameters
    before: float
    after: float
    zeroed: tuple[tuple[int, int], ...]
    revived: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        rows = [
            ("objective", f"{self.before:.12g} to {self.after:.12g}, lower by {self.decrease:.3g}"),
            ("zeroed", _places_text(self.zeroed)),
            ("revived", _places_text(self.revived)),
        ]
        return "\n".join(table_lines(rows))

    @property
    def decrease(self) -> float:
        """The decrease of the objective, never negative."""
        return self.before - self.after


def _places_text(places: tuple[tuple[int, int], ...]) -> str:
    """Return how many units, and the first of them, as text."""
    named = ", ".join(f"unit {unit} of layer {layer}" for layer, unit in places[:3])
    return f"{len(places)}: {named}{', ...' if len(places) > 3 else ''}" if places else "none"


@on_host
def dead_units(problem: Problem, parameters: Any) -> DeadUnits:
    """Return which units, coordinates of non-negative features, and classes are dead.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    with double_precision():
        return _dead(smooth_piece_at(problem, parameters))


@on_host
def revive(problem: Problem, parameters: Any, *, key: Any = None) -> Revival:
    """Return parameters with dead units zeroed, and brought back if the objective falls.

    The objective never rises: every step is accepted on its value. So the point need not be
    critical. A dead class is not brought back as long as no unit or coordinate is dead. `ufm.solve`
    makes room for one.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.
        key: JAX PRNG key or integer seed of directions to try; 0 if not given.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    draws = generator(key)
    with double_precision():
        local = smooth_piece_at(problem, parameters)
        before = value = objective_at(local, local.parameters)
        dead = _dead(local)
        places = [(0, int(j)) for j in np.flatnonzero(dead.coordinates)]
        places += [
            (layer + 1, int(j))
            for layer, mask in enumerate(dead.units)
            for j in np.flatnonzero(mask)
        ]
        zeroed, revived = [], []
        for place in places:
            candidate = _with_unit(local.parameters, place, None, None)
            reached = objective_at(local, candidate)
            if reached <= value:
                local, value = local._replace(parameters=candidate), reached
                zeroed.append(place)
        stuck: set[int] = set()
        for place in zeroed:
            if place[0] in stuck:
                continue
            local = smooth_piece_at(problem, local.parameters)
            growth = (
                _coordinate_growth(local)
                if place[0] == 0
                else unit_growth(local, place[0] - 1, draws)
            )
            grown, reached = with_grown_unit(local, place, growth, value)
            if grown is None:
                stuck.add(place[0])  # the other units of this layer are just like it
                continue
            local, value = local._replace(parameters=grown), reached
            revived.append(place)
    return Revival(local.parameters, before, value, tuple(zeroed), tuple(revived))


def unit_growth(local: SmoothPiece, layer: int, draws: np.random.Generator | None = None) -> Growth:
    """Return what a zero unit of a hidden layer would bring, at the slopes of a smooth piece.

    Args:
        local: The smooth piece.
        layer: The hidden layer, counted from 0.
        draws: Generator of random directions; seed 0 if not given.
    """
    draws = draws or np.random.default_rng(0)
    H = np.asarray(
        local.parameters.features if layer == 0 else np.maximum(local.inputs[layer - 1], 0)
    )
    M = local.signals[layer + 1]
    penalties = effective_penalties(local)
    allowed = float(np.sqrt(penalties[layer] * penalties[layer + 1]))
    nothing = Growth(0.0, 0.0, allowed, np.zeros(H.shape[1]), np.zeros(M.shape[1]))
    if not (np.all(np.isfinite(H)) and np.all(np.isfinite(M))):
        return nothing._replace(bound=np.inf)
    if not np.any(H) or not np.any(M):
        return nothing
    largest = float(np.linalg.norm(H, 2))
    bound = largest * relaxed_norm(M, steps=1)
    starts = [
        H.T,
        -H.T,
        draws.standard_normal((H.shape[1], RANDOM_STARTS)),
        np.linalg.pinv(H),
        -np.linalg.pinv(H),
    ]
    if H.shape[0] <= PATTERN_ROWS:
        by_pattern, directions = _patterns(H, M, allowed)
        bound = min(bound, by_pattern * (1 + 1e-12))
        starts += [directions, -directions]
    W = np.concatenate(starts, axis=1)
    best, w = 0.0, W[:, 0]
    for _ in range(POWER_STEPS):
        lengths = np.linalg.norm(W, axis=0)
        W = W[:, lengths > 0] / lengths[lengths > 0]
        if not W.size:
            break
        A = np.maximum(H @ W, 0)
        U = M.T @ A
        gains = np.linalg.norm(U, axis=0)
        if np.max(gains) > best:
            best, w = float(np.max(gains)), W[:, int(np.argmax(gains))]
        W = H.T @ ((A > 0) * (M @ U))
    u = M.T @ np.maximum(H @ w, 0)
    return Growth(best, bound, allowed, w, -u / max(float(np.linalg.norm(u)), np.finfo(float).tiny))


def effective_penalties(local: SmoothPiece) -> Float[np.ndarray, " q"]:
    """Return the penalties of all layers, then of the features (per sample).

    For norm balls these are the multipliers at the point.

    Args:
        local: The smooth piece at the point.
    """
    problem, given = local.problem, local.parameters
    if problem.regularizer.halves_squares:
        return np.asarray(problem.regularizer.decays(problem.num_layers))
    # A block that is stationary under its norm bound is minus its gradient over the multiplier.
    weighted = np.sum(_row_weights(local)[:, None] * given.features**2)
    found = [
        -np.sum(signal * p)
        for signal, p in zip(local.signals, [*local.inputs, _last_product(local)], strict=True)
    ]
    norms = [*(np.sum(matrix**2) for matrix in given.weights), weighted]
    realised = np.array([*found, -np.sum(local.signals[0] * (given.features @ given.weights[0].T))])
    return np.maximum(realised, 0) / np.maximum(norms, np.finfo(float).tiny)


def _last_product(local: SmoothPiece) -> np.ndarray:
    """Return the logits without bias, at the slopes of the smooth piece."""
    hidden = local.parameters.features
    for slope, p in zip(local.slopes, local.inputs, strict=True):
        hidden = slope * p
    return np.asarray(hidden @ local.parameters.weights[-1].T)


def _patterns(H: np.ndarray, M: np.ndarray, allowed: float) -> tuple[float, np.ndarray]:
    """Return the largest singular value of sum over S of delta_i h_i^T over the sets S of rows.

    Sets whose value exceeds what is allowed are checked for a w that is positive on S only, up to a
    number of them. The best directions w, shape (d, j), come second.
    """
    H, M = H[np.any(H != 0, axis=1)], M[np.any(H != 0, axis=1)]
    sets = np.array(list(itertools.product((0.0, 1.0), repeat=H.shape[0])))[1:]
    # In bases of the spans of the rows the matrices are at most n x n.
    left, right = np.linalg.qr(M.T)[1], np.linalg.qr(H.T)
    matrices = np.einsum("an,sn,bn->sab", left, sets, right[1])
    values = np.linalg.norm(matrices, ord=2, axis=(1, 2))
    order = np.argsort(values)[::-1]
    directions = np.linalg.svd(matrices[order[:RANDOM_STARTS]])[2][:, 0, :]
    largest = float(values[order[-1]])
    for position, index in enumerate(order):
        if (
            values[index] <= allowed * (1 + ZERO_SHARE)
            or position >= MAX_PROGRAMS
            or _occurs(H, sets[index])
        ):
            largest = float(values[index])
            break
    return largest, right[0] @ directions.T


def _occurs(H: np.ndarray, pattern: np.ndarray) -> bool:
    """Return whether some w has <h_i, w> > 0 exactly on the pattern.

    True unless the linear program proves that there is none.
    """
    signs = np.where(pattern > 0, -1.0, 1.0)
    scaled = H / np.linalg.norm(H, axis=1, keepdims=True)
    found = linprog(
        np.zeros(H.shape[1]),
        signs[:, None] * scaled,
        np.where(pattern > 0, -1.0, 0.0),
        bounds=(None, None),
    )
    return bool(found.status != 2)


def _coordinate_growth(local: SmoothPiece) -> Growth:
    """Return what a zero coordinate of non-negative features would bring.

    It is the atom of the dual bound, at the first layer.
    """
    penalties, root = effective_penalties(local), np.sqrt(_row_weights(local))
    weighted = local.signals[0] / root[:, None]
    atom = violating_atom(weighted, True)
    bound = relaxed_norm(weighted, steps=1)
    allowed = float(np.sqrt(penalties[0] * penalties[-1]))
    return Growth(atom.gain, bound, allowed, atom.features / root, atom.weights)


def _row_weights(local: SmoothPiece) -> np.ndarray:
    """Return the weight of the squared norm of every feature row.

    It is the number of samples, or for norm balls the share of the mean.
    """
    return np.asarray(local.samples.feature_weights)


def with_grown_unit(
    local: SmoothPiece, place: tuple[int, int], growth: Growth, value: float
) -> tuple[Parameters | None, float]:
    """Return the point with a zero unit of the size that lowers the objective most.

    Args:
        local: The smooth piece at the point.
        place: (layer, unit), layers counted from one; layer 0 holds coordinates of the features.
        growth: What the unit would bring.
        value: The objective at the point.

    Returns:
        The point and its objective. The point is None if no size lowers the objective.
    """
    if not growth.falls:
        return None, value
    penalties = effective_penalties(local)
    layer = place[0]
    a, b = (penalties[-1], penalties[0]) if layer == 0 else (penalties[layer - 1], penalties[layer])
    # The product of both sides grows most for its penalty if both have equal penalties.
    ratio = (b / a) ** 0.25 if a > 0 and b > 0 else 1.0
    best, lowest = None, value - ROUNDING * abs(value)
    length = max(float(np.linalg.norm(matrix)) for matrix in local.parameters.weights) or 1.0
    for size in length * np.geomspace(1, 1e-6, SIZES):
        candidate = _with_unit(
            local.parameters, place, size * ratio * growth.incoming, size / ratio * growth.outgoing
        )
        candidate = to_numpy(local.problem.regularizer.project(candidate, local.samples))
        reached = objective_at(local, candidate)
        if reached < lowest:
            best, lowest = candidate, reached
    return best, lowest if best is not None else value


def _with_unit(
    parameters: Parameters, place: tuple[int, int], incoming: Any, outgoing: Any
) -> Parameters:
    """Return the parameters with other weights for one unit or coordinate of the features.

    None stands for zero weights.
    """
    layer, unit = place
    features, weights = parameters.features.copy(), [matrix.copy() for matrix in parameters.weights]
    if layer == 0:
        features[:, unit] = 0 if incoming is None else incoming
    else:
        weights[layer - 1][unit] = 0 if incoming is None else incoming
    weights[layer][:, unit] = 0 if outgoing is None else outgoing
    return Parameters(tuple(weights), features, parameters.bias)


def _dead(local: SmoothPiece) -> DeadUnits:
    """Return which units, coordinates and classes are dead."""
    problem, given = local.problem, local.parameters
    relu = problem.activation == "relu"
    units, outputs = [], []
    for p in local.inputs:
        floor = ZERO_SHARE * np.max(np.abs(p))
        units.append(np.all(p <= floor, axis=0) if relu else np.zeros(p.shape[1], bool))
        outputs.append(np.all(p <= floor, axis=1) if relu else np.zeros(p.shape[0], bool))
    zero = problem.feature_cone.at_bound(given.features, ZERO_SHARE * np.max(given.features))
    coordinates, rows = np.all(zero, axis=0), np.all(zero, axis=1)
    members = local.samples.origins == np.arange(problem.num_rows)[:, None]
    levels = np.array([[np.all(level[row]) for row in members] for level in (rows, *outputs)])
    removed = tuple(mask & gone for mask, gone in zip(units, local.zero_units, strict=True))
    return DeadUnits(tuple(units), removed, coordinates, levels)
