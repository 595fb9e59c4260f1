"""How the library's functions are compiled.

Large arrays get fast code, and small ones fast compilation.

A solve with ten classes runs for milliseconds, and its first call is all compilation. XLA's CPU
backend compiles in half the time with its older code generator for fused loops. That code is as
fast on arrays of a few thousand numbers, and about a tenth slower on larger ones (`benchmarks/`).
Compilation without optimisation takes half of that again. It costs a quarter of the speed on arrays
of a hundred numbers, where most of the time goes into starting operations, and two thirds of it on
a thousand. Sums are taken in one pass: sums of sums of 32 numbers compile several times as long and
round little better at these lengths.

Every compiled program keeps some 90 memory maps. Linux ends a process that asks for more than
`vm.max_map_count` of them (65530 by default), which happens after problems of some 200 shapes. The
library drops its programs before that, and compiles them again when they are needed.
"""

import functools
import itertools
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

__all__ = ["compiled"]

SMALL = 20_000  # numbers in the largest argument, below which compilation is quick
TINY = 1000  # numbers below which code is not optimised
QUICK = MappingProxyType(
    {
        "xla_cpu_use_fusion_emitters": False,
        "xla_llvm_disable_expensive_passes": True,
        "xla_disable_hlo_passes": "tree_reduction_rewriter",
    }
)
ONCE = MappingProxyType({**QUICK, "xla_backend_optimization_level": 0})
ARRAYS = (np.ndarray, np.generic, jax.Array)
_TRACED = object()  # in place of an array among the static leaves
MAPS_LEFT = 0.5  # of the memory maps that the system allows a process
CHECKED_EVERY = 20  # programs, which is some 2000 maps

_programs: weakref.WeakSet[Any] = weakref.WeakSet()
_count = itertools.count(1)


def compiled(function: Callable[..., Any], *, once: bool = False) -> Callable[..., Any]:
    """Return the function, compiled for the size of its arguments.

    Arrays are traced, and all other leaves are static.

    Args:
        function: A pure function from pytrees of arrays and of hashable leaves to pytrees of
            arrays.
        once: Whether it is called about once per shape, so that the speed of its code hardly
            counts.
    """

    def run(static: tuple[Any, ...], arrays: list[Any]) -> Any:
        # Python runs this once per program, while JAX traces it.
        if next(_count) % CHECKED_EVERY == 0 and maps_are_short():
            drop_programs()
        structure, leaves = static
        given = iter(arrays)
        return function(
            *jax.tree.unflatten(
                structure, [next(given) if leaf is _TRACED else leaf for leaf in leaves]
            )
        )

    functools.update_wrapper(run, function, assigned=("__name__", "__qualname__"), updated=())
    # Each is made on first use: the library has over a hundred, and `import ufm` is to be light.
    thorough, quick, quickest = (
        functools.cache(functools.partial(_compiled, run, options))
        for options in (None, QUICK, ONCE)
    )

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        static = structure, tuple(_TRACED if isinstance(leaf, ARRAYS) else leaf for leaf in leaves)
        arrays = [leaf for leaf, kept in zip(leaves, static[1], strict=True) if kept is _TRACED]
        size = max((leaf.size for leaf in arrays), default=0)
        if size >= SMALL or not options_supported():
            return thorough()(static, arrays)
        return (quickest if once or size < TINY else quick)()(static, arrays)

    return call


def _compiled(run: Callable[..., Any], options: Mapping[str, Any] | None) -> Callable[..., Any]:
    chosen: dict[str, Any] = {} if options is None else {"compiler_options": dict(options)}
    program = jax.jit(run, static_argnums=0, **chosen)
    _programs.add(program)
    return program


def drop_programs() -> None:
    """Drop what the library compiled in this process; a program in use is dropped when it ends."""
    for program in list(_programs):
        program.clear_cache()


def maps_are_short() -> bool:
    """Return whether the process holds half of the memory maps that it may have.

    It is False where the system does not say.
    """
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        held = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return False
    return held > MAPS_LEFT * allowed


@functools.cache
def options_supported() -> bool:
    """Return whether XLA compiles for a CPU, where the options apply, and knows them."""
    return jax.default_backend() == "cpu" and options_known(ONCE)


def options_known(options: Mapping[str, Any]) -> bool:
    try:
        jax.jit(lambda: np.float32(0), compiler_options=dict(options)).lower().compile()
    except Exception:  # versions differ in what they raise for an unknown option
        return False
    return True
