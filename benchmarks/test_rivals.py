"""Every method must minimise the same function, be stopped fairly and be reported truthfully."""

import json
from typing import Literal

import numpy as np
import pytest

from benchmarks import runner, table
from benchmarks.__main__ import AGREEMENT, main
from benchmarks.agreement import balanced_point, disagreements
from benchmarks.measurement import Clock, Measurement
from benchmarks.objective import convex, factored
from benchmarks.optimum import certified_optimum
from benchmarks.problems import PROBLEMS, Setting, setting
from benchmarks.rivals import RIVALS, Rival

# What the rivals themselves warn about is not ours.
pytestmark = pytest.mark.filterwarnings("default")

SMALL = Setting("small", (30, 20, 10, 3), 6, "ce", 5e-3, 1e-4, "uneven")


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_objectives_agree_at_a_random_point(loss: Literal["ce", "mse"], seed: int) -> None:
    for method, difference in disagreements(SMALL._replace(loss=loss), seed).items():
        assert difference <= AGREEMENT, method


@pytest.mark.parametrize("name", PROBLEMS)
def test_objectives_agree_on_the_problems_of_the_table(name: str) -> None:
    one = PROBLEMS[name]
    weights, features = balanced_point(one)
    reference = factored(one, weights, features)
    assert convex(one, features @ weights.T) == pytest.approx(reference, rel=AGREEMENT)
    assert RIVALS["ufm"].load().objective_at(one, "", weights, features) == pytest.approx(
        reference, rel=AGREEMENT
    )


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("variant", ["plain", "balanced"])
def test_scipy_gradient(loss: Literal["ce", "mse"], variant: str) -> None:
    pytest.importorskip("scipy")
    from benchmarks.rivals.scipy_lbfgs import objective

    one = SMALL._replace(loss=loss)
    rng = np.random.default_rng(0)
    x, direction = rng.standard_normal((2, 2 * one.num_classes * one.dim))
    gradient = objective(one, variant, x)[1]
    ahead, behind = (objective(one, variant, x + step * direction)[0] for step in (1e-5, -1e-5))
    assert gradient @ direction == pytest.approx((ahead - behind) / 2e-5, rel=1e-7)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_torch_steps_down_the_gradient_of_the_same_objective(loss: Literal["ce", "mse"]) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.rivals.torch_descent import LEARNING_RATE, stepper

    one = SMALL._replace(loss=loss)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((one.num_classes, one.dim))
    features = rng.standard_normal((one.num_samples, one.dim))
    leaves = [torch.tensor(block, requires_grad=True) for block in (weights, features)]
    stepper(one, leaves[0], leaves[1], momentum=0.9)()
    moved = [
        (leaf.detach().numpy() - block)
        for leaf, block in zip(leaves, (weights, features), strict=True)
    ]
    for index, direction in enumerate(
        (rng.standard_normal(weights.shape), rng.standard_normal(features.shape))
    ):
        points = [[weights, features], [weights, features]]
        points[0][index], points[1][index] = (
            points[0][index] + s * 1e-5 * direction for s in (1, -1)
        )
        slope = (factored(one, *points[0]) - factored(one, *points[1])) / 2e-5
        assert np.sum(moved[index] * direction) == pytest.approx(-LEARNING_RATE * slope, rel=1e-6)


@pytest.mark.parametrize("method", [name for name in RIVALS if name != "ufm"])
def test_rivals_come_down_to_the_certified_optimum_and_not_below(method: str) -> None:
    rival = RIVALS[method]
    for package in rival.packages:
        pytest.importorskip(package)
    optimum = certified_optimum(SMALL)
    *_, rows = rival.load().measure(SMALL, rival.variant, optimum.lower_bound, 2.0)
    assert tuple(row.label for row in rows) == rival.labels
    for row in rows:
        assert not row.trouble
        assert 0 <= row.gap < (np.inf if method.startswith("torch") else 1e-6)


def test_an_objective_below_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="below the certified bound"):
        Measurement("x", optimum=1.0).report(0.1, 1 - 1e-9)


def test_measurement_keeps_first_arrivals_and_survives_json() -> None:
    measurement = Measurement("x", optimum=1.0)
    for seconds, objective in (
        (1.0, 1.1),
        (2.0, 1.00009),
        (3.0, 1.00005),
        (4.0, float("nan")),
        (5.0, 1.0),
    ):
        measurement.report(seconds, objective)
    assert measurement.arrivals == {1e-4: 2.0, 1e-8: 5.0}
    assert measurement.done
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_clock_does_not_count_pauses() -> None:
    clock = Clock()
    with clock.paused() as before:
        while clock.seconds < before + 0.05:
            pass
    assert clock.seconds < before + 0.05


def test_missing_packages_and_failures_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "ghost", Rival("nowhere", "", ("no_such_package",), ("Ghost",)))
    (row,) = runner.run("ghost", "mse-4", 1.0, 1.0)
    assert (row.trouble, row.note) == ("not installed", "needs no_such_package")
    assert "not installed" in table.results(
        [(setting("mse-4"), certified_optimum(setting("mse-4")), [row])], 1.0
    )
    # An optimum above the true one makes every objective fall below it: the worker fails, the run
    # does not.
    assert all(
        "below the certified bound" in row.note for row in runner.run("scipy", "mse-4", 1.0, 5.0)
    )


def test_a_silent_worker_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.0)
    rows = runner.run("scs", "tail-100", 1.0, 0.1) if not RIVALS["scs"].missing else []
    assert all(row.timed_out and row.gap == float("inf") for row in rows)


def test_command_line_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--problems", "ce-5"], ["--methods", "adam"], ["--limit", "-1"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "choose from" in capsys.readouterr().err
