"""Training and evaluating by the real program on data that is no folder of classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Deit
from tests.unit.data.layouts import cifar10, image_files
from tests.unit.data.tables import NAMED, table

TINY = (
    *("--recipe", "small-data", "--set", "model.patch_size=16", "--set", "model.hidden_size=24"),
    *("--set", "model.num_hidden_layers=1", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--device", "cpu"),
)


def made_cifar(root: Path) -> tuple[str, str, int]:
    """DATA, the part that the report is about, and its images; likewise below."""
    return f"cifar10:{cifar10(root / 'my cifar', 20).name}", "test", 20


def made_manifest(root: Path) -> tuple[str, str, int]:
    image_files(root / "some pictures", 30)
    rows = [f"some pictures/{number:03}.png,{('кошка', 'dog')[number % 2]}" for number in range(30)]
    (root / "my list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return "my list.csv", "validation", 6


def made_table(root: Path) -> tuple[str, str, int]:
    import datasets

    datasets.DatasetDict(train=table(30, NAMED), validation=table(6, NAMED), test=table(9, NAMED)).save_to_disk(
        root / "my table"
    )
    return "my table", "test", 9


@pytest.mark.parametrize("make", [made_cifar, made_manifest, made_table])
def test_an_epoch_and_its_evaluation(deit: Deit, tmp_path: Path, make: object) -> None:
    data, part, images = make(tmp_path)  # type: ignore[operator]
    done = deit("train", data, *TINY, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["part"], result["images"]) == (part, images)
    [run] = (tmp_path / "runs").iterdir()
    assert run.name == {"cifar10:my cifar": "cifar10-small-data"}.get(data, f"{Path(data).stem}-small-data")
    kept = json.loads((run / "run.json").read_text())["data"]
    assert str(tmp_path) in kept

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = deit("evaluate", run, kept, "--json", "--device", "cpu", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["images"], found["confusion"]) == (images, result["confusion"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("cifar10", "CIFAR-10 is not in"),
        ("hf:me/no-such-photos", "cannot be had from the hub"),
        ("bad.csv", "bad.csv, line 3 has 1 fields"),
    ],
)
def test_data_that_cannot_be_had_is_one_sentence(
    deit: Deit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, words: str
) -> None:
    monkeypatch.setenv("DEIT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "bad.csv").write_text("path,label\na.png,cat\nb.png\n")
    done = deit("train", data, *TINY, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
