from typing import Any

import numpy as np
import pytest
from landscape_models import D, K, linear, random_point
from tables import for_each

import ufm
from ufm.landscape import (
    LandscapeClaim,
    classify,
    no_spurious_minima,
    origin_is_a_local_minimum,
    spurious_minima,
    valley_dimension,
)
from ufm.landscape.theorem_checks import Checked
from ufm.problems import Problem

IMBALANCED = (8.0, 6.0, 5.0, 3.0)


def hidden(**changes: Any) -> Problem:
    fields = {
        "hidden_dims": (8,),
        "activation": "relu",
        "regularizer": ufm.WeightDecay(0.002, 0.001),
    }
    return linear(**(fields | {"class_counts": IMBALANCED} | changes))


@pytest.mark.nightly
def test_squared_error_has_no_spurious_minima() -> None:
    claim = no_spurious_minima(linear(loss=ufm.SquaredError(), class_counts=IMBALANCED))
    assert claim.holds, claim
    # The origin, one minimiser per rank, and every subset of the four modes.
    assert len(claim.points) == 1 + K + 2**K - 2
    kinds = [checked.point.kind for checked in claim.points]
    assert kinds.count("strict saddle") == len(kinds) - 1
    assert claim.best == min(checked.point.objective for checked in claim.points)
    assert "2203.01238" in str(claim)
    assert "holds at 19 points" in str(claim)


@pytest.mark.nightly
@for_each("counts", [(5.0,) * K, IMBALANCED])
@for_each("loss", [ufm.CrossEntropy(), ufm.SquaredError()])
@for_each("bias", [None, 0.01])
def test_one_linear_layer_has_no_spurious_minima(
    counts: Any, loss: Any, bias: float | None
) -> None:
    regularizer = ufm.WeightDecay(0.02, 0.004, bias or 0.0)
    claim = no_spurious_minima(
        linear(class_counts=counts, loss=loss, use_bias=bias is not None, regularizer=regularizer)
    )
    assert claim.holds, claim
    assert any(checked.point.kind == "global minimum" for checked in claim.points)
    assert any(checked.point.kind == "strict saddle" for checked in claim.points)


def test_a_claim_can_fail() -> None:
    point = classify(linear(), random_point(linear()))
    assert point.kind == "not critical"
    failed = LandscapeClaim(
        "all points are minima",
        "nobody",
        (Checked("a random point", point, point.is_minimum),),
        0.0,
    )
    assert not failed.holds
    assert "DOES NOT HOLD" in str(failed)
    assert "x a random point" in str(failed)
    assert not failed._replace(points=()).holds


@pytest.mark.nightly
def test_points_that_are_not_critical_to_the_tolerance_fail_the_claim() -> None:
    claim = no_spurious_minima(linear(loss=ufm.SquaredError()), tol=1e-30)
    assert not claim.holds


@for_each(
    "changes",
    [
        {"hidden_dims": (4,)},
        {"nonnegative_features": True},
        {"feature_dim": K},
        {"loss": ufm.LabelSmoothing(0.1)},
        {"regularizer": ufm.NormBall(1.0, 1.0)},
    ],
)
def test_the_theorems_do_not_apply_elsewhere(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`problem` must have one linear layer"):
        no_spurious_minima(linear(**changes))


@pytest.mark.nightly
def test_non_negative_features_have_spurious_minima() -> None:
    claim = spurious_minima()
    assert claim.holds, claim
    assert claim.best == pytest.approx(1.1281173963, abs=1e-9)
    objectives = [checked.point.objective for checked in claim.points]
    assert min(abs(objective - 1.1300011273) for objective in objectives) < 1e-8
    assert all(not checked.point.certificate.holds for checked in claim.points)


@pytest.mark.nightly
def test_signed_features_have_none() -> None:
    claim = spurious_minima(linear(), starts=3)
    assert claim.points == ()
    assert not claim.holds


@pytest.mark.nightly
def test_the_origin_of_a_deep_model_is_a_local_minimum() -> None:
    """Ten classes, four layers, as in the experiments of Sukenik et al. 2024; narrower."""
    deep = Problem(
        class_counts=(1.0,) * 10,
        feature_dim=10,
        hidden_dims=(12, 12, 12),
        activation="relu",
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(0.004, 0.004),
    )
    claim = origin_is_a_local_minimum(deep)
    assert claim.holds, claim
    assert claim.best < 0.1 < claim.points[0].point.objective
    # Where the penalties are so large that nothing is below it, it is not a local minimum above the
    # global one.
    heavy = origin_is_a_local_minimum(hidden(regularizer=ufm.WeightDecay(1.0, 1.0)))
    assert not heavy.holds
    with pytest.raises(ValueError, match="must have hidden layers and weight decay"):
        origin_is_a_local_minimum(linear())


@pytest.mark.nightly
@for_each("loss", [ufm.SquaredError(), ufm.CrossEntropy()])
@for_each("width", [4, 8])
def test_two_relu_layers_have_valleys_of_the_derived_dimension(loss: Any, width: int) -> None:
    problem = hidden(loss=loss, hidden_dims=(width,))
    for key in range(4):
        solution = ufm.solve(problem, key=key, restarts=1)
        valley = valley_dimension(problem, solution)
        if valley.expected is not None:
            break
    assert valley.expected == K * (K - 1) + K * (D - K) + width - K
    assert valley.measured == valley.expected
    # The rotations of the features and of units with the same pattern are symmetries; the rest are
    # the inputs that no class sees.
    assert valley.measured - valley.symmetries == K * (K - 1) // 2
    assert valley.point.valley or valley.point.kind == "degenerate"


def test_a_valley_that_is_not_derived_is_only_measured() -> None:
    valley = valley_dimension(linear(), random_point(linear()))
    assert valley.expected is None
    assert not valley.holds
    assert np.isnan(valley.point.lowest)
