"""A subclass is another loss: nothing that is known of the parent is said of it.

Problems and regularizers have none.
"""

from typing import Any

import numpy as np
import plain
import pytest
from tables import for_each, slow_but

import ufm
from ufm._support import Final
from ufm.problems import LIBRARY, Loss, Problem, has_group_form, is_library_loss
from ufm.problems.losses.library import loss_by_group

ARGUMENTS: dict[type[Loss], tuple[Any, ...]] = {
    kind: (0.3,) if kind.parameters else () for kind in LIBRARY.values()
}
each_loss = for_each("kind", ARGUMENTS)
DECAY = ufm.WeightDecay(weights=1e-2, features=1e-3)
STEP = ufm.ClassGroups((20, 5), sizes=(52, 4))

OVER_GROUPS = {
    ufm.CrossEntropy,
    ufm.SquaredError,
    ufm.LabelSmoothing,
    ufm.LogitAdjusted,
    ufm.CDT,
    ufm.LDT,
    ufm.ClassWeighted,
}

# What is stated, and holds, for every loss with derivatives.
OF_EVERY_LOSS = {"flow-energy", "deep-origin-local-minimum"}


def a_problem(loss: Loss, **changes: Any) -> Problem:
    fields = {"class_counts": (30,) * 4, "feature_dim": 8, "loss": loss, "regularizer": DECAY}
    return Problem(**(fields | changes))


@each_loss
def test_a_subclass_has_no_form_over_groups(kind: type[Loss]) -> None:
    loss = plain.stretched(kind)(*ARGUMENTS[kind])
    assert is_library_loss(kind(*ARGUMENTS[kind]))
    counts, sizes = np.array([5.0, 2.0]), np.array([3.0, 3.0])
    for other in (loss, ufm.ClassWeighted(0.5, loss=loss)):
        assert not is_library_loss(other)
        assert not has_group_form(a_problem(other))
        with pytest.raises(ValueError, match=r"`loss` must be one of .* itself .* got Stretched"):
            loss_by_group(other, counts, sizes)
    step = a_problem(loss, class_counts=STEP, feature_dim=64)
    assert has_group_form(a_problem(kind(*ARGUMENTS[kind]))) == (kind in OVER_GROUPS)
    calls = (
        lambda: ufm.solve(step, resolution="groups"),
        lambda: ufm.minority_collapse_threshold(step, vary="imbalance_ratio"),
        lambda: ufm.collapse_thresholds(step, vary="weight_decay"),
        lambda: ufm.sweep(step, over={"weight_decay": [1e-3]}, resolution="groups"),
        lambda: ufm.phase_diagram(step, ("imbalance_ratio", [2.0]), ("weight_decay", [1e-3])),
        lambda: ufm.mitigations(step),
    )
    for call in calls:
        with pytest.raises(ValueError, match="Stretched"):
            call()


@for_each("kind", slow_but(ARGUMENTS, keep={0, 1, 3}))
def test_no_theorem_speaks_of_a_subclass(kind: type[Loss]) -> None:
    loss = plain.stretched(kind)(*ARGUMENTS[kind])
    settings: list[dict[str, Any]] = [
        {},
        {"class_counts": (30, 30, 10, 10)},
        {"use_bias": True},
        {"nonnegative_features": True},
        {"regularizer": ufm.NormBall(1.0, 1.0)},
        {"hidden_dims": (8,)},
        {"hidden_dims": (8, 8), "activation": "relu"},
    ]
    assert any(
        theorem.applies(a_problem(ufm.CrossEntropy(), **setting))
        for setting in settings
        for theorem in ufm.theorems
    )
    for setting in settings:
        problem = a_problem(loss, **setting)
        found = {theorem.name for theorem in ufm.theorems if theorem.applies(problem)}
        assert found <= OF_EVERY_LOSS
    with pytest.raises(ufm.NoPrediction, match=f"found Stretched{kind.__name__}"):
        ufm.predict(a_problem(loss))
    for theory in (ufm.theory.corrected_margins, ufm.landscape.no_spurious_minima):
        with pytest.raises(ValueError, match="`problem` must have"):
            theory(a_problem(loss))
    with pytest.raises(ValueError, match="squared error or cross-entropy"):
        ufm.dynamics.aligned_start(a_problem(loss), 1.0)


@each_loss
def test_a_parameter_per_class_leaves_the_subclass(kind: type[Loss]) -> None:
    stretched = plain.stretched(kind)
    for loss in (
        stretched(*ARGUMENTS[kind]),
        *(stretched(**{one.per_class: (1.0, 2.0)}) for one in kind.parameters if one.per_class),
    ):
        assert type(loss.per_class(STEP)) is stretched


@pytest.mark.slow
def test_stretched_logits_are_solved_and_certified_as_they_are() -> None:
    # Many classes of two sizes: solved over groups if the loss were the cross-entropy.
    problem = a_problem(plain.stretched(ufm.CrossEntropy)(), class_counts=STEP, feature_dim=64)
    same = a_problem(
        ufm.CrossEntropy(),
        class_counts=STEP,
        feature_dim=64,
        regularizer=ufm.WeightDecay(weights=1e-2, features=1e-3 / 9),
    )
    solution, expected = ufm.solve(problem), ufm.solve(same)
    assert (solution.resolution, expected.resolution) == ("classes", "groups")
    assert solution.certificate is not None
    assert solution.certificate.holds
    assert solution.objective == pytest.approx(expected.objective, rel=1e-9)


@pytest.mark.nightly
@each_loss
def test_solves_and_sweeps_follow_the_subclass(kind: type[Loss]) -> None:
    loss = plain.stretched(kind)(*ARGUMENTS[kind])
    problem = a_problem(loss, class_counts=(30, 30, 10, 10))
    same = ufm.WeightDecay(weights=1e-2, features=1e-3 / 9)
    expected = ufm.solve(
        a_problem(kind(*ARGUMENTS[kind]), class_counts=(30, 30, 10, 10), regularizer=same)
    ).objective
    assert ufm.solve(problem).objective == pytest.approx(expected, rel=1e-7)
    swept = ufm.sweep(problem, over={"regularizer.weights": [1e-2]})
    assert float(swept["objective"][0]) == pytest.approx(expected, rel=1e-7)
    assert bool(swept["certified"][0]) == (kind is not ufm.Focal)
    assert swept["theorem"].values.tolist() == ["none"]


@for_each(
    ("kind", "make"),
    [
        (
            Problem,
            lambda kind: kind(
                class_counts=(3, 2), feature_dim=3, loss=ufm.CrossEntropy(), regularizer=DECAY
            ),
        ),
        (ufm.WeightDecay, lambda kind: kind(weights=0.1, features=0.1)),
        (ufm.NormBall, lambda kind: kind(weights=1.0, features=1.0)),
        (ufm.ClassGroups, lambda kind: kind((3, 2))),
        (ufm.ClassGroups, lambda kind: kind.balanced(3, 2)),
        (ufm.HardMargin, lambda kind: kind((3, 2))),
    ],
)
def test_final_classes_have_no_subclasses(kind: Any, make: Any) -> None:
    assert Final in kind.__bases__
    make(kind)

    class Other(kind):
        def __check_init__(self) -> None:
            """Override what checks nothing about the parent."""

    with pytest.raises(
        ValueError, match=f"`Other` is a subclass of ufm's {kind.__name__}, which is final"
    ):
        make(Other)


def test_a_store_knows_a_loss_of_the_same_name() -> None:
    # The short names of both are the same, and so were the texts by which a store is recognised.
    other = type("CrossEntropy", (plain.stretched(ufm.CrossEntropy),), {})
    points = [
        ufm.sweeps.points.points_of(a_problem(loss), {"weight_decay": [0.1]})
        for loss in (ufm.CrossEntropy(), other())
    ]
    assert points[0].fingerprint() != points[1].fingerprint()
