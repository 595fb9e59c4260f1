"""Points of a sweep against solves of their own."""

import json

import jax
import numpy as np
import pytest

import ufm


@pytest.mark.slow
def test_points_of_other_targets_are_their_own_solves(caplog: pytest.LogCaptureFixture) -> None:
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
    noise = {
        rate: ufm.Targets((1 - rate) * rows + rate / 3, (1, 2, 3, 1, 2)) for rate in (0.1, 0.4)
    }
    along = ufm.sweep(problem(0.01), over={"targets.noise": noise})
    others = {rate + 0.2: ufm.Targets(made.rows[::-1], made.counts) for rate, made in noise.items()}
    with jax.log_compiles():
        caplog.clear()
        ufm.sweep(problem(0.01), over={"targets.noise": others})
        jax.jit(lambda number: number + 0.1234)(1.0)  # something new, which the log has to show
    assert sum(one.startswith("Compiling") for one in caplog.messages) == 1
    assert bool(along.certified.all())
    np.testing.assert_array_equal(along["targets.noise"], [0.1, 0.4])
    stated = json.loads(along.attrs["problem"])["targets"]
    assert stated == {"rows": 5, "outputs": 3}
    for rate, made in noise.items():
        one = ufm.solve(
            ufm.Problem(
                targets=made,
                feature_dim=4,
                loss=ufm.CrossEntropy(),
                regularizer=ufm.WeightDecay(0.01, 0.02),
            )
        )
        found_there = along.sel({"targets.noise": rate})
        assert float(found_there.objective) == pytest.approx(one.objective, rel=1e-9)
    with pytest.raises(ufm.ArgumentError, match="cannot have 'margin' for `targets`"):
        ufm.sweep(problem(0.1), over={"regularizer.weights": decays}, quantities=["margin"])
    with pytest.raises(ufm.ArgumentError, match="cannot vary 'imbalance_ratio'"):
        ufm.sweep(problem(0.1), over={"imbalance_ratio": (1.0, 2.0)})
