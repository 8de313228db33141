"""Tensor shapes from a configuration and back, and the checks of a checkpoint's shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.shapes import check_shapes, find_architecture, infer_config, other_shapes, trunk_shapes
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from tests.helpers import tiny_deit, tiny_vit
from tests.unit.checkpoints.samples import WITH_TEACHER, canonical_state, shapes_of, to_canonical

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


def shapes_with(config: ViTConfig, *modules: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a trunk and of the named modules beside it."""
    prefixes = tuple(f"{module}." for module in modules)
    return trunk_shapes(config) | {n: s for n, s in other_shapes(config).items() if f"{n}.".startswith(prefixes)}


@given(sizes, st.sampled_from([DeiTConfig, ViTConfig]))
def test_configuration_is_inferred_from_shapes(fields: dict[str, Any], config_class: type[ViTConfig]) -> None:
    config = config_class(**fields, num_attention_heads=fields["hidden_size"] // 64)
    if config.grid[0] != config.grid[1]:
        with pytest.raises(
            CheckpointError, match=r"not a square grid: pass image_size=\(height, width\) \(--image-size of deit convert\)"
        ):
            infer_config(shapes_with(config), {}, {}, "it")
    heads = WITH_TEACHER if config_class is DeiTConfig else ("classifier",)
    hints = {"image_size": config.image_size, "num_labels": 3, "hidden_size": 7}  # only the image size may be used
    assert infer_config(shapes_with(config, *heads), {}, hints, "it") == config


def test_image_size_hint_is_ignored_for_a_square_grid() -> None:
    assert infer_config(shapes_with(tiny_vit()), {}, {"image_size": (16, 64), "num_attention_heads": 3}, "it").image_size == 32


def test_fields_of_pooler_and_decoder_are_inferred() -> None:
    config = tiny_vit(pooler_output_size=7, encoder_stride=4, num_labels=0)
    shapes = shapes_with(config, "pooler.dense", "decoder.0", "embeddings.mask_token")
    assert infer_config(shapes, {"layer_norm_eps": 1e-12}, {"num_attention_heads": 3}, "it") == config


@pytest.mark.parametrize("width", [24, 100, 1280])
def test_unknown_number_of_attention_heads_is_requested(width: int) -> None:
    config = tiny_vit(hidden_size=width, num_attention_heads=4)
    with pytest.raises(CheckpointError, match=rf"width of {width}: pass num_attention_heads \(--heads of deit convert\)"):
        infer_config(shapes_with(config), {}, {}, "it")
    assert infer_config(shapes_with(config), {}, {"num_attention_heads": 4, "hidden_act": "relu"}, "it").hidden_act == "relu"


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("embeddings.position_embeddings", None, "it lacks embeddings.position_embeddings"),
        ("layers.0.mlp.fc1.weight", None, "it lacks layers.0.mlp.fc1.weight"),
        ("embeddings.patch_embeddings.projection.weight", (24, 192), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (24, 0, 8, 8), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (), "has 4 dimensions"),
        ("embeddings.patch_embeddings.projection.weight", (2**40, 3, 8, 8), "do not make up a model: .*hidden_size"),
        ("embeddings.position_embeddings", (1, 1, 24), "0 patches, which is not a square grid"),
        ("embeddings.position_embeddings", (1, 10**12 + 1, 24), "do not make up a model"),
    ],
)
def test_inconsistent_shapes_are_reported(name: str, shape: tuple[int, ...] | None, problem: str) -> None:
    shapes = shapes_with(tiny_vit())
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(CheckpointError, match=problem):
        infer_config(shapes, {}, {"num_attention_heads": 3}, "it")


def test_pruned_heads_narrow_the_attention() -> None:
    config = tiny_vit(pruned_heads={1: [0, 2]})
    shapes = trunk_shapes(config)
    assert shapes["layers.0.attention.qkv.weight"] == (72, 24)
    assert shapes["layers.1.attention.qkv.weight"] == (24, 24)
    assert shapes["layers.1.attention.qkv.bias"] == (24,)
    assert shapes["layers.1.attention.o_proj.weight"] == (24, 8)


def test_shapes_match_transformers() -> None:
    with torch.device("meta"):
        model = transformers.DeiTModel(transformers.DeiTConfig())
    assert shapes_of(to_canonical(model.state_dict())) == shapes_with(DeiTConfig(), "pooler.dense")


def test_first_mismatch_is_reported() -> None:
    config = tiny_deit()
    valid = shapes_of(canonical_state(config))
    check_shapes(valid, config, "it")
    for shapes, problem in [
        ({name: shape for name, shape in valid.items() if name != "layernorm.bias"}, "it lacks layernorm.bias"),
        ({name: s for name, s in valid.items() if name != "cls_classifier.bias"}, "it lacks cls_classifier.bias"),
        ({name: s for name, s in valid.items() if name != "cls_classifier.weight"}, "it lacks cls_classifier.weight"),
        ({**valid, "layers.2.mlp.fc1.bias": (40,)}, "it has layers.2.mlp.fc1.bias, which a model of its configuration"),
        ({**valid, "layernorm.bias": (23,)}, r"layernorm.bias in it has shape \(23,\), but the configuration gives \(24,\)"),
        ({**valid, "layernorm.bias": ()}, r"shape \(\)"),
        ({**valid, "layernorm.bias": (24, 1)}, r"shape \(24, 1\)"),
        ({**valid, "cls_classifier.bias": (6,)}, r"shape \(6,\)"),
    ]:
        with pytest.raises(CheckpointError, match=problem):
            check_shapes(shapes, config, "it")


def test_heads_with_other_classes_are_accepted_if_they_agree() -> None:
    config, stored = tiny_deit(num_labels=3), shapes_of(canonical_state(tiny_deit()))
    with pytest.raises(CheckpointError, match=r"cls_classifier.weight in it has shape \(5, 24\), but .* gives \(3"):
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
def test_heads_determine_the_class(heads: tuple[str, ...], stored: object, expected: str) -> None:
    assert find_architecture(shapes_with(tiny_deit(), *heads), tiny_deit(), stored, "it") == expected


def test_classifier_without_classes_keeps_its_class() -> None:
    config = tiny_vit(num_labels=0)
    assert find_architecture(shapes_with(config), config, ["ViTForImageClassification"], "it") == "ViTForImageClassification"
    assert find_architecture(shapes_with(config), config, ["DeiTForImageClassification"], "it") == "ViTModel"
    assert find_architecture(shapes_with(tiny_vit()), tiny_vit(), ["ViTForImageClassification"], "it") == "ViTModel"


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (tiny_vit(), WITH_TEACHER),
        (tiny_deit(), ("classifier", "cls_classifier")),
        (tiny_deit(), ("distillation_classifier",)),
        (tiny_deit(), ("classifier", "decoder.0")),
    ],
)
def test_other_combination_of_heads_is_refused(config: ViTConfig, heads: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match=f"has a .* trunk and the heads {', '.join(sorted(heads))}"):
        find_architecture(shapes_with(config, *heads), config, None, "it")
