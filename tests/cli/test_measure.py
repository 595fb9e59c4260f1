import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import target_networks
from command_line import Capture, features, refused, saved, status, strict_json
from tables import for_each

import ufm


def test_measure_prints_tables(tmp_path: Path, capsys: Capture) -> None:
    assert status(["measure", saved(tmp_path / "good.npz", **features())]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "3 classes, 15 samples" in out
    assert all(name in out for name in ("nc1", "nc2", "nc3", "nc4"))


def test_measure_as_json_is_what_the_library_measures(tmp_path: Path, capsys: Capture) -> None:
    arrays = features()
    assert status(["measure", saved(tmp_path / "good.npz", **arrays), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    expected = ufm.metrics.neural_collapse(**arrays).to_dict()
    assert answer == json.loads(json.dumps(expected))
    del arrays["weights"], arrays["bias"]
    assert status(["measure", saved(tmp_path / "bare.npz", **arrays), "--json"]) == 0
    assert not any(name.startswith("nc4") for name in strict_json(capsys.readouterr().out))


def test_measure_json_has_no_infinity(tmp_path: Path, capsys: Capture) -> None:
    """Class means that coincide make NC1 infinite."""
    arrays = features()
    arrays["features"] = np.tile(np.random.default_rng(1).normal(size=(5, 4)), (3, 1))
    expected = ufm.metrics.neural_collapse(**arrays).to_dict()
    infinite = [
        name for name, value in expected.items() if name != "centre" and np.any(np.isinf(value))
    ]
    assert infinite
    assert status(["measure", saved(tmp_path / "equal.npz", **arrays), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    assert all(answer[name] is None or None in answer[name] for name in infinite)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@for_each("key", ["features", "labels", "weights", "bias"])
def test_measure_never_unpickles_an_array(key: str, tmp_path: Path, capsys: Capture) -> None:
    mark = tmp_path / "unpickled"
    objects = np.empty(15, object)
    objects[:] = [Payload(mark) for _ in objects]
    refused(["measure", saved(tmp_path / "objects.npz", **features(**{key: objects}))], capsys)
    assert not mark.exists()


def test_measure_never_unpickles_a_file(tmp_path: Path, capsys: Capture) -> None:
    mark, path = tmp_path / "unpickled", tmp_path / "pickle.npz"
    path.write_bytes(pickle.dumps(Payload(mark)))
    refused(["measure", str(path)], capsys)
    assert not mark.exists()
    with open(path, "rb") as file:  # it would have worked
        pickle.load(file).close()
    assert mark.exists()


@for_each(
    ("changes", "named"),
    [
        ({"features": None}, "'features' and 'labels'"),
        ({"labels": None}, "'features' and 'labels'"),
        ({"features": None, "labels": None}, "'features' and 'labels'"),
        ({"labels": np.zeros(15, int)}, "labels"),
        ({"labels": np.arange(3)}, "labels"),
        ({"labels": np.array(list("abcdefghijklmno"))}, "labels"),
        ({"features": np.full((15, 4), np.nan)}, "features"),
        ({"features": np.zeros(15)}, "features"),
        ({"weights": np.zeros((2, 4))}, "num_classes"),
        ({"bias": np.zeros(4)}, "bias"),
    ],
)
def test_measure_refuses_arrays_that_are_missing_or_do_not_fit(
    changes: dict[str, Any], named: str, tmp_path: Path, capsys: Capture
) -> None:
    arrays = {key: value for key, value in features(**changes).items() if value is not None}
    line = refused(["measure", saved(tmp_path / "unfit.npz", **arrays), "--json"], capsys)
    assert line.startswith(f"ufm: error: FILE.npz {tmp_path / 'unfit.npz'}: ")
    assert named in line


def test_measure_refuses_what_is_no_file_of_arrays(tmp_path: Path, capsys: Capture) -> None:
    good = Path(saved(tmp_path / "good.npz", **features())).read_bytes()
    (tmp_path / "text.npz").write_text("features and labels")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "flipped.npz").write_bytes(
        good[:200] + bytes(byte ^ 255 for byte in good[200:300]) + good[300:]
    )
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in (
        "missing.npz",
        "text.npz",
        "empty.npz",
        "cut.npz",
        "flipped.npz",
        "array.npy",
        ".",
    ):
        line = refused(["measure", str(tmp_path / name)], capsys)
        assert line.startswith(f"ufm: error: FILE.npz {tmp_path / name}: must ")
        assert "`path`" not in line


def network(**changes: Any) -> dict[str, Any]:
    """What `features` has, with classes of two sizes and a classifier that is not trained."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (50, 50, 20, 20))
    means = rng.normal(size=(4, 6))
    arrays = {"features": means[labels] + 0.1 * rng.normal(size=(140, 6)), "labels": labels}
    return arrays | {"weights": means, "bias": np.zeros(4)} | changes


@pytest.mark.slow
def test_measure_holds_a_network_against_its_model(tmp_path: Path, capsys: Capture) -> None:
    file = saved(tmp_path / "net.npz", **network())
    arguments = [
        "measure",
        file,
        "--weight-decay",
        "5e-3",
        "--bias-decay",
        "1e-2",
        "--groups",
        "0,0,0,1",
    ]
    assert status(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(
        piece in out for piece in ("nc1_pinv", "verdict: the model", "feature decay", "weight gram")
    )
    assert status([*arguments, "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    arrays = network()
    trained = ufm.networks.TrainedNetwork.from_features(
        **arrays, weight_decay=5e-3, bias_decay=1e-2
    )
    expected = ufm.networks.compare_with_model(trained, groups=(0, 0, 0, 1)).to_dict()
    assert answer["model"]["rows"] == json.loads(json.dumps(expected["rows"]))
    assert answer["model"]["groups"] == [0, 0, 0, 1]
    assert answer["nc1_pinv"] == ufm.metrics.neural_collapse(**arrays).to_dict()["nc1_pinv"]


def test_measure_takes_its_settings_from_the_file_unless_they_are_given(
    tmp_path: Path, capsys: Capture
) -> None:
    features = np.abs(network()["features"])
    settings = {
        "weight_decay": 5e-3,
        "bias_decay": 0.0,
        "loss": "ce",
        "groups": [0, 1, 2, 3],
        "nonnegative": False,
    }
    file = saved(tmp_path / "net.npz", **network(**settings, features=features))
    assert status(["measure", file, "--json"]) == 0
    model = strict_json(capsys.readouterr().out)["model"]
    assert (model["weight_decay"], model["bias_decay"], model["groups"]) == (
        [5e-3],
        0.0,
        [0, 1, 2, 3],
    )
    assert model["model"] == "one layer"
    assert (
        status(["measure", file, "--weight-decay", "1e-3", "--feature-decay", "1e-4", "--json"])
        == 0
    )
    model = strict_json(capsys.readouterr().out)["model"]
    assert (model["weight_decay"], model["feature_decay"]) == ([1e-3], 1e-4)


@pytest.mark.nightly
def test_measure_takes_any_loss_and_sign(tmp_path: Path, capsys: Capture) -> None:
    settings = {"weight_decay": 5e-3, "loss": "label-smoothing", "loss_parameter": 0.1}
    file = saved(
        tmp_path / "net.npz", **network(**settings, features=np.abs(network()["features"]))
    )
    for options, name in (
        ([], "one layer, h >= 0"),
        (["--no-nonnegative"], "one layer"),
        (["--loss", "ce", "--loss-parameter", "1"], ""),
    ):
        if name:
            assert status(["measure", file, *options, "--json"]) == 0
            assert strict_json(capsys.readouterr().out)["model"]["model"] == name
        else:
            assert "--loss ce takes no --loss-parameter" in refused(
                ["measure", file, *options], capsys
            )


def test_measure_writes_a_page(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    bare = {name: value for name, value in network().items() if name in ("features", "labels")}
    folder = tmp_path / "page"
    file = saved(tmp_path / "bare.npz", **bare)
    assert status(["measure", file, "--report", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"wrote {folder / 'index.html'}")
    page = (folder / "index.html").read_text(encoding="utf-8")
    for piece in (
        "nc1_pinv",
        "Missing: the matrix of the last layer",
        "as --weight-decay or as the key",
    ):
        assert piece in page
    assert "<h1>bare.npz: neural collapse of a trained network</h1>" in page
    file = saved(tmp_path / "decay.npz", **bare, weight_decay=1e-3)
    assert status(["measure", file, "--report", str(folder), "--json"]) == 0
    answer = strict_json(capsys.readouterr().out)
    assert answer["report"] == str(folder / "index.html")
    assert "the array `weights` in the file" in answer["missing"]
    assert "--weight-decay" not in answer["missing"]
    assert "model" not in answer


@pytest.mark.nightly
def test_measure_writes_the_page_of_a_model(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    file = saved(tmp_path / "net.npz", **network())
    assert status(["measure", file, "--weight-decay", "5e-3", "--report", str(tmp_path)]) == 0
    assert "verdict" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Measured and predicted" in page
    assert "Missing: " not in page


def target_network(kind: str) -> dict[str, Any]:
    trained, samples = target_networks.a_network(kind), target_networks.samples_of(kind)
    arrays = {
        "features": target_networks.features_of(kind),
        "labels": samples.labels,
        "weights": trained.weights[0],
        "bias": trained.bias,
    }
    return arrays if samples.contexts is None else arrays | {"contexts": samples.contexts}


@for_each("kind", target_networks.KINDS)
def test_measure_holds_networks_of_other_targets_against_their_models(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    arrays = target_network(kind)
    file = saved(tmp_path / "net.npz", **arrays)
    decays = ["--weight-decay", "5e-3", "--bias-decay", "1e-2"]
    assert status(["measure", file, "--targets", kind, *decays, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = strict_json(out)
    assert err == ""
    assert answer["model"]["verdict"]["kind"] == "agrees"
    assert answer["model"]["targets"] == kind
    stored = saved(tmp_path / "named.npz", **arrays, targets=kind)
    assert status(["measure", stored]) == 0
    assert "collapse of" in capsys.readouterr().out.lower()


@for_each(
    ("changes", "options", "message"),
    [
        (
            {},
            ["--report", "page"],
            "error: --report draws the page of classes, not of targets multi-label",
        ),
        ({}, ["--targets", "contexts"], "need the context of each sample"),
        ({"targets": "tags"}, [], "`targets` must be one of classes, regression"),
        ({"labels": np.ones(130)}, [], "`tags` must be multi-hot rows (130, K)"),
        ({}, ["--weight-decay", "5e-3", "--groups", "0,1"], "--groups: `groups` must be one"),
    ],
)
def test_measure_names_what_does_not_fit_other_targets(
    changes: dict[str, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = target_network("multi-label") | {"targets": "multi-label"} | changes
    line = refused(["measure", saved(tmp_path / "net.npz", **arrays), *options], capsys)
    assert message in line


@for_each(
    ("options", "message"),
    [
        (
            ["--weight-decay", "-1"],
            "--weight-decay: `weight_decay` must be positive and finite, got -1.0",
        ),
        (["--weight-decay", "nan"], "--weight-decay: `weight_decay` must be positive"),
        (
            ["--weight-decay", "1e-3", "--bias-decay", "-1"],
            "--bias-decay: `bias_decay` must be a finite number >= 0",
        ),
        (
            ["--weight-decay", "1e-3", "--feature-decay", "0"],
            "--feature-decay: `feature_decay` must be a positive finite",
        ),
        (
            ["--weight-decay", "1e-3", "--groups", "0,1"],
            "--groups: `groups` must be one number per class (4)",
        ),
        (["--weight-decay", "1e-3", "--loss", "focal"], "--loss focal needs a --loss-parameter"),
        (
            ["--weight-decay", "1e-3", "--loss", "ce", "--loss-parameter", "1"],
            "--loss ce takes no --loss-parameter",
        ),
        (
            ["--weight-decay", "1e-3", "--loss", "focal", "--loss-parameter", "-1"],
            "--loss-parameter: `gamma` must be",
        ),
        (
            ["--bias-decay", "1e-3"],
            "--bias-decay: `bias_decay` goes with a weight decay, which is missing",
        ),
        (["--feature-decay", "1e-3"], "--feature-decay: `feature_decay` goes with a weight decay"),
        (
            ["--groups", "0,1"],
            "--groups: `groups` goes with a weight decay, which is missing; give --weight-decay",
        ),
        (["--loss", "mse"], "--loss: `loss` goes with a weight decay"),
        (
            ["--loss-parameter", "0.1"],
            "--loss-parameter: `loss_parameter` goes with a weight decay",
        ),
        (["--no-nonnegative"], "--nonnegative: `nonnegative` goes with a weight decay"),
    ],
)
def test_measure_names_the_option(
    options: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert message in refused(
        ["measure", saved(tmp_path / "net.npz", **network()), *options], capsys
    )


@for_each(
    ("changes", "message"),
    [
        ({"weight_decay": -1.0}, "`weight_decay` must be positive and finite, got -1.0"),
        ({"weight_decay": [1e-3, 1e-3]}, "`weight_decay` must be one number"),
        ({"weight_decay": "much"}, "`weight_decay` must be one number"),
        ({"weight_decay": 1e-3, "groups": [1, 2]}, "`groups` must be one number per class"),
        (
            {"weight_decay": 1e-3, "weights": np.zeros((4, 6))},
            "`feature_decay` cannot be estimated",
        ),
        ({"bias_decay": 1e-3}, "`bias_decay` goes with a weight decay"),
        ({"weight_decay": 1e-3, "loss": "cross"}, "`loss` must be one of ce, mse"),
        ({"weight_decay": 1e-3, "loss": "focal", "loss_parameter": -1.0}, "`gamma` must be"),
    ],
)
def test_measure_names_the_key_of_the_file(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    line = refused(["measure", saved(tmp_path / "net.npz", **network(**changes))], capsys)
    assert message in line
    if "feature_decay" not in message:
        assert "FILE.npz" in line


def test_measure_refuses_a_comparison_that_was_asked_for_and_cannot_be_made(
    tmp_path: Path, capsys: Capture
) -> None:
    arrays = network()
    del arrays["weights"], arrays["bias"]
    line = refused(
        ["measure", saved(tmp_path / "net.npz", **arrays), "--weight-decay", "5e-3"], capsys
    )
    assert "--weight-decay needs the matrix of the last layer, as the array `weights`" in line


def test_measure_lists_the_keys_that_it_did_not_read(tmp_path: Path, capsys: Capture) -> None:
    assert (
        status(
            ["measure", saved(tmp_path / "net.npz", **features(wd=5e-3, setting="{}")), "--json"]
        )
        == 0
    )
    out, err = capsys.readouterr()
    strict_json(out)
    assert err.splitlines()[0].endswith("net.npz that were not read: setting, wd")
    assert "weights, bias, weight_decay" in err.splitlines()[1]
    assert status(["measure", saved(tmp_path / "groups.npz", **features(groups=[0, 1]))]) == 0
    assert (
        capsys.readouterr().err
        == "ufm: note: of no use without a weight decay: groups; give --weight-decay\n"
    )


@for_each(
    ("folder", "message"),
    [
        ("", "--report '': name a folder"),
        ("afile", "afile: this folder cannot be made (there is a file of this name); name another"),
        ("afile/sub", "afile/sub: this folder cannot be made (Not a directory); name another"),
    ],
)
def test_measure_says_why_there_is_no_page(
    folder: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "afile").write_text("text")
    path = str(tmp_path / folder) if folder else ""
    line = refused(
        ["measure", saved(tmp_path / "good.npz", **features()), "--report", path], capsys
    )
    assert line.startswith("ufm: error: --report ")
    assert message in line
