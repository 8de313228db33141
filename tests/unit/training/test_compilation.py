"""Compiled training: the losses of ordinary training, the same names in checkpoints, and what it needs."""

from __future__ import annotations

import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from deit.checkpoints.run_log import read_log
from deit.checkpoints.weights import read_tensors
from deit.errors import UserError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import assembly, run
from deit.training.compilation import check_compiler
from deit.training.replay import replay
from deit.training.run import train, train_on
from tests.helpers import memory_splits

DEIT = get_recipe("deit").tiny().replace(model={"drop_path": 0.1}, epochs=2)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # that torch.compile looks at itself
def test_losses_are_those_of_ordinary_training(tmp_path: Path) -> None:
    recipe = DEIT.replace(precision="bf16")
    weights, losses = [], []
    for compiled in (False, True):
        out = tmp_path / f"{compiled}"
        train_on(memory_splits(48), recipe, RunSettings("memory", compiled=compiled), out, device="cpu", workers=0)
        weights.append(read_tensors(out / "last" / "model.safetensors"))
        losses.append([row["loss"] for row in read_log(out)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert weights[0].keys() == weights[1].keys()
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_resumed_and_replayed_steps_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "open_data", lambda *_: memory_splits(48))
    monkeypatch.setattr(assembly, "open_data", lambda *_: memory_splits(48))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = RunSettings("memory", compiled=True)
    train_on(memory_splits(48), DEIT, settings, whole, device="cpu", workers=0)
    shutil.copytree(whole, resumed)
    shutil.rmtree(sorted((resumed / "checkpoints").iterdir())[-1])
    train(resume=resumed, device="cpu", workers=0)
    first, second = (read_tensors(path / "last" / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert replay(whole, 2, 1, device="cpu", workers=0).losses["loss"] == read_log(whole)[1]["loss"]  # an epoch of one step
    torch._dynamo.reset()


def convnet() -> Recipe:
    return get_recipe("convnet").tiny().replace(epochs=1)


def test_convnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))  # traces only: in seconds
    settings = RunSettings("memory", compiled=True)
    train_on(memory_splits(48), convnet(), settings, tmp_path / "run", device="cpu", workers=0)
    train_on(memory_splits(48), convnet(), RunSettings("memory"), tmp_path / "other", device="cpu", workers=0)
    assert read_log(tmp_path / "run")[0]["loss"] == pytest.approx(read_log(tmp_path / "other")[0]["loss"], rel=1e-2)
    torch._dynamo.reset()


def test_missing_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs triton"):
        check_compiler(torch.device("cuda"))
