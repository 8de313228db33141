"""The HTTP interface: predictions, the models, health and metrics. Errors are problem details."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from deit.errors import ImageError, ImageTooLargeError
from deit.evaluation.explanation import Explanation, Method
from deit.inference.logits import softmax
from deit.inference.predictor import Predictor
from deit.serving import open_inference
from deit.serving.batching import Logits, Outcome
from deit.serving.limits import Limits
from deit.serving.models import Load
from deit.serving.page import add_page
from deit.serving.problems import Problem, draining
from deit.serving.samples import MAX_SAMPLES
from deit.serving.schemas import (
    BODY,
    PROBLEMS,
    ExplainResponse,
    Guess,
    ImagePrediction,
    ModelInfo,
    PredictResponse,
    Sample,
    SamplesResponse,
)
from deit.serving.state import ServerSettings, ServerState
from deit.serving.waiting import body_timeout, client_has_left, prediction_timeout, unless_disconnected, within
from deit.system.progress import plural

WATCH_SECONDS = 2.0
ATTENTION_DIGITS = 5


ModelName = Annotated[
    str | None, Query(alias="model", max_length=200, description="Name of the model; the first one if omitted.")
]


def create_app(
    paths: dict[str, str], settings: ServerSettings | None = None, load: Load = Predictor.from_pretrained
) -> FastAPI:
    """Creates the application. Its models are opened now, and closed when the server stops.

    Args:
        paths: path or name of each model, by the name that it is served under; the first one is the default.
        settings: what the server accepts.
        load: opens a model.

    Raises:
        DeiTError: a model or a data set cannot be opened.
    """
    settings = settings or ServerSettings()
    state = ServerState(paths, settings, load)
    state.models.open()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(state.models.watch(WATCH_SECONDS))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await asyncio.to_thread(state.models.close)

    app = FastAPI(title="deit", version=version("deit"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    app.add_middleware(Limits, max_body=settings.max_body, token=settings.token, metrics=state.metrics)
    _add_errors(app)
    _add_information(app, state)
    _add_inference(app, state)
    open_inference.add_routes(app, state)
    add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return Problem(HTTPStatus(error.status_code), str(error.detail), dict(error.headers or {})).response()

    @app.exception_handler(ClientDisconnect)
    async def left(_request: Request, _error: ClientDisconnect) -> Response:
        return client_has_left().response()

    @app.exception_handler(Exception)
    async def failure(_request: Request, _error: Exception) -> Response:
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log says why").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['loc'][-1]}: {first['msg']}").response()


def _chosen(state: ServerState, name: str | None) -> str:
    """Returns the name of a model; None is the default one.

    Raises:
        Problem: it is unknown.
    """
    name = name or state.models.names[0]
    state.models.get(name)
    return name


def _add_information(app: FastAPI, state: ServerState) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        """Whether requests are accepted."""
        if state.is_draining:
            raise draining()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={401: PROBLEMS[401]})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model", responses={401: PROBLEMS[401]})
    async def model() -> list[ModelInfo]:
        """The served models; the first one is the default."""
        return [_model_info(name, state.models.paths[name], state.models.get(name).predictor) for name in state.models.names]

    @app.get("/v1/samples", responses=PROBLEMS)
    async def samples(model_name: ModelName = None) -> SamplesResponse:
        """Images of the model's data to try it on."""
        name = _chosen(state, model_name)
        found = await asyncio.to_thread(state.samples[name].entries)
        return SamplesResponse(model=name, samples=[Sample(number=n, name=image, label=label) for n, image, label in found])

    @app.get("/v1/samples/{number}", responses={**PROBLEMS, 200: {"content": {"image/png": {}}}}, response_class=Response)
    async def sample(number: Annotated[int, Path(ge=0, lt=MAX_SAMPLES)], model_name: ModelName = None) -> Response:
        """One of these images, reduced if it is large."""
        name = _chosen(state, model_name)
        try:
            content = await asyncio.to_thread(state.samples[name].load, number)
        except ImageError as error:
            raise _image_problem(error) from None
        return Response(content, media_type="image/png")


def _add_inference(app: FastAPI, state: ServerState) -> None:
    seconds = state.settings.timeout
    late, slow = body_timeout(seconds), prediction_timeout(seconds)

    @app.post("/v1/predict", responses=PROBLEMS, openapi_extra=BODY)
    async def predict(
        request: Request,
        response: Response,
        model_name: ModelName = None,
        top_k: Annotated[int, Query(ge=1, le=1000, description="Classes per image.")] = 5,
        heads: Annotated[bool, Query(description="Also return the predictions of each head.")] = False,
    ) -> PredictResponse:
        """Classify images: files of a form, or one image as the body."""
        if state.is_draining:
            raise draining()
        name = _chosen(state, model_name)  # an unknown name is an error before the body is read
        images = await within(seconds, late, read_images(request, state.settings.max_files))
        start = time.monotonic()
        prediction = unless_disconnected(request, state.models.predict(name, images))
        classes, outcomes = await within(seconds, slow, prediction)
        response.headers["Server-Timing"] = f"predict;dur={1000 * (time.monotonic() - start):.1f}"
        if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
            raise _image_problem(outcomes[0])
        rows = [_row(image, outcome, classes, top_k, heads) for (image, _), outcome in zip(images, outcomes, strict=True)]
        return PredictResponse(model=name, images=rows)

    @app.post("/v1/explain", responses=PROBLEMS, openapi_extra=BODY)
    async def explain(
        request: Request,
        model_name: ModelName = None,
        top_k: Annotated[int, Query(ge=1, le=1000, description="Classes per head.")] = 3,
        method: Annotated[Method, Query(description="How relevance is computed.")] = "gradient",
        details: Annotated[bool, Query(description="Also return the attention of each layer, and the image.")] = False,
    ) -> ExplainResponse:
        """Show where the tokens of an image look: the body, or the only file of a form."""
        if state.is_draining:
            raise draining()
        name = _chosen(state, model_name)
        [(_, content)] = await within(seconds, late, read_images(request, 1))
        try:
            explanation = await within(seconds, slow, state.models.explain(name, content, method, top_k))
        except ImageError as error:
            raise _image_problem(error) from None
        return ExplainResponse(model=name, **explanation.to_dict(), **(_details(explanation) if details else {}))


async def read_images(request: Request, max_files: int) -> list[tuple[str, bytes]]:
    """Returns names and contents of the images of a request: the files of a form, or the body.

    Raises:
        Problem: the request has no image or too many, or its media type is not supported.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        content = await request.body()
        if not content:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The body is empty: send an image file")
        return [("image", content)]
    if media_type != "multipart/form-data":
        detail = "Send an image file as the body, with its media type, or files as multipart/form-data"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    try:
        async with request.form(max_files=max_files, max_fields=max_files) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The form has no files: add one per image")
            return [(file.filename or f"image {number}", await file.read()) for number, file in enumerate(files)]
    except HTTPException as error:
        if "Too many files" not in str(error.detail):
            raise
        detail = f"There are more than {plural(max_files, 'file')}: send them in several requests"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail) from None


def _row(image: str, outcome: Outcome, classes: Sequence[str], top_k: int, heads: bool) -> ImagePrediction:
    if isinstance(outcome, ImageError):
        return ImagePrediction(image=image, error=str(outcome))
    guesses = {head: _guesses(logits, classes, top_k) for head, logits in _wanted(outcome, heads).items()}
    main = list(guesses)[-1]
    return ImagePrediction(image=image, predictions=guesses[main], heads=guesses if heads else None)


def _wanted(logits: Logits, heads: bool) -> Logits:
    main = list(logits)[-1]
    return logits if heads else {main: logits[main]}


def _guesses(logits: np.ndarray, classes: Sequence[str], top_k: int) -> list[Guess]:
    probabilities = softmax(logits[None])[0]
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [Guess(label=classes[index], probability=float(probabilities[index])) for index in order]


def _details(explanation: Explanation) -> dict[str, Any]:
    """Returns the attention of the layers and the image, for :class:`ExplainResponse`."""
    picture = io.BytesIO()
    Image.fromarray(explanation.pixels).save(picture, "PNG")
    return {
        "layers": [np.round(layer.mean(axis=0).astype(float), ATTENTION_DIGITS).tolist() for layer in explanation.attention],
        "view": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}",
    }


def _image_problem(error: ImageError) -> Problem:
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if isinstance(error, ImageTooLargeError) else HTTPStatus.UNPROCESSABLE_ENTITY
    return Problem(status, str(error))


def _model_info(name: str, path: str, predictor: Predictor) -> ModelInfo:
    height, width = predictor.processor.input_hw
    return ModelInfo(
        name=name,
        path=path,
        classes=list(predictor.classes),
        heads=list(predictor.runtime.heads),
        height=height,
        width=width,
        runtime=predictor.runtime.name,
        device=predictor.runtime.device,
    )
