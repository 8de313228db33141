"""The Open Inference Protocol: metadata, tensors in JSON and as binary data, refusals, and hostile requests."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deit.inference.predictor import Predictor
from deit.serving.app import create_app
from deit.serving.open_inference import JSON_LENGTH
from deit.serving.state import ServerSettings
from tests.helpers import pattern
from tests.unit.serving.conftest import CLASSES, client_of, request

Serve = Callable[..., FastAPI]
HEADS = ["class", "distillation", "both"]
SIDE = 32
SHAPE = [1, 3, SIDE, SIDE]
INFER = "/v2/models/first/infer"


def pixels(predictor: Predictor, count: int = 1) -> np.ndarray:
    """Returns different images (count, 3, SIDE, SIDE)."""
    return np.stack([predictor.preprocess(pattern(50, 40, number)) for number in range(count)])


def tensor(values: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Returns an input in JSON."""
    datatype = "UINT8" if values.dtype == np.uint8 else "FP32"
    found = {"name": "pixels", "shape": list(values.shape), "datatype": datatype, "data": values.ravel().tolist()}
    return {**found, **fields}


def binary(values: np.ndarray, size: int | None = None, **fields: Any) -> dict[str, Any]:
    """Returns the content and headers of a request with an input as binary data."""
    found = tensor(values, parameters={"binary_data_size": values.nbytes if size is None else size})
    del found["data"]
    head = json.dumps({"inputs": [found], **fields}).encode()
    headers = {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return {"content": head + values.tobytes(), "headers": headers}


def assert_error(response: httpx.Response, status: int, reason: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert [*content] == ["error"]
    assert reason in content["error"]


@pytest.fixture(scope="module")
def app(model: Path) -> Iterator[FastAPI]:
    made = create_app({"first": str(model)}, ServerSettings(queue=8))
    yield made
    made.state.server.models.close()


@pytest.fixture(scope="module")
def predictor(app: FastAPI) -> Predictor:
    found: Predictor = app.state.server.models.get(None).predictor
    return found


def test_server_and_its_health(app: FastAPI) -> None:
    server = request(app, "GET", "/v2").json()
    assert (server["name"], server["extensions"]) == ("deit", ["binary_tensor_data"])
    assert request(app, "GET", "/v2/health/live").json() == {"live": True}
    assert request(app, "GET", "/v2/health/ready").json() == {"ready": True}


def test_metrics_name_the_whole_route(serve: Callable[..., FastAPI]) -> None:
    app = serve()
    for path in ("/v2", "/v2/models/first/ready", "/v2/models/first/versions/1/ready"):
        assert request(app, "GET", path).status_code == 200
    text = request(app, "GET", "/metrics").text
    for route in ("/v2", "/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready"):
        assert f'deit_requests_total{{route="{route}",status="200"}} 1.0' in text


@pytest.mark.parametrize("path", ["/v2/models/first", "/v2/models/first/versions/1"])
def test_model_metadata(app: FastAPI, path: str) -> None:
    assert request(app, "GET", path).json() == {
        "name": "first",
        "versions": ["1"],
        "platform": "torch",
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, SIDE, SIDE]}],
        "outputs": [{"name": head, "datatype": "FP32", "shape": [-1, len(CLASSES)]} for head in HEADS],
    }
    assert request(app, "GET", f"{path}/ready").json() == {"name": "first", "ready": True}


@pytest.mark.parametrize("is_nested", [False, True])
def test_json_tensors(app: FastAPI, predictor: Predictor, is_nested: bool) -> None:
    images = pixels(predictor, 3)
    given_input = tensor(images, data=images.tolist()) if is_nested else tensor(images)
    body = {"id": "a request", "inputs": [given_input], "parameters": {"priority": 1}}
    response = request(app, "POST", "/v2/models/first/versions/1/infer", json=body)
    assert response.status_code == 200, response.text
    content = response.json()
    assert (content["model_name"], content["model_version"], content["id"]) == ("first", "1", "a request")
    expected = predictor.runtime(images)
    assert [output["name"] for output in content["outputs"]] == HEADS
    for output in content["outputs"]:
        assert (output["datatype"], output["shape"]) == ("FP32", [3, len(CLASSES)])
        logits = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_allclose(logits, expected[output["name"]], rtol=1e-4, atol=1e-5)


def test_binary_tensors(app: FastAPI, predictor: Predictor) -> None:
    images = pixels(predictor, 2)
    outputs = [{"name": "both", "parameters": {"binary_data": True}}, {"name": "class"}]
    response = request(app, "POST", INFER, **binary(images, outputs=outputs))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[JSON_LENGTH])
    both, cls = json.loads(response.content[:length])["outputs"]
    expected = predictor.runtime(images)
    assert both["parameters"] == {"binary_data_size": len(response.content) - length}
    logits = np.frombuffer(response.content[length:], "<f4").reshape(both["shape"])
    np.testing.assert_allclose(logits, expected["both"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.reshape(cls["data"], cls["shape"]), expected["class"], rtol=1e-4, atol=1e-5)


def test_all_outputs_as_binary_data_but_one(app: FastAPI, predictor: Predictor) -> None:
    outputs = [{"name": "both"}, {"name": "class", "parameters": {"binary_data": False}}]
    fields: dict[str, Any] = {"parameters": {"binary_data_output": True}}
    both, cls = _json_part(request(app, "POST", INFER, **binary(pixels(predictor), outputs=outputs, **fields)))
    assert "data" not in both and len(cls["data"]) == len(CLASSES)
    assert all(
        "data" not in output for output in _json_part(request(app, "POST", INFER, **binary(pixels(predictor), **fields)))
    )


def _json_part(response: httpx.Response) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = json.loads(response.content[: int(response.headers[JSON_LENGTH])])["outputs"]
    return outputs


def test_float_pixels(model: Path, photo: Path, serve: Serve) -> None:
    def load(path: str) -> Predictor:
        return Predictor.from_pretrained(path, crop="pad")

    app = serve(load)
    predictor = load(str(model))
    images = predictor.preprocess(photo)[None]
    assert request(app, "GET", "/v2/models/first").json()["inputs"][0]["datatype"] == "FP32"
    for options in ({"json": {"inputs": [tensor(images)]}}, binary(images)):
        outputs = request(app, "POST", INFER, **options).json()["outputs"]
        np.testing.assert_allclose(outputs[-1]["data"], predictor.runtime(images)["both"][0], rtol=1e-4, atol=1e-5)
    images[0, 0, 0, 0] = np.nan
    assert_error(request(app, "POST", INFER, **binary(images)), 400, "not finite")
    assert_error(request(app, "POST", INFER, json={"inputs": [tensor(images, data=[1e39] * images.size)]}), 400, "not finite")


ONE = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "inputs: Field required"),
        ({"inputs": []}, 400, "There are 0 inputs"),
        ({"inputs": [tensor(ONE), tensor(ONE)]}, 400, "There are 2 inputs: send one, 'pixels'"),
        ({"inputs": [tensor(ONE, name="image")]}, 400, "no input 'image': send 'pixels'"),
        ({"inputs": [tensor(ONE, datatype="INT64")]}, 400, "'INT64' is not supported"),
        ({"inputs": [tensor(ONE, datatype="FP32")]}, 400, "is UINT8, not FP32"),
        ({"inputs": [tensor(ONE[:, :, 1:])]}, 400, "[-1, 3, 32, 32], not [1, 3, 31, 32]"),
        ({"inputs": [tensor(ONE[0])]}, 400, "[-1, 3, 32, 32], not [3, 32, 32]"),
        ({"inputs": [tensor(ONE[:0])]}, 400, "not [0, 3, 32, 32]"),
        ({"inputs": [tensor(ONE, shape=[2, 3, 32, 32])]}, 400, "has the shape [3072], not [2, 3, 32, 32]"),
        ({"inputs": [tensor(ONE, shape=[10**300] * 4)]}, 400, "has the shape [3072]"),
        ({"inputs": [tensor(ONE, shape=[-1, 3, 32, 32])]}, 400, "greater than or equal to 0"),
        ({"inputs": [tensor(np.repeat(ONE, 9, 0))]}, 413, "more than 8 images"),
        ({"inputs": [tensor(ONE, data=[[[[1], [2, 3]]]])]}, 400, "nested in another way"),
        ({"inputs": [tensor(ONE, data=[[[[1, 2]]]])]}, 400, "has the shape [1, 1, 1, 2]"),
        ({"inputs": [tensor(ONE, data=["1"] * ONE.size)]}, 400, "data"),
        ({"inputs": [tensor(ONE, data=[0.5] * ONE.size)]}, 400, "integers in 0..255"),
        ({"inputs": [tensor(ONE, data=[256] * ONE.size)]}, 400, "integers in 0..255"),
        ({"inputs": [{key: value for key, value in tensor(ONE).items() if key != "data"}]}, 400, "either data or"),
        ({"inputs": [tensor(ONE, parameters={"binary_data_size": 3})]}, 400, "either data or"),
        ({"inputs": [tensor(ONE)], "outputs": [{"name": "other"}]}, 400, "choose from class, distillation, both"),
    ],
)
def test_requests_that_are_refused(app: FastAPI, body: dict[str, Any], status: int, reason: str) -> None:
    assert_error(request(app, "POST", INFER, json=body), status, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({JSON_LENGTH: "-1"}, "is not the length"),
        ({JSON_LENGTH: "²"}, "is not the length"),
        ({JSON_LENGTH: "9" * 30}, "is not the length"),
        ({JSON_LENGTH: "999999"}, "is not the length"),
        ({JSON_LENGTH: "10"}, "not an inference request: EOF"),
    ],
)
def test_header_lengths_that_are_refused(app: FastAPI, change: dict[str, str], reason: str) -> None:
    options = binary(ONE)
    headers = {**options["headers"], **change}
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert_error(request(app, "POST", INFER, content=options["content"], headers=encoded), 400, reason)


def test_binary_data_of_another_size(app: FastAPI) -> None:
    options = binary(ONE)
    assert_error(request(app, "POST", INFER, **{**options, "content": options["content"][:-1]}), 400, "binary data follow")
    assert_error(request(app, "POST", INFER, **binary(ONE, size=10)), 400, "3,072 bytes of binary data follow")
    short = tensor(ONE, shape=[2, 3, 32, 32], parameters={"binary_data_size": ONE.nbytes})
    head = json.dumps({"inputs": [{key: value for key, value in short.items() if key != "data"}]}).encode()
    headers = {JSON_LENGTH: str(len(head))}
    assert_error(request(app, "POST", INFER, content=head + ONE.tobytes(), headers=headers), 400, "has 6144 bytes, not 3072")


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v2/models/other", 404, "choose from first"),
        ("POST", "/v2/models/other/infer", 404, "choose from first"),
        ("GET", "/v2/models/first/versions/2", 404, "there is only 1"),
        ("POST", "/v2/models/first/versions/2/infer", 404, "there is only 1"),
        ("GET", "/v2/repository/index", 404, "Not Found"),
        ("GET", INFER, 405, "Method Not Allowed"),
    ],
)
def test_addresses_that_are_unknown(app: FastAPI, method: str, path: str, status: int, reason: str) -> None:
    assert_error(request(app, method, path), status, reason)


def test_errors_outside_the_protocol_stay_problem_details(app: FastAPI) -> None:
    for path in ("/v1/nothing", "/v20"):
        assert request(app, "GET", path).headers["content-type"] == "application/problem+json"


def test_limits_of_the_server(serve: Serve) -> None:
    assert_error(request(serve(max_body=1000), "POST", INFER, json={"inputs": [tensor(ONE)]}), 413, "more than")
    assert_error(request(serve(), "POST", INFER, content=b"x", headers={"Content-Encoding": "gzip"}), 415, "uncompressed")
    response = request(serve(token="a secret"), "POST", INFER, json={})
    assert_error(response, 401, "bearer token")
    assert response.headers["www-authenticate"] == "Bearer"


def test_full_queue(serve: Serve) -> None:
    app = serve(queue=1)

    async def send() -> list[httpx.Response]:
        async with client_of(app) as client:
            responses = [client.post(INFER, **binary(ONE)) for _ in range(40)]
            return await asyncio.gather(*responses)

    responses = asyncio.run(send())
    assert {response.status_code for response in responses} == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert_error(refused, 429, "is busy")
    assert int(refused.headers["retry-after"]) >= 1


def test_draining_server_takes_no_more_work(serve: Serve) -> None:
    app = serve()
    app.state.server.is_draining = True
    for method, path in (("GET", "/v2/health/ready"), ("GET", "/v2/models/first/ready"), ("POST", INFER)):
        response = request(app, method, path)
        assert_error(response, 503, "is stopping")
        assert response.headers["retry-after"] == "5"
    assert request(app, "GET", "/v2/health/live").status_code == 200


def test_logits_that_are_not_finite(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    app = serve()
    batcher = app.state.server.models.get(None)

    async def diverged(images: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [dict.fromkeys(HEADS, np.full(len(CLASSES), math.nan))] * len(images)

    monkeypatch.setattr(batcher, "predict_pixels", diverged)
    assert_error(request(app, "POST", INFER, **binary(ONE)), 422, "are not finite")


def test_openapi_describes_requests(app: FastAPI) -> None:
    paths = request(app, "GET", "/openapi.json").json()["paths"]
    infer = paths["/v2/models/{name}/versions/{version}/infer"]["post"]
    assert {parameter["name"] for parameter in infer["parameters"]} == {"name", "version"}
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["inputs"]["items"]["required"] == ["name", "shape", "datatype"]
    assert "$ref" not in json.dumps(schema)
    assert {"200", "400", "404", "413", "429", "503"} <= {*infer["responses"]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=8,
)
sizes = st.sampled_from([0, 1, 3, 32, 2**31, 2**64, 10**40, -1]) | st.integers()
hostile_tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("pixels") | st.text(max_size=8),
        "shape": st.just(SHAPE) | st.lists(sizes, max_size=9) | json_values,
        "datatype": st.sampled_from(["UINT8", "FP32", "BYTES", ""]) | json_values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": sizes | json_values}) | json_values,
        "data": st.just([0] * 3072) | st.lists(sizes, max_size=4) | json_values,
    },
)
hostile_requests = st.fixed_dictionaries(
    {"inputs": st.lists(hostile_tensors, max_size=2) | json_values},
    optional={"id": json_values, "parameters": json_values, "outputs": json_values},
)
header_lengths = st.none() | sizes.map(str) | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=6)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_no_failure(app: FastAPI, content: bytes, length: str | None) -> None:
    headers = {} if length is None else {JSON_LENGTH: length.encode("latin-1")}
    response = request(app, "POST", INFER, content=content, headers=headers)
    assert response.status_code < 500, response.text
    assert response.status_code == 200 or [*response.json()] == ["error"]


@relaxed
@given(body=hostile_requests, length=header_lengths, extra=st.binary(max_size=8))
def test_hostile_json(app: FastAPI, body: dict[str, Any], length: str | None, extra: bytes) -> None:
    head = json.dumps(body).encode()
    assert_no_failure(app, head + extra, length)
    assert_no_failure(app, head + extra, str(len(head)))


@relaxed
@given(content=st.binary(max_size=200) | st.text("[{", max_size=2000).map(str.encode), length=header_lengths)
def test_hostile_bytes(app: FastAPI, content: bytes, length: str | None) -> None:
    assert_no_failure(app, content, length)
