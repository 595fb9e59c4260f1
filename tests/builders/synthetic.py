"""Networks that are minimisers of a known model, with samples scattered about their class means."""

import functools
from typing import Any

import numpy as np

import ufm
from ufm.networks import TrainedNetwork

COUNTS = (50, 50, 20, 20)
DECAYS = {"weights": 5e-3, "features": 2e-4, "bias": 1e-2}
LABELS = np.repeat(np.arange(4), COUNTS)


def a_problem(**changes: Any) -> ufm.Problem:
    arguments: dict[str, Any] = {
        "class_counts": COUNTS,
        "feature_dim": 6,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(**DECAYS),
        "use_bias": True,
    }
    return ufm.Problem(**arguments | changes)


@functools.cache
def minimiser(nonnegative: bool = False) -> Any:
    return ufm.solve(a_problem(nonnegative_features=nonnegative))


def features_of(solution: Any, noise: float = 1e-9, seed: int = 0) -> np.ndarray:
    scatter = noise * np.random.default_rng(seed).standard_normal((LABELS.size, 6))
    return solution.features[LABELS] + (
        np.abs(scatter) if solution.problem.nonnegative_features else scatter
    )


def a_network(relu: bool = False, noise: float = 1e-9, **changes: Any) -> TrainedNetwork:
    """A network that is a minimiser, with changes of its features, labels, weights or bias."""
    solution = minimiser(relu)
    arrays = {
        "features": features_of(solution, noise),
        "labels": LABELS,
        "weights": solution.weights[0],
        "bias": solution.bias,
        "weight_decay": DECAYS["weights"],
        "bias_decay": DECAYS["bias"],
    }
    return TrainedNetwork.from_features(**arrays | changes)


def a_rotation(dim: int = 6) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(3).standard_normal((dim, dim)))[0]
