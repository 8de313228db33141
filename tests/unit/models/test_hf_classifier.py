"""Classifiers of transformers: logits, preprocessing, and malformed or hostile directories."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deit.distillation.teacher import Teacher
from deit.errors import CheckpointError, ConfigError, MissingExtraError, TeacherError
from deit.evaluation.evaluate import evaluate
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.hf_classifier import HFClassifier, processor_from_hf
from tests.helpers import noise, pattern

CLASSES = ("cat", "собака", "鳥")
NAMES: dict[str, Any] = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
FAMILIES: dict[str, Any] = {
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **NAMES),
    "regnet": lambda: transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], groups_width=8, **NAMES
    ),
    "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **NAMES),
    "swin": lambda: transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4, **NAMES
    ),
}


def save(directory: Path, family: str, processor: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    auto_class: Any = transformers.AutoModelForImageClassification
    model = auto_class.from_config(FAMILIES[family]())
    for name, value in model.state_dict().items():  # batch norm must not keep its initial statistics
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape) + 0.5)
    model.save_pretrained(directory)
    if processor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_pct": 0.8,
    "resample": 2,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    path = save(tmp_path / "the model", family, processor)
    loaded = load_classifier(path)
    assert isinstance(loaded.model, HFClassifier)
    assert loaded.classes == CLASSES
    assert not loaded.model.training
    reference: Any = transformers.AutoModelForImageClassification.from_pretrained(path)
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images).logits, reference.eval()(images).logits)


def test_teacher_matches_classes_by_name_and_applies_its_own_preprocessing(tmp_path: Path) -> None:
    path = save(tmp_path, "convnext", CONVNEXT)
    student = DeiTImageProcessor.for_size(32, 32)
    teacher = Teacher.load(path, ("鳥", "cat"), student)
    assert len(teacher.notes) == 1
    pixels = np.asarray(pattern(32, 32))[None]
    classifier = load_classifier(path)
    with torch.no_grad():
        expected = classifier.model(torch.from_numpy(classifier.processor.normalize(pixels))).logits[:, [2, 0]]
    torch.testing.assert_close(teacher(torch.from_numpy(student.normalize(pixels))), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TeacherError, match="'dog'"):
        Teacher.load(path, ("cat", "dog"), student)


def test_evaluate_accepts_a_classifier_of_transformers(tmp_path: Path, photo_folder: Path) -> None:
    path = save(tmp_path, "resnet", CONVNEXT)
    content = json.loads((path / "config.json").read_text())
    names = sorted(folder.name for folder in photo_folder.iterdir() if not folder.name.startswith("."))
    content |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (path / "config.json").write_text(json.dumps(content))
    assert evaluate(path, photo_folder, device="cpu", workers=0, skip_unreadable=True).images == 24


PROCESSORS: dict[str, dict[str, Any]] = {
    "convnext": CONVNEXT,
    "convnext, version 4": {
        **CONVNEXT,
        "image_processor_type": None,
        "feature_extractor_type": "ConvNextFeatureExtractor",
    },
    "convnext, large": {**CONVNEXT, "size": {"shortest_edge": 384}},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 30, "width": 40}, "image_mean": [0.5] * 3},
    "bit": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
    },
}


@pytest.mark.parametrize("content", PROCESSORS.values(), ids=PROCESSORS)
def test_pixels_are_those_of_transformers(tmp_path: Path, content: dict[str, Any]) -> None:
    path = save(tmp_path, "resnet", {name: value for name, value in content.items() if value is not None})
    processor = load_classifier(path).processor
    auto_class: Any = transformers.AutoImageProcessor
    reference = auto_class.from_pretrained(path, backend="pil")
    for size in ((97, 61), (50, 80)):
        image = pattern(*size)
        expected = reference(image, return_tensors="np")["pixel_values"]
        # transformers may round to integers once less often; a wrong filter, crop or statistic differs by far more
        assert np.abs(processor(image, return_tensors="np").pixel_values - expected).mean() < 0.01
        assert expected.shape[2:] == processor.input_hw


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rescale": False}, "1/255"),
        ({"rescale_factor": 1 / 127.5}, "1/255"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "EfficientNetImageProcessor is not supported"),
        ({"size": {"height": 3, "width": 3}}, "shortest_edge"),
        ({"image_std": [1, 1, 0]}, "image_std"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "output size of the image processor depends"),
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "channels"),
    ],
)
def test_unsupported_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        processor_from_hf({"do_resize": True, "do_normalize": True, **CONVNEXT, **changes})


def test_without_saved_preprocessing_that_of_the_paper_is_used(tmp_path: Path) -> None:
    assert load_classifier(save(tmp_path / "a", "swin")).processor == DeiTImageProcessor.for_size(32, 32)
    assert load_classifier(save(tmp_path / "b", "resnet")).processor == DeiTImageProcessor.for_size(224, 224)


def edit_config(path: Path, **changes: Any) -> Path:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map, which would load more"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "x.pth"}}, "model_args"),
        ({"model_type": "no such family"}, "transformers cannot read"),
        ({"model_type": "bert"}, "transformers cannot read"),
        ({"hidden_sizes": [8, 8, 16, 2**20]}, "describes a classifier of"),
        ({"hidden_sizes": "wide"}, "transformers cannot read"),
        ({"depths": [1, 1, 1]}, "transformers cannot read|lacks"),
    ],
)
def test_hostile_or_malformed_configuration_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_classifier(edit_config(save(tmp_path, "resnet"), **changes))


@pytest.mark.parametrize("family", ["resnet", "swin"])
@pytest.mark.parametrize("prefix", ["", "model._orig_mod."])
@pytest.mark.parametrize("container", [None, "model_state_dict"])
def test_containers_and_prefixes_do_not_matter(tmp_path: Path, family: str, prefix: str, container: str | None) -> None:
    path = save(tmp_path / "the model", family)
    expected, images = load_classifier(path).model, noise(1, 3, 32, 32)
    state = {prefix + name: tensor for name, tensor in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    if container is None:
        save_file(state, path / "model.safetensors", {"format": "pt"})
    else:
        torch.save({container: state, "epoch": 3}, path / "pytorch_model.bin")
    with torch.no_grad():
        assert torch.equal(load_classifier(path).model(images).logits, expected(images).logits)


def test_models_without_a_head_and_two_models_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "two", "resnet")
    state = load_file(path / "model.safetensors")
    save_file({f"{name}.{key}": tensor.clone() for key, tensor in state.items() for name in "ab"}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="several models, under `a` and `b`"):
        load_classifier(path)
    backbone = transformers.ResNetModel(FAMILIES["resnet"]())
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(CheckpointError, match="classif"):
        load_classifier(tmp_path / "backbone")


def test_missing_transformers_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "resnet")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"family resnet.*pip install 'deit\[teachers\]'"):
        load_classifier(path)
