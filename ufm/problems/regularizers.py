"""Regularizers: weight decay, and the norm balls of the layer-peeled model."""

from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import LARGEST, SMALLEST, ArgumentError, Final, as_leaf, is_concrete, is_numeric

__all__ = ["NormBall", "WeightDecay"]


@final
class WeightDecay(Final):
    r"""Halved squared norms: sum_l (weights_l / 2) ||W_l||^2 + (features / 2) sum_i ||h_i||^2 + (bias / 2) ||b||^2.

    The features are summed over all N samples. Papers without the halves (Hong & Ling's code) use
    half of these numbers; papers that sum the loss over samples instead of averaging it
    (Thrampoulidis et al.) use N times them; Andriopoulos et al. average the feature penalty over
    samples, so theirs is N times `features`.

    Args:
        weights: lambda_W > 0, one number for all layers or one per layer (first layer first).
        features: lambda_H > 0.
        bias: lambda_b >= 0; zero leaves the bias free. Not used by a problem without a bias.
    """

    weights: Float[Array, ""] | Float[Array, " L"] = eqx.field(converter=as_leaf)
    features: Float[Array, ""] = eqx.field(converter=as_leaf)
    bias: Float[Array, ""] = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        _check_positive("regularizer.weights", self.weights, per_layer=True)
        _check_positive("regularizer.features", self.features)
        single = is_numeric(self.bias) and np.shape(self.bias) == ()
        if is_concrete(self.bias) and not (single and 0 <= self.bias <= LARGEST):
            raise ArgumentError(
                "regularizer.bias",
                f"must be one finite number >= 0, got {_show(self.bias)}; 0 leaves the bias free",
            )

    def per_layer(self, num_layers: int) -> Float[Array, " L"]:
        """Return lambda_W of every layer, first layer first."""
        return _per_layer(self.weights, num_layers)


@final
class NormBall(Final):
    r"""The constraints of the layer-peeled model instead of penalties.

    Mean squared row norm of every weight matrix at most E_W, and squared norm of the features,
    averaged within each class and then over classes, at most E_H:

        (1/K) ||W||^2 <= weights,        (1/K) sum_k (1/n_k) sum_{i in k} ||h_i||^2 <= features.

    Args:
        weights: E_W > 0, one number for all layers or one per layer; a hidden layer's rows are
            averaged likewise.
        features: E_H > 0.

    Reference: Fang, He, Long, Su (PNAS 2021).
    """

    weights: Float[Array, ""] | Float[Array, " L"] = eqx.field(converter=as_leaf)
    features: Float[Array, ""] = eqx.field(converter=as_leaf)

    def __check_init__(self) -> None:
        _check_positive("regularizer.weights", self.weights, per_layer=True)
        _check_positive("regularizer.features", self.features)

    def per_layer(self, num_layers: int) -> Float[Array, " L"]:
        """Return E_W of every layer, first layer first."""
        return _per_layer(self.weights, num_layers)


def _per_layer(values: Any, num_layers: int) -> Any:
    if np.shape(values) == ():
        return (np if is_concrete(values) else jnp).broadcast_to(values, (num_layers,))
    return values


def _check_positive(name: str, value: Any, per_layer: bool = False) -> None:
    if not is_concrete(value):
        return
    if not is_numeric(value) or np.ndim(value) > (1 if per_layer else 0):
        raise ArgumentError(
            name,
            f"must be one number{' or one per layer' if per_layer else ''}, got {_show(value)}",
        )
    bad = [float(entry) for entry in np.ravel(value) if not (SMALLEST <= entry <= LARGEST)]
    if bad:
        limits = f", from {SMALLEST:.3g} to {LARGEST:g}" if 0 < bad[0] < np.inf else ""
        raise ArgumentError(name, f"must be positive and finite{limits}", bad[0])


def _show(value: Any) -> str:
    return repr(np.asarray(value).tolist() if is_numeric(value) else value)
