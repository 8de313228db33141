"""Parity with timm, which adopted the original DeiT code: the same weights give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from deit.checkpoints.key_maps import to_layout
from deit.config import variant_config
from deit.models.modeling import DeiTForImageClassificationWithTeacher, load_model, new_classifier
from tests.helpers import noise, randomized

MODELS = [("deit-tiny-distilled-patch16-224", "timm-distilled"), ("deit-tiny-patch16-224", "timm")]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, _ in MODELS])
def test_weights_of_timm_have_the_same_logits(name: str, tmp_path: Path) -> None:
    reference = randomized(timm.create_model(name.replace("-", "_")), std=0.05)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    x = noise(2, 3, 224, 224)
    expected = reference(x)  # with two heads, the mean of their logits
    assert expected.std() > 0.01
    assert torch.allclose(model(x).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_timm_loads_all_our_tensors(name: str, layout: str) -> None:
    model = randomized(new_classifier(variant_config(name, num_labels=7, num_hidden_layers=2)), std=0.05)
    reference: Any = timm.create_model(name.replace("-", "_"), num_classes=7, depth=2).eval()
    reference.load_state_dict(to_layout(model.canonical_state(), layout), strict=True)
    x = noise(1, 3, 224, 224)
    assert torch.allclose(model(x).logits, reference(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_heads_are_not_swapped(tmp_path: Path) -> None:
    reference: Any = randomized(timm.create_model("deit_tiny_distilled_patch16_224", depth=2), std=0.05)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    assert isinstance(model, DeiTForImageClassificationWithTeacher)
    reference.set_distilled_training(True)
    x = noise(1, 3, 224, 224)
    head, head_dist = reference.train()(x)
    output = model(x)
    assert torch.allclose(output.cls_logits, head, atol=1e-5, rtol=0)
    assert torch.allclose(output.distillation_logits, head_dist, atol=1e-5, rtol=0)


@torch.no_grad()
def test_layer_scale_agrees() -> None:
    reference: Any = randomized(
        timm.create_model("deit3_small_patch16_224", num_classes=7, depth=2, no_embed_class=False), std=0.05
    )
    assert reference.blocks[0].ls1.gamma.shape == (384,)
    model = new_classifier(variant_config("deit-small-patch16-224", num_labels=7, num_hidden_layers=2, layer_scale=1e-4)).eval()
    state = reference.state_dict()
    gammas = {name: state.pop(name) for name in list(state) if name.endswith(".gamma")}
    for name, tensor in model.canonical_state().items():
        if "layer_scale" in name:
            layer = name.split(".")[1]
            tensor.copy_(torch.stack([gammas[f"blocks.{layer}.ls{n}.gamma"] for n in (1, 2)]))
        else:
            (timm_name,) = to_layout({name: tensor}, "timm")
            tensor.copy_(state.pop(timm_name).reshape(tensor.shape))
    assert not state
    x = noise(2, 3, 224, 224)
    expected = reference(x)
    assert torch.allclose(model(x).logits, expected, atol=1e-5, rtol=0)
    assert torch.allclose(model.without_layer_scale()(x).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit3_small_patch16_224", {}),
        ("deit3_small_patch16_384", {"depth": 1}),
        (
            "deit3_medium_patch16_224",
            {"depth": 1, "embed_dim": 64, "num_heads": 1, "num_classes": 21841},
        ),  # classes of ImageNet-21k
        ("deit3_huge_patch14_224", {"depth": 1, "embed_dim": 128, "num_heads": 2}),
        ("vit_small_patch14_dinov2", {"depth": 1, "img_size": 224, "num_classes": 3}),
        ("vit_small_patch16_224", {"depth": 1}),
    ],
)
def test_related_models_of_timm_have_the_same_logits(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    reference = randomized(timm.create_model(name, **arguments), std=0.05)
    torch.save({"model": reference.state_dict()}, tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth")
    x = noise(1, 3, *model.config.image_hw)
    expected = reference(x)
    assert expected.std() > 1e-4
    assert torch.allclose(model(x).logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)
