import functools

import numpy as np
import pytest
from random_groups import any_problem, data_of, random_problem
from tables import for_each

import ufm
from ufm._support import Status
from ufm.problems import Problem, grouped
from ufm.solving.nonnegative_groups import Orbits, copies_of, minimise_over_orbits

KINDS = [
    ("cross-entropy", "none", False),
    ("squared-error", "free", False),
    ("logit-adjusted", "free", True),
    ("weighted-cdt", "penalised", False),
    ("label-smoothing", "none", True),
    ("ldt", "penalised", False),
    ("cdt", "none", True),
    ("weighted", "free", False),
]


def by_groups(problem: Problem) -> ufm.Solution:
    solution = ufm.solve(problem, resolution="groups")
    assert solution.resolution == "groups"
    return solution


@functools.cache
def imbalanced() -> ufm.Solution:
    problem = Problem(
        class_counts=(200.0, 120.0, 70.0, 30.0, 10.0),
        feature_dim=8,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
        nonnegative_features=True,
    )
    return by_groups(problem)


@pytest.mark.nightly
def test_the_minimum_with_a_class_that_descent_leaves_dead_is_found() -> None:
    solution = imbalanced()
    solution.check()
    assert solution.objective == pytest.approx(1.1281173963, abs=1e-9)
    assert np.min(solution.feature_norms[:4]) > 0.1


@pytest.mark.nightly
def test_the_lift_has_nonnegative_features_and_is_certified_class_by_class() -> None:
    solution = imbalanced()
    assert np.min(solution.features) >= 0
    certificate = ufm.certify(solution.problem, solution)
    assert certificate is not None
    assert certificate.holds
    assert certificate.objective == pytest.approx(solution.objective, rel=1e-12)


def check_against_classes(
    kind: tuple[str, str, bool], seed: int, sizes: tuple[int, ...] = (3, 2)
) -> bool:
    """Check one random problem; return whether class resolution certified it."""
    loss, bias, ball = kind
    problem = random_problem(
        np.random.default_rng(seed),
        loss,
        sizes,
        bias=bias,
        ball=ball,
        nonnegative=True,
        dimension=60,
    )
    solution = by_groups(problem)
    assert solution.status is Status.CONVERGED, (kind, seed, str(solution.certificate))
    assert solution.certificate.relative_gap <= 1e-9
    lifted = solution
    assert np.min(lifted.features) >= 0
    again = ufm.certify(problem, lifted)
    assert again is not None
    assert again.objective == pytest.approx(solution.objective, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(
        lifted.weights[0] @ lifted.features.T,
        solution.blocks.logits.dense(solution.groups).T,
        atol=1e-8,
    )
    classes = ufm.solve(
        random_problem(
            np.random.default_rng(seed), loss, sizes, bias=bias, ball=ball, nonnegative=True
        ),
        resolution="classes",
    )
    assert classes.certificate is not None
    assert solution.objective <= classes.objective * (1 + 1e-8)
    assert classes.certificate.lower_bound <= solution.objective * (1 + 1e-12)
    if not classes.certificate.holds:
        return False
    assert solution.objective == pytest.approx(classes.objective, rel=3e-9)
    return True


@pytest.mark.nightly
@for_each("kind", KINDS[:1])
def test_random_problems_are_certified_and_as_low_as_class_by_class(
    kind: tuple[str, str, bool],
) -> None:
    assert all(check_against_classes(kind, seed) for seed in (0, 1))


@pytest.mark.nightly
@for_each("kind", KINDS)
def test_forty_random_problems_are_certified_and_as_low_as_class_by_class(
    kind: tuple[str, str, bool],
) -> None:
    certified = [check_against_classes(kind, seed) for seed in range(10, 15)]
    assert np.mean(certified) >= 0.6, certified


# Where entries of the dual's Gram matrix are negative and in use, eigenvalues alone leave gaps of
# 1e-4 to 2e-3 at the minimum.
@pytest.mark.slow
@pytest.mark.parametrize(
    "problem",
    [
        any_problem(np.random.default_rng([8, 185]), nonnegative=True),
        pytest.param(
            Problem(
                class_counts=ufm.ClassGroups(
                    [20.23585787967408, 136.21923777512166, 12.391308978330827], (2, 2, 1)
                ),
                feature_dim=10,
                loss=ufm.CDT(exponent=0.37159043646192275),
                regularizer=ufm.WeightDecay(1.8688614169615652e-06, 15.298389965052705),
                nonnegative_features=True,
            ),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            Problem(
                class_counts=ufm.ClassGroups(
                    [14.219241017403117, 1.083820475561542, 12.378776137611645], (2, 2, 1)
                ),
                feature_dim=10,
                loss=ufm.ClassWeighted(
                    weights=[8.158556454545941, 3.0991143109871433, 0.10464077258577513],
                    loss=ufm.SquaredError(),
                ),
                regularizer=ufm.WeightDecay(
                    0.29877134459738713, 0.000754214067918828, bias=3.426849298761065e-06
                ),
                use_bias=True,
                nonnegative_features=True,
            ),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            any_problem(np.random.default_rng([8, 44]), nonnegative=True), marks=pytest.mark.nightly
        ),
    ],
    ids=["adjusted", "cdt", "weighted squared error", "balls"],
)
def test_minima_that_the_eigenvalues_leave_open_are_certified(problem: Problem) -> None:
    assert by_groups(problem).check().certificate.relative_gap <= 1e-9


@pytest.mark.slow
def test_parallel_orbits_are_one() -> None:
    # Every orbit of the minimiser marks one class of its group: each class has one atom.
    problem = Problem(
        class_counts=(1.0, 1.0, 1.0),
        feature_dim=3,
        loss=ufm.LogitAdjusted(0.7),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
        use_bias=True,
        nonnegative_features=True,
    )
    solution = by_groups(problem).check()
    np.testing.assert_allclose(solution.feature_cosines, 0, atol=1e-9)
    assert np.linalg.matrix_rank(solution.features, rtol=1e-6) == 3
    assert solution.objective == pytest.approx(0.13202967571650268, rel=1e-10)


@pytest.mark.slow
def test_one_class_groups_have_plain_atoms() -> None:
    problem = random_problem(np.random.default_rng(3), "cross-entropy", (1, 1), nonnegative=True)
    found = minimise_over_orbits(data_of(problem))
    assert found.status is Status.CONVERGED
    np.testing.assert_array_equal(np.asarray(found.logits.within), 0)
    assert grouped(problem)[0].num_groups == 2


def test_too_few_dimensions_for_the_atoms_are_named() -> None:
    problem = random_problem(
        np.random.default_rng(0), "cross-entropy", (3, 2), nonnegative=True, dimension=5
    )
    try:
        solution = by_groups(problem)
    except ValueError as error:
        remedy = "non-negative atoms; raise it, or use resolution='classes'"
        assert remedy in str(error)  # noqa: PT017
    else:
        assert solution.features.shape == (5, 5)


SINGLE_ATOMS = [
    (ufm.ClassGroups([10.0], (2,)), 1e-2, 1e-3, 2),
    # At the threshold.
    (ufm.ClassGroups([76.0], (5,)), 3.409049423143274e-05, 15.438753491504077, 5),
]


@pytest.mark.nightly
@for_each(("counts", "weights", "features", "atoms"), SINGLE_ATOMS)
def test_squared_error_needs_one_atom_per_class(
    counts: ufm.ClassGroups, weights: float, features: float, atoms: int
) -> None:
    # Orthogonal frames are the closed form: features of one class each.
    problem = Problem(
        class_counts=counts,
        feature_dim=atoms,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights, features),
        nonnegative_features=True,
    )
    solution = by_groups(problem).check()
    certificate = ufm.certify(problem, solution.parameters)
    assert certificate is not None
    assert certificate.holds
    assert np.min(solution.features) >= 0


def test_in_a_pair_of_classes_either_may_be_the_distinguished_one() -> None:
    # The second orbit of two classes is the first one read the other way round, and a class of a
    # group of three has two others.
    ones = np.ones((1, 2))
    orbits = Orbits(ones * [1, 0], ones * [0, 1], ones, ones, None, None)
    assert copies_of(np.array([2.0]), orbits) == [2, 2]
    assert copies_of(np.array([3.0]), orbits) == [3, 3]
    assert copies_of(np.array([1.0]), orbits) == [1, 0]
