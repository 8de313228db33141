"""Manifests in CSV and JSON lines, and errors with their line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.data.checking import check_images
from deit.data.datasets import manifest
from deit.data.datasets.manifest import read_manifest
from deit.data.opening import open_data, open_unlabeled, read_splits
from deit.errors import DataError
from tests.unit.data.layouts import image_files, names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_files(tmp_path / "pictures of 2021", 9)
    return tmp_path


def written(folder: Path, lines: list[str], name: str = "list.csv") -> Path:
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


ROWS = [(f"pictures of 2021/{number:03}.png", ("кошка", "dog", "a, b")[number % 3]) for number in range(9)]


def as_csv(folder: Path, split: tuple[str, ...] = ()) -> Path:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow([" Label", "path", *(["Split"] if split else []), "camera"])
        for number, (path, label) in enumerate(ROWS):
            rows.writerow([label, path, *([split[number]] if split else []), "x"])
    return folder / "list.csv"


def as_jsonl(folder: Path, split: tuple[str, ...] = ()) -> Path:
    rows = [{"path": path, "label": label, "camera": [1]} for path, label in ROWS]
    if split:
        rows = [{**row, "split": part} for row, part in zip(rows, split, strict=True)]
    return written(folder, [json.dumps(row, ensure_ascii=False) for row in rows] + [""], "list.jsonl")


@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_manifest_without_splits_is_split_by_the_seed(folder: Path, write: object) -> None:
    splits = open_data(write(folder), seed=1, validation_fraction=0.34)  # type: ignore[operator]
    assert splits.classes == ("a, b", "dog", "кошка")
    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation)] == [[2, 2, 2], [1, 1, 1]]
    assert "34% of each class set aside by seed 1" in splits.origin
    assert set(names(splits.train)) | set(names(splits.validation)) == {path for path, _ in ROWS}
    assert splits.train.load(0).size == (9, 7)


@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_splits_of_a_manifest_are_kept(folder: Path, write: object) -> None:
    split = ("train",) * 3 + ("valid",) * 3 + ("test",) * 3
    splits = open_data(write(folder, split))  # type: ignore[operator]
    assert splits.origin == "the manifest's own splits: train, val, test"
    assert splits.test is not None
    assert [part.labels.tolist() for part in (splits.train, splits.validation, splits.test)] == [[2, 1, 0]] * 3
    assert names(splits.validation) == [path for path, _ in ROWS[3:6]]


def test_csv_and_json_lines_give_the_same_data_set(folder: Path) -> None:
    assert open_data(as_csv(folder)).fingerprint == open_data(as_jsonl(folder)).fingerprint


def test_absolute_paths_are_kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    lines = [f"{path if number % 2 else folder / path},{number % 3}" for number, (path, _) in enumerate(ROWS)]
    path = written(folder, ["path,label", *lines])
    assert check_images(read_splits(path).train, decode=True) == {}
    assert len(check_images(read_splits(written(elsewhere, ["path,label", *lines])).train, decode=False)) == 4


def test_missing_image_is_found_by_the_check(folder: Path) -> None:
    path = written(folder, ["path,label", *(f"{path},{label.replace(',', '')}" for path, label in ROWS), "gone.png,dog"])
    [(index, error)] = check_images(read_splits(path).train, decode=False).items()
    assert index == 9
    assert "gone.png does not exist" in str(error)


CSV_MISTAKES = [
    ([""], "does not start with a header"),
    (["a.png,cat", "b.png,dog"], "does not start with a header"),
    (["path,label,label", "a,b,c"], "does not start with a header"),
    (["path,label"], "lists no images"),
    (["path,label", "a.png,cat", "b.png"], "line 3 has 1 fields, the header 2"),
    (["path,label", "a.png,cat,", "b.png,dog"], "line 2 has 3 fields, the header 2"),
    (["path,label", "a.png,cat", 'b".png,"dog'], "line 3 is not valid CSV"),
    (["path,label", "", "a.png,cat", ",dog"], "line 4 has no path"),
    (["path,label", "a.png,cat", "b.png, "], "line 3 has no label"),
    (["path,label", "a.png,cat", "../b.png,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", "c/../../b.png,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", "b.png,cat"], "has one class, 'cat'"),
    (["path", "a.png", "b.png"], "line 2 has no label: a classifier needs a column `label`"),
    (["path,label,split", "a.png,cat,train", "b.png,dog,training"], "line 3 has the unknown split 'training'"),
    (["path,label,split", "a.png,cat,train", "b.png,dog,"], "line 3 has the unknown split ''"),
    (["path,label,split", "a.png,cat,train", "b.png,dog,train", "c.png,owl,val"], "line 4 has a class 'owl' that no training"),
    (["path,label,split", "a.png,cat,val", "b.png,dog,val"], "no images of the split train"),
]


@pytest.mark.parametrize(("lines", "message"), CSV_MISTAKES)
def test_csv_error_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(written(tmp_path, lines))
    assert "list.csv" in str(caught.value)


JSON_MISTAKES = [
    (['{"path": "a.png", "label": "cat"}', "{"], "line 2 is not valid JSON"),
    (["[" * 20_000], "line 1 is not valid JSON"),
    (['["a.png", "cat"]'], "line 1 is not an object with a path"),
    (['{"label": "cat"}'], "line 1 is not an object with a path"),
    (['{"path": ["a.png"], "label": "cat"}'], "line 1 has a path that is not a string"),
    (['{"path": "a.png", "label": null}'], "line 1 has a label that is not a string"),
    (['{"path": "a\\u0000.png", "label": "cat"}'], "line 1 has no path"),
    (['{"path": "a.png", "label": "cat"}', "", '{"path": "b.png"}'], "line 3 has other columns than line 1"),
    (['{"path": "a", "label": 1, "split": "train"}', '{"path": "b", "label": 2}'], "line 2 has other columns than line 1"),
]


@pytest.mark.parametrize(("lines", "message"), JSON_MISTAKES)
def test_json_lines_error_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(written(tmp_path, lines, "list.jsonl"))


def test_oversized_files_are_an_error_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*gone\.csv: No such file"):
        open_data(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("path,label\nété.png,cat\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 2 is not valid UTF-8"):
        open_data(tmp_path / "latin.csv")
    with pytest.raises(DataError, match="line 2 is longer than"):
        open_data(written(tmp_path, ["path,label", "a" * 2**17]))
    monkeypatch.setattr(manifest, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        open_data(written(tmp_path, ["path,label", "a.png,cat"]))


def test_unlabeled_images_can_be_opened(folder: Path) -> None:
    path = written(folder, ["path", *(path for path, _ in ROWS)])
    splits = open_unlabeled(path, validation_fraction=0.34)
    assert [len(part.labels) for part in (splits.train, splits.validation)] == [6, 3]
    split = open_unlabeled(as_csv(folder, ("train",) * 4 + ("val",) * 2 + ("test",) * 3))
    assert len(split.train.labels) + len(split.validation.labels) == 6
    with pytest.raises(DataError, match="lists 1 images"):
        open_unlabeled(written(folder, ["path", "a.png"]))


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=8), st.booleans())
def test_manifest_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], as_json: bool) -> None:
    rows = [(f"x{path}", label) for path, label in rows if ".." not in path]
    path = tmp_path_factory.mktemp("lists") / ("a.jsonl" if as_json else "a.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        if as_json:
            file.writelines(json.dumps({"path": name, "label": label}) + "\n" for name, label in rows)
        else:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *rows])
    assert [(row.path, row.label) for row in read_manifest(path)] == [(name, label.strip()) for name, label in rows]


@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.jsonl"]), st.booleans())
def test_random_bytes_are_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, header: bool) -> None:
    path = tmp_path_factory.mktemp("lists") / name
    path.write_bytes(b"path,label\n" + content if header else content)
    try:
        rows = list(read_manifest(path))
    except DataError as error:
        assert name in str(error)
        return
    assert all(row.path and (row.label is None or row.label.strip()) for row in rows)
