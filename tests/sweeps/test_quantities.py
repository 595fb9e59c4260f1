"""What a sweep keeps, against the metrics of the matrices that `solve` returns."""

import functools
from typing import Any

import numpy as np
import pytest
from plain import a_problem

import ufm
from ufm.metrics import neural_collapse
from ufm.problems import family_of
from ufm.sweeps import QUANTITIES
from ufm.sweeps.predictions import predictions
from ufm.sweeps.quantities import ALWAYS, DEFAULT, checked_quantities

COUNTS = ufm.ClassGroups(counts=(60.0, 9.0), sizes=(3, 2))


problem_of = functools.partial(
    a_problem,
    class_counts=COUNTS,
    feature_dim=5,
    regularizer=ufm.WeightDecay(weights=2e-3, features=3e-5),
)


def measured(solution: ufm.Solution) -> dict[str, Any]:
    """The same quantities from the explicit matrices, by the library's metrics and by hand."""
    K, groups = 5, np.array([0, 0, 0, 1, 1])
    W, M = np.asarray(solution.weights[-1]), np.asarray(solution.class_features)
    found = neural_collapse(M, np.arange(K), weights=W)
    margins = np.diag(solution.logits) - np.max(
        np.where(np.eye(K, dtype=bool), -np.inf, solution.logits), axis=1
    )

    def cosines(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        products = unit @ unit.T
        table = np.empty((2, 2))
        for g in range(2):
            for h in range(2):
                pairs = [
                    products[k, m]
                    for k in range(K)
                    for m in range(K)
                    if k != m and (groups[k], groups[m]) == (g, h)
                ]
                table[g, h] = np.mean(pairs)
        return table

    counts = np.asarray(solution.problem.class_counts)
    return {
        "nc2_weights": found.nc2_weights.etf_distance,
        "nc2_features": found.nc2_features.etf_distance,
        "nc2_weights_frame": found.nc2_weights.orthogonal_distance,
        "nc2_features_frame": found.nc2_features.orthogonal_distance,
        "nc3": found.nc3.squared_distance,
        "weight_norm": [np.linalg.norm(W[groups == g], axis=1).mean() for g in (0, 1)],
        "feature_norm": [np.linalg.norm(M[groups == g], axis=1).mean() for g in (0, 1)],
        "margin": [margins[groups == g].min() for g in (0, 1)],
        "weight_cosine": cosines(W),
        "feature_cosine": cosines(M),
        "rank": np.linalg.matrix_rank(
            solution.logits - (0 if solution.bias is None else solution.bias[None, :])
        ),
        "accuracy": np.sum(counts * (margins > 0)) / counts.sum(),
        "objective": solution.objective,
    }


BALL = {"regularizer": ufm.NormBall(weights=2.0, features=3.0)}


@pytest.mark.parametrize(
    ("resolution", "changes"),
    [
        pytest.param("groups", {"use_bias": True}, marks=pytest.mark.slow),
        pytest.param("classes", {"use_bias": True}, marks=pytest.mark.slow),
        pytest.param("groups", {"loss": ufm.SquaredError()}, marks=pytest.mark.slow),
        pytest.param("groups", {}, marks=pytest.mark.slow),
        pytest.param("classes", {}, marks=pytest.mark.slow),
        pytest.param("groups", BALL, marks=pytest.mark.slow),
        pytest.param("classes", BALL, marks=pytest.mark.slow),
    ],
    ids=[
        "bias-groups",
        "bias-classes",
        "squared-error",
        "plain-groups",
        "plain-classes",
        "ball-groups",
        "ball-classes",
    ],
)
def test_the_quantities_are_those_of_the_explicit_matrices(
    resolution: Any, changes: dict[str, Any]
) -> None:
    problem = problem_of(**changes)
    dataset = ufm.sweep(problem, {"imbalance_ratio": [60 / 9]}, resolution=resolution)
    expected = measured(ufm.solve(problem, resolution="classes", tol=1e-12))
    assert bool(dataset.certified.all())
    for name, value in expected.items():
        np.testing.assert_allclose(
            dataset[name].values[0], value, rtol=2e-5, atol=2e-5, err_msg=name
        )
    if problem.use_bias:
        assert float(dataset.bias.values[0] @ [3, 2]) == pytest.approx(0, abs=1e-9)
    else:
        assert "bias" not in dataset


@pytest.mark.slow
def test_groups_and_classes_agree_where_the_minority_has_collapsed() -> None:
    problem = problem_of(regularizer=ufm.WeightDecay(weights=2e-2, features=6e-4))
    over = {"imbalance_ratio": [1.0, 3.0, 30.0, 300.0]}
    one, other = (
        ufm.sweep(problem, over, resolution=resolution) for resolution in ("groups", "classes")
    )
    assert float(one.weight_cosine[3, 1, 1]) == pytest.approx(1, abs=1e-12)
    assert float(one.coincidence_level[2, 1]) < 0 < float(one.coincidence_level[3, 1])
    assert one["rank"].values.tolist() == other["rank"].values.tolist()
    assert one["theorem"].values.tolist() == other["theorem"].values.tolist()
    for name in one:
        if name not in ("theorem", "steps", "relative_gap", "lower_bound", "coincidence_level"):
            np.testing.assert_allclose(one[name], other[name], atol=3e-4, err_msg=name)


@pytest.mark.slow
def test_classes_that_vanish_have_no_cosines() -> None:
    dataset = ufm.sweep(
        problem_of(regularizer=ufm.WeightDecay(weights=10.0, features=1.0)),
        {"imbalance_ratio": [5.0]},
    )
    assert np.isnan(dataset.weight_cosine).all()
    assert float(dataset["rank"][0]) == 0
    assert float(dataset.accuracy[0]) == 0
    np.testing.assert_array_equal(dataset.weight_norm, 0)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["groups", pytest.param("classes", marks=pytest.mark.slow)])
@pytest.mark.parametrize("use_bias", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_has_collapsed_has_no_geometry_in_what_rounding_left(
    resolution: Any, use_bias: bool
) -> None:
    problem = problem_of(
        loss=ufm.SquaredError(),
        use_bias=use_bias,
        regularizer=ufm.WeightDecay(weights=5e-3, features=1e-4),
    )
    dataset = ufm.sweep(
        problem,
        {"weight_decay": [1e-3, 1.0, 5.0], "imbalance_ratio": [1.0, 20.0]},
        resolution=resolution,
    )
    assert dataset["rank"].values[0].tolist() == [5 - use_bias, 5 - use_bias]
    assert np.isfinite(dataset.weight_cosine[0]).all()
    gone = dataset.isel(weight_decay=[1, 2])
    assert not gone["rank"].any()
    assert not gone.accuracy.any()
    for name in ("weight_cosine", "feature_cosine", "nc2_weights", "nc2_features", "nc3"):
        assert np.isnan(gone[name]).all(), name
    assert gone.weight_norm.max() < 1e-9


@pytest.mark.slow
def test_a_group_of_one_class_has_no_cosine_within() -> None:
    problem = problem_of(class_counts=ufm.ClassGroups((50.0, 10.0, 2.0), (2, 1, 2)), feature_dim=5)
    for resolution in ("groups", "classes"):
        cosines = ufm.sweep(
            problem, {"weight_decay": [1e-4]}, resolution=resolution, quantities=["weight_cosine"]
        )
        cosines = cosines.weight_cosine.values[0]
        assert np.isnan(cosines[1, 1])
        assert np.sum(np.isnan(cosines)) == 1


@pytest.mark.slow
def test_predictions_are_those_of_the_atlas() -> None:
    problem = problem_of()
    over = {"imbalance_ratio": [1.0, 4.0, 50.0], "weight_decay": [1e-4, 3e-2]}
    dataset = ufm.sweep(problem, over, quantities=list(QUANTITIES))
    for i, ratio in enumerate(over["imbalance_ratio"]):
        for j, decay in enumerate(over["weight_decay"]):
            factor = decay / np.sqrt(2e-3 * 3e-5)
            one = problem_of(
                class_counts=ufm.ClassGroups((60.0, 60.0 / ratio), (3, 2)),
                regularizer=ufm.WeightDecay(weights=2e-3 * factor, features=3e-5 * factor),
            )
            prediction, point = ufm.predict(one), dataset.isel(imbalance_ratio=i, weight_decay=j)
            assert point.theorem == prediction.theorem
            assert float(point.predicted_objective) == pytest.approx(
                float(prediction.objective), rel=1e-10
            )
            assert float(point.objective) == pytest.approx(float(prediction.objective), rel=1e-9)
            assert int(point.predicted_rank) == int(prediction.rank)
            for name in ("weight_norm", "feature_norm"):
                expected = np.asarray(getattr(prediction, f"{name}s"))[[0, 4]]
                np.testing.assert_allclose(point[f"predicted_{name}"], expected, atol=1e-9)
                np.testing.assert_allclose(point[name], expected, atol=1e-4)
            np.testing.assert_allclose(
                point.predicted_weight_cosine, point.weight_cosine, atol=1e-4
            )


def test_predictions_of_many_groups_are_as_small_as_their_answers() -> None:
    counts = tuple(range(20, 60))
    problem = problem_of(class_counts=counts, feature_dim=40, loss=ufm.SquaredError())
    family = family_of(problem, {"weight_decay": [1e-5, 1e-3]})
    names = ("theorem", "predicted_weight_norm", "predicted_weight_cosine")
    found = predictions(family.over_classes(), np.broadcast_to(np.eye(40), (2, 40, 40)), names)
    for point in range(2):
        prediction = ufm.predict(family.at(point))
        assert found["theorem"][point] == prediction.theorem
        np.testing.assert_allclose(
            found["predicted_weight_norm"][point], prediction.weight_norms, rtol=1e-12
        )
        cosines = found["predicted_weight_cosine"][point]
        there = np.asarray(prediction.weight_norms) > 0
        expected = np.where(there[:, None] & there[None, :] & ~np.eye(40, dtype=bool), 0, np.nan)
        np.testing.assert_allclose(cosines, expected, atol=1e-12)


@pytest.mark.slow
def test_no_theorem_no_prediction() -> None:
    dataset = ufm.sweep(
        problem_of(class_counts=(9, 8, 7, 6, 5)), {"weight_decay": [1e-4]}, resolution="classes"
    )
    assert dataset.theorem.values.tolist() == ["none"]
    assert np.isnan(dataset.predicted_objective).all()


def test_what_is_kept_can_be_chosen() -> None:
    assert checked_quantities(None, 2, True) == DEFAULT
    assert "bias" not in checked_quantities(None, 2, False)
    assert "weight_cosine_within" in checked_quantities(None, 40, False)
    assert set(checked_quantities(["margin"], 2, False)) == {"margin", *ALWAYS}
    assert checked_quantities("rank", 2, False) == checked_quantities(["rank"], 2, False)
    with pytest.raises(ValueError, match="`quantities` must be one of objective"):
        checked_quantities(["margins"], 2, False)
