r"""Trust-region Newton-CG, the second-order method that takes gradients to rounding level.

Each step minimises the quadratic model m(p) = <g, p> + 1/2 <p, H p> over ||p|| <= radius by
conjugate gradients that stop at the boundary or at negative curvature (Steihaug, SIAM J. Numer.
Anal. 1983; Nocedal & Wright, Algorithm 7.2). Products with the Hessian are exact, by
forward-over-reverse differentiation. Rotations of feature space leave the objective unchanged, so
the Hessian is singular along them. The gradient is orthogonal to these directions. Conjugate
gradients that start from zero never enter them, so no regularisation is needed.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ufm._support import Status, checked_whole
from ufm.problems import Problem, Samples
from ufm.solving.methods.method import LogarithmicMethod, Step
from ufm.solving.methods.search_spaces import Space, balanced_space

__all__ = ["NewtonCG", "TrustRegion"]

# Share of the gradient that conjugate gradients may leave: each full step gains two digits. No
# measurement of it is recorded.
FORCING = 1e-2


class TrustRegion(NamedTuple):
    """The trust region.

    Attributes:
        radius: Its radius.
        fails: Number of consecutive steps that were refused.
    """

    radius: Float[Array, ""]
    fails: Int[Array, ""]


class NewtonCG(LogarithmicMethod):
    """Trust-region Newton-CG in balanced coordinates.

    Args:
        max_products: Most Hessian-vector products per step.
        max_fails: Refused steps in a row, each with a smaller radius, after which the solve has
            stalled.
        logarithmic: Whether to minimise the logarithm of the objective, which an objective near
            zero needs.
    """

    max_products: int = eqx.field(static=True, default=2000)
    max_fails: int = eqx.field(static=True, default=12)
    logarithmic: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name in ("max_products", "max_fails"):
            checked_whole(name, getattr(self, name))

    def search_space(self, problem: Problem, samples: Samples) -> Space:
        """Return the balanced coordinates."""
        return balanced_space(problem, samples, logarithmic=self.logarithmic)

    def init(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
    ) -> TrustRegion:
        """Return a trust region whose radius is the norm of the point."""
        return TrustRegion(jnp.maximum(jnp.linalg.norm(x), 1e-3), jnp.zeros((), jnp.int32))

    def step(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
        memory: TrustRegion,
    ) -> Step:
        """Return the next point.

        If the step is refused, the point stays and the radius shrinks.
        """

        def product(vector: Array) -> Array:
            return jax.jvp(lambda y: space.objective(y)[1], (x,), (vector,))[1]

        step, model, products = _steihaug(product, gradient, memory.radius, self.max_products)
        new_x = x + step
        new_value, new_gradient = space.objective(new_x)
        gain = (value - new_value) / jnp.maximum(-model, jnp.finfo(x.dtype).tiny)
        # Once the decrease is below the rounding of the objective, a step is judged by its
        # gradient.
        rounding = 1e2 * jnp.finfo(x.dtype).eps * jnp.abs(value)
        level = (jnp.abs(model) < rounding) & (new_value <= value + rounding)
        accepted = jnp.where(
            level, jnp.linalg.norm(new_gradient) < 0.8 * jnp.linalg.norm(gradient), gain > 0.05
        )
        length = jnp.linalg.norm(step)
        grown = jnp.where(
            (gain > 0.75) & (length > 0.9 * memory.radius), 2 * memory.radius, memory.radius
        )
        radius = jnp.where(accepted, grown, 0.25 * length)
        fails = jnp.where(accepted, 0, memory.fails + jnp.where(level, self.max_fails // 6, 1))
        accepted = accepted & jnp.all(jnp.isfinite(new_gradient))
        kept = (
            jnp.where(accepted, new, old)
            for new, old in ((new_x, x), (new_value, value), (new_gradient, gradient))
        )
        status = jnp.where(fails >= self.max_fails, Status.STALLED, Status.RUNNING)
        region = TrustRegion(radius, fails)
        return Step(*kept, region, status, products + 1)  # type: ignore[call-arg]


def _steihaug(
    product: Callable[[Array], Array], slope: Array, radius: Array, max_products: int
) -> tuple[Array, Array, Array]:
    """Return the step, the model's value there, and the number of products."""
    norm = jnp.linalg.norm(slope)
    tolerance = FORCING * norm

    def to_boundary(p: Array, d: Array) -> Array:
        a, b, c = jnp.vdot(d, d), jnp.vdot(p, d), jnp.vdot(p, p) - radius**2
        return p + d * (
            (-b + jnp.sqrt(jnp.maximum(b * b - a * c, 0))) / jnp.maximum(a, jnp.finfo(p.dtype).tiny)
        )

    def going(carry: tuple) -> Array:
        _, _, residual, _, done, count = carry
        return ~done & (count < max_products) & (jnp.linalg.norm(residual) > tolerance)

    def body(carry: tuple) -> tuple:
        p, hp, r, d, _, count = carry
        hd = product(d)
        curvature, squared = jnp.vdot(d, hd), jnp.vdot(r, r)
        alpha = squared / curvature
        ahead = p + alpha * d
        # Curvature at rounding level belongs to the flat directions. Only rounding can have brought
        # the residual there.
        flat = curvature <= jnp.finfo(p.dtype).eps * jnp.vdot(d, d)
        leaves = (jnp.vdot(ahead, ahead) >= radius**2) | flat
        ahead = jnp.where(leaves, to_boundary(p, d), ahead)
        moved = jnp.where(leaves, 0, alpha)
        # The step of length t along d changes H p by t H d, on the boundary too.
        t = jnp.where(leaves, jnp.vdot(ahead - p, d) / jnp.vdot(d, d), moved)
        next_r = r + t * hd
        beta = jnp.vdot(next_r, next_r) / squared
        return ahead, hp + t * hd, next_r, -next_r + beta * d, leaves, count + 1

    zero = jnp.zeros_like(slope)
    start = (zero, zero, slope, -slope, jnp.bool_(False), jnp.int32(0))
    p, hp, _, _, _, count = jax.lax.while_loop(going, body, start)
    return p, jnp.vdot(slope, p) + 0.5 * jnp.vdot(p, hp), count
