"""The search over lanes: a lane does not depend on the others, and Ctrl-C leaves all of them."""

import numpy as np
import pytest
from plain import a_problem
from tables import for_each, slow

import ufm
from ufm._support import Status


@for_each("method", [ufm.LBFGS(), slow(ufm.GradientDescent(0.5))])
def test_a_start_ends_where_it_ends_alone(method: ufm.Method) -> None:
    problem = a_problem(use_bias=True)
    alone, first = (
        ufm.solve(problem, method=method, restarts=restarts, max_steps=20, key=4)
        for restarts in (1, 3)
    )
    assert first.restarts.steps.size == 3
    assert first.restarts.objective[0] == pytest.approx(alone.objective, rel=1e-9)
    assert first.restarts.steps[0] == alone.steps


@pytest.mark.slow
def test_the_later_ctrl_c_comes_the_lower_is_the_point_that_it_leaves() -> None:
    problem = ufm.Problem(  # of several sets of starts, with ways out
        class_counts=(10.0,) * 4,
        feature_dim=4,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-3),
        use_bias=True,
        nonnegative_features=True,
    )

    def solved(most: float) -> ufm.Solution:
        calls = 0

        def progress(step: int, objective: float, residual: float) -> None:
            nonlocal calls
            calls += 1
            if calls > most:
                raise KeyboardInterrupt

        try:
            return ufm.solve(problem, key=0, progress=progress)
        except ufm.SolveInterrupted as stop:
            return stop.solution

    left = [solved(most) for most in (0, 1, 4, 8)]
    end = solved(np.inf).check()
    objectives = [solution.objective for solution in (*left, end)]
    assert np.all(np.diff(objectives) <= 1e-12)
    assert {solution.restarts.status.size for solution in left} == {1, end.restarts.status.size}
    for solution in left:
        assert solution.certificate.lower_bound <= end.objective * (1 + 1e-12)
        assert solution.status in (Status.NOT_CERTIFIED, Status.INTERRUPTED, Status.CONVERGED)
