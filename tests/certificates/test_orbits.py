"""Lower bounds over orbits: valid at any point, tight at minimisers, open elsewhere."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each, slow

import ufm
from ufm import Targets
from ufm._support import compiled, to_numpy
from ufm.certificates import lower_bound, orbit_evidence
from ufm.problems import (
    find_row_orbits,
    one_count_per_class,
    orbit_problem,
    orbit_rows,
)

pytestmark = pytest.mark.usefixtures("float64")

HALVES = [tags for tags in itertools.combinations(range(5), 2) if min(tags) < 3 <= max(tags)]
TAGS = Targets.multi_label(5, tag_sets=[*HALVES, (0,), (1,), (2,), (3,), (4,)])

_evidence = compiled(orbit_evidence)
_whole_bound = compiled(lower_bound)


def own_loss(z: Any, y: Any) -> Any:
    return jnp.sum(jax.nn.softplus(z) - y * z)


def both(loss: ufm.Loss, regularizer: ufm.Regularizer, bias: bool) -> tuple[Any, Any, Any]:
    problem = one_count_per_class(
        ufm.Problem(targets=TAGS, feature_dim=6, loss=loss, regularizer=regularizer, use_bias=bias)
    )
    orbits = find_row_orbits(problem)
    assert orbits is not None
    return problem, orbits, orbit_problem(problem, orbits)


@for_each(
    ("loss", "regularizer", "bias"),
    [
        slow(ufm.CrossEntropy(), ufm.WeightDecay(2e-2, 2e-2), False),
        (ufm.CrossEntropy(), ufm.WeightDecay(2e-2, 2e-2), True),
        slow(ufm.BinaryCrossEntropy(), ufm.WeightDecay(2e-2, 2e-2, 1e-2), True),
        (ufm.BinaryCrossEntropy(), ufm.NormBall(1.0, 1.0), False),
        slow(ufm.losses.from_function(own_loss), ufm.WeightDecay(2e-2, 2e-2, 1e-2), True),
    ],
)
def test_the_bound_and_the_objective_are_those_of_all_rows(
    loss: ufm.Loss, regularizer: ufm.Regularizer, bias: bool
) -> None:
    """At random points all rows and the orbits give the same dual norm, and valid bounds."""
    problem, orbits, data = both(loss, regularizer, bias)
    random = np.random.default_rng(0)
    best = float(ufm.solve(problem, resolution="classes").objective)
    for size in (0.0, 0.3, 3.0):
        x = size * random.normal(size=data.present.shape) * data.present
        shift = size * random.normal(size=2) if bias else None
        found = to_numpy(_evidence(data, x, shift))
        assert found.lower_bound <= best
        logits = orbits.expanded(np.asarray(orbit_rows(data, jnp.asarray(x), shift)))
        whole = to_numpy(_whole_bound(problem, jnp.asarray(logits)))
        # With a free bias rows that leave the domain are drawn into it, row by row.
        if not data.bounded and not (bias and problem.regularizer.has_free_bias):
            assert found.ratio == pytest.approx(float(whole.ratio), rel=1e-9)
        # Row by row singular values are cut one by one, which is no worse.
        assert found.lower_bound <= float(whole.lower_bound) + 1e-9
        if size > 1:
            assert found.relative_gap(0.0) > 1e-3


def test_outside_the_ball_nothing_is_feasible() -> None:
    _, _, data = both(ufm.BinaryCrossEntropy(), ufm.NormBall(1.0, 1.0), False)
    x = 100 * np.ones(data.present.shape) * data.present
    assert np.isinf(float(_evidence(data, x, None).objective))
