"""Writes checkpoints in a thread beside training, so that training waits for the copy of the weights only, not for the disk."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from deit.errors import WorkError
from deit.training.state import Snapshot, write_checkpoint


class CheckpointWriter(AbstractContextManager["CheckpointWriter"]):
    """Writes the checkpoints of a run, one at a time. At the end of the context, the last one is on the disk.

    Args:
        directory: the run's checkpoints.
        interval: seconds of training after which :attr:`is_due` is true.
        resume: how to resume, for errors.

    Attributes:
        remedy: what to do if something cannot be written.
    """

    def __init__(self, directory: Path, interval: float, resume: str) -> None:
        self._directory, self._interval = directory, interval
        self.remedy = f"the checkpoint before is kept; make space or correct the path, then {resume}"
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last snapshot was taken longer ago than the interval, and is on the disk."""
        is_written = self._pending is None or self._pending.done()
        return is_written and time.monotonic() - self._last >= self._interval

    def start(self, snapshot: Snapshot) -> None:
        """Starts writing a snapshot. Waits for the one before, if it is not on the disk yet.

        Raises:
            WorkError: the one before could not be written.
        """
        self.wait()
        self._last = time.monotonic()
        self._pending = self._executor.submit(write_checkpoint, self._directory, snapshot)

    def write(self, snapshot: Snapshot) -> Path:
        """Writes a snapshot, and waits until it is on the disk. Returns the checkpoint.

        Raises:
            WorkError: it, or the one before, could not be written.
        """
        self.start(snapshot)
        assert self._pending is not None
        path = self._pending.result
        self.wait()
        return path()

    def wait(self) -> None:
        """Waits until the last snapshot is on the disk.

        Raises:
            WorkError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            problem = f"A checkpoint cannot be written to {self._directory}: {error.strerror or error}"
            raise WorkError(problem, self.remedy) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except WorkError:
            if error is None:  # one error is reported
                raise
        finally:
            self._executor.shutdown()
