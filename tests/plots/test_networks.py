from typing import Any

import numpy as np
import pytest
import target_networks
from synthetic import a_network, minimiser
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402

from ufm import plots  # noqa: E402
from ufm.networks import ModelComparison, ModelComparisons, compare_with_model  # noqa: E402
from ufm.plots.networks import CLASSES, MATRICES  # noqa: E402
from ufm.plots.style import DARK, dark_style  # noqa: E402


@pytest.fixture(scope="module")
def report() -> ModelComparison:
    return compare_with_model(a_network(noise=0.1, weights=1.1 * minimiser().weights[0]))


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    yield
    plt.close("all")


@for_each("quantity", MATRICES)
def test_matrices_are_those_of_the_report(report: ModelComparison, quantity: str) -> None:
    ax = plots.network_matrices(report, quantity)
    measured, predicted = ax.images
    field = MATRICES[quantity][0]
    np.testing.assert_array_equal(measured.get_array(), getattr(report.measured, field))
    np.testing.assert_array_equal(predicted.get_array(), getattr(report.predicted, field))
    assert measured.get_clim() == predicted.get_clim()
    assert measured.get_extent()[1] < predicted.get_extent()[0]
    assert {"measured", "predicted"} <= {text.get_text() for text in ax.texts}


@for_each("quantity", CLASSES)
def test_classes_are_those_of_the_report(report: ModelComparison, quantity: str) -> None:
    ax = plots.network_classes(report, quantity)
    by_name = {line.get_label(): line for line in ax.lines}
    field = CLASSES[quantity][0]
    for name, state in (("measured", report.measured), ("predicted", report.predicted)):
        np.testing.assert_array_equal(by_name[name].get_ydata(), getattr(state, field))
    low, high = ax.get_ylim()
    assert low <= min(line.get_ydata().min() for line in ax.lines)
    assert high >= max(line.get_ydata().max() for line in ax.lines)
    assert "from 50 to 20 samples" in ax.get_xlabel()


@for_each(
    ("draw", "quantity", "axes"),
    [
        (plots.network_matrices, "logits", ("tag", "tag set")),
        (plots.network_matrices, "weight gram", ("tag", "tag")),
        (plots.network_classes, "mean norms", ("tag set, from 30 to 6 samples", "norm")),
        (plots.network_classes, "weight norms", ("tag, from 44 to 36 samples", "norm")),
        (plots.network_balance, "", ("", "")),
    ],
)
def test_rows_of_other_targets_have_their_names(
    draw: Any, quantity: str, axes: tuple[str, str]
) -> None:
    trained = target_networks.a_network("multi-label")
    report = compare_with_model(trained, solution=target_networks.minimiser("multi-label"))
    ax = draw(report, quantity) if quantity else draw(report)
    assert ax.get_xlabel().startswith(axes[0])
    assert ax.get_ylabel().startswith(axes[1])


def test_bars_sum_to_the_objectives(report: ModelComparison) -> None:
    ax = plots.network_losses(report)
    ends = {round(float(patch.get_x() + patch.get_width()), 12) for patch in ax.patches}
    for state in (report.measured, report.predicted):
        assert round(state.loss.total, 12) in ends
    (line,) = (line for line in ax.lines if line.get_label() == "lower bound of the minimum")
    assert report.solution.certificate is not None
    assert line.get_xdata()[0] == report.solution.certificate.lower_bound


@pytest.mark.nightly
def test_a_balanced_network_lies_on_the_line(report: ModelComparison) -> None:
    ax = plots.network_balance(compare_with_model(a_network()))
    line, points, edge = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    np.testing.assert_allclose(points.get_xdata(), points.get_ydata(), rtol=1e-5)
    assert (points.get_xdata().size, edge.get_xdata().size) == (
        3,
        3,
    )  # class means of rank 3 in 6 dimensions
    assert edge.get_label() == "3 directions with less, at the edge"
    np.testing.assert_array_equal(edge.get_xdata(), ax.get_xlim()[0])
    off = plots.network_balance(
        compare_with_model(
            a_network(weights=minimiser().weights[0] @ np.diag([2.0, 1, 1, 1, 1, 1]))
        )
    )
    assert not np.allclose(off.lines[1].get_xdata(), off.lines[1].get_ydata(), rtol=1e-2)
    units = plots.network_balance(compare_with_model(a_network(True)))
    assert units.lines[1].get_label() == "units of the network"


def test_errors_are_those_of_the_rows(report: ModelComparison) -> None:
    ax = plots.network_errors(report, ["margins", "weight gram"])
    (line,) = (line for line in ax.lines if line.get_label() == "class by class")
    np.testing.assert_array_equal(
        line.get_xdata(), [report.row("margins").error, report.row("weight gram").error]
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["margins", "weight gram"]
    both = plots.network_errors(ModelComparisons((report, report._replace(name="another"))))
    labels = {line.get_label() for line in both.lines}
    assert {"one layer", "another"} <= labels


def test_dark_pictures_have_light_ink(report: ModelComparison) -> None:
    with dark_style():
        ax = plots.network_losses(report)
    assert to_hex(ax.get_facecolor()) == DARK["axes.facecolor"]
    assert np.mean(to_rgb(ax.xaxis.label.get_color())) > 0.8
    assert all(np.mean(to_rgb(text.get_color())) > 0.8 for text in ax.texts)


@for_each(
    ("name", "arguments", "message"),
    [
        (
            "network_matrices",
            {"report": 1},
            "`report` must be the result of ufm.networks.compare_with_model, got int",
        ),
        ("network_losses", {"report": None}, "`report` must be the result of"),
        ("network_balance", {"report": "x"}, "`report` must be the result of"),
        ("network_errors", {"report": 1}, "`report` must be the result of"),
        ("network_matrices", {"quantity": "norms"}, "`quantity` must be one of weight cosines"),
        ("network_classes", {"quantity": "weight gram"}, "`quantity` must be one of weight norms"),
        ("network_errors", {"quantities": ["beauty"]}, "`quantity` must be one of objective"),
    ],
)
def test_refuses(
    report: ModelComparison, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(plots, name)(**{"report": report} | arguments)
