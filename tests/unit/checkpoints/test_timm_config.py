"""Configurations of timm: every argument that affects the function is translated or refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import timm
import torch

from deit.checkpoints.timm_config import FROM_TIMM, TO_TIMM, is_transformer, read_timm_config
from deit.config import ViTConfig
from deit.errors import CheckpointError
from deit.models.modeling import ACTIVATIONS

NAME = "deit_small_patch16_224"


def read(**content: Any) -> dict[str, Any]:
    return read_timm_config({"architecture": NAME, "pretrained_cfg": {}, **content}, "c.json").fields


def test_supported_architectures_are_plain_and_have_the_expected_heads() -> None:
    for name in timm.list_models("deit_*") + timm.list_models("vit_*"):
        if not is_transformer(name):
            continue
        with torch.device("meta"):
            model: Any = timm.create_model(name, depth=1)
        assert read(architecture=name)["num_attention_heads"] == model.blocks[0].attn.num_heads, name
        assert type(model).__name__ in ("VisionTransformer", "VisionTransformerDistilled"), name
        assert (type(model.blocks[0].mlp.act).__name__, model.norm.eps, model.global_pool) == ("GELU", 1e-6, "token"), name
        assert type(model.norm_pre).__name__ == "Identity", name


def test_published_names_are_supported() -> None:
    names = [f"{name}.fb_in1k" for name in timm.list_models("deit_*")] + [
        "vit_base_patch16_224.augreg_in21k",
        "vit_tiny_patch16_384",
    ]
    assert all(map(is_transformer, names))


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "deit3_small_patch16_gap_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_224_miil",
        "vit_small_r26_s32_224",
        "vit_base_patch16_rpn_224",
        "vit_medium_patch16_gap_240",
        "",
        "deit_tiny_patch16_224\n",
        "x" * 10_000,
    ],
)
def test_unsupported_architecture_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"c\.json names the timm architecture .*only plain DeiT and ViT") as caught:
        read(architecture=name)
    assert len(str(caught.value)) < 300


def test_activations_round_trip() -> None:
    assert set(TO_TIMM) == set(get_args(ViTConfig.model_fields["hidden_act"].annotation))
    values = torch.linspace(-3, 3, 50)
    for name, timm_name in TO_TIMM.items():
        assert torch.equal(ACTIVATIONS[FROM_TIMM[timm_name]](values), ACTIVATIONS[name](values)), name
    assert (FROM_TIMM["gelu_tanh"], FROM_TIMM["silu"], TO_TIMM["swish"]) == ("gelu_pytorch_tanh", "silu", "silu")


def test_arguments_become_fields() -> None:
    arguments = {
        "img_size": [64, 64],
        "patch_size": [8, 4],
        "in_chans": 1,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 3.0,
        "qkv_bias": False,
        "act_layer": "silu",
        "num_classes": 4,
        "drop_path_rate": 0.3,
        "global_pool": "token",
        "init_values": None,
        "norm_layer": "layernorm",
        "reg_tokens": 0,
        "class_token": True,
    }
    assert read(model_args=arguments, num_classes=4, label_names=["a", "b", "c", "d"]) == {
        "image_size": 64,
        "patch_size": [8, 4],
        "num_channels": 1,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "qkv_bias": False,
        "hidden_act": "silu",
        "num_labels": 4,
        "layer_norm_eps": 1e-6,
        "id2label": {0: "a", 1: "b", 2: "c", 3: "d"},
    }


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("global_pool", "avg"),
        ("global_pool", "map"),
        ("class_token", False),
        ("pos_embed", "none"),
        ("reg_tokens", 4),
        ("reg_tokens", False),
        ("qk_norm", True),
        ("qk_norm", 0),
        ("pre_norm", True),
        ("final_norm", False),
        ("fc_norm", True),
        ("proj_bias", False),
        ("norm_layer", "rmsnorm"),
        ("dynamic_img_pad", True),
        ("act_layer", "quick_gelu"),
        ("act_layer", ["gelu"]),
        ("pretrained", True),
        ("something_new", 1),
    ],
)
def test_unsupported_argument_is_refused(argument: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"c\.json has the (model argument|activation)"):
        read(model_args={argument: value})


def test_unsupported_pooling_at_the_top_level_is_refused() -> None:
    with pytest.raises(CheckpointError, match="global_pool = avg"):
        read(global_pool="avg")


def test_fixed_input_size_is_the_image_size() -> None:
    def size(**settings: Any) -> Any:
        return read(pretrained_cfg={"input_size": [3, 32, 48], **settings}).get("image_size")

    assert size(fixed_input_size=True) == [32, 48]
    assert size(fixed_input_size=True, input_size=[3, 32, 32]) == 32
    assert size() is None
    assert size(fixed_input_size=True, input_size=None) is None
    with pytest.raises(CheckpointError, match=r"input_size in c\.json is"):
        size(fixed_input_size=True, input_size=[3, 32])


def test_older_files_with_a_single_level() -> None:
    content = {"architecture": NAME, "num_classes": 2, "mean": [0.5, 0.5, 0.5], "crop_pct": 0.9, "input_size": [3, 224, 224]}
    config = read_timm_config(content, "c.json")
    assert config.preprocessing == {"mean": [0.5, 0.5, 0.5], "crop_pct": 0.9, "input_size": [3, 224, 224]}
    assert config.fields == {"num_attention_heads": 6, "layer_norm_eps": 1e-6, "num_labels": 2}


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": "gray"},
        {"mean": [0.5, None]},
        {"std": [[0.5]]},
        {"crop_pct": True},
        {"interpolation": 3},
        {"crop_mode": []},
        {"mean": [0.5] * 2000},
    ],
)
def test_invalid_preprocessing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"{next(iter(settings))} in c\.json is"):
        read(pretrained_cfg=settings)


@pytest.mark.parametrize("content", [{"model_args": [1]}, {"pretrained_cfg": "x"}, {"pretrained_cfg": None}])
def test_sections_must_be_objects(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"in c\.json is not an object"):
        read(**content)
