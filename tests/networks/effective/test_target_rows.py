"""Networks of several tags, of contexts and of regressions against their own models."""

import functools
import json
from typing import Any

import numpy as np
import pytest
from synthetic import a_rotation
from tables import for_each
from target_networks import (
    DECAYS,
    KINDS,
    a_model,
    a_network,
    features_of,
    minimiser,
    moments_of,
    samples_of,
)

import ufm
from ufm.networks import (
    ModelComparison,
    RegressionMoments,
    TagMoments,
    TrainedNetwork,
    compare_with_model,
    effective_model,
)
from ufm.networks.effective.trained_network import last_layer_gradient


@functools.cache
def of_the_minimiser(kind: str) -> ModelComparison:
    return compare_with_model(a_network(kind))


def from_moments(kind: str, noise: float = 0.0, **changes: Any) -> TrainedNetwork:
    solution = minimiser(kind)
    arguments: dict[str, Any] = {
        "moments": moments_of(kind, noise),
        "weights": solution.weights[0],
        "bias": solution.bias,
        "weight_decay": DECAYS["weights"],
        "bias_decay": DECAYS["bias"],
    }
    return TrainedNetwork.from_moments(**arguments | changes)


def by_hand(kind: str, noise: float) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean loss over all samples and its gradients, from each sample's own target."""
    samples, solution = samples_of(kind), minimiser(kind)
    H = features_of(kind, noise)
    logits = H @ solution.weights[0].T + solution.bias
    if kind == "regression":
        slopes = logits - samples.labels
        losses = 0.5 * np.sum(slopes**2, axis=1)
    else:
        Y = np.eye(5)[samples.labels] if kind == "contexts" else samples.labels
        logs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        slopes = Y.sum(axis=1, keepdims=True) * np.exp(logs) - Y
        losses = -np.sum(Y * logs, axis=1)
    return float(losses.mean()), slopes.T @ H / len(H), slopes.mean(axis=0)


@for_each("kind", KINDS)
def test_a_minimiser_agrees_with_its_model(kind: str) -> None:
    report = of_the_minimiser(kind)
    assert report.agreement.kind == "agrees", report
    assert all(row.error < 1e-6 for row in report.rows), report
    assert report.solution.certificate is not None
    assert report.solution.certificate.holds
    assert report.measured.loss.total == pytest.approx(minimiser(kind).objective, rel=1e-9)
    assert -1e-12 < report.excess < 1e-9
    balance = report.effective.balance
    assert balance.feature_decay == pytest.approx(DECAYS["features"], rel=1e-7)
    assert balance.implied_weight_decay == pytest.approx(DECAYS["weights"], rel=1e-7)
    assert balance.residual < 1e-7


@for_each("kind", KINDS)
def test_each_kind_has_its_metrics(kind: str) -> None:
    of_kind = {
        "multi-label": ("margins", "NC3 |W/|W| - M/|M||^2 of single tags", "tags on top"),
        "contexts": ("margins", "log-odds error", "excess over the entropy floor"),
        "regression": ("mean gram", "NRC3", "error of the head over tr Sigma"),
    }
    report = of_the_minimiser(kind)
    for other, names in of_kind.items():
        found = [name in {row.quantity for row in report.rows} for name in names]
        assert found == [other == kind or name in ("mean gram", "margins") for name in names] or (
            kind == "regression" and not found[0]
        )
    words = dict(report.facts())["network"]
    assert {
        "multi-label": "K = 4 tags, R = 8 tag sets of 6 to 30 samples, N = 130, d = 6 features",
        "contexts": "K = 5 tokens, R = 7 contexts of 12 to 24 samples, N = 119, d = 6 features",
        "regression": "K = 2 outputs, N = 60, d = 6 features",
    }[kind] == words
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["targets"] == kind
    assert len(plain["class_counts"]) == report.trained.num_classes
    assert "<table>" in report._repr_html_()


@for_each("kind", KINDS)
def test_moments_say_what_samples_say(kind: str) -> None:
    noise = 0.05
    one, other = a_network(kind, noise), from_moments(kind, noise)
    assert other.kind == one.kind == kind
    solution = of_the_minimiser(kind).solution
    reports = [compare_with_model(each, solution=solution) for each in (one, other)]
    exact = kind == "regression"
    for row, again in zip(reports[0].rows, reports[1].rows, strict=True):
        if exact or row.quantity not in ("objective", "data term"):
            assert again.measured == pytest.approx(row.measured, rel=1e-7, abs=1e-12), row.quantity
    assert effective_model(one).balance.feature_decay == pytest.approx(
        effective_model(other).balance.feature_decay, rel=1e-9
    )
    assert exact == (other.samples is not None)
    assert any("directions of the variability" in n for n in effective_model(other).notes) != exact


@for_each("kind", KINDS)
def test_losses_and_gradients_are_those_of_all_samples(kind: str) -> None:
    trained = a_network(kind, noise=0.3)
    data, by_weights, by_bias = by_hand(kind, noise=0.3)
    found = last_layer_gradient(trained)
    np.testing.assert_allclose(found[0], by_weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[1], by_bias, rtol=1e-9, atol=1e-12)
    assert trained.samples is not None
    shares = trained.row_counts / trained.num_samples
    assert shares @ trained.samples.loss == pytest.approx(data, rel=1e-10)


@for_each("kind", KINDS)
def test_the_penalty_is_that_of_the_model(kind: str) -> None:
    """Every sample counts, but every context counts once."""
    trained, H = a_network(kind, noise=0.3), features_of(kind, 0.3)
    squares = np.sum(H**2, axis=1)
    if kind == "contexts":
        origins = samples_of(kind).origins
        total = np.sum(np.bincount(origins, squares) / np.bincount(origins))
    else:
        total = np.sum(squares)
    W = minimiser(kind).weights[0]
    balance = effective_model(trained).balance
    assert balance.feature_decay == pytest.approx(DECAYS["weights"] * np.sum(W**2) / total)
    report = compare_with_model(
        trained, feature_decay=1e-3, solution=of_the_minimiser(kind).solution
    )
    assert report.measured.loss.features == pytest.approx(0.5e-3 * total, rel=1e-10)


def spoilt(kind: str, name: str) -> TrainedNetwork:
    W, labels = minimiser(kind).weights[0], samples_of(kind).labels
    if name == "scattered":
        return a_network(kind, noise=1.0)
    if name == "perturbed":
        more = np.random.default_rng(5).standard_normal(W.shape)
        return a_network(kind, weights=W + 0.5 * more)
    if name == "other outputs":
        return a_network(kind, weights=W[::-1], bias=minimiser(kind).bias[::-1])
    if name == "scaled":
        return a_network(kind, features=1.5 * features_of(kind), weights=1.5 * W)
    if name == "wrong weight decay":
        return a_network(kind, weight_decay=20 * DECAYS["weights"])
    assert name == "other labels"
    return a_network(kind, labels=np.roll(labels, 7, axis=0))


@for_each("kind", KINDS)
@for_each(
    "name",
    ["scattered", "perturbed", "other outputs", "scaled", "wrong weight decay", "other labels"],
)
def test_what_is_no_minimiser_does_not_agree(kind: str, name: str) -> None:
    report = compare_with_model(spoilt(kind, name))
    assert report.agreement.kind not in ("agrees", "close"), report
    assert report.excess > 1e-4
    if name == "wrong weight decay":
        assert "not stationary at this weight decay (its loss implies 0.005" in str(report)


def test_another_loss_is_another_model() -> None:
    report = compare_with_model(a_network("multi-label", loss=ufm.BinaryCrossEntropy()))
    assert not report.agreement.describes
    assert "loss" in dict(report.facts())


def test_contexts_that_are_penalised_as_often_as_they_occur_are_another_model() -> None:
    contexts = a_model("contexts").targets
    assert contexts is not None
    often = ufm.Targets(contexts.rows, contexts.counts)
    regularizer = ufm.WeightDecay(weights=5e-3, features=2e-4 / 17, bias=1e-2)
    solution = ufm.solve(a_model("contexts", targets=often, regularizer=regularizer))
    features = np.asarray(solution.features)[samples_of("contexts").origins]
    other = a_network(
        "contexts", features=features, weights=solution.weights[0], bias=solution.bias
    )
    assert effective_model(other).balance.residual > 0.02
    report = compare_with_model(other, solution=of_the_minimiser("contexts").solution)
    assert report.agreement.kind != "agrees"


def test_two_layers_before_tags() -> None:
    """Seen from the last layer, from features and from moments of both layers or of one."""
    generator = np.random.default_rng(6)
    samples, H = samples_of("multi-label"), np.abs(features_of("multi-label", 0.1))
    weights = generator.standard_normal((5, 6)), generator.standard_normal((4, 5))
    decays: Any = {"weight_decay": (2e-3, 5e-3), "bias_decay": 1e-3}
    trained = TrainedNetwork.from_features(
        H, samples.labels, weights, np.zeros(4), targets="multi-label", **decays
    )
    hidden = np.maximum(H @ weights[0].T, 0)
    alone = TrainedNetwork.from_features(
        hidden,
        samples.labels,
        weights[1],
        np.zeros(4),
        weight_decay=5e-3,
        bias_decay=1e-3,
        targets="multi-label",
    )
    last = trained.from_layer(-1)
    np.testing.assert_allclose(last.logits, alone.logits, rtol=1e-12)
    assert effective_model(last).balance.residual == pytest.approx(
        effective_model(alone).balance.residual, rel=1e-10
    )
    problem = effective_model(trained).problem
    assert (problem.hidden_dims, problem.num_rows, problem.feature_dim) == ((5,), 8, 6)
    both = []
    for block in (H, hidden):
        both.append(TagMoments(4, block.shape[1]))
        both[-1].update(block, samples.labels)
    moments = TrainedNetwork.from_moments(both, weights, np.zeros(4), **decays)
    for one, other in zip(moments.inputs, trained.inputs, strict=True):
        np.testing.assert_allclose(one.means, other.means, rtol=1e-12)
        np.testing.assert_allclose(one.variances, other.variances, rtol=1e-9)
    single = TrainedNetwork.from_moments(both[0], weights, np.zeros(4), **decays)
    assert (single.collapse is None, moments.collapse is None) == (True, False)
    expected = np.maximum(trained.inputs[0].means @ weights[0].T, 0)
    np.testing.assert_allclose(single.inputs[1].means, expected, rtol=1e-12)


@for_each("kind", KINDS)
def test_a_rotation_changes_nothing(kind: str) -> None:
    Q, solution = a_rotation(), minimiser(kind)
    turned = a_network(kind, features=features_of(kind) @ Q, weights=solution.weights[0] @ Q)
    report = compare_with_model(turned, solution=of_the_minimiser(kind).solution)
    for row, other in zip(report.rows, of_the_minimiser(kind).rows, strict=True):
        assert row.measured == pytest.approx(other.measured, rel=1e-7, abs=1e-9)


@for_each("kind", KINDS)
def test_centring_leaves_the_logits_and_the_loss(kind: str) -> None:
    trained = a_network(kind, noise=0.1)
    trained = trained._replace(
        inputs=(trained.inputs[0]._replace(means=trained.inputs[0].means + 2.0),)
    )
    centred = trained.centred()
    np.testing.assert_allclose(centred.logits, trained.logits, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(centred.row_weights @ centred.inputs[0].means, 0, atol=1e-9)
    assert (centred.collapse is None) == (kind == "regression")


def test_a_regression_of_all_samples_has_the_same_minimum() -> None:
    """Rows that carry the moments alone against the model with a row for each sample."""
    alone, whole = of_the_minimiser("regression").solution, minimiser("regression")
    assert alone.problem.num_rows == 3 < whole.problem.num_rows
    assert alone.objective == pytest.approx(whole.objective, rel=1e-9)
    W, others = alone.weights[0], whole.weights[0]
    np.testing.assert_allclose(W @ W.T, others @ others.T, rtol=1e-6)


def test_the_closed_form_of_regression_collapse_agrees_in_a_stream() -> None:
    """Of Andriopoulos et al. (2024), with a free bias: no solver made this network."""
    generator, N, decay, feature_decay = np.random.default_rng(7), 3000, 1e-2, 1e-2 / 3000
    Y = generator.standard_normal((N, 3)) @ generator.standard_normal((3, 3))
    values, axes = np.linalg.eigh(np.cov(Y.T, bias=True))
    roots, ratio = np.sqrt(values), np.sqrt(feature_decay * N / decay)
    alive = np.maximum(roots - np.sqrt(decay * feature_decay * N), 0.0)
    W = axes @ np.diag(np.sqrt(ratio * alive)) @ np.eye(3, 5)
    H = (Y - Y.mean(axis=0)) @ axes @ np.diag(np.sqrt(alive / ratio) / roots) @ np.eye(3, 5)
    moments = RegressionMoments(5, 3)
    for part in np.array_split(np.arange(N), 4):
        moments.update(H[part], Y[part])
    arguments: dict[str, Any] = {"weight_decay": decay, "bias_decay": 0.0}
    network = TrainedNetwork.from_moments(moments, W, Y.mean(axis=0), **arguments)
    report = compare_with_model(network)
    assert all(row.error < 1e-6 for row in report.rows), report
    assert report.prediction is not None
    assert report.prediction.theorem == "regression-collapse"
    assert report.measured.loss.total == pytest.approx(report.prediction.objective, rel=1e-10)


@for_each("rank", [1, 2])
def test_outputs_may_depend_on_one_another(rank: int) -> None:
    generator = np.random.default_rng(4)
    Y = generator.standard_normal((40, rank)) @ generator.standard_normal((rank, 3))
    model = a_model("regression", targets=ufm.Targets.regression(Y), feature_dim=4)
    solution = ufm.solve(model)
    network = TrainedNetwork.from_features(
        solution.features,
        Y,
        solution.weights[0],
        solution.bias,
        weight_decay=DECAYS["weights"],
        bias_decay=DECAYS["bias"],
        targets="regression",
    )
    assert compare_with_model(network).agreement.kind == "agrees"


def test_one_output_has_no_angles() -> None:
    Y = np.random.default_rng(0).standard_normal(30)
    network = TrainedNetwork.from_features(
        Y[:, None] * [[2.0, 0.0]], Y, [[0.4, 0.0]], weight_decay=1e-2, targets="regression"
    )
    report = compare_with_model(network)
    assert "weight cosines" not in {row.quantity for row in report.rows}
    assert set(report.agreement.aspects) >= {"features", "weights", "logits"}
    assert "K = 1 output," in dict(report.facts())["network"]


@for_each("kind", ["multi-label", "contexts"])
def test_a_descent_from_the_network_ends_in_the_minimum(kind: str) -> None:
    trained = a_network(kind, weights=1.02 * minimiser(kind).weights[0])
    report = compare_with_model(trained, start="network")
    assert report.solution.certificate is not None
    assert report.solution.certificate.holds
    grouped = compare_with_model(
        trained, groups=[0] * trained.num_classes, solution=report.solution
    )
    row = grouped["weight gram"]
    assert row.group_error != row.error
    assert grouped["mean gram"].group_error == grouped["mean gram"].error


@for_each(
    ("kind", "changes", "message"),
    [
        ("multi-label", {"targets": "tags"}, "`targets` must be one of classes, multi-label"),
        ("multi-label", {"labels": np.full((130, 4), 2)}, "`tags` must be 0 or 1"),
        ("multi-label", {"labels": np.ones((130, 3))}, "`tags` must be multi-hot rows"),
        ("multi-label", {"contexts": np.zeros(130, int)}, "`contexts` must be given with"),
        ("contexts", {"contexts": None}, "`contexts` must be given with"),
        ("contexts", {"contexts": np.zeros(5, int)}, "`contexts` must"),
        ("contexts", {"labels": np.full(119, 5)}, "`labels` must be in 0, ..., 4"),
        ("regression", {"labels": np.ones((60, 3))}, "`labels` must be real targets"),
        ("regression", {"labels": np.ones((60, 2))}, "`targets` must vary"),
        ("regression", {"nonnegative": True}, "`nonnegative` must not be True for a regression"),
        ("regression", {"loss": ufm.losses.Huber(1.0)}, "`loss` must be ufm.SquaredError"),
        ("regression", {"loss": "mse"}, "`loss` must be a ufm loss"),
        (
            "regression",
            {"weights": (np.ones((6, 6)), np.ones((2, 6)))},
            "`weights` must be of one layer for a regression, got 2",
        ),
    ],
)
def test_bad_input_is_named(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_network(kind, **changes)


def test_moments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="`weights` must be a matrix"):
        from_moments("multi-label", weights=np.ones((3, 6)), bias=None)
    with pytest.raises(ValueError, match=r"`tokens` must be in 0, \.\.\., 3, got 4"):
        from_moments("contexts", weights=np.ones((4, 6)), bias=None)
    with pytest.raises(ValueError, match="`moments` must be of the same targets in all layers"):
        from_moments(
            "contexts",
            moments=(moments_of("multi-label"), moments_of("contexts")),
            weights=(np.ones((6, 6)), np.ones((5, 6))),
            bias=None,
        )
    with pytest.raises(ValueError, match="`batches` must hold at least one sample"):
        from_moments("multi-label", moments=ufm.networks.TagMoments(4, 6))
