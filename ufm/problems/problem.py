r"""The problem: what is minimised, over what. The only definition of the objective.

    (1/N) sum_i loss(z_i, y_i) + (lambda_W/2) sum_l ||W_l||^2 + (lambda_H/2) sum_i ||h_i||^2 +
    (lambda_b/2) ||b||^2, z_i = W_L a(W_{L-1} ... a(W_1 h_i)) + b,

or the same data term under the norm-ball constraints of the layer-peeled model. Letters: K classes,
N samples, d feature dimension, L weight matrices W_1..W_L with W_l of shape (d_l, d_{l-1}), d_0 =
d, d_L = K; H the features, one sample (or class) per row; b the bias of the last layer; a the
activation between layers; q = L + 1 factors.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ufm._support import (
    ArgumentError,
    Final,
    assembled,
    check_one_of,
    checked_whole,
    is_concrete,
    written,
)
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.feature_cones import FeatureCone
from ufm.problems.losses import Loss
from ufm.problems.parameters import Parameters
from ufm.problems.regularizers import Gauge, Regularizer
from ufm.problems.samples import Samples
from ufm.problems.targets import Targets

__all__ = ["ACTIVATIONS", "Problem", "checked_parameters"]

WIDEST = 2**31 - 1  # of an array's axes
ACTIVATIONS = ("linear", "relu")


@final
class Problem(Final):
    """An unconstrained features model or layer-peeled model.

    Penalties, counts and the loss's parameters are leaves of the pytree; sizes and types are
    static.

    Args:
        class_counts: samples per class: a sequence of numbers, or a `ClassGroups`. Real numbers are
            allowed. With `targets` it is left out, and holds the sum of each label's targets.
        targets: `Targets` that are not one-hot classes, instead of `class_counts`.
        feature_dim: d, at least 1.
        loss: a `Loss`, such as `CrossEntropy()` or `SquaredError()`.
        regularizer: a `Regularizer`, such as `WeightDecay(...)` or `NormBall(...)`.
        use_bias: whether the last layer has a bias.
        hidden_dims: (d_1, ..., d_{L-1}); empty for the one-layer model, one number for the extended
            one.
        activation: "linear" or "relu", applied between weight matrices (neither to the features nor
            to the logits).
        nonnegative_features: whether the features are constrained to h >= 0 (features that left a
            ReLU).

    Raises:
        ValueError: naming the argument, the value received and the remedy.
    """

    class_counts: ClassGroups
    targets: Targets | None
    feature_dim: int = eqx.field(static=True)
    loss: Loss
    regularizer: Regularizer
    use_bias: bool = eqx.field(static=True)
    hidden_dims: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    nonnegative_features: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        class_counts: ClassGroups | Sequence[float] | Real[np.ndarray, " K"] | None = None,
        targets: Targets | None = None,
        feature_dim: int | np.integer,
        loss: Loss,
        regularizer: Regularizer,
        use_bias: bool = False,
        hidden_dims: Sequence[int | np.integer] | Real[np.ndarray, " hidden"] = (),
        activation: str = "linear",
        nonnegative_features: bool = False,
    ):
        if not _is_one_of(class_counts, targets):
            raise ArgumentError(
                "class_counts", "or `targets` must be given, one of the two", class_counts
            )
        if targets is not None and not isinstance(targets, Targets):
            raise ArgumentError(
                "targets", "must be ufm.Targets", targets, "wrap rows as ufm.Targets(rows)"
            )
        self.targets = targets
        if targets is not None:
            self.class_counts = _label_sums(targets)
        elif isinstance(class_counts, ClassGroups):
            self.class_counts = class_counts
        else:
            self.class_counts = ClassGroups(class_counts)
        self.feature_dim = checked_whole("feature_dim", feature_dim, upper=WIDEST)
        self.loss = loss
        self.regularizer = regularizer
        for name, flag in (("use_bias", use_bias), ("nonnegative_features", nonnegative_features)):
            if not isinstance(flag, (bool, np.bool_)):
                raise ArgumentError(name, "must be True or False", flag)
        self.use_bias = bool(use_bias)
        if isinstance(hidden_dims, (str, bytes, dict, set)) or not np.iterable(hidden_dims):
            raise ArgumentError("hidden_dims", "must be a sequence of layer widths", hidden_dims)
        self.hidden_dims = tuple(
            checked_whole("hidden_dims", width, upper=WIDEST) for width in hidden_dims
        )
        self.activation = activation
        self.nonnegative_features = bool(nonnegative_features)

    def __repr__(self) -> str:
        return written(self, without=() if self.targets is None else ("class_counts",))

    def __check_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise ArgumentError("loss", "must be a ufm loss such as ufm.CrossEntropy()", self.loss)
        if not isinstance(self.regularizer, Regularizer):
            raise ArgumentError(
                "regularizer", "must be ufm.WeightDecay(...) or ufm.NormBall(...)", self.regularizer
            )
        check_one_of("activation", self.activation, ACTIVATIONS)
        self.regularizer.check(self.num_layers)
        self.loss.check(self.class_counts)
        if self.targets is not None:
            self.loss.check_targets(self.targets.rows)

    @property
    def num_classes(self) -> int:
        """K, the number of classes, labels, tokens or responses."""
        return self.class_counts.num_classes

    @property
    def num_outputs(self) -> int:
        """The width of the logits, of the last layer and of the bias: K for most losses."""
        return self.loss.num_outputs(self.num_classes)

    @property
    def num_rows(self) -> int:
        """R, the number of target rows: K for one-hot classes."""
        return self.num_classes if self.targets is None else self.targets.num_rows

    @property
    def one_hot(self) -> bool:
        """Whether the targets are those of `class_counts`."""
        return self.targets is None

    @property
    def row_counts(self) -> Float[Array, " R"]:
        """(R,), the samples that each target row stands for."""
        return self.class_counts.per_class if self.targets is None else self.targets.counts

    @property
    def row_weights(self) -> Float[Array, " R"]:
        """(R,), what ||h_r||^2 is multiplied by in the penalty or the bound of the features."""
        stated = None if self.targets is None else self.targets.feature_weights
        return self.regularizer.row_weights(self.row_counts, stated)

    @property
    def gauge_rows(self) -> Float[Array, " R"]:
        """(R,), what the rows of the logits are multiplied by inside the gauge."""
        stated = None if self.targets is None else self.targets.feature_weights
        return self.regularizer.gauge_rows(self.row_counts, stated)

    @property
    def row_words(self) -> str:
        """What messages call a row."""
        return "class" if self.targets is None else "target row"

    def target_rows(self, dtype: Any, xp: Any = jnp) -> Float[Array, "R K"]:
        """Return the target of each row, as an array of JAX or of another module."""
        if self.targets is None:
            return xp.eye(self.num_classes, dtype=dtype)
        return xp.asarray(self.targets.rows, dtype)

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N, the sum of the counts of all rows."""
        return (self.class_counts if self.targets is None else self.targets).num_samples

    @property
    def num_layers(self) -> int:
        """L, the number of weight matrices."""
        return len(self.hidden_dims) + 1

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """(d_0, ..., d_L) = (feature_dim, *hidden_dims, K)."""
        return (self.feature_dim, *self.hidden_dims, self.num_outputs)

    @property
    def gauge(self) -> Gauge:
        """The price of logits at their cheapest factors; only with `regularizer.has_gauge`."""
        size = math.sqrt(self.num_rows * self.num_outputs)
        stated = None if self.targets is None else self.targets.feature_weights
        return self.regularizer.gauge(self.row_counts, size, self.hidden_dims, stated)

    @property
    def feature_cone(self) -> FeatureCone:
        """The cone that the features lie in."""
        return FeatureCone(self.nonnegative_features)

    @property
    def width(self) -> int:
        """The largest rank that the logits (without bias) can have."""
        return min(self.num_rows, *self.layer_dims)

    def activate(self, inputs: Array, width: Array | None = None) -> Array:
        """Apply the activation between layers.

        With `width`, a ReLU is rounded off by a parabola where inputs are smaller than that.
        """
        if self.activation == "linear":
            return inputs
        if width is None:
            return jax.nn.relu(inputs)
        bent = (inputs + width) ** 2 / (4 * jnp.where(width > 0, width, 1))
        return jnp.where(jnp.abs(inputs) < width, bent, jnp.maximum(inputs, 0))

    def last_features(
        self, parameters: Parameters, widths: Sequence[Float[Array, "n 1"]] | None = None
    ) -> Float[Array, "n D"]:
        """Return what the last weight matrix multiplies: the features after all layers before it.

        Args:
            parameters: with features of n rows.
            widths: of the ReLU's rounding, one per hidden layer and row; none if not given.
        """
        hidden = parameters.features
        for layer, matrix in enumerate(parameters.weights[:-1]):
            hidden = self.activate(hidden @ matrix.T, None if widths is None else widths[layer])
        return hidden

    def logits(
        self, parameters: Parameters, widths: Sequence[Float[Array, "n 1"]] | None = None
    ) -> Float[Array, "n K"]:
        """Return the logits, one row per row of the features; `widths` as for `last_features`."""
        logits = self.last_features(parameters, widths) @ parameters.weights[-1].T
        return logits if parameters.bias is None else logits + parameters.bias[None, :]

    def data_term(self, logits: Float[Array, "n K"], samples: Samples) -> Float[Array, ""]:
        """Return the mean loss over the N samples."""
        logits = jnp.asarray(logits)  # in the precision of the surroundings
        samples = samples.astype(logits.dtype)
        shares = samples.counts / jnp.asarray(self.num_samples, logits.dtype)
        return jnp.sum(shares * self.loss(logits, samples.targets, self.class_counts))

    def value_at_zero(self, samples: Samples) -> Float[Array, ""]:
        """Return the mean loss of zero logits, which is what the objective is at zero."""
        # Written so that the compiler does not take the logits for constants, and evaluates the
        # loss while it compiles.
        counts = jnp.asarray(samples.counts)[:, None]
        return self.data_term(0 * counts * jnp.ones((1, self.num_outputs), counts.dtype), samples)

    def penalty(self, parameters: Parameters, samples: Samples) -> Float[Array, ""]:
        """Return what the regularizer adds to the loss: zero under norm balls."""
        return self.regularizer.penalty(jax.tree.map(jnp.asarray, parameters), samples)

    def objective(
        self,
        parameters: Parameters,
        samples: Samples,
        widths: Sequence[Float[Array, "n 1"]] | None = None,
    ) -> Float[Array, ""]:
        """Return the objective at parameters with a feature row for each of the samples.

        `widths` as for `last_features`.
        """
        return self.data_term(self.logits(parameters, widths), samples) + self.penalty(
            parameters, samples
        )

    def norms(self, parameters: Parameters, samples: Samples) -> tuple[Float[Array, ""], ...]:
        """Return the squared norms that the regularizer bounds, relative to their bounds.

        One per layer, then the features; none under a penalty.
        """
        return self.regularizer.norms(jax.tree.map(jnp.asarray, parameters), samples)


def checked_parameters(
    problem: Problem, given: Any, argument: str, rows: Sequence[float]
) -> Parameters:
    """Return weights, features and bias as float64 NumPy arrays of the problem's shapes.

    Args:
        problem: the problem.
        given: anything with `weights`, `features` and `bias`, such as a `Solution` or `Parameters`.
        argument: what the caller calls `given`.
        rows: how many rows the features may have: R for one per class or target row, N for one per
            sample.

    Raises:
        ValueError: naming what does not fit, the shape received and the one wanted.
    """
    try:
        blocks = Parameters(tuple(given.weights), given.features, given.bias)
        arrays = jax.tree.map(lambda block: np.asarray(block, np.float64), blocks)
    except (AttributeError, TypeError, ValueError):
        raise ArgumentError(
            argument,
            "must have `weights`, `features` and `bias`, such as a Solution or ufm.Parameters",
            given,
        ) from None
    dims = problem.layer_dims
    shapes, found = (
        tuple((out, into) for into, out in itertools.pairwise(dims)),
        tuple(map(np.shape, arrays.weights)),
    )
    if found != shapes:
        raise ArgumentError(
            "weights",
            f"must have shapes {shapes} for this problem, one (out, in) per layer; got "
            f"{found} in `{argument}`",
        )
    if arrays.features.shape not in [(count, dims[0]) for count in rows]:
        wanted = ", or ".join(
            f"({count:g}, {dims[0]}), one row per "
            f"{problem.row_words if count == problem.num_rows else 'sample'}"
            for count in rows
        )
        raise ArgumentError(
            "features", f"must be {wanted}; got shape {arrays.features.shape} in `{argument}`"
        )
    expected = (problem.num_outputs,) if problem.use_bias else None
    shape = None if arrays.bias is None else arrays.bias.shape
    if shape != expected:
        raise ArgumentError(
            "bias",
            f"must be {expected} where the problem has use_bias={problem.use_bias}; got "
            f"{shape} in `{argument}`",
        )
    return arrays


def _is_one_of(class_counts: Any, targets: Any) -> bool:
    """Whether one of the two is given; `dataclasses.replace` gives the sums with their targets."""
    if class_counts is None or not isinstance(targets, Targets):
        return (class_counts is None) != (targets is None)
    sums = _label_sums(targets)
    same = isinstance(class_counts, ClassGroups) and class_counts.sizes == sums.sizes
    return same and is_concrete(sums) and np.array_equal(class_counts.counts, sums.counts)


def _label_sums(targets: Targets) -> ClassGroups:
    """Return the sum of each label's targets as class sizes.

    They may be zero or negative; losses with numbers per class refuse those.
    """
    return assembled(ClassGroups, counts=targets.label_counts, sizes=(1,) * targets.num_outputs)
