"""Progress display on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from deit.system.terminal import printable, write
from deit.system.torchrun import is_main

PLAIN_INTERVAL = 10.0  # seconds between lines if the output is not a terminal


def print_status(line: str = "") -> None:
    """Prints a line on standard error, so that standard output holds only results. Of several processes, the first prints."""
    if is_main():
        print_error(line)


def print_error(line: str) -> None:
    """Prints a line on standard error, in any process."""
    write("\n".join(map(printable, line.split("\n"))) + "\n", sys.stderr)
    if sys.stderr is not None:
        sys.stderr.flush()


class Progress(AbstractContextManager["Progress"]):
    """Displays the progress of ``total`` units of work.

    On a terminal, shows a bar with rate and remaining time, which disappears at the end. Elsewhere, prints a line every ten
    seconds, so that work of less than ten seconds prints nothing.

    Args:
        description: name of the work, shown before the progress.
        total: number of units.
        unit: name of the units, in the plural.
        quiet: show nothing.
    """

    def __init__(self, description: str, total: int, unit: str = "images", quiet: bool = False) -> None:
        self.description, self.total, self.unit, self.quiet = description, total, unit, quiet
        self._done = 0
        self._note = ""
        self._start = self._last = time.monotonic()
        self._bar = _terminal_bar() if not quiet and is_main() and _can_animate() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, rate="", note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def extend(self, count: int) -> None:
        """Adds ``count`` units to the total; a negative number takes units away."""
        self.total += count
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def advance(self, count: int, note: str = "") -> None:
        """Adds ``count`` finished units. ``note`` is shown at the end of the line, until the next note."""
        self._done += count
        self._note = note or self._note
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{rate:,.0f} {self.unit}/s", note=self._note)
        elif self._done and now - self._last >= PLAIN_INTERVAL and not self.quiet:
            self._last = now
            remaining = max(self.total - self._done, 0) / rate
            print_status(
                f"{self.description}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, "
                f"{duration(remaining)} left{', ' + self._note if self._note else ''}"
            )


def plural(count: int, noun: str) -> str:
    """Formats a count with its noun, such as "1 step" or "1,200 steps"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Formats a duration, such as "1 min 15 s": in seconds below an hour, in minutes above."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


def _can_animate() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _terminal_bar() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
