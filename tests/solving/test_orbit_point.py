"""Points over orbits: explicit matrices are those of a minimiser, in balls and out."""

import numpy as np
from tables import for_each

import ufm
from ufm import Targets
from ufm.solving.orbit_resolution import orbit_reduction, solve_orbits


@for_each(
    "regularizer",
    [ufm.WeightDecay(3e-2, 1e-3), ufm.NormBall(2.0, 0.5)],
)
def test_lifted_factors_are_balanced_and_feasible(regularizer: ufm.Regularizer) -> None:
    """Fifteen rows of five labels: means over rows of weights and of features differ."""
    problem = ufm.Problem(
        targets=Targets.multi_label(5, {1: 50, 2: 30}),
        feature_dim=7,
        loss=ufm.CrossEntropy(),
        regularizer=regularizer,
    )
    reduction = orbit_reduction(problem)
    assert reduction is not None
    solution = solve_orbits(reduction)
    (weights,), features = solution.weights, np.asarray(solution.features)
    assert (weights.shape, features.shape) == ((5, 7), (15, 7))
    assert np.allclose(features @ np.asarray(weights).T, solution.logits, rtol=0, atol=1e-12)
    whole = ufm.certify(problem, solution)
    assert whole is not None
    assert whole.holds
    # Factors of one product cost least if they are balanced.
    shares = np.asarray(problem.row_weights)[:, None]
    if problem.regularizer.bounded:
        norms = np.mean(np.sum(weights**2, axis=1)) / 2, np.sum(shares * features**2) / 0.5
    else:
        norms = 3e-2 * np.sum(weights**2), 1e-3 * np.sum(shares * features**2)
    assert np.isclose(*norms, rtol=1e-9, atol=0)
    assert list(solution.groups) == list(range(15))
    assert solution.group_bias is None
