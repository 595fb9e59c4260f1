"""A method of the user's own: one class, and everything that `solve` has around it."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import plain
import pytest
from plain import a_problem

import ufm
from ufm._support import Status
from ufm.solving.methods import Space, Step

PROBLEM = a_problem(loss=ufm.SquaredError())


class SteepestDescent(ufm.Method):
    """Gradient descent whose steps grow by a tenth, and are halved where the objective rises."""

    rate: float = 0.1

    def init(self, space: Space, x: Any, value: Any, gradient: Any) -> Any:
        return jnp.asarray(self.rate, x.dtype)

    def step(self, space: Space, x: Any, value: Any, gradient: Any, rate: Any) -> Any:
        new = x - rate * gradient, *space.objective(x - rate * gradient)
        better = new[1] <= value
        kept = (jnp.where(better, a, b) for a, b in zip(new, (x, value, gradient), strict=True))
        return *kept, jnp.where(better, 1.1, 0.5) * rate


class InParameters(SteepestDescent):
    balanced: ClassVar[bool] = False


class Stuck(ufm.Method):
    default_steps: ClassVar[int | None] = 7

    def init(self, space: Space, x: Any, value: Any, gradient: Any) -> Any:
        return jnp.int32(0)

    def step(self, space: Space, x: Any, value: Any, gradient: Any, count: Any) -> Step:
        status = jnp.where(count == 2, Status.STALLED, Status.RUNNING)
        return Step(x, value, gradient, count + 1, status, evaluations=3)


@pytest.mark.parametrize(
    "method", [SteepestDescent(), pytest.param(InParameters(rate=1.0), marks=pytest.mark.slow)]
)
def test_a_method_of_the_users_own_solves_certifies_and_records(method: ufm.Method) -> None:
    solution = ufm.solve(PROBLEM, method=method, restarts=2, record_every=50, tol=1e-7).check()
    assert solution.objective == pytest.approx(plain.squared_error_minimum(PROBLEM), rel=1e-10)
    assert solution.restarts.status.size == 2
    assert solution.trajectory is not None
    assert np.all(np.diff(solution.trajectory.objective) <= 0)
    assert solution.evaluations == solution.steps + 1


def test_its_status_and_its_counts_are_the_solutions() -> None:
    stuck = ufm.solve(PROBLEM, method=Stuck())
    assert (stuck.status, stuck.steps, stuck.evaluations) == (Status.STALLED, 3, 10)
    out = ufm.solve(PROBLEM, method=Stuck(), max_steps=2)
    assert (out.status, out.steps) == (Status.MAX_STEPS, 2)


def test_a_method_without_a_step_is_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ufm.Method()  # type: ignore[abstract]
