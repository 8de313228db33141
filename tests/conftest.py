"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.helpers import pattern

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network

# The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("pinned", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pinned"))

CLASSES = ("golden retriever", "кошка", "鳥 (bird)")


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``CLASS/.../image`` as people have it: three classes of eight files, in every format, mode and odd size."""
    root = tmp_path_factory.mktemp("my photos")
    for place, name in enumerate(CLASSES):
        folder = root / name
        deep = folder / "from phone" / "2021 été"
        deep.mkdir(parents=True)
        photo = pattern(61, 47, seed=place)
        turned = Image.Exif()
        turned[0x0112] = 6
        photo.save(folder / "IMG 0001.JPG", quality=95)
        photo.resize((33, 71)).save(deep / "turned.jpeg", exif=turned.tobytes(), quality=95)
        photo.convert("L").resize((1, 90)).save(folder / "gray.png")
        cut_out = photo.convert("RGBA").resize((40, 39))
        cut_out.putalpha(Image.linear_gradient("L").resize(cut_out.size))
        cut_out.save(deep / "прозрачная.webp", lossless=True)
        photo.quantize(16).resize((17, 5)).save(folder / "palette.png", transparency=3)
        cut_out.convert("LA").save(folder / "gray cut out.PNG")
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(deep / "16 bit.png")
        photo.convert("CMYK").resize((128, 3)).save(folder / "print.tif")
        (folder / "notes.txt").write_text("not an image")
        (folder / ".hidden.png").write_bytes(b"rubbish that must not be read")
    (root / ".cache").mkdir()
    return root
