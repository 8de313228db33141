"""Connections of the server: headers that do not arrive, and requests that come while it stops."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI

from deit.serving import server
from deit.serving.server import Server

Serve = Callable[..., FastAPI]
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


@contextmanager
def running(program: Server) -> Iterator[int]:
    """Runs a server in a thread, stops it at the end, and yields its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=program.run, args=([listening],))
    thread.start()
    try:
        yield port
    finally:
        program.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive()


def response(connection: socket.socket) -> bytes:
    """Returns a response, whose body is a JSON object."""
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65_536)
    return received


def closes(connection: socket.socket) -> bool:
    """Waits for data or the end of a connection, and returns whether it is the end."""
    try:
        return connection.recv(65_536) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> Iterator[int]:
    """The port of a server that waits a short time for headers."""
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.5)
    with running(Server(serve(), "")) as port:
        yield port


@pytest.mark.parametrize("start", [b"", b"G", REQUEST[:-2]])
def test_connection_is_closed_when_headers_do_not_arrive(impatient: int, start: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(start)
        assert closes(connection)


def test_connection_is_closed_when_headers_arrive_byte_by_byte(impatient: int) -> None:
    with connect(impatient) as connection:
        connection.sendall(REQUEST[:-2] + b"X: ")
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"x")
        assert closes(connection)


def test_connection_is_closed_when_it_is_idle_after_a_response(impatient: int) -> None:
    with connect(impatient) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            assert response(connection).startswith(b"HTTP/1.1 200")
        assert closes(connection)


def test_the_body_of_a_response_does_not_wait_for_an_acknowledgement(serve: Serve) -> None:
    program = Server(serve(), "")
    with running(program) as port, connect(port) as connection:
        connection.sendall(REQUEST)
        assert response(connection)
        [found] = program.server_state.connections
        assert found.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_answers_of_a_server_that_stops_close_the_connection(serve: Serve) -> None:
    program = Server(serve(), "")
    with running(program) as port, connect(port) as connection:
        program.handle_exit(signal.SIGTERM, None)
        answer = b""
        while b"connection: close" not in answer:
            time.sleep(0.01)
            connection.sendall(REQUEST)
            answer = response(connection)
        assert answer.startswith(b"HTTP/1.1 503")
        assert closes(connection)


def test_connection_that_the_system_has_accepted_is_answered(serve: Serve) -> None:
    connections: list[socket.socket] = []

    class StoppingServer(Server):
        """Stops with a connection that it has not seen yet."""

        async def on_tick(self, counter: int) -> bool:
            if self._stopped is None:
                return await super().on_tick(counter)
            connections.append(connect(port))
            connections[0].sendall(REQUEST)
            return True

    with running(StoppingServer(serve(), "")) as port:
        connect(port).close()
    assert response(connections[0]).startswith(b"HTTP/1.1 503")
    connections[0].close()
