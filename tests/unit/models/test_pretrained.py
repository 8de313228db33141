"""The base class of the models: initialization, saving and loading, pruning, pickling, and layer scale."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deit.config import DeiTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from deit.export.conversion import convert
from deit.inference.predictor import Predictor
from deit.models.modeling import (
    ACTIVATIONS,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
    load_model,
    new_classifier,
)
from deit.models.pretrained import PreTrainedModel
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run import train_on
from deit.training.state import newest_checkpoint
from tests.helpers import memory_splits, noise, pattern, randomized, tiny_deit, tiny_vit
from tests.unit.models.factories import every_model


def test_initialization_is_truncated_normal_with_zero_biases_and_unit_norms() -> None:
    model = DeiTForImageClassificationWithTeacher(tiny_deit(hidden_size=192, intermediate_size=768, initializer_range=0.02))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.001, name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name


def test_initialization_depends_only_on_the_generator() -> None:
    states = [new_classifier(tiny_deit(), torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["cls_classifier.weight"], states[2]["cls_classifier.weight"])


def test_configuration_of_another_class_is_refused() -> None:
    with pytest.raises(UserError, match="DeiTModel takes a DeiTConfig: not a ViTConfig"):
        DeiTModel(tiny_vit())
    with pytest.raises(UserError, match="ViTModel takes a ViTConfig"):
        ViTModel(tiny_deit())


@every_model
def test_saved_model_is_loaded_unchanged(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    model = randomized(make())
    model.save_pretrained(tmp_path)
    without_pooler = isinstance(model, ViTModel) and not hasattr(model, "pooler")
    arguments: dict[str, Any] = {"add_pooling_layer": False} if without_pooler else {}
    loaded = type(model).from_pretrained(tmp_path, **arguments)
    assert loaded.config.to_dict() == {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "model_class", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher]
)
def test_saved_model_is_loaded_as_its_class(tmp_path: Path, model_class: Any) -> None:
    model = randomized(model_class(tiny_vit() if model_class is ViTForImageClassification else tiny_deit()))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is model_class
    images = noise(1, 3, 32, 32)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist: check the path"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_configuration_with_other_classes_than_the_weights_is_refused(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=5)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cls_classifier\.\w+ in .* has shape \(5,.*\), but the configuration gives \(2"):
        load_model(tmp_path)


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit()))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = noise(1, 3, 32, 32)
    assert torch.allclose(loaded(images).logits, model(images).logits, atol=0.05)


def test_meta_device_needs_no_memory() -> None:
    with torch.device("meta"):
        model = new_classifier(DeiTConfig(hidden_size=16_384, num_attention_heads=128, num_hidden_layers=4))
    assert model(torch.zeros(1, 3, 224, 224, device="meta")).logits.shape == (1, 2)


def test_invalid_pruning_changes_nothing() -> None:
    model: Any = randomized(DeiTModel(tiny_deit())).requires_grad_(False)
    with pytest.raises(ConfigError, match="leaves no head"):
        model.prune_heads({0: [0], 1: [0, 1, 2]})
    assert [layer.attention.heads for layer in model.layers] == [[0, 1, 2]] * 2
    model.prune_heads({"0": [1]})
    assert [layer.attention.heads for layer in model.layers] == [[0, 2], [0, 1, 2]]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_model_can_be_pickled(activation: str) -> None:
    model = randomized(ViTForImageClassification(tiny_vit(hidden_act=activation)))
    unpickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(unpickled(noise(1, 3, 32, 32)).logits, model(noise(1, 3, 32, 32)).logits)


def test_pruned_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    model.prune_heads({1: [1]})
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(noise(1, 3, 32, 32)).logits, model(noise(1, 3, 32, 32)).logits)


def test_deep_copy_shares_nothing() -> None:
    model: Any = randomized(DeiTForImageClassification(tiny_deit()))
    other = copy.deepcopy(model)
    other.config.num_labels = 2
    with torch.no_grad():
        other.classifier.weight.zero_()
    assert model.config.num_labels == 5
    assert model.classifier.weight.abs().sum() > 0
    assert other.deit.config is other.config


@pytest.mark.parametrize(
    ("model_class", "config"),
    [(DeiTForImageClassificationWithTeacher, tiny_deit), (ViTForImageClassification, tiny_vit)],
    ids=["deit", "vit"],
)
def test_folded_layer_scale_keeps_the_logits_also_in_transformers(model_class: Any, config: Any, tmp_path: Path) -> None:
    model = randomized(model_class(config(layer_scale=0.1)))
    x = noise(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(x).logits
        folded = model.without_layer_scale()
        torch.testing.assert_close(folded(x).logits, expected, rtol=1e-5, atol=1e-5)
        assert not any("layer_scale" in key for key in folded.state_dict())
        assert folded.config.layer_scale is None
        assert model.config.layer_scale == 0.1  # the model itself is unchanged
        assert torch.equal(model(x).logits, expected)
        model.save_pretrained(tmp_path)
        assert "layer_scale" not in json.loads((tmp_path / "config.json").read_text())
        reference = getattr(transformers, model_class.__name__).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(reference(x).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(load_model(tmp_path)(x).logits, expected, rtol=1e-5, atol=1e-5)


def test_model_without_layer_scale_has_no_trace_of_it(tmp_path: Path) -> None:
    model = ViTForImageClassification(tiny_vit())
    assert model.without_layer_scale() is model
    model.save_pretrained(tmp_path)
    assert "layer_scale" not in (tmp_path / "config.json").read_text()
    assert "layer_scale" not in model.config.to_dict()
    assert tiny_vit(layer_scale=0.5).to_dict()["layer_scale"] == 0.5


def test_layer_scale_of_a_passed_state_dict_is_folded(tmp_path: Path) -> None:
    model, other = (randomized(ViTForImageClassification(tiny_vit(layer_scale=0.1)), seed) for seed in (0, 1))
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(x).logits, other(x).logits, rtol=1e-5, atol=1e-5)


def test_initial_layer_scale_is_that_of_the_configuration() -> None:
    model = ViTForImageClassification(tiny_vit(layer_scale=0.25))
    for name, value in model.named_parameters():
        if "layer_scale" in name:
            assert value.shape == (2, 24)
            assert bool((value == 0.25).all())


def test_run_keeps_layer_scale_in_checkpoints_and_folds_it_in_models(tmp_path: Path) -> None:
    recipe = (
        get_recipe("deit3")
        .tiny()
        .replace(optimizer={"warmup_epochs": 0}, ema={"decay": 0.5, "evaluate": True}, model={"layer_scale": 0.5})
    )
    run = train_on(memory_splits(48), recipe, RunSettings("memory"), tmp_path / "run", device="cpu", workers=0).directory
    newest = newest_checkpoint(run / "checkpoints")[0]
    assert newest is not None
    checkpoint = newest.path
    x = noise(2, 3, 32, 32)
    weights, ema = load_model(checkpoint), load_model(checkpoint, ema=True)
    factors = [model.state_dict()["vit.layers.0.layer_scale"] for model in (weights, ema)]
    assert not torch.equal(*factors)
    assert not any((value == 0.5).all() for value in factors)
    last = load_model(run / "last")
    assert last.config.layer_scale is None
    with torch.no_grad():
        torch.testing.assert_close(last(x).logits, ema(x).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(weights(x).logits, ema(x).logits, rtol=1e-5, atol=1e-5)
        for form in ("transformers", "timm"):
            convert(checkpoint, tmp_path / form, form, ema=True)
            torch.testing.assert_close(load_model(tmp_path / form)(x).logits, last(x).logits, rtol=1e-4, atol=1e-5)
    image = pattern(40, 50)
    paths = (checkpoint, checkpoint / "model.safetensors")
    predictions = [Predictor.from_pretrained(path)([image])[0] for path in paths]
    assert predictions[0].labels == predictions[1].labels
