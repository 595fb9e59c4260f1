"""Pictures of a census and of paths between minima."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from drawn_examples import CENSUS, PATH, counted, ended, line, walked  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from ufm import plots  # noqa: E402


class TestCensus:
    def test_minima_are_filled_and_what_is_not_settled_is_open(self) -> None:
        ax = plots.census(CENSUS)
        np.testing.assert_allclose(line(ax, "minima"), [[0.3, 600], [0.5, 70]])
        np.testing.assert_allclose(line(ax, "not converged"), [[0.4, 2]])
        looks = {drawn.get_label(): to_hex(drawn.get_markerfacecolor()) for drawn in ax.lines}
        assert looks["not converged"] == "#ffffff"
        assert looks["minima"] != "#ffffff"
        assert {text.get_text() for text in ax.texts} == {"rank 4, deep neural collapse", "rank 3"}
        assert line(ax, "lower bound")[0, 0] == 0.2

    def test_counts_are_seen_down_to_one_run(self) -> None:
        low, high = plots.census(counted(ended(0.3, 1), ended(0.5, 1000))).get_ylim()
        assert low < 1 < 1000 < high

    def test_without_a_bound_or_a_minimum_nothing_is_made_up(self) -> None:
        ax = plots.census(counted(ended(0.4, 2, False)))
        assert [drawn.get_label() for drawn in ax.lines] == ["not converged"]
        assert not ax.texts

    def test_refuses_an_empty_census(self) -> None:
        for found in (counted(), "this"):
            with pytest.raises(ValueError, match="at least one run that ended"):
                plots.census(found)  # type: ignore[arg-type]


class TestPath:
    def test_the_path_is_drawn_at_its_positions_and_the_straight_line_evenly(self) -> None:
        ax = plots.path(PATH)
        np.testing.assert_allclose(
            line(ax, "path found, barrier at most 0.3"),
            np.column_stack([PATH.position, PATH.objective]),
        )
        np.testing.assert_allclose(
            line(ax, "straight line, barrier 0.7"), [[0, 1], [0.5, 1.7], [1, 0.8]]
        )
        np.testing.assert_allclose(line(ax, "highest point"), [[0.25, 1.3]])

    def test_no_barrier_has_no_highest_point(self) -> None:
        ax = plots.path(walked([1.0, 1.0, 1.0], [1.0, 2.0, 1.0]))
        labels = [drawn.get_label() for drawn in ax.lines]
        assert "path found, no barrier" in labels
        assert "highest point" not in labels

    def test_refuses(self) -> None:
        with pytest.raises(
            ValueError, match=r"`found` must be the result of ufm\.landscape\.connect, got str"
        ):
            plots.path("this")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`objective` must be finite"):
            plots.path(walked([1.0, np.nan, 1.0], [1.0, 1.0]))
