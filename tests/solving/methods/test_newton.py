import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ill_conditioned, iterated

from ufm._support import Status
from ufm.solving.methods import NewtonCG, free_space

pytestmark = pytest.mark.usefixtures("float64")


def test_minimises_an_ill_conditioned_quadratic_in_a_few_steps() -> None:
    f, centre = ill_conditioned(8)
    path = iterated(NewtonCG(), f, np.ones(8), 20)
    norms = np.array([np.linalg.norm(gradient) for _, gradient, _ in path])
    assert np.argmax(norms < 1e-9 * norms[0]) in range(1, 12)
    np.testing.assert_allclose(path[-1][0], centre, atol=1e-12)


def test_gradients_fall_by_two_digits_a_step_near_the_minimum() -> None:
    path = iterated(
        NewtonCG(), lambda x: jnp.sum(jnp.cosh(x) + 0.1 * x), np.array([0.3, -0.2, 0.1]), 12
    )
    norms = np.array([np.linalg.norm(gradient) for _, gradient, _ in path])
    near = norms[(norms < 1e-1) & (norms > 1e-12)]
    assert np.all(near[1:] <= 0.02 * near[:-1])
    np.testing.assert_allclose(path[-1][0], np.arcsinh(-0.1), rtol=1e-13)


def test_steps_stay_inside_the_region() -> None:
    path = iterated(NewtonCG(), lambda x: jnp.sum(x**4) + x[0], np.array([3.0, 2.0]), 10)
    for (x, _, region), (next_x, _, _) in itertools.pairwise(path):
        assert np.linalg.norm(next_x - x) <= float(region.radius) * (1 + 1e-12)


def test_negative_curvature_leads_off_a_saddle() -> None:
    def double_well(x: Any) -> Any:
        return 0.5 * x[0] ** 2 + 0.25 * x[1] ** 4 - 0.5 * x[1] ** 2

    path = iterated(NewtonCG(), double_well, np.array([0.1, 1e-6]), 30)
    np.testing.assert_allclose(np.abs(path[-1][0]), [0, 1], atol=1e-9)


def test_directions_along_which_nothing_changes_are_no_obstacle() -> None:
    # Every point of the unit sphere is a minimiser, and the Hessian is singular there.
    path = iterated(NewtonCG(), lambda x: (jnp.sum(x**2) - 1) ** 2, np.array([1.0, 2.0, -1.0]), 30)
    x, gradient, _ = path[-1]
    assert np.linalg.norm(gradient) < 1e-13
    np.testing.assert_allclose(x / np.linalg.norm(x), np.array([1, 2, -1]) / np.sqrt(6), atol=1e-8)


def test_refused_steps_shrink_the_region_until_the_solve_counts_as_stalled() -> None:
    method = NewtonCG(max_fails=3)
    nowhere = free_space(jax.value_and_grad(lambda x: jnp.sum(x) * jnp.nan))
    x, value, gradient = jnp.ones(2), jnp.float64(2), jnp.ones(2)
    region = method.init(nowhere, x, value, gradient)
    for fails in (1, 2, 3):
        kept, same, unchanged, region, status, _ = method.step(nowhere, x, value, gradient, region)
        assert status == (Status.STALLED if fails == 3 else Status.RUNNING)
        assert int(region.fails) == fails
        assert float(same) == 2
        np.testing.assert_array_equal([kept, unchanged], 1)
