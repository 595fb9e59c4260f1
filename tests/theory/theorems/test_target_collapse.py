"""Complete collapse with target rows: both sides of the threshold, and what is refused."""

import dataclasses

import equinox as eqx
import numpy as np
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import theorems

CE = theorems["cross-entropy-rows-complete-collapse"]
BCE = theorems["binary-cross-entropy-rows-complete-collapse"]
RATIO = "N sqrt(lW lH) >= ||diag(n / sqrt(om)) G||_2, G the slopes at the best bias"


def failing(theorem, setting):
    return [condition.statement for condition in theorem.applies(setting).failing]


def at_ratio(theorem, setting, ratio):
    """The problem with its penalties scaled to a given ratio of N tau to the threshold."""
    now = float(theorem.formula(setting).constants["collapse_ratio"])
    decay = setting.regularizer
    scaled = ufm.WeightDecay(decay.weights * ratio / now, decay.features * ratio / now)
    return ufm.Problem(
        targets=setting.targets,
        feature_dim=4,
        loss=setting.loss,
        regularizer=scaled,
        use_bias=setting.use_bias,
    )


@for_each("theorem", [CE, BCE])
@for_each("example", [0, 1, 2])
def test_the_threshold_is_exact(theorem, example):
    base = theorem.examples[example].problem
    below, above = (at_ratio(theorem, base, ratio) for ratio in (0.98, 1.02))
    assert failing(theorem, below) == [RATIO]
    assert not failing(theorem, above)
    sizes = []
    for setting in (below, above):
        solution = ufm.solve(setting).check()
        sizes.append(np.linalg.norm(solution.weights[-1]))
    assert sizes[0] > 1e-2
    assert sizes[1] < 1e-6


def test_one_hot_rows_are_classes():
    counts = (8.0, 3.0, 1.0)
    rows = ufm.Problem(
        targets=ufm.Targets.one_hot(counts),
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(0.5, 0.5),
        use_bias=True,
    )
    classes = dataclasses.replace(rows, targets=None, class_counts=counts)
    found = CE.predict(rows)
    expected = theorems["cross-entropy-complete-collapse"].predict(classes)
    for field in ("objective", "bias", "logits"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=1e-14)
    np.testing.assert_allclose(
        found.constants["collapse_ratio"], expected.constants["collapse_ratio"], rtol=1e-12
    )


def problem(rows, **changes):
    settings = {
        "targets": ufm.Targets(rows),
        "feature_dim": 3,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(9.0, 9.0),
        "use_bias": True,
    }
    return ufm.Problem(**(settings | changes))


@for_each(
    ("theorem", "setting", "statement"),
    [
        (CE, problem([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), "a finite best bias"),
        (
            BCE,
            problem([[0.5, 1.0], [0.2, 1.0]], loss=ufm.BinaryCrossEntropy()),
            "a finite best bias",
        ),
        (
            CE,
            problem([[0.5, 0.5]], regularizer=ufm.WeightDecay(9.0, 9.0, 1e-9)),
            "no bias, or one without penalty",
        ),
        (BCE, problem([[0.5, 0.5]]), "the loss BinaryCrossEntropy"),
    ],
)
def test_what_is_not_covered_is_refused(theorem, setting, statement):
    assert statement in failing(theorem, setting)


@for_each("theorem", [CE, BCE])
def test_a_wrong_constant_is_found(theorem):
    setting = theorem.examples[0].problem
    prediction = theorem.predict(setting)
    for field in ("objective", "bias"):
        value = getattr(prediction, field) * (1 + 1e-5)
        wrong = eqx.tree_at(lambda tree, field=field: getattr(tree, field), prediction, value)
        assert not check(theorem, "wrong", setting, wrong).passed, field
