from typing import Any

import fifty_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_groups import (
    LOSSES,
    batched,
    data_of,
    one_of,
    random_blocks,
    random_problem,
    with_price,
)
from tables import for_each, slow

import ufm
from ufm._support import compiled, rebuilt, to_numpy
from ufm.certificates import GroupEvidence, dual_blocks, dual_bound, group_evidence, nuclear_norm
from ufm.problems import Blocks, GroupProblem, Problem, one_count_per_class
from ufm.solving import certified

pytestmark = pytest.mark.usefixtures("float64")

_evidence = compiled(group_evidence, once=True)
_class_bound = compiled(dual_bound, once=True)
FEW_LOSSES = ("weighted-cdt",)
each_loss = pytest.mark.parametrize(
    "loss",
    [
        pytest.param(loss, marks=() if loss in FEW_LOSSES else pytest.mark.nightly)
        for loss in LOSSES
    ],
)
each_model = for_each("ball", [False, True])


def members(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def class_bound(problem: Problem, logits: np.ndarray) -> tuple[float, float]:
    """The class-level bound that scales the dual rows, and its ratio.

    The bound that levels their singular values, which may be better, is left out.
    """
    problem = one_count_per_class(problem)
    free = _class_bound(problem, jnp.asarray(logits))
    norm = jnp.asarray(np.linalg.norm(free.dual, 2))
    bound = (
        free if problem.nonnegative_features else _class_bound(problem, jnp.asarray(logits), norm)
    )
    return float(bound.lower_bound), float(bound.ratio)


@each_loss
@each_model
@for_each("nonnegative", [False, slow(True)])
@for_each("bias", [slow("none"), "free", slow("penalised")])
def test_the_bound_is_that_of_the_classes(
    loss: str, ball: bool, nonnegative: bool, bias: str
) -> None:
    if ball and bias == "penalised":
        pytest.skip("norm balls leave the bias free")
    rng, sizes = np.random.default_rng(0), (3, 2)
    for scale in (0.1, 1.0, 20.0):
        problem = random_problem(rng, loss, sizes, bias=bias, ball=ball, nonnegative=nonnegative)
        data, blocks = data_of(problem), random_blocks(rng, sizes, scale)
        shift = None if bias == "none" else rng.normal(size=2)
        logits = blocks.dense() + (0 if shift is None else shift[members(sizes)][None, :])
        evidence = to_numpy(_evidence(data, blocks, shift, np.asarray(1e3)))
        lower, ratio = class_bound(problem, logits)
        # Where a mean is subtracted for a free bias, digits cancel and both bounds pay for them.
        slack = 1e-6 if bias == "free" or ball else 1e-11
        assert float(evidence.lower_bound) == pytest.approx(
            lower, rel=slack, abs=slack * float(evidence.at_zero)
        )
        if not ball:
            assert float(evidence.ratio) == pytest.approx(ratio, rel=1e-10)


@for_each("sizes", [slow((4,)), (1, 1, 2), slow((1, 3))])
@for_each("nonnegative", [False, slow(True)])
def test_the_bound_is_that_of_the_classes_for_any_groups(
    sizes: tuple[int, ...], nonnegative: bool
) -> None:
    rng = np.random.default_rng(1)
    problem = random_problem(rng, "logit-adjusted", sizes, nonnegative=nonnegative)
    for scale in (0.1, 3.0):
        blocks = random_blocks(rng, sizes, scale)
        evidence = to_numpy(_evidence(data_of(problem), blocks, None, np.asarray(1.0)))
        lower, ratio = class_bound(problem, blocks.dense())
        assert float(evidence.lower_bound) == pytest.approx(lower, rel=1e-11, abs=1e-12)
        assert float(evidence.ratio) == pytest.approx(ratio, rel=1e-10)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "ball", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["decay", "ball"]
)
def test_the_gauge_and_the_dual_are_those_of_the_dense_matrices(ball: bool) -> None:
    rng, sizes = np.random.default_rng(2), (3, 1, 2)
    problem = random_problem(rng, "weighted", sizes, ball=ball)
    data, blocks = data_of(problem), random_blocks(rng, sizes)
    roots = np.sqrt(np.asarray(problem.class_counts)) if not ball else np.ones(6)
    expected = np.sum(np.linalg.svd(roots[:, None] * blocks.dense(), compute_uv=False))
    assert float(nuclear_norm(data, blocks)) == pytest.approx(expected, rel=1e-13)
    dual, gram = dual_blocks(data, blocks, None)
    weighted = np.asarray(
        dual_bound(one_count_per_class(problem), jnp.asarray(blocks.dense())).dual
    )
    np.testing.assert_allclose(
        to_numpy(dual).dense(), weighted, atol=1e-12 * np.max(np.abs(weighted))
    )
    product, first = weighted @ weighted.T, np.array([0, 3, 4])
    np.testing.assert_allclose(np.asarray(gram)[:, 3], product[first, first], rtol=1e-10)
    assert float(gram[0, 0]) == pytest.approx(product[0, 1], rel=1e-9)
    assert float(gram[0, 2]) == pytest.approx(product[0, 4], rel=1e-9)


# Soundness

_certified = compiled(certified)
KINDS = [
    ("cross-entropy", (3, 2), "none", False),
    ("weighted-cdt", (3, 2), "penalised", False),
    ("cross-entropy", (3, 2), "free", True),
    ("squared-error", (2, 1), "free", False),
]
each_kind = pytest.mark.parametrize(
    ("loss", "sizes", "bias", "ball"),
    [
        pytest.param(*kind, marks=() if index == 2 else pytest.mark.nightly)
        for index, kind in enumerate(KINDS)
    ],
)


def factors(problem: Problem, blocks: Blocks, bias: Any) -> ufm.Parameters:
    """Balanced factors of the logits, by a singular value decomposition of the dense matrix."""
    roots = (
        np.sqrt(np.asarray(problem.class_counts))
        if isinstance(problem.regularizer, ufm.WeightDecay)
        else 1.0
    )
    roots = np.broadcast_to(roots, (problem.num_classes,))
    left, values, right = np.linalg.svd(roots[:, None] * blocks.dense())
    first, second = float(problem.regularizer.per_layer(1)[0]), float(problem.regularizer.features)
    if isinstance(problem.regularizer, ufm.NormBall):
        scale = (first / second) ** 0.25
    else:
        scale = (second / first) ** 0.25
    weights = scale * right.T * np.sqrt(values)
    features = left * np.sqrt(values) / (scale * roots[:, None])
    expanded = (
        None if bias is None else np.asarray(bias)[members(tuple(int(n) for n in blocks.sizes))]
    )
    return ufm.Parameters((weights,), features, expanded)


@each_kind
def test_no_bound_exceeds_the_minimum_in_fifty_digits(
    loss: str, sizes: tuple[int, ...], bias: str, ball: bool
) -> None:
    rng, closest = np.random.default_rng(3), -np.inf
    problems = [random_problem(rng, loss, sizes, bias=bias, ball=ball) for _ in range(12)]
    batch = batched([data_of(problem) for problem in problems])
    minima = to_numpy(_certified(batch, np.asarray(1e-13), 0.5, 200))
    lower = [np.asarray(minima.lower_bound)]
    for size in (1e-14, 1e-11, 1e-8, 1e-4, 1e-1):
        noise = jax.tree.map(
            lambda leaf, size=size: leaf + size * rng.normal(size=leaf.shape), minima.logits
        )
        noise = Blocks(noise.within, noise.between, minima.logits.sizes)
        shift = (
            None if minima.bias is None else minima.bias + size * rng.normal(size=minima.bias.shape)
        )
        lower.append(np.asarray(_evidence(batch, noise, shift, np.zeros(12)).lower_bound))
    for index, problem in enumerate(problems):
        stated = rebuilt(one_count_per_class(problem), regularizer=problem.regularizer)
        blocks = one_of(minima.logits, index)
        point = factors(problem, blocks, None if minima.bias is None else minima.bias[:, index])
        value = fifty_digits.objective(stated, fifty_digits.within_balls(stated, point))
        for bounds in lower:
            assert fifty_digits.number(bounds[index]) <= value
        closest = max(closest, float((fifty_digits.number(lower[0][index]) - value) / value))
    assert closest > -1e-11


@pytest.mark.slow
def test_what_rounding_leaves_of_a_mean_is_paid_for() -> None:
    # With a free bias the dual rows have mean zero but for their rounding, and those of one group
    # are 1e10 times the others.
    counts, weights = (
        (3514.286619410797, 0.011827518908744556),
        (0.0012741587537263327, 17.732481496506203),
    )
    multipliers = (0.0015788950571489753, 785.6764058870792)
    problem = Problem(
        class_counts=ufm.ClassGroups(counts, (3, 2)),
        feature_dim=5,
        loss=ufm.ClassWeighted(weights=weights, loss=ufm.LDT(multipliers=multipliers)),
        regularizer=ufm.NormBall(0.00027153272981287095, 0.0005623468256810991),
        use_bias=True,
    )
    minimum = ufm.solve(problem, resolution="groups")
    stated = rebuilt(one_count_per_class(problem), regularizer=problem.regularizer)
    value = fifty_digits.objective(stated, fifty_digits.within_balls(stated, minimum.parameters))
    rng, count = np.random.default_rng(0), 100
    sizes = 10 ** rng.uniform(-17, -13, count)
    plain, bias = minimum.blocks.logits, np.asarray(minimum.group_bias)

    def noisy(block: np.ndarray) -> np.ndarray:
        noise = sizes * rng.normal(size=(*block.shape, count))
        return block[..., None] + np.max(np.abs(block)) * noise

    near = Blocks(
        noisy(plain.within), noisy(plain.between), np.repeat(plain.sizes[:, None], count, axis=1)
    )
    batch = batched([data_of(problem)] * count)
    lower = np.asarray(_evidence(batch, near, noisy(bias), np.zeros(count)).lower_bound)
    for bound in (*lower, minimum.certificate.lower_bound):
        assert fifty_digits.number(bound) <= value
    assert minimum.certificate.holds


@pytest.mark.slow
def test_where_a_class_has_nearly_all_samples_the_bound_keeps_its_digits() -> None:
    problem = Problem(
        class_counts=ufm.ClassGroups(
            (0.06913792729617027, 8.009582732278872, 403673603034.8653), (2, 2, 1)
        ),
        feature_dim=5,
        loss=ufm.ClassWeighted(-1.7057271644408987),
        regularizer=ufm.NormBall(7.922401548899214e-05, 0.005678217921651884),
        use_bias=True,
    )
    minimum = ufm.solve(problem, resolution="groups")
    stated = rebuilt(one_count_per_class(problem), regularizer=problem.regularizer)
    value = fifty_digits.objective(stated, fifty_digits.within_balls(stated, minimum.parameters))
    assert minimum.certificate.lower_bound > 0
    assert fifty_digits.number(minimum.certificate.lower_bound) <= value


@pytest.mark.slow
def test_a_group_of_one_class_costs_the_bound_no_digits() -> None:
    # The dual rows are of the size of the objective, and no entry of a class's own group beside it
    # may enter their differences.
    counts, weights = (1.2, 1.9, 1.9, 5.7), (0.45561776, 0.71278762, 0.71278762, 34.52121928)
    problem = Problem(
        class_counts=counts,
        feature_dim=4,
        loss=ufm.ClassWeighted(weights=weights, loss=ufm.SquaredError()),
        regularizer=ufm.WeightDecay(3.042586e-9, 1.7222756e-12),
        use_bias=True,
    )
    minimum = ufm.solve(problem, resolution="groups")
    value = fifty_digits.objective(problem, minimum.parameters)
    assert fifty_digits.number(minimum.certificate.lower_bound) <= value
    assert minimum.certificate.lower_bound >= float(value) * (1 - 1e-5)


@pytest.mark.slow
@for_each("alpha", [1e-10, 1e-6])
@pytest.mark.parametrize("resolution", [pytest.param("classes", marks=pytest.mark.slow), "groups"])
def test_label_smoothing_keeps_its_digits_at_both_resolutions(
    alpha: float, resolution: Any
) -> None:
    problem = Problem(
        class_counts=(55, 4, 16),
        feature_dim=3,
        loss=ufm.LabelSmoothing(alpha),
        regularizer=ufm.NormBall(32.418603875870446, 26.970998103210878),
    )
    solution = ufm.solve(problem, resolution=resolution)
    value = fifty_digits.objective(problem, fifty_digits.within_balls(problem, solution.parameters))
    assert solution.objective == pytest.approx(float(value), rel=1e-13)
    assert fifty_digits.number(solution.certificate.lower_bound) <= value
    assert solution.certificate.lower_bound >= float(value) * (1 - 1e-12)
    if alpha == 1e-10:
        assert solution.objective == pytest.approx(1.67496421457e-9, rel=5e-12)
        assert solution.certificate.lower_bound <= 1.67496421457e-9 * (1 + 3e-12)


@for_each("resolution", [slow("classes"), "groups"])
def test_random_problems_of_little_label_smoothing_keep_their_digits(resolution: Any) -> None:
    rng = np.random.default_rng(14)
    for _ in range(18):
        problem = Problem(
            class_counts=np.round(10 ** rng.uniform(0, 2, 3)) + np.array([0.0, 0.25, 0.5]),
            feature_dim=3,
            loss=ufm.LabelSmoothing(1e-6),
            regularizer=ufm.NormBall(*10 ** rng.uniform(0.5, 2.5, 2)),
        )
        solution = ufm.solve(problem, resolution=resolution)
        point = fifty_digits.within_balls(problem, solution.parameters)
        value = fifty_digits.objective(problem, point)
        assert solution.objective == pytest.approx(float(value), rel=1e-12), problem
        assert fifty_digits.number(solution.certificate.lower_bound) <= value, problem
        assert solution.certificate.holds, problem


# What is refused


@pytest.fixture(scope="module")
def best() -> tuple[GroupProblem, Any]:
    from ufm._support import double_precision

    with double_precision():
        data = data_of(
            random_problem(np.random.default_rng(4), "cross-entropy", (3, 2), bias="free")
        )
        return data, to_numpy(_certified(data, np.asarray(1e-13), 0.0, 200))


def judged(data: GroupProblem, logits: Blocks, bias: Any, factor: float = 1.0) -> GroupEvidence:
    return to_numpy(_evidence(data, logits, bias, factor * np.asarray(nuclear_norm(data, logits))))


def accepted(evidence: GroupEvidence, tol: float = 1e-9) -> bool:
    return bool(np.isfinite(evidence.objective) and evidence.relative_gap <= tol)


def test_the_minimum_is_accepted(best: tuple[GroupProblem, Any]) -> None:
    data, minimum = best
    evidence = judged(data, minimum.logits, minimum.bias)
    assert float(minimum.relative_gap) <= 1e-11
    assert float(evidence.objective) == pytest.approx(float(minimum.objective), rel=1e-13)
    assert not accepted(judged(data, minimum.logits, minimum.bias, 1.001))


@for_each("bad", [np.nan, np.inf, -np.inf, 1e300])
@for_each("where", ["within", "between", "bias"])
def test_what_is_not_finite_or_huge_is_refused(
    best: tuple[GroupProblem, Any], bad: float, where: str
) -> None:
    data, minimum = best
    parts = {
        "within": minimum.logits.within,
        "between": minimum.logits.between,
        "bias": minimum.bias,
    }
    parts[where] = np.array(parts[where])
    parts[where].flat[1] = bad
    logits = Blocks(parts["within"], parts["between"], minimum.logits.sizes)
    evidence = judged(data, logits, parts["bias"])
    assert not accepted(evidence)
    assert not np.isnan(evidence.lower_bound)
    assert evidence.lower_bound <= minimum.objective


@for_each("size", [1e-3, 1e-1, 10.0])
def test_perturbed_points_are_refused(best: tuple[GroupProblem, Any], size: float) -> None:
    data, minimum = best
    rng = np.random.default_rng(5)
    for _ in range(5):
        logits = Blocks(
            minimum.logits.within + size * rng.normal(size=2),
            minimum.logits.between + size * rng.normal(size=(2, 2)),
            minimum.logits.sizes,
        )
        evidence = judged(data, logits, minimum.bias)
        assert not accepted(evidence)
        assert evidence.lower_bound <= minimum.objective <= evidence.objective


def test_minima_of_other_problems_are_refused(best: tuple[GroupProblem, Any]) -> None:
    data, minimum = best
    changes: list[dict[str, Any]] = [
        {"gauge": with_price(data, 1.05 * data.gauge.price).gauge},
        {"counts": data.counts * np.array([1.0, 1.2])},
        {"bias": np.asarray(0.1)},
    ]
    for change in changes:
        other = GroupProblem(**{**data.__dict__, **change})
        assert not accepted(judged(other, minimum.logits, minimum.bias))


def test_points_outside_the_norm_ball_are_refused() -> None:
    data = data_of(random_problem(np.random.default_rng(6), "cross-entropy", (3, 2), ball=True))
    minimum = to_numpy(_certified(data, np.asarray(1e-13), 0.0, 200))
    assert accepted(judged(data, minimum.logits, None))
    outside = jax.tree.map(lambda leaf: leaf * (1 + 1e-9), minimum.logits)
    evidence = judged(data, Blocks(outside.within, outside.between, minimum.logits.sizes), None)
    assert evidence.objective == np.inf
    assert not accepted(evidence)
    assert not accepted(to_numpy(_evidence(data, minimum.logits, None, np.asarray(np.nan))))
