"""Sweeps on the workers of a cluster: the same numbers, whatever becomes of the workers."""

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardships import BATCH, BOXES, OVER, PROBLEM, made_up, marks, sweep
from tables import for_each

import ufm
from ufm.sweeps import cluster as on_cluster
from ufm.sweeps import run as running

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

Client = Any


@pytest.fixture(scope="module")
def processes() -> Iterator[Client]:
    """Two workers in their own processes; a batch is given up when its second worker is killed."""
    options = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A worker with three threads in this process."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Sets what is called, in this process, beside the made-up evaluation."""
    for module in (running, on_cluster):
        monkeypatch.setattr(module, "evaluate", made_up)

    def beside(call: Callable[[], None]) -> None:
        def evaluate(*args: Any) -> Any:
            call()
            return made_up(*args)

        for module in (running, on_cluster):
            monkeypatch.setattr(module, "evaluate", evaluate)

    return beside


def prepare(client: Client, deadly: Path) -> None:
    """Let workers, also new ones, make numbers up, and die at decays with a file in a folder."""

    class Preparation(
        distributed.WorkerPlugin
    ):  # a class in a function goes to the workers as it is
        name = "preparation"

        def setup(self, worker: Any) -> None:
            def evaluate(points: Any, flat: Any, settings: Any) -> Any:
                if (deadly / str(points.columns(flat)["weight_decay"][0])).exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.02)
                return made_up(points, flat, settings)

            on_cluster.evaluate = evaluate

    client.register_plugin(Preparation())


@pytest.mark.slow
def test_numbers_are_the_same_to_the_last_bit(processes: Client, tmp_path: Path) -> None:
    over = {name: values[::4] for name, values in OVER.items()}
    options: dict[str, Any] = {"batch": 10, "client": processes}
    whole = ufm.sweep(PROBLEM, over, batch=10)
    assert ufm.sweep(PROBLEM, over, **options).identical(whole)
    assert ufm.sweep(PROBLEM, over, store=tmp_path / "store", **options).identical(whole)
    assert processes.futures == {}


@pytest.mark.slow
def test_a_worker_may_die(processes: Client, tmp_path: Path, evaluation: Any) -> None:
    deadly = tmp_path / "deadly"
    deadly.mkdir()
    prepare(processes, deadly)
    whole = sweep()
    for store in (None, tmp_path / "store"):
        pids = list(processes.run(os.getpid).values())

        def kill(done: int, total: int, pids: list[int] = pids) -> None:
            if done == 5 * BATCH:
                os.kill(pids[0], signal.SIGKILL)

        assert sweep(client=processes, store=store, progress=kill).identical(whole)
        assert pids[0] not in processes.run(os.getpid).values()
    assert len(marks(tmp_path / "store")) == BOXES


@pytest.mark.slow
def test_a_batch_that_kills_its_workers_is_left_out(
    processes: Client, tmp_path: Path, evaluation: Any
) -> None:
    deadly, store = tmp_path / "deadly", tmp_path / "store"
    deadly.mkdir()
    prepare(processes, deadly)
    whole = sweep()
    (deadly / str(OVER["weight_decay"][0])).touch()
    with pytest.raises(
        ufm.SweepInterrupted, match="every worker that had these points was killed"
    ) as stop:
        sweep(client=processes, store=store)
    assert "weight_decay[0:1], imbalance_ratio[0:40]" in str(stop.value)
    assert "resume=True" in str(stop.value)
    found = stop.value.dataset.load()
    assert np.all(found.status[0] == ufm.Status.NOT_COMPUTED)
    # Batches that waited at a worker that died may be given up with it.
    done = found.status == 1
    assert BOXES - 3 <= len(marks(store)) < BOXES
    assert int(done.sum()) == BATCH * len(marks(store))
    assert found.where(done).equals(whole.where(done))
    (deadly / str(OVER["weight_decay"][0])).unlink()
    assert sweep(client=processes, store=store, resume=True).identical(whole)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_too(
    processes: Client, tmp_path: Path, evaluation: Any
) -> None:
    prepare(processes, tmp_path)
    pids = processes.run(os.getpid)

    def press(done: int, total: int) -> None:
        if done == 4 * BATCH:
            for pid in pids.values():
                os.kill(pid, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ufm.SweepInterrupted, match="interrupted"):
            sweep(client=processes, store=tmp_path / "store", progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(marks(tmp_path / "store")) == 3 + 2 * on_cluster.IN_FLIGHT
    assert processes.run(os.getpid) == pids
    assert not any(
        processes.run(lambda: signal.getsignal(signal.SIGINT) == signal.SIG_IGN).values()
    )


def test_few_and_small_tasks_are_in_flight(
    threads: Client, evaluation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, counts, workers = (
        [],
        [],
        iter([{}] * 5 + [{"one": 1}] * 10 + [{"one": 1, "two": 3}] * 100),
    )
    submit = threads.submit

    def submitted(function: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(pickle.dumps(args)))
        return submit(function, *args, **options)

    monkeypatch.setattr(threads, "submit", submitted)
    monkeypatch.setattr(threads, "nthreads", lambda: next(workers))
    over = {
        "weight_decay": np.geomspace(1e-5, 1e-2, 1000),
        "imbalance_ratio": np.geomspace(1, 100, 1000),
    }
    found = ufm.sweep(
        PROBLEM,
        over,
        batch=20_000,
        quantities=["margin"],
        client=threads,
        progress=lambda *at: counts.append(len(threads.futures)),
    )
    assert np.all(found.status == 1)
    assert len(sizes) == 50
    assert max(sizes) < 20_000 * 16 + 10_000  # two numbers per point
    assert max(counts[:5]) <= on_cluster.IN_FLIGHT
    assert on_cluster.IN_FLIGHT < max(counts) <= 4 * on_cluster.IN_FLIGHT


def test_a_worker_with_threads_solves_one_batch_at_a_time(threads: Client, evaluation: Any) -> None:
    together, most = 0, []

    def count() -> None:
        nonlocal together
        together += 1
        most.append(together)
        time.sleep(0.01)
        together -= 1

    evaluation(count)
    assert np.all(sweep(client=threads).status == 1)
    assert most == [1] * BOXES


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_keeps_what_is_in_work(
    threads: Client, tmp_path: Path, evaluation: Any, times: int
) -> None:
    def press(done: int, total: int) -> None:
        if done == 4 * BATCH:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(
            ufm.SweepInterrupted, match=r"interrupted; .* of 1600 points are done"
        ) as stop:
            sweep(client=threads, store=tmp_path / "store", progress=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    done = int(np.sum(stop.value.dataset.status == 1)) // BATCH
    assert (done == 4 + 3 * on_cluster.IN_FLIGHT - 1) if times == 1 else (done >= 4)
    assert sweep(client=threads, store=tmp_path / "store", resume=True).identical(sweep())


@pytest.mark.slow
def test_a_disk_that_is_full_on_a_worker(threads: Client, tmp_path: Path, evaluation: Any) -> None:
    calls = iter(range(1000))

    def fail() -> None:
        if next(calls) > 20:
            raise OSError(28, "No space left on device")

    evaluation(fail)
    with pytest.raises(ufm.SweepInterrupted, match=r"the disk is full: .* of 1600 points are done"):
        sweep(client=threads, store=tmp_path / "store")
    assert 10 <= len(marks(tmp_path / "store")) <= 21
    evaluation(lambda: None)
    assert sweep(client=threads, store=tmp_path / "store", resume=True).identical(sweep())


def test_mistakes_on_a_worker_are_raised_here(threads: Client, evaluation: Any) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a mistake")

    evaluation(fail)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        sweep(client=threads)


@for_each("what", ["client", "cluster"])
def test_a_cluster_that_goes_away(evaluation: Any, what: str) -> None:
    evaluation(lambda: time.sleep(0.01))
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def close(done: int, total: int) -> None:
            if done == 5 * BATCH:
                (client if what == "client" else cluster).close()

        with pytest.raises(
            ufm.SweepInterrupted, match=r"the connection to it, was lost: .* 200 of 1600"
        ) as stop:
            sweep(client=client, progress=close)
        assert int(np.sum(stop.value.dataset.status == 1)) == 5 * BATCH
