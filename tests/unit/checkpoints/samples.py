"""Tensors by canonical name for any configuration, and what two sets of them have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deit.checkpoints.shapes import other_shapes, trunk_shapes
from deit.config import DeiTConfig, ViTConfig

WITH_TEACHER = ("cls_classifier", "distillation_classifier")


def heads_of(config: ViTConfig) -> tuple[str, ...]:
    return WITH_TEACHER if isinstance(config, DeiTConfig) else ("classifier",)


def canonical_state(config: ViTConfig, heads: tuple[str, ...] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors for a trunk and some of the parts beside it; a classifier's heads where none are named."""
    wanted = tuple(f"{head}." for head in (heads_of(config) if heads is None else heads))
    shapes = trunk_shapes(config) | {name: s for name, s in other_shapes(config).items() if f"{name}.".startswith(wanted)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
