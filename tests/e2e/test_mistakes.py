"""A user error is one line with a remedy and exit code 2, never a traceback: one of each command, others in tests/unit/cli."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.conftest import Deit


def _photos(root: Path, *counts: int) -> Path:
    for label, count in enumerate(counts):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (label * 80, number * 10, 90)).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "one"), "one class"),
        (("train", "good", "--teacher", "no_such_net"), "did you mean"),
        (("tune", "good", "--vary", "optimizer.lrr=1..2"), "did you mean optimizer.lr"),
        (("teacher", "train", "good", "--arch", "resnet5O"), "did you mean resnet50"),
        (("evaluate", "good", "good"), "good has no weights: looked for model.safetensors"),
        (("predict", "good", "no such image.jpg"), "does not exist"),
        (("predict", "deit-tiny-patch16-224", "good"), "is not in the cache"),
        (("export", "good", "--precision", "int8"), "pass --calibrate DATA"),
        (("benchmark", "no such model"), "check the path"),
        (("convert", "good", "out"), "good has no weights"),
        (("recipe", "show", "diet"), "did you mean deit"),
        (("model", "push", "good", "me/good"), "config.json"),
    ],
)
def test_user_error_is_one_line(deit: Deit, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    _photos(tmp_path / "good", 3, 3)
    _photos(tmp_path / "one", 3)
    done = deit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_training_on_fewer_images_than_a_batch(deit: Deit, tmp_path: Path) -> None:
    done = deit(
        *("train", _photos(tmp_path / "few", 4, 4), "--out", tmp_path / "run", "--recipe", "small-data", "--epochs", "1"),
        *("--image-size", "32", "--set", "model.hidden_size=24", "--set", "model.num_hidden_layers=1", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "6 training images are fewer than the batch size of 32" in done.stderr


def test_lists_as_json(deit: Deit) -> None:
    assert len(json.loads(deit("model", "list", "--json").stdout)) == 8
    assert "small-data" in json.loads(deit("recipe", "list", "--json").stdout)
    assert tomllib.loads(deit("recipe", "show", "deit", "--set", "seed=7").stdout)["seed"] == 7
    assert deit("--help").returncode == 0
