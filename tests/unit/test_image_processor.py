"""Image -> pixel_values: sizes, values, the forms of input, and the JSON."""

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
from deit.image_processor import DeiTFeatureExtractor, DeiTImageProcessor
from tests.helpers import pattern

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


def test_values_are_rescaled_and_normalised_by_channel() -> None:
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
        array.astype(np.float64) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
        torch.from_numpy(array.copy()).float().requires_grad_(),
        array.astype(np.int64),
        [image],
        (array,),
        array[None],
    ]
    for form in forms:
        assert torch.equal(DeiTImageProcessor()(form).pixel_values, expected)


def test_grey_and_transparent_arrays_become_colours() -> None:
    grey = np.full((4, 5), 128, np.uint8)
    expected = PLAIN(Image.new("RGB", (5, 4), (128, 128, 128))).pixel_values
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    for form in (grey, grey[..., None], grey[None], Image.fromarray(grey)):
        assert torch.equal(PLAIN(form).pixel_values, expected)
    assert torch.equal(PLAIN(clear).pixel_values, torch.ones(1, 3, 4, 5))  # on white


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
        "a.png",
        b"bytes",
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
    assert loaded.model_dump(exclude={"image_processor_type"}) == processor.model_dump()


def test_the_published_checkpoints_files_are_read(tmp_path: Path) -> None:
    published = {  # facebook/deit-base-distilled-patch16-384, an old form with bare numbers
        "crop_size": 384,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 438,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    processor = DeiTImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 438, "width": 438}
    assert processor(pattern(20, 30)).pixel_values.shape == (1, 3, 384, 384)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": {"height": 3}}, "size takes"),
        ({"size": {"longest_edge": 3}}, "size takes"),
        ({"size": 0}, "size"),
        ({"size": "large"}, "size"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size takes"),
        ({"crop_size": 10**9}, "crop_size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
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
    high = (1 - processor.image_mean[0]) / processor.image_std[0]
    assert torch.allclose(values[0, 0], torch.tensor(high), atol=1e-5)  # one colour stays one colour
