"""The direction of flows without penalties."""

import numpy as np
import pytest

import ufm
from ufm.dynamics import direction_check, gradient_flow

pytest.importorskip("diffrax")

from flow_examples import COUNTS, ENTROPY, PROBLEM, changed

# The direction without penalties.


@pytest.mark.slow
def test_the_flow_without_penalties_turns_to_the_hard_margin_solution() -> None:
    flow = gradient_flow(ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2)  # type: ignore[arg-type]
    check = direction_check(flow)
    assert check.separates
    assert check.stationary
    assert check.holds
    np.testing.assert_allclose(
        check.limit, 0.5 / ufm.solve_hard_margin(ufm.HardMargin(COUNTS)).value, rtol=1e-9
    )
    assert check.normalised_margin[-1] > 0.99 * check.limit
    assert check.angle[-1] < 0.01 < check.angle[check.late][0]
    # d ||theta||^2 / dt = (4 / N) sum n_k p_kc (z_k - z_c), as derived, and it is 2 <theta,
    # -gradient> in what is recorded.
    last = flow.final
    logits = last.features @ last.weights[0].T
    gaps = np.diagonal(logits)[:, None] - logits
    odds = np.exp(-gaps) / np.sum(np.exp(-gaps), axis=1, keepdims=True)
    growth = 4 / 7 * np.sum(np.array(COUNTS)[:, None] * odds * gaps)
    np.testing.assert_allclose(
        2 * flow.alignment[-1] * flow.norm[-1] * flow.gradient_norm[-1], growth, rtol=1e-9
    )


@pytest.mark.slow
def test_the_direction_check_says_no() -> None:
    flow = gradient_flow(ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2)  # type: ignore[arg-type]
    backwards = changed(flow, margins=flow.margins[::-1], norm=flow.norm[::-1])
    assert not direction_check(backwards).separates
    assert not direction_check(changed(flow, alignment=np.full(41, np.nan))).stationary
    assert not direction_check(changed(flow, data_term=1 / (1 + flow.times**0.5))).stationary
    other = flow.points._replace(features=flow.points.features[:, ::-1])
    assert not direction_check(changed(flow, points=other)).holds
    assert not direction_check(
        gradient_flow(ENTROPY, times=1.0, penalty_factor=0.0)
    ).holds  # nothing is separated yet
    with pytest.raises(ValueError, match="no penalties"):
        direction_check(gradient_flow(ENTROPY, times=1.0))
    with pytest.raises(ValueError, match="cross-entropy"):
        direction_check(gradient_flow(PROBLEM, times=1.0, penalty_factor=0.0))
