"""`deit serve` as a program: requests, overload, clients that leave, and a signal under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from benchmarks.http_load import ServerProgram

from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomized, tiny_deit

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder") / "the model"
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit()), 0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("photos") / "a photo.png"
    pattern(400, 300).save(path)
    return path.read_bytes()


@pytest.fixture
def server(model: Path) -> Iterator[ServerProgram]:
    with ServerProgram(model, "--queue", "8") as program:
        yield program


def test_predictions_and_a_clean_end(server: ServerProgram, photo: bytes) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        response = client.post("/v1/predict", content=photo, headers=PNG)
        assert len(response.json()["images"][0]["predictions"]) == 5
        assert response.headers["content-type"] == "application/json"
        assert client.get("/v1/model").json()[0]["name"] == "the model"
    assert server.stop() == (0, "")


def test_overload_is_refused(server: ServerProgram, photo: bytes) -> None:
    end = time.monotonic() + 3

    def send(_number: int) -> Counter[int]:
        found: Counter[int] = Counter()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while time.monotonic() < end:
                files = [("files", ("a.png", photo))] * 4
                found[client.post("/v1/predict", files=files).status_code] += 1
        return found

    with ThreadPoolExecutor(12) as pool:
        statuses = sum(pool.map(send, range(12)), Counter[int]())
    assert {*statuses} == {200, 429}
    assert httpx.post(f"{server.url}/v1/predict", content=photo, headers=PNG, timeout=60).status_code == 200
    text = httpx.get(f"{server.url}/metrics").text
    assert 'deit_queued_images{model="the model"} 0.0' in text
    assert f'deit_requests_total{{route="/v1/predict",status="429"}} {float(statuses[429])}' in text


def test_clients_that_leave_free_their_places(server: ServerProgram, photo: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
    for content in (head, head + photo[: len(photo) // 2], head + photo):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(content)
    deadline = time.monotonic() + 60
    while 'deit_queued_images{model="the model"} 0.0' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert httpx.post(f"{server.url}/v1/predict", content=photo, headers=PNG, timeout=60).status_code == 200


def test_signal_under_load_loses_no_accepted_request(server: ServerProgram, photo: bytes) -> None:
    lost: list[str] = []
    answered: Counter[int] = Counter()
    started = threading.Barrier(5)

    def send() -> None:
        started.wait()
        while True:
            try:  # a connection per request: one that is refused was not accepted
                response = httpx.post(f"{server.url}/v1/predict", content=photo, headers=PNG, timeout=60)
                answered[response.status_code] += 1
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                lost.append(repr(error))
                return

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.5)
    assert server.stop() == (0, "")
    for thread in threads:
        thread.join()
    assert not lost
    assert answered[200] > 0 and {*answered} <= {200, 429, 503}


def test_two_signals_stop_at_once(server: ServerProgram) -> None:
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0


def test_mistakes(model: Path, server: ServerProgram) -> None:
    port = server.url.rpartition(":")[2]
    for arguments, message in (
        ([str(model), "--port", port], "Cannot listen on 127.0.0.1"),
        (["no such model"], "no such model"),
        ([str(model), str(model)], "Two models have the name"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "deit", "serve", *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 2
        assert message in result.stderr and "Traceback" not in result.stderr


def test_token_of_the_environment(model: Path, photo: bytes) -> None:
    with ServerProgram(model, environment={**os.environ, "DEIT_TOKEN": "a secret"}) as program:
        assert httpx.post(f"{program.url}/v1/predict", content=photo, headers=PNG).status_code == 401
        headers = {**PNG, "Authorization": "Bearer a secret"}
        assert httpx.post(f"{program.url}/v1/predict", content=photo, headers=headers, timeout=60).status_code == 200
        assert program.stop()[0] == 0
