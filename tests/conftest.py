"""Strict mode for all tests: nothing is promoted silently, and warnings are errors.

In double precision, unless UFM_TEST_X64=0.

Nearly all the time of the default suite is compilation, so XLA is told to compile quickly, unless
XLA_FLAGS says otherwise: without optimisation, with the older code generator of fused loops, and
every program in one piece. On 80 small operations and 6 gradients that took 2.4 s of CPU time
instead of 7.0 s. `XLA_FLAGS= pytest` tests the code as it is compiled for users; so do the other
precision in CI and `ufm verify`.

`UFM_TEST_SHAPES=1 pytest tests/metrics` checks the annotations of the package at run
time: types, and the shapes and dtypes of arrays. `.ci/run` names the files that it checks so.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

if os.environ.get("UFM_TEST_SHAPES") == "1":
    import typing

    import jaxtyping

    # `Array` stands for NumPy and JAX arrays alike: shape and dtype are checked. A float may be an
    # integer. The hook changes the package as it is imported, so it comes before that.
    jaxtyping.Array = typing.Any
    jaxtyping.install_import_hook(
        "ufm", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )
    # What an annotation rules out is refused by the check, before the package's own error.
    raises, refused = pytest.raises, "^Type-check error whilst checking the parameters"
    pytest.raises = lambda expected, match="": raises(
        (*(expected if isinstance(expected, tuple) else (expected,)), jaxtyping.TypeCheckError),
        match=f"{match}|{refused}",
    )

from ufm._support import double_precision
from ufm._support.compilation import maps_are_short

LARGE = 2 * 2**30  # bytes of a process from which on compiled programs are dropped

# The collector would look through all that JAX keeps again and again, to no avail.
gc.set_threshold(100_000, 50, 100)
# A shell that starts the tests in the background has Ctrl-C ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Programs do not say from which lines they come: a twentieth of the time of lowering them.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_enable_x64", os.environ.get("UFM_TEST_X64", "1") != "0")


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """Drop all compiled programs after a file that leaves the process large or short of maps.

    A program holds megabytes. Once dropped they stay with the allocator, which has to be asked for
    them: 240 programs that took 1.3 GB left 1.2 GB behind, and 0.2 GB after that.
    """
    yield
    if sys.platform == "linux" and (resident_bytes() > LARGE or maps_are_short()):
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return the memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def float64() -> Iterator[None]:
    """For tests of the pure core, which computes in the precision of its surroundings."""
    with double_precision():
        yield


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def process_x64(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both settings that a user's process may have."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield request.param
    jax.config.update("jax_enable_x64", before)
