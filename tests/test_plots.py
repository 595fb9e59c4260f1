import functools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

import ufm  # noqa: E402
from ufm import geometry, plots  # noqa: E402
from ufm.certificates import Certificate  # noqa: E402
from ufm.comparison import Comparison, Row  # noqa: E402
from ufm.dynamics.condensation import Condensation  # noqa: E402
from ufm.dynamics.margin_direction import DirectionCheck  # noqa: E402
from ufm.landscape.census import Census, EndPoint  # noqa: E402
from ufm.landscape.mode_connectivity import MinimaPath  # noqa: E402
from ufm.mitigation import Mitigated, Mitigations  # noqa: E402
from ufm.networks import TrainedNetwork, held_against_model  # noqa: E402
from ufm.phase import PhaseDiagram  # noqa: E402
from ufm.plots.solutions import QUANTITIES, VERDICTS  # noqa: E402
from ufm.plots.sweeps import SWEPT  # noqa: E402
from ufm.solution import Trajectory  # noqa: E402
from ufm.status import Status  # noqa: E402

xr = pytest.importorskip("xarray")


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a plot was shown")

    monkeypatch.setattr(plt, "show", refuse)
    settings = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == settings
    plt.close("all")


def recorded(**changes: Any) -> Trajectory:
    steps = np.arange(6)
    columns = {name: (k + 1) * 10.0**-steps for k, name in enumerate(Trajectory._fields)}
    return Trajectory(**(columns | {"step": 10 * steps} | changes))


def rows(*errors_and_tolerances: tuple[float, float, str]) -> Comparison:
    found = tuple(
        Row(f"quantity {k}", 1.0, 1.0, error, tolerance, verdict)
        for k, (error, tolerance, verdict) in enumerate(errors_and_tolerances)
    )
    return Comparison("a-theorem", "the certified gap", found)


COMPARISON = rows((1e-12, 1e-9, "agrees"), (0.0, 0.0, "agrees"), (1e-3, 1e-6, "differs"), (1e-9, np.inf, "undecided"))
STEPS = np.arange(5)
OBJECTIVE = 1 + 10.0**-STEPS
BOUND = 1 - 10.0**-STEPS

LAYERS = ufm.layerwise(
    ufm.Problem(
        class_counts=(1.0,) * 3,
        feature_dim=3,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
        hidden_dims=(3, 3),
        activation="relu",
    ),
    ufm.Parameters((np.diag([1.0, 2.0, -1.0]), np.eye(3) + 0.1, np.eye(3)), np.eye(3), None),
)
RATIO, DECAY = np.geomspace(1, 100, 5), np.geomspace(1e-3, 1e-1, 4)
LEVEL = np.log(DECAY[:, None] * RATIO[None, :])
GRID = np.clip(LEVEL, -0.1, 1)
DIAGRAM = PhaseDiagram(
    "imbalance_ratio",
    "weight_decay",
    RATIO,
    DECAY,
    *[GRID] * 4,
    LEVEL,
    LEVEL - 1,
    *[GRID] * 5,
    np.ones(GRID.shape, int),
    seconds=1.0,
)
STRENGTH = np.linspace(0, 2, 9)
MITIGATED = Mitigations(
    (
        Mitigated(
            "oversampling",
            STRENGTH,
            1 - STRENGTH,
            1 + STRENGTH,
            np.abs(1 - STRENGTH),
            STRENGTH,
            STRENGTH < 0.5,
            0 * STRENGTH,
        ),
    ),
    0.01,
)


def ended(value: float, runs: int, settled: bool = True, rank: int = 4, name: str = "") -> EndPoint:
    """A point at which so many runs ended, converged or not."""
    converged, others = (runs, 0) if settled else (0, runs)
    status = Status.CONVERGED if settled else Status.STALLED
    nothing: Any = None
    return EndPoint(
        name, settled, value, converged, others, rank, np.ones(4), np.eye(4), status, 1e-12, parameters=nothing, run=0
    )


def counted(*points: EndPoint, lower_bound: float = np.nan) -> Census:
    nothing: Any = None
    certificate = Certificate(1.0, lower_bound, 1.0, 1e-9, 1.0, "a bound", True)
    return Census(nothing, nothing, np.zeros(0), np.zeros(0), points, certificate, 1.0, 1e-9, 0.0)


CENSUS = counted(
    ended(0.3, 600, name="deep neural collapse"), ended(0.4, 2, False), ended(0.5, 70, rank=3), lower_bound=0.2
)


def walked(objective: Any, straight: Any, tol: float = 1e-6) -> MinimaPath:
    values, line = np.asarray(objective, float), np.asarray(straight, float)
    nothing: Any = None
    high = max(values[0], values[-1])
    return MinimaPath(
        first=nothing,
        second=nothing,
        joined=True,
        position=np.linspace(0, 1, values.size) ** 2,
        objective=values,
        straight=line,
        barrier=float(np.max(values) - high),
        straight_barrier=float(np.max(line) - high),
        scale=1.0,
        tol=tol,
        highest=nothing,
        highest_gradient=1e-3,
        distance=0.5,
        given_distance=0.7,
        status=Status.CONVERGED,
        steps=100,
    )


PATH = walked([1.0, 1.1, 1.3, 0.9, 0.8], [1.0, 1.7, 0.8])


def swept(lengths: dict[str, int], coordinates: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A sweep of two groups as it could have been found: numbers that tell points, groups and pairs apart."""
    shape, dims = tuple(lengths.values()), tuple(lengths)
    base = np.arange(float(np.prod(shape))).reshape(shape)
    variables = {
        "objective": (dims, 1 + base),
        "lower_bound": (dims, 1 + base),
        "relative_gap": (dims, np.full(shape, 1e-12)),
        "certified": (dims, np.ones(shape, bool)),
        "status": (dims, np.ones(shape, "int8")),
        "rank": (dims, np.full(shape, 9, "int32")),
        "margin": ((*dims, "group"), base[..., None] + [0.0, 0.5]),
        "weight_cosine": ((*dims, "group", "other_group"), (base / base.size)[..., None, None] * [[1, 0], [0, -1]]),
        "coincidence_level": ((*dims, "group"), (base - base.mean() + 0.3)[..., None] + [0.0, -1e3]),
    }
    for name, values in changes.items():
        variables[name] = (variables.get(name.removeprefix("predicted_"), (dims, None))[0], values)
    along = {name: np.geomspace(1, 100, length) for name, length in lengths.items()} | (coordinates or {})
    return xr.Dataset(variables, along, {"problem": '{"counts": [500, 5], "sizes": [5, 5]}'})


@functools.cache
def held() -> Any:
    """A network of random features against its model."""
    generator = np.random.default_rng(0)
    means, y = generator.standard_normal((4, 6)), np.repeat(np.arange(4), (50, 50, 20, 20))
    features = means[y] + 0.1 * generator.standard_normal((140, 6))
    trained = TrainedNetwork.from_features(features, y, means, np.zeros(4), weight_decay=5e-3)
    return held_against_model(trained)


@functools.cache
def stepped() -> Any:
    """A path of gradient descent."""
    problem = ufm.Problem(
        class_counts=(3, 2),
        feature_dim=2,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
    )
    return ufm.dynamics.descent(problem, learning_rate=0.5, steps=(1, 5, 20))


ANGLES = np.linspace(0, 6, 12)
AROUND = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
CONDENSED = Condensation(
    "tanh",
    1,
    "own",
    AROUND,
    np.repeat(AROUND[:2], 6, axis=0),
    ANGLES,
    20.0 + ANGLES,
    (1.0, 0.9),
    AROUND[:2],
    ANGLES[:2],
    AROUND[:2],
)
TURNING = DirectionCheck(
    STEPS + 1.0, STEPS + 1.0, STEPS + 2.0, 0.1 * STEPS, 0.5, 1.0 / (1 + STEPS), STEPS + 0.0, STEPS + 0.0, 1e-9
)

DRAWN = {
    "cosine_matrix": lambda ax: plots.cosine_matrix(geometry.simplex_etf(4), ax),
    "trajectory": lambda ax: plots.trajectory(recorded(), ax=ax),
    "singular_values": lambda ax: plots.singular_values([3.0, 2.0, 0.0], [3.0, 2.0, 0.0], ax),
    "predicted_against_found": lambda ax: plots.predicted_against_found(COMPARISON, ax),
    "certificate_convergence": lambda ax: plots.certificate_convergence(STEPS, OBJECTIVE, BOUND, ax),
    "phase_diagram": lambda ax: plots.phase_diagram(DIAGRAM, ax=ax),
    "layerwise": lambda ax: plots.layerwise(LAYERS, ax=ax),
    "mitigation_curves": lambda ax: plots.mitigation_curves(MITIGATED, ax=ax),
    "census": lambda ax: plots.census(CENSUS, ax),
    "condensation_cosines": lambda ax: plots.condensation_cosines(CONDENSED, ax),
    "margin_phase": lambda ax: plots.margin_phase({"a path": TURNING}, ax),
    "measures_in_time": lambda ax: plots.measures_in_time(stepped(), ax=ax),
    "singular_values_in_time": lambda ax: plots.singular_values_in_time(stepped(), ax=ax),
    "weight_directions": lambda ax: plots.weight_directions(CONDENSED, ax),
    "network_balance": lambda ax: plots.network_balance(held(), ax),
    "network_classes": lambda ax: plots.network_classes(held(), ax=ax),
    "network_errors": lambda ax: plots.network_errors(held(), ax=ax),
    "network_losses": lambda ax: plots.network_losses(held(), ax),
    "network_matrices": lambda ax: plots.network_matrices(held(), ax=ax),
    "path": lambda ax: plots.path(PATH, ax),
    "sweep": lambda ax: plots.sweep(swept({"weight_decay": 9, "imbalance_ratio": 10}), ax=ax),
}


@pytest.mark.parametrize(
    ("activation", "name"),
    [("tanh", "tanh"), ("xtanh", r"$x\,\tanh\,x$"), ("x2tanh", r"$x^2\,\tanh\,x$"), ("relu", "ReLU")],
)
def test_activations_are_named_as_they_are_written(activation: str, name: str) -> None:
    found = CONDENSED._replace(activation=activation, expected=None)
    _, (left, right, known) = plt.subplots(1, 3)
    assert plots.condensation_cosines(found, left).get_title() == f"{name}, after"
    title = f"{name}: 2 directions within 2\N{DEGREE SIGN}"
    assert plots.weight_directions(found, right).get_title() == f"{title}, none predicted"
    assert plots.weight_directions(found._replace(expected=AROUND[:2]), known).get_title() == title


def line(ax: Any, label: str) -> np.ndarray:
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found.get_xydata()


@pytest.mark.parametrize("name", DRAWN)
def test_draws_on_the_axes_given_and_returns_them(name: str) -> None:
    figure, ax = plt.subplots()
    assert DRAWN[name](ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    figure.canvas.draw()


@pytest.mark.parametrize("name", DRAWN)
def test_makes_a_figure_of_its_own_without_axes(name: str) -> None:
    ax = DRAWN[name](None)
    assert plt.get_fignums() == [ax.figure.number]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", DRAWN)
def test_axes_must_be_axes(name: str) -> None:
    with pytest.raises(ValueError, match="`ax` must be matplotlib axes, got str"):
        DRAWN[name]("here")


def test_every_plot_is_covered() -> None:
    assert set(DRAWN) == {name for name in plots.__all__ if name.islower()} - {"write_page"}


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

    @pytest.mark.parametrize(
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
        np.testing.assert_array_equal(line(ax, QUANTITIES["nc1"]), np.stack([records.step, records.nc1], 1))
        np.testing.assert_array_equal(line(ax, "objective"), np.stack([records.step, records.objective], 1))
        assert ax.get_yscale() == "log"

    def test_predicted_values_are_dashed_lines_of_the_same_colour(self) -> None:
        ax = plots.trajectory(recorded(), ("nc1", "nc2_weights"), predicted={"nc2_weights": 0.25, "nc1": 0.0})
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

    @pytest.mark.parametrize(
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

    @pytest.mark.parametrize(
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
        assert len({found.get_marker() for found in points}) == len({found.get_color() for found in points}) == 3

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
        plots.certificate_convergence([0, 1, 2], [2.0, 1.0, 1.0], [-np.inf, 0.5, 1.0], ax, gap_ax=gap_ax)
        ax.figure.canvas.draw()
        plots.certificate_convergence([0], [1.0], [1.0 + 1e-15]).figure.canvas.draw()

    @pytest.mark.parametrize(
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


IMPORTS = {
    "the package leaves matplotlib alone": "import sys, ufm; assert 'matplotlib' not in sys.modules",
    "without matplotlib the error names the extra": """
import sys
sys.modules["matplotlib"] = None
try:
    import ufm.plots
except ImportError as error:
    assert "pip install 'ufm[plot]'" in str(error)
else:
    raise AssertionError
""",
}


@pytest.mark.parametrize("code", IMPORTS.values(), ids=IMPORTS)
def test_matplotlib_is_optional(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


class TestPhaseDiagram:
    def test_the_thresholds_are_where_the_level_is_zero(self) -> None:
        ax = plots.phase_diagram(DIAGRAM)
        contours = [part for collection in ax.collections[1:] for part in collection.get_paths()]
        vertices = np.concatenate([path.vertices for path in contours[:1]])
        # Linear interpolation of log(x y) between points of a log-spaced grid, in x or in y.
        assert np.all(np.abs(np.log(vertices[:, 0] * vertices[:, 1])) < 0.5)
        assert not plots.phase_diagram(DIAGRAM, curves={}).collections[1:]

    def test_other_quantities_and_curves(self) -> None:
        ax = plots.phase_diagram(DIAGRAM, "rank", curves={"threshold": (RATIO, 1 / RATIO)})
        assert np.allclose(line(ax, "threshold"), np.stack([RATIO, 1 / RATIO], axis=1))
        with pytest.raises(ValueError, match="`quantity` must be one of"):
            plots.phase_diagram(DIAGRAM, "colour")


class TestMitigationCurves:
    def test_collapsed_strengths_are_left_thin(self) -> None:
        thin, thick = plots.mitigation_curves(MITIGATED, "cosine").lines
        assert np.array_equal(thin.get_ydata(), 1 - STRENGTH)
        assert np.array_equal(np.isnan(thick.get_ydata()), STRENGTH < 0.5)
        with pytest.raises(ValueError, match="`quantity` must be one of"):
            plots.mitigation_curves(MITIGATED, "colour")


def legend(ax: Any) -> list[str]:
    return [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]


class TestSweep:
    def test_a_line_per_group_over_one_axis(self) -> None:
        dataset = swept({"imbalance_ratio": 12})
        ax = plots.sweep(dataset, "margin")
        for group, name in enumerate(("majority", "minority")):
            expected = np.stack([dataset.imbalance_ratio, dataset.margin[:, group]], axis=1)
            np.testing.assert_array_equal(line(ax, name), expected)
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("imbalance ratio", "margin", "log")
        assert plots.sweep(dataset.assign_coords(imbalance_ratio=np.arange(1.0, 13))).get_xscale() == "linear"

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
        np.testing.assert_array_equal(plots.sweep(dataset, "objective").lines[0].get_xydata(), [[1, 2], [2, 3], [5, 1]])

    def test_predicted_values_are_open(self) -> None:
        ax = plots.sweep(swept({"imbalance_ratio": 4}, predicted_margin=np.full((4, 2), 7.0)), "margin")
        hollow = [found for found in ax.lines if found.get_linestyle() == "None" and len(found.get_xdata())]
        assert [list(found.get_ydata()) for found in hollow] == [[7.0] * 4] * 2
        assert all(found.get_markerfacecolor() == "none" for found in hollow)
        assert ax.get_legend().get_title().get_text() == "open markers: predicted"
        # What no theorem predicts is not drawn.
        for nothing in ({"predicted_rank": np.full(4, -1)}, {"predicted_rank": np.full(4, np.nan)}):
            assert len(plots.sweep(swept({"imbalance_ratio": 4}, **nothing), "rank").lines) == 1

    def test_points_that_are_not_certified_are_crossed_and_missing_ones_grey(self) -> None:
        status = np.array([1, 2, 1, -1, 1], "int8")
        bounds = np.array([1, 2, np.nan, np.nan, 5])
        dataset = swept({"x": 5}, status=status, certified=np.array([1, 0, 0, 0, 1], bool), lower_bound=bounds)
        ax = plots.sweep(dataset, "objective")
        # The third has no bound and converged: nothing is wrong with it.
        np.testing.assert_array_equal(line(ax, "not certified"), [[dataset.x[1], 2]])
        assert legend(ax) == ["not certified", "not computed yet"]
        assert np.isnan(ax.lines[0].get_ydata()[3])

    @pytest.mark.parametrize("poor", [5, 400])
    def test_two_axes_make_a_heat_map_with_thresholds(self, poor: int) -> None:
        shape = (20, 25)
        status = np.ones(500, "int8")
        status[:poor], status[-30:] = 6, -1
        dataset = swept({"weight_decay": 20, "imbalance_ratio": 25}, status=status.reshape(shape))
        dataset["certified"] = dataset.status == 1
        ax = plots.sweep(dataset)
        assert (ax.get_xlabel(), ax.get_ylabel()) == (SWEPT["weight_decay"], "imbalance ratio")
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        values = ax.collections[0].get_array()
        np.testing.assert_array_equal(values.mask, (dataset.status == -1).T)
        np.testing.assert_array_equal(values[~values.mask], dataset.weight_cosine[..., 1, 1].values.T[~values.mask])
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
        ax = plots.sweep(swept(lengths, weight_cosine=nothing, margin=no_margin, relative_gap=no_gap))
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

    def test_many_groups_are_shaded(self) -> None:
        norms = np.arange(24.0).reshape(2, 12)
        dataset = swept({"x": 2}).assign(weight_norm=(("x", "class_group"), norms)).drop_dims(["group", "other_group"])
        dataset = dataset.rename(class_group="group").assign_attrs(problem="{}")
        dataset["cosine"] = (("x", "group", "other_group"), np.ones((2, 12, 12)))
        ax = plots.sweep(dataset, "weight_norm")
        assert len(ax.lines) == 12
        assert legend(ax) == ["group 0", "group 11"]
        with pytest.raises(ValueError, match=r"78 pairs of groups.*such as cosine\[0,1"):
            plots.sweep(dataset, "cosine")

    @pytest.mark.parametrize(
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


def test_layers_of_a_deep_model() -> None:
    ax = plots.layerwise(LAYERS)
    etf, frame, alignment, adjacent = ax.get_lines()
    assert list(frame.get_ydata()) == [layer.collapse.nc2_features.orthogonal_distance for layer in LAYERS.layers]
    assert list(etf.get_ydata()) == [layer.collapse.nc2_features.etf_distance for layer in LAYERS.layers]
    assert list(alignment.get_xdata()) == list(adjacent.get_xdata()) == [0, 2, 4]
    assert list(alignment.get_ydata()) == [1 - layer.weights.alignment for layer in LAYERS.layers if layer.weights]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == [
        "features\nrank 3",
        "layer 1\nbefore ReLU\nrank 3",
        "layer 1\nrank 2",
        "layer 2\nbefore ReLU\nrank 2",
        "layer 2\nrank 2",
        "logits\nrank 2",
    ]


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
            line(ax, "path found, barrier at most 0.3"), np.column_stack([PATH.position, PATH.objective])
        )
        np.testing.assert_allclose(line(ax, "straight line, barrier 0.7"), [[0, 1], [0.5, 1.7], [1, 0.8]])
        np.testing.assert_allclose(line(ax, "highest point"), [[0.25, 1.3]])

    def test_no_barrier_has_no_highest_point(self) -> None:
        ax = plots.path(walked([1.0, 1.0, 1.0], [1.0, 2.0, 1.0]))
        labels = [drawn.get_label() for drawn in ax.lines]
        assert "path found, no barrier" in labels
        assert "highest point" not in labels

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"`found` must be the result of ufm\.landscape\.connect, got str"):
            plots.path("this")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`objective` must be finite"):
            plots.path(walked([1.0, np.nan, 1.0], [1.0, 1.0]))
