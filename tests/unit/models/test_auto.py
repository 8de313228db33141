"""Loading any saved classifier, with its preprocessing and class names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deit.errors import CheckpointError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier, wrapper_class
from deit.models.hf_classifier import HFClassifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from tests.helpers import noise, randomized, tiny_deit

CLASSES = ("cat", "собака", "鳥")


def test_deit_is_loaded_with_its_preprocessing(tmp_path: Path) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)))
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert (loaded.classes, loaded.path) == (CLASSES, tmp_path)
    assert loaded.processor == DeiTImageProcessor.for_size(32, 32)  # none was saved
    images = noise(1, 3, 32, 32)
    assert torch.equal(loaded.model(images).logits, model(images).logits)
    processor = DeiTImageProcessor(crop_size=32)
    processor.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).processor.size == processor.size


def test_output_has_names_even_if_the_configuration_asks_for_a_tuple(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit(return_dict=False)).save_pretrained(tmp_path)
    assert list(load_classifier(tmp_path).model(noise(1, 3, 32, 32)).heads) == ["class", "distillation", "both"]


def test_network_of_timm_is_loaded_with_its_preprocessing(tmp_path: Path) -> None:
    processor = DeiTImageProcessor.for_size(40, 40, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    classifier = new_timm_classifier("test_resnet", CLASSES, processor, {}, seed=0).eval()
    classifier.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert isinstance(loaded.model, TimmClassifier)
    assert not loaded.model.training
    assert (loaded.classes, loaded.processor, loaded.path) == (CLASSES, processor, tmp_path)
    images = noise(2, 3, 40, 40)
    assert torch.equal(loaded.model(images).logits, classifier(images).logits)


def test_directory_of_a_run_refers_to_its_best_model(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit()).save_pretrained(tmp_path / "best")
    assert load_classifier(tmp_path).path == tmp_path / "best"
    assert load_classifier(str(tmp_path)).classes[0] == "LABEL_0"


@pytest.mark.parametrize("name", ["weights.pth", "checkpoint.bin", "other.safetensors"])
def test_preprocessing_of_another_model_in_the_same_directory_is_not_used(tmp_path: Path, name: str) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(hidden_size=64, num_attention_heads=1)))
    DeiTImageProcessor(crop_size=99).save_pretrained(tmp_path)
    save = save_file if name.endswith(".safetensors") else torch.save
    save(model.state_dict(), tmp_path / name)
    assert load_classifier(tmp_path / name).processor == DeiTImageProcessor.for_size(32, 32)


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no weights: looked for model\.safetensors, .*, found nothing"):
        load_classifier(tmp_path)
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(CheckpointError, match="no finished epoch: resume it: deit train --resume"):
        load_classifier(tmp_path)


def test_another_input_size_keeps_the_crop(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit()).save_pretrained(tmp_path)
    DeiTImageProcessor.for_size(32, 32, 0.5, crop="squash").save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path, image_size=64)
    assert loaded.processor == DeiTImageProcessor.for_size(64, 64, 0.5, crop="squash")
    assert loaded.processor.input_hw == (64, 64)


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        ({"model_type": "vit"}, None),
        ({"model_type": "deit"}, None),
        ({"architecture": "deit_tiny_patch16_224"}, None),
        ({"architecture": "resnet10t"}, TimmClassifier),
        ({"model_type": "swin"}, HFClassifier),
        ({"model_type": 3}, None),
    ],
    ids=str,
)
def test_format_is_detected_by_config_json(tmp_path: Path, content: dict[str, str], wrapper: type | None) -> None:
    assert wrapper_class(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert wrapper_class(tmp_path) is wrapper
    assert wrapper_class(tmp_path / "config.json") is None
