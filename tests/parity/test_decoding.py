"""The predictor's fast decoding and resizing compared with the image processor: within the documented bounds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from deit.images import decoding as image_decoding
from deit.images.crops import Crop
from deit.images.decoding import open_image
from deit.images.processor import DeiTImageProcessor
from deit.inference import decoding
from deit.inference.decoding import fast_pixels


def encoded(image: Image.Image, format_name: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, quality=92)
    return file.getvalue()


def photograph(width: int, height: int, name: str = "china.jpg") -> Image.Image:
    return Image.fromarray(load_sample_image(name)).resize((width, height), Image.Resampling.LANCZOS)


def difference(processor: DeiTImageProcessor, file: bytes) -> np.ndarray:
    fast, exact = fast_pixels(processor, file), processor.pixels(open_image(file))
    assert fast.shape == exact.shape and fast.dtype == exact.dtype == np.uint8
    absolute: np.ndarray = np.abs(fast.astype(int) - exact)
    return absolute


SIZES = [(500, 375), (375, 500), (640, 427), (300, 257), (224, 224), (256, 256), (64, 48), (1000, 800), (230, 700)]
FILTERS = [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_resize_differs_by_at_most_one_level_in_few_values(size: tuple[int, int], resample: int, crop: Crop) -> None:
    processor = DeiTImageProcessor.for_size(224, 224, crop=crop)
    processor.resample = int(resample)
    differences = difference(processor, encoded(photograph(*size)))
    assert differences.max() <= 1
    assert (differences > 0).mean() < 0.005


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 80), st.integers(1, 80), st.sampled_from(FILTERS))
def test_resize_from_any_size_to_any_size(width: int, height: int, to_height: int, to_width: int, resample: int) -> None:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    processor = DeiTImageProcessor(size=(to_height, to_width), do_center_crop=False, resample=int(resample))
    differences = difference(processor, encoded(Image.fromarray(noise)))
    assert differences.max() <= 1
    assert (differences > 0).sum() <= max(3, 0.01 * differences.size)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(("size", "bound"), [((800, 600), 1.5), ((1600, 1200), 0.8), ((3000, 2250), 0.6)])
def test_reduced_decoding_of_a_large_jpeg_is_within_the_bound(name: str, size: tuple[int, int], bound: float) -> None:
    differences = difference(DeiTImageProcessor.for_size(224, 224), encoded(photograph(*size, name), "JPEG"))
    assert 0 < differences.mean() < bound


def test_small_jpeg_is_decoded_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(photograph(500, 375), "JPEG")
    assert difference(DeiTImageProcessor.for_size(224, 224), file).max() <= 1
    monkeypatch.setattr(image_decoding, "OVERSAMPLING", 1.0)
    small = encoded(photograph(520, 520), "JPEG")
    assert difference(DeiTImageProcessor.for_size(224, 224), small).max() > 1  # the test above depends on the oversampling


def test_other_cases_use_the_exact_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_resize_by_products", lambda *_: pytest.fail("resized"))
    large = encoded(Image.new("RGB", (2000, 1200), "red"))
    small = encoded(Image.new("RGB", (30, 20), "red"))
    assert difference(DeiTImageProcessor.for_size(224, 224), large).max() == 0
    assert difference(DeiTImageProcessor(size=(20, 20), crop_size=(30, 30)), small).max() == 0
    for resample in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR):
        processor = DeiTImageProcessor(size=(20, 20), crop_size=(10, 10), resample=int(resample))
        assert difference(processor, small).max() == 0
    assert difference(DeiTImageProcessor(do_resize=False, crop_size=(10, 10)), small).max() == 0


def test_exif_orientation_is_applied() -> None:
    image = photograph(900, 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, exif=exif)
    assert difference(DeiTImageProcessor.for_size(224, 224), file.getvalue()).mean() < 1.5


def test_matrix_products_are_too_small_for_openblas_threads() -> None:
    for length, target in ((500, 341), (1500, 256), (1000, 1000), (64, 256)):
        for _, _, weights in decoding._plan_axis(length, length, target, min(target, 224), 3).blocks:
            step = max(1, decoding.MAX_PRODUCT_SIZE // weights.size)
            assert weights.size * step <= 65_536 * 4
