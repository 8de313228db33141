"""Cached logits and feature maps of a teacher with the program: build, interrupt, resume, train, refuse what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Deit


@pytest.fixture(scope="module")
def root(deit: Deit, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher in ``the teacher`` and two views of its logits in ``my cache``."""
    root = tmp_path_factory.mktemp("my caches")
    teacher = deit(
        *("teacher", "train", photos, "--arch", "test_resnet", "--out", root / "the teacher"),
        *("--image-size", "64", "--epochs", "1", "--batch-size", "16", "--device", "cpu"),
    )
    assert teacher.returncode == 0, teacher.stderr
    done = deit(
        "teacher", "cache", photos, "--teacher", root / "the teacher", "--views", "2", "--out", root / "my cache", *TINY
    )
    assert done.returncode == 0, done.stderr
    (root / "cache.out").write_text(done.stdout)
    return root


def test_output_shows_the_size_and_the_next_command(root: Path, photos: Path) -> None:
    output = (root / "cache.out").read_text()
    assert f'deit train "{photos}" --teacher "{root / "my cache"}"' in output
    assert "bytes per sample and view" in output
    assert sum((root / "my cache" / f"view-00000{view}.bin").stat().st_size for view in (0, 1)) == 2 * 16 * 2


def test_cached_teacher_gives_the_losses_of_the_live_teacher(deit: Deit, root: Path, photos: Path) -> None:
    rows = {}
    for name, teacher in {"live": "the teacher", "cached": "my cache"}.items():
        shared = ("--set", "views=2", "--set", "distillation.features=0")  # a cache has reduced feature maps
        done = deit("train", photos, "--teacher", teacher, "--out", name, *shared, "--json", *TINY, cwd=root)
        assert done.returncode == 0, done.stderr
        rows[name] = [json.loads(line)["loss"] for line in (root / name / "log.jsonl").read_text().splitlines()]
        assert json.loads(done.stdout)["teacher"]["images"] == 6
    assert rows["live"] == rows["cached"]
    assert "cached in" in (root / "cached" / "report.html").read_text()


def test_cached_feature_maps_are_distilled(deit: Deit, root: Path, photos: Path) -> None:
    done = deit("train", photos, "--teacher", "my cache", "--out", "with features", *TINY, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "hard labels and feature maps" in done.stderr
    assert "without feature maps" not in done.stderr
    rows = [json.loads(line) for line in (root / "with features" / "log.jsonl").read_text().splitlines()]
    assert all(row["feature_loss"] > 0 for row in rows)


def test_complete_cache_as_json(deit: Deit, root: Path, photos: Path) -> None:
    arguments = ("teacher", "cache", photos, "--teacher", root / "the teacher", "--views", "2", "--out", root / "my cache")
    done = deit(*arguments, "--json", *TINY)
    assert done.returncode == 0, done.stderr
    assert "is complete: 2 views of 16 samples" in done.stderr
    result = json.loads(done.stdout)
    bytes_per_sample = 2 + (root / "my cache" / "features-000001.bin").stat().st_size // 16
    assert {name: result[name] for name in ("images", "views", "bytes", "bytes_per_sample", "built")} == {
        "images": 16,
        "views": 2,
        "bytes": 32 * bytes_per_sample,
        "bytes_per_sample": bytes_per_sample,
        "built": 0,
    }
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0


def test_interrupted_cache_is_resumed(deit: Deit, root: Path, photos: Path) -> None:
    arguments = [
        "teacher",
        "cache",
        str(photos),
        "--teacher",
        str(root / "the teacher"),
        "--views",
        "300",
        "--out",
        "interrupted",
    ]
    program: list[str | Path] = [Path(sys.executable).with_name("deit"), *arguments, *TINY]
    with subprocess.Popen(program, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (root / "interrupted" / "view-000001.bin").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert "run the same command again to resume" in stderr
    assert "Traceback" not in stderr
    refused = deit("train", photos, "--teacher", "interrupted", "--out", "unfinished", *TINY, cwd=root)
    assert refused.returncode == 2
    assert "of its 300 views" in refused.stderr
    count = len(list((root / "interrupted").glob("view-*.bin")))
    arguments[arguments.index("300")] = str(count + 1)
    done = deit(*arguments, "--json", *TINY, cwd=root)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["built"] <= 16
    for name in ("view-000000.bin", "features-000000.bin"):
        assert (root / "interrupted" / name).read_bytes() == (root / "my cache" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "1"), "built with seed = 0, but the recipe has 1"),
        (("--set", "distillation.mode=soft"), "build a cache with --top-k"),
        (("--teacher-weights", "w.pth"), "need no weights"),
    ],
)
def test_recipe_that_does_not_fit_is_a_one_line_error(
    deit: Deit, root: Path, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = deit("train", photos, "--teacher", "my cache", "--out", "refused", *TINY, *arguments, cwd=root)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (root / "refused").exists()


def test_changed_data_and_a_damaged_cache_are_errors(deit: Deit, root: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "my cache", tmp_path / "my cache")
    path = tmp_path / "my cache" / "view-000001.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    damaged = deit("train", photos, "--teacher", tmp_path / "my cache", "--out", tmp_path / "run", *TINY)
    assert damaged.returncode == 2
    assert "view-000001.bin is missing or damaged" in damaged.stderr
    other = tmp_path / "other photos"
    shutil.copytree(photos, other)
    next(other.rglob("*.webp")).unlink()
    done = deit("train", other, "--teacher", root / "my cache", "--out", tmp_path / "run", *TINY)
    assert done.returncode == 2
    assert "another data set" in done.stderr


def test_soft_distillation_from_the_top_two_classes(deit: Deit, root: Path, photos: Path) -> None:
    soft = ("--set", "distillation.mode=soft", *TINY)
    arguments = ("teacher", "cache", photos, "--teacher", "the teacher", "--views", "2", "--out", "soft cache", *soft)
    refused = deit(*arguments, cwd=root)
    assert refused.returncode == 2
    assert "pass --top-k" in refused.stderr
    done = deit(*arguments, "--top-k", "2", "--no-features", "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_per_sample"] == 8
    done = deit("train", photos, "--teacher", "soft cache", "--out", "soft", *soft, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "top-2 logits" in done.stderr
    assert "soft cache is a cache without feature maps" in done.stderr
