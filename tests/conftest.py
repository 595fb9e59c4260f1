"""Strict mode for all tests: nothing is promoted silently.

In double precision, unless UFM_TEST_X64=0.

Nearly all the time of the default suite is compilation, so XLA is told not to optimise what it
compiles, unless XLA_FLAGS says otherwise: `XLA_FLAGS= pytest` tests the code as it is compiled for
users, and so do the slow tests of CI and `ufm verify`.
"""

import gc
import os
from collections.abc import Iterator

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

from ufm._support import double_precision

gc.set_threshold(
    100_000, 50, 100
)  # what JAX keeps is looked through again and again otherwise, to no avail
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_enable_x64", os.environ.get("UFM_TEST_X64", "1") != "0")


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
