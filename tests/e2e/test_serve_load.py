"""`deit serve` under load, and with clients that are slow, leave, or send what they should not.

The first three tests are short versions of ``python -m benchmarks.serving_load``.
"""

from __future__ import annotations

import asyncio
import io
import random
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from benchmarks import hostile_images, serving_load
from benchmarks.http_load import HOST, ServerProgram, post

from tests.damage import damaged
from tests.helpers import pattern

MAX_PIXELS = 25_000_000
HOSTILE = (
    *("PNG with texts of 100 MB", "PNG with a profile of 100 MB", "PNG, 10^6 x 1", "PNG, 65,535 x 1", "PNG, 1 x 65,535"),
    *("1-bit PNG", "small JPEG of 100,000 scans", "TIFF of 5,000 tags", "RLE BMP, empty rows", "RLE BMP, 178 Mpx"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
MALFORMED = (
    *(b"\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n"),
    *(b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /%00%ff?model=%ff HTTP/1.1\r\nHost: x\r\n\r\n"),
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"f" * 18
    + b"\r\n",
    b"GET /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_load.save_model(serving_load.published_model(), tmp_path_factory.mktemp("published") / "model")


@pytest.fixture(scope="module")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_load.save_model(serving_load.minimal_model(), tmp_path_factory.mktemp("minimal") / "model")


@pytest.fixture(scope="module")
def server(minimal: Path) -> Iterator[ServerProgram]:
    """A server that gives requests up after three seconds."""
    options = ("--timeout", "3", "--max-body", str(serving_load.MAX_BODY_MIB), "--max-pixels", str(MAX_PIXELS))
    with ServerProgram(minimal, *options) as program:
        yield program


def saved(file_format: str) -> bytes:
    content = io.BytesIO()
    pattern(50, 40).save(content, file_format)
    return content.getvalue()


PNG = saved("PNG")
REQUEST = post(PNG, "image/png")


def predict(server: ServerProgram, content: bytes) -> int:
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.post(f"{server.url}/v1/predict", content=content, headers=headers, timeout=60).status_code


def connect(server: ServerProgram) -> socket.socket:
    return socket.create_connection((HOST, server.port), timeout=60)


def status(answer: bytes) -> int | None:
    """Returns the status of an answer; None if there is none."""
    return int(answer.split()[1]) if answer else None


def assert_serves(server: ServerProgram) -> None:
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
    assert predict(server, PNG) == 200


def test_ten_times_overload(published: Path) -> None:
    with ServerProgram(published, "--queue", "32") as server:
        result = serving_load.measure_overload(server, seconds=4)
        assert_serves(server)
    assert {"200", "429"} <= {*result["statuses"]} <= {"200", "429", "503"}
    assert result["refusal_ms"]["p50"] < serving_load.REFUSAL_MS
    assert result["memory_mb"]["after"] - result["memory_mb"]["before"] < 100


def test_memory_does_not_grow_with_requests(minimal: Path) -> None:
    with ServerProgram(minimal, "--max-body", str(serving_load.MAX_BODY_MIB)) as server:
        result = serving_load.measure_endurance(server, requests=2_000, warm_up=1_000)
    assert result["unexpected"] == 0
    assert result["memory_mb"]["after"] - result["memory_mb"]["before"] < serving_load.GROWTH_MB


def test_signals_under_load(published: Path) -> None:
    result = serving_load.measure_stops(published, 2, random.Random(0))
    assert (result["lost"], result["failed"]) == (0, 0)
    assert {"200"} <= {*result["statuses"]} <= {"200", "429", "503"}
    assert result["seconds"]["max"] < serving_load.STOP_SECONDS


def test_slow_bodies_are_given_up_while_others_are_served(server: ServerProgram) -> None:
    found: Counter[int | None] = Counter()
    with ExitStack() as stack:
        slow = {stack.enter_context(connect(server)) for _ in range(50)}
        for connection in slow:
            connection.sendall(REQUEST[: -len(PNG)])
        for byte in PNG:
            assert predict(server, PNG) == 200
            answered, _, _ = select.select(slow, [], [], 0)
            found.update(status(connection.recv(65_536)) for connection in answered)
            slow -= {*answered}
            for connection in slow:
                connection.sendall(bytes([byte]))
            if not slow:
                break
    assert found == {408: 50}


def test_connections_that_are_half_open_or_cut(server: ServerProgram) -> None:
    parts = (b"", REQUEST[:1], REQUEST[:40], REQUEST[: -len(PNG)], REQUEST[:-1], REQUEST, 3 * REQUEST)
    connections = [connect(server) for _ in range(50 * len(parts))]
    for number, connection in enumerate(connections):
        connection.sendall(parts[number % len(parts)])
    assert_serves(server)
    for connection in connections[::2]:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset instead of an end
    for connection in connections:
        connection.close()
    assert_serves(server)


def test_malformed_requests(server: ServerProgram) -> None:
    async def send(request: bytes) -> int | None:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(request)
        answer = b""
        with suppress(TimeoutError, ConnectionError):  # it waits for more, or closes the connection
            async with asyncio.timeout(10):
                answer = await reader.read(65_536)
        writer.close()
        return status(answer)

    async def send_all() -> list[int | None]:
        return await asyncio.gather(*map(send, (*MALFORMED, *damaged(REQUEST, 300))))

    found = {*asyncio.run(send_all())}
    assert {200, 400, 422} <= found
    assert all(code is None or code < 500 for code in found)
    assert_serves(server)


def test_hostile_images(server: ServerProgram) -> None:
    assert_serves(server)
    before = server.memory()
    files = [b"".join(hostile_images.FILES[name]()) for name in HOSTILE]
    files += [version for file_format in FORMATS for version in damaged(saved(file_format), 60)]
    found = Counter(predict(server, content) for content in files)
    assert {200, 413, 422} <= {*found} <= {200, 413, 422}
    assert_serves(server)
    assert server.memory("VmHWM") - before < 4 * 3 * MAX_PIXELS / 1e6
