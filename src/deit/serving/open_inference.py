"""The Open Inference Protocol (V2, REST) beside ``/v1``: pixels in, logits out, in JSON or as binary tensor data.

A model has one input, that of its exported graph, and one output per head. The rows of a request wait in the queue of the model
one by one, like images, and leave it in the same batches.

Specifications: https://github.com/kserve/open-inference-protocol, and for the extension
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from enum import Enum
from http import HTTPStatus
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deit.errors import validation_problem
from deit.export.formats import INPUT_NAME
from deit.inference.bundle import InputDtype
from deit.inference.predictor import Predictor
from deit.serving.batching import Logits
from deit.serving.open_inference_schemas import (
    INFER_BODY,
    INFER_ERRORS,
    MODEL_ERRORS,
    MODEL_VERSION,
    OUTPUT_DATATYPE,
    SERVER_ERRORS,
    UNAVAILABLE,
    InferInput,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    OutputTensor,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from deit.serving.problems import MEDIA_TYPE, Problem, draining
from deit.serving.waiting import body_timeout, prediction_timeout, unless_disconnected, within
from deit.system.progress import plural

if TYPE_CHECKING:
    from deit.serving.state import ServerState

PREFIX = "/v2"
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON in a body that continues with binary tensors
MAX_LENGTH_DIGITS = 15
TAGS: list[str | Enum] = ["Open Inference Protocol"]
DATATYPES: dict[InputDtype, str] = {"uint8": "UINT8", "float32": "FP32"}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}


def add_routes(app: FastAPI, state: ServerState) -> None:
    """Adds the routes of the protocol, all below ``/v2``.

    Args:
        app: the application. Middleware that it already has comes inside the one that is added here.
        state: models and settings of the server.
    """
    app.add_middleware(ProtocolErrors)
    # JSON is read by one thread: it holds the GIL, and takes many times the memory of the body.
    reading = asyncio.Semaphore(1)
    app.include_router(_server_routes(state))
    app.include_router(_model_routes(state, reading, PREFIX + "/models/{name}"))
    versioned = PREFIX + "/models/{name}/versions/{version}"
    app.include_router(_model_routes(state, reading, versioned), dependencies=[Depends(_check_version)])


def _server_routes(state: ServerState) -> APIRouter:
    router = APIRouter(prefix=PREFIX, tags=TAGS)

    @router.get("", responses=SERVER_ERRORS)
    async def server_metadata() -> ServerMetadata:
        """The server and its extensions."""
        return ServerMetadata(name="deit", version=package_version("deit"))

    @router.get("/health/live")
    async def server_live() -> ServerLive:
        """Whether the process is alive."""
        return ServerLive(live=True)

    @router.get("/health/ready", responses=UNAVAILABLE)
    async def server_ready() -> ServerReady:
        """Whether requests are accepted."""
        _check_accepts(state)
        return ServerReady(ready=True)

    return router


def _model_routes(state: ServerState, reading: asyncio.Semaphore, prefix: str) -> APIRouter:
    router = APIRouter(prefix=prefix, tags=TAGS)
    seconds = state.settings.timeout

    @router.get("", responses=MODEL_ERRORS)
    async def model_metadata(name: str) -> ModelMetadata:
        """The tensors of a model."""
        return _metadata(name, state.models.get(name).predictor)

    @router.get("/ready", responses={**MODEL_ERRORS, **UNAVAILABLE})
    async def model_ready(name: str) -> ModelReady:
        """Whether requests for a model are accepted."""
        _check_accepts(state)
        state.models.get(name)
        return ModelReady(name=name, ready=True)

    @router.post("/infer", response_model=InferResponse, responses=INFER_ERRORS, openapi_extra=INFER_BODY)
    async def infer(name: str, request: Request) -> Response:
        """Compute the logits of preprocessed images."""
        _check_accepts(state)
        state.models.get(name)  # an unknown name is an error before the body is read
        _check_encoding(request)
        body = await within(seconds, body_timeout(seconds), request.body())
        work = run(name, body, request.headers.get(JSON_LENGTH))
        return await within(seconds, prediction_timeout(seconds), unless_disconnected(request, work))

    async def run(name: str, body: bytes, json_length: str | None) -> Response:
        async with reading:
            parsed, pixels = await asyncio.to_thread(read_request, body, json_length)
        batcher = state.models.get(name)  # no other model takes its place before the images wait
        _check_input(batcher.predictor, parsed.inputs[0], state.settings.queue)
        is_binary = _requested(parsed, batcher.predictor.runtime.heads)
        rows = await batcher.predict_pixels(pixels)
        return await asyncio.to_thread(_encode_response, name, parsed.id, rows, is_binary)

    return router


def read_request(body: bytes, json_length: str | None) -> tuple[InferRequest, np.ndarray]:
    """Reads the body of an inference request.

    Args:
        body: the JSON part, and the binary tensor data after it, if any.
        json_length: length of the JSON part, as the header says it; None if it is the whole body.

    Returns:
        The JSON part, and the input in the shape and type that the request declares.

    Raises:
        Problem: the body is not a request with one tensor, or its parts do not fit together.
    """
    length = len(body) if json_length is None else _parsed_length(json_length, len(body))
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        raise _bad_request(f"The JSON part is not an inference request: {validation_problem(error)}") from None
    if len(request.inputs) != 1:
        raise _bad_request(f"There are {plural(len(request.inputs), 'input')}: send one, {INPUT_NAME!r}")
    return request, _read_tensor(request.inputs[0], memoryview(body)[length:])


def _parsed_length(header: str, limit: int) -> int:
    is_number = header.isascii() and header.isdecimal() and len(header) <= MAX_LENGTH_DIGITS
    if not is_number or int(header) > limit:
        raise _bad_request(f"{JSON_LENGTH} is not the length of a part of the body")
    return int(header)


def _read_tensor(tensor: InferInput, binary: memoryview) -> np.ndarray:
    """Returns the values of a tensor in its shape. All sizes are compared before an array is made."""
    dtype = NUMPY_TYPES.get(tensor.datatype)
    if dtype is None:
        raise _bad_request(f"The datatype {tensor.datatype!r} is not supported: send {' or '.join(NUMPY_TYPES)}")
    size, binary_size = math.prod(tensor.shape), tensor.parameters.binary_data_size
    if (tensor.data is None) == (binary_size is None):
        raise _bad_request(f"The input {tensor.name!r} needs either data or the parameter binary_data_size")
    if len(binary) != (binary_size or 0):
        raise _bad_request(f"{plural(len(binary), 'byte')} of binary data follow, not {binary_size or 0}")
    if tensor.data is not None:
        values = _read_json_values(tensor.data, tensor.shape, dtype)
    elif len(binary) == size * dtype.itemsize:
        values = np.frombuffer(binary, dtype)
    else:
        raise _bad_request(f"A tensor of the shape {tensor.shape} has {size * dtype.itemsize} bytes, not {len(binary)}")
    if not np.isfinite(values).all():
        raise _bad_request(f"The input {tensor.name!r} has values that are not finite")
    return values.reshape(tensor.shape)


def _read_json_values(data: list[Any], shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns values of JSON, flat or in their shape."""
    try:
        values = np.array(data, np.float64)
    except ValueError:  # lists of different lengths
        raise _bad_request(f"The data is nested in another way than the shape {list(shape)}") from None
    is_nested = values.ndim > 1
    if values.size != math.prod(shape) or (is_nested and values.shape != tuple(shape)):
        raise _bad_request(f"The data has the shape {list(values.shape)}, not {list(shape)}")
    if dtype.kind == "u" and not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise _bad_request("The data of a UINT8 tensor has values that are not integers in 0..255")
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return values.astype(dtype)


def _check_input(predictor: Predictor, tensor: InferInput, max_batch: int) -> None:
    """Compares a tensor with the input of a model.

    Raises:
        Problem: they differ, or the batch is empty or larger than the queue.
    """
    expected = _input_metadata(predictor)
    if tensor.name != expected.name:
        raise _bad_request(f"There is no input {tensor.name!r}: send {expected.name!r}")
    if tensor.datatype != expected.datatype:
        raise _bad_request(f"The input {expected.name!r} is {expected.datatype}, not {tensor.datatype}")
    if len(tensor.shape) != len(expected.shape) or tensor.shape[1:] != expected.shape[1:] or not tensor.shape[0]:
        raise _bad_request(f"The input {expected.name!r} has the shape {expected.shape}, not {tensor.shape}")
    if tensor.shape[0] > max_batch:
        detail = f"There are more than {plural(max_batch, 'image')}: send them in several requests"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def _requested(request: InferRequest, heads: Sequence[str]) -> dict[str, bool]:
    """Returns the outputs to return, and whether each is binary data."""
    default = request.parameters.binary_data_output
    is_binary: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in heads:
            raise _bad_request(f"There is no output {output.name!r}: choose from {', '.join(heads)}")
        binary_data = output.parameters.binary_data
        is_binary[output.name] = default if binary_data is None else binary_data
    return is_binary or dict.fromkeys(heads, default)


def _encode_response(name: str, request_id: str | None, rows: Sequence[Logits], is_binary: dict[str, bool]) -> Response:
    """Returns the logits of the images, each output in JSON or after it."""
    outputs, binary = [], b""
    for head, as_bytes in is_binary.items():
        logits = np.stack([row[head] for row in rows])  # (B, K)
        if not np.isfinite(logits).all():
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"The logits of {head!r} are not finite: check the pixels")
        output = OutputTensor(name=head, shape=list(logits.shape))
        if as_bytes:
            output.parameters = {"binary_data_size": logits.nbytes}
            binary += logits.astype("<f4").tobytes()
        else:
            output.data = logits.ravel().tolist()
        outputs.append(output)
    response = InferResponse(model_name=name, id=request_id, outputs=outputs)
    content = response.model_dump_json(exclude_none=True).encode()
    if not any(is_binary.values()):
        return Response(content, media_type="application/json")
    return Response(content + binary, media_type="application/octet-stream", headers={JSON_LENGTH: str(len(content))})


def _metadata(name: str, predictor: Predictor) -> ModelMetadata:
    shape = [-1, len(predictor.classes)]
    outputs = [TensorMetadata(name=head, datatype=OUTPUT_DATATYPE, shape=shape) for head in predictor.runtime.heads]
    return ModelMetadata(name=name, platform=predictor.runtime.name, inputs=[_input_metadata(predictor)], outputs=outputs)


def _input_metadata(predictor: Predictor) -> TensorMetadata:
    return TensorMetadata(name=INPUT_NAME, datatype=DATATYPES[predictor.input_dtype], shape=[-1, *predictor.input_shape])


def _check_accepts(state: ServerState) -> None:
    if state.is_draining:
        raise draining()


async def _check_version(version: str) -> None:
    if version != MODEL_VERSION:
        raise Problem(HTTPStatus.NOT_FOUND, f"Unknown version {version!r}: there is only {MODEL_VERSION}")


def _check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Compressed bodies are not supported: send it uncompressed")


def _bad_request(detail: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, detail)


class ProtocolErrors:
    """ASGI middleware that turns problem details below ``/v2`` into ``{"error": ...}``, wherever they come from.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PREFIX}/"):
            await self._app(scope, receive, send)
            return
        start: Message | None = None  # of problem details; sent when their length is known

        async def translated_send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and Headers(raw=message["headers"]).get("content-type") == MEDIA_TYPE:
                start = message
                return
            if start is not None:
                content = json.dumps({"error": json.loads(message["body"])["detail"]}).encode()
                headers = MutableHeaders(raw=start["headers"])
                headers["content-type"], headers["content-length"] = "application/json", str(len(content))
                await send(start)
                start, message = None, {**message, "body": content}
            await send(message)

        await self._app(scope, receive, translated_send)
