import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import random_parameters
from tables import for_each

import ufm
from ufm.comparison.accuracy import SAFETY, Quantities, accuracy, quantities
from ufm.problems import Parameters, Problem

module = importlib.import_module("ufm.comparison.accuracy")
K = 4
COUNTS = np.array((8.0, 6.0, 5.0, 3.0))


def a_problem(**changes: Any) -> Problem:
    fields = {
        "class_counts": COUNTS,
        "feature_dim": K,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=0.02, features=0.004, bias=0.05),
    }
    return Problem(**(fields | changes))


CROSS_ENTROPY = a_problem(loss=ufm.CrossEntropy())
SQUARED_ERROR = a_problem(use_bias=True)


def plain_quantities(problem: Problem, parameters: Parameters) -> Quantities:
    """The quantities from their definitions."""
    counts = np.asarray(problem.class_counts)
    last = parameters.features
    for matrix in parameters.weights[:-1]:
        last = last @ matrix.T
        last = np.maximum(last, 0) if problem.activation == "relu" else last
    product = last @ parameters.weights[-1].T
    bias = np.zeros(problem.num_classes) if parameters.bias is None else parameters.bias
    if problem.loss.shift_invariant and parameters.bias is not None:
        bias = bias - bias.mean()
    weighted = np.sqrt(counts)[:, None] * product
    norms = [np.sum(matrix**2) for matrix in parameters.weights]
    return Quantities(
        logits=product + bias,
        weighted_logits=weighted,
        weight_gram=parameters.weights[-1] @ parameters.weights[-1].T,
        feature_gram=last @ last.T,
        bias=bias,
        layer_norms=np.array([*norms, counts @ np.sum(parameters.features**2, axis=1)]),
        logits_norm=np.array([np.sum(weighted**2)]),
    )


def plain_objective(problem: Problem, parameters: Parameters) -> float:
    """The objective at one feature row per class, cross-entropy or squared error."""
    counts = np.asarray(problem.class_counts)
    z = parameters.features @ parameters.weights[0].T + (
        0 if parameters.bias is None else parameters.bias
    )
    if isinstance(problem.loss, ufm.CrossEntropy):
        losses = np.logaddexp.reduce(z, axis=1) - np.diagonal(z)
    else:
        losses = 0.5 * np.sum((z - np.eye(len(z))) ** 2, axis=1)
    decay = problem.regularizer
    value = counts @ losses / counts.sum() + decay.weights / 2 * np.sum(parameters.weights[0] ** 2)
    value += decay.features / 2 * counts @ np.sum(parameters.features**2, axis=1)
    return float(
        value + (0 if parameters.bias is None else decay.bias / 2 * np.sum(parameters.bias**2))
    )


def flattened(parameters: Parameters) -> np.ndarray:
    return np.concatenate([np.ravel(block) for block in jax.tree.leaves(parameters)])


def unflattened(x: np.ndarray, like: Parameters) -> Parameters:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return jax.tree.unflatten(
        structure,
        [part.reshape(leaf.shape) for part, leaf in zip(np.split(x, ends), leaves, strict=True)],
    )


def hessian(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Central differences."""
    steps = step * np.eye(x.size)
    rows = [
        [(f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) / (4 * step**2) for b in steps]
        for a in steps
    ]
    return np.array(rows)


@pytest.mark.slow
@for_each(
    "problem",
    [
        a_problem(),
        SQUARED_ERROR,
        a_problem(loss=ufm.CrossEntropy(), use_bias=True),
        a_problem(hidden_dims=(5, 3), activation="relu", feature_dim=2),
        a_problem(hidden_dims=(5,)),
    ],
)
def test_quantities_are_their_definitions_and_do_not_see_rotations(
    problem: Problem, float64: None
) -> None:
    parameters = random_parameters(problem)
    found = quantities(problem, jax.tree.map(jnp.asarray, parameters))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(problem.feature_dim,) * 2))[0]
    turned = (parameters.weights[0] @ rotation, *parameters.weights[1:])
    of_turned = plain_quantities(
        problem, Parameters(turned, parameters.features @ rotation, parameters.bias)
    )
    for name, value in plain_quantities(problem, parameters)._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(getattr(of_turned, name), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "problem",
    [CROSS_ENTROPY, pytest.param(SQUARED_ERROR, marks=pytest.mark.slow)],
    ids=["ce", "mse"],
)
@pytest.mark.parametrize(
    "dense", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["by modes", "by iteration"]
)
def test_spreads_are_those_of_the_dense_hessian(
    problem: Problem, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max ||J p|| over <p, H p> <= 1 is `SAFETY` times sqrt(2 lambda_max(J H^+ J^T)).

    The coordinates do not matter. The power iteration may be below it, by no more than `SAFETY`.
    """
    if not dense:
        monkeypatch.setattr(module, "DENSE", 0)
    solution = ufm.solve(problem)
    x = flattened(solution.parameters)

    def flat_quantities(y: np.ndarray) -> Quantities:
        return plain_quantities(problem, unflattened(y, solution.parameters))

    H = hessian(lambda y: plain_objective(problem, unflattened(y, solution.parameters)), x)
    eigenvalues, vectors = np.linalg.eigh(H)
    flat = eigenvalues < 1e-6 * eigenvalues[-1]
    assert np.sum(flat) == K * (K - 1) // 2  # the rotations of feature space
    inverse = (vectors[:, ~flat] / eigenvalues[~flat]) @ vectors[:, ~flat].T
    measured = accuracy(problem, solution.parameters)
    steps = 1e-5 * np.eye(x.size)
    plus, minus = [[flat_quantities(x + sign * e) for e in steps] for sign in (1, -1)]
    for name, spread in measured.spread._asdict().items():
        J = np.array(
            [
                np.ravel(getattr(a, name) - getattr(b, name)) / 2e-5
                for a, b in zip(plus, minus, strict=True)
            ]
        ).T
        exact = float(np.sqrt(2 * np.linalg.eigvalsh(J @ inverse @ J.T)[-1]))
        if dense:
            assert spread == pytest.approx(SAFETY * exact, rel=1e-6), name
        else:
            assert 0.999 * exact <= spread <= 1.001 * SAFETY * exact, name


@for_each("problem", [CROSS_ENTROPY, SQUARED_ERROR])
@for_each("size", [1e-2, 1e-4])
def test_the_newton_decrement_is_what_the_objective_can_still_lose(
    problem: Problem, size: float
) -> None:
    solution = ufm.solve(problem)
    x = flattened(solution.parameters)
    direction = np.random.default_rng(2).normal(size=x.size)
    moved = unflattened(x + size * direction / np.linalg.norm(direction), solution.parameters)
    above = plain_objective(problem, moved) - plain_objective(problem, solution.parameters)
    assert accuracy(problem, moved).decrement == pytest.approx(above, rel=20 * size, abs=1e-14)
    assert 0 <= accuracy(problem, solution.parameters).decrement <= 1e-16


@pytest.mark.parametrize("dense", [True, False], ids=["by modes", "by iteration"])
def test_curvature_that_is_not_positive_makes_everything_unknown(
    dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near the saddle where a class is missing the objective has no minimiser close by."""
    if not dense:
        monkeypatch.setattr(module, "DENSE", 0)
    solution = ufm.solve(CROSS_ENTROPY)
    weights, features = np.array(solution.weights[0]), np.array(solution.features)
    left, values, right = np.linalg.svd(weights)
    kept = values.copy()
    kept[2:] *= 1e-3
    near_saddle = Parameters(
        ((left * kept) @ right,), features @ right.T @ np.diag(kept / values) @ right, None
    )
    measured = accuracy(CROSS_ENTROPY, near_saddle)
    assert measured.decrement == np.inf
    assert np.isinf(measured.spread.logits)


def test_not_a_number_is_never_accurate() -> None:
    parameters = random_parameters(SQUARED_ERROR)
    parameters.weights[0][0, 0] = np.nan
    measured = accuracy(SQUARED_ERROR, parameters)
    assert not measured.decrement < np.inf
    assert not any(float(spread) < np.inf for spread in measured.spread)


def test_a_collapsed_minimiser_is_exact() -> None:
    problem = a_problem(regularizer=ufm.WeightDecay(0.5, 0.5, 0.5), use_bias=True)
    solution = ufm.solve(problem)
    measured = accuracy(problem, solution.parameters)
    # The Gram matrices have no first order at zero; the bias has.
    for name in ("weighted_logits", "weight_gram", "feature_gram", "layer_norms"):
        assert getattr(measured.spread, name) < 1e-6, name
    assert measured.spread.bias > 0.1
    assert measured.decrement < 1e-16


def test_unused_dimensions_and_the_way_a_problem_is_stated_change_nothing() -> None:
    solution = ufm.solve(SQUARED_ERROR)
    expected = accuracy(SQUARED_ERROR, solution.parameters)
    wide = a_problem(feature_dim=20, use_bias=True)
    padded = Parameters(
        (np.pad(solution.weights[0], ((0, 0), (0, 16))),),
        np.pad(solution.features, ((0, 0), (0, 16))),
        solution.bias,
    )
    stated = a_problem(class_counts=ufm.ClassGroups(COUNTS, sizes=(1,) * K), use_bias=True)
    for found in (accuracy(wide, padded), accuracy(stated, solution.parameters)):
        for name in Quantities._fields:
            assert getattr(found.spread, name) == getattr(expected.spread, name)
            np.testing.assert_array_equal(
                getattr(found.values, name), getattr(expected.values, name)
            )
        assert found.decrement == expected.decrement


def test_accuracy_is_the_same_in_either_process_precision(process_x64: bool) -> None:
    solution = ufm.solve(SQUARED_ERROR)
    measured = accuracy(SQUARED_ERROR, solution.parameters)
    assert all(np.asarray(value).dtype == np.float64 for value in measured.values)
    np.testing.assert_allclose(
        measured.values.logits,
        plain_quantities(SQUARED_ERROR, solution.parameters).logits,
        rtol=1e-13,
        atol=1e-14,
    )
