"""``deit data``: lists named data sets and checks one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.data.class_names import imagenet_ids, imagenet_subset
from deit.data.datasets.named import NAMED
from tests.unit.data.layouts import cifar10, photo


def output(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_list_has_every_data_set_with_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("DEIT_DATA", "/big disk")
    text = output("list")
    for name in NAMED:
        assert name in text
    for expected in ("1,281,167", "non-commercial", "image-net.org", "DEIT_DATA", "hf:OWNER/NAME"):
        assert expected in text
    rows = {row["name"]: row for row in json.loads(output("list", "--json"))}
    assert set(rows) == set(NAMED)
    assert rows["flowers102"]["images"] == {"train": 1020, "validation": 1020, "test": 6149}
    assert rows["imagenet-real"]["folder"] == "/big disk/imagenet"
    assert [name for name, row in rows.items() if row["evaluation_only"]] == [
        *("imagenet-v2", "imagenet-real", "imagenet-a", "imagenet-r")
    ]


def test_check_of_a_named_data_set(tmp_path: Path) -> None:
    found = json.loads(output("check", f"cifar10:{cifar10(tmp_path, 20)}", "--json"))
    assert found["classes"]["airplane"] == {"train": 9, "validation": 1, "test": 2}
    assert found["unreadable"] == []


def test_check_of_a_data_set_for_evaluation_only(tmp_path: Path) -> None:
    wnid = imagenet_ids()[imagenet_subset("a")[0]]
    photo(tmp_path / wnid / "good.jpg")
    (tmp_path / wnid / "bad.jpg").write_bytes(b"no image")
    text = output("check", f"imagenet-a:{tmp_path}", code=1)
    assert "imagenet-a is for evaluation only" in text
    assert "bad.jpg" in text
    assert "1 unreadable image, 0 too large" in text
