"""The table of published variants, checked against the models that are built from it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deit.config import DeiTConfig, ViTConfig, variant_config
from deit.errors import UserError
from deit.models.modeling import TransformerClassifier, new_classifier
from deit.variants import VARIANTS, variant

# name: parameters, billions of multiply-adds, published top-1 (paper, tables 5 to 7)
PUBLISHED = {
    "deit-tiny-patch16-224": (5_717_416, 1.26, 72.2),
    "deit-small-patch16-224": (22_050_664, 4.61, 79.9),
    "deit-base-patch16-224": (86_567_656, 17.58, 81.8),
    "deit-base-patch16-384": (86_859_496, 55.54, 83.1),
    "deit-tiny-distilled-patch16-224": (5_910_800, 1.27, 74.5),
    "deit-small-distilled-patch16-224": (22_436_432, 4.63, 81.2),
    "deit-base-distilled-patch16-224": (87_338_192, 17.68, 83.4),
    "deit-base-distilled-patch16-384": (87_630_032, 55.65, 85.2),
}


def build_on_meta(name: str) -> TransformerClassifier:
    with torch.device("meta"):
        return new_classifier(variant_config(name))


def test_table_lists_the_published_models() -> None:
    assert {name: (row.parameters, row.gmacs, row.top1) for name, row in VARIANTS.items()} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in build_on_meta(name).parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_multiply_adds(name: str) -> None:
    model = build_on_meta(name)
    size = variant(name).image_size
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device="meta"))
    gmacs = counter.get_total_flops() / 2e9
    assert gmacs == pytest.approx(PUBLISHED[name][1], rel=0.004, abs=0.01)  # the published count includes the layer norms


@pytest.mark.parametrize("name", PUBLISHED)
def test_name_matches_the_configuration(name: str) -> None:
    config = variant_config(name)
    assert type(config) is (DeiTConfig if "distilled" in name else ViTConfig)
    assert config.image_size == int(name[-3:])
    assert config.hidden_size // config.num_attention_heads == 64
    assert (config.num_labels, config.layer_norm_eps, config.patch_size) == (1000, 1e-6, 16)


def test_variant_config_overrides_classes_and_size() -> None:
    config = variant_config("deit-tiny-patch16-224", image_size=64, id2label={0: "a", 1: "b", 2: "c"})
    assert (config.grid, config.classes, config.hidden_size) == ((4, 4), ("a", "b", "c"), 192)
    assert variant_config("deit-tiny-patch16-224", num_labels=7).num_labels == 7


def test_hub_name_finds_the_variant() -> None:
    for row in VARIANTS.values():
        assert row.hub_name == f"facebook/{row.name}"
        assert variant(row.hub_name) is row


def test_misspelled_name_suggests_the_closest() -> None:
    with pytest.raises(UserError, match="did you mean deit-small-distilled-patch16-224; `deit model list` shows all"):
        variant("deit-smal-distiled-patch16-224")
    with pytest.raises(UserError, match="Unknown model ''"):
        variant("")
