"""The parts of a data loader's batch: inputs, labels, and sample weights on request.

Loaders differ. Batches are tuples (inputs, labels), perhaps with further entries such as the
indices of the samples. Or they are mappings by name, as in libraries for language models. There may
be one label for each sample, (N,), or one for each position of a sequence, (B, T), where some
positions do not count. `Entries` says which entries to read. All others are ignored.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ufm._support import ArgumentError, checked_whole
from ufm.metrics import host_array

__all__ = ["Entries", "Entry", "prefix_contexts", "rows_of_targets", "rows_that_count"]

Entry = int | str | Callable[[Any], Any]


class Entries(NamedTuple):
    """Where a batch has its parts: an index of a tuple, a key of a mapping, or a function.

    Attributes:
        inputs: What the network is called with, or the features. By default entry 0 of a tuple; of
            a mapping, the mapping without labels and weights. A sequence of keys stands for a
            mapping of these.
        labels: By default entry 1 of a tuple, "labels" of a mapping.
        sample_weights: None where samples count alike.
        name: The argument that error messages name.
        contexts: Where the contexts of positions are; None where they are not asked for.
    """

    inputs: Entry | Sequence[str] | None = None
    labels: Entry | None = None
    sample_weights: Entry | None = None
    name: str = "loader"
    contexts: Entry | None = None

    def read(self, batch: Any) -> tuple[Any, Any, Any]:
        """Return inputs, labels and sample weights (or None) of a batch.

        Raises:
            ValueError: The batch is neither a tuple nor a mapping, or does not hold what is to be
                read.
        """
        by_name = isinstance(batch, Mapping)
        if not by_name and not isinstance(batch, tuple | list):
            raise ArgumentError(
                self.name,
                "must hold tuples (inputs, labels) or mappings of them, got "
                f"{type(batch).__name__}",
            )
        labels = ("labels" if by_name else 1) if self.labels is None else self.labels
        inputs = self.inputs
        if inputs is None:
            read = (labels, self.sample_weights, self.contexts)
            inputs = [key for key in batch if key not in read] if by_name else 0
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            given: Any = {key: self._entry(batch, key) for key in inputs}
        else:
            given = self._entry(batch, inputs)
        a = None if self.sample_weights is None else self._entry(batch, self.sample_weights)
        return given, self._entry(batch, labels), a

    def read_with_contexts(self, batch: Any) -> tuple[Any, Any, Any, Any]:
        """Return inputs, labels, sample weights (or None) and contexts (or None) of a batch."""
        given = self.read(batch)
        return *given, None if self.contexts is None else self._entry(batch, self.contexts)

    def _entry(self, batch: Any, entry: Entry) -> Any:
        """Return one entry of a batch."""
        if callable(entry):
            return entry(batch)
        try:
            return batch[entry]
        except (LookupError, TypeError):
            held = f"the keys {[*batch]}" if isinstance(batch, Mapping) else f"{len(batch)} entries"
            raise ArgumentError(
                self.name,
                f"must hold batches with the entry {entry!r}, got one with {held}; say where "
                "to find things with `inputs`, `labels` and `sample_weights`",
            ) from None


def rows_that_count(
    features: Mapping[str, Any],
    labels: Any,
    sample_weights: Any,
    ignore_index: int | None,
    flat: bool = False,
) -> tuple[dict[str, Any], Any, Any]:
    """Return features in rows, labels and weights, without the samples to be ignored.

    Where labels are those of positions, (B, T), features (B, T, d) are taken apart into rows, and
    so are labels and weights.

    Args:
        features: By layer, (n, d) or (B, T, d).
        labels: (n,) or (B, T).
        sample_weights: As labels, or None.
        ignore_index: The label of what does not count, or None.
        flat: Whether features are in rows already, where labels may be those of positions.
    """
    shape = np.shape(labels)

    def of_positions(X: Any) -> bool:
        return len(shape) > 1 and np.ndim(X) == len(shape) + 1 and np.shape(X)[:-1] == shape

    positions = (flat and len(shape) > 1) or any(map(of_positions, features.values()))
    rows = {
        name: X.reshape(-1, X.shape[-1]) if positions and of_positions(X) else X
        for name, X in ((name, _array("features", X)) for name, X in features.items())
    }
    if positions:
        labels = _array("labels", labels).reshape(-1)
        if sample_weights is not None:
            sample_weights = _array("sample_weights", sample_weights).reshape(-1)
    if ignore_index is None:
        return rows, labels, sample_weights
    y = host_array("labels", labels)
    kept = y != ignore_index
    if kept.all():
        return rows, labels, sample_weights
    for name, X in rows.items():
        if np.shape(X)[:1] != kept.shape:
            layer = f" (layer {name!r})" if name else ""
            column = shape == (len(X), 1)
            raise ArgumentError(
                "labels",
                f"must be of shape ({len(X)},), one for each row of `features`{layer}, or of "
                f"each position, got shape {shape}"
                f"{'; drop the second axis with `labels.squeeze(1)`' if column else ''}",
            )
    found = {name: host_array("features", X)[kept] for name, X in rows.items()}
    return (
        found,
        y[kept],
        None if sample_weights is None else host_array("sample_weights", sample_weights)[kept],
    )


def rows_of_targets(
    features: Mapping[str, Any], targets: Any, sample_weights: Any
) -> tuple[dict[str, Any], Any, Any]:
    """Return features, real or multi-hot targets, and weights in rows.

    Where targets are those of positions, (B, T, n), everything is taken apart into rows.

    Args:
        features: By layer, (N, d), or (B, T, d).
        targets: (N, n), (N,) or (B, T, n).
        sample_weights: (N,) or (B, T), or None.
    """
    shape = np.shape(targets)[:-1]
    if len(shape) < 2:
        return dict(features), targets, sample_weights
    rows = {
        name: X.reshape(-1, X.shape[-1]) if np.shape(X)[:-1] == shape else X
        for name, X in ((name, _array("features", X)) for name, X in features.items())
    }
    y = _array("targets", targets)
    if sample_weights is not None:
        sample_weights = _array("sample_weights", sample_weights).reshape(-1)
    return rows, y.reshape(-1, y.shape[-1]), sample_weights


def prefix_contexts(tokens: Any, length: int | None = None) -> np.ndarray:
    """Return a number for the context that each position of some sequences ends.

    Positions whose tokens up to and with their own are the same have the same number, in any batch
    and run: it is a hash of 63 bits, by which ten million contexts have two that share a number
    with a probability of 5e-6.

    Args:
        tokens: Token ids, integers (B, T).
        length: How many tokens a context has at most, its own included; None for all from the
            beginning of the sequence.

    Returns:
        Numbers, (B, T).

    Raises:
        ValueError: The tokens are no integers, or of another shape; the length is not whole.

    >>> found = prefix_contexts([[1, 2, 3], [1, 2, 4], [0, 2, 3]])
    >>> (found[0] == found[1]).tolist(), (found[0] == found[2]).tolist()
    ([True, True, False], [False, False, False])
    """
    ids = host_array("tokens", tokens)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ArgumentError(
            "tokens", f"must be integers (B, T), got dtype {ids.dtype} and shape {ids.shape}"
        )
    T = ids.shape[1]
    length = T if length is None else checked_whole("length", length)
    found = np.zeros(ids.shape, np.int64)
    for row, out in zip(np.ascontiguousarray(ids, np.int64), found, strict=True):
        whole = hashlib.blake2b(digest_size=8)
        for t in range(T):
            if t < length:
                whole.update(row[t].tobytes())
                digest = whole.digest()
            else:
                kept = row[t + 1 - length : t + 1].tobytes()
                digest = hashlib.blake2b(kept, digest_size=8).digest()
            out[t] = int.from_bytes(digest, "little") >> 1
    return found


def _array(name: str, value: Any) -> Any:
    """Return something that has a shape."""
    return value if hasattr(value, "reshape") else host_array(name, value)
