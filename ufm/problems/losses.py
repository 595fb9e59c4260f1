r"""Losses on logits, each written for target rows and with its convex conjugate.

A loss maps logits z and a target row y (one-hot for plain classification) to a number per row; the
data term of every model is the mean over the N samples. Letters: n rows, K classes, z logits, y
targets, p = softmax(z), pi_k = n_k / N.

The conjugate l*(u) = sup_z <u, z> - l(z) is what turns a candidate's gradient into a lower bound on
the optimal value.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

from ufm._support import (
    LARGEST,
    SMALLEST,
    Module,
    as_leaf,
    is_concrete,
    is_numeric,
    rebuilt,
    written,
)
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.loss_checks import LossCheck, LossReport, check_loss

__all__ = [
    "CDT",
    "LDT",
    "ClassWeighted",
    "CrossEntropy",
    "Focal",
    "LabelSmoothing",
    "LogitAdjusted",
    "Loss",
    "LossCheck",
    "LossReport",
    "SquaredError",
    "check_loss",
    "is_library_loss",
]


class Loss(Module):
    """A loss per row of logits.

    Certificates rest on what a loss says of itself: `check_loss` holds a loss of your own against
    that.

    Attributes:
        convex: Whether every row's loss is convex in its logits.
        shift_invariant: Whether a constant added to all logits of a row changes nothing.
        infimum: A number that no row's loss is below, zero if not stated; minus infinity where none
            is known. Relative gaps and gradients are measured above it; no bound rests on it.
    """

    convex: eqx.AbstractClassVar[bool]
    shift_invariant: eqx.AbstractClassVar[bool]
    infimum: ClassVar[float] = 0.0

    def __repr__(self) -> str:
        return written(self)

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return the loss of every row."""

    @abc.abstractmethod
    def conjugate(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return l*(u) of every row, for u in the domain of the conjugate (which the gradients of the loss span)."""

    def conjugate_size(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, " n"]:
        """Return the sum of the magnitudes of the terms of l*(u), row by row: what its rounding is measured against.

        By default the magnitude of the conjugate and of u; a conjugate whose terms cancel by more
        has to say so.
        """
        return jnp.abs(self.conjugate(dual, targets, classes)) + jnp.sum(jnp.abs(dual), axis=1)

    @abc.abstractmethod
    def domain(
        self, dual: Float[Array, "n K"], targets: Float[Array, "n K"], classes: ClassGroups
    ) -> Float[Array, "n K"]:
        """Return numbers, affine in u, that are all non-negative just where u lies in the domain of the conjugate.

        Rows of u that sum to zero after the loss's rescaling, as all gradients do, are taken for
        granted.
        """

    @abc.abstractmethod
    def constant_dual(
        self, targets: Float[Array, "n K"], shares: Float[Array, " n"], classes: ClassGroups
    ) -> Float[Array, "n K"]:
        """Return a dual inside the domain whose mean over the rows, with the weights `shares`, is zero.

        Where it has a closed form, the gradients at the constant logits that minimise the loss
        averaged with `shares`.
        """

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where a per-class parameter does not fit the classes."""

    def per_class(self, classes: ClassGroups) -> "Loss":
        """Return the same loss with every parameter that may be stated per group stated per class."""
        return self


class CrossEntropy(Loss):
    r"""Cross-entropy: l(z, y) = logsumexp(z) - <y, z>.

    The conjugate is the negative entropy sum_c q_c log q_c of q = y + u, a probability vector.
    """

    convex = True
    shift_invariant = True

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of every row."""
        return _cross_entropy(logits, targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the negative entropy of `targets + dual`, row by row."""
        return _negative_entropy(targets, dual)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the entropy's terms, row by row."""
        return _entropy_size(targets, dual)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities `targets + dual`."""
        return targets + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return _mean_less(targets, shares)


class SquaredError(Loss):
    r"""Squared error, with one half: l(z, y) = 1/2 ||z - y||^2.

    Its conjugate is 1/2 ||u||^2 + <u, y>.
    """

    convex = True
    shift_invariant = False

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return half the squared distance of every row of logits to its target."""
        return 0.5 * jnp.sum((logits - targets) ** 2, axis=1)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the conjugate of every row."""
        return jnp.sum(dual * (0.5 * dual + targets), axis=1)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of both terms, row by row."""
        return jnp.sum(jnp.abs(dual) * (0.5 * jnp.abs(dual) + jnp.abs(targets)), axis=1)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return ones: the domain is the whole space."""
        return jnp.ones_like(dual)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return _mean_less(targets, shares)


class LabelSmoothing(Loss):
    r"""Cross-entropy against smoothed targets (1 - alpha) y + alpha / K.

    Args:
        alpha: share of the target spread evenly over all K classes, 0 <= alpha < 1.
    """

    alpha: Float[Array, ""] = eqx.field(converter=as_leaf)

    convex = True
    shift_invariant = True

    def __check_init__(self) -> None:
        _check_number("alpha", self.alpha, lower=0.0, upper=1.0)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of every row against its smoothed target."""
        return _cross_entropy(logits, self._smoothed(targets))

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the negative entropy of the smoothed targets plus `dual`, row by row."""
        return _negative_entropy(self._smoothed(targets), dual)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the entropy's terms, row by row."""
        return _entropy_size(self._smoothed(targets), dual)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities, smoothed targets plus `dual`."""
        return self._smoothed(targets) + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean smoothed target less the smoothed targets.

        The share alpha / K that every class has cancels, and nothing but 1 - alpha is left of the
        smoothing: taken from smoothed targets, the difference loses the digits of small shares.
        """
        alpha = jnp.asarray(self.alpha, targets.dtype)
        return (1 - alpha) * _mean_less(targets, shares)

    def _smoothed(self, targets: Array) -> Array:
        alpha = jnp.asarray(self.alpha, targets.dtype)
        return (1 - alpha) * targets + alpha / targets.shape[1]


class Focal(Loss):
    r"""Focal loss: l(z, y) = -(1 - p_y)^gamma log p_y, the cross-entropy at gamma = 0.

    Not convex for gamma > 0.

    Args:
        gamma: the focusing parameter, gamma >= 0.

    Reference: Lin, Goyal, Girshick, He, Dollar (ICCV 2017).
    """

    gamma: Float[Array, ""] = eqx.field(converter=as_leaf)

    convex = False
    shift_invariant = True

    def __check_init__(self) -> None:
        _check_number("gamma", self.gamma, lower=0.0)

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the focal loss of every row."""
        gamma = jnp.asarray(self.gamma, logits.dtype)
        # 1 - p_y as the sum of the other probabilities: no digits are lost where p_y is close to
        # one.
        others = jnp.sum((1 - targets) * jax.nn.softmax(logits, axis=1), axis=1)
        # The derivatives of its power are not finite at zero, which it reaches where the
        # exponentials underflow: from its logarithm, there.
        smallest = jnp.sqrt(jnp.finfo(logits.dtype).tiny).astype(logits.dtype)
        logarithm = jax.nn.logsumexp(logits, axis=1, b=1 - targets) - jax.nn.logsumexp(
            logits, axis=1
        )
        power = jnp.where(
            others > smallest, jnp.maximum(others, smallest) ** gamma, jnp.exp(gamma * logarithm)
        )
        return power * _cross_entropy(logits, targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Raise ValueError: the focal loss is not convex, and its conjugate has no closed form."""
        raise ValueError("the focal loss is not convex: it has no conjugate in closed form.")

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Raise ValueError: see `conjugate`."""
        return self.conjugate(dual, targets, classes)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Raise ValueError: see `conjugate`."""
        return self.conjugate(targets, targets, classes)


class LogitAdjusted(Loss):
    r"""Cross-entropy of shifted logits z + iota, with iota_k = strength * log(n_k / N) or given as they are.

    Args:
        strength: multiplies the log-priors; 1 is the choice consistent for the balanced error.
        offsets: iota itself, one number per class or per group; give this or `strength`, not both.

    Reference: Menon, Jayasumana, Rawat, Jain, Veit, Kumar (ICLR 2021).
    """

    strength: Float[Array, ""] | None = eqx.field(converter=as_leaf)
    offsets: Float[Array, " C"] | None = eqx.field(converter=as_leaf)

    convex = True
    shift_invariant = True

    def __init__(self, strength: Any = None, *, offsets: Any = None):
        self.strength, self.offsets = as_leaf(strength), as_leaf(offsets)
        _one_of(strength=strength, offsets=offsets)
        _check_number("strength", self.strength, optional=True)
        _check_array("offsets", self.offsets, positive=False)

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where the offsets do not fit the classes."""
        with np.errstate(all="ignore"):
            _check_range("strength", self.strength, self.shift(classes), positive=False)

    def per_class(self, classes: ClassGroups) -> "Loss":
        """Return the loss with one offset per class, where offsets were given."""
        return self if self.offsets is None else rebuilt(self, offsets=_own(self.shift(classes)))

    def shift(self, classes: ClassGroups) -> Float[Array, " K"]:
        """Return iota, one number per class."""
        if self.offsets is not None:
            return classes.expand(self.offsets, "offsets")
        priors = classes.per_class / classes.num_samples
        return self.strength * (jnp.log(priors) if not is_concrete(priors) else np.log(priors))  # type: ignore

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of the shifted logits, row by row."""
        return _cross_entropy(logits + _row(self.shift(classes), logits), targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the negative entropy of `targets + dual` less <dual, iota>, row by row."""
        return _negative_entropy(targets, dual) - jnp.sum(
            dual * _row(self.shift(classes), dual), axis=1
        )

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the terms of both parts, row by row."""
        shifts = jnp.sum(jnp.abs(dual * _row(self.shift(classes), dual)), axis=1)
        return _entropy_size(targets, dual) + shifts

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities `targets + dual`."""
        return targets + dual

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return the mean target less the targets."""
        return _mean_less(targets, shares)


class _Temperatures(Loss):
    """What losses with one temperature delta per class share: how it is given, checked and read."""

    exponent: Float[Array, ""] | None = eqx.field(converter=as_leaf)
    multipliers: Float[Array, " C"] | None = eqx.field(converter=as_leaf)

    def __init__(self, exponent: Any = None, *, multipliers: Any = None):
        self.exponent, self.multipliers = as_leaf(exponent), as_leaf(multipliers)
        _one_of(exponent=exponent, multipliers=multipliers)
        _check_number("exponent", self.exponent, optional=True)
        _check_array("multipliers", self.multipliers, positive=True)

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where the multipliers do not fit the classes."""
        with np.errstate(all="ignore"):
            _check_range("exponent", self.exponent, self.scale(classes))

    def per_class(self, classes: ClassGroups) -> "Loss":
        """Return the loss with one multiplier per class, where multipliers were given."""
        return (
            self
            if self.multipliers is None
            else rebuilt(self, multipliers=_own(self.scale(classes)))
        )

    def scale(self, classes: ClassGroups) -> Float[Array, " K"]:
        """Return delta, one number per class."""
        return _temperatures(self.exponent, self.multipliers, classes)


class CDT(_Temperatures):
    r"""Class-dependent temperatures: cross-entropy of delta * z, delta_k = (n_k / n_max)^exponent or given as they are.

    Args:
        exponent: 0 is the cross-entropy; larger values shrink the logits of small classes more.
        multipliers: delta itself, positive, one number per class or per group; give this or
            `exponent`, not both.

    Reference: Ye, Chen, Zhan, Chao (2020), "Identifying and compensating for feature deviation in
    imbalanced deep learning".
    """

    convex = True
    shift_invariant = False

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of the rescaled logits, row by row."""
        return _cross_entropy(logits * _row(self.scale(classes), logits), targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the negative entropy of `targets + dual / delta`, row by row."""
        return _negative_entropy(targets, dual / _row(self.scale(classes), dual))

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the entropy's terms, row by row."""
        return _entropy_size(targets, dual / _row(self.scale(classes), dual))

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities `targets + dual / delta`."""
        return targets + dual / _row(self.scale(classes), dual)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return delta times the mean target less the targets."""
        return _row(self.scale(classes), targets) * _mean_less(targets, shares)


class LDT(_Temperatures):
    r"""Label-dependent temperatures: cross-entropy of delta_y * z, y the row's own class, delta as for `CDT`.

    l(z, y) = logsumexp(delta_y z) - delta_y z_y: the temperature of a row is one for all its
    logits, so that a common shift of them is free, as it is not for `CDT`.

    Args:
        exponent: delta_k = (n_k / n_max)^exponent; 0 is the cross-entropy.
        multipliers: delta itself, positive, one number per class or per group; give this or
            `exponent`, not both.

    Reference: Behnia, Kini, Vakilian, Thrampoulidis (AISTATS 2023); a member of the family of
    vector-scaling losses of Kini, Paraskevas, Oymak, Thrampoulidis (NeurIPS 2021).
    """

    convex = True
    shift_invariant = True

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the cross-entropy of the rescaled logits, row by row."""
        return _cross_entropy(logits * self._of_rows(targets, classes)[:, None], targets)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the negative entropy of `targets + dual / delta_y`, row by row."""
        return _negative_entropy(targets, dual / self._of_rows(targets, classes)[:, None])

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the sum of the magnitudes of the entropy's terms, row by row."""
        return _entropy_size(targets, dual / self._of_rows(targets, classes)[:, None])

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the probabilities `targets + dual / delta_y`."""
        return targets + dual / self._of_rows(targets, classes)[:, None]

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return delta_y (q - y), q the mean target with the weights shares times delta_y.

        The constant logits of least mean loss have no closed form, and these are not the gradients
        there.
        """
        scales = self._of_rows(targets, classes)
        return scales[:, None] * _mean_less(targets, shares * scales)

    def _of_rows(self, targets: Array, classes: ClassGroups) -> Array:
        return jnp.sum(targets * _row(self.scale(classes), targets), axis=1)


class ClassWeighted(Loss):
    r"""Another loss times a weight of the sample's class, w_k = (N / (K n_k))^exponent or given as it is.

    Args:
        exponent: 0 weighs all samples alike; 1 gives every class the same total weight.
        weights: w itself, positive, one number per class or per group; give this or `exponent`, not
            both.
        loss: the loss to weigh, the cross-entropy if not given.
    """

    exponent: Float[Array, ""] | None = eqx.field(converter=as_leaf)
    weights: Float[Array, " C"] | None = eqx.field(converter=as_leaf)
    loss: Loss

    def __init__(self, exponent: Any = None, *, weights: Any = None, loss: Loss | None = None):
        self.exponent, self.weights = as_leaf(exponent), as_leaf(weights)
        self.loss = CrossEntropy() if loss is None else loss
        if not isinstance(self.loss, Loss):
            raise ValueError(f"`loss` must be a ufm loss such as ufm.CrossEntropy(), got {loss!r}.")
        _one_of(exponent=exponent, weights=weights)
        _check_number("exponent", self.exponent, optional=True)
        _check_array("weights", self.weights, positive=True)

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
        """Zero where the weighted loss is never negative; elsewhere weights of any size leave none."""
        return 0.0 if self.loss.infimum >= 0 else -np.inf

    def check(self, classes: ClassGroups) -> None:
        """Raise ValueError where the weights do not fit the classes."""
        with np.errstate(all="ignore"):
            _check_range("exponent", self.exponent, self.scale(classes))
        self.loss.check(classes)

    def per_class(self, classes: ClassGroups) -> "Loss":
        """Return the loss with one weight per class, where weights were given, and so the loss that it weighs."""
        inner = self.loss.per_class(classes)
        weights = None if self.weights is None else _own(self.scale(classes))
        return rebuilt(self, weights=weights, loss=inner)

    def scale(self, classes: ClassGroups) -> Float[Array, " K"]:
        """Return w, one number per class."""
        if self.weights is not None:
            return classes.expand(self.weights, "weights")
        assert self.exponent is not None  # one of the two is given
        return (classes.num_samples / (classes.num_classes * classes.per_class)) ** self.exponent

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the weighted loss of every row."""
        return self._of_rows(targets, classes) * self.loss(logits, targets, classes)

    def conjugate(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return w l*(u / w), row by row."""
        weights = self._of_rows(targets, classes)
        return weights * self.loss.conjugate(dual / weights[:, None], targets, classes)

    def conjugate_size(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return w times that of the weighted loss at u / w, row by row."""
        weights = self._of_rows(targets, classes)
        return weights * self.loss.conjugate_size(dual / weights[:, None], targets, classes)

    def domain(self, dual: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the numbers of the weighted loss at u / w."""
        return self.loss.domain(dual / self._of_rows(targets, classes)[:, None], targets, classes)

    def constant_dual(self, targets: Array, shares: Array, classes: ClassGroups) -> Array:
        """Return w times those of the weighted loss with shares times w."""
        weights = self._of_rows(targets, classes)
        return weights[:, None] * self.loss.constant_dual(targets, shares * weights, classes)

    def _of_rows(self, targets: Array, classes: ClassGroups) -> Array:
        return jnp.sum(targets * _row(self.scale(classes), targets), axis=1)


LIBRARY = frozenset(
    {CDT, LDT, ClassWeighted, CrossEntropy, Focal, LabelSmoothing, LogitAdjusted, SquaredError}
)


def is_library_loss(loss: Loss) -> bool:
    """Return True where the loss, and every loss inside it, is one of the library's own: of exactly that type.

    What is known of these (a form over groups, theorems, a conjugate that is right) is known of no
    subclass.
    """
    return type(loss) in LIBRARY and all(
        is_library_loss(part) for part in vars(loss).values() if isinstance(part, Loss)
    )


@jax.custom_jvp
def _cross_entropy(logits: Array, targets: Array) -> Array:
    """Return logsumexp(z) - <y, z> per row, to full relative accuracy also where it is tiny (targets sum to one)."""
    return _value(logits, targets, _odds(logits, targets))


@_cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    logits, targets = primals
    odds = _odds(logits, targets)
    tangent = jnp.sum(_gradient(targets, odds) * tangents[0], axis=1) - jnp.sum(
        logits * tangents[1], axis=1
    )
    return _value(logits, targets, odds), tangent


class _Odds(NamedTuple):
    """What the cross-entropy and its gradient have in common, each row by itself.

    highest: (n, 1), the largest logit. label: (n, 1), that of the largest target. others: (n, K),
    the exponentials of the logits less the highest; zero at the largest target. own: (n, 1), the
    one there. total: (n, 1), the sum of the others. largest: (n, K), whether an entry is that of
    the largest target.
    """

    highest: Array
    label: Array
    others: Array
    own: Array
    total: Array
    largest: Array


def _odds(logits: Array, targets: Array) -> _Odds:
    index = jnp.argmax(targets, axis=1)[:, None]
    largest = index == jnp.arange(logits.shape[1])[None, :]
    highest = jax.lax.stop_gradient(
        jnp.max(logits, axis=1, keepdims=True)
    )  # it cancels, also in derivatives
    others = jnp.where(largest, 0, jnp.exp(logits - highest))
    label = jnp.take_along_axis(logits, index, axis=1)
    own = jnp.exp(label - highest)
    return _Odds(highest, label, others, own, jnp.sum(others, axis=1, keepdims=True), largest)


def _value(logits: Array, targets: Array, odds: _Odds) -> Array:
    """Return (logsumexp(z) - z_y) - sum over c != y of q_c (z_c - z_y), y the largest target.

    The first part is never negative, and the second takes at most the share 1 - q_y of it away: the
    difference keeps its digits.
    """
    # Where the largest target has the largest logit, its exponential is one, and a tiny loss is all
    # in the sum of the others.
    beyond = jnp.log1p(odds.total + (odds.own - 1))
    # A target of zero weighs nothing, also where a difference of logits overflows.
    weighted = jnp.where(odds.largest | (targets == 0), 0, targets * (logits - odds.label))
    return jnp.squeeze(odds.highest - odds.label + beyond, 1) - jnp.sum(weighted, axis=1)


def _gradient(targets: Array, odds: _Odds) -> Array:
    """Return softmax(z) - y; the entry of the largest target as minus the sum of the others, with all its digits."""
    scale = 1 / (odds.total + odds.own)
    rest = scale * odds.total - jnp.sum(jnp.where(odds.largest, 0, targets), axis=1, keepdims=True)
    return jnp.where(odds.largest, -rest, scale * odds.others - targets)


def _negative_entropy(targets: Array, dual: Array) -> Array:
    """Return sum_c q_c log q_c per row, q = y + u, to full relative accuracy.

    The rows of u sum to zero, so the largest probability is one less the sum of the others, which
    is what its logarithm is taken from. A negative entry lies outside the domain of the conjugate:
    its value there is plus infinity, never NaN.
    """
    q, largest, lacking = _probabilities(targets, dual)
    own = (1 - lacking) * jnp.log1p(-jnp.minimum(lacking, 1 - jnp.finfo(q.dtype).epsneg))
    values = jnp.where(largest, own[:, None], xlogy(q, jnp.maximum(q, 0)))
    return jnp.sum(jnp.where(q >= 0, values, jnp.inf), axis=1)


def _entropy_size(targets: Array, dual: Array) -> Array:
    """Return by how many roundings of one, per row, `_negative_entropy` can be off: the sizes of its terms and of what went into them."""
    q, largest, lacking = _probabilities(targets, dual)
    terms = (targets + jnp.abs(dual)) * (1 + jnp.abs(jnp.log(jnp.where(q > 0, q, 1))))
    return jnp.sum(jnp.where(largest, 0, terms), axis=1) + 2 * jnp.abs(lacking)


def _probabilities(targets: Array, dual: Array) -> tuple[Array, Array, Array]:
    """Return q = y + u, which entry of a row is the largest, and the sum of the others."""
    q = targets + dual
    largest = jnp.argmax(q, axis=1)[:, None] == jnp.arange(q.shape[1])[None, :]
    return q, largest, jnp.sum(jnp.where(largest, 0, q), axis=1)


def _mean_less(targets: Array, shares: Array) -> Array:
    """Return the mean target less the targets, of rows of one sum.

    The entry of the largest target is minus the sum of the others: no digits are lost where a class
    has nearly all of the shares, and the rows sum to zero.
    """
    mean = jnp.sum(shares[:, None] * targets, axis=0) / jnp.sum(shares)
    largest = jnp.argmax(targets, axis=1)[:, None] == jnp.arange(targets.shape[1])[None, :]
    others = jnp.where(largest, 0, mean[None, :] - targets)
    return jnp.where(largest, -jnp.sum(others, axis=1, keepdims=True), others)


def _temperatures(exponent: Any, multipliers: Any, classes: ClassGroups) -> Any:
    """Return the multipliers, or (n_k / n_max)^exponent, one number per class."""
    if multipliers is not None:
        return classes.expand(multipliers, "multipliers")
    counts = classes.per_class
    assert exponent is not None  # one of the two is given
    return (counts / counts.max()) ** exponent


def _row(values: Any, like: Array) -> Array:
    return jnp.asarray(values, like.dtype)[None, :]


def _own(values: Any) -> Any:
    """Return an array of its own in place of a view, so that it is a leaf like any other."""
    return np.array(values) if is_concrete(values) else values


def _one_of(**choices: Any) -> None:
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        names = " or ".join(f"`{name}`" for name in choices)
        raise ValueError(
            f"give exactly one of {names}; got {' and '.join(given) if given else 'neither'}."
        )


def _check_number(
    name: str, value: Any, lower: float = -np.inf, upper: float = np.inf, optional: bool = False
) -> None:
    if (optional and value is None) or not is_concrete(value):
        return
    if not is_numeric(value) or np.shape(value) != ():
        raise ValueError(f"`{name}` must be one number, got {value!r}.")
    if not (abs(value) <= LARGEST and lower <= value < upper):
        bounds = f" with {lower:g} <= {name}" + (f" < {upper:g}" if np.isfinite(upper) else "")
        raise ValueError(
            f"`{name}` must be a finite number{bounds if lower > -np.inf else ''}, got {float(value)!r}."
        )


def _check_range(name: str, value: Any, numbers: Any, positive: bool = True) -> None:
    """Raise ValueError where the numbers per class that a parameter makes of the counts are out of range."""
    if value is None or not is_concrete(value, numbers):
        return
    size = np.abs(np.asarray(numbers))
    if not np.all((size <= LARGEST) & ((size >= SMALLEST) | (not positive))):
        raise ValueError(
            f"`{name}` = {float(value)!r} makes numbers of these class counts that float64 does not hold; bring it closer to zero."
        )


def _check_array(name: str, value: Any, *, positive: bool) -> None:
    if value is None or not is_concrete(value):
        return
    if not is_numeric(value):
        raise ValueError(f"`{name}` must be numbers, got {value!r}.")
    bad = [
        float(entry)
        for entry in np.ravel(value)
        if not (abs(entry) <= LARGEST and (entry >= SMALLEST or not positive))
    ]
    if bad:
        raise ValueError(
            f"`{name}` must be {'positive and ' if positive else ''}finite, got {bad[0]!r}."
        )
