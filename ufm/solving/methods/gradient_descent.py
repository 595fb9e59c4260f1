"""Gradient descent with any optax optimiser, in the parameters themselves, the way the papers run it."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from ufm._support import Module, as_leaf, is_concrete, is_numeric

__all__ = ["GradientDescent"]


class GradientDescent(Module):
    """Full-batch gradient descent from a Gaussian initial point.

    With `learning_rate` (and `momentum`, heavy-ball) their values are leaves of the pytree, and
    changing them does not recompile; any optax optimiser, with any schedule, can be given instead.

    Args:
        learning_rate: step size, positive.
        momentum: heavy-ball momentum, 0 <= momentum < 1.
        optimizer: an optax gradient transformation, instead of the two.
        init_scale: standard deviation of the initial weights and features; 0.1 in most scripts of
            the field.

    Raises:
        ValueError: if a number is out of range, or both a learning rate and an optimiser are given.
    """

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
                f"give either `optimizer` or `learning_rate` and `momentum`, got both ({learning_rate=}, {momentum=})."
            )
        if optimizer is None and learning_rate is None:
            learning_rate = 0.1
        if optimizer is not None and not (
            hasattr(optimizer, "init") and hasattr(optimizer, "update")
        ):
            raise ValueError(
                f"`optimizer` must be an optax gradient transformation, got {optimizer!r}."
            )
        self.learning_rate, self.momentum = as_leaf(learning_rate), as_leaf(momentum)
        self.optimizer, self.init_scale = optimizer, as_leaf(init_scale)

    def __check_init__(self) -> None:
        for name, value, upper in (
            ("learning_rate", self.learning_rate, np.inf),
            ("momentum", self.momentum, 1.0),
            ("init_scale", self.init_scale, np.inf),
        ):
            if value is None or not is_concrete(value):
                continue
            if not is_numeric(value):
                raise ValueError(f"`{name}` must be one positive finite number, got {value!r}.")
            if (
                np.shape(value) != ()
                or not (0 <= value < upper)
                or (value == 0 and name != "momentum")
            ):
                below = " and below 1" if upper == 1.0 else ""
                raise ValueError(
                    f"`{name}` must be one positive finite number{below}, got {np.asarray(value).tolist()!r}."
                )

    def transformation(self, dtype: Any) -> optax.GradientTransformationExtraArgs:
        """Return the optax transformation that makes the steps."""
        if self.optimizer is not None:
            return optax.with_extra_args_support(self.optimizer)
        rate = jax.numpy.asarray(self.learning_rate, dtype)
        momentum = None if self.momentum is None else jax.numpy.asarray(self.momentum, dtype)
        return optax.with_extra_args_support(optax.sgd(rate, momentum=momentum))
