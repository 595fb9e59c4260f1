"""Files of sweeps: what they stand for, and one line for everything that they cannot say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.sweeps import example, examples, read_config
from ufm.sweeps.config import Config
from ufm.sweeps.points import points_of

PROBLEM = """
[problem]
class_counts = "2x20,2x4"
weight_decay = 5e-3
feature_decay = 5e-4
"""
OVER = "\n[over]\nimbalance_ratio = [1, 10]\n"


def read(text: str, tmp_path: Path) -> Config:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_the_words_of_a_problem(tmp_path: Path) -> None:
    problem = read(PROBLEM + OVER, tmp_path).problem
    np.testing.assert_array_equal(np.asarray(problem.class_counts), [20, 20, 4, 4])
    assert problem.feature_dim == 4
    assert isinstance(problem.loss, ufm.CrossEntropy)
    assert (float(problem.regularizer.weights), float(problem.regularizer.features)) == (5e-3, 5e-4)
    text = """
    [problem]
    class_counts = [30, 20, 10.5]
    feature_dim = 7
    hidden = [6, 5]
    activation = "relu"
    weight_decay = [1e-3, 2e-3, 3e-3]
    feature_decay = 1e-4
    bias = true
    bias_decay = 0.5
    nonnegative_features = true
    loss = {name = "focal", parameter = 2}
    [over]
    seed = [0, 1]
    """
    problem = read(text, tmp_path).problem
    np.testing.assert_array_equal(np.asarray(problem.class_counts), [30, 20, 10.5])
    assert (problem.layer_dims, problem.activation) == ((7, 6, 5, 3), "relu")
    np.testing.assert_array_equal(problem.regularizer.weights, [1e-3, 2e-3, 3e-3])
    assert isinstance(problem.loss, ufm.Focal)
    assert isinstance(problem.regularizer, ufm.WeightDecay)
    assert (float(problem.loss.gamma), float(problem.regularizer.bias)) == (2.0, 0.5)
    assert problem.use_bias
    assert problem.nonnegative_features
    balls = (
        '[problem]\nclass_counts = "3x5"\nloss = "mse"\nweight_ball = 1\nfeature_ball = 5\n'
        "[over]\nseed = [0]"
    )
    assert isinstance(read(balls, tmp_path).problem.regularizer, ufm.NormBall)


def test_ranges_and_lists(tmp_path: Path) -> None:
    over: dict[str, Any] = read(
        PROBLEM
        + """
        [over]
        weight_decay = {low = 1e-4, high = 1e-2, points = 3}
        majority_count = {low = 10, high = 30, points = 3, scale = "linear"}
        imbalance_ratio = [1, 2.5]
        num_classes = {low = 4, high = 8, points = 3, scale = "linear"}
        seed = {low = 0, high = 2, points = 9}
        use_bias = [false, true]
        """,
        tmp_path,
    ).over
    np.testing.assert_allclose(over["weight_decay"], [1e-4, 1e-3, 1e-2])
    np.testing.assert_array_equal(over["majority_count"], [10, 20, 30])
    np.testing.assert_array_equal(over["num_classes"], [4, 6, 8])
    np.testing.assert_array_equal(over["seed"], [0, 1, 2])
    assert (over["imbalance_ratio"], over["use_bias"]) == ([1, 2.5], [False, True])


def test_losses_rows_of_counts_and_dotted_keys(tmp_path: Path) -> None:
    over = read(
        PROBLEM
        + '[over]\nregularizer.weights = [1e-3]\n"regularizer.features" = [1e-4, 1e-3]\n'
        + 'loss = ["ce", {name = "focal", parameter = 2.0}]\n'
        + 'class_counts = ["2x20,2x4", [9, 8, 7, 6]]',
        tmp_path,
    ).over
    assert list(over) == ["regularizer.weights", "regularizer.features", "loss", "class_counts"]
    assert [type(loss) for loss in over["loss"]] == [ufm.CrossEntropy, ufm.Focal]
    np.testing.assert_array_equal(over["class_counts"], [[20, 20, 4, 4], [9, 8, 7, 6]])
    smoothing = (
        PROBLEM
        + 'loss = {name = "label-smoothing", parameter = 0.1}\n[over]\nloss.alpha = [0.1, 0.2]'
    )
    assert read(smoothing, tmp_path).over == {"loss.alpha": [0.1, 0.2]}


def test_settings(tmp_path: Path) -> None:
    text = (
        '[sweep]\nhow = "zip"\nquantities = ["rank"]\nresolution = "classes"\ntol = 1e-6\n'
        "restarts = 2\nmax_steps = 9\nbatch = 3"
    )
    assert read(PROBLEM + OVER + text, tmp_path).settings == {
        "how": "zip", "quantities": ["rank"], "resolution": "classes", "tol": 1e-6,
        "restarts": 2, "max_steps": 9, "batch": 3
    }  # fmt: skip
    assert read(PROBLEM + OVER, tmp_path).settings == {}


def test_every_example_can_be_read() -> None:
    assert {"phase", "line", "losses"} <= set(examples())
    for name in examples():
        config = read_config(name)
        points = points_of(config.problem, config.over, config.settings.get("how", "grid"))
        assert points.size >= 100
        assert example(name).startswith("# ")
        assert f"ufm sweep {name} --out {name}.zarr" in example(name)


def test_a_file_goes_before_an_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phase").write_text(PROBLEM + OVER)
    assert list(read_config("phase").over) == ["imbalance_ratio"]


REFUSED = {
    "not TOML": ("[problem]\nclass_counts = 5x5", r"is not TOML: .*line 2.*mend that line"),
    "a table that there is not": (PROBLEM + OVER + "[plot]",
        r"\[plot\] is not known; the tables are \[problem\], \[over\]"),
    "no table": ("problem = 3",
        r"problem must be a table, got 3; begin it with a line \[problem\]"),
    "no problem": (OVER,
        r"\[problem\] is missing or empty; give it, with lines such as class_counts"),
    "nothing varied": (PROBLEM + "[over]",
        r"\[over\] is missing or empty; give it, with lines such as weight_decay"),
    "a key that there is not": (PROBLEM + "ratio = 3" + OVER,
        r"\[problem\] ratio is not known, got 3; the keys are class_counts"),
    "the parameter apart": (PROBLEM + "loss_parameter = 3" + OVER,
        r"\[problem\] loss_parameter is not known"),
    "no counts": ("[problem]\nweight_decay = 1e-3\nfeature_decay = 1e-3" + OVER,
        r"\[problem\] class_counts is missing"),
    "no penalties": ('[problem]\nclass_counts = "3x5"' + OVER,
        r"\[problem\] give weight_decay and feature_decay, or weight_ball"),
    "text for a number": (PROBLEM + 'bias_decay = "1"' + OVER,
        r'\[problem\] bias_decay must be a number; got "1"'),
    "truth for a number": (PROBLEM + "feature_dim = true" + OVER,
        r"\[problem\] feature_dim must be a whole number; got true"),
    "no number": (PROBLEM.replace("5e-4", "nan") + OVER,
        r"\[problem\] feature_decay must be a number; got nan"),
    "number for truth": (PROBLEM + "bias = 1" + OVER,
        r"\[problem\] bias must be true or false; got 1"),
    "a width": (PROBLEM + "hidden = [2.5]" + OVER,
        r"\[problem\] hidden must be a list of whole numbers.*got \[2.5\]"),
    "counts": (PROBLEM.replace("2x20,2x4", "many") + OVER,
        r"\[problem\] class_counts: .*must look like 5x500,5x5.*'many'"),
    "a penalty": (PROBLEM.replace("5e-3", "-1.0") + OVER, r"\[problem\] weight_decay: .*-1"),
    "activation": (PROBLEM + 'activation = "tanh"' + OVER, r"\[problem\] .*activation.*tanh"),
    "bias decay": (PROBLEM + "bias_decay = 1.0" + OVER, r"\[problem\] bias_decay needs bias"),
    "loss": (PROBLEM + 'loss = "hinge"' + OVER,
        r'\[problem\] loss must be one of ce, mse.*got "hinge"'),
    "loss without its parameter": (PROBLEM + 'loss = "focal"' + OVER,
        r"\[problem\] loss: loss focal needs a parameter; give"),
    "loss with a parameter": (PROBLEM + 'loss = {name = "ce", parameter = 1}' + OVER,
        r"loss ce takes no parameter, got 1; give"),
    "loss of other keys": (PROBLEM + 'loss = {name = "focal", gamma = 1}' + OVER,
        r"\[problem\] loss must be a name.*gamma = 1"),
    "loss's number": (PROBLEM + 'loss = {name = "focal", parameter = -1}' + OVER,
        r"\[problem\] loss: `gamma` must be.*-1"),
    "an axis that there is not": (PROBLEM + "[over]\nratio = [1]",
        r"\[over\] cannot vary 'ratio'; it can vary imbalance_ratio"),
    "one number": (PROBLEM + "[over]\nweight_decay = 1e-3",
        r"\[over\] weight_decay must be a list of values, or a range.*got 0.001"),
    "no values": (PROBLEM + "[over]\nweight_decay = []",
        r"\[over\] weight_decay must be a list of values"),
    "texts": (PROBLEM + '[over]\nweight_decay = ["1e-3"]',
        r'\[over\] weight_decay must be a list of numbers; got "1e-3"'),
    "truths": (PROBLEM + "[over]\ndepth = [true]",
        r"\[over\] depth must be a list of numbers; got true"),
    "negative": (PROBLEM + "[over]\nweight_decay = [-1]",
        r"\[over\] weight_decay must be positive and finite, got -1"),
    "structure": (PROBLEM + "[over]\nnum_classes = [4, 5]",
        r"\[over\] num_classes must leave every group"),
    "a range of names": (PROBLEM + "[over]\nuse_bias = {low = 0, high = 1, points = 2}",
        r"\[over\] use_bias must be a list of values;"),
    "a range without points": (PROBLEM + "[over]\nweight_decay = {low = 1, high = 2}",
        r"\[over\] weight_decay lacks points"),
    "a range downwards": (PROBLEM + "[over]\nweight_decay = {low = 2, high = 1, points = 3}",
        r"low is below its high; got \{low = 2"),
    "a range of one": (PROBLEM + "[over]\nweight_decay = {low = 1, high = 2, points = 1}",
        r"at least 2 points"),
    "logarithm of zero": (PROBLEM + '[over]\nseed = {low = 0, high = 2, points = 3, scale = "log"}',
        r"low is positive"),
    "a scale": (PROBLEM + '[over]\nseed = {low = 0, high = 2, points = 3, scale = "cubic"}',
        r'"log" or "linear"'),
    "a key of a range": (PROBLEM + "[over]\nseed = {low = 0, high = 2, points = 3, step = 1}",
        r"without 'step'"),
    "losses": (PROBLEM + '[over]\nloss = ["hinge"]',
        r'\[over\] loss must be one of ce.*got "hinge"'),
    "a loss that is none": (PROBLEM + "[over]\nloss = [3]",
        r"\[over\] loss must be a list, each entry a name.*got 3"),
    "rows of counts": (PROBLEM + '[over]\nclass_counts = ["x"]',
        r"\[over\] class_counts: .*cannot read 'x'"),
    "rows of another length": (PROBLEM + "[over]\nclass_counts = [[1, 2]]",
        r"\[over\] class_counts must be rows of 4"),
    "twice the same": (PROBLEM + OVER + "minority_count = [1]",
        r"\[over\] sets the same numbers by"),
    "a setting that there is not": (PROBLEM + OVER + "[sweep]\nstore = 3",
        r"\[sweep\] store is not known, got 3; the keys are how"),
    "how": (PROBLEM + OVER + '[sweep]\nhow = "list"',
        r'\[sweep\] how must be "grid" or "zip"; got "list"'),
    "quantities": (PROBLEM + OVER + '[sweep]\nquantities = ["colour"]',
        r"\[sweep\] quantities must be a list of names among objective"),
    "tol": (PROBLEM + OVER + "[sweep]\ntol = 0", r"\[sweep\] tol must be a positive number; got 0"),
    "restarts": (PROBLEM + OVER + "[sweep]\nrestarts = 1.5",
        r"\[sweep\] restarts must be a whole number of at least 1; got 1.5"),
    "zip": (PROBLEM + OVER + 'seed = [1]\n[sweep]\nhow = "zip"',
        r"\[over\] must have as many values for every name"),
}  # fmt: skip


@for_each("name", REFUSED)
def test_refuses_in_one_line_with_the_table_and_the_key(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        read(text, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "file.toml"))
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"no such file, and no example of that name \(line, losses, noise, phase, sparsity\)",
    ):
        read_config(tmp_path / "missing.toml")
    (tmp_path / "file.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not TOML, which is text in UTF-8"):
        read_config(tmp_path / "file.toml")
    with pytest.raises(
        ValueError, match="there is no example 'phases'; the examples are line, losses, noise"
    ):
        example("phases")


def test_a_loss_of_your_own_is_named_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses.py").write_text("def fourth(z, y):\n    return ((z - y) ** 4).sum()\n")
    monkeypatch.chdir(tmp_path)
    text = """
        [problem]
        class_counts = "2x5"
        loss = "my_losses:fourth"
        weight_decay = 1e-2
        feature_decay = 1e-2
        [over]
        "regularizer.features" = [1e-2, 1e-3]
    """
    assert read(text, tmp_path).problem.loss.label == "fourth"


NOISY = """
[problem]
targets = {name = "noisy", noise = 0.1, class_counts = "2x5,3"}
weight_decay = 5e-3
feature_decay = 5e-4
"""


def test_targets_of_files_and_constructors(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("1,0,0\n0,1,1\n")
    config = read(
        NOISY + '[over]\ntargets = ["tags.csv", {name = "one-hot", class_counts = [1, 1, 2]}]',
        tmp_path,
    )
    np.testing.assert_array_equal(config.problem.row_counts, [5, 5, 3])
    assert (config.problem.feature_dim, config.problem.one_hot) == (3, False)
    labels = ["tags.csv", '{name = "one-hot", class_counts = [1, 1, 2]}']
    assert list(config.over["targets"]) == labels
    np.testing.assert_array_equal(config.over["targets"]["tags.csv"].rows, [[1, 0, 0], [0, 1, 1]])
    from_file = PROBLEM.replace('class_counts = "2x20,2x4"', 'targets = "tags.csv"')
    problem = read(from_file + "[over]\nseed = [0]", tmp_path).problem
    np.testing.assert_array_equal(problem.target_rows(float, np), [[1, 0, 0], [0, 1, 1]])


def test_a_number_of_a_constructor_is_an_axis(tmp_path: Path) -> None:
    over = read(NOISY + "[over]\ntargets.noise = [0, 0.25]", tmp_path).over
    assert list(over) == ["targets.noise"]
    found = {rate: float(targets.rows[0, 0]) for rate, targets in over["targets.noise"].items()}
    assert found == {0: 1.0, 0.25: 0.75}
    text = NOISY.replace(
        '{name = "noisy", noise = 0.1, class_counts = "2x5,3"}',
        '"random-contexts:num_tokens=4,num_contexts=3,support=2"',
    )
    over = read(
        text + '[over]\ntargets.support = {low = 1, high = 4, points = 9, scale = "linear"}',
        tmp_path,
    ).over
    assert list(over["targets.support"]) == [1, 2, 3, 4]


TARGETS_REFUSED = {
    "[over]\ntargets.rate = [0.1]": r"\[over\] targets.rate noisy takes no 'rate'",
    "[over]\ntargets.noise = [0.1, 2.0]": r"\[over\] targets.noise noisy: `noise` must be",
    "[over]\ntargets.noise = [0.1, 0.1]": "every value once",
    "[over]\ntargets.noise = 'much'": r"\[over\] targets.noise must be a list of numbers",
    "[over]\ntargets = []": r"\[over\] targets must be a list, each entry a file",
    "[over]\ntargets = ['no.csv']": r"\[over\] targets .*no.csv: there is no such file",
    "[over]\ntargets.noise = [0.1]\nimbalance_ratio = [2]": r"\[over\] sets the same numbers",
    "class_counts = '3x5'\n[over]\nseed = [0]": "class_counts and targets both state the samples",
}


def test_targets_that_files_cannot_say(tmp_path: Path) -> None:
    for text, message in TARGETS_REFUSED.items():
        with pytest.raises(ValueError, match=message):
            read(NOISY + text, tmp_path)
    with pytest.raises(ValueError, match=r"\[problem\] targets is missing; give a table there"):
        read(PROBLEM + "[over]\ntargets.noise = [0.1]", tmp_path)
    with pytest.raises(ValueError, match=r"\[problem\] targets .*the constructors are one-hot"):
        read(NOISY.replace("noisy", "noise") + OVER, tmp_path)
    with pytest.raises(ValueError, match=r"\[problem\] targets must be a file such as"):
        read(PROBLEM + "targets = 3" + OVER, tmp_path)
