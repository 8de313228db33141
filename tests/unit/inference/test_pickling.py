"""Predictors, models and samples reach processes that are started by spawn, and compute the same there."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from deit.data.datasets.hub_datasets import TableSource
from deit.data.loader import EvaluationSamples, TrainSamples
from deit.data.opening import read_splits
from deit.data.sampler import epoch_steps
from deit.data.sources import ImageSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.mixing import Mixing
from deit.errors import CheckpointError
from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle import Bundle
from deit.inference.predictor import Predictor
from deit.inference.runtimes import RuntimeName
from deit.models.modeling import load_model
from tests.helpers import pattern
from tests.unit.data import tables

IMAGES = [pattern(50 + seed, 44, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("transfer", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy], ids=["pickle", "copy"])  # noqa: S301
@pytest.mark.parametrize(
    ("format", "runtime"), [("openvino", "openvino"), ("onnx", "openvino"), ("onnx", "onnxruntime"), ("torch", "torch")]
)
def test_predictor_of_a_bundle(bundles: dict[str, Bundle], format: str, runtime: RuntimeName, transfer: object) -> None:
    predictor = Predictor.from_pretrained(bundles[format].path, "cpu", runtime=runtime)
    received: Predictor = transfer(predictor)  # type: ignore[operator]
    assert received(IMAGES) == predictor(IMAGES)
    assert received.runtime.concurrency == predictor.runtime.concurrency


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictor_and_model_of_torch(model: Path, precision: str) -> None:
    predictor = Predictor.from_pretrained(model, "cpu", precision=precision)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(predictor))(IMAGES) == predictor(IMAGES)  # noqa: S301
    network, pixels = load_model(model), torch.ones(2, 3, 32, 32)
    received = pickle.loads(pickle.dumps(network))  # noqa: S301
    assert torch.equal(received(pixels).logits, network(pixels).logits)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_graph_that_is_another_one_by_then(bundles: dict[str, Bundle], tmp_path: Path, change: str) -> None:
    path = Path(shutil.copytree(bundles["onnx"].path, tmp_path / "bundle"))
    pickled = pickle.dumps(Predictor.from_pretrained(path, "cpu", runtime="onnxruntime"))
    if change == "replaced":
        os.utime(path / "model.onnx", (1, 1))
    else:
        (path / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"(was replaced|does not exist).*: call Predictor.from_pretrained"):
        pickle.loads(pickled)  # noqa: S301


@pytest.fixture(params=["folder", "table"])
def source(request: pytest.FixtureRequest, photo_folder: Path) -> ImageSource:
    if request.param == "table":
        table = tables.table(6).select_columns("image").cast_column("image", datasets.Image(decode=False))
        return TableSource(table, "image", "train", tuple(tables.CLASSES), np.arange(6) % 3)
    source = read_splits(photo_folder).train_or_none
    assert source is not None
    return source


def test_samples(source: ImageSource) -> None:
    train = TrainSamples(source, TrainTransform(Augmentation(), 32, 32), Mixing(), seed=5)
    evaluation = EvaluationSamples(source, DeiTImageProcessor.for_size(32, 32))
    [plan, *_] = epoch_steps(len(source.labels), 4, 5, epoch=0)
    for samples in (train, evaluation):
        received = pickle.loads(pickle.dumps(samples))  # noqa: S301
        assert torch.equal(received.batch(plan).pixel_values, samples.batch(plan).pixel_values)
        assert torch.equal(received.batch(plan).labels, samples.batch(plan).labels)
