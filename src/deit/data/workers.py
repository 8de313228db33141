"""How the batches of worker processes reach the main process, and what is said if they do not.

Large tensors travel in shared memory. A worker allocates it before it hands a batch over, and sends the bytes through a pipe if
that fails, so that a full ``/dev/shm`` (64 MiB in many containers) costs time but no batch.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import pickle
import signal
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deit.errors import LoadingError
from deit.system.processes import SHARED_MEMORY, main_is_guarded, refers_to_main, shared_memory_bytes, worker_context
from deit.system.progress import plural, print_status

PREFETCHED = 4  # batches that each worker makes ahead of time
PIPED_PREFETCHED = 2  # the same, if batches wait in the memory of the worker
MIN_SHARED_BYTES = 64 * 1024  # smaller tensors are sent with the message
HELD_BATCHES = 2  # batches that the main process holds: the one in use, and the next
SHARE = 0.9  # share of the free shared memory that is used
EXIT_SECONDS = 1.0  # how long the exit code of a failed worker is waited for


@dataclass(frozen=True)
class WorkerPlan:
    """How batches are made.

    Attributes:
        workers: worker processes; 0 makes batches in the main process.
        prefetch: batches that each worker makes ahead of time.
        shared: whether large tensors travel in shared memory, or through pipes.
        hides_main: whether workers must not import the main program, see
            :func:`deit.system.processes.hidden_main_module`.
        note: what differs from the request and why; empty if nothing does.
    """

    workers: int
    prefetch: int = PREFETCHED
    shared: bool = True
    hides_main: bool = False
    note: str = ""


class Parcel:
    """A batch on its way to the main process, where it is unpickled to the batch itself.

    The batch is serialized at once: in torch's own thread for it, an error would be printed and the batch lost, for which the
    main process would wait forever.

    Args:
        batch: a dataclass of tensors and plain values.
        shared: put large tensors into shared memory if possible.
    """

    def __init__(self, batch: Any, shared: bool) -> None:
        self._payload = _share(batch) if shared else None
        if self._payload is None:
            self._payload = _serialize(batch)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_parcel, (self._payload,)


def plan_workers(workers: int, batch_bytes: int, content: object) -> WorkerPlan:
    """Compares a request for worker processes with the shared memory and the processes that are possible here.

    Args:
        workers: requested worker processes.
        batch_bytes: bytes of the largest batch.
        content: what is sent to the workers when they start.
    """
    if not workers:
        return WorkerPlan(0)
    if multiprocessing.current_process().daemon:
        return WorkerPlan(0, note="This process may not start others, so images are loaded in it")
    plan = _plan_memory(workers, batch_bytes)
    if not plan.workers or worker_context().get_start_method() == "fork":
        return plan
    try:
        needs_main = refers_to_main(content)
    except Exception as error:  # noqa: BLE001, pickling raises whatever the classes of the content raise
        return WorkerPlan(0, note=f"Images are loaded in the main process, since worker processes cannot be sent them: {error}")
    if needs_main and not main_is_guarded():
        return WorkerPlan(
            0,
            note="Images are loaded in the main process: worker processes would run the main program again, which is not below "
            '`if __name__ == "__main__":`',
        )
    return replace(plan, hides_main=not needs_main)


def _plan_memory(workers: int, batch_bytes: int) -> WorkerPlan:
    free = shared_memory_bytes()
    if free is None or batch_bytes < MIN_SHARED_BYTES:
        return WorkerPlan(workers)
    if not free:
        return WorkerPlan(0, note=f"{SHARED_MEMORY} is missing or full, so images are loaded in the main process")
    batches = int(free * SHARE) // batch_bytes
    prefetch = (batches - HELD_BATCHES) // workers
    if prefetch >= PREFETCHED:
        return WorkerPlan(workers)
    needed = (HELD_BATCHES + workers * PREFETCHED) * batch_bytes / SHARE
    problem = f"{SHARED_MEMORY} has {_mib(free)} free, and {plural(workers, 'worker')} use up to {_mib(needed)}"
    remedy = "enlarge it, as with `docker run --shm-size=2g`"
    if prefetch > 0:
        return WorkerPlan(workers, prefetch, note=f"{problem}: fewer batches are made ahead of time; {remedy}")
    return WorkerPlan(
        workers, PIPED_PREFETCHED, False, note=f"{problem}: batches pass through pipes, which is slower; {remedy}"
    )


@functools.cache
def print_note_once(note: str) -> None:
    """Prints a note, the first time only: training, validation and the final evaluation have a loader each."""
    print_status(f"Note:      {note}.")


def worker_error(processes: Sequence[BaseProcess], error: Exception) -> LoadingError:
    """Returns the error of a data loader whose worker processes failed.

    Args:
        processes: the workers.
        error: what torch raised.
    """
    _wait_for_exit(processes)
    codes = [process.exitcode for process in processes if process.exitcode]
    signals = {signal.Signals(-code).name for code in codes if code < 0}
    what = "A worker process of the data loader"
    if "SIGBUS" in signals:
        return LoadingError(f"{what} ran out of shared memory", f"enlarge {SHARED_MEMORY}, or pass --workers 0")
    if "SIGKILL" in signals:
        return LoadingError(
            f"{what} was killed, most likely because memory ran out", "pass a smaller --workers number, or a smaller batch size"
        )
    if "Too many open files" in str(error):
        return LoadingError(
            "The data loader has too many open files", "raise the limit with `ulimit -n 4096`, or pass --workers 0"
        )
    if codes:
        how = f"was ended by {signals.pop()}" if signals else f"exited with code {codes[0]}"
        return LoadingError(f"{what} {how}", "pass --workers 0 to load images in the main process")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return LoadingError(f"{what} failed: {reason}", "pass --workers 0 to load images in the main process")


def _wait_for_exit(processes: Sequence[BaseProcess]) -> None:
    """Waits until the exit code of a process that ends is known, which is a moment after its connections are closed."""
    ended = multiprocessing.connection.wait([process.sentinel for process in processes], EXIT_SECONDS)
    for process in processes:
        if process.sentinel in ended:
            process.join(EXIT_SECONDS)


def _share(batch: Any) -> bytes | None:
    """Serializes a batch whose large tensors are in shared memory; returns None if that is not possible."""
    try:
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor) and value.nbytes >= MIN_SHARED_BYTES:
                value.share_memory_()  # type: ignore[no-untyped-call]
        return _serialize(batch)
    except (OSError, RuntimeError):  # no memory, no file descriptors, or no temporary directory for the socket
        return None


def _serialize(batch: Any) -> bytes:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    parts = {name: value.numpy() if _is_private(value) else value for name, value in values.items()}
    return bytes(ForkingPickler.dumps((type(batch), parts)))


def _is_private(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_shared()  # type: ignore[no-untyped-call]


def _open_parcel(payload: bytes) -> Any:
    kind, parts = pickle.loads(payload)  # noqa: S301, from a child process
    return kind(**{name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in parts.items()})


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
