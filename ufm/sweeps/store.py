"""A sweep on disk: a zarr store that is written box by box, each box once, and that says which boxes it has.

Every quantity is an array with the dimensions of the sweep, its chunks are the boxes, and a chunk is written to a file of another name that is
then renamed, that of the status after the others. When all of a box's chunks are there, its mark is written. A process that dies leaves boxes
without a mark, which are computed again when the sweep is resumed, and nothing else: what has a mark is complete, and so is every point with a
status. Boxes share no file, so that many processes can write at once.
"""

import glob
import json
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm.paths import groups_of
from ufm.sweeps.evaluation import blank
from ufm.sweeps.points import Axis, Points
from ufm.sweeps.quantities import FILL, QUANTITIES, attributes_of

__all__ = ["Boxes", "Memory", "Store", "boxes_of", "create", "opened"]

MARKS = "progress/done"  # beside the quantities, out of sight of xarray


class Boxes(NamedTuple):
    """How the points are divided: rectangular parts of the grid.

    shape: of the grid of points. sides: of a box. counts: of boxes along each dimension.
    """

    shape: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of boxes along each dimension."""
        return tuple(-(-length // side) for length, side in zip(self.shape, self.sides, strict=True))

    def __len__(self) -> int:
        return int(np.prod(self.counts))

    def region(self, box: int) -> tuple[slice, ...]:
        """Return which part of the grid a box is."""
        corner = np.unravel_index(box, self.counts)
        return tuple(
            slice(int(c) * side, min((int(c) + 1) * side, length))
            for c, side, length in zip(corner, self.sides, self.shape, strict=True)
        )

    def flat(self, box: int) -> np.ndarray:
        """Return the points of a box by their places in row-major order."""
        ranges = [np.arange(part.start, part.stop) for part in self.region(box)]
        return np.ravel_multi_index(np.meshgrid(*ranges, indexing="ij"), self.shape).ravel()

    def region_shape(self, box: int) -> tuple[int, ...]:
        """Return the lengths of a box's sides."""
        return tuple(part.stop - part.start for part in self.region(box))

    def size(self, box: int) -> int:
        """Return how many points are in a box."""
        return math.prod(self.region_shape(box))


def boxes_of(points: Points, batch: int) -> Boxes:
    """Return boxes of at most `batch` points, long in the last dimensions, and of one structure each where the points are a grid."""
    sides, room = [], max(batch, 1)
    for length, axis in zip(reversed(points.shape), reversed(points.axes[: len(points.shape)]), strict=True):
        structural = axis.structural and not points.zipped
        sides.append(1 if structural else min(length, room))
        room = max(room // sides[-1], 1)
    return Boxes(points.shape, tuple(reversed(sides)))


class Memory:
    """The arrays of a sweep that is not kept on disk."""

    def __init__(self, points: Points, boxes: Boxes, quantities: tuple[str, ...], num_groups: int):
        self.points, self.boxes = points, boxes
        self.arrays = {name: blank(name, points.shape, num_groups) for name in quantities}
        self.done = np.zeros(len(boxes), bool)

    def write(self, box: int, found: Mapping[str, np.ndarray]) -> None:
        """Put the quantities of a box in their places."""
        region = self.boxes.region(box)
        for name in _status_last(self.arrays):
            part = self.arrays[name][region]
            part[...] = found[name].reshape(part.shape)
        self.done[box] = True

    def dataset(self, attributes: Mapping[str, Any]) -> Any:
        """Return the arrays as an xarray Dataset."""
        import xarray as xr

        coordinates = {
            name: (dims, values, attrs) for name, dims, values, attrs in coordinates_of(self.points, self.arrays)
        }
        variables = {
            name: ((*self.points.dims, *QUANTITIES[name].dims), array, attributes_of(name))
            for name, array in self.arrays.items()
        }
        return xr.Dataset(variables, coordinates, dict(attributes))


class Store:
    """A zarr store of a sweep, for one process of many that may write to it."""

    def __init__(self, path: str | os.PathLike[str], boxes: Boxes):
        import zarr

        self.path, self.boxes = Path(path), boxes
        group: Any = zarr.open_group(str(path), mode="r+")
        self.marks: Any = group[MARKS]
        self.arrays: dict[str, Any] = {name: array for name, array in group.arrays() if name in QUANTITIES}

    @property
    def done(self) -> np.ndarray:
        """Which boxes are complete, (boxes,) booleans."""
        return np.asarray(self.marks[...], bool).ravel()

    def write(self, box: int, found: Mapping[str, np.ndarray]) -> None:
        """Write the quantities of a box, then its mark.

        Raises:
            OSError: where the disk is full, or the store is gone; the box has no mark then, and its room is given back.
        """
        if not (self.path / "zarr.json").exists():  # folders would be made anew
            raise FileNotFoundError(f"`store` {self.path} is no longer there.")
        region, shape = self.boxes.region(box), self.boxes.region_shape(box)
        try:
            for name in _status_last(found):
                self.arrays[name][region] = found[name].reshape(*shape, *found[name].shape[1:])
            self.marks[tuple(slice(int(i), int(i) + 1) for i in np.unravel_index(box, self.boxes.counts))] = 1
        except OSError:
            with suppress(OSError):
                for name in reversed(_status_last(found)):
                    self.arrays[name][region] = FILL[QUANTITIES[name].dtype]  # a chunk with nothing in it has no file
            raise

    def dataset(self) -> Any:
        """Return the store as an xarray Dataset, read when it is looked at."""
        return opened(self.path)


def create(
    path: str | os.PathLike[str],
    points: Points,
    boxes: Boxes,
    quantities: tuple[str, ...],
    num_groups: int,
    attributes: Mapping[str, Any],
) -> None:
    """Create a store with nothing computed yet; it is there as a whole or not at all.

    Raises:
        FileExistsError: where there is something already.
    """
    import zarr

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.unfinished")
    for left in target.parent.glob(
        f".{glob.escape(target.name)}.{'[0-9a-f]' * 32}.unfinished"
    ):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        group = zarr.open_group(str(unfinished), mode="w-", attributes=dict(attributes))
        blanks = {name: blank(name, (1,), num_groups) for name in quantities}
        coordinates = coordinates_of(points, blanks)
        # As xarray has it: what is not named like its dimension would be read as data.
        group.attrs["coordinates"] = " ".join(name for name, dims, _, _ in coordinates if dims != (name,))
        for name, dims, values, attrs in coordinates:
            if values.dtype.kind == "U":  # zarr has no settled form of text: numbers, with the labels beside them
                values, attrs = np.arange(len(values)), {**attrs, "labels": json.dumps(values.tolist())}
            _array(group, name, values.shape, values.shape, values.dtype, dims, attrs)[...] = values
        for name in quantities:
            quantity = QUANTITIES[name]
            extra = blanks[name].shape[1:]
            _array(
                group,
                name,
                (*boxes.shape, *extra),
                (*boxes.sides, *extra),
                np.dtype(quantity.dtype),
                (*points.dims, *quantity.dims),
                attributes_of(name),
                FILL[quantity.dtype],
            )
        marks = group.require_group(MARKS.split("/")[0])
        _array(marks, MARKS.split("/")[1], boxes.counts, (1,) * len(boxes.counts), np.dtype("uint8"), None, {}, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the specification, which does not have it yet
            zarr.consolidate_metadata(str(unfinished))
        if target.exists():
            raise FileExistsError(
                f"`store` {target} exists already; resume it with resume=True, or choose another path."
            )
        unfinished.rename(target)
    finally:
        _removed(unfinished)


def _removed(folder: Path) -> None:
    """Remove a folder, also one that threads of zarr, of which one has failed, are still writing to."""
    gone = 0
    for _ in range(100):
        gone = gone + 1 if not folder.exists() else 0
        if gone > 2:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)


def opened(path: str | os.PathLike[str]) -> Any:
    """Return the Dataset of a store, complete or not; points that are not computed yet have NaN and status -1.

    Of a box that was being written when its process was killed, some quantities may be there; its status is -1.

    Raises:
        ValueError: where there is no sweep.
    """
    import xarray as xr

    metadata = Path(path) / "zarr.json"
    if not metadata.is_file():
        raise ValueError(f"`store` {path} is not a sweep: there is no zarr store of that name.")
    try:
        known = "fingerprint" in json.loads(metadata.read_text())["attributes"]
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"`store` {path} is not a sweep: what is there was not made by ufm.sweep.")
    dataset = xr.open_zarr(str(path), chunks=None, consolidated=True)
    # Without coordinates of their own, by which they would be aligned with the labels.
    variables = {name: dataset.variables[name] for name in QUANTITIES if name in dataset}
    coordinates: dict[str, Any] = {str(name): array.variable for name, array in dataset.coords.items()}
    for name, array in dataset.coords.items():
        attrs = dict(array.attrs)
        if "labels" in attrs:
            coordinates[str(name)] = array.dims, np.array(json.loads(attrs.pop("labels"))), attrs
    return xr.Dataset(variables, coordinates, dataset.attrs)


def coordinates_of(
    points: Points, arrays: Mapping[str, np.ndarray]
) -> list[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]]:
    """Return the coordinates of a sweep: name, dimensions, values and attributes."""
    found: list[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]] = []
    for axis in points.axes:
        dims = points.dims if points.zipped else (axis.name,)
        found.append((axis.name, dims, axis.coordinate, {"long_name": _meaning(axis)}))
        if axis.name == "class_counts":
            found.append(
                ("class_count", (*dims, "class"), np.asarray(axis.values), {"long_name": "samples of every class"})
            )
    counts, sizes = groups_of(points.problem)
    stated = {"stated_counts": counts.tolist(), "stated_sizes": sizes.tolist()}
    for name in ("group", "other_group"):
        lengths = [
            array.shape[array.ndim - len(QUANTITIES[quantity].dims) + QUANTITIES[quantity].dims.index(name)]
            for quantity, array in arrays.items()
            if name in QUANTITIES[quantity].dims
        ]
        if lengths:
            found.append(
                (name, (name,), np.arange(lengths[0]), {"long_name": "group of interchangeable classes", **stated})
            )
    return found


def _status_last(names: Iterable[str]) -> list[str]:
    """Return names of quantities with the status at the end: where it is, the others are."""
    return sorted(names, key=lambda name: name == "status")


def _meaning(axis: Axis) -> str:
    return {
        "imbalance_ratio": "imbalance ratio n_max / n_min",
        "weight_decay": "weight decay sqrt(lambda_W lambda_H)",
        "num_minority": "number of minority classes",
        "regularizer.weights": "weights' penalty lambda_W or bound E_W",
        "regularizer.features": "features' penalty lambda_H or bound E_H",
        "regularizer.bias": "bias penalty lambda_b",
        "num_classes": "number of classes K",
        "feature_dim": "feature dimension d",
        "depth": "number of layers L",
    }.get(axis.name, axis.name.replace("_", " "))


def _array(
    group: Any,
    name: str,
    shape: Any,
    chunks: Any,
    dtype: np.dtype,
    dims: Any,
    attributes: Mapping[str, Any],
    fill: Any = None,
) -> Any:
    settings = {} if fill is None else {"fill_value": fill}
    return group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(side, 1) for side in chunks),
        dtype=dtype,
        dimension_names=dims,
        attributes=dict(attributes),
        **settings,
    )
