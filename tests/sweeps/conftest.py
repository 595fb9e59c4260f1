from typing import Any

import pytest

from ufm.sweeps import run as running


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points were evaluated each time, by the made-up evaluation."""
    from hardships import made_up  # needs zarr

    seen: list[int] = []

    def counted(points: Any, flat: Any, settings: Any) -> Any:
        seen.append(len(flat))
        return made_up(points, flat, settings)

    monkeypatch.setattr(running, "evaluate", counted)
    return seen
