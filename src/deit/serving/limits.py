"""Limits that are checked before memory is taken: size of a body, authorization, and whether the server accepts work."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deit.serving.metrics import Metrics
from deit.serving.problems import Problem, busy

BODY_MEMORY = 256 * 2**20  # bytes of the bodies of all requests, until each is answered; at least two of the largest
# Probes have no token, the page asks for it, and the description of the interface is no secret.
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
OPEN_FOLDER = "/page/"


class Limits:
    """ASGI middleware that refuses a request by its headers, and a body when it, or all bodies together, become too large.

    Args:
        app: the application.
        max_body: bytes of a request's body.
        token: bearer token that requests must have; None takes any request.
        metrics: counts the requests.
    """

    def __init__(self, app: ASGIApp, max_body: int, token: str | None, metrics: Metrics) -> None:
        self._app, self._max_body, self._metrics = app, max_body, metrics
        self._held, self._max_held = 0, max(BODY_MEMORY, 2 * max_body)
        self._authorization = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, started = 0, False

        async def watched_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(scope, message["status"])
            await send(message)

        try:
            self._check_headers(scope)
        except Problem as problem:
            await problem.response()(scope, receive, watched_send)
            return

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held += size
            if received > self._max_body:
                raise self._too_large()
            if self._held > self._max_held:
                raise busy(1)
            return message

        try:
            await self._app(scope, limited_receive, watched_send)
        except Problem as problem:
            if started:
                raise
            await problem.response()(scope, receive, watched_send)
        except Exception:
            if not started:
                self._count(scope, HTTPStatus.INTERNAL_SERVER_ERROR)  # Starlette answers outside of all middleware
            raise
        finally:
            self._held -= received

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, int(status)).inc()

    def _check_headers(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._authorization is not None and not scope["path"].startswith(OPEN_FOLDER) and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._authorization):
                raise Problem(HTTPStatus.UNAUTHORIZED, "The bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15:
            raise Problem(HTTPStatus.BAD_REQUEST, "The Content-Length is not a number")
        if int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> Problem:
        detail = f"The body has more than {self._max_body / 2**20:g} MiB: send fewer or smaller files"
        return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"Connection": "close"})
