"""The example of networks on handwritten digits: what it chooses and refuses, and two steps.

Nightly, the claims that it makes.
"""

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ufm import metrics, networks
from ufm.cli import main

pytest.importorskip("sklearn")
PATH = Path(__file__).parents[2] / "notebooks" / "digits.py"
pytestmark = [
    pytest.mark.skipif(not PATH.exists(), reason="the notebooks are not part of this distribution"),
    pytest.mark.filterwarnings("default:::sklearn"),
]


@pytest.fixture(scope="module", autouse=True)
def lenient() -> Iterator[None]:
    """Let optax raise a float to the number of the step, which is an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def digits() -> Any:
    spec = importlib.util.spec_from_file_location("digits", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(digits: Any) -> Any:
    return digits.Setting("tiny", digits.step_counts(15, majority=30), hidden=(8, 8), steps=2)


@pytest.fixture(scope="module")
def run(digits: Any, tiny: Any) -> Any:
    return digits.train(tiny)


@pytest.mark.parametrize(
    ("ratio", "minority"), [(1, 150), (3, 50), (10, 15), (75, 2), (100, 2), (300, 1)]
)
def test_counts_of_a_step(digits: Any, ratio: float, minority: int) -> None:
    assert digits.step_counts(ratio) == (150,) * 5 + (minority,) * 5


def test_exactly_the_samples_asked_for_are_chosen(digits: Any) -> None:
    counts = (178, 150, 1, 2, 3, 20, 21, 22, 100, 9)
    split = digits.load(counts, seed=3)
    assert tuple(np.bincount(split.labels)) == counts
    assert len(split.labels) + len(split.test_labels) == 1797
    assert split.inputs.shape == (sum(counts), 64)
    assert split.inputs.dtype == np.float32
    assert 0 <= split.inputs.min() < split.inputs.max() == 1
    together = np.concatenate([split.inputs, split.test_inputs])
    whole = digits.load((1,) * 10)
    assert sorted(map(bytes, together)) == sorted(
        map(bytes, np.concatenate([whole.inputs, whole.test_inputs]))
    )


def test_smaller_counts_are_among_larger_ones_and_seeds_differ(digits: Any) -> None:
    large, small, other = (
        digits.load((20,) * 10),
        digits.load((5,) * 10),
        digits.load((5,) * 10, seed=1),
    )
    assert {*map(bytes, small.inputs)} <= {*map(bytes, large.inputs)}
    assert {*map(bytes, other.inputs)} != {*map(bytes, small.inputs)}


def test_impossible_counts_are_refused(digits: Any) -> None:
    with pytest.raises(ValueError, match=r"from 1 to \[178, .*got 179 for digit 0"):
        digits.load((179,) + (150,) * 9)
    with pytest.raises(ValueError, match="got 0 for digit 9"):
        digits.load((150,) * 9 + (0,))
    with pytest.raises(ValueError, match="must be 10 integers"):
        digits.load((150,) * 9)
    with pytest.raises(ValueError, match="must be 10 integers"):
        digits.load((1.5,) * 10)
    with pytest.raises(ValueError, match="`imbalance_ratio` must be from 1 to 300, got 301"):
        digits.step_counts(301)
    with pytest.raises(ValueError, match="`num_minority`"):
        digits.step_counts(2, num_minority=11)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss": "hinge"}, "loss"),
        ({"peeled": 3}, "peeled"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"steps": 0}, "steps"),
    ],
)
def test_impossible_settings_are_refused(
    digits: Any, tiny: Any, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"`{named}` must"):
        digits.train(tiny._replace(**change))


@pytest.mark.parametrize(
    ("peeled", "decays", "penalised"),
    [
        (1, (1e-6, 1e-6, 5e-3), (0, 5e-3)),
        (2, (1e-6, 5e-3, 5e-3), (5e-3, 0)),
        (None, (5e-3,) * 3, (0, 0)),
    ],
)
def test_penalties_are_those_of_the_layers_that_are_peeled(
    digits: Any,
    tiny: Any,
    peeled: int | None,
    decays: tuple[float, ...],
    penalised: tuple[float, ...],
) -> None:
    setting = tiny._replace(peeled=peeled)
    assert setting.layer_decays == decays
    assert setting.output_decays == penalised


def test_two_steps_are_recorded_and_the_objective_is_the_one_stated(
    digits: Any, tiny: Any, run: Any
) -> None:
    assert run.complete
    assert run.history["step"].tolist() == [0, 2]
    assert run.history["nc1_pinv"].shape == (2, 2)
    assert run.history["objective"][1] < run.history["objective"][0]
    H = digits.load(tiny.class_counts).inputs.astype(np.float64)
    W = [matrix.astype(np.float64) for matrix in run.weights]
    for matrix, stored in zip(W[:-1], run.features, strict=True):
        H = np.maximum(H @ matrix.T, 0)
        np.testing.assert_allclose(stored, H, rtol=0, atol=1e-5)
    Z = H @ W[-1].T
    loss = np.mean(np.log(np.sum(np.exp(Z), axis=1)) - Z[np.arange(len(Z)), run.labels])
    penalty = sum(
        decay / 2 * np.sum(matrix**2) for decay, matrix in zip(tiny.layer_decays, W, strict=True)
    )
    expected = loss + penalty + tiny.feature_decay / 2 * np.mean(np.sum(H**2, axis=1))
    np.testing.assert_allclose(run.history["objective"][-1], expected, rtol=1e-5)
    measured = metrics.neural_collapse(run.features[-1], run.labels, run.weights[-1])
    np.testing.assert_allclose(run.history["nc1_pinv"][-1, -1], measured.nc1.pinv, rtol=1e-4)


def test_a_run_is_restored_from_its_file_and_nothing_else_is(
    digits: Any, run: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.npz"
    digits.save(run, path)
    again = digits.restore(path)
    assert again.setting == run.setting
    assert again.complete
    for name in ("weights", "features"):
        for left, right in zip(getattr(again, name), getattr(run, name), strict=True):
            np.testing.assert_array_equal(left, right)
    assert again.biases == (None, None, None)
    assert {name: values.tolist() for name, values in again.history.items()} == {
        name: values.tolist() for name, values in run.history.items()
    }
    assert not [*tmp_path.glob("*.partial")]
    stored = metrics.load_features(path)
    np.testing.assert_array_equal(stored.weights, run.weights[-1])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a file of a run"):
        digits.restore(path)


def test_biases_and_normalisation_are_trained_and_stored(
    digits: Any, tiny: Any, tmp_path: Path
) -> None:
    run = digits.train(
        tiny._replace(name="other", loss="mse", peeled=None, bias=True, normalise=True)
    )
    digits.save(run, tmp_path / "other.npz")
    again = digits.restore(tmp_path / "other.npz")
    assert [bias.shape for bias in again.biases] == [(8,), (8,), (10,)]
    assert np.all(run.history["objective"] > 0)
    trained = digits.seen(again)
    np.testing.assert_array_equal(trained.bias, run.biases[-1])
    assert trained.weight_decay.tolist() == [tiny.weight_decay]
    with pytest.raises(ValueError, match="without normalisation"):
        digits.seen(again, 2)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_the_command_line_sees_the_network_that_was_trained(
    digits: Any, tiny: Any, run: Any, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss, too: a network of squared error has no model of cross-entropy."""
    seen: list[networks.TrainedNetwork] = []

    def held(trained: networks.TrainedNetwork, **_: Any) -> None:
        seen.append(trained)
        raise ValueError("`trained` has been seen")

    monkeypatch.setattr(networks, "compare_with_model", held)
    # The labels, weights and features of one training do: what is asked is how they are stored and
    # read.
    stored = run._replace(setting=tiny._replace(loss=loss, bias=True, weight_decay=7e-3))
    stored = stored._replace(biases=(np.zeros(8), np.zeros(8), np.arange(10.0)))
    digits.save(stored, tmp_path / "one.npz")
    main(["measure", str(tmp_path / "one.npz")])
    expected = digits.seen(stored)
    assert [type(one.loss) for one in seen] == [type(digits.LOSS_OF[loss])]
    for left, right in zip(jax.tree.leaves(seen[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def test_pages_say_what_was_trained(digits: Any, run: Any) -> None:
    words = digits.trained_as(run)
    for part in (
        "cross-entropy",
        "8, 8 units",
        "weight decay 0.005 of the last layer",
        "After 2 steps",
        "no biases",
    ):
        assert part in words
    assert "short trial" not in words
    assert "short trial" in digits.trained_as(run, quick=True)
    plain = run._replace(setting=run.setting._replace(peeled=None, loss="mse"))
    assert "squared error, weight decay 0.005 of all layers" in digits.trained_as(plain)


def test_an_interruption_keeps_what_was_computed(
    digits: Any, tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, calls = digits._advance, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return advance(*arguments, **options)

    monkeypatch.setattr(digits, "_advance", interrupted)
    monkeypatch.setattr(digits, "CHUNK", 2)
    monkeypatch.setattr(
        digits, "settings", lambda quick: [tiny._replace(steps=10), tiny._replace(name="next")]
    )
    assert digits.main(["--out", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]
    kept = digits.restore(tmp_path / "tiny.npz")
    assert not kept.complete
    assert kept.history["step"][-1] == 4
    assert digits._kept(tmp_path / "tiny.npz", kept.setting) is None


def test_unknown_runs_and_layers_that_cannot_be_seen_are_refused(
    digits: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert digits.main(["--out", str(tmp_path), "--only", "ce-nothing"]) == 2
    assert "ce-nothing" in capsys.readouterr().err
    assert digits.main([]) == 2
    assert "--out" in capsys.readouterr().err
    assert digits.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [setting.name for setting in digits.settings()]
    with pytest.raises(ValueError, match="`layers` must be 1"):
        digits.seen(run, 3)
    with pytest.raises(ValueError, match="one peeled layer"):
        digits.predicted(run.setting._replace(peeled=None), [1.0])


def test_a_star_marks_the_least_error_where_there_is_one(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [("error", "a", "b", "relative to"), ("x", "0*", "0", "u"), ("y", "0.1*", "0.2", "v")]
    monkeypatch.setattr(
        networks, "ModelComparisons", lambda reports: types.SimpleNamespace(table=lambda: table)
    )
    assert digits.side_by_side({"linear": None, "ReLU": None}) == [
        ("error", "linear", "ReLU", "relative to"),
        ("x", "0", "0", "u"),
        ("y", "0.1*", "0.2", "v"),
    ]
    table[1:] = [("x", "0.1", "0.2", "0.1*", "u")]
    assert digits.side_by_side(dict.fromkeys("abc"))[1] == ("x", "0.1*", "0.2", "0.1*", "u")


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained before the folder was looked at")

    monkeypatch.setattr(digits, "train", never)
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (str(file), str(file / "sub"), "/proc/no-such-folder", ""):
        assert digits.main(["--out", wrong, "--only", "ce-peeled1-ratio1"]) == 2
        line = capsys.readouterr().err
        assert line.startswith("--out")
        assert line.count("\n") == 1
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "ce-peeled1-ratio3.npz").write_bytes(b"something else")
    assert digits.main(["--out", str(tmp_path / "new")]) == 2
    assert "ce-peeled1-ratio3.npz" in capsys.readouterr().err


def test_a_folder_is_made_and_a_full_disk_is_told_in_one_line(
    digits: Any,
    tiny: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits, "settings", lambda quick: [tiny])
    monkeypatch.setattr(digits, "train", lambda *_, **__: run)
    monkeypatch.setattr(digits, "save", full)
    assert digits.main(["--out", str(tmp_path / "deep" / "er")]) == 2
    assert not [*(tmp_path / "deep" / "er").iterdir()]
    assert "No space left on device" in capsys.readouterr().err


def test_cosines_of_groups(digits: Any) -> None:
    matrix = np.full((10, 10), 0.5)
    matrix[:5, :5], matrix[5:, 5:] = 0.1, 0.2
    np.fill_diagonal(matrix, 1)
    assert digits.group_cosines(matrix) == pytest.approx((0.1, 0.2, 0.5))


@pytest.fixture(scope="module")
def trained(digits: Any) -> dict[str, Any]:
    names = (
        "ce-peeled1-ratio1",
        "mse-peeled1-ratio1",
        "mse-plain-ratio1",
        "ce-plain-ratio1",
        "ce-peeled1-ratio30",
    )
    return {
        setting.name: digits.train(setting)
        for setting in digits.settings()
        if setting.name in names
    }


@pytest.mark.nightly
def test_all_training_samples_are_learnt(trained: dict[str, Any]) -> None:
    assert all(run.history["error"][-1] == 0 for run in trained.values())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ce-peeled1-ratio1", "mse-peeled1-ratio1", "mse-plain-ratio1"])
def test_balanced_networks_collapse(trained: dict[str, Any], name: str) -> None:
    run = trained[name]
    assert metrics.neural_collapse(run.features[-1], run.labels).nc1.pinv < 1e-2


@pytest.mark.nightly
def test_weight_decay_of_all_layers_leaves_cross_entropy_uncollapsed(
    trained: dict[str, Any],
) -> None:
    run = trained["ce-plain-ratio1"]
    assert metrics.neural_collapse(run.features[-1], run.labels).nc1.pinv > 0.1


@pytest.mark.nightly
def test_the_relu_model_is_nearer_than_the_linear_one(digits: Any, trained: dict[str, Any]) -> None:
    for name in ("ce-peeled1-ratio1", "ce-peeled1-ratio30"):
        found = digits.against_models(trained[name])
        assert found["ReLU"].agreement.describes
        for quantity in ("mean cosines", "logits", "objective"):
            assert found["ReLU"][quantity].error < found["linear"][quantity].error


@pytest.mark.nightly
def test_minority_angles_follow_the_certified_prediction(
    digits: Any, trained: dict[str, Any]
) -> None:
    run = trained["ce-peeled1-ratio30"]
    curve = digits.predicted(run.setting, [30.0])
    assert curve.gaps[0] < 1e-9
    measured = metrics.neural_collapse(run.features[-1], run.labels, run.weights[-1])
    majority, minority, across = digits.group_cosines(measured.nc2_weights.cosines)
    np.testing.assert_allclose(
        [majority, minority, across],
        [curve.majority[0], curve.minority[0], curve.across[0]],
        atol=0.03,
    )
