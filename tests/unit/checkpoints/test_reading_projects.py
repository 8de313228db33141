"""Models of other projects compute the same here; models of other kinds are refused by what they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deit.checkpoints.reading import open_checkpoint
from deit.errors import CheckpointError
from deit.models.modeling import TransformerClassifier, load_model
from tests.helpers import noise, randomized
from tests.unit.checkpoints.samples import timm_model

TINY3 = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 5}
State = dict[str, Tensor]


def deit3(name: str = "deit3_small_patch16_224", **arguments: Any) -> nn.Module:
    return randomized(timm.create_model(name, **{**TINY3, **arguments}), std=0.2)


def as_authors(state: State) -> State:
    return {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor for name, tensor in state.items()}


MMPRETRAIN = (  # the order matters
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    ("norm1.", "ln1."),
    ("norm2.", "ln2."),
    ("mlp.fc1.", "ffn.layers.0.0."),
    ("mlp.fc2.", "ffn.layers.1."),
    ("ls1.gamma", "attn.gamma1.weight"),
    ("ls2.gamma", "ffn.gamma2.weight"),
)


def as_mmpretrain(state: State) -> State:
    renamed = {}
    for old, tensor in state.items():
        name = old
        for timm_name, other in MMPRETRAIN:
            name = name.replace(timm_name, other)
        if name.startswith("norm."):
            name = name.replace("norm.", "ln1.")
        renamed[f"head.layers.{name}" if name.startswith("head") else f"backbone.{name}"] = tensor
    return renamed


def assert_same_logits(model: TransformerClassifier, network: nn.Module) -> None:
    images = noise(2, 3, *model.config.image_hw)
    with torch.no_grad():
        expected = network.eval()(images)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.01


FOLDED = "LayerScale factors are folded into the weights"
NO_PREFIX = "Only the patches have position embeddings; those of the other tokens are zero"


@pytest.mark.parametrize("rename", [dict, as_authors, as_mmpretrain])
@pytest.mark.parametrize("arguments", [{}, {"img_size": 48}, {"num_classes": 21}, {"no_embed_class": False}])
def test_layer_scale_is_folded(tmp_path: Path, rename: Any, arguments: dict[str, Any]) -> None:
    network = deit3(**arguments)
    torch.save({"model": rename(network.state_dict())}, tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth")
    assert_same_logits(model, network)
    assert model.load_report.notes == ((FOLDED,) if "no_embed_class" in arguments else (FOLDED, NO_PREFIX))


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "deit3_medium_patch16_224", "vit_small_patch14_dinov2"])
def test_directories_of_timm_with_layer_scale(tmp_path: Path, name: str) -> None:
    network = deit3(name)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    arguments = {key: TINY3[key] for key in TINY3 if key != "num_classes"}
    cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    content = {"architecture": name, "num_classes": 5, "model_args": arguments, "pretrained_cfg": cfg}
    if "dinov2" in name:  # not a plain ViT by its name, so that it needs a file of weights
        assert_same_logits(load_model(tmp_path / "model.safetensors"), network)
        return
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_same_logits(load_model(tmp_path), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_products_of_16_bit_values_are_not_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in deit3().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    folded = checkpoint.read(["layers.1.mlp.fc2.weight"])["layers.1.mlp.fc2.weight"]
    weight, factors = state["blocks.1.mlp.fc2.weight"].double(), state["blocks.1.ls2.gamma"].double()
    assert checkpoint.dtype == folded.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(folded.double(), weight * factors[:, None], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("blocks.1.ls2.gamma"), r"lacks the LayerScale factors of layers\.1\.mlp\.fc2"),
        (lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(3)}), r"factors of shape \(3,\) of layers\.0"),
        (lambda state: state.update({"blocks.7.ls1.gamma": torch.ones(64)}), r"layers\.7.* without its layer"),
    ],
)
def test_incomplete_factors_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    state = dict(deit3().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(tmp_path / "a.pth")


def test_positions_of_patches_in_a_grid_that_is_not_square(tmp_path: Path) -> None:
    network = deit3(img_size=(32, 48))
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert_same_logits(load_model(tmp_path / "a.pth", image_size=(32, 48)), network)


def test_distilled_mmpretrain(tmp_path: Path) -> None:
    network = timm_model(num_heads=3)
    torch.save({"state_dict": as_mmpretrain(network.state_dict()), "meta": {"epoch": 3}}, tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", num_attention_heads=3)
    assert type(model).__name__ == "DeiTForImageClassificationWithTeacher"
    assert_same_logits(model, network)


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision(tmp_path: Path, old_names: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = randomized(torchvision.models.VisionTransformer(32, 8, 2, 1, 64, 128, num_classes=5), std=0.2)
    state = network.state_dict()
    if old_names:
        state = {
            name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor for name, tensor in state.items()
        }
    torch.save(state, tmp_path / "vit_b_16.pth")
    assert_same_logits(load_model(tmp_path / "vit_b_16.pth"), network)


def test_decoder_of_a_masked_autoencoder_is_left_out(tmp_path: Path) -> None:
    network = deit3("vit_small_patch16_224", num_classes=0)
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_pred.weight": torch.ones(8, 8),
    }
    torch.save({"model": {**network.state_dict(), **decoder}}, tmp_path / "mae.pth")
    checkpoint = open_checkpoint(tmp_path / "mae.pth")
    assert checkpoint.architecture == "ViTModel"
    assert checkpoint.notes == ("Not part of the model: decoder_pos_embed and 2 more",)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("vit_small_patch16_224", {"reg_tokens": 4}, r"has register tokens \(reg_token\)"),
        ("vit_small_patch16_224", {"qk_norm": True}, "normalizes queries and keys"),
        ("vit_small_patch16_224", {"pre_norm": True}, "has a layer norm before its first layer, as CLIP"),
        ("vit_small_patch16_224", {"global_pool": "avg"}, "classifies the mean of the patches"),
        ("beit_base_patch16_224", {}, "has relative positions or no bias of keys, as BEiT"),
        ("vit_base_patch16_siglip_224", {}, "pools with attention"),
    ],
)
def test_other_kinds_are_refused_by_what_they_have(tmp_path: Path, name: str, arguments: dict[str, Any], problem: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, **{**TINY3, **arguments})
    state = {key: torch.zeros(tensor.shape) for key, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"{problem}.*timm's own model of it can be a teacher"):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["blocks.0.attn.proj_l.weight"], "has class attention or talking heads, as CaiT"),
        (["pre_logits.fc.weight"], "has a representation layer before its head"),
        (["blocks.0.mlp.w12.weight"], "has gated MLPs"),
        (
            ["base_model.model.vit.layers.0.q_proj.lora_A.default.weight"],
            "PEFT model whose adapter is not merged.*merge_and_unload",
        ),
        (["_flat_param"], "one shard of an FSDP model"),
        (["blocks.0.attn.qkv.weight_scale"], "is quantized .*: save the weights in floating point"),
        (["blocks.0.attn.qkv._packed_params._packed_params"], "is quantized"),
    ],
)
def test_other_files_are_refused_by_what_they_have(tmp_path: Path, names: list[str], problem: str) -> None:
    torch.save({"cls_token": torch.ones(1, 1, 4), **dict.fromkeys(names, torch.ones(2, 2))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(tmp_path / "a.pth")
