"""Results of the landscape print in a few lines, with their numbers."""

from typing import Any

import numpy as np
import pytest

import ufm
from ufm import landscape


@pytest.mark.nightly
def test_every_result_prints_its_numbers_in_a_few_lines() -> None:
    problem = ufm.Problem(
        class_counts=(4, 3, 2),
        feature_dim=4,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(0.02, 0.02),  # type: ignore[arg-type]
        hidden_dims=(3,),
        activation="relu",
    )
    census = landscape.census(problem, 3, key=0)
    end = census.points[0]
    zero = ufm.Parameters((np.zeros((3, 4)), np.zeros((3, 3))), np.zeros((3, 4)), None)  # type: ignore[arg-type]
    origin = landscape.classify(problem, zero)
    dead = landscape.dead_units(problem, zero)
    path = landscape.connect(problem, end.parameters, end.parameters)
    found: dict[str, Any] = {
        "3 starts": census,
        "runs       ": census.runs,
        f"objective {end.value:.12g}": end,
        f"{origin.kind}, objective": origin,
        "3 units with zero weights": origin.kinks,
        "3 of 3 units dead": dead,
        "3: unit 0 of layer 1": landscape.revive(problem, zero),
        "eigenvalues": landscape.hessian_spectrum(problem, zero),
        "connected": path,
        "valley: DOES NOT HOLD": landscape.Valley(1, 2, 3, origin),
        "a claim (a paper): DOES NOT HOLD at 0 points": landscape.LandscapeClaim(
            "a claim", "a paper", (), 1.0
        ),
        "along an eigenvector": landscape.Escape(zero, (0.5, 0.25), "an eigenvector"),
    }
    for words, result in found.items():
        text = repr(result)
        assert words in text, text
        assert text == str(result)
        assert len(text.splitlines()) <= 10
        assert max(map(len, text.splitlines())) <= 200  # certificates have long lines
        assert result._repr_html_().startswith("<pre>")
