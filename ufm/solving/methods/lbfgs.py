r"""Limited-memory BFGS, in a form that compiles small and moves few bytes.

The inverse Hessian is kept in its compact form (Byrd, Nocedal, Schnabel, Math. Program. 1994): with
the last m steps S and gradient changes Y as rows, R the upper triangle of S Y^T in the order of
time and D its diagonal,

    H q = gamma q + S^T R^{-T} ((D + gamma Y Y^T) R^{-1} S q - gamma Y q) - gamma Y^T R^{-1} S q.

The products of the memory with the last gradient are kept, and those with the change of the
gradient follow by subtraction. So a step reads the memory twice: once for its products with the new
gradient, and once to combine the direction. All other arrays are m x m.

The line search is a bisection on the weak Wolfe conditions, with secant steps inside the bracket.
Once differences of objective values are below rounding, it accepts the approximate form of
sufficient decrease (Hager, Zhang, SIAM J. Optim. 2005). That form uses derivatives alone, which
lets gradients reach rounding level.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ufm._support import Status, as_leaf, checked_whole
from ufm.problems import Problem, Samples
from ufm.solving.methods.method import LogarithmicMethod, Step
from ufm.solving.methods.search_spaces import Space, balanced_space

__all__ = ["LBFGS", "LBFGSMemory"]

Objective = Callable[[Array], tuple[Array, Array]]

# The usual values of the Wolfe conditions (Nocedal & Wright, section 3.1).
DECREASE = 1e-4  # least decrease, relative to that of the slope at the start
CURVATURE = 0.9  # largest slope at the end, relative to that at the start


class LBFGSMemory(NamedTuple):
    """The last m pairs, and the products between them.

    The small matrices list pairs in the order of time, the newest last. Entries of pairs that are
    not there yet are zero.

    Attributes:
        pairs: The steps S, then the changes of the gradient Y, each in a ring, shape (2 m, n).
        inverse: The inverse of R, shape (m, m).
        diagonal: The diagonal of R, shape (m,).
        changes: Y Y^T, shape (m, m).
        products: Products of the pairs with the last gradient, in the order of the ring, (2 m,).
        stored: How many pairs were stored so far.
        direction: The next search direction, shape (n,).
    """

    pairs: Float[Array, "pairs n"]
    inverse: Float[Array, "m m"]
    diagonal: Float[Array, " m"]
    changes: Float[Array, "m m"]
    products: Float[Array, " pairs"]
    stored: Int[Array, ""]
    direction: Float[Array, " n"]


class LBFGS(LogarithmicMethod):
    """L-BFGS in balanced coordinates.

    Args:
        memory: Number of stored pairs.
        max_trials: Most evaluations per line search.
        smoothing: If given, the ReLUs between layers are rounded off where their inputs are below
            this share of their typical size
            (`ufm.solving.methods.balanced_coordinates.typical_inputs`). The minimisers of ReLU
            chains lie on kinks, where no smooth method converges, and among many higher local
            minima. Smoothing removes most of these minima. Descents that lower the smoothing to
            zero step by step reach far lower values.
        logarithmic: Whether to minimise the logarithm of the objective, which an objective near
            zero needs.
    """

    memory: int = eqx.field(static=True, default=6)
    max_trials: int = eqx.field(static=True, default=30)
    smoothing: Float[Array, ""] | None = eqx.field(converter=as_leaf, default=None)
    logarithmic: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name in ("memory", "max_trials"):
            checked_whole(name, getattr(self, name))

    def search_space(self, problem: Problem, samples: Samples) -> Space:
        """Return the space of balanced coordinates, with the ReLUs rounded off."""
        return balanced_space(problem, samples, self.smoothing, logarithmic=self.logarithmic)

    def init(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
    ) -> LBFGSMemory:
        """Return an empty memory, whose first direction is a short step down the gradient."""
        m, n, dtype = self.memory, x.size, x.dtype
        square, none = jnp.zeros((m, m), dtype), jnp.zeros((), jnp.int32)
        rows = jnp.zeros((2 * m, n), dtype)
        direction = -self._first_length(x, value, gradient) * gradient
        return LBFGSMemory(
            rows,
            square,
            jnp.zeros((m,), dtype),
            square,
            jnp.zeros((2 * m,), dtype),
            none,
            direction,
        )

    def _first_length(self, x: Array, value: Array, gradient: Array) -> Array:
        # The first step has at most a tenth of the norm of the point. It is shorter if the gradient
        # is small: the value over the squared norm estimates the curvature.
        tiny = jnp.finfo(x.dtype).tiny
        norm = jnp.linalg.norm(x)
        near = norm**2 / jnp.maximum(jnp.abs(value), tiny)
        return jnp.minimum(
            0.1 * norm / jnp.maximum(jnp.linalg.norm(gradient), tiny), jnp.where(norm > 0, near, 1)
        )

    def step(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
        memory: LBFGSMemory,
    ) -> Step:
        """Return the next point.

        If the line search fails, the point stays and the memory is emptied. If the memory was empty
        already, the method has stalled.
        """
        slope = jnp.vdot(gradient, memory.direction)
        t, point, found, trials = self._line_search(
            space.objective, x, value, gradient, slope, memory.direction
        )
        new_x, new_value, new_gradient, new_slope = point
        # The line search's curvature condition makes the product of step and change positive.
        curvature = jnp.where(found, t * (new_slope - slope), 0)
        stalled = ~found & (memory.stored == 0)
        status = jnp.where(stalled, Status.STALLED, Status.RUNNING)
        memory = self._update(
            memory, t, new_gradient - gradient, curvature, new_x, new_value, new_gradient
        )
        return Step(new_x, new_value, new_gradient, memory, status, trials)

    # One loop of the compiled program, whose parts share most of their numbers: kept whole.
    def _line_search(
        self,
        objective: Objective,
        x: Array,
        value: Array,
        gradient: Array,
        slope: Array,
        direction: Array,
    ) -> tuple[Array, tuple[Array, Array, Array, Array], Array, Array]:
        """Search along a direction.

        A search that fails ends with an evaluation at its start. Keeping the start beside the last
        trial would cost two passes over all unknowns in every step. The number of trials alone
        bounds the search: the compiled program may compute a decision twice, with different
        rounding.

        Returns:
            The step length; the point there with its value, gradient and slope; whether a step was
            found; and the number of trials.
        """
        rounding = 1e4 * jnp.finfo(x.dtype).eps * jnp.abs(value)
        descends = slope < 0

        def trial(t: Array, back: Array) -> tuple[Array, Array, Array, Array]:
            point = jnp.where(back, x, x + t * direction)
            trial_value, trial_gradient = objective(point)
            return point, trial_value, trial_gradient, jnp.vdot(trial_gradient, direction)

        def accepts(t: Array, trial_value: Array, trial_slope: Array) -> tuple[Array, Array]:
            exact = trial_value <= value + DECREASE * t * slope
            approximate = (trial_value <= value + rounding) & (
                trial_slope <= (2 * DECREASE - 1) * slope
            )
            # A gradient that is not finite shows in its slope.
            return (exact | approximate) & jnp.isfinite(
                trial_slope
            ), trial_slope >= CURVATURE * slope

        def searching(carry: tuple) -> Array:
            *_, found, trials = carry
            return descends & ~found & (trials <= self.max_trials)

        def search(carry: tuple) -> tuple:
            t, low, low_slope, high, high_slope, _, _, trials = carry
            back = trials == self.max_trials
            point, trial_value, trial_gradient, trial_slope = trial(t, back)
            decreased, flat = accepts(t, trial_value, trial_slope)
            found = decreased & flat & ~back
            too_far = ~decreased
            low, low_slope = jnp.where(too_far, low, t), jnp.where(too_far, low_slope, trial_slope)
            high, high_slope = (
                jnp.where(too_far, t, high),
                jnp.where(too_far, trial_slope, high_slope),
            )
            # A secant step if the two slopes have opposite signs, kept away from the ends of the
            # bracket; otherwise bisection.
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
                (point, trial_value, trial_gradient, trial_slope),
                found,
                trials + 1,
            )

        one, infinite = jnp.ones_like(value), jnp.full_like(value, jnp.inf)
        nothing = jnp.bool_(False), jnp.int32(0)
        start = (one, 0 * one, slope, infinite, infinite, (x, value, gradient, slope), *nothing)
        t, _, _, _, _, point, found, trials = jax.lax.while_loop(searching, search, start)
        return t, point, found, trials

    # One formula for many small matrices, whose parts share most of their numbers: kept whole.
    def _update(
        self,
        memory: LBFGSMemory,
        t: Array,
        change: Array,
        curvature: Array,
        x: Array,
        value: Array,
        gradient: Array,
    ) -> LBFGSMemory:
        """Return the memory with the pair of the last step, which is t times the direction.

        All pairs are dropped if the curvature is not positive.
        """
        m, dtype = self.memory, gradient.dtype
        keep = curvature > 0
        slot = memory.stored % m
        pairs = jax.lax.dynamic_update_index_in_dim(memory.pairs, t * memory.direction, slot, 0)
        pairs = jax.lax.dynamic_update_index_in_dim(pairs, change, m + slot, 0)
        products = pairs @ gradient

        count = jnp.where(keep, memory.stored + 1, 0)
        order = (
            count + jnp.arange(m, dtype=jnp.int32)
        ) % m  # of the ring in time; the youngest pair last
        filled = jnp.arange(m, dtype=jnp.int32) >= m - count
        from_steps, from_changes = (
            jnp.where(filled, products[order], 0),
            jnp.where(filled, products[m + order], 0),
        )
        last = jnp.arange(m, dtype=jnp.int32) == m - 1
        # Products with the change of the gradient: those with the new one less those with the old
        # one.
        steps_change = jnp.where(last, curvature, from_steps - memory.products[order])
        squared = jnp.vdot(change, change)
        changes_change = jnp.where(
            filled, jnp.where(last, squared, from_changes - memory.products[m + order]), 0
        )

        def shifted(matrix: Array) -> Array:
            return jnp.where(
                filled[:, None] & filled[None, :], jnp.roll(matrix, (-1, -1), (0, 1)), 0
            )

        # R gains a column, and so does its inverse. Dropping the oldest pair deletes the first row
        # and column of both.
        older = jnp.where(last, 0, jnp.where(filled, steps_change, 0))
        inverse = jnp.where(last[:, None] | last[None, :], 0, shifted(memory.inverse))
        safe = jnp.where(keep, curvature, 1)
        column = jnp.where(last, 1, -jnp.sum(inverse * older[None, :], axis=1)) / safe
        inverse = jnp.where(last[None, :] & keep, column[:, None], inverse)
        changes = jnp.where(last[None, :], changes_change[:, None], shifted(memory.changes))
        changes = jnp.where(last[:, None], changes_change[None, :], changes)
        diagonal = jnp.where(filled, jnp.where(last, curvature, jnp.roll(memory.diagonal, -1)), 0)

        gamma = jax.lax.cond(
            keep,
            lambda: curvature / jnp.maximum(squared, jnp.finfo(dtype).tiny),
            lambda: self._first_length(x, value, gradient),
        )
        solved = jnp.sum(inverse * from_steps[None, :], axis=1)
        rest = diagonal * solved + gamma * (
            jnp.sum(changes * solved[None, :], axis=1) - from_changes
        )
        on_steps = jnp.sum(inverse * rest[:, None], axis=0)
        restore = (jnp.arange(m, dtype=jnp.int32) - count) % m
        # Rounding may yield a direction that does not descend. The next line search then fails, and
        # empties the memory.
        coefficients = jnp.concatenate([-on_steps[restore], gamma * solved[restore]])
        direction = coefficients @ pairs - gamma * gradient
        return LBFGSMemory(pairs, inverse, diagonal, changes, products, count, direction)
