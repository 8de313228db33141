"""Training and evaluation with the program on data sets that are not folders of classes."""

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


def make_cifar(root: Path) -> tuple[str, str, int]:
    """Returns DATA, the split that is evaluated, and its number of images."""
    return f"cifar10:{cifar10(root / 'my cifar', 20).name}", "test", 20


def make_manifest(root: Path) -> tuple[str, str, int]:
    """Returns the same as :func:`make_cifar`."""
    image_files(root / "some pictures", 30)
    rows = [f"some pictures/{number:03}.png,{('кошка', 'dog')[number % 2]}" for number in range(30)]
    (root / "my list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return "my list.csv", "validation", 6


def make_table(root: Path) -> tuple[str, str, int]:
    """Returns the same as :func:`make_cifar`."""
    import datasets

    parts = {"train": range(30), "validation": range(30, 36), "test": range(36, 45)}
    images = table(45, NAMED)
    datasets.DatasetDict({split: images.select(rows) for split, rows in parts.items()}).save_to_disk(root / "my table")
    return "my table", "test", 9


@pytest.mark.parametrize("make", [make_cifar, make_manifest, make_table])
def test_one_epoch_and_its_evaluation(deit: Deit, tmp_path: Path, make: object) -> None:
    data, split, images = make(tmp_path)  # type: ignore[operator]
    done = deit("train", data, *TINY, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["split"], result["images"]) == (split, images)
    [run] = (tmp_path / "runs").iterdir()
    assert run.name == {"cifar10:my cifar": "cifar10-small-data"}.get(data, f"{Path(data).stem}-small-data")
    absolute = json.loads((run / "run.json").read_text())["data"]
    assert str(tmp_path) in absolute

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = deit("evaluate", run, absolute, "--json", "--device", "cpu", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    evaluated = json.loads(again.stdout)
    assert (evaluated["images"], evaluated["confusion"]) == (images, result["confusion"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cifar10", "CIFAR-10 is not in"),
        ("hf:me/no-such-photos", "cannot be loaded from the hub"),
        ("bad.csv", "bad.csv, line 3 has 1 fields"),
    ],
)
def test_missing_data_is_a_one_line_error(
    deit: Deit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str
) -> None:
    monkeypatch.setenv("DEIT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "bad.csv").write_text("path,label\na.png,cat\nb.png\n")
    done = deit("train", data, *TINY, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
