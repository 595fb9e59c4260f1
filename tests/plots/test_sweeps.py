"""Pictures of sweeps."""

from typing import Any

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


from ufm import plots  # noqa: E402
from ufm.problems import variable_of  # noqa: E402

xr = pytest.importorskip("xarray")

from drawn_examples import legend, line, swept  # noqa: E402


class TestSweep:
    def test_a_line_per_group_over_one_axis(self) -> None:
        dataset = swept({"imbalance_ratio": 12})
        ax = plots.sweep(dataset, "margin")
        for group, name in enumerate(("majority", "minority")):
            expected = np.stack([dataset.imbalance_ratio, dataset.margin[:, group]], axis=1)
            np.testing.assert_array_equal(line(ax, name), expected)
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == (
            "imbalance ratio",
            "margin",
            "log",
        )
        assert (
            plots.sweep(dataset.assign_coords(imbalance_ratio=np.arange(1.0, 13))).get_xscale()
            == "linear"
        )

    def test_a_line_per_pair_of_groups_and_one_of_an_index(self) -> None:
        dataset = swept({"imbalance_ratio": 12})
        ax = plots.sweep(dataset)
        assert legend(ax) == ["within majority", "majority to minority", "within minority"]
        assert ax.get_ylabel() == "cosine between classifiers"
        ax = plots.sweep(dataset, "weight_cosine[1,1]")
        assert ax.get_ylabel().endswith("within minority")
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), dataset.weight_cosine[:, 1, 1])

    def test_the_points_of_an_axis_are_put_in_order(self) -> None:
        dataset = swept({"imbalance_ratio": 3}, {"imbalance_ratio": [5.0, 1.0, 2.0]})
        np.testing.assert_array_equal(
            plots.sweep(dataset, "objective").lines[0].get_xydata(), [[1, 2], [2, 3], [5, 1]]
        )

    def test_predicted_values_are_open(self) -> None:
        ax = plots.sweep(
            swept({"imbalance_ratio": 4}, predicted_margin=np.full((4, 2), 7.0)), "margin"
        )
        hollow = [
            found
            for found in ax.lines
            if found.get_linestyle() == "None" and len(found.get_xdata())
        ]
        assert [list(found.get_ydata()) for found in hollow] == [[7.0] * 4] * 2
        assert all(found.get_markerfacecolor() == "none" for found in hollow)
        assert ax.get_legend().get_title().get_text() == "open markers: predicted"
        # What no theorem predicts is not drawn.
        for nothing in ({"predicted_rank": np.full(4, -1)}, {"predicted_rank": np.full(4, np.nan)}):
            assert len(plots.sweep(swept({"imbalance_ratio": 4}, **nothing), "rank").lines) == 1

    def test_points_that_are_not_certified_are_crossed_and_missing_ones_grey(self) -> None:
        status = np.array([1, 2, 1, -1, 1], "int8")
        bounds = np.array([1, 2, np.nan, np.nan, 5])
        dataset = swept(
            {"x": 5}, status=status, certified=np.array([1, 0, 0, 0, 1], bool), lower_bound=bounds
        )
        ax = plots.sweep(dataset, "objective")
        # The third has no bound and converged: nothing is wrong with it.
        np.testing.assert_array_equal(line(ax, "not certified"), [[dataset.x[1], 2]])
        assert legend(ax) == ["not certified", "not computed yet"]
        assert np.isnan(ax.lines[0].get_ydata()[3])

    @pytest.mark.slow
    @for_each("poor", [5, 400])
    def test_two_axes_make_a_heat_map_with_thresholds(self, poor: int) -> None:
        shape = (20, 25)
        status = np.ones(500, "int8")
        status[:poor], status[-30:] = 6, -1
        dataset = swept({"weight_decay": 20, "imbalance_ratio": 25}, status=status.reshape(shape))
        dataset["certified"] = dataset.status == 1
        ax = plots.sweep(dataset)
        assert (ax.get_xlabel(), ax.get_ylabel()) == (
            variable_of("weight_decay").picture_label,
            "imbalance ratio",
        )
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        values = ax.collections[0].get_array()
        np.testing.assert_array_equal(values.mask, (dataset.status == -1).T)
        np.testing.assert_array_equal(
            values[~values.mask], dataset.weight_cosine[..., 1, 1].values.T[~values.mask]
        )
        assert legend(ax) == ["not computed yet", "majority classifiers coincide", "not certified"]
        ax.figure.canvas.draw()

    def test_what_is_drawn_over_two_axes_where_there_is_no_cosine(self) -> None:
        lengths = {"x": 9, "y": 10}
        nothing = np.full((9, 10, 2, 2), np.nan)
        ax = plots.sweep(swept(lengths, weight_cosine=nothing))
        assert ax.figure.axes[1].get_ylabel() == "margin\nminority"
        no_margin = np.full((9, 10, 2), np.nan)
        ax = plots.sweep(swept(lengths, weight_cosine=nothing, margin=no_margin))
        assert ax.figure.axes[1].get_ylabel() == "certified relative gap"
        no_gap = np.full((9, 10), np.nan)
        ax = plots.sweep(
            swept(lengths, weight_cosine=nothing, margin=no_margin, relative_gap=no_gap)
        )
        assert ax.figure.axes[1].get_ylabel() == "objective"
        ax = plots.sweep(swept(lengths), "margin[0]")
        assert ax.figure.axes[1].get_ylabel() == "margin\nmajority"

    def test_a_short_second_axis_makes_lines(self) -> None:
        names = np.array(["CrossEntropy", "SquaredError"])
        for lengths in ({"loss": 2, "imbalance_ratio": 12}, {"imbalance_ratio": 12, "loss": 2}):
            dataset = swept(lengths, {"loss": names})
            ax = plots.sweep(dataset, "objective")
            assert legend(ax) == list(names)
            found = line(ax, "SquaredError")
            np.testing.assert_array_equal(found[:, 1], dataset.objective.sel(loss="SquaredError"))
        assert legend(plots.sweep(swept({"depth": 3, "x": 12}), "objective"))[0] == "depth = 1"

    def test_names_are_ticks_and_single_values_a_title(self) -> None:
        dataset = swept({"loss": 2, "depth": 1}, {"loss": np.array(["ce", "mse"]), "depth": [2]})
        ax = plots.sweep(dataset, "objective")
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["ce", "mse"]
        assert ax.get_title() == "depth = 2"

    def test_a_list_of_points_is_drawn_over_what_increases_along_it(self) -> None:
        along = {"a": ("point", [3.0, 1.0, 2.0]), "b": ("point", [1.0, 2.0, 4.0])}
        dataset = swept({"point": 3}).drop_vars("point").assign_coords(along)
        assert plots.sweep(dataset, "objective").get_xlabel() == "b"
        assert plots.sweep(dataset.drop_vars("b"), "objective").get_xlabel() == "point"

    def test_outputs_of_targets_are_no_groups_of_classes(self) -> None:
        along = swept({"targets.noise": 12})
        assert legend(plots.sweep(along, "margin")) == ["output 0", "output 1"]
        assert plots.sweep(along).get_xlabel() == "targets' noise"
        both = swept({"targets.noise": 12, "weight_decay": 10}).drop_vars(
            ["margin", "weight_cosine", "coincidence_level"]
        )
        ax = plots.sweep(both)
        assert ax.figure.axes[1].get_ylabel() == "rank"

    def test_rounding_is_drawn_as_a_constant(self) -> None:
        cosines = -1 / 3 + 1e-9 * np.arange(12)[:, None, None] * np.ones((2, 2))
        ax = plots.sweep(swept({"imbalance_ratio": 12}, weight_cosine=cosines))
        assert np.ptp(ax.get_ylim()) > 0.05
        zero = plots.sweep(swept({"imbalance_ratio": 12}, objective=np.zeros(12)), "objective")
        assert np.ptp(zero.get_ylim()) > 0.05

    def test_many_groups_are_shaded(self) -> None:
        norms = np.arange(24.0).reshape(2, 12)
        dataset = (
            swept({"x": 2})
            .assign(weight_norm=(("x", "class_group"), norms))
            .drop_dims(["group", "other_group"])
        )
        dataset = dataset.rename(class_group="group").assign_attrs(problem="{}")
        dataset["cosine"] = (("x", "group", "other_group"), np.ones((2, 12, 12)))
        ax = plots.sweep(dataset, "weight_norm")
        assert len(ax.lines) == 12
        assert legend(ax) == ["group 0", "group 11"]
        with pytest.raises(ValueError, match=r"78 pairs of groups.*such as cosine\[0,1"):
            plots.sweep(dataset, "cosine")

    @for_each(
        ("dataset", "quantity", "message"),
        [
            (
                swept({"a": 2, "b": 3, "c": 4}),
                None,
                r"3 axes .*a \(2\), b \(3\), c \(4\).*isel\(a=0\) or --select a=VALUE",
            ),
            (swept({"a": 1}), None, "a single point"),
            (swept({"a": 2}), "colour", "`quantity` must be one of objective.*got 'colour'"),
            (swept({"a": 2}), "margin[2]", "margin takes 1 numbers below 2"),
            (swept({"a": 2}), "margin[0,1]", "margin takes 1 numbers"),
            (swept({"a": 2}), "objective[0]", "objective takes no index"),
            (swept({"a": 2}), "margin[-1]", "`quantity` must be one of"),
            ("phase.zarr", None, "`dataset` must be of ufm.sweep"),
            (xr.Dataset(), None, "`dataset` must be of ufm.sweep"),
        ],
    )
    def test_refuses(self, dataset: Any, quantity: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plots.sweep(dataset, quantity)
