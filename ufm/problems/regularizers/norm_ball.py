"""The norm balls of the layer-peeled model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Final, Number, array_module, rebuilt
from ufm.problems.parameters import Parameters
from ufm.problems.regularizers.base import LayerRegularizer
from ufm.problems.samples import Samples

__all__ = ["NormBall"]


@final
class NormBall(LayerRegularizer, Final):
    r"""The constraints of the layer-peeled model instead of penalties.

    Mean squared row norm of every weight matrix at most E_W, and squared norm of the features,
    averaged within each class and then over classes, at most E_H:

        (1/K) ||W||^2 <= weights,        (1/K) sum_k (1/n_k) sum_{i in k} ||h_i||^2 <= features.

    For `Targets` the mean over classes is one over their rows, weighted by `feature_weights` if
    these are stated.

    Args:
        weights: E_W > 0, one number for all layers or one per layer; a hidden layer's rows are
            averaged likewise.
        features: E_H > 0.

    Reference: Fang, He, Long, Su (PNAS 2021).
    """

    bounded = True
    has_slack = True

    if TYPE_CHECKING:  # numbers are made arrays of

        def __init__(self, weights: Number | Sequence[float], features: Number) -> None: ...

    @property
    def words(self) -> str:
        """What messages call the regularizer."""
        return "norm balls"

    def penalty(self, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
        """Return zero."""
        return jnp.zeros((), parameters.features.dtype)

    def norms(self, parameters: Parameters, samples: Samples) -> tuple[Float[Array, ""], ...]:
        """Return the squared norms relative to their bounds, of every layer and of the features."""
        dtype = parameters.features.dtype
        bounds = jnp.asarray(self.per_layer(len(parameters.weights)), dtype)
        layers = tuple(
            jnp.mean(jnp.sum(matrix**2, axis=1)) / bounds[layer]
            for layer, matrix in enumerate(parameters.weights)
        )
        features = jnp.sum(samples.feature_weights * jnp.sum(parameters.features**2, axis=1))
        return (*layers, features / jnp.asarray(self.features, dtype))

    def project(self, parameters: Parameters, samples: Samples) -> Parameters:
        """Return the parameters with blocks outside their balls scaled back onto them."""
        shrink = [1 / jnp.sqrt(jnp.maximum(norm, 1)) for norm in self.norms(parameters, samples)]
        weights = tuple(w * s for w, s in zip(parameters.weights, shrink[:-1], strict=True))
        return parameters._replace(weights=weights, features=parameters.features * shrink[-1])

    def row_weights(
        self, counts: Float[Array, "*batch R"], stated: Float[Array, "*batch R"] | None = None
    ) -> Float[Array, "*batch R"]:
        """Return weights that sum to one: 1 / R each if none are stated, a mean over the rows."""
        xp = array_module((counts, stated))
        if stated is None:
            return xp.full_like(counts, 1 / counts.shape[-1])
        return stated / xp.sum(stated, axis=-1, keepdims=True)

    def narrowed(self, old: Sequence[int], new: Sequence[int]) -> "NormBall":
        """Return the bounds on means over fewer rows: the bounds on the sums stay."""
        if tuple(old) == tuple(new):
            return self
        rows = [before / after for before, after in zip(old, new, strict=True)]
        return rebuilt(self, weights=self.per_layer(len(rows) + 1) * np.array([*rows, 1.0]))

    def gauge_rows(self, counts: Any, stated: Any = None) -> Any:
        """Return the roots of the weights over their mean: ones if none are stated."""
        if stated is None:
            return array_module(counts).ones_like(counts)
        xp = array_module(stated)
        return xp.sqrt(stated / xp.mean(stated, axis=-1, keepdims=True))

    def gauge_price(self, size: Any, hidden_dims: Sequence[int]) -> Any:
        """Return the product of all radii: T = K sqrt(E_W E_H) for one layer of K classes."""
        xp, layers = array_module((self, size)), len(hidden_dims) + 1
        roots = xp.prod(xp.sqrt(self.per_layer(layers)), axis=0) * xp.sqrt(self.features)
        return size * math.prod(width**0.5 for width in hidden_dims) * roots

    def gauge_split(self) -> Any:
        """Return sqrt(E_W / E_H)."""
        return array_module(self).sqrt(self.per_layer(1)[0] / self.features)

    def with_price(self, price: Any, counts: np.ndarray, size: float) -> "NormBall":
        """Return the bounds with K sqrt(E_W E_H) = price and the same E_H."""
        weights = (price / size / np.sqrt(self.features)) ** 2
        return NormBall(weights, self.features)

    def block_sizes(self, widths: Sequence[int]) -> Float[Array, " q"]:
        """Return the radii, sqrt(d_l E_l) and sqrt(E_H)."""
        xp = array_module(self)
        layers = xp.sqrt(np.asarray(widths, np.float64) * self.per_layer(len(widths)))
        return xp.append(layers, xp.sqrt(self.features))

    def typical_shares(
        self, counts: Float[Array, " R"], num_factors: int, num_classes: int
    ) -> Float[Array, " R"]:
        """Return K^{-1/2}: every block has norm one, shared by the classes."""
        return array_module(counts).full_like(counts, num_classes**-0.5)

    def contained(self, blocks: Sequence[Array], slack: Float[Array, " q"] | None) -> list[Array]:
        """Return V / sqrt(||V||^2 + s^2) for every block V and its slack number s.

        This covers the unit ball, interior (s != 0) and boundary (s = 0).
        """
        assert slack is not None
        norms = [jnp.sqrt(jnp.sum(block**2) + slack[i] ** 2) for i, block in enumerate(blocks)]
        return [block / norm for block, norm in zip(blocks, norms, strict=True)]

    def slack(self, blocks: Sequence[Array]) -> Float[Array, " q"]:
        """Return sqrt(1 - ||V||^2) of every block, 0 outside the ball."""
        return jnp.stack([jnp.sqrt(jnp.maximum(1 - jnp.sum(block**2), 0)) for block in blocks])

    def tangent(self, blocks: Sequence[Array], slopes: Sequence[Array]) -> list[Array]:
        """Return slopes without the parts that point out of the unit ball, for blocks on it."""
        return [_tangent(block, slope) for block, slope in zip(blocks, slopes, strict=True)]


def _tangent(block: Array, slope: Array) -> Array:
    outward = jnp.minimum(jnp.sum(block * slope), 0) / jnp.maximum(jnp.sum(block**2), 1e-300)
    on_sphere = jnp.sum(block**2) >= 1 - 1e-12
    return slope - jnp.where(on_sphere, outward, 0) * block
