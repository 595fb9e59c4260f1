import ast
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from tables import for_each, slow

import ufm
from ufm.problems import (
    NormBall,
    Parameters,
    Samples,
    WeightDecay,
    has_group_form,
    narrowed,
    problem_with,
)

pytestmark = pytest.mark.usefixtures("float64")

either = for_each("kind", [WeightDecay, NormBall])


@either
def test_one_number_serves_all_layers(kind: type) -> None:
    regularizer = kind(weights=0.5, features=2)
    np.testing.assert_array_equal(regularizer.per_layer(3), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(kind(weights=(1, 2, 3), features=2).per_layer(3), [1, 2, 3])


@either
def test_numbers_of_any_type_become_float64_leaves(kind: type) -> None:
    for number in (2, 2.0, np.float32(2), np.int64(2), jax.numpy.asarray(2.0, "float32")):
        regularizer = kind(weights=number, features=number)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(regularizer))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(regularizer))


def test_bias_penalty_is_zero_unless_given() -> None:
    assert WeightDecay(weights=1, features=1).bias == 0
    assert WeightDecay(weights=1, features=1, bias=0).bias == 0


@either
def test_a_change_of_values_does_not_retrace(kind: type) -> None:
    traces = []

    @jax.jit
    def total(regularizer: Any) -> Any:
        traces.append(regularizer)
        return regularizer.per_layer(2).sum() + regularizer.features

    for number in (1, 0.1, np.float32(3)):
        np.testing.assert_allclose(
            total(kind(weights=number, features=number)), 3 * number, rtol=1e-15
        )
    assert len(traces) == 1


@either
def test_regularizers_are_batched_like_any_pytree(kind: type) -> None:
    batch = jax.vmap(lambda x: kind(weights=x, features=2 * x))(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(jax.vmap(lambda r: r.per_layer(2))(batch), [[1, 1], [2, 2]])


PENALTIES = [0, -1, np.nan, np.inf, -np.inf]


@either
@for_each("value", PENALTIES)
def test_bad_penalties_are_named(kind: type, value: float) -> None:
    message = f"must be positive and finite, got {float(value)!r}"
    with pytest.raises(ValueError, match=f"`regularizer.weights` {message}"):
        kind(weights=value, features=1)
    with pytest.raises(ValueError, match=f"`regularizer.weights` {message}"):
        kind(weights=(1, value), features=1)
    with pytest.raises(ValueError, match=f"`regularizer.features` {message}"):
        kind(weights=1, features=value)


@either
@for_each("value", ["a", None, "1"])
def test_penalties_that_are_no_numbers_are_named(kind: type, value: Any) -> None:
    with pytest.raises(
        ValueError,
        match=f"`regularizer.weights` must be one number or one per layer, got {value!r}",
    ):
        kind(weights=value, features=1)
    with pytest.raises(
        ValueError, match=f"`regularizer.features` must be one number, got {value!r}"
    ):
        kind(weights=1, features=value)


@either
def test_shapes_are_checked(kind: type) -> None:
    with pytest.raises(
        ValueError, match=r"`regularizer.features` must be one number, got \[1.0, 2.0\]"
    ):
        kind(weights=1, features=(1, 2))
    with pytest.raises(
        ValueError, match=r"`regularizer.weights` must be one number or one per layer"
    ):
        kind(weights=((1, 2),), features=1)


@for_each("value", [-1, np.nan, np.inf, "a", None, (1, 2)])
def test_bad_bias_penalties_are_named(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`regularizer.bias` must be a finite number >= 0, got .* free"
    ):
        WeightDecay(weights=1, features=1, bias=value)


@either
@for_each("number", [1, 3])
def test_as_many_penalties_as_layers(kind: type, number: int) -> None:
    regularizer = kind(weights=np.ones(number), features=1)
    with pytest.raises(
        ValueError, match=rf"`regularizer.weights` must be .* one per layer \(2\), got {number}"
    ):
        plain.a_problem(regularizer=regularizer, hidden_dims=(4,))


def test_norm_balls_bound_the_mean_squared_row_norms() -> None:
    problem = plain.a_problem(
        regularizer=NormBall(weights=(2.0, 3.0), features=5.0), hidden_dims=(6,)
    )
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (5, 3, 2))
    parameters = plain.random_parameters(problem, rows=10)
    first, second = parameters.weights
    features = rng.normal(size=(10, 4))
    columns = ufm.problems.labelled_samples(problem, labels, np.dtype("float64"))
    norms = problem.norms(plain.on_device(parameters._replace(features=features)), columns)
    of_classes = [np.mean(np.sum(features[labels == k] ** 2, axis=1)) for k in range(3)]
    expected = (np.sum(first**2) / 6 / 2.0, np.sum(second**2) / 3 / 3.0, np.mean(of_classes) / 5.0)
    np.testing.assert_allclose(norms, expected, rtol=1e-14)


# Regularizers from outside the package


class Quartic(ufm.Regularizer):
    """The fourth powers of all entries: a penalty of which nothing else is known."""

    strength: float = 0.1

    def penalty(self, parameters: Parameters, samples: Samples) -> Any:
        """Return the sum of fourth powers, over all samples."""
        weights = sum(jnp.sum(matrix**4) for matrix in parameters.weights)
        features = jnp.sum(samples.counts * jnp.sum(parameters.features**4, axis=1))
        return self.strength * (weights + features)


@for_each(
    "changes",
    [
        slow({"hidden_dims": (4,), "activation": "relu"}),
        {"nonnegative_features": True, "use_bias": True},
    ],
)
def test_a_penalty_alone_makes_a_regularizer(changes: dict[str, Any]) -> None:
    problem = plain.a_problem(regularizer=Quartic(), **changes)
    solution = ufm.solve(problem)
    assert solution.status.name == "CONVERGED"
    assert solution.certificate is None
    assert ufm.certify(problem, solution) is None
    assert not has_group_form(problem)
    assert narrowed(problem) is problem
    with pytest.raises(ufm.NoPrediction, match="found Quartic"):
        ufm.predict(problem)
    blocks = [*solution.weights, solution.features]
    weights = [np.ones(len(block)) for block in blocks[:-1]] + [np.asarray(problem.class_counts)]
    penalty = sum(w @ np.sum(block**4, axis=1) for w, block in zip(weights, blocks, strict=True))
    logits = plain.logits(problem, solution.parameters)
    losses = [plain.cross_entropy(row, k) for k, row in enumerate(logits)]
    shares = np.asarray(problem.class_counts) / plain.N
    assert solution.objective == pytest.approx(shares @ losses + 0.1 * penalty, rel=1e-13)


@pytest.mark.slow
def test_samples_and_classes_agree_under_any_penalty_on_rows() -> None:
    problem = plain.a_problem(regularizer=Quartic())
    found = [ufm.solve(problem, resolution=name).objective for name in ("classes", "samples")]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


# What differs between regularizers is asked of them


THEOREMS = ("needs", "imbalanced_cross_entropy")  # whose functions have the flag's name


def asked_outside(tree: ast.AST) -> dict[str, list[int]]:
    """Return the lines that ask which regularizer or which cone of features a problem has."""
    found: dict[str, list[int]] = {"kind": [], "flag": []}
    for node in ast.walk(tree):
        asks = isinstance(node, ast.Compare) or (
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
        )
        names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
        if asks and names & {"NormBall", "WeightDecay"}:
            found["kind"].append(node.lineno)
        of_module = getattr(getattr(node, "value", None), "id", "") in THEOREMS
        if getattr(node, "attr", "") == "nonnegative_features" and not of_module:
            found["flag"].append(node.lineno)
    return found


@pytest.mark.slow
def test_few_lines_ask_which_regularizer_or_cone_a_problem_has() -> None:
    root = Path(ufm.__file__).parent
    found = {
        str(path): asked_outside(ast.parse(path.read_text(encoding="utf-8")))
        for path in root.rglob("*.py")
        if "problems" not in path.relative_to(root).parts
    }
    kinds = [(path, line) for path, lines in found.items() for line in lines["kind"]]
    flags = [(path, line) for path, lines in found.items() for line in lines["flag"]]
    assert len(kinds) <= 5, kinds
    assert len(flags) <= 15, flags


def test_a_regularizer_without_numbers_per_layer_takes_another_depth() -> None:
    deep = problem_with(plain.a_problem(regularizer=Quartic()), {"depth": 2})
    assert (deep.num_layers, deep.regularizer) == (2, Quartic())
