r"""The protocol of losses: values, conjugates for certificates, and self-description.

A loss maps logits z and a target row y (one-hot for plain classification) to a number per row. The
data term of every model is the mean over the N samples. Letters: n rows, K classes in G groups, z
logits, y targets, p = softmax(z), pi_k = n_k / N.

A convex loss turns a candidate's gradient into a lower bound on the optimal value. Its value, its
gradient and its infimum are enough (`ufm.certificates.chord`). Where it also states its conjugate
l*(u) = sup_z <u, z> - l(z), the bound is cheaper (`ufm.certificates.dual`).
"""

import abc
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Module, brief, check_numbers
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.group_losses import GroupLoss

__all__ = ["Loss", "LossParameter"]

OF_CONJUGATE = ("conjugate", "domain", "constant_dual")


class LossParameter(NamedTuple):
    """A number of a loss, as command lines, config files and searches for thresholds use it.

    Attributes:
        name: The field of the loss.
        meaning: What it is, in a few words.
        lower: Its least value.
        below: What it must stay below.
        searched: The range in which thresholds are looked for.
        per_class: The field that gives one number per class instead; "" where there is none.
        positive: Whether the numbers per class must be positive.
    """

    name: str
    meaning: str
    lower: float = -np.inf
    below: float = np.inf
    searched: tuple[float, float] = (0.0, 5.0)
    per_class: str = ""
    positive: bool = True

    def check(self, loss: "Loss") -> None:
        """Raise ValueError if the loss's numbers, unless traced, are out of range."""
        value = getattr(loss, self.name)
        if not self.per_class:
            check_numbers(self.name, value, lower=self.lower, below=self.below)
            return
        numbers = getattr(loss, self.per_class)
        if (value is None) == (numbers is None):
            got = "neither" if value is None else f"{self.name} and {self.per_class}"
            raise ValueError(f"give exactly one of `{self.name}` or `{self.per_class}`; got {got}.")
        if numbers is None:
            check_numbers(self.name, value, lower=self.lower, below=self.below)
        else:
            check_numbers(self.per_class, numbers, several=True, positive=self.positive)


class Loss(Module):
    """A loss per row of logits.

    A loss of your own is a subclass with `__call__`, or a function of one row
    (`ufm.losses.from_function`). Minimisers of a convex one are certified. Certificates rest on
    what a loss states about itself, which `check_loss` tests. A subclass of a library loss counts
    as a different loss: nothing known of the parent is assumed for it.

    A conjugate is optional. It makes certificates faster, and closes them also where the derivative
    is one of many, as at the kinks of a hinge. A loss states all of `conjugate`, `domain` and
    `constant_dual`, or none of them.

        class LogCosh(ufm.Loss):
            convex = True

            def __call__(self, logits, targets, classes):
                return jnp.sum(jnp.log(jnp.cosh(logits - targets)), axis=1)

    Attributes:
        convex: Whether every row's loss is convex in its logits.
        shift_invariant: Whether a constant added to all logits of a row changes nothing.
        infimum: A number that no row's loss is below, zero if not stated; minus infinity where none
            is known. Relative gaps and gradients are measured above it. The bounds of a convex loss
            without a conjugate rest on it, or on `infima`, which may give one per target row.
        name: What command lines and config files call a loss of the library.
        parameters: Its numbers. A command line gives the first.
    """

    convex: ClassVar[bool] = False
    shift_invariant: ClassVar[bool] = False
    infimum: ClassVar[float] = 0.0
    name: ClassVar[str] = ""
    parameters: ClassVar[tuple[LossParameter, ...]] = ()

    def __check_init__(self) -> None:
        """Raise ValueError for numbers out of range, or a conjugate that is stated in part."""
        for parameter in self.parameters:
            parameter.check(self)
        stated = [name for name in OF_CONJUGATE if _states(self, name)]
        missing = [name for name in OF_CONJUGATE if name not in stated]
        if self.convex and stated and missing:
            raise ValueError(
                f"`{type(self).__name__}` states `{stated[0]}` and lacks the method "
                f"`{missing[0]}`; state all of {', '.join(OF_CONJUGATE)}, or none of them."
            )

    @property
    def has_conjugate(self) -> bool:
        """Whether the conjugate is stated, by the loss and by every loss inside it."""
        inner = (part for part in vars(self).values() if isinstance(part, Loss))
        return all(_states(self, name) for name in OF_CONJUGATE) and all(
            part.has_conjugate for part in inner
        )

    def infima(self, targets: Float[Array, "n K"], classes: ClassGroups) -> Float[Array, " n"]:
        """Return a number for every row that its loss is never below; `infimum` by default.

        Bounds of a convex loss without a conjugate rest on these numbers.
        """
        return jnp.full(targets.shape[:1], self.infimum, targets.dtype)

    @property
    def title(self) -> str:
        """The name of the class, or the name that a loss was given."""
        return type(self).__name__

    @property
    def label(self) -> str:
        """The name of the class with its numbers, as in "LabelSmoothing(alpha=0.1)"."""
        return brief(self)

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return the loss of every row."""

    def conjugate(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return l*(u) of every row, for u in the domain of the conjugate.

        Raises:
            ValueError: If the loss states no conjugate.
        """
        known = "" if self.convex else "is not convex and "
        raise ValueError(f"{type(self).__name__} {known}states no conjugate.")

    def conjugate_size(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return the sum of the magnitudes of the terms of l*(u), row by row.

        The rounding of l*(u) is relative to it. The default is the magnitude of the conjugate and
        of u. A conjugate whose terms cancel further must override it.
        """
        return jnp.abs(self.conjugate(dual, targets, classes)) + jnp.sum(jnp.abs(dual), axis=1)

    def domain(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, "n K"]:
        """Return numbers, affine in u, that are all non-negative exactly if u is in the domain.

        After the loss's own rescaling the rows of u sum to zero, as those of all gradients do.

        Raises:
            ValueError: If the loss states no conjugate.
        """
        return self.conjugate(dual, targets, classes)

    def constant_dual(
        self, targets: Float[Array, "n K"], shares: Float[Array, " n"], classes: ClassGroups
    ) -> Float[Array, "n K"]:
        """Return a dual inside the domain whose mean, weighted by `shares`, is zero.

        If there is a closed form, it consists of the gradients at the constant logits that minimise
        the loss averaged with `shares`.

        Raises:
            ValueError: If the loss states no conjugate.
        """
        return self.conjugate(targets, targets, classes)

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where a per-class parameter does not fit the classes."""

    def check_targets(self, targets: Float[Array, "n Q"]) -> None:
        """Raise ValueError where a target row is none that the loss is for."""

    def num_outputs(self, width: int) -> int:
        """Return the number of logits that belong to target rows of so many numbers."""
        return width

    def softened(self, center: Any, width: Any, *, exact: bool = False) -> "Loss | None":
        """Return a loss with kinks rounded off around given duals; None if it has no kinks.

        Args:
            center: (R, K), or (1, K) for all rows.
            width: How far the kinks are rounded off.
            exact: Whether its conjugate is the loss's own, so that bounds are those of the loss.
        """
        return None

    def per_class(self, classes: ClassGroups) -> "Loss":
        """Return the same loss, with parameters that were stated per group stated per class."""
        return self

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss | None:
        """Return the loss over groups of interchangeable classes; None if it has no such form.

        Group resolution calls this for losses of the library only, by their exact type.

        Args:
            counts: (G, ...), samples per class.
            sizes: (G, ...), classes per group.
        """
        return None


def _states(loss: Loss, name: str) -> bool:
    """Return whether a loss has a method of its own in place of the default."""
    return getattr(type(loss), name) is not getattr(Loss, name)
