"""Parity with transformers: the same weights give the same outputs, whichever library saved them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import deit
from deit.config import DeiTConfig, ViTConfig, variant_config
from tests.helpers import TINY, backward, noise, randomized, tiny_deit, tiny_vit

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow and deep": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 5, "intermediate_size": 3},
    "no qkv bias": {"qkv_bias": False},
    "tanh gelu": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "silu": {"hidden_act": "silu"},
    "relu": {"hidden_act": "relu", "layer_norm_eps": 0.1},
    "not square": {"image_size": (32, 48), "patch_size": (16, 8)},
    "one channel": {"num_channels": 1, "num_labels": 2},
}
# Fields that transformers does not have, or fills in where ours is None.
OWN_FIELDS = {"pooler_output_size", "pruned_heads", "distillation_type", "layer_scale"} | {
    "attn_implementation",
    "gradient_checkpointing",
}
MODELS = ["ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"]
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_model = pytest.mark.parametrize("name", MODELS)


def new_model(name: str, **shape: Any) -> Any:
    config = tiny_vit(**shape) if name.startswith("ViT") else tiny_deit(**shape)
    return randomized(getattr(deit, name)(config))


def new_reference(name: str, **shape: Any) -> Any:
    """Returns a model of transformers."""
    config_class = transformers.ViTConfig if name.startswith("ViT") else transformers.DeiTConfig
    return randomized(getattr(transformers, name)(config_class(**{**TINY, "num_labels": 5, **shape})))


def images(config: ViTConfig, count: int = 2) -> torch.Tensor:
    return noise(count, config.num_channels, *config.image_hw)


def logits(output: Any) -> dict[str, torch.Tensor]:
    return {name: getattr(output, name) for name in ("logits", "cls_logits", "distillation_logits") if hasattr(output, name)}


def assert_same_logits(output: Any, reference_output: Any) -> None:
    actual, expected = logits(output), logits(reference_output)
    assert actual.keys() == expected.keys()
    for name, values in actual.items():
        assert values.std() > 0.01
        assert torch.allclose(values, expected[name], atol=1e-5, rtol=0), name


def load_completely(model_class: Any, directory: Path, **options: Any) -> nn.Module:
    """Loads a model of transformers and checks that no tensor is missing or left over."""
    model, report = model_class.from_pretrained(directory, output_loading_info=True, **options)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
@every_model
@every_shape
def test_model_saved_by_transformers_has_the_same_logits(tmp_path: Path, name: str, shape: dict[str, Any]) -> None:
    reference = new_reference(name, **shape)
    reference.save_pretrained(tmp_path)
    model = deit.load_model(tmp_path)
    assert type(model) is getattr(deit, name)
    x = images(model.config)
    assert_same_logits(model(x), reference(x))


@torch.no_grad()
@every_model
def test_tensor_names_of_transformers_5_are_read(tmp_path: Path, name: str) -> None:
    reference = new_reference(name)
    reference.save_pretrained(tmp_path, save_original_format=False)
    assert any(".q_proj." in tensor for tensor in load_file(tmp_path / "model.safetensors"))
    model = deit.load_model(tmp_path)
    x = images(model.config)
    assert_same_logits(model(x), reference(x))


@torch.no_grad()
@every_model
def test_auto_class_of_transformers_loads_our_directory(tmp_path: Path, name: str) -> None:
    model = new_model(name)
    model.save_pretrained(tmp_path)
    reference = load_completely(transformers.AutoModelForImageClassification, tmp_path)
    assert type(reference).__name__ == name
    x = images(model.config)
    assert torch.allclose(model(x).logits, reference(x).logits, atol=1e-5)


@torch.no_grad()
@every_model
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_agree_with_either_attention_of_transformers(tmp_path: Path, name: str, attention: str) -> None:
    model = new_model(name)
    model.save_pretrained(tmp_path)
    reference = load_completely(getattr(transformers, name), tmp_path, attn_implementation=attention)
    x = images(model.config)
    assert_same_logits(model(x), reference(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTModel", "DeiTModel"])
@pytest.mark.parametrize("pooler", [None, 7])
def test_base_models_agree_on_every_token(tmp_path: Path, name: str, pooler: int | None) -> None:
    saved = new_model(name, pooler_output_size=pooler)
    saved.save_pretrained(tmp_path / "ours")
    saved_reference = new_reference(name, pooler_output_size=pooler)
    saved_reference.save_pretrained(tmp_path / "theirs")
    x = images(saved.config)
    for model, reference in (
        (saved, load_completely(getattr(transformers, name), tmp_path / "ours")),
        (getattr(deit, name).from_pretrained(tmp_path / "theirs"), saved_reference),
    ):
        output, expected = model(x), reference(x)
        assert torch.allclose(output.last_hidden_state, expected.last_hidden_state, atol=1e-5)
        assert torch.allclose(output.pooler_output, expected.pooler_output, atol=1e-5)


@torch.no_grad()
@every_model
def test_interpolated_position_embeddings_agree(tmp_path: Path, name: str) -> None:
    model = new_model(name)
    model.save_pretrained(tmp_path)
    reference = getattr(transformers, name).from_pretrained(tmp_path)
    for size in ((48, 48), (40, 64), (24, 24)):
        x = noise(1, 3, *size)
        assert_same_logits(model(x, interpolate_pos_encoding=True), reference(x, interpolate_pos_encoding=True))


@torch.no_grad()
def test_gradients_agree(tmp_path: Path) -> None:
    model = new_model("DeiTForImageClassification")
    model.save_pretrained(tmp_path)
    reference: Any = transformers.DeiTForImageClassification.from_pretrained(tmp_path)
    x = images(model.config)
    with torch.enable_grad():
        for network in (model, reference):
            network(x).logits.square().sum().backward()
    parameters, expected = dict(model.named_parameters()), dict(reference.named_parameters())
    for name in (
        "deit.embeddings.position_embeddings",
        "deit.embeddings.distillation_token",
        "deit.embeddings.patch_embeddings.projection.weight",
    ):
        assert torch.allclose(parameters[name].grad, expected[name].grad, atol=1e-4, rtol=1e-4), name


@torch.no_grad()
def test_full_size_model_agrees_in_both_directions(tmp_path: Path) -> None:
    config = variant_config("deit-tiny-distilled-patch16-224", layer_norm_eps=1e-12)
    assert isinstance(config, DeiTConfig)
    model = randomized(deit.DeiTForImageClassificationWithTeacher(config), std=0.03)
    model.save_pretrained(tmp_path / "ours")
    reference: Any = load_completely(transformers.DeiTForImageClassificationWithTeacher, tmp_path / "ours")
    x = images(config, count=1)
    assert_same_logits(model(x), reference(x))
    reference.save_pretrained(tmp_path / "theirs")
    assert_same_logits(deit.load_model(tmp_path / "theirs")(x), reference(x))


@torch.no_grad()
@every_model
@every_shape
def test_hidden_states_and_attentions_of_every_layer_agree(tmp_path: Path, name: str, shape: dict[str, Any]) -> None:
    model = new_model(name, **shape)
    model.save_pretrained(tmp_path)
    reference = load_completely(getattr(transformers, name), tmp_path, attn_implementation="eager")
    x = images(model.config)
    options = {"output_attentions": True, "output_hidden_states": True}
    output, reference_output = model(x, **options), reference(x, **options)
    assert_same_logits(output, reference_output)
    layers = model.config.num_hidden_layers
    for field, count in (("hidden_states", layers + 1), ("attentions", layers)):
        tensors, expected_tensors = getattr(output, field), getattr(reference_output, field)
        assert len(tensors) == len(expected_tensors) == count
        for index, (tensor, expected) in enumerate(zip(tensors, expected_tensors, strict=True)):
            assert tensor.shape == expected.shape
            assert torch.allclose(tensor, expected, atol=1e-5, rtol=1e-5), f"{field} {index}"


@pytest.mark.parametrize("shape", [{}, {"num_channels": 1}], ids=["color", "gray"])
def test_masked_image_modeling_agrees(tmp_path: Path, shape: dict[str, Any]) -> None:
    saved_reference = new_reference("DeiTForMaskedImageModeling", encoder_stride=8, **shape)
    saved_reference.save_pretrained(tmp_path / "theirs")
    model = deit.DeiTForMaskedImageModeling.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    loaded_reference = load_completely(transformers.DeiTForMaskedImageModeling, tmp_path / "ours")
    x = images(model.config)
    mask = torch.arange(32).reshape(2, 16) % 3 == 0
    for reference in (saved_reference, loaded_reference):
        output, expected = model(x, bool_masked_pos=mask), reference(x, bool_masked_pos=mask)
        assert torch.allclose(output.reconstruction, expected.reconstruction, atol=1e-5)
        assert torch.allclose(output.loss, expected.loss, atol=1e-6)
        assert torch.allclose(model(x).reconstruction, reference(x).reconstruction, atol=1e-5)


LABELS = {  # number of classes, problem type, labels
    "single": (5, None, torch.tensor([0, 4])),
    "single, int32": (5, None, torch.tensor([0, 4], dtype=torch.int32)),
    "multi": (5, None, torch.tensor([[0.0, 1, 0, 1, 0], [1.0, 0, 0, 0, 0]])),
    "multi, explicit": (5, "multi_label_classification", torch.tensor([[0.0, 1, 0, 1, 0], [1.0, 0, 0, 0, 0]])),
    "regression": (5, "regression", torch.randn(2, 5, generator=torch.Generator().manual_seed(0))),
    "regression, one value": (1, None, torch.tensor([0.5, -1.0])),
}


@pytest.mark.parametrize("name", MODELS[:2])
@pytest.mark.parametrize("case", LABELS.values(), ids=LABELS)
def test_labels_give_the_same_loss_and_gradients(tmp_path: Path, name: str, case: Any) -> None:
    num_labels, problem_type, labels = case
    model = new_model(name, num_labels=num_labels, problem_type=problem_type)
    model.save_pretrained(tmp_path)
    reference: Any = load_completely(getattr(transformers, name), tmp_path)
    assert reference.config.problem_type == problem_type
    x = images(model.config)
    reference_labels = labels.long() if labels.dtype == torch.int32 else labels  # torch's cross-entropy needs int64
    output, expected = model(x, labels=labels), reference(x, labels=reference_labels)
    assert list(output) == list(expected) == ["loss", "logits"]
    assert torch.allclose(output[0], expected[0], atol=1e-5)
    backward(output.loss)
    backward(expected.loss)
    assert torch.allclose(model.classifier.weight.grad, reference.classifier.weight.grad, atol=1e-5)
    assert model.config.problem_type == problem_type


def test_output_fields_have_the_same_order(tmp_path: Path) -> None:
    model = new_model(MODELS[2])
    model.save_pretrained(tmp_path)
    reference = load_completely(getattr(transformers, MODELS[2]), tmp_path)
    x = images(model.config)
    assert list(model(x, output_hidden_states=True)) == list(reference(x, output_hidden_states=True))
    values, expected_values = (network(x, return_dict=False) for network in (model, reference))
    assert len(values) == len(expected_values) == 3
    for value, expected in zip(values, expected_values, strict=True):
        assert torch.allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("distilled", [True, False])
def test_configurations_are_read_in_both_directions(tmp_path: Path, distilled: bool) -> None:
    config_class, reference_class = (DeiTConfig, transformers.DeiTConfig) if distilled else (ViTConfig, transformers.ViTConfig)
    fields: dict[str, Any] = {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "image_size": 64,
        "id2label": {0: "猫", 1: "dog", 2: "c"},
    }
    config = config_class(**fields)
    config.save_pretrained(tmp_path / "ours")
    read_by_reference: Any = reference_class.from_pretrained(tmp_path / "ours")
    reference_class(**fields).save_pretrained(tmp_path / "theirs")
    read_by_us = config_class.from_pretrained(tmp_path / "theirs")
    for key in config_class.model_fields:
        if key in OWN_FIELDS - {"pooler_output_size"}:
            continue
        default = 96 if key == "pooler_output_size" else None  # transformers fills in what None stands for
        assert (getattr(read_by_reference, key) or default) == (getattr(config, key) or default), key
        assert (getattr(read_by_us, key) or default) == (getattr(config, key) or default), key
    assert read_by_reference.num_labels == read_by_us.num_labels == 3
    assert read_by_reference.label2id == read_by_us.label2id == {"猫": 0, "dog": 1, "c": 2}


def test_configuration_defaults_are_the_same() -> None:
    for config, expected in ((DeiTConfig(), transformers.DeiTConfig()), (ViTConfig(), transformers.ViTConfig())):
        for key in type(config).model_fields:
            if key not in OWN_FIELDS:
                assert getattr(config, key) == getattr(expected, key), key
