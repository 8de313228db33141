"""Fixtures shared by several test files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.helpers import pattern

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network

# Shells start background jobs with SIGINT ignored, and nohup ignores SIGHUP; what is ignored stays ignored in our programs.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run; HYPOTHESIS_PROFILE=search draws new ones.
settings.register_profile("pinned", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pinned"))

CLASSES = ("golden retriever", "кошка", "鳥 (bird)")


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """Restores the handlers of signals, which the program changes when it ends, and which later processes inherit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the tests from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_CACHE", str(tmp_path_factory.mktemp("cache of the tests")))
        yield


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A realistic folder ``CLASS/.../image``: three classes of eight files, in various formats, modes and odd sizes."""
    root = tmp_path_factory.mktemp("my photos")
    for label, name in enumerate(CLASSES):
        folder = root / name
        subfolder = folder / "from phone" / "2021 été"
        subfolder.mkdir(parents=True)
        photo = pattern(61, 47, seed=label)
        rotated = Image.Exif()
        rotated[0x0112] = 6  # orientation: displayed rotated by 90 degrees clockwise
        photo.save(folder / "IMG 0001.JPG", quality=95)
        photo.resize((33, 71)).save(subfolder / "turned.jpeg", exif=rotated.tobytes(), quality=95)
        photo.convert("L").resize((1, 90)).save(folder / "gray.png")
        transparent = photo.convert("RGBA").resize((40, 39))
        transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
        transparent.save(subfolder / "прозрачная.webp", lossless=True)
        photo.quantize(16).resize((17, 5)).save(folder / "palette.png", transparency=3)
        transparent.convert("LA").save(folder / "gray cut out.PNG")
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(subfolder / "16 bit.png")
        photo.convert("CMYK").resize((128, 3)).save(folder / "print.tif")
        (folder / "notes.txt").write_text("not an image")
        (folder / ".hidden.png").write_bytes(b"not an image, must not be read")
    (root / ".cache").mkdir()
    return root
