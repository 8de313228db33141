"""Shows the log of a run in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from deit.errors import MissingExtraError

FOLDER = "tensorboard"


def check_tracking() -> None:
    """Checks that TensorBoard is installed.

    Raises:
        MissingExtraError: it is not.
    """
    _summary_writer()


class Tracker(AbstractContextManager["Tracker"]):
    """Writes event files for TensorBoard, with an epoch as its step.

    Args:
        run: the run directory; the files are in its folder ``tensorboard``.
        epoch: epoch that is trained next, counted from 1. What an earlier program wrote from it on is hidden.
    """

    def __init__(self, run: Path, epoch: int) -> None:
        self._writer = _summary_writer()(str(run / FOLDER), purge_step=epoch)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row of ``log.jsonl``."""
        for name, value in _scalars(row):
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("--track", "track") from None
    return SummaryWriter


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of a row with their names, such as ``validation/top1``."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield f"{prefix}{name}", value
