"""The options that state a problem: what they make of it, and how they are refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import BALLS, DECAYS, FOUR, Capture, Solves, refused, refuses
from tables import for_each

import ufm
from ufm.problems import parse_counts

COUNTS = ("solve", "--counts", "4x50")


@for_each(
    ("text", "counts"),
    [
        ("5x500,5x5", [500] * 5 + [5] * 5),
        ("200,100,50", [200, 100, 50]),
        ("2X3,7", [3, 3, 7]),
        (" 2x3 , 7 ", [3, 3, 7]),
        ("2x2.5,1e2", [2.5, 2.5, 100]),
    ],
)
def test_counts_that_can_be_read(text: str, counts: list[float]) -> None:
    np.testing.assert_array_equal(np.asarray(parse_counts(text)), counts)


@for_each(
    "text",
    [
        *("", "many", "x5", "5x", "5x500,", "2x3x4", "2.5x10", "0x5,3x5", "-2x5", "2x5,0"),
        *("5x500,5x-5", "2xnan", "2xinf", "2x1e999", "500", "1x500"),
    ],
)
def test_counts_that_cannot_be_read(text: str, capsys: Capture) -> None:
    with pytest.raises(ValueError, match=r"counts|sizes"):
        parse_counts(text)
    assert "error: --counts: " in refused(["solve", f"--counts={text}", *DECAYS], capsys)


def test_the_options_of_a_problem(solves: Solves) -> None:
    problem = solves.of("--counts", "5x500,5x5", "--loss", "ce", *DECAYS)
    np.testing.assert_array_equal(np.asarray(problem.class_counts), [500] * 5 + [5] * 5)
    assert problem.feature_dim == 10
    assert isinstance(problem.loss, ufm.CrossEntropy)
    assert repr(problem.regularizer) == "WeightDecay(weights=0.005, features=0.0001)"
    assert not problem.use_bias
    assert problem.hidden_dims == ()
    assert not problem.nonnegative_features
    balls = solves.of("--counts", "4x50", *BALLS, "--nonnegative-features")
    assert repr(balls.regularizer) == "NormBall(weights=1.0, features=5.0)"
    assert balls.nonnegative_features


def test_options_of_layers_and_bias(solves: Solves) -> None:
    shape = ("--counts", "4x50", "--feature-dim", "7", "--hidden", "6,5", "--activation", "relu")
    decays = ("--weight-decay", "1e-3,2e-3,3e-3", "--feature-decay", "1e-4")
    problem = solves.of(*shape, *decays, "--loss", "mse", "--bias", "--bias-decay", "1e-2")
    assert problem.layer_dims == (7, 6, 5, 4)
    assert problem.activation == "relu"
    assert isinstance(problem.loss, ufm.SquaredError)
    assert isinstance(problem.regularizer, ufm.WeightDecay)
    np.testing.assert_array_equal(problem.regularizer.weights, [1e-3, 2e-3, 3e-3])
    assert float(problem.regularizer.bias) == 1e-2
    assert problem.use_bias


def test_every_loss_of_the_library_has_its_word(solves: Solves) -> None:
    for name, kind in ufm.losses.LIBRARY.items():
        parameter = ("--loss-parameter", "0.25") if kind.parameters else ()
        loss = solves.of("--counts", "4x50,2x5", *DECAYS, "--loss", name, *parameter).loss
        assert type(loss) is kind
        assert [float(getattr(loss, one.name)) for one in kind.parameters] == [0.25][
            : len(parameter)
        ]


def test_options_that_do_not_go_together(capsys: Capture) -> None:
    refuses(
        {
            ("solve", *DECAYS): "--counts is missing",
            COUNTS: "give --weight-decay and --feature-decay, or --weight-ball and --feature-ball",
            (*COUNTS, "--weight-decay", "1e-3"): "--feature-decay is missing",
            (*COUNTS, "--feature-decay", "1e-3"): "--weight-decay is missing",
            (*COUNTS, "--weight-ball", "1"): "--feature-ball is missing",
            (*COUNTS, "--feature-ball", "1"): "--weight-ball is missing",
            (*FOUR, *BALLS): "or --weight-ball and --feature-ball",
            (
                *COUNTS,
                *BALLS,
                "--bias",
                "--bias-decay",
                "1",
            ): "--bias-decay goes with --weight-decay",
            (*FOUR, "--bias-decay", "1e-2"): "--bias-decay needs --bias",
            (
                *FOUR,
                "--activation",
                "relu",
            ): "error: --activation relu acts between layers and needs --hidden",
            (*FOUR, "--activation", "tanh"): "got 'tanh'",
            (*FOUR, "--loss", "hinge"): "got 'hinge'",
            (*FOUR, "--loss", "focal"): "--loss focal needs a --loss-parameter",
            (*FOUR, "--loss", "ce", "--loss-parameter", "1"): "--loss ce takes no --loss-parameter",
        },
        capsys,
    )


def test_errors_begin_with_the_option_that_was_typed(capsys: Capture) -> None:
    losses = {
        "label-smoothing": ("1", "alpha"),
        "focal": ("-1", "gamma"),
        "logit-adjusted": ("nan", "strength"),
        "cdt": ("inf", "exponent"),
        "class-weighted": ("nan", "exponent"),
    }
    refuses(
        {
            (*FOUR, "--feature-dim", "0"): "error: --feature-dim: `feature_dim` must be",
            (*FOUR, "--feature-dim", "-3"): "error: --feature-dim: `feature_dim` must be",
            (*FOUR, "--hidden", "0"): "error: --hidden: `hidden_dims` must be",
            (*FOUR, "--bias", "--bias-decay", "-1"): "error: --bias-decay: ",
            (*FOUR, "--weight-decay", "1e-3,1e-3"): "per layer",
            (*FOUR, "--hidden", "5,5", "--weight-decay", "1e-3,1e-3"): "per layer",
            (*COUNTS, "--weight-ball", "1,1", "--feature-ball", "5"): "error: --weight-ball: ",
            **{
                (*FOUR, "--loss", name, "--loss-parameter", value): (
                    f"error: --loss-parameter: `{parameter}` must be"
                )
                for name, (value, parameter) in losses.items()
            },
        },
        capsys,
    )


@for_each("option", ["--weight-decay", "--feature-decay", "--weight-ball", "--feature-ball"])
def test_penalties_that_are_not_positive_and_finite(option: str, capsys: Capture) -> None:
    others = BALLS if "ball" in option else DECAYS
    for value in ("0", "-1e-3", "nan", "inf", "-inf", "1e999"):
        line = refused([*COUNTS, *others, f"{option}={value}"], capsys)
        assert f"error: {option}: " in line
    for value in ("abc", ""):
        assert "_numbers" not in refused([*COUNTS, *others, f"{option}={value}"], capsys)


def test_texts_that_are_no_numbers(capsys: Capture) -> None:
    refuses(
        {
            **{
                (*FOUR, "--bias", f"--bias-decay={value}"): "--bias-decay"
                for value in ("-1e-3", "nan", "inf", "-inf", "abc", "1e999", "")
            },
            (*FOUR, "--loss", "focal", "--loss-parameter", "two"): "two",
            (*FOUR, "--feature-decay", "abc"): "abc",
            (*FOUR, "--feature-dim", "2.5"): "2.5",
            (*FOUR, "--hidden", "5,wide"): "5,wide",
        },
        capsys,
    )


def test_negative_numbers_are_values(capsys: Capture) -> None:
    refuses(
        {
            (*COUNTS, "--weight-decay", value, "--feature-decay", "1"): "error: --weight-decay: "
            for value in ("-1e-3", "-.5", "-2,-1e-3", "-inf", "-1E+4")
        },
        capsys,
    )


OWN = """
import jax, jax.numpy as jnp, ufm

def pairwise(z, y):
    return jnp.sum((1 - y) * jax.nn.softplus(z - jnp.sum(y * z)))

scaled = ufm.losses.from_function(lambda z, y: 4 * pairwise(z, y), name="scaled")

class Huber(ufm.Loss):
    delta: float
    convex = True

    def __call__(self, logits, targets, classes):
        off = jnp.abs(logits - targets)
        inner = jnp.minimum(off, self.delta)
        return jnp.sum(inner * (off - 0.5 * inner), axis=1)

number = 3
"""


def test_a_loss_of_your_own_is_named_by_its_module(
    solves: Solves,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    named = ("--counts", "4x50", *DECAYS, "--loss")
    assert solves.of(*named, "own_losses:pairwise").loss.label == "pairwise"
    assert solves.of(*named, "own_losses:scaled").loss.label == "scaled"
    huber = solves.of(*named, "own_losses:Huber", "--loss-parameter", "0.5").loss
    assert huber.label == "Huber(delta=0.5)"
    assert sys.path == path
    capsys.readouterr()  # of the solves that were stopped
    refuses(
        {
            (*FOUR, "--loss", "own_losses:nothing"): "own_losses:nothing cannot be loaded",
            (*FOUR, "--loss", "no_such_module:f"): "cannot be loaded: ModuleNotFoundError",
            (*FOUR, "--loss", "own_losses:number"): "must be a ufm.Loss, or a function of a row",
            (*FOUR, "--loss", "own_losses:Huber"): "cannot be made without --loss-parameter",
            (*FOUR, "--loss", "own_losses:jnp.subtract"): "`f` must return one number for a row",
            (*FOUR, "--loss", "own_losses:jnp.zeros_like"): "`f` could not be called with rows",
            (*FOUR, "--loss", "own_losses:pairwise", "--loss-parameter", "1"): (
                "own_losses:pairwise takes no --loss-parameter"
            ),
            (*FOUR, "--loss", "own losses:f"): "or module:name for one of your own; got 'own loss",
        },
        capsys,
    )


def test_targets_take_the_place_of_counts(solves: Solves, tmp_path: Path, capsys: Capture) -> None:
    tags = tmp_path / "tags.csv"
    tags.write_text("cat,dog,emu,count\n1,0,0,10\n0,1,0,10\n0,0,1,5\n1,1,0,3\n")
    problem = solves.of("--targets", str(tags), "--loss", "bce", *DECAYS)
    assert (problem.num_rows, problem.num_classes, problem.feature_dim) == (4, 3, 3)
    np.testing.assert_array_equal(problem.row_counts, [10, 10, 5, 3])
    noisy = solves.of("--targets", "noisy:noise=0.1,class_counts=2x5,3", *DECAYS)
    np.testing.assert_array_equal(noisy.row_counts, [5, 5, 3])
    assert noisy.target_rows(float, np)[0, 0] == 0.9
    capsys.readouterr()  # of the solves that were stopped
    at = ["--x", "weight_decay:1e-3:1e-2:3", "--y", "regularizer.bias:1e-3:1e-2:3"]
    refuses(
        {
            (*FOUR, "--targets", str(tags)): "--counts and --targets both state the samples",
            ("solve", "--targets", "no.csv", *DECAYS): "error: --targets: `targets` no.csv: there",
            ("solve", "--targets", "noise:noise=1", *DECAYS): "(did you mean noisy?)",
            ("phase", "--targets", str(tags), *DECAYS, *at): "`targets`, whose rows are no classes",
            ("mitigate", "--targets", str(tags), *DECAYS): "`targets`, whose rows are no classes",
        },
        capsys,
    )
