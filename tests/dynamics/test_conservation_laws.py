"""Energy falls, and balance is conserved or decays; the checks see where it is not so."""

import numpy as np
import pytest
from tables import for_each

from ufm._support import Status
from ufm.dynamics import conservation_check, descent, energy_check, gaussian_start, gradient_flow
from ufm.dynamics.conservation_laws import balance_matrices

pytest.importorskip("diffrax")

from flow_examples import COUNTS, PROBLEM, changed, stated

# Energy.


@pytest.mark.slow
def test_the_objective_falls_along_a_flow_and_the_check_sees_where_it_does_not() -> None:
    flow = gradient_flow(PROBLEM, times=200.0)
    assert energy_check(flow).holds
    assert not energy_check(changed(flow, objective=flow.objective[::-1])).holds
    assert not energy_check(
        changed(flow, objective=np.where(np.arange(61) == 30, np.nan, flow.objective))
    ).holds
    slightly = flow.objective.copy()
    slightly[-1] += 1e-7
    assert not energy_check(changed(flow, objective=slightly)).holds
    hasty = descent(PROBLEM, learning_rate=5.0, steps=range(1, 40))  # type: ignore[arg-type]
    assert not energy_check(hasty).holds


# Conservation.


@for_each("factor", [0.0, 1.0])
def test_balance_is_conserved_or_decays(factor: float) -> None:
    flow = gradient_flow(PROBLEM, times=(1.0, 10.0, 100.0), scale=0.5, penalty_factor=factor)
    check = conservation_check(flow)
    assert check.holds
    np.testing.assert_allclose(
        check.expected[-1], check.found[0] * np.exp(-2 * factor * 1e-2 * 100), rtol=1e-12
    )
    assert np.max(check.error) < 1e-8 * flow.norm[0] ** 2
    np.testing.assert_allclose(check.found[:, 0], flow.balance[:, 0], rtol=1e-6)


def test_conservation_says_no() -> None:
    start = gaussian_start(PROBLEM, scale=0.5)
    assert not conservation_check(
        descent(PROBLEM, learning_rate=0.1, steps=100, initial=start, penalty_factor=0.0)
    ).holds
    flow = gradient_flow(PROBLEM, times=(1.0, 10.0, 100.0), initial=start)
    assert not conservation_check(changed(flow, penalty_factor=0.5)).holds
    # The features of the plain gradient of the objective over classes, the wrong metric, balance
    # H^T H instead.
    plain = changed(
        flow,
        points=flow.points._replace(features=flow.points.features * np.sqrt(COUNTS)[None, :, None]),
    )
    assert not conservation_check(plain).holds
    assert not conservation_check(
        changed(flow, points=flow.points._replace(features=flow.points.features * np.nan))
    ).holds
    with pytest.raises(ValueError, match="must have equal penalties"):
        conservation_check(gradient_flow(stated(decay=(1e-2, 1e-3)), times=1.0))


@pytest.mark.nightly
@for_each("activation", ["linear", "relu"])
def test_balance_of_deep_models(activation: str) -> None:
    problem = stated(hidden_dims=(5, 4), activation=activation)
    flow = gradient_flow(problem, times=(0.5, 1.0, 3.0), key=1, scale=0.7, penalty_factor=0.0)
    assert flow.status == Status.FINISHED
    check = conservation_check(flow)
    assert check.holds
    assert check.error.shape == (4, 3)
    full = [balance_matrices(flow, flow.point(i))[1] for i in (0, -1)]
    moved = np.linalg.norm(full[1] - full[0]) / np.linalg.norm(full[0])
    assert (
        (moved < 1e-6) if activation == "linear" else (moved > 1e-3)
    )  # only the diagonal is conserved through a ReLU
