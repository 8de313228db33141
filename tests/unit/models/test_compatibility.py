"""Words, configurations and hooks of programs for transformers, PEFT, Accelerate and timm."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor

import deit
from deit.config import DeiTConfig, ViTConfig
from deit.errors import ConfigError, UserError
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    DeiTPreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    ViTPreTrainedModel,
    load_model,
)
from tests.helpers import TINY, backward, noise, randomized, tiny_deit, tiny_vit

IMAGES = noise(1, 3, 32, 32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    randomized(ViTForImageClassification(tiny_vit())).save_pretrained(save_directory=tmp_path)
    return tmp_path


def as_arguments(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_auth_token": None, "trust_remote_code": True, "resume_download": True, "proxies": None},
        {"low_cpu_mem_usage": True, "_fast_init": False, "use_safetensors": True, "weights_only": True},
        {"offload_folder": "x", "offload_state_dict": True, "max_memory": {0: "1GB"}, "use_fast": True, "backend": "pil"},
        {"from_tf": False, "from_flax": False, "variant": None, "quantization_config": None, "tp_plan": None},
        {"finetuning_task": "image-classification", "output_attentions": False, "torchscript": False, "use_cache": False},
        {"device": "cpu", "device_map": None, "torch_dtype": "auto", "revision": "main", "local_files_only": True},
    ],
)
def test_words_of_old_code_are_accepted(saved: Path, arguments: dict[str, Any]) -> None:
    expected = load_model(saved)(IMAGES).logits
    for load in (load_model, ViTForImageClassification.from_pretrained):
        model: Any = load(pretrained_model_name_or_path=saved, **arguments)
        assert torch.equal(model(IMAGES).logits, expected)


@pytest.mark.parametrize("name", ["from_tf", "from_flax", "variant", "quantization_config", "tp_plan", "gguf_file"])
def test_words_that_would_change_the_result_are_refused(saved: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is not supported: "):
        load_model(saved, **as_arguments(name, "fp16"))


@pytest.mark.parametrize("name", ["low_cpu_mem_usag", "use_fas", "trust_remote_cod", "num_label"])
def test_misspelled_word_is_refused(saved: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no field '{name}'"):
        load_model(saved, **as_arguments(name, True))
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        load_model(saved)(IMAGES, **{name: True})


@pytest.mark.parametrize("load", [load_model, DeiTModel.from_pretrained, DeiTConfig.from_pretrained])
def test_what_cannot_be_loaded_is_an_os_error(tmp_path: Path, load: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for path in ("missing", "empty", "broken"):
        with pytest.raises(OSError, match=path):
            load(tmp_path / path)


THEIRS: Any = transformers.ViTConfig(**{**TINY, "num_labels": 5})


@pytest.mark.parametrize(
    "config", [THEIRS, THEIRS.to_dict(), "path", tiny_vit()], ids=["of transformers", "dictionary", "path", "ours"]
)
def test_configurations_of_transformers_are_taken(saved: Path, config: Any) -> None:
    config = saved / "config.json" if config == "path" else config
    assert ViTForImageClassification(config).config.to_dict()["hidden_size"] == TINY["hidden_size"]
    for model in (ViTForImageClassification.from_pretrained(saved, config=config), load_model(saved, config=config)):
        assert torch.equal(model(IMAGES).logits, load_model(saved)(IMAGES).logits)
        assert model.num_labels == 5


def test_other_configurations_are_refused() -> None:
    for config in (transformers.SwinConfig(), transformers.DeiTConfig(), tiny_deit()):
        with pytest.raises(UserError, match=r"model_type is 'swin'|takes a ViTConfig: not a DeiTConfig"):
            ViTModel(config)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="A list is not a model configuration"):
        ViTModel([])  # type: ignore[arg-type]


def uses_fused_attention(model: Any) -> bool:
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as fused, torch.no_grad():
        model(IMAGES)
    return fused.called


def test_attention_implementation_of_a_configuration_is_used(saved: Path) -> None:
    eager: dict[str, Any] = {"attn_implementation": "eager"}
    models: dict[Any, bool] = {
        ViTForImageClassification(tiny_vit()): True,
        ViTForImageClassification(tiny_vit(attn_implementation="sdpa")): True,
        ViTForImageClassification(tiny_vit(**eager)): False,
        ViTForImageClassification(transformers.ViTConfig(**TINY, **eager)): False,  # type: ignore[arg-type]
        load_model(saved): True,
        load_model(saved, **eager): False,
        load_model(saved, config=transformers.ViTConfig(**{**TINY, "num_labels": 5, **eager})): False,
        ViTForImageClassification._from_config(tiny_vit(), attn_implementation="eager"): False,
    }
    for model, fused in models.items():
        assert uses_fused_attention(model.eval()) == fused
        assert model.config._attn_implementation == ("sdpa" if fused else "eager")
        assert not any("attn_implementation" in key for key in model.config.to_dict())
    model.config._attn_implementation = "sdpa"
    assert uses_fused_attention(model)
    for name in ("flash_attention_2", "flex_attention", "paged"):
        with pytest.raises(ConfigError, match="attn_implementation"):
            ViTConfig(attn_implementation=name)
        with pytest.raises(UserError, match=f'attn_implementation="{name}".* is not supported: use sdpa or eager'):
            model.set_attn_implementation(name)


def test_hooks_on_modules_see_and_replace_tensors() -> None:
    model = randomized(DeiTForImageClassification(tiny_deit()))
    seen: dict[str, Any] = {}
    for name in ("deit.embeddings", "deit.layers.0", "deit.layers.1.mlp", "deit.layernorm"):
        model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    for options in ({}, {"output_attentions": True}, {"output_hidden_states": True}):
        output = model(IMAGES, **options)
        assert {name: tensor.shape for name, tensor in seen.items()} == dict.fromkeys(seen, (1, 18, 24))
    assert len(seen) == 4
    assert torch.equal(output.hidden_states[1], seen["deit.layers.0"])
    model.deit.layers[1].register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    assert torch.allclose(model(IMAGES).logits, model.classifier(model.deit.layernorm.bias))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_weights_have_gradients(checkpointing: bool) -> None:
    model: Any = randomized(DeiTForImageClassification(tiny_deit(gradient_checkpointing=checkpointing))).train()
    assert model.is_activation_checkpointing == checkpointing
    attentions = model(IMAGES, output_attentions=True).attentions
    backward(sum(weights.square().sum() for weights in attentions))
    assert model.deit.layers[1].attention.qkv.weight.grad is not None


def test_all_arguments_by_position_are_those_by_name() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    names = list(inspect.signature(model.forward).parameters)
    values = {"labels": torch.tensor([1]), "output_hidden_states": True, "return_dict": True}
    by_position = model(IMAGES, *[values.get(name) for name in names[1:]])
    by_name = model(IMAGES, **values)
    assert torch.equal(by_position.loss, by_name.loss)
    assert len(by_position.hidden_states) == 3
    with pytest.raises(UserError, match="interpolate_pos_encoding is a tensor"):
        model(IMAGES.repeat(2, 1, 1, 1), torch.tensor([0, 1]))


def test_input_gradients_reach_adapters_through_reentrant_checkpoints() -> None:
    model: Any = DeiTForImageClassification(tiny_deit()).train().requires_grad_(False)
    model.deit.layers[0].attention.qkv.weight.requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for _ in range(2):  # enabling twice adds one hook
        model.enable_input_require_grads()
    backward(model(IMAGES).logits.sum())
    assert model.deit.layers[0].attention.qkv.weight.grad is not None
    model.disable_input_require_grads()
    assert len(model.get_input_embeddings()._forward_hooks) == 0


def test_names_that_models_lend() -> None:
    model: Any = DeiTForImageClassificationWithTeacher(tiny_deit())
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert not {id(model.deit.embeddings.cls_token), id(model.deit.embeddings.position_embeddings)} & decayed
    assert id(model.deit.layers[0].mlp.fc1.weight) in decayed
    assert isinstance(model.get_input_embeddings(), type(model.deit.embeddings.patch_embeddings))
    assert (model.get_output_embeddings(), model.can_generate(), model.all_tied_weights_keys) == (None, False, {})
    assert torch.equal(model.get_parameter_or_buffer("deit.layernorm.weight"), torch.ones(24))
    assert model.eval()(**model.dummy_inputs).logits.shape == (1, 5)
    model.set_input_embeddings(model.get_input_embeddings())
    model.tie_weights()


@pytest.mark.parametrize("name", ["DeiTPreTrainedModel", "ViTPreTrainedModel", "ViTForMaskedImageModeling"])
def test_base_classes_and_aliases(name: str) -> None:
    assert getattr(deit, name).__name__ == name
    assert isinstance(DeiTModel(tiny_deit()), DeiTPreTrainedModel)
    assert isinstance(ViTForImageClassification(tiny_vit()), ViTPreTrainedModel)
    assert not isinstance(ViTModel(tiny_vit()), DeiTPreTrainedModel)


def test_masked_modeling_without_a_distillation_token_is_that_of_transformers(tmp_path: Path) -> None:
    model = randomized(ViTForMaskedImageModeling(tiny_vit(encoder_stride=8)))
    model.save_pretrained(tmp_path)
    theirs: Any = transformers.ViTForMaskedImageModeling.from_pretrained(tmp_path)
    theirs.eval()
    mask = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    ours = ViTForMaskedImageModeling.from_pretrained(tmp_path)
    for reader in (ours, theirs):
        output = reader(IMAGES, bool_masked_pos=mask)
        torch.testing.assert_close(output.reconstruction, model(IMAGES, bool_masked_pos=mask).reconstruction)
        torch.testing.assert_close(output.loss, model(IMAGES, bool_masked_pos=mask).loss)


def test_name_that_a_model_was_loaded_by(saved: Path) -> None:
    model = load_model(saved)
    assert model.name_or_path == model.config.name_or_path == model.config._name_or_path == str(saved)
    assert "name_or_path" not in json.dumps(model.config.to_dict())
    assert model.config == ViTConfig.from_pretrained(saved)
    assert ViTForImageClassification(tiny_vit()).name_or_path == ""


def test_configuration_has_the_methods_of_transformers(tmp_path: Path) -> None:
    config = tiny_deit()
    config.update({"image_size": 48, "patch_size": 12, "note": "kept"})
    assert (config.grid, config.note) == ((4, 4), "kept")
    with pytest.raises(ConfigError, match="is not divisible"):
        config.update({"image_size": 50})
    assert config.image_size == 48
    config.to_json_file(tmp_path / "a.json", use_diff=True)
    assert DeiTConfig.from_json_file(tmp_path / "a.json") == config
    assert set(json.loads((tmp_path / "a.json").read_text())) < set(config.to_dict())
    assert (config.is_encoder_decoder, config.pad_token_id, config.use_return_dict) == (False, None, True)
    assert config.get_text_config() is config
    assert "hidden_size" in list(config)
    with pytest.raises(AttributeError, match="hidden_sise"):
        _ = config.hidden_sise


def test_weights_saved_with_torch_replace_safetensors(tmp_path: Path) -> None:
    first, second = (randomized(ViTForImageClassification(tiny_vit()), seed) for seed in (0, 1))
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "pytorch_model.bin"]
    state: dict[str, Tensor] = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    assert torch.equal(load_model(tmp_path)(IMAGES).logits, second(IMAGES).logits)
    first.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(IMAGES).logits, first(IMAGES).logits)
