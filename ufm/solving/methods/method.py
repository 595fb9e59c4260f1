"""The protocol of methods: the space that a method moves in, and one step there."""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int

from ufm._support import Module, Status
from ufm.problems import Problem, Samples
from ufm.solving.methods.search_spaces import (
    Space,
    balanced_space,
    from_logarithm,
    parameter_space,
)

__all__ = ["LogarithmicMethod", "Method", "Step"]

Logarithmic = TypeVar("Logarithmic", bound="LogarithmicMethod")


class Step(NamedTuple):
    """Where a step of a method leads.

    Attributes:
        x: The unknowns, shape (n,).
        value: The objective of the space there.
        gradient: The gradient of that objective, shape (n,).
        memory: What the method keeps for its next step.
        status: `Status.RUNNING`; `Status.STALLED` if no step leads on; `Status.NON_FINITE` if the
            objective or its gradient became infinite or NaN, and x is the last finite point.
        evaluations: Number of gradients and Hessian-vector products that the step took.
    """

    x: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    memory: Any
    status: Int[Array, ""] | int = Status.RUNNING
    evaluations: Int[Array, ""] | int = 1


class Method(Module):
    """A method that minimises the objective of a space, a function of one flat vector.

    A subclass that defines `init` and `step` is a method for `ufm.solve`. The compiled loop calls
    both, so they must be pure functions of JAX arrays. The loop measures the gradient, stops at the
    tolerance, counts and records.

        class SteepestDescent(ufm.Method):
            rate: float = 0.1

            def init(self, space, x, value, gradient):
                return ()

            def step(self, space, x, value, gradient, memory):
                x = x - self.rate * gradient
                return x, *space.objective(x), memory

    Attributes:
        balanced: Whether the unknowns are balanced coordinates, in which all penalties are equal
            and constraints are met by construction. If not, they are the parameters themselves,
            and the method applies `space.project` to meet the constraints.
        default_steps: Most steps from each start if the caller does not say; None if that depends
            on the problem alone.
    """

    balanced: ClassVar[bool] = True
    default_steps: ClassVar[int | None] = None

    @abc.abstractmethod
    def init(
        self, space: Space, x: Float[Array, " n"], value: Float[Array, ""], gradient: Any
    ) -> Any:
        """Return the memory at a first point: a pytree of arrays whose shapes never change."""

    @abc.abstractmethod
    def step(
        self,
        space: Space,
        x: Float[Array, " n"],
        value: Float[Array, ""],
        gradient: Float[Array, " n"],
        memory: Any,
    ) -> Step | tuple[Any, ...]:
        """Return the fields of a `Step`, at least the first four."""

    def search_space(self, problem: Problem, samples: Samples) -> Space:
        """Return the space that the method moves in."""
        return (balanced_space if self.balanced else parameter_space)(problem, samples)

    def in_logarithm(self) -> "Method | None":
        """Return the same method for the logarithm of the objective; None if there is none."""
        return None

    def plain_value(self, problem: Problem, value: Any) -> Any:
        """Return the objective itself, given the value that the method sees."""
        return value


class LogarithmicMethod(Method):
    """A method that can minimise the logarithm of the objective instead.

    Attributes:
        logarithmic: Whether it does. An objective near zero needs it.
    """

    logarithmic: eqx.AbstractVar[bool]

    def in_logarithm(self: Logarithmic) -> Logarithmic:
        """Return the same method for the logarithm of the objective."""
        return dataclasses.replace(self, logarithmic=True)

    def plain_value(self, problem: Problem, value: Any) -> Any:
        """Return the objective itself, given the value that the method sees."""
        return from_logarithm(problem, value) if self.logarithmic else value
