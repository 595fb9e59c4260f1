"""The store of a sweep: what is in it, how it is read, and when it can be gone on with."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardships import BATCH, BOXES, OVER, PROBLEM, QUANTITIES, made_up, marks, sweep
from tables import for_each, slow_but

import ufm
from ufm._support import Status
from ufm.sweeps import run as running
from ufm.sweeps.evaluation import blank
from ufm.sweeps.points import points_of
from ufm.sweeps.store import Boxes, boxes_of
from ufm.theory.atlas import Atlas

xr = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")


def cut_short(store: Path, after: int, **options: Any) -> None:
    """A sweep that ends after some boxes."""

    def stop(done: int, total: int) -> None:
        if done >= after * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(ufm.SweepInterrupted):
        sweep(store=store, progress=stop, **options)


@for_each(
    ("shape", "batch"), [((7,), 3), ((5, 4), 1), ((5, 4), 6), ((3, 5, 4), 8), ((3, 5, 4), 1000)]
)
def test_boxes_cover_every_point_once(shape: tuple[int, ...], batch: int) -> None:
    names = ("weight_decay", "imbalance_ratio", "majority_count")
    points = points_of(
        PROBLEM, {name: np.arange(1.0, n + 1) for name, n in zip(names, shape, strict=False)}
    )
    boxes = boxes_of(points, batch)
    parts = [boxes.flat(box) for box in range(len(boxes))]
    assert sorted(np.concatenate(parts).tolist()) == list(range(points.size))
    assert all(0 < len(part) <= batch for part in parts)
    grid = np.arange(points.size).reshape(shape)
    for box, part in enumerate(parts):
        assert np.array_equal(grid[boxes.region(box)].ravel(), part)
        assert boxes.region_shape(box) == grid[boxes.region(box)].shape


def test_boxes_of_ragged_grids() -> None:
    boxes = Boxes((5, 7), (2, 3))
    assert boxes.counts == (3, 3)
    assert [boxes.region_shape(box) for box in (0, 2, 6, 8)] == [(2, 3), (2, 1), (1, 3), (1, 1)]


def test_every_structure_has_boxes_of_its_own(boxes: list[int], tmp_path: Path) -> None:
    over = {
        "loss": [ufm.CrossEntropy(), ufm.SquaredError()],
        "weight_decay": [1e-3, 2e-3, 3e-3],
        "num_classes": [4, 8],
    }
    found = ufm.sweep(PROBLEM, over, store=tmp_path / "store")
    assert boxes == [3] * 4
    assert found.attrs["batch"] == "1x3x1"
    assert found.loss.values.tolist() == ["CrossEntropy", "SquaredError"]


AXES: dict[str, Any] = {
    "grid": ({"weight_decay": [1e-4, 1e-3, 1e-2], "imbalance_ratio": [1.0, 5.0]}, {}),
    "zip": (
        {"weight_decay": [1e-4, 1e-3, 1e-2], "imbalance_ratio": [1.0, 5.0, 9.0]},
        {"how": "zip"},
    ),
    "zipped text": (
        {"loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.1)], "weight_decay": [1e-3, 1e-2]},
        {"how": "zip"},
    ),
    "text": (
        {"loss": [ufm.CrossEntropy(), ufm.LabelSmoothing(0.1)], "weight_decay": [1e-3, 1e-2]},
        {},
    ),
    "flags": ({"use_bias": [False, True], "seed": [3, 1, 2]}, {}),
    "counts": ({"class_counts": [[5, 5, 5, 5], [9, 1, 2, 3]]}, {}),
    "parameter": ({"loss.alpha": [0.1, 0.2, 0.3]}, {}),
}


@for_each("axes", slow_but(AXES, keep={0, 3}))
def test_what_is_read_from_the_store_is_what_memory_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, axes: str
) -> None:
    def by_place(points: Any, flat: Any, settings: Any) -> Any:
        numbers = np.random.default_rng(int(flat[0]))
        blanks = {
            name: blank(name, flat.shape, settings.num_groups) for name in settings.quantities
        }
        found = {name: numbers.integers(0, 2, array.shape) for name, array in blanks.items()}
        names = np.array(["none", ufm.theorems.predictive[-1].name], object)
        return {
            name: names[values] if name == "theorem" else values.astype(blanks[name].dtype)
            for name, values in found.items()
        }

    monkeypatch.setattr(running, "evaluate", by_place)
    over, options = AXES[axes]
    problem = PROBLEM
    if axes == "parameter":
        problem = ufm.Problem(
            class_counts=PROBLEM.class_counts,
            feature_dim=4,
            loss=ufm.LabelSmoothing(0.1),
            regularizer=PROBLEM.regularizer,
        )
    store = tmp_path / axes
    kept = ufm.sweep(problem, over, batch=2, store=store, **options)
    memory = ufm.sweep(problem, over, batch=2, **options)
    assert kept.identical(memory)
    assert list(kept.data_vars) == list(memory.data_vars)
    assert ufm.open_sweep(str(store)).identical(memory)
    assert {name: array.dtype for name, array in kept.variables.items()} == {
        name: array.dtype for name, array in memory.variables.items()
    }


@pytest.mark.slow
def test_xarray_opens_a_store_without_help(boxes: list[int], tmp_path: Path) -> None:
    found = sweep(store=tmp_path / "store")
    for options in ({}, {"chunks": None}, {"consolidated": False}):
        plain = xr.open_zarr(tmp_path / "store", **options)
        assert set(plain.data_vars) == set(found.data_vars)
        assert plain.load().equals(found)
        assert plain.attrs == found.attrs


@pytest.mark.slow
def test_chunks_are_the_boxes(boxes: list[int], tmp_path: Path) -> None:
    sweep(store=tmp_path / "store")
    group = zarr.open_group(tmp_path / "store", mode="r")
    assert group.metadata.zarr_format == 3
    assert group["objective"].chunks == (1, 40)
    assert group["weight_cosine"].chunks == (1, 40, 2, 2)
    assert group["progress/done"].chunks == (
        1,
        1,
        len(list(group.arrays())) - len(OVER) - 2,
    )  # a checksum per quantity
    assert len(marks(tmp_path / "store")) == BOXES


def test_points_that_are_missing_say_so(boxes: list[int], tmp_path: Path) -> None:
    cut_short(tmp_path / "store", 7)
    whole, part = sweep(), ufm.open_sweep(tmp_path / "store").load()
    done = part.status == 1
    assert int(done.sum()) == 7 * BATCH
    assert np.all(part.status.where(~done, -1) == -1)
    assert part.where(done).equals(whole.where(done))
    rest = part.where(~done, drop=True)
    assert all(rest[name].isnull().all() for name in ("objective", "relative_gap", *QUANTITIES))
    assert not part.certified.values[~done.values].any()


def test_going_on_computes_what_is_missing_and_nothing_else(
    boxes: list[int], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    cut_short(store, 7)
    assert len(boxes) == 7
    seen: list[tuple[int, int]] = []
    assert sweep(store=store, resume=True, progress=lambda *at: seen.append(at)).identical(sweep())
    assert len(boxes) == 2 * BOXES
    assert seen[0] == (8 * BATCH, 1600)
    assert seen[-1] == (1600, 1600)
    written = marks(store)
    boxes.clear()
    assert sweep(store=store, resume=True).identical(ufm.open_sweep(store))
    assert boxes == []
    assert marks(store) == written


@pytest.mark.slow
def test_resume_begins_where_there_is_nothing(boxes: list[int], tmp_path: Path) -> None:
    assert sweep(store=tmp_path / "new" / "store", resume=True).identical(sweep())


def test_a_store_that_is_there_is_not_written_over(boxes: list[int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    sweep(store=tmp_path / "store")
    boxes.clear()
    for name in ("file", "folder", "store"):
        with pytest.raises(
            FileExistsError, match=f"{name} exists already; go on with it by resume=True"
        ):
            sweep(store=tmp_path / name)
    assert boxes == []
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_sweep_is_refused(boxes: list[int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "zarr.json").write_text("{")
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="float64")
    zarr.open_group(tmp_path / "group", mode="w", attributes={"title": "something else"})
    for name in ("file", "folder", "spoilt", "array", "group"):
        with pytest.raises(ValueError, match=f"{name} is not a sweep"):
            ufm.open_sweep(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not a sweep"):
            sweep(store=tmp_path / name, resume=True)
    with pytest.raises(ValueError, match="nowhere is not a sweep"):
        ufm.open_sweep(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`resume` needs a `store`"):
        sweep(resume=True)
    assert boxes == []


OTHER = ufm.Problem(
    class_counts=PROBLEM.class_counts,
    feature_dim=5,
    loss=PROBLEM.loss,
    regularizer=PROBLEM.regularizer,
)
CLOSE = {**OVER, "weight_decay": np.nextafter(OVER["weight_decay"], 1)}


@pytest.fixture
def begun(boxes: list[int], tmp_path: Path) -> Path:
    """A store with the first of its boxes."""
    cut_short(tmp_path / "store", 1)
    return tmp_path / "store"


@for_each(
    ("problem", "over", "options", "message"),
    [
        (OTHER, OVER, {}, "another problem or other values"),
        (PROBLEM, CLOSE, {}, "another problem or other values"),
        (PROBLEM, dict(reversed(OVER.items())), {}, "another problem or other values"),
        (PROBLEM, OVER, {"how": "zip"}, "another problem or other values"),
        (PROBLEM, OVER, {"tol": 1e-8}, "other settings"),
        (PROBLEM, OVER, {"resolution": "classes"}, "other settings"),
        (PROBLEM, OVER, {"max_steps": 100}, "other settings"),
        (PROBLEM, OVER, {"restarts": 2}, "other settings"),
        (PROBLEM, OVER, {"quantities": ["margin"]}, "other settings"),
        (PROBLEM, OVER, {"batch": 80}, "another division into batches"),
    ],
)
def test_the_store_of_another_sweep_is_refused(
    boxes: list[int], begun: Path, problem: Any, over: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"store is of another sweep: it has {message}"):
        ufm.sweep(
            problem,
            over,
            store=begun,
            resume=True,
            **({"batch": BATCH, "quantities": QUANTITIES} | options),
        )
    assert len(boxes) == len(marks(begun)) == 1


def test_the_store_of_another_version_is_refused(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(tmp_path / "store", 1)
    monkeypatch.setattr(running, "__version__", "99.0")
    with pytest.raises(ValueError, match="another version of ufm"):
        sweep(store=tmp_path / "store", resume=True)


THEOREMS = (*QUANTITIES, "theorem")
PREDICTIVE = [theorem.name for theorem in ufm.theorems.predictive]


def rewritten(store: Path, name: str, values: Any, attributes: dict[str, Any]) -> None:
    """Rewrite an array and its attributes in a store of the first format, without checksums."""
    group = zarr.open_group(store, mode="r+")
    group.attrs["format"] = 1
    del group[name].attrs["flag_values"], group[name].attrs["flag_meanings"]
    group[name].attrs.update(attributes)
    group[name][...] = values
    shutil.rmtree(store / "progress")
    zarr.consolidate_metadata(store)


def larger_atlas() -> Atlas:
    """The atlas with one more theorem in the middle."""
    members = list(ufm.theorems)
    added = dataclasses.replace(members[5], name="a-theorem-of-later")
    return Atlas((*members[:5], added, *members[5:]))


@pytest.mark.slow
def test_a_store_keeps_its_names_of_theorems_whatever_the_atlas_is(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, larger = tmp_path / "store", larger_atlas()
    before = sweep(store=store, quantities=THEOREMS).load()
    assert set(np.unique(before.theorem)) <= set(ufm.theorems.names)
    monkeypatch.setattr(running, "theorems", larger)
    assert ufm.open_sweep(store).identical(before)
    without = [theorem for theorem in ufm.theorems if theorem.name not in before.theorem.values]
    smaller = Atlas(tuple(without))
    monkeypatch.setattr(running, "theorems", smaller)
    assert ufm.open_sweep(store).identical(before)
    plain = zarr.open_group(store, mode="r")["theorem"]
    assert plain.attrs["flag_meanings"].split() == ["none", *PREDICTIVE]
    monkeypatch.setattr(running, "theorems", larger)
    assert sweep(store=tmp_path / "later", quantities=THEOREMS).theorem.equals(before.theorem)


def test_a_sweep_is_not_resumed_under_another_atlas(
    boxes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    cut_short(store, 7, quantities=THEOREMS)
    before, larger = ufm.open_sweep(store).load(), larger_atlas()
    for members, difference in (
        (larger, "a-theorem-of-later"),
        (reversed(list(ufm.theorems)), "in another order"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(running, "theorems", Atlas(tuple(members)))
            with pytest.raises(
                ValueError, match=rf"it has another atlas of theorems \({difference}\)"
            ):
                sweep(store=store, resume=True, quantities=THEOREMS)
    assert ufm.open_sweep(store).identical(before)
    whole = sweep(store=store, resume=True, quantities=THEOREMS)
    assert whole.identical(sweep(quantities=THEOREMS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        pytest.param(
            {},
            ["none", "squared-error-orthogonal-frame", "layer-peeled-two-groups"],
            marks=pytest.mark.slow,
        ),
        ({"flag_meanings": "none once " + "more " * 16}, ["none", "once", "more"]),
    ],
    ids=["without a table", "with a table"],
)
def test_stores_of_the_first_format_have_names_of_theorems(
    boxes: list[int], tmp_path: Path, attributes: dict[str, Any], names: list[str]
) -> None:
    store = tmp_path / "store"
    sweep(store=store, quantities=THEOREMS)
    rewritten(store, "theorem", np.resize([-1, 0, 16], (40, 40)), attributes)
    found = ufm.open_sweep(store)
    assert np.array_equal(found.theorem.values, np.resize(np.array(names, object), (40, 40)))
    with pytest.raises(ValueError, match="another format"):
        sweep(store=store, resume=True, quantities=THEOREMS)


@pytest.mark.slow
def test_numbers_of_any_kind_are_the_same_settings(boxes: list[int], tmp_path: Path) -> None:
    options: dict[str, Any] = {"tol": 0.5, "max_steps": 9, "restarts": 2}
    cut_short(tmp_path / "store", 1, **options)
    options = {
        "tol": np.float32(0.5),
        "max_steps": np.int64(9),
        "restarts": np.int32(2),
        "batch": np.int64(BATCH),
    }
    assert sweep(store=tmp_path / "store", resume=True, **options).identical(sweep(**options))
    assert json.loads(ufm.open_sweep(tmp_path / "store").attrs["settings"])["tol"] == 0.5


def test_what_a_killed_writer_left_is_cleared(boxes: list[int], tmp_path: Path) -> None:
    store = tmp_path / "store"
    cut_short(store, 3)
    left = store / "objective" / "c" / "0" / f"0.{'a' * 32}.partial"
    left.write_bytes(b"half")
    sweep(store=store, resume=True)
    assert not left.exists()


@pytest.mark.slow
def test_rows_that_fail_are_kept_with_their_status(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight_decay"):
        ufm.sweep(PROBLEM, {"weight_decay": [1e-3, np.nan]}, store=tmp_path / "refused")
    assert list(tmp_path.iterdir()) == []
    over: dict[str, Any] = {"weight_decay": [1e-6, 1e-3, 10.0], "imbalance_ratio": [1.0, 1e3, 1e6]}
    full = ufm.sweep(PROBLEM, over, store=tmp_path / "full", batch=3)
    assert np.all(full.status == Status.CONVERGED)
    assert np.all(np.isfinite(full.objective))
    short = ufm.sweep(PROBLEM, over, store=tmp_path / "short", batch=3, max_steps=3)
    assert set(np.unique(short.status)) <= {
        Status.CONVERGED,
        Status.MAX_STEPS,
        Status.NOT_CERTIFIED,
        Status.STALLED,
    }
    assert np.any(short.status == Status.MAX_STEPS)
    assert np.all(np.isfinite(short.objective))
    assert np.all(short.objective >= full.objective * (1 - 1e-9))
    assert np.array_equal(short.certified, short.status == Status.CONVERGED)


@pytest.mark.slow
def test_degenerate_counts_are_solved(tmp_path: Path) -> None:
    degenerate = {"class_counts": [[1e6, 1, 1, 1], [5, 5, 5, 5], [1, 1, 1, 1e-8], [1e-8] * 4]}
    counts = ufm.sweep(PROBLEM, degenerate, store=tmp_path / "counts", batch=2)
    assert counts.sizes["class_counts"] == 4
    assert np.all((counts.status == Status.CONVERGED) == counts.certified)
    assert np.all(counts.status > 0)
    assert np.all(np.isfinite(counts.objective))


@pytest.mark.nightly
@pytest.mark.parametrize("where", ["store", "memory"])
def test_a_million_points_in_two_gigabytes(tmp_path: Path, where: str) -> None:
    code = """
import resource, sys
import numpy as np
import ufm

problem = ufm.Problem(
    class_counts=ufm.ClassGroups.step(10, 100, imbalance_ratio=10),
    feature_dim=10,
    loss=ufm.CrossEntropy(),
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-5),
)
over = {
    "weight_decay": np.geomspace(1e-5, 1e-1, 1000),
    "imbalance_ratio": np.geomspace(1, 1000, 1000),
}
found = ufm.sweep(problem, over, store=sys.argv[1] if len(sys.argv) > 1 else None)
print(int(np.sum(found.certified)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    arguments = [str(tmp_path / "store")] if where == "store" else []
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    certified, kilobytes = map(int, done.stdout.split())
    assert certified == 1_000_000
    assert kilobytes < 2 * 2**20


# Damage


def spoilt(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


KINDS_OF_FILES = [
    "zarr.json",
    "objective/zarr.json",
    "objective/c/7/0",
    "status/c/7/0",
    "certified/c/7/0",
    "weight_cosine/c/7/0/0/0",
    "weight_decay/c/0",
    "progress/done/c/7/0/0",
    "progress/done/zarr.json",
    "progress/files.json",
]
QUICK = [
    ("objective/c/7/0", "deleted"),
    ("status/c/7/0", "cut short"),
    ("zarr.json", "changed by a bit"),
]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running, "evaluate", made_up)
        store = tmp_path_factory.mktemp("complete") / "store"
        sweep(store=store)
    return store


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=() if (name, how) in QUICK else pytest.mark.slow)
        for name in KINDS_OF_FILES
        for how in ("deleted", "cut short", "changed by a bit")
    ],
)
def test_damage_is_named_and_mended(
    boxes: list[int], complete: Path, tmp_path: Path, name: str, how: str
) -> None:
    store, whole = tmp_path / "store", sweep()
    shutil.copytree(complete, store)
    boxes.clear()
    assert ufm.open_sweep(store).identical(whole)
    spoilt(store / name, how)
    if name.startswith("progress/done/c") and how == "deleted":  # as if it had never been marked
        found = ufm.open_sweep(store)
        assert np.array_equal(
            found.status.values == -1, np.arange(40)[:, None] == 7 * np.ones((1, 40))
        )
        assert not np.any(found.certified.values[7])
    else:
        with pytest.raises(ValueError, match=f"store is damaged: .*{name}.*resume=True mends it"):
            ufm.open_sweep(store)
    assert sweep(store=store, resume=True).identical(whole)
    assert boxes == ([] if "json" in name or name.startswith("weight_decay") else [BATCH])
    assert ufm.open_sweep(store).load().identical(whole)


def test_a_store_of_another_sweep_is_refused_though_it_is_damaged(
    boxes: list[int], complete: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(complete, store)
    for name in ("zarr.json", "progress/files.json"):
        spoilt(store / name, "cut short")
        with pytest.raises(ValueError, match=r"is of another sweep|is not a sweep"):
            sweep(store=store, resume=True, tol=1e-5)
