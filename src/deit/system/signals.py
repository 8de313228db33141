"""Signals: work that can be saved stops at a safe point, everything else stops at once and cleans up.

Three signals ask a program to stop: SIGINT (Ctrl-C), SIGTERM (container runtimes and batch systems) and SIGHUP (a closed
terminal). A signal that is ignored when the program starts stays ignored, as ``nohup`` wants it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from deit.errors import InterruptedWorkError

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # no SIGHUP on Windows
)
_requests: list[StopRequest] = []  # of the contexts of stop_on_signals; the last one is active


class Terminated(SystemExit):
    """Raised in the main thread by SIGTERM or SIGHUP, so that temporary files are removed on the way out.

    Args:
        number: the signal.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_code(number))
        self.number = number


class StopRequest(threading.Event):
    """Event that a signal sets.

    Attributes:
        number: the signal that set it; SIGINT before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number: int = signal.SIGINT

    def error(self, problem: str, remedy: str = "") -> InterruptedWorkError:
        """Returns the error to raise once everything is saved, with the exit code of the signal."""
        return InterruptedWorkError(problem, remedy, exit_code(self.number))


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yields an event that SIGINT, SIGTERM and SIGHUP set, to be polled at points where the work can be saved.

    A second SIGINT has its usual effect: it stops at once. SIGTERM and SIGHUP are often sent more than once, to a process and
    again to its group, so that repeating them changes nothing. An inner context yields the event of the outer one.
    """
    if _requests:
        yield _requests[-1]
        return
    stop = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.number = number
            stop.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    with _handlers(handle) as previous:
        _requests.append(stop)
        try:
            yield stop
        finally:
            _requests.remove(stop)


def check_stop() -> None:
    """Raises an error if a stop was requested in a context of :func:`stop_on_signals`.

    Raises:
        InterruptedWorkError: it was; the caller says what is saved.
    """
    if _requests and _requests[-1].is_set():
        raise _requests[-1].error("Stopped by a signal")


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise :class:`Terminated`, once: repeated ones do not disturb the removal of temporary files."""
    raised = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if not raised.is_set():
            raised.set()
            raise Terminated(number)

    with _handlers(handle, tuple(number for number in STOP_SIGNALS if number != signal.SIGINT)):
        yield


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Delays the stop signals until the end of the context. Child processes that are started meanwhile inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def ignore_stop_signals() -> None:
    """Makes a child process ignore the stop signals, and lifts the block of :func:`blocked_signals`.

    A signal to the whole process group must not end the child before its parent has saved the work.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def exit_code(number: int) -> int:
    """Returns the exit code of a program that a signal ended, by the convention of shells."""
    return 128 + number


@contextmanager
def _handlers(
    handle: Callable[[int, FrameType | None], Any], numbers: tuple[int, ...] = STOP_SIGNALS
) -> Iterator[dict[int, Any]]:
    """Installs a handler of the signals that are not ignored. Yields the previous handlers, which return on exit."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield {}
        return
    previous = {number: handler for number in numbers if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
