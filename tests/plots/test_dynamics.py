"""Pictures of flows and condensation."""

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from drawn_examples import AROUND, CONDENSED  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from ufm import dynamics, plots  # noqa: E402


@for_each(
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


@pytest.mark.nightly
def test_pictures_of_flows_show_the_numbers_of_the_flows() -> None:
    pytest.importorskip("diffrax")
    from flow_examples import ENTROPY, PROBLEM, SIZES, X, Y

    start = dynamics.aligned_start(PROBLEM, SIZES)
    flow = dynamics.gradient_flow(PROBLEM, times=np.linspace(1, 100, 12), initial=start)  # type: ignore[arg-type]
    modes = dynamics.logistic_modes(PROBLEM, SIZES, flow.times)
    ax = plots.singular_values_in_time(flow, modes)
    drawn = [line.get_ydata() for line in ax.lines]
    np.testing.assert_array_equal(drawn[:3], modes.T)
    np.testing.assert_array_equal(drawn[3:], flow.logit_singular_values.T)
    ax = plots.measures_in_time(flow, ("objective", "margin"), predicted={"objective": 0.1})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), flow.objective[1:])
    assert ax.get_legend().get_texts()[0].get_text() == "objective"
    free = dynamics.gradient_flow(
        ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2
    )  # type: ignore[arg-type]
    check = dynamics.direction_check(free)
    ax = plots.margin_phase({"a flow": check})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), check.angle)
    found = dynamics.condensation("x2tanh", X, Y, width=40)
    after = plots.condensation_cosines(found).images[0].get_array()
    assert np.max(np.abs(np.diagonal(after) - 1)) < 1e-12
    assert np.sum(after > 0.999) > np.sum(
        plots.condensation_cosines(found, when="before").images[0].get_array() > 0.999
    )
    ax = plots.weight_directions(found)
    assert len([line for line in ax.lines if line.get_linestyle() == "--"]) == 6
    plt.close("all")
    with pytest.raises(ValueError, match="`quantities` must be among"):
        plots.measures_in_time(flow, ("nonsense",))
    with pytest.raises(ValueError, match="`predicted` must be positive"):
        plots.measures_in_time(flow, ("nc1",), predicted={"nc1": 0.0})
    with pytest.raises(ValueError, match="one row for each of the 13 times"):
        plots.singular_values_in_time(flow, modes[1:])
    with pytest.raises(ValueError, match=r"must be a ufm\.dynamics\.Trajectory"):
        plots.measures_in_time("flow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`checks` must hold"):
        plots.margin_phase({})
    with pytest.raises(ValueError, match="`when` must be"):
        plots.condensation_cosines(found, when="never")
    with pytest.raises(ValueError, match="at least 2 units that grew"):
        plots.condensation_cosines(found._replace(growth=np.zeros(40)))
