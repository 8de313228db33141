"""Limits on the bodies of all requests together, and the count of requests that fail."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deit.serving import limits
from deit.serving.limits import Limits
from deit.serving.metrics import Metrics


def client_of(app: ASGIApp, metrics: Metrics) -> httpx.AsyncClient:
    limited = Limits(app, max_body=30, token=None, metrics=metrics)
    return httpx.AsyncClient(transport=httpx.ASGITransport(limited, raise_app_exceptions=False), base_url="http://server")


def test_bodies_together_are_limited_until_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_MEMORY", 100)

    async def send() -> list[list[int]]:
        may_answer = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await Request(scope, receive).body()
            await may_answer.wait()
            await Response()(scope, receive, send)

        found = []
        async with client_of(app, Metrics()) as client:
            for _ in range(2):
                may_answer.clear()
                requests = [asyncio.create_task(client.post("/", content=b"x" * 30)) for _ in range(4)]
                done, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                may_answer.set()
                found.append([response.status_code for response in await asyncio.gather(*requests)])
                assert [task.result().headers["retry-after"] for task in done] == ["1"]
        return found

    assert [sorted(statuses) for statuses in asyncio.run(send())] == 2 * [[200, 200, 200, 429]]


def test_requests_that_fail_are_counted() -> None:
    metrics = Metrics()

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("broken")

    async def send() -> None:
        async with client_of(app, metrics) as client:
            await client.get("/")

    asyncio.run(send())
    assert b'deit_requests_total{route="other",status="500"} 1.0' in metrics.text()
