"""The theorems about flows as checks: they hold where they should, and say no where they should not."""

from typing import Any

import equinox as eqx
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ufm
from ufm.dynamics import (
    Trajectory,
    aligned_start,
    central_path,
    central_path_check,
    condensation,
    conservation_check,
    descent,
    direction_check,
    energy_check,
    entropy_clock,
    exact_flow_check,
    gaussian_start,
    gradient_flow,
    linearised_flow,
    logistic_modes,
    path_clock,
    predicted_directions,
    small_start_check,
    strong_collapse_distance,
)
from ufm.dynamics.conservation_laws import balance_matrices
from ufm.status import Status

pytest.importorskip("diffrax")

COUNTS = (3, 2, 2)
SIZES = np.array([1e-3, 3e-3, 1e-4])


def stated(loss: Any = None, decay: Any = (1e-2, 1e-2), **others: Any) -> ufm.Problem:
    settings: dict[str, Any] = {
        "class_counts": COUNTS,
        "feature_dim": 4,
        "loss": loss or ufm.SquaredError(),
    }
    settings |= {"regularizer": ufm.WeightDecay(weights=decay[0], features=decay[1])} | others
    return ufm.Problem(**settings)


PROBLEM = stated()
ENTROPY = stated(ufm.CrossEntropy())
BALANCED = stated(ufm.CrossEntropy(), class_counts=(4, 4, 4))


def changed(path: Trajectory, **fields: Any) -> Trajectory:
    """Return the path with other values of its fields, or of its measures."""
    for name, value in fields.items():
        where = (
            (lambda p, n=name: getattr(p, n))
            if name in path.__dict__
            else (lambda p, n=name: getattr(p.measures, n))
        )
        path = eqx.tree_at(where, path, value)
    return path


# Energy.


def test_the_objective_falls_along_a_flow_and_the_check_sees_where_it_does_not() -> None:
    flow = gradient_flow(PROBLEM, times=200.0)
    assert energy_check(flow).holds
    assert not energy_check(changed(flow, objective=flow.objective[::-1])).holds
    assert not energy_check(
        changed(flow, objective=np.where(np.arange(61) == 30, np.nan, flow.objective))
    ).holds
    slightly = flow.objective.copy()
    slightly[-1] += 1e-7
    assert not energy_check(changed(flow, objective=slightly)).holds
    hasty = descent(PROBLEM, learning_rate=5.0, steps=range(1, 40))  # type: ignore[arg-type]
    assert not energy_check(hasty).holds


# Conservation.


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_balance_is_conserved_or_decays(factor: float) -> None:
    flow = gradient_flow(PROBLEM, times=(1.0, 10.0, 100.0), scale=0.5, penalty_factor=factor)
    check = conservation_check(flow)
    assert check.holds
    np.testing.assert_allclose(
        check.expected[-1], check.found[0] * np.exp(-2 * factor * 1e-2 * 100), rtol=1e-12
    )
    assert np.max(check.error) < 1e-8 * flow.norm[0] ** 2
    np.testing.assert_allclose(check.found[:, 0], flow.balance[:, 0], rtol=1e-6)


def test_conservation_says_no() -> None:
    start = gaussian_start(PROBLEM, scale=0.5)
    assert not conservation_check(
        descent(PROBLEM, learning_rate=0.1, steps=100, initial=start, penalty_factor=0.0)
    ).holds
    flow = gradient_flow(PROBLEM, times=(1.0, 10.0, 100.0), initial=start)
    assert not conservation_check(changed(flow, penalty_factor=0.5)).holds
    # The features of the plain gradient of the objective over classes, the wrong metric, balance H^T H instead.
    plain = changed(
        flow,
        points=flow.points._replace(features=flow.points.features * np.sqrt(COUNTS)[None, :, None]),
    )
    assert not conservation_check(plain).holds
    assert not conservation_check(
        changed(flow, points=flow.points._replace(features=flow.points.features * np.nan))
    ).holds
    with pytest.raises(ValueError, match="must have equal penalties"):
        conservation_check(gradient_flow(stated(decay=(1e-2, 1e-3)), times=1.0))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_balance_of_deep_models(activation: str) -> None:
    problem = stated(hidden_dims=(5, 4), activation=activation)
    flow = gradient_flow(problem, times=(0.5, 1.0, 3.0), key=1, scale=0.7, penalty_factor=0.0)
    assert flow.status == Status.FINISHED
    check = conservation_check(flow)
    assert check.holds
    assert check.error.shape == (4, 3)
    full = [balance_matrices(flow, flow.point(i))[1] for i in (0, -1)]
    moved = np.linalg.norm(full[1] - full[0]) / np.linalg.norm(full[0])
    assert (
        (moved < 1e-6) if activation == "linear" else (moved > 1e-3)
    )  # only the diagonal is conserved through a ReLU


# Exact flows.


@pytest.mark.parametrize("decay", [1e-2, np.sqrt(2) / 7, 0.3])
def test_squared_error_follows_logistic_modes(decay: float) -> None:
    problem = stated(decay=(decay, decay))
    flow = gradient_flow(
        problem, times=np.linspace(1, 100, 12), initial=aligned_start(problem, SIZES), rtol=1e-11
    )  # type: ignore[arg-type]
    check = exact_flow_check(flow)
    assert check.holds
    assert np.max(check.error) < 1e-8
    modes = logistic_modes(problem, SIZES, flow.times)
    np.testing.assert_allclose(np.sort(modes)[:, ::-1], flow.logit_singular_values, atol=1e-8)


def test_logistic_modes_solve_their_equation_without_penalties_too() -> None:
    n, times = np.array(COUNTS), np.linspace(0, 60, 7)
    for factor in (0.0, 1.0, 60.0):
        solved = solve_ivp(
            lambda t, s, c: 2 / 7 * s * (np.sqrt(n) - 7 * 1e-2 * c - s),
            (0, 60),
            SIZES,
            t_eval=times,
            rtol=1e-11,
            atol=1e-14,
            args=(factor,),
        )
        modes = logistic_modes(PROBLEM, SIZES, times, penalty_factor=factor)
        np.testing.assert_allclose(modes, solved.y.T, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(
        logistic_modes(PROBLEM, SIZES, [1e9])[0], np.sqrt(n) - 0.07, rtol=1e-12
    )


@pytest.mark.slow
def test_balanced_cross_entropy_keeps_its_clock() -> None:
    flow = gradient_flow(
        BALANCED,
        times=np.geomspace(0.1, 1e10, 14),
        initial=aligned_start(BALANCED, 0.01),
        penalty_factor=0.0,  # type: ignore[arg-type]
    )
    check = exact_flow_check(flow)
    assert check.holds
    assert np.max(check.error) < 1e-8
    margins = flow.margins[:, 0]
    elapsed = entropy_clock(margins, 3) - entropy_clock(margins[0], 3)
    np.testing.assert_allclose(elapsed[1:], flow.times[1:], rtol=1e-6)  # 2 t / sqrt(4)
    # A logarithm below 1/t, and not 1/t.
    rate = flow.objective[-4:] * flow.times[-4:]
    np.testing.assert_allclose(rate * margins[-4:], 2 * np.sqrt(4) / 2, rtol=0.12)
    assert rate[-1] < 0.8 * rate[0]


def test_exact_flows_say_no() -> None:
    start = aligned_start(PROBLEM, SIZES)
    flow = gradient_flow(PROBLEM, times=np.linspace(1, 100, 12), initial=start)  # type: ignore[arg-type]
    assert exact_flow_check(flow).holds
    assert not exact_flow_check(changed(flow, times=flow.times * 1.001)).holds
    assert not exact_flow_check(changed(flow, penalty_factor=0.99)).holds
    assert not exact_flow_check(
        descent(PROBLEM, learning_rate=0.05, steps=500, initial=start)
    ).holds
    with pytest.raises(ValueError, match="must start balanced and aligned"):
        exact_flow_check(gradient_flow(PROBLEM, times=1.0))
    with pytest.raises(ValueError, match="equal penalties"):
        logistic_modes(stated(decay=(1e-2, 1e-3)), SIZES, [1.0])
    with pytest.raises(ValueError, match="no bias"):
        aligned_start(stated(use_bias=True), 1.0)
    with pytest.raises(ValueError, match="feature_dim >= num_classes"):
        aligned_start(stated(feature_dim=2), 1.0)
    with pytest.raises(ValueError, match="`sizes` must be"):
        aligned_start(PROBLEM, -1.0)


# Small starts.


def test_the_linearised_flow_solves_the_linearised_equations() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    start = gaussian_start(problem, key=1, resolution="samples")
    labels = np.repeat(np.arange(3), 2)

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        W, H, b = x[:12].reshape(3, 4), x[12:36].reshape(6, 4), x[36:]
        pull = (np.eye(3)[labels] - b) / 6
        return np.concatenate([(pull.T @ H).ravel(), (pull @ W).ravel(), 1 / 3 - b])

    x = np.concatenate([np.ravel(start.weights[0]), np.ravel(start.features), np.zeros(3)])
    solved = solve_ivp(velocity, (0, 6), x, t_eval=[2.0, 6.0], rtol=1e-10, atol=1e-13)
    found = linearised_flow(problem, start, [2.0, 6.0])
    np.testing.assert_allclose(
        found.weights[0].reshape(2, 12), solved.y[:12].T, rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(
        found.features.reshape(2, 24), solved.y[12:36].T, rtol=1e-7, atol=1e-10
    )
    np.testing.assert_allclose(found.bias, solved.y[36:].T, rtol=1e-7)
    with pytest.raises(ValueError, match="balanced classes"):
        linearised_flow(stated(use_bias=True), start, [1.0])
    with pytest.raises(ValueError, match="zero bias"):
        linearised_flow(problem, start._replace(bias=np.ones(3)), [1.0])  # type: ignore[arg-type]


@pytest.mark.slow
def test_small_starts_end_near_strong_collapse_and_large_ones_do_not() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    start = gaussian_start(problem, key=1, resolution="samples", scale=1e-3)
    check = small_start_check(problem, (1e-1, 1e-3), key=1)
    assert check.holds
    path = check.paths[-1]
    linear = linearised_flow(problem, start, path.kept_times[:2])
    # Second order in the size, which has grown to a hundredth here.
    error = np.max(np.abs(linear.weights[0][1] - path.point(1).weights[0])) / np.max(
        np.abs(linear.weights[0][1])
    )
    assert error < 1e-3
    assert strong_collapse_distance(problem, check.paths[-1].final) < 3e-3
    assert not small_start_check(problem, (3.0, 1.0), key=1).holds
    with pytest.raises(ValueError, match="`scales` must be"):
        small_start_check(problem, (1e-2,))


def test_the_distance_to_strong_collapse_is_a_distance_to_a_subspace() -> None:
    problem = stated(class_counts=(2, 2, 2), use_bias=True)
    means = np.random.default_rng(0).standard_normal((3, 4))
    means -= means.mean(axis=0)
    inside = gaussian_start(problem)._replace(weights=(np.sqrt(2) * means,), features=means)
    assert strong_collapse_distance(problem, inside) < 1e-15
    assert strong_collapse_distance(problem, inside._replace(features=-means)) == pytest.approx(1.0)
    assert (
        strong_collapse_distance(
            problem, inside._replace(features=np.ones((3, 4)), weights=(np.ones((3, 4)),))
        )
        == 1
    )
    lifted = inside._replace(features=np.repeat(means, 2, axis=0))
    assert strong_collapse_distance(problem, lifted) < 1e-15


# The central path.


def some_features() -> np.ndarray:
    draws = np.random.default_rng(0)
    means = np.diag([0.5, 1.0, 2.0]) @ draws.standard_normal((3, 4))
    return np.asarray(draws.standard_normal((18, 4)) + np.repeat(means, 6, axis=0))


@pytest.mark.parametrize("flow", ["projected", pytest.param("followed", marks=pytest.mark.slow)])
def test_the_central_path_keeps_singular_vectors_and_time(flow: Any) -> None:
    path = central_path(some_features(), 3, times=np.geomspace(1, 1e5, 10), flow=flow)
    check = central_path_check(path)
    assert path.status == Status.FINISHED
    assert check.holds
    assert check.clock_error < 1e-8
    assert check.turned < 1e-8
    assert np.max(path.whiteness) < 1e-10
    assert check.spread[-1] < 1.01 < 3 < check.spread[0]
    if flow == "projected":
        # The form that Han, Papyan & Donoho have, c1 log w + c2 w^2 + c3 w^4 = a + t, with the constants derived here.
        w = np.sqrt(3) * path.singular_values
        left = np.log(w) + w**2 / 3 + w**4 / 36
        np.testing.assert_allclose(
            left[1:] - left[0], np.broadcast_to(path.times[1:, None] / 54, (10, 2)), rtol=1e-8
        )


def test_the_central_path_check_says_no() -> None:
    path = central_path(some_features(), 3, times=np.geomspace(1, 1e5, 10))
    assert central_path_check(path).holds
    assert not central_path_check(path._replace(flow="followed")).holds
    assert not central_path_check(path._replace(times=path.times * 1.0001)).holds
    assert not central_path_check(
        path._replace(singular_values=path.singular_values * np.nan)
    ).holds
    assert not central_path_check(path._replace(objective=path.objective * (1 + 1e-6))).holds
    turned = path.vectors[0].copy()
    turned[-1, :, 0] += 1e-3
    assert not central_path_check(path._replace(vectors=(turned, path.vectors[1]))).holds
    with pytest.raises(ValueError, match=r"K - 1 <= d <= N - K"):
        central_path(some_features()[:6], 3, times=1.0)
    with pytest.raises(ValueError, match="`flow` must be one of"):
        central_path(some_features(), 3, times=1.0, flow="none")  # type: ignore[arg-type]
    assert path_clock("projected", 1.0) == 1.25


@pytest.mark.slow
def test_the_free_central_path_turns_singular_vectors() -> None:
    check = central_path_check(
        central_path(some_features(), 3, times=np.geomspace(1, 50, 6), flow="free")
    )
    assert check.turned > 1e-3
    assert not check.holds


# The direction without penalties.


def test_the_flow_without_penalties_turns_to_the_hard_margin_solution() -> None:
    flow = gradient_flow(ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2)  # type: ignore[arg-type]
    check = direction_check(flow)
    assert check.separates
    assert check.stationary
    assert check.holds
    np.testing.assert_allclose(
        check.limit, 0.5 / ufm.solve_hard_margin(ufm.HardMargin(COUNTS)).value, rtol=1e-9
    )
    assert check.normalised_margin[-1] > 0.99 * check.limit
    assert check.angle[-1] < 0.01 < check.angle[check.late][0]
    # d ||theta||^2 / dt = (4 / N) sum n_k p_kc (z_k - z_c), as derived, and it is 2 <theta, -gradient> in what is recorded.
    last = flow.final
    logits = last.features @ last.weights[0].T
    gaps = np.diagonal(logits)[:, None] - logits
    odds = np.exp(-gaps) / np.sum(np.exp(-gaps), axis=1, keepdims=True)
    growth = 4 / 7 * np.sum(np.array(COUNTS)[:, None] * odds * gaps)
    np.testing.assert_allclose(
        2 * flow.alignment[-1] * flow.norm[-1] * flow.gradient_norm[-1], growth, rtol=1e-9
    )


def test_the_direction_check_says_no() -> None:
    flow = gradient_flow(ENTROPY, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2)  # type: ignore[arg-type]
    backwards = changed(flow, margins=flow.margins[::-1], norm=flow.norm[::-1])
    assert not direction_check(backwards).separates
    assert not direction_check(changed(flow, alignment=np.full(41, np.nan))).stationary
    assert not direction_check(changed(flow, data_term=1 / (1 + flow.times**0.5))).stationary
    other = flow.points._replace(features=flow.points.features[:, ::-1])
    assert not direction_check(changed(flow, points=other)).holds
    assert not direction_check(
        gradient_flow(ENTROPY, times=1.0, penalty_factor=0.0)
    ).holds  # nothing is separated yet
    with pytest.raises(ValueError, match="no penalties"):
        direction_check(gradient_flow(ENTROPY, times=1.0))
    with pytest.raises(ValueError, match="cross-entropy"):
        direction_check(gradient_flow(PROBLEM, times=1.0, penalty_factor=0.0))


# Condensation.

X = np.stack([np.linspace(-1, 1, 8), np.ones(8)], axis=1)
Y = np.sin(3 * X[:, 0]) - 0.6 * X[:, 0]


@pytest.mark.parametrize(("activation", "power"), [("tanh", 1), ("xtanh", 2), ("x2tanh", 3)])
def test_predicted_directions_are_those_of_a_search(activation: str, power: int) -> None:
    for targets in (Y, np.random.default_rng(5).standard_normal(8)):
        found = predicted_directions(activation, X, targets)
        phi = np.linspace(0, 2 * np.pi, 20001)[:-1]
        P = targets @ (X @ np.stack([np.cos(phi), np.sin(phi)])) ** power
        size = np.abs(P)
        peaks = phi[(size > np.roll(size, 1)) & (size >= np.roll(size, -1)) & (size > 1e-9)]
        angles = np.sort(np.arctan2(found[:, 1], found[:, 0]) % (2 * np.pi))
        np.testing.assert_allclose(angles, np.sort(peaks), atol=1e-3)
        assert len(found) <= 2 * power


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.slow), "x2tanh"])
def test_units_condense_to_the_predicted_directions(activation: str) -> None:
    found = condensation(activation, X, Y, width=40)
    assert found.holds
    assert found.multiplicity is not None
    assert len(found.directions) == 2 * found.multiplicity
    assert found.loss[1] > 0.9 * found.loss[0]
    assert not found._replace(
        final=found.initial, directions=found.directions[:0], shares=found.shares[:0]
    ).holds
    assert not found._replace(multiplicity=0).condensed
    assert found.expected is not None
    assert not found._replace(expected=found.expected[:, ::-1]).holds


@pytest.mark.slow
def test_condensation_on_the_clock_of_the_network() -> None:
    assert condensation("tanh", X, Y, clock="common").holds
    quadratic = condensation("xtanh", X, Y, clock="common")
    assert quadratic.holds
    assert np.sum(quadratic.grown) < 10  # the first units fit before the others move
    assert condensation("xtanh", X, Y).holds


@pytest.mark.slow
def test_condensation_says_no() -> None:
    assert not condensation("tanh", X, Y, scale=1.0, clock="common", most_fitted=0.99).condensed
    assert not condensation("tanh", X, Y, growth=10.5).condensed
    relu = condensation("relu", X, 0.3 * np.random.default_rng(5).standard_normal(8))
    assert not relu.condensed
    assert len(relu.directions) > 2


def test_condensation_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`activation` must be one of"):
        condensation("gelu", X, Y)
    with pytest.raises(ValueError, match="`inputs` and `targets` must be finite"):
        condensation("tanh", X, Y[:3])
    with pytest.raises(ValueError, match="`growth` must be above"):
        condensation("tanh", X, Y, growth=2.0)
    with pytest.raises(ValueError, match="smooth at zero"):
        predicted_directions("relu", X, Y)


# Pictures.


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
