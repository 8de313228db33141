"""Tests whether horizontally flipped images still look like their class: true for most photos, not for writing or signs.

A linear classifier on edge orientations is trained on half of the images and evaluated on the other half, as they are and
flipped. If it recognizes flipped images about as well, horizontal flips are a plausible augmentation.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deit.data.sources import ImageSource
from deit.errors import ImageError

MAX_IMAGES = 1500
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
    """Runs the test on images spread evenly over a training set; takes about a second for small images."""
    count = len(source.labels)
    indices = np.unique(np.linspace(0, count - 1, min(MAX_IMAGES, count)).astype(int))
    images: dict[int, np.ndarray] = {}
    for index in indices.tolist():
        with suppress(ImageError):  # training reports damaged images
            image = source.load(index).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            images[index] = np.asarray(image, np.float32)
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
