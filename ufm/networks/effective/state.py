"""The numbers that are compared between a network and a minimiser.

They are invariant under rotations of feature space. The shift that the loss does not depend on is
removed from bias and logits.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm import geometry
from ufm._support import as_dict, double_precision, plain, printed
from ufm.networks.effective.target_rows import TargetKind
from ufm.networks.effective.trained_network import TrainedNetwork, loss_of_classes
from ufm.problems import Problem, class_samples
from ufm.solving import Solution

__all__ = [
    "TRACES",
    "LossTerms",
    "State",
    "measured_state",
    "predicted_state",
]


TRACES = 1e-9  # share of a typical norm below which a vector is zero up to rounding


@printed
class LossTerms(NamedTuple):
    """The objective, in parts that sum to `total`, with their factors 1/N and 1/2.

    Attributes:
        data: The mean loss.
        data_at_means: The loss at the class means instead. It is not a part of the sum.
        weights: Penalties of the layers, (L,).
        features: The penalty of all samples' features.
        bias: The penalty of the biases.
    """

    data: float
    data_at_means: float
    weights: Float[np.ndarray, " L"]
    features: float
    bias: float

    @property
    def total(self) -> float:
        """The objective."""
        return self.data + float(np.sum(self.weights)) + self.features + self.bias


@printed
class State(NamedTuple):
    """A point of the model, measured or predicted.

    Class means are those of what enters the last layer. For targets beyond classes, the means are
    those of R rows in their place (R = K for classes).

    Attributes:
        mean_norms: Norms of the class means, (R,).
        weight_norms: Norms of the rows of W_L, (K,).
        mean_gram: Inner products of the class means, (R, R).
        weight_gram: Inner products of the rows of W_L, (K, K).
        mean_cosines: Cosines of the class means, (R, R).
        centred_cosines: Cosines of the class means less their mean, (R, R).
        weight_cosines: Cosines of the rows of W_L, (K, K).
        alignment: cos(W^T y_r, mu_r), (R,); for classes, cos(w_k, mu_k).
        logits: Mean logits, (R, K), row k of class k; less the mean of each row where the loss does
            not depend on it.
        margins: The logit of the own class less the largest other, (K,). In general the least logit
            where a row's target is positive less the largest elsewhere, of rows that have both;
            empty for a regression.
        bias: The bias, (K,), less its mean where the loss does not depend on it; zeros without one.
        weight_spectrum: Singular values of W_L, (min(K, D),).
        mean_spectrum: Singular values of the class means, (min(R, D),).
        loss: The objective in parts.
        collapse: NC1 to NC4, or the collapse of other targets. Where only moments of a network are
            known, NC4 is None, or, without moments of the last layer's input, NC1 and NC4 are those
            of its class means.
    """

    mean_norms: Float[np.ndarray, " R"]
    weight_norms: Float[np.ndarray, " K"]
    mean_gram: Float[np.ndarray, "R R"]
    weight_gram: Float[np.ndarray, "K K"]
    mean_cosines: Float[np.ndarray, "R R"]
    centred_cosines: Float[np.ndarray, "R R"]
    weight_cosines: Float[np.ndarray, "K K"]
    alignment: Float[np.ndarray, " R"]
    logits: Float[np.ndarray, "R K"]
    margins: Float[np.ndarray, " M"]
    bias: Float[np.ndarray, " K"]
    weight_spectrum: Float[np.ndarray, " r"]
    mean_spectrum: Float[np.ndarray, " q"]
    loss: LossTerms
    collapse: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON; the (K, K) matrices stay attributes."""
        vectors = {
            name: value
            for name, value in self._asdict().items()
            if isinstance(value, np.ndarray) and value.ndim == 1
        }
        return plain(vectors) | {
            "loss": as_dict(self.loss) | {"total": self.loss.total},
            "collapse": self.collapse.to_dict(),
        }


def measured_state(trained: TrainedNetwork, problem: Problem) -> State:
    """Return the state of a network, with the penalties of its effective problem."""
    last, first = trained.inputs[-1], trained.inputs[0]
    counts, N = trained.row_counts, trained.num_samples
    at_means = float(counts @ loss_of_classes(trained)) / N
    squares = trained.row_weights @ (np.sum(first.means**2, axis=1) + first.variances)
    biases = [bias for bias in (*trained.hidden_biases, trained.bias) if bias is not None]
    regularizer: Any = problem.regularizer
    loss = LossTerms(
        data=at_means if trained.samples is None else float(counts @ trained.samples.loss) / N,
        data_at_means=at_means,
        weights=_penalties(trained.weight_decay, trained.weights),
        features=0.5 * float(regularizer.features * squares),
        bias=0.5 * trained.bias_decay * float(sum(np.sum(bias**2) for bias in biases)),
    )
    kind, W = trained.of_kind, trained.weights[-1]
    state = _state(problem, kind, last.means, W, trained.bias, trained.logits, loss)
    if trained.collapse is None:
        return state
    return state._replace(collapse=kind.joined(state.collapse, trained.collapse))


def predicted_state(
    problem: Problem, kind: TargetKind, solution: Solution, measured: State
) -> State:
    """Return the state of a minimiser.

    Class means and weights are zero where they are rounding next to those of `measured`.
    """
    costs = np.asarray(problem.row_weights, np.float64)
    bias = solution.bias
    regularizer: Any = problem.regularizer
    with double_precision():
        samples = class_samples(problem, jnp.float64)
        data = float(problem.data_term(jnp.asarray(solution.logits), samples))
    features = np.asarray(solution.features)
    loss = LossTerms(
        data=data,
        data_at_means=data,
        weights=_penalties(np.asarray(regularizer.per_layer(problem.num_layers)), solution.weights),
        features=0.5 * float(regularizer.features * (costs @ np.sum(features**2, axis=1))),
        bias=0.0
        if bias is None
        else 0.5 * float(regularizer.bias) * float(np.sum(np.asarray(bias) ** 2)),
    )
    return _state(
        problem,
        kind,
        _without_traces(np.asarray(solution.class_features), measured.mean_norms),
        _without_traces(np.asarray(solution.weights[-1]), measured.weight_norms),
        None if bias is None else np.asarray(bias),
        np.asarray(solution.logits),
        loss,
    )


def _without_traces(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return rows, with zeros for those that are no more than a solver's rounding.

    `norms` are the network's norms, relative to which rows are large or small.
    """
    return np.where(np.linalg.norm(rows, axis=1, keepdims=True) > TRACES * np.max(norms), rows, 0.0)


def _penalties(decays: np.ndarray, weights: Any) -> np.ndarray:
    return np.array(
        [
            0.5 * decay * float(np.sum(np.asarray(W) ** 2))
            for decay, W in zip(decays, weights, strict=True)
        ]
    )


def _state(
    problem: Problem,
    kind: TargetKind,
    means: np.ndarray,
    W: np.ndarray,
    bias: np.ndarray | None,
    logits: np.ndarray,
    loss: LossTerms,
) -> State:
    offsets = np.zeros(len(W)) if bias is None else bias
    targets = np.asarray(problem.target_rows(np.float64, np))
    if problem.loss.shift_invariant:
        offsets, logits = (
            offsets - np.mean(offsets),
            logits - np.mean(logits, axis=1, keepdims=True),
        )
    return State(
        mean_norms=np.asarray(geometry.vector_norms(means)),
        weight_norms=np.asarray(geometry.vector_norms(W)),
        mean_gram=means @ means.T,
        weight_gram=W @ W.T,
        mean_cosines=np.asarray(geometry.cosines(means)),
        centred_cosines=np.asarray(geometry.cosines(means - means.mean(axis=0))),
        weight_cosines=np.asarray(geometry.cosines(W)),
        alignment=np.sum(
            geometry.normalise_rows(targets @ W) * geometry.normalise_rows(means), axis=1
        ),
        logits=logits,
        margins=_margins(logits, targets) if kind.named_rows else np.zeros(0),
        bias=offsets,
        weight_spectrum=np.linalg.svd(W, compute_uv=False),
        mean_spectrum=np.linalg.svd(means, compute_uv=False),
        loss=loss,
        collapse=kind.collapse(problem, means, W, bias),
    )


def _margins(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the least logit of a positive target less the largest other, of rows with both."""
    own = targets > 0
    least = np.min(np.where(own, logits, np.inf), axis=1)
    margins = least - np.max(np.where(own, -np.inf, logits), axis=1)
    return margins[np.any(own, axis=1) & ~np.all(own, axis=1)]
