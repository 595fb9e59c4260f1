r"""An interior-point method for the hard-margin problem over groups of classes.

It takes one or two dozen Newton steps for any K.

The unknowns are the slacks s_gh > 0 of the margins, m_gh = gamma_g + s_gh, which determine the
logits (`ufm.imbalance.hard_margin.problem.logits_of`): near the optimum even a tiny slack
keeps its digits. With the modes x_g within groups, of multiplicity K_g - 1, and the G x (G - 1)
matrix X between groups of D^{1/2} Z, the path for mu -> 0 minimises

    sum_g (K_g - 1) b(x_g) + sum_i b(sigma_i(X)) - mu sum_gh w_gh log s_gh,
    b'(sigma) = sigma / (mu + sqrt(mu^2 + sigma^2)),

b being the barrier of the nuclear norm as in `ufm.solving.methods.interior_point` and w_gh = K_g
(times h beside g) / (K - 1) the multiplicity of a margin, so that every row has as much barrier as
a mode. In relative changes of the slacks, over sqrt(w), the Hessian over mu is the identity plus a
positive semidefinite matrix: Newton's equations are well conditioned all the way. At an optimum
where all margins are active the slacks are proportional to mu, so steps along the path are taken in
their logarithms.

Over rows the unknowns are the slacks s_rc of the entries c off the support of row r, the matrix is
the (R, K - 1) one of Om^{1/2} Z off 1 / delta, and w_rc is one over how many such entries the row
has. Some slacks stay, and some modes vanish; both are linear in mu.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm.imbalance.hard_margin.problem import GroupMargins, RowMargins, logits_of, row_logits
from ufm.problems import Blocks
from ufm.solving.methods import (
    PATH_STEPS,
    complement,
    inverse_factor,
    smoothed_nuclear_norm,
    steps_on_path,
)

__all__ = [
    "LARGEST_GROUPS",
    "MarginPath",
    "RowMarginPath",
    "follow_margins",
    "follow_row_margins",
]

LARGEST_GROUPS = 64  # groups up to which the Hessian, G^4 numbers, is formed
# Newton step from which the path is followed, and after which more boldly.
CENTRED, CLOSE = 0.5, 0.1
FIRST_RATIO, BOLDEST, MEEKEST = 0.2, 1e-4, 0.5
LOST, SHORTEST = 4.0, 1e-3  # Newton step from which, and log step down to which, a step is undone
SETTLED = 1e-6  # Newton step of the last point of a path over rows, unless rounding forbids
START = 1.0


class MarginPath(NamedTuple):
    """Where the path ends.

    Attributes:
        logits: The logits as blocks.
        multipliers: Multipliers of the margins, shape (G, G).
        steps: Number of steps, ().
        status: Status code, ().
    """

    logits: Blocks
    multipliers: Float[Array, "G G"]
    steps: Int[Array, ""]
    status: Int[Array, ""]


class RowMarginPath(NamedTuple):
    """Where the path over rows ends.

    Attributes:
        logits: The logits of every row, (R, K).
        dual: The gradient of the norm by the logits, (R, K).
        steps: Number of steps, ().
        status: Status code, ().
    """

    logits: Float[Array, "R K"]
    dual: Float[Array, "R K"]
    steps: Int[Array, ""]
    status: Int[Array, ""]


class _Centre(NamedTuple):
    """The last point on the path, and the step from it."""

    slacks: Array
    tangent: Array  # of the logarithms of the slacks by that of mu
    mu: Array
    change: Array  # of the logarithm of mu; zero before the path is reached


class _State(NamedTuple):
    slacks: Array
    mu: Array
    ratio: Array
    landed: Array  # whether the point was reached along the path
    distance: Array  # Newton step of the point before
    centre: _Centre
    steps: Array
    done: Array
    failed: Array


class _Norm(NamedTuple):
    value: Array
    slope: Array  # (n, m) by the margins
    slope_by_mu: Array
    hessian: Array  # (n, m, n, m)
    by_modes: tuple[Array, ...]  # slopes by the modes, of spectral norm at most one


class _Margins(NamedTuple):
    """A path to follow: n rows of m margins each.

    Attributes:
        asked: The margin that every row asks for, (n,).
        norm: The smoothed norm at margins (n, m) and mu.
        weights: Of the barrier of every margin, (n, m); zero where there is none.
        modes: How many singular values there are, ().
        alone: Whether a Newton step is measured by its decrement, too. An inactive slack that
            changes by little moves the norm by much. Classes of a group all change alike, and the
            largest relative change of a slack tells how far the path is.
        typical: What the multipliers of a row are like, (n, m).
    """

    asked: Array
    norm: Callable[[Array, Array], _Norm]
    weights: Array
    modes: Array
    alone: bool
    typical: Array


def follow_margins(
    problem: GroupMargins, tol: Float[Array, ""], max_steps: int = PATH_STEPS
) -> MarginPath:
    """Solve a hard-margin problem over groups. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: Leaves may be traced.
        tol: () duality gap to reach, relative to the value.
        max_steps: Newton steps at most.
    """
    G, sizes, roots = problem.num_groups, problem.sizes, jnp.sqrt(problem.counts)
    K = jnp.sum(sizes)
    jacobian, basis = _jacobian(problem)
    path = _Margins(
        asked=problem.margins,
        norm=lambda margins, mu: _norm(problem, jacobian, margins, mu),
        weights=sizes[:, None] * problem.times / (K - 1),
        modes=K - 1,
        alone=False,
        # They sum to some sqrt(n_y) in a row.
        typical=jnp.broadcast_to((roots / problem.multipliers)[:, None], (G, G)),
    )
    state, status = _followed(path, tol, max_steps)
    slacks = state.slacks
    logits = logits_of(problem, problem.margins[:, None] + slacks)
    # The gradient of the smoothed norm: of dual norm below one, and like -delta_c lambda_yc off the
    # diagonal.
    within, between = path.norm(problem.margins[:, None] + slacks, state.mu).by_modes
    slope = Blocks(
        jnp.where(sizes > 1, roots * within, 0), roots[:, None] * (between @ basis.T), sizes
    )
    multipliers = jnp.where(
        path.weights > 0, jnp.maximum(-slope.across / problem.multipliers[None, :], 0), 0
    )
    return MarginPath(logits, multipliers, state.steps, status)


def follow_row_margins(
    problem: RowMargins, tol: Float[Array, ""], max_steps: int = PATH_STEPS
) -> RowMarginPath:
    """Solve a hard-margin problem over rows. Pure: it can be jit-compiled and vmapped.

    Args:
        problem: Leaves may be traced.
        tol: () duality gap to reach, relative to the value.
        max_steps: Newton steps at most.
    """
    R, K = problem.supports.shape
    delta, roots = problem.multipliers, jnp.sqrt(problem.weights)
    outside = ~problem.supports
    basis = complement((1 / delta) / jnp.linalg.norm(1 / delta))
    # The basis is orthogonal to 1 / delta: the logit that a row has in common moves no mode.
    jacobian = -jnp.where(outside, 1 / delta[None, :], 0)[:, None, :] * basis.T[None]
    number = jnp.sum(outside, axis=1, keepdims=True, dtype=roots.dtype)
    path = _Margins(
        asked=problem.margins,
        norm=lambda margins, mu: _row_norm(roots[:, None, None] * jacobian, margins, mu),
        weights=jnp.where(outside, 1 / jnp.maximum(number, 1), 0),
        modes=jnp.asarray(min(R, K - 1), roots.dtype),
        alone=True,
        typical=roots[:, None] / delta[None, :],
    )
    state, status = _followed(path, tol, max_steps)
    margins = problem.margins[:, None] + state.slacks
    (polar,) = path.norm(margins, state.mu).by_modes
    logits = row_logits(problem, margins)
    return RowMarginPath(logits, roots[:, None] * (polar @ basis.T), state.steps, status)


# A step shares most of its numbers between its Newton step, its aim and what it checks: kept whole.
def _followed(
    path: _Margins, tol: Float[Array, ""], max_steps: int
) -> tuple[_State, Int[Array, ""]]:
    """Return the end of a path, and its status."""
    weights, shape = path.weights, path.weights.shape
    size = weights.size
    present = weights > 0
    scale = jnp.where(present, 1 / jnp.sqrt(jnp.where(present, weights, 1)), 0)
    eye = jnp.eye(size, dtype=weights.dtype)
    terms = jnp.sum(weights) + path.modes  # the gap is mu times this
    asked = path.asked[:, None]
    # Slacks of about mu over the multipliers.
    mu = START * jnp.max(jnp.where(present, path.typical * asked, 0))
    zero = jnp.zeros((), weights.dtype)
    first = mu / path.typical
    state = _State(
        slacks=first,
        mu=mu,
        ratio=zero + FIRST_RATIO,
        landed=jnp.zeros((), bool),
        distance=zero + jnp.inf,
        centre=_Centre(first, jnp.zeros_like(first), mu, zero),
        steps=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
        failed=jnp.zeros((), bool),
    )

    def step(state: _State) -> _State:
        s, mu = state.slacks, state.mu
        norm = path.norm(asked + s, mu)
        # In units of mu, and of relative changes of the slacks over `scale`.
        unit = (s * scale / jnp.sqrt(mu)).ravel()
        inverse = inverse_factor(
            eye + unit[:, None] * norm.hessian.reshape(size, size) * unit[None, :]
        )
        gradient = s * norm.slope / mu - weights
        by_log_mu = s * norm.slope_by_mu - weights
        right = jnp.stack([(gradient * scale).ravel(), (by_log_mu * scale).ravel()], axis=1)
        solved = -(inverse.T @ (inverse @ right)).reshape(*shape, 2) * scale[:, :, None]
        newton, tangent = solved[:, :, 0], solved[:, :, 1]
        distance = jnp.max(jnp.abs(newton))
        if path.alone:
            distance = jnp.maximum(distance, jnp.sqrt(jnp.maximum(-jnp.sum(gradient * newton), 0)))
        fine = jnp.isfinite(distance) & jnp.isfinite(norm.value)
        centred = distance <= CENTRED
        small = mu * terms <= tol * norm.value
        # Multipliers of inactive margins are as accurate as the last Newton step was small.
        at_rest = state.centre.change > -SHORTEST  # mu was the same before
        settled = (distance <= SETTLED) | (at_rest & (distance > 0.5 * state.distance))
        done = centred & small & (settled if path.alone else True)
        exponent = jnp.where(distance < CLOSE, 1.7, jnp.where(centred, 1.0, 0.6))
        ratio = jnp.clip(
            jnp.where(state.landed, state.ratio**exponent, state.ratio), BOLDEST, MEEKEST
        )
        target = jnp.maximum(
            jnp.maximum(ratio, 0.5 * distance) * mu, 0.5 * tol * norm.value / terms
        )
        change = jnp.where(centred, jnp.log(jnp.minimum(target / mu, 1)), 0)
        damped = jnp.where(centred, 1, 1 / (1 + distance))
        # Centred: to where the path is at the smaller mu, in logarithms. Otherwise a damped Newton
        # step, which keeps slacks positive; or, far from the path, a shorter step from where it was
        # left.
        near = s * (1 + damped * newton)
        lost = state.landed & (distance > LOST) & (state.centre.change < -SHORTEST)
        centre = _Centre(near, tangent, mu, change)
        centre = _where(centred, centre, state.centre)
        centre = centre._replace(change=jnp.where(lost, centre.change / 4, centre.change))
        moved = jnp.exp(centre.change * centre.tangent)
        if path.alone:
            # Inactive slacks are linear in mu, not in its logarithm, and so are unused modes.
            linear = 1 + centre.tangent * jnp.expm1(centre.change)
            moved = jnp.where(centre.tangent <= 1, linear, moved)
        moved = centre.slacks * moved
        stay, along = done | ~fine, centred | lost
        return _State(
            slacks=jnp.where(stay, s, jnp.where(along, moved, near)),
            mu=jnp.where(stay | ~along, mu, centre.mu * jnp.exp(centre.change)),
            ratio=jnp.where(lost, jnp.exp(centre.change), ratio),
            landed=centred | lost,
            distance=distance,
            centre=centre,
            steps=state.steps + 1,
            done=done,
            failed=~fine,
        )

    return steps_on_path(step, state, max_steps)


def _where(condition: Array, first: _Centre, second: _Centre) -> _Centre:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def _jacobian(problem: GroupMargins) -> tuple[Array, Array]:
    """Return the Jacobian of the modes of a row of D^{1/2} Z by its margins, (G, 1 + q, G).

    Also return the basis V, (G, q), of the matrix between groups.
    """
    G, roots = problem.num_groups, jnp.sqrt(problem.counts)
    unit = jnp.sqrt(problem.sizes) / problem.multipliers
    basis = complement(unit / jnp.linalg.norm(unit))
    eye = jnp.eye(G, dtype=unit.dtype)
    # Rows do not mix: one margin in all rows at a time.
    ones = jnp.broadcast_to(eye[:, None, :], (G, G, G))
    each = jax.vmap(lambda margins: logits_of(problem, margins))(ones)
    rows = jnp.concatenate([each.within[:, :, None], each.between @ basis], axis=2)
    return jnp.moveaxis(rows * roots[None, :, None], 0, 2), basis


def _norm(problem: GroupMargins, jacobian: Array, margins: Array, mu: Array) -> _Norm:
    """Return the smoothed nuclear norm and its derivatives by the margins."""
    G, multiplicity = problem.num_groups, problem.sizes - 1
    rows = jnp.sum(jacobian * margins[:, None, :], axis=2)
    x, matrix = rows[:, 0], rows[:, 1:]
    radius = jnp.sqrt(mu**2 + x**2)
    within = x / (mu + radius)
    value = jnp.sum(multiplicity * jnp.abs(x))
    slope = (multiplicity * within)[:, None]
    by_mu = (-multiplicity * within / radius)[:, None]
    each = np.arange(G)
    inner = jacobian[:, 0]
    hessian = jnp.zeros((G, G, G, G), x.dtype)
    curvature = (multiplicity * mu / ((mu + radius) * radius))[:, None, None]
    hessian = hessian.at[each, :, each].add(curvature * inner[:, :, None] * inner[:, None, :])
    between = jnp.zeros_like(matrix)
    if G > 1:
        smoothed = smoothed_nuclear_norm(matrix, mu)
        value, between = value + smoothed.norm, smoothed.slope
        slope = jnp.concatenate([slope, between], axis=1)
        by_mu = jnp.concatenate([by_mu, smoothed.slope_by_kappa], axis=1)
        outer = jacobian[:, 1:]
        half = jnp.einsum("aibd,aig->agbd", smoothed.hessian, outer)
        hessian = hessian + jnp.einsum("agbd,bdh->agbh", half, outer)
    pulled = jnp.sum(jacobian * slope[:, :, None], axis=1)
    return _Norm(
        value, pulled, jnp.sum(jacobian * by_mu[:, :, None], axis=1), hessian, (within, between)
    )


def _row_norm(jacobian: Array, margins: Array, mu: Array) -> _Norm:
    """Return the smoothed nuclear norm of the rows jacobian[r] margins[r], and its derivatives."""
    R, q, _ = jacobian.shape
    rows = jnp.sum(jacobian * margins[:, None, :], axis=2)
    if q <= R:
        smoothed = smoothed_nuclear_norm(rows, mu)
        slope, by_mu, hessian = smoothed.slope, smoothed.slope_by_kappa, smoothed.hessian
    else:
        smoothed = smoothed_nuclear_norm(rows.T, mu)
        slope, by_mu = smoothed.slope.T, smoothed.slope_by_kappa.T
        hessian = jnp.transpose(smoothed.hessian, (1, 0, 3, 2))
    half = jnp.einsum("aibj,aic->acbj", hessian, jacobian)
    return _Norm(
        smoothed.norm,
        jnp.einsum("aic,ai->ac", jacobian, slope),
        jnp.einsum("aic,ai->ac", jacobian, by_mu),
        jnp.einsum("acbj,bjd->acbd", half, jacobian),
        (slope,),
    )
