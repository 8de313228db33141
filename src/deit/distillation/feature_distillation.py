"""Feature distillation: the student's patch tokens regress the teacher's feature maps (FitNets, arXiv 1412.6550).

A teacher's prediction is one distribution per image; its feature maps are thousands of values, each tied to a position. On a
few thousand images, a randomly initialized transformer stays at chance with the first and learns with the second
(``docs/log.md``).

Shapes: B images, N tokens, P patches, D width, C channels of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.config import ViTConfig
from deit.distillation.feature_reduction import FeatureReduction
from deit.models.modeling import select_patches
from deit.rng import RngStream, torch_seed

CLAMP = (-4.0, 6.0)  # rare peaks would dominate a feature map


class FeatureDistillation(nn.Module):
    """Linear heads from the patch tokens of several layers to the teacher's feature maps; discarded after training.

    The teacher's feature maps, from first to last, are distributed over the student's layers. A feature map is reduced to its
    principal components of mean 0 and variance 1 (:mod:`deit.distillation.feature_reduction`) and resampled to the student's
    patch grid, or to twice as many points per side if it is fine enough; each patch then predicts its 2 x 2 points.

    Args:
        config: configuration of the student.
        shapes: shape (C, h, w) of each feature map for one image, after the reduction.
        seed: seed of the run, for the initial weights.
        reduction: of the teacher's feature maps; None if they are not reduced, or are already. It is saved with the weights.
    """

    def __init__(
        self,
        config: ViTConfig,
        shapes: Sequence[tuple[int, int, int]],
        seed: int,
        reduction: FeatureReduction | None = None,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.grid = config.grid
        rows, columns = config.grid
        self.layers = [max((index + 1) * config.num_hidden_layers // len(shapes), 1) for index in range(len(shapes))]
        self.points = [2 if height >= 2 * rows and width >= 2 * columns else 1 for _, height, width in shapes]
        self.heads = nn.ModuleList()
        generator = torch.Generator().manual_seed(torch_seed(seed, RngStream.FEATURES))
        for (channels, _, _), points in zip(shapes, self.points, strict=True):
            linear = nn.Linear(config.hidden_size, channels * points**2)
            nn.init.normal_(linear.weight, std=config.hidden_size**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)
            self.heads.append(nn.Sequential(nn.LayerNorm(config.hidden_size), linear))

    def forward(
        self, hidden_states: Sequence[Tensor], feature_maps: Sequence[Tensor], kept_patches: Tensor | None = None
    ) -> Tensor:
        """Computes the feature loss: mean squared error against the reduced feature maps, averaged over the maps.

        Args:
            hidden_states: L + 1 tensors (B, N, D), as the student returns them.
            feature_maps: the teacher's feature maps for the same images, each (B, C, h, w).
            kept_patches: (B, P'), the patches among the student's tokens; None means all.
        """
        if self.reduction is not None:
            feature_maps = self.reduction(feature_maps)
        rows, columns = self.grid
        patches = rows * columns if kept_patches is None else kept_patches.shape[1]
        losses = []
        for layer, points, head, feature_map in zip(self.layers, self.points, self.heads, feature_maps, strict=True):
            predicted = head(hidden_states[layer][:, -patches:])  # (B, P, points^2 C)
            resampled = _resample(feature_map.clamp(*CLAMP), rows * points, columns * points)  # (B, C, h, w)
            target = _to_patches(resampled, points)  # (B, P, points^2 C)
            if kept_patches is not None:
                target = select_patches(target, kept_patches)
            losses.append(_mean_squared_error(predicted, target))
        return torch.stack(losses).mean()


def _mean_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error in float32, without converting the tensors themselves."""
    difference = predicted - target
    norm: Tensor = torch.linalg.vector_norm(difference, dtype=torch.float32)
    return norm.square() / difference.numel()


def _to_patches(feature_map: Tensor, points: int) -> Tensor:
    """(B, C, rows points, columns points) -> (B, P, points^2 C), for feature maps in channels-last memory format."""
    batch, channels, height, width = feature_map.shape
    cells = feature_map.permute(0, 2, 3, 1).reshape(batch, height // points, points, width // points, points, channels)
    return cells.transpose(2, 3).reshape(batch, -1, points**2 * channels)  # (B, P, points^2 C)


def _resample(feature_map: Tensor, height: int, width: int) -> Tensor:
    """Resamples to a size: by averages where that is smaller, bilinearly where it is larger."""
    if feature_map.shape[-2:] == (height, width):
        return feature_map
    smaller = min(feature_map.shape[-2], height), min(feature_map.shape[-1], width)
    pooled = F.adaptive_avg_pool2d(feature_map, smaller)
    return F.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=False)
