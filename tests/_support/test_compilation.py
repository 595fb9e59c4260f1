"""Compilation options change how fast code is made, never what it computes."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ufm._support import compilation, compiled
from ufm._support.compilation import QUICK, options_known


@pytest.mark.parametrize("size", [10, compilation.SMALL + 1])
@pytest.mark.parametrize("once", [False, True])
def test_the_size_changes_nothing_but_the_way(size: int, once: bool) -> None:
    call = compiled(lambda x, name: {name: jnp.cumsum(jnp.sin(x))}, once=once)
    x = np.linspace(0, 1, size)
    np.testing.assert_allclose(call(x, "sum")["sum"], np.cumsum(np.sin(x)), rtol=1e-5)


def test_an_option_that_xla_does_not_know_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not options_known({**QUICK, "xla_no_such_option": True})
    monkeypatch.setattr(compilation, "options_known", lambda options: False)
    compilation.options_supported.cache_clear()
    assert float(compiled(lambda x: x + 1)(np.float32(1))) == 2
    compilation.options_supported.cache_clear()


def test_arrays_are_traced_and_all_else_is_static() -> None:
    traces = []

    def scaled(x: Any, factor: float, parts: dict[str, Any]) -> Any:
        traces.append(factor)
        return {"product": factor * x + parts["add"], "nothing": parts["none"]}

    call = compiled(scaled)
    parts = {"add": np.float32(1), "none": None}
    for x in (np.zeros(3), np.ones(3), jnp.ones(3)):
        assert call(x.astype(np.float32), 2.0, parts)["nothing"] is None
    assert traces == [2.0]
    np.testing.assert_allclose(
        call(np.ones(3, np.float32), 3.0, parts | {"add": np.float32(2)})["product"], 5
    )
    assert traces == [2.0, 3.0]


def test_programs_are_dropped_before_the_memory_maps_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = []

    def doubled(x: Any) -> Any:
        traces.append(x.shape)
        return 2 * x

    call = compiled(doubled)
    monkeypatch.setattr(compilation, "CHECKED_EVERY", 1)
    for left, expected in ((1.0, [(3,), (4,)]), (0.0, [(3,), (4,), (3,), (4,)])):
        monkeypatch.setattr(compilation, "MAPS_LEFT", left)
        traces.clear()
        compilation.drop_programs()
        for size in (3, 4, 3, 4):
            np.testing.assert_array_equal(call(np.ones(size, np.float32)), 2 * np.ones(size))
        assert traces == expected


def test_a_system_without_memory_maps_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MAPS_LEFT", 0.0)
    assert compilation.maps_are_short() == Path("/proc/self/maps").exists()
    monkeypatch.setattr(compilation, "Path", lambda name: Path("/no/such/folder") / name[1:])
    assert not compilation.maps_are_short()
