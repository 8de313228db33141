"""Flowers 102 and Stanford Cars, in the layout of their authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from deit.data.checking import check_images
from deit.data.opening import open_data
from deit.errors import DataError
from tests.unit.data.layouts import cars, flowers, names


def test_flowers_have_the_splits_of_their_authors(tmp_path: Path) -> None:
    splits = open_data(f"flowers102:{flowers(tmp_path / 'my flowers')}")
    assert len(splits.classes) == 102
    assert splits.classes[0] == "pink primrose"
    assert splits.test is not None
    assert names(splits.validation) == [f"jpg/image_0000{number}.jpg" for number in (6, 4, 5)]
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == [0, 1, 101]
    assert splits.validation.labels.tolist() == [101, 0, 1]
    assert check_images(splits.train, decode=True) == {}


def test_cars_validate_on_a_tenth_of_each_class(tmp_path: Path) -> None:
    splits = open_data(f"stanford-cars:{cars(tmp_path)}", seed=5)
    assert splits.classes[0] == "AM General Hummer SUV 2000"
    assert splits.test is not None
    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation)] == [[1] * 3, [1] * 3]
    assert splits.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert names(splits.test)[5] == "cars_test/00006.jpg"
    assert check_images(splits.test, decode=True) == {}
    assert "10% of each class set aside by seed 5" in splits.origin


def test_one_image_per_class_cannot_be_split(tmp_path: Path) -> None:
    cars(tmp_path, per_split=1)
    with pytest.raises(DataError, match="one image per class"):
        open_data(f"stanford-cars:{tmp_path}")


@pytest.mark.parametrize("gone", ["cars_train", "devkit", "cars_test_annos_withlabels.mat"])
def test_missing_cars_are_an_error_with_a_remedy(tmp_path: Path, gone: str) -> None:
    cars(tmp_path / "cars")
    (tmp_path / "cars" / gone).rename(tmp_path / "away")
    message = f"Stanford Cars has no {gone} in .*: its authors no longer offer it; put cars_train, .* there"
    with pytest.raises(DataError, match=message):
        open_data(f"stanford-cars:{tmp_path / 'cars'}")


def test_inconsistent_labels_are_an_error(tmp_path: Path) -> None:
    flowers(tmp_path / "flowers")
    savemat(tmp_path / "flowers" / "imagelabels.mat", {"labels": np.array([[1, 2, 103] * 3])})
    with pytest.raises(DataError, match="labels beyond the 102 classes"):
        open_data(f"flowers102:{tmp_path / 'flowers'}")
    savemat(tmp_path / "flowers" / "imagelabels.mat", {"labels": np.array([[1, 2]])})
    with pytest.raises(DataError, match="images without a label"):
        open_data(f"flowers102:{tmp_path / 'flowers'}")
    cars(tmp_path / "cars")
    rows = np.zeros((1, 1), [("class", object), ("fname", object)])
    rows[0, 0] = (1, "../../etc/passwd")
    savemat(tmp_path / "cars" / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(DataError, match="which is not a file in cars_test"):
        open_data(f"stanford-cars:{tmp_path / 'cars'}")
    savemat(tmp_path / "cars" / "cars_test_annos_withlabels.mat", {"annotations": np.arange(4)})
    with pytest.raises(DataError, match="has no file names and classes"):
        open_data(f"stanford-cars:{tmp_path / 'cars'}")
