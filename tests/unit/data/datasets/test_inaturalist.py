"""iNaturalist's folders and JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deit.data.checking import check_images
from deit.data.opening import open_data
from deit.errors import DataError
from tests.unit.data.layouts import inaturalist


@pytest.mark.parametrize("year", [2018, 2019])
def test_splits_come_from_the_json_files(tmp_path: Path, year: int) -> None:
    splits = open_data(f"inaturalist-{year}:{inaturalist(tmp_path, year)}")
    assert splits.classes == ("Turdus merula", "Larus fuscus", "Anas acuta")  # in the order of the categories' numbers
    assert splits.test is None
    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation)] == [[4] * 3, [2] * 3]
    assert splits.train.name(4).startswith(f"train_val{year}/Aves/2/")
    assert check_images(splits.validation, decode=True) == {}
    assert splits.origin == f"the training and validation splits of iNaturalist {year}"


def test_species_without_names_are_named_by_number(tmp_path: Path) -> None:
    assert open_data(f"inaturalist-2018:{inaturalist(tmp_path, 2018, named=False)}").classes == ("0", "2", "5")


def test_species_of_one_name_are_distinguished(tmp_path: Path) -> None:
    inaturalist(tmp_path, 2019)
    species = [{"id": 0, "name": "Turdus"}, {"id": 2, "name": "Turdus"}, {"id": 5, "name": "Anas"}]
    (tmp_path / "categories.json").write_text(json.dumps({"categories": species}))
    assert open_data(f"inaturalist-2019:{tmp_path}").classes == ("Turdus (0)", "Turdus (2)", "Anas")


def one_image(name: str, category: int) -> str:
    content = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "category_id": category}]}
    return json.dumps(content)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("val2018.json", "[", "not valid JSON"),
        ("val2018.json", "[]", "missing or invalid entry"),
        ("val2018.json", '{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ("train2018.json", '{"images": []}', "The categories .* missing or invalid entry \\('categories'"),
        ("categories.json", '[{"id": 0}]', "missing or invalid entry \\('name'"),
        ("categories.json", '[{"id": 0, "name": "a"}]', "missing or invalid entry \\(2"),
        ("val2018.json", one_image("../a.jpg", 0), r"lists '\.\./a\.jpg'"),
        ("val2018.json", one_image("/etc/a.jpg", 0), "outside of it"),
        ("val2018.json", one_image("a.jpg", 7), "missing or invalid entry \\(7"),
    ],
)
def test_invalid_json_is_an_error(tmp_path: Path, file: str, content: str, message: str) -> None:
    inaturalist(tmp_path, 2018)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        open_data(f"inaturalist-2018:{tmp_path}")
