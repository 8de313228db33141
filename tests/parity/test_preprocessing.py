"""Preprocessing compared with transformers and timm: equal pixels and equal normalized values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from deit.images.arrays import resize_and_crop
from deit.images.crops import IMAGENET_MEAN, IMAGENET_STD
from deit.images.decoding import open_image
from deit.images.processor import DeiTImageProcessor
from deit.images.resizing import _pass_order_is_known
from deit.inference.decoding import fast_pixels
from tests.helpers import pattern

# Aspect ratios below 16384 / 438, beyond which the longer side is clamped, unlike in transformers.
SIZES = [(224, 224), (256, 256), (500, 375), (375, 500), (61, 47), (1, 1), (3, 90), (198, 6), (257, 225), (640, 427)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)
SETTINGS: dict[str, dict[str, Any]] = {
    "squash": {},
    "squash to 438": {"size": {"height": 438, "width": 438}, "crop_size": {"height": 384, "width": 384}},
    "shortest edge": {"size": {"shortest_edge": 256}, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)},
    "no crop": {"do_center_crop": False},
    "crop alone": {"do_resize": False},
    "bilinear": {"resample": 2},
    "longest edge": {"size": {"shortest_edge": 200, "longest_edge": 260}},
    "pad": {
        "size": {"max_height": 224, "max_width": 224},
        "do_center_crop": False,
        "do_pad": True,
        "pad_size": {"height": 224, "width": 224},
    },
}
each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@each_setting
@each_size
def test_pixels_match_transformers(size: tuple[int, int], setting: dict[str, Any]) -> None:
    image = pattern(*size)
    ours, theirs = DeiTImageProcessor(**setting), DeiTImageProcessorPil(**setting)
    raw = theirs(image, do_rescale=False, do_normalize=False, do_pad=False, return_tensors="np")["pixel_values"]
    assert np.array_equal(ours.pixels(image), raw[0].transpose(1, 2, 0))


@each_setting
@pytest.mark.parametrize("size", SIZES[2:5], ids=str)
def test_values_match_transformers(size: tuple[int, int], setting: dict[str, Any]) -> None:
    images = [pattern(*size, seed=seed) for seed in range(2)]
    theirs = DeiTImageProcessorPil(**setting)(images, return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessor(**setting)(images)["pixel_values"]
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


def test_files_are_interchangeable_with_transformers(tmp_path: Path) -> None:
    image = pattern(300, 200)
    for setting in SETTINGS.values():
        DeiTImageProcessor(**setting).save_pretrained(tmp_path / "ours")
        DeiTImageProcessorPil(**setting).save_pretrained(tmp_path / "theirs")
        expected = DeiTImageProcessor(**setting)(image).pixel_values
        read = DeiTImageProcessorPil.from_pretrained(tmp_path / "ours")(image, return_tensors="pt")["pixel_values"]
        back = DeiTImageProcessor.from_pretrained(tmp_path / "theirs")(image).pixel_values
        assert torch.equal(read, expected)
        assert torch.equal(back, expected)


def test_auto_image_processor_loads_our_file(tmp_path: Path) -> None:
    DeiTImageProcessor.for_size(384, 384).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert type(processor).__name__ == "CLIPImageProcessor"  # the DeiTImageProcessor of 4.x does not know shortest_edge
    image = pattern(500, 375)  # an even difference: transformers rounds the offset of an odd center crop down
    values = processor(image, return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessor.for_size(384, 384)(image).pixel_values
    assert (values - ours).abs().mean() < 0.02  # transformers resizes tensors by default, not images


EVERY_SIZE = [(width, height) for width in range(224, 246, 2) for height in range(200, 240, 2)]  # 220 sizes, all roundings


def released_evaluation(edge: int, crop: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(edge, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


@each_size
@pytest.mark.parametrize(("edge", "crop"), [(256, 224), (438, 384)])
def test_evaluation_matches_the_released_code(size: tuple[int, int], edge: int, crop: int) -> None:
    image = pattern(*size)
    ours = DeiTImageProcessor.for_size(crop, crop)(image).pixel_values[0]
    assert torch.allclose(ours, released_evaluation(edge, crop)(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["Pillow", "array", "file"])
def test_crop_of_every_size_is_that_of_torchvision(kind: str, tmp_path: Path) -> None:
    ours = DeiTImageProcessor.for_size(28, 28)
    for width, height in EVERY_SIZE:
        image = pattern(width // 4, height // 4)
        theirs = released_evaluation(32, 28)(image)
        if kind == "file":
            image.save(tmp_path / "image.png")
            pixels = fast_pixels(ours, tmp_path / "image.png")
            difference = np.abs(pixels.astype(int) - ours.pixels(image))
            assert difference.max() <= 1, (width, height)
            continue
        values = ours(image if kind == "Pillow" else np.asarray(image)).pixel_values[0]
        assert torch.allclose(values, theirs, atol=1e-6, rtol=0), (width, height)


def test_crop_of_every_size_is_that_of_transformers_where_their_file_is_read(tmp_path: Path) -> None:
    setting: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    DeiTImageProcessorPil(**setting).save_pretrained(tmp_path)
    ours, theirs = DeiTImageProcessor.from_pretrained(tmp_path), DeiTImageProcessorPil(**setting)
    for width, height in EVERY_SIZE:
        image = pattern(width // 4, height // 4)
        assert torch.equal(ours(image).pixel_values, theirs(image, return_tensors="pt")["pixel_values"]), (width, height)


def test_sizes_include_both_roundings_of_the_center() -> None:
    offsets = [int(28 * max(size) / min(size)) - 28 for size in EVERY_SIZE]
    assert {offset % 4 for offset in offsets} == {0, 1, 2, 3}


def test_evaluation_matches_timm() -> None:
    data: Any = timm.data  # untyped
    theirs = data.create_transform(
        224, is_training=False, interpolation="bicubic", crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    for size in [(500, 372), (500, 375), (331, 500)]:
        image = pattern(*size)
        assert torch.allclose(DeiTImageProcessor.for_size(224, 224)(image).pixel_values[0], theirs(image), atol=1e-6, rtol=0)


def test_files_of_each_format_match_transformers(photo_folder: Path) -> None:
    """Only formats that transformers reads without compositing transparency onto black."""
    files = [path for path in sorted(photo_folder.rglob("*")) if path.suffix in {".JPG", ".jpeg", ".tif"}]
    assert len(files) == 9
    for path in files:
        with Image.open(path) as image:
            exif = image.getexif().get(0x0112, 1)
            upright = image.convert("RGB")
        if exif == 6:
            upright = upright.transpose(Image.Transpose.ROTATE_270)  # transformers does not apply the orientation
        theirs = DeiTImageProcessorPil()(upright, return_tensors="pt")["pixel_values"]
        assert torch.equal(DeiTImageProcessor()(open_image(path)).pixel_values, theirs)


def matches(image: Any, ours: DeiTImageProcessor, theirs: Any, **call: Any) -> bool:
    """Whether both outputs have equal values and types, or theirs raises an error."""
    convert = {"do_convert_rgb": True, **call}
    try:
        expected = theirs(image, return_tensors="np", **convert)["pixel_values"]
    except (ValueError, TypeError, OSError):
        return True
    output = ours(image, return_tensors="np", **convert)["pixel_values"]
    return output.dtype == expected.dtype and np.array_equal(output, expected)


def convert_mode(mode: str, image: Image.Image) -> Image.Image:
    """Converts an image to another mode, with transparency if the mode supports it."""
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3)
    if mode in ("P, clear", "RGB, clear", "L, clear"):
        converted = image.quantize(9) if mode[0] == "P" else image.convert(mode.split(",")[0])
        converted.info["transparency"] = {"P": 3, "R": (0, 0, 0), "L": 0}[mode[0]]
        return converted
    if mode in ("RGBA", "LA", "RGBa", "PA"):
        layered = image.convert("RGBA")
        layered.putalpha(image.convert("L"))
        return layered.convert("LA").convert(mode) if mode == "PA" else layered.convert(mode)
    return image.convert("RGB").convert(mode)


MODES = [
    "RGB",
    "L",
    "1",
    "P",
    "P, clear",
    "RGB, clear",
    "L, clear",
    "RGBA",
    "LA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "I",
    "F",
    "I;16",
]


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_of_pillow_matches_transformers(mode: str, convert: bool) -> None:
    image = convert_mode(mode, pattern(61, 47))
    channels = 3 if convert else np.atleast_3d(np.asarray(image)).shape[-1]
    statistics: dict[str, Any] = {"image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    ours, theirs = DeiTImageProcessor(**statistics), DeiTImageProcessorPil(**statistics)
    for call in ({}, {"do_resize": False}, {"do_rescale": False}, {"do_normalize": False}, {"crop_size": 33}):
        assert matches(image, ours, theirs, **call, do_convert_rgb=convert), call
    theirs(image, do_convert_rgb=convert, do_resize=False)  # does not raise an error: the outputs above were compared


ARRAYS: dict[str, np.ndarray] = {
    "fractions": np.asarray(pattern(40, 30)) / 255,
    "fractions of 32 bits": np.asarray(pattern(40, 30)).astype(np.float32) / np.float32(255),
    "fractions of 16 bits": (np.asarray(pattern(40, 30)) / 255).astype(np.float16),
    "floats": np.asarray(pattern(40, 30)).astype(np.float32),
    "integers": np.asarray(pattern(40, 30)).astype(np.int64),
    "16 bits": np.asarray(pattern(40, 30)).astype(np.uint16) * 257,
    "booleans": np.asarray(pattern(40, 30)) > 99,
    "zeros and ones": (np.asarray(pattern(40, 30)) > 99).astype(np.float64),
    "channels first": np.asarray(pattern(40, 30)).transpose(2, 0, 1),
    "gray": np.asarray(pattern(40, 30))[..., :1],
    "transparent": np.dstack([np.asarray(pattern(40, 30)), np.asarray(pattern(40, 30, 1))[..., :1]]),
    "transparent fractions": np.dstack([np.asarray(pattern(40, 30)), np.asarray(pattern(40, 30, 1))[..., 0]]) / 255,
    "ambiguous layout": np.asarray(pattern(3, 3)),
    "a batch": np.stack([np.asarray(pattern(40, 30, seed)) for seed in range(3)]),
}


@pytest.mark.filterwarnings("ignore:An image of floats")
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_tensors_match_transformers(kind: str) -> None:
    array = ARRAYS[kind]
    for call in ({}, {"do_resize": False}, {"do_rescale": False}, {"do_normalize": False}, {"crop_size": 301}):
        for convert in (True, False):
            assert matches(array, DeiTImageProcessor(), DeiTImageProcessorPil(), **call, do_convert_rgb=convert), call
        assert matches(torch.tensor(array), DeiTImageProcessor(), DeiTImageProcessorPil(), **call), call
        several = [array, array] if array.ndim == 4 else [[array, array], [array]]
        assert matches(several, DeiTImageProcessor(), DeiTImageProcessorPil(), **call), call
    unnormalized = {"do_rescale": False, "do_normalize": False}
    assert matches(array, DeiTImageProcessor(), DeiTImageProcessorPil(), **unnormalized)
    assert matches(array, DeiTImageProcessor(), DeiTImageProcessorPil(), **unnormalized, do_resize=False)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_explicit_layout_matches_transformers(channels: int, layout: str) -> None:
    array = np.random.default_rng(channels).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    array = array[:channels] if layout == "channels_first" else array[..., :channels]
    count = array.shape[0 if layout == "channels_first" else -1]
    call: dict[str, Any] = {"image_mean": [0.5] * count, "image_std": [0.2] * count, "do_convert_rgb": False}
    assert matches(array, DeiTImageProcessor(), DeiTImageProcessorPil(), **call, input_data_format=layout)


def test_list_of_arrays_matches_transformers() -> None:
    images = [pattern(40, 30), pattern(20, 31)]
    settings: dict[str, Any] = {"do_resize": False, "do_center_crop": False}
    overrides: list[dict[str, Any]] = [{}, {"do_pad": True}]
    for override in overrides:
        theirs = DeiTImageProcessorPil()(images, **settings, **override)["pixel_values"]
        ours = DeiTImageProcessor()(images, return_tensors=None, **settings, **override)["pixel_values"]
        assert len(ours) == len(theirs)
        assert all(map(np.array_equal, ours, theirs))


SIDES = st.integers(1, 90) | st.sampled_from([1, 2, 128, 223, 225, 256, 375, 500, 512, 640, 1500])
TARGETS = st.integers(1, 70) | st.sampled_from([64, 128, 256])


@st.composite
def processor_settings(draw: st.DrawFn) -> dict[str, Any]:
    edge, other = draw(TARGETS), draw(TARGETS)
    sizes: list[dict[str, int]] = [
        {"height": edge, "width": other},
        {"height": edge, "width": edge},
        {"shortest_edge": edge},
        {"shortest_edge": edge, "longest_edge": edge + other},
        {"max_height": edge, "max_width": other},
    ]
    crop = draw(st.integers(1, 80) | st.just(max(edge * 7 // 8, 1)))
    fields: dict[str, Any] = {"size": draw(st.sampled_from(sizes)), "crop_size": {"height": crop, "width": draw(TARGETS)}}
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"):
        fields[name] = draw(st.sampled_from([True, True, True, False]) if name != "do_pad" else st.booleans())
    fields["pad_size"] = {"height": draw(st.integers(1, 200)), "width": 200}
    fields["resample"] = draw(st.integers(0, 5))
    fields["rescale_factor"] = draw(st.sampled_from([1 / 255, 1 / 127.5, 0.1]))
    fields["image_mean"] = draw(st.sampled_from([0.5, list(IMAGENET_MEAN), [0.0, 0.1, 0.7]]))
    fields["image_std"] = draw(st.sampled_from([0.5, list(IMAGENET_STD), [1.0, 0.3, 2.0]]))
    return fields


@given(SIDES, SIDES, st.sampled_from(MODES), processor_settings())
@settings(max_examples=500, deadline=None)
def test_any_image_and_settings_match_transformers(width: int, height: int, mode: str, fields: dict[str, Any]) -> None:
    if width * height > 250_000:
        height = max(250_000 // width, 1)
    if max(width, height) * 256 > 16_384 * min(width, height) and "shortest_edge" in fields["size"]:
        height = width  # otherwise our longer side is clamped
    image = convert_mode(mode, pattern(width, height))
    assert matches(image, DeiTImageProcessor(**fields), DeiTImageProcessorPil(**fields))


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([64, 96, 128, 256, 341, 438]), st.integers(1, 5))
@settings(max_examples=120, deadline=None)
def test_resize_for_a_crop_matches_resizing_the_whole_image(width: int, height: int, edge: int, resample: int) -> None:
    """For both orders of Pillow's passes, and for resize steps that are and are not exact in float32."""
    image = pattern(width, height)
    crop = int(edge * 0.875)
    for target in ((edge, edge), (edge, edge * 4 // 3), (edge * 4 // 3, edge)):
        resized = image.resize(target[::-1], resample)
        top, left = (target[0] - crop) // 2, (target[1] - crop) // 2
        expected = np.asarray(resized.crop((left, top, left + crop, top + crop)))
        assert np.array_equal(resize_and_crop(image, target, (crop, crop), resample), expected)


def test_order_of_pillows_passes_is_known() -> None:
    assert _pass_order_is_known()  # otherwise the output is the same, but slower


@pytest.mark.parametrize("crop", ["keep", "squash", "pad"])
def test_each_crop_matches_transformers(tmp_path: Path, crop: Any) -> None:
    DeiTImageProcessor.for_size(224, 224, crop=crop).save_pretrained(tmp_path)
    for size in SIZES[2:5]:
        ours = DeiTImageProcessor.from_pretrained(tmp_path)(pattern(*size)).pixel_values
        theirs = DeiTImageProcessorPil.from_pretrained(tmp_path)(pattern(*size), return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, theirs)
        automatic = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")  # type: ignore[no-untyped-call]
        assert torch.equal(ours, automatic(pattern(*size), return_tensors="pt")["pixel_values"])


def test_vit_file_matches_vit(tmp_path: Path) -> None:
    ViTImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(tmp_path)
    ours, theirs = DeiTImageProcessor.from_pretrained(tmp_path), ViTImageProcessorPil.from_pretrained(tmp_path)
    assert matches(pattern(50, 40), ours, theirs)
    ours.save_pretrained(tmp_path / "again")
    automatic = AutoImageProcessor.from_pretrained(tmp_path / "again", backend="pil")  # type: ignore[no-untyped-call]
    assert type(automatic) is ViTImageProcessorPil
    assert matches(pattern(50, 40), ours, automatic)
    assert matches(pattern(50, 40), DeiTImageProcessor(image_processor_type="ViTImageProcessor"), ViTImageProcessorPil())
