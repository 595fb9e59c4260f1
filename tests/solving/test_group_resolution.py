import time
from typing import Any

import numpy as np
import pytest
from random_groups import random_problem
from tables import for_each

import ufm
from ufm._support import Status
from ufm.problems import Problem
from ufm.solving import solve_groups


def by_groups(problem: Problem, **settings: Any) -> ufm.Solution:
    solution = ufm.solve(problem, resolution="groups", **settings)
    assert solution.resolution == "groups"
    return solution


def step(
    K: int = 6, ratio: float = 10.0, decay: float = 5e-3, count: float = 50.0, **changes: Any
) -> Problem:
    fields = {
        "class_counts": ufm.ClassGroups.step(K, count, imbalance_ratio=ratio),
        "feature_dim": K,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(decay, decay),
    }
    return Problem(**(fields | changes))


# Resolutions

SAME = [
    ("cross-entropy", (3, 2), "free", False),
    ("squared-error", (2, 3, 1), "none", False),
    ("cross-entropy", (3, 2), "none", True),
    ("weighted-cdt", (2, 3, 1), "free", False),
    ("logit-adjusted", (2, 2, 2), "penalised", False),
    ("label-smoothing", (2, 4), "free", True),
    ("ldt-multipliers", (1, 2, 1), "none", False),
]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if index < 1 else pytest.mark.nightly)
        for index, kind in enumerate(SAME)
    ],
    ids=str,
)
def test_groups_and_classes_agree(kind: Any) -> None:
    loss, sizes, bias, ball = kind
    for seed in range(2):
        problem = random_problem(np.random.default_rng(seed), loss, sizes, bias=bias, ball=ball)
        groups, classes = (
            by_groups(problem).check(),
            ufm.solve(problem, resolution="classes", tol=1e-11),
        )
        assert groups.objective == pytest.approx(classes.objective, rel=1e-10, abs=1e-13)
        assert groups.certificate.lower_bound <= classes.objective
        certificate = ufm.certify(problem, groups)
        assert certificate is not None
        assert certificate.holds
        assert certificate.objective == pytest.approx(groups.objective, rel=1e-12)
        ours, theirs = groups.logits, classes.logits
        if (
            loss == "weighted-cdt"
        ):  # which sees its scaled logits up to a shift: a free bias has one
            scales = np.asarray(problem.loss.loss.multipliers)[groups.groups]  # type: ignore[attr-defined]
            ours, theirs = (scales * logits for logits in (ours, theirs))
            ours, theirs = (z - z.mean(axis=1, keepdims=True) for z in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.nightly
def test_samples_classes_and_groups_agree() -> None:
    problem = Problem(
        class_counts=ufm.ClassGroups((4, 2), (2, 2)),
        feature_dim=4,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(0.02, 0.01, bias=0.05),
        use_bias=True,
    )
    samples = ufm.solve(problem, resolution="samples", tol=1e-11)
    groups = by_groups(problem).check()
    assert groups.objective == pytest.approx(samples.objective, rel=1e-10)
    assert groups.sample_features.shape == (12, 4)
    certificate = ufm.certify(problem, groups)
    assert certificate is not None
    assert certificate.holds
    np.testing.assert_array_equal(groups.labels, samples.labels)


# Theory


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(step(), marks=pytest.mark.slow),
        step(decay=2e-2),
        pytest.param(step(regularizer=ufm.NormBall(1.0, 1.0)), marks=pytest.mark.slow),
        pytest.param(step(use_bias=True), marks=pytest.mark.slow),
        pytest.param(step(loss=ufm.SquaredError()), marks=pytest.mark.slow),
        pytest.param(
            step(class_counts=ufm.ClassGroups.balanced(6, 20.0), decay=1e-3),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["below", "above", "ball", "bias", "squared error", "balanced"],
)
def test_predictions_pass_at_group_resolution(problem: Problem) -> None:
    comparison = ufm.compare(by_groups(problem, tol=1e-10), ufm.predict(problem))
    assert comparison.passed, str(comparison)


def test_predictions_for_other_penalties_are_caught() -> None:
    wrong = ufm.predict(step(decay=5.05e-3))
    assert not ufm.compare(by_groups(step()), wrong).passed


@for_each("use_bias", [False, True])
def test_minority_collapse_begins_at_the_threshold(use_bias: bool) -> None:
    # N tau = sqrt(n_B): below it minority classes have classifiers of their own, above it one and
    # the same.
    K, count, ratio = 10, 100.0, 20.0
    N = 5 * count * (1 + 1 / ratio)
    critical = np.sqrt(count / ratio) / N
    below, above = (
        by_groups(step(K, ratio, critical * (1 + side), count, use_bias=use_bias)).check()
        for side in (-1e-4, 1e-4)
    )
    assert below.dual_ratios[1] == pytest.approx(1, abs=1e-7)
    assert above.dual_ratios[1] == pytest.approx(1, abs=2e-4)
    assert above.dual_ratios[1] < 1 - 1e-5
    assert below.weight_cosines[1, 1] < 1 - 1e-7
    assert above.weight_cosines[1, 1] == pytest.approx(1, abs=1e-12)
    assert below.blocks.logits.within[1] > 0
    assert above.blocks.logits.within[1] == 0
    assert below.rank > above.rank


# When


def test_auto_takes_groups_for_many_classes_in_few_groups() -> None:
    assert ufm.solve(step(60)).resolution == "groups"
    assert ufm.solve(step(6)).resolution == "classes"


@for_each(
    ("settings", "name"),
    [
        ({"method": ufm.LBFGS()}, "method"),
        ({"initial": 0}, "initial"),
        ({"restarts": 3}, "restarts"),
        ({"record_every": 1}, "record_every"),
        ({"max_steps": 5}, "max_steps"),
        ({"dtype": "float32"}, "float32"),
    ],
)
def test_what_groups_do_not_take_is_refused(settings: dict[str, Any], name: str) -> None:
    if name == "initial":
        settings = {"initial": ufm.Parameters((np.zeros((6, 6)),), np.zeros((6, 6)), None)}
    with pytest.raises(
        ValueError, match=rf"`resolution` 'groups' has its own method: it takes no .*{name}"
    ):
        ufm.solve(step(), resolution="groups", **settings)


def test_what_is_not_exact_over_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="`resolution` 'groups' is for one-hot classes, one layer"):
        by_groups(step(loss=ufm.Focal(2.0)))
    with pytest.raises(ValueError, match="`resolution` 'groups' is for one-hot classes, one layer"):
        by_groups(step(feature_dim=3))


def test_a_million_classes_take_seconds() -> None:
    began = time.perf_counter()
    K = 1_000_000
    problem = step(K, 100.0, 1e-9, 1000.0, use_bias=True)
    solution = ufm.solve(problem)
    assert solution.resolution == "groups"
    solution.check()
    assert solution.margins.shape == solution.weight_norms.shape == (2,)
    assert np.all(solution.margins > 0)
    assert np.all(np.isfinite(solution.weight_cosines))
    assert np.all(solution.feature_norms > 0)
    assert solution.rank == K - 1
    assert str(K) in str(solution) or "1e+06" in str(solution)
    for attribute in ("weights", "features", "logits", "sample_features"):
        with pytest.raises(ValueError, match="the block answers"):
            getattr(solution, attribute)
    assert time.perf_counter() - began < 30


@pytest.mark.nightly
@for_each("ball", [False, True])
def test_class_resolution_is_the_way_out(monkeypatch: pytest.MonkeyPatch, ball: bool) -> None:
    problem = random_problem(
        np.random.default_rng(0), "cross-entropy", (3, 2), bias="free", ball=ball
    )
    right = by_groups(problem).check()
    monkeypatch.setattr("ufm.solving.group_resolution.most_steps", lambda data: 2)
    assert solve_groups(problem).status == Status.MAX_STEPS
    rescued = by_groups(problem).check()
    assert rescued.objective == pytest.approx(right.objective, rel=1e-9)
    assert rescued.price == pytest.approx(right.price, rel=1e-6)
    np.testing.assert_allclose(rescued.logits, right.logits, atol=1e-5)


def test_failures_are_a_status_and_check_raises() -> None:
    solution = by_groups(step(), tol=1e-30)
    assert not solution.certificate.holds
    assert solution.status in (Status.NOT_CERTIFIED, Status.MAX_STEPS)
    with pytest.raises(ufm.SolveError):
        solution.check()


def test_what_is_too_large_is_refused_with_the_remedy() -> None:
    many = ufm.Problem(
        class_counts=np.arange(10.0, 60.0),
        feature_dim=60,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(weights=1e-3, features=1e-3),
    )
    with pytest.raises(ValueError, match="use resolution='classes'"):
        ufm.solve(many, resolution="groups")
    narrow = ufm.Problem(
        class_counts=ufm.ClassGroups((990, 10), (500_000, 500_000)),
        feature_dim=64,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(weights=1e-9, features=1e-9),
    )
    with pytest.raises(ValueError, match="1000000 classes would take"):
        ufm.solve(narrow)
