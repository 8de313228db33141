"""Masked image modeling: which patches are hidden, and how well a model fills them in (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deit.data.loader import EvaluationSamples, Loader
from deit.errors import DataError
from deit.models.modeling import DeiTForMaskedImageModeling
from deit.recipes.schema import Masking
from deit.rng import RngStream, generator
from deit.system.devices import Precision, autocast

JUDGED_EPOCH = 2**63  # whose masks are those of validation: no training gets so far


def masks(settings: Masking, seed: int, epoch: int, samples: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches of each image are hidden: whole blocks, the same share of each image.

    Args:
        samples: (B, 3), of a batch: index, repeat, position. A mask belongs to the index and the repeat.
        grid: rows and columns of patches.

    Returns:
        (B, rows x columns), bool.
    """
    rows, columns = (-(-side // settings.block) for side in grid)
    hidden = max(round(settings.ratio * rows * columns), 1)
    found = np.zeros((len(samples), rows * columns), bool)
    for row, (index, repeat, _) in zip(found, samples.tolist(), strict=True):
        row[generator(seed, RngStream.MASK, epoch, index, repeat).permutation(rows * columns)[:hidden]] = True
    blocks = found.reshape(-1, rows, columns)
    patches = blocks.repeat(settings.block, axis=1).repeat(settings.block, axis=2)[:, : grid[0], : grid[1]]
    return torch.from_numpy(patches.reshape(len(samples), -1))


@torch.inference_mode()
def masked_loss(
    model: DeiTForMaskedImageModeling,
    samples: EvaluationSamples,
    settings: Masking,
    seed: int,
    *,
    loader: Loader,
    batch_size: int,
    precision: Precision,
) -> float:
    """Mean absolute difference of hidden pixels, in the normalized images' units, with masks that are always the same.

    Raises:
        DataError: nothing in the source is readable.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, images = 0.0, 0
    for batch in loader.run(samples.plans(batch_size)):
        count = len(batch.labels)
        if count:
            hidden = masks(settings, seed, JUDGED_EPOCH, batch.samples, model.config.grid)
            with autocast(device, precision):
                loss = model(batch.pixel_values.to(device), bool_masked_pos=hidden.to(device)).loss
            total, images = total + loss.item() * count, images + count
    model.train(was_training)
    if not images:
        raise DataError("No image of the data set is readable", "`deit data check` lists the unreadable files")
    return total / images
