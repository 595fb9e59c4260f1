r"""Newton's method for ReLU chains: from near a minimiser that lies on kinks onto it, to rounding.

If inputs of ReLUs are zero at a minimiser, no smooth method converges. A descent with smoothed
ReLUs tells which inputs these are: they end near zero, and all others are clearly on or off. On the
manifold where these inputs p_i are zero the objective is smooth, with slopes s_i as multipliers
(`ufm.solving.relu.smooth_pieces`). Newton's method for

    grad f_s(x) = 0,      p_i(x) = 0

converges quadratically. These are the equations of sequential quadratic programming (Nocedal &
Wright, Algorithm 18.1). Symmetries and families of minimisers make them singular, so they are
solved in the least-norm sense. A kink is released if its slope reaches a bound or if it is concave.
An input that changes sign on the way becomes a kink. Units whose removal does not raise the
objective are removed at the start.

The result is judged by `ufm.solving.relu.smooth_pieces.smooth_piece_at` at the point alone: by the
norm of the gradient with the best slopes within [0, 1] at all inputs that are zero.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ufm.problems import Parameters, Problem
from ufm.solving.methods import typical_inputs
from ufm.solving.relu.smooth_pieces import (
    ZERO_SHARE,
    SmoothPiece,
    better_slopes,
    feasible,
    idle,
    kink_gradients,
    kink_signals,
    objective_at,
    on_piece,
    products,
    smooth_piece_at,
)

__all__ = ["Polished", "polish"]

# No measurement of these numbers is recorded.
MOST_UNKNOWNS = 1500  # without those of removed units; the equations are solved densely
BANDS = (1.0, 10.0, 3.0)  # trial widths of the band of zero inputs, over the smoothing
ROUNDS = 60  # at most
PATIENCE = 10  # rounds without progress
STRIDE = 0.1  # longest step, relative to the norm of the point
AIM = 1e-3  # share of the tolerance to aim for; one more round usually gains many digits
# Shares of the largest eigenvalue up to which directions are left out. The next share is tried if
# the step is too long.
SINGULAR = (1e-11, 1e-9, 1e-7, 1e-5)
BOUND = 1e-9  # distance from 0 or 1 within which a slope is at its bound
NEARLY = 1e-5  # relative gradient below which rounds that gain little end; slopes are unrestricted
ENOUGH = 1e-9  # relative gradient below which the slopes are checked
ON_KINK = 1e-11  # largest input at a kink, over its typical size, at which the slopes are checked
CAUGHT = 1e-13  # size of an input of the wrong sign, over its typical size, that makes it a kink
LEVEL = 1e-10  # share by which the objective may rise


class Polished(NamedTuple):
    """A point with its objective and its stopping measure.

    Attributes:
        parameters: The point.
        objective: The objective there.
        relative_gradient: The relative gradient with the best slopes within [0, 1].
    """

    parameters: Parameters
    objective: float
    relative_gradient: float


def polish(problem: Problem, parameters: Any, smoothing: float, tol: float) -> Polished:
    """Return the minimiser near a point.

    The point itself is returned if none is found that is as low and closer to stationary. Call it
    in double precision.

    Args:
        problem: A problem with ReLUs between layers.
        parameters: A minimiser of the smoothed model, features one row per class or per sample.
        smoothing: The smoothing of that model, as in `ufm.LBFGS`.
        tol: Relative gradient asked for.
    """
    start = smooth_piece_at(problem, parameters)
    best = _judged(start)
    if not np.isfinite(best.objective):
        return best
    piece = smooth_piece_at(problem, _without_idle_units(start, best.objective))
    value = objective_at(piece, piece.parameters)
    if np.sum(_free(piece)) > MOST_UNKNOWNS:
        return best
    for band in BANDS:
        if best.relative_gradient <= tol:
            break
        # The decomposition of a matrix whose entries nearly overflow may not converge.
        with contextlib.suppress(np.linalg.LinAlgError):
            best = _reached(piece, band * smoothing, value, tol, best)
    return best


def _reached(piece: SmoothPiece, band: float, value: float, tol: float, best: Polished) -> Polished:
    """Return where Newton's method arrives if inputs within a band count as zero.

    `best` is returned if it is closer to stationary.

    Args:
        piece: The point without its idle units.
        band: Largest input in the band, relative to its typical size.
        value: The objective at the point, which the result must not exceed.
        tol: Relative gradient asked for.
        best: The best point so far.
    """
    problem, sizes = piece.problem, _typical(piece)
    piece = _near_kinks(piece, sizes, band)
    last, lowest, since = (np.inf, np.inf), np.inf, 0
    for _ in range(ROUNDS):
        free = _free(piece)
        residual = float(
            np.linalg.norm(piece.gradient[free]) * np.linalg.norm(piece.x) / abs(piece.value)
        )
        offset = float(
            np.max(np.abs(piece.at_kinks(piece.inputs)) / piece.at_kinks(sizes), initial=0)
        )
        since = 0 if residual + offset < 0.9 * lowest else since + 1
        lowest = min(lowest, residual + offset)
        if not np.isfinite(residual + offset) or since > PATIENCE:
            break
        slow = (
            residual < NEARLY
            and offset < ZERO_SHARE
            and residual > 0.5 * last[0]
            and offset > 0.5 * last[1]
        )
        last = (residual, offset)
        wrong = _wrong(piece, sizes, ZERO_SHARE if slow else CAUGHT)
        if wrong is not None:
            piece = _caught(piece, wrong)
        elif slow or (residual < ENOUGH and offset < ON_KINK):
            reached = _judged(smooth_piece_at(problem, piece.parameters))
            if (
                reached.objective <= value + LEVEL * abs(value)
                and reached.relative_gradient < best.relative_gradient
            ):
                best = reached
            let_go = _let_go(piece)
            if best.relative_gradient <= AIM * tol or (
                let_go is None and best.relative_gradient <= tol
            ):
                break
            piece = piece if let_go is None else let_go
        piece = _stepped(piece, _free(piece))
    return best


def _judged(piece: SmoothPiece) -> Polished:
    return Polished(
        piece.parameters, objective_at(piece, piece.parameters), piece.relative_gradient
    )


def _without_idle_units(piece: SmoothPiece, value: float) -> Parameters:
    """Return the parameters without the units whose absence does not raise the objective.

    `value` is the objective at the point.
    """
    parameters = jax.tree.map(np.array, piece.parameters)
    weights = parameters.weights
    units = [
        (layer, unit)
        for layer, width in enumerate(piece.problem.layer_dims[1:-1])
        for unit in range(width)
    ]
    size = {
        (layer, unit): np.linalg.norm(weights[layer][unit])
        * np.linalg.norm(weights[layer + 1][:, unit])
        for layer, unit in units
    }
    for layer, unit in sorted(units, key=size.__getitem__):
        incoming, outgoing = weights[layer][unit].copy(), weights[layer + 1][:, unit].copy()
        weights[layer][unit], weights[layer + 1][:, unit] = 0, 0
        without = objective_at(piece, parameters)
        if without <= value:
            value = without
        else:
            weights[layer][unit], weights[layer + 1][:, unit] = incoming, outgoing
    return parameters


def _free(piece: SmoothPiece) -> Bool[np.ndarray, " m"]:
    """Return which coordinates move.

    Weights of zero units do not move, nor do entries that a positive multiplier holds at zero.
    """
    return ~idle(piece) & ~(piece.at_bound & (piece.gradient > 0))


def _typical(piece: SmoothPiece) -> tuple[np.ndarray, ...]:
    sizes = typical_inputs(piece.problem, piece.samples)
    return tuple(
        np.broadcast_to(size, p.shape) for size, p in zip(sizes, piece.inputs, strict=True)
    )


def _near_kinks(piece: SmoothPiece, sizes: tuple[np.ndarray, ...], smoothing: float) -> SmoothPiece:
    """Return the piece whose kinks are the inputs on the bend of the smoothed ReLU."""
    hidden: Any = piece.parameters.features
    slopes, kinks = [], []
    for matrix, size, zero in zip(
        piece.parameters.weights[:-1], sizes, piece.zero_units, strict=True
    ):
        inputs = hidden @ matrix.T
        hidden = np.asarray(
            piece.problem.activate(jnp.asarray(inputs), jnp.asarray(smoothing * size))
        )
        kinks.append((np.abs(inputs) < smoothing * size) & ~zero[None, :])
        bend = np.clip(0.5 + 0.5 * inputs / (smoothing * size), 0, 1)
        slopes.append(np.where(zero[None, :], 0, bend))
    return on_piece(piece, piece.x, tuple(slopes), tuple(kinks))


def _wrong(
    piece: SmoothPiece, sizes: tuple[np.ndarray, ...], part: float
) -> tuple[np.ndarray, ...] | None:
    """Return the inputs whose sign contradicts their slope by at least `part` of their size.

    The size is the typical one. None if there are no such inputs.
    """
    found = tuple(
        ~kink & ~zero[None, :] & (np.where(slope > 0.5, -p, p) > part * size)
        for p, slope, kink, zero, size in zip(
            piece.inputs, piece.slopes, piece.kinks, piece.zero_units, sizes, strict=True
        )
    )
    return found if any(np.any(mask) for mask in found) else None


def _caught(piece: SmoothPiece, wrong: tuple[np.ndarray, ...]) -> SmoothPiece:
    kinks = tuple(kink | mask for kink, mask in zip(piece.kinks, wrong, strict=True))
    return on_piece(piece, piece.x, piece.slopes, kinks)


def _let_go(piece: SmoothPiece) -> SmoothPiece | None:
    """Return the piece without the kinks that do not hold the point; None if all do.

    A kink does not hold the point if its slope is at a bound or if it is concave.
    """
    bounded = better_slopes(piece)
    slopes = piece.at_kinks(piece.slopes if bounded is None else bounded)
    signals, floor = kink_signals(piece)
    on = (slopes > 1 - BOUND) | ((signals < -floor) & (slopes > BOUND))
    off = slopes < BOUND
    if not np.any(on | off):
        return None
    held = piece.spread(~(on | off), piece.kinks)
    new = piece.spread(np.where(on, 1.0, np.where(off, 0.0, slopes)), piece.slopes)
    return on_piece(piece, piece.x, new, held)


def _stepped(piece: SmoothPiece, free: np.ndarray) -> SmoothPiece:
    """Return the point after a step of Newton's method."""
    rows = np.eye(piece.x.size)[free]
    hessian = products(piece, rows)[:, free]
    normals = kink_gradients(piece, piece.kinks)[:, free]
    n, m = len(rows), len(normals)
    matrix = np.zeros((n + m, n + m))
    matrix[:n, :n], matrix[:n, n:], matrix[n:, :n] = 0.5 * (hessian + hessian.T), normals.T, normals
    values, vectors = np.linalg.eigh(matrix)
    target = vectors.T @ -np.concatenate([piece.gradient[free], piece.at_kinks(piece.inputs)])
    # Nearly flat directions make the step long. More of them are left out until it is short enough.
    longest = STRIDE * float(np.linalg.norm(piece.x))
    for singular in SINGULAR:
        kept = np.abs(values) > singular * np.max(np.abs(values))
        step = vectors[:, kept] @ (target[kept] / values[kept])
        length = min(1.0, longest / max(float(np.linalg.norm(step[:n])), 1e-300))
        if length == 1:
            break
    moved = np.zeros_like(piece.x)
    moved[free] = step[:n]
    signals, floor = kink_signals(piece)
    change = np.where(
        np.abs(signals) > floor, length * step[n:] / np.where(signals == 0, 1, signals), 0
    )
    slopes = np.clip(piece.at_kinks(piece.slopes) + change, -1, 2)
    piece, x = feasible(piece, piece.x + length * moved)
    return on_piece(piece, x, piece.spread(slopes, piece.slopes), piece.kinks)
