"""Mixup and cutmix: a batch of images and labels -> mixed images and soft targets.

Neighbours are mixed with each other, 0 with 1, 2 with 3, and an odd one out with nobody, and every pair has draws of its own.
So a mixed image depends on its pair alone: not on how a batch is cut into micro-batches or spread over machines. timm mixes a
batch with its reverse under one draw; each sample's distribution is the same.
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
        mixup: alpha of mixup's Beta distribution; 0 switches it off.
        cutmix: alpha of cutmix's Beta distribution; 0 switches it off.
        probability: of mixing a pair at all.
        switch: probability of cutmix where both are on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    probability: Probability = 1.0
    switch: Probability = 0.5

    @property
    def on(self) -> bool:
        """Whether any pair is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True)
class MixDraw:
    """How each image of a batch is mixed.

    Attributes:
        partner: (B,), the position of the other image; an image's own where it stays as it is.
        weight: (B,), the image's own share, in 0..1.
        box: (B, 4), top, bottom, left, right of the rectangle that comes from the partner; empty for mixup.
    """

    partner: np.ndarray
    weight: np.ndarray
    box: np.ndarray

    def kept(self, rows: np.ndarray) -> MixDraw:
        """What is left of the draw if only some rows of the batch are: whoever lost the partner is not mixed."""
        place = {row: rank for rank, row in enumerate(rows.tolist())}
        partner = [place.get(int(self.partner[row]), rank) for row, rank in place.items()]
        return MixDraw(np.asarray(partner, np.int64), self.weight[rows], self.box[rows])


def draw(settings: Mixing, seed: int, epoch: int, samples: np.ndarray, height: int, width: int) -> MixDraw:
    """Draw for a batch.

    Args:
        samples: (B, 3), index, repeat and position of each image, as in :class:`deit.data.sampler.BatchPlan`.
        height: of the images, in pixels; likewise ``width``.
    """
    count = len(samples)
    partner, weight, box = np.arange(count), np.ones(count), np.zeros((count, 4), np.int64)
    for first in range(0, count - 1, 2) if settings.on else ():
        pair = slice(first, first + 2)
        rng = generator(seed, RngStream.MIX, epoch, index=int(samples[first, 0]), repeat=int(samples[first, 1]))
        if rng.random() >= settings.probability:
            continue
        partner[pair] = first + 1, first
        if settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < settings.switch):
            share, middle = rng.beta(settings.cutmix, settings.cutmix), (int(rng.integers(height)), int(rng.integers(width)))
            top, bottom, left, right = box[pair] = rectangle(share, middle, height, width)
            weight[pair] = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            weight[pair] = rng.beta(settings.mixup, settings.mixup)
    return MixDraw(partner, weight, box)


def mix_images(images: Tensor, draw: MixDraw) -> None:
    """Mix a batch (B, C, height, width) in place; partners are each other's."""
    for one, other in enumerate(draw.partner.tolist()):
        if other <= one:  # alone, or done with its partner
            continue
        top, bottom, left, right = draw.box[one]
        if draw.box[one].any():
            part, others = images[one, :, top:bottom, left:right], images[other, :, top:bottom, left:right]
            kept = part.clone()
            part.copy_(others)
            others.copy_(kept)
        else:
            weight = float(draw.weight[one])
            difference = images[one] - images[other]
            images[one].sub_(difference, alpha=1 - weight)
            images[other].add_(difference, alpha=1 - weight)


def soft_targets(labels: Tensor, draw: MixDraw, classes: int, smoothing: float = 0.0) -> Tensor:
    """(B,) labels -> (B, K) float32 targets whose rows sum to 1: smoothed, then mixed as the images are."""
    own = torch.full((len(labels), classes), smoothing / classes)
    own.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)
    weight = torch.from_numpy(draw.weight).float()[:, None]
    return own * weight + own[torch.from_numpy(draw.partner)] * (1 - weight)


def rectangle(weight: float, middle: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle of the share 1 - weight around a row and column, cut off at the edges."""
    scale = np.sqrt(1 - weight)
    cut_height, cut_width = int(height * scale), int(width * scale)
    top, left = middle[0] - cut_height // 2, middle[1] - cut_width // 2
    bottom, right = top + cut_height, left + cut_width
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)
