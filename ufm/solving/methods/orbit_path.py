r"""An interior-point method for target rows in orbits, one or two dozen Newton steps for any loss.

It is the method of `ufm.solving.methods.interior_point`, with its barrier, for
`ufm.problems.OrbitProblem`: a part of dimension d costs d B(sigma), sigma the norm of its block,
and the block of the constants the sum of B over its singular values. Derivatives of the loss come
from automatic differentiation, row by row. Steps run on the host: there are few unknowns, and one
program per shape, of the losses, is all that is compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Status, compiled, to_numpy
from ufm.problems import OrbitProblem, orbit_losses, orbit_rows
from ufm.solving.methods.interior_point import smoothed_nuclear_norm

__all__ = ["OrbitPathEnd", "follow_orbit_path", "num_orbit_unknowns"]

MOST_STEPS = 300  # refused ones included
# As in the method for groups: decrements are squared Newton decrements in units of the barrier.
CENTRED, GOOD, FAIR, OFF = 0.01, 0.01, 0.3, 3.0
FIRST_RATIO, BOLDEST, MEEKEST = 0.25, 1e-3, 0.5
START_KAPPA = 0.1  # kappa over the norm of the weighted logits of a first step
RISE = 1e-9  # share of its terms by which the barrier objective may rise in a step
SMALLEST_SHARE = 1e-6  # of the objective at zero, which the gap is relative to at least
RIDGE = 1e-14  # added to a Hessian with a diagonal of ones


class OrbitPathEnd(NamedTuple):
    """Where the path ends.

    Attributes:
        x: Coordinates, (T, o).
        bias: (G,), or None.
        price: The multiplier of the gauge.
        steps: Newton steps.
        status: How the path ended.
    """

    x: Float[np.ndarray, "T o"]
    bias: Float[np.ndarray, " G"] | None
    price: float
    steps: int
    status: Status


class _Model(NamedTuple):
    kappa: float
    price: float
    gradient: np.ndarray
    hessian: np.ndarray
    by_mu: np.ndarray  # derivative of the gradient
    value: float  # of the objective
    merit: float  # what the gradient is of: the objective with the barrier
    magnitude: float  # of the terms of `merit`


class _Barrier(NamedTuple):
    """Derivatives of the barrier by the weighted coordinates, at a fixed kappa and a price of one.

    Attributes:
        slope: Of sum d B.
        slope_by_kappa: Its derivative.
        hessian: Of sum d B.
        gauge_slope: Of sum d p.
        gauge_by_kappa: Of the same.
    """

    slope: np.ndarray
    slope_by_kappa: np.ndarray
    hessian: np.ndarray
    gauge_slope: np.ndarray
    gauge_by_kappa: float


class _Unknowns:
    """The unknowns of a problem as one vector: coordinates that are present, then the bias."""

    def __init__(self, problem: OrbitProblem):
        T, G = problem.num_orbits, problem.num_classes
        self.problem = problem
        self.present = problem.present
        self.index = np.cumsum(self.present.ravel()).reshape(self.present.shape) - 1
        self.num_coordinates = int(np.sum(self.present))
        self.size = self.num_coordinates + (G if problem.use_bias else 0)
        # The block of the constants is a vector, too, if it has one row or one column.
        self.has_matrix = min(T, G) > 1
        parts = len(problem.dims)
        constants = np.full((T, G), -1 if self.has_matrix else parts)
        owners = np.concatenate([constants, problem.owners], axis=1)
        dims = np.asarray(problem.dims)
        self.dims = dims if self.has_matrix else np.append(dims, 1.0)
        self.owners = owners[self.present]
        divided = np.sqrt(np.append(self.dims, 1.0))[self.owners]
        weights = np.broadcast_to(problem.rows[:, None], self.present.shape)[self.present]
        self.weights = weights / divided
        self.alone = self.owners >= 0
        self.together = self.alone[:, None] & (self.owners[:, None] == self.owners[None, :])
        columns = np.concatenate(
            [self.index, np.broadcast_to(self.num_coordinates + np.arange(G), (T, G))], axis=1
        )
        used = np.concatenate([self.present, np.full((T, G), problem.use_bias)], axis=1)
        self.columns = np.where(used, columns, self.size)
        # How often each unknown's mode counts in the barrier.
        times = np.append(self.dims, 1.0)[self.owners]
        self.times = np.concatenate([times, np.ones(self.size - self.num_coordinates)])

    def split(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return coordinates (T, o), and the bias or None."""
        x = np.zeros(self.present.shape)
        x[self.present] = y[: self.num_coordinates]
        return x, y[self.num_coordinates :] if self.problem.use_bias else None

    def norms(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the norms of vector blocks, and the matrix of the constants, (0, 0) if none."""
        squares = np.bincount(self.owners[self.alone], v[self.alone] ** 2, len(self.dims))
        if not self.has_matrix:
            return np.sqrt(squares), np.zeros((0, 0))
        matrix = v[self.index[:, : self.problem.num_classes]]
        return np.sqrt(squares), matrix

    def losses(self, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean loss with the penalty of the bias, its gradient and Hessian."""
        problem, (x, bias) = self.problem, self.split(y)
        value, by_row, bends = to_numpy(_derivatives(problem, x, bias))
        n, width = self.size, self.columns.shape[1] - (0 if problem.use_bias else self.num_bias)
        columns = self.columns[:, :width]
        gradient, hessian = np.zeros(n + 1), np.zeros((n + 1, n + 1))
        np.add.at(gradient, columns, by_row)
        np.add.at(hessian, (columns[:, :, None], columns[:, None, :]), bends)
        gradient, hessian = gradient[:n], hessian[:n, :n]
        if bias is not None:
            weights = float(problem.bias) * problem.class_sizes
            value = value + 0.5 * np.sum(weights * bias**2)
            here = np.arange(self.num_coordinates, n)
            gradient[here] += weights * bias
            hessian[here, here] += weights
            if problem.loss.shift_invariant and not problem.bias > 0:
                # A shift costs nothing, and no gradient has it: any curvature will do.
                hessian[np.ix_(here, here)] += max(float(np.max(np.diag(hessian))), 1e-300)
        return float(value), gradient, hessian

    @property
    def num_bias(self) -> int:
        """G."""
        return self.problem.num_classes


def num_orbit_unknowns(problem: OrbitProblem) -> int:
    """Return how many coordinates there are."""
    return int(np.sum(problem.present))


def follow_orbit_path(
    problem: OrbitProblem, tol: float, max_steps: int = MOST_STEPS
) -> OrbitPathEnd:
    """Minimise a problem over orbits.

    Args:
        problem: The problem, concrete, with a convex loss.
        tol: Duality gap to reach, relative to the objective above the loss's infimum.
        max_steps: Most Newton steps, refused ones included.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _followed(problem, tol, max_steps)


# One loop, whose steps share most of their numbers: kept whole.
def _followed(problem: OrbitProblem, tol: float, max_steps: int) -> OrbitPathEnd:
    unknowns = _Unknowns(problem)
    infimum = problem.loss.infimum if np.isfinite(problem.loss.infimum) else 0.0
    modes = float(np.sum(unknowns.dims)) + (
        min(problem.num_orbits, problem.num_classes) if unknowns.has_matrix else 0
    )
    y = origin = direction = np.zeros(unknowns.size)
    at_zero, gradient, hessian = unknowns.losses(y)
    mu = _first_weight(unknowns, gradient, hessian)
    slope, merit, alpha, ratio = -np.inf, np.inf, 1.0, FIRST_RATIO
    status, steps, best = Status.MAX_STEPS, 0, y
    while steps < max_steps:
        steps += 1
        model = _model(unknowns, y, mu)
        along = float(model.gradient @ direction)
        fine = np.isfinite(model.merit) and bool(np.all(np.isfinite(model.gradient)))
        lower = model.merit <= merit + RISE * model.magnitude
        if not (fine and ((lower and along <= 0.9 * abs(slope)) or alpha < 1e-9)):
            if not fine and alpha < 1e-12:
                status = Status.NON_FINITE
                break
            # To where the secant puts the zero of the slope.
            bent = np.isfinite(slope) and along > slope
            alpha *= float(np.clip(slope / (slope - along), 0.05, 0.5)) if bent else 0.2
            y = origin + alpha * direction
            continue
        best, solve = y, _solver(model.hessian)
        newton = -solve(model.gradient)
        decrement = float(np.sum(np.abs(newton * model.gradient) / unknowns.times)) / mu
        centred = decrement <= CENTRED
        scale = max(model.value - infimum, SMALLEST_SHARE * (at_zero - infimum))
        small = mu * modes <= tol * scale
        if centred and small and decrement <= 1e-3:
            status = Status.CONVERGED
            break
        if np.isinf(slope):
            ratio **= 1.7 if decrement < GOOD else 1.0 if decrement < FAIR else 0.6
            ratio = float(np.clip(ratio, BOLDEST, MEEKEST))
        origin, direction, alpha = y, newton, 1.0
        slope, merit = float(model.gradient @ newton), model.merit
        if centred:
            target = max(mu * max(ratio, OFF * np.sqrt(decrement)), 0.5 * tol * scale / modes)
            change = min((mu if small else target) - mu, 0.0)
            direction = newton - solve(model.by_mu) * change
            mu, slope, merit = mu + change, -np.inf, np.inf
        y = origin + direction
    x, bias = unknowns.split(best)
    return OrbitPathEnd(x, bias, _model(unknowns, best, mu).price, steps, status)


@compiled
def _derivatives(
    problem: OrbitProblem, x: Float[Array, "T o"], bias: Float[Array, " G"] | None
) -> tuple[Array, Array, Array]:
    """Return the mean loss, and its derivatives by the coordinates and the bias of each row."""
    T, o = x.shape
    joined = x if bias is None else jnp.concatenate([x, jnp.tile(bias, (T, 1))], axis=1)

    def total(rows: Array) -> Array:
        logits = orbit_rows(problem, rows[:, :o], None)
        if bias is not None:
            logits = logits + rows[:, o:][:, problem.label_classes]
        return jnp.sum(problem.shares * orbit_losses(problem, logits))

    value, gradient = jax.value_and_grad(total)(joined)

    def column(unit: Array) -> Array:
        direction = jnp.broadcast_to(unit, joined.shape)
        return jax.jvp(jax.grad(total), (joined,), (direction,))[1]

    return value, gradient, jnp.moveaxis(jax.lax.map(column, jnp.eye(joined.shape[1])), 0, 2)


def _first_weight(unknowns: _Unknowns, gradient: np.ndarray, hessian: np.ndarray) -> float:
    """Return a first weight mu, from the step that a quadratic model takes down the gradient."""
    problem, n = unknowns.problem, unknowns.num_coordinates
    slope = gradient[:n]
    bend = float(slope @ hessian[:n, :n] @ slope)
    step = float(slope @ slope) / bend if bend > 0 else 1.0
    sizes = np.abs(step * slope * unknowns.weights)
    typical = float(np.max(sizes, initial=0.0))
    typical = typical if np.isfinite(typical) and typical > 0 else float(np.max(problem.rows))
    if not problem.bounded:
        return START_KAPPA * typical * float(problem.price)
    kappa = _kappa_in_ball(unknowns, *_singular_values(unknowns, np.zeros(n)))
    largest = float(np.max(np.abs(slope / unknowns.weights), initial=0.0))
    return kappa * (largest if np.isfinite(largest) and largest > 0 else 1.0)


def _singular_values(unknowns: _Unknowns, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values, and how often each occurs."""
    vectors, matrix = unknowns.norms(v)
    if not unknowns.has_matrix:
        return vectors, unknowns.dims
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.append(vectors, values), np.append(unknowns.dims, np.ones(len(values)))


def _model(unknowns: _Unknowns, y: np.ndarray, mu: float) -> _Model:
    problem, n = unknowns.problem, unknowns.num_coordinates
    weights = unknowns.weights
    v = weights * y[:n]
    if not np.all(np.isfinite(y)):
        nothing = np.full(len(y), np.nan)
        return _Model(np.nan, np.nan, nothing, nothing, nothing, np.nan, np.nan, np.nan)
    values, times = _singular_values(unknowns, v)
    kappa = (
        _kappa_in_ball(unknowns, values, times) if problem.bounded else mu / float(problem.price)
    )
    price = mu / kappa
    value, gradient, hessian = unknowns.losses(y)
    barrier = _barrier(unknowns, v, kappa)
    gradient[:n] += price * weights * barrier.slope
    hessian[:n, :n] += price * weights[:, None] * weights[None, :] * barrier.hessian
    by_mu = np.zeros_like(gradient)
    by_mu[:n] = weights * (barrier.slope / kappa if problem.bounded else barrier.slope_by_kappa)
    p = kappa + np.hypot(kappa, values)
    if problem.bounded:
        rank_one = price / (kappa * (1 + barrier.gauge_by_kappa))
        bent = weights * barrier.gauge_slope
        hessian[:n, :n] += rank_one * bent[:, None] * bent[None, :]
        room, logs = kappa * np.log(kappa), kappa * float(np.sum(times * np.log(kappa * p)))
        extra, magnitude = -room - logs, abs(room) + abs(logs)
    else:
        excess = values**2 / p
        extra = float(np.sum(times * (excess - kappa * np.log1p(excess / (2 * kappa)))))
        magnitude = float(np.sum(times * excess))
    total = value if problem.bounded else value + price * float(np.sum(times * values))
    return _Model(
        kappa,
        float(price),
        gradient,
        hessian,
        by_mu,
        total,
        value + price * extra,
        abs(value) + price * magnitude,
    )


def _barrier(unknowns: _Unknowns, v: np.ndarray, kappa: float) -> _Barrier:
    n, alone, dims = len(v), unknowns.alone, unknowns.dims
    vectors = unknowns.norms(v)[0]
    radius = np.hypot(kappa, vectors)
    p = kappa + radius
    mine = unknowns.owners[alone]
    slope, slope_by_kappa, gauge_slope = np.zeros(n), np.zeros(n), np.zeros(n)
    slope[alone] = (dims / p)[mine] * v[alone]
    slope_by_kappa[alone] = -(dims / (p * radius))[mine] * v[alone]
    gauge_slope[alone] = (dims / radius)[mine] * v[alone]
    gauge_by_kappa = float(np.sum(dims * (1 + kappa / radius)))
    bend = np.zeros(n)
    bend[alone] = (dims / (p**2 * radius))[mine]
    hessian = -np.where(unknowns.together, bend[:, None] * v[:, None] * v[None, :], 0.0)
    hessian[alone, alone] += (dims / p)[mine]
    if unknowns.has_matrix:
        index = unknowns.index[:, : unknowns.problem.num_classes]
        tall = index if index.shape[0] >= index.shape[1] else index.T
        found: Any = to_numpy(_smoothed(v[tall], np.asarray(kappa)))
        slope[tall], slope_by_kappa[tall] = found.slope, found.slope_by_kappa
        gauge_slope[tall] = found.gauge_slope
        gauge_by_kappa += float(found.gauge_by_kappa)
        hessian[np.ix_(tall.ravel(), tall.ravel())] = found.hessian.reshape(tall.size, tall.size)
    return _Barrier(slope, slope_by_kappa, hessian, gauge_slope, gauge_by_kappa)


_smoothed = compiled(smoothed_nuclear_norm)


def _kappa_in_ball(unknowns: _Unknowns, values: np.ndarray, times: np.ndarray) -> float:
    """Return the kappa > 0 at which the sum of p over modes is T - kappa; NaN outside the ball.

    Newton's method from above the root of a convex function does not pass it.
    """
    room = float(unknowns.problem.price) - float(np.sum(times * values))
    if not room > 0:
        return np.nan
    kappa = room / (1 + float(np.sum(times)))
    for _ in range(60):
        radius = np.hypot(kappa, values)
        excess = float(np.sum(times * (kappa + kappa**2 / np.maximum(radius + values, 1e-300))))
        slope = 1 + float(np.sum(times * (1 + kappa / np.maximum(radius, 1e-300))))
        change = (excess + kappa - room) / slope
        kappa -= change
        if abs(change) <= 1e-15 * kappa:
            break
    return kappa


def _solver(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that solves with a positive definite matrix, scaled to unit diagonal."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scaled = matrix * scale[:, None] * scale[None, :]
    ridge = RIDGE
    while True:
        try:
            factor = np.linalg.cholesky(scaled + ridge * np.eye(len(scale)))
            break
        except np.linalg.LinAlgError:
            if not ridge < 1:
                return lambda vector: np.full(vector.shape, np.nan)
            ridge *= 100
    inverse = np.linalg.inv(factor)
    return lambda vector: scale * (inverse.T @ (inverse @ (scale * vector)))
