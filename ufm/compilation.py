"""How the library's functions are compiled: for fast code where arrays are large, for fast compilation where they are small.

A solve with ten classes runs for milliseconds, and its first call is all compilation. XLA's CPU backend takes half as long with
its older code generator for fused loops, whose code is as fast on arrays of a few thousand numbers and about a tenth
slower on larger ones (`benchmarks/`). It takes half of that again without optimising the code, which costs a quarter of the
speed on arrays of a hundred numbers, where most of the time goes into starting operations, and two thirds of it on a thousand.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import numpy as np

__all__ = ["compiled"]

SMALL = 20_000  # numbers in the largest argument
TINY = 1000  # up to which code is not optimised
QUICK = MappingProxyType({"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True})
ONCE = MappingProxyType({**QUICK, "xla_backend_optimization_level": 0})


def compiled(function: Callable[..., Any], *, once: bool = False) -> Callable[..., Any]:
    """Return the function, compiled by `equinox.filter_jit` for the size of its arguments: arrays are traced, the rest is static.

    Args:
        function: pure.
        once: whether it is called about once per shape, so that the code's own speed hardly counts.
    """
    thorough, quick, quickest = (_compiled(function, options) for options in (None, QUICK, ONCE))

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        size = max((np.size(leaf) for leaf in jax.tree.leaves(args) if eqx.is_array(leaf)), default=0)
        if size >= SMALL or not _supported():
            return thorough(*args)
        return (quickest if once or size < TINY else quick)(*args)

    return call


def _compiled(function: Callable[..., Any], options: Mapping[str, Any] | None) -> Callable[..., Any]:
    return eqx.filter_jit(function, **({} if options is None else {"compiler_options": dict(options)}))  # type: ignore[call-overload]


@functools.cache
def _supported() -> bool:
    """Whether this version of XLA knows the options, and compiles for a CPU, where they apply."""
    return jax.default_backend() == "cpu" and _known(ONCE)


def _known(options: Mapping[str, Any]) -> bool:
    try:
        jax.jit(lambda: np.float32(0), compiler_options=dict(options)).lower().compile()
    except Exception:  # whatever a version raises for an option that it does not know, the defaults will do
        return False
    return True
