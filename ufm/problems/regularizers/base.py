"""The protocol of regularizers: everything that differs between weight decay and norm balls.

Letters as in `ufm.problems.problem`. Blocks are the factors W_1, ..., W_L and H, in this order.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    ArgumentError,
    Module,
    array_module,
    as_leaf,
    assembled,
    check_numbers,
    is_concrete,
    is_numeric,
    plain,
    rebuilt,
)
from ufm.problems.parameters import Parameters
from ufm.problems.samples import Samples

__all__ = [
    "Gauge",
    "LayerRegularizer",
    "Regularizer",
]

Layered = TypeVar("Layered", bound="LayerRegularizer")


class Gauge(Module):
    r"""The price of logits Z at their cheapest factors, a function of t = ||diag(rows) Z||_*.

    ||.||_* is the nuclear norm, or the gauge of atoms with h >= 0. For q factors the price is at
    least (q / 2) price t^{2/q}; a bounded gauge is free for t <= price, and infinite beyond. For
    one layer (q = 2) with room for the minimiser it is exactly that.

    Attributes:
        rows: (R,), one per row of the logits, or (G,) for the classes of groups.
        price: (), tau or the radius T.
        split: (), ||W|| over ||diag(rows) H|| at the cheapest factors of one layer.
        bounded: Whether t is bounded instead of penalised.
    """

    rows: Float[Array, "R *batch"]
    price: Float[Array, "*batch"]
    split: Float[Array, "*batch"]
    bounded: bool = eqx.field(static=True)


class Regularizer(Module):
    """A penalty on the unknowns, or constraints on them.

    A subclass has to give `penalty` only. The defaults are those of a penalty without constraints,
    of which nothing more is known: there is no certificate, no theorem and no group resolution, and
    no dimension is taken out before a solve.

    Attributes:
        halves_squares: Whether the penalty is that of `WeightDecay`, with the numbers `decays`.
        has_gauge: Whether `gauge_price` and `gauge_split` are given: whether the factors cost what
            `Gauge` says.
        bounded: Whether the unknowns are bounded instead of penalised. The objective may then come
            as close to the loss's infimum as it likes, and coordinates have no scale of their own.
        has_slack: Whether the coordinates of every block have a slack number (`contained`).
    """

    halves_squares: ClassVar[bool] = False
    has_gauge: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    has_slack: ClassVar[bool] = False

    @property
    def words(self) -> str:
        """What messages call the regularizer."""
        return type(self).__name__

    # What it is

    @abc.abstractmethod
    def penalty(self, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
        """Return the penalty that is added to the loss.

        Args:
            parameters: JAX arrays, features one row per sample or per class.
            samples: The rows. A row that stands for several samples counts for all of them: a
                penalty on the features is a sum over the rows, weighted by `samples.counts`.
        """

    def norms(self, parameters: Parameters, samples: Samples) -> tuple[Float[Array, ""], ...]:
        """Return the squared norms that are bounded, each relative to its bound, one per block.

        None without bounds. A point is feasible where none exceeds one.
        """
        return ()

    def project(self, parameters: Parameters, samples: Samples) -> Parameters:
        """Return the nearest parameters that satisfy the constraints, block by block."""
        return parameters

    def row_weights(
        self, counts: Float[Array, "*rows"], stated: Float[Array, "*rows"] | None = None
    ) -> Float[Array, "*rows"]:
        """Return the factor of ||h_r||^2 in the penalty or the bound of the features.

        Args:
            counts: (R,), how many samples each row of the problem stands for; batch axes may be
                first, or last.
            stated: (R,), the weights that the targets state, or None.
        """
        return counts if stated is None else stated

    @property
    def bias_penalty(self) -> Any:
        """lambda_b of the penalty (lambda_b / 2) ||b||^2; 0 where the bias is free."""
        return 0.0

    @property
    def has_free_bias(self) -> bool:
        """Whether a bias is known to have no penalty; False for a traced one."""
        penalty = self.bias_penalty
        return is_concrete(penalty) and bool(np.all(np.asarray(penalty) == 0))

    # How it is stated

    def check(self, num_layers: int) -> None:
        """Raise ValueError where a number per layer does not fit the number of layers."""

    def stated_per_layer(self, num_layers: int) -> "Regularizer":
        """Return the same regularizer with one number per layer wherever that may be stated."""
        return self

    def narrowed(self, old: Sequence[int], new: Sequence[int]) -> "Regularizer | None":
        """Return the regularizer of the same problem without coordinates that are not used.

        None where minimisers may use all dimensions there are, so that none can be left out.

        Args:
            old: Widths (d_1, ..., d_{L-1}) of the hidden layers.
            new: The smaller ones.
        """
        return None

    # What it costs logits

    def decays(self, num_layers: int) -> Any:
        """Return (lambda_1, ..., lambda_L, lambda_H); only with `halves_squares`."""
        raise NotImplementedError

    def gauge(
        self, counts: Any, size: Any, hidden_dims: Sequence[int] = (), stated: Any = None
    ) -> Gauge:
        """Return the price of logits; only with `has_gauge`.

        Args:
            counts: (R,) samples per row, or (G,) per class of each group. Leaves and counts may
                have batch axes, last.
            size: sqrt(R K), the geometric mean of the logits' rows and columns: K for classes.
            hidden_dims: (d_1, ..., d_{L-1}).
            stated: (R,), the weights of the features that the targets state, or None.
        """
        return assembled(
            Gauge,
            rows=self.gauge_rows(counts, stated),
            price=self.gauge_price(size, hidden_dims),
            split=self.gauge_split(),
            bounded=self.bounded,
        )

    def gauge_rows(self, counts: Any, stated: Any = None) -> Any:
        """Return the factors of the rows of the logits inside the gauge, shaped as `counts`."""
        weights = self.row_weights(counts, stated)
        return array_module(weights).sqrt(weights)

    def gauge_price(self, size: Any, hidden_dims: Sequence[int]) -> Any:
        """Return the price of the gauge, or its bound; arguments as for `gauge`."""
        raise NotImplementedError

    def gauge_split(self) -> Any:
        """Return ||W|| over ||diag(rows) H|| at the cheapest factors of one layer."""
        raise NotImplementedError

    def with_price(self, price: Any, counts: np.ndarray, size: float) -> "Regularizer":
        """Return the regularizer of one layer with this price of the gauge; only with `has_gauge`.

        Args:
            price: tau, or the bound of the gauge.
            counts: (R,) samples per row.
            size: sqrt(R K), as for `gauge`.
        """
        raise NotImplementedError

    # Coordinates (`ufm.solving.methods.balanced_coordinates`)

    def block_sizes(self, widths: Sequence[int]) -> Float[Array, " q"]:
        """Return the factors between the blocks and their coordinates, (L + 1,).

        The coordinates of H are besides multiplied by the roots of its feature weights.

        Args:
            widths: (d_1, ..., d_L), the rows of every weight matrix.
        """
        return np.ones(len(widths) + 1)  # type: ignore[return-value]

    def typical_shares(
        self, counts: Float[Array, " R"], num_factors: int, num_classes: int
    ) -> Float[Array, " R"]:
        """Return the singular value of a class in the coordinates of each of q balanced factors.

        Squared error without penalties has logits Y, whose weighted rows have norms sqrt(n_k),
        split evenly over the factors.

        Args:
            counts: (R,), samples of the class of each row.
            num_factors: q.
            num_classes: K.
        """
        return counts ** (0.5 / num_factors)

    def contained(self, blocks: Sequence[Array], slack: Float[Array, " q"] | None) -> list[Array]:
        """Return the scaled blocks that satisfy the constraints, from any coordinates.

        A smooth map onto the feasible blocks.

        Args:
            blocks: Coordinates of W_1, ..., W_L and H.
            slack: One number per block with `has_slack`, None without.
        """
        return list(blocks)

    def slack(self, blocks: Sequence[Array]) -> Float[Array, " q"] | None:
        """Return the slack numbers of scaled blocks, None without: the converse of `contained`."""
        return None

    def tangent(self, blocks: Sequence[Array], slopes: Sequence[Array]) -> list[Array]:
        """Return slopes along scaled blocks without the parts that the constraints hold."""
        return list(slopes)


class LayerRegularizer(Regularizer):
    """A regularizer of two numbers: one of the weights, which may be one per layer, and one of H.

    Attributes:
        weights: The number of every layer, (), or of each, (L,), first layer first.
        features: The number of the features.
    """

    weights: Float[Array, ""] | Float[Array, " L"] = eqx.field(converter=as_leaf)
    features: Float[Array, ""] = eqx.field(converter=as_leaf)

    has_gauge = True

    def __check_init__(self) -> None:
        _check_positive("regularizer.weights", self.weights, per_layer=True)
        _check_positive("regularizer.features", self.features)

    def check(self, num_layers: int) -> None:
        """Raise ValueError unless there is one number for all layers, or one per layer."""
        shape = np.shape(self.weights)
        if shape not in ((), (num_layers,)):
            raise ArgumentError(
                "regularizer.weights",
                f"must be one number or one per layer ({num_layers}), got {shape[0]}",
            )

    def per_layer(self, num_layers: int) -> Float[Array, "L *batch"]:
        """Return the number of every layer, first layer first."""
        if np.shape(self.weights) == ():
            xp = np if is_concrete(self.weights) else jnp
            return xp.broadcast_to(self.weights, (num_layers,))
        return self.weights

    def stated_per_layer(self: Layered, num_layers: int) -> Layered:
        """Return the same regularizer with the number of the weights stated layer by layer."""
        return rebuilt(self, weights=self.per_layer(num_layers))


def _check_positive(name: str, value: Any, per_layer: bool = False) -> None:
    """Raise ValueError unless it is one positive finite number, or one per layer."""
    if not is_concrete(value):
        return
    if not is_numeric(value) or np.ndim(value) > (1 if per_layer else 0):
        requirement = f"must be one number{' or one per layer' if per_layer else ''}"
        raise ArgumentError(name, requirement, plain(value))
    check_numbers(name, value, several=True, positive=True)
