"""The bodies of requests and responses, as the OpenAPI description shows them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from deit.serving.problems import MEDIA_TYPE


class Guess(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class ImagePrediction(BaseModel):
    """The prediction for an image, or why it has none."""

    image: str
    predictions: list[Guess] = []
    heads: dict[str, list[Guess]] | None = None
    error: str | None = None


class PredictResponse(BaseModel):
    """The predictions for the images of a request, in their order."""

    model: str
    images: list[ImagePrediction]


class Sample(BaseModel):
    """An image of the model's data."""

    number: int
    name: str
    label: str


class SamplesResponse(BaseModel):
    """Images of the model's data that it was not trained on; none if the data is not at hand."""

    model: str
    samples: list[Sample]


class HeadMap(BaseModel):
    """What a head predicts, and how much the logit of the target depends on each patch, row by row; the largest value is 1."""

    head: str
    predictions: list[Guess]
    target: str
    relevance: list[list[float]]


class ExplainResponse(BaseModel):
    """An explained prediction.

    ``layers`` has, for each layer and each token before the patches, the attention to each patch, row by row: the mean of the
    attention heads. ``view`` is the image as the model sees it, a PNG file as a data address.
    """

    model: str
    image: str
    label: str
    method: str
    heads_agree: bool
    heads: list[HeadMap]
    similarity: list[float]
    layers: list[list[list[list[float]]]] = []
    view: str | None = None


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    path: str
    classes: list[str]
    heads: list[str]
    height: int
    width: int
    runtime: str
    device: str


class ProblemDetails(BaseModel):
    """An error, as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status.value: {"content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}, "description": status.phrase}
    for status in (
        *(HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        *(
            HTTPStatus.REQUEST_TIMEOUT,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.TOO_MANY_REQUESTS,
        ),
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
