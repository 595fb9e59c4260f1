"""A trained network and its effective model: the balance of its layers, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import DECAYS, LABELS, a_network, a_problem, a_rotation, features_of, minimiser
from tables import for_each

import ufm
from ufm.metrics import class_statistics
from ufm.networks import TrainedNetwork, effective_model
from ufm.networks.effective.trained_network import last_layer_gradient, loss_of_classes


@for_each("nonnegative", [False, True])
def test_the_feature_decay_of_a_minimiser_is_found(nonnegative: bool) -> None:
    effective = effective_model(a_network(nonnegative))
    balance = effective.balance
    assert balance.feature_decay == pytest.approx(DECAYS["features"], rel=1e-8)
    assert balance.least_squares == pytest.approx(DECAYS["features"], rel=1e-8)
    assert balance.residual < 1e-7
    assert balance.cosine == pytest.approx(1, abs=1e-9)
    assert balance.by == ("units" if nonnegative else "matrix")
    assert balance.stationarity < 1e-7
    assert balance.implied_weight_decay == pytest.approx(DECAYS["weights"], rel=1e-7)
    assert effective.problem.nonnegative_features == nonnegative
    assert effective.problem.use_bias
    assert float(effective.problem.regularizer.features) == balance.feature_decay
    assert not any("not stationary" in note for note in effective.notes)


def test_non_negative_features_are_not_balanced_as_matrices() -> None:
    signed = effective_model(a_network(True, nonnegative=False)).balance
    assert signed.by == "matrix"
    assert signed.residual > 0.1


def test_the_balance_does_not_see_a_rotation() -> None:
    Q, solution = a_rotation(), minimiser()
    turned = a_network(features=features_of(solution) @ Q, weights=solution.weights[0] @ Q)
    assert effective_model(turned).balance.residual < 1e-7


def test_scatter_counts_as_features() -> None:
    trained = a_network(noise=0.1)
    H, W = features_of(minimiser(), 0.1), minimiser().weights[0]
    balance = effective_model(trained).balance
    assert balance.feature_decay == pytest.approx(
        DECAYS["weights"] * np.sum(W**2) / np.sum(H**2), rel=1e-12
    )
    left, right = DECAYS["weights"] * W.T @ W, H.T @ H
    assert balance.least_squares == pytest.approx(
        np.sum(left * right) / np.sum(right**2), rel=1e-10
    )
    residual = np.linalg.norm(left - balance.feature_decay * right)
    larger = max(np.linalg.norm(left), np.linalg.norm(balance.feature_decay * right))
    assert balance.residual == pytest.approx(residual / larger, rel=1e-8)


def test_a_random_classifier_is_not_balanced() -> None:
    W = np.zeros((4, 6))
    W[:, 4:] = np.random.default_rng(0).standard_normal((4, 2))
    H = np.zeros((LABELS.size, 6))
    H[:, :4] = np.eye(4)[LABELS]
    balance = effective_model(a_network(features=H, weights=W, nonnegative=False)).balance
    assert balance.residual > 0.9
    assert abs(balance.cosine) < 1e-12


def test_another_weight_decay_than_the_networks_shows() -> None:
    effective = effective_model(a_network(weight_decay=2e-2))
    assert effective.balance.implied_weight_decay == pytest.approx(DECAYS["weights"], rel=1e-7)
    assert effective.balance.stationarity == pytest.approx(0.75, rel=1e-6)
    assert any("not stationary" in note for note in effective.notes)


def test_losses_and_gradients_are_those_of_all_samples() -> None:
    trained = a_network(noise=0.3)
    H, W, b = features_of(minimiser(), 0.3), minimiser().weights[0], minimiser().bias

    logits = H @ W.T + b
    logs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    slopes = (np.exp(logs) - np.eye(4)[LABELS]) / LABELS.size
    for found, by_hand in zip(
        last_layer_gradient(trained), (slopes.T @ H, slopes.sum(axis=0)), strict=True
    ):
        np.testing.assert_allclose(found, by_hand, rtol=1e-10, atol=1e-14)
    assert trained.samples is not None
    by_class = [-np.mean(logs[k == LABELS, k]) for k in range(4)]
    np.testing.assert_allclose(trained.samples.loss, by_class, rtol=1e-12)
    assert np.all(loss_of_classes(trained) < trained.samples.loss)  # Jensen


def test_moments_say_what_samples_say() -> None:
    exact = a_network(noise=0.1)
    statistics = class_statistics(features_of(minimiser(), 0.1), LABELS, 4)
    solution = minimiser()
    network = TrainedNetwork.from_moments(
        statistics,
        solution.weights[0],
        solution.bias,
        weight_decay=DECAYS["weights"],
        bias_decay=DECAYS["bias"],
    )
    assert network.samples is None
    assert not network.nonnegative
    one, other = effective_model(exact).balance, effective_model(network).balance
    for name in ("feature_decay", "least_squares", "residual", "cosine"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)
    assert other.stationarity != one.stationarity  # that of the class means
    assert network.collapse is not None
    assert exact.collapse is not None
    assert float(network.collapse.nc1.pinv) == pytest.approx(
        float(exact.collapse.nc1.pinv), rel=1e-10
    )
    assert any("moments" in note for note in effective_model(network).notes)


def test_centring_moves_the_mean_into_the_bias() -> None:
    solution = minimiser(nonnegative=True)
    trained = a_network(True, noise=0.2)
    centred = trained.centred()
    np.testing.assert_allclose(centred.logits, trained.logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(trained.class_counts @ centred.inputs[0].means, 0, atol=1e-11)
    assert (centred.nonnegative, centred.bias_decay) == (False, 0.0)
    H = features_of(solution, 0.2)
    again = TrainedNetwork.from_features(
        H - H.mean(axis=0),
        LABELS,
        solution.weights[0],
        centred.bias,
        weight_decay=DECAYS["weights"],
        bias_decay=0.0,
    )
    np.testing.assert_allclose(
        last_layer_gradient(centred)[0], last_layer_gradient(again)[0], rtol=1e-9, atol=1e-12
    )
    assert effective_model(centred).balance.residual == pytest.approx(
        effective_model(again).balance.residual, rel=1e-9
    )


def a_deep_network(hidden_biases: Any = None, scale: float = 1.0, **changes: Any) -> TrainedNetwork:
    generator = np.random.default_rng(1)
    weights = (scale * generator.standard_normal((5, 6)), generator.standard_normal((4, 5)))
    arguments = {"weight_decay": (2e-3, 5e-3), "bias_decay": 1e-3, "hidden_biases": hidden_biases}
    return TrainedNetwork.from_features(
        np.abs(features_of(minimiser(), 0.1)), LABELS, weights, np.zeros(4), **arguments | changes
    )


def test_the_last_layer_of_two_is_seen_through_the_first() -> None:
    bias = np.linspace(-1, 1, 5)
    trained = a_deep_network((bias,))
    H = np.abs(features_of(minimiser(), 0.1))
    hidden = np.maximum(H @ trained.weights[0].T + bias, 0)
    np.testing.assert_allclose(
        trained.inputs[1].means[2], hidden[LABELS == 2].mean(axis=0), rtol=1e-12
    )
    last = trained.from_layer(-1)
    alone = TrainedNetwork.from_features(
        hidden, LABELS, trained.weights[1], np.zeros(4), weight_decay=5e-3, bias_decay=1e-3
    )
    assert last.nonnegative
    assert alone.nonnegative
    np.testing.assert_allclose(last.logits, alone.logits, rtol=1e-12)
    assert effective_model(last).balance.residual == pytest.approx(
        effective_model(alone).balance.residual, rel=1e-10
    )
    problem = effective_model(trained).problem
    assert (problem.hidden_dims, problem.activation, problem.feature_dim) == ((5,), "relu", 6)
    assert any("no bias before the last layer" in note for note in effective_model(trained).notes)
    assert trained.from_layer(0).weights is not last.weights
    assert len(trained.from_layer(0).weights) == 2
    with pytest.raises(ValueError, match="`layer` must be an index of the 2 layers"):
        trained.from_layer(2)


def test_homogeneous_layers_are_balanced_at_a_critical_point() -> None:
    """By gradient descent on layers with biases and no ReLUs, on whose kinks it would not end."""
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((12, 3)), np.arange(12) % 3
    decays = {"W1": 3e-2, "b1": 2e-2, "W2": 1e-2, "b2": 2e-2}

    def objective(parts: Any) -> Any:
        hidden = jnp.asarray(X) @ parts["W1"].T + parts["b1"][None, :]
        logits = hidden @ parts["W2"].T + parts["b2"][None, :]
        loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[np.arange(12), y])
        return loss + sum(0.5 * decay * jnp.sum(parts[name] ** 2) for name, decay in decays.items())

    shapes = {"W1": (8, 3), "b1": (8,), "W2": (3, 8), "b2": (3,)}
    start = {name: jnp.asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}

    @jax.jit
    def descended(parts: Any) -> Any:
        def step(_: Any, now: Any) -> Any:
            return jax.tree.map(lambda a, g: a - 0.3 * g, now, jax.grad(objective)(now))

        return jax.lax.fori_loop(0, 20_000, step, parts)

    found = jax.tree.map(np.asarray, descended(start))
    trained = TrainedNetwork.from_features(
        X,
        y,
        (found["W1"], found["W2"]),
        found["b2"],
        weight_decay=(decays["W1"], decays["W2"]),
        bias_decay=decays["b1"],
        hidden_biases=(found["b1"],),
        activation="linear",
    )
    balance = effective_model(trained).balance
    assert abs(balance.layers[0]) < 1e-8
    assert balance.units[0] < 1e-8
    assert balance.stationarity < 1e-8
    without = effective_model(trained._replace(hidden_biases=(None,))).balance
    share = decays["b1"] * np.sum(found["b1"] ** 2) / (decays["W1"] * np.sum(found["W1"] ** 2))
    assert without.layers[0] == pytest.approx(
        share, rel=1e-6
    )  # the bias of the lower layer is part of the law


def test_layers_out_of_balance_show() -> None:
    trained = a_deep_network(scale=3.0)
    W_1, W_2 = trained.weights
    ratio = 5e-3 * np.sum(W_2**2) / (2e-3 * np.sum(W_1**2))
    balance = effective_model(trained).balance
    assert balance.layers[0] == pytest.approx(ratio - 1, rel=1e-12)
    assert balance.units[0] > 0.3


def test_nothing_to_balance_is_said() -> None:
    zero = a_network(weights=np.zeros((4, 6)))
    with pytest.raises(
        ValueError,
        match="`feature_decay` cannot be estimated: the weights of the first layer are all zero",
    ):
        effective_model(zero)
    assert float(effective_model(zero, feature_decay=1e-3).problem.regularizer.features) == 1e-3
    with pytest.raises(
        ValueError, match="`feature_decay` must be a positive finite number, got -1"
    ):
        effective_model(zero, feature_decay=-1)
    with pytest.raises(ValueError, match="the features are all zero"):
        effective_model(a_network(features=np.zeros((140, 6))))


def with_nan(array: np.ndarray) -> np.ndarray:
    spoilt = np.array(array)
    spoilt[1, 2] = np.nan
    return spoilt


@for_each(
    ("changes", "message"),
    [
        ({"features": with_nan(np.ones((140, 6)))}, "`features` must be finite, got nan"),
        ({"features": np.ones(140)}, "`features` must be a matrix"),
        ({"features": np.ones((139, 6))}, "`labels` must have shape"),
        ({"labels": LABELS % 3}, "must have a sample of each|got none of class"),
        ({"weights": 3.0}, "`weights` must be the matrix of the last layer"),
        ({"weights": np.ones((4, 5))}, "`weights` must be a matrix"),
        ({"weights": with_nan(np.ones((4, 6)))}, "`weights` must be finite"),
        ({"weights": (np.ones((5, 6)), np.ones((4, 4)))}, r"`weights\[1\]` must be a matrix"),
        ({"bias": np.ones(3)}, "`bias` must be of shape"),
        (
            {"weight_decay": -1e-3},
            "`weight_decay` must be positive and finite, got -0.001; without weight decay",
        ),
        ({"weight_decay": 0.0}, "`weight_decay` must be positive"),
        ({"weight_decay": np.nan}, "`weight_decay` must be positive"),
        (
            {"weight_decay": (1e-3, 1e-3)},
            "`weight_decay` must be one number, or one for each of the 1 layers",
        ),
        ({"weight_decay": "much"}, "`weight_decay` must be one number"),
        ({"bias_decay": -1.0}, "`bias_decay` must be a finite number >= 0"),
        ({"loss": "ce"}, "`loss` must be a ufm loss"),
        ({"activation": "gelu"}, "`activation` must be one of"),
        ({"nonnegative": "yes"}, "`nonnegative` must be True, False or None"),
        ({"hidden_biases": (np.ones(4),)}, "`hidden_biases` must be one per layer before the last"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_network(**changes)


def test_moments_that_do_not_fit_are_named() -> None:
    statistics = class_statistics(np.ones((140, 6)), LABELS, 4)
    W = np.ones((4, 6))
    with pytest.raises(ValueError, match="`moments` must have `counts`"):
        TrainedNetwork.from_moments(statistics._asdict(), W, weight_decay=1e-3)
    with pytest.raises(
        ValueError,
        match="`moments` must be one, of the inputs of the first layer, or one per layer",
    ):
        TrainedNetwork.from_moments((statistics, statistics), W, weight_decay=1e-3)
    with pytest.raises(ValueError, match="`moments` of layer 2 must have means of shape"):
        TrainedNetwork.from_moments(
            (statistics, statistics), (np.ones((5, 6)), np.ones((4, 5))), weight_decay=1e-3
        )
    empty = class_statistics(np.ones((140, 6)), LABELS, 5)
    with pytest.raises(ValueError, match="`moments` must be finite, with samples of every class"):
        TrainedNetwork.from_moments(empty, np.ones((5, 6)), weight_decay=1e-3)


def test_one_moment_stands_for_all_layers() -> None:
    trained = a_deep_network()
    statistics = class_statistics(np.abs(features_of(minimiser(), 0.1)), LABELS, 4)
    network = TrainedNetwork.from_moments(
        statistics, trained.weights, np.zeros(4), weight_decay=(2e-3, 5e-3)
    )
    np.testing.assert_allclose(network.inputs[0].means, trained.inputs[0].means, rtol=1e-12)
    expected = np.maximum(trained.inputs[0].means @ trained.weights[0].T, 0)
    np.testing.assert_allclose(network.inputs[1].means, expected, rtol=1e-12)
    assert network.bias_decay == 5e-3  # that of the last layer, where none is given
    assert network.collapse is None


def test_a_minimiser_of_the_effective_problem_is_the_network_it_came_from() -> None:
    problem = effective_model(a_network()).problem
    given = a_problem()
    for leaf, other in zip(jax.tree.leaves(problem), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-8)
    assert isinstance(problem.regularizer, ufm.WeightDecay)
