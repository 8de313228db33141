"""The bodies of requests and responses of the Open Inference Protocol, as the OpenAPI description shows them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MODEL_VERSION = "1"  # a model that is replaced keeps its name and version
EXTENSIONS = ["binary_tensor_data"]
OUTPUT_DATATYPE = "FP32"

# A hostile list of millions of strings must not become millions of error messages.
_Row = Annotated[list[float], Field(fail_fast=True)]
_Channel = Annotated[list[_Row], Field(fail_fast=True)]
_Image = Annotated[list[_Channel], Field(fail_fast=True)]
_Batch = Annotated[list[_Image], Field(fail_fast=True)]
TensorData = Annotated[_Row | _Batch, Field(union_mode="left_to_right", description="Flat in row-major order, or nested.")]


class _Part(BaseModel):
    """A part of a request. Text is not taken for a number; unknown fields and parameters are ignored."""

    model_config = ConfigDict(strict=True)


class InputParameters(_Part):
    """Parameters of an input."""

    binary_data_size: Annotated[int, Field(ge=0, description="Bytes of the tensor after the JSON part.")] | None = None


class InferInput(_Part):
    """An input tensor, with ``data`` or with ``binary_data_size``."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: TensorData | None = None


class OutputParameters(_Part):
    """Parameters of a requested output."""

    binary_data: bool | None = None


class RequestedOutput(_Part):
    """An output to return."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Part):
    """Parameters of a request."""

    binary_data_output: Annotated[bool, Field(description="Return outputs as binary data unless they say otherwise.")] = False


class InferRequest(_Part):
    """The JSON part of an inference request. Without ``outputs``, all are returned."""

    id: str | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: list[InferInput]
    outputs: list[RequestedOutput] = []


class OutputTensor(BaseModel):
    """An output tensor, with ``data`` or with the parameter ``binary_data_size``."""

    name: str
    datatype: str = OUTPUT_DATATYPE
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferResponse(BaseModel):
    """The JSON part of an inference response."""

    model_name: str
    model_version: str = MODEL_VERSION
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; a size of -1 is variable."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model and its tensors."""

    name: str
    versions: list[str] = [MODEL_VERSION]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str] = EXTENSIONS


class ServerLive(BaseModel):
    """Whether the process is alive."""

    live: bool


class ServerReady(BaseModel):
    """Whether requests are accepted."""

    ready: bool


class ModelReady(BaseModel):
    """Whether requests for a model are accepted."""

    name: str
    ready: bool


class ErrorResponse(BaseModel):
    """An error of the protocol."""

    error: str


def _request_body() -> dict[str, Any]:
    """Describes the body, which the route reads itself, for OpenAPI."""
    schema = InferRequest.model_json_schema()
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _inlined(schema, schema["$defs"])},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Returns a JSON schema with its definitions in place: references would be looked for elsewhere in the description."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


def _errors(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    return {status.value: {"model": ErrorResponse, "description": status.phrase} for status in statuses}


SERVER_ERRORS = _errors(HTTPStatus.UNAUTHORIZED)
UNAVAILABLE = _errors(HTTPStatus.SERVICE_UNAVAILABLE)
MODEL_ERRORS = _errors(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
INFER_ERRORS = {
    **MODEL_ERRORS,
    **_errors(HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    **_errors(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.TOO_MANY_REQUESTS),
    **UNAVAILABLE,
}
INFER_BODY = _request_body()
