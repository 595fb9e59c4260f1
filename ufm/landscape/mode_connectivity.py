"""Low paths between two points: how high one must climb, at most, from one minimum to another.

Symmetries first. A point and its images under the symmetries of the model have one value. So the
distance of two minima is the distance between their orbits. The second point is brought as close to
the first as symmetries allow: by rotations of the linear spaces between factors (orthogonal
Procrustes), and by permutations of the units behind a ReLU and of the coordinates of non-negative
features (linear assignment), space after space until nothing moves. Proper rotations are joined to
the identity, so they can be undone at constant value, and the path leads to the second point
itself. Reflections (in spaces without an unused direction) and permutations are not joined to the
identity; then `joined` is False.

Then a chain of points, in balanced coordinates. Every inner point follows the gradient across the
chain, with momentum. After every step the points are moved along the chain to equal distances (the
string method, with the tangents of the nudged elastic band). Several chains are relaxed side by
side. Each one is bent in a random direction first, because a straight line may lie on a ridge by
symmetry. The path is the cubic spline through the lowest chain.

What the answer means. Any path bounds the barrier from above: the highest point of the lowest path
of all is at most `barrier` above the higher end (up to the sampling of the spline). So a path can
show that two minima are connected at one level. It can never show that they are not: a barrier is
one that this search did not get around.

References: E, Ren & Vanden-Eijnden (J. Chem. Phys. 2007), the simplified string method; Henkelman &
Jonsson (J. Chem. Phys. 2000), tangents of the nudged elastic band; Garipov et al. (NeurIPS 2018)
and Draxler et al. (ICML 2018), low paths between minima of networks; Ainsworth, Hayase & Srinivasa
(ICLR 2023), alignment of units by weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import CubicSpline

from ufm._support import (
    Status,
    check_finite,
    check_instance,
    check_one_of,
    checked_positive,
    checked_whole,
    compiled,
    double_precision,
    on_host,
    printed,
    table_lines,
    to_numpy,
)
from ufm.landscape.alignment import Align, aligned
from ufm.landscape.scale import objective_scale
from ufm.problems import Parameters, Problem, checked_parameters, class_samples, one_count_per_class
from ufm.solving.methods import Space, balanced_space, generator
from ufm.solving.methods import balanced_coordinates as coordinates

__all__ = ["MinimaPath", "connect"]

# Bends of the first chains, relative to the distance of the ends. A straight line may lie on a
# ridge by symmetry, and the smallest bend already leads away from it.
BENDS = (1e-3, 0.1, 0.3, 1.0)
SAMPLES = 16  # samples of the spline between two points of the chain
REFINEMENTS = 3  # times that the samples around the highest point are refined
FINER = 15  # samples of one refinement
PIECE = 128  # points evaluated together, so that the code is compiled for one shape
# A chain is at rest at this times the root of the tolerance: heights are of second order in the
# gradient across the chain.
REST = 0.1
MOMENTUM = 0.95
FASTER, SLOWER = 1.01, 0.3  # factors of the step size after a good and after a bad step


@printed
class MinimaPath(NamedTuple):
    """A path between two points in balanced coordinates, and a bound of the barrier between them.

    Attributes:
        first: Parameters of the first end.
        second: Parameters of the second end, after alignment.
        joined: Whether the symmetries used lead to the given second point at constant value.
        position: Arc length along the path, from 0 to 1, shape (S,).
        objective: Objective along the path, shape (S,).
        straight: Objective along the straight line between the ends, at evenly spaced positions.
        barrier: Height of the highest point above the higher end, an upper bound of the barrier.
        straight_barrier: The same for the straight line.
        scale: What barriers are relative to.
        tol: Relative barrier up to which the ends count as connected.
        highest: Parameters of the highest point, a candidate for a saddle.
        highest_gradient: Relative gradient there, small at a saddle.
        distance: Distance of the aligned ends in balanced coordinates, relative to their size.
        given_distance: The same without alignment.
        status: Whether the chain came to rest. The barrier is a bound in either case.
        steps: Steps of the chain; 0 if the straight line is as low as its ends.
    """

    first: Parameters
    second: Parameters
    joined: bool
    position: Float[np.ndarray, " S"]
    objective: Float[np.ndarray, " S"]
    straight: Float[np.ndarray, " S"]
    barrier: float
    straight_barrier: float
    scale: float
    tol: float
    highest: Parameters
    highest_gradient: float
    distance: float
    given_distance: float
    status: Status
    steps: int

    @property
    def connected(self) -> bool:
        """Whether no point of the path is higher than the higher end, within `tol`.

        Then the ends lie in one valley. False for NaN.
        """
        return bool(self.barrier <= self.tol * self.scale)

    def __str__(self) -> str:
        verdict = "connected" if self.connected else "no level path found"
        ends = f"from {self.objective[0]:.12g} to {self.objective[-1]:.12g}"
        image = "" if self.joined else ", a mirror image of the second point"
        relative = self.barrier / self.scale
        rows = [
            ("path between minima", verdict),
            ("objective", f"{ends}{image}"),
            ("barrier", f"at most {self.barrier:.6g} ({relative:.2g} relative)"),
            ("straight line", f"{self.straight_barrier:.6g}"),
            ("chain", f"{self.status}, {self.steps} steps"),
        ]
        return "\n".join(table_lines(rows))


@on_host
def connect(
    problem: Problem,
    first: Any,
    second: Any,
    *,
    images: int = 33,
    align: Align = "symmetries",
    max_steps: int = 3000,
    tol: float = 1e-6,
    key: Any = None,
) -> MinimaPath:
    """Return a low path from one point to another, modulo the symmetries of the model.

    Args:
        problem: The problem.
        first: One end: anything with `weights`, `features` (one row per class) and `bias`, such as
            a `Solution` or `EndPoint.parameters`.
        second: The other end.
        images: Number of points of the chain with its ends, at least 3.
        align: Symmetries that may move the second end. "symmetries" are all of them. "rotations"
            are those that are joined to the identity, so that the path leads to the second end
            itself. "none" keeps the second end.
        max_steps: Most steps of the chain.
        tol: Relative barrier up to which the ends count as connected. A chain is at rest at a
            relative gradient across it of 0.1 sqrt(tol).
        key: JAX PRNG key or integer seed of the bends of the first chains; 0 if not given.

    Raises:
        ValueError: If an argument is not valid.
    """
    check_instance("problem", problem, Problem)
    images, max_steps = checked_whole("images", images, 3), checked_whole("max_steps", max_steps, 0)
    tol = checked_positive("tol", tol)
    check_one_of("align", align, get_args(Align))
    ends = [_finite(problem, end, name) for end, name in ((first, "first"), (second, "second"))]
    draws = generator(key)
    with double_precision():
        problem = one_count_per_class(problem)
        (one, at_zero), (other, _) = (to_numpy(_point(problem, end)) for end in ends)
        moved, joined = aligned(problem, one, other, align)
        start, given, end = (
            np.asarray(jax.flatten_util.ravel_pytree(point)[0]) for point in (one, other, moved)
        )
        found = _lowest_curve(problem, start, end, float(at_zero), images, max_steps, tol, draws)
        places, values = _refined(problem, found.curve, found.places, found.values)
        points, top = found.curve(places), int(np.argmax(values))
        both = to_numpy(_parameters(problem, points[[0, -1, top]]))
        first_end, second_end, highest = (
            jax.tree.map(lambda block, i=i: block[i], both) for i in range(3)
        )
        gradient = float(_values(problem, np.repeat(points[top : top + 1], PIECE, axis=0))[1][0])
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    total = max(float(np.sum(lengths)), np.finfo(float).tiny)
    position = np.append(0, np.cumsum(lengths)) / total
    size = max(float(np.linalg.norm(start) + np.linalg.norm(given)), np.finfo(float).tiny)
    return MinimaPath(
        first=first_end,
        second=second_end,
        joined=joined,
        position=position if np.any(lengths > 0) else places,
        objective=values,
        straight=found.straight,
        barrier=_barrier(values),
        straight_barrier=_barrier(found.straight),
        scale=found.scale,
        tol=tol,
        highest=highest,
        highest_gradient=gradient,
        distance=float(np.linalg.norm(end - start)) / size,
        given_distance=float(np.linalg.norm(given - start)) / size,
        status=found.status,
        steps=found.steps,
    )


class _Curve(NamedTuple):
    """A curve between two points, sampled, and how it was found."""

    curve: Callable[[np.ndarray], np.ndarray]
    places: np.ndarray
    values: np.ndarray
    straight: np.ndarray
    scale: float
    status: Status
    steps: int


def _lowest_curve(
    problem: Problem,
    start: np.ndarray,
    end: np.ndarray,
    at_zero: float,
    images: int,
    max_steps: int,
    tol: float,
    draws: np.random.Generator,
) -> _Curve:
    """Return the straight line if it is as low as its ends, the lowest spline found otherwise."""

    def line(places: np.ndarray) -> np.ndarray:
        return np.asarray((1 - places)[:, None] * start + places[:, None] * end)

    places = np.linspace(0, 1, SAMPLES * (images - 1) + 1)
    straight = _heights(problem, line, places)
    scale = objective_scale(at_zero, float(straight[0]), float(straight[-1]))
    flat = _Curve(line, places, straight, straight, scale, Status.CONVERGED, 0)
    if not _barrier(straight) > tol * scale:
        return flat
    rest_tol = REST * np.sqrt(tol)
    chains = _bent(start, end, images, draws)
    relaxed, rest, made = to_numpy(
        _relaxed(problem, chains, np.asarray(rest_tol), np.asarray(max_steps, np.int32))
    )
    splines = [CubicSpline(np.linspace(0, 1, images), chain) for chain in relaxed]
    heights = [_heights(problem, spline, places) for spline in splines]
    barriers = np.nan_to_num([_barrier(row) for row in heights], nan=np.inf)
    best = int(np.argmin(barriers))
    steps = int(made[best])
    if not _barrier(heights[best]) <= _barrier(straight):
        return flat._replace(status=Status.MAX_STEPS, steps=steps)
    status = Status.CONVERGED if rest[best] <= rest_tol else Status.MAX_STEPS
    return _Curve(splines[best], places, heights[best], straight, scale, status, steps)


def _finite(problem: Problem, given: Any, name: str) -> Parameters:
    """Return parameters whose shapes fit and whose entries are finite."""
    parameters = checked_parameters(problem, given, name, (problem.num_classes,))
    check_finite(name, parameters)
    return parameters


def _barrier(values: np.ndarray) -> float:
    """Return the height of the highest value above the higher end, >= 0; NaN if a value is."""
    return float(np.max(values) - max(values[0], values[-1]))


def _heights(problem: Problem, curve: Any, places: np.ndarray) -> np.ndarray:
    """Return the objective at places on a curve, evaluated in pieces of one length."""
    filled = np.append(places, np.repeat(places[-1:], -len(places) % PIECE)).reshape(-1, PIECE)
    return np.concatenate([_values(problem, curve(part))[0] for part in filled])[: len(places)]


def _refined(
    problem: Problem, curve: Any, places: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return places along a curve and the values there, with more places around the highest."""
    for _ in range(REFINEMENTS):
        top = int(np.argmax(values))
        low, high = places[max(top - 1, 0)], places[min(top + 1, len(places) - 1)]
        new = np.linspace(low, high, FINER + 2)[1:-1]
        order = np.argsort(np.concatenate([places, new]), kind="stable")
        values = np.concatenate([values, _heights(problem, curve, new)])[order]
        places = np.concatenate([places, new])[order]
    return places, values


def _bent(
    start: np.ndarray, end: np.ndarray, images: int, draws: np.random.Generator
) -> np.ndarray:
    """Return the first chains (C, images, n): straight lines with one bend each, and some noise."""
    t, distance = np.linspace(0, 1, images)[:, None], np.linalg.norm(end - start)
    straight = (1 - t) * start + t * end
    chains = []
    for bend in BENDS:
        direction = draws.standard_normal((1, start.size)) + 0.1 * draws.standard_normal(
            straight.shape
        )
        chains.append(
            straight + bend * distance * np.sin(np.pi * t) * direction / np.sqrt(start.size)
        )
    return np.stack(chains)


def _space(problem: Problem) -> Space:
    """Return the balanced coordinates of the problem."""
    return balanced_space(problem, class_samples(problem, jnp.float64))


@functools.partial(compiled, once=True)
def _point(problem: Problem, parameters: Parameters) -> tuple[coordinates.Point, Array]:
    """Return the balanced coordinates of parameters, and the objective of zero logits."""
    samples = class_samples(problem, jnp.float64)
    at_zero = problem.value_at_zero(samples)
    return coordinates.from_parameters(
        problem, samples, jax.tree.map(jnp.asarray, parameters)
    ), at_zero


@functools.partial(compiled, once=True)
def _parameters(problem: Problem, points: Float[Array, "p n"]) -> Parameters:
    """Return the parameters at points in balanced coordinates."""
    return jax.vmap(_space(problem).parameters)(points)


@functools.partial(compiled, once=True)
def _values(problem: Problem, points: Float[Array, "S n"]) -> tuple[Array, Array]:
    """Return the objective and the relative gradient at every point."""
    space = _space(problem)

    def one(x: Array) -> tuple[Array, Array]:
        value, gradient = space.objective(x)
        return value, space.relative_gradient(x, value, gradient)

    return jax.vmap(one)(points)


def _across(chain: Array, values: Array, gradients: Array) -> Array:
    """Return the gradients of the inner points without their components along the chain."""
    ahead, behind = chain[2:] - chain[1:-1], chain[1:-1] - chain[:-2]
    up, down = values[2:] - values[1:-1], values[1:-1] - values[:-2]
    larger, smaller = jnp.maximum(abs(up), abs(down)), jnp.minimum(abs(up), abs(down))
    # At a maximum or a minimum along the chain both neighbours count.
    forward = jnp.where(up + down > 0, larger, smaller)
    backward = jnp.where(up + down > 0, smaller, larger)
    monotone = up * down > 0
    forward = jnp.where(monotone, jnp.where(up > 0, 1.0, 0.0), forward)
    backward = jnp.where(monotone, jnp.where(up > 0, 0.0, 1.0), backward)
    flat = larger == 0
    forward, backward = jnp.where(flat, 1.0, forward), jnp.where(flat, 1.0, backward)
    tangent = forward[:, None] * ahead + backward[:, None] * behind
    norm = jnp.maximum(jnp.linalg.norm(tangent, axis=1, keepdims=True), jnp.finfo(chain.dtype).tiny)
    tangent = tangent / norm
    inner = gradients[1:-1]
    return inner - jnp.sum(inner * tangent, axis=1, keepdims=True) * tangent


def _evenly(chain: Array) -> Array:
    """Return the points moved along the chain to equal distances."""
    lengths = jnp.linalg.norm(chain[1:] - chain[:-1], axis=1)
    along = jnp.concatenate([jnp.zeros(1, chain.dtype), jnp.cumsum(lengths)])
    places = along[-1] * jnp.linspace(0, 1, chain.shape[0], dtype=chain.dtype)[1:-1]
    before = jnp.clip(jnp.sum(along[None, :] <= places[:, None], axis=1) - 1, 0, chain.shape[0] - 2)
    share = (places - along[before]) / jnp.maximum(lengths[before], jnp.finfo(chain.dtype).tiny)
    inner = chain[before] + share[:, None] * (chain[before + 1] - chain[before])
    return jnp.concatenate([chain[:1], inner, chain[-1:]])


@compiled
def _relaxed(
    problem: Problem, chains: Float[Array, "C m n"], tol: Array, steps: Array
) -> tuple[Array, Array, Array]:
    """Return the chains at rest, with the relative gradient across each and its number of steps.

    Args:
        problem: The problem.
        chains: C chains of m points.
        tol: Relative gradient across a chain at which it is at rest.
        steps: Most steps of each chain.
    """
    space = _space(problem)
    objective = jax.vmap(space.objective)

    def one(chain: Array) -> tuple[Array, Array, Array]:
        values, gradients = objective(chain)
        rate = jnp.linalg.norm(chain) / jnp.maximum(
            jnp.linalg.norm(gradients), jnp.finfo(chain.dtype).tiny
        )
        slope = _across(chain, values, gradients)

        def residual(chain: Array, values: Array, slope: Array) -> Array:
            return jnp.max(jax.vmap(space.relative_gradient)(chain[1:-1], values[1:-1], slope))

        def going(state: Any) -> Array:
            return (state[-1] < steps) & (state[-2] > tol)

        def step(state: Any) -> Any:
            chain, velocity, values, slope, rate, _, count = state
            # Drop the momentum if it leads uphill.
            downhill = jnp.sum(velocity * slope) <= 0
            new_velocity = jnp.where(downhill, MOMENTUM, 0.0) * velocity - rate * slope
            moved = _evenly(jnp.concatenate([chain[:1], chain[1:-1] + new_velocity, chain[-1:]]))
            new_values, gradients = objective(moved)
            # A step that raises the mean height of the chain was too long.
            good = jnp.mean(new_values) <= jnp.mean(values) + 0.01 * jnp.ptp(
                values
            ) + 1e-12 * jnp.mean(abs(values))
            good = good & jnp.all(jnp.isfinite(gradients))
            new_slope = _across(moved, new_values, gradients)
            chain, velocity, values, slope = (
                jnp.where(good, after, before)
                for before, after in (
                    (chain, moved),
                    (jnp.zeros_like(velocity), new_velocity),
                    (values, new_values),
                    (slope, new_slope),
                )
            )
            rate = jnp.where(good, FASTER * rate, SLOWER * rate)
            return chain, velocity, values, slope, rate, residual(chain, values, slope), count + 1

        start = (
            chain,
            jnp.zeros_like(slope),
            values,
            slope,
            rate,
            residual(chain, values, slope),
            jnp.int32(0),
        )
        chain, _, _, _, _, rest, count = jax.lax.while_loop(going, step, start)
        return chain, rest, count

    return jax.vmap(one)(chains)
