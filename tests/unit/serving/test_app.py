"""The HTTP interface: predictions, limits before memory is taken, problem details, health and metrics."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from deit.evaluation.explanation import explain
from deit.images.processor import DeiTImageProcessor
from deit.inference.predictor import Predictor
from deit.models.timm_classifier import new_timm_classifier
from deit.serving.models import MAX_EXPLANATIONS
from tests.unit.serving.conftest import CLASSES, client_of, request

Serve = Callable[..., FastAPI]
PNG = {"Content-Type": "image/png"}


def assert_problem(response: httpx.Response, status: int, detail: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == status
    assert detail in content["detail"]


def test_image_as_the_body(serve: Serve, model: Path, photo: Path) -> None:
    response = request(serve(), "POST", "/v1/predict?top_k=2&heads=true", content=photo.read_bytes(), headers=PNG)
    assert response.status_code == 200
    content = response.json()
    assert content["model"] == "first"
    [row] = content["images"]
    expected = Predictor.from_pretrained(model, "cpu", exact=False)(photo, top=2)
    assert [guess["label"] for guess in row["predictions"]] == list(expected.labels)
    assert [guess["probability"] for guess in row["predictions"]] == pytest.approx(expected.probabilities, rel=1e-4)
    assert list(row["heads"]) == ["class", "distillation", "both"]
    assert row["heads"]["both"] == row["predictions"]


def test_files_of_a_form_and_one_that_is_no_image(serve: Serve, photo: Path) -> None:
    files = [
        ("files", (name, content, "image/png")) for name, content in (("a.png", photo.read_bytes()), ("b.png", b"nothing"))
    ]
    response = request(serve(), "POST", "/v1/predict", files=files)
    assert response.status_code == 200
    first, second = response.json()["images"]
    assert (first["image"], len(first["predictions"]), first["error"]) == ("a.png", len(CLASSES), None)
    assert (second["image"], second["predictions"]) == ("b.png", [])
    assert "image" in second["error"]


def test_single_image_that_is_none(serve: Serve) -> None:
    assert_problem(request(serve(), "POST", "/v1/predict", content=b"nothing", headers=PNG), 422, "image")
    assert_problem(request(serve(), "POST", "/v1/predict", content=b"", headers=PNG), 422, "is empty")


def test_image_with_too_many_pixels(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_MAX_PIXELS", "1000")
    content = io.BytesIO()
    Image.new("RGB", (40, 40)).save(content, "PNG")
    response = request(serve(), "POST", "/v1/predict", content=content.getvalue(), headers=PNG)
    assert_problem(response, 413, "1,000 are accepted")


@pytest.mark.parametrize(
    ("options", "status", "detail"),
    [
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "multipart/form-data"),
        ({"content": b"x"}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": [("files", ("a.png", b"x"))] * 3}, 413, "more than 2 files"),
        ({"data": {"field": "x"}, "files": {}}, 415, "multipart/form-data"),
        ({"content": b"x" * 2000, "headers": PNG}, 413, "more than"),
        ({"content": b"x", "headers": PNG, "params": {"top_k": "0"}}, 422, "top_k"),
        ({"content": b"x", "headers": PNG, "params": {"model": "other"}}, 404, "choose from first"),
    ],
)
def test_requests_that_are_refused(serve: Serve, options: dict[str, Any], status: int, detail: str) -> None:
    assert_problem(request(serve(max_body=1000, max_files=2), "POST", "/v1/predict", **options), status, detail)


def test_form_without_files(serve: Serve) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="field"\r\n\r\nvalue\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_problem(request(serve(), "POST", "/v1/predict", content=body, headers=headers), 422, "no files")


def test_body_without_a_length_is_refused_when_it_becomes_too_large(serve: Serve) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 500

    assert_problem(request(serve(max_body=1000), "POST", "/v1/predict", content=chunks(), headers=PNG), 413, "more than")


def test_slow_body(serve: Serve) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)
        yield b"x"

    app = serve(timeout=0.1)

    async def call() -> dict[str, Any]:
        messages: list[Any] = [{"type": "http.request", "body": b"x", "more_body": True}]
        found: dict[str, Any] = {}

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(5)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            found.update(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }
        await app(scope, receive, send)
        return found

    assert b"did not arrive within" in asyncio.run(call())["body"]


def test_token(serve: Serve, photo: Path) -> None:
    app = serve(token="a secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "a secret"}):
        response = request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers={**PNG, **headers})
        assert_problem(response, 401, "bearer token")
        assert response.headers["www-authenticate"] == "Bearer"
    authorized = {**PNG, "Authorization": "Bearer a secret"}
    assert request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=authorized).status_code == 200
    assert [request(app, "GET", path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]


def test_model_that_fails(serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = serve()

    def fail(_pixels: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeError("broken")

    monkeypatch.setattr(app.state.server.models.get(None), "_choose_runtime", lambda _images: fail)
    assert_problem(request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG), 500, "its log says why")
    monkeypatch.undo()
    assert request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG).status_code == 200


def test_classes_are_those_of_the_model_that_predicted(serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = serve()
    batchers = app.state.server.models._batchers
    first = batchers["first"]
    predict = first.predict

    async def replaced_meanwhile(images: Any) -> Any:
        outcomes = await predict(images)
        batchers["first"] = SimpleNamespace(predictor=SimpleNamespace(classes=("other",) * len(CLASSES)))
        return outcomes

    monkeypatch.setattr(first, "predict", replaced_meanwhile)
    [row] = request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG).json()["images"]
    batchers["first"] = first
    assert {guess["label"] for guess in row["predictions"]} == {*CLASSES}


def test_models(serve: Serve, model: Path, photo: Path) -> None:
    app = serve(paths={"first": str(model), "second": str(model)})
    first, second = request(app, "GET", "/v1/model").json()
    assert (first["name"], second["name"]) == ("first", "second")
    assert first["classes"] == list(CLASSES)
    assert (first["heads"], first["height"], first["runtime"]) == (["class", "distillation", "both"], 32, "torch")
    content = request(app, "POST", "/v1/predict?model=second", content=photo.read_bytes(), headers=PNG).json()
    assert content["model"] == "second"


def test_explanation(serve: Serve, model: Path, photo: Path) -> None:
    response = request(serve(), "POST", "/v1/explain?method=rollout&top_k=1", content=photo.read_bytes(), headers=PNG)
    content = response.json()
    [expected] = explain(model, [photo], method="rollout", top=1, device="cpu")
    assert (content["label"], content["method"], content["heads_agree"]) == (expected.label, "rollout", expected.heads_agree)
    for found, head in zip(content["heads"], expected.heads, strict=True):
        assert (found["head"], found["target"], len(found["predictions"])) == (head.head, head.target, 1)
        np.testing.assert_allclose(found["relevance"], head.relevance, atol=1e-5)
    assert content["similarity"] == pytest.approx(expected.similarity)


def test_explanations_that_are_refused(serve: Serve, photo: Path, tmp_path: Path) -> None:
    app = serve()
    assert_problem(request(app, "POST", "/v1/explain", content=b"nothing", headers=PNG), 422, "image")
    assert_problem(request(app, "POST", "/v1/explain?method=lime", content=photo.read_bytes(), headers=PNG), 422, "method")
    files = [("files", ("a.png", photo.read_bytes()))] * 2
    assert_problem(request(app, "POST", "/v1/explain", files=files), 413, "more than 1 file")
    network = new_timm_classifier("plain_convnet", CLASSES, DeiTImageProcessor.for_size(32, 32), {}, 0)
    network.save_pretrained(tmp_path / "network")
    app = serve(paths={"network": str(tmp_path / "network")})
    assert request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG).status_code == 200
    assert_problem(request(app, "POST", "/v1/explain", content=photo.read_bytes(), headers=PNG), 422, "no attention to patches")


def test_few_explanations_wait(serve: Serve, photo: Path) -> None:
    app = serve()

    async def send() -> list[list[int]]:
        async with client_of(app) as client:
            found = []
            for _ in range(2):  # places are free again
                responses = [client.post("/v1/explain", content=photo.read_bytes(), headers=PNG) for _ in range(8)]
                found.append([response.status_code for response in await asyncio.gather(*responses)])
            return found

    for statuses in asyncio.run(send()):
        assert {*statuses} == {200, 429}
        assert statuses.count(200) >= MAX_EXPLANATIONS


def test_draining_server_takes_no_more_work(serve: Serve, photo: Path) -> None:
    app = serve()
    assert request(app, "GET", "/readyz").status_code == 200
    app.state.server.is_draining = True
    for method, path in (("GET", "/readyz"), ("POST", "/v1/predict")):
        response = request(app, method, path, content=photo.read_bytes(), headers=PNG)
        assert_problem(response, 503, "is stopping")
        assert response.headers["retry-after"] == "5"
    assert request(app, "GET", "/healthz").status_code == 200


def test_metrics(serve: Serve, photo: Path) -> None:
    app = serve()
    request(app, "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG)
    request(app, "GET", "/nowhere")
    text = request(app, "GET", "/metrics").text
    for line in (
        'deit_requests_total{route="/v1/predict",status="200"} 1.0',
        'deit_requests_total{route="other",status="404"} 1.0',
        'deit_batch_images_count{model="first",reason="alone"} 1.0',
        'deit_queue_seconds_count{model="first"} 1.0',
        'deit_decode_seconds_count{model="first"} 1.0',
        'deit_model_seconds_count{model="first"} 1.0',
        'deit_queued_images{model="first"} 0.0',
    ):
        assert line in text


def test_openapi_describes_the_routes(serve: Serve) -> None:
    content = request(serve(), "GET", "/openapi.json").json()
    of_images = {"/v1/predict", "/v1/explain", "/v1/samples", "/v1/samples/{number}"}
    of_server = {"/healthz", "/readyz", "/metrics", "/v1/model"}
    assert {path for path in content["paths"] if not path.startswith("/v2")} == of_images | of_server
    predict = content["paths"]["/v1/predict"]["post"]
    assert {"200", "413", "415", "422", "429", "503"} <= {*predict["responses"]}
    assert {*predict["requestBody"]["content"]} == {"multipart/form-data", "application/octet-stream", "image/*"}
    assert request(serve(), "GET", "/nowhere").headers["content-type"] == "application/problem+json"
