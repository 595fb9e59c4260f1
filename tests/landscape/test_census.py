"""Where descent ends: what is one minimum, what is two, and what is none."""

import functools
import importlib
from typing import Any

import jax
import numpy as np
import plain
import pytest
from tables import for_each

import ufm
from ufm._support import Status
from ufm.landscape import Census, CensusInterrupted, Runs, census
from ufm.landscape.census import gathered
from ufm.problems import Parameters

K = 3
module = importlib.import_module(
    "ufm.landscape.census"
)  # the package's attribute of this name is the function


def problem_of(**changes: Any) -> ufm.Problem:
    settings: dict[str, Any] = {
        "class_counts": (10,) * K,
        "feature_dim": K,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=5e-3, features=5e-3),
        "hidden_dims": (K,),
    }
    return ufm.Problem(**(settings | changes))


PROBLEM = problem_of()  # two linear layers: every mode is there, or lost for good


@functools.cache
def found() -> Census:
    return census(PROBLEM, 80, key=3)


def objective(problem: ufm.Problem, parameters: Parameters) -> float:
    """In plain NumPy, sample by sample."""
    classes = np.repeat(np.arange(K), np.asarray(problem.class_counts).astype(int))
    formula = (
        plain.squared_error if isinstance(problem.loss, ufm.SquaredError) else plain.cross_entropy
    )
    sampled = parameters._replace(features=np.asarray(parameters.features)[classes])
    return plain.objective(problem, lambda z, k, n: formula(z, k), sampled, classes)


def planted(*runs: tuple[float, Any], problem: ufm.Problem = PROBLEM, **fields: Any) -> Runs:
    """Runs of given (objective, logits), converged to 1e-12 unless other fields say so.

    The logits are those of the parameters.
    """
    R, logits = len(runs), np.stack([np.asarray(matrix, float) for _, matrix in runs])
    eye = np.broadcast_to(np.eye(K), (R, K, K))
    settings: dict[str, Any] = {
        "seeds": np.arange(R),
        "status": np.full(R, int(Status.CONVERGED)),
        "objective": np.array([value for value, _ in runs]),
        "relative_gradient": np.full(R, 1e-12),
        "steps": np.full(R, 7),
        "logits": logits,
        "parameters": Parameters((eye, np.swapaxes(logits, 1, 2)), eye, None),
    }
    return Runs(**(settings | {name: np.asarray(value) for name, value in fields.items()}))


A, B = np.diag([0.9, 0.9, 0.0]), np.diag([0.9, 0.8, 0.3])


def test_every_run_is_there_and_every_minimum_is_its_own_value() -> None:
    result = found()
    runs = result.runs
    assert {leaf.shape[0] for leaf in jax.tree.leaves(runs)} == {80}
    assert set(runs.status.tolist()) <= {Status.CONVERGED, Status.STALLED, Status.MAX_STEPS}
    assert (
        sum(point.frequency for point in result.minima)
        == np.sum(runs.status == Status.CONVERGED)
        > 40
    )
    assert sum(point.frequency + point.unsettled for point in result.points) == 80
    assert np.bincount(result.point).tolist() == [
        point.frequency + point.unsettled for point in result.points
    ]
    lowest = result.minima[0]
    assert (lowest.name, lowest.rank) == ("deep neural collapse", K)
    assert [point.rank for point in result.minima[:2]] == [K, K - 1]
    values = [point.value for point in result.points]
    assert values == sorted(values)
    for point in result.points:
        assert objective(PROBLEM, point.parameters) == pytest.approx(point.value, rel=1e-12)
        assert point.value == runs.objective[point.run]
    assert result.certificate is not None
    assert result.certificate.holds
    assert str(result).count("\n") >= len(result.minima) + 2


def test_a_longer_census_begins_with_a_shorter_one_whatever_the_batches() -> None:
    shorter, longer = census(PROBLEM, 50, key=3, batch=40), found()
    np.testing.assert_array_equal(shorter.runs.seeds, longer.runs.seeds[:50])
    np.testing.assert_array_equal(shorter.runs.objective, longer.runs.objective[:50])
    assert not np.array_equal(census(PROBLEM, 2, key=4).runs.objective, longer.runs.objective[:2])


def test_what_has_not_converged_is_not_called_a_minimum() -> None:
    status = [
        Status.CONVERGED,
        Status.STALLED,
        Status.MAX_STEPS,
        Status.CONVERGED,
        Status.INTERRUPTED,
    ]
    result = gathered(
        PROBLEM,
        planted(
            (0.3, A),
            (0.2, B),
            (0.1, 0.5 * B),
            (0.05, 0.4 * B),
            (np.nan, np.nan * A),
            status=status,
            relative_gradient=[1e-12, 1e-12, 1e-2, 1e-8, np.nan],
        ),
    )
    assert [point.value for point in result.minima] == [0.3]
    assert [point.value for point in result.unsettled] == [0.05, 0.1, 0.2]
    assert result.minima[0].frequency == 1
    assert all(point.frequency == 0 and point.unsettled == 1 for point in result.unsettled)
    assert result.converged.tolist() == [True, False, False, False, False]
    assert "not called minima" in str(result)
    np.testing.assert_allclose(result.excess, [-2.5 / 3, -2 / 3, -1 / 3, 0])


def test_without_a_converged_run_there_is_no_minimum() -> None:
    result = gathered(PROBLEM, planted((0.3, A), status=[Status.STALLED]), bound=ufm.certify)
    assert result.minima == ()
    assert result.certificate is None
    assert np.isnan(result.unseen)
    assert np.all(np.isnan(result.excess))
    assert "0 minima" in str(result)


def test_what_broke_down_keeps_its_row() -> None:
    status = [Status.NON_FINITE, Status.CONVERGED, Status.CONVERGED]
    result = gathered(PROBLEM, planted((np.nan, np.nan * A), (0.3, A), (np.inf, B), status=status))
    assert result.runs.status.tolist() == status
    assert result.point.tolist() == [-1, 0, -1]
    assert result.rank.tolist() == [-1, 2, -1]
    assert "1 non_finite" in str(result)


def test_two_geometries_of_one_value_are_kept_apart() -> None:
    result = gathered(PROBLEM, planted((0.3, A), (0.3, B), (0.3, A), (0.3, -A)))
    assert [(point.frequency, point.rank) for point in result.minima] == [(2, 2), (1, 3), (1, 2)]
    assert result.unseen == 0.5


def test_one_geometry_of_two_values_is_kept_apart() -> None:
    result = gathered(PROBLEM, planted((0.3, A), (0.3 * (1 + 1e-10), A), (0.3 * (1 + 1e-13), A)))
    assert [point.frequency for point in result.minima] == [2, 1]


def test_values_are_told_apart_as_far_as_the_runs_are_accurate() -> None:
    rough = planted((0.3, A), (0.3 * (1 + 1e-10), A), relative_gradient=[1e-12, 3e-10])
    assert [point.frequency for point in gathered(PROBLEM, rough).minima] == [2]
    off = A + 1e-4 * np.eye(K)
    assert len(gathered(PROBLEM, planted((0.3, A), (0.3, off))).minima) == 2
    rough = planted((0.3, A), (0.3, off), relative_gradient=[1e-12, 1e-8])
    assert len(gathered(PROBLEM, rough, tol=1e-7).minima) == 1


def test_permutations_of_equal_classes_are_one_geometry_and_of_others_are_not() -> None:
    order = [2, 0, 1]
    runs = planted((0.3, B), (0.3, B[order][:, order]))
    assert [point.frequency for point in gathered(PROBLEM, runs).minima] == [2]
    assert len(gathered(problem_of(class_counts=(10, 10, 20)), runs).minima) == 2
    weighted = ufm.ClassWeighted(weights=(1.0, 1.0, 2.0), loss=ufm.CrossEntropy())
    assert len(gathered(problem_of(loss=weighted), runs).minima) == 2
    # Rows alone are no permutation of classes.
    assert len(gathered(PROBLEM, planted((0.3, B), (0.3, B[order]))).minima) == 2


def test_a_family_in_which_two_classes_share_a_direction_is_one_point() -> None:
    angles = [0.3, 0.7, 1.1]
    shared = [np.diag([0.9, 0, 0]) for _ in angles]
    for matrix, angle in zip(shared, angles, strict=True):
        direction = np.array([0, np.cos(angle), np.sin(angle)])
        matrix += 0.9 * np.outer(direction, direction)
    result = gathered(PROBLEM, planted(*((0.3, matrix) for matrix in shared)))
    assert [(point.frequency, point.rank) for point in result.minima] == [(3, 2)]


def test_runs_near_a_minimum_are_counted_beside_it() -> None:
    near = B + 1e-3
    status = [Status.CONVERGED, Status.STALLED, Status.STALLED]
    runs = planted((0.3, B), (0.3 * (1 + 5e-5), near), (0.3 * (1 + 1e-3), near), status=status)
    result = gathered(PROBLEM, runs)
    assert [(point.settled, point.frequency, point.unsettled) for point in result.points] == [
        (True, 1, 1),
        (False, 0, 1),
    ]


def test_names_are_of_what_is_equal_in_value_and_geometry() -> None:
    lowest = found().minima[0]
    logits = found().runs.logits[lowest.run]
    runs = planted(
        (0.5, np.zeros((K, K))), (lowest.value, logits), (lowest.value, 0.9 * logits), (0.4, logits)
    )
    names = {point.run: point.name for point in gathered(PROBLEM, runs).points}
    assert names == {0: "collapse at zero", 1: "deep neural collapse", 2: "", 3: ""}


def test_an_interrupted_census_keeps_what_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    solve, calls = module.solve_class_batch, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(options["keys"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*arguments, **options)

    monkeypatch.setattr(module, "solve_class_batch", interrupted)
    with pytest.raises(CensusInterrupted) as caught:
        census(PROBLEM, 80, key=3, batch=30)
    partial = caught.value.census
    assert isinstance(caught.value, KeyboardInterrupt)
    assert calls == [30, 30]
    np.testing.assert_array_equal(partial.runs.objective[:30], found().runs.objective[:30])
    assert partial.runs.status[30:].tolist() == [Status.INTERRUPTED] * 50
    assert np.all(np.isnan(partial.runs.objective[30:]))
    assert sum(point.frequency + point.unsettled for point in partial.points) == 30
    assert "50 interrupted" in str(partial)
    # Nothing finished: an empty census.
    calls.pop()
    with pytest.raises(CensusInterrupted) as caught:
        census(PROBLEM, 5)
    assert caught.value.census.points == ()


@for_each(
    ("arguments", "message"),
    [
        ({"problem": "this"}, "`problem` must be a ufm.Problem, got str"),
        ({"starts": 0}, "`starts` must be a whole number of at least 1, got 0"),
        ({"batch": 1.5}, "`batch` must be a whole number of at least 1, got 1.5"),
        ({"tol": np.nan}, "`tol` must be a positive finite number, got nan"),
        ({"key": "luck"}, "`key` must be a JAX PRNG key or a non-negative integer, got 'luck'"),
        ({"max_steps": -1}, "`max_steps` must be a whole number of at least 0, got -1"),
        ({"workers": 0}, "`workers` must be a whole number of at least 1, got 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        census(**({"problem": PROBLEM} | arguments))


@pytest.mark.nightly
def test_a_seed_makes_the_run_again() -> None:
    problem = problem_of(activation="relu")
    runs = census(problem, 4).runs
    for run in range(4):
        alone = ufm.solve(problem, key=int(runs.seeds[run]), restarts=1, max_steps=1000)
        assert alone.objective == pytest.approx(runs.objective[run], rel=1e-9)


@pytest.mark.nightly
@for_each(
    "changes",
    [
        {"activation": "relu"},
        {"use_bias": True, "regularizer": ufm.WeightDecay(weights=5e-3, features=5e-3, bias=1e-2)},
        {"regularizer": ufm.NormBall(weights=1.0, features=1.0), "loss": ufm.CrossEntropy()},
        {"feature_dim": 7, "hidden_dims": (), "loss": ufm.CrossEntropy()},
        {"class_counts": (50, 20, 5), "nonnegative_features": True, "hidden_dims": ()},
        {"hidden_dims": (K, K)},
    ],
)
def test_every_model_has_a_census(changes: dict[str, Any]) -> None:
    problem = problem_of(**changes)
    result = census(problem, 30)
    assert result.minima
    for point in result.minima:
        assert [matrix.shape for matrix in point.parameters.weights] == [
            (after, before)
            for before, after in zip(problem.layer_dims, problem.layer_dims[1:], strict=False)
        ]
        assert objective(problem, point.parameters) == pytest.approx(point.value, rel=1e-10)
    if not problem.hidden_dims and not problem.nonnegative_features:
        # Convex in the logits: every minimum is the global one.
        assert len(result.minima) == 1
        assert result.certificate is not None
        assert result.certificate.holds


@pytest.mark.nightly
def test_a_thousand_starts_of_a_relu_problem_find_its_ladder_of_values() -> None:
    problem = problem_of(class_counts=(10,) * 4, feature_dim=4, hidden_dims=(4,), activation="relu")
    result = census(problem, 1000)
    assert np.mean(result.converged) > 0.99
    values = np.array([point.value for point in result.minima])
    ranks = [point.rank for point in result.minima]
    # Each mode that is lost costs the same: squared error splits into modes.
    assert ranks == sorted(ranks, reverse=True)
    np.testing.assert_allclose(
        values, values[0] + (4 - np.array(ranks)) * (0.5 - values[0]) / 4, rtol=1e-9
    )
