r"""An interior-point method for one-layer problems over groups of classes.

It takes one or two dozen Newton steps for any K.

The unknowns are the blocks of M = diag(r) Z, Z the logits without their bias: a number x_g per
group (`within`, of multiplicity m_g = K_g - 1) and the G x q matrix X = diag(r) C V. C is the
`between` matrix, and V an orthonormal basis of the span of its rows: the vectors orthogonal to
sqrt(K_g) if the loss is invariant under shifts of the logits, otherwise all. The gauge of the
unknowns is sum_g m_g |x_g| + ||X||_*.

The nuclear norm is the least (tr P + tr Q) / 2 over [[P, M], [M', Q]] >= 0. With the barrier -mu
log det of that cone, and P and Q eliminated, a singular value sigma costs nu B(sigma) at the price
nu. With kappa = mu / nu,

    B'(sigma) = sigma / (kappa + sqrt(kappa^2 + sigma^2)) = tanh(u / 2)    at sigma = kappa sinh u.

B is smooth and strictly convex, and tends to |sigma| as kappa -> 0. So no inequalities are left,
and the dual variables are strictly feasible on the path. The method follows the path to the
optimum. It makes Newton corrections at fixed mu. Once close to the path, it steps along the tangent
to a smaller mu. These steps get longer, since the path is smooth at its end. Spectral second
derivatives are quotients of hyperbolic functions without cancellation.

Under weight decay nu = tau. Inside a norm ball kappa is the part of the radius that the gauge
leaves (the gauge is T - kappa), and nu = mu / kappa follows. That is the barrier of the ball. Steps
are judged by the slope along them. Values count beyond their rounding only, so rounding of the
objective never stops the method.

Arrays have their batch axes last, so all arithmetic runs over contiguous memory. Operations on the
small matrices are written out entry by entry.

Reference for path following: Nesterov & Nemirovskii (1994), "Interior-point polynomial algorithms
in convex programming".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Status, broadcasting
from ufm.problems import (
    Blocks,
    GroupProblem,
    Rows,
    diagonal,
    identity,
    mean_loss,
    probabilities,
    rows_of,
    slopes,
    times_of,
)
from ufm.solving.methods.cholesky import inverse_factor

__all__ = [
    "PathEnd",
    "complement",
    "first_bias",
    "first_margins",
    "follow_path",
    "most_steps",
    "smoothed_nuclear_norm",
    "steps_on_path",
]

UNROLLED = 12  # unknowns up to which the factorisation is written out
# How the path is followed. No measurement of these numbers is recorded. Decrements are squared
# Newton decrements in units of the barrier. A ratio is that of the next weight mu to this one.
CENTRED = 0.01  # largest decrement at which the barrier is lowered
GOOD = 0.01  # largest decrement after a step along the tangent that makes the next ratio bolder
FAIR = 0.3  # largest decrement after a step along the tangent that keeps the ratio
OFF = 3.0  # smallest ratio over the root of the decrement
FIRST_RATIO = 0.25
BOLDEST, MEEKEST = 1e-3, 0.5  # limits of the ratio
PATH_STEPS = 200  # Newton steps on a path at most; two groups take a dozen
STEPS_PER_MARGIN = 2  # further steps in a norm ball, for each unit of its largest margin
# The gap is relative to at least this share of the objective at zero. Below it the weight of the
# barrier would underflow.
SMALLEST_VALUE = 1e-280
LARGEST_MARGIN = 745  # beyond it an exponential is zero
# The first point. No measurement of these numbers is recorded.
START_KAPPA = 0.1  # kappa over the largest weighted margin
SMALLEST_MARGIN = 0.3
SMALLEST_LOSS = 1e-13  # least total probability of the other classes
# Share of the curvature of the data term below which an entry of the diagonal is rounding.
NOTHING = 1e-12
# Share of its terms by which the barrier objective may rise in a step. It is above their rounding.
RISE = 1e-9


class PathEnd(NamedTuple):
    """Where the path ends; all fields have the problem's batch axes last.

    Attributes:
        logits: The blocks of Z, without bias.
        bias: Shape (G,), or None.
        price: Nu, the multiplier of the gauge, shape ().
        kappa: Kappa at the end of the path, shape ().
        weight: Factor of kappa for the modes between groups, shape ().
        steps: Number of Newton steps, shape ().
        status: Code of `Status`, shape ().
        residual: Squared Newton decrement in units of the barrier, shape ().
    """

    logits: Blocks
    bias: Float[Array, "G *batch"] | None
    price: Float[Array, "*batch"]
    kappa: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    status: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]


class _Path(NamedTuple):
    x: Array
    mu: Array  # weight of the barrier; kappa = mu / price
    origin: Array
    direction: Array
    slope: Array  # along `direction` at `origin`; minus infinity where any finite point is good
    merit: Array  # at `origin`; infinite where any finite point is good
    alpha: Array
    ratio: Array
    steps: Array
    done: Array
    failed: Array
    residual: Array


class _Model(NamedTuple):
    kappa: Array
    price: Array
    rank_one: Array  # of gauge_slope, which the ball adds to the Hessian
    gradient: Array
    hessian: Array
    by_mu: Array  # derivative of the gradient
    gauge_slope: Array  # of the gauge, sum of p over modes
    value: Array  # of the objective
    merit: Array  # what the gradient is of: the objective with the barrier
    magnitude: Array  # of the terms of `merit`


# The path and its step share most of their numbers: kept whole.
@broadcasting
def follow_path(
    problem: GroupProblem,
    tol: Float[Array, ""],
    max_steps: int | Int[Array, ""] = PATH_STEPS,
    weight_exponent: float | Float[Array, ""] = 0.25,
) -> PathEnd:
    """Minimise a problem over groups with signed features.

    Pure: it can be jit-compiled and vmapped.

    Args:
        problem: The problem; its leaves may be traced, and have batch axes last.
        tol: Duality gap to reach, relative to the objective, shape ().
        max_steps: Most Newton steps, refused ones included.
        weight_exponent: From 0, which is fast, to 1, which is robust. The barrier of the modes
            between groups has the weight (K - G)^weight_exponent. It evens out the scales of the
            unknowns: a logit of one is an unknown of size one within a group, but of size
            sqrt(K_g K_h) between two groups.
    """
    G, dtype, batch = problem.num_groups, problem.counts.dtype, problem.counts.shape[1:]
    basis = mode_basis(problem)
    q = basis.shape[1]
    # How many barriers there are: a mode within a group of multiplicity m has m, a mode between
    # groups `weight`.
    times = jnp.maximum(problem.sizes - 1, 1)
    weight = jnp.maximum((problem.num_classes - G) / max(q, 1), 1) ** weight_exponent
    modes = problem.num_classes - G + weight * q
    one_each = jnp.concatenate(
        [1 / times[:, None], jnp.broadcast_to(1 / weight, (G, q, *batch))], axis=1
    )
    one_each = one_each.reshape(G * (1 + q), *batch)
    one_each = (
        jnp.concatenate([one_each, jnp.ones((G, *batch), dtype)]) if problem.use_bias else one_each
    )
    at_zero = mean_loss(
        problem, Rows(jnp.zeros((G, *batch), dtype), jnp.zeros((G, G, *batch), dtype))
    )
    margins, price = first_margins(problem)
    x = _packed(problem, basis, margins, first_bias(problem))
    radius = START_KAPPA * jnp.max(problem.gauge.rows * margins, axis=0)
    if problem.gauge.bounded:
        within, between, _ = split_unknowns(problem, q, x)
        radius = kappa_in_ball(problem, within, decomposition(between), weight)
    zero = jnp.zeros(batch, dtype)
    path = _Path(
        x=x,
        mu=price * radius,
        origin=x,
        direction=jnp.zeros_like(x),
        slope=zero - jnp.inf,
        merit=zero + jnp.inf,
        alpha=zero + 1,
        ratio=zero + FIRST_RATIO,
        steps=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        failed=jnp.zeros(batch, bool),
        residual=zero + jnp.inf,
    )

    def step(path: _Path) -> _Path:
        model = barrier_model(problem, basis, path.x, path.mu, weight)
        kappa, unit = model.kappa, path.mu
        slope = jnp.sum(model.gradient * path.direction, axis=0)
        fine = jnp.all(jnp.isfinite(model.gradient), axis=0) & jnp.isfinite(kappa)
        # The objective is convex. A step is good if the objective still falls at its end, or rises
        # less steeply than it fell at the start. Steps out of a nearly linear region are an
        # exception, because they can end higher. So the merit must not rise by more than rounding.
        lower = model.merit <= path.merit + RISE * model.magnitude
        accepted = fine & ((lower & (slope <= 0.9 * jnp.abs(path.slope))) | (path.alpha < 1e-9))
        solve = solver(model.hessian)
        solve = (
            _with_rank_one(solve, model.gauge_slope, model.rank_one)
            if problem.gauge.bounded
            else solve
        )
        newton = -solve(model.gradient)
        decrement = jnp.sum(jnp.abs(newton * model.gradient) * one_each, axis=0) / unit
        centred = accepted & (decrement <= CENTRED)
        # The path ends if the gap that the barrier leaves is below the tolerance, and the point is
        # on the path. A cross-entropy keeps its digits however small it is. A squared error near
        # zero consists of the rounding of the logits.
        floor = SMALLEST_VALUE if problem.loss.kind == "cross-entropy" else 1e-6
        scale = jnp.maximum(model.value, floor * at_zero)
        small = unit * modes <= tol * scale
        done = centred & small & (decrement <= 1e-3)
        # After a step that lands close to the path the next ratio is bolder. A point off the path
        # has a tangent that is off by as much, so the decrement bounds the ratio from below.
        landed = accepted & ~jnp.isfinite(path.slope)
        exponent = jnp.where(decrement < GOOD, 1.7, jnp.where(decrement < FAIR, 1.0, 0.6))
        ratio = jnp.clip(jnp.where(landed, path.ratio**exponent, path.ratio), BOLDEST, MEEKEST)
        careful = jnp.maximum(ratio, OFF * jnp.sqrt(decrement))
        target = jnp.where(small, unit, jnp.maximum(unit * careful, 0.5 * tol * scale / modes))
        change = jnp.minimum(target - unit, 0)
        along = newton - solve(model.by_mu) * change
        # A point off the path makes a Newton step at the same barrier, which the next point judges.
        # A refused step is shortened to where the secant puts the zero of the slope.
        secant = path.slope / (path.slope - slope)
        shorter = path.alpha * jnp.where(jnp.isfinite(secant), jnp.clip(secant, 0.05, 0.5), 0.2)
        origin = jnp.where(accepted, path.x, path.origin)
        direction = jnp.where(accepted, jnp.where(centred, along, newton), path.direction)
        alpha = jnp.where(accepted, 1.0, shorter)
        new_slope = jnp.where(centred, -jnp.inf, jnp.sum(model.gradient * newton, axis=0))
        return _Path(
            x=jnp.where(done, path.x, origin + alpha * direction),
            mu=jnp.where(centred & ~done, unit + change, unit),
            origin=origin,
            direction=direction,
            slope=jnp.where(accepted, new_slope, path.slope),
            merit=jnp.where(accepted, jnp.where(centred, jnp.inf, model.merit), path.merit),
            alpha=alpha,
            ratio=ratio,
            steps=path.steps + 1,
            done=done,
            failed=~fine & (path.alpha < 1e-12),
            residual=jnp.where(accepted, decrement, path.residual),
        )

    path, status = steps_on_path(step, path, max_steps)
    logits, bias = logits_of_unknowns(problem, basis, path.x)
    model = barrier_model(problem, basis, path.x, path.mu, weight)
    return PathEnd(
        logits,
        bias,
        model.price,
        model.kappa,
        weight,
        path.steps,
        status,
        path.residual,
    )


def steps_on_path(
    step: Callable[[Any], Any], state: Any, max_steps: int | Int[Array, ""]
) -> tuple[Any, Int[Array, "*batch"]]:
    """Return the state at the end of a path, and its status.

    Args:
        step: From one state to the next. States are tuples with `done`, `failed` and `steps`. A
            problem of a batch that is done or has failed keeps its state.
        state: The first state.
        max_steps: Most steps.
    """

    def going(state: Any) -> Array:
        return ~(state.done | state.failed) & (state.steps < max_steps)

    def body(old: Any) -> Any:
        ended = old.done | old.failed
        return jax.tree.map(lambda a, b: jnp.where(ended, a, b), old, step(old))

    state = jax.lax.while_loop(lambda state: jnp.any(going(state)), body, state)
    failed = jnp.where(state.failed, Status.NON_FINITE, Status.MAX_STEPS)
    return state, jnp.where(state.done, Status.CONVERGED, failed).astype(jnp.int32)


def most_steps(problem: GroupProblem) -> int:
    """Return how many steps a path may take.

    Each Newton step divides an exponential by e. So a norm ball needs steps in proportion to the
    largest margin that it allows, up to the margin at which the objective underflows. A batch of
    problems gets as many as its longest path needs.
    """
    if not problem.gauge.bounded or problem.loss.kind != "cross-entropy":
        return PATH_STEPS
    largest = float(np.max(problem.gauge.price))
    return PATH_STEPS + int(STEPS_PER_MARGIN * min(largest, LARGEST_MARGIN))


def mode_basis(problem: GroupProblem) -> Array:
    """Return V, (G, q): an orthonormal basis orthogonal to sqrt(K_g), or the identity."""
    sizes, G = problem.sizes, problem.num_groups
    eye = jnp.broadcast_to(identity(sizes[:, None] * sizes[None, :]), (G, *sizes.shape))
    if not problem.loss.shift_invariant:
        return eye
    return complement(jnp.sqrt(sizes / jnp.sum(sizes, axis=0)))


def complement(unit: Float[Array, "G ..."]) -> Float[Array, "G q ..."]:
    """Return an orthonormal basis of the orthogonal complement of a unit vector, q = G - 1.

    It is the Householder reflection that takes the last axis to the vector, without its last
    column.
    """
    eye = identity(unit[:, None] * unit[None, :])
    v = unit + eye[-1]
    return (eye - v[:, None] * v[None, :] / (1 + unit[-1]))[:, :-1]


def split_unknowns(problem: GroupProblem, q: int, x: Array) -> tuple[Array, Array, Array | None]:
    """Return the unknowns within groups (G,), those between groups (G, q), and the bias or None."""
    G = problem.num_groups
    rows = x[: G * (1 + q)].reshape(G, 1 + q, *x.shape[1:])
    return rows[:, 0], rows[:, 1:], x[G * (1 + q) :] if problem.use_bias else None


def _joined(
    problem: GroupProblem, within: Array, between: Array, bias: Array | None = None
) -> Array:
    G, q, *batch = between.shape
    rows = jnp.concatenate([within[:, None], between], axis=1).reshape(G * (1 + q), *batch)
    if not problem.use_bias:
        return rows
    return jnp.concatenate([rows, jnp.zeros_like(within) if bias is None else bias])


def _packed(problem: GroupProblem, basis: Array, margins: Array, bias: Array | None) -> Array:
    """Return the unknowns at given margins of the own logits over the mean, and a bias."""
    within = jnp.where(problem.sizes > 1, margins, 0) * problem.gauge.rows
    return _joined(
        problem, within, (problem.gauge.rows * margins / problem.sizes)[:, None] * basis, bias
    )


def logits_of_unknowns(
    problem: GroupProblem, basis: Array, x: Array
) -> tuple[Blocks, Array | None]:
    """Return the blocks of the logits without bias, and the bias or None."""
    within, between, bias = split_unknowns(problem, basis.shape[1], x)
    matrix = jnp.sum(between[:, None] * basis[None], axis=2)
    roots = problem.gauge.rows
    return Blocks(
        jnp.where(problem.sizes > 1, within / roots, 0), matrix / roots[:, None], problem.sizes
    ), bias


@broadcasting
def first_margins(problem: GroupProblem) -> tuple[Array, Array]:
    """Return estimates of the margins at the minimiser, (G,), and a first price.

    For squared error under weight decay the margins are exact if groups do not interact. For
    cross-entropies they are the closed form for a class whose row alone moves. Its probability is
    its smoothed target less the price of the row, and the margin of its scores is the logarithm of
    the odds, relative to the odds at zero logits and `first_bias`. Inside a ball they are equal,
    and at most the margins at a price of zero. Too small a margin is better than too large a one:
    Newton's method adds about one per step.
    """
    K, loss, squared = problem.num_classes, problem.loss, problem.loss.kind == "squared-error"
    equal = 0.5 * problem.gauge.price / K
    if squared and problem.gauge.bounded:
        slope = jnp.maximum(1 - problem.gauge.price / K, 1e-3) / K
        return jnp.broadcast_to(jnp.minimum(equal, 0.5), problem.counts.shape), slope
    steepness = loss.temperatures * loss.scales
    ratio = (
        problem.num_samples * problem.gauge.price / (problem.gauge.rows * loss.weights * steepness)
    )
    if squared:
        return jnp.maximum(1 - ratio, SMALLEST_MARGIN), problem.gauge.price
    lost = loss.smoothing * (K - 1) / K + (
        0 if problem.gauge.bounded else ratio * jnp.sqrt((K - 1) / K)
    )
    odds = jnp.maximum(1 - lost, SMALLEST_LOSS) / jnp.maximum(lost, SMALLEST_LOSS)
    margins = (_rivals(problem) + jnp.log(odds)) / steepness
    margins = jnp.maximum(margins, SMALLEST_MARGIN / jnp.maximum(steepness, 1))
    if not problem.gauge.bounded:
        return margins, problem.gauge.price
    margins = jnp.minimum(margins, equal)
    shares = problem.sizes * problem.shares * loss.weights * steepness
    return margins, jnp.sum(
        shares / (jnp.exp(jnp.minimum(steepness * margins, 30.0)) + K - 1), axis=0
    )


def _rivals(problem: GroupProblem) -> Array:
    """Return log sum_c exp(score of c - own score) for a class of every group, (G,).

    The sum is over all other classes, at zero logits and `first_bias`. It is the number of rivals
    of the class, counted in classes of its own score.
    """
    loss, bias = problem.loss, first_bias(problem)
    offsets = loss.offsets if bias is None else loss.offsets + loss.scales * bias
    differences = loss.temperatures[:, None] * (offsets[None, :] - offsets[:, None])
    return jax.nn.logsumexp(differences, axis=1, b=times_of(problem.sizes))


@broadcasting
def first_bias(problem: GroupProblem) -> Array | None:
    """Return a bias to start from, (G,) or None.

    It cancels the offsets of the scores as far as its penalty allows.
    """
    loss = problem.loss
    if not problem.use_bias:
        return None
    curvature = jnp.sum(
        problem.sizes * problem.shares * loss.weights * loss.temperatures**2, axis=0
    )
    curvature = curvature * loss.scales**2 / problem.num_classes
    return -loss.offsets / loss.scales * curvature / (curvature + problem.bias)


def _jacobian(problem: GroupProblem, basis: Array) -> Array:
    """Return the Jacobian of the logits of each group's rows, (G, G + 1, p), own class first.

    The derivatives are with respect to the unknowns of the group and the bias.
    """
    G, sizes, roots = problem.num_groups, problem.sizes, problem.gauge.rows
    pairs = sizes[:, None] * sizes[None, :]
    eye = jnp.broadcast_to(identity(pairs), pairs.shape)
    several = jnp.where(sizes > 1, 1 / roots, 0)
    own = jnp.concatenate(
        [((1 - 1 / sizes) * several)[:, None], basis / (roots * sizes)[:, None]], axis=1
    )
    shape = jnp.sqrt(pairs) * roots[:, None]
    others = jnp.concatenate(
        [(-eye * (several / sizes)[:, None])[:, :, None], basis[None] / shape[:, :, None]], axis=2
    )
    jacobian = jnp.concatenate([own[:, None], others], axis=1)
    if problem.use_bias:
        everywhere = jnp.broadcast_to(eye[None], (G, *eye.shape))
        jacobian = jnp.concatenate(
            [jacobian, jnp.concatenate([eye[:, None], everywhere], axis=1)], axis=2
        )
    return jacobian


def _data(problem: GroupProblem, logits: Rows) -> tuple[Array, Array, Array]:
    """Return the data term, and its derivatives by the logits of each row.

    The gradient is (G, G + 1), the Hessian (G, G + 1, G + 1).
    """
    loss, sizes = problem.loss, problem.sizes
    times, shares = times_of(sizes), sizes * problem.shares
    slope = slopes(loss, logits, sizes)
    masses = jnp.concatenate([jnp.ones_like(sizes)[:, None], times], axis=1)
    gradient = (
        shares[:, None] * masses * jnp.concatenate([slope.own[:, None], slope.others], axis=1)
    )
    eye = identity(masses[0][:, None] * masses[0][None, :])[None] > 0
    if loss.kind == "squared-error":
        factor = (shares * loss.weights)[:, None, None]
        return mean_loss(problem, logits), gradient, jnp.where(eye, factor * masses[:, :, None], 0)
    p = probabilities(loss, logits, sizes)
    scales = jnp.concatenate(
        [loss.scales[:, None], jnp.broadcast_to(loss.scales[None, :], times.shape)], axis=1
    )
    share = masses * jnp.concatenate([p.own[:, None], p.others], axis=1)
    # diag(p) - p p': the diagonal entry p (1 - p) as p times the sum of the others.
    products = share[:, :, None] * share[:, None, :]
    rest = jnp.sum(jnp.where(eye, 0, products), axis=2)
    covariance = jnp.where(eye, rest[:, :, None], -products)
    factor = (shares * loss.weights * loss.temperatures**2)[:, None, None]
    return (
        mean_loss(problem, logits),
        gradient,
        factor * scales[:, :, None] * scales[:, None, :] * covariance,
    )


# The parts of one Hessian share most of their numbers: kept whole.
@broadcasting
def barrier_model(
    problem: GroupProblem, basis: Array, x: Array, mu: Array, weight: Array
) -> _Model:
    G, q, batch = problem.num_groups, basis.shape[1], x.shape[1:]
    within, between, bias = split_unknowns(problem, q, x)
    decomposed = decomposition(between)
    kappa = (
        kappa_in_ball(problem, within, decomposed, weight)
        if problem.gauge.bounded
        else mu / problem.gauge.price
    )
    price = mu / kappa
    jacobian = _jacobian(problem, basis)
    logits = rows_of(*logits_of_unknowns(problem, basis, x))
    value, by_logits, curvature = _data(problem, logits)
    local = jnp.sum(by_logits[:, :, None] * jacobian, axis=1)  # (G, p)
    half = jnp.sum(curvature[:, :, :, None] * jacobian[:, None], axis=2)  # (G, G + 1, p)
    local_hessian = jnp.sum(jacobian[:, :, :, None] * half[:, :, None, :], axis=1)  # (G, p, p)

    times = problem.sizes - 1
    radius = jnp.sqrt(kappa**2 + within**2)
    p = kappa + radius
    spectral = _spectral(between, decomposed, kappa * weight)
    own = 1 + q
    gradient = _joined(
        problem,
        local[:, 0] + price * times * within / p,
        local[:, 1:own] + price * spectral.slope,
        None if bias is None else jnp.sum(local[:, own:], axis=0),
    )
    # Modes that do not exist have a curvature of one, so that the Hessian is not singular.
    curvature_within = jnp.where(times > 0, times * price * kappa / (p * radius), 1.0)
    hessian = (
        [[jnp.zeros(batch, x.dtype)] * (G * own) for _ in range(G * own)]
        if G * own <= UNROLLED
        else None
    )
    if hessian is not None:
        for g in range(G):
            for i in range(own):
                for j in range(own):
                    hessian[g * own + i][g * own + j] += local_hessian[g, i, j]
            hessian[g * own][g * own] += curvature_within[g]
            for h in range(G):
                for i in range(q):
                    for j in range(q):
                        hessian[g * own + 1 + i][h * own + 1 + j] += (
                            price * spectral.hessian[g, i, h, j]
                        )
        matrix = jnp.stack([jnp.stack(row) for row in hessian])
    else:
        blocks = jnp.zeros((G, own, G, own, *batch), x.dtype)
        each = np.arange(G)
        blocks = blocks.at[each, :, each].add(local_hessian[:, :own, :own])
        blocks = blocks.at[each, 0, each, 0].add(curvature_within)
        matrix = (
            blocks.at[:, 1:, :, 1:].add(price * spectral.hessian).reshape(G * own, G * own, *batch)
        )
    barrier, barrier_magnitude = _barrier(problem, within, decomposed[0], kappa, weight)
    penalty = jnp.zeros(batch, x.dtype)
    if bias is not None:
        corner = jnp.sum(local_hessian[:, own:, own:], axis=0)
        border = local_hessian[:, :own, own:].reshape(G * own, G, *batch)
        weights = problem.bias * problem.sizes
        corner = corner + identity(corner) * weights[:, None]
        by_bias = weights * bias
        if problem.loss.kind == "cross-entropy":
            # Without a penalty on the bias, a shift of all scores (of the bias by 1 / delta) costs
            # nothing. The Hessian gets curvature there from its own diagonal. So it is not
            # singular, and keeps its digits if all of it is small.
            shift = 1 / problem.loss.scales
            floor = NOTHING * jnp.sum(curvature * identity(curvature[0])[None], axis=(0, 1, 2))
            pinned = jnp.maximum(diagonal(corner), floor) * shift
            pinned = pinned / jnp.sqrt(jnp.sum(pinned * shift, axis=0))
            corner = corner + jnp.where(problem.bias > 0, 0, pinned[:, None] * pinned[None, :])
        gradient = gradient + jnp.concatenate([jnp.zeros((G * own, *batch), x.dtype), by_bias])
        matrix = jnp.concatenate(
            [
                jnp.concatenate([matrix, border], axis=1),
                jnp.concatenate([border.swapaxes(0, 1), corner], axis=1),
            ],
            axis=0,
        )
        penalty = 0.5 * jnp.sum(weights * bias**2, axis=0)
    gauge_slope = _joined(problem, times * within / radius, spectral.gauge_slope)
    gauge_by_kappa = (
        jnp.sum(times * (1 + kappa / radius), axis=0) + weight * spectral.gauge_by_kappa
    )
    if problem.gauge.bounded:
        by_mu = _joined(problem, times * within / p, spectral.slope) / kappa
    else:
        by_mu = _joined(problem, -times * within / (p * radius), spectral.slope_by_kappa * weight)
    rank_one = price / (kappa * (1 + gauge_by_kappa))
    total = value + price * (jnp.sum(times * jnp.abs(within), axis=0) + spectral.norm) + penalty
    merit = value + penalty + price * barrier
    magnitude = value + penalty + price * barrier_magnitude
    return _Model(
        kappa, price, rank_one, gradient, matrix, by_mu, gauge_slope, total, merit, magnitude
    )


def _barrier(
    problem: GroupProblem, within: Array, values: Array, kappa: Array, weight: Array
) -> tuple[Array, Array]:
    """Return the barrier over the price, up to constants, and the magnitude of its terms.

    Under weight decay the barrier is the sum of B over all modes, with their multiplicities. Inside
    a ball it is -kappa times the logarithms of the determinants and of the remaining radius.
    """
    sigmas = jnp.concatenate([jnp.abs(within), values])
    own = jnp.concatenate(
        [jnp.broadcast_to(kappa, within.shape), jnp.broadcast_to(kappa * weight, values.shape)]
    )
    times = jnp.concatenate([problem.sizes - 1, jnp.ones_like(values)])
    p = own + jnp.sqrt(own**2 + sigmas**2)
    if problem.gauge.bounded:
        room, modes = kappa * jnp.log(kappa), jnp.sum(times * own * jnp.log(own * p), axis=0)
        return -room - modes, jnp.abs(room) + jnp.abs(modes)
    excess = sigmas**2 / p
    terms = times * (excess - own * jnp.log1p(excess / (2 * own)))
    return jnp.sum(terms, axis=0), jnp.sum(times * excess, axis=0)


def smoothed_nuclear_norm(matrix: Float[Array, "G q"], kappa: Float[Array, ""]) -> "_Spectral":
    """Return the nuclear norm of a matrix, q <= G, and the slope and Hessian of its barrier B."""
    return _spectral(matrix, decomposition(matrix), kappa)


class _Spectral(NamedTuple):
    slope: Array  # (G, q) of B
    slope_by_kappa: Array
    hessian: Array  # (G, q, G, q)
    norm: Array  # nuclear
    gauge_slope: Array  # of the sum of p
    gauge_by_kappa: Array


def decomposition(matrix: Array) -> tuple[Array, ...]:
    """Return the singular value decomposition of a (G, q) matrix; for q <= 1 the values alone."""
    if matrix.shape[1] <= 1:
        return (jnp.sqrt(jnp.sum(matrix**2, axis=0)),)
    left, values, right = jnp.linalg.svd(jnp.moveaxis(matrix, (0, 1), (-2, -1)), full_matrices=True)
    return (
        jnp.moveaxis(values, -1, 0),
        jnp.moveaxis(left, (-2, -1), (0, 1)),
        jnp.moveaxis(right, (-2, -1), (0, 1)),
    )


def kappa_in_ball(
    problem: GroupProblem, within: Array, decomposed: tuple[Array, ...], weight: Array
) -> Array:
    """Return the kappa > 0 at which the gauge, the sum of p over modes, is T - kappa.

    It is NaN outside the ball. The gauge is convex and increasing in kappa, so Newton's method
    from above the root converges to it without passing it.
    """
    values = jnp.concatenate([jnp.abs(within), decomposed[0]])
    times = jnp.concatenate([problem.sizes - 1, jnp.ones_like(decomposed[0])])
    weights = jnp.concatenate(
        [jnp.ones_like(within), jnp.broadcast_to(weight, decomposed[0].shape)]
    )
    room = problem.gauge.price - jnp.sum(times * values, axis=0)
    kappa = room / (1 + jnp.sum(times * weights, axis=0))
    for _ in range(8):
        own = weights * kappa
        radius = jnp.sqrt(own**2 + values**2)
        # p - sigma without cancellation, so that kappa keeps its digits near the sphere.
        excess = (
            jnp.sum(times * (own + own**2 / jnp.maximum(radius + values, 1e-300)), axis=0)
            + kappa
            - room
        )
        slope = 1 + jnp.sum(times * weights * (1 + own / jnp.maximum(radius, 1e-300)), axis=0)
        kappa = kappa - excess / slope
    return jnp.where(room > 0, kappa, jnp.nan)


def _spectral(matrix: Array, decomposed: tuple[Array, ...], kappa: Array) -> _Spectral:
    """Return the barrier's value and derivatives on a (G, q) matrix, q <= G."""
    G, q, *batch = matrix.shape
    if q == 0:
        empty, zero = jnp.zeros_like(matrix), jnp.zeros(tuple(batch), matrix.dtype)
        return _Spectral(
            empty, empty, jnp.zeros((G, q, G, q, *batch), matrix.dtype), zero, empty, zero
        )
    if q == 1:
        # One singular value: the length of the column.
        x = matrix[:, 0]
        radius = jnp.sqrt(kappa**2 + decomposed[0][0] ** 2)
        p = kappa + radius
        outer = x[:, None] * x[None, :]
        hessian = jnp.asarray(identity(outer)) / p - outer / (p**2 * radius)
        return _Spectral(
            slope=matrix / p,
            slope_by_kappa=-matrix / (p * radius),
            hessian=hessian[:, None, :, None],
            norm=decomposed[0][0],
            gauge_slope=matrix / radius,
            gauge_by_kappa=1 + kappa / radius,
        )
    values, left, right = decomposed
    radius = jnp.sqrt(kappa**2 + values**2)
    p = kappa + radius

    def rebuilt(diagonal: Array) -> Array:
        return jnp.einsum("ai...,i...,ib...->ab...", left[:, :q], diagonal, right)

    # sigma = kappa sinh u. The curvatures of the even and odd parts of a pair (i, j) are divided
    # differences of tanh(u / 2).
    cosh_half = jnp.sqrt(0.5 * p / kappa)
    sinh_half = values / (2 * kappa * cosh_half)
    products = cosh_half[:, None] * cosh_half[None, :]
    plus = products + sinh_half[:, None] * sinh_half[None, :]
    squares = cosh_half[:, None] ** 2 + cosh_half[None, :] ** 2 - 1
    even = 1 / (2 * kappa * products * plus)
    odd = plus / (2 * kappa * products * squares)
    straight, crossed = (even + odd) / 2, (even - odd) / 2
    if q < G:
        straight = jnp.concatenate(
            [straight, jnp.broadcast_to(1 / p[None, :], (G - q, q, *batch))], axis=0
        )
    vectors = jnp.einsum("ai...,jb...->abij...", left, right)
    flat = vectors.reshape(G * q, G * q, *batch)
    square = vectors[:, :, :q].reshape(G * q, q * q, *batch)
    swapped = vectors[:, :, :q].swapaxes(2, 3).reshape(G * q, q * q, *batch)
    hessian = jnp.einsum("rk...,k...,sk...->rs...", flat, straight.reshape(G * q, *batch), flat)
    hessian = hessian + jnp.einsum(
        "rk...,k...,sk...->rs...", square, crossed.reshape(q * q, *batch), swapped
    )
    return _Spectral(
        slope=rebuilt(values / p),
        slope_by_kappa=rebuilt(-values / (p * radius)),
        hessian=hessian.reshape(G, q, G, q, *batch),
        norm=jnp.sum(values, axis=0),
        gauge_slope=rebuilt(values / radius),
        gauge_by_kappa=jnp.sum(1 + kappa / radius, axis=0),
    )


def _with_rank_one(
    solve: Callable[[Array], Array], vector: Array, factor: Array
) -> Callable[[Array], Array]:
    """Return the function that solves with the matrix plus `factor` vector vector'."""
    solved = solve(vector)
    weight = factor / (1 + factor * jnp.sum(vector * solved, axis=0))

    def solve_both(other: Array) -> Array:
        base = solve(other)
        return base - solved * (weight * jnp.sum(vector * base, axis=0))

    return solve_both


@broadcasting
def solver(matrix: Array) -> Callable[[Array], Array]:
    """Return the function that solves with a positive definite matrix, scaled to unit diagonal."""
    n = matrix.shape[0]
    diagonal = jnp.stack([matrix[i, i] for i in range(n)])
    scale = 1 / jnp.sqrt(jnp.maximum(diagonal, 1e-300))
    if n > UNROLLED:
        scaled = matrix * scale[:, None] * scale[None, :]
        scaled = jnp.moveaxis(scaled, (0, 1), (-2, -1)) + 1e-14 * jnp.eye(n, dtype=matrix.dtype)
        factor = inverse_factor(scaled)

        def solve_with(vector: Array) -> Array:
            right = jnp.moveaxis(scale * vector, 0, -1)[..., None]
            return scale * jnp.moveaxis((factor.mT @ (factor @ right))[..., 0], -1, 0)

        return solve_with
    # Written out: every scalar below is a vector over the problems of a batch.
    lower: dict[tuple[int, int], Array] = {}
    pivots: list[Array] = []
    for i in range(n):
        for j in range(i + 1):
            entry = matrix[i, j] * (scale[i] * scale[j])
            for k in range(j):
                entry = entry - lower[i, k] * lower[j, k] * pivots[k]
            if i == j:
                pivots.append(jnp.maximum(entry, 1e-15))
            else:
                lower[i, j] = entry / pivots[j]

    def solve(vector: Array) -> Array:
        y: list[Array] = []
        for i in range(n):
            entry = scale[i] * vector[i]
            for k in range(i):
                entry = entry - lower[i, k] * y[k]
            y.append(entry)
        z: list[Array] = [y[i] / pivots[i] for i in range(n)]
        for i in reversed(range(n)):
            for k in range(i + 1, n):
                z[i] = z[i] - lower[k, i] * z[k]
        return jnp.stack(z) * scale

    return solve
