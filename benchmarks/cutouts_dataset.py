"""A data set of real photographs at hand everywhere: from which place of scikit-learn's two pictures is this cut out?

    python -m benchmarks.cutouts_dataset FOLDER

24 classes, twelve places of each picture, 60 training and 25 test images of each. A cut-out is of another size, center,
brightness, contrast and color each time, with a little noise, so that no two are alike and neighbors overlap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

PARTS = {"train": 60, "test": 25}
ROWS, COLUMNS = 3, 4
SIDES = (120, 190)  # pixels of a cut-out
WANDER = 28  # pixels that its center moves
STRENGTHS = (0.7, 1.3)
NOISE = 4.0  # of 255
SAVED = 256


def make(folder: Path) -> None:
    """Write the images, the same on every machine."""
    for number, picture in enumerate(load_sample_images().images):
        photo = Image.fromarray(picture)
        for place in range(ROWS * COLUMNS):
            for part, count in PARTS.items():
                target = folder / part / f"picture {number + 1} place {place + 1:02}"
                target.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    seed = [number, place, list(PARTS).index(part), index]
                    cut_out(photo, place, np.random.default_rng(seed)).save(target / f"{index}.jpg", quality=92)


def cut_out(photo: Image.Image, place: int, rng: np.random.Generator) -> Image.Image:
    """One image of a place."""
    side = int(rng.integers(*SIDES))
    row, column = divmod(place, COLUMNS)
    centers = ((column + 0.5) / COLUMNS * photo.width, (row + 0.5) / ROWS * photo.height)
    left, top = (
        int(np.clip(center + rng.integers(-WANDER, WANDER + 1) - side / 2, 0, length - side))
        for center, length in zip(centers, photo.size, strict=True)
    )
    image = photo.crop((left, top, left + side, top + side)).resize((SAVED, SAVED), Image.Resampling.BICUBIC)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(*STRENGTHS)))
    values = np.asarray(image) + rng.normal(0, NOISE, (SAVED, SAVED, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
