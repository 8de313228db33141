"""The names of every tensor are pinned: saved models and training states depend on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import deit
from deit.checkpoints.key_maps import to_layout
from tests.helpers import tiny_deit, tiny_vit

PINNED: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "state_dict.json").read_text())
KINDS = [
    "ViTModel",
    "DeiTModel",
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
]


def keys(kind: str) -> dict[str, list[str]]:
    """Our names, and those on disk, of a model of one layer, with the shapes that a small one has."""
    config = (tiny_vit if kind.startswith("ViT") else tiny_deit)(num_hidden_layers=1, encoder_stride=8)
    with torch.device("meta"):
        model = getattr(deit, kind)(config)
    trunk = "" if kind.endswith("Model") else f"{config.model_type}."
    on_disk = to_layout(model.canonical_state(), "transformers-4", trunk)
    return {
        "in memory": [f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items()],
        "on disk": sorted(f"{name} {list(tensor.shape)}" for name, tensor in on_disk.items()),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_and_shapes_are_the_pinned_ones(kind: str) -> None:
    assert keys(kind) == PINNED[kind]


def test_every_pinned_class_is_there() -> None:
    assert sorted(PINNED) == sorted(KINDS)
