"""Position embeddings to another grid of patches (section 3, "Fixing the positional encoding across resolutions")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(embeddings: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample the patches' embeddings bicubically; the tokens before them keep theirs.

    Args:
        embeddings: (1, prefix + old rows x old columns, D).
        prefix: number of tokens before the patches.
        old: rows and columns of the grid that the embeddings were learned on.
        new: rows and columns wanted.

    Returns:
        (1, prefix + new rows x new columns, D), of the same dtype.
    """
    if old == new:
        return embeddings
    tokens, patches = embeddings[:, :prefix], embeddings[:, prefix:]
    width = embeddings.shape[-1]
    grid = patches.reshape(1, *old, width).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False, antialias=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], width).to(embeddings.dtype)
    return torch.cat([tokens, patches], dim=1)
