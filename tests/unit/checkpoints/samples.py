"""Random models and tensors by canonical name, and comparisons of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import transformers
from torch import Tensor

from deit.checkpoints.key_maps import identify_layout
from deit.checkpoints.shapes import other_shapes, trunk_shapes
from deit.config import DeiTConfig, ViTConfig
from tests.helpers import TINY, randomized

WITH_TEACHER = ("cls_classifier", "distillation_classifier")


def heads_of(config: ViTConfig) -> tuple[str, ...]:
    return WITH_TEACHER if isinstance(config, DeiTConfig) else ("classifier",)


def canonical_state(config: ViTConfig, modules: tuple[str, ...] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Returns random tensors of a trunk and of the named modules beside it; None means the heads of a classifier."""
    prefixes = tuple(f"{module}." for module in (heads_of(config) if modules is None else modules))
    shapes = trunk_shapes(config) | {name: s for name, s in other_shapes(config).items() if f"{name}.".startswith(prefixes)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def transformers_model(class_name: str, **fields: Any) -> Any:
    library: Any = transformers
    config_class = library.DeiTConfig if class_name.startswith("DeiT") else library.ViTConfig
    config = config_class(**{**TINY, "num_labels": 5, "encoder_stride": 8, **fields})
    return randomized(getattr(library, class_name)(config))


def timm_model(name: str = "deit_tiny_distilled_patch16_224", **arguments: Any) -> Any:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}
    return randomized(timm.create_model(name, **{**tiny, **arguments}))


def to_canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of any supported project by canonical name."""
    return {canonical: torch.cat([state[name] for name in names]) for canonical, names in identify_layout(state)[1].items()}


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
