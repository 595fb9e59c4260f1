"""Losses made of a function of one row: logits and a target row in, a number out."""

import hashlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm._support import ArgumentError, double_precision
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses.loss import Loss

__all__ = ["FunctionLoss", "from_function"]

WIDTHS = (3, *(width for width in range(1, 129) if width != 3))  # tried in this order
ROWS = 64  # random rows on which a shift is tried
SHIFTS = (-3.7, 0.9, 11.3)
SAME = 1e-10  # relative change by a shift that rounding explains


class RowFunction:
    """A function with a name that tells it apart in any process.

    Two are equal where the function is the same object, so programs are compiled once for it.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *rows: Any) -> Any:
        return self.function(*rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowFunction) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return _identity(self.function)


class FunctionLoss(Loss):
    """A loss made by `from_function`, which see.

    Attributes:
        function: f(logits_row, target_row), a number.
        convex: Whether f is convex in the logits.
        shift_invariant: Whether a constant added to all logits changes nothing.
        infimum: A number that f is never below; minus infinity where it depends on the target row,
            or is not known.
        row_infimum: The number for a target row, a function; None where one number serves all.
        given_name: What messages call the loss.
    """

    function: RowFunction = eqx.field(static=True)
    convex: bool = eqx.field(static=True)  # type: ignore[misc]
    shift_invariant: bool = eqx.field(static=True)  # type: ignore[misc]
    infimum: float = eqx.field(static=True)  # type: ignore[misc]
    row_infimum: RowFunction | None = eqx.field(static=True)
    given_name: str = eqx.field(static=True)

    @property
    def title(self) -> str:
        """The name of the function, or the one that was given."""
        return self.given_name

    @property
    def label(self) -> str:
        """The name of the function, or the one that was given."""
        return self.given_name

    def __call__(self, logits: Array, targets: Array, classes: ClassGroups) -> Array:
        """Return the value of the function for every row."""
        return jax.vmap(self.function)(logits, targets)

    def infima(self, targets: Array, classes: ClassGroups) -> Array:
        """Return a number for every row that the function is never below."""
        if self.row_infimum is None:
            return super().infima(targets, classes)
        return jnp.asarray(jax.vmap(self.row_infimum)(targets), targets.dtype)


def from_function(
    f: Callable[[Array, Array], Array],
    convex: bool = True,
    infimum: float | Callable[[Array], Any] = 0.0,
    *,
    shift_invariant: bool | None = None,
    name: str = "",
) -> FunctionLoss:
    r"""Return the loss that a function of one row defines.

    A convex one is certified from its values, its derivative and its infimum alone. What is claimed
    of it here is tried on random logits before a certificate is believed (`check_loss`). Of a
    function that is not convex, several starts are followed and nothing is certified.

    The derivative is JAX's. At kinks such as those of a hinge it is one of many. Minimisers often
    lie on kinks, where descents stall above the minimum; the certificate stays open and says so.
    Round the kinks off, or take one of the library's hinge losses, whose kinks it knows.

    Args:
        f: From logits (K,) and a target row (K,) to a number, in functions of `jax.numpy`. The
            data term is the mean of f over the samples. Pass the same function object each time:
            programs are compiled once for each.
        convex: Whether f is convex in the logits.
        infimum: A number that f is never below, or a function from a target row (K,) to such a
            number. Minus infinity where none is known: minimisers are then still certified where
            no share of the infimum is needed.
        shift_invariant: Whether a constant added to all logits changes nothing; found by trying
            random logits if not given.
        name: What messages call the loss; the function's own name if not given.

    Returns:
        A loss, to be used as any other.

    Raises:
        ValueError: Naming the argument, the value and the remedy, if f cannot be traced by JAX or
            does not return one number.

    Example:
        >>> import jax, jax.numpy as jnp, ufm
        >>> def pairwise(z, y):
        ...     return jnp.sum((1 - y) * jax.nn.softplus(z - jnp.sum(y * z)))
        >>> loss = ufm.losses.from_function(pairwise)
        >>> loss.shift_invariant, loss.label, bool(ufm.losses.check_loss(loss))
        (True, 'pairwise', True)
    """
    if not callable(f):
        raise ArgumentError("f", "must be a function of a row of logits and a target row", f)
    for argument, flag in (("convex", convex), ("shift_invariant", shift_invariant)):
        if not (isinstance(flag, (bool, np.bool_)) or (argument != "convex" and flag is None)):
            raise ArgumentError(argument, "must be True or False", flag)
    of_rows, least = callable(infimum), -np.inf if callable(infimum) else _number(infimum)
    width = _width(f, shift_invariant is not None)
    if shift_invariant is None:
        shift_invariant = _ignores_shifts(f, width)
    return FunctionLoss(
        function=RowFunction(f),
        convex=bool(convex),
        shift_invariant=bool(shift_invariant),
        infimum=least,
        row_infimum=RowFunction(infimum) if of_rows else None,  # type: ignore[arg-type]
        given_name=name or getattr(f, "__name__", type(f).__name__),
    )


def _number(infimum: Any) -> float:
    try:
        value = float(infimum)
    except (TypeError, ValueError):
        value = np.nan
    if not value < np.inf:  # NaN compares false, so NaN is refused
        requirement = "must be a number, minus infinity, or a function of a target row"
        raise ArgumentError("infimum", requirement, infimum)
    return value


def _width(f: Callable[..., Any], optional: bool) -> int:
    """Return a number of logits for which the function works; zero where none was found.

    Args:
        f: The function.
        optional: Whether it is no error that none was found.

    Raises:
        ArgumentError: If the function does not return one number, or is not traceable.
    """
    failure = ""
    for width in WIDTHS:
        row = jax.ShapeDtypeStruct((width,), np.float64)
        try:
            with double_precision():
                shape = jax.eval_shape(f, row, row)
        except jax.errors.JAXTypeError as error:
            raise ArgumentError(
                "f",
                f"cannot be traced by JAX ({str(error).splitlines()[0]})",
                f,
                "use functions of jax.numpy, and jnp.where in place of `if`",
            ) from None
        except Exception as error:  # made for rows of another length
            failure = failure or " ".join(f"{type(error).__name__}: {error}".split())
            continue
        if getattr(shape, "shape", None) != ():
            raise ArgumentError("f", "must return one number for a row", shape)
        return width
    if not optional:
        raise ArgumentError(
            "f",
            f"could not be called with rows of any length up to {max(WIDTHS)} ({failure})",
            remedy="mend it, or say whether it is shift_invariant",
        )
    return 0


def _ignores_shifts(f: Callable[..., Any], width: int) -> bool:
    """Return whether a constant added to all logits changes nothing, on random rows."""
    draws = np.random.default_rng(0)
    logits = draws.standard_normal((ROWS, width)) * np.resize((0.1, 1.0, 10.0), (ROWS, 1))
    targets = np.eye(width)[np.arange(ROWS) % width]
    # Half of the targets are soft: a loss may be invariant for rows that sum to one only.
    targets[::2] = draws.dirichlet(np.ones(width), len(targets[::2]))
    points = np.concatenate([logits + shift for shift in (0.0, *SHIFTS)])
    with double_precision():
        rows = jnp.asarray(points), jnp.asarray(np.tile(targets, (len(SHIFTS) + 1, 1)))
        at, *moved = np.split(np.asarray(jax.jit(jax.vmap(f))(*rows)), len(SHIFTS) + 1)
    size = np.abs(at) + np.max(np.abs(logits), axis=1) + np.max(np.abs(SHIFTS))
    # NaN compares false, so NaN is no invariance.
    return all(bool(np.all(np.abs(there - at) <= SAME * size)) for there in moved)


def _identity(function: Callable[..., Any]) -> str:
    """Return the name of a function with a digest of its code and of what it encloses."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    parts = [*_constants(code), *cells, *(getattr(function, "__defaults__", None) or ())]
    digest = hashlib.sha256("\n".join(map(_written, parts)).encode()).hexdigest()[:12]
    return f"{name}#{digest}"


def _constants(code: Any) -> list[Any]:
    """Return what a code object does, without the addresses and lines of where it lies."""
    own: list[Any] = [code.co_code, code.co_names]
    for constant in code.co_consts:
        own += _constants(constant) if hasattr(constant, "co_code") else [constant]
    return own


def _written(value: Any) -> str:
    """Return a text of a value: all entries of arrays, functions by their own digest."""
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape}{array.tobytes().hex()}"
    return _identity(value) if hasattr(value, "__code__") else repr(value)
