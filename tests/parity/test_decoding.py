"""Files as the predictor reads them beside what the image processor makes of them: within the bounds that are stated."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from deit.images import decoding as image_decoding
from deit.images.decoding import open_image
from deit.images.processor import Crop, DeiTImageProcessor
from deit.inference import decoding
from deit.inference.decoding import near_pixels


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form, quality=92)
    return file.getvalue()


def photograph(width: int, height: int, name: str = "china.jpg") -> Image.Image:
    return Image.fromarray(load_sample_image(name)).resize((width, height), Image.Resampling.LANCZOS)


def difference(processor: DeiTImageProcessor, file: bytes) -> np.ndarray:
    near, exact = near_pixels(processor, file), processor.pixels(open_image(file))
    assert near.shape == exact.shape and near.dtype == exact.dtype == np.uint8
    apart: np.ndarray = np.abs(near.astype(int) - exact)
    return apart


SIZES = [(500, 375), (375, 500), (640, 427), (300, 257), (224, 224), (256, 256), (64, 48), (1000, 800), (230, 700)]
FILTERS = [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_a_resize_is_within_a_level_and_hardly_ever_off(size: tuple[int, int], resample: int, crop: Crop) -> None:
    processor = DeiTImageProcessor.for_size(224, 224, crop=crop)
    processor.resample = int(resample)
    apart = difference(processor, encoded(photograph(*size)))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.005


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 80), st.integers(1, 80), st.sampled_from(FILTERS))
def test_any_size_to_any_other(width: int, height: int, to_height: int, to_width: int, resample: int) -> None:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    processor = DeiTImageProcessor(size=(to_height, to_width), do_center_crop=False, resample=int(resample))
    apart = difference(processor, encoded(Image.fromarray(noise)))
    assert apart.max() <= 1
    assert (apart > 0).sum() <= max(3, 0.01 * apart.size)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(("size", "bound"), [((800, 600), 1.5), ((1600, 1200), 0.8), ((3000, 2250), 0.6)])
def test_a_large_jpeg_is_decoded_smaller_within_the_bound(name: str, size: tuple[int, int], bound: float) -> None:
    apart = difference(DeiTImageProcessor.for_size(224, 224), encoded(photograph(*size, name), "JPEG"))
    assert 0 < apart.mean() < bound


def test_a_jpeg_that_is_not_large_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(photograph(500, 375), "JPEG")
    assert difference(DeiTImageProcessor.for_size(224, 224), file).max() <= 1
    monkeypatch.setattr(image_decoding, "OVERSAMPLING", 1.0)
    small = encoded(photograph(520, 520), "JPEG")
    assert difference(DeiTImageProcessor.for_size(224, 224), small).max() > 1  # so that the oversampling matters


def test_what_the_products_are_not_for_goes_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_resized", lambda *_: pytest.fail("resized"))
    large = encoded(Image.new("RGB", (2000, 1200), "red"))
    small = encoded(Image.new("RGB", (30, 20), "red"))
    assert difference(DeiTImageProcessor.for_size(224, 224), large).max() == 0
    assert difference(DeiTImageProcessor(size=(20, 20), crop_size=(30, 30)), small).max() == 0
    for resample in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR):
        processor = DeiTImageProcessor(size=(20, 20), crop_size=(10, 10), resample=int(resample))
        assert difference(processor, small).max() == 0
    assert difference(DeiTImageProcessor(do_resize=False, crop_size=(10, 10)), small).max() == 0


def test_a_turned_photo_is_upright() -> None:
    image = photograph(900, 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, exif=exif)
    assert difference(DeiTImageProcessor.for_size(224, 224), file.getvalue()).mean() < 1.5


def test_products_stay_below_the_size_at_which_openblas_starts_threads() -> None:
    for length, target in ((500, 341), (1500, 256), (1000, 1000), (64, 256)):
        for _, _, weights in decoding._pass(length, length, target, min(target, 224), 3).blocks:
            step = max(1, decoding.SERIAL // weights.size)
            assert weights.size * step <= 65_536 * 4
