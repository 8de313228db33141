"""A made data set that is like a user's: signs of 35 classes in color, tested on sources that training lacks.

    python -m benchmarks.signs_dataset OUT [--seed 0] [--train 100] [--test 30]

Writes ``OUT/train/CLASS/*.jpg`` and ``OUT/test/CLASS/*.jpg``. A class is a digit or a capital letter (O, which is a zero in
many fonts, is left out). A source is what one person with one camera would send: a font, a way to paint, a family of
backgrounds, a palette, a light, a blur, a noise. Training and test share no source and no font. Everything is drawn from the
seed, with the fonts that matplotlib ships; no found image is in it.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CLASSES = tuple(string.digits + string.ascii_uppercase.replace("O", ""))
SIDE = 64
CANVAS = 128  # the sign is drawn at this size and then seen through the camera
TRAIN_SOURCES, TEST_SOURCES = 20, 15
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
)
TEST_FONTS = (
    "DejaVuSansMono-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmtt10",
    "cmb10",
)


@dataclass(frozen=True)
class Source:
    """One person's way of making signs and pictures of them; lengths in pixels of the picture."""

    font: str
    paint: str
    background: str
    hues: tuple[float, float]
    weight: int
    turn: float
    slant: float
    tilt: float
    clutter: float
    light: float
    blur: float
    noise: float
    quality: int


def source(font: str, rng: np.random.Generator) -> Source:
    """Draw a source that writes in a font."""
    return Source(
        font=font,
        paint=str(rng.choice(["solid", "outline", "shaded", "pattern"], p=[0.4, 0.2, 0.2, 0.2])),
        background=str(rng.choice(list(BACKGROUNDS))),
        hues=(float(rng.random()), float(rng.random())),
        weight=int(rng.integers(-1, 3)),
        turn=float(rng.normal(0, 8)),
        slant=float(rng.normal(0, 0.15)),
        tilt=float(rng.uniform(0.02, 0.12)),
        clutter=float(rng.uniform(0, 0.6)),
        light=float(rng.uniform(0, 0.7)),
        blur=float(rng.uniform(0, 1.0)),
        noise=float(rng.uniform(0, 12)),
        quality=int(rng.integers(40, 95)),
    )


def sources(fonts: tuple[str, ...], count: int, rng: np.random.Generator) -> list[Source]:
    """Sources that share out the fonts evenly."""
    return [source(fonts[place % len(fonts)], rng) for place in range(count)]


def picture(sign: str, origin: Source, rng: np.random.Generator, fonts: Path) -> Image.Image:
    """One picture of a sign, 64 x 64, in color."""
    mask = _seen(_glyph(sign, origin, rng, fonts), origin, rng)
    behind = BACKGROUNDS[origin.background](rng, _color(origin.hues[0], rng), _color(origin.hues[0] + 0.1, rng))
    if rng.random() < origin.clutter:
        other = _seen(_glyph(str(rng.choice(CLASSES)), origin, rng, fonts), origin, rng, near=False)
        behind = _over(behind, other, np.broadcast_to(_color(origin.hues[1], rng), behind.shape))
    image = _over(behind, mask, _paint(origin, rng, float(behind.mean())))
    if rng.random() < origin.clutter:
        _scratch(image, rng)
    return _camera(image, origin, rng)


def _glyph(sign: str, origin: Source, rng: np.random.Generator, fonts: Path) -> Image.Image:
    """The sign as white on black, on the large canvas."""
    image = Image.new("L", (CANVAS, CANVAS))
    font = ImageFont.truetype(str(fonts / f"{origin.font}.ttf"), 88)
    ImageDraw.Draw(image).text(
        (CANVAS / 2, CANVAS / 2), sign, fill=255, font=font, anchor="mm", stroke_width=max(origin.weight, 0)
    )
    if origin.weight < 0:
        image = image.filter(ImageFilter.MinFilter(3))
    if origin.paint == "outline":
        grown = np.asarray(image.filter(ImageFilter.MaxFilter(9)), np.int16)
        image = Image.fromarray((grown - np.asarray(image.filter(ImageFilter.MinFilter(3)), np.int16)).clip(0).astype(np.uint8))
    wave = 3 * rng.standard_normal((2, 3))
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS
    down = sum(wave[0, k] * np.sin((k + 1) * 3 * x + k) for k in range(3))
    right = sum(wave[1, k] * np.sin((k + 1) * 3 * y + 2 * k) for k in range(3))
    rows = (y * CANVAS + down).clip(0, CANVAS - 1).astype(int)
    columns = (x * CANVAS + right).clip(0, CANVAS - 1).astype(int)
    return Image.fromarray(np.asarray(image)[rows, columns])


def _seen(glyph: Image.Image, origin: Source, rng: np.random.Generator, near: bool = True) -> np.ndarray:
    """The sign where the camera sees it: (64, 64), 0..1. ``near`` has it whole in the picture, else it lies at the rim."""
    angle = np.deg2rad(origin.turn + rng.normal(0, 9))
    size = rng.uniform(0.75, 1.15) * SIDE / CANVAS
    shift = rng.uniform(-0.12, 0.12, 2) * SIDE if near else rng.choice([-1, 1], 2) * rng.uniform(0.4, 0.6, 2) * SIDE
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = size * turn @ np.array([[1, origin.slant + rng.normal(0, 0.08)], [0, rng.uniform(0.8, 1.2)]])
    inverse = np.linalg.inv(forward)
    offset = CANVAS / 2 - inverse @ (SIDE / 2 + shift)
    tilt = rng.normal(0, origin.tilt, 2) / SIDE
    # The tilt holds at the middle of the picture: a point there goes where it would without.
    scale = 1 + tilt @ np.array([SIDE / 2, SIDE / 2])
    rows = np.column_stack([inverse, offset]) * scale
    coefficients = (*rows[0], *rows[1], *tilt)
    seen = glyph.transform((SIDE, SIDE), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    return np.asarray(seen, np.float32) / 255


def _paint(origin: Source, rng: np.random.Generator, behind: float) -> np.ndarray:
    """The sign's color: (64, 64, 3), 0..255, lighter or darker than what is behind it."""
    color = _color(origin.hues[1], rng)
    distance = rng.uniform(60, 130) * (1 if behind < 128 else -1)
    color = color + (behind + distance - color.mean())
    if origin.paint == "shaded":
        ramp = np.linspace(-35, 35, SIDE, dtype=np.float32)
        return np.asarray(color + (ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]))
    if origin.paint == "pattern":
        return np.asarray(color + 0.5 * (_stripes(rng, np.zeros(3), np.full(3, 100.0)) - 50))
    return np.broadcast_to(color, (SIDE, SIDE, 3))


def _color(hue: float, rng: np.random.Generator) -> np.ndarray:
    """A color about a hue, (3,), 0..255."""
    angles = 2 * np.pi * (hue + rng.normal(0, 0.06) + np.array([0, 1 / 3, 2 / 3]))
    return 128 + rng.normal(0, 35) + rng.uniform(10, 90) * np.cos(angles)


def _over(behind: np.ndarray, mask: np.ndarray, paint: np.ndarray) -> np.ndarray:
    return np.asarray(behind + mask[..., None] * (paint - behind))


def _scratch(image: np.ndarray, rng: np.random.Generator) -> None:
    """Something thin lies across the picture."""
    canvas = Image.new("L", (SIDE, SIDE))
    start, end = rng.uniform(0, SIDE, 2), rng.uniform(0, SIDE, 2)
    ImageDraw.Draw(canvas).line([*start, *end], fill=255, width=int(rng.integers(1, 5)))
    image[:] = _over(image, np.asarray(canvas, np.float32) / 255, np.broadcast_to(_color(rng.random(), rng), image.shape))


def _camera(values: np.ndarray, origin: Source, rng: np.random.Generator) -> Image.Image:
    """Light, blur and noise."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + origin.light * rng.uniform(0.3, 1) * (x * np.cos(angle) + y * np.sin(angle))
    values = (values - 128) * rng.uniform(0.6, 1.1) + 128 + rng.normal(0, 15)
    image = Image.fromarray((values * light[..., None]).clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(origin.blur * rng.uniform(0.5, 1.2)))
    noisy = np.asarray(image, np.float32) + origin.noise * rng.standard_normal((SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _plain(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, SIDE)
    ramp = ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    return np.broadcast_to(one + ramp * (other - one), (SIDE, SIDE, 3)).copy()


def _stripes(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    angle, width = rng.uniform(0, np.pi), rng.uniform(4, 14)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / width + rng.uniform(0, 6))
    share = (0.5 + 0.5 * np.tanh(3 * wave))[..., None]
    return np.asarray(one + share * (other - one))


def _tiles(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = int(rng.integers(5, 16))
    count = SIDE // size + 2
    shades = rng.random((count, count, 1)).repeat(size, 0).repeat(size, 1)
    top, left = rng.integers(0, size, 2)
    return np.asarray(one + shades[top : top + SIDE, left : left + SIDE] * (other - one))


def _clouds(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    values = np.zeros((SIDE, SIDE))
    for cells in (3, 6, 12, 24):
        layer = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        values += np.asarray(layer) / np.sqrt(cells)
    share = (0.5 + 0.5 * values).clip(0, 1)[..., None]
    return np.asarray(one + share * (other - one))


def _blobs(rng: np.random.Generator, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    image = Image.fromarray(np.broadcast_to(one.clip(0, 255), (SIDE, SIDE, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 12))):
        left, top, width, height = *rng.uniform(-10, SIDE, 2), *rng.uniform(4, 30, 2)
        shade = one + rng.uniform(0.2, 1) * (other - one)
        kind = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        kind((left, top, left + width, top + height), fill=tuple(shade.clip(0, 255).astype(int).tolist()))
    return np.asarray(image, np.float64)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "stripes": _stripes,
    "tiles": _tiles,
    "clouds": _clouds,
    "blobs": _blobs,
}


def write(out: Path, seed: int = 0, train: int = 100, test: int = 30) -> None:
    """Write the data set.

    Args:
        out: a new folder.
        train: images of each class in the training part; ``test`` likewise.
    """
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(seed)
    parts = (
        ("train", train, sources(TRAIN_FONTS, TRAIN_SOURCES, rng)),
        ("test", test, sources(TEST_FONTS, TEST_SOURCES, rng)),
    )
    for part, count, origins in parts:
        for sign in CLASSES:
            folder = out / part / sign
            folder.mkdir(parents=True)
            for place in range(count):
                origin = origins[int(rng.integers(len(origins)))]
                picture(sign, origin, rng, fonts).save(folder / f"{place:03d}.jpg", quality=origin.quality, subsampling=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=30)
    options = parser.parse_args()
    write(options.out, options.seed, options.train, options.test)


if __name__ == "__main__":
    main()
