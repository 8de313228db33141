"""Awaits what a request needs: not longer than it may take, and not for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from http import HTTPStatus
from typing import TypeVar

from starlette.requests import Request

from deit.serving.problems import Problem

T = TypeVar("T")

DISCONNECT_SECONDS = 0.2  # how often a client that leaves is looked for


def body_timeout(seconds: float) -> Problem:
    """Returns the problem of a body that arrives too slowly."""
    detail = f"The body did not arrive within {seconds:g} s: send smaller files"
    return Problem(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"})


def prediction_timeout(seconds: float) -> Problem:
    """Returns the problem of a prediction that takes too long."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"No answer within {seconds:g} s: try again later", {"Retry-After": "5"})


def client_has_left() -> Problem:
    """Returns the problem of a client that has closed its connection; nobody reads it."""
    return Problem(HTTPStatus.BAD_REQUEST, "The client has left")


async def within(seconds: float, problem: Problem, work: Awaitable[T]) -> T:
    """Awaits work, and raises a problem if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise problem from None


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Awaits work, and cancels it if the client leaves meanwhile.

    Raises:
        Problem: the client has left.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=DISCONNECT_SECONDS)
            if not task.done() and await request.is_disconnected():
                raise client_has_left()
        return await task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
