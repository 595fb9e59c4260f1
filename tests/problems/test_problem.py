from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from plain import CASES, COUNTS, Case, K, N, a_problem, on_device, random_parameters
from tables import for_each, slow, slow_but

import ufm
from ufm.problems import (
    ClassGroups,
    Parameters,
    Problem,
    class_samples,
    labelled_samples,
    labels,
    lifted,
    samples_of,
)

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT_DECAYS = {1: 0.02, 2: (0.02, 0.05), 3: (0.02, 0.05, 0.01)}
ARCHITECTURES = {
    "one-layer": {},
    "linear": {"hidden_dims": (5,), "activation": "linear"},
    "relu": {"hidden_dims": (5,), "activation": "relu"},
    "deep-relu": {"hidden_dims": (5, 3), "activation": "relu", "nonnegative_features": True},
}
each_architecture = for_each("architecture", ARCHITECTURES.values())


def stated(architecture: dict[str, Any], use_bias: bool = True, **changes: Any) -> Problem:
    layers = len(architecture.get("hidden_dims", ())) + 1
    decay = ufm.WeightDecay(weights=WEIGHT_DECAYS[layers], features=0.005, bias=0.03)
    return a_problem(**({"regularizer": decay, "use_bias": use_bias} | architecture | changes))


compiled_objective = jax.jit(Problem.objective)


def at_classes(problem: Problem, parameters: Parameters) -> float:
    columns = class_samples(problem, jnp.float64)
    return float(compiled_objective(problem, on_device(parameters), columns))


def at_samples(problem: Problem, parameters: Parameters) -> float:
    columns = samples_of(problem, plain.N)
    return float(compiled_objective(problem, on_device(parameters), columns))


def lift(problem: Problem, parameters: Parameters) -> Parameters:
    return parameters._replace(features=lifted(parameters.features, problem.class_counts))


# The objective


@each_architecture
@for_each("use_bias", [False, True])
@for_each("kind", [ufm.WeightDecay, slow(ufm.NormBall)])
def test_objective_is_the_formula_at_both_resolutions(
    kind: type, use_bias: bool, architecture: dict[str, Any]
) -> None:
    problem = stated(architecture, use_bias)
    if kind is ufm.NormBall:
        problem = stated(architecture, use_bias, regularizer=ufm.NormBall(weights=1, features=2))
    formula, sample_labels = CASES[0].formula, labels(problem.class_counts)
    samples = random_parameters(problem, rows=N)
    expected = plain.objective(problem, formula, samples, sample_labels)
    np.testing.assert_allclose(at_samples(problem, samples), expected, rtol=1e-13)
    classes = random_parameters(problem)
    expected = plain.objective(problem, formula, lift(problem, classes), sample_labels)
    np.testing.assert_allclose(at_classes(problem, classes), expected, rtol=1e-13)
    np.testing.assert_allclose(at_samples(problem, lift(problem, classes)), expected, rtol=1e-13)


@for_each("case", slow_but(CASES, keep={0, 1, 3}))
def test_objective_of_every_loss_is_the_formula_at_both_resolutions(case: Case) -> None:
    problem = stated(ARCHITECTURES["relu"], loss=case.loss)
    classes = random_parameters(problem, scale=0.7)
    expected = plain.objective(
        problem, case.formula, lift(problem, classes), labels(problem.class_counts)
    )
    np.testing.assert_allclose(at_classes(problem, classes), expected, rtol=1e-13)
    np.testing.assert_allclose(at_samples(problem, lift(problem, classes)), expected, rtol=1e-13)


@each_architecture
def test_logits_and_last_features_are_those_of_the_chain(architecture: dict[str, Any]) -> None:
    problem = stated(architecture)
    parameters = random_parameters(problem)
    logits = problem.logits(on_device(parameters))
    np.testing.assert_allclose(logits, plain.logits(problem, parameters), rtol=1e-12)
    last = problem.last_features(on_device(parameters))
    np.testing.assert_allclose(
        last @ parameters.weights[-1].T + parameters.bias[None, :], logits, rtol=1e-12
    )


def test_gradient_is_that_of_the_formula() -> None:
    problem = stated(ARCHITECTURES["relu"])
    sample_labels = labels(problem.class_counts)
    parameters = random_parameters(problem, rows=N, seed=2)
    columns = labelled_samples(problem, jnp.asarray(sample_labels), jnp.float64)
    slopes = jax.jit(jax.grad(lambda p: problem.objective(p, columns)))(on_device(parameters))

    def along(block: str) -> np.ndarray:
        def f(x: np.ndarray) -> float:
            moved = parameters._replace(
                **{block: (x, parameters.weights[1]) if block == "weights" else x}
            )
            return plain.objective(problem, CASES[0].formula, moved, sample_labels)

        start = parameters.weights[0] if block == "weights" else getattr(parameters, block)
        return plain.gradient(f, start)

    np.testing.assert_allclose(slopes.weights[0], along("weights"), atol=1e-8)
    np.testing.assert_allclose(slopes.features, along("features"), atol=1e-8)
    np.testing.assert_allclose(slopes.bias, along("bias"), atol=1e-8)


def test_the_objective_at_zero() -> None:
    problem = a_problem()
    zero = Parameters((np.zeros((K, 4)),), np.zeros((K, 4)))
    np.testing.assert_allclose(at_classes(problem, zero), np.log(K), rtol=1e-15)
    assert at_classes(a_problem(loss=ufm.SquaredError()), zero) == 0.5


@pytest.mark.slow
def test_float32_in_is_float32_out_and_agrees() -> None:
    for regularizer in (
        ufm.WeightDecay(weights=(0.02, 0.05), features=0.005),
        ufm.NormBall(weights=1, features=2),
    ):
        problem = a_problem(
            hidden_dims=(5,), regularizer=regularizer, use_bias=True, loss=ufm.CDT(0.4)
        )
        parameters = random_parameters(problem)
        single = jax.tree.map(lambda block: jnp.asarray(block, jnp.float32), parameters)
        columns = class_samples(problem, jnp.float32)
        value = problem.objective(single, columns)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, at_classes(problem, parameters), rtol=1e-5)
        if isinstance(regularizer, ufm.NormBall):
            assert all(norm.dtype == jnp.float32 for norm in problem.norms(single, columns))


# Symmetries


@each_architecture
def test_rotations_of_feature_space_leave_the_objective_alone(architecture: dict[str, Any]) -> None:
    problem = stated(architecture | {"nonnegative_features": False})
    parameters = random_parameters(problem)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0]
    turned = parameters._replace(
        features=parameters.features @ rotation,
        weights=(parameters.weights[0] @ rotation, *parameters.weights[1:]),
    )
    np.testing.assert_allclose(
        at_classes(problem, turned), at_classes(problem, parameters), rtol=1e-13
    )


@pytest.mark.slow
@each_architecture
@for_each(
    "loss",
    [
        ufm.CrossEntropy(),
        ufm.LogitAdjusted(1.0),
        ufm.CDT(0.4),
        ufm.LDT(0.4),
        ufm.ClassWeighted(1.0),
    ],
)
def test_the_order_of_the_classes_does_not_matter(loss: Any, architecture: dict[str, Any]) -> None:
    problem, order = stated(architecture, loss=loss), np.array([2, 0, 1])
    permuted = stated(architecture, loss=loss, class_counts=np.array(COUNTS)[order])
    parameters = random_parameters(problem)
    moved = Parameters(
        (*parameters.weights[:-1], parameters.weights[-1][order]),
        parameters.features[order],
        parameters.bias[order],
    )
    np.testing.assert_allclose(
        at_classes(permuted, moved), at_classes(problem, parameters), rtol=1e-13
    )


@each_architecture
def test_only_the_product_of_the_penalties_counts_up_to_scale(architecture: dict[str, Any]) -> None:
    problem = stated(architecture)
    parameters = random_parameters(problem)
    decays = np.asarray(problem.regularizer.per_layer(problem.num_layers))
    rescaled = stated(
        architecture,
        regularizer=ufm.WeightDecay(
            weights=np.array([decays[0] / 9, *decays[1:]]), features=0.005 * 9, bias=0.03
        ),
    )
    moved = parameters._replace(
        weights=(3 * parameters.weights[0], *parameters.weights[1:]),
        features=parameters.features / 3,
    )
    np.testing.assert_allclose(
        at_classes(rescaled, moved), at_classes(problem, parameters), rtol=1e-13
    )


def test_counts_matter_only_relative_to_each_other_and_to_the_feature_penalty() -> None:
    problem = a_problem()
    parameters = random_parameters(problem)
    tenfold = a_problem(
        class_counts=10 * np.array(COUNTS),
        regularizer=ufm.WeightDecay(weights=0.02, features=0.0005),
    )
    np.testing.assert_allclose(
        at_classes(tenfold, parameters), at_classes(problem, parameters), rtol=1e-13
    )


def test_classes_stated_by_groups_are_the_same_problem() -> None:
    grouped = a_problem(class_counts=ClassGroups((5, 2), sizes=(2, 1)))
    listed = a_problem(class_counts=(5, 5, 2))
    parameters = random_parameters(grouped)
    assert at_classes(grouped, parameters) == at_classes(listed, parameters)


# A problem is a pytree


def test_a_change_of_values_does_not_retrace_and_a_change_of_sizes_does() -> None:
    traces = []

    @jax.jit
    def evaluated(problem: Problem, parameters: Parameters) -> Any:
        traces.append(problem)
        return problem.objective(parameters, class_samples(problem, jnp.float64))

    def evaluate(**changes: Any) -> None:
        problem = a_problem(**({"loss": ufm.LabelSmoothing(0.1)} | changes))
        parameters = on_device(random_parameters(problem))
        np.testing.assert_allclose(
            evaluated(problem, parameters), at_classes(problem, parameters), rtol=1e-13
        )

    evaluate()
    evaluate(class_counts=[7, 7, 0.5])
    evaluate(class_counts=np.array([1, 2, 3]))
    evaluate(loss=ufm.LabelSmoothing(0.3))
    evaluate(regularizer=ufm.WeightDecay(weights=1, features=np.float32(2), bias=3))
    assert len(traces) == 1
    for number, changes in enumerate(
        (
            {"feature_dim": 2},
            {"use_bias": True},
            {"loss": ufm.CrossEntropy()},
            {"class_counts": (1, 2, 3, 4)},
        )
    ):
        evaluate(**changes)
        assert len(traces) == number + 2


@pytest.mark.slow
def test_stacked_problems_are_vmapped() -> None:
    problems = [
        a_problem(
            class_counts=(5, 3, 2 * x),
            loss=ufm.Focal(x),
            regularizer=ufm.WeightDecay(weights=0.02 * x, features=0.005, bias=x),
            use_bias=True,
        )
        for x in (1.0, 2.0, 3.5)
    ]
    parameters = random_parameters(problems[0])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)

    def value(problem: Problem) -> Any:
        return problem.objective(on_device(parameters), class_samples(problem, jnp.float64))

    looped = [at_classes(problem, parameters) for problem in problems]
    np.testing.assert_allclose(jax.vmap(value)(stacked), looped, rtol=1e-13)


def test_problems_may_be_built_inside_transformations() -> None:
    parameters = on_device(random_parameters(a_problem()))

    def value(decay: Any, ratio: Any) -> Any:
        problem = a_problem(
            class_counts=ClassGroups.step(K, 6.0, imbalance_ratio=ratio),
            regularizer=ufm.WeightDecay(weights=decay, features=0.005),
        )
        return problem.objective(parameters, class_samples(problem, jnp.float64))

    slope = jax.jit(jax.grad(value))(0.02, 3.0)
    np.testing.assert_allclose(slope, 0.5 * jnp.sum(parameters.weights[0] ** 2), rtol=1e-13)


def test_sizes_and_names() -> None:
    problem = a_problem(hidden_dims=(6, 2), class_counts=ClassGroups.balanced(5, 10))
    assert (problem.num_classes, problem.num_layers, problem.layer_dims) == (5, 3, (4, 6, 2, 5))
    assert (problem.width, float(problem.num_samples)) == (2, 50.0)
    assert eqx.tree_equal(
        problem, a_problem(hidden_dims=(6, 2), class_counts=ClassGroups.balanced(5, 10))
    )


# Validation


NOT_WHOLE = [0, -1, 2.5, np.nan, np.inf, "4", None, True, (4,), 2j]
BAD = [
    ({"class_counts": (5, -1)}, "`class_counts` must be positive and finite, got -1.0"),
    ({"class_counts": (5, 0)}, "`class_counts` must be positive and finite, got 0.0"),
    ({"class_counts": (5, np.nan)}, "`class_counts` must be positive and finite, got nan"),
    ({"class_counts": (5, np.inf)}, "`class_counts` must be positive and finite, got inf"),
    ({"class_counts": (5,)}, "`class_counts` must describe at least 2 classes, got 1"),
    ({"loss": "ce"}, r"`loss` must be a ufm loss such as ufm.CrossEntropy\(\), got 'ce'"),
    ({"loss": ufm.CrossEntropy}, "`loss` must be a ufm loss such as"),
    (
        {"loss": ufm.CDT(multipliers=(1, 2))},
        r"`multipliers` must be .* one per class \(3\); got shape \(2,\)",
    ),
    (
        {"regularizer": 0.1},
        r"`regularizer` must be ufm.WeightDecay\(...\) or ufm.NormBall\(...\), got 0.1",
    ),
    ({"activation": "tanh"}, "`activation` must be one of linear, relu, got 'tanh'"),
    ({"activation": None}, "`activation` must be one of .* got None"),
    ({"hidden_dims": 5}, "`hidden_dims` must be a sequence of layer widths, got 5"),
    ({"hidden_dims": "55"}, "`hidden_dims` must be a sequence of layer widths, got '55'"),
    ({"hidden_dims": (5, 0)}, "`hidden_dims` must be a whole number of at least 1, got 0"),
    ({"hidden_dims": (5, np.inf)}, "`hidden_dims` must be a whole number of at least 1, got inf"),
]


@for_each(("changes", "message"), BAD)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_problem(**changes)


@for_each("feature_dim", NOT_WHOLE)
def test_bad_feature_dims_are_named(feature_dim: Any) -> None:
    with pytest.raises(ValueError, match="`feature_dim` must be a whole number of at least 1, got"):
        a_problem(feature_dim=feature_dim)


def test_whole_numbers_of_other_types_are_dimensions() -> None:
    problem = a_problem(feature_dim=np.int64(4), hidden_dims=np.array([5.0, 3.0]))
    assert (problem.feature_dim, problem.hidden_dims) == (4, (5, 3))
    assert all(type(width) is int for width in problem.layer_dims)


@for_each(
    "changes",
    [
        {"class_counts": (1.5, 1e6, 1e-3)},
        {"feature_dim": 1},
        {"regularizer": ufm.WeightDecay(weights=1e-300, features=1e300)},
        {"use_bias": True, "regularizer": ufm.WeightDecay(weights=1, features=1, bias=0)},
    ],
)
def test_unusual_but_valid_problems(changes: dict[str, Any]) -> None:
    problem = a_problem(**changes)
    zero = Parameters((np.zeros((K, problem.feature_dim)),), np.zeros((K, problem.feature_dim)))
    assert np.isfinite(at_classes(problem, zero))


class _Odd:
    """Nothing that could be a number."""


ODD: tuple[Any, ...] = (
    *(
        np.nan,
        np.inf,
        -np.inf,
        1e-320,
        1e308,
        10**400,
        1j,
        "a",
        b"1",
        None,
        {},
        {1: 2},
        {1, 2},
        _Odd(),
        range,
        [1, [2, 3]],
        [1, "a"],
    ),
    *(
        [None, 1],
        [1j, 2],
        np.ma.masked,
        np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
        np.datetime64("2020"),
    ),
)
TAKERS: dict[str, Callable[[Any], Any]] = {
    "class_counts": lambda v: plain_problem(class_counts=[v, v, v]),
    "class_counts at once": lambda v: plain_problem(class_counts=v),
    "weights": lambda v: ufm.WeightDecay(v, 0.1),
    "features": lambda v: ufm.NormBall(0.1, v),
    "bias": lambda v: ufm.WeightDecay(0.1, 0.1, v),
    "alpha": ufm.LabelSmoothing,
    "gamma": ufm.Focal,
    "offsets": lambda v: ufm.LogitAdjusted(offsets=v),
    "multipliers": lambda v: ufm.CDT(multipliers=v),
    "sizes": lambda v: ufm.ClassGroups((3, 2), sizes=(v, 2)),
    "count": lambda v: ufm.ClassGroups.step(4, v, imbalance_ratio=2.0),
    "imbalance_ratio": lambda v: ufm.ClassGroups.long_tail(4, 10, imbalance_ratio=v),
    "feature_dim": lambda v: plain_problem(feature_dim=v),
    "hidden_dims": lambda v: plain_problem(hidden_dims=(v,)),
    "tol": lambda v: ufm.solve(plain_problem(), tol=v),
    "restarts": lambda v: ufm.solve(plain_problem(), restarts=0 if v is None else v),
    "vary": lambda v: ufm.minority_collapse_threshold(plain_problem(), vary=v),
}


def plain_problem(**changes: Any) -> Problem:
    fields = {
        "class_counts": (3, 2, 2),
        "feature_dim": 3,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(0.1, 0.1),
    }
    return Problem(**(fields | changes))


@for_each("name", TAKERS)
def test_what_is_no_number_in_range_is_refused_by_name(name: str) -> None:
    argument = name.partition(" ")[0]
    fine = {
        "imbalance_ratio": 1e308,
        "tol": 1e308,
        **dict.fromkeys(("alpha", "gamma", "bias", "offsets"), 1e-320),
    }
    for value in ODD:
        if (argument == "offsets" and value is None) or (
            isinstance(value, float) and value == fine.get(argument)
        ):
            continue
        with pytest.raises(
            ValueError, match=f"`(regularizer.)?{argument}`|`class_counts`|`counts`"
        ):
            TAKERS[name](value)


def test_numbers_at_the_edges_of_float64_are_refused_or_solved() -> None:
    with pytest.raises(
        ValueError,
        match=r"`regularizer.weights` must be positive and finite, from 2.23e-308 to 1e\+300",
    ):
        ufm.WeightDecay(1e-320, 1e-3)
    with pytest.raises(ValueError, match=r"`class_counts` must add up to at most 1e\+300"):
        plain_problem(class_counts=[1e308] * 3)
    with pytest.raises(ValueError, match="`resolution` 'samples' has one row per sample"):
        ufm.solve(plain_problem(class_counts=[1e12, 5, 5]), resolution="samples")
    with pytest.raises(ValueError, match=r"`exponent` = 1e\+300 gives numbers"):
        plain_problem(loss=ufm.ClassWeighted(1e300))
    with pytest.raises(ValueError, match="`class_counts` must be a sequence of real numbers"):
        plain_problem(class_counts=(n for n in (3, 2, 2)))


WRITTEN = {
    "defaults": (
        {"loss": ufm.CrossEntropy()},
        "Problem(class_counts=ClassGroups(counts=(500.0, 5.0), sizes=(3, 2)), feature_dim=4, "
        "loss=CrossEntropy(), "
        "regularizer=WeightDecay(weights=0.1, features=0.001))",
    ),
    "every field": (
        {
            "class_counts": (7, 4.5),
            "loss": ufm.ClassWeighted(weights=(1, 0.5), loss=ufm.LogitAdjusted(strength=0.3)),
            "regularizer": ufm.WeightDecay((0.1, 1e-30), 1 / 3, bias=0.2),
            "use_bias": True,
            "hidden_dims": (6,),
            "activation": "relu",
            "nonnegative_features": True,
        },
        "Problem(class_counts=ClassGroups(counts=(7.0, 4.5)), feature_dim=4, "
        "loss=ClassWeighted(weights=(1.0, 0.5), "
        "loss=LogitAdjusted(strength=0.3)), "
        "regularizer=WeightDecay(weights=(0.1, 1e-30), features=0.3333333333333333, "
        "bias=0.2), use_bias=True, hidden_dims=(6,), activation='relu', nonnegative_features=True)",
    ),
    "norm balls": (
        {"loss": ufm.Focal(2), "regularizer": ufm.NormBall(jnp.float32(0.25), np.float64(5))},
        "Problem(class_counts=ClassGroups(counts=(500.0, 5.0), sizes=(3, 2)), feature_dim=4, "
        "loss=Focal(gamma=2.0), "
        "regularizer=NormBall(weights=0.25, features=5.0))",
    ),
}


@for_each(("fields", "text"), WRITTEN.values())
def test_a_problem_is_printed_as_it_is_written(fields: dict[str, Any], text: str) -> None:
    common = {
        "class_counts": ClassGroups((500, 5), (3, 2)),
        "feature_dim": 4,
        "regularizer": ufm.WeightDecay(0.1, 1e-3),
    }
    problem = Problem(**(common | fields))
    assert repr(problem) == str(problem) == text
    assert eqx.tree_equal(eval(text, vars(ufm).copy()), problem)


def test_losses_are_printed_as_they_are_written() -> None:
    losses = [
        ufm.SquaredError(),
        ufm.LabelSmoothing(0.1),
        ufm.LogitAdjusted(offsets=(-1, 2)),
        ufm.CDT(0.5),
        ufm.LDT(multipliers=(1, 0.25)),
        ufm.ClassWeighted(1),
    ]
    for loss in losses:
        assert eqx.tree_equal(eval(repr(loss), vars(ufm).copy()), loss)


@pytest.mark.slow
def test_traced_and_long_arrays_are_printed_by_their_shape() -> None:
    seen = []
    jax.jit(lambda decay: seen.append(repr(ufm.NormBall(decay, 5.0))))(jnp.float64(0.1))
    assert seen == ["NormBall(weights=f64[], features=5.0)"]
    assert (
        repr(ClassGroups.long_tail(1000, 500, imbalance_ratio=10))
        == "ClassGroups(counts=f64[1000](numpy))"
    )
