"""Hidden weights condense to predicted directions."""

import numpy as np
import pytest
from tables import for_each

from ufm.dynamics import condensation, predicted_directions

pytest.importorskip("diffrax")

from flow_examples import X, Y


@for_each(("activation", "power"), [("tanh", 1), ("xtanh", 2), ("x2tanh", 3)])
def test_predicted_directions_are_those_of_a_search(activation: str, power: int) -> None:
    for targets in (Y, np.random.default_rng(5).standard_normal(8)):
        found = predicted_directions(activation, X, targets)
        phi = np.linspace(0, 2 * np.pi, 20001)[:-1]
        P = targets @ (X @ np.stack([np.cos(phi), np.sin(phi)])) ** power
        size = np.abs(P)
        peaks = phi[(size > np.roll(size, 1)) & (size >= np.roll(size, -1)) & (size > 1e-9)]
        angles = np.sort(np.arctan2(found[:, 1], found[:, 0]) % (2 * np.pi))
        np.testing.assert_allclose(angles, np.sort(peaks), atol=1e-3)
        assert len(found) <= 2 * power


@pytest.mark.slow
@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.nightly), "x2tanh"])
def test_units_condense_to_the_predicted_directions(activation: str) -> None:
    found = condensation(activation, X, Y, width=40)
    assert found.holds
    assert found.multiplicity is not None
    assert len(found.directions) == 2 * found.multiplicity
    assert found.loss[1] > 0.9 * found.loss[0]
    assert not found._replace(
        final=found.initial, directions=found.directions[:0], shares=found.shares[:0]
    ).holds
    assert not found._replace(multiplicity=0).condensed
    assert found.expected is not None
    assert not found._replace(expected=found.expected[:, ::-1]).holds


@pytest.mark.nightly
def test_condensation_on_the_clock_of_the_network() -> None:
    assert condensation("tanh", X, Y, clock="common").holds
    quadratic = condensation("xtanh", X, Y, clock="common")
    assert quadratic.holds
    assert np.sum(quadratic.grown) < 10  # the first units fit before the others move
    assert condensation("xtanh", X, Y).holds


@pytest.mark.nightly
def test_condensation_says_no() -> None:
    assert not condensation("tanh", X, Y, scale=1.0, clock="common", most_fitted=0.99).condensed
    assert not condensation("tanh", X, Y, growth=10.5).condensed
    relu = condensation("relu", X, 0.3 * np.random.default_rng(5).standard_normal(8))
    assert not relu.condensed
    assert len(relu.directions) > 2


def test_condensation_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`activation` must be one of"):
        condensation("gelu", X, Y)
    with pytest.raises(ValueError, match="`inputs` and `targets` must be finite"):
        condensation("tanh", X, Y[:3])
    with pytest.raises(ValueError, match="`growth` must be above"):
        condensation("tanh", X, Y, growth=2.0)
    with pytest.raises(ValueError, match="smooth at zero"):
        predicted_directions("relu", X, Y)
