"""Long arrays in chunks."""

from collections.abc import Iterator

__all__ = ["chunks"]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Yield the slices of a sequence in chunks of `size` entries; the last one may be shorter."""
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + size, length))
