"""Checkpoints: whole, checked, and exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from deit.checkpoints.reading import open_checkpoint
from deit.errors import CheckpointError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import TimmClassifier, fresh_network
from deit.models.modeling import ViTForImageClassification
from deit.recipes.schema import Average, Optimizer
from deit.training.optimization import ModelEma, make_optimizer
from deit.training.state import TrainState, latest_checkpoint, load_checkpoint, read_train_state, save_checkpoint
from tests.helpers import backward, noise, tiny_vit


def _trained(steps: int = 2) -> tuple[ViTForImageClassification, ModelEma[Any], torch.optim.Optimizer]:
    model = ViTForImageClassification(tiny_vit())
    average, optimizer = ModelEma(model, Average(decay=0.5)), make_optimizer(model, Optimizer())
    for step in range(steps):
        _step(model, average, optimizer, step)
    return model, average, optimizer


def _step(model: torch.nn.Module, average: ModelEma[Any], optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.zero_grad()
    backward(model(noise(2, 3, 32, 32, seed=step)).logits.square().sum())
    optimizer.step()
    average.update(model, step)


def _everything(model: torch.nn.Module, average: ModelEma[Any]) -> dict[str, Tensor]:
    state = {f"model/{name}": value.clone() for name, value in model.state_dict().items()}
    return state | {f"average/{name}": value.clone() for name, value in average.model.state_dict().items()}


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, average, optimizer = _trained()
    path = save_checkpoint(tmp_path, TrainState(epoch=1, step=2), model, average, optimizer)
    _step(model, average, optimizer, 2)
    expected = _everything(model, average)

    model, average, optimizer = _trained(steps=0)
    load_checkpoint(path, model, average, optimizer, steps_taken=2)
    _step(model, average, optimizer, 2)
    actual = _everything(model, average)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "sgd"])
def test_a_convolutional_network_goes_on_exactly(name: Literal["adamw", "lamb", "muon", "sgd"], tmp_path: Path) -> None:
    processor, settings = DeiTImageProcessor.for_size(32, 32), Optimizer(name=name)

    def fresh() -> tuple[TimmClassifier, ModelEma[Any], torch.optim.Optimizer]:
        model = fresh_network("test_resnet", ("a", "b", "c", "d", "e"), processor, {}, seed=0).train()
        return model, ModelEma(model, Average(decay=0.5)), make_optimizer(model, settings)

    model, average, optimizer = fresh()
    for step in range(2):
        _step(model, average, optimizer, step)
    path = save_checkpoint(tmp_path, TrainState(), model, average, optimizer)
    _step(model, average, optimizer, 2)
    expected = _everything(model, average)
    model, average, optimizer = fresh()
    load_checkpoint(path, model, average, optimizer, steps_taken=2)
    _step(model, average, optimizer, 2)
    for key, value in _everything(model, average).items():
        assert torch.equal(value, expected[key]), key


def test_a_checkpoint_opens_as_a_model_and_so_does_its_average(tmp_path: Path) -> None:
    model, average, optimizer = _trained()
    path = save_checkpoint(tmp_path, TrainState(), model, average, optimizer)
    for ema, expected in ((False, model), (True, average.model)):
        found = open_checkpoint(path, ema=ema)
        assert found.architecture == "ViTForImageClassification"
        assert found.config.num_labels == model.config.num_labels
        assert torch.equal(found.read()["classifier.weight"], expected.state_dict()["classifier.weight"])
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing or damaged"):
        read_train_state(path)


def test_a_model_of_another_kind_is_saved_without_a_configuration(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    path = save_checkpoint(tmp_path, TrainState(), model, None, torch.optim.SGD(model.parameters()))
    assert not (path / "config.json").exists()
    assert read_train_state(path) == TrainState()


def test_the_place_comes_back(tmp_path: Path) -> None:
    place = TrainState(3, 4, 5, 6.5, 7, 8, 9.25, {"epoch": 2, "top1": 0.5, "loss": 1.5}, "mark")
    assert read_train_state(save_checkpoint(tmp_path, place, *_trained())) == place


def test_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    model, average, optimizer = _trained(0)
    paths = [save_checkpoint(tmp_path, TrainState(epoch=epoch), model, average, optimizer) for epoch in (1, 2, 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths[1:]]
    assert latest_checkpoint(tmp_path) == paths[2]
    assert latest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "train_state.json", "ema.safetensors"])
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, TrainState(), *_trained())
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_train_state(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_train_state(path)


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", TrainState(), *_trained())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["../../secret"] = "0" * 64
    (tmp_path / "secret").write_text("not to be read")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="secret is missing or damaged"):
        read_train_state(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, TrainState(), *_trained())
    other = ViTForImageClassification(tiny_vit(hidden_size=48))
    with pytest.raises(CheckpointError):
        load_checkpoint(path, other, ModelEma(other, Average()), make_optimizer(other, Optimizer()), steps_taken=2)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, TrainState(), *_trained())
    (path / "manifest.json").write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(CheckpointError, match="format 2"):
        read_train_state(path)
