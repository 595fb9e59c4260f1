"""Networks that are minimisers of models of several tags, of contexts, and of a regression."""

import functools
from typing import Any, NamedTuple

import numpy as np

import ufm
from ufm.networks import ContextMoments, RegressionMoments, TagMoments, TrainedNetwork

DIM = 6
DECAYS = {"weights": 5e-3, "features": 2e-4, "bias": 1e-2}
KINDS = ("multi-label", "contexts", "regression")


class Samples(NamedTuple):
    """Labels, contexts (of "contexts" alone), and the row of the model of each sample."""

    labels: np.ndarray
    contexts: np.ndarray | None
    origins: np.ndarray


def _tag_rows() -> tuple[np.ndarray, np.ndarray]:
    pairs = np.eye(4)[[0, 0, 1, 2]] + np.eye(4)[[1, 2, 3, 3]]
    return np.concatenate([np.eye(4), pairs]), np.array([30, 30, 20, 20, 8, 6, 6, 10])


def _token_counts() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 9, (7, 5)) * (np.arange(5) != np.arange(7)[:, None])


def _responses() -> np.ndarray:
    generator = np.random.default_rng(2)
    return 3.0 + generator.standard_normal((60, 2)) @ np.array([[1.5, 0.6], [0.0, 0.7]])


def samples_of(kind: str) -> Samples:
    if kind == "multi-label":
        rows, counts = _tag_rows()
        origins = np.repeat(np.arange(len(rows)), counts)
        return Samples(rows[origins].astype(int), None, origins)
    if kind == "contexts":
        counts = _token_counts()
        contexts = np.repeat(np.arange(len(counts)), counts.sum(axis=1))
        tokens = np.repeat(np.tile(np.arange(5), len(counts)), counts.reshape(-1))
        return Samples(tokens, 10 * contexts, contexts)
    return Samples(_responses(), None, np.arange(60))


def a_model(kind: str, **changes: Any) -> ufm.Problem:
    targets = {
        "multi-label": lambda: ufm.Targets(*_tag_rows()),
        "contexts": lambda: ufm.Targets.contexts(_token_counts()),
        "regression": lambda: ufm.Targets.regression(_responses()),
    }[kind]()
    arguments: dict[str, Any] = {
        "targets": targets,
        "feature_dim": DIM,
        "loss": ufm.SquaredError() if kind == "regression" else ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(**DECAYS),
        "use_bias": True,
    }
    return ufm.Problem(**arguments | changes)


@functools.cache
def minimiser(kind: str) -> Any:
    return ufm.solve(a_model(kind))


def features_of(kind: str, noise: float = 0.0) -> np.ndarray:
    features = np.asarray(minimiser(kind).features)[samples_of(kind).origins]
    scatter = np.random.default_rng(3).standard_normal(features.shape)
    return features + noise * scatter


def a_network(kind: str, noise: float = 0.0, **changes: Any) -> TrainedNetwork:
    """A network that is a minimiser, with changes of its features, labels, weights or bias."""
    samples, solution = samples_of(kind), minimiser(kind)
    arguments = {
        "features": features_of(kind, noise),
        "labels": samples.labels,
        "weights": solution.weights[0],
        "bias": solution.bias,
        "weight_decay": DECAYS["weights"],
        "bias_decay": DECAYS["bias"],
        "targets": kind,
        "contexts": samples.contexts,
    }
    return TrainedNetwork.from_features(**arguments | changes)


def moments_of(kind: str, noise: float = 0.0) -> Any:
    """The accumulator of the network's features, from two batches."""
    samples, features = samples_of(kind), features_of(kind, noise)
    moments: Any = {
        "multi-label": lambda: TagMoments(4, DIM),
        "contexts": lambda: ContextMoments(DIM),
        "regression": lambda: RegressionMoments(DIM, 2),
    }[kind]()
    for part in (slice(0, 25), slice(25, None)):
        more = () if samples.contexts is None else (samples.contexts[part],)
        moments.update(features[part], samples.labels[part], *more)
    return moments
