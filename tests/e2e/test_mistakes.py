"""A user error is one line with a remedy and exit code 2, never a traceback."""

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
        (("train",), "no data to train on"),
        (("train", "no such folder"), "is not a folder"),
        (("train", "one"), "one class"),
        (("train", "empty class"), "'class 1'"),
        (("train", "nothing"), "no folders in it"),
        (("train", "good", "--recipe", "smal-data"), "did you mean small-data"),
        (("train", "good", "--set", "optimizer.lrr=1"), "did you mean optimizer.lr"),
        (("train", "good", "--set", "optimizer.lr"), "write NAME=VALUE"),
        (("train", "good", "--image-size", "225"), "is not divisible"),
        (("train", "good", "--model", "deit-huge"), "Unknown model"),
        (("train", "good", "--recipe", "deit-distilled"), "pass --teacher"),
        (("train", "good", "--recipe", "deit", "--teacher", "regnety_160"), "-distilled"),
        (("train", "good", "--teacher", "regnety_160"), "deit teacher train DATA --arch"),
        (("train", "good", "--teacher", "no_such_net"), "did you mean"),
        (("train", "good", "--device", "cuda:77"), "no device"),
        (("train", "good", "--cache", "disk", "--cache-limit", "0"), "pass a larger --cache-limit, or --cache off"),
        (("train", "--resume", "good"), "not a run directory"),
        (("train", "good", "--out", "good"), "exists already"),
        (("teacher", "train", "good", "--arch", "resnet5O"), "did you mean resnet50"),
        (("evaluate", "no such model", "good"), "an organization/name on the hub: check the path"),
        (("evaluate", "good", "good"), "good has no weights: looked for model.safetensors"),
        (("predict", "good", "no such image.jpg"), "does not exist"),
        (("predict", "runs/no such model", "good"), "is not a path"),
        (("predict", "deit-tiny-patch16-224", "good"), "is not in the cache"),
        (("predict", "good", "good", "--runtime", "openvino"), "make one with `deit export`"),
        (("export", "no such model"), "check the path"),
        (("export", "good", "--precision", "int8"), "pass --calibrate DATA"),
        (("export", "good", "--to", "onnx", "--precision", "bf16"), "does not support bf16"),
        (("export", "good", "--out", "good"), "good already exists"),
        (("benchmark", "no such model"), "check the path"),
        (("benchmark", "good", "--images", "nowhere"), "nowhere does not exist"),
        (("info", "good"), "bundle.json"),
        (("convert", "no/such/model", "out"), "no/such/model does not exist: check the path"),
        (("convert", "good", "good"), "good already exists"),
        (("convert", "good", "out.pth", "--to", "timm"), "looks like a file"),
        (("convert", "good", "out", "--image-size", "large"), "write 384, or height x width"),
        (("convert", "good", "out"), "good has no weights"),
        (("recipe", "show", "diet"), "did you mean deit"),
        (("model", "show", "deit-small"), "did you mean deit-small-patch16-224"),
        (("model", "push", "good", "me/good"), "config.json"),
        (("model", "push", "no such model", "me/good"), "does not exist"),
        (("model", "push", "good", "good"), "OWNER/NAME"),
        (("model", "push", "good", "me/good", "--license", "none at all"), "apache-2.0"),
    ],
)
def test_user_error_is_one_line(deit: Deit, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    _photos(tmp_path / "good", 3, 3)
    _photos(tmp_path / "one", 3)
    _photos(tmp_path / "empty class", 3, 0)
    (tmp_path / "nothing").mkdir()
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
