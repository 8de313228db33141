"""Checkpoints loaded into other models: new, resized and ignored tensors are reported, other differences are errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deit.checkpoints.position_embeddings import resample_position_embeddings
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError, ConfigError, UserError
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
    load_model,
)
from deit.models.pretrained import PreTrainedModel
from tests.helpers import noise, randomized, tiny_deit, tiny_vit

IMAGES = noise(2, 3, 32, 32)


def save_model(directory: Path, model_class: type[PreTrainedModel], **fields: Any) -> Any:
    config = tiny_vit(**fields) if model_class.config_class is ViTConfig else tiny_deit(**fields)
    model = randomized(model_class(config))
    model.save_pretrained(directory)
    return model


def parameters(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for module in modules for name in ("weight", "bias"))


def test_unchanged_model_has_an_empty_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded, report = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.load_report
    assert str(loaded.load_report) == "all tensors loaded unchanged"
    assert caplog.text == ""
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)
    assert not loaded.training


@pytest.mark.parametrize(
    "fields", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"label2id": {"a": 0, "b": 1, "c": 2}}]
)
def test_other_number_of_classes_initializes_new_heads(tmp_path: Path, fields: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded: Any
    for loaded in (load_model(tmp_path, **fields), DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, **fields)):
        assert loaded.load_report.new == parameters("cls_classifier", "distillation_classifier")
        assert loaded.load_report.to_dict()["mismatched_keys"] == {
            (f"{head}.{name}", (5, *rest), (3, *rest))
            for head in ("cls_classifier", "distillation_classifier")
            for name, rest in (("weight", (24,)), ("bias", ()))
        }
        assert loaded(IMAGES).logits.shape == (2, 3)
        assert torch.equal(loaded.deit(IMAGES).last_hidden_state, model.deit(IMAGES).last_hidden_state)
        assert loaded.cls_classifier.weight.std() > 0  # initialized
    assert "new: cls_classifier.weight, cls_classifier.bias" in caplog.text
    with pytest.raises(UserError, match="ignore_mismatched_sizes=True"):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, ignore_mismatched_sizes=False, **fields)


def test_other_class_names_keep_the_heads(tmp_path: Path) -> None:
    model = save_model(tmp_path, ViTForImageClassification)
    loaded = load_model(tmp_path, id2label=dict(enumerate("abcde")))
    assert loaded.config.classes == tuple("abcde")
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_new_heads_depend_only_on_the_seed(tmp_path: Path) -> None:
    save_model(tmp_path, ViTForImageClassification)
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(load_model(tmp_path, num_labels=2).classifier.weight)  # type: ignore[union-attr]
    assert torch.equal(*weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [64, 16, (48, 24), (32, 64)])
def test_other_image_size_resamples_position_embeddings(tmp_path: Path, size: Any) -> None:
    model = save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded: Any = load_model(tmp_path, image_size=size)
    grid = loaded.config.grid
    new, old = loaded.deit.embeddings.position_embeddings, model.deit.embeddings.position_embeddings
    assert torch.equal(new, resample_position_embeddings(old, 2, (4, 4), grid))
    assert torch.equal(new[:, :2], old[:, :2])
    images = noise(1, 3, *loaded.config.image_hw)
    assert torch.allclose(loaded(images).logits, model(images, interpolate_pos_encoding=True).logits, atol=1e-6)
    assert f"resized: embeddings.position_embeddings 1 x 18 x 24 -> 1 x {2 + grid[0] * grid[1]} x 24" in str(loaded.load_report)


def test_other_grid_with_as_many_patches_is_resampled(tmp_path: Path) -> None:
    save_model(tmp_path, ViTForImageClassification, image_size=(32, 64))
    assert load_model(tmp_path, image_size=(64, 32)).load_report.resized
    assert not load_model(tmp_path, image_size=(32, 64)).load_report


def test_distilled_checkpoint_in_the_deit_class_with_one_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    new = DeiTForImageClassification.from_pretrained(tmp_path)  # as in transformers
    assert new.load_report.new == parameters("classifier")
    assert "pass distillation='drop' to load its class head" in caplog.text
    caplog.clear()
    dropped: Any = DeiTForImageClassification.from_pretrained(tmp_path, distillation="drop")
    assert torch.equal(dropped(IMAGES).logits, model(IMAGES).cls_logits)
    assert sorted(dropped.load_report.ignored) == sorted(parameters("distillation_classifier"))
    assert "ignored: distillation_classifier.bias" in caplog.text


def test_distilled_checkpoint_in_a_plain_model_on_request(tmp_path: Path) -> None:
    model = save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    with pytest.raises(CheckpointError, match="distillation='drop'"):
        ViTForImageClassification.from_pretrained(tmp_path)
    plain: Any = load_model(tmp_path, distillation="drop")
    assert type(plain) is ViTForImageClassification
    assert plain.config.tokens == 17
    assert torch.equal(plain.classifier.weight, model.cls_classifier.weight)
    embeddings = model.deit.embeddings.position_embeddings
    assert torch.equal(plain.vit.embeddings.position_embeddings, torch.cat([embeddings[:, :1], embeddings[:, 2:]], dim=1))
    assert "embeddings.distillation_token" in plain.load_report.ignored


def test_plain_checkpoint_in_a_distilled_model_on_request(tmp_path: Path) -> None:
    model = save_model(tmp_path, ViTForImageClassification)
    for model_class in (DeiTForImageClassificationWithTeacher, DeiTModel):
        with pytest.raises(CheckpointError, match="distillation='new'"):
            model_class.from_pretrained(tmp_path)
    distilled: Any = load_model(tmp_path, distillation="new", image_size=64)
    assert type(distilled) is DeiTForImageClassificationWithTeacher
    assert torch.equal(distilled.cls_classifier.weight, model.classifier.weight)
    assert {"embeddings.distillation_token", *parameters("distillation_classifier")} == set(distilled.load_report.new)
    embeddings = distilled.deit.embeddings.position_embeddings
    assert torch.equal(embeddings[:, 0], model.vit.embeddings.position_embeddings[:, 0])
    assert embeddings.shape == (1, 66, 24)


def test_deit_with_one_head_gets_a_second_on_request(tmp_path: Path) -> None:
    model = save_model(tmp_path, DeiTForImageClassification)
    with pytest.raises(CheckpointError, match="one head and this model has two: pass distillation='new'"):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)
    loaded: Any = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, distillation="new")
    assert torch.equal(loaded(IMAGES).cls_logits, model(IMAGES).logits)
    assert loaded.load_report.new == parameters("distillation_classifier")


@pytest.mark.parametrize(
    ("source", "target", "new"),
    [
        (DeiTForImageClassificationWithTeacher, DeiTModel, parameters("pooler.dense")),
        (ViTForImageClassification, ViTModel, parameters("pooler.dense")),
        (DeiTModel, DeiTForImageClassification, parameters("classifier")),
        (DeiTModel, DeiTForImageClassificationWithTeacher, parameters("cls_classifier", "distillation_classifier")),
        (DeiTForImageClassification, DeiTForMaskedImageModeling, ("embeddings.mask_token", *parameters("decoder.0"))),
        (DeiTForMaskedImageModeling, DeiTForImageClassification, parameters("classifier")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_task_initializes_its_own_modules(tmp_path: Path, source: Any, target: Any, new: tuple[str, ...]) -> None:
    fields: dict[str, Any] = {} if source.config_class is ViTConfig else {"encoder_stride": 8}
    model = save_model(tmp_path, source, **fields)
    loaded = target.from_pretrained(tmp_path)
    assert set(loaded.load_report.new) == set(new)
    hidden_state = loaded.base_model(IMAGES).last_hidden_state
    assert torch.equal(hidden_state, model.base_model(IMAGES).last_hidden_state)


def test_model_without_head_needs_classes(tmp_path: Path) -> None:
    save_model(tmp_path, DeiTModel)
    with pytest.raises(CheckpointError, match="DeiTModel, which has no classification head: train one with"):
        load_model(tmp_path)
    assert load_model(tmp_path, num_labels=2)(IMAGES).logits.shape == (2, 2)


@pytest.mark.parametrize("name", ["deit.encoder.layer.1.output.dense.bias", "cls_classifier.bias", "deit.layernorm.weight"])
def test_missing_tensor_is_refused(tmp_path: Path, name: str) -> None:
    save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    for load in (load_model, DeiTForImageClassificationWithTeacher.from_pretrained, DeiTForImageClassification.from_pretrained):
        with pytest.raises(CheckpointError, match=f"lacks .*{name.rpartition('.')[2]}"):
            load(tmp_path)


def test_missing_head_of_a_distilled_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    tensors = load_file(tmp_path / "model.safetensors")
    incomplete = {name: tensor for name, tensor in tensors.items() if not name.startswith("distillation_classifier")}
    save_file(incomplete, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the heads cls_classifier: "):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 48}, {"patch_size": 16}, {"qkv_bias": False}]
)
def test_other_transformer_shape_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    save_model(tmp_path, DeiTForImageClassificationWithTeacher)
    with pytest.raises(CheckpointError, match=r"belongs to another model|may change their size"):
        load_model(tmp_path, **fields)


def test_unknown_argument_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, DeiTForImageClassification)
    with pytest.raises(ConfigError, match="no field 'num_label': did you mean num_labels"):
        load_model(tmp_path, num_label=3)
    for dtype in ("int8", "float8_e4m3fn", "nn"):
        with pytest.raises(UserError, match=f"'{dtype}' is not a floating-point dtype"):
            load_model(tmp_path, dtype=dtype)
    with pytest.raises(UserError, match=r'attn_implementation="flash".* is not supported: use sdpa or eager'):
        load_model(tmp_path, attn_implementation="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "float32"), ("auto", "float16"), ("bfloat16", "bfloat16"), (torch.float64, "float64")]
)
def test_dtype_of_the_weights(tmp_path: Path, dtype: Any, expected: str) -> None:
    randomized(DeiTForImageClassification(tiny_deit())).half().save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype=dtype, num_labels=3)
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, expected)}
    assert DeiTForImageClassification.from_pretrained(tmp_path, torch_dtype=dtype).dtype == getattr(torch, expected)


def test_passed_configuration_replaces_the_stored_one(tmp_path: Path) -> None:
    save_model(tmp_path, DeiTForImageClassification)
    config = DeiTConfig.from_pretrained(tmp_path, num_labels=2)
    config.hidden_dropout_prob = 0.1
    model = DeiTForImageClassification.from_pretrained(tmp_path, config=config)
    assert (model.config.hidden_dropout_prob, model.num_labels) == (0.1, 2)


def test_weights_are_copies_of_the_file(tmp_path: Path) -> None:
    """Overwriting a file in place must not change a model that was loaded from it."""
    model = save_model(tmp_path, DeiTForImageClassification)
    loaded = load_model(tmp_path)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\x7f" * (size // 4))
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_report_is_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tmp_path, ViTForImageClassification)
    load_model(tmp_path, num_labels=2)
    assert [(record.name, record.levelno) for record in caplog.records] == [("deit", logging.WARNING)]


def test_passed_configuration_can_be_overridden_and_complements_weights(tmp_path: Path) -> None:
    model = save_model(tmp_path, DeiTForImageClassification)
    with pytest.raises(ConfigError, match="no field 'num_label'"):
        DeiTForImageClassification.from_pretrained(tmp_path, config=model.config, num_label=3)
    assert DeiTForImageClassification.from_pretrained(tmp_path, config=model.config, num_labels=3).num_labels == 3
    torch.save(model.state_dict(), tmp_path / "alone.pth")
    loaded = DeiTForImageClassification.from_pretrained(tmp_path / "alone.pth", config=model.config)
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_device_map_names_one_device(tmp_path: Path) -> None:
    save_model(tmp_path, DeiTForImageClassification)
    device_maps: list[Any] = ["auto", "cpu", torch.device("cpu"), {"": "cpu"}]
    for device_map in device_maps:
        DeiTForImageClassification.from_pretrained(tmp_path, device_map=device_map)
    with pytest.raises(UserError, match="splits the model"):
        DeiTForImageClassification.from_pretrained(tmp_path, device_map={"deit": "cpu", "classifier": "cpu"})


def test_save_pretrained_refuses_unknown_arguments(tmp_path: Path) -> None:
    model = DeiTForImageClassification(tiny_deit())
    with pytest.raises(UserError, match="no argument 'is_main_proces'"):
        model.save_pretrained(tmp_path, is_main_proces=False)
    with pytest.raises(UserError, match="push_to_hub needs a repo_id"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="5GB", save_function=torch.save)
    arguments: dict[str, Any] = {"ignore_mismatched_sizes": True, "device_map": "cpu", "torch_dtype": torch.bfloat16}
    loaded = load_model(tmp_path, num_labels=2, low_cpu_mem_usage=True, **arguments)
    assert (loaded.num_labels, loaded.dtype) == (2, torch.bfloat16)
    with pytest.raises(UserError, match="heads have another size"):
        load_model(tmp_path, num_labels=2, ignore_mismatched_sizes=False)
