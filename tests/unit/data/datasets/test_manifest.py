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
from deit.data.datasets import manifest_table
from deit.data.datasets.manifest import is_manifest, read_manifest
from deit.data.datasets.manifest_table import read_table
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
    assert splits.origin == "the manifest's own splits: train, validation, test"
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
    (["a,cat", "b,dog"], "does not start with a header"),
    (["a.png,cat,1", "b.png,dog,2"], "does not start with a header"),
    (["a.png,b.png", "c.png,d.png"], "does not start with a header"),
    (["cat,dog", "a.png,b.png"], "does not start with a header"),
    (["path,label,label", "a,b,c"], "has two columns named 'label'"),
    (["Path,path,label", "a,b,c"], "has two columns named 'Path'"),
    (["path,label"], "lists no images"),
    (["path,label", "a.png,cat", "b.png"], "line 3 has 1 fields, the header 2"),
    (["path,label", "a.png,cat,x", "b.png,dog"], "line 2 has 3 fields, the header 2"),
    (["path,label", "a.png,cat", 'b".png,"dog'], "line 3 is not valid CSV"),
    (["path,label", "", "a.png,cat", ",dog"], "line 4 has no path"),
    (["path,label", "a.png,cat", "b.png, "], "line 3 has no label"),
    (["path,label", "a.png,cat", "../b.png,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", "c/../../b.png,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", "b.png,cat"], "has one class, 'cat'"),
    (["path", "a.png", "b.png"], "line 2 has no label .and 1 more.: a classifier needs a column `label`"),
    (
        ["path,label,split", "a.png,cat,train", "b.png,dog,bonus"],
        "line 3 has the unknown split 'bonus': use train, val or test",
    ),
    (["path,label,split", "a.png,cat,train", "b.png,dog,"], "line 3 has no split: use train, val or test"),
    (["path,label,split", "a.png,cat,train", "b.png,dog,train", "c.png,owl,val"], "line 4 has a class 'owl' that no training"),
    (["path,label,split", "a.png,cat,val", "b.png,dog,val"], "no images of the split train"),
    (["path,label,partition", "a.png,cat,0", "b.png,dog,1"], "line 2 has the unknown split '0'"),
    (["image,label", "gs://bucket/a.png,cat", "gs://bucket/b.png,dog"], "line 2 has a URL, gs://bucket/a.png: download"),
    (["TRAIN,gs://bucket/a.png,cat", "TEST,gs://bucket/b.png,dog"], "line 1 has a URL, gs://bucket/a.png"),
    (["path,label", "file:///a.png,cat", "b.png,dog"], "line 2 has a URL"),
    (["path,label", "a.png,cat", r"C:\photos\b.png,dog"], "line 3 has a path of Windows, C:"),
    (["path,label", "a.png,cat", r"\\server\b.png,dog"], "line 3 has a path of Windows"),
    (["path,label", "a.png,cat", r"..\b.png,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", " ../b.png ,dog"], "line 3 leaves the manifest's folder"),
    (["path,label", "a.png,cat", "a.png,dog"], "lines 2 and 3 give the image a.png two labels, 'cat' and 'dog': keep one"),
    (["path,label", "a.png,cat", "./a.png,dog"], "lines 2 and 3 give the image ./a.png two labels"),
    (["path,label", "b/a.png,cat", "b//a.png,dog"], "lines 2 and 3 give the image b//a.png two labels"),
    (["path,label", "b/a.png,cat", r"b\a.png,dog"], "lines 2 and 3 give the image b/a.png two labels"),
    (
        ["path,label,split", "a.png,cat,train", "a.png,cat,val"],
        "lines 2 and 3 put the image a.png into two splits, train and val",
    ),
    (["path,label", "a.png,cat", "b.png,dog", "c.png,", "d.png,NaN"], "line 4 has no label .and 1 more.: add a label"),
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
    (['{"path": "a.png", "label": null}'], "line 1 has no label: add a label or remove the line"),
    (['{"path": "a\\u0000.png", "label": "cat"}'], "line 1 has no path"),
    (['{"path": "a.png", "label": "cat"}', "", '{"path": "b.png"}'], "line 3 has no label: add a label"),
    (['{"path": "a.png", "label": ["cat", "dog"]}'], "line 1 has a label that is not a string"),
    (['{"file_name": "a.png", "label": "cat"}', '{"label": "cat"}'], "line 2 has no path"),
    (
        ['{"path": "a", "label": 1, "split": "train"}', '{"path": "b", "label": 2}'],
        "line 2 has no split: use train, val or test",
    ),
]


@pytest.mark.parametrize(("lines", "message"), JSON_MISTAKES)
def test_json_lines_error_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(written(tmp_path, lines, "list.jsonl"))


def test_oversized_files_are_an_error_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*gone\.csv: No such file"):
        open_data(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("path,label\nété.png,cat\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 2 is not valid UTF-8: save it in UTF-8; in Excel, as the type 'CSV UTF-8'"):
        open_data(tmp_path / "latin.csv")
    with pytest.raises(DataError, match="line 2 is longer than"):
        open_data(written(tmp_path, ["path,label", "a" * 2**17]))
    monkeypatch.setattr(manifest_table, "MAX_BYTES", 10)
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


EXCEL = [  # name, content: the same images and labels as others write them
    ("semicolons.csv", "path;label\n{0};cat\n{1};dog\n{2};cat\n"),
    ("sep.csv", "sep=;\r\npath;label\r\n{0};cat\r\n{1};dog\r\n{2};cat\r\n"),
    ("sep tab.csv", "sep=\t\r\npath\tlabel\r\n{0}\tcat\r\n{1}\tdog\r\n{2}\tcat\r\n"),
    ("tabs.tsv", "path\tlabel\n{0}\tcat\n{1}\tdog\n{2}\tcat\n"),
    ("tabs.csv", "path\tlabel\n{0}\tcat\n{1}\tdog\n{2}\tcat"),
    ("bars.csv", "path|label\n{0}|cat\n{1}|dog\n{2}|cat\n"),
    ("commas.tsv", "path,label\n{0},cat\n{1},dog\n{2},cat\n"),
    ("old Mac.csv", "path,label\r{0},cat\r{1},dog\r{2},cat\r"),
    ("Excel.csv", "\ufeffpath;label;;\r\n{0};cat;;\r\n;;;\r\n{1};dog;;\r\n{2};cat\r\n;;;\r\n"),
    ("quotes.csv", '"path", "label"\n"{0}", "cat"\n"{1}", "dog"\n\n"{2}", "cat"\n'),
    ("spaces.csv", " Path , Label \n {0} , cat \n{1} ,dog\n{2},cat  \n"),
    ("pandas.csv", "Unnamed: 0,path,label\n0,{0},cat\n1,{1},dog\n2,{2},cat\n"),
    ("index.csv", ",file_name,category\n0,{0},cat\n1,{1},dog\n2,{2},cat\n"),
    ("huggingface.csv", "file_name,label\n{0},cat\n{1},dog\n{2},cat\n"),
    ("columns.csv", "Image Path,Class Name,width\n{0},cat,1\n{1},dog,2\n{2},cat,3\n"),
    ("columns 2.csv", "TARGET,IMG,note,note\ncat,{0},a,b\ndog,{1},a,b\ncat,{2},a,b\n"),
    ("birds.csv", "class id,filepaths,labels\n0.0,{0},cat\n1.0,{1},dog\n0.0,{2},cat\n"),
    ("other label.csv", "id,breed\n{0},cat\n{1},dog\n{2},cat\n"),
    ("id beside the path.csv", "id,image,breed\n7,{0},cat\n8,{1},dog\n9,{2},cat\n"),
    ("fastai.csv", "name,label\n{0},cat\n{1},dog\n{2},cat\n"),
    ("other path.csv", "no;fname;breed id;class\n1;{0};5;cat\n2;{1};6;dog\n3;{2};5;cat\n"),
    ("whale.csv", "Image,Id\n{0},cat\n{1},dog\n{2},cat\n"),
    ("headerless.csv", "{0},cat\n{1},dog\n{2},cat\n"),
    ("headerless labels first.csv", "cat;{0}\ndog;{1}\ncat;{2}\n"),
    ("fold.csv", "path,label,fold\n{0},cat,0\n{1},dog,1\n{2},cat,2\n"),
    ("repeated.csv", "path,label\n{0},cat\n{1},dog\n{2},cat\n{0},cat\n./{1},dog\n"),
    (
        "a.jsonl",
        '{{"file_name": "{0}", "label": "cat"}}\n{{"label": "dog", "file_name": "{1}", "x": {{}}}}\n'
        '{{"file_name": "{2}", "label": "cat"}}',
    ),
    (
        "b.ndjson",
        '\ufeff{{"image": "{0}", "class": "cat"}}\r\n\r\n{{"image": "{1}", "class": "dog"}}\r\n'
        '{{"image": "{2}", "class": "cat"}}\r\n',
    ),
]


@pytest.mark.parametrize(("name", "content"), EXCEL)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_tables_of_other_programs(folder: Path, name: str, content: str, encoding: str) -> None:
    paths = [f"pictures of 2021/{number:03}.png" for number in range(3)]
    text = content.format(*paths)
    text = "\ufeff" + text.lstrip("\ufeff") if encoding == "utf-16-be" else text.lstrip("\ufeff") if "16" in encoding else text
    (folder / name).write_bytes(text.encode(encoding))
    dataset = read_splits(folder / name)
    assert dataset.unsplit
    assert dataset.train.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert [str(Path(path)) for path in names(dataset.train)] == paths
    assert dataset.train.load(0).size == (9, 7)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ("Train", "Validation", "TEST")),
        ("Split", ("training", "dev", "testing")),
        ("set", ("TRAIN", "val", "test")),
        ("Data Set", ("train", "valid", "test")),
        ("subset", (" Training ", "eval", "Test")),
        ("ML_USE", ("TRAIN", "VALIDATION", "TEST")),
        ("partition", ("train_set", "validation set", "test-set")),
    ],
)
def test_splits_have_the_synonyms_of_folders(folder: Path, column: str, values: tuple[str, ...]) -> None:
    rows = [f"{path},{label.replace(',', '')},{values[number // 3]}" for number, (path, label) in enumerate(ROWS)]
    splits = open_data(written(folder, [f"path,label,{column}", *rows]))
    assert splits.test is not None
    assert [len(source.labels) for source in (splits.train, splits.validation, splits.test)] == [3, 3, 3]
    if column == "ML_USE":
        lines = [",".join(reversed(row.split(","))) for row in rows]  # as Google's AutoML, without a header
        assert open_data(written(folder, [lines[0], *lines[1:]])).fingerprint == splits.fingerprint


@pytest.mark.parametrize(
    ("columns", "flags", "counts"),  # of three rows each; images of each split
    [
        ("is_valid", "False False True", {"train": 6, "validation": 3}),
        ("Is Train", "1 1 0", {"train": 6, "test": 3}),
        ("is_test", "no no yes", {"train": 6, "test": 3}),
        ("is_val,is_test", "0,0 1,0 0,1", {"train": 3, "validation": 3, "test": 3}),
        ("is_train,is_val,is_test", "1,0,0 0,1,0 0,0,1", {"train": 3, "validation": 3, "test": 3}),
        ("split,is_valid", "val,0 train,0 train,0", {"train": 6, "validation": 3}),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_columns_that_are_true_for_a_split(
    folder: Path, columns: str, flags: str, counts: dict[str, int], as_json: bool
) -> None:
    keys = ["path", "label", *columns.split(",")]
    rows = [[path, label[:3], *flags.split()[number // 3].split(",")] for number, (path, label) in enumerate(ROWS)]
    rows = [[path, "dog" if label == "a, " else label, *values] for path, label, *values in rows]
    if as_json:
        manifest = written(folder, [json.dumps(dict(zip(keys, row, strict=True))) for row in rows], "list.jsonl")
    else:
        manifest = written(folder, [",".join(row) for row in (keys, *rows)])
    dataset = read_splits(manifest)
    assert {split: len(source.labels) for split, source in dataset.sources.items()} == counts


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ("is_valid", "perhaps", "line 2 has 'perhaps' in the column of the validation split: write true or false"),
        ("is_val,is_test", "1,1", "line 2 is in two splits, validation and test"),
        ("is_train,is_val", "0,0", "line 2 has no split"),
    ],
)
def test_columns_that_are_true_for_no_split_or_two(folder: Path, columns: str, flags: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(written(folder, [f"path,label,{columns}", f"{ROWS[0][0]},cat,{flags}"]))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("1", "2", "1"), ("1", "2")),
        (("1.0", "2.0", "1"), ("1", "2")),
        (("0", "0.5", "0.0"), ("0", "0.5")),
        (("01", "1", "2"), ("01", "1", "2")),
        (("1.0", "cat", "cat"), ("1.0", "cat")),
        (("-1.0", "1", "-1"), ("-1", "1")),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_integer_labels(folder: Path, labels: tuple[str, ...], classes: tuple[str, ...], as_json: bool) -> None:
    paths = [path for path, _ in ROWS[:3]]
    if as_json and all(label[0] != "0" and label != "cat" for label in labels):
        lines = [f'{{"path": "{path}", "label": {label}}}' for path, label in zip(paths, labels, strict=True)]
        manifest = written(folder, lines, "list.jsonl")
    else:
        manifest = written(folder, ["path,label", *map(",".join, zip(paths, labels, strict=True))])
    assert read_splits(manifest).train.classes == classes


@pytest.mark.parametrize(
    "spelling",
    [
        r"pictures of 2021\{0}.png",
        r".\pictures of 2021\{0}.png",
        " pictures of 2021/{0}.png ",
        "pictures of 2021/{0}",
        r"pictures of 2021\{0}",
        "{0}.png",
        "{0}",
        "./pictures of 2021//{0}.png",
    ],
)
def test_spellings_of_paths(folder: Path, spelling: str) -> None:
    rows = [f'"{spelling.format(f"{number:03}")}",{number % 2}' for number in range(4)]
    source = read_splits(written(folder, ["path,label", *rows])).train
    assert [str(Path(name)) for name in names(source)] == [f"pictures of 2021/{number:03}.png" for number in range(4)]
    assert check_images(source, decode=True) == {}


def test_file_whose_name_has_a_backslash_is_found(folder: Path) -> None:
    (folder / "pictures of 2021" / "000.png").rename(folder / "a\\b.png")
    source = read_splits(written(folder, ["path,label", "a\\b.png,cat", "pictures of 2021\\001.png,dog"])).train
    assert names(source) == ["a\\b.png", "pictures of 2021/001.png"]


def test_name_without_an_ending_that_two_files_have_is_an_error(folder: Path) -> None:
    image_files(folder / "train", 3)
    (folder / "train" / "001.jpg").touch()
    lines = ["id,label", "000,cat", "001,dog", "002,cat"]
    with pytest.raises(DataError, match=r"line 3: 001 may be 001\.jpg or 001\.png: write the ending of the file"):
        read_splits(written(folder, lines, "train.csv"))


def test_folder_of_the_images_is_found_beside_the_manifest(folder: Path) -> None:
    lines = ["image,label", *(f"{number:03}.png,{number % 2}" for number in range(6))]
    dataset = read_splits(written(folder, lines, "train.csv"))
    assert dataset.notes == ("The paths of the manifest start at its folder pictures of 2021",)
    image_files(folder / "test", 9)
    with pytest.raises(DataError, match=r"line 2: 000\.png may be in pictures of 2021 or in test: write paths that start at"):
        read_splits(folder / "train.csv")
    image_files(folder / "Train", 9)
    assert names(read_splits(folder / "train.csv").train)[0] == "Train/000.png"


def test_links_to_one_file_are_one_image(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "pictures of 2021" / "000.png")
    lines = ["path,label", f"{folder}/pictures of 2021/000.png,cat", "link.png,{0}", "pictures of 2021/001.png,dog"]
    assert len(read_splits(written(folder, [line.format("cat") for line in lines])).train.labels) == 2
    with pytest.raises(DataError, match=r"lines 2 and 3 give the image link.png two labels, 'cat' and 'dog'"):
        read_splits(written(folder, [line.format("dog") for line in lines]))


def test_long_manifests_are_compared_by_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.data.datasets.manifest_paths.MAX_STATUS_CHECKS", 1)
    with pytest.raises(DataError, match="two labels"):
        read_splits(written(folder, ["path,label", "a.png,cat", "b.png,dog", f"{folder}/./a.png,dog"]))


def test_repeated_rows_and_unlabeled_test_images_are_left_out_and_said(folder: Path) -> None:
    rows = [f"{path},{number % 2},train" for number, (path, _) in enumerate(ROWS[:6])]
    lines = ["path,label,split", *rows, rows[0], f"{ROWS[6][0]},,test", f"{ROWS[7][0]},nan,test"]
    dataset = read_splits(written(folder, lines))
    assert list(dataset.sources) == ["train"]
    assert [note for note in dataset.all_notes if "2 rows without a label in the test split" in note]
    assert [note for note in dataset.all_notes if "1 row that repeats an image (pictures of 2021/000.png)" in note]


@pytest.mark.parametrize(("split", "message"), [("val", "no images of the split train"), ("train", "has one class, 'cat'")])
def test_manifest_that_can_only_be_evaluated(folder: Path, split: str, message: str) -> None:
    dataset = read_splits(written(folder, ["path,label,split", *(f"{path},cat,{split}" for path, _ in ROWS)]))
    assert [len(source.labels) for source in dataset.sources.values()] == [9]
    with pytest.raises(DataError, match=message):
        open_data(folder / "list.csv")


def test_classes_match_across_splits_without_case(folder: Path) -> None:
    lines = [
        "path,label,split",
        *(f"{path},{'Cat' if n < 6 else 'cat'},{'train' if n < 6 else 'val'}" for n, (path, _) in enumerate(ROWS[:8])),
    ]
    splits = open_data(written(folder, [*lines, f"{ROWS[8][0]},Dog,train"]))
    assert splits.classes == ("Cat", "Dog")
    assert splits.validation.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        *(
            ("a.xlsx", "save it as the type 'CSV UTF-8' in Excel"),
            ("a.txt", "write it as CSV"),
            ("a.json", "one object per line"),
        ),
        *(("a.csv.gz", "unpack it"), ("photos.zip", "unpack it")),
    ],
)
def test_other_tables_are_refused_with_the_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    assert not is_manifest(tmp_path / name)
    (tmp_path / name).touch()
    for read in (open_data, open_unlabeled):
        with pytest.raises(DataError, match=f"{name} is not a manifest in a format that is read: .*{remedy}"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n".encode("utf-16-le"), "line 1 is not valid UTF-8: save it in UTF-8"),
        (b"\xff\xfep\0a\0t", "line 1 is not valid UTF-16"),
        (b"path,label\na.png,cat\n\xe9t\xe9.png,dog\n", "line 3 is not valid UTF-8"),
        (b"path,label\n" + b"a.png,cat\n" * 3000 + b"\xe9.png,dog\n", "line 3002 is not valid UTF-8"),
        (b"path,label\na\0.png,cat\nb.png,dog\n", "line 2 has no path"),
        (b"path,label\n" + b"a," * 40_000, "line 2 is longer than"),
    ],
)
def test_bytes_that_are_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("folders", [("",), ("train", "test"), ("Train", "validation", "Test")])
def test_folder_with_metadata_of_hugging_face(tmp_path: Path, name: str, folders: tuple[str, ...]) -> None:
    for folder in folders:
        image_files(tmp_path / folder, 4)
        rows = [(f"{number:03}.png", ("cat", "dog")[number % 2]) for number in range(4)]
        if name.endswith("csv"):
            written(tmp_path / folder, ["file_name,label", *map(",".join, rows)], name)
        else:
            written(tmp_path / folder, [json.dumps({"file_name": path, "label": label}) for path, label in rows], name)
    dataset = read_splits(tmp_path)
    assert len(dataset.sources) == len(folders)
    for source, folder in zip(dataset.sources.values(), folders, strict=True):
        assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
        assert source.name(3) == str(Path(folder) / "003.png")
        assert source.load(3).size == (9, 7)


@pytest.mark.parametrize("content", ["file_name,text\n000.png,a cat\n", "", "file_name\n000.png\n", "\n\n", "[1]", "{"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_without_labels_is_not_a_manifest(tmp_path: Path, name: str, content: str) -> None:
    for label in ("cat", "dog"):
        image_files(tmp_path / label, 2)
    (tmp_path / name).write_text(content)
    assert read_splits(tmp_path).train.classes == ("cat", "dog")


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
    assert [(row.path, row.label) for row in read_table(path).rows] == [(name, label.strip()) for name, label in rows]


@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.jsonl"]), st.booleans())
def test_random_bytes_are_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, header: bool) -> None:
    path = tmp_path_factory.mktemp("lists") / name
    path.write_bytes(b"path,label\n" + content if header else content)
    try:
        rows = read_manifest(path, labeled=False).rows
    except DataError as error:
        assert name in str(error)
        return
    assert all(row.path and (row.label is None or row.label.strip()) for row in rows)
