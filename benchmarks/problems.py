"""The problems that every method solves: one-layer models without bias, in plain numbers."""

from typing import Literal, NamedTuple

import numpy as np

import ufm

__all__ = ["PROBLEMS", "QUICK", "Setting", "long_tail", "setting"]


class Setting(NamedTuple):
    """A one-layer unconstrained features model.

    name: how the command line calls it. counts: samples per class, whole numbers. dim: feature
    dimension d. loss: "ce" (cross-entropy) or "mse" (half the squared error). weights, features:
    decays of halved squared norms, the features' summed over all samples. about: one line for the
    table.
    """

    name: str
    counts: tuple[int, ...]
    dim: int
    loss: Literal["ce", "mse"]
    weights: float
    features: float
    about: str

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def tau(self) -> float:
        """sqrt(lambda_W lambda_H), what multiplies the nuclear norm in the convex form."""
        return float(np.sqrt(self.weights * self.features))

    @property
    def labels(self) -> np.ndarray:
        """The class of every sample, (N,)."""
        return np.repeat(np.arange(self.num_classes), self.counts)

    def problem(self) -> ufm.Problem:
        """Return the same problem as a `ufm.Problem`."""
        return ufm.Problem(
            class_counts=self.counts,
            feature_dim=self.dim,
            loss=ufm.CrossEntropy() if self.loss == "ce" else ufm.SquaredError(),
            regularizer=ufm.WeightDecay(weights=self.weights, features=self.features),
        )


def long_tail(num_classes: int) -> Setting:
    """Return a long tail from 1280 samples to 5 (the shape of ImageNet-LT), d = K."""
    counts = np.round(1280 * (5 / 1280) ** np.linspace(0, 1, num_classes)).astype(int)
    return Setting(
        name=f"tail-{num_classes}",
        counts=tuple(counts.tolist()),
        dim=num_classes,
        loss="ce",
        weights=5e-4,
        features=5e-6,
        about=f"CE, K={num_classes} long tail 1280..5, d={num_classes}, 5e-4 / 5e-6",
    )


PROBLEMS = {
    one.name: one
    for one in (
        Setting("ce-4", (50,) * 4, 20, "ce", 5e-3, 1e-5, "CE, K=4, n=50, d=20, 5e-3 / 1e-5"),
        Setting("mse-4", (50,) * 4, 20, "mse", 5e-3, 1e-5, "MSE, K=4, n=50, d=20, 5e-3 / 1e-5"),
        Setting("ce-10", (500,) * 10, 64, "ce", 5e-4, 5e-4, "CE, K=10, n=500, d=64, 5e-4 / 5e-4"),
        Setting(
            "ce-10-weak", (500,) * 10, 64, "ce", 5e-4, 5e-6, "CE, K=10, n=500, d=64, 5e-4 / 5e-6"
        ),
        Setting(
            "step",
            (500,) * 5 + (5,) * 5,
            20,
            "ce",
            5e-3,
            1e-5,
            "CE, 5x500 + 5x5, d=20, 5e-3 / 1e-5",
        ),
        long_tail(100),
    )
}
QUICK = ("mse-4", "step")


def setting(name: str) -> Setting:
    """Return a problem by name: one of `PROBLEMS`, or `tail-K`, the long tail of K classes.

    Raises:
        ValueError: for an unknown name.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    kind, _, size = name.rpartition("-")
    if kind == "tail" and size.isdigit() and int(size) >= 2:
        return long_tail(int(size))
    raise ValueError(
        f"unknown problem {name!r}; choose from {', '.join(PROBLEMS)}, or tail-K with K >= 2"
    )
