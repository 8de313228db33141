"""From data and recipe to a run directory, and what is refused before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deit.checkpoints.model_card import model_card
from deit.checkpoints.weights import read_tensors
from deit.errors import CheckpointError, TeacherError, UserError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import fresh_network, load_classifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run import train, train_on
from deit.training.state import HINTS_NAME
from tests.helpers import memory_splits, randomized, tiny_deit


def test_a_run_ends_with_its_evaluation_and_report(tmp_path: Path) -> None:
    recipe = get_recipe("deit").tiny()
    result = train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "a run", device="cpu", workers=0)
    written = json.loads((result.directory / "evaluation.json").read_text())
    assert written["heads"]["class"]["top1"] == result.evaluation.main.top1
    assert written["part"] == result.part == "validation"
    assert (result.directory / "report.html").is_file()
    for name in ("best", "last"):
        model = result.directory / name
        assert (model / "README.md").read_text() == model_card(model)
    card = (result.directory / "best" / "README.md").read_text()
    assert "48 train, 9 validation" in card
    assert "`made in memory`" in card
    assert f"{result.evaluation.main.top1:.2%}" in card
    again = train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "a run", device="cpu", workers=0)
    assert again.evaluation.heads == result.evaluation.heads


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    recipe = get_recipe("deit").tiny()
    train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)
    with pytest.raises(CheckpointError, match="is not the data"):
        train_on(memory_splits(51), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)


def test_a_batch_larger_than_the_data_is_said_and_made_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = get_recipe("deit").tiny().replace(batch_size=512, epochs=1)
    train_on(memory_splits(12), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)
    assert "12 training images are fewer than the recipe's batch of 512" in capsys.readouterr().err
    assert get_recipe(str(tmp_path / "recipe.toml")).batch_size == 12


def test_a_recipe_that_distils_needs_a_teacher_and_another_takes_none(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="none is given"):
        train_on(memory_splits(12), get_recipe("deit-distilled").tiny(), RunSettings("memory"), tmp_path)
    with pytest.raises(TeacherError, match="a teacher is given"):
        train_on(memory_splits(12), get_recipe("deit").tiny(), RunSettings("memory", teacher="resnet18"), tmp_path)
    assert not list(tmp_path.iterdir())


def _network(folder: Path) -> str:
    fresh_network("test_resnet", ("a", "b", "c"), DeiTImageProcessor.for_size(32, 32), {}, seed=0).save_pretrained(folder)
    return str(folder)


def test_hints_learn_beside_the_model_and_are_no_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = get_recipe("small-data-distilled").tiny()
    run = RunSettings("memory", teacher=_network(tmp_path / "a teacher"))
    train_on(memory_splits(48), recipe, run, tmp_path / "run", device="cpu", workers=0)
    assert "hard distillation, and its maps as hints" in capsys.readouterr().err
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    first, second = (read_tensors(path / HINTS_NAME) for path in checkpoints[-2:])
    assert all(not torch.equal(first[name], value) for name, value in second.items())
    best = load_classifier(tmp_path / "run" / "best").model
    assert not [name for name, _ in best.named_parameters() if "hints" in name or "maps" in name]


def test_a_run_with_hints_goes_on_exactly(tmp_path: Path) -> None:
    recipe = get_recipe("small-data-distilled").tiny()
    run = RunSettings("memory", teacher=_network(tmp_path / "a teacher"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_on(memory_splits(48), recipe, run, whole, device="cpu", workers=0)
    shutil.copytree(whole, parts)
    shutil.rmtree(sorted((parts / "checkpoints").iterdir())[-1])  # as if it had ended after the first epoch
    train_on(memory_splits(48), recipe, run, parts, device="cpu", workers=0)
    for name in ("best", "last"):
        one, other = (read_tensors(folder / name / "model.safetensors") for folder in (whole, parts))
        assert all(torch.equal(one[key], value) for key, value in other.items())


def test_a_teacher_without_maps_teaches_by_its_answers_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = get_recipe("small-data-distilled").tiny().replace(epochs=1)
    student = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=3).with_classes(("a", "b", "c"))))
    student.save_pretrained(tmp_path / "a transformer")
    run = RunSettings("memory", teacher=str(tmp_path / "a transformer"))
    train_on(memory_splits(12), recipe, run, tmp_path / "run", device="cpu", workers=0)
    said = capsys.readouterr().err
    assert "a transformer shows no maps" in said
    assert "as hints" not in said
    assert not list((tmp_path / "run").rglob(HINTS_NAME))


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        train("digits", "digits", out=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
