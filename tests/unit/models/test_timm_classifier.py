"""Networks of timm: saving, loading, preprocessing, and malformed or hostile directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.errors import CheckpointError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.images.timm_preprocessing import INTERPOLATIONS
from deit.models.timm_classifier import (
    TimmClassifier,
    _crop_ratio,
    check_architecture,
    new_timm_classifier,
    processor_from_timm,
    timm_preprocessing,
    to_channels_last,
)
from tests.helpers import noise

ARCHITECTURE = "resnet10t"
CLASSES = ("cat", "собака", "鳥")
PROCESSOR = DeiTImageProcessor.for_size(40, 40, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
ARGUMENTS = {"stem_width": 8, "channels": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def classifier() -> TimmClassifier:
    return new_timm_classifier(ARCHITECTURE, CLASSES, PROCESSOR, ARGUMENTS, seed=3).eval()


@pytest.fixture
def saved(classifier: TimmClassifier, tmp_path: Path) -> Path:
    classifier.save_pretrained(tmp_path)
    return tmp_path


def edit_config(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        (content if key in content else content["pretrained_cfg"])[key] = value
    path.write_text(json.dumps(content))
    return directory


def test_saved_classifier_is_loaded_unchanged(classifier: TimmClassifier, saved: Path) -> None:
    loaded = TimmClassifier.from_pretrained(saved)
    assert not loaded.training
    assert (loaded.architecture, loaded.arguments) == (ARCHITECTURE, ARGUMENTS)
    assert (loaded.classes, loaded.processor) == (CLASSES, PROCESSOR)
    images = noise(2, 3, 40, 40)
    output = loaded(images)
    assert list(output.heads) == ["class"]
    assert torch.equal(output.logits, classifier(images).logits)


def test_timm_loads_the_directory(classifier: TimmClassifier, saved: Path) -> None:
    network: Any = timm.create_model(f"local-dir:{saved}", pretrained=True)
    network.eval()
    images = noise(2, 3, 40, 40)
    to_channels_last(network)  # another memory format rounds the last bit differently
    assert torch.equal(network(images), classifier(images).logits)
    assert list(network.pretrained_cfg["input_size"]) == [3, 40, 40]
    assert network.pretrained_cfg["label_names"] == list(CLASSES)


def test_logits_of_forward_intermediates_are_those_of_forward(classifier: TimmClassifier) -> None:
    images = noise(2, 3, 40, 40)
    assert classifier.has_features
    with torch.no_grad():
        logits, features = classifier.forward_intermediates(images)
        torch.testing.assert_close(logits, classifier(images).logits)
    assert [feature.shape[1] for feature in features] == [16, 8, 8, 16, 16]  # the stem and four stages


@given(st.integers(1, 1200), st.floats(0.2, 1))
@settings(max_examples=60, deadline=None)
def test_size_before_the_crop_survives_conversion_to_a_ratio(size: int, ratio: float) -> None:
    processor = DeiTImageProcessor.for_size(size, size, ratio)
    assert DeiTImageProcessor.for_size(size, size, _crop_ratio(processor)) == processor


@pytest.mark.parametrize("size", [224, 384, 443, 815, 859, 886, 890])
def test_size_before_the_crop_is_not_off_by_one_pixel(size: int) -> None:
    processor = DeiTImageProcessor.for_size(size, size)
    assert DeiTImageProcessor.for_size(size, size, _crop_ratio(processor)) == processor


def test_new_weights_depend_only_on_the_seed() -> None:
    before = torch.random.get_rng_state()
    states = [new_timm_classifier(ARCHITECTURE, CLASSES, PROCESSOR, ARGUMENTS, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_reset_classifier_depends_only_on_the_seed() -> None:
    before = torch.random.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        classifier = new_timm_classifier(ARCHITECTURE, CLASSES, PROCESSOR, ARGUMENTS, seed=0)
        classifier.reset_classifier(("x", "y"), seed)
        assert classifier.classes == ("x", "y")
        assert classifier(noise(2, 3, 40, 40)).logits.shape == (2, 2)
        weights.append(classifier.state_dict()["network.fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


PROCESSORS = {
    "paper": DeiTImageProcessor.for_size(224, 224),
    "squash": DeiTImageProcessor(
        **{**DeiTImageProcessor.for_size(224, 224, 0.9, crop="squash").to_dict(), "crop_rounding": "even"}
    ),
    "pad": DeiTImageProcessor.for_size(224, 224, crop="pad"),
    "not square": DeiTImageProcessor.for_size(96, 160),
    "other statistics": DeiTImageProcessor.for_size(384, 384, 1.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    "gray": DeiTImageProcessor.for_size(64, 64, mean=(0.5,), std=(0.25,)),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("resample", INTERPOLATIONS.values(), ids=INTERPOLATIONS)
def test_preprocessing_survives_conversion_to_timm(processor: DeiTImageProcessor, resample: int) -> None:
    expected = processor.model_copy(update={"resample": resample})
    assert processor_from_timm(timm_preprocessing(expected)) == expected


@pytest.mark.parametrize("setting", [{"interpolation": "random"}, {"crop_mode": "middle"}])
def test_unsupported_preprocessing_is_named(setting: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessing .*{next(iter(setting.values()))}.* is not supported"):
        processor_from_timm({**timm_preprocessing(PROCESSORS["squash"]), **setting})


def test_preprocessing_that_timm_cannot_express_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="pretrained_cfg cannot express"):
        timm_preprocessing(PROCESSOR.model_copy(update={"do_normalize": False}))


def test_misspelled_architecture_suggests_the_most_similar_name() -> None:
    check_architecture("regnety_160")
    with pytest.raises(TeacherError, match="no architecture 'regnety_16o': did you mean regnety_160"):
        check_architecture("regnety_16o")


def test_absolute_path_is_not_taken_for_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="gone does not exist: restore it"):
        check_architecture(str(tmp_path / "gone"))


def test_arguments_that_timm_refuses_are_named() -> None:
    with pytest.raises(TeacherError, match=r"timm cannot create resnet10t with \{'depth': 3\}"):
        TimmClassifier(ARCHITECTURE, CLASSES, PROCESSOR, {"depth": 3})


@pytest.mark.parametrize(
    "argument",
    [
        {"pretrained": True},
        {"checkpoint_path": "x.pth"},
        {"pretrained_cfg": {"file": "x.pth"}},
        {"pretrained_cfg_overlay": {}},
        {"cache_dir": "/"},
    ],
)
def test_directory_cannot_make_timm_load_other_weights(saved: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(TeacherError, match=f"{next(iter(argument))}.* not allowed"):
        TimmClassifier.from_pretrained(edit_config(saved, model_args=argument))


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_cfg": None},
        {"pretrained_cfg": []},
        {"input_size": [3, 40]},
        {"input_size": "large"},
        {"input_size": [3, -1, 40]},
        {"crop_pct": 0},
        {"crop_pct": 1e-320},
        {"crop_pct": None},
        {"mean": None},
        {"std": [1, 1, 0]},
        {"label_names": [], "num_classes": 0},
        {"label_names": None, "num_classes": 10**12},
        {"model_args": 3},
    ],
)
def test_malformed_configuration_is_an_error(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="is missing or malformed"):
        TimmClassifier.from_pretrained(edit_config(saved, **changes))


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \(3, 16\) in the checkpoint and \(4, 16\) in the model"):
        TimmClassifier.from_pretrained(edit_config(saved, label_names=["a", "b", "c", "d"]))
    with pytest.raises(TeacherError, match="no architecture 'hf-hub:evil/model'"):
        TimmClassifier.from_pretrained(edit_config(saved, architecture="hf-hub:evil/model"))


@pytest.mark.parametrize(
    "arguments",
    [{"in_chans": -1}, {"channels": [2**33] * 4}, {"block": "x"}, {"layers": [1]}, {"act_layer": "no"}, {"norm_layer": "no"}],
    ids=str,
)
def test_hostile_arguments_raise_one_kind_of_error(saved: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(TeacherError, match=r"timm cannot create resnet10t|takes images of -1 channels"):
        TimmClassifier.from_pretrained(edit_config(saved, model_args=arguments))
