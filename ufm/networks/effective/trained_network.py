r"""The unconstrained features model of a trained network: what of a network the model sees, and which of the models is its own.

A network is seen from its last L layers on: what enters them are the features h_i, one per sample, of class means mu_k, and

    z_i = W_L relu(W_{L-1} ... relu(W_1 h_i + b_1) ...) + b.

It was trained to minimise the mean loss over N samples plus (lambda/2) ||.||^2 of all its weights: this is what `weight_decay` means to PyTorch's
SGD and to Adam with L2 regularisation, and it is the convention of `ufm.WeightDecay`, number for number. Decoupled weight decay (AdamW) minimises
no such objective: a network trained with it has no effective model, which the implied weight decay below can show. A loss that is a multiple of one
of ours goes with weight decays divided by that factor: `torch.nn.MSELoss` averages over samples and outputs, which is 2/K times
`ufm.SquaredError`, so the weight decay to give is K/2 times the network's.

The model puts (lambda_H/2) sum_i ||h_i||^2 in the place of everything before the features. Its feature decay follows from the weight decay, because
every critical point of the model is balanced,

    lambda_W W_1^T W_1 = lambda_H sum_i h_i h_i^T =: lambda_H S,

whatever the loss, the class sizes and the biases: multiply the condition on W_1 by W_1^T, and that on h_i by h_i^T, and compare (Zhu et al. 2021,
for the traces). Where features left a ReLU, h >= 0, the multipliers of the constraint vanish where h does not, and the equation holds on the
diagonal, unit by unit. So the traces give

    lambda_H = lambda_W ||W_1||^2 / sum_i ||h_i||^2,

least squares over the matrices (or diagonals) another value, and what is left of the equation says how well any model of this kind describes the
network. Two values of one number that differ are a network that is not balanced.

Between layers the same holds without any model: at a critical point of any network whose activation is positively homogeneous,

    lambda_{l+1} ||W_{l+1}||^2 = lambda_l ||W_l||^2 + lambda_{b_l} ||b_l||^2,

both sides being minus the inner product of a layer's output with the gradient by it; for every single unit too, with a column of W_{l+1} and a row
of W_l. The bias of layer l enters with its own decay, and not at all where it has none; that of layer l + 1 does not enter. Batch
normalisation and skip connections in between break the law.

Features are taken as they are. Their mean is penalised like everything else, and where the bias is free and features are signed, it is zero at
every critical point of the model; the mean of a network's features seldom is. `TrainedNetwork.centred()` is the same network with the mean moved
into the bias: the same logits, another model. Biases before the last layer are in no model; they are in what is measured.

References: Zhu et al. (NeurIPS 2021) for the balance of the two factors; Du, Hu and Lee (NeurIPS 2018) for homogeneous layers.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._support import checked_positive, compiled, double_precision, to_numpy
from ufm.metrics import (
    ClassStatistics,
    NeuralCollapse,
    check_present,
    class_labels,
    class_statistics,
    collapse_metrics,
    real_array,
)
from ufm.problems import ACTIVATIONS, ClassGroups, CrossEntropy, Loss, Problem, WeightDecay

__all__ = ["Balance", "EffectiveModel", "Inputs", "OnSamples", "TrainedNetwork", "effective_model"]

CHUNK = 8192  # samples at a time
NOT_STATIONARY = 0.3  # relative difference of the implied weight decay that is worth a note


class Inputs(NamedTuple):
    """What enters a layer, by class.

    means: (K, d), class means. variances: (K,), the mean over the class of ||h - mu_k||^2. within: (d, d), the within-class covariance, the mean
    over all N samples; None where it is not known.
    """

    means: Float[np.ndarray, "K d"]
    variances: Float[np.ndarray, " K"]
    within: Float[np.ndarray, "d d"] | None


class OnSamples(NamedTuple):
    """What only single samples tell.

    loss: (K,), the mean loss of each class. weight_gradient, bias_gradient: of the mean loss over all samples, by the last layer's weights, (K, D),
    and bias, (K,).
    """

    loss: Float[np.ndarray, " K"]
    weight_gradient: Float[np.ndarray, "K D"]
    bias_gradient: Float[np.ndarray, " K"]


class TrainedNetwork(NamedTuple):
    """The last L layers of a trained network and what enters them. Made by `from_features` or `from_moments`.

    class_counts: (K,), samples per class. inputs: of every one of the L layers, that of W_1 first: its means are the class means of the features.
    weights: (W_1, ..., W_L), each (out, in). bias: (K,), of the last layer, or None. hidden_biases: of the layers before it, each None or (out,).
    weight_decay: (L,). bias_decay: of all biases. loss: what the network was trained with. nonnegative: whether features are non-negative.
    activation: "relu" or "linear", between the layers. samples: None where only moments are known. collapse: NC1 to NC4 of the last layer
    and what enters it; None where moments cannot tell. loss_assumed: whether no loss was given. negative_share: of the entries of the features (of
    their class means, where only moments are known), those below zero.
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
            features: (N, d), the inputs of the first of the layers given.
            labels: (N,), classes 0, ..., K - 1.
            weights: the last layer's matrix, (K, d); or those of the last L layers, first layer first, each (out, in) as PyTorch has them.
            bias: (K,), of the last layer; None without one.
            weight_decay: lambda, as in (lambda/2) ||W||^2 with the loss averaged over samples: one number, or one per layer.
            bias_decay: of the biases; if not given, the weight decay of the last layer, as an optimiser does that is given all parameters.
            loss: the loss that the network was trained with, the cross-entropy if not given.
            hidden_biases: one per layer before the last, None for a layer without.
            nonnegative: whether the features have left a ReLU; if not given, whether none of them is negative.
            activation: between the layers given.

        Raises:
            ValueError: for arrays that do not fit, are empty or not finite, and for weight decays that are not positive.
        """
        matrices = _weights_of(weights)
        H = real_array(
            "features",
            features,
            (None, None),
            "a matrix (N, d), one row for each sample, of which there is at least one",
        )
        K = len(real_array("weights", matrices[-1], (None, None), "the matrix of the last layer, (K, d)"))
        y = class_labels(labels, len(H), K)
        check_present("labels", np.unique(y), K)
        counts = np.bincount(y, minlength=K).astype(np.float64)
        parts = _checked(
            H, counts, matrices, bias, weight_decay, bias_decay, loss, hidden_biases, activation, nonnegative
        )
        rows = _forward(H, parts["weights"], parts["hidden_biases"], parts["activation"])
        statistics = [class_statistics(block, y, K) for block in rows]
        return cls(
            **parts,
            class_counts=counts,
            inputs=tuple(map(_inputs, statistics)),
            samples=OnSamples(
                *_on_rows(rows[-1], y, parts["weights"][-1], parts["bias"], parts["loss"], counts, np.ones(counts.size))
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
        """Return the network from the moments of its features, where these are too many to be held at once.

        Losses and gradients are then those at the class means: lower bounds, where the loss is convex, and equal as far as classes have collapsed.

        Args:
            moments: of the inputs of every layer given, that of W_1 first: anything with `counts`, `means`, `within` and `within_trace`, such as
                `ufm.metrics.ClassStatistics` or `ufm.networks.ClassMoments`. One alone stands for the first layer, after which class means take
                the place of their class.
            weights: as for `from_features`, as are the others.
            bias: (K,), of the last layer; None without one.
            weight_decay: of the weights, one number or one per layer.
            bias_decay: of the biases; if not given, the weight decay of the last layer.
            loss: the cross-entropy if not given.
            hidden_biases: one per layer before the last, None for a layer without.
            nonnegative: whether the features have left a ReLU; if not given, whether no class mean has a negative entry.
            activation: between the layers given.

        Raises:
            ValueError: for moments that do not fit, and as `from_features`.
        """
        matrices = _weights_of(weights)
        given = list(moments) if isinstance(moments, (list, tuple)) and not hasattr(moments, "means") else [moments]
        if len(given) not in (1, len(matrices)):
            raise ValueError(
                f"`moments` must be one, of the inputs of the first layer, or one per layer ({len(matrices)}); got {len(given)}."
            )
        found = [_inputs(one) for one in given]
        counts = np.asarray(given[0].counts, np.float64)
        for index, one in enumerate(found):
            if not (np.all(np.isfinite(one.means)) and np.all(np.isfinite(one.variances)) and np.all(counts > 0)):
                raise ValueError(
                    f"`moments` must be finite, with samples of every class; those of layer {index + 1} are not."
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
            rows = _forward(found[0].means, parts["weights"], parts["hidden_biases"], parts["activation"])
            found += [Inputs(means, np.zeros(counts.size), None) for means in rows[1:]]
        for index, (one, matrix) in enumerate(zip(found, parts["weights"], strict=True)):
            if one.means.shape != (counts.size, matrix.shape[1]):
                raise ValueError(
                    f"`moments` of layer {index + 1} must have means of shape {(counts.size, matrix.shape[1])}; got {one.means.shape}."
                )
        return cls(
            **parts,
            class_counts=counts,
            inputs=tuple(found),
            samples=None,
            collapse=_collapse_of(given[-1], parts["weights"][-1], parts["bias"])
            if len(given) == len(matrices)
            else None,
        )

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
        """(K, K), row k the mean logits of class k, which are those of the class mean of what enters the last layer."""
        product = self.inputs[-1].means @ self.weights[-1].T
        return product if self.bias is None else product + self.bias

    def from_layer(self, layer: int) -> "TrainedNetwork":
        """Return the network seen from a later layer on; -1 is the last, which leaves the one-layer model.

        Features that leave a ReLU are non-negative.
        """
        count = len(self.weights)
        if not -count <= layer < count:
            raise ValueError(f"`layer` must be an index of the {count} layers, got {layer}.")
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
        """Return the last layer with the mean of all features moved into the bias, which is free then.

        W h + b = W (h - m) + (b + W m): the logits are the same. The features are signed, and the model penalises what is left of them.
        """
        last = self.from_layer(-1)
        (inputs,) = last.inputs
        mean = last.class_counts / last.num_samples @ inputs.means
        shift = last.weights[0] @ mean
        found = last.samples
        if found is not None:
            found = found._replace(weight_gradient=found.weight_gradient - np.outer(found.bias_gradient, mean))
        return last._replace(
            inputs=(inputs._replace(means=inputs.means - mean),),
            bias=shift if last.bias is None else last.bias + shift,
            bias_decay=0.0,
            nonnegative=False,
            samples=found,
        )


class Balance(NamedTuple):
    """How far a network is from the balance that every critical point of the model has.

    feature_decay: lambda_H from the traces. least_squares: from all entries of the matrices, or of their diagonals.
    residual: ||lambda_W W^T W - lambda_H S|| over the larger of the two norms, with lambda_H from the traces; of the diagonals where `by` is "units".
    cosine: between W^T W and S, whatever the factor. by: "matrix", or "units" where features are non-negative.
    layers: (L - 1,), lambda_{l+1} ||W_{l+1}||^2 over lambda_l ||W_l||^2 + lambda_b ||b_l||^2, less one. units: (L - 1,), the same unit by unit: the
        norm of the difference over the larger norm.
    stationarity: the gradient of the objective by the last layer's weights, relative to that of their penalty: zero at a critical point of the
    network,
        of any architecture. implied_weight_decay: of the last layer, the one for which its weights would be critical in their own direction.
    """

    feature_decay: float
    least_squares: float
    residual: float
    cosine: float
    by: Literal["matrix", "units"]
    layers: Float[np.ndarray, " L-1"]
    units: Float[np.ndarray, " L-1"]
    stationarity: float
    implied_weight_decay: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._asdict().items()
        }


class EffectiveModel(NamedTuple):
    """The model of a network: `problem`, whose feature decay comes from `balance` unless it was given, and notes on what the model leaves out."""

    problem: Problem
    balance: Balance
    notes: tuple[str, ...]


def effective_model(trained: TrainedNetwork, *, feature_decay: float | None = None) -> EffectiveModel:
    """Return the unconstrained features model of a trained network.

    Args:
        trained: the network.
        feature_decay: lambda_H; if not given, from the traces of the balance.

    Raises:
        ValueError: for a feature decay that is not positive; where none is given, for weights of the first layer or features that are all zero.
    """
    balance = _balance(trained)
    decay = balance.feature_decay if feature_decay is None else checked_positive("feature_decay", feature_decay)
    if feature_decay is None and not (np.isfinite(decay) and decay > 0):
        what = "weights of the first layer" if not np.any(trained.weights[0]) else "features"
        raise ValueError(
            f"`feature_decay` cannot be estimated: the {what} are all zero, so everything has collapsed; give `feature_decay`."
        )
    hidden = tuple(matrix.shape[0] for matrix in trained.weights[:-1])
    weights: Any = trained.weight_decay if hidden else trained.weight_decay[0]
    penalties: tuple[Any, Any] = decay, trained.bias_decay if trained.bias is not None else 0.0
    problem = Problem(
        class_counts=ClassGroups(trained.class_counts),
        feature_dim=trained.weights[0].shape[1],
        loss=trained.loss,
        regularizer=WeightDecay(weights, *penalties),
        use_bias=trained.bias is not None,
        hidden_dims=hidden,
        activation=trained.activation if hidden else "linear",
        nonnegative_features=trained.nonnegative,
    )
    return EffectiveModel(problem, balance, tuple(_notes(trained, balance, feature_decay is not None)))


def _notes(trained: TrainedNetwork, balance: Balance, given: bool) -> list[str]:
    notes = [
        "feature decay: given"
        if given
        else "feature decay: fitted to this network by the balance of its first layer, one number; the penalties of that layer and of the features "
        "are equal by construction"
    ]
    signs = "h >= 0, as after a ReLU" if trained.nonnegative else "signed"
    notes.append(f"features: {signs}, not centred")
    if trained.nonnegative and trained.negative_share > 0:
        notes.append(
            f"the features were said to be non-negative, but {100 * trained.negative_share:.2g} % of their entries are negative: the model does not "
            "have these"
        )
    if trained.bias is not None:
        notes.append("bias: free" if trained.bias_decay == 0 else f"bias: penalised with {trained.bias_decay:g}")
    if any(bias is not None for bias in trained.hidden_biases):
        notes.append(
            "the model has no bias before the last layer; the network has, so its objective may lie below the model's minimum"
        )
    if not is_stationary(trained, balance):
        notes.append(
            f"the last layer is not stationary at this weight decay (its loss implies {balance.implied_weight_decay:.3g}): another or "
            "decoupled weight decay, another loss, or a training that has not come to its end"
        )
    if trained.samples is None:
        notes.append("only moments of the features are known: losses are those at class means")
    return notes


def is_stationary(trained: TrainedNetwork, balance: Balance) -> bool:
    """Return whether the weight decay that the last layer implies is the network's, up to `NOT_STATIONARY`."""
    return bool(abs(balance.implied_weight_decay / trained.weight_decay[-1] - 1) <= NOT_STATIONARY)


def _balance(trained: TrainedNetwork) -> Balance:
    decays = trained.weight_decay
    W, inputs = trained.weights[0], trained.inputs[0]
    counts = trained.class_counts
    weighted = np.sqrt(counts)[:, None] * inputs.means
    within = np.zeros((W.shape[1],) * 2) if inputs.within is None else trained.num_samples * inputs.within
    left, right = decays[0] * (W.T @ W), weighted.T @ weighted + within
    total = float(np.sum(weighted**2) + counts @ inputs.variances)
    decay = float(np.trace(left)) / total if total > 0 else np.inf
    by: Literal["matrix", "units"] = "units" if trained.nonnegative else "matrix"
    if by == "units":
        left, right = np.diagonal(left), np.diagonal(right)
    squares = float(np.sum(right**2))
    lengths = float(np.linalg.norm(left)) * np.sqrt(squares)
    gradient, _ = last_layer_gradient(trained)
    last = decays[-1] * trained.weights[-1]
    size = float(np.linalg.norm(last))
    between = np.array([_layer_balance(trained, layer) for layer in range(len(decays) - 1)]).reshape(-1, 2)
    return Balance(
        feature_decay=decay,
        least_squares=float(np.sum(left * right)) / squares if squares > 0 else np.inf,
        residual=_relative(left, decay * right) if np.isfinite(decay) else 1.0,
        cosine=float(np.sum(left * right)) / lengths if lengths > 0 else np.nan,
        by=by,
        layers=between[:, 0],
        units=between[:, 1],
        stationarity=float(np.linalg.norm(last + gradient)) / size if size > 0 else np.nan,
        implied_weight_decay=-float(np.sum(gradient * trained.weights[-1])) / float(np.sum(trained.weights[-1] ** 2))
        if size > 0
        else np.nan,
    )


def _layer_balance(trained: TrainedNetwork, layer: int) -> tuple[float, float]:
    """Return how a layer and the next one are out of balance, as a whole and unit by unit."""
    below = trained.weight_decay[layer] * np.sum(trained.weights[layer] ** 2, axis=1)
    bias = trained.hidden_biases[layer]
    if bias is not None:
        below = below + trained.bias_decay * bias**2
    above = trained.weight_decay[layer + 1] * np.sum(trained.weights[layer + 1] ** 2, axis=0)
    ratio = float(np.sum(above) / np.sum(below)) - 1 if np.any(below) else np.inf
    return ratio, _relative(above, below)


def _relative(left: np.ndarray, right: np.ndarray) -> float:
    """Return the norm of a difference over the larger norm, zero where both vanish."""
    larger = max(float(np.linalg.norm(left)), float(np.linalg.norm(right)))
    return float(np.linalg.norm(left - right)) / larger if larger > 0 else 0.0


def last_layer_gradient(trained: TrainedNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of the mean loss by the last layer's weights, (K, D), and bias, (K,); at class means where samples are not known."""
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
    """Return the mean loss of each class, and the gradients of the mean loss by W and the bias; `samples_of_row` by class of the row."""
    K, N = counts.size, counts.sum()
    totals, by_weights, by_bias = np.zeros(K), np.zeros(W.shape), np.zeros(K)
    classes = ClassGroups(counts)
    with double_precision():
        for begin in range(0, len(rows), CHUNK):
            block, given = rows[begin : begin + CHUNK], y[begin : begin + CHUNK]
            share = samples_of_row[given]
            logits = block @ W.T + (0 if bias is None else bias)
            values, slopes = to_numpy(_losses(loss, jnp.asarray(logits), jnp.asarray(np.eye(K)[given]), classes))
            totals += np.bincount(given, share * values, minlength=K)
            by_weights += (share[:, None] * slopes).T @ block
            by_bias += share @ slopes
    return totals / counts, by_weights / N, by_bias / N


@compiled
def _losses(loss, logits, targets, classes):  # type: ignore[no-untyped-def]
    values, pullback = jax.vjp(lambda z: loss(z, targets, classes), logits)
    return values, pullback(jnp.ones_like(values))[0]


def _forward(
    features: np.ndarray, weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray | None, ...], activation: str
) -> list[np.ndarray]:
    """Return what enters every layer."""
    rows = [features]
    for matrix, bias in zip(weights[:-1], biases, strict=True):
        inputs = rows[-1] @ matrix.T + (0 if bias is None else bias)
        rows.append(np.maximum(inputs, 0) if activation == "relu" else inputs)
    return rows


def _inputs(moments: Any) -> Inputs:
    try:
        with np.errstate(all="ignore"):  # a class without samples has a mean of NaN, which is said later
            parts = (moments.means, moments.within_trace, moments.within)
        found = Inputs(*(None if part is None else np.asarray(part, np.float64) for part in parts))  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "`moments` must have `counts`, `means`, `within` and `within_trace`, such as ufm.metrics.ClassStatistics or "
            f"ufm.networks.ClassMoments; got {type(moments).__name__}: {error}."
        ) from None
    return found


def _collapse_of(moments: Any, weights: np.ndarray, bias: np.ndarray | None) -> NeuralCollapse | None:
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
    """Return weights, biases, decays, loss, activation and sign, checked; `rows` of features say what sign these have if that is not given."""
    K, L, dim = counts.size, len(weights), rows.shape[1]
    matrices = []
    for index, matrix in enumerate(weights):
        out = K if index == L - 1 else None
        name = "weights" if L == 1 else f"weights[{index}]"
        shape = f"({'K' if out else 'out'}, {dim})"
        matrices.append(real_array(name, matrix, (out, dim), f"a matrix {shape}, one column for each of its inputs"))
        dim = len(matrices[-1])
    if bias is not None:
        bias = real_array("bias", bias, (K,), f"of shape ({K},), one number for each class")
    given = [None] * (L - 1) if hidden_biases is None else list(hidden_biases)
    if len(given) != L - 1:
        raise ValueError(
            f"`hidden_biases` must be one per layer before the last ({L - 1}), None for a layer without; got {len(given)}."
        )
    hidden = tuple(
        None
        if one is None
        else real_array(f"hidden_biases[{index}]", one, (len(matrix),), f"of shape ({len(matrix)},)")
        for index, (one, matrix) in enumerate(zip(given, matrices, strict=False))
    )
    decays = _decays("weight_decay", weight_decay, L)
    if bias_decay is None:
        bias_decay = float(decays[-1])
    if not (isinstance(bias_decay, (int, float, np.number)) and np.isfinite(bias_decay) and bias_decay >= 0):
        raise ValueError(f"`bias_decay` must be one finite number >= 0, got {bias_decay!r}; 0 leaves biases free.")
    assumed = loss is None
    loss = CrossEntropy() if loss is None else loss
    if not isinstance(loss, Loss):
        raise ValueError(f"`loss` must be a ufm loss such as ufm.CrossEntropy(), got {loss!r}.")
    loss.check(ClassGroups(counts))
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {ACTIVATIONS}, got {activation!r}.")
    if nonnegative not in (None, True, False):
        raise ValueError(f"`nonnegative` must be True, False or None, got {nonnegative!r}.")
    return {
        "weights": tuple(matrices),
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


def _decays(name: str, value: Any, count: int) -> np.ndarray:
    try:
        decays = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        decays = np.full(0, np.nan)
    if decays.shape not in ((), (1,), (count,)):
        raise ValueError(f"`{name}` must be one number, or one for each of the {count} layers; got {value!r}.")
    bad = [float(entry) for entry in decays.ravel() if not (np.isfinite(entry) and entry > 0)]
    if bad:
        raise ValueError(
            f"`{name}` must be positive and finite, got {bad[0]!r}; without weight decay there is no minimiser, and the limit of vanishing decay is "
            "ufm.HardMargin."
        )
    return np.broadcast_to(decays, (count,)).copy()
