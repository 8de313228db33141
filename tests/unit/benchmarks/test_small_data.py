"""The data of the benchmark on little data."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import small_data

from deit.data.opening import open_data
from deit.data.sources import ArraySource
from deit.recipes.presets import get_recipe
from tests.unit.data.layouts import mnist


def test_padded_crops_are_shifted_images() -> None:
    images = np.arange(1, 1 + 5 * 32 * 32).reshape(5, 32, 32) % 251 + 1
    source = ArraySource(images.astype(np.uint8), ("a", "b"), np.array([0, 1, 0, 1, 1]), "image")
    recipe = get_recipe("small-data").tiny().replace(batch_size=2, augmentation={"flip": 0.5})
    height, width = recipe.image_hw
    mean, std = recipe.processor().rgb_statistics
    resized = [np.asarray(source.load(index).resize((width, height))) for index in range(5)]
    epochs = list(itertools.islice(small_data.padded_crop_epochs(recipe, source), 3))
    for batches in epochs:
        found = list(batches)
        assert len(found) == 2  # the rest of an epoch is dropped
        for pixels, targets in found:
            assert pixels.shape == (2, 3, height, width)
            for row, target in zip(pixels, targets, strict=True):
                crop = np.rint((row.permute(1, 2, 0).numpy() * std + np.asarray(mean)) * 255)
                assert any(
                    is_shifted(crop, image, height // 8)
                    for image, label in zip(resized, source.labels, strict=True)
                    if target[label] == 1
                )


def is_shifted(crop: np.ndarray, image: np.ndarray, most: int) -> bool:
    """Whether a crop is an image, flipped or not, that is shifted by at most ``most`` pixels on a black background."""
    padded = np.pad(image, ((most, most), (most, most), (0, 0)))
    height, width, _ = image.shape
    return any(
        np.array_equal(view, padded[top : top + height, left : left + width])
        for view in (crop, crop[:, ::-1])
        for top in range(2 * most + 1)
        for left in range(2 * most + 1)
    )


def test_subset_has_so_many_images_of_each_class(tmp_path: Path) -> None:
    data = f"fashion-mnist:{mnist(tmp_path / 'all', 400, 20)}"
    splits = open_data(small_data.prepared_data(data, 20, tmp_path))
    assert splits.test is not None
    counts = [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation, splits.test)]
    assert counts == [[18] * 10, [2] * 10, [2] * 10]
    assert "T-shirt or top" in splits.classes
    means = {np.asarray(splits.train.load(index)).mean() // 20 for index in range(18)}
    assert len(means) == 1  # one class


def test_data_is_taken_as_it_is_without_a_number(tmp_path: Path) -> None:
    assert small_data.prepared_data("digits", None, tmp_path) == "digits"


@pytest.mark.parametrize(("number", "text"), [(None, ""), (100, " --images-per-class 100")])
def test_page_has_the_command(number: int | None, text: str) -> None:
    row = {"seed": 0, "contender": "plain convnet", "date": "2026-01-01", "top1": {"": 0.5}, "minutes": 1.0, "curve": []}
    result = {"hardware": "CPU", "software": "torch", "data": "fashion-mnist", "minutes": 10.0, "rows": [row]}
    if number is not None:
        result["images_per_class"] = number
    assert f"`python -m benchmarks.small_data fashion-mnist{text} --minutes 10`" in small_data.table(result)


def test_only_results_of_the_same_data_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = small_data.read_previous(path, "fashion-mnist", 10, 100)
    path.write_text(json.dumps({**result, "rows": [1]}))
    assert small_data.read_previous(path, "fashion-mnist", 10, 100)["rows"] == [1]
    for name, minutes, number in (("digits", 10, 100), ("fashion-mnist", 5, 100), ("fashion-mnist", 10, 50)):
        assert small_data.read_previous(path, name, minutes, number)["rows"] == []


@pytest.mark.parametrize("data", ["digits", "signs"])
def test_contenders_distill_as_they_are_called(data: str) -> None:
    recipes = small_data.recipes(data, seed=0)
    modes = {name: recipes[name].distillation.mode for name in small_data.DISTILLED}
    assert modes == {small_data.SOFT: "soft", small_data.HARD: "hard", small_data.HARD_CACHED: "hard"}
