"""Weight decay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    Final,
    Number,
    array_module,
    as_leaf,
    check_numbers,
)
from ufm.problems.parameters import Parameters
from ufm.problems.regularizers.base import LayerRegularizer
from ufm.problems.samples import Samples

__all__ = ["WeightDecay"]


@final
class WeightDecay(LayerRegularizer, Final):
    r"""Halved squared norms of weights, features and bias.

        sum_l (weights_l / 2) ||W_l||^2 + (features / 2) sum_i ||h_i||^2 + (bias / 2) ||b||^2

    The features are summed over all N samples. Papers without the halves (Hong & Ling's code) use
    half of these numbers; papers that sum the loss over samples instead of averaging it
    (Thrampoulidis et al.) use N times them; Andriopoulos et al. average the feature penalty over
    samples, so theirs is N times `features`.

    Args:
        weights: lambda_W > 0, one number for all layers or one per layer (first layer first).
        features: lambda_H > 0.
        bias: lambda_b >= 0; zero leaves the bias free. Not used by a problem without a bias.
    """

    bias: Float[Array, ""] = eqx.field(converter=as_leaf, default=0.0)

    halves_squares = True

    if TYPE_CHECKING:  # numbers are made arrays of

        def __init__(
            self, weights: Number | Sequence[float], features: Number, bias: Number = 0.0
        ) -> None: ...

    def __check_init__(self) -> None:
        check_numbers("regularizer.bias", self.bias, lower=0.0, remedy="0 leaves the bias free")

    @property
    def words(self) -> str:
        """What messages call the regularizer."""
        return "weight decay"

    @property
    def bias_penalty(self) -> Any:
        """lambda_b."""
        return self.bias

    def decays(self, num_layers: int) -> Any:
        """Return (lambda_1, ..., lambda_L, lambda_H); a batch axis comes last."""
        xp = array_module(self)
        return xp.concatenate(
            [xp.asarray(self.per_layer(num_layers)), xp.asarray(self.features)[None]]
        )

    def penalty(self, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
        """Return the sum of the halved squared norms."""
        dtype = parameters.features.dtype
        decays = jnp.asarray(self.per_layer(len(parameters.weights)), dtype)
        total = sum(
            decays[layer] * jnp.sum(matrix**2) for layer, matrix in enumerate(parameters.weights)
        )
        total += jnp.asarray(self.features, dtype) * jnp.sum(
            samples.feature_weights * jnp.sum(parameters.features**2, axis=1)
        )
        if parameters.bias is not None:
            total += jnp.asarray(self.bias, dtype) * jnp.sum(parameters.bias**2)
        return 0.5 * total

    def narrowed(self, old: Sequence[int], new: Sequence[int]) -> "WeightDecay":
        """Return the same penalties."""
        return self

    def gauge_price(self, size: Any, hidden_dims: Sequence[int]) -> Any:
        """Return the geometric mean of all penalties, tau = sqrt(lambda_W lambda_H) for one layer.

        By the inequality of the means: q factors whose product is Z cost at least q / 2 times this
        times t^{2/q}.
        """
        num_factors = len(hidden_dims) + 2
        roots = self.decays(num_factors - 1) ** (1 / num_factors)
        return array_module(self).prod(roots, axis=0)

    def gauge_split(self) -> Any:
        """Return sqrt(lambda_H / lambda_W)."""
        return array_module(self).sqrt(self.features / self.per_layer(1)[0])

    def with_price(self, price: Any, counts: np.ndarray, size: float) -> "WeightDecay":
        """Return penalties with sqrt(lambda_W lambda_H) = price, both factors of about one size."""
        mean = float(np.mean(counts))
        return WeightDecay(price * np.sqrt(mean), price / np.sqrt(mean), self.bias)

    def block_sizes(self, widths: Sequence[int]) -> Float[Array, " q"]:
        """Return sqrt(Lambda / lambda_l), Lambda the geometric mean of all penalties.

        They multiply to one, and turn all penalties into Lambda.
        """
        logs = array_module(self).log(self.decays(len(widths)))
        return array_module(self).exp(0.5 * (logs.sum() / len(logs) - logs))
