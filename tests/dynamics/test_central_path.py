"""The central path against its closed form."""

from typing import Any

import numpy as np
import pytest

from ufm._support import Status
from ufm.dynamics import central_path, central_path_check, path_clock

pytest.importorskip("diffrax")


# The central path.


def some_features() -> np.ndarray:
    draws = np.random.default_rng(0)
    means = np.diag([0.5, 1.0, 2.0]) @ draws.standard_normal((3, 4))
    return np.asarray(draws.standard_normal((18, 4)) + np.repeat(means, 6, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["projected", pytest.param("followed", marks=pytest.mark.nightly)])
def test_the_central_path_keeps_singular_vectors_and_time(flow: Any) -> None:
    path = central_path(some_features(), 3, times=np.geomspace(1, 1e5, 10), flow=flow)
    check = central_path_check(path)
    assert path.status == Status.FINISHED
    assert check.holds
    assert check.clock_error < 1e-8
    assert check.turned < 1e-8
    assert np.max(path.whiteness) < 1e-10
    assert check.spread[-1] < 1.01 < 3 < check.spread[0]
    if flow == "projected":
        # The form that Han, Papyan & Donoho have, c1 log w + c2 w^2 + c3 w^4 = a + t, with the
        # constants derived here.
        w = np.sqrt(3) * path.singular_values
        left = np.log(w) + w**2 / 3 + w**4 / 36
        np.testing.assert_allclose(
            left[1:] - left[0], np.broadcast_to(path.times[1:, None] / 54, (10, 2)), rtol=1e-8
        )


def test_the_central_path_check_says_no() -> None:
    path = central_path(some_features(), 3, times=np.geomspace(1, 1e5, 10))
    assert central_path_check(path).holds
    assert not central_path_check(path._replace(flow="followed")).holds
    assert not central_path_check(path._replace(times=path.times * 1.0001)).holds
    assert not central_path_check(
        path._replace(singular_values=path.singular_values * np.nan)
    ).holds
    assert not central_path_check(path._replace(objective=path.objective * (1 + 1e-6))).holds
    turned = path.vectors[0].copy()
    turned[-1, :, 0] += 1e-3
    assert not central_path_check(path._replace(vectors=(turned, path.vectors[1]))).holds
    with pytest.raises(ValueError, match=r"K - 1 <= d <= N - K"):
        central_path(some_features()[:6], 3, times=1.0)
    with pytest.raises(ValueError, match="`flow` must be one of"):
        central_path(some_features(), 3, times=1.0, flow="none")  # type: ignore[arg-type]
    assert path_clock("projected", 1.0) == 1.25


@pytest.mark.nightly
def test_the_free_central_path_turns_singular_vectors() -> None:
    check = central_path_check(
        central_path(some_features(), 3, times=np.geomspace(1, 50, 6), flow="free")
    )
    assert check.turned > 1e-3
    assert not check.holds
