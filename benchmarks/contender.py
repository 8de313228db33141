"""A process of its own for each contender of a benchmark."""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


class Contender:
    """A process with its own libraries, threads and memory, idle between requests.

    Args:
        serve: function that the process runs, called with a connection and ``job``. It sends one object when it is ready,
            then one reply per request; on the request None it sends a last object and returns.
        job: its task, any object that can be pickled.

    Attributes:
        ready: the object that the process sent when it was ready.
    """

    def __init__(self, serve: Callable[[Connection, Any], None], job: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(child_connection, job))
        self._process.start()
        child_connection.close()
        # If the benchmark fails, the process would wait for requests, and the interpreter for the process, forever.
        atexit.register(self._connection.close)
        self.ready: Any = self._connection.recv()

    def request(self, request: Any) -> Any:
        """Sends a request and returns the reply."""
        self._connection.send(request)
        return self._connection.recv()

    def stop(self) -> Any:
        """Ends the process and returns the last object that it sent."""
        last = self.request(None)
        self._process.join()
        return last
