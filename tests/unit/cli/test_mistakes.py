"""A user error of each argument is one sentence with a remedy, found before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.errors import DeiTError
from tests.helpers import pattern


def _images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pattern(40, 40, seed=number).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "no data to train on"),
        (("train", "no such folder"), "is not a folder"),
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
        (("train", "good", "--device", "cuda:77"), "no device"),
        (("train", "good", "--cache", "disk", "--cache-limit", "0"), "pass a larger --cache-limit, or --cache off"),
        (("train", "--resume", "good"), "not a run directory"),
        (("train", "good", "--out", "good"), "exists already"),
        (("train", "good", "--shard"), "start it with torchrun"),
        (("tune", "good", "--minutes", "0"), "pass a number above 0"),
        (("tune", "good", "--recipe", "pretrain-mim"), "does not use labels"),
        (("tune", "--resume", "good"), "not the directory of a search"),
        (("predict", "good", "good", "--engine", "ray"), "pass --out, too"),
        (("evaluate", "no such model", "good"), "an organization/name on the hub: check the path"),
        (("predict", "runs/no such model", "good"), "is not a path"),
        (("predict", "good", "good", "--runtime", "openvino"), "make one with `deit export`"),
        (("export", "no such model"), "check the path"),
        (("export", "good", "--to", "onnx", "--precision", "bf16"), "does not support bf16"),
        (("export", "good", "--out", "good"), "good already exists"),
        (("benchmark", "good", "--images", "nowhere"), "nowhere does not exist"),
        (("info", "good"), "bundle.json"),
        (("convert", "no/such/model", "out"), "no/such/model does not exist: check the path"),
        (("convert", "good", "good"), "good already exists"),
        (("convert", "good", "out.pth", "--to", "timm"), "looks like a file"),
        (("convert", "good", "out", "--image-size", "large"), "write 384, or height x width"),
        (("model", "show", "deit-small"), "did you mean deit-small-patch16-224"),
        (("model", "push", "no such model", "me/good"), "does not exist"),
        (("model", "push", "good", "good"), "OWNER/NAME"),
        (("model", "push", "good", "me/good", "--license", "none at all"), "apache-2.0"),
    ],
)
def test_user_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    for folder, count in {"good/class 0": 3, "good/class 1": 3, "empty class/class 0": 3, "empty class/class 1": 0}.items():
        _images(tmp_path / folder, count)
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, list(arguments))
    error = result.exception
    assert isinstance(error, DeiTError)
    assert result.stderr == ""  # nothing else is said before the error
    assert error.exit_code == 2
    assert message in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "runs").exists()
