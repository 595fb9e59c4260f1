"""Batches of loaders: what is read from them, and what is not."""

from typing import Any

import numpy as np
import pytest
from scattered import assert_same
from tables import for_each

import ufm
from ufm import networks
from ufm.metrics import neural_collapse
from ufm.networks.measure.batches import Entries

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
FEATURES = np.eye(3, 5)[LABELS] + 0.3 * RNG.normal(size=(60, 5))
WEIGHTS = RNG.normal(size=(3, 5))
INDEX = RNG.permutation(60)


def test_a_third_entry_is_not_read_for_weights_unless_it_is_named() -> None:
    batches = [(FEATURES[:25], LABELS[:25], INDEX[:25]), (FEATURES[25:], LABELS[25:], INDEX[25:])]
    plain, weighted = networks.measure(batches), networks.measure(batches, sample_weights=2)
    assert_same(plain.collapse, neural_collapse(FEATURES, LABELS))
    assert_same(weighted.collapse, neural_collapse(FEATURES, LABELS, sample_weights=INDEX))
    assert abs(weighted.collapse.nc1.pinv - plain.collapse.nc1.pinv) > 1e-3
    layers = networks.measure_layers([({"a": FEATURES}, LABELS, INDEX)], sample_weights=2)
    assert_same(layers["a"].collapse, weighted.collapse)
    with pytest.raises(
        ValueError, match=r"`batches` must hold batches with the entry 3, got one with 3 entries"
    ):
        networks.measure(batches, sample_weights=3)


def test_labels_of_positions_and_an_ignored_label() -> None:
    features, labels = FEATURES.reshape(6, 10, 5), LABELS.reshape(6, 10).copy()
    labels[:, 7:] = -100
    kept = labels.ravel() != -100
    found = networks.measure(
        [(features[:2], labels[:2]), (features[2:], labels[2:])], weights=WEIGHTS, ignore_index=-100
    )
    assert_same(found.collapse, neural_collapse(FEATURES[kept], LABELS[kept], WEIGHTS))
    # masks that are weights
    mask = (labels != -100).astype(float)
    weighted = networks.measure(
        [(features, np.abs(labels) % 3, mask)], sample_weights=2, weights=WEIGHTS
    )
    expected = neural_collapse(
        FEATURES, (np.abs(labels) % 3).ravel(), WEIGHTS, sample_weights=mask.ravel()
    )
    np.testing.assert_allclose(weighted.collapse.nc1.pinv, expected.nc1.pinv, rtol=1e-10)
    with pytest.raises(
        ValueError, match=r"`labels` must not be negative, got -100 .*`ignore_index`"
    ):
        networks.measure([(features, labels)])
    with pytest.raises(
        ValueError,
        match=r"`labels` must be of shape \(60,\), one for each row .* got shape \(3, 20\)",
    ):
        networks.measure([(FEATURES, labels.reshape(3, 20))], ignore_index=-100)
    nothing = networks.measure(
        [(features, labels), (features, np.full((6, 10), -100))], ignore_index=-100
    )
    assert nothing.collapse.class_counts.sum() == 42


COLUMN = LABELS[:, None]
HIDDEN = np.ma.masked_equal(LABELS, 2)
SPOILT = np.ma.masked_array(FEATURES, mask=np.arange(300).reshape(60, 5) == 7)
HALF = np.ma.masked_array(np.ones(60), mask=LABELS == 1)
SQUEEZE = r"`labels` must .* got shape \(60, 1\); drop the second axis with `labels.squeeze\(1\)`"
MASKED = "must not be masked, got a masked array with"


@for_each(
    ("batch", "message"),
    [
        ((FEATURES, COLUMN, None), SQUEEZE),
        ((FEATURES, np.where(COLUMN == 2, -100, COLUMN), None), SQUEEZE),
        ((FEATURES, HIDDEN, None), f"`labels` {MASKED} 20 values"),
        ((FEATURES.reshape(6, 10, 5), HIDDEN.reshape(6, 10), None), f"`labels` {MASKED} 20"),
        ((SPOILT, LABELS, None), f"`features` {MASKED} 1 values"),
        ((SPOILT, np.where(LABELS == 2, -100, LABELS), None), f"`features` {MASKED} 1 values"),
        ((SPOILT.reshape(6, 10, 5), LABELS.reshape(6, 10), None), f"`features` {MASKED} 1"),
        ((FEATURES, LABELS, HALF), f"`sample_weights` {MASKED} 20 values"),
    ],
)
@for_each("ignore_index", [None, -100])
def test_columns_of_labels_and_masked_arrays_are_refused_with_the_remedy(
    batch: tuple[Any, ...], message: str, ignore_index: int | None
) -> None:
    options: dict[str, Any] = {"ignore_index": ignore_index}
    if batch[2] is not None:
        options["sample_weights"] = 2
    if ignore_index is None and -100 in np.asarray(batch[1]):
        pytest.skip("the label would count")
    with pytest.raises(ValueError, match=message) as one:
        networks.measure([batch], weights=WEIGHTS, **options)
    assert "layer ''" not in str(one.value)
    with pytest.raises(ValueError, match=message):
        networks.measure_layers([({"fc": batch[0]}, *batch[1:])], **options)


def test_masked_arrays_that_hide_nothing_are_measured() -> None:
    whole = np.ma.masked_array(FEATURES, mask=False), np.ma.masked_array(LABELS, mask=False)
    assert_same(networks.measure([whole]).collapse, neural_collapse(FEATURES, LABELS))


@for_each("passes", [1, 2])
def test_a_classifier_with_more_rows_than_classes_in_the_data(passes: int) -> None:
    seen, weights, bias = np.array([3, 4, 9]), np.full((12, 5), 9.0), np.full(12, -100.0)
    weights[seen], bias[seen] = WEIGHTS, 0.0
    batches, expected = (
        [(FEATURES, seen[LABELS])],
        networks.measure([(FEATURES, LABELS)], 3, WEIGHTS, passes=passes),
    )
    options: dict[str, Any] = {"absent": "leave out", "passes": passes}
    found = networks.measure(batches, None, weights, bias, groups=np.arange(12) % 2, **options)
    np.testing.assert_array_equal(found.collapse.classes, seen)
    assert found.collapse.num_labels == 12
    ours, theirs = found.collapse.to_dict(), expected.collapse.to_dict()
    for name, value in theirs.items():
        if name != "centre":
            np.testing.assert_allclose(ours[name], value, rtol=1e-10, atol=1e-13, err_msg=name)
    assert found.groups is not None
    np.testing.assert_array_equal(found.groups.num_classes, [1, 2])
    with pytest.raises(ValueError, match="got none of class 0, 1, 2, 5, 6"):
        networks.measure(batches, None, weights, bias, passes=passes)
    if passes == 2:
        with pytest.raises(
            ValueError, match=r"`loss` must be None if classes are left out, 9 here"
        ):
            networks.measure(batches, None, weights, bias, loss=ufm.CrossEntropy(), **options)


def test_a_second_pass_keeps_what_was_left_out(tmp_path: Any) -> None:
    moments = networks.ClassMoments(5, 5)
    moments.update(FEATURES, LABELS + 1)
    second = networks.SecondPass(moments, np.vstack([WEIGHTS, WEIGHTS])[:5], absent="leave out")
    second.update(FEATURES, LABELS + 1)
    second.save(tmp_path / "second.npz")
    assert_same(networks.SecondPass.load(tmp_path / "second.npz").measure(), second.measure())
    with pytest.raises(ValueError, match="got none of class 4 in the first"):
        second.update(FEATURES, LABELS + 2)


def test_entries_by_index_by_key_and_by_function() -> None:
    named = {"ids": 1, "mask": 2, "labels": 3, "weight": 4}
    assert Entries().read(named) == ({"ids": 1, "mask": 2, "weight": 4}, 3, None)
    assert Entries(sample_weights="weight").read(named) == ({"ids": 1, "mask": 2}, 3, 4)
    assert Entries(inputs="ids", labels="mask").read(named) == (1, 2, None)
    assert Entries(inputs=("ids", "mask")).read(named) == ({"ids": 1, "mask": 2}, 3, None)
    assert Entries(labels=lambda batch: -batch[2]).read((1, 2, 3)) == (1, -3, None)
    with pytest.raises(
        ValueError,
        match=r"`loader` must hold batches with the entry 'labels', got one with the keys \['x'\]",
    ):
        Entries().read({"x": 1})
    with pytest.raises(
        ValueError, match=r"`loader` must hold tuples .* or mappings of them, got int"
    ):
        Entries().read(3)


def test_contexts_are_alike_exactly_where_tokens_are() -> None:
    ids = np.random.default_rng(0).integers(2, size=(30, 6))
    for length in (None, 1, 3):
        found = networks.prefix_contexts(ids, length)
        seen: dict[tuple[int, ...], int] = {}
        for row, numbers in zip(ids, found, strict=True):
            for t, number in enumerate(numbers):
                key = tuple(row[max(0, t + 1 - (length or 6)) : t + 1].tolist())
                assert seen.setdefault(key, number) == number
        assert len(set(seen.values())) == len(seen)
        assert found.min() >= 0
    np.testing.assert_array_equal(
        networks.prefix_contexts(ids.astype(np.int32)), networks.prefix_contexts(ids)
    )
    for bad in (ids[0], ids.astype(float)):
        with pytest.raises(ufm.ArgumentError, match="tokens"):
            networks.prefix_contexts(bad)
    with pytest.raises(ufm.ArgumentError, match="length"):
        networks.prefix_contexts(ids, 0)
