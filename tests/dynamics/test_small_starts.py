"""The linearised flow and strong collapse from small starts."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ufm.dynamics import (
    gaussian_start,
    linearised_flow,
    small_start_check,
    strong_collapse_distance,
)

pytest.importorskip("diffrax")

from flow_examples import stated

# Small starts.


def test_the_linearised_flow_solves_the_linearised_equations() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    start = gaussian_start(problem, key=1, resolution="samples")
    labels = np.repeat(np.arange(3), 2)

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        W, H, b = x[:12].reshape(3, 4), x[12:36].reshape(6, 4), x[36:]
        pull = (np.eye(3)[labels] - b) / 6
        return np.concatenate([(pull.T @ H).ravel(), (pull @ W).ravel(), 1 / 3 - b])

    x = np.concatenate([np.ravel(start.weights[0]), np.ravel(start.features), np.zeros(3)])
    solved = solve_ivp(velocity, (0, 6), x, t_eval=[2.0, 6.0], rtol=1e-10, atol=1e-13)
    found = linearised_flow(problem, start, [2.0, 6.0])
    np.testing.assert_allclose(
        found.weights[0].reshape(2, 12), solved.y[:12].T, rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(
        found.features.reshape(2, 24), solved.y[12:36].T, rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(found.bias, solved.y[36:].T, rtol=1e-7)
    with pytest.raises(ValueError, match="balanced classes"):
        linearised_flow(stated(use_bias=True), start, [1.0])
    with pytest.raises(ValueError, match="zero bias"):
        linearised_flow(problem, start._replace(bias=np.ones(3)), [1.0])  # type: ignore[arg-type]


@pytest.mark.nightly
def test_small_starts_end_near_strong_collapse_and_large_ones_do_not() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    start = gaussian_start(problem, key=1, resolution="samples", scale=1e-3)
    check = small_start_check(problem, (1e-1, 1e-3), key=1)
    assert check.holds
    path = check.paths[-1]
    linear = linearised_flow(problem, start, path.kept_times[:2])
    # Second order in the size, which has grown to a hundredth here.
    error = np.max(np.abs(linear.weights[0][1] - path.point(1).weights[0])) / np.max(
        np.abs(linear.weights[0][1])
    )
    assert error < 1e-3
    assert strong_collapse_distance(problem, check.paths[-1].final) < 3e-3
    assert not small_start_check(problem, (3.0, 1.0), key=1).holds
    with pytest.raises(ValueError, match="`scales` must be"):
        small_start_check(problem, (1e-2,))


def test_the_distance_to_strong_collapse_is_a_distance_to_a_subspace() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    means = np.random.default_rng(0).standard_normal((3, 4))
    means -= means.mean(axis=0)
    inside = gaussian_start(problem)._replace(weights=(np.sqrt(2) * means,), features=means)
    assert strong_collapse_distance(problem, inside) < 1e-15
    assert strong_collapse_distance(problem, inside._replace(features=-means)) == pytest.approx(1.0)
    assert (
        strong_collapse_distance(
            problem, inside._replace(features=np.ones((3, 4)), weights=(np.ones((3, 4)),))
        )
        == 1
    )
    lifted = inside._replace(features=np.repeat(means, 2, axis=0))
    assert strong_collapse_distance(problem, lifted) < 1e-15
