"""Masked image modeling (SimMIM, arXiv 2111.09886): random masks and the reconstruction loss."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from deit.data.loader import EvaluationSamples, Loader
from deit.errors import DataError
from deit.models.modeling import DeiTForMaskedImageModeling
from deit.recipes.schema import Masking
from deit.rng import RngStream, generator
from deit.system.devices import Precision, autocast
from deit.system.distributed import gathered, group_rank, group_size, together

VALIDATION_EPOCH = 2**63  # the masks of validation are those of this epoch, which no training reaches


def random_masks(settings: Masking, seed: int, epoch: int, samples: Tensor, grid: tuple[int, int]) -> Tensor:
    """Draws the masked patches of a batch: whole blocks, the same fraction of every image.

    Args:
        settings: mask ratio and block size.
        seed: seed of the run.
        epoch: counted from 0.
        samples: (B, 3), the samples of a batch: index, repeat, position. A mask depends on the index and the repeat.
        grid: rows and columns of patches.

    Returns:
        (B, rows x columns) bool, True where a patch is masked.
    """
    rows, columns = (-(-side // settings.block) for side in grid)
    count = max(round(settings.ratio * rows * columns), 1)
    masked = np.zeros((len(samples), rows * columns), bool)
    for row, (index, repeat, _) in zip(masked, samples.tolist(), strict=True):
        row[generator(seed, RngStream.MASK, epoch, index, repeat).permutation(rows * columns)[:count]] = True
    blocks = masked.reshape(-1, rows, columns)
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
    """Computes the reconstruction loss of a data set, with masks that are the same in every epoch.

    Connected processes each compute it for a share of the batches, and all return the loss of the whole.

    Returns:
        Mean absolute error of the masked pixels, in units of the normalized images.

    Raises:
        DataError: no image is readable.
        InterruptedWorkError: a signal was received in a context of :func:`deit.system.signals.stop_on_signals`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses: list[tuple[float, int]] = []  # of each batch, and its images
    with together():
        for batch in loader.run(samples.plans(batch_size)[group_rank() :: group_size()], interruptible=True):
            loss = 0.0
            if len(batch.labels):
                masked = random_masks(settings, seed, VALIDATION_EPOCH, batch.samples, model.config.grid)
                with autocast(device, precision):
                    loss = model(batch.pixel_values.to(device), bool_masked_pos=masked.to(device)).loss.item()
            losses.append((loss, len(batch.labels)))
    model.train(was_training)
    everything = [row for rows in zip_longest(*gathered(losses), fillvalue=(0.0, 0)) for row in rows]
    images = sum(count for _, count in everything)
    if not images:
        raise DataError("No image of the data set is readable", "`deit data check` lists the unreadable files")
    return sum(loss * count for loss, count in everything) / images
