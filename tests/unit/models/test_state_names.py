"""Tensor names of other projects in ``load_state_dict``, and in the libraries that call it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
from safetensors.torch import load_file, load_model, save_file
from timm.models import load_checkpoint
from torch import Tensor, nn

from deit.checkpoints.key_maps import to_layout
from deit.errors import CheckpointError
from deit.models.modeling import DeiTForImageClassificationWithTeacher, ViTForImageClassification, ViTModel
from tests.helpers import noise, randomized, tiny_deit, tiny_vit

IMAGES = noise(1, 3, 32, 32)
FACTORS = torch.tensor([0.5, 2.0])


def saved(layout: str) -> tuple[Any, dict[str, Tensor]]:
    """Returns a model with random weights, and its tensors under the names of a project."""
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    return model, to_layout(model.canonical_state(), layout, "" if layout.startswith("timm") else "deit.")


def new() -> Any:
    return DeiTForImageClassificationWithTeacher(tiny_deit())


def nested(state: dict[str, Tensor]) -> Any:
    model = nn.Sequential(nn.Identity(), new())
    model.load_state_dict({f"1.{name}": tensor for name, tensor in state.items()})
    return model[1]


def parallel(state: dict[str, Tensor]) -> Any:
    model = nn.DataParallel(new())
    model.load_state_dict({f"module.{name}": tensor for name, tensor in state.items()})
    return model.module


def on_meta(state: dict[str, Tensor]) -> Any:
    with init_empty_weights():
        model = new()
    model.load_state_dict(state)
    return model


def in_shards(state: dict[str, Tensor]) -> Any:
    model = new()
    for name, tensor in state.items():
        model.load_state_dict({name: tensor}, strict=False)
    return model


def loaded(model: Any, state: dict[str, Tensor], **options: Any) -> Any:
    model.load_state_dict(state, **options)
    return model


LOADERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "strict": lambda state: loaded(new(), state),
    "not strict": lambda state: loaded(new(), state, strict=False),
    "assign": lambda state: loaded(new(), state, assign=True),
    "of a wrapped model": lambda state: loaded(new(), {f"module.{name}": tensor for name, tensor in state.items()}),
    "in another module": nested,
    "in DataParallel": parallel,
    "on the meta device": on_meta,
    "one tensor at a time": in_shards,
    "from_pretrained": lambda state: type(new()).from_pretrained(None, config=new().config, state_dict=state),
}


@pytest.mark.parametrize("layout", ["transformers-4", "transformers-5", "timm-distilled", "deit"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_state_dict_may_have_the_names_of_any_project(layout: str, load: Callable[[dict[str, Tensor]], Any]) -> None:
    model, state = saved(layout)
    names = list(state)
    assert torch.equal(load(state).eval()(IMAGES).logits, model(IMAGES).logits)
    assert list(state) == names  # the caller's dictionary is unchanged


@pytest.mark.parametrize("layout", ["transformers-4", "transformers-5", "timm-distilled"])
def test_libraries_that_load_into_a_model(tmp_path: Path, layout: str) -> None:
    model, state = saved(layout)
    file = tmp_path / "model.safetensors"
    save_file(state, file, {"format": "pt"})
    for load in (load_model, load_checkpoint, load_checkpoint_in_model):
        other = new()
        load(other, str(file))
        assert torch.equal(other.eval()(IMAGES).logits, model(IMAGES).logits)


def test_missing_and_unknown_tensors_are_reported() -> None:
    _, state = saved("transformers-4")
    removed = "deit.encoder.layer.1.attention.attention.key.weight"
    del state[removed]
    state["other"] = torch.zeros(1)
    model = new()
    before = model.deit.layers[1].attention.qkv.weight.detach().clone().chunk(3)
    report = model.load_state_dict(state, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["deit.layers.1.attention.qkv.weight"], ["other"])
    after = model.deit.layers[1].attention.qkv.weight.chunk(3)
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [False, True, False]
    with pytest.raises(RuntimeError, match="Missing key"):
        new().load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"only a part of deit\.layers.1.attention.qkv.weight"):
        model.save_pretrained("unused", state_dict=state)


def test_weights_of_the_base_model_are_loaded_with_and_without_its_prefix() -> None:
    model = randomized(ViTForImageClassification(tiny_vit()))
    trunk: Any = ViTModel(tiny_vit(), add_pooling_layer=False)
    state = model.state_dict()
    for names in (state, to_layout(model.canonical_state(), "transformers-4", "vit.")):
        assert trunk.load_state_dict(names, strict=False).missing_keys == []
        assert torch.equal(trunk.layers[0].attention.qkv.weight, state["vit.layers.0.attention.qkv.weight"])


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("names", [("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2"), ()])
def test_factors_of_layer_scale_are_folded_in_or_one(layer_scale: float | None, names: tuple[str, ...]) -> None:
    plain = randomized(ViTForImageClassification(tiny_vit()))
    state = to_layout(plain.canonical_state(), "timm")
    expected: Any = copy.deepcopy(plain)
    for layer, factor in zip(expected.vit.layers, FACTORS, strict=True):
        for name, linear in zip(names, (layer.attention.o_proj, layer.mlp.fc2), strict=False):
            state[f"blocks.{0 if factor == 0.5 else 1}.{name}"] = torch.full((24,), float(factor))
            linear.weight.data.mul_(factor)
            linear.bias.data.mul_(factor)
    model = ViTForImageClassification(tiny_vit(layer_scale=layer_scale)).eval()
    model.load_state_dict(state)
    torch.testing.assert_close(model(IMAGES).logits, expected(IMAGES).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["transformers-4", "transformers-5", "deit"])
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_accelerate_loads_the_weights_or_fails(tmp_path: Path, layout: str, device_map: Any) -> None:
    model, state = saved(layout)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with init_empty_weights():
        empty = new()
    assert empty.device.type == "meta"
    try:
        filled = load_checkpoint_and_dispatch(empty, str(tmp_path), device_map=device_map)
    except CheckpointError as error:
        assert layout != "deit"
        assert "never loaded: load it by from_pretrained with device_map" in str(error)
    else:
        assert layout == "deit"
        torch.testing.assert_close(filled.eval()(IMAGES).logits, model(IMAGES).logits)  # memory-mapped: another rounding


def test_shards_of_transformers_are_loaded(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit()))
    model.save_pretrained(tmp_path)
    transformers.ViTForImageClassification.from_pretrained(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    other = ViTForImageClassification(tiny_vit())
    load_checkpoint_in_model(other, str(tmp_path / "shards"))
    assert torch.equal(other.eval()(IMAGES).logits, model(IMAGES).logits)
    assert len(load_file(tmp_path / "shards" / "model-00001-of-00010.safetensors")) < 40
