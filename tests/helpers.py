"""Small models, images with known pixels and image sources in memory for the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from deit.config import DeiTConfig, ViTConfig
from deit.data.sources import fingerprint
from deit.data.splits import DataRecord, Splits
from deit.errors import ImageError

M = TypeVar("M", bound=nn.Module)

TINY: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}


# preprocessor_config.json of the published models, written by transformers 4.
PUBLISHED_PREPROCESSING: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 256,
}


def tiny_deit(**fields: Any) -> DeiTConfig:
    return DeiTConfig(**{**TINY, "num_labels": 5, **fields})


def tiny_vit(**fields: Any) -> ViTConfig:
    return ViTConfig(**{**TINY, "num_labels": 5, **fields})


@torch.no_grad()
def randomized(model: M, seed: int = 0, std: float = 0.3) -> M:
    """Draws all weights at random, so that none keeps a default that would hide an error. Returns the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pattern(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns an RGB image with smooth and noisy channels, the same on every machine."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red = (x * 255 // max(width - 1, 1) + 31 * seed) % 256
    green = (y * 255 // max(height - 1, 1) + 17 * seed) % 256
    blue = (x * x * 7 + y * 13 + x * y * 3 + seed * 101) % 256
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


@dataclass(frozen=True)
class MemorySource:
    """Image source in memory. Images of odd sizes are generated from their index and ``shift``; ``broken`` are unreadable."""

    count: int
    classes: tuple[str, ...] = ("a", "b", "c")
    broken: frozenset[int] = field(default_factory=frozenset)
    shift: int = 0

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64) % len(self.classes)

    def load(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError(f"image {index} is broken", "replace it")
        return pattern(20 + 7 * (index % 5), 31 - 5 * (index % 4), seed=index + self.shift)

    def name(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class MemorySplits(Splits):
    """Splits of :class:`MemorySource`, with the record that a run keeps of them."""

    @property
    def record(self) -> DataRecord:
        return DataRecord(self.fingerprint, 0, 0.2)


def memory_splits(count: int) -> MemorySplits:
    """Returns splits of ``count`` training images and nine validation images."""
    train, validation = MemorySource(count), MemorySource(9)
    return MemorySplits(train, validation, None, "made in memory", fingerprint(train, validation))
