"""Small models, and bundles of them, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deit.export.export import ExportResult, export_model
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("golden retriever", "кошка", "鳥")
SIDE = 32


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes what was measured on this machine in earnest."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled model whose answers differ from image to image."""
    path = tmp_path_factory.mktemp("a model")
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(path)
    DeiTImageProcessor.for_size(SIDE, SIDE).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images without labels."""
    path = tmp_path_factory.mktemp("some photos")
    for number in range(40):
        pattern(48 + number % 7, 40 + number % 5, seed=number).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="session")
def openvino_bundle(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(model, tmp_path_factory.mktemp("out") / "a bundle", "openvino", calibrate=photos)


@pytest.fixture(scope="session")
def onnx_bundle(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(model, tmp_path_factory.mktemp("out") / "a bundle", "onnx", calibrate=photos)


@pytest.fixture(scope="session")
def torch_bundle(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(model, tmp_path_factory.mktemp("out") / "a bundle", "torch", "bf16", calibrate=photos)


@pytest.fixture(scope="session")
def int8_bundle(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(model, tmp_path_factory.mktemp("out") / "a bundle", "onnx", "int8", calibrate=photos)
