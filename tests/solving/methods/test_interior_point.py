from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from random_groups import LOSSES, batched, data_of, one_of, random_problem, with_price
from tables import for_each

import ufm
from ufm._support import Status, compiled, to_numpy
from ufm.certificates import nuclear_norm
from ufm.problems import GroupProblem, Problem, mean_loss, rows_of
from ufm.solving.methods import PathEnd, first_margins, follow_path
from ufm.solving.methods.interior_point import (
    barrier_model,
    decomposition,
    kappa_in_ball,
    logits_of_unknowns,
    mode_basis,
    solver,
    split_unknowns,
)

pytestmark = pytest.mark.usefixtures("float64")

MU, WEIGHT = 0.03, 1.7

# One group without shifts has no modes between groups, two have one, three have two; with shifts
# there is one more.
FEW: list[tuple[str, tuple[int, ...], str, bool]] = [
    ("cross-entropy", (4,), "none", False),
    ("logit-adjusted", (3, 2), "free", True),
    ("cdt-multipliers", (3, 2), "free", False),
]
MORE: list[tuple[str, tuple[int, ...], str, bool]] = [
    ("ldt-multipliers", (3, 1, 2), "penalised", False),
    ("label-smoothing", (3, 2), "penalised", False),
    ("weighted-cdt", (4,), "free", False),
    ("squared-error", (3, 2), "none", True),
    ("weighted", (2, 3, 1), "free", True),
    ("squared-error", (2, 3, 1), "penalised", False),
]
each_model = pytest.mark.parametrize(
    ("loss", "sizes", "bias", "ball"),
    [*FEW, *(pytest.param(*model, marks=pytest.mark.nightly) for model in MORE)],
)


def point_of(data: GroupProblem, rng: np.random.Generator) -> np.ndarray:
    """Unknowns, with no mode within groups of one class; inside the ball if there is one."""
    G, q = data.num_groups, int(data.num_groups) - int(data.loss.shift_invariant)
    rows = rng.normal(size=(G, 1 + q)) * np.where(
        (np.arange(1 + q) == 0) & (np.asarray(data.sizes)[:, None] == 1), 0, 1
    )
    if data.gauge.bounded:
        gauge = np.sum((data.sizes - 1) * np.abs(rows[:, 0])) + np.linalg.norm(rows[:, 1:], "nuc")
        rows *= 0.7 * float(data.gauge.price) / gauge
    return np.concatenate([rows.ravel(), rng.normal(size=G)]) if data.use_bias else rows.ravel()


@compiled
def barrier_objective(data: GroupProblem, x: Any) -> Any:
    """The data term, the penalty of the bias, and the barrier -mu log det of the cone.

    What is eliminated is put in.

    A mode costs nu B(sigma) = nu (r - kappa log(kappa + r)), r^2 = kappa^2 + sigma^2; inside a ball
    it costs -mu log(p^2 - sigma^2), p = kappa + r, and the room that is left costs -mu log kappa.
    """
    mu, basis = jnp.asarray(MU), mode_basis(data)
    logits, bias = logits_of_unknowns(data, basis, x)
    within, between, _ = split_unknowns(data, basis.shape[1], x)
    decomposed = decomposition(between)
    value = mean_loss(data, rows_of(logits, bias))
    if bias is not None:
        value = value + 0.5 * data.bias * jnp.sum(data.sizes * bias**2)
    sigma = jnp.concatenate([within, decomposed[0]])
    times = jnp.concatenate([data.sizes - 1, jnp.ones_like(decomposed[0])])
    weights = jnp.concatenate([jnp.ones_like(within), WEIGHT * jnp.ones_like(decomposed[0])])
    ball = data.gauge.bounded
    kappa = weights * (
        kappa_in_ball(data, within, decomposed, jnp.asarray(WEIGHT))
        if ball
        else mu / data.gauge.price
    )
    r = jnp.sqrt(kappa**2 + sigma**2)
    if not ball:
        return value + data.gauge.price * jnp.sum(times * (r - kappa * jnp.log(kappa + r)))
    barrier = -jnp.log(kappa[0]) - jnp.sum(times * weights * jnp.log((kappa + r) ** 2 - sigma**2))
    return value + mu * barrier


@compiled
def modelled(data: GroupProblem, x: Any, mu: Any) -> Any:
    return barrier_model(data, mode_basis(data), x, mu, jnp.asarray(WEIGHT))


@each_model
def test_the_gradient_is_that_of_the_objective_with_its_barrier(
    loss: str, sizes: tuple[int, ...], bias: str, ball: bool
) -> None:
    rng = np.random.default_rng(0)
    data = data_of(random_problem(rng, loss, sizes, bias=bias, ball=ball))
    x = point_of(data, rng)
    model = to_numpy(modelled(data, x, np.asarray(MU)))
    slope = plain.gradient(lambda y: float(barrier_objective(data, y)), x, 1e-6 * np.max(np.abs(x)))
    np.testing.assert_allclose(model.gradient, slope, rtol=1e-6, atol=1e-7 * np.max(np.abs(slope)))


@each_model
def test_the_hessian_and_the_tangent_are_derivatives_of_the_gradient(
    loss: str, sizes: tuple[int, ...], bias: str, ball: bool
) -> None:
    rng = np.random.default_rng(1)
    data = data_of(random_problem(rng, loss, sizes, bias=bias, ball=ball))
    x = point_of(data, rng)

    def gradient(y: np.ndarray, mu: float = MU) -> np.ndarray:
        return np.asarray(modelled(data, y, np.asarray(mu)).gradient)

    model = to_numpy(modelled(data, x, np.asarray(MU)))
    hessian = np.asarray(model.hessian)
    if ball:
        hessian = hessian + float(model.rank_one) * np.outer(model.gauge_slope, model.gauge_slope)
    step = 1e-6 * np.max(np.abs(x))
    differences = np.stack(
        [(gradient(x + step * e) - gradient(x - step * e)) / (2 * step) for e in np.eye(x.size)]
    )
    lone = np.flatnonzero(np.asarray(data.sizes) == 1) * (
        data.num_groups + 1 - data.loss.shift_invariant
    )
    differences[lone, lone] += (
        1  # where there is no mode the matrix has a curvature of one, to be regular
    )
    if (
        bias == "free" and data.loss.kind == "cross-entropy"
    ):  # and where all scores are shifted it has one too
        shift = np.concatenate([np.zeros(x.size - data.num_groups), 1 / data.loss.scales])
        np.testing.assert_allclose(differences @ shift, 0, atol=1e-6 * np.max(np.abs(differences)))
        pinned = hessian @ shift
        differences += np.outer(pinned, pinned) / (pinned @ shift)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12 * np.max(np.abs(hessian)))
    np.testing.assert_allclose(hessian, differences, rtol=1e-5, atol=1e-6 * np.max(np.abs(hessian)))
    assert np.linalg.eigvalsh(hessian)[0] > 0
    change = (gradient(x, MU * 1.0001) - gradient(x, MU * 0.9999)) / (0.0002 * MU)
    np.testing.assert_allclose(model.by_mu, change, rtol=1e-5, atol=1e-6 * np.max(np.abs(change)))


@pytest.mark.slow
@for_each("size", [1, 6, 13])
def test_both_factorisations_solve(size: int) -> None:
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(size, size)) * 10 ** rng.uniform(-4, 4, size)[:, None]
    matrix, vector = factor @ factor.T, rng.normal(size=size)
    matrices = jnp.stack([jnp.asarray(matrix), jnp.eye(size)], axis=-1)
    solved = compiled(lambda A, b: solver(A)(b))(
        matrices, jnp.stack([jnp.asarray(vector)] * 2, axis=-1)
    )
    scale, solved = np.sqrt(np.diag(matrix)), np.asarray(solved)
    exact = np.linalg.solve(matrix / np.outer(scale, scale), vector / scale) / scale
    np.testing.assert_allclose(
        scale * solved[:, 0], scale * exact, rtol=1e-6, atol=1e-7 * np.max(np.abs(scale * exact))
    )
    np.testing.assert_allclose(solved[:, 1], vector, rtol=1e-12)


_followed = compiled(follow_path)


def followed(data: GroupProblem, tol: float = 1e-11) -> PathEnd:
    return to_numpy(_followed(data, np.asarray(tol), np.int32(200)))


SOLVED = [
    ("cross-entropy", (3, 2), "none", False),
    ("squared-error", (3, 2), "free", True),
    ("weighted-cdt", (3, 2), "penalised", False),
    ("squared-error", (2, 3, 1), "free", True),
    ("logit-adjusted", (2, 3, 1), "free", False),
    ("label-smoothing", (4,), "none", True),
]
each_solved = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if index < 1 else pytest.mark.nightly)
        for index, kind in enumerate(SOLVED)
    ],
    ids=str,
)


def some(seed: int, count: int, kind: tuple[str, tuple[int, ...], str, bool]) -> list[Problem]:
    rng = np.random.default_rng(seed)
    loss, sizes, bias, ball = kind
    return [random_problem(rng, loss, sizes, bias=bias, ball=ball) for _ in range(count)]


def value_at(data: GroupProblem, minimum: PathEnd) -> float:
    """The objective with the penalty of the logits, without that of the bias."""
    value = float(mean_loss(data, rows_of(minimum.logits, minimum.bias)))
    return (
        value
        if data.gauge.bounded
        else value + float(data.gauge.price * nuclear_norm(data, minimum.logits))
    )


@pytest.mark.slow
@each_solved
def test_random_problems_converge_and_a_batch_is_its_problems_one_by_one(kind: Any) -> None:
    data = [data_of(problem) for problem in some(3, 24, kind)]
    together = followed(batched(data))
    assert np.all(together.status == Status.CONVERGED), together.status
    assert np.all(together.residual <= 1e-3)
    assert np.all(together.steps < 120)
    for index in range(3):
        alone, same = followed(data[index]), one_of(together, index)
        # A gap of epsilon leaves the point to about its root, but the value to epsilon.
        np.testing.assert_allclose(alone.logits.within, same.logits.within, atol=1e-2)
        first, second = (value_at(data[index], minimum) for minimum in (alone, same))
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)


@pytest.mark.nightly
def test_vmap_is_the_batch() -> None:
    data = batched([data_of(problem) for problem in some(4, 5, SOLVED[0])])
    together = followed(data)
    mapped = jax.jit(
        jax.vmap(lambda p: follow_path(p, jnp.asarray(1e-11)), in_axes=-1, out_axes=-1)
    )(data)
    np.testing.assert_array_equal(mapped.status, together.status)
    np.testing.assert_allclose(mapped.logits.between, together.logits.between, atol=1e-9)
    np.testing.assert_allclose(mapped.logits.within, together.logits.within, atol=1e-9)


@pytest.mark.nightly
@for_each("loss", LOSSES)
@for_each("ball", [False, True])
@for_each("sizes", [(4,), (3, 2), (2, 30), (1, 2, 3), (40, 1, 9)])
def test_every_loss_converges(loss: str, ball: bool, sizes: tuple[int, ...]) -> None:
    for bias in ("none", "free", "penalised")[: 2 if ball else 3]:
        data = batched([data_of(problem) for problem in some(5, 64, (loss, sizes, bias, ball))])
        found = to_numpy(_followed(data, np.asarray(1e-10), np.int32(200), 0.5))
        assert np.mean(found.status == Status.CONVERGED) > 0.98, found.status


def test_the_tolerance_is_reached_and_fewer_steps_are_reported() -> None:
    data = data_of(some(6, 1, SOLVED[0])[0])
    best = followed(data, 1e-12)
    assert followed(data, 1e-3).steps < best.steps
    few = to_numpy(_followed(data, np.asarray(1e-12), np.int32(3)))
    assert few.status == Status.MAX_STEPS
    assert few.steps == 3


def test_what_is_not_finite_is_a_status_and_ends_the_path() -> None:
    data = data_of(some(7, 1, SOLVED[0])[0])
    bad = with_price(data, np.asarray(np.nan))
    with np.errstate(invalid="ignore"):
        found = followed(bad)
    assert found.status != Status.CONVERGED


def test_first_margins_are_exact_where_groups_do_not_interact() -> None:
    problem = ufm.Problem(
        class_counts=ufm.ClassGroups((50.0, 20.0), (3, 2)),
        feature_dim=5,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(2e-3, 1e-2),
    )
    margins, price = first_margins(data_of(problem))
    np.testing.assert_allclose(margins, 1 - 190 * np.sqrt(2e-5) / np.sqrt([50, 20]), rtol=1e-14)
    found = followed(data_of(problem), 1e-14)
    np.testing.assert_allclose(found.logits.within, margins, rtol=1e-6)
    assert float(price) == pytest.approx(np.sqrt(2e-5))
