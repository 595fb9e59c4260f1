"""How the library's functions are compiled: for fast code where arrays are large, for fast compilation where they are small.

A solve with ten classes runs for milliseconds, and its first call is all compilation. XLA's CPU
backend takes half as long with its older code generator for fused loops, whose code is as fast on
arrays of a few thousand numbers and about a tenth slower on larger ones (`benchmarks/`). It takes
half of that again without optimising the code, which costs a quarter of the speed on arrays of a
hundred numbers, where most of the time goes into starting operations, and two thirds of it on a
thousand. Sums are taken in one go, not as sums of sums of 32 numbers, which costs several times as
much and rounds little better at these lengths.

Every compiled program keeps some 90 memory maps, and Linux ends a process that asks for more than
`vm.max_map_count` of them, 65530 unless it was changed: after problems of some 200 shapes. The
library's programs are dropped before that, and compiled again where they are needed again.
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

SMALL = 20_000  # numbers in the largest argument
TINY = 1000  # up to which code is not optimised
QUICK = MappingProxyType(
    {
        "xla_cpu_use_fusion_emitters": False,
        "xla_llvm_disable_expensive_passes": True,
        "xla_disable_hlo_passes": "tree_reduction_rewriter",
    }
)
ONCE = MappingProxyType({**QUICK, "xla_backend_optimization_level": 0})
ARRAYS = (np.ndarray, np.generic, jax.Array)
_TRACED = object()  # in place of an array among what is static
MAPS_LEFT = 0.5  # of the memory maps that the system allows a process
CHECKED_EVERY = 20  # programs, which is some 2000 maps

_programs: weakref.WeakSet[Any] = weakref.WeakSet()
_count = itertools.count(1)


def compiled(function: Callable[..., Any], *, once: bool = False) -> Callable[..., Any]:
    """Return the function, compiled for the size of its arguments: arrays are traced, the rest is static.

    Args:
        function: pure, from pytrees of arrays and of hashable leaves to pytrees of arrays.
        once: whether it is called about once per shape, so that the code's own speed hardly counts.
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
    # Made on first use, because the library has over a hundred and `import ufm` would make them
    # all.
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
        if size >= SMALL or not _supported():
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
    """Whether the process holds half of the memory maps that it may have; False where no system says."""
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        held = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return False
    return held > MAPS_LEFT * allowed


@functools.cache
def _supported() -> bool:
    """Whether this version of XLA knows the options, and compiles for a CPU, where they apply."""
    return jax.default_backend() == "cpu" and _known(ONCE)


def _known(options: Mapping[str, Any]) -> bool:
    try:
        jax.jit(lambda: np.float32(0), compiler_options=dict(options)).lower().compile()
    except (
        Exception
    ):  # whatever a version raises for an option that it does not know, the defaults will do
        return False
    return True
