"""Inference wrapper: the same logits as the model, with the normalization folded in and shared weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deit.images.processor import DeiTImageProcessor
from deit.inference.inference_model import (
    InferenceModel,
    MatmulAttention,
    PrefixOnlyBlock,
    UnfusedAttention,
    normalization_map,
    unfuse_attention,
    use_matmul_attention,
)
from deit.models.auto import LoadedClassifier
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    TransformerClassifier,
    ViTForImageClassification,
)
from deit.models.timm_classifier import TimmClassifier
from tests.helpers import pattern, randomized, tiny_deit, tiny_vit

PROCESSOR = DeiTImageProcessor.for_size(32, 32)
CLASSES = tuple("abcde")
NOT_SQUARE = {"image_size": (32, 48), "patch_size": (8, 16)}


def models() -> dict[str, TransformerClassifier]:
    return {
        "two heads": DeiTForImageClassificationWithTeacher(tiny_deit()),
        "one head": DeiTForImageClassification(tiny_deit()),
        "ViT": ViTForImageClassification(tiny_vit()),
        "no biases": ViTForImageClassification(tiny_vit(qkv_bias=False)),
        "layer scale": DeiTForImageClassificationWithTeacher(tiny_deit(layer_scale=0.1)),
        "one layer": ViTForImageClassification(tiny_vit(num_hidden_layers=1)),
        "pruned": ViTForImageClassification(tiny_vit(pruned_heads={1: [0]})),
        "not square": DeiTForImageClassification(tiny_deit(**NOT_SQUARE)),
    }


def expected_heads(model: nn.Module, processor: DeiTImageProcessor, images: list[np.ndarray]) -> dict[str, Tensor]:
    """Returns the logits of a model with the normalization of its image processor."""
    with torch.inference_mode():
        heads: dict[str, Tensor] = model(torch.from_numpy(processor.normalize(images))).heads
    return heads


def resized_images(processor: DeiTImageProcessor) -> list[np.ndarray]:
    return [processor.pixels(pattern(60, 50, seed=seed)) for seed in range(3)]


def as_batch(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([np.moveaxis(image, -1, 0) for image in images]))


@pytest.mark.parametrize("change", [lambda model: model, unfuse_attention, use_matmul_attention])
@pytest.mark.parametrize("name", models())
def test_logits_match_the_model(name: str, change: Callable[[InferenceModel], InferenceModel]) -> None:
    model = randomized(models()[name])
    processor = DeiTImageProcessor.for_size(*model.config.image_hw)
    images = resized_images(processor)
    expected = expected_heads(model, processor, images)
    inference_model = change(InferenceModel(LoadedClassifier(model, processor, CLASSES)))
    with torch.inference_mode():
        outputs = inference_model(as_batch(images))
    assert inference_model.heads == tuple(expected)
    assert inference_model.input_shape == (3, *model.config.image_hw)
    for logits, head in zip(outputs, expected.values(), strict=True):
        torch.testing.assert_close(logits, head, rtol=1e-4, atol=1e-4)


def test_model_is_unchanged_and_weights_are_shared() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inference_model = InferenceModel(LoadedClassifier(model, PROCESSOR, CLASSES))
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert not any(isinstance(module, PrefixOnlyBlock | UnfusedAttention | MatmulAttention) for module in model.modules())
    shared = {value.untyped_storage().data_ptr() for value in model.parameters()}
    for wrapper in (inference_model, unfuse_attention(inference_model), use_matmul_attention(inference_model)):
        new = [value for value in wrapper.parameters() if value.untyped_storage().data_ptr() not in shared]
        assert len(new) == 2  # weight and bias of the patch embedding


def test_normalization_stays_in_front_of_other_networks() -> None:
    network = TimmClassifier("resnet10t", CLASSES, PROCESSOR).eval()
    images = resized_images(PROCESSOR)
    inference_model = InferenceModel(LoadedClassifier(network, PROCESSOR, CLASSES))
    with torch.inference_mode():
        [logits] = inference_model(as_batch(images))
    expected = expected_heads(network, PROCESSOR, images)["class"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_input_is_normalized_float32_if_the_processor_pads() -> None:
    processor = DeiTImageProcessor.for_size(32, 32, crop="pad")
    for model in (randomized(DeiTForImageClassification(tiny_deit())), TimmClassifier("resnet10t", CLASSES, processor).eval()):
        images = [processor.pixels(pattern(60, 20))]
        inference_model = InferenceModel(LoadedClassifier(model, processor, CLASSES))
        assert inference_model.input_dtype == "float32"
        with torch.inference_mode():
            [logits] = inference_model(torch.from_numpy(processor.normalize(images)))
        torch.testing.assert_close(logits, expected_heads(model, processor, images)["class"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.3, "image_std": 0.2}, {"rescale_factor": 1 / 127.5}],
)
def test_normalization_map_matches_the_processor(settings: dict[str, Any]) -> None:
    processor = DeiTImageProcessor(**settings)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    scale, shift = normalization_map(processor, 3)
    mapped = values * scale + shift
    np.testing.assert_allclose(np.moveaxis(mapped, -1, 0), processor.normalize(values), rtol=1e-5, atol=1e-5)


def test_example_input_has_the_shape_and_type_of_the_input() -> None:
    model = randomized(DeiTForImageClassification(tiny_deit(**NOT_SQUARE)))
    processor = DeiTImageProcessor.for_size(32, 48)
    example = InferenceModel(LoadedClassifier(model, processor, CLASSES)).example_input(2)
    assert example.shape == (2, 3, 32, 48) and example.dtype == torch.uint8
