"""Crops of JPEG photos decoded at a reduced size compared with crops of the full size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from deit.data.transforms.crops import Box, crop_and_resize, crop_reduction, random_resized_crop_box, reduced_box
from deit.images.decoding import EncodedImage
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


def aligned_box(box: Box, reduction: int) -> Box:
    """Returns the box, with its edges moved to whole pixels of the reduced image."""
    left, top, right, bottom = (reduction * edge for edge in reduced_box(box, reduction))
    return left, top, right, bottom
