"""Runs the application on uvicorn, and stops it without losing accepted work."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from deit.serving.state import ServerState
from deit.system.garbage_collection import freeze_garbage_collection
from deit.system.progress import print_status

NOTICE_SECONDS = 1.0  # from an unready server to one that accepts no connection, so that a load balancer notices
SETTLE_SECONDS = 0.1  # between two looks at the connections
READ_SECONDS = 2.0  # for the first request of a connection that was accepted last
GRACE_SECONDS = 25  # for what was accepted
KEEP_ALIVE_SECONDS = 30  # for the headers of a request, from the start of a connection or the end of the last response
CLOSE = (b"connection", b"close")


class Connection(H11Protocol):
    """A connection that is closed when the headers of its next request do not arrive in time.

    uvicorn closes a connection that is idle after a response. It waits without limit for the first request, and for the rest of
    one that has begun.
    """

    _deadline = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time for the first request."""
        super().connection_made(transport)
        # Without it, the body of a response waits until the client acknowledges the headers, for 40 ms. asyncio sets it only
        # for sockets that name their protocol, which those of socket.create_server do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = self.loop.time() + self.timeout_keep_alive
        self._close_at_deadline()

    def data_received(self, data: bytes) -> None:
        """Reads what has arrived."""
        super().data_received(data)  # cancels the timeout, even if the headers are not complete
        self._close_at_deadline()

    def on_response_complete(self) -> None:
        """Starts the time for the next request."""
        self._deadline = self.loop.time() + self.timeout_keep_alive
        super().on_response_complete()

    def shutdown(self) -> None:
        """Closes the connection, once it is answered: the client is told, so that it sends no other request."""
        if self.cycle is not None:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]
        super().shutdown()

    def _close_at_deadline(self) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_waiting and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_at(self._deadline, self.timeout_keep_alive_handler)


class Server(uvicorn.Server):
    """A server that becomes unready on a signal, answers what it has accepted, and exits within 30 seconds.

    Args:
        app: what :func:`deit.serving.app.create_app` returned.
        announcement: is printed once requests are accepted.
    """

    def __init__(self, app: FastAPI, announcement: str) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._state: ServerState = app.state.server
        self._announcement = announcement
        self._stopped: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept requests."""
        freeze_garbage_collection()
        await super().startup(sockets)
        print_status(self._announcement)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts to stop; a second signal stops at once."""
        del sig, frame
        if self._stopped is not None:
            self.should_exit = self.force_exit = True
            return
        self._stopped, self._state.is_draining = time.monotonic(), True

    async def on_tick(self, counter: int) -> bool:
        """Is called ten times a second. Returns whether to accept no more connections."""
        if self._stopped is not None and time.monotonic() - self._stopped >= NOTICE_SECONDS:
            self.should_exit = True
        should_exit = await super().on_tick(counter)  # which renews the default headers every second
        if self._stopped is not None and CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, and stops.

        Closing a listening socket resets the connections that the system has accepted for it, so they are taken over first.
        """
        connections = [connection for listening in sockets or () for connection in _accept_all(listening)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in connections:
            with suppress(OSError):  # the client has left
                await loop.connect_accepted_socket(self._protocol, connection)
        deadline = loop.time() + READ_SECONDS
        await asyncio.sleep(SETTLE_SECONDS)
        while self._waits_for_first_request() and loop.time() < deadline:
            await asyncio.sleep(SETTLE_SECONDS)
        await super().shutdown(sockets)
        gc.unfreeze()

    def _waits_for_first_request(self) -> bool:
        connections = self.server_state.connections
        return any(isinstance(connection, Connection) and connection.cycle is None for connection in connections)

    def _protocol(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)


def _accept_all(listening: socket.socket) -> list[socket.socket]:
    """Returns the connections that wait at a non-blocking socket."""
    connections: list[socket.socket] = []
    with suppress(OSError):  # there are no more, or no more files can be opened
        while True:
            connections.append(listening.accept()[0])
    return connections
