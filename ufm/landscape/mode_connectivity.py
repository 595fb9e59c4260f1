r"""Low paths between two points: how high one must climb, at most, to get from one minimum to another.

Symmetries first. A point and its images under the symmetries of the model have one value, and there is no one distance between two minima but
that between their orbits. So the second point is brought as close to the first as symmetries allow: by rotations of the linear spaces
between factors (orthogonal Procrustes) and by permutations of the units behind a ReLU and of the coordinates of non-negative features (linear
assignment), space after space until nothing moves. Proper rotations are joined to the identity, so that they can be undone at constant value: the
path then leads to the second point itself. Reflections (in spaces without a free direction) and permutations are not, and `joined` says so.

Then a chain of points, in balanced coordinates. Every inner one follows the gradient across the chain, with momentum; after every step the points
are moved along the chain to equal distances (the string method, with the tangents of the nudged elastic band). Several chains are relaxed side by
side, bent in random directions first, as a straight line may lie on a ridge by symmetry. The path is the cubic spline through the lowest.

What the answer means. Any path bounds the barrier from above: the highest point of the lowest path of all is at most `barrier` above the higher end
(up to the sampling of the spline). That two minima are connected at one level is thus shown, that they are not is never shown: a barrier
found is one that this search did not get around.

References: E, Ren & Vanden-Eijnden (J. Chem. Phys. 2007), the simplified string method; Henkelman & Jonsson (J. Chem. Phys. 2000), tangents of the
nudged elastic band; Garipov et al. (NeurIPS 2018) and Draxler et al. (ICML 2018), low paths between minima of networks; Ainsworth, Hayase &
Srinivasa (ICLR 2023), alignment of units by weights.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import CubicSpline
from scipy.optimize import linear_sum_assignment

from ufm import coordinates
from ufm.compilation import compiled
from ufm.precision import checked_positive, checked_whole, double_precision, to_numpy
from ufm.presolve import canonical
from ufm.problem import Parameters, Problem, checked_parameters
from ufm.regularizers import NormBall
from ufm.resolutions import class_columns
from ufm.solvers.spaces import Space, balanced_space
from ufm.solvers.stages import generator
from ufm.status import Status

__all__ = ["MinimaPath", "connect"]

BENDS = (1e-3, 0.1, 0.3, 1.0)  # of the first chains, relative to the distance of the ends
SAMPLES = 16  # of the spline between two points of the chain
REFINEMENTS = 3  # of the sampling around the highest point
FINER = 15  # points each
PIECE = 128  # points that are evaluated together
REST = 0.1  # times the root of the tolerance: heights are of second order in the gradient across the chain
MOMENTUM = 0.95
ROUNDS = 100  # of alignment
UNUSED = 1e-9  # relative norm of a direction that neither factor uses
SMALLEST = 1e-4  # of the objective at zero, what relative numbers are measured against where objectives vanish

Align = Literal["symmetries", "rotations", "none"]


class MinimaPath(NamedTuple):
    """A path between two points, in balanced coordinates, and what it says of the barrier between them.

    first, second: the ends, the second one after alignment. joined: whether the symmetries used lead to the point given at constant value.
    position, objective: (S,), arc length from 0 to 1 and the objective along the path found. straight: (S,), the objective along the straight
    line between the ends, at positions evenly spaced. barrier, straight_barrier: how far the highest point is above the higher end: upper bounds.
    scale: what barriers are relative to. tol: the relative barrier up to which the ends count as connected. highest: parameters of the highest
    point, a candidate for a saddle. highest_gradient: the relative gradient there; small if it is close to one. distance, given_distance: of
    the ends in balanced coordinates, relative to their size, with and without alignment. status: whether the chain came to rest; the barrier is a
    bound in either case. steps: of the chain; 0 where the straight line is as low as its ends.
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
        """Whether the path shows that the ends lie in one valley: no point is higher than the higher end, within `tol`. False for NaN."""
        return bool(self.barrier <= self.tol * self.scale)

    def __str__(self) -> str:
        ends = f"from {self.objective[0]:.12g} to {self.objective[-1]:.12g}" + (
            "" if self.joined else ", a mirror image of the second point"
        )
        verdict = "connected" if self.connected else "no level path found"
        return (
            f"path {ends}: barrier at most {self.barrier:.6g} ({self.barrier / self.scale:.2g} relative), {verdict}; "
            f"straight line {self.straight_barrier:.6g}"
        )


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
        problem: the problem.
        first: the one end: anything with `weights`, `features` (one row per class) and `bias`, such as a `Solution` or `EndPoint.parameters`.
        second: the other end.
        images: points of the chain, the ends included; at least 3.
        align: what the second end may be moved by: "symmetries", all of them; "rotations", those that are joined to the identity, so that the path
            leads to the second end itself; "none".
        max_steps: of the chain.
        tol: relative barrier up to which the ends count as connected; a chain is at rest where the relative gradient across it is 0.1 sqrt(tol).
        key: a JAX PRNG key, or an integer seed, for the bends of the first chains; 0 if not given.

    Raises:
        ValueError: for bad arguments.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a ufm.Problem, got {type(problem).__name__}.")
    images, max_steps = checked_whole("images", images, 3), checked_whole("max_steps", max_steps, 0)
    tol = checked_positive("tol", tol)
    if align not in ("symmetries", "rotations", "none"):
        raise ValueError(f"`align` must be 'symmetries', 'rotations' or 'none', got {align!r}.")
    ends = [_finite(problem, end, name) for end, name in ((first, "first"), (second, "second"))]
    draws = generator(key)
    with double_precision():
        problem = canonical(problem)
        (one, at_zero), (other, _) = (to_numpy(_point(problem, end)) for end in ends)
        moved, joined = _aligned(problem, one, other, align)
        start, given, end = (np.asarray(jax.flatten_util.ravel_pytree(point)[0]) for point in (one, other, moved))
        size = max(float(np.linalg.norm(start) + np.linalg.norm(given)), np.finfo(float).tiny)
        line = np.linspace(0, 1, SAMPLES * (images - 1) + 1)
        curve: Any = lambda places: (1 - places)[:, None] * start + places[:, None] * end  # noqa: E731
        straight = _heights(problem, curve, line)
        scale = max(abs(float(straight[0])), abs(float(straight[-1])), SMALLEST * float(at_zero))
        values, status, steps = straight, Status.CONVERGED, 0
        if _barrier(straight) > tol * scale:
            rest_tol = REST * np.sqrt(tol)
            chains = _bent(start, end, images, draws)
            relaxed, rest, made = to_numpy(
                _relaxed(problem, chains, np.asarray(rest_tol), np.asarray(max_steps, np.int32))
            )
            splines = [CubicSpline(np.linspace(0, 1, images), chain) for chain in relaxed]
            heights = [_heights(problem, spline, line) for spline in splines]
            best = int(np.argmin(np.nan_to_num([_barrier(row) for row in heights], nan=np.inf)))
            steps, status = int(made[best]), Status.MAX_STEPS
            if _barrier(heights[best]) <= _barrier(straight):
                curve, values = splines[best], heights[best]
                status = Status.CONVERGED if rest[best] <= rest_tol else Status.MAX_STEPS
        places, values = _refined(problem, curve, line, values)
        points, top = curve(places), int(np.argmax(values))
        both = to_numpy(_parameters(problem, points[[0, -1, top]]))
        first_end, second_end, highest = (jax.tree.map(lambda block, i=i: block[i], both) for i in range(3))
        gradient = float(_values(problem, np.repeat(points[top : top + 1], PIECE, axis=0))[1][0])
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    position = np.append(0, np.cumsum(lengths)) / max(float(np.sum(lengths)), np.finfo(float).tiny)
    return MinimaPath(
        first=first_end,
        second=second_end,
        joined=joined,
        position=position if np.any(lengths > 0) else places,
        objective=values,
        straight=straight,
        barrier=_barrier(values),
        straight_barrier=_barrier(straight),
        scale=scale,
        tol=tol,
        highest=highest,
        highest_gradient=gradient,
        distance=float(np.linalg.norm(end - start)) / size,
        given_distance=float(np.linalg.norm(given - start)) / size,
        status=status,
        steps=steps,
    )


def _finite(problem: Problem, given: Any, name: str) -> Parameters:
    parameters = checked_parameters(problem, given, name, (problem.num_classes,))
    if not all(np.all(np.isfinite(block)) for block in jax.tree.leaves(parameters)):
        raise ValueError(f"`{name}` must be finite, got NaN or infinite entries.")
    return parameters


def _barrier(values: np.ndarray) -> float:
    """Return how far the highest value is above the higher end; never below zero, NaN where a value is."""
    return float(np.max(values) - max(values[0], values[-1]))


def _heights(problem: Problem, curve: Any, places: np.ndarray) -> np.ndarray:
    """Return the objective at places on a curve, in pieces of one length, for which the code is compiled once."""
    filled = np.append(places, np.repeat(places[-1:], -len(places) % PIECE)).reshape(-1, PIECE)
    return np.concatenate([_values(problem, curve(part))[0] for part in filled])[: len(places)]


def _refined(problem: Problem, curve: Any, places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places along a curve and the values there, with more of them around the highest."""
    for _ in range(REFINEMENTS):
        top = int(np.argmax(values))
        low, high = places[max(top - 1, 0)], places[min(top + 1, len(places) - 1)]
        new = np.linspace(low, high, FINER + 2)[1:-1]
        order = np.argsort(np.concatenate([places, new]), kind="stable")
        values = np.concatenate([values, _heights(problem, curve, new)])[order]
        places = np.concatenate([places, new])[order]
    return places, values


def _bent(start: np.ndarray, end: np.ndarray, images: int, draws: np.random.Generator) -> np.ndarray:
    """Return the first chains, (C, images, n): straight lines with a bend each, and some noise."""
    t, distance = np.linspace(0, 1, images)[:, None], np.linalg.norm(end - start)
    straight = (1 - t) * start + t * end
    chains = []
    for bend in BENDS:
        direction = draws.standard_normal((1, start.size)) + 0.1 * draws.standard_normal(straight.shape)
        chains.append(straight + bend * distance * np.sin(np.pi * t) * direction / np.sqrt(start.size))
    return np.stack(chains)


# The symmetries -----------------------------------------------------------------------------------------------------


def _aligned(problem: Problem, one: Any, other: Any, align: Align) -> tuple[Any, bool]:
    """Return the other point as close to the one as symmetries bring it, and whether these are joined to the identity."""
    if align == "none":
        return other, True
    if one.bias is not None and problem.loss.shift_invariant and _bias_is_free(problem):
        other = other._replace(bias=other.bias + np.mean(one.bias) - np.mean(other.bias))
    layers = problem.num_layers
    permuted = [problem.nonnegative_features] + [problem.activation == "relu"] * (layers - 1)
    dims = problem.layer_dims[:-1]
    best: Any = None
    for order in ([], list(range(layers)), list(range(layers))[::-1]):
        turns: list[Any] = [np.eye(dim) for dim in dims]
        known = [not order] * layers
        for space in order:  # a first guess from the spaces that are known already
            known[space] = True
            turns[space] = _best_turn(_correlation(one, other, turns, space, known), permuted[space], align)
        last = -np.inf
        for _ in range(ROUNDS):
            for space in range(layers):
                turns[space] = _best_turn(
                    _correlation(one, other, turns, space, [True] * layers), permuted[space], align
                )
            overlap = float(np.sum(one.features * _turned(other, turns).features))
            overlap += sum(
                float(np.sum(a * b)) for a, b in zip(one.weights, _turned(other, turns).weights, strict=True)
            )
            if not overlap > last + 1e-12 * abs(last):
                break
            last = overlap
        if best is None or overlap > best[0]:
            best = overlap, turns
    turns = best[1]
    joined = True
    for space, turn in enumerate(turns):
        if permuted[space]:
            joined &= bool(np.array_equal(turn, np.eye(len(turn))))
        elif np.linalg.det(turn) < 0:
            # A reflection is a rotation where there is a direction to turn through that nothing uses.
            both = np.concatenate([_before(other, space), other.weights[space]])
            _, values, directions = np.linalg.svd(both, full_matrices=True)
            values = np.append(values, np.zeros(len(turn) - len(values)))
            joined &= bool(values[-1] <= UNUSED * values[0])
            if values[-1] <= UNUSED * values[0]:
                turns[space] = turn - 2 * np.outer(turn @ directions[-1], directions[-1])
    return _turned(other, turns), joined


def _bias_is_free(problem: Problem) -> bool:
    return isinstance(problem.regularizer, NormBall) or float(problem.regularizer.bias) == 0


def _before(point: Any, space: int) -> np.ndarray:
    """Return the factor that leads into a space, its coordinates in columns."""
    return point.features if space == 0 else point.weights[space - 1].T


def _turned(point: Any, turns: list[np.ndarray]) -> Any:
    """Return the point with every space turned: H Q_0', Q_1 V_1 Q_0', ..., V_L Q_{L-1}'."""
    weights = [matrix @ turn.T for matrix, turn in zip(point.weights, turns, strict=True)]
    weights = [turn @ matrix for turn, matrix in zip(turns[1:], weights[:-1], strict=True)] + weights[-1:]
    return point._replace(weights=tuple(weights), features=point.features @ turns[0].T)


def _correlation(one: Any, other: Any, turns: list[np.ndarray], space: int, known: list[bool]) -> np.ndarray:
    """Return M with <M, Q> the overlap of the two points that the turn Q of a space decides, as far as its neighbours are known."""
    last = space == len(turns) - 1
    M = np.zeros((len(turns[space]),) * 2)
    if space == 0 or known[space - 1]:
        before = _before(other, space)
        M += _before(one, space).T @ (before if space == 0 else turns[space - 1] @ before)
    if last or known[space + 1]:
        after = other.weights[space]
        M += one.weights[space].T @ (after if last else turns[space + 1] @ after)
    return M


def _best_turn(M: np.ndarray, permuted: bool, align: Align) -> np.ndarray:
    """Return the permutation or the orthogonal matrix Q with the largest <M, Q>; proper, or the identity, where only rotations are wanted."""
    if permuted:
        turn = np.eye(len(M))
        return turn if align == "rotations" else turn[linear_sum_assignment(M, maximize=True)[1]]
    left, _, right = np.linalg.svd(M)
    if align == "rotations" and np.linalg.det(left) * np.linalg.det(right) < 0:
        left[:, -1] = -left[:, -1]
    return left @ right


# The chain ----------------------------------------------------------------------------------------------------------


def _space(problem: Problem) -> Space:
    return balanced_space(problem, class_columns(problem.class_counts, jnp.float64))


@functools.partial(compiled, once=True)
def _point(problem: Problem, parameters: Parameters) -> tuple[coordinates.Point, Array]:
    """Return the coordinates of parameters, and the objective of zero logits."""
    columns = class_columns(problem.class_counts, jnp.float64)
    at_zero = problem.value_at_zero(columns)
    return coordinates.from_parameters(problem, columns, jax.tree.map(jnp.asarray, parameters)), at_zero


@functools.partial(compiled, once=True)
def _parameters(problem: Problem, points: Float[Array, "p n"]) -> Parameters:
    return jax.vmap(_space(problem).parameters)(points)


@functools.partial(compiled, once=True)
def _values(problem: Problem, points: Float[Array, "S n"]) -> tuple[Array, Array]:
    """Return the objective and the relative gradient at every point."""
    space = _space(problem)

    def one(x: Array) -> tuple[Array, Array]:
        value, gradient = space.objective(x)
        return value, space.relative_gradient(x, value, gradient)

    return jax.vmap(one)(points)


@compiled
def _relaxed(problem: Problem, chains: Float[Array, "C m n"], tol: Array, steps: Array) -> tuple[Array, Array, Array]:
    """Return the chains at rest, and of each the relative gradient across it and the number of steps."""
    space = _space(problem)
    objective = jax.vmap(space.objective)

    def across(chain: Array, values: Array, gradients: Array) -> Array:
        """Return the gradients of the inner points without their parts along the chain."""
        ahead, behind = chain[2:] - chain[1:-1], chain[1:-1] - chain[:-2]
        up, down = values[2:] - values[1:-1], values[1:-1] - values[:-2]
        larger, smaller = jnp.maximum(abs(up), abs(down)), jnp.minimum(abs(up), abs(down))
        forward = jnp.where(up + down > 0, larger, smaller)  # at the ends of a slope both neighbours count
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

    def evenly(chain: Array) -> Array:
        """Return the points moved along the chain to equal distances."""
        lengths = jnp.linalg.norm(chain[1:] - chain[:-1], axis=1)
        along = jnp.concatenate([jnp.zeros(1, chain.dtype), jnp.cumsum(lengths)])
        places = along[-1] * jnp.linspace(0, 1, chain.shape[0], dtype=chain.dtype)[1:-1]
        before = jnp.clip(jnp.sum(along[None, :] <= places[:, None], axis=1) - 1, 0, chain.shape[0] - 2)
        share = (places - along[before]) / jnp.maximum(lengths[before], jnp.finfo(chain.dtype).tiny)
        inner = chain[before] + share[:, None] * (chain[before + 1] - chain[before])
        return jnp.concatenate([chain[:1], inner, chain[-1:]])

    def one(chain: Array) -> tuple[Array, Array, Array]:
        values, gradients = objective(chain)
        rate = jnp.linalg.norm(chain) / jnp.maximum(jnp.linalg.norm(gradients), jnp.finfo(chain.dtype).tiny)
        slope = across(chain, values, gradients)

        def residual(chain: Array, values: Array, slope: Array) -> Array:
            return jnp.max(jax.vmap(space.relative_gradient)(chain[1:-1], values[1:-1], slope))

        def going(state: Any) -> Array:
            return (state[-1] < steps) & (state[-2] > tol)

        def step(state: Any) -> Any:
            chain, velocity, values, slope, rate, _, count = state
            # Momentum is lost where it leads uphill.
            downhill = jnp.sum(velocity * slope) <= 0
            new_velocity = jnp.where(downhill, MOMENTUM, 0.0) * velocity - rate * slope
            moved = evenly(jnp.concatenate([chain[:1], chain[1:-1] + new_velocity, chain[-1:]]))
            new_values, gradients = objective(moved)
            # A step that raises the chain as a whole was too long.
            good = jnp.mean(new_values) <= jnp.mean(values) + 0.01 * jnp.ptp(values) + 1e-12 * jnp.mean(abs(values))
            good = good & jnp.all(jnp.isfinite(gradients))
            new_slope = across(moved, new_values, gradients)
            chain, velocity, values, slope = (
                jnp.where(good, after, before)
                for before, after in (
                    (chain, moved),
                    (jnp.zeros_like(velocity), new_velocity),
                    (values, new_values),
                    (slope, new_slope),
                )
            )
            rate = jnp.where(good, 1.01 * rate, 0.3 * rate)
            return chain, velocity, values, slope, rate, residual(chain, values, slope), count + 1

        start = (chain, jnp.zeros_like(slope), values, slope, rate, residual(chain, values, slope), jnp.int32(0))
        chain, _, _, _, _, rest, count = jax.lax.while_loop(going, step, start)
        return chain, rest, count

    return jax.vmap(one)(chains)
