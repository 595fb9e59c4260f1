"""Interrupted sweeps: by Ctrl-C, a full disk or a lost cluster."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ufm.sweeps.store import Memory, Store

__all__ = ["SweepInterrupted", "interrupted", "patience"]


class SweepInterrupted(KeyboardInterrupt):
    """A sweep that ended early: on Ctrl-C, on a full disk, or because workers kept dying.

    A store can be resumed.

    Attributes:
        dataset: What was computed.
    """

    dataset: Any


def interrupted(
    stop: BaseException,
    keeper: Memory | Store,
    sizes: list[int],
    store: Any,
) -> SweepInterrupted:
    """Return the exception that says why a sweep ended, and what it has.

    Args:
        stop: What ended it.
        keeper: What holds its results.
        sizes: The number of points of every box.
        store: The path of the store, None if the results are in memory.
    """
    done = sum(size for size, complete in zip(sizes, keeper.done, strict=True) if complete)
    full = isinstance(stop, OSError) and stop.errno in (errno.ENOSPC, errno.EDQUOT)
    why = (
        "interrupted"
        if isinstance(stop, KeyboardInterrupt)
        else f"stopped: {'the disk is full: ' if full else ''}{stop}"
    )
    rest = (
        "the exception's `dataset` holds them"
        if store is None
        else f"{store} holds them; go on with resume=True (`ufm sweep --resume`)"
    )
    failure = SweepInterrupted(f"{why}; {done} of {sum(sizes)} points are done, and {rest}")
    failure.dataset = keeper.dataset()
    return failure


@contextmanager
def patience() -> Iterator[threading.Event]:
    """Yield an event that a first Ctrl-C sets; a second one raises KeyboardInterrupt at once.

    Outside the main thread, and where Ctrl-C is ignored, the event is never set.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def asked(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield stopping
        return
    signal.signal(signal.SIGINT, asked)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)
