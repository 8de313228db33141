"""Tests whether horizontally flipped images still look like their class: true for most photos, not for writing or signs.

A linear classifier on edge orientations is trained on half of the images and evaluated on the other half, as they are and
flipped. If it recognizes flipped images about as well, horizontal flips are a plausible augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deit.data.file_info import image_sizes
from deit.data.sources import ImageSource, open_encoded, subset
from deit.errors import ImageError
from deit.images.decoding import largest_reduction
from deit.system.threads import thread_map

MAX_IMAGES = 1500
MAX_PIXELS = 3 * 10**9  # of all images together, unless that were fewer than MIN_IMAGES
MIN_IMAGES = 300
SIDE, CELLS, ORIENTATIONS = 32, 8, 6  # pixels and cells per side, bins per histogram
RIDGE = 3.0  # regularization of the linear classifier
SIGNIFICANCE = 2.5  # standard errors that a significant difference exceeds


@dataclass(frozen=True)
class MirrorTest:
    """Result of the test.

    Attributes:
        upright: images that are recognized as they are.
        mirrored: images that are recognized when flipped.
        tried: images that were classified.
        changed: images that are recognized only one way.
    """

    upright: int
    mirrored: int
    tried: int
    changed: int

    @property
    def flip_invariant(self) -> bool:
        """Whether flipped images are recognized about as often: the difference is not significant."""
        return self.upright - self.mirrored <= SIGNIFICANCE * math.sqrt(max(self.changed, 1))

    def __str__(self) -> str:
        return (
            f"a linear classifier recognizes {self.upright / max(self.tried, 1):.0%} of {self.tried} images, "
            f"and {self.mirrored / max(self.tried, 1):.0%} when flipped"
        )


def mirror_test(source: ImageSource) -> MirrorTest:
    """Runs the test on images spread evenly over a training set: fewer if they are large.

    JPEGs are decoded at a reduced size where that is enough.
    """
    indices = _sample(source)
    decoded = thread_map(lambda index: _decode(source, index), indices)
    images = {index: pixels for index, pixels in zip(indices, decoded, strict=True) if pixels is not None}
    if len(images) < 2:
        return MirrorTest(0, 0, 0, 0)
    pixels, labels = np.stack(list(images.values())), source.labels[list(images)]
    is_training = np.arange(len(labels)) % 2 == 0
    features = edge_features(pixels)
    mean = features[is_training].mean(axis=0)
    centered = features[is_training] - mean
    targets = np.eye(len(source.classes), dtype=np.float32)[labels[is_training]]
    weights = np.linalg.solve(
        centered.T @ centered + RIDGE * np.eye(centered.shape[1]), centered.T @ (targets - targets.mean(axis=0))
    )
    upright, mirrored = (
        ((values - mean) @ weights).argmax(axis=1) == labels[~is_training]
        for values in (features[~is_training], edge_features(pixels[~is_training][:, :, ::-1]))
    )
    return MirrorTest(int(upright.sum()), int(mirrored.sum()), int((~is_training).sum()), int((upright != mirrored).sum()))


def _sample(source: ImageSource) -> list[int]:
    """Returns the indices of the images to test on."""
    count = len(source.labels)
    indices = np.unique(np.linspace(0, count - 1, min(MAX_IMAGES, count)).astype(int))
    pixels = int(image_sizes(subset(source, indices)).prod(axis=1).sum())
    if pixels > MAX_PIXELS:
        fewer = min(max(len(indices) * MAX_PIXELS // pixels, MIN_IMAGES), len(indices))
        indices = indices[np.linspace(0, len(indices) - 1, fewer).astype(int)]
    sample: list[int] = indices.tolist()
    return sample


def _decode(source: ImageSource, index: int) -> np.ndarray | None:
    """Returns the gray pixels of an image, (32, 32) float32; None if it is unreadable, which training reports."""
    try:
        with open_encoded(source, index) as encoded:
            image = encoded.decode(largest_reduction(min(encoded.width, encoded.height) / SIDE))
    except ImageError:
        return None
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def edge_features(pixels: np.ndarray) -> np.ndarray:
    """Computes histograms of edge orientations: (N, 32, 32) gray images -> (N, 8 x 8 x 6), normalized per image."""
    down, right = np.gradient(pixels, axis=(1, 2))
    strength = np.hypot(down, right)
    orientation = (np.arctan2(down, right) % np.pi) * (ORIENTATIONS / np.pi)
    cell = SIDE // CELLS
    histograms = []
    for index in range(ORIENTATIONS):
        distance = np.abs(orientation - index)
        weight = np.clip(1 - np.minimum(distance, ORIENTATIONS - distance), 0, 1) * strength
        histograms.append(weight.reshape(-1, CELLS, cell, CELLS, cell).sum(axis=(2, 4)))
    features = np.sqrt(np.stack(histograms, axis=-1).reshape(len(pixels), -1))
    return np.asarray(features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-6), np.float32)
