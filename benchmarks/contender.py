"""A process of its own for each of those who take their turns in a benchmark."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


class Contender:
    """A process with its own libraries, threads and memory, which rests but when it is asked.

    Args:
        serve: what it runs, with a connection and ``job``: it sends something once it is ready, then an answer to each
            question, and to None something last, with which it ends.
        job: its task.

    Attributes:
        ready: what it sent first.
    """

    def __init__(self, serve: Callable[[Connection, Any], None], job: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, job))
        self._process.start()
        theirs.close()
        self.ready: Any = self._connection.recv()

    def ask(self, question: Any) -> Any:
        """Its answer."""
        self._connection.send(question)
        return self._connection.recv()

    def end(self) -> Any:
        """What it sends last."""
        last = self.ask(None)
        self._process.join()
        return last
