"""Series that are empty, of one point or masked: drawn with gaps, or refused by name."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

pytest.importorskip("xarray")

from drawn_examples import CONDENSED, DIAGRAM, MITIGATED, legend, recorded, swept  # noqa: E402

from ufm import plots  # noqa: E402
from ufm.plots.style import marked_places  # noqa: E402


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(ax: Any) -> Any:
    ax.figure.canvas.draw()
    return ax


def test_markers_are_at_points_that_are_drawn() -> None:
    nan = np.nan
    assert marked_places(np.full(30, nan)).tolist() == []
    assert marked_places(np.array([nan, 1.0, nan, 2.0, 3.0, nan, 4.0])).tolist() == [1, 3, 4, 6]
    many = marked_places(np.where(np.arange(100) < 50, np.arange(100.0), nan), row=1)
    assert 7 <= len(many) <= 10
    assert np.all(many < 50)


LENGTHS: list[dict[str, int]] = [{"num_minority": 5}, {"num_minority": 30}, {"depth": 3, "x": 30}]


@pytest.mark.slow
@for_each("lengths", LENGTHS)
@for_each("kept", [0, 1])
def test_sweeps_with_a_series_of_nothing_or_of_one_point(
    lengths: dict[str, int], kept: int
) -> None:
    shape = tuple(lengths.values())
    margin = np.full((*shape, 2), np.nan)
    margin[..., 0] = 1.0
    margin[(*(0 for _ in shape), 1)] = 2.0 if kept else np.nan
    for name in ("margin", "margin[1]"):
        drawn(plots.sweep(swept(lengths, margin=margin), name))


@for_each("lengths", LENGTHS)
def test_sweeps_of_which_nothing_is_solved(lengths: dict[str, int]) -> None:
    gone = np.full(tuple(lengths.values()), -1, "int8")
    drawn(plots.sweep(swept(lengths, status=gone), "objective"))


def test_sweeps_over_an_axis_of_whole_numbers_where_nothing_is_defined() -> None:
    nothing = np.full((5, 2, 2), np.nan)
    along = {"num_minority": [1, 3, 5, 7, 9]}
    ax = drawn(
        plots.sweep(swept({"num_minority": 5}, along, weight_cosine=nothing), "weight_cosine[1,1]")
    )
    assert ax.get_xlim()[0] < 1
    assert ax.get_xlim()[1] > 9


def test_a_trajectory_of_zeros_beside_others() -> None:
    drawn(plots.trajectory(recorded(nc1=np.zeros(6), nc3=np.full(6, np.nan))))
    drawn(plots.trajectory(recorded(objective=np.full(6, np.nan)), "objective"))


def test_a_phase_diagram_of_one_row_has_no_curves() -> None:
    fields = {name: getattr(DIAGRAM, name) for name in DIAGRAM._fields}
    row = {name: value[:1] for name, value in fields.items() if np.ndim(value) == 2}
    ax = drawn(plots.phase_diagram(DIAGRAM._replace(**row, y=DIAGRAM.y[:1])))
    assert legend(ax) == []
    with pytest.raises(ValueError, match=r"`diagram.x` must be finite"):
        plots.phase_diagram(DIAGRAM._replace(x=DIAGRAM.x * np.nan))


def test_mitigations_of_nothing() -> None:
    drawn(plots.mitigation_curves(MITIGATED._replace(rows=())))
    zero = MITIGATED.rows[0]._replace(norm_ratio=np.zeros(9))
    drawn(plots.mitigation_curves(MITIGATED._replace(rows=(zero,)), "norm_ratio"))


def test_units_without_a_direction_are_left_out() -> None:
    final = np.array(CONDENSED.final)
    final[0], final[1] = 0, np.nan
    drawn(plots.weight_directions(CONDENSED._replace(final=final)))
    with pytest.raises(ValueError, match="`found` must have a unit with finite weights"):
        plots.weight_directions(CONDENSED._replace(final=0 * final[2:3].repeat(12, axis=0)))


def test_masked_entries_are_no_numbers() -> None:
    masked = np.ma.masked_array([3.0, 2.0, 1.0], mask=[False, True, False])
    with pytest.raises(ValueError, match="`values` must be finite; 1 of its entries"):
        plots.singular_values(masked)
    with pytest.raises(ValueError, match="must not contain NaN"):
        plots.certificate_convergence([1, 2, 3], masked, [0.0, 0.0, 0.0])
