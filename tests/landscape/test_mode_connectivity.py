"""Low paths: level where symmetry or theory says so, else with barriers that none avoids."""

import functools
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import Status
from ufm.landscape import MinimaPath, connect
from ufm.landscape.alignment import aligned
from ufm.problems import Parameters

K = 3


def problem_of(**changes: Any) -> ufm.Problem:
    settings: dict[str, Any] = {
        "class_counts": (50, 20, 10),
        "feature_dim": K,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=1e-2, features=1e-3),
    }
    return ufm.Problem(**(settings | changes))


@functools.cache
def solved(minority: float, decay: float) -> ufm.Solution:
    """Squared error with two classes in two dimensions: a mode s = max(0, sqrt(n) - N tau) each."""
    problem = problem_of(
        class_counts=(50, minority),
        feature_dim=2,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=10 * decay, features=0.1 * decay),
    )
    solution = ufm.solve(problem)
    assert solution.certificate.holds
    return solution


FULL, FREE = (20, 0.005), (1, 0.05)  # both modes are there; one is, and leaves a dimension free


def rotation(dim: int, determinant: int, seed: int = 0) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    turn[:, 0] *= determinant * np.linalg.det(turn)
    return turn


def rotated(point: Any, turn: np.ndarray) -> Parameters:
    return Parameters(
        (point.weights[0] @ turn, *point.weights[1:]), point.features @ turn, point.bias
    )


def check(found: MinimaPath, problem: ufm.Problem) -> None:
    """What is true of every path."""
    assert found.objective[0] == pytest.approx(value(problem, found.first), rel=1e-12)
    assert found.objective[-1] == pytest.approx(value(problem, found.second), rel=1e-12)
    assert found.barrier == np.max(found.objective) - max(found.objective[0], found.objective[-1])
    assert np.max(found.objective) == pytest.approx(value(problem, found.highest), rel=1e-12)
    assert found.barrier <= found.straight_barrier * (1 + 1e-9) + 1e-15
    assert found.position[0] == 0
    assert found.position[-1] == pytest.approx(1)
    assert np.all(np.diff(found.position) >= 0)
    assert found.objective.shape == found.position.shape


def value(problem: ufm.Problem, point: Any) -> float:
    """The objective, as the certificate states it."""
    certificate = ufm.certify(problem, point)
    assert certificate is not None
    return certificate.objective


@pytest.mark.slow
@for_each("determinant", [1, -1])
def test_rotated_copies_are_one_point(determinant: int) -> None:
    solution = solved(*FREE)
    copy = rotated(solution, rotation(2, determinant))
    for align in ("symmetries", "rotations"):
        found = connect(solution.problem, solution, copy, align=align)
        check(found, solution.problem)
        assert found.barrier <= 1e-14
        assert found.connected
        assert found.joined  # the second dimension is free: a reflection is a rotation
        assert found.distance < 1e-7 < 0.1 < found.given_distance
        assert (found.status, found.steps) == (Status.CONVERGED, 0)
        np.testing.assert_allclose(found.second.features, solution.features, atol=1e-6)


@pytest.mark.slow
def test_global_minima_that_mirror_each_other_are_connected_through_a_free_dimension() -> None:
    solution = solved(*FREE)
    used = np.linalg.svd(solution.weights[0])[2][:1]
    found = connect(
        solution.problem, solution, rotated(solution, np.eye(2) - 2 * used.T @ used), align="none"
    )
    check(found, solution.problem)
    assert found.connected
    assert found.barrier < 1e-7 * solution.objective
    assert found.straight_barrier > 0.1 * solution.objective
    assert found.status is Status.CONVERGED
    assert "connected" in str(found)


def test_without_a_free_dimension_the_barrier_between_mirror_images_is_the_loss_of_a_rank() -> None:
    # Every path from one sign of the determinant to the other passes a point of lower rank: the
    # lesser mode costs n / (2 N) there.
    solution, (minority, decay) = solved(*FULL), FULL
    exact = (np.sqrt(minority) - (50 + minority) * decay) ** 2 / (2 * (50 + minority))
    mirrored = rotated(solution, rotation(2, -1))
    found = connect(solution.problem, solution, mirrored, align="rotations")
    check(found, solution.problem)
    assert found.joined
    assert not found.connected
    assert exact * (1 - 1e-7) <= found.barrier <= exact * (1 + 1e-4)
    assert found.highest_gradient < 1e-3
    assert "no level path found" in str(found)
    image = connect(solution.problem, solution, mirrored)
    assert image.connected
    assert not image.joined
    assert "mirror image" in str(image)


@pytest.mark.nightly
def test_the_loss_of_one_rank_of_two() -> None:
    problem = problem_of(feature_dim=2)
    solution, narrow = ufm.solve(problem), problem_of(feature_dim=1)
    exact = min(ufm.solve(narrow, key=key).objective for key in range(3)) - solution.objective
    found = connect(problem, solution, rotated(solution, rotation(2, -1)), align="rotations")
    check(found, problem)
    assert exact * (1 - 1e-7) <= found.barrier <= exact * (1 + 1e-3)
    assert found.straight_barrier > 1.2 * exact
    assert found.highest_gradient < 1e-2


def test_without_steps_the_straight_line_is_the_answer() -> None:
    solution = solved(*FULL)
    copy = rotated(solution, rotation(2, 1))
    found = connect(solution.problem, solution, copy, align="none", max_steps=0)
    check(found, solution.problem)
    assert found.status is Status.MAX_STEPS
    assert found.barrier == pytest.approx(found.straight_barrier, rel=1e-2)
    assert not found.connected
    assert connect(solution.problem, solution, copy, align="none").connected


def test_a_barrier_that_is_not_a_number_is_no_connection() -> None:
    found = connect(solved(*FREE).problem, solved(*FREE), solved(*FREE))
    assert found.connected
    assert not found._replace(barrier=np.nan).connected


def deep(generator: np.random.Generator, activation: str) -> tuple[ufm.Problem, Any]:
    """A point whose neighbouring factors share their row spaces, as those of minimisers do."""
    problem = problem_of(feature_dim=3, hidden_dims=(4, 5), activation=activation, use_bias=True)
    into, out, last = (generator.normal(size=shape) for shape in ((4, 3), (5, 3), (K, 3)))
    return problem, Parameters(
        (into, out @ into.T, last @ out.T), generator.normal(size=(K, 3)), generator.normal(size=K)
    )


@for_each("activation", ["linear", "relu"])
def test_the_symmetries_of_every_space_are_undone(activation: str) -> None:
    generator = np.random.default_rng(1)
    problem, point = deep(generator, activation)
    turns = [rotation(3, -1), rotation(4, 1), rotation(5, -1)]
    if activation == "relu":
        turns[1:] = [np.eye(dim)[generator.permutation(dim)] for dim in (4, 5)]
    W = point.weights
    moved = Parameters(
        (turns[1] @ W[0] @ turns[0].T, turns[2] @ W[1] @ turns[1].T, W[2] @ turns[2].T),
        point.features @ turns[0].T,
        point.bias + 3.0,
    )
    back, joined = aligned(problem, point, moved, "symmetries")
    for a, b in zip(
        (*back.weights, back.features, back.bias), (*W, point.features, point.bias), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert not joined
    only, joined = aligned(problem, point, moved, "rotations")
    assert joined
    assert np.linalg.norm(only.features - point.features) > 0.1
    assert aligned(problem, point, moved, "none") == (moved, True)


@for_each(
    ("arguments", "message"),
    [
        ({"problem": 3}, "`problem` must be a ufm.Problem, got int"),
        ({"images": 2}, "`images` must be a whole number of at least 3, got 2"),
        ({"max_steps": 0.5}, "`max_steps` must be a whole number of at least 0, got 0.5"),
        ({"align": "all"}, "`align` must be one of symmetries, rotations, none, got 'all'"),
        ({"tol": 0}, "`tol` must be a positive finite number, got 0"),
        ({"key": "luck"}, "`key` must be a JAX PRNG key or a non-negative integer"),
        (
            {"second": Parameters((np.eye(2),), np.full((2, 2), np.nan), None)},
            "`second` must be finite",
        ),
        (
            {"first": Parameters((np.eye(2),), np.eye(3)[:, :2], None)},
            "`features` must be .* in `first`",
        ),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "problem": solved(*FREE).problem,
        "first": solved(*FREE),
        "second": solved(*FREE),
    } | arguments
    with pytest.raises(ValueError, match=message):
        connect(given.pop("problem"), given.pop("first"), given.pop("second"), **given)


@pytest.mark.nightly
def test_from_zero_to_deep_collapse_one_mode_has_to_be_lifted() -> None:
    # By von Neumann's trace inequality the objective is at least the sum over singular values s of
    # phi(s) = (1 - s)^2 / (2 K) + (q / 2) Lambda n^{1/q} s^{2/q}: the first of them to pass the top
    # of phi does so while the others cost at least what they do at zero.
    L, n, decay = 3, 10, 5e-3
    problem = problem_of(
        class_counts=(n,) * K,
        hidden_dims=(K,) * (L - 1),
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(decay, decay),
    )
    solution = ufm.solve(problem)
    q = L + 1
    s = np.linspace(0, 0.5, 5_000_001)
    exact = np.max((1 - s) ** 2 / (2 * K) + q / 2 * decay * n ** (1 / q) * s ** (2 / q)) - 1 / (
        2 * K
    )
    zero = Parameters(tuple(0 * matrix for matrix in solution.weights), 0 * solution.features, None)
    for ends in ((zero, solution), (solution, zero)):
        found = connect(problem, *ends)
        check(found, problem)
        assert not found.connected
        assert exact * (1 - 1e-7) <= found.barrier <= exact * (1 + 1e-3)
        # The straight line lifts all of them at once.
        assert found.straight_barrier == pytest.approx(K * exact, rel=1e-3)


@pytest.mark.nightly
def test_classes_that_share_a_direction_share_it_in_any_proportion() -> None:
    # One value for all angles: see `ufm.landscape.census`, which counts the family as one point.
    problem = problem_of(
        class_counts=(10,) * K,
        hidden_dims=(K,),
        activation="relu",
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(5e-3, 5e-3),
    )
    whole = ufm.solve(problem)
    strength = np.linalg.svd(whole.logits, compute_uv=False)[0]
    size = (strength / 10**0.5) ** (1 / 3) * 10 ** (1 / 6)
    ends = []
    for angle in (0.2, 1.3):
        share = np.array([[1.0, 0, 0], [0, np.cos(angle), 0], [0, np.sin(angle), 0]])
        ends.append(
            Parameters((size * np.diag([1.0, 1, 0]), size * share), size / 10**0.5 * share, None)
        )
    found = connect(problem, *ends)
    check(found, problem)
    assert found.objective[0] == pytest.approx(found.objective[-1], rel=1e-12)
    assert found.straight_barrier > 1e-3
    assert found.connected


@pytest.mark.nightly
def test_dead_classes_are_behind_a_barrier_without_a_free_coordinate_and_not_with_one() -> None:
    def ends(feature_dim: int) -> tuple[ufm.Problem, list[ufm.Solution]]:
        problem = ufm.Problem(
            class_counts=(200, 120, 70, 30, 10),
            feature_dim=feature_dim,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(1e-2, 1e-2),
            nonnegative_features=True,
        )
        found = [ufm.solve(problem, method=ufm.LBFGS(), key=key) for key in range(12)]
        return problem, sorted(found, key=lambda solution: solution.objective)

    # One coordinate: one class lives. From the second class to the first.
    problem, found = ends(1)
    spurious = next(solution for solution in found if solution.objective > found[0].objective + 0.1)
    assert spurious.status.ok
    low = connect(problem, spurious, found[0])
    check(low, problem)
    assert low.barrier > 1e-3
    assert low.barrier < 0.5 * low.straight_barrier
    # Five coordinates: a live class is split over two of them, in proportions that may change at
    # constant value. That frees a coordinate, in which a dead class revives at a gain of second
    # order.
    problem, found = ends(5)
    assert found[0].objective == pytest.approx(1.12811740, abs=1e-8)
    spurious = next(solution for solution in found if abs(solution.objective - 1.13000113) < 1e-8)
    H, W = np.array(spurious.features), np.array(spurious.weights[0])
    H[H < 1e-5] = 0
    split = np.flatnonzero(H[np.argmax(np.sum(H > 0, axis=1))])[:2]
    merge = np.linalg.svd(H[:, split])[2].T
    merge *= np.sign(
        merge[0, 0]
    )  # its first column is where the class points, and so all of it ends there
    H[:, split], W[:, split] = H[:, split] @ merge, W[:, split] @ merge
    H[np.abs(H) < 1e-9] = 0
    assert value(problem, Parameters((W,), H, None)) == pytest.approx(spurious.objective, rel=1e-7)
    H[3, split[1]], W[:, split[1]] = 0.01, 0.01 * np.sqrt(30) * (np.eye(5)[3] - 0.2) / np.sqrt(0.8)
    assert value(problem, Parameters((W,), H, None)) < spurious.objective - 1e-6
    low = connect(problem, spurious, found[0], max_steps=5000)
    check(low, problem)
    assert low.connected
    assert low.straight_barrier > 1e-3
