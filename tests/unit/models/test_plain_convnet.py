"""The plain convolutional network, by itself and as timm's."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from deit.errors import TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import TimmClassifier, fresh_network, load_classifier
from deit.models.plain_convnet import CHANNELS, PLAIN_CONVNET, PlainConvNet
from tests.helpers import noise

CLASSES = ("ant", "bee", "cat")
PROCESSOR = DeiTImageProcessor.for_size(32, 32)


def test_its_maps_are_as_it_says() -> None:
    network = PlainConvNet(num_classes=3).eval()
    batch = noise(2, 3, 32, 48)
    last, maps = network.forward_intermediates(batch)
    for info, one in zip(network.feature_info, maps, strict=True):
        reduction = info["reduction"]
        assert one.shape == (2, info["num_chs"], 32 // reduction, 48 // reduction)
        assert network.get_submodule(info["module"]) in [*network.layers]
    assert torch.equal(network.forward_head(last), network(batch))
    assert len(maps) == len(CHANNELS) - 1


def test_timm_makes_it_by_name() -> None:
    network = timm.create_model(PLAIN_CONVNET, num_classes=5, channels=[4, 8])
    assert isinstance(network, PlainConvNet)
    assert network(noise(2, 3, 16, 16)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="no published weights"):
        timm.create_model(PLAIN_CONVNET, pretrained=True)


def test_it_is_saved_and_read_with_its_widths(tmp_path: Path) -> None:
    network = fresh_network(PLAIN_CONVNET, CLASSES, PROCESSOR, {"channels": [4, 6, 8]}, seed=0).eval()
    network.save_pretrained(tmp_path / "a teacher")
    again = load_classifier(tmp_path / "a teacher").model
    assert isinstance(again, TimmClassifier)
    batch = noise(2, 3, 32, 32)
    assert torch.equal(again(batch).logits, network(batch).logits)
    again.new_head(("x", "y"), seed=1)
    assert again(batch).logits.shape == (2, 2)


@pytest.mark.parametrize("channels", [[], [4, 0]])
def test_impossible_widths_are_the_user_s_mistake(channels: list[int]) -> None:
    with pytest.raises(TeacherError, match="channels must be positive"):
        fresh_network(PLAIN_CONVNET, CLASSES, PROCESSOR, {"channels": channels}, seed=0)
