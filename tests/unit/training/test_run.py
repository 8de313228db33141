"""Runs from data and recipe to a run directory, and what is rejected before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import kills

from deit.checkpoints.model_card import model_card
from deit.checkpoints.run_log import read_log
from deit.checkpoints.weights import read_tensors
from deit.distillation.build_cache import build_cache
from deit.errors import CheckpointError, TeacherError, UserError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.system import locking
from deit.training.run import train, train_on
from deit.training.state import FEATURES_NAME
from tests.helpers import memory_splits, pattern, randomized, tiny_deit


def test_run_writes_evaluation_report_and_cards(tmp_path: Path) -> None:
    recipe = get_recipe("deit").tiny()
    result = train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "a run", device="cpu", workers=0)
    written = json.loads((result.directory / "evaluation.json").read_text())
    assert written["heads"]["class"]["top1"] == result.evaluation.main.top1
    assert written["split"] == result.split == "validation"
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


@pytest.mark.parametrize("is_cached", [False, True])
def test_resumed_run_recognizes_its_teacher_wherever_it_is(tmp_path: Path, is_cached: bool) -> None:
    kills.make_images(tmp_path / "images")
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    convnet, recipe = get_recipe("convnet").tiny(), get_recipe("small-data-distilled").tiny().replace(epochs=1)
    for seed, name in enumerate(("teacher", "other")):
        train(tmp_path / "images", convnet.replace(seed=seed), out=tmp_path / name, **options)
        if is_cached:
            build_cache(tmp_path / "images", recipe, teacher=tmp_path / name, out=tmp_path / f"{name} cache", **options)
    ending = " cache" if is_cached else ""
    run = tmp_path / "run"
    train(tmp_path / "images", recipe, out=run, teacher=tmp_path / f"teacher{ending}", **options)
    assert json.loads((run / "run.json").read_text())["teacher_sha256"]
    (tmp_path / f"teacher{ending}").rename(tmp_path / "moved")
    longer: dict[str, Any] = {"resume": run, "settings": {"epochs": "2"}, **options}
    with pytest.raises(UserError):
        train(**longer)
    with pytest.raises(TeacherError, match=r"other.* is not the teacher of this run: pass the location of that one"):
        train(teacher=tmp_path / f"other{ending}", **longer)
    train(teacher=tmp_path / "moved", **longer)
    assert json.loads((run / "run.json").read_text())["teacher"] == str(tmp_path / "moved")
    assert [row["epoch"] for row in read_log(run)] == [1, 2]


def test_second_program_in_a_run_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.1)
    recipe = get_recipe("deit").tiny()
    with locking.locked(tmp_path / "run", "wait"):
        with pytest.raises(UserError, match=r"Another program is writing to .*run: wait until it has finished, or"):
            train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "run", device="cpu", workers=0)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [locking.LOCK_NAME]
    train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "run", device="cpu", workers=0)
    assert not (tmp_path / "run" / locking.LOCK_NAME).exists()


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_checkpoint_minutes_must_be_positive(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UserError, match="pass a number above 0"):
        train("digits", out=tmp_path / "run", checkpoint_minutes=minutes)


def test_cache_is_recorded_and_kept_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    for index in range(8):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern(100, 80, index).resize((300, 240)).save(path)
    recipe = get_recipe("deit").tiny().replace(epochs=1, batch_size=6)
    for name, cache in (("cached", "auto"), ("not cached", "off")):
        directory, is_cached = tmp_path / name, cache == "auto"
        train(tmp_path / "data", recipe, out=directory, workers=0, device="cpu", cache=cache)  # type: ignore[arg-type]
        written = json.loads((directory / "run.json").read_text())
        assert (written["cache"], written["reduced_images"]) == ("disk" if is_cached else "off", is_cached)
        if is_cached:
            assert len(list((tmp_path / "cache" / "images").iterdir())) == 8  # for training and validation
        train(resume=directory, settings={"epochs": "2"}, workers=0, device="cpu", cache="off" if is_cached else "disk")
        written = json.loads((directory / "run.json").read_text())
        assert (written["cache"], written["reduced_images"]) == ("off" if is_cached else "disk", is_cached)


def test_invalid_cache_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass a larger --cache-limit, or --cache off"):
        train("no such folder", out=tmp_path, cache_limit=-1)


def test_run_resumes_only_with_its_own_data(tmp_path: Path) -> None:
    recipe = get_recipe("deit").tiny()
    train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)
    with pytest.raises(CheckpointError, match="is not the data"):
        train_on(memory_splits(51), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)


def test_batch_size_is_limited_to_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = get_recipe("deit").tiny().replace(batch_size=512, epochs=1)
    train_on(memory_splits(12), recipe, RunSettings("memory"), tmp_path, device="cpu", workers=0)
    assert "12 training images are fewer than the batch size of 512" in capsys.readouterr().err
    assert get_recipe(str(tmp_path / "recipe.toml")).batch_size == 12


def test_teacher_is_required_exactly_if_the_recipe_distills(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="none is given"):
        train_on(memory_splits(12), get_recipe("deit-distilled").tiny(), RunSettings("memory"), tmp_path)
    with pytest.raises(TeacherError, match="a teacher is given"):
        train_on(memory_splits(12), get_recipe("deit").tiny(), RunSettings("memory", teacher="resnet18"), tmp_path)
    assert not list(tmp_path.iterdir())


def _network(folder: Path) -> str:
    new_timm_classifier("test_resnet", ("a", "b", "c"), DeiTImageProcessor.for_size(32, 32), {}, seed=0).save_pretrained(folder)
    return str(folder)


def test_feature_distillation_is_trained_but_not_saved_with_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = get_recipe("small-data-distilled").tiny()
    run = RunSettings("memory", teacher=_network(tmp_path / "a teacher"))
    train_on(memory_splits(48), recipe, run, tmp_path / "run", device="cpu", workers=0)
    assert "hard distillation with feature distillation" in capsys.readouterr().err
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    first, second = (read_tensors(path / FEATURES_NAME) for path in checkpoints[-2:])
    changed = {name for name, value in second.items() if not torch.equal(first[name], value)}
    assert changed == {name for name in second if not name.startswith("reduction.")}
    best = load_classifier(tmp_path / "run" / "best").model
    assert not [name for name, _ in best.named_parameters() if "features" in name or "heads" in name]


def test_run_with_feature_distillation_resumes_exactly(tmp_path: Path) -> None:
    recipe = get_recipe("small-data-distilled").tiny()
    run = RunSettings("memory", teacher=_network(tmp_path / "a teacher"))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_on(memory_splits(48), recipe, run, whole, device="cpu", workers=0)
    shutil.copytree(whole, resumed)
    shutil.rmtree(sorted((resumed / "checkpoints").iterdir())[-1])  # as if interrupted after the first epoch
    train_on(memory_splits(48), recipe, run, resumed, device="cpu", workers=0)
    for name in ("best", "last"):
        one, other = (read_tensors(folder / name / "model.safetensors") for folder in (whole, resumed))
        assert all(torch.equal(one[key], value) for key, value in other.items())


def test_teacher_without_features_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = get_recipe("small-data-distilled").tiny().replace(epochs=1)
    student = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=3).with_classes(("a", "b", "c"))))
    student.save_pretrained(tmp_path / "a transformer")
    run = RunSettings("memory", teacher=str(tmp_path / "a transformer"))
    train_on(memory_splits(12), recipe, run, tmp_path / "run", device="cpu", workers=0)
    output = capsys.readouterr().err
    assert "a transformer exposes no intermediate features" in output
    assert "feature distillation" not in output
    assert not list((tmp_path / "run").rglob(FEATURES_NAME))


def test_directory_in_use_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        train("digits", "digits", out=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
