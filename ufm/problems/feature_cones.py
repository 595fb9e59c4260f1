"""The cone that features lie in: all vectors, or those without negative entries."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ufm._support import array_module

__all__ = ["FeatureCone"]


class FeatureCone(NamedTuple):
    """The set of allowed features, and everything that depends on it.

    Attributes:
        nonnegative: Whether h >= 0, entry by entry.
    """

    nonnegative: bool

    @property
    def words(self) -> str:
        """The name of the cone in conditions and messages."""
        return "h >= 0" if self.nonnegative else "unconstrained features"

    @property
    def rotates(self) -> bool:
        """Whether the cone is invariant under rotations of feature space."""
        return not self.nonnegative

    @property
    def gauge_words(self) -> str:
        """The name of the gauge of the logits."""
        return "non-negative gauge" if self.nonnegative else "nuclear norm"

    def contains(self, features: Any) -> Bool[Array, ""]:
        """Return whether all features lie in the cone."""
        xp = array_module(features)
        return xp.all(features >= 0) if self.nonnegative else xp.ones((), bool)

    def project(self, features: Any) -> Any:
        """Return the nearest features of the cone."""
        return array_module(features).maximum(features, 0) if self.nonnegative else features

    def reflected(self, features: Any) -> Any:
        """Return features of the cone from any: the absolute values if h >= 0."""
        return array_module(features).abs(features) if self.nonnegative else features

    def at_bound(self, features: Any, floor: Any = 0.0) -> Any:
        """Return a mask of the entries that are at most `floor`, where they are bounded by zero."""
        if self.nonnegative:
            return features <= floor
        return array_module(features).zeros_like(features, dtype=bool)

    def from_coordinates(self, coordinates: Any) -> Any:
        """Return features from coordinates without a bound: their squares if non-negative."""
        return coordinates**2 if self.nonnegative else coordinates

    def to_coordinates(self, features: Any) -> Any:
        """Return the coordinates of features: their square roots if non-negative."""
        return array_module(features).sqrt(features) if self.nonnegative else features

    def relaxed(self, gram: Float[Array, "K K"]) -> Float[Array, "K K"]:
        """Return a matrix whose largest eigenvalue bounds <h, B h> over unit vectors h of the cone.

        For h >= 0, non-negative numbers may be added to B off the diagonal. Those added here take
        its negative entries to zero. For signed features the bound is exact.
        """
        if not self.nonnegative:
            return gram
        return gram + jnp.maximum(-gram * (1 - jnp.eye(gram.shape[0], dtype=gram.dtype)), 0)

    def needed_dimension(self, num_classes: int, rank: int) -> int:
        """Return how many dimensions are known to hold the minimiser of the convex form.

        For h >= 0 this is observed, not proved.

        Args:
            num_classes: K.
            rank: The largest rank of its logits for signed features.
        """
        return num_classes if self.nonnegative else rank
