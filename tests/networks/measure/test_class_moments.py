"""Moments and second passes over any batches against the metrics of all samples at once."""

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scattered import D, Data, K, assert_one_pass_agrees, assert_same, gathered
from tables import for_each, slow

import ufm
from ufm import networks
from ufm.metrics import NeuralCollapse, class_statistics, neural_collapse
from ufm.networks import ClassMoments, SecondPass
from ufm.networks.measure import class_moments as module


def tree_merged(accumulators: list[Any], order: np.random.Generator) -> Any:
    """Merge neighbours and strangers until one is left."""
    left = list(accumulators)
    while len(left) > 1:
        first, second = order.permutation(len(left))[:2]
        left = [one for index, one in enumerate(left) if index not in (first, second)] + [
            left[first].merge(left[second])
        ]
    return left[0]


def both_passes(
    data: Data, batches: list[tuple[Any, ...]], order: np.random.Generator, **options: Any
) -> tuple[NeuralCollapse, NeuralCollapse]:
    """One worker for each batch, in both passes; merged as chance has it."""
    moments = tree_merged([gathered([batch], data.K, data.dim) for batch in batches], order)
    seconds = []
    for batch in batches:
        seconds.append(SecondPass(moments, **data.classifier, **options))
        seconds[-1].update(*batch)
    return moments.measure(**data.classifier, **options), tree_merged(seconds, order).measure()


# Equal to the whole-matrix metrics


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 54), max_size=12),
    seed=st.integers(0, 2**31),
    weighted=st.booleans(),
    centre=st.sampled_from(["classes", "samples"]),
    noise=st.sampled_from([2.0, 1e-2, 1e-6]),
)
def test_any_batches_and_any_merge_give_the_metrics_of_all_samples(
    cuts: list[int], seed: int, weighted: bool, centre: str, noise: float
) -> None:
    data, order = Data(seed=seed, noise=noise), np.random.default_rng(seed)
    if weighted:
        data.sample_weights = order.uniform(0.1, 3.0, size=len(data.labels))
    whole = data.whole(centre=centre)
    one, two = both_passes(data, data.parts(cuts), order, centre=centre)
    assert_same(two, whole)
    assert_one_pass_agrees(one, whole)


@for_each(
    "data",
    [
        Data(offset=1e4),
        Data(noise=1e-8, offset=1.0),
        Data(counts=(3000, 1, 2, 1)),
        Data(counts=(5, 7)),
        Data(dim=2),
        Data(dim=1),
        Data(counts=(30, 20, 10, 5), dim=40),
        Data(noise=np.geomspace(1e-5, 1e3, D)),
    ],
)
@for_each("size", [slow(1), 7])
def test_adversarial_features_lose_no_digits(data: Data, size: int) -> None:
    cuts = list(range(size, len(data.labels), size))
    whole = data.whole()
    moments = gathered(data.parts(cuts), data.K, data.dim)
    second = SecondPass(moments, **data.classifier)
    for batch in data.parts(cuts):
        second.update(*batch)
    assert_same(second.measure(), whole)
    spread = np.ptp(data.features.std(axis=0)) / data.features.std(axis=0).min() > 1e3
    if not spread:  # one pass has the rounding errors of the largest direction in all of them
        assert_one_pass_agrees(moments.measure(**data.classifier), whole)


def test_far_from_the_origin_the_digits_are_those_that_float64_holds() -> None:
    data = Data(offset=1e8)
    moments = data.moments((10, 11, 30))
    second = SecondPass(moments, **data.classifier)
    second.update(data.features, data.labels)
    for found in (second.measure(), data.whole()):
        near = Data(offset=1e8)
        near.features = near.features - 1e8  # exactly
        expected = near.whole().nc1
        for name in ("pinv", "pinv_weighted", "trace_ratio", "cdnv"):
            np.testing.assert_allclose(
                getattr(found.nc1, name), getattr(expected, name), rtol=64 * 2.2e-16 * 1e8
            )
        np.testing.assert_allclose(found.nc1.within_variance, expected.within_variance, rtol=1e-13)


def test_an_outlier_that_comes_first_does_no_harm() -> None:
    data = Data(noise=1e-8)
    data.features[0] += 1e6
    moments = data.moments(tuple(range(1, 54)))
    statistics = class_statistics(data.features, data.labels, data.K)
    np.testing.assert_allclose(moments.within_trace, statistics.within_trace, rtol=1e-11)
    np.testing.assert_allclose(moments.means, statistics.means, rtol=1e-14)


def test_means_keep_the_digits_of_a_collapse_that_their_own_size_would_hide() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30_000) % K
    features = (rng.normal(size=(K, D)) + 1.0)[labels] + 1e-9 * rng.normal(size=(30_000, D))
    one_by_one, at_once = ClassMoments(K, D), ClassMoments(K, D)
    for start in range(0, 30_000, 8):
        one_by_one.update(features[start : start + 8], labels[start : start + 8])
    at_once.update(features, labels)
    np.testing.assert_allclose(one_by_one.within_trace, at_once.within_trace, rtol=1e-11)
    wide = features.astype(np.longdouble)
    exact = [
        np.sum((wide[labels == k] - wide[labels == k].mean(axis=0)) ** 2) / (labels == k).sum()
        for k in range(K)
    ]
    np.testing.assert_allclose(one_by_one.within_trace, np.array(exact, float), rtol=1e-11)
    np.testing.assert_allclose(one_by_one.within, at_once.within, rtol=1e-9, atol=1e-30)


def test_moments_are_the_class_statistics() -> None:
    data = Data()
    statistics = class_statistics(data.features, data.labels, data.K)
    moments = data.moments((5, 6, 30))
    for name in ("counts", "means", "shares", "global_mean", "within_trace", "within"):
        found = getattr(moments, name)
        np.testing.assert_allclose(
            found, getattr(statistics, name), rtol=1e-13, atol=1e-15, err_msg=name
        )
        assert found.dtype == np.float64
    assert (
        repr(moments) == "ClassMoments(num_classes=4, dim=6, scatter=True): 54 samples of 4 classes"
    )


def test_a_large_batch_is_worked_on_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(counts=(2000, 900, 300, 20))
    together = data.moments()
    monkeypatch.setattr(module, "SLICE", 10)
    sliced = data.moments()
    np.testing.assert_allclose(sliced.within, together.within, rtol=1e-12, atol=1e-15)
    second = SecondPass(sliced, **data.classifier)
    second.update(data.features, data.labels)
    assert_same(second.measure(), data.whole())


def test_memory_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 2**14)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, size=200_000)
    features = rng.normal(size=(200_000, 16)).astype(np.float32)
    moments = ClassMoments(K, 16)
    for accumulator in (
        moments,
        SecondPass(gathered([(features, labels)], K, 16), np.ones((K, 16))),
    ):
        tracemalloc.start()
        accumulator.update(features, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < features.nbytes / 8
        assert (
            sum(
                value.nbytes
                for value in vars(accumulator).values()
                if isinstance(value, np.ndarray)
            )
            < 10_000
        )


def test_a_class_that_only_one_worker_saw_and_one_that_none_saw() -> None:
    data = Data()
    rare = data.labels == 3
    first = gathered([(data.features[~rare], data.labels[~rare])])
    second = gathered([(data.features[rare], data.labels[rare])])
    for merged in (first.merge(second), second.merge(first)):
        assert_one_pass_agrees(merged.measure(**data.classifier), data.whole())
    np.testing.assert_array_equal(first.counts, [40, 9, 3, 0])  # merging changed neither
    assert np.isnan(first.means[3]).all()
    assert np.isnan(first.within_trace[3])
    assert np.isfinite(first.within).all()
    for call in (first.measure, lambda: SecondPass(first)):
        with pytest.raises(
            ValueError, match="a sample of each of the 4 classes, got none of class 3;"
        ):
            call()
    with pytest.raises(ValueError, match="got none of class 0, 1, 2, 3;"):
        ClassMoments(K, D).measure()
    assert_one_pass_agrees(
        ClassMoments(K, D).merge(first).merge(second).measure(**data.classifier), data.whole()
    )


def test_no_weight_and_no_samples_are_no_samples() -> None:
    data = Data()
    before = data.moments()
    after = data.moments()
    after.update(np.full((3, D), 1e9), [0, 1, 2], np.zeros(3))
    after.update(np.zeros((0, D)), np.zeros(0, int))
    np.testing.assert_array_equal(after.within, before.within)
    np.testing.assert_array_equal(after.counts, before.counts)


# Kinds of arrays


@for_each("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, ">f4"])
def test_narrow_features_are_accumulated_in_float64(dtype: Any) -> None:
    data = Data()
    stored = (3 * data.features).astype(dtype)
    data.features = stored.astype(np.float64)
    moments = gathered(
        [(stored[:20], data.labels[:20].astype(np.uint8)), (stored[20:], data.labels[20:])]
    )
    assert_one_pass_agrees(moments.measure(**data.classifier), data.whole())


def test_jax_arrays_and_memory_maps(tmp_path: Path) -> None:
    data = Data()
    narrow = jnp.asarray(data.features, jnp.bfloat16)
    path = tmp_path / "features.npy"
    np.save(path, np.asarray(narrow, np.float32))
    of_jax = gathered([(narrow, jnp.asarray(data.labels))])
    of_file = gathered([(np.load(path, mmap_mode="r"), data.labels)])
    np.testing.assert_array_equal(of_jax.within, of_file.within)


@pytest.mark.filterwarnings("ignore")
def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    data = Data()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.tensor(data.features, dtype=dtype, requires_grad=True)
        weights = torch.tensor(data.weights, dtype=dtype, requires_grad=True)
        data_of_it = Data()
        data_of_it.features, wide = (
            one.detach().to(torch.float64).numpy() for one in (tensor, weights)
        )
        data_of_it.classifier = {"weights": wide, "bias": data.bias}
        result = networks.measure(
            [(tensor, torch.tensor(data.labels))], weights=weights, bias=data.bias
        )
        assert_same(result.collapse, data_of_it.whole())


# Bad input


@for_each(
    ("changes", "message"),
    [
        (
            {"features": np.ones((3, 5))},
            r"`features` must be a matrix \(N, 6\).* got shape \(3, 5\)",
        ),
        ({"features": np.ones((3, 6, 2, 2))}, r"got shape \(3, 6, 2, 2\); flatten or pool"),
        ({"features": np.ones(6)}, r"got shape \(6,\)"),
        (
            {"features": np.array([[1.0] * 6, [1.0] * 6, [1, 2, np.nan, 4, 5, 6]])},
            "got nan in row 2, column 2; leave",
        ),
        (
            {"features": np.array([[1.0] * 6, [-np.inf] * 6, [1.0] * 6], np.float32)},
            "got -inf in row 1, column 0",
        ),
        (
            {"features": np.array([[1.0] * 6, [np.inf] * 6, [1.0] * 6], ml_dtypes.bfloat16)},
            "got inf in row 1",
        ),
        (
            {"features": np.array([[1.0] * 6, [1.0] * 6, [np.nan] * 6], ml_dtypes.bfloat16)},
            "got nan in row 2",
        ),
        (
            {"features": np.array([[1.0] * 6, [1.0] * 6, [np.nan] * 6], np.float16)},
            "got nan in row 2",
        ),
        (
            {"features": np.full((3, 6), 1e140)},
            r"at most 1e\+130 .* got 1e\+140 in row 0, column 0; divide all",
        ),
        ({"features": np.full((3, 6), 1j)}, "`features` must hold real numbers"),
        ({"features": "features.npy"}, "`features` must hold real numbers"),
        ({"labels": [0, 1, 4]}, r"`labels` must be in 0, ..., 3 for 4 classes, got 4 at index 2"),
        ({"labels": [0, -1, 3]}, r"`labels` must be in 0, ..., 3 for 4 classes, got -1 at index 1"),
        ({"labels": [0.0, 1.0, 2.0]}, r"`labels` must be integers, got dtype float64"),
        ({"labels": [0, 1]}, r"`labels` must have shape \(3,\)"),
        ({"labels": np.eye(3, 4, dtype=int)}, r"`labels.argmax\(axis=1\)`"),
        ({"sample_weights": [1.0, 2.0]}, r"`sample_weights` must be of shape \(3,\)"),
        (
            {"sample_weights": [1.0, 2.0, -3.0]},
            "`sample_weights` must not be negative, got -3 at index 2",
        ),
        ({"sample_weights": [1.0, np.nan, 3.0]}, "`sample_weights` must be finite"),
    ],
)
def test_a_bad_batch_is_named_and_changes_nothing(changes: dict[str, Any], message: str) -> None:
    data = Data()
    accumulators = [data.moments(), SecondPass(data.moments(), **data.classifier)]
    for accumulator in accumulators:
        before = {
            name: np.copy(value)
            for name, value in vars(accumulator).items()
            if isinstance(value, np.ndarray)
        }
        batch = {"features": np.ones((3, D)), "labels": [0, 1, 2]} | changes
        with pytest.raises(ValueError, match=message):
            accumulator.update(**batch)
        for name, value in before.items():
            np.testing.assert_array_equal(value, getattr(accumulator, name))


def test_the_last_row_of_a_large_batch_is_checked_before_the_first_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLICE", 10)
    features = np.ones((2000, D), np.float32)
    features[1999, 3] = np.nan
    moments = ClassMoments(K, D)
    with pytest.raises(ValueError, match="got nan in row 1999, column 3"):
        moments.update(features, np.zeros(2000, int))
    assert moments.counts.sum() == 0


@for_each(
    ("call", "message"),
    [
        (lambda m: ClassMoments(1, 3), "`num_classes` must be a whole number of at least 2, got 1"),
        (lambda m: ClassMoments(3, 0), "`dim` must be a whole number of at least 1, got 0"),
        (lambda m: m.merge(ClassMoments(5, D)), "`other` must have num_classes=4.* got 5"),
        (lambda m: m.merge(ClassMoments(K, 7)), "`other` must have dim=6.* got 7"),
        (lambda m: m.merge(ClassMoments(K, D, scatter=False)), "`other` must have scatter=True"),
        (lambda m: m.merge(None), "`other` must be a ClassMoments, got NoneType"),
        (
            lambda m: m.measure(np.ones((4, 5))),
            r"`weights` must be the last layer's matrix, of shape \(4, 6\)",
        ),
        (lambda m: m.measure(np.ones((4, 6)), np.ones(3)), r"`bias` must be of shape \(4,\)"),
        (lambda m: m.measure(bias=np.ones(4)), "`bias` needs `weights`"),
        (lambda m: m.measure(centre="means"), "`centre` must be one of"),
        (
            lambda m: m.measure(rtol=2.0),
            "`rtol` must be a finite .* below 1, got 2.0",
        ),
        (lambda m: Data().moments(scatter=False).measure(), "`scatter` must be True"),
        (lambda m: SecondPass(Data()), "`moments` must be a ClassMoments, got Data"),
        (lambda m: SecondPass(m, loss=ufm.CrossEntropy()), "`loss` needs `weights`"),
        (lambda m: SecondPass(m).loss_per_class(), "`loss` must be given"),
        (lambda m: SecondPass(m).merge(m), "`other` must be a SecondPass, got ClassMoments"),
        (
            lambda m: SecondPass(m).merge(SecondPass(m, np.ones((K, D)))),
            "measure against the same weights",
        ),
        (
            lambda m: SecondPass(m).merge(SecondPass(Data(seed=1).moments())),
            "measure against the same means",
        ),
        (
            lambda m: SecondPass(m).measure(),
            "the same samples in both passes, got 40 of class 0 in the first and 0",
        ),
    ],
)
def test_misuse_is_named(call: Callable[[ClassMoments], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Data().moments())


def test_passes_over_other_samples_are_noticed() -> None:
    data = Data(noise=0.1)
    second = SecondPass(data.moments())
    second.update(data.features[1:], data.labels[1:])
    with pytest.raises(ValueError, match="`batches` must hold the same samples in both passes"):
        second.measure()
    augmented = SecondPass(data.moments())
    augmented.update(
        data.features + np.random.default_rng(0).normal(size=data.features.shape), data.labels
    )
    with pytest.raises(
        ValueError, match=r"`batches` must hold the same features in both passes.*augmentation"
    ):
        augmented.measure()
    rounded = SecondPass(data.moments())
    rounded.update(
        data.features.astype(np.float32), data.labels
    )  # as a network in float32 may give them
    assert np.isfinite(rounded.measure().nc1.pinv)


def test_tiny_features_are_refused_rather_than_measured_wrong() -> None:
    data = Data()
    moments = gathered([(1e-140 * data.features, data.labels)])
    with pytest.raises(ValueError, match="whose square float64 can hold"):
        moments.measure()


# Losses


@pytest.mark.slow
@for_each("loss", [ufm.CrossEntropy(), ufm.SquaredError()])
def test_losses_are_means_over_classes(loss: Any) -> None:
    data = Data()
    result = networks.measure(data.parts([10, 20]), **data.classifier, loss=loss)
    logits = data.features @ data.weights.T + data.bias
    targets = np.eye(data.K)[data.labels]
    if isinstance(loss, ufm.CrossEntropy):
        each = np.log(np.exp(logits).sum(axis=1)) - (targets * logits).sum(axis=1)
    else:
        each = 0.5 * np.sum((logits - targets) ** 2, axis=1)
    np.testing.assert_allclose(result.loss, each.mean(), rtol=1e-12)
    assert result.loss_per_class is not None
    np.testing.assert_allclose(
        result.loss_per_class, [each[data.labels == k].mean() for k in range(4)], rtol=1e-12
    )
    assert "mean loss" in str(result)
    flat = json.loads(
        json.dumps(
            result._replace(groups=networks.by_group(result.collapse, [0, 0, 1, 1])).to_dict()
        )
    )
    assert flat["loss"] == result.loss
    assert flat["groups"]["counts"] == [49, 5]
    assert flat["nc1_pinv"] == result.collapse.nc1.pinv


# Files


def test_accumulators_are_saved_and_loaded(tmp_path: Path) -> None:
    data, path = Data(noise=1e-8), tmp_path / "moments.npz"
    batches = data.parts([20, 40])
    moments = gathered(batches[:1])
    for batch in batches[1:]:
        moments.save(path)
        moments = ClassMoments.load(path)
        moments.update(*batch)
    assert_one_pass_agrees(moments.measure(**data.classifier), data.whole())
    second = SecondPass(moments, **data.classifier, centre="samples", loss=ufm.SquaredError())
    second.update(*batches[0])
    second.save(path)
    rest = SecondPass(moments, **data.classifier, centre="samples", loss=ufm.SquaredError())
    for batch in batches[1:]:
        rest.update(*batch)
    merged = rest.merge(SecondPass.load(path, loss=ufm.SquaredError()))
    assert_same(merged.measure(), data.whole(centre="samples"))
    assert merged.loss_per_class().shape == (4,)
    without = gathered(batches, scatter=False)
    without.save(path)
    assert_same(
        SecondPass.load(saved_second(without, path)).merge(full(without, data)).measure(),
        neural(data),
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["moments.npz"]


def saved_second(moments: ClassMoments, path: Path) -> Path:
    SecondPass(ClassMoments.load(path), rtol=1e-12).save(path)
    return path


def full(moments: ClassMoments, data: Data) -> SecondPass:
    second = SecondPass(moments, rtol=1e-12)
    second.update(data.features, data.labels)
    return second


def neural(data: Data) -> NeuralCollapse:
    return neural_collapse(data.features, data.labels)


def test_an_interrupted_save_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = Data(), tmp_path / "moments.npz"
    data.moments().save(path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ClassMoments(K, D).save(path)
    assert ClassMoments.load(path).counts.sum() == 54
    assert len(list(tmp_path.iterdir())) == 1


@for_each(
    ("write", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b"nothing"), "something else or truncated"),
        (lambda path: np.savez(path, features=np.ones(3)), "must have the keys 'kind' and"),
        (
            lambda path: SecondPass(Data().moments()).save(path),
            "a file of ClassMoments.save, got one of SecondPass",
        ),
        (
            lambda path: stored(path, means=np.ones((4, 5))),
            "must hold what `save` wrote, got a bad 'means_low'",
        ),
        (lambda path: stored(path, squares=np.full(4, np.nan)), "got a bad 'squares'"),
        (lambda path: stored(path, counts=np.ones(3)), "got a bad 'counts'"),
        (lambda path: stored(path, counts=np.array([None] * 4)), "must be a readable .npz file"),
        (lambda path: stored(path, means=np.ones(4)), "got a bad "),
    ],
)
def test_bad_files_are_named(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(ValueError, match=message):
        ClassMoments.load(path)


def stored(path: Path, **changes: np.ndarray) -> None:
    moments = Data().moments()
    moments.save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **arrays)
    assert zipfile.is_zipfile(path)


def test_a_path_in_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`path` must be in a folder that exists"):
        ClassMoments(K, D).save(tmp_path / "nowhere" / "moments.npz")
