"""Pinned names and shapes of all tensors: saved models and training checkpoints depend on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import deit
from deit.checkpoints.key_maps import to_layout
from tests.helpers import tiny_deit, tiny_vit

PINNED: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "state_dict.json").read_text())
MODELS = [
    "ViTModel",
    "DeiTModel",
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "ViTForMaskedImageModeling",
]


def tensor_names(name: str) -> dict[str, list[str]]:
    """Returns the names and shapes of a small model's tensors, in its state dict and in a saved file."""
    config = (tiny_vit if name.startswith("ViT") else tiny_deit)(num_hidden_layers=1, encoder_stride=8)
    with torch.device("meta"):
        model = getattr(deit, name)(config)
    prefix = "" if name.endswith("Model") else f"{config.model_type}."
    on_disk = to_layout(model.canonical_state(), "transformers-4", prefix)
    return {
        "in memory": [f"{key} {list(tensor.shape)}" for key, tensor in model.state_dict().items()],
        "on disk": sorted(f"{key} {list(tensor.shape)}" for key, tensor in on_disk.items()),
    }


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_pinned(name: str) -> None:
    assert tensor_names(name) == PINNED[name]


def test_all_models_are_pinned() -> None:
    assert sorted(PINNED) == sorted(MODELS)
