"""The test whether horizontally flipped images still look like their class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deit.data.datasets.folders import folder_source
from deit.data.mirror import MirrorTest, edge_features, mirror_test
from deit.data.opening import open_data
from deit.images.decoding import EncodedImage
from tests.unit.data.layouts import image_files


@dataclass
class Strokes:
    """Images of strokes that rise to the right, steeply, gently or not at all; ``mirrored`` flips half of each class."""

    mirrored: bool
    classes: tuple[str, ...] = ("steep", "gentle", "level")

    @property
    def labels(self) -> np.ndarray:
        return np.arange(300) // 2 % 3

    def load(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        image = Image.new("RGB", (40, 40), (60, 60, 60))
        rise = {0: 14, 1: 7, 2: 0}[int(self.labels[index])]
        sign = -1 if self.mirrored and rng.random() < 0.5 else 1
        x, y = rng.integers(16, 24, 2)
        ImageDraw.Draw(image).line((x - 10, y + sign * rise, x + 10, y - sign * rise), (200, 200, 200), 3)
        return image

    def name(self, index: int) -> str:
        return str(index)


def test_strokes_in_one_direction_differ_when_flipped() -> None:
    assert not mirror_test(Strokes(mirrored=False)).flip_invariant


def test_strokes_in_both_directions_do_not_differ_when_flipped() -> None:
    result = mirror_test(Strokes(mirrored=True))
    assert result.flip_invariant
    assert result.upright > 0.6 * result.tried


def test_digits_differ_when_flipped() -> None:
    result = mirror_test(open_data("digits").train)
    assert not result.flip_invariant
    assert "when flipped" in str(result)


def test_difference_within_chance_is_not_significant() -> None:
    assert MirrorTest(upright=30, mirrored=22, tried=700, changed=40).flip_invariant
    assert not MirrorTest(upright=70, mirrored=22, tried=700, changed=60).flip_invariant


@pytest.mark.parametrize("brightness", [0.5, 2.0])
def test_edge_features_do_not_depend_on_brightness(brightness: float) -> None:
    pixels = np.random.default_rng(0).uniform(0, 100, (2, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(edge_features(pixels), edge_features(brightness * pixels), atol=1e-5)


def test_large_images_are_decoded_at_a_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        for name, center in (("a", (300, 200)), ("b", (100, 200))):
            image = Image.new("RGB", (400, 400))
            ImageDraw.Draw(image).ellipse((center[0] - 50, center[1] - 50, center[0] + 50, center[1] + 50), (number + 200,) * 3)
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{number}.jpg")
    reductions = []
    decode = EncodedImage.decode

    def recorded(image: EncodedImage, reduction: int = 1) -> Image.Image:
        reductions.append(reduction)
        return decode(image, reduction)

    monkeypatch.setattr(EncodedImage, "decode", recorded)
    result = mirror_test(folder_source(tmp_path))
    assert reductions == [8] * 24
    assert (result.upright, result.mirrored) == (result.tried, 0) == (12, 0)
    monkeypatch.setattr("deit.data.mirror.MAX_PIXELS", 8 * 400 * 400)
    monkeypatch.setattr("deit.data.mirror.MIN_IMAGES", 4)
    assert mirror_test(folder_source(tmp_path)).tried == 4
    monkeypatch.setattr("deit.data.mirror.MIN_IMAGES", 20)
    assert mirror_test(folder_source(tmp_path)).tried == 10


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image_files(tmp_path / name, 4)
    (tmp_path / "a" / "001.png").write_text("no image")
    assert mirror_test(folder_source(tmp_path)).tried == 3
