"""Feature files: what is read, and one clear line for what cannot be."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scattered import Data, assert_same
from tables import for_each

from ufm import metrics
from ufm.metrics import neural_collapse


def test_feature_files_are_read(tmp_path: Path) -> None:
    data, path = Data(), tmp_path / "run.npz"
    np.savez(
        path,
        features=data.features,
        labels=data.labels,
        weights=data.weights,
        bias=data.bias,
        epoch=3,
    )
    assert_same(neural_collapse(*metrics.load_features(path)), data.whole())
    np.savez_compressed(str(path), features=data.features, labels=data.labels)
    loaded = metrics.load_features(str(path))
    assert loaded.weights is loaded.bias is None


def object_array(path: Path) -> None:
    np.savez(path, features=np.array([[Trap()]], dtype=object), labels=np.zeros(1, int))


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def truncated(path: Path) -> None:
    np.savez(path, features=np.ones((50, 3)), labels=np.zeros(50, int))
    path.write_bytes(path.read_bytes()[:-200])


def corrupt(path: Path) -> None:
    np.savez_compressed(
        path, features=np.random.default_rng(0).normal(size=(50, 3)), labels=np.zeros(50, int)
    )
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features", b"1, 2, 3")
        archive.writestr("labels", b"0")


class Trap:
    """Raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("something was unpickled",)


@for_each(
    ("write", "message"),
    [
        (lambda path: None, "where there is no file"),
        (lambda path: path.mkdir(), "where there is no file"),
        (lambda path: path.write_bytes(b""), "something else or truncated"),
        (lambda path: path.write_bytes(pickle.dumps(Trap())), "something else or truncated"),
        (single_array, "something else or truncated"),
        (
            lambda path: np.savez(path, H=np.ones(3), y=np.ones(3)),
            r"keys 'features' and 'labels', got \['H', 'y'\]",
        ),
        (object_array, "must be a readable .npz file.*allow_pickle=False"),
        (truncated, "something else or truncated"),
        (corrupt, "must be a readable .npz file"),
        (no_arrays, "must hold arrays, got bytes as 'features'"),
    ],
)
def test_bad_files_give_one_clear_line(
    write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
    folder.mkdir()
    path = folder / "bad.npz"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        metrics.load_features(path)
    assert "\n" not in str(caught.value)
    assert "bad.npz" in str(caught.value)
