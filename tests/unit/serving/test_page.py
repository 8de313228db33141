"""The files of the page, and what the page asks the server for besides predictions."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from deit.data.opening import open_data
from deit.errors import DeiTError
from deit.evaluation.explanation import explain
from deit.serving.page import FILES
from deit.serving.samples import MAX_SAMPLES, Samples, held_out_images
from deit.system.files import BEST_NAME, RECORD_NAME, RUN_NAME
from tests.helpers import pattern
from tests.unit.serving.conftest import CLASSES, request, save_model

Serve = Callable[..., FastAPI]
PNG = {"Content-Type": "image/png"}


def test_files_of_the_page(serve: Serve) -> None:
    app = serve(token="a secret")  # which the page has no need of
    for path in ("/", "/docs"):
        page = request(app, "GET", path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
    for name, (_, media_type) in FILES.items():
        response = request(app, "GET", f"/page/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(media_type)
    for name in ("server.js", "__init__.py", "..%2F..%2Fapp.py", "no such file"):
        assert request(app, "GET", f"/page/{name}").status_code == 404


def test_page_asks_no_other_address() -> None:
    for file in resources.files("deit.page").iterdir():
        if file.name.endswith((".html", ".css", ".js")):
            assert not re.search(r"https?://|//cdn|@import", file.read_text(encoding="utf-8")), file.name


def test_every_file_that_the_page_loads_is_served() -> None:
    folder = resources.files("deit.page")
    names = ("index.html", "api.html", "page.js", "api.js", "dom.js", "map.js", "server.js")
    text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    loaded = {*re.findall(r'(?:href|src)="page/([^"]+)"', text), *re.findall(r'from "\./([^"]+)"', text)}
    assert loaded == {*FILES}


def test_details_of_an_explanation(serve: Serve, model: Path, photo: Path) -> None:
    content = request(serve(), "POST", "/v1/explain?details=true", content=photo.read_bytes(), headers=PNG).json()
    [expected] = explain(model, [photo], device="cpu")
    assert len(content["layers"]) == len(expected.attention)
    for found, layer in zip(content["layers"], expected.attention, strict=True):
        np.testing.assert_allclose(found, layer.mean(axis=0), atol=1e-5)
    kind, _, encoded = content["view"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected.pixels)
    plain = request(serve(), "POST", "/v1/explain", content=photo.read_bytes(), headers=PNG).json()
    assert (plain["layers"], plain["view"]) == ([], None)


def test_time_of_a_prediction(serve: Serve, photo: Path) -> None:
    response = request(serve(), "POST", "/v1/predict", content=photo.read_bytes(), headers=PNG)
    assert re.fullmatch(r"predict;dur=\d+\.\d", response.headers["server-timing"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images for each class, one of them larger than samples may be."""
    folder = tmp_path / "some photos"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(6):
            size = (1200, 300) if number == 0 else (40, 30)
            pattern(*size).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """A run whose model was trained on the data."""
    path = tmp_path / "a run"
    save_model(path / BEST_NAME)
    (path / RUN_NAME).write_text(json.dumps({"data": str(data)}), encoding="utf-8")
    record = {"fingerprint": "", "split_seed": 7, "validation_fraction": 0.5}
    (path / BEST_NAME / RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["", BEST_NAME])
def test_samples_are_held_out_images_of_the_models_data(serve: Serve, run: Path, data: Path, name: str) -> None:
    app = serve(paths={"student": str(run / name)}, samples="auto")
    content = request(app, "GET", "/v1/samples").json()
    assert content["model"] == "student"
    assert [sample["label"] for sample in content["samples"]] == list(CLASSES)
    _, held_out = open_data(data, 7, 0.5).held_out
    names = {held_out.name(index) for index in range(len(held_out.labels))}
    for sample in content["samples"]:
        assert f"{sample['label']}/{sample['name']}" in names
        response = request(app, "GET", f"/v1/samples/{sample['number']}")
        assert response.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(response.content)) as picture:
            assert max(picture.size) <= 512
    assert request(app, "GET", "/v1/samples/3").status_code == 404
    assert request(app, "GET", f"/v1/samples/{MAX_SAMPLES}").status_code == 422
    assert request(app, "GET", "/v1/samples?model=other").status_code == 404


def test_samples_of_another_data_set(model: Path, data: Path) -> None:
    assert held_out_images(str(model), "off") is None
    assert held_out_images(str(model), "auto") is None
    assert len(Samples(str(model), str(data)).entries()) == len(CLASSES)
    digits = Samples(str(model), "digits").entries()
    assert [label for _, _, label in digits] == [str(digit) for digit in range(10)]


def test_data_set_that_is_named_must_exist(serve: Serve, run: Path, tmp_path: Path) -> None:
    with pytest.raises(DeiTError, match="nowhere"):
        serve(paths={"student": str(run)}, samples=str(tmp_path / "nowhere"))


def test_data_set_that_is_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / RUN_NAME).write_text(json.dumps({"data": str(run / "gone")}), encoding="utf-8")
    assert Samples(str(run), "auto").entries() == []
    assert "The page has no examples: " in capsys.readouterr().err
