"""Saved classifiers behind one face, ours and timm's; and what a directory from elsewhere may not do."""

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
from deit.models.auto import (
    INTERPOLATIONS,
    TimmClassifier,
    _crop_ratio,
    check_architecture,
    fresh_network,
    load_classifier,
    processor_from_timm,
    timm_preprocessing,
)
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.helpers import noise, randomized, tiny_deit

NAME = "resnet10t"
CLASSES = ("cat", "собака", "鳥")
PROCESSOR = DeiTImageProcessor.for_size(40, 40, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
ARGUMENTS = {"stem_width": 8, "channels": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def network() -> TimmClassifier:
    return fresh_network(NAME, CLASSES, PROCESSOR, ARGUMENTS, seed=3)


@pytest.fixture
def saved(network: TimmClassifier, tmp_path: Path) -> Path:
    network.save_pretrained(tmp_path)
    return tmp_path


def edited(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        (content if key in content else content["pretrained_cfg"])[key] = value
    path.write_text(json.dumps(content))
    return directory


def test_a_network_comes_back_whole(network: TimmClassifier, saved: Path) -> None:
    loaded = load_classifier(saved)
    assert isinstance(loaded.model, TimmClassifier)
    assert not loaded.model.training
    assert (loaded.classes, loaded.processor) == (CLASSES, PROCESSOR)
    images = noise(2, 3, 40, 40)
    output = loaded.model(images)
    assert list(output.heads) == ["class"]
    assert torch.equal(output.logits, network.eval()(images).logits)


def test_timm_reads_the_directory_too(network: TimmClassifier, saved: Path) -> None:
    theirs: Any = timm.create_model(f"local-dir:{saved}", pretrained=True)
    theirs.eval()
    images = noise(2, 3, 40, 40)
    theirs.to(memory_format=torch.channels_last)  # other ways through memory round otherwise in the last bit
    assert torch.equal(theirs(images), network.eval()(images).logits)
    assert list(theirs.pretrained_cfg["input_size"]) == [3, 40, 40]
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)


@given(st.integers(1, 1200), st.floats(0.2, 1))
@settings(max_examples=60, deadline=None)
def test_the_size_before_the_crop_survives_the_way_through_a_ratio(size: int, ratio: float) -> None:
    processor = DeiTImageProcessor.for_size(size, size, ratio)
    assert DeiTImageProcessor.for_size(size, size, _crop_ratio(processor)) == processor


@pytest.mark.parametrize("size", [224, 384, 443, 815, 859, 886, 890])
def test_no_size_is_off_by_one_pixel(size: int) -> None:
    processor = DeiTImageProcessor.for_size(size, size)
    assert DeiTImageProcessor.for_size(size, size, _crop_ratio(processor)) == processor


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    states = [fresh_network(NAME, CLASSES, PROCESSOR, ARGUMENTS, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_one_of_our_models_loads_through_the_same_door(tmp_path: Path) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)))
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.classes == CLASSES
    assert loaded.processor == DeiTImageProcessor.for_size(32, 32)  # nothing else is said
    images = noise(1, 3, 32, 32)
    assert torch.equal(loaded.model(images).logits, model(images).logits)
    other = DeiTImageProcessor(crop_size=32)
    other.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).processor.size == other.size


def test_a_run_stands_for_its_best_model(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit()).save_pretrained(tmp_path / "best")
    assert load_classifier(tmp_path).path == tmp_path / "best"
    assert load_classifier(str(tmp_path)).classes[0] == "LABEL_0"


def test_a_directory_that_is_missing_or_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no weights: looked for model\.safetensors, .*, found nothing"):
        load_classifier(tmp_path)
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(CheckpointError, match="no finished epoch: resume it: deit train --resume"):
        load_classifier(tmp_path)


PROCESSORS = {
    "the authors'": DeiTImageProcessor.for_size(224, 224),
    "squash": DeiTImageProcessor.for_size(224, 224, 0.9, crop="squash"),
    "pad": DeiTImageProcessor.for_size(224, 224, crop="pad"),
    "not square": DeiTImageProcessor.for_size(96, 160),
    "other statistics": DeiTImageProcessor.for_size(384, 384, 1.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    "gray": DeiTImageProcessor.for_size(64, 64, mean=(0.5,), std=(0.25,)),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("filter_", INTERPOLATIONS.values(), ids=INTERPOLATIONS)
def test_preprocessing_survives_the_way_through_timms_words(processor: DeiTImageProcessor, filter_: int) -> None:
    one = processor.model_copy(update={"resample": filter_})
    assert processor_from_timm(timm_preprocessing(one)) == one


@pytest.mark.parametrize("setting", [{"interpolation": "random"}, {"crop_mode": "middle"}])
def test_a_way_to_prepare_images_that_is_not_known_is_named(setting: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessing .*{next(iter(setting.values()))}.* is not known here"):
        processor_from_timm({**timm_preprocessing(PROCESSORS["squash"]), **setting})


def test_another_input_size_keeps_the_way_to_crop(tmp_path: Path) -> None:
    DeiTForImageClassificationWithTeacher(tiny_deit()).save_pretrained(tmp_path)
    DeiTImageProcessor.for_size(32, 32, 0.5, crop="squash").save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path, image_size=64)
    assert loaded.processor == DeiTImageProcessor.for_size(64, 64, 0.5, crop="squash")
    assert loaded.processor.input_hw == (64, 64)
    assert loaded.path == tmp_path


def test_a_misspelt_architecture_is_answered_with_the_nearest() -> None:
    check_architecture("regnety_160")
    with pytest.raises(TeacherError, match="no architecture 'regnety_16o': did you mean regnety_160"):
        check_architecture("regnety_16o")


def test_arguments_that_timm_refuses_are_named() -> None:
    with pytest.raises(TeacherError, match=r"timm cannot make resnet10t with \{'depth': 3\}"):
        TimmClassifier(NAME, CLASSES, PROCESSOR, {"depth": 3})


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
def test_a_directory_cannot_make_timm_load_anything_else(saved: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(TeacherError, match=f"{next(iter(argument))}.* not allowed"):
        load_classifier(edited(saved, model_args=argument))


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
def test_a_garbled_configuration_is_named(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks or garbles"):
        load_classifier(edited(saved, **changes))


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \(3, 16\) in the checkpoint and \(4, 16\) in the model"):
        load_classifier(edited(saved, label_names=["a", "b", "c", "d"]))
    with pytest.raises(TeacherError, match="no architecture 'hf-hub:evil/model'"):
        load_classifier(edited(saved, architecture="hf-hub:evil/model"))


@pytest.mark.parametrize(
    "arguments",
    [{"in_chans": -1}, {"channels": [2**33] * 4}, {"block": "x"}, {"layers": [1]}, {"act_layer": "no"}, {"norm_layer": "no"}],
    ids=str,
)
def test_whatever_timm_makes_of_hostile_arguments_is_one_error(saved: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(TeacherError, match="timm cannot make resnet10t"):
        load_classifier(edited(saved, model_args=arguments))
