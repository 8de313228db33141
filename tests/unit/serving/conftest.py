"""A small model, and servers of it within this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from deit.inference.predictor import Predictor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.serving.app import create_app
from deit.serving.state import ServerSettings
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("cat", "dog", "鳥")


def save_model(path: Path, seed: int = 0) -> Path:
    config = tiny_deit(num_labels=len(CLASSES), id2label=dict(enumerate(CLASSES)))
    randomized(DeiTForImageClassificationWithTeacher(config), seed).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("served") / "a model")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a photo.png"
    pattern(50, 40).save(path)
    return path


@pytest.fixture
def serve(model: Path) -> Iterator[Callable[..., FastAPI]]:
    """Returns a function that creates an application, which is closed after the test."""
    apps: list[FastAPI] = []

    def create(load: Any = Predictor.from_pretrained, paths: dict[str, str] | None = None, **settings: Any) -> FastAPI:
        app = create_app(paths or {"first": str(model)}, ServerSettings(**settings), load)
        apps.append(app)
        return app

    yield create
    for app in apps:
        app.state.server.models.close()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30)


def request(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """Sends a request to an application of this process, and returns its response."""

    async def send() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())
