"""Hints: the patches of a student learn what a convolutional teacher sees at their place (FitNets, arXiv 1412.6550).

A teacher's answer is one number an image; its maps are thousands, each about one place. A transformer that starts from noise
on a few thousand images stays at chance with the first and not with the second (``docs/log.md``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.config import ViTConfig
from deit.rng import RngStream, torch_seed

CLAMPED = (-4.0, 6.0)  # standard deviations: a map's rare peaks would drown what else it says
EPSILON = 1e-5


class Hints(nn.Module):
    """Linear maps from the tokens of patches, after several layers, to the teacher's maps; thrown away after training.

    The teacher's maps, from the first to the last, are spread over the student's layers. A map is brought to the student's
    grid of patches, or to twice as many points a side where it is that fine; a patch then learns all four of its points.

    Args:
        config: of the student.
        shapes: of the teacher's maps for one image, each (C, h, w).
        seed: of the run, from which the first weights are drawn.
    """

    def __init__(self, config: ViTConfig, shapes: Sequence[tuple[int, int, int]], seed: int) -> None:
        super().__init__()
        self.grid = config.grid
        rows, columns = config.grid
        self.layers = [max((place + 1) * config.num_hidden_layers // len(shapes), 1) for place in range(len(shapes))]
        self.points = [2 if height >= 2 * rows and width >= 2 * columns else 1 for _, height, width in shapes]
        self.maps = nn.ModuleList()
        generator = torch.Generator().manual_seed(torch_seed(seed, RngStream.FEATURES))
        for (channels, _, _), points in zip(shapes, self.points, strict=True):
            linear = nn.Linear(config.hidden_size, channels * points**2)
            nn.init.normal_(linear.weight, std=config.hidden_size**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)
            self.maps.append(nn.Sequential(nn.LayerNorm(config.hidden_size), linear))

    def forward(self, hidden_states: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """How far the student's patches are from the teacher's maps: the mean squared error, averaged over maps.

        Args:
            hidden_states: L + 1 of (B, N, D), as the model answers them.
            maps: of the teacher for the same images, each (B, C, h, w).
        """
        rows, columns = self.grid
        losses = []
        for layer, points, learned, taught in zip(self.layers, self.points, self.maps, maps, strict=True):
            said = learned(hidden_states[layer][:, -rows * columns :])  # (B, P, points^2 C)
            wanted = _standardized(_resized(taught.float(), rows * points, columns * points))
            losses.append(F.mse_loss(said.float(), _patches(wanted, points)))
        return torch.stack(losses).mean()


def _standardized(maps: Tensor) -> Tensor:
    """(B, C, h, w) with mean 0 and deviation 1 of each channel over the batch: no map outweighs another by its scale."""
    if maps.numel() == maps.shape[1]:  # one value has no deviation
        return torch.zeros_like(maps)
    return F.batch_norm(maps, None, None, training=True, eps=EPSILON).clamp(*CLAMPED)


def _patches(maps: Tensor, points: int) -> Tensor:
    """(B, C, rows points, columns points) -> (B, rows columns, points^2 C), for maps whose channels are last in memory."""
    batch, channels, height, width = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(batch, height // points, points, width // points, points, channels)
    return cells.transpose(2, 3).reshape(batch, -1, points**2 * channels)


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[-2:] == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
