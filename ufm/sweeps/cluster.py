"""The batches of a sweep on the workers of a Dask cluster."""

import itertools
import signal
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from ufm.sweeps.evaluation import Settings, evaluate
from ufm.sweeps.interrupts import patience
from ufm.sweeps.points import Points
from ufm.sweeps.progress import Progress
from ufm.sweeps.store import Boxes, Memory, Store

__all__ = ["IN_FLIGHT", "run_on_cluster"]

IN_FLIGHT = 3  # batches per thread of a cluster that are handed out at a time
RETRIES = 2  # of a batch that fails on its worker
LOST = 3  # batches whose workers were killed, after which no more are handed out


def run_on_cluster(
    client: Any,
    points: Points,
    settings: Settings,
    boxes: Boxes,
    keeper: Memory | Store,
    left: list[int],
    bar: Progress,
) -> None:
    """Solve the boxes that are left on a cluster, a few per thread at a time.

    Neither the client nor the scheduler holds more than the batches in flight.

    Raises:
        KeyboardInterrupt: After a Ctrl-C, when the batches in flight are done.
        OSError: The cluster was lost, or workers kept dying.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    path = keeper.path.resolve() if isinstance(keeper, Store) else None
    batches = _Batches(client, points, settings, boxes, path, left)
    lost: list[int] = []
    failure: Exception | None = None
    undisturbed = _undisturbed()
    client.register_plugin(undisturbed)
    with patience() as stopping:
        try:
            queue = as_completed(batches.handed_out())
            for future in queue:
                _, box = batches.in_work.pop(future.key)
                try:
                    found = future.result()
                except KilledWorker:
                    lost.append(box)
                except Exception as error:
                    failure = failure or error
                else:
                    if isinstance(keeper, Memory):
                        keeper.write(box, found)
                    bar.advance(boxes.size(box))
                future.release()
                if not stopping.is_set() and failure is None and len(lost) < LOST:
                    queue.update(batches.handed_out())
        finally:
            if client.status == "running":
                client.cancel([future for future, _ in batches.in_work.values()])
                client.unregister_worker_plugin(undisturbed.name)
    _raise_failure(failure)
    if lost:
        raise OSError(
            "every worker that had these points was killed, perhaps because memory ran out "
            f"(a smaller `batch` needs less): {_places(points, boxes, lost)}"
        )
    if stopping.is_set():
        raise KeyboardInterrupt
    if batches.are_left():
        raise OSError("the connection to the cluster was lost.")


class _Batches:
    """The batches of a sweep as tasks of a cluster.

    Attributes:
        in_work: The future and the box of every batch in flight, by the key of the future.
    """

    def __init__(
        self,
        client: Any,
        points: Points,
        settings: Settings,
        boxes: Boxes,
        path: Path | None,
        left: list[int],
    ):
        self._client, self._points, self._boxes = client, points, boxes
        self._arguments = settings, path, boxes
        self._waiting = iter(left)
        self.in_work: dict[str, tuple[Any, int]] = {}

    def handed_out(self) -> list[Any]:
        """Submit as many batches as there is room for, and return their futures."""
        if self._client.status != "running":
            return []
        # Workers come and go: their number is asked for each time.
        threads = max(sum(self._client.nthreads().values()), 1)
        room = max(IN_FLIGHT * threads - len(self.in_work), 0)
        fresh = []
        for box in itertools.islice(self._waiting, room):
            part = self._points.part(self._boxes.flat(box))
            future = self._client.submit(
                _task, part, *self._arguments, box, pure=False, retries=RETRIES
            )
            self.in_work[future.key] = future, box
            fresh.append(future)
        return fresh

    def are_left(self) -> bool:
        """Return whether some batches were never submitted."""
        return next(self._waiting, None) is not None


def _raise_failure(failure: Exception | None) -> None:
    """Raise the exception of a batch that failed, if one did."""
    from distributed.client import FutureCancelledError

    if isinstance(failure, FutureCancelledError):
        message = f"the cluster, or the connection to it, was lost: {failure}"
        raise OSError(message) from failure
    if failure is not None:
        raise failure


def _places(points: Points, boxes: Boxes, chosen: list[int]) -> str:
    """Return where boxes are, as slices of the axes."""
    regions = [zip(points.dims, boxes.region(box), strict=True) for box in chosen]
    return "; ".join(
        ", ".join(f"{name}[{part.start}:{part.stop}]" for name, part in region)
        for region in regions
    )


def _undisturbed() -> Any:
    """Return a plugin by which workers ignore Ctrl-C.

    A terminal sends Ctrl-C to the workers of its machine too. The process that sweeps answers it.
    """
    from distributed import WorkerPlugin

    class Undisturbed(WorkerPlugin):
        name = f"undisturbed-{uuid.uuid4().hex}"
        before: Any = None

        def setup(self, worker: Any) -> None:
            # Where there is a nanny, the process is not one that somebody started in a terminal.
            if worker.nanny and threading.current_thread() is threading.main_thread():
                self.before = signal.signal(signal.SIGINT, signal.SIG_IGN)

        def teardown(self, worker: Any) -> None:
            if self.before is not None:
                signal.signal(signal.SIGINT, self.before)

    return Undisturbed()


# Programs of two batches in one process may wait for each other for ever
# (see `ufm.solving.class_batch`).
_alone = threading.Lock()


def _task(part: Points, settings: Settings, path: Path | None, boxes: Boxes, box: int) -> Any:
    """Solve a batch on a worker with all its threads, and write it into the store if there is one.

    Returns:
        The quantities of the batch, None where they are in the store.
    """
    from distributed import get_worker

    with _alone:
        threads = get_worker().state.nthreads
        found = evaluate(part, np.arange(part.size), settings._replace(threads=threads))
    if path is None:
        return found
    Store(path, boxes).write(box, found)
    return None
