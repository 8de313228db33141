"""What is exported answers as the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deit.images.processor import DeiTImageProcessor
from deit.inference.graph import Graph, LastBlock, SeparateAttention, channel_map, separated
from deit.models.auto import LoadedClassifier, TimmClassifier
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    TransformerClassifier,
    ViTForImageClassification,
)
from tests.helpers import pattern, randomized, tiny_deit, tiny_vit

PROCESSOR = DeiTImageProcessor.for_size(32, 32)
NAMES = tuple("abcde")
UNSQUARE = {"image_size": (32, 48), "patch_size": (8, 16)}


def models() -> dict[str, TransformerClassifier]:
    return {
        "two heads": DeiTForImageClassificationWithTeacher(tiny_deit()),
        "one head": DeiTForImageClassification(tiny_deit()),
        "ViT": ViTForImageClassification(tiny_vit()),
        "no biases": ViTForImageClassification(tiny_vit(qkv_bias=False)),
        "layer scale": DeiTForImageClassificationWithTeacher(tiny_deit(layer_scale=0.1)),
        "one layer": ViTForImageClassification(tiny_vit(num_hidden_layers=1)),
        "pruned": ViTForImageClassification(tiny_vit(pruned_heads={1: [0]})),
        "unsquare": DeiTForImageClassification(tiny_deit(**UNSQUARE)),
    }


def expected(model: nn.Module, processor: DeiTImageProcessor, images: list[np.ndarray]) -> dict[str, Tensor]:
    with torch.inference_mode():
        heads: dict[str, Tensor] = model(torch.from_numpy(processor.normalize(images))).heads
    return heads


def pixels(processor: DeiTImageProcessor) -> list[np.ndarray]:
    return [processor.pixels(pattern(60, 50, seed=seed)) for seed in range(3)]


@pytest.mark.parametrize("form", [lambda graph: graph, separated])
@pytest.mark.parametrize("name", models())
def test_the_graphs_answers_are_the_models(name: str, form: Callable[[Graph], Graph]) -> None:
    model = randomized(models()[name])
    processor = DeiTImageProcessor.for_size(*model.config.image_hw)
    images = pixels(processor)
    wanted = expected(model, processor, images)
    graph = form(Graph(LoadedClassifier(model, processor, NAMES)))
    with torch.inference_mode():
        found = graph(torch.from_numpy(np.stack([np.moveaxis(image, -1, 0) for image in images])))
    assert graph.heads == tuple(wanted)
    assert graph.shape == (3, *model.config.image_hw)
    for logits, head in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(logits, head, rtol=1e-4, atol=1e-4)


def test_the_model_stays_as_it_is_and_its_weights_are_shared() -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = Graph(LoadedClassifier(model, PROCESSOR, NAMES))
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert not any(isinstance(module, LastBlock | SeparateAttention) for module in model.modules())
    ours = {value.untyped_storage().data_ptr() for value in model.parameters()}
    for form in (graph, separated(graph)):
        new = [value for value in form.parameters() if value.untyped_storage().data_ptr() not in ours]
        assert len(new) == 2  # the patch embedding's


def test_another_network_is_normalized_in_front() -> None:
    network = TimmClassifier("resnet10t", NAMES, PROCESSOR).eval()
    images = pixels(PROCESSOR)
    graph = Graph(LoadedClassifier(network, PROCESSOR, NAMES))
    with torch.inference_mode():
        [found] = graph(torch.from_numpy(np.stack([np.moveaxis(image, -1, 0) for image in images])))
    torch.testing.assert_close(found, expected(network, PROCESSOR, images)["class"], rtol=1e-4, atol=1e-4)


def test_where_the_processor_pads_the_graph_takes_normalized_values() -> None:
    processor = DeiTImageProcessor.for_size(32, 32, crop="pad")
    for model in (randomized(DeiTForImageClassification(tiny_deit())), TimmClassifier("resnet10t", NAMES, processor).eval()):
        images = [processor.pixels(pattern(60, 20))]
        graph = Graph(LoadedClassifier(model, processor, NAMES))
        assert graph.pixels == "float32"
        with torch.inference_mode():
            [found] = graph(torch.from_numpy(processor.normalize(images)))
        torch.testing.assert_close(found, expected(model, processor, images)["class"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.3, "image_std": 0.2}, {"rescale_factor": 1 / 127.5}],
)
def test_the_map_of_the_channels_is_the_processors(settings: dict[str, Any]) -> None:
    processor = DeiTImageProcessor(**settings)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    scale, shift = channel_map(processor, 3)
    mapped = values * scale + shift
    np.testing.assert_allclose(np.moveaxis(mapped, -1, 0), processor.normalize(values), rtol=1e-5, atol=1e-5)
