"""How far quantities can move, group by group against class by class."""

from typing import Any

import equinox as eqx
import numpy as np
import pytest

import ufm
from ufm.comparison import accuracy, group_accuracy
from ufm.problems import grouped

STEP, DECAY = ufm.ClassGroups((100, 20), sizes=(4, 3)), {"weights": 5e-3, "features": 5e-4}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"regularizer": ufm.WeightDecay(**DECAY, bias=1e-2), "use_bias": True},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"class_counts": ufm.ClassGroups((100, 20), sizes=(3, 1)), "loss": ufm.SquaredError()},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"regularizer": ufm.NormBall(weights=1, features=5), "use_bias": True},
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["decay", "bias", "squared error", "balls"],
)
def test_groups_reach_as_far_as_classes(changes: dict[str, Any]) -> None:
    arguments = {
        "class_counts": STEP,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(**DECAY),
    } | changes
    problem = ufm.Problem(**arguments, feature_dim=arguments["class_counts"].num_classes)
    solution = ufm.solve(problem, resolution="groups")
    balls = isinstance(problem.regularizer, ufm.NormBall)
    # A step away, so that the decrement is not rounding alone; balls have no flat rotations there.
    if not balls:
        solution = eqx.tree_at(lambda s: s.blocks.logits, solution, 0.999 * solution.blocks.logits)
    found = group_accuracy.group_accuracy(
        grouped(problem)[0], solution.blocks.logits, solution.group_bias
    )
    expected = accuracy.accuracy(problem, solution.parameters)
    for name, value in found.spread._asdict().items():
        np.testing.assert_allclose(
            value, getattr(expected.spread, name), rtol=1e-6, atol=1e-9, err_msg=name
        )
    if balls:
        assert max(found.decrement, expected.decrement) < 1e-14 * solution.objective
    else:
        assert expected.decrement > 1e-9
        np.testing.assert_allclose(found.decrement, expected.decrement, rtol=1e-6)
