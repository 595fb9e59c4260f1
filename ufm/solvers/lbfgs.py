r"""Limited-memory BFGS, in a form that compiles small and moves few bytes.

The inverse Hessian is kept in its compact form (Byrd, Nocedal, Schnabel, Math. Program. 1994): with the last m steps
S and gradient changes Y as rows, R the upper triangle of S Y^T in the order of time and D its diagonal,

    H q = gamma q + S^T R^{-T} ((D + gamma Y Y^T) R^{-1} S q - gamma Y q) - gamma Y^T R^{-1} S q.

All inner products with the memory are two matrix-vector products over it per step; everything else is m x m.

The line search is a bisection on the weak Wolfe conditions with secant steps inside the bracket, which accepts the
approximate form of sufficient decrease (Hager, Zhang, SIAM J. Optim. 2005) once differences of objective values drown in rounding:
it uses derivatives alone, which is what lets gradients reach rounding level.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from ufm.precision import as_leaf, is_whole

__all__ = ["LBFGS", "Memory"]

Objective = Callable[[Array], tuple[Array, Array]]

DECREASE = 1e-4  # of the slope that a step must realise
CURVATURE = 0.9  # of the slope that may remain


class Memory(NamedTuple):
    """The last m pairs, in a ring, and the products between them.

    steps, changes: (m, n). step_change: (m, m), s_i . y_j where pair j is the younger (or the same). change_change: (m, m).
    stored: how many pairs ever. direction: (n,), the next search direction.
    """

    steps: Float[Array, "m n"]
    changes: Float[Array, "m n"]
    step_change: Float[Array, "m m"]
    change_change: Float[Array, "m m"]
    stored: Int[Array, ""]
    direction: Float[Array, " n"]


class LBFGS(eqx.Module):
    """L-BFGS in balanced coordinates.

    Args:
        memory: number of stored pairs.
        max_trials: evaluations per line search.
        clearance: if not None, a term of this size relative to the objective is added that pushes the inputs of the ReLUs below
            zero. The minimisers of ReLU chains come in families, of which a descent tends to find a member whose inactive
            units sit on their kink, where no smooth method converges; a few steps with clearance lead to one
            whose units are clearly on or off, and from there the plain objective is smooth.
    """

    memory: int = eqx.field(static=True, default=12)
    max_trials: int = eqx.field(static=True, default=30)
    clearance: Float[Array, ""] | None = eqx.field(converter=as_leaf, default=None)

    def __check_init__(self) -> None:
        for name in ("memory", "max_trials"):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {getattr(self, name)!r}.")

    def init(self, x: Float[Array, " n"], gradient: Float[Array, " n"]) -> Memory:
        """Return an empty memory, whose first direction is a short step down the gradient."""
        m, n = self.memory, x.size
        pairs = jnp.zeros((m, n), x.dtype)
        products = jnp.zeros((m, m), x.dtype)
        return Memory(pairs, pairs, products, products, jnp.zeros((), jnp.int32), self._first_direction(x, gradient))

    def _first_direction(self, x: Array, gradient: Array) -> Array:
        # The first step moves the point by a tenth of its own length at most: the objectives are polynomials of it.
        length = 0.1 * jnp.linalg.norm(x) / jnp.maximum(jnp.linalg.norm(gradient), jnp.finfo(x.dtype).tiny)
        return -length * gradient

    def step(
        self,
        objective: Objective,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
        memory: Memory,
    ) -> tuple[Array, Array, Array, Memory, Bool[Array, ""], Int[Array, ""]]:
        """Return the next point, its value and gradient, the memory, whether the step failed, and the evaluations."""
        slope = jnp.vdot(gradient, memory.direction)
        new_x, new_value, new_gradient, found, trials = self._line_search(objective, x, value, slope, memory.direction)
        memory = self._update(memory, new_x - x, new_gradient - gradient, new_gradient)
        return new_x, new_value, new_gradient, memory, ~found, trials

    def recover(
        self, x: Array, gradient: Array, old: Memory, new: Memory, failed: Bool[Array, ""]
    ) -> tuple[Memory, Bool[Array, ""]]:
        """Return the memory to go on with, and whether there is no going on: a failed step empties the memory once."""
        # Only the count and the direction: pairs that do not count are never looked at, and copying them would cost a step.
        memory = new._replace(
            stored=jnp.where(failed, 0, new.stored),
            direction=jnp.where(failed, self._first_direction(x, gradient), new.direction),
        )
        return memory, failed & (old.stored == 0)

    def _line_search(
        self, objective: Objective, x: Array, value: Array, slope: Array, direction: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        rounding = 1e4 * jnp.finfo(x.dtype).eps * jnp.abs(value)

        def trial(t: Array) -> tuple[Array, Array, Array, Array]:
            point = x + t * direction
            trial_value, trial_gradient = objective(point)
            return point, trial_value, trial_gradient, jnp.vdot(trial_gradient, direction)

        def accepts(t: Array, trial_value: Array, trial_slope: Array) -> tuple[Array, Array]:
            exact = trial_value <= value + DECREASE * t * slope
            approximate = (trial_value <= value + rounding) & (trial_slope <= (2 * DECREASE - 1) * slope)
            return exact | approximate, trial_slope >= CURVATURE * slope

        def searching(carry: tuple) -> Array:
            _, _, _, _, _, _, found, trials = carry
            return ~found & (trials < self.max_trials)

        def search(carry: tuple) -> tuple:
            t, low, low_slope, high, high_slope, _, _, trials = carry
            point, trial_value, trial_gradient, trial_slope = trial(t)
            decreased, flat = accepts(t, trial_value, trial_slope)
            found = decreased & flat
            too_far = ~decreased
            low, low_slope = jnp.where(too_far, low, t), jnp.where(too_far, low_slope, trial_slope)
            high, high_slope = jnp.where(too_far, t, high), jnp.where(too_far, trial_slope, high_slope)
            # A secant step between the two slopes where they straddle zero, kept away from the ends; else bisection.
            secant = low + (high - low) * low_slope / (low_slope - high_slope)
            width = high - low
            inside = (secant > low + 0.1 * width) & (secant < high - 0.1 * width)
            between = jnp.where(inside & jnp.isfinite(high_slope), secant, 0.5 * (low + high))
            # Without an upper end, extrapolate the slope to zero, two- to tenfold.
            growth = jnp.clip(slope / (slope - trial_slope), 2.0, 10.0)
            further = jnp.where(jnp.isfinite(growth), growth, 2.0) * low
            next_t = jnp.where(found, t, jnp.where(jnp.isfinite(high), between, further))
            return (
                next_t,
                low,
                low_slope,
                high,
                high_slope,
                (point, trial_value, trial_gradient),
                found,
                trials + 1,
            )

        one, infinite = jnp.ones_like(value), jnp.full_like(value, jnp.inf)
        start = (one, 0 * one, slope, infinite, infinite, (x, value, direction), slope >= 0, jnp.int32(0))
        _, _, _, _, _, (point, new_value, new_gradient), found, trials = jax.lax.while_loop(searching, search, start)
        return point, new_value, new_gradient, found & (slope < 0), trials

    def _update(self, memory: Memory, step: Array, change: Array, gradient: Array) -> Memory:
        m = self.memory
        curvature = jnp.vdot(step, change)
        keep = curvature > 1e-12 * jnp.linalg.norm(step) * jnp.linalg.norm(change)
        slot = memory.stored % m

        def kept_in(rows: Array, row: Array) -> Array:
            old = jax.lax.dynamic_index_in_dim(rows, slot, 0, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(rows, jnp.where(keep, row, old), slot, 0)

        steps, changes = kept_in(memory.steps, step), kept_in(memory.changes, change)
        both = jnp.stack([gradient, change], axis=1)
        from_steps, from_changes = steps @ both, changes @ both
        count = memory.stored + keep.astype(jnp.int32)

        def written(products: Array, column: Array) -> Array:
            old = jax.lax.dynamic_index_in_dim(products, slot, 1, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(products, jnp.where(keep, column, old), slot, 1)

        step_change = written(memory.step_change, from_steps[:, 1])
        change_change = written(memory.change_change, from_changes[:, 1])
        change_change = written(change_change.T, from_changes[:, 1]).T

        # Everything of size m in the order of time, oldest first; slots not yet filled act as the identity.
        order = (count + jnp.arange(m, dtype=jnp.int32)) % m
        filled = order < count
        pair = filled[:, None] & filled[None, :]
        upper = jnp.where(pair, jnp.triu(step_change[order][:, order]), jnp.eye(m, dtype=gradient.dtype))
        inner = jnp.where(pair, change_change[order][:, order], 0)
        diagonal = jnp.where(filled, jnp.diagonal(upper), 0)
        newest = (count - 1) % m
        gamma = step_change[newest, newest] / jnp.maximum(change_change[newest, newest], jnp.finfo(gradient.dtype).tiny)
        gamma = jnp.where(count > 0, gamma, 1.0)
        from_steps = jnp.where(filled, from_steps[order, 0], 0)
        from_changes = jnp.where(filled, from_changes[order, 0], 0)
        solved = solve_triangular(upper, from_steps)
        rest = diagonal * solved + gamma * (inner @ solved - from_changes)
        on_steps = solve_triangular(upper, rest, trans=1)
        restore = jnp.argsort(order)
        product = gamma * gradient + on_steps[restore] @ steps - gamma * (solved[restore] @ changes)
        descends = jnp.vdot(product, gradient) > 0
        direction = -jnp.where(descends, product, gamma * gradient)
        return Memory(steps, changes, step_change, change_change, count, direction)
