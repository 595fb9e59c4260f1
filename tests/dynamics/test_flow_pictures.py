"""Pictures of flows show the numbers of the flows."""

import numpy as np
import pytest

from ufm.dynamics import aligned_start, condensation, direction_check, gradient_flow, logistic_modes

pytest.importorskip("diffrax")

from flow_examples import ENTROPY, PROBLEM, SIZES, X, Y


@pytest.mark.slow
def test_pictures_show_what_is_given() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    from ufm import plots

    start = aligned_start(PROBLEM, SIZES)
    flow = gradient_flow(PROBLEM, times=np.linspace(1, 100, 12), initial=start)  # type: ignore[arg-type]
    modes = logistic_modes(PROBLEM, SIZES, flow.times)
    ax = plots.singular_values_in_time(flow, modes)
    drawn = [line.get_ydata() for line in ax.lines]
    np.testing.assert_array_equal(drawn[:3], modes.T)
    np.testing.assert_array_equal(drawn[3:], flow.logit_singular_values.T)
    ax = plots.measures_in_time(flow, ("objective", "margin"), predicted={"objective": 0.1})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), flow.objective[1:])
    assert ax.get_legend().get_texts()[0].get_text() == "objective"
    free = gradient_flow(ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2)  # type: ignore[arg-type]
    check = direction_check(free)
    ax = plots.margin_phase({"a flow": check})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), check.angle)
    found = condensation("x2tanh", X, Y, width=40)
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
