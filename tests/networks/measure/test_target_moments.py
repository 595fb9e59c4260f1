"""Moments of targets beyond one-hot, over any batches and merges, against all samples at once."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import for_each

from ufm._support import ArgumentError
from ufm.metrics import context_collapse, multi_label_collapse, regression_collapse
from ufm.networks import ClassMoments, ContextMoments, RegressionMoments, TagMoments
from ufm.networks.measure import target_moments

N, D = 60, 4


class Samples:
    """Features with targets of three kinds, a head for each, and the whole-array metrics."""

    def __init__(self, seed: int = 0, weighted: bool = False, offset: float = 1.0):
        rng = np.random.default_rng(seed)
        self.features = rng.normal(size=(N, D)) + offset
        self.real = self.features[:, :2] + 0.3 * rng.normal(size=(N, 2))
        self.tags = (rng.uniform(size=(N, 3)) < 0.5).astype(int)
        self.tags[:3] = np.eye(3)
        self.contexts, self.tokens = rng.integers(9, size=N) * 7, rng.integers(3, size=N)
        self.weights, self.bias = rng.normal(size=(3, D)), rng.normal(size=3)
        self.sample_weights = rng.integers(0, 3, size=N) if weighted else None
        if weighted:
            self.sample_weights[:3] = 1

    def batches(self, cuts: list[int]) -> list[slice]:
        ends = [0, *sorted(cuts), N]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def added(self, kind: str, part: slice, moments: Any = None) -> Any:
        a = None if self.sample_weights is None else self.sample_weights[part]
        H = self.features[part]
        if kind == "regression":
            moments = moments or RegressionMoments(D, 2)
            moments.update(H, self.real[part], a)
        elif kind == "tags":
            moments = moments or TagMoments(3, D)
            moments.update(H, self.tags[part], a)
        else:
            moments = moments or ContextMoments(D)
            moments.update(H, self.tokens[part], self.contexts[part], a)
        return moments

    def head(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        n = 2 if kind == "regression" else 3
        return self.weights[:n], self.bias[:n]

    def whole(self, kind: str) -> Any:
        given = {"sample_weights": self.sample_weights}
        if kind == "regression":
            return regression_collapse(self.features, self.real, *self.head(kind), **given)
        if kind == "tags":
            return multi_label_collapse(self.features, self.tags, *self.head(kind), **given)
        return context_collapse(
            self.features, self.tokens, self.contexts, *self.head(kind), **given
        )


def assert_same(found: Any, expected: Any) -> None:
    assert found.to_dict().keys() == expected.to_dict().keys()
    for name in expected.CONVENTIONS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13, err_msg=name)


KINDS = ("regression", "tags", "contexts")


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, N), max_size=6),
    seed=st.integers(0, 2**31),
    weighted=st.booleans(),
)
def test_any_batches_and_any_merge_give_the_metrics_of_all_samples(
    cuts: list[int], seed: int, weighted: bool
) -> None:
    samples, order = Samples(seed, weighted), np.random.default_rng(seed)
    for kind in KINDS:
        one: Any = None
        for part in samples.batches(cuts):
            one = samples.added(kind, part, one)
        left = [samples.added(kind, part) for part in samples.batches(cuts)]
        while len(left) > 1:
            first, second = order.permutation(len(left))[:2]
            merged = left[first].merge(left[second])
            left = [m for i, m in enumerate(left) if i not in (first, second)] + [merged]
        expected = samples.whole(kind)
        assert_same(one.measure(*samples.head(kind)), expected)
        assert_same(left[0].measure(*samples.head(kind)), expected)


@for_each("kind", KINDS)
def test_merging_changes_neither_and_workers_can_send_them(kind: str) -> None:
    samples = Samples()
    left, right = (samples.added(kind, part) for part in samples.batches([25]))
    before = [one.measure().to_dict() for one in (left, right)]
    sent = pickle.loads(pickle.dumps(right))
    merged = left.merge(sent)
    assert_same(merged.measure(*samples.head(kind)), samples.whole(kind))
    assert [one.measure().to_dict() for one in (left, right)] == before
    merged = samples.added(kind, slice(0, 5), merged)
    assert [one.measure().to_dict() for one in (left, right)] == before
    assert "samples" in repr(merged)


LOADED: dict[str, Any] = {
    "regression": RegressionMoments,
    "tags": TagMoments,
    "contexts": ContextMoments,
}


@for_each("kind", KINDS)
def test_moments_are_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    samples, path = Samples(weighted=True), tmp_path / "moments.npz"
    one: Any = None
    for part in samples.batches([20, 35]):
        one = samples.added(kind, part, one)
        one.save(path)
        one = LOADED[kind].load(path)
    assert_same(one.measure(*samples.head(kind)), samples.whole(kind))
    left, right = (samples.added(kind, part) for part in samples.batches([25]))
    left.save(path)
    merged = right.merge(LOADED[kind].load(path))
    assert_same(merged.measure(*samples.head(kind)), samples.whole(kind))
    empty = {"regression": (4, 2), "tags": (3, 4), "contexts": (4,)}[kind]
    LOADED[kind](*empty).save(path)
    again = samples.added(kind, slice(0, N), LOADED[kind].load(path))
    assert_same(again.measure(*samples.head(kind)), samples.whole(kind))


@for_each(
    ("kind", "changes", "bad"),
    [
        ("regression", {"num_outputs": np.array(6)}, "num_outputs"),
        ("regression", {"num_outputs": np.array(1)}, "directions"),
        ("regression", {"num_outputs": np.array(1.5)}, "num_outputs"),
        ("regression", {"directions": np.full((4, 4), np.nan)}, "directions"),
        ("regression", {"counts": np.ones(2)}, "counts"),
        ("regression", {"means": np.ones((2, 5))}, "means_low"),
        ("tags", {"num_tags": np.array(9)}, "tag_sets"),
        ("tags", {"num_tags": np.array(2)}, "tag_sets"),
        ("tags", {"tag_sets": np.zeros((3, 1), np.uint8)}, "tag_sets"),
        ("tags", {"tag_sets": np.zeros((3, 1))}, "tag_sets"),
        ("contexts", {"contexts": np.arange(3)}, "contexts"),
        ("contexts", {"contexts": -np.arange(9)}, "contexts"),
        ("contexts", {"pairs": np.array([3, 2])}, "pairs"),
        ("contexts", {"pair_counts": np.ones(2)}, "pair_counts"),
        ("contexts", {"squares": np.full(18, np.inf)}, "squares"),
    ],
)
def test_damaged_files_are_named(
    kind: str, changes: dict[str, Any], bad: str, tmp_path: Path
) -> None:
    path = tmp_path / "moments.npz"
    Samples().added(kind, slice(0, N)).save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **arrays)
    with pytest.raises(ArgumentError, match=f"must hold what `save` wrote, got a bad '{bad}'"):
        LOADED[kind].load(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "moments.npz"
    Samples().added("tags", slice(0, N)).save(path)
    with pytest.raises(ArgumentError, match=r"a file of ClassMoments.save, got one of TagMoments"):
        ClassMoments.load(path)
    with pytest.raises(ArgumentError, match="must have the keys"):
        ContextMoments.load(path)


def test_moments_keep_their_digits_far_from_the_origin() -> None:
    near, far = Samples(offset=0.0), Samples(offset=1e6)
    far.features = near.features + 1e6
    far.real = near.real
    found = [one.added("regression", slice(0, N)).measure() for one in (near, far)]
    for name in ("deep_nrc1", "deep_nrc2", "deep_nrc4"):
        np.testing.assert_allclose(getattr(found[1], name), getattr(found[0], name), rtol=1e-6)


def test_large_batches_are_worked_on_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    H, Y = rng.normal(size=(1500, 3)).astype(np.float32), rng.normal(size=1500)
    z, j = rng.integers(5, size=1500), rng.integers(400, size=1500)
    monkeypatch.setattr(target_moments, "SLICE", 1000)
    regression, contexts = RegressionMoments(3, 1), ContextMoments(3)
    regression.update(H, Y)
    for part in (slice(0, 700), slice(700, 701), slice(701, 1500)):
        contexts.update(H[part], z[part], j[part])
    assert_same(regression.measure(), regression_collapse(H, Y))
    assert_same(contexts.measure(), context_collapse(H, z, j))


@for_each("kind", KINDS)
def test_a_bad_batch_changes_nothing(kind: str) -> None:
    samples = Samples()
    moments = samples.added(kind, slice(0, 30))
    before = moments.measure(*samples.head(kind)).to_dict()
    samples.features[40, 1] = np.inf
    with pytest.raises(ArgumentError, match="row 10, column 1"):
        samples.added(kind, slice(30, N), moments)
    assert moments.measure(*samples.head(kind)).to_dict() == before
    empty = samples.added(kind, slice(0, 0), moments)
    assert empty.measure(*samples.head(kind)).to_dict() == before


@for_each(
    ("act", "named"),
    [
        (lambda: RegressionMoments(0, 1), "dim"),
        (lambda: RegressionMoments(2, 0), "num_outputs"),
        (lambda: TagMoments(1, 2), "num_tags"),
        (lambda: ContextMoments(0), "dim"),
        (lambda: RegressionMoments(2, 1).measure(), "batches"),
        (lambda: TagMoments(2, 2).measure(), "batches"),
        (lambda: ContextMoments(2).measure(), "batches"),
        (lambda: RegressionMoments(2, 2).update(np.ones((3, 2)), np.ones(3)), "targets"),
        (lambda: RegressionMoments(2, 1).update(np.ones((3, 2)), np.full(3, 1e200)), "targets"),
        (lambda: RegressionMoments(2, 1).update(np.ones((3, 3)), np.ones(3)), "features"),
        (lambda: RegressionMoments(2, 1).update(3.0, np.ones(3)), "features"),
        (lambda: TagMoments(3, 2).update(np.ones((3, 2)), np.ones((3, 2))), "tags"),
        (lambda: TagMoments(3, 2).update(np.ones((1, 2)), [[1, 0, 0]], [-1.0]), "sample_weights"),
        (lambda: ContextMoments(2).update(np.ones((1, 2)), [0.5], [0]), "tokens"),
        (lambda: ContextMoments(2).update(np.ones((1, 2)), [0], [-1]), "contexts"),
        (lambda: ContextMoments(2).merge(TagMoments(2, 2)), "other"),
        (lambda: ContextMoments(2).merge(ContextMoments(3)), "other"),
        (lambda: TagMoments(2, 2).merge(TagMoments(3, 2)), "other"),
    ],
)
def test_bad_input_is_named(act: Any, named: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        act()
    assert caught.value.argument == named


def test_tokens_beyond_the_head_are_refused() -> None:
    moments = ContextMoments(1)
    moments.update(np.ones((3, 1)), [0, 4, 1], [0, 1, 1])
    with pytest.raises(ArgumentError, match="got 4"):
        moments.measure(np.ones((3, 1)))
