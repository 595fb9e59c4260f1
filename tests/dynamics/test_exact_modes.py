"""Closed forms of flows from aligned starts; the check says no elsewhere."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from tables import for_each

from ufm.dynamics import (
    aligned_start,
    descent,
    entropy_clock,
    exact_flow_check,
    gradient_flow,
    logistic_modes,
)

pytest.importorskip("diffrax")

from flow_examples import BALANCED, COUNTS, PROBLEM, SIZES, changed, stated

# Exact flows.


@for_each("decay", [1e-2, np.sqrt(2) / 7, 0.3])
def test_squared_error_follows_logistic_modes(decay: float) -> None:
    problem = stated(decay=(decay, decay))
    flow = gradient_flow(
        problem, times=np.linspace(1, 100, 12), initial=aligned_start(problem, SIZES), rtol=1e-11
    )  # type: ignore[arg-type]
    check = exact_flow_check(flow)
    assert check.holds
    assert np.max(check.error) < 1e-8
    modes = logistic_modes(problem, SIZES, flow.times)
    np.testing.assert_allclose(np.sort(modes)[:, ::-1], flow.logit_singular_values, atol=1e-8)


def test_logistic_modes_solve_their_equation_without_penalties_too() -> None:
    n, times = np.array(COUNTS), np.linspace(0, 60, 7)
    for factor in (0.0, 1.0, 60.0):
        solved = solve_ivp(
            lambda t, s, c: 2 / 7 * s * (np.sqrt(n) - 7 * 1e-2 * c - s),
            (0, 60),
            SIZES,
            t_eval=times,
            rtol=1e-11,
            atol=1e-14,
            args=(factor,),
        )
        modes = logistic_modes(PROBLEM, SIZES, times, penalty_factor=factor)
        np.testing.assert_allclose(modes, solved.y.T, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(
        logistic_modes(PROBLEM, SIZES, [1e9])[0], np.sqrt(n) - 0.07, rtol=1e-12
    )


@pytest.mark.nightly
def test_balanced_cross_entropy_keeps_its_clock() -> None:
    flow = gradient_flow(
        BALANCED,
        times=np.geomspace(0.1, 1e10, 14),
        initial=aligned_start(BALANCED, 0.01),
        penalty_factor=0.0,  # type: ignore[arg-type]
    )
    check = exact_flow_check(flow)
    assert check.holds
    assert np.max(check.error) < 1e-8
    margins = flow.margins[:, 0]
    elapsed = entropy_clock(margins, 3) - entropy_clock(margins[0], 3)
    np.testing.assert_allclose(elapsed[1:], flow.times[1:], rtol=1e-6)  # 2 t / sqrt(4)
    # A logarithm below 1/t, and not 1/t.
    rate = flow.objective[-4:] * flow.times[-4:]
    np.testing.assert_allclose(rate * margins[-4:], 2 * np.sqrt(4) / 2, rtol=0.12)
    assert rate[-1] < 0.8 * rate[0]


def test_exact_flows_say_no() -> None:
    start = aligned_start(PROBLEM, SIZES)
    flow = gradient_flow(PROBLEM, times=np.linspace(1, 100, 12), initial=start)  # type: ignore[arg-type]
    assert exact_flow_check(flow).holds
    assert not exact_flow_check(changed(flow, times=flow.times * 1.001)).holds
    assert not exact_flow_check(changed(flow, penalty_factor=0.99)).holds
    assert not exact_flow_check(
        descent(PROBLEM, learning_rate=0.05, steps=500, initial=start)
    ).holds
    with pytest.raises(ValueError, match="must start balanced and aligned"):
        exact_flow_check(gradient_flow(PROBLEM, times=1.0))
    with pytest.raises(ValueError, match="equal penalties"):
        logistic_modes(stated(decay=(1e-2, 1e-3)), SIZES, [1.0])
    with pytest.raises(ValueError, match="no bias"):
        aligned_start(stated(use_bias=True), 1.0)
    with pytest.raises(ValueError, match="feature_dim >= num_classes"):
        aligned_start(stated(feature_dim=2), 1.0)
    with pytest.raises(ValueError, match="`sizes` must be"):
        aligned_start(PROBLEM, -1.0)
