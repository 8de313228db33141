"""Training checkpoints: atomic, verified, and exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from deit.checkpoints.reading import open_checkpoint
from deit.errors import CheckpointError, NonFiniteLossError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import ViTForImageClassification
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from deit.recipes.schema import Ema, Optimizer
from deit.training.optimization import ModelEma, make_optimizer
from deit.training.state import (
    TrainState,
    load_checkpoint,
    newest_checkpoint,
    read_train_state,
    take_snapshot,
    write_checkpoint,
)
from tests.helpers import backward, noise, tiny_vit


def _save(
    directory: Path, state: TrainState, model: nn.Module, ema: ModelEma[Any] | None, optimizer: torch.optim.Optimizer
) -> Path:
    return write_checkpoint(directory, take_snapshot(state, model, ema, optimizer))


def _trained(steps: int = 2) -> tuple[ViTForImageClassification, ModelEma[Any], torch.optim.Optimizer]:
    model = ViTForImageClassification(tiny_vit())
    ema, optimizer = ModelEma(model, Ema(decay=0.5)), make_optimizer(model, Optimizer())
    for step in range(steps):
        _step(model, ema, optimizer, step)
    return model, ema, optimizer


def _step(model: torch.nn.Module, ema: ModelEma[Any], optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.zero_grad()
    backward(model(noise(2, 3, 32, 32, seed=step)).logits.square().sum())
    optimizer.step()
    ema.update(model, step)


def _everything(model: torch.nn.Module, ema: ModelEma[Any]) -> dict[str, Tensor]:
    state = {f"model/{name}": value.clone() for name, value in model.state_dict().items()}
    return state | {f"ema/{name}": value.clone() for name, value in ema.model.state_dict().items()}


def test_resumed_training_is_identical(tmp_path: Path) -> None:
    model, ema, optimizer = _trained()
    path = _save(tmp_path, TrainState(epoch=1, step=2), model, ema, optimizer)
    _step(model, ema, optimizer, 2)
    expected = _everything(model, ema)

    model, ema, optimizer = _trained(steps=0)
    load_checkpoint(path, model, ema, optimizer, steps_taken=2)
    _step(model, ema, optimizer, 2)
    actual = _everything(model, ema)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "sgd"])
def test_resumed_convnet_is_identical(name: Literal["adamw", "lamb", "muon", "sgd"], tmp_path: Path) -> None:
    processor, settings = DeiTImageProcessor.for_size(32, 32), Optimizer(name=name)

    def fresh() -> tuple[TimmClassifier, ModelEma[Any], torch.optim.Optimizer]:
        model = new_timm_classifier("test_resnet", ("a", "b", "c", "d", "e"), processor, {}, seed=0).train()
        return model, ModelEma(model, Ema(decay=0.5)), make_optimizer(model, settings)

    model, ema, optimizer = fresh()
    for step in range(2):
        _step(model, ema, optimizer, step)
    path = _save(tmp_path, TrainState(), model, ema, optimizer)
    _step(model, ema, optimizer, 2)
    expected = _everything(model, ema)
    model, ema, optimizer = fresh()
    load_checkpoint(path, model, ema, optimizer, steps_taken=2)
    _step(model, ema, optimizer, 2)
    for key, value in _everything(model, ema).items():
        assert torch.equal(value, expected[key]), key


def test_checkpoint_opens_as_a_model_with_or_without_ema(tmp_path: Path) -> None:
    model, ema, optimizer = _trained()
    path = _save(tmp_path, TrainState(), model, ema, optimizer)
    for use_ema, expected in ((False, model), (True, ema.model)):
        found = open_checkpoint(path, ema=use_ema)
        assert found.architecture == "ViTForImageClassification"
        assert found.config.num_labels == model.config.num_labels
        assert torch.equal(found.read()["classifier.weight"], expected.state_dict()["classifier.weight"])
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing or damaged"):
        read_train_state(path)


def test_other_modules_are_saved_without_config(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    path = _save(tmp_path, TrainState(), model, None, torch.optim.SGD(model.parameters()))
    assert not (path / "config.json").exists()
    assert read_train_state(path) == TrainState()


def test_state_round_trip(tmp_path: Path) -> None:
    state = TrainState(3, 4, 5, {"loss": 6.5}, 7, 8, 9.25, {"epoch": 2, "top1": 0.5, "loss": 1.5}, "mark")
    assert read_train_state(_save(tmp_path, state, *_trained())) == state


def test_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    model, ema, optimizer = _trained(0)
    paths = [_save(tmp_path, TrainState(epoch=epoch), model, ema, optimizer) for epoch in (1, 2, 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths[1:]]
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.path, newest.state.epoch, damaged) == (paths[2], 10, [])
    assert newest_checkpoint(tmp_path / "nothing") == (None, [])


def test_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    older, newer = (_save(tmp_path / "checkpoints", TrainState(epoch=epoch), *_trained(0)) for epoch in (1, 2))
    (newer / "optimizer.safetensors").write_bytes(b"")
    found, damaged = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert (found.path, found.state.epoch) == (older, 1)
    assert damaged == [f"Not used: {newer / 'optimizer.safetensors'} is missing or damaged"]
    (older / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"No checkpoint below .* is intact: .*optimizer.* --init .*best"):
        newest_checkpoint(tmp_path / "checkpoints")


def test_snapshot_is_not_changed_by_training(tmp_path: Path) -> None:
    model, ema, optimizer = _trained()
    expected = _everything(model, ema)
    state = TrainState(epoch=1, best={"epoch": 1})
    snapshot = take_snapshot(state, model, ema, optimizer)
    _step(model, ema, optimizer, 2)
    state.best["epoch"] = 2
    path = write_checkpoint(tmp_path, snapshot)
    model, ema, optimizer = _trained(0)
    load_checkpoint(path, model, ema, optimizer, steps_taken=2)
    assert all(torch.equal(value, expected[name]) for name, value in _everything(model, ema).items())
    assert read_train_state(path).best == {"epoch": 1}


def test_weights_that_are_not_finite_are_not_saved() -> None:
    model, ema, optimizer = _trained()
    model.classifier.weight.data[0, 0] = torch.inf
    with pytest.raises(NonFiniteLossError, match=r"The weights of classifier\.weight are not finite"):
        take_snapshot(TrainState(), model, ema, optimizer)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "train_state.json", "ema.safetensors"])
def test_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = _save(tmp_path, TrainState(), *_trained())
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_train_state(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_train_state(path)


def test_manifest_cannot_escape_the_checkpoint(tmp_path: Path) -> None:
    path = _save(tmp_path / "run", TrainState(), *_trained())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["../../secret"] = "0" * 64
    (tmp_path / "secret").write_text("not to be read")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="secret is missing or damaged"):
        read_train_state(path)


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    path = _save(tmp_path, TrainState(), *_trained())
    other = ViTForImageClassification(tiny_vit(hidden_size=48))
    with pytest.raises(CheckpointError):
        load_checkpoint(path, other, ModelEma(other, Ema()), make_optimizer(other, Optimizer()), steps_taken=2)


def test_other_format_version_is_rejected(tmp_path: Path) -> None:
    path = _save(tmp_path, TrainState(), *_trained())
    (path / "manifest.json").write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(CheckpointError, match="format 2"):
        read_train_state(path)
