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
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm.imbalance.hard_margin.problem import GroupMargins, logits_of
from ufm.problems import Blocks
from ufm.solving.methods import (
    PATH_STEPS,
    complement,
    inverse_factor,
    smoothed_nuclear_norm,
    steps_on_path,
)

__all__ = ["LARGEST_GROUPS", "MarginPath", "follow_margins"]

LARGEST_GROUPS = 64  # groups up to which the Hessian, G^4 numbers, is formed
CENTRED, CLOSE = (
    0.5,
    0.1,
)  # relative Newton step of the slacks from which the path is followed, and after which more boldly
FIRST_RATIO, BOLDEST, MEEKEST = 0.2, 1e-4, 0.5
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


class _State(NamedTuple):
    slacks: Array
    mu: Array
    ratio: Array
    landed: Array  # whether the point was reached along the path
    steps: Array
    done: Array
    failed: Array


class _Norm(NamedTuple):
    value: Array
    slope: Array  # (G, G) by the margins
    slope_by_mu: Array
    hessian: Array  # (G, G, G, G)
    within: Array  # slope of the barrier by the modes within groups, at most one
    between: Array  # by the matrix between groups, spectral norm at most one


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
    weights = sizes[:, None] * problem.times / (K - 1)
    present = weights > 0
    scale = jnp.where(present, 1 / jnp.sqrt(jnp.where(present, weights, 1)), 0)
    eye = jnp.eye(G * G, dtype=sizes.dtype)
    jacobian, basis = _jacobian(problem)
    # Slacks of about mu over the multipliers, which sum to some sqrt(n_y) in a row.
    mu = START * jnp.max(roots * problem.margins / problem.multipliers)
    first = mu / (roots / problem.multipliers)
    zero = jnp.zeros((), sizes.dtype)
    state = _State(
        slacks=jnp.broadcast_to(first[:, None], (G, G)),
        mu=mu,
        ratio=zero + FIRST_RATIO,
        landed=jnp.zeros((), bool),
        steps=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
        failed=jnp.zeros((), bool),
    )

    def norm_at(state: _State) -> _Norm:
        return _norm(problem, jacobian, problem.margins[:, None] + state.slacks, state.mu)

    def step(state: _State) -> _State:
        norm, s, mu = norm_at(state), state.slacks, state.mu
        # In units of mu, and of relative changes of the slacks over `scale`.
        unit = (s * scale / jnp.sqrt(mu)).ravel()
        inverse = inverse_factor(
            eye + unit[:, None] * norm.hessian.reshape(G * G, G * G) * unit[None, :]
        )
        gradient = s * norm.slope / mu - weights
        by_log_mu = s * norm.slope_by_mu - weights
        right = jnp.stack([(gradient * scale).ravel(), (by_log_mu * scale).ravel()], axis=1)
        solved = -(inverse.T @ (inverse @ right)).reshape(G, G, 2) * scale[:, :, None]
        newton, tangent = solved[:, :, 0], solved[:, :, 1]
        distance = jnp.max(jnp.abs(newton))
        fine = jnp.isfinite(distance) & jnp.isfinite(norm.value)
        centred = distance <= CENTRED
        small = mu * (2 * K - 1) <= tol * norm.value
        done = centred & small
        exponent = jnp.where(distance < CLOSE, 1.7, jnp.where(centred, 1.0, 0.6))
        ratio = jnp.clip(
            jnp.where(state.landed, state.ratio**exponent, state.ratio), BOLDEST, MEEKEST
        )
        target = jnp.maximum(
            jnp.maximum(ratio, 0.5 * distance) * mu, 0.5 * tol * norm.value / (2 * K - 1)
        )
        change = jnp.where(centred, jnp.log(jnp.minimum(target / mu, 1)), 0)
        damped = jnp.where(centred, 1, 1 / (1 + distance))
        # Centred: to where the path is at the smaller mu, in logarithms. Otherwise a damped Newton
        # step, which keeps slacks positive.
        along = s * (1 + damped * newton) * jnp.exp(change * tangent)
        return _State(
            slacks=jnp.where(done | ~fine, s, along),
            mu=jnp.where(done | ~fine, mu, mu * jnp.exp(change)),
            ratio=ratio,
            landed=centred,
            steps=state.steps + 1,
            done=done,
            failed=~fine,
        )

    state, status = steps_on_path(step, state, max_steps)
    norm = norm_at(state)
    logits = logits_of(problem, problem.margins[:, None] + state.slacks)
    # The gradient of the smoothed norm: of dual norm below one, and like -delta_c lambda_yc off the
    # diagonal.
    within, between = roots * norm.within, roots[:, None] * (norm.between @ basis.T)
    slope = Blocks(jnp.where(sizes > 1, within, 0), between, sizes)
    multipliers = jnp.where(
        present, jnp.maximum(-slope.across / problem.multipliers[None, :], 0), 0
    )
    return MarginPath(logits, multipliers, state.steps, status)


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
        value, pulled, jnp.sum(jacobian * by_mu[:, :, None], axis=1), hessian, within, between
    )
