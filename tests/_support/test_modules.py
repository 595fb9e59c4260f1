"""Modules: pytrees whose methods are plain Python's, and instances without checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm._support import Module, assembled, rebuilt


class Scaled(Module):
    """A number that multiplies."""

    factor: jax.Array | float
    name: str = "scaled"

    def __check_init__(self) -> None:
        if isinstance(self.factor, float) and self.factor < 0:
            raise ValueError("negative")

    def times(self, x: jax.Array) -> jax.Array:
        """Return the product."""
        return self.factor * x


def test_methods_are_bound_as_everywhere_in_python_and_can_be_compiled() -> None:
    one = Scaled(np.asarray(3.0))
    assert one.times.__self__ is one
    assert type(one.times).__name__ == "method"
    assert float(jax.jit(one.times)(2.0)) == 6
    assert (
        float(
            jax.grad(lambda module: module.times(2.0))(
                one.__class__(jnp.asarray(3.0), name=None)
            ).factor
        )
        == 2
    )  # type: ignore[arg-type]


def test_the_parts_of_a_problem_are_such_modules() -> None:
    problem = ufm.Problem(
        class_counts=[5, 3, 2],
        feature_dim=3,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(1e-2, 1e-2),
    )
    parts = (
        problem,
        problem.loss,
        problem.class_counts,
        problem.regularizer,
        ufm.LBFGS(),
        ufm.NewtonCG(),
    )
    assert all(isinstance(part, Module) for part in parts)
    assert len(jax.tree.leaves(problem)) == 4


def test_rebuilt_changes_what_it_is_told_without_checks() -> None:
    with pytest.raises(ValueError, match="negative"):
        Scaled(-1.0)
    one = rebuilt(Scaled(1.0, name="kept"), factor=-1.0)
    assert (type(one), one.factor, one.name) == (Scaled, -1.0, "kept")


def test_assembled_is_what_the_class_makes() -> None:
    assert jax.tree.structure(assembled(Scaled, factor=2.0, name="same")) == jax.tree.structure(
        Scaled(2.0, name="same")
    )
