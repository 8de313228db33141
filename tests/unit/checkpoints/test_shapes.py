"""Shapes from a configuration and back: what does not fit is named before a tensor is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.key_maps import locate
from deit.checkpoints.shapes import check_shapes, find_architecture, infer_config, other_shapes, trunk_shapes
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from tests.helpers import tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import WITH_TEACHER, canonical_state, shapes_of

sizes = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([64, 128, 1024]),
        "num_hidden_layers": st.integers(1, 13),
        "intermediate_size": st.integers(1, 300),
        "image_size": st.sampled_from([48, 96]),
        "patch_size": st.sampled_from([4, 8, (8, 6)]),
        "num_channels": st.integers(1, 4),
        "qkv_bias": st.booleans(),
        "num_labels": st.integers(1, 9),
    }
)


def some(config: ViTConfig, *heads: str) -> dict[str, tuple[int, ...]]:
    wanted = tuple(f"{head}." for head in heads)
    return trunk_shapes(config) | {n: s for n, s in other_shapes(config).items() if f"{n}.".startswith(wanted)}


@given(sizes, st.sampled_from([DeiTConfig, ViTConfig]))
def test_a_configuration_is_inferred_from_its_shapes(fields: dict[str, Any], kind: type[ViTConfig]) -> None:
    config = kind(**fields, num_attention_heads=fields["hidden_size"] // 64)
    if config.grid[0] != config.grid[1]:
        with pytest.raises(
            CheckpointError, match=r"make no square: give image_size=\(height, width\) \(--image-size of deit convert\)"
        ):
            infer_config(some(config), {}, {}, "it")
    heads = WITH_TEACHER if kind is DeiTConfig else ("classifier",)
    hints = {"image_size": config.image_size, "num_labels": 3, "hidden_size": 7}  # of these only the size may be taken
    assert infer_config(some(config, *heads), {}, hints, "it") == config


def test_a_square_grid_stays_one_whatever_size_is_wanted() -> None:
    assert infer_config(some(tiny_vit()), {}, {"image_size": (16, 64), "num_attention_heads": 3}, "it").image_size == 32


def test_the_pooler_and_the_decoder_tell_their_fields() -> None:
    config = tiny_vit(pooler_output_size=7, encoder_stride=4, num_labels=0)
    found = some(config, "pooler.dense", "decoder.0", "embeddings.mask_token")
    assert infer_config(found, {"layer_norm_eps": 1e-12}, {"num_attention_heads": 3}, "it") == config


@pytest.mark.parametrize("width", [24, 100, 1280])
def test_a_width_that_does_not_tell_its_heads_asks_for_them(width: int) -> None:
    config = tiny_vit(hidden_size=width, num_attention_heads=4)
    with pytest.raises(CheckpointError, match=rf"width of {width}: give num_attention_heads \(--heads of deit convert\)"):
        infer_config(some(config), {}, {}, "it")
    assert infer_config(some(config), {}, {"num_attention_heads": 4, "hidden_act": "relu"}, "it").hidden_act == "relu"


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("embeddings.position_embeddings", None, "it lacks embeddings.position_embeddings"),
        ("layers.0.mlp.fc1.weight", None, "it lacks layers.0.mlp.fc1.weight"),
        ("embeddings.patch_embeddings.projection.weight", (24, 192), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (24, 0, 8, 8), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (2**40, 3, 8, 8), "makes no model: .*hidden_size"),
        ("embeddings.position_embeddings", (1, 1, 24), "0 patches, which make no square"),
        ("embeddings.position_embeddings", (1, 10**12 + 1, 24), "makes no model"),
    ],
)
def test_shapes_that_make_no_model_are_named(name: str, shape: tuple[int, ...] | None, problem: str) -> None:
    found = some(tiny_vit())
    del found[name]
    if shape is not None:
        found[name] = shape
    with pytest.raises(CheckpointError, match=problem):
        infer_config(found, {}, {"num_attention_heads": 3}, "it")


def test_pruned_heads_are_those_of_transformers_older_models() -> None:
    config = tiny_vit(pruned_heads={1: [0, 2]})
    shapes = trunk_shapes(config)
    assert shapes["layers.0.attention.qkv.weight"] == (72, 24)
    assert shapes["layers.1.attention.qkv.weight"] == (24, 24)
    assert shapes["layers.1.attention.qkv.bias"] == (24,)
    assert shapes["layers.1.attention.o_proj.weight"] == (24, 8)


def test_the_shapes_of_a_published_size_are_those_of_transformers() -> None:
    with torch.device("meta"):
        model = transformers.DeiTModel(transformers.DeiTConfig())
    state = model.state_dict()
    found = {ours: torch.cat([state[name] for name in of]).shape for ours, of in locate(state)[1].items()}
    assert {name: tuple(shape) for name, shape in found.items()} == some(DeiTConfig(), "pooler.dense")


def test_what_does_not_fit_is_named() -> None:
    config = tiny_deit()
    good = shapes_of(canonical_state(config))
    check_shapes(good, config, "it")
    for found, problem in [
        ({name: shape for name, shape in good.items() if name != "layernorm.bias"}, "it lacks layernorm.bias"),
        ({name: s for name, s in good.items() if name != "cls_classifier.bias"}, "it lacks cls_classifier.bias"),
        ({name: s for name, s in good.items() if name != "cls_classifier.weight"}, "it lacks cls_classifier.weight"),
        ({**good, "layers.2.mlp.fc1.bias": (40,)}, "it holds layers.2.mlp.fc1.bias, which a model of its configuration"),
        ({**good, "layernorm.bias": (23,)}, r"layernorm.bias in it is \(23,\), and the configuration makes it \(24,\)"),
        ({**good, "layernorm.bias": ()}, r"is \(\)"),
        ({**good, "layernorm.bias": (24, 1)}, r"is \(24, 1\)"),
        ({**good, "cls_classifier.bias": (6,)}, r"is \(6,\)"),
    ]:
        with pytest.raises(CheckpointError, match=problem):
            check_shapes(found, config, "it")


def test_heads_of_another_number_of_classes_are_let_in_on_demand_if_they_agree() -> None:
    config, stored = tiny_deit(num_labels=3), shapes_of(canonical_state(tiny_deit()))
    with pytest.raises(CheckpointError, match=r"cls_classifier.weight in it is \(5, 24\), and the configuration makes it \(3"):
        check_shapes(stored, config, "it")
    check_shapes(stored, config, "it", any_classes=True)
    mixed = {**stored, "cls_classifier.weight": (7, 24), "cls_classifier.bias": (7,)}
    with pytest.raises(CheckpointError, match="distillation_classifier"):
        check_shapes(mixed, config, "it", any_classes=True)


@pytest.mark.parametrize(
    ("heads", "stored", "expected"),
    [
        ((), None, "DeiTModel"),
        ((), ["DeiTModel"], "DeiTModel"),
        (("pooler.dense",), ["ViTModel"], "DeiTModel"),
        (("classifier",), ["BertModel"], "DeiTForImageClassification"),
        (("classifier",), "DeiTModel", "DeiTForImageClassification"),
        (WITH_TEACHER, [["x"]], "DeiTForImageClassificationWithTeacher"),
        (WITH_TEACHER, ["DeiTForImageClassification"], "DeiTForImageClassificationWithTeacher"),
        (("decoder.0", "embeddings.mask_token"), [], "DeiTForMaskedImageModeling"),
    ],
)
def test_the_class_is_that_of_the_heads(heads: tuple[str, ...], stored: object, expected: str) -> None:
    assert find_architecture(some(tiny_deit(), *heads), tiny_deit(), stored, "it") == expected


def test_a_classifier_without_classes_keeps_its_class() -> None:
    config = tiny_vit(num_labels=0)
    assert find_architecture(some(config), config, ["ViTForImageClassification"], "it") == "ViTForImageClassification"
    assert find_architecture(some(config), config, ["DeiTForImageClassification"], "it") == "ViTModel"
    assert find_architecture(some(tiny_vit()), tiny_vit(), ["ViTForImageClassification"], "it") == "ViTModel"


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (tiny_vit(), WITH_TEACHER),
        (tiny_deit(), ("classifier", "cls_classifier")),
        (tiny_deit(), ("distillation_classifier",)),
        (tiny_deit(), ("classifier", "decoder.0")),
    ],
)
def test_heads_of_no_class_are_an_error(config: ViTConfig, heads: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match=f"a trunk of .* and the heads {', '.join(sorted(heads))}"):
        find_architecture(some(config, *heads), config, None, "it")
