from typing import Any

import jax
import mpmath
import numpy as np
import plain
import pytest
from plain import CASES, COUNTS, K, N, a_problem
from tables import for_each, slow

import ufm
from ufm._support import Status
from ufm.solving.solution import matrix_point

PROBLEM = a_problem(use_bias=True)


@pytest.fixture(scope="module")
def solution() -> ufm.Solution:
    return ufm.solve(PROBLEM)


# What a solution holds


def test_shapes_and_types(solution: ufm.Solution) -> None:
    shapes = {
        "features": (K, 4),
        "bias": (K,),
        "logits": (K, K),
        "class_features": (K, 4),
    }
    assert [matrix.shape for matrix in solution.weights] == [(K, 4)]
    for name, shape in shapes.items():
        assert getattr(solution, name).shape == shape
    for array in (*solution.weights, *(getattr(solution, name) for name in shapes)):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float64
    assert isinstance(solution.objective, float)
    assert isinstance(solution.relative_gradient, float)
    assert isinstance(solution.steps, int)
    assert (solution.status, solution.resolution) == (Status.CONVERGED, "classes")
    assert solution.problem is PROBLEM
    assert solution.trajectory is None
    assert 0 < solution.steps <= solution.evaluations
    assert solution.seconds > 0


def test_the_numbers_belong_together(solution: ufm.Solution) -> None:
    lifted = solution.parameters._replace(features=solution.sample_features)
    expected = plain.objective(PROBLEM, CASES[0].formula, lifted, solution.labels)
    assert solution.objective == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(
        solution.logits, plain.logits(PROBLEM, solution.parameters), rtol=1e-13
    )
    np.testing.assert_array_equal(solution.class_features, solution.features)
    assert solution.relative_gradient <= 1e-9


def slopes(solution: ufm.Solution) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of the data term of cross-entropy: for weights, features and bias."""
    counts = np.asarray(solution.problem.class_counts, float)
    logits, labels = solution.logits, np.eye(counts.size)
    above = np.exp(logits - np.diag(logits)[:, None]) * (1 - labels)
    others = above / (1 + above.sum(axis=1, keepdims=True))
    # The label's own entry is less the sum of the others, which keeps the digits of tiny losses.
    rows = (counts / counts.sum())[:, None] * (others - others.sum(axis=1)[:, None] * labels)
    return rows.T @ solution.features, rows @ solution.weights[0], rows.sum(axis=0)


def relative_gradient(solution: ufm.Solution) -> float:
    """Sum over blocks of ||gradient|| max(||block||, typical norm) over the objective.

    It is taken in balanced coordinates, as documented, from the solution alone. The blocks of
    weights and features must be longer than is typical.
    """
    decay, counts = solution.problem.regularizer, np.asarray(solution.problem.class_counts)
    (W,), H, b = solution.weights, solution.features, solution.bias
    roots, mean = np.sqrt(counts)[:, None], np.mean(counts)
    weights, features, bias = slopes(solution)
    scale = (decay.features / decay.weights) ** 0.25  # of W = scale V and sqrt(n) h = u / scale
    unit = mean**0.25 / np.sqrt(mean * counts.size)  # of b
    blocks = (W / scale, scale * roots * H, b / unit)
    gradients = (
        scale * (weights + decay.weights * W),
        (features / roots + decay.features * roots * H) / scale,
        unit * (bias + decay.bias * b),
    )
    typical = (0.0, 0.0, 1 / unit)
    parts = zip(gradients, blocks, typical, strict=True)
    total = sum(np.linalg.norm(g) * max(np.linalg.norm(x), size) for g, x, size in parts)
    return float(total / solution.objective)


def test_the_relative_gradient_is_what_is_documented(solution: ufm.Solution) -> None:
    for steps in (3, 8):
        stopped = ufm.solve(PROBLEM, method=ufm.LBFGS(), max_steps=steps)
        assert stopped.relative_gradient > 1e-2
        assert relative_gradient(stopped) == pytest.approx(stopped.relative_gradient, rel=1e-10)
    loose = ufm.solve(PROBLEM, method=ufm.LBFGS(), tol=1e-3)
    assert relative_gradient(loose) == pytest.approx(loose.relative_gradient, rel=1e-10)
    assert loose.relative_gradient <= 1e-3
    assert relative_gradient(solution) == pytest.approx(solution.relative_gradient, abs=1e-14)


def test_the_point_is_balanced_and_the_bias_centred(solution: ufm.Solution) -> None:
    decay = PROBLEM.regularizer
    (W,), H, D = solution.weights, solution.features, np.diag(COUNTS)
    np.testing.assert_allclose(decay.weights * W.T @ W, decay.features * H.T @ D @ H, atol=1e-10)
    np.testing.assert_allclose(np.sum(solution.bias), 0, atol=1e-14)


def test_samples_have_the_features_of_their_class(solution: ufm.Solution) -> None:
    np.testing.assert_array_equal(solution.labels, np.repeat(np.arange(K), (5, 3, 2)))
    assert solution.sample_features.shape == (N, 4)
    np.testing.assert_array_equal(solution.sample_features, solution.features[solution.labels])


def test_it_is_certified_and_the_certificate_can_be_had_again(solution: ufm.Solution) -> None:
    certificate = solution.certificate
    assert certificate is not None
    assert certificate.holds
    assert certificate.objective == pytest.approx(solution.objective, rel=1e-14)
    again = ufm.certify(PROBLEM, solution)
    assert again is not None
    assert again.lower_bound == pytest.approx(certificate.lower_bound, rel=1e-13)
    assert solution.check() is solution


def test_it_prints_what_matters(solution: ufm.Solution) -> None:
    text = str(solution)
    for part in (
        f"{solution.objective:.15g}",
        "converged",
        "holds",
        "K = 3, N = 10, d = 4",
        "CrossEntropy",
    ):
        assert part in text
    assert len(text.splitlines()) == 5


def test_one_start_where_a_certificate_decides(solution: ufm.Solution) -> None:
    restarts = solution.restarts
    assert restarts.best == 0
    assert [array.shape for array in restarts[:4]] == [(1,)] * 4
    np.testing.assert_allclose(restarts.objective, solution.objective, rtol=1e-13)
    assert restarts.status[0] == Status.CONVERGED


def test_a_problem_without_samples_has_no_labels() -> None:
    real = ufm.solve(a_problem(use_bias=True, class_counts=(5, 3, 2.5)))
    assert real.check().certificate is not None
    with pytest.raises(ValueError, match=r"whole `class_counts`, got 2.5"):
        _ = real.labels
    with pytest.raises(ValueError, match=r"whole `class_counts`, got 2.5"):
        _ = real.sample_features


# Initial points


def test_the_key_decides_the_initial_point_and_nothing_else(solution: ufm.Solution) -> None:
    for key in (0, np.int64(0)):
        np.testing.assert_array_equal(ufm.solve(PROBLEM, key=key).weights[0], solution.weights[0])
    others = [ufm.solve(PROBLEM, key=key) for key in (1, jax.random.key(3), jax.random.PRNGKey(3))]
    np.testing.assert_array_equal(others[1].weights[0], others[2].weights[0])
    for other in others:
        assert other.objective == pytest.approx(solution.objective, rel=1e-13)
        assert np.max(np.abs(other.weights[0] - solution.weights[0])) > 1e-3
        np.testing.assert_allclose(other.logits, solution.logits, atol=1e-8)


def test_several_starts_return_the_best() -> None:
    best = ufm.solve(PROBLEM, method=ufm.GradientDescent(0.5), restarts=4, max_steps=4)
    restarts = best.restarts
    assert [array.shape for array in restarts[:4]] == [(4,)] * 4
    assert restarts.best == np.argmin(restarts.objective)
    assert best.objective == pytest.approx(np.min(restarts.objective), rel=1e-13)
    assert np.ptp(restarts.objective) > 0
    assert best.status == restarts.status[restarts.best]
    np.testing.assert_array_equal(restarts.steps, 4)


def test_a_warm_start_needs_few_steps(solution: ufm.Solution) -> None:
    again = ufm.solve(PROBLEM, initial=solution)
    assert again.status is Status.CONVERGED
    assert again.steps <= 2 < solution.steps
    assert again.objective == pytest.approx(solution.objective, rel=1e-14)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    turned = ufm.Parameters(
        (1.01 * solution.weights[0] @ rotation,), solution.features @ rotation, solution.bias
    )
    near = ufm.solve(PROBLEM, initial=turned)
    assert near.steps < solution.steps
    assert near.objective == pytest.approx(solution.objective, rel=1e-13)
    # Where a descent starts is where it ends, up to what it has to change.
    np.testing.assert_allclose(near.weights[0], solution.weights[0] @ rotation, atol=1e-6)


# Both resolutions

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "one-linear": {},
    "one-relu": {"activation": "relu"},
    "two-linear": {"hidden_dims": (4,), "activation": "linear"},
    "two-relu": {"hidden_dims": (4,), "activation": "relu"},
}
ALL = [
    (architecture, loss, bias)
    for architecture in ARCHITECTURES
    for loss in ("ce", "mse")
    for bias in (False, True)
]


def agree(architecture: str, loss: str, use_bias: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = len(ARCHITECTURES[architecture].get("hidden_dims", ())) + 1
    problem = a_problem(
        class_counts=rng.permutation((4, 3, 2)),
        loss=ufm.CrossEntropy() if loss == "ce" else ufm.SquaredError(),
        regularizer=ufm.WeightDecay(
            weights=10 ** rng.uniform(-2.5, -2, layers),
            features=10 ** rng.uniform(-3, -2.5),
            bias=0.01,
        ),
        use_bias=use_bias,
        **ARCHITECTURES[architecture],
    )
    kinks = architecture == "two-relu"
    classes, samples = (
        ufm.solve(problem, resolution=resolution, restarts=16 if kinks else None)
        for resolution in ("classes", "samples")
    )
    assert classes.status is Status.CONVERGED
    assert samples.status is Status.CONVERGED
    assert samples.objective == pytest.approx(classes.objective, rel=1e-10)
    assert (samples.resolution, samples.features.shape) == ("samples", (9, 4))
    # Every sample of a class ends at its class's point.
    means = np.stack([samples.features[samples.labels == k].mean(axis=0) for k in range(K)])
    np.testing.assert_allclose(samples.features, means[samples.labels], atol=1e-6)
    lifted = classes.parameters._replace(features=classes.sample_features)
    formula = CASES[0 if loss == "ce" else 1].formula
    assert plain.objective(problem, formula, lifted, classes.labels) == pytest.approx(
        classes.objective, rel=1e-13
    )


@pytest.mark.slow
def test_resolutions_agree() -> None:
    agree("one-linear", "ce", True, seed=0)


@pytest.mark.slow
def test_one_set_of_numbers_at_every_resolution() -> None:
    problem = ufm.Problem(
        class_counts=ufm.ClassGroups((4, 2), (2, 1)),
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(0.02, 0.01),
        use_bias=True,
    )
    found = {
        resolution: ufm.solve(problem, resolution=resolution, tol=1e-11).check()  # type: ignore[arg-type]
        for resolution in ("groups", "classes", "samples")
    }
    groups = found["groups"].groups
    np.testing.assert_array_equal(groups, [0, 0, 1])
    for resolution, one in found.items():
        assert one.resolution == resolution
        own = one.groups
        (W,), M = one.weights, one.class_features
        np.testing.assert_allclose(one.weight_norms[own], np.linalg.norm(W, axis=1), rtol=1e-9)
        np.testing.assert_allclose(one.feature_norms[own], np.linalg.norm(M, axis=1), rtol=1e-9)
        np.testing.assert_allclose(
            one.blocks.logits.dense(own) + one.bias[None, :], one.logits, atol=1e-9
        )
        cosines = one.weight_cosines[np.ix_(own, own)]
        expected = W @ W.T / np.outer(np.linalg.norm(W, axis=1), np.linalg.norm(W, axis=1))
        off = ~np.eye(3, dtype=bool)
        np.testing.assert_allclose(cosines[off], expected[off], rtol=1e-7)
        others = np.max(np.where(off, one.logits, -np.inf), axis=1)
        np.testing.assert_allclose(one.margins[own], np.diagonal(one.logits) - others, rtol=1e-7)
        assert one.rank == 2
        assert one.by_group()["sizes"].sum() == 3
        np.testing.assert_allclose(one.by_group()["counts"][own], [4, 4, 2])
        assert len(one.minima) == 1
        assert one.minima[0].rank == 2
        assert repr(one) == str(one)
        assert f"{one.objective:.15g}" in one._repr_html_()
        np.testing.assert_allclose(one.margins[own], found["groups"].margins[groups], rtol=1e-5)


@pytest.mark.nightly
@for_each("seed", [1, 2])
@for_each(("architecture", "loss", "use_bias"), ALL)
def test_resolutions_agree_on_random_problems(
    architecture: str, loss: str, use_bias: bool, seed: int
) -> None:
    agree(architecture, loss, use_bias, seed)


# Constraints and unusual input


def test_norm_balls_are_met_to_rounding() -> None:
    problem = a_problem(class_counts=(4, 4, 4), regularizer=ufm.NormBall(weights=1.5, features=2.0))
    solution = ufm.solve(problem).check()
    assert np.mean(np.sum(solution.weights[0] ** 2, axis=1)) <= 1.5 * (1 + 1e-12)
    assert np.mean(np.sum(solution.features**2, axis=1)) <= 2.0 * (1 + 1e-12)
    margin = K * np.sqrt(1.5 * 2.0) / (K - 1)
    assert solution.objective == pytest.approx(np.log1p((K - 1) * np.exp(-margin)), rel=1e-12)


@pytest.mark.nightly
def test_nonnegative_features_are_exactly_so() -> None:
    problem = a_problem(nonnegative_features=True, loss=ufm.SquaredError())
    solution = ufm.solve(problem).check()
    assert np.all(solution.features >= 0)
    assert solution.objective == pytest.approx(plain.squared_error_minimum(problem), rel=1e-12)


@for_each(
    ("counts", "weights", "features"),
    [
        ((5, 3, 2), 0.02, 0.005),
        ((1e6, 10, 0.5), 1e-4, 1e-9),
        ((900, 30, 1), 1e-3, 1e-4),  # the last class is dead: sqrt(n) < N tau
        ((5, 3, 2), 2.0, 2.0),  # all of them are
        ((0.05, 0.03, 0.02), 0.02, 0.5),
    ],
)
def test_unusual_counts_have_the_closed_form(counts: Any, weights: float, features: float) -> None:
    problem = a_problem(
        class_counts=counts,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=weights, features=features),
    )
    solution = ufm.solve(problem).check()
    assert solution.objective == pytest.approx(plain.squared_error_minimum(problem), rel=1e-9)


@pytest.mark.slow
def test_fewer_dimensions_than_classes_keep_the_largest() -> None:
    problem = a_problem(loss=ufm.SquaredError(), feature_dim=2)
    solution = ufm.solve(problem)
    shed = plain.squared_error_minimum(a_problem(loss=ufm.SquaredError()))
    tau = np.sqrt(0.02 * 0.005)
    kept = np.sqrt(2) - N * tau
    shed += 2 / (2 * N) - ((N * tau) ** 2 / (2 * N) + tau * kept)
    assert solution.objective == pytest.approx(shed, rel=1e-12)
    assert solution.certificate is not None
    assert solution.certificate.lower_bound < solution.objective


def test_more_dimensions_than_classes_change_nothing(solution: ufm.Solution) -> None:
    wide = ufm.solve(a_problem(use_bias=True, feature_dim=40)).check()
    assert wide.objective == pytest.approx(solution.objective, rel=1e-13)
    assert wide.weights[0].shape == (K, 40)
    assert wide.class_features.shape == (K, 40)


@pytest.mark.nightly
def test_single_precision_on_request(solution: ufm.Solution) -> None:
    rough = ufm.solve(PROBLEM, dtype="float32")
    assert rough.status is Status.CONVERGED
    assert rough.relative_gradient <= 1e-4
    assert rough.objective == pytest.approx(solution.objective, rel=1e-5)
    assert rough.certificate is not None
    assert rough.certificate.lower_bound <= solution.objective
    assert all(
        array.dtype == np.float64 for array in (*rough.weights, rough.features, rough.logits)
    )


def test_check_says_where_no_certificate_holds(solution: ufm.Solution) -> None:
    shaken = solution.parameters._replace(features=1.1 * solution.features)
    loose = ufm.certify(PROBLEM, shaken)
    assert loose is not None
    assert not loose.holds
    claimed = jax.tree.map(lambda leaf: leaf, solution)
    object.__setattr__(claimed, "certificate", loose)
    with pytest.raises(
        ufm.SolveError, match=r"global optimality is not certified: .* does not hold"
    ):
        claimed.check()


def in_large_balls(radius: float, loss: ufm.losses.Loss, **changes: Any) -> ufm.Problem:
    return ufm.Problem(
        class_counts=[5, 5, 5],
        feature_dim=3,
        loss=loss,
        regularizer=ufm.NormBall(radius, radius),
        **changes,
    )


@for_each("resolution", ["classes", slow("groups")])
def test_an_objective_near_zero_is_followed_to_its_last_digit(resolution: Any) -> None:
    with mpmath.workdps(40):  # an ETF with margins K sqrt(E_W E_H) / (K - 1)
        exact = float(mpmath.log1p(2 * mpmath.exp(-150)))
    assert exact == pytest.approx(1.4350191946328822e-65, rel=1e-15)
    solution = ufm.solve(in_large_balls(100.0, ufm.CrossEntropy()), resolution=resolution)
    assert solution.status == Status.CONVERGED
    assert solution.relative_gradient <= 1e-9
    assert solution.objective == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(solution.logits[~np.eye(3, dtype=bool)], -50, rtol=1e-10)
    # On the spheres, relative to an objective of 1e-65 and to no floor.
    blocks = (solution.weights[0], solution.features)
    total = 0.0
    for g, x in zip(slopes(solution)[:2], blocks, strict=True):
        along = g - x * np.sum(g * x) / np.sum(x * x)
        total += np.linalg.norm(along) * np.linalg.norm(x)
    assert total <= 1e-9 * solution.objective
    certificate = solution.certificate
    assert certificate.holds
    assert not certificate.at_floor
    assert certificate.lower_bound == pytest.approx(exact, rel=1e-9)


@for_each(
    ("loss", "radius", "resolution"),
    [
        (ufm.SquaredError(), 100.0, "classes"),  # zero is reached, to the rounding of the logits
        (ufm.CrossEntropy(), 600.0, "classes"),  # below the smallest float
        (ufm.CrossEntropy(), 600.0, "groups"),
    ],
)
def test_where_the_floor_decided_status_and_certificate_say_so(
    loss: ufm.losses.Loss, radius: float, resolution: Any
) -> None:
    solution = ufm.solve(in_large_balls(radius, loss), resolution=resolution)
    assert solution.status == Status.FLOOR
    assert solution.status.ok
    assert solution.certificate.holds
    assert solution.certificate.at_floor
    assert "of the objective at zero" in str(solution.certificate)
    assert solution.objective < 1e-25
    if resolution == "classes":
        assert not solution.relative_gradient <= 1e-9


@pytest.mark.slow
@for_each("method", [None, ufm.GradientDescent(1.0)])
def test_more_steps_than_can_be_counted_are_no_limit(method: Any) -> None:
    problem = ufm.Problem(
        class_counts=(5.0,) * 2,
        feature_dim=2,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
    )
    assert ufm.solve(problem, method=method, max_steps=10**11).status.ok


def test_every_target_row_has_its_features() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(2), 5)
    problem = ufm.Problem(
        targets=ufm.Targets(rows),
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
    )
    features = np.arange(10.0).reshape(5, 2)
    narrow = ufm.Parameters((np.ones((2, 2)),), features, None)
    point = matrix_point(problem, narrow, jax.numpy.asarray(rows), features)
    np.testing.assert_array_equal(point.class_features, np.pad(features, ((0, 0), (0, 1))))
    np.testing.assert_array_equal(point.parameters.features, point.class_features)
