"""Critical points in closed form, and the objective of chains in plain NumPy."""

import itertools
from typing import Any

import numpy as np
import scipy.linalg

import ufm
from ufm.problems import Parameters, Problem

K, N_PER_CLASS, D = 4, 5.0, 6
LW, LH = 0.02, 0.004


def linear(**changes: Any) -> Problem:
    fields = {
        "class_counts": (N_PER_CLASS,) * K,
        "feature_dim": D,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=LW, features=LH),
    }
    return Problem(**(fields | changes))


def frame(dimension: int = D) -> np.ndarray:
    """(K, dimension) rows of a simplex ETF: the Gram matrix is I - J / K."""
    return np.pad(scipy.linalg.null_space(np.ones((1, K))), ((0, 0), (0, dimension - K + 1)))


def simplex_minimiser() -> Parameters:
    """The global minimiser of `linear()`: balanced cross-entropy, with the scale in closed form.

    Zhu et al. (2021).
    """
    tau = np.sqrt(LW * LH)
    M = np.log(1 / (tau * np.sqrt(N_PER_CLASS)) - (K - 1))
    W = np.sqrt(np.sqrt(N_PER_CLASS * LH / LW) * M) * frame()
    H = np.sqrt(np.sqrt(LW / (N_PER_CLASS * LH)) * M) * frame()
    return Parameters((W,), H, None)


def squared_error_point(modes: tuple[int, ...]) -> Parameters:
    """A critical point of `linear(loss=SquaredError())` (Tirer & Bruna 2022).

    It has all modes of the orthogonal frame, or some of them.
    """
    c = K * np.sqrt(N_PER_CLASS * LH * LW)
    kept = np.pad(np.diag(np.isin(np.arange(K), modes).astype(float)), ((0, 0), (0, D - K)))
    W = np.sqrt(np.sqrt(N_PER_CLASS * LH / LW) * (1 - c)) * kept
    H = np.sqrt(np.sqrt(LW / (N_PER_CLASS * LH)) * (1 - c)) * kept
    return Parameters((W,), H, None)


def random_point(problem: Problem, seed: int = 0, scale: float = 1.0) -> Parameters:
    draws = np.random.default_rng(seed)
    dims = problem.layer_dims
    weights = tuple(scale * draws.normal(size=(b, a)) for a, b in itertools.pairwise(dims))
    features = scale * draws.normal(size=(problem.num_classes, dims[0]))
    features = np.abs(features) if problem.nonnegative_features else features
    return Parameters(
        weights, features, draws.normal(size=problem.num_classes) if problem.use_bias else None
    )


def plain_objective(problem: Problem, parameters: Parameters) -> float:
    """The objective at one feature row per class, with weight decay."""
    counts, decay = np.asarray(problem.class_counts), problem.regularizer
    hidden = parameters.features
    for matrix in parameters.weights[:-1]:
        hidden = hidden @ matrix.T
        hidden = np.maximum(hidden, 0) if problem.activation == "relu" else hidden
    z = hidden @ parameters.weights[-1].T + (0 if parameters.bias is None else parameters.bias)
    if isinstance(problem.loss, ufm.LogitAdjusted):
        z = z + problem.loss.offsets
    if not isinstance(problem.loss, ufm.SquaredError):
        losses = np.logaddexp.reduce(z, axis=1) - np.diagonal(z)
    else:
        losses = 0.5 * np.sum((z - np.eye(len(z))) ** 2, axis=1)
    per_layer = decay.per_layer(problem.num_layers)
    value = counts @ losses / counts.sum()
    value += sum(
        rate / 2 * np.sum(W**2) for rate, W in zip(per_layer, parameters.weights, strict=True)
    )
    value += decay.features / 2 * counts @ np.sum(parameters.features**2, axis=1)
    return float(
        value + (0 if parameters.bias is None else decay.bias / 2 * np.sum(parameters.bias**2))
    )


def rotated(parameters: Parameters, seed: int = 0) -> Parameters:
    d = parameters.features.shape[1]
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return Parameters(
        (parameters.weights[0] @ Q, *parameters.weights[1:]),
        parameters.features @ Q,
        parameters.bias,
    )


def shifted(parameters: Parameters, step: Any, length: float = 1.0) -> Parameters:
    bias = None if parameters.bias is None else parameters.bias + length * step.bias
    weights = tuple(W + length * dW for W, dW in zip(parameters.weights, step.weights, strict=True))
    return Parameters(weights, parameters.features + length * step.features, bias)
