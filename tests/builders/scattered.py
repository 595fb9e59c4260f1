"""Samples scattered about class means, in any batches, and what measurements must agree on."""

import itertools
from typing import Any

import numpy as np

from ufm.metrics import NeuralCollapse, neural_collapse
from ufm.networks import ClassMoments

K, D = 4, 6


class Data:
    """Noisy class means and a classifier, with features in any number of batches."""

    def __init__(
        self,
        counts: tuple[int, ...] = (40, 9, 3, 2),
        noise: Any = 0.5,
        offset: float = 1.0,
        dim: int = D,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        self.K, self.dim = len(counts), dim
        self.labels = rng.permutation(np.repeat(np.arange(self.K), counts))
        means = rng.normal(size=(self.K, dim))
        self.features = (
            offset + means[self.labels] + noise * rng.normal(size=(len(self.labels), dim))
        )
        self.weights, self.bias = (
            means + 0.3 * rng.normal(size=means.shape),
            0.5 * rng.normal(size=self.K),
        )
        self.classifier = {"weights": self.weights, "bias": self.bias}
        self.sample_weights: np.ndarray | None = None

    def whole(self, **options: Any) -> NeuralCollapse:
        return neural_collapse(
            self.features,
            self.labels,
            **self.classifier,
            sample_weights=self.sample_weights,
            **options,
        )

    def parts(self, cuts: list[int]) -> list[tuple[Any, ...]]:
        """The batches between some cuts."""
        ends = [0, *sorted(cuts), len(self.labels)]
        arrays = [
            self.features,
            self.labels,
            *([] if self.sample_weights is None else [self.sample_weights]),
        ]
        return [
            tuple(array[start:end] for array in arrays) for start, end in itertools.pairwise(ends)
        ]

    def moments(self, cuts: tuple[int, ...] = (), **options: Any) -> ClassMoments:
        return gathered(self.parts(list(cuts)), self.K, self.dim, **options)


def gathered(
    batches: list[tuple[Any, ...]], num_classes: int = K, dim: int = D, **options: Any
) -> ClassMoments:
    moments = ClassMoments(num_classes, dim, **options)
    for batch in batches:
        moments.update(*batch)
    return moments


def assert_same(found: NeuralCollapse, expected: NeuralCollapse, tolerance: float = 1e-10) -> None:
    ours, theirs = found.to_dict(), expected.to_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name != "centre":
            np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=1e-13, err_msg=name)
    for group, name in (("nc1", "cdnv_pairs"), ("nc2_features", "cosines")):
        np.testing.assert_allclose(
            getattr(getattr(found, group), name),
            getattr(getattr(expected, group), name),
            rtol=tolerance,
            atol=1e-13,
        )


def assert_one_pass_agrees(
    one: NeuralCollapse, whole: NeuralCollapse, tolerance: float = 1e-10
) -> None:
    """What one pass gives is right, and what it cannot give is None."""
    assert one.nc4 is None
    assert one.nc1.pinv_per_class is None
    expected = whole.to_dict()
    for name, value in one.to_dict().items():
        if name != "centre":
            np.testing.assert_allclose(
                value, expected[name], rtol=tolerance, atol=1e-13, err_msg=name
            )
    missing = {"nc1_pinv_per_class", *(name for name in expected if name.startswith("nc4"))}
    assert expected.keys() - one.to_dict().keys() == missing
