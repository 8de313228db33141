"""Child processes: how they start, and the shared memory that they pass data through."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from deit.errors import WorkError
from deit.system.signals import blocked_signals, ignore_stop_signals

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps shared memory; in containers often limited to 64 MiB
_MAIN = "__main__"
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def worker_context() -> BaseContext:
    """Returns the context that worker processes are started in.

    It is the one that the program has chosen by ``multiprocessing.set_start_method``; else ``fork`` on Linux, where workers
    start in milliseconds and share the memory of the main process, and the default elsewhere.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    default = "fork" if sys.platform == "linux" else multiprocessing.get_all_start_methods()[0]
    return multiprocessing.get_context(chosen or default)


def end_with_parent() -> None:
    """Makes this process end at once when the process that started it does, even if that was killed.

    Its parent for the system may be another one, such as the server of ``forkserver``, which stays.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux" and os.getppid() == parent.pid:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it has ended before the call
            os._exit(1)
    else:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def hide_closed_connections() -> None:
    """Keeps this worker process from printing a traceback when the main process closes a connection to it.

    Tensors in shared memory are handed over by a thread of ``multiprocessing``, which passes its errors to
    ``sys.excepthook``. The connection is closed when the main process is killed, a moment before its workers are, or
    interrupted; what that means is for the main process to say. Other errors are printed.
    """
    sys.excepthook = _print_unless_closed


def _print_unless_closed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)


def shared_memory_bytes() -> int | None:
    """Returns the free bytes of shared memory, 0 if there is none; None on systems that have no limit of its own."""
    if sys.platform != "linux":
        return None
    try:
        stats = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return stats.f_bavail * stats.f_frsize


@contextmanager
def hidden_main_module() -> Iterator[None]:
    """Hides the main program from processes that are started by ``spawn`` or ``forkserver`` in this context.

    They would import it again, which runs a script from its beginning if it is not guarded by ``if __name__ == "__main__"``.
    What they are sent must not refer to classes or functions of the main program, see :func:`refers_to_main`.
    """
    main = sys.modules[_MAIN]
    sys.modules[_MAIN] = ModuleType(_MAIN)
    try:
        yield
    finally:
        sys.modules[_MAIN] = main


def run_in_new_process(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process, and returns its result or raises its error.

    The process ignores the stop signals and is killed when this call ends: a signal to the whole group is reported once.

    Args:
        what: what the process does, for the error: "Measuring onnxruntime in fp32".
        function: a function of a module, but not of the main program.
        arguments: its arguments.

    Raises:
        WorkError: the process ended without a result, such as for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, *arguments), daemon=True)
    try:
        with blocked_signals(), hidden_main_module():
            process.start()
        sender.close()  # the child has the other copy; when that is closed, too, receiving ends
        result = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code == -signal.SIGKILL:
            raise WorkError(f"{what} was killed, most likely because memory ran out", "close other programs") from None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        raise WorkError(f"{what} {how}") from None
    finally:
        receiver.close()
        if process.pid is not None:
            process.kill()
            process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _send_result(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    ignore_stop_signals()
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001, raised in the main process
        result = error
    try:
        sender.send(result)
    except (TypeError, AttributeError, pickle.PicklingError):
        sender.send(WorkError(f"{type(result).__name__}: {result}"))


def refers_to_main(content: object) -> bool:
    """Returns whether pickled content refers to a class or a function of the main program.

    Raises:
        Exception: the content cannot be pickled; the type depends on its classes.
    """
    finder = _MainFinder()
    pickle.Pickler(finder, pickle.HIGHEST_PROTOCOL).dump(content)
    return finder.found


def main_is_guarded() -> bool:
    """Returns whether the main program can be imported by worker processes: it has no file, or a file that tests its name."""
    path = getattr(sys.modules[_MAIN], "__file__", None)
    if path is None:
        return True
    try:
        return b"__name__" in Path(path).read_bytes()
    except OSError:
        return True


class _MainFinder:
    """File that searches what is written for the name of the main module and keeps nothing."""

    def __init__(self) -> None:
        self.found = False

    def write(self, data: bytes | bytearray | memoryview | pickle.PickleBuffer) -> int:
        content = bytes(memoryview(data))  # a large array arrives as a buffer, which has no length
        self.found = self.found or _MAIN.encode() in content
        return len(content)
