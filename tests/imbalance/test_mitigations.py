import importlib

import numpy as np
import pytest
from tables import for_each

import ufm

mitigations = importlib.import_module("ufm.imbalance.mitigations")


def step(ratio: float, regularizer: ufm.NormBall | ufm.WeightDecay) -> ufm.Problem:
    return ufm.Problem(
        class_counts=ufm.ClassGroups.step(10, 1000, imbalance_ratio=ratio),
        feature_dim=20,
        loss=ufm.CrossEntropy(),
        regularizer=regularizer,
    )


@pytest.mark.slow
def test_in_norm_balls_collapse_ends_at_the_threshold_and_full_strength_restores_the_etf() -> None:
    found = ufm.mitigations(step(100, ufm.NormBall(weights=1, features=5)))
    assert "feature decay" not in [row.name for row in found.rows]
    # Oversampling by R^s leaves the ratio R^(1 - s), and class weights weigh the loss just so.
    threshold = 1 - np.log(12.192447) / np.log(100)
    for name in ("oversampling", "class weights"):
        row = found[name]
        assert row.collapsed[0]
        assert row.leaves_collapse_at == pytest.approx(threshold, abs=1e-3)
        full = int(np.argmin(np.abs(row.strength - 1)))
        assert row.etf_distance[full] < 1e-6
        assert row.cosine[full] == pytest.approx(-1 / 9, abs=1e-7)
        assert 0.9 < row.restores_from(0.01) <= 1
    for name in ("logit adjustment", "CDT", "LDT"):
        assert np.all(found[name].collapsed)
        assert found[name].restores_from() is None
        assert found[name].leaves_collapse_at is None
    assert max(row.relative_gap.max() for row in found.rows) < 1e-9


@pytest.mark.slow
def test_under_weight_decay_only_oversampling_restores_the_etf() -> None:
    found = ufm.mitigations(
        step(100, ufm.WeightDecay(weights=5e-3, features=1e-5)), strengths=np.linspace(0, 1, 11)
    )
    assert found["oversampling"].restores_from() is not None
    assert all(
        found[name].restores_from() is None
        for name in ("class weights", "feature decay", "logit adjustment", "CDT", "LDT")
    )
    assert max(row.relative_gap.max() for row in found.rows) < 1e-9


@pytest.mark.slow
def test_the_mitigated_problems_are_what_they_say() -> None:
    strengths = np.array([0.0, 0.4])
    problem = step(8, ufm.WeightDecay(weights=5e-4, features=1e-5))
    found = ufm.mitigations(problem, strengths=strengths)
    regularizer, counts = problem.regularizer, np.asarray(problem.class_counts)
    losses: dict[
        str,
        tuple[
            np.ndarray, ufm.CrossEntropy | ufm.ClassWeighted | ufm.LogitAdjusted | ufm.CDT | ufm.LDT
        ],
    ] = {
        "oversampling": (counts * (counts.max() / counts) ** 0.4, ufm.CrossEntropy()),
        "class weights": (counts, ufm.ClassWeighted(0.4)),
        "logit adjustment": (counts, ufm.LogitAdjusted(0.4)),
        "CDT": (counts, ufm.CDT(0.4)),
        "LDT": (counts, ufm.LDT(0.4)),
    }
    for name, (class_counts, loss) in losses.items():
        mitigated = ufm.Problem(
            class_counts=class_counts, feature_dim=20, loss=loss, regularizer=regularizer
        )
        gram = ufm.solve(mitigated, resolution="classes").weights[0]
        gram = gram @ gram.T
        row = found[name]
        assert row.cosine[-1] == pytest.approx(gram[8, 9] / gram[9, 9], abs=1e-6)
        assert row.norm_ratio[-1] == pytest.approx(np.sqrt(gram[0, 0] / gram[9, 9]), rel=1e-6)
    # At strength zero nothing is changed.
    assert np.ptp([row.cosine[0] for row in found.rows]) < 1e-9


@for_each(
    ("change", "arguments"),
    [
        ({"loss": ufm.SquaredError()}, {}),
        ({"nonnegative_features": True}, {}),
        ({}, {"names": ("prayer",)}),
        ({}, {"strengths": [-1.0]}),
        ({}, {"strengths": [np.nan]}),
        ({"class_counts": (5, 4, 3)}, {}),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, arguments: dict) -> None:
    settings = {
        "class_counts": ufm.ClassGroups.step(10, 1000, imbalance_ratio=10),
        "feature_dim": 20,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.NormBall(weights=1, features=5),
    }
    with pytest.raises(ValueError, match=r"`problem`|`names`|`strengths`"):
        ufm.mitigations(ufm.Problem(**{**settings, **change}), **arguments)


def test_a_solve_that_failed_is_never_the_best() -> None:
    zeros = np.zeros(3)
    row = mitigations.Mitigated(
        name="CDT",
        strength=np.arange(3.0),
        cosine=zeros,
        norm_ratio=zeros,
        etf_distance=np.array([np.nan, 0.2, 0.1]),
        minority_margin=zeros,
        collapsed=np.array([False, False, True]),
        relative_gap=zeros,
    )
    assert row.best == 1
