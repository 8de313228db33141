"""Patch dropout (arXiv 2208.07220): training steps process a random part of the patches of each image.

A step costs about as much less as it has fewer tokens. The last part of training processes all patches, as inference does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deit.recipes.schema import Transformer
from deit.rng import RngStream, generator


def patch_dropout(model: Transformer, progress: float) -> float:
    """Returns the fraction of the patches that is dropped at ``progress``, the finished fraction of training in 0..1."""
    return model.patch_dropout if progress < model.patch_dropout_until else 0.0


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
