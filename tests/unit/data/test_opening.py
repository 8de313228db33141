"""Every form that DATA can have, by the one function that opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.data.opening import open_data
from tests.unit.data.layouts import names


def test_a_plain_folder_is_split_by_the_seed_and_says_so(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=3, validation_fraction=0.25)
    assert [len(part.labels) for part in (splits.train, splits.validation)] == [18, 6]
    assert "25% of each class set aside by seed 3" in splits.origin
    assert splits.held_out == ("validation", splits.validation)
    other, same = open_data(photo_folder, seed=4, validation_fraction=0.25), open_data(photo_folder, 3, 0.25)
    assert names(same.validation) == names(splits.validation) != names(other.validation)
    assert set(names(splits.train)).isdisjoint(names(splits.validation))


def test_the_digits_are_ten_classes_in_three_parts() -> None:
    splits = open_data("digits", seed=1)
    assert splits.classes == tuple("0123456789")
    assert splits.test is not None
    sizes = [len(part.labels) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert sizes[1] == sizes[2] == pytest.approx(359, abs=5)
    loaded = [splits.train.load(index) for index in range(20)]
    assert {(image.mode, image.size) for image in loaded} == {("RGB", (8, 8))}
    assert max(image.getextrema()[0][1] for image in loaded) == 255  # type: ignore[index]
