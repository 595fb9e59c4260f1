r"""`effective_model`: the unconstrained features model of a trained network, and its balance.

The model puts (lambda_H/2) sum_i ||h_i||^2 in the place of everything before the features. Its
feature decay follows from the weight decay, because every critical point of the model is balanced,

    lambda_W W_1^T W_1 = lambda_H sum_i h_i h_i^T =: lambda_H S,

for any loss, targets, class sizes and biases (where the penalty counts every context once, so does
the sum). To see this, multiply the condition on W_1 by W_1^T and that
on h_i by h_i^T, and compare (Zhu et al. 2021, for the traces). Where features left a ReLU, h >= 0,
the multipliers of the constraint vanish where h does not, and the equation holds on the diagonal,
unit by unit. So the traces give

    lambda_H = lambda_W ||W_1||^2 / sum_i ||h_i||^2,

and least squares over the matrices (or diagonals) gives another value. What is left of the equation
says how well any model of this kind describes the network. Where the two values differ, the network
is not balanced.

Between layers the same holds without any model: at a critical point of any network whose activation
is positively homogeneous,

    lambda_{l+1} ||W_{l+1}||^2 = lambda_l ||W_l||^2 + lambda_{b_l} ||b_l||^2.

Both sides are minus the inner product of a layer's output with the gradient by it. The law holds
for every single unit too, with a column of W_{l+1} and a row of W_l. The bias of layer l enters
with its own decay, and not at all where it has none; that of layer l + 1 does not enter. Batch
normalisation and skip connections in between break the law.

References:
    - Zhu et al. (NeurIPS 2021): the balance of the two factors.
    - Du, Hu and Lee (NeurIPS 2018): homogeneous layers.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, as_dict, checked_positive, printed
from ufm.networks.effective.trained_network import TrainedNetwork, last_layer_gradient
from ufm.problems import Problem, WeightDecay

__all__ = [
    "Balance",
    "EffectiveModel",
    "effective_model",
    "is_stationary",
]


NOT_STATIONARY = 0.3  # relative difference of the implied weight decay that is worth a note


@printed
class Balance(NamedTuple):
    """How far a network is from the balance that every critical point of the model has.

    Attributes:
        feature_decay: lambda_H from the traces.
        least_squares: lambda_H from all entries of the matrices, or of their diagonals.
        residual: ||lambda_W W^T W - lambda_H S|| over the larger of the two norms, with lambda_H
            from the traces; of the diagonals where `by` is "units".
        cosine: The cosine between W^T W and S, independent of the factor.
        by: "matrix", or "units" where features are non-negative.
        layers: lambda_{l+1} ||W_{l+1}||^2 over lambda_l ||W_l||^2 + lambda_b ||b_l||^2, less one,
            (L - 1,).
        units: The same unit by unit, (L - 1,): the norm of the difference over the larger norm.
        stationarity: The norm of the objective's gradient by the last layer's weights, over that of
            their penalty's gradient. It is zero at a critical point of the network, of any
            architecture.
        implied_weight_decay: The weight decay of the last layer at which its weights would be
            critical in their own direction.
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
        return as_dict(self)


@printed
class EffectiveModel(NamedTuple):
    """The unconstrained features model of a network.

    Attributes:
        problem: The model. Its feature decay comes from `balance` unless it was given.
        balance: How far the network is from balance.
        notes: What the model leaves out, and what it rests on.
    """

    problem: Problem
    balance: Balance
    notes: tuple[str, ...]


def effective_model(
    trained: TrainedNetwork, *, feature_decay: float | None = None
) -> EffectiveModel:
    """Return the unconstrained features model of a trained network.

    Args:
        trained: The network.
        feature_decay: lambda_H; from the traces of the balance by default.

    Raises:
        ValueError: The feature decay is not positive; or none is given, and the weights of the
            first layer or the features are all zero.
    """
    balance = balance_of(trained)
    decay = (
        balance.feature_decay
        if feature_decay is None
        else checked_positive("feature_decay", feature_decay)
    )
    if feature_decay is None and not (np.isfinite(decay) and decay > 0):
        what = "weights of the first layer" if not np.any(trained.weights[0]) else "features"
        raise ArgumentError(
            "feature_decay",
            f"cannot be estimated: the {what} are all zero, so everything has collapsed; give "
            "`feature_decay`",
        )
    hidden = tuple(matrix.shape[0] for matrix in trained.weights[:-1])
    weights: Any = trained.weight_decay if hidden else trained.weight_decay[0]
    penalties: tuple[Any, Any] = decay, trained.bias_decay if trained.bias is not None else 0.0
    stated = trained.outline
    problem = Problem(
        class_counts=stated.class_counts if stated.one_hot else None,
        targets=stated.targets,
        feature_dim=stated.feature_dim,
        loss=stated.loss,
        regularizer=WeightDecay(weights, *penalties),
        use_bias=trained.bias is not None,
        hidden_dims=hidden,
        activation=trained.activation if hidden else "linear",
        nonnegative_features=trained.nonnegative,
    )
    return EffectiveModel(
        problem, balance, tuple(_notes(trained, balance, feature_decay is not None))
    )


def _notes(trained: TrainedNetwork, balance: Balance, given: bool) -> list[str]:
    notes = [
        "feature decay: given"
        if given
        else "feature decay: fitted to this network by the balance of its first layer, one "
        "number; the penalties of that layer and of the features "
        "are equal by construction"
    ]
    signs = "h >= 0, as after a ReLU" if trained.nonnegative else "signed"
    notes.append(f"features: {signs}, not centred")
    if trained.nonnegative and trained.negative_share > 0:
        notes.append(
            f"the features were said to be non-negative, but {100 * trained.negative_share:.2g} % "
            "of their entries are negative: the model does not "
            "have these"
        )
    if trained.bias is not None:
        notes.append(
            "bias: free"
            if trained.bias_decay == 0
            else f"bias: penalised with {trained.bias_decay:g}"
        )
    if any(bias is not None for bias in trained.hidden_biases):
        notes.append(
            "the model has no bias before the last layer; the network has, so its objective may "
            "lie below the model's minimum"
        )
    if not is_stationary(trained, balance):
        notes.append(
            f"the last layer is not stationary at this weight decay (its loss implies "
            f"{balance.implied_weight_decay:.3g}): another or "
            "decoupled weight decay, another loss, or a training that has not come to its end"
        )
    if not trained.of_kind.named_rows:
        notes.append(
            "targets and features enter by their moments: whether features are non-negative is not "
            "in the model"
        )
    if trained.inputs[0].within is None and np.any(trained.inputs[0].variances):
        notes.append(
            "the directions of the variability within rows are not known: the balance misses them"
        )
    if trained.samples is None:
        notes.append("only moments of the features are known: losses are those at class means")
    return notes


def is_stationary(trained: TrainedNetwork, balance: Balance) -> bool:
    """Return whether the last layer implies the network's weight decay, up to `NOT_STATIONARY`."""
    return bool(abs(balance.implied_weight_decay / trained.weight_decay[-1] - 1) <= NOT_STATIONARY)


def balance_of(trained: TrainedNetwork) -> Balance:
    decays = trained.weight_decay
    W, inputs = trained.weights[0], trained.inputs[0]
    costs = trained.row_weights
    weighted = np.sqrt(costs)[:, None] * inputs.means
    within = np.zeros((W.shape[1],) * 2) if inputs.within is None else np.sum(costs) * inputs.within
    left, right = decays[0] * (W.T @ W), weighted.T @ weighted + within
    total = float(np.sum(weighted**2) + costs @ inputs.variances)
    decay = float(np.trace(left)) / total if total > 0 else np.inf
    by: Literal["matrix", "units"] = "units" if trained.nonnegative else "matrix"
    if by == "units":
        left, right = np.diagonal(left), np.diagonal(right)
    squares = float(np.sum(right**2))
    lengths = float(np.linalg.norm(left)) * np.sqrt(squares)
    gradient, _ = last_layer_gradient(trained)
    last = decays[-1] * trained.weights[-1]
    size = float(np.linalg.norm(last))
    between = np.array(
        [_layer_balance(trained, layer) for layer in range(len(decays) - 1)]
    ).reshape(-1, 2)
    return Balance(
        feature_decay=decay,
        least_squares=float(np.sum(left * right)) / squares if squares > 0 else np.inf,
        residual=_relative(left, decay * right) if np.isfinite(decay) else 1.0,
        cosine=float(np.sum(left * right)) / lengths if lengths > 0 else np.nan,
        by=by,
        layers=between[:, 0],
        units=between[:, 1],
        stationarity=float(np.linalg.norm(last + gradient)) / size if size > 0 else np.nan,
        implied_weight_decay=-float(np.sum(gradient * trained.weights[-1]))
        / float(np.sum(trained.weights[-1] ** 2))
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
