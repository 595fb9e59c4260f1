"""Whole networks measured in one pass or two, of one layer or of several."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scattered import Data, assert_one_pass_agrees, assert_same
from tables import for_each

import ufm
from ufm import geometry, networks
from ufm.metrics import neural_collapse


def test_measure_takes_whatever_gives_the_batches_again() -> None:
    data = Data()
    whole, batches = data.whole(), data.parts([10, 30])

    def fresh() -> Iterator[tuple[Any, ...]]:
        return iter(batches)

    for source in (batches, fresh, tuple(batches)):
        result = networks.measure(source, **data.classifier)
        assert_same(result.collapse, whole)
        assert result.groups is result.loss is result.loss_per_class is None
    assert_one_pass_agrees(
        networks.measure(iter(batches), **data.classifier, passes=1).collapse, whole
    )
    scattered = networks.measure(batches, scatter=True)
    assert_one_pass_agrees(scattered.moments.measure(**data.classifier), whole)
    assert str(scattered) == str(scattered.collapse)


def test_the_number_of_classes_is_found() -> None:
    data = Data(counts=(3, 4, 5, 2))
    order = np.argsort(data.labels)
    data.features, data.labels = data.features[order], data.labels[order]
    data.classifier = {}
    assert_same(networks.measure(data.parts([1, 2, 3, 8])).collapse, data.whole())


@pytest.mark.parametrize(
    ("num_classes", "passes"),
    [
        pytest.param(8_000, 1, marks=pytest.mark.slow),
        pytest.param(8_000, 2, marks=pytest.mark.nightly),
        pytest.param(21_841, 1, marks=pytest.mark.nightly),
        pytest.param(21_841, 2, marks=pytest.mark.nightly),
        pytest.param(50_000, 1, marks=pytest.mark.nightly),
    ],
)
def test_large_vocabularies_take_no_matrix_over_pairs_of_classes(
    num_classes: int, passes: Any
) -> None:
    K, d = num_classes, 32
    means = geometry.normalise_rows(np.random.default_rng(0).normal(size=(K, d)))
    seen = np.flatnonzero(np.arange(K) % 10)  # a tenth of the classes has no samples
    labels = np.random.default_rng(1).permutation(np.repeat(seen, 2))

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        noise = np.random.default_rng(2)
        for start in range(0, labels.size, 4096):
            y = labels[start : start + 4096]
            yield (means[y] + 0.01 * noise.normal(size=(y.size, d))).astype(np.float32), y

    tracemalloc.start()
    found = networks.measure(batches, weights=means, passes=passes, absent="leave out").collapse
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (20 * K * d + d**2) + 2**26  # and tiles
    assert peak < 8 * K**2 / 4
    np.testing.assert_array_equal(found.classes, seen)
    np.testing.assert_array_equal(found.absent, np.arange(0, K, 10))
    assert f"without {-(-K // 10)} classes that have no samples: 0, 10, 20, 30" in str(found)
    assert 0 < found.nc1.cdnv < 1e-3
    assert (found.nc4 is None) == (passes == 1)
    if passes == 2:
        assert (found.nc4.accuracy, found.nc4.mismatch) == (1, 0)


def test_layers_are_measured_together() -> None:
    data, other = Data(), Data(dim=3, seed=1)
    other.labels = data.labels
    batches = [
        ({"hidden": first[0], "last": second[0]}, second[1])
        for first, second in zip(other.parts([10, 30]), data.parts([10, 30]), strict=True)
    ]
    names = {"weights": {"last": data.weights}, "bias": {"last": data.bias}}
    found = networks.measure_layers(batches, **names, loss=ufm.CrossEntropy(), groups=[0, 0, 1, 1])
    assert list(found) == ["hidden", "last"]
    assert_same(found["last"].collapse, data.whole())
    assert_same(found["hidden"].collapse, neural_collapse(other.features, other.labels))
    assert found["hidden"].loss is None
    assert found["last"].loss is not None
    assert found["hidden"].groups is not None
    once = networks.measure_layers(iter(batches), passes=1)
    assert_one_pass_agrees(once["hidden"].collapse, neural_collapse(other.features, other.labels))
    with pytest.raises(
        ValueError, match=r"must be of the layers \['hidden', 'last'\], got 'first'"
    ):
        networks.measure_layers(batches, weights={"first": data.weights})
    with pytest.raises(ValueError, match="must hold the same layers always"):
        networks.measure_layers([*batches, ({"last": data.features}, data.labels)])
    with pytest.raises(ValueError, match="`measure_layers` takes a mapping"):
        networks.measure(batches)
    with pytest.raises(ValueError, match="`measure` takes the features of one layer"):
        networks.measure_layers(data.parts([10]))


@for_each(
    ("call", "message"),
    [
        (
            lambda d: networks.measure(iter(d.parts([3]))),
            "iterable twice, got list_iterator.* `passes=1`",
        ),
        (lambda d: networks.measure(d.parts([3]), passes=3), "`passes` must be 1 or 2, got 3"),
        (lambda d: networks.measure(5), "`batches` must be an iterable of .*, got int"),
        (lambda d: networks.measure([]), "at least one batch, got none"),
        (lambda d: networks.measure([d.features]), "must hold tuples .* got ndarray"),
        (
            lambda d: networks.measure([(d.features,)]),
            "`batches` must hold batches with the entry 1, got one with 1 entries",
        ),
        (lambda d: networks.measure([(d.features[:, 0], d.labels)]), r"got shape \(54,\)"),
        (lambda d: networks.measure(d.parts([3]), 5), "got none of class 4"),
        (lambda d: networks.measure(d.parts([3]), 3), "in 0, ..., 2 for 3 classes, got 3"),
        (
            lambda d: networks.measure(d.parts([3]), groups=[0, 1]),
            "`groups` must be a ClassGroups of 4 classes",
        ),
        (
            lambda d: networks.measure(d.parts([3]), groups=[0, 2, 2, 0]),
            r"numbered 0, 1, .* got \[0, 2\]",
        ),
    ],
)
def test_misuse_of_measure_is_named(call: Callable[[Data], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Data())
