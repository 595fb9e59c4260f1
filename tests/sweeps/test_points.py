"""What can be swept, and the problem at every point."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from plain import a_problem
from tables import for_each

import ufm
from ufm.problems import family_of, problem_with
from ufm.sweeps.points import points_of

problem_of = functools.partial(
    a_problem,
    class_counts=ufm.ClassGroups.step(6, 100, imbalance_ratio=10),
    feature_dim=7,
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-5),
)


def test_points_are_in_row_major_order() -> None:
    points = points_of(
        problem_of(), {"weight_decay": [1.0, 2.0, 3.0], "imbalance_ratio": [5.0, 6.0]}
    )
    assert (points.shape, points.size, points.dims) == (
        (3, 2),
        6,
        ("weight_decay", "imbalance_ratio"),
    )
    columns = points.columns(np.arange(6))
    np.testing.assert_array_equal(columns["weight_decay"], [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(columns["imbalance_ratio"], [5, 6, 5, 6, 5, 6])
    part = points.part(np.array([4, 1]))
    assert (part.shape, part.dims) == ((2,), ("point",))
    np.testing.assert_array_equal(part.columns(np.arange(2))["imbalance_ratio"], [5, 6])


def test_zipped_points_go_together() -> None:
    points = points_of(problem_of(), {"weight_decay": [1.0, 2.0], "num_classes": [4, 8]}, "zip")
    assert (points.shape, points.dims) == ((2,), ("point",))
    found = points.by_structure(np.arange(2))
    assert [
        (problem.num_classes, numbers["weight_decay"].tolist()) for problem, _, numbers in found
    ] == [
        (4, [1.0]),
        (8, [2.0]),
    ]


def test_points_of_one_structure_are_found_wherever_they_are() -> None:
    points = points_of(
        problem_of(),
        {"weight_decay": [1.0, 2.0, 3.0], "loss": [ufm.CrossEntropy(), ufm.SquaredError()]},
    )
    found = points.by_structure(np.array([5, 0, 2, 3]))
    assert {type(problem.loss).__name__: members.tolist() for problem, members, _ in found} == {
        "CrossEntropy": [1, 2],
        "SquaredError": [0, 3],
    }


@for_each(
    ("values", "expected"),
    [
        ({"num_classes": 10}, {"num_classes": 10, "feature_dim": 11}),
        ({"num_classes": 2, "feature_dim": 5}, {"num_classes": 2, "feature_dim": 5}),
        ({"depth": 3}, {"hidden_dims": (7, 7)}),
        ({"depth": 1}, {"hidden_dims": ()}),
        ({"use_bias": True}, {"use_bias": True}),
        ({"nonnegative_features": True}, {"nonnegative_features": True}),
    ],
)
def test_structures(values: dict[str, Any], expected: dict[str, Any]) -> None:
    problem = problem_with(problem_of(), values)
    assert {name: getattr(problem, name) for name in expected} == expected


def test_groups_keep_their_shares_and_tails_their_shape() -> None:
    assert problem_with(problem_of(), {"num_classes": 10}).class_counts.sizes == (5, 5)
    with pytest.raises(ValueError, match=r"7 classes in the shares of 3, 3 would be 3.5, 3.5"):
        problem_with(problem_of(), {"num_classes": 7})
    tail = problem_of(class_counts=ufm.ClassGroups.long_tail(5, 100, imbalance_ratio=16))
    np.testing.assert_allclose(
        np.asarray(problem_with(tail, {"num_classes": 9}).class_counts),
        np.asarray(ufm.ClassGroups.long_tail(9, 100, imbalance_ratio=16)),
    )
    deeper = problem_of(
        hidden_dims=(4,), regularizer=ufm.WeightDecay(weights=(1e-3, 2e-3), features=1e-5)
    )
    with pytest.raises(ValueError, match="needs one penalty for all layers"):
        problem_with(deeper, {"depth": 3})


@for_each(
    ("over", "message"),
    [
        ({}, "`over` must be a dictionary"),
        ({"weight_decay": 1e-3}, "must be a sequence of values"),
        ({"weight_decay": np.float64(1e-3)}, "must be a sequence of values"),
        ({"weight_decay": np.array(1e-3)}, "got one number"),
        ({"weight_decay": []}, "at least one value"),
        ({"weight_decay": [1e-3, np.nan]}, "must be positive and finite"),
        ({"weight_decay": [1e-3, -1.0]}, "must be positive and finite"),
        ({"weight_decay": ["small"]}, "must be numbers"),
        ({"weight_decay": ["1e-3"]}, "must be numbers"),
        ({"weight_decay": [True]}, "must be numbers"),
        ({"weight_decay": [[1.0], [1.0, 2.0]]}, "must be numbers"),
        (
            {"weight_decays": [1e-3]},
            "`over` cannot vary 'weight_decays'; it can vary imbalance_ratio",
        ),
        ({"loss.gamma": [1.0]}, "must name a scalar parameter of the loss"),
        ({"weight_decay": [1e-3, 1e-3]}, "every value once"),
        ({"imbalance_ratio": [0.5, 2.0]}, "must be at least 1"),
        (
            {"regularizer.bias": [-1.0, 1.0]},
            r"over\['regularizer.bias'\]` must be finite numbers >= 0",
        ),
        ({"num_minority": [6.0]}, "must stay below 6"),
        ({"num_classes": [7]}, "whole number of them"),
        ({"num_classes": [2.5]}, "whole numbers of at least 2"),
        ({"loss": ["ce"]}, "must be losses"),
        ({"activation": ["tanh"]}, "among linear, relu"),
        ({"use_bias": [1]}, "True or False"),
        ({"seed": [-1]}, "whole numbers of at least 0"),
        ({"class_counts": [[1, 2, 3]]}, "rows of 6 counts"),
        ({"weight_decay": [1.0], "regularizer.weights": [1.0]}, "same numbers by 'weight_decay'"),
        ({"class_counts": [[1] * 6], "imbalance_ratio": [2.0]}, "same numbers by 'class_counts'"),
    ],
)
def test_what_cannot_be_swept_is_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points_of(problem_of(), over)


def test_numbers_outside_the_range_of_a_loss_are_refused() -> None:
    smoothed = problem_of(loss=ufm.LabelSmoothing(0.1))
    for alpha in (1.5, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"over\['loss\.alpha'\]` must be .*below 1, got"):
            points_of(smoothed, {"loss.alpha": [0.1, alpha]})
    weighted = problem_of(loss=ufm.ClassWeighted(1.0, loss=ufm.Focal(1.0)))
    with pytest.raises(ValueError, match=r"over\['loss\.loss\.gamma'\]` must be .* >= 0, got -2"):
        points_of(weighted, {"loss.loss.gamma": [-2.0]})


def test_numbers_of_losses_may_be_negative() -> None:
    points = points_of(problem_of(loss=ufm.LogitAdjusted(1.0)), {"loss.strength": [-1.0, 1.0]})
    np.testing.assert_array_equal(points.columns(np.arange(2))["loss.strength"], [-1.0, 1.0])


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`problem` must be a ufm\.Problem"):
        points_of("problem", {"weight_decay": [1.0]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`how` must be"):
        points_of(problem_of(), {"weight_decay": [1.0]}, "product")
    with pytest.raises(ValueError, match="as many values for every name"):
        points_of(problem_of(), {"weight_decay": [1.0], "imbalance_ratio": [1.0, 2.0]}, "zip")
    with pytest.raises(ValueError, match="two groups of classes"):
        points_of(problem_of(class_counts=(5, 5, 5, 5, 5, 5)), {"imbalance_ratio": [2.0]})


def test_the_fingerprint_sees_every_bit() -> None:
    over = {"weight_decay": [1e-3, 2e-3], "loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.1)]}
    prints = {
        points_of(problem_of(**changes), over | more).fingerprint()
        for changes, more in (
            ({}, {}),
            ({"feature_dim": 8}, {}),
            ({"regularizer": ufm.WeightDecay(weights=np.nextafter(1e-3, 1), features=1e-5)}, {}),
            ({}, {"weight_decay": [1e-3, np.nextafter(2e-3, 1)]}),
            ({}, {"loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.2)]}),
        )
    }
    assert len(prints) == 5
    assert points_of(problem_of(), over).fingerprint() in prints


@for_each(
    ("changes", "over"),
    [
        ({}, {"weight_decay": [1e-4, 1e-2], "imbalance_ratio": [2.0, 50.0]}),
        ({}, {"num_minority": [1, 4], "minority_count": [3.0, 4.0]}),
        (
            {"loss": ufm.LogitAdjusted(1.0)},
            {"loss.strength": [0.0, 2.0], "majority_count": [50.0, 60.0]},
        ),
        ({"loss": ufm.CDT(multipliers=(1.0, 0.5))}, {"regularizer.weights": [1e-2, 1e-1]}),
        ({"loss": ufm.ClassWeighted(weights=(1, 1, 1, 2, 2, 2))}, {"imbalance_ratio": [3.0, 4.0]}),
        (
            {"class_counts": ufm.ClassGroups.long_tail(6, 100, imbalance_ratio=10)},
            {"imbalance_ratio": [3.0, 30.0]},
        ),
        (
            {"regularizer": ufm.NormBall(weights=1.0, features=2.0)},
            {"regularizer.features": [1.0, 3.0]},
        ),
        (
            {"hidden_dims": (5, 6), "use_bias": True},
            {"weight_decay": [1e-3, 1e-2], "regularizer.bias": [0.0, 1.0]},
        ),
    ],
)
def test_every_lane_is_the_problem_that_it_stands_for(
    changes: dict[str, Any], over: dict[str, Any]
) -> None:
    problem = problem_of(**changes)
    batch = family_of(problem, over).over_classes()
    regularizer = problem.regularizer
    for lane in range(2):
        values = {name: column[lane] for name, column in over.items()}
        counts, loss, numbers = np.array(problem.class_counts), problem.loss, {}
        large = int(3 if "num_minority" not in values else 6 - values["num_minority"])
        if "num_minority" in values:
            counts = np.where(np.arange(6) < large, counts[0], counts[-1])
        if "majority_count" in values:
            counts[:large] = values["majority_count"]
        if "minority_count" in values:
            counts[large:] = values["minority_count"]
        if "imbalance_ratio" in values:
            tail = len(set(np.asarray(problem.class_counts))) > 2
            stretched = counts[0] * values["imbalance_ratio"] ** (-np.arange(6) / 5)
            counts = (
                stretched
                if tail
                else np.where(
                    np.arange(6) < large, counts[0], counts[0] / values["imbalance_ratio"]
                )
            )
        if "loss.strength" in values:
            loss = ufm.LogitAdjusted(values["loss.strength"])
        weights = np.array(regularizer.per_layer(problem.num_layers))
        features = float(regularizer.features)
        if "weight_decay" in values:
            mean = np.exp((np.log(weights).sum() + np.log(features)) / (len(weights) + 1))
            weights, features = (
                weights * values["weight_decay"] / mean,
                features * values["weight_decay"] / mean,
            )
        weights = (
            np.full_like(weights, values.get("regularizer.weights", np.nan))
            if "regularizer.weights" in values
            else weights
        )
        features = values.get("regularizer.features", features)
        if "regularizer.bias" in values:
            numbers["bias"] = values["regularizer.bias"]
        expected = ufm.Problem(
            class_counts=counts,
            feature_dim=problem.feature_dim,
            loss=loss.per_class(problem.class_counts),
            regularizer=type(regularizer)(weights=weights, features=features, **numbers),
            use_bias=problem.use_bias,
            hidden_dims=problem.hidden_dims,
        )
        found = jax.tree.map(lambda leaf, lane=lane: leaf[lane], batch)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.broadcast_to(one, np.shape(other)), other, rtol=1e-14)


SOFT = {0.1: ufm.Targets.noisy(0.1, [5] * 6), 0.3: ufm.Targets.noisy(0.3, [5] * 6)}


def test_targets_are_structure_with_labels() -> None:
    points = points_of(problem_of(), {"targets.noise": SOFT, "weight_decay": [1e-3, 1e-2]})
    assert (points.shape, points.dims) == ((2, 2), ("targets.noise", "weight_decay"))
    np.testing.assert_array_equal(points.axes[0].coordinate, [0.1, 0.3])
    assert points.axes[0].variable.label == "targets' noise"
    kinds = points.by_structure(np.arange(4))
    assert [problem.target_rows(float, np)[0, 0] for problem, _, _ in kinds] == [0.9, 0.7]
    assert [members.tolist() for _, members, _ in kinds] == [[0, 1], [2, 3]]
    named = points_of(problem_of(), {"targets": dict(zip("ab", SOFT.values(), strict=True))})
    assert named.axes[0].coordinate.tolist() == ["a", "b"]
    listed = points_of(problem_of(), {"targets": list(SOFT.values())})
    assert listed.axes[0].coordinate.tolist() == ["0", "1"]
    prints = {one.fingerprint() for one in (points, named, listed)}
    moved = {0.1: SOFT[0.3], 0.3: SOFT[0.1]}
    prints |= {points_of(problem_of(), {"targets": moved}).fingerprint()}
    assert len(prints) == 4


@for_each(
    ("over", "message"),
    [
        ({"targets": {}}, "at least one value"),
        ({"targets": {0.1: np.eye(6)}}, r"over\['targets'\]` must be ufm.Targets"),
        ({"targets": {0.1: SOFT[0.1], "a": SOFT[0.3]}}, "numbers, or texts, as keys"),
        ({"targets": {np.nan: SOFT[0.1]}}, "numbers, or texts, as keys"),
        ({"targets": SOFT[0.1]}, "must be a sequence of values"),
        ({"targets": SOFT, "targets.noise": SOFT}, "by 'targets' and 'targets.noise'"),
        ({"targets": SOFT, "imbalance_ratio": [2.0]}, "same numbers by 'targets'"),
        ({"targets.noise": SOFT, "num_classes": [4]}, "same numbers by 'targets.noise'"),
        ({"targets": [ufm.Targets([[0.2, -0.4]])]}, "must be non-negative and finite"),
    ],
)
def test_targets_that_cannot_be_swept(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points_of(problem_of(), over)


def test_what_speaks_of_classes_does_not_vary_with_targets() -> None:
    problem = problem_with(problem_of(), {"targets.noise": SOFT[0.1]})
    assert not problem.one_hot
    with pytest.raises(ufm.ArgumentError, match="cannot vary 'num_classes' of a problem with `tar"):
        points_of(problem, {"num_classes": [4]})
