"""A search for recipe values: its trials are runs, the best ones are continued exactly, and it resumes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kills import final_state, make_images, make_teachers

from deit.checkpoints.run_log import read_log
from deit.checkpoints.weights import read_tensors
from deit.errors import CheckpointError, InterruptedWorkError, NonFiniteLossError, RecipeError, UserError
from deit.evaluation.runs import find_runs
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe
from deit.training import tuning
from deit.training.loop import Trainer
from deit.training.run import train
from deit.training.run_directory import read_run
from deit.training.time_limit import StepBudget
from deit.training.tuning import TuneResult, tune

RECIPE = get_recipe("deit").tiny().replace(batch_size=16)
VARY = ["optimizer.lr=1e-4..1e-2", "smoothing=0..0.2"]
EPOCHS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a search")
    make_images(folder / "images")
    make_teachers(folder)
    return folder


@pytest.fixture(autouse=True)
def _planned_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans and keeps the same number of steps on every machine."""
    monkeypatch.setattr(StepBudget, "total_steps", lambda *_: 3 * EPOCHS)
    monkeypatch.setattr(StepBudget, "correction", lambda *_: None)


def search(folder: Path, out: Path, recipe: Recipe = RECIPE, **options: Any) -> TuneResult:
    options = {"minutes": 5, "max_trials": 3, "vary": VARY, "device": "cpu", "workers": 0, **options}
    return tune(folder / "images", recipe, out=out, **options)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuneResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepBudget, "total_steps", lambda *_: 3 * EPOCHS)
        patch.setattr(StepBudget, "correction", lambda *_: None)
        yield search(folder, tmp_path_factory.mktemp("searches") / "finished")


def test_trials_are_runs(finished: TuneResult) -> None:
    directory = finished.directory
    assert find_runs(directory) == [directory / "trials" / f"{number:03d}" for number in range(3)]
    assert [trial.finished for trial in finished.trials] == [True, True, False]
    assert [trial.epochs for trial in finished.trials] == [EPOCHS, EPOCHS, EPOCHS // 10]
    for trial in finished.trials:
        run = directory / "trials" / f"{trial.number:03d}"
        recipe, _ = read_run(run)
        assert len(read_log(run)) == trial.epochs
        assert {*trial.values} == ({"optimizer.lr", "smoothing"} if trial.number else set())
        for name, value in trial.values.items():
            section: Any = recipe.model_dump()
            for part in name.split("."):
                section = section[part]
            assert section == float(value)
    best = finished.trials[0]
    assert finished.run.directory == directory / "trials" / f"{best.number:03d}"
    assert (finished.run.directory / "report.html").is_file()
    tuned = Recipe.load(finished.recipe)
    assert tuned == RECIPE.with_settings(best.values)


def test_continued_trial_is_a_run_that_was_never_stopped(folder: Path, finished: TuneResult, tmp_path: Path) -> None:
    run = finished.run.directory
    recipe, _ = read_run(run)
    train(folder / "images", recipe, out=tmp_path / "run", device="cpu", workers=0)
    assert final_state(tmp_path / "run") == final_state(run)


@pytest.mark.parametrize("stop", [0, 2, 4])  # in the first and the last candidate, and in the second finalist
def test_stopped_search_resumes(folder: Path, finished: TuneResult, tmp_path: Path, stop: int) -> None:
    calls = 0
    fit = Trainer.fit

    def interrupted(trainer: Trainer, epochs: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        fit(trainer, epochs)

    out = tmp_path / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", interrupted)
        with pytest.raises(InterruptedWorkError, match=r"deit tune --resume"):
            search(folder, out)
    result = tune(resume=out, device="cpu", workers=0)
    assert result.trials == finished.trials
    weights, expected = (read_tensors(found.run.directory / "best" / "model.safetensors") for found in (result, finished))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_finished_search_is_evaluated_again(finished: TuneResult) -> None:
    again = tune(resume=finished.directory, device="cpu", workers=0)
    assert (again.trials, again.run.evaluation.heads) == (finished.trials, finished.run.evaluation.heads)


def test_search_ends_in_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning._Search, "_elapsed", lambda search: 100.0 * (len(search.study.trials) + 1))
    result = search(folder, tmp_path / "search", minutes=14, max_trials=None)
    assert len(result.trials) == 3  # a fourth one would end after 5.6 minutes


def test_diverged_trials_are_passed_over(folder: Path, tmp_path: Path) -> None:
    # The weight decay alone multiplies the weights by -1,599 per step, whatever the gradients are on this processor.
    optimizer = {"lr": 100.0, "reference_batch": 1, "weight_decay": 1.0, "warmup_epochs": 0, "name": "sgd"}
    diverging = RECIPE.replace(optimizer=optimizer)
    result = search(folder, tmp_path / "search", diverging, vary=["optimizer.lr=1e-4,1e-3"])
    assert [trial.top1 is None for trial in result.trials] == [False, False, True]
    assert result.trials[-1].number == 0
    with pytest.raises(NonFiniteLossError, match="diverged in all trials"):
        search(folder, tmp_path / "other", diverging, vary=["smoothing=0,0.1"], max_trials=2)


def test_finalist_that_diverges_is_passed_over(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fit = 0, Trainer.fit

    def diverging(trainer: Trainer, epochs: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # after three candidates, the first finalist
            raise NonFiniteLossError("The gradients are not finite", "lower the learning rate")
        fit(trainer, epochs)

    monkeypatch.setattr(Trainer, "fit", diverging)
    result = search(folder, tmp_path / "search")
    best, diverged, _ = result.trials
    assert [trial.finished for trial in result.trials] == [True, True, False]
    assert diverged.top1 is None
    assert result.run.directory == tmp_path / "search" / "trials" / f"{best.number:03d}"


def test_teachers(folder: Path, tmp_path: Path) -> None:
    distilled = get_recipe("small-data-distilled").tiny().replace(batch_size=16)
    result = search(folder, tmp_path / "live", distilled, teacher=folder / "teacher", vary=(), max_trials=2)
    assert result.run.teacher is not None
    assert "augmentation.scale" in result.trials[0].values or "augmentation.scale" in result.trials[1].values
    cached = distilled.replace(
        mixing={"mixup": 0.8, "cutmix": 1.0},
        ema={"decay": 0.9, "evaluate": True},
        epochs=3,
        model={"drop_path": 0.2},
        views=2,
    )
    result = search(folder, tmp_path / "cached", cached, teacher=folder / "cache", vary=(), max_trials=2)
    assert not any("augmentation" in name for trial in result.trials for name in trial.values)
    with pytest.raises(RecipeError, match="cached for"):
        search(folder, tmp_path / "other", cached, teacher=folder / "cache", vary=["mixing.mixup=0,0.5"], max_trials=2)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("recipe", "options", "error", "message"),
    [
        (get_recipe("pretrain-mim").tiny(), {}, RecipeError, "does not use labels"),
        (RECIPE, {"minutes": 0}, UserError, "is not a time"),
        (RECIPE, {"minutes": float("nan")}, UserError, "is not a time"),
        (RECIPE, {"settings": {"epochs": "3"}}, RecipeError, "is that of --minutes, not of epochs"),
        (RECIPE, {"vary": ["optimizer.lr"]}, RecipeError, "has no values"),
        (RECIPE, {"teacher": "resnet18"}, UserError, "teacher"),
    ],
)
def test_mistakes(
    folder: Path, tmp_path: Path, recipe: Recipe, options: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(folder, tmp_path / "search", recipe, **options)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    "options", [{"data": "photos"}, {"teacher": "t"}, {"vary": VARY}, {"settings": {"seed": "1"}}, {"max_trials": 3}]
)
def test_resumed_search_keeps_its_own_arguments(finished: TuneResult, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="keeps its own arguments"):
        tune(resume=finished.directory, **options)


def test_directories_that_are_no_search(folder: Path, finished: TuneResult, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        search(folder, finished.directory)
    with pytest.raises(CheckpointError, match="is not the directory of a search"):
        tune(resume=tmp_path)
    (tmp_path / "tune.json").write_text(json.dumps({"minutes": "x"}))
    with pytest.raises(CheckpointError, match="corrupt"):
        tune(resume=tmp_path)
