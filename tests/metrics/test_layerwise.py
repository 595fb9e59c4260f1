"""Every layer of known structures, and of points that must not look collapsed."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.problems import class_pairs, deep_neural_collapse, strongly_regular

layerwise = ufm.layerwise


def deep(L: int = 4, K: int = 10, activation: str = "relu", **changes: Any) -> ufm.Problem:
    fields: dict[str, Any] = {
        "class_counts": (1.0,) * K,
        "feature_dim": K + 2,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=4e-3, features=2e-3),
        "hidden_dims": (K + 2,) * (L - 1),
        "activation": activation,
    }
    return ufm.Problem(**{**fields, **changes})


def moved(parameters: ufm.Parameters, size: float) -> ufm.Parameters:
    rng = np.random.default_rng(0)
    weights = tuple(matrix + size * rng.normal(size=matrix.shape) for matrix in parameters.weights)
    return ufm.Parameters(
        weights,
        parameters.features + size * rng.normal(size=parameters.features.shape),
        parameters.bias,
    )


def test_deep_neural_collapse_is_an_orthogonal_frame_at_every_layer() -> None:
    problem = deep()
    result = layerwise(problem, deep_neural_collapse(problem).parameters)
    names = ["features"]
    for index in (1, 2, 3):
        names += [f"layer {index} before ReLU", f"layer {index}"]
    assert [layer.name for layer in result.layers] == [*names, "logits"]
    assert [layer.dimension for layer in result.layers] == [12] * 7 + [10]
    for layer in result.layers:
        assert (layer.rank, layer.collapse.nc1.pinv) == (10, 0)
        assert layer.stable_rank == pytest.approx(10, rel=1e-12)
        assert layer.collapse.nc2_features.orthogonal_distance < 1e-12
        assert layer.collapse.nc2_features.etf_distance < 1e-12  # after centring
        W = layer.weights
        assert (W is None) == ("before" in layer.name or layer.name == "logits")
        if W is not None:
            assert (W.rank, W.balanced_by) == (
                10,
                "matrix" if layer.name == "features" else "units",
            )
            assert (W.stable_rank, W.alignment, W.adjacent_alignment) == pytest.approx(
                (10, 1, 1), rel=1e-12
            )
            np.testing.assert_allclose(W.adjacent_cosines, np.ones(10), rtol=1e-12)
            assert W.balance < 1e-12
    assert result["layer 3"].collapse.nc3.product_orthogonal_distance < 1e-12
    assert result["layer 2"].collapse.nc3 is None


@for_each("L", [3, 4, 5])
@for_each("K", [10, 12, 15])
def test_the_graph_has_the_rank_of_its_vertices_up_to_the_last_relu(L: int, K: int) -> None:
    problem = deep(L, K)
    low = {10: 5, 12: 7, 15: 6}[K]  # vertices, and the classes beyond their edges
    result = layerwise(problem, strongly_regular(problem).parameters)
    for layer in result.layers:
        last = layer.name in (f"layer {L - 1}", "logits")
        assert layer.rank == (K if last else low), layer.name
        if layer.weights is not None:
            assert layer.weights.rank == (K if last else low)
            np.testing.assert_allclose(layer.weights.adjacent_cosines, np.ones(low), rtol=1e-12)
            assert layer.weights.balance < 1e-12  # a stationary scale of every unit
    # It is no collapse, and every measure of collapse says so, except at the logits, which are x I.
    for layer in result.layers[:-1]:
        assert layer.collapse.nc2_features.orthogonal_distance > 0.3
        assert layer.collapse.nc2_features.etf_distance > 0.3
    assert result["layer 2"].weights.alignment < 0.95
    assert result["logits"].collapse.nc2_features.orthogonal_distance < 1e-12


def test_pairs_have_half_the_rank_and_linear_layers_balance_as_matrices() -> None:
    problem = deep(3, 10, "linear", loss=ufm.CrossEntropy())
    result = layerwise(problem, class_pairs(problem).parameters)
    assert [layer.name for layer in result.layers] == ["features", "layer 1", "layer 2", "logits"]
    for layer in result.layers:
        assert layer.rank == 5
        assert layer.stable_rank == pytest.approx(5, rel=1e-12)
        assert layer.collapse.nc2_features.etf_distance > 0.5
        if layer.weights is not None:
            assert (layer.weights.balanced_by, layer.weights.rank) == ("matrix", 5)
            assert layer.weights.balance < 1e-12
            assert layer.weights.alignment == pytest.approx(1, rel=1e-12)


@for_each("activation", ["linear", "relu"])
def test_moved_points_are_not_balanced_aligned_or_collapsed(activation: str) -> None:
    problem = deep(3, 6, activation)
    result = layerwise(problem, moved(deep_neural_collapse(problem).parameters, 0.1))
    for layer in result.layers:
        assert layer.collapse.nc2_features.orthogonal_distance > 0.02
        if layer.weights is not None:
            assert layer.weights.balance > 0.02
            assert layer.weights.alignment < 0.999
            assert layer.weights.adjacent_alignment < 0.999
    assert result["layer 1"].weights.adjacent_cosines[-1] < 0.99


def test_balance_scales_with_the_penalties_and_rotations_change_nothing() -> None:
    problem = deep(
        3, 6, "linear", regularizer=ufm.WeightDecay(weights=(8e-3, 4e-3, 1e-3), features=2e-3)
    )
    weights, features, _ = deep_neural_collapse(problem).parameters
    plain = layerwise(problem, ufm.Parameters(weights, features, None))
    assert max(layer.weights.balance for layer in plain.layers if layer.weights) < 1e-12
    other = dataclasses.replace(problem, regularizer=ufm.WeightDecay(weights=4e-3, features=2e-3))
    unbalanced = layerwise(other, ufm.Parameters(weights, features, None))
    # W_2 was made for the penalty 4e-3 and W_1 for 8e-3: at equal penalties ||W_1||^2 is half of
    # ||W_2||^2.
    assert unbalanced["layer 1"].weights.balance == pytest.approx(0.5, rel=1e-12)
    rng = np.random.default_rng(1)
    turn = [np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(3)]
    turned = (
        turn[1] @ weights[0] @ turn[0].T,
        turn[2] @ weights[1] @ turn[1].T,
        weights[2] @ turn[2].T,
    )
    start, end = moved(ufm.Parameters(weights, features, None), 0.1), None
    for parameters in (start, ufm.Parameters(turned, features @ turn[0].T, None)):
        end = layerwise(problem, parameters)
    assert end is not None
    for layer, same in zip(end.layers, plain.layers, strict=True):
        assert layer.rank == same.rank
        assert layer.stable_rank == pytest.approx(same.stable_rank, rel=1e-10)
        if layer.weights is not None and same.weights is not None:
            assert layer.weights.alignment == pytest.approx(same.weights.alignment, rel=1e-10)
            np.testing.assert_allclose(
                layer.weights.adjacent_cosines, same.weights.adjacent_cosines, atol=1e-10
            )


def test_samples_have_variability_and_classes_have_none() -> None:
    problem = deep(3, 3, class_counts=(4, 3, 2))
    parameters = deep_neural_collapse(problem).parameters
    rows = np.repeat(np.arange(3), (4, 3, 2))
    by_class = layerwise(problem, parameters)
    lifted = layerwise(problem, parameters._replace(features=parameters.features[rows]))
    for one, other in zip(by_class.layers, lifted.layers, strict=True):
        assert one.collapse.nc1.pinv == 0
        assert other.collapse.nc1.pinv < 1e-25
        assert one.stable_rank == pytest.approx(other.stable_rank, rel=1e-12)
        if one.weights is not None and other.weights is not None:
            assert one.weights.balance == pytest.approx(other.weights.balance, abs=1e-12)
    noisy = parameters.features[rows] + 0.1 * np.random.default_rng(0).normal(size=(9, 5))
    for layer in layerwise(problem, parameters._replace(features=noisy)).layers:
        assert layer.collapse.nc1.pinv > 1e-4


def test_a_zero_model_has_no_ranks_and_no_directions() -> None:
    problem = deep(3, 4)
    zero = ufm.Parameters(
        tuple(np.zeros(shape) for shape in ((6, 6), (6, 6), (4, 6))), np.zeros((4, 6)), None
    )
    for layer in layerwise(problem, zero).layers:
        assert (layer.rank, layer.stable_rank) == (0, 0)
        if layer.weights is not None:
            assert (layer.weights.rank, layer.weights.balance) == (0, 0)
            assert np.isnan(layer.weights.alignment)
            assert np.isnan(layer.weights.adjacent_alignment)
            assert layer.weights.adjacent_cosines.size == 0


def test_norm_balls_balance_up_to_their_multipliers() -> None:
    problem = deep(
        2,
        4,
        "linear",
        regularizer=ufm.NormBall(weights=(1.0, 3.0), features=2.0),
        loss=ufm.CrossEntropy(),
    )
    frame = np.eye(4, 6)
    parameters = ufm.Parameters((3 * np.eye(6), 5 * frame), frame, None)
    result = layerwise(problem, parameters)
    assert result["layer 1"].weights.balance > 0.1  # W_1 writes more than W_2 reads
    # Features count once per class, whatever the class sizes, at both resolutions.
    sized = dataclasses.replace(problem, class_counts=ufm.ClassGroups((3.0, 2.0, 1.0, 1.0)))
    assert (
        layerwise(sized, ufm.Parameters((np.diag([1.0] * 4 + [0.0] * 2), frame), frame, None))
        .layers[0]
        .weights.balance
        < 1e-12
    )
    lifted = np.repeat(frame, (3, 2, 1, 1), axis=0)
    assert (
        layerwise(sized, ufm.Parameters((np.diag([1.0] * 4 + [0.0] * 2), frame), lifted, None))
        .layers[0]
        .weights.balance
        < 1e-12
    )
    thin = ufm.Parameters((3 * np.diag([1.0] * 4 + [0.0] * 2), 5 * frame), frame, None)
    assert (
        max(layer.weights.balance for layer in layerwise(problem, thin).layers if layer.weights)
        < 1e-12
    )


def test_it_prints_and_becomes_json() -> None:
    problem = deep(3, 6)
    result = layerwise(problem, strongly_regular(problem).parameters)
    lines = str(result).splitlines()
    assert len(lines) == len(result.layers) + 2
    assert lines[0].split()[:3] == ["layer", "dim", "rank"]
    assert "across a ReLU" in lines[-1]
    plain = json.loads(json.dumps(result.to_dict()))
    assert [row["rank"] for row in plain["layers"]] == [layer.rank for layer in result.layers]
    assert plain["layers"][0]["weights_balanced_by"] == "matrix"
    assert "weights_rank" not in plain["layers"][1]


def test_what_does_not_fit_is_refused() -> None:
    problem = deep(3, 4)
    parameters = deep_neural_collapse(problem).parameters
    with pytest.raises(ValueError, match="`weights` must have shapes"):
        layerwise(problem, parameters._replace(weights=parameters.weights[:2]))
    with pytest.raises(ValueError, match="must be finite"):
        layerwise(problem, parameters._replace(features=np.nan * parameters.features))
    with pytest.raises(ValueError, match="`layer` must be one of features"):
        layerwise(problem, parameters)["layer 9"]
