"""The whitened first layer: uncorrelated outputs, both signs, frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run import train_on
from deit.training.whitening import freeze_first_layer, whiten_first_layer_, whitening_filters
from tests.helpers import memory_splits, noise
from tests.unit.training.trainers import tiny_trainer

CLASSES = ("a", "b")


def convnet(**arguments: object) -> TimmClassifier:
    return new_timm_classifier(PLAIN_CONVNET, CLASSES, DeiTImageProcessor.for_size(16, 16), dict(arguments), seed=0)


def first_weight(model: Any, layer: int = 0) -> torch.Tensor:
    weight: torch.Tensor = model.network.layers[layer][0].weight
    return weight


def smooth_images() -> torch.Tensor:
    """Images whose pixels and channels are correlated, (40, 3, 16, 16)."""
    images = torch.nn.functional.avg_pool2d(noise(40, 3, 18, 18), 3, stride=1)
    return images + 0.5 * images.flip(1)


def test_outputs_of_the_first_layer_are_white_and_of_both_signs() -> None:
    model, images = convnet(), smooth_images()
    assert freeze_first_layer(model)
    whiten_first_layer_(model, [images[:30], images[30:]])
    weight = first_weight(model)
    assert not weight.requires_grad
    assert torch.equal(weight[:13], -weight[13:26]) or torch.equal(weight[:16], -weight[16:])
    outputs = torch.nn.functional.conv2d(images, weight[:13]).transpose(0, 1).flatten(1).double()
    moments = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moments, torch.eye(13, dtype=torch.float64), rtol=0, atol=1e-4)


def test_gray_images_have_fewer_components() -> None:
    model = convnet()
    gray = smooth_images().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    whiten_first_layer_(model, [gray])
    weight = first_weight(model)
    assert torch.equal(weight[:9], -weight[9:18])  # nine components; the other filters are combinations of them
    outputs = torch.nn.functional.conv2d(gray, weight).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(outputs.square().mean(1), torch.ones(32, dtype=torch.float64), rtol=0, atol=1e-4)
    assert torch.linalg.matrix_rank(weight.detach().flatten(1), rtol=1e-4) == 9
    one_channel = convnet(in_chans=1)
    whiten_first_layer_(one_channel, [gray])
    assert first_weight(one_channel).shape == (32, 1, 3, 3)


def test_images_of_one_color_have_one_component() -> None:
    filters = whitening_filters(torch.ones(27, 27, dtype=torch.float64), 16)
    assert filters.shape == (1, 27)
    assert whitening_filters(torch.zeros(27, 27, dtype=torch.float64), 16).shape == (0, 27)


def test_filters_of_a_diagonal_covariance() -> None:
    filters = whitening_filters(torch.diag(torch.tensor([4.0, 1.0, 0.25, 1e-6], dtype=torch.float64)), 4)
    np.testing.assert_allclose(filters.abs().numpy(), np.diag([0.5, 1.0, 2.0, 1.0])[:3], atol=1e-12)


def test_first_layer_stays_as_it_is_whitened(tmp_path: Path) -> None:
    recipe = get_recipe("convnet").tiny()
    trainer = tiny_trainer(tmp_path, recipe)
    before = first_weight(trainer.model).clone()
    later = first_weight(trainer.model, 1).clone()
    assert trainer.ema is not None
    assert torch.equal(first_weight(trainer.ema.model), before)
    trainer.fit()
    assert torch.equal(first_weight(trainer.model), before)
    assert not torch.equal(first_weight(trainer.model, 1), later)


def test_other_networks_are_not_frozen() -> None:
    resnet = new_timm_classifier("test_resnet", CLASSES, DeiTImageProcessor.for_size(16, 16), {}, seed=0)
    assert not freeze_first_layer(resnet)
    assert all(parameter.requires_grad for parameter in resnet.parameters())


def test_network_that_is_trained_further_keeps_its_first_layer(tmp_path: Path) -> None:
    splits, recipe, settings = memory_splits(48), get_recipe("convnet").tiny(), RunSettings("memory")
    train_on(splits, recipe, settings, tmp_path / "first", device="cpu", workers=0)
    further = replace(settings, init=str(tmp_path / "first"))
    train_on(splits, recipe.replace(seed=1), further, tmp_path / "further", device="cpu", workers=0)
    first, second = (load_classifier(tmp_path / name).model.state_dict() for name in ("first", "further"))
    assert torch.equal(first["network.layers.0.0.weight"], second["network.layers.0.0.weight"])
    assert not torch.equal(first["network.layers.1.0.weight"], second["network.layers.1.0.weight"])
    train_on(splits, recipe.replace(seed=1, epochs=3), further, tmp_path / "further", device="cpu", workers=0)  # resumes
