"""The training loop: log, best model, checkpoints, and how training stops."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.run_log import read_log, write_log
from deit.errors import CheckpointError, ImageError, InterruptedWorkError, NonFiniteLossError, WorkError
from deit.evaluation.evaluate import evaluate_source
from deit.models.modeling import load_model
from deit.recipes.presets import get_recipe
from deit.training import checkpoint_writer, loop, state
from deit.training.loop import format_losses
from deit.training.state import newest_checkpoint
from deit.training.step import NonFiniteStepError
from deit.training.trainer_building import restore
from tests.helpers import MemorySource
from tests.unit.training.trainers import tiny_trainer


def test_each_epoch_writes_a_log_row_and_a_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.fit()
    rows = read_log(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["images_per_second"] > 0 and 0 <= row["validation"]["top1"] <= 1 for row in rows)
    newest = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert newest is not None
    assert (newest.state.epoch, newest.state.step) == (2, 0)


def test_best_model_is_of_the_best_epoch(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.fit()
    best = max(read_log(tmp_path), key=lambda row: (row["validation"]["top1"], -row["validation"]["loss"]))
    assert trainer.state.best["epoch"] == best["epoch"]
    result = evaluate_source(load_model(tmp_path / "best"), trainer.validation, workers=0)
    assert result.main.top1 == best["validation"]["top1"]
    assert result.main.loss == pytest.approx(best["validation"]["loss"], rel=1e-5)
    assert trainer.ema is not None
    last = load_model(tmp_path / "last").state_dict()  # the EMA, which this recipe evaluates
    for name, value in trainer.ema.model.state_dict().items():
        assert torch.equal(last[name], value)


def test_non_finite_loss_raises_with_epoch_step_and_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_step", _fail(math.nan, math.nan))
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is .* epoch 1, step 1, at learning rate 1e-06.*optimizer\.lr"
    ) as error:
        tiny_trainer(tmp_path).fit()
    assert error.value.exit_code == 1
    [row] = non_finite_steps(tmp_path)
    samples = row.pop("samples")
    assert row == {"epoch": 1, "step": 1, "lr": 1e-6, "loss": "nan", "gradient_norm": "nan"}
    assert [position for _, _, position in samples] == list(range(32))


def test_non_finite_steps_are_skipped_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("small-data").tiny().replace(batch_size=16, optimizer={"max_skipped_steps": 2})
    trainer = tiny_trainer(tmp_path, recipe)
    step: Any = loop.train_step  # type: ignore[attr-defined]
    calls = itertools.count(1)

    def sometimes(*arguments: object) -> Any:
        return (_fail(2.5, math.inf) if next(calls) in failing else step)(*arguments)

    monkeypatch.setattr(loop, "train_step", sometimes)
    failing = {1, 5}  # of three steps in each of two epochs
    trainer.fit()
    assert (trainer.state.steps_taken, trainer.state.non_finite_steps) == (6, 2)
    assert [(row["epoch"], row["step"], row["loss"], row["gradient_norm"]) for row in non_finite_steps(tmp_path)] == [
        (1, 1, 2.5, "inf"),
        (2, 2, 2.5, "inf"),
    ]
    assert all(math.isfinite(row["loss"]) for row in read_log(tmp_path))
    failing = {7, 8, 9}
    with pytest.raises(NonFiniteLossError, match="The gradients are not finite in epoch 1, step 3"):
        tiny_trainer(tmp_path / "again", recipe).fit()


def _fail(loss: float, gradient_norm: float) -> Callable[..., Any]:
    def step(*_: object) -> None:
        raise NonFiniteStepError(loss, gradient_norm)

    return step


def non_finite_steps(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "non_finite_steps.jsonl").read_text().splitlines()]


def test_checkpoints_are_written_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path, get_recipe("small-data").tiny().replace(batch_size=16, epochs=1))
    written: list[tuple[int, int]] = []
    write = state.write_checkpoint

    def record(directory: Path, snapshot: state.Snapshot) -> Path:
        written.append((snapshot.state.epoch, snapshot.state.step))
        return write(directory, snapshot)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", record)
    monkeypatch.setattr(checkpoint_writer.CheckpointWriter, "is_due", True)
    trainer.fit()
    assert written == [(0, 1), (0, 2), (0, 3), (1, 0)]


def test_full_disk_stops_training_and_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path)
    write = state.write_checkpoint

    def full(directory: Path, snapshot: state.Snapshot) -> Path:
        if snapshot.state.epoch == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(directory, snapshot)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", full)
    problem = "checkpoints: No space left on device: the checkpoint before is kept; make space .* then resume with: deit train"
    with pytest.raises(WorkError, match=problem):
        trainer.fit()
    found = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert found is not None
    assert found.state.epoch == 1


def test_model_that_cannot_be_saved_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "best"))

    trainer = tiny_trainer(tmp_path)
    monkeypatch.setattr(trainer, "_save_model", full)
    with pytest.raises(WorkError, match=r"in epoch 1: No space left on device: .*best: the checkpoint before is kept; make"):
        trainer.fit()


@pytest.mark.parametrize("recipe", ["small-data", "pretrain-mim"])
def test_non_finite_validation_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    trainer = tiny_trainer(tmp_path, get_recipe(recipe).tiny())
    monkeypatch.setattr(loop, "train_step", lambda model, *_: _diverge(model))
    monkeypatch.setattr(trainer, "ema", None)
    with pytest.raises(NonFiniteLossError, match=r"The validation loss is not finite after epoch 1: try a lower optimizer\.lr"):
        trainer.fit()
    assert not (tmp_path / "best").exists()


@torch.no_grad()
def _diverge(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A step with a finite loss, after which every weight is NaN."""
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    return {"loss": torch.tensor(1.0)}


ROW = '{"epoch": 1, "loss": 2.5, "validation": {"top1": 0.5, "loss": 1.5}}\n'
DAMAGED_LOGS = {
    "bracket": ROW[1:],
    "list": "[1]",
    "word": ROW.replace("2.5", '"2.5"'),
    "epoch": ROW.replace('"epoch": 1', '"epoch": "1"'),
    "no epoch": '{"loss": 2.5}',
    "order": ROW + ROW.replace('"epoch": 1', '"epoch": 3'),
    "twice": ROW + ROW,
    "NaN": ROW.replace("2.5", "NaN"),
    "huge": ROW.replace("2.5", "9" * 400),
    "deep": ROW.replace("2.5", "[" * 100_000),
    "nested": ROW.replace("0.5", '{"a": {}}'),
    "bytes": "\udcff",
    "large": " " * (2**24 + 1),
}


@pytest.mark.parametrize("content", DAMAGED_LOGS.values(), ids=DAMAGED_LOGS)
def test_damaged_log_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"log\.jsonl"):
        read_log(tmp_path)


@given(st.integers(0, len(ROW) * 24 - 1))
def test_flipped_bit_in_the_log_is_an_error_or_another_number(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    directory = tmp_path_factory.getbasetemp()
    raw = bytearray("".join(ROW.replace('"epoch": 1', f'"epoch": {epoch}') for epoch in (1, 2, 3)).encode())
    raw[bit // 8] ^= 1 << bit % 8
    (directory / "log.jsonl").write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        assert [row["epoch"] for row in read_log(directory)] == [1, 2, 3]


def test_log_may_begin_with_a_later_epoch(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"epoch": 3, "loss": math.inf}, {"epoch": 4, "validation": {"loss": math.nan}}]
    write_log(tmp_path, rows)
    assert read_log(tmp_path) == [{"epoch": 3, "loss": None}, {"epoch": 4, "validation": {"loss": None}}]


def test_interrupt_writes_a_checkpoint_and_restores_signal_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = loop.train_step  # type: ignore[attr-defined]

    def interrupted(*arguments: object) -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = step(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(loop, "train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedWorkError, match="deit train --resume"):
        tiny_trainer(tmp_path).fit()
    assert signal.getsignal(signal.SIGINT) is before
    newest = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert newest is not None
    saved = newest.state
    assert (saved.epoch, saved.step, saved.steps_taken, saved.images) == (0, 1, 1, 32)


def test_interrupt_between_micro_batches_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = loop.train_step  # type: ignore[attr-defined]

    def interrupted(*arguments: object) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(InterruptedWorkError) as error:
        tiny_trainer(tmp_path).fit()
    assert error.value.exit_code == 128 + signal.SIGTERM
    newest = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert newest is not None
    assert (newest.state.epoch, newest.state.step, newest.state.steps_taken) == (0, 0, 0)


def test_unreadable_image_leaves_a_checkpoint_that_resumes_without_it(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.samples = replace(trainer.samples, source=MemorySource(48, broken=frozenset({5})))
    with pytest.raises(ImageError, match=r"image 5 is broken, in epoch 1; .* --skip-unreadable; resume with: deit train"):
        trainer.fit()
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert checkpoint is not None
    resumed = tiny_trainer(tmp_path)
    resumed.samples = replace(trainer.samples, skip_unreadable=True)
    restore(resumed, checkpoint, "memory")
    resumed.fit()
    assert [row["epoch"] for row in read_log(tmp_path)] == [1, 2]


@pytest.mark.parametrize("eval_mode", [False, True])
def test_eval_mode_disables_dropout(eval_mode: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("small-data").tiny().replace(epochs=1, model={"eval_mode": eval_mode})
    trainer = tiny_trainer(tmp_path, recipe, images=32)
    step: Any = loop.train_step  # type: ignore[attr-defined]
    modes: set[bool] = set()

    def seen(model: torch.nn.Module, *arguments: Any) -> dict[str, torch.Tensor]:
        modes.update(module.training for module in model.modules())
        result: dict[str, torch.Tensor] = step(model, *arguments)
        return result

    monkeypatch.setattr(loop, "train_step", seen)
    trainer.fit()
    assert modes == {not eval_mode}


def test_log_rows_have_the_terms_of_the_loss(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).fit()
    for row in read_log(tmp_path):
        assert row["loss"] == row["label_loss"] > 0
        assert "distillation_loss" not in row
        assert "feature_loss" not in row


def test_progress_shows_the_terms_of_the_loss() -> None:
    losses = {"loss": 31.3, "label_loss": 1.5, "distillation_loss": 1.25, "feature_loss": 0.75}
    assert format_losses(losses) == "label loss 1.500, distillation loss 1.250, feature loss 0.750"
    assert format_losses({"loss": 0.25}) == "loss 0.250"


def _shortened(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))


def _changed(path: Path) -> None:
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 3'))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_changed, "damaged in line 1"),
        (_shortened, "ends at epoch 1 of 2: restore it from a copy, or remove it"),
        (lambda path: path.write_bytes(b"\xff"), "damaged in line 1"),
    ],
)
def test_resuming_notices_a_damaged_log(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    tiny_trainer(tmp_path).fit()
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert checkpoint is not None
    resumed = tiny_trainer(tmp_path)
    restore(resumed, checkpoint, "memory")
    damage(tmp_path / "log.jsonl")
    with pytest.raises(CheckpointError, match=problem):
        restore(resumed, checkpoint, "memory")
    (tmp_path / "log.jsonl").unlink()
    restore(resumed, checkpoint, "memory")
    assert read_log(tmp_path) == []
