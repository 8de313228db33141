"""Epochs: what is logged, what is kept as best, and how training stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.errors import InterruptedWorkError, NonFiniteLossError
from deit.evaluation.evaluate import evaluate_source
from deit.models.modeling import load_model
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training import loop
from deit.training.loop import Training, read_log
from deit.training.model_building import start
from deit.training.run import _prepare
from deit.training.state import latest_checkpoint, read_train_state
from tests.helpers import memory_splits


def _training(directory: Path) -> Training:
    recipe = get_recipe("small-data").tiny()
    splits = memory_splits(48)
    begun = start(recipe, splits.classes)
    return _prepare(directory, begun, RunSettings("memory"), splits, None, torch.device("cpu"), 0, splits.record)


def test_an_epoch_is_one_line_and_one_checkpoint(tmp_path: Path) -> None:
    training = _training(tmp_path)
    training.fit()
    rows = read_log(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["images_per_second"] > 0 and 0 <= row["validation"]["top1"] <= 1 for row in rows)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert (read_train_state(newest).epoch, read_train_state(newest).step) == (2, 0)


def test_the_best_model_is_the_one_of_the_best_epoch(tmp_path: Path) -> None:
    training = _training(tmp_path)
    training.fit()
    best = max(read_log(tmp_path), key=lambda row: (row["validation"]["top1"], -row["validation"]["loss"]))
    assert training.place.best["epoch"] == best["epoch"]
    result = evaluate_source(load_model(tmp_path / "best"), training.validation, workers=0)
    assert result.main.top1 == best["validation"]["top1"]
    assert result.main.loss == pytest.approx(best["validation"]["loss"], rel=1e-5)
    assert training.average is not None
    last = load_model(tmp_path / "last").state_dict()  # the average, which this recipe evaluates
    for name, value in training.average.model.state_dict().items():
        assert torch.equal(last[name], value)


def test_a_loss_that_is_not_finite_stops_with_the_place_and_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1, at learning rate 1e-06.*optimizer\.lr") as caught:
        _training(tmp_path).fit()
    assert caught.value.exit_code == 1


def test_an_interrupt_leaves_a_checkpoint_of_this_step_and_the_handlers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Any = loop.train_step  # type: ignore[attr-defined]

    def interrupted(*arguments: object) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        result: torch.Tensor = step(*arguments)
        return result

    monkeypatch.setattr(loop, "train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedWorkError, match="deit train --resume"):
        _training(tmp_path).fit()
    assert signal.getsignal(signal.SIGINT) is before
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    place = read_train_state(newest)
    assert (place.epoch, place.step, place.steps_taken, place.images) == (0, 1, 1, 32)


@pytest.mark.parametrize("quiet", [False, True])
def test_in_evaluation_mode_dropout_is_off_while_training(quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("small-data").tiny().replace(epochs=1, model={"evaluation_mode": quiet})
    splits = memory_splits(32)
    begun = start(recipe, splits.classes)
    training = _prepare(tmp_path, begun, RunSettings("memory"), splits, None, torch.device("cpu"), 0, splits.record)
    step: Any = loop.train_step  # type: ignore[attr-defined]
    modes: set[bool] = set()

    def seen(model: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        modes.update(module.training for module in model.modules())
        result: torch.Tensor = step(model, *arguments)
        return result

    monkeypatch.setattr(loop, "train_step", seen)
    training.fit()
    assert modes == {not quiet}
