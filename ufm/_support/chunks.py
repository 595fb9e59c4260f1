"""Long arrays in chunks."""

from collections.abc import Iterator

__all__ = ["chunks"]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Yield the slices of a sequence in chunks of `size` entries; the last one may be shorter."""
    size = max(size, 1)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
