"""``deit predict``: what its arguments stand for."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from deit.cli.main import app
from deit.cli.predict import STANDARD_INPUT, Input, read_inputs
from deit.errors import UserError
from deit.models.modeling import DeiTForImageClassification
from tests.helpers import tiny_deit

PNG = b"\x89PNG\r\n\x1a\n"


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_files_folders_and_standard_input_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"an image")
    folder = tmp_path / "photos"
    folder.mkdir()
    files = [folder / name for name in ("a.png", "b.jpg")]
    for file in files:
        file.write_bytes(PNG)
    (folder / "notes.txt").touch()
    assert read_inputs([str(files[1]), STANDARD_INPUT, str(folder)]) == [
        Input(str(files[1]), files[1]),
        Input("standard input", b"an image"),
        *(Input(str(file), file) for file in files),
    ]


def test_empty_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"")
    with pytest.raises(UserError, match="Standard input is empty: pipe an image file into it"):
        read_inputs([STANDARD_INPUT])
    monkeypatch.setattr(sys, "stdin", None)  # closed
    with pytest.raises(UserError, match="Standard input is empty"):
        read_inputs([STANDARD_INPUT])


UNUSABLE = {
    "missing": ("nowhere.jpg", "does not exist"),
    "an empty folder": ("empty", "contains no images"),
    "an unmatched pattern": ("*.tiff", "No file matches"),
    "a long name": ("x" * 300, "does not exist|Cannot read"),
    "a zero byte": ("a\0b", "does not exist|Cannot read"),
    "a missing folder": ("nowhere/", "does not exist"),
    "standard input": (STANDARD_INPUT, "Standard input is empty"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_path_is_an_error_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pipe(monkeypatch, b"")
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(PNG)
    argument, problem = UNUSABLE[kind]
    first, unusable, last = read_inputs(["a.png", argument, "b.png"])
    assert (first.name, first.problem, last.name, last.problem) == ("a.png", "", "b.png", "")
    assert re.search(problem, unusable.problem)
    assert unusable.name == ("standard input" if argument == STANDARD_INPUT else argument)
    with pytest.raises(UserError, match=problem):  # without any image, before the model is loaded
        read_inputs([argument])


def predict(*arguments: str, model: Path) -> tuple[str, int]:
    result = CliRunner().invoke(app, ["predict", str(model), *arguments], catch_exceptions=False)
    return result.stdout, result.exit_code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    DeiTForImageClassification(tiny_deit().with_classes(("cat", "dog", "鳥"))).save_pretrained(directory)
    return directory


def test_predictions_keep_the_order_of_the_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good.png", "-1.png", "café 鳥.png"):
        Image.new("RGB", (32, 32), "red").save(name)
    Path("bad.png").write_bytes(b"no image")
    images = ["good.png", "missing.png", "bad.png", "café 鳥.png"]
    text, code = predict("--json", "--top", "2", "--", *images, "-1.png", model=model)
    found = json.loads(text)
    assert code == 1
    assert [row["image"] for row in found] == [*images, "-1.png"]
    assert ["error" in row for row in found] == [False, True, True, False, False]

    text, code = predict("--csv", "--top", "2", "--", *images, "-1.png", model=model)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert code == 1
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    for row, expected in zip(rows, found, strict=True):
        values = [text for pair in expected.get("predictions", []) for text in (pair["label"], repr(pair["probability"]))]
        assert row == [expected["image"], *(values or [""] * 4), expected.get("error", "")]

    text, code = predict("--", *images, model=model)
    assert [line.split("  ")[0] for line in text.splitlines()] == ["image", *images]


def test_precision(tmp_path: Path, model: Path) -> None:
    image = tmp_path / "noise.png"
    Image.effect_noise((32, 32), 80).convert("RGB").save(image)

    def probabilities(*arguments: str) -> list[float]:
        rows = json.loads(predict(str(image), "--json", "--top", "3", *arguments, model=model)[0])
        return sorted(pair["probability"] for pair in rows[0]["predictions"])

    default, fp32, bf16 = probabilities(), probabilities("--precision", "fp32"), probabilities("--precision", "bf16")
    assert fp32 == default
    assert bf16 != default
    assert bf16 == pytest.approx(default, abs=0.02)
