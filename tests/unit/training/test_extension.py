"""A run is extended exactly: only its length can change, and the new schedule is followed from the epoch it has reached."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deit.checkpoints.run_log import read_log
from deit.checkpoints.weights import read_tensors
from deit.errors import RecipeError, TeacherError, UserError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import run, time_limit
from deit.training.extension import requested_length
from deit.training.optimization import learning_rate
from deit.training.run import train, train_on
from deit.training.run_directory import read_run
from deit.training.state import read_train_state
from deit.training.throughput import Costs
from tests.helpers import memory_splits

RECIPE = get_recipe("deit").tiny().replace(epochs=2)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumes runs on images in memory."""
    monkeypatch.setattr(run, "open_data", lambda *_: memory_splits(48))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "finished"
    train_on(memory_splits(48), RECIPE, RunSettings("memory"), directory, device="cpu", workers=0)
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def last_weights(directory: Path) -> dict[str, torch.Tensor]:
    return read_tensors(directory / "last" / "model.safetensors")


@pytest.mark.usefixtures("in_memory")
def test_finished_run_goes_on(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_log(copied)
    train(resume=copied, settings={"epochs": "4"}, device="cpu", workers=0)
    assert "Extended from 2 to 4 epochs after 2" in capsys.readouterr().err
    rows = read_log(copied)
    assert rows[:2] == before
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    recipe, settings = read_run(copied)
    assert (recipe.epochs, settings.extended) == (4, ((2, 2),))
    steps = 2
    for row in rows[2:]:  # the schedule of 4 epochs, at the last step of each
        expected = learning_rate(recipe.optimizer, recipe.peak_lr, 4, row["epoch"] - 1 / steps)
        assert row["lr"] == pytest.approx(expected)
    assert json.loads((copied / "evaluation.json").read_text())["best_epoch"] in (1, 2, 3, 4)
    assert "extended from 2 after epoch 2" in (copied / "report.html").read_text()


@pytest.mark.usefixtures("in_memory")
def test_extended_run_resumes_exactly(copied: Path, tmp_path: Path) -> None:
    interrupted = Path(shutil.copytree(copied, tmp_path / "interrupted"))
    train(resume=copied, settings={"epochs": "4"}, device="cpu", workers=0)
    train(resume=interrupted, settings={"epochs": "4"}, device="cpu", workers=0)
    shutil.rmtree(sorted((interrupted / "checkpoints").iterdir())[-1])  # as if stopped after the third epoch
    train(resume=interrupted, device="cpu", workers=0)
    first, second = last_weights(copied), last_weights(interrupted)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert read_run(interrupted)[1].extended == ((2, 2),)


@pytest.mark.usefixtures("in_memory")
def test_same_length_is_no_extension(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = last_weights(copied)
    train(resume=copied, settings={"epochs": "2"}, device="cpu", workers=0)
    assert "All epochs are finished; --epochs with a larger number trains on" in capsys.readouterr().err
    assert read_run(copied)[1].extended == ()
    assert all(torch.equal(before[name], value) for name, value in last_weights(copied).items())


@pytest.fixture
def fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that a step takes some seconds, and that no correction is due."""
    monkeypatch.setattr(run, "measure_costs", lambda *_: Costs(sample=0.15, evaluation=0.01, loading=0.01))
    monkeypatch.setattr(time_limit, "CHECKS", ())


@pytest.mark.usefixtures("in_memory", "fast_machine")
def test_minutes_are_added_to_what_is_done(copied: Path) -> None:
    train(resume=copied, settings={"minutes": "0.25"}, device="cpu", workers=0)
    recipe = read_run(copied)[0]
    steps = recipe.total_steps
    assert steps is not None
    assert steps > 2
    assert recipe.epochs == steps == len(read_log(copied))
    Recipe.load(copied / "recipe.toml").replace(steps=99, epochs=99).save(copied / "recipe.toml")
    with pytest.raises(RecipeError, match=r"0\.1 more min are time for .* epochs, which are fewer than the 99"):
        train(resume=copied, settings={"minutes": "0.1"}, device="cpu", workers=0)


@pytest.mark.usefixtures("in_memory")
def test_run_that_ended_within_an_epoch_goes_on_in_it(tmp_path: Path) -> None:
    recipe = RECIPE.replace(batch_size=16, steps=4, epochs=2)  # an epoch has three steps
    train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "steps", device="cpu", workers=0)
    assert [row["epoch"] for row in read_log(tmp_path / "steps")] == [1, 2]
    train(resume=tmp_path / "steps", settings={"epochs": "3"}, device="cpu", workers=0)
    state = read_train_state(sorted((tmp_path / "steps" / "checkpoints").iterdir())[-1])
    assert (state.epoch, state.step, state.steps_taken) == (3, 0, 9)
    rows = read_log(tmp_path / "steps")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    extended, settings = read_run(tmp_path / "steps")
    assert (extended.steps, extended.epochs, settings.extended) == (None, 3, ((1, 2),))
    assert rows[-1]["lr"] == learning_rate(extended.optimizer, extended.peak_lr, 3, 3 - 1 / 3)


@pytest.mark.parametrize("name", ["batch_size", "optimizer.lr", "seed", "model.image_size", "augmentation.flip"])
def test_other_settings_cannot_change(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} cannot change within a run.*--init runs/a --set {name}=1"):
        requested_length(RECIPE, {"epochs": "9", name: "1"}, Path("runs/a"))


@pytest.mark.parametrize("epochs", ["1", "0", "-3", "many"])
def test_run_cannot_become_shorter(epochs: str) -> None:
    with pytest.raises(RecipeError):
        requested_length(RECIPE, {"epochs": epochs}, Path("runs/a"))


@pytest.mark.parametrize("other", [{"init": "a"}, {"out": "a"}])
def test_other_arguments_are_refused_instead_of_ignored(finished: Path, other: dict[str, str]) -> None:
    with pytest.raises(UserError, match="keeps its own initial weights and directory"):
        train(resume=finished, **other)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="learns from labels only, but a teacher is given"):
        train(resume=finished, teacher="a")
