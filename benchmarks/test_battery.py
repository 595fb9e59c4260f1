"""The solver's answers against a conic solver's, which knows nothing of dual certificates or escapes."""

import numpy as np
import pytest

import ufm
from benchmarks.battery import CONIC_ACCURACY, CONIC_CLASSES, conic_minimum, drawn

COMPARED = 10


def test_random_problems_agree_with_a_conic_solver() -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rng, compared, kinds = np.random.default_rng(10), 0, set()
    while compared < COMPARED:
        problem = drawn(rng)
        tau = float(np.sqrt(problem.regularizer.weights * problem.regularizer.features * problem.num_samples))
        # Where hardly anything is regularised, six digits are more than a conic solver gives; where nearly everything is, nothing is left.
        if problem.num_classes > CONIC_CLASSES or not 1e-3 < tau < 0.5:
            continue
        solution = ufm.solve(problem, key=compared).check()
        assert solution.objective == pytest.approx(conic_minimum(problem), rel=CONIC_ACCURACY)
        compared += 1
        kinds.add((type(problem.loss), problem.use_bias, problem.nonnegative_features))
    assert {kind[0] for kind in kinds} == {ufm.CrossEntropy, ufm.SquaredError}
    assert {kind[1] for kind in kinds} == {kind[2] for kind in kinds} == {False, True}
