"""Gradient flow and descent: their paths, their records, how they end and are kept."""

import builtins
import importlib
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm import dynamics
from ufm._support import Status, to_numpy
from ufm.dynamics import descent, gaussian_start, gradient_flow, load_trajectory
from ufm.dynamics.flow import diffrax_or_remedy
from ufm.metrics import neural_collapse
from ufm.problems import lifted

pytest.importorskip("diffrax")

COUNTS = (3, 2, 2)
TIMES = (1.0, 5.0, 20.0)


def stated(loss: Any = None, decay: float = 1e-2, **others: Any) -> ufm.Problem:
    settings: dict[str, Any] = {
        "class_counts": COUNTS,
        "feature_dim": 4,
        "loss": loss or ufm.SquaredError(),
    }
    settings |= {"regularizer": ufm.WeightDecay(weights=decay, features=decay)} | others
    return ufm.Problem(**settings)


PROBLEM = stated()


def gradient(
    problem: ufm.Problem, W: np.ndarray, H: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the squared error of all samples and its penalties, in plain NumPy."""
    rest = (H @ W.T - np.eye(3)[labels]) / len(H)
    decay = problem.regularizer
    assert isinstance(decay, ufm.WeightDecay)
    return rest.T @ H + float(decay.weights) * W, rest @ W + float(decay.features) * H


@pytest.mark.nightly
def test_both_resolutions_and_plain_runge_kutta_have_the_same_path() -> None:
    start = gaussian_start(PROBLEM, key=3)
    classes = gradient_flow(PROBLEM, times=TIMES, initial=start)
    samples = gradient_flow(PROBLEM, times=TIMES, initial=start, resolution="samples")
    assert classes.status == samples.status == Status.FINISHED
    for at in range(4):
        np.testing.assert_allclose(
            samples.point(at).weights[0], classes.point(at).weights[0], atol=1e-8
        )
        lift = lifted(classes.point(at).features, PROBLEM.class_counts)
        np.testing.assert_allclose(samples.point(at).features, lift, atol=1e-8)
    for name in (
        "objective",
        "gradient_norm",
        "norm",
        "alignment",
        "nc2_weights",
        "nc3",
        "margins",
        "balance",
    ):
        np.testing.assert_allclose(
            getattr(samples, name), getattr(classes, name), atol=1e-8, err_msg=name
        )
    np.testing.assert_allclose(
        samples.logit_singular_values[:, :3], classes.logit_singular_values, atol=1e-8
    )

    labels = samples.labels
    assert labels is not None
    point, step = (np.asarray(start.weights[0]), lifted(start.features, PROBLEM.class_counts)), 0.01

    def velocity(W: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(-slope for slope in gradient(PROBLEM, W, H, labels))

    for _ in range(100):
        k1 = velocity(*point)
        k2 = velocity(*(p + step / 2 * k for p, k in zip(point, k1, strict=True)))
        k3 = velocity(*(p + step / 2 * k for p, k in zip(point, k2, strict=True)))
        k4 = velocity(*(p + step * k for p, k in zip(point, k3, strict=True)))
        point = tuple(
            p + step / 6 * (a + 2 * b + 2 * c + d)
            for p, a, b, c, d in zip(point, k1, k2, k3, k4, strict=True)
        )
    np.testing.assert_allclose(classes.point(1).weights[0], point[0], atol=1e-8)
    steepness = np.sqrt(sum(np.sum(slope**2) for slope in gradient(PROBLEM, *point, labels)))
    np.testing.assert_allclose(classes.gradient_norm[1], steepness, rtol=1e-7)


def test_what_is_recorded_is_what_it_says() -> None:
    found = gradient_flow(PROBLEM, times=TIMES, key=1)
    last, counts = found.final, np.array(COUNTS)
    measured = neural_collapse(last.features, np.arange(3), last.weights[0], sample_weights=counts)
    assert measured.nc2_weights is not None
    assert measured.nc3 is not None
    np.testing.assert_allclose(found.nc2_weights[-1], measured.nc2_weights.etf_distance, rtol=1e-9)
    np.testing.assert_allclose(found.nc3[-1], measured.nc3.squared_distance, rtol=1e-9)
    logits = last.features @ last.weights[0].T
    others = np.max(np.where(np.eye(3, dtype=bool), -np.inf, logits), axis=1)
    np.testing.assert_allclose(found.margins[-1], np.diagonal(logits) - others, rtol=1e-12)
    scaled = np.sqrt(counts)[:, None]
    np.testing.assert_allclose(
        found.logit_singular_values[-1], np.linalg.svd(scaled * logits)[1], rtol=1e-9
    )
    np.testing.assert_allclose(
        found.feature_singular_values[-1], np.linalg.svd(scaled * last.features)[1], rtol=1e-9
    )
    loss = np.sum(counts[:, None] * (logits - np.eye(3)) ** 2) / 14
    penalty = 0.005 * (np.sum(last.weights[0] ** 2) + np.sum(scaled**2 * last.features**2))
    np.testing.assert_allclose(
        [found.data_term[-1], found.objective[-1]], [loss, loss + penalty], rtol=1e-12
    )
    assert "followed to the last time" in str(found)
    assert not hasattr(found, "nonsense")


def test_a_long_flow_ends_at_the_minimum_and_says_that_it_converged() -> None:
    found = gradient_flow(PROBLEM, times=1e4, tol=1e-9)
    assert found.status == Status.CONVERGED
    assert found.gradient_norm[-1] <= 1e-9 < found.gradient_norm[-2]
    roots, decay = np.sqrt(COUNTS), 1e-2
    kept = roots - 7 * decay  # soft thresholds of the singular values
    np.testing.assert_allclose(
        found.objective[-1], np.sum((roots - kept) ** 2) / 14 + decay * np.sum(kept), rtol=1e-9
    )


def test_memory_is_bounded_by_keeping_few_points() -> None:
    found = gradient_flow(PROBLEM, times=np.linspace(1, 20, 20), keep=4)  # type: ignore[arg-type]
    assert found.times.size == 21
    assert found.kept.tolist() == [0, 7, 13, 20]
    assert found.points.features.shape == (4, 3, 4)
    early = gradient_flow(PROBLEM, times=np.linspace(1, 20, 20), keep=4, tol=0.05)  # type: ignore[arg-type]
    assert early.kept[-1] == early.times.size - 1 < 20
    np.testing.assert_array_equal(early.final.features.shape, (3, 4))


def test_running_out_of_steps_is_a_status() -> None:
    found = gradient_flow(PROBLEM, times=(1e3,), max_steps=2)
    assert found.status == Status.MAX_STEPS
    assert found.steps[-1] == 2
    assert 0 < found.times[-1] < 1e3


@pytest.mark.nightly
def test_running_out_of_steps_at_a_recorded_time_is_no_failure_of_the_integrator() -> None:
    found = gradient_flow(PROBLEM, times=np.linspace(1e-4, 1e-2, 40), max_steps=20)  # type: ignore[arg-type]
    assert found.status == Status.MAX_STEPS
    assert found.steps[-1] == 20
    assert 20 in found.steps[:-1]


def test_starts_that_overflow_are_a_status() -> None:
    start = gaussian_start(PROBLEM, scale=1e200)
    assert gradient_flow(PROBLEM, times=TIMES, initial=start).status == Status.NON_FINITE
    assert descent(PROBLEM, learning_rate=0.1, steps=3, initial=start).status == Status.NON_FINITE


def test_descent_is_gradient_descent_on_samples_at_either_resolution() -> None:
    start = gaussian_start(PROBLEM, key=3)
    found = descent(PROBLEM, learning_rate=0.3, momentum=0.5, steps=(1, 4, 20), initial=start)
    labels = np.repeat(np.arange(3), COUNTS)
    W, H = np.asarray(start.weights[0]), lifted(start.features, PROBLEM.class_counts)
    velocity: tuple[Any, ...] = (0.0, 0.0)
    for _ in range(20):
        velocity = tuple(
            0.5 * v - slope
            for v, slope in zip(velocity, gradient(PROBLEM, W, H, labels), strict=True)
        )
        W, H = W + 0.3 * velocity[0], H + 0.3 * velocity[1]
    np.testing.assert_allclose(found.final.weights[0], W, rtol=1e-10)
    np.testing.assert_allclose(lifted(found.final.features, PROBLEM.class_counts), H, rtol=1e-10)
    np.testing.assert_allclose(found.times, np.array([0, 1, 4, 20]) * 0.6)
    assert found.steps.tolist() == [0, 1, 4, 20]


def test_descent_goes_to_the_flow_as_its_rate_falls() -> None:
    start = gaussian_start(PROBLEM, key=3)
    flow = gradient_flow(PROBLEM, times=TIMES, initial=start)
    errors = []
    for rate in (0.02, 0.01):
        steps = [round(t / rate) for t in TIMES]
        found = descent(PROBLEM, learning_rate=rate, steps=steps, initial=start)
        errors.append(np.max(np.abs(found.final.weights[0] - flow.final.weights[0])))
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)


def test_descent_that_diverges_is_a_status_with_finite_points() -> None:
    found = descent(PROBLEM, learning_rate=20.0, steps=200)
    assert found.status == Status.NON_FINITE
    assert np.all(np.isfinite(found.final.features))


def test_a_path_is_saved_and_loaded(tmp_path: Path) -> None:
    found = gradient_flow(PROBLEM, times=TIMES, key=5)
    path = tmp_path / "path.npz"
    found.save(path)
    again = load_trajectory(path, PROBLEM)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    assert again.status == found.status
    with pytest.raises(ValueError, match=r"`problem` must be the one"):
        load_trajectory(path, stated(decay=2e-2))
    with pytest.raises(ValueError, match=r"`problem` must be the one"):
        load_trajectory(path, stated(loss=ufm.CrossEntropy()))
    np.savez(path, a=np.zeros(2))
    with pytest.raises(ValueError, match=r"`path` must be a file written by"):
        load_trajectory(path, PROBLEM)
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match=r"`path` must be a file written by"):
        load_trajectory(path, PROBLEM)


def test_control_c_keeps_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = np.linspace(1, 1e6, 200_000)
    module, read = importlib.import_module("ufm.dynamics.trajectory"), []

    def interrupted(tree: Any) -> Any:
        read.append(tree)
        if len(read) == 20:  # of the measures and the point of every time
            signal.raise_signal(signal.SIGINT)
        return to_numpy(tree)

    monkeypatch.setattr(module, "to_numpy", interrupted)
    # A process in the background of a shell ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as caught:
        gradient_flow(PROBLEM, times=schedule)  # type: ignore[arg-type]
    signal.signal(signal.SIGINT, before)
    assert isinstance(caught.value, dynamics.DynamicsInterrupted)
    kept = caught.value.trajectory
    assert kept.status == Status.INTERRUPTED
    assert 1 < kept.times.size < schedule.size
    np.testing.assert_array_equal(kept.objective.shape, kept.times.shape)


@for_each(
    ("settings", "message"),
    [
        ({"times": (2.0, 1.0)}, r"`times` must be increasing"),
        ({"times": -1.0}, r"`times` must be increasing"),
        ({"times": (np.nan,)}, r"`times` must be increasing"),
        ({"times": "long"}, r"`times` must be one positive number"),
        ({"times": ()}, r"`times` must be one positive number"),
        ({"resolution": "groups"}, r"`resolution` must be one of classes, samples"),
        ({"solver": "euler"}, r"`solver` must be one of explicit, implicit"),
        ({"penalty_factor": -1.0}, r"`penalty_factor` must be a finite number >= 0"),
        ({"rtol": 0.0}, r"`rtol` must be a positive"),
        ({"keep": 1}, r"`keep` must be a whole number of at least 2"),
        ({"scale": np.inf}, r"`scale` must be a positive finite number"),
        ({"initial": gaussian_start(PROBLEM), "key": 1}, r"give either `initial` or `key`"),
        ({"initial": gaussian_start(stated(feature_dim=5))}, r"`weights` must have shapes"),
        (
            {"initial": gaussian_start(PROBLEM)._replace(features=np.full((3, 4), np.nan))},
            r"`initial` must be finite",
        ),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_flow(PROBLEM, **({"times": TIMES} | settings))


def test_models_without_a_flow_are_named() -> None:
    balls = stated(regularizer=ufm.NormBall(weights=1.0, features=1.0))
    with pytest.raises(ValueError, match=r"must have ufm\.WeightDecay"):
        gradient_flow(balls, times=TIMES)
    with pytest.raises(ValueError, match="features of any sign"):
        gradient_flow(stated(nonnegative_features=True), times=TIMES)
    with pytest.raises(ValueError, match=r"must be a ufm\.Problem"):
        gradient_flow("problem", times=TIMES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`steps` must be increasing whole"):
        descent(PROBLEM, learning_rate=0.1, steps=(1, 2.5))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"`learning_rate` must be a positive finite number, got -0\.1\."
    ):
        descent(PROBLEM, learning_rate=-0.1, steps=3)


def test_without_diffrax_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *others: Any, **settings: Any) -> Any:
        if name == "diffrax":
            raise ImportError("no diffrax")
        return real(name, *others, **settings)

    diffrax_or_remedy.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'ufm\[dynamics\]'"):
        gradient_flow(PROBLEM, times=TIMES)
    diffrax_or_remedy.cache_clear()


@pytest.mark.nightly
def test_the_implicit_integrator_has_the_same_path() -> None:
    start = gaussian_start(PROBLEM, key=3)
    explicit = gradient_flow(PROBLEM, times=(1.0, 20.0, 1e4), initial=start)
    implicit = gradient_flow(PROBLEM, times=(1.0, 20.0, 1e4), initial=start, solver="implicit")
    np.testing.assert_allclose(implicit.points.features, explicit.points.features, atol=1e-7)


@pytest.mark.nightly
def test_results_do_not_depend_on_the_setting_of_the_process(process_x64: bool) -> None:
    found = gradient_flow(PROBLEM, times=TIMES, key=3)
    assert found.objective.dtype == np.float64
    assert found.points.features.dtype == np.float64
    made = descent(PROBLEM, learning_rate=0.1, steps=10)
    assert made.objective.dtype == np.float64
    np.testing.assert_allclose(
        found.objective[0], gradient_flow(PROBLEM, times=1.0, key=3).objective[0], rtol=1e-14
    )


@pytest.mark.nightly
@for_each("loss", [ufm.CrossEntropy(), ufm.LabelSmoothing(0.1), ufm.Focal(2.0)])
def test_deep_models_with_bias_descend(loss: Any) -> None:
    problem = stated(loss, hidden_dims=(5,), use_bias=True)
    found = gradient_flow(problem, times=np.geomspace(0.1, 1e3, 30), scale=0.5)  # type: ignore[arg-type]
    assert found.status == Status.FINISHED
    assert dynamics.energy_check(found).holds
    assert found.points.bias is not None
    assert found.balance.shape == (31, 2)


@pytest.mark.nightly
def test_a_path_that_slides_along_a_kink_is_a_status_and_descent_goes_on() -> None:
    problem = stated(hidden_dims=(5, 4), activation="relu")
    start = gaussian_start(problem, key=1, scale=0.7)
    found = gradient_flow(
        problem, times=(1.0, 3.0, 10.0), initial=start, penalty_factor=0.0, max_steps=20_000
    )
    assert found.status in (Status.MAX_STEPS, Status.INTEGRATION_FAILED)
    assert 3 < found.times[-1] < 10
    steps = [100, 300, 1000]
    stepped = descent(problem, learning_rate=0.01, steps=steps, initial=start, penalty_factor=0.0)
    assert stepped.status == Status.FINISHED
    np.testing.assert_allclose(stepped.objective[:3], found.objective[:3], rtol=0.02)
