"""A solve that stops where it would begin, and a small store of a sweep."""

import pytest
from command_line import TINY, Solves, status


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> Solves:
    return Solves(monkeypatch)


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small file, and the store that it gives."""
    folder = tmp_path_factory.mktemp("sweep")
    config, store = folder / "tiny.toml", folder / "tiny.zarr"
    config.write_text(TINY)
    assert status(["sweep", str(config), "--out", str(store), "--json"]) == 0
    return str(config), str(store)
