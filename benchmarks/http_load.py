"""``deit serve`` as a program, and clients that load it over the loopback.

The clients share the cores with the server, so they are cheap: plain sockets of asyncio, and of a response only its status and
its end are read.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

HOST = "127.0.0.1"
STOP_SECONDS = 40  # until a server that was told to stop is taken for hanging
CONTENT_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class ServerProgram:
    """A running ``deit serve``, which is killed at the end of the context.

    Args:
        model: path of the model.
        options: further arguments of the command.
        environment: of the program; None is that of this process.

    Attributes:
        process: the program.
        port: that it listens on.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, model: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "deit", "serve", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        announcement = self.process.stderr.readline()
        _, colon, port = announcement.rpartition(":")
        if not colon or not port.strip().isdigit():
            self.process.kill()
            raise RuntimeError(f"The server does not start: {announcement}{self.process.communicate()[1]}")
        self.port = int(port)
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))  # a full pipe would block the program
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.kill()
        self.wait()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://{HOST}:{self.port}"

    def memory(self, field: str = "VmRSS") -> float:
        """Returns the resident memory in MB: ``VmRSS`` now, or ``VmHWM`` at its highest."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> tuple[int, str]:
        """Sends SIGTERM, and waits as :meth:`wait` does."""
        self.terminate()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Waits for the end of the program. Returns its exit code, and what it has printed since it started."""
        code = self.process.wait(STOP_SECONDS)
        self._reader.join()
        return code, "".join(self._log)

    def _read(self, errors: IO[str]) -> None:
        with errors:
            self._log.extend(errors)


class Connection(asyncio.Protocol):
    """A connection that takes one request at a time.

    Attributes:
        is_open: whether it takes another request.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._received = bytearray()
        self._status: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connects to a server."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return connection

    async def send(self, request: bytes) -> int:
        """Sends a request, and returns the status of the response.

        Raises:
            ConnectionError: the connection ends before the response does.
        """
        assert self._transport is not None and self.is_open
        self._status = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._status

    def close(self) -> None:
        """Closes the connection."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Is called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        """Is called by the event loop."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]) or self._status is None:
            return
        self.is_open = b"connection: close" not in head.lower()
        self._received.clear()
        self._status.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        """Is called by the event loop."""
        self.is_open = False
        if self._status is not None and not self._status.done():
            self._status.set_exception(ConnectionResetError(f"No response: {error or 'the connection was closed'}"))


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: its HTTP status.
        seconds: from sending the request to the end of the response.
    """

    status: int
    seconds: float


def post(content: bytes, media_type: str, path: str = "/v1/predict", length: int | None = None) -> bytes:
    """Returns a request.

    Args:
        content: its body.
        media_type: of the body.
        path: and query of the route.
        length: that the header claims; None is the length of the body.
    """
    size = len(content) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {media_type}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + content


async def send_all(port: int, requests: Iterable[bytes], clients: int) -> list[Answer]:
    """Sends requests by clients of which each waits for its answer before it sends the next one.

    Returns:
        The answers, in the order in which they arrive.
    """
    answers: list[Answer] = []
    waiting = iter(requests)

    async def client() -> None:
        connection = await Connection.open(port)
        for request in waiting:
            if not connection.is_open:
                connection.close()
                connection = await Connection.open(port)
            answers.append(await _timed(connection, request))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def send_at_rate(port: int, request: bytes, rate: float, seconds: float) -> list[Answer]:
    """Sends a request again and again at a constant rate, whether or not earlier ones are answered.

    Args:
        port: of the server.
        request: what is sent.
        rate: requests per second.
        seconds: how long.

    Returns:
        The answers, in the order in which they arrive.
    """
    answers: list[Answer] = []
    idle: list[Connection] = []

    async def send() -> None:
        while idle and not idle[-1].is_open:  # the server closes those that are idle for long
            idle.pop()
        connection = idle.pop() if idle else await Connection.open(port)
        answers.append(await _timed(connection, request))
        idle.append(connection)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(start + number / rate - time.perf_counter(), 0))
            tasks.create_task(send())
    for connection in idle:
        connection.close()
    return answers


async def _timed(connection: Connection, request: bytes) -> Answer:
    start = time.perf_counter()
    status = await connection.send(request)
    return Answer(status, time.perf_counter() - start)
