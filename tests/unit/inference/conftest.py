"""A small model and bundles of it, exported once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deit.export.export import ExportResult, export_model
from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import Bundle
from deit.inference.inference_model import InferenceModel
from deit.models.auto import load_classifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("golden retriever", "кошка", "鳥")
HEADS = ("class", "distillation", "both")
SIDE = 32


def random_pixels(count: int) -> np.ndarray:
    """Returns uint8 images (count, 3, SIDE, SIDE), different for each count."""
    return np.random.default_rng(count).integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the user's saved measurements and compiled graphs out of the tests."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled model whose predictions differ between images."""
    path = tmp_path_factory.mktemp("a model")
    network = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.1)
    network.save_pretrained(path)
    DeiTImageProcessor.for_size(SIDE, SIDE).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def inference_model(model: Path) -> InferenceModel:
    return InferenceModel(load_classifier(model))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty images without labels."""
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


@pytest.fixture
def bundles(openvino_bundle: ExportResult, onnx_bundle: ExportResult, torch_bundle: ExportResult) -> dict[str, Bundle]:
    """Bundles by format."""
    return {result.bundle.metadata.format: result.bundle for result in (openvino_bundle, onnx_bundle, torch_bundle)}
