"""A checkpoint into a model of another shape: what is new, resized and ignored is said, and nothing else gets through."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deit.checkpoints.position_embeddings import resample
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


def saved(directory: Path, kind: type[PreTrainedModel], **fields: Any) -> Any:
    model = randomized(kind(tiny_vit(**fields) if kind.config_class is ViTConfig else tiny_deit(**fields)))
    model.save_pretrained(directory)
    return model


def heads(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


def test_a_model_as_it_was_saved_has_nothing_to_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded, report = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.load_report
    assert str(loaded.load_report) == "every tensor as it was saved"
    assert caplog.text == ""
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)
    assert not loaded.training


@pytest.mark.parametrize(
    "asked", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"label2id": {"a": 0, "b": 1, "c": 2}}]
)
def test_another_number_of_classes_makes_new_heads(tmp_path: Path, asked: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded: Any
    for loaded in (load_model(tmp_path, **asked), DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, **asked)):
        assert loaded.load_report.new == heads("cls_classifier", "distillation_classifier")
        assert loaded.load_report.to_dict()["mismatched_keys"] == {
            (f"{head}.{part}", (5, *rest), (3, *rest))
            for head in ("cls_classifier", "distillation_classifier")
            for part, rest in (("weight", (24,)), ("bias", ()))
        }
        assert loaded(IMAGES).logits.shape == (2, 3)
        assert torch.equal(loaded.deit(IMAGES).last_hidden_state, model.deit(IMAGES).last_hidden_state)
        assert loaded.cls_classifier.weight.std() > 0  # drawn, not left empty
    assert "new: cls_classifier.weight, cls_classifier.bias" in caplog.text
    with pytest.raises(UserError, match="ignore_mismatched_sizes=True"):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, ignore_mismatched_sizes=False, **asked)


def test_other_names_for_as_many_classes_keep_the_heads(tmp_path: Path) -> None:
    model = saved(tmp_path, ViTForImageClassification)
    loaded = load_model(tmp_path, id2label=dict(enumerate("abcde")))
    assert loaded.config.classes == tuple("abcde")
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_new_heads_depend_on_the_seed_alone(tmp_path: Path) -> None:
    saved(tmp_path, ViTForImageClassification)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(load_model(tmp_path, num_labels=2).classifier.weight)  # type: ignore[union-attr]
    assert torch.equal(*drawn)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [64, 16, (48, 24), (32, 64)])
def test_another_size_resamples_the_positions(tmp_path: Path, size: Any) -> None:
    model = saved(tmp_path, DeiTForImageClassificationWithTeacher)
    loaded: Any = load_model(tmp_path, image_size=size)
    grid = loaded.config.grid
    own, old = loaded.deit.embeddings.position_embeddings, model.deit.embeddings.position_embeddings
    assert torch.equal(own, resample(old, 2, (4, 4), grid))
    assert torch.equal(own[:, :2], old[:, :2])
    images = noise(1, 3, *loaded.config.image_hw)
    assert torch.allclose(loaded(images).logits, model(images, interpolate_pos_encoding=True).logits, atol=1e-6)
    assert f"resized: embeddings.position_embeddings 1 x 18 x 24 -> 1 x {2 + grid[0] * grid[1]} x 24" in str(loaded.load_report)


def test_the_same_number_of_patches_in_another_order_is_resampled_too(tmp_path: Path) -> None:
    saved(tmp_path, ViTForImageClassification, image_size=(32, 64))
    assert load_model(tmp_path, image_size=(64, 32)).load_report.resized
    assert not load_model(tmp_path, image_size=(32, 64)).load_report


def test_a_distilled_checkpoint_in_a_plain_class_of_its_own_family(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(tmp_path, DeiTForImageClassificationWithTeacher)
    fresh = DeiTForImageClassification.from_pretrained(tmp_path)  # as transformers has it
    assert fresh.load_report.new == heads("classifier")
    assert "pass distillation='drop' to take its class head" in caplog.text
    caplog.clear()
    taken: Any = DeiTForImageClassification.from_pretrained(tmp_path, distillation="drop")
    assert torch.equal(taken(IMAGES).logits, model(IMAGES).cls_logits)
    assert sorted(taken.load_report.ignored) == sorted(heads("distillation_classifier"))
    assert "ignored: distillation_classifier.bias" in caplog.text


def test_a_distilled_checkpoint_becomes_plain_when_it_is_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path, DeiTForImageClassificationWithTeacher)
    with pytest.raises(CheckpointError, match="distillation='drop'"):
        ViTForImageClassification.from_pretrained(tmp_path)
    plain: Any = load_model(tmp_path, distillation="drop")
    assert type(plain) is ViTForImageClassification
    assert plain.config.tokens == 17
    assert torch.equal(plain.classifier.weight, model.cls_classifier.weight)
    positions = model.deit.embeddings.position_embeddings
    assert torch.equal(plain.vit.embeddings.position_embeddings, torch.cat([positions[:, :1], positions[:, 2:]], dim=1))
    assert "embeddings.distillation_token" in plain.load_report.ignored


def test_a_plain_checkpoint_becomes_distilled_when_it_is_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path, ViTForImageClassification)
    for kind in (DeiTForImageClassificationWithTeacher, DeiTModel):
        with pytest.raises(CheckpointError, match="distillation='new'"):
            kind.from_pretrained(tmp_path)
    distilled: Any = load_model(tmp_path, distillation="new", image_size=64)
    assert type(distilled) is DeiTForImageClassificationWithTeacher
    assert torch.equal(distilled.cls_classifier.weight, model.classifier.weight)
    assert {"embeddings.distillation_token", *heads("distillation_classifier")} == set(distilled.load_report.new)
    positions = distilled.deit.embeddings.position_embeddings
    assert torch.equal(positions[:, 0], model.vit.embeddings.position_embeddings[:, 0])
    assert positions.shape == (1, 66, 24)


def test_one_head_beside_a_distillation_token_becomes_two_when_it_is_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path, DeiTForImageClassification)
    with pytest.raises(CheckpointError, match="one head and this model two: pass distillation='new'"):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)
    loaded: Any = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, distillation="new")
    assert torch.equal(loaded(IMAGES).cls_logits, model(IMAGES).logits)
    assert loaded.load_report.new == heads("distillation_classifier")


@pytest.mark.parametrize(
    ("source", "target", "new"),
    [
        (DeiTForImageClassificationWithTeacher, DeiTModel, heads("pooler.dense")),
        (ViTForImageClassification, ViTModel, heads("pooler.dense")),
        (DeiTModel, DeiTForImageClassification, heads("classifier")),
        (DeiTModel, DeiTForImageClassificationWithTeacher, heads("cls_classifier", "distillation_classifier")),
        (DeiTForImageClassification, DeiTForMaskedImageModeling, ("embeddings.mask_token", *heads("decoder.0"))),
        (DeiTForMaskedImageModeling, DeiTForImageClassification, heads("classifier")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_task_makes_its_own_parts_and_says_so(tmp_path: Path, source: Any, target: Any, new: tuple[str, ...]) -> None:
    fields: dict[str, Any] = {} if source.config_class is ViTConfig else {"encoder_stride": 8}
    model = saved(tmp_path, source, **fields)
    loaded = target.from_pretrained(tmp_path)
    assert set(loaded.load_report.new) == set(new)
    kept = loaded.base_model(IMAGES).last_hidden_state
    assert torch.equal(kept, model.base_model(IMAGES).last_hidden_state)


def test_a_model_without_a_head_is_no_classifier_unless_classes_are_given(tmp_path: Path) -> None:
    saved(tmp_path, DeiTModel)
    with pytest.raises(CheckpointError, match="DeiTModel, which tells no classes: `deit train --init` gives it heads"):
        load_model(tmp_path)
    assert load_model(tmp_path, num_labels=2)(IMAGES).logits.shape == (2, 2)


@pytest.mark.parametrize("gone", ["deit.encoder.layer.1.output.dense.bias", "cls_classifier.bias", "deit.layernorm.weight"])
def test_a_missing_tensor_is_an_error(tmp_path: Path, gone: str) -> None:
    saved(tmp_path, DeiTForImageClassificationWithTeacher)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors")
    for load in (load_model, DeiTForImageClassificationWithTeacher.from_pretrained, DeiTForImageClassification.from_pretrained):
        with pytest.raises(CheckpointError, match=f"lacks .*{gone.rpartition('.')[2]}"):
            load(tmp_path)


def test_one_head_of_two_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, DeiTForImageClassificationWithTeacher)
    tensors = load_file(tmp_path / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("distillation_classifier")}
    save_file(rest, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the heads cls_classifier: "):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 48}, {"patch_size": 16}, {"qkv_bias": False}]
)
def test_the_transformer_itself_keeps_its_shape(tmp_path: Path, fields: dict[str, Any]) -> None:
    saved(tmp_path, DeiTForImageClassificationWithTeacher)
    with pytest.raises(CheckpointError, match=r"belongs to another model|may change their size"):
        load_model(tmp_path, **fields)


def test_a_mistyped_argument_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, DeiTForImageClassification)
    with pytest.raises(ConfigError, match="no field 'num_label': did you mean num_labels"):
        load_model(tmp_path, num_label=3)
    for dtype in ("int8", "float8_e4m3fn", "nn"):
        with pytest.raises(UserError, match=f"'{dtype}' is no type of floating-point numbers"):
            load_model(tmp_path, dtype=dtype)
    with pytest.raises(UserError, match="no attention called 'flash'"):
        load_model(tmp_path, attn_implementation="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "kept"), [(None, "float32"), ("auto", "float16"), ("bfloat16", "bfloat16"), (torch.float64, "float64")]
)
def test_the_type_of_the_weights_is_the_one_asked_for(tmp_path: Path, asked: Any, kept: str) -> None:
    randomized(DeiTForImageClassification(tiny_deit())).half().save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype=asked, num_labels=3)
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, kept)}
    assert DeiTForImageClassification.from_pretrained(tmp_path, torch_dtype=asked).dtype == getattr(torch, kept)


def test_a_configuration_of_the_callers_takes_the_place_of_the_stored_one(tmp_path: Path) -> None:
    saved(tmp_path, DeiTForImageClassification)
    config = DeiTConfig.from_pretrained(tmp_path, num_labels=2)
    config.hidden_dropout_prob = 0.1
    model = DeiTForImageClassification.from_pretrained(tmp_path, config=config)
    assert (model.config.hidden_dropout_prob, model.num_labels) == (0.1, 2)


def test_weights_are_copies_of_the_file(tmp_path: Path) -> None:
    """A file that is overwritten in place must not change a model that was loaded from it."""
    model = saved(tmp_path, DeiTForImageClassification)
    loaded = load_model(tmp_path)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\x7f" * (size // 4))
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_the_report_is_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, ViTForImageClassification)
    load_model(tmp_path, num_labels=2)
    assert [(record.name, record.levelno) for record in caplog.records] == [("deit", logging.WARNING)]


def test_a_configuration_of_the_callers_is_overridden_too_and_tells_what_weights_do_not(tmp_path: Path) -> None:
    model = saved(tmp_path, DeiTForImageClassification)
    with pytest.raises(ConfigError, match="no field 'num_label'"):
        DeiTForImageClassification.from_pretrained(tmp_path, config=model.config, num_label=3)
    assert DeiTForImageClassification.from_pretrained(tmp_path, config=model.config, num_labels=3).num_labels == 3
    torch.save(model.state_dict(), tmp_path / "alone.pth")
    alone = DeiTForImageClassification.from_pretrained(tmp_path / "alone.pth", config=model.config)
    assert torch.equal(alone(IMAGES).logits, model(IMAGES).logits)


def test_the_device_is_one_and_is_given_in_any_words(tmp_path: Path) -> None:
    saved(tmp_path, DeiTForImageClassification)
    words: list[Any] = ["auto", "cpu", torch.device("cpu"), {"": "cpu"}]
    for word in words:
        DeiTForImageClassification.from_pretrained(tmp_path, device_map=word)
    with pytest.raises(UserError, match="splits the model"):
        DeiTForImageClassification.from_pretrained(tmp_path, device_map={"deit": "cpu", "classifier": "cpu"})


def test_saving_takes_no_argument_that_it_does_not_know(tmp_path: Path) -> None:
    model = DeiTForImageClassification(tiny_deit())
    with pytest.raises(UserError, match="no argument 'is_main_proces'"):
        model.save_pretrained(tmp_path, is_main_proces=False)
    with pytest.raises(UserError, match="no repo_id to push to"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(UserError, match="safetensors alone"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="5GB", save_function=torch.save)
    arguments: dict[str, Any] = {"ignore_mismatched_sizes": True, "device_map": "cpu", "torch_dtype": torch.bfloat16}
    loaded = load_model(tmp_path, num_labels=2, low_cpu_mem_usage=True, **arguments)
    assert (loaded.num_labels, loaded.dtype) == (2, torch.bfloat16)
    with pytest.raises(UserError, match="Heads of another size"):
        load_model(tmp_path, num_labels=2, ignore_mismatched_sizes=False)
