"""The small convolutional network: feature maps, registration with timm, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from deit.errors import TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.plain_convnet import CHANNELS, PLAIN_CONVNET, PlainConvNet
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from tests.helpers import noise

CLASSES = ("ant", "bee", "cat")
PROCESSOR = DeiTImageProcessor.for_size(32, 32)


def test_feature_maps_match_feature_info() -> None:
    network = PlainConvNet(num_classes=3).eval()
    batch = noise(2, 3, 32, 48)
    last, features = network.forward_intermediates(batch)
    for info, feature in zip(network.feature_info, features, strict=True):
        reduction = info["reduction"]
        assert feature.shape == (2, info["num_chs"], 32 // reduction, 48 // reduction)
        assert network.get_submodule(info["module"]) in [*network.layers]
    assert torch.equal(network.forward_head(last), network(batch))
    assert len(features) == len(CHANNELS) - 1


def test_timm_creates_it_by_name() -> None:
    network = timm.create_model(PLAIN_CONVNET, num_classes=5, channels=[4, 8])
    assert isinstance(network, PlainConvNet)
    assert network(noise(2, 3, 16, 16)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="no published weights"):
        timm.create_model(PLAIN_CONVNET, pretrained=True)


def test_saved_network_is_loaded_with_its_channels(tmp_path: Path) -> None:
    classifier = new_timm_classifier(PLAIN_CONVNET, CLASSES, PROCESSOR, {"channels": [4, 6, 8]}, seed=0).eval()
    classifier.save_pretrained(tmp_path / "a teacher")
    loaded = load_classifier(tmp_path / "a teacher").model
    assert isinstance(loaded, TimmClassifier)
    batch = noise(2, 3, 32, 32)
    assert torch.equal(loaded(batch).logits, classifier(batch).logits)
    loaded.reset_classifier(("x", "y"), seed=1)
    assert loaded(batch).logits.shape == (2, 2)


@pytest.mark.parametrize("channels", [[], [4, 0]])
def test_invalid_channels_are_an_error(channels: list[int]) -> None:
    with pytest.raises(TeacherError, match="channels must be positive"):
        new_timm_classifier(PLAIN_CONVNET, CLASSES, PROCESSOR, {"channels": channels}, seed=0)


def test_convolutions_pass_their_inputs_on_at_first() -> None:
    network = PlainConvNet(num_classes=3, channels=(4, 6, 5))
    for layer, inputs in ((network.layers[1], 4), (network.layers[2], 6)):
        convolution = layer[0]  # type: ignore[index]
        batch = noise(1, inputs, 8, 8)
        copied = min(convolution.out_channels, inputs)
        assert torch.equal(convolution(batch)[:, :copied], batch[:, :copied])
