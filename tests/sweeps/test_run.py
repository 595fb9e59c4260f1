"""`ufm.sweep`: every model and every kind of axis, against `solve` at single points."""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import a_problem
from tables import for_each

import ufm
from ufm._support import Status
from ufm.sweeps.evaluation import resolution_for

problem_of = functools.partial(
    a_problem,
    class_counts=ufm.ClassGroups.step(4, 100, imbalance_ratio=10),
    feature_dim=4,
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-5),
)


DEEP: dict[str, Any] = {
    "class_counts": (10,) * 3,
    "loss": ufm.SquaredError(),
    "hidden_dims": (4,),
    "feature_dim": 4,
}


@pytest.mark.parametrize(
    ("changes", "over", "options", "certified"),
    [
        ({}, {"weight_decay": [1e-4, 1e-2], "imbalance_ratio": [1.0, 9.0, 90.0]}, {}, True),
        pytest.param(
            {"nonnegative_features": True},
            {"imbalance_ratio": [1.0, 9.0, 90.0]},
            {},
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"class_counts": (9, 5, 3, 2)},
            {"weight_decay": [1e-4, 1e-2], "imbalance_ratio": [2.0, 9.0]},
            {},
            True,
            marks=pytest.mark.slow,
        ),
        ({}, {"class_counts": [[5, 5, 5, 5], [9, 1, 2, 3], [1e-8, 1, 1, 1e6]]}, {}, True),
        (
            {},
            {"num_classes": [2, 4], "loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.1)]},
            {},
            True,
        ),
        pytest.param(
            {}, {"feature_dim": [3, 6], "use_bias": [False, True]}, {}, True, marks=pytest.mark.slow
        ),
        pytest.param(
            {"loss": ufm.Focal(2.0)},
            {"loss.gamma": [0.5, 2.0]},
            {"restarts": 2},
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DEEP,
            {"weight_decay": [1e-3, 1e-2], "depth": [1, 2, 3]},
            {"restarts": 3},
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DEEP, {"weight_decay": [1e-3, 1e-2]}, {"restarts": 3}, True, marks=pytest.mark.slow
        ),
        pytest.param(
            {**DEEP, "activation": "relu"},
            {"weight_decay": [3e-3], "seed": [0, 1]},
            {"restarts": 3},
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "groups",
        "non-negative",
        "tail",
        "counts",
        "structures",
        "widths",
        "focal",
        "depths",
        "deep linear",
        "deep relu",
    ],
)
def test_every_point_is_solved(changes: Any, over: Any, options: Any, certified: bool) -> None:
    problem = problem_of(**changes)
    dataset = ufm.sweep(problem, over, **options)
    assert (
        dict(dataset.sizes).items() >= {name: len(values) for name, values in over.items()}.items()
    )
    assert set(np.unique(dataset.status)) == {Status.CONVERGED}
    assert bool(dataset.certified.all()) == certified
    if certified:
        assert np.all(dataset.relative_gap <= 1e-9)
        assert np.all(dataset.lower_bound <= dataset.objective)
    there = dataset.theorem != "none"
    np.testing.assert_allclose(
        dataset.objective.where(there), dataset.predicted_objective.where(there), rtol=1e-8
    )


@pytest.mark.parametrize("resolution", ["groups", pytest.param("classes", marks=pytest.mark.slow)])
def test_a_point_is_what_solve_finds(resolution: Any) -> None:
    dataset = ufm.sweep(
        problem_of(),
        {"weight_decay": [1e-4, 1e-3], "imbalance_ratio": [3.0, 30.0]},
        resolution=resolution,
    )
    factor = 1e-3 / 1e-4
    alone = ufm.solve(
        problem_of(
            class_counts=ufm.ClassGroups.step(4, 100, imbalance_ratio=30),
            regularizer=ufm.WeightDecay(weights=1e-3 * factor, features=1e-5 * factor),
        )
    )
    point = dataset.sel(weight_decay=1e-3, imbalance_ratio=30)
    assert float(point.objective) == pytest.approx(alone.objective, rel=1e-9)
    np.testing.assert_allclose(
        point.weight_norm, np.linalg.norm(alone.weights[0], axis=1)[[0, 2]], rtol=1e-4
    )


def test_axes_may_come_in_any_order_and_zipped() -> None:
    decays, ratios = [1e-4, 1e-3], [3.0, 30.0]
    grid = ufm.sweep(problem_of(), {"weight_decay": decays, "imbalance_ratio": ratios})
    turned = ufm.sweep(problem_of(), {"imbalance_ratio": ratios, "weight_decay": decays})
    np.testing.assert_allclose(grid.objective, turned.objective.T, rtol=1e-12)
    zipped = ufm.sweep(problem_of(), {"weight_decay": decays, "imbalance_ratio": ratios}, how="zip")
    np.testing.assert_allclose(zipped.objective, np.diag(grid.objective), rtol=1e-12)
    assert zipped.sizes["point"] == 2
    np.testing.assert_array_equal(zipped.imbalance_ratio, ratios)


@pytest.mark.slow
def test_groups_of_equal_counts_stay_apart_when_solved_one_by_one() -> None:
    """With h >= 0 and many classes, points are solved one by one over groups.

    At R = 1 there is one group, and the answer has two.
    """
    problem = problem_of(
        class_counts=ufm.ClassGroups.step(120, 50, imbalance_ratio=5),
        feature_dim=120,
        nonnegative_features=True,
    )
    assert resolution_for(problem, 2, "groups") == "one by one"
    dataset = ufm.sweep(problem, {"imbalance_ratio": [1.0, 4.0]}, resolution="groups")
    assert bool(dataset.certified.all())
    assert not np.isnan(dataset.weight_norm).any()
    assert float(dataset.weight_norm[0, 0]) == float(dataset.weight_norm[0, 1])


def test_no_row_is_dropped_whatever_becomes_of_it() -> None:
    cut = ufm.sweep(problem_of(), {"weight_decay": np.geomspace(1e-6, 1e-2, 5)}, max_steps=3)
    assert set(np.unique(cut.status)) == {Status.MAX_STEPS}
    assert np.isfinite(cut.objective).all()
    assert np.all(cut.lower_bound <= cut.objective)
    assert not cut.certified.any()
    narrow = ufm.sweep(problem_of(), {"feature_dim": [1, 3]})
    # The bound is not tight for so few dimensions: the verdict is that of `solve`.
    assert narrow.status.values.tolist() == [Status.CONVERGED, Status.CONVERGED]
    assert narrow.certified.values.tolist() == [False, True]
    assert narrow.relative_gap[0] > 1e-3  # the price of the dimension


def test_a_million_classes() -> None:
    problem = problem_of(
        class_counts=ufm.ClassGroups.step(10**6, 500, imbalance_ratio=10), feature_dim=10**6
    )
    dataset = ufm.sweep(problem, {"weight_decay": [1e-9, 1e-7], "num_minority": [10.0, 999_999.0]})
    assert bool(dataset.certified.all())


@pytest.mark.slow
def test_one_compilation_for_all_boxes(caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_of(class_counts=ufm.ClassGroups((90.0, 30.0, 2.0), (1, 2, 2)), feature_dim=5)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        ufm.sweep(problem, {"weight_decay": np.geomspace(1e-5, 1e-3, 50)}, batch=16)
    programs = [
        record.getMessage().split()[4]
        for record in caplog.records
        if "Finished XLA compilation" in record.getMessage()
    ]
    solves = [name for name in programs if "certified" in name]
    assert len(solves) <= 2, (
        programs
    )  # one piece of many points, one of those that are solved again


def test_the_dataset_says_what_it_is() -> None:
    calls: list[tuple[int, int]] = []
    over = {
        "loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.25)],
        "weight_decay": [1e-3, 1e-2, 1e-1],
    }
    dataset = ufm.sweep(
        problem_of(), over, progress=lambda done, total: calls.append((done, total))
    )
    assert dataset.loss.values.tolist() == ["CrossEntropy", "LabelSmoothing(alpha=0.25)"]
    assert dataset.attrs["ufm_version"] == ufm.__version__
    assert (dataset.attrs["precision"], dataset.attrs["seed"]) == ("float64", 0)
    assert '"tol": 1e-09' in dataset.attrs["settings"]
    assert '"counts": [100.0, 10.0]' in dataset.attrs["problem"]
    assert all(dataset[name].attrs["long_name"] for name in dataset)
    assert sorted(calls) == [(3, 6), (6, 6)]


@for_each(
    ("options", "message"),
    [
        ({"resolution": "samples"}, "`resolution` must be"),
        ({"tol": 0.0}, "`tol` must be a positive"),
        ({"restarts": 0}, "`restarts` must be a whole number"),
        ({"max_steps": 1.5}, "`max_steps` must be a whole number"),
        ({"batch": 0}, "`batch` must be a whole number"),
        ({"key": -1}, "`key` must be a whole number"),
        ({"quantities": ["beauty"]}, "`quantities` must be one of"),
        ({"resume": True}, "`resume` needs a `store`"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ufm.sweep(problem_of(), {"weight_decay": [1e-3]}, **options)


@pytest.mark.parametrize("missing", ["xarray", "zarr"])
def test_what_is_not_installed_is_said_before_anything_is_solved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError, match=rf"needs {missing}, of the extra `sweep`: pip install 'ufm\[sweep\]'"
    ):
        ufm.sweep(problem_of(), {"weight_decay": [1e-3]}, store=tmp_path / "store")


def test_a_store_is_resumed_in_its_own_batches(tmp_path: Any) -> None:
    over = {"weight_decay": np.geomspace(1e-4, 1e-2, 6)}
    whole = ufm.sweep(problem_of(), over, store=tmp_path / "store", batch=2)
    assert ufm.sweep(problem_of(), over, store=tmp_path / "store", resume=True).identical(whole)
    with pytest.raises(ValueError, match="another division into batches"):
        ufm.sweep(problem_of(), over, store=tmp_path / "store", resume=True, batch=3)


def test_groups_cannot_be_asked_for_where_they_are_not_exact() -> None:
    with pytest.raises(ValueError, match="`resolution` 'groups' is for one-hot classes, one layer"):
        ufm.sweep(problem_of(**DEEP), {"weight_decay": [1e-3]}, resolution="groups")


@pytest.mark.slow
def test_objectives_near_zero_are_those_of_single_solves() -> None:
    problem = ufm.Problem(
        class_counts=[5, 5, 5],
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(100.0, 1.0),
    )
    dataset = ufm.sweep(problem, over={"regularizer.features": [1.0, 100.0]})
    margins = 1.5 * np.sqrt([1.0, 100.0]) * 10
    np.testing.assert_allclose(dataset.objective, np.log1p(2 * np.exp(-margins)), rtol=1e-11)
    assert np.all(dataset.status == ufm.Status.CONVERGED)


@pytest.mark.slow
def test_a_loss_of_your_own_is_swept_and_compared() -> None:
    def pick(z: Any, y: Any) -> Any:
        return jax.nn.logsumexp(z) - jnp.sum(y * z)

    fields: dict[str, Any] = {
        "class_counts": (30.0, 30.0, 5.0, 5.0),
        "feature_dim": 4,
        "regularizer": ufm.WeightDecay(weights=5e-3, features=1e-3),
    }
    over = {"regularizer.features": np.array([1e-4, 1e-3, 1e-2])}
    own, library = (
        ufm.sweep(ufm.Problem(loss=loss, **fields), over)
        for loss in (ufm.losses.from_function(pick), ufm.CrossEntropy())
    )
    np.testing.assert_allclose(own.objective, library.objective, rtol=1e-10)
    assert np.all(np.abs(own.relative_gap) <= 1e-9)
    assert json.loads(own.attrs["problem"])["loss"] == "pick"
    solution = ufm.solve(ufm.Problem(loss=ufm.losses.from_function(pick), **fields))
    prediction = ufm.predict(ufm.Problem(loss=ufm.CrossEntropy(), **fields))
    assert ufm.compare(solution, prediction).passed
