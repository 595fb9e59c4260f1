"""Thresholds for targets against formulas written out, and against solves on both sides."""

from typing import Any

import numpy as np
import pytest
from scipy import optimize
from tables import for_each

import ufm
from ufm import Targets, collapse_thresholds
from ufm.imbalance import target_thresholds
from ufm.imbalance.target_thresholds import alike_outputs

ALL = "everything vanishes"
RNG = np.random.default_rng(0)
SOFT = Targets(RNG.dirichlet(np.ones(3), 5), (1, 2, 3, 1, 2))
CONTEXTS = Targets(SOFT.rows, SOFT.counts, np.ones(5))
TREE = Targets.hierarchy(2, 2, 0.7, 0.2, 5)


def problem(targets: Targets, loss: Any = None, **changes: Any) -> ufm.Problem:
    settings: dict[str, Any] = {"feature_dim": 4, "regularizer": ufm.WeightDecay(2e-3, 5e-4)}
    loss = ufm.CrossEntropy() if loss is None else loss
    return ufm.Problem(targets=targets, loss=loss, **(settings | changes))


def price_of(found: Any, kind: str = ALL, error: float = 1e-12) -> float:
    (one,) = [one for one in found if one.kind == kind]
    assert (one.status, one.side, one.exact, one.bracket) == (
        *("found", "above", True),
        (one.value, one.value),
    )
    assert 0 < one.error < error
    return float(one.value)


def with_price(stated: ufm.Problem, price: float) -> ufm.Problem:
    decay = ufm.WeightDecay(2 * price, price / 2, stated.regularizer.bias)
    return problem(
        stated.targets,
        stated.loss,
        regularizer=decay,
        use_bias=stated.use_bias,
        feature_dim=stated.feature_dim,
    )


# Everything vanishes


def spectral(targets: Targets, slopes: Any) -> float:
    counts = np.asarray(targets.counts)
    weights = counts if targets.feature_weights is None else np.asarray(targets.feature_weights)
    scale = counts / counts.sum() / np.sqrt(weights)
    return float(np.linalg.svd(scale[:, None] * slopes, compute_uv=False)[0])


SLOPES: dict[str, Any] = {
    "ce": (ufm.CrossEntropy(), 1 / 3),
    "mse": (ufm.SquaredError(), 0.0),
    "bce": (ufm.BinaryCrossEntropy(), 1 / 2),
    "poisson": (ufm.Poisson(), 1.0),
}


def check_formulas(targets: Targets, name: str) -> None:
    loss, at_zero = SLOPES[name]
    rows, mean = np.asarray(targets.rows), targets.counts @ targets.rows / 9
    price = price_of(collapse_thresholds(problem(targets, loss), "weight_decay"))
    assert price == pytest.approx(spectral(targets, at_zero - rows), rel=1e-12)
    free = price_of(collapse_thresholds(problem(targets, loss, use_bias=True), "weight_decay"))
    assert free == pytest.approx(spectral(targets, mean - rows), rel=1e-12)


def test_the_price_of_nothing_by_formulas() -> None:
    check_formulas(CONTEXTS, "ce")


@pytest.mark.slow
@for_each("name", list(SLOPES))
def test_the_price_of_nothing_by_formulas_for_other_losses(name: str) -> None:
    check_formulas(SOFT, name)
    check_formulas(CONTEXTS, name)


def test_the_price_of_nothing_with_a_penalised_bias() -> None:
    decay = ufm.WeightDecay(1e-3, 1e-3, 0.3)
    stated = problem(SOFT, use_bias=True, regularizer=decay)
    mean = np.asarray(SOFT.label_counts) / 9

    def slope(bias: Any) -> Any:
        return np.exp(bias) / np.exp(bias).sum() - mean + 0.3 * bias

    bias = optimize.root(slope, np.zeros(3), tol=1e-14).x
    slopes = np.exp(bias) / np.exp(bias).sum() - np.asarray(SOFT.rows)
    price = price_of(collapse_thresholds(stated, "weight_decay"))
    assert price == pytest.approx(spectral(SOFT, slopes), rel=1e-10)


def test_constant_logits_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_thresholds, "LISTED", 1)
    wanted = spectral(SOFT, np.asarray(SOFT.label_counts) / 9 - np.asarray(SOFT.rows))
    found = collapse_thresholds(problem(SOFT, use_bias=True), "weight_decay")
    assert price_of(found) == pytest.approx(wanted, rel=1e-12)


def test_constant_logits_that_run_away_and_that_start_far_off() -> None:
    unused = Targets(np.column_stack([SOFT.rows, np.zeros(5)]), SOFT.counts)
    free = price_of(collapse_thresholds(problem(unused, use_bias=True), "weight_decay"))
    rows = np.asarray(SOFT.rows)
    wanted = spectral(SOFT, np.asarray(SOFT.label_counts) / 9 - rows)
    assert free == pytest.approx(wanted, rel=1e-12)
    far = Targets(1e4 + np.asarray(SOFT.rows), SOFT.counts)
    huber = problem(far, ufm.Huber(1.0), use_bias=True)
    price = price_of(collapse_thresholds(huber, "weight_decay"), error=1e-10)
    assert price == pytest.approx(wanted, rel=1e-10)


def test_other_penalties_have_the_same_price() -> None:
    stated = problem(SOFT)
    price = price_of(collapse_thresholds(stated, "weight_decay"))
    (one,) = [one for one in collapse_thresholds(stated, "weight_decay") if one.kind == ALL]
    assert one.factor == pytest.approx(price / 1e-3, rel=1e-12)
    weights = price_of(collapse_thresholds(stated, "regularizer.weights"))
    features = price_of(collapse_thresholds(stated, "regularizer.features"))
    assert weights * 5e-4 == pytest.approx(price**2, rel=1e-12)
    assert features * 2e-3 == pytest.approx(price**2, rel=1e-12)
    assert collapse_thresholds(stated, "weight_decay", bounds=(price * 1.01, 1.0)) == ()
    inside = collapse_thresholds(stated, "weight_decay", bounds=(price * 0.99, price * 1.01))
    assert price_of(inside) == price


def both_sides(stated: ufm.Problem, price: float) -> tuple[ufm.Solution, ufm.Solution]:
    """Return certified minima one percent above and below a price."""
    sides = [ufm.solve(with_price(stated, price * share)) for share in (1.01, 0.99)]
    for one in sides:
        assert one.certificate is not None
        assert one.certificate.holds
    return sides[0], sides[1]


def test_solves_on_both_sides_of_nothing() -> None:
    stated = problem(SOFT, use_bias=True)
    above, below = both_sides(stated, price_of(collapse_thresholds(stated, "weight_decay")))
    assert (above.rank, below.rank) == (0, 1)


@pytest.mark.slow
@for_each(
    "stated",
    [
        problem(CONTEXTS),
        problem(SOFT, ufm.BinaryCrossEntropy(), use_bias=True),
        problem(SOFT, ufm.Poisson(), use_bias=True),
        problem(SOFT, use_bias=True, regularizer=ufm.WeightDecay(1e-3, 1e-3, 0.3), feature_dim=1),
        problem(Targets.one_hot([5, 3, 2]), ufm.WestonWatkins()),
        problem(Targets(RNG.normal(size=(6, 3))), ufm.Huber(0.5)),
    ],
)
def test_solves_on_both_sides_of_nothing_for_other_losses(stated: ufm.Problem) -> None:
    price = price_of(collapse_thresholds(stated, "weight_decay"))
    above, below = (ufm.solve(with_price(stated, price * share)) for share in (1.01, 0.99))
    assert (above.rank, below.rank > 0) == (0, True)
    assert above.certificate is not None
    assert above.certificate.holds


def test_a_kink_is_told_apart_from_a_derivative() -> None:
    """At zero logits all classes tie: the derivative of a largest logit is one of many."""
    one_hot = problem(Targets.one_hot([5, 3, 2]), ufm.CrammerSinger())
    (found,) = [one for one in collapse_thresholds(one_hot, "weight_decay") if one.kind == ALL]
    assert (found.status, found.value) == ("unresolved", None)
    assert "kink" in found.reason
    assert "no threshold in weight_decay" in str(found)


# Outputs coincide


def apart(solution: ufm.Solution, one: int, other: int) -> float:
    weights = np.asarray(solution.weights[-1])
    return float(np.linalg.norm(weights[one] - weights[other]) / np.linalg.norm(weights))


SIBLINGS, EVERYTHING = np.sqrt(5) * (0.7 - 0.2) / 20, np.sqrt(5) * (0.7 + 0.2 - 2 * 0.05) / 20


def check_hierarchy(stated: ufm.Problem) -> None:
    kind = "classifiers of outputs (0 1), (2 3) coincide"
    found = collapse_thresholds(stated, "weight_decay")
    assert [one.kind for one in found] == [kind, ALL]
    assert price_of(found, kind) == pytest.approx(SIBLINGS, rel=1e-12)
    assert price_of(found) == pytest.approx(EVERYTHING, rel=1e-12)
    above, below = both_sides(stated, SIBLINGS)
    assert apart(above, 0, 1) < 1e-6 < 1e-2 < apart(below, 0, 1)
    assert apart(above, 2, 3) < 1e-6
    assert apart(above, 0, 2) > 0.5


def test_a_hierarchy_collapses_from_the_siblings_up() -> None:
    check_hierarchy(problem(TREE))


@pytest.mark.slow
@for_each("loss", [ufm.CrossEntropy(), ufm.BinaryCrossEntropy(), ufm.SquaredError()])
def test_a_hierarchy_collapses_at_one_price_for_other_losses(loss: ufm.Loss) -> None:
    check_hierarchy(problem(TREE, loss, use_bias=True))


MIXED = Targets(
    [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]],
    (2, 2, 3, 3, 4),
    (1, 1, 2, 2, 1),
)


def test_outputs_that_several_rows_tell_apart() -> None:
    assert alike_outputs(MIXED, np.ones(5)) == [(0, 1), (2,)]
    price = np.sqrt(2 * (2 * 0.5) ** 2 / 2 + 2 * (3 * 0.3) ** 2 / 4) / 14
    found = collapse_thresholds(problem(MIXED), "weight_decay")
    kind = "classifiers of outputs (0 1) coincide"
    assert price_of(found, kind) == pytest.approx(price, rel=1e-12)
    above, below = both_sides(problem(MIXED), price)
    assert apart(above, 0, 1) < 1e-6 < 1e-2 < apart(below, 0, 1)


def test_outputs_are_alike_only_if_an_exchange_permutes_the_rows() -> None:
    rows = np.asarray(MIXED.rows)
    for changed in (
        Targets(rows, (2, 2.5, 3, 3, 4)),
        Targets(rows + 1e-15 * (np.arange(5) == 3)[:, None], MIXED.counts),
        Targets(np.delete(rows, 0, axis=0)),
    ):
        assert alike_outputs(changed, np.ones(changed.num_rows)) == [(0,), (1,), (2,)]
    assert alike_outputs(MIXED, np.arange(5)) == [(0,), (1,), (2,)]
    # Equal columns of numbers are not enough: the rows have to match as a whole.
    twisted = Targets([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    assert alike_outputs(twisted, np.ones(4)) == [(0,), (1,), (2,)]
    assert alike_outputs(Targets.one_hot([2, 1, 2]), np.ones(3)) == [(0, 2), (1,)]
    assert alike_outputs(Targets.multi_label(4, {2: 6}), np.ones(6)) == [(0, 1, 2, 3)]


@for_each(
    ("changes", "reason"),
    [
        ({"loss": ufm.Huber(0.1)}, "depends on the other logits"),
        ({"loss": ufm.CDT(multipliers=(1.0, 1.0, 0.5))}, "does not treat these outputs alike"),
        ({"feature_dim": 1}, "feature dimension does not hold"),
        ({"nonnegative_features": True}, "non-negative features"),
        ({"regularizer": ufm.NormBall(1.0, 1.0)}, "norm balls"),
    ],
)
def test_what_has_no_closed_form_says_so(changes: dict[str, Any], reason: str) -> None:
    targets = Targets.one_hot([2, 2, 2]) if "CDT" in repr(changes) else MIXED
    vary = "regularizer.weights"
    unknown = [
        one for one in collapse_thresholds(problem(targets, **changes), vary) if not one.found
    ]
    assert {one.status for one in unknown} == {"unknown"}
    assert any(reason in one.reason for one in unknown)


@for_each(
    ("changes", "vary", "message"),
    [
        ({}, "imbalance_ratio", "`vary` must be weight_decay, .* for a problem of `targets`"),
        ({"hidden_dims": (4,)}, "weight_decay", "must have one layer, a convex loss"),
        ({"loss": ufm.Focal(1.0)}, "weight_decay", "must have one layer, a convex loss"),
        ({"regularizer": ufm.NormBall(1.0, 1.0)}, "weight_decay", "needs weight decay"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], vary: str, message: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=message):
        collapse_thresholds(problem(SOFT, **changes), vary)
    with pytest.raises(ufm.ArgumentError, match="they have no minority"):
        ufm.minority_collapse_threshold(problem(SOFT))
    with pytest.raises(ufm.ArgumentError, match="`bounds` must be two"):
        collapse_thresholds(problem(SOFT), "weight_decay", bounds=(1.0, 0.5))
