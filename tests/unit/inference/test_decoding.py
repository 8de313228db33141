"""Fast decoding: kinds of sources, reduced JPEGs, and the weights of the resize. Its accuracy is tested in tests/parity."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit.errors import ImageError
from deit.images.decoding import EncodedImage
from deit.images.processor import DeiTImageProcessor
from deit.inference import decoding
from deit.inference.decoding import fast_pixels
from tests.helpers import pattern

BICUBIC = int(Image.Resampling.BICUBIC)


def encode(image: Image.Image, format_name: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name)
    return file.getvalue()


def test_path_and_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    processor = DeiTImageProcessor.for_size(32, 24)
    content = encode(pattern(90, 60), "PNG")
    (tmp_path / "an image.png").write_bytes(content)
    pixels = fast_pixels(processor, content)
    assert pixels.shape == (32, 24, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(fast_pixels(processor, tmp_path / "an image.png"), pixels)


def test_unreadable_image_is_an_error(tmp_path: Path) -> None:
    for source in (b"rubbish", encode(pattern(90, 60), "JPEG")[:200], tmp_path / "nothing here.jpg"):
        with pytest.raises(ImageError):
            fast_pixels(DeiTImageProcessor.for_size(32, 32), source)


@pytest.mark.parametrize(("side", "reduction"), [(500, 8), (300, 4), (150, 2), (80, 1)])
def test_large_jpeg_is_decoded_at_a_reduced_size(side: int, reduction: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reductions = []
    decode = EncodedImage.decode

    def recording_decode(image: EncodedImage, reduction: int = 1) -> Image.Image:
        reductions.append(reduction)
        return decode(image, reduction)

    monkeypatch.setattr(EncodedImage, "decode", recording_decode)
    processor = DeiTImageProcessor(size=(40, 40), do_center_crop=False)
    assert fast_pixels(processor, encode(pattern(side, side), "JPEG")).shape == (40, 40, 3)
    assert reductions == [reduction]


def test_weights_of_a_resize() -> None:
    plan = decoding._plan_axis(100, 100, 40, 30, BICUBIC)
    assert plan.length == sum(len(weights) for _, _, weights in plan.blocks) == 30
    for outputs, inputs, weights in plan.blocks:
        assert weights.shape == (outputs.stop - outputs.start, inputs.stop - inputs.start)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_resize_to_the_same_size_changes_nothing() -> None:
    processor = DeiTImageProcessor(size=(33, 47), do_center_crop=False)
    image = pattern(47, 33)
    np.testing.assert_array_equal(fast_pixels(processor, encode(image, "PNG")), np.asarray(image))
