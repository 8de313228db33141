"""Position embeddings for another grid of patches (paper, section 3, "Fixing the positional encoding across resolutions")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_position_embeddings(
    embeddings: Tensor, prefix_tokens: int, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resamples the position embeddings of patches bicubically. Those of prefix tokens stay unchanged.

    Args:
        embeddings: tensor of shape (1, prefix_tokens + old rows x old columns, D).
        prefix_tokens: number of tokens before the patches.
        old_grid: rows and columns of patches that the embeddings were trained on.
        new_grid: rows and columns of patches to resample to.

    Returns:
        Tensor of shape (1, prefix_tokens + new rows x new columns, D), of the same dtype.
    """
    if old_grid == new_grid:
        return embeddings
    prefix, patches = embeddings[:, :prefix_tokens], embeddings[:, prefix_tokens:]
    width = embeddings.shape[-1]
    grid = patches.reshape(1, *old_grid, width).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid.float(), size=new_grid, mode="bicubic", align_corners=False, antialias=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], width).to(embeddings.dtype)
    return torch.cat([prefix, patches], dim=1)
