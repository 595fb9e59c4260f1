"""Losses made of functions: what is found out about them, and what is refused."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.problems.losses import check_loss, from_function

CLASSES = ufm.ClassGroups((5.0, 3.0, 2.0))


def log_cosh(z: Any, y: Any) -> Any:
    return jnp.sum(jnp.log(jnp.cosh(z - y)))


def pairwise(z: Any, y: Any) -> Any:
    return jnp.sum((1 - y) * jax.nn.softplus(z - jnp.sum(y * z)))


def of_five(z: Any, y: Any) -> Any:
    return jnp.sum((z - y) ** 2 * jnp.arange(5.0))


def saturating(z: Any, y: Any) -> Any:
    return 1 - jnp.sum(y * jax.nn.softmax(z))


@for_each(
    ("function", "invariant"),
    [(log_cosh, False), (pairwise, True), (of_five, False), (saturating, True)],
)
def test_whether_a_shift_is_seen_is_found_out(function: Any, invariant: bool) -> None:
    assert from_function(function).shift_invariant == invariant
    assert from_function(function, shift_invariant=not invariant).shift_invariant != invariant


def test_a_loss_has_the_values_of_its_function_row_by_row() -> None:
    draws = np.random.default_rng(0)
    logits, targets = jnp.asarray(draws.standard_normal((2, 4, 3)))
    loss = from_function(pairwise)
    values = [pairwise(z, y) for z, y in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(loss(logits, targets, CLASSES), jnp.stack(values), rtol=1e-14)
    assert (loss.label, loss.convex, loss.has_conjugate) == ("pairwise", True, False)
    assert from_function(pairwise, name="mine").label == "mine"
    assert loss == from_function(pairwise)
    assert pickle.loads(pickle.dumps(loss)) == loss


@for_each(
    ("function", "claims", "wrong"),
    [
        (log_cosh, {}, ()),
        (pairwise, {}, ()),
        (saturating, {"convex": False}, ()),
        (saturating, {}, ("convexity",)),
        (log_cosh, {"infimum": 1.0}, ("infimum",)),
        (log_cosh, {"infimum": lambda y: jnp.sum(y)}, ("infimum",)),
        (log_cosh, {"infimum": lambda y: -jnp.sum(y)}, ()),
        (log_cosh, {"infimum": -np.inf}, ()),
        (log_cosh, {"shift_invariant": True}, ("shift",)),
    ],
)
def test_claims_are_held_against_the_function(
    function: Any, claims: dict[str, Any], wrong: tuple[str, ...]
) -> None:
    claims = {"shift_invariant": function is not log_cosh} | claims
    report = check_loss(from_function(function, **claims))
    assert report.failed == wrong
    assert "domain" in {check.name for check in report.checks if not check.claimed}


@for_each(
    ("arguments", "message"),
    [
        ((3,), "`f` must be a function of a row of logits and a target row, got 3"),
        ((lambda z, y: z - y,), "`f` must return one number for a row"),
        ((lambda z, y: float(z[0]),), "`f` cannot be traced by JAX"),
        ((lambda z, y: np.sum(np.log(z)),), "`f` cannot be traced by JAX"),
        ((lambda z: z[0],), "`f` could not be called with rows of any length"),
        ((log_cosh, None), "`convex` must be True or False"),
        ((log_cosh, True, np.nan), "`infimum` must be a number, minus infinity, or a function"),
        ((log_cosh, True, np.inf), "`infimum` must be a number, minus infinity, or a function"),
    ],
)
def test_what_is_no_loss_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=message):
        from_function(*arguments)


def test_a_function_is_told_apart_by_its_code_and_what_it_encloses() -> None:
    def steep(slope: Any) -> Any:
        return from_function(
            lambda z, y: jnp.sum(jnp.cosh(slope * (z - y)) - 1), shift_invariant=False
        )

    one, two, again = repr(steep(1.0)), repr(steep(2.0)), repr(steep(1.0))
    assert one == again != two
    assert repr(steep(np.array([1.0, 2.0]))) != repr(steep(np.array([1.0, 3.0])))


def test_a_function_that_is_not_convex_is_solved_from_several_starts_without_a_certificate() -> (
    None
):
    problem = ufm.Problem(
        class_counts=(4.0, 3.0),
        feature_dim=2,
        loss=from_function(saturating, convex=False),
        regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
    )
    solution = ufm.solve(problem)
    assert solution.status.ok
    assert solution.certificate is None
    assert len(solution.restarts.objective) > 1
