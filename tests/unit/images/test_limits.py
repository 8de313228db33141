"""Limits on pixels: the default, the environment variable, `--max-pixels`, and what an error says."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.errors import ImageError, ImageTooLargeError, UserError
from deit.images.decoding import EncodedImage, check_header, open_image
from deit.images.limits import DEFAULT_MAX_PIXELS, MAX_PIXELS_VARIABLE, max_pixels, pixel_limit
from tests.helpers import pattern


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    pattern(width, height).save(file, "PNG")
    return file.getvalue()


def test_limit_is_that_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_PIXELS_VARIABLE, raising=False)
    assert max_pixels() == DEFAULT_MAX_PIXELS
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "99")
    assert max_pixels() == 99
    with pixel_limit(100):
        assert max_pixels() == 100
    assert max_pixels() == 99


@pytest.mark.parametrize("text", ["many", "0", "-3", "1e6", "\u0663", "9" * 13])
def test_wrong_value_of_the_variable_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, text)
    with pytest.raises(UserError, match=MAX_PIXELS_VARIABLE):
        max_pixels()


@pytest.mark.parametrize("read", [open_image, check_header, EncodedImage], ids=lambda read: read.__name__)
def test_larger_images_are_an_error_that_tells_the_remedy(read: object) -> None:
    assert callable(read)
    with pixel_limit(100):
        read(png(10, 10))
        with pytest.raises(ImageTooLargeError, match=r"upload has 10 x 11 pixels.*--max-pixels 110"):
            read(png(10, 11), "upload")


def test_damaged_images_are_another_error() -> None:
    with pytest.raises(ImageError) as caught:
        open_image(png(10, 10)[:60])
    assert not isinstance(caught.value, ImageTooLargeError)


def write_classes(folder: Path) -> None:
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for side in (10, 12):
            (folder / name / f"{side}.png").write_bytes(png(side, side))


@pytest.mark.parametrize(("limit", "unreadable"), [("100", 2), ("144", 0)])
def test_option_limits_one_command(limit: str, unreadable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_PIXELS_VARIABLE, raising=False)
    write_classes(tmp_path)
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--max-pixels", limit])
    assert result.output.count("pixels, and at most") == unreadable
    assert result.exit_code == bool(unreadable)
    assert MAX_PIXELS_VARIABLE not in os.environ


@pytest.mark.parametrize(
    "command",
    ["train", "pretrain", "teacher train", "teacher cache", "evaluate", "predict", "export", "benchmark", "data check"],
)
def test_every_command_that_reads_images_has_the_option(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert "--max-pixels" in result.output
