"""Settings of the image processors from arguments, dictionaries and files, in the forms that code for transformers uses."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torchvision.transforms import InterpolationMode
from transformers.image_utils import SizeDict

import deit
from deit.errors import CheckpointError, ConfigError, ImageError
from deit.images import crops, pretrained_processor, processor_classes, timm_preprocessing
from deit.images.processor import DeiTImageProcessor, ViTImageProcessor
from tests.helpers import pattern, randomized, tiny_vit

CLASSES = [DeiTImageProcessor, ViTImageProcessor]
IMAGE = pattern(50, 40)


@pytest.mark.parametrize("name", sorted(processor_classes.DEFAULTS))
def test_defaults_are_those_of_the_class_in_transformers(name: str) -> None:
    theirs = getattr(transformers, f"{name}ImageProcessor")().to_dict()
    reduced = {entry: theirs[entry] for entry in theirs if entry == "do_reduce_labels"}  # unknown here, and kept
    for suffix in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor"):
        ours = DeiTImageProcessor.from_dict({"image_processor_type": f"{name}{suffix}"})
        for setting in ("size", "resample", "image_mean", "image_std", "do_resize", "do_rescale", "do_normalize"):
            assert getattr(ours, setting) == theirs[setting], setting
        assert ours.do_center_crop == bool(theirs.get("do_center_crop"))
        assert not ours.do_center_crop or ours.crop_size == theirs["crop_size"]
        assert DeiTImageProcessor.from_dict(theirs).to_dict() == {**ours.to_dict(), **reduced}


def test_classes_have_the_names_and_defaults_of_transformers() -> None:
    assert deit.ViTFeatureExtractor is deit.ViTImageProcessorFast is deit.ViTImageProcessor is ViTImageProcessor
    assert deit.DeiTFeatureExtractor is deit.DeiTImageProcessorFast is deit.DeiTImageProcessor
    processor = deit.ViTImageProcessor()
    assert (processor.input_hw, processor.resample, processor.do_center_crop) == ((224, 224), 2, False)
    assert deit.ViTImageProcessor.for_size(224, 224).size == {"shortest_edge": 256}
    assert ViTImageProcessor.from_dict({"feature_extractor_type": "DeiTFeatureExtractor"}).size == {"height": 256, "width": 256}
    assert DeiTImageProcessor.valid_kwargs.__annotations__.keys() == DeiTImageProcessor.model_fields.keys()


@pytest.mark.parametrize("name", ["EfficientNetImageProcessor", "LevitFeatureExtractor", "MyProcessor"])
def test_class_that_does_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name, "size": 224}))
    with pytest.raises(ConfigError, match=f"{name} is not supported"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    processor = DeiTImageProcessor.from_pretrained(tmp_path, image_processor_type="ViTImageProcessor")
    assert processor.input_hw == (224, 224)


@pytest.mark.parametrize("edge", [224, 384])
def test_convnext_file_is_cropped_by_its_ratio(edge: int) -> None:
    content = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": edge}, "crop_pct": 0.875}
    processor = DeiTImageProcessor.from_dict(content)
    assert processor.input_hw == (edge, edge)
    assert processor.size == ({"shortest_edge": 256} if edge == 224 else {"height": 384, "width": 384})


@pytest.mark.parametrize("setting", ["do_resize", "do_center_crop", "do_rescale", "do_normalize"])
def test_step_that_is_none_is_off_as_in_transformers(setting: str) -> None:
    theirs = transformers.DeiTImageProcessorPil(**{setting: None})
    ours = DeiTImageProcessor(**{setting: None})
    assert getattr(ours, setting) is False
    expected = theirs(IMAGE, return_tensors="np")["pixel_values"]
    assert np.array_equal(ours(IMAGE, return_tensors="np").pixel_values, expected)


WITHOUT_EFFECT: dict[str, Any] = {
    "use_fast": True,
    "backend": "torchvision",
    "trust_remote_code": True,
    "use_auth_token": None,
    "token": None,
    "cache_dir": None,
    "proxies": None,
    "force_download": False,
    "local_files_only": True,
    "_from_auto": True,
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_arguments_of_transformers_are_accepted(tmp_path: Path, name: str) -> None:
    processor = DeiTImageProcessor(crop_size=40)
    assert processor.save_pretrained(save_directory=tmp_path) == [str(tmp_path / "preprocessor_config.json")]
    arguments = {name: WITHOUT_EFFECT[name]}
    assert DeiTImageProcessor.from_pretrained(pretrained_model_name_or_path=tmp_path, **arguments) == processor


@pytest.mark.parametrize("name", ["use_fast", "disable_grouping", "padding", "backend"])
def test_arguments_without_effect_are_accepted_in_calls_and_constructors(name: str) -> None:
    processor, argument = DeiTImageProcessor(), dict[str, Any]({name: True})
    assert torch.equal(processor(images=IMAGE, **argument).pixel_values, processor(IMAGE).pixel_values)
    assert DeiTImageProcessor(**argument) == processor


def test_misspelled_argument_is_an_error_everywhere(tmp_path: Path) -> None:
    DeiTImageProcessor().save_pretrained(tmp_path)
    for call in (
        lambda: DeiTImageProcessor(do_resise=False),
        lambda: DeiTImageProcessor()(IMAGE, do_resise=False),
        lambda: DeiTImageProcessor().replace(do_resise=False),
        lambda: DeiTImageProcessor.from_dict({}, do_resise=False),
        lambda: DeiTImageProcessor.from_pretrained(tmp_path, do_resise=False),
    ):
        with pytest.raises(ConfigError, match="no setting 'do_resise': did you mean do_resize"):
            call()
    loaded = DeiTImageProcessor.from_pretrained(tmp_path, do_resise=False, crop_size=9, return_unused_kwargs=True)
    assert loaded == (DeiTImageProcessor(crop_size=9), {"do_resise": False})


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (30, {"height": 30, "width": 30}),
        ((30, 40), {"height": 30, "width": 40}),
        (SizeDict(height=30, width=40), {"height": 30, "width": 40}),
        (SizeDict(shortest_edge=30), {"shortest_edge": 30}),
        ({"shortest_edge": 30, "longest_edge": 90}, {"shortest_edge": 30, "longest_edge": 90}),
    ],
)
def test_sizes_in_every_form(given: Any, size: dict[str, int]) -> None:
    assert DeiTImageProcessor(size=given).size == DeiTImageProcessor.from_dict({"size": given}).size == size


@pytest.mark.parametrize(
    "given", [2, "bilinear", InterpolationMode.BILINEAR, transformers.image_utils.PILImageResampling.BILINEAR]
)
def test_filters_in_every_form(given: Any) -> None:
    assert DeiTImageProcessor(resample=given).resample == 2
    with pytest.raises(ConfigError, match="resample"):
        DeiTImageProcessor(resample="cubist")


def test_settings_by_position_are_in_the_order_of_transformers_4() -> None:
    assert DeiTImageProcessor(True, 30, 2, True, 20).crop_size == {"height": 20, "width": 20}
    assert ViTImageProcessor(True, 30, 3, False).do_rescale is False
    assert DeiTImageProcessor()(IMAGE, True, 30, 2, True, 20).pixel_values.shape == (1, 3, 20, 20)
    assert isinstance(ViTImageProcessor()(IMAGE, True, 30, 3, True, 1 / 255, True, 0.5, 0.5, "np").pixel_values, np.ndarray)
    with pytest.raises(ConfigError, match="10 settings by position"):
        DeiTImageProcessor(*range(11))


def test_device_is_that_of_the_tensors_and_is_not_saved(tmp_path: Path) -> None:
    processor = DeiTImageProcessor(device="meta")
    assert processor(IMAGE).pixel_values.device.type == "meta"
    assert processor.replace(crop_size=9)(IMAGE).pixel_values.device.type == "meta"
    assert DeiTImageProcessor()(IMAGE, device=torch.device("meta")).pixel_values.device.type == "meta"
    processor.save_pretrained(tmp_path)
    assert DeiTImageProcessor.from_pretrained(tmp_path)(IMAGE).pixel_values.device.type == "cpu"
    with pytest.raises(ConfigError, match="device nonsense"):
        DeiTImageProcessor()(IMAGE, device="nonsense")


@pytest.mark.parametrize("processor_class", CLASSES)
def test_copies_are_equal_and_independent(processor_class: type[DeiTImageProcessor], tmp_path: Path) -> None:
    processor = processor_class(crop_size=30)
    processor.to_json_file(tmp_path / "file.json")
    others = [copy.deepcopy(processor), pickle.loads(pickle.dumps(processor)), processor_class.from_dict(processor.to_dict())]  # noqa: S301
    others += [processor_class.from_json_file(tmp_path / "file.json"), processor_class(**processor.to_dict())]
    others.append(processor_class.from_pretrained(tmp_path, image_processor_filename="file.json"))
    for other in others:
        assert type(other) is processor_class
        assert other == processor
        other.size["height"] = 1
    assert processor != processor_class(crop_size=31)
    assert processor.size == processor_class().size
    assert processor_class().size["height"] > 1


@pytest.mark.parametrize("return_tensors", ["tf", "jax", "mlx", 3])
def test_other_frameworks_are_refused(return_tensors: Any) -> None:
    with pytest.raises(ConfigError, match="return_tensors"):
        DeiTImageProcessor()(IMAGE, return_tensors=return_tensors)


def test_images_are_fetched_from_paths_and_not_from_addresses(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    processor = DeiTImageProcessor()
    fetched = processor.fetch_images([[path], IMAGE])
    assert np.array_equal(np.asarray(fetched[0][0]), np.asarray(fetched[1]))
    for call in (processor, processor.fetch_images):
        with pytest.raises(ImageError, match="not downloaded"):
            call("https://example.org/a.png")


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file: pass a directory"):
        DeiTImageProcessor().save_pretrained(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"model\.push_to_hub"):
        DeiTImageProcessor().save_pretrained(tmp_path, push_to_hub=True, repo_id="a/b")
    DeiTImageProcessor.register_for_auto_class()


def test_every_path_of_a_model_leads_to_its_processor_and_configuration(tmp_path: Path) -> None:
    """A run, its models, files of weights, and a directory of timm; but not a file beside another model."""
    best = tmp_path / "run" / "best"
    processor = DeiTImageProcessor.for_size(32, 32)
    randomized(deit.ViTForImageClassification(tiny_vit())).save_pretrained(best)
    processor.save_pretrained(best)
    for path in (tmp_path / "run", best, best / "model.safetensors", f"local-dir:{tmp_path / 'run'}"):
        assert DeiTImageProcessor.from_pretrained(path) == processor
        assert deit.ViTConfig.from_pretrained(path) == deit.load_model(path).config
        assert deit.ViTForImageClassification.from_pretrained(path).config.hidden_size == 24
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    preprocessing = {
        "input_size": [3, 64, 64],
        "crop_pct": 0.9,
        "interpolation": "bilinear",
        "crop_mode": "squash",
        **statistics,
    }
    timm = tmp_path / "timm"
    timm.mkdir()
    (timm / "config.json").write_text(json.dumps({"architecture": "regnety_004", "pretrained_cfg": preprocessing}))
    loaded = DeiTImageProcessor.from_pretrained(timm)
    assert (loaded.input_hw, loaded.size, loaded.resample) == ((64, 64), {"height": 71, "width": 71}, 2)
    for path in (timm, best / "preprocessor_config.json"):
        with pytest.raises(ConfigError, match="does not configure a DeiT or ViT"):
            deit.ViTConfig.from_pretrained(path)
    (best / "other.pth").touch()
    for function in (DeiTImageProcessor.from_pretrained, deit.ViTConfig.from_pretrained):
        with pytest.raises(CheckpointError, match=r"other\.pth is a single file"):
            function(best / "other.pth")
    (best / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"best has no preprocessor_config\.json: pass a model that was saved with"):
        DeiTImageProcessor.from_pretrained(tmp_path / "run")


def test_examples_run(tmp_path: Path) -> None:
    names = {"deit": deit, "DeiTImageProcessor": DeiTImageProcessor, "Path": Path, "folder": tmp_path}
    for module in (pretrained_processor, processor_classes, crops, timm_preprocessing):
        results = doctest.testmod(module, extraglobs=names)
        assert results.attempted >= 1
        assert results.failed == 0
