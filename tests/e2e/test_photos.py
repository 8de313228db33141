"""A folder of photographs from teacher to prediction, by the real program."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CLASSES, TINY, Deit


@pytest.fixture(scope="module")
def runs(deit: Deit, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained ``teacher`` and a ``student`` distilled from it."""
    root = tmp_path_factory.mktemp("my runs")
    taught = deit(
        *("teacher", "train", photos, "--arch", "test_resnet", "--out", root / "teacher"),
        *("--image-size", "64", "--epochs", "2", "--batch-size", "16", "--device", "cpu"),
    )
    assert taught.returncode == 0, taught.stderr
    done = deit("train", photos, "--teacher", root / "teacher", "--out", root / "student", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    (root / "student.json").write_text(done.stdout)
    (root / "student.err").write_text(done.stderr)
    return root


def test_training_leaves_a_whole_run(runs: Path) -> None:
    student = runs / "student"
    names = {path.name for path in student.iterdir()}
    assert names == {*("best", "last", "checkpoints", "log.jsonl", "recipe.toml", "run.json", "evaluation.json", "report.html")}
    rows = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {path.name for path in (student / "best").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.json")
    }
    result = json.loads((runs / "student.json").read_text())
    assert set(result["heads"]) == {"class", "distillation", "both"}
    assert result["part"] == "validation"
    assert result["teacher"]["images"] == result["images"] == 6
    for name in CLASSES:
        assert name in (student / "report.html").read_text()


def test_what_is_about_to_run_is_said(runs: Path) -> None:
    said = (runs / "student.err").read_text()
    for words in (
        "30 train, 6 validation",
        "20% of each class set aside",
        "3 (",
        "deit-tiny-distilled",
        "hard distillation",
        "about",
    ):
        assert words in said, said


def test_the_saved_student_opens_in_transformers_with_the_same_logits(runs: Path) -> None:
    import torch
    import transformers

    from deit import load_model

    directory = runs / "student" / "best"
    theirs: Any = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(directory)
    processor: Any = transformers.AutoImageProcessor
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(pixels).logits, load_model(directory)(pixels).logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert processor.from_pretrained(directory).crop_size["height"] == 64


def test_evaluation_takes_the_images_that_training_never_saw(deit: Deit, runs: Path, photos: Path) -> None:
    done = deit("evaluate", runs / "student", photos, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    trained = json.loads((runs / "student.json").read_text())
    assert again["images"] == 6
    assert again["confusion"] == trained["confusion"]
    for name, head in trained["heads"].items():
        assert again["heads"][name] == pytest.approx(head, rel=1e-5)
    everything = deit("evaluate", runs / "student", photos, "--part", "all", "--json", "--device", "cpu")
    assert json.loads(everything.stdout)["images"] == 36
    table = deit("evaluate", runs / "teacher", photos, "--device", "cpu")
    assert table.returncode == 0, table.stderr
    assert "квадрат" in table.stdout


def test_prediction_names_files_folders_and_standard_input(deit: Deit, runs: Path, photos: Path) -> None:
    picture = next((photos / CLASSES[0]).rglob("*.jpg"))
    one = deit("predict", runs / "student", picture)
    assert one.returncode == 0, one.stderr
    assert any(name in one.stdout for name in CLASSES)
    folder = json.loads(deit("predict", runs / "student", photos / CLASSES[1], "--json").stdout)
    assert len(folder) == 12
    assert {answer["label"] for answer in folder[0]["predictions"]} == set(CLASSES)
    piped = deit("predict", runs / "student", "-", "--json", stdin=picture.read_bytes())
    [answer] = json.loads(piped.stdout)
    direct = json.loads(deit("predict", runs / "student", picture, "--json").stdout)
    assert answer["predictions"] == direct[0]["predictions"]


def test_the_student_goes_to_timm_and_back_and_answers_the_same(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    picture = next((photos / CLASSES[0]).rglob("*.jpg"))
    expected = json.loads(deit("predict", runs / "student", picture, "--json").stdout)[0]["predictions"]
    said = deit("convert", runs / "student", "for timm", "--to", "timm", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert all(words in said.stdout for words in ("read back by", "deit", "timm 1.", "0.00e+00"))
    for source, target, *options in (
        ("for timm", "for the authors.pth", "--heads", "3"),
        ("for the authors.pth", "back", "--heads", "3"),
    ):
        done = deit("convert", source, target, *options, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert max(json.loads(done.stdout)["differences"].values()) <= 1e-5
    shown = json.loads(deit("model", "show", "for timm", "--json", cwd=tmp_path).stdout)
    assert (shown["format"], shown["class"]) == ("timm", "DeiTForImageClassificationWithTeacher")
    answered = json.loads(deit("predict", "for timm", picture, "--json", cwd=tmp_path).stdout)[0]["predictions"]
    assert [answer["label"] for answer in answered] == [answer["label"] for answer in expected]
    nameless = json.loads(deit("predict", "back", picture, "--json", cwd=tmp_path).stdout)[0]["predictions"]
    for other in (answered, nameless):
        assert [answer["probability"] for answer in other] == pytest.approx([answer["probability"] for answer in expected])
    again = deit("convert", "for timm", "back", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "deit: back is there already: choose another destination, or pass --overwrite.\n",
    )


def test_however_the_model_is_named_the_images_that_training_saw_are_left_out(runs: Path, photos: Path) -> None:
    from deit import evaluate

    student = runs / "student"
    checkpoint = max((student / "checkpoints").iterdir())
    for model in (
        student,
        student / "best",
        student / "best" / "model.safetensors",
        checkpoint,
        checkpoint / "model.safetensors",
    ):
        result = evaluate(model, photos, device="cpu", workers=0, crop="pad")
        assert result.images == 6, model
    averaged = evaluate(checkpoint, photos, device="cpu", workers=0, ema=True)
    last = evaluate(student / "last", photos, device="cpu", workers=0)
    assert averaged.answer.loss == pytest.approx(last.answer.loss)


def test_a_push_sends_the_model_and_a_card_that_tells_of_the_run(
    deit: Deit, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = deit("model", "push", runs / "student", "me/shapes", "--license", "mit", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan["files"]) == {path.name for path in (runs / "student" / "best").iterdir()}
    assert "url" not in plan
    for words in ("license: mit", f"Data set: `{photos.name}`", "30 train, 6 validation", "`квадрат`", "a teacher, `teacher`"):
        assert words in plan["card"], words
    assert str(photos.parent) not in plan["card"]
    assert str(runs) not in plan["card"]
    table = deit("model", "push", runs / "teacher", "me/teacher", "--dry-run")
    assert table.returncode == 0, table.stderr
    assert "nothing is sent" in table.stdout
    assert "library_name: timm" in table.stdout
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    offline = deit("model", "push", runs / "student", "me/shapes")
    assert (offline.returncode, offline.stderr) == (2, "deit: The hub is not available in offline mode: unset HF_HUB_OFFLINE.\n")


def test_one_bad_file_is_one_error_in_its_place(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "not an image.jpg"
    bad.write_text("hello")
    good = next((photos / CLASSES[0]).rglob("*.jpg"))
    done = deit("predict", runs / "student", good, bad, good, "--json")
    first, second, third = json.loads(done.stdout)
    assert done.returncode == 1
    assert "not an image" in second["error"]
    assert first == third


def test_an_interrupted_run_goes_on_to_the_same_weights(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("deit"), "train", photos, "--teacher", runs / "teacher", *TINY]
    command += ["--epochs", "6", "--out", tmp_path / "the run"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    log = tmp_path / "the run" / "log.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "deit train --resume" in said
    assert "Traceback" not in said
    assert list((tmp_path / "the run" / "checkpoints").iterdir())

    resumed = deit("train", "--resume", tmp_path / "the run", "--device", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed from" in resumed.stderr
    whole = deit("train", photos, "--teacher", runs / "teacher", *TINY, "--epochs", "6", "--out", tmp_path / "in one go")
    assert whole.returncode == 0, whole.stderr
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "the run" / name).read_bytes() == (tmp_path / "in one go" / name).read_bytes(), name
    rows = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("the run", "in one go")
    ]
    for one, other in zip(*rows, strict=True):
        assert (one["epoch"], one["loss"], one["validation"]) == (other["epoch"], other["loss"], other["validation"])


def test_unreadable_files_are_named_or_left_out_and_counted(deit: Deit, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy of photos"
    shutil.copytree(photos, copy)
    cut = next((copy / CLASSES[0]).rglob("*.jpg"))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])  # its header is whole, its pixels are gone
    rubbish = copy / CLASSES[1] / "rubbish.png"
    rubbish.write_bytes(b"no image at all")

    refused = deit("train", copy, "--out", tmp_path / "a", *TINY)
    assert refused.returncode == 2
    assert "rubbish.png" in refused.stderr
    assert "--skip-unreadable" in refused.stderr
    checked = deit("data", "check", copy)
    assert checked.returncode == 1
    assert "rubbish.png" in checked.stdout
    assert cut.name in checked.stdout

    skipped = deit("train", copy, "--out", tmp_path / "b", "--skip-unreadable", *TINY)
    assert skipped.returncode == 0, skipped.stderr
    assert "1 unreadable images are left out" in skipped.stderr
