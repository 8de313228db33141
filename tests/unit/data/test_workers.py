"""Worker processes: what is planned for the shared memory there is, and what is said when one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deit.data import workers
from deit.data.loader import Loader, TrainSamples
from deit.data.sampler import epoch_steps
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.data.workers import PIPED_PREFETCHED, PREFETCHED, plan_workers, worker_error
from deit.errors import LoadingError
from tests.helpers import MemorySource

MIB = 2**20
BATCH = 64 * 3 * 224 * 224 * 4


@pytest.mark.parametrize(
    ("free", "number", "prefetch", "shared", "said"),
    [
        (None, 2, PREFETCHED, True, ""),
        (2048 * MIB, 2, PREFETCHED, True, ""),
        (200 * MIB, 2, 1, True, "fewer batches are made ahead of time"),
        (64 * MIB, 2, PIPED_PREFETCHED, False, "64 MiB free, and 2 workers use up to 408 MiB: batches pass through pipes"),
        (64 * MIB, 1, PIPED_PREFETCHED, False, "1 worker use"),
    ],
)
def test_shared_memory_is_compared_before_the_start(
    monkeypatch: pytest.MonkeyPatch, free: int | None, number: int, prefetch: int, shared: bool, said: str
) -> None:
    monkeypatch.setattr(workers, "shared_memory_bytes", lambda: free)
    plan = plan_workers(number, BATCH, None)
    assert (plan.workers, plan.prefetch, plan.shared) == (number, prefetch, shared)
    assert said in plan.note
    assert bool(plan.note) == bool(said)


def test_without_shared_memory_the_main_process_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "shared_memory_bytes", lambda: 0)
    assert plan_workers(2, BATCH, None).workers == 0


def spawn(monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    monkeypatch.setattr(workers, "worker_context", lambda: SimpleNamespace(get_start_method=lambda: "spawn"))
    monkeypatch.setattr(workers, "main_is_guarded", lambda: guarded)


@pytest.mark.parametrize("guarded", [True, False])
def test_main_program_is_hidden_unless_it_is_needed(monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    spawn(monkeypatch, guarded)
    plan = plan_workers(1, 0, (MemorySource(4), np.zeros(200_000, np.uint8)))
    assert (plan.workers, plan.hides_main) == (1, True)
    needed = plan_workers(1, 0, "__main__")
    assert (needed.workers, needed.hides_main) == (int(guarded), False)
    assert ("if __name__" in needed.note) is not guarded
    unpicklable: Callable[[], None] = lambda: None  # noqa: E731
    assert plan_workers(1, 0, unpicklable).workers == 0


def samples() -> TrainSamples:
    return TrainSamples(MemorySource(16), TrainTransform(Augmentation(), 96, 96), Mixing(), seed=5)


@pytest.mark.parametrize("way", ["shared", "planned pipes", "no room in shared memory"])
def test_batches_do_not_depend_on_how_they_travel(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "planned pipes":
        monkeypatch.setattr(workers, "shared_memory_bytes", lambda: 1)
    elif way == "no room in shared memory":

        def full(_: torch.Tensor) -> None:
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    plans = epoch_steps(16, 8, 5, epoch=0)
    serial, parallel = Loader(samples(), 0).run(plans), Loader(samples(), 1).run(plans)
    for one, other in zip(serial, parallel, strict=True):
        for name in ("pixel_values", "labels", "targets", "samples"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert np.asarray(other.pixel_values).flags.writeable


def test_killed_worker_is_one_sentence() -> None:
    loader = Loader(samples(), 1)
    batches = loader.run(epoch_steps(16, 1, 5, epoch=0))
    next(batches)
    iterator: Any = loader._loader._iterator  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(iterator._workers[0].pid, number)  # ignored
    next(batches)
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(LoadingError, match=r"was killed, most likely because memory ran out: pass a smaller --workers"):
        list(batches)


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError(), FileNotFoundError()])
def test_worker_killed_as_it_hands_a_tensor_over_is_the_same_sentence(error: Exception) -> None:
    loader = Loader(samples(), 1)
    next(loader.run(epoch_steps(16, 1, 5, epoch=0)))
    iterator: Any = loader._loader._iterator  # type: ignore[union-attr]

    def cut() -> Iterator[Any]:
        os.kill(iterator._workers[0].pid, signal.SIGKILL)
        raise error
        yield

    with pytest.raises(LoadingError, match="was killed, most likely because memory ran out"):
        loader._next(cut())


def test_worker_killed_while_it_holds_a_lock_ends_the_others() -> None:
    loader = Loader(samples(), 2)
    next(loader.run(epoch_steps(16, 1, 5, epoch=0)))
    iterator: Any = loader._loader._iterator  # type: ignore[union-attr]
    iterator._workers_done_event._cond.acquire()
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    iterator._workers[0].join()
    loader.close()
    assert not any(process.is_alive() for process in iterator._workers)


@pytest.mark.parametrize(
    ("codes", "error", "said"),
    [
        ([0, -signal.SIGKILL], RuntimeError("exited"), "was killed, most likely because memory ran out"),
        ([-signal.SIGBUS], RuntimeError("exited"), "ran out of shared memory"),
        ([-signal.SIGSEGV, None], RuntimeError("exited"), "was ended by SIGSEGV"),
        ([3], RuntimeError("exited"), "exited with code 3"),
        ([None], RuntimeError("Too many open files. Communication"), "has too many open files"),
        ([None], RuntimeError("Pin memory thread exited\nmore"), "failed: Pin memory thread exited:"),
        ([None], EOFError(), "failed: EOFError:"),
    ],
)
def test_each_death_of_a_worker_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, codes: list[int | None], error: Exception, said: str
) -> None:
    monkeypatch.setattr(workers, "_wait_for_exit", lambda _: None)
    processes: Any = [SimpleNamespace(exitcode=code) for code in codes]
    message = str(worker_error(processes, error))
    assert said in message
    assert "\n" not in message
