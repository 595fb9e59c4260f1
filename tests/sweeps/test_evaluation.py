"""Points of a sweep against solves of their own."""

import numpy as np
import pytest

import ufm


def test_points_of_other_targets_are_their_own_solves() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    targets = ufm.Targets(rows, (1, 2, 3, 1, 2))
    decays = (0.01, 0.05)

    def problem(decay: float) -> ufm.Problem:
        return ufm.Problem(
            targets=targets,
            feature_dim=4,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(decay, 0.02),
        )

    found = ufm.sweep(problem(0.1), over={"regularizer.weights": decays})
    assert bool(found.certified.all())
    assert "feature_norm" not in found
    for index, decay in enumerate(decays):
        one = ufm.solve(problem(decay))
        assert float(found.objective[index]) == pytest.approx(one.objective, rel=1e-9)
        np.testing.assert_allclose(found.weight_norm[index], one.weight_norms, atol=1e-6)
    with pytest.raises(ufm.ArgumentError, match="cannot have 'margin' for `targets`"):
        ufm.sweep(problem(0.1), over={"regularizer.weights": decays}, quantities=["margin"])
    with pytest.raises(ufm.ArgumentError, match="cannot vary 'imbalance_ratio'"):
        ufm.sweep(problem(0.1), over={"imbalance_ratio": (1.0, 2.0)})
