"""Bounds from value, gradient and infimum: valid anywhere, tight at minimisers, false for none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import fifty_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fifty_digits import MP
from random_problems import (
    ALL_KINDS,
    Kind,
    random_feasible,
    random_logits,
    random_problem,
    stacked,
)
from tables import for_each, slow

import ufm
from ufm.certificates import chord_bound
from ufm.problems import Loss, Parameters, Problem, class_samples

pytestmark = pytest.mark.usefixtures("float64")

PROBLEMS, POINTS = 40, 10


class Own(NamedTuple):
    """A loss as a user writes it, and its value in fifty digits."""

    function: Callable[[Any, Any], Any]
    exact: Callable[[Any, int], Any]

    @property
    def loss(self) -> Loss:
        return ufm.losses.from_function(self.function)


def cross_entropy(z: Any, y: Any) -> Any:
    return jax.nn.logsumexp(z) - jnp.sum(y * z)


def squared_error(z: Any, y: Any) -> Any:
    return 0.5 * jnp.sum((z - y) ** 2)


def binary_cross_entropy(z: Any, y: Any) -> Any:
    return jnp.sum(jax.nn.softplus(z) - y * z)


def squared_hinge(z: Any, y: Any) -> Any:
    return 0.5 * jnp.sum(jnp.maximum(0, 1 - (2 * y - 1) * z) ** 2)


def exponential(z: Any, y: Any) -> Any:
    return jnp.sum((1 - y) * jnp.exp(z - jnp.sum(y * z)))


def signs(k: int, size: int) -> list[int]:
    return [1 if c == k else -1 for c in range(size)]


OWN = {
    "cross-entropy": Own(
        cross_entropy, lambda z, k: MP.log1p(MP.fsum(MP.exp(a - z[k]) for a in others(z, k)))
    ),
    "squared-error": Own(
        squared_error,
        lambda z, k: MP.fsum((a - int(c == k)) ** 2 for c, a in enumerate(z)) / 2,
    ),
    "binary": Own(
        binary_cross_entropy,
        lambda z, k: MP.fsum(
            MP.log1p(MP.exp(-s * a)) for s, a in zip(signs(k, len(z)), z, strict=True)
        ),
    ),
    "squared-hinge": Own(
        squared_hinge,
        lambda z, k: (
            MP.fsum(max(1 - s * a, 0) ** 2 for s, a in zip(signs(k, len(z)), z, strict=True)) / 2
        ),
    ),
    "exponential": Own(exponential, lambda z, k: MP.fsum(MP.exp(a - z[k]) for a in others(z, k))),
}


def others(z: Any, k: int) -> list[Any]:
    return [a for c, a in enumerate(z) if c != k]


def exact_objective(problem: Problem, own: Own, point: Any) -> Any:
    """Return the objective of floats taken as exact numbers, in fifty digits."""
    point = fifty_digits.within_balls(
        problem, Parameters(point.weights, point.features, point.bias)
    )
    plain = eqx.tree_at(lambda p: p.loss, problem, ufm.SquaredError())
    weights, features = (fifty_digits.rows_of(m) for m in (point.weights[0], point.features))
    bias = [MP.zero] * len(weights) if point.bias is None else fifty_digits.vector(point.bias)
    logits = [[MP.fdot(w, h) + b for w, b in zip(weights, bias, strict=True)] for h in features]
    shares = fifty_digits.shares_of(problem)
    penalty = fifty_digits.objective(plain, point) - MP.fdot(
        shares, fifty_digits.losses_of(plain, logits)
    )
    return penalty + MP.fdot(shares, [own.exact(z, k) for k, z in enumerate(logits)])


def at_class_level(problem: Problem, point: Parameters) -> jax.Array:
    return problem.objective(point, class_samples(problem, jnp.float64))


def bound_at(problem: Problem, logits: Any) -> jax.Array:
    return chord_bound(problem, jnp.asarray(logits)).lower_bound


bound_of = jax.jit(bound_at)
batched_bound = jax.jit(jax.vmap(bound_at))
batched_objective = jax.jit(jax.vmap(jax.vmap(at_class_level, (None, 0))))

# Any point: the library's losses, whose conjugates are not asked.

FEW: dict[Kind, Any] = {
    Kind("cross-entropy", use_bias=True): pytest.mark.slow,
    Kind("squared-error", nonnegative=True, ball=True): (),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=FEW.get(k, pytest.mark.nightly)) for k in ALL_KINDS],
    ids=str,
)
def test_the_bound_lies_below_the_objective_of_every_feasible_point(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    problems = [random_problem(kind, rng) for _ in range(PROBLEMS)]
    logits = [random_logits(rng) for _ in problems]
    for index, size in enumerate((1e10, 1e100, 1e300, np.inf, np.nan)):
        logits[index] = logits[index] * size
    lower = np.asarray(batched_bound(stacked(problems), jnp.asarray(np.stack(logits))))
    points = [stacked([random_feasible(p, rng) for _ in range(POINTS)]) for p in problems]
    values = np.asarray(batched_objective(stacked(problems), stacked(points)))
    assert not np.any(np.isnan(lower))
    # Losses are never negative, and no bound is below the mean of their infima.
    assert np.all(lower >= -1e-15)
    assert np.all(lower[:, None] <= values * (1 + 1e-13))


# Minimisers

SETTINGS: dict[str, dict[str, Any]] = {
    "no bias": {"regularizer": ufm.WeightDecay(weights=1e-2, features=2e-3)},
    "free bias": {"regularizer": ufm.WeightDecay(weights=1e-2, features=2e-3), "use_bias": True},
    "penalised bias": {
        "regularizer": ufm.WeightDecay(weights=1e-2, features=2e-3, bias=3e-3),
        "use_bias": True,
    },
    "balls": {"regularizer": ufm.NormBall(weights=0.2, features=0.5), "use_bias": True},
    "non-negative": {
        "regularizer": ufm.WeightDecay(weights=1e-2, features=2e-3),
        "use_bias": True,
        "nonnegative_features": True,
    },
}
BY_DEFAULT = {("squared-hinge", "no bias")}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(n, s, marks=() if (n, s) in BY_DEFAULT else pytest.mark.slow)
        for n in OWN
        for s in SETTINGS
    ],
)
def test_minimisers_are_certified_and_their_bounds_hold_in_fifty_digits(
    name: str, setting: str
) -> None:
    own = OWN[name]
    for counts in ((9.0, 5.0, 4.0), (800.0, 30.0, 1.0)):
        problem = Problem(class_counts=counts, feature_dim=3, loss=own.loss, **SETTINGS[setting])
        solution = ufm.solve(problem)
        certificate = solution.certificate
        assert certificate is not None
        assert certificate.holds, str(certificate)
        assert certificate.lower_bound <= exact_objective(problem, own, solution)


@pytest.mark.slow
def test_an_error_of_the_point_costs_the_bound_its_square() -> None:
    problem = Problem(
        class_counts=(9.0, 5.0, 4.0),
        feature_dim=3,
        loss=OWN["cross-entropy"].loss,
        **SETTINGS["free bias"],
    )
    solution = ufm.solve(problem)
    logits = np.asarray(solution.logits)
    noise = np.random.default_rng(0).standard_normal(logits.shape)
    errors = np.array([1e-2, 1e-3, 1e-4])
    points = jnp.asarray(logits + errors[:, None, None] * noise)
    lower = np.asarray(jax.jit(jax.vmap(bound_at, (None, 0)))(problem, points))
    assert np.all(lower <= solution.objective)
    assert np.all(solution.objective - lower <= 20 * errors**2 * solution.objective + 1e-11)


# What the bound rests on


def test_a_residual_of_a_free_bias_would_make_the_bound_false() -> None:
    """The formula without a price of the residual lies above the optimum; the bound does not."""
    problem = Problem(
        class_counts=(8.0, 1.0, 1.0),
        feature_dim=3,
        loss=OWN["cross-entropy"].loss,
        regularizer=ufm.WeightDecay(weights=1.0, features=1.0),
        use_bias=True,
    )
    # The features collapse, and the best bias gives the entropy of the shares. At zero logits the
    # gradients are as small as they have to be, and v is the entropy of even shares, log 3.
    shares = np.array([0.8, 0.1, 0.1])
    optimum = -np.sum(shares * np.log(shares))
    zero = jnp.zeros((3, 3))
    slopes = jax.vmap(jax.grad(cross_entropy))(zero, jnp.eye(3))
    weighted = (shares / np.sqrt(10 * shares))[:, None] * slopes
    assert jnp.linalg.norm(weighted, 2) < problem.gauge.price
    assert np.log(3) > optimum + 0.4
    assert optimum - 1e-9 <= float(bound_of(problem, zero)) <= optimum


@pytest.mark.slow
@for_each("shift", [0.0, 1e-6, 1.0, 30.0])
def test_a_bias_that_is_off_is_brought_back(shift: float) -> None:
    problem = Problem(
        class_counts=(8.0, 1.0, 1.0),
        feature_dim=3,
        loss=OWN["squared-error"].loss,
        **SETTINGS["free bias"],
    )
    solution = ufm.solve(problem)
    logits = jnp.asarray(solution.logits) + shift * jnp.asarray([[1.0, -2.0, 0.5]])
    lower = float(bound_of(problem, logits))
    assert solution.objective * (1 - 1e-10) <= lower <= solution.objective


@pytest.mark.slow
def test_a_bias_that_nothing_holds_gives_no_more_than_the_infimum() -> None:
    """Only differences of the first two logits are seen: no constant logits mend the third's."""
    loss = ufm.losses.from_function(
        lambda z, y: jax.nn.softplus(z[1] - z[0]) + jnp.maximum(z[2], 0.0),
        infimum=0.0,
        shift_invariant=False,
    )
    problem = Problem(
        class_counts=(3.0, 2.0, 1.0), feature_dim=3, loss=loss, **SETTINGS["free bias"]
    )
    logits = jnp.asarray([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 2.0]])
    assert float(bound_of(problem, logits)) == 0.0


@pytest.mark.slow
def test_an_infimum_that_is_not_known_is_not_needed_at_minimisers() -> None:
    fields: dict[str, Any] = {"class_counts": (9.0, 5.0, 4.0), "feature_dim": 3}
    fields |= SETTINGS["no bias"]
    loss = ufm.losses.from_function(squared_error, infimum=-np.inf)
    solution = ufm.solve(Problem(loss=loss, **fields))
    assert solution.certificate is not None
    assert solution.certificate.holds
    far = bound_of(Problem(loss=loss, **fields), 10 * jnp.eye(3))
    assert float(far) <= solution.objective


def test_infima_of_target_rows_enter_the_bound() -> None:
    """The squared error less one number per class: all bounds fall by the mean of the numbers."""
    falls = jnp.asarray([1.0, 2.0, 30.0])
    fields: dict[str, Any] = {"class_counts": (9.0, 5.0, 4.0), "feature_dim": 3}
    fields |= SETTINGS["no bias"]
    lowered = ufm.losses.from_function(
        lambda z, y: squared_error(z, y) - jnp.sum(falls * y),
        infimum=lambda y: -jnp.sum(falls * y),
        name="lowered",
    )
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)))
    less = (9 * 1.0 + 5 * 2.0 + 4 * 30.0) / 18
    low, plain = (
        float(bound_of(Problem(loss=loss, **fields), logits))
        for loss in (lowered, OWN["squared-error"].loss)
    )
    assert low == pytest.approx(plain - less, rel=1e-12)
    # Gaps are measured above the mean of the infima, so the minimiser's is as small as without.
    certificate = ufm.solve(Problem(loss=lowered, **fields)).certificate
    assert certificate is not None
    assert certificate.holds
    assert certificate.infimum == pytest.approx(-less)
    assert certificate.lower_bound < 0 < certificate.scale < 1


@for_each("use_bias", [False, slow(True)])
def test_rows_of_any_number_are_certified_and_their_bounds_lie_below(use_bias: bool) -> None:
    """More rows than outputs, weights of features that are not the counts, rows of any mass."""
    draws = np.random.default_rng(0)
    rows = draws.dirichlet(np.ones(3), 7)
    targets = ufm.Targets.contexts(rows, draws.uniform(1, 9, 7))
    fields: dict[str, Any] = {
        "targets": targets,
        "feature_dim": 3,
        "regularizer": ufm.WeightDecay(weights=1e-2, features=1e-2),
        "use_bias": use_bias,
    }
    own = ufm.solve(Problem(loss=OWN["cross-entropy"].loss, **fields))
    library = ufm.solve(Problem(loss=ufm.CrossEntropy(), **fields))
    assert own.certificate is not None
    assert own.certificate.holds
    assert own.objective == pytest.approx(library.objective, rel=1e-10)
    assert own.certificate.lower_bound <= library.objective * (1 + 1e-15)


def test_a_claim_that_is_wrong_is_found_and_nothing_holds() -> None:
    fields: dict[str, Any] = {"class_counts": (9.0, 5.0, 4.0), "feature_dim": 3}
    fields |= SETTINGS["no bias"]
    below = ufm.losses.from_function(lambda z, y: squared_error(z, y) - 5.0, name="below")
    bent = ufm.losses.from_function(
        lambda z, y: 1 - jnp.sum(y * jax.nn.softmax(z)), name="saturating"
    )
    for loss, wrong in ((below, "infimum"), (bent, "convexity")):
        certificate = ufm.solve(Problem(loss=loss, **fields), restarts=1).certificate
        assert certificate is not None
        assert not certificate.holds
        assert f"{loss.label} is wrong in: {wrong}" in certificate.doubt
