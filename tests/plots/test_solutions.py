"""Pictures of one solution draw what they are given."""

from typing import Any

import numpy as np
import pytest
from tables import for_each

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from drawn_examples import BOUND, COMPARISON, LAYERS, OBJECTIVE, STEPS, line, recorded, rows  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from ufm import geometry, plots  # noqa: E402
from ufm.plots.solutions import QUANTITIES, VERDICTS  # noqa: E402


class TestCosineMatrix:
    def test_shows_the_cosines_from_minus_one_to_one(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(5, 3)) * np.arange(1, 6)[:, None]
        for ax in (plots.cosine_matrix(vectors), plots.cosine_matrix(gram=vectors @ vectors.T)):
            (image,) = ax.images
            np.testing.assert_allclose(image.get_array(), geometry.cosines(vectors), atol=1e-14)
            assert image.get_clim() == (-1, 1)

    def test_values_are_written_in_up_to_ten_classes(self) -> None:
        ax = plots.cosine_matrix(geometry.simplex_etf(4), class_labels=["cat", "dog", "emu", "fox"])
        assert {text.get_text() for text in ax.texts} == {"1.00", "\N{MINUS SIGN}0.33"}
        assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog", "emu", "fox"]
        ax = plots.cosine_matrix(geometry.orthogonal_frame(11))
        assert not ax.texts

    def test_rounded_zeros_have_no_sign(self) -> None:
        ax = plots.cosine_matrix(gram=[[1.0, -1e-9], [-1e-9, 1.0]])
        assert [text.get_text() for text in ax.texts] == ["1.00", "0.00", "0.00", "1.00"]

    def test_a_zero_vector_has_no_cosines(self) -> None:
        ax = plots.cosine_matrix(geometry.orthogonal_frame(3, norms=[1.0, 0.0, 2.0]))
        expected = [[False, True, False], [True, True, True], [False, True, False]]
        assert ax.images[0].get_array().mask.tolist() == expected
        assert len(ax.texts) == 4

    def test_many_classes_keep_their_tick_labels_apart(self) -> None:
        assert len(plots.cosine_matrix(np.eye(100)).get_xticks()) == 20

    def test_the_colorbar_is_optional(self) -> None:
        assert len(plots.cosine_matrix(np.eye(3)).figure.axes) == 2
        assert len(plots.cosine_matrix(np.eye(3), colorbar=False).figure.axes) == 1

    @for_each(
        ("arguments", "message"),
        [
            ({}, "got neither"),
            ({"vectors": np.eye(2), "gram": np.eye(2)}, "got both"),
            ({"vectors": np.ones(3)}, "`vectors` must be an array of 2 dimension"),
            ({"vectors": np.ones((0, 3))}, "not empty"),
            ({"vectors": [[np.nan, 1.0]]}, "`vectors` must be finite; 1 of its entries"),
            ({"gram": np.ones((2, 3))}, "`gram` must be a Gram matrix"),
            ({"gram": [[1.0, 0.5], [0.0, 1.0]]}, "`gram` must be a Gram matrix"),
            ({"gram": -np.eye(2)}, "`gram` must be a Gram matrix"),
            ({"vectors": np.eye(2), "class_labels": "abc"}, "must name 2 classes, got 3"),
        ],
    )
    def test_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plots.cosine_matrix(**arguments)


class TestTrajectory:
    def test_lines_are_the_records(self) -> None:
        records = recorded()
        ax = plots.trajectory(records, ("nc1", "objective"))
        np.testing.assert_array_equal(
            line(ax, QUANTITIES["nc1"]), np.stack([records.step, records.nc1], 1)
        )
        np.testing.assert_array_equal(
            line(ax, "objective"), np.stack([records.step, records.objective], 1)
        )
        assert ax.get_yscale() == "log"

    def test_predicted_values_are_dashed_lines_of_the_same_colour(self) -> None:
        ax = plots.trajectory(
            recorded(), ("nc1", "nc2_weights"), predicted={"nc2_weights": 0.25, "nc1": 0.0}
        )
        (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        (solid,) = [line for line in ax.lines if line.get_label() == QUANTITIES["nc2_weights"]]
        assert list(dashed.get_ydata()) == [0.25, 0.25]
        assert to_hex(dashed.get_color()) == to_hex(solid.get_color())
        assert any(line.get_label().endswith("(predicted: 0)") for line in ax.lines)

    def test_one_quantity_names_the_axis(self) -> None:
        assert plots.trajectory(recorded(), "objective").get_ylabel() == "objective"

    def test_zeros_and_nan_are_gaps(self) -> None:
        ax = plots.trajectory(recorded(nc1=np.array([1, 0, np.nan, 0.1, 0, 0])), ("nc1",))
        ax.figure.canvas.draw()
        ax = plots.trajectory(recorded(nc4=np.zeros(6)), ("nc4",))
        assert ax.get_yscale() == "linear"
        ax.figure.canvas.draw()

    @for_each(
        ("arguments", "message"),
        [
            ((None,), "pass `record_every` to `solve`"),
            ((recorded(), ("nc5",)), "`quantities` must be among objective.*got 'nc5'"),
            ((recorded(), ("step",)), "got 'step'"),
            ((recorded(), ()), "got 'none'"),
            ((recorded(), ("nc1",), {"nc3": 1.0}), "`predicted` must hold.*got 'nc3'"),
            ((recorded(), ("nc1",), {"nc1": np.nan}), "`predicted` must hold"),
            ((recorded(nc1=np.ones(3)), ("nc1",)), r"`trajectory.nc1` must have shape \(6,\)"),
            ((recorded(step=np.ones(0)), ("nc1",)), "`trajectory.step`.*not empty"),
        ],
    )
    def test_refuses(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plots.trajectory(*arguments)


class TestSpectrum:
    def test_found_and_predicted_in_descending_order(self) -> None:
        ax = plots.singular_values([1.0, 3.0, 2.0], [3.1, 2.1, 1.1])
        np.testing.assert_array_equal(line(ax, "found"), [[1, 3], [2, 2], [3, 1]])
        np.testing.assert_array_equal(line(ax, "predicted"), [[1, 3.1], [2, 2.1], [3, 1.1]])

    def test_zeros_and_large_values_are_inside(self) -> None:
        for values in ([0.0, 0.0], [5.0, 0.0]):
            low, high = plots.singular_values(values).get_ylim()
            assert low < min(values) <= max(values) < high

    @for_each(
        ("values", "predicted", "message"),
        [
            ([1.0, -1.0], None, "`values` must not be negative"),
            ([1.0], [-1.0], "`predicted` must not be negative"),
            ([1.0, np.inf], None, "`values` must be finite"),
            ([1.0, 2.0], [1.0], r"`predicted` must have shape \(2,\)"),
            ([[1.0]], None, "`values` must be an array of 1 dimension"),
        ],
    )
    def test_refuses(self, values: Any, predicted: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plots.singular_values(values, predicted)


class TestPredictedAgainstFound:
    def test_dots_are_the_errors_and_bars_the_tolerances(self) -> None:
        ax = plots.predicted_against_found(COMPARISON)
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == [row.quantity for row in COMPARISON.rows]
        left, right = ax.get_xlim()
        np.testing.assert_allclose(line(ax, "agrees"), [[1e-12, 0]])
        np.testing.assert_allclose(line(ax, "differs"), [[1e-3, 2]])
        np.testing.assert_allclose(line(ax, "undecided"), [[1e-9, 3]])
        ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
        np.testing.assert_allclose(ends, [1e-9, left, 1e-6, right])
        assert ax.yaxis_inverted()

    def test_verdicts_differ_in_colour_and_marker(self) -> None:
        ax = plots.predicted_against_found(COMPARISON)
        points = [found for found in ax.lines if found.get_label() in VERDICTS]
        assert (
            len({found.get_marker() for found in points})
            == len({found.get_color() for found in points})
            == 3
        )

    def test_errors_off_the_scale_are_at_its_edges(self) -> None:
        ax = plots.predicted_against_found(
            rows((0.0, 0.0, "agrees"), (np.inf, 0.0, "differs"), (np.nan, 1.0, "differs"))
        )
        left, right = ax.get_xlim()
        np.testing.assert_array_equal(line(ax, "agrees"), [[left, 0]])
        np.testing.assert_array_equal(line(ax, "differs"), [[right, 1], [right, 2]])
        ax.figure.canvas.draw()

    def test_refuses_what_is_no_comparison(self) -> None:
        for bad in (rows(), "comparison", None):
            with pytest.raises(ValueError, match="`comparison` must be the result of"):
                plots.predicted_against_found(bad)


class TestCertificateConvergence:
    def test_lines_are_the_bounds_and_the_gap(self) -> None:
        _, (ax, gap_ax) = plt.subplots(1, 2)
        assert plots.certificate_convergence(STEPS, OBJECTIVE, BOUND, ax, gap_ax=gap_ax) is ax
        np.testing.assert_array_equal(line(ax, "objective"), np.stack([STEPS, OBJECTIVE], 1))
        np.testing.assert_array_equal(line(ax, "lower bound"), np.stack([STEPS, BOUND], 1))
        np.testing.assert_array_equal(gap_ax.lines[0].get_ydata(), OBJECTIVE - BOUND)
        assert gap_ax.get_yscale() == "log"

    def test_unknown_bounds_and_closed_gaps_are_drawn(self) -> None:
        _, (ax, gap_ax) = plt.subplots(1, 2)
        plots.certificate_convergence(
            [0, 1, 2], [2.0, 1.0, 1.0], [-np.inf, 0.5, 1.0], ax, gap_ax=gap_ax
        )
        ax.figure.canvas.draw()
        plots.certificate_convergence([0], [1.0], [1.0 + 1e-15]).figure.canvas.draw()

    @for_each(
        ("arguments", "message"),
        [
            ((STEPS, BOUND, OBJECTIVE), "`lower_bound` must not exceed `objective`.*at step 0"),
            ((STEPS, OBJECTIVE[:3], BOUND), r"`objective` must have shape \(5,\), got \(3,\)"),
            ((STEPS, OBJECTIVE, BOUND[0]), r"`lower_bound` must have shape \(5,\), got \(\)"),
            ((STEPS[::-1], OBJECTIVE, BOUND), "`steps` must increase"),
            ((STEPS, OBJECTIVE * np.nan, BOUND), "must not contain NaN"),
            (([], [], []), "`steps` must be an array of 1 dimension.*not empty"),
        ],
    )
    def test_refuses(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plots.certificate_convergence(*arguments)


def test_layers_of_a_deep_model() -> None:
    ax = plots.layerwise(LAYERS)
    etf, frame, alignment, adjacent = ax.get_lines()
    assert list(frame.get_ydata()) == [
        layer.collapse.nc2_features.orthogonal_distance for layer in LAYERS.layers
    ]
    assert list(etf.get_ydata()) == [
        layer.collapse.nc2_features.etf_distance for layer in LAYERS.layers
    ]
    assert list(alignment.get_xdata()) == list(adjacent.get_xdata()) == [0, 2, 4]
    assert list(alignment.get_ydata()) == [
        1 - layer.weights.alignment for layer in LAYERS.layers if layer.weights
    ]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == [
        "features\nrank 3",
        "layer 1\nbefore ReLU\nrank 3",
        "layer 1\nrank 2",
        "layer 2\nbefore ReLU\nrank 2",
        "layer 2\nrank 2",
        "logits\nrank 2",
    ]
