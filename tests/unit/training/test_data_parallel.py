"""Training in several processes: the same batches, one result, one writer, and resuming with another number of processes."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from benchmarks.kills import final_state, make_images, make_teachers, setups
from safetensors.torch import load_file

from deit.checkpoints.run_log import read_log
from deit.data.loader import Batch, Loader, TrainSamples
from deit.data.opening import open_data
from deit.data.sampler import BatchPlan
from deit.errors import DataError, DeiTError, InterruptedWorkError, NonFiniteLossError, PeerError, RecipeError
from deit.evaluation.evaluate import evaluate
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe
from deit.training import assembly
from deit.training.loop import Trainer
from deit.training.run import pretrain, train
from tests.ranks import run_ranks

RECIPES = {setup.name: setup.recipe for setup in setups()}
LABELS, DISTILLED = RECIPES["the same, two workers"], RECIPES["live teacher, feature maps, Muon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several processes")
    make_images(folder / "images")
    make_teachers(folder)
    return folder


def train_and_record(folder: Path, recipe: Recipe, out: Path, teacher: str | None) -> tuple[dict[str, Any], list[list[int]]]:
    """Trains, and returns the evaluation and the samples of every training step of this process."""
    samples: list[list[int]] = []
    run = Loader.run

    def recorded(loader: Loader, plans: Sequence[BatchPlan], interruptible: bool = False) -> Iterator[Batch]:
        if isinstance(loader._samples, TrainSamples):
            samples.extend([plan.epoch, plan.step, *sample] for plan in plans for sample in plan.samples.tolist())
        return run(loader, plans, interruptible)

    Loader.run = recorded  # type: ignore[assignment, method-assign]
    path = None if teacher is None else folder / teacher
    result = train(folder / "images", recipe, out=out, teacher=path, workers=0, device="cpu")
    return result.evaluation.to_dict(), sorted(samples)


def weights(run: Path) -> torch.Tensor:
    tensors = load_file(run / "last" / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.mark.parametrize(("recipe", "teacher"), [(LABELS, None), (DISTILLED, "teacher")], ids=["labels", "distillation"])
def test_number_of_processes_changes_neither_batches_nor_results(
    folder: Path, tmp_path: Path, recipe: Recipe, teacher: str | None
) -> None:
    expected: list[list[int]] = []
    for size in (1, 2, 4):
        results = run_ranks(train_and_record, size, folder, recipe, tmp_path / f"{size}", teacher)
        assert not [result for result in results if isinstance(result, BaseException)]
        evaluations = [evaluation for evaluation, _ in results]
        assert all(evaluation["heads"] == evaluations[0]["heads"] for evaluation in evaluations)
        samples = sorted(sample for _, share in results for sample in share)
        expected = expected or samples
        assert samples == expected
        rows, alone = read_log(tmp_path / f"{size}"), read_log(tmp_path / "1")
        for row, reference in zip(rows, alone, strict=True):
            assert row["validation"]["images"] == reference["validation"]["images"]
            assert row["loss"] == pytest.approx(reference["loss"], rel=0.02)
        difference = weights(tmp_path / f"{size}") - weights(tmp_path / "1")
        assert difference.norm() / weights(tmp_path / "1").norm() < 0.02


def test_two_processes_end_in_the_same_bits_again(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        results = run_ranks(train_and_record, 2, folder, DISTILLED, tmp_path / name, "teacher")
        assert not [result for result in results if isinstance(result, BaseException)]
    assert final_state(tmp_path / "first") == final_state(tmp_path / "second")


def train_until_stopped(folder: Path, out: Path, stopped: int) -> None:
    """Sends a signal to one process in its second step."""
    advance = Trainer.advance

    def interrupted(trainer: Trainer, epoch: int, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
        if trainer.state.steps_taken == 1 and os.environ["RANK"] == str(stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(trainer, epoch, step, batches)

    Trainer.advance = interrupted  # type: ignore[assignment, method-assign]
    train(folder / "images", LABELS, out=out, workers=0, device="cpu")


def resume(run: Path) -> int:
    train(resume=run, workers=0, device="cpu")
    return len(read_log(run))


@pytest.mark.parametrize("stopped", [0, 1])
def test_signal_to_one_process_saves_the_run_which_resumes_in_any_number(folder: Path, tmp_path: Path, stopped: int) -> None:
    run_ranks(train_and_record, 2, folder, LABELS, tmp_path / "whole", None)
    run = tmp_path / "stopped"
    first, second = run_ranks(train_until_stopped, 2, folder, run, stopped)
    assert isinstance(first, InterruptedWorkError)
    assert (first.exit_code, second.exit_code) == (128 + signal.SIGTERM,) * 2
    assert isinstance(second, PeerError)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-000000-step-00000002"]
    size = 2 if stopped else 3
    assert run_ranks(resume, size, run) == [LABELS.epochs] * size
    if size == 2:
        assert final_state(run) == final_state(tmp_path / "whole")
    else:
        torch.testing.assert_close(weights(run), weights(tmp_path / "whole"), rtol=0, atol=0.02)


def train_with_damage(folder: Path, out: Path, skipped: int) -> list[float]:
    """Makes the pixels of one process NaN in the second step."""
    batch = TrainSamples.batch

    def damaged(samples: TrainSamples, plan: BatchPlan) -> Batch:
        made = batch(samples, plan)
        if (plan.epoch, plan.step, os.environ["RANK"]) == (0, 1, "1"):
            made.pixel_values[0, 0, 0, 0] = math.nan
        return made

    TrainSamples.batch = damaged  # type: ignore[assignment, method-assign]
    recipe = LABELS.replace(optimizer={"max_skipped_steps": skipped})
    train(folder / "images", recipe, out=out, workers=0, device="cpu")
    return [row["loss"] for row in read_log(out)]


def test_value_that_is_not_finite_in_one_process_stops_all(folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(train_with_damage, 2, folder, tmp_path / "run", 0)
    assert isinstance(first, NonFiniteLossError)
    assert isinstance(second, NonFiniteLossError | PeerError)
    lines = (tmp_path / "run" / "non_finite_steps.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].count("[") == 1 + LABELS.images_per_batch  # the samples of both processes


def test_value_that_is_not_finite_in_one_process_is_skipped_by_all(folder: Path, tmp_path: Path) -> None:
    losses = run_ranks(train_with_damage, 2, folder, tmp_path / "run", 1)
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()


def train_convnet(folder: Path, out: Path) -> float:
    recipe = get_recipe("convnet").tiny().replace(batch_size=16)
    return train(folder / "images", recipe, out=out, workers=0, device="cpu").evaluation.main.loss


def test_statistics_of_batch_norms_are_those_of_the_first_process(folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(train_convnet, 2, folder, tmp_path / "run")
    assert first == second
    assert read_log(tmp_path / "run")[-1]["validation"]["images"] == 15


def pretrain_once(folder: Path, out: Path) -> float:
    recipe = get_recipe("pretrain-mim").tiny().replace(batch_size=16)
    return pretrain(folder / "images", recipe, out=out, workers=0, device="cpu").loss


def test_pretraining_computes_the_loss_of_all_validation_images(folder: Path, tmp_path: Path) -> None:
    losses = [run_ranks(pretrain_once, size, folder, tmp_path / f"{size}") for size in (1, 2)]
    assert losses[1][0] == losses[1][1]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-3)


def evaluate_once(model: Path, data: Path) -> tuple[dict[str, Any], int]:
    evaluation = evaluate(model, data, split="all", device="cpu", workers=0, batch_size=4)
    return evaluation.to_dict()["heads"], evaluation.images


def test_evaluation_counts_every_image_once(folder: Path) -> None:
    alone, *_ = run_ranks(evaluate_once, 1, folder / "teacher", folder / "images")
    shared = run_ranks(evaluate_once, 3, folder / "teacher", folder / "images")
    assert [images for _, images in shared] == [alone[1]] * 3
    assert [heads for heads, _ in shared] == [alone[0]] * 3


def train_alone(folder: Path, out: Path, **options: Any) -> None:
    train(folder / "images", LABELS, out=out, workers=0, device="cpu", **options)


def train_with_too_few_images(folder: Path, out: Path) -> None:
    train_alone(folder, out, settings={"batch_size": "4"})


def test_batch_that_cannot_be_divided_is_an_error_of_the_first_process(folder: Path, tmp_path: Path) -> None:
    first, *others = run_ranks(train_with_too_few_images, 3, folder, tmp_path / "run")
    assert isinstance(first, RecipeError)
    assert "3 processes" in str(first)
    assert all(isinstance(error, PeerError) for error in others)


def train_on_other_images(folder: Path, out: Path) -> None:
    data = folder / ("images" if os.environ["RANK"] == "0" else "fewer images")
    with patch.object(assembly, "open_data", lambda _data, *arguments: open_data(data, *arguments)):
        train_alone(folder, out)


def test_other_data_in_another_process_is_an_error(folder: Path, tmp_path: Path) -> None:
    make_images(folder / "fewer images")
    next((folder / "fewer images").rglob("*.png")).unlink()
    first, second = run_ranks(train_on_other_images, 2, folder, tmp_path / "run")
    assert isinstance(first, PeerError)
    assert isinstance(second, DataError)
    assert "not the data set of the first process" in str(second)


def restart(folder: Path, out: Path) -> list[int]:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    train_alone(folder, out)
    return [row["epoch"] for row in read_log(out)]


def test_processes_that_are_started_again_resume_their_run(folder: Path, tmp_path: Path) -> None:
    run_ranks(train_until_stopped, 2, folder, tmp_path / "run", 0)
    assert run_ranks(restart, 2, folder, tmp_path / "run") == [[1, 2, 3]] * 2
    assert run_ranks(restart, 2, folder, tmp_path / "new") == [[1, 2, 3]] * 2  # killed before it had begun


def train_without_directory(folder: Path) -> None:
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = "3"
    train(folder / "images", LABELS, workers=0, device="cpu")


def test_processes_that_may_be_started_again_need_a_directory(folder: Path) -> None:
    first, second = run_ranks(train_without_directory, 2, folder)
    assert isinstance(first, DeiTError)
    assert "--out" in str(first)
    assert isinstance(second, PeerError)


def train_for_a_time(folder: Path, out: Path) -> int:
    recipe = LABELS.replace(minutes=0.05)
    train(folder / "images", recipe, out=out, workers=0, device="cpu")
    return Recipe.load(out / "recipe.toml").total_steps or 0


def test_all_processes_take_the_planned_number_of_steps(folder: Path, tmp_path: Path) -> None:
    first, second = run_ranks(train_for_a_time, 2, folder, tmp_path / "run")
    assert first == second > 0


def lose_a_process(folder: Path, out: Path) -> None:
    if os.environ["RANK"] == "1":
        advance = Trainer.advance

        def killed(trainer: Trainer, epoch: int, step: int, batches: Sequence[Batch]) -> tuple[float, int]:
            if trainer.state.steps_taken == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return advance(trainer, epoch, step, batches)

        Trainer.advance = killed  # type: ignore[assignment, method-assign]
    train_alone(folder, out)


def test_killed_process_costs_no_step(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = run_ranks(lose_a_process, 2, folder, run)
    assert second is None
    assert isinstance(first, PeerError)
    assert "a checkpoint is at" in str(first)
    assert "--resume" in str(first)
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "epoch-000001-step-00000001"
