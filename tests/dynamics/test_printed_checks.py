"""Paths and checks print in a few lines, with the verdict and the numbers."""

from typing import Any

import numpy as np
import pytest
from flow_examples import ENTROPY, PROBLEM, SIZES, X, Y

from ufm import dynamics

pytest.importorskip("diffrax")


@pytest.mark.nightly
def test_every_result_prints_its_numbers_in_a_few_lines() -> None:
    flow = dynamics.gradient_flow(
        PROBLEM, times=(1.0, 5.0, 20.0), initial=dynamics.aligned_start(PROBLEM, SIZES)
    )
    free = dynamics.descent(
        ENTROPY, learning_rate=0.5, steps=200, scale=1.0, penalty_factor=0.0, key=1
    )
    features = np.random.default_rng(0).standard_normal((18, 3))
    path = dynamics.central_path(features, 3, times=(1.0, 10.0))
    energy, exact = dynamics.energy_check(flow), dynamics.exact_flow_check(flow)
    found: dict[str, Any] = {
        f"{flow.objective[-1]:.10g}": flow,
        f"{flow.objective[-1]:.6g}": flow.measures,
        f"tolerance {exact.tolerance:.3g}": exact,
        "energy never rises  holds in 3 intervals": energy,
        "energy never rises  DOES NOT HOLD": energy._replace(rise=energy.rise + 1),
        "balance of factors: holds at 4 times": dynamics.conservation_check(flow),
        "direction to the largest margin": dynamics.direction_check(free),
        f"{path.objective[-1]:.10g}": path,
        "clock error": dynamics.central_path_check(path),
        "distance at the end": dynamics.SmallStartCheck(
            np.array([0.1, 0.01]), np.array([0.2, 0.02]), 1.0, ()
        ),
        "40 grew": dynamics.condensation("x2tanh", X, Y, width=40),
    }
    for words, result in found.items():
        text = repr(result)
        assert words in text.replace("40 of 40 grew", "40 grew")
        assert text == str(result)
        assert len(text.splitlines()) <= 16
        assert max(map(len, text.splitlines())) <= 130
        assert result._repr_html_().startswith("<pre>")
