"""The first phase of training, whose steps are cheaper: small images first, or patch dropout.

The last phase trains on whole images of full size, as inference sees them.

- Small images first (EfficientNetV2, arXiv 2104.00298; EfficientTrain++, arXiv 2405.08768): at first, a convolutional network
  learns as much from images of half the height and width, for a quarter of the operations (``docs/log.md``).
- Patch dropout (arXiv 2208.07220): a transformer processes a random part of the patches of each image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.recipes.schema import ConvNet, Transformer
from deit.rng import RngStream, generator


def first_phase(model: Transformer | ConvNet) -> float:
    """Returns the fraction of training, in 0..1, that the first phase takes; 0 without one."""
    if isinstance(model, ConvNet):
        return model.half_size_until
    return model.patch_dropout_until if model.patch_dropout else 0.0


def mean_cost(share: float, cost: float, progress: float = 0.0) -> float:
    """Returns the mean duration of the steps that are left, relative to a step of the last phase.

    Args:
        share: fraction of training that the first phase takes.
        cost: duration of a step of the first phase, relative to one of the last.
        progress: fraction of training that is finished.
    """
    if progress >= share:
        return 1.0
    return 1 - (1 - cost) * (share - progress) / (1 - progress)


def half_size(pixel_values: Tensor) -> Tensor:
    """Averages 2 x 2 pixels: (B, 3, height, width) to half of the height and width, rounded down."""
    return F.avg_pool2d(pixel_values, 2)


def kept_patches(rate: float, patches: int, seed: int, epoch: int, step: int, positions: Tensor) -> Tensor | None:
    """Draws which patches of a batch are processed.

    Args:
        rate: fraction of the patches that is dropped.
        patches: P, number of patches per image.
        seed: seed of the run.
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        positions: (B,), positions of the images in the global batch; draws depend on them, not on the process.

    Returns:
        (B, P') int64, ascending positions of the patches that are kept, at least one; None if ``rate`` is 0.
    """
    if rate == 0:
        return None
    kept = max(round(patches * (1 - rate)), 1)
    draws = generator(seed, RngStream.PATCH_DROPOUT, epoch, step).random((int(positions.max()) + 1, patches))
    return torch.from_numpy(np.sort(np.argpartition(draws[positions.numpy()], kept - 1, axis=1)[:, :kept], axis=1))
