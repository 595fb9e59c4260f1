"""Double precision for the library's own computations, under every JAX setting.

JAX computes in float32 unless a process-wide switch says otherwise. The library's results are
float64 in either case: its host-side functions compute inside `double_precision()` and return NumPy
arrays, because a float64 JAX array that leaves the context is cast to float32 by the next
operation.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# Below it numbers lose digits, and their quotients overflow.
SMALLEST = float(np.finfo(np.float64).tiny)
LARGEST = 1e300  # beyond it sums and multiples overflow

Number = jax.Array | np.ndarray | float  # one number, as it is given and as it is kept

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "LARGEST",
    "SMALLEST",
    "Number",
    "array_module",
    "as_leaf",
    "broadcasting",
    "double_precision",
    "in_double_precision",
    "is_concrete",
    "is_numeric",
    "on_host",
    "real_numbers",
    "to_numpy",
    "within_steps",
]

MOST_STEPS = 1 << 30


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Let JAX compute in float64 inside; the process's own settings come back on leaving.

    `jax_debug_nans` and `jax_debug_infs` are off inside. Infinite bounds, and trial steps that end
    in NaN, are data to the library's solvers, which look at them and go on; what became of a solve
    is in its status.
    """
    with contextlib.ExitStack() as settings:
        settings.enter_context(_x64())
        for name, setting in (
            ("jax_debug_nans", jax.debug_nans),
            ("jax_debug_infs", jax.debug_infs),
        ):
            if getattr(jax.config, name):
                settings.enter_context(setting(False))
        yield


def _x64() -> AbstractContextManager[Any]:
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental

    return experimental.enable_x64(True)  # type: ignore[attr-defined]  # the name before JAX 0.8


def to_numpy(tree: T) -> T:
    """Return `tree` with every JAX array replaced by a NumPy array of the same dtype.

    Arrays without axes stay arrays.
    """
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )


def in_double_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of the host: it computes in float64, and it returns NumPy arrays."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with double_precision():
            return to_numpy(function(*args, **kwargs))

    return wrapped


def broadcasting(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose arrays have batch axes last.

    It may combine arrays of several ranks, also where the process forbids that.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def array_module(tree: Any) -> Any:
    """Return `jax.numpy` where a leaf is a JAX array, traced or not, and `numpy` otherwise."""
    if isinstance(tree, (np.ndarray, np.generic, float)):  # by far the most, and no tree to search
        return np
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)) else np


def is_concrete(*values: Any) -> bool:
    """Return True where no value is a JAX tracer, so that the values may be looked at."""
    # Iterators hold no tracers that could be seen without using them up.
    trees = [value for value in values if not isinstance(value, Iterator)]
    return not any(
        isinstance(leaf, jax.core.Tracer) for value in trees for leaf in jax.tree.leaves(value)
    )


def on_host(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of the host: it raises a ValueError under jit, vmap or grad."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if not is_concrete(*args, *kwargs.values()) or isinstance(jnp.zeros(()), jax.core.Tracer):
            raise ValueError(
                f"`{function.__name__}` cannot be traced by jit, vmap or grad: on the host it "
                "looks at numbers, to choose methods and to certify. Call it outside. The pure "
                "core can be traced: `ufm.solving.group_batch.certified` over groups of classes; "
                "`ufm.solving.methods.first_iterate`, `ufm.solving.methods.advance` and "
                "`ufm.certificates.bound_inputs` over classes; the `formula` of a theorem. Many "
                "problems at once: `ufm.sweep`, `ufm.solving.group_batch.solve_batch`."
            )
        return function(*args, **kwargs)

    return checked


def is_numeric(value: Any) -> bool:
    """Return whether a value is what `as_leaf` makes of real numbers: a floating-point array."""
    array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, np.ma.MaskedArray)
    return array and bool(jnp.issubdtype(value.dtype, np.floating))


def within_steps(limit: int) -> int:
    """Return a limit of steps that compiled loops, whose counters have 32 bits, can count to."""
    return min(int(limit), MOST_STEPS)


def real_numbers(value: Any, kinds: str = "iuf") -> np.ndarray | None:
    """Return real numbers as the array that NumPy makes of them; None for anything else.

    Anything else is text, a ragged list, masked entries, or numbers of other kinds.
    """
    if np.ma.is_masked(value) or value is np.ma.masked:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a list with a masked entry
            array = np.asarray(value)
    except (ValueError, TypeError, UserWarning):
        return None
    real = array.dtype.kind in kinds or jnp.issubdtype(array.dtype, np.floating)
    return array if real else None


def as_leaf(value: Any) -> Any:
    """Return a number or a sequence of numbers as a float64 NumPy array, and all else unchanged.

    An explicit dtype gives one trace for all values, and NumPy keeps the digits that a float32
    process would drop. Traced values pass, and so do the objects that JAX puts into the leaves
    while it rebuilds a pytree. What is no real number is left for the checks to name.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if eqx.is_array_like(value) or isinstance(value, (list, tuple, np.ndarray, np.generic)):
        numbers = real_numbers(value, "biuf")
        return value if numbers is None else np.asarray(numbers, np.float64)
    return value
