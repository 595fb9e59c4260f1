r"""`TrainedNetwork`: the part of a trained network that an unconstrained features model describes.

Only the last L layers are modelled. Their inputs are the features h_i, one per sample, with class
means mu_k, and

    z_i = W_L relu(W_{L-1} ... relu(W_1 h_i + b_1) ...) + b.

The network was trained to minimise the mean loss over N samples plus (lambda/2) ||.||^2 of all its
weights. This is the meaning of `weight_decay` in PyTorch's SGD and in Adam with L2 regularisation,
and the convention of `ufm.WeightDecay`, number for number. Decoupled weight decay (AdamW) minimises
no such objective. A network trained with it has no effective model, which the implied weight decay
can show. If a loss is a multiple of one of this library, its weight decays are divided by the
factor: `torch.nn.MSELoss` averages over samples and outputs, which is 2/K times `ufm.SquaredError`,
so the weight decay to give is K/2 times the network's.

Features are taken as they are. Their mean is penalised like everything else, and where the bias is
free and features are signed, it is zero at every critical point of the model; the mean of a
network's features seldom is. `TrainedNetwork.centred()` is the same network with the mean moved
into the bias: the same logits, another model. Biases before the last layer are in no model; they
are in what is measured.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._support import (
    ArgumentError,
    check_numbers,
    check_one_of,
    checked_nonnegative,
    chunks,
    compiled,
    double_precision,
    printed,
    to_numpy,
)
from ufm.metrics import (
    ClassStatistics,
    NeuralCollapse,
    check_present,
    class_labels,
    class_statistics,
    collapse_metrics,
    real_array,
)
from ufm.problems import ACTIVATIONS, ClassGroups, CrossEntropy, Loss

__all__ = [
    "Inputs",
    "OnSamples",
    "TrainedNetwork",
    "last_layer_gradient",
    "loss_of_classes",
]


CHUNK = 8192  # samples at a time


@printed
class Inputs(NamedTuple):
    """What enters a layer, by class.

    Attributes:
        means: Class means, (K, d).
        variances: The mean over each class of ||h - mu_k||^2, (K,).
        within: The within-class covariance, the mean over all N samples, (d, d). None where it is
            not known.
    """

    means: Float[np.ndarray, "K d"]
    variances: Float[np.ndarray, " K"]
    within: Float[np.ndarray, "d d"] | None


@printed
class OnSamples(NamedTuple):
    """What can only be computed from single samples.

    Attributes:
        loss: The mean loss of each class, (K,).
        weight_gradient: The gradient of the mean loss over all samples by the last layer's weights,
            (K, D).
        bias_gradient: The same by the last layer's bias, (K,).
    """

    loss: Float[np.ndarray, " K"]
    weight_gradient: Float[np.ndarray, "K D"]
    bias_gradient: Float[np.ndarray, " K"]


@printed
class TrainedNetwork(NamedTuple):
    """The last L layers of a trained network and what enters them.

    It is made by `from_features` or `from_moments`.

    Attributes:
        class_counts: Samples per class, (K,).
        inputs: What enters each of the L layers, that of W_1 first: its means are the class means
            of the features.
        weights: (W_1, ..., W_L), each (out, in).
        bias: The bias of the last layer, (K,), or None.
        hidden_biases: The biases of the layers before it, each (out,) or None.
        weight_decay: The weight decay of each layer, (L,).
        bias_decay: The weight decay of all biases.
        loss: What the network was trained with.
        nonnegative: Whether features are non-negative.
        activation: "relu" or "linear", between the layers.
        samples: What single samples tell. None where only moments are known.
        collapse: NC1 to NC4 of the last layer and what enters it. None where moments cannot tell.
        loss_assumed: Whether no loss was given.
        negative_share: The share of negative entries among those of the features (of their class
            means, where only moments are known).
    """

    class_counts: Float[np.ndarray, " K"]
    inputs: tuple[Inputs, ...]
    weights: tuple[Float[np.ndarray, "out in"], ...]
    bias: Float[np.ndarray, " K"] | None
    hidden_biases: tuple[Float[np.ndarray, " out"] | None, ...]
    weight_decay: Float[np.ndarray, " L"]
    bias_decay: float
    loss: Loss
    nonnegative: bool
    activation: str
    samples: OnSamples | None
    collapse: NeuralCollapse | None
    loss_assumed: bool = False
    negative_share: float = 0.0

    @classmethod
    def from_features(
        cls,
        features: Any,
        labels: Any,
        weights: Any,
        bias: Any = None,
        *,
        weight_decay: Any,
        bias_decay: float | None = None,
        loss: Loss | None = None,
        hidden_biases: Sequence[Any] | None = None,
        nonnegative: bool | None = None,
        activation: str = "relu",
    ) -> "TrainedNetwork":
        """Return the network from arrays: of NumPy, JAX or PyTorch, in any floating-point type.

        Args:
            features: The inputs of the first of the layers given.
            labels: Classes 0, ..., K - 1, (N,).
            weights: The last layer's matrix, (K, d); or those of the last L layers, first layer
                first, each (out, in) as PyTorch has them.
            bias: The bias of the last layer, (K,); None without one.
            weight_decay: lambda, as in (lambda/2) ||W||^2 with the loss averaged over samples: one
                number, or one per layer.
            bias_decay: The weight decay of the biases; that of the last layer by default, as an
                optimiser does that is given all parameters.
            loss: The loss that the network was trained with; the cross-entropy by default.
            hidden_biases: One per layer before the last, None for a layer without.
            nonnegative: Whether the features have left a ReLU; by default, whether none of them is
                negative.
            activation: Between the layers given, "relu" or "linear".

        Raises:
            ValueError: Arrays do not fit, are empty or not finite, or weight decays are not
                positive.
        """
        matrices = _weights_of(weights)
        H = real_array(
            "features",
            features,
            (None, None),
            "a matrix (N, d), one row for each sample, of which there is at least one",
        )
        K = len(
            real_array(
                "weights", matrices[-1], (None, None), "the matrix of the last layer, (K, d)"
            )
        )
        y = class_labels(labels, len(H), K)
        check_present("labels", np.unique(y), K)
        counts = np.bincount(y, minlength=K).astype(np.float64)
        parts = _checked(
            H,
            counts,
            matrices,
            bias,
            weight_decay,
            bias_decay,
            loss,
            hidden_biases,
            activation,
            nonnegative,
        )
        rows = _forward(H, parts["weights"], parts["hidden_biases"], parts["activation"])
        statistics = [class_statistics(block, y, K) for block in rows]
        return cls(
            **parts,
            class_counts=counts,
            inputs=tuple(map(_inputs, statistics)),
            samples=OnSamples(
                *_on_rows(
                    rows[-1],
                    y,
                    parts["weights"][-1],
                    parts["bias"],
                    parts["loss"],
                    counts,
                    np.ones(counts.size),
                )
            ),
            collapse=_collapse_of(statistics[-1], parts["weights"][-1], parts["bias"]),
        )

    @classmethod
    def from_moments(
        cls,
        moments: Any,
        weights: Any,
        bias: Any = None,
        *,
        weight_decay: Any,
        bias_decay: float | None = None,
        loss: Loss | None = None,
        hidden_biases: Sequence[Any] | None = None,
        nonnegative: bool | None = None,
        activation: str = "relu",
    ) -> "TrainedNetwork":
        """Return the network from the moments of features that are too many to be held at once.

        Losses and gradients are then those at the class means: lower bounds where the loss is
        convex, and equal as far as classes have collapsed.

        Args:
            moments: Of the inputs of every layer given, that of W_1 first: anything with `counts`,
                `means`, `within` and `within_trace`, such as `ufm.metrics.ClassStatistics` or
                `ufm.networks.ClassMoments`. One alone stands for the first layer, after which class
                means take the place of their class.
            weights: As for `from_features`, as are the others.
            bias: The bias of the last layer, (K,); None without one.
            weight_decay: Of the weights, one number or one per layer.
            bias_decay: Of the biases; that of the last layer by default.
            loss: The cross-entropy by default.
            hidden_biases: One per layer before the last, None for a layer without.
            nonnegative: Whether the features have left a ReLU; by default, whether no class mean
                has a negative entry.
            activation: Between the layers given, "relu" or "linear".

        Raises:
            ValueError: Moments do not fit; and as `from_features`.
        """
        matrices = _weights_of(weights)
        several = isinstance(moments, (list, tuple)) and not hasattr(moments, "means")
        given = list(moments) if several else [moments]
        if len(given) not in (1, len(matrices)):
            raise ArgumentError(
                "moments",
                "must be one, of the inputs of the first layer, or one per layer "
                f"({len(matrices)}); got {len(given)}",
            )
        found = [_inputs(one) for one in given]
        counts = np.asarray(given[0].counts, np.float64)
        for index, one in enumerate(found):
            finite = np.all(np.isfinite(one.means)) and np.all(np.isfinite(one.variances))
            if not (finite and np.all(counts > 0)):
                raise ArgumentError(
                    "moments",
                    f"must be finite, with samples of every class; those of layer {index + 1} "
                    "are not",
                )
        parts = _checked(
            found[0].means,
            counts,
            matrices,
            bias,
            weight_decay,
            bias_decay,
            loss,
            hidden_biases,
            activation,
            nonnegative,
        )
        if len(found) == 1:
            chain = parts["weights"], parts["hidden_biases"], parts["activation"]
            rows = _forward(found[0].means, *chain)
            found += [Inputs(means, np.zeros(counts.size), None) for means in rows[1:]]
        for index, (one, matrix) in enumerate(zip(found, parts["weights"], strict=True)):
            if one.means.shape != (counts.size, matrix.shape[1]):
                raise ArgumentError(
                    "moments",
                    f"of layer {index + 1} must have means of shape "
                    f"{(counts.size, matrix.shape[1])}; got {one.means.shape}",
                )
        collapse = None
        if len(given) == len(matrices):
            collapse = _collapse_of(given[-1], parts["weights"][-1], parts["bias"])
        inputs = tuple(found)
        return cls(**parts, class_counts=counts, inputs=inputs, samples=None, collapse=collapse)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_counts.size

    @property
    def num_samples(self) -> float:
        """N."""
        return float(self.class_counts.sum())

    @property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """Mean logits, (K, K), row k of class k: those at the class means of the last input."""
        product = self.inputs[-1].means @ self.weights[-1].T
        return product if self.bias is None else product + self.bias

    def from_layer(self, layer: int) -> "TrainedNetwork":
        """Return the network seen from a later layer on.

        -1 is the last, which leaves the one-layer model. Features that leave a ReLU are
        non-negative.
        """
        count = len(self.weights)
        if not -count <= layer < count:
            raise ArgumentError("layer", f"must be an index of the {count} layers, got {layer}")
        layer %= count
        return self._replace(
            inputs=self.inputs[layer:],
            weights=self.weights[layer:],
            hidden_biases=self.hidden_biases[layer:],
            weight_decay=self.weight_decay[layer:],
            nonnegative=self.nonnegative
            if layer == 0
            else self.activation == "relu" or _nonnegative(self.inputs[layer]),
            negative_share=self.negative_share if layer == 0 else 0.0,
        )

    def centred(self) -> "TrainedNetwork":
        """Return the last layer with the mean of all features moved into the bias.

        The bias is free then. W h + b = W (h - m) + (b + W m): the logits are the same. The
        features are signed, and the model penalises what is left of them.
        """
        last = self.from_layer(-1)
        (inputs,) = last.inputs
        mean = last.class_counts / last.num_samples @ inputs.means
        shift = last.weights[0] @ mean
        found = last.samples
        if found is not None:
            found = found._replace(
                weight_gradient=found.weight_gradient - np.outer(found.bias_gradient, mean)
            )
        return last._replace(
            inputs=(inputs._replace(means=inputs.means - mean),),
            bias=shift if last.bias is None else last.bias + shift,
            bias_decay=0.0,
            nonnegative=False,
            samples=found,
        )


def last_layer_gradient(trained: TrainedNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of the mean loss by the last layer's weights, (K, D), and bias, (K,).

    They are taken at class means where samples are not known.
    """
    if trained.samples is not None:
        return trained.samples.weight_gradient, trained.samples.bias_gradient
    return _at_means(trained)[1:]


def loss_of_classes(trained: TrainedNetwork) -> np.ndarray:
    """Return the loss at the mean logits of every class, (K,)."""
    return _at_means(trained)[0]


def _at_means(trained: TrainedNetwork) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `_on_rows` does, at the class means."""
    n = trained.class_counts
    rows, y = trained.inputs[-1].means, np.arange(trained.num_classes)
    return _on_rows(rows, y, trained.weights[-1], trained.bias, trained.loss, n, n)


def _on_rows(
    rows: Any, y: Any, W: Any, bias: Any, loss: Loss, counts: Any, samples_of_row: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean loss of each class, and the gradients of the mean loss by W and the bias.

    `samples_of_row` says by the class of a row how many samples it stands for.
    """
    K, N = counts.size, counts.sum()
    totals, by_weights, by_bias = np.zeros(K), np.zeros(W.shape), np.zeros(K)
    classes = ClassGroups(counts)
    with double_precision():
        for chunk in chunks(len(rows), CHUNK):
            block, given = rows[chunk], y[chunk]
            share = samples_of_row[given]
            logits = block @ W.T + (0 if bias is None else bias)
            values, slopes = to_numpy(
                _losses(loss, jnp.asarray(logits), jnp.asarray(np.eye(K)[given]), classes)
            )
            totals += np.bincount(given, share * values, minlength=K)
            by_weights += (share[:, None] * slopes).T @ block
            by_bias += share @ slopes
    return totals / counts, by_weights / N, by_bias / N


@compiled
def _losses(loss, logits, targets, classes):  # type: ignore[no-untyped-def]
    values, pullback = jax.vjp(lambda z: loss(z, targets, classes), logits)
    return values, pullback(jnp.ones_like(values))[0]


def _forward(
    features: np.ndarray,
    weights: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray | None, ...],
    activation: str,
) -> list[np.ndarray]:
    """Return what enters every layer."""
    rows = [features]
    for matrix, bias in zip(weights[:-1], biases, strict=True):
        inputs = rows[-1] @ matrix.T + (0 if bias is None else bias)
        rows.append(np.maximum(inputs, 0) if activation == "relu" else inputs)
    return rows


def _inputs(moments: Any) -> Inputs:
    try:
        with np.errstate(
            all="ignore"
        ):  # a class without samples has a mean of NaN, which is said later
            parts = (moments.means, moments.within_trace, moments.within)
        found = Inputs(*(None if part is None else np.asarray(part, np.float64) for part in parts))  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError) as error:
        raise ArgumentError(
            "moments",
            "must have `counts`, `means`, `within` and `within_trace`, such as "
            "ufm.metrics.ClassStatistics or ufm.networks.ClassMoments; got "
            f"{type(moments).__name__}: {error}",
        ) from None
    return found


def _collapse_of(
    moments: Any, weights: np.ndarray, bias: np.ndarray | None
) -> NeuralCollapse | None:
    if isinstance(moments, ClassStatistics):
        return collapse_metrics(moments, weights, bias)
    return moments.measure(weights, bias) if hasattr(moments, "measure") else None


def _nonnegative(inputs: Inputs) -> bool:
    return bool(np.all(inputs.means >= 0))


def _weights_of(weights: Any) -> tuple[Any, ...]:
    """Return the matrices of all layers given, as they are."""
    several = isinstance(weights, (list, tuple)) and len(weights) > 0 and np.ndim(weights[0]) == 2
    return tuple(weights) if several else (weights,)


def _checked(
    rows: np.ndarray,
    counts: np.ndarray,
    weights: tuple[Any, ...],
    bias: Any,
    weight_decay: Any,
    bias_decay: float | None,
    loss: Loss | None,
    hidden_biases: Sequence[Any] | None,
    activation: str,
    nonnegative: bool | None,
) -> dict[str, Any]:
    """Return weights, biases, decays, loss, activation and sign, checked.

    `rows` of features say what sign these have if that is not given.
    """
    L = len(weights)
    matrices, bias, hidden = _layers(rows.shape[1], counts.size, weights, bias, hidden_biases)
    decays = _decays("weight_decay", weight_decay, L)
    if bias_decay is None:
        bias_decay = float(decays[-1])
    bias_decay = checked_nonnegative("bias_decay", bias_decay, "0 leaves biases free")
    assumed = loss is None
    loss = CrossEntropy() if loss is None else loss
    if not isinstance(loss, Loss):
        raise ArgumentError("loss", "must be a ufm loss such as ufm.CrossEntropy()", loss)
    loss.check(ClassGroups(counts))
    check_one_of("activation", activation, ACTIVATIONS)
    if nonnegative not in (None, True, False):
        raise ArgumentError("nonnegative", "must be True, False or None", nonnegative)
    return {
        "weights": matrices,
        "bias": bias,
        "hidden_biases": hidden,
        "weight_decay": decays,
        "bias_decay": float(bias_decay),
        "loss": loss,
        "activation": activation,
        "nonnegative": bool(np.all(rows >= 0)) if nonnegative is None else bool(nonnegative),
        "loss_assumed": assumed,
        "negative_share": float(np.mean(rows < 0)),
    }


def _layers(
    dim: int, K: int, weights: tuple[Any, ...], bias: Any, hidden_biases: Sequence[Any] | None
) -> tuple[tuple[np.ndarray, ...], np.ndarray | None, tuple[np.ndarray | None, ...]]:
    """Return the weights, the last bias and the biases before it, checked."""
    L = len(weights)
    matrices = []
    for index, matrix in enumerate(weights):
        out = K if index == L - 1 else None
        name = "weights" if L == 1 else f"weights[{index}]"
        shape = f"({'K' if out else 'out'}, {dim})"
        matrices.append(
            real_array(
                name, matrix, (out, dim), f"a matrix {shape}, one column for each of its inputs"
            )
        )
        dim = len(matrices[-1])
    if bias is not None:
        bias = real_array("bias", bias, (K,), f"of shape ({K},), one number for each class")
    given = [None] * (L - 1) if hidden_biases is None else list(hidden_biases)
    if len(given) != L - 1:
        raise ArgumentError(
            "hidden_biases",
            f"must be one per layer before the last ({L - 1}), None for a layer without; got "
            f"{len(given)}",
        )
    hidden = tuple(
        None
        if one is None
        else real_array(
            f"hidden_biases[{index}]", one, (len(matrix),), f"of shape ({len(matrix)},)"
        )
        for index, (one, matrix) in enumerate(zip(given, matrices, strict=False))
    )
    return tuple(matrices), bias, hidden


def _decays(name: str, value: Any, count: int) -> np.ndarray:
    try:
        decays = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        decays = np.full(0, np.nan)
    if decays.shape not in ((), (1,), (count,)):
        raise ArgumentError(
            name, f"must be one number, or one for each of the {count} layers", value
        )
    check_numbers(
        name,
        decays,
        several=True,
        positive=True,
        remedy="without weight decay there is no minimiser, and the limit of vanishing decay is "
        "ufm.HardMargin",
    )
    return np.broadcast_to(decays, (count,)).copy()
