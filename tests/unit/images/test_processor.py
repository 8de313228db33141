"""Image -> pixel_values: sizes, values, the forms of input, and the JSON."""

from __future__ import annotations

import doctest
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deit.errors import CheckpointError, ConfigError, ImageError
from deit.images import arrays as image_arrays
from deit.images import batch_feature
from deit.images import processor as image_processor
from deit.images import processor_settings as image_settings
from deit.images.batch_feature import BatchFeature
from deit.images.processor import DeiTFeatureExtractor, DeiTImageProcessor
from tests.helpers import PUBLISHED_PREPROCESSING, pattern

PLAIN = DeiTImageProcessor(do_resize=False, do_center_crop=False)


def test_the_defaults_are_those_of_transformers() -> None:
    processor = DeiTImageProcessor()
    assert processor.size == {"height": 256, "width": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)
    assert processor.resample == Image.Resampling.BICUBIC
    assert DeiTFeatureExtractor is DeiTImageProcessor


@pytest.mark.parametrize(("size", "edge"), [(224, 256), (384, 438), (32, 36)])
def test_the_authors_evaluation_enlarges_by_the_crop_ratio(size: int, edge: int) -> None:
    processor = DeiTImageProcessor.for_size(size, size)
    assert processor.size == {"shortest_edge": edge}
    assert processor.crop_size == {"height": size, "width": size}
    assert (processor.image_mean, processor.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_an_input_that_is_not_square_keeps_its_own_aspect() -> None:
    processor = DeiTImageProcessor.for_size(224, 448)
    assert processor.size == {"height": 256, "width": 512}
    assert processor(pattern(100, 100)).pixel_values.shape == (1, 3, 224, 448)


def test_values_are_rescaled_and_normalized_by_channel() -> None:
    processor = DeiTImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 2.0)
    )
    values = processor(Image.new("RGB", (2, 3), (255, 0, 51))).pixel_values
    assert values.dtype == torch.float32
    assert values.shape == (1, 3, 3, 2)
    assert values[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.5) / 0.5, -1.0, 0.2 / 2])


def test_the_steps_can_be_left_out() -> None:
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    assert PLAIN(image, do_normalize=False).pixel_values[0, :, 0, 0].tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255])
    assert PLAIN(image, do_normalize=False, do_rescale=False).pixel_values[0, :, 0, 0].tolist() == [10, 20, 30]


def test_the_crop_is_the_middle() -> None:
    image = Image.new("RGB", (10, 6))
    image.paste((255, 255, 255), (3, 1, 7, 5))  # 4 x 4 in the middle
    processor = DeiTImageProcessor(do_resize=False, crop_size=4, do_normalize=False)
    assert (processor(image).pixel_values == 1).all()


def test_a_crop_larger_than_the_image_is_black_around_it() -> None:
    processor = DeiTImageProcessor(do_resize=False, crop_size={"height": 4, "width": 3}, do_normalize=False)
    values = processor(Image.new("RGB", (1, 2), "white")).pixel_values[0, 0]
    assert values.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_shorter_side_gets_the_size_and_the_aspect_stays() -> None:
    processor = DeiTImageProcessor(size={"shortest_edge": 10}, do_center_crop=False)
    assert processor(pattern(30, 20)).pixel_values.shape == (1, 3, 10, 15)
    assert processor(pattern(20, 30)).pixel_values.shape == (1, 3, 15, 10)
    assert processor(pattern(7, 7)).pixel_values.shape == (1, 3, 10, 10)


def test_arrays_and_tensors_give_what_the_image_gives() -> None:
    image = pattern(19, 13)
    array = np.asarray(image)
    expected = DeiTImageProcessor()(image).pixel_values
    forms: list[Any] = [
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array.copy()).float().requires_grad_(),
        array.astype(np.int64),
        [image],
        (array,),
        array[None],
    ]
    for form in forms:
        assert torch.equal(DeiTImageProcessor()(form).pixel_values, expected)


def test_grey_and_transparent_arrays_become_colors() -> None:
    gray = np.full((6, 5), 128, np.uint8)
    expected = PLAIN(Image.new("RGB", (5, 6), (128, 128, 128))).pixel_values
    clear = np.dstack([gray, gray, gray, np.zeros_like(gray)])
    for form in (gray, gray[..., None], gray[None], Image.fromarray(gray), [[gray]]):
        assert torch.equal(PLAIN(form).pixel_values, expected)
    assert torch.equal(PLAIN(clear).pixel_values, torch.ones(1, 3, 6, 5))  # on white


def test_several_images_become_one_batch_in_their_order() -> None:
    images = [pattern(40, 30, seed) for seed in range(3)]
    together = DeiTImageProcessor()(images).pixel_values
    assert torch.equal(together, torch.cat([DeiTImageProcessor()(image).pixel_values for image in images]))


def test_numpy_is_answered_on_request() -> None:
    answer = DeiTImageProcessor()(pattern(9, 9), return_tensors="np")
    assert isinstance(answer["pixel_values"], np.ndarray)
    assert np.array_equal(answer.pixel_values, DeiTImageProcessor()(pattern(9, 9)).pixel_values.numpy())
    with pytest.raises(AttributeError, match="labels"):
        _ = answer.labels


@pytest.mark.parametrize(
    "thing",
    [
        None,
        b"bytes",
        [b"bytes"],
        torch.zeros(3, 4, 4, dtype=torch.complex64),
        Image.new("RGB", (0, 3)),
        3,
        [],
        {},
        [None],
        np.zeros(3),
        np.zeros((2, 3, 4, 5, 6)),
        np.zeros((5, 6, 7)),
        np.zeros((0, 5, 3)),
    ],
)
def test_what_is_no_image_is_refused(thing: Any) -> None:
    with pytest.raises(ImageError, match="no image"):
        DeiTImageProcessor()(thing)


def test_images_of_different_sizes_cannot_be_one_batch() -> None:
    with pytest.raises(ImageError, match="different sizes"):
        PLAIN([pattern(4, 4), pattern(4, 5)])


def test_a_misspelt_override_is_an_error() -> None:
    with pytest.raises(ConfigError, match="do_resise"):
        DeiTImageProcessor()(pattern(9, 9), do_resise=False)
    with pytest.raises(ConfigError, match="image_std"):
        DeiTImageProcessor()(pattern(9, 9), image_std=(0, 1, 1))


def test_an_override_holds_for_its_call_alone() -> None:
    processor = DeiTImageProcessor()
    assert processor(pattern(9, 9), crop_size=32).pixel_values.shape == (1, 3, 32, 32)
    assert processor(pattern(9, 9)).pixel_values.shape == (1, 3, 224, 224)


@pytest.mark.parametrize("processor", [DeiTImageProcessor(), DeiTImageProcessor.for_size(384, 384), PLAIN])
def test_a_processor_comes_back_from_disk(tmp_path: Path, processor: DeiTImageProcessor) -> None:
    processor.save_pretrained(tmp_path)
    loaded = DeiTImageProcessor.from_pretrained(tmp_path)
    assert loaded == processor
    assert DeiTImageProcessor.from_pretrained(str(tmp_path / "preprocessor_config.json")) == processor
    assert json.loads(processor.to_json_string()) == processor.to_dict()


def test_the_published_checkpoints_files_are_read(tmp_path: Path) -> None:
    published = {**PUBLISHED_PREPROCESSING, "crop_size": 384, "size": 438}  # facebook/deit-base-distilled-patch16-384
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    processor = DeiTImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 438, "width": 438}
    assert processor(pattern(20, 30)).pixel_values.shape == (1, 3, 384, 384)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": {"height": 3}}, "size: takes"),
        ({"size": {"longest_edge": 3}}, "size: takes"),
        ({"size": 0}, "size"),
        ({"size": "large"}, "size"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size: takes"),
        ({"pad_size": {"shortest_edge": 3}}, "pad_size: takes"),
        ({"pad_size": 10**9}, "pad_size"),
        ({"pad_size": 16_384}, "more than"),
        ({"size": (16_384, 16_000)}, "more than"),
        ({"size": [3, 4, 5]}, "size"),
        ({"size": {"min_pixels": 3, "max_pixels": 9}}, "size: takes"),
        ({"data_format": "last"}, "data_format"),
        ({"do_resize": "perhaps"}, "do_resize"),
        ({"image_mean": []}, "image_mean"),
        ({"image_mean": "gray"}, "image_mean"),
        ({"image_std": -1}, "image_std"),
        ({"crop_size": 10**9}, "crop_size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_std": [1, 1, 0]}, "image_std"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"self": 3, "size": []}, "size"),
    ],
)
def test_settings_that_cannot_be_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DeiTImageProcessor(**fields)


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        DeiTImageProcessor.from_pretrained(tmp_path)


side = st.integers(1, 40) | st.sampled_from([1, 2, 223, 224, 225, 3000])


@given(
    side,
    side,
    st.sampled_from([DeiTImageProcessor(), DeiTImageProcessor.for_size(224, 224), DeiTImageProcessor.for_size(37, 61)]),
)
@settings(max_examples=25, deadline=None)
def test_any_image_comes_out_in_the_same_size(width: int, height: int, processor: DeiTImageProcessor) -> None:
    if max(width, height) > 1000 and min(width, height) > 40:
        width = 1
    values = processor(Image.new("RGB", (width, height), (255, 0, 0))).pixel_values
    assert values.shape == (1, 3, processor.crop_size["height"], processor.crop_size["width"])
    high = float((1 - np.ravel(processor.image_mean)[0]) / np.ravel(processor.image_std)[0])
    assert torch.allclose(values[0, 0], torch.tensor(high), atol=1e-5)  # one color stays one color


@pytest.mark.parametrize("module", [batch_feature, image_arrays, image_settings])
def test_the_examples_run(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.attempted >= 2
    assert results.failed == 0


@pytest.mark.parametrize(
    ("size", "height_width", "expected"),
    [
        ({"height": 3, "width": 5}, (100, 10), (3, 5)),
        ({"shortest_edge": 10}, (1, 10**6), (10, 16_384)),
        ({"shortest_edge": 10, "longest_edge": 20}, (1000, 1), (20, 1)),
        ({"shortest_edge": 10, "longest_edge": 20}, (30, 15), (20, 10)),
        ({"shortest_edge": 15, "longest_edge": 100}, (30, 15), (30, 15)),
        ({"max_height": 10, "max_width": 20}, (1000, 1), (10, 1)),
        ({"max_height": 10, "max_width": 20}, (5, 5), (10, 10)),
    ],
)
def test_every_kind_of_size_has_its_target(size: Any, height_width: tuple[int, int], expected: tuple[int, int]) -> None:
    assert image_settings.target_size(size, *height_width) == expected


def test_a_size_is_read_in_every_form() -> None:
    square = DeiTImageProcessor(size=256, crop_size=(224, 200))
    assert (square.size, square.crop_size) == ({"height": 256, "width": 256}, {"height": 224, "width": 200})
    assert DeiTImageProcessor(size=[2, 3]).size == {"height": 2, "width": 3}
    assert DeiTImageProcessor(size=np.int64(7), default_to_square=False).size == {"shortest_edge": 7}
    assert DeiTImageProcessor(size={"shortest_edge": 7, "longest_edge": None}).size == {"shortest_edge": 7}
    assert DeiTImageProcessor()(pattern(20, 30), size=10, default_to_square=False, do_center_crop=False).pixel_values.shape == (
        (1, 3, 15, 10)
    )


def test_settings_are_attributes_that_are_checked() -> None:
    processor = DeiTImageProcessor()
    processor.size = {"shortest_edge": 40}
    processor.crop_size = 32  # type: ignore[assignment]
    processor.image_mean = np.array([0.1, 0.2, 0.3])  # type: ignore[assignment]
    processor.do_resize = None  # type: ignore[assignment]
    assert (processor.crop_size, processor.do_resize) == ({"height": 32, "width": 32}, False)
    assert processor.image_mean == (0.1, 0.2, 0.3)
    for name, value in {"size": {"height": 3}, "resample": 17, "image_std": 0, "do_resise": True}.items():
        with pytest.raises(ConfigError, match=name):
            setattr(processor, name, value)
    assert processor.size == {"shortest_edge": 40}  # what was refused left no trace
    assert processor.model_input_names == ["pixel_values"]


def test_none_in_a_call_switches_a_step_off_and_leaves_a_value() -> None:
    image = pattern(6, 5)
    answer = DeiTImageProcessor()(image, do_resize=None, do_center_crop=None, size=None, resample=None, do_convert_rgb=None)
    assert torch.equal(answer.pixel_values, PLAIN(image).pixel_values)
    padded = DeiTImageProcessor(do_resize=False, do_center_crop=False, do_pad=True, pad_size=9)
    assert padded(image, pad_size=None).pixel_values.shape == (1, 3, 5, 6)


def test_the_answer_comes_in_every_form() -> None:
    images = [pattern(5, 4), pattern(6, 4)]
    listed = PLAIN(images, return_tensors=None)["pixel_values"]
    assert [array.shape for array in listed] == [(3, 4, 5), (3, 4, 6)]
    last = PLAIN(images[0], data_format="channels_last", return_tensors="np").pixel_values
    assert np.array_equal(last[0], listed[0].transpose(1, 2, 0))
    assert last.flags.c_contiguous
    moved = PLAIN(images[0], device="meta", disable_grouping=True).pixel_values
    assert moved.device.type == "meta"
    with pytest.raises(ConfigError, match="return_tensors"):
        PLAIN(images, return_tensors="tf")  # type: ignore[arg-type]


def test_the_answer_moves_and_casts() -> None:
    answer = BatchFeature({"pixel_values": torch.zeros(1, 3, 2, 2), "labels": torch.ones(1, dtype=torch.int64), "names": "a"})
    assert answer.to(torch.float16) is answer
    assert (answer.pixel_values.dtype, answer.labels.dtype, answer.data["names"]) == (torch.float16, torch.int64, "a")
    assert answer.to("meta", torch.float32).labels.device.type == "meta"
    assert answer.pixel_values.dtype == torch.float32
    assert BatchFeature({"a": [torch.zeros(2)] * 3}).convert_to_tensors("pt").a.shape == (3, 2)
    with pytest.raises(ImageError, match="different sizes"):
        BatchFeature({"a": [np.zeros(2), np.zeros(3)]}, "np")


def test_fractions_stay_fractions_and_are_warned_of() -> None:
    array = np.asarray(pattern(9, 8))
    expected = DeiTImageProcessor()(array).pixel_values
    assert torch.allclose(DeiTImageProcessor()(array / 255, do_rescale=False).pixel_values.float(), expected, atol=0.01)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        dark = DeiTImageProcessor()(array / 255).pixel_values
    assert torch.all(dark < -0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeiTImageProcessor()(array.astype(np.float32))


@pytest.mark.parametrize("array", [np.full((3, 4, 4), -0.5), np.full((3, 4, 4), 256), np.full((3, 4, 4), np.nan)])
def test_what_does_not_fit_8_bits_is_not_resized(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="has values from"):
        DeiTImageProcessor()(array)
    DeiTImageProcessor(do_resize=False)(array)


def test_other_numbers_of_channels_go_with_their_statistics() -> None:
    for channels in (1, 2, 4, 5):
        processor = DeiTImageProcessor(image_mean=[0.5] * channels, image_std=[0.5] * channels)
        array = np.random.default_rng(0).integers(0, 256, (30, 40, channels), dtype=np.uint8)
        values = processor(array).pixel_values
        assert values.shape == (1, channels, 224, 224)
        assert torch.equal(values, processor(array.transpose(2, 0, 1)).pixel_values)
        single = DeiTImageProcessor(image_mean=0.5, image_std=0.5, do_convert_rgb=False)
        if channels in (1, 5):  # with two and four, Pillow takes the last for transparency
            first = single(array[..., :1]).pixel_values
            assert torch.equal(values[:, :1], first)
    with pytest.raises(ConfigError, match="image_mean"):
        DeiTImageProcessor(do_convert_rgb=False)(Image.new("L", (3, 3)))
    with pytest.raises(ImageError, match="input_data_format"):
        DeiTImageProcessor()(np.zeros((6, 7, 2), np.uint8))


def test_statistics_of_three_channels_are_told_to_those_who_undo_them() -> None:
    image = pattern(5, 4)
    several: list[dict[str, Any]] = [{}, {"image_mean": 0.2, "image_std": [0.1, 0.2, 0.3]}, {"do_normalize": False}]
    for fields in several:
        processor = DeiTImageProcessor(**fields)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in processor.rgb_statistics)
        undone = processor(image).pixel_values * std + mean
        assert torch.allclose(undone, processor(image, do_normalize=False).pixel_values, atol=1e-6)
    with pytest.raises(ConfigError, match="1 channels"):
        _ = DeiTImageProcessor(image_mean=[0.5]).rgb_statistics


def test_a_path_is_opened(tmp_path: Path) -> None:
    pattern(9, 8).save(tmp_path / "a.png")
    expected = PLAIN(pattern(9, 8)).pixel_values
    assert torch.equal(PLAIN(str(tmp_path / "a.png")).pixel_values, expected)
    assert torch.equal(PLAIN([tmp_path / "a.png"]).pixel_values, expected)
    with pytest.raises(ImageError, match="does not exist"):
        PLAIN("b.png")


def test_a_damaged_pillow_image_is_an_error_of_ours(tmp_path: Path) -> None:
    pattern(90, 80).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "b.jpg") as image, pytest.raises(ImageError, match="cannot be read"):
        PLAIN(image)


def test_padding_puts_images_of_all_sizes_into_one_batch() -> None:
    images = [pattern(5, 4), pattern(3, 6)]
    together = PLAIN(images, do_pad=True).pixel_values
    assert together.shape == (2, 3, 6, 5)
    assert torch.equal(together[0, :, :4], PLAIN(images[0]).pixel_values[0])
    assert (together[0, :, 4:] == 0).all()
    assert (together[1, :, :, 3:] == 0).all()
    assert PLAIN(images, do_pad=True, pad_size=8).pixel_values.shape == (2, 3, 8, 8)
    with pytest.raises(ImageError, match="larger than pad_size"):
        PLAIN(images, do_pad=True, pad_size=(6, 4))


@pytest.mark.parametrize("shape", [(224, 224), (32, 32), (60, 90)])
@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_each_crop_gives_the_input_size(shape: tuple[int, int], crop: Any) -> None:
    processor = DeiTImageProcessor.for_size(*shape, crop=crop)
    assert processor.input_hw == shape
    for image in (pattern(50, 40), pattern(7, 300), Image.new("RGB", (1, 1))):
        assert processor(image).pixel_values.shape == (1, 3, *shape)
    assert DeiTImageProcessor.for_size(*shape, 0.9).with_crop(crop).input_hw == shape
    assert processor.with_crop(crop) == processor


def test_the_crops_lead_to_one_another() -> None:
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
        with pytest.raises(ConfigError, match="no crop"):
            keep.with_crop(name)  # type: ignore[arg-type]


def test_a_size_that_depends_on_the_image_is_no_input_size() -> None:
    with pytest.raises(ConfigError, match="size of its own"):
        _ = DeiTImageProcessor(size={"shortest_edge": 3}, do_center_crop=False).input_hw
    assert DeiTImageProcessor(image_processor_type="ViTImageProcessor", size=384).input_hw == (384, 384)


@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_the_two_halves_are_the_whole(crop: Any) -> None:
    processor = DeiTImageProcessor.for_size(48, 48, crop=crop)
    images = [pattern(50, 40), pattern(30, 61), pattern(48, 48)]
    halves = processor.normalize([processor.pixels(image) for image in images])
    assert np.array_equal(halves, processor(images, return_tensors="np").pixel_values)
    assert processor.normalize([]).shape == (0, 3, 48, 48)
    alone = processor.normalize(processor.pixels(images[0]))
    assert np.array_equal(alone, halves[0])
    if crop != "pad":
        stacked = np.stack([processor.pixels(image) for image in images])
        assert np.array_equal(processor.normalize(stacked), halves)


def test_files_of_vit_get_the_defaults_of_vit(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    for kind in ({"image_processor_type": "ViTImageProcessorFast"}, {"feature_extractor_type": "ViTFeatureExtractor"}):
        file.write_text(json.dumps({**kind, "size": 384, "do_center_crop": None, "mystery": [1]}))
        processor = DeiTImageProcessor.from_pretrained(tmp_path)
        assert (processor.resample, processor.do_center_crop, processor.input_hw) == (2, False, (384, 384))
        assert processor.to_dict()["mystery"] == [1]
        assert processor.to_dict()["image_processor_type"] == "ViTImageProcessor"
        assert "feature_extractor_type" not in processor.to_dict()
    file.write_text("{}")
    assert DeiTImageProcessor.from_pretrained(tmp_path) == DeiTImageProcessor()
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert DeiTImageProcessor.from_pretrained(tmp_path).size == {"height": 224, "width": 224}


def test_the_nested_file_of_transformers_5_wins(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 100}')
    (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
    assert DeiTImageProcessor.from_pretrained(tmp_path).input_hw == (100, 100)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"crop_size": 90, "do_resize": null}}')
    processor = DeiTImageProcessor.from_pretrained(tmp_path, resample=2)
    assert (processor.input_hw, processor.do_resize, processor.resample) == ((90, 90), True, 2)
    assert DeiTImageProcessor.from_pretrained(tmp_path / "processor_config.json").input_hw == (90, 90)


def test_a_bad_file_and_a_bad_override_are_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 9}')
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json.*resample"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do_resise"):
        DeiTImageProcessor.from_pretrained(tmp_path, do_resise=True)
    with pytest.raises(CheckpointError):
        DeiTImageProcessor.from_pretrained(tmp_path / "missing", local_files_only=True)


def test_a_subfolder_and_the_hub_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DeiTImageProcessor(crop_size=40).save_pretrained(tmp_path / "part")
    assert DeiTImageProcessor.from_pretrained(tmp_path, subfolder="part", revision="main").input_hw == (40, 40)
    asked: dict[str, Any] = {}

    def fetch(name: str, files: Any, **options: Any) -> Path:
        asked.update(options, name=name, files=files)
        return tmp_path / "part"

    monkeypatch.setattr(image_processor, "fetch", fetch)
    assert DeiTImageProcessor.from_pretrained("facebook/x", revision="abc", token="t", do_pad=True).do_pad
    assert (asked["name"], asked["revision"], asked["token"]) == ("facebook/x", "abc", "t")
    assert "preprocessor_config.json" in (*asked["files"], *asked["optional"])
