"""Targets in words: files and constructors by name, and one line for what they cannot say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.problems import recipe_of, targets_from_file, targets_of

TAGS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])


def same(found: ufm.Targets, wanted: ufm.Targets) -> bool:
    fields = ("rows", "counts", "feature_weights")
    pairs = [(getattr(found, name), getattr(wanted, name)) for name in fields]
    return all(np.array_equal(one, other) for one, other in pairs)


def test_files_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tags.npz"
    np.savez(path, rows=TAGS)
    assert same(targets_from_file(path), ufm.Targets(TAGS))
    np.savez(path, rows=TAGS, counts=[3, 2.5, 1], feature_weights=[1, 1, 2])
    wanted = ufm.Targets(TAGS, [3, 2.5, 1], [1, 1, 2])
    assert same(targets_of(str(path)), wanted)
    assert same(targets_of("tags.npz", tmp_path), wanted)
    assert same(targets_of(wanted), wanted)


@for_each(
    ("text", "targets"),
    [
        ("1,0,0\n0,1,0\n1,1,0\n", ufm.Targets(TAGS)),
        ("cat,dog,emu\n1,0,0\n0,1,0\n\n1,1,0", ufm.Targets(TAGS)),
        ("cat,count,dog,emu\n1,3,0,0\n0,2.5,1,0\n1,1,1,0", ufm.Targets(TAGS, [3, 2.5, 1])),
        (
            '\ufeffFeature_Weight, "a", b ,c,counts\n1,1,0,0,3\n1,0,1,0,2.5\n2,1,1,0,1',
            ufm.Targets(TAGS, [3, 2.5, 1], [1, 1, 2]),
        ),
        ("y\n-1.5e-1\n2\n", ufm.Targets([[-0.15], [2.0]])),
    ],
)
def test_files_of_lines(text: str, targets: ufm.Targets, tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(text, encoding="utf-8")
    assert same(targets_from_file(path), targets)


@for_each(
    ("text", "message"),
    [
        ("1,0\n0,x\n", "cannot be read: could not convert string 'x'.* row 1, column 2"),
        ("1,0\n0,1,1\n", "cannot be read: the number of columns changed from 2 to 3"),
        ("a,b\n1,\n", "cannot be read: could not convert string ''"),
        ("a,b,c\n1,0\n", "`rows` have 2 columns, and the first line names 3"),
        ("a,count,counts\n1,0,1\n", "`counts` are named by two columns"),
        ("a,b\n", "`rows` are missing"),
        ("", "`rows` are missing"),
        ("1,nan\n0,1\n", "`rows` must be finite"),
        ("a,count\n1,0\n", "`counts` must be positive and finite, got 0.0"),
        ("count\n1\n", "`rows` must be a matrix"),
    ],
)
def test_lines_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ufm.ArgumentError, match=rf"`targets` .*tags\.csv: {message}"):
        targets_from_file(path)


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tags.npz"
    for arrays, message in (
        (
            {"rows": TAGS, "count": [1, 1, 1]},
            r"`count` is no array of targets.*did you mean counts",
        ),
        ({"counts": [1, 1, 1]}, "`rows` is missing"),
        ({"rows": np.array([{}, {}])}, "cannot be read: Object arrays cannot be loaded"),
        ({"rows": TAGS, "counts": [1, 1]}, r"`counts` must be one number per row, \(3,\)"),
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(ufm.ArgumentError, match=message):
            targets_from_file(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ufm.ArgumentError, match=r"tags\.npz: cannot be read"):
        targets_from_file(path)
    with pytest.raises(ufm.ArgumentError, match="there is no such file"):
        targets_from_file(tmp_path / "none.npz")
    with pytest.raises(ufm.ArgumentError, match=r"the ending must be \.npz or \.csv"):
        targets_from_file(tmp_path / "tags.txt")


SOFT = 1 / (2 + np.exp(3.0))
CASES: dict[str, tuple[dict[str, Any], ufm.Targets]] = {
    "one-hot:class_counts=2x3,1": ({"class_counts": [3, 3, 1]}, ufm.Targets.one_hot([3, 3, 1])),
    "multi-label:num_labels=3,samples=30,0,2": (
        {"num_labels": 3, "samples": [30, 0, 2]},
        ufm.Targets.multi_label(3, {1: 30, 3: 2}),
    ),
    "mixup:num_classes=3,lam=0.7,0.6,mixed=2,1": (
        {"num_classes": 3, "lam": [0.7, 0.6], "mixed": [2, 1]},
        ufm.Targets.mixup(3, 1, {0.7: 2, 0.6: 1}),
    ),
    "mixup:num_classes=3,count=0,lam=0.7,mixed=2": (
        {"num_classes": 3, "count": 0, "lam": 0.7, "mixed": 2},
        ufm.Targets.mixup(3, 0, {0.7: 2}),
    ),
    "hierarchy:num_super=2,num_sub=3,own=0.8,sibling=0.05": (
        {"num_super": 2, "num_sub": 3, "own": 0.8, "sibling": 0.05},
        ufm.Targets.hierarchy(2, 3, 0.8, 0.05),
    ),
    "noisy:noise=0.1, class_counts=2x5": (
        {"noise": 0.1, "class_counts": "2x5"},
        ufm.Targets.noisy(0.1, [5, 5]),
    ),
    "regression:responses=1,2.5": ({"responses": [1, 2.5]}, ufm.Targets.regression([1, 2.5])),
}


def test_constructors_by_name() -> None:
    for text, (numbers, wanted) in CASES.items():
        assert same(targets_of(text), wanted), text
        assert same(targets_of({"name": text.partition(":")[0], **numbers}), wanted), text
    rows = [[2, 1], [0, 4]]
    assert same(targets_of({"name": "contexts", "rows": rows}), ufm.Targets.contexts(rows))


def test_a_teacher_softens_with_its_temperature() -> None:
    rows = targets_of("teacher:num_classes=3,margin=6,temperature=2,counts=4").rows
    np.testing.assert_allclose(rows, SOFT + (1 - 3 * SOFT) * np.eye(3), rtol=1e-14)
    given = {"name": "teacher", "logits": [[6, 0, 0], [0, 6, 0], [0, 0, 6]], "temperature": 2}
    assert same(targets_of(given | {"counts": [4, 4, 4]}), targets_of(
        "teacher:num_classes=3,margin=6,temperature=2,counts=4"))  # fmt: skip
    np.testing.assert_array_equal(
        targets_of("teacher:num_classes=2,margin=6,temperature=1e-300").rows, np.eye(2)
    )


def test_a_larger_support_contains_a_smaller_one() -> None:
    make = recipe_of("random-contexts:num_tokens=7,num_contexts=5,seed=3,support=1")
    inside = [np.asarray(make(support=size).rows) > 0 for size in (2, 4, 7)]
    assert [np.unique(one.sum(axis=1)).tolist() for one in inside] == [[2], [4], [7]]
    assert np.all(inside[0] <= inside[1])
    targets = make()
    assert sorted(set(np.ravel(targets.rows))) == [0, 1]
    np.testing.assert_array_equal(targets.feature_weights, np.ones(5))
    assert not same(targets, recipe_of("random-contexts:num_tokens=7,num_contexts=5,support=1")())


@for_each(
    ("words", "message"),
    [
        ("noise", "must be a file such as .*the constructors are one-hot, .*did you mean noisy"),
        ("noisy:noise", "cannot read 'noise' in 'noisy:noise'"),
        ("noisy:noise=0.1", "noisy needs class_counts"),
        ("noisy:noise=0.1,counts=3", "noisy takes no 'counts'; it takes noise, class_counts"),
        ("noisy:noise=much,class_counts=2x5", "noisy must have a number, or a list .* as noise"),
        ("noisy:noise=nan,class_counts=2x5", "noisy must have a number, or a list .* as noise"),
        ("noisy:noise=0.1,class_counts=many", "noisy: `counts` must look like 5x500"),
        ("noisy:noise=2,class_counts=2x5", "noisy: `noise` must be one rate or a matrix"),
        ("hierarchy:num_super=2,num_sub=2,own=1,2,sibling=0", "hierarchy cannot be made of these"),
        ("mixup:num_classes=3,lam=1,mixed=2", "mixup: `mixed` must be a finite number .* below 1"),
        ("mixup:num_classes=3,lam=0.1,0.2,mixed=2,3,4", "mixup: `mixed` must be one number, or 2"),
        (
            "teacher:num_classes=3,margin=1,temperature=0",
            "teacher: `temperature` must be a positive",
        ),
        ("teacher:num_classes=3,temperature=1", "teacher: `margin` or `logits` must be given"),
        (
            "random-contexts:num_tokens=3,num_contexts=2,support=4",
            "random-contexts: `support` must be",
        ),
        ({"noise": 0.1}, "must be a file such as"),
        ({"name": "noisy", "noise": True, "class_counts": [5, 5]}, "as noise, got True"),
    ],
)
def test_words_that_are_refused(words: Any, message: str) -> None:
    with pytest.raises(ufm.ArgumentError, match=f"^`targets` .*{message}"):
        targets_of(words)
