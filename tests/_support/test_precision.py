import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

import ufm
from ufm._support import (
    as_leaf,
    double_precision,
    in_double_precision,
    is_concrete,
    is_numeric,
    to_numpy,
)


@pytest.mark.usefixtures("process_x64")
def test_double_precision_inside_and_the_setting_of_the_process_outside() -> None:
    before = (jax.config.jax_enable_x64, jnp.ones(2).dtype)
    with double_precision():
        assert jnp.ones(2).dtype == jnp.float64
        with double_precision():
            assert jnp.ones(2).dtype == jnp.float64
        assert jnp.ones(2).dtype == jnp.float64
    assert (jax.config.jax_enable_x64, jnp.ones(2).dtype) == before


@pytest.mark.usefixtures("process_x64")
def test_the_setting_comes_back_after_an_exception() -> None:
    before = jnp.ones(2).dtype

    @in_double_precision
    def fails() -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert jnp.ones(2).dtype == before


@pytest.mark.usefixtures("process_x64")
def test_decorated_functions_return_numpy_arrays_in_double_precision() -> None:
    @in_double_precision
    def third(x: float) -> dict[str, Any]:
        """Divide."""
        return {"third": jnp.asarray(x) / 3, "label": "x", "list": [jnp.arange(3)]}

    result = third(1.0)
    assert third.__doc__ == "Divide."
    assert isinstance(result["third"], np.ndarray)
    assert (result["third"].dtype, float(result["third"])) == (np.float64, 1 / 3)
    assert isinstance(result["list"][0], np.ndarray)
    assert result["label"] == "x"


def test_to_numpy_leaves_other_leaves_alone() -> None:
    array = np.ones(2)
    tree = to_numpy((array, jnp.ones(2, jnp.float32), 3, None, "text"))
    assert tree[0] is array
    assert isinstance(tree[1], np.ndarray)
    assert tree[1].dtype == np.float32
    assert tree[2:] == (3, None, "text")


@pytest.mark.usefixtures("process_x64")
@pytest.mark.parametrize(
    "value", [0.1, np.float64(0.1), np.array([0.1, 2]), [0.1, 2], (0.1, 2), 3, True]
)
def test_leaves_keep_all_digits(value: Any) -> None:
    leaf = as_leaf(value)
    assert isinstance(leaf, np.ndarray)
    assert leaf.dtype == np.float64
    np.testing.assert_array_equal(leaf, np.asarray(value, np.float64))
    assert is_numeric(leaf)


def test_leaves_let_tracers_and_other_objects_through() -> None:
    seen = []
    jax.jit(
        lambda x: seen.append((x, as_leaf(x), is_concrete(x), is_concrete({"a": [1, x]}))) or x
    )(1.0)
    (tracer, leaf, concrete, nested) = seen[0]
    assert leaf is tracer
    assert not concrete
    assert not nested
    for other in (None, "text", object()):
        assert as_leaf(other) is other
        assert not is_numeric(other)


def test_concrete_values_may_be_looked_at() -> None:
    assert is_concrete(1.0, np.ones(2), jnp.ones(2), None, "text", (1, [2]))


def test_solve_computes_in_double_precision_in_any_process(process_x64: bool) -> None:
    problem = plain.a_problem(loss=ufm.SquaredError(), use_bias=False)
    solution = ufm.solve(problem)
    assert jax.config.jax_enable_x64 == process_x64
    assert jnp.ones(2).dtype == (jnp.float64 if process_x64 else jnp.float32)
    arrays = [*solution.weights, solution.features, solution.logits, solution.class_features]
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float64 for array in arrays)
    assert solution.objective == pytest.approx(plain.squared_error_minimum(problem), rel=1e-14)
    # What a user computes from a result stays in double precision.
    assert (solution.weights[0] @ solution.features.T).dtype == np.float64
    certificate = ufm.certify(problem, solution)
    assert certificate is not None
    assert certificate.holds


@pytest.fixture
def debugging() -> Iterator[None]:
    """A process that wants to stop at every NaN and infinity."""
    names = ("jax_debug_nans", "jax_debug_infs")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        jax.config.update(name, True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


MODELS: dict[str, dict[str, Any]] = {
    "norm balls": {"regularizer": ufm.NormBall(1.0, 1.0)},
    "squared error in norm balls": {
        "regularizer": ufm.NormBall(1.0, 1.0),
        "loss": ufm.SquaredError(),
    },
    "relu": {"hidden_dims": (4,), "activation": "relu"},
    "focal": {"loss": ufm.Focal(2.0), "use_bias": True},
    "groups": {"class_counts": ufm.ClassGroups((9.0, 2.0), sizes=(30, 30)), "feature_dim": 60},
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "norm balls" else pytest.param(name, marks=pytest.mark.nightly)
        for name in MODELS
    ],
)
def test_flags_that_stop_at_nan_and_infinity_stop_no_solve(debugging: None, name: str) -> None:
    assert ufm.solve(plain.a_problem(**MODELS[name])).status.ok
    assert jax.config.jax_debug_nans
    assert jax.config.jax_debug_infs
    with double_precision():
        assert np.isneginf(np.asarray(jnp.log(jnp.zeros(1))))
    with pytest.raises(FloatingPointError):
        jnp.log(jnp.zeros(7))  # another program: JAX looks at no result of one that ran unwatched


# What these doors offer looks at numbers, but for what reads text or asks nothing of a problem.
DOORS = (ufm, ufm.dynamics, ufm.landscape, ufm.imbalance, ufm.sweeps)
NO_NUMBERS = {"example", "examples", "read_config"}
CONSTRUCTIONS = (
    "class_pairs",
    "constructions_for",
    "deep_neural_collapse",
    "squared_error_value",
    "strongly_regular",
)
ON_THE_HOST: dict[str, Callable[..., Any]] = {
    name: getattr(door, name)
    for door in DOORS
    for name in door.__all__
    if inspect.isfunction(getattr(door, name)) and name not in NO_NUMBERS
} | {
    "check_loss": ufm.losses.check_loss,
    "solve_batch": ufm.solving.solve_batch,
    "solve_class_batch": ufm.solving.solve_class_batch,
    **{name: getattr(ufm.constructions, name) for name in CONSTRUCTIONS},
}


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_what_runs_on_the_host_says_so_under_a_transformation(transform: Any) -> None:
    def traced(numbers: Any) -> Any:
        decay = ufm.WeightDecay(weights=numbers[0], features=numbers[1])
        counts = ufm.ClassGroups(numbers)
        problem = plain.a_problem(class_counts=counts, regularizer=decay)
        for name, function in ON_THE_HOST.items():
            with pytest.raises(ValueError, match=rf"`{name}` cannot be traced by") as caught:
                function(problem)
            paths = re.findall(r"`ufm\.([\w.]+)`", str(caught.value))
            assert "\n" not in str(caught.value)
            assert "solving.group_batch.certified" in paths
            for path in paths:
                assert callable(functools.reduce(getattr, path.split("."), ufm)), path
        return jnp.sum(numbers)

    transform(traced)(np.ones((3, 3)) if transform is jax.vmap else np.ones(3))


def test_what_runs_on_the_host_says_so_where_nothing_that_it_gets_is_traced() -> None:
    problem = plain.a_problem()
    for function in ON_THE_HOST.values():
        with pytest.raises(ValueError, match="Call it outside"):
            jax.jit(lambda x, function=function: function(problem) and x)(1.0)


def test_the_objective_takes_the_precision_of_the_process_without_a_word(process_x64: bool) -> None:
    # Warnings are errors here. The parameters are float64 arrays of NumPy.
    for regularizer, rows in (
        (ufm.WeightDecay(0.1, 0.2, 0.3), plain.K),
        (ufm.NormBall(1.0, 2.0), plain.N),
    ):
        problem = plain.a_problem(
            loss=ufm.LogitAdjusted(1.0), use_bias=True, regularizer=regularizer
        )
        samples = ufm.problems.samples_of(problem, rows)
        parameters = plain.random_parameters(problem, rows=rows)
        # Compiled as one program, and traced with the arrays as they are.
        found = jax.jit(
            lambda p=problem, x=parameters, at=samples: [p.objective(x, at), *p.norms(x, at)]
        )()
        assert {value.dtype for value in found} == {
            jnp.dtype("float64" if process_x64 else "float32")
        }
