"""Losses with one number per class: adjusted logits, temperatures, margins, weights."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    LARGEST,
    SMALLEST,
    ArgumentError,
    Number,
    array_module,
    as_leaf,
    is_concrete,
    rebuilt,
)
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.group_losses import GroupLoss, group_loss
from ufm.problems.losses.cross_entropy import CrossEntropy, OfCrossEntropy
from ufm.problems.losses.loss import Loss, LossParameter
from ufm.problems.losses.rows import check_nonnegative

__all__ = ["CDT", "LDAM", "LDT", "ClassWeighted", "LogitAdjusted"]


class _PerClass(Loss):
    """A loss with one number per class, given, or computed from the counts by a parameter."""

    @abc.abstractmethod
    def from_counts(self, counts: Any, sizes: Any) -> Any:
        """Return the number of every class of a group, (G, ...).

        Args:
            counts: (G, ...), samples per class.
            sizes: (G, ...), classes per group.
        """

    def of_groups(self, counts: Any, sizes: Any) -> Any:
        """Return the numbers of groups, given or from the counts."""
        given = getattr(self, self.parameters[0].per_class)
        return self.from_counts(counts, sizes) if given is None else given

    def of_classes(self, classes: ClassGroups) -> Float[Array, " K"]:
        """Return the number of every class."""
        sizes = np.asarray(classes.sizes, classes.counts.dtype)
        numbers = self.of_groups(classes.counts, sizes)
        return classes.expand(numbers, self.parameters[0].per_class)

    def row(self, targets: Array, classes: ClassGroups) -> Float[Array, "1 K"]:
        """Return the numbers of the classes, in the precision of the targets."""
        return jnp.asarray(self.of_classes(classes), targets.dtype)[None, :]

    def of_rows(self, targets: Array, classes: ClassGroups) -> Float[Array, " n"]:
        """Return the number of every row's own class: of soft rows the mean with their targets.

        A row of mass zero has the number one.
        """
        mass = jnp.sum(targets, axis=1)
        total = jnp.sum(targets * self.row(targets, classes), axis=1)
        return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1), 1)

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError if the numbers do not fit the classes, or float64 cannot hold them."""
        with np.errstate(all="ignore"):
            numbers = self.of_classes(classes)
        parameter = self.parameters[0]
        value = getattr(self, parameter.name)
        if value is None or not is_concrete(value, numbers):
            return
        size = np.abs(np.asarray(numbers))
        # NaN compares false, so NaN is refused.
        if not np.all((size <= LARGEST) & ((size >= SMALLEST) | (not parameter.positive))):
            raise ArgumentError(
                parameter.name,
                f"= {float(value)!r} gives numbers outside the range of float64 for these class "
                "counts",
                remedy="bring it closer to zero",
            )

    def per_class(self, classes: ClassGroups) -> Loss:
        """Return the loss with one number per class, where numbers were given."""
        name = self.parameters[0].per_class
        if getattr(self, name) is None:
            return self
        numbers = self.of_classes(classes)
        # A leaf is an array of its own, not a view.
        return rebuilt(self, **{name: np.array(numbers) if is_concrete(numbers) else numbers})


class LogitAdjusted(_PerClass, OfCrossEntropy):
    r"""Cross-entropy of shifted logits z + iota, iota_k = strength * log(n_k / N) or as given.

    Args:
        strength: The factor of the log-priors; 1 is consistent for the balanced error.
        offsets: iota itself, one number per class or per group. Give this or `strength`, not both.

    Reference: Menon, Jayasumana, Rawat, Jain, Veit, Kumar (ICLR 2021).
    """

    strength: Number | None = eqx.field(converter=as_leaf, default=None)
    offsets: Any = eqx.field(converter=as_leaf, default=None, kw_only=True)

    name = "logit-adjusted"
    parameters = (
        LossParameter("strength", "adjustment strength", per_class="offsets", positive=False),
    )

    def from_counts(self, counts: Any, sizes: Any) -> Any:
        """Return strength * log(n_g / N)."""
        xp = array_module((counts, sizes))
        return self.strength * xp.log(counts / xp.sum(counts * sizes, axis=0))

    def shifts(self, targets: Array, classes: ClassGroups) -> Array:
        """Return iota."""
        return self.row(targets, classes)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the form with offsets."""
        return group_loss(counts, offsets=self.of_groups(counts, sizes))


class _Temperatures(_PerClass, OfCrossEntropy):
    """Cross-entropy with one temperature delta per class."""

    exponent: Number | None = eqx.field(converter=as_leaf, default=None)
    multipliers: Any = eqx.field(converter=as_leaf, default=None, kw_only=True)

    parameters = (LossParameter("exponent", "exponent", per_class="multipliers"),)

    def from_counts(self, counts: Any, sizes: Any) -> Any:
        """Return (n_g / n_max)^exponent."""
        return (counts / counts.max(axis=0)) ** self.exponent


class CDT(_Temperatures):
    r"""Class-dependent temperatures: cross-entropy of delta * z.

    Args:
        exponent: delta_k = (n_k / n_max)^exponent. At 0 it is the cross-entropy; larger values
            shrink the logits of small classes more.
        multipliers: delta itself, positive, one number per class or per group. Give this or
            `exponent`, not both.

    Reference: Ye, Chen, Zhan, Chao (2020), "Identifying and compensating for feature deviation in
    imbalanced deep learning".
    """

    name = "cdt"
    shift_invariant = False

    def scales(self, targets: Array, classes: ClassGroups) -> Array:
        """Return delta, one number per class."""
        return self.row(targets, classes)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the form with one scale per class of the logit."""
        return group_loss(counts, scales=self.of_groups(counts, sizes), shift_invariant=False)


class LDT(_Temperatures):
    r"""Label-dependent temperatures: cross-entropy of delta_y * z, y the row's own class.

    l(z, y) = logsumexp(delta_y z) - delta_y z_y. All logits of a row share one temperature, so a
    common shift of them is free. For `CDT` it is not.

    Args:
        exponent: delta_k = (n_k / n_max)^exponent; 0 is the cross-entropy.
        multipliers: delta itself, positive, one number per class or per group. Give this or
            `exponent`, not both.

    Reference: Behnia, Kini, Vakilian, Thrampoulidis (AISTATS 2023); a member of the family of
    vector-scaling losses of Kini, Paraskevas, Oymak, Thrampoulidis (NeurIPS 2021).
    """

    name = "ldt"

    def scales(self, targets: Array, classes: ClassGroups) -> Array:
        """Return delta_y, one number per row."""
        return self.of_rows(targets, classes)[:, None]

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return delta_y (q - y), q the mean target with the weights shares times delta_y.

        The constant logits of least mean loss have no closed form. The result is another dual, not
        the gradients there.
        """
        return super().constant_dual(targets, shares * self.of_rows(targets, classes), classes)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss:
        """Return the form with one temperature per class of the row."""
        return group_loss(counts, temperatures=self.of_groups(counts, sizes))


class LDAM(_PerClass, OfCrossEntropy):
    r"""Label-distribution-aware margins: cross-entropy with z_y lowered by a margin Delta_y.

    A soft row lowers every logit by Delta_c y_c / max(y): the labels of a row of ones and zeros
    have their own margins. With the negative entropy E the conjugate is E(y + u) + sum_c u_c
    Delta_c y_c / max(y).

    The authors' code multiplies the lowered logits by s = 30. That is this loss with margins s
    Delta on logits s z: margins s max_margin here, and penalties of weights and features whose
    product is theirs over s^2.

    Args:
        max_margin: Delta_k = max_margin (n_min / n_k)^(1/4), the margin of the smallest class.
        margins: Delta itself, one number per class or per group. Give this or `max_margin`, not
            both.

    Reference: Cao, Wei, Gaidon, Arechiga, Ma (NeurIPS 2019).
    """

    max_margin: Number | None = eqx.field(converter=as_leaf, default=None)
    margins: Any = eqx.field(converter=as_leaf, default=None, kw_only=True)

    name = "ldam"
    parameters = (
        LossParameter("max_margin", "largest margin", per_class="margins", positive=False),
    )

    def from_counts(self, counts: Any, sizes: Any) -> Any:
        """Return max_margin (n_min / n_g)^(1/4)."""
        return self.max_margin * (counts.min(axis=0) / counts) ** 0.25

    def shifts(self, targets: Array, classes: ClassGroups) -> Array:
        """Return minus the margins of the labels, (n, K)."""
        largest = jnp.max(targets, axis=1, keepdims=True)
        return -self.row(targets, classes) * (targets / jnp.where(largest > 0, largest, 1))


class ClassWeighted(_PerClass):
    r"""Another loss times a weight of the sample's class, w_k = (N / (K n_k))^exponent or as given.

    A soft row has the mean weight of its classes, sum_c y_c w_c / sum_c y_c.

    PyTorch: `nn.CrossEntropyLoss(weight=w)` divides the weighted sum by sum_i w_{y_i} where targets
    are class indices, and not by N: its weights are w N / sum_k n_k w_k here, which is w itself for
    exponent=1. Where targets are probabilities it divides by N, and weighs every class's term: it
    is `CrossEntropy()` with the target rows w_c y_c.

    Args:
        exponent: 0 weighs all samples alike; 1 gives every class the same total weight.
        weights: w itself, positive, one number per class or per group. Give this or `exponent`, not
            both.
        loss: The loss to weigh, the cross-entropy if not given.
    """

    exponent: Number | None = eqx.field(converter=as_leaf, default=None)
    weights: Any = eqx.field(converter=as_leaf, default=None, kw_only=True)
    loss: Loss = eqx.field(default=CrossEntropy(), kw_only=True)

    name = "class-weighted"
    parameters = (LossParameter("exponent", "exponent", per_class="weights"),)

    def __check_init__(self) -> None:
        """Raise ValueError if `loss` is not a loss."""
        if not isinstance(self.loss, Loss):
            raise ArgumentError("loss", "must be a ufm loss such as ufm.CrossEntropy()", self.loss)

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Convex where the weighted loss is."""
        return self.loss.convex

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        """Shift-invariant where the weighted loss is."""
        return self.loss.shift_invariant

    @property
    def infimum(self) -> float:  # type: ignore[override]
        """Zero where the weighted loss is never negative; minus infinity elsewhere."""
        return 0.0 if self.loss.infimum >= 0 else -np.inf

    def infima(self, targets: Array, classes: ClassGroups) -> Array:
        """Return w times those of the weighted loss."""
        return self.of_rows(targets, classes) * self.loss.infima(targets, classes)

    def from_counts(self, counts: Any, sizes: Any) -> Any:
        """Return (N / (K n_g))^exponent."""
        xp = array_module((counts, sizes))
        samples, classes = xp.sum(counts * sizes, axis=0), xp.sum(sizes, axis=0)
        return (samples / (classes * counts)) ** self.exponent

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where the weights, or the weighted loss, do not fit the classes."""
        super().check(classes)
        self.loss.check(classes)

    def per_class(self, classes: ClassGroups) -> Loss:
        """Return the loss, and the loss that it weighs, with one number per class where given."""
        return rebuilt(super().per_class(classes), loss=self.loss.per_class(classes))

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the weighted loss of every row."""
        return self.of_rows(targets, classes) * self.loss(logits, targets, classes)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return w l*(u / w), row by row."""
        weights = self.of_rows(targets, classes)
        return weights * self.loss.conjugate(dual / weights[:, None], targets, classes)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return w times that of the weighted loss at u / w, row by row."""
        weights = self.of_rows(targets, classes)
        return weights * self.loss.conjugate_size(dual / weights[:, None], targets, classes)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the numbers of the weighted loss at u / w."""
        return self.loss.domain(dual / self.of_rows(targets, classes)[:, None], targets, classes)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return w times those of the weighted loss with shares times w."""
        weights = self.of_rows(targets, classes)
        return weights[:, None] * self.loss.constant_dual(targets, shares * weights, classes)

    def check_targets(self, targets: Array) -> None:
        """Raise ValueError where a row has a negative target, or is none of the weighted loss."""
        check_nonnegative(targets)
        self.loss.check_targets(targets)

    def over_groups(self, counts: Any, sizes: Any) -> GroupLoss | None:
        """Return the form of the weighted loss, with weights."""
        form = self.loss.over_groups(counts, sizes)
        if form is None:
            return None
        weights = form.weights * self.of_groups(counts, sizes)
        return eqx.tree_at(lambda form: form.weights, form, weights)
