"""What it changes to decode a JPEG smaller: crops of photos beside those of Pillow's full decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from deit.data.transforms.crops import Box, random_resized_crop_box, crop_reduction, reduced_box, crop_and_resize
from deit.images.decoding import EncodedImage
from deit.rng import RngStream, generator


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("grain", [0, 4])
def test_crops_of_a_smaller_decoding_are_within_the_stated_bound(name: str, grain: int) -> None:
    """Mean difference in levels of 255, at the sizes where it is largest: 640 x 427 pixels, crops of 64."""
    noise = np.random.default_rng(0).normal(0, grain, (427, 640, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(load_sample_image(name) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    whole = np.asarray(Image.open(file).convert("RGB"))
    apart = []
    for seed in range(60):
        box = random_resized_crop_box(640, 427, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed, RngStream.AUGMENT))
        factor = crop_reduction([box], 64, 64)
        if factor == 1:
            continue
        with EncodedImage(file.getvalue()) as image:
            small = image.decode(factor)
        ours = crop_and_resize(np.asarray(small), reduced_box(box, factor), 64, 64)
        theirs = crop_and_resize(whole, on_grid(box, factor), 64, 64)
        apart.append(np.abs(ours.astype(int) - theirs).mean())
    assert len(apart) > 40
    assert 0 < np.mean(apart) < 1.0
    assert np.max(apart) < 2.2


def on_grid(box: Box, factor: int) -> Box:
    """The box whose edges are whole pixels of the smaller image."""
    left, top, right, bottom = (factor * edge for edge in reduced_box(box, factor))
    return left, top, right, bottom
