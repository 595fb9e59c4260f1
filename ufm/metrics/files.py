"""Features and other arrays in .npz files."""

import os
import zipfile
from typing import NamedTuple

import numpy as np

from ufm._support import ArgumentError, printed

__all__ = [
    "FeatureSet",
    "load_features",
    "stored_arrays",
]


@printed
class FeatureSet(NamedTuple):
    """What `neural_collapse` measures, in the order of its arguments.

    Attributes:
        features: (N, d).
        labels: (N,).
        weights: (K, d), or None.
        bias: (K,), or None.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    bias: np.ndarray | None


def stored_arrays(
    path: str | os.PathLike[str], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray | None]:
    """Return arrays of an .npz file by their keys; None for an optional one that is not there.

    Nothing in the file is ever unpickled, so that a file from elsewhere cannot run code. Other keys
    are ignored.

    Raises:
        ValueError: There is no such file, it is damaged or no .npz file, a key is missing, or an
            array holds objects.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise ArgumentError("path", f"must be an .npz file, got {name!r}, where there is no file")
    if not zipfile.is_zipfile(name):
        sample = ", ".join(f"{key}=..." for key in required)
        raise ArgumentError(
            "path",
            f"must be an .npz file, got {name!r}, which is something else or truncated; write "
            f"it with `numpy.savez(path, {sample})`",
        )
    try:
        with np.load(name, allow_pickle=False) as file:
            found = sorted(file.keys())
            arrays = {key: file[key] if key in found else None for key in required + optional}
    except (
        Exception
    ) as error:  # a damaged file can fail in NumPy, in zipfile or in any decompressor
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ArgumentError(
            "path", f"must be a readable .npz file, got {name!r}: {reason}"
        ) from error
    if any(arrays[key] is None for key in required):
        keys = " and ".join(map(repr, required))
        raise ArgumentError("path", f"must have the keys {keys}, got {found} in {name!r}")
    for key, array in arrays.items():
        if array is not None and not isinstance(array, np.ndarray):
            raise ArgumentError(
                "path", f"must hold arrays, got {type(array).__name__} as {key!r} in {name!r}"
            )
    return arrays


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Return the features of an .npz file.

    Its keys are features, labels and, optionally, weights and bias.
    Measure with `neural_collapse(*load_features(path))`, which checks what the arrays hold.

    Args:
        path: A file written by `numpy.savez` or `numpy.savez_compressed`. Nothing in it is ever
            unpickled.

    Returns:
        The arrays, as they were stored.

    Raises:
        ValueError: As `stored_arrays`.
    """
    return FeatureSet(**stored_arrays(path, ("features", "labels"), ("weights", "bias")))  # type: ignore[arg-type]
