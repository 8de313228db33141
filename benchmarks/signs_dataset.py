"""A generated data set that resembles a user's: color images of 35 signs, tested on sources that are not in the training split.

    python -m benchmarks.signs_dataset OUT [--seed 0] [--train 100] [--test 30]

Writes ``OUT/train/CLASS/*.jpg`` and ``OUT/test/CLASS/*.jpg``. A class is a digit or a capital letter (without O, which looks
like zero in many fonts). A source stands for one person with one camera: a font, a fill, a kind of background, a palette, and
amounts of uneven light, blur and noise. The splits share no source and no font. All images are drawn from the seed, with the
fonts that matplotlib ships.
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
SIDE = 64  # of an image
CANVAS = 128  # side of the canvas that a sign is drawn on, before it is projected onto the image
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
    """How one person makes signs and photographs them.

    Attributes:
        font: name of the font.
        fill: "solid", "outline", "shaded" or "pattern".
        background: key of ``BACKGROUNDS``.
        hues: of background and sign, 0..1.
        stroke: pixels that strokes are widened by; negative for thinner strokes.
        rotation: mean, in degrees.
        shear: mean.
        perspective: standard deviation of the perspective distortion.
        clutter: probability of another sign at the border, and of a line across the image.
        shading: unevenness of the light.
        blur: radius in pixels.
        noise: standard deviation, of 255.
        quality: of the JPEG files.
    """

    font: str
    fill: str
    background: str
    hues: tuple[float, float]
    stroke: int
    rotation: float
    shear: float
    perspective: float
    clutter: float
    shading: float
    blur: float
    noise: float
    quality: int


def draw_source(font: str, rng: np.random.Generator) -> Source:
    """Draws a source that uses a font."""
    return Source(
        font=font,
        fill=str(rng.choice(["solid", "outline", "shaded", "pattern"], p=[0.4, 0.2, 0.2, 0.2])),
        background=str(rng.choice(list(BACKGROUNDS))),
        hues=(float(rng.random()), float(rng.random())),
        stroke=int(rng.integers(-1, 3)),
        rotation=float(rng.normal(0, 8)),
        shear=float(rng.normal(0, 0.15)),
        perspective=float(rng.uniform(0.02, 0.12)),
        clutter=float(rng.uniform(0, 0.6)),
        shading=float(rng.uniform(0, 0.7)),
        blur=float(rng.uniform(0, 1.0)),
        noise=float(rng.uniform(0, 12)),
        quality=int(rng.integers(40, 95)),
    )


def draw_sources(fonts: tuple[str, ...], count: int, rng: np.random.Generator) -> list[Source]:
    """Draws sources that use the fonts equally often."""
    return [draw_source(fonts[index % len(fonts)], rng) for index in range(count)]


def draw_image(sign: str, source: Source, rng: np.random.Generator, fonts: Path) -> Image.Image:
    """Draws one RGB image of a sign, 64 x 64."""
    mask = _project(_glyph(sign, source, rng, fonts), source, rng)
    background = BACKGROUNDS[source.background](rng, _color(source.hues[0], rng), _color(source.hues[0] + 0.1, rng))
    if rng.random() < source.clutter:
        clutter = _project(_glyph(str(rng.choice(CLASSES)), source, rng, fonts), source, rng, centered=False)
        background = _blend(background, clutter, np.broadcast_to(_color(source.hues[1], rng), background.shape))
    image = _blend(background, mask, _fill(source, rng, float(background.mean())))
    if rng.random() < source.clutter:
        _draw_line(image, rng)
    return _photograph(image, source, rng)


def _glyph(sign: str, source: Source, rng: np.random.Generator, fonts: Path) -> Image.Image:
    """Draws the sign in white on a black canvas, slightly warped."""
    image = Image.new("L", (CANVAS, CANVAS))
    font = ImageFont.truetype(str(fonts / f"{source.font}.ttf"), 88)
    ImageDraw.Draw(image).text(
        (CANVAS / 2, CANVAS / 2), sign, fill=255, font=font, anchor="mm", stroke_width=max(source.stroke, 0)
    )
    if source.stroke < 0:
        image = image.filter(ImageFilter.MinFilter(3))
    if source.fill == "outline":
        dilated = np.asarray(image.filter(ImageFilter.MaxFilter(9)), np.int16)
        eroded = np.asarray(image.filter(ImageFilter.MinFilter(3)), np.int16)
        image = Image.fromarray((dilated - eroded).clip(0).astype(np.uint8))
    amplitudes = 3 * rng.standard_normal((2, 3))
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS
    down = sum(amplitudes[0, k] * np.sin((k + 1) * 3 * x + k) for k in range(3))
    right = sum(amplitudes[1, k] * np.sin((k + 1) * 3 * y + 2 * k) for k in range(3))
    rows = (y * CANVAS + down).clip(0, CANVAS - 1).astype(int)
    columns = (x * CANVAS + right).clip(0, CANVAS - 1).astype(int)
    return Image.fromarray(np.asarray(image)[rows, columns])


def _project(glyph: Image.Image, source: Source, rng: np.random.Generator, centered: bool = True) -> np.ndarray:
    """Projects a glyph onto the image, near its center or at its border. Returns the mask, (64, 64), 0..1."""
    angle = np.deg2rad(source.rotation + rng.normal(0, 9))
    size = rng.uniform(0.75, 1.15) * SIDE / CANVAS
    shift = rng.uniform(-0.12, 0.12, 2) * SIDE if centered else rng.choice([-1, 1], 2) * rng.uniform(0.4, 0.6, 2) * SIDE
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = size * rotation @ np.array([[1, source.shear + rng.normal(0, 0.08)], [0, rng.uniform(0.8, 1.2)]])
    inverse = np.linalg.inv(forward)
    offset = CANVAS / 2 - inverse @ (SIDE / 2 + shift)
    perspective = rng.normal(0, source.perspective, 2) / SIDE
    # The center of the image is mapped to the same point as without perspective.
    scale = 1 + perspective @ np.array([SIDE / 2, SIDE / 2])
    rows = np.column_stack([inverse, offset]) * scale
    coefficients = (*rows[0], *rows[1], *perspective)
    mask = glyph.transform((SIDE, SIDE), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    return np.asarray(mask, np.float32) / 255


def _fill(source: Source, rng: np.random.Generator, background_mean: float) -> np.ndarray:
    """Returns the colors of the sign, (64, 64, 3), 0..255, lighter or darker than the background."""
    color = _color(source.hues[1], rng)
    distance = rng.uniform(60, 130) * (1 if background_mean < 128 else -1)
    color = color + (background_mean + distance - color.mean())
    if source.fill == "shaded":
        ramp = np.linspace(-35, 35, SIDE, dtype=np.float32)
        return np.asarray(color + (ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]))
    if source.fill == "pattern":
        return np.asarray(color + 0.5 * (_stripes(rng, np.zeros(3), np.full(3, 100.0)) - 50))
    return np.broadcast_to(color, (SIDE, SIDE, 3))


def _color(hue: float, rng: np.random.Generator) -> np.ndarray:
    """Draws an RGB color of about this hue, (3,), 0..255."""
    angles = 2 * np.pi * (hue + rng.normal(0, 0.06) + np.array([0, 1 / 3, 2 / 3]))
    return 128 + rng.normal(0, 35) + rng.uniform(10, 90) * np.cos(angles)


def _blend(background: np.ndarray, mask: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return np.asarray(background + mask[..., None] * (colors - background))


def _draw_line(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a line across the image, in place."""
    canvas = Image.new("L", (SIDE, SIDE))
    start, end = rng.uniform(0, SIDE, 2), rng.uniform(0, SIDE, 2)
    ImageDraw.Draw(canvas).line([*start, *end], fill=255, width=int(rng.integers(1, 5)))
    image[:] = _blend(image, np.asarray(canvas, np.float32) / 255, np.broadcast_to(_color(rng.random(), rng), image.shape))


def _photograph(values: np.ndarray, source: Source, rng: np.random.Generator) -> Image.Image:
    """Applies uneven light, contrast, blur and noise."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + source.shading * rng.uniform(0.3, 1) * (x * np.cos(angle) + y * np.sin(angle))
    values = (values - 128) * rng.uniform(0.6, 1.1) + 128 + rng.normal(0, 15)
    image = Image.fromarray((values * light[..., None]).clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(source.blur * rng.uniform(0.5, 1.2)))
    noisy = np.asarray(image, np.float32) + source.noise * rng.standard_normal((SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _plain(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, SIDE)
    ramp = ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    return np.broadcast_to(first + ramp * (second - first), (SIDE, SIDE, 3)).copy()


def _stripes(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    angle, width = rng.uniform(0, np.pi), rng.uniform(4, 14)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / width + rng.uniform(0, 6))
    share = (0.5 + 0.5 * np.tanh(3 * wave))[..., None]
    return np.asarray(first + share * (second - first))


def _tiles(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    size = int(rng.integers(5, 16))
    count = SIDE // size + 2
    shades = rng.random((count, count, 1)).repeat(size, 0).repeat(size, 1)
    top, left = rng.integers(0, size, 2)
    return np.asarray(first + shades[top : top + SIDE, left : left + SIDE] * (second - first))


def _clouds(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    values = np.zeros((SIDE, SIDE))
    for cells in (3, 6, 12, 24):
        layer = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        values += np.asarray(layer) / np.sqrt(cells)
    share = (0.5 + 0.5 * values).clip(0, 1)[..., None]
    return np.asarray(first + share * (second - first))


def _blobs(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    image = Image.fromarray(np.broadcast_to(first.clip(0, 255), (SIDE, SIDE, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 12))):
        left, top, width, height = *rng.uniform(-10, SIDE, 2), *rng.uniform(4, 30, 2)
        shade = first + rng.uniform(0.2, 1) * (second - first)
        draw_shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        draw_shape((left, top, left + width, top + height), fill=tuple(shade.clip(0, 255).astype(int).tolist()))
    return np.asarray(image, np.float64)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "stripes": _stripes,
    "tiles": _tiles,
    "clouds": _clouds,
    "blobs": _blobs,
}


def write_dataset(out: Path, seed: int = 0, train: int = 100, test: int = 30) -> None:
    """Writes the data set.

    Args:
        out: a new folder.
        seed: seed of all random numbers.
        train: training images per class.
        test: test images per class.
    """
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(seed)
    splits = (
        ("train", train, draw_sources(TRAIN_FONTS, TRAIN_SOURCES, rng)),
        ("test", test, draw_sources(TEST_FONTS, TEST_SOURCES, rng)),
    )
    for split, count, sources in splits:
        for sign in CLASSES:
            folder = out / split / sign
            folder.mkdir(parents=True)
            for number in range(count):
                source = sources[int(rng.integers(len(sources)))]
                image = draw_image(sign, source, rng, fonts)
                image.save(folder / f"{number:03d}.jpg", quality=source.quality, subsampling=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=100, help="training images per class")
    parser.add_argument("--test", type=int, default=30, help="test images per class")
    options = parser.parse_args()
    write_dataset(options.out, options.seed, options.train, options.test)


if __name__ == "__main__":
    main()
