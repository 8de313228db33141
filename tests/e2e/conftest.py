"""Runs the installed program in a process of its own, on a folder of photos."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, expect, sync_playwright

from deit.system.chromium import find_chromium, launch_chromium

Deit = Callable[..., "subprocess.CompletedProcess[str]"]

CLASSES = ("circle red", "квадрат", "三角")  # differ in shape and color
TINY = (
    *("--set", "model.patch_size=16", "--set", "model.hidden_size=48", "--set", "model.num_hidden_layers=2"),
    *("--set", "model.num_attention_heads=3", "--set", "crop_ratio=0.875"),
    *("--image-size", "64", "--epochs", "2", "--batch-size", "16", "--device", "cpu"),
)


@pytest.fixture(scope="session")
def deit(tmp_path_factory: pytest.TempPathFactory) -> Deit:
    """Returns a function that runs ``deit`` with arguments in a folder and returns the finished process."""
    cache = str(tmp_path_factory.mktemp("cache"))  # not the user's

    def run(*arguments: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        process = subprocess.run(
            [Path(sys.executable).with_name("deit"), *map(str, arguments)],
            cwd=cwd,
            input=stdin,
            capture_output=True,
            timeout=600,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "DEIT_CACHE": cache},
            check=False,
        )
        return subprocess.CompletedProcess(process.args, process.returncode, process.stdout.decode(), process.stderr.decode())

    return run


@pytest.fixture(scope="module")  # while Playwright runs, the thread has an event loop, and no other can be run in it
def browser() -> Iterator[Browser]:
    """The system's Chromium without a window. Where there is none, the tests that need it are skipped, but not in CI."""
    executable = find_chromium()
    if executable is None:
        message = "there is no Chromium: install it by the system's package manager, such as `apt-get install chromium`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=60_000)  # milliseconds; other tests run on the same cores
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright, executable)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs per class in JPEG, PNG and WebP, of odd modes and sizes, in folders with spaces and other scripts."""
    root = tmp_path_factory.mktemp("holiday photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = root / name / "from the phone"
        folder.mkdir(parents=True)
        for number in range(12):
            image = _drawing(label, rng)
            mode, suffix, options = _FILE_FORMATS[number % len(_FILE_FORMATS)]
            converted = image.convert(mode) if mode else image
            converted.save(folder / f"фото {number}{suffix}", **options)
    return root


_ROTATED = Image.Exif()
_ROTATED[0x0112] = 6  # EXIF orientation
_FILE_FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("", ".jpg", {"quality": 90}),
    ("", ".PNG", {}),
    ("", ".webp", {}),
    ("CMYK", ".jpeg", {}),
    ("P", ".png", {}),
    ("RGBA", ".png", {}),
    ("", ".jpg", {"exif": _ROTATED.tobytes()}),
    ("L", ".jpg", {}),
)


def _drawing(label: int, rng: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in rng.integers(60, 200, 2))
    noise = rng.integers(0, 60, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    left, top = width // 4, height // 4
    box = (left, top, left + width // 2, top + height // 2)
    draw = ImageDraw.Draw(image)
    if label == 0:
        draw.ellipse(box, fill=(230, 30, 30))
    elif label == 1:
        draw.rectangle(box, fill=(30, 230, 30))
    else:
        draw.polygon([(left, box[3]), (box[2], box[3]), (width // 2, top)], fill=(240, 240, 250))
    return image
