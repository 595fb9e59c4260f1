r"""Symmetries of target rows: permutations of labels that only exchange rows.

A permutation of the labels is a symmetry of targets if the rows that it leads to, with their counts
and the weights of their features, are the same rows in another order. Symmetries are looked for in
products of groups, one for each of some disjoint classes of labels:

    all permutations of n labels;
    all permutations of the labels within blocks of equal size, and of the blocks (hierarchies);
    rotations of n labels in their order (circulant targets).

Candidates come from hashes: colours of labels and rows are refined by what they occur with, and
permutations of a few labels are tried. A candidate is then proved. Every group has a canonical form
of a row, equal for two rows exactly if the group leads from one to the other. Rows of one form are
a whole orbit if there are as many as the orbit has, which is a product of multinomials, or a
period. No tolerance enters: numbers are equal or not.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from ufm._support import ArgumentError
from ufm.problems.targets import Targets

__all__ = ["LabelClass", "RowOrbits", "find_orbits", "orbits_of", "orbits_under", "random_moves"]

LARGEST = 2 * 10**7  # numbers in the rows that are searched
FEWER = 2  # times fewer orbits than rows that are worth a reduction
ROUNDS = 8  # of refinement
TRIALS = 20  # exchanges of two labels that are tried, for each label
SEED = 0x5EED

_Words = np.ndarray  # uint64


class LabelClass(NamedTuple):
    """Labels and a group of their permutations.

    Attributes:
        labels: (n,), the labels in the order that the group refers to.
        blocks: Into how many blocks of equal size the order is cut. The group has all permutations
            within blocks, and all of the blocks. One block has all permutations of the labels.
        cyclic: Whether the group has the rotations of the order instead.
    """

    labels: Int[np.ndarray, " n"]
    blocks: int = 1
    cyclic: bool = False


class RowOrbits(NamedTuple):
    """Target rows in orbits of a group of label permutations.

    Row r is the representative of its orbit with its labels moved: label `moves[r, c]` of the row
    takes the part of label c of the representative.

    Attributes:
        classes: The classes of labels; they hold every label once.
        representatives: (T, K), one row of each orbit.
        sizes: (T,), rows of each orbit.
        first: (T,), a row of each orbit, by its index in the targets.
        orbit_of: (R,), the orbit of each row; (0,) where rows are not listed (`orbits_of`).
        moves: (R, K).
    """

    classes: tuple[LabelClass, ...]
    representatives: Float[np.ndarray, "T K"]
    sizes: Real[np.ndarray, " T"]
    first: Int[np.ndarray, " T"]
    orbit_of: Int[np.ndarray, " R"]
    moves: Int[np.ndarray, "R K"]

    @property
    def num_orbits(self) -> int:
        """T."""
        return len(self.sizes)

    def expanded(self, rows: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "R K"]:
        """Return one row per target row from one per representative, labels moved."""
        whole = np.empty(self.moves.shape)
        np.put_along_axis(whole, self.moves, np.asarray(rows)[self.orbit_of], axis=1)
        return whole


def find_orbits(
    targets: Targets, marks: Float[np.ndarray, "K m"] | None = None
) -> RowOrbits | None:
    """Return the orbits of the rows under the symmetries that were found.

    Args:
        targets: Concrete targets without equal rows (`Targets.merged`).
        marks: (K, m), numbers of the labels that a symmetry has to leave alone, too.

    Returns:
        The orbits; None where no symmetry was found that leaves half of the rows or fewer.
    """
    table = _Table.of(targets)
    if table.rows.size > LARGEST:
        return None
    labels, rows = table.colours(marks)
    if FEWER * np.unique(rows).size > len(rows) or np.unique(labels).size == len(labels):
        return None
    alike = [np.flatnonzero(labels == colour) for colour in np.unique(labels)]
    whole = tuple(LabelClass(members) for members in alike)
    found = _proved(table, whole)
    if found is not None:
        return found
    parts = tuple(part for members in alike for part in table.split(members))
    return _proved(table, parts) if len(parts) < len(labels) else None


def orbits_under(targets: Targets, classes: Sequence[LabelClass]) -> RowOrbits:
    """Return the orbits of the rows under a stated group. Labels that it leaves out stay in place.

    Args:
        targets: Concrete targets without equal rows (`Targets.merged`).
        classes: Disjoint classes of labels.

    Raises:
        ArgumentError: If the classes overlap, a label is none, or the group does not leave the
            targets alone.
    """
    whole = _all_labels(classes, targets.num_outputs)
    found = _proved(_Table.of(targets), whole, fewer=1)
    if found is None:
        raise ArgumentError(
            "classes",
            "must leave the targets alone: a permutation leads to a row that they do not have, or "
            "have with another count or feature weight",
            remedy="leave it out, and symmetries are looked for",
        )
    return found


def orbits_of(
    representatives: Float[np.ndarray, "T K"], classes: Sequence[LabelClass]
) -> RowOrbits:
    """Return the orbits of some rows under a stated group, whose other rows are not listed.

    Args:
        representatives: One row of each orbit.
        classes: Disjoint classes of labels, as for `orbits_under`.

    Raises:
        ArgumentError: If the classes are no group, or two rows are of one orbit.
    """
    T, K = representatives.shape
    whole, forms = _all_labels(classes, K), np.empty((T, K))
    rows = np.asarray(representatives, np.float64) + 0.0
    for one in whole:
        forms[:, one.labels] = _canonical(one, rows[:, one.labels], np.random.default_rng(SEED))[0]
    if len(np.unique(forms, axis=0)) < T:
        raise ArgumentError("representatives", "must be one row of each orbit, and two are of one")
    sizes = [math.prod(_orbit_size(one, form[one.labels]) for one in whole) for form in forms]
    nothing = np.zeros(0, np.int64)
    sizes_of = np.array(sizes, np.float64)
    return RowOrbits(whole, forms, sizes_of, np.arange(T), nothing, nothing.reshape(0, K))


def _all_labels(classes: Sequence[LabelClass], K: int) -> tuple[LabelClass, ...]:
    """Return classes of all labels: those that are left out are alone.

    Raises:
        ArgumentError: If the classes overlap, a label is none, or blocks are of different sizes.
    """
    stated = [one._replace(labels=np.asarray(one.labels, np.int64)) for one in classes]
    used = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in stated)])
    if used.size and not (used.min() >= 0 and used.max() < K and np.unique(used).size == used.size):
        raise ArgumentError("classes", f"must hold labels from 0 to {K - 1}, none twice", used)
    for one in stated:
        if one.blocks < 1 or one.labels.size % one.blocks:
            raise ArgumentError("classes", "must be cut into blocks of equal size", one.blocks)
    alone = [LabelClass(np.array([c])) for c in np.setdiff1d(np.arange(K), used)]
    return (*stated, *alone)


def random_moves(
    classes: Sequence[LabelClass], number: int, random: np.random.Generator
) -> Int[np.ndarray, "number K"]:
    """Return random permutations of the group: label c takes part in the place of `moves[:, c]`."""
    K = sum(one.labels.size for one in classes)
    moves = np.empty((number, K), np.int64)
    for one in classes:
        n, a = one.labels.size, one.blocks
        if one.cyclic:
            order = (random.integers(n, size=(number, 1)) + np.arange(n)) % n
        else:
            inner = np.argsort(random.random((number, a, n // a)), axis=2)
            outer = np.argsort(random.random((number, a)), axis=1)
            order = ((n // a) * outer[:, :, None] + inner).reshape(number, n)
        moves[:, one.labels] = one.labels[order]
    return moves


def _proved(
    table: "_Table", classes: tuple[LabelClass, ...], fewer: int = FEWER
) -> RowOrbits | None:
    """Return the orbits of a group; None where it is no symmetry, or leaves too many orbits."""
    rows, R = table.rows, len(table.rows)
    canonical, moves = np.empty_like(rows), np.empty(rows.shape, np.int64)
    random = np.random.default_rng(SEED)
    for one in classes:
        form, order = _canonical(one, rows[:, one.labels], random)
        canonical[:, one.labels], moves[:, one.labels] = form, one.labels[order]
    keys = np.column_stack([canonical, table.weights])
    _, first, orbit_of, sizes = np.unique(
        _as_bytes(keys), return_index=True, return_inverse=True, return_counts=True
    )
    if fewer * len(first) > R:
        return None
    for index, size in zip(first, sizes, strict=True):
        if math.prod(_orbit_size(one, canonical[index, one.labels]) for one in classes) != size:
            return None
    return RowOrbits(classes, canonical[first], sizes, first, np.ravel(orbit_of), moves)


# Canonical forms


def _canonical(
    one: LabelClass, values: Float[np.ndarray, "R n"], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return canonical forms, and the order of the values that leads to them.

    Where several orders do, one is drawn: a loss that is symmetric has the same value at all.
    """
    R, n = values.shape
    if one.cyclic:
        names = _rotation_names(values)
        chances = np.where(names == names.min(axis=1, keepdims=True), random.random((R, n)), 0)
        order = (np.argmax(chances, axis=1)[:, None] + np.arange(n)) % n
        return np.take_along_axis(values, order, axis=1), order
    cut = values.reshape(R, one.blocks, -1)
    inner = _sorted_order(cut, random)
    form = np.take_along_axis(cut, inner, axis=2)
    order = inner + (n // one.blocks) * np.arange(one.blocks)[None, :, None]
    if one.blocks > 1:
        outer = _sorted_order(_names(form), random)[:, :, None]
        form, order = (np.take_along_axis(part, outer, axis=1) for part in (form, order))
    return form.reshape(R, n), order.reshape(R, n)


def _sorted_order(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the order that sorts along the last axis; equal values come in a random order."""
    shuffled = random.permutation(values.shape[-1])
    return shuffled[np.argsort(values[..., shuffled], axis=-1, kind="stable")]


def _rotation_names(values: Float[np.ndarray, "R n"]) -> Int[np.ndarray, "R n"]:
    """Return a number for the rotation that starts at each place, equal for equal rotations."""
    n, length = values.shape[1], 1
    names = np.unique(values, return_inverse=True)[1].reshape(values.shape)
    while length < n:
        pairs = names * (names.max() + 1) + np.roll(names, -length, axis=1)
        names = np.unique(pairs, return_inverse=True)[1].reshape(values.shape)
        length *= 2
    return names


def _names(parts: Float[np.ndarray, "... b"]) -> Int[np.ndarray, "..."]:
    """Return a number for each vector along the last axis, equal for equal vectors."""
    flat = _as_bytes(parts.reshape(-1, parts.shape[-1]))
    return np.unique(flat, return_inverse=True)[1].reshape(parts.shape[:-1])


def _orbit_size(one: LabelClass, form: Float[np.ndarray, " n"]) -> int:
    """Return in how many rows a group can turn a row of canonical form."""
    if one.cyclic:
        return int(np.unique(_rotation_names(form[None, :])).size)
    cut = form.reshape(one.blocks, -1)
    within = math.prod(_arrangements(np.unique(block, return_counts=True)[1]) for block in cut)
    return within * _arrangements(np.unique(_names(cut), return_counts=True)[1])


def _arrangements(times: Int[np.ndarray, " j"]) -> int:
    """Return the multinomial coefficient of some multiplicities."""
    total, left = 1, int(np.sum(times))
    for number in times:
        total *= math.comb(left, int(number))
        left -= int(number)
    return total


# Candidates, by hashes


class _Table(NamedTuple):
    """Rows to search.

    Attributes:
        rows: (R, K), with no negative zeros.
        weights: (R, 2), counts and feature weights; NaN where none are stated.
        bits: (R, K), the rows as words.
        marks: (R,), a word for the weights of each row.
        keys: (K,), a word for each label.
        hashes: (R,), a word for each row with its labels in place.
    """

    rows: np.ndarray
    weights: np.ndarray
    bits: _Words
    marks: _Words
    keys: _Words
    hashes: _Words

    @classmethod
    def of(cls, targets: Targets) -> "_Table":
        rows = np.ascontiguousarray(np.asarray(targets.rows, np.float64) + 0.0)
        counts = np.asarray(targets.counts, np.float64)
        stated = targets.feature_weights
        second = np.zeros_like(counts) if stated is None else np.asarray(stated, np.float64)
        weights = np.ascontiguousarray(np.column_stack([counts, second]))
        words = weights.view(np.uint64)
        bits, marks = rows.view(np.uint64), _mixed(words[:, 0] ^ _mixed(words[:, 1]))
        keys = _mixed(np.arange(1, rows.shape[1] + 1))
        return cls(rows, weights, bits, marks, keys, _mixed(bits ^ keys[None, :]).sum(axis=1))

    def colours(self, marks: np.ndarray | None) -> tuple[_Words, _Words]:
        """Return colours of labels and of rows; symmetries lead to labels of the same colour."""
        labels, rows, number = np.zeros(self.rows.shape[1], np.uint64), self.marks, 1
        for column in () if marks is None else np.asarray(marks, np.float64).T + 0.0:
            labels = _mixed(labels ^ np.ascontiguousarray(column).view(np.uint64))
        for _ in range(ROUNDS):
            rows = _mixed(rows + _mixed(self.bits ^ _mixed(labels)[None, :]).sum(axis=1))
            labels = _mixed(labels + _mixed(self.bits ^ _mixed(rows)[:, None]).sum(axis=0))
            before, number = number, np.unique(labels).size
            if number in (before, len(labels)):
                break
        return labels, rows

    def split(self, members: Int[np.ndarray, " n"]) -> tuple[LabelClass, ...]:
        """Return classes that labels of one colour may be split into."""
        alone = tuple(LabelClass(np.array([label])) for label in members)
        if not any(self._exchanges(members[0], label) for label in members[1:]):
            # Where labels of one colour are led to one another, none can be exchanged then.
            rotates = members.size > 1 and self._keeps(members, np.roll(members, 1))
            return (LabelClass(members, cyclic=True),) if rotates else alone
        parts = self._exchangeable(members)
        sizes = {len(part) for part in parts}
        if len(parts) == 1 or len(sizes) > 1:
            return tuple(LabelClass(part) for part in parts)
        blocks = np.stack(parts)
        swapped = blocks[[1, 0]]
        is_nested = self._keeps(blocks[:2].ravel(), swapped.ravel()) and self._keeps(
            blocks.ravel(), np.roll(blocks, 1, axis=0).ravel()
        )
        if is_nested:
            return (LabelClass(blocks.ravel(), blocks=len(blocks)),)
        return tuple(LabelClass(part) for part in parts)

    def _exchangeable(self, members: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Return classes of labels of which any two can be exchanged: that is an equivalence."""
        parts: list[list[int]] = []
        trials = TRIALS * members.size
        for label in members:
            for part in reversed(parts):
                trials -= 1
                if trials < 0:
                    return [np.array([c]) for c in members]
                if self._exchanges(part[0], label):
                    part.append(int(label))
                    break
            else:
                parts.append([int(label)])
        return [np.array(part) for part in parts]

    def _exchanges(self, one: int | np.integer, other: int | np.integer) -> bool:
        """Return whether, by hashes, exchanging two labels only exchanges rows."""
        return self._keeps(np.array([one, other]), np.array([other, one]))

    def _keeps(self, labels: Int[np.ndarray, " m"], images: Int[np.ndarray, " m"]) -> bool:
        """Return whether, by hashes, moving labels to their images only exchanges rows."""
        bits = self.bits[:, labels]
        rest = self.hashes - _mixed(bits ^ self.keys[labels]).sum(axis=1)
        moved = rest + _mixed(bits ^ self.keys[images]).sum(axis=1)
        before = _mixed(self.hashes ^ self.marks).sum()
        return bool(before == _mixed(moved ^ self.marks).sum())


def _mixed(words: Any) -> _Words:
    """Return words whose bits all depend on all bits (splitmix64, Steele, Lea, Flood 2014)."""
    z = np.asarray(words, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Return rows of numbers as one item each: bytes compare faster than numbers do."""
    rows = np.ascontiguousarray(rows)
    return rows.view([("", np.void, rows.strides[0])])[:, 0]
