"""What a person sees while work goes on: a bar on a terminal, plain lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

T = TypeVar("T")

PLAIN_INTERVAL = 10.0  # seconds between two lines where the output is no terminal


def print_status(line: str = "") -> None:
    """One line for a person, on standard error so that standard output stays a program's."""
    print(line, file=sys.stderr, flush=True)


class Progress(AbstractContextManager["Progress"]):
    """Progress of ``total`` units of work.

    On a terminal a bar with rate and time left, which goes when the work is done; elsewhere a line every ten seconds,
    the first of them after ten: work that is over by then prints nothing. A quiet one prints nothing at all.
    """

    def __init__(self, description: str, total: int, unit: str = "images", quiet: bool = False) -> None:
        self.description, self.total, self.unit, self.quiet = description, total, unit, quiet
        self._done = 0
        self._note = ""
        self._start = self._last = time.monotonic()
        self._bar = _terminal_bar() if sys.stderr.isatty() and not quiet else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, rate="", note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more units are done; ``note`` stands at the end of the line."""
        self._done += count
        self._note = note or self._note
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{rate:,.0f} {self.unit}/s", note=self._note)
        elif now - self._last >= PLAIN_INTERVAL and not self.quiet:
            self._last = now
            left = max(self.total - self._done, 0) / rate
            print_status(
                f"{self.description}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, "
                f"{duration(left)} left{', ' + self._note if self._note else ''}"
            )


def plural(count: int, what: str) -> str:
    """``1, "step"`` -> ``1 step``; ``1200, "step"`` -> ``1,200 steps``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``; whole seconds below an hour, whole minutes above."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _terminal_bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
