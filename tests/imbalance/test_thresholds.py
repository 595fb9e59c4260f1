"""Thresholds against independent formulas, solves on both sides, and explicit matrices."""

import functools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy import optimize
from tables import for_each, slow

import ufm
import ufm.imbalance.thresholds as thresholds_module
from ufm import (
    CDT,
    LDT,
    ClassGroups,
    ClassWeighted,
    CrossEntropy,
    LabelSmoothing,
    LogitAdjusted,
    NormBall,
    SquaredError,
    WeightDecay,
    collapse_thresholds,
    minority_collapse_threshold,
)
from ufm._support import double_precision, to_numpy
from ufm.problems import one_parameter_family

COINCIDE, VANISH, ALL = (
    "minority classifiers coincide",
    "minority features vanish",
    "everything vanishes",
)
DECAY = WeightDecay(3e-3, 3e-3)


def problem(
    counts: Any = (500.0, 100.0),
    sizes: Any = (5, 5),
    loss: Any = None,
    regularizer: Any = DECAY,
    **settings: Any,
) -> ufm.Problem:
    loss = CrossEntropy() if loss is None else loss
    return ufm.Problem(
        class_counts=ClassGroups(counts, sizes=sizes),
        feature_dim=sum(sizes),
        loss=loss,
        regularizer=regularizer,
        **settings,
    )


def ball(kA: int, features: float, **settings: Any) -> ufm.Problem:
    return problem((500.0, 50.0), (kA, 10 - kA), regularizer=NormBall(1.0, features), **settings)


def of_kind(found: Any, kind: str) -> Any:
    (threshold,) = [threshold for threshold in found if threshold.kind == kind]
    assert threshold.found
    return threshold


def sides(given: ufm.Problem, threshold: Any) -> tuple[Any, Any]:
    """Certified minima 1e-4 beside a threshold: where the collapse is, and where it is not."""
    path = one_parameter_family(given, threshold.vary)
    sign = 1 if threshold.side == "above" else -1
    values = threshold.value * (1 + sign * np.array([1e-4, -1e-4] * (thresholds_module.BATCH // 2)))
    with double_precision(), jax.numpy_rank_promotion("allow"):
        minimum, *_ = to_numpy(
            thresholds_module.solved_with_ratios(path.at(path.coordinate(values)), np.asarray(0.0))
        )
    evidence = minimum.evidence
    assert np.all(evidence.objective - evidence.lower_bound <= 1e-9 * evidence.objective)
    inside, outside = (
        {"e": minimum.logits.within[:, i], "z": minimum.logits.between[..., i]} for i in (0, 1)
    )
    ratios = np.concatenate([evidence.within, evidence.between[None]])
    return (inside, ratios[:, 0]), (outside, ratios[:, 1])


def check_sides(given: ufm.Problem, threshold: Any, modes: list[int]) -> None:
    """The modes that are to vanish do on one side; on the other, one of them does not."""
    (inside, ratios), (outside, others) = sides(given, threshold)
    sizes = [
        np.abs(inside["e"][mode]) if mode >= 0 else np.max(np.abs(inside["z"])) for mode in modes
    ]
    assert max(sizes) < 1e-6
    assert np.all(ratios[modes] < 1 - 1e-6)
    sizes = [
        np.abs(outside["e"][mode]) if mode >= 0 else np.max(np.abs(outside["z"])) for mode in modes
    ]
    assert max(sizes) > 1e-6
    assert np.max(others[modes]) > 1 - 1e-6


def ratio_root(
    given: ufm.Problem, theorem: str, constant: str, vary: str, near: float, log: bool = True
) -> float:
    """Where a theorem's constant is one, from nothing that the thresholds are made from."""

    def excess(value: float) -> float:
        groups, regularizer = given.class_counts, given.regularizer
        if vary == "imbalance_ratio":
            groups = ClassGroups((groups.counts[0], groups.counts[0] / value), sizes=groups.sizes)
        elif vary == "weight_decay":
            regularizer = WeightDecay(value, value, getattr(regularizer, "bias", 0.0))
        else:
            regularizer = NormBall(1.0, value)
        there = problem(
            groups.counts, groups.sizes, given.loss, regularizer, use_bias=given.use_bias
        )
        return math.log(ufm.theorems[theorem].formula(there).constants[constant])

    ends = near * (1 - 1e-5), near * (1 + 1e-5)
    return float(optimize.brentq(excess, *ends, xtol=1e-13, rtol=1e-15))


# The layer-peeled model: no closed form, only certified solves

TABLE = {
    (5.0, 3): 245.4969306,
    (5.0, 5): 12.19244708,
    (5.0, 7): 4.00046671,
    (10.0, 3): 6350.846463,
    (10.0, 5): 81.10220610,
    (10.0, 7): 13.66585714,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "kA"),
    TABLE,
)
def test_the_table_of_the_layer_peeled_model(features: float, kA: int) -> None:
    given = ball(kA, features)
    threshold = minority_collapse_threshold(given)
    exact = ratio_root(
        given, "layer-peeled-two-groups", "minority_ratio", "imbalance_ratio", threshold.value
    )
    assert threshold.value == pytest.approx(exact, rel=3e-9)
    assert threshold.value == pytest.approx(TABLE[features, kA], rel=1e-8)
    assert abs(threshold.value / exact - 1) < threshold.error < 1e-8
    low, high = threshold.bracket
    assert low < exact < high
    assert high / low - 1 < 2e-5
    assert (threshold.kind, threshold.side, threshold.exact, threshold.status) == (
        COINCIDE,
        "above",
        False,
        "found",
    )
    assert 0 < threshold.evaluations < 1000
    assert threshold.relative_gap < 1e-11
    check_sides(given, threshold, [1])


def test_every_batch_has_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    original = thresholds_module.solved_with_ratios

    def recorded(family: Any, weight_exponent: float) -> Any:
        sizes.add(family.counts.shape)
        return original(family, weight_exponent)

    monkeypatch.setattr(thresholds_module, "solved_with_ratios", recorded)
    assert len(collapse_thresholds(ball(5, 2.0))) == 2
    assert sizes == {(2, thresholds_module.BATCH)}


@pytest.mark.nightly
def test_the_layer_peeled_threshold_in_other_numbers() -> None:
    given = ball(5, 5.0)
    ratio = minority_collapse_threshold(given).value
    counts = (
        minority_collapse_threshold(given, "minority_count"),
        minority_collapse_threshold(given, "majority_count"),
    )
    assert [threshold.side for threshold in counts] == ["below", "above"]
    assert 500 / counts[0].value == pytest.approx(ratio, rel=1e-8)
    assert counts[1].value / 50 == pytest.approx(ratio, rel=1e-8)
    for vary in ("regularizer.features", "regularizer.weights"):  # only their product counts
        at_ratio = problem((ratio, 1.0), regularizer=NormBall(1.0, 5.0))
        found = minority_collapse_threshold(at_ratio, vary)
        assert found.side == "below"
        assert found.value == pytest.approx(
            5.0 if vary == "regularizer.features" else 1.0, rel=1e-8
        )


def test_the_number_of_minority_classes_in_the_layer_peeled_model() -> None:
    given = problem(regularizer=NormBall(1.0, 5.0))
    found = minority_collapse_threshold(given, "num_minority")
    assert found.side == "below"
    assert found.first_integer == math.floor(found.value) == 3
    collapsed = {
        k: float(
            ufm.predict(problem((5.0, 1.0), (10 - k, k), regularizer=NormBall(1.0, 5.0))).constants[
                "minority_ratio"
            ]
        )
        >= 1
        for k in (2, 3, 4, 5)
    }
    assert collapsed == {2: True, 3: True, 4: False, 5: False}
    check_sides(given, found, [1])


@pytest.mark.slow
@pytest.mark.parametrize("use_bias", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_features_that_vanish_in_the_layer_peeled_model(use_bias: bool) -> None:
    given = ball(5, 2.0, use_bias=use_bias)
    found = collapse_thresholds(given)
    assert [threshold.kind for threshold in found] == [COINCIDE, VANISH]
    for threshold, constant in zip(found, ("minority_ratio", "contrast_ratio"), strict=True):
        exact = ratio_root(
            given, "layer-peeled-two-groups", constant, "imbalance_ratio", threshold.value
        )
        assert threshold.value == pytest.approx(exact, rel=5e-9)
    check_sides(given, found[1], [1, -1])


@pytest.mark.nightly
def test_squared_error_in_the_norm_balls() -> None:
    given = problem(loss=SquaredError(), regularizer=NormBall(0.1, 0.1))
    found = collapse_thresholds(given)
    T, kA = 1.0, 5
    assert [threshold.kind for threshold in found] == [COINCIDE, VANISH]
    for threshold in found:
        assert threshold.exact
        assert threshold.value == pytest.approx(1 / (1 - T / kA), rel=1e-14)
    check_sides(given, found[0], [1])


@pytest.mark.nightly
def test_squared_error_in_the_norm_balls_with_a_bias() -> None:
    with_bias = problem(loss=SquaredError(), regularizer=NormBall(0.1, 0.1), use_bias=True)
    first, second = collapse_thresholds(with_bias)
    assert (first.exact, second.exact) == (False, False)
    assert first.value == pytest.approx(9 / 7, rel=1e-8)
    check_sides(with_bias, first, [1])
    check_sides(with_bias, second, [1, -1])


# Weight decay: closed forms


def quadratic(kA: float, kB: float, nA: float, tau: float, s: float = 1.0) -> float:
    """n_A / n_B with s sqrt(n_B) = (k_A n_A + k_B n_B) tau, the smaller root for n_B."""
    root = (s - math.sqrt(s**2 - 4 * kA * kB * nA * tau**2)) / (2 * kB * tau)
    return nA / root**2


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        pytest.param(LabelSmoothing(0.1), marks=pytest.mark.nightly),
        pytest.param(LogitAdjusted(1.0), marks=pytest.mark.nightly),
        ClassWeighted(weights=(0.7, 0.9)),
        pytest.param(SquaredError(), marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("use_bias", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_ratio_is_the_root_of_a_quadratic(loss: Any, use_bias: bool) -> None:
    given = problem(loss=loss, use_bias=use_bias)
    found = minority_collapse_threshold(given)
    factor = {LabelSmoothing: 0.9, ClassWeighted: 0.9}.get(type(loss), 1.0)
    assert found.exact
    assert found.evaluations == 0
    assert found.value == pytest.approx(quadratic(5, 5, 500, 3e-3, factor), rel=1e-13)
    if not use_bias or isinstance(loss, CrossEntropy):
        check_sides(given, found, [1])


def test_weight_decay_and_class_numbers_in_closed_form() -> None:
    given = problem(regularizer=WeightDecay(4e-3, 1e-3))
    found = minority_collapse_threshold(given, "weight_decay")
    assert found.value == pytest.approx(10 / 3000, rel=1e-14)
    assert found.factor == pytest.approx(10 / 3000 / 2e-3, rel=1e-14)
    check_sides(given, found, [1])
    weights = minority_collapse_threshold(given, "regularizer.weights").value
    assert weights * 1e-3 == pytest.approx((10 / 3000) ** 2, rel=1e-13)
    count = minority_collapse_threshold(problem(), "num_minority")
    assert count.value == pytest.approx((5000 - 10 / 3e-3) / 400, rel=1e-13)  # N = 5000 - 400 k_B
    assert (count.side, count.first_integer) == ("below", 4)
    check_sides(problem(), count, [1])
    majority = minority_collapse_threshold(problem(), "majority_count")
    assert majority.value == pytest.approx((10 / 3e-3 - 500) / 5, rel=1e-13)
    minority = minority_collapse_threshold(problem(), "minority_count")
    assert minority.value == pytest.approx(500 / quadratic(5, 5, 500, 3e-3), rel=1e-13)


@pytest.mark.nightly
def test_parameters_of_the_loss() -> None:
    smoothed = minority_collapse_threshold(problem(loss=LabelSmoothing(0.0)), "loss.alpha")
    assert smoothed.value == pytest.approx(1 - 3e-3 * 3000 / 10, rel=1e-13)
    for loss in (CDT(0.3), LDT(0.3)):
        found = minority_collapse_threshold(problem(loss=loss), "loss.exponent")
        assert found.value == pytest.approx(math.log(0.9) / math.log(0.2), rel=1e-13)
        check_sides(problem(loss=loss), found, [1])
    weighted = minority_collapse_threshold(problem(loss=ClassWeighted(0.3)), "loss.exponent")
    assert not weighted.found
    nested = ClassWeighted(0.0, loss=LabelSmoothing(0.0))
    assert minority_collapse_threshold(
        problem(loss=nested), "loss.loss.alpha"
    ).value == pytest.approx(0.1, rel=1e-13)


@pytest.mark.nightly
def test_counts_that_the_loss_depends_on() -> None:
    found = minority_collapse_threshold(problem(loss=CDT(0.3)))
    R = found.value
    assert R**-0.3 * math.sqrt(500 / R) == pytest.approx(3e-3 * 2500 * (1 + 1 / R), rel=1e-12)
    check_sides(problem(loss=CDT(0.3)), found, [1])


@pytest.mark.nightly
@for_each("bias", [None, 0.0, 1e-2])
def test_every_collapse_of_cross_entropy_as_the_weight_decay_grows(bias: float | None) -> None:
    regularizer = DECAY if bias is None else WeightDecay(3e-3, 3e-3, bias)
    given = problem(regularizer=regularizer, use_bias=bias is not None)
    found = collapse_thresholds(given, "weight_decay")
    assert [threshold.value for threshold in found] == sorted(
        threshold.value for threshold in found
    )
    assert [threshold.kind for threshold in found[:2]] == [COINCIDE, VANISH]
    assert {threshold.kind for threshold in found[2:]} == {
        "majority classifiers coincide",
        "majority features vanish",
        ALL,
    }
    vanish = of_kind(found, VANISH)
    theory = functools.partial(ratio_root, given, vary="weight_decay")
    exact = theory("cross-entropy-two-groups", "contrast_ratio", near=vanish.value)
    assert vanish.value == pytest.approx(exact, rel=5e-9)
    everything = of_kind(found, ALL)
    exact = theory("cross-entropy-complete-collapse", "collapse_ratio", near=everything.value)
    assert everything.value == pytest.approx(exact, rel=5e-9)
    assert everything.exact == (bias != 1e-2)
    check_sides(given, vanish, [1, -1])
    check_sides(given, everything, [0, 1, -1])


@pytest.mark.nightly
def test_squared_error_with_a_free_bias() -> None:
    given = problem(loss=SquaredError(), use_bias=True)
    found = collapse_thresholds(given, "weight_decay")
    assert of_kind(found, VANISH).value == pytest.approx(
        math.sqrt(10 * 500 * 100 / 3000) / 3000, rel=5e-9
    )
    assert of_kind(found, ALL).value == pytest.approx(math.sqrt(500) / 3000, rel=1e-13)
    assert of_kind(found, ALL).exact


def test_the_same_threshold_at_any_number_of_samples() -> None:
    few = minority_collapse_threshold(problem(), "imbalance_ratio")
    many = minority_collapse_threshold(
        problem((5e6, 1e6), regularizer=WeightDecay(3e-5, 3e-5)), "imbalance_ratio"
    )
    assert few.value == pytest.approx(many.value, rel=1e-13)


# Explicit matrices


@for_each(
    ("given", "vary"),
    [
        (problem((8.0, 2.0), (2, 3), regularizer=WeightDecay(0.1, 0.1)), "weight_decay"),
        (problem((8.0, 2.0), (2, 2), regularizer=NormBall(1.0, 5.0)), "minority_count"),
    ],
)
def test_explicit_classifiers_on_both_sides(given: ufm.Problem, vary: str) -> None:
    threshold = minority_collapse_threshold(given, vary)
    spread = []
    for factor in (1 + 2e-3, 1 - 2e-3):
        value = threshold.value * factor
        if vary == "weight_decay":
            there = problem(
                given.class_counts.counts,
                given.class_counts.sizes,
                regularizer=WeightDecay(value, value),
            )
        else:
            there = problem((8.0, value), given.class_counts.sizes, regularizer=given.regularizer)
        solution = ufm.solve(there, resolution="classes", tol=1e-10)
        assert solution.certificate.holds
        minority = solution.weights[0][-2:]
        spread.append(float(np.sum((minority[0] - minority[1]) ** 2) / np.sum(minority**2)))
    inside, outside = spread if threshold.side == "above" else spread[::-1]
    assert inside < 1e-7
    assert outside > 1e-4


# Non-negative features


@for_each("regularizer", [WeightDecay(0.06, 0.06), slow(NormBall(0.6, 0.6))])
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        pytest.param(LabelSmoothing(0.05), marks=pytest.mark.slow),
        pytest.param(SquaredError(), marks=pytest.mark.nightly),
    ],
    ids=["ce", "ls", "mse"],
)
def test_nonnegative_features_vanish(regularizer: Any, loss: Any) -> None:
    if isinstance(loss, SquaredError) and isinstance(regularizer, NormBall):
        regularizer = NormBall(0.3, 0.3)

    def at(count: float) -> ufm.Problem:
        return ufm.Problem(
            class_counts=ClassGroups((8.0, count), sizes=(2, 2)),
            feature_dim=40,
            loss=loss,
            regularizer=regularizer,
            nonnegative_features=True,
        )

    threshold = minority_collapse_threshold(at(2.0))
    assert threshold.kind == VANISH
    assert threshold.exact
    if isinstance(regularizer, WeightDecay) and isinstance(loss, CrossEntropy):
        assert threshold.value == pytest.approx(
            quadratic(2, 2, 8, 0.06, math.sqrt(3 / 4)), rel=1e-13
        )
    norms = []
    for factor in (1 + 1e-4, 1 - 1e-4):
        with jax.numpy_rank_promotion("allow"):
            solution = ufm.solve(at(8.0 / threshold.value / factor), resolution="groups", tol=1e-9)
        assert solution.certificate.holds
        squares = np.sum(np.asarray(solution.features) ** 2, axis=1)
        norms.append(float(squares[-1] / np.sum(squares)))
    assert norms[0] < 1e-8
    assert norms[1] > 1e-6


def test_nonnegative_features_and_their_classifiers_collapse_together() -> None:
    found = collapse_thresholds(problem(nonnegative_features=True), "weight_decay")
    for group, count in (("minority", 100), ("majority", 500)):
        exact = math.sqrt(count * 9 / 10) / 3000
        for kind in ("features vanish", "classifiers coincide"):
            assert of_kind(found, f"{group} {kind}").value == pytest.approx(exact, rel=1e-13)
    assert of_kind(found, ALL).value == pytest.approx(math.sqrt(450) / 3000, rel=1e-13)


def test_what_is_not_known_is_said() -> None:
    found = minority_collapse_threshold(problem(nonnegative_features=True, use_bias=True))
    assert (found.status, found.value, found.found) == ("unknown", None, False)
    assert "no condition is known" in found.reason


# Several groups, and none


def test_several_groups() -> None:
    given = problem((500.0, 100.0, 20.0), (3, 3, 4))
    assert minority_collapse_threshold(given, "weight_decay").value == pytest.approx(
        math.sqrt(20) / 1880, rel=1e-13
    )
    ratio = minority_collapse_threshold(given)
    assert ratio.value == pytest.approx(
        500 / (500 / quadratic(1, 4, 1800, 3e-3) * 1800 / 500), rel=1e-12
    )


@pytest.mark.nightly
def test_every_collapse_of_several_groups() -> None:
    given = problem((500.0, 100.0, 20.0), (3, 3, 4))
    found = collapse_thresholds(given, "weight_decay")
    for group, count in (("minority", 20), ("group 2", 100), ("majority", 500)):
        threshold = of_kind(found, f"{group} classifiers coincide")
        assert threshold.value == pytest.approx(math.sqrt(count) / 1880, rel=1e-13)
    check_sides(given, of_kind(found, VANISH), [2, -1])


def test_groups_are_the_classes_of_one_size() -> None:
    one_by_one = problem((500.0, 500.0, 5.0, 5.0), (1, 1, 1, 1))
    assert (
        minority_collapse_threshold(one_by_one).value
        == minority_collapse_threshold(problem((500.0, 5.0), (2, 2))).value
    )
    balanced = problem((500.0, 500.0))
    assert (
        minority_collapse_threshold(balanced).value == minority_collapse_threshold(problem()).value
    )


def test_a_collapse_may_end_and_begin_again() -> None:
    given = problem((500.0, 100.0), (2, 8), regularizer=WeightDecay(5.1e-3, 5.1e-3))
    first, second = [
        threshold for threshold in collapse_thresholds(given) if threshold.kind == COINCIDE
    ]
    assert (first.side, second.side) == ("below", "above")
    assert minority_collapse_threshold(given) == second


@for_each(
    ("given", "settings", "reason"),
    [
        (problem(), {"bounds": (1, 3)}, "not collapsed throughout 1 to 3"),
        (problem(), {"bounds": (10, None)}, "collapsed throughout 10 to 1e+08"),
        (ball(5, 5.0), {"bounds": (1, 3)}, "not collapsed throughout 1 to 3"),
        (ball(5, 5.0, loss=LabelSmoothing(0.1)), {}, "not collapsed throughout"),
        (
            problem((500.0, 100.0), (1, 1)),
            {"vary": "weight_decay"},
            "no group has two classes or more",
        ),
    ],
)
def test_no_threshold_is_an_answer(
    given: ufm.Problem, settings: dict[str, Any], reason: str
) -> None:
    found = minority_collapse_threshold(given, **settings)
    assert (found.status, found.value, found.found) == ("none", None, False)
    assert reason in found.reason
    assert reason in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_tolerance_that_cannot_be_met_is_an_answer() -> None:
    found = minority_collapse_threshold(ball(5, 5.0), tol=1e-14)
    assert found.status == "unresolved"
    assert "12.19" in found.reason
    assert [threshold.status for threshold in collapse_thresholds(ball(5, 5.0), tol=1e-14)] == [
        "unresolved"
    ]


@for_each(
    ("given", "settings", "message"),
    [
        ("problem", {}, "ufm.Problem"),
        (problem(loss=ufm.Focal(2.0)), {}, "Focal"),
        (problem(hidden_dims=(10,), regularizer=DECAY), {}, "2 layers"),
        (problem((500.0, 100.0), (1, 1)), {}, "two groups"),
        (problem((500.0,), (5,)), {}, "two groups"),
        (problem(), {"vary": "imbalance"}, "imbalance_ratio"),
        (problem(), {"vary": 3}, "`vary`"),
        (problem(), {"vary": "loss.alpha"}, "loss.alpha"),
        (problem(loss=CDT(multipliers=(1.0, 2.0))), {"vary": "loss.multipliers"}, "scalar"),
        (ball(5, 5.0), {"vary": "weight_decay"}, "norm ball"),
        (problem(), {"bounds": (3, 2)}, "increasing"),
        (problem(), {"bounds": 3}, "`bounds`"),
        (problem(), {"bounds": (0, 2)}, "`bounds`"),
        (problem(), {"bounds": (1, math.inf)}, "`bounds`"),
        (problem(), {"bounds": (1, math.nan)}, "`bounds`"),
        (problem(), {"vary": "num_minority", "bounds": (2, 10)}, "between 1 and 10"),
        (problem(), {"tol": 0}, "`tol`"),
        (problem(), {"tol": "small"}, "`tol`"),
    ],
)
def test_bad_arguments(given: Any, settings: dict[str, Any], message: str) -> None:
    for function in (minority_collapse_threshold, collapse_thresholds):
        with pytest.raises(ValueError, match=message):
            function(given, **settings)


def test_words() -> None:
    exact, found = (
        minority_collapse_threshold(problem(), "weight_decay"),
        minority_collapse_threshold(ball(5, 5.0)),
    )
    assert str(exact).startswith(
        "minority classifiers coincide at sqrt(lW lH) >= 0.003333333333, 1.111111111 times"
    )
    assert "exact; sqrt(n_g) <= N sqrt(lW lH)" in str(exact)
    assert str(found).startswith("minority classifiers coincide at imbalance_ratio >= 12.192447")
    assert "certified solves" in str(found)
    for threshold in (exact, found):
        fields = json.loads(json.dumps(threshold.to_dict(), allow_nan=False))
        assert fields["value"] == threshold.value
        assert fields["bracket"] == list(threshold.bracket)
        assert fields["reference"]


def test_results_do_not_depend_on_the_setting_of_the_process(process_x64: bool) -> None:
    assert minority_collapse_threshold(ball(7, 5.0)).value == pytest.approx(4.00046671, rel=1e-8)
    assert minority_collapse_threshold(problem()).value == pytest.approx(
        quadratic(5, 5, 500, 3e-3), rel=1e-13
    )


NARROW = {
    # The value is small: in units of it, rounding near the threshold weighs more.
    "small": (
        ((566.0, 65.0, 54.0), (2, 3, 2)),
        ufm.ClassWeighted(0.5),
        ufm.NormBall(0.328, 5.06),
        True,
    ),
    # The majority collapses just before: from further away the dual ratio leads elsewhere.
    "two at once": (
        ((62.0, 19.0), (4, 2)),
        ufm.ClassWeighted(0.35, loss=ufm.LabelSmoothing(0.1)),
        ufm.NormBall(0.035, 0.05),
        False,
    ),
}


SMALL = 0.07826323256


def weighted(name: str, exponent: float) -> ufm.Problem:
    """The problem of that name with another exponent of its weights."""
    (counts, sizes), loss, regularizer, bias = NARROW[name]
    return ufm.Problem(
        class_counts=ufm.ClassGroups(counts, sizes),
        feature_dim=sum(sizes),
        loss=ufm.ClassWeighted(exponent, loss=loss.loss),
        regularizer=regularizer,
        use_bias=bias,
    )


@pytest.mark.slow
def test_the_dual_ratios_of_certified_solves_lead_to_the_threshold() -> None:
    # Where the minority has collapsed, its dual ratio is below one, and smooth. What a solve leaves
    # open, some 1e-9 of the ratio, moves the end of the line by some 4e-8.
    at = SMALL * (1 - np.array([2e-3, 1.5e-3, 1e-3, 5e-4]))

    def solved(exponent: float) -> ufm.Solution:
        return ufm.solve(weighted("small", exponent), resolution="groups", tol=1e-11).check()

    ratios = [solved(exponent).dual_ratios[-1] - 1 for exponent in at]
    cubic = np.polynomial.Polynomial.fit(ratios, at / SMALL - 1, 3)
    assert cubic(0.0) == pytest.approx(0, abs=2e-7)
    beyond = solved(SMALL * (1 + 1e-3))
    assert beyond.dual_ratios[-1] > 1 - 1e-9
    assert beyond.weight_cosines[-1, -1] < 1 - 1e-5


@pytest.mark.slow
@for_each("name", NARROW)
def test_thresholds_that_are_hard_to_tell_are_found(name: str) -> None:
    found = minority_collapse_threshold(
        weighted(name, float(NARROW[name][1].exponent)), "loss.exponent"
    )
    assert found.found, found.reason
    assert (found.side, found.error <= 1e-8) == ("below", True)
    if name == "small":
        assert found.value == pytest.approx(SMALL, rel=5e-9)
        assert found.bracket[0] < SMALL < found.bracket[1]
    below, above = (
        ufm.solve(weighted(name, found.value * side), resolution="groups")
        for side in (1 - 1e-4, 1 + 1e-4)
    )
    assert below.check().dual_ratios[-1] < 1 - 2e-6
    assert above.check().dual_ratios[-1] > 1 - 1e-6
