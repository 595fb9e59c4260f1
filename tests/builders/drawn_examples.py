"""Results that are drawn in the tests of plots, made up or solved once."""

import functools
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


import ufm  # noqa: E402
from ufm import geometry, plots  # noqa: E402
from ufm._support import Status  # noqa: E402
from ufm.certificates import Certificate  # noqa: E402
from ufm.comparison import Comparison  # noqa: E402
from ufm.comparison.compare import Row  # noqa: E402
from ufm.dynamics import (  # noqa: E402
    Condensation,
    DirectionCheck,
)
from ufm.imbalance import (  # noqa: E402
    Mitigations,
    PhaseDiagram,
)
from ufm.imbalance.mitigations import Mitigated  # noqa: E402
from ufm.landscape import (  # noqa: E402
    Census,
    EndPoint,
    MinimaPath,
)
from ufm.networks import TrainedNetwork, compare_with_model  # noqa: E402
from ufm.solving import SolveRecord  # noqa: E402

xr = pytest.importorskip("xarray")


def recorded(**changes: Any) -> SolveRecord:
    steps = np.arange(6)
    columns = {name: (k + 1) * 10.0**-steps for k, name in enumerate(SolveRecord._fields)}
    return SolveRecord(**(columns | {"step": 10 * steps} | changes))


def rows(*errors_and_tolerances: tuple[float, float, str]) -> Comparison:
    found = tuple(
        Row(f"quantity {k}", 1.0, 1.0, error, tolerance, verdict)
        for k, (error, tolerance, verdict) in enumerate(errors_and_tolerances)
    )
    return Comparison("a-theorem", "the certified gap", found)


COMPARISON = rows(
    (1e-12, 1e-9, "agrees"),
    (0.0, 0.0, "agrees"),
    (1e-3, 1e-6, "differs"),
    (1e-9, np.inf, "undecided"),
)
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
        name,
        settled,
        value,
        converged,
        others,
        rank,
        np.ones(4),
        np.eye(4),
        status,
        1e-12,
        parameters=nothing,
        run=0,
    )


def counted(*points: EndPoint, lower_bound: float = np.nan) -> Census:
    nothing: Any = None
    certificate = Certificate(1.0, lower_bound, 1.0, 1e-9, 1.0, "a bound", True)
    return Census(nothing, nothing, np.zeros(0), np.zeros(0), points, certificate, 1.0, 1e-9, 0.0)


CENSUS = counted(
    ended(0.3, 600, name="deep neural collapse"),
    ended(0.4, 2, False),
    ended(0.5, 70, rank=3),
    lower_bound=0.2,
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


def swept(
    lengths: dict[str, int], coordinates: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A made-up sweep of two groups, whose numbers tell points, groups and pairs apart."""
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
        "weight_cosine": (
            (*dims, "group", "other_group"),
            (base / base.size)[..., None, None] * [[1, 0], [0, -1]],
        ),
        "coincidence_level": (
            (*dims, "group"),
            (base - base.mean() + 0.3)[..., None] + [0.0, -1e3],
        ),
    }
    for name, values in changes.items():
        variables[name] = (variables.get(name.removeprefix("predicted_"), (dims, None))[0], values)
    along = {name: np.geomspace(1, 100, length) for name, length in lengths.items()} | (
        coordinates or {}
    )
    return xr.Dataset(variables, along, {"problem": '{"counts": [500, 5], "sizes": [5, 5]}'})


@functools.cache
def held() -> Any:
    """A network of random features against its model."""
    generator = np.random.default_rng(0)
    means, y = generator.standard_normal((4, 6)), np.repeat(np.arange(4), (50, 50, 20, 20))
    features = means[y] + 0.1 * generator.standard_normal((140, 6))
    trained = TrainedNetwork.from_features(features, y, means, np.zeros(4), weight_decay=5e-3)
    return compare_with_model(trained)


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
    STEPS + 1.0,
    STEPS + 1.0,
    STEPS + 2.0,
    0.1 * STEPS,
    0.5,
    1.0 / (1 + STEPS),
    STEPS + 0.0,
    STEPS + 0.0,
    1e-9,
)

DRAWN = {
    "cosine_matrix": lambda ax: plots.cosine_matrix(geometry.simplex_etf(4), ax),
    "logit_matrix": lambda ax: plots.logit_matrix(np.eye(4), ufm.Targets(np.eye(4)), ax),
    "gram_matrix": lambda ax: plots.gram_matrix(np.eye(4), ax),
    "support_margins": lambda ax: plots.support_margins([1.0, -1.0], ufm.Targets(np.eye(2)), ax),
    "trajectory": lambda ax: plots.trajectory(recorded(), ax=ax),
    "singular_values": lambda ax: plots.singular_values([3.0, 2.0, 0.0], [3.0, 2.0, 0.0], ax),
    "predicted_against_found": lambda ax: plots.predicted_against_found(COMPARISON, ax),
    "certificate_convergence": lambda ax: plots.certificate_convergence(
        STEPS, OBJECTIVE, BOUND, ax
    ),
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


def line(ax: Any, label: str) -> np.ndarray:
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found.get_xydata()


def legend(ax: Any) -> list[str]:
    return (
        [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]
    )
