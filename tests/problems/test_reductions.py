from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import a_problem, on_device, random_parameters
from tables import for_each, slow

import ufm
from ufm.problems import (
    ClassGroups,
    Parameters,
    Problem,
    class_samples,
    fewer_rows,
    narrowed,
    one_count_per_class,
    widened,
    without_unused,
)
from ufm.solving.settings import lowered

pytestmark = pytest.mark.usefixtures("float64")


def value(problem: Problem, parameters: Parameters) -> float:
    return float(problem.objective(on_device(parameters), class_samples(problem, jnp.float64)))


def norms(problem: Problem, parameters: Parameters) -> Any:
    return np.array(problem.norms(on_device(parameters), class_samples(problem, jnp.float64)))


DECAY = ufm.WeightDecay(weights=(0.02, 0.05), features=0.005, bias=0.1)
BALL = ufm.NormBall(weights=(2.0, 0.7), features=3.0)
GROUPS = ClassGroups((5, 2), sizes=(2, 1))
STATEMENTS = {
    "counts": ({"class_counts": GROUPS}, {"class_counts": (5, 5, 2)}),
    "penalties": (
        {"hidden_dims": (5,), "regularizer": ufm.WeightDecay(weights=0.02, features=0.005)},
        {"hidden_dims": (5,), "regularizer": ufm.WeightDecay(weights=(0.02, 0.02), features=0.005)},
    ),
    "balls": (
        {"regularizer": ufm.NormBall(weights=2, features=3)},
        {"regularizer": ufm.NormBall(weights=(2,), features=3)},
    ),
    "loss": (
        {"class_counts": GROUPS, "loss": ufm.CDT(multipliers=(1, 0.5))},
        {"class_counts": (5, 5, 2), "loss": ufm.CDT(multipliers=(1, 1, 0.5))},
    ),
    "nested-loss": (
        {
            "class_counts": GROUPS,
            "loss": ufm.ClassWeighted(1.0, loss=ufm.LogitAdjusted(offsets=(1, 0.5))),
        },
        {
            "class_counts": (5, 5, 2),
            "loss": ufm.ClassWeighted(1.0, loss=ufm.LogitAdjusted(offsets=(1, 1, 0.5))),
        },
    ),
}


# One form for all statements


@for_each(("first", "second"), STATEMENTS.values())
def test_all_statements_of_a_problem_have_one_form(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, other = one_count_per_class(a_problem(**first)), one_count_per_class(a_problem(**second))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_array_equal(leaf, same)
    assert jax.tree.structure(one_count_per_class(one)) == jax.tree.structure(one)


@pytest.mark.slow
@for_each(("first", "second"), STATEMENTS.values())
def test_the_form_leaves_the_objective_alone(first: dict[str, Any], second: dict[str, Any]) -> None:
    problem = a_problem(**first)
    parameters = random_parameters(problem)
    assert value(one_count_per_class(problem), parameters) == pytest.approx(
        value(problem, parameters), rel=1e-15
    )


@for_each(("first", "second"), STATEMENTS.values())
def test_the_form_can_be_taken_of_traced_problems(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    problem = a_problem(**first)
    traced = jax.jit(one_count_per_class)(problem)
    for leaf, expected in zip(
        jax.tree.leaves(traced), jax.tree.leaves(one_count_per_class(problem)), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


# Widths


@for_each("use_bias", [False, True])
def test_one_layer_needs_no_more_dimensions_than_classes(use_bias: bool) -> None:
    problem = a_problem(feature_dim=9, use_bias=use_bias)
    smaller = narrowed(problem)
    assert smaller.feature_dim == 3
    parameters = random_parameters(smaller)
    assert value(problem, widened(problem, parameters)) == pytest.approx(
        value(smaller, parameters), rel=1e-14
    )
    assert narrowed(a_problem(feature_dim=2)).feature_dim == 2


@for_each("regularizer", [DECAY, BALL])
def test_linear_chains_are_cut_in_all_their_widths(regularizer: Any) -> None:
    problem = a_problem(feature_dim=9, hidden_dims=(7,), regularizer=regularizer, use_bias=True)
    smaller = narrowed(problem)
    assert smaller.feature_dim < 9
    assert smaller.hidden_dims[0] < 7
    assert smaller.feature_dim >= 3
    parameters = random_parameters(smaller)
    wide = widened(problem, parameters)
    assert [block.shape for block in wide.weights] == [(7, 9), (3, 7)]
    assert value(problem, wide) == pytest.approx(value(smaller, parameters), rel=1e-14)
    if regularizer is BALL:  # means over rows: the bound on their sum is what is kept
        np.testing.assert_allclose(norms(problem, wide), norms(smaller, parameters), rtol=1e-13)


def test_relu_layers_keep_their_widths() -> None:
    problem = a_problem(feature_dim=9, hidden_dims=(7, 8), activation="relu")
    smaller = narrowed(problem)
    assert (smaller.feature_dim, smaller.hidden_dims) == (3, (7, 8))
    parameters = random_parameters(smaller)
    assert value(problem, widened(problem, parameters)) == pytest.approx(
        value(smaller, parameters), rel=1e-14
    )
    narrow = a_problem(feature_dim=9, hidden_dims=(2, 8), activation="relu")
    assert narrowed(narrow).feature_dim == 2


@for_each("hidden_dims", [(), (7,)])
def test_nonnegative_features_keep_their_dimensions(hidden_dims: tuple[int, ...]) -> None:
    problem = a_problem(feature_dim=9, nonnegative_features=True, hidden_dims=hidden_dims)
    assert narrowed(problem).layer_dims == problem.layer_dims


def test_rank_of_a_random_minimiser_fits_into_the_reduced_widths() -> None:
    # Any logits of a wide linear chain are those of a reduced one: their rank is at most K.
    problem = a_problem(feature_dim=9, hidden_dims=(7,))
    logits = np.asarray(problem.logits(on_device(random_parameters(problem))))
    assert np.linalg.matrix_rank(logits) <= min(narrowed(problem).layer_dims)


def test_padding_of_parameters_that_fit_changes_nothing() -> None:
    problem = a_problem(hidden_dims=(5,), use_bias=True)
    parameters = random_parameters(problem)
    same = widened(problem, parameters)
    for block, expected in zip(jax.tree.leaves(same), jax.tree.leaves(parameters), strict=True):
        assert block is expected


# Dimensions that are not used


CHAINS = {
    "one-layer": {"feature_dim": 9},
    "linear": {"feature_dim": 9, "hidden_dims": (7,), "regularizer": DECAY},
    "balls": {"feature_dim": 9, "hidden_dims": (7,), "regularizer": BALL},
    "deep": {"feature_dim": 9, "hidden_dims": (7, 8)},
    "relu": {"feature_dim": 9, "hidden_dims": (7,), "activation": "relu", "regularizer": DECAY},
}


@for_each("fields", CHAINS.values())
def test_dropping_undoes_padding(fields: dict[str, Any]) -> None:
    problem = a_problem(**fields)
    parameters = random_parameters(narrowed(problem))
    wide = widened(problem, parameters)
    smaller, narrow = without_unused(one_count_per_class(problem), wide)
    assert smaller.layer_dims == narrowed(problem).layer_dims
    assert value(smaller, narrow) == pytest.approx(value(problem, wide), rel=1e-14)
    if isinstance(problem.regularizer, ufm.NormBall):
        np.testing.assert_allclose(norms(smaller, narrow), norms(problem, wide), rtol=1e-13)
    for block, expected in zip(jax.tree.leaves(narrow), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_array_equal(block, expected)


@for_each("fields", CHAINS.values())
def test_nothing_that_is_used_is_dropped(fields: dict[str, Any]) -> None:
    problem = a_problem(**fields)
    parameters = random_parameters(problem)
    smaller, narrow = without_unused(problem, parameters)
    assert smaller.layer_dims == problem.layer_dims
    assert value(smaller, narrow) == value(problem, parameters)


@for_each("fields", CHAINS.values())
def test_a_coordinate_used_by_one_factor_only_stays(fields: dict[str, Any]) -> None:
    # Its penalty counts, although the logits do not see it.
    problem = a_problem(**fields)
    parameters = widened(problem, random_parameters(narrowed(problem)))
    features = parameters.features.copy()
    features[1, 8] = 2.0
    parameters = parameters._replace(features=features)
    smaller, narrow = without_unused(problem, parameters)
    assert value(smaller, narrow) == pytest.approx(value(problem, parameters), rel=1e-14)


@for_each("fields", CHAINS.values())
def test_parameters_that_are_all_zero_keep_some_dimension(fields: dict[str, Any]) -> None:
    problem = a_problem(**fields)
    zero = jax.tree.map(np.zeros_like, random_parameters(problem))
    smaller, narrow = without_unused(problem, zero)
    assert min(smaller.layer_dims) >= 1
    assert value(smaller, narrow) == value(problem, zero)


# Rows of squared error


def regression(**changes: Any) -> Problem:
    """A regression of 40 rows on 3 outputs, of different counts."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 1
    arguments: dict[str, Any] = {
        "targets": ufm.Targets(rows, rng.uniform(1, 4, 40)),
        "feature_dim": 5,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(0.1, 0.02, 0.05),
    }
    return Problem(**arguments | changes)


@for_each(
    "changes",
    [
        slow({}),
        slow({"use_bias": True}),
        {"use_bias": True, "regularizer": ufm.WeightDecay(0.1, 0.02)},
    ],
)
def test_squared_error_needs_no_more_rows_than_outputs(changes: dict[str, Any]) -> None:
    problem = regression(**changes)
    small = fewer_rows(problem)
    assert small.problem.num_rows == 4
    assert float(small.problem.num_samples) == pytest.approx(float(problem.num_samples))
    solution = ufm.solve(problem).check()
    direct = ufm.certify(problem, solution)
    assert direct.holds
    assert direct.objective == pytest.approx(solution.objective, rel=1e-13)
    assert solution.logits.shape == (40, 3)
    assert solution.class_features.shape == (40, 5)
    np.testing.assert_array_equal(solution.class_features, solution.features)
    # The lift takes any point of the smaller problem to one of the same objective.
    other = random_parameters(small.problem, rows=4)
    lifted_point = other._replace(features=small.lift(other.features))
    assert ufm.certify(problem, lifted_point).objective == pytest.approx(
        ufm.certify(small.problem, other).objective, rel=1e-12
    )


def test_rounding_of_compressed_rows_lowers_the_bound() -> None:
    small = fewer_rows(regression())
    assert 0 < small.loss_of(1.0) < 1e-10
    spoilt = small._replace(errors=(1e-3, 1e-3))
    certificate = ufm.certify(small.problem, ufm.solve(small.problem))
    assert lowered(certificate, small).holds
    assert not lowered(certificate, spoilt).holds


@pytest.mark.slow
@for_each(
    "targets",
    [ufm.Targets.multi_label(4, {2: 24}), ufm.Targets(np.ones((9, 3)), np.arange(1.0, 10))],
)
def test_rows_whose_deviations_lack_a_direction_are_compressed_to_rounding(targets: Any) -> None:
    """Singular vectors of a mode of zero are any; those of the mean must not be among them."""
    small = fewer_rows(regression(targets=targets, use_bias=True))
    assert small.loss_of(1.0) < 1e-12
    assert ufm.solve(regression(targets=targets, use_bias=True)).certificate.holds


@for_each(
    "changes",
    [
        {"nonnegative_features": True},
        {"hidden_dims": (4,), "activation": "relu"},
        {
            "loss": ufm.CrossEntropy(),
            "targets": ufm.Targets(np.random.default_rng(1).uniform(size=(40, 3))),
        },
        {"targets": ufm.Targets(np.arange(40.0).reshape(20, 2), None, np.arange(1.0, 21))},
    ],
)
def test_rows_that_do_not_rotate_are_kept(changes: dict[str, Any]) -> None:
    problem = regression(**changes)
    assert fewer_rows(problem).lift is None
    assert fewer_rows(problem).problem is problem
