from typing import Any

import equinox as eqx
import fifty_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fifty_digits import MP
from random_problems import (
    ALL_KINDS,
    FEW_KINDS,
    SOLVED_KINDS,
    K,
    Kind,
    easy_problem,
    random_feasible,
    random_logits,
    random_problem,
    stacked,
)
from tables import for_each

import ufm
from ufm._support import to_numpy
from ufm.certificates import DualBound, dual_bound, has_convex_form
from ufm.problems import Parameters, Problem, class_samples

pytestmark = pytest.mark.usefixtures("float64")

PROBLEMS, POINTS = 40, 20


def marks_of(kind: Kind) -> Any:
    """One kind of every setting by default, a loss of every setting if slow."""
    if kind not in FEW_KINDS:
        return pytest.mark.nightly
    return () if str(kind) in BY_DEFAULT else pytest.mark.slow


BY_DEFAULT = (
    "cross-entropy",
    "squared-error-bias",
    "cross-entropy-bias-nonnegative",
    "cdt-bias-ball",
    "weighted-nonnegative-ball",
)
each_kind = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=marks_of(kind)) for kind in ALL_KINDS],
    ids=str,
)
each_size = pytest.mark.parametrize("size", [K, pytest.param(20, marks=pytest.mark.nightly)])


def objective(problem: Problem, point: Parameters) -> jax.Array:
    """The objective at class resolution."""
    return problem.objective(point, class_samples(problem, jnp.float64))


batched_bound = jax.jit(jax.vmap(dual_bound))
batched_objective = jax.jit(jax.vmap(jax.vmap(objective, (None, 0))))


def bounds(problems: list[Problem], logits: list[np.ndarray]) -> DualBound:
    """Return the bounds at one array of logits per problem.

    Batches have one size, so that every kind of problem is compiled once.
    """
    parts = []
    for begin in range(0, len(problems), PROBLEMS):
        batch, rows = problems[begin : begin + PROBLEMS], logits[begin : begin + PROBLEMS]
        fill = PROBLEMS - len(batch)
        batch, rows = batch + batch[:1] * fill, rows + rows[:1] * fill
        result = batched_bound(stacked(batch), jnp.asarray(np.stack(rows)))
        parts.append(
            jax.tree.map(lambda leaf, fill=fill: np.asarray(leaf)[: PROBLEMS - fill], result)
        )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def objectives(problems: list[Problem], points: list[list[Parameters]]) -> np.ndarray:
    """(problems, points) objectives at class resolution."""
    batch = stacked([stacked(row) for row in points])
    return np.asarray(batched_objective(stacked(problems), batch))


# Any input


@each_kind
def test_the_bound_lies_below_the_objective_of_every_feasible_point(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    problems = [random_problem(kind, rng) for _ in range(PROBLEMS)]
    lower = bounds(problems, [random_logits(rng) for _ in problems]).lower_bound
    points = [[random_feasible(problem, rng) for _ in range(POINTS)] for problem in problems]
    values = objectives(problems, points)
    assert np.all(np.isfinite(lower))
    assert np.all(lower[:, None] <= values * (1 + 1e-13))


@each_kind
def test_logits_that_are_not_finite_or_huge_give_a_valid_bound_or_none(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(K, K)) * size for size in (1e10, 1e60, 1e100, 1e160, 1e300, np.inf)]
    for bad in (np.inf, -np.inf, np.nan):
        logits.append(rng.normal(size=(K, K)))
        logits[-1][1, 2] = bad
        logits.append(np.full((K, K), bad))
    logits *= PROBLEMS // len(logits)
    problems = [random_problem(kind, rng) for _ in range(PROBLEMS)]
    logits += logits[: PROBLEMS - len(logits)]
    lower = bounds(problems, logits).lower_bound
    values = objectives(
        problems, [[random_feasible(p, rng) for _ in range(POINTS)] for p in problems]
    )
    assert not np.any(np.isnan(lower))
    assert np.all(lower[:, None] <= values * (1 + 1e-13))


FEW = {
    (0, 0, False): pytest.mark.slow,
    (1, 0, True): pytest.mark.slow,
    (0, 1, True): pytest.mark.slow,
}

# Fifty digits


@each_kind
def test_the_bound_is_the_dual_value_of_its_rows(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    problems = [random_problem(kind, rng) for _ in range(3)]
    logits = [rng.uniform(0.1, 3) * rng.normal(size=(K, K)) for _ in problems]
    batch = bounds(problems, logits)
    for index, (problem, z) in enumerate(zip(problems, logits, strict=True)):
        lower, ratio, weighted, allowed = (leaf[index] for leaf in batch)
        dual = fifty_digits.rows_of(weighted)
        # Among non-negative features the norm is the cheap one, an upper bound, and exact to
        # rounding otherwise.
        norm = fifty_digits.dual_norm(dual, kind.nonnegative)
        if not kind.ball:
            assert float(ratio) * float(allowed) >= norm
        if not kind.ball and not kind.nonnegative:
            assert float(ratio) * float(allowed) == pytest.approx(float(norm), rel=1e-13)
        if kind.nonnegative and kind.ball:
            continue
        rows = fifty_digits.gradient_rows(problem, fifty_digits.rows_of(z))
        if fifty_digits.has_free_bias(problem):
            rows = fifty_digits.feasible_rows(problem, rows)
        theta = 1.0 if kind.ball else min(1.0, 1 / float(ratio))
        exact = fifty_digits.dual_value(problem, [[theta * u for u in row] for row in rows])
        shares = fifty_digits.shares_of(problem)
        infimum = -MP.fdot(shares, fifty_digits.conjugates(problem, [[MP.zero] * K] * K))
        exact = max(exact, infimum)
        size = float(abs(exact)) + 1e-3 * float(
            max(abs(u) * s for s, row in zip(shares, rows, strict=True) for u in row)
        )
        # A free bias pays for the digits that cancel where a mean is subtracted.
        rounding = (1e-4 if kind.use_bias else 1e-10) * size
        if kind.nonnegative:
            assert float(lower) == pytest.approx(float(exact), abs=rounding)
        else:
            # Rows with their singular values cut or raised may do better than rows that are scaled
            # down.
            assert float(lower) >= float(exact) - rounding


@pytest.mark.parametrize(
    ("loss", "regularizer", "use_bias"),
    [
        pytest.param(
            loss,
            regularizer,
            use_bias,
            marks=FEW.get((ball, mse, use_bias), pytest.mark.nightly),
        )
        for mse, loss in enumerate((ufm.CrossEntropy(), ufm.SquaredError()))
        for ball, regularizer in enumerate((ufm.WeightDecay(1e-3, 1e-4), ufm.NormBall(0.5, 0.5)))
        for use_bias in (False, True)
    ],
)
def test_the_gap_is_of_second_order(
    loss: ufm.losses.Loss, regularizer: object, use_bias: bool
) -> None:
    problem = Problem(
        class_counts=(500.0, 80.0, 9.0, 1.5),
        feature_dim=4,
        loss=loss,
        regularizer=regularizer,
        use_bias=use_bias,
    )
    optimum, direction = ufm.solve(problem, tol=1e-12), np.random.default_rng(0).normal(size=(4, 4))
    sizes = 10.0 ** np.arange(-2, -6, -1)
    bound = jax.jit(dual_bound)
    found = [bound(problem, jnp.asarray(optimum.logits + size * direction)) for size in sizes]
    gaps = optimum.objective - np.array([best.lower_bound for best in found])
    assert np.all(gaps > -1e-15)
    assert np.all(gaps[1:] < 0.02 * gaps[:-1])
    # Rows that are only scaled down lose in proportion to the noise.
    if isinstance(regularizer, ufm.WeightDecay):
        logits, best = jnp.asarray(optimum.logits + sizes[-1] * direction), found[-1]
        scaled = optimum.objective - bound(problem, logits, best.ratio * best.allowed).lower_bound
        assert scaled > 1000 * gaps[-1]


def nearby(logits: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The logits with noise of rounding and of early steps, and with wrong biases."""
    noise = [logits + 10.0**e * rng.normal(size=(K, K)) for e in (-15, -13, -11, -9, -6, -3)]
    shifted = [logits + 10.0**e * rng.normal(size=(1, K)) for e in (-12, -6, 0)]
    return [logits, *noise, *shifted, np.zeros((K, K)), logits * (1 + 1e-8)]


def check_against_fifty_digits(kind: Kind, count: int, seed: int) -> None:
    """The bounds near an approximate minimiser never exceed its objective in fifty digits."""
    rng = np.random.default_rng(seed)
    closest = -np.inf
    for key in range(count):
        problem = random_problem(kind, rng)
        solution = ufm.solve(problem, method=ufm.NewtonCG(), max_steps=200, key=key)
        point = fifty_digits.within_balls(problem, solution.parameters)
        value = fifty_digits.objective(problem, point)
        logits = nearby(solution.logits, rng)
        lower = [
            *bounds([problem] * len(logits), logits).lower_bound,
            solution.certificate.lower_bound,
        ]
        for bound in lower:
            assert fifty_digits.number(bound) <= value
        closest = max(closest, float((fifty_digits.number(max(lower)) - value) / value))
    # The comparison has teeth: some of the bounds come within rounding of the value.
    assert closest > -1e-12


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if index == 2 else pytest.mark.slow)
        for index, kind in enumerate(SOLVED_KINDS)
    ],
    ids=str,
)
def test_no_bound_exceeds_the_minimum_in_fifty_digits(kind: Kind) -> None:
    check_against_fifty_digits(kind, 10, seed=4)


@pytest.mark.nightly
@for_each("kind", ALL_KINDS)
def test_no_bound_exceeds_the_minimum_in_fifty_digits_for_any_kind(kind: Kind) -> None:
    check_against_fifty_digits(kind, 25, seed=5)


def decayed(
    counts: np.ndarray, loss: ufm.losses.Loss, weights: float, features: float, **changes: bool
) -> Problem:
    regularizer = ufm.WeightDecay(weights, features)
    return Problem(
        class_counts=counts, feature_dim=len(counts), loss=loss, regularizer=regularizer, **changes
    )


def assert_just_below(problems: list[Problem], logits: list[np.ndarray], minima: list) -> None:
    rng = np.random.default_rng(6)
    exact = bounds(problems, logits).lower_bound
    noisy = [z + 10.0 ** rng.uniform(-16, -8) * rng.normal(size=z.shape) for z in logits]
    for bound, other, minimum in zip(
        exact, bounds(problems, noisy).lower_bound, minima, strict=True
    ):
        assert fifty_digits.number(bound) <= minimum
        assert fifty_digits.number(other) <= minimum
        # Squared error: a residual z - y has an absolute rounding.
        assert bound >= float(minimum) * (1 - 1e-12) - 1e-15


@for_each("nonnegative", [False, True])
@each_size
def test_squared_error_against_its_closed_form_in_fifty_digits(
    size: int, nonnegative: bool
) -> None:
    rng = np.random.default_rng(7)
    problems, logits = [], []
    for _ in range(PROBLEMS):
        counts = 10 ** rng.uniform(0, 3, size)
        tau = 10 ** rng.uniform(-8, 0) / np.sqrt(counts.sum())
        split = 10 ** rng.uniform(-2, 2)
        problems.append(
            decayed(
                counts,
                ufm.SquaredError(),
                tau * split,
                tau / split,
                nonnegative_features=nonnegative,
            )
        )
        logits.append(np.diag(np.maximum(0, 1 - counts.sum() * tau / np.sqrt(counts))))
    assert_just_below(
        problems, logits, [fifty_digits.squared_error_minimum(problem) for problem in problems]
    )


@for_each("use_bias", [False, True])
@each_size
def test_balanced_cross_entropy_against_its_closed_form_in_fifty_digits(
    size: int, use_bias: bool
) -> None:
    rng = np.random.default_rng(8)
    problems, logits = [], []
    for _ in range(PROBLEMS):
        count, price = 10 ** rng.uniform(0, 3), 10 ** rng.uniform(-8, 0)
        margin = max(0, np.log(max(1 / price - (size - 1), 1e-300)))
        problems.append(
            decayed(
                np.full(size, count), ufm.CrossEntropy(), price / count, price, use_bias=use_bias
            )
        )
        logits.append(margin * (np.eye(size) - 1 / size))
    assert_just_below(
        problems, logits, [fifty_digits.cross_entropy_minimum(problem) for problem in problems]
    )


@for_each("loss", [ufm.CrossEntropy(), ufm.SquaredError()])
@for_each("size", [0.0, 1e-3, 1.0, 30.0])
def test_where_only_the_bias_is_left_a_wrong_one_cancels_digits_but_no_bound(
    loss: ufm.losses.Loss, size: float
) -> None:
    # Under large penalties the logits are one constant row, and the optimal values are the entropy
    # of the shares and half of 1 - sum_k s_k^2. Rows of the dual at another constant are of order
    # one, and their differences of order 1 / N.
    rng = np.random.default_rng(9)
    problems, logits = [], []
    for index in range(100):
        counts = 10 ** rng.uniform(0, 3, K)
        counts[index % K] *= 1000 if index % 4 == 0 else 1
        problems.append(decayed(counts, loss, 10.0, 10.0, use_bias=True))
        logits.append(np.tile(size * rng.normal(size=K), (K, 1)))
    for problem, bound in zip(problems, bounds(problems, logits).lower_bound, strict=True):
        shares = fifty_digits.shares_of(problem)
        entropy = -MP.fsum(s * MP.log(s) for s in shares)
        minimum = (
            (1 - MP.fdot(shares, shares)) / 2 if isinstance(loss, ufm.SquaredError) else entropy
        )
        assert fifty_digits.number(bound) <= minimum
        assert bound >= float(minimum) - 1e-6 * max(1, size)


@for_each("nonnegative", [False, True])
def test_a_dual_norm_whose_square_underflows_is_no_less(nonnegative: bool) -> None:
    problem = Problem(
        class_counts=(5.0, 5.0, 5.0),
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.NormBall(250.0, 250.0),
        nonnegative_features=nonnegative,
    )
    logits = jnp.asarray(355 * np.eye(3) - 355 / 3 if not nonnegative else 355 * np.eye(3))
    bound = float(jax.jit(dual_bound)(problem, logits).lower_bound)
    margin = 750 / np.sqrt(6) if nonnegative else 375.0  # of the minimisers
    assert 0 <= bound <= 2 * np.exp(-margin)


# What the fields are


def test_a_proved_norm_takes_the_place_of_the_cheap_one() -> None:
    problem, rng = easy_problem(Kind("cross-entropy", nonnegative=True)), np.random.default_rng(10)
    logits = jnp.asarray(rng.normal(size=(K, K)))
    compiled = eqx.filter_jit(dual_bound)
    cheap = to_numpy(compiled(problem, logits))
    exact = fifty_digits.dual_norm(fifty_digits.rows_of(cheap.dual), True)
    tighter = to_numpy(compiled(problem, logits, jnp.asarray(float(exact))))
    assert tighter.ratio <= cheap.ratio
    assert tighter.ratio == pytest.approx(float(exact) / cheap.allowed, rel=1e-13)
    unchanged = to_numpy(compiled(problem, logits, jnp.asarray(cheap.ratio * cheap.allowed)))
    assert unchanged.lower_bound == pytest.approx(cheap.lower_bound, rel=1e-12)


def test_one_layer_and_a_convex_loss_have_a_convex_form() -> None:
    one = easy_problem(Kind("cross-entropy"))
    assert has_convex_form(one)
    for change in ({"hidden_dims": (3,)}, {"loss": ufm.Focal(2.0)}):
        fields = {
            "class_counts": one.class_counts,
            "feature_dim": 3,
            "loss": one.loss,
            "regularizer": one.regularizer,
        }
        assert not has_convex_form(Problem(**(fields | change)))
