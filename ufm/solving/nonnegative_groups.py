r"""Problems over groups with non-negative features, in factors symmetric within groups.

For a dual U in blocks, the dual norm max_{h >= 0, ||h|| = 1} ||U' D^{1/2} h|| depends only on the
norm and the sum of h within each group. So it is attained at an h with one distinguished class per
group, with the value x_g on this class and y_g >= 0 on the K_g - 1 others. Atoms w h' of this form,
averaged over the choices of the distinguished classes (an orbit), therefore span the gauge. In the
orthonormal basis of a group's unit vector and of the distinguished class less the mean, an orbit
has

    s_g = (x_g + (K_g - 1) y_g) / sqrt(K_g),    t_g = (x_g - y_g) sqrt((K_g - 1) / K_g)

for the features and free numbers (u_g, v_g) for the weights. It adds s_g u_h to the blocks between
groups and t_g v_g / (K_g - 1) to those within. The cost does not depend on K. Roots of x and y make
the features non-negative, so the problem is smooth and has no bounds. It is not convex. A
certificate says whether the minimum found is global, and otherwise which orbit to add.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm._support import Status, compiled, double_precision, to_numpy
from ufm.certificates import GroupEvidence, dual_blocks, group_evidence, tightened
from ufm.problems import Blocks, GroupProblem, mean_loss, rows_of
from ufm.solving.group_batch import GroupMinimum
from ufm.solving.methods import NewtonCG, descended, first_margins, free_space, iterate_at

__all__ = ["Orbits", "coordinates", "copies_of", "entries", "minimise_over_orbits"]

# No measurement of these numbers is recorded.
DESCENT_STEPS = 300  # Newton steps of a descent, at most
MAX_ESCAPES = 30
SMALL = 0.05  # amplitude of the orbits that the closed form does not have, relative to those it has
TIDY = (1e-4, 1e-2, 0.1)  # roots below this share of the largest are set to zero on a way out
# Shares of the largest amplitude below which orbits are left out; the first that stays certified.
PRUNE = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STARTS = 32  # random starts of the power iteration for violating features
POWER_STEPS = 300
SIMPLIFIED = 1e-12  # relative gradient to which a simpler point is taken


class Orbits(NamedTuple):
    """J orbits in balanced coordinates.

    Attributes:
        own: Roots of the features x on the distinguished classes, shape (G, J).
        other: Roots of sqrt(K_g - 1) y, y the features on the other classes, shape (G, J).
        between: The weights u, shape (G, J).
        within: The weights v, shape (G, J).
        bias: Shape (G,), or None.
        slack: The slack number of a norm ball, shape (), or None.
    """

    own: Float[Array, "G J"]
    other: Float[Array, "G J"]
    between: Float[Array, "G J"]
    within: Float[Array, "G J"]
    bias: Float[Array, " G"] | None
    slack: Float[Array, ""] | None


def entries(sizes: Any, own: Any, other: Any) -> tuple[Any, Any]:
    """Return x and y, (G, J), of roots; y is zero in groups of one class."""
    xp = np if isinstance(own, np.ndarray) else jnp
    several = sizes[:, None] > 1
    return own**2, xp.where(
        several, other**2 / xp.sqrt(xp.where(several, sizes[:, None] - 1, 1)), 0
    )


def coordinates(sizes: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return s and t of features x, y, (G, J) or (G,).

    They are components along the groups' unit vectors, and along the distinguished classes less the
    means.
    """
    xp = np if isinstance(x, np.ndarray) else jnp
    sizes = sizes.reshape(-1, *(1,) * (x.ndim - 1))
    return (x + (sizes - 1) * y) / xp.sqrt(sizes), (x - y) * xp.sqrt(sizes - 1) / xp.sqrt(sizes)


def _logits(problem: GroupProblem, orbits: Orbits) -> tuple[Blocks, Array]:
    """Return the logits without bias and what the factors cost."""
    x, y = entries(problem.sizes, orbits.own, orbits.other)
    s, t = coordinates(problem.sizes, x, y)
    squares = jnp.sum(s**2 + t**2)
    weights = jnp.sum(orbits.between**2) + jnp.sum(
        jnp.where(problem.sizes[:, None] > 1, orbits.within, 0) ** 2
    )
    gauge = 0.5 * (squares + weights)
    within = jnp.sum(t * orbits.within, axis=1) / jnp.maximum(problem.sizes - 1, 1)
    between = s @ orbits.between.T
    factor = jnp.ones(())
    if orbits.slack is not None:
        factor = problem.gauge.price / (gauge + orbits.slack**2)
    roots = problem.gauge.rows
    return Blocks(
        factor * within / roots, factor * between / roots[:, None], problem.sizes
    ), factor * gauge


def _objective(problem: GroupProblem, orbits: Orbits) -> Array:
    logits, gauge = _logits(problem, orbits)
    value = mean_loss(problem, rows_of(logits, orbits.bias))
    if not problem.gauge.bounded:
        value = value + problem.gauge.price * gauge
    if orbits.bias is None:
        return value
    shift = jnp.sum(problem.sizes * orbits.bias) / problem.num_classes
    gauged = value + 0.5 * problem.bias * jnp.sum(problem.sizes * orbits.bias**2)
    return gauged + 0.5 * shift**2 if problem.loss.shift_invariant else gauged


def _start(problem: GroupProblem) -> Orbits:
    """Return one orbit of single classes per group, and small uniform ones.

    The former are those of the closed form (Dang et al., ICML 2024).
    """
    G, sizes, K = problem.num_groups, problem.sizes, problem.num_classes
    margins, _ = first_margins(problem)
    amplitude = jnp.sqrt(sizes * problem.gauge.rows * margins)[None, :]
    eye = jnp.eye(G)
    single = jnp.concatenate(
        [
            eye * amplitude,
            SMALL * jnp.sqrt(1 / sizes)[None, :] * eye * amplitude,
            SMALL * eye * amplitude,
        ],
        axis=1,
    )
    spread = jnp.concatenate([0 * eye, SMALL * eye * amplitude, SMALL * eye * amplitude], axis=1)
    # The weights of a class: its unit vector less the mean.
    outer = jnp.sqrt(sizes)[:, None] * jnp.ones(G)[None, :] / K
    between = (eye / jnp.sqrt(sizes)[:, None] - outer) * amplitude
    within = eye * jnp.sqrt((sizes - 1) / sizes)[:, None] * amplitude
    pushed = (eye - jnp.sqrt(sizes)[:, None] * jnp.sqrt(sizes)[None, :] / K) * amplitude
    small = SMALL * jnp.concatenate([pushed, pushed], axis=1)
    return Orbits(
        own=jnp.sqrt(single),
        other=jnp.sqrt(spread),
        between=jnp.concatenate([between, small], axis=1),
        within=jnp.concatenate([within, SMALL * within, SMALL * within], axis=1),
        bias=jnp.zeros(G) if problem.use_bias else None,
        slack=jnp.sqrt(0.1 * problem.gauge.price) if problem.gauge.bounded else None,
    )


@compiled
def _descended(problem: GroupProblem, orbits: Orbits, tol: Array) -> tuple[Orbits, Array, Array]:
    """Run Newton-CG from a point; return the end, the value there, and the number of steps."""
    x, unravel = ravel_pytree(orbits)
    space = free_space(jax.value_and_grad(lambda x: _objective(problem, unravel(x))))
    method = NewtonCG()
    end = descended(space, method, iterate_at(space, method, x), DESCENT_STEPS, tol)
    return unravel(end.x), end.value, end.step


@functools.partial(compiled, once=True)
def _answer(problem: GroupProblem, orbits: Orbits) -> tuple[Blocks, Array, GroupEvidence, Any]:
    logits, gauge = _logits(problem, orbits)
    return (
        logits,
        gauge,
        group_evidence(problem, logits, orbits.bias, gauge),
        dual_blocks(problem, logits, orbits.bias),
    )


class _Judged(NamedTuple):
    """What is known of a point: its logits, the evidence, its dual rows, and violating features.

    The violating features x, y are None where the point is certified.
    """

    logits: Blocks
    evidence: GroupEvidence
    dual: Blocks
    features: Any

    @property
    def gap(self) -> float:
        return float(self.evidence.relative_gap)


def _judged(problem: GroupProblem, orbits: Any, tol: float) -> _Judged:
    """Evaluate a point.

    The norm of the relaxation is taken where the cheap norm does not certify it.
    """
    logits, gauge, evidence, (dual, gram) = to_numpy(_answer(problem, orbits))
    if float(evidence.relative_gap) <= tol:
        return _Judged(logits, evidence, dual, None)
    *features, gain = _violating(problem, dual, gram)
    evidence = tightened(problem, logits, orbits.bias, gauge, evidence, dual, gain, tol)
    return _Judged(logits, evidence, dual, features)


_start_at = functools.partial(compiled, once=True)(_start)
_value = functools.partial(compiled, once=True)(_objective)


def copies_of(sizes: np.ndarray, orbits: Orbits) -> list[int]:
    """Return how many atoms each orbit has: one for each choice of its distinguished classes.

    An orbit whose features are zero has none.

    Args:
        sizes: (G,), classes per group.
        orbits: J of them.
    """
    _, t = coordinates(sizes, *entries(sizes, np.asarray(orbits.own), np.asarray(orbits.other)))
    several = sizes[:, None] > 1
    used = np.any(orbits.own, axis=0) | np.any(np.where(several, orbits.other, 0), axis=0)
    distinguished = several & ((t != 0) | (np.asarray(orbits.within) != 0))
    whole = [int(size) for size in np.round(sizes)]
    return [
        math.prod(size for size, one in zip(whole, column, strict=True) if one) if there else 0
        for there, column in zip(used, distinguished.T, strict=True)
    ]


def minimise_over_orbits(
    problem: GroupProblem, tol: float = 1e-9, room: int | None = None
) -> GroupMinimum:
    """Minimise one problem over groups with non-negative features.

    It goes on until the point is certified or no way out is left.

    Args:
        problem: Concrete, without batch axes.
        tol: Relative gap to certify to.
        room: Atoms that the minimiser may have. One that has more is simplified as long as it stays
            certified.
    """
    with double_precision():
        best = to_numpy(_start_at(problem))
        steps = escapes = 0
        value = np.inf
        answer: Any = None
        candidates = [best]
        for _ in range(MAX_ESCAPES):
            improved = False
            for start in candidates:
                point, new_value, count = to_numpy(
                    _descended(problem, start, np.asarray(1e-3 * tol))
                )
                steps += int(count)
                found = _judged(problem, point, tol)
                lower = float(new_value) < value * (1 - 1e-15)
                if answer is None or lower or found.gap < 0.5 * answer.gap:
                    improved, best, value, answer = True, point, float(new_value), found
                    break
            if answer.gap <= tol or not improved:
                break
            escapes += 1
            candidates = _ways_out(problem, best, answer)
        allowed = max(answer.gap, tol)
        best, answer = _pruned(problem, best, answer, allowed)
        if room is not None:
            best, answer = _simplified(problem, best, answer, allowed, room)
        status = Status.CONVERGED if answer.gap <= tol else Status.NOT_CERTIFIED
        price = np.nan if problem.gauge.bounded else float(problem.gauge.price)
        reached: Any = price, steps, status, escapes, best
        return GroupMinimum(answer.logits, best.bias, answer.evidence, *reached)


def _pruned(
    problem: GroupProblem, orbits: Any, answer: _Judged, gap: float
) -> tuple[Orbits, _Judged]:
    """Return the point with as few orbits and parts of orbits as the certified gap allows.

    Small ones are left out, and parallel ones merged.
    """
    for threshold in PRUNE:
        amplitude = np.sqrt(np.sum(orbits.own**4 + orbits.other**4, axis=0))
        used = amplitude > threshold * np.max(amplitude)
        own, other = orbits.own * used, orbits.other * used
        # Where an orbit hardly distinguishes a class of a group, the difference is removed.
        sizes = np.asarray(problem.sizes)[:, None]
        x, y = entries(sizes[:, 0], own, other)
        alike = (np.abs(x - y) < threshold * np.max(amplitude)) & (sizes > 1)
        mean = (x + (sizes - 1) * y) / sizes
        own = np.where(alike, np.sqrt(mean), own)
        other = np.where(alike, np.sqrt(mean * np.sqrt(np.maximum(sizes - 1, 0))), other)
        within = np.where(alike, 0, orbits.within) * used
        point = orbits._replace(own=own, other=other, between=orbits.between * used, within=within)
        point = _merged(problem, _flipped(problem, point), 1 - 0.5 * threshold**2)
        pruned = _judged(problem, point, gap)
        if pruned.gap <= gap:
            return point, pruned
    return orbits, answer


def _flipped(problem: GroupProblem, orbits: Any) -> Orbits:
    """Return the point with x >= y in groups of two classes.

    Either of the two can be called the distinguished one.
    """
    flip = (np.asarray(problem.sizes)[:, None] == 2) & (orbits.other > orbits.own)
    return orbits._replace(
        own=np.where(flip, orbits.other, orbits.own),
        other=np.where(flip, orbits.own, orbits.other),
        within=np.where(flip, -orbits.within, orbits.within),
    )


def _simplified(
    problem: GroupProblem, orbits: Any, answer: _Judged, gap: float, room: int
) -> tuple[Orbits, _Judged]:
    """Return a point of at most `room` atoms, or the one with the fewest that is found.

    Orbits can often be exchanged for others at no cost, and descent ends at a mixture. One of them
    is left out or made simpler, the one that changes least first, and descent from there moves the
    rest; zeros stay zero on the way.
    """
    sizes = np.asarray(problem.sizes)
    while sum(copies_of(sizes, orbits)) > room:
        count = sum(copies_of(sizes, orbits))
        for candidate in _simpler(problem, orbits):
            if sum(copies_of(sizes, candidate)) >= count:
                continue
            point, _, _ = to_numpy(_descended(problem, candidate, np.asarray(SIMPLIFIED)))
            point, found = _pruned(problem, point, _judged(problem, point, gap), gap)
            if found.gap <= gap and sum(copies_of(sizes, point)) < count:
                orbits, answer = point, found
                break
        else:
            break
    return orbits, answer


def _simpler(problem: GroupProblem, orbits: Any) -> list[Orbits]:
    """Return simpler points, the one that changes least first.

    An orbit is left out; or in one group it is zero on the distinguished class, zero on the others,
    or the same on all.
    """
    sizes = np.asarray(problem.sizes)
    x, y = entries(sizes, orbits.own, orbits.other)
    found = []

    def add(column: Any, group: Any, x_new: Any, y_new: Any, keep: Any) -> None:
        others = np.sqrt(np.maximum(sizes[group] - 1, 0))
        own, other, within = (np.array(part) for part in (orbits.own, orbits.other, orbits.within))
        between = np.array(orbits.between)
        own[group, column], other[group, column] = np.sqrt(x_new), np.sqrt(y_new * others)
        within[group, column] = within[group, column] * keep
        if not np.any(own[:, column]) and not np.any(other[:, column]):
            between[:, column] = within[:, column] = 0
        moved = np.sum(
            (x_new - x[group, column]) ** 2 + (sizes[group] - 1) * (y_new - y[group, column]) ** 2
        )
        found.append(
            (float(moved), orbits._replace(own=own, other=other, between=between, within=within))
        )

    for column in np.flatnonzero(np.any(orbits.own, axis=0) | np.any(orbits.other, axis=0)):
        add(column, slice(None), 0 * sizes, 0 * sizes, 0)
        for group in np.flatnonzero(sizes > 1):
            mean = (x[group, column] + (sizes[group] - 1) * y[group, column]) / sizes[group]
            add(column, group, mean, mean, 0)
            add(column, group, x[group, column], 0.0, 1)
            add(column, group, 0.0, y[group, column], 1)
    return [point for _, point in sorted(found, key=lambda pair: pair[0])]


def _merged(problem: GroupProblem, orbits: Any, cosine: float) -> Orbits:
    """Return the point with parallel orbits merged: their features' cosine is at least `cosine`.

    w h' + c w' h' = (w + c w') h'.
    """
    several, G = np.asarray(problem.sizes)[:, None] > 1, problem.num_groups
    h = np.concatenate([orbits.own**2, np.where(several, orbits.other**2, 0)])
    w = np.concatenate([orbits.between, np.where(several, orbits.within, 0)])
    for first in np.argsort(-np.linalg.norm(h, axis=0)):
        length = np.linalg.norm(h[:, first])
        parallel = h[:, first] @ h >= cosine * length * np.linalg.norm(h, axis=0)
        parallel &= np.any(h != 0, axis=0)
        if length == 0 or np.sum(parallel) < 2:
            continue
        unit = h[:, first] / length
        total = w[:, parallel] @ (unit @ h[:, parallel])
        h[:, parallel] = w[:, parallel] = 0
        size = np.sqrt(np.linalg.norm(total))
        h[:, first], w[:, first] = size * unit, total / max(size, np.finfo(float).tiny)
    return orbits._replace(own=np.sqrt(h[:G]), other=np.sqrt(h[G:]), between=w[:G], within=w[G:])


def _ways_out(problem: GroupProblem, orbits: Any, answer: _Judged) -> list[Orbits]:
    """Return points from which to go on.

    Roots that are nearly zero are set to zero, or the violating orbit is added.
    """
    ways = []
    for threshold in TIDY:
        largest = max(np.max(np.abs(orbits.own)), np.max(np.abs(orbits.other)))
        own, other = (
            np.where(np.abs(part) < threshold * largest, 0, part)
            for part in (orbits.own, orbits.other)
        )
        if np.any(own != orbits.own) or np.any(other != orbits.other):
            used = np.any(own != 0, axis=0) | np.any(other != 0, axis=0)
            ways.append(
                orbits._replace(
                    own=own, other=other, between=orbits.between * used, within=orbits.within * used
                )
            )
    x, y = answer.features
    sizes = np.asarray(problem.sizes)
    others = sizes - 1
    s, t = coordinates(sizes, x, y)
    u, v = -answer.dual.between.T @ s, -answer.dual.within * t
    length = np.sqrt(np.sum(u**2) + np.sum(v**2))
    if length > 0:
        sizes_of = np.sum(orbits.own**4 + orbits.other**4, axis=0) + np.sum(
            orbits.between**2 + orbits.within**2, axis=0
        )
        slot = int(np.argmin(sizes_of))
        scale = np.sqrt(np.max(sizes_of))
        added = []
        for size in scale * np.geomspace(1, 1e-4, 9):
            point = orbits._replace(
                own=_put(orbits.own, slot, np.sqrt(size * x)),
                other=_put(orbits.other, slot, np.sqrt(size * y * np.sqrt(others))),
                between=_put(orbits.between, slot, size * u / length),
                within=_put(orbits.within, slot, size * v / length),
            )
            added.append((float(_value(problem, point)), point))
        ways.append(min(added, key=lambda pair: pair[0])[1])
    return ways


def _put(matrix: np.ndarray, column: int, values: np.ndarray) -> np.ndarray:
    matrix = np.array(matrix)
    matrix[:, column] = values
    return matrix


def _violating(
    problem: GroupProblem, dual: Blocks, gram: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return x and y of the unit h >= 0 of largest ||U' D^{1/2} h|| found, and that norm.

    They are found by projected power iteration from many starts.

    Args:
        problem: Over groups.
        dual: The weighted dual rows.
        gram: (G, G + 1), the entries of their Gram matrix: each class with itself in the last
            column, two classes of g and h in [g, h].
    """
    G, sizes = problem.num_groups, np.asarray(problem.sizes)[:, None]
    pairs, alone = gram[:, :G], gram[:, G]
    generator = np.random.default_rng(0)
    eye = np.eye(G)
    x = np.concatenate([eye, eye, np.ones((G, 1)), generator.exponential(size=(G, STARTS))], axis=1)
    y = np.concatenate(
        [0 * eye, eye, np.ones((G, 1)), generator.exponential(size=(G, STARTS))], axis=1
    )
    excess = (alone - np.diagonal(pairs))[:, None]
    for _ in range(POWER_STEPS):
        common = pairs @ (x + (sizes - 1) * y)
        x, y = np.maximum(excess * x + common, 0), np.maximum(excess * y + common, 0)
        largest = np.maximum(np.max(np.maximum(x, y), axis=0), np.finfo(float).tiny)
        x, y = x / largest, y / largest  # squares of numbers beyond 1e154 would be infinite
        norm = np.sqrt(np.sum(x**2 + (sizes - 1) * y**2, axis=0))
        norm = np.maximum(norm, np.finfo(float).tiny)
        x, y = x / norm, y / norm
    s, t = coordinates(np.asarray(problem.sizes), x, y)
    gains = np.sum((dual.between.T @ s) ** 2, axis=0) + np.sum(
        (dual.within[:, None] * t) ** 2, axis=0
    )
    best = int(np.argmax(gains))
    return x[:, best], y[:, best], float(np.sqrt(gains[best]))
