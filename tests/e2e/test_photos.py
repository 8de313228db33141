"""From a folder of photographs to a teacher, a distilled student and predictions, with the program."""

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
    teacher = deit(
        *("teacher", "train", photos, "--arch", "test_resnet", "--out", root / "teacher"),
        *("--image-size", "64", "--epochs", "2", "--batch-size", "16", "--device", "cpu"),
    )
    assert teacher.returncode == 0, teacher.stderr
    done = deit("train", photos, "--teacher", root / "teacher", "--out", root / "student", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    (root / "student.json").write_text(done.stdout)
    (root / "student.err").write_text(done.stderr)
    return root


def test_run_directory_is_complete(runs: Path) -> None:
    student = runs / "student"
    names = {path.name for path in student.iterdir()}
    assert names == {
        *("best", "last", "checkpoints", "log.jsonl", "recipe.toml", "run.json"),
        *("evaluation.json", "predictions.jsonl", "report.html"),
    }
    rows = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {path.name for path in (student / "best").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("training.json", "training_images.bin"),
    }
    result = json.loads((runs / "student.json").read_text())
    assert set(result["heads"]) == {"class", "distillation", "both"}
    assert result["split"] == "validation"
    assert result["teacher"]["images"] == result["images"] == 6
    predictions = [json.loads(line) for line in (student / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    correct = sum(row["label"] == row["prediction"] for row in predictions)
    assert (len(predictions), correct / 6) == (6, pytest.approx(result["heads"]["both"]["top1"]))
    for name in CLASSES:
        assert name in (student / "report.html").read_text()


def test_summary_before_training(runs: Path) -> None:
    stderr = (runs / "student.err").read_text()
    for text in (
        "30 train, 6 validation",
        "20% of each class set aside",
        "3 (",
        "deit-tiny-distilled",
        "hard distillation",
        "about",
    ):
        assert text in stderr, stderr


def test_transformers_loads_the_student_with_the_same_logits(runs: Path) -> None:
    import torch
    import transformers

    from deit import load_model

    directory = runs / "student" / "best"
    model: Any = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(directory)
    processor_class: Any = transformers.AutoImageProcessor
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).logits, load_model(directory)(pixels).logits, rtol=1e-5, atol=1e-5)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert processor_class.from_pretrained(directory).crop_size["height"] == 64


def test_evaluation_leaves_out_training_images(deit: Deit, runs: Path, photos: Path) -> None:
    done = deit("evaluate", runs / "student", photos, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    trained = json.loads((runs / "student.json").read_text())
    assert again["images"] == 6
    assert again["confusion"] == trained["confusion"]
    for name, head in trained["heads"].items():
        assert again["heads"][name] == pytest.approx(head, rel=1e-5)
    all_images = deit("evaluate", runs / "student", photos, "--split", "all", "--json", "--device", "cpu")
    assert json.loads(all_images.stdout)["images"] == 36
    table = deit("evaluate", runs / "teacher", photos, "--device", "cpu")
    assert table.returncode == 0, table.stderr
    assert "квадрат" in table.stdout


def test_prediction_of_files_folders_and_standard_input(deit: Deit, runs: Path, photos: Path) -> None:
    picture = next((photos / CLASSES[0]).rglob("*.jpg"))
    one = deit("predict", runs / "student", picture)
    assert one.returncode == 0, one.stderr
    assert any(name in one.stdout for name in CLASSES)
    folder = json.loads(deit("predict", runs / "student", photos / CLASSES[1], "--json").stdout)
    assert len(folder) == 12
    assert {row["label"] for row in folder[0]["predictions"]} == set(CLASSES)
    piped = deit("predict", runs / "student", "-", "--json", stdin=picture.read_bytes())
    [prediction] = json.loads(piped.stdout)
    direct = json.loads(deit("predict", runs / "student", picture, "--json").stdout)
    assert prediction["predictions"] == direct[0]["predictions"]


def test_conversion_to_timm_and_back_keeps_the_predictions(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    picture = next((photos / CLASSES[0]).rglob("*.jpg"))
    expected = json.loads(deit("predict", runs / "student", picture, "--json").stdout)[0]["predictions"]
    converted = deit("convert", runs / "student", "for timm", "--to", "timm", cwd=tmp_path)
    assert converted.returncode == 0, converted.stderr
    assert all(text in converted.stdout for text in ("read by", "deit", "timm 1.", "0.00e+00"))
    for source, target, *options in (
        ("for timm", "for the authors.pth", "--heads", "3"),
        ("for the authors.pth", "back", "--heads", "3"),
    ):
        done = deit("convert", source, target, *options, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert max(json.loads(done.stdout)["differences"].values()) <= 1e-5
    shown = json.loads(deit("model", "show", "for timm", "--json", cwd=tmp_path).stdout)
    assert (shown["format"], shown["class"]) == ("timm", "DeiTForImageClassificationWithTeacher")
    with_timm = json.loads(deit("predict", "for timm", picture, "--json", cwd=tmp_path).stdout)[0]["predictions"]
    assert [row["label"] for row in with_timm] == [row["label"] for row in expected]
    without_names = json.loads(deit("predict", "back", picture, "--json", cwd=tmp_path).stdout)[0]["predictions"]
    for predictions in (with_timm, without_names):
        assert [row["probability"] for row in predictions] == pytest.approx([row["probability"] for row in expected])
    again = deit("convert", "for timm", "back", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "deit: back already exists: choose another destination, or pass --overwrite.\n",
    )


def test_training_images_are_left_out_for_every_path_to_the_model(runs: Path, photos: Path) -> None:
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
    ema = evaluate(checkpoint, photos, device="cpu", workers=0, ema=True)
    last = evaluate(student / "last", photos, device="cpu", workers=0)
    assert ema.main.loss == pytest.approx(last.main.loss)


def test_push_uploads_the_model_and_a_card_that_describes_the_run(
    deit: Deit, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = deit("model", "push", runs / "student", "me/shapes", "--license", "mit", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan["files"]) == {path.name for path in (runs / "student" / "best").iterdir()}
    assert "url" not in plan
    for text in ("license: mit", f"Data set: `{photos.name}`", "30 train, 6 validation", "`квадрат`", "the teacher `teacher`"):
        assert text in plan["card"], text
    assert str(photos.parent) not in plan["card"]
    assert str(runs) not in plan["card"]
    table = deit("model", "push", runs / "teacher", "me/teacher", "--dry-run")
    assert table.returncode == 0, table.stderr
    assert "nothing is uploaded" in table.stdout
    assert "library_name: timm" in table.stdout
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    offline = deit("model", "push", runs / "student", "me/shapes")
    assert (offline.returncode, offline.stderr) == (
        2,
        "deit: The hub is not available in offline mode: unset HF_HUB_OFFLINE.\n",
    )


def test_unreadable_file_is_an_error_in_its_row(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "not an image.jpg"
    bad.write_text("hello")
    good = next((photos / CLASSES[0]).rglob("*.jpg"))
    done = deit("predict", runs / "student", good, bad, good, "--json")
    first, second, third = json.loads(done.stdout)
    assert done.returncode == 1
    assert "not an image" in second["error"]
    assert first == third


def test_interrupted_run_resumes_to_the_same_weights(deit: Deit, runs: Path, photos: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("deit"), "train", photos, "--teacher", runs / "teacher", *TINY]
    command += ["--epochs", "6", "--out", tmp_path / "the run"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    log = tmp_path / "the run" / "log.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert "deit train --resume" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "the run" / "checkpoints").iterdir())

    resumed = deit("train", "--resume", tmp_path / "the run", "--device", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed from" in resumed.stderr
    uninterrupted = deit(
        "train", photos, "--teacher", runs / "teacher", *TINY, "--epochs", "6", "--out", tmp_path / "uninterrupted"
    )
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "the run" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes(), name
    rows = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("the run", "uninterrupted")
    ]
    for first, second in zip(*rows, strict=True):
        assert all(first[key] == second[key] for key in ("epoch", "loss", "validation"))


def test_unreadable_files_are_reported_or_skipped(deit: Deit, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy of photos"
    shutil.copytree(photos, copy)
    truncated = next((copy / CLASSES[0]).rglob("*.jpg"))
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])  # the header is intact
    rubbish = copy / CLASSES[1] / "rubbish.png"
    rubbish.write_bytes(b"no image at all")

    refused = deit("train", copy, "--out", tmp_path / "a", *TINY)
    assert refused.returncode == 2
    assert "rubbish.png" in refused.stderr
    assert "--skip-unreadable" in refused.stderr
    checked = deit("data", "check", copy)
    assert checked.returncode == 1
    assert "rubbish.png" in checked.stdout
    assert truncated.name in checked.stdout

    skipped = deit("train", copy, "--out", tmp_path / "b", "--skip-unreadable", *TINY)
    assert skipped.returncode == 0, skipped.stderr
    assert "1 unreadable images are left out" in skipped.stderr
