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

Targets need not be classes. The network then has rows instead of classes: tag sets, contexts, or
the n + 1 rows of a regression's moments (`ufm.networks.effective.target_rows`). Losses are those of
this library, with rows as they are: the cross-entropy of a tag set of m tags is m times that of
its tags' mean (pick all labels), so a network trained on rows divided by m is another one;
`torch.nn.BCEWithLogitsLoss` averages over tags, which is 1/K times `ufm.BinaryCrossEntropy`. Every
context has one feature, which is penalised once however often it occurs. Its target is the
distribution of what follows, where a sample's own is its token. For the cross-entropy the mean loss
is the same; squared error of tokens is larger by a constant, which is left out.
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
from ufm.metrics import class_statistics, host_array, real_array, regression_statistics
from ufm.networks.effective.target_rows import (
    KINDS,
    Inputs,
    RowMoments,
    SampleRows,
    TargetKind,
    check_quadratic,
    collapse_of_samples,
    outline,
    row_moments,
    rows_of_samples,
)
from ufm.problems import ACTIVATIONS, Loss, Problem, Targets

__all__ = [
    "OnSamples",
    "TrainedNetwork",
    "last_layer_gradient",
    "loss_of_classes",
]


CHUNK = 8192  # samples at a time


@printed
class OnSamples(NamedTuple):
    """What can only be computed from single samples.

    Attributes:
        loss: The mean loss of each row, (R,); of a regression, the same for all.
        weight_gradient: The gradient of the mean loss over all samples by the last layer's weights,
            (K, D).
        bias_gradient: The same by the last layer's bias, (K,).
    """

    loss: Float[np.ndarray, " R"]
    weight_gradient: Float[np.ndarray, "K D"]
    bias_gradient: Float[np.ndarray, " K"]


@printed
class TrainedNetwork(NamedTuple):
    """The last L layers of a trained network and what enters them.

    It is made by `from_features` or `from_moments`.

    Attributes:
        row_counts: Samples per class, or per row of the targets, (R,).
        inputs: What enters each of the L layers, that of W_1 first: its means are the class means
            of the features, or those of rows.
        weights: (W_1, ..., W_L), each (out, in).
        bias: The bias of the last layer, (K,), or None.
        hidden_biases: The biases of the layers before it, each (out,) or None.
        weight_decay: The weight decay of each layer, (L,).
        bias_decay: The weight decay of all biases.
        loss: What the network was trained with.
        nonnegative: Whether features are non-negative.
        activation: "relu" or "linear", between the layers.
        samples: What single samples tell. None where only moments are known.
        collapse: NC1 to NC4 of the last layer and what enters it, or the collapse of other
            targets. None where moments cannot tell.
        loss_assumed: Whether no loss was given.
        negative_share: The share of negative entries among those of the features (of their class
            means, where only moments are known).
        targets: What the rows are fitted to; None for classes, row k being class k.
        kind: "classes", "multi-label", "contexts" or "regression".
    """

    row_counts: Float[np.ndarray, " R"]
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
    collapse: Any
    loss_assumed: bool = False
    negative_share: float = 0.0
    targets: Targets | None = None
    kind: str = "classes"

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
        targets: str = "classes",
        contexts: Any = None,
    ) -> "TrainedNetwork":
        """Return the network from arrays: of NumPy, JAX or PyTorch, in any floating-point type.

        Args:
            features: The inputs of the first of the layers given.
            labels: Classes 0, ..., K - 1, (N,); or what `targets` says.
            weights: The last layer's matrix, (K, d); or those of the last L layers, first layer
                first, each (out, in) as PyTorch has them.
            bias: The bias of the last layer, (K,); None without one.
            weight_decay: lambda, as in (lambda/2) ||W||^2 with the loss averaged over samples: one
                number, or one per layer.
            bias_decay: The weight decay of the biases; that of the last layer by default, as an
                optimiser does that is given all parameters.
            loss: The loss that the network was trained with; by default the cross-entropy, and
                squared error for a regression.
            hidden_biases: One per layer before the last, None for a layer without.
            nonnegative: Whether the features have left a ReLU; by default, whether none of them is
                negative.
            activation: Between the layers given, "relu" or "linear".
            targets: What labels are, as for `measure`: "classes"; "multi-label", multi-hot rows
                (N, K); "contexts", next tokens (N,); "regression", real targets (N, K) or (N,), by
                one layer, squared error and signed features.
            contexts: With targets="contexts", the context of each sample, integers (N,).

        Raises:
            ValueError: Arrays do not fit, are empty or not finite, or weight decays are not
                positive; a regression of another loss, or of several layers.
        """
        check_one_of("targets", targets, tuple(KINDS))
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
        shared: dict[str, Any] = {
            "weight_decay": weight_decay,
            "bias_decay": bias_decay,
            "loss": loss,
            "hidden_biases": hidden_biases,
            "nonnegative": nonnegative,
            "activation": activation,
        }
        if targets == "regression":
            found = regression_statistics(H, _responses(labels, len(H), K))
            return cls.from_moments(found, weights, bias, **shared)
        rows = rows_of_samples(targets, labels, contexts, len(H), K)
        parts = _checked(H, targets, rows.targets, rows.counts, matrices, bias, **shared)
        return _of_samples(parts, H, rows)

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
                `ufm.networks.ClassMoments`; or `TagMoments`, `ContextMoments` or, for one layer,
                `RegressionMoments`, or their statistics. One alone stands for the first layer,
                after which class means take the place of their class.
            weights: As for `from_features`, as are the others.
            bias: The bias of the last layer, (K,); None without one.
            weight_decay: Of the weights, one number or one per layer.
            bias_decay: Of the biases; that of the last layer by default.
            loss: The cross-entropy by default; squared error for a regression, which alone its
                moments tell, then exactly.
            hidden_biases: One per layer before the last, None for a layer without.
            nonnegative: Whether the features have left a ReLU; by default, whether no class mean
                has a negative entry. Moments of a regression are of signed features.
            activation: Between the layers given, "relu" or "linear".

        Raises:
            ValueError: Moments do not fit; and as `from_features`.
        """
        matrices = _weights_of(weights)
        several = isinstance(moments, (list, tuple)) and not hasattr(moments, "_fields")
        given = list(moments) if several else [moments]
        if len(given) not in (1, len(matrices)):
            raise ArgumentError(
                "moments",
                "must be one, of the inputs of the first layer, or one per layer "
                f"({len(matrices)}); got {len(given)}",
            )
        K = len(real_array("weights", matrices[-1], (None, None), "the last layer's, (K, d)"))
        found = [row_moments(one, K) for one in given]
        _check_moments(found)
        first = found[0]
        if first.quadratic:
            nonnegative = _signed(nonnegative, len(matrices))
        parts = _checked(
            first.inputs.means,
            first.kind,
            first.targets,
            first.counts,
            matrices,
            bias,
            weight_decay=weight_decay,
            bias_decay=bias_decay,
            loss=loss,
            hidden_biases=hidden_biases,
            nonnegative=nonnegative,
            activation=activation,
        )
        inputs = _inputs_of_layers(found, parts)
        collapse = None
        if len(given) == len(matrices) and found[-1].collapse is not None:
            collapse = found[-1].collapse(parts["weights"][-1], parts["bias"])
        network = cls(
            **parts, row_counts=first.counts, inputs=inputs, samples=None, collapse=collapse
        )
        return network._replace(samples=_of_squares(network)) if first.quadratic else network

    @property
    def num_classes(self) -> int:
        """K, the number of classes, tags, tokens or outputs."""
        return self.row_counts.size if self.targets is None else self.targets.num_outputs

    @property
    def num_samples(self) -> float:
        """N."""
        return float(self.row_counts.sum())

    @property
    def class_counts(self) -> Float[np.ndarray, " K"]:
        """Samples per class, (K,), or the sum of each label's targets."""
        return np.asarray(self.outline.class_counts.per_class, np.float64)

    @property
    def row_weights(self) -> Float[np.ndarray, " R"]:
        """What ||h||^2 of each row is multiplied by in the penalty, (R,)."""
        return np.asarray(self.outline.row_weights, np.float64)

    @property
    def outline(self) -> Problem:
        """The rows and the loss as a problem, whose penalties stand for any."""
        return outline(self.targets, self.row_counts, self.loss, self.weights[0].shape[1])

    @property
    def of_kind(self) -> TargetKind:
        """What there is to say about targets of this kind."""
        return KINDS[self.kind]

    @property
    def logits(self) -> Float[np.ndarray, "R K"]:
        """Mean logits, (R, K), row r of class or row r: those at the means of the last input."""
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
        features are signed, and the model penalises what is left of them. Their mean is that of
        the penalty, which counts every context once.
        """
        last = self.from_layer(-1)
        (inputs,) = last.inputs
        weights = last.row_weights
        mean = weights / weights.sum() @ inputs.means
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
            collapse=last.collapse if last.of_kind.centres else None,
        )


def last_layer_gradient(trained: TrainedNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of the mean loss by the last layer's weights, (K, D), and bias, (K,).

    They are taken at class means where samples are not known.
    """
    if trained.samples is not None:
        return trained.samples.weight_gradient, trained.samples.bias_gradient
    return _at_means(trained)[1:]


def loss_of_classes(trained: TrainedNetwork) -> np.ndarray:
    """Return the loss at the mean logits of every class or row, (R,)."""
    return _at_means(trained)[0]


def _at_means(trained: TrainedNetwork) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `_on_rows` does, at the class means."""
    n, rows = trained.row_counts, trained.inputs[-1].means
    y = np.arange(n.size)
    return _on_rows(rows, y, trained.weights[-1], trained.bias, trained.outline, n)


def _on_rows(
    rows: Any,
    y: Any,
    W: Any,
    bias: Any,
    problem: Problem,
    samples_of_row: Any,
    tokens: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean loss of each class or row, and the gradients of the mean loss by W and bias.

    Args:
        rows: What enters the last layer.
        y: The class or target row of each.
        W: The last layer.
        bias: Its bias, or None.
        problem: The targets, their counts and the loss.
        samples_of_row: By the class of a row, how many samples it stands for.
        tokens: The token of each, (N,), as its target; the class or target row's own if not given.
    """
    counts: Any = np.asarray(problem.row_counts, np.float64)
    N, targets = counts.sum(), problem.target_rows(np.float64, np)
    totals, by_weights, by_bias = np.zeros(counts.size), np.zeros(W.shape), np.zeros(len(W))
    with double_precision():
        for chunk in chunks(len(rows), CHUNK):
            block, given = rows[chunk], y[chunk]
            share = samples_of_row[given]
            logits = block @ W.T + (0 if bias is None else bias)
            wanted = np.asarray(targets)[given]
            if tokens is not None:
                wanted = np.zeros(logits.shape)
                wanted[np.arange(len(block)), tokens[chunk]] = 1.0
            values, slopes = to_numpy(
                _losses(
                    problem.loss, jnp.asarray(logits), jnp.asarray(wanted), problem.class_counts
                )
            )
            totals += np.bincount(given, share * values, minlength=counts.size)
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


def _of_samples(parts: dict[str, Any], features: np.ndarray, rows: SampleRows) -> TrainedNetwork:
    """Return the network of single samples, from checked parts."""
    R, y, weights = rows.counts.size, rows.origins, rows.penalty_shares
    layers = _forward(features, parts["weights"], parts["hidden_biases"], parts["activation"])
    statistics = [class_statistics(block, y, R, weights) for block in layers]
    inputs = [row_moments(one, R).inputs for one in statistics]
    network = TrainedNetwork(
        **parts, row_counts=rows.counts, inputs=tuple(inputs), samples=None, collapse=None
    )
    head, problem = (parts["weights"][-1], parts["bias"]), network.outline
    ones = np.ones(R)
    samples = OnSamples(*_on_rows(layers[-1], y, *head, problem, ones, rows.tokens))
    if rows.tokens is not None:  # what the loss of tokens has more than that of their distribution
        repeated = inputs[-1].means[y]
        more = _on_rows(repeated, y, *head, problem, ones, rows.tokens)[0]
        samples = samples._replace(loss=samples.loss - (more - loss_of_classes(network)))
    return network._replace(
        samples=samples,
        collapse=collapse_of_samples(network.kind, problem, statistics[-1], *head),
    )


def _of_squares(network: TrainedNetwork) -> OnSamples:
    """Return the squared error of all samples and its gradients, from moments.

    What is left of the features within rows has no correlation with the targets, so it adds its own
    square.
    """
    values, by_weights, by_bias = _at_means(network)
    W, within = network.weights[-1], network.inputs[-1].within
    spread = W @ within
    data = network.row_counts @ values / network.num_samples + 0.5 * np.sum(spread * W)
    return OnSamples(np.full(values.shape, data), by_weights + spread, by_bias)


def _inputs_of_layers(found: Sequence[RowMoments], parts: dict[str, Any]) -> tuple[Inputs, ...]:
    """Return what enters every layer: as given, or from means that pass the layers before."""
    inputs, R = [one.inputs for one in found], found[0].counts.size
    if len(found) == 1:
        chain = parts["weights"], parts["hidden_biases"], parts["activation"]
        rows = _forward(inputs[0].means, *chain)
        inputs += [Inputs(means, np.zeros(R), None) for means in rows[1:]]
    for index, (one, matrix) in enumerate(zip(inputs, parts["weights"], strict=True)):
        if one.means.shape != (R, matrix.shape[1]):
            raise ArgumentError(
                "moments",
                f"of layer {index + 1} must have means of shape {(R, matrix.shape[1])}; got "
                f"{one.means.shape}",
            )
    return tuple(inputs)


def _check_moments(found: Sequence[RowMoments]) -> None:
    """Refuse moments that are not finite, lack a class, or are not of the same rows."""
    first = found[0]
    for index, one in enumerate(found):
        finite = np.all(np.isfinite(one.inputs.means)) and np.all(np.isfinite(one.inputs.variances))
        if not (finite and np.all(first.counts > 0)):
            raise ArgumentError(
                "moments",
                f"must be finite, with samples of every class; those of layer {index + 1} are not",
            )
        alike = one.kind == first.kind
        if alike and one.targets is not None and first.targets is not None:
            alike = np.array_equal(one.targets.rows, first.targets.rows)
        if not alike:
            raise ArgumentError(
                "moments",
                f"must be of the same targets in all layers; those of layer {index + 1} are others",
            )


def _signed(nonnegative: bool | None, num_layers: int) -> bool:
    """Return False, the sign of features that are known by the moments of a regression alone."""
    if nonnegative:
        raise ArgumentError(
            "nonnegative",
            "must not be True for a regression, whose moments do not tell h >= 0 of single samples",
            remedy="leave it out: the model is then of signed features",
        )
    if num_layers > 1:
        raise ArgumentError(
            "weights",
            f"must be of one layer for a regression, got {num_layers}",
            remedy="give the last layer and what enters it",
        )
    return False


def _responses(labels: Any, size: int, num_outputs: int) -> np.ndarray:
    """Return real targets, (N, K)."""
    given = host_array("labels", labels)
    given = given[:, None] if given.ndim == 1 else given
    words = f"real targets ({size}, {num_outputs}), one row for each sample"
    return real_array("labels", given, (size, num_outputs), words)


def _nonnegative(inputs: Inputs) -> bool:
    return bool(np.all(inputs.means >= 0))


def _weights_of(weights: Any) -> tuple[Any, ...]:
    """Return the matrices of all layers given, as they are."""
    several = isinstance(weights, (list, tuple)) and len(weights) > 0 and np.ndim(weights[0]) == 2
    return tuple(weights) if several else (weights,)


def _checked(
    rows: np.ndarray,
    kind: str,
    targets: Targets | None,
    counts: np.ndarray,
    weights: tuple[Any, ...],
    bias: Any,
    *,
    weight_decay: Any,
    bias_decay: float | None,
    loss: Loss | None,
    hidden_biases: Sequence[Any] | None,
    activation: str,
    nonnegative: bool | None,
) -> dict[str, Any]:
    """Return weights, biases, decays, loss, activation, sign and targets, checked.

    `rows` of features say what sign these have if that is not given.
    """
    L = len(weights)
    K = counts.size if targets is None else targets.num_outputs
    matrices, bias, hidden = _layers(rows.shape[1], K, weights, bias, hidden_biases)
    decays = _decays("weight_decay", weight_decay, L)
    if bias_decay is None:
        bias_decay = float(decays[-1])
    bias_decay = checked_nonnegative("bias_decay", bias_decay, "0 leaves biases free")
    assumed = loss is None
    loss = KINDS[kind].loss if loss is None else loss
    if not isinstance(loss, Loss):
        raise ArgumentError("loss", "must be a ufm loss such as ufm.CrossEntropy()", loss)
    outline(targets, counts, loss, rows.shape[1])
    if kind == "regression":
        check_quadratic(loss, K)
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
        "targets": targets,
        "kind": kind,
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
