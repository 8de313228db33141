"""Predictions of many images in a table: formats, resuming, links by class."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from deit.cli.main import app
from deit.data.packing import pack
from deit.errors import InterruptedWorkError, UserError
from deit.inference import predict_files as module
from deit.inference.predict_files import ClassFolders, PackedImages, predict_files
from deit.inference.predictor import Prediction, Predictor
from deit.models.modeling import DeiTForImageClassification
from tests.helpers import pattern, randomized, tiny_deit

CLASSES = ("cat", "../dog", "a/b", "A_B", ".hidden")
IMAGES = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("model"), seed=0)


def _save(path: Path, seed: int) -> Path:
    config = tiny_deit(id2label=dict(enumerate(CLASSES)))
    randomized(DeiTForImageClassification(config), seed).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.from_pretrained(model, "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos of the cat")
    names = [str(folder / f"{number % 2}" / f"{number // 2}, ünd.png") for number in range(IMAGES)]
    for number, name in enumerate(names):
        Path(name).parent.mkdir(exist_ok=True)
        pattern(40 + number, 40, number).save(name)
    Path(names[5]).write_bytes(b"not an image")
    return names


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_formats_hold_the_predictions_of_every_image(tmp_path: Path, predictor: Predictor, images: list[str]) -> None:
    expected = predictor(images, top=2)
    for ending in ("csv", "jsonl", "parquet"):
        result = predict_files(predictor, images, tmp_path / f"table.{ending}", top=2, part_images=3)
        assert (result.images, result.unreadable, result.resumed) == (IMAGES, 1, 0)
    assert read_jsonl(tmp_path / "table.jsonl") == [prediction.to_dict() for prediction in expected]
    rows = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    for row, text, prediction in zip(rows, read_csv(tmp_path / "table.csv"), expected, strict=True):
        labels = prediction.labels or (None, None)
        probabilities = prediction.probabilities or (None, None)
        assert (row["image"], row["class_1"], row["class_2"]) == (prediction.image, *labels)
        assert (row["probability_1"], row["probability_2"]) == probabilities
        assert row["error"] == (prediction.error or None)
        assert text == {name: "" if value is None else str(value) for name, value in row.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.jsonl", "table.parquet"]


class _FailingPredictor(Predictor):
    """Fails after some predictions."""

    remaining: int
    error: BaseException

    @classmethod
    def of(cls, predictor: Predictor, remaining: int, error: BaseException) -> _FailingPredictor:
        failing = cls(predictor.runtime, predictor.processor, predictor.classes, predictor.input_dtype)
        failing.remaining, failing.error = remaining, error
        return failing

    def stream(self, images: Iterable[object], top: int = 5, names: Iterable[str] = ()) -> Iterator[Prediction]:
        for prediction in super().stream(images, top, names):  # type: ignore[arg-type]
            if not self.remaining:
                raise self.error
            self.remaining -= 1
            yield prediction


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk"), InterruptedWorkError("Stopped", "", 143)], ids=repr)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_interrupted_table_goes_on_after_the_last_part(
    tmp_path: Path, predictor: Predictor, images: list[str], error: BaseException, ending: str
) -> None:
    predict_files(predictor, images, tmp_path / f"whole.{ending}", part_images=3)
    out = tmp_path / f"table.{ending}"
    for remaining in (0, 2, 4):
        failing = _FailingPredictor.of(predictor, remaining, error)
        with pytest.raises(type(error)) as raised:
            predict_files(failing, images, out, part_images=3)
        assert not out.exists()
    if isinstance(raised.value, InterruptedWorkError):
        assert "the predictions of 3 of 8 images saved" in str(raised.value)
        assert raised.value.exit_code == 143
    result = predict_files(predictor, images, out, part_images=3)
    assert (result.images, result.unreadable, result.resumed) == (IMAGES, 1, 3)
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


def test_kill_before_the_table_is_published_loses_nothing(
    tmp_path: Path, predictor: Predictor, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table.csv"
    with monkeypatch.context() as patch:
        patch.setattr(module, "new_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_files(predictor, images, out, part_images=3)
    result = predict_files(predictor, images, out, part_images=3)
    assert (result.resumed, result.unreadable) == (IMAGES, 1)
    assert [row["image"] for row in read_csv(out)] == images


def test_parts_of_other_images_settings_or_models_are_an_error(tmp_path: Path, predictor: Predictor, images: list[str]) -> None:
    out = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_files(_FailingPredictor.of(predictor, 5, KeyboardInterrupt()), images, out, part_images=3)
    other = Predictor.from_pretrained(_save(tmp_path / "other", seed=1), "cpu")
    attempts: list[tuple[Predictor, Sequence[str], int]] = [
        (predictor, images[:-1], 5),
        (predictor, images, 1),
        (other, images, 5),
    ]
    for chosen, files, top in attempts:
        with pytest.raises(UserError, match="unfinished predictions of"):
            predict_files(chosen, files, out, top, part_images=3)
    assert predict_files(predictor, images, out, part_images=3).resumed == 3


def test_unusable_table_is_an_error(tmp_path: Path, predictor: Predictor, images: list[str]) -> None:
    (tmp_path / "table.csv").write_text("precious")
    for name, problem in {"table.csv": "exists already", "table.txt": "no ending of a table", "table": "no ending"}.items():
        with pytest.raises(UserError, match=problem):
            predict_files(predictor, images, tmp_path / name)
    assert (tmp_path / "table.csv").read_text() == "precious"


def test_images_are_linked_by_class(tmp_path: Path, predictor: Predictor, images: list[str]) -> None:
    folder = tmp_path / "by class"
    failing = _FailingPredictor.of(predictor, 7, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        predict_files(failing, images, tmp_path / "table.csv", sort_into=folder, part_images=3)
    predict_files(predictor, images, tmp_path / "table.csv", sort_into=folder, part_images=3)
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    assert sorted(str(link.readlink()) for link in links) == sorted(images[:5] + images[6:])
    assert all(link.parent.parent == folder for link in links)
    for prediction in predictor(images):
        if prediction.labels:
            ClassFolders(folder, CLASSES).add(prediction)  # it is there
    assert len([path for path in folder.rglob("*") if path.is_symlink()]) == len(links)
    with pytest.raises(UserError, match="by class exists already"):
        predict_files(predictor, images, tmp_path / "second.csv", sort_into=folder)


def test_packed_images_are_predicted_as_their_files(tmp_path: Path, predictor: Predictor, images: list[str]) -> None:
    for number, name in enumerate(images):
        if number != 5:
            target = tmp_path / "photos" / ("train", "val")[number > 5] / "ab"[number % 2] / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(name).read_bytes())
    pack(tmp_path / "photos", tmp_path / "shards")
    packed = PackedImages(str(tmp_path / "shards"))
    result = predict_files(predictor, packed, tmp_path / "table.jsonl", part_images=3)
    assert (result.images, result.unreadable) == (IMAGES - 1, 0)
    expected = {f"{number}.png": predictor(name).labels for number, name in enumerate(images) if number != 5}
    rows = read_jsonl(tmp_path / "table.jsonl")
    found = {Path(str(row["image"])).name: tuple(p["label"] for p in row["predictions"]) for row in rows}  # type: ignore[attr-defined]
    assert found == expected
    output = tmp_path / "table.csv"
    arguments = ["predict", "model", str(tmp_path / "shards"), "--out", str(output)]
    for extra, problem in (([str(tmp_path / "photos")], "alone"), (["--sort-into", "x"], "leave out --sort-into")):
        outcome = CliRunner().invoke(app, arguments + extra)
        assert isinstance(outcome.exception, UserError)
        assert problem in str(outcome.exception)


def test_command_writes_a_table(tmp_path: Path, model: Path, images: list[str]) -> None:
    arguments = ["predict", str(model), *images, "--device", "cpu", "--out"]
    first = CliRunner().invoke(app, [*arguments, str(tmp_path / "a table.csv"), "--json"])
    assert first.exit_code == 1  # an image is unreadable
    assert {name: json.loads(first.stdout)[name] for name in ("images", "unreadable", "resumed")} == {
        "images": IMAGES,
        "unreadable": 1,
        "resumed": 0,
    }
    assert [row["image"] for row in read_csv(tmp_path / "a table.csv")] == images
    for wrong, problem in (("a table.csv", "exists already"), ("a table.txt", "no ending")):
        outcome = CliRunner().invoke(app, [*arguments, str(tmp_path / wrong)])
        assert isinstance(outcome.exception, UserError)
        assert problem in str(outcome.exception)
    for extra in (["-"], ["--sort-into", "x"]):
        out = [] if "--sort-into" in extra else ["--out", str(tmp_path / "b.csv")]
        outcome = CliRunner().invoke(app, ["predict", str(model), *images, *extra, *out])
        assert isinstance(outcome.exception, UserError)


def test_class_folders_are_names_of_their_own(tmp_path: Path) -> None:
    names = ["cat", "../dog", "a/b", "A_B", ".hidden", "", "..", "x" * 300, "a\nb", "Cat"]
    folders = ClassFolders(tmp_path, names)._folders
    assert [folder.parent for folder in folders.values()] == [tmp_path] * len(names)
    assert len({folder.name.casefold() for folder in folders.values()}) == len(names)
    assert all(len(os.fsencode(folder.name)) < 255 and not folder.name.startswith(".") for folder in folders.values())


def test_tables_need_no_torch() -> None:
    program = "import sys, deit.inference.predict_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


PROGRAM = """
import sys
from deit.inference.predict_files import predict_files
from deit.inference.predictor import Predictor
model, out, *images = sys.argv[1:]
predict_files(Predictor.from_pretrained(model, "cpu"), images, out, part_images=1)
"""


def test_killed_program_loses_and_doubles_no_row(tmp_path: Path, model: Path, predictor: Predictor, images: list[str]) -> None:
    many, out = images * 200, tmp_path / "table.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(model), str(out), *many]
    program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = tmp_path / "table.jsonl.parts"
    deadline = time.monotonic() + 120
    while not (parts / f"part-{3 * IMAGES:08d}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.kill()
    program.wait()
    assert not out.exists()
    result = predict_files(predictor, many, out, part_images=1)
    assert result.resumed > 3 * IMAGES
    assert [row["image"] for row in read_jsonl(out)] == many
