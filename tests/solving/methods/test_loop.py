"""What all methods have in common: they reach the minimum, stop for a reason, and compile once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from plain import K, Traced, a_problem
from tables import for_each, slow_but

import ufm
from ufm._support import Status, double_precision
from ufm.problems import class_samples
from ufm.solving.methods import Start, advance, first_iterate, num_unknowns

DESCENT = ufm.GradientDescent(1.0, momentum=0.9, init_scale=0.3)
METHODS = {"default": None, "lbfgs": ufm.LBFGS(), "newton": ufm.NewtonCG(), "descent": DESCENT}
each_method = for_each("method", METHODS.values())


def counted(**changes: Any) -> ufm.Problem:
    """A squared error problem with a known minimum, whose loss counts its traces."""
    return a_problem(**({"loss": Traced()} | changes))


def confirm_minimum(solution: ufm.Solution) -> None:
    """The objective is the closed form's, up to the gap that the certificate leaves open."""
    assert solution.status is Status.CONVERGED
    confirm_certificate(solution)


def confirm_certificate(solution: ufm.Solution) -> None:
    certificate, minimum = solution.certificate, plain.squared_error_minimum(solution.problem)
    assert certificate is not None
    assert certificate.relative_gap < 1e-7
    assert certificate.lower_bound <= minimum * (1 + 1e-14)
    assert minimum * (1 - 1e-13) <= solution.objective <= minimum * (1 + 1e-13) + certificate.gap


@for_each("method", slow_but(METHODS.values(), keep={0}))
def test_reaches_the_minimum_and_compiles_once_for_all_values(method: Any) -> None:
    confirm_minimum(ufm.solve(counted(), method=method))
    traces = Traced.traces
    for changes in (
        {"class_counts": (40.0, 2.5, 7)},
        {"regularizer": ufm.WeightDecay(weights=0.1, features=0.001)},
        {"regularizer": ufm.WeightDecay(weights=np.float32(0.01), features=0.01, bias=7)},
        {"class_counts": ufm.ClassGroups((5, 3), sizes=(2, 1))},
    ):
        confirm_minimum(ufm.solve(counted(**changes), method=method))
    confirm_minimum(ufm.solve(counted(), method=method, tol=1e-8, max_steps=70_000, key=5))
    if method is DESCENT:
        other = ufm.GradientDescent(0.9, momentum=0.88, init_scale=0.5)
        confirm_minimum(ufm.solve(counted(), method=other))
    assert Traced.traces == traces


@each_method
def test_out_of_steps(method: Any) -> None:
    solution = ufm.solve(counted(), method=method, max_steps=2)
    assert (solution.status, solution.steps) == (Status.MAX_STEPS, 2)
    assert "raise `max_steps`" in str(solution)
    with pytest.raises(ufm.SolveError, match="out of steps"):
        solution.check()


def test_newton_stalls_at_rounding_level_where_the_tolerance_is_out_of_reach() -> None:
    solution = ufm.solve(counted(), method=ufm.NewtonCG(), tol=1e-300)
    assert solution.status is Status.STALLED
    assert solution.relative_gradient < 1e-12
    assert solution.steps < 100
    with pytest.raises(ufm.SolveError, match="stalled"):
        solution.check()


def test_lbfgs_does_not_claim_a_tolerance_that_is_out_of_reach() -> None:
    solution = ufm.solve(counted(), method=ufm.LBFGS(), tol=1e-300, max_steps=300)
    assert solution.status in (Status.STALLED, Status.MAX_STEPS)
    assert solution.relative_gradient < 1e-12
    confirm_certificate(solution)


def test_no_steps_at_all() -> None:
    solution = ufm.solve(counted(), method=DESCENT, max_steps=0)
    assert (solution.status, solution.steps, solution.evaluations) == (Status.MAX_STEPS, 0, 1)


def test_divergence_returns_the_last_finite_point() -> None:
    method = ufm.GradientDescent(1e6, momentum=0.9, init_scale=0.3)
    solution = ufm.solve(counted(), method=method)
    assert solution.status is Status.NON_FINITE
    assert 0 < solution.steps < 1000
    assert np.isfinite(solution.objective)
    for array in (
        *solution.weights,
        solution.features,
        solution.logits,
        solution.restarts.objective,
    ):
        assert np.all(np.isfinite(array))
    assert solution.certificate is not None
    assert not solution.certificate.holds
    assert solution.certificate.lower_bound <= plain.squared_error_minimum(solution.problem)
    with pytest.raises(ufm.SolveError, match="lower the learning rate"):
        solution.check()


def test_interruption_carries_the_point_reached() -> None:
    def interrupt(step: int, objective: float, residual: float) -> None:
        raise KeyboardInterrupt

    slow = ufm.GradientDescent(1e-4, momentum=0.0, init_scale=0.3)
    with pytest.raises(ufm.SolveInterrupted) as caught:
        ufm.solve(counted(), method=slow, progress=interrupt)
    solution = caught.value.solution
    assert solution.status is Status.INTERRUPTED
    assert solution.steps == 1000
    assert solution.objective < ufm.solve(counted(), method=slow, max_steps=0).objective
    with pytest.raises(ufm.SolveError, match="interrupted"):
        solution.check()


def test_progress_is_reported_until_the_end() -> None:
    seen: list[tuple[int, float, float]] = []
    solution = ufm.solve(
        counted(),
        method=ufm.GradientDescent(0.01, momentum=0.0),
        max_steps=4000,
        progress=lambda *now: seen.append(now),
    )
    steps, objectives, residuals = zip(*seen, strict=True)
    assert steps[0] == 1000
    assert steps[-1] == solution.steps
    assert list(steps) == sorted(set(steps))
    assert list(objectives) == sorted(objectives, reverse=True)
    assert objectives[-1] == pytest.approx(solution.objective, rel=1e-14)
    assert residuals[-1] == solution.relative_gradient


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(ufm.LBFGS(), id="lbfgs", marks=pytest.mark.slow),
        pytest.param(ufm.NewtonCG(), id="newton", marks=pytest.mark.nightly),
        pytest.param(DESCENT, id="descent"),
    ],
)
def test_a_batch_is_a_loop(method: Any) -> None:
    problem = counted(use_bias=True)
    noise = np.random.default_rng(0).normal(
        size=(3, num_unknowns(problem, K, balanced=method.balanced))
    )
    sizes = np.array([1.0, 0.5, 0.1])

    def run(noise: Any, size: Any) -> Any:
        start = first_iterate(
            problem,
            class_samples(problem, jnp.float64),
            method,
            Start(noise, size, jnp.int32(0), jnp.int32(0)),
            None,
        )
        return advance(
            problem,
            class_samples(problem, jnp.float64),
            method,
            start,
            jnp.int32(8),
            jnp.float64(0.0),
            0,
        )

    single, batch = eqx.filter_jit(run), eqx.filter_jit(jax.vmap(run))(noise, sizes)
    for lane in range(3):
        alone = single(noise[lane], sizes[lane])
        assert int(alone.step) == 8
        for field in (
            "x",
            "value",
            "gradient",
            "relative_gradient",
            "step",
            "evaluations",
            "status",
        ):
            got, expected = getattr(batch, field)[lane], getattr(alone, field)
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12, err_msg=field)


def test_single_precision_stays_single_and_stalls_early() -> None:
    problem, method = counted(), ufm.NewtonCG()
    with double_precision():
        noise = (
            np.random.default_rng(0)
            .normal(size=num_unknowns(problem, K, balanced=method.balanced))
            .astype(np.float32)
        )

        def run(noise: Any) -> Any:
            start = first_iterate(
                problem,
                class_samples(problem, jnp.float64),
                method,
                Start(noise, np.float32(1), jnp.int32(0), jnp.int32(0)),
                None,
            )
            return advance(
                problem,
                class_samples(problem, jnp.float64),
                method,
                start,
                jnp.int32(500),
                jnp.float32(0),
                0,
            )

        end = eqx.filter_jit(run)(noise)
    assert end.x.dtype == end.value.dtype == end.gradient.dtype == np.float32
    assert int(end.status) == Status.STALLED
    assert 1e-9 < float(end.relative_gradient) < 1e-3
    assert int(end.step) < 200


def test_status_codes_are_data_with_messages() -> None:
    assert {status for status in Status if status.ok} == {
        Status.CONVERGED,
        Status.FLOOR,
        Status.FINISHED,
    }
    assert len({int(status) for status in Status}) == len(Status)
    for status in Status:
        assert Status(int(status)) is status
        assert status.message
        assert str(status) == status.name.lower()
