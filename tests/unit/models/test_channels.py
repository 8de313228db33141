"""Models of gray images classify the luma of RGB images; other numbers of channels are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from deit.checkpoints.adapting import LUMA
from deit.distillation.teacher import Teacher
from deit.errors import CheckpointError, DeiTError
from deit.export.conversion import convert
from deit.images.processor import DeiTImageProcessor
from deit.inference.inference_model import InferenceModel
from deit.models.auto import load_classifier
from deit.models.channels import GRAY_NOTE
from deit.models.modeling import DeiTForImageClassificationWithTeacher, ViTForImageClassification, load_model
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.training.model_building import build_model
from tests.helpers import TINY, noise, pattern, randomized, tiny_deit, tiny_vit

CLASSES = ("a", "b", "c")
RGB = DeiTImageProcessor.for_size(32, 32, 1.0)


def write_processor(directory: Path, channels: int) -> None:
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    content = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True, **settings}
    (directory / "preprocessor_config.json").write_text(json.dumps(content))


def ours(directory: Path, channels: int) -> Any:
    model = ViTForImageClassification(tiny_vit(num_channels=channels).with_classes(CLASSES))
    randomized(model, std=0.2).save_pretrained(directory)
    write_processor(directory, channels)
    return model


def distilled(directory: Path, channels: int) -> Any:
    model = DeiTForImageClassificationWithTeacher(tiny_deit(num_channels=channels).with_classes(CLASSES))
    randomized(model, std=0.2).save_pretrained(directory)
    write_processor(directory, channels)
    return model


def of_transformers(directory: Path, channels: int) -> Any:
    names: dict[str, Any] = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: index for index, name in enumerate(CLASSES)},
    }
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    model: Any = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_channels=channels, **sizes, **names))
    randomized(model, std=0.2).save_pretrained(directory)
    write_processor(directory, channels)
    return model


def of_timm(directory: Path, channels: int) -> Any:
    network: Any = randomized(timm.create_model("test_resnet", in_chans=channels, num_classes=3), std=0.1)
    directory.mkdir(exist_ok=True)
    save_file(network.state_dict(), directory / "model.safetensors")
    cfg = {
        "input_size": [channels, 32, 32],
        "mean": [0.4] * channels,
        "std": [0.3] * channels,
        "crop_pct": 1.0,
        "label_names": list(CLASSES),
    }
    content = {"architecture": "test_resnet", "num_classes": 3, "model_args": {"in_chans": channels}, "pretrained_cfg": cfg}
    (directory / "config.json").write_text(json.dumps(content))
    return network


KINDS = [ours, distilled, of_transformers, of_timm]


def logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("kind", KINDS)
def test_gray_model_gets_the_luma_of_rgb_images(tmp_path: Path, kind: Any) -> None:
    network = kind(tmp_path, 1).eval()
    loaded = load_classifier(tmp_path)
    gray, color = pattern(32, 32).convert("L"), pattern(32, 32)
    pixels = torch.from_numpy(np.array(loaded.processor([gray, color], return_tensors="np").pixel_values))
    assert pixels.shape == (2, 3, 32, 32)
    channel = (torch.from_numpy(np.array(gray)).float() / 255 - 0.4) / 0.3
    with torch.no_grad():
        actual = logits(loaded.model(pixels))
        torch.testing.assert_close(actual[:1], logits(network(channel[None, None])), rtol=1e-4, atol=1e-5)
        luma = (pixels * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        torch.testing.assert_close(actual, logits(network(luma)), rtol=1e-4, atol=1e-5)
        teacher = Teacher(loaded, CLASSES, RGB, "t")
        normalized = torch.from_numpy(np.array(RGB(gray, return_tensors="np").pixel_values))
        torch.testing.assert_close(teacher(normalized), actual[:1], rtol=1e-3, atol=1e-4)
        graph = InferenceModel(loaded)
        assert graph.input_shape == (3, 32, 32)
        byte_pixels = torch.from_numpy(np.array(gray))[None, None].expand(1, 3, 32, 32).contiguous()
        torch.testing.assert_close(graph(byte_pixels)[-1], actual[:1], rtol=1e-3, atol=1e-4)
    assert kind in (of_transformers, of_timm) or GRAY_NOTE in loaded.notes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused(tmp_path: Path, kind: Any, channels: int) -> None:
    kind(tmp_path, channels)
    with pytest.raises(DeiTError, match=f"takes images of {channels} channels: use a model of RGB or gray images"):
        load_classifier(tmp_path)


def test_other_numbers_of_channels_are_refused_before_training(tmp_path: Path) -> None:
    ours(tmp_path, 4)
    with pytest.raises(CheckpointError, match="takes images of 4 channels"):
        build_model(get_recipe("finetune-small-data").tiny(), CLASSES, str(tmp_path))
    assert load_model(tmp_path).config.num_channels == 4  # as a model, it is what it is


@pytest.mark.parametrize("recipe", ["finetune-small-data", "finetune-small-data-distilled"])
def test_training_starts_from_a_gray_model(tmp_path: Path, recipe: str) -> None:
    network = ours(tmp_path, 1).eval()
    built = build_model(get_recipe(recipe).tiny().with_settings({"model.image_size": "32"}), CLASSES, str(tmp_path))
    assert built.model.config.num_channels == 3  # type: ignore[union-attr]
    assert (built.recipe.processor().image_mean, built.recipe.processor().image_std) == ((0.4,) * 3, (0.3,) * 3)
    assert GRAY_NOTE in built.notes
    model: Any = built.model
    weights = model.canonical_state()["embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(weights.sum(1, keepdim=True), network.vit.embeddings.patch_embeddings.projection.weight)


def test_rgb_checkpoint_in_a_gray_model_gives_what_it_gave_for_gray_images(tmp_path: Path) -> None:
    network = ours(tmp_path, 3).eval()
    gray = load_model(tmp_path, num_channels=1)
    assert list(gray.load_report.resized) == ["embeddings.patch_embeddings.projection.weight"]
    images = noise(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gray(images).logits, network(images.expand(2, 3, 32, 32)).logits, rtol=1e-4, atol=1e-5)
    for channels in (2, 4):
        with pytest.raises(CheckpointError, match="the input may be gray or RGB"):
            load_model(tmp_path, num_channels=channels)


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_conversion_keeps_the_channels(tmp_path: Path, to: Any) -> None:
    fields: dict[str, Any] = {**TINY, "layer_norm_eps": 1e-6, "num_channels": 1}
    randomized(ViTForImageClassification(tiny_vit(**fields))).save_pretrained(tmp_path / "a")
    write_processor(tmp_path / "a", 1)
    convert(tmp_path / "a", tmp_path / "b", to)
    assert load_model(tmp_path / "b").config.num_channels == 1
    assert load_classifier(tmp_path / "b").processor.image_mean == (0.4, 0.4, 0.4)


def test_gray_timm_network_is_saved_and_loaded(tmp_path: Path) -> None:
    network = randomized(new_timm_classifier("test_resnet", CLASSES, RGB, {"in_chans": 1}, seed=0), std=0.1)
    network.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 32, 32]
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval()(images).logits
        assert torch.equal(load_classifier(tmp_path).model(images).logits, expected)
        assert torch.equal(network.forward_intermediates(images)[0], expected)


def test_luma_is_that_of_pillow() -> None:
    color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    gray = np.asarray(Image.fromarray(color).convert("L"), np.float64)
    assert np.abs(color @ np.asarray(LUMA) - gray).max() <= 1
