"""`sweep`: solve a problem over ranges of its numbers, on one machine or many, into a Dataset."""

import importlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ufm._support import (
    ArgumentError,
    __version__,
    accelerators,
    check_one_of,
    checked_positive,
    checked_whole,
    on_host,
)
from ufm.problems import Problem, groups_of
from ufm.sweeps.cluster import run_on_cluster
from ufm.sweeps.evaluation import Settings, evaluate, resolution_for
from ufm.sweeps.interrupts import interrupted, patience
from ufm.sweeps.points import Points, points_of
from ufm.sweeps.progress import Progress, shown
from ufm.sweeps.quantities import checked_quantities
from ufm.sweeps.store import (
    FORMAT,
    Boxes,
    Memory,
    Store,
    boxes_of,
    create,
    identity_of,
    opened,
    restore,
)
from ufm.theory import theorems

__all__ = ["open_sweep", "sweep"]

BATCHES = {"groups": 16_384, "classes": 2048, "one by one": 64}


@on_host
def sweep(
    problem: Problem,
    over: Mapping[str, Any],
    *,
    how: Literal["grid", "zip"] = "grid",
    quantities: Sequence[str] | None = None,
    resolution: Literal["auto", "groups", "classes"] = "auto",
    tol: float = 1e-9,
    key: int = 0,
    restarts: int | None = None,
    max_steps: int | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Any = None,
    batch: int | None = None,
    progress: bool | Callable[[int, int], None] | None = None,
) -> Any:
    """Solve a problem at every point of a grid or a list, each certified, and return a Dataset.

    Args:
        problem: The problem. What is not varied stays as it is here.
        over: Values by name: numbers ("weight_decay", "imbalance_ratio", "num_minority",
            "minority_count", "majority_count", "class_counts", "regularizer.weights",
            "regularizer.features", "regularizer.bias", "loss.<parameter>"), structure
            ("num_classes", "feature_dim", "depth", "loss", "use_bias", "activation",
            "nonnegative_features", "targets") and "seed". `ufm sweep --list` says what each is.
            Targets are a sequence of `ufm.Targets`, or a dictionary from numbers or texts, which
            become the coordinate; an axis of them may be named "targets.<what varies>".
        how: "grid" for every combination; "zip" for the first values of all together, then the
            second, and so on.
        quantities: Names of quantities to keep, of `ufm.sweeps.QUANTITIES`. Objective, bound, gap
            and status are always kept.
        resolution: "groups", "classes", or "auto" for the faster one.
        tol: Relative gap to certify to; relative gradient to reach if a model has no bound.
        key: Integer seed of the initial points, if "seed" is not varied.
        restarts: Number of initial points where a problem is not convex, as in `ufm.solve`.
        max_steps: Most steps of every point, as in `ufm.solve`. The status says if they ran out.
        store: Folder of a zarr store, written as the sweep goes. Without it all is kept in memory.
        resume: Whether to continue a store: compute what is missing or damaged.
        client: A `dask.distributed.Client`. Its workers solve one batch at a time each, and write
            into the store, which they must be able to reach. Workers may come and go.
        batch: Points solved and written together. If not given, 16384 over groups, 2048 over
            classes, 64 one by one, or as before in a store that is resumed.
        progress: Whether to show a bar (if not given, in a terminal only); or a function called
            with the number of points done and the number in all.

    Returns:
        An xarray Dataset with one dimension per name (one, "point", for how="zip"), read from the
        store if there is one. `attrs` say what was solved, how, and with which versions.

    Raises:
        ImportError: If the extra `sweep` is not installed. Nothing is solved.
        ValueError: If arguments do not fit, or the store is of another sweep. Nothing is solved.
        FileExistsError: If the store exists, without `resume`.
        SweepInterrupted: On Ctrl-C (once: the batches in work are finished and kept; twice: at
            once), on a full disk, or at the end if the workers of a batch were killed again and
            again. Its `dataset` is what there is.
    """
    _check(resolution, tol, key, restarts, max_steps, batch)
    _check_installed("xarray", *(("zarr",) if store is not None else ()))
    points = points_of(problem, over, how)
    chosen, num_groups, usual = _planned(points, quantities, resolution)
    limits = [None if limit is None else int(limit) for limit in (restarts, max_steps)]
    settings = Settings(float(tol), resolution, limits[0], limits[1], chosen, num_groups, int(key))
    boxes = boxes_of(points, usual if batch is None else batch)
    if resume and batch is None and store is not None and Path(store).exists():
        boxes = Boxes(boxes.shape, _sides(Path(store), boxes))
    attributes = _attributes(points, settings, boxes)
    keeper: Memory | Store
    if store is None:
        if resume:
            raise ArgumentError("resume", "needs a `store` to go on with")
        keeper = Memory(points, boxes, chosen, num_groups, attributes)
    else:
        keeper = _keeper(Path(store), points, boxes, settings, attributes, resume)

    # Hard points first: the last batches are then short.
    left = sorted(
        np.flatnonzero(~keeper.done).tolist(), key=lambda box: -_difficulty(points, boxes, box)
    )
    sizes = [boxes.size(box) for box in range(len(boxes))]
    total = points.size
    with shown(progress, total, total - sum(sizes[box] for box in left)) as bar:
        try:
            if client is None:
                _here(points, settings, boxes, keeper, left, bar)
            else:
                run_on_cluster(client, points, settings, boxes, keeper, left, bar)
        except (KeyboardInterrupt, OSError) as stop:
            if isinstance(keeper, Store) and not keeper.path.exists():
                raise
            raise interrupted(stop, keeper, sizes, store) from stop
    return keeper.dataset()


def _planned(
    points: Points, quantities: Sequence[str] | None, resolution: str
) -> tuple[tuple[str, ...], int, int]:
    """Return the quantities to keep, the number of groups, and the usual size of a batch."""
    structures = points.structures()
    groups = [
        points.problem.num_classes if _has(points, "class_counts") else len(groups_of(one)[0])
        for one in structures
    ]
    kinds = list(map(resolution_for, structures, groups, [resolution] * len(groups)))
    biased = any(one.use_bias for one in structures)
    one_hot = all(one.one_hot for one in structures)
    chosen = checked_quantities(quantities, max(groups), biased, one_hot)
    return chosen, max(groups), max(accelerators(), 1) * min(BATCHES[kind] for kind in kinds)


@on_host
def open_sweep(store: str | os.PathLike[str]) -> Any:
    """Return the Dataset of a store, complete or not; missing points are `Status.NOT_COMPUTED`.

    Every file is compared with its checksum.

    Raises:
        ValueError: If there is no sweep, or where files of it are missing or have changed, with
            their names.
    """
    return opened(store)


def _here(
    points: Points,
    settings: Settings,
    boxes: Boxes,
    keeper: Memory | Store,
    left: list[int],
    bar: Progress,
) -> None:
    with patience() as stopping:
        for box in left:
            if stopping.is_set():
                break
            found = evaluate(points, boxes.flat(box), settings)
            keeper.write(box, found)
            bar.advance(boxes.size(box))
    if stopping.is_set():
        raise KeyboardInterrupt


def _keeper(
    path: Path,
    points: Points,
    boxes: Boxes,
    settings: Settings,
    attributes: dict[str, Any],
    resume: bool,
) -> Store:
    if not path.exists():
        create(path, points, boxes, settings.quantities, settings.num_groups, attributes)
        return Store(path, boxes)
    if not resume:
        raise FileExistsError(
            f"`store` {path} exists already; go on with it by resume=True, or choose another path."
        )
    found = identity_of(path)
    elsewhere = "choose another path"
    for name, what, remedy in (
        ("fingerprint", "another problem or other values of `over`", elsewhere),
        ("settings", "other settings", elsewhere),
        ("batch", "another division into batches", "leave `batch` out to go on with it"),
        ("ufm_version", "another version of ufm", elsewhere),
        ("format", "another format", elsewhere),
        ("theorems", "another atlas of theorems", elsewhere),
    ):
        if found.get(name) != attributes[name]:
            raise ArgumentError(
                "store",
                f"{path} is of another sweep: it has {what} "
                f"({_difference(name, found, attributes)}); {remedy}",
            )
    restore(path, points, boxes, settings.quantities, settings.num_groups, attributes)
    for partial in path.rglob("*.partial"):  # of a process that was killed while it wrote
        partial.unlink(missing_ok=True)
    return Store(path, boxes)


def _difference(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the differences between two sweeps, as far as their attributes tell."""
    if name == "theorems":
        return (
            " ".join(sorted(set(found[name].split()) ^ set(wanted[name].split())))
            or "in another order"
        )
    told = (
        next((key for key in ("title", "problem") if found.get(key) != wanted[key]), None)
        if name == "fingerprint"
        else name
    )
    return "the values differ" if told is None else f"{found.get(told)}, now {wanted[told]}"


def _attributes(points: Points, settings: Settings, boxes: Boxes) -> dict[str, Any]:
    kept = {name: value for name, value in settings._asdict().items() if name != "threads"}
    return {
        "title": f"sweep over {', '.join(axis.name for axis in points.axes)}",
        "problem": _stated(points.problem),
        "settings": json.dumps(kept),
        "batch": "x".join(map(str, boxes.sides)),
        "fingerprint": points.fingerprint(),
        "format": FORMAT,
        "ufm_version": __version__,
        "theorems": " ".join(theorem.name for theorem in theorems.predictive),
        "jax_version": jax.__version__,
        "numpy_version": np.__version__,
        "seed": "varied" if _has(points, "seed") else settings.key,
        "precision": "float64",
        "platform": f"{platform.system()} {platform.machine()}, JAX on {jax.default_backend()}",
    }


def _stated(problem: Problem) -> str:
    """Return the problem in words and numbers, as JSON."""
    counts, sizes = groups_of(problem)
    numbers = {
        jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf).tolist()
        for path, leaf in jax.tree_util.tree_leaves_with_path((problem.loss, problem.regularizer))
    }
    return json.dumps(
        {
            **_rows_in_words(problem),
            "counts": counts.tolist(),
            "sizes": sizes.tolist(),
            "feature_dim": problem.feature_dim,
            "hidden_dims": problem.hidden_dims,
            "activation": problem.activation,
            "loss": problem.loss.title,
            "regularizer": type(problem.regularizer).__name__,
            "use_bias": problem.use_bias,
            "nonnegative_features": problem.nonnegative_features,
            "numbers": numbers,
        }
    )


def _rows_in_words(problem: Problem) -> dict[str, Any]:
    """Return the size of targets; nothing for classes. The fingerprint has their numbers."""
    if problem.targets is None:
        return {}
    rows, outputs = problem.num_rows, problem.num_classes
    return {"targets": {"rows": rows, "outputs": outputs}}


def _difficulty(points: Points, boxes: Boxes, box: int) -> float:
    """Return how hard a box's points are, by the first of them."""
    columns = points.columns(boxes.flat(box)[:1])
    return sum(
        axis.variable.hardness * float(np.log(columns[axis.name][0]))
        for axis in points.axes
        if axis.variable.hardness
    )


def _has(points: Points, name: str) -> bool:
    return any(axis.name == name for axis in points.axes)


def _sides(path: Path, boxes: Boxes) -> tuple[int, ...]:
    """Return the sides of a store's boxes, where it has as many dimensions."""
    found = str(identity_of(path).get("batch", "")).split("x")
    fits = len(found) == len(boxes.sides) and all(
        side.isdigit() and int(side) > 0 for side in found
    )
    return tuple(int(side) for side in found) if fits else boxes.sides


def _check_installed(*modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"`ufm.sweep` needs {module}, of the extra `sweep`: pip install 'ufm[sweep]'."
            ) from error


def _check(resolution: Any, tol: Any, key: Any, restarts: Any, max_steps: Any, batch: Any) -> None:
    checked_whole("key", key, 0)
    check_one_of("resolution", resolution, ("auto", "groups", "classes"))
    checked_positive("tol", tol)
    for name, value in (("restarts", restarts), ("max_steps", max_steps), ("batch", batch)):
        if value is not None:
            checked_whole(name, value)
