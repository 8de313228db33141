"""A data set of real photographs that needs no download: crops of scikit-learn's two sample photos.

    python -m benchmarks.cutouts_dataset OUT

24 classes, twelve regions of each photo, with 60 training and 25 test images each. Size, center, brightness, contrast and color
of each crop are random, and a little noise is added, so that no two crops are equal. Crops of neighboring regions overlap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

SPLITS = {"train": 60, "test": 25}  # images per class
ROWS, COLUMNS = 3, 4
CROP_SIDES = (120, 190)  # pixels, minimum and maximum
MAX_SHIFT = 28  # pixels that the center of a crop moves
JITTER = (0.7, 1.3)  # factors of brightness, contrast and color
NOISE = 4.0  # standard deviation, of 255
IMAGE_SIDE = 256


def write_dataset(out: Path) -> None:
    """Writes the images, the same on every machine."""
    for number, pixels in enumerate(load_sample_images().images):
        photo = Image.fromarray(pixels)
        for region in range(ROWS * COLUMNS):
            for split, count in SPLITS.items():
                folder = out / split / f"photo {number + 1} region {region + 1:02}"
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    seed = [number, region, list(SPLITS).index(split), index]
                    random_crop(photo, region, np.random.default_rng(seed)).save(folder / f"{index}.jpg", quality=92)


def random_crop(photo: Image.Image, region: int, rng: np.random.Generator) -> Image.Image:
    """Returns a random crop around the center of a region, jittered and with noise."""
    side = int(rng.integers(*CROP_SIDES))
    row, column = divmod(region, COLUMNS)
    centers = ((column + 0.5) / COLUMNS * photo.width, (row + 0.5) / ROWS * photo.height)
    left, top = (
        int(np.clip(center + rng.integers(-MAX_SHIFT, MAX_SHIFT + 1) - side / 2, 0, length - side))
        for center, length in zip(centers, photo.size, strict=True)
    )
    image = photo.crop((left, top, left + side, top + side)).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(*JITTER)))
    values = np.asarray(image) + rng.normal(0, NOISE, (IMAGE_SIDE, IMAGE_SIDE, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    write_dataset(parser.parse_args().out)
