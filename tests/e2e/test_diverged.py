"""A diverged model: every command ends with one sentence and exit code 1, and prints no prediction."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deit.cli.main import run
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from tests.conftest import CLASSES
from tests.helpers import randomized, tiny_deit

Model = DeiTForImageClassificationWithTeacher
TINY = (
    *("--set", "model.patch_size=8", "--set", "model.hidden_size=24", "--set", "model.num_hidden_layers=1"),
    *("--set", "model.num_attention_heads=3", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
    *("--workers", "0"),
)


def nan_everywhere(model: Model) -> None:
    for parameter in model.parameters():
        parameter.fill_(torch.nan)


def nan_in_one_head(model: Model) -> None:
    model.distillation_classifier.weight.fill_(torch.nan)


def infinite_bias(model: Model) -> None:
    model.cls_classifier.bias[1] = torch.inf


def overflow(model: Model) -> None:
    """Finite weights whose products are not."""
    for parameter in model.cls_classifier.parameters():
        parameter.fill_(3e38)


DIVERGED: tuple[Callable[[Model], None], ...] = (nan_everywhere, nan_in_one_head, infinite_bias, overflow)


@pytest.fixture(scope="module", params=DIVERGED, ids=lambda damage: damage.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    diverged = randomized(Model(tiny_deit().with_classes(CLASSES)))
    with torch.no_grad():
        request.param(diverged)
    directory = tmp_path_factory.mktemp("model")
    diverged.save_pretrained(directory)
    return directory


def deit(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Runs the program in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["deit", *map(str, arguments)])
    with pytest.raises(SystemExit) as finished:
        run()
    return finished.value.code


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "MODEL", "PHOTOS", "--workers", 0),
        ("evaluate", "MODEL", "PHOTOS", "--workers", 0, "--json", "--combine", "softmax"),
        ("predict", "MODEL", "PHOTOS"),
        ("predict", "MODEL", "PHOTOS", "--json"),
        ("export", "MODEL", "--out", "OUT", "--to", "torch"),
        ("export", "MODEL", "--out", "OUT", "--to", "torch", "--precision", "bf16", "--json"),
        ("convert", "MODEL", "OUT", "--to", "timm"),
    ],
    ids=lambda command: " ".join(str(word) for word in command if str(word).islower()),
)
def test_command_ends_with_one_sentence(
    command: tuple[object, ...],
    model: Path,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"MODEL": model, "PHOTOS": photo_folder, "OUT": tmp_path / "out"}
    assert deit(*(values.get(str(word), word) for word in command), monkeypatch=monkeypatch) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("deit: The model ")
    assert "predicts NaN or infinite values: it has diverged" in last
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ("train", "PHOTOS", "--recipe", "deit-distilled", *TINY),
        ("train", "PHOTOS", "--recipe", "deit-distilled", "--set", "distillation.mode=soft", *TINY),
        ("teacher", "cache", "PHOTOS", "--recipe", "deit-distilled", *TINY),
    ],
    ids=("hard", "soft", "cache"),
)
def test_diverged_teacher_is_named(
    command: tuple[object, ...],
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = get_recipe("deit-distilled").tiny()
    teacher = new_timm_classifier("test_resnet", CLASSES, recipe.processor(), {}, 0)
    with torch.no_grad():
        teacher.network.get_classifier().weight.fill_(torch.nan)  # type: ignore[operator]
    teacher.save_pretrained(tmp_path / "teacher")
    places = ("--teacher", tmp_path / "teacher", "--out", tmp_path / "out")
    words = (photo_folder if word == "PHOTOS" else word for word in command)
    assert deit(*words, *places, monkeypatch=monkeypatch) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"deit: The teacher {tmp_path / 'teacher'} predicts NaN or infinite values: pass another teacher."
