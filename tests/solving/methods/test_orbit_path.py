"""The interior-point method over orbits: its derivatives, and where its path ends."""

import itertools

import numpy as np
import pytest
from tables import for_each, slow

import ufm
from ufm import Targets
from ufm._support import Status, to_numpy
from ufm.certificates import orbit_evidence
from ufm.problems import OrbitProblem, find_row_orbits, one_count_per_class, orbit_problem
from ufm.solving.methods import follow_orbit_path, num_orbit_unknowns

pytestmark = pytest.mark.usefixtures("float64")

HALVES = [tags for tags in itertools.combinations(range(5), 2) if min(tags) < 3 <= max(tags)]


def over_orbits(targets: Targets, regularizer: ufm.Regularizer, bias: bool) -> OrbitProblem:
    problem = one_count_per_class(
        ufm.Problem(
            targets=targets,
            feature_dim=targets.num_outputs,
            loss=ufm.BinaryCrossEntropy(),
            regularizer=regularizer,
            use_bias=bias,
        )
    )
    orbits = find_row_orbits(problem)
    assert orbits is not None
    return orbit_problem(problem, orbits)


@for_each(
    ("regularizer", "bias"),
    [
        slow(ufm.WeightDecay(1e-2, 1e-2), False),
        (ufm.WeightDecay(1e-3, 1e-2, 1e-2), True),
        slow(ufm.NormBall(1.0, 1.0), False),
    ],
)
def test_no_point_nearby_is_lower(regularizer: ufm.Regularizer, bias: bool) -> None:
    """Two classes of labels and three orbits: the constants have a block of two modes."""
    targets = Targets.multi_label(5, tag_sets=[*HALVES, (0,), (1,), (2,), (3,), (4,)])
    data = over_orbits(targets, regularizer, bias)
    assert (data.num_orbits, data.num_classes) == (3, 2)
    end = follow_orbit_path(data, 1e-12)
    assert end.status == Status.CONVERGED
    assert end.steps < 60
    best = float(orbit_evidence(data, end.x, end.bias).objective)
    random = np.random.default_rng(0)
    for size in (1e-1, 1e-3, 1e-5):
        x = end.x + size * random.normal(size=end.x.shape) * data.present
        shift = None if end.bias is None else end.bias + size * random.normal(size=2)
        if data.bounded:
            x = x / (1 + 10 * size)
        assert float(orbit_evidence(data, x, shift).objective) >= best


def test_the_path_ends_where_it_is_told_to() -> None:
    data = over_orbits(Targets.multi_label(4, {1: 4, 2: 6}), ufm.WeightDecay(1e-2, 1e-2), False)
    assert num_orbit_unknowns(data) == 4
    loose, tight = follow_orbit_path(data, 1e-3), follow_orbit_path(data, 1e-12)
    gaps = [to_numpy(orbit_evidence(data, end.x, None)).relative_gap(0.0) for end in (loose, tight)]
    assert 1e-12 < gaps[0] < 1e-3
    assert gaps[1] < 2e-12
    assert loose.steps < tight.steps
    short = follow_orbit_path(data, 1e-12, max_steps=2)
    assert short.status == Status.MAX_STEPS


def test_targets_of_any_size_take_as_many_steps() -> None:
    for unit in (1e-6, 1.0, 1e6):
        rows = unit * np.asarray(Targets.multi_label(4, {1: 4, 2: 6}).rows)
        problem = one_count_per_class(
            ufm.Problem(
                targets=Targets(rows),
                feature_dim=4,
                loss=ufm.SquaredError(),
                regularizer=ufm.WeightDecay(1e-2 * unit, 1e-2 * unit),
            )
        )
        orbits = find_row_orbits(problem)
        assert orbits is not None
        end = follow_orbit_path(orbit_problem(problem, orbits), 1e-12)
        assert end.status == Status.CONVERGED
        assert end.steps < 40
