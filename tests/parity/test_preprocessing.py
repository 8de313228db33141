"""Preprocessing against transformers' and timm's: the same pixels, then the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from deit.image_processor import IMAGENET_MEAN, IMAGENET_STD, DeiTImageProcessor
from deit.images import open_image
from tests.helpers import pattern

# Beyond an aspect of 16384 / 438 the longer side is bounded, and ours is its own.
SIZES = [(224, 224), (256, 256), (500, 375), (375, 500), (61, 47), (1, 1), (3, 90), (198, 6), (257, 225), (640, 427)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
SETTINGS: dict[str, dict[str, Any]] = {
    "squash": {},
    "squash to 438": {"size": {"height": 438, "width": 438}, "crop_size": {"height": 384, "width": 384}},
    "shortest edge": {"size": {"shortest_edge": 256}, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)},
    "no crop": {"do_center_crop": False},
    "crop alone": {"do_resize": False},
    "bilinear": {"resample": 2},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@every_setting
@every_size
def test_the_pixels_are_those_of_transformers(size: tuple[int, int], settings: dict[str, Any]) -> None:
    image = pattern(*size)
    ours, theirs = DeiTImageProcessor(**settings), DeiTImageProcessorPil(**settings)
    raw = theirs(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    assert np.array_equal(ours.pixels(image), raw[0].transpose(1, 2, 0))


@every_setting
@pytest.mark.parametrize("size", SIZES[2:5], ids=str)
def test_the_values_are_those_of_transformers(size: tuple[int, int], settings: dict[str, Any]) -> None:
    images = [pattern(*size, seed=seed) for seed in range(2)]
    theirs = DeiTImageProcessorPil(**settings)(images, return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessor(**settings)(images)["pixel_values"]
    assert ours.dtype == theirs.dtype
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


def test_each_side_reads_the_others_file(tmp_path: Path) -> None:
    image = pattern(300, 200)
    for settings in SETTINGS.values():
        DeiTImageProcessor(**settings).save_pretrained(tmp_path / "ours")
        DeiTImageProcessorPil(**settings).save_pretrained(tmp_path / "theirs")
        expected = DeiTImageProcessor(**settings)(image).pixel_values
        read = DeiTImageProcessorPil.from_pretrained(tmp_path / "ours")(image, return_tensors="pt")["pixel_values"]
        back = DeiTImageProcessor.from_pretrained(tmp_path / "theirs")(image).pixel_values
        assert torch.allclose(read, expected, atol=1e-6)
        assert torch.equal(back, expected)


def test_the_automatic_class_finds_our_file(tmp_path: Path) -> None:
    DeiTImageProcessor.for_size(384, 384).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert type(processor).__name__.startswith("DeiTImageProcessor")
    values = processor(pattern(500, 400), return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessor.for_size(384, 384)(pattern(500, 400)).pixel_values
    assert (values - ours).abs().mean() < 0.02  # theirs resizes tensors by default, not images


def cropped_alike(size: tuple[int, int], edge: int, crop: int) -> bool:
    """torchvision rounds the middle of an odd difference to even, transformers and we round it down."""
    longer = edge * max(size) // min(size)
    return all((side - crop) % 4 != 3 for side in (edge, longer))


@every_size
@pytest.mark.parametrize(("edge", "crop"), [(256, 224), (438, 384)])
def test_the_evaluation_is_that_of_the_released_code(size: tuple[int, int], edge: int, crop: int) -> None:
    image = pattern(*size)
    theirs = transforms.Compose(
        [
            transforms.Resize(edge, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )(image)
    ours = DeiTImageProcessor.for_size(crop, crop)(image).pixel_values[0]
    if cropped_alike(size, edge, crop):
        assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    else:  # the same pixels, one to the side
        moved = (1, 0) if size[0] < size[1] else (0, 1)
        assert torch.allclose(
            ours[:, moved[0] :, moved[1] :], theirs[:, : crop - moved[0], : crop - moved[1]], atol=1e-6, rtol=0
        )


def test_both_ways_of_rounding_the_middle_are_among_the_sizes() -> None:
    alike = [cropped_alike(size, edge, crop) for size in SIZES for edge, crop in ((256, 224), (438, 384))]
    assert 0 < alike.count(False) < alike.count(True)


def test_the_evaluation_is_that_of_timm() -> None:
    data: Any = timm.data  # untyped
    theirs = data.create_transform(
        224, is_training=False, interpolation="bicubic", crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    image = pattern(500, 372)
    assert cropped_alike(image.size, 256, 224)
    assert torch.allclose(DeiTImageProcessor.for_size(224, 224)(image).pixel_values[0], theirs(image), atol=1e-6, rtol=0)


def test_files_of_every_kind_come_out_as_in_transformers(photo_folder: Path) -> None:
    """For those kinds that transformers reads at all; what is transparent it lays on black."""
    files = [path for path in sorted(photo_folder.rglob("*")) if path.suffix in {".JPG", ".jpeg", ".tif"}]
    assert len(files) == 9
    for path in files:
        with Image.open(path) as image:
            exif = image.getexif().get(0x0112, 1)
            plain = image.convert("RGB")
        if exif == 6:
            plain = plain.transpose(Image.Transpose.ROTATE_270)  # transformers does not turn by itself
        theirs = DeiTImageProcessorPil()(plain, return_tensors="pt")["pixel_values"]
        assert torch.allclose(DeiTImageProcessor()(open_image(path)).pixel_values, theirs, atol=1e-6)
