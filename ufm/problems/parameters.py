"""The unknowns of a problem."""

from typing import NamedTuple

from jaxtyping import Array, Float

from ufm._support import printed

__all__ = ["Parameters"]


@printed
class Parameters(NamedTuple):
    """The unknowns.

    Attributes:
        weights: (W_1, ..., W_L), each (out, in).
        features: (R, d), one row per sample or per class.
        bias: (K,), or None in a model without one.
    """

    weights: tuple[Float[Array, "out in"], ...]
    features: Float[Array, "R d"]
    bias: Float[Array, " K"] | None = None
