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


def test_check_says_what_is_not_read(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/0.jfif", "cat/1", "dog/0.jpe", "dog/1.png", "loose.jpg")):
        photo(tmp_path / name, number)
    (tmp_path / "dog" / "copy.jpg").write_bytes((tmp_path / "cat" / "1").read_bytes())
    (tmp_path / "cat" / "clip.mov").touch()
    (tmp_path / "@eaDir").mkdir()
    text = output("check", str(tmp_path))
    assert "1 loose image beside class folders (loose.jpg)" in text
    assert "1 video (cat/clip.mov)" in text
    assert "1 hidden or system file (@eaDir)" in text
    assert "Equal images in two classes, which contradict each other: 1 (" in text
    assert "0 unreadable images, 0 too large" in text
    found = json.loads(output("check", str(tmp_path), "--json"))
    assert sum(sum(counts.values()) for counts in found["classes"].values()) == 5
    assert {row["kind"]: row["count"] for row in found["not_read"]} == {
        "hidden or system file": 1,
        "loose image beside class folders": 1,
        "video": 1,
    }


def test_check_of_a_folder_for_evaluation_only(tmp_path: Path) -> None:
    photo(tmp_path / "Testing" / "cat" / "0.jpg")
    text = output("check", str(tmp_path))
    assert "Splits: the folder's own splits: Testing." in text
    assert "Not for training: " in text
    assert "add a folder `train`" in text


def test_pack_says_what_was_packed(tmp_path: Path) -> None:
    arguments = ("pack", "digits", "--shard-mb", "1")
    content = json.loads(output(*arguments, "--out", str(tmp_path / "a folder"), "--json"))
    assert content["images"] == {"train": 1797}
    assert content["skipped"] == 0
    assert content["shards"] == len(list((tmp_path / "a folder").glob("*.tar"))) > 1
    header, row = output(*arguments, "--out", str(tmp_path / "other"), "--csv").splitlines()
    assert header == "path,shards,images,skipped,image_bytes,seconds,images_per_second"
    assert row.startswith(f"{tmp_path / 'other'},{content['shards']},1797,0,{content['image_bytes']},")
    assert f'Next: deit train "{tmp_path / "third"}"' in output(*arguments, "--out", str(tmp_path / "third"))
