"""Whether mirrored images would do for training: they do for most photos, and not for writing, signs or left and right hands.

A linear classifier on the directions of edges learns half of the images and answers the other half, as they are and
mirrored. Where it knows the mirrored ones about as well, a flip makes a plausible image; where it does not, a strange one.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deit.data.sources import ImageSource
from deit.errors import ImageError

LOOKED_AT = 1500
SIDE, CELLS, DIRECTIONS = 32, 8, 6
RIDGE = 3.0
DOUBT = 2.5  # standard errors that a difference must exceed to be one


@dataclass(frozen=True)
class MirrorTest:
    """What came of it.

    Attributes:
        upright: images recognized as they are, of those tried; likewise ``mirrored``.
        tried: how many.
        changed: images that are recognized one way alone.
    """

    upright: int
    mirrored: int
    tried: int
    changed: int

    @property
    def alike(self) -> bool:
        """Whether mirrored images are recognized as often, as far as one can tell."""
        return self.upright - self.mirrored <= DOUBT * math.sqrt(max(self.changed, 1))

    def __str__(self) -> str:
        return (
            f"a linear classifier knows {self.upright / max(self.tried, 1):.0%} of {self.tried} images, "
            f"and mirrored {self.mirrored / max(self.tried, 1):.0%}"
        )


def mirror_test(source: ImageSource) -> MirrorTest:
    """Try it on images spread over a training set; takes about a second for small ones."""
    count = len(source.labels)
    places = np.unique(np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int))
    images: dict[int, np.ndarray] = {}
    for place in places.tolist():
        with suppress(ImageError):  # a damaged image is met again, and dealt with, in training
            image = source.load(place).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            images[place] = np.asarray(image, np.float32)
    if len(images) < 2:
        return MirrorTest(0, 0, 0, 0)
    pixels, labels = np.stack(list(images.values())), source.labels[list(images)]
    learn = np.arange(len(labels)) % 2 == 0
    features = edges(pixels)
    mean = features[learn].mean(axis=0)
    known = features[learn] - mean
    targets = np.eye(len(source.classes), dtype=np.float32)[labels[learn]]
    weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ (targets - targets.mean(axis=0)))
    right, turned = (
        ((values - mean) @ weights).argmax(axis=1) == labels[~learn]
        for values in (features[~learn], edges(pixels[~learn][:, :, ::-1]))
    )
    return MirrorTest(int(right.sum()), int(turned.sum()), int((~learn).sum()), int((right != turned).sum()))


def edges(pixels: np.ndarray) -> np.ndarray:
    """Gray images (N, 32, 32) -> (N, 8 x 8 x 6): how much edge of each direction each cell holds, of unit length an image."""
    down, right = np.gradient(pixels, axis=(1, 2))
    strength = np.hypot(down, right)
    direction = (np.arctan2(down, right) % np.pi) * (DIRECTIONS / np.pi)
    cell = SIDE // CELLS
    maps = []
    for number in range(DIRECTIONS):
        distance = np.abs(direction - number)
        share = np.clip(1 - np.minimum(distance, DIRECTIONS - distance), 0, 1) * strength
        maps.append(share.reshape(-1, CELLS, cell, CELLS, cell).sum(axis=(2, 4)))
    features = np.sqrt(np.stack(maps, axis=-1).reshape(len(pixels), -1))
    return np.asarray(features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-6), np.float32)
