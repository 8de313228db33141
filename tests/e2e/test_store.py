"""A stored teacher by the real program: build, be stopped, go on, train from it, be refused."""

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
    """A folder with a trained ``the teacher`` and its answers in ``a store``, to two views."""
    root = tmp_path_factory.mktemp("my stores")
    taught = deit(
        *("teacher", "train", photos, "--arch", "test_resnet", "--out", root / "the teacher"),
        *("--image-size", "64", "--epochs", "1", "--batch-size", "16", "--device", "cpu"),
    )
    assert taught.returncode == 0, taught.stderr
    done = deit("teacher", "store", photos, "--teacher", root / "the teacher", "--views", "2", "--out", root / "a store", *TINY)
    assert done.returncode == 0, done.stderr
    (root / "store.out").write_text(done.stdout)
    return root


def test_the_table_says_what_the_store_costs_and_what_comes_next(root: Path, photos: Path) -> None:
    said = (root / "store.out").read_text()
    assert f'deit train "{photos}" --teacher "{root / "a store"}"' in said
    assert "bytes a sample and view" in said
    assert sum((root / "a store" / f"view-00000{view}.bin").stat().st_size for view in (0, 1)) == 2 * 16 * 2


def test_training_from_the_store_gives_the_losses_of_the_live_teacher(deit: Deit, root: Path, photos: Path) -> None:
    rows = {}
    for name, teacher in {"live": "the teacher", "stored": "a store"}.items():
        alike = ("--set", "views=2", "--set", "distillation.hints=0")  # a store has no maps to take hints from
        done = deit("train", photos, "--teacher", teacher, "--out", name, *alike, "--json", *TINY, cwd=root)
        assert done.returncode == 0, done.stderr
        rows[name] = [json.loads(line)["loss"] for line in (root / name / "log.jsonl").read_text().splitlines()]
        assert json.loads(done.stdout)["teacher"]["images"] == 6
    assert rows["live"] == rows["stored"]
    assert "stored in" in (root / "stored" / "report.html").read_text()


def test_a_finished_store_says_so_for_programs_too(deit: Deit, root: Path, photos: Path) -> None:
    arguments = ("teacher", "store", photos, "--teacher", root / "the teacher", "--views", "2", "--out", root / "a store")
    done = deit(*arguments, "--json", *TINY)
    assert done.returncode == 0, done.stderr
    assert "is finished: 2 views of 16 samples" in done.stderr
    result = json.loads(done.stdout)
    assert {name: result[name] for name in ("images", "views", "bytes", "bytes_per_sample", "built")} == {
        "images": 16,
        "views": 2,
        "bytes": 64,
        "bytes_per_sample": 2,
        "built": 0,
    }
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0


def test_ctrl_c_leaves_a_store_that_goes_on(deit: Deit, root: Path, photos: Path) -> None:
    arguments = ["teacher", "store", str(photos), "--teacher", str(root / "the teacher"), "--views", "300", "--out", "stopped"]
    program: list[str | Path] = [Path(sys.executable).with_name("deit"), *arguments, *TINY]
    with subprocess.Popen(program, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (root / "stopped" / "view-000001.bin").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "go on with the same command" in said
    assert "Traceback" not in said
    refused = deit("train", photos, "--teacher", "stopped", "--out", "unfinished", *TINY, cwd=root)
    assert refused.returncode == 2
    assert "of its 300 views" in refused.stderr
    count = len(list((root / "stopped").glob("*.bin")))
    arguments[arguments.index("300")] = str(count + 1)
    done = deit(*arguments, "--json", *TINY, cwd=root)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["built"] <= 16
    assert (root / "stopped" / "view-000000.bin").read_bytes() == (root / "a store" / "view-000000.bin").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", "1"), "built with seed = 0, and the recipe has 1"),
        (("--set", "distillation.mode=soft"), "build a store with --top-k"),
        (("--teacher-weights", "w.pth"), "needs no weights"),
    ],
)
def test_another_training_is_refused_in_one_sentence(
    deit: Deit, root: Path, photos: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = deit("train", photos, "--teacher", "a store", "--out", "refused", *TINY, *arguments, cwd=root)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (root / "refused").exists()


def test_changed_data_and_a_damaged_store_are_refused(deit: Deit, root: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a store", tmp_path / "a store")
    path = tmp_path / "a store" / "view-000001.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    damaged = deit("train", photos, "--teacher", tmp_path / "a store", "--out", tmp_path / "run", *TINY)
    assert damaged.returncode == 2
    assert "view-000001.bin is missing or damaged" in damaged.stderr
    other = tmp_path / "other photos"
    shutil.copytree(photos, other)
    next(other.rglob("*.webp")).unlink()
    done = deit("train", other, "--teacher", root / "a store", "--out", tmp_path / "run", *TINY)
    assert done.returncode == 2
    assert "another data set" in done.stderr


def test_soft_distillation_from_the_top_two(deit: Deit, root: Path, photos: Path) -> None:
    soft = ("--set", "distillation.mode=soft", *TINY)
    arguments = ("teacher", "store", photos, "--teacher", "the teacher", "--views", "2", "--out", "soft store", *soft)
    refused = deit(*arguments, cwd=root)
    assert refused.returncode == 2
    assert "pass --top-k" in refused.stderr
    done = deit(*arguments, "--top-k", "2", "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_per_sample"] == 8
    done = deit("train", photos, "--teacher", "soft store", "--out", "soft", *soft, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "top 2 probabilities" in done.stderr
