"""A sweep on disk: a zarr store that is written box by box, each box once.

Every quantity is an array with the dimensions of the sweep, its chunks are the boxes, and a chunk
is written to a file of another name that is then renamed, that of the status after the others. When
all of a box's chunks are there, its mark is written. A process that dies leaves boxes without a
mark, which are computed again when the sweep is resumed, and nothing else: what has a mark is
complete. Boxes share no file, so that many processes can write at once.

A mark holds a checksum of every chunk of its box, and `progress/files.json` one of every file that
is written once. Opening a store compares them all, and refuses a store that is damaged, by the
names of the files; resuming computes damaged boxes again, and restores the other files.

Theorems are stored as small integers. The array's attributes name the theorem of every integer, so
that a store does not depend on the atlas of the process that reads it.
"""

import glob
import hashlib
import json
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ufm._support import ArgumentError
from ufm.problems import groups_of
from ufm.sweeps.evaluation import blank
from ufm.sweeps.points import Points
from ufm.sweeps.quantities import FILL, NO_THEOREM, QUANTITIES, attributes_of, flags

__all__ = [
    "FORMAT",
    "Boxes",
    "Memory",
    "Store",
    "boxes_of",
    "create",
    "identity_of",
    "opened",
    "restore",
]

FORMAT = 3
MARKS = "progress/done"  # beside the quantities, out of sight of xarray
FILES = "progress/files.json"
IDENTITY = (
    "fingerprint",
    "settings",
    "batch",
    "ufm_version",
    "format",
    "theorems",
)  # attributes that say which sweep a store is of
MOST_NAMED = 6
STORED = {"object": "int8"}  # from types in memory to types in a store, where they differ
# The atlas of the first stores, which name no theorems beside their integers.
FIRST_THEOREMS = (
    "squared-error-orthogonal-frame",
    "squared-error-etf",
    "squared-error-penalised-bias",
    "extended-linear-orthogonal-frame",
    "extended-relu-orthogonal-frame",
    "squared-error-general-orthogonal-frame",
    "squared-error-free-bias",
    "deep-linear-general-orthogonal-frame",
    "deep-linear-free-bias",
    "cross-entropy-etf",
    "cross-entropy-two-groups",
    "cross-entropy-complete-collapse",
    "cross-entropy-nonnegative",
    "label-smoothing-etf",
    "focal-etf",
    "layer-peeled-etf",
    "layer-peeled-two-groups",
)


class Boxes(NamedTuple):
    """How the points are divided: rectangular parts of the grid.

    Attributes:
        shape: Shape of the grid of points.
        sides: Sides of a box.
    """

    shape: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of boxes along each dimension."""
        return tuple(
            -(-length // side) for length, side in zip(self.shape, self.sides, strict=True)
        )

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
    """Return boxes of at most `batch` points, long in the last dimensions.

    If the points are a grid, each box has one structure.
    """
    sides, room = [], max(batch, 1)
    for length, axis in zip(
        reversed(points.shape), reversed(points.axes[: len(points.shape)]), strict=True
    ):
        structural = axis.structural and not points.zipped
        sides.append(1 if structural else min(length, room))
        room = max(room // sides[-1], 1)
    return Boxes(points.shape, tuple(reversed(sides)))


class Memory:
    """The arrays of a sweep that is not kept on disk."""

    def __init__(
        self,
        points: Points,
        boxes: Boxes,
        quantities: tuple[str, ...],
        num_groups: int,
        attributes: Mapping[str, Any],
    ):
        self.points, self.boxes, self.attributes = points, boxes, attributes
        self.arrays = {name: blank(name, points.shape, num_groups) for name in quantities}
        self.done = np.zeros(len(boxes), bool)

    def write(self, box: int, found: Mapping[str, np.ndarray]) -> None:
        """Put the quantities of a box in their places."""
        region = self.boxes.region(box)
        for name in _status_last(self.arrays):
            part = self.arrays[name][region]
            part[...] = found[name].reshape(part.shape)
        self.done[box] = True

    def dataset(self) -> Any:
        """Return the arrays as an xarray Dataset."""
        import xarray as xr

        coordinates = {
            name: (dims, values, attrs)
            for name, dims, values, attrs in coordinates_of(self.points, self.arrays)
        }
        variables = {
            name: ((*self.points.dims, *QUANTITIES[name].dims), array, attributes_of(name))
            for name, array in self.arrays.items()
        }
        return xr.Dataset(variables, coordinates, dict(self.attributes))


class Store:
    """A zarr store of a sweep, for one process of many that may write to it."""

    def __init__(self, path: str | os.PathLike[str], boxes: Boxes):
        import zarr

        self.path, self.boxes = Path(path), boxes
        group: Any = zarr.open_group(str(path), mode="r+")
        self.marks: Any = group[MARKS]
        self.arrays: dict[str, Any] = {name: group[name] for name in _quantities(group)}
        self.theorems = (
            _theorems_of(self.arrays["theorem"].attrs) if "theorem" in self.arrays else ()
        )

    @property
    def done(self) -> np.ndarray:
        """Which boxes are complete and as they were written, (boxes,) booleans."""
        marked, damaged = _checked_boxes(self.path, self.boxes, tuple(self.arrays))
        marked[list(damaged)] = False
        return marked

    def write(self, box: int, found: Mapping[str, np.ndarray]) -> None:
        """Write the quantities of a box, then its mark.

        Raises:
            OSError: If the disk is full, or the store is gone; the box has no mark then, and its
                room is given back.
        """
        if not (self.path / "zarr.json").exists():  # folders would be made anew
            raise FileNotFoundError(f"`store` {self.path} is no longer there.")
        region, shape = self.boxes.region(box), self.boxes.region_shape(box)
        mark = tuple(slice(int(i), int(i) + 1) for i in np.unravel_index(box, self.boxes.counts))
        try:
            self.marks[mark] = 0  # until it is written again, the box counts as missing
            for name in _status_last(found):
                values = self._integers(found[name]) if name == "theorem" else found[name]
                self.arrays[name][region] = values.reshape(*shape, *values.shape[1:])
            checksums = _checksums(self.path, self.boxes, box, tuple(self.arrays))
            self.marks[mark] = checksums.reshape(*(1 for _ in shape), -1)
        except OSError:
            with suppress(OSError):
                for name in reversed(_status_last(found)):
                    self.arrays[name][region] = FILL[
                        _stored_type(name)
                    ]  # a chunk with nothing in it has no file
            raise

    def _integers(self, names: np.ndarray) -> np.ndarray:
        """Return the integers that stand for names of theorems in this store."""
        integers = {name: integer for integer, name in enumerate(self.theorems, start=-1)}
        unknown = sorted(set(names.flat) - set(integers))
        if unknown:
            raise ArgumentError(
                "store", f"{self.path} has no theorem {', '.join(map(str, unknown))}"
            )
        return np.array([integers[name] for name in names.flat], STORED["object"]).reshape(
            names.shape
        )

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
        FileExistsError: If there is something already.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(
        f".{glob.escape(target.name)}.{'[0-9a-f]' * 32}.unfinished"
    ):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with _empty_store(target, points, boxes, quantities, num_groups, attributes) as unfinished:
        if target.exists():
            raise FileExistsError(
                f"`store` {target} exists already; resume it with resume=True, or choose another "
                "path."
            )
        unfinished.rename(target)


def restore(
    path: Path,
    points: Points,
    boxes: Boxes,
    quantities: tuple[str, ...],
    num_groups: int,
    attributes: Mapping[str, Any],
) -> None:
    """Write the files that are written once anew, where one of them is not as it was."""
    if not _damaged_files(path):
        return
    with _empty_store(path, points, boxes, quantities, num_groups, attributes) as unfinished:
        for name in [*json.loads((unfinished / FILES).read_text())["files"], FILES]:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).replace(path / name)


@contextmanager
def _empty_store(
    target: Path,
    points: Points,
    boxes: Boxes,
    quantities: tuple[str, ...],
    num_groups: int,
    attributes: Mapping[str, Any],
) -> Iterator[Path]:
    """Yield the folder of a store with nothing computed yet, beside the target.

    It is removed if it is still there at the end.
    """
    import zarr

    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.unfinished")
    try:
        group = zarr.open_group(str(unfinished), mode="w-", attributes=dict(attributes))
        blanks = {name: blank(name, (1,), num_groups) for name in quantities}
        _add_coordinates(group, coordinates_of(points, blanks))
        for name in quantities:
            extra = blanks[name].shape[1:]
            table = flags(dict(enumerate((NO_THEOREM, *attributes["theorems"].split()), start=-1)))
            _array(
                group,
                name,
                (*boxes.shape, *extra),
                (*boxes.sides, *extra),
                np.dtype(_stored_type(name)),
                (*points.dims, *QUANTITIES[name].dims),
                attributes_of(name) | (table if name == "theorem" else {}),
                FILL[_stored_type(name)],
            )
        folder, name = MARKS.split("/")
        shape = *boxes.counts, len(quantities)
        chunks = *(1 for _ in boxes.counts), len(quantities)
        kind = np.dtype("uint64")
        marks = group.require_group(folder)
        _array(marks, name, shape, chunks, kind, None, {}, 0, compressors=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the specification, which does not have it yet
            zarr.consolidate_metadata(str(unfinished))
        files = sorted(
            file.relative_to(unfinished).as_posix()
            for file in unfinished.rglob("*")
            if file.is_file()
        )
        stated: dict[str, Any] = {
            "identity": {name: attributes[name] for name in IDENTITY},
            "files": {name: _checksum((unfinished / name).read_bytes()) for name in files},
        }
        stated["checksum"] = _checksum(json.dumps(stated).encode())
        (unfinished / FILES).write_text(json.dumps(stated))
        yield unfinished
    finally:
        _removed(unfinished)


def _add_coordinates(group: Any, coordinates: Iterable[tuple[str, Any, np.ndarray, Any]]) -> None:
    """Add coordinates to a group: name, dimensions, values and attributes of each."""
    # xarray's convention: a coordinate not named like its dimension would be read as data.
    apart = [name for name, dims, _, _ in coordinates if dims != (name,)]
    group.attrs["coordinates"] = " ".join(apart)
    for name, dims, values, attrs in coordinates:
        if values.dtype.kind == "U":
            # zarr has no settled form of text: store numbers, with the labels beside them.
            attrs = {**attrs, "labels": json.dumps(values.tolist())}
            values = np.arange(len(values))
        _array(group, name, values.shape, values.shape, values.dtype, dims, attrs)[...] = values


def identity_of(path: Path) -> dict[str, Any]:
    """Return the attributes of a store that say which sweep it is of.

    They are in two places, of which one that is sound is read.

    Raises:
        ValueError: If there is no sweep.
    """
    try:
        return dict(_stated_files(path)["identity"])
    except ValueError:
        return _attributes_of(path)


def _attributes_of(path: Path) -> dict[str, Any]:
    metadata = path / "zarr.json"
    if not metadata.is_file():
        raise ArgumentError("store", f"{path} is not a sweep: there is no zarr store of that name")
    try:
        attributes = json.loads(metadata.read_text())["attributes"]
        known = "fingerprint" in attributes
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ArgumentError("store", f"{path} is not a sweep: it was not written by ufm.sweep")
    return dict(attributes)


def _stated_files(path: Path) -> dict[str, Any]:
    """Return the names and checksums of the files that are written once.

    Raises:
        ValueError: If that is not as it was written.
    """
    try:
        stated = json.loads((path / FILES).read_text())
        checksum = stated.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{FILES} is missing or cannot be read") from None
    if checksum != _checksum(json.dumps(stated).encode()):
        raise ValueError(f"{FILES} has changed")
    return dict(stated)


def _damaged_files(path: Path) -> list[str]:
    """Return the damage of the files that are written once, by name."""
    try:
        stated = _stated_files(path)["files"]
    except ValueError as error:
        return [str(error)]
    found = {name: _bytes(path / name) for name in stated}
    return [
        f"{name} {'is missing' if content is None else 'has changed'}"
        for name, content in found.items()
        if content is None or _checksum(content) != stated[name]
    ]


def _checked_boxes(
    path: Path, boxes: Boxes, quantities: tuple[str, ...]
) -> tuple[np.ndarray, dict[int, list[str]]]:
    """Return which boxes have a mark, (boxes,), and for each damaged one what is wrong."""
    marked, damaged = np.zeros(len(boxes), bool), {}
    for box in range(len(boxes)):
        place = "/".join(map(str, np.unravel_index(box, boxes.counts)))
        mark = path / MARKS / "c" / place / "0"
        content = _bytes(mark)
        if content is None:
            continue
        marked[box] = True
        name_of_mark = mark.relative_to(path).as_posix()
        if len(content) != 8 * len(quantities):
            damaged[box] = [f"{name_of_mark} has changed"]
            continue
        found, stated = _checksums(path, boxes, box, quantities), np.frombuffer(content, "<u8")
        wrong = [name for name, a, b in zip(quantities, found, stated, strict=True) if a != b]
        if wrong and _bytes(mark) == content:  # and not just being written anew
            chunks = [_chunk(name, boxes, box) for name in wrong]
            damaged[box] = [
                f"{chunk} has changed, or its checksum in {name_of_mark}"
                if (path / chunk).exists()
                else f"{chunk} is missing"
                for chunk in chunks
            ]
    return marked, damaged


def _checksums(path: Path, boxes: Boxes, box: int, quantities: tuple[str, ...]) -> np.ndarray:
    """Return the checksums of a box's chunks, (quantities,).

    A chunk with nothing in it has no file, and a checksum too.
    """
    chunks = [_chunk(name, boxes, box) for name in quantities]
    digests = [_checksum(name.encode() + b"=" + (_bytes(path / name) or b"")) for name in chunks]
    return np.array([int(digest, 16) or 1 for digest in digests], "<u8")


def _quantities(group: Any) -> tuple[str, ...]:
    """Return the quantities of a store, in the order of their checksums."""
    return tuple(sorted(name for name, _ in group.arrays() if name in QUANTITIES))


def _stored_type(name: str) -> str:
    """Return the type of a quantity in a store."""
    return STORED.get(QUANTITIES[name].dtype, QUANTITIES[name].dtype)


def _theorems_of(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that the integers -1, 0, 1, ... stand for, by an array's attributes."""
    if "flag_meanings" in attributes:
        return tuple(attributes["flag_meanings"].split())
    return NO_THEOREM, *FIRST_THEOREMS


def _chunk(name: str, boxes: Boxes, box: int) -> str:
    """Return the file of a quantity's chunk."""
    place = [*map(int, np.unravel_index(box, boxes.counts)), *(0 for _ in QUANTITIES[name].dims)]
    return "/".join([name, "c", *map(str, place)])


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _removed(folder: Path) -> None:
    """Remove a folder, also one that threads of zarr are still writing to after one failed."""
    gone = 0
    for _ in range(100):
        gone = gone + 1 if not folder.exists() else 0
        if gone > 2:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)


def opened(path: str | os.PathLike[str]) -> Any:
    """Return the Dataset of a store, complete or not.

    Points without results have the status `Status.NOT_COMPUTED` and are not certified.

    Of a box that was being written when its process was killed, some quantities may be there.

    Raises:
        ValueError: If there is no sweep, or it is damaged.
    """
    import xarray as xr
    import zarr

    path = Path(path)
    identity = identity_of(path)
    checked = identity.get("format") != 1  # stores of the first format have no checksums
    if checked:
        _refuse_damage(path, _damaged_files(path))
    dataset = xr.open_zarr(str(path), chunks=None, consolidated=True)
    # Without coordinates of their own, by which they would be aligned with the labels.
    variables: dict[str, Any] = {
        name: dataset.variables[name] for name in QUANTITIES if name in dataset
    }
    if checked:
        group: Any = zarr.open_group(str(path), mode="r")
        boxes = Boxes(group["status"].shape, group["status"].chunks)
        marked, damaged = _checked_boxes(path, boxes, _quantities(group))
        _refuse_damage(path, [name for names in damaged.values() for name in names])
        for name in {"status", "certified"} & set(variables):
            values = np.array(variables[name].values)
            for box in np.flatnonzero(~marked):
                values[boxes.region(int(box))] = FILL[QUANTITIES[name].dtype]
            variables[name] = variables[name].dims, values, variables[name].attrs
    if "theorem" in variables:
        stored = variables["theorem"]
        names = np.array(_theorems_of(stored.attrs), object)[np.asarray(stored.values) + 1]
        variables["theorem"] = stored.dims, names, attributes_of("theorem")
    coordinates: dict[str, Any] = {
        str(name): array.variable for name, array in dataset.coords.items()
    }
    for name, array in dataset.coords.items():
        attrs = dict(array.attrs)
        if "labels" in attrs:
            coordinates[str(name)] = array.dims, np.array(json.loads(attrs.pop("labels"))), attrs
    return xr.Dataset(variables, coordinates, dataset.attrs)


def _refuse_damage(path: Path, names: list[str]) -> None:
    if names:
        more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise ArgumentError(
            "store",
            f"{path} is damaged: {', '.join(names[:MOST_NAMED])}{more}; the same sweep with "
            "resume=True mends it",
        )


def coordinates_of(
    points: Points, arrays: Mapping[str, np.ndarray]
) -> list[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]]:
    """Return the coordinates of a sweep: name, dimensions, values and attributes."""
    found: list[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]] = []
    for axis in points.axes:
        dims = points.dims if points.zipped else (axis.name,)
        found.append((axis.name, dims, axis.coordinate, {"long_name": axis.variable.meaning}))
        if axis.name == "class_counts":
            found.append(
                (
                    "class_count",
                    (*dims, "class"),
                    np.asarray(axis.values),
                    {"long_name": "samples of every class"},
                )
            )
    counts, sizes = groups_of(points.problem)
    stated = {"stated_counts": counts.tolist(), "stated_sizes": sizes.tolist()}
    for name in ("group", "other_group"):
        lengths = [
            array.shape[
                array.ndim - len(QUANTITIES[quantity].dims) + QUANTITIES[quantity].dims.index(name)
            ]
            for quantity, array in arrays.items()
            if name in QUANTITIES[quantity].dims
        ]
        if lengths:
            found.append(
                (
                    name,
                    (name,),
                    np.arange(lengths[0]),
                    {"long_name": "group of interchangeable classes", **stated},
                )
            )
    return found


def _status_last(names: Iterable[str]) -> list[str]:
    """Return names of quantities with the status at the end: where it is, the others are."""
    return sorted(names, key=lambda name: name == "status")


def _array(
    group: Any,
    name: str,
    shape: Any,
    chunks: Any,
    dtype: np.dtype,
    dims: Any,
    attributes: Mapping[str, Any],
    fill: Any = None,
    **settings: Any,
) -> Any:
    settings |= {} if fill is None else {"fill_value": fill}
    return group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(side, 1) for side in chunks),
        dtype=dtype,
        dimension_names=dims,
        attributes=dict(attributes),
        **settings,
    )
