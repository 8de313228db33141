"""Mixup and cutmix of the images and labels of a batch.

Neighbors are mixed with each other: 0 with 1, 2 with 3, and so on; the last image of an odd batch is not mixed. Every pair has
its own draws, so that a mixed image depends only on its pair, not on how a batch is cut into micro-batches or distributed. timm
mixes a batch with its reverse under one draw; the distribution of each sample is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from deit.rng import RngStream, generator

Probability = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(ge=0, le=100)]


class Mixing(BaseModel):
    """Settings of mixing (table 9).

    Attributes:
        mixup: alpha of mixup's Beta distribution; 0 disables mixup.
        cutmix: alpha of cutmix's Beta distribution; 0 disables cutmix.
        probability: probability of mixing a pair.
        switch: probability of cutmix instead of mixup if both are enabled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    probability: Probability = 1.0
    switch: Probability = 0.5

    @property
    def enabled(self) -> bool:
        """Whether any pair may be mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True)
class MixDraw:
    """How each image of a batch is mixed.

    Attributes:
        partner: (B,), position of the other image; the image's own position if it is not mixed.
        weight: (B,), weight of the image itself, in 0..1.
        box: (B, 4), top, bottom, left, right of the rectangle that cutmix takes from the partner; zeros for mixup.
    """

    partner: np.ndarray
    weight: np.ndarray
    box: np.ndarray

    def select(self, rows: np.ndarray) -> MixDraw:
        """Returns the draw for some rows of the batch; images that lost their partner are not mixed."""
        positions = {row: position for position, row in enumerate(rows.tolist())}
        partner = [positions.get(int(self.partner[row]), position) for row, position in positions.items()]
        return MixDraw(np.asarray(partner, np.int64), self.weight[rows], self.box[rows])


def draw(settings: Mixing, seed: int, epoch: int, samples: np.ndarray, height: int, width: int) -> MixDraw:
    """Draws how a batch is mixed.

    Args:
        settings: mixup and cutmix.
        seed: seed of the run.
        epoch: counted from 0.
        samples: (B, 3), index, repeat and position of each image, as in :class:`deit.data.sampler.BatchPlan`.
        height: height of the images in pixels.
        width: width of the images in pixels.
    """
    count = len(samples)
    partner, weight, box = np.arange(count), np.ones(count), np.zeros((count, 4), np.int64)
    for first in range(0, count - 1, 2) if settings.enabled else ():
        pair = slice(first, first + 2)
        rng = generator(seed, RngStream.MIX, epoch, index=int(samples[first, 0]), repeat=int(samples[first, 1]))
        if rng.random() >= settings.probability:
            continue
        partner[pair] = first + 1, first
        if settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < settings.switch):
            lam, center = rng.beta(settings.cutmix, settings.cutmix), (int(rng.integers(height)), int(rng.integers(width)))
            top, bottom, left, right = box[pair] = cutmix_box(lam, center, height, width)
            weight[pair] = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            weight[pair] = rng.beta(settings.mixup, settings.mixup)
    return MixDraw(partner, weight, box)


def mix_images(images: Tensor, draw: MixDraw) -> None:
    """Mixes a batch (B, C, height, width) in place. Partners are mutual."""
    for first, second in enumerate(draw.partner.tolist()):
        if second <= first:  # not mixed, or mixed already
            continue
        top, bottom, left, right = draw.box[first]
        if draw.box[first].any():
            first_patch, second_patch = (images[index, :, top:bottom, left:right] for index in (first, second))
            copy = first_patch.clone()
            first_patch.copy_(second_patch)
            second_patch.copy_(copy)
        else:
            weight = float(draw.weight[first])
            difference = images[first] - images[second]
            images[first].sub_(difference, alpha=1 - weight)
            images[second].add_(difference, alpha=1 - weight)


def soft_targets(labels: Tensor, draw: MixDraw, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Converts labels (B,) to targets (B, K) float32 whose rows sum to 1: smoothed, then mixed like the images."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes)
    targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    weight = torch.from_numpy(draw.weight).float()[:, None]
    return targets * weight + targets[torch.from_numpy(draw.partner)] * (1 - weight)


def cutmix_box(lam: float, center: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Returns top, bottom, left, right of a box of area 1 - lam around a row and column, clipped at the edges."""
    scale = np.sqrt(1 - lam)
    cut_height, cut_width = int(height * scale), int(width * scale)
    top, left = center[0] - cut_height // 2, center[1] - cut_width // 2
    bottom, right = top + cut_height, left + cut_width
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)
