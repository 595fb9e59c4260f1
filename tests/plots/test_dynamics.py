"""Pictures of flows and condensation."""

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from drawn_examples import AROUND, CONDENSED  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from ufm import plots  # noqa: E402


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("tanh", "tanh"),
        ("xtanh", r"$x\,\tanh\,x$"),
        ("x2tanh", r"$x^2\,\tanh\,x$"),
        ("relu", "ReLU"),
    ],
)
def test_activations_are_named_as_they_are_written(activation: str, name: str) -> None:
    found = CONDENSED._replace(activation=activation, expected=None)
    _, (left, right, known) = plt.subplots(1, 3)
    assert plots.condensation_cosines(found, left).get_title() == f"{name}, after"
    title = f"{name}: 2 directions within 2\N{DEGREE SIGN}"
    assert plots.weight_directions(found, right).get_title() == f"{title}, none predicted"
    assert plots.weight_directions(found._replace(expected=AROUND[:2]), known).get_title() == title
