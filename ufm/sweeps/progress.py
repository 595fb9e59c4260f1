"""A bar with points per second and the time left, where there is somebody to see it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

__all__ = ["Progress", "shown"]


@runtime_checkable
class Progress(Protocol):
    """What is told how many points have been done."""

    def advance(self, points: int) -> None:
        """Count points that were done."""


class _Counted:
    """Calls a function with points done and points in all."""

    def __init__(self, call: Callable[[int, int], None] | None, total: int, done: int):
        self.call, self.total, self.done = call, total, done

    def advance(self, points: int) -> None:
        self.done += points
        if self.call is not None:
            self.call(self.done, self.total)


@contextmanager
def shown(
    progress: bool | Callable[[int, int], None] | None, total: int, done: int
) -> Iterator[Progress]:
    """Show a bar, call a function, or do nothing.

    Args:
        progress: True for a bar, False for none, None for one in a terminal; or a function.
        total: Points in all.
        done: Points that were done before.
    """
    if callable(progress):
        yield _Counted(progress, total, done)
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield _Counted(None, total, done)
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar
    except ImportError:
        yield _Counted(_line, total, done)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("points"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, rate="")

        class Shown:
            def advance(self, points: int) -> None:
                bar.advance(task, points)
                speed = bar.tasks[0].speed
                bar.update(task, rate="" if speed is None else f"{speed:,.0f}/s")

        yield Shown()


def _line(done: int, total: int) -> None:
    print(
        f"\r{done} of {total} points",
        end="\n" if done == total else "",
        file=sys.stderr,
        flush=True,
    )
