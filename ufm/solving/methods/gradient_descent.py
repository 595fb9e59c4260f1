"""Gradient descent in the parameters themselves, with any optax optimiser, as papers run it."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ufm._support import ArgumentError, Status, as_leaf, check_numbers
from ufm.problems import Problem, Samples
from ufm.solving.methods.method import Method, Step
from ufm.solving.methods.search_spaces import Space, parameter_space

__all__ = ["GradientDescent"]


class GradientDescent(Method):
    """Full-batch gradient descent of all N samples, from a Gaussian initial point with zero bias.

    At class resolution a row moves as one of its samples does: its gradient is divided by their
    number. So both resolutions make the same steps if the samples of each class start at the same
    point and the optimiser acts entry by entry.

    `learning_rate` and `momentum` (heavy-ball) are leaves of the pytree, so changing them does not
    recompile. Any optax optimiser, with any schedule, can be given instead.

    Args:
        learning_rate: Step size, positive.
        momentum: Heavy-ball momentum, 0 <= momentum < 1.
        optimizer: An optax gradient transformation, instead of the two.
        init_scale: Standard deviation of the initial weights and features; 0.1 in most scripts of
            the field.

    Raises:
        ValueError: If a number is out of range, or both a learning rate and an optimiser are given.
    """

    balanced: ClassVar[bool] = False
    default_steps: ClassVar[int | None] = 100_000

    learning_rate: Float[Array, ""] | None = eqx.field(converter=as_leaf)
    momentum: Float[Array, ""] | None = eqx.field(converter=as_leaf)
    optimizer: optax.GradientTransformation | None = eqx.field(static=True)
    init_scale: Float[Array, ""] = eqx.field(converter=as_leaf)

    def __init__(
        self,
        learning_rate: Any = None,
        *,
        momentum: Any = None,
        optimizer: optax.GradientTransformation | None = None,
        init_scale: Any = 0.1,
    ):
        if optimizer is not None and (learning_rate is not None or momentum is not None):
            raise ValueError(
                "give either `optimizer` or `learning_rate` and `momentum`, got both "
                f"({learning_rate=}, {momentum=})."
            )
        if optimizer is None and learning_rate is None:
            learning_rate = 0.1
        if optimizer is not None and not (
            hasattr(optimizer, "init") and hasattr(optimizer, "update")
        ):
            raise ArgumentError("optimizer", "must be an optax gradient transformation", optimizer)
        self.learning_rate, self.momentum = as_leaf(learning_rate), as_leaf(momentum)
        self.optimizer, self.init_scale = optimizer, as_leaf(init_scale)

    def __check_init__(self) -> None:
        if self.optimizer is None:
            check_numbers("learning_rate", self.learning_rate, positive=True)
        if self.momentum is not None:
            check_numbers("momentum", self.momentum, lower=0.0, below=1.0)
        check_numbers("init_scale", self.init_scale, positive=True)

    def search_space(self, problem: Problem, samples: Samples) -> Space:
        """Return the parameters themselves."""
        return parameter_space(problem, samples, self.init_scale)

    def init(self, space: Space, x: Float[Array, " n"], value: Any, gradient: Any) -> Any:
        """Return the state of the optimiser."""
        return self.transformation(x.dtype).init(space.unravel(x))

    def step(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
        memory: Any,
    ) -> Step:
        """Return the next point, or the same one where the objective is not finite there."""
        point, slope = space.unravel(x), space.unravel(gradient)
        of_samples = slope._replace(features=slope.features / space.copies)
        updates, memory = self.transformation(x.dtype).update(
            of_samples,
            memory,
            point,
            value=value,
            grad=slope,
            value_fn=lambda p: space.objective(ravel_pytree(p)[0])[0],
        )
        moved = jax.tree.map(lambda block, update: block + update, point, updates)
        new_x = space.project(ravel_pytree(moved)[0])
        new_value, new_gradient = space.objective(new_x)
        lost = ~(jnp.isfinite(new_value) & jnp.all(jnp.isfinite(new_gradient)))
        kept = (
            jnp.where(lost, old, new)
            for old, new in ((x, new_x), (value, new_value), (gradient, new_gradient))
        )
        status = jnp.where(lost, Status.NON_FINITE, Status.RUNNING)
        return Step(*kept, memory, status)  # type: ignore[call-arg]

    def transformation(self, dtype: Any) -> optax.GradientTransformationExtraArgs:
        """Return the optax transformation that makes the steps."""
        if self.optimizer is not None:
            return optax.with_extra_args_support(self.optimizer)
        rate = jnp.asarray(self.learning_rate, dtype)
        momentum = None if self.momentum is None else jnp.asarray(self.momentum, dtype)
        return optax.with_extra_args_support(optax.sgd(rate, momentum=momentum))
