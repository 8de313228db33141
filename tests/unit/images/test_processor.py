"""The image processor: sizes, values, output types, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deit.errors import CheckpointError, ConfigError, ImageError
from deit.images import processor_files
from deit.images.processor import DeiTFeatureExtractor, DeiTImageProcessor
from tests.helpers import PUBLISHED_PREPROCESSING, pattern

UNRESIZED = DeiTImageProcessor(do_resize=False, do_center_crop=False)


def test_defaults_are_those_of_transformers() -> None:
    processor = DeiTImageProcessor()
    assert processor.size == {"height": 256, "width": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)
    assert processor.resample == Image.Resampling.BICUBIC
    assert DeiTFeatureExtractor is DeiTImageProcessor


@pytest.mark.parametrize(("size", "edge"), [(224, 256), (384, 438), (32, 36)])
def test_for_size_resizes_by_the_crop_ratio(size: int, edge: int) -> None:
    processor = DeiTImageProcessor.for_size(size, size)
    assert processor.size == {"shortest_edge": edge}
    assert processor.crop_size == {"height": size, "width": size}
    assert (processor.image_mean, processor.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_for_size_with_an_input_that_is_not_square() -> None:
    processor = DeiTImageProcessor.for_size(224, 448)
    assert processor.size == {"height": 256, "width": 512}
    assert processor(pattern(100, 100)).pixel_values.shape == (1, 3, 224, 448)


def test_values_are_rescaled_and_normalized_per_channel() -> None:
    processor = DeiTImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 2.0)
    )
    values = processor(Image.new("RGB", (2, 3), (255, 0, 51))).pixel_values
    assert values.dtype == torch.float32
    assert values.shape == (1, 3, 3, 2)
    assert values[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.5) / 0.5, -1.0, 0.2 / 2])


def test_steps_can_be_turned_off() -> None:
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    assert UNRESIZED(image, do_normalize=False).pixel_values[0, :, 0, 0].tolist() == pytest.approx(
        [10 / 255, 20 / 255, 30 / 255]
    )
    assert UNRESIZED(image, do_normalize=False, do_rescale=False).pixel_values[0, :, 0, 0].tolist() == [10, 20, 30]


def test_shortest_edge_keeps_the_aspect_ratio() -> None:
    processor = DeiTImageProcessor(size={"shortest_edge": 10}, do_center_crop=False)
    assert processor(pattern(30, 20)).pixel_values.shape == (1, 3, 10, 15)
    assert processor(pattern(20, 30)).pixel_values.shape == (1, 3, 15, 10)
    assert processor(pattern(7, 7)).pixel_values.shape == (1, 3, 10, 10)


def test_images_are_batched_in_order() -> None:
    images = [pattern(40, 30, seed) for seed in range(3)]
    batch = DeiTImageProcessor()(images).pixel_values
    assert torch.equal(batch, torch.cat([DeiTImageProcessor()(image).pixel_values for image in images]))


def test_returns_numpy_arrays_on_request() -> None:
    output = DeiTImageProcessor()(pattern(9, 9), return_tensors="np")
    assert isinstance(output["pixel_values"], np.ndarray)
    assert np.array_equal(output.pixel_values, DeiTImageProcessor()(pattern(9, 9)).pixel_values.numpy())
    with pytest.raises(AttributeError, match="labels"):
        _ = output.labels


def test_images_of_different_sizes_cannot_be_batched() -> None:
    with pytest.raises(ImageError, match="different sizes"):
        UNRESIZED([pattern(4, 4), pattern(4, 5)])


def test_unknown_or_invalid_override_is_an_error() -> None:
    with pytest.raises(ConfigError, match="do_resise"):
        DeiTImageProcessor()(pattern(9, 9), do_resise=False)
    with pytest.raises(ConfigError, match="image_std"):
        DeiTImageProcessor()(pattern(9, 9), image_std=(0, 1, 1))


def test_override_applies_to_one_call() -> None:
    processor = DeiTImageProcessor()
    assert processor(pattern(9, 9), crop_size=32).pixel_values.shape == (1, 3, 32, 32)
    assert processor(pattern(9, 9)).pixel_values.shape == (1, 3, 224, 224)


@pytest.mark.parametrize("processor", [DeiTImageProcessor(), DeiTImageProcessor.for_size(384, 384), UNRESIZED])
def test_saved_processor_is_loaded(tmp_path: Path, processor: DeiTImageProcessor) -> None:
    processor.save_pretrained(tmp_path)
    loaded = DeiTImageProcessor.from_pretrained(tmp_path)
    assert loaded == processor
    assert DeiTImageProcessor.from_pretrained(str(tmp_path / "preprocessor_config.json")) == processor
    entries = json.loads(processor.to_json_string())
    assert entries.pop("feature_extractor_type").endswith("FeatureExtractor")
    assert entries == json.loads(json.dumps(processor.to_dict()))


def test_published_settings_are_loaded(tmp_path: Path) -> None:
    published = {**PUBLISHED_PREPROCESSING, "crop_size": 384, "size": 438}  # facebook/deit-base-distilled-patch16-384
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    processor = DeiTImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 438, "width": 438}
    assert processor(pattern(20, 30)).pixel_values.shape == (1, 3, 384, 384)


def test_directory_without_a_processor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        DeiTImageProcessor.from_pretrained(tmp_path)


side = st.integers(1, 40) | st.sampled_from([1, 2, 223, 224, 225, 3000])


@given(
    side,
    side,
    st.sampled_from([DeiTImageProcessor(), DeiTImageProcessor.for_size(224, 224), DeiTImageProcessor.for_size(37, 61)]),
)
@settings(max_examples=25, deadline=None)
def test_output_size_does_not_depend_on_the_image(width: int, height: int, processor: DeiTImageProcessor) -> None:
    if max(width, height) > 1000 and min(width, height) > 40:
        width = 1
    values = processor(Image.new("RGB", (width, height), (255, 0, 0))).pixel_values
    assert values.shape == (1, 3, processor.crop_size["height"], processor.crop_size["width"])
    high = float((1 - np.ravel(processor.image_mean)[0]) / np.ravel(processor.image_std)[0])
    assert torch.allclose(values[0, 0], torch.tensor(high), atol=1e-5)  # a constant image stays constant


def test_none_turns_off_a_step_and_keeps_a_value() -> None:
    image = pattern(6, 5)
    output = DeiTImageProcessor()(image, do_resize=None, do_center_crop=None, size=None, resample=None, do_convert_rgb=None)
    assert torch.equal(output.pixel_values, UNRESIZED(image).pixel_values)
    padded = DeiTImageProcessor(do_resize=False, do_center_crop=False, do_pad=True, pad_size=9)
    assert padded(image, pad_size=None).pixel_values.shape == (1, 3, 5, 6)


def test_output_types_and_layouts() -> None:
    images = [pattern(5, 4), pattern(6, 4)]
    listed = UNRESIZED(images, return_tensors=None)["pixel_values"]
    assert [array.shape for array in listed] == [(3, 4, 5), (3, 4, 6)]
    last = UNRESIZED(images[0], data_format="channels_last", return_tensors="np").pixel_values
    assert np.array_equal(last[0], listed[0].transpose(1, 2, 0))
    assert last.flags.c_contiguous
    moved = UNRESIZED(images[0], device="meta", disable_grouping=True).pixel_values
    assert moved.device.type == "meta"
    with pytest.raises(ConfigError, match="return_tensors"):
        UNRESIZED(images, return_tensors="tf")  # type: ignore[arg-type]


def test_rgb_statistics_revert_the_normalization() -> None:
    image = pattern(5, 4)
    settings_list: list[dict[str, Any]] = [{}, {"image_mean": 0.2, "image_std": [0.1, 0.2, 0.3]}, {"do_normalize": False}]
    for fields in settings_list:
        processor = DeiTImageProcessor(**fields)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in processor.rgb_statistics)
        reverted = processor(image).pixel_values * std + mean
        assert torch.allclose(reverted, processor(image, do_normalize=False).pixel_values, atol=1e-6)
    with pytest.raises(ConfigError, match="1 channels"):
        _ = DeiTImageProcessor(image_mean=[0.5]).rgb_statistics


def test_padding_batches_images_of_different_sizes() -> None:
    images = [pattern(5, 4), pattern(3, 6)]
    batch = UNRESIZED(images, do_pad=True).pixel_values
    assert batch.shape == (2, 3, 6, 5)
    assert torch.equal(batch[0, :, :4], UNRESIZED(images[0]).pixel_values[0])
    assert (batch[0, :, 4:] == 0).all()
    assert (batch[1, :, :, 3:] == 0).all()
    assert UNRESIZED(images, do_pad=True, pad_size=8).pixel_values.shape == (2, 3, 8, 8)
    with pytest.raises(ImageError, match="larger than pad_size"):
        UNRESIZED(images, do_pad=True, pad_size=(6, 4))


@pytest.mark.parametrize("shape", [(224, 224), (32, 32), (60, 90)])
@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_each_crop_returns_the_input_size(shape: tuple[int, int], crop: Any) -> None:
    processor = DeiTImageProcessor.for_size(*shape, crop=crop)
    assert processor.input_hw == shape
    for image in (pattern(50, 40), pattern(7, 300), Image.new("RGB", (1, 1))):
        assert processor(image).pixel_values.shape == (1, 3, *shape)
    assert DeiTImageProcessor.for_size(*shape, 0.9).with_crop(crop).input_hw == shape
    assert processor.with_crop(crop) == processor


def test_crops_can_be_converted_to_each_other() -> None:
    keep = DeiTImageProcessor.for_size(224, 224, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    squash, pad = keep.with_crop("squash"), keep.with_crop("pad")
    assert squash.size == {"height": 248, "width": 248}
    assert squash.with_crop("keep") == keep
    assert (pad.size, pad.do_center_crop, pad.image_std) == ({"max_height": 224, "max_width": 224}, False, (0.4, 0.5, 0.6))
    assert pad.with_crop("keep") == DeiTImageProcessor.for_size(224, 224, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    wide = pad(Image.new("RGB", (40, 20), "white")).pixel_values[0]
    assert (wide[:, 112:] == 0).all()
    assert (wide[:, :112] > 1).all()
    for name in ("KEEP", "", None):
        with pytest.raises(ConfigError, match="Unknown crop"):
            keep.with_crop(name)  # type: ignore[arg-type]


def test_input_size_that_depends_on_the_image_is_an_error() -> None:
    with pytest.raises(ConfigError, match="output size of the image processor depends"):
        _ = DeiTImageProcessor(size={"shortest_edge": 3}, do_center_crop=False).input_hw
    assert DeiTImageProcessor(image_processor_type="ViTImageProcessor", size=384).input_hw == (384, 384)


@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_pixels_then_normalize_equals_a_call(crop: Any) -> None:
    processor = DeiTImageProcessor.for_size(48, 48, crop=crop)
    images = [pattern(50, 40), pattern(30, 61), pattern(48, 48)]
    normalized = processor.normalize([processor.pixels(image) for image in images])
    assert np.array_equal(normalized, processor(images, return_tensors="np").pixel_values)
    assert processor.normalize([]).shape == (0, 3, 48, 48)
    single = processor.normalize(processor.pixels(images[0]))
    assert np.array_equal(single, normalized[0])
    if crop != "pad":
        stacked = np.stack([processor.pixels(image) for image in images])
        assert np.array_equal(processor.normalize(stacked), normalized)


def test_vit_files_have_the_defaults_of_vit(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    for class_entry in ({"image_processor_type": "ViTImageProcessorFast"}, {"feature_extractor_type": "ViTFeatureExtractor"}):
        file.write_text(json.dumps({**class_entry, "size": 384, "do_center_crop": None, "unknown_entry": [1]}))
        processor = DeiTImageProcessor.from_pretrained(tmp_path)
        assert (processor.resample, processor.do_center_crop, processor.input_hw) == (2, False, (384, 384))
        assert processor.to_dict()["unknown_entry"] == [1]
        assert processor.to_dict()["image_processor_type"] == "ViTImageProcessor"
        assert "feature_extractor_type" not in processor.to_dict()
    file.write_text("{}")
    assert DeiTImageProcessor.from_pretrained(tmp_path) == DeiTImageProcessor()
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert DeiTImageProcessor.from_pretrained(tmp_path).size == {"height": 224, "width": 224}


def test_nested_file_of_transformers_5_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 100}')
    (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
    assert DeiTImageProcessor.from_pretrained(tmp_path).input_hw == (100, 100)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"crop_size": 90, "do_resize": null}}')
    processor = DeiTImageProcessor.from_pretrained(tmp_path, resample=2)
    assert (processor.input_hw, processor.do_resize, processor.resample) == ((90, 90), False, 2)
    assert DeiTImageProcessor.from_pretrained(tmp_path / "processor_config.json").input_hw == (90, 90)


def test_invalid_file_or_override_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 9}')
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json.*resample"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do_resise"):
        DeiTImageProcessor.from_pretrained(tmp_path, do_resise=True)
    with pytest.raises(CheckpointError):
        DeiTImageProcessor.from_pretrained(tmp_path / "missing", local_files_only=True)


def test_loads_from_a_subfolder_and_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DeiTImageProcessor(crop_size=40).save_pretrained(tmp_path / "processor")
    assert DeiTImageProcessor.from_pretrained(tmp_path, subfolder="processor", revision="main").input_hw == (40, 40)
    request: dict[str, Any] = {}

    def fetch_file(name: str, files: Any, **options: Any) -> Path:
        request.update(options, name=name, files=files)
        return tmp_path / "processor" / "preprocessor_config.json"

    monkeypatch.setattr(processor_files, "fetch_file", fetch_file)
    assert DeiTImageProcessor.from_pretrained("facebook/x", revision="abc", token="t", do_pad=True).do_pad
    assert (request["name"], request["revision"], request["token"]) == ("facebook/x", "abc", "t")
    assert "preprocessor_config.json" in request["files"]
