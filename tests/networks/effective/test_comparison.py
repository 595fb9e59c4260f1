"""Networks compared with their models: what agrees, what must not, what no symmetry changes."""

import functools
import json
from typing import Any

import numpy as np
import pytest
from synthetic import (
    COUNTS,
    DECAYS,
    LABELS,
    a_network,
    a_problem,
    a_rotation,
    features_of,
    minimiser,
)
from tables import for_each

import ufm
from ufm.networks import (
    ModelComparison,
    TrainedNetwork,
    compare_with_model,
    compare_with_models,
)
from ufm.networks.effective.rows import averages_over


@functools.cache
def of_the_minimiser(relu: bool = False) -> ModelComparison:
    return compare_with_model(a_network(relu))


@pytest.mark.parametrize("relu", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_minimiser_agrees_with_its_model(relu: bool) -> None:
    report = of_the_minimiser(relu)
    assert report.agreement.kind == "agrees"
    assert report.agreement.describes
    assert "describes this network" in report.agreement.words
    assert report.solution.certificate is not None
    assert report.solution.certificate.holds
    assert report.solution.objective == pytest.approx(minimiser(relu).objective, rel=1e-8)
    assert all(row.error < 1e-6 for row in report.rows), report
    assert all(row.level == "agrees" for row in report.rows)
    assert 0 <= report.excess < 1e-9
    assert report.solution.features.shape == (4, 6)
    assert report.solution.class_features.shape == (4, 6)
    assert report.solution.weights[0].shape == (4, 6)
    assert report.prediction is None if relu else report.prediction is not None
    assert report.name == ("one layer, h >= 0" if relu else "one layer")


def test_the_parts_sum_to_the_objective() -> None:
    report = of_the_minimiser()
    loss, solution = report.measured.loss, minimiser()
    assert loss.total == pytest.approx(solution.objective, rel=1e-9)
    assert report.predicted.loss.total == pytest.approx(report.solution.objective, rel=1e-12)
    by_hand = 0.5 * DECAYS["weights"] * np.sum(solution.weights[0] ** 2)
    assert loss.weights[0] == pytest.approx(by_hand, rel=1e-12)
    assert loss.features == pytest.approx(by_hand, rel=1e-7)  # balanced
    assert loss.bias == pytest.approx(0.5 * DECAYS["bias"] * np.sum(solution.bias**2), rel=1e-12)


def test_a_rotation_changes_nothing() -> None:
    Q = a_rotation()
    turned = compare_with_model(
        a_network(features=features_of(minimiser()) @ Q, weights=minimiser().weights[0] @ Q)
    )
    assert turned.agreement.kind == "agrees"
    for row, other in zip(turned.rows, of_the_minimiser().rows, strict=True):
        assert row.measured == pytest.approx(other.measured, rel=1e-9, abs=1e-9)


def test_classes_in_another_order_agree_if_their_counts_go_along() -> None:
    order = np.array([2, 1, 3, 0])  # class k becomes order[k]
    W, b = np.zeros((4, 6)), np.zeros(4)
    W[order], b[order] = minimiser().weights[0], minimiser().bias
    report = compare_with_model(a_network(labels=order[LABELS], weights=W, bias=b))
    assert report.agreement.kind == "agrees"
    np.testing.assert_array_equal(report.trained.class_counts, np.array(COUNTS)[[3, 1, 0, 2]])


def test_the_shift_that_the_loss_does_not_see_is_not_compared() -> None:
    solution = minimiser()
    report = compare_with_model(a_network(bias=solution.bias + 3.0, bias_decay=0.0))
    assert report["bias"].measured == pytest.approx(
        np.sqrt(np.mean((solution.bias - solution.bias.mean()) ** 2))
    )
    assert abs(np.mean(report.predicted.bias)) < 1e-12


def spoilt(name: str) -> TrainedNetwork:
    solution, generator = minimiser(), np.random.default_rng(5)
    H, W = features_of(solution), solution.weights[0]
    if name == "perturbed":
        return a_network(weights=W + 0.5 * generator.standard_normal(W.shape))
    if name == "scattered":
        return a_network(noise=1.5)
    if name == "scaled":
        return a_network(features=1.5 * H, weights=1.5 * W)
    if name == "permuted classifiers":
        return a_network(weights=W[[1, 0, 3, 2]])
    if (
        name == "permuted counts"
    ):  # a majority's features and classifier for a minority, and the other way round
        order = np.array([2, 3, 0, 1])
        return a_network(
            features=features_of(solution)[np.argsort(order[LABELS], kind="stable")], weights=W
        )
    if name == "wrong weight decay":
        return a_network(weight_decay=20 * DECAYS["weights"])
    if name == "wrong loss":
        return a_network(loss=ufm.SquaredError())
    if name == "unbalanced":
        W = np.zeros((4, 6))
        W[:, 4:] = generator.standard_normal((4, 2))
        return a_network(features=np.eye(4, 6)[LABELS], weights=W)
    assert name == "dead class"
    return a_network(features=np.where(LABELS[:, None] == 1, 0.0, H))


@for_each(
    "name",
    [
        "perturbed",
        "scattered",
        "scaled",
        "permuted classifiers",
        "permuted counts",
        "wrong weight decay",
        "unbalanced",
        "dead class",
    ],
)
def test_what_is_no_minimiser_does_not_agree(name: str) -> None:
    report = compare_with_model(spoilt(name)._replace(nonnegative=False))
    assert report.agreement.kind not in ("agrees", "close"), report
    assert not report.agreement.describes
    assert max(report.agreement.aspects.values()) > 0.1
    assert report.excess > 1e-4  # the network is a point of the model, and no minimum
    if name == "unbalanced":
        assert report.agreement.kind == "not balanced"
        assert report.agreement.words.startswith(
            "the last layer is not balanced: the model does not describe this network"
        )


def test_a_model_that_has_collapsed_to_zero_says_so() -> None:
    report = compare_with_model(a_network(weight_decay=1.0))
    assert report.agreement.words.endswith(
        "at these weight decays the minimum of the model is zero"
    )
    assert report["weight norms"].error == report["mean gram"].error == 1.0
    assert not np.any(report.predicted.weight_cosines)
    assert "zero" not in of_the_minimiser().agreement.words


def test_small_errors_are_stated_as_they_are() -> None:
    W = minimiser().weights[0]
    report = compare_with_model(a_network(weights=1.02 * W))
    assert report.agreement.kind == "close"
    # The feature decay that is fitted grows by 4 %, too, and the prediction moves with it: errors
    # are of what it then says.
    measured = np.linalg.norm(1.02 * W, axis=1)
    predicted = np.linalg.norm(report.solution.weights[0], axis=1)
    expected = np.linalg.norm(measured - predicted) / np.linalg.norm(predicted)
    assert report["weight norms"].error == pytest.approx(expected, rel=1e-9)
    assert report["weight norms"].relative_to == "the predicted norm"


def test_groups_average_what_scatters_within_them() -> None:
    W = minimiser().weights[0].copy()
    W[0] *= 1.05
    W[1] *= 0.95
    report = compare_with_model(a_network(weights=W))
    row = report["weight norms"]
    assert row.group_error < 0.2 * row.error
    one = compare_with_model(a_network(weights=W), groups=(0, 1, 2, 3), solution=report.solution)
    assert one["weight norms"].group_error == pytest.approx(row.error)
    with pytest.raises(ValueError, match="`groups` must be one number per class"):
        compare_with_model(a_network(), groups=(0, 1))


def test_averages_are_those_over_permutations() -> None:
    generator = np.random.default_rng(0)
    matrix, vector = generator.standard_normal((4, 4)), generator.standard_normal(4)
    average = averages_over(np.array([0, 1, 0, 1]))
    orders = [[0, 1, 2, 3], [2, 1, 0, 3], [0, 3, 2, 1], [2, 3, 0, 1]]
    np.testing.assert_allclose(
        average(matrix), np.mean([matrix[np.ix_(o, o)] for o in orders], axis=0), atol=1e-15
    )
    np.testing.assert_allclose(
        average(vector), np.mean([vector[o] for o in orders], axis=0), atol=1e-15
    )


def test_moments_are_enough() -> None:
    from ufm.metrics import class_statistics

    statistics, solution = class_statistics(features_of(minimiser()), LABELS, 4), minimiser()
    network = TrainedNetwork.from_moments(
        statistics, solution.weights[0], solution.bias, weight_decay=5e-3, bias_decay=1e-2
    )
    report = compare_with_model(network)
    assert report.agreement.kind == "agrees"
    assert any(row.quantity.startswith("NC1") for row in report.rows)
    without = compare_with_model(network._replace(collapse=None), solution=report.solution)
    assert not any(row.quantity.startswith(("NC1", "NC4")) for row in without.rows)


@pytest.mark.slow
def test_the_result_prints_and_is_plain() -> None:
    report = of_the_minimiser()
    text, page = str(report), report._repr_html_()
    for piece in (
        "verdict: the model describes this network",
        "feature decay",
        "weight gram",
        "relative to",
        "agrees",
    ):
        assert piece in text
    assert page.count("<table>") == 2
    assert "&gt;" in of_the_minimiser(True)._repr_html_()
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["verdict"]["describes"] is True
    assert plain["balance"]["by"] == "matrix"
    assert len(plain["measured"]["weight_norms"]) == 4
    assert "weight_gram" not in plain["measured"]
    assert plain["solution"]["certified"] is True
    assert report["margins"] is report.rows[[row.quantity for row in report.rows].index("margins")]
    assert report[0] == "one layer"
    with pytest.raises(ValueError, match="`quantity` must be one of objective, data term"):
        report["beauty"]


def test_a_layer_that_is_not_stationary_is_noted() -> None:
    report = compare_with_model(a_network(weight_decay=2 * DECAYS["weights"]))
    assert "not stationary at this weight decay (its loss implies 0.005)" in str(report)
    lead = report.agreement.words.partition("Off by")[0]
    assert (
        "its last layer is not stationary at this weight decay (its loss implies 0.005, not 0.01)"
        in lead
    )
    assert "stationary" not in of_the_minimiser().agreement.words


def test_the_facts_name_the_loss_and_the_sizes() -> None:
    facts = dict(of_the_minimiser().facts())
    N = int(sum(COUNTS))
    assert (
        facts["loss"]
        == "CrossEntropy (assumed, as none was given; `loss`, or --loss, says another)"
    )
    assert (
        facts["network"]
        == f"K = 4 classes of {min(COUNTS)} to {max(COUNTS)} samples, N = {N}, d = 6 features"
    )
    given = of_the_minimiser()._replace(trained=a_network(loss=ufm.Focal(2.0)))
    assert dict(given.facts())["loss"] == "Focal(gamma=2) (given)"
    nested = given._replace(trained=a_network(loss=ufm.ClassWeighted(0.5)))
    assert dict(nested.facts())["loss"] == "ClassWeighted(exponent=0.5) (given)"


def test_angles_are_shown_as_means_and_the_table_says_so() -> None:
    report = of_the_minimiser()
    row = report["weight cosines"]
    cosines = report.measured.weight_cosines
    assert row.shown_as == "mean j != k"
    assert row.measured == pytest.approx(np.mean(cosines[~np.eye(4, dtype=bool)]), rel=1e-12)
    assert row.measured < 0
    assert report["alignment"].measured == pytest.approx(
        np.mean(report.measured.alignment), rel=1e-12
    )
    assert (
        report["alignment"].shown_as,
        report["weight gram"].shown_as,
        report["objective"].shown_as,
    ) == (
        "mean",
        "rms",
        "",
    )
    turned = compare_with_model(
        a_network(weights=-minimiser().weights[0]), solution=report.solution
    )
    assert turned["alignment"].measured < 0 < turned["alignment"].predicted
    for text in (str(report), report._repr_html_()):
        words = " ".join(text.split())
        assert "agrees up to 1 %, close up to 10 %, rough up to 30 %, differs above" in words
        assert "by group: the same of averages over classes of one group" in words


def test_features_that_are_not_what_was_said_are_noted() -> None:
    said = ufm.networks.effective_model(a_network(nonnegative=True))
    (note,) = (note for note in said.notes if "said to be non-negative" in note)
    share = np.mean(features_of(minimiser()) < 0)
    assert f"{100 * share:.2g} % of their entries are negative" in note
    for trained in (a_network(), a_network(True), a_network(nonnegative=True).centred()):
        assert not any("said to be" in note for note in ufm.networks.effective_model(trained).notes)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="`start` must be one of model, network, got 'here'"):
        compare_with_model(a_network(), start="here")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`trained` must have at least two layers"):
        compare_with_models(a_network())


def a_deep_problem() -> ufm.Problem:
    regularizer = ufm.WeightDecay(weights=(5e-3, 4e-3), features=2e-4, bias=1e-2)
    return a_problem(
        hidden_dims=(6,), activation="relu", nonnegative_features=True, regularizer=regularizer
    )


def of_a_point(solution: Any) -> TrainedNetwork:
    features = np.asarray(solution.features)[LABELS]
    return TrainedNetwork.from_features(
        features,
        LABELS,
        solution.weights,
        solution.bias,
        weight_decay=(5e-3, 4e-3),
        bias_decay=1e-2,
    )


@pytest.mark.slow
def test_the_minimum_nearby_of_a_convex_model_is_its_minimum() -> None:
    report = compare_with_model(a_network(weights=1.02 * minimiser().weights[0]), start="network")
    assert report.name == "one layer, minimum nearby"
    assert report.solution.certificate is not None
    assert report.solution.certificate.holds


@pytest.mark.nightly
def test_many_classes_of_few_sizes_are_solved_as_groups() -> None:
    y = np.repeat(np.arange(52), [6] * 26 + [3] * 26)
    features = 2 * np.eye(52, 60)[y]
    trained = TrainedNetwork.from_features(features, y, np.eye(52, 60), weight_decay=1e-3)
    assert trained.nonnegative
    report = compare_with_model(trained)
    assert report.solution.certificate is not None
    assert report.solution.certificate.holds
    assert "groups" in report.solution.certificate.method
    assert report.solution.features.shape == (52, 60)
    alike = ufm.solve(report.effective.problem)
    assert report.solution.objective == pytest.approx(alike.objective, rel=1e-9)


@pytest.mark.nightly
@for_each("loss", [ufm.SquaredError(), ufm.LabelSmoothing(0.1)])
def test_other_losses_are_held_against_their_own_model(loss: ufm.losses.Loss) -> None:
    solution = ufm.solve(a_problem(loss=loss))
    changes = {
        "features": features_of(solution),
        "weights": solution.weights[0],
        "bias": solution.bias,
    }
    assert compare_with_model(a_network(loss=loss, **changes)).agreement.kind == "agrees"
    assert compare_with_model(a_network(**changes)).agreement.kind not in ("agrees", "close")


@pytest.mark.nightly
def test_a_deep_network_is_held_against_the_minimum_nearby() -> None:
    """From a point off its minimum. The one-layer model does not know the second ReLU."""
    generator, problem = np.random.default_rng(2), a_deep_problem()
    start = ufm.Parameters(
        weights=(np.abs(generator.standard_normal((6, 6))), generator.standard_normal((4, 6))),
        features=np.abs(generator.standard_normal((4, 6))),
        bias=np.zeros(4),
    )
    solution = ufm.solve(problem, initial=start)
    assert solution.status.ok
    assert np.all(solution.features >= 0)
    report = compare_with_model(of_a_point(solution), start="network")
    assert report.name == "2 layers, relu, h >= 0, minimum nearby"
    assert report.agreement.kind == "agrees"
    assert report.agreement.aspects["balance between layers"] < 1e-7
    assert "not certified" in report.agreement.words
    assert report.excess > 0  # over a lower bound that is not tight
    off = solution.weights[0] * (1 + 0.3 * generator.standard_normal((6, 6)))
    spoilt = TrainedNetwork.from_features(
        solution.features[LABELS],
        LABELS,
        (off, solution.weights[1]),
        solution.bias,
        weight_decay=(5e-3, 4e-3),
        bias_decay=1e-2,
    )
    other = compare_with_model(spoilt, start="network")
    assert other.agreement.kind != "agrees"
    assert other.agreement.aspects["balance between layers"] > 0.01


@pytest.mark.nightly
def test_models_of_one_and_two_layers_side_by_side() -> None:
    both = compare_with_models(of_a_point(ufm.solve(a_deep_problem())))
    assert [report.name for report in both.reports] == [
        "one layer, h >= 0",
        "2 layers, relu, h >= 0",
        "2 layers, relu, h >= 0, minimum nearby",
    ]
    one, two, near = both.reports
    assert one.agreement.kind == "rough"
    assert two.agreement.kind == near.agreement.kind == "agrees"
    assert "weight penalty" not in both.quantities
    for quantity in ("mean gram", "weight gram", "weight cosines", "margins"):
        errors = both.errors(quantity)
        assert errors[1] < 1e-5 < 1e-2 < errors[0]
        assert both.best(quantity) != "one layer, h >= 0"
    assert "*: the least error" in str(both)
    assert both._repr_html_().count("<table>") == 1
    json.dumps(both.to_dict(), allow_nan=False)
