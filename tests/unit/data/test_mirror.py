"""Whether mirrored images would do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deit.data.mirror import MirrorTest, edges, mirror_test
from deit.data.opening import open_data


@dataclass
class Drawn:
    """Strokes that lean to the right or to the left (``mirrored`` draws either way in every class) or lie down."""

    mirrored: bool
    classes: tuple[str, ...] = ("steep", "flat", "lying")

    @property
    def labels(self) -> np.ndarray:
        return np.arange(300) // 2 % 3

    def load(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        image = Image.new("RGB", (40, 40), (60, 60, 60))
        rise = {0: 14, 1: 7, 2: 0}[int(self.labels[index])]
        way = -1 if self.mirrored and rng.random() < 0.5 else 1
        x, y = rng.integers(16, 24, 2)
        ImageDraw.Draw(image).line((x - 10, y + way * rise, x + 10, y - way * rise), (200, 200, 200), 3)
        return image

    def name(self, index: int) -> str:
        return str(index)


def test_leaning_strokes_are_not_what_their_mirror_images_are() -> None:
    assert not mirror_test(Drawn(mirrored=False)).alike


def test_strokes_that_lean_either_way_are() -> None:
    found = mirror_test(Drawn(mirrored=True))
    assert found.alike
    assert found.upright > 0.6 * found.tried


def test_mirrored_digits_are_none() -> None:
    found = mirror_test(open_data("digits").train)
    assert not found.alike
    assert "mirrored" in str(found)


def test_a_difference_within_chance_is_none() -> None:
    assert MirrorTest(upright=30, mirrored=22, tried=700, changed=40).alike
    assert not MirrorTest(upright=70, mirrored=22, tried=700, changed=60).alike


@pytest.mark.parametrize("brightness", [0.5, 2.0])
def test_edges_do_not_depend_on_brightness(brightness: float) -> None:
    pixels = np.random.default_rng(0).uniform(0, 100, (2, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(edges(pixels), edges(brightness * pixels), atol=1e-5)
