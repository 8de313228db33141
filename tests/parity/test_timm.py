"""Against timm, which took over the authors' code: the same weights give the same logits."""

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
def test_timms_weights_give_timms_logits(name: str, tmp_path: Path) -> None:
    theirs = randomized(timm.create_model(name.replace("-", "_")), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = load_model(tmp_path / "weights.pth")
    x = noise(2, 3, 224, 224)
    expected = theirs(x)  # for two heads their mean, as we answer
    assert expected.std() > 0.01
    assert torch.allclose(ours(x).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_our_weights_fit_timm_to_the_last_tensor(name: str, layout: str) -> None:
    ours = randomized(new_classifier(variant_config(name, num_labels=7, num_hidden_layers=2)), std=0.05)
    theirs: Any = timm.create_model(name.replace("-", "_"), num_classes=7, depth=2).eval()
    theirs.load_state_dict(to_layout(ours.canonical_state(), layout), strict=True)
    x = noise(1, 3, 224, 224)
    assert torch.allclose(ours(x).logits, theirs(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_heads_are_not_swapped(tmp_path: Path) -> None:
    theirs: Any = randomized(timm.create_model("deit_tiny_distilled_patch16_224", depth=2), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = load_model(tmp_path / "weights.pth")
    assert isinstance(ours, DeiTForImageClassificationWithTeacher)
    theirs.set_distilled_training(True)
    x = noise(1, 3, 224, 224)
    head, head_dist = theirs.train()(x)
    output = ours(x)
    assert torch.allclose(output.cls_logits, head, atol=1e-5, rtol=0)
    assert torch.allclose(output.distillation_logits, head_dist, atol=1e-5, rtol=0)


@torch.no_grad()
def test_layer_scale_is_timm_s() -> None:
    theirs: Any = randomized(
        timm.create_model("deit3_small_patch16_224", num_classes=7, depth=2, no_embed_class=False), std=0.05
    )
    assert theirs.blocks[0].ls1.gamma.shape == (384,)
    ours = new_classifier(variant_config("deit-small-patch16-224", num_labels=7, num_hidden_layers=2, layer_scale=1e-4)).eval()
    state = theirs.state_dict()
    factors = {name: state.pop(name) for name in list(state) if name.endswith(".gamma")}
    wanted = ours.canonical_state()
    names = {name: next(iter(to_layout({name: value}, "timm"))) for name, value in wanted.items() if "layer_scale" not in name}
    for name, value in wanted.items():
        if "layer_scale" in name:
            layer = name.split(".")[1]
            value.copy_(torch.stack([factors[f"blocks.{layer}.ls{n}.gamma"] for n in (1, 2)]))
        else:
            value.copy_(state.pop(names[name]).reshape(value.shape))
    assert not state
    x = noise(2, 3, 224, 224)
    expected = theirs(x)
    assert torch.allclose(ours(x).logits, expected, atol=1e-5, rtol=0)
    assert torch.allclose(ours.without_layer_scale()(x).logits, expected, atol=1e-5, rtol=0)
