"""Crops of photos decoded or kept at a reduced size compared with crops of the full size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from deit.data.image_cache import ImageCache
from deit.data.sources import FileSource
from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.crops import Box, crop_and_resize, crop_reduction, crop_scale, random_resized_crop_box, reduced_box
from deit.images.decoding import EncodedImage
from deit.images.pyramid import reduction_for
from deit.rng import RngStream, generator


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("grain", [0, 4])
def test_crops_of_reduced_jpegs_are_within_the_documented_bound(name: str, grain: int) -> None:
    """Mean difference in levels of 0..255, for the sizes with the largest difference: 640 x 427 pixels, crops of 64."""
    noise = np.random.default_rng(0).normal(0, grain, (427, 640, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(load_sample_image(name) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    full = np.asarray(Image.open(file).convert("RGB"))
    differences = []
    for seed in range(60):
        box = random_resized_crop_box(640, 427, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed, RngStream.AUGMENT))
        reduction = crop_reduction([box], 64, 64)
        if reduction == 1:
            continue
        with EncodedImage(file.getvalue()) as image:
            reduced = image.decode(reduction)
        ours = crop_and_resize(np.asarray(reduced), reduced_box(box, reduction), 64, 64)
        theirs = crop_and_resize(full, aligned_box(box, reduction), 64, 64)
        differences.append(np.abs(ours.astype(int) - theirs).mean())
    assert len(differences) > 40
    assert 0 < np.mean(differences) < 1.0
    assert np.max(differences) < 2.2


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_crops_of_kept_images_are_within_the_documented_bound(name: str, image_format: str, tmp_path: Path) -> None:
    Image.fromarray(load_sample_image(name)).save(tmp_path / "photo", image_format, quality=90)
    source = FileSource(tmp_path, ("photo",), ("a",), np.zeros(1, np.int64))
    full = np.asarray(source.load(0))
    transform = TrainTransform(Augmentation(), 64, 64)
    differences = []
    with ImageCache(np.zeros(1, np.uint64), "", None, True).open(source, 0, transform.smallest_scale) as image:
        for seed in range(60):
            box = random_resized_crop_box(640, 427, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed, RngStream.AUGMENT))
            reduction = reduction_for(crop_scale(box, 64, 64))
            if reduction > 1:
                pixels, box_in_pixels = image.crop(box, 64, 64)
                theirs = crop_and_resize(full, aligned_box(box, reduction), 64, 64)
                differences.append(np.abs(crop_and_resize(pixels, box_in_pixels, 64, 64).astype(int) - theirs).mean())
    assert len(differences) > 40
    assert 0 < np.mean(differences) < 1.0
    assert np.max(differences) < 2.2


def aligned_box(box: Box, reduction: int) -> Box:
    """Returns the box, with its edges moved to whole pixels of the reduced image."""
    left, top, right, bottom = (reduction * edge for edge in reduced_box(box, reduction))
    return left, top, right, bottom
